//! Tests of input devices, as a driver.

use std::sync::Arc;

use device_model::Device;
use device_model::Width;
use guest_memory::GuestMemory;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::virtio::Link;
use test_kit::virtio::Ring;

use super::*;
use crate::Mmio;
use crate::testing::Bench;
use crate::testing::RINGS;
use crate::testing::memory;

fn key(name: &str, down: bool) -> Event {
    let key = Key::from_name(name).unwrap();
    Event::Key { key, down }
}

/// What a device tells its driver of these events.
fn told(kind: InputKind, events: &[Event]) -> Vec<Raw> {
    let mut input = Input::new(kind);
    events.iter().for_each(|event| input.input(*event));
    input.state.waiting.into()
}

#[test]
fn keys_go_down_and_up_and_are_told_once() {
    let events = [key("a", true), key("a", true), key("a", false), key("b", false)];
    let expected = [(1, 30, 1), (0, 0, 0), (1, 30, 0), (0, 0, 0)];
    assert_eq!(told(InputKind::Keyboard, &events), expected);
    assert_eq!(told(InputKind::Mouse, &events), []);
}

#[test]
fn pointers_know_movement_or_places() {
    let events = [
        Event::Move { dx: -3, dy: 0 },
        Event::Place {
            x: 1279,
            y: 400,
            width: 1280,
            height: 801,
        },
        Event::Wheel { dy: 2, dx: 0 },
        Event::Button {
            button: Button::Middle,
            down: true,
        },
    ];
    let both = [(2, 8, -2), (0, 0, 0), (1, 0x112, 1), (0, 0, 0)];
    let mouse = [&[(2, 0, -3), (0, 0, 0)], &both[..]].concat();
    assert_eq!(told(InputKind::Mouse, &events), mouse);
    let tablet = [&[(3, 0, 32767), (3, 1, 16383), (0, 0, 0)], &both[..]].concat();
    assert_eq!(told(InputKind::Tablet, &events), tablet);
    // A screen of no size has one place.
    let nowhere = Event::Place {
        x: 9,
        y: 0,
        width: 0,
        height: 1,
    };
    assert_eq!(told(InputKind::Tablet, &[nowhere])[0], (3, 0, 32767));
}

#[test]
fn too_much_is_lost_but_keys_come_up() {
    let mut input = Input::new(InputKind::Keyboard);
    input.input(key("a", true));
    for _ in 0..WAITING {
        input.input(key("b", true));
        input.input(key("b", false));
    }
    let full = input.waiting();
    assert!(full <= WAITING + 2);
    input.input(key("c", true));
    input.input(key("c", false));
    assert_eq!(input.waiting(), full);
    input.input(key("a", false));
    assert_eq!(input.state.waiting[full], (1, 30, 0));
    assert!(input.state.lost > 0);
}

/// A device whose driver is up, with its rings.
struct Driver {
    memory: Arc<GuestMemory>,
    device: Mmio<Input>,
    rings: [Ring; 2],
}

impl Driver {
    fn new() -> Self {
        let (memory, probe) = (memory(), IrqProbe::new());
        let mut device = Mmio::new(Input::new(InputKind::Keyboard), probe.line(0), &memory);
        Link::Mmio.negotiate(&mut device, u64::MAX);
        let rings = [0, 1].map(|number| Ring::new(&memory, RINGS + number * 0x4000, ENTRIES));
        for (number, ring) in (0..).zip(&rings) {
            Link::Mmio.enable(&mut device, number, ring);
        }
        Link::Mmio.go(&mut device);
        Self { memory, device, rings }
    }

    fn offer(&mut self, queue: u16, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> Option<(u16, u32)> {
        self.rings[usize::from(queue)].offer(readable, writable);
        Link::Mmio.notify(&mut self.device, queue);
        self.rings[usize::from(queue)].used()
    }
}

#[test]
fn driver_gets_events_and_sets_lights() {
    let mut driver = Driver::new();
    assert!(driver.device.device_mut().is_up());
    driver.device.device_mut().input(key("enter", true));
    assert_eq!(driver.offer(0, &[], &[(0x1000, 8)]), Some((0, 8)));
    assert_eq!(driver.memory.read_obj::<[u16; 4]>(0x1000).unwrap(), [1, 28, 1, 0]);
    assert_eq!(driver.offer(0, &[], &[(0x1000, 8)]), Some((1, 8)));
    assert_eq!(driver.memory.read_obj::<[u16; 4]>(0x1000).unwrap(), [0; 4]);
    // The next buffer waits for the next event.
    assert_eq!(driver.offer(0, &[], &[(0x1000, 8)]), None);
    driver.device.device_mut().input(key("enter", false));
    driver.device.poll(VmTime::ZERO);
    assert!(driver.rings[0].used().is_some());
    for (code, value) in [(1u16, 1u16), (0, 1), (0, 0)] {
        driver.memory.write_obj(0x2000, &[0x11u16, code, value, 0]).unwrap();
        assert!(driver.offer(1, &[(0x2000, 8)], &[]).is_some());
    }
    assert_eq!(driver.device.device_mut().leds(), 4);
}

#[test]
fn lights_are_in_the_order_of_ps2() {
    let mut input = Input::new(InputKind::Keyboard);
    for (code, leds) in [(0, 2), (1, 6), (2, 7), (9, 7)] {
        input.light(code, true);
        assert_eq!(input.leds(), leds);
    }
    input.light(0, false);
    assert_eq!(input.leds(), 5);
}

#[test]
fn configuration_space_shows_what_is_selected() {
    let mut bench = Bench::new(Link::Mmio, Input::new(InputKind::Tablet));
    let at = Link::Mmio.config();
    let mut select = |select: u8, subsel: u8| {
        Link::Mmio.write(&mut *bench.device, at, Width::Byte, select.into());
        Link::Mmio.write(&mut *bench.device, at + 1, Width::Byte, subsel.into());
        let size = Link::Mmio.read(&mut *bench.device, at + 2, Width::Byte);
        let byte = |offset| Link::Mmio.read(&mut *bench.device, at + 8 + offset, Width::Byte) as u8;
        (0..size).map(byte).collect::<Vec<u8>>()
    };
    assert_eq!(select(0, 0), []);
    assert_eq!(select(1, 0), b"Oxbow virtio tablet");
    assert_eq!(select(3, 0), [6, 0, 0xee, 0x80, 3, 0, 1, 0]);
    assert_eq!(select(0x11, 3), [3]);
    assert_eq!(select(0x11, 2), [0x40, 1]);
    assert_eq!(select(0x11, 1)[0x22], 0x1f);
    assert_eq!(select(0x11, 0x11), []);
    assert_eq!(select(0x12, 1)[4..8], 32767u32.to_le_bytes());
    assert_eq!(select(0x12, 2), []);
}

#[test]
fn every_key_is_in_the_bitmap() {
    let bits = bitmap(&InputKind::Keyboard.codes(ev::KEY));
    assert!(bits.len() <= SELECTED);
    for key in Key::all() {
        let code = usize::from(key.code());
        assert!(bits[code / 8] & 1 << (code % 8) != 0, "{key:?}");
    }
}

#[test]
fn short_buffers_break_the_device() {
    let mut driver = Driver::new();
    driver.device.device_mut().input(key("a", true));
    driver.offer(0, &[], &[(0x1000, 7)]);
    assert!(Link::Mmio.is_broken(&mut driver.device));
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    let (memory, probe) = (memory(), IrqProbe::new());
    for kind in [InputKind::Keyboard, InputKind::Tablet, InputKind::Mouse] {
        test_kit::contract(&clock, || {
            let mut input = Input::new(kind);
            input.input(key("a", true));
            Box::new(Mmio::new(input, probe.line(0), &memory))
        });
    }
}
