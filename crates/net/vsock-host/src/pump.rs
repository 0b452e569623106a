//! The thread that moves bytes between sockets and buffers.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use device_model::Flow;
use device_model::FlowKind;
use device_model::StreamHost;
use rustix::buffer::spare_capacity;
use rustix::event::EventfdFlags;
use rustix::event::Timespec;
use rustix::event::epoll;
use rustix::event::epoll::EventData;
use rustix::event::epoll::EventFlags;
use rustix::fd::AsFd;
use rustix::fd::OwnedFd;

use crate::VsockError;
use crate::lane::Lane;
use crate::listener;
use crate::listener::Listener;
use crate::socket::Fate;
use crate::socket::MESSAGE;
use crate::socket::Role;
use crate::socket::Socket;
use crate::table::Phase;
use crate::table::Table;
use crate::table::Task;

/// Names of what is watched beside sockets, whose tokens begin behind zero and end before them.
const WAKE: u64 = u64::MAX;
const LISTENERS: [(u64, FlowKind); 2] = [(u64::MAX - 1, FlowKind::Stream), (u64::MAX - 2, FlowKind::Packets)];
/// How long a program may take to say which port it wants, and a guest's connection waits for one that is busy.
const ASKING: Duration = Duration::from_secs(60);
const BUSY: Duration = Duration::from_secs(2);
/// What passes between two attempts to reach a busy program, or to accept when the host gives no descriptors.
const AGAIN: Duration = Duration::from_millis(10);
/// Between two looks at who takes too long to ask.
const SWEEP: Duration = Duration::from_secs(1);

/// The host's programs: the sockets at a path. They go when this is dropped.
pub struct VsockHost {
    pub(crate) table: Arc<Table>,
    thread: Option<JoinHandle<()>>,
}

impl VsockHost {
    /// Listens at `path`, and for messages at `path` with `.seqpacket` behind it; connections of the guest lead to `path` with
    /// `_` and the port behind it.
    ///
    /// # Errors
    /// [`VsockError`] when it cannot be listened there.
    pub fn listen(path: &Path) -> Result<Self, VsockError> {
        let listeners = [
            Listener::bind(path, FlowKind::Stream)?,
            Listener::bind(path, FlowKind::Packets)?,
        ];
        let failed = |source: io::Error| VsockError::Listen {
            path: path.to_owned(),
            source,
        };
        let flags = EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC;
        let event = rustix::event::eventfd(0, flags).map_err(|error| failed(error.into()))?;
        let table = Arc::new(Table::new(event));
        let pump = Pump::new(Arc::clone(&table), path, listeners).map_err(failed)?;
        let thread = std::thread::Builder::new().name("vsock".to_owned());
        let thread = thread.spawn(move || pump.run()).map_err(failed)?;
        Ok(Self {
            table,
            thread: Some(thread),
        })
    }
}

impl VsockHost {
    /// The device's end.
    #[must_use]
    pub fn streams(&self) -> Arc<dyn StreamHost> {
        Arc::clone(&self.table) as Arc<dyn StreamHost>
    }
}

impl Drop for VsockHost {
    fn drop(&mut self) {
        self.table.with(|inner| inner.stop = true);
        self.table.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread has.
struct Pump {
    table: Arc<Table>,
    path: PathBuf,
    /// In the order of [`LISTENERS`].
    listeners: [Listener; 2],
    epoll: OwnedFd,
    sockets: BTreeMap<u64, Socket>,
    /// Sockets that may have something to move.
    ready: BTreeSet<u64>,
    /// Streams whose programs are busy, and until when they are tried.
    busy: Vec<(Flow, u64, Instant)>,
    /// Whether the listeners are watched.
    listening: bool,
    swept: Instant,
    buffer: Vec<u8>,
}

impl Pump {
    fn new(table: Arc<Table>, path: &Path, listeners: [Listener; 2]) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &table.event, EventData::new_u64(WAKE), EventFlags::IN)?;
        Ok(Self {
            table,
            path: path.to_owned(),
            listeners,
            epoll,
            sockets: BTreeMap::new(),
            ready: BTreeSet::new(),
            busy: Vec::new(),
            listening: false,
            swept: Instant::now(),
            buffer: vec![0; MESSAGE],
        })
    }

    fn run(mut self) {
        let mut events = Vec::with_capacity(256);
        loop {
            self.listen();
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    tracing::error!(%error, "virtio sockets end: the host's events cannot be had");
                    return;
                }
            }
            for event in &events {
                let (data, flags) = (event.data, event.flags);
                self.happened(data.u64(), flags);
            }
            if !self.obey() {
                return;
            }
            self.try_again();
            self.serve();
            self.sweep();
        }
    }

    fn timeout(&self) -> Option<Timespec> {
        let wait = if !self.ready.is_empty() {
            Duration::ZERO
        } else if !self.busy.is_empty() || !self.listening {
            AGAIN
        } else if self
            .sockets
            .values()
            .any(|socket| matches!(socket.role, Role::Asking(..)))
        {
            SWEEP
        } else {
            return None;
        };
        Some(Timespec {
            tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: wait.subsec_nanos().into(),
        })
    }

    /// Watches the listeners while there may be more sockets.
    fn listen(&mut self) {
        if !self.listening && !self.table.with(|inner| inner.is_full()) {
            self.listening = true;
            for ((token, _), listener) in LISTENERS.iter().zip(&self.listeners) {
                let data = EventData::new_u64(*token);
                self.listening &= epoll::add(&self.epoll, listener.socket(), data, EventFlags::IN).is_ok();
            }
            if !self.listening {
                self.unwatch();
            }
        }
    }

    fn stop_listening(&mut self) {
        if std::mem::take(&mut self.listening) {
            self.unwatch();
        }
    }

    fn unwatch(&self) {
        for listener in &self.listeners {
            let _ = epoll::delete(&self.epoll, listener.socket());
        }
    }

    fn happened(&mut self, token: u64, flags: EventFlags) {
        match token {
            WAKE => {
                let mut count = [0; 8];
                let _ = rustix::io::read(&self.table.event, &mut count);
            }
            _ => {
                let listeners = LISTENERS.iter();
                if let Some(index) = listeners.clone().position(|(listener, _)| *listener == token) {
                    return self.accept(index);
                }
                let Some(socket) = self.sockets.get_mut(&token) else {
                    return;
                };
                socket.hung_up |= flags.intersects(EventFlags::HUP | EventFlags::ERR);
                socket.readable |= socket.hung_up || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
                socket.writable |= socket.hung_up || flags.contains(EventFlags::OUT);
                self.ready.insert(token);
            }
        }
    }

    fn accept(&mut self, index: usize) {
        let Some((_, kind)) = LISTENERS.get(index).copied() else {
            return;
        };
        loop {
            if self.table.with(|inner| inner.is_full()) {
                self.stop_listening();
                return;
            }
            let Some(listener) = self.listeners.get(index) else {
                return;
            };
            match listener.accept() {
                Ok(Some(stream)) => {
                    let token = self.table.with(|inner| {
                        inner.sockets += 1;
                        inner.new_token()
                    });
                    self.add(token, (stream, kind), Role::Asking(Vec::new(), Instant::now()));
                }
                Ok(None) => return,
                Err(error) => {
                    // Without a descriptor there is none for the next either, for a while.
                    tracing::debug!(%error, "a program of the host cannot be listened to");
                    self.stop_listening();
                    return;
                }
            }
        }
    }

    fn add(&mut self, token: u64, (stream, kind): (OwnedFd, FlowKind), role: Role) -> bool {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let watched = epoll::add(&self.epoll, stream.as_fd(), EventData::new_u64(token), flags).is_ok();
        if watched {
            self.sockets.insert(token, Socket::new(stream, kind, token, role));
            self.ready.insert(token);
        } else {
            self.table.with(|inner| inner.sockets -= 1);
        }
        watched
    }

    /// Does what the device asks for. False at the end.
    fn obey(&mut self) -> bool {
        let (tasks, stop) = self.table.with(|inner| (std::mem::take(&mut inner.tasks), inner.stop));
        for task in tasks {
            match task {
                Task::Connect(flow, token) => self.connect(flow, token, Instant::now() + BUSY),
                Task::Look(flow) => {
                    let token = self.table.with(|inner| inner.begin_work(flow));
                    self.ready
                        .extend(token.filter(|token| self.sockets.contains_key(token)));
                }
                Task::Close(token, rest) => self.close(token, rest),
            }
        }
        !stop
    }

    fn close(&mut self, token: u64, rest: Lane) {
        if let Some(socket) = self.sockets.get_mut(&token) {
            socket.end(rest);
            self.ready.insert(token);
            return;
        }
        let before = self.busy.len();
        self.busy.retain(|(_, other, _)| *other != token);
        let gone = before - self.busy.len();
        self.table.with(|inner| inner.sockets -= gone);
    }

    /// Reaches the program of a stream that the guest wants.
    fn connect(&mut self, flow: Flow, token: u64, until: Instant) {
        let connected = match listener::connect(&listener::of_port(&self.path, flow.host), flow.kind) {
            Ok(Some(stream)) => {
                let greeting = Vec::new();
                self.add(token, (stream, flow.kind), Role::Stream { flow, greeting })
            }
            Ok(None) if Instant::now() < until => {
                self.busy.push((flow, token, until));
                return;
            }
            Ok(None) | Err(_) => {
                self.table.with(|inner| inner.sockets -= 1);
                false
            }
        };
        self.table.with(|inner| {
            if !connected {
                inner.lose(flow, token);
            } else if let Some(stream) = inner.stream(flow, token) {
                stream.phase = Phase::Open;
                inner.tell(flow);
            }
        });
    }

    fn try_again(&mut self) {
        for (flow, token, until) in std::mem::take(&mut self.busy) {
            self.connect(flow, token, until);
        }
    }

    /// Gives every socket that may have something to move its turn.
    fn serve(&mut self) {
        for token in std::mem::take(&mut self.ready) {
            let Some(socket) = self.sockets.get_mut(&token) else {
                continue;
            };
            match socket.serve(&self.table, &mut self.buffer) {
                Fate::Wait => {}
                Fate::More => drop(self.ready.insert(token)),
                Fate::Close => self.remove(token),
            }
        }
    }

    fn remove(&mut self, token: u64) {
        if self.sockets.remove(&token).is_some() {
            self.table.with(|inner| inner.sockets -= 1);
        }
    }

    /// Lets those go that do not say what they want.
    fn sweep(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.swept) < SWEEP {
            return;
        }
        self.swept = now;
        let late =
            |socket: &Socket| matches!(&socket.role, Role::Asking(_, since) if now.duration_since(*since) > ASKING);
        let tokens: Vec<u64> = self.sockets.iter().filter(|(_, s)| late(s)).map(|(t, _)| *t).collect();
        tokens.into_iter().for_each(|token| self.remove(token));
    }
}
