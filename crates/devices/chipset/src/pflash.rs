//! Parallel NOR flash with Intel's basic command set, as the home of UEFI's variables.
//!
//! Read array, status and identifier; program a byte or a buffer; erase a block. A byte wide. What is programmed and erased
//! goes to a file too, at once. Lock bits and the CFI query are not modelled. All accesses come here, reads of the array
//! too, since any write may be a command.
//!
//! Spec: Intel 290667-022 (StrataFlash) §4-5 (commands, status register).

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

use crate::lanes;

/// Bytes that are erased together.
pub const BLOCK: usize = 4096;
/// Bytes that a buffer takes.
const BUFFER: usize = 256;

/// Commands.
mod command {
    pub(super) const PROGRAM: u8 = 0x10;
    pub(super) const ERASE: u8 = 0x20;
    pub(super) const PROGRAM_TOO: u8 = 0x40;
    pub(super) const CLEAR_STATUS: u8 = 0x50;
    pub(super) const READ_STATUS: u8 = 0x70;
    pub(super) const READ_ID: u8 = 0x90;
    pub(super) const CONFIRM: u8 = 0xD0;
    pub(super) const BUFFERED: u8 = 0xE8;
}

/// Status: ready; an erase, and a programming, that failed.
const READY: u8 = 0x80;
const ERASE_ERROR: u8 = 0x20;
const PROGRAM_ERROR: u8 = 0x10;
/// Manufacturer and device: Intel, 28F640J3.
const IDENTIFIER: [u8; 2] = [0x89, 0x17];

/// Where what is written is kept beyond the machine's life.
pub trait FlashStore: Send {
    /// Keeps `bytes` at `offset`. False when that failed, which the guest then sees in the status.
    fn keep(&mut self, offset: u64, bytes: &[u8]) -> bool;
}

/// What the next access means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    Array,
    Status,
    Identifier,
    /// The byte to program comes next.
    Program,
    /// The confirmation comes next.
    Erase,
    /// The number of bytes, less one, comes next.
    BufferLength,
    /// So many bytes come next.
    Buffer(u16),
    /// The buffer's confirmation comes next.
    BufferConfirm,
}

/// The flash.
pub struct Pflash {
    // Wiring
    store: Option<Box<dyn FlashStore>>,
    // Configuration
    regions: [Region; 1],
    // State
    bytes: Vec<u8>,
    mode: Mode,
    status: u8,
    buffer: Vec<(u32, u8)>,
}

impl Pflash {
    /// A flash with these contents, a multiple of [`BLOCK`], that writes through to `store`. `None` for another length.
    pub fn new(bytes: Vec<u8>, store: Option<Box<dyn FlashStore>>) -> Option<Self> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(BLOCK) || u32::try_from(bytes.len()).is_err() {
            return None;
        }
        let region = Region {
            name: "flash",
            space: Space::Mmio,
            len: bytes.len() as u64,
            widths: Widths::BYTE,
        };
        Some(Self {
            store,
            regions: [region],
            bytes,
            mode: Mode::Array,
            status: 0,
            buffer: Vec::new(),
        })
    }

    fn keep(&mut self, at: usize, len: usize) -> bool {
        let Some(bytes) = self.bytes.get(at..at.saturating_add(len)) else {
            return false;
        };
        match &mut self.store {
            Some(store) => store.keep(at as u64, bytes),
            None => true,
        }
    }

    fn command(&mut self, value: u8) {
        self.mode = match value {
            command::PROGRAM | command::PROGRAM_TOO => Mode::Program,
            command::ERASE => Mode::Erase,
            command::BUFFERED => {
                self.buffer.clear();
                self.status |= READY;
                Mode::BufferLength
            }
            command::CLEAR_STATUS => {
                // DEVIATION: ready is set again by the next operation only, since OVMF takes a status of zero for the sign of
                // a flash.
                self.status = 0;
                Mode::Array
            }
            command::READ_STATUS => Mode::Status,
            command::READ_ID => Mode::Identifier,
            _ => Mode::Array,
        };
    }

    /// Programming turns ones into zeros only.
    fn program(&mut self, at: usize, value: u8) {
        let Some(byte) = self.bytes.get_mut(at) else {
            return;
        };
        *byte &= value;
        self.status |= READY;
        if !self.keep(at, 1) {
            self.status |= PROGRAM_ERROR;
        }
    }

    fn erase(&mut self, at: usize) {
        let start = at - at % BLOCK;
        if let Some(block) = self.bytes.get_mut(start..start + BLOCK) {
            block.fill(0xFF);
        }
        self.status |= READY;
        if !self.keep(start, BLOCK) {
            self.status |= ERASE_ERROR;
        }
    }

    fn program_buffer(&mut self) {
        for (at, value) in std::mem::take(&mut self.buffer) {
            self.program(usize::try_from(at).unwrap_or(usize::MAX), value);
        }
    }

    fn place(&self, at: At, width: Width) -> Result<usize, IoError> {
        let offset = usize::try_from(at.offset).unwrap_or(usize::MAX);
        match (at.region, width) {
            (0, _) if offset >= self.bytes.len() => Err(IoError::NoRegister),
            (0, Width::Byte) => Ok(offset),
            (0, _) => Err(IoError::Width),
            _ => Err(IoError::NoRegister),
        }
    }
}

impl Registers for Pflash {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        let place = self.place(at, width)?;
        let array = self.bytes.get(place).copied().unwrap_or(0xFF);
        let value = match self.mode {
            Mode::Array => array,
            Mode::Identifier => IDENTIFIER.get(place % BLOCK).copied().unwrap_or(0),
            _ => self.status,
        };
        Ok(u64::from(value))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        let place = self.place(at, width)?;
        let value = lanes::byte(value);
        match self.mode {
            Mode::Array | Mode::Status | Mode::Identifier => self.command(value),
            Mode::Program => {
                self.program(place, value);
                self.mode = Mode::Status;
            }
            Mode::Erase => {
                match value {
                    command::CONFIRM => self.erase(place),
                    _ => self.status |= ERASE_ERROR | PROGRAM_ERROR,
                }
                self.mode = Mode::Status;
            }
            Mode::BufferLength => self.mode = Mode::Buffer(u16::from(value) + 1),
            Mode::Buffer(left) => {
                self.buffer.push((lanes::dword(at.offset), value));
                self.mode = if left > 1 {
                    Mode::Buffer(left - 1)
                } else {
                    Mode::BufferConfirm
                };
            }
            Mode::BufferConfirm => {
                match value {
                    command::CONFIRM => self.program_buffer(),
                    _ => self.status |= ERASE_ERROR | PROGRAM_ERROR,
                }
                self.mode = Mode::Status;
            }
        }
        Ok(())
    }
}

impl Device for Pflash {
    fn reset(&mut self, _kind: Reset) {
        self.mode = Mode::Array;
        self.status = 0;
        self.buffer.clear();
    }
}

impl Snapshot for Pflash {
    type State = PflashV1;

    fn save(&self) -> PflashV1 {
        let Self {
            store: _,
            regions: _,
            bytes,
            mode,
            status,
            buffer,
        } = self;
        PflashV1 {
            bytes: bytes.clone(),
            mode: *mode,
            status: *status,
            buffer: buffer.clone(),
        }
    }

    fn restore(&mut self, state: PflashV1) -> Result<(), RestoreError> {
        let PflashV1 {
            bytes,
            mode,
            status,
            buffer,
        } = state;
        let left = match mode {
            Mode::Buffer(left) => usize::from(left),
            _ => 0,
        };
        if bytes.len() != self.bytes.len() || buffer.len() + left > BUFFER {
            return Err(RestoreError::Invalid("flash of another size".to_owned()));
        }
        self.bytes = bytes;
        self.mode = mode;
        self.status = status;
        self.buffer = buffer;
        if !self.keep(0, self.bytes.len()) {
            return Err(RestoreError::Invalid("the flash's file cannot be written".to_owned()));
        }
        Ok(())
    }
}

impl Inspect for Pflash {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("bytes", self.bytes.len() as u64)
            .with("mode", format!("{:?}", self.mode))
            .with("status", self.status)
    }
}

/// Saved state of [`Pflash`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PflashV1 {
    bytes: Vec<u8>,
    mode: Mode,
    status: u8,
    buffer: Vec<(u32, u8)>,
}

impl Schema for PflashV1 {
    const NAME: &'static str = "pflash";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use device_model::TestClock;
    use proptest::prelude::*;
    use test_kit::contract;
    use test_kit::fuzz_registers;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<(u64, usize)>>>);

    impl FlashStore for Kept {
        fn keep(&mut self, offset: u64, bytes: &[u8]) -> bool {
            self.0.lock().unwrap().push((offset, bytes.len()));
            true
        }
    }

    fn chip(store: Option<Box<dyn FlashStore>>) -> Pflash {
        Pflash::new((0..8192u32).map(|i| i as u8).collect(), store).unwrap()
    }

    fn at(offset: u64) -> At {
        At { region: 0, offset }
    }

    fn write(chip: &mut Pflash, offset: u64, values: &[u8]) {
        for value in values {
            chip.write(at(offset), Width::Byte, u64::from(*value)).unwrap();
        }
    }

    fn read(chip: &mut Pflash, offset: u64) -> u8 {
        chip.read(at(offset), Width::Byte).unwrap() as u8
    }

    #[test]
    fn ovmf_s_probe_takes_it_for_a_flash() {
        let mut chip = chip(None);
        let original = read(&mut chip, 5);
        write(&mut chip, 5, &[0x50]);
        assert_eq!(read(&mut chip, 5), original);
        write(&mut chip, 5, &[0x70]);
        assert_eq!(read(&mut chip, 5), 0);
        write(&mut chip, 5, &[0xFF]);
        assert_eq!(read(&mut chip, 5), original);
    }

    #[test]
    fn erased_block_takes_bytes_and_programming_clears_bits_only() {
        let kept = Kept::default();
        let mut chip = chip(Some(Box::new(kept.clone())));
        write(&mut chip, 4100, &[0x20, 0xD0]);
        assert_eq!(read(&mut chip, 0), 0x80, "status");
        write(&mut chip, 4100, &[0x10, 0x5A, 0x40, 0xF0, 0xFF]);
        assert_eq!([read(&mut chip, 4096), read(&mut chip, 4100)], [0xFF, 0x50]);
        assert_eq!(read(&mut chip, 4095), 0xFF);
        assert_eq!(read(&mut chip, 4094), 0xFE, "the other block");
        assert_eq!(*kept.0.lock().unwrap(), [(4096, 4096), (4100, 1), (4100, 1)]);
    }

    #[test]
    fn buffer_is_programmed_when_it_is_confirmed() {
        let mut chip = chip(None);
        write(&mut chip, 0, &[0x20, 0xD0, 0xE8, 1]);
        write(&mut chip, 16, &[0x11]);
        write(&mut chip, 17, &[0x22]);
        write(&mut chip, 0, &[0xD0, 0xFF]);
        assert_eq!([read(&mut chip, 16), read(&mut chip, 17)], [0x11, 0x22]);
        write(&mut chip, 0, &[0x20, 0x00, 0x70]);
        assert_eq!(read(&mut chip, 0) & 0x30, 0x30, "no confirmation");
    }

    #[test]
    fn odd_lengths_are_no_flash() {
        assert!(Pflash::new(Vec::new(), None).is_none());
        assert!(Pflash::new(vec![0; 4097], None).is_none());
    }

    #[test]
    fn keeps_the_contract() {
        contract(&TestClock::new(), || Box::new(chip(None)));
    }

    proptest! {
        #[test]
        fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz_registers(&mut chip(None), &TestClock::new(), &bytes);
        }
    }
}
