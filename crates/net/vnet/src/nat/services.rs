//! Datagrams and messages of a NAT network: DHCP, names, UDP of guests and of forwarded ports, pings.

use std::io;
use std::io::ErrorKind;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::time::Duration;
use std::time::Instant;

use super::Forward;
use super::Listener;
use super::dhcp;
use super::dhcp6;
use super::echo;
use super::echo::Ping;
use super::engine::Engine;
use super::engine::UNKNOWN;
use super::link;
use super::names;
use super::packet;
use super::packet::Packet;
use super::packet::Unreachable;
use super::packet::Way;
use super::proxy;
use super::proxy::Wanted;
use super::udp;

/// Bytes of a UDP header.
const HEADER: usize = 8;
/// Datagrams that are taken from one socket before others have their turn.
const BUDGET: usize = 128;
/// Port of name servers.
const NAMES: u16 = 53;
/// A name server that has not answered for so long is passed over.
const PATIENCE: Duration = Duration::from_secs(2);

fn is_unreachable(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
}

fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error())
}

impl Engine {
    pub(super) fn take_datagram(&mut self, packet: &Packet<'_>) {
        let (Some((guest, other)), Some(payload)) = (packet.ports(), packet.payload.get(HEADER..)) else {
            return;
        };
        if other.port() == dhcp::SERVER && guest.port() == dhcp::CLIENT {
            self.take_dhcp(packet, payload);
            return;
        }
        if other.port() == dhcp6::SERVER && guest.port() == dhcp6::CLIENT {
            self.take_dhcp6(packet, payload);
            return;
        }
        if self.own.is_gateway(other.ip())
            && (self.answer_client(guest, other.port(), payload)
                || self.take_tftp(packet, guest, other.port(), payload))
        {
            return;
        }
        if self.own.is_dns(other.ip()) && other.port() == NAMES && self.answer_question(packet, guest, payload) {
            return;
        }
        let Some(to) = self.real(other) else {
            if self.own.is_gateway(other.ip()) || self.own.is_dns(other.ip()) {
                self.refuse(packet, Unreachable::Port);
            }
            return;
        };
        let Ok(id) = self.mapping(guest, packet.mac) else {
            return;
        };
        let asks = self.own.is_dns(other.ip());
        let Some(mapping) = self.mappings.get_mut(&id) else {
            return;
        };
        mapping.mac = packet.mac;
        let ignored = mapping.asked.is_some_and(|at| at.elapsed() >= PATIENCE);
        let mut to = to;
        if asks && ignored {
            self.resolver.next();
            to = self.resolver.server().unwrap_or(to);
        }
        if asks && (ignored || mapping.asked.is_none()) {
            mapping.asked = Some(Instant::now());
        }
        // A packet of IPv6 that is longer than our link's was put together from fragments.
        let whole = packet.is_to_stay_whole() && packet.whole.len() <= self.out.mtu();
        match mapping.send(payload, to, other, whole) {
            Err(error) if is_unreachable(&error) => self.refuse(packet, Unreachable::Host),
            Err(error) if whole && is_too_long(&error) => {
                if let Some(mtu) = udp::path_mtu(to) {
                    self.refuse(packet, Unreachable::TooLong(mtu));
                }
            }
            // Other datagrams are lost, as datagrams are.
            _ => {}
        }
    }

    /// A datagram for the TFTP server. False if it is for somebody else.
    fn take_tftp(&mut self, packet: &Packet<'_>, guest: SocketAddr, port: u16, payload: &[u8]) -> bool {
        let Some(tftp) = self.tftp.as_mut().filter(|tftp| tftp.has(guest, port)) else {
            return false;
        };
        let answer = tftp.take(guest, port, payload, Instant::now());
        let (port, messages) = answer.unwrap_or_default();
        for message in messages {
            let frame = packet::datagram(&packet.back(self.own.mac), port, guest.port(), &message);
            frame.into_iter().for_each(|frame| self.out.send_packet(frame));
        }
        true
    }

    fn hosts(&self) -> names::Hosts<'_> {
        names::Hosts {
            server: &self.dhcp,
            own: &self.own,
            neighbors: &self.neighbors,
        }
    }

    /// Answers a question for a name of the network. False if the name is not of the network, and others can be asked.
    fn answer_question(&mut self, packet: &Packet<'_>, guest: SocketAddr, question: &[u8]) -> bool {
        let answer = names::answer(question, &self.hosts());
        let answer = answer.or_else(|| self.restricted.then(|| names::refusal(question)).flatten());
        let Some(answer) = answer else { return false };
        let frame = packet::datagram(&packet.back(self.own.mac), NAMES, guest.port(), &answer);
        frame.into_iter().for_each(|frame| self.out.send_packet(frame));
        true
    }

    fn take_dhcp6(&mut self, packet: &Packet<'_>, payload: &[u8]) {
        let (IpAddr::V6(to), Some(v6)) = (packet.to, self.own.v6) else {
            return;
        };
        if to != dhcp6::GROUP && !self.own.is_gateway(packet.to) {
            return;
        }
        let way = Way {
            from: v6.link.into(),
            ..packet.back(self.own.mac)
        };
        let answer = dhcp6::answer(payload, packet.mac, &self.own);
        // Others may ask for it by name before it has said a word from there.
        if answer.as_deref().is_some_and(dhcp6::grants)
            && let Some(given) = dhcp6::address(&self.own, packet.mac)
        {
            self.neighbors.learn(given.into(), packet.mac, &self.own);
        }
        let frame = answer.and_then(|answer| packet::datagram(&way, dhcp6::SERVER, dhcp6::CLIENT, &answer));
        frame.into_iter().for_each(|frame| self.out.send(frame));
    }

    /// Leads a client of the proxy's to whom it wants.
    pub(super) fn lead_client(&mut self, mut stream: TcpStream, wanted: &Wanted, port: u16) {
        let address = match wanted {
            Wanted::Address(address) => Some(*address),
            Wanted::Name(name) => {
                let label = name.strip_suffix(".oxbow.internal").unwrap_or(name);
                self.dhcp.address_of(label).map(IpAddr::V4)
            }
        };
        let ours = |address: &IpAddr| self.own.is_gateway(*address) || self.own.is_dns(*address);
        let guest = address.filter(|address| self.own.is_on_link(*address) && !ours(address));
        let code = if guest.is_some() {
            proxy::DONE
        } else {
            proxy::UNREACHABLE
        };
        // A few bytes, which any socket has room for that has sent nothing.
        if stream.write_all(&proxy::answer(code)).is_ok()
            && let Some(guest) = guest
        {
            // Without a place for it, the client sees its connection end.
            let _ = self.lead(stream, SocketAddr::new(guest, port));
        }
    }

    fn take_dhcp(&mut self, packet: &Packet<'_>, payload: &[u8]) {
        let ours = match packet.to {
            IpAddr::V4(to) => to.is_broadcast() || to == self.own.gateway,
            IpAddr::V6(_) => false,
        };
        self.dhcp.domain = self.resolver.domain();
        let Some(answer) = ours.then(|| self.dhcp.answer(payload)).flatten() else {
            return;
        };
        let way = Way {
            to_mac: answer.to.map_or([0xff; 6], |_| packet.mac),
            from_mac: self.own.mac,
            from: self.own.gateway.into(),
            to: answer.to.unwrap_or(Ipv4Addr::BROADCAST).into(),
        };
        let frame = packet::datagram(&way, dhcp::SERVER, dhcp::CLIENT, &answer.message);
        frame.into_iter().for_each(|frame| self.out.send(frame));
    }

    /// The world has answered a guest's datagrams.
    pub(super) fn datagrams_came(&mut self, id: u64) {
        for _ in 0..BUDGET {
            let Some(mapping) = self.mappings.get_mut(&id) else {
                return;
            };
            let (len, from) = match mapping.socket.recv_from(&mut self.buffer) {
                Ok(received) => received,
                // Errors of earlier datagrams come this way too.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => continue,
            };
            mapping.asked = None;
            mapping.used = Instant::now();
            let called = mapping.called(from);
            let way = Way {
                to_mac: mapping.mac,
                from_mac: self.own.mac,
                from: called.ip().to_canonical(),
                to: mapping.guest.ip(),
            };
            let payload = self.buffer.get(..len).unwrap_or_default();
            let frame = packet::datagram(&way, called.port(), mapping.guest.port(), payload);
            frame.into_iter().for_each(|frame| self.out.send_packet(frame));
        }
    }

    /// Clients have sent datagrams to a forwarded port.
    pub(super) fn clients_spoke(&mut self, id: u64, forward: Forward) {
        for _ in 0..BUDGET {
            let Some(Listener::Udp(door)) = self.doors.get(&id).map(|entrance| &entrance.listener) else {
                return;
            };
            let (len, client) = match door.socket.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => continue,
            };
            let Some(port) = self.port_of(id, client) else { continue };
            let guest = self.guest_of(forward);
            let Some((guest, gateway)) = guest.and_then(|guest| Some((guest, self.own.gateway_for(guest.ip())?)))
            else {
                continue;
            };
            let Some(mac) = self.neighbors.find(guest.ip()) else {
                // The datagram is lost; the next one finds the guest.
                link::ask(guest.ip(), &self.own)
                    .into_iter()
                    .for_each(|ask| self.out.send(ask));
                continue;
            };
            let way = Way {
                to_mac: mac,
                from_mac: self.own.mac,
                from: gateway,
                to: guest.ip(),
            };
            let payload = self.buffer.get(..len).unwrap_or_default();
            let frame = packet::datagram(&way, port, guest.port(), payload);
            frame.into_iter().for_each(|frame| self.out.send_packet(frame));
        }
    }

    /// The port by which guests know a client of a door.
    fn port_of(&mut self, id: u64, client: SocketAddr) -> Option<u16> {
        let taken: Vec<u64> = self.doors.keys().copied().filter(|other| *other != id).collect();
        let mut entrance = self.doors.remove(&id)?;
        let port = match &mut entrance.listener {
            Listener::Udp(door) => door.port_of(client, |port| {
                taken
                    .iter()
                    .any(|other| match self.doors.get(other).map(|entrance| &entrance.listener) {
                        Some(Listener::Udp(door)) => door.has_port(port),
                        _ => false,
                    })
            }),
            Listener::Tcp(_) => None,
        };
        self.doors.insert(id, entrance);
        port
    }

    /// Carries a guest's answer to the client that it knows by a port of the gateway's. False if there is none.
    fn answer_client(&mut self, guest: SocketAddr, port: u16, payload: &[u8]) -> bool {
        for entrance in self.doors.values_mut() {
            let Listener::Udp(door) = &mut entrance.listener else {
                continue;
            };
            if entrance.forward.port == guest.port()
                && let Some(client) = door.client(port)
            {
                // What cannot be sent is lost, as datagrams are.
                let _ = door.socket.send_to(payload, client);
                return true;
            }
        }
        false
    }

    /// A message of ICMP or ICMPv6.
    pub(super) fn take_message(&mut self, packet: &Packet<'_>) {
        if packet.protocol == packet::ICMPV6 {
            let (was_discovery, answer) = link::discovery(packet, &self.own);
            answer.into_iter().for_each(|answer| self.out.send(answer));
            if was_discovery {
                return;
            }
        }
        let request = match (packet.protocol, packet.to) {
            (packet::ICMP, IpAddr::V4(_)) => echo::REQUEST,
            (packet::ICMPV6, IpAddr::V6(_)) => echo::REQUEST6,
            _ => return,
        };
        if packet.payload.first() != Some(&request) || packet.mac == UNKNOWN {
            return;
        }
        if self.own.is_gateway(packet.to) || self.own.is_dns(packet.to) {
            let reply = echo::reply(packet.payload);
            let frame = reply.and_then(|mut reply| packet::icmp(&packet.back(self.own.mac), &mut reply));
            frame.into_iter().for_each(|frame| self.out.send_packet(frame));
            return;
        }
        let (Some(to), Some(id)) = (self.real(SocketAddr::new(packet.to, 0)), packet.payload.get(4..6)) else {
            return;
        };
        let ping = Ping {
            guest: packet.from,
            other: packet.to,
            id: id.try_into().unwrap_or_default(),
        };
        // Where the host allows no pings there are no replies.
        let Ok(id) = self.pinger(ping, packet.mac) else { return };
        let sent = self
            .pingers
            .get_mut(&id)
            .map(|pinger| pinger.send(packet.payload, to.ip()));
        if let Some(Err(error)) = sent
            && is_unreachable(&error)
        {
            self.refuse(packet, Unreachable::Host);
        }
    }

    /// Pings were answered.
    pub(super) fn replies_came(&mut self, id: u64) {
        for _ in 0..BUDGET {
            let Some(pinger) = self.pingers.get(&id) else { return };
            let Some(mut message) = pinger.receive(&mut self.buffer) else {
                return;
            };
            let way = Way {
                to_mac: pinger.mac,
                from_mac: self.own.mac,
                from: pinger.ping.other,
                to: pinger.ping.guest,
            };
            let frame = packet::icmp(&way, &mut message);
            frame.into_iter().for_each(|frame| self.out.send_packet(frame));
        }
    }
}
