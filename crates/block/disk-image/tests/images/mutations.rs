//! Damage without chance: every byte of the metadata, every length of the file, tables that are their own, chains that go
//! round.

use std::path::Path;
use std::sync::Arc;

use disk_image::CreateOptions;
use disk_image::Files;
use disk_image::Format;
use disk_image::MemoryFiles;
use disk_image::MemoryStore;
use disk_image::OpenOptions;
use disk_image::ParentReference;
use disk_image::Store;
use disk_image::Variant;

use crate::damage::LIMIT;
use crate::damage::SIZE;
use crate::damage::exercise;
use crate::damage::interesting;
use crate::damage::repair_checksums;
use crate::damage::sample;
use crate::kit::KIB;
use crate::kit::children;
use crate::kit::create;
use crate::kit::kinds;
use crate::kit::memory;
use crate::kit::open;
use crate::kit::parent;

/// A sound image with a bit of everything, and the files that it needs.
struct Sample {
    name: &'static str,
    format: Format,
    bytes: Vec<u8>,
    memory: MemoryFiles,
    files: Arc<dyn Files>,
}

impl Sample {
    /// Tries an image of these bytes in every way, for reading or for writing too.
    fn run(&self, bytes: &[u8], write: bool) {
        let store = MemoryStore::new(LIMIT);
        for (index, page) in bytes.chunks(4096).enumerate() {
            if page.iter().any(|&byte| byte != 0) {
                store.write_at(index as u64 * 4096, page).unwrap();
            }
        }
        store.set_len(bytes.len() as u64).unwrap();
        self.memory.put("image", Arc::new(store));
        exercise(&self.files, self.format, write);
    }

    /// `change` damages a copy of the bytes, whose checksums are right afterwards.
    fn damaged(&self, write: bool, change: impl FnOnce(&mut [u8])) {
        let mut bytes = self.bytes.clone();
        change(&mut bytes);
        if self.format == Format::Vhd {
            repair_checksums(&mut bytes);
        }
        self.run(&bytes, write);
    }
}

/// One of each: with small blocks, and of children too.
fn samples() -> Vec<Sample> {
    let all = kinds(SIZE).into_iter().map(|kind| (kind, false));
    let all = all.chain(children(SIZE).into_iter().map(|kind| (kind, true)));
    let large = |kind: &CreateOptions| kind.block_size.is_none() && kind.format != Format::Vmdk;
    let flat = [Variant::Fixed, Variant::MonolithicFlat, Variant::TwoGbMaxExtentFlat];
    let wanted =
        all.filter(|((_, kind), _)| kind.format != Format::Raw && !large(kind) && !flat.contains(&kind.variant));
    let make = |((name, mut kind), child): ((&'static str, CreateOptions), bool)| {
        let (memory, files) = memory();
        if child {
            let raw = CreateOptions::new(Format::Raw, 0);
            kind.parent = Some(parent(&files, "base", &raw, &vec![7; SIZE as usize]));
        }
        let bytes = sample(&memory, &files, &kind);
        Sample {
            name,
            format: kind.format,
            bytes,
            memory,
            files,
        }
    };
    wanted.map(make).collect()
}

#[test]
fn every_byte_of_metadata_may_be_wrong() {
    for sample in samples() {
        for (index, sector) in interesting(&sample.bytes).into_iter().enumerate() {
            let end = (sector + 512).min(sample.bytes.len());
            for at in sector..end {
                // Of what is not used, and of the many tables that follow, a part will do.
                if index >= 6 && at % 8 != index % 8 {
                    continue;
                }
                if sample.bytes[at] == 0 && at - sector >= 64 && at % 16 != 7 {
                    continue;
                }
                let mask = if at % 2 == 0 { 0xff } else { 1 << (at / 2 % 8) };
                sample.damaged(at % 3 == 0, |bytes| bytes[at] ^= mask);
            }
        }
    }
}

#[test]
fn every_field_of_a_header_may_be_enormous() {
    for sample in samples() {
        let headers = if sample.format == Format::Vhd { 1536 } else { 512 };
        for at in (0..headers.min(sample.bytes.len() - 8)).step_by(4) {
            for value in [1u64 << 63, u64::MAX, i64::MAX as u64 & !511] {
                sample.damaged(at % 8 == 0, |bytes| {
                    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes())
                });
                sample.damaged(at % 8 == 4, |bytes| {
                    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes())
                });
            }
        }
    }
}

#[test]
fn files_may_end_anywhere() {
    for sample in samples() {
        let sectors = sample.bytes.len() / 512;
        for sector in 0..sectors {
            // All of the first, and some of the many that follow.
            if sector < 64 || sector % (sectors / 64 + 1) == 0 || sector + 8 > sectors {
                sample.run(&sample.bytes[..sector * 512], sector % 2 == 0);
                sample.run(&sample.bytes[..sector * 512 + 100], sector % 2 == 1);
            }
        }
    }
}

fn be64(bytes: &[u8], at: usize) -> usize {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize & 0xff_ffff_ffff_fe00
}

/// Tables of qcow2 that are other tables, or themselves, or nowhere.
#[test]
fn tables_that_are_their_own_are_errors() {
    let (memory, files) = memory();
    let kind = CreateOptions {
        block_size: Some(4 * KIB),
        ..CreateOptions::new(Format::Qcow2, SIZE)
    };
    let bytes = sample(&memory, &files, &kind);
    let (l1, reftable) = (be64(&bytes, 40), be64(&bytes, 48));
    let (l2, refblock) = (be64(&bytes, l1), be64(&bytes, reftable));
    let data = be64(&bytes, l2);
    let nowhere = bytes.len() * 2 / 4096 * 4096;
    let flag = 1 << 63;
    let pointers = [
        ("L1 to itself", l1, l1 | flag),
        ("L1 to the refcount table", l1, reftable | flag),
        ("L1 to the header", l1, flag),
        ("L1 to data", l1, data | flag),
        ("L1 to nowhere", l1, nowhere | flag),
        ("L1 to the end of everything", l1, 0x00ff_ffff_ffff_f000 | flag),
        ("L2 to itself", l2, l2 | flag),
        ("L2 to L1", l2, l1 | flag),
        ("L2 to refcounts", l2, refblock | flag),
        ("L2 to nowhere", l2, nowhere | flag),
        ("refcounts to themselves", reftable, reftable),
        ("refcounts to L1", reftable, l1),
        ("refcounts to nowhere", reftable, nowhere),
    ];
    for (name, at, value) in pointers {
        let mut damaged = bytes.clone();
        damaged[at..at + 8].copy_from_slice(&(value as u64).to_be_bytes());
        memory.put("image", Arc::new(MemoryStore::with(&damaged, LIMIT)));
        let image = open(&files, "image", &kind, false);
        let report = image.check(false).unwrap();
        assert!(!report.is_sound() || report.leaks > 0, "{name}: {report:?}");
        drop(image);
        exercise(&files, Format::Qcow2, true);
    }
}

#[test]
fn shared_places_are_errors_in_every_format() {
    for sample in samples() {
        if sample.format == Format::Vmdk && !sample.bytes.starts_with(b"KDMV") {
            continue;
        }
        // The first entry of the table that has a place is put into the next one.
        let (at, width) = match sample.format {
            Format::Qcow2 => (
                be64(&sample.bytes, be64(&sample.bytes, 40)),
                if sample.name.contains("sub") { 16 } else { 8 },
            ),
            Format::Vdi => (1 << 20, 4),
            Format::Vhd => (1536, 4),
            // The table is behind the directory, which is one sector.
            _ => (
                u64::from_le_bytes(sample.bytes[56..64].try_into().unwrap()) as usize * 512 + 512,
                4,
            ),
        };
        let mut bytes = sample.bytes.clone();
        bytes.copy_within(at..at + width, at + width);
        sample.memory.put("image", Arc::new(MemoryStore::with(&bytes, LIMIT)));
        let options = OpenOptions {
            format: Some(sample.format),
            ..OpenOptions::default()
        };
        let image = disk_image::open_in(&sample.files, Path::new("image"), &options).unwrap();
        let report = image.check(false).unwrap();
        assert!(!report.is_sound(), "{}: {report:?}", sample.name);
        drop(image);
        exercise(&sample.files, sample.format, true);
    }
}

#[test]
fn chains_that_go_round_are_refused() {
    for (name, kind) in children(SIZE) {
        let (memory, files) = memory();
        let over = |path: &str, format| CreateOptions {
            parent: Some(ParentReference {
                path: path.into(),
                format,
            }),
            ..kind.clone()
        };
        create(&files, "base.img", &CreateOptions::new(Format::Raw, SIZE));
        create(&files, "b.img", &over("base.img", None));
        create(&files, "a.img", &over("b.img", Some(kind.format)));
        create(&files, "c.img", &over("a.img", Some(kind.format)));
        // a -> b -> a: what was over a becomes b.
        memory.put("b.img", Arc::new(MemoryStore::with(&memory.bytes("c.img"), LIMIT)));
        for path in ["a.img", "b.img"] {
            for write in [false, true] {
                let options = OpenOptions {
                    write,
                    ..OpenOptions::default()
                };
                let error = disk_image::open_in(&files, Path::new(path), &options).err();
                let error = error.unwrap_or_else(|| panic!("{name}: {path} was opened")).to_string();
                assert!(
                    error.contains("itself or one of its children") && !error.contains('\n'),
                    "{name}: {error}"
                );
            }
        }
    }
}
