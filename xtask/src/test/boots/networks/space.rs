//! Network namespaces of tests: made by `ip`, gone when they are dropped, with all that is in them.

use std::io::BufRead;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use anyhow::Context;
use anyhow::ensure;

use super::super::Skip;
use super::server;
use crate::process;

/// A namespace.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) name: String,
}

/// A process in it, which ends with us.
#[derive(Debug)]
pub(super) struct Running(Child);

impl Running {
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What of a host's such tests need.
pub(super) fn check(programs: &[&str]) -> anyhow::Result<()> {
    let missing = ["ip", "sh"]
        .iter()
        .chain(programs)
        .find(|program| process::find(program).is_none());
    if let Some(program) = missing {
        return Err(Skip(format!("{program} is not installed")).into());
    }
    let made = Space::new();
    match made {
        Ok(_) => Ok(()),
        Err(error) => Err(Skip(format!("no network namespaces can be made here: {error:#}")).into()),
    }
}

impl Space {
    pub(super) fn new() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("oxt{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        process::output(Command::new("ip").args(["netns", "add", &name]))?;
        let space = Self { name };
        space.run("ip link set lo up")?;
        Ok(space)
    }

    /// A command in it.
    pub(super) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs commands of a shell in it. What they say.
    pub(super) fn run(&self, script: &str) -> anyhow::Result<String> {
        process::output(self.command("sh").args(["-e", "-c", script]))
    }

    /// Starts a program in it that is to run until it is dropped.
    pub(super) fn start(&self, program: &str, words: &[&str]) -> anyhow::Result<Running> {
        let mut command = self.command(program);
        command
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(Running(
            command.spawn().with_context(|| format!("cannot run {program}"))?,
        ))
    }

    /// Starts the servers of the world in it, which have the files of a directory.
    pub(super) fn serve(&self, dir: &Path) -> anyhow::Result<Running> {
        let own = std::env::current_exe()?;
        let mut command = self.command(&own.to_string_lossy());
        command
            .arg("network-server")
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let out = child.stdout.take().context("no output")?;
        let running = Running(child);
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        ensure!(line.trim() == server::READY, "the servers do not start: {line:?}");
        Ok(running)
    }

    /// The file that is `/etc/resolv.conf` there.
    fn resolv_conf(&self) -> PathBuf {
        PathBuf::from("/etc/netns").join(&self.name).join("resolv.conf")
    }

    /// Says which name server those who are in it ask. It is the same file each time, so that they notice.
    pub(super) fn set_resolver(&self, address: &str) -> anyhow::Result<()> {
        let path = self.resolv_conf();
        std::fs::create_dir_all(path.parent().context("no directory")?)?;
        std::fs::write(path, format!("nameserver {address}\n"))?;
        Ok(())
    }

    /// Makes a cable to another: interfaces of these names, up.
    pub(super) fn link(&self, name: &str, other: &Self, other_name: &str) -> anyhow::Result<()> {
        let words = [
            "link", "add", name, "netns", &self.name, "type", "veth", "peer", "name", other_name,
        ];
        process::output(Command::new("ip").args(words).args(["netns", &other.name]))?;
        self.run(&format!("ip link set {name} up"))?;
        other.run(&format!("ip link set {other_name} up"))?;
        Ok(())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = process::output(Command::new("ip").args(["netns", "del", &self.name]));
        if let Some(dir) = self.resolv_conf().parent() {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}
