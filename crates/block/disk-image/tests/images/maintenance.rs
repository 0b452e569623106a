//! Resizing, compacting, converting, comparing.

use std::path::Path;
use std::sync::Arc;

use disk_image::BlockBackend;
use disk_image::Comparison;
use disk_image::Compression;
use disk_image::CreateOptions;
use disk_image::Files;
use disk_image::Format;
use disk_image::HostFiles;
use disk_image::OpenOptions;
use disk_image::ParentReference;
use disk_image::Progress;
use disk_image::Variant;

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

const SIZE: u64 = MIB + 3 * 512;

fn several_files(kind: &CreateOptions) -> bool {
    [
        Variant::MonolithicFlat,
        Variant::TwoGbMaxExtentFlat,
        Variant::TwoGbMaxExtentSparse,
    ]
    .contains(&kind.variant)
}

#[test]
fn resized_disks_keep_their_bytes_and_grow_by_zeros() {
    for (name, kind) in kinds(SIZE) {
        if several_files(&kind) {
            continue;
        }
        let (_, files) = memory();
        let mut model = pattern(&mut Random::new(5), SIZE);
        model[SIZE as usize - 512..].fill(0xee);
        parent(&files, "image", &kind, &model);
        for size in [3 * MIB + 512, 40 * MIB, MIB / 2 + 512, MIB] {
            disk_image::resize(&files, Path::new("image"), &OpenOptions::default(), size, &mut |_| {
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
            model.resize(size as usize, 0);
            let image = open(&files, "image", &kind, true);
            assert_same(&format!("{name} to {size}"), &read_all(&*image), &model);
            let report = image.check(false).unwrap();
            assert!(report.is_sound() && report.leaks == 0, "{name} to {size}: {report:?}");
            image.write_at(size - 512, &[0x11; 512]).unwrap();
            model[size as usize - 512..].fill(0x11);
        }
    }
}

#[test]
fn grown_children_do_not_show_what_their_parent_has_behind() {
    for (name, kind) in children(SIZE) {
        if several_files(&kind) {
            continue;
        }
        let (_, files) = memory();
        let base = parent(
            &files,
            "base",
            &CreateOptions::new(Format::Raw, 0),
            &vec![0xbb; 4 * MIB as usize],
        );
        let kind = CreateOptions {
            parent: Some(base),
            ..kind
        };
        create(&files, "image", &kind);
        disk_image::resize(
            &files,
            Path::new("image"),
            &OpenOptions::default(),
            5 * MIB,
            &mut |_| Ok(()),
        )
        .unwrap();
        let mut model = vec![0xbb; SIZE as usize];
        model.resize(5 * MIB as usize, 0);
        let image = open(&files, "image", &kind, false);
        assert_same(name, &read_all(&*image), &model);
        assert!(image.check(false).unwrap().is_sound());
    }
}

#[test]
fn compacted_images_are_smaller_and_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let files: Arc<dyn Files> = Arc::new(HostFiles {
        sync: false,
        ..HostFiles::default()
    });
    for (name, kind) in kinds(8 * MIB) {
        if several_files(&kind) && kind.variant == Variant::TwoGbMaxExtentSparse {
            continue;
        }
        let path = folder.path().join(format!("{name}.img"));
        let text = path.display().to_string();
        create(&files, &text, &kind);
        let image = open(&files, &text, &kind, true);
        image.write_at(0, &vec![0x42; 8 * MIB as usize]).unwrap();
        // Zeros that were written as data.
        image.write_at(MIB, &vec![0; 6 * MIB as usize]).unwrap();
        drop(image);
        let mut model = vec![0x42; 8 * MIB as usize];
        model[MIB as usize..7 * MIB as usize].fill(0);
        let options = OpenOptions {
            format: Some(kind.format),
            ..OpenOptions::default()
        };
        let mut last = Progress { done: 0, total: 0 };
        let (before, after) = disk_image::compact(&files, &path, &options, &mut |progress| {
            assert!(progress.done >= last.done && progress.done <= progress.total);
            last = progress;
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(last.done, last.total, "{name}");
        assert!(before >= 8 * MIB && after <= 5 * MIB, "{name}: {before} to {after}");
        let image = open(&files, &text, &kind, false);
        assert_same(name, &read_all(&*image), &model);
        let report = image.check(false).unwrap();
        assert!(report.is_sound() && report.leaks == 0, "{name}: {report:?}");
    }
    // Nothing is left beside the images.
    let names = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with('.')).count(), 0);
}

#[test]
fn compacted_parents_keep_their_children() {
    for format in [Format::Vdi, Format::Vmdk, Format::Vhd, Format::Qcow2] {
        let (_, files) = memory();
        let kind = CreateOptions::new(format, 4 * MIB);
        let model = pattern(&mut Random::new(8), 4 * MIB);
        let base = parent(&files, "base", &kind, &model);
        let child = CreateOptions {
            parent: Some(base),
            ..kind
        };
        create(&files, "child", &child);
        disk_image::compact(&files, Path::new("base"), &OpenOptions::default(), &mut |_| Ok(())).unwrap();
        assert_same(format.name(), &read_all(&*open(&files, "child", &child, false)), &model);
        // The child itself: only its own blocks stay in it.
        let image = open(&files, "child", &child, true);
        image.discard(MIB, 2 * MIB).unwrap();
        image.write_at(0, &[1; 512]).unwrap();
        drop(image);
        let mut model = model;
        model[MIB as usize..3 * MIB as usize].fill(0);
        model[..512].fill(1);
        disk_image::compact(&files, Path::new("child"), &OpenOptions::default(), &mut |_| Ok(())).unwrap();
        let image = open(&files, "child", &child, false);
        assert_same(format.name(), &read_all(&*image), &model);
        assert!(image.parent().is_some());
        assert_eq!(image.extent(4 * MIB - 512).unwrap().depth, 1, "{format}");
    }
}

#[test]
fn compacted_images_stay_compressed() {
    let (memory, files) = memory();
    let model: Vec<u8> = (0..MIB).map(|at| (at / 3000) as u8).collect();
    parent(&files, "source", &CreateOptions::new(Format::Raw, 0), &model);
    let source = disk_image::open_in(&files, Path::new("source"), &OpenOptions::default()).unwrap();
    let stream = CreateOptions {
        variant: Variant::StreamOptimized,
        ..CreateOptions::new(Format::Vmdk, MIB)
    };
    for (name, kind) in [("a", CreateOptions::new(Format::Qcow2, MIB)), ("b", stream)] {
        disk_image::copy(&files, &*source, Path::new(name), &kind, true, &mut |_| Ok(())).unwrap();
        let before = memory.bytes(name).len();
        if kind.format == Format::Qcow2 {
            disk_image::compact(&files, Path::new(name), &OpenOptions::default(), &mut |_| Ok(())).unwrap();
        }
        assert!(
            memory.bytes(name).len() <= before && before < MIB as usize / 2,
            "{name}: {before}"
        );
        assert_same(name, &read_all(&*open(&files, name, &kind, false)), &model);
    }
}

#[test]
fn every_format_converts_to_every_other() {
    let (_, files) = memory();
    let model = pattern(&mut Random::new(12), SIZE);
    let mut all = kinds(SIZE);
    all.push((
        "vmdk stream",
        CreateOptions {
            variant: Variant::StreamOptimized,
            ..CreateOptions::new(Format::Vmdk, SIZE)
        },
    ));
    all.push((
        "qcow2 zstd",
        CreateOptions {
            compression: Compression::Zstd,
            ..CreateOptions::new(Format::Qcow2, SIZE)
        },
    ));
    parent(&files, "/source.raw", &CreateOptions::new(Format::Raw, 0), &model);
    let raw = disk_image::open_in(&files, Path::new("/source.raw"), &OpenOptions::default()).unwrap();
    for (index, (name, kind)) in all.iter().enumerate() {
        let first = format!("/a{index}.img");
        let compress = kind.compression == Compression::Zstd;
        disk_image::copy(&files, &*raw, Path::new(&first), kind, compress, &mut |_| Ok(())).unwrap();
        let source = open(&files, &first, kind, false);
        assert_same(name, &read_all(&*source), &model);
        assert!(source.check(false).unwrap().is_sound(), "{name}");
        for (other, kind) in &all {
            disk_image::copy(&files, &*source, Path::new("/b.img"), kind, false, &mut |_| Ok(())).unwrap();
            let target = open(&files, "/b.img", kind, false);
            let equal = disk_image::compare(&*source, &*target, &mut |_| Ok(())).unwrap();
            assert_eq!(equal, Comparison::Equal, "{name} to {other}");
            for path in target.files() {
                files.remove(&path).unwrap();
            }
        }
    }
}

#[test]
fn copies_over_a_parent_hold_only_the_difference() {
    let (_, files) = memory();
    let base = pattern(&mut Random::new(20), SIZE);
    let reference = parent(&files, "base", &CreateOptions::new(Format::Raw, 0), &base);
    let mut model = base.clone();
    model[100_000..300_000].fill(0);
    model[5000..6000].fill(3);
    parent(&files, "new", &CreateOptions::new(Format::Raw, 0), &model);
    let source = disk_image::open_in(&files, Path::new("new"), &OpenOptions::default()).unwrap();
    let kind = CreateOptions {
        parent: Some(reference),
        block_size: Some(4 * KIB),
        ..CreateOptions::new(Format::Qcow2, SIZE)
    };
    disk_image::copy(&files, &*source, Path::new("child"), &kind, false, &mut |_| Ok(())).unwrap();
    let child = open(&files, "child", &kind, false);
    assert_same("child", &read_all(&*child), &model);
    // Of the data, one cluster or two; the zeros need none.
    assert_eq!(child.check(false).unwrap().allocated, 2);
}

#[test]
fn blocks_are_compressed_wherever_data_begins() {
    let (memory, files) = memory();
    let model: Vec<u8> = (0..2 * MIB)
        .map(|at| if at % 65536 < 12288 { 0 } else { (at / 3000) as u8 | 1 })
        .collect();
    parent(&files, "source", &CreateOptions::new(Format::Raw, 0), &model);
    let source = disk_image::open_in(&files, Path::new("source"), &OpenOptions::default()).unwrap();
    assert!(source.extent(0).unwrap().len < 64 * KIB, "the source has no holes");
    let kind = CreateOptions::new(Format::Qcow2, 2 * MIB);
    disk_image::copy(&files, &*source, Path::new("packed"), &kind, true, &mut |_| Ok(())).unwrap();
    let image = open(&files, "packed", &kind, false);
    assert_same("packed", &read_all(&*image), &model);
    let report = image.check(false).unwrap();
    assert_eq!((report.compressed, report.allocated), (32, 32));
    assert!(memory.bytes("packed").len() < MIB as usize);
}

#[test]
fn stopped_operations_leave_everything_as_it_was() {
    let (memory, files) = memory();
    let model = pattern(&mut Random::new(41), 4 * MIB);
    for (name, kind) in kinds(4 * MIB) {
        parent(&files, "source.img", &kind, &model);
        let before: Vec<_> = memory.names();
        let source = open(&files, "source.img", &kind, false);
        let stop = |progress: Progress| match progress.done > MIB {
            true => Err(disk_image::BlockError::Stopped { signal: 2 }),
            false => Ok(()),
        };
        for (to, kind) in kinds(4 * MIB) {
            let result = disk_image::copy(&files, &*source, Path::new("target.img"), &kind, false, &mut { stop });
            assert!(
                matches!(result, Err(disk_image::BlockError::Stopped { signal: 2 })),
                "{name} to {to}"
            );
            assert_eq!(memory.names(), before, "{name} to {to}");
        }
        drop(source);
        if !several_files(&kind) {
            let options = OpenOptions {
                format: Some(kind.format),
                ..OpenOptions::default()
            };
            let _ = disk_image::compact(&files, Path::new("source.img"), &options, &mut { stop });
            let _ = disk_image::resize(&files, Path::new("source.img"), &options, 2 * MIB, &mut { stop });
            assert_eq!(memory.names(), before, "{name}");
        }
        for path in before {
            files.remove(&path).unwrap();
        }
    }
}

#[test]
fn comparison_says_where_disks_differ() {
    let (_, files) = memory();
    let model = pattern(&mut Random::new(30), SIZE);
    for name in ["a", "b"] {
        parent(&files, name, &CreateOptions::new(Format::Qcow2, 0), &model);
    }
    let raw = |name: &str| disk_image::open_in(&files, Path::new(name), &OpenOptions::writable()).unwrap();
    let (a, b) = (raw("a"), raw("b"));
    let compare = |a: &dyn BlockBackend, b: &dyn BlockBackend| disk_image::compare(a, b, &mut |_| Ok(())).unwrap();
    assert_eq!(compare(&*a, &*b), Comparison::Equal);
    b.write_at(777_777, &[!model[777_777]]).unwrap();
    assert_eq!(compare(&*a, &*b), Comparison::Different { offset: 777_777 });
    b.write_at(777_777, &[model[777_777]]).unwrap();
    assert!(b.resize(2 * SIZE).unwrap());
    assert_eq!(compare(&*a, &*b), Comparison::Longer { size: SIZE });
    b.write_at(SIZE, &[1]).unwrap();
    assert_eq!(compare(&*a, &*b), Comparison::Different { offset: SIZE });
}

#[test]
fn failed_copy_leaves_nothing_behind() {
    let (_, files) = memory();
    create(&files, "a.img", &CreateOptions::new(Format::Raw, SIZE));
    let source = disk_image::open_in(&files, Path::new("a.img"), &OpenOptions::default()).unwrap();
    let kind = CreateOptions {
        parent: Some(ParentReference {
            path: "none".into(),
            format: None,
        }),
        ..CreateOptions::new(Format::Qcow2, SIZE)
    };
    assert!(disk_image::copy(&files, &*source, Path::new("b.img"), &kind, false, &mut |_| Ok(())).is_err());
    assert!(
        disk_image::copy(
            &files,
            &*source,
            Path::new("b.img"),
            &CreateOptions::new(Format::Vdi, SIZE),
            true,
            &mut |_| Ok(())
        )
        .is_err()
    );
    assert!(files.id(Path::new("b.img")).is_none());
}
