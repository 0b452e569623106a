//! The pair of Intel 8237A DMA controllers of a PC/AT with their page registers.
//!
//! Channels 0 to 3 move bytes, 5 to 7 words; channel 4 is the cascade. Devices ask for transfers through [`DmaChannel`];
//! they are carried out at once, in blocks as long as the device offers, whatever transfer mode the guest chose. Software
//! requests and memory-to-memory transfers do nothing. The command register disables; its timing bits are kept.
//!
//! Spec: Intel 231466-005 (8237A) §"Register Description", §"Software Commands"; IBM PC/AT Technical Reference 6183355,
//! section 1 ("DMA controllers", page registers).

use std::fmt;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use bitfield_struct::bitfield;
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
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;

/// First port of the controller of bytes.
pub const BYTE_PORT: u64 = 0x00;
/// First port of the controller of words, whose registers are two ports apart.
pub const WORD_PORT: u64 = 0xC0;
/// First port of the page registers.
pub const PAGE_PORT: u64 = 0x80;

const BYTES: usize = 0;
const WORDS: usize = 1;
const PAGES: usize = 2;

const fn region(name: &'static str, len: u64) -> Region {
    Region {
        name,
        space: Space::Pio,
        len,
        widths: Widths::BYTE,
    }
}

const REGIONS: [Region; 3] = [region("bytes", 16), region("words", 32), region("pages", 16)];

/// Page register of each channel; that of the cascade is refresh's.
const PAGE_OF: [usize; 8] = [7, 3, 1, 2, 15, 11, 9, 10];
/// Bytes moved in one go.
const CHUNK: usize = 4096;

/// Mode register of a channel (WO).
#[bitfield(u8)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Mode {
    /// The channel; not kept.
    #[bits(2)]
    channel: u8,
    /// 0 verify, 1 write to memory, 2 read from memory.
    #[bits(2)]
    transfer: u8,
    /// Address and count begin anew at the terminal count.
    autoinit: bool,
    /// The address goes down.
    decrement: bool,
    /// 0 demand, 1 single, 2 block, 3 cascade.
    #[bits(2)]
    kind: u8,
}

const TO_MEMORY: u8 = 1;
const FROM_MEMORY: u8 = 2;
const CASCADE: u8 = 3;
/// Command register: the controller is disabled.
const DISABLED: u8 = 1 << 2;

/// A channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Channel {
    mode: Mode,
    base_address: u16,
    base_count: u16,
    address: u16,
    count: u16,
}

/// One controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Controller {
    channels: [Channel; 4],
    command: u8,
    /// Channels that have reached their terminal count since the status was read last.
    terminal: u8,
    mask: u8,
    request: u8,
    /// The next byte of an address or count is the high one.
    high: bool,
}

impl Controller {
    const RESET: Self = Self {
        channels: [Channel {
            mode: Mode::new(),
            base_address: 0,
            base_count: 0,
            address: 0,
            count: 0,
        }; 4],
        command: 0,
        terminal: 0,
        mask: 0x0F,
        request: 0,
        high: false,
    };

    fn read(&mut self, register: u64) -> u8 {
        match register {
            0..8 => {
                let channel = self.channel(register / 2);
                let value = if register % 2 == 0 {
                    channel.address
                } else {
                    channel.count
                };
                let [low, high] = value.to_le_bytes();
                if self.flip() { high } else { low }
            }
            8 => std::mem::take(&mut self.terminal) | self.request << 4,
            0xF => self.mask | 0xF0,
            // The temporary register, after no memory-to-memory transfer.
            _ => 0,
        }
    }

    fn write(&mut self, register: u64, value: u8) {
        match register {
            0..8 => {
                let high = self.flip();
                if let Some(channel) = self.channels.get_mut(usize::from(lanes::byte(register / 2))) {
                    let (base, current) = if register % 2 == 0 {
                        (&mut channel.base_address, &mut channel.address)
                    } else {
                        (&mut channel.base_count, &mut channel.count)
                    };
                    let [low_byte, high_byte] = base.to_le_bytes();
                    *base = u16::from_le_bytes(if high { [low_byte, value] } else { [value, high_byte] });
                    *current = *base;
                }
            }
            8 => self.command = value,
            9 => self.request = with_bit(self.request, value),
            0xA => self.mask = with_bit(self.mask, value),
            0xB => {
                let mode = Mode::from_bits(value);
                if let Some(channel) = self.channels.get_mut(usize::from(mode.channel())) {
                    channel.mode = mode.with_channel(0);
                }
            }
            0xC => self.high = false,
            0xD => {
                self.command = 0;
                self.terminal = 0;
                self.request = 0;
                self.mask = 0x0F;
                self.high = false;
            }
            0xE => self.mask = 0,
            _ => self.mask = value & 0x0F,
        }
    }

    fn flip(&mut self) -> bool {
        let high = self.high;
        self.high = !high;
        high
    }

    fn channel(&self, index: u64) -> Channel {
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        self.channels.get(index).copied().unwrap_or_default()
    }
}

/// `set` with the bit that the low two bits of `value` name as bit 2 of it says.
fn with_bit(set: u8, value: u8) -> u8 {
    let bit = 1 << (value & 3);
    if value & 4 != 0 { set | bit } else { set & !bit }
}

/// What the chip and its channels share.
struct Inner {
    bytes: Controller,
    words: Controller,
    pages: [u8; 16],
}

/// What a transfer came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transferred {
    /// Bytes that were moved.
    pub bytes: usize,
    /// The terminal count was reached: the device is told to stop.
    pub terminal: bool,
}

/// The end of a channel at a device. Safe under that device's lock.
#[derive(Clone)]
pub struct DmaChannel {
    inner: Arc<Mutex<Inner>>,
    memory: Arc<GuestMemory>,
    number: usize,
}

impl fmt::Debug for DmaChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaChannel")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

impl DmaChannel {
    /// Whether the guest lets the channel move anything.
    pub fn is_ready(&self) -> bool {
        let inner = lock(&self.inner);
        let controller = inner.controller(self.number);
        let mode = controller.channel(lanes_of(self.number)).mode;
        controller.command & DISABLED == 0 && controller.mask >> (self.number % 4) & 1 == 0 && mode.kind() != CASCADE
    }

    /// The device gives bytes. They reach memory if the channel is programmed so; a verify only counts.
    pub fn give(&self, bytes: &[u8]) -> Transferred {
        self.run(bytes.len(), |transfer, gpa, at, len| {
            if transfer == TO_MEMORY
                && let Some(part) = bytes.get(at..at + len)
            {
                // Nobody answers outside of memory.
                let _ = self.memory.write(gpa, part);
            }
        })
    }

    /// The device takes bytes. Those that the channel is not programmed to read are zero.
    pub fn take(&self, buffer: &mut [u8]) -> Transferred {
        buffer.fill(0);
        self.run(buffer.len(), |transfer, gpa, at, len| {
            if transfer == FROM_MEMORY
                && let Some(part) = buffer.get_mut(at..at + len)
            {
                let _ = self.memory.read(gpa, part);
            }
        })
    }

    /// Moves up to `len` bytes in pieces: `f` gets transfer type, guest address, offset in the device's bytes, and length.
    fn run(&self, len: usize, mut f: impl FnMut(u8, u64, usize, usize)) -> Transferred {
        if !self.is_ready() {
            return Transferred::default();
        }
        let mut inner = lock(&self.inner);
        let mut done = Transferred::default();
        let unit = if self.number < 4 { 1 } else { 2 };
        while done.bytes + unit <= len && !done.terminal {
            let Some((gpa, units, transfer)) = inner.step(self.number, (len - done.bytes) / unit, &mut done.terminal)
            else {
                break;
            };
            f(transfer, gpa, done.bytes, units * unit);
            done.bytes += units * unit;
        }
        done
    }
}

fn lanes_of(number: usize) -> u64 {
    u64::try_from(number % 4).unwrap_or(0)
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn controller(&self, channel: usize) -> &Controller {
        if channel < 4 { &self.bytes } else { &self.words }
    }

    /// Goes on by up to `units`: the guest address of the first, how many follow it without a break, and the transfer type.
    fn step(&mut self, number: usize, units: usize, terminal: &mut bool) -> Option<(u64, usize, u8)> {
        let page = self.pages.get(*PAGE_OF.get(number)?).copied()?;
        let controller = if number < 4 { &mut self.bytes } else { &mut self.words };
        let channel = controller.channels.get_mut(number % 4)?;
        let down = channel.mode.decrement();
        // Up to the terminal count, and to the end of the 64 KiB that the address counts through.
        let left = usize::from(channel.count) + 1;
        let straight = if down {
            1
        } else {
            0x1_0000 - usize::from(channel.address)
        };
        let units = units.min(left).min(straight).min(CHUNK);
        let gpa = if number < 4 {
            u64::from(page) << 16 | u64::from(channel.address)
        } else {
            u64::from(page & !1) << 16 | u64::from(channel.address) << 1
        };
        let step = u16::try_from(units).ok()?;
        channel.address = if down {
            channel.address.wrapping_sub(step)
        } else {
            channel.address.wrapping_add(step)
        };
        channel.count = channel.count.wrapping_sub(step);
        let transfer = channel.mode.transfer();
        if units == left {
            *terminal = true;
            let bit = 1 << (number % 4);
            controller.terminal |= bit;
            controller.request &= !bit;
            if channel.mode.autoinit() {
                channel.address = channel.base_address;
                channel.count = channel.base_count;
            } else {
                controller.mask |= bit;
            }
        }
        Some((gpa, units, transfer))
    }
}

/// The pair of controllers.
pub struct Dma8237 {
    // Wiring
    memory: Arc<GuestMemory>,
    // State
    inner: Arc<Mutex<Inner>>,
}

impl Dma8237 {
    /// Controllers that reach `memory`, all channels masked.
    pub fn new(memory: Arc<GuestMemory>) -> Self {
        let inner = Inner {
            bytes: Controller::RESET,
            words: Controller::RESET,
            pages: [0; 16],
        };
        Self {
            memory,
            inner: Arc::new(Mutex::new(inner)),
        }
    }

    /// The end of channel `number` (0-7) for a device.
    pub fn channel(&self, number: u8) -> DmaChannel {
        DmaChannel {
            inner: Arc::clone(&self.inner),
            memory: Arc::clone(&self.memory),
            number: usize::from(number & 7),
        }
    }
}

impl Registers for Dma8237 {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        let mut inner = lock(&self.inner);
        let value = match at.region {
            BYTES => inner.bytes.read(at.offset),
            WORDS => inner.words.read(at.offset / 2),
            PAGES => {
                let page = usize::from(lanes::byte(at.offset));
                inner.pages.get(page).copied().unwrap_or(0xFF)
            }
            _ => return Err(IoError::NoRegister),
        };
        Ok(u64::from(value))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let value = lanes::byte(value);
        let mut inner = lock(&self.inner);
        match at.region {
            BYTES => inner.bytes.write(at.offset, value),
            WORDS => inner.words.write(at.offset / 2, value),
            PAGES => {
                let page = usize::from(lanes::byte(at.offset));
                if let Some(page) = inner.pages.get_mut(page) {
                    *page = value;
                }
            }
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    let region = REGIONS.get(at.region).ok_or(IoError::NoRegister)?;
    if at.offset >= region.len {
        return Err(IoError::NoRegister);
    }
    if width == Width::Byte {
        Ok(())
    } else {
        Err(IoError::Width)
    }
}

impl Device for Dma8237 {
    fn reset(&mut self, _kind: Reset) {
        let mut inner = lock(&self.inner);
        inner.bytes = Controller::RESET;
        inner.words = Controller::RESET;
        inner.pages = [0; 16];
    }
}

impl Snapshot for Dma8237 {
    type State = Dma8237V1;

    fn save(&self) -> Dma8237V1 {
        let Self { memory: _, inner } = self;
        let inner = lock(inner);
        let Inner { bytes, words, pages } = &*inner;
        Dma8237V1 {
            bytes: bytes.clone(),
            words: words.clone(),
            pages: *pages,
        }
    }

    fn restore(&mut self, state: Dma8237V1) -> Result<(), RestoreError> {
        let Dma8237V1 { bytes, words, pages } = state;
        let mut inner = lock(&self.inner);
        let sound = |mut controller: Controller| {
            controller.mask &= 0x0F;
            controller.terminal &= 0x0F;
            controller.request &= 0x0F;
            controller
        };
        inner.bytes = sound(bytes);
        inner.words = sound(words);
        inner.pages = pages;
        Ok(())
    }
}

impl Inspect for Dma8237 {
    fn inspect(&self) -> Node {
        let inner = lock(&self.inner);
        (0..8).fold(Node::tree(), |tree, number| {
            let controller = inner.controller(number);
            let channel = controller.channel(lanes_of(number));
            let page = PAGE_OF.get(number).and_then(|page| inner.pages.get(*page));
            let node = Node::tree()
                .with("mode", channel.mode.into_bits())
                .with("address", channel.address)
                .with("count", channel.count)
                .with("page", page.copied().unwrap_or(0))
                .with("masked", controller.mask >> (number % 4) & 1 != 0);
            tree.with(&format!("channel{number}"), node)
        })
    }
}

/// Saved state of [`Dma8237`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dma8237V1 {
    bytes: Controller,
    words: Controller,
    pages: [u8; 16],
}

impl Schema for Dma8237V1 {
    const NAME: &'static str = "dma8237";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use device_model::TestClock;
    use guest_memory::Kind;
    use guest_memory::MemoryRegion;
    use proptest::prelude::*;
    use test_kit::contract;
    use test_kit::fuzz_registers;

    use super::*;

    fn chip() -> (Dma8237, Arc<GuestMemory>) {
        let mut memory = GuestMemory::new();
        let ram = MemoryRegion::new("ram", Kind::Ram, 1 << 20).unwrap();
        memory.add(0, Arc::new(ram)).unwrap();
        let memory = Arc::new(memory);
        (Dma8237::new(memory.clone()), memory)
    }

    fn out(chip: &mut Dma8237, region: usize, writes: &[(u64, u64)]) {
        for (offset, value) in writes {
            let at = At {
                region,
                offset: *offset,
            };
            chip.write(at, Width::Byte, *value).unwrap();
        }
    }

    fn input(chip: &mut Dma8237, region: usize, offset: u64) -> u64 {
        chip.read(At { region, offset }, Width::Byte).unwrap()
    }

    /// Channel 2 at 1_2FFEh for four bytes.
    fn program(chip: &mut Dma8237, mode: u64) {
        let writes = [
            (0xC, 0),
            (4, 0xFE),
            (4, 0x2F),
            (5, 3),
            (5, 0),
            (0xB, mode | 2),
            (0xA, 2),
        ];
        out(chip, BYTES, &writes);
        out(chip, PAGES, &[(1, 1)]);
    }

    #[test]
    fn device_s_bytes_reach_memory_until_the_terminal_count() {
        let (mut chip, memory) = chip();
        let channel = chip.channel(2);
        assert!(!channel.is_ready());
        assert_eq!(channel.give(b"lost"), Transferred::default());
        program(&mut chip, 0x44);
        assert_eq!(channel.give(b"ab").bytes, 2);
        let end = channel.give(b"cdef");
        assert_eq!((end.bytes, end.terminal), (2, true));
        assert_eq!(memory.read_obj::<[u8; 5]>(0x1_2FFE).unwrap(), *b"abcd\0");
        assert_eq!(input(&mut chip, BYTES, 8), 4);
        assert_eq!(input(&mut chip, BYTES, 8), 0, "reading clears it");
        assert!(!channel.is_ready(), "masked at the terminal count");
    }

    #[test]
    fn memory_reaches_the_device_and_verify_moves_nothing() {
        let (mut chip, memory) = chip();
        memory.write(0x1_2FFE, b"1234").unwrap();
        let channel = chip.channel(2);
        program(&mut chip, 0x58);
        let mut buffer = [0xEE; 6];
        let done = channel.take(&mut buffer);
        assert_eq!((done.bytes, done.terminal, &buffer), (4, true, b"1234\0\0"));
        // Autoinit: it goes on from the start.
        assert_eq!(channel.take(&mut buffer[..2]).bytes, 2);
        assert_eq!(&buffer[..2], b"12");
        program(&mut chip, 0x40);
        assert!(channel.give(b"wxyz").terminal);
        assert_eq!(memory.read_obj::<[u8; 4]>(0x1_2FFE).unwrap(), *b"1234");
    }

    #[test]
    fn address_wraps_in_its_page_and_may_go_down() {
        let (mut chip, memory) = chip();
        let channel = chip.channel(1);
        out(
            &mut chip,
            BYTES,
            &[(2, 0xFF), (2, 0xFF), (3, 1), (3, 0), (0xB, 0x45), (0xA, 1)],
        );
        out(&mut chip, PAGES, &[(3, 2)]);
        assert!(channel.give(b"xy").terminal);
        assert_eq!(memory.read_obj::<u8>(0x2_FFFF).unwrap(), b'x');
        assert_eq!(memory.read_obj::<u8>(0x2_0000).unwrap(), b'y');
        out(
            &mut chip,
            BYTES,
            &[(2, 1), (2, 0), (3, 1), (3, 0), (0xB, 0x65), (0xA, 1)],
        );
        assert!(channel.give(b"ba").terminal);
        assert_eq!(memory.read_obj::<[u8; 2]>(0x2_0000).unwrap(), *b"ab");
    }

    #[test]
    fn word_channel_counts_words_of_128_kib() {
        let (mut chip, memory) = chip();
        let channel = chip.channel(5);
        out(
            &mut chip,
            WORDS,
            &[(4, 0), (4, 0x80), (6, 1), (6, 0), (0x16, 0x45), (0x14, 1)],
        );
        out(&mut chip, PAGES, &[(0xB, 5)]);
        assert_eq!(channel.give(b"abcde").bytes, 4);
        assert_eq!(memory.read_obj::<[u8; 4]>(0x5_0000).unwrap(), *b"abcd");
    }

    #[test]
    fn registers_read_back_by_halves() {
        let (mut chip, _) = chip();
        program(&mut chip, 0x44);
        out(&mut chip, BYTES, &[(0xC, 0)]);
        assert_eq!([input(&mut chip, BYTES, 4), input(&mut chip, BYTES, 4)], [0xFE, 0x2F]);
        assert_eq!(input(&mut chip, BYTES, 0xF), 0xFB);
        out(&mut chip, BYTES, &[(0xD, 0)]);
        assert_eq!(input(&mut chip, BYTES, 0xF), 0xFF);
        assert_eq!(input(&mut chip, PAGES, 1), 1);
    }

    #[test]
    fn keeps_the_contract() {
        contract(&TestClock::new(), || Box::new(chip().0));
    }

    proptest! {
        #[test]
        fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let (mut chip, _) = chip();
            fuzz_registers(&mut chip, &TestClock::new(), &bytes);
            for number in 0..8 {
                let _ = chip.channel(number).give(&[0; 70_000]);
                let _ = chip.channel(number).take(&mut [0; 70_000]);
            }
        }
    }
}
