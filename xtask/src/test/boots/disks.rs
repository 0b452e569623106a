//! Debian on disks: firmware, GRUB and systemd to a login on the serial port and on the screen, from every controller and
//! format, if asked for: `cargo xtask test --guests debian`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use anyhow::ensure;

use super::Case;
use super::Lab;
use super::Skip;
use super::cases::no_complaints;
use super::cases::says;
use super::ctl::Ctl;
use super::ctl::with_user;
use super::picture::Picture;
use crate::boot::Boot;
use crate::guests::Unavailable;
use crate::guests::system;
use crate::powercuts;
use crate::process;
use crate::workspace;

/// How long the guest may take to show something, in seconds, on a host that is busy with other things.
const SCREEN: &str = "900";
const PATIENCE: Duration = Duration::from_secs(900);

pub(super) const CASES: [Case; 20] = [
    debian("debian_boots_from_nvme_qcow2"),
    debian("debian_boots_from_ide_raw"),
    debian("debian_boots_from_ide_vdi"),
    debian("debian_boots_from_ide_vmdk"),
    debian("debian_boots_from_ide_qcow2"),
    debian("debian_boots_from_ahci_raw"),
    debian("debian_boots_from_ahci_vdi"),
    debian("debian_boots_from_ahci_vmdk"),
    debian("debian_boots_from_ahci_qcow2"),
    debian("debian_boots_from_nvme_raw"),
    debian("debian_boots_from_nvme_vdi"),
    debian("debian_boots_from_nvme_vmdk"),
    debian("debian_boots_from_scsi_raw"),
    debian("debian_boots_from_virtio_raw"),
    Case {
        name: "debian_boots_by_uefi_from_ahci_raw",
        check: debian_boots_by_uefi,
        extra: true,
    },
    Case {
        name: "debian_boots_by_uefi_from_nvme_qcow2",
        check: debian_boots_by_uefi,
        extra: true,
    },
    Case {
        name: "discards_in_debian_shrink_ide_qcow2",
        check: discards_shrink_the_image,
        extra: true,
    },
    Case {
        name: "discards_in_debian_shrink_scsi_qcow2",
        check: discards_shrink_the_image,
        extra: true,
    },
    Case {
        name: "discards_in_debian_shrink_ide_vdi",
        check: discards_shrink_the_image,
        extra: true,
    },
    Case {
        name: "disks_keep_what_was_flushed",
        check: disks_keep_what_was_flushed,
        extra: false,
    },
];

const fn debian(name: &'static str) -> Case {
    Case {
        name,
        check: debian_boots,
        extra: true,
    }
}

fn disks_keep_what_was_flushed(lab: &Lab) -> anyhow::Result<()> {
    powercuts::run(lab.oxbow, 6, false)
}

/// A copy of the system, in the format and for the bus that the test's name ends with.
struct Copy {
    image: PathBuf,
    option: String,
}

impl Copy {
    fn of(lab: &Lab, disk: anyhow::Result<PathBuf>) -> anyhow::Result<Self> {
        let disk = disk.map_err(|error| {
            if error.chain().any(|cause| cause.is::<Unavailable>()) {
                Skip(format!("{error:#}")).into()
            } else {
                error
            }
        })?;
        let mut words = lab.name.rsplit('_');
        let (format, bus) = (words.next().context("no format")?, words.next().context("no bus")?);
        let dir = workspace::guests_dir().join("disks");
        std::fs::create_dir_all(&dir)?;
        let image = dir.join(lab.name).with_extension(format);
        let _ = std::fs::remove_file(&image);
        let mut convert = Command::new(lab.oxbow);
        convert.args(["disk", "convert"]).args([&disk, &image]);
        process::output(convert.args(["--to", format]))?;
        let option = format!("{},format={format},bus={bus}", image.display());
        Ok(Self { image, option })
    }

    /// The end of a test that went well: the image is as it should be, and not needed any more.
    fn check(self, oxbow: &Path) -> anyhow::Result<()> {
        process::output(Command::new(oxbow).args(["disk", "check"]).arg(&self.image))?;
        std::fs::remove_file(self.image)?;
        Ok(())
    }
}

/// What root does on the serial port: writes that are read back, then power off when the user at the screen is done, too.
/// The quotes keep the echo of what is typed from looking like what is awaited.
const FIO: &str = "fio --name=v --directory=/root --rw=randrw --bs=4k-64k --size=16M --fsync=64 --verify=crc32c \
                   --verify_fatal=1 --output=/tmp/fio && echo fio-\"\"well; \
                   until [ -e /tmp/seen ]; do sleep 1; done; poweroff\n";

fn debian_boots(lab: &Lab) -> anyhow::Result<()> {
    let copy = Copy::of(lab, system::prepare())?;
    let dialogue = [("oxbow login: ", "root\n"), ("# ", FIO)];
    let boot = Boot::firmware(lab.oxbow, "pc")
        .with(&["--disk", &copy.option])
        .dialogue(&dialogue);
    with_user(lab, boot, SCREEN, log_in_at_the_screen, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        says(seen, "fio-well")
    })?;
    copy.check(lab.oxbow)
}

/// With the VGA's text and the PC's keyboard.
fn log_in_at_the_screen(ctl: &Ctl<'_>) -> anyhow::Result<()> {
    let screen = ctl.wait_for("oxbow login:")?;
    ensure!(screen.contains("oxbow tty1"), "the login is not that of the screen");
    ctl.enter("root")?;
    ctl.wait_for("root@oxbow:~#")?;
    ctl.enter("clear; echo \"$(tty)-{Screen}\"")?;
    ctl.wait_for("/dev/tty1-{Screen}")?;
    ctl.enter("touch /tmp/seen")
}

/// As `FIO`, with the text of the screen, which is drawn in pixels: see `screen_shows_its_text`.
const FIO_AND_SCREEN: &str = "fio --name=v --directory=/root --rw=randrw --bs=4k-64k --size=16M --fsync=64 --verify=crc32c \
                              --verify_fatal=1 --output=/tmp/fio && echo fio-\"\"well; \
                              until grep -q 'oxbow login:' /dev/vcs1; do sleep 1; done; sleep 3; \
                              set -- $(stty size </dev/tty1); echo screen-\"\"begin; fold -w $2 /dev/vcs1; echo; \
                              echo screen-\"\"end; ls -d /sys/firmware/efi; findmnt -no SOURCE /; \
                              until [ -e /tmp/seen ]; do sleep 1; done; poweroff\n";

fn debian_boots_by_uefi(lab: &Lab) -> anyhow::Result<()> {
    let copy = Copy::of(lab, system::prepare_efi())?;
    let dialogue = [("oxbow login: ", "root\n"), ("# ", FIO_AND_SCREEN)];
    let vars = copy.image.with_extension("vars");
    let _ = std::fs::remove_file(&vars);
    let boot = Boot::firmware(lab.oxbow, "q35")
        .with(&["--memory", "1G", "--disk", &copy.option])
        .with(&["--uefi", &vars.to_string_lossy()])
        .dialogue(&dialogue);
    let told = boot.told();
    let shot = copy.image.with_extension("png");
    let user = |ctl: &Ctl<'_>| {
        let text = told.wait_for("screen-end", PATIENCE)?;
        ctl.ask(&["screenshot", &shot.to_string_lossy()])?;
        screen_shows_its_text(&shot, &text)?;
        ctl.enter("root")?;
        // What is typed while login runs its programs would be read, but not by the shell in all cases.
        std::thread::sleep(Duration::from_secs(5));
        ctl.enter("tty >/tmp/seen")
    };
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        says(seen, "fio-well")?;
        says(seen, "/sys/firmware/efi")?;
        let root = if copy.option.ends_with("nvme") {
            "/dev/nvme0n1p2"
        } else {
            "/dev/sda2"
        };
        says(seen, root)
    })?;
    std::fs::remove_file(vars)?;
    std::fs::remove_file(shot)?;
    copy.check(lab.oxbow)
}

/// Whether the pixels are the text that the kernel says it shows, with the login in it.
fn screen_shows_its_text(shot: &Path, told: &str) -> anyhow::Result<()> {
    let (_, text) = told.split_once("screen-begin").context("no text of the screen")?;
    let (text, _) = text.split_once("screen-end").context("no end of the screen")?;
    let lines: Vec<&str> = text.trim_matches(['\r', '\n']).lines().collect();
    ensure!(
        lines.iter().any(|line| line.starts_with("oxbow login:")),
        "the screen has no login: {text}"
    );
    let picture = Picture::read(shot)?;
    picture.shows(&lines).with_context(|| shot.display().to_string())
}

/// Fills a file with what cannot be guessed, and gives its space back.
const TRIM: &str = "head -c 96M /dev/urandom >/root/big; sync; echo is-\"\"full; until [ -e /tmp/seen ]; do sleep 1; done; \
                    rm /root/big; sync; fstrim -v /; poweroff\n";

fn discards_shrink_the_image(lab: &Lab) -> anyhow::Result<()> {
    let copy = Copy::of(lab, system::prepare())?;
    let dialogue = [("oxbow login: ", "root\n"), ("# ", TRIM)];
    let boot = Boot::firmware(lab.oxbow, "pc")
        .with(&["--disk", &copy.option])
        .dialogue(&dialogue);
    let told = boot.told();
    let space = || Ok::<u64, anyhow::Error>(std::fs::metadata(&copy.image)?.blocks() * 512);
    let (before, mut full) = (space()?, 0);
    let user = |ctl: &Ctl<'_>| {
        told.wait_for("is-full", PATIENCE)?;
        full = space()?;
        log_in_at_the_screen(ctl)
    };
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        says(seen, "/: ")
    })?;
    let after = space()?;
    ensure!(
        full >= before + (90 << 20) && after + (90 << 20) <= full,
        "the image had {before} bytes, {full} with a file of 96 MiB, and {after} after fstrim"
    );
    copy.check(lab.oxbow)
}
