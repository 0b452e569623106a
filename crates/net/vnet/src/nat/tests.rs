//! Tests of the NAT network, with a guest that has a TCP/IP of its own and servers on this host's loop-back.

mod services;

use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;

use device_model::Frame;
use device_model::net::packet::UDP;
use proptest::prelude::*;
use smoltcp::iface::Config;
use smoltcp::iface::Interface;
use smoltcp::iface::SocketHandle;
use smoltcp::iface::SocketSet;
use smoltcp::phy::Device;
use smoltcp::phy::DeviceCapabilities;
use smoltcp::phy::Medium;
use smoltcp::phy::RxToken;
use smoltcp::phy::TxToken;
use smoltcp::socket::tcp as guest_tcp;
use smoltcp::wire::HardwareAddress;
use smoltcp::wire::IpAddress;
use smoltcp::wire::IpCidr;

use super::packet::Packet;
use super::packet::Way;
use super::*;

const GUEST_MAC: [u8; 6] = [8, 0, 0x27, 0, 0, 1];
const GATEWAY_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x35, 2];
const PATIENCE: Duration = Duration::from_secs(60);

/// The guest's card: takes finished frames, as a card without offloads does.
struct Card {
    port: Arc<Port>,
    others: Vec<Frame>,
}

impl Card {
    fn way(&self, to: &str) -> Way {
        Way {
            to_mac: GATEWAY_MAC,
            from_mac: GUEST_MAC,
            from: "10.0.2.15".parse().unwrap(),
            to: to.parse().unwrap(),
        }
    }

    /// The next frame that `wanted` wants.
    fn wait(&self, wanted: impl Fn(&Packet<'_>) -> bool) -> Frame {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(frame) = self.port.receive() {
                if Packet::of(&frame.bytes).is_some_and(|packet| wanted(&packet)) {
                    return frame;
                }
            } else {
                assert!(Instant::now() < end, "nothing came");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn send_udp(&self, to: &str, ports: (u16, u16), payload: &[u8]) {
        let mut frame = packet::datagram(&self.way(to), ports.0, ports.1, payload).unwrap();
        crate::offload::fill_checksum(&mut frame).unwrap();
        let mut sent = self.port.send(frame);
        while let Err(frame) = sent {
            thread::sleep(Duration::from_millis(1));
            sent = self.port.send(frame);
        }
    }
}

struct Token<'a>(&'a Port, Option<Frame>);

impl RxToken for Token<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.1.unwrap().bytes[14..])
    }
}

impl TxToken for Token<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = packet::ethernet(GATEWAY_MAC, GUEST_MAC, 0x0800);
        bytes.resize(14 + len, 0);
        let result = f(&mut bytes[14..]);
        if bytes[14] >> 4 == 6 {
            bytes[12..14].copy_from_slice(&[0x86, 0xdd]);
        }
        // What is given back is lost, as on a wire.
        let _ = self.0.send(Frame::new(bytes));
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Token<'a>;
    type TxToken<'a> = Token<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Token<'_>, Token<'_>)> {
        loop {
            let frame = self.port.receive()?;
            if frame.bytes[12..14] == [8, 0] || frame.bytes[12..14] == [0x86, 0xdd] && frame.bytes[20] == 6 {
                return Some((Token(&self.port, Some(frame)), Token(&self.port, None)));
            }
            self.answer_arp(&frame);
            self.others.push(frame);
        }
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Token<'_>> {
        Some(Token(&self.port, None))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities
    }
}

impl Card {
    fn answer_arp(&self, frame: &Frame) {
        let asks_us = frame.bytes[12..14] == [8, 6] && frame.bytes[38..42] == [10, 0, 2, 15];
        if asks_us && frame.bytes[21] == 1 {
            let mut bytes = packet::ethernet(GATEWAY_MAC, GUEST_MAC, 0x0806);
            bytes.extend([0, 1, 8, 0, 6, 4, 0, 2]);
            bytes.extend(GUEST_MAC);
            bytes.extend([10, 0, 2, 15]);
            bytes.extend(&frame.bytes[22..32]);
            self.port.send(Frame::new(bytes)).unwrap();
        }
    }
}

struct Guest {
    nat: Nat,
    card: Card,
    interface: Interface,
    sockets: SocketSet<'static>,
    began: Instant,
}

fn guest(config: NatConfig) -> Guest {
    let switch = Switch::new();
    let nat = Nat::start(&switch, config).unwrap();
    let mut card = Card {
        port: switch.plug(PortConfig::guest("guest")),
        others: Vec::new(),
    };
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = 7;
    let mut interface = Interface::new(config, &mut card, smoltcp::time::Instant::ZERO);
    interface.update_ip_addrs(|all| {
        all.push(IpCidr::new(IpAddress::v4(10, 0, 2, 15), 0)).unwrap();
        all.push(IpCidr::new(GUEST6, 0)).unwrap();
    });
    Guest {
        nat,
        card,
        interface,
        sockets: SocketSet::new(Vec::new()),
        began: Instant::now(),
    }
}

fn loopback() -> NatConfig {
    NatConfig {
        loopback: true,
        ..NatConfig::default()
    }
}

impl Guest {
    fn poll(&mut self) {
        let now = smoltcp::time::Instant::from_micros(self.began.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.card, &mut self.sockets);
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut guest_tcp::Socket<'static> {
        self.sockets.get_mut::<guest_tcp::Socket<'static>>(handle)
    }

    fn add(&mut self) -> SocketHandle {
        let buffer = || guest_tcp::SocketBuffer::new(vec![0; 100_000]);
        self.sockets.add(guest_tcp::Socket::new(buffer(), buffer()))
    }

    fn connect(&mut self, to: (IpAddress, u16), from: u16) -> SocketHandle {
        let handle = self.add();
        let context = self.interface.context();
        let socket = self.sockets.get_mut::<guest_tcp::Socket<'static>>(handle);
        socket.connect(context, to, from).unwrap();
        handle
    }

    fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.poll();
            if done(self) {
                return;
            }
            assert!(Instant::now() < end, "nothing more happens");
            thread::sleep(Duration::from_micros(200));
        }
    }
}

const GUEST6: IpAddress = IpAddress::v6(0xfd17, 0x625c, 0xf037, 2, 0, 0, 0, 0xf);
const GATEWAY6: IpAddress = IpAddress::v6(0xfd17, 0x625c, 0xf037, 2, 0, 0, 0, 2);
const GATEWAY: IpAddress = IpAddress::v4(10, 0, 2, 2);

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

/// Sends everything that it is sent back, and ends when the client does.
fn echo_server() -> u16 {
    echo_server_at("127.0.0.1:0")
}

fn echo_server_at(address: &str) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

/// Sends `bytes` to the peer and receives as many back, then ends its side. What came back.
fn exchange(guest: &mut Guest, handle: SocketHandle, bytes: &[u8]) -> Vec<u8> {
    let (mut sent, mut back, mut closed) = (0, Vec::new(), false);
    guest.until(|guest| {
        let socket = guest.socket(handle);
        if sent < bytes.len() && socket.can_send() {
            sent += socket.send_slice(&bytes[sent..]).unwrap();
        }
        if sent == bytes.len() && !closed && socket.may_send() {
            socket.close();
            closed = true;
        }
        while socket.can_recv() {
            socket.recv(|data| (data.len(), back.extend_from_slice(data))).unwrap();
        }
        closed && !socket.may_recv()
    });
    back
}

#[test]
fn bytes_go_both_ways_and_both_ends_end() {
    let port = echo_server();
    let mut guest = guest(loopback());
    let bytes = pattern(3_000_000);
    let handle = guest.connect((GATEWAY, port), 40_000);
    assert!(exchange(&mut guest, handle, &bytes) == bytes);
    guest.until(|guest| guest.nat.inspect().at("tcp_connections") == Some(&Node::Number(0)));
}

#[test]
fn bytes_go_both_ways_by_ipv6() {
    let Ok(_) = TcpListener::bind("[::1]:0") else {
        eprintln!("SKIPPED: this host has no IPv6");
        return;
    };
    let port = echo_server_at("[::1]:0");
    let mut guest = guest(loopback());
    let bytes = pattern(1_000_000);
    let handle = guest.connect((GATEWAY6, port), 40_000);
    assert!(exchange(&mut guest, handle, &bytes) == bytes);
}

#[test]
fn refused_connection_is_refused_to_the_guest() {
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut guest = guest(loopback());
    let handle = guest.connect((GATEWAY, port), 40_000);
    guest.until(|guest| guest.socket(handle).state() == guest_tcp::State::Closed);
}

#[test]
fn loopback_of_the_host_is_out_of_reach_unless_asked_for() {
    let port = echo_server();
    let mut guest = guest(NatConfig::default());
    for (index, address) in [GATEWAY, IpAddress::v4(127, 0, 0, 1), IpAddress::v4(0, 0, 0, 0)]
        .into_iter()
        .enumerate()
    {
        if address.is_unspecified() {
            continue;
        }
        let handle = guest.connect((address, port), 40_000 + index as u16);
        guest.until(|guest| guest.socket(handle).state() == guest_tcp::State::Closed);
    }
}

#[test]
fn hundreds_of_connections_live_side_by_side() {
    let port = echo_server();
    let mut guest = guest(loopback());
    let handles: Vec<_> = (0..300).map(|n| guest.connect((GATEWAY, port), 10_000 + n)).collect();
    for (index, handle) in handles.iter().enumerate() {
        guest.until(|guest| guest.socket(*handle).may_send());
        guest
            .socket(*handle)
            .send_slice(format!("hello {index}").as_bytes())
            .unwrap();
    }
    assert_eq!(
        guest.nat.inspect().at("tcp_connections_total"),
        Some(&Node::Number(300))
    );
    for (index, handle) in handles.iter().enumerate() {
        let expected = format!("hello {index}");
        guest.until(|guest| guest.socket(*handle).recv_queue() == expected.len());
        let got = guest.socket(*handle).recv(|data| (data.len(), data.to_vec())).unwrap();
        assert_eq!(got, expected.as_bytes());
    }
}

#[test]
fn forwarded_port_leads_to_the_guest() {
    let mut guest = guest(NatConfig::default());
    let forward = Forward {
        transport: Transport::Tcp,
        host: "127.0.0.1:0".parse().unwrap(),
        guest: None,
        port: 22,
    };
    let at = guest.nat.forward(forward).unwrap();
    let handle = guest.add();
    guest.socket(handle).listen(22).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.write_all(b"SSH-2.0-client").unwrap();
        let mut banner = [0; 14];
        stream.read_exact(&mut banner).unwrap();
        banner
    });
    let mut got = Vec::new();
    guest.until(|guest| {
        let socket = guest.socket(handle);
        if socket.can_recv() {
            socket.recv(|data| (data.len(), got.extend_from_slice(data))).unwrap();
        }
        got.len() == 14
    });
    guest.socket(handle).send_slice(b"SSH-2.0-server").unwrap();
    guest.until(|_| client.is_finished());
    assert_eq!(
        (got.as_slice(), &client.join().unwrap()),
        (&b"SSH-2.0-client"[..], b"SSH-2.0-server")
    );
    let open = Forward { host: at, ..forward };
    assert!(guest.nat.forward(open).is_err(), "it is listened at already");
    guest.nat.unforward(open).unwrap();
    assert!(TcpStream::connect(at).is_err());
    assert!(guest.nat.unforward(open).is_err());
}

#[test]
fn datagrams_and_names_find_their_way() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dns = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut config = loopback();
    config.dns = Some(dns.local_addr().unwrap());
    let guest = guest(config);
    let port = server.local_addr().unwrap().port();
    for (socket, to, port) in [(&server, "10.0.2.2", port), (&dns, "10.0.2.3", 53)] {
        guest.card.send_udp(to, (4000, port), b"question");
        let mut buffer = [0; 100];
        let (len, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"question");
        socket.send_to(b"answer", from).unwrap();
        let frame = guest.card.wait(|packet| packet.protocol == UDP);
        let packet = Packet::of(&frame.bytes).unwrap();
        let (from, to) = packet.ports().unwrap();
        assert_eq!(
            (from.ip().to_string().as_str(), from.port()),
            (if port == 53 { "10.0.2.3" } else { "10.0.2.2" }, port)
        );
        assert_eq!(
            (to, &packet.payload[8..]),
            ("10.0.2.15:4000".parse().unwrap(), &b"answer"[..])
        );
        assert!(crate::offload::checksum_is_right(&Frame::new(frame.bytes.clone())));
    }
}

#[test]
fn clients_of_a_forwarded_udp_port_are_told_apart() {
    let guest = guest(NatConfig::default());
    let forward = Forward {
        transport: Transport::Udp,
        host: "127.0.0.1:0".parse().unwrap(),
        guest: None,
        port: 5353,
    };
    let at = guest.nat.forward(forward).unwrap();
    let clients = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
    // The guest is known once it has said something.
    guest.card.send_udp("10.0.2.2", (1, 1), b"");
    guest.card.wait(|packet| packet.protocol == packet::ICMP);
    for (client, word) in clients.iter().zip([b"one", b"two"]) {
        client.send_to(word, at).unwrap();
        let frame = guest.card.wait(|packet| packet.protocol == UDP);
        let packet = Packet::of(&frame.bytes).unwrap();
        let (from, to) = packet.ports().unwrap();
        assert_eq!((to.port(), &packet.payload[8..]), (5353, &word[..]));
        guest.card.send_udp("10.0.2.2", (5353, from.port()), word);
        let mut buffer = [0; 10];
        let (len, from) = client.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from), (&word[..], at));
    }
}

#[test]
fn gateway_answers_pings_and_closed_ports() {
    let guest = guest(NatConfig::default());
    let mut ping = vec![8, 0, 0, 0, 1, 2, 0, 1];
    ping.extend(pattern(56));
    let frame = packet::icmp(&guest.card.way("10.0.2.2"), &mut ping).unwrap();
    guest.card.port.send(frame).unwrap();
    let frame = guest.card.wait(|packet| packet.protocol == packet::ICMP);
    let reply = Packet::of(&frame.bytes).unwrap();
    assert_eq!((reply.payload[0], &reply.payload[4..]), (0, &ping[4..]));
    assert_eq!(
        device_model::net::packet::checksum(device_model::net::packet::sum(reply.payload)),
        0
    );
    guest.card.send_udp("10.0.2.2", (1000, 9), b"x");
    let frame = guest.card.wait(|packet| packet.protocol == packet::ICMP);
    assert_eq!(Packet::of(&frame.bytes).unwrap().payload[..2], [3, 3]);
}

#[test]
fn guest_that_never_takes_anything_holds_nobody_else_up() {
    let port = echo_server();
    let mut guest = guest(loopback());
    let handle = guest.connect((GATEWAY, port), 40_000);
    guest.until(|guest| guest.socket(handle).may_send());
    // Nothing is taken for a while, and far too much asked for.
    for _ in 0..3000 {
        guest.card.send_udp("10.0.2.2", (1000, 9), b"x");
    }
    let bytes = pattern(500_000);
    assert!(exchange(&mut guest, handle, &bytes) == bytes);
}

/// An engine without its thread.
fn engine() -> (engine::Engine, Arc<Port>, Sender<Command>) {
    let switch = Switch::new();
    let port = switch.plug(PortConfig::service("nat"));
    let card = switch.plug(PortConfig::guest("guest"));
    let (commands, queue) = mpsc::channel();
    let event = rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let config = NatConfig {
        resolv_conf: "/nonexistent".into(),
        ..NatConfig::default()
    };
    let engine = engine::Engine::new(config, port, Arc::new(event), queue, Arc::default()).unwrap();
    (engine, card, commands)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn scribbled_frames_do_no_harm(
        frames in proptest::collection::vec((0u8..6, proptest::collection::vec((0usize..80, any::<u8>()), 0..6), 0usize..90), 1..20),
    ) {
        let (mut engine, card, _commands) = engine();
        let way = Way {
            to_mac: GATEWAY_MAC,
            from_mac: GUEST_MAC,
            from: "10.0.2.15".parse().unwrap(),
            to: "10.0.2.2".parse().unwrap(),
        };
        let way6 = Way {
            from: "fe80::1".parse().unwrap(),
            to: "fe80::2".parse().unwrap(),
            ..way
        };
        let mut segment = vec![0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 2, 0x10, 0, 0, 0, 0, 0];
        segment.extend([1; 20]);
        for (kind, scribbles, cut) in frames {
            let mut bytes = match kind {
                0 => packet::packet(&way, device_model::net::packet::TCP, &segment).unwrap(),
                1 => packet::datagram(&way, 68, 67, &[1; 60]).unwrap().bytes,
                2 => packet::icmp(&way, &mut [8; 40]).unwrap().bytes,
                3 => packet::icmp(&way6, &mut [135; 40]).unwrap().bytes,
                4 => [packet::ethernet([0xff; 6], GUEST_MAC, 0x0806), vec![0, 1, 8, 0, 6, 4, 0, 1], vec![10; 20]].concat(),
                _ => packet::datagram(&way, 1, 2, &[1; 60]).unwrap().bytes,
            };
            for (at, value) in scribbles {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(bytes.len().saturating_sub(cut.saturating_sub(60)));
            // Destinations in the world are not of this test.
            let world = Packet::of(&bytes).is_some_and(|packet| {
                !["10.0.2.2", "10.0.2.3", "fe80::2", "255.255.255.255"].contains(&packet.to.to_string().as_str())
            });
            if !world {
                engine.take_frame(Frame::new(bytes));
            }
        }
        while let Some(frame) = card.receive() {
            prop_assert!(frame.bytes.len() >= 14);
        }
    }
}
