//! The guest that times disks and networks: a stock kernel and its modules, fio, iperf3 and what these need, as an initramfs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use super::super::guest;
use crate::cpio::Archive;
use crate::guests::DRIVERS;
use crate::process;
use crate::workspace;

const PACKAGES: &str = "busybox-static,fio,iperf3,linux-image-amd64";
const PROGRAMS: [&str; 2] = ["usr/bin/fio", "usr/bin/iperf3"];
const INIT: &str = include_str!("../../../bench/io.sh");

/// What it boots.
#[derive(Debug)]
pub(super) struct IoGuest {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
}

impl IoGuest {
    /// The one in the cache, built if it is not there or if what it runs has changed.
    pub(super) fn prepare() -> anyhow::Result<Self> {
        let dir = workspace::guests_dir().join("bench-io");
        let guest = Self {
            kernel: dir.join("vmlinuz"),
            initrd: dir.join("initrd.cpio"),
        };
        let recipe = format!("{PACKAGES}\n{DRIVERS:?}\n{INIT}");
        let current = std::fs::read_to_string(dir.join("recipe")).is_ok_and(|text| text == recipe);
        if current && guest.kernel.is_file() && guest.initrd.is_file() {
            return Ok(guest);
        }
        guest::check_host(&[("mmdebstrap", "the package mmdebstrap")])?;
        eprintln!("bench: building the guest in {}", dir.display());
        build(&dir, &guest).context("cannot build the guest of disks and networks")?;
        std::fs::write(dir.join("recipe"), recipe)?;
        Ok(guest)
    }
}

fn build(dir: &Path, guest: &IoGuest) -> anyhow::Result<()> {
    let (rootfs, tree) = (dir.join("rootfs"), dir.join("tree"));
    for old in [&rootfs, &tree] {
        if old.exists() {
            std::fs::remove_dir_all(old)?;
        }
    }
    std::fs::create_dir_all(dir)?;
    guest::install(&rootfs, PACKAGES)?;
    std::fs::copy(guest::kernel_of(&rootfs)?, &guest.kernel)?;
    let mut files = BTreeSet::new();
    for program in PROGRAMS {
        files.insert(program.to_owned());
        files.extend(libraries(&rootfs, program)?);
    }
    for file in &files {
        copy(&rootfs.join(file), &tree.join(file))?;
    }
    let busybox = crate::guests::find(&rootfs.join("usr/bin"), |name| name == "busybox").context("no busybox")?;
    copy(&busybox, &tree.join("bin/busybox"))?;
    for name in DRIVERS {
        let module = format!("{name}.ko");
        let found = crate::guests::find(&rootfs.join("usr/lib/modules"), |file| file == module);
        let found = found.with_context(|| format!("the kernel has no module {name}"))?;
        copy(&found, &tree.join("modules").join(&module))?;
    }
    std::fs::write(tree.join("modules/order"), DRIVERS.join("\n"))?;
    guest::write_executable(&tree.join("init"), INIT)?;
    let part = dir.join("initrd.part");
    let mut archive = Archive::new(BufWriter::new(File::create(&part)?));
    archive.directory("dev", 0o755)?;
    archive.character_device("dev/console", 0o600, (5, 1))?;
    archive.tree(&tree)?;
    archive.finish()?;
    std::fs::rename(part, &guest.initrd)?;
    std::fs::remove_dir_all(&rootfs)?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(dir) = to.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

/// The libraries that a program loads, as paths below `rootfs`.
fn libraries(rootfs: &Path, program: &str) -> anyhow::Result<Vec<String>> {
    let mut ldd = Command::new("chroot");
    ldd.arg(rootfs).arg("ldd").arg(format!("/{program}"));
    let text = process::output(&mut ldd)?;
    let path = |line: &str| {
        let word = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(word.trim_start_matches('/').to_owned())
    };
    Ok(text.lines().filter_map(path).collect())
}
