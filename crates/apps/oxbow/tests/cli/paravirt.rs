//! What two processors get of KVM's interface, as a guest finds that uses it all.

use std::path::Path;
use std::process::Output;

use tempfile::TempDir;

use crate::build;
use crate::guest::check;
use crate::guest::oxbow;

/// All that the guest knows of.
const ALL: &str = "paravirt ok: eoi steal flush ipi unhalt\n";

fn run(engine: &str, more: &[&str]) -> Output {
    let dir = TempDir::new().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../guests/paravirt.S");
    let mut command = oxbow(&["run", "--machine", "microvm", "--memory", "64M", "--cpus", "2"]);
    command.args(["--engine", engine, "--debug-exit", "0xf4", "--timeout", "120"]);
    command.args(["--console", "none"]).args(more).arg("--kernel");
    command.arg(build::build(&source, dir.path(), "paravirt"));
    command.output().unwrap()
}

fn printed(output: &Output) -> String {
    check(output, 1, "");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn guest_uses_all_of_it_translated_and_interpreted() {
    for engine in ["jit", "interp"] {
        assert_eq!(printed(&run(engine, &[])), ALL, "{engine}");
    }
}

#[test]
fn model_that_runs_anywhere_has_the_ends_of_interrupts_only() {
    let output = run("jit", &["--cpu", "x86-64"]);
    assert_eq!(printed(&output), "paravirt ok: eoi\n");
}

#[test]
fn guest_uses_what_the_kernel_gives_under_kvm() {
    let found = board::kvm_availability();
    if !found.usable {
        eprintln!("SKIPPED: {found}");
        return;
    }
    let text = printed(&run("kvm", &[]));
    assert!(text.starts_with("paravirt ok: eoi"), "{text}");
    let known = text.split_whitespace().skip(3).all(|word| ALL.contains(word));
    assert!(known, "{text}");
}
