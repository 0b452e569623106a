//! `cargo xtask test`: all that has to hold before a change is merged, the same here and in CI.
//!
//! Every step runs, whatever the ones before it found; the last line has the totals.

mod boots;
mod tally;

use std::io::BufRead;
use std::io::BufReader;
use std::process::Command;
use std::process::Stdio;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;

use crate::arguments::Arguments;
use crate::layers;
use crate::process;
use crate::size;
use crate::workspace;
use tally::Runner;
use tally::Tally;

pub(crate) fn main(mut arguments: Arguments) -> anyhow::Result<()> {
    let no_guests = arguments.flag("--no-guests");
    let only_guests = arguments.flag("--guests");
    let names = if only_guests {
        arguments.rest()?
    } else {
        arguments.end().map(|()| Vec::new())?
    };

    let launch = Instant::now();
    let mut tally = Tally::default();
    if !only_guests {
        tally.add(step("formatting", || {
            command(workspace::cargo().args(["fmt", "--all", "--check"]))
        }));
        tally.add(step("layers", check_layers));
        tally.add(step("size", check_size));
        let clippy = ["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"];
        tally.add(step("clippy", || command(workspace::cargo().args(clippy))));
        let (runner, mut tests) = unit_tests();
        tally.add(counted("tests of the crates", runner, &mut tests));
        let doc_tests = ["test", "--workspace", "--doc", "--color", "never"];
        tally.add(counted(
            "examples in the documentation",
            Runner::Cargo,
            workspace::cargo().args(doc_tests),
        ));
    }
    if !no_guests {
        tally.add(guests(&names));
    }
    println!("\ntook {} s", launch.elapsed().as_secs());
    println!("{tally}");
    if tally.failed > 0 {
        bail!("not all is well");
    }
    Ok(())
}

/// `cargo xtask bless`: golden files become what the tests see now.
pub(crate) fn bless(arguments: Arguments) -> anyhow::Result<()> {
    arguments.end()?;
    process::run(workspace::cargo().args(["test", "--workspace"]).env("OXBOW_BLESS", "1"))?;
    process::run(
        Command::new("git")
            .current_dir(workspace::root())
            .args(["status", "--short"]),
    )
}

/// One check that holds or does not.
fn step(name: &str, check: impl FnOnce() -> anyhow::Result<()>) -> Tally {
    println!("\n== {name}");
    match check() {
        Ok(()) => Tally::passed(1),
        Err(error) => {
            println!("FAILED: {name}: {error:#}");
            Tally::failed(1)
        }
    }
}

fn command(command: &mut Command) -> anyhow::Result<()> {
    process::run(command)
}

fn check_layers() -> anyhow::Result<()> {
    let wrong = layers::check()?;
    if wrong.is_empty() {
        Ok(())
    } else {
        bail!("\n{}", wrong.join("\n"))
    }
}

fn check_size() -> anyhow::Result<()> {
    let findings = size::check()?;
    for line in &findings.warnings {
        println!("warning: {line}");
    }
    if findings.wrong.is_empty() {
        Ok(())
    } else {
        bail!("\n{}", findings.wrong.join("\n"))
    }
}

/// The faster test runner where it is installed.
fn unit_tests() -> (Runner, Command) {
    let mut command = workspace::cargo();
    let nextest = process::find("cargo-nextest").is_some();
    if nextest {
        let quiet = ["--status-level", "slow", "--final-status-level", "fail"];
        command
            .args(["nextest", "run", "--workspace", "--no-fail-fast", "--color", "never"])
            .args(quiet);
    } else {
        command.args([
            "test",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
            "--no-fail-fast",
            "--color",
            "never",
        ]);
    }
    (if nextest { Runner::Nextest } else { Runner::Cargo }, command)
}

/// A test runner of which we read the totals.
fn counted(name: &str, runner: Runner, command: &mut Command) -> Tally {
    println!("\n== {name}");
    match run_and_count(runner, command) {
        Ok(tally) => tally,
        Err(error) => {
            println!("FAILED: {name}: {error:#}");
            Tally::failed(1)
        }
    }
}

fn run_and_count(runner: Runner, command: &mut Command) -> anyhow::Result<Tally> {
    // Both of its streams go into one pipe, as they would go onto one terminal.
    let (reader, writer) = std::io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let shown = process::shown(command);
    let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
    // Our copies of the pipe's end, which would keep it from ending.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tally = Tally::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        if let Some(more) = Tally::of_line(runner, &line) {
            tally.add(more);
        }
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        bail!("{shown} ended with {status}");
    }
    Ok(tally)
}

/// The boots, once `oxbow` is built as users run it.
/// The servers of tests of networks.
pub(crate) fn network_server() -> anyhow::Result<()> {
    boots::networks::server::main()
}

fn guests(names: &[String]) -> Tally {
    println!("\n== boots of guests");
    match workspace::build_oxbow() {
        Ok(oxbow) => boots::run(&oxbow, names),
        Err(error) => {
            println!("FAILED: release build: {error:#}");
            Tally::failed(1)
        }
    }
}
