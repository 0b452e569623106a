//! A guest that is worked with through `oxbow ctl`: its screen, its keyboard, its time, its power button.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;
use serde_json::Value;

use super::Lab;
use super::cases::no_complaints;
use crate::boot::Boot;
use crate::boot::Seen;
use crate::process;

/// How long a machine may take to open its socket.
const SOCKET: Duration = Duration::from_secs(60);
/// How long the guest may take to show something.
const SCREEN: &str = "600";
/// How long the guest is paused.
const PAUSE: Duration = Duration::from_secs(8);

/// Ends the guest when its power button is pressed. The kernel has both drivers as modules.
const LISTEN: &str = "for m in evdev button; do insmod /lib/modules/$m.ko; done; sleep 1; \
                      for e in /sys/class/input/event*; do grep -q Power $e/device/name && n=${e##*/}; done; \
                      echo hear''ing $n; head -c 24 /dev/input/$n > /dev/null; poweroff -f";

/// `oxbow ctl` with one machine.
pub(super) struct Ctl<'a> {
    oxbow: &'a Path,
    socket: &'a Path,
}

impl Ctl<'_> {
    pub(super) fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(self.oxbow);
        process::output(command.arg("ctl").arg(self.socket).args(arguments))
    }

    /// Waits until the screen has a text.
    pub(super) fn wait_for(&self, text: &str) -> anyhow::Result<String> {
        self.ask(&["screen-text", "--wait-for", text, "--timeout", SCREEN])
    }

    /// Types a command at the shell's prompt.
    fn enter(&self, command: &str) -> anyhow::Result<()> {
        self.ask(&["type", command, "--enter"]).map(drop)
    }

    /// The guest's time by the machine, in seconds.
    fn time(&self) -> anyhow::Result<f64> {
        let status: Value = serde_json::from_str(&self.ask(&["status", "--json"])?)?;
        let ns = status.get("time-ns").and_then(Value::as_f64);
        Ok(ns.context("no time-ns")? / 1e9)
    }

    /// The guest's time by its kernel, which is shown behind `name`.
    fn uptime(&self, name: &str) -> anyhow::Result<f64> {
        self.enter(&format!("echo {name}\"\"=$(cut -d' ' -f1 /proc/uptime)"))?;
        let mark = format!("{name}=");
        let screen = self.wait_for(&mark)?;
        let line = screen.lines().find_map(|line| line.strip_prefix(&mark));
        Ok(line.context("no time on the screen")?.trim().parse()?)
    }
}

pub(super) fn screen_and_keyboard_work_by_the_control_socket(lab: &Lab) -> anyhow::Result<()> {
    // The last console is the shell's.
    let append = "console=ttyS0 console=tty0 panic=-1";
    let boot = Boot::new(lab.oxbow, lab.guest("full")?, append).with(&["--machine", "pc"]);
    controlled(lab, boot, work, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        ensure!(seen.errors.is_empty(), "oxbow had something to say: {}", seen.errors);
        no_complaints(seen)
    })
}

/// Boots with a control socket, lets `user` work with the machine, and `judge` what was seen of it in the end.
pub(super) fn controlled(
    lab: &Lab,
    boot: Boot,
    user: impl FnOnce(&Ctl<'_>) -> anyhow::Result<()> + Send,
    judge: impl FnOnce(&Seen) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("oxbow-{}-{}", lab.name, std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let socket = dir.join("vm.sock");
    let boot = boot.with(&["--control", &socket.to_string_lossy()]);
    let user = thread::scope(|scope| {
        let user = scope.spawn(|| use_it(lab.oxbow, &socket, user));
        let watched = lab.watch(&boot, judge);
        (user.join(), watched)
    });
    let _ = std::fs::remove_dir_all(&dir);
    match user {
        // Why a machine ended early says more than that it was not there.
        (Ok(Err(user)), Err(watched)) => Err(watched.context(user)),
        (Ok(user), watched) => user.and(watched),
        (Err(_), _) => bail!("the user panicked"),
    }
}

fn use_it(oxbow: &Path, socket: &Path, user: impl FnOnce(&Ctl<'_>) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let end = Instant::now() + SOCKET;
    while !socket.exists() {
        ensure!(Instant::now() < end, "no control socket");
        thread::sleep(Duration::from_millis(20));
    }
    let ctl = Ctl { oxbow, socket };
    let result = user(&ctl);
    if result.is_err() {
        // What was on the screen says more than the console; the machine may be gone.
        let screen = ctl.ask(&["screen-text"]).unwrap_or_default();
        let _ = ctl.ask(&["quit"]);
        return result.context(screen);
    }
    result
}

fn work(ctl: &Ctl<'_>) -> anyhow::Result<()> {
    ctl.wait_for("/root #")?;
    ctl.enter("clear; echo \"$((6*7))-{Screen}\"")?;
    ctl.wait_for("42-{Screen}")?;
    let (by_machine, by_guest) = (ctl.time()?, ctl.uptime("before")?);
    ctl.ask(&["pause"])?;
    thread::sleep(PAUSE);
    ctl.ask(&["resume"])?;
    let by_guest = ctl.uptime("after")? - by_guest;
    let by_machine = ctl.time()? - by_machine;
    ensure!(
        by_guest <= by_machine + 1.0,
        "{by_guest:.1} s passed in the guest, and {by_machine:.1} s of its machine's time"
    );
    ctl.enter(LISTEN)?;
    ctl.wait_for("hearing event")?;
    ctl.ask(&["power-button"]).map(drop)
}
