//! Drives that are attached to a running guest, used by it, and detached: on a SATA port, at a SCSI host, in a PCI Express port,
//! in a PCI slot.
//! And discs that are changed.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;

use super::Lab;
use super::Skip;
use super::cases::no_complaints;
use super::cases::says;
use super::ctl::Ctl;
use super::ctl::with_user;
use crate::boot::Boot;
use crate::boot::Seen;
use crate::boot::Told;
use crate::guests::Unavailable;
use crate::guests::system::efi;
use crate::workspace;

/// How long the guest may take to say something.
const LIMIT: Duration = Duration::from_secs(300);
/// The same of its screen, in seconds; nothing is awaited there.
const SCREEN: &str = "300";
/// Bytes of an image.
const SIZE: usize = 4 << 20;
/// Loads what SATA, IDE, disks and discs need.
const LOAD: &str = "for m in scsi_common scsi_mod crct10dif_common crc-t10dif crc64 crc64-rocksoft t10-pi sd_mod cdrom sr_mod \
                    libata libahci ahci ata_piix; do insmod /lib/modules/$m.ko; done";

/// Loads what virtio disks need.
const LOAD_BLK: &str = "for m in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk; do \
                        insmod /lib/modules/$m.ko; done; sleep 1";

/// A user who also hears what the guest's script says.
struct User<'a> {
    ctl: &'a Ctl<'a>,
    told: Told,
    /// Bytes of that which were listened to.
    heard: usize,
}

impl User<'_> {
    fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.ctl.ask(arguments)
    }

    /// Waits for a line that begins with `mark`, and returns the rest of it.
    fn hears(&mut self, mark: &str) -> anyhow::Result<String> {
        self.told.wait_for_line(mark, &mut self.heard, LIMIT)
    }

    /// Takes the disc out, when the guest has closed the drive: it locks it meanwhile.
    fn eject(&self) -> anyhow::Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            match self.ctl(&["eject", "cd0"]) {
                Err(error) if format!("{error:#}").contains("has locked") && Instant::now() < end => {
                    thread::sleep(Duration::from_millis(100));
                }
                result => return result.map(drop),
            }
        }
    }

    /// An image that begins with `text`, by its path.
    fn image(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.ctl.dir().join(name);
        let mut bytes = vec![0; SIZE];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        std::fs::write(&path, bytes)?;
        Ok(path.to_string_lossy().into_owned())
    }
}

/// Boots a guest whose script is `script`, and lets `work` work with it from outside.
fn work_on(
    lab: &Lab,
    (guest, script): (&str, &str),
    options: &[&str],
    work: impl FnOnce(&mut User) -> anyhow::Result<()> + Send,
    judge: impl FnOnce(&Seen) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let boot = lab.commands(guest, script)?.with(options);
    let told = boot.told();
    let user = move |ctl: &Ctl<'_>| work(&mut User { ctl, told, heard: 0 });
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        judge(seen)
    })
}

/// Boots a guest whose script is `script` by UEFI firmware from a disk on `bus`, and lets `work` work with it from outside.
fn work_by_uefi(
    lab: &Lab,
    bus: &str,
    (guest, script): (&str, &str),
    work: impl FnOnce(&mut User) -> anyhow::Result<()> + Send,
    judge: impl FnOnce(&Seen) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let dir = workspace::guests_dir().join("uefi").join(bus);
    std::fs::create_dir_all(&dir)?;
    let (disk, vars) = (dir.join("disk.raw"), dir.join("vars"));
    if let Err(error) = efi::kernel_disk(&disk, lab.guest(guest)?, script) {
        return Err(match error.is::<Unavailable>() {
            true => Skip(format!("{error:#}")).into(),
            false => error,
        });
    }
    let _ = std::fs::remove_file(&vars);
    let drive = format!("{},format=raw,bus={bus}", disk.display());
    let boot = Boot::firmware(lab.oxbow, "q35").with(&["--disk", &drive, "--uefi", &vars.to_string_lossy()]);
    let told = boot.told();
    let user = move |ctl: &Ctl<'_>| work(&mut User { ctl, told, heard: 0 });
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        says(seen, "@efi /sys/firmware/efi")?;
        judge(seen)
    })?;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// What a guest does with a disk that comes and goes `times` times.
fn use_disk(name: &str, times: u32) -> String {
    format!(
        "for n in $(seq {times}); do echo @ready; until [ -b /dev/{name} ]; do sleep .2; done; \
         echo @here $(head -c 5 /dev/{name}) $(cat /sys/block/{name}/size); \
         echo written | dd of=/dev/{name} bs=8 seek=512 conv=fsync 2>/dev/null && echo @written; \
         while [ -b /dev/{name} ]; do sleep .2; done; echo @gone; done"
    )
}

/// Attaches a disk, sees the guest use it, and detaches it.
fn plug(user: &mut User, attach: &str, detach: &[&str], place: &str) -> anyhow::Result<()> {
    let image = user.image("plug.img", "hello")?;
    user.hears("@ready")?;
    let told = user.ctl(&["attach", "disk", &format!("{image}{attach}"), "--name", "extra"])?;
    ensure!(told.trim() == format!("extra in {place}"), "attached: {told}");
    let here = user.hears("@here")?;
    ensure!(here == format!("hello {}", SIZE / 512), "the guest sees `{here}`");
    user.hears("@written")?;
    user.ctl(&[&["detach", "extra"], detach].concat())?;
    let bytes = std::fs::read(&image)?;
    ensure!(
        bytes.get(4096..4104) == Some(b"written\n"),
        "what was written is not in the image"
    );
    ensure!(!user.ctl(&["status"])?.contains("extra"), "it is still attached");
    user.hears("@gone").map(drop)
}

pub(super) fn sata_disk_is_plugged_in_and_pulled_out(lab: &Lab) -> anyhow::Result<()> {
    let script = format!("{LOAD}; {}", use_disk("sda", 2));
    let work = |user: &mut User| {
        plug(user, "", &[], "sata0")?;
        plug(user, "", &[], "sata0")
    };
    work_on(lab, ("full", &script), &["--machine", "q35"], work, |seen| {
        says(seen, "SATA link up")?;
        says(seen, "SATA link down")?;
        says(seen, "[sda] Attached SCSI disk")
    })
}

pub(super) fn nvme_card_is_plugged_into_a_port_and_pulled_out(lab: &Lab) -> anyhow::Result<()> {
    let work = |user: &mut User| {
        plug(user, ",bus=nvme", &["--timeout", "200"], "port1")?;
        plug(user, ",bus=nvme", &["--force"], "port1")
    };
    let script = use_disk("nvme0n1", 2);
    work_on(lab, ("demo", &script), &["--machine", "q35"], work, |seen| {
        says(seen, "Slot(1): Card present")?;
        says(seen, "Slot(1): Powering off due to button press")?;
        says(seen, "Slot(1): Link Down").or_else(|_| says(seen, "Slot(1): Card not present"))
    })
}

pub(super) fn nvme_card_is_plugged_into_a_slot_and_ejected(lab: &Lab) -> anyhow::Result<()> {
    let work = |user: &mut User| {
        plug(user, ",bus=nvme", &["--timeout", "200"], "slot3")?;
        plug(user, ",bus=nvme", &["--force"], "slot3")
    };
    let script = use_disk("nvme0n1", 2);
    work_on(lab, ("demo", &script), &["--machine", "pc"], work, |seen| {
        says(seen, "acpiphp: Slot [3] registered")
    })
}

/// Plugs a disk into the SCSI host of a guest that loads its drivers so, out and in again. The host is there for a CD drive.
pub(super) fn scsi_target(lab: &Lab, machine: &str, (guest, load): (&str, &str)) -> anyhow::Result<()> {
    let work = |user: &mut User| {
        plug(user, ",bus=scsi", &[], "scsi1")?;
        // Where there is nothing but SCSI it need not be said.
        let bus = if machine == "microvm" { "" } else { ",bus=scsi" };
        plug(user, bus, &[], "scsi1")?;
        let image = user.image("more.img", "more")?;
        let told = user.ctl(&["attach", "disk", &format!("{image},bus=scsi"), "--at", "scsi63"])?;
        ensure!(told.trim() == "disk0 in scsi63", "attached: {told}");
        user.hears("@more").map(drop)
    };
    let script = format!(
        "{load}; {}; until [ -b /dev/sda ]; do sleep .2; done; \
         ls -d /sys/bus/scsi/devices/*:63:0; head -c 4 /dev/sda; echo; echo @more",
        use_disk("sda", 2)
    );
    let options = ["--machine", machine, "--cdrom", "none,bus=scsi"];
    work_on(lab, (guest, &script), &options, work, |seen| {
        says(seen, "[sda] Attached SCSI disk")?;
        says(seen, ":0:63:0")?;
        says(seen, "more")
    })
}

/// UEFI firmware boots from a virtio disk, and another comes to a port that the firmware has set up, and goes.
pub(super) fn virtio_disk_is_plugged_in_after_uefi(lab: &Lab) -> anyhow::Result<()> {
    let work = |user: &mut User| {
        plug(user, ",bus=virtio", &["--timeout", "200"], "port1")?;
        plug(user, ",bus=virtio", &["--timeout", "200"], "port1")
    };
    let script = format!(
        "{LOAD_BLK}; echo @efi $(ls -d /sys/firmware/efi); {}",
        use_disk("vdb", 2)
    );
    work_by_uefi(lab, "virtio", ("demo", &script), work, |seen| {
        says(seen, "Slot(1): Card present")?;
        says(seen, "Slot(1): Powering off due to button press")
    })
}

/// UEFI firmware boots from a SCSI disk, and another comes to that host, and goes.
pub(super) fn scsi_disk_is_plugged_in_after_uefi(lab: &Lab, load: &str) -> anyhow::Result<()> {
    let work = |user: &mut User| plug(user, ",bus=scsi", &[], "scsi1");
    let script = format!("{load}; echo @efi $(ls -d /sys/firmware/efi); {}", use_disk("sdb", 1));
    work_by_uefi(lab, "scsi", ("tools", &script), work, |seen| {
        says(seen, "[sdb] Attached SCSI disk")
    })
}

/// What a guest does with two discs after one another: it reads their beginnings.
const USE_DISCS: &str = "echo @ready; until [ $(head -c 5 /dev/sr0 2>/dev/null || echo none) = first ]; do sleep .5; done; \
                         echo @first; while head -c 1 /dev/sr0 >/dev/null 2>&1; do sleep .5; done; echo @empty; \
                         until [ $(head -c 5 /dev/sr0 2>/dev/null || echo none) = other ]; do sleep .5; done; echo @other";

/// Changes the discs of a drive of a guest that loads its drivers so.
pub(super) fn discs(lab: &Lab, machine: &str, bus: &str, (guest, load): (&str, &str)) -> anyhow::Result<()> {
    let work = |user: &mut User| {
        let (first, other) = (user.image("first.iso", "first")?, user.image("other.iso", "other")?);
        user.hears("@ready")?;
        user.ctl(&["insert", "cd0", &first])?;
        user.hears("@first")?;
        user.eject()?;
        user.hears("@empty")?;
        user.ctl(&["insert", "cd0", &other])?;
        user.hears("@other").map(drop)
    };
    let drive = format!("none,bus={bus}");
    let options = ["--machine", machine, "--cdrom", &drive];
    work_on(lab, (guest, &format!("{load}; {USE_DISCS}")), &options, work, |seen| {
        says(seen, "sr0")
    })
}

pub(super) fn discs_of_an_ide_drive_are_changed(lab: &Lab) -> anyhow::Result<()> {
    discs(lab, "pc", "ide", ("full", LOAD))
}

pub(super) fn discs_of_a_sata_drive_are_changed(lab: &Lab) -> anyhow::Result<()> {
    discs(lab, "q35", "ahci", ("full", LOAD))
}
