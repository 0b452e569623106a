//! The driver's side of virtio: rings in guest memory, and what a driver does over each interface.
//!
//! Rings are written as the specification says, or by hand, where a test wants them to be wrong.
//!
//! Spec: virtio 1.2 §2.7 (split virtqueues), §3.1 (initialization), §4.1.4.3 (PCI), §4.1.4.10 (legacy), §4.2.2 (registers).

use std::sync::Arc;

use device_model::At;
use device_model::Device;
use device_model::VmTime;
use device_model::Width;
use guest_memory::GuestMemory;

/// Descriptor flags.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;
/// Events by index.
pub const EVENT_IDX: u64 = 1 << 29;

/// A split ring whose areas begin at a page and are laid out as the legacy interface wants them.
pub struct Ring {
    memory: Arc<GuestMemory>,
    base: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    taken: u16,
}

impl Ring {
    /// An empty ring of `size` entries at `base`, a multiple of 4096.
    #[must_use]
    pub fn new(memory: &Arc<GuestMemory>, base: u64, size: u16) -> Self {
        Self {
            memory: Arc::clone(memory),
            base,
            size,
            next_descriptor: 0,
            available: 0,
            taken: 0,
        }
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where descriptors, available ring and used ring are.
    #[must_use]
    pub fn areas(&self) -> [u64; 3] {
        let available = self.base + u64::from(self.size) * 16;
        let used = (available + 6 + u64::from(self.size) * 2).next_multiple_of(4096);
        [self.base, available, used]
    }

    /// Writes descriptor `number`.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn describe(&self, number: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + u64::from(number) * 16;
        put_descriptor(&self.memory, at, address, len, flags, next);
    }

    /// Makes the chain that begins at descriptor `head` available.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn publish(&mut self, head: u16) {
        let available = self.areas()[1];
        let slot = u64::from(self.available % self.size);
        self.memory.store_u16(available + 4 + slot * 2, head).unwrap();
        self.available = self.available.wrapping_add(1);
        self.set_available(self.available);
    }

    /// Writes the available index.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn set_available(&mut self, index: u16) {
        self.memory.store_u16(self.areas()[1] + 2, index).unwrap();
    }

    /// Makes buffers available: addresses and lengths of what the device reads and of what it writes. Returns the head.
    pub fn offer(&mut self, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let head = self.next_descriptor;
        let buffers = buffers(readable, writable);
        let count = buffers.len();
        for (index, ((address, len), flags)) in buffers.into_iter().enumerate() {
            let number = self.next_descriptor;
            self.next_descriptor = (number + 1) % self.size;
            let flags = if index + 1 < count { flags | NEXT } else { flags };
            self.describe(number, address, len, flags, self.next_descriptor);
        }
        self.publish(head);
        head
    }

    /// As [`Self::offer`], with a table at `table`.
    pub fn offer_indirect(&mut self, table: u64, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let buffers = buffers(readable, writable);
        let count = buffers.len();
        for (index, ((address, len), flags)) in (0u16..).zip(buffers) {
            let last = usize::from(index) + 1 == count;
            let flags = if last { flags } else { flags | NEXT };
            let at = table + u64::from(index) * 16;
            put_descriptor(&self.memory, at, address, len, flags, index + 1);
        }
        let head = self.next_descriptor;
        self.next_descriptor = (head + 1) % self.size;
        self.describe(head, table, count as u32 * 16, INDIRECT, 0);
        self.publish(head);
        head
    }

    /// The next chain that the device has given back: its head, and the bytes that were written.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn used(&mut self) -> Option<(u16, u32)> {
        let used = self.areas()[2];
        if self.memory.load_u16(used + 2).unwrap() == self.taken {
            return None;
        }
        let slot = u64::from(self.taken % self.size);
        self.taken = self.taken.wrapping_add(1);
        let [head, len]: [u32; 2] = self.memory.read_obj(used + 4 + slot * 8).unwrap();
        Some((head as u16, len))
    }

    /// Asks for interrupts or not, without event indexes.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn suppress(&self, on: bool) {
        self.memory.store_u16(self.areas()[1], on.into()).unwrap();
    }

    /// Asks for an interrupt when the used index goes past `index`.
    ///
    /// # Panics
    /// When there is no memory.
    pub fn set_used_event(&self, index: u16) {
        let at = self.areas()[1] + 4 + u64::from(self.size) * 2;
        self.memory.store_u16(at, index).unwrap();
    }

    /// What the device wants to be told of: the available index.
    ///
    /// # Panics
    /// When there is no memory.
    #[must_use]
    pub fn available_event(&self) -> u16 {
        let at = self.areas()[2] + 4 + u64::from(self.size) * 8;
        self.memory.load_u16(at).unwrap()
    }
}

fn buffers(readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Vec<((u64, u32), u16)> {
    let readable = readable.iter().map(|buffer| (*buffer, 0));
    readable.chain(writable.iter().map(|buffer| (*buffer, WRITE))).collect()
}

/// Writes a descriptor anywhere.
///
/// # Panics
/// When there is no memory.
pub fn put_descriptor(memory: &GuestMemory, at: u64, address: u64, len: u32, flags: u16, next: u16) {
    memory.write_obj(at, &address).unwrap();
    memory.write_obj(at + 8, &len).unwrap();
    memory.write_obj(at + 12, &[flags, next]).unwrap();
}

/// How the driver reaches the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Memory-mapped registers.
    Mmio,
    /// The modern interface over PCI: region 0.
    Pci,
    /// The legacy interface over PCI: region 2.
    Legacy,
}

/// Status bits.
const ACKNOWLEDGE_AND_DRIVER: u64 = 3;
const DRIVER_OK: u64 = 4;
const FEATURES_OK: u64 = 8;
const NEEDS_RESET: u64 = 64;

impl Link {
    fn region(self) -> usize {
        match self {
            Self::Mmio | Self::Pci => 0,
            Self::Legacy => 2,
        }
    }

    /// Writes a register, and lets the device do what that made due.
    ///
    /// # Panics
    /// When there is no such register.
    pub fn write(self, device: &mut dyn Device, offset: u64, width: Width, value: u64) {
        let at = At {
            region: self.region(),
            offset,
        };
        device.write(at, width, value).unwrap();
        device.poll(VmTime::ZERO);
    }

    /// Reads a register.
    ///
    /// # Panics
    /// When there is no such register.
    pub fn read(self, device: &mut dyn Device, offset: u64, width: Width) -> u64 {
        let at = At {
            region: self.region(),
            offset,
        };
        device.read(at, width).unwrap()
    }

    /// Offset and width of the status.
    fn status_register(self) -> (u64, Width) {
        match self {
            Self::Mmio => (0x70, Width::Dword),
            Self::Pci => (0x14, Width::Byte),
            Self::Legacy => (0x12, Width::Byte),
        }
    }

    /// Writes the status.
    pub fn set_status(self, device: &mut dyn Device, status: u64) {
        let (offset, width) = self.status_register();
        self.write(device, offset, width, status);
    }

    /// The status.
    pub fn status(self, device: &mut dyn Device) -> u64 {
        let (offset, width) = self.status_register();
        self.read(device, offset, width)
    }

    /// Whether the device asks for a reset.
    pub fn is_broken(self, device: &mut dyn Device) -> bool {
        self.status(device) & NEEDS_RESET != 0
    }

    /// Resets the device and takes those of `wanted` features that it offers; returns them.
    ///
    /// # Panics
    /// When the device does not agree.
    pub fn negotiate(self, device: &mut dyn Device, wanted: u64) -> u64 {
        if let Some(function) = device.as_pci() {
            // Ports, memory, bus master.
            function.config_write(4, Width::Word, 7);
        }
        self.set_status(device, 0);
        assert_eq!(self.status(device), 0);
        self.set_status(device, ACKNOWLEDGE_AND_DRIVER);
        let taken = self.offered(device) & wanted;
        self.take(device, taken);
        if self != Self::Legacy {
            self.set_status(device, ACKNOWLEDGE_AND_DRIVER | FEATURES_OK);
            assert_eq!(self.status(device) & FEATURES_OK, FEATURES_OK);
        }
        taken
    }

    /// The features that the device offers.
    pub fn offered(self, device: &mut dyn Device) -> u64 {
        let (select, features) = match self {
            Self::Mmio => (0x14, 0x10),
            Self::Pci => (0, 4),
            Self::Legacy => return self.read(device, 0, Width::Dword),
        };
        (0..2).fold(0, |all, half| {
            self.write(device, select, Width::Dword, half);
            all | self.read(device, features, Width::Dword) << (half * 32)
        })
    }

    /// Takes features.
    pub fn take(self, device: &mut dyn Device, features: u64) {
        let (select, taken) = match self {
            Self::Mmio => (0x24, 0x20),
            Self::Pci => (8, 12),
            Self::Legacy => return self.write(device, 4, Width::Dword, features),
        };
        for half in 0..2 {
            self.write(device, select, Width::Dword, half);
            self.write(device, taken, Width::Dword, features >> (half * 32) & 0xffff_ffff);
        }
    }

    /// The most entries of a queue; zero where there is none.
    pub fn queue_size(self, device: &mut dyn Device, queue: u16) -> u16 {
        self.select(device, queue);
        let size = match self {
            Self::Mmio => self.read(device, 0x34, Width::Dword),
            Self::Pci => self.read(device, 0x18, Width::Word),
            Self::Legacy => self.read(device, 0x0c, Width::Word),
        };
        size as u16
    }

    fn select(self, device: &mut dyn Device, queue: u16) {
        let (offset, width) = match self {
            Self::Mmio => (0x30, Width::Dword),
            Self::Pci => (0x16, Width::Word),
            Self::Legacy => (0x0e, Width::Word),
        };
        self.write(device, offset, width, queue.into());
    }

    /// Enables a queue. Over PCI its vector is its number plus one.
    pub fn enable(self, device: &mut dyn Device, queue: u16, ring: &Ring) {
        self.select(device, queue);
        match self {
            Self::Mmio => {
                self.write(device, 0x38, Width::Dword, ring.size.into());
                for (offset, address) in [0x80, 0x90, 0xa0].into_iter().zip(ring.areas()) {
                    self.write(device, offset, Width::Dword, address & 0xffff_ffff);
                    self.write(device, offset + 4, Width::Dword, address >> 32);
                }
                self.write(device, 0x44, Width::Dword, 1);
            }
            Self::Pci => {
                self.write(device, 0x18, Width::Word, ring.size.into());
                for (offset, address) in [0x20, 0x28, 0x30].into_iter().zip(ring.areas()) {
                    self.write(device, offset, Width::Dword, address & 0xffff_ffff);
                    self.write(device, offset + 4, Width::Dword, address >> 32);
                }
                self.write(device, 0x1a, Width::Word, u64::from(queue) + 1);
                self.write(device, 0x1c, Width::Word, 1);
            }
            Self::Legacy => self.write(device, 0x08, Width::Dword, ring.base / 4096),
        }
    }

    /// The driver is up.
    pub fn go(self, device: &mut dyn Device) {
        let status = self.status(device);
        self.set_status(device, status | DRIVER_OK);
    }

    /// Tells the device to look at a queue.
    pub fn notify(self, device: &mut dyn Device, queue: u16) {
        match self {
            Self::Mmio => self.write(device, 0x50, Width::Dword, queue.into()),
            Self::Pci => self.write(device, 0x3000 + u64::from(queue) * 4, Width::Word, queue.into()),
            Self::Legacy => self.write(device, 0x10, Width::Word, queue.into()),
        }
    }

    /// Where configuration space begins; without MSI-X over the legacy interface.
    #[must_use]
    pub fn config(self) -> u64 {
        match self {
            Self::Mmio => 0x100,
            Self::Pci => 0x2000,
            Self::Legacy => 0x14,
        }
    }

    /// Reads and clears what the device has interrupted for.
    pub fn take_interrupts(self, device: &mut dyn Device) -> u64 {
        match self {
            Self::Mmio => {
                let status = self.read(device, 0x60, Width::Dword);
                self.write(device, 0x64, Width::Dword, status);
                status
            }
            Self::Pci => self.read(device, 0x1000, Width::Byte),
            Self::Legacy => self.read(device, 0x13, Width::Byte),
        }
    }
}
