//! What the host has: hardware virtualization and memory.
//!
//! Spec: proc(5) (`/proc/cpuinfo`, `/proc/meminfo`); SDM vol. 3 §25.6 and APM vol. 2 §15.4 for the names of the flags.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use board::Availability;

use super::Finding;
use super::Health;
use crate::disk::output::size;

const KVM: &str = "/dev/kvm";
/// Below that the smallest guests do not start.
const LEAST: u64 = 256 << 20;

/// What the host's processor says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Processor {
    /// VT-x or AMD-V.
    virtualizes: bool,
    /// The host is a guest itself.
    is_virtual: bool,
}

impl Processor {
    fn read(cpuinfo: &str) -> Self {
        let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"));
        let has = |wanted: &[&str]| {
            let words = flags.unwrap_or_default().split_whitespace();
            words.into_iter().any(|word| wanted.contains(&word))
        };
        Self {
            virtualizes: has(&["vmx", "svm"]),
            is_virtual: has(&["hypervisor"]),
        }
    }
}

/// Whether KVM works, and is hardware; `kvm` is what came of trying it.
pub(super) fn kvm(kvm: &Availability) -> Finding {
    let processor = Processor::read(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let node = match OpenOptions::new().read(true).write(true).open(KVM) {
        Ok(_) => Node::Opens,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Node::Denied,
        Err(error) if Path::new(KVM).exists() => Node::Fails(error.to_string()),
        Err(_) => Node::Absent,
    };
    judge(processor, &node, kvm)
}

/// What came of opening the node.
enum Node {
    Opens,
    Denied,
    Fails(String),
    Absent,
}

fn judge(processor: Processor, node: &Node, kvm: &Availability) -> Finding {
    let lacking = |detail: String| Finding::lacking("engines", "kvm", Health::Missing, detail);
    let Processor {
        virtualizes,
        is_virtual,
    } = processor;
    match node {
        Node::Absent if virtualizes => lacking(format!("the processor has VT-x or AMD-V, but {KVM} is not there"))
            .remedy("modprobe kvm_intel or kvm_amd"),
        Node::Absent => {
            let finding = lacking(format!(
                "{KVM} is not there, nor do the processor's flags have vmx or svm"
            ));
            finding.remedy(match is_virtual {
                true => "this host is a guest: its own host would have to allow nested virtualization",
                false => "turn on VT-x or AMD-V in the setup of the host's firmware",
            })
        }
        Node::Denied => lacking(format!("{KVM} may not be opened")).remedy("usermod -aG kvm $USER, then log in again"),
        Node::Fails(error) => lacking(format!("{KVM} cannot be opened: {error}")),
        Node::Opens if kvm.hardware => Finding::good("engines", "kvm", kvm.reason.clone()),
        Node::Opens if kvm.usable => Finding::lacking("engines", "kvm", Health::Slow, kvm.reason.clone()),
        Node::Opens => lacking(kvm.reason.clone()),
    }
}

/// Memory for guests.
pub(super) fn memory() -> Finding {
    match available(&fs::read_to_string("/proc/meminfo").unwrap_or_default()) {
        Some(bytes) if bytes < LEAST => {
            let finding = Finding::lacking("memory", "available", Health::Bad, size(bytes));
            finding.remedy("end other programs, or give the host more")
        }
        Some(bytes) => Finding::good("memory", "available", size(bytes)),
        None => Finding::lacking("memory", "available", Health::Missing, "the host does not say how much"),
    }
}

/// Bytes that programs can have, of `/proc/meminfo`.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: Processor = Processor {
        virtualizes: true,
        is_virtual: false,
    };
    const GUEST: Processor = Processor {
        virtualizes: false,
        is_virtual: true,
    };

    #[test]
    fn flags_are_whole_words_of_their_line() {
        let text = "processor : 0\nvmx flags : none\nflags\t\t: fpu vme hypervisor svm_lock\n";
        assert_eq!(Processor::read(text), GUEST);
        assert_eq!(Processor::read("flags : fpu vmx\n"), BARE);
        assert_eq!(available("MemTotal: 9 kB\nMemAvailable:   2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemAvailable: lots\n"), None);
    }

    #[test]
    fn each_obstacle_has_its_remedy() {
        let kvm = |usable, hardware| Availability {
            usable,
            hardware,
            reason: "because".to_owned(),
        };
        let remedy = |processor, node| judge(processor, &node, &kvm(false, false)).remedy.unwrap_or_default();
        assert!(remedy(BARE, Node::Absent).contains("modprobe"));
        assert!(remedy(GUEST, Node::Absent).contains("nested"));
        assert!(remedy(BARE, Node::Denied).contains("usermod"));
        for (usable, hardware, health) in [
            (true, true, Health::Good),
            (true, false, Health::Slow),
            (false, false, Health::Missing),
        ] {
            let finding = judge(GUEST, &Node::Opens, &kvm(usable, hardware));
            assert_eq!((finding.health, finding.detail.as_str()), (health, "because"));
        }
    }
}
