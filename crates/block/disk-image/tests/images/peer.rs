//! qcow2 against `imago`, the library that libkrun uses.

use std::path::Path;

use disk_image::CreateOptions;
use disk_image::Format;
use disk_image::OpenOptions;
use disk_image::Variant;
use imago::FormatAccess;
use imago::FormatDriverBuilder;
use imago::PermissiveImplicitOpenGate;
use imago::file::File;
use imago::qcow2::Qcow2;

use crate::kit::KIB;
use crate::kit::MIB;
use crate::kit::Random;
use crate::kit::assert_same;
use crate::kit::create;
use crate::kit::open;
use crate::kit::parent;
use crate::kit::pattern;
use crate::kit::read_all;
use crate::qemu::host;
use crate::qemu::path;
use crate::qemu::scribble;

const SIZE: u64 = 4 * MIB + 7 * 512;

fn peer(path: &str, write: bool) -> FormatAccess<File> {
    let builder = Qcow2::<File>::builder_path(path).write(write);
    FormatAccess::new(builder.open(PermissiveImplicitOpenGate::default()).unwrap())
}

fn peer_reads(path: &str) -> Vec<u8> {
    let mut bytes = vec![0xaa; SIZE as usize];
    peer(path, false).read(&mut bytes[..], 0).unwrap();
    bytes
}

#[test]
fn imago_reads_what_we_write_and_we_read_what_it_writes() {
    let variants = [
        (Variant::V3, 4 * KIB, false),
        (Variant::V3, 64 * KIB, true),
        (Variant::V2, 64 * KIB, false),
        (Variant::V2, 512, true),
    ];
    for (seed, (variant, block, over_parent)) in (0..).zip(variants) {
        let (folder, files) = host();
        let mut random = Random::new(5000 + seed);
        let mut kind = CreateOptions {
            variant,
            block_size: Some(block),
            ..CreateOptions::new(Format::Qcow2, SIZE)
        };
        let mut model = vec![0; SIZE as usize];
        if over_parent {
            model = pattern(&mut random, SIZE);
            let raw = CreateOptions::new(Format::Raw, 0);
            kind.parent = Some(parent(&files, &path(&folder, "base.raw"), &raw, &model));
        }
        let file = path(&folder, "image.qcow2");
        create(&files, &file, &kind);
        for _ in 0..3 {
            let image = open(&files, &file, &kind, true);
            scribble(&*image, &mut model, &mut random, 40);
            drop(image);
            assert_same("read by imago", &peer_reads(&file), &model);
            let image = peer(&file, true);
            for _ in 0..20 {
                let (from, len) = random.range(SIZE);
                let bytes = random.bytes(len as usize);
                image.write(&bytes[..], from).unwrap();
                model[from as usize..(from + len) as usize].copy_from_slice(&bytes);
            }
            image.flush().unwrap();
            drop(image);
            let image = open(&files, &file, &kind, false);
            assert_same("written by imago", &read_all(&*image), &model);
            let report = image.check(false).unwrap();
            assert!(report.is_sound(), "{report:?}");
        }
    }
}

#[test]
fn imago_reads_what_we_compress() {
    let (folder, files) = host();
    let model: Vec<u8> = (0..SIZE).map(|at| (at / 3000) as u8).collect();
    let raw = CreateOptions::new(Format::Raw, 0);
    parent(&files, &path(&folder, "source.raw"), &raw, &model);
    let source = disk_image::open_in(&files, Path::new(&path(&folder, "source.raw")), &OpenOptions::default()).unwrap();
    let kind = CreateOptions::new(Format::Qcow2, SIZE);
    let file = path(&folder, "packed.qcow2");
    disk_image::copy(&files, &*source, Path::new(&file), &kind, true, &mut |_| Ok(())).unwrap();
    assert_same("packed", &peer_reads(&file), &model);
}
