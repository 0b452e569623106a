//! Hot-plug registers of a bus's slots for ACPI, at the ports where QEMU has them: up, down, eject.
//!
//! A card that comes or is to go sets its slot's bit in `up` or `down`; the board then raises a general-purpose event, whose
//! method reads the two and tells the operating system. The method _EJ0 writes a slot's bit to `eject`: its card has been given
//! up, and goes. Both notices are told once: reading clears them. The bus selector is kept and selects nothing, since there is one
//! bus with slots.
//!
//! Spec: QEMU docs/specs/acpi_pci_hotplug.rst; ACPI 6.5 §6.3 (_EJ0), §5.6.6 (device object notifications).

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
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

/// First port.
pub const PORT: u16 = 0xae00;
/// Bytes of the registers.
pub const LEN: u8 = 0x14;
/// General-purpose event that the board raises after [`AcpiSlots::plug`] and [`AcpiSlots::ask`].
pub const GPE: u8 = 1;

/// Registers of 32 bits by offset, a bit for each slot.
mod reg {
    /// PCIU: cards that have come (RO, cleared by reading).
    pub(super) const UP: u64 = 0x0;
    /// PCID: cards that are to go (RO, cleared by reading).
    pub(super) const DOWN: u64 = 0x4;
    /// B0EJ: cards that have been given up (WO).
    pub(super) const EJECT: u64 = 0x8;
    /// Slots whose cards can go (RO).
    pub(super) const REMOVABLE: u64 = 0xc;
    /// The bus (RW).
    pub(super) const BUS: u64 = 0x10;
}

const REGIONS: [Region; 1] = [Region {
    name: "slots",
    space: Space::Pio,
    len: LEN as u64,
    widths: Widths::DWORD,
}];

/// Told which slot's card the guest has given up. Called under the registers' lock.
pub type EjectNotice = Box<dyn Fn(u8) + Send>;

/// The registers.
pub struct AcpiSlots {
    // Wiring
    notice: EjectNotice,
    // Configuration
    slots: u32,
    // State
    up: u32,
    down: u32,
    bus: u32,
}

impl AcpiSlots {
    /// Registers for the slots in the set `slots`; `notice` learns which cards the guest gives up.
    pub fn new(slots: u32, notice: EjectNotice) -> Self {
        Self {
            notice,
            slots,
            up: 0,
            down: 0,
            bus: 0,
        }
    }

    /// Whether `slot` is one of those whose cards come and go.
    #[must_use]
    pub fn has(&self, slot: u8) -> bool {
        self.bit(slot) != 0
    }

    /// A card has come to `slot`.
    pub fn plug(&mut self, slot: u8) {
        self.up |= self.bit(slot);
        self.down &= !self.bit(slot);
    }

    /// The guest is asked to give the card in `slot` up, or what it still thinks is there.
    pub fn ask(&mut self, slot: u8) {
        self.down |= self.bit(slot);
    }

    fn bit(&self, slot: u8) -> u32 {
        1u32.checked_shl(slot.into()).unwrap_or(0) & self.slots
    }

    fn eject(&mut self, slots: u32) {
        for slot in (0u8..32).filter(|slot| slots & self.bit(*slot) != 0) {
            (self.notice)(slot);
        }
        self.down &= !slots;
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    if at.region != 0 || at.offset >= LEN.into() {
        return Err(IoError::NoRegister);
    }
    let whole = width == Width::Dword && at.offset.is_multiple_of(4);
    if whole { Ok(()) } else { Err(IoError::Width) }
}

impl Registers for AcpiSlots {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        let value = match at.offset {
            reg::UP => std::mem::take(&mut self.up),
            reg::DOWN => std::mem::take(&mut self.down),
            reg::REMOVABLE => self.slots,
            reg::BUS => self.bus,
            _ => 0,
        };
        Ok(value.into())
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let value = u32::try_from(value & width.ones()).unwrap_or(0);
        match at.offset {
            reg::EJECT => self.eject(value),
            reg::BUS => self.bus = value,
            _ => {}
        }
        Ok(())
    }
}

impl Device for AcpiSlots {
    fn reset(&mut self, _kind: Reset) {
        (self.up, self.down, self.bus) = (0, 0, 0);
    }
}

impl Snapshot for AcpiSlots {
    type State = AcpiSlotsV1;

    fn save(&self) -> AcpiSlotsV1 {
        let Self {
            notice: _,
            slots: _,
            up,
            down,
            bus,
        } = *self;
        AcpiSlotsV1 { up, down, bus }
    }

    fn restore(&mut self, state: AcpiSlotsV1) -> Result<(), RestoreError> {
        let AcpiSlotsV1 { up, down, bus } = state;
        if (up | down) & !self.slots != 0 {
            return Err(RestoreError::Invalid("cards in slots that take none".to_owned()));
        }
        (self.up, self.down, self.bus) = (up, down, bus);
        Ok(())
    }
}

impl Inspect for AcpiSlots {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("slots", self.slots)
            .with("up", self.up)
            .with("down", self.down)
    }
}

/// Saved state of [`AcpiSlots`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiSlotsV1 {
    up: u32,
    down: u32,
    bus: u32,
}

impl Schema for AcpiSlotsV1 {
    const NAME: &'static str = "acpi_slots";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::sync::mpsc::Receiver;

    use test_kit::TestClock;
    use test_kit::contract;

    use super::*;

    fn chip() -> (Receiver<u8>, AcpiSlots) {
        let (sender, ejected) = mpsc::channel();
        let notice = Box::new(move |slot| {
            let _ = sender.send(slot);
        });
        (ejected, AcpiSlots::new(0x8000_00f8, notice))
    }

    fn at(offset: u64) -> At {
        At { region: 0, offset }
    }

    #[test]
    fn keeps_the_contract() {
        contract(&TestClock::new(), || Box::new(chip().1));
    }

    #[test]
    fn notices_are_told_once_and_only_of_slots() {
        let (_, mut chip) = chip();
        for slot in [2, 5, 31, 32, 255] {
            chip.plug(slot);
        }
        chip.ask(3);
        chip.ask(5);
        chip.plug(5);
        assert!(chip.has(5) && !chip.has(2) && !chip.has(255));
        let mut read = |offset| chip.read(at(offset), Width::Dword).unwrap();
        assert_eq!([read(0), read(4), read(12)], [0x8000_0020, 8, 0x8000_00f8]);
        assert_eq!([read(0), read(4)], [0, 0]);
    }

    #[test]
    fn eject_tells_of_each_slot_that_takes_cards() {
        let (ejected, mut chip) = chip();
        chip.ask(4);
        chip.write(at(8), Width::Dword, 0x8000_0011).unwrap();
        assert_eq!(ejected.try_iter().collect::<Vec<_>>(), [4, 31]);
        assert_eq!(chip.read(at(4), Width::Dword), Ok(0));
    }
}
