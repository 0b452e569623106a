//! Power cuts under Linux: `fio` of the Debian guest system writes to NVMe disks, one of each format, and flushes.
//!
//! Round after round, a `fio` fills one of eleven areas of each disk with blocks that hold the number of the round and their
//! own place, flushes them, and ends; then the round is told on the serial port. A second `fio`, of which nothing is told,
//! writes and flushes elsewhere on the disks all the time, so that there is always something under way.
//!
//! The kernel is that of the demo guest; the programs come from the system's disk, which is never written.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

use super::Dice;
use super::FORMATS;
use super::checked;
use super::create;
use crate::guests;
use crate::guests::system;

/// An area, what of it is written, and its blocks.
const AREA: u64 = 4 << 20;
const USED: u64 = 256 << 10;
const BLOCK: usize = 4096;
/// How many areas there are, a prime number: see `area`.
const AREAS: u64 = 11;
/// A machine is killed at the latest after so many rounds.
const ROUNDS: u32 = 7;
/// Seconds after which a machine that was not killed ends by itself.
const LIMIT: &str = "300";

/// What the guest does, in a shell of busybox and in one of the system's. No double quotes: it is a word of the command line.
const COMMANDS: &str = "\
    mkdir /mnt; mount -t ext4 -o ro /dev/nvme0n1p1 /mnt; for d in dev proc sys tmp; do mount -o bind /$d /mnt/$d; done; \
    chroot /mnt sh -c '\
    cd /tmp; o=--direct=1\\ --ioengine=libaio\\ --rw=randwrite\\ --bs=4k; \
    f=--name=a\\ --filename=/dev/nvme0n2\\ --name=b\\ --filename=/dev/nvme0n3\\ --name=c\\ --filename=/dev/nvme0n4; \
    fio $o --offset=48M --size=16M --iodepth=8 --fsync=32 --rate_iops=200 --time_based --runtime=1000 $f >/dev/null & \
    r=1; while fio $o --offset=$((r/2*(r/2)%11*4))M --size=256k --iodepth=4 --fsync=8 --end_fsync=1 \
    --verify=pattern --verify_pattern=0x$(printf %08x $r)%o --do_verify=0 $f >/dev/null; \
    do echo flushed $r; r=$((r+1)); done'";

/// Where the blocks of a round are: each other round, where those of the last one were.
fn area(round: u32) -> u64 {
    let pair = u64::from(round / 2);
    pair * pair % AREAS * AREA
}

/// What `fio` puts into a block: over and over again the round, high byte first, and the place, low byte first.
fn block(round: u32, place: u64) -> Vec<u8> {
    let pattern = [round.to_be_bytes().as_slice(), &place.to_le_bytes()].concat();
    pattern.iter().copied().cycle().take(BLOCK).collect()
}

/// What a guest had told before its machine was killed.
struct Cut {
    /// The last round that was flushed.
    flushed: u32,
}

/// What an image was found to hold.
struct Found {
    /// Blocks of the last round that was flushed, of all areas.
    held: usize,
    /// Blocks of the round after that.
    newer: usize,
}

/// Cuts the power `count` times, of a machine with a disk of each format.
pub(super) fn run(oxbow: &Path, dir: &Path, count: u32, dice: &mut Dice) -> anyhow::Result<()> {
    let (guest, system) = (guests::prepare("demo")?, system::prepare()?);
    let machine = Machine {
        oxbow,
        kernel: guest.vmlinux.as_deref().unwrap_or(&guest.kernel),
        initrd: &guest.initrd,
        system: &system,
    };
    let images = FORMATS.map(|(format, _)| dir.join(format!("fio.{format}")));
    let (mut rounds, mut sums) = (0, [(0, 0); FORMATS.len()]);
    for number in 1..=count {
        for (image, (format, _)) in images.iter().zip(FORMATS) {
            create(oxbow, image, format)?;
        }
        let cut = machine.cut(&images, dice)?;
        rounds += cut.flushed;
        let mut told = format!("{number:3}: {:2} rounds flushed", cut.flushed);
        for ((image, (format, qemu)), sum) in images.iter().zip(FORMATS).zip(&mut sums) {
            let found = cut.check(oxbow, image, qemu);
            let found = found.with_context(|| format!("cut {number}; see {}", image.display()))?;
            told += &format!(
                "; {format} has {} blocks of them, {} are newer",
                found.held, found.newer
            );
            *sum = (sum.0 + found.held, sum.1 + found.newer);
            std::fs::remove_file(image)?;
        }
        println!("{told}");
    }
    println!("{count} cuts, {rounds} rounds flushed");
    for ((format, _), (held, newer)) in FORMATS.iter().zip(sums) {
        println!("{format:5}: {held} blocks of the last rounds, {newer} newer, none lost");
    }
    Ok(())
}

/// What all of the machines have in common.
struct Machine<'a> {
    oxbow: &'a Path,
    kernel: &'a Path,
    initrd: &'a Path,
    system: &'a Path,
}

impl Machine<'_> {
    /// Boots, lets the guest write, and kills the machine.
    fn cut(&self, images: &[PathBuf], dice: &mut Dice) -> anyhow::Result<Cut> {
        let mut machine = Command::new(self.oxbow);
        machine
            .args([
                "run",
                "--machine",
                "pc",
                "--memory",
                "256M",
                "--timeout",
                LIMIT,
                "--no-reboot",
            ])
            .args(["--serial", "stdio", "--kernel"])
            .arg(self.kernel)
            .arg("--initrd")
            .arg(self.initrd)
            .arg("--append")
            .arg(format!("console=ttyS0 panic=-1 quiet oxbow_run=\"{COMMANDS}\""))
            .arg("--disk")
            .arg(format!("{},format=raw,bus=nvme,ro", self.system.display()))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        for (image, (format, _)) in images.iter().zip(FORMATS) {
            let disk = format!("{},format={format},bus=nvme", image.display());
            machine.args(["--disk", &disk]);
        }
        let mut machine = machine.spawn().context("cannot run oxbow")?;
        let cut = watch(&mut machine, dice);
        // Whatever was seen, nothing is left behind.
        let _ = machine.kill();
        let status = machine.wait()?;
        let (mut cut, mut lines) = cut?;
        ensure!(status.code().is_none(), "the machine ended by itself, with {status}");
        while let Some(round) = lines.flushed() {
            cut.flushed = round;
        }
        Ok(cut)
    }
}

/// Kills the machine some time after a number of rounds.
fn watch(machine: &mut Child, dice: &mut Dice) -> anyhow::Result<(Cut, Lines)> {
    let mut lines = Lines {
        output: BufReader::new(machine.stdout.take().context("no standard output")?),
        last: String::new(),
    };
    let mut cut = Cut { flushed: 0 };
    let rounds = dice.throw(ROUNDS);
    while cut.flushed <= rounds {
        let Some(round) = lines.flushed() else {
            bail!(
                "the guest stopped after round {}: {}",
                cut.flushed,
                lines.last.trim_end()
            );
        };
        ensure!(round == cut.flushed + 1, "round {round} after round {}", cut.flushed);
        cut.flushed = round;
    }
    thread::sleep(Duration::from_micros(dice.throw(2_000_000).into()));
    machine.kill()?;
    Ok((cut, lines))
}

/// What the guest says, line by line.
struct Lines {
    output: BufReader<ChildStdout>,
    /// The last line that was something else.
    last: String,
}

impl Lines {
    /// The next round that is told, if there is one.
    fn flushed(&mut self) -> Option<u32> {
        loop {
            let mut line = Vec::new();
            self.output.read_until(b'\n', &mut line).ok()?;
            // A line that the kill has cut short says nothing.
            line.strip_suffix(b"\n")?;
            let line = String::from_utf8_lossy(&line);
            match line.trim_end().strip_prefix("flushed ") {
                Some(number) => return number.parse().ok(),
                None => self.last = line.into_owned(),
            }
        }
    }
}

impl Cut {
    fn check(&self, oxbow: &Path, image: &Path, qemu: &str) -> anyhow::Result<Found> {
        let raw = checked(oxbow, image, qemu)?;
        let found = self.compare(&File::open(&raw)?)?;
        std::fs::remove_file(raw)?;
        Ok(found)
    }

    fn compare(&self, disk: &File) -> anyhow::Result<Found> {
        let mut last: BTreeMap<u64, u32> = BTreeMap::new();
        for round in 1..=self.flushed {
            last.insert(area(round), round);
        }
        let mut found = Found { held: 0, newer: 0 };
        // The guest may have ended one more round than it was heard to say, and be in the one after that.
        let later = [self.flushed + 1, self.flushed + 2];
        for (area, round) in last {
            for place in (area..area + USED).step_by(BLOCK) {
                let mut got = vec![0; BLOCK];
                disk.read_exact_at(&mut got, place)?;
                let is = |round| got == block(round, place);
                if is(round) {
                    found.held += 1;
                } else if later.iter().any(|&later| self::area(later) == area && is(later)) {
                    found.newer += 1;
                } else {
                    bail!(
                        "the block at {place:#x} holds {:02x?}..., not what round {round} of {} has flushed",
                        &got[..16],
                        self.flushed
                    );
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(disk: &File, round: u32, blocks: u64) {
        for place in (area(round)..).step_by(BLOCK).take(blocks as usize) {
            disk.write_all_at(&block(round, place), place).unwrap();
        }
    }

    #[test]
    fn lost_round_is_found_and_a_newer_one_is_none() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(64 << 20).unwrap();
        for round in 1..=6 {
            write(&disk, round, USED / BLOCK as u64);
        }
        let cut = Cut { flushed: 6 };
        // Rounds 2 and 3 are the same area, and so are 4 and 5, and 6 and 7.
        assert_eq!(cut.compare(&disk).unwrap().held, 4 * 64);
        write(&disk, 7, 3);
        let found = cut.compare(&disk).unwrap();
        assert_eq!((found.held, found.newer), (4 * 64 - 3, 3));
        let later = Cut { flushed: 7 };
        let error = later.compare(&disk).err().unwrap().to_string();
        assert!(error.contains("round 7"), "{error}");
    }

    #[test]
    fn commands_have_no_double_quotes_and_fit() {
        assert!(!COMMANDS.contains('"') && COMMANDS.len() < 1900, "{}", COMMANDS.len());
    }
}
