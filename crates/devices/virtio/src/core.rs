//! What both transports have in common: the device's status, the agreement on features, the queues.
//!
//! Spec: virtio 1.2 §2.1 (status), §2.2 (features), §2.5 (configuration space), §3.1 (initialization).

use std::sync::Arc;

use device_model::Node;
use device_model::Reset;
use device_model::RestoreError;
use device_model::VmTime;
use device_model::Width;
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;

use crate::Rings;
use crate::VirtioDevice;
use crate::device::feature;
use crate::queue::Queue;
use crate::queue::RingError;

/// Bits of the status (§2.1).
pub(crate) mod status {
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 64;
}

/// Features of every device of ours.
const COMMON: u64 = feature::INDIRECT_DESC | feature::EVENT_IDX;
/// Chains that one poll takes at most: a driver may add more for as long as they are taken.
const BUDGET: u32 = 1024;
/// Broken devices that are told of; a guest may break any number.
const TOLD: u32 = 5;

/// What a driver is to be told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Notices {
    /// Queues in which something was given back.
    pub(crate) queues: Vec<u16>,
    /// Configuration space has changed, or the device is broken.
    pub(crate) config: bool,
}

/// State of a transport's common part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) status: u8,
    /// The driver uses the legacy interface.
    pub(crate) legacy: bool,
    /// Which halves of the features are seen.
    pub(crate) offered_half: u32,
    pub(crate) taken_half: u32,
    /// Features that the driver takes.
    pub(crate) taken: u64,
    pub(crate) selected: u16,
    /// Changes of configuration space, modulo 256.
    pub(crate) generation: u8,
    pub(crate) queues: Vec<Queue>,
}

impl State {
    fn new(sizes: &[u16]) -> Self {
        Self {
            status: 0,
            legacy: false,
            offered_half: 0,
            taken_half: 0,
            taken: 0,
            selected: 0,
            generation: 0,
            queues: sizes.iter().copied().map(Queue::new).collect(),
        }
    }
}

/// A device with its status and queues.
pub(crate) struct Core<D> {
    // Wiring
    pub(crate) device: D,
    memory: Arc<GuestMemory>,
    // Configuration
    sizes: Vec<u16>,
    // State
    pub(crate) state: State,
    // Derived
    told: u32,
}

impl<D: VirtioDevice> Core<D> {
    pub(crate) fn new(device: D, memory: &Arc<GuestMemory>) -> Self {
        let sizes = device.queues();
        Self {
            device,
            memory: Arc::clone(memory),
            state: State::new(&sizes),
            sizes,
            told: 0,
        }
    }

    /// Everything as after power-on.
    pub(crate) fn reset(&mut self) {
        self.device.reset();
        self.state = State::new(&self.sizes);
    }

    /// What the machine's reset does.
    pub(crate) fn hard_reset(&mut self, kind: Reset) {
        self.reset();
        if kind == Reset::Cold {
            self.device.power_off();
        }
    }

    /// The features that are offered in the interface that the driver uses.
    fn offered(&self, legacy: bool) -> u64 {
        let own = self.device.features() | COMMON;
        if legacy {
            own & u64::from(u32::MAX) | feature::ANY_LAYOUT
        } else {
            own | feature::VERSION_1
        }
    }

    /// The selected half of the features that are offered.
    pub(crate) fn offered_features(&self) -> u32 {
        half(self.offered(false), self.state.offered_half)
    }

    /// The features that the legacy interface offers.
    pub(crate) fn offered_legacy(&self) -> u32 {
        half(self.offered(true), 0)
    }

    /// The selected half of the features that the driver takes.
    pub(crate) fn taken_features(&self) -> u32 {
        half(self.state.taken, self.state.taken_half)
    }

    pub(crate) fn take_features(&mut self, value: u32) {
        if self.state.status & (status::FEATURES_OK | status::DRIVER_OK) != 0 {
            return;
        }
        let taken = self.state.taken;
        self.state.taken = match self.state.taken_half {
            0 => taken & !u64::from(u32::MAX) | u64::from(value),
            1 => taken & u64::from(u32::MAX) | u64::from(value) << 32,
            _ => taken,
        };
    }

    /// The legacy driver takes features: those that there are.
    pub(crate) fn take_legacy_features(&mut self, value: u32) {
        self.use_legacy();
        if self.state.status & status::DRIVER_OK == 0 {
            self.state.taken = u64::from(value) & self.offered(true);
        }
    }

    /// What only the legacy interface has was used.
    pub(crate) fn use_legacy(&mut self) {
        if self.state.status & (status::FEATURES_OK | status::DRIVER_OK) == 0 {
            self.state.legacy = true;
        }
    }

    /// The driver writes the status. Returns whether that was a reset.
    pub(crate) fn write_status(&mut self, value: u8) -> bool {
        if value == 0 {
            self.reset();
            return true;
        }
        let mut new = self.state.status | value & !status::NEEDS_RESET;
        let rises = new & !self.state.status;
        if rises & status::FEATURES_OK != 0 && !self.agrees() {
            new &= !status::FEATURES_OK;
        }
        // Without an agreement the device does not go on (§3.1.1); legacy drivers make none.
        if new & status::FEATURES_OK == 0 && !self.state.legacy {
            new &= !status::DRIVER_OK;
        }
        self.state.status = new;
        if rises & new & status::DRIVER_OK != 0 {
            // A driver that made no agreement may have taken them by the other interface.
            self.state.taken &= self.offered(self.state.legacy);
            self.device.activate(self.state.taken);
        }
        false
    }

    /// Whether what the driver takes can be had.
    fn agrees(&self) -> bool {
        let taken = self.state.taken;
        let modern = self.state.legacy || taken & feature::VERSION_1 != 0;
        taken & !self.offered(self.state.legacy) == 0 && modern
    }

    fn is_live(&self) -> bool {
        self.state.status & (status::DRIVER_OK | status::NEEDS_RESET) == status::DRIVER_OK
    }

    /// The selected queue.
    pub(crate) fn queue(&self) -> Option<&Queue> {
        self.state.queues.get(usize::from(self.state.selected))
    }

    /// Changes the selected queue, if it is not in use.
    pub(crate) fn set_queue(&mut self, change: impl FnOnce(&mut Queue)) {
        let queue = self.state.queues.get_mut(usize::from(self.state.selected));
        if let Some(queue) = queue.filter(|queue| !queue.ready) {
            change(queue);
        }
    }

    /// Enables the selected queue. Returns false when it cannot be, and the device has broken.
    pub(crate) fn enable_queue(&mut self) -> bool {
        let queue = self.state.queues.get_mut(usize::from(self.state.selected));
        let Some(queue) = queue.filter(|queue| !queue.ready) else {
            return true;
        };
        match queue.enable(&self.memory) {
            Ok(()) => true,
            Err(error) => {
                self.break_down(error);
                false
            }
        }
    }

    fn break_down(&mut self, error: RingError) {
        self.state.status |= status::NEEDS_RESET;
        if self.told < TOLD {
            self.told += 1;
            tracing::warn!(device = self.device.id(), %error, "a virtio driver has broken its device");
        }
    }

    /// Lets the device work.
    pub(crate) fn poll(&mut self, now: VmTime) -> (Option<VmTime>, Notices) {
        self.work(|device, rings| {
            let next = device.poll(now, rings);
            let soon = (rings.budget == 0).then_some(now + 1);
            next.into_iter().chain(soon).min()
        })
    }

    /// Lets the device come to rest. True when it has.
    pub(crate) fn quiesce(&mut self) -> (bool, Notices) {
        if !self.is_live() {
            return (self.device.quiesce(None), Notices::default());
        }
        let (rest, notices) = self.work(|device, rings| Some(device.quiesce(Some(rings))));
        (rest.unwrap_or(true), notices)
    }

    fn work<T>(&mut self, f: impl FnOnce(&mut D, &mut Rings<'_>) -> Option<T>) -> (Option<T>, Notices) {
        let mut notices = Notices::default();
        if !self.is_live() {
            return (None, notices);
        }
        let mut rings = Rings {
            memory: &self.memory,
            features: self.state.taken,
            queues: &mut self.state.queues,
            broken: None,
            config_changed: false,
            budget: BUDGET,
        };
        let result = f(&mut self.device, &mut rings);
        let (mut broken, changed) = (rings.broken, rings.config_changed);
        for (number, queue) in (0..).zip(&mut self.state.queues) {
            match queue.must_tell(&self.memory, self.state.taken) {
                Ok(true) => notices.queues.push(number),
                Ok(false) => {}
                Err(error) => broken = broken.or(Some(error)),
            }
        }
        if changed {
            self.state.generation = self.state.generation.wrapping_add(1);
            notices.config = true;
        }
        if let Some(error) = broken {
            self.break_down(error);
            notices.config = true;
        }
        (result, notices)
    }

    /// `buf.len()` bytes of configuration space; zeros beyond its end.
    pub(crate) fn read_config(&self, offset: u64, buf: &mut [u8]) {
        let config = self.device.config();
        let from = config.get(crate::queue::index(offset)..).unwrap_or_default();
        buf.fill(0);
        for (to, from) in buf.iter_mut().zip(from) {
            *to = *from;
        }
    }

    pub(crate) fn write_config(&mut self, offset: u64, bytes: &[u8]) {
        self.device.write_config(crate::queue::index(offset), bytes);
    }

    pub(crate) fn save(&self) -> (State, D::State) {
        (self.state.clone(), self.device.save())
    }

    pub(crate) fn restore(&mut self, saved: State, device: D::State) -> Result<(), RestoreError> {
        let invalid = |what: &str| RestoreError::Invalid(format!("virtio {what}"));
        if saved.queues.len() != self.state.queues.len() {
            return Err(invalid("queues of another device"));
        }
        let up = saved.status & status::DRIVER_OK != 0;
        let agreed = saved.legacy || saved.status & status::FEATURES_OK != 0;
        let offered = saved.taken & !self.offered(saved.legacy) == 0;
        if up && !(agreed && offered) {
            return Err(invalid("features that are not offered"));
        }
        let State {
            status,
            legacy,
            offered_half,
            taken_half,
            taken,
            selected,
            generation,
            queues,
        } = saved;
        self.reset();
        self.device.restore(device)?;
        for (own, saved) in self.state.queues.iter_mut().zip(queues) {
            own.restore(saved, &self.memory)?;
        }
        self.state = State {
            status,
            legacy,
            offered_half,
            taken_half,
            taken,
            selected,
            generation,
            queues: std::mem::take(&mut self.state.queues),
        };
        Ok(())
    }

    pub(crate) fn inspect(&self) -> Node {
        let mut queues = Node::tree();
        for (number, queue) in self.state.queues.iter().enumerate() {
            queues = queues.with(&number.to_string(), queue.inspect());
        }
        Node::tree()
            .with("type", self.device.id())
            .with("status", self.state.status)
            .with("legacy", self.state.legacy)
            .with("features", self.state.taken)
            .with("queues", queues)
            .with("device", self.device.inspect())
    }
}

fn half(features: u64, selected: u32) -> u32 {
    let [a, b, c, d, high @ ..] = features.to_le_bytes();
    match selected {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes(high),
        _ => 0,
    }
}

/// Configuration space as a register access sees it.
pub(crate) fn read_config<D: VirtioDevice>(core: &Core<D>, offset: u64, width: Width) -> u64 {
    let mut bytes = [0; 8];
    if let Some(part) = bytes.get_mut(..crate::queue::index(width.bytes())) {
        core.read_config(offset, part);
    }
    u64::from_le_bytes(bytes)
}

/// As [`read_config`].
pub(crate) fn write_config<D: VirtioDevice>(core: &mut Core<D>, offset: u64, width: Width, value: u64) {
    let bytes = value.to_le_bytes();
    let len = crate::queue::index(width.bytes());
    core.write_config(offset, bytes.get(..len).unwrap_or_default());
}
