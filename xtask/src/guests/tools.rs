//! Programs for tests of networks, in an archive that is put behind a guest's own: an SSH server, and `flows`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use super::Guest;
use super::apt;
use super::apt::Apt;
use super::apt_dir;
use crate::cpio::Archive;
use crate::process;
use crate::workspace;

const FLOWS: &str = include_str!("../../guest/flows.rs");
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Packages, and what is taken of them.
#[rustfmt::skip]
const PACKAGES: [(&str, &[&str]); 7] = [
    ("dropbear-bin",  &["./usr/sbin/dropbear"]),
    ("libtomcrypt1",  &["./usr/lib/x86_64-linux-gnu/*.so.*"]),
    ("libtommath1",   &["./usr/lib/x86_64-linux-gnu/*.so.*"]),
    ("libgmp10",      &["./usr/lib/x86_64-linux-gnu/*.so.*"]),
    ("libcrypt1",     &["./lib/x86_64-linux-gnu/*.so.*"]),
    ("zlib1g",        &["./lib/x86_64-linux-gnu/*.so.*"]),
    ("libc6",         &["./lib64/*", "./lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "./lib/x86_64-linux-gnu/libc.so.6"]),
];

/// The archive, made once. Fails with `Unavailable` where packages cannot be had.
fn archive() -> anyhow::Result<PathBuf> {
    let dir = workspace::guests_dir().join("network-tools");
    std::fs::create_dir_all(&dir)?;
    // Two of us at the same time would fetch into each other's files.
    let lock = File::create(dir.join("lock"))?;
    lock.lock()?;
    let (path, recipe) = (dir.join("tools.cpio"), dir.join("recipe"));
    let text = format!("{PACKAGES:?}\n{FLOWS}");
    if path.is_file() && std::fs::read_to_string(&recipe).is_ok_and(|old| old == text) {
        return Ok(path);
    }
    let root = dir.join("root");
    let _ = std::fs::remove_dir_all(&root);
    let mut apt = Apt::open(&apt_dir())?;
    for (package, patterns) in PACKAGES {
        apt::unpack(&apt.deb(package, "amd64")?, &root, patterns)?;
    }
    let source = dir.join("flows.rs");
    std::fs::write(&source, FLOWS)?;
    std::fs::create_dir_all(root.join("usr/bin"))?;
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args([
        "--edition",
        "2024",
        "-O",
        "-C",
        "target-feature=+crt-static",
        "--target",
        TARGET,
    ]);
    process::output(rustc.arg(&source).arg("-o").arg(root.join("usr/bin/flows")))?;
    std::fs::create_dir_all(root.join("etc/dropbear"))?;
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    let mut out = Archive::new(std::io::BufWriter::new(File::create(&path)?));
    out.tree(&root)?;
    out.finish()?;
    std::fs::write(&recipe, text)?;
    Ok(path)
}

/// A guest that has these programs and a script, `/test.sh`; its archive is written to `initrd`.
pub(crate) fn with_script(guest: &Guest, script: &str, initrd: &Path) -> anyhow::Result<Guest> {
    let tools = archive()?;
    let mut out = Vec::new();
    for part in [&guest.initrd, &tools] {
        out.extend(std::fs::read(part).with_context(|| format!("cannot read {}", part.display()))?);
        // Archives begin at multiples of four; zeros between them are passed over.
        out.resize(out.len().next_multiple_of(512), 0);
    }
    let mut own = Archive::new(&mut out);
    own.file("test.sh", 0o755, script.as_bytes())?;
    own.finish()?;
    File::create(initrd)?.write_all(&out)?;
    Ok(Guest {
        initrd: initrd.to_owned(),
        ..guest.clone()
    })
}
