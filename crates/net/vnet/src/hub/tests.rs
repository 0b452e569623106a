//! Tests of networks between processes, with threads in place of switch processes.

use std::net::UdpSocket;
use std::sync::Mutex;

use device_model::Frame;
use device_model::net::Accepts;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn frame(from: u8, to: u8, n: u8) -> Frame {
    Frame::new(vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 0x88, 0xb5, n])
}

/// A machine's switch with a card, joined to a network.
struct Machine {
    card: Arc<Port>,
    _uplink: Uplink,
}

fn config() -> HubConfig {
    HubConfig {
        name: "lan".to_owned(),
        nat: None,
        host: None,
    }
}

/// Starts switches in threads, and counts those that were opened.
fn starter(directory: &Path, opened: &Arc<Mutex<usize>>) -> Starter {
    let (directory, opened) = (directory.to_owned(), Arc::clone(opened));
    Arc::new(move || {
        if let Some(hub) = Hub::open(&directory, &config())? {
            *opened.lock().unwrap() += 1;
            thread::spawn(move || hub.run());
        }
        Ok(())
    })
}

fn machine(directory: &Path, start: &Starter) -> Machine {
    let switch = Switch::new();
    let uplink = Uplink::join(&switch, directory, &config(), Arc::clone(start)).unwrap();
    Machine {
        card: switch.plug(PortConfig::guest("nic0")),
        _uplink: uplink,
    }
}

/// Sends until the other machine hears it.
fn reaches(from: &Machine, to: &Machine, ends: (u8, u8), n: u8) {
    let end = Instant::now() + PATIENCE;
    loop {
        from.card.send(frame(ends.0, ends.1, n)).unwrap();
        thread::sleep(Duration::from_millis(5));
        while let Some(frame) = to.card.receive() {
            if frame.bytes[14] == n {
                return;
            }
        }
        assert!(Instant::now() < end, "nothing came");
    }
}

#[test]
fn machines_hear_each_other_by_one_switch_which_ends_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Arc::default();
    let start = starter(dir.path(), &opened);
    let machines = [
        machine(dir.path(), &start),
        machine(dir.path(), &start),
        machine(dir.path(), &start),
    ];
    reaches(&machines[0], &machines[1], (1, 2), 1);
    reaches(&machines[1], &machines[2], (2, 3), 2);
    reaches(&machines[2], &machines[0], (3, 1), 3);
    assert_eq!(*opened.lock().unwrap(), 1);
    let [first, second, third] = machines;
    drop(third);
    reaches(&first, &second, (1, 2), 4);
    drop((first, second));
    let socket = dir.path().join("internal-lan.sock");
    let end = Instant::now() + PATIENCE;
    while socket.exists() {
        assert!(Instant::now() < end, "the switch does not end");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn lost_switch_is_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Arc::default();
    let start = starter(dir.path(), &opened);
    // One that dies: it takes the machines' connections along.
    let mut hub = Hub::open(dir.path(), &config()).unwrap().unwrap();
    let machines = [machine(dir.path(), &start), machine(dir.path(), &start)];
    let event = Arc::new(rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    let end = Instant::now() + PATIENCE;
    while hub.members.len() < 2 {
        assert!(Instant::now() < end, "nobody comes");
        hub.admit(&event);
        thread::sleep(Duration::from_millis(5));
    }
    drop(hub);
    reaches(&machines[0], &machines[1], (1, 2), 1);
    assert_eq!(*opened.lock().unwrap(), 1);
}

#[test]
fn long_segments_stay_whole_between_machines() {
    let dir = tempfile::tempdir().unwrap();
    let opened = Arc::default();
    let start = starter(dir.path(), &opened);
    let machines = [machine(dir.path(), &start), machine(dir.path(), &start)];
    reaches(&machines[0], &machines[1], (1, 2), 1);
    machines[1].card.set_accepts(Accepts::ALL);
    let mut long = frame(1, 2, 9);
    long.bytes.resize(60_000, 7);
    long.offload.segmentation = Some(Segmentation {
        kind: SegmentKind::Tcp4,
        size: 1448,
        ecn: false,
    });
    machines[0].card.send(long.clone()).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        if machines[1].card.receive().is_some_and(|frame| frame == long) {
            return;
        }
        assert!(Instant::now() < end, "nothing came");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn tunnel_carries_frames_between_two_hosts() {
    let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    sockets[0].connect(sockets[1].local_addr().unwrap()).unwrap();
    sockets[1].connect(sockets[0].local_addr().unwrap()).unwrap();
    let machines = sockets.map(|socket| {
        let switch = Switch::new();
        let uplink = Uplink::tunnel(&switch, socket).unwrap();
        Machine {
            card: switch.plug(PortConfig::guest("nic0")),
            _uplink: uplink,
        }
    });
    reaches(&machines[0], &machines[1], (1, 2), 1);
    reaches(&machines[1], &machines[0], (2, 1), 2);
}

#[test]
fn names_are_letters_digits_and_two_signs() {
    assert!(is_name("lan-1_x"));
    for name in ["", "a/b", "..", "a b", "ä", &"x".repeat(33)] {
        assert!(!is_name(name), "{name}");
    }
}
