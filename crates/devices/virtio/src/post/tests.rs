//! Tests of both devices that carry messages, as a driver.

use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use device_model::Device;
use device_model::Node;
use device_model::Width;
use storage::Inline;
use storage::Job;
use test_kit::TestClock;
use test_kit::virtio::Link;

use super::*;
use crate::fs::Fs;
use crate::fs::FsConfig;
use crate::nine_p::NineP;
use crate::testing::Bench;
use crate::testing::memory;

const REQUEST: u64 = 0x1000;
const ANSWER: u64 = 0x3000;

/// A server that answers with what it is asked, backwards, and counts.
#[derive(Default)]
struct Backwards(AtomicU32);

impl FileServer for Backwards {
    type State = u32;

    fn answer(&self, message: &mut dyn Message) -> usize {
        let mut bytes = vec![0; message.left()];
        message.take(&mut bytes).unwrap();
        assert_eq!(message.take(&mut [0]), Err(MessageError));
        self.0.fetch_add(1, Ordering::SeqCst);
        bytes.reverse();
        // In two parts, the second first.
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let put = message.put(first.len(), second).and_then(|()| message.put(0, first));
        if put.is_ok() { bytes.len() } else { 0 }
    }

    fn reset(&self) {
        self.0.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    fn restore(&self, state: u32) -> Result<(), RestoreError> {
        self.0.store(state, Ordering::SeqCst);
        Ok(())
    }

    fn inspect(&self) -> Node {
        Node::tree().with("answered", self.save())
    }
}

/// Keeps jobs until they are let go.
#[derive(Default)]
struct Later(Mutex<Vec<Job>>);

impl Executor for Later {
    fn run(&self, job: Job) {
        self.0.lock().unwrap().push(job);
    }
}

impl Later {
    fn go(&self) {
        let jobs = std::mem::take(&mut *self.0.lock().unwrap());
        jobs.into_iter().for_each(|job| job());
    }
}

fn fs(memory: &Arc<GuestMemory>, executor: Arc<dyn Executor>) -> Fs<Backwards> {
    let config = FsConfig {
        tag: "tag".to_owned(),
        queues: 2,
    };
    let waker: Waker = Arc::new(|| ());
    Fs::new(Arc::default(), config, memory, &executor, &waker)
}

fn bench(link: Link, executor: Arc<dyn Executor>) -> Bench {
    let memory = memory();
    let device = fs(&memory, executor);
    let mut bench = Bench::with(link, &memory, device);
    bench.start(u64::MAX);
    bench
}

fn answered(bench: &mut Bench) -> Option<u64> {
    let shown = bench.device.inspect();
    match shown.at("device/answered") {
        Some(Node::Number(count)) => Some(*count),
        _ => None,
    }
}

/// Asks by a request queue; what is written in the two places for the answer.
fn ask(bench: &mut Bench, queue: u16) {
    bench.memory.write(REQUEST, b"abcdefgh").unwrap();
    bench.memory.write(ANSWER, &[0; 64]).unwrap();
    let readable = [(REQUEST, 3), (REQUEST + 3, 5)];
    bench.offer(queue, &readable, &[(ANSWER, 3), (ANSWER + 32, 30)]);
}

fn answer(bench: &Bench) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bench.memory.read(ANSWER, &mut bytes[..3]).unwrap();
    bench.memory.read(ANSWER + 32, &mut bytes[3..]).unwrap();
    bytes
}

#[test]
fn messages_are_answered_from_every_queue() {
    for link in [Link::Mmio, Link::Pci] {
        let mut bench = bench(link, Arc::new(Inline));
        for queue in [0, 1, 2] {
            ask(&mut bench, queue);
            assert_eq!(bench.used(queue), Some((0, 8)));
            assert_eq!(answer(&bench), b"hgfedcba");
        }
        assert_eq!(answered(&mut bench), Some(3));
    }
}

#[test]
fn a_message_without_room_is_given_back_empty() {
    let mut bench = bench(Link::Mmio, Arc::new(Inline));
    bench.memory.write(REQUEST, b"abcdefgh").unwrap();
    bench.offer(0, &[(REQUEST, 8)], &[]);
    assert_eq!(bench.used(0), Some((0, 0)));
    bench.offer(1, &[(REQUEST, 8)], &[(ANSWER, 7)]);
    assert_eq!(bench.used(1), Some((0, 0)));
    assert!(!bench.is_broken());
}

#[test]
fn configuration_tells_the_tag() {
    let mut bench = bench(Link::Mmio, Arc::new(Inline));
    assert_eq!(bench.config(0, Width::Dword), u64::from(u32::from_le_bytes(*b"tag\0")));
    assert_eq!(bench.config(36, Width::Dword), 2);
    let memory = memory();
    let (executor, waker): (Arc<dyn Executor>, Waker) = (Arc::new(Inline), Arc::new(|| ()));
    for link in [Link::Mmio, Link::Pci, Link::Legacy] {
        let device = NineP::new(Arc::new(Backwards::default()), "tag", &memory, &executor, &waker);
        let mut bench = Bench::with(link, &memory, device);
        assert_eq!(bench.start(u64::MAX) & 1, 1);
        let bytes: Vec<u8> = (0..5).map(|at| bench.config(at, Width::Byte) as u8).collect();
        assert_eq!(bytes, b"\x03\0tag");
        ask(&mut bench, 0);
        assert_eq!(bench.used(0), Some((0, 8)));
    }
}

#[test]
fn answers_after_a_reset_go_nowhere() {
    let later = Arc::new(Later::default());
    let mut bench = bench(Link::Mmio, later.clone());
    ask(&mut bench, 1);
    assert_eq!(bench.used(1), None);
    bench.link.set_status(&mut *bench.device, 0);
    later.go();
    bench.poll();
    assert_eq!(answer(&bench), [0; 8]);
    bench.start(u64::MAX);
    bench.poll();
    assert_eq!(bench.used(1), None);
}

#[test]
fn a_held_device_takes_no_more_messages() {
    let later = Arc::new(Later::default());
    let mut bench = bench(Link::Mmio, later.clone());
    ask(&mut bench, 1);
    assert!(!bench.device.quiesce());
    later.go();
    assert!(bench.device.quiesce());
    assert_eq!(bench.used(1), Some((0, 8)));
}

#[test]
fn messages_that_wait_are_saved_and_answered_later() {
    let later = Arc::new(Later::default());
    let mut bench = bench(Link::Mmio, later);
    ask(&mut bench, 2);
    let saved = bench.device.save_blob();
    let device = fs(&bench.memory, Arc::new(Inline));
    let mut restored = Bench::with(Link::Mmio, &bench.memory, device);
    restored.device.restore_blob(&saved).unwrap();
    restored.poll();
    assert_eq!(answer(&restored), b"hgfedcba");
    assert_eq!(bench.used(2), Some((0, 8)));
}

#[test]
fn both_devices_keep_the_contract() {
    let memory = memory();
    let probe = test_kit::IrqProbe::new();
    let clock = TestClock::new();
    test_kit::contract(&clock, || {
        let device = fs(&memory, Arc::new(Inline));
        Box::new(crate::Mmio::new(device, probe.line(0), &memory)) as Box<dyn Device>
    });
    let (executor, waker): (Arc<dyn Executor>, Waker) = (Arc::new(Inline), Arc::new(|| ()));
    test_kit::contract(&clock, || {
        let device = NineP::new(Arc::new(Backwards::default()), "tag", &memory, &executor, &waker);
        Box::new(crate::Pci::new(device, (probe.line(0), probe.clone() as _), &memory)) as Box<dyn Device>
    });
}
