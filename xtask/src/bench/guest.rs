//! The benchmark guest: a stock kernel and a root file system of real programs, packed as an initramfs.
//!
//! It needs nothing of a machine but direct kernel boot and a serial port.

use std::fs::File;
use std::io::BufWriter;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::bail;

use crate::cpio::Archive;
use crate::guests::programs::install;
use crate::guests::programs::kernel_of;
use crate::guests::programs::write_executable;
use crate::process;
use crate::workspace;

const PACKAGES: &str =
    "busybox-static,openssl,zstd,xz-utils,sqlite3,python3-minimal,perl,gcc,libc6-dev,linux-image-cloud-amd64";

/// What the guest runs.
const BENCH_SH: &str = include_str!("../../bench/bench.sh");
const WORK_PY: &str = include_str!("../../bench/work.py");
const KERNELS_C: &str = include_str!("../../bench/kernels.c");
const INIT: &str = include_str!("../../bench/init.sh");

/// Size of the text that programs work on.
const TEXT_LEN: usize = 6_000_000;

/// A directory with `vmlinuz`, `bench.cpio` and `rootfs`.
#[derive(Debug)]
pub(super) struct BenchGuest {
    dir: PathBuf,
}

impl BenchGuest {
    /// One that exists.
    pub(super) fn at(dir: &Path) -> anyhow::Result<Self> {
        let guest = Self { dir: dir.to_owned() };
        for file in [guest.kernel(), guest.initrd()] {
            if !file.is_file() {
                bail!(
                    "{} is missing; a benchmark guest has vmlinuz, bench.cpio and rootfs",
                    file.display()
                );
            }
        }
        Ok(guest)
    }

    /// The one in the cache, built if it is not there.
    pub(super) fn prepare() -> anyhow::Result<Self> {
        let dir = workspace::guests_dir().join("bench");
        if dir.join("bench.cpio").is_file() {
            return Self::at(&dir);
        }
        check_host(&[
            ("mmdebstrap", "the package mmdebstrap"),
            ("gcc", "gcc"),
            ("openssl", "openssl"),
        ])?;
        eprintln!("bench: building the guest in {}", dir.display());
        build(&dir).context("cannot build the benchmark guest")?;
        Self::at(&dir)
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub(super) fn initrd(&self) -> PathBuf {
        self.dir.join("bench.cpio")
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }
}

/// Whether we may make device nodes and change roots.
pub(super) fn is_root() -> bool {
    process::output(Command::new("id").arg("-u")).is_ok_and(|text| text.trim() == "0")
}

/// Programs with what to say when they are missing; all guests of this kind need root.
pub(super) fn check_host(programs: &[(&str, &'static str)]) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    if !is_root() {
        missing.push("to be root");
    }
    for &(program, what) in programs {
        if process::find(program).is_none() {
            missing.push(what);
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "to build the benchmark guest one needs {}; --guest DIR takes one that exists",
        missing.join(", ")
    )
}

fn build(dir: &Path) -> anyhow::Result<()> {
    let rootfs = dir.join("rootfs");
    if rootfs.exists() {
        std::fs::remove_dir_all(&rootfs)?;
    }
    std::fs::create_dir_all(dir)?;
    install(&rootfs, PACKAGES)?;
    std::fs::copy(kernel_of(&rootfs)?, dir.join("vmlinuz"))?;
    for waste in ["boot", "usr/lib/modules", "var/cache/apt", "var/lib/apt/lists"] {
        let path = rootfs.join(waste);
        if path.exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    add_work(&rootfs.join("bench"))?;
    write_executable(&rootfs.join("init"), INIT)?;
    let part = dir.join("bench.part");
    let mut archive = Archive::new(BufWriter::new(File::create(&part)?));
    archive.tree(&rootfs)?;
    archive.finish()?;
    std::fs::rename(part, dir.join("bench.cpio"))?;
    Ok(())
}

/// The programs to time, and what they work on.
fn add_work(dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    write_executable(&dir.join("bench.sh"), BENCH_SH)?;
    std::fs::write(dir.join("work.py"), WORK_PY)?;
    let source = dir.join("kernels.c");
    std::fs::write(&source, KERNELS_C)?;
    process::run(
        Command::new("gcc")
            .args(["-O2", "-static", "-o"])
            .arg(dir.join("kernels"))
            .arg(&source),
    )?;
    std::fs::remove_file(source)?;
    let mut random = Random::new(7);
    std::fs::write(dir.join("big.c"), big_program(&mut random))?;
    write_text(&mut random, BufWriter::new(File::create(dir.join("text"))?))?;
    process::output(
        Command::new("openssl")
            .args(["genrsa", "-out"])
            .arg(dir.join("key.pem"))
            .arg("2048"),
    )?;
    Ok(())
}

/// Numbers that are the same in every guest: SplitMix64.
#[derive(Debug)]
struct Random {
    state: u64,
}

impl Random {
    fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A number of `from..to`.
    fn range(&mut self, from: u64, to: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        from + (z ^ (z >> 31)) % (to - from)
    }
}

/// A C program for a compiler to chew on.
fn big_program(random: &mut Random) -> String {
    const FUNCTIONS: u64 = 60;
    let mut text = String::new();
    for f in 0..FUNCTIONS {
        text.push_str(&format!(
            "static int f{f}(int *v, int n) {{ int s = {f}; for (int i = 0; i < n; i++) {{\n"
        ));
        text.push_str("switch ((v[i] ^ s) & 7) {\n");
        for c in 0..8 {
            let (factor, distance) = (random.range(3, 99), random.range(0, 9));
            text.push_str(&format!(
                "case {c}: s = s * {factor} + v[(i + {distance}) % n]; break;\n"
            ));
        }
        text.push_str(&format!(
            "}} if (s > 1 << 20) s %= {}; }} return s; }}\n",
            random.range(1000, 9999)
        ));
    }
    text.push_str("int all(int *v, int n) { int s = 0;\n");
    for f in 0..FUNCTIONS {
        text.push_str(&format!("s += f{f}(v, n);\n"));
    }
    text.push_str("return s; }\n");
    text
}

/// Lines of made-up words.
fn write_text(random: &mut Random, mut out: impl Write) -> std::io::Result<()> {
    let mut word = || -> String {
        let len = random.range(2, 11);
        (0..len).map(|_| char::from(b'a' + random.range(0, 26) as u8)).collect()
    };
    let words: Vec<String> = (0..4000).map(|_| word()).collect();
    let mut len = 0;
    while len < TEXT_LEN {
        let count = random.range(4, 14);
        let pick = |_| words[random.range(0, words.len() as u64) as usize].as_str();
        let line: Vec<&str> = (0..count).map(pick).collect();
        let line = line.join(" ");
        writeln!(out, "{line}")?;
        len += line.len() + 1;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_the_same_every_time() {
        let make = || {
            let mut random = Random::new(7);
            let program = big_program(&mut random);
            let mut text = Vec::new();
            write_text(&mut random, &mut text).unwrap();
            (program, text)
        };
        let (program, text) = make();
        assert_eq!((program.clone(), text.clone()), make());
        assert!(text.len() >= TEXT_LEN && text.ends_with(b"\n"));
        assert_eq!(program.matches("return s;").count(), 61);
    }

    #[test]
    fn guest_without_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = BenchGuest::at(dir.path()).unwrap_err();
        assert!(error.to_string().contains("vmlinuz is missing"), "{error}");
    }
}
