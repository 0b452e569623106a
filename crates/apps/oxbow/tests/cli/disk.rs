//! `oxbow disk`: what it prints, and its exit statuses.

use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use crate::guest::check;
use crate::guest::oxbow;

/// Runs in a folder of the test.
fn disk(folder: &TempDir, args: &[&str]) -> Output {
    let all: Vec<&str> = std::iter::once("disk").chain(args.iter().copied()).collect();
    oxbow(&all)
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn ok(folder: &TempDir, args: &[&str]) -> String {
    let output = disk(folder, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    assert!(error.is_empty(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(folder: &TempDir, args: &[&str]) -> Value {
    serde_json::from_str(&ok(folder, args)).unwrap()
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) {
    std::fs::write(folder.path().join(name), bytes).unwrap();
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 4096 % 3 * 77) as u8).collect()
}

#[test]
fn created_images_tell_what_they_are() {
    let folder = TempDir::new().unwrap();
    for name in ["a.raw", "a.vdi", "a.vmdk", "a.vhd", "a.qcow2"] {
        assert!(ok(&folder, &["create", name, "64M"]).contains("64 MiB"));
        let info = json(&folder, &["info", name, "--json"]);
        assert_eq!(info["size"], 64 << 20, "{info}");
        assert_eq!(info["format"], Path::new(name).extension().unwrap().to_str().unwrap());
        assert!(ok(&folder, &["check", name]).contains("no errors"));
    }
    let layer = json(&folder, &["create", "layer.qcow2", "--parent", "a.vdi", "--json"]);
    assert_eq!(layer["info"]["size"], 64 << 20);
    let info = json(&folder, &["info", "layer.qcow2", "--json"]);
    assert_eq!(info["parents"][0]["format"], "vdi", "{info}");
    assert!(ok(&folder, &["info", "layer.qcow2"]).contains("Parent:"));
}

#[test]
fn conversions_compare_as_the_same() {
    let folder = TempDir::new().unwrap();
    write(&folder, "source.raw", &pattern(3 << 20));
    let mut last = "source.raw";
    for (name, options) in [
        ("a.qcow2", &["--compress", "--compression", "zstd"][..]),
        ("b.vmdk", &["--variant", "streamOptimized"]),
        ("c.vdi", &["--block-size", "64K"]),
        ("d.vhd", &["--variant", "fixed"]),
        ("e.img", &["--to", "raw"]),
    ] {
        ok(&folder, &[&["convert", last, name], options].concat());
        assert_eq!(ok(&folder, &["compare", "source.raw", name]), "the same\n");
        last = name;
    }
    assert_eq!(std::fs::read(folder.path().join("e.img")).unwrap(), pattern(3 << 20));
    let mut other = pattern(3 << 20);
    other[1_000_000] ^= 1;
    write(&folder, "other.raw", &other);
    let output = disk(&folder, &["compare", "a.qcow2", "other.raw"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stdout).contains("byte 1000000"));
}

#[test]
fn resizing_needs_consent_to_lose_data() {
    let folder = TempDir::new().unwrap();
    for name in ["a.raw", "a.vdi", "a.vmdk", "a.vhd", "a.qcow2"] {
        ok(&folder, &["create", name, "8M"]);
        ok(&folder, &["resize", name, "+8M"]);
        assert_eq!(json(&folder, &["info", name, "--json"])["size"], 16 << 20);
        check(&disk(&folder, &["resize", name, "1M"]), 2, "--shrink");
        ok(&folder, &["resize", name, "1M", "--shrink"]);
        assert_eq!(json(&folder, &["info", name, "--json"])["size"], 1 << 20);
    }
}

#[test]
fn compacting_gives_space_back() {
    let folder = TempDir::new().unwrap();
    write(&folder, "full.raw", &[1; 4 << 20]);
    for name in ["a.vdi", "a.qcow2"] {
        ok(&folder, &["convert", "full.raw", name]);
        // Most of it becomes zeros that take space.
        let zeros = json(&folder, &["compact", name, "--json"]);
        assert!(zeros["allocated"].as_u64().unwrap() >= 4 << 20);
    }
    write(&folder, "zeros.raw", &[0; 4 << 20]);
    let report = json(&folder, &["compact", "zeros.raw", "--format", "raw", "--json"]);
    assert!(
        report["allocated"].as_u64().unwrap() < report["before"].as_u64().unwrap(),
        "{report}"
    );
}

#[test]
fn damage_and_lost_space_have_statuses_of_their_own() {
    let folder = TempDir::new().unwrap();
    ok(&folder, &["create", "a.qcow2", "1M"]);
    let path = folder.path().join("a.qcow2");
    let mut bytes = std::fs::read(&path).unwrap();
    let block = 2 * 65536;
    // A cluster at the end that is counted and not used.
    bytes.resize(bytes.len() + 65536, 0);
    let clusters = bytes.len() / 65536;
    bytes[block + (clusters - 1) * 2 + 1] = 1;
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(disk(&folder, &["check", "a.qcow2"]).status.code(), Some(4));
    ok(&folder, &["check", "a.qcow2", "--repair"]);
    ok(&folder, &["check", "a.qcow2"]);
    // The header's own cluster is not counted.
    bytes[block + 1] = 0;
    std::fs::write(&path, &bytes).unwrap();
    let output = disk(&folder, &["check", "a.qcow2", "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["sound"], false);
    ok(&folder, &["check", "a.qcow2", "--repair"]);
}

#[test]
fn mistakes_are_one_line() {
    let folder = TempDir::new().unwrap();
    ok(&folder, &["create", "a.qcow2", "1M"]);
    for (args, message) in [
        (&["create", "a.qcow2", "1M"][..], "a.qcow2: cannot create: File exists"),
        (&["create", "disk", "1M"], "--to raw, vdi, vmdk, vhd or qcow2"),
        (&["create", "b.vdi", "1000"], "sectors"),
        (&["create", "b.vdi"], "SIZE"),
        (&["create", "b.vhd", "3T"], "too large"),
        (&["create", "b.vdi", "1M", "--variant", "v3"], "no variant"),
        (&["create", "b.vdi", "--parent", "none"], "none: cannot open"),
        (&["info", "none"], "none: cannot open: No such file"),
        (&["info", "."], "neither a file"),
        (&["info", "a.qcow2", "--format", "vdi"], "a.qcow2"),
        (&["info", "a.qcow2", "--format", "floppy"], "not an image format"),
        (&["convert", "a.qcow2", "b.vdi", "--compress"], "--compress"),
        (&["resize", "a.qcow2", "lots"], "not a size"),
    ] {
        check(&disk(&folder, args), 2, message);
    }
    assert!(!folder.path().join("b.vdi").exists());
}

#[test]
fn image_in_use_is_not_written() {
    let folder = TempDir::new().unwrap();
    ok(&folder, &["create", "a.vdi", "1M"]);
    // `flock` of util-linux holds the lock that a machine holds.
    let held = Command::new("flock").args(["--version"]).output();
    if held.is_err() {
        eprintln!("SKIPPED image_in_use_is_not_written: flock is missing (apt install util-linux)");
        return;
    }
    let path = folder.path().join("a.vdi");
    let mut holder = Command::new("flock");
    holder.arg(&path).args(["-c", "echo locked; read line"]);
    let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 7];
    std::io::Read::read_exact(holder.stdout.as_mut().unwrap(), &mut line).unwrap();
    for args in [
        &["info", "a.vdi"][..],
        &["resize", "a.vdi", "2M"],
        &["check", "a.vdi", "--repair"],
        &["compact", "a.vdi"],
    ] {
        check(&disk(&folder, args), 2, "in use by another process");
    }
    ok(&folder, &["info", "a.vdi", "--force-share"]);
    ok(&folder, &["check", "a.vdi", "--force-share"]);
    drop(holder.stdin.take());
    holder.wait().unwrap();
    ok(&folder, &["resize", "a.vdi", "2M"]);
}
