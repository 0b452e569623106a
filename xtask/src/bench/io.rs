//! `cargo xtask bench io`: disks and networks of a guest under QEMU's TCG and here, side by side.
//!
//! The same kernel, programs and images on both; fio and iperf3 say what was moved in a fixed time by the guest's clock, which
//! is compared with ours. Rounds go in turn over both machines; figures are medians.

mod guest;
mod vm;

use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;

use super::machine::Run;
use super::report::Results;
use crate::arguments::Arguments;
use crate::arguments::Usage;
use crate::guests::Guest;
use crate::iperf::Server;
use crate::iperf::free_port;
use crate::process;
use crate::workspace;
use guest::GUEST;
use vm::Cable;
use vm::Kind;
use vm::Mark;
use vm::Setup;
use vm::Vm;

/// The disk's size.
const DISK: u64 = 1 << 30;

/// Groups of lines that share a boot.
const GROUPS: [&str; 7] = [
    "disk",
    "nat-virtio",
    "nat-e1000",
    "pair-virtio",
    "pair-e1000",
    "boot-virtio",
    "boot-ide",
];

#[derive(Debug)]
struct Options {
    rounds: usize,
    seconds: u32,
    only: Vec<String>,
    json: PathBuf,
    markdown: PathBuf,
}

impl Options {
    fn read(mut arguments: Arguments) -> anyhow::Result<Self> {
        let only = arguments.value("--only")?.unwrap_or_default();
        let options = Self {
            rounds: arguments.parsed("-n")?.unwrap_or(1),
            seconds: arguments.parsed("--seconds")?.unwrap_or(5),
            only: only
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
            json: super::output(arguments.value("--json")?, "bench-io.json"),
            markdown: super::output(arguments.value("--markdown")?, "bench-io.md"),
        };
        arguments.end()?;
        if options.seconds == 0 {
            return Err(Usage("--seconds cannot be 0".to_owned()).into());
        }
        if let Some(name) = options.only.iter().find(|name| !GROUPS.contains(&name.as_str())) {
            let known = GROUPS.join(", ");
            return Err(Usage(format!("there is no group {name}; there are {known}")).into());
        }
        Ok(options)
    }

    fn wants(&self, group: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == group)
    }
}

pub(super) fn main(arguments: Arguments) -> anyhow::Result<()> {
    let options = Options::read(arguments)?;
    for (program, package) in [("qemu-system-x86_64", "qemu-system-x86"), ("iperf3", "iperf3")] {
        if process::find(program).is_none() {
            bail!("there is nothing to compare with: {program} is missing, of the package {package}");
        }
    }
    let bench = Bench {
        guest: GUEST.prepare()?,
        disk: workspace::guests_dir().join("bench-io/disk.raw"),
        seconds: options.seconds,
    };
    write_disk(&bench.disk).context("cannot write the disk")?;
    let kinds = [Kind::QemuTcg, Kind::Oxbow(workspace::build_oxbow()?)];
    let names = kinds.iter().map(|kind| kind.name().to_owned()).collect();
    let mut results = Results::new("rates, and seconds of boots", names);
    for round in 1..=options.rounds {
        for group in GROUPS.iter().filter(|group| options.wants(group)) {
            for (index, kind) in kinds.iter().enumerate() {
                eprintln!("bench: round {round} of {}, {group}, {}", options.rounds, kind.name());
                let mut run = Run::default();
                if let Err(error) = bench.run(kind, group, &mut run) {
                    eprintln!("bench: {group}, {}: {error:#}", kind.name());
                    run.failures.push(error.to_string());
                }
                results.add(index, run);
            }
        }
    }
    super::publish(&results, &options.json, &options.markdown)
}

/// A disk full of what cannot be compressed, so that no layer may leave anything out.
fn write_disk(path: &Path) -> anyhow::Result<()> {
    let mut random = std::fs::File::open("/dev/urandom")?.take(DISK);
    std::io::copy(&mut random, &mut std::fs::File::create(path)?)?;
    Ok(())
}

struct Bench {
    guest: Guest,
    disk: PathBuf,
    seconds: u32,
}

impl Bench {
    /// Boots what a group needs, and writes down what it says.
    fn run(&self, kind: &Kind, group: &str, run: &mut Run) -> anyhow::Result<()> {
        match group {
            "disk" => self.disk_lines(kind, run),
            "nat-virtio" => self.nat(kind, "virtio", run),
            "nat-e1000" => self.nat(kind, "e1000", run),
            "pair-virtio" => self.pair(kind, "virtio", run),
            "pair-e1000" => self.pair(kind, "e1000", run),
            "boot-virtio" => self.boot(kind, "virtio", "virtio", run),
            _ => self.boot(kind, "ide", "e1000", run),
        }
    }

    fn words(&self, work: &str) -> String {
        format!("work={work} seconds={}", self.seconds)
    }

    fn disk_lines(&self, kind: &Kind, run: &mut Run) -> anyhow::Result<()> {
        let setup = Setup {
            words: self.words("disk"),
            disk: Some((&self.disk, "virtio")),
            nic: None,
        };
        let mut vm = kind.start(&self.guest, &setup)?;
        follow(&mut vm, run, |name| {
            let unit = if name.ends_with("4k") { "IOPS" } else { "KiB/s" };
            format!("virtio-blk {name}, {unit}")
        })
    }

    fn nat(&self, kind: &Kind, model: &'static str, run: &mut Run) -> anyhow::Result<()> {
        let server = Server::start()?;
        let setup = Setup {
            words: format!("{} address=10.0.2.15 server={}", self.words("nat"), server.port),
            disk: None,
            nic: Some((model, Cable::Nat)),
        };
        let mut vm = kind.start(&self.guest, &setup)?;
        follow(&mut vm, run, |name| format!("{model} NAT {name}, Mbit/s"))
    }

    fn pair(&self, kind: &Kind, model: &'static str, run: &mut Run) -> anyhow::Result<()> {
        let port = free_port()?;
        let first = Setup {
            words: format!("{} address=10.0.2.20", self.words("serve")),
            disk: None,
            nic: Some((model, Cable::First(port))),
        };
        let mut server = kind.start(&self.guest, &first)?;
        while server.next()? != Mark::Serving {}
        let second = Setup {
            words: format!("{} address=10.0.2.15", self.words("call")),
            nic: Some((model, Cable::Second(port))),
            ..first.clone()
        };
        let mut client = kind.start(&self.guest, &second)?;
        follow(&mut client, run, |name| format!("{model} {name}, Mbit/s"))
    }

    fn boot(&self, kind: &Kind, bus: &'static str, model: &'static str, run: &mut Run) -> anyhow::Result<()> {
        let setup = Setup {
            words: format!("{} address=10.0.2.15", self.words("boot")),
            disk: Some((&self.disk, bus)),
            nic: Some((model, Cable::Nat)),
        };
        let mut vm = kind.start(&self.guest, &setup)?;
        if let Mark::Boot(seconds) = vm.next()? {
            run.seconds.push((format!("boot with {bus} and {model}, s"), seconds));
        }
        Ok(())
    }
}

/// Writes down the figures of a guest until it is done.
fn follow(vm: &mut Vm, run: &mut Run, name: impl Fn(&str) -> String) -> anyhow::Result<()> {
    loop {
        match vm.next()? {
            Mark::Figure(line, figure) => run.seconds.push((name(&line), figure)),
            Mark::Done => return Ok(()),
            Mark::Boot(_) | Mark::Serving => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> anyhow::Result<Options> {
        Options::read(Arguments::new(words.iter().map(|&word| word.to_owned())))
    }

    #[test]
    fn options_are_read_and_checked() {
        let options = read(&["--only", "disk,pair-e1000", "-n", "5"]).unwrap();
        assert!(options.wants("disk") && !options.wants("nat-virtio"));
        assert_eq!((options.rounds, options.seconds), (5, 5));
        let error = read(&["--only", "floppy"]).unwrap_err();
        assert!(error.to_string().contains("there is no group floppy"), "{error}");
        assert!(read(&["--seconds", "0"]).is_err());
    }
}
