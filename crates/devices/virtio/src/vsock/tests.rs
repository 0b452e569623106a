//! Tests of the socket device, as a driver.

use std::sync::Mutex;

use device_model::NoStreams;
use device_model::Reset;
use device_model::Width;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::virtio::Link;
use zerocopy::IntoBytes;

use super::*;
use crate::Mmio;
use crate::testing::Bench;
use crate::testing::memory;

const CID: u32 = 5;
const FLOW: Flow = Flow::stream(1234, 77);
/// The same ports, for messages.
const PACKETS: Flow = Flow::packets(1234, 77);
/// Where what the device receives and sends is.
const SENT: u64 = 0x1000;
const ROOM: u64 = 0x4000;
/// Bytes behind a header that a buffer of the driver's has.
const DATA: u32 = 1000;

#[derive(Default)]
struct Far {
    statuses: BTreeMap<Flow, FlowStatus>,
    offered: VecDeque<Flow>,
    changed: VecDeque<Flow>,
    inbound: BTreeMap<Flow, VecDeque<u8>>,
    /// Lengths of messages.
    ends: VecDeque<usize>,
    outbound: Vec<u8>,
    /// Where messages to the host ended.
    outbound_ends: Vec<usize>,
    log: Vec<String>,
}

/// A host whose programs do what a test says.
#[derive(Default)]
struct Programs(Mutex<Far>);

impl Programs {
    fn change(&self, flow: Flow, change: impl FnOnce(&mut FlowStatus)) {
        let mut far = self.0.lock().unwrap();
        let nothing = FlowStatus {
            open: false,
            readable: 0,
            message: 0,
            delivered: 0,
            ended: false,
            deaf: false,
        };
        change(far.statuses.entry(flow).or_insert(nothing));
        far.changed.push_back(flow);
    }

    fn say(&self, flow: Flow, bytes: &[u8]) {
        self.0.lock().unwrap().inbound.entry(flow).or_default().extend(bytes);
        self.change(flow, |status| status.readable += bytes.len());
    }

    /// A message.
    fn post(&self, bytes: &[u8]) {
        self.0.lock().unwrap().ends.push_back(bytes.len());
        self.say(PACKETS, bytes);
        self.change(PACKETS, |status| {
            if status.readable == bytes.len() {
                status.message = bytes.len();
            }
        });
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().log)
    }
}

impl StreamHost for Programs {
    fn set_waker(&self, _waker: StreamWaker) {}

    fn offered(&self) -> Option<Flow> {
        self.0.lock().unwrap().offered.pop_front()
    }

    fn changed(&self) -> Option<Flow> {
        self.0.lock().unwrap().changed.pop_front()
    }

    fn status(&self, flow: Flow) -> Option<FlowStatus> {
        self.0.lock().unwrap().statuses.get(&flow).copied()
    }

    fn connect(&self, flow: Flow) -> bool {
        self.change(flow, |_| ());
        let mut far = self.0.lock().unwrap();
        far.changed.clear();
        far.log.push(format!("connect {}", flow.host));
        true
    }

    fn accept(&self, flow: Flow) {
        self.change(flow, |status| status.open = true);
        self.0.lock().unwrap().log.push("accept".to_owned());
    }

    fn send(&self, _flow: Flow, bytes: &[u8], end: bool) {
        let mut far = self.0.lock().unwrap();
        far.outbound.extend(bytes);
        if end {
            let at = far.outbound.len();
            far.outbound_ends.push(at);
        }
    }

    fn receive(&self, flow: Flow, most: usize) -> (Vec<u8>, bool) {
        let mut far = self.0.lock().unwrap();
        let first = far.ends.front().copied().unwrap_or(usize::MAX);
        let waiting = far.inbound.entry(flow).or_default();
        let len = most.min(waiting.len()).min(first);
        let bytes: Vec<u8> = waiting.drain(..len).collect();
        let left = waiting.len();
        let end = len == first;
        if end {
            far.ends.pop_front();
        } else if let Some(first) = far.ends.front_mut() {
            *first -= len;
        }
        let message = far.ends.front().copied().unwrap_or(left);
        let status = far.statuses.get_mut(&flow).unwrap();
        (status.readable, status.message) = (left, message);
        (bytes, end)
    }

    fn shut_down(&self, _flow: Flow, sends: bool, takes: bool) {
        self.0.lock().unwrap().log.push(format!("shut {sends} {takes}"));
    }

    fn close(&self, flow: Flow, flush: bool) {
        let mut far = self.0.lock().unwrap();
        far.statuses.remove(&flow);
        far.log.push(format!("close {flush}"));
    }

    fn reset(&self) {
        let mut far = self.0.lock().unwrap();
        far.statuses.clear();
        far.log.push("reset".to_owned());
    }
}

/// A driver with room for what the device says.
struct Driver {
    bench: Bench,
    far: Arc<Programs>,
    alloc: u32,
    taken: u32,
}

impl Driver {
    fn new(link: Link) -> Self {
        let far = Arc::new(Programs::default());
        let device = Vsock::new(CID, far.clone(), Arc::new(|| ()));
        let mut bench = Bench::new(link, device);
        bench.start(u64::MAX);
        far.log();
        let mut driver = Self {
            bench,
            far,
            alloc: 65536,
            taken: 0,
        };
        driver.give_room();
        driver
    }

    fn give_room(&mut self) {
        self.bench.offer(0, &[], &[(ROOM, 44), (ROOM + 44, DATA)]);
    }

    fn header(&self, what: u16) -> Header {
        Header {
            src_cid: u64::from(CID).into(),
            dst_cid: HOST_CID.into(),
            src_port: FLOW.guest.into(),
            dst_port: FLOW.host.into(),
            buf_alloc: self.alloc.into(),
            fwd_cnt: self.taken.into(),
            ..Header::new(FLOW, 0, 0, what)
        }
    }

    fn send(&mut self, header: Header, bytes: &[u8]) {
        let len = header.as_bytes().len() as u32;
        self.bench.memory.write(SENT, header.as_bytes()).unwrap();
        self.bench.memory.write(SENT + 44, bytes).unwrap();
        self.bench
            .offer(1, &[(SENT, len), (SENT + 44, bytes.len() as u32)], &[]);
        assert!(self.bench.used(1).is_some());
    }

    fn tell(&mut self, what: u16) {
        self.send(self.header(what), &[]);
    }

    fn data(&mut self, bytes: &[u8]) {
        let mut header = self.header(op::RW);
        header.len = (bytes.len() as u32).into();
        self.send(header, bytes);
    }

    fn shut(&mut self, flags: u32) {
        let mut header = self.header(op::SHUTDOWN);
        header.flags = flags.into();
        self.send(header, &[]);
    }

    /// What the device says next; gives it room for more.
    fn hear(&mut self) -> Option<(Header, Vec<u8>)> {
        self.bench.poll();
        let (_, len) = self.bench.used(0)?;
        let header: Header = self.bench.memory.read_obj(ROOM).unwrap();
        let mut bytes = vec![0; len as usize - 44];
        self.bench.memory.read(ROOM + 44, &mut bytes).unwrap();
        assert_eq!(header.len.get(), len - 44);
        assert_eq!(header.dst_cid.get(), CID.into());
        self.give_room();
        Some((header, bytes))
    }

    fn ops(&mut self) -> Vec<u16> {
        std::iter::from_fn(|| self.hear().map(|(header, _)| header.op.get())).collect()
    }

    /// A connection that both sides have.
    fn connect(&mut self) {
        self.tell(op::REQUEST);
        self.far.change(FLOW, |status| status.open = true);
        assert_eq!(self.ops(), [op::RESPONSE]);
        self.far.log();
    }
}

#[test]
fn guest_connects_and_bytes_go_both_ways() {
    for link in [Link::Mmio, Link::Pci] {
        let mut driver = Driver::new(link);
        assert_eq!(driver.bench.config(0, Width::Dword), CID.into());
        driver.tell(op::REQUEST);
        assert_eq!(driver.far.log(), ["connect 1234"]);
        assert_eq!(driver.ops(), [0; 0]);
        driver.far.change(FLOW, |status| status.open = true);
        let (header, _) = driver.hear().unwrap();
        assert_eq!((header.op.get(), header.buf_alloc.get()), (op::RESPONSE, BUFFER));
        assert_eq!((header.src_cid.get(), header.kind.get()), (HOST_CID, STREAM));
        assert_eq!((header.src_port.get(), header.dst_port.get()), (1234, 77));
        driver.data(b"to the host");
        assert_eq!(driver.far.0.lock().unwrap().outbound, b"to the host");
        driver.far.say(FLOW, &[9; 1500]);
        let (header, bytes) = driver.hear().unwrap();
        assert_eq!((header.op.get(), bytes.len()), (op::RW, 1000));
        assert_eq!(driver.hear().unwrap().1, [9; 500]);
        assert!(driver.hear().is_none());
    }
}

#[test]
fn host_connects_and_the_guest_may_refuse() {
    let mut driver = Driver::new(Link::Mmio);
    for answer in [op::RESPONSE, op::RST] {
        driver.far.change(FLOW, |_| ());
        driver.far.0.lock().unwrap().offered.push_back(FLOW);
        assert_eq!(driver.ops(), [op::REQUEST]);
        driver.tell(answer);
        let expected = if answer == op::RST { "close true" } else { "accept" };
        assert_eq!(driver.far.log(), [expected]);
        driver.tell(op::RST);
        driver.far.log();
        assert_eq!(driver.ops(), [0; 0]);
    }
}

#[test]
fn program_that_is_not_there_is_a_reset() {
    let mut driver = Driver::new(Link::Mmio);
    driver.tell(op::REQUEST);
    driver.far.0.lock().unwrap().statuses.clear();
    driver.far.0.lock().unwrap().changed.push_back(FLOW);
    assert_eq!(driver.ops(), [op::RST]);
}

#[test]
fn credit_of_the_guest_is_kept() {
    let mut driver = Driver::new(Link::Mmio);
    driver.alloc = 300;
    driver.connect();
    driver.far.say(FLOW, &[1; 700]);
    assert_eq!(driver.hear().unwrap().1.len(), 300);
    // Then it is asked for more, once.
    assert_eq!(driver.ops(), [op::CREDIT_REQUEST]);
    driver.taken = 100;
    driver.tell(op::CREDIT_UPDATE);
    assert_eq!(driver.hear().unwrap().1.len(), 100);
    assert_eq!(driver.ops(), [op::CREDIT_REQUEST]);
    // A guest that has taken more than it got gets nothing.
    driver.taken = 500;
    driver.tell(op::CREDIT_UPDATE);
    assert_eq!(driver.ops(), [op::CREDIT_REQUEST]);
    driver.taken = 400;
    driver.tell(op::CREDIT_UPDATE);
    assert_eq!(driver.hear().unwrap().1.len(), 300);
}

#[test]
fn guest_hears_of_what_was_delivered_and_may_not_send_more_than_is_kept() {
    let mut driver = Driver::new(Link::Mmio);
    driver.connect();
    for _ in 0..BUFFER / 4096 {
        driver.data(&[3; 4096]);
    }
    assert_eq!(driver.ops(), [0; 0]);
    driver.far.change(FLOW, |status| status.delivered = (BUFFER / 2).into());
    let (header, _) = driver.hear().unwrap();
    assert_eq!((header.op.get(), header.fwd_cnt.get()), (op::CREDIT_UPDATE, BUFFER / 2));
    for _ in 0..BUFFER / 8192 {
        driver.data(&[3; 4096]);
    }
    driver.far.log();
    driver.data(&[3]);
    assert_eq!(driver.far.log(), ["close false"]);
    assert_eq!(driver.ops(), [op::RST]);
}

#[test]
fn credit_is_told_when_asked_for() {
    let mut driver = Driver::new(Link::Mmio);
    driver.connect();
    driver.tell(op::CREDIT_REQUEST);
    assert_eq!(driver.ops(), [op::CREDIT_UPDATE]);
}

#[test]
fn each_direction_ends_by_itself() {
    let mut driver = Driver::new(Link::Mmio);
    driver.connect();
    driver.shut(shutdown::SEND);
    assert_eq!(driver.far.log(), ["shut true false"]);
    driver.far.say(FLOW, b"last");
    driver.far.change(FLOW, |status| status.ended = true);
    assert_eq!(driver.hear().unwrap().1, b"last");
    let (header, _) = driver.hear().unwrap();
    assert_eq!((header.op.get(), header.flags.get()), (op::SHUTDOWN, shutdown::SEND));
    driver.far.change(FLOW, |status| status.deaf = true);
    let (header, _) = driver.hear().unwrap();
    assert_eq!((header.op.get(), header.flags.get()), (op::SHUTDOWN, shutdown::BOTH));
    assert_eq!(driver.ops(), [0; 0]);
    driver.shut(shutdown::BOTH);
    assert_eq!(driver.far.log(), ["close true"]);
    assert_eq!(driver.ops(), [op::RST]);
}

#[test]
fn guest_that_ended_may_not_go_on() {
    let mut driver = Driver::new(Link::Mmio);
    driver.connect();
    driver.shut(shutdown::SEND);
    driver.data(b"more");
    assert_eq!(driver.far.0.lock().unwrap().outbound, b"");
    assert_eq!(driver.ops(), [op::RST]);
}

#[test]
fn what_nobody_knows_is_reset_but_resets_are_not() {
    let mut driver = Driver::new(Link::Mmio);
    for what in [
        op::RESPONSE,
        op::SHUTDOWN,
        op::RW,
        op::CREDIT_UPDATE,
        op::CREDIT_REQUEST,
        99,
    ] {
        driver.tell(what);
        assert_eq!(driver.ops(), [op::RST], "{what}");
    }
    driver.tell(op::RST);
    assert_eq!(driver.ops(), [0; 0]);
    // To another than the host, and of another type.
    let mut header = driver.header(op::REQUEST);
    header.dst_cid = 9.into();
    driver.send(header, &[]);
    assert_eq!(driver.hear().unwrap().0.src_cid.get(), 9);
    let header = driver.header(op::REQUEST).with_kind(3);
    driver.send(header, &[]);
    let (answer, _) = driver.hear().unwrap();
    assert_eq!((answer.op.get(), answer.kind.get()), (op::RST, 3));
    // In another's name.
    let mut header = driver.header(op::REQUEST);
    header.src_cid = 9.into();
    driver.send(header, &[]);
    assert_eq!(driver.ops(), [0; 0]);
    assert_eq!(driver.far.log(), [""; 0]);
}

#[test]
fn refused_guest_is_not_listened_to_until_it_listens() {
    let far = Arc::new(Programs::default());
    let mut bench = Bench::new(Link::Mmio, Vsock::new(CID, far, Arc::new(|| ())));
    bench.start(u64::MAX);
    let header = Header {
        src_cid: u64::from(CID).into(),
        dst_cid: HOST_CID.into(),
        ..Header::new(FLOW, 0, 0, op::RW)
    };
    bench.memory.write(SENT, header.as_bytes()).unwrap();
    let mut taken = 0;
    for _ in 0..2 * REFUSED {
        bench.offer(1, &[(SENT, 44)], &[]);
        if bench.used(1).is_none() {
            break;
        }
        taken += 1;
    }
    assert_eq!(taken, REFUSED);
    bench.offer(0, &[], &[(ROOM, 44)]);
    assert!(bench.used(0).is_some());
    bench.poll();
    assert!(bench.used(1).is_some());
}

#[test]
fn connections_take_turns() {
    let mut driver = Driver::new(Link::Mmio);
    let flows = [10, 11, 12].map(|guest| Flow::stream(1, guest));
    for flow in flows {
        let mut header = driver.header(op::REQUEST);
        (header.src_port, header.dst_port) = (flow.guest.into(), flow.host.into());
        driver.send(header, &[]);
        driver.far.change(flow, |status| status.open = true);
    }
    assert_eq!(driver.ops().len(), 3);
    for flow in flows {
        driver.far.say(flow, &[0; 3000]);
    }
    let ports: Vec<u32> = std::iter::from_fn(|| driver.hear().map(|(header, _)| header.dst_port.get())).collect();
    assert_eq!(ports, [10, 11, 12, 10, 11, 12, 10, 11, 12]);
}

#[test]
fn malformed_packets_break_the_device() {
    let mut driver = Driver::new(Link::Mmio);
    driver.connect();
    let mut header = driver.header(op::RW);
    header.len = 100.into();
    driver.bench.memory.write(SENT, header.as_bytes()).unwrap();
    driver.bench.offer(1, &[(SENT, 44)], &[]);
    assert!(driver.bench.is_broken());
    let mut driver = Driver::new(Link::Mmio);
    driver.bench.offer(1, &[(SENT, 43)], &[]);
    assert!(driver.bench.is_broken());
    let far = Arc::new(Programs::default());
    let mut bench = Bench::new(Link::Mmio, Vsock::new(CID, far.clone(), Arc::new(|| ())));
    bench.start(u64::MAX);
    far.change(FLOW, |_| ());
    far.0.lock().unwrap().offered.push_back(FLOW);
    bench.offer(0, &[], &[(ROOM, 43)]);
    assert!(bench.is_broken());
}

#[test]
fn restored_guest_is_told_that_its_connections_are_gone() {
    let mut driver = Driver::new(Link::Mmio);
    driver.connect();
    let saved = driver.bench.device.save_blob();
    driver.bench.device.restore_blob(&saved).unwrap();
    assert_eq!(driver.far.log(), ["reset", "reset"]);
    driver.bench.offer(2, &[], &[(0x8000, 4)]);
    assert_eq!(driver.bench.used(2), Some((0, 4)));
    assert_eq!(driver.bench.memory.read_obj::<u32>(0x8000).unwrap(), TRANSPORT_RESET);
    driver.data(b"x");
    assert_eq!(driver.ops(), [op::RST]);
    driver.bench.device.reset(Reset::Cold);
    assert_eq!(driver.far.log(), ["reset"]);
}

impl Driver {
    /// A packet of the flow of messages.
    fn packet(&mut self, what: u16, flags: u32, bytes: &[u8]) {
        let mut header = self.header(what).with_kind(SEQPACKET);
        header.flags = flags.into();
        header.len = (bytes.len() as u32).into();
        self.send(header, bytes);
    }

    /// A connection for messages that both sides have.
    fn connect_packets(&mut self) {
        self.packet(op::REQUEST, 0, &[]);
        self.far.change(PACKETS, |status| status.open = true);
        let (header, _) = self.hear().unwrap();
        assert_eq!((header.op.get(), header.kind.get()), (op::RESPONSE, SEQPACKET));
        self.far.log();
    }

    /// The next part of a message: its length, and whether it is the last.
    fn part(&mut self) -> (usize, bool) {
        let (header, bytes) = self.hear().unwrap();
        assert_eq!((header.op.get(), header.kind.get()), (op::RW, SEQPACKET));
        (bytes.len(), header.flags.get() == END_OF_MESSAGE)
    }
}

#[test]
fn messages_keep_their_ends_in_both_directions() {
    for link in [Link::Mmio, Link::Pci] {
        let mut driver = Driver::new(link);
        driver.connect_packets();
        driver.packet(op::RW, 0, b"one ");
        // With the end of a record, which Unix sockets do not have.
        driver.packet(op::RW, END_OF_MESSAGE | 2, b"message");
        driver.packet(op::RW, END_OF_MESSAGE, b"another");
        let far = driver.far.0.lock().unwrap();
        assert_eq!(
            (far.outbound.as_slice(), far.outbound_ends.as_slice()),
            (&b"one messageanother"[..], &[11, 18][..])
        );
        drop(far);
        driver.far.post(&[1; 1500]);
        driver.far.post(&[2; 10]);
        assert_eq!(
            [driver.part(), driver.part(), driver.part()],
            [(1000, false), (500, true), (10, true)]
        );
        assert!(driver.hear().is_none());
    }
}

#[test]
fn credit_is_kept_within_messages_and_none_is_longer_than_all_of_it() {
    let mut driver = Driver::new(Link::Mmio);
    driver.alloc = 600;
    driver.connect_packets();
    driver.far.post(&[1; 400]);
    driver.far.post(&[2; 600]);
    driver.far.post(&[3; 601]);
    assert_eq!([driver.part(), driver.part()], [(400, true), (200, false)]);
    assert_eq!(driver.ops(), [op::CREDIT_REQUEST]);
    driver.taken = 400;
    driver.packet(op::CREDIT_UPDATE, 0, &[]);
    assert_eq!(driver.part(), (400, true));
    let (header, _) = driver.hear().unwrap();
    assert_eq!((header.op.get(), header.kind.get()), (op::RST, SEQPACKET));
    assert_eq!(driver.far.log(), ["close false"]);
    // A message that never ends is more than is kept.
    let mut driver = Driver::new(Link::Mmio);
    driver.connect_packets();
    for _ in 0..BUFFER / 4096 {
        driver.packet(op::RW, 0, &[3; 4096]);
    }
    driver.packet(op::RW, END_OF_MESSAGE, &[3]);
    assert_eq!(driver.far.log(), ["close false"]);
    assert_eq!(driver.ops(), [op::RST]);
}

#[test]
fn types_of_sockets_do_not_know_of_one_another() {
    let mut driver = Driver::new(Link::Mmio);
    driver.connect_packets();
    driver.data(b"bytes");
    let (header, _) = driver.hear().unwrap();
    assert_eq!((header.op.get(), header.kind.get()), (op::RST, STREAM));
    driver.connect();
    driver.packet(op::RST, 0, &[]);
    assert_eq!(driver.far.log(), ["close true"]);
    driver.data(b"bytes");
    assert_eq!(driver.ops(), [0; 0], "the other is still there");
}

#[test]
fn driver_without_messages_has_none() {
    let far = Arc::new(Programs::default());
    let device = Vsock::new(CID, far.clone(), Arc::new(|| ()));
    let mut bench = Bench::new(Link::Mmio, device);
    bench.start(!F_SEQPACKET);
    far.log();
    let (alloc, taken) = (65536, 0);
    let mut driver = Driver {
        bench,
        far,
        alloc,
        taken,
    };
    driver.give_room();
    driver.packet(op::REQUEST, 0, &[]);
    let (header, _) = driver.hear().unwrap();
    assert_eq!((header.op.get(), header.kind.get()), (op::RST, SEQPACKET));
    driver.far.change(PACKETS, |_| ());
    driver.far.0.lock().unwrap().offered.push_back(PACKETS);
    assert_eq!(driver.ops(), [0; 0]);
    assert_eq!(driver.far.log(), ["close false"]);
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    let (memory, probe) = (memory(), IrqProbe::new());
    test_kit::contract(&clock, || {
        let device = Vsock::new(CID, Arc::new(NoStreams), Arc::new(|| ()));
        Box::new(Mmio::new(device, probe.line(0), &memory))
    });
}
