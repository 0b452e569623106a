//! Tests of the power management block as an operating system drives it, sleep and wake included.
//!
//! Spec: ACPI 6.5 §4.8.

use device_model::TestClock;
use proptest::prelude::*;
use test_kit::contract;
use test_kit::fuzz_registers;

use super::*;
use crate::reset_control::PowerProbe;

struct Bench {
    pm: AcpiPm,
    clock: TestClock,
    sci: IrqLine,
    power: Arc<PowerProbe>,
    alarm: IrqLine,
}

fn bench() -> Bench {
    let clock = TestClock::new();
    let sci = IrqLine::detached();
    let power = Arc::new(PowerProbe::default());
    let latch = AlarmLatch::new(|| {});
    let alarm = latch.line();
    let pm = AcpiPm::new(Arc::new(clock.clone()), sci.clone(), power.clone(), latch);
    Bench {
        pm,
        clock,
        sci,
        power,
        alarm,
    }
}

fn at(region: usize, offset: u64) -> At {
    At { region, offset }
}

#[test]
fn timer_counts_at_its_frequency_and_wraps() {
    let mut b = bench();
    b.clock.set(VmTime::from_ns(1_000_000_000));
    assert_eq!(b.pm.read(at(PM_TIMER, 0), Width::Dword), Ok(PM_TIMER_HZ));
    b.clock.set(VmTime::from_ticks((1 << 32) + 7, PM_TIMER_HZ));
    assert_eq!(b.pm.read(at(PM_TIMER, 0), Width::Dword), Ok(7));
    b.pm.write(at(PM_TIMER, 0), Width::Dword, 0).unwrap();
    assert_eq!(b.pm.read(at(PM_TIMER, 0), Width::Dword), Ok(7));
}

#[test]
fn top_bit_change_raises_sci_when_enabled() {
    let mut b = bench();
    b.pm.write(at(PM1_EVENT, 2), Width::Word, 1).unwrap();
    let due = b.pm.poll(VmTime::ZERO).unwrap();
    assert_eq!(due, VmTime::from_ticks(1 << 31, PM_TIMER_HZ));
    b.clock.set(due);
    assert_eq!(b.pm.poll(due), Some(VmTime::from_ticks(2 << 31, PM_TIMER_HZ)));
    assert!(b.sci.level());
    b.pm.write(at(PM1_EVENT, 0), Width::Word, 1).unwrap();
    assert!(!b.sci.level());
    assert_eq!(b.pm.read(at(PM1_EVENT, 0), Width::Dword), Ok(0x0001_0000));
}

#[test]
fn power_button_needs_its_enable_and_clears_by_one() {
    let mut b = bench();
    b.pm.press_power_button();
    assert!(!b.sci.level());
    b.pm.write(at(PM1_EVENT, 0), Width::Dword, 0x0100_0000).unwrap();
    assert!(b.sci.level());
    b.pm.write(at(PM1_EVENT, 0), Width::Word, 0xFEFF).unwrap();
    assert!(b.sci.level());
    b.pm.write(at(PM1_EVENT, 1), Width::Byte, 1).unwrap();
    assert!(!b.sci.level());
}

#[test]
fn s5_powers_off_and_other_sleeps_wake_at_once() {
    let mut b = bench();
    b.pm.write(at(PM1_CONTROL, 0), Width::Word, 1 << 13 | 2 << 10).unwrap();
    assert!(b.power.take().is_empty());
    assert_eq!(b.pm.read(at(PM1_EVENT, 0), Width::Word), Ok(0x8000));
    b.pm.write(at(PM1_CONTROL, 0), Width::Word, 5 << 10).unwrap();
    assert!(b.power.take().is_empty());
    b.pm.write(at(PM1_CONTROL, 0), Width::Word, 1 << 13 | 5 << 10).unwrap();
    assert_eq!(b.power.take(), ["power_off"]);
    // SLP_EN reads as zero, SCI_EN stays.
    assert_eq!(b.pm.read(at(PM1_CONTROL, 0), Width::Word), Ok(5 << 10 | 1));
}

const RTC: u64 = 1 << 10;
const WAK: u64 = 1 << 15;

/// Enables `events`, and goes to S3.
fn suspend(b: &mut Bench, events: u64) {
    b.pm.write(at(PM1_EVENT, 2), Width::Word, events).unwrap();
    b.pm.write(at(PM1_CONTROL, 0), Width::Word, 1 << 13 | 1 << 10).unwrap();
}

#[test]
fn s3_sleeps_until_the_alarm_that_is_enabled() {
    let mut b = bench();
    suspend(&mut b, RTC);
    assert_eq!(b.power.take(), ["suspend"]);
    b.pm.poll(VmTime::ZERO);
    assert!(b.power.take().is_empty());
    b.alarm.set(true);
    b.pm.poll(VmTime::ZERO);
    assert_eq!(b.power.take(), ["wake"]);
    b.pm.reset(Reset::Resume);
    assert_eq!(b.pm.read(at(PM1_EVENT, 0), Width::Word), Ok(WAK | RTC));
    assert_eq!(b.pm.read(at(PM1_EVENT, 2), Width::Word), Ok(RTC));
    assert!(b.sci.level());
    // The line is still high, but it rose once only.
    b.pm.write(at(PM1_EVENT, 0), Width::Word, WAK | RTC).unwrap();
    assert_eq!(b.pm.read(at(PM1_EVENT, 0), Width::Word), Ok(0));
    assert!(b.power.take().is_empty());
}

#[test]
fn alarm_without_its_enable_and_the_timer_do_not_wake() {
    let mut b = bench();
    suspend(&mut b, 1);
    assert_eq!(b.power.take(), ["suspend"]);
    b.alarm.set(true);
    b.clock.set(VmTime::from_ticks(1 << 31, PM_TIMER_HZ));
    b.pm.poll(b.clock.now());
    assert!(b.power.take().is_empty());
    b.pm.press_sleep_button();
    assert!(b.power.take().is_empty());
    b.pm.press_power_button();
    assert_eq!(b.power.take(), ["wake"]);
    b.pm.press_power_button();
    assert!(b.power.take().is_empty(), "it is awake");
}

#[test]
fn general_purpose_event_wakes() {
    let mut b = bench();
    b.pm.write(at(GPE0, 2), Width::Byte, 0x08).unwrap();
    suspend(&mut b, 0);
    b.pm.raise_gpe(2);
    assert_eq!(b.power.take(), ["suspend"]);
    b.pm.raise_gpe(3);
    assert_eq!(b.power.take(), ["wake"]);
}

#[test]
fn wake_event_that_came_first_ends_the_sleep_at_once() {
    let mut b = bench();
    b.alarm.pulse();
    suspend(&mut b, RTC);
    assert_eq!(b.power.take(), ["suspend", "wake"]);
}

#[test]
fn alarm_that_nobody_looked_at_is_saved_and_a_restored_line_is_none() {
    let mut b = bench();
    suspend(&mut b, RTC);
    b.power.take();
    let asleep = b.pm.save();
    b.alarm.set(true);
    let rung = b.pm.save();
    b.pm.restore(asleep).unwrap();
    b.pm.poll(VmTime::ZERO);
    assert!(b.power.take().is_empty());
    b.pm.restore(rung).unwrap();
    b.pm.poll(VmTime::ZERO);
    assert_eq!(b.power.take(), ["wake"]);
}

#[test]
fn high_byte_alone_can_power_off() {
    let mut b = bench();
    b.pm.write(at(PM1_CONTROL, 1), Width::Byte, 0x34).unwrap();
    assert_eq!(b.power.take(), ["power_off"]);
}

#[test]
fn smi_command_switches_acpi_mode() {
    let mut b = bench();
    b.pm.raise_gpe(3);
    b.pm.write(at(GPE0, 2), Width::Byte, 0x08).unwrap();
    assert!(b.sci.level());
    b.pm.write(at(SMI_COMMAND, 0), Width::Byte, u64::from(ACPI_DISABLE))
        .unwrap();
    assert_eq!(b.pm.read(at(PM1_CONTROL, 0), Width::Word), Ok(0));
    assert!(!b.sci.level());
    b.pm.write(at(SMI_COMMAND, 0), Width::Byte, u64::from(ACPI_ENABLE))
        .unwrap();
    assert!(b.sci.level());
    b.pm.write(at(GPE0, 0), Width::Byte, 0x08).unwrap();
    assert!(!b.sci.level());
}

fn boxed(clock: &TestClock) -> Box<AcpiPm> {
    let power = Arc::new(PowerProbe::default());
    let alarm = AlarmLatch::new(|| {});
    Box::new(AcpiPm::new(Arc::new(clock.clone()), IrqLine::detached(), power, alarm))
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || boxed(&clock));
}

proptest! {
    #[test]
    fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let clock = TestClock::new();
        fuzz_registers(&mut *boxed(&clock), &clock, &bytes);
    }
}
