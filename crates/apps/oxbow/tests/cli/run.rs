//! Runs to their ends: statuses, streams, signals.

use std::io::Read;
use std::io::Write;
use std::process::Child;
use std::process::Stdio;

use rustix::process::Pid;
use rustix::process::Signal;

use crate::guest::ECHO;
use crate::guest::FLOOD;
use crate::guest::Guest;
use crate::guest::IDLE;
use crate::guest::POWER_OFF;
use crate::guest::RESET;
use crate::guest::TRIPLE_FAULT;
use crate::guest::check;
use crate::guest::debug_exit;
use crate::guest::oxbow;
use crate::guest::print;

#[test]
fn power_off_is_status_0_and_all_output_is_there() {
    let output = Guest::new(&[&print("hello\n"), POWER_OFF]).run(&[]);
    check(&output, 0, "");
    assert_eq!(output.stdout, b"hello\n");
}

#[test]
fn debug_exit_is_twice_the_value_and_one() {
    for (value, status) in [(0, 1), (0x21, 0x43), (77, 155), (0xff, 255)] {
        let output = Guest::new(&[&print("x"), &debug_exit(value)]).run(&["--debug-exit", "0xf4"]);
        check(&output, status, "");
        assert_eq!(output.stdout, b"x");
    }
}

#[test]
fn triple_fault_is_status_3_and_says_where() {
    let output = Guest::new(&[&print("x"), TRIPLE_FAULT]).run(&[]);
    check(&output, 3, "triple fault on cpu 0: RIP 0x10003");
    assert!(String::from_utf8_lossy(&output.stderr).contains("CR3 0x0"));
    assert_eq!(output.stdout, b"x");
}

#[test]
fn reset_is_the_end_under_no_reboot_only() {
    let guest = Guest::new(&[&print("r"), RESET]);
    let output = guest.run(&["--no-reboot"]);
    check(&output, 0, "");
    assert_eq!(output.stdout, b"r");
    let mut child = guest
        .command(&[])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut boots = [0; 3];
    child.stdout.take().unwrap().read_exact(&mut boots).unwrap();
    assert_eq!(&boots, b"rrr");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn timeout_is_status_124() {
    let output = Guest::new(&[&print("x"), IDLE]).run(&["--timeout", "0.3"]);
    check(&output, 124, "did not end in time");
    assert_eq!(output.stdout, b"x");
}

/// Starts `guest` with pipes, after its first byte of output.
fn start(guest: &Guest, args: &[&str]) -> Child {
    let mut child = guest
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    child
}

#[test]
fn piped_input_reaches_the_guest_with_every_byte() {
    let guest = Guest::new(&[&print(">"), ECHO, POWER_OFF]);
    let mut child = start(&guest, &[]);
    let sent: Vec<u8> = (0..20_000_u32).map(|i| (i % 97) as u8).chain(*b"q").collect();
    child.stdin.take().unwrap().write_all(&sent).unwrap();
    let output = child.wait_with_output().unwrap();
    check(&output, 0, "");
    assert_eq!(output.stdout, sent);
}

#[test]
fn end_of_input_does_not_end_the_guest() {
    let guest = Guest::new(&[&print(">"), ECHO, POWER_OFF]);
    let mut child = start(&guest, &["--timeout", "1"]);
    child.stdin.take().unwrap().write_all(b"abc").unwrap();
    let output = child.wait_with_output().unwrap();
    check(&output, 124, "did not end in time");
    assert_eq!(output.stdout, b"abc");
}

#[test]
fn signals_end_the_machine_with_their_status() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let child = start(&Guest::new(&[&print(">"), IDLE]), &[]);
        rustix::process::kill_process(Pid::from_child(&child), signal).unwrap();
        check(&child.wait_with_output().unwrap(), status, "");
    }
}

#[test]
fn closed_output_ends_the_machine_quietly() {
    let mut child = start(&Guest::new(&[FLOOD]), &[]);
    drop(child.stdout.take());
    check(&child.wait_with_output().unwrap(), 141, "");
}

#[test]
fn second_port_leads_to_a_file() {
    // mov dx, 2F8h; mov al, '2'; out dx, al
    let guest = Guest::new(&[&print("1"), b"\x66\xba\xf8\x02\xb02\xee", POWER_OFF]);
    let log = guest.dir.path().join("log");
    let target = format!("file:{}", log.display());
    let output = guest.run(&["--serial", "stdio", "--serial", &target]);
    check(&output, 0, "");
    assert_eq!(output.stdout, b"1");
    assert_eq!(std::fs::read(&log).unwrap(), b"2");
}

#[test]
fn output_goes_nowhere_when_no_port_leads_anywhere() {
    let output = Guest::new(&[&print("lost"), POWER_OFF]).run(&["--serial", "none"]);
    check(&output, 0, "");
    assert!(output.stdout.is_empty());
}

#[test]
fn plan_completions_and_manual_print_something_of_use() {
    for (args, expected) in [
        (&["plan"][..], "com1"),
        (&["plan", "--json"], "\"uart16550\""),
        (&["completions", "bash"], "_oxbow"),
        (&["man"], ".TH oxbow"),
        (&["run", "--help"], "Exit status"),
        (&["ctl", "--help"], "screen-text"),
        (&["ctl", "x", "type", "--help"], "--layout"),
        (&["completions", "zsh"], "power-button"),
        (&["--help"], "Examples"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let output = oxbow(args).output().unwrap();
        check(&output, 0, "");
        assert!(String::from_utf8_lossy(&output.stdout).contains(expected), "{args:?}");
    }
}

#[test]
fn every_machine_has_a_network_card_unless_it_is_left_out() {
    for (machine, chip) in [("microvm", "virtio_net"), ("pc", "e1000"), ("q35", "e1000")] {
        for (more, expected) in [
            (&[][..], true),
            (&["--no-nic"], false),
            (&["--nic", "null,model=virtio"], true),
        ] {
            let args = [&["plan", "--machine", machine, "--json"], more].concat();
            let output = oxbow(&args).output().unwrap();
            check(&output, 0, "");
            let plan = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(plan.contains("\"nic0\""), expected, "{args:?}");
            if more.is_empty() {
                assert!(plan.contains(&format!("\"{chip}\"")), "{args:?}: {plan}");
            }
        }
    }
}

#[test]
fn manual_pages_of_all_commands_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("man");
    check(&oxbow(&["man"]).arg(&path).output().unwrap(), 0, "");
    assert!(path.join("oxbow.1").is_file());
    assert!(path.join("oxbow-run.1").is_file());
    assert!(path.join("oxbow-ctl-screenshot.1").is_file());
    assert!(path.join("oxbow-doctor.1").is_file());
}
