//! Power management function of Intel's PIIX4: ACPI registers and the SMBus controller at addresses that firmware sets.
//!
//! The ACPI block itself is `chipset::acpi_pm`; here it gets PIIX4's layout: PM1 event, PM1 control, the timer and
//! general-purpose events at offsets 0, 4, 8 and 0Ch of the 64 ports at PMBA. The SMBus controller has nobody on its bus:
//! each transfer ends at once with a device error. There is no system management mode; firmware is told so by APMC_EN,
//! which is set from the start, so that it leaves system management alone. Device monitors keep what is written.
//!
//! Spec: Intel 290562-001 (PIIX4) §7.1 (configuration registers), §7.2 (I/O registers), §7.3 (SMBus registers).

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::Node;
use device_model::PciFunction;
use device_model::PciHeader;
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
use device_model::pci::PciWindow;
use serde::Deserialize;
use serde::Serialize;

use chipset::acpi_pm::AcpiPm;
use chipset::acpi_pm::AcpiPmV1;
use chipset::acpi_pm::PmVariant;

use crate::Class;
use crate::Function;

/// Device identifier.
const DEVICE: u16 = 0x7113;
/// PMBA, base address of the ACPI registers (RW).
pub const PMBA: u16 = 0x40;
/// DEVACTB, device activity (RW): bit 25, APMC_EN.
const DEVACTB: u16 = 0x58;
const APMC_EN: u32 = 1 << 25;
/// PMREGMISC (RW): bit 0 lets the ACPI registers answer.
pub const PMREGMISC: u16 = 0x80;
/// SMBBA, base address of the SMBus registers (RW).
pub const SMBBA: u16 = 0x90;
/// SMBHSTCFG, SMBus configuration (RW): bit 0 lets its registers answer.
pub const SMBHSTCFG: u16 = 0xd2;
const ON: u8 = 1;

/// Bytes of the ACPI registers.
const PM_LEN: u64 = 64;
const SMBUS_REGISTERS: usize = 16;
const SMBUS_LEN: u64 = SMBUS_REGISTERS as u64;
const PM: usize = 0;
const SMBUS: usize = 1;
const SMI_COMMAND: usize = 2;
/// Regions of the block within.
const PM1_EVENT: usize = 0;
const PM1_CONTROL: usize = 1;
const PM_TIMER: usize = 2;
const GPE0: usize = 3;
const INNER_SMI_COMMAND: usize = 4;

const fn region(name: &'static str, len: u64, widths: Widths) -> Region {
    Region {
        name,
        space: Space::Pio,
        len,
        widths,
    }
}

const REGIONS: [Region; 3] = [
    region("pm", PM_LEN, Widths::UP_TO_DWORD),
    region("smbus", SMBUS_LEN, Widths::BYTE),
    region("smi_command", 2, Widths::UP_TO_DWORD),
];

/// Registers of the SMBus controller by offset (§7.3).
mod smbus {
    /// SMBHSTSTS, host status (RW1C).
    pub(super) const STATUS: usize = 0;
    /// SMBSLVSTS, slave status (RW1C); no slave event happens.
    pub(super) const SLAVE_STATUS: usize = 1;
    /// SMBHSTCNT, host control (RW): bit 6 starts.
    pub(super) const CONTROL: usize = 2;
    pub(super) const START: u8 = 1 << 6;
    /// Status: nobody answered.
    pub(super) const DEVICE_ERROR: u8 = 1 << 2;
}

/// The function.
pub struct Piix4Pm {
    // State
    header: PciHeader,
    smbus: [u8; SMBUS_REGISTERS],
    pm: AcpiPm,
}

impl Piix4Pm {
    /// The function around an ACPI block.
    pub fn new(pm: AcpiPm) -> Self {
        let mut function = Function::new(0x8086, DEVICE, Class(0x06, 0x80, 0x00));
        function.revision = 3;
        // INTA#, though the interrupt is not one of PCI: the SCI is ISA interrupt 9.
        function.pin = 1;
        let mut header = function.header();
        header.fix(device_model::pci::reg::STATUS, &0x0280u16.to_le_bytes());
        header.fix(PMBA, &[1]);
        header.allow(PMBA, &[0xc0, 0xff]);
        // Counters, general-purpose inputs, device monitors.
        header.allow(0x44, &[0xff; 0x3c]);
        header.fix(DEVACTB, &APMC_EN.to_le_bytes());
        header.allow(PMREGMISC, &[ON]);
        header.fix(SMBBA, &[1]);
        header.allow(SMBBA, &[0xf0, 0xff]);
        header.allow(SMBHSTCFG, &[0x0f, 0xff, 0xff, 0xff]);
        Self {
            header,
            smbus: [0; SMBUS_REGISTERS],
            pm: pm.with_variant(PmVariant::PIIX4),
        }
    }

    /// The ACPI block: buttons and general-purpose events.
    pub fn pm(&mut self) -> &mut AcpiPm {
        &mut self.pm
    }

    /// The registers at `base` if `enable` has its bit 0 set.
    fn window(&self, region: usize, base: u16, enable: u16, len: u64) -> Option<PciWindow> {
        let address = u64::from(self.header.word(base)) & !(len - 1);
        (self.header.byte(enable) & ON != 0 && address != 0).then_some(PciWindow {
            region,
            space: Space::Pio,
            base: address,
            len,
        })
    }

    fn write_smbus(&mut self, offset: u64, value: u8) {
        let index = usize::try_from(offset).unwrap_or(usize::MAX);
        let Some(register) = self.smbus.get_mut(index) else {
            return;
        };
        match index {
            smbus::STATUS | smbus::SLAVE_STATUS => *register &= !value,
            smbus::CONTROL => {
                *register = value & !smbus::START;
                if value & smbus::START != 0
                    && let Some(status) = self.smbus.get_mut(smbus::STATUS)
                {
                    *status |= smbus::DEVICE_ERROR;
                }
            }
            _ => *register = value,
        }
    }
}

/// Where in the block within an offset of the ACPI registers is.
fn inner(offset: u64) -> Option<At> {
    let at = |region, base: u64| {
        Some(At {
            region,
            offset: offset - base,
        })
    };
    match offset {
        0..4 => at(PM1_EVENT, 0),
        4..6 => at(PM1_CONTROL, 4),
        8..12 => at(PM_TIMER, 8),
        12..16 => at(GPE0, 12),
        _ => None,
    }
}

impl Registers for Piix4Pm {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        match at.region {
            PM => match inner(at.offset) {
                Some(inside) => Ok(self.pm.read(inside, width).unwrap_or(0)),
                None => Ok(0),
            },
            SMBUS => {
                let index = usize::try_from(at.offset).unwrap_or(usize::MAX);
                Ok(self.smbus.get(index).copied().unwrap_or(0).into())
            }
            SMI_COMMAND => self.pm.read(smi(at), width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        match at.region {
            PM => {
                if let Some(inside) = inner(at.offset) {
                    // What reaches over the end of a register there is dropped.
                    let _ = self.pm.write(inside, width, value);
                }
                Ok(())
            }
            SMBUS => {
                let [byte, ..] = value.to_le_bytes();
                self.write_smbus(at.offset, byte);
                Ok(())
            }
            SMI_COMMAND => self.pm.write(smi(at), width, value),
            _ => Err(IoError::NoRegister),
        }
    }
}

fn smi(at: At) -> At {
    At {
        region: INNER_SMI_COMMAND,
        offset: at.offset,
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

impl PciFunction for Piix4Pm {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn windows(&self) -> Vec<PciWindow> {
        let pm = self.window(PM, PMBA, PMREGMISC, PM_LEN);
        let smbus = self.window(SMBUS, SMBBA, SMBHSTCFG, SMBUS_LEN);
        pm.into_iter().chain(smbus).collect()
    }
}

impl Device for Piix4Pm {
    fn reset(&mut self, kind: Reset) {
        self.header.reset();
        self.smbus = [0; SMBUS_REGISTERS];
        self.pm.reset(kind);
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        self.pm.poll(now)
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Piix4Pm {
    type State = Piix4PmV1;

    fn save(&self) -> Piix4PmV1 {
        let Self { header, smbus, pm } = self;
        Piix4PmV1 {
            header: header.save(),
            smbus: *smbus,
            pm: pm.save(),
        }
    }

    fn restore(&mut self, state: Piix4PmV1) -> Result<(), RestoreError> {
        let Piix4PmV1 { header, smbus, pm } = state;
        self.pm.restore(pm)?;
        self.header.restore(&header)?;
        self.smbus = smbus;
        Ok(())
    }
}

impl Inspect for Piix4Pm {
    fn inspect(&self) -> Node {
        let base = |window: Option<PciWindow>| window.map_or(Node::from("off"), |w| Node::from(w.base));
        self.pm
            .inspect()
            .with("base", base(self.window(PM, PMBA, PMREGMISC, PM_LEN)))
            .with("smbus_base", base(self.window(SMBUS, SMBBA, SMBHSTCFG, SMBUS_LEN)))
    }
}

/// Saved state of [`Piix4Pm`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Piix4PmV1 {
    header: Vec<u8>,
    smbus: [u8; SMBUS_REGISTERS],
    pm: AcpiPmV1,
}

impl Schema for Piix4PmV1 {
    const NAME: &'static str = "piix4_pm";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;

    use chipset::acpi_pm::AlarmLatch;
    use chipset::reset_control::PowerControl;
    use test_kit::IrqProbe;
    use test_kit::TestClock;
    use test_kit::contract;

    use super::*;

    #[derive(Default)]
    struct Switch(AtomicU32);

    impl PowerControl for Switch {
        fn power_off(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn reset(&self) {}
        fn suspend(&self) {
            self.0.fetch_add(100, Ordering::Relaxed);
        }
        fn wake(&self) {}
        fn debug_exit(&self, _: u8) {}
    }

    fn chip(clock: &TestClock, probe: &Arc<IrqProbe>, power: &Arc<Switch>) -> Piix4Pm {
        let clock = Arc::new(clock.clone());
        let alarm = AlarmLatch::new(|| ());
        Piix4Pm::new(AcpiPm::new(clock, probe.line(9), power.clone(), alarm))
    }

    fn at(region: usize, offset: u64) -> At {
        At { region, offset }
    }

    #[test]
    fn keeps_the_contract() {
        let clock = TestClock::new();
        contract(&clock, || Box::new(chip(&clock, &IrqProbe::new(), &Arc::default())));
    }

    #[test]
    fn registers_appear_where_firmware_puts_them() {
        let mut chip = chip(&TestClock::new(), &IrqProbe::new(), &Arc::default());
        assert_eq!(chip.windows(), []);
        chip.config_write(PMBA, Width::Dword, 0x0601);
        chip.config_write(SMBBA, Width::Dword, 0x0701);
        assert_eq!(chip.windows(), []);
        chip.config_write(PMREGMISC, Width::Byte, 1);
        chip.config_write(SMBHSTCFG, Width::Byte, 9);
        let places: Vec<_> = chip.windows().iter().map(|w| (w.region, w.base, w.len)).collect();
        assert_eq!(places, [(PM, 0x600, 64), (SMBUS, 0x700, 16)]);
        assert_eq!(chip.config_read(DEVACTB, Width::Dword), APMC_EN);
    }

    #[test]
    fn button_raises_the_sci_in_acpi_mode_and_soft_off_is_sleep_type_0() {
        let (probe, power) = (IrqProbe::new(), Arc::<Switch>::default());
        let mut chip = chip(&TestClock::new(), &probe, &power);
        chip.write(at(PM, 2), Width::Word, 0x0100).unwrap();
        chip.pm().press_power_button();
        assert!(!probe.level(9), "legacy mode");
        chip.write(at(SMI_COMMAND, 0), Width::Byte, 0xf1).unwrap();
        assert_eq!(chip.read(at(PM, 4), Width::Word).unwrap() & 1, 1);
        assert!(probe.level(9));
        chip.write(at(PM, 0), Width::Word, 0x0100).unwrap();
        assert!(!probe.level(9));
        assert_eq!(chip.read(at(PM, 5), Width::Byte), Ok(0));
        chip.write(at(PM, 4), Width::Byte, 0).unwrap();
        assert_eq!(chip.read(at(PM, 4), Width::Byte), Ok(0), "SCI_EN is written too");
        chip.write(at(PM, 4), Width::Word, 5 << 10 | 1 << 13).unwrap();
        assert_eq!(power.0.load(Ordering::Relaxed), 0);
        chip.write(at(PM, 4), Width::Word, 1 << 13).unwrap();
        assert_eq!(power.0.load(Ordering::Relaxed), 1);
        chip.write(at(PM, 4), Width::Word, 1 << 10 | 1 << 13).unwrap();
        assert_eq!(power.0.load(Ordering::Relaxed), 101);
    }

    #[test]
    fn transfer_on_the_empty_bus_ends_with_a_device_error() {
        let mut chip = chip(&TestClock::new(), &IrqProbe::new(), &Arc::default());
        chip.write(at(SMBUS, 4), Width::Byte, 0xa1).unwrap();
        chip.write(at(SMBUS, 2), Width::Byte, 0x48).unwrap();
        assert_eq!(chip.read(at(SMBUS, 0), Width::Byte), Ok(4));
        assert_eq!(chip.read(at(SMBUS, 2), Width::Byte), Ok(8));
        chip.write(at(SMBUS, 0), Width::Byte, 4).unwrap();
        assert_eq!(chip.read(at(SMBUS, 0), Width::Byte), Ok(0));
    }
}
