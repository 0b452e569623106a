//! Damaged disk images of every format, with and without a parent, read, checked, written and repaired.
//!
//! ```text
//!   byte 0      template: a sound image with some data, or an empty file
//!   byte 1      bit 0: open for writing, bit 1: make checksums right after the damage, bit 2: find the format
//!   byte 2      number of patches, each: offset (4 bytes), length (1 byte), bytes
//!   rest        operations: kind (1 byte), offset (4 bytes), length (2 bytes)
//! ```

use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;

use disk_image::Compression;
use disk_image::CreateOptions;
use disk_image::Files;
use disk_image::Format;
use disk_image::Image;
use disk_image::MemoryFiles;
use disk_image::MemoryStore;
use disk_image::OpenOptions;
use disk_image::ParentReference;
use disk_image::Result;
use disk_image::Variant;

use crate::input::Input;

const SIZE: u64 = 192 << 10;
const PARENT: u64 = 160 << 10;
/// What an image may grow to.
const LIMIT: usize = 24 << 20;
/// Operations are of at most this many bytes.
const PIECE: u64 = 65536;

struct Template {
    format: Format,
    bytes: Vec<u8>,
}

/// Executes one input.
///
/// # Panics
/// When the image makes the code panic, or an error is not of one line.
pub fn run(data: &[u8]) {
    static TEMPLATES: OnceLock<Vec<Template>> = OnceLock::new();
    let templates = TEMPLATES.get_or_init(templates);
    let mut input = Input::new(data);
    let (template, flags) = (usize::from(input.byte()), input.byte());
    let template = &templates[template % templates.len()];
    let mut bytes = template.bytes.clone();
    for _ in 0..input.byte() {
        let (at, len) = (number(&mut input, 4), input.byte());
        let patch = input.bytes(len.into()).to_vec();
        let at = at as usize % (LIMIT / 4);
        if patch.is_empty() {
            continue;
        }
        bytes.resize(bytes.len().max(at + patch.len()), 0);
        bytes[at..at + patch.len()].copy_from_slice(&patch);
    }
    if flags & 2 != 0 && template.format == Format::Vhd {
        make_right(&mut bytes);
    }
    let memory = MemoryFiles::default();
    put_parent(&memory);
    memory.put("image", Arc::new(MemoryStore::with(&bytes, LIMIT)));
    let files: Arc<dyn Files> = Arc::new(memory);
    let options = OpenOptions {
        write: flags & 1 != 0,
        format: (flags & 4 == 0).then_some(template.format),
        share: false,
    };
    let Some(image) = checked(disk_image::open_in(&files, Path::new("image"), &options)) else {
        return;
    };
    walk(&*image);
    while !input.is_empty() {
        let (kind, at, len) = (input.byte(), number(&mut input, 4), number(&mut input, 2));
        operate(&*image, kind, at, len);
    }
    checked(image.check(false));
    if flags & 1 != 0 {
        checked(image.check(true));
        checked(image.write_at(0, &[1; 512]));
        checked(image.flush());
    }
}

fn number(input: &mut Input<'_>, bytes: usize) -> u64 {
    (0..bytes).fold(0, |number, _| number << 8 | u64::from(input.byte()))
}

fn checked<T>(result: Result<T>) -> Option<T> {
    if let Err(error) = &result {
        assert!(!error.to_string().contains('\n'), "one line: {error}");
    }
    result.ok()
}

/// Reads what there is, as far as that is little.
fn walk(image: &dyn Image) {
    let size = image.info().size;
    let mut buf = vec![0; PIECE as usize];
    let mut at = 0;
    for _ in 0..32 {
        if at >= size {
            return;
        }
        let Some(extent) = checked(image.extent(at)) else {
            return;
        };
        assert!(
            extent.len > 0 && at + extent.len <= size,
            "{extent:?} at {at:#x} of {size:#x}"
        );
        let len = extent.len.min(PIECE);
        checked(image.read_at(at, &mut buf[..len as usize]));
        at += extent.len;
    }
}

fn operate(image: &dyn Image, kind: u8, at: u64, len: u64) {
    let size = image.info().size.max(1);
    // Mostly within the disk.
    let at = if kind & 0x80 != 0 { at << 32 } else { at % size };
    let len = len.min(PIECE);
    match kind % 7 {
        0 => drop(checked(image.read_at(at, &mut vec![0; len as usize]))),
        1 => drop(checked(image.write_at(at, &vec![0x5a; len as usize]))),
        2 => drop(checked(image.discard(at, len))),
        3 => drop(checked(image.write_zeroes(at, len))),
        4 => drop(checked(image.flush())),
        5 => drop(checked(image.extent(at))),
        _ => drop(checked(image.resize((at + len) / 512 * 512 % (1 << 30)))),
    }
}

/// Checksums of a VHD, so that damage gets past them.
fn make_right(bytes: &mut [u8]) {
    for (from, len, at) in [(0, 512, 64), (512, 1024, 36)] {
        let Some(part) = bytes.get_mut(from..from + len) else {
            return;
        };
        part[at..at + 4].fill(0);
        let sum: u32 = part.iter().fold(0, |sum, &byte| sum.wrapping_add(byte.into()));
        part[at..at + 4].copy_from_slice(&(!sum).to_be_bytes());
    }
}

fn put_parent(memory: &MemoryFiles) {
    static BYTES: [u8; PARENT as usize] = [7; PARENT as usize];
    memory.put("base", Arc::new(MemoryStore::with(&BYTES, LIMIT)));
}

fn templates() -> Vec<Template> {
    let new = |format| CreateOptions::new(format, SIZE);
    let block = |format, block| CreateOptions {
        block_size: Some(block),
        ..new(format)
    };
    let parent = Some(ParentReference {
        path: "base".into(),
        format: Some(Format::Raw),
    });
    let plain = [
        block(Format::Qcow2, 4096),
        CreateOptions {
            variant: Variant::V2,
            ..block(Format::Qcow2, 512)
        },
        CreateOptions {
            subclusters: true,
            ..block(Format::Qcow2, 16384)
        },
        CreateOptions {
            compression: Compression::Zstd,
            ..block(Format::Qcow2, 4096)
        },
        block(Format::Vdi, 8192),
        block(Format::Vmdk, 8192),
        CreateOptions {
            variant: Variant::MonolithicFlat,
            ..new(Format::Vmdk)
        },
        CreateOptions {
            variant: Variant::StreamOptimized,
            ..new(Format::Vmdk)
        },
        block(Format::Vhd, 16384),
    ];
    let mut all: Vec<Template> = Vec::new();
    for kind in plain {
        let flat = [Variant::MonolithicFlat, Variant::StreamOptimized].contains(&kind.variant);
        all.push(template(&kind));
        if !flat {
            all.push(template(&CreateOptions {
                parent: parent.clone(),
                ..kind
            }));
        }
    }
    for format in [Format::Vhdx, Format::Qcow2, Format::Vdi, Format::Vmdk, Format::Vhd] {
        all.push(Template {
            format,
            bytes: Vec::new(),
        });
    }
    all
}

/// A sound image with some data, compressed where the format has that.
fn template(kind: &CreateOptions) -> Template {
    let memory = MemoryFiles::default();
    put_parent(&memory);
    let files: Arc<dyn Files> = Arc::new(memory.clone());
    let open = |name, write| {
        let options = OpenOptions {
            write,
            format: None,
            share: false,
        };
        disk_image::open_in(&files, Path::new(name), &options).expect("the template is sound")
    };
    let source = CreateOptions {
        size: Some(SIZE),
        ..CreateOptions::new(Format::Raw, SIZE)
    };
    disk_image::create(&files, Path::new("source"), &source).expect("memory takes a file");
    let source = open("source", true);
    source.write_at(0, &[1; 5000]).expect("memory takes data");
    source.write_at(SIZE / 2, &[2; 30_000]).expect("memory takes data");
    let compress = kind.compression == Compression::Zstd || kind.variant == Variant::V2;
    disk_image::copy(&files, &*source, Path::new("image"), kind, compress, &mut |_| Ok(()))
        .expect("the kind is possible");
    Template {
        format: kind.format,
        bytes: memory.bytes("image"),
    }
}
