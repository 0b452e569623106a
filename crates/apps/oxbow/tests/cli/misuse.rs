//! Wrong usage and unusable input: one clear line, and status 2.

use std::process::Stdio;

use crate::guest::Guest;
use crate::guest::IDLE;
use crate::guest::check;
use crate::guest::oxbow;

fn refused(args: &[&str], message: &str) {
    let output = oxbow(args).stdin(Stdio::null()).output().unwrap();
    check(&output, 2, message);
    assert!(output.stdout.is_empty());
}

#[test]
fn missing_files_are_named() {
    refused(
        &["run", "--kernel", "/nonexistent/vmlinuz"],
        "cannot read `/nonexistent/vmlinuz`: No such file",
    );
    let guest = Guest::new(&[IDLE]);
    let output = guest.run(&["--initrd", "/nonexistent/initrd"]);
    check(&output, 2, "cannot read `/nonexistent/initrd`: No such file");
    refused(&["run", "--kernel", "/"], "cannot read `/`: Is a directory");
}

#[test]
fn file_that_is_no_kernel_is_refused() {
    refused(&["run", "--kernel", "/proc/self/status"], "not a kernel");
    refused(&["run", "--kernel", "/dev/null"], "not a kernel");
}

#[test]
fn no_kernel_and_no_demo_guest_says_how_to_get_one() {
    refused(&["run"], "cargo xtask demo");
    refused(&["run", "--initrd", "/dev/null"], "--kernel");
}

#[test]
fn unknown_models_and_engines_are_refused_with_the_known_ones() {
    let guest = Guest::new(&[IDLE]);
    check(&guest.run(&["--cpu", "z80"]), 2, "x86-64-v2");
    check(&guest.run(&["--engine", "steam"]), 2, "interp");
}

#[test]
fn values_out_of_range_are_refused() {
    let guest = Guest::new(&[IDLE]);
    for (args, message) in [
        (&["--cpus", "0"][..], "cpus"),
        (&["--cpus", "256"], "cpus"),
        (&["--cpus", "two"], "--cpus"),
        (&["--debug-exit", "f4"], "port"),
        (&["--debug-exit", "0x60"], "i8042"),
        (&["--timeout", "-1"], "--timeout"),
        (&["--serial", "tcp:80"], "stdio, file:PATH, pty or none"),
        (&["--serial", "stdio", "--serial", "stdio"], "twice"),
        (
            &["--serial", "file:/nonexistent/log"],
            "cannot write `/nonexistent/log`",
        ),
        (&["--frobnicate"], "--frobnicate"),
    ] {
        check(&guest.run(args), 2, message);
    }
}

#[test]
fn memory_is_a_size_and_enough() {
    refused(&["run", "--memory", "lots"], "not a size");
    refused(&["run", "--memory", "1K", "--kernel", "/dev/null"], "too little");
}

#[test]
fn plan_reports_every_problem_at_once() {
    let output = oxbow(&["plan", "--memory", "1K", "--cpus", "0"]).output().unwrap();
    check(&output, 2, "memory: 1K is too little");
    assert!(String::from_utf8_lossy(&output.stderr).contains("cpus: 0"));
}
