//! The legacy interface of transitional devices: ports, page numbers instead of addresses, features of 32 bits.
//!
//! Spec: virtio 1.2 §4.1.4.10 (registers), §2.7.2 (layout), §3.1.2 (initialization).

use device_model::Width;

use super::Pci;
use crate::VirtioDevice;
use crate::queue::Queue;
use device_model::bytes::low16;
use device_model::bytes::low32;

/// Registers.
mod reg {
    pub(super) const OFFERED: u64 = 0x00;
    pub(super) const TAKEN: u64 = 0x04;
    pub(super) const QUEUE_PAGE: u64 = 0x08;
    pub(super) const QUEUE_SIZE: u64 = 0x0c;
    pub(super) const QUEUE_SELECT: u64 = 0x0e;
    pub(super) const STATUS: u64 = 0x12;
    pub(super) const ISR: u64 = 0x13;
    /// Only while MSI-X is enabled; configuration space begins here otherwise.
    pub(super) const CONFIG_VECTOR: u64 = 0x14;
    pub(super) const QUEUE_VECTOR: u64 = 0x16;
    pub(super) const END: u64 = 0x18;
}

const PAGE: u64 = 4096;

impl<D: VirtioDevice> Pci<D> {
    /// Where configuration space begins.
    fn legacy_config(&self) -> u64 {
        if self.has_msix() { reg::END } else { reg::CONFIG_VECTOR }
    }

    pub(super) fn read_legacy(&mut self, offset: u64, width: Width) -> u64 {
        if let Some(offset) = offset.checked_sub(self.legacy_config()) {
            return crate::core::read_config(&self.core, offset, width);
        }
        let core = &self.core;
        let queue = core.queue();
        let value = match offset {
            reg::OFFERED => core.offered_legacy().into(),
            reg::TAKEN => low32(core.state.taken).into(),
            reg::QUEUE_PAGE => queue
                .filter(|queue| queue.ready)
                .map_or(0, |queue| queue.descriptors / PAGE),
            // The device says how large a queue is.
            reg::QUEUE_SIZE => queue.map_or(0, Queue::max).into(),
            reg::QUEUE_SELECT => core.state.selected.into(),
            reg::STATUS => core.state.status.into(),
            reg::ISR => self.take_isr().into(),
            reg::CONFIG_VECTOR => self.config_vector.into(),
            reg::QUEUE_VECTOR => {
                let vector = self.queue_vectors.get(usize::from(core.state.selected));
                vector.copied().unwrap_or(super::NO_VECTOR).into()
            }
            _ => 0,
        };
        value & width.ones()
    }

    pub(super) fn write_legacy(&mut self, offset: u64, width: Width, value: u64) {
        if let Some(offset) = offset.checked_sub(self.legacy_config()) {
            return crate::core::write_config(&mut self.core, offset, width, value);
        }
        let [byte, ..] = value.to_le_bytes();
        match (offset, width) {
            (reg::TAKEN, Width::Dword) => self.core.take_legacy_features(low32(value)),
            (reg::QUEUE_PAGE, Width::Dword) => self.place_legacy(low32(value)),
            (reg::QUEUE_SELECT, Width::Word) => self.core.state.selected = low16(value),
            (reg::STATUS, Width::Byte) => {
                self.core.use_legacy();
                self.write_status(byte);
            }
            (reg::CONFIG_VECTOR, Width::Word) => self.config_vector = self.vector(low16(value)),
            (reg::QUEUE_VECTOR, Width::Word) => self.set_queue_vector(low16(value)),
            // A notification is a reason to look at the queues, as is every write.
            _ => {}
        }
    }

    /// The selected queue begins at a page, and is enabled by that; page 0 disables it.
    fn place_legacy(&mut self, page: u32) {
        self.core.use_legacy();
        if !self.core.state.legacy {
            return;
        }
        let selected = usize::from(self.core.state.selected);
        let Some(queue) = self.core.state.queues.get_mut(selected) else {
            return;
        };
        *queue = Queue::new(queue.max());
        if page != 0 {
            queue.place_legacy(page);
            self.enable_queue();
        }
    }
}
