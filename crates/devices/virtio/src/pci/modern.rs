//! The structures of the modern interface.
//!
//! Spec: virtio 1.2 §4.1.4.3 (common configuration), §4.1.4.4 (notifications), §4.1.4.5 (ISR).

use device_model::Width;

use super::COMMON;
use super::CONFIG;
use super::ISR;
use super::NO_VECTOR;
use super::NOTIFY;
use super::Pci;
use crate::VirtioDevice;
use crate::mmio::set_half;
use crate::queue::Queue;
use crate::queue::index;
use device_model::bytes::low16;
use device_model::bytes::low32;

/// Bytes of the common configuration.
pub(super) const LEN: u64 = 0x3c;

/// Fields of the common configuration.
mod field {
    pub(super) const OFFERED_HALF: u64 = 0x00;
    pub(super) const TAKEN_HALF: u64 = 0x08;
    pub(super) const TAKEN: u64 = 0x0c;
    pub(super) const CONFIG_VECTOR: u64 = 0x10;
    pub(super) const STATUS: u64 = 0x14;
    pub(super) const QUEUE_SELECT: u64 = 0x16;
    pub(super) const QUEUE_SIZE: u64 = 0x18;
    pub(super) const QUEUE_VECTOR: u64 = 0x1a;
    pub(super) const QUEUE_ENABLE: u64 = 0x1c;
    pub(super) const QUEUE_DESC: u64 = 0x20;
    pub(super) const QUEUE_DRIVER: u64 = 0x28;
    pub(super) const QUEUE_DEVICE: u64 = 0x30;
}

impl<D: VirtioDevice> Pci<D> {
    pub(super) fn read_modern(&mut self, offset: u64, width: Width) -> u64 {
        match offset {
            COMMON..ISR => {
                let image = self.common();
                let from = image.get(index(offset)..).unwrap_or_default();
                let bytes = from.iter().take(index(width.bytes()));
                bytes.rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
            }
            ISR => self.take_isr().into(),
            CONFIG..NOTIFY => crate::core::read_config(&self.core, offset - CONFIG, width),
            _ => 0,
        }
    }

    /// The common configuration as it reads.
    fn common(&self) -> Vec<u8> {
        let state = &self.core.state;
        let queue = self.core.queue();
        let number = |value: Option<u16>| value.unwrap_or(0).to_le_bytes();
        let address = |value: fn(&Queue) -> u64| queue.map_or(0, value).to_le_bytes();
        let vector = self.queue_vectors.get(usize::from(state.selected));
        let count = u16::try_from(state.queues.len()).unwrap_or(u16::MAX);
        [
            state.offered_half.to_le_bytes().as_slice(),
            &self.core.offered_features().to_le_bytes(),
            &state.taken_half.to_le_bytes(),
            &self.core.taken_features().to_le_bytes(),
            &self.config_vector.to_le_bytes(),
            &count.to_le_bytes(),
            &[state.status, state.generation],
            &state.selected.to_le_bytes(),
            &number(queue.map(|queue| queue.size)),
            &vector.copied().unwrap_or(NO_VECTOR).to_le_bytes(),
            &number(queue.map(|queue| queue.ready.into())),
            // Each queue is notified at its own place.
            &number(queue.map(|_| state.selected)),
            &address(|queue| queue.descriptors),
            &address(|queue| queue.available),
            &address(|queue| queue.used),
        ]
        .concat()
    }

    pub(super) fn write_modern(&mut self, offset: u64, width: Width, value: u64) {
        match offset {
            COMMON..ISR => self.write_common(offset, width, value),
            CONFIG..NOTIFY => crate::core::write_config(&mut self.core, offset - CONFIG, width, value),
            // A notification is a reason to look at the queues, as is every write.
            _ => {}
        }
    }

    /// Fields are written whole, those of 64 bits in halves (§4.1.3.1).
    fn write_common(&mut self, offset: u64, width: Width, value: u64) {
        let (word, dword) = (low16(value), low32(value));
        let [byte, ..] = value.to_le_bytes();
        let state = &mut self.core.state;
        match (offset, width) {
            (field::OFFERED_HALF, Width::Dword) => state.offered_half = dword,
            (field::TAKEN_HALF, Width::Dword) => state.taken_half = dword,
            (field::TAKEN, Width::Dword) => self.core.take_features(dword),
            (field::CONFIG_VECTOR, Width::Word) => self.config_vector = self.vector(word),
            (field::STATUS, Width::Byte) => self.write_status(byte),
            (field::QUEUE_SELECT, Width::Word) => state.selected = word,
            (field::QUEUE_SIZE, Width::Word) => self.core.set_queue(|queue| queue.set_size(word.into())),
            (field::QUEUE_VECTOR, Width::Word) => self.set_queue_vector(word),
            (field::QUEUE_ENABLE, Width::Word) if word == 1 => self.enable_queue(),
            (field::QUEUE_DESC.., Width::Dword) => self.core.set_queue(|queue| place(queue, offset, dword)),
            _ => {}
        }
    }

    pub(super) fn set_queue_vector(&mut self, vector: u16) {
        let vector = self.vector(vector);
        let selected = usize::from(self.core.state.selected);
        if let Some(own) = self.queue_vectors.get_mut(selected) {
            *own = vector;
        }
    }
}

/// Takes half an address of a queue.
fn place(queue: &mut Queue, offset: u64, value: u32) {
    let address = match offset & !7 {
        field::QUEUE_DESC => &mut queue.descriptors,
        field::QUEUE_DRIVER => &mut queue.available,
        field::QUEUE_DEVICE => &mut queue.used,
        _ => return,
    };
    if offset.is_multiple_of(4) {
        *address = set_half(*address, offset & 4 != 0, value);
    }
}
