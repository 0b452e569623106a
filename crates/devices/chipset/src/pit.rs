//! Intel 8254 programmable interval timer, and the system control port 61h that its counter 2 is wired to.
//!
//! Three 16-bit counters in modes 0 to 5, binary and BCD, with latch and read-back commands. Counter 0 drives the timer
//! interrupt; the gate of counter 2 and the speaker bit are in port 61h, which also shows the output of counter 2 and the
//! refresh toggle. Counter 1 (DRAM refresh) counts but its output goes nowhere. The outputs of a counter that was not yet
//! programmed are low. The speaker is silent.
//!
//! Only rising edges of counter 0 have an effect, so only they have a deadline; when several have passed unnoticed, one is
//! delivered.
//!
//! Spec: Intel 231164-005 (8254 data sheet); Intel 290550-002 (PIIX3) §2.5.1 (port 61h).

mod counter;

use std::sync::Arc;

use bitfield_struct::bitfield;
use device_model::At;
use device_model::Clock;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::Node;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Space;
use device_model::VmTime;
use device_model::Width;
use device_model::Widths;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;
use counter::Counter;

/// Input clock of the counters.
pub const HZ: u64 = 1_193_182;

const PIT: usize = 0;
const PORT61: usize = 1;

const REGIONS: [Region; 2] = [
    Region {
        name: "pit",
        space: Space::Pio,
        len: 4,
        widths: Widths::BYTE,
    },
    Region {
        name: "port61",
        space: Space::Pio,
        len: 1,
        widths: Widths::BYTE,
    },
];

/// Shortest time between two interrupts of a periodic mode, so that a guest cannot keep the host busy with a count that no
/// processor could follow.
const MIN_PERIOD_NS: u64 = 20_000;
/// Ticks between two toggles of the refresh bit: what PC firmware programs into counter 1.
const REFRESH_TICKS: u64 = 18;

/// Control word (WO).
#[bitfield(u8)]
struct ControlWord {
    bcd: bool,
    #[bits(3)]
    mode: u8,
    /// 0 latch, 1 low byte, 2 high byte, 3 both.
    #[bits(2)]
    access: u8,
    /// Counter; 3 is the read-back command.
    #[bits(2)]
    select: u8,
}

/// Read-back command (WO).
#[bitfield(u8)]
struct ReadBack {
    __: bool,
    #[bits(3)]
    counters: u8,
    no_status: bool,
    no_count: bool,
    #[bits(2)]
    __: u8,
}

/// System control port B, 61h.
#[bitfield(u8)]
struct NmiSc {
    /// Gate of counter 2 (RW).
    gate2: bool,
    /// Speaker follows counter 2 (RW).
    speaker: bool,
    /// PCI SERR# disabled (RW).
    serr_off: bool,
    /// IOCHK# disabled (RW).
    iochk_off: bool,
    /// Toggles with every refresh (RO).
    refresh: bool,
    /// Output of counter 2 (RO).
    out2: bool,
    #[bits(2)]
    __: u8,
}

/// The interval timer.
pub struct Pit {
    // Wiring
    clock: Arc<dyn Clock>,
    irq0: IrqLine,
    // State
    counters: [Counter; 3],
    /// The writable bits of port 61h.
    port61: u8,
    /// Tick up to which the edges of counter 0 are delivered.
    seen: u64,
}

impl Pit {
    /// A timer whose counter 0 drives `irq0`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, irq0: IrqLine) -> Self {
        Self {
            clock,
            irq0,
            counters: [Counter::new(true), Counter::new(true), Counter::new(false)],
            port61: 0,
            seen: 0,
        }
    }

    /// Brings counters and interrupt line up to `tick`.
    fn advance(&mut self, tick: u64) {
        let [counter0, ..] = &mut self.counters;
        if counter0.rises_after(self.seen).is_some_and(|edge| edge <= tick) {
            self.irq0.set(false);
            self.irq0.set(true);
        }
        self.seen = self.seen.max(tick);
        for counter in &mut self.counters {
            counter.settle(tick);
        }
        self.drive(tick);
    }

    fn drive(&self, tick: u64) {
        let [counter0, ..] = &self.counters;
        self.irq0.set(counter0.output(tick));
    }

    fn write_control(&mut self, value: u8, tick: u64) {
        let word = ControlWord::from_bits(value);
        if word.select() == 3 {
            let command = ReadBack::from_bits(value);
            for (index, counter) in self.counters.iter_mut().enumerate() {
                if command.counters() >> index & 1 != 0 {
                    counter.read_back(!command.no_count(), !command.no_status(), tick);
                }
            }
            return;
        }
        if let Some(counter) = self.counters.get_mut(usize::from(word.select())) {
            match word.access() {
                0 => counter.read_back(true, false, tick),
                access => counter.program(word.mode(), word.bcd(), access),
            }
        }
    }

    fn read_port61(&self, tick: u64) -> u8 {
        let [.., counter2] = &self.counters;
        NmiSc::from_bits(self.port61)
            .with_refresh((tick / REFRESH_TICKS) & 1 != 0)
            .with_out2(counter2.output(tick))
            .into_bits()
    }
}

fn counter_index(offset: u64) -> Option<usize> {
    usize::try_from(offset).ok().filter(|index| *index < 3)
}

impl Registers for Pit {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let tick = self.clock.now().to_ticks(HZ);
        self.advance(tick);
        let value = match (at.region, counter_index(at.offset)) {
            (PIT, Some(index)) => self.counters.get_mut(index).map(|counter| counter.read(tick)),
            (PORT61, Some(0)) => Some(self.read_port61(tick)),
            _ => None,
        };
        value.map(u64::from).ok_or(IoError::NoRegister)
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        if width != Width::Byte {
            return Err(IoError::Width);
        }
        let tick = self.clock.now().to_ticks(HZ);
        self.advance(tick);
        let value = lanes::byte(value);
        match (at.region, at.offset) {
            (PIT, 3) => self.write_control(value, tick),
            (PIT, offset) => {
                let index = counter_index(offset).ok_or(IoError::NoRegister)?;
                if let Some(counter) = self.counters.get_mut(index) {
                    counter.write(value, tick);
                }
            }
            (PORT61, 0) => {
                self.port61 = value & 0x0F;
                let [.., counter2] = &mut self.counters;
                counter2.set_gate(NmiSc::from_bits(value).gate2(), tick);
            }
            _ => return Err(IoError::NoRegister),
        }
        self.drive(tick);
        Ok(())
    }
}

impl Device for Pit {
    fn reset(&mut self, _kind: Reset) {
        self.counters = [Counter::new(true), Counter::new(true), Counter::new(false)];
        self.port61 = 0;
        self.seen = self.clock.now().to_ticks(HZ);
        self.irq0.set(false);
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        let tick = now.to_ticks(HZ);
        self.advance(tick);
        let [counter0, ..] = &self.counters;
        let due = VmTime::from_ticks(counter0.next_event(tick)?, HZ);
        Some(if counter0.is_periodic() {
            due.max(now + MIN_PERIOD_NS)
        } else {
            due
        })
    }
}

impl Snapshot for Pit {
    type State = PitV1;

    fn save(&self) -> PitV1 {
        let Self {
            clock: _,
            irq0,
            counters,
            port61,
            seen,
        } = self;
        PitV1 {
            counters: counters.clone(),
            port61: *port61,
            seen: *seen,
            irq0: irq0.level(),
        }
    }

    fn restore(&mut self, state: PitV1) -> Result<(), RestoreError> {
        let PitV1 {
            counters,
            port61,
            seen,
            irq0,
        } = state;
        if port61 > 0x0F || !counters.iter().all(Counter::is_legal) {
            return Err(RestoreError::Invalid("8254 registers out of range".into()));
        }
        self.counters = counters;
        self.port61 = port61;
        self.seen = seen;
        self.irq0.set(irq0);
        Ok(())
    }
}

impl Inspect for Pit {
    fn inspect(&self) -> Node {
        let tick = self.clock.now().to_ticks(HZ);
        let mut node = Node::tree().with("port61", self.read_port61(tick));
        for (name, counter) in ["counter0", "counter1", "counter2"].iter().zip(&self.counters) {
            node = node.with(name, counter.inspect(tick));
        }
        node
    }
}

/// Saved state of [`Pit`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PitV1 {
    counters: [Counter; 3],
    port61: u8,
    seen: u64,
    irq0: bool,
}

impl Schema for PitV1 {
    const NAME: &'static str = "pit";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_kit::IrqProbe;
    use test_kit::TestClock;

    struct Rig {
        pit: Pit,
        clock: TestClock,
        probe: Arc<IrqProbe>,
    }

    impl Rig {
        fn new() -> Self {
            let clock = TestClock::new();
            let probe = IrqProbe::new();
            let pit = Pit::new(Arc::new(clock.clone()), probe.line(0));
            Self { pit, clock, probe }
        }

        fn out(&mut self, port: u64, value: u8) {
            let (region, offset) = if port == 0x61 { (PORT61, 0) } else { (PIT, port - 0x40) };
            self.pit
                .write(At { region, offset }, Width::Byte, value.into())
                .unwrap();
            self.pit.poll(self.clock.now());
        }

        fn inb(&mut self, port: u64) -> u8 {
            let (region, offset) = if port == 0x61 { (PORT61, 0) } else { (PIT, port - 0x40) };
            lanes::byte(self.pit.read(At { region, offset }, Width::Byte).unwrap())
        }

        fn to(&mut self, tick: u64) -> Option<u64> {
            self.clock.set(VmTime::from_ticks(tick, HZ));
            self.pit.poll(self.clock.now()).map(|time| time.to_ticks(HZ))
        }

        fn load(&mut self, control: u8, count: u16) {
            let [low, high] = count.to_le_bytes();
            let port = 0x40 + u64::from(control >> 6);
            self.out(0x43, control);
            self.out(port, low);
            self.out(port, high);
        }

        fn count(&mut self, counter: u8) -> u16 {
            self.out(0x43, counter << 6);
            let port = 0x40 + u64::from(counter);
            u16::from_le_bytes([self.inb(port), self.inb(port)])
        }

        fn status(&mut self, counter: u8) -> u8 {
            self.out(0x43, 0xE0 | 2 << counter);
            self.inb(0x40 + u64::from(counter))
        }

        fn out2(&mut self) -> bool {
            self.inb(0x61) & 0x20 != 0
        }
    }

    #[test]
    fn mode0_rises_once_after_count_plus_one() {
        let mut rig = Rig::new();
        rig.load(0x30, 100);
        assert_eq!(rig.to(50), Some(101));
        assert_eq!(rig.count(0), 51);
        assert_eq!(rig.to(100), Some(101));
        assert!(!rig.probe.level(0));
        assert_eq!(rig.to(101), None);
        assert!(rig.probe.level(0));
        rig.to(200);
        assert_eq!(rig.count(0), 0u16.wrapping_sub(99), "goes on counting");
        rig.load(0x30, 5);
        assert!(!rig.probe.level(0));
    }

    #[test]
    fn mode2_pulses_every_period_without_drift() {
        let mut rig = Rig::new();
        rig.load(0x34, 1_000);
        for period in 1..=50 {
            let edge = 1 + period * 1_000;
            assert_eq!(rig.to(edge - 100), Some(edge));
            rig.to(edge);
            assert_eq!(rig.probe.rises(0), 1 + period, "the control word made one rise");
        }
        rig.to(1 + 1_000 * 1_000);
        assert_eq!(rig.probe.rises(0), 52, "missed edges are one");
        rig.to(1 + 1_000 * 1_000 + 300);
        assert_eq!(rig.count(0), 700);
    }

    #[test]
    fn mode2_takes_a_new_count_at_the_end_of_the_period() {
        let mut rig = Rig::new();
        rig.load(0x34, 1_000);
        rig.to(501);
        rig.out(0x40, 100);
        rig.out(0x40, 0);
        assert_eq!(rig.count(0), 500);
        assert_eq!(rig.status(0) & 0x40, 0x40, "null count");
        rig.to(1_001 + 30);
        assert_eq!(rig.probe.rises(0), 2);
        assert_eq!((rig.count(0), rig.status(0) & 0x40), (70, 0));
        rig.to(1_001 + 100);
        assert_eq!(rig.probe.rises(0), 3);
    }

    #[test]
    fn mode3_odd_count_is_high_one_tick_longer() {
        let mut rig = Rig::new();
        rig.out(0x61, 1);
        rig.load(0xB6, 7);
        let mut levels = Vec::new();
        for tick in 1..=14 {
            rig.to(tick);
            levels.push(u8::from(rig.out2()));
        }
        assert_eq!(levels, [1, 1, 1, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0]);
        rig.load(0xB6, 8);
        let counts: Vec<_> = (15..=23)
            .map(|tick| {
                rig.to(tick);
                rig.count(2)
            })
            .collect();
        assert_eq!(counts, [8, 6, 4, 2, 8, 6, 4, 2, 8]);
    }

    #[test]
    fn mode3_new_count_starts_with_the_next_half() {
        let mut rig = Rig::new();
        rig.out(0x61, 1);
        rig.load(0xB6, 100);
        rig.to(11);
        rig.out(0x42, 20);
        rig.out(0x42, 0);
        for (tick, level) in [
            (50, true),
            (51, false),
            (60, false),
            (61, true),
            (71, false),
            (81, true),
        ] {
            rig.to(tick);
            assert_eq!(rig.out2(), level, "{tick}");
        }
    }

    #[test]
    fn mode4_strobes_low_for_one_tick() {
        let mut rig = Rig::new();
        rig.load(0x38, 50);
        assert!(rig.probe.level(0));
        assert_eq!(rig.to(20), Some(52));
        rig.to(51);
        assert!(!rig.probe.level(0));
        assert_eq!(rig.to(52), None);
        assert_eq!((rig.probe.level(0), rig.probe.rises(0)), (true, 2));
        rig.out(0x40, 10);
        rig.out(0x40, 0);
        rig.to(1_000);
        assert_eq!(rig.probe.rises(0), 3, "also when polled late");
    }

    #[test]
    fn gate2_holds_mode0_and_port61_shows_the_output() {
        let mut rig = Rig::new();
        rig.load(0xB0, 100);
        rig.to(500);
        assert_eq!((rig.count(2), rig.out2()), (100, false));
        rig.out(0x61, 1);
        rig.to(560);
        assert_eq!(rig.count(2), 40);
        rig.out(0x61, 0);
        rig.to(900);
        assert_eq!(rig.count(2), 40);
        rig.out(0x61, 1);
        rig.to(940);
        assert_eq!((rig.count(2), rig.out2()), (0, true));
    }

    #[test]
    fn gate2_triggers_modes_1_and_5() {
        for (control, shot, after) in [(0xB2, false, true), (0xBA, true, false)] {
            let mut rig = Rig::new();
            rig.load(control, 10);
            rig.to(100);
            assert!(rig.out2(), "not triggered");
            rig.out(0x61, 1);
            rig.to(105);
            assert_eq!(rig.out2(), shot);
            rig.out(0x61, 0);
            rig.to(111);
            assert_eq!(rig.out2(), after);
            rig.to(112);
            assert!(rig.out2());
            rig.out(0x61, 1);
            rig.to(118);
            assert_eq!(rig.out2(), shot, "retriggered");
        }
    }

    #[test]
    fn gate2_restarts_modes_2_and_3() {
        for control in [0xB4, 0xB6] {
            let mut rig = Rig::new();
            rig.out(0x61, 1);
            rig.load(control, 10);
            rig.to(8);
            rig.out(0x61, 0);
            assert!(rig.out2(), "high at once");
            rig.to(58);
            rig.out(0x61, 1);
            rig.to(60);
            let expected = if control == 0xB4 { 9 } else { 8 };
            assert_eq!(rig.count(2), expected);
        }
    }

    #[test]
    fn bcd_counts_in_decimal() {
        let mut rig = Rig::new();
        rig.load(0x31, 0x1000);
        rig.to(2);
        assert_eq!(rig.count(0), 0x0999);
        rig.load(0x35, 0);
        rig.to(3 + 1);
        assert_eq!(rig.count(0), 0x9999, "0 is 10000");
    }

    #[test]
    fn latch_holds_until_read_and_status_comes_first() {
        let mut rig = Rig::new();
        rig.load(0x34, 0);
        rig.to(1);
        rig.out(0x43, 0x00);
        rig.to(1_000);
        rig.out(0x43, 0xC2);
        assert_eq!(rig.inb(0x40), 0xB4, "output, access, mode 2");
        assert_eq!((rig.inb(0x40), rig.inb(0x40)), (0, 0), "latched as 65536 at tick 1");
        assert_ne!((rig.inb(0x40), rig.inb(0x40)), (0, 0));
    }

    #[test]
    fn single_byte_access_reads_and_writes_that_byte() {
        let mut rig = Rig::new();
        rig.out(0x43, 0x20);
        rig.out(0x40, 0x12);
        rig.to(2);
        assert_eq!((rig.inb(0x40), rig.inb(0x40)), (0x11, 0x11), "1200h minus 1");
        rig.out(0x43, 0x10);
        rig.out(0x40, 0x80);
        rig.to(3 + 0x10);
        assert_eq!(rig.inb(0x40), 0x70);
    }

    #[test]
    fn refresh_bit_toggles_and_control_word_is_write_only() {
        let mut rig = Rig::new();
        rig.out(0x61, 0xFF);
        let before = rig.inb(0x61);
        rig.to(18);
        assert_eq!(before ^ rig.inb(0x61), 0x10);
        assert_eq!(before & 0x0F, 0x0F);
        let at = At { region: PIT, offset: 3 };
        assert_eq!(rig.pit.read(at, Width::Byte), Err(IoError::NoRegister));
    }

    #[test]
    fn keeps_the_device_contract() {
        let clock = TestClock::new();
        test_kit::contract(&clock, || {
            Box::new(Pit::new(Arc::new(clock.clone()), IrqLine::detached()))
        });
    }

    proptest! {
        #[test]
        fn no_access_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut rig = Rig::new();
            test_kit::fuzz_registers(&mut rig.pit, &rig.clock, &bytes);
        }
    }
}
