//! `cargo xtask bench`: real programs in a guest, timed from outside, on one machine beside the other.
//!
//! The guest marks begin and end of each program on its console; the times are taken here, so that a guest clock that
//! runs wrong cannot flatter the result, and each program's output is compared between the machines. Rounds go in
//! turn over all machines, since the speed of a shared host drifts; figures are medians.

mod guest;
mod io;
mod machine;
mod report;

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;

use crate::arguments::Arguments;
use crate::arguments::Usage;
use crate::workspace;
use guest::BenchGuest;
use machine::Machine;
use report::Results;

/// What `--machine` is when nothing is said.
const OXBOW: &str = "run --no-reboot --memory 2G --kernel {kernel} --initrd {initrd} --append '{append}'";
const QEMU: &str = "qemu-system-x86_64 -accel tcg -cpu max -smp 1 -m 2048 -display none -serial stdio -monitor none \
                    -no-reboot -nic none -kernel {kernel} -initrd {initrd} -append '{append}'";

#[derive(Debug)]
struct Options {
    guest: Option<PathBuf>,
    only: Vec<String>,
    rounds: usize,
    machines: Vec<String>,
    timeout: Duration,
    json: PathBuf,
    markdown: PathBuf,
}

impl Options {
    fn read(mut arguments: Arguments) -> anyhow::Result<Self> {
        let mut machines = Vec::new();
        while let Some(machine) = arguments.value("--machine")? {
            machines.push(machine);
        }
        let only = arguments.value("--only")?.unwrap_or_default();
        let options = Self {
            guest: arguments.value("--guest")?.map(PathBuf::from),
            only: only
                .split(',')
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
                .collect(),
            rounds: arguments.parsed("-n")?.unwrap_or(1),
            machines,
            timeout: Duration::from_secs(arguments.parsed("--timeout")?.unwrap_or(3600)),
            json: output(arguments.value("--json")?, "bench.json"),
            markdown: output(arguments.value("--markdown")?, "bench.md"),
        };
        arguments.end()?;
        let is_word = |name: &String| {
            name.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        if let Some(name) = options.only.iter().find(|name| !is_word(name)) {
            return Err(Usage(format!("{name} is no name of a benchmark")).into());
        }
        Ok(options)
    }
}

/// Where a table goes.
fn output(asked: Option<String>, name: &str) -> PathBuf {
    asked.map_or_else(|| workspace::root().join("target").join(name), PathBuf::from)
}

pub(crate) fn main(mut arguments: Arguments) -> anyhow::Result<()> {
    if arguments.flag("io") {
        return io::main(arguments);
    }
    let options = Options::read(arguments)?;
    let guest = match &options.guest {
        Some(dir) => BenchGuest::at(dir)?,
        None => BenchGuest::prepare()?,
    };
    let machines = machines(&options.machines)?;
    let mut results = Results::new("seconds", machines.iter().map(|machine| machine.name.clone()).collect());
    for round in 1..=options.rounds {
        for (index, machine) in machines.iter().enumerate() {
            eprintln!("bench: round {round} of {}, {}", options.rounds, machine.name);
            let run = machine.run(&guest, &options.only, options.timeout)?;
            for failure in &run.failures {
                eprintln!("bench: {}: {failure}", machine.name);
            }
            results.add(index, run);
        }
    }
    publish(&results, &options.json, &options.markdown)
}

/// Shows the figures and writes them down. Fails when not all of them are to be trusted.
fn publish(results: &Results, json: &Path, markdown: &Path) -> anyhow::Result<()> {
    print!("{}", results.table());
    for (path, text) in [(json, results.json()?), (markdown, results.markdown())] {
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
        eprintln!("bench: written to {}", path.display());
    }
    if results.has_failures() {
        bail!("not all benchmarks ended, or not with the same output everywhere");
    }
    Ok(())
}

/// The machines that were asked for, or those that this host has.
fn machines(asked: &[String]) -> anyhow::Result<Vec<Machine>> {
    if asked.is_empty() {
        return default_machines();
    }
    let read = |text: &String| match text.split_once('=') {
        Some((name, command)) => Machine::new(name, command),
        None if text == "native" => Machine::new(text, ""),
        None if text == "oxbow" => oxbow(),
        None if text == "qemu-tcg" => Machine::new(text, QEMU),
        None => Err(Usage(format!("--machine {text}: not NAME=COMMAND")).into()),
    };
    asked.iter().map(read).collect()
}

fn default_machines() -> anyhow::Result<Vec<Machine>> {
    let mut machines = Vec::new();
    if guest::is_root() {
        machines.push(Machine::new("native", "")?);
    } else {
        eprintln!("bench: no native run: a chroot needs root");
    }
    if crate::process::find("qemu-system-x86_64").is_some() {
        machines.push(Machine::new("qemu-tcg", QEMU)?);
    } else {
        eprintln!("bench: no QEMU: qemu-system-x86_64 is not installed");
    }
    machines.push(oxbow()?);
    Ok(machines)
}

fn oxbow() -> anyhow::Result<Machine> {
    let program = workspace::build_oxbow()?;
    let program = program.to_str().context("oxbow lies at a path that is no text")?;
    Machine::new("oxbow", &format!("'{program}' {OXBOW}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> anyhow::Result<Options> {
        Options::read(Arguments::new(words.iter().map(|&word| word.to_owned())))
    }

    #[test]
    fn options_are_read_and_checked() {
        let options = read(&["--only", "sort,gcc", "-n", "3", "--machine", "a=b", "--machine=native="]).unwrap();
        assert_eq!(options.only, ["sort", "gcc"]);
        assert_eq!((options.rounds, options.machines.len()), (3, 2));
        assert!(read(&["--only", "sort;rm"]).is_err());
        assert!(read(&["what"]).is_err());
    }
}
