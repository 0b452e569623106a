//! Files past the host's page cache: any access is right, whatever the file system's blocks are.

use std::path::Path;
use std::sync::Arc;

use disk_image::Access;
use disk_image::Files;
use disk_image::HostFiles;
use disk_image::Store;

use crate::kit::KIB;
use crate::kit::MIB;
use crate::kit::Random;
use crate::kit::children;
use crate::kit::create;
use crate::kit::kinds;
use crate::kit::open;
use crate::kit::parent;
use crate::kit::pattern;
use crate::kit::read_all;
use crate::qemu::path;
use crate::qemu::scribble;

const SIZE: u64 = 2 * MIB + 9 * 512;

fn files(direct: bool) -> Arc<dyn Files> {
    Arc::new(HostFiles { sync: false, direct })
}

/// A folder, if its file system takes direct accesses.
fn folder(test: &str) -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir().unwrap();
    match files(true).open(&folder.path().join("probe"), Access::Create) {
        Ok(_) => Some(folder),
        Err(error) => {
            eprintln!("SKIPPED {test}: {error}");
            None
        }
    }
}

fn contents(store: &dyn Store) -> Vec<u8> {
    let mut bytes = vec![0; store.length().unwrap() as usize];
    assert_eq!(store.read_at(0, &mut bytes).unwrap(), bytes.len());
    bytes
}

#[test]
fn file_past_the_cache_holds_what_a_plain_one_would() {
    let Some(folder) = folder("file_past_the_cache_holds_what_a_plain_one_would") else {
        return;
    };
    for seed in 0..8 {
        let name = folder.path().join(format!("file{seed}"));
        let (store, _) = files(true).open(&name, Access::Create).unwrap();
        let (mut random, mut model) = (Random::new(seed), Vec::<u8>::new());
        for _ in 0..200 {
            let (from, len) = random.range(200 * KIB);
            let (from, len) = (from as usize, len as usize);
            match random.below(8) {
                0 => {
                    store.set_len(from as u64).unwrap();
                    model.resize(from, 0);
                }
                1 if from + len <= model.len() => {
                    store.zero(from as u64, len as u64, seed % 2 == 0).unwrap();
                    model[from..from + len].fill(0);
                }
                2 | 3 => {
                    let mut got = vec![0xee; len];
                    let count = store.read_at(from as u64, &mut got).unwrap();
                    let there = model.get(from..).unwrap_or_default();
                    assert_eq!(count, there.len().min(len), "seed {seed}: {from:#x}, {len:#x}");
                    assert!(got[..count] == there[..count], "seed {seed}: {from:#x}, {len:#x}");
                }
                _ => {
                    let bytes = random.bytes(len);
                    store.write_at(from as u64, &bytes).unwrap();
                    model.resize(model.len().max(from + len), 0);
                    model[from..from + len].copy_from_slice(&bytes);
                }
            }
            assert_eq!(store.length().unwrap(), model.len() as u64, "seed {seed}");
        }
        assert!(contents(&*store) == model, "seed {seed}");
        drop(store);
        assert!(std::fs::read(&name).unwrap() == model, "seed {seed}: by other programs");
    }
}

#[test]
fn neighbours_in_a_block_lose_nothing_of_each_other() {
    let Some(folder) = folder("neighbours_in_a_block_lose_nothing_of_each_other") else {
        return;
    };
    const SECTORS: usize = 16;
    let (store, _) = files(true).open(&folder.path().join("file"), Access::Create).unwrap();
    store.set_len(SECTORS as u64 * 512).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for round in 1..=50u8 {
                    for sector in (thread..SECTORS).step_by(4) {
                        store.write_at(sector as u64 * 512, &[round; 512]).unwrap();
                        let mut got = [0; 512];
                        store.read_at(sector as u64 * 512, &mut got).unwrap();
                        assert_eq!(got, [round; 512], "sector {sector}");
                    }
                }
            });
        }
    });
    assert!(contents(&*store) == [50; SECTORS * 512]);
}

#[test]
fn images_of_every_kind_are_the_same_with_and_without_the_cache() {
    let Some(folder) = folder("images_of_every_kind_are_the_same_with_and_without_the_cache") else {
        return;
    };
    let check = |name: &str, kind: &disk_image::CreateOptions, mut model: Vec<u8>, seed: u64| {
        let file = path(&folder, &format!("image{seed}"));
        create(&files(true), &file, kind);
        let image = open(&files(true), &file, kind, true);
        scribble(&*image, &mut model, &mut Random::new(seed), 60);
        assert!(read_all(&*image) == model, "{name}");
        drop(image);
        assert!(read_all(&*open(&files(false), &file, kind, false)) == model, "{name}");
        assert!(read_all(&*open(&files(true), &file, kind, false)) == model, "{name}");
    };
    for (seed, (name, kind)) in (0..).zip(kinds(SIZE)) {
        check(name, &kind, vec![0; SIZE as usize], seed);
    }
    for (seed, (name, kind)) in (100..).zip(children(SIZE)) {
        let bytes = pattern(&mut Random::new(seed), SIZE);
        let reference = parent(&files(true), &path(&folder, &format!("parent{seed}")), &kind, &bytes);
        let kind = disk_image::CreateOptions {
            parent: Some(reference),
            ..kind
        };
        check(name, &kind, bytes, seed);
    }
}

#[test]
fn file_system_without_direct_accesses_is_told() {
    // A plain file by its kind, made by the kernel as it is read.
    let plain = Path::new("/proc/version");
    if files(false).open(plain, Access::Read).is_err() {
        eprintln!("SKIPPED file_system_without_direct_accesses_is_told: there is no /proc");
        return;
    }
    let error = files(true).open(plain, Access::Read).unwrap_err().to_string();
    assert!(
        error.contains("/proc/version") && error.contains("cache=writeback"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1);
}
