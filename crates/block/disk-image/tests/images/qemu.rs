//! Against QEMU's tools: what we write they check and read, and what they write we read.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use disk_image::Compression;
use disk_image::CreateOptions;
use disk_image::Files;
use disk_image::Format;
use disk_image::HostFiles;
use disk_image::Image;
use disk_image::OpenOptions;
use disk_image::Variant;

use crate::kit::KIB;
use crate::kit::MIB;
use crate::kit::Random;
use crate::kit::assert_same;
use crate::kit::create;
use crate::kit::kinds;
use crate::kit::open;
use crate::kit::parent;
use crate::kit::pattern;
use crate::kit::read_all;

const SIZE: u64 = 8 * MIB + 9 * 512;

/// Whether the tools are there. A skip is visible.
pub(crate) fn has_tools(test: &str) -> bool {
    let found = ["qemu-img", "qemu-io"]
        .iter()
        .all(|tool| Command::new(tool).arg("--version").output().is_ok());
    if !found {
        eprintln!("SKIPPED {test}: qemu-img and qemu-io are missing (apt install qemu-utils)");
    }
    found
}

pub(crate) fn run(folder: &Path, tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool).args(args).current_dir(folder).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{tool} {args:?}: {}\n{text}", output.status);
    text
}

fn qemu_name(format: Format) -> &'static str {
    match format {
        Format::Vhd => "vpc",
        Format::Iso => "raw",
        format => format.name(),
    }
}

pub(crate) fn host() -> (tempfile::TempDir, Arc<dyn Files>) {
    (
        tempfile::tempdir().unwrap(),
        Arc::new(HostFiles {
            sync: false,
            ..HostFiles::default()
        }),
    )
}

pub(crate) fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

/// QEMU's check, where the format has one, and its comparison with the raw bytes.
fn accepted(folder: &tempfile::TempDir, what: &str, name: &str, format: Format, bytes: &[u8]) {
    std::fs::write(folder.path().join("wanted.raw"), bytes).unwrap();
    if matches!(format, Format::Qcow2 | Format::Vdi | Format::Vmdk) {
        let text = run(folder.path(), "qemu-img", &["check", "-f", qemu_name(format), name]);
        assert!(text.contains("No errors"), "{what}: {text}");
    }
    let text = run(
        folder.path(),
        "qemu-img",
        &["compare", "-f", qemu_name(format), "-F", "raw", name, "wanted.raw"],
    );
    assert!(text.contains("identical"), "{what}: {text}");
}

/// Random operations on an image and the model.
pub(crate) fn scribble(image: &dyn Image, model: &mut [u8], random: &mut Random, steps: u64) {
    for _ in 0..steps {
        let (from, len) = random.range(model.len() as u64);
        let range = from as usize..(from + len) as usize;
        match random.below(5) {
            0 => {
                image.discard(from, len).unwrap();
                model[range].fill(0);
            }
            1 => {
                image.write_zeroes(from, len).unwrap();
                model[range].fill(0);
            }
            _ => {
                let bytes = random.bytes(len as usize);
                image.write_at(from, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
        }
    }
    image.flush().unwrap();
}

#[test]
fn qemu_accepts_what_we_write() {
    if !has_tools("qemu_accepts_what_we_write") {
        return;
    }
    for (index, (name, kind)) in (0..).zip(kinds(SIZE)) {
        // QEMU reads VDI with blocks of 1 MiB only.
        if kind.format == Format::Vdi && kind.block_size.is_some() {
            continue;
        }
        let (folder, files) = host();
        let file = path(&folder, "image.img");
        create(&files, &file, &kind);
        let mut model = vec![0; SIZE as usize];
        accepted(&folder, name, "image.img", kind.format, &model);
        let image = open(&files, &file, &kind, true);
        scribble(&*image, &mut model, &mut Random::new(index), 80);
        drop(image);
        accepted(&folder, name, "image.img", kind.format, &model);
    }
}

#[test]
fn qemu_accepts_our_children_and_zeros_hide_the_parent() {
    if !has_tools("qemu_accepts_our_children_and_zeros_hide_the_parent") {
        return;
    }
    let qcow2 = |variant, block| CreateOptions {
        variant,
        block_size: Some(block),
        ..CreateOptions::new(Format::Qcow2, SIZE)
    };
    let children = [
        qcow2(Variant::V3, 4 * KIB),
        qcow2(Variant::V2, 64 * KIB),
        CreateOptions {
            subclusters: true,
            ..qcow2(Variant::V3, 64 * KIB)
        },
        CreateOptions {
            variant: Variant::MonolithicSparse,
            ..CreateOptions::new(Format::Vmdk, SIZE)
        },
    ];
    for (index, kind) in (50..).zip(children) {
        let (folder, files) = host();
        let mut random = Random::new(index);
        // QEMU wants a VMDK parent for VMDK.
        let base = if kind.format == Format::Vmdk {
            Format::Vmdk
        } else {
            Format::Raw
        };
        let mut model = pattern(&mut random, SIZE);
        let reference = parent(&files, &path(&folder, "base.img"), &CreateOptions::new(base, 0), &model);
        let kind = CreateOptions {
            parent: Some(reference),
            ..kind
        };
        let file = path(&folder, "child.img");
        create(&files, &file, &kind);
        accepted(&folder, "empty child", "child.img", kind.format, &model);
        let image = open(&files, &file, &kind, true);
        scribble(&*image, &mut model, &mut random, 60);
        image.discard(MIB, 2 * MIB).unwrap();
        model[MIB as usize..3 * MIB as usize].fill(0);
        drop(image);
        accepted(&folder, "child", "child.img", kind.format, &model);
    }
}

/// An image made and written by QEMU, with the bytes that it should have.
fn made_by_qemu(folder: &tempfile::TempDir, format: &str, options: &str, random: &mut Random) -> Vec<u8> {
    let size = SIZE.to_string();
    let mut args = vec!["create", "-q", "-f", format, "image.img", &size];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    run(folder.path(), "qemu-img", &args);
    // VHD rounds up to whole cylinders.
    let info = run(
        folder.path(),
        "qemu-img",
        &["info", "--output=json", "-f", format, "image.img"],
    );
    let size = info
        .split("\"virtual-size\": ")
        .nth(1)
        .and_then(|rest| rest.split([',', '\n']).next());
    let mut model = vec![0; size.unwrap().parse().unwrap()];
    let mut commands = Vec::new();
    for _ in 0..40 {
        let (from, len) = (random.below(SIZE / 512) * 512, (1 + random.below(300)) * 512);
        let len = len.min(SIZE - from);
        let range = from as usize..(from + len) as usize;
        if random.below(4) == 0 {
            commands.push(format!("write -z {from} {len}"));
            model[range].fill(0);
        } else {
            let byte = 1 + random.below(255);
            commands.push(format!("write -P {byte} {from} {len}"));
            model[range].fill(byte as u8);
        }
    }
    let mut args = vec!["-f", format];
    for command in &commands {
        args.extend(["-c", command]);
    }
    args.push("image.img");
    run(folder.path(), "qemu-io", &args);
    model
}

#[test]
fn we_read_and_go_on_writing_what_qemu_wrote() {
    if !has_tools("we_read_and_go_on_writing_what_qemu_wrote") {
        return;
    }
    let cases = [
        ("raw", "", Format::Raw),
        ("qcow2", "compat=1.1", Format::Qcow2),
        ("qcow2", "compat=0.10", Format::Qcow2),
        ("qcow2", "cluster_size=512", Format::Qcow2),
        ("qcow2", "cluster_size=2M", Format::Qcow2),
        ("qcow2", "lazy_refcounts=on", Format::Qcow2),
        ("qcow2", "refcount_bits=1", Format::Qcow2),
        ("qcow2", "refcount_bits=64", Format::Qcow2),
        ("qcow2", "extended_l2=on", Format::Qcow2),
        ("qcow2", "compression_type=zstd", Format::Qcow2),
        ("qcow2", "preallocation=metadata", Format::Qcow2),
        ("qcow2", "preallocation=falloc,cluster_size=8k", Format::Qcow2),
        ("qcow2", "preallocation=full,compat=0.10", Format::Qcow2),
        ("qcow2", "preallocation=metadata,extended_l2=on", Format::Qcow2),
        ("raw", "preallocation=full", Format::Raw),
        ("vdi", "", Format::Vdi),
        ("vdi", "static=on", Format::Vdi),
        ("vmdk", "subformat=monolithicSparse", Format::Vmdk),
        ("vmdk", "subformat=monolithicSparse,zeroed_grain=on", Format::Vmdk),
        ("vmdk", "adapter_type=lsilogic,hwversion=6", Format::Vmdk),
        ("vmdk", "compat6=on,adapter_type=buslogic", Format::Vmdk),
        ("vmdk", "subformat=monolithicFlat", Format::Vmdk),
        ("vmdk", "subformat=twoGbMaxExtentSparse", Format::Vmdk),
        ("vmdk", "subformat=twoGbMaxExtentSparse,zeroed_grain=on", Format::Vmdk),
        ("vmdk", "subformat=twoGbMaxExtentFlat", Format::Vmdk),
        ("vpc", "", Format::Vhd),
        ("vpc", "subformat=fixed", Format::Vhd),
        ("vpc", "subformat=dynamic,force_size=on", Format::Vhd),
        ("vpc", "subformat=fixed,force_size=on", Format::Vhd),
        ("vhdx", "subformat=dynamic", Format::Vhdx),
        ("vhdx", "subformat=fixed", Format::Vhdx),
        ("vhdx", "block_size=2M", Format::Vhdx),
        ("vhdx", "block_size=1M,log_size=2M,block_state_zero=off", Format::Vhdx),
    ];
    for (index, (format, options, ours)) in (0..).zip(cases) {
        let (folder, files) = host();
        let mut random = Random::new(1000 + index);
        let mut model = made_by_qemu(&folder, format, options, &mut random);
        let name = format!("{format} {options}");
        let file = path(&folder, "image.img");
        let found = disk_image::open_in(&files, Path::new(&file), &OpenOptions::default()).unwrap();
        assert_eq!(found.info().format, ours, "{name}");
        assert_same(&name, &read_all(&*found), &model);
        let report = found.check(false).unwrap();
        assert!(report.is_sound() && report.leaks == 0, "{name}: {report:?}");
        drop(found);
        if ours == Format::Vhdx {
            continue;
        }
        let image = disk_image::open_in(&files, Path::new(&file), &OpenOptions::writable()).unwrap();
        scribble(&*image, &mut model, &mut random, 60);
        drop(image);
        accepted(&folder, &name, "image.img", ours, &model);
    }
}

#[test]
fn compressed_images_are_read_and_written_over() {
    if !has_tools("compressed_images_are_read_and_written_over") {
        return;
    }
    let cases = [
        ("qcow2", "compression_type=zlib", Format::Qcow2),
        ("qcow2", "compression_type=zstd", Format::Qcow2),
        ("qcow2", "cluster_size=4k", Format::Qcow2),
        ("vmdk", "subformat=streamOptimized", Format::Vmdk),
    ];
    for (index, (format, options, ours)) in (0..).zip(cases) {
        let (folder, files) = host();
        let mut random = Random::new(2000 + index);
        let mut model = pattern(&mut random, SIZE);
        // Something to compress.
        model.chunks_mut(3).for_each(|part| part[0] = 7);
        model[MIB as usize..4 * MIB as usize].fill(9);
        std::fs::write(folder.path().join("source.raw"), &model).unwrap();
        run(
            folder.path(),
            "qemu-img",
            &[
                "convert",
                "-c",
                "-f",
                "raw",
                "-O",
                format,
                "-o",
                options,
                "source.raw",
                "image.img",
            ],
        );
        let name = format!("{format} {options}");
        let file = path(&folder, "image.img");
        let options = OpenOptions {
            write: ours == Format::Qcow2,
            ..OpenOptions::default()
        };
        let image = disk_image::open_in(&files, Path::new(&file), &options).unwrap();
        assert_same(&name, &read_all(&*image), &model);
        assert!(image.check(false).unwrap().is_sound());
        if ours == Format::Qcow2 {
            scribble(&*image, &mut model, &mut random, 60);
        }
        drop(image);
        accepted(&folder, &name, "image.img", ours, &model);
    }
}

#[test]
fn qemu_reads_what_we_compress() {
    if !has_tools("qemu_reads_what_we_compress") {
        return;
    }
    let qcow2 = |compression, block| CreateOptions {
        compression,
        block_size: Some(block),
        ..CreateOptions::new(Format::Qcow2, SIZE)
    };
    let cases = [
        qcow2(Compression::Zlib, 64 * KIB),
        qcow2(Compression::Zstd, 64 * KIB),
        qcow2(Compression::Zlib, 4 * KIB),
        CreateOptions {
            variant: Variant::StreamOptimized,
            ..CreateOptions::new(Format::Vmdk, SIZE)
        },
    ];
    for (index, kind) in (0..).zip(cases) {
        let (folder, files) = host();
        let mut random = Random::new(3000 + index);
        let mut model = pattern(&mut random, SIZE);
        model.chunks_mut(3).for_each(|part| part[0] = 7);
        model[2 * MIB as usize..5 * MIB as usize].fill(0);
        std::fs::write(folder.path().join("source.raw"), &model).unwrap();
        let source = disk_image::open_in(&files, &folder.path().join("source.raw"), &OpenOptions::default()).unwrap();
        let target = PathBuf::from(path(&folder, "image.img"));
        disk_image::copy(&files, &*source, &target, &kind, true, &mut |_| Ok(())).unwrap();
        let name = format!("{kind:?}");
        let image = disk_image::open_in(&files, &target, &OpenOptions::default()).unwrap();
        assert_same(&name, &read_all(&*image), &model);
        let report = image.check(false).unwrap();
        assert!(report.is_sound() && report.leaks == 0, "{name}: {report:?}");
        drop(image);
        accepted(&folder, &name, "image.img", kind.format, &model);
        let len = std::fs::metadata(&target).unwrap().len();
        assert!(len < SIZE, "{name}: {len} bytes are not compressed");
    }
}

#[test]
fn internal_snapshots_survive_our_writes() {
    if !has_tools("internal_snapshots_survive_our_writes") {
        return;
    }
    for options in ["cluster_size=4k", "extended_l2=on", "compat=0.10"] {
        let (folder, files) = host();
        let mut random = Random::new(77);
        let before = made_by_qemu(&folder, "qcow2", options, &mut random);
        run(folder.path(), "qemu-img", &["snapshot", "-c", "one", "image.img"]);
        let file = path(&folder, "image.img");
        let mut model = before.clone();
        let image = disk_image::open_in(&files, Path::new(&file), &OpenOptions::writable()).unwrap();
        scribble(&*image, &mut model, &mut random, 80);
        let report = image.check(false).unwrap();
        assert!(report.is_sound() && report.leaks == 0, "{options}: {report:?}");
        drop(image);
        accepted(&folder, options, "image.img", Format::Qcow2, &model);
        run(folder.path(), "qemu-img", &["snapshot", "-a", "one", "image.img"]);
        accepted(&folder, options, "image.img", Format::Qcow2, &before);
    }
}

#[test]
fn unusual_images_are_refused_by_name() {
    if !has_tools("unusual_images_are_refused_by_name") {
        return;
    }
    let (folder, files) = host();
    let refused = |name: &str, words: &str| {
        let error = disk_image::open_in(&files, Path::new(&path(&folder, name)), &OpenOptions::default())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains(words), "{error}");
    };
    let secret = ["--object", "secret,id=s,data=abc"];
    let luks = [
        "create",
        "-q",
        secret[0],
        secret[1],
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
        "luks.img",
        "1M",
    ];
    run(folder.path(), "qemu-img", &luks);
    refused("luks.img", "encrypted (LUKS)");
    run(
        folder.path(),
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            "data_file=data.raw",
            "external.img",
            "1M",
        ],
    );
    refused("external.img", "another file");
}
