//! `oxbow ctl` as tests use it: a user at the screen and keyboard of a machine, while its console is watched.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;

use super::Lab;
use crate::boot::Boot;
use crate::boot::Seen;
use crate::process;

/// How long a machine may take to open its socket.
const SOCKET: Duration = Duration::from_secs(60);

/// `oxbow ctl` with one machine.
pub(super) struct Ctl<'a> {
    oxbow: &'a Path,
    socket: &'a Path,
    /// How long the guest may take to show something, in seconds.
    patience: &'a str,
}

impl Ctl<'_> {
    pub(super) fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.oxbow);
        process::output(command.arg("ctl").arg(self.socket).args(arguments))
    }

    /// Waits for a text mode to show this, and returns all that it shows.
    pub(super) fn wait_for(&self, text: &str) -> anyhow::Result<String> {
        self.ask(&["screen-text", "--wait-for", text, "--timeout", self.patience])
    }

    /// Types a line.
    pub(super) fn enter(&self, line: &str) -> anyhow::Result<()> {
        self.ask(&["type", line, "--enter"]).map(drop)
    }

    pub(super) fn key(&self, chord: &str) -> anyhow::Result<()> {
        self.ask(&["key", chord]).map(drop)
    }

    /// A directory for this boot, which is there as long as the user is at work.
    pub(super) fn dir(&self) -> &Path {
        self.socket.parent().unwrap_or(Path::new("/"))
    }

    fn wait_until_there(&self) -> anyhow::Result<()> {
        let end = Instant::now() + SOCKET;
        while !self.socket.exists() {
            ensure!(Instant::now() < end, "no control socket");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Watches a boot as `Lab::watch` does, while `user` works with the machine. The machine ends at once when the user fails.
pub(super) fn with_user(
    lab: &Lab,
    boot: Boot,
    patience: &str,
    user: impl FnOnce(&Ctl<'_>) -> anyhow::Result<()> + Send,
    judge: impl FnOnce(&Seen) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("oxbow-{}-{}", lab.name, std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let socket = dir.join("vm.sock");
    let ctl = Ctl {
        oxbow: lab.oxbow,
        socket: &socket,
        patience,
    };
    let boot = boot.with(&["--control", &socket.to_string_lossy()]);
    let work = || {
        let result = ctl.wait_until_there().and_then(|()| user(&ctl));
        if result.is_err() {
            // What was on the screen says more than the console; the machine may be gone.
            let screen = ctl.ask(&["screen-text"]).unwrap_or_default();
            let _ = ctl.ask(&["quit"]);
            return result.map_err(|error| error.context(screen));
        }
        result
    };
    let (used, watched) = thread::scope(|scope| {
        let user = scope.spawn(work);
        let watched = lab.watch(&boot, judge);
        (user.join(), watched)
    });
    let _ = std::fs::remove_dir_all(&dir);
    match used {
        Ok(used) => used.and(watched),
        Err(_) => bail!("the user panicked"),
    }
}
