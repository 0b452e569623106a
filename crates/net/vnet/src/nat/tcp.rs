//! A TCP connection: towards the guest a protocol machine of its own, towards the world a socket of the host's.
//!
//! The guest's connection is only accepted once the host's is there, so that the guest learns of refusals as if it had
//! connected by itself. What either side has no room for stays with the other.
//!
//! Spec: RFC 9293; RFC 7323 (window scaling).

use std::collections::VecDeque;
use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::net::TcpStream;

use device_model::Frame;
use device_model::net::Mac;
use rustix::net::AddressFamily;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use smoltcp::iface::Config;
use smoltcp::iface::Interface;
use smoltcp::iface::SocketHandle;
use smoltcp::iface::SocketSet;
use smoltcp::socket::tcp;
use smoltcp::time::Duration;
use smoltcp::time::Instant;
use smoltcp::wire::HardwareAddress;
use smoltcp::wire::IpCidr;
use smoltcp::wire::IpEndpoint;

use super::wire::Out;
use super::wire::Wire;

/// Bytes that wait for the world, and for the guest, at most. Pages that are never used take no memory.
const FROM_GUEST: usize = 256 << 10;
const TO_GUEST: usize = 512 << 10;
/// How often a connection moves data in both directions before others have their turn.
const ROUNDS: usize = 4;
/// A guest that acknowledges nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(900);

/// Both ends of a connection: the guest's, and what the guest takes for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub(super) guest: SocketAddr,
    pub(super) other: SocketAddr,
}

/// What became of serving a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// Nothing is to be done before something happens, or the time has come.
    Until(Option<Instant>),
    /// There is more to do at once.
    More,
    /// It is over.
    Over,
}

/// The state of the host's socket.
#[derive(Clone, Copy, Debug, Default)]
struct Host {
    connected: bool,
    readable: bool,
    writable: bool,
    /// The other side sends nothing more.
    ended: bool,
    /// It was told that the guest sends nothing more.
    shut: bool,
    /// It takes nothing more.
    dead: bool,
}

/// A connection.
pub(super) struct Connection {
    pub(super) ends: Ends,
    /// The guest's Ethernet address.
    pub(super) mac: Mac,
    pub(super) stream: TcpStream,
    pub(super) incoming: VecDeque<Frame>,
    /// It is in the list of those that are to be served.
    pub(super) listed: bool,
    /// The earliest time at which it is to be served, of those that are noted.
    pub(super) armed: Option<Instant>,
    host: Host,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

/// Begins to connect to `to`.
pub(super) fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(error) => Err(error.into()),
    }
}

impl Connection {
    /// One that the guest began, and whose other side is being connected to.
    pub(super) fn accept(ends: Ends, mac: Mac, stream: TcpStream, wire: &mut Wire<'_>, now: Instant) -> Option<Self> {
        let mut connection = Self::new(ends, mac, stream, wire, now);
        let socket = connection.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
        socket.pause_synack(true);
        socket.listen(IpEndpoint::from(ends.other)).ok()?;
        Some(connection)
    }

    /// One that came to a port of the host's that leads to the guest.
    pub(super) fn open(ends: Ends, mac: Mac, stream: TcpStream, wire: &mut Wire<'_>, now: Instant) -> Option<Self> {
        let mut connection = Self::new(ends, mac, stream, wire, now);
        connection.host.connected = true;
        let context = connection.interface.context();
        let socket = connection.sockets.get_mut::<tcp::Socket<'_>>(connection.handle);
        socket
            .connect(context, IpEndpoint::from(ends.guest), IpEndpoint::from(ends.other))
            .ok()?;
        Some(connection)
    }

    fn new(ends: Ends, mac: Mac, stream: TcpStream, wire: &mut Wire<'_>, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random();
        let mut interface = Interface::new(config, wire, now);
        // The other side's address is ours, and everybody is on the link.
        interface.update_ip_addrs(|addresses| {
            let all = match ends.other.ip() {
                IpAddr::V4(address) => IpCidr::new(address.into(), 0),
                IpAddr::V6(address) => IpCidr::new(address.into(), 0),
            };
            let _ = addresses.push(all);
        });
        let mut socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; FROM_GUEST]),
            tcp::SocketBuffer::new(vec![0; TO_GUEST]),
        );
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.set_timeout(Some(PATIENCE));
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        let _ = stream.set_nodelay(true);
        Self {
            ends,
            mac,
            stream,
            incoming: VecDeque::new(),
            listed: false,
            armed: None,
            host: Host::default(),
            interface,
            sockets,
            handle,
        }
    }

    fn socket(&mut self) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut::<tcp::Socket<'static>>(self.handle)
    }

    /// Whether a new connection between the same ends may take its place.
    pub(super) fn is_ending(&mut self) -> bool {
        matches!(self.socket().state(), tcp::State::Closed | tcp::State::TimeWait)
    }

    /// The host's socket has become ready for something.
    pub(super) fn ready(&mut self, readable: bool, writable: bool) {
        self.host.readable |= readable;
        self.host.writable |= writable;
    }

    /// Moves what can be moved.
    pub(super) fn serve(&mut self, out: &mut Out, own: Mac, now: Instant) -> Served {
        self.look_at_host();
        for _ in 0..ROUNDS {
            self.exchange(out, own, now);
            if !self.host.connected {
                break;
            }
            let moved = self.feed_host() | self.feed_guest();
            if !moved {
                break;
            }
        }
        self.exchange(out, own, now);
        let state = self.socket().state();
        let handed_on = self.host.dead || self.socket().recv_queue() == 0;
        if handed_on && matches!(state, tcp::State::Closed | tcp::State::TimeWait) {
            // A reset that has still to be sent keeps its addresses until then.
            let said = self.socket().remote_endpoint().is_none() || state == tcp::State::TimeWait;
            if said || !out.is_blocked() {
                return Served::Over;
            }
        }
        if !out.is_blocked() && self.can_move() {
            return Served::More;
        }
        Served::Until(self.interface.poll_at(now, &self.sockets).filter(|_| !out.is_blocked()))
    }

    fn exchange(&mut self, out: &mut Out, own: Mac, now: Instant) {
        let mut wire = Wire {
            out,
            incoming: &mut self.incoming,
            to: self.mac,
            from: own,
        };
        self.interface.poll(now, &mut wire, &mut self.sockets);
    }

    fn can_move(&mut self) -> bool {
        let Host {
            connected,
            readable,
            writable,
            ended,
            ..
        } = self.host;
        let socket = self.socket();
        connected && (readable && !ended && socket.can_send() || writable && socket.can_recv())
    }

    /// Whether the host's connection has come about.
    fn look_at_host(&mut self) {
        if self.host.connected || !self.host.writable {
            return;
        }
        match self.stream.take_error() {
            Ok(None) if self.stream.peer_addr().is_ok() => {
                self.host.connected = true;
                self.socket().pause_synack(false);
            }
            Ok(None) => self.host.writable = false,
            Ok(Some(_)) | Err(_) => {
                self.host.dead = true;
                let socket = self.socket();
                socket.pause_synack(false);
                socket.abort();
            }
        }
    }

    /// Gives the host what the guest has sent.
    fn feed_host(&mut self) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket<'static>>(self.handle);
        let mut moved = false;
        while self.host.writable && socket.can_recv() {
            let stream = &mut self.stream;
            let sent = socket.recv(|bytes| match stream.write(bytes) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match sent {
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.host.writable = false,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(_)) | Err(_) => {
                    self.host.dead = true;
                    socket.abort();
                    return true;
                }
            }
        }
        let begun = !matches!(
            socket.state(),
            tcp::State::Listen | tcp::State::SynSent | tcp::State::SynReceived | tcp::State::Closed
        );
        if begun && !socket.may_recv() && socket.recv_queue() == 0 && !self.host.shut {
            self.host.shut = true;
            let _ = self.stream.shutdown(Shutdown::Write);
            moved = true;
        }
        moved
    }

    /// Gives the guest what the host has received.
    fn feed_guest(&mut self) -> bool {
        let socket = self.sockets.get_mut::<tcp::Socket<'static>>(self.handle);
        let mut moved = false;
        while self.host.readable && !self.host.ended && socket.can_send() {
            let stream = &mut self.stream;
            let received = socket.send(|room| match stream.read(room) {
                Ok(count) => (count, Ok(count)),
                Err(error) => (0, Err(error)),
            });
            match received {
                Ok(Ok(0)) => {
                    self.host.ended = true;
                    socket.close();
                    moved = true;
                }
                Ok(Ok(_)) => moved = true,
                Ok(Err(error)) if error.kind() == ErrorKind::WouldBlock => self.host.readable = false,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Ok(Err(_)) | Err(_) => {
                    socket.abort();
                    return true;
                }
            }
        }
        moved
    }
}

/// A number that guests cannot guess, for sequence numbers.
fn random() -> u64 {
    use std::hash::BuildHasher;
    std::hash::RandomState::new().hash_one(0u8)
}
