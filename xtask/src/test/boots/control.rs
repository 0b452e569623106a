//! A guest that is worked with through `oxbow ctl`: its screen, its keyboard, its time, its power button.

use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::ensure;
use serde_json::Value;

use super::Lab;
use super::cases::no_complaints;
use super::ctl::Ctl;
use super::ctl::with_user;
use crate::boot::Boot;

/// How long the guest may take to show something.
const SCREEN: &str = "600";
/// How long the guest is paused.
const PAUSE: Duration = Duration::from_secs(8);

/// Ends the guest when its power button is pressed. The kernel has both drivers as modules.
const LISTEN: &str = "for m in evdev button; do insmod /lib/modules/$m.ko; done; sleep 1; \
                      for e in /sys/class/input/event*; do grep -q Power $e/device/name && n=${e##*/}; done; \
                      echo hear''ing $n; head -c 24 /dev/input/$n > /dev/null; poweroff -f";

pub(super) fn screen_and_keyboard_work_by_the_control_socket(lab: &Lab) -> anyhow::Result<()> {
    // The last console is the shell's.
    let append = "console=ttyS0 console=tty0 panic=-1";
    let boot = Boot::new(lab.oxbow, lab.guest("full")?, append).with(&["--machine", "pc"]);
    with_user(lab, boot, SCREEN, work, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        ensure!(seen.errors.is_empty(), "oxbow had something to say: {}", seen.errors);
        no_complaints(seen)
    })
}

fn work(ctl: &Ctl<'_>) -> anyhow::Result<()> {
    ctl.wait_for("/root #")?;
    ctl.enter("clear; echo \"$((6*7))-{Screen}\"")?;
    ctl.wait_for("42-{Screen}")?;
    let (by_machine, by_guest) = (time(ctl)?, uptime(ctl, "before")?);
    ctl.ask(&["pause"])?;
    thread::sleep(PAUSE);
    ctl.ask(&["resume"])?;
    let by_guest = uptime(ctl, "after")? - by_guest;
    let by_machine = time(ctl)? - by_machine;
    ensure!(
        by_guest <= by_machine + 1.0,
        "{by_guest:.1} s passed in the guest, and {by_machine:.1} s of its machine's time"
    );
    ctl.enter(LISTEN)?;
    ctl.wait_for("hearing event")?;
    ctl.ask(&["power-button"]).map(drop)
}

/// The guest's time by the machine, in seconds.
fn time(ctl: &Ctl<'_>) -> anyhow::Result<f64> {
    let status: Value = serde_json::from_str(&ctl.ask(&["status", "--json"])?)?;
    let ns = status.get("time-ns").and_then(Value::as_f64);
    Ok(ns.context("no time-ns")? / 1e9)
}

/// The guest's time by its kernel, which is shown behind `name`.
fn uptime(ctl: &Ctl<'_>, name: &str) -> anyhow::Result<f64> {
    ctl.enter(&format!("echo {name}\"\"=$(cut -d' ' -f1 /proc/uptime)"))?;
    let mark = format!("{name}=");
    let screen = ctl.wait_for(&mark)?;
    let line = screen.lines().find_map(|line| line.strip_prefix(&mark));
    Ok(line.context("no time on the screen")?.trim().parse()?)
}
