//! Tests of the clock against the MC146818A data sheet and the habits of its drivers.
//!
//! Time is a test clock that the tests move.
//!
//! Spec: Motorola MC146818A (1984).

use device_model::TestClock;
use proptest::prelude::*;
use test_kit::contract;
use test_kit::fuzz_registers;

use super::*;

/// 29 February 2024, 23:59:58, a Thursday.
const LEAP_NIGHT: i64 = 1_709_251_198;

struct Bench {
    rtc: CmosRtc,
    clock: TestClock,
    irq: IrqLine,
    alarm: IrqLine,
}

impl Bench {
    fn new() -> Self {
        let (clock, irq, alarm) = (TestClock::new(), IrqLine::detached(), IrqLine::detached());
        let config = RtcConfig {
            boot_unix_time: LEAP_NIGHT,
            boot_nanoseconds: 0,
            ram_below_4g: 3 << 30,
            ram_above_4g: 5 << 30,
            cpus: 4,
        };
        let rtc = CmosRtc::new(Arc::new(clock.clone()), irq.clone(), alarm.clone(), &config);
        Self { rtc, clock, irq, alarm }
    }

    fn get(&mut self, index: u8) -> u8 {
        self.rtc
            .write(At { region: 0, offset: 0 }, Width::Byte, u64::from(index))
            .unwrap();
        lanes::byte(self.rtc.read(At { region: 0, offset: 1 }, Width::Byte).unwrap())
    }

    fn set(&mut self, index: u8, value: u8) -> Option<VmTime> {
        self.rtc
            .write(At { region: 0, offset: 0 }, Width::Byte, u64::from(index))
            .unwrap();
        self.rtc
            .write(At { region: 0, offset: 1 }, Width::Byte, u64::from(value))
            .unwrap();
        self.rtc.poll(self.clock.now())
    }

    fn advance(&mut self, ns: u64) -> Option<VmTime> {
        let now = self.clock.advance(ns);
        self.rtc.poll(now)
    }

    fn date(&mut self) -> [u8; 8] {
        [0x32, 0x09, 0x08, 0x07, 0x06, 0x04, 0x02, 0x00].map(|index| self.get(index))
    }
}

#[test]
fn time_runs_with_guest_time_across_a_leap_day() {
    let mut b = Bench::new();
    assert_eq!(b.date(), [0x20, 0x24, 0x02, 0x29, 0x05, 0x23, 0x59, 0x58]);
    b.advance(2 * SECOND_NS);
    assert_eq!(b.date(), [0x20, 0x24, 0x03, 0x01, 0x06, 0x00, 0x00, 0x00]);
    b.set(spec::REG_B, 0x04);
    b.advance(13 * 3600 * SECOND_NS);
    assert_eq!(b.date(), [20, 24, 3, 1, 6, 0x81, 0, 0]);
}

#[test]
fn set_holds_the_time_and_takes_the_new_one() {
    let mut b = Bench::new();
    b.advance(SECOND_NS / 4);
    b.set(spec::REG_B, 0x82);
    b.advance(10 * SECOND_NS);
    assert_eq!(b.get(spec::SECONDS), 0x58);
    for (index, value) in [
        (0x32, 0x19),
        (9, 0x99),
        (8, 0x12),
        (7, 0x31),
        (6, 0x03),
        (4, 0x23),
        (2, 0x59),
        (0, 0x59),
    ] {
        b.set(index, value);
    }
    b.set(spec::REG_B, 0x02);
    assert_eq!(b.date(), [0x19, 0x99, 0x12, 0x31, 0x03, 0x23, 0x59, 0x59]);
    // The divider went on: the next second comes three quarters later, and the weekday is the guest's.
    b.advance(SECOND_NS * 3 / 4);
    assert_eq!(b.date(), [0x20, 0x00, 0x01, 0x01, 0x04, 0x00, 0x00, 0x00]);
}

#[test]
fn boot_date_stays_until_the_guest_sets_the_clock() {
    let mut b = Bench::new();
    let ns = |seconds: i64, ns: u64| Duration::new(seconds.unsigned_abs(), 0) + Duration::from_nanos(ns);
    b.advance(5 * SECOND_NS / 4);
    assert_eq!(b.rtc.boot_date(), ns(LEAP_NIGHT, 0));
    b.set(spec::REG_B, 0x82);
    b.set(spec::MINUTES, 0x58);
    b.advance(SECOND_NS);
    assert_eq!(
        b.rtc.boot_date(),
        ns(LEAP_NIGHT - 61, 0),
        "it stands, and guest time goes on"
    );
    b.set(spec::REG_B, 0x02);
    assert_eq!(b.rtc.boot_date(), ns(LEAP_NIGHT - 61, 0));
    // The divider, let go at 2.25 s, is at half a second then.
    b.set(spec::REG_A, 0x76);
    b.set(spec::REG_A, 0x26);
    assert_eq!(b.rtc.boot_date(), ns(LEAP_NIGHT - 61, SECOND_NS / 4));
    b.rtc.offset = -5;
    assert_eq!(b.rtc.boot_date(), ns(0, SECOND_NS / 4));
}

#[test]
fn clock_that_starts_within_a_second_ends_it_sooner() {
    let clock = TestClock::new();
    let config = RtcConfig {
        boot_unix_time: LEAP_NIGHT,
        boot_nanoseconds: 900_000_000,
        ..RtcConfig::default()
    };
    let line = IrqLine::detached;
    let rtc = CmosRtc::new(Arc::new(clock.clone()), line(), line(), &config);
    assert_eq!(rtc.boot_date(), Duration::new(LEAP_NIGHT.unsigned_abs(), 900_000_000));
    let mut b = Bench {
        rtc,
        clock,
        ..Bench::new()
    };
    b.advance(SECOND_NS / 10 - 1);
    assert_eq!(b.get(spec::SECONDS), 0x58);
    b.advance(1);
    assert_eq!(b.get(spec::SECONDS), 0x59);
}

#[test]
fn divider_reset_gives_the_first_update_half_a_second_later() {
    let mut b = Bench::new();
    b.advance(123_456_789);
    b.set(spec::REG_A, 0x76);
    b.advance(5 * SECOND_NS);
    assert_eq!(b.get(spec::SECONDS), 0x58);
    b.set(spec::REG_A, 0x26);
    b.advance(SECOND_NS / 2 - 1);
    assert_eq!((b.get(spec::SECONDS), b.get(spec::REG_A)), (0x58, 0xA6));
    b.advance(1);
    assert_eq!((b.get(spec::SECONDS), b.get(spec::REG_A)), (0x59, 0x26));
}

#[test]
fn uip_announces_the_update_and_is_clear_while_set() {
    let mut b = Bench::new();
    b.advance(SECOND_NS - UIP_NS - 1);
    assert_eq!(b.get(spec::REG_A), 0x26);
    b.advance(1);
    assert_eq!(b.get(spec::REG_A), 0xA6);
    b.set(spec::REG_B, 0x82);
    assert_eq!(b.get(spec::REG_A), 0x26);
}

#[test]
fn update_ended_interrupt_comes_each_second_until_c_is_read() {
    let mut b = Bench::new();
    b.advance(300);
    assert_eq!(b.set(spec::REG_B, 0x12), Some(VmTime::from_ns(SECOND_NS)));
    assert_eq!(b.advance(SECOND_NS - 300), Some(VmTime::from_ns(2 * SECOND_NS)));
    assert!(b.irq.level());
    assert_eq!(b.get(spec::REG_C) & 0xB0, 0x90);
    assert!(!b.irq.level());
    assert_eq!(b.get(spec::REG_C), 0x00);
    // Setting SET takes UIE away.
    b.set(spec::REG_B, 0x92);
    assert_eq!(b.get(spec::REG_B), 0x82);
}

#[test]
fn flags_are_set_without_their_enables() {
    let mut b = Bench::new();
    b.advance(SECOND_NS);
    assert!(!b.irq.level());
    assert_eq!(b.get(spec::REG_C), 0x50);
}

#[test]
fn periodic_interrupt_has_the_selected_rate() {
    for (rs, hz) in [(1u8, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)] {
        let mut b = Bench::new();
        b.set(spec::REG_A, 0x20 | rs);
        let mut due = b.set(spec::REG_B, 0x42).unwrap();
        let mut count = 0;
        while due <= VmTime::from_ns(SECOND_NS) {
            b.clock.set(due);
            due = b.rtc.poll(due).unwrap();
            assert!(b.irq.level());
            assert_eq!(b.get(spec::REG_C) & 0xC0, 0xC0);
            count += 1;
        }
        assert_eq!(count, hz, "rate {rs}");
    }
    let mut b = Bench::new();
    b.set(spec::REG_A, 0x20);
    assert_eq!(b.set(spec::REG_B, 0x42), None);
}

#[test]
fn alarm_with_wildcards_fires_at_its_time() {
    let mut b = Bench::new();
    b.set(spec::SECONDS_ALARM, 0x05);
    b.set(spec::MINUTES_ALARM, 0xFF);
    b.set(spec::HOURS_ALARM, 0xC0);
    assert_eq!(b.set(spec::REG_B, 0x22), Some(VmTime::from_ns(7 * SECOND_NS)));
    b.advance(7 * SECOND_NS - 1);
    assert!(!b.irq.level());
    assert_eq!(b.advance(1), Some(VmTime::from_ns(67 * SECOND_NS)));
    assert!(b.irq.level());
    assert_eq!(b.get(spec::REG_C) & 0xA0, 0xA0);
}

#[test]
fn alarm_in_a_slept_through_span_is_noticed() {
    let mut b = Bench::new();
    b.set(spec::HOURS_ALARM, 0x06);
    b.set(spec::REG_B, 0x22);
    b.get(spec::REG_C);
    b.advance(3 * 3600 * SECOND_NS);
    assert_eq!(b.get(spec::REG_C) & 0x20, 0);
    b.advance(30 * 3600 * SECOND_NS);
    assert_eq!(b.get(spec::REG_C) & 0x20, 0x20);
}

#[test]
fn memory_sizes_are_where_firmware_looks() {
    let mut b = Bench::new();
    let word = |b: &mut Bench, at| u16::from(b.get(at)) | u16::from(b.get(at + 1)) << 8;
    assert_eq!(word(&mut b, 0x15), 640);
    assert_eq!(word(&mut b, 0x17), 63 * 1024);
    assert_eq!(word(&mut b, 0x30), 63 * 1024);
    assert_eq!(word(&mut b, 0x34), 0xBF00);
    assert_eq!((b.get(0x5B), b.get(0x5C), b.get(0x5D)), (0x00, 0x40, 0x01));
    assert_eq!(b.get(0x5F), 3);
    let sum: u16 = (0x10..0x2E).map(|at| u16::from(b.get(at))).sum();
    assert_eq!(u16::from(b.get(0x2E)) << 8 | u16::from(b.get(0x2F)), sum);
    assert_eq!(b.get(spec::REG_D), 0x80);
}

#[test]
fn both_banks_hold_bytes_and_port_70_is_write_only() {
    let mut b = Bench::new();
    b.set(0x7F, 0xAA);
    b.rtc.write(At { region: 1, offset: 0 }, Width::Byte, 0x7F).unwrap();
    b.rtc.write(At { region: 1, offset: 1 }, Width::Byte, 0x55).unwrap();
    assert_eq!(b.get(0x7F), 0xAA);
    assert_eq!(b.rtc.read(At { region: 1, offset: 1 }, Width::Byte), Ok(0x55));
    assert_eq!(
        b.rtc.read(At { region: 0, offset: 0 }, Width::Byte),
        Err(IoError::NoRegister)
    );
    b.get(0x80);
    assert!(b.rtc.nmi_masked());
    b.get(0x00);
    assert!(!b.rtc.nmi_masked());
}

#[test]
fn reset_keeps_time_and_ram_and_disables_interrupts() {
    let mut b = Bench::new();
    b.set(0x40, 0x77);
    b.set(spec::REG_B, 0x72);
    b.advance(SECOND_NS);
    assert!(b.irq.level());
    b.rtc.reset(Reset::Cold);
    assert!(!b.irq.level());
    assert_eq!(
        (b.get(spec::REG_B), b.get(0x40), b.get(spec::SECONDS)),
        (0x02, 0x77, 0x59)
    );
}

#[test]
fn alarm_line_follows_the_alarm_interrupt_alone() {
    let mut b = Bench::new();
    b.set(spec::HOURS_ALARM, 0x00);
    // The update-ended interrupt, and the alarm without its enable.
    b.set(spec::REG_B, 0x12);
    b.advance(2 * SECOND_NS);
    assert!(b.irq.level() && !b.alarm.level());
    b.set(spec::REG_B, 0x22);
    assert!(b.alarm.level());
    assert_eq!(b.get(spec::REG_C) & 0xA0, 0xA0);
    assert!(!b.alarm.level());
}

#[test]
fn resume_keeps_the_alarm_and_its_flag() {
    let mut b = Bench::new();
    b.set(spec::HOURS_ALARM, 0x00);
    b.set(spec::REG_B, 0x22);
    b.advance(2 * SECOND_NS);
    b.rtc.reset(Reset::Resume);
    assert!(b.irq.level() && b.alarm.level());
    assert_eq!((b.get(spec::REG_B), b.get(spec::REG_C) & 0xA0), (0x22, 0xA0));
}

fn boxed(clock: &TestClock) -> Box<CmosRtc> {
    let config = RtcConfig::default();
    let line = IrqLine::detached;
    Box::new(CmosRtc::new(Arc::new(clock.clone()), line(), line(), &config))
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || boxed(&clock));
}

proptest! {
    #[test]
    fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..800)) {
        let clock = TestClock::new();
        fuzz_registers(&mut *boxed(&clock), &clock, &bytes);
    }
}
