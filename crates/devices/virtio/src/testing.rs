//! A device with a driver, for tests.

use std::sync::Arc;

use device_model::Device;
use device_model::VmTime;
use device_model::Width;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use test_kit::IrqProbe;
use test_kit::virtio::Link;
use test_kit::virtio::Ring;

use crate::Mmio;
use crate::Pci;
use crate::VirtioDevice;

/// Rings begin here, each in 4000h bytes; tests have the memory below it.
pub(crate) const RINGS: u64 = 0x10_0000;
/// Entries of each ring.
pub(crate) const ENTRIES: u16 = 64;

pub(crate) fn memory() -> Arc<GuestMemory> {
    let mut memory = GuestMemory::new();
    let region = MemoryRegion::new("ram", Kind::Ram, 2 << 20).unwrap();
    memory.add(0, Arc::new(region)).unwrap();
    Arc::new(memory)
}

pub(crate) struct Bench {
    pub(crate) link: Link,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) device: Box<dyn Device>,
    pub(crate) rings: Vec<Ring>,
    pub(crate) probe: Arc<IrqProbe>,
}

impl Bench {
    pub(crate) fn new<D: VirtioDevice + 'static>(link: Link, device: D) -> Self {
        Self::with(link, &memory(), device)
    }

    pub(crate) fn with<D: VirtioDevice + 'static>(link: Link, memory: &Arc<GuestMemory>, device: D) -> Self {
        let (probe, queues) = (IrqProbe::new(), device.queues());
        let device: Box<dyn Device> = match link {
            Link::Mmio => Box::new(Mmio::new(device, probe.line(0), memory)),
            _ => Box::new(Pci::new(device, (probe.line(0), probe.clone() as _), memory)),
        };
        let ring = |(at, max): (u64, u16)| {
            // The legacy interface leaves no choice.
            let size = if link == Link::Legacy { max } else { max.min(ENTRIES) };
            Ring::new(memory, at, size)
        };
        let rings = (RINGS..).step_by(0x4000).zip(queues).map(ring).collect();
        Self {
            link,
            memory: Arc::clone(memory),
            device,
            rings,
            probe,
        }
    }

    /// Brings the driver up with those of `wanted` features that there are; returns them.
    pub(crate) fn start(&mut self, wanted: u64) -> u64 {
        let taken = self.link.negotiate(&mut *self.device, wanted);
        for (number, ring) in (0..).zip(&self.rings) {
            self.link.enable(&mut *self.device, number, ring);
        }
        self.link.go(&mut *self.device);
        taken
    }

    /// Offers buffers and tells of them.
    pub(crate) fn offer(&mut self, queue: u16, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let head = self.rings[usize::from(queue)].offer(readable, writable);
        self.notify(queue);
        head
    }

    pub(crate) fn notify(&mut self, queue: u16) {
        self.link.notify(&mut *self.device, queue);
    }

    pub(crate) fn poll(&mut self) {
        self.device.poll(VmTime::ZERO);
    }

    pub(crate) fn used(&mut self, queue: u16) -> Option<(u16, u32)> {
        self.rings[usize::from(queue)].used()
    }

    pub(crate) fn is_broken(&mut self) -> bool {
        self.link.is_broken(&mut *self.device)
    }

    /// Whether the pin was raised since this was last asked.
    pub(crate) fn is_interrupted(&mut self) -> bool {
        let asked = self.probe.level(0);
        let told = self.link.take_interrupts(&mut *self.device);
        assert_eq!(asked, told != 0);
        assert!(!self.probe.level(0));
        asked
    }

    pub(crate) fn config(&mut self, offset: u64, width: Width) -> u64 {
        let at = self.link.config() + offset;
        self.link.read(&mut *self.device, at, width)
    }
}
