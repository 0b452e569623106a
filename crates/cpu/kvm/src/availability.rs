//! Whether KVM can be used on this host, and whether it is worth while.
//!
//! Not every `/dev/kvm` is a processor's: some kernels execute what the processor cannot with an emulator of their own,
//! which is slower than our translator by far. Flags of the processor tell the usual case, a measurement the rest.

use std::fmt;

use kvm_ioctls::Cap;
use kvm_ioctls::Kvm;

use crate::probe;

/// KVM's interface, unchanged since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// A guest's loop may take so many times as long as the host's before the kernel counts as an emulator. A processor's
/// guest takes 1, an emulator 100 and more; the rest is for other work on the host.
const SLOWEST: f64 = 8.0;

/// What the engine cannot do without.
const NEEDED: [(Cap, &str); 8] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR"),
    (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER"),
];

/// What this host has of KVM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Availability {
    /// Guests can run on it.
    pub usable: bool,
    /// The processor executes them, not an emulator in the kernel: `auto` takes KVM.
    pub hardware: bool,
    /// Why, in a few words.
    pub reason: String,
}

impl Availability {
    fn no(reason: String) -> Self {
        Self {
            usable: false,
            hardware: false,
            reason,
        }
    }
}

impl fmt::Display for Availability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Opens `/dev/kvm`, and checks that it can do what the engine needs. `Err` is the reason why not.
pub(crate) fn open() -> Result<Kvm, String> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT => "there is no /dev/kvm".to_owned(),
        libc::EACCES | libc::EPERM => "no permission for /dev/kvm; is the user in the group kvm?".to_owned(),
        libc::ENODEV | libc::ENXIO => "/dev/kvm has no driver".to_owned(),
        _ => format!("cannot open /dev/kvm: {error}"),
    })?;
    let version = kvm.get_api_version();
    if version != API_VERSION {
        return Err(format!(
            "/dev/kvm speaks version {version} of its interface, not {API_VERSION}"
        ));
    }
    let lacks = NEEDED.iter().filter(|(cap, _)| !kvm.check_extension(*cap));
    let lacks: Vec<&str> = lacks.map(|(_, name)| *name).collect();
    if lacks.is_empty() {
        Ok(kvm)
    } else {
        Err(format!("the kernel's KVM lacks {}", lacks.join(", ")))
    }
}

/// Which of the processor's virtualization extensions `/proc/cpuinfo` names.
fn extension(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    let has = |name: &str| flags.split_whitespace().any(|flag| flag == name);
    match () {
        () if has("vmx") => Some("VT-x"),
        () if has("svm") => Some("AMD-V"),
        () => None,
    }
}

/// Looks at this host. It takes a few milliseconds, and 100 where an emulator answers.
#[must_use]
pub fn availability() -> Availability {
    let kvm = match open() {
        Ok(kvm) => kvm,
        Err(reason) => return Availability::no(reason),
    };
    let measured = match probe::slowdown(&kvm) {
        Ok(measured) => measured,
        Err(reason) => return Availability::no(format!("/dev/kvm runs no guest: {reason}")),
    };
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    judge(extension(&cpuinfo), measured)
}

/// `slowdown` is how many times as long as on the host a loop takes in a guest.
fn judge(extension: Option<&str>, slowdown: f64) -> Availability {
    let hardware = slowdown <= SLOWEST;
    let name = extension.unwrap_or("no VT-x or AMD-V in /proc/cpuinfo");
    let reason = if hardware {
        format!("KVM on the processor ({name})")
    } else {
        format!("KVM is emulated ({name}): guest code takes {slowdown:.0} times as long as host code")
    };
    Availability {
        usable: true,
        hardware,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extension_is_a_word_of_the_flags() {
        assert_eq!(extension("flags\t\t: fpu vmx sse\n"), Some("VT-x"));
        assert_eq!(
            extension("model name: svm\nflags\t\t: fpu svm_lock svm\n"),
            Some("AMD-V")
        );
        assert_eq!(extension("flags\t\t: fpu svm_lock\nvmx flags\t: svm\n"), None);
        assert_eq!(extension(""), None);
    }

    #[test]
    fn judge_believes_the_measurement_whatever_the_flags_say() {
        assert!(judge(Some("VT-x"), 1.1).hardware);
        assert!(judge(None, 1.1).hardware);
        let emulated = judge(Some("AMD-V"), 900.0);
        assert!(emulated.usable && !emulated.hardware);
        assert!(emulated.reason.contains("900 times"), "{emulated}");
    }

    #[test]
    fn availability_has_a_reason_of_one_line() {
        let found = availability();
        assert!(!found.reason.is_empty() && !found.reason.contains('\n'), "{found}");
        assert!(found.usable || !found.hardware);
    }
}
