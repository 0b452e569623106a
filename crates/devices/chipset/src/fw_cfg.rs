//! QEMU's firmware configuration device (`fw_cfg`): named and numbered blobs for firmware and guests.
//!
//! Selector and data port, the file directory, and the DMA interface with read, write, skip and select. Writing through
//! the data port is not supported, as in QEMU since 2.4; items made writable are written by DMA.
//!
//! Spec: QEMU docs/specs/fw_cfg.rst.

use std::collections::BTreeMap;
use std::sync::Arc;

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

/// Port of the selector; the data port follows it.
pub const SELECTOR_PORT: u64 = 0x510;
/// Port of the DMA address register.
pub const DMA_PORT: u64 = 0x514;

/// Numbers of the items that have no name.
pub mod key {
    /// "QEMU".
    pub const SIGNATURE: u16 = 0x00;
    /// Interfaces that exist, as a bit mask.
    pub const ID: u16 = 0x01;
    /// Machine UUID, 16 bytes.
    pub const UUID: u16 = 0x02;
    /// Bytes of RAM, 64-bit.
    pub const RAM_SIZE: u16 = 0x03;
    /// 1 where there is no screen, 16-bit.
    pub const NOGRAPHIC: u16 = 0x04;
    /// Processors that are online at boot, 16-bit.
    pub const NB_CPUS: u16 = 0x05;
    /// Boot device letter or bitmap, 16-bit.
    pub const BOOT_DEVICE: u16 = 0x0C;
    /// NUMA topology.
    pub const NUMA: u16 = 0x0D;
    /// 1 where firmware shows a boot menu, 16-bit.
    pub const BOOT_MENU: u16 = 0x0E;
    /// Processors there can ever be, 16-bit.
    pub const MAX_CPUS: u16 = 0x0F;
    /// The directory of named items.
    pub const FILE_DIR: u16 = 0x19;
    /// First number given to a named item.
    pub const FILE_FIRST: u16 = 0x20;
    /// Marks items that only one architecture defines.
    pub const ARCH_LOCAL: u16 = 0x8000;
}

/// Bit of the selector that once asked for writing; not part of an item's number.
const WRITE_CHANNEL: u16 = 0x4000;
const NAME_LEN: usize = 56;
/// Named items there can be: numbers below [`WRITE_CHANNEL`].
const MAX_FILES: usize = 0x4000 - 0x20;
const ID_TRADITIONAL: u32 = 1 << 0;
const ID_DMA: u32 = 1 << 1;
/// What the DMA address register reads as.
const DMA_SIGNATURE: [u8; 8] = *b"QEMU CFG";
/// Longest DMA transfer: more than any item, and few enough bytes that the vCPU comes back soon.
const MAX_TRANSFER: u32 = 64 << 20;
const CHUNK: usize = 4096;

const PORTS: usize = 0;
const DMA: usize = 1;

const REGIONS: [Region; 2] = [
    Region {
        name: "ports",
        space: Space::Pio,
        len: 2,
        widths: Widths {
            min: Width::Byte,
            max: Width::Word,
        },
    },
    Region {
        name: "dma",
        space: Space::Pio,
        len: 8,
        widths: Widths::UP_TO_DWORD,
    },
];

/// Control field of a DMA request; big-endian in memory.
#[bitfield(u32)]
struct Control {
    /// Set by the device: it failed.
    error: bool,
    /// Item to memory.
    read: bool,
    /// Move on without copying.
    skip: bool,
    /// Select the item `key` first.
    select: bool,
    /// Memory to item.
    write: bool,
    #[bits(11)]
    __: u16,
    /// Item to select.
    key: u16,
}

/// Why an item was not added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FwCfgError {
    /// A name is too long, empty, or not ASCII.
    #[error("`{0}` is not a name of 1 to 55 ASCII characters")]
    Name(String),
    /// There is an item of this name.
    #[error("there are two items called `{0}`")]
    Twice(String),
    /// No number is left, or the item is longer than the directory can say.
    #[error("no room for `{0}`")]
    Full(String),
}

#[derive(Clone, Debug, Default)]
struct Item {
    bytes: Vec<u8>,
    writable: bool,
}

/// The configuration device.
pub struct FwCfg {
    // Wiring
    memory: Option<Arc<GuestMemory>>,
    // Configuration
    items: BTreeMap<u16, Item>,
    files: BTreeMap<String, u16>,
    // State: the contents of writable items are saved too
    selector: u16,
    position: u32,
    dma_high: u32,
}

impl FwCfg {
    /// A device with no item but its signature. The DMA interface exists where there is `memory` to reach.
    pub fn new(memory: Option<Arc<GuestMemory>>) -> Self {
        let id = ID_TRADITIONAL | if memory.is_some() { ID_DMA } else { 0 };
        let mut this = Self {
            memory,
            items: BTreeMap::new(),
            files: BTreeMap::new(),
            selector: key::SIGNATURE,
            position: 0,
            dma_high: 0,
        };
        this.add_item(key::SIGNATURE, b"QEMU");
        this.add_item(key::ID, id.to_le_bytes());
        this.build_directory();
        this
    }

    /// Adds or replaces the item numbered `number`. Numbers are little-endian by convention.
    pub fn add_item(&mut self, number: u16, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().to_vec();
        let writable = false;
        self.items.insert(number & !WRITE_CHANNEL, Item { bytes, writable });
    }

    /// Adds a named item that guests may read, and returns its number.
    ///
    /// # Errors
    /// [`FwCfgError`] where the name does not fit or is taken, or the directory is full.
    pub fn add_file(&mut self, name: &str, bytes: impl AsRef<[u8]>) -> Result<u16, FwCfgError> {
        self.add_named(name, bytes.as_ref(), false)
    }

    /// Adds a named item that guests may write by DMA, and returns its number.
    ///
    /// # Errors
    /// As [`Self::add_file`].
    pub fn add_writable_file(&mut self, name: &str, bytes: impl AsRef<[u8]>) -> Result<u16, FwCfgError> {
        self.add_named(name, bytes.as_ref(), true)
    }

    /// The contents of a named item now, such as what the guest wrote there.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        let number = self.files.get(name)?;
        self.items.get(number).map(|item| item.bytes.as_slice())
    }

    fn add_named(&mut self, name: &str, bytes: &[u8], writable: bool) -> Result<u16, FwCfgError> {
        if name.is_empty() || name.len() >= NAME_LEN || !name.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(FwCfgError::Name(name.to_owned()));
        }
        if self.files.contains_key(name) {
            return Err(FwCfgError::Twice(name.to_owned()));
        }
        let full = || FwCfgError::Full(name.to_owned());
        if self.files.len() >= MAX_FILES || u32::try_from(bytes.len()).is_err() {
            return Err(full());
        }
        let number = u16::try_from(self.files.len()).map_err(|_| full())? + key::FILE_FIRST;
        let bytes = bytes.to_vec();
        self.items.insert(number, Item { bytes, writable });
        self.files.insert(name.to_owned(), number);
        self.build_directory();
        Ok(number)
    }

    /// The directory: a count, then size, number and name of each file by name, all big-endian.
    fn build_directory(&mut self) {
        let count = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let mut directory = count.to_be_bytes().to_vec();
        for (name, number) in &self.files {
            let len = self.items.get(number).map_or(0, |item| item.bytes.len());
            directory.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
            directory.extend(number.to_be_bytes());
            directory.extend([0; 2]);
            directory.extend(name.bytes().chain(std::iter::repeat(0)).take(NAME_LEN));
        }
        self.add_item(key::FILE_DIR, directory);
    }
}

impl Registers for FwCfg {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        match (at.region, at.offset, width) {
            (PORTS, 0 | 1, Width::Byte) => Ok(u64::from(self.next_byte())),
            (PORTS, 0 | 1, _) => Err(IoError::Width),
            (DMA, 0..8, Width::Byte | Width::Word | Width::Dword) if self.memory.is_some() => {
                let image = u64::from_le_bytes(DMA_SIGNATURE);
                Ok(lanes::extract(image, at.offset, width))
            }
            _ => Err(IoError::NoRegister),
        }
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        match (at.region, at.offset, width) {
            (PORTS, 0, Width::Word) => self.select(lanes::word(value)),
            (PORTS, 0 | 1, Width::Byte) => {}
            (PORTS, _, _) => return Err(IoError::Width),
            (DMA, 0, Width::Dword) if self.memory.is_some() => self.dma_high = lanes::dword(value).swap_bytes(),
            (DMA, 4, Width::Dword) if self.memory.is_some() => {
                let low = lanes::dword(value).swap_bytes();
                let request = u64::from(self.dma_high) << 32 | u64::from(low);
                self.dma_high = 0;
                self.run_dma(request);
            }
            (DMA, _, _) => return Err(IoError::Width),
            _ => return Err(IoError::NoRegister),
        }
        Ok(())
    }
}

impl FwCfg {
    fn select(&mut self, selector: u16) {
        self.selector = selector & !WRITE_CHANNEL;
        self.position = 0;
    }

    /// The rest of the selected item; empty at its end and where there is no item.
    fn rest(&self) -> &[u8] {
        let position = usize::try_from(self.position).unwrap_or(usize::MAX);
        let item = self.items.get(&self.selector);
        item.and_then(|item| item.bytes.get(position..)).unwrap_or(&[])
    }

    fn next_byte(&mut self) -> u8 {
        let Some(byte) = self.rest().first().copied() else {
            return 0;
        };
        self.position = self.position.saturating_add(1);
        byte
    }

    /// Carries out the request at `request`, and reports in its control field.
    fn run_dma(&mut self, request: u64) {
        let Some(memory) = self.memory.clone() else {
            return;
        };
        let mut header = [0; 16];
        let control = if memory.read(request, &mut header).is_ok() {
            let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = header;
            let control = Control::from_bits(u32::from_be_bytes([c0, c1, c2, c3]));
            let len = u32::from_be_bytes([l0, l1, l2, l3]);
            if control.select() {
                self.select(control.key());
            }
            self.transfer(&memory, control, u64::from_be_bytes(address), len)
        } else {
            Err(Failed)
        };
        let result = Control::new().with_error(control.is_err()).into_bits();
        // Where the request itself lies outside memory there is nobody to tell.
        let _ = memory.write(request, &result.to_be_bytes());
    }

    fn transfer(&mut self, memory: &GuestMemory, control: Control, address: u64, len: u32) -> Result<(), Failed> {
        if len > MAX_TRANSFER && (control.read() || control.write()) {
            return Err(Failed);
        }
        if control.read() {
            self.copy_out(memory, address, len)?;
        } else if control.write() {
            self.copy_in(memory, address, len)?;
        } else if control.skip() {
            self.advance(len);
        }
        Ok(())
    }

    /// Moves on, up to the end of the item.
    fn advance(&mut self, len: u32) {
        let rest = u32::try_from(self.rest().len()).unwrap_or(u32::MAX);
        self.position = self.position.saturating_add(len.min(rest));
    }

    /// Item to memory; past its end come zeros.
    fn copy_out(&mut self, memory: &GuestMemory, address: u64, len: u32) -> Result<(), Failed> {
        let len = usize::try_from(len).map_err(|_| Failed)?;
        let rest = self.rest();
        let (data, _) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        memory.write(address, data).map_err(|_| Failed)?;
        let mut done = data.len();
        while done < len {
            let zeros = [0; CHUNK];
            let (chunk, _) = zeros.split_at_checked(len - done).unwrap_or((&zeros, &[]));
            let at = u64::try_from(done).ok().and_then(|done| address.checked_add(done));
            memory.write(at.ok_or(Failed)?, chunk).map_err(|_| Failed)?;
            done += chunk.len();
        }
        self.advance(u32::try_from(len).map_err(|_| Failed)?);
        Ok(())
    }

    /// Memory to item, which keeps its length.
    fn copy_in(&mut self, memory: &GuestMemory, address: u64, len: u32) -> Result<(), Failed> {
        let start = usize::try_from(self.position).map_err(|_| Failed)?;
        let item = self.items.get_mut(&self.selector).filter(|item| item.writable);
        let item = item.ok_or(Failed)?;
        let len_bytes = usize::try_from(len).map_err(|_| Failed)?;
        let end = start.checked_add(len_bytes).ok_or(Failed)?;
        let target = item.bytes.get_mut(start..end).ok_or(Failed)?;
        memory.read(address, target).map_err(|_| Failed)?;
        self.advance(len);
        Ok(())
    }
}

/// A DMA request that could not be carried out.
struct Failed;

impl Device for FwCfg {
    fn reset(&mut self, _kind: Reset) {
        self.select(key::SIGNATURE);
        self.dma_high = 0;
    }
}

impl Snapshot for FwCfg {
    type State = FwCfgV1;

    fn save(&self) -> FwCfgV1 {
        let Self {
            memory: _,
            items,
            files: _,
            selector,
            position,
            dma_high,
        } = self;
        let writable = items.iter().filter(|(_, item)| item.writable);
        FwCfgV1 {
            selector: *selector,
            position: *position,
            dma_high: *dma_high,
            written: writable.map(|(number, item)| (*number, item.bytes.clone())).collect(),
        }
    }

    fn restore(&mut self, state: FwCfgV1) -> Result<(), RestoreError> {
        let FwCfgV1 {
            selector,
            position,
            dma_high,
            written,
        } = state;
        for (number, bytes) in &written {
            let item = self.items.get(number);
            if !item.is_some_and(|item| item.writable && item.bytes.len() == bytes.len()) {
                let why = format!("fw_cfg item {number:#x} does not exist, or is of another size");
                return Err(RestoreError::Invalid(why));
            }
        }
        for (number, bytes) in written {
            if let Some(item) = self.items.get_mut(&number) {
                item.bytes = bytes;
            }
        }
        self.selector = selector & !WRITE_CHANNEL;
        self.position = position;
        self.dma_high = dma_high;
        Ok(())
    }
}

impl Inspect for FwCfg {
    fn inspect(&self) -> Node {
        let mut files = Node::tree();
        for (name, number) in &self.files {
            let len = self.items.get(number).map_or(0, |item| item.bytes.len());
            // A slash would cut the name in two as a path.
            files = files.with(&name.replace('/', "."), u64::try_from(len).unwrap_or(u64::MAX));
        }
        Node::tree()
            .with("selector", self.selector)
            .with("position", self.position)
            .with("files", files)
    }
}

/// Saved state of [`FwCfg`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FwCfgV1 {
    selector: u16,
    position: u32,
    dma_high: u32,
    written: Vec<(u16, Vec<u8>)>,
}

impl Schema for FwCfgV1 {
    const NAME: &'static str = "fw_cfg";
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

    const REQUEST: u64 = 0x1000;

    fn memory() -> Arc<GuestMemory> {
        let mut memory = GuestMemory::new();
        let ram = MemoryRegion::new("ram", Kind::Ram, 0x10000).unwrap();
        memory.add(0, Arc::new(ram)).unwrap();
        Arc::new(memory)
    }

    fn at(region: usize, offset: u64) -> At {
        At { region, offset }
    }

    fn select(device: &mut FwCfg, number: u16) {
        device.write(at(PORTS, 0), Width::Word, u64::from(number)).unwrap();
    }

    fn pull(device: &mut FwCfg, count: usize) -> Vec<u8> {
        (0..count)
            .map(|_| u8::try_from(device.read(at(PORTS, 1), Width::Byte).unwrap()).unwrap())
            .collect()
    }

    fn dma(device: &mut FwCfg, memory: &GuestMemory, control: u32, len: u32, address: u64) -> u32 {
        memory.write(REQUEST, &control.to_be_bytes()).unwrap();
        memory.write(REQUEST + 4, &len.to_be_bytes()).unwrap();
        memory.write(REQUEST + 8, &address.to_be_bytes()).unwrap();
        device.write(at(DMA, 0), Width::Dword, 0).unwrap();
        let low = u64::from(u32::try_from(REQUEST).unwrap().swap_bytes());
        device.write(at(DMA, 4), Width::Dword, low).unwrap();
        u32::from_be(memory.read_obj(REQUEST).unwrap())
    }

    #[test]
    fn signature_and_id_say_what_there_is() {
        let mut device = FwCfg::new(Some(memory()));
        assert_eq!(pull(&mut device, 6), b"QEMU\0\0");
        select(&mut device, key::ID);
        assert_eq!(pull(&mut device, 4), [3, 0, 0, 0]);
        assert_eq!(
            device.read(at(DMA, 0), Width::Dword),
            Ok(u64::from(u32::from_le_bytes(*b"QEMU")))
        );
        let mut plain = FwCfg::new(None);
        select(&mut plain, key::ID);
        assert_eq!(pull(&mut plain, 4), [1, 0, 0, 0]);
        assert_eq!(plain.read(at(DMA, 0), Width::Dword), Err(IoError::NoRegister));
    }

    #[test]
    fn directory_lists_files_by_name() {
        let mut device = FwCfg::new(None);
        device.add_file("opt/z", b"zed").unwrap();
        device.add_file("etc/a", b"long one").unwrap();
        select(&mut device, key::FILE_DIR);
        assert_eq!(pull(&mut device, 4), [0, 0, 0, 2]);
        let first = pull(&mut device, 64);
        assert_eq!(first[..8], [0, 0, 0, 8, 0, 0x21, 0, 0]);
        assert_eq!(&first[8..14], b"etc/a\0");
        let second = pull(&mut device, 64);
        assert_eq!(second[..8], [0, 0, 0, 3, 0, 0x20, 0, 0]);
        select(&mut device, 0x20);
        assert_eq!(pull(&mut device, 4), b"zed\0");
    }

    #[test]
    fn names_are_checked() {
        let mut device = FwCfg::new(None);
        assert!(device.add_file(&"x".repeat(55), []).is_ok());
        assert!(matches!(device.add_file(&"y".repeat(56), []), Err(FwCfgError::Name(_))));
        assert!(matches!(device.add_file("", []), Err(FwCfgError::Name(_))));
        device.add_file("a", []).unwrap();
        assert_eq!(device.add_file("a", []), Err(FwCfgError::Twice("a".into())));
    }

    #[test]
    fn dma_read_selects_copies_and_pads_with_zeros() {
        let memory = memory();
        let mut device = FwCfg::new(Some(memory.clone()));
        let number = device.add_file("f", b"abcdef").unwrap();
        memory.write(0x2000, &[0xFF; 16]).unwrap();
        let select_read = u32::from(number) << 16 | 0xA;
        assert_eq!(dma(&mut device, &memory, select_read, 4, 0x2000), 0);
        assert_eq!(memory.read_obj::<[u8; 6]>(0x2000).unwrap(), *b"abcd\xFF\xFF");
        assert_eq!(dma(&mut device, &memory, 0x4, 1, 0), 0);
        assert_eq!(dma(&mut device, &memory, 0x2, 3, 0x2000), 0);
        assert_eq!(memory.read_obj::<[u8; 4]>(0x2000).unwrap(), *b"f\0\0d");
    }

    #[test]
    fn dma_outside_memory_sets_error() {
        let memory = memory();
        let mut device = FwCfg::new(Some(memory.clone()));
        let number = device.add_file("f", [1; 64]).unwrap();
        let select_read = u32::from(number) << 16 | 0xA;
        assert_eq!(dma(&mut device, &memory, select_read, 64, 0xFFF0), 1);
        assert_eq!(dma(&mut device, &memory, select_read, u32::MAX, 0x2000), 1);
        assert_eq!(dma(&mut device, &memory, 0x2, 64, u64::MAX - 8), 1);
        // A request nowhere in memory changes nothing.
        device.write(at(DMA, 0), Width::Dword, u64::from(u32::MAX)).unwrap();
        device.write(at(DMA, 4), Width::Dword, u64::from(u32::MAX)).unwrap();
        assert_eq!(dma(&mut device, &memory, select_read, 1, 0x2000), 0);
    }

    #[test]
    fn dma_writes_writable_items_only() {
        let memory = memory();
        let mut device = FwCfg::new(Some(memory.clone()));
        let fixed = device.add_file("fixed", b"....").unwrap();
        let note = device.add_writable_file("note", b"....").unwrap();
        memory.write(0x2000, b"abcdef").unwrap();
        assert_eq!(dma(&mut device, &memory, u32::from(fixed) << 16 | 0x18, 2, 0x2000), 1);
        assert_eq!(dma(&mut device, &memory, u32::from(note) << 16 | 0x18, 2, 0x2000), 0);
        assert_eq!(dma(&mut device, &memory, 0x10, 3, 0x2000), 1);
        assert_eq!(device.file("note"), Some(&b"ab.."[..]));
        assert_eq!(device.file("fixed"), Some(&b"...."[..]));
        let mut other = FwCfg::new(Some(memory));
        other.add_file("fixed", b"....").unwrap();
        other.add_writable_file("note", b"    ").unwrap();
        other.restore(device.save()).unwrap();
        assert_eq!(other.file("note"), Some(&b"ab.."[..]));
    }

    #[test]
    fn restore_of_an_unknown_item_is_refused() {
        let mut device = FwCfg::new(None);
        let mut state = device.save();
        state.written.push((0x77, vec![1]));
        assert!(device.restore(state).is_err());
    }

    fn boxed() -> Box<FwCfg> {
        let mut device = FwCfg::new(Some(memory()));
        device.add_item(key::NB_CPUS, 2u16.to_le_bytes());
        device.add_file("etc/fixed", [1; 100]).unwrap();
        device.add_writable_file("etc/note", [2; 20]).unwrap();
        Box::new(device)
    }

    #[test]
    fn keeps_the_contract() {
        let clock = TestClock::new();
        contract(&clock, boxed);
    }

    proptest! {
        #[test]
        fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let clock = TestClock::new();
            fuzz_registers(&mut *boxed(), &clock, &bytes);
        }
    }
}
