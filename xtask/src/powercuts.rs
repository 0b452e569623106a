//! Power cuts: machines that are killed while their guest writes to a disk.
//!
//! The guest is `guests/powercut.S`, or Linux with `fio`: it tells what it has flushed. After each kill the image has to pass the checks of
//! `oxbow disk check`, and of `qemu-img` where that is installed, which may find space that is lost. It has to hold every
//! write that was flushed: each sector is what the last flushed write to it has made of it, or a later write.

mod linux;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

use crate::arguments::Arguments;
use crate::arguments::Usage;
use crate::process;
use crate::workspace;

/// Formats, and what qemu-img calls them.
const FORMATS: [(&str, &str); 3] = [("vdi", "vdi"), ("vmdk", "vmdk"), ("qcow2", "qcow2")];
const SIZE: &str = "64M";
const SECTOR: usize = 512;
/// Exit statuses of `oxbow disk check` and `qemu-img check` for images that only have lost space.
const LOST: i32 = 4;
const QEMU_LOST: i32 = 3;
/// The guest may be ahead of what it was heard to say by so many writes.
const UNTOLD: u32 = 512;
/// Seconds after which a machine that was not killed ends by itself.
const LIMIT: &str = "120";

/// `cargo xtask powercuts`.
pub(crate) fn main(mut arguments: Arguments) -> anyhow::Result<()> {
    let count = arguments.parsed("-n")?.unwrap_or(200);
    let guest = arguments.value("--guest")?;
    arguments.end()?;
    match guest.as_deref() {
        None | Some("bare") => run(&workspace::build_oxbow()?, count, true),
        Some("linux") => {
            let oxbow = workspace::build_oxbow()?;
            linux::run(&oxbow, &empty_dir()?, count, &mut Dice::new())
        }
        Some(other) => Err(Usage(format!("--guest cannot be {other}: there are bare and linux")).into()),
    }
}

fn empty_dir() -> anyhow::Result<PathBuf> {
    let dir = workspace::guests_dir().join("powercuts");
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Cuts the power `count` times, of each format in turn.
pub(crate) fn run(oxbow: &Path, count: u32, told: bool) -> anyhow::Result<()> {
    let dir = empty_dir()?;
    let guest = build_guest(&dir)?;
    let mut dice = Dice::new();
    for (number, (format, qemu)) in (0..count).zip(FORMATS.iter().cycle()) {
        let image = dir.join(format!("disk.{format}"));
        let cut = Cut::make(oxbow, &guest, &image, format, &mut dice)?;
        let judged = cut.check(oxbow, &image, qemu);
        let (held, newer) = judged.with_context(|| format!("cut {number}, {format}; see {}", image.display()))?;
        if told {
            println!(
                "{number:3} {format:5} {:4} writes flushed, {held} sectors hold them, {newer} are newer",
                cut.flushed
            );
        }
        std::fs::remove_file(&image)?;
    }
    Ok(())
}

/// Assembles and links the guest: a 32-bit ELF file.
fn build_guest(dir: &Path) -> anyhow::Result<PathBuf> {
    let source = workspace::root().join("guests/powercut.S");
    let (linked, guest) = (dir.join("powercut.elf64"), dir.join("powercut.elf"));
    let options = [
        "-m64",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,-N",
        "-Wl,-Ttext=0x100000",
    ];
    let quiet = ["-Wl,--build-id=none", "-Wl,--no-warn-rwx-segments", "-o"];
    let mut cc = Command::new("cc");
    process::output(cc.args(options).args(quiet).args([&linked, &source]))?;
    let mut objcopy = Command::new("objcopy");
    process::output(objcopy.args(["-O", "elf32-i386"]).args([&linked, &guest]))?;
    Ok(guest)
}

/// Where to cut: any numbers do.
struct Dice(u32);

impl Dice {
    fn new() -> Self {
        Self(u32::from_ne_bytes(*b"cuts") ^ std::process::id())
    }

    fn throw(&mut self, below: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % below
    }
}

/// What a guest had told before its machine was killed.
#[derive(Debug)]
struct Cut {
    seed: u32,
    /// The last write that was flushed.
    flushed: u32,
}

impl Cut {
    /// Makes an image, lets the guest write to it, and kills the machine.
    fn make(oxbow: &Path, guest: &Path, image: &Path, format: &str, dice: &mut Dice) -> anyhow::Result<Self> {
        create(oxbow, image, format)?;
        let mut machine = Command::new(oxbow);
        machine
            .args(["run", "--machine", "pc", "--memory", "16M", "--debug-exit", "0xf4"])
            .args(["--timeout", LIMIT, "--kernel"])
            .arg(guest)
            .arg("--disk")
            .arg(format!("{},format={format}", image.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut machine = machine.spawn().context("cannot run oxbow")?;
        let cut = Self::watch(&mut machine, dice);
        // Whatever was seen, nothing is left behind.
        let _ = machine.kill();
        let status = machine.wait()?;
        let (cut, rest) = cut?;
        ensure!(status.code().is_none(), "the machine ended by itself, with {status}");
        Ok(rest.last(cut))
    }

    /// Kills the machine some time after a number of flushes.
    fn watch(machine: &mut Child, dice: &mut Dice) -> anyhow::Result<(Self, Lines)> {
        let mut lines = Lines(BufReader::new(machine.stdout.take().context("no standard output")?));
        let Some(("seed", seed)) = lines.next() else {
            bail!("the guest did not begin");
        };
        let mut cut = Self { seed, flushed: 0 };
        for _ in 0..=dice.throw(40) {
            let Some(("flushed", number)) = lines.next() else {
                bail!("the guest stopped after write {}", cut.flushed);
            };
            cut.flushed = number;
        }
        thread::sleep(Duration::from_micros(dice.throw(20_000).into()));
        machine.kill()?;
        Ok((cut, lines))
    }

    /// Checks the image. Returns how many sectors are as the last flushed write has left them, and how many are newer.
    fn check(&self, oxbow: &Path, image: &Path, qemu: &str) -> anyhow::Result<(usize, usize)> {
        let raw = checked(oxbow, image, qemu)?;
        let counts = self.compare(&File::open(&raw)?)?;
        std::fs::remove_file(raw)?;
        Ok(counts)
    }

    fn compare(&self, disk: &File) -> anyhow::Result<(usize, usize)> {
        // Of each sector, the last write to it that was flushed, and those after that.
        let mut last: BTreeMap<u32, u32> = BTreeMap::new();
        let mut later: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for Write { number, lba, count } in Writes::new(self.seed).take((self.flushed + UNTOLD) as usize) {
            for lba in lba..lba + count {
                if number <= self.flushed {
                    last.insert(lba, number);
                } else {
                    later.entry(lba).or_default().push(number);
                }
            }
        }
        let (mut held, mut newer) = (0, 0);
        for (lba, number) in last {
            let mut got = [0; SECTOR];
            disk.read_exact_at(&mut got, u64::from(lba) * SECTOR as u64)?;
            let is = |number| got == sector(number, lba);
            if is(number) {
                held += 1;
            } else if later.get(&lba).is_some_and(|later| later.iter().copied().any(is)) {
                newer += 1;
            } else {
                bail!(
                    "LBA {lba} holds {:02x?}..., not write {number} of {} that were flushed",
                    &got[..16],
                    self.flushed
                );
            }
        }
        Ok((held, newer))
    }
}

fn create(oxbow: &Path, image: &Path, format: &str) -> anyhow::Result<()> {
    let mut create = Command::new(oxbow);
    process::output(create.args(["disk", "create", "-O", format]).arg(image).arg(SIZE)).map(drop)
}

/// Has an image checked, by us and by qemu-img, and returns what it holds, as a raw image.
fn checked(oxbow: &Path, image: &Path, qemu: &str) -> anyhow::Result<PathBuf> {
    sound(Command::new(oxbow).args(["disk", "check"]).arg(image), LOST)?;
    if process::find("qemu-img").is_some() {
        sound(
            Command::new("qemu-img").args(["check", "-f", qemu]).arg(image),
            QEMU_LOST,
        )?;
    }
    let raw = image.with_extension("raw");
    let _ = std::fs::remove_file(&raw);
    process::output(Command::new(oxbow).args(["disk", "convert"]).args([image, &raw]))?;
    Ok(raw)
}

/// Whether a check finds nothing, or only space that is lost: space is taken before anything refers to it.
fn sound(command: &mut Command, lost: i32) -> anyhow::Result<()> {
    let output = command.output().with_context(|| process::shown(command))?;
    let found = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success() || output.status.code() == Some(lost),
        "{} ended with {}\n{}",
        process::shown(command),
        output.status,
        String::from_utf8_lossy(&found).trim_end()
    );
    Ok(())
}

/// What the guest says, line by line.
struct Lines(BufReader<std::process::ChildStdout>);

impl Lines {
    fn next(&mut self) -> Option<(&'static str, u32)> {
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        // A line that the kill has cut short says nothing.
        let (word, number) = line.strip_suffix('\n')?.trim_end().split_once(' ')?;
        let word = ["seed", "flushed"].into_iter().find(|known| *known == word)?;
        let whole = number.len() == 8;
        whole
            .then(|| u32::from_str_radix(number, 16).ok())
            .flatten()
            .map(|number| (word, number))
    }

    /// What it had said by its end.
    fn last(mut self, mut cut: Cut) -> Cut {
        while let Some(("flushed", number)) = self.next() {
            cut.flushed = number;
        }
        cut
    }
}

/// A write of the guest.
struct Write {
    number: u32,
    lba: u32,
    count: u32,
}

/// All of them.
struct Writes {
    x: u32,
    number: u32,
}

impl Writes {
    fn new(seed: u32) -> Self {
        Self { x: seed, number: 0 }
    }
}

impl Iterator for Writes {
    type Item = Write;

    fn next(&mut self) -> Option<Write> {
        self.x = self.x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.number += 1;
        Some(Write {
            number: self.number,
            lba: (self.x >> 8 & 0xFFF) * 32 + (self.x >> 20 & 7),
            count: (self.x >> 24 & 7) + 1,
        })
    }
}

/// What write `number` puts into a sector.
fn sector(number: u32, lba: u32) -> [u8; SECTOR] {
    let mut words = [0; SECTOR / 4];
    words[..2].copy_from_slice(&[number, lba]);
    let mut x = lba.wrapping_mul(65_599).wrapping_add(number);
    for word in &mut words[2..] {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *word = x;
    }
    let mut bytes = [0; SECTOR];
    for (bytes, word) in bytes.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk after some writes of the guest with seed 7.
    fn disk(writes: usize) -> File {
        let disk = tempfile();
        disk.set_len(64 << 20).unwrap();
        for Write { number, lba, count } in Writes::new(7).take(writes) {
            for lba in lba..lba + count {
                disk.write_all_at(&sector(number, lba), u64::from(lba) * 512).unwrap();
            }
        }
        disk
    }

    fn tempfile() -> File {
        let path = std::env::temp_dir().join(format!(
            "oxbow-powercuts-{}-{:?}",
            std::process::id(),
            thread::current().id()
        ));
        let options = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(path).unwrap();
        options
    }

    #[test]
    fn lost_write_is_found_and_a_newer_one_is_none() {
        let cut = Cut { seed: 7, flushed: 16 };
        let (held, newer) = cut.compare(&disk(16)).unwrap();
        assert!(held > 16 && newer == 0);
        cut.compare(&disk(20)).unwrap();
        let error = cut.compare(&disk(15)).unwrap_err().to_string();
        assert!(error.contains("not write 16"), "{error}");
    }
}
