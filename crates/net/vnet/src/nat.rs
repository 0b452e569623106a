//! A network whose guests reach the world by the host's own sockets: user-mode TCP/IP, as an ordinary user.
//!
//! ```text
//!   guest ◄─► Port ─ Switch ─ Port ◄─► Engine (one thread)
//!                                       ├─ ARP, neighbour discovery, router advertisements, DHCP
//!                                       ├─ Connection: a TCP machine towards the guest, a socket towards the world
//!                                       ├─ Mapping: a UDP socket for each port of a guest
//!                                       ├─ Pinger: an ICMP socket for each ping
//!                                       └─ doors: sockets that lead to guests
//! ```
//!
//! Every connection has a protocol machine of its own, found by its addresses and ports, so that thousands of them cost no
//! more than their packets. Segments go to and from the guest as long as the port takes them. Guests reach what the host
//! reaches, but for its loop-back, which is at the gateway's address where that is asked for.
//!
//! Traceroute and multicast do not work.

mod dhcp;
mod dhcp6;
mod echo;
mod engine;
mod fragments;
mod link;
mod names;
mod packet;
mod proxy;
mod resolver;
mod services;
mod tcp;
#[cfg(test)]
mod tests;
mod tftp;
mod udp;
mod wire;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Sender;
use std::thread;
use std::thread::JoinHandle;

use device_model::FramePort;
use device_model::Inspect;
use device_model::Node;
use device_model::net::Accepts;
use device_model::net::Mac;
use rustix::event::EventfdFlags;
use rustix::process::Resource;
use rustix::process::Rlimit;

use crate::Port;
use crate::PortConfig;
use crate::Switch;
use engine::Engine;
use proxy::Proxy;
use proxy::Wanted;
use udp::Door;

pub use dhcp::Addresses;

/// Where the host's name servers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host's that leads to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Of which protocol.
    pub transport: Transport,
    /// Where the host listens; port 0 is any that is free.
    pub host: SocketAddr,
    /// The guest's address; none: that of the first guest.
    pub guest: Option<IpAddr>,
    /// The guest's port.
    pub port: u16,
}

/// What a NAT network is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatConfig {
    /// The network, of 24 bits.
    pub network: Ipv4Addr,
    /// Whose its addresses are.
    pub addresses: Addresses,
    /// The gateway's address reaches the host's own loop-back.
    pub loopback: bool,
    /// Guests reach nobody: the network's own services and forwarded ports are all there is.
    pub restricted: bool,
    /// Name server that is asked instead of those of the host.
    pub dns: Option<SocketAddr>,
    /// There is IPv6 too.
    pub ipv6: bool,
    /// Bytes of an IP packet at most.
    pub mtu: u16,
    /// The file that names the host's name servers.
    pub resolv_conf: PathBuf,
    /// What TFTP serves: the files beneath this directory. None: nothing.
    pub tftp: Option<PathBuf>,
    /// The file that guests boot by their network cards: a name beneath that directory, or an address that they can fetch.
    pub boot_file: Option<String>,
    /// Where addresses that were given to guests are kept, for who goes on with this network.
    pub leases: Option<PathBuf>,
    /// Where the host's programs find a SOCKS5 proxy that leads to guests.
    pub proxy: Option<SocketAddr>,
}

impl Default for NatConfig {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 0, 2, 0),
            addresses: Addresses::default(),
            loopback: false,
            restricted: false,
            dns: None,
            ipv6: true,
            mtu: 1500,
            resolv_conf: RESOLV_CONF.into(),
            tftp: None,
            boot_file: None,
            leases: None,
            proxy: None,
        }
    }
}

/// Why a NAT network cannot be, or a port cannot lead into it.
#[derive(Debug, thiserror::Error)]
pub enum NatError {
    /// The host lacks something.
    #[error("cannot set up a NAT network")]
    Host(#[source] io::Error),
    /// The host's port cannot be listened at.
    #[error("cannot listen at {0}")]
    Listen(SocketAddr, #[source] io::Error),
    /// The port leads into the network already, or does not.
    #[error("{0} {1} a port of a guest")]
    Forward(SocketAddr, &'static str),
}

/// What the thread is asked for.
enum Command {
    Open(Forward, Listener),
    Close(Forward, Sender<bool>),
    /// A client of the proxy's, and whom it wants.
    Lead(TcpStream, Wanted, u16),
    /// The name of the guest with an address of Ethernet; none takes it away.
    Name(Mac, Option<String>),
    /// The address that this guest has or will get.
    Lease(Mac, Sender<Option<Ipv4Addr>>),
    End,
}

/// A port of the host's that is listened at.
enum Listener {
    Tcp(TcpListener),
    Udp(Door),
}

/// How much there is of what, for inspection.
#[derive(Debug, Default)]
struct Gauges {
    tcp: AtomicU64,
    tcp_total: AtomicU64,
    udp: AtomicU64,
    forwards: AtomicU64,
}

/// A NAT network on a switch. Dropping it ends its thread and all connections.
pub struct Nat {
    commands: Sender<Command>,
    wake: Arc<OwnedFd>,
    gauges: Arc<Gauges>,
    proxy: Option<Proxy>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nat")
            .field("gauges", &self.gauges)
            .finish_non_exhaustive()
    }
}

fn wake(event: &OwnedFd) {
    // It only fails if it has been woken 2^64 times.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Lets the process have as many sockets as it may.
fn raise_limit() {
    let Rlimit { maximum, .. } = rustix::process::getrlimit(Resource::Nofile);
    let most = Rlimit {
        current: maximum,
        maximum,
    };
    // With fewer there are fewer connections.
    let _ = rustix::process::setrlimit(Resource::Nofile, most);
}

impl Nat {
    /// Starts a network at a port of its own of `switch`.
    ///
    /// # Errors
    /// [`NatError::Host`] when the host gives no thread or no descriptors.
    pub fn start(switch: &Arc<Switch>, config: NatConfig) -> Result<Self, NatError> {
        raise_limit();
        let host = |error: io::Error| NatError::Host(error);
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let event = rustix::event::eventfd(0, flags).map_err(|error| host(error.into()))?;
        let event = Arc::new(event);
        let port: Arc<Port> = switch.plug(PortConfig::service("nat"));
        let accepts = Accepts {
            udp: false,
            ..Accepts::ALL
        };
        port.set_accepts(accepts);
        let waker = Arc::clone(&event);
        port.set_waker(Arc::new(move || wake(&waker)));
        let (commands, queue) = mpsc::channel();
        let gauges = Arc::<Gauges>::default();
        let proxy = config.proxy.map(|at| {
            let proxy = Proxy::open(at, commands.clone(), Arc::clone(&event));
            proxy.map_err(|error| NatError::Listen(at, error))
        });
        let proxy = proxy.transpose()?;
        let engine = Engine::new(config, port, Arc::clone(&event), queue, Arc::clone(&gauges)).map_err(host)?;
        let thread = thread::Builder::new().name("nat".to_owned());
        let thread = thread.spawn(move || engine.run()).map_err(host)?;
        Ok(Self {
            commands,
            wake: event,
            gauges,
            proxy,
            thread: Some(thread),
        })
    }

    /// Where the proxy listens, if there is one.
    #[must_use]
    pub fn proxy(&self) -> Option<SocketAddr> {
        self.proxy.as_ref().map(Proxy::at)
    }

    /// Names the guest with an address of Ethernet on the network, by letters, digits and `-`; no name takes its name away.
    pub fn name(&self, mac: Mac, name: Option<String>) {
        let name = name.filter(|name| names::is_label(name));
        self.command(Command::Name(mac, name));
    }

    /// The address that the guest with this address of Ethernet has, or will get. None if there is none left.
    #[must_use]
    pub fn address_of(&self, mac: Mac) -> Option<Ipv4Addr> {
        let (reply, replied) = mpsc::channel();
        self.command(Command::Lease(mac, reply));
        replied.recv().ok().flatten()
    }

    /// Lets a port of the host's lead to a guest. Returns where the host listens.
    ///
    /// # Errors
    /// [`NatError::Listen`] when it cannot be listened at.
    pub fn forward(&self, forward: Forward) -> Result<SocketAddr, NatError> {
        let failed = |error| NatError::Listen(forward.host, error);
        let (listener, at) = match forward.transport {
            Transport::Tcp => {
                let listener = TcpListener::bind(forward.host).map_err(failed)?;
                listener.set_nonblocking(true).map_err(failed)?;
                let at = listener.local_addr().map_err(failed)?;
                (Listener::Tcp(listener), at)
            }
            Transport::Udp => {
                let door = Door::open(forward.host).map_err(failed)?;
                let at = door.socket.local_addr().map_err(failed)?;
                (Listener::Udp(door), at)
            }
        };
        self.command(Command::Open(Forward { host: at, ..forward }, listener));
        Ok(at)
    }

    /// Ends what [`Self::forward`] began; connections that are there stay.
    ///
    /// # Errors
    /// [`NatError::Forward`] when there is no such port.
    pub fn unforward(&self, forward: Forward) -> Result<(), NatError> {
        let (reply, replied) = mpsc::channel();
        self.command(Command::Close(forward, reply));
        match replied.recv() {
            Ok(true) => Ok(()),
            _ => Err(NatError::Forward(forward.host, "is not")),
        }
    }

    fn command(&self, command: Command) {
        // The thread ends last.
        let _ = self.commands.send(command);
        wake(&self.wake);
    }
}

/// A NAT network without a thread: who owns it steps it. For tests and fuzzing.
pub struct SteppedNat {
    engine: Engine,
    // The engine would end without it.
    _commands: Sender<Command>,
}

impl fmt::Debug for SteppedNat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SteppedNat").finish_non_exhaustive()
    }
}

impl SteppedNat {
    /// A network at a port of its own of `switch`.
    ///
    /// # Errors
    /// As [`Nat::start`].
    pub fn new(switch: &Arc<Switch>, config: NatConfig) -> Result<Self, NatError> {
        let host = |error: io::Error| NatError::Host(error);
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let event = rustix::event::eventfd(0, flags).map_err(|error| host(error.into()))?;
        let port = switch.plug(PortConfig::service("nat"));
        let (commands, queue) = mpsc::channel();
        let engine = Engine::new(config, port, Arc::new(event), queue, Arc::default()).map_err(host)?;
        Ok(Self {
            engine,
            _commands: commands,
        })
    }

    /// Does what is due now.
    pub fn step(&mut self) {
        self.engine.step();
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.proxy = None;
        self.command(Command::End);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

impl Inspect for Nat {
    fn inspect(&self) -> Node {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Node::tree()
            .with("tcp_connections", get(&self.gauges.tcp))
            .with("tcp_connections_total", get(&self.gauges.tcp_total))
            .with("udp_mappings", get(&self.gauges.udp))
            .with("forwards", get(&self.gauges.forwards))
    }
}
