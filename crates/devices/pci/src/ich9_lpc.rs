//! The LPC bridge of Intel's ICH9: routing of PCI interrupts, power management, the watchdog, chipset configuration.
//!
//! The ACPI block itself is `chipset::acpi_pm`; here it gets the ICH9's layout of 128 ports at PMBASE. The chips behind the
//! bridge are devices of their own, as are the edge/level control (`chipset::pic`) and reset control registers. There is no
//! system management mode: SMI_EN keeps what is written, and APMC_EN is set from the start, by which firmware knows that
//! system management is not its business. The SCI is always ISA interrupt 9. Decoding ranges, GPIO and power management
//! configuration keep what is written.
//!
//! DEVIATION: sleep type 0 is soft-off and 1 suspend to RAM, by which SeaBIOS and OVMF turn virtual machines off; an ICH9 has
//! 7 and 5.
//!
//! Spec: Intel 316972 (ICH9) §13.1 (PCI configuration), §13.8 (power management), §13.9 (TCO), §10.1 (chipset configuration).

use std::sync::Arc;

use chipset::acpi_pm::AcpiPm;
use chipset::acpi_pm::AcpiPmV1;
use chipset::acpi_pm::PmVariant;
use chipset::reset_control::PowerControl;
use device_model::At;
use device_model::Clock;
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

use self::config::Config;
use self::tco::Tco;
use self::tco::TcoV1;
use crate::Class;
use crate::Function;
use crate::PirqRouter;
use crate::pirq;

mod config;
mod tco;

/// Device identifier.
const DEVICE: u16 = 0x2918;
/// PMBASE, base address of the power management ports (RW).
pub const PMBASE: u16 = 0x40;
/// ACPI_CNTL (RW): bit 7 lets them answer.
pub const ACPI_CNTL: u16 = 0x44;
/// See [`ACPI_CNTL`].
pub const ACPI_EN: u8 = 1 << 7;
/// PIRQ[A-D]_ROUT, interrupt routes (RW): bit 7 for none, else the ISA interrupt in bits 3-0.
pub const PIRQA_ROUT: u16 = 0x60;
/// PIRQ[E-H]_ROUT.
pub const PIRQE_ROUT: u16 = 0x68;
/// RCBA, base address of the chipset configuration registers (RW): bit 0 lets them answer.
pub const RCBA: u16 = 0xf0;
/// Interrupts that a line may be routed to (§13.1.15).
const ROUTABLE: u16 = 0xdef8;
/// Registers that keep what is written: offset, value after reset, writable bits.
#[rustfmt::skip]
const KEPT: [(u16, u32, u32); 13] = [
    (0x48, 0x0000_0001, 0x0000_ff80), // GPIOBASE
    (0x4c, 0x0000_0000, 0x0000_0011), // GC, GPIO control
    (0x64, 0x0000_0010, 0x0000_00ff), // SIRQ_CNTL, serial interrupts
    (0x80, 0x0000_0000, 0x3f0f_1377), // LPC_I/O_DEC, LPC_EN
    (0x84, 0x0000_0000, 0x00fc_fffd), // GEN1_DEC to GEN4_DEC, decoding ranges
    (0x88, 0x0000_0000, 0x00fc_fffd),
    (0x8c, 0x0000_0000, 0x00fc_fffd),
    (0x90, 0x0000_0000, 0x00fc_fffd),
    (0xa0, 0x0000_0000, 0x00ff_1fff), // GEN_PMCON_1, GEN_PMCON_2
    (0xa4, 0x0000_0000, 0x0000_ffff), // GEN_PMCON_3
    (0xb8, 0x0000_0000, 0xffff_ffff), // GPIO_ROUT
    (0xd0, 0x0011_2233, 0xffff_ffff), // FWH_SEL1
    (0xd8, 0x0000_ffcf, 0x0000_ffff), // FWH_DEC_EN1
];

/// Bytes of the power management ports.
const PM_LEN: u64 = 128;
const PM: usize = 0;
const CONFIG: usize = 1;
const SMI_COMMAND: usize = 2;
/// Regions of the ACPI block within.
const PM1_EVENT: usize = 0;
const PM1_CONTROL: usize = 1;
const PM_TIMER: usize = 2;
const GPE0: usize = 3;
const INNER_SMI_COMMAND: usize = 4;

const REGIONS: [Region; 3] = [
    Region {
        name: "pm",
        space: Space::Pio,
        len: PM_LEN,
        widths: Widths::UP_TO_DWORD,
    },
    Region {
        name: "config",
        space: Space::Mmio,
        len: config::LEN,
        widths: Widths::UP_TO_DWORD,
    },
    Region {
        name: "smi_command",
        space: Space::Pio,
        len: 2,
        widths: Widths::UP_TO_DWORD,
    },
];

/// SMI_EN (RW) and what of it is not reserved; EOS is set again at once, since nothing is pending.
const SMI_EN_BITS: u32 = 0x0006_e8bf;
const APMC_EN: u32 = 1 << 5;
const SMI_EN: u64 = 0x30;
const TCO: u64 = 0x60;

/// The bridge.
pub struct Ich9Lpc {
    // Wiring
    router: Arc<PirqRouter>,
    // State
    header: PciHeader,
    pm: AcpiPm,
    smi_en: u32,
    tco: Tco,
    config: Config,
}

impl Ich9Lpc {
    /// A bridge that routes by `router`, around an ACPI block; its watchdog resets by `power`.
    pub fn new(router: Arc<PirqRouter>, pm: AcpiPm, clock: Arc<dyn Clock>, power: Arc<dyn PowerControl>) -> Self {
        let mut function = Function::new(0x8086, DEVICE, Class(0x06, 0x01, 0x00));
        function.multifunction = true;
        function.revision = 2;
        let mut header = function.header();
        header.fix(device_model::pci::reg::COMMAND, &0x0007u16.to_le_bytes());
        header.fix(device_model::pci::reg::STATUS, &0x0200u16.to_le_bytes());
        header.fix(PMBASE, &[1]);
        header.allow(PMBASE, &[0x80, 0xff]);
        header.allow(ACPI_CNTL, &[ACPI_EN]);
        for at in routes() {
            header.fix(at, &[0x80]);
            header.allow(at, &[0x8f]);
        }
        for (at, value, writable) in KEPT {
            header.fix(at, &value.to_le_bytes());
            header.allow(at, &writable.to_le_bytes());
        }
        header.allow(RCBA, &0xffff_c001u32.to_le_bytes());
        let this = Self {
            router,
            header,
            pm: pm.with_variant(PmVariant::PIIX4),
            smi_en: APMC_EN,
            tco: Tco::new(clock, power),
            config: Config::new(),
        };
        this.update_routes();
        this
    }

    /// The ACPI block: buttons and general-purpose events.
    pub fn pm(&mut self) -> &mut AcpiPm {
        &mut self.pm
    }

    fn route(&self, at: u16) -> Option<u8> {
        let register = self.header.byte(at);
        let irq = register & 0x0f;
        (register & 0x80 == 0 && ROUTABLE >> irq & 1 != 0).then_some(irq)
    }

    fn update_routes(&self) {
        for (line, at) in routes().enumerate() {
            self.router.route(line, self.route(at));
        }
    }

    fn pm_window(&self) -> Option<PciWindow> {
        let base = u64::from(self.header.word(PMBASE)) & !(PM_LEN - 1);
        (self.header.byte(ACPI_CNTL) & ACPI_EN != 0 && base != 0).then_some(PciWindow {
            region: PM,
            space: Space::Pio,
            base,
            len: PM_LEN,
        })
    }

    fn config_window(&self) -> Option<PciWindow> {
        let register = u64::from(self.header.dword(RCBA));
        let base = register & !(config::LEN - 1);
        (register & 1 != 0 && base != 0).then_some(PciWindow {
            region: CONFIG,
            space: Space::Mmio,
            base,
            len: config::LEN,
        })
    }

    /// The power management ports of the double word at `offset`.
    fn read_pm(&mut self, offset: u64) -> u64 {
        let acpi = |region, offset| At { region, offset };
        let mut pm = |at, width| self.pm.read(at, width).unwrap_or(0);
        match offset {
            0x00 => pm(acpi(PM1_EVENT, 0), Width::Dword),
            0x04 => pm(acpi(PM1_CONTROL, 0), Width::Word),
            0x08 => pm(acpi(PM_TIMER, 0), Width::Dword),
            0x20 => pm(acpi(GPE0, 0), Width::Word),
            0x28 => pm(acpi(GPE0, 2), Width::Word),
            SMI_EN => self.smi_en.into(),
            TCO.. => (0..4).fold(0, |value, inside| {
                let at = usize::try_from(offset - TCO + inside).unwrap_or(usize::MAX);
                value | u64::from(self.tco.read(at)) << (8 * inside)
            }),
            _ => 0,
        }
    }

    fn write_pm(&mut self, offset: u64, byte: u8) {
        let (region, inside) = match offset {
            0x00..0x04 => (PM1_EVENT, offset),
            0x04..0x06 => (PM1_CONTROL, offset - 0x04),
            0x20..0x22 => (GPE0, offset - 0x20),
            0x28..0x2a => (GPE0, offset - 0x28 + 2),
            SMI_EN..0x34 => {
                let shift = 8 * (offset - SMI_EN);
                let mask = 0xff << shift & SMI_EN_BITS;
                self.smi_en = self.smi_en & !mask | u32::from(byte) << shift & mask;
                return;
            }
            TCO.. => {
                let at = usize::try_from(offset - TCO).unwrap_or(usize::MAX);
                self.tco.write(at, byte);
                return;
            }
            _ => return,
        };
        let at = At { region, offset: inside };
        // The block takes its registers by bytes.
        let _ = self.pm.write(at, Width::Byte, byte.into());
    }
}

/// The route registers in the order of their lines.
fn routes() -> impl Iterator<Item = u16> {
    let half = pirq::ICH9_LINES / 2;
    (PIRQA_ROUT..).take(half).chain((PIRQE_ROUT..).take(half))
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

impl Registers for Ich9Lpc {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        match at.region {
            PM => {
                let (first, inside) = (at.offset & !3, at.offset & 3);
                let mut value = self.read_pm(first) >> (8 * inside);
                if inside + width.bytes() > 4 {
                    value |= self.read_pm(first + 4) << (8 * (4 - inside));
                }
                Ok(value & width.ones())
            }
            CONFIG => Ok((0..width.bytes()).fold(0, |value, inside| {
                value | u64::from(self.config.read(at.offset + inside)) << (8 * inside)
            })),
            SMI_COMMAND => self.pm.read(smi(at), width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let bytes = (at.offset..).zip(value.to_le_bytes()).take(usize::from(width as u8));
        match at.region {
            PM => bytes.for_each(|(offset, byte)| self.write_pm(offset, byte)),
            CONFIG => bytes.for_each(|(offset, byte)| self.config.write(offset, byte)),
            SMI_COMMAND => return self.pm.write(smi(at), width, value),
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }
}

impl PciFunction for Ich9Lpc {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        self.header.write(at, width, value);
        self.update_routes();
    }

    fn windows(&self) -> Vec<PciWindow> {
        self.pm_window().into_iter().chain(self.config_window()).collect()
    }
}

impl Device for Ich9Lpc {
    fn reset(&mut self, kind: Reset) {
        self.header.reset();
        self.pm.reset(kind);
        self.smi_en = APMC_EN;
        self.tco.reset();
        self.config = Config::new();
        self.update_routes();
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        let watchdog = self.tco.poll(now, self.config.reboots());
        let pm = self.pm.poll(now);
        [watchdog, pm].into_iter().flatten().min()
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Ich9Lpc {
    type State = Ich9LpcV1;

    fn save(&self) -> Ich9LpcV1 {
        let Self {
            router: _,
            header,
            pm,
            smi_en,
            tco,
            config,
        } = self;
        Ich9LpcV1 {
            header: header.save(),
            pm: pm.save(),
            smi_en: *smi_en,
            tco: tco.save(),
            config: config.0,
        }
    }

    fn restore(&mut self, state: Ich9LpcV1) -> Result<(), RestoreError> {
        let Ich9LpcV1 {
            header,
            pm,
            smi_en,
            tco,
            config,
        } = state;
        self.pm.restore(pm)?;
        self.header.restore(&header)?;
        self.smi_en = smi_en & SMI_EN_BITS;
        self.tco.restore(&tco);
        self.config.restore(&config);
        self.update_routes();
        Ok(())
    }
}

impl Inspect for Ich9Lpc {
    fn inspect(&self) -> Node {
        let base = |window: Option<PciWindow>| window.map_or(Node::from("off"), |w| Node::from(w.base));
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let tree = self
            .pm
            .inspect()
            .with("base", base(self.pm_window()))
            .with("config_base", base(self.config_window()))
            .with("watchdog", self.tco.inspect());
        names.iter().zip(routes()).fold(tree, |tree, (name, at)| {
            let route = self.route(at).map_or(Node::from("none"), Node::from);
            tree.with(&format!("pirq{name}"), route)
        })
    }
}

/// Saved state of [`Ich9Lpc`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ich9LpcV1 {
    header: Vec<u8>,
    pm: AcpiPmV1,
    smi_en: u32,
    tco: TcoV1,
    config: [u32; config::COUNT],
}

impl Schema for Ich9LpcV1 {
    const NAME: &'static str = "ich9_lpc";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
