//! Motorola MC146818A real-time clock with CMOS RAM, as in a PC chipset.
//!
//! Time and calendar (BCD or binary, 12 or 24 hours, century byte), alarm with wildcards, periodic and update-ended
//! interrupts, UIP and SET are modelled, and two banks of 128 bytes. The time is that of power-on plus guest time. An update
//! takes no time: UIP announces it for 244 µs and it is done. Daylight saving and the square wave are stored only; periods
//! that pass unread are not made up for. The NMI mask is kept for whoever raises NMIs. The alarm's interrupt has a second
//! line of its own, which power management wakes the machine by.
//!
//! Spec: Motorola MC146818A (1984); Intel 316972 (ICH9) §13.6.

use std::sync::Arc;
use std::time::Duration;

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

use self::calendar::Alarm;
use self::calendar::TimeRegisters;
use self::spec::RegA;
use self::spec::RegB;
use self::spec::RegC;
use crate::lanes;

mod calendar;
mod spec;

/// Port of the index register; the data port follows it.
pub const PORT: u64 = 0x70;
/// Port of the upper bank's index register; its data port follows it.
pub const UPPER_PORT: u64 = 0x72;
/// CMOS address of the century: FADT CENTURY.
pub const CENTURY_ADDRESS: u8 = spec::CENTURY;

const BANK: usize = 128;
const RTC: usize = 0;
const UPPER: usize = 1;
const SECOND_NS: u64 = 1_000_000_000;
/// MC146818A fig. 11: UIP rises this long before the update.
const UIP_NS: u64 = 244_140;
/// Years 1 to 9999: what two bytes of year can show.
const EARLIEST: i64 = -62_135_596_800;
const LATEST: i64 = 253_402_300_799;
/// No setting of the clock, even by a guest that does it over and over, moves it further.
const FURTHEST: i64 = 1 << 48;

const fn region(name: &'static str) -> Region {
    Region {
        name,
        space: Space::Pio,
        len: 2,
        widths: Widths::BYTE,
    }
}

const REGIONS: [Region; 2] = [region("rtc"), region("upper_bank")];

/// What the clock and its RAM say at power-on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RtcConfig {
    /// Time at power-on, in seconds since 1970.
    pub boot_unix_time: i64,
    /// Nanoseconds of the second that have passed then.
    pub boot_nanoseconds: u32,
    /// Bytes of RAM below 4 GiB.
    pub ram_below_4g: u64,
    /// Bytes of RAM above 4 GiB.
    pub ram_above_4g: u64,
    /// Processors; 0 is taken for 1.
    pub cpus: u32,
}

/// The clock and its RAM.
pub struct CmosRtc {
    // Wiring
    clock: Arc<dyn Clock>,
    irq: IrqLine,
    alarm: IrqLine,
    // State
    index: u8,
    upper_index: u8,
    nmi_masked: bool,
    reg_a: RegA,
    reg_b: RegB,
    reg_c: RegC,
    /// RAM and the alarm registers. The bytes of the time and of registers A to D are not used.
    ram: [u8; BANK],
    upper_ram: [u8; BANK],
    /// The time in seconds since 1970, less the seconds of the divider.
    offset: i64,
    /// How far the weekday is ahead of the calendar's.
    weekday_shift: u8,
    /// The time registers while they stand (SET, or the divider held in reset).
    held: Option<TimeRegisters>,
    /// What the divider chain is ahead of guest time, in nanoseconds below a second.
    phase: u64,
    /// Divider seconds that the flags account for.
    seen_seconds: u64,
    /// Periods of the periodic interrupt that the flags account for.
    seen_periods: u64,
}

impl CmosRtc {
    /// A clock that interrupts through `irq`, and drives `alarm` while the alarm's interrupt is among those.
    pub fn new(clock: Arc<dyn Clock>, irq: IrqLine, alarm: IrqLine, config: &RtcConfig) -> Self {
        let mut this = Self {
            clock,
            irq,
            alarm,
            index: 0,
            upper_index: 0,
            nmi_masked: false,
            reg_a: RegA::from_bits(RegA::USUAL),
            reg_b: RegB::from_bits(RegB::USUAL),
            reg_c: RegC::new(),
            ram: contents(config),
            upper_ram: [0; BANK],
            offset: config.boot_unix_time.clamp(EARLIEST, LATEST),
            weekday_shift: 0,
            held: None,
            phase: u64::from(config.boot_nanoseconds) % SECOND_NS,
            seen_seconds: 0,
            seen_periods: 0,
        };
        this.restart_flags(this.clock.now());
        this
    }

    /// Sets bytes of the RAM as firmware's set-up would have: (index, value) of each. The checksum follows.
    pub fn set_up(&mut self, cells: &[(u8, u8)]) {
        for (index, value) in cells {
            if let Some(cell) = cell(&mut self.ram, *index) {
                *cell = *value;
            }
        }
        checksum(&mut self.ram);
    }

    /// Port 70h masks NMIs.
    pub fn nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    /// The date that the clock shows, less guest time, as the time since 1970. The clock is taken to keep UTC; dates before
    /// 1970 become that.
    pub fn boot_date(&self) -> Duration {
        let passed = |now: VmTime| signed(self.seconds(now));
        let seconds = match self.held {
            None => self.offset,
            Some(held) => held.decode(self.reg_b).saturating_sub(passed(self.clock.now())),
        };
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).saturating_add(Duration::from_nanos(self.phase))
    }
}

/// The CMOS bytes that firmware would have written.
fn contents(config: &RtcConfig) -> [u8; BANK] {
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    let above = |bytes: u64, from: u64, unit: u64, most: u64| bytes.saturating_sub(from).wrapping_div(unit).min(most);
    let extended = above(config.ram_below_4g, MIB, KIB, 63 * 1024);
    let base = (config.ram_below_4g / KIB).min(640);
    let cpus = u64::from(config.cpus.saturating_sub(1)).min(255);
    let mut ram = [0; BANK];
    let mut put = |at: u8, len: usize, value: u64| {
        let cells = ram.get_mut(usize::from(at)..).unwrap_or(&mut []);
        for (cell, byte) in cells.iter_mut().zip(value.to_le_bytes()).take(len) {
            *cell = byte;
        }
    };
    put(spec::EQUIPMENT, 1, u64::from(spec::EQUIPMENT_FPU_AND_MOUSE));
    put(spec::BASE_MEMORY, 2, base);
    put(spec::EXTENDED_MEMORY, 2, extended);
    put(spec::EXTENDED_MEMORY_FOUND, 2, extended);
    put(
        spec::MEMORY_ABOVE_16M,
        2,
        above(config.ram_below_4g, 16 * MIB, 64 * KIB, 0xFFFF),
    );
    put(
        spec::MEMORY_ABOVE_4G,
        3,
        above(config.ram_above_4g, 0, 64 * KIB, 0xFF_FFFF),
    );
    put(spec::CPUS, 1, cpus);
    checksum(&mut ram);
    ram
}

/// Makes the checksum of the set-up bytes right.
fn checksum(ram: &mut [u8; BANK]) {
    let covered = usize::from(spec::CHECKSUM_FIRST)..usize::from(spec::CHECKSUM);
    let sum: u64 = ram.get(covered).unwrap_or(&[]).iter().copied().map(u64::from).sum();
    if let Some([high, low]) = ram.get_mut(usize::from(spec::CHECKSUM)..usize::from(spec::CHECKSUM) + 2) {
        [*low, *high] = lanes::word(sum).to_le_bytes();
    }
}

impl Registers for CmosRtc {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        let value = match (at.region, at.offset) {
            (RTC, 1) => self.read_register(self.clock.now()),
            (UPPER, 0) => self.upper_index,
            (UPPER, 1) => cell(&mut self.upper_ram, self.upper_index).map_or(0xFF, |cell| *cell),
            // ICH9 §13.6: port 70h is write-only.
            _ => return Err(IoError::NoRegister),
        };
        Ok(u64::from(value))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let value = lanes::byte(value);
        match (at.region, at.offset) {
            (RTC, 0) => {
                self.index = value & 0x7F;
                self.nmi_masked = value & 0x80 != 0;
            }
            (RTC, _) => self.write_register(self.clock.now(), value),
            (_, 0) => self.upper_index = value & 0x7F,
            _ => {
                if let Some(cell) = cell(&mut self.upper_ram, self.upper_index) {
                    *cell = value;
                }
            }
        }
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    match (at, width) {
        (
            At {
                region: RTC | UPPER,
                offset: 0..2,
            },
            Width::Byte,
        ) => Ok(()),
        (
            At {
                region: RTC | UPPER,
                offset: 0..2,
            },
            _,
        ) => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}

fn cell(bank: &mut [u8; BANK], index: u8) -> Option<&mut u8> {
    bank.get_mut(usize::from(index))
}

impl CmosRtc {
    fn read_register(&mut self, now: VmTime) -> u8 {
        self.catch_up(now);
        match self.index {
            spec::REG_A => self.reg_a.with_uip(self.update_is_near(now)).into_bits(),
            spec::REG_B => self.reg_b.into_bits(),
            spec::REG_C => self.take_flags(),
            spec::REG_D => spec::REG_D_VRT,
            index => match self.time_registers(now).register(index) {
                Some(register) => *register,
                None => cell(&mut self.ram, index).map_or(0xFF, |cell| *cell),
            },
        }
    }

    fn write_register(&mut self, now: VmTime, value: u8) {
        self.catch_up(now);
        match self.index {
            spec::REG_A => self.write_reg_a(now, value),
            spec::REG_B => self.write_reg_b(now, value),
            // Registers C and D are for reading.
            spec::REG_C | spec::REG_D => {}
            index => {
                let mut registers = self.time_registers(now);
                if let Some(register) = registers.register(index) {
                    *register = value;
                    self.set_time(now, registers);
                } else if let Some(cell) = cell(&mut self.ram, index) {
                    *cell = value;
                }
            }
        }
        self.update_irq();
    }

    fn write_reg_a(&mut self, now: VmTime, value: u8) {
        let ran = self.reg_a.divider_runs();
        let standing = self.time_registers(now);
        self.reg_a = RegA::from_bits(value).with_uip(false);
        if !ran && self.reg_a.divider_runs() {
            // MC146818A "Divider bits": the first update comes half a second after the divider is let go.
            self.phase = (SECOND_NS + SECOND_NS / 2 - now.as_ns() % SECOND_NS) % SECOND_NS;
        }
        self.restart_flags(now);
        self.hold_or_run(now, standing);
    }

    fn write_reg_b(&mut self, now: VmTime, value: u8) {
        // In a running clock the numbers change with the format; in a standing one they are the guest's.
        let new = RegB::from_bits(value);
        let old = std::mem::replace(&mut self.reg_b, new);
        if new.set() {
            self.reg_b.set_uie(false);
        }
        let standing = match self.held {
            Some(held) => held,
            None => self.running_registers(now),
        };
        if old.set() != new.set() {
            self.hold_or_run(now, standing);
        }
    }

    /// After a change of SET or the divider: stops with `standing` in the registers, or runs on from there.
    fn hold_or_run(&mut self, now: VmTime, standing: TimeRegisters) {
        let stands = self.reg_b.set() || !self.reg_a.divider_runs();
        let stood = self.held.is_some();
        if stands {
            self.held = Some(standing);
        } else if stood {
            self.held = None;
            self.set_time(now, standing);
            self.seen_seconds = self.seconds(now);
        }
    }

    fn set_time(&mut self, now: VmTime, registers: TimeRegisters) {
        if let Some(held) = &mut self.held {
            *held = registers;
            return;
        }
        self.weekday_shift = registers.weekday_shift(self.reg_b);
        self.offset = registers.decode(self.reg_b).saturating_sub(signed(self.seconds(now)));
    }

    fn time_registers(&self, now: VmTime) -> TimeRegisters {
        self.held.unwrap_or_else(|| self.running_registers(now))
    }

    fn running_registers(&self, now: VmTime) -> TimeRegisters {
        let time = signed(self.seconds(now)).saturating_add(self.offset);
        TimeRegisters::encode(time, self.weekday_shift, self.reg_b)
    }

    /// The divider chain's own time.
    fn divider(&self, now: VmTime) -> VmTime {
        now + self.phase
    }

    fn seconds(&self, now: VmTime) -> u64 {
        self.divider(now).as_ns() / SECOND_NS
    }

    fn periods(&self, now: VmTime) -> u64 {
        let ticks = self.divider(now).to_ticks(spec::DIVIDER_HZ);
        self.reg_a.period().map_or(0, |period| ticks / period)
    }

    fn update_is_near(&self, now: VmTime) -> bool {
        self.held.is_none() && self.divider(now).as_ns() % SECOND_NS >= SECOND_NS - UIP_NS
    }

    fn alarm(&self) -> Alarm {
        let part = |index: u8| self.ram.get(usize::from(index)).copied().unwrap_or(0);
        Alarm::new(
            part(spec::SECONDS_ALARM),
            part(spec::MINUTES_ALARM),
            part(spec::HOURS_ALARM),
            self.reg_b,
        )
    }

    /// The divider second at which the alarm next goes off after second `after`.
    fn next_alarm(&self, after: u64) -> Option<u64> {
        let time = self.alarm().next_after(signed(after).saturating_add(self.offset))?;
        u64::try_from(time.checked_sub(self.offset)?).ok()
    }

    /// Sets the flags for what happened since they were last looked at.
    fn catch_up(&mut self, now: VmTime) {
        let periods = self.periods(now);
        if periods > self.seen_periods && self.reg_a.divider_runs() {
            self.reg_c.set_pf(true);
        }
        self.seen_periods = periods;
        let seconds = self.seconds(now);
        if seconds > self.seen_seconds && self.held.is_none() {
            self.reg_c.set_uf(true);
            if self.next_alarm(self.seen_seconds).is_some_and(|at| at <= seconds) {
                self.reg_c.set_af(true);
            }
        }
        self.seen_seconds = seconds;
        self.update_irq();
    }

    /// What happened so far counts as seen.
    fn restart_flags(&mut self, now: VmTime) {
        self.seen_seconds = self.seconds(now);
        self.seen_periods = self.periods(now);
    }

    fn interrupts(&self) -> bool {
        self.reg_c.into_bits() & self.reg_b.into_bits() & RegB::ENABLES != 0
    }

    fn update_irq(&self) {
        self.irq.set(self.interrupts());
        self.alarm.set(self.reg_c.af() && self.reg_b.aie());
    }

    fn take_flags(&mut self) -> u8 {
        let flags = self.reg_c.with_irqf(self.interrupts());
        self.reg_c = RegC::new();
        self.update_irq();
        flags.into_bits()
    }

    /// When the next enabled interrupt comes, whether or not one is pending: reading register C asks for no poll.
    fn deadline(&self, now: VmTime) -> Option<VmTime> {
        let second = |at: u64| at.saturating_mul(SECOND_NS);
        let runs = self.held.is_none();
        let period = self
            .reg_a
            .period()
            .filter(|_| self.reg_b.pie() && self.reg_a.divider_runs());
        let periodic = period.map(|period| {
            let ticks = self.periods(now).saturating_add(1).saturating_mul(period);
            VmTime::from_ticks(ticks, spec::DIVIDER_HZ).as_ns()
        });
        let update = (runs && self.reg_b.uie()).then(|| second(self.seconds(now).saturating_add(1)));
        let alarm = (runs && self.reg_b.aie())
            .then(|| self.next_alarm(self.seconds(now)))
            .flatten()
            .map(second);
        let earliest = [periodic, update, alarm].into_iter().flatten().min()?;
        Some(VmTime::from_ns(earliest.saturating_sub(self.phase))).filter(|at| *at > now)
    }
}

/// Seconds of guest time as a signed number: there are fewer than 2^35.
fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

impl Device for CmosRtc {
    /// The battery keeps time and RAM; the RESET pin disables interrupts (MC146818A "Reset"). It is on standby power, so
    /// that a sleep only costs what port 70h holds.
    fn reset(&mut self, kind: Reset) {
        self.index = 0;
        self.upper_index = 0;
        self.nmi_masked = false;
        if kind == Reset::Resume {
            return;
        }
        self.restart_flags(self.clock.now());
        self.reg_b = self
            .reg_b
            .with_pie(false)
            .with_aie(false)
            .with_uie(false)
            .with_sqwe(false);
        self.reg_c = RegC::new();
        self.update_irq();
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        self.catch_up(now);
        self.deadline(now)
    }
}

impl Snapshot for CmosRtc {
    type State = CmosRtcV1;

    fn save(&self) -> CmosRtcV1 {
        let Self {
            clock: _,
            irq: _,
            alarm: _,
            index,
            upper_index,
            nmi_masked,
            reg_a,
            reg_b,
            reg_c,
            ram,
            upper_ram,
            offset,
            weekday_shift,
            held,
            phase,
            seen_seconds,
            seen_periods,
        } = self;
        CmosRtcV1 {
            index: *index,
            upper_index: *upper_index,
            nmi_masked: *nmi_masked,
            reg_a: reg_a.into_bits(),
            reg_b: reg_b.into_bits(),
            reg_c: reg_c.into_bits(),
            ram: ram.to_vec(),
            upper_ram: upper_ram.to_vec(),
            offset: *offset,
            weekday_shift: *weekday_shift,
            held: *held,
            phase: *phase,
            seen_seconds: *seen_seconds,
            seen_periods: *seen_periods,
        }
    }

    fn restore(&mut self, state: CmosRtcV1) -> Result<(), RestoreError> {
        let invalid = |what: &str| RestoreError::Invalid(format!("cmos_rtc {what}"));
        let bank = |bytes: Vec<u8>| <[u8; BANK]>::try_from(bytes).map_err(|_| invalid("RAM of another size"));
        let reg_a = RegA::from_bits(state.reg_a).with_uip(false);
        let reg_b = RegB::from_bits(state.reg_b);
        if state.phase >= SECOND_NS || state.weekday_shift > 6 || state.offset.unsigned_abs() > FURTHEST.unsigned_abs()
        {
            return Err(invalid("time out of range"));
        }
        if state.held.is_some() != (reg_b.set() || !reg_a.divider_runs()) {
            return Err(invalid("stands and runs at once"));
        }
        (self.ram, self.upper_ram) = (bank(state.ram)?, bank(state.upper_ram)?);
        self.index = state.index & 0x7F;
        self.upper_index = state.upper_index & 0x7F;
        self.nmi_masked = state.nmi_masked;
        self.reg_a = reg_a;
        self.reg_b = reg_b;
        self.reg_c = RegC::from_bits(state.reg_c & RegC::FLAGS);
        self.offset = state.offset;
        self.weekday_shift = state.weekday_shift;
        self.held = state.held;
        self.phase = state.phase;
        self.seen_seconds = state.seen_seconds;
        self.seen_periods = state.seen_periods;
        self.update_irq();
        Ok(())
    }
}

impl Inspect for CmosRtc {
    fn inspect(&self) -> Node {
        let now = self.clock.now();
        let time = self.time_registers(now).decode(self.reg_b);
        Node::tree()
            .with("time", time.to_string())
            .with("runs", self.held.is_none())
            .with("index", self.index)
            .with("reg_a", self.reg_a.into_bits())
            .with("reg_b", self.reg_b.into_bits())
            .with("reg_c", self.reg_c.into_bits())
            .with("nmi_masked", self.nmi_masked)
            .with("irq", self.irq.level())
    }
}

/// Saved state of [`CmosRtc`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CmosRtcV1 {
    index: u8,
    upper_index: u8,
    nmi_masked: bool,
    reg_a: u8,
    reg_b: u8,
    reg_c: u8,
    ram: Vec<u8>,
    upper_ram: Vec<u8>,
    offset: i64,
    weekday_shift: u8,
    held: Option<TimeRegisters>,
    phase: u64,
    seen_seconds: u64,
    seen_periods: u64,
}

impl Schema for CmosRtcV1 {
    const NAME: &'static str = "cmos_rtc";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
