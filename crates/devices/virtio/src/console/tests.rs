//! Tests of the console, as a driver.

use std::sync::Arc;
use std::sync::Mutex;

use device_model::Width;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::virtio::Link;

use super::*;
use crate::Mmio;
use crate::testing::Bench;
use crate::testing::memory;

/// What was sent, what is to arrive, and for how many bytes there is room.
type Wire = (Vec<u8>, VecDeque<u8>, usize);

/// A far end whose bytes are looked at.
#[derive(Clone, Default)]
struct Far(Arc<Mutex<Wire>>);

impl Far {
    fn new(room: usize) -> Self {
        let far = Self::default();
        far.0.lock().unwrap().2 = room;
        far
    }

    fn said(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }

    fn say(&self, bytes: &[u8]) {
        self.0.lock().unwrap().1.extend(bytes);
    }

    fn make_room(&self, room: usize) {
        self.0.lock().unwrap().2 = room;
    }
}

impl SerialBackend for Far {
    fn send(&mut self, byte: u8) -> bool {
        let mut inner = self.0.lock().unwrap();
        let Some(room) = inner.2.checked_sub(1) else {
            return false;
        };
        inner.2 = room;
        inner.0.push(byte);
        true
    }

    fn receive(&mut self) -> Option<u8> {
        self.0.lock().unwrap().1.pop_front()
    }
}

fn console(fars: &[Far]) -> Console {
    let name = |number| (number > 0).then(|| format!("org.port.{number}"));
    let port = |(number, far): (usize, &Far)| Port {
        name: name(number),
        backend: Box::new(far.clone()),
    };
    Console::new(fars.iter().enumerate().map(port).collect())
}

#[test]
fn first_port_is_there_without_multiport() {
    for link in [Link::Mmio, Link::Legacy] {
        let far = Far::new(1000);
        let mut bench = Bench::new(link, console(std::slice::from_ref(&far)));
        bench.start(!MULTIPORT);
        bench.memory.write(0x1000, b"hello").unwrap();
        bench.offer(1, &[(0x1000, 2), (0x1002, 3)], &[]);
        assert_eq!(far.said(), b"hello");
        assert_eq!(bench.used(1), Some((0, 0)));
        bench.offer(0, &[], &[(0x2000, 2), (0x3000, 8)]);
        assert_eq!(bench.used(0), None);
        far.say(b"abc");
        bench.poll();
        assert_eq!(bench.used(0), Some((0, 3)));
        assert_eq!(bench.memory.read_obj::<u8>(0x3000).unwrap(), b'c');
    }
}

#[test]
fn what_finds_no_room_follows_later_and_survives_a_restore() {
    let far = Far::new(3);
    let mut bench = Bench::new(Link::Mmio, console(std::slice::from_ref(&far)));
    bench.start(!MULTIPORT);
    bench.memory.write(0x1000, &[7; 5000]).unwrap();
    bench.offer(1, &[(0x1000, 5000)], &[]);
    assert_eq!((far.said().len(), bench.used(1)), (3, None));
    let saved = bench.device.save_blob();
    let mut other = Bench::with(Link::Mmio, &bench.memory, console(std::slice::from_ref(&far)));
    other.device.restore_blob(&saved).unwrap();
    far.make_room(10_000);
    other.poll();
    assert_eq!(far.said(), [7; 4997]);
    assert_eq!(bench.used(1), Some((0, 0)));
}

/// Gives the driver's message and takes the device's, whose buffers are at 5000h.
fn tell(bench: &mut Bench, port: u8, event: u16, value: u8) -> Vec<Vec<u8>> {
    let message = [port, 0, 0, 0, event as u8, 0, value, 0];
    bench.memory.write(0x4000, &message).unwrap();
    bench.offer(3, &[(0x4000, 8)], &[]);
    bench.used(3).unwrap();
    let mut messages = Vec::new();
    while let Some((_, len)) = bench.used(2) {
        let mut message = vec![0; len as usize];
        bench.memory.read(0x5000, &mut message).unwrap();
        messages.push(message);
        bench.offer(2, &[], &[(0x5000, 64)]);
    }
    messages
}

#[test]
fn ports_are_told_of_and_have_names() {
    let fars = [Far::new(100), Far::new(100)];
    let mut bench = Bench::new(Link::Pci, console(&fars));
    bench.start(u64::MAX);
    bench.offer(2, &[], &[(0x5000, 64)]);
    assert_eq!(bench.config(4, Width::Dword), 2);
    let added = tell(&mut bench, 0, event::DEVICE_READY, 1);
    assert_eq!(added, [[0, 0, 0, 0, 1, 0, 1, 0], [1, 0, 0, 0, 1, 0, 1, 0]]);
    let first = tell(&mut bench, 0, event::PORT_READY, 1);
    assert_eq!(first, [[0, 0, 0, 0, 4, 0, 1, 0], [0, 0, 0, 0, 6, 0, 1, 0]]);
    let second = tell(&mut bench, 1, event::PORT_READY, 1);
    assert_eq!(second[0], b"\x01\0\0\0\x07\0\x01\0org.port.1");
    assert_eq!(tell(&mut bench, 7, event::PORT_READY, 1).len(), 0);
    // What arrives waits until the guest has opened the port.
    fars[1].say(b"x");
    bench.offer(4, &[], &[(0x6000, 8)]);
    assert_eq!(bench.used(4), None);
    tell(&mut bench, 1, event::PORT_OPEN, 1);
    assert_eq!(bench.used(4), Some((0, 1)));
    bench.memory.write(0x7000, b"out").unwrap();
    bench.offer(5, &[(0x7000, 3)], &[]);
    assert_eq!(fars[1].said(), b"out");
}

#[test]
fn emergency_byte_needs_no_queue() {
    let far = Far::new(1);
    let mut bench = Bench::new(Link::Mmio, console(std::slice::from_ref(&far)));
    let at = Link::Mmio.config() + 8;
    Link::Mmio.write(&mut *bench.device, at, Width::Dword, u64::from(b'!'));
    assert_eq!(far.said(), b"!");
}

#[test]
fn endless_buffers_do_not_hold_the_machine() {
    let far = Far::new(usize::MAX);
    let mut bench = Bench::new(Link::Mmio, console(std::slice::from_ref(&far)));
    bench.start(!MULTIPORT);
    let megabytes = [(0, 1 << 20); 32];
    bench.offer(1, &megabytes, &[]);
    let said = far.said().len();
    assert!(said <= 2 * TURN, "{said}");
    assert_eq!(bench.device.poll(VmTime::ZERO), Some(VmTime::ZERO + 1));
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    let (memory, probe) = (memory(), IrqProbe::new());
    test_kit::contract(&clock, || {
        let fars = [Far::new(100), Far::new(0)];
        Box::new(Mmio::new(console(&fars), probe.line(0), &memory))
    });
}
