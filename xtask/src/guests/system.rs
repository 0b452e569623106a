//! A whole system on a disk: Debian with systemd, its own kernel, and GRUB, as users install it: in the boot sector, or on
//! an EFI system partition.
//!
//! mmdebstrap makes the tree, as an ordinary user where user namespaces or fakechroot allow it; mke2fs makes the file
//! system out of it, grub-mkimage GRUB's core, which goes between boot sector and partition. Nothing is mounted.
//!
//! On the console root logs in without a password.

pub(crate) mod efi;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::ensure;

use super::apt;
use super::apt::Unavailable;
use crate::process;
use crate::workspace;

/// What is in it besides the essential packages.
const PACKAGES: &str = "systemd-sysv,udev,dbus,linux-image-amd64,initramfs-tools,zstd,kmod,e2fsprogs,util-linux,procps,login,\
                        passwd,fio,smartmontools,hdparm,nvme-cli,grub-pc-bin";
/// What is done with it.
const SCRIPT: &str = include_str!("../../guest/system.sh");
const DISK: u64 = 1400 << 20;
const SECTOR: usize = 512;
/// First sector of the partition.
const PARTITION: u32 = 2048;
const GRUB: &str = "/usr/lib/grub/i386-pc";

/// The raw image, made if need be. Fails with `Unavailable` where the tools or packages cannot be had.
pub(crate) fn prepare() -> anyhow::Result<PathBuf> {
    let dir = workspace::guests_dir().join("system");
    std::fs::create_dir_all(&dir)?;
    let lock = File::create(dir.join("lock"))?;
    lock.lock()?;
    let (disk, recipe) = (dir.join("disk.raw"), dir.join("recipe"));
    if !is_current(&dir) {
        check_host()?;
        eprintln!("guests: making a Debian system on a disk, which takes minutes");
        let _ = std::fs::remove_file(efi::disk(&dir));
        build(&dir).context("guest system")?;
        std::fs::write(recipe, recipe_text())?;
    }
    Ok(disk)
}

/// The same system on a disk that UEFI firmware boots.
pub(crate) fn prepare_efi() -> anyhow::Result<PathBuf> {
    let bios = prepare()?;
    let dir = workspace::guests_dir().join("system");
    let lock = File::create(dir.join("lock"))?;
    lock.lock()?;
    let disk = efi::disk(&dir);
    if !disk.is_file() {
        efi::check_host()?;
        efi::build(&dir, &bios).context("guest system for UEFI")?;
    }
    Ok(disk)
}

fn recipe_text() -> String {
    format!("{PACKAGES}\n{DISK}\nlayout 2\n{SCRIPT}")
}

/// Whether the image is there and made as it would be now.
pub(super) fn is_current(dir: &Path) -> bool {
    let same = std::fs::read_to_string(dir.join("recipe")).is_ok_and(|text| text == recipe_text());
    same && dir.join("disk.raw").is_file()
}

fn is_root() -> bool {
    process::output(Command::new("id").arg("-u")).is_ok_and(|text| text.trim() == "0")
}

fn check_host() -> Result<(), Unavailable> {
    let mut programs = vec!["mmdebstrap", "mke2fs", "grub-mkimage", "tar"];
    if !is_root() {
        programs.push("fakeroot");
    }
    needs(&programs, &format!("{GRUB}/boot.img"), "grub-pc-bin")
}

/// Whether programs and a package of GRUB, known by one of its files, are installed.
fn needs(programs: &[&'static str], file: &str, package: &'static str) -> Result<(), Unavailable> {
    let absent = |program: &&&str| process::find(program).is_none();
    let mut missing: Vec<&str> = programs.iter().filter(absent).copied().collect();
    if !Path::new(file).is_file() {
        missing.push(package);
    }
    if missing.is_empty() {
        return Ok(());
    }
    Err(Unavailable(format!(
        "to make a system on a disk one needs {}",
        missing.join(", ")
    )))
}

fn build(dir: &Path) -> anyhow::Result<()> {
    let (tar, new) = (dir.join("root.tar"), dir.join("disk.new"));
    install(dir, &tar)?;
    let _ = std::fs::remove_file(&new);
    File::create(&new)?.set_len(DISK)?;
    make_file_system(dir, &tar, &new)?;
    install_grub(dir, &new)?;
    std::fs::remove_file(tar)?;
    std::fs::rename(new, dir.join("disk.raw"))?;
    Ok(())
}

/// Lets mmdebstrap make the tree.
fn install(dir: &Path, tar: &Path) -> anyhow::Result<()> {
    let script = dir.join("system.sh");
    std::fs::write(&script, SCRIPT)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--variant=minbase", "--format=tar", "--skip=output/dev"])
        .arg(format!("--include={PACKAGES}"))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(["doc", "man", "locale"].map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")))
        .arg(format!("--customize-hook='{}' \"$1\"", script.display()))
        .arg(apt::suite())
        .arg(tar)
        .arg(apt::source_line());
    let done = process::output(&mut mmdebstrap);
    done.map_err(|error| Unavailable(format!("mmdebstrap cannot make a system: {error:#}")))?;
    Ok(())
}

/// Makes the partition's file system, with the tree in it and with its owners.
fn make_file_system(dir: &Path, tar: &Path, disk: &Path) -> anyhow::Result<()> {
    let script = "set -e; rm -rf \"$0\"; mkdir \"$0\"; tar -x -f \"$1\" -C \"$0\" --numeric-owner; mkdir -p \"$0/dev\"; \
                  mke2fs -q -t ext4 -L oxbow -d \"$0\" -E offset=$3,root_owner=0:0,lazy_itable_init=1 \"$2\" $4; \
                  rm -rf \"$0\"";
    let start = u64::from(PARTITION) * SECTOR as u64;
    let mut command = Command::new(if is_root() { "sh" } else { "fakeroot" });
    if !is_root() {
        command.arg("sh");
    }
    command
        .args(["-c", script])
        .args([&dir.join("root"), tar, disk])
        .arg(start.to_string())
        .arg(format!("{}k", (DISK - start) / 1024));
    process::output(&mut command)?;
    Ok(())
}

/// Writes the boot sector with its table of partitions, and GRUB's core behind it.
fn install_grub(dir: &Path, disk: &Path) -> anyhow::Result<()> {
    let core = dir.join("core.img");
    let modules = ["biosdisk", "part_msdos", "ext2", "normal", "search_label"];
    let mut mkimage = Command::new("grub-mkimage");
    mkimage.args(["-O", "i386-pc", "-p", "(,msdos1)/boot/grub", "-o"]);
    process::output(mkimage.arg(&core).args(modules))?;
    let boot = std::fs::read(format!("{GRUB}/boot.img"))?;
    let image = boot_area(&boot, &std::fs::read(&core)?)?;
    File::options().write(true).open(disk)?.write_all_at(&image, 0)?;
    std::fs::remove_file(core)?;
    Ok(())
}

/// The sectors before the partition, of boot.img and core.img as GRUB's packages bring them.
fn boot_area(boot: &[u8], core: &[u8]) -> anyhow::Result<Vec<u8>> {
    /// In boot.img: the first sector of the core; a jump that tests the drive's number; code ends where the disk's name is.
    const CORE_AT: usize = 0x5C;
    const DRIVE_CHECK: usize = 0x66;
    const CODE: usize = 440;
    /// In the core's first sector: where the rest is, how many sectors that has, and where it goes.
    const REST: usize = 500;
    let mut core = core.to_vec();
    core.resize(core.len().next_multiple_of(SECTOR), 0);
    let sectors = core.len() / SECTOR;
    ensure!(
        boot.len() == SECTOR && core.len() > SECTOR,
        "images of GRUB of a strange size"
    );
    ensure!(sectors < PARTITION as usize, "GRUB does not fit before the partition");
    core[REST..REST + 8].copy_from_slice(&2u64.to_le_bytes());
    core[REST + 8..REST + 10].copy_from_slice(&((sectors - 1) as u16).to_le_bytes());
    core[REST + 10..REST + 12].copy_from_slice(&0x820u16.to_le_bytes());
    let mut sector = [0; SECTOR];
    sector[..CODE].copy_from_slice(&boot[..CODE]);
    sector[CORE_AT..CORE_AT + 8].copy_from_slice(&1u64.to_le_bytes());
    // The BIOS's drive number is right: no operation twice.
    sector[DRIVE_CHECK..DRIVE_CHECK + 2].fill(0x90);
    sector[CODE..CODE + 4].copy_from_slice(b"OXBW");
    let count = (DISK / SECTOR as u64) as u32 - PARTITION;
    // Active, type 83h; its cylinders are beyond what can be written there.
    sector[446..454].copy_from_slice(&[0x80, 0x20, 0x21, 0, 0x83, 0xFE, 0xFF, 0xFF]);
    sector[454..458].copy_from_slice(&PARTITION.to_le_bytes());
    sector[458..462].copy_from_slice(&count.to_le_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xAA]);
    Ok([sector.as_slice(), &core].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_area_leads_from_the_boot_sector_to_all_of_the_core() {
        let area = boot_area(&[1; 512], &[2; 1000]).unwrap();
        assert_eq!(area.len(), 3 * 512);
        assert_eq!((area[0x5C], area[0x5B], area[0x64]), (1, 1, 1));
        assert_eq!(area[510..512], [0x55, 0xAA]);
        assert_eq!(area[512 + 500..1024], [2, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x20, 8]);
        assert!(boot_area(&[1; 512], &[2; 2 << 20]).is_err());
    }
}
