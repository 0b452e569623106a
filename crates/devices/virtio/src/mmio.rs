//! virtio over memory-mapped registers: version 2 of the transport, for machines without PCI.
//!
//! There is no legacy interface, no shared memory, no reset of single queues.
//!
//! Spec: virtio 1.2 §4.2.

use std::sync::Arc;

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::Node;
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
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;

use crate::VirtioDevice;
use crate::core::Core;
use crate::core::Notices;
use crate::core::State;
use crate::queue::Queue;

/// Bytes of a device's registers.
pub const LEN: u64 = 0x200;
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
/// QEMU's vendor, which nothing depends on.
const VENDOR: u32 = u32::from_le_bytes(*b"QEMU");
const CONFIG: u64 = 0x100;

/// Registers (§4.2.2).
mod reg {
    pub(super) const MAGIC: u64 = 0x00;
    pub(super) const VERSION: u64 = 0x04;
    pub(super) const DEVICE: u64 = 0x08;
    pub(super) const VENDOR: u64 = 0x0c;
    pub(super) const DEVICE_FEATURES: u64 = 0x10;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(super) const DRIVER_FEATURES: u64 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(super) const QUEUE_SEL: u64 = 0x30;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x34;
    pub(super) const QUEUE_NUM: u64 = 0x38;
    pub(super) const QUEUE_READY: u64 = 0x44;
    pub(super) const QUEUE_NOTIFY: u64 = 0x50;
    pub(super) const INTERRUPT_STATUS: u64 = 0x60;
    pub(super) const INTERRUPT_ACK: u64 = 0x64;
    pub(super) const STATUS: u64 = 0x70;
    pub(super) const QUEUE_DESC: u64 = 0x80;
    pub(super) const QUEUE_DRIVER: u64 = 0x90;
    pub(super) const QUEUE_DEVICE: u64 = 0xa0;
    pub(super) const SHM_LEN: u64 = 0xb0;
    pub(super) const SHM_BASE: u64 = 0xb8;
    pub(super) const CONFIG_GENERATION: u64 = 0xfc;
}

/// Bits of the interrupt status.
const USED: u8 = 1;
const CONFIG_CHANGED: u8 = 2;

const REGIONS: [Region; 1] = [Region {
    name: "virtio",
    space: Space::Mmio,
    len: LEN,
    widths: Widths::UP_TO_DWORD,
}];

/// A device with this transport.
pub struct Mmio<D> {
    // Wiring
    line: IrqLine,
    // State
    core: Core<D>,
    interrupts: u8,
}

impl<D: VirtioDevice> Mmio<D> {
    /// `device`, which interrupts by the level of `line`.
    pub fn new(device: D, line: IrqLine, memory: &Arc<GuestMemory>) -> Self {
        Self {
            line,
            core: Core::new(device, memory),
            interrupts: 0,
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

    fn tell(&mut self, notices: &Notices) {
        if !notices.queues.is_empty() {
            self.interrupts |= USED;
        }
        if notices.config {
            self.interrupts |= CONFIG_CHANGED;
        }
        self.line.set(self.interrupts != 0);
    }

    fn read_register(&self, offset: u64) -> u32 {
        let core = &self.core;
        match offset {
            reg::MAGIC => MAGIC,
            reg::VERSION => VERSION,
            reg::DEVICE => core.device.id().into(),
            reg::VENDOR => VENDOR,
            reg::DEVICE_FEATURES => core.offered_features(),
            reg::QUEUE_NUM_MAX => core.queue().map_or(0, Queue::max).into(),
            reg::QUEUE_READY => core.queue().is_some_and(|queue| queue.ready).into(),
            reg::INTERRUPT_STATUS => self.interrupts.into(),
            reg::STATUS => core.state.status.into(),
            reg::CONFIG_GENERATION => core.state.generation.into(),
            // There is no shared memory: lengths and bases are all ones (§4.2.2).
            reg::SHM_LEN | reg::SHM_BASE | 0xb4 | 0xbc => u32::MAX,
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let core = &mut self.core;
        match offset {
            reg::DEVICE_FEATURES_SEL => core.state.offered_half = value,
            reg::DRIVER_FEATURES => core.take_features(value),
            reg::DRIVER_FEATURES_SEL => core.state.taken_half = value,
            reg::QUEUE_SEL => core.state.selected = u16::try_from(value).unwrap_or(u16::MAX),
            reg::QUEUE_NUM => core.set_queue(|queue| queue.set_size(value)),
            reg::QUEUE_READY => self.write_ready(value),
            reg::INTERRUPT_ACK => {
                let [low, ..] = value.to_le_bytes();
                self.interrupts &= !low;
                self.line.set(self.interrupts != 0);
            }
            reg::STATUS => {
                let [low, ..] = value.to_le_bytes();
                if core.write_status(low) {
                    self.interrupts = 0;
                    self.line.set(false);
                }
            }
            // A notification is a reason to look at the queues, as is every write.
            reg::QUEUE_NOTIFY => {}
            _ => core.set_queue(|queue| place(queue, offset, value)),
        }
    }

    fn write_ready(&mut self, value: u32) {
        if value & 1 == 0 {
            let selected = usize::from(self.core.state.selected);
            if let Some(queue) = self.core.state.queues.get_mut(selected) {
                *queue = Queue::new(queue.max());
            }
        } else if !self.core.enable_queue() {
            self.tell(&Notices {
                config: true,
                ..Notices::default()
            });
        }
    }
}

/// Takes half an address of a queue.
fn place(queue: &mut Queue, offset: u64, value: u32) {
    let address = match offset & !7 {
        reg::QUEUE_DESC => &mut queue.descriptors,
        reg::QUEUE_DRIVER => &mut queue.available,
        reg::QUEUE_DEVICE => &mut queue.used,
        _ => return,
    };
    *address = set_half(*address, offset & 4 != 0, value);
}

/// `old` with one half changed.
pub(crate) fn set_half(old: u64, high: bool, value: u32) -> u64 {
    let low = u64::from(u32::MAX);
    if high {
        old & low | u64::from(value) << 32
    } else {
        old & !low | u64::from(value)
    }
}

/// Whether an access is inside, and of a width that its register has.
fn check(at: At, width: Width) -> Result<(), IoError> {
    let end = at.offset.checked_add(width.bytes()).ok_or(IoError::NoRegister)?;
    if at.region != 0 || end > LEN {
        return Err(IoError::NoRegister);
    }
    let whole = width == Width::Dword && at.offset.is_multiple_of(4);
    let fits = if at.offset >= CONFIG {
        width <= Width::Dword
    } else {
        whole
    };
    if fits { Ok(()) } else { Err(IoError::Width) }
}

impl<D: VirtioDevice> Registers for Mmio<D> {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        match at.offset.checked_sub(CONFIG) {
            Some(offset) => Ok(crate::core::read_config(&self.core, offset, width)),
            None => Ok(self.read_register(at.offset).into()),
        }
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        match at.offset.checked_sub(CONFIG) {
            Some(offset) => crate::core::write_config(&mut self.core, offset, width, value),
            None => self.write_register(at.offset, device_model::bytes::low32(value)),
        }
        Ok(())
    }
}

impl<D: VirtioDevice> Device for Mmio<D> {
    fn reset(&mut self, kind: Reset) {
        self.core.hard_reset(kind);
        self.interrupts = 0;
        self.line.set(false);
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        let (next, notices) = self.core.poll(now);
        self.tell(&notices);
        next
    }

    fn quiesce(&mut self) -> bool {
        let (rest, notices) = self.core.quiesce();
        self.tell(&notices);
        rest
    }
}

impl<D: VirtioDevice> Snapshot for Mmio<D> {
    type State = MmioState<D::State>;

    fn save(&self) -> Self::State {
        let Self {
            line: _,
            core,
            interrupts,
        } = self;
        let (core, device) = core.save();
        MmioState {
            interrupts: *interrupts,
            core,
            device,
        }
    }

    fn restore(&mut self, state: Self::State) -> Result<(), RestoreError> {
        let MmioState {
            interrupts,
            core,
            device,
        } = state;
        if interrupts & !(USED | CONFIG_CHANGED) != 0 {
            return Err(RestoreError::Invalid("interrupts that do not exist".to_owned()));
        }
        self.core.restore(core, device)?;
        self.interrupts = interrupts;
        self.line.set(interrupts != 0);
        Ok(())
    }
}

impl<D: VirtioDevice> Inspect for Mmio<D> {
    fn inspect(&self) -> Node {
        self.core.inspect().with("interrupts", self.interrupts)
    }
}

/// Saved state of [`Mmio`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MmioState<S> {
    interrupts: u8,
    core: State,
    device: S,
}

impl<S: Schema> Schema for MmioState<S> {
    const NAME: &'static str = S::NAME;
    /// The transport and its version are in the upper half.
    const VERSION: u32 = 1 << 16 | S::VERSION;
}

#[cfg(test)]
mod tests;
