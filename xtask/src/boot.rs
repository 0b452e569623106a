//! A guest in `oxbow`, watched from outside: its console with times, its exit status, its use of the host's processor.

use std::io::Read;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::ensure;

use crate::guests::Guest;
use crate::process;

/// How long `oxbow` may take to notice its own `--timeout`.
const GRACE: Duration = Duration::from_secs(15);
/// Unit of the processor times in /proc, the same on every x86 host.
const TICK: Duration = Duration::from_millis(10);

/// What to boot, and how.
#[derive(Clone, Debug)]
pub(crate) struct Boot {
    oxbow: PathBuf,
    options: Vec<String>,
    /// Words before the command, which become it: where it runs, and as whom.
    before: Vec<String>,
    timeout: Duration,
    /// What to type once the console shows something: (seen, typed), in this order.
    dialogue: Vec<(&'static str, &'static str)>,
    told: Told,
}

/// All that a guest's console has said so far, for those who wait for something in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told(Arc<Mutex<Said>>);

#[derive(Debug, Default)]
struct Said {
    /// The machine's process, from its start on.
    process: u32,
    text: String,
    /// Nothing more will be said.
    ended: bool,
}

/// A line of the console.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) text: String,
    /// Since launch, when the line was complete.
    pub(crate) at: Duration,
    /// Processor time that the machine had used by then.
    pub(crate) cpu: Duration,
}

/// How it went.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) command: String,
    pub(crate) lines: Vec<Line>,
    pub(crate) first_output: Option<Duration>,
    pub(crate) end: Duration,
    /// None when it was killed.
    pub(crate) status: Option<i32>,
    /// What `oxbow` itself had to say.
    pub(crate) errors: String,
}

impl Boot {
    /// A guest with a command line; the machine ends when the guest resets.
    pub(crate) fn new(oxbow: &Path, guest: &Guest, append: &str) -> Self {
        Self::kernel(oxbow, &guest.kernel, &guest.initrd, append)
    }

    /// As `new`, with another form of the kernel.
    pub(crate) fn kernel(oxbow: &Path, kernel: &Path, initrd: &Path, append: &str) -> Self {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let words = [
            "run",
            "--no-reboot",
            "--kernel",
            &path(kernel),
            "--initrd",
            &path(initrd),
            "--append",
            append,
        ];
        Self {
            oxbow: oxbow.to_owned(),
            options: words.map(str::to_owned).to_vec(),
            before: Vec::new(),
            timeout: Duration::from_secs(600),
            dialogue: Vec::new(),
            told: Told::default(),
        }
    }

    /// A PC that its firmware boots from what the options say.
    pub(crate) fn firmware(oxbow: &Path, machine: &str) -> Self {
        Self {
            oxbow: oxbow.to_owned(),
            options: ["run", "--no-reboot", "--machine", machine].map(str::to_owned).to_vec(),
            before: Vec::new(),
            timeout: Duration::from_secs(1200),
            dialogue: Vec::new(),
            told: Told::default(),
        }
    }

    /// Adds options of `oxbow run`.
    pub(crate) fn with(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(|&option| option.to_owned()));
        self
    }

    /// Runs the machine by these words, of which the process has to become the machine's own.
    pub(crate) fn by(mut self, words: &[&str]) -> Self {
        self.before.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(crate) fn dialogue(mut self, dialogue: &[(&'static str, &'static str)]) -> Self {
        self.dialogue = dialogue.to_vec();
        self
    }

    /// What the console says while it is watched.
    pub(crate) fn told(&self) -> Told {
        self.told.clone()
    }

    /// The command, for a terminal.
    pub(crate) fn command(&self) -> Command {
        let mut command = match self.before.split_first() {
            Some((program, words)) => {
                let mut command = Command::new(program);
                command.args(words).arg(&self.oxbow);
                command
            }
            None => Command::new(&self.oxbow),
        };
        command.args(&self.options);
        command
    }

    /// Boots, and waits for the end.
    pub(crate) fn watch(&self) -> anyhow::Result<Seen> {
        let mut command = self.command();
        command.args(["--timeout", &self.timeout.as_secs_f64().to_string()]);
        let shown = process::shown(&command);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let launch = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot run {shown}"))?;
        self.told.said().process = child.id();
        let mut errors = child.stderr.take().context("no standard error")?;
        let errors = thread::spawn(move || {
            let mut text = Vec::new();
            let _ = errors.read_to_end(&mut text);
            String::from_utf8_lossy(&text).trim_end().to_owned()
        });
        let mut console = Console::new(launch, child.id(), &self.dialogue, self.told());
        let followed = console.follow(&mut child, launch + self.timeout + GRACE);
        self.told.said().ended = true;
        let in_time = followed?;
        if !in_time {
            child.kill()?;
        }
        let status = child.wait()?;
        Ok(Seen {
            command: shown,
            first_output: console.first_output,
            lines: console.finish(),
            end: launch.elapsed(),
            status: status.code(),
            errors: errors.join().unwrap_or_default(),
        })
    }
}

impl Told {
    /// The machine's process; 0 before it has begun.
    pub(crate) fn process(&self) -> u32 {
        self.said().process
    }

    /// Waits until the console has said `end`, and returns all that it has said.
    pub(crate) fn wait_for(&self, end: &str, patience: Duration) -> anyhow::Result<String> {
        self.wait(end, patience, |text| text.contains(end).then(|| text.to_owned()))
    }

    /// Waits for a whole line behind the first `heard` bytes that begins with `mark`; returns the rest of it, and moves
    /// `heard` behind it.
    pub(crate) fn wait_for_line(&self, mark: &str, heard: &mut usize, patience: Duration) -> anyhow::Result<String> {
        self.wait(mark, patience, |text| {
            while let Some(len) = text[*heard..].find('\n') {
                let line = &text[*heard..*heard + len];
                *heard += len + 1;
                if let Some(rest) = line.strip_prefix(mark) {
                    return Some(rest.trim().to_owned());
                }
            }
            None
        })
    }

    fn wait(
        &self,
        awaited: &str,
        patience: Duration,
        mut find: impl FnMut(&str) -> Option<String>,
    ) -> anyhow::Result<String> {
        let deadline = Instant::now() + patience;
        loop {
            let ended = {
                let said = self.said();
                if let Some(found) = find(&said.text) {
                    return Ok(found);
                }
                said.ended
            };
            ensure!(!ended, "the guest ended and did not say {awaited:?}");
            ensure!(Instant::now() < deadline, "the guest did not say {awaited:?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Seen {
    /// The first line that has this in it.
    pub(crate) fn line(&self, part: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.text.contains(part))
    }

    /// Everything, for a file or for a reader who has to find out what went wrong.
    pub(crate) fn log(&self) -> String {
        let mut log = format!("$ {}\n", self.command);
        for line in &self.lines {
            log.push_str(&format!("{:8.3} {}\n", line.at.as_secs_f64(), line.text));
        }
        if !self.errors.is_empty() {
            log.push_str(&format!("{}\n", self.errors));
        }
        match self.status {
            Some(status) => log.push_str(&format!("exit status {status} after {:.1} s\n", self.end.as_secs_f64())),
            None => log.push_str(&format!("killed after {:.1} s\n", self.end.as_secs_f64())),
        }
        log
    }
}

/// Follows a child's output line by line and talks to it.
#[derive(Debug)]
struct Console<'a> {
    launch: Instant,
    id: u32,
    dialogue: &'a [(&'static str, &'static str)],
    /// Output that no answer of the dialogue was given to yet.
    unanswered: String,
    partial: Vec<u8>,
    lines: Vec<Line>,
    first_output: Option<Duration>,
    told: Told,
}

impl<'a> Console<'a> {
    fn new(launch: Instant, id: u32, dialogue: &'a [(&'static str, &'static str)], told: Told) -> Self {
        Self {
            launch,
            id,
            dialogue,
            unanswered: String::new(),
            partial: Vec::new(),
            lines: Vec::new(),
            first_output: None,
            told,
        }
    }

    /// Reads until the end of the output; false when the deadline came first.
    fn follow(&mut self, child: &mut Child, deadline: Instant) -> anyhow::Result<bool> {
        let mut output = child.stdout.take().context("no standard output")?;
        let mut input = child.stdin.take().context("no standard input")?;
        let (chunks, arrived) = mpsc::channel();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = output.read(&mut buffer) {
                if chunks.send(buffer[..len].to_vec()).is_err() {
                    break;
                }
            }
        });
        loop {
            match arrived.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(chunk) => {
                    if let Some(answer) = self.take(&chunk) {
                        // A machine that has just ended reads nothing any more.
                        let _ = input.write_all(answer.as_bytes()).and_then(|()| input.flush());
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(false),
                Err(RecvTimeoutError::Disconnected) => return Ok(true),
            }
        }
    }

    /// Takes new output; what to type now.
    fn take(&mut self, chunk: &[u8]) -> Option<&'static str> {
        let at = self.launch.elapsed();
        self.first_output.get_or_insert(at);
        self.told.said().text.push_str(&String::from_utf8_lossy(chunk));
        for &byte in chunk {
            match byte {
                b'\n' => self.end_line(at),
                b'\r' => {}
                _ => self.partial.push(byte),
            }
        }
        let (&(awaited, answer), later) = self.dialogue.split_first()?;
        self.unanswered.push_str(&String::from_utf8_lossy(chunk));
        let seen = self.unanswered.find(awaited)?;
        self.unanswered.drain(..seen + awaited.len());
        self.dialogue = later;
        Some(answer)
    }

    fn end_line(&mut self, at: Duration) {
        let text = String::from_utf8_lossy(&self.partial).into_owned();
        self.partial.clear();
        let cpu = processor_time(self.id).unwrap_or_default();
        self.lines.push(Line { text, at, cpu });
    }

    fn finish(mut self) -> Vec<Line> {
        if !self.partial.is_empty() {
            self.end_line(self.launch.elapsed());
        }
        self.lines
    }
}

/// User and system time of a process.
fn processor_time(id: u32) -> Option<Duration> {
    ticks(&std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?)
}

/// The times in a line of /proc/PID/stat, whose second field is a name in parentheses with anything in it.
fn ticks(stat: &str) -> Option<Duration> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let user: u32 = fields.nth(11)?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(TICK * user.checked_add(system)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console<'a>(dialogue: &'a [(&'static str, &'static str)]) -> Console<'a> {
        Console::new(Instant::now(), std::process::id(), dialogue, Told::default())
    }

    #[test]
    fn lines_are_joined_over_chunks_and_lose_carriage_returns() {
        let mut console = console(&[]);
        assert_eq!(console.take(b"one\r\ntw"), None);
        assert_eq!(console.take(b"o\r\nthree"), None);
        let lines: Vec<String> = console.finish().into_iter().map(|line| line.text).collect();
        assert_eq!(lines, ["one", "two", "three"]);
    }

    #[test]
    fn dialogue_answers_in_order_and_only_to_later_output() {
        let mut console = console(&[("$ ", "first\n"), ("$ ", "second\n")]);
        assert_eq!(console.take(b"welcome\n~ "), None);
        assert_eq!(console.take(b"$ "), Some("first\n"));
        assert_eq!(console.take(b"first\r\n"), None);
        assert_eq!(console.take(b"~ $ "), Some("second\n"));
        assert_eq!(console.take(b"~ $ "), None);
    }

    #[test]
    fn ticks_skip_a_name_with_spaces() {
        let stat = "42 (a ) b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0 20 0";
        assert_eq!(ticks(stat), Some(Duration::from_millis(1750)));
        assert_eq!(ticks("nothing"), None);
    }
}
