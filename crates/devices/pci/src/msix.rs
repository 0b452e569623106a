//! MSI-X: a table of messages in the function's memory, with a mask for each, and the array of pending bits.
//!
//! Table and pending bits share one region: the table at its start, the bits behind it.
//!
//! Spec: PCI Local Bus 3.0 §6.8.2.

use device_model::MsiMessage;
use device_model::MsiSink;
use device_model::PciHeader;
use device_model::RestoreError;
use device_model::Width;
use device_model::pci::command;
use serde::Deserialize;
use serde::Serialize;

/// Identifier of the capability.
const ID: u8 = 0x11;
/// Bytes of it.
const LEN: u8 = 12;
const CONTROL: u16 = 2;
const TABLE: u16 = 4;
const PBA: u16 = 8;
const FUNCTION_MASK: u16 = 1 << 14;
const ENABLE: u16 = 1 << 15;
const VECTORS_MAX: u16 = 2048;
const ENTRY_LEN: u64 = 16;
/// Vector control: the only bit there is.
const MASKED: u32 = 1;

/// One vector's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    low: u32,
    high: u32,
    data: u32,
    control: u32,
}

const EMPTY: Entry = Entry {
    low: 0,
    high: 0,
    data: 0,
    control: MASKED,
};

/// The capability with its table.
#[derive(Clone, Debug)]
pub struct Msix {
    // Configuration
    at: u16,
    pba: u64,
    // State
    entries: Vec<Entry>,
    pending: Vec<u64>,
}

/// Saved state of [`Msix`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MsixState {
    entries: Vec<[u32; 4]>,
    pending: Vec<u64>,
}

impl Msix {
    /// Adds the capability with `vectors` vectors (1 to 2048), whose table begins the region of base address register
    /// number `bar`. `None` when there is no room in the header, or the number is out of range.
    pub fn add(header: &mut PciHeader, bar: u8, vectors: u16) -> Option<Self> {
        if vectors == 0 || vectors > VECTORS_MAX || bar > 5 {
            return None;
        }
        let at = header.add_capability(ID, LEN)?;
        let pba = Self::pba_offset(vectors);
        header.fix(at + CONTROL, &(vectors - 1).to_le_bytes());
        header.allow(at + CONTROL, &(ENABLE | FUNCTION_MASK).to_le_bytes());
        header.fix(at + TABLE, &u32::from(bar).to_le_bytes());
        let pba_register = u32::try_from(pba).ok()? | u32::from(bar);
        header.fix(at + PBA, &pba_register.to_le_bytes());
        Some(Self {
            at,
            pba,
            entries: vec![EMPTY; usize::from(vectors)],
            pending: vec![0; usize::from(vectors).div_ceil(64)],
        })
    }

    fn pba_offset(vectors: u16) -> u64 {
        (u64::from(vectors) * ENTRY_LEN).next_multiple_of(2048)
    }

    /// Bytes that table and pending bits of `vectors` vectors take: a base address register's size.
    #[must_use]
    pub fn region_len(vectors: u16) -> u64 {
        let bits = u64::from(vectors).div_ceil(64) * 8;
        (Self::pba_offset(vectors) + bits).next_power_of_two().max(4096)
    }

    /// Whether the guest uses it.
    #[must_use]
    pub fn enabled(&self, header: &PciHeader) -> bool {
        header.word(self.at + CONTROL) & ENABLE != 0
    }

    fn masked(&self, header: &PciHeader) -> bool {
        header.word(self.at + CONTROL) & FUNCTION_MASK != 0 || !header.commanded(command::BUS_MASTER)
    }

    /// Reads table or pending bits at `offset` of the region.
    #[must_use]
    pub fn read(&self, offset: u64, width: Width) -> u64 {
        match width {
            Width::Qword => u64::from(self.dword(offset)) | u64::from(self.dword(offset.saturating_add(4))) << 32,
            Width::Dword => u64::from(self.dword(offset)),
            // Narrower accesses are not defined (§6.8.2); they read as their part.
            _ => u64::from(self.dword(offset & !3)) >> ((offset & 3) * 8) & width.ones(),
        }
    }

    fn dword(&self, offset: u64) -> u32 {
        if let Some(at) = offset.checked_sub(self.pba) {
            let word = usize::try_from(at / 8).ok().and_then(|i| self.pending.get(i));
            let [a, b, c, d, high @ ..] = word.copied().unwrap_or(0).to_le_bytes();
            return u32::from_le_bytes(if at & 4 == 0 { [a, b, c, d] } else { high });
        }
        let entry = usize::try_from(offset / ENTRY_LEN)
            .ok()
            .and_then(|i| self.entries.get(i));
        entry.map_or(0, |entry| match offset % ENTRY_LEN / 4 {
            0 => entry.low,
            1 => entry.high,
            2 => entry.data,
            _ => entry.control,
        })
    }

    /// Writes the table at `offset` of the region. Only whole double words count.
    pub fn write(&mut self, header: &PciHeader, offset: u64, width: Width, value: u64, sink: &dyn MsiSink) {
        let [a, b, c, d, high @ ..] = value.to_le_bytes();
        if offset & 3 != 0 || width < Width::Dword {
            return;
        }
        self.write_dword(offset, u32::from_le_bytes([a, b, c, d]));
        if width == Width::Qword {
            self.write_dword(offset.saturating_add(4), u32::from_le_bytes(high));
        }
        self.send_pending(header, sink);
    }

    fn write_dword(&mut self, offset: u64, value: u32) {
        let index = usize::try_from(offset / ENTRY_LEN).unwrap_or(usize::MAX);
        if let Some(entry) = self.entries.get_mut(index) {
            match offset % ENTRY_LEN / 4 {
                0 => entry.low = value & !3,
                1 => entry.high = value,
                2 => entry.data = value,
                _ => entry.control = value & MASKED,
            }
        }
    }

    /// Sends the message of `vector`, or keeps it pending while it is masked.
    pub fn fire(&mut self, header: &PciHeader, vector: u16, sink: &dyn MsiSink) {
        if !self.enabled(header) {
            return;
        }
        let Some(entry) = self.entries.get(usize::from(vector)) else {
            return;
        };
        if self.masked(header) || entry.control & MASKED != 0 {
            if let Some(word) = self.pending.get_mut(usize::from(vector / 64)) {
                *word |= 1 << (vector % 64);
            }
            return;
        }
        sink.send(entry.message());
    }

    /// The guest has written configuration space: sends what is pending and no longer masked.
    pub fn written(&mut self, header: &PciHeader, sink: &dyn MsiSink) {
        self.send_pending(header, sink);
    }

    fn send_pending(&mut self, header: &PciHeader, sink: &dyn MsiSink) {
        if !self.enabled(header) || self.masked(header) || self.pending.iter().all(|word| *word == 0) {
            return;
        }
        for (index, entry) in self.entries.iter().enumerate() {
            if let Some(word) = self.pending.get_mut(index / 64)
                && *word >> (index % 64) & 1 != 0
                && entry.control & MASKED == 0
            {
                *word &= !(1 << (index % 64));
                sink.send(entry.message());
            }
        }
    }

    /// Empties the table, masks all vectors.
    pub fn reset(&mut self) {
        self.entries.fill(EMPTY);
        self.pending.fill(0);
    }

    /// The state now.
    #[must_use]
    pub fn save(&self) -> MsixState {
        let Self {
            at: _,
            pba: _,
            entries,
            pending,
        } = self;
        MsixState {
            entries: entries.iter().map(|e| [e.low, e.high, e.data, e.control]).collect(),
            pending: pending.clone(),
        }
    }

    /// Takes over a saved state.
    ///
    /// # Errors
    /// [`RestoreError::Invalid`] when it is of another number of vectors.
    pub fn restore(&mut self, state: &MsixState) -> Result<(), RestoreError> {
        let MsixState { entries, pending } = state;
        if entries.len() != self.entries.len() || pending.len() != self.pending.len() {
            return Err(RestoreError::Invalid("MSI-X table of another size".to_owned()));
        }
        for (entry, [low, high, data, control]) in self.entries.iter_mut().zip(entries) {
            *entry = Entry {
                low: low & !3,
                high: *high,
                data: *data,
                control: control & MASKED,
            };
        }
        self.pending.clone_from(pending);
        let spare = self.entries.len() % 64;
        if spare != 0
            && let Some(last) = self.pending.last_mut()
        {
            *last &= (1 << spare) - 1;
        }
        Ok(())
    }
}

impl Entry {
    fn message(&self) -> MsiMessage {
        MsiMessage {
            address: u64::from(self.high) << 32 | u64::from(self.low),
            data: self.data,
        }
    }
}

#[cfg(test)]
mod tests {
    use test_kit::IrqProbe;

    use super::*;
    use crate::Class;
    use crate::Function;

    fn function(vectors: u16) -> (PciHeader, Msix) {
        let mut header = Function::new(0x1234, 1, Class(0xff, 0, 0)).header();
        let msix = Msix::add(&mut header, 1, vectors).unwrap();
        header.write(4, Width::Word, 4);
        (header, msix)
    }

    #[test]
    fn capability_says_how_many_vectors_and_where() {
        let (header, _) = function(130);
        assert_eq!(header.read(0x42, Width::Word), 129);
        assert_eq!(header.read(0x44, Width::Dword), 1);
        assert_eq!(header.read(0x48, Width::Dword), 4096 | 1);
        assert_eq!(Msix::region_len(130), 8192);
        assert_eq!(Msix::region_len(3), 4096);
    }

    #[test]
    fn masked_vectors_are_pending_until_function_and_vector_allow() {
        let (mut header, mut msix) = function(3);
        let probe = IrqProbe::new();
        header.write(0x42, Width::Word, u32::from(ENABLE | FUNCTION_MASK));
        msix.write(&header, 16, Width::Qword, 0xfee0_2000, &*probe);
        msix.write(&header, 24, Width::Dword, 0x55, &*probe);
        msix.write(&header, 28, Width::Dword, 0, &*probe);
        msix.fire(&header, 1, &*probe);
        msix.fire(&header, 2, &*probe);
        msix.fire(&header, 3, &*probe);
        assert_eq!(msix.read(2048, Width::Dword), 6);
        header.write(0x42, Width::Word, u32::from(ENABLE));
        msix.written(&header, &*probe);
        let message = MsiMessage {
            address: 0xfee0_2000,
            data: 0x55,
        };
        assert_eq!(probe.take_messages(), [message]);
        assert_eq!(msix.read(2048, Width::Qword), 4);
        msix.write(&header, 2048, Width::Dword, 0, &*probe);
        assert_eq!(msix.read(2048, Width::Qword), 4, "pending bits are read-only");
    }

    #[test]
    fn state_of_another_size_is_refused() {
        let (_, small) = function(3);
        let (_, mut large) = function(65);
        assert!(large.restore(&small.save()).is_err());
        let own = large.save();
        large.restore(&own).unwrap();
    }
}
