//! A machine that changes its engine while its guest runs, by `oxbow ctl`.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use tempfile::TempDir;

use crate::build;
use crate::guest::check;
use crate::guest::oxbow;

#[path = "../../../../../guests/hash.rs"]
mod hash;

const PATIENCE: Duration = Duration::from_secs(300);

/// A machine with the guest `hash`, its serial port and its control socket.
struct Machine {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    socket: PathBuf,
    _dir: TempDir,
}

impl Machine {
    fn start(engine: &str, cpu: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("vm.sock");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../guests/hash.S");
        let mut command = oxbow(&["run", "--memory", "16M", "--debug-exit", "0xf4", "--timeout", "600"]);
        command.args(["--engine", engine, "--cpu", cpu, "--kernel"]);
        command
            .arg(build::build(&source, dir.path(), "cli"))
            .arg("--control")
            .arg(&socket);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program can be run");
        let end = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert_eq!(child.try_wait().unwrap(), None, "it ended early");
            assert!(Instant::now() < end, "no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            socket,
            _dir: dir,
        }
    }

    fn engine(&self, name: &str) -> std::process::Output {
        let mut command = oxbow(&["ctl"]);
        command.arg(&self.socket).args(["engine", name]);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn number(&mut self) -> u32 {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        u32::from_str_radix(line.trim(), 16).unwrap_or_else(|_| panic!("the guest says {line:?}"))
    }

    fn rounds(&mut self) -> u32 {
        self.input.write_all(b"?").unwrap();
        self.input.flush().unwrap();
        self.number()
    }

    /// Waits until the guest has done some rounds more.
    fn some_rounds(&mut self, on: &str) {
        let (start, end) = (self.rounds(), Instant::now() + PATIENCE);
        while self.rounds().wrapping_sub(start) < 3 {
            assert!(Instant::now() < end, "{on}: the guest stands still");
        }
    }

    /// Ends the guest, and checks what it has worked out.
    fn finish(mut self) {
        self.input.write_all(b"q").unwrap();
        self.input.flush().unwrap();
        let [rounds, hash, sum, count, back] = std::array::from_fn(|_| self.number());
        let (right, lanes) = hash::expected(rounds);
        assert_eq!(hash, right, "{rounds} rounds");
        assert_eq!((sum, count), (lanes, rounds), "SSE and x87");
        assert_eq!(back, 0, "the TSC advances always");
        assert_eq!(self.child.wait().unwrap().code(), Some(1), "debug exit with 0");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn goes_through(engines: &[&str]) {
    let mut machine = Machine::start(engines[0], "x86-64");
    for name in engines {
        let output = machine.engine(name);
        check(&output, 0, "");
        assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{name}\n"));
        machine.some_rounds(name);
    }
    machine.finish();
}

#[test]
fn guest_hashes_on_while_its_engine_changes() {
    goes_through(&["interp", "jit", "interp", "jit"]);
}

#[test]
fn guest_hashes_on_while_its_engine_changes_to_kvm_and_back() {
    let found = board::kvm_availability();
    if !found.usable {
        eprintln!("SKIPPED: {found}");
        return;
    }
    goes_through(&["interp", "jit", "kvm", "interp"]);
    goes_through(&["kvm", "jit", "kvm", "jit", "kvm"]);
}

#[test]
fn change_to_kvm_is_refused_with_the_model_that_would_do() {
    let found = board::kvm_availability();
    if !found.usable {
        eprintln!("SKIPPED: {found}");
        return;
    }
    if board::kvm_models().iter().any(|model| model.name() == "x86-64-v2") {
        eprintln!("SKIPPED: this host's KVM has all of x86-64-v2");
        return;
    }
    let mut machine = Machine::start("jit", "x86-64-v2");
    check(&machine.engine("kvm"), 1, "with --cpu x86-64,");
    machine.some_rounds("jit");
    machine.finish();
}
