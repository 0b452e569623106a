//! Guests with programs of Debian's: a stock kernel and modules of it, the programs and the libraries that they load, as an
//! initramfs with busybox and a script as its first process.
//!
//! mmdebstrap makes the tree that they are taken from, as an ordinary user where user namespaces or fakechroot allow it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::bail;

use super::Guest;
use super::apt;
use super::apt::Unavailable;
use super::image;
use crate::cpio::Archive;
use crate::process;
use crate::workspace;

/// Where programs of a tree find what they load, and who loads it.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/ceph"];
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
/// Where programs say that it is.
const LOADER_PLACE: &str = "lib64/ld-linux-x86-64.so.2";

/// Such a guest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Programs {
    /// Its directory in the cache.
    pub(crate) name: &'static str,
    /// The packages, with a kernel and `busybox-static`, between commas.
    pub(crate) packages: &'static str,
    /// Programs, as paths in the tree.
    pub(crate) programs: &'static [&'static str],
    /// Modules, which `/modules/order` lists in this order.
    pub(crate) modules: &'static [&'static str],
    /// The first process: a script of busybox's shell.
    pub(crate) init: &'static str,
}

impl Programs {
    /// The guest, built if it is not there or not what it should be. Fails with [`Unavailable`] where it cannot be built.
    pub(crate) fn prepare(&self) -> anyhow::Result<Guest> {
        let dir = workspace::guests_dir().join(self.name);
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        // Two of us at the same time would build into each other's files.
        let lock = File::create(dir.join("lock"))?;
        lock.lock()?;
        let guest = Guest::at(&dir);
        let recipe = format!("{self:?}\nlayout 3\n");
        let current = std::fs::read_to_string(dir.join("recipe")).is_ok_and(|text| text == recipe);
        if !(current && guest.kernel.is_file() && guest.initrd.is_file()) {
            check_host()?;
            eprintln!("guests: building {}, which takes a minute", dir.display());
            self.build(&dir, &guest)
                .with_context(|| format!("guest {}", self.name))?;
            std::fs::write(dir.join("recipe"), recipe)?;
        }
        Ok(guest)
    }

    fn build(&self, dir: &Path, guest: &Guest) -> anyhow::Result<()> {
        let (rootfs, tree) = (dir.join("rootfs"), dir.join("tree"));
        for old in [&rootfs, &tree] {
            if old.exists() {
                std::fs::remove_dir_all(old)?;
            }
        }
        let tar = dir.join("rootfs.tar");
        install(&tar, self.packages)?;
        unpack(&tar, &rootfs)?;
        std::fs::remove_file(&tar)?;
        std::fs::copy(kernel_of(&rootfs)?, &guest.kernel)?;
        let mut files = BTreeSet::new();
        for program in self.programs {
            files.insert((*program).to_owned());
            files.extend(libraries(&rootfs, program)?);
        }
        for file in &files {
            copy(&rootfs.join(file), &tree.join(file))?;
        }
        copy(&rootfs.join(LOADER), &tree.join(LOADER_PLACE))?;
        let busybox = image::find(&rootfs.join("usr/bin"), |name| name == "busybox").context("no busybox")?;
        copy(&busybox, &tree.join("bin/busybox"))?;
        for name in self.modules {
            let module = format!("{name}.ko");
            let found = image::find(&rootfs.join("usr/lib/modules"), |file| file == module);
            let found = found.with_context(|| format!("the kernel has no module {name}"))?;
            copy(&found, &tree.join("modules").join(&module))?;
        }
        std::fs::write(tree.join("modules/order"), self.modules.join("\n"))?;
        write_executable(&tree.join("init"), self.init)?;
        let part = dir.join("initrd.part");
        let mut archive = Archive::new(BufWriter::new(File::create(&part)?));
        archive.directory("dev", 0o755)?;
        archive.character_device("dev/console", 0o600, (5, 1))?;
        archive.tree(&tree)?;
        archive.finish()?;
        std::fs::rename(part, &guest.initrd)?;
        for dir in [rootfs, tree] {
            std::fs::remove_dir_all(dir)?;
        }
        Ok(())
    }
}

fn check_host() -> Result<(), Unavailable> {
    let absent = |program: &&str| process::find(program).is_none();
    let missing: Vec<&str> = ["mmdebstrap", "tar"].into_iter().filter(absent).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Unavailable(format!(
        "guests with Debian's programs are made by {}, which is not installed",
        missing.join(" and ")
    )))
}

fn unpack(tar: &Path, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let mut command = Command::new("tar");
    command.arg("-xf").arg(tar).arg("-C").arg(dir);
    // Ordinary users make no devices, and need none of them.
    process::output(command.args(["--no-same-owner", "--exclude=./dev/*"])).map(drop)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// The libraries that a program loads, as paths below `rootfs`: what its own loader finds there.
fn libraries(rootfs: &Path, program: &str) -> anyhow::Result<Vec<String>> {
    let places: Vec<String> = LIBRARIES
        .iter()
        .map(|place| rootfs.join(place).display().to_string())
        .collect();
    let mut loader = Command::new(rootfs.join(LOADER));
    loader.arg("--library-path").arg(places.join(":")).arg("--list");
    let text = process::output(loader.arg(rootfs.join(program)))?;
    let mut found = Vec::new();
    for line in text.lines() {
        let Some((name, place)) = line.trim().split_once(" => ") else {
            // The kernel's own.
            continue;
        };
        let place = Path::new(place.split_whitespace().next().unwrap_or(place));
        match place.strip_prefix(rootfs) {
            Ok(below) => found.push(below.display().to_string()),
            Err(_) if name.ends_with(LOADER_PLACE) => {}
            Err(_) => bail!("{program} loads {name}, which its packages do not have"),
        }
    }
    Ok(found)
}

/// The kernel that was installed in `rootfs`.
pub(crate) fn kernel_of(rootfs: &Path) -> anyhow::Result<PathBuf> {
    image::find(&rootfs.join("boot"), |name| name.starts_with("vmlinuz-")).context("no kernel was installed")
}

/// Makes a root file system of Debian with `packages`, in a directory, or in an archive if its name ends with `.tar`.
pub(crate) fn install(rootfs: &Path, packages: &str) -> anyhow::Result<()> {
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--variant=minbase"])
        .arg(format!("--include={packages}"))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(["doc", "man", "locale"].map(|kind| format!("--dpkgopt=path-exclude=/usr/share/{kind}/*")))
        .arg(apt::suite())
        .arg(rootfs)
        .arg(apt::source_line());
    process::run(&mut mmdebstrap)
}

/// Writes a script.
pub(crate) fn write_executable(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}
