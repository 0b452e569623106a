//! Processes that are killed while they write: what they had flushed is there, and nothing is damaged.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;

use disk_image::CreateOptions;
use disk_image::Files;
use disk_image::Format;
use disk_image::HostFiles;
use disk_image::OpenOptions;

use crate::kit::MIB;
use crate::kit::Random;
use crate::kit::create;
use crate::kit::read_all;

const SIZE: u64 = 32 * MIB;
const BLOCK: u64 = 4096;
const KILLS: u64 = 3;
/// Tells the process that this test starts which image to write to, and from which write on.
const VARIABLE: &str = "DISK_IMAGE_TEST_WRITER";

/// What write number `number` does: where, and with which bytes.
fn operation(number: u64) -> (u64, Vec<u8>) {
    let block = Random::new(number + 1).below(SIZE / BLOCK);
    let bytes = if number.is_multiple_of(7) {
        vec![0; BLOCK as usize]
    } else {
        number.to_le_bytes().repeat(BLOCK as usize / 8)
    };
    (block * BLOCK, bytes)
}

/// Not a test: the process that is killed.
#[test]
#[ignore = "the other test starts it"]
fn writer() {
    let Ok(what) = std::env::var(VARIABLE) else { return };
    let (from, path) = what.split_once(':').unwrap();
    let image = disk_image::open(Path::new(path), &OpenOptions::writable()).unwrap();
    for number in from.parse::<u64>().unwrap().. {
        let (at, bytes) = operation(number);
        if number.is_multiple_of(14) {
            image.discard(at, BLOCK).unwrap();
        } else {
            image.write_at(at, &bytes).unwrap();
        }
        if number.is_multiple_of(5) {
            image.flush().unwrap();
            println!("flushed {number}");
            std::io::stdout().flush().unwrap();
        }
    }
}

/// Starts the writer and kills it after some flushes. Returns the last write that was flushed.
fn kill_one(path: &str, from: u64, random: &mut Random) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::writer", "--ignored", "--nocapture"])
        .env(VARIABLE, format!("{from}:{path}"))
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let wanted = 1 + random.below(40) as usize;
    let numbers = lines.filter_map(|line| {
        line.unwrap()
            .strip_prefix("flushed ")
            .map(|number| number.parse().unwrap())
    });
    let flushed = numbers.take(wanted).last();
    child.kill().unwrap();
    child.wait().unwrap();
    flushed.expect("the writer writes")
}

#[test]
fn killed_writers_lose_nothing_that_was_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let files: Arc<dyn Files> = Arc::new(HostFiles::default());
    for format in [Format::Raw, Format::Qcow2, Format::Vdi, Format::Vmdk, Format::Vhd] {
        let path = folder.path().join(format!("image.{format}")).display().to_string();
        create(&files, &path, &CreateOptions::new(format, SIZE));
        let mut random = Random::new(3);
        let mut next = 1;
        for _ in 0..KILLS {
            let flushed = kill_one(&path, next, &mut random);
            let image = disk_image::open(Path::new(&path), &OpenOptions::writable()).unwrap();
            let report = image.check(false).unwrap();
            assert!(report.is_sound(), "{format}: {:?}", report.errors);
            let found = read_all(&*image);
            // What each block may hold: the last that was flushed, or what came later. Far more than one kill writes.
            let mut allowed: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
            for number in 1..flushed + 10_000 {
                let (at, bytes) = operation(number);
                let versions = allowed.entry(at).or_insert_with(|| vec![vec![0; BLOCK as usize]]);
                if number <= flushed {
                    versions.clear();
                }
                versions.push(bytes);
            }
            for (at, versions) in allowed {
                let block = &found[at as usize..(at + BLOCK) as usize];
                let whole = versions.iter().any(|version| version == block);
                // A write that was under way has pages of both.
                let mixed = versions.len() > 1
                    && block
                        .chunks(512)
                        .all(|part| versions.iter().any(|version| version[..512] == *part));
                assert!(whole || mixed, "{format}: the block at {at:#x} after write {flushed}");
            }
            // The next writer begins behind all that may have been written.
            next = flushed + 10_000;
            for number in 1..next {
                let (at, bytes) = operation(number);
                if number + 12_000 > next {
                    image.write_at(at, &bytes).unwrap();
                }
            }
            image.flush().unwrap();
        }
    }
}
