//! `oxbow ctl status`, `inspect` and `events`.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use control::Event;
use control::Request;
use control::Status;
use serde_json::Value;
use spec::EngineKind;

use super::Link;
use crate::disk::output::size;
use crate::failure::Failure;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  oxbow ctl vm.sock inspect\n  oxbow ctl vm.sock inspect pc/devices/pit/counter0/mode"
)]
pub(super) struct InspectArgs {
    /// Which part, such as pc/devices/pit; all of it if this is not given
    #[arg(default_value = "")]
    path: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  oxbow ctl vm.sock events --json\n  oxbow ctl vm.sock events --count 1")]
pub(super) struct EventsArgs {
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  oxbow ctl vm.sock engine interp\n  oxbow ctl vm.sock engine auto")]
pub(super) struct EngineArgs {
    /// kvm, jit, interp, or auto for the fastest that works here
    engine: EngineKind,
}

pub(super) fn engine(link: &mut Link, args: &EngineArgs) -> Result<ExitCode, Failure> {
    let value = link.client.call(&Request::Engine {
        engine: args.engine.to_string(),
    })?;
    let name = value.get("engine").and_then(Value::as_str).unwrap_or_default();
    link.answer(&value, &format!("{name}\n"))
}

pub(super) fn status(link: &mut Link) -> Result<ExitCode, Failure> {
    let value = link.client.call(&Request::Status {})?;
    let status: Result<Status, _> = serde_json::from_value(value.clone());
    // A field that this version does not expect is no reason to show nothing.
    let lines = status.map_or_else(|_| tree(&value), |status| describe(&status));
    link.answer(&value, &lines)
}

fn describe(status: &Status) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Text in memory takes all that is written.
        let _ = writeln!(text, "{:<12}{value}", format!("{name}:"));
    };
    line("state", &status.state);
    line("machine", &status.machine);
    line("engine", &status.engine);
    line("processors", &status.cpus.to_string());
    line("memory", &size(status.memory));
    let time = Duration::from_nanos(status.time_ns);
    line("guest time", &format!("{:.3} s", time.as_secs_f64()));
    line("process", &status.pid.to_string());
    if let Some(screen) = &status.screen {
        line("screen", &format!("{}x{} {}", screen.width, screen.height, screen.mode));
        if let Some(vnc) = &screen.vnc {
            line("vnc", vnc);
        }
    }
    for drive in &status.drives {
        let medium = match &drive.medium {
            None => "empty".to_owned(),
            Some(medium) if medium.read_only => format!("{} (read only)", medium.file.display()),
            Some(medium) => medium.file.display().to_string(),
        };
        line(&drive.name, &medium);
    }
    for drive in &status.attached {
        let file = drive.file.as_ref().map(|file| file.display().to_string());
        let what = file
            .filter(|_| drive.kind == "disk")
            .unwrap_or_else(|| drive.kind.clone());
        let leaves = if drive.detaching { ", asked to leave" } else { "" };
        line(
            &drive.place,
            &format!("{} ({}, {}{leaves})", drive.name, what, drive.bus),
        );
    }
    text
}

pub(super) fn inspect(link: &mut Link, args: &InspectArgs) -> Result<ExitCode, Failure> {
    let request = Request::Inspect {
        path: args.path.clone(),
    };
    let value = link.client.call(&request)?;
    link.answer(&value, &tree(&value))
}

/// A value as lines, children below their parents.
fn tree(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(_) => branch(value, 0, &mut text),
        leaf => {
            let _ = writeln!(text, "{}", plain(leaf));
        }
    }
    text
}

fn branch(value: &Value, depth: usize, text: &mut String) {
    for (name, child) in value.as_object().into_iter().flatten() {
        let indent = "  ".repeat(depth);
        let _ = match child {
            Value::Object(_) => writeln!(text, "{indent}{name}"),
            leaf => writeln!(text, "{indent}{name}: {}", plain(leaf)),
        };
        branch(child, depth + 1, text);
    }
}

/// Numbers with their hexadecimal form, where that says more.
fn plain(leaf: &Value) -> String {
    match (leaf, leaf.as_u64()) {
        (Value::String(text), _) => text.clone(),
        (_, Some(number)) if number > 9 => format!("{number} ({number:#x})"),
        (other, _) => other.to_string(),
    }
}

pub(super) fn events(link: &mut Link, args: &EventsArgs) -> Result<ExitCode, Failure> {
    link.client.call(&Request::Subscribe {})?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0
        && let Some(event) = link.client.next_event()?
    {
        let line = match link.json {
            true => serde_json::to_string(&event).map_err(Failure::host)?,
            false => sentence(&event),
        };
        let mut stdout = std::io::stdout().lock();
        match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            // A reader that has seen enough is no failure.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => break,
            result => result.map_err(Failure::host)?,
        }
        left -= 1;
    }
    Ok(ExitCode::SUCCESS)
}

fn sentence(event: &Event) -> String {
    match event {
        Event::State { state } => format!("state: {state}"),
        Event::Reset { by } => format!("reset by the {by}"),
        Event::End { reason, detail: None } => format!("end: {reason}"),
        Event::End {
            reason,
            detail: Some(detail),
        } => format!("end: {reason}: {detail}"),
        Event::Medium {
            drive,
            file: Some(file),
        } => format!("medium: {drive} has {}", file.display()),
        Event::Medium { drive, file: None } => format!("medium: {drive} is empty"),
        Event::Attached { drive, place } => format!("attached: {drive} in {place}"),
        Event::Detached { drive } => format!("detached: {drive}"),
        Event::Lost { count } => format!("{count} events were lost"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn trees_are_indented_and_numbers_are_shown_both_ways() {
        let value = json!({"pit": {"counter0": {"mode": 3, "reload": 4096}, "on": true}});
        let expected = "pit\n  counter0\n    mode: 3\n    reload: 4096 (0x1000)\n  on: true\n";
        assert_eq!(tree(&value), expected);
        assert_eq!(tree(&json!("idle")), "idle\n");
    }
}
