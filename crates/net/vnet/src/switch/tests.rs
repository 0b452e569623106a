//! Tests of the switch and its ports.

use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use device_model::FramePort;
use device_model::net::Accepts;

use super::*;
use crate::Capture;

const A: u8 = 0x0a;
const B: u8 = 0x0b;
const C: u8 = 0x0c;
const ALL: Mac = [0xff; 6];

fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

fn frame(to: Mac, from: Mac) -> Frame {
    let mut bytes = Vec::new();
    bytes.extend(to);
    bytes.extend(from);
    bytes.extend([0x88, 0xb5, 1, 2, 3, 4]);
    Frame::new(bytes)
}

fn three() -> (Arc<Switch>, [Arc<Port>; 3]) {
    let switch = Switch::new();
    let ports = ["a", "b", "c"].map(|name| switch.plug(PortConfig::guest(name)));
    (switch, ports)
}

fn counted(port: &Port) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let inner = Arc::clone(&count);
    port.set_waker(Arc::new(move || {
        inner.fetch_add(1, Ordering::Relaxed);
    }));
    count
}

#[test]
fn known_address_is_reached_and_nobody_else_sees_it() {
    let (switch, [a, b, c]) = three();
    a.send(frame(mac(B), mac(A))).unwrap();
    assert!(b.receive().is_some() && c.receive().is_some() && a.receive().is_none());
    b.send(frame(mac(A), mac(B))).unwrap();
    assert!(a.receive().is_some() && c.receive().is_none());
    a.send(frame(mac(B), mac(A))).unwrap();
    assert!(b.receive().is_some() && c.receive().is_none());
    a.send(frame(ALL, mac(A))).unwrap();
    assert!(b.receive().is_some() && c.receive().is_some());
    assert_eq!(switch.inspect().at("addresses"), Some(&Node::Number(2)));
    assert_eq!(switch.inspect().at("ports/a/sent"), Some(&Node::Number(3)));
}

#[test]
fn station_that_moves_is_found_again_and_one_that_left_is_forgotten() {
    let (_switch, [a, b, c]) = three();
    b.send(frame(ALL, mac(B))).unwrap();
    c.send(frame(ALL, mac(B))).unwrap();
    while a.receive().is_some() || b.receive().is_some() || c.receive().is_some() {}
    a.send(frame(mac(B), mac(A))).unwrap();
    assert!(c.receive().is_some() && b.receive().is_none());
    drop(c);
    a.send(frame(mac(B), mac(A))).unwrap();
    assert!(b.receive().is_some());
}

#[test]
fn promiscuous_port_overhears_what_it_may() {
    for (policy, heard) in [
        (Promiscuous::Deny, [false; 2]),
        (Promiscuous::Guests, [true, false]),
        (Promiscuous::All, [true; 2]),
    ] {
        let switch = Switch::new();
        let [a, b] = ["a", "b"].map(|name| switch.plug(PortConfig::guest(name)));
        let service = switch.plug(PortConfig::service("nat"));
        let ear = switch.plug(PortConfig {
            promiscuous: policy,
            ..PortConfig::guest("ear")
        });
        for (port, address) in [(&a, A), (&b, B), (&service, C)] {
            port.send(frame(ALL, mac(address))).unwrap();
        }
        while ear.receive().is_some() {}
        a.send(frame(mac(B), mac(A))).unwrap();
        assert!(ear.receive().is_none(), "it does not want to");
        ear.set_promiscuous(true);
        a.send(frame(mac(B), mac(A))).unwrap();
        assert_eq!(ear.receive().is_some(), heard[0], "{policy:?}");
        a.send(frame(mac(C), mac(A))).unwrap();
        assert_eq!(ear.receive().is_some(), heard[1], "{policy:?}");
    }
}

#[test]
fn owner_is_woken_once_for_many_frames() {
    let (_switch, [a, b, _c]) = three();
    let wakes = counted(&b);
    for _ in 0..5 {
        a.send(frame(mac(B), mac(A))).unwrap();
    }
    assert_eq!(wakes.load(Ordering::Relaxed), 1);
    for _ in 0..5 {
        assert!(b.receive().is_some());
    }
    a.send(frame(mac(B), mac(A))).unwrap();
    assert_eq!(wakes.load(Ordering::Relaxed), 1, "it has not yet found nothing");
    assert!(b.receive().is_some() && b.receive().is_none());
    a.send(frame(mac(B), mac(A))).unwrap();
    assert_eq!(wakes.load(Ordering::Relaxed), 2);
}

#[test]
fn full_queue_gives_frames_back_to_services_and_drops_those_of_guests() {
    let (switch, [a, b, _c]) = three();
    let service = switch.plug(PortConfig::service("nat"));
    let wakes = counted(&service);
    b.send(frame(ALL, mac(B))).unwrap();
    let mut sent = 0;
    while service.send(frame(mac(B), mac(C))).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 1024);
    while service.receive().is_some() {}
    a.send(frame(mac(B), mac(A))).unwrap();
    assert_eq!(b.counters().dropped, 1);
    assert_eq!(wakes.load(Ordering::Relaxed), 1, "the broadcast of b");
    for _ in 0..511 {
        b.receive().unwrap();
    }
    assert_eq!(wakes.load(Ordering::Relaxed), 1);
    b.receive().unwrap();
    assert_eq!(wakes.load(Ordering::Relaxed), 2);
    service.send(frame(mac(B), mac(C))).unwrap();
}

#[test]
fn link_that_goes_takes_waiting_frames_along_and_lets_nothing_through() {
    let (_switch, [a, b, _c]) = three();
    let wakes = counted(&b);
    a.send(frame(mac(B), mac(A))).unwrap();
    b.set_link(false);
    assert!(!b.link_up() && b.receive().is_none());
    a.send(frame(mac(B), mac(A))).unwrap();
    b.send(frame(mac(A), mac(B))).unwrap();
    assert!(a.receive().is_none());
    b.set_link(true);
    b.set_link(true);
    assert!(b.receive().is_none());
    assert_eq!(wakes.load(Ordering::Relaxed), 3);
}

#[test]
fn frames_that_are_none_are_counted() {
    let (_switch, [a, b, _c]) = three();
    a.send(Frame::new(vec![0xff; 13])).unwrap();
    a.send(Frame::new(vec![0xff; 70_000])).unwrap();
    assert_eq!(a.counters().errors, 2);
    let mut long = frame(mac(B), mac(A));
    long.offload.segmentation = Some(device_model::net::Segmentation {
        kind: device_model::net::SegmentKind::Tcp4,
        size: 100,
        ecn: false,
    });
    b.set_accepts(Accepts::default());
    a.send(long).unwrap();
    assert!(b.receive().is_none());
    assert_eq!(b.counters().errors, 1);
}

#[test]
fn guest_that_forges_addresses_leaves_room_for_others() {
    let (switch, [a, b, _c]) = three();
    for n in 0..2000u16 {
        let [high, low] = n.to_be_bytes();
        a.send(frame(ALL, [2, 1, 0, 0, high, low])).unwrap();
    }
    assert_eq!(switch.inspect().at("addresses"), Some(&Node::Number(512)));
    b.send(frame(ALL, mac(B))).unwrap();
    assert_eq!(switch.inspect().at("addresses"), Some(&Node::Number(513)));
}

#[test]
fn capture_shows_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pcap");
    let (_switch, [a, b, _c]) = three();
    a.set_capture(Some(Arc::new(Capture::create(&path).unwrap())));
    a.send(frame(mac(B), mac(A))).unwrap();
    b.send(frame(mac(A), mac(B))).unwrap();
    assert!(a.receive().is_some());
    let record = 16 + frame(ALL, ALL).bytes.len();
    assert_eq!(std::fs::read(&path).unwrap().len(), 24 + 2 * record);
}
