//! A driver that breaks the rules of virtio breaks its devices, and nothing else.

use std::path::Path;

use tempfile::TempDir;

use crate::build;
use crate::guest::check;
use crate::guest::oxbow;

/// Bytes of the disk, which the guest may not change.
const DISK: usize = 64 << 10;

/// The disk, the shared folder, and the guest in two forms.
const FILES: usize = 4;

fn breaks_every_device(engine: &str) {
    let dir = TempDir::new().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../guests/hostile.S");
    let disk = dir.path().join("disk.raw");
    let bytes: Vec<u8> = (0..DISK).map(|at| (at * 7 + at / 512) as u8).collect();
    std::fs::write(&disk, &bytes).unwrap();
    let mut command = oxbow(&["run", "--machine", "microvm", "--memory", "64M", "--engine", engine]);
    command.args(["--debug-exit", "0xf4", "--timeout", "600"]);
    command.arg("--disk").arg(format!("{},format=raw,ro", disk.display()));
    command
        .arg("--disk")
        .arg(format!("{},format=raw,ro,bus=scsi", disk.display()));
    command.args(["--nic", "nat,model=virtio", "--rng", "--balloon", "--console", "none"]);
    command.args(["--input", "keyboard", "--input", "tablet", "--input", "mouse"]);
    command.args(["--vsock", "cid=3"]);
    let folder = dir.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    for protocol in ["virtiofs", "9p"] {
        let share = format!("{protocol}={},proto={protocol}", folder.display());
        command.args(["--share", &share]);
    }
    command
        .arg("--kernel")
        .arg(build::build(&source, dir.path(), "hostile"));
    let output = command.output().unwrap();
    check(&output, 1, "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hostile ok\n");
    assert_eq!(std::fs::read(&disk).unwrap(), bytes, "the disk has changed");
    let names = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, FILES, "files beside the shared folder");
}

#[test]
fn hostile_driver_breaks_its_devices_and_nothing_else() {
    breaks_every_device("jit");
}

#[test]
fn hostile_driver_breaks_its_devices_and_nothing_else_when_interpreted() {
    breaks_every_device("interp");
}

#[test]
fn hostile_driver_breaks_its_devices_and_nothing_else_under_kvm() {
    let found = board::kvm_availability();
    if !found.usable {
        eprintln!("SKIPPED: {found}");
        return;
    }
    breaks_every_device("kvm");
}
