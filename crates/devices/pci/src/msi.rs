//! Message-signalled interrupts: the capability of PCI 3.0 with 64-bit addresses and per-vector masking.
//!
//! All of its registers live in the function's header, so it has no state of its own.
//!
//! Spec: PCI Local Bus 3.0 §6.8.1.

use device_model::MsiMessage;
use device_model::MsiSink;
use device_model::PciHeader;
use device_model::Width;
use device_model::pci::command;

/// Identifier of the capability.
const ID: u8 = 0x05;
/// Bytes of it: 64-bit, with masks.
const LEN: u8 = 24;

const CONTROL: u16 = 2;
const ADDRESS: u16 = 4;
const DATA: u16 = 12;
const MASK: u16 = 16;
const PENDING: u16 = 20;

const ENABLE: u16 = 1 << 0;
const MULTIPLE_ENABLE: u16 = 7 << 4;
const CAPABLE_64: u16 = 1 << 7;
const CAPABLE_MASK: u16 = 1 << 8;

/// The capability, at its place in a header.
#[derive(Clone, Copy, Debug)]
pub struct Msi {
    at: u16,
    vectors: u32,
}

impl Msi {
    /// Adds the capability with `2^order` vectors, at most 32, to `header`. `None` when there is no room.
    pub fn add(header: &mut PciHeader, order: u8) -> Option<Self> {
        let order = order.min(5);
        let at = header.add_capability(ID, LEN)?;
        let control = u16::from(order) << 1 | CAPABLE_64 | CAPABLE_MASK;
        let vectors = 1u32 << order;
        let masks = u32::MAX >> (32 - vectors);
        header.fix(at + CONTROL, &control.to_le_bytes());
        header.allow(at + CONTROL, &(ENABLE | MULTIPLE_ENABLE).to_le_bytes());
        header.allow(at + ADDRESS, &(u64::MAX & !3).to_le_bytes());
        header.allow(at + DATA, &[0xff; 2]);
        header.allow(at + MASK, &masks.to_le_bytes());
        header.changes(at + PENDING, &masks.to_le_bytes());
        Some(Self { at, vectors })
    }

    /// Whether the guest uses it.
    #[must_use]
    pub fn enabled(&self, header: &PciHeader) -> bool {
        header.word(self.at + CONTROL) & ENABLE != 0
    }

    /// Sends the message of `vector`, or keeps it pending while it is masked. Vectors beyond those that the guest gave
    /// share the last.
    pub fn fire(&self, header: &mut PciHeader, vector: u32, sink: &dyn MsiSink) {
        if !self.enabled(header) {
            return;
        }
        let given = 1u32 << (header.word(self.at + CONTROL) >> 4 & 7).min(5);
        let vector = vector.min(given.min(self.vectors) - 1);
        if header.dword(self.at + MASK) >> vector & 1 != 0 || !header.commanded(command::BUS_MASTER) {
            let pending = header.dword(self.at + PENDING) | 1 << vector;
            header.put(self.at + PENDING, &pending.to_le_bytes());
            return;
        }
        let low = header.dword(self.at + ADDRESS);
        let high = header.dword(self.at + ADDRESS + 4);
        let data = u32::from(header.word(self.at + DATA));
        sink.send(MsiMessage {
            address: u64::from(high) << 32 | u64::from(low),
            // The low bits of the data tell the vectors apart.
            data: data & !(given - 1) | vector,
        });
    }

    /// The guest has written configuration space: sends what is pending and no longer masked.
    pub fn written(&self, header: &mut PciHeader, at: u16, width: Width, sink: &dyn MsiSink) {
        let end = u64::from(at) + width.bytes();
        let ours = u64::from(self.at)..u64::from(self.at) + u64::from(LEN);
        let command = device_model::pci::reg::COMMAND;
        if (end <= ours.start || u64::from(at) >= ours.end) && at != command {
            return;
        }
        if !self.enabled(header) || !header.commanded(command::BUS_MASTER) {
            return;
        }
        let pending = header.dword(self.at + PENDING);
        let ready = pending & !header.dword(self.at + MASK);
        header.put(self.at + PENDING, &(pending & !ready).to_le_bytes());
        for vector in (0..self.vectors).filter(|vector| ready >> vector & 1 != 0) {
            self.fire(header, vector, sink);
        }
    }
}

#[cfg(test)]
mod tests {
    use test_kit::IrqProbe;

    use super::*;
    use crate::Class;
    use crate::Function;

    fn function() -> (PciHeader, Msi) {
        let mut header = Function::new(0x1234, 1, Class(0xff, 0, 0)).header();
        let msi = Msi::add(&mut header, 2).unwrap();
        header.write(4, Width::Word, 4);
        for (at, value) in [(0x44, 0xfee0_1000), (0x48, 0), (0x4c, 0x4063)] {
            header.write(at, Width::Dword, value);
        }
        (header, msi)
    }

    #[test]
    fn nothing_is_sent_until_enabled_and_vectors_differ_in_low_bits() {
        let (mut header, msi) = function();
        let probe = IrqProbe::new();
        msi.fire(&mut header, 0, &*probe);
        assert_eq!(probe.take_messages(), []);
        header.write(0x42, Width::Word, 0x0011);
        for vector in [1, 3] {
            msi.fire(&mut header, vector, &*probe);
        }
        let data: Vec<u32> = probe.take_messages().iter().map(|m| m.data).collect();
        // Two vectors were given; the fourth shares the second's.
        assert_eq!(data, [0x4063, 0x4063]);
    }

    #[test]
    fn masked_vector_is_pending_and_sent_once_when_unmasked() {
        let (mut header, msi) = function();
        let probe = IrqProbe::new();
        header.write(0x42, Width::Word, 0x0011);
        header.write(0x50, Width::Dword, 1);
        msi.fire(&mut header, 0, &*probe);
        msi.fire(&mut header, 0, &*probe);
        assert_eq!(header.read(0x54, Width::Dword), 1);
        header.write(0x50, Width::Dword, 0);
        msi.written(&mut header, 0x50, Width::Dword, &*probe);
        let message = MsiMessage {
            address: 0xfee0_1000,
            data: 0x4062,
        };
        assert_eq!(probe.take_messages(), [message]);
        assert_eq!(header.read(0x54, Width::Dword), 0);
    }
}
