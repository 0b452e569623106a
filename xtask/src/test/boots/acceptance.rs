//! All types of virtio device at once, as Debian's own programs see them: each has its driver, `fio` finds every block that it
//! wrote, `rngtest` finds the random numbers random, `iperf3` gets its bytes through the NAT in both directions.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

use super::Case;
use super::Lab;
use super::Skip;
use super::cases::no_complaints;
use super::cases::says;
use crate::boot::Boot;
use crate::boot::Seen;
use crate::guests::Guest;
use crate::guests::Unavailable;
use crate::guests::crates::file_system_tests;
use crate::guests::programs::Programs;
use crate::iperf::Server;
use crate::process;
use crate::workspace;

pub(super) const CASES: [Case; 3] = [
    Case {
        name: "virtio_tools_find_no_fault_on_the_microvm",
        check: on_the_microvm,
        extra: false,
    },
    Case {
        name: "virtio_tools_find_no_fault_on_the_pc",
        check: on_the_pc,
        extra: false,
    },
    Case {
        name: "virtio_folders_are_file_systems_by_posix",
        check: folders_by_posix,
        extra: true,
    },
];

/// File system tests in a shared folder.
const SHARES: &str = include_str!("../../../guest/shares.sh");
/// Tests of pjdfstest that have to pass. Those that are skipped need mounts, other systems, or 65,000 links.
const POSIX: u32 = 380;

#[rustfmt::skip]
const GUEST: Programs = Programs {
    name: "acceptance",
    packages: "busybox-static,fio,iperf3,rng-tools5,linux-image-amd64",
    programs: &["usr/bin/fio", "usr/bin/iperf3", "usr/bin/rngtest"],
    modules: &[
        "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio",
        "virtio_blk", "failover", "net_failover", "virtio_net", "virtio-rng", "virtio_console", "virtio_balloon",
        "scsi_common", "scsi_mod", "crct10dif_common", "crc-t10dif", "crc64", "crc64-rocksoft", "t10-pi", "sd_mod",
        "virtio_scsi", "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
        "fuse", "virtiofs", "netfs", "fscache", "9pnet", "9pnet_virtio", "9p", "evdev", "virtio_input",
    ],
    init: include_str!("../../../guest/acceptance.sh"),
};

/// The drivers of all devices, sorted.
const DRIVERS: [&str; 12] = [
    "9pnet_virtio",
    "virtio_balloon",
    "virtio_blk",
    "virtio_console",
    "virtio_input",
    "virtio_input",
    "virtio_input",
    "virtio_net",
    "virtio_rng",
    "virtio_scsi",
    "virtiofs",
    "vmw_vsock_virtio_transport",
];
/// Status of a device whose driver is up: acknowledge, driver, driver OK, features OK (virtio 1.2 §2.1).
const UP: &str = "0x0000000f";
/// Bytes of each disk, and of the shared file.
const DISK: u64 = 16 << 20;
const FILE: usize = 1 << 20;
/// Blocks that rngtest looks at, and how many of them may fail: of good ones, one of about 1250 does (FIPS 140-2 §4.9.1).
const BLOCKS: u32 = 50;
const FAILURES: u32 = 3;

fn on_the_microvm(lab: &Lab) -> anyhow::Result<()> {
    tools(lab, "microvm")
}

fn on_the_pc(lab: &Lab) -> anyhow::Result<()> {
    tools(lab, "pc")
}

/// What could be had; where it could not, the test is skipped.
fn had<T>(result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| {
        if error.chain().any(|cause| cause.is::<Unavailable>()) {
            return Skip(format!("{error:#}")).into();
        }
        error
    })
}

/// The tests are root's, as which the host's side has to run too: it makes devices and changes owners.
fn folders_by_posix(lab: &Lab) -> anyhow::Result<()> {
    let (guest, tests) = (had(GUEST.prepare())?, had(file_system_tests(SHARES))?);
    let dir = workspace::guests_dir().join("acceptance/posix");
    let host = Host::plant(&dir)?;
    if fs::metadata(&host.files)?.uid() != 0 {
        return Err(Skip("to let guests make devices and change owners one has to be root".to_owned()).into());
    }
    let initrd = dir.join("initrd.cpio");
    let parts = [fs::read(&guest.initrd)?, fs::read(tests)?];
    fs::write(&initrd, parts.concat())?;
    let guest = Guest { initrd, ..guest };
    let boot = Boot::new(lab.oxbow, &guest, "console=ttyS0 quiet panic=-1 work=shares");
    let boot = boot.with(&["--machine", "pc", "--memory", "768M"]);
    let boot = boot.with(&["--share", &format!("files={}", host.files.display())]);
    lab.watch(&boot, |seen| {
        no_failure(seen)?;
        says(seen, "@ok fsx")?;
        let posix = seen.line("@posix ").context("pjdfstest has no summary")?;
        let passed = posix.text.split(", ").find_map(|part| part.strip_suffix(" passed"));
        let passed: u32 = passed.context("pjdfstest counts nothing")?.parse()?;
        ensure!(passed >= POSIX, "only {passed} of pjdfstest's tests pass");
        Ok(())
    })?;
    fs::remove_dir_all(dir)?;
    Ok(())
}

fn tools(lab: &Lab, machine: &str) -> anyhow::Result<()> {
    if process::find("iperf3").is_none() {
        return Err(Skip("iperf3 is not installed: the package iperf3".to_owned()).into());
    }
    let guest = had(GUEST.prepare())?;
    let server = Server::start()?;
    let dir = workspace::guests_dir().join("acceptance").join(machine);
    let host = Host::plant(&dir)?;
    let append = format!("console=ttyS0 quiet panic=-1 work=tools server={}", server.port);
    let boot = Boot::new(lab.oxbow, &guest, &append).with(&["--machine", machine, "--memory", "768M"]);
    lab.watch(&host.devices(boot), judge)?;
    let said = fs::read_to_string(&host.console)?;
    ensure!(said.contains("spoken"), "the console says {said:?}");
    let taken = fs::read(host.plan9.join("taken"))?;
    ensure!(taken == file(), "the file came to the other folder as another one");
    fs::remove_dir_all(dir)?;
    Ok(())
}

/// Nothing that the guest tried failed, and it powered off.
fn no_failure(seen: &Seen) -> anyhow::Result<()> {
    let failed = seen.lines.iter().find(|line| line.text.trim().starts_with("@fail "));
    if let Some(line) = failed {
        bail!("the guest says: {}", line.text);
    }
    ensure!(seen.status == Some(0), "the machine did not power off");
    no_complaints(seen)
}

fn judge(seen: &Seen) -> anyhow::Result<()> {
    no_failure(seen)?;
    let texts = || seen.lines.iter().map(|line| line.text.trim());
    for part in ["blk", "scsi", "upload", "download", "virtiofs", "9p"] {
        says(seen, &format!("@ok {part}"))?;
    }
    let mut drivers = Vec::new();
    for text in texts().filter_map(|text| text.strip_prefix("@device ")) {
        let (driver, status) = text.split_once(' ').context("a device has no driver")?;
        ensure!(status == UP, "{driver} has its device in status {status}");
        drivers.push(driver);
    }
    drivers.sort_unstable();
    ensure!(drivers == DRIVERS, "the devices' drivers are {drivers:?}");
    let count = |name: &str| {
        let found = texts().find_map(|text| text.strip_prefix(name)?.trim().parse::<u32>().ok());
        found.with_context(|| format!("rngtest says no {name}"))
    };
    let (good, bad) = (count("@successes ")?, count("@failures ")?);
    ensure!(
        good + bad == BLOCKS && bad <= FAILURES,
        "of {} random blocks {bad} are not random",
        good + bad
    );
    Ok(())
}

/// What devices have on the host's side.
struct Host {
    disk: PathBuf,
    unit: PathBuf,
    console: PathBuf,
    files: PathBuf,
    plan9: PathBuf,
    socket: PathBuf,
}

impl Host {
    fn plant(dir: &Path) -> anyhow::Result<Self> {
        let _ = fs::remove_dir_all(dir);
        let host = Self {
            disk: dir.join("disk.raw"),
            unit: dir.join("unit.raw"),
            console: dir.join("console"),
            files: dir.join("files"),
            plan9: dir.join("plan9"),
            socket: dir.join("vsock"),
        };
        for folder in [&host.files, &host.plan9] {
            fs::create_dir_all(folder)?;
        }
        for image in [&host.disk, &host.unit] {
            fs::File::create(image)?.set_len(DISK)?;
        }
        fs::write(host.files.join("given"), file())?;
        Ok(host)
    }

    /// A machine with one device of each type, and all kinds of input.
    fn devices(&self, boot: Boot) -> Boot {
        let drive = |image: &Path, bus: &str| format!("{},bus={bus},format=raw", image.display());
        boot.with(&["--disk", &drive(&self.disk, "virtio")])
            .with(&["--disk", &drive(&self.unit, "scsi")])
            .with(&["--nic", "nat,loopback,model=virtio", "--rng", "--balloon"])
            .with(&["--console", &format!("file:{}", self.console.display())])
            .with(&["--input", "keyboard", "--input", "tablet", "--input", "mouse"])
            .with(&["--vsock", &format!("cid=3,socket={}", self.socket.display())])
            .with(&["--share", &format!("files={}", self.files.display())])
            .with(&["--share", &format!("plan9={},proto=9p", self.plan9.display())])
    }
}

/// What the shared file holds.
fn file() -> Vec<u8> {
    (0..FILE).map(|at| (at % 251) as u8).collect()
}
