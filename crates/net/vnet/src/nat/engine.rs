//! The thread of a NAT network: what is awaited, and who is served when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use std::time::Instant;

use device_model::Frame;
use device_model::FramePort;
use device_model::net::Mac;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::event::epoll::EventData;
use rustix::event::epoll::EventFlags;
use smoltcp::time::Instant as Time;

use super::Command;
use super::Forward;
use super::Gauges;
use super::Listener;
use super::NatConfig;
use super::dhcp::Server;
use super::echo::Ping;
use super::echo::Pinger;
use super::fragments;
use super::fragments::Assembler;
use super::link;
use super::link::Neighbors;
use super::link::Own;
use super::packet;
use super::packet::Packet;
use super::packet::Unreachable;
use super::resolver::Resolver;
use super::tcp;
use super::tcp::Connection;
use super::tcp::Ends;
use super::tcp::Served;
use super::tftp;
use super::udp::Mapping;
use super::wire::Out;
use super::wire::Wire;
use crate::Port;

pub(super) const UNKNOWN: Mac = [0xff; 6];
/// Identifier of the event that wakes the thread.
const WAKE: u64 = 0;
/// Connections, mappings and pings at most.
const CONNECTIONS: usize = 16_384;
const MAPPINGS: usize = 8192;
const PINGS: usize = 256;
/// Frames that are taken from the guest before others have their turn.
const BUDGET: usize = 512;
/// Connections that are accepted at a forwarded port before others have their turn.
const ACCEPTED: usize = 64;
/// How often what nobody uses is looked for, and how often routers tell of themselves.
const SWEEP: Duration = Duration::from_secs(5);
const ADVERTISE: Duration = Duration::from_secs(300);
/// The first port by which guests know clients of forwarded ports.
const FIRST_PORT: u16 = 49_152;

/// Whose descriptor an event is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Connection,
    Mapping,
    Pinger,
    Door,
}

/// A port of the host's that leads to a guest.
pub(super) struct Entrance {
    pub(super) forward: Forward,
    pub(super) listener: Listener,
}

pub(super) struct Engine {
    // Wiring
    port: Arc<Port>,
    pub(super) out: Out,
    epoll: OwnedFd,
    event: Arc<OwnedFd>,
    commands: Receiver<Command>,
    gauges: Arc<Gauges>,
    // Configuration
    loopback: bool,
    pub(super) restricted: bool,
    pub(super) own: Own,
    // State
    pub(super) dhcp: Server,
    fragments: Assembler,
    pub(super) tftp: Option<tftp::Server>,
    pub(super) resolver: Resolver,
    pub(super) neighbors: Neighbors,
    targets: HashMap<u64, Target>,
    next: u64,
    connections: HashMap<u64, Connection>,
    ends: HashMap<Ends, u64>,
    pub(super) mappings: HashMap<u64, Mapping>,
    pub(super) mapped: HashMap<SocketAddr, u64>,
    pub(super) pingers: HashMap<u64, Pinger>,
    pub(super) pings: HashMap<Ping, u64>,
    pub(super) doors: HashMap<u64, Entrance>,
    /// Connections that are to be served, and those that wait for room in the guest's port.
    ready: VecDeque<u64>,
    blocked: Vec<u64>,
    timers: BinaryHeap<Reverse<(Time, u64)>>,
    began: Instant,
    swept: Instant,
    advertised: Instant,
    next_port: u16,
    pub(super) buffer: Vec<u8>,
}

impl Engine {
    pub(super) fn new(
        config: NatConfig,
        port: Arc<Port>,
        event: Arc<OwnedFd>,
        commands: Receiver<Command>,
        gauges: Arc<Gauges>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*event, EventData::new_u64(WAKE), EventFlags::IN)?;
        let own = Own::of(&config);
        let now = Instant::now();
        Ok(Self {
            out: Out::new(Arc::clone(&port), config.mtu.into()),
            port,
            epoll,
            event,
            commands,
            gauges,
            loopback: config.loopback,
            restricted: config.restricted,
            dhcp: Server::of(&config),
            fragments: Assembler::default(),
            tftp: config.tftp.map(|directory| tftp::Server::new(directory, config.mtu)),
            own,
            resolver: Resolver::new(config.dns, config.resolv_conf),
            neighbors: Neighbors::default(),
            targets: HashMap::new(),
            next: WAKE + 1,
            connections: HashMap::new(),
            ends: HashMap::new(),
            mappings: HashMap::new(),
            mapped: HashMap::new(),
            pingers: HashMap::new(),
            pings: HashMap::new(),
            doors: HashMap::new(),
            ready: VecDeque::new(),
            blocked: Vec::new(),
            timers: BinaryHeap::new(),
            began: now,
            swept: now,
            advertised: now,
            next_port: FIRST_PORT,
            buffer: vec![0; 65_536],
        })
    }

    fn now(&self) -> Time {
        let micros = self.began.elapsed().as_micros();
        Time::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
    }

    /// Serves the network until it is told to end.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            let timeout = self.timeout();
            if !self.turn(&timeout, &mut events) {
                return;
            }
        }
    }

    /// Does what is due now, and waits for nothing.
    pub(super) fn step(&mut self) {
        self.turn(&Timespec::default(), &mut Vec::with_capacity(256));
    }

    /// Waits for something to happen, and sees to it. False at the end.
    fn turn(&mut self, timeout: &Timespec, events: &mut Vec<epoll::Event>) -> bool {
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), Some(timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "a NAT network ends: the host's events cannot be had");
                return false;
            }
        }
        for event in &*events {
            let (data, flags) = (event.data, event.flags);
            self.happened(data.u64(), flags);
        }
        if !self.obey() {
            return false;
        }
        self.take_frames();
        if self.out.flush() {
            for id in std::mem::take(&mut self.blocked) {
                self.list(id);
            }
        }
        self.take_timers();
        self.serve_all();
        self.sweep();
        true
    }

    /// How long nothing is due.
    fn timeout(&self) -> Timespec {
        let mut wait = SWEEP;
        if let Some(Reverse((at, _))) = self.timers.peek() {
            let left = at.total_micros().saturating_sub(self.now().total_micros());
            wait = wait.min(Duration::from_micros(u64::try_from(left).unwrap_or(0)));
        }
        if !self.ready.is_empty() || self.port.has_frames() {
            wait = Duration::ZERO;
        }
        Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        }
    }

    fn happened(&mut self, id: u64, flags: EventFlags) {
        if id == WAKE {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.event, &mut count);
            return;
        }
        match self.targets.get(&id) {
            Some(Target::Connection) => {
                let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
                if let Some(connection) = self.connections.get_mut(&id) {
                    let readable = broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
                    connection.ready(readable, broken || flags.contains(EventFlags::OUT));
                    self.list(id);
                }
            }
            Some(Target::Mapping) => self.datagrams_came(id),
            Some(Target::Pinger) => self.replies_came(id),
            Some(Target::Door) => self.knocked(id),
            None => {}
        }
    }

    /// Carries out what other threads ask for. False at the end.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::End => return false,
                Command::Lead(stream, wanted, port) => self.lead_client(stream, &wanted, port),
                Command::Name(mac, name) => self.dhcp.give_name(mac, name),
                Command::Lease(mac, reply) => {
                    // Nobody has to wait for it.
                    let _ = reply.send(self.dhcp.lease(mac, None));
                }
                Command::Open(forward, listener) => {
                    let id = self.new_id();
                    let watched = match &listener {
                        Listener::Tcp(listener) => self.watch(id, listener, EventFlags::IN),
                        Listener::Udp(door) => self.watch(id, &door.socket, EventFlags::IN),
                    };
                    if watched.is_ok() {
                        self.targets.insert(id, Target::Door);
                        self.doors.insert(id, Entrance { forward, listener });
                    }
                }
                Command::Close(forward, reply) => {
                    let found = self.doors.iter().find(|(_, door)| door.forward == forward);
                    let id = found.map(|(id, _)| *id);
                    if let Some(id) = id {
                        self.doors.remove(&id);
                        self.targets.remove(&id);
                    }
                    // Nobody has to wait for it.
                    let _ = reply.send(id.is_some());
                }
            }
        }
        true
    }

    fn new_id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn watch(&self, id: u64, source: impl AsFd, flags: EventFlags) -> io::Result<()> {
        epoll::add(&self.epoll, source, EventData::new_u64(id), flags)?;
        Ok(())
    }

    /// Takes what the guest has sent.
    fn take_frames(&mut self) {
        for _ in 0..BUDGET {
            let Some(frame) = self.port.receive() else { break };
            self.take_frame(frame);
        }
    }

    pub(super) fn take_frame(&mut self, frame: Frame) {
        if frame.bytes.get(12..14) == Some(&link::ARP.to_be_bytes()) {
            if let Some((address, mac, answer)) = link::arp(&frame.bytes, &self.own) {
                self.neighbors.learn(address, mac, &self.own);
                if let IpAddr::V4(address) = address {
                    self.dhcp.note(mac, address);
                }
                answer.into_iter().for_each(|answer| self.out.send(answer));
            }
            return;
        }
        let packet = Packet::of(&frame.bytes).filter(|packet| packet.protocol != fragments::FRAGMENT);
        let Some(packet) = packet else {
            // What is put together is no fragment.
            if let Some(whole) = self.fragments.take(&frame.bytes, Instant::now()) {
                self.take_frame(whole);
            }
            return;
        };
        if packet.to.is_ipv6() && self.own.v6.is_none() {
            return;
        }
        self.neighbors.learn(packet.from, packet.mac, &self.own);
        match packet.protocol {
            device_model::net::packet::TCP => {
                if let Some((guest, other)) = packet.ports() {
                    self.take_segment(frame, Ends { guest, other });
                }
            }
            device_model::net::packet::UDP => self.take_datagram(&packet),
            packet::ICMP | packet::ICMPV6 => self.take_message(&packet),
            _ => {}
        }
    }

    fn take_segment(&mut self, frame: Frame, ends: Ends) {
        let begins = Packet::of(&frame.bytes).is_some_and(|packet| packet::begins(packet.payload));
        let known = self.ends.get(&ends).copied();
        if let Some(id) = known
            && let Some(connection) = self.connections.get_mut(&id)
        {
            if !begins || !connection.is_ending() {
                connection.incoming.push_back(frame);
                self.list(id);
                return;
            }
            self.forget(id);
        }
        let begun = begins && self.begin(&frame, ends).is_some();
        if !begun && let Some(packet) = Packet::of(&frame.bytes) {
            let answer = packet::reset(&packet, self.own.mac);
            answer.into_iter().for_each(|answer| self.out.send(answer));
        }
    }

    /// Begins a connection that a guest asks for.
    fn begin(&mut self, frame: &Frame, ends: Ends) -> Option<()> {
        let to = self.real(ends.other)?;
        if self.connections.len() >= CONNECTIONS {
            return None;
        }
        let mac = frame.bytes.get(6..12)?.try_into().ok()?;
        let stream = match tcp::connect(to) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%to, %error, "a guest's connection fails");
                return None;
            }
        };
        let mut incoming = VecDeque::new();
        let now = self.now();
        let mut wire = Wire {
            out: &mut self.out,
            incoming: &mut incoming,
            to: mac,
            from: self.own.mac,
        };
        let mut connection = Connection::accept(ends, mac, stream, &mut wire, now)?;
        connection.incoming.push_back(frame.clone());
        self.add(connection)
    }

    fn add(&mut self, connection: Connection) -> Option<()> {
        let id = self.new_id();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        self.watch(id, &connection.stream, flags).ok()?;
        self.targets.insert(id, Target::Connection);
        self.ends.insert(connection.ends, id);
        self.connections.insert(id, connection);
        self.gauges.tcp_total.fetch_add(1, Ordering::Relaxed);
        self.list(id);
        Some(())
    }

    /// Where a guest's packets to an address really go. None where they must not go.
    pub(super) fn real(&mut self, called: SocketAddr) -> Option<SocketAddr> {
        let address = called.ip();
        if self.restricted && !self.own.is_gateway(address) {
            return None;
        }
        if self.own.is_dns(address) && !self.own.is_gateway(address) {
            let server = self.resolver.server()?;
            return (called.port() == 53).then_some(server);
        }
        if self.own.is_gateway(address) {
            let loopback: IpAddr = match address {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            return self.loopback.then_some(SocketAddr::new(loopback, called.port()));
        }
        let local = match address.to_canonical() {
            IpAddr::V4(address) => {
                let [first, ..] = address.octets();
                first == 0 || address.is_loopback() || address.is_link_local() || first >= 224
            }
            IpAddr::V6(address) => {
                address.is_loopback()
                    || address.is_unspecified()
                    || address.is_multicast()
                    || address.is_unicast_link_local()
            }
        };
        (!local && !self.own.is_on_link(address)).then_some(called)
    }

    /// Clients have come to a forwarded port.
    fn knocked(&mut self, id: u64) {
        let Some(entrance) = self.doors.get(&id) else { return };
        let forward = entrance.forward;
        let Listener::Tcp(listener) = &entrance.listener else {
            self.clients_spoke(id, forward);
            return;
        };
        let mut streams = Vec::new();
        while streams.len() < ACCEPTED
            && let Ok((stream, _)) = listener.accept()
        {
            streams.push(stream);
        }
        for stream in streams {
            let guest = self.guest_of(forward);
            // Without a guest, or a place for it, the client sees its connection end.
            let _ = guest.and_then(|guest| self.lead(stream, guest));
        }
    }

    /// The guest's end that a forwarded port leads to.
    pub(super) fn guest_of(&self, forward: Forward) -> Option<SocketAddr> {
        let first = IpAddr::V4(self.dhcp.first());
        let usual = match self.neighbors.find(first) {
            Some(_) => first,
            // A guest may have no address but of IPv6.
            None => self.neighbors.any_v6(&self.own).unwrap_or(first),
        };
        let address = forward.guest.unwrap_or(usual);
        self.own
            .is_on_link(address)
            .then_some(SocketAddr::new(address, forward.port))
    }

    pub(super) fn lead(&mut self, stream: std::net::TcpStream, guest: SocketAddr) -> Option<()> {
        stream.set_nonblocking(true).ok()?;
        if self.connections.len() >= CONNECTIONS {
            return None;
        }
        let gateway = self.own.gateway_for(guest.ip())?;
        let ports = u16::MAX - FIRST_PORT;
        let from = self.next_port - FIRST_PORT;
        let free = |port: &u16| {
            let other = SocketAddr::new(gateway, *port);
            !self.ends.contains_key(&Ends { guest, other })
        };
        let port = (1..=ports).map(|step| FIRST_PORT + (from + step) % ports).find(free)?;
        self.next_port = port;
        let ends = Ends {
            guest,
            other: SocketAddr::new(gateway, port),
        };
        let mac = self.neighbors.find(guest.ip()).unwrap_or(UNKNOWN);
        let now = self.now();
        let mut wire = Wire {
            out: &mut self.out,
            incoming: &mut VecDeque::new(),
            to: mac,
            from: self.own.mac,
        };
        let connection = Connection::open(ends, mac, stream, &mut wire, now)?;
        self.add(connection)
    }

    /// Puts a connection among those that are to be served.
    fn list(&mut self, id: u64) {
        if let Some(connection) = self.connections.get_mut(&id)
            && !std::mem::replace(&mut connection.listed, true)
        {
            self.ready.push_back(id);
        }
    }

    fn take_timers(&mut self) {
        let now = self.now();
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.armed = None;
                self.list(id);
            }
        }
    }

    /// Serves those that are ready, each once.
    fn serve_all(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { break };
            self.serve(id);
        }
        let connections = self.connections.len() as u64;
        self.gauges.tcp.store(connections, Ordering::Relaxed);
    }

    fn serve(&mut self, id: u64) {
        let now = self.now();
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        connection.listed = false;
        if connection.mac == UNKNOWN {
            let guest = connection.ends.guest.ip();
            match self.neighbors.find(guest) {
                Some(mac) => connection.mac = mac,
                None => link::ask(guest, &self.own)
                    .into_iter()
                    .for_each(|ask| self.out.send(ask)),
            }
        }
        match connection.serve(&mut self.out, self.own.mac, now) {
            Served::Over => self.forget(id),
            Served::More => self.list(id),
            Served::Until(at) => {
                if self.out.is_blocked() {
                    self.blocked.push(id);
                }
                if let Some(at) = at
                    && connection.armed.is_none_or(|armed| at < armed)
                {
                    connection.armed = Some(at);
                    self.timers.push(Reverse((at, id)));
                }
            }
        }
    }

    fn forget(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            self.ends.remove(&connection.ends);
            self.targets.remove(&id);
        }
    }

    /// A mapping for a guest's port, a new one if need be.
    pub(super) fn mapping(&mut self, guest: SocketAddr, mac: Mac) -> io::Result<u64> {
        if let Some(id) = self.mapped.get(&guest) {
            return Ok(*id);
        }
        if self.mappings.len() >= MAPPINGS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mapping = Mapping::new(guest, mac)?;
        let id = self.new_id();
        self.watch(id, &mapping.socket, EventFlags::IN)?;
        self.targets.insert(id, Target::Mapping);
        self.mapped.insert(guest, id);
        self.mappings.insert(id, mapping);
        Ok(id)
    }

    /// A pinger for a guest's ping, a new one if need be.
    pub(super) fn pinger(&mut self, ping: Ping, mac: Mac) -> io::Result<u64> {
        if let Some(id) = self.pings.get(&ping) {
            return Ok(*id);
        }
        if self.pingers.len() >= PINGS {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let pinger = Pinger::new(ping, mac)?;
        let id = self.new_id();
        self.watch(id, &pinger.socket, EventFlags::IN)?;
        self.targets.insert(id, Target::Pinger);
        self.pings.insert(ping, id);
        self.pingers.insert(id, pinger);
        Ok(id)
    }

    /// Ends what nobody has used for long, and tells guests of their router.
    fn sweep(&mut self) {
        let now = Instant::now();
        if now.saturating_duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        let old: Vec<u64> = self
            .mappings
            .iter()
            .filter(|(_, m)| m.ends() <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            self.targets.remove(&id);
            if let Some(mapping) = self.mappings.remove(&id) {
                self.mapped.remove(&mapping.guest);
            }
        }
        let old: Vec<u64> = self
            .pingers
            .iter()
            .filter(|(_, p)| p.ends() <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in old {
            self.targets.remove(&id);
            if let Some(pinger) = self.pingers.remove(&id) {
                self.pings.remove(&pinger.ping);
            }
        }
        for entrance in self.doors.values_mut() {
            if let Listener::Udp(door) = &mut entrance.listener {
                door.forget(now);
            }
        }
        self.gauges.udp.store(self.mappings.len() as u64, Ordering::Relaxed);
        self.gauges.forwards.store(self.doors.len() as u64, Ordering::Relaxed);
        if now.saturating_duration_since(self.advertised) >= ADVERTISE {
            self.advertised = now;
            let told = link::advertisement(None, &self.own);
            told.into_iter().for_each(|frame| self.out.send(frame));
        }
    }

    /// Tells a guest that its packet went nowhere.
    pub(super) fn refuse(&mut self, packet: &Packet<'_>, why: Unreachable) {
        let mut way = packet.back(self.own.mac);
        if let Some(gateway) = self.own.gateway_for(packet.to) {
            way.from = gateway;
        }
        let told = packet::unreachable(&way, why, packet.whole);
        told.into_iter().for_each(|frame| self.out.send(frame));
    }
}
