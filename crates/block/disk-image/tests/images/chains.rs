//! Parents: where they are found, chains that go round or are too long, zeros that hide a parent, and locks.

use std::path::Path;
use std::sync::Arc;

use disk_image::BlockError;
use disk_image::CreateOptions;
use disk_image::ExtentKind;
use disk_image::Files;
use disk_image::Format;
use disk_image::HostFiles;
use disk_image::Image;
use disk_image::MemoryStore;
use disk_image::OpenOptions;
use disk_image::ParentReference;
use disk_image::Result;
use disk_image::Variant;

use crate::kit::KIB;
use crate::kit::MIB;
use crate::kit::assert_same;
use crate::kit::children;
use crate::kit::create;
use crate::kit::kinds;
use crate::kit::memory;
use crate::kit::open;
use crate::kit::parent;
use crate::kit::read_all;

const SIZE: u64 = MIB;

fn try_open(files: &Arc<dyn Files>, path: &str, write: bool) -> Result<Arc<dyn Image>> {
    disk_image::open_in(
        files,
        Path::new(path),
        &OpenOptions {
            write,
            ..OpenOptions::default()
        },
    )
}

fn error_of(files: &Arc<dyn Files>, path: &str) -> String {
    let error = try_open(files, path, false).err().unwrap().to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

fn reference(path: &str) -> Option<ParentReference> {
    Some(ParentReference {
        path: path.into(),
        format: None,
    })
}

#[test]
fn zeros_in_a_child_hide_the_parent() {
    for (name, kind) in children(SIZE) {
        type Clear = fn(&dyn Image, u64, u64) -> Result<()>;
        let ways: [(&str, Clear); 3] = [
            ("discard", |image, at, len| image.discard(at, len)),
            ("write zeroes", |image, at, len| image.write_zeroes(at, len)),
            ("write", |image, at, len| image.write_at(at, &vec![0; len as usize])),
        ];
        for (way, clear) in ways {
            // The whole disk, blocks, parts of a block, and its last sector.
            for (at, len) in [
                (0, SIZE),
                (64 * KIB, 128 * KIB),
                (512, 512),
                (70 * KIB, 100 * KIB),
                (SIZE - 512, 512),
            ] {
                let (_, files) = memory();
                let mut model = vec![0xa5; SIZE as usize];
                let base = parent(&files, "base.img", &CreateOptions::new(Format::Raw, 0), &model);
                let kind = CreateOptions {
                    parent: Some(base),
                    ..kind.clone()
                };
                create(&files, "child.img", &kind);
                let image = open(&files, "child.img", &kind, true);
                clear(&*image, at, len).unwrap();
                model[at as usize..(at + len) as usize].fill(0);
                let name = format!("{name}: {way} of {len} at {at}");
                assert_same(&name, &read_all(&*image), &model);
                drop(image);
                let image = open(&files, "child.img", &kind, true);
                assert_same(&name, &read_all(&*image), &model);
                // Once more over what is zero already, and then data over it.
                clear(&*image, at, len).unwrap();
                image.write_at(at, &[0x77; 512]).unwrap();
                model[at as usize..at as usize + 512].fill(0x77);
                image.flush().unwrap();
                assert_same(&name, &read_all(&*image), &model);
            }
        }
    }
}

#[test]
fn chains_of_all_formats_show_the_newest_layer() {
    let (_, files) = memory();
    let mut model = vec![1; SIZE as usize];
    parent(&files, "0.img", &CreateOptions::new(Format::Raw, 0), &model);
    // Large blocks would bring what is around a write up into the child.
    let mut all = children(SIZE);
    all.retain(|(_, kind)| kind.block_size.is_some_and(|block| block <= 32 * KIB));
    for (index, (name, kind)) in (1..).zip(&all) {
        let kind = CreateOptions {
            parent: reference(&format!("{}.img", index - 1)),
            ..kind.clone()
        };
        let path = format!("{index}.img");
        create(&files, &path, &kind);
        let image = open(&files, &path, &kind, true);
        let at = index as u64 * 40 * KIB;
        image.write_at(at, &[index as u8 + 1; 9000]).unwrap();
        model[at as usize..at as usize + 9000].fill(index as u8 + 1);
        image.discard(at + 20 * KIB, 7000).unwrap();
        model[at as usize + 20 * 1024..at as usize + 20 * 1024 + 7000].fill(0);
        assert_same(name, &read_all(&*image), &model);
        image.flush().unwrap();
    }
    let last = try_open(&files, &format!("{}.img", all.len()), false).unwrap();
    let extent = last.extent(0).unwrap();
    assert_eq!((extent.kind, extent.depth), (ExtentKind::Data, all.len() as u32));
}

#[test]
fn images_that_refer_to_themselves_are_refused() {
    for (name, kind) in children(SIZE) {
        let (memory, files) = memory();
        create(&files, "base.img", &CreateOptions::new(Format::Raw, SIZE));
        create(
            &files,
            "child.img",
            &CreateOptions {
                parent: reference("base.img"),
                ..kind.clone()
            },
        );
        // The child takes its parent's place: now it is its own.
        memory.put(
            "base.img",
            Arc::new(MemoryStore::with(&memory.bytes("child.img"), 1 << 20)),
        );
        let error = error_of(&files, "base.img");
        assert!(error.contains("itself"), "{name}: {error}");
        // qcow2 says that its parent is raw, which has no parents.
        if kind.format != Format::Qcow2 {
            let error = error_of(&files, "child.img");
            assert!(error.contains("itself"), "{name}: {error}");
        }
    }
}

#[test]
fn chains_that_are_too_long_are_refused() {
    let (_, files) = memory();
    create(&files, "0.img", &CreateOptions::new(Format::Raw, SIZE));
    for index in 1..64 {
        let kind = CreateOptions {
            parent: reference(&format!("{}.img", index - 1)),
            ..CreateOptions::new(Format::Qcow2, SIZE)
        };
        create(&files, &format!("{index}.img"), &kind);
    }
    try_open(&files, "63.img", false).unwrap();
    let kind = CreateOptions {
        parent: reference("63.img"),
        ..CreateOptions::new(Format::Qcow2, SIZE)
    };
    create(&files, "64.img", &kind);
    assert!(error_of(&files, "64.img").contains("more than 64"));
}

#[test]
fn parents_are_found_from_the_child_and_not_from_here() {
    for (name, kind) in children(SIZE) {
        let (memory, files) = memory();
        parent(
            &files,
            "/vm/base/base.img",
            &CreateOptions::new(Format::Raw, 0),
            &vec![3; SIZE as usize],
        );
        create(
            &files,
            "/vm/snapshots/child.vdi",
            &CreateOptions {
                parent: reference("/vm/base/base.img"),
                ..kind.clone()
            },
        );
        // The whole tree moves.
        for path in memory.names() {
            files
                .rename(&path, &Path::new("/srv").join(path.strip_prefix("/vm").unwrap()))
                .unwrap();
        }
        let child =
            try_open(&files, "/srv/snapshots/child.vdi", false).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read_all(&*child)[0], 3, "{name}");
        files.remove(Path::new("/srv/base/base.img")).unwrap();
        let error = error_of(&files, "/srv/snapshots/child.vdi");
        assert!(error.contains("parent"), "{name}: {error}");
    }
}

#[test]
fn parents_that_changed_are_refused() {
    for format in [Format::Vdi, Format::Vmdk] {
        let (_, files) = memory();
        let kind = CreateOptions::new(format, SIZE);
        create(&files, "base.img", &kind);
        create(
            &files,
            "child.img",
            &CreateOptions {
                parent: reference("base.img"),
                ..kind.clone()
            },
        );
        try_open(&files, "child.img", true).unwrap();
        open(&files, "base.img", &kind, true).write_at(0, &[1]).unwrap();
        let error = error_of(&files, "child.img");
        assert!(error.contains("was written to since"), "{error}");
    }
    for format in [Format::Vdi, Format::Vhd] {
        let (_, files) = memory();
        let kind = CreateOptions::new(format, SIZE);
        create(&files, "base.img", &kind);
        create(
            &files,
            "child.img",
            &CreateOptions {
                parent: reference("base.img"),
                ..kind.clone()
            },
        );
        files.remove(Path::new("base.img")).unwrap();
        create(&files, "base.img", &kind);
        let error = error_of(&files, "child.img");
        assert!(error.contains("identifiers differ"), "{error}");
    }
}

#[test]
fn vdi_parents_are_found_by_their_identifier() {
    let (memory, files) = memory();
    let kind = CreateOptions::new(Format::Vdi, SIZE);
    parent(&files, "/vm/base.vdi", &kind, &vec![9; SIZE as usize]);
    create(
        &files,
        "/vm/Snapshots/child.vdi",
        &CreateOptions {
            parent: reference("/vm/base.vdi"),
            ..kind
        },
    );
    // As VirtualBox makes them: without a name.
    let mut bytes = memory.bytes("/vm/Snapshots/child.vdi");
    bytes[84..340].fill(0);
    memory.put("/vm/Snapshots/child.vdi", Arc::new(MemoryStore::with(&bytes, 1 << 24)));
    let child = try_open(&files, "/vm/Snapshots/child.vdi", false).unwrap();
    assert_eq!(read_all(&*child)[0], 9);
}

#[test]
fn other_things_than_files_are_no_parents() {
    let (memory, files) = memory();
    for name in ["nbd://host/disk", "json:{}", "ssh://host/a"] {
        create(&files, "base.img", &CreateOptions::new(Format::Raw, SIZE));
        create(
            &files,
            "child.img",
            &CreateOptions {
                parent: reference("base.img"),
                ..CreateOptions::new(Format::Qcow2, SIZE)
            },
        );
        let mut bytes = memory.bytes("child.img");
        let at = u64::from_be_bytes(bytes[8..16].try_into().unwrap()) as usize;
        bytes[16..20].copy_from_slice(&(name.len() as u32).to_be_bytes());
        bytes[at..at + name.len()].copy_from_slice(name.as_bytes());
        memory.put("child.img", Arc::new(MemoryStore::with(&bytes, 1 << 24)));
        assert!(error_of(&files, "child.img").contains("not a file"), "{name}");
        files.remove(Path::new("base.img")).unwrap();
        files.remove(Path::new("child.img")).unwrap();
    }
}

#[test]
fn writers_are_alone_and_readers_share() {
    let folder = tempfile::tempdir().unwrap();
    let files: Arc<dyn Files> = Arc::new(HostFiles::default());
    for (name, kind) in kinds(SIZE) {
        let path = folder.path().join(format!("{name}.img")).display().to_string();
        create(&files, &path, &kind);
        let writer = try_open(&files, &path, true).unwrap();
        for write in [false, true] {
            let error = try_open(&files, &path, write).err().unwrap();
            assert!(matches!(error, BlockError::Locked { .. }), "{name}: {error}");
        }
        let shared = OpenOptions {
            share: true,
            ..OpenOptions::default()
        };
        disk_image::open_in(&files, Path::new(&path), &shared).unwrap();
        drop(writer);
        let reader = try_open(&files, &path, false).unwrap();
        try_open(&files, &path, false).unwrap();
        assert!(
            matches!(try_open(&files, &path, true), Err(BlockError::Locked { .. })),
            "{name}"
        );
        drop(reader);
    }
}

#[test]
fn parent_in_use_by_a_child_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let files: Arc<dyn Files> = Arc::new(HostFiles::default());
    let path = |name: &str| folder.path().join(name).display().to_string();
    create(&files, &path("base.vdi"), &CreateOptions::new(Format::Vdi, SIZE));
    for name in ["a.vdi", "b.vdi"] {
        create(
            &files,
            &path(name),
            &CreateOptions {
                parent: reference(&path("base.vdi")),
                ..CreateOptions::new(Format::Vdi, SIZE)
            },
        );
    }
    let _a = try_open(&files, &path("a.vdi"), true).unwrap();
    let _b = try_open(&files, &path("b.vdi"), true).unwrap();
    assert!(matches!(
        try_open(&files, &path("base.vdi"), true),
        Err(BlockError::Locked { .. })
    ));
}

#[test]
fn images_of_discs_are_read_only() {
    let (memory, files) = memory();
    let mut disc = vec![0; 20 * 2048];
    disc[16 * 2048 + 1..16 * 2048 + 6].copy_from_slice(b"CD001");
    memory.put("disc.iso", Arc::new(MemoryStore::with(&disc, 1 << 20)));
    let image = try_open(&files, "disc.iso", false).unwrap();
    assert_eq!((image.info().format, image.info().sector_size), (Format::Iso, 2048));
    assert!(matches!(
        try_open(&files, "disc.iso", true),
        Err(BlockError::ReadOnly { .. })
    ));
    assert!(image.write_at(0, &[0]).is_err());
}

#[test]
fn impossible_images_are_not_made() {
    let (_, files) = memory();
    create(&files, "base.img", &CreateOptions::new(Format::Raw, SIZE));
    let new = |format| CreateOptions::new(format, SIZE);
    for kind in [
        CreateOptions {
            parent: reference("base.img"),
            ..new(Format::Raw)
        },
        CreateOptions {
            parent: reference("none.img"),
            ..new(Format::Qcow2)
        },
        CreateOptions {
            variant: Variant::StreamOptimized,
            ..new(Format::Vdi)
        },
        CreateOptions {
            block_size: Some(1000),
            ..new(Format::Qcow2)
        },
        CreateOptions {
            block_size: Some(1000),
            ..new(Format::Vdi)
        },
        CreateOptions {
            block_size: Some(1 << 40),
            ..new(Format::Vmdk)
        },
        CreateOptions {
            block_size: Some(0),
            ..new(Format::Vhd)
        },
        CreateOptions {
            size: Some(511),
            ..new(Format::Qcow2)
        },
        CreateOptions {
            size: Some(1 << 62),
            ..new(Format::Qcow2)
        },
        CreateOptions {
            size: Some(1 << 62),
            ..new(Format::Vdi)
        },
        CreateOptions {
            size: Some(1 << 62),
            ..new(Format::Vmdk)
        },
        CreateOptions {
            size: Some(3 << 40),
            ..new(Format::Vhd)
        },
        CreateOptions {
            subclusters: true,
            ..new(Format::Vdi)
        },
        new(Format::Iso),
        new(Format::Vhdx),
    ] {
        let error = disk_image::create(&files, Path::new("new.img"), &kind)
            .expect_err(&format!("{kind:?}"))
            .to_string();
        assert!(!error.contains('\n'), "{error}");
        assert!(files.id(Path::new("new.img")).is_none(), "{kind:?} left a file behind");
    }
    create(&files, "new.img", &new(Format::Qcow2));
    assert!(
        disk_image::create(&files, Path::new("new.img"), &new(Format::Qcow2)).is_err(),
        "overwrites"
    );
}
