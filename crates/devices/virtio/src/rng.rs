//! Entropy source: buffers are filled with the host's random bytes.
//!
//! Spec: virtio 1.2 §5.4.

use device_model::Inspect;
use device_model::Node;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

use crate::RingError;
use crate::Rings;
use crate::VirtioDevice;
use crate::id;

/// Entries of the queue.
const ENTRIES: u16 = 64;
/// Bytes that one buffer gets at most; it need not be filled (§5.4.6.2).
const MOST: usize = 4096;

/// Where random bytes come from. Called under the device's lock: must not block. Returns how many bytes it gave, from the
/// buffer's start.
pub type Entropy = Box<dyn FnMut(&mut [u8]) -> usize + Send>;

/// The device.
pub struct Rng {
    // Wiring
    entropy: Entropy,
    // State
    /// Bytes that were given.
    given: u64,
}

impl Rng {
    /// A source of what `entropy` gives.
    #[must_use]
    pub fn new(entropy: Entropy) -> Self {
        Self { entropy, given: 0 }
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u16 {
        id::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _features: u64) {}

    fn poll(&mut self, _now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        while let Some(mut chain) = rings.pop(0) {
            let room = crate::queue::index(chain.writable_len()).min(MOST);
            if room == 0 {
                rings.fail(RingError::Shape);
                break;
            }
            let mut bytes = vec![0; room];
            let given = (self.entropy)(&mut bytes).min(room);
            bytes.truncate(given);
            let put = chain.put(rings.memory(), &bytes);
            let Some(put) = rings.check(put) else { break };
            self.given = self.given.wrapping_add(put as u64);
            rings.push(0, chain.head, u32::try_from(put).unwrap_or(0));
        }
        None
    }

    fn reset(&mut self) {
        self.given = 0;
    }
}

impl Snapshot for Rng {
    type State = RngV1;

    fn save(&self) -> RngV1 {
        let Self { entropy: _, given } = self;
        RngV1 { given: *given }
    }

    fn restore(&mut self, state: RngV1) -> Result<(), RestoreError> {
        let RngV1 { given } = state;
        self.given = given;
        Ok(())
    }
}

impl Inspect for Rng {
    fn inspect(&self) -> Node {
        Node::tree().with("bytes", self.given)
    }
}

/// Saved state of [`Rng`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RngV1 {
    given: u64,
}

impl Schema for RngV1 {
    const NAME: &'static str = "virtio_rng";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use test_kit::TestClock;
    use test_kit::virtio::Link;

    use super::*;
    use crate::Mmio;
    use crate::Pci;

    fn counting() -> Rng {
        let mut next = 0u8;
        Rng::new(Box::new(move |bytes| {
            bytes.fill_with(|| {
                next = next.wrapping_add(1);
                next
            });
            bytes.len()
        }))
    }

    #[test]
    fn buffers_are_filled_over_every_interface() {
        for link in [Link::Mmio, Link::Pci, Link::Legacy] {
            let mut bench = crate::testing::Bench::new(link, counting());
            bench.start(u64::MAX);
            bench.offer(0, &[], &[(0x1_0000, 5), (0x2_0000, 6000)]);
            assert_eq!(bench.used(0), Some((0, 4096)), "{link:?}");
            let bytes: [u8; 5] = bench.memory.read_obj(0x1_0000).unwrap();
            assert_eq!(bytes, [1, 2, 3, 4, 5]);
            assert_eq!(bench.memory.read_obj::<u8>(0x2_0000).unwrap(), 6);
            assert!(bench.is_interrupted());
        }
    }

    #[test]
    fn buffer_without_room_breaks_the_device() {
        let mut bench = crate::testing::Bench::new(Link::Mmio, counting());
        bench.start(u64::MAX);
        bench.offer(0, &[(0x1_0000, 5)], &[]);
        assert!(bench.is_broken());
    }

    #[test]
    fn keeps_the_contract() {
        let clock = TestClock::new();
        let memory = crate::testing::memory();
        let probe = test_kit::IrqProbe::new();
        test_kit::contract(&clock, || Box::new(Mmio::new(counting(), probe.line(0), &memory)));
        test_kit::contract(&clock, || {
            Box::new(Pci::new(counting(), (probe.line(0), Arc::clone(&probe) as _), &memory))
        });
    }
}
