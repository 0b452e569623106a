//! Room in conventional memory for what a boot protocol hands to the kernel: information structures, command line,
//! descriptor table, page tables and a small stack.
//!
//! The arena begins low. The top of conventional memory is not used: Linux puts its mode-switch trampoline there while it
//! still runs on the loader's page tables.

use std::ops::Range;

use guest_memory::GuestMemory;

use crate::BootError;
use crate::layout;

/// Lowest address: above the interrupt vectors, the BIOS data area and the usual places of boot sectors.
const START: u64 = 0x8000;
/// Bytes of an arena.
const LEN: u64 = 0x2_0000;
/// The longest command line that the arena surely takes beside everything else.
pub(crate) const COMMAND_LINE_MAX: usize = 0x1_0000;

/// A range of conventional memory that is filled from its start.
pub(crate) struct Arena<'m> {
    memory: &'m GuestMemory,
    next: u64,
    end: u64,
}

impl<'m> Arena<'m> {
    /// Finds a place that no range of `used` touches.
    pub(crate) fn new(memory: &'m GuestMemory, used: &[Range<u64>]) -> Result<Self, BootError> {
        let mut start = START;
        while let Some(taken) = used.iter().find(|r| r.start < start + LEN && start < r.end) {
            if taken.end > layout::EBDA {
                return Err(BootError::NoLowMemory);
            }
            start = taken.end.next_multiple_of(4096);
        }
        if start + LEN > layout::EBDA {
            return Err(BootError::NoLowMemory);
        }
        Ok(Self {
            memory,
            next: start,
            end: start + LEN,
        })
    }

    /// Writes `bytes` at the next address that is a multiple of `align`, and returns it.
    pub(crate) fn put(&mut self, bytes: &[u8], align: u64) -> Result<u32, BootError> {
        let at = self.reserve(bytes.len() as u64, align)?;
        self.memory.write(at.into(), bytes)?;
        Ok(at)
    }

    /// Writes `text` and the zero byte that ends it.
    pub(crate) fn put_text(&mut self, text: &str) -> Result<u32, BootError> {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(&bytes, 16)
    }

    /// Leaves room for `len` bytes at a multiple of `align`, and returns its address.
    pub(crate) fn reserve(&mut self, len: u64, align: u64) -> Result<u32, BootError> {
        let at = self.next.next_multiple_of(align);
        let next = at
            .checked_add(len)
            .filter(|next| *next <= self.end)
            .ok_or(BootError::NoLowMemory)?;
        self.next = next;
        u32::try_from(at).map_err(|_| BootError::NoLowMemory)
    }
}

/// Refuses a command line longer than `max` bytes, or with a zero byte in it.
pub(crate) fn check_command_line(line: &str, max: usize) -> Result<(), BootError> {
    let max = max.min(COMMAND_LINE_MAX);
    if line.len() > max {
        return Err(BootError::CommandLine { len: line.len(), max });
    }
    if line.bytes().any(|b| b == 0) {
        return Err(BootError::CommandLineZero);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::memory;

    #[test]
    fn arena_moves_above_what_is_used() {
        let memory = memory(1 << 20);
        let mut arena = Arena::new(&memory, &[0x4000..0x9001, 0x1_0000..0x1_0100]).unwrap();
        assert_eq!(arena.put(&[1], 16).unwrap(), 0x1_1000);
        assert_eq!(arena.put(&[1], 16).unwrap(), 0x1_1010);
    }

    #[test]
    fn arena_without_room_is_refused() {
        let memory = memory(1 << 20);
        assert!(matches!(
            Arena::new(&memory, &[0..0x1000, 0x1000..0x8_8000]),
            Err(BootError::NoLowMemory)
        ));
        assert!(matches!(
            Arena::new(&memory, &[0..0x1000, 0x9000..u64::MAX]),
            Err(BootError::NoLowMemory)
        ));
        let mut arena = Arena::new(&memory, &[]).unwrap();
        assert!(arena.reserve(LEN + 1, 16).is_err());
        assert!(arena.reserve(u64::MAX, 16).is_err());
        assert!(arena.reserve(LEN, 16).is_ok());
        assert!(arena.reserve(1, 1).is_err());
    }

    #[test]
    fn command_line_is_measured_and_searched_for_zero() {
        assert!(check_command_line("root=/dev/vda", 13).is_ok());
        assert!(matches!(
            check_command_line("root=/dev/vda", 12),
            Err(BootError::CommandLine { len: 13, max: 12 })
        ));
        assert!(matches!(
            check_command_line("a\0b", 12),
            Err(BootError::CommandLineZero)
        ));
    }
}
