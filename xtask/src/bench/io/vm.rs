//! A machine with a disk and a card: how QEMU and we are asked for it, and what its guest says.

use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

use super::super::machine;
use crate::guests::Guest;

/// How long a machine may take to do its work.
const LIMIT: Duration = Duration::from_secs(300);
/// How much the guest's clock may differ from ours, which its figures depend on.
const DRIFT: f64 = 0.1;
const DRIFT_SECONDS: f64 = 0.25;

/// Who runs the guest.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    QemuTcg,
    Oxbow(PathBuf),
}

/// The cable of a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cable {
    /// User-mode networking of both.
    Nat,
    /// A network of two machines, of which the first is up before the second. In QEMU it is a TCP connection, which is
    /// what it has for users without privileges.
    First(u16),
    Second(u16),
}

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Setup<'a> {
    /// Variables of the guest's script.
    pub(super) words: String,
    /// An image and the bus that it is on: `virtio` or `ide`.
    pub(super) disk: Option<(&'a Path, &'static str)>,
    /// A card of model `virtio` or `e1000`.
    pub(super) nic: Option<(&'static str, Cable)>,
}

impl Kind {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::QemuTcg => "qemu-tcg",
            Self::Oxbow(_) => "oxbow",
        }
    }

    fn command(&self, guest: &Guest, setup: &Setup<'_>) -> Command {
        let append = format!("console=ttyS0 quiet panic=-1 {}", setup.words);
        let mut command = match self {
            Self::QemuTcg => qemu(setup),
            Self::Oxbow(program) => oxbow(program, setup),
        };
        let option = |name: &str| match self {
            Self::QemuTcg => format!("-{name}"),
            Self::Oxbow(_) => format!("--{name}"),
        };
        command.arg(option("kernel")).arg(&guest.kernel);
        command.arg(option("initrd")).arg(&guest.initrd);
        command.arg(option("append")).arg(append);
        command
    }

    /// Starts the machine.
    pub(super) fn start(&self, guest: &Guest, setup: &Setup<'_>) -> anyhow::Result<Vm> {
        let mut command = self.command(guest, setup);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let launch = Instant::now();
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.name()))?;
        let lines = machine::lines_of(&mut child)?;
        Ok(Vm {
            child,
            lines,
            launch,
            begun: None,
        })
    }
}

fn address(cable: Cable) -> &'static str {
    match cable {
        Cable::Nat | Cable::First(_) => "52:54:00:12:34:56",
        Cable::Second(_) => "52:54:00:12:34:57",
    }
}

fn qemu(setup: &Setup<'_>) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024", "-no-reboot"]);
    command.args(["-display", "none", "-serial", "stdio", "-monitor", "none"]);
    if let Some((image, bus)) = setup.disk {
        let drive = format!("file={},format=raw,if={bus},cache=writeback", image.display());
        command.arg("-drive").arg(drive);
    }
    let Some((model, cable)) = setup.nic else {
        command.args(["-nic", "none"]);
        return command;
    };
    let model = if model == "virtio" { "virtio-net-pci" } else { model };
    let back = match cable {
        Cable::Nat => "user,id=n".to_owned(),
        Cable::First(port) => format!("socket,id=n,listen=127.0.0.1:{port}"),
        Cable::Second(port) => format!("socket,id=n,connect=127.0.0.1:{port}"),
    };
    command.arg("-netdev").arg(back);
    command
        .arg("-device")
        .arg(format!("{model},netdev=n,mac={}", address(cable)));
    command
}

fn oxbow(program: &Path, setup: &Setup<'_>) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--machine", "pc", "--no-reboot", "--memory", "1G"]);
    if let Some((image, bus)) = setup.disk {
        let name = image.display().to_string().replace(',', ",,");
        command
            .arg("--disk")
            .arg(format!("{name},bus={bus},format=raw,cache=writeback"));
    }
    let Some((model, cable)) = setup.nic else {
        command.arg("--no-nic");
        return command;
    };
    let network = match cable {
        Cable::Nat => "nat,loopback".to_owned(),
        Cable::First(port) | Cable::Second(port) => format!("internal=bench-{port}"),
    };
    command
        .arg("--nic")
        .arg(format!("{network},model={model},mac={}", address(cable)));
    command
}

/// A machine that runs. Dropping it ends it.
pub(super) struct Vm {
    child: Child,
    lines: Receiver<(Instant, String)>,
    launch: Instant,
    /// When a line began, by our clock and by the guest's.
    begun: Option<(Instant, f64)>,
}

/// A mark of the guest's.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Mark {
    /// The first process has what it needs; seconds after the launch.
    Boot(f64),
    Serving,
    /// A line of the guest's work and its figure.
    Figure(String, f64),
    Done,
}

impl Vm {
    /// The next mark. Fails when the guest says that something failed, or nothing.
    pub(super) fn next(&mut self) -> anyhow::Result<Mark> {
        let deadline = self.launch + LIMIT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (at, line) = self.lines.recv_timeout(left).context("the guest says nothing more")?;
            if let Some((_, mark)) = line.split_once("@@")
                && let Some(mark) = self.take(at, mark.trim())?
            {
                return Ok(mark);
            }
        }
    }

    fn take(&mut self, at: Instant, mark: &str) -> anyhow::Result<Option<Mark>> {
        let words: Vec<&str> = mark.split_whitespace().collect();
        let mark = match words.as_slice() {
            ["boot"] => Mark::Boot((at - self.launch).as_secs_f64()),
            ["serving"] => Mark::Serving,
            ["done"] => Mark::Done,
            ["begin", _, clock] => {
                self.begun = Some((at, clock.parse()?));
                return Ok(None);
            }
            ["end", name, clock, figure] => {
                let (begun, clock_then) = self.begun.take().context("a line ends that did not begin")?;
                let (here, there) = ((at - begun).as_secs_f64(), clock.parse::<f64>()? - clock_then);
                ensure!(
                    (here - there).abs() <= here * DRIFT + DRIFT_SECONDS,
                    "{name} took {here:.2} s, but {there:.2} s by the guest's clock"
                );
                Mark::Figure((*name).to_owned(), figure.parse()?)
            }
            _ => bail!("the guest says: {mark}"),
        };
        Ok(Some(mark))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
