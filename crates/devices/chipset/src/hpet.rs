//! High precision event timer: a 64-bit counter of 10 ns with three comparators.
//!
//! One-shot and periodic comparators in 32 and 64 bits, edge and level interrupts to I/O APIC inputs, delivery by message
//! (FSB), and legacy replacement routing, in which comparators 0 and 1 take the place of the 8254 and the real-time clock.
//! The wires that legacy replacement cuts run through a [`LegacyGate`]. Periods that pass unnoticed are one interrupt.
//!
//! Spec: Intel IA-PC HPET specification 1.0a; Intel 316972 (ICH9) §20 (routing).

mod comparator;
mod gate;

use std::sync::Arc;

use bitfield_struct::bitfield;
use device_model::At;
use device_model::Clock;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::MsiSink;
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
use comparator::Comparator;

pub use gate::LegacyGate;

/// Low half of the capabilities: what the ACPI table calls the event timer block id. Revision 1, three comparators,
/// 64-bit counter, legacy replacement, vendor 8086h.
pub const BLOCK_ID: u32 = 0x8086_A201;
/// Period of the counter in femtoseconds.
pub const PERIOD_FS: u64 = 10_000_000;

const HZ: u64 = 1_000_000_000_000_000 / PERIOD_FS;
const COMPARATORS: usize = 3;

/// General capabilities and id (RO).
const GCAP_ID: u64 = 0x000;
/// General configuration (RW).
const GEN_CONF: u64 = 0x010;
/// General interrupt status (RW1C).
const GINTR_STA: u64 = 0x020;
/// Main counter (RW).
const MAIN_CNT: u64 = 0x0F0;
/// First comparator's registers; the next ones follow at this step.
const TIMERS: u64 = 0x100;
const TIMER_STEP: u64 = 0x20;
/// Within a comparator: configuration and capabilities, value, message.
const TN_CONF: u64 = 0x00;
const TN_CMP: u64 = 0x08;
const TN_FSB: u64 = 0x10;

/// Inputs that comparators 0 and 1 take under legacy replacement: that of ISA line 0, and that of line 8.
const LEGACY_PINS: [usize; 2] = [2, 8];
/// Shortest time between two interrupts of a periodic comparator, so that a guest cannot keep the host busy with a period
/// that no processor could follow.
const MIN_PERIOD_NS: u64 = 20_000;

const REGIONS: [Region; 1] = [Region {
    name: "hpet",
    space: Space::Mmio,
    len: 0x400,
    widths: Widths {
        min: Width::Dword,
        max: Width::Qword,
    },
}];

/// General configuration.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
struct GenConf {
    /// The counter runs and interrupts are delivered.
    enable: bool,
    /// Legacy replacement.
    legacy: bool,
    #[bits(62)]
    __: u64,
}

impl GenConf {
    const WRITABLE: u64 = 3;
}

/// The event timer block.
pub struct Hpet {
    // Wiring
    clock: Arc<dyn Clock>,
    lines: Vec<IrqLine>,
    msi: Arc<dyn MsiSink>,
    legacy: Arc<LegacyGate>,
    // State
    gen_conf: GenConf,
    /// One bit per comparator.
    status: u32,
    /// The main counter at `since`, or where it stands while disabled.
    counter: u64,
    /// Tick at which the counter was `counter`.
    since: u64,
    comparators: [Comparator; COMPARATORS],
}

impl Hpet {
    /// A block that drives `lines`, one per I/O APIC input, and cuts `legacy` while it replaces the legacy timers.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, lines: Vec<IrqLine>, msi: Arc<dyn MsiSink>, legacy: Arc<LegacyGate>) -> Self {
        Self {
            clock,
            lines,
            msi,
            legacy,
            gen_conf: GenConf::new(),
            status: 0,
            counter: 0,
            since: 0,
            comparators: comparator::at_reset(),
        }
    }

    fn count(&self, tick: u64) -> u64 {
        if self.gen_conf.enable() {
            self.counter.wrapping_add(tick.saturating_sub(self.since))
        } else {
            self.counter
        }
    }

    /// Does what the comparators have due at `tick`.
    fn advance(&mut self, tick: u64) {
        if !self.gen_conf.enable() {
            return;
        }
        let count = self.count(tick);
        for index in 0..COMPARATORS {
            let fired = self.comparators.get_mut(index).is_some_and(|timer| timer.expire(count));
            if fired {
                self.fire(index);
            }
        }
    }

    fn fire(&mut self, index: usize) {
        let Some(timer) = self.comparators.get(index) else {
            return;
        };
        let conf = timer.conf();
        if conf.level() {
            self.status |= 1 << index;
        } else if conf.enabled() && conf.fsb() {
            self.msi.send(timer.message());
        } else if conf.enabled()
            && let Some(line) = self.pin(index).and_then(|pin| self.lines.get(pin))
        {
            line.set(false);
            line.pulse();
        }
        self.drive();
    }

    /// The input that a comparator's interrupts go to.
    fn pin(&self, index: usize) -> Option<usize> {
        match LEGACY_PINS.get(index) {
            Some(pin) if self.gen_conf.legacy() => Some(*pin),
            _ => self.comparators.get(index)?.route(),
        }
    }

    /// Drives every line as the level-triggered comparators want it.
    fn drive(&self) {
        for (pin, line) in self.lines.iter().enumerate() {
            let asserted = (0..COMPARATORS).any(|index| self.asserts(index) && self.pin(index) == Some(pin));
            line.set(asserted);
        }
    }

    fn asserts(&self, index: usize) -> bool {
        let pending = self.gen_conf.enable() && self.status >> index & 1 != 0;
        let conf = self.comparators.get(index).map(Comparator::conf);
        pending && conf.is_some_and(|conf| conf.level() && conf.enabled() && !conf.fsb())
    }

    /// The 64-bit register at an 8-byte offset.
    fn register(&self, offset: u64, tick: u64) -> u64 {
        match offset {
            GCAP_ID => PERIOD_FS << 32 | u64::from(BLOCK_ID),
            GEN_CONF => self.gen_conf.into_bits(),
            GINTR_STA => self.status.into(),
            MAIN_CNT => self.count(tick),
            _ => match self.comparator(offset) {
                Some((timer, TN_CONF)) => timer.read_conf(),
                Some((timer, TN_CMP)) => timer.value(),
                Some((timer, TN_FSB)) => timer.fsb_route(),
                _ => 0,
            },
        }
    }

    fn comparator(&self, offset: u64) -> Option<(&Comparator, u64)> {
        let (index, register) = comparator_at(offset)?;
        Some((self.comparators.get(index)?, register))
    }

    /// Writes the bits of `mask` in the register at an 8-byte offset.
    fn write_register(&mut self, offset: u64, value: u64, mask: u64, tick: u64) {
        let merged = self.register(offset, tick) & !mask | value & mask;
        let count = self.count(tick);
        match offset {
            GEN_CONF => self.write_gen_conf(GenConf::from_bits(merged & GenConf::WRITABLE), tick),
            GINTR_STA => self.status &= !lanes::dword(value & mask),
            MAIN_CNT => {
                self.counter = merged;
                self.since = tick;
                for timer in &mut self.comparators {
                    timer.watch_from(merged);
                }
            }
            _ => self.write_comparator(offset, merged, mask, count),
        }
        self.drive();
    }

    fn write_gen_conf(&mut self, gen_conf: GenConf, tick: u64) {
        self.counter = self.count(tick);
        self.since = tick;
        if gen_conf.enable() && !self.gen_conf.enable() {
            for timer in &mut self.comparators {
                timer.watch_from(self.counter);
            }
        }
        self.gen_conf = gen_conf;
        self.legacy.set_replaced(gen_conf.legacy());
    }

    fn write_comparator(&mut self, offset: u64, merged: u64, mask: u64, count: u64) {
        let Some((index, register)) = comparator_at(offset) else {
            return;
        };
        let Some(timer) = self.comparators.get_mut(index) else {
            return;
        };
        match register {
            TN_CONF => {
                timer.write_conf(merged);
                if !timer.conf().level() {
                    self.status &= !(1 << index);
                }
            }
            TN_CMP => timer.write_value(merged, mask, count),
            TN_FSB => timer.set_fsb_route(merged),
            _ => {}
        }
    }
}

fn comparator_at(offset: u64) -> Option<(usize, u64)> {
    let within = offset.checked_sub(TIMERS)?;
    Some((usize::try_from(within / TIMER_STEP).ok()?, within % TIMER_STEP))
}

/// The 8-byte register of an access, and the bit where the access begins in it.
fn locate(at: At, width: Width) -> Result<(u64, u64), IoError> {
    let inside = at.offset & 7;
    match (at.region, at.offset, width) {
        (0, 0..0x400, Width::Dword) if inside & 3 == 0 => Ok((at.offset - inside, inside * 8)),
        (0, 0..0x400, Width::Qword) if inside == 0 => Ok((at.offset, 0)),
        (0, 0..0x400, _) => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}

impl Registers for Hpet {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        let (offset, shift) = locate(at, width)?;
        let tick = self.clock.now().to_ticks(HZ);
        self.advance(tick);
        Ok(self.register(offset, tick) >> shift & width.ones())
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        let (offset, shift) = locate(at, width)?;
        let tick = self.clock.now().to_ticks(HZ);
        self.advance(tick);
        self.write_register(offset, value << shift, width.ones() << shift, tick);
        Ok(())
    }
}

impl Device for Hpet {
    fn reset(&mut self, _kind: Reset) {
        self.gen_conf = GenConf::new();
        self.status = 0;
        self.counter = 0;
        self.since = 0;
        self.comparators = comparator::at_reset();
        self.legacy.set_replaced(false);
        self.drive();
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        let tick = now.to_ticks(HZ);
        self.advance(tick);
        if !self.gen_conf.enable() {
            return None;
        }
        let (count, base) = (self.count(tick), tick.max(self.since));
        let due = |timer: &Comparator| {
            let ticks = base.checked_add(timer.ticks_left(count)?)?;
            let due = VmTime::from_ticks(ticks, HZ);
            Some(if timer.conf().periodic() {
                due.max(now + MIN_PERIOD_NS)
            } else {
                due
            })
        };
        self.comparators.iter().filter_map(due).min()
    }
}

impl Snapshot for Hpet {
    type State = HpetV1;

    fn save(&self) -> HpetV1 {
        let Self {
            clock: _,
            lines: _,
            msi: _,
            legacy: _,
            gen_conf,
            status,
            counter,
            since,
            comparators,
        } = self;
        HpetV1 {
            gen_conf: gen_conf.into_bits(),
            status: *status,
            counter: *counter,
            since: *since,
            comparators: comparators.clone(),
        }
    }

    fn restore(&mut self, state: HpetV1) -> Result<(), RestoreError> {
        let HpetV1 {
            gen_conf,
            status,
            counter,
            since,
            comparators,
        } = state;
        let legal = gen_conf & !GenConf::WRITABLE == 0 && status >> COMPARATORS == 0;
        if !legal || !comparator::are_legal(&comparators) {
            return Err(RestoreError::Invalid("HPET registers out of range".into()));
        }
        self.gen_conf = GenConf::from_bits(gen_conf);
        self.status = status;
        self.counter = counter;
        self.since = since;
        self.comparators = comparators;
        self.legacy.set_replaced(self.gen_conf.legacy());
        self.drive();
        Ok(())
    }
}

impl Inspect for Hpet {
    fn inspect(&self) -> Node {
        let tick = self.clock.now().to_ticks(HZ);
        let mut node = Node::tree()
            .with("enabled", self.gen_conf.enable())
            .with("legacy", self.gen_conf.legacy())
            .with("status", self.status)
            .with("counter", self.count(tick));
        for (index, timer) in self.comparators.iter().enumerate() {
            node = node.with(&format!("comparator{index}"), timer.inspect());
        }
        node
    }
}

/// Saved state of [`Hpet`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HpetV1 {
    gen_conf: u64,
    status: u32,
    counter: u64,
    since: u64,
    comparators: [Comparator; COMPARATORS],
}

impl Schema for HpetV1 {
    const NAME: &'static str = "hpet";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use device_model::MsiMessage;
    use proptest::prelude::*;
    use test_kit::IrqProbe;
    use test_kit::TestClock;

    struct Rig {
        hpet: Hpet,
        clock: TestClock,
        probe: Arc<IrqProbe>,
    }

    fn block(clock: &TestClock, probe: &Arc<IrqProbe>) -> Hpet {
        let lines = (0..24).map(|pin| probe.line(pin)).collect();
        let legacy = LegacyGate::new(IrqLine::detached(), IrqLine::detached());
        Hpet::new(Arc::new(clock.clone()), lines, probe.clone(), legacy)
    }

    impl Rig {
        fn new() -> Self {
            let (clock, probe) = (TestClock::new(), IrqProbe::new());
            let hpet = block(&clock, &probe);
            Self { hpet, clock, probe }
        }

        fn get(&mut self, offset: u64) -> u64 {
            self.hpet.read(At { region: 0, offset }, Width::Qword).unwrap()
        }

        fn put(&mut self, offset: u64, value: u64) {
            self.hpet.write(At { region: 0, offset }, Width::Qword, value).unwrap();
            self.hpet.poll(self.clock.now());
        }

        fn put32(&mut self, offset: u64, value: u64) {
            self.hpet.write(At { region: 0, offset }, Width::Dword, value).unwrap();
            self.hpet.poll(self.clock.now());
        }

        fn advance(&mut self, ticks: u64) -> Option<u64> {
            let now = self.clock.advance(ticks * 10);
            self.hpet.poll(now).map(|next| next.since(now) / 10)
        }
    }

    const EDGE: u64 = 20 << 9 | 4;
    const LEVEL: u64 = EDGE | 2;
    const PERIODIC: u64 = 8;
    const VAL_SET: u64 = 0x40;
    const MODE_32: u64 = 0x100;

    #[test]
    fn capabilities_and_counter_read_in_halves_and_whole() {
        let mut rig = Rig::new();
        assert_eq!(rig.get(0), 0x0098_9680_8086_A201);
        let high = At { region: 0, offset: 4 };
        assert_eq!(rig.hpet.read(high, Width::Dword), Ok(0x0098_9680));
        rig.put32(0xF0, 5);
        rig.put32(0xF4, 1);
        rig.advance(100);
        assert_eq!(rig.get(0xF0), 0x1_0000_0005, "stands");
        rig.put(0x10, 1);
        rig.advance(100);
        assert_eq!(rig.get(0xF0), 0x1_0000_0069);
        rig.put(0x10, 0);
        rig.advance(100);
        assert_eq!(rig.get(0xF0), 0x1_0000_0069);
    }

    #[test]
    fn one_shot_pulses_its_line_once() {
        let mut rig = Rig::new();
        rig.put(0x100, EDGE);
        rig.put(0x108, 1_000);
        rig.put(0x10, 1);
        assert_eq!(rig.advance(400), Some(600));
        assert_eq!(rig.advance(599), Some(1));
        assert_eq!(rig.probe.rises(20), 0);
        rig.advance(1);
        assert_eq!((rig.probe.rises(20), rig.get(0x20)), (1, 0));
        rig.advance(1 << 33);
        assert_eq!(rig.probe.rises(20), 1, "64 bits do not come round");
    }

    #[test]
    fn narrow_one_shot_fires_again_when_the_counter_comes_round() {
        let mut rig = Rig::new();
        rig.put(0x100, EDGE | MODE_32);
        rig.put(0x108, 0xFFFF_0000_0000_03E8);
        assert_eq!(rig.get(0x108), 0x3E8);
        rig.put(0x10, 1);
        assert_eq!(rig.advance(1_000), Some(1 << 32));
        rig.advance(1 << 32);
        assert_eq!(rig.probe.rises(20), 2);
    }

    #[test]
    fn periodic_keeps_phase_and_coalesces_what_was_missed() {
        let mut rig = Rig::new();
        rig.put(0x100, EDGE | PERIODIC | VAL_SET);
        rig.put(0x108, 10_000);
        rig.put(0x108, 4_000);
        assert_eq!(rig.get(0x100) & VAL_SET, 0);
        rig.put(0x10, 1);
        assert_eq!(rig.advance(0), Some(10_000));
        assert_eq!(rig.advance(10_000), Some(4_000));
        assert_eq!(rig.advance(9_000), Some(3_000));
        assert_eq!((rig.probe.rises(20), rig.get(0x108)), (2, 22_000));
    }

    #[test]
    fn level_stays_until_its_status_is_cleared() {
        let mut rig = Rig::new();
        rig.put(0x120, LEVEL);
        rig.put(0x128, 10);
        rig.put(0x10, 1);
        rig.advance(10);
        assert_eq!((rig.probe.level(20), rig.get(0x20)), (true, 2));
        rig.put(0x20, 1);
        assert!(rig.probe.level(20), "another comparator's bit");
        rig.put(0x20, 2);
        assert_eq!((rig.probe.level(20), rig.get(0x20)), (false, 0));
    }

    #[test]
    fn level_without_enable_sets_status_only() {
        let mut rig = Rig::new();
        rig.put(0x120, LEVEL & !4);
        rig.put(0x128, 10);
        rig.put(0x10, 1);
        assert_eq!(rig.advance(20), None, "nobody is told");
        assert_eq!((rig.probe.level(20), rig.get(0x20)), (false, 2));
        rig.put(0x120, LEVEL);
        assert!(rig.probe.level(20));
        rig.put(0x10, 0);
        assert!(!rig.probe.level(20));
    }

    #[test]
    fn message_goes_out_with_its_address_and_value() {
        let mut rig = Rig::new();
        rig.put(0x140, 0x4004);
        rig.put(0x150, 0xFEE0_1000_0000_0041);
        rig.put(0x148, 5);
        rig.put(0x10, 1);
        rig.advance(5);
        let expected = MsiMessage {
            address: 0xFEE0_1000,
            data: 0x41,
        };
        assert_eq!(rig.probe.take_messages(), [expected]);
    }

    #[test]
    fn legacy_replacement_takes_lines_2_and_8() {
        let mut rig = Rig::new();
        rig.put(0x100, EDGE);
        rig.put(0x120, EDGE);
        rig.put(0x108, 10);
        rig.put(0x128, 10);
        rig.put(0x10, 3);
        rig.advance(10);
        assert_eq!([2, 8, 20].map(|pin| rig.probe.rises(pin)), [1, 1, 0]);
    }

    #[test]
    fn route_that_is_not_offered_is_not_taken() {
        let mut rig = Rig::new();
        rig.put(0x100, EDGE);
        rig.put(0x100, 9 << 9 | 4);
        assert_eq!(rig.get(0x100) & 0x3E00, 20 << 9);
        assert_eq!(rig.get(0x100) >> 32, 0x00F0_0000);
        assert_eq!(rig.get(0x140) >> 32, 0x00F0_0800);
    }

    #[test]
    fn comparator_at_the_present_count_fires_at_once() {
        let mut rig = Rig::new();
        rig.put(0x100, EDGE);
        rig.put(0x10, 1);
        rig.advance(50);
        rig.put(0x108, 50);
        assert_eq!(rig.probe.rises(20), 1);
        rig.put(0x108, 49);
        rig.advance(1_000);
        assert_eq!(rig.probe.rises(20), 1, "missed");
    }

    #[test]
    fn keeps_the_device_contract() {
        let (clock, probe) = (TestClock::new(), IrqProbe::new());
        test_kit::contract(&clock, || Box::new(block(&clock, &probe)));
    }

    proptest! {
        #[test]
        fn no_access_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut rig = Rig::new();
            test_kit::fuzz_registers(&mut rig.hpet, &rig.clock, &bytes);
        }
    }
}
