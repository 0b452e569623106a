//! Networks between processes: a small switch process for each named network, and how machines get to it.
//!
//! ```text
//!   machine: card ─ Port ─ Switch ─ Port ─ Member ══ socket ══ Hub: Port ─ Switch ─ Port ══ … machine
//!                                                                         └─ Port ─ Nat
//! ```
//!
//! The first machine starts the process, and it ends soon after the last one has gone. A machine that dies takes its port along; a
//! switch that dies is started again by the machines that miss it. The socket is in a directory of the user's own.

use std::fs;
use std::fs::DirBuilder;
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use device_model::FramePort;
use device_model::Inspect;
use device_model::Node;
use device_model::net::Mac;
use rustix::buffer::spare_capacity;
use rustix::event::EventfdFlags;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::event::epoll::EventData;
use rustix::event::epoll::EventFlags;
use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;

use crate::Nat;
use crate::Port;
use crate::PortConfig;
use crate::Promiscuous;
use crate::Role;
use crate::Switch;
use crate::desk::Desk;
use crate::desk::Wishes;
use crate::host;
use crate::host::HostError;
use crate::nat::Addresses;
use crate::nat::NatConfig;
use crate::uplink::Host as HostWire;
use crate::uplink::Pump;
use crate::uplink::Waits;
use crate::uplink::Wire;

/// Machines of a network at most.
const MEMBERS: usize = 256;
/// How long a switch waits for its first machine, and after its last one.
const LONELY: Duration = Duration::from_secs(2);
/// How often a machine looks for its switch, and starts one.
const RETRY: Duration = Duration::from_millis(50);
const RESTART: Duration = Duration::from_millis(500);
/// Characters of a network's name at most.
const NAME: usize = 32;
const LISTENER: u64 = 0;

/// Which named network it is, and what there is besides machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// Its name: letters, digits, `-` and `_`, 32 at most.
    pub name: String,
    /// The way to the world, if there is one.
    pub nat: Option<NatConfig>,
    /// How the host is at the network, if it is.
    pub host: Option<HostConfig>,
}

/// How the host is at a network of machines and itself: by a tap with an address where it may, else by the network's own services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// The network, of 24 bits. Its first address is the host's, its hundredth the DHCP server's.
    pub network: Ipv4Addr,
    /// There is a DHCP server.
    pub dhcp: bool,
    /// Last bytes of the first and the last address that it gives.
    pub range: (u8, u8),
    /// Where there is no tap, the host's address reaches servers on its loop-back.
    pub loopback: bool,
    /// Where the host's programs find a SOCKS5 proxy that leads to guests.
    pub proxy: Option<SocketAddr>,
}

/// The last bytes of the host's address, and of the DHCP server's.
const HOST: u8 = 1;
const SERVER: u8 = 100;

impl HostConfig {
    /// The host's address.
    fn address(&self) -> Ipv4Addr {
        let [a, b, c, _] = self.network.octets();
        Ipv4Addr::new(a, b, c, HOST)
    }

    /// The services of the network, with the host at a tap or without.
    fn services(&self, has_tap: bool) -> NatConfig {
        let server = if has_tap { SERVER } else { HOST };
        let (first, last) = self.range;
        NatConfig {
            network: self.network,
            addresses: Addresses {
                gateway: server,
                dns: server,
                first,
                last,
                router: false,
                dhcp: self.dhcp,
            },
            loopback: self.loopback && !has_tap,
            restricted: true,
            ipv6: false,
            proxy: self.proxy,
            ..NatConfig::default()
        }
    }

    /// Sets the network up: its services, and the tap if this user may have one.
    fn start(&self, switch: &Arc<Switch>, name: &str, leases: PathBuf) -> io::Result<(Nat, Option<Uplink>)> {
        let tap = match host::host_only(switch, name, self.address()) {
            Ok(tap) => Some(tap),
            Err(HostError::Denied(..) | HostError::NoTaps) => None,
            Err(error) => return Err(io::Error::other(error)),
        };
        let leases = Some(leases);
        let config = NatConfig {
            leases,
            ..self.services(tap.is_some())
        };
        Ok((Nat::start(switch, config).map_err(io::Error::other)?, tap))
    }
}

/// Whether `name` may be a network's.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let fits = (1..=NAME).contains(&name.len());
    fits && name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

impl HubConfig {
    /// What stands for it in the file system: networks with and without NAT have different names.
    fn stem(&self) -> String {
        let kind = match (&self.nat, &self.host) {
            (Some(_), _) => "nat",
            (None, Some(_)) => "host",
            (None, None) => "internal",
        };
        format!("{kind}-{}", self.name)
    }

    /// What keeps this network from being set up, as far as can be told beforehand. Nothing does if it is there already.
    #[must_use]
    pub fn obstacle(&self, directory: &Path) -> Option<HostError> {
        let address = self.host.as_ref()?.address();
        let path = directory.join(self.stem()).with_extension("sock");
        let is_there = || {
            let socket = socket().ok()?;
            rustix::net::connect(&socket, &SocketAddrUnix::new(&path).ok()?).ok()
        };
        let taken = std::net::UdpSocket::bind((address, 0)).is_ok() && is_there().is_none();
        taken.then_some(HostError::Taken(address))
    }

    /// Where guests are given names and ports of the host's, for the guest with this address of Ethernet. None if there is no
    /// such place.
    ///
    /// # Errors
    /// When the host gives no thread or no descriptor.
    pub fn wishes(&self, directory: &Path, mac: Mac) -> io::Result<Option<Wishes>> {
        if self.nat.is_none() && self.host.is_none() {
            return Ok(None);
        }
        let path = directory.join(self.stem()).with_extension("desk");
        Wishes::new(path, mac).map(Some)
    }
}

/// The directory of the user's sockets, made if need be.
///
/// # Errors
/// When it cannot be made, or is somebody else's.
pub fn directory() -> io::Result<PathBuf> {
    let uid = rustix::process::getuid().as_raw();
    let base = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_dir() => PathBuf::from(dir).join("oxbow"),
        _ => std::env::temp_dir().join(format!("oxbow-{uid}")),
    };
    match DirBuilder::new().mode(0o700).create(&base) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let data = fs::symlink_metadata(&base)?;
    if !data.is_dir() || data.uid() != uid || data.mode() & 0o077 != 0 {
        let message = format!("`{}` is not a directory of this user's alone", base.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(base)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        flags,
        None,
    )?)
}

/// The switch of a named network, in a process of its own.
pub struct Hub {
    listener: OwnedFd,
    path: PathBuf,
    epoll: OwnedFd,
    switch: Arc<Switch>,
    members: Vec<(u64, Pump, Waits)>,
    next: u64,
    // These end in this order: nobody asks for what is gone.
    _desk: Option<Desk>,
    _tap: Option<Uplink>,
    _nat: Option<Arc<Nat>>,
    /// Held as long as this is the network's switch.
    _lock: File,
}

impl Hub {
    /// Opens a network in `directory`. None if somebody else has it open.
    ///
    /// # Errors
    /// What the system says to it.
    pub fn open(directory: &Path, config: &HubConfig) -> io::Result<Option<Self>> {
        if !is_name(&config.name) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let path = directory.join(config.stem()).with_extension("sock");
        let lock = File::create(path.with_extension("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // Whoever holds the lock may replace what a dead switch has left.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = socket()?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path)?)?;
        rustix::net::listen(&listener, 64)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        let switch = Switch::new();
        let leases = path.with_extension("leases");
        let (nat, tap) = match (&config.nat, &config.host) {
            (Some(nat), _) => {
                let leases = Some(leases);
                let config = NatConfig { leases, ..nat.clone() };
                (Some(Nat::start(&switch, config).map_err(io::Error::other)?), None)
            }
            (None, Some(host)) => {
                let (nat, tap) = host.start(&switch, &config.name, leases)?;
                (Some(nat), tap)
            }
            (None, None) => (None, None),
        };
        let nat = nat.map(Arc::new);
        let desk = nat.as_ref().map(|nat| Desk::open(&path.with_extension("desk"), nat));
        Ok(Some(Self {
            listener,
            _desk: desk.transpose()?,
            _tap: tap,
            _nat: nat,
            path,
            _lock: lock,
            epoll,
            switch,
            members: Vec::new(),
            next: LISTENER + 1,
        }))
    }

    /// Serves the network until nobody is there any more.
    ///
    /// # Errors
    /// When the host's events cannot be had.
    pub fn run(mut self) -> io::Result<()> {
        let event = Arc::new(rustix::event::eventfd(
            0,
            EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
        )?);
        epoll::add(&self.epoll, &*event, EventData::new_u64(u64::MAX), EventFlags::IN)?;
        let mut events = Vec::with_capacity(64);
        let mut alone = Some(Instant::now());
        loop {
            let more = self.members.iter().any(|(_, _, waits)| waits.more);
            let wait = if more { Duration::ZERO } else { LONELY };
            let timeout = Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(0),
                tv_nsec: 0,
            };
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut count = [0; 8];
            let _ = rustix::io::read(&*event, &mut count);
            self.admit(&event);
            self.pump();
            alone = match (self.members.is_empty(), alone) {
                (false, _) => None,
                (true, None) => Some(Instant::now()),
                (true, since) => since,
            };
            if alone.is_some_and(|since| since.elapsed() >= LONELY) {
                return Ok(());
            }
        }
    }

    /// Lets machines in.
    fn admit(&mut self, event: &Arc<OwnedFd>) {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        while let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            if self.members.len() >= MEMBERS {
                continue;
            }
            let id = self.next;
            if epoll::add(&self.epoll, &socket, EventData::new_u64(id), EventFlags::IN).is_err() {
                continue;
            }
            self.next += 1;
            let port = self.switch.plug(PortConfig {
                name: format!("member{id}"),
                role: Role::Guest,
                // What its card may overhear, the machine itself decides.
                promiscuous: Promiscuous::All,
            });
            let event = Arc::clone(event);
            port.set_waker(Arc::new(move || wake(&event)));
            let waits = Waits {
                to_read: true,
                to_write: false,
                more: true,
            };
            self.members.push((id, Pump::new(port, socket, Wire::Own), waits));
        }
    }

    /// Moves everybody's frames; those who are gone lose their ports.
    fn pump(&mut self) {
        let epoll = &self.epoll;
        self.members.retain_mut(|(id, pump, waits)| match pump.pump() {
            Ok(now) => watch(epoll, *id, pump, waits, now).is_ok(),
            Err(_) => false,
        });
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        // Who comes after this was not here before.
        let _ = fs::remove_file(self.path.with_extension("leases"));
    }
}

fn wake(event: &OwnedFd) {
    // It only fails if it has been woken 2^64 times.
    let _ = rustix::io::write(event, &1u64.to_ne_bytes());
}

/// Awaits what a pump waits for.
fn watch(epoll: &OwnedFd, id: u64, pump: &Pump, before: &mut Waits, now: Waits) -> io::Result<()> {
    let changed = (before.to_read, before.to_write) != (now.to_read, now.to_write);
    *before = now;
    if changed {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, now.to_read);
        flags.set(EventFlags::OUT, now.to_write);
        epoll::modify(epoll, pump.socket(), EventData::new_u64(id), flags)?;
    }
    Ok(())
}

/// Starts a network's switch. Called on a thread of its own, as often as the network is missed; returns at once.
pub type Starter = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// Where frames of an uplink go.
enum Far {
    /// To a switch process.
    Hub { path: PathBuf, start: Starter },
    /// Into a tunnel.
    Socket(Option<(OwnedFd, Wire)>),
}

/// A machine's way to other processes, at a port of its own switch. Dropping it ends it.
pub struct Uplink {
    event: Arc<OwnedFd>,
    ended: Arc<AtomicBool>,
    connected: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uplink").finish_non_exhaustive()
    }
}

impl Uplink {
    /// Joins a named network, which `start` starts if it is not there.
    ///
    /// # Errors
    /// When the host gives no thread or no descriptors.
    pub fn join(switch: &Arc<Switch>, directory: &Path, config: &HubConfig, start: Starter) -> io::Result<Self> {
        let path = directory.join(config.stem()).with_extension("sock");
        Self::start(switch, Far::Hub { path, start })
    }

    /// Sends frames as datagrams to whom `socket` is connected to, and receives from there.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub fn tunnel(switch: &Arc<Switch>, socket: std::net::UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Self::start(switch, Far::Socket(Some((socket.into(), Wire::Plain))))
    }

    /// Frames to and from the host's own network.
    ///
    /// # Errors
    /// As [`Self::join`].
    pub(crate) fn host(switch: &Arc<Switch>, fd: OwnedFd, host: HostWire) -> io::Result<Self> {
        Self::start(switch, Far::Socket(Some((fd, Wire::Host(host)))))
    }

    fn start(switch: &Arc<Switch>, far: Far) -> io::Result<Self> {
        let event = Arc::new(rustix::event::eventfd(
            0,
            EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
        )?);
        let port = switch.plug(PortConfig::service("uplink"));
        let waker = Arc::clone(&event);
        port.set_waker(Arc::new(move || wake(&waker)));
        let ended = Arc::<AtomicBool>::default();
        let connected = Arc::<AtomicBool>::default();
        let body = Body {
            port,
            event: Arc::clone(&event),
            ended: Arc::clone(&ended),
            connected: Arc::clone(&connected),
        };
        let thread = thread::Builder::new()
            .name("uplink".to_owned())
            .spawn(move || body.run(far))?;
        Ok(Self {
            event,
            ended,
            connected,
            thread: Some(thread),
        })
    }
}

impl Inspect for Uplink {
    fn inspect(&self) -> Node {
        Node::tree().with("connected", self.connected.load(Ordering::Relaxed))
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        wake(&self.event);
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

/// What an uplink's thread has.
struct Body {
    port: Arc<Port>,
    event: Arc<OwnedFd>,
    ended: Arc<AtomicBool>,
    connected: Arc<AtomicBool>,
}

impl Body {
    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    fn run(&self, mut far: Far) {
        while !self.has_ended() {
            let found = match &mut far {
                Far::Hub { path, start } => self.connect(path, start).map(|socket| (socket, Wire::Own)),
                Far::Socket(socket) => socket.take(),
            };
            let Some((socket, wire)) = found else { return };
            self.connected.store(true, Ordering::Relaxed);
            if let Err(error) = self.serve(socket, wire) {
                tracing::debug!(%error, "the network's switch is gone");
            }
            self.connected.store(false, Ordering::Relaxed);
        }
    }

    /// The switch's socket, once it is there. None at the end.
    fn connect(&self, path: &Path, start: &Starter) -> Option<OwnedFd> {
        let mut started: Option<Instant> = None;
        while !self.has_ended() {
            let connected = socket().and_then(|socket| {
                rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
                Ok(socket)
            });
            if let Ok(socket) = connected {
                return Some(socket);
            }
            if started.is_none_or(|at| at.elapsed() >= RESTART) {
                started = Some(Instant::now());
                if let Err(error) = start() {
                    tracing::warn!(%error, "a network's switch cannot be started");
                }
            }
            // Nobody hears what the guest says meanwhile.
            while self.port.receive().is_some() {}
            thread::sleep(RETRY);
        }
        None
    }

    /// Moves frames until the end, or until the other end is gone.
    fn serve(&self, socket: OwnedFd, wire: Wire) -> io::Result<()> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &*self.event, EventData::new_u64(0), EventFlags::IN)?;
        epoll::add(&epoll, &socket, EventData::new_u64(1), EventFlags::IN)?;
        let mut pump = Pump::new(Arc::clone(&self.port), socket, wire);
        let mut waits = Waits {
            to_read: true,
            to_write: false,
            more: true,
        };
        let mut events = Vec::with_capacity(4);
        while !self.has_ended() {
            let now = pump.pump()?;
            watch(&epoll, 1, &pump, &mut waits, now)?;
            let timeout = now.more.then(Timespec::default);
            events.clear();
            match epoll::wait(&epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.event, &mut count);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
