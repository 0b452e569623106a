//! A machine that changes its engine while its guest runs.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use board::Backends;
use board::Machine;
use board::Outcome;
use spec::BootSpec;
use spec::DebugExitConfig;
use spec::EngineKind;
use spec::MachineSpec;
use spec::Size;

#[path = "../../../../../guests/build.rs"]
mod build;
#[path = "../../../../../guests/hash.rs"]
mod hash;

/// As in `guests/hash.S`.
const ROUNDS: u64 = 0x20_0000;
const STOP: u64 = 0x20_0004;
const HASH: u64 = 0x20_0008;
const SUM: u64 = 0x20_000c;
const COUNT: u64 = 0x20_0010;
const BACK: u64 = 0x20_0014;

const PATIENCE: Duration = Duration::from_secs(300);

fn boot(tag: &str) -> BootSpec {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../guests/hash.S");
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    BootSpec {
        kernel: Some(build::build(&source, directory, tag)),
        ..BootSpec::default()
    }
}

fn read(machine: &Machine, at: u64) -> u32 {
    machine.memory().read_obj(at).unwrap()
}

/// Waits until the guest has done some rounds more.
fn some_rounds(machine: &Machine, on: EngineKind) {
    let (start, end) = (read(machine, ROUNDS), Instant::now() + PATIENCE);
    while read(machine, ROUNDS).wrapping_sub(start) < 5 {
        assert!(Instant::now() < end, "{on}: the guest stands still");
        let ended = machine.wait_timeout(Duration::from_millis(1));
        assert_eq!(ended, None, "{on}: the machine has ended");
    }
}

/// Begins with the first of `engines`, which decides what the guest is told of its processor.
fn goes_through(engines: &[EngineKind], tag: &str) {
    let mut spec = MachineSpec {
        boot: boot(tag),
        memory: Size::from_mib(16),
        engine: engines[0],
        ..MachineSpec::default()
    };
    spec.cpu = "x86-64".to_owned();
    spec.devices.debug_exit = Some(DebugExitConfig { port: 0xf4 });
    let machine = Machine::build(&spec, Backends::default()).unwrap();
    machine.start().unwrap();
    for kind in engines {
        machine.switch_engine(*kind).unwrap();
        assert_eq!(machine.engine(), kind.to_string());
        some_rounds(&machine, *kind);
    }
    machine.memory().write_obj(STOP, &1u32).unwrap();
    assert_eq!(machine.wait_timeout(PATIENCE), Some(Outcome::DebugExit(0)));
    let rounds = read(&machine, ROUNDS);
    let (hash, sum) = hash::expected(rounds);
    assert_eq!(read(&machine, HASH), hash, "{rounds} rounds");
    assert_eq!(
        (read(&machine, SUM), read(&machine, COUNT)),
        (sum, rounds),
        "SSE and x87"
    );
    assert_eq!(read(&machine, BACK), 0, "the TSC advances always");
}

#[test]
fn guest_goes_through_interpreter_and_translator_with_the_right_hash() {
    use EngineKind::*;
    goes_through(&[Interp, Jit, Interp, Jit, Jit, Interp], "software");
}

#[test]
fn guest_goes_through_all_engines_with_the_right_hash() {
    use EngineKind::*;
    let found = kvm::availability();
    if !found.usable {
        eprintln!("SKIPPED: {found}");
        return;
    }
    goes_through(&[Kvm, Interp, Jit, Kvm, Interp, Kvm, Jit], "all");
    goes_through(&[Interp, Jit, Kvm, Interp], "begun");
}

#[test]
fn guest_stays_where_it_is_when_an_engine_does_not_work() {
    let found = kvm::availability();
    if found.usable {
        eprintln!("SKIPPED: {found}");
        return;
    }
    let spec = MachineSpec {
        boot: boot("refused"),
        memory: Size::from_mib(16),
        engine: EngineKind::Jit,
        ..MachineSpec::default()
    };
    let machine = Machine::build(&spec, Backends::default()).unwrap();
    machine.start().unwrap();
    some_rounds(&machine, EngineKind::Jit);
    let error = machine.switch_engine(EngineKind::Kvm).unwrap_err();
    let source = std::error::Error::source(&error)
        .map(ToString::to_string)
        .unwrap_or_default();
    assert!(source.contains(&found.reason), "{error}: {source}");
    assert_eq!(machine.engine(), "jit");
    some_rounds(&machine, EngineKind::Jit);
    machine.stop().unwrap();
    let rounds = read(&machine, ROUNDS);
    assert!(rounds >= 10);
}
