//! For tests of several crates: how the guests beside this file are built.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

fn tool(command: &mut Command) {
    let output = command
        .output()
        .expect("compiler and binutils, as for linking Rust programs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Assembles and links a guest in `directory`: a 32-bit ELF file, by its path.
pub(crate) fn build(source: &Path, directory: &Path, tag: &str) -> PathBuf {
    let name = source.file_stem().unwrap().to_str().unwrap();
    let linked = directory.join(format!("{name}-{tag}.elf64"));
    let target = directory.join(format!("{name}-{tag}.elf"));
    let layout = ["-Wl,-N", "-Wl,-Ttext=0x100000", "-Wl,--build-id=none"];
    let mut cc = Command::new("cc");
    cc.args(["-m64", "-nostdlib", "-static", "-no-pie"]).args(layout);
    tool(
        cc.args(["-Wl,--no-warn-rwx-segments", "-o"])
            .args([linked.as_path(), source]),
    );
    tool(
        Command::new("objcopy")
            .args(["-O", "elf32-i386"])
            .args([&linked, &target]),
    );
    target
}
