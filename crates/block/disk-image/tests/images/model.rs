//! Random operations on every kind of image, against an array of bytes.

use std::sync::Arc;

use disk_image::CreateOptions;
use disk_image::ExtentKind;
use disk_image::Files;
use disk_image::Format;
use disk_image::Image;

use crate::kit::KIB;
use crate::kit::MIB;
use crate::kit::Random;
use crate::kit::assert_same;
use crate::kit::children;
use crate::kit::create;
use crate::kit::kinds;
use crate::kit::memory;
use crate::kit::open;
use crate::kit::parent;
use crate::kit::pattern;
use crate::kit::read_all;

/// No whole number of blocks of any kind.
const SIZE: u64 = 2 * MIB + 7 * 512;
const SEEDS: u64 = 4;
const STEPS: u64 = 150;

struct Run<'a> {
    name: String,
    files: Arc<dyn Files>,
    kind: &'a CreateOptions,
    image: Arc<dyn Image>,
    model: Vec<u8>,
    random: Random,
}

impl Run<'_> {
    fn steps(&mut self) {
        for _ in 0..STEPS {
            self.step();
        }
        self.compare();
        self.reopen();
        self.compare();
        self.extents();
        let report = self.image.check(false).unwrap();
        assert!(report.is_sound(), "{}: {:?}", self.name, report.errors);
        assert_eq!(report.leaks, 0, "{}: {:?}", self.name, report.notes);
    }

    fn step(&mut self) {
        let size = self.model.len() as u64;
        let (from, len) = self.random.range(size);
        let (start, end) = (from as usize, (from + len) as usize);
        match self.random.below(16) {
            0..=5 => {
                let bytes = self.random.bytes(len as usize);
                self.image
                    .write_at(from, &bytes)
                    .unwrap_or_else(|error| panic!("{}: {error}", self.name));
                self.model[start..end].copy_from_slice(&bytes);
            }
            6..=8 => {
                self.image
                    .discard(from, len)
                    .unwrap_or_else(|error| panic!("{}: {error}", self.name));
                self.model[start..end].fill(0);
            }
            9..=10 => {
                self.image
                    .write_zeroes(from, len)
                    .unwrap_or_else(|error| panic!("{}: {error}", self.name));
                self.model[start..end].fill(0);
            }
            11 => self.image.flush().unwrap(),
            12 => self.reopen(),
            _ => {
                let mut bytes = vec![0xaa; len as usize];
                self.image.read_at(from, &mut bytes).unwrap();
                assert_same(&self.name, &bytes, &self.model[start..end]);
            }
        }
    }

    fn reopen(&mut self) {
        // The image is closed before it is opened: its last changes are written then.
        let (_, nothing) = memory();
        create(&nothing, "nothing", &CreateOptions::new(Format::Raw, 512));
        self.image = open(&nothing, "nothing", &CreateOptions::new(Format::Raw, 512), false);
        self.image = open(&self.files, "image", self.kind, true);
    }

    fn compare(&self) {
        assert_same(&self.name, &read_all(&*self.image), &self.model);
    }

    /// Extents cover the disk, and those without data are zeros.
    fn extents(&self) {
        let mut at = 0;
        while at < self.model.len() as u64 {
            let extent = self.image.extent(at).unwrap();
            assert!(
                extent.len > 0 && at + extent.len <= self.model.len() as u64,
                "{}: {extent:?} at {at:#x}",
                self.name
            );
            if extent.kind != ExtentKind::Data {
                let part = &self.model[at as usize..(at + extent.len) as usize];
                assert!(
                    part.iter().all(|&byte| byte == 0),
                    "{}: {extent:?} at {at:#x}",
                    self.name
                );
            }
            at += extent.len;
        }
    }
}

#[test]
fn images_behave_like_an_array_of_bytes() {
    for (name, kind) in kinds(SIZE) {
        for seed in 0..SEEDS {
            let (_, files) = memory();
            create(&files, "image", &kind);
            let image = open(&files, "image", &kind, true);
            let mut run = Run {
                name: format!("{name}, seed {seed}"),
                files,
                kind: &kind,
                image,
                model: vec![0; SIZE as usize],
                random: Random::new(seed + 1),
            };
            run.steps();
        }
    }
}

#[test]
fn children_behave_like_an_array_that_begins_as_their_parent() {
    // A parent that is shorter than the child, one that is longer, and one of the same size.
    let parents = [
        (MIB + 5 * 512, CreateOptions::new(Format::Raw, 0)),
        (
            3 * MIB,
            CreateOptions {
                block_size: Some(16 * KIB),
                ..CreateOptions::new(Format::Vdi, 0)
            },
        ),
        (
            SIZE,
            CreateOptions {
                block_size: Some(4 * KIB),
                ..CreateOptions::new(Format::Qcow2, 0)
            },
        ),
        (
            SIZE,
            CreateOptions {
                block_size: Some(32 * KIB),
                ..CreateOptions::new(Format::Vhd, 0)
            },
        ),
        (
            SIZE,
            CreateOptions {
                block_size: Some(8 * KIB),
                ..CreateOptions::new(Format::Vmdk, 0)
            },
        ),
    ];
    for (name, kind) in children(SIZE) {
        for (seed, (parent_size, parent_kind)) in (0..).zip(&parents) {
            let (_, files) = memory();
            let mut random = Random::new(100 + seed);
            let mut model = pattern(&mut random, *parent_size);
            let reference = parent(&files, "base", parent_kind, &model);
            model.resize(SIZE as usize, 0);
            let kind = CreateOptions {
                parent: Some(reference),
                ..kind.clone()
            };
            create(&files, "image", &kind);
            let image = open(&files, "image", &kind, true);
            let name = format!("{name} over {}, seed {seed}", parent_kind.format);
            let mut run = Run {
                name,
                files,
                kind: &kind,
                image,
                model,
                random,
            };
            run.compare();
            run.steps();
        }
    }
}

/// Threads on parts of their own, with flushes in between.
#[test]
fn threads_do_not_disturb_each_other() {
    for (name, kind) in kinds(SIZE) {
        let (_, files) = memory();
        create(&files, "image", &kind);
        let image = open(&files, "image", &kind, true);
        let part = SIZE / 4;
        let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|index| {
                    let image = &image;
                    scope.spawn(move || {
                        let mut random = Random::new(index + 7);
                        let mut model = vec![0; part as usize];
                        for _ in 0..60 {
                            let (from, len) = random.range(part);
                            let range = from as usize..(from + len) as usize;
                            match random.below(4) {
                                0 => {
                                    image.discard(index * part + from, len).unwrap();
                                    model[range].fill(0);
                                }
                                1 => image.flush().unwrap(),
                                _ => {
                                    let bytes = random.bytes(len as usize);
                                    image.write_at(index * part + from, &bytes).unwrap();
                                    model[range].copy_from_slice(&bytes);
                                }
                            }
                        }
                        model
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut model = models.concat();
        model.resize(SIZE as usize, 0);
        assert_same(name, &read_all(&*image), &model);
        image.flush().unwrap();
        let report = image.check(false).unwrap();
        assert!(report.is_sound(), "{name}: {:?}", report.errors);
    }
}
