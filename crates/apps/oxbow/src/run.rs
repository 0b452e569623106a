//! `oxbow run`: a machine for one command's lifetime.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::mpsc::Sender;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use board::Backends;
use board::Machine;
use clap::Args;
use control::ControlServer;
use control::Publisher;
use remote::vnc::VncServer;
use spec::MachineKind;
use vnet::Capture;

use crate::control::Controls;
use crate::demo;
use crate::end::End;
use crate::failure::Failure;
use crate::machine_args::MachineArgs;
use crate::network_switch;
use crate::screen;
use crate::screen::ScreenTarget;
use crate::serial::SerialLines;
use crate::signals;
use crate::terminal::RawMode;

const AFTER_HELP: &str = "\
The guest's first serial port is the terminal. Keys go to the guest, Ctrl-C too, except:
  Ctrl-A x       end the machine
  Ctrl-A h       help
  Ctrl-A Ctrl-A  send Ctrl-A
With input from a file or pipe every byte goes to the guest, and the end of input changes nothing.

Exit status:
  0    the guest turned its power off, or reset under --no-reboot, or Ctrl-A x, or `oxbow ctl quit`
  1    the host could not go on; also: 0 was written to the debug-exit port
  2    wrong usage or input: no such file, not a kernel, too little memory, unknown CPU model
  3    triple fault: the processor shut down; one line says where
  124  --timeout has passed
  129  SIGHUP    130  SIGINT    141  nobody reads the output    143  SIGTERM
  With --debug-exit, what the guest writes to the port: (value << 1) | 1.

Examples:
  oxbow run
  oxbow run --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'
  oxbow run --kernel vmlinux --memory 2G --cpus 2 --append 'console=ttyS0 panic=-1' --no-reboot
  oxbow run --kernel apic.flat --cpus 2 --debug-exit 0xf4 --timeout 60
  oxbow run --kernel vmlinuz --append 'console=ttyS1' --serial none --serial file:log.txt
  oxbow run --machine pc --floppy disk.img --screen vnc --control vm.sock

OXBOW_LOG=info says on standard error what the machine does.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    machine: MachineArgs,

    /// Write what a pc's firmware says on its debug port into this file
    #[arg(long, value_name = "FILE")]
    debugcon: Option<PathBuf>,

    /// Print what a pc's guest sends to its parallel port into this file
    #[arg(long, value_name = "FILE")]
    parallel: Option<PathBuf>,

    /// Capture the frames of all network cards into this file, in the format pcap
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,

    /// Show the screen: none, or vnc[=ADDRESS[:PORT]][,password=FILE]
    ///
    /// `vnc` alone listens at 127.0.0.1, at the first display that is free; where that is gets printed.
    #[arg(long, value_name = "SCREEN", default_value = "none")]
    screen: ScreenTarget,

    /// Listen here for `oxbow ctl`: screenshots, keys, pause, reset, media
    #[arg(long, value_name = "SOCKET")]
    control: Option<PathBuf>,

    /// End the machine after this many seconds, with status 124
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = parse_seconds)]
    timeout: Option<Duration>,
}

/// Seconds with or without a fraction.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    let what = || "not a number of seconds".to_owned();
    let seconds: f64 = text.parse().map_err(|_| what())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| what())
}

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    start_log();
    let mut spec = args.machine.spec()?;
    if spec.machine == MachineKind::Microvm {
        demo::fill_in(&mut spec.boot, args.machine.append.as_deref())?;
    }
    let mut backends = Backends {
        debugcon: create(args.debugcon.as_deref())?,
        printer: create(args.parallel.as_deref())?,
        capture: capture(args.pcap.as_deref())?,
        start_switch: Some(network_switch::starter()),
        ..Backends::default()
    };
    let lines = SerialLines::open(args.machine.lines(), &mut backends)?;
    let machine = Arc::new(Machine::build(&spec, backends)?);

    let (ends, ended) = mpsc::channel();
    let host = |what| move |error| Failure::host(anyhow::Error::from(error).context(what));
    signals::watch(ends.clone()).map_err(host("cannot watch for signals"))?;
    let raw = match lines.has_stdio() {
        true => RawMode::enter().map_err(host("cannot set up the terminal"))?,
        false => None,
    };
    let (output_done, flushed) = mpsc::channel();
    lines
        .connect(&ends, &output_done)
        .map_err(host("cannot start a thread"))?;
    drop(output_done);
    let screen = screen::open(&args.screen, &machine)?;
    let control = match &args.control {
        Some(path) => Some(open_control(path, &machine, screen.as_ref(), &ends)?),
        None => None,
    };
    watch_guest(&machine, ends).map_err(host("cannot start a thread"))?;
    machine
        .start()
        .context("cannot start the machine")
        .map_err(Failure::host)?;

    let end = wait(&ended, args.timeout);
    // Asking a machine that has ended already changes nothing.
    let _ = machine.stop();
    // Clients are told of the end before it comes.
    drop(control);
    drop(screen);
    wait_flushed(&flushed, &ended);
    drop(raw);
    if let Some(message) = end.message() {
        eprintln!("oxbow: {message}");
    }
    Ok(ExitCode::from(end.status()))
}

/// A new file to write to, if one is named.
fn create(path: Option<&Path>) -> anyhow::Result<Option<Box<dyn Write + Send>>> {
    let Some(path) = path else {
        return Ok(None);
    };
    let file = File::create(path).with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(Some(Box::new(file)))
}

/// A new capture file, if one is named.
fn capture(path: Option<&Path>) -> anyhow::Result<Option<Arc<Capture>>> {
    let Some(path) = path else {
        return Ok(None);
    };
    let capture = Capture::create(path).with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(Some(Arc::new(capture)))
}

/// Listens for clients that control the machine.
fn open_control(
    path: &Path,
    machine: &Arc<Machine>,
    screen: Option<&VncServer>,
    ends: &Sender<End>,
) -> anyhow::Result<ControlServer> {
    let publisher = Publisher::default();
    let vnc = screen.map(|server| server.address().to_string());
    let controls = Controls::new(machine, vnc, ends.clone(), &publisher);
    Ok(ControlServer::start(path, Arc::new(controls), publisher)?)
}

/// Reports the machine's own end. What the machine leaves on the host goes with it, before the program ends: nobody else may
/// keep it then.
fn watch_guest(machine: &Machine, ends: Sender<End>) -> std::io::Result<()> {
    let wait = machine.waiter();
    let body = move || drop(ends.send(End::Guest(wait())));
    std::thread::Builder::new().name("outcome".to_owned()).spawn(body)?;
    Ok(())
}

/// The first end of all.
fn wait(ended: &Receiver<End>, timeout: Option<Duration>) -> End {
    let end = match timeout.and_then(|time| Instant::now().checked_add(time)) {
        None => ended.recv().ok(),
        Some(deadline) => match ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => Some(End::Timeout),
            result => result.ok(),
        },
    };
    end.unwrap_or(End::Guest(board::Outcome::Stopped))
}

/// Waits until all output is out. A terminal that is held with Ctrl-S, or a reader that sleeps, may take as long as it
/// likes; a signal gives up on it.
fn wait_flushed(flushed: &Receiver<()>, ended: &Receiver<End>) {
    const LOOK: Duration = Duration::from_millis(50);
    while flushed.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        if ended.try_iter().any(|end| matches!(end, End::Signal(_))) {
            return;
        }
    }
}

/// Traces go to standard error, where OXBOW_LOG asks for them.
fn start_log() {
    let Ok(filter) = tracing_subscriber::EnvFilter::try_from_env("OXBOW_LOG") else {
        return;
    };
    // Only a second start could fail.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_have_a_fraction_and_nothing_else() {
        assert_eq!(parse_seconds("60"), Ok(Duration::from_secs(60)));
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for text in ["", "-1", "1s", "inf", "NaN", "1e400"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn wait_ends_at_the_timeout() {
        let (_ends, ended) = mpsc::channel();
        assert!(matches!(wait(&ended, Some(Duration::from_millis(1))), End::Timeout));
    }
}
