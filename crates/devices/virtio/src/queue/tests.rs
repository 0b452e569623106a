//! Rings that are well, and rings that no driver may make.

use proptest::prelude::*;
use test_kit::virtio::EVENT_IDX;
use test_kit::virtio::INDIRECT;
use test_kit::virtio::Link;
use test_kit::virtio::NEXT;
use test_kit::virtio::Ring;
use test_kit::virtio::WRITE;
use test_kit::virtio::put_descriptor;

use super::*;
use crate::rng::Rng;
use crate::testing::Bench;
use crate::testing::RINGS;
use crate::testing::memory;

const INDIRECT_DESC: u64 = feature::INDIRECT_DESC;
const SIZE: u16 = 8;

/// A queue and its driver's side.
fn pair() -> (std::sync::Arc<GuestMemory>, Ring, Queue) {
    let memory = memory();
    let ring = Ring::new(&memory, RINGS, SIZE);
    let mut queue = Queue::new(64);
    queue.set_size(SIZE.into());
    [queue.descriptors, queue.available, queue.used] = ring.areas();
    queue.enable(&memory).unwrap();
    (memory, ring, queue)
}

fn segment(gpa: u64, len: u32) -> Segment {
    Segment { gpa, len }
}

#[test]
fn chains_come_in_order_with_what_is_read_and_written() {
    let (memory, mut ring, mut queue) = pair();
    assert_eq!(queue.pop(&memory, 0), Ok(None));
    ring.offer(&[(0x1000, 16), (0x2000, 0)], &[(0x3000, 4)]);
    ring.offer_indirect(0x8000, &[(0x4000, 1)], &[(0x5000, 2), (0x6000, 3)]);
    let first = queue.pop(&memory, INDIRECT_DESC).unwrap().unwrap();
    assert_eq!(first.head, 0);
    assert_eq!(first.readable, [segment(0x1000, 16)], "empty buffers are left out");
    assert_eq!(first.writable, [segment(0x3000, 4)]);
    let second = queue.pop(&memory, INDIRECT_DESC).unwrap().unwrap();
    assert_eq!(second.head, 3);
    assert_eq!(second.writable, [segment(0x5000, 2), segment(0x6000, 3)]);
    queue.push(&memory, &[(second.head, 5)]).unwrap();
    queue.push(&memory, &[(first.head, 4)]).unwrap();
    assert_eq!(
        [ring.used(), ring.used(), ring.used()],
        [Some((3, 5)), Some((0, 4)), None]
    );
}

#[test]
fn indexes_wrap() {
    let (memory, mut ring, mut queue) = pair();
    for turn in 0..70_000u32 {
        let head = ring.offer(&[(0x1000, 1)], &[]);
        let chain = queue.pop(&memory, EVENT_IDX).unwrap().unwrap();
        assert_eq!(chain.head, head);
        queue.push(&memory, &[(head, turn)]).unwrap();
        assert_eq!(ring.used(), Some((head, turn)));
        assert_eq!(queue.pop(&memory, EVENT_IDX), Ok(None));
        assert_eq!(ring.available_event(), (turn + 1) as u16);
    }
}

#[test]
fn driver_says_when_it_wants_to_be_told() {
    let (memory, mut ring, mut queue) = pair();
    let mut turn = |ring: &mut Ring, features| {
        let head = ring.offer(&[(0x1000, 1)], &[]);
        queue.pop(&memory, features).unwrap().unwrap();
        queue.push(&memory, &[(head, 0)]).unwrap();
        queue.must_tell(&memory, features).unwrap()
    };
    assert!(turn(&mut ring, 0));
    ring.suppress(true);
    assert!(!turn(&mut ring, 0));
    // Two were given back; the third is that which is waited for.
    ring.set_used_event(3);
    assert!(!turn(&mut ring, EVENT_IDX));
    assert!(turn(&mut ring, EVENT_IDX));
    assert!(!turn(&mut ring, EVENT_IDX));
    assert_eq!(queue.must_tell(&memory, EVENT_IDX), Ok(false), "nothing new");
}

/// What a queue says of descriptors that `write` writes; the chain begins at the first.
fn refused(features: u64, write: impl FnOnce(&GuestMemory, &mut Ring)) -> RingError {
    let (memory, mut ring, mut queue) = pair();
    write(&memory, &mut ring);
    ring.publish(0);
    queue.pop(&memory, features).unwrap_err()
}

#[test]
fn chains_that_cannot_be_are_refused() {
    let ring = |write: fn(&mut Ring)| refused(INDIRECT_DESC, |_, ring| write(ring));
    assert_eq!(ring(|ring| ring.describe(0, 0x1000, 1, NEXT, 0)), RingError::Long);
    assert_eq!(ring(|ring| ring.describe(0, 0x1000, 1, NEXT, 8)), RingError::Descriptor);
    assert_eq!(ring(|ring| ring.describe(0, 0x20_0000, 1, 0, 0)), RingError::Memory);
    assert_eq!(ring(|ring| ring.describe(0, u64::MAX, 2, 0, 0)), RingError::Memory);
    assert_eq!(ring(|ring| ring.describe(0, 0x1f_ffff, 2, 0, 0)), RingError::Memory);
    let order = ring(|ring| {
        ring.describe(0, 0x1000, 1, WRITE | NEXT, 1);
        ring.describe(1, 0x1000, 1, 0, 0);
    });
    assert_eq!(order, RingError::Order);
    let large = ring(|ring| {
        for number in 0..8 {
            ring.describe(number, 0, 2 << 20, NEXT, (number + 1) % 8);
        }
    });
    assert_eq!(large, RingError::Long);
}

#[test]
fn tables_that_cannot_be_are_refused() {
    let table = |features, len, flags, write: fn(&GuestMemory)| {
        refused(features, |memory, ring| {
            write(memory);
            ring.describe(0, 0x8000, len, INDIRECT | flags, 1);
        })
    };
    let none = |_: &GuestMemory| ();
    assert_eq!(table(0, 16, 0, none), RingError::Indirect);
    assert_eq!(table(INDIRECT_DESC, 0, 0, none), RingError::Indirect);
    assert_eq!(table(INDIRECT_DESC, 17, 0, none), RingError::Indirect);
    assert_eq!(table(INDIRECT_DESC, 16, NEXT, none), RingError::Indirect);
    assert_eq!(table(INDIRECT_DESC, !15, 0, none), RingError::Long);
    let nested = |memory: &GuestMemory| put_descriptor(memory, 0x8000, 0x9000, 16, INDIRECT, 0);
    assert_eq!(table(INDIRECT_DESC, 16, 0, nested), RingError::Indirect);
    let endless = |memory: &GuestMemory| put_descriptor(memory, 0x8000, 0x9000, 16, NEXT, 0);
    assert_eq!(table(INDIRECT_DESC, 16, 0, endless), RingError::Long);
    let beyond = |memory: &GuestMemory| put_descriptor(memory, 0x8000, 0x9000, 16, NEXT, 1);
    assert_eq!(table(INDIRECT_DESC, 16, 0, beyond), RingError::Descriptor);
}

#[test]
fn index_that_is_too_far_ahead_is_refused() {
    let (memory, mut ring, mut queue) = pair();
    ring.set_available(SIZE + 1);
    assert_eq!(queue.pop(&memory, 0), Err(RingError::Index));
}

#[test]
fn areas_are_aligned_and_in_memory() {
    let memory = memory();
    let enable = |change: fn(&mut Queue)| {
        let mut queue = Queue::new(8);
        (queue.descriptors, queue.available, queue.used) = (0x1000, 0x2000, 0x3000);
        change(&mut queue);
        queue.enable(&memory)
    };
    assert_eq!(enable(|_| ()), Ok(()));
    assert_eq!(enable(|queue| queue.descriptors = 0x1008), Err(RingError::Aligned));
    assert_eq!(enable(|queue| queue.available = 0x2001), Err(RingError::Aligned));
    assert_eq!(enable(|queue| queue.used = 0x3002), Err(RingError::Aligned));
    assert_eq!(enable(|queue| queue.used = 0x1f_ffc0), Err(RingError::Memory));
    assert_eq!(enable(|queue| queue.descriptors = !15), Err(RingError::Memory));
}

#[test]
fn bytes_are_cut_out_of_chains_across_segments() {
    let memory = memory();
    memory.write(0x1000, b"abc").unwrap();
    memory.write(0x2000, b"defg").unwrap();
    let mut chain = Chain {
        head: 0,
        readable: vec![segment(0x1000, 3), segment(0x2000, 4)],
        writable: vec![segment(0x3000, 2), segment(0x4000, 1)],
    };
    let mut five = [0; 5];
    chain.take(&memory, &mut five).unwrap();
    assert_eq!((&five, chain.readable_len()), (b"abcde", 2));
    assert_eq!(chain.take(&memory, &mut five), Err(RingError::Shape));
    assert_eq!(chain.readable, [segment(0x2002, 2)], "nothing is taken then");
    assert_eq!(chain.take_last(), Some(0x4000));
    assert_eq!(chain.writable, [segment(0x3000, 2)]);
    assert_eq!(chain.put(&memory, b"xyz"), Ok(2));
    assert_eq!(memory.read_obj::<[u8; 3]>(0x3000).unwrap(), *b"xy\0");
    assert_eq!(chain.take_last(), None);
}

#[test]
fn broken_ring_asks_for_a_reset_and_is_well_after_it() {
    for link in [Link::Mmio, Link::Pci, Link::Legacy] {
        let mut bench = Bench::new(link, Rng::new(Box::new(|bytes| bytes.len())));
        bench.start(u64::MAX);
        bench.rings[0].describe(0, 1 << 40, 1, WRITE, 0);
        bench.rings[0].publish(0);
        bench.notify(0);
        assert!(bench.is_broken(), "{link:?}");
        assert!(bench.is_interrupted());
        bench.rings[0].describe(0, 0x1000, 1, WRITE, 0);
        bench.notify(0);
        assert_eq!(bench.used(0), None, "it is not looked at any more");
        bench.rings[0] = Ring::new(&bench.memory, RINGS, bench.rings[0].size());
        bench.memory.write(RINGS, &[0; 0x3000]).unwrap();
        bench.start(u64::MAX);
        bench.offer(0, &[], &[(0x1000, 1)]);
        assert_eq!(bench.used(0), Some((0, 1)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 512 }))]

    /// Small numbers make rings that are nearly well.
    #[test]
    fn any_ring_ends_or_breaks(
        words in prop::collection::vec(prop_oneof![0u16..16, any::<u16>()], 0x200),
        index in 0u16..10,
        features in prop::sample::select(vec![0, EVENT_IDX, INDIRECT_DESC, INDIRECT_DESC | EVENT_IDX]),
    ) {
        let (memory, mut ring, mut queue) = pair();
        for (at, word) in (RINGS..).step_by(2).zip(&words) {
            memory.store_u16(at, *word).unwrap();
        }
        for (at, word) in (0..).step_by(2).zip(&words) {
            memory.store_u16(at, *word).unwrap();
        }
        ring.set_available(index);
        for _ in 0..SIZE {
            match queue.pop(&memory, features) {
                Ok(Some(chain)) => {
                    chain.check().unwrap();
                    queue.push(&memory, &[(chain.head, 1)]).unwrap();
                }
                Ok(None) | Err(_) => break,
            }
        }
        queue.must_tell(&memory, features).unwrap();
    }
}
