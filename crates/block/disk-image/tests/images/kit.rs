//! What the tests share: kinds of images, random numbers, and whole contents.

use std::path::Path;
use std::sync::Arc;

use disk_image::BlockBackend;
use disk_image::CreateOptions;
use disk_image::Files;
use disk_image::Format;
use disk_image::Image;
use disk_image::MemoryFiles;
use disk_image::OpenOptions;
use disk_image::ParentReference;
use disk_image::Variant;

pub(crate) const KIB: u64 = 1024;
pub(crate) const MIB: u64 = 1 << 20;

/// A generator of numbers that look random: xorshift64*.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8 | 1).collect()
    }

    /// A range of a disk: often whole sectors or blocks, sometimes any bytes, sometimes to the end.
    pub(crate) fn range(&mut self, size: u64) -> (u64, u64) {
        let unit = [1, 512, 4096, 65536][self.below(4) as usize];
        let from = self.below(size) / unit * unit;
        let len = (1 + self.below(3)) * unit * (1 + self.below(4) * self.below(2) * 16);
        let len = if self.below(16) == 0 { size } else { len.max(1) };
        (from, len.min(size - from))
    }
}

/// A kind of image and its name in messages.
pub(crate) type Kind = (&'static str, CreateOptions);

/// All kinds that can be written at random, with small blocks, so that little data fills many.
pub(crate) fn kinds(size: u64) -> Vec<Kind> {
    let new = |format| CreateOptions::new(format, size);
    let variant = |format, variant, block_size| CreateOptions {
        variant,
        block_size,
        ..new(format)
    };
    vec![
        ("raw", new(Format::Raw)),
        ("qcow2 v3", variant(Format::Qcow2, Variant::V3, Some(4 * KIB))),
        ("qcow2 v3 64K", new(Format::Qcow2)),
        ("qcow2 v2", variant(Format::Qcow2, Variant::V2, Some(512))),
        (
            "qcow2 lazy",
            CreateOptions {
                lazy_refcounts: true,
                ..variant(Format::Qcow2, Variant::V3, Some(8 * KIB))
            },
        ),
        (
            "qcow2 subclusters",
            CreateOptions {
                subclusters: true,
                ..variant(Format::Qcow2, Variant::V3, Some(16 * KIB))
            },
        ),
        ("vdi", variant(Format::Vdi, Variant::Default, Some(16 * KIB))),
        ("vdi 1M", new(Format::Vdi)),
        ("vdi fixed", variant(Format::Vdi, Variant::Fixed, Some(16 * KIB))),
        (
            "vmdk sparse",
            variant(Format::Vmdk, Variant::MonolithicSparse, Some(8 * KIB)),
        ),
        ("vmdk split", variant(Format::Vmdk, Variant::TwoGbMaxExtentSparse, None)),
        ("vmdk flat", variant(Format::Vmdk, Variant::MonolithicFlat, None)),
        (
            "vmdk split flat",
            variant(Format::Vmdk, Variant::TwoGbMaxExtentFlat, None),
        ),
        ("vhd", variant(Format::Vhd, Variant::Default, Some(32 * KIB))),
        ("vhd 2M", new(Format::Vhd)),
        ("vhd fixed", variant(Format::Vhd, Variant::Fixed, None)),
    ]
}

/// Those that can have a parent.
pub(crate) fn children(size: u64) -> Vec<Kind> {
    let flat = [Variant::Fixed, Variant::MonolithicFlat, Variant::TwoGbMaxExtentFlat];
    kinds(size)
        .into_iter()
        .filter(|(_, kind)| kind.format != Format::Raw && !flat.contains(&kind.variant))
        .collect()
}

pub(crate) fn memory() -> (MemoryFiles, Arc<dyn Files>) {
    let files = MemoryFiles::default();
    (files.clone(), Arc::new(files))
}

pub(crate) fn open(files: &Arc<dyn Files>, path: &str, kind: &CreateOptions, write: bool) -> Arc<dyn Image> {
    let options = OpenOptions {
        write,
        format: Some(kind.format),
        share: false,
    };
    disk_image::open_in(files, Path::new(path), &options).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub(crate) fn create(files: &Arc<dyn Files>, path: &str, kind: &CreateOptions) {
    disk_image::create(files, Path::new(path), kind).unwrap_or_else(|error| panic!("{path}: {error}"));
}

/// A parent's bytes: runs of data and of nothing.
pub(crate) fn pattern(random: &mut Random, size: u64) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for run in bytes.chunks_mut(24 * 1024) {
        if random.below(3) > 0 {
            run.copy_from_slice(&random.bytes(run.len()));
        }
    }
    bytes
}

/// Makes a parent with these bytes.
pub(crate) fn parent(files: &Arc<dyn Files>, path: &str, kind: &CreateOptions, bytes: &[u8]) -> ParentReference {
    let kind = CreateOptions {
        size: Some(bytes.len() as u64),
        ..kind.clone()
    };
    create(files, path, &kind);
    let image = open(files, path, &kind, true);
    for (index, piece) in bytes.chunks(4096).enumerate() {
        if piece.iter().any(|&byte| byte != 0) {
            image.write_at(index as u64 * 4096, piece).unwrap();
        }
    }
    image.flush().unwrap();
    ParentReference {
        path: path.into(),
        format: Some(kind.format),
    }
}

pub(crate) fn read_all(image: &dyn BlockBackend) -> Vec<u8> {
    let mut bytes = vec![0; image.info().size as usize];
    image.read_at(0, &mut bytes).unwrap_or_else(|error| panic!("{error}"));
    bytes
}

/// The same bytes, with the place of the first difference in the message.
pub(crate) fn assert_same(name: &str, found: &[u8], wanted: &[u8]) {
    assert_eq!(found.len(), wanted.len(), "{name}: length");
    if let Some(at) = found.iter().zip(wanted).position(|(a, b)| a != b) {
        panic!("{name}: byte {at:#x} is {:#x}, not {:#x}", found[at], wanted[at]);
    }
}
