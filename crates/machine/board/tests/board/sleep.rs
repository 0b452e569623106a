//! Suspend to RAM: who sleeps, what wakes the machine, where the guest goes on.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use board::Backends;
use board::Machine;
use board::Outcome;
use board::RunState;
use device_model::VmTime;
use device_model::Width;
use spec::OnReset;

use crate::fake::Next;
use crate::fake::Step;
use crate::fake::build;
use crate::fake::small;

/// PM1_STS; PM1_EN follows, and PM1_CNT.
const PM1: u16 = 0x600;
/// PM1_CNT with SLP_EN, to which the sleep type is added.
const SLP_EN: u32 = 1 << 13;
/// The RTC's bit of PM1_STS and PM1_EN.
const RTC: u32 = 1 << 10;
/// Where the FACS is on a machine without a kernel, for which no tables are written.
const FACS: u64 = 0xe_0040;
/// A waking vector in real mode: 9A12:0005.
const VECTOR: u32 = 0x9_a125;
/// What a processor that starts at the vector says is the number of its step.
const WOKEN: u64 = 5;

fn word(step: &Step<'_>, port: u16, value: u32) {
    step.board.pio_write(step.cpu, port, Width::Word, value);
}

/// Any second, minute, hour.
const NEXT_SECOND: [u8; 3] = [0xc0; 3];
/// The second, minute and hour of noon.
const NOON: [u8; 3] = [0, 0, 0x12];

/// Sets the alarm, and sleeps.
fn suspend(step: &Step<'_>, [second, minute, hour]: [u8; 3]) -> Next {
    for (index, value) in [(1, second), (3, minute), (5, hour), (11, 0x22)] {
        step.out(0x70, index);
        step.out(0x71, value);
    }
    word(step, PM1 + 2, RTC);
    word(step, PM1 + 4, SLP_EN | 1 << 10);
    Next::Go
}

fn power_off(step: &Step<'_>) -> Next {
    word(step, PM1 + 4, SLP_EN | 5 << 10);
    Next::Go
}

/// Leaves a waking vector where firmware looks for it.
fn leave_vector(machine: &Machine) {
    machine.memory().write(FACS, b"FACS").unwrap();
    machine.memory().write(FACS + 12, &VECTOR.to_le_bytes()).unwrap();
}

/// Sleeps at its first step, and turns the power off when it is woken.
fn sleeper(step: &Step<'_>, alarm: [u8; 3]) -> Next {
    match step.number {
        0 => {
            // The serial port loses power: its modem control register tells.
            step.out(0x3fc, 0x0b);
            suspend(step, alarm)
        }
        WOKEN => {
            assert_eq!(step.input(0x3fc), 0);
            let status = step.board.pio_read(step.cpu, PM1, Width::Word);
            assert_eq!(status, 1 << 15 | RTC, "WAK_STS and RTC_STS");
            power_off(step)
        }
        number => panic!("step {number} runs in its sleep"),
    }
}

#[test]
fn alarm_wakes_the_guest_at_its_vector_with_its_memory() {
    let machine = build(&small(), Backends::default(), |step| sleeper(step, NEXT_SECOND));
    leave_vector(&machine);
    machine.memory().write(0x1_2345, b"kept").unwrap();
    machine.start().unwrap();
    assert_eq!(machine.wait(), Outcome::PowerOff);
    let mut kept = [0; 4];
    machine.memory().read(0x1_2345, &mut kept).unwrap();
    assert_eq!(&kept, b"kept");
}

#[test]
fn sleep_survives_pause_save_and_restore() {
    let mut spec = small();
    spec.devices.rtc.base = Some(0);
    let machine = build(&spec, Backends::default(), |step| sleeper(step, NOON));
    leave_vector(&machine);
    machine.start().unwrap();
    while machine.state() == RunState::Running {
        std::thread::yield_now();
    }
    assert_eq!(machine.state(), RunState::Suspended);
    machine.pause().unwrap();
    assert_eq!(machine.state(), RunState::Paused);
    let mut saved = machine.save().unwrap();
    assert!(saved.asleep);
    saved.time = VmTime::from_ns(12 * 3600 * 1_000_000_000);
    let other = build(&spec, Backends::default(), |step| sleeper(step, NOON));
    other.restore(saved).unwrap();
    other.start().unwrap();
    assert_eq!(other.wait(), Outcome::PowerOff);
}

#[test]
fn looking_at_a_sleeping_guest_does_not_wake_it() {
    let machine = build(&small(), Backends::default(), |step| match step.number {
        0 => {
            word(step, PM1 + 4, SLP_EN | 1 << 10);
            Next::Go
        }
        number => panic!("step {number} runs in its sleep"),
    });
    machine.start().unwrap();
    while machine.state() == RunState::Running {
        std::thread::yield_now();
    }
    machine.inspect().unwrap();
    machine.pause().unwrap();
    machine.resume().unwrap();
    assert_eq!(machine.state(), RunState::Suspended);
    machine.stop().unwrap();
    assert_eq!(machine.wait(), Outcome::Stopped);
}

#[test]
fn reset_button_ends_the_sleep() {
    let boots = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&boots);
    let machine = build(&small(), Backends::default(), move |step| {
        if count.fetch_add(1, Ordering::Relaxed) == 1 {
            return power_off(step);
        }
        word(step, PM1 + 4, SLP_EN | 1 << 10);
        Next::Go
    });
    machine.start().unwrap();
    while machine.state() == RunState::Running {
        std::thread::yield_now();
    }
    machine.reset().unwrap();
    assert_eq!(machine.wait(), Outcome::PowerOff);
    assert_eq!(boots.load(Ordering::Relaxed), 2);
}

#[test]
fn guest_without_a_vector_boots_again() {
    let mut spec = small();
    spec.on_reset = OnReset::Stop;
    let machine = build(&spec, Backends::default(), |step| sleeper(step, NEXT_SECOND));
    machine.start().unwrap();
    assert_eq!(machine.wait(), Outcome::Reset);
}
