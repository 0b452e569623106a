//! Initialisation block and descriptors of the PCnet, in their software styles.
//!
//! Spec: AMD 21510 "Initialization Block", "Receive Descriptors", "Transmit Descriptors".

use guest_memory::GuestMemory;

use crate::bytes;

/// Descriptors of a ring at most.
const LONGEST: u16 = 512;

/// The initialisation block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) mode: u16,
    pub(super) address: [u16; 3],
    pub(super) filter: [u16; 4],
    /// Base address and length of the rings.
    pub(super) rx: (u32, u16),
    pub(super) tx: (u32, u16),
}

impl Block {
    /// Reads a block of 32 bits or of 16. None where there is no memory.
    pub(super) fn read(memory: &GuestMemory, at: u64, wide: bool) -> Option<Self> {
        let len = |code: u16| 1u16.checked_shl(code.into()).unwrap_or(LONGEST).min(LONGEST);
        if wide {
            let words: [u16; 14] = memory.read_obj(at).ok()?;
            let [mode, lens, a, b, c, _, f0, f1, f2, f3, rx0, rx1, tx0, tx1] = words;
            return Some(Self {
                mode,
                address: [a, b, c],
                filter: [f0, f1, f2, f3],
                rx: (u32::from(rx0) | u32::from(rx1) << 16, len(lens >> 4 & 15)),
                tx: (u32::from(tx0) | u32::from(tx1) << 16, len(lens >> 12)),
            });
        }
        let words: [u16; 12] = memory.read_obj(at).ok()?;
        let [mode, a, b, c, f0, f1, f2, f3, rx0, rx1, tx0, tx1] = words;
        let base = |low: u16, high: u16| u32::from(low) | u32::from(high & 0xff) << 16;
        Some(Self {
            mode,
            address: [a, b, c],
            filter: [f0, f1, f2, f3],
            rx: (base(rx0, rx1), len(rx1 >> 13)),
            tx: (base(tx0, tx1), len(tx1 >> 13)),
        })
    }
}

/// How descriptors are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Of 16 bits, as the LANCE has them.
    Narrow,
    /// Of 32 bits, the buffer's address first.
    Wide,
    /// Of 32 bits, the buffer's address third.
    Burst,
}

impl Style {
    pub(super) fn of(sws: u16) -> Self {
        match sws & 0xff {
            2 => Self::Wide,
            3 => Self::Burst,
            _ => Self::Narrow,
        }
    }

    pub(super) const fn len(self) -> u64 {
        match self {
            Self::Narrow => 8,
            Self::Wide | Self::Burst => 16,
        }
    }
}

/// Bits of a descriptor's status, as in its upper half.
pub(super) const OWN: u16 = 1 << 15;
pub(super) const ERR: u16 = 1 << 14;
pub(super) const LTINT: u16 = 1 << 12;
pub(super) const BUFF: u16 = 1 << 10;
pub(super) const STP: u16 = 1 << 9;
pub(super) const ENP: u16 = 1 << 8;
/// Why a frame was taken: by its own address, by the filter, as a broadcast.
pub(super) const PAM: u16 = 1 << 6;
pub(super) const LAFM: u16 = 1 << 5;
pub(super) const BAM: u16 = 1 << 4;

/// A descriptor, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) buffer: u64,
    pub(super) status: u16,
    /// Bytes of the buffer.
    pub(super) len: u16,
}

impl Descriptor {
    pub(super) fn read(memory: &GuestMemory, at: u64, style: Style) -> Option<Self> {
        // Twelve bits of a two's complement; zero is 4096.
        let len = |count: u16| match 0u16.wrapping_sub(count) & 0xfff {
            0 => 4096,
            len => len,
        };
        if style == Style::Narrow {
            let [low, status, count, _]: [u16; 4] = memory.read_obj(at).ok()?;
            return Some(Self {
                buffer: u64::from(low) | u64::from(status & 0xff) << 16,
                status: status & 0xff00,
                len: len(count),
            });
        }
        let words: [u32; 4] = memory.read_obj(at).ok()?;
        let [first, flags, third, _] = words;
        Some(Self {
            buffer: if style == Style::Wide { first } else { third }.into(),
            status: bytes::low16(u64::from(flags) >> 16),
            len: len(bytes::low16(flags.into())),
        })
    }

    /// Writes status and count back, OWN last. `count` is that of the message, for the last descriptor of a received one.
    pub(super) fn write(self, memory: &GuestMemory, at: u64, style: Style, count: Option<u16>) {
        // Where there is no memory nothing is written.
        if style == Style::Narrow {
            if let Some(count) = count {
                let _ = memory.write_obj(at + 6, &count);
            }
            let [_, high] = self.status.to_le_bytes();
            let _ = memory.write_obj(at + 3, &high);
            return;
        }
        if let Some(count) = count {
            let place = if style == Style::Wide { at + 8 } else { at };
            let _ = memory.write_obj(place, &u32::from(count));
        }
        let _ = memory.write_obj(at + 6, &self.status);
    }
}
