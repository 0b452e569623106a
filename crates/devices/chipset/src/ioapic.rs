//! Intel I/O APIC (82093AA with the EOI register of the later ICH parts): 24 inputs to interrupt messages.
//!
//! Redirection entries with edge and level trigger, Remote IRR, all delivery modes and both destination modes. Messages
//! go out in the form of MSIs. Pin polarity is stored but has no effect: lines carry logical levels. The delivery status
//! bit reads as idle, since a message is accepted at once. There is no APIC bus, so the arbitration id only mirrors the id.
//!
//! Spec: Intel 290566-001 (82093AA) §3; Intel 252516-001 (ICH4) §8.9.5 (EOI register); SDM vol. 3 §11.11.

use std::sync::Arc;

use bitfield_struct::bitfield;
use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::MsiMessage;
use device_model::MsiSink;
use device_model::Node;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Space;
use device_model::Width;
use device_model::Widths;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;

/// Number of inputs.
pub const PINS: usize = 24;

/// Register select (RW).
const IOREGSEL: u64 = 0x00;
/// Window to the selected register (RW).
const IOWIN: u64 = 0x10;
/// End of interrupt (WO).
const EOIR: u64 = 0x40;

/// Identification (RW bits 27-24).
const IOAPICID: u8 = 0x00;
/// Version and number of entries (RO).
const IOAPICVER: u8 = 0x01;
/// Arbitration identification (RO).
const IOAPICARB: u8 = 0x02;
/// First of the redirection entries, two registers each (RW).
const IOREDTBL: u8 = 0x10;

/// Version 20h: has the EOI register.
const VERSION: u32 = 0x20;

const REGIONS: [Region; 1] = [Region {
    name: "ioapic",
    space: Space::Mmio,
    len: 0x1000,
    widths: Widths::DWORD,
}];

/// Redirection table entry.
#[bitfield(u64)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Redirection {
    vector: u8,
    #[bits(3)]
    delivery_mode: u8,
    logical: bool,
    /// Delivery status (RO).
    delivery_status: bool,
    active_low: bool,
    /// Remote IRR (RO): a level-triggered interrupt waits for its EOI.
    remote_irr: bool,
    level: bool,
    masked: bool,
    #[bits(39)]
    __: u64,
    destination: u8,
}

impl Redirection {
    const AT_RESET: Self = Self::new().with_masked(true);
    /// Bits that software writes.
    const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

    /// Fixed and lowest priority may be level triggered; the other modes are edges whatever bit 15 says.
    fn waits_for_eoi(self) -> bool {
        self.level() && self.delivery_mode() <= 1
    }

    fn message(self) -> MsiMessage {
        let address = 0xFEE0_0000 | u64::from(self.destination()) << 12 | u64::from(self.logical()) << 2;
        let level = u32::from(self.waits_for_eoi()) << 15;
        let data = u32::from(self.vector()) | u32::from(self.delivery_mode()) << 8 | 1 << 14 | level;
        MsiMessage { address, data }
    }
}

/// The I/O APIC.
pub struct IoApic {
    // Wiring
    sink: Arc<dyn MsiSink>,
    // Configuration
    reset_id: u8,
    // State
    id: u8,
    ioregsel: u8,
    lines: u32,
    table: [Redirection; PINS],
}

impl IoApic {
    /// An I/O APIC with this id after reset, which sends its messages into `sink`.
    #[must_use]
    pub fn new(id: u8, sink: Arc<dyn MsiSink>) -> Self {
        let reset_id = id & 0x0F;
        Self {
            sink,
            reset_id,
            id: reset_id,
            ioregsel: 0,
            lines: 0,
            table: [Redirection::AT_RESET; PINS],
        }
    }

    /// Input `pin` is now at (logical) `level`. Pins that do not exist are ignored.
    pub fn set_line(&mut self, pin: u32, level: bool) {
        let Some(index) = usize::try_from(pin).ok().filter(|index| *index < PINS) else {
            return;
        };
        let bit = 1u32.checked_shl(pin).unwrap_or(0);
        let rises = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        // 82093AA §3.4.2: an edge on a masked input is lost.
        match self.table.get(index) {
            Some(entry) if rises && !entry.waits_for_eoi() && !entry.masked() => self.sink.send(entry.message()),
            _ => self.serve_level(index),
        }
    }

    /// A local APIC ended the level-triggered interrupt `vector`, or software wrote it to the EOI register.
    pub fn eoi(&mut self, vector: u8) {
        for index in 0..PINS {
            if let Some(entry) = self.table.get_mut(index)
                && entry.remote_irr()
                && entry.vector() == vector
            {
                entry.set_remote_irr(false);
                self.serve_level(index);
            }
        }
    }

    /// Sends the message of a level-triggered input that is asserted and not yet waiting for its EOI.
    fn serve_level(&mut self, index: usize) {
        let asserted = self.lines >> index & 1 != 0;
        let Some(entry) = self.table.get_mut(index) else {
            return;
        };
        if asserted && entry.waits_for_eoi() && !entry.masked() && !entry.remote_irr() {
            entry.set_remote_irr(true);
            self.sink.send(entry.message());
        }
    }

    fn read_selected(&self) -> u32 {
        match self.ioregsel {
            IOAPICID | IOAPICARB => u32::from(self.id) << 24,
            IOAPICVER => VERSION | (lanes::dword(PINS as u64) - 1) << 16,
            select => {
                let entry = entry_of(select).and_then(|index| self.table.get(index));
                let image = entry.map_or(0, |entry| entry.into_bits());
                lanes::dword(if select & 1 == 0 { image } else { image >> 32 })
            }
        }
    }

    fn write_selected(&mut self, value: u32) {
        if self.ioregsel == IOAPICID {
            self.id = lanes::byte(u64::from(value) >> 24) & 0x0F;
        }
        let Some(index) = entry_of(self.ioregsel) else {
            return;
        };
        let Some(entry) = self.table.get_mut(index) else {
            return;
        };
        let (shift, half) = if self.ioregsel & 1 == 0 {
            (0, 0xFFFF_FFFF)
        } else {
            (32, 0xFFFF_FFFF << 32)
        };
        let mask = Redirection::WRITABLE & half;
        let image = entry.into_bits() & !mask | u64::from(value) << shift & mask;
        *entry = Redirection::from_bits(image);
        if !entry.level() {
            // Kernels without use for the EOI register end a stuck interrupt by a moment of edge mode.
            entry.set_remote_irr(false);
        }
        self.serve_level(index);
    }
}

/// The redirection entry that a register number belongs to.
fn entry_of(select: u8) -> Option<usize> {
    let index = usize::from(select.checked_sub(IOREDTBL)? / 2);
    (index < PINS).then_some(index)
}

impl Registers for IoApic {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        match (at.region, at.offset, width) {
            (0, IOREGSEL, Width::Dword) => Ok(self.ioregsel.into()),
            (0, IOWIN, Width::Dword) => Ok(self.read_selected().into()),
            (0, EOIR, Width::Dword) => Ok(0),
            (0, IOREGSEL | IOWIN | EOIR, _) => Err(IoError::Width),
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        match (at.region, at.offset, width) {
            (0, IOREGSEL, Width::Dword) => self.ioregsel = lanes::byte(value),
            (0, IOWIN, Width::Dword) => self.write_selected(lanes::dword(value)),
            (0, EOIR, Width::Dword) => self.eoi(lanes::byte(value)),
            (0, IOREGSEL | IOWIN | EOIR, _) => return Err(IoError::Width),
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }
}

impl Device for IoApic {
    fn reset(&mut self, _kind: Reset) {
        self.id = self.reset_id;
        self.ioregsel = 0;
        self.table = [Redirection::AT_RESET; PINS];
    }
}

impl Snapshot for IoApic {
    type State = IoApicV1;

    fn save(&self) -> IoApicV1 {
        let Self {
            sink: _,
            reset_id: _,
            id,
            ioregsel,
            lines,
            table,
        } = self;
        IoApicV1 {
            id: *id,
            ioregsel: *ioregsel,
            lines: *lines,
            table: table.map(Redirection::into_bits),
        }
    }

    fn restore(&mut self, state: IoApicV1) -> Result<(), RestoreError> {
        let IoApicV1 {
            id,
            ioregsel,
            lines,
            table,
        } = state;
        let known = Redirection::WRITABLE | Redirection::new().with_remote_irr(true).into_bits();
        if id > 0x0F || lines >> PINS != 0 || table.iter().any(|entry| entry & !known != 0) {
            return Err(RestoreError::Invalid("I/O APIC registers out of range".into()));
        }
        self.id = id;
        self.ioregsel = ioregsel;
        self.lines = lines;
        self.table = table.map(Redirection::from_bits);
        Ok(())
    }
}

impl Inspect for IoApic {
    fn inspect(&self) -> Node {
        let mut pins = Node::tree();
        for (pin, entry) in self.table.iter().enumerate() {
            let node = Node::tree()
                .with("vector", entry.vector())
                .with("delivery_mode", entry.delivery_mode())
                .with("destination", entry.destination())
                .with("logical", entry.logical())
                .with("level", entry.level())
                .with("masked", entry.masked())
                .with("remote_irr", entry.remote_irr())
                .with("asserted", self.lines >> pin & 1 != 0);
            pins = pins.with(&format!("{pin:02}"), node);
        }
        Node::tree().with("id", self.id).with("pins", pins)
    }
}

/// Saved state of [`IoApic`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IoApicV1 {
    id: u8,
    ioregsel: u8,
    lines: u32,
    table: [u64; PINS],
}

impl Schema for IoApicV1 {
    const NAME: &'static str = "ioapic";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use test_kit::IrqProbe;
    use test_kit::TestClock;

    fn ioapic() -> (IoApic, Arc<IrqProbe>) {
        let probe = IrqProbe::new();
        let mut chip = IoApic::new(0, probe.clone());
        chip.reset(Reset::Cold);
        (chip, probe)
    }

    fn select(chip: &mut IoApic, register: u8) {
        let at = At {
            region: 0,
            offset: IOREGSEL,
        };
        chip.write(at, Width::Dword, register.into()).unwrap();
    }

    fn get(chip: &mut IoApic, register: u8) -> u64 {
        select(chip, register);
        chip.read(
            At {
                region: 0,
                offset: IOWIN,
            },
            Width::Dword,
        )
        .unwrap()
    }

    fn put(chip: &mut IoApic, register: u8, value: u64) {
        select(chip, register);
        chip.write(
            At {
                region: 0,
                offset: IOWIN,
            },
            Width::Dword,
            value,
        )
        .unwrap();
    }

    fn entry(chip: &mut IoApic, pin: u8, image: u64) {
        put(chip, 0x11 + pin * 2, image >> 32);
        put(chip, 0x10 + pin * 2, image & 0xFFFF_FFFF);
    }

    const EDGE: u64 = 0x77;
    const LEVEL: u64 = 0x8077;
    const MASK: u64 = 1 << 16;
    const REMOTE_IRR: u64 = 1 << 14;

    #[test]
    fn version_is_read_only_and_id_has_four_bits() {
        let (mut chip, _) = ioapic();
        assert_eq!(get(&mut chip, 1), 0x0017_0020);
        put(&mut chip, 1, 0);
        assert_eq!(get(&mut chip, 1), 0x0017_0020);
        put(&mut chip, 0, 0xFFFF_FFFF);
        assert_eq!((get(&mut chip, 0), get(&mut chip, 2)), (0x0F00_0000, 0x0F00_0000));
        put(&mut chip, 2, 0);
        assert_eq!(get(&mut chip, 2), 0x0F00_0000);
    }

    #[test]
    fn edge_sends_one_message_with_mode_and_destination() {
        let (mut chip, probe) = ioapic();
        entry(&mut chip, 14, 0x0500_0000_0000_0900 | EDGE);
        chip.set_line(14, true);
        chip.set_line(14, true);
        let address = 0xFEE0_0000 | 5 << 12 | 1 << 2;
        assert_eq!(probe.take_messages(), [MsiMessage { address, data: 0x4177 }]);
        chip.set_line(14, false);
        chip.set_line(14, true);
        assert_eq!(probe.take_messages().len(), 1);
        assert_eq!(get(&mut chip, 0x10 + 28) & REMOTE_IRR, 0);
    }

    #[test]
    fn edge_on_a_masked_pin_is_lost() {
        let (mut chip, probe) = ioapic();
        entry(&mut chip, 14, MASK | EDGE);
        chip.set_line(14, true);
        entry(&mut chip, 14, EDGE);
        assert!(probe.take_messages().is_empty());
    }

    #[test]
    fn level_waits_for_eoi_and_is_sent_again_while_asserted() {
        let (mut chip, probe) = ioapic();
        entry(&mut chip, 9, LEVEL);
        chip.set_line(9, true);
        chip.set_line(9, false);
        chip.set_line(9, true);
        assert_eq!(
            probe.take_messages(),
            [MsiMessage {
                address: 0xFEE0_0000,
                data: 0xC077
            }]
        );
        assert_eq!(get(&mut chip, 0x10 + 18), LEVEL | REMOTE_IRR);
        chip.eoi(0x76);
        assert!(probe.take_messages().is_empty(), "another vector");
        chip.eoi(0x77);
        assert_eq!(probe.take_messages().len(), 1);
        chip.set_line(9, false);
        chip.write(
            At {
                region: 0,
                offset: EOIR,
            },
            Width::Dword,
            0x77,
        )
        .unwrap();
        assert_eq!(get(&mut chip, 0x10 + 18), LEVEL);
        assert!(probe.take_messages().is_empty());
    }

    #[test]
    fn level_that_is_asserted_while_masked_is_sent_when_unmasked() {
        let (mut chip, probe) = ioapic();
        entry(&mut chip, 9, MASK | LEVEL);
        chip.set_line(9, true);
        assert!(probe.take_messages().is_empty());
        entry(&mut chip, 9, LEVEL);
        assert_eq!(probe.take_messages().len(), 1);
        entry(&mut chip, 9, MASK | LEVEL);
        chip.eoi(0x77);
        assert!(probe.take_messages().is_empty());
        entry(&mut chip, 9, LEVEL);
        assert_eq!(probe.take_messages().len(), 1);
    }

    #[test]
    fn edge_mode_for_a_moment_ends_a_level_interrupt() {
        let (mut chip, probe) = ioapic();
        entry(&mut chip, 9, LEVEL);
        chip.set_line(9, true);
        entry(&mut chip, 9, MASK | EDGE);
        entry(&mut chip, 9, LEVEL);
        assert_eq!(probe.take_messages().len(), 2);
    }

    #[test]
    fn read_only_bits_and_missing_registers_take_no_writes() {
        let (mut chip, _) = ioapic();
        entry(&mut chip, 3, u64::MAX);
        assert_eq!(get(&mut chip, 0x16), 0x1_AFFF);
        assert_eq!(get(&mut chip, 0x17), 0xFF00_0000);
        put(&mut chip, 0x40, u64::MAX);
        assert_eq!(get(&mut chip, 0x40), 0);
    }

    #[test]
    fn external_interrupt_is_an_edge_even_in_level_mode() {
        let (mut chip, probe) = ioapic();
        entry(&mut chip, 0, 0x8700);
        chip.set_line(0, true);
        assert_eq!(
            probe.take_messages(),
            [MsiMessage {
                address: 0xFEE0_0000,
                data: 0x4700
            }]
        );
        assert_eq!(get(&mut chip, 0x10) & REMOTE_IRR, 0);
    }

    #[test]
    fn keeps_the_device_contract() {
        let clock = TestClock::new();
        test_kit::contract(&clock, || Box::new(IoApic::new(2, IrqProbe::new())));
    }

    proptest! {
        #[test]
        fn no_access_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut chip = IoApic::new(0, IrqProbe::new());
            test_kit::fuzz_registers(&mut chip, &TestClock::new(), &bytes);
            for (pin, byte) in (0u32..).zip(&bytes) {
                chip.set_line(pin % 30, byte & 1 != 0);
                chip.eoi(*byte);
            }
        }
    }
}
