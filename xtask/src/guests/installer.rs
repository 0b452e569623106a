//! Debian's installer, of the packages that have its network-boot images: kernel and initial RAM disk, and a CD of them.
//!
//! They lie in `target/guests/installer/<architecture>-<look>`.

use std::fs::File;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use super::Guest;
use super::Unavailable;
use super::apt;
use super::apt::Apt;
use super::image;
use crate::process;
use crate::workspace;

/// What boots from the CD.
const GRUB_CFG: &str = "\
set timeout=0
insmod all_video
set gfxpayload=1280x800x32
menuentry Installer {
    linux /linux modprobe.blacklist=bochs
    initrd /initrd.gz
}
";

/// The installer for `architecture`, which looks like `text` or `gtk`.
pub(crate) fn prepare(architecture: &str, look: &str) -> anyhow::Result<Guest> {
    let dir = dir(architecture, look);
    std::fs::create_dir_all(&dir)?;
    let lock = File::create(workspace::guests_dir().join("lock"))?;
    lock.lock()?;
    let guest = Guest {
        kernel: dir.join("linux"),
        initrd: dir.join("initrd.gz"),
        vmlinux: None,
    };
    if !guest.initrd.is_file() {
        unpack(architecture, look, &guest).with_context(|| format!("installer for {architecture}"))?;
    }
    Ok(guest)
}

fn dir(architecture: &str, look: &str) -> PathBuf {
    workspace::guests_dir().join(format!("installer/{architecture}-{look}"))
}

fn unpack(architecture: &str, look: &str, guest: &Guest) -> anyhow::Result<()> {
    let package = format!("debian-installer-{}-netboot-{architecture}", apt::release());
    // They are for machines of any architecture.
    let deb = Apt::open(&super::apt_dir())?.deb(&package, "amd64")?;
    let files = dir(architecture, look).join("files");
    let _ = std::fs::remove_dir_all(&files);
    let inside = |name: &str| format!("*/{look}/debian-installer/{architecture}/{name}");
    apt::unpack(&deb, &files, &[&inside("linux"), &inside("initrd.gz")])?;
    for (name, place) in [("linux", &guest.kernel), ("initrd.gz", &guest.initrd)] {
        let file = image::find(&files, |found| found == name);
        std::fs::rename(file.with_context(|| format!("the package has no {name}"))?, place)?;
    }
    std::fs::remove_dir_all(&files)?;
    Ok(())
}

/// A CD that boots an installer by BIOS and GRUB, on a framebuffer of the VGA BIOS. It is made anew each time.
pub(crate) fn cd(guest: &Guest, cd: &Path) -> anyhow::Result<()> {
    for program in ["grub-mkrescue", "xorriso", "mformat"] {
        if process::find(program).is_none() {
            return Err(Unavailable(format!("to make a CD one needs {program}")).into());
        }
    }
    let tree = cd.with_extension("tree");
    let _ = std::fs::remove_dir_all(&tree);
    std::fs::create_dir_all(tree.join("boot/grub"))?;
    std::fs::write(tree.join("boot/grub/grub.cfg"), GRUB_CFG)?;
    std::fs::hard_link(&guest.kernel, tree.join("linux"))?;
    std::fs::hard_link(&guest.initrd, tree.join("initrd.gz"))?;
    let mut mkrescue = Command::new("grub-mkrescue");
    mkrescue.args(["-d", "/usr/lib/grub/i386-pc", "-o"]).args([cd, &tree]);
    process::output(&mut mkrescue)?;
    std::fs::remove_dir_all(&tree)?;
    Ok(())
}
