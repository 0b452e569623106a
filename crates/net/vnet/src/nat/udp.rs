//! UDP: a socket of the host's for each port of a guest's, whoever it speaks to, and sockets for ports that lead to guests.
//!
//! Spec: RFC 4787 (a guest's port keeps its mapping whoever it speaks to; mappings last two minutes at least).

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::time::Duration;
use std::time::Instant;

use device_model::net::Mac;
use rustix::net::sockopt;
use rustix::net::sockopt::Ipv4PathMtuDiscovery;
use rustix::net::sockopt::Ipv6PathMtuDiscovery;

/// How long a mapping lasts that nobody uses; shorter where it was only used to ask for names.
const IDLE: Duration = Duration::from_secs(180);
const IDLE_NAMES: Duration = Duration::from_secs(20);
/// Places that a guest knows by another address than the host does, for each mapping.
const ALIASES: usize = 8;
/// Clients of a forwarded port at most, and the ports by which a guest knows them.
const CLIENTS: usize = 1024;
const FIRST_PORT: u16 = 49_152;

/// A guest's port.
pub(super) struct Mapping {
    pub(super) guest: SocketAddr,
    pub(super) mac: Mac,
    pub(super) socket: UdpSocket,
    pub(super) used: Instant,
    /// It asks for names only.
    pub(super) names: bool,
    /// A name server was asked at this time, and has not answered.
    pub(super) asked: Option<Instant>,
    /// Whether the socket splits datagrams that are too long, if that has been said.
    whole: Option<bool>,
    /// What the host calls it, and what the guest calls it.
    aliases: Vec<(SocketAddr, SocketAddr)>,
}

/// Whether a socket rather fails than splits a datagram that is too long for the way.
fn keep_whole(socket: &UdpSocket, to: SocketAddr, whole: bool) -> io::Result<()> {
    match (to, whole) {
        (SocketAddr::V4(_), true) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO)?,
        (SocketAddr::V4(_), false) => sockopt::set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::WANT)?,
        (SocketAddr::V6(_), true) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO)?,
        (SocketAddr::V6(_), false) => sockopt::set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::WANT)?,
    }
    Ok(())
}

/// Bytes of a packet that the way to `to` carries, as far as the host knows.
pub(super) fn path_mtu(to: SocketAddr) -> Option<u16> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    let mtu = match to {
        SocketAddr::V4(_) => sockopt::ip_mtu(&socket),
        SocketAddr::V6(_) => sockopt::ipv6_mtu(&socket),
    };
    u16::try_from(mtu.ok()?).ok()
}

impl Mapping {
    pub(super) fn new(guest: SocketAddr, mac: Mac) -> io::Result<Self> {
        let any: IpAddr = match guest {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        let _ = socket.set_broadcast(true);
        Ok(Self {
            guest,
            mac,
            socket,
            used: Instant::now(),
            names: true,
            asked: None,
            whole: None,
            aliases: Vec::new(),
        })
    }

    /// Sends what the guest sends to `called`, to `to`. Fails if it is too long for the way and is to stay `whole`.
    pub(super) fn send(&mut self, payload: &[u8], to: SocketAddr, called: SocketAddr, whole: bool) -> io::Result<()> {
        if self.whole != Some(whole) {
            keep_whole(&self.socket, to, whole)?;
            self.whole = Some(whole);
        }
        self.used = Instant::now();
        self.names &= to.port() == 53;
        if to != called {
            self.aliases.retain(|(real, _)| *real != to);
            if self.aliases.len() >= ALIASES {
                self.aliases.remove(0);
            }
            self.aliases.push((to, called));
        }
        self.socket.send_to(payload, to).map(|_| ())
    }

    /// What the guest calls `from`.
    pub(super) fn called(&self, from: SocketAddr) -> SocketAddr {
        let found = self.aliases.iter().find(|(real, _)| *real == from);
        found.map_or(from, |(_, called)| *called)
    }

    /// When it ends if it is not used.
    pub(super) fn ends(&self) -> Instant {
        self.used + if self.names { IDLE_NAMES } else { IDLE }
    }
}

/// A port of the host's that leads to a guest.
pub(super) struct Door {
    pub(super) socket: UdpSocket,
    /// Ports by which the guest knows clients, the other way round, and when they were heard last.
    clients: HashMap<SocketAddr, u16>,
    ports: HashMap<u16, (SocketAddr, Instant)>,
    next: u16,
}

impl Door {
    pub(super) fn open(at: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind(at)?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            clients: HashMap::new(),
            ports: HashMap::new(),
            next: FIRST_PORT,
        })
    }

    /// The port by which the guest knows a client. `taken` are those of other doors.
    pub(super) fn port_of(&mut self, client: SocketAddr, taken: impl Fn(u16) -> bool) -> Option<u16> {
        let now = Instant::now();
        if let Some(port) = self.clients.get(&client) {
            self.ports.insert(*port, (client, now));
            return Some(*port);
        }
        if self.clients.len() >= CLIENTS {
            self.forget(now);
        }
        let room = self.clients.len() < CLIENTS;
        let port = (0..=u16::MAX - FIRST_PORT)
            .map(|step| FIRST_PORT + (self.next - FIRST_PORT).wrapping_add(step) % (u16::MAX - FIRST_PORT))
            .find(|port| room && !self.ports.contains_key(port) && !taken(*port))?;
        self.next = port;
        self.clients.insert(client, port);
        self.ports.insert(port, (client, now));
        Some(port)
    }

    /// Whether a port stands for a client.
    pub(super) fn has_port(&self, port: u16) -> bool {
        self.ports.contains_key(&port)
    }

    /// The client that the guest knows by a port.
    pub(super) fn client(&mut self, port: u16) -> Option<SocketAddr> {
        let (client, used) = self.ports.get_mut(&port)?;
        *used = Instant::now();
        Some(*client)
    }

    /// Forgets clients that nobody has heard of for long.
    pub(super) fn forget(&mut self, now: Instant) {
        self.ports
            .retain(|_, (_, used)| now.saturating_duration_since(*used) < IDLE);
        let ports = &self.ports;
        self.clients.retain(|_, port| ports.contains_key(port));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_keep_their_ports_and_have_different_ones() {
        let mut door = Door::open("127.0.0.1:0".parse().unwrap()).unwrap();
        let client = |port: u16| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let first = door.port_of(client(1), |_| false).unwrap();
        assert_eq!(door.port_of(client(1), |_| false), Some(first));
        let second = door.port_of(client(2), |port| port == first + 1).unwrap();
        assert!(second != first && second != first + 1);
        assert_eq!(door.client(second), Some(client(2)));
        for port in 3..2000 {
            door.port_of(client(port), |_| false);
        }
        assert_eq!(door.clients.len(), CLIENTS);
        door.forget(Instant::now() + IDLE * 2);
        assert_eq!((door.clients.len(), door.ports.len()), (0, 0));
    }

    #[test]
    fn guest_hears_from_whom_it_called() {
        let guest = "10.0.2.15:4000".parse().unwrap();
        let mut mapping = Mapping::new(guest, [2; 6]).unwrap();
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let real = server.local_addr().unwrap();
        let called = "10.0.2.3:53".parse().unwrap();
        mapping.send(b"x", real, called, false).unwrap();
        assert_eq!(mapping.called(real), called);
        assert_eq!(mapping.called(guest), guest);
    }
}
