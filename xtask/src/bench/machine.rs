//! A machine that runs the benchmark guest: a command, or a chroot of this one.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::io::BufReader;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;

use super::guest::BenchGuest;
use crate::arguments::Usage;

/// Time that a machine gets to power off.
const POWER_OFF: Duration = Duration::from_secs(30);

/// A name and how to run the guest.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) name: String,
    /// Words with places to fill in; none for the native run.
    command: Vec<String>,
}

/// What one machine did in one round.
#[derive(Debug, Default)]
pub(super) struct Run {
    /// (name, seconds or another figure) in the order in which they ended; `boot` is from launch to the guest's first process.
    pub(super) seconds: Vec<(String, f64)>,
    /// Sum of each benchmark's output.
    pub(super) digests: BTreeMap<String, String>,
    pub(super) failures: Vec<String>,
}

impl Machine {
    pub(super) fn new(name: &str, command: &str) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            command: words(command).ok_or_else(|| Usage(format!("a quote is not closed in: {command}")))?,
        })
    }

    /// Runs the guest once.
    pub(super) fn run(&self, guest: &BenchGuest, only: &[String], timeout: Duration) -> anyhow::Result<Run> {
        let mut command = self.command_line(guest, only);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let launch = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.name))?;
        let lines = lines_of(&mut child)?;
        let mut follower = Follower::new(launch);
        let deadline = launch + timeout;
        while !follower.done {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((at, line)) => follower.take(at, &line),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    follower
                        .run
                        .failures
                        .push(format!("stopped after {} s", timeout.as_secs()));
                    break;
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    follower.run.failures.push("ended before the last benchmark".to_owned());
                    break;
                }
            }
        }
        if !follower.done || !ends(&mut child, &lines)? {
            // Only what is ours; an error says that it is gone already.
            let _ = child.kill();
            child.wait()?;
        }
        Ok(follower.run)
    }

    fn command_line(&self, guest: &BenchGuest, only: &[String]) -> Command {
        let Some((program, arguments)) = self.command.split_first() else {
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "chroot"])
                .arg(guest.rootfs())
                .args(["/bin/bash", "-c"]);
            let names = only.join(" ");
            command.arg(format!("mount -t tmpfs tmp /tmp; exec bash /bench/bench.sh {names}"));
            return command;
        };
        let mut append = "console=ttyS0 quiet panic=-1".to_owned();
        if !only.is_empty() {
            append.push_str(&format!(" bench={}", only.join(",")));
        }
        let fill = |word: &String| {
            word.replace("{kernel}", &guest.kernel().to_string_lossy())
                .replace("{initrd}", &guest.initrd().to_string_lossy())
                .replace("{append}", &append)
        };
        let mut command = Command::new(fill(program));
        command.args(arguments.iter().map(fill));
        command
    }
}

/// The child's lines with the times of their arrival.
pub(super) fn lines_of(child: &mut Child) -> anyhow::Result<Receiver<(Instant, String)>> {
    let output = child.stdout.take().context("no standard output")?;
    let (lines, arrived) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if lines
                .send((Instant::now(), String::from_utf8_lossy(&line).into_owned()))
                .is_err()
            {
                break;
            }
        }
    });
    Ok(arrived)
}

/// Waits for the end of a machine that has done its work; false if it does not come.
fn ends(child: &mut Child, lines: &Receiver<(Instant, String)>) -> anyhow::Result<bool> {
    let deadline = Instant::now() + POWER_OFF;
    while lines
        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        .is_ok()
    {}
    if Instant::now() >= deadline {
        return Ok(false);
    }
    child.wait()?;
    Ok(true)
}

/// Reads the guest's marks.
#[derive(Debug)]
struct Follower {
    launch: Instant,
    begun: BTreeMap<String, Instant>,
    done: bool,
    run: Run,
}

impl Follower {
    fn new(launch: Instant) -> Self {
        Self {
            launch,
            begun: BTreeMap::new(),
            done: false,
            run: Run::default(),
        }
    }

    fn take(&mut self, at: Instant, line: &str) {
        let Some((_, mark)) = line.split_once("@@") else {
            return;
        };
        let words: Vec<&str> = mark.split_whitespace().collect();
        match words.as_slice() {
            ["boot"] => self
                .run
                .seconds
                .push(("boot".to_owned(), (at - self.launch).as_secs_f64())),
            ["begin", name] => drop(self.begun.insert((*name).to_owned(), at)),
            ["end", name, digest] => {
                let begin = self.begun.get(*name).copied().unwrap_or(self.launch);
                self.run.seconds.push(((*name).to_owned(), (at - begin).as_secs_f64()));
                self.run.digests.insert((*name).to_owned(), (*digest).to_owned());
            }
            ["fail", why @ ..] => self.run.failures.push(format!("failed: {}", why.join(" "))),
            ["done"] => self.done = true,
            _ => {}
        }
    }
}

/// Splits a command at blanks; single and double quotes hold words together. None if a quote is not closed.
fn words(command: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in command.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_a_shell_would() {
        let split = words("a  'b c' \"d 'e\" f''g ''").unwrap();
        assert_eq!(split, ["a", "b c", "d 'e", "fg", ""]);
        assert_eq!(words(""), Some(Vec::new()));
        assert_eq!(words("a 'b"), None);
    }

    #[test]
    fn marks_give_times_and_digests() {
        let launch = Instant::now();
        let second = |n| launch + Duration::from_secs(n);
        let mut follower = Follower::new(launch);
        follower.take(second(2), "noise @@boot\r");
        follower.take(second(3), "@@begin sort\r");
        follower.take(second(5), "[    5.0] clocksource: @ nothing");
        follower.take(second(7), "@@end sort 0123abcd\r");
        follower.take(second(8), "@@fail gcc no such file\r");
        assert!(!follower.done);
        follower.take(second(9), "@@done\r");
        assert!(follower.done);
        assert_eq!(
            follower.run.seconds,
            [("boot".to_owned(), 2.0), ("sort".to_owned(), 4.0)]
        );
        assert_eq!(follower.run.digests.get("sort").map(String::as_str), Some("0123abcd"));
        assert_eq!(follower.run.failures, ["failed: gcc no such file"]);
    }
}
