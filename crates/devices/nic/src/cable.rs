//! What tests of cards are plugged into, and the memory that they reach.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;

use device_model::Frame;
use device_model::FramePort;
use device_model::net::Accepts;
use device_model::net::NetWaker;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;

/// Both ends of a cable.
#[derive(Default)]
pub(crate) struct Cable {
    pub(crate) to_card: Mutex<VecDeque<Frame>>,
    pub(crate) from_card: Mutex<Vec<Frame>>,
    pub(crate) full: Mutex<bool>,
    pub(crate) unplugged: Mutex<bool>,
    pub(crate) promiscuous: Mutex<bool>,
}

impl FramePort for Cable {
    fn send(&self, frame: Frame) -> Result<(), Frame> {
        if *self.full.lock().unwrap() {
            return Err(frame);
        }
        self.from_card.lock().unwrap().push(frame);
        Ok(())
    }
    fn receive(&self) -> Option<Frame> {
        self.to_card.lock().unwrap().pop_front()
    }
    fn set_accepts(&self, _: Accepts) {}
    fn set_promiscuous(&self, on: bool) {
        *self.promiscuous.lock().unwrap() = on;
    }
    fn set_waker(&self, _: NetWaker) {}
    fn link_up(&self) -> bool {
        !*self.unplugged.lock().unwrap()
    }
}

/// A megabyte.
pub(crate) fn memory() -> Arc<GuestMemory> {
    let mut memory = GuestMemory::new();
    let ram = MemoryRegion::new("ram", Kind::Ram, 1 << 20).unwrap();
    memory.add(0, Arc::new(ram)).unwrap();
    Arc::new(memory)
}
