//! VHDX files of QEMU, changed by hand into what QEMU cannot make: layers, and logs that were never applied.

use std::path::Path;
use std::sync::Arc;

use disk_image::Files;
use disk_image::Format;
use disk_image::Image;
use disk_image::OpenOptions;
use disk_image::Result;
use disk_image::Uuid;

use crate::kit::KIB;
use crate::kit::MIB;
use crate::kit::assert_same;
use crate::kit::read_all;
use crate::qemu::has_tools;
use crate::qemu::host;
use crate::qemu::run;

const SIZE: u64 = 8 * MIB;

fn open(files: &Arc<dyn Files>, path: &Path) -> Result<Arc<dyn Image>> {
    disk_image::open_in(files, path, &OpenOptions::default())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
}

/// Where a region is whose identifier begins with these bytes.
fn region(bytes: &[u8], id: [u8; 4]) -> usize {
    let table = 192 * KIB as usize;
    let mut entries = bytes[table + 16..].chunks(32).take(u32_at(bytes, table + 8) as usize);
    u64_at(entries.find(|entry| entry.starts_with(&id)).unwrap(), 16)
}

/// The header with the higher sequence number.
fn header(bytes: &[u8]) -> usize {
    let places = [64 * KIB as usize, 128 * KIB as usize];
    places.into_iter().max_by_key(|&at| u64_at(bytes, at + 8)).unwrap()
}

/// Adds a parent locator with these keys and values, and the flag that there is one.
fn refer_to_parent(bytes: &mut [u8], keys: &[(&str, &str)]) {
    let metadata = region(bytes, [0x06, 0xa2, 0x7c, 0x8b]);
    let count = u16::from_le_bytes(bytes[metadata + 10..metadata + 12].try_into().unwrap());
    let mut texts = Vec::new();
    let mut item = vec![0; 20 + 12 * keys.len()];
    item[18..20].copy_from_slice(&(keys.len() as u16).to_le_bytes());
    for (index, (key, value)) in keys.iter().enumerate() {
        for (text, offset, len) in [(key, 0, 8), (value, 4, 10)] {
            let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let entry = 20 + 12 * index;
            let at = (item.len() + texts.len()) as u32;
            item[entry + offset..entry + offset + 4].copy_from_slice(&at.to_le_bytes());
            item[entry + len..entry + len + 2].copy_from_slice(&(units.len() as u16).to_le_bytes());
            texts.extend(units);
        }
    }
    item.extend(texts);
    let place = 512 * KIB as usize;
    bytes[metadata + place..metadata + place + item.len()].copy_from_slice(&item);
    let entry = metadata + 32 + 32 * usize::from(count);
    let id = Uuid::parse("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").unwrap();
    bytes[entry..entry + 16].copy_from_slice(&id.0);
    bytes[entry + 16..entry + 20].copy_from_slice(&(place as u32).to_le_bytes());
    bytes[entry + 20..entry + 24].copy_from_slice(&(item.len() as u32).to_le_bytes());
    bytes[entry + 24..entry + 28].copy_from_slice(&4u32.to_le_bytes());
    bytes[metadata + 10..metadata + 12].copy_from_slice(&(count + 1).to_le_bytes());
    let parameters = (0..usize::from(count)).map(|index| metadata + 32 + 32 * index);
    let mut parameters = parameters.filter(|&at| bytes[at..].starts_with(&[0x37, 0x67, 0xa1, 0xca]));
    let flags = metadata + u32_at(bytes, parameters.next().unwrap() + 16) as usize + 4;
    bytes[flags] |= 2;
}

#[test]
fn layers_show_their_parent_where_they_have_nothing() {
    if !has_tools("layers_show_their_parent_where_they_have_nothing") {
        return;
    }
    let (folder, files) = host();
    let (base, child) = (folder.path().join("base.vhdx"), folder.path().join("child.vhdx"));
    for (name, command) in [("base.vhdx", "write -P 7 0 8M"), ("child.vhdx", "write -P 9 0 3M")] {
        let options = "block_size=1M,block_state_zero=off";
        run(
            folder.path(),
            "qemu-img",
            &["create", "-q", "-f", "vhdx", "-o", options, name, "8M"],
        );
        run(folder.path(), "qemu-io", &["-f", "vhdx", "-c", command, name]);
    }
    let parent = std::fs::read(&base).unwrap();
    let linkage = Uuid(parent[header(&parent) + 32..][..16].try_into().unwrap());
    let original = std::fs::read(&child).unwrap();
    let mut bytes = original.clone();
    let keys = [
        ("parent_linkage", format!("{{{linkage}}}")),
        ("relative_path", r".\base.vhdx".to_owned()),
    ];
    refer_to_parent(&mut bytes, &keys.each_ref().map(|(key, value)| (*key, value.as_str())));
    // Of block 1, the sectors 8 to 15 are the child's; block 2 is zeros.
    let table = region(&bytes, [0x66, 0x77, 0xc2, 0x2d]);
    bytes[table + 8] = bytes[table + 8] & !7 | 7;
    bytes[table + 16..table + 24].copy_from_slice(&2u64.to_le_bytes());
    let bitmap = bytes.len().next_multiple_of(MIB as usize);
    bytes.resize(bitmap + MIB as usize, 0);
    bytes[bitmap + 2048 / 8 + 1] = 0xff;
    bytes[table + 4096 * 8..table + 4096 * 8 + 8].copy_from_slice(&(bitmap as u64 | 6).to_le_bytes());
    std::fs::write(&child, &bytes).unwrap();
    let mut model = vec![7; SIZE as usize];
    model[..MIB as usize].fill(9);
    model[MIB as usize + 4096..MIB as usize + 8192].fill(9);
    model[2 * MIB as usize..3 * MIB as usize].fill(0);
    let image = open(&files, &child).unwrap();
    assert_same("child", &read_all(&*image), &model);
    assert!(image.check(false).unwrap().is_sound());
    drop(image);
    // The parent is written to: its identifier changes.
    run(
        folder.path(),
        "qemu-io",
        &["-f", "vhdx", "-c", "write -P 1 0 512", "base.vhdx"],
    );
    let error = open(&files, &child).err().unwrap().to_string();
    assert!(error.contains("written to since"), "{error}");
    // The child takes its parent's place.
    std::fs::copy(&child, &base).unwrap();
    let error = open(&files, &child).err().unwrap().to_string();
    assert!(
        error.contains("itself") || error.contains("identifiers differ"),
        "{error}"
    );
}

/// A file with a log. QEMU applies it at once and says so in the header, which is turned back here.
fn interrupted(folder: &Path) -> Vec<u8> {
    run(
        folder,
        "qemu-img",
        &["create", "-q", "-f", "vhdx", "-o", "block_size=1M", "log.vhdx", "8M"],
    );
    let commands = ["-c", "write -P 5 0 1M", "-c", "write -P 6 3M 1M", "log.vhdx"];
    run(folder, "qemu-io", &[["-f", "vhdx"].as_slice(), &commands].concat());
    let mut bytes = std::fs::read(folder.join("log.vhdx")).unwrap();
    let at = header(&bytes);
    let log = u64_at(&bytes, at + 72);
    let sectors = (log..log + u32_at(&bytes, at + 68) as usize).step_by(4096);
    let entries = sectors.filter(|&entry| bytes[entry..].starts_with(b"loge"));
    let newest = entries
        .max_by_key(|&entry| u64_at(&bytes, entry + 16))
        .expect("QEMU uses the log");
    bytes.copy_within(newest + 32..newest + 48, at + 48);
    bytes[at + 4..at + 8].fill(0);
    let sum = crc32c::crc32c(&bytes[at..at + 4096]);
    bytes[at + 4..at + 8].copy_from_slice(&sum.to_le_bytes());
    bytes
}

#[test]
fn logs_are_applied_without_changing_the_file() {
    if !has_tools("logs_are_applied_without_changing_the_file") {
        return;
    }
    let (folder, files) = host();
    let path = folder.path().join("log.vhdx");
    let mut bytes = interrupted(folder.path());
    let at = header(&bytes);
    assert!(
        bytes[at + 48..at + 64].iter().any(|&byte| byte != 0),
        "the log is not in use"
    );
    // What the log says is not in its place yet: of all entries, the last is the one that counts.
    let table = region(&bytes, [0x66, 0x77, 0xc2, 0x2d]);
    let entries = bytes[table..table + 64].to_vec();
    assert!(entries.iter().any(|&byte| byte != 0));
    bytes[table..table + 64].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let image = open(&files, &path).unwrap();
    let found = read_all(&*image);
    let last = &found[3 * MIB as usize..4 * MIB as usize];
    assert!(last.iter().all(|&byte| byte == 6), "the log was not applied");
    assert!(found[..MIB as usize].iter().all(|&byte| byte == 5));
    drop(image);
    assert!(std::fs::read(&path).unwrap() == bytes, "the file was changed");
    // QEMU, which applies it to the file, agrees.
    run(
        folder.path(),
        "qemu-img",
        &["check", "-q", "-r", "all", "-f", "vhdx", "log.vhdx"],
    );
    assert_same("replayed by QEMU", &read_all(&*open(&files, &path).unwrap()), &found);

    // A log of which nothing is left is an error that says so.
    let log = u64_at(&bytes, at + 72);
    let len = u32_at(&bytes, at + 68) as usize;
    bytes[log..log + len].fill(0);
    std::fs::write(&path, &bytes).unwrap();
    let error = open(&files, &path).err().unwrap().to_string();
    assert!(error.contains("log") && !error.contains('\n'), "{error}");
}

#[test]
fn fixed_files_are_known_and_writing_is_refused() {
    if !has_tools("fixed_files_are_known_and_writing_is_refused") {
        return;
    }
    let (folder, files) = host();
    let path = folder.path().join("fixed.vhdx");
    run(
        folder.path(),
        "qemu-img",
        &[
            "create",
            "-q",
            "-f",
            "vhdx",
            "-o",
            "subformat=fixed",
            "fixed.vhdx",
            "8M",
        ],
    );
    let image = open(&files, &path).unwrap();
    assert_eq!(
        (image.info().format, image.info().variant.as_str()),
        (Format::Vhdx, "fixed")
    );
    drop(image);
    let error = disk_image::open_in(&files, &path, &OpenOptions::writable())
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("convert"), "{error}");
}
