//! Debian on disks: firmware, GRUB and systemd to a login on the serial port and on the screen, from every controller and
//! format, if asked for: `cargo xtask test --guests debian`.

use std::process::Command;

use anyhow::Context;
use anyhow::ensure;

use super::Case;
use super::Lab;
use super::Skip;
use super::cases::no_complaints;
use super::cases::says;
use crate::boot::Boot;
use crate::guests::Unavailable;
use crate::guests::system;
use crate::powercuts;
use crate::process;
use crate::workspace;

pub(super) const CASES: [Case; 13] = [
    debian("debian_boots_from_nvme_qcow2", true),
    debian("debian_boots_from_ide_raw", true),
    debian("debian_boots_from_ide_vdi", true),
    debian("debian_boots_from_ide_vmdk", true),
    debian("debian_boots_from_ide_qcow2", true),
    debian("debian_boots_from_ahci_raw", true),
    debian("debian_boots_from_ahci_vdi", true),
    debian("debian_boots_from_ahci_vmdk", true),
    debian("debian_boots_from_ahci_qcow2", true),
    debian("debian_boots_from_nvme_raw", true),
    debian("debian_boots_from_nvme_vdi", true),
    debian("debian_boots_from_nvme_vmdk", true),
    Case {
        name: "disks_keep_what_was_flushed",
        check: disks_keep_what_was_flushed,
        extra: false,
    },
];

const fn debian(name: &'static str, extra: bool) -> Case {
    Case {
        name,
        check: debian_boots,
        extra,
    }
}

fn disks_keep_what_was_flushed(lab: &Lab) -> anyhow::Result<()> {
    powercuts::run(lab.oxbow, 6, false)
}

/// The test's name says from which bus and format.
fn debian_boots(lab: &Lab) -> anyhow::Result<()> {
    let mut words = lab.name.rsplit('_');
    let (format, bus) = (words.next().context("no format")?, words.next().context("no bus")?);
    let disk = system::prepare().map_err(|error| {
        if error.chain().any(|cause| cause.is::<Unavailable>()) {
            Skip(format!("{error:#}")).into()
        } else {
            error
        }
    })?;
    let dir = workspace::guests_dir().join("disks");
    std::fs::create_dir_all(&dir)?;
    let image = dir.join(lab.name).with_extension(format);
    let _ = std::fs::remove_file(&image);
    let mut convert = Command::new(lab.oxbow);
    convert.args(["disk", "convert"]).args([&disk, &image]);
    process::output(convert.args(["--to", format]))?;
    let fio = "fio --name=v --directory=/root --rw=randrw --bs=4k-64k --size=16M --fsync=64 --verify=crc32c \
               --verify_fatal=1 --output=/tmp/fio && echo fio-\"\"well; tr -s ' ' ' ' </dev/vcs1; poweroff\n";
    let dialogue = [("login: ", "root\n"), ("# ", fio)];
    let option = format!("{},format={format},bus={bus}", image.display());
    let boot = Boot::firmware(lab.oxbow, "pc")
        .with(&["--disk", &option])
        .dialogue(&dialogue);
    lab.watch(&boot, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        says(seen, "fio-well")?;
        says(seen, "oxbow tty1").context("the screen has no login")
    })?;
    process::output(Command::new(lab.oxbow).args(["disk", "check"]).arg(&image))?;
    std::fs::remove_file(image)?;
    Ok(())
}
