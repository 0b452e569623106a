//! Guests: stock kernels of Debian, each with an initramfs of busybox and one script.
//!
//! They lie in `target/guests/<name>`, built once; packages are kept and nothing is fetched twice.

mod apt;
pub(crate) mod crates;
mod image;
pub(crate) mod installer;
pub(crate) mod programs;
pub(crate) mod system;
pub(crate) mod tools;

use std::fs::File;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;

pub(crate) use apt::Unavailable;

use crate::arguments::Arguments;
use crate::arguments::Usage;
use crate::cpio::Archive;
use crate::workspace;
use apt::Apt;

/// The first process of all of them.
const INIT: &str = include_str!("../guest/init.sh");

/// Recipe of a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe {
    pub(crate) name: &'static str,
    what: &'static str,
    architecture: &'static str,
    kernel: &'static str,
    /// Modules that the initramfs has in `/lib/modules`.
    modules: &'static [&'static str],
    /// Packages, and which of their files it has (a pattern of tar's).
    packages: &'static [(&'static str, &'static str)],
}

/// For tests: of the kernel itself, of buttons, of SATA and IDE drives, of network cards, of shared folders. They come in the order in which they can be loaded.
#[rustfmt::skip]
const FULL_MODULES: &[&str] = &[
    "test_bpf", "button", "evdev",
    "scsi_common", "scsi_mod", "crct10dif_common", "crc-t10dif", "crc64", "crc64-rocksoft", "t10-pi", "sd_mod",
    "cdrom", "sr_mod", "libata", "libahci", "ahci", "ata_piix",
    "e1000", "mii", "pcnet32",
    "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio",
    "fuse", "virtiofs", "netfs", "fscache", "9pnet", "9pnet_virtio", "9p",
];

/// For tests of virtio devices, in the order in which they can be loaded.
#[rustfmt::skip]
pub(crate) const VIRTIO_MODULES: &[&str] = &[
    "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio",
    "virtio_blk", "virtio-rng", "virtio_console", "virtio_balloon", "failover", "net_failover", "virtio_net",
];

/// For disks and network cards of every kind that a guest may be timed with, in the order in which they can be loaded.
#[rustfmt::skip]
pub(crate) const DRIVERS: &[&str] = &[
    "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio",
    "virtio_blk", "failover", "net_failover", "virtio_net", "e1000",
    "scsi_common", "scsi_mod", "crct10dif_common", "crc-t10dif", "crc64", "crc64-rocksoft", "t10-pi", "sd_mod",
    "libata", "libahci", "ahci", "ata_piix", "nvme-core", "nvme",
];

/// For tests of sockets, SCSI and input devices of virtio, behind those of all virtio devices.
#[rustfmt::skip]
const TOOLS_MODULES: &[&str] = &[
    "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_mmio",
    "vsock", "vmw_vsock_virtio_transport_common", "vmw_vsock_virtio_transport",
    "scsi_common", "scsi_mod", "sd_mod", "cdrom", "sr_mod", "virtio_scsi", "evdev", "virtio_input",
];

/// `socat`, and programs for SCSI devices, with their libraries.
#[rustfmt::skip]
const TOOLS_PACKAGES: &[(&str, &str)] = &[
    ("socat", "./usr/bin/socat"), ("sdparm", "./usr/bin/sdparm"), ("libsgutils2-1.46-2", LIBRARIES),
    ("sg3-utils", "./usr/bin/sg_persist"), ("sg3-utils", "./usr/bin/sg_raw"),
    ("libc6", LIBRARIES), ("libssl3", LIBRARIES), ("libwrap0", LIBRARIES), ("libnsl2", LIBRARIES), ("libtirpc3", LIBRARIES),
    ("libgssapi-krb5-2", LIBRARIES), ("libkrb5-3", LIBRARIES), ("libk5crypto3", LIBRARIES), ("libkrb5support0", LIBRARIES),
    ("libcom-err2", LIBRARIES), ("libkeyutils1", LIBRARIES),
];
const LIBRARIES: &str = "*.so.*";

/// All guests.
pub(crate) const RECIPES: &[Recipe] = &[
    Recipe {
        name: "demo",
        what: "the kernel for clouds, amd64",
        architecture: "amd64",
        kernel: "linux-image-cloud-amd64",
        modules: VIRTIO_MODULES,
        packages: &[],
    },
    Recipe {
        name: "full",
        what: "the kernel for everything, amd64",
        architecture: "amd64",
        kernel: "linux-image-amd64",
        modules: FULL_MODULES,
        packages: &[],
    },
    Recipe {
        name: "i386",
        what: "the kernel for 32-bit processors with PAE",
        architecture: "i386",
        kernel: "linux-image-686-pae",
        modules: &["test_bpf"],
        packages: &[],
    },
    Recipe {
        name: "tools",
        what: "the kernel for clouds, with programs beside busybox",
        architecture: "amd64",
        kernel: "linux-image-cloud-amd64",
        modules: TOOLS_MODULES,
        packages: TOOLS_PACKAGES,
    },
];

/// A guest that is ready to boot.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
    /// The kernel without its boot wrapper; only where a tool to decompress it is installed.
    pub(crate) vmlinux: Option<PathBuf>,
}

impl Guest {
    fn at(dir: &Path) -> Self {
        Self {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd.cpio"),
            vmlinux: Some(dir.join("vmlinux")).filter(|file| file.is_file()),
        }
    }
}

/// `cargo xtask guests`.
pub(crate) fn main(mut arguments: Arguments) -> anyhow::Result<()> {
    let (update, list) = (arguments.flag("--update"), arguments.flag("--list"));
    let mut names = arguments.rest()?;
    let system = names.iter().position(|name| name == "system");
    let system = system.map(|at| names.remove(at)).is_some();
    if system && !list {
        println!("system {}", system::prepare()?.display());
        if names.is_empty() {
            return Ok(());
        }
    }
    let wanted = |recipe: &&Recipe| names.is_empty() || names.iter().any(|name| name == recipe.name);
    if let Some(name) = names
        .iter()
        .find(|name| RECIPES.iter().all(|recipe| recipe.name != name.as_str()))
    {
        return Err(Usage(format!("there is no guest {name}")).into());
    }
    if list {
        for recipe in RECIPES {
            let state = if is_current(recipe) { "ready" } else { "not fetched" };
            println!(
                "{:6} {:11} {} ({})",
                recipe.name,
                state,
                dir(recipe).display(),
                recipe.what
            );
        }
        let dir = workspace::guests_dir().join("system");
        let state = if system::is_current(&dir) { "ready" } else { "not made" };
        println!("{:6} {state:11} {} (Debian on a disk)", "system", dir.display());
        return Ok(());
    }
    if update {
        Apt::open(&apt_dir())?.forget()?;
        for recipe in RECIPES.iter().filter(wanted) {
            let _ = std::fs::remove_file(dir(recipe).join("recipe"));
        }
    }
    for recipe in RECIPES.iter().filter(wanted) {
        let guest = prepare(recipe.name)?;
        println!(
            "{:6} {}",
            recipe.name,
            guest.kernel.parent().unwrap_or(&guest.kernel).display()
        );
    }
    Ok(())
}

/// The guest of this name, fetched and built if need be. Fails with `Unavailable` where packages cannot be had.
pub(crate) fn prepare(name: &str) -> anyhow::Result<Guest> {
    let recipe = RECIPES
        .iter()
        .find(|recipe| recipe.name == name)
        .context("there is no such guest")?;
    let cache = workspace::guests_dir();
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
    // Two of us at the same time would fetch into each other's files.
    let lock = File::create(cache.join("lock"))?;
    lock.lock()?;
    if !is_current(recipe) {
        build(recipe).with_context(|| format!("guest {name}"))?;
    }
    Ok(Guest::at(&dir(recipe)))
}

fn dir(recipe: &Recipe) -> PathBuf {
    workspace::guests_dir().join(recipe.name)
}

fn apt_dir() -> PathBuf {
    workspace::guests_dir().join("apt")
}

/// All that a guest is made of; it is built anew when this changes.
fn recipe_text(recipe: &Recipe) -> String {
    format!("{recipe:?}\nlayout 2\n{INIT}")
}

fn is_current(recipe: &Recipe) -> bool {
    let dir = dir(recipe);
    let same = std::fs::read_to_string(dir.join("recipe")).is_ok_and(|text| text == recipe_text(recipe));
    same && dir.join("vmlinuz").is_file() && dir.join("initrd.cpio").is_file()
}

fn build(recipe: &Recipe) -> anyhow::Result<()> {
    let mut apt = Apt::open(&apt_dir())?;
    let kernel = apt.deb(recipe.kernel, recipe.architecture)?;
    let busybox = apt.deb("busybox-static", recipe.architecture)?;

    let new = dir(recipe).with_extension("new");
    let _ = std::fs::remove_dir_all(&new);
    let files = new.join("files");
    apt::unpack(&busybox, &files, &["*bin/busybox"])?;
    let modules: Vec<String> = recipe.modules.iter().map(|name| format!("*/{name}.ko*")).collect();
    let mut patterns = vec!["./boot/vmlinuz-*"];
    patterns.extend(modules.iter().map(String::as_str));
    apt::unpack(&kernel, &files, &patterns)?;

    let vmlinuz = image::find(&files, |name| name.starts_with("vmlinuz-")).context("the package has no kernel")?;
    std::fs::rename(vmlinuz, new.join("vmlinuz"))?;
    image::extract_vmlinux(&new.join("vmlinuz"), &new.join("vmlinux"))?;
    let programs = new.join("programs");
    std::fs::create_dir_all(&programs)?;
    for (name, pattern) in recipe.packages {
        apt::unpack(&apt.deb(name, recipe.architecture)?, &programs, &[pattern])?;
    }
    write_initramfs(recipe, [&files, &programs], &new.join("initrd.cpio"))?;
    for dir in [files, programs] {
        std::fs::remove_dir_all(dir)?;
    }
    std::fs::write(new.join("recipe"), recipe_text(recipe))?;

    let dir = dir(recipe);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::rename(&new, &dir)?;
    Ok(())
}

fn write_initramfs(recipe: &Recipe, [files, programs]: [&Path; 2], out: &Path) -> anyhow::Result<()> {
    let busybox = image::find(files, |name| name == "busybox").context("the package has no busybox")?;
    let mut archive = Archive::new(std::io::BufWriter::new(File::create(out)?));
    for name in ["bin", "dev", "proc", "sys", "tmp", "root", "lib", "lib/modules"] {
        archive.directory(name, 0o755)?;
    }
    // The kernel opens it for the first process before anything is mounted.
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.file("bin/busybox", 0o755, &std::fs::read(busybox)?)?;
    archive.file("init", 0o755, INIT.as_bytes())?;
    for name in recipe.modules {
        let prefix = format!("{name}.ko");
        let packed = image::find(files, |file| file.starts_with(&prefix));
        let packed = packed.with_context(|| format!("the package has no module {name}"))?;
        archive.file(&format!("lib/modules/{prefix}"), 0o644, &image::decompressed(&packed)?)?;
    }
    archive.tree(programs)?;
    archive.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn init_is_a_script_that_marks_its_progress() {
        assert!(INIT.starts_with("#!/bin/busybox sh\n"));
        for mark in ["@@init", "@@begin", "@@end"] {
            assert!(INIT.contains(mark), "{mark}");
        }
    }

    #[test]
    fn names_are_unique() {
        let mut names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), RECIPES.len());
    }
}
