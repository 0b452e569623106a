//! The system on a disk with a GUID partition table: an EFI system partition with GRUB where removable media have their
//! boot loader, and the file system that the disk for the BIOS has too. And disks that have nothing but that partition, with a
//! kernel in it.
//!
//! Spec: UEFI §3.5.1.1 (removable media boot behaviour), §5.3 (GUID partition table).

use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use super::DISK;
use super::PARTITION;
use super::SECTOR;
use super::Unavailable;
use crate::guests::Guest;
use crate::process;

const GRUB: &str = "/usr/lib/grub/x86_64-efi";
const MIB: u64 = 1 << 20;
/// The EFI system partition begins at 1 MiB and has as many MiB.
const ESP: u64 = 64;
/// Where the file system begins, in MiB.
const ROOT: u64 = 1 + ESP;
/// Behind it is the second copy of the table.
const TAIL: u64 = 1;
/// What GRUB has to know before it can read the file system.
const MODULES: [&str; 15] = [
    "part_gpt",
    "fat",
    "ext2",
    "normal",
    "configfile",
    "search_label",
    "search",
    "search_fs_file",
    "linux",
    "serial",
    "terminal",
    "test",
    "echo",
    "all_video",
    "efi_gop",
];
const EARLY: &str = "search --no-floppy --label oxbow --set=root\nset prefix=($root)/boot/grub\n";

pub(super) fn disk(dir: &Path) -> PathBuf {
    dir.join("disk-efi.raw")
}

pub(super) fn check_host() -> Result<(), Unavailable> {
    let programs = ["grub-mkimage", "sgdisk", "mkfs.vfat", "mmd", "mcopy", "dd"];
    super::needs(&programs, &format!("{GRUB}/moddep.lst"), "grub-efi-amd64-bin")
}

/// Makes the disk out of the one for the BIOS.
pub(super) fn build(dir: &Path, bios: &Path) -> anyhow::Result<()> {
    let new = dir.join("disk-efi.new");
    let _ = std::fs::remove_file(&new);
    let root = DISK - u64::from(PARTITION) * SECTOR as u64;
    File::create(&new)?.set_len((ROOT + TAIL) * MIB + root)?;
    let esp = format!("--new=1:1M:+{ESP}M");
    let mut sgdisk = Command::new("sgdisk");
    sgdisk.args([&esp, "--typecode=1:ef00", "--new=2:0:0", "--typecode=2:8304"]);
    process::output(sgdisk.arg(&new))?;
    make_esp(dir, &new, EARLY, &[])?;
    let mut dd = Command::new("dd");
    dd.args(["bs=1M", "conv=notrunc,sparse", "skip=1"])
        .arg(format!("seek={ROOT}"))
        .arg(format!("if={}", bios.display()))
        .arg(format!("of={}", new.display()));
    process::output(&mut dd)?;
    std::fs::rename(new, disk(dir))?;
    Ok(())
}

/// Makes a disk from which UEFI firmware boots `guest`, which runs `script`; GRUB leaves no quotes and backslashes in that as they are.
/// Fails with `Unavailable` where the tools cannot be had.
pub(crate) fn kernel_disk(disk: &Path, guest: &Guest, script: &str) -> anyhow::Result<()> {
    check_host()?;
    let _ = std::fs::remove_file(disk);
    File::create(disk)?.set_len((1 + ESP + TAIL) * MIB)?;
    let mut sgdisk = Command::new("sgdisk");
    sgdisk.args([&format!("--new=1:1M:+{ESP}M"), "--typecode=1:ef00"]);
    process::output(sgdisk.arg(disk))?;
    let early = format!(
        "search --no-floppy --file --set=root /vmlinuz\nlinux /vmlinuz console=ttyS0 panic=-1 'oxbow_run={script}'\n\
         initrd /initrd\nboot\n"
    );
    let files = [
        (guest.kernel.as_path(), "::/vmlinuz"),
        (guest.initrd.as_path(), "::/initrd"),
    ];
    let dir = disk.parent().unwrap_or(Path::new("."));
    make_esp(dir, disk, &early, &files)
}

/// Makes the partition, with GRUB that begins with `early`, and other files.
fn make_esp(dir: &Path, disk: &Path, early_text: &str, files: &[(&Path, &str)]) -> anyhow::Result<()> {
    let (early, core) = (dir.join("early.cfg"), dir.join("bootx64.efi"));
    std::fs::write(&early, early_text)?;
    let mut mkimage = Command::new("grub-mkimage");
    mkimage.args(["-O", "x86_64-efi", "-p", "/boot/grub", "-c"]).arg(&early);
    process::output(mkimage.arg("-o").arg(&core).args(MODULES))?;
    let first = (MIB / SECTOR as u64).to_string();
    let mut mkfs = Command::new("mkfs.vfat");
    // With clusters of one sector there are as many as FAT32 needs.
    mkfs.args(["-F", "32", "-s", "1", "-n", "ESP", "--offset", &first]);
    process::output(mkfs.arg(disk).arg((ESP * MIB / 1024).to_string()))?;
    let volume = format!("{}@@{MIB}", disk.display());
    process::output(Command::new("mmd").args(["-i", &volume, "::/EFI", "::/EFI/BOOT"]))?;
    let mut mcopy = Command::new("mcopy");
    process::output(mcopy.args(["-i", &volume]).arg(&core).arg("::/EFI/BOOT/BOOTX64.EFI"))?;
    for (file, place) in files {
        process::output(Command::new("mcopy").args(["-i", &volume]).arg(file).arg(place))?;
    }
    std::fs::remove_file(early)?;
    std::fs::remove_file(core)?;
    Ok(())
}
