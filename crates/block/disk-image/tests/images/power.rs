//! Power cuts at any moment, with any part of what was not synced missing.

use std::path::Path;
use std::sync::Arc;

use disk_image::CreateOptions;
use disk_image::Files;
use disk_image::Format;
use disk_image::MemoryFiles;
use disk_image::OpenOptions;
use disk_image::Recording;
use disk_image::Variant;

use crate::kit::KIB;
use crate::kit::Random;
use crate::kit::children;
use crate::kit::create;
use crate::kit::kinds;
use crate::kit::memory;
use crate::kit::open;
use crate::kit::parent;
use crate::kit::pattern;

const SIZE: u64 = 512 * KIB;
const SECTOR: usize = 512;
/// Bytes of memory that an image may take.
const LIMIT: usize = 64 << 20;

/// What a sector may hold: what it held at the last flush, and all that was written to it since.
type Versions = Vec<Vec<Vec<u8>>>;

/// A moment of a run: how many operations the file had seen, and what the disk may hold after that.
struct Moment {
    position: usize,
    versions: Versions,
}

/// Writes, discards and flushes on a recorded image. Moments are between the operations.
fn record(
    files: &MemoryFiles,
    dynamic: &Arc<dyn Files>,
    kind: &CreateOptions,
    start: &[u8],
    random: &mut Random,
) -> (Arc<Recording>, Vec<Moment>) {
    let recording = Arc::new(Recording::new(&files.bytes("image"), LIMIT));
    files.put("image", Arc::clone(&recording) as Arc<_>);
    let image = open(dynamic, "image", kind, true);
    let mut versions: Versions = start.chunks(SECTOR).map(|sector| vec![sector.to_vec()]).collect();
    let mut moments = Vec::new();
    for _ in 0..60 {
        let sectors = versions.len() as u64;
        let from = random.below(sectors);
        let len = (1 + random.below(100)).min(sectors - from);
        let (at, bytes) = (from * SECTOR as u64, len * SECTOR as u64);
        let touched = from as usize..(from + len) as usize;
        // What is under way may be there already when the power is cut.
        match random.below(6) {
            0 => {
                image.flush().unwrap();
                for sector in &mut versions {
                    sector.drain(..sector.len() - 1);
                }
            }
            1 => {
                versions[touched]
                    .iter_mut()
                    .for_each(|sector| sector.push(vec![0; SECTOR]));
                image.discard(at, bytes).unwrap();
            }
            2 => {
                versions[touched]
                    .iter_mut()
                    .for_each(|sector| sector.push(vec![0; SECTOR]));
                image.write_zeroes(at, bytes).unwrap();
            }
            _ => {
                let data = random.bytes(bytes as usize);
                versions[touched]
                    .iter_mut()
                    .zip(data.chunks(SECTOR))
                    .for_each(|(sector, data)| sector.push(data.to_vec()));
                image.write_at(at, &data).unwrap();
            }
        }
        moments.push(Moment {
            position: recording.position(),
            versions: versions.clone(),
        });
    }
    drop(image);
    moments.push(Moment {
        position: recording.position(),
        versions,
    });
    (recording, moments)
}

/// A recorded run.
struct Recorded<'a> {
    name: &'a str,
    files: &'a MemoryFiles,
    dynamic: &'a Arc<dyn Files>,
    kind: &'a CreateOptions,
    recording: &'a Recording,
}

/// Cuts the power after `position` operations and looks at what is left.
fn cut(run: &Recorded<'_>, position: usize, versions: &Versions, random: &mut Random) {
    let Recorded {
        name,
        files,
        dynamic,
        kind,
        recording,
    } = *run;
    // Everything, nothing, or about half of what was not synced.
    let chance = [0, 2, 1][random.below(3) as usize];
    let left = recording.cut(position, || random.below(2) < chance);
    files.put("image", Arc::new(left));
    let name = format!("{name}, cut after {position}");
    let options = OpenOptions {
        write: true,
        format: Some(kind.format),
        share: false,
    };
    let image =
        disk_image::open_in(dynamic, Path::new("image"), &options).unwrap_or_else(|error| panic!("{name}: {error}"));
    let report = image.check(false).unwrap();
    assert!(report.is_sound(), "{name}: {:?}", report.errors);
    let mut found = vec![0; versions.len() * SECTOR];
    image
        .read_at(0, &mut found)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    for (index, (sector, versions)) in found.chunks(SECTOR).zip(versions).enumerate() {
        // A discard that is under way may have made a hole: zeros.
        let zeros = versions.len() > 1
            && sector.iter().all(|&byte| byte == 0)
            && versions.iter().any(|version| version[0] == 0);
        assert!(
            versions.iter().any(|version| version == sector) || zeros,
            "{name}: sector {index} has what it never had"
        );
    }
    // What is left can be mended and goes on working.
    image.check(true).unwrap();
    let report = image.check(false).unwrap();
    assert!(
        report.is_sound() && report.leaks == 0 || kind.format != Format::Qcow2,
        "{name}: {report:?}"
    );
    image.write_at(0, &[0x5a; 4096]).unwrap();
    image.flush().unwrap();
    assert!(image.check(false).unwrap().is_sound(), "{name}: after more writes");
}

fn all_cuts(name: &str, kind: &CreateOptions, over_parent: bool, seed: u64) {
    let (files, dynamic) = memory();
    let mut random = Random::new(seed);
    let mut start = vec![0; SIZE as usize];
    let mut kind = kind.clone();
    if over_parent {
        start = pattern(&mut random, SIZE);
        kind.parent = Some(parent(&dynamic, "base", &CreateOptions::new(Format::Raw, 0), &start));
    }
    create(&dynamic, "image", &kind);
    let (recording, moments) = record(&files, &dynamic, &kind, &start, &mut random);
    let run = Recorded {
        name,
        files: &files,
        dynamic: &dynamic,
        kind: &kind,
        recording: &recording,
    };
    let mut before: Versions = start.chunks(SECTOR).map(|sector| vec![sector.to_vec()]).collect();
    let mut position = 0;
    for moment in &moments {
        // Within an operation, a sector may have what it had before or what it gets.
        let between: Versions = before
            .iter()
            .zip(&moment.versions)
            .map(|(before, after)| before.iter().chain(after).cloned().collect())
            .collect();
        let step = (moment.position - position).div_ceil(6).max(1);
        for at in (position + 1..moment.position).step_by(step) {
            cut(&run, at, &between, &mut random);
        }
        cut(&run, moment.position, &moment.versions, &mut random);
        position = moment.position;
        before.clone_from(&moment.versions);
    }
}

/// Formats with one file; flat ones have no metadata.
fn recorded(kinds: Vec<(&'static str, CreateOptions)>) -> Vec<(&'static str, CreateOptions)> {
    let many = [
        Variant::MonolithicFlat,
        Variant::TwoGbMaxExtentFlat,
        Variant::TwoGbMaxExtentSparse,
    ];
    kinds
        .into_iter()
        .filter(|(_, kind)| !many.contains(&kind.variant))
        .collect()
}

#[test]
fn power_cuts_lose_nothing_that_was_flushed() {
    for (name, kind) in recorded(kinds(SIZE)) {
        for seed in 0..3 {
            all_cuts(&format!("{name}, seed {seed}"), &kind, false, 500 + seed);
        }
    }
}

#[test]
fn power_cuts_of_children_lose_nothing_and_show_no_parent() {
    for (name, kind) in recorded(children(SIZE)) {
        for seed in 0..3 {
            all_cuts(&format!("child {name}, seed {seed}"), &kind, true, 900 + seed);
        }
    }
}
