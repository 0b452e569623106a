//! ACPI power management block of a PC chipset: PM1 events and control, PM timer, GPE0, and the SMI command port.
//!
//! The machine powers on in ACPI mode (SCI_EN set), as firmware leaves it, unless [`PmVariant`] says otherwise; the SMI
//! command port still switches modes for firmware that wants to. Soft-off (S5) and suspend to RAM (S3) go to the board's power switch; the power button, the
//! sleep button, the clock's alarm and general-purpose events end an S3 sleep. Other sleep types are refused harmlessly:
//! the wake status is set at once, so that a guest which tries them finds itself awake. There is no system management
//! mode, so in legacy mode events are recorded and interrupt nobody. The timer runs on through a sleep.
//!
//! Spec: ACPI 6.5 §4.8.3 (fixed hardware), §4.8.4 (general-purpose events), §16.1 (sleeping states); Intel 316972 (ICH9)
//! §13.8.

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

pub use self::alarm::AlarmLatch;
use crate::lanes;
use crate::reset_control::PowerControl;

mod alarm;

/// Usual port of the PM1 event block: FADT PM1a_EVT_BLK, 4 bytes.
pub const PM1_EVENT_PORT: u64 = 0x600;
/// Usual port of the PM1 control block: FADT PM1a_CNT_BLK, 2 bytes.
pub const PM1_CONTROL_PORT: u64 = 0x604;
/// Usual port of the PM timer: FADT PM_TMR_BLK, 4 bytes, 32 bits wide (TMR_VAL_EXT).
pub const PM_TIMER_PORT: u64 = 0x608;
/// Usual port of general-purpose event block 0: FADT GPE0_BLK, 4 bytes (2 status, 2 enable).
pub const GPE0_PORT: u64 = 0x620;
/// Port of the SMI command register (APM_CNT): FADT SMI_CMD where the guest is to switch modes.
pub const SMI_COMMAND_PORT: u64 = 0xB2;
/// FADT ACPI_ENABLE.
pub const ACPI_ENABLE: u8 = 0xF1;
/// FADT ACPI_DISABLE.
pub const ACPI_DISABLE: u8 = 0xF0;
/// Sleep type of suspend to RAM: the value of `\_S3`.
pub const SLP_TYP_S3: u8 = 1;
/// Sleep type of soft-off: the value of `\_S5`.
pub const SLP_TYP_S5: u8 = 5;
/// Frequency of the PM timer.
pub const PM_TIMER_HZ: u64 = 3_579_545;

const PM1_EVENT: usize = 0;
const PM1_CONTROL: usize = 1;
const PM_TIMER: usize = 2;
const GPE0: usize = 3;
const SMI_COMMAND: usize = 4;

const fn region(name: &'static str, len: u64) -> Region {
    Region {
        name,
        space: Space::Pio,
        len,
        widths: Widths::UP_TO_DWORD,
    }
}

const REGIONS: [Region; 5] = [
    region("pm1_event", 4),
    region("pm1_control", 2),
    region("pm_timer", 4),
    region("gpe0", 4),
    region("smi_command", 2),
];

/// PM1_STS, fixed event status (RW1C), and PM1_EN, fixed event enable (RW): the same bits.
#[bitfield(u16)]
struct Pm1 {
    /// TMR: the timer's top bit changed.
    tmr: bool,
    #[bits(3)]
    __: u8,
    /// BM: a bus master asked for the bus (status only; never set here).
    bm: bool,
    /// GBL: firmware released the global lock.
    gbl: bool,
    #[bits(2)]
    __: u8,
    /// PWRBTN: the power button was pressed.
    pwrbtn: bool,
    /// SLPBTN: the sleep button was pressed.
    slpbtn: bool,
    /// RTC: the clock's alarm went off.
    rtc: bool,
    #[bits(4)]
    __: u8,
    /// WAK: the machine came back from sleep (status only).
    wak: bool,
}

impl Pm1 {
    const ENABLES: u16 = 0x0721;
    const STATUS: u16 = 0x8731;
    /// On standby power: ICH9 §13.8.3.1 and §13.8.3.2, "Power Well".
    const STANDBY: u16 = 0xFF00;
}

/// PM1_CNT, control.
#[bitfield(u16)]
struct Pm1Cnt {
    /// SCI_EN: events raise the SCI rather than an SMI (RO; the SMI command port changes it).
    sci_en: bool,
    /// BM_RLD: a bus master request ends C3 (RW).
    bm_rld: bool,
    /// GBL_RLS: tells firmware that the global lock is free (WO).
    gbl_rls: bool,
    #[bits(7)]
    __: u8,
    /// SLP_TYP: which sleep (RW).
    #[bits(3)]
    slp_typ: u8,
    /// SLP_EN: sleep now (WO).
    slp_en: bool,
    #[bits(2)]
    __: u8,
}

/// What differs between chipsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmVariant {
    /// SCI_EN is set at power-on, and only the SMI command port changes it; else it is the guest's to write too.
    pub acpi_mode: bool,
    /// Sleep type of suspend to RAM.
    pub s3: u8,
    /// Sleep type of soft-off.
    pub s5: u8,
}

impl PmVariant {
    /// In ACPI mode from the first instruction: for machines without firmware.
    pub const HARDWARE_REDUCED_BOOT: Self = Self {
        acpi_mode: true,
        s3: SLP_TYP_S3,
        s5: SLP_TYP_S5,
    };
    /// Intel's PIIX4: Intel 290562-001 §7.2.3 (SUS_TYP).
    pub const PIIX4: Self = Self {
        acpi_mode: false,
        s3: 1,
        s5: 0,
    };
}

/// The power management block.
pub struct AcpiPm {
    // Wiring
    clock: Arc<dyn Clock>,
    sci: IrqLine,
    power: Arc<dyn PowerControl>,
    alarm: Arc<AlarmLatch>,
    // Configuration
    variant: PmVariant,
    // State
    pm1_sts: Pm1,
    pm1_en: Pm1,
    pm1_cnt: Pm1Cnt,
    gpe_sts: u16,
    gpe_en: u16,
    smi_command: u8,
    smi_data: u8,
    /// Half periods of the PM timer that TMR_STS has accounted for.
    half_periods: u64,
    /// In S3, until a wake event.
    asleep: bool,
}

impl AcpiPm {
    /// A block in ACPI mode whose events raise `sci` (level-triggered, active high), and which the clock's alarm reaches
    /// through `alarm`.
    pub fn new(clock: Arc<dyn Clock>, sci: IrqLine, power: Arc<dyn PowerControl>, alarm: Arc<AlarmLatch>) -> Self {
        let half_periods = half_periods(clock.now());
        Self {
            clock,
            sci,
            power,
            alarm,
            variant: PmVariant::HARDWARE_REDUCED_BOOT,
            pm1_sts: Pm1::new(),
            pm1_en: Pm1::new(),
            pm1_cnt: Pm1Cnt::new().with_sci_en(true),
            gpe_sts: 0,
            gpe_en: 0,
            smi_command: 0,
            smi_data: 0,
            half_periods,
            asleep: false,
        }
    }

    /// The block of another chipset.
    #[must_use]
    pub fn with_variant(mut self, variant: PmVariant) -> Self {
        self.variant = variant;
        self.pm1_cnt.set_sci_en(variant.acpi_mode);
        self
    }

    /// What the clock's alarm is wired to.
    pub fn alarm(&self) -> &Arc<AlarmLatch> {
        &self.alarm
    }

    /// The user pressed the power button: a request that the guest may act on.
    pub fn press_power_button(&mut self) {
        self.pm1_sts.set_pwrbtn(true);
        self.notify();
    }

    /// The user pressed the sleep button.
    pub fn press_sleep_button(&mut self) {
        self.pm1_sts.set_slpbtn(true);
        self.notify();
    }

    /// General-purpose event `number` (0-15) happened.
    pub fn raise_gpe(&mut self, number: u32) {
        self.gpe_sts |= 1u16.checked_shl(number).unwrap_or(0);
        self.notify();
    }
}

/// Half periods of the 32-bit timer since power-on: the times its top bit has changed.
fn half_periods(now: VmTime) -> u64 {
    now.to_ticks(PM_TIMER_HZ) >> 31
}

impl Registers for AcpiPm {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        self.catch_up(self.clock.now());
        let image = match at.region {
            PM1_EVENT => u64::from(self.pm1_sts.into_bits()) | u64::from(self.pm1_en.into_bits()) << 16,
            PM1_CONTROL => u64::from(self.pm1_cnt.into_bits()),
            PM_TIMER => self.clock.now().to_ticks(PM_TIMER_HZ) & u64::from(u32::MAX),
            GPE0 => u64::from(self.gpe_sts) | u64::from(self.gpe_en) << 16,
            _ => u64::from(self.smi_command) | u64::from(self.smi_data) << 8,
        };
        Ok(lanes::extract(image, at.offset, width))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        self.catch_up(self.clock.now());
        for (offset, byte) in lanes::bytes(at.offset, width, value) {
            match at.region {
                PM1_EVENT => self.write_pm1_event(offset, byte),
                PM1_CONTROL => self.write_pm1_control(offset, byte),
                GPE0 => self.write_gpe0(offset, byte),
                SMI_COMMAND => self.write_smi(offset, byte),
                _ => {}
            }
        }
        self.notify();
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    let region = REGIONS.get(at.region).ok_or(IoError::NoRegister)?;
    if width > region.widths.max {
        return Err(IoError::Width);
    }
    let end = at.offset.checked_add(width.bytes()).ok_or(IoError::NoRegister)?;
    if end <= region.len {
        Ok(())
    } else {
        Err(IoError::NoRegister)
    }
}

/// `word` with its low or high byte replaced.
fn merge(word: u16, high: bool, byte: u8) -> u16 {
    let [lo, hi] = word.to_le_bytes();
    u16::from_le_bytes(if high { [lo, byte] } else { [byte, hi] })
}

impl AcpiPm {
    fn catch_up(&mut self, now: VmTime) {
        let half_periods = half_periods(now);
        if half_periods != self.half_periods {
            self.half_periods = half_periods;
            self.pm1_sts.set_tmr(true);
        }
        self.take_alarm();
        self.notify();
    }

    fn take_alarm(&mut self) {
        if self.alarm.take() {
            self.pm1_sts.set_rtc(true);
        }
    }

    /// After a change of events or enables: tells whom they concern.
    fn notify(&mut self) {
        if self.asleep && self.wakes() {
            self.asleep = false;
            self.pm1_sts.set_wak(true);
            self.power.wake();
        }
        self.update_sci();
    }

    /// Whether there is a wake event. The power button needs no enable (ACPI 6.5 §4.8.3.1.1, PWRBTN_STS).
    fn wakes(&self) -> bool {
        let (status, enable) = (self.pm1_sts, self.pm1_en);
        status.pwrbtn()
            || status.slpbtn() && enable.slpbtn()
            || status.rtc() && enable.rtc()
            || self.gpe_sts & self.gpe_en != 0
    }

    fn update_sci(&self) {
        let fixed = self.pm1_sts.into_bits() & self.pm1_en.into_bits() & Pm1::ENABLES != 0;
        let general = self.gpe_sts & self.gpe_en != 0;
        self.sci.set(self.pm1_cnt.sci_en() && (fixed || general));
    }

    fn write_pm1_event(&mut self, offset: u64, byte: u8) {
        match offset {
            0 | 1 => {
                let clear = merge(0, offset == 1, byte);
                self.pm1_sts = Pm1::from_bits(self.pm1_sts.into_bits() & !clear);
            }
            _ => {
                let enables = merge(self.pm1_en.into_bits(), offset == 3, byte);
                self.pm1_en = Pm1::from_bits(enables & Pm1::ENABLES);
            }
        }
    }

    fn write_pm1_control(&mut self, offset: u64, byte: u8) {
        let new = Pm1Cnt::from_bits(merge(self.pm1_cnt.into_bits(), offset == 1, byte));
        self.pm1_cnt.set_bm_rld(new.bm_rld());
        self.pm1_cnt.set_slp_typ(new.slp_typ());
        if !self.variant.acpi_mode && offset == 0 {
            self.pm1_cnt.set_sci_en(new.sci_en());
        }
        if new.slp_en() {
            self.sleep(new.slp_typ());
        }
    }

    fn sleep(&mut self, slp_typ: u8) {
        if slp_typ == self.variant.s5 {
            self.power.power_off();
        } else if slp_typ == self.variant.s3 {
            // What has woken it already does so as soon as the write is over.
            self.asleep = true;
            self.power.suspend();
        } else {
            self.pm1_sts.set_wak(true);
        }
    }

    fn write_gpe0(&mut self, offset: u64, byte: u8) {
        match offset {
            0 | 1 => self.gpe_sts &= !merge(0, offset == 1, byte),
            _ => self.gpe_en = merge(self.gpe_en, offset == 3, byte),
        }
    }

    fn write_smi(&mut self, offset: u64, byte: u8) {
        if offset == 1 {
            self.smi_data = byte;
            return;
        }
        self.smi_command = byte;
        match byte {
            ACPI_ENABLE => self.pm1_cnt.set_sci_en(true),
            ACPI_DISABLE => self.pm1_cnt.set_sci_en(false),
            _ => {}
        }
    }
}

impl Device for AcpiPm {
    fn reset(&mut self, kind: Reset) {
        if kind == Reset::Resume {
            self.take_alarm();
            self.pm1_sts = Pm1::from_bits(self.pm1_sts.into_bits() & Pm1::STANDBY);
            self.pm1_en = Pm1::from_bits(self.pm1_en.into_bits() & Pm1::STANDBY);
            self.pm1_cnt.set_bm_rld(false);
            self.pm1_cnt.set_sci_en(self.variant.acpi_mode);
        } else {
            self.alarm.take();
            self.pm1_sts = Pm1::new();
            self.pm1_en = Pm1::new();
            self.pm1_cnt = Pm1Cnt::new().with_sci_en(self.variant.acpi_mode);
            self.gpe_sts = 0;
            self.gpe_en = 0;
        }
        self.smi_command = 0;
        self.smi_data = 0;
        self.half_periods = half_periods(self.clock.now());
        self.asleep = false;
        self.update_sci();
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        self.catch_up(now);
        let next = (self.half_periods + 1) << 31;
        self.pm1_en.tmr().then(|| VmTime::from_ticks(next, PM_TIMER_HZ))
    }
}

impl Snapshot for AcpiPm {
    type State = AcpiPmV1;

    fn save(&self) -> AcpiPmV1 {
        let Self {
            clock: _,
            sci: _,
            power: _,
            alarm,
            variant: _,
            pm1_sts,
            pm1_en,
            pm1_cnt,
            gpe_sts,
            gpe_en,
            smi_command,
            smi_data,
            half_periods,
            asleep,
        } = self;
        AcpiPmV1 {
            pm1_sts: pm1_sts.with_rtc(pm1_sts.rtc() || alarm.rose()).into_bits(),
            pm1_en: pm1_en.into_bits(),
            pm1_cnt: pm1_cnt.into_bits(),
            gpe_sts: *gpe_sts,
            gpe_en: *gpe_en,
            smi_command: *smi_command,
            smi_data: *smi_data,
            half_periods: *half_periods,
            asleep: *asleep,
        }
    }

    fn restore(&mut self, state: AcpiPmV1) -> Result<(), RestoreError> {
        let AcpiPmV1 {
            pm1_sts,
            pm1_en,
            pm1_cnt,
            gpe_sts,
            gpe_en,
            smi_command,
            smi_data,
            half_periods,
            asleep,
        } = state;
        // No instant of guest time has more: 2^64 ns are 2^34.2 s, of 3579545 ticks each.
        if half_periods > VmTime::from_ns(u64::MAX).to_ticks(PM_TIMER_HZ) >> 31 {
            return Err(RestoreError::Invalid("acpi_pm timer beyond the end of time".into()));
        }
        let cnt = Pm1Cnt::from_bits(pm1_cnt);
        self.pm1_sts = Pm1::from_bits(pm1_sts & Pm1::STATUS);
        self.pm1_en = Pm1::from_bits(pm1_en & Pm1::ENABLES);
        self.pm1_cnt = Pm1Cnt::new()
            .with_sci_en(cnt.sci_en())
            .with_bm_rld(cnt.bm_rld())
            .with_slp_typ(cnt.slp_typ());
        self.gpe_sts = gpe_sts;
        self.gpe_en = gpe_en;
        self.smi_command = smi_command;
        self.smi_data = smi_data;
        self.half_periods = half_periods;
        self.asleep = asleep;
        // What the clock's restore did to the line is in the saved status.
        self.alarm.take();
        self.update_sci();
        Ok(())
    }
}

impl Inspect for AcpiPm {
    fn inspect(&self) -> Node {
        let timer = lanes::dword(self.clock.now().to_ticks(PM_TIMER_HZ));
        Node::tree()
            .with("pm1_sts", self.pm1_sts.into_bits())
            .with("pm1_en", self.pm1_en.into_bits())
            .with("pm1_cnt", self.pm1_cnt.into_bits())
            .with("gpe_sts", self.gpe_sts)
            .with("gpe_en", self.gpe_en)
            .with("timer", timer)
            .with("asleep", self.asleep)
            .with("sci", self.sci.level())
    }
}

/// Saved state of [`AcpiPm`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AcpiPmV1 {
    pm1_sts: u16,
    pm1_en: u16,
    pm1_cnt: u16,
    gpe_sts: u16,
    gpe_en: u16,
    smi_command: u8,
    smi_data: u8,
    half_periods: u64,
    asleep: bool,
}

impl Schema for AcpiPmV1 {
    const NAME: &'static str = "acpi_pm";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
