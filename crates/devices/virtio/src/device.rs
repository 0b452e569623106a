//! What a virtio device is, apart from how a driver reaches it.

use std::sync::Arc;

use device_model::Inspect;
use device_model::Snapshot;
use device_model::VmTime;
use guest_memory::GuestMemory;

use crate::queue::Chain;
use crate::queue::Queue;
use crate::queue::RingError;

/// Feature bits that do not belong to a type of device (virtio 1.2 §6, §6.3).
pub mod feature {
    /// Descriptors may be laid out in any way: what later drivers take for granted.
    pub const ANY_LAYOUT: u64 = 1 << 27;
    /// Descriptors may be in tables of their own.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Each side says how far the other may go before it tells.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// The interface is that of virtio 1.0 and later.
    pub const VERSION_1: u64 = 1 << 32;
}

/// Device types (virtio 1.2 §5).
pub mod id {
    /// Network card.
    pub const NET: u16 = 1;
    /// Block device.
    pub const BLOCK: u16 = 2;
    /// Console.
    pub const CONSOLE: u16 = 3;
    /// Entropy source.
    pub const ENTROPY: u16 = 4;
    /// Traditional memory balloon.
    pub const BALLOON: u16 = 5;
    /// SCSI host.
    pub const SCSI: u16 = 8;
    /// 9P transport.
    pub const NINE_P: u16 = 9;
    /// Input device.
    pub const INPUT: u16 = 18;
    /// Socket device.
    pub const VSOCK: u16 = 19;
    /// File system device.
    pub const FS: u16 = 26;
}

/// A type of device behind a transport.
///
/// Called by the transport under the device's lock. Queues are looked at in `poll` only, which comes after every register
/// write and whenever the device has asked for it, but only while the driver is up and has not broken its rings.
pub trait VirtioDevice: Snapshot + Inspect + Send {
    /// Its type, of [`id`].
    fn id(&self) -> u16;

    /// Features of its type that it offers.
    fn features(&self) -> u64;

    /// The most entries of each queue; constant.
    fn queues(&self) -> Vec<u16>;

    /// Its configuration space, of constant length.
    fn config(&self) -> Vec<u8>;

    /// The driver writes configuration space. What is read-only stays.
    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let _ = (offset, bytes);
    }

    /// The driver is up, and has taken `features`.
    fn activate(&mut self, features: u64);

    /// Does what the queues ask for, and what is due; returns when to be called next.
    fn poll(&mut self, now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime>;

    /// Starts no more host work, and takes what is done into the queues; true when none is in flight. There are no queues
    /// while the driver is not up.
    fn quiesce(&mut self, rings: Option<&mut Rings<'_>>) -> bool {
        let _ = rings;
        true
    }

    /// Forgets everything that the driver has asked for.
    fn reset(&mut self);

    /// The power goes, after a reset: what outlives that is lost.
    fn power_off(&mut self) {}
}

/// The queues of a device whose driver is up.
pub struct Rings<'a> {
    pub(crate) memory: &'a Arc<GuestMemory>,
    pub(crate) features: u64,
    pub(crate) queues: &'a mut [Queue],
    /// What the driver has done that it may not.
    pub(crate) broken: Option<RingError>,
    pub(crate) config_changed: bool,
    /// Chains that may still be taken before the rest of the machine gets its turn.
    pub(crate) budget: u32,
}

impl Rings<'_> {
    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.memory
    }

    /// What driver and device agreed upon.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether the driver has enabled a queue.
    #[must_use]
    pub fn is_ready(&self, queue: usize) -> bool {
        self.queues.get(queue).is_some_and(|queue| queue.ready)
    }

    /// The next buffers of a queue; none where there are none, after the driver has broken a ring, and when this poll has
    /// taken so many that the next one is to go on.
    pub fn pop(&mut self, queue: usize) -> Option<Chain> {
        if self.broken.is_some() || self.budget == 0 {
            return None;
        }
        match self.queues.get_mut(queue)?.pop(self.memory, self.features) {
            Ok(chain) => {
                self.budget -= u32::from(chain.is_some());
                chain
            }
            Err(error) => {
                self.broken = Some(error);
                None
            }
        }
    }

    /// Whether this poll has taken so many buffers that the next one is to go on, or the driver has broken a ring: a queue that
    /// seems empty need not be.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.broken.is_some() || self.budget == 0
    }

    /// Gives buffers back, `len` bytes of which were written. The driver is interrupted after the poll, if it wants to be.
    pub fn push(&mut self, queue: usize, head: u16, len: u32) {
        self.push_all(queue, &[(head, len)]);
    }

    /// As [`Self::push`], for several that belong together: the driver sees all of them or none.
    pub fn push_all(&mut self, queue: usize, chains: &[(u16, u32)]) {
        if self.broken.is_some() {
            return;
        }
        let pushed = self.queues.get_mut(queue).map(|queue| queue.push(self.memory, chains));
        if let Some(Err(error)) = pushed {
            self.broken = Some(error);
        }
    }

    /// The driver did what it may not: the device asks for a reset and does nothing until then.
    pub fn fail(&mut self, error: RingError) {
        self.broken.get_or_insert(error);
    }

    /// Takes the result of an access to a chain; none when that failed, and with it the device.
    pub fn check<T>(&mut self, result: Result<T, RingError>) -> Option<T> {
        result.map_err(|error| self.fail(error)).ok()
    }

    /// Tells the driver that configuration space has changed.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }
}
