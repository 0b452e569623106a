//! Damaged images: whatever is in them, there is an answer or an error of one line.

use std::path::Path;
use std::sync::Arc;

use disk_image::BlockError;
use disk_image::CreateOptions;
use disk_image::Files;
use disk_image::Format;
use disk_image::Image;
use disk_image::MemoryFiles;
use disk_image::MemoryStore;
use disk_image::OpenOptions;
use disk_image::Result;
use disk_image::Variant;

use crate::kit::KIB;
use crate::kit::MIB;
use crate::kit::Random;
use crate::kit::children;
use crate::kit::create;
use crate::kit::kinds;
use crate::kit::memory;
use crate::kit::open;
use crate::kit::parent;

pub(crate) const SIZE: u64 = 256 * KIB;
/// What a damaged image may grow to.
pub(crate) const LIMIT: usize = 32 << 20;
const ROUNDS: u64 = 400;

fn checked<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains('\n') && text.len() < 600, "{text}");
            None
        }
    }
}

/// Uses an image in every way.
pub(crate) fn exercise(files: &Arc<dyn Files>, format: Format, write: bool) {
    let options = OpenOptions {
        write,
        format: Some(format),
        share: false,
    };
    let Some(image) = checked(disk_image::open_in(files, Path::new("image"), &options)) else {
        return;
    };
    let size = image.info().size;
    let mut buf = vec![0; 64 * 1024];
    let mut at = 0;
    for _ in 0..64 {
        let len = (size - at).min(buf.len() as u64);
        checked(image.read_at(at, &mut buf[..len as usize]));
        at += len;
    }
    for at in [size / 2, size.saturating_sub(4096)] {
        let len = (size - at).min(4096);
        checked(image.read_at(at, &mut buf[..len as usize]));
    }
    let mut at = 0;
    for _ in 0..200 {
        if at >= size {
            break;
        }
        match checked(image.extent(at)) {
            Some(extent) => at += extent.len,
            None => at += 64 * KIB,
        }
    }
    checked(image.check(false));
    if write {
        change(&*image, size);
    }
}

fn change(image: &dyn Image, size: u64) {
    for at in [0, size / 3, size.saturating_sub(512)] {
        let len = (size - at).min(3000);
        checked(image.write_at(at, &vec![0x33; len as usize]));
        checked(image.discard(at, len.min(700)));
    }
    checked(image.flush());
    checked(image.discard(0, size.min(SIZE)));
    checked(image.flush());
    checked(image.check(true));
    checked(image.write_at(0, &vec![0x33; size.min(100_000) as usize]));
    checked(image.flush());
}

/// An image with something of everything, as bytes.
pub(crate) fn sample(memory: &MemoryFiles, files: &Arc<dyn Files>, kind: &CreateOptions) -> Vec<u8> {
    create(files, "image", kind);
    let image = open(files, "image", kind, true);
    image.write_at(0, &[1; 5000]).unwrap();
    image.write_at(SIZE / 2, &[2; 40_000]).unwrap();
    image.discard(SIZE / 2 + 10_000, 20_000).unwrap();
    image.write_zeroes(100_000, 9000).unwrap();
    drop(image);
    memory.bytes("image")
}

/// Offsets of metadata: sectors that hold anything but data.
pub(crate) fn interesting(bytes: &[u8]) -> Vec<usize> {
    let data = |sector: &[u8]| sector.iter().all(|&byte| byte == sector[0]) && matches!(sector[0], 0..=2 | 7);
    let sectors = bytes.chunks(512).enumerate().filter(|(_, sector)| !data(sector));
    sectors.map(|(index, _)| index * 512).collect()
}

fn damage(bytes: &[u8], places: &[usize], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if random.below(12) == 0 {
        bytes.truncate(random.below(bytes.len() as u64) as usize);
        return bytes;
    }
    for _ in 0..1 + random.below(3) {
        let sector = places[random.below(places.len() as u64) as usize];
        // The beginning of a sector has the fields.
        let reach = [512, 128, 64][random.below(3) as usize];
        let within = random.below(reach) as usize;
        let at = (sector + within).min(bytes.len() - 1);
        let width = [1, 2, 4, 8][random.below(4) as usize];
        let end = (at + width).min(bytes.len());
        let part = &mut bytes[at..end];
        match random.below(6) {
            0 => part.fill(0xff),
            1 => part.fill(0),
            2 => part[0] ^= 1 << random.below(8),
            3 => part.copy_from_slice(&random.next().to_le_bytes()[..end - at]),
            4 => part[0] = part[0].wrapping_add(1),
            _ => part[end - at - 1] = part[end - at - 1].wrapping_sub(1),
        }
    }
    bytes
}

/// Makes the checksums of a VHD right again, so that damage gets past them.
pub(crate) fn repair_checksums(bytes: &mut [u8]) {
    let mut fix = |from: usize, len: usize, at: usize| {
        let Some(part) = bytes.get_mut(from..from + len) else {
            return;
        };
        part[at..at + 4].fill(0);
        let sum: u32 = part.iter().fold(0, |sum, &byte| sum.wrapping_add(byte.into()));
        part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    };
    fix(0, 512, 64);
    fix(512, 1024, 36);
}

#[test]
fn damaged_images_never_panic() {
    let all = kinds(SIZE)
        .into_iter()
        .map(|kind| (kind, false))
        .chain(children(SIZE).into_iter().map(|kind| (kind, true)));
    for (number, ((_, mut kind), child)) in (0..).zip(all) {
        if kind.format == Format::Raw || kind.variant == Variant::TwoGbMaxExtentFlat {
            continue;
        }
        let (memory, files) = memory();
        if child {
            kind.parent = Some(parent(
                &files,
                "base",
                &CreateOptions::new(Format::Raw, 0),
                &vec![7; SIZE as usize],
            ));
        }
        let bytes = sample(&memory, &files, &kind);
        let places = interesting(&bytes);
        let mut random = Random::new(number + 40);
        for _ in 0..ROUNDS {
            let mut damaged = damage(&bytes, &places, &mut random);
            if kind.format == Format::Vhd && random.below(4) > 0 {
                repair_checksums(&mut damaged);
            }
            for write in [false, true] {
                memory.put("image", Arc::new(MemoryStore::with(&damaged, LIMIT)));
                exercise(&files, kind.format, write);
            }
        }
    }
}

#[test]
fn compressed_and_truncated_images_never_panic() {
    let (memory, files) = memory();
    let model: Vec<u8> = (0..SIZE).map(|at| (at / 5000) as u8).collect();
    parent(&files, "base", &CreateOptions::new(Format::Raw, 0), &model);
    let source = disk_image::open_in(&files, Path::new("base"), &OpenOptions::default()).unwrap();
    let stream = CreateOptions {
        variant: Variant::StreamOptimized,
        ..CreateOptions::new(Format::Vmdk, SIZE)
    };
    let zlib = CreateOptions {
        block_size: Some(4 * KIB),
        ..CreateOptions::new(Format::Qcow2, SIZE)
    };
    let zstd = CreateOptions {
        compression: disk_image::Compression::Zstd,
        ..zlib.clone()
    };
    for (number, kind) in (0..).zip([stream, zlib, zstd]) {
        files.remove(Path::new("image")).unwrap();
        disk_image::copy(&files, &*source, Path::new("image"), &kind, true, &mut |_| Ok(())).unwrap();
        let bytes = memory.bytes("image");
        let places = interesting(&bytes);
        let mut random = Random::new(number);
        for round in 0..ROUNDS {
            let damaged = damage(&bytes, &places, &mut random);
            memory.put("image", Arc::new(MemoryStore::with(&damaged, LIMIT)));
            exercise(
                &files,
                kind.format,
                kind.format == Format::Qcow2 && round.is_multiple_of(2),
            );
        }
    }
}

/// Headers that claim more than there is.
#[test]
fn claims_are_refused_with_a_reason() {
    let be32 = |value: u32| value.to_be_bytes().to_vec();
    let be64 = |value: u64| value.to_be_bytes().to_vec();
    let le32 = |value: u32| value.to_le_bytes().to_vec();
    let le64 = |value: u64| value.to_le_bytes().to_vec();
    let cases: [(Format, usize, Vec<u8>, &str); 16] = [
        (Format::Qcow2, 24, be64(1 << 60), "L1 table"),
        (Format::Qcow2, 20, be32(40), "2^40"),
        (Format::Qcow2, 36, be32(u32::MAX), "32 MiB"),
        (Format::Qcow2, 40, be64(1 << 50), "not within the file"),
        (Format::Qcow2, 56, be32(u32::MAX), "8 MiB"),
        (Format::Qcow2, 60, be32(u32::MAX), "snapshots"),
        (Format::Qcow2, 32, be32(1), "encrypted"),
        (Format::Qcow2, 4, be32(9), "version 9"),
        (Format::Vdi, 384, le32(u32::MAX), "blocks"),
        (Format::Vdi, 368, le64(u64::MAX), "needs more than"),
        (Format::Vdi, 376, le32(0), "blocks of 0"),
        (Format::Vdi, 340, le32(u32::MAX - 511), "block map"),
        (Format::Vmdk, 12, le64(1 << 50), "not within the file"),
        (Format::Vmdk, 44, le32(0), "0 entries"),
        (Format::Vmdk, 20, le64(3), "3 sectors"),
        (Format::Vmdk, 36, le64(1 << 40), "descriptor"),
    ];
    for (format, at, value, words) in cases {
        let (memory, files) = memory();
        let bytes = sample(&memory, &files, &CreateOptions::new(format, SIZE));
        let mut damaged = bytes.clone();
        damaged[at..at + value.len()].copy_from_slice(&value);
        memory.put("image", Arc::new(MemoryStore::with(&damaged, LIMIT)));
        let error = disk_image::open_in(&files, Path::new("image"), &OpenOptions::default()).err();
        let error = error
            .unwrap_or_else(|| panic!("{format} at {at} was opened"))
            .to_string();
        assert!(
            error.starts_with("image: ") && error.contains(words),
            "{format} at {at}: {error}"
        );
    }
}

#[test]
fn repair_mends_refcounts_and_finds_what_it_cannot_mend() {
    let (memory, files) = memory();
    let kind = CreateOptions {
        block_size: Some(4 * KIB),
        ..CreateOptions::new(Format::Qcow2, MIB)
    };
    let bytes = sample(&memory, &files, &kind);
    let reftable = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
    let block = u64::from_be_bytes(bytes[reftable..reftable + 8].try_into().unwrap()) as usize;
    // A count of zero, one that is too high, and a leak.
    for (cluster, count) in [(4, 0u16), (5, 7), (200, 1)] {
        let mut damaged = bytes.clone();
        damaged[block + cluster * 2..block + cluster * 2 + 2].copy_from_slice(&count.to_be_bytes());
        damaged.resize(damaged.len().max(201 * 4096), 0);
        memory.put("image", Arc::new(MemoryStore::with(&damaged, LIMIT)));
        let image = open(&files, "image", &kind, true);
        let before = image.check(false).unwrap();
        assert!(before.error_count + before.leaks > 0, "cluster {cluster}");
        let report = image.check(true).unwrap();
        assert!(
            report.is_sound() && report.leaks == 0 && report.repaired > 0,
            "cluster {cluster}: {report:?}"
        );
    }
    // All refcounts are gone.
    let mut damaged = bytes.clone();
    damaged[reftable..reftable + 8].fill(0xff);
    memory.put("image", Arc::new(MemoryStore::with(&damaged, LIMIT)));
    let image = open(&files, "image", &kind, true);
    assert!(!image.check(false).unwrap().is_sound());
    let report = image.check(true).unwrap();
    assert!(report.is_sound() && report.leaks == 0, "{report:?}");
    // Two places of the disk that have the same cluster: nobody knows whose it is.
    let l1 = u64::from_be_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let l2 = (u64::from_be_bytes(bytes[l1..l1 + 8].try_into().unwrap()) & 0xff_ffff_ffff_fe00) as usize;
    let mut damaged = bytes;
    damaged.copy_within(l2..l2 + 8, l2 + 8);
    memory.put("image", Arc::new(MemoryStore::with(&damaged, LIMIT)));
    let image = open(&files, "image", &kind, true);
    assert!(!image.check(false).unwrap().is_sound());
}

#[test]
fn accesses_beyond_the_end_are_refused() {
    for (name, kind) in kinds(SIZE) {
        let (_, files) = memory();
        create(&files, "image", &kind);
        let image = open(&files, "image", &kind, true);
        let mut buf = [0; 1024];
        for at in [SIZE - 512, SIZE, u64::MAX - 511, u64::MAX] {
            for result in [
                image.read_at(at, &mut buf),
                image.write_at(at, &buf),
                image.discard(at, 1024),
                image.write_zeroes(at, u64::MAX),
                image.extent(at.max(SIZE)).map(drop),
            ] {
                assert!(
                    matches!(result, Err(BlockError::OutOfRange { .. })),
                    "{name} at {at:#x}"
                );
            }
        }
        image.read_at(SIZE, &mut []).unwrap();
        image.discard(SIZE, 0).unwrap();
        drop(image);
        let image = open(&files, "image", &kind, false);
        assert!(
            matches!(image.write_at(0, &[1]), Err(BlockError::ReadOnly { .. })),
            "{name}"
        );
        assert!(
            matches!(image.discard(0, 1), Err(BlockError::ReadOnly { .. })),
            "{name}"
        );
    }
}
