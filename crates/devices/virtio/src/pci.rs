//! virtio over PCI: the modern interface in memory, and for types that are older than it the legacy one in ports.
//!
//! ```text
//!   BAR 0  ports    legacy interface, of transitional devices only
//!   BAR 1  memory   MSI-X table
//!   BAR 4  memory   0000h common configuration, 1000h ISR, 2000h device configuration, 3000h notifications
//! ```
//!
//! Everything in BAR 4 can also be reached through configuration space. Without MSI-X the pin follows the ISR. Single
//! queues cannot be reset, and there is no shared memory.
//!
//! Spec: virtio 1.2 §4.1.

mod legacy;
mod modern;

use std::sync::Arc;

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::MsiSink;
use device_model::Node;
use device_model::PciFunction;
use device_model::PciHeader;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Space;
use device_model::VmTime;
use device_model::Width;
use device_model::Widths;
use device_model::pci::Bar;
use device_model::pci::BarKind;
use device_model::pci::command::BUS_MASTER;
use device_model::pci::reg::BAR0;
use device_model::pci::reg::SUBSYSTEM;
use guest_memory::GuestMemory;
use pci::Class;
use pci::Function;
use pci::Interrupter;
use pci::Msix;
use pci::MsixState;
use serde::Deserialize;
use serde::Serialize;

use crate::VirtioDevice;
use crate::core::Core;
use crate::core::Notices;
use crate::core::State;
use crate::id;
use crate::queue::index;

const VENDOR: u16 = 0x1af4;
/// Identifiers of devices without a legacy interface begin here, by type (§4.1.2).
const MODERN: u16 = 0x1040;
/// Vector that means none.
const NO_VECTOR: u16 = 0xffff;
/// Bits of the ISR (§4.1.4.5).
const USED: u8 = 1;
const CONFIG_CHANGED: u8 = 2;

/// Regions that are not the structures in BAR 4, which are the first.
const TABLE: usize = 1;
const PORTS: usize = 2;
/// Bytes of the legacy interface.
const PORTS_LEN: u64 = 0x80;
/// Structures in BAR 4: where they begin, and the bytes of each.
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const STRUCTURE: u64 = 0x1000;
/// Bytes between the places where queues are notified.
const NOTIFY_STRIDE: u64 = 4;

/// Identifier of a vendor-specific capability, and the types of ours (§4.1.4).
const VENDOR_CAPABILITY: u8 = 9;
mod cfg_type {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}

const fn memory(name: &'static str, len: u64, min: Width, max: Width) -> Region {
    let widths = Widths { min, max };
    Region {
        name,
        space: Space::Mmio,
        len,
        widths,
    }
}

const fn regions(table: u64) -> [Region; 3] {
    [
        memory("virtio", 4 * STRUCTURE, Width::Byte, Width::Dword),
        memory("msix", table, Width::Dword, Width::Qword),
        Region {
            name: "legacy",
            space: Space::Pio,
            len: PORTS_LEN,
            widths: Widths::UP_TO_DWORD,
        },
    ]
}

/// Identifier of the transitional device of a type, where there is one, and the class (§4.1.2; PCI Code and ID 1.11).
fn identity(id: u16) -> (Option<u16>, Class) {
    match id {
        id::NET => (Some(0x1000), Class(0x02, 0x00, 0)),
        id::BLOCK => (Some(0x1001), Class(0x01, 0x00, 0)),
        id::BALLOON => (Some(0x1002), Class(0xff, 0x00, 0)),
        id::CONSOLE => (Some(0x1003), Class(0x07, 0x80, 0)),
        id::ENTROPY => (Some(0x1005), Class(0xff, 0x00, 0)),
        id::SCSI => (Some(0x1004), Class(0x01, 0x00, 0)),
        id::NINE_P => (Some(0x1009), Class(0x00, 0x02, 0)),
        id::INPUT => (None, Class(0x09, 0x80, 0)),
        id::VSOCK => (None, Class(0x07, 0x80, 0)),
        id::FS => (None, Class(0x01, 0x80, 0)),
        _ => (None, Class(0xff, 0x00, 0)),
    }
}

/// A device with this transport.
pub struct Pci<D> {
    // Wiring, and state in the header and the table
    interrupter: Interrupter,
    // Configuration
    regions: Vec<Region>,
    /// Where the window into BAR 4 is in configuration space.
    window: u16,
    // State
    header: PciHeader,
    core: Core<D>,
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
}

impl<D: VirtioDevice> Pci<D> {
    /// `device`, which interrupts through `pin` or by messages to `sink`.
    pub fn new(device: D, (pin, sink): (IrqLine, Arc<dyn MsiSink>), memory: &Arc<GuestMemory>) -> Self {
        let (transitional, class) = identity(device.id());
        let number = transitional.unwrap_or(MODERN.saturating_add(device.id()));
        let mut function = Function::new(VENDOR, number, class);
        function.pin = 1;
        function.revision = u8::from(transitional.is_none());
        let mut header = function.header();
        if transitional.is_some() {
            header.fix(SUBSYSTEM + 2, &device.id().to_le_bytes());
        }
        let queues = device.queues().len();
        let vectors = u16::try_from(queues + 1).unwrap_or(u16::MAX);
        let mut regions = regions(Msix::region_len(vectors)).to_vec();
        regions.truncate(if transitional.is_some() { 3 } else { 2 });
        add_bars(&mut header, &regions);
        let msix = Msix::add(&mut header, 1, vectors);
        let window = add_capabilities(&mut header);
        Self {
            interrupter: Interrupter::new(pin, sink).with_msix(msix),
            regions,
            window,
            header,
            core: Core::new(device, memory),
            isr: 0,
            config_vector: NO_VECTOR,
            queue_vectors: vec![NO_VECTOR; queues],
        }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.core.device
    }

    /// The device, for what users do with it.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.core.device
    }

    fn has_msix(&self) -> bool {
        self.interrupter.by_message(&self.header)
    }

    /// A vector that a driver chooses: none if there is no such.
    fn vector(&self, vector: u16) -> u16 {
        if usize::from(vector) <= self.queue_vectors.len() {
            vector
        } else {
            NO_VECTOR
        }
    }

    fn tell(&mut self, notices: &Notices) {
        if self.has_msix() {
            if notices.config {
                self.interrupter.fire(&mut self.header, self.config_vector);
            }
            for queue in &notices.queues {
                let vector = self.queue_vectors.get(usize::from(*queue));
                let vector = vector.copied().unwrap_or(NO_VECTOR);
                self.interrupter.fire(&mut self.header, vector);
            }
            return;
        }
        if !notices.queues.is_empty() {
            self.isr |= USED;
        }
        if notices.config {
            self.isr |= CONFIG_CHANGED;
        }
        self.update_pin();
    }

    fn update_pin(&mut self) {
        self.interrupter.set(&mut self.header, self.isr != 0);
    }

    /// The driver looks at the ISR, which clears it.
    fn take_isr(&mut self) -> u8 {
        let isr = std::mem::take(&mut self.isr);
        self.update_pin();
        isr
    }

    fn write_status(&mut self, value: u8) {
        if self.core.write_status(value) {
            self.forget_interrupts();
        }
    }

    /// As after a reset of the device, which leaves configuration space alone.
    fn forget_interrupts(&mut self) {
        self.isr = 0;
        self.config_vector = NO_VECTOR;
        self.queue_vectors.fill(NO_VECTOR);
        self.update_pin();
    }

    fn enable_queue(&mut self) {
        if !self.core.enable_queue() {
            self.tell(&Notices {
                config: true,
                ..Notices::default()
            });
        }
    }

    /// What the window in configuration space shows at present, if its driver has set it to something (§4.1.4.9).
    fn windowed(&self) -> Option<(At, Width)> {
        let number = u16::from(self.header.byte(self.window + 4));
        let bar = |bar: &&Bar| bar.at == BAR0 + number * 4;
        let region = self.header.bars().iter().find(bar)?.region;
        let offset = self.header.dword(self.window + 8).into();
        let width = Width::from_bytes(self.header.dword(self.window + 12).into())?;
        let aligned = width <= Width::Dword && u64::is_multiple_of(offset, width.bytes());
        (aligned && region != TABLE).then_some((At { region, offset }, width))
    }

    fn touches_window(&self, at: u16, width: Width) -> bool {
        let data = self.window + 16;
        at < data + 4 && u64::from(at) + width.bytes() > data.into()
    }
}

fn add_bars(header: &mut PciHeader, regions: &[Region]) {
    let places = [
        (BAR0 + 16, BarKind::Memory64),
        (BAR0 + 4, BarKind::Memory32),
        (BAR0, BarKind::Io),
    ];
    for ((region, entry), (at, kind)) in regions.iter().enumerate().zip(places) {
        let len = entry.len;
        header.add_bar(Bar { at, kind, len, region });
    }
}

/// Adds the capabilities that say where everything is; returns where the last one is, the window.
fn add_capabilities(header: &mut PciHeader) -> u16 {
    let structures = [
        (cfg_type::COMMON, COMMON, modern::LEN, 16),
        (cfg_type::NOTIFY, NOTIFY, STRUCTURE, 20),
        (cfg_type::ISR, ISR, 1, 16),
        (cfg_type::DEVICE, CONFIG, STRUCTURE, 16),
        (cfg_type::PCI, 0, 0, 20),
    ];
    let mut last = 0;
    for (kind, offset, len, bytes) in structures {
        let Some(at) = header.add_capability(VENDOR_CAPABILITY, bytes) else {
            break;
        };
        // The window's place is the driver's to say.
        let bar = if kind == cfg_type::PCI { 0 } else { 4 };
        header.fix(at + 2, &[bytes, kind, bar]);
        header.fix(at + 8, &device_model::bytes::low32(offset).to_le_bytes());
        header.fix(at + 12, &device_model::bytes::low32(len).to_le_bytes());
        match kind {
            cfg_type::NOTIFY => header.fix(at + 16, &device_model::bytes::low32(NOTIFY_STRIDE).to_le_bytes()),
            cfg_type::PCI => {
                header.allow(at + 4, &[0xff]);
                header.allow(at + 8, &[0xff; 12]);
            }
            _ => {}
        }
        last = at;
    }
    last
}

impl<D: VirtioDevice> Registers for Pci<D> {
    fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        self.check(at, width)?;
        Ok(match at.region {
            TABLE => self.interrupter.read_table(at.offset, width),
            PORTS => self.read_legacy(at.offset, width),
            _ => self.read_modern(at.offset, width),
        })
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        self.check(at, width)?;
        match at.region {
            TABLE => self.interrupter.write_table(&self.header, at.offset, width, value),
            PORTS => self.write_legacy(at.offset, width, value),
            _ => self.write_modern(at.offset, width, value),
        }
        Ok(())
    }
}

impl<D: VirtioDevice> Pci<D> {
    fn check(&self, at: At, width: Width) -> Result<(), IoError> {
        let region = self.regions.get(at.region).ok_or(IoError::NoRegister)?;
        let end = at.offset.checked_add(width.bytes()).ok_or(IoError::NoRegister)?;
        if end > region.len {
            return Err(IoError::NoRegister);
        }
        let fits = width >= region.widths.min && width <= region.widths.max;
        if fits { Ok(()) } else { Err(IoError::Width) }
    }
}

impl<D: VirtioDevice> PciFunction for Pci<D> {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_read(&mut self, at: u16, width: Width) -> u32 {
        if self.touches_window(at, width)
            && let Some((place, wide)) = self.windowed()
        {
            let value = self.read(place, wide).unwrap_or(wide.ones());
            let bytes = value.to_le_bytes();
            let len = index(wide.bytes());
            self.header.put(self.window + 16, bytes.get(..len).unwrap_or_default());
        }
        self.header.read(at, width)
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        self.header.write(at, width, value);
        self.interrupter.written(&mut self.header, at, width);
        if self.touches_window(at, width)
            && let Some((place, wide)) = self.windowed()
        {
            let value = u64::from(self.header.dword(self.window + 16)) & wide.ones();
            // What is not there takes nothing.
            let _ = self.write(place, wide, value);
        }
    }
}

impl<D: VirtioDevice> Device for Pci<D> {
    fn reset(&mut self, kind: Reset) {
        self.header.reset();
        if let Some(msix) = self.interrupter.msix_mut() {
            msix.reset();
        }
        self.core.hard_reset(kind);
        self.forget_interrupts();
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        // Without the bus there is no way to memory.
        if !self.header.commanded(BUS_MASTER) {
            return None;
        }
        let (next, notices) = self.core.poll(now);
        self.tell(&notices);
        next
    }

    fn quiesce(&mut self) -> bool {
        let (rest, notices) = self.core.quiesce();
        self.tell(&notices);
        rest
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl<D: VirtioDevice> Snapshot for Pci<D> {
    type State = PciState<D::State>;

    fn save(&self) -> Self::State {
        let Self {
            interrupter,
            regions: _,
            window: _,
            header,
            core,
            isr,
            config_vector,
            queue_vectors,
        } = self;
        let (core, device) = core.save();
        PciState {
            header: header.save(),
            msix: interrupter.msix().map(Msix::save),
            isr: *isr,
            config_vector: *config_vector,
            queue_vectors: queue_vectors.clone(),
            core,
            device,
        }
    }

    fn restore(&mut self, state: Self::State) -> Result<(), RestoreError> {
        let PciState {
            header,
            msix,
            isr,
            config_vector,
            queue_vectors,
            core,
            device,
        } = state;
        let invalid = || RestoreError::Invalid("virtio interrupts that cannot be".to_owned());
        let known = |vector: &u16| self.vector(*vector) == *vector;
        let sound = isr & !(USED | CONFIG_CHANGED) == 0 && queue_vectors.len() == self.queue_vectors.len();
        if !sound || !known(&config_vector) || !queue_vectors.iter().all(known) {
            return Err(invalid());
        }
        match (self.interrupter.msix_mut(), msix) {
            (Some(own), Some(saved)) => own.restore(&saved)?,
            (None, None) => {}
            _ => return Err(invalid()),
        }
        self.header.restore(&header)?;
        self.core.restore(core, device)?;
        (self.isr, self.config_vector, self.queue_vectors) = (isr, config_vector, queue_vectors);
        self.interrupter.update_pin(&self.header);
        Ok(())
    }
}

impl<D: VirtioDevice> Inspect for Pci<D> {
    fn inspect(&self) -> Node {
        self.core
            .inspect()
            .with("isr", self.isr)
            .with("msix", self.has_msix())
            .with("config_vector", self.config_vector)
    }
}

/// Saved state of [`Pci`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PciState<S> {
    header: Vec<u8>,
    msix: Option<MsixState>,
    isr: u8,
    config_vector: u16,
    queue_vectors: Vec<u16>,
    core: State,
    device: S,
}

impl<S: Schema> Schema for PciState<S> {
    const NAME: &'static str = S::NAME;
    /// The transport and its version are in the upper half.
    const VERSION: u32 = 0x8001 << 16 | S::VERSION;
}

#[cfg(test)]
mod tests;
