//! Drives that are attached to a running guest, used by it, and detached: on a SATA port, in a PCI Express port, in a PCI slot.
//! And discs that are changed.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

use super::Lab;
use super::cases::no_complaints;
use super::cases::says;
use crate::boot::Seen;
use crate::process;

/// How long the guest may take to say something.
const LIMIT: Duration = Duration::from_secs(300);
/// Bytes of an image.
const SIZE: usize = 4 << 20;
/// Loads what SATA, IDE, disks and discs need.
const LOAD: &str = "for m in scsi_common scsi_mod crct10dif_common crc-t10dif crc64 crc64-rocksoft t10-pi sd_mod cdrom sr_mod \
                    libata libahci ahci ata_piix; do insmod /lib/modules/$m.ko; done";

/// A machine that is worked with from outside.
struct User<'a> {
    oxbow: &'a Path,
    socket: PathBuf,
    lines: Receiver<String>,
    dir: PathBuf,
}

impl User<'_> {
    fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.oxbow);
        process::output(command.arg("ctl").arg(&self.socket).args(arguments))
    }

    /// Waits for a line that begins with `mark`, and returns the rest of it.
    fn hears(&self, mark: &str) -> anyhow::Result<String> {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.with_context(|| format!("the guest did not say {mark}"))?;
            if let Some(rest) = line.strip_prefix(mark) {
                return Ok(rest.trim().to_owned());
            }
        }
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
        let path = self.dir.join(name);
        let mut bytes = vec![0; SIZE];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        std::fs::write(&path, bytes)?;
        Ok(path.to_string_lossy().into_owned())
    }
}

/// Boots a guest whose script is `script`, and lets `work` work with it from outside.
fn with_user(
    lab: &Lab,
    (guest, script): (&str, &str),
    options: &[&str],
    work: impl Fn(&User) -> anyhow::Result<()> + Sync,
    judge: impl FnOnce(&Seen) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("oxbow-{}-{}", lab.name, std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let (sender, lines) = mpsc::channel();
    let user = User {
        oxbow: lab.oxbow,
        socket: dir.join("vm.sock"),
        lines,
        dir: dir.clone(),
    };
    let path = user.socket.to_string_lossy().into_owned();
    let boot = lab.commands(guest, script)?.with(&["--control", &path]).with(options);
    let boot = boot.listener(sender);
    let (worked, watched) = thread::scope(|scope| {
        let worked = scope.spawn(|| {
            let user = user;
            let result = work(&user);
            if result.is_err() {
                // The machine may be gone.
                let _ = user.ctl(&["quit"]);
            }
            result
        });
        let watched = lab.watch(&boot, |seen| {
            ensure!(seen.status == Some(0), "the machine did not power off");
            no_complaints(seen)?;
            judge(seen)
        });
        (worked.join(), watched)
    });
    let _ = std::fs::remove_dir_all(&dir);
    match worked {
        Ok(worked) => watched.and(worked),
        Err(_) => bail!("the user panicked"),
    }
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
fn plug(user: &User, attach: &str, detach: &[&str], place: &str) -> anyhow::Result<()> {
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
    let work = |user: &User| {
        plug(user, "", &[], "sata0")?;
        plug(user, "", &[], "sata0")
    };
    with_user(lab, ("full", &script), &["--machine", "q35"], work, |seen| {
        says(seen, "SATA link up")?;
        says(seen, "SATA link down")?;
        says(seen, "[sda] Attached SCSI disk")
    })
}

pub(super) fn nvme_card_is_plugged_into_a_port_and_pulled_out(lab: &Lab) -> anyhow::Result<()> {
    let work = |user: &User| {
        plug(user, ",bus=nvme", &["--timeout", "200"], "port1")?;
        plug(user, ",bus=nvme", &["--force"], "port1")
    };
    let script = use_disk("nvme0n1", 2);
    with_user(lab, ("demo", &script), &["--machine", "q35"], work, |seen| {
        says(seen, "Slot(1): Card present")?;
        says(seen, "Slot(1): Powering off due to button press")?;
        says(seen, "Slot(1): Link Down").or_else(|_| says(seen, "Slot(1): Card not present"))
    })
}

pub(super) fn nvme_card_is_plugged_into_a_slot_and_ejected(lab: &Lab) -> anyhow::Result<()> {
    let work = |user: &User| {
        plug(user, ",bus=nvme", &["--timeout", "200"], "slot3")?;
        plug(user, ",bus=nvme", &["--force"], "slot3")
    };
    let script = use_disk("nvme0n1", 2);
    with_user(lab, ("demo", &script), &["--machine", "pc"], work, |seen| {
        says(seen, "acpiphp: Slot [3] registered")
    })
}

/// What a guest does with two discs after one another: it reads their beginnings.
const USE_DISCS: &str = "echo @ready; until [ $(head -c 5 /dev/sr0 2>/dev/null || echo none) = first ]; do sleep .5; done; \
                         echo @first; while head -c 1 /dev/sr0 >/dev/null 2>&1; do sleep .5; done; echo @empty; \
                         until [ $(head -c 5 /dev/sr0 2>/dev/null || echo none) = other ]; do sleep .5; done; echo @other";

fn discs(lab: &Lab, machine: &str, bus: &str) -> anyhow::Result<()> {
    let work = |user: &User| {
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
    with_user(lab, ("full", &format!("{LOAD}; {USE_DISCS}")), &options, work, |seen| {
        says(seen, "sr0")
    })
}

pub(super) fn discs_of_an_ide_drive_are_changed(lab: &Lab) -> anyhow::Result<()> {
    discs(lab, "pc", "ide")
}

pub(super) fn discs_of_a_sata_drive_are_changed(lab: &Lab) -> anyhow::Result<()> {
    discs(lab, "q35", "ahci")
}
