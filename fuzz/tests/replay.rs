//! Every committed seed through its target, as a plain test on any toolchain.

use std::fs;
use std::path::Path;

/// Runs all seeds of `target`; tells which one was running when it failed.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("seeds are committed") {
        let path = entry.expect("the folder is readable").path();
        println!("{}", path.display());
        run(&fs::read(&path).expect("seeds are files"));
        count += 1;
    }
    assert!(count > 0, "no seeds in {}", folder.display());
}

#[test]
fn chipset_seeds_find_nothing() {
    replay("chipset", oxbow_fuzz::chipset::run);
}

#[test]
fn states_seeds_find_nothing() {
    replay("states", oxbow_fuzz::states::run);
}

#[test]
fn loaders_seeds_find_nothing() {
    replay("loaders", oxbow_fuzz::loaders::run);
}

#[test]
fn decoder_seeds_find_nothing() {
    replay("decoder", oxbow_fuzz::decoder::run);
}

#[test]
fn cpu_state_seeds_find_nothing() {
    replay("cpu_state", oxbow_fuzz::cpu_state::run);
}

#[test]
fn translator_seeds_find_nothing() {
    replay("translator", oxbow_fuzz::translator::run);
}

#[test]
fn images_seeds_find_nothing() {
    replay("images", oxbow_fuzz::images::run);
}

#[test]
fn vnc_seeds_find_nothing() {
    replay("vnc", oxbow_fuzz::vnc::run);
}

#[test]
fn network_seeds_find_nothing() {
    replay("network", oxbow_fuzz::network::run);
}

#[test]
fn virtio_seeds_find_nothing() {
    replay("virtio", oxbow_fuzz::virtio::run);
}

#[test]
fn shares_seeds_find_nothing() {
    replay("shares", oxbow_fuzz::shares::run);
}
