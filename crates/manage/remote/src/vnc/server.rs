//! The server: who is connected, what the screen shows, and the two threads that nobody owns.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use display::Framebuffer;
use display::ScreenSource;
use input::InputSink;
use input::Layout;

use super::Password;
use super::VncAddress;
use super::connection;
use super::connection::ClientState;
use super::socket::Listener;
use super::socket::Socket;

/// Connections at most, with those that have not yet said who they are.
const MOST_CLIENTS: usize = 16;
/// Pictures follow each other at this distance at least.
const FRAME: Duration = Duration::from_millis(33);
/// And take this part of a processor at most: one in so many.
const SHARE: u32 = 4;

/// What a server's owner chooses.
#[derive(Clone, Debug, Default)]
pub struct VncConfig {
    /// The machine's name, which clients show.
    pub name: String,
    /// Without one, everybody who can connect may watch and type.
    pub password: Option<Password>,
    /// The guest's keyboard layout, for clients that send characters rather than keys.
    pub layout: Layout,
}

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for VNC at {address}")]
pub struct VncError {
    /// Where.
    pub address: VncAddress,
    /// What the host said.
    pub source: io::Error,
}

/// What clients and threads share. One lock, which is never held while a socket is written.
pub(super) struct Shared {
    pub(super) config: VncConfig,
    pub(super) sink: Arc<dyn InputSink>,
    state: Mutex<State>,
    /// The picture, a client's wishes, or the end.
    changed: Condvar,
}

/// What is behind the lock.
pub(super) struct State {
    pub(super) framebuffer: Framebuffer,
    /// The keyboard's lights.
    pub(super) leds: Option<u8>,
    pub(super) clients: BTreeMap<u64, ClientState>,
    sockets: BTreeMap<u64, Socket>,
    pub(super) stopping: bool,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something changes.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has changed.
    pub(super) fn notify(&self) {
        self.changed.notify_all();
    }

    /// Forgets a client.
    pub(super) fn leave(&self, id: u64) {
        let mut state = self.lock();
        state.clients.remove(&id);
        state.sockets.remove(&id);
        drop(state);
        self.notify();
    }
}

/// A running server. Ends, and closes all connections, when dropped.
pub struct VncServer {
    shared: Arc<Shared>,
    address: VncAddress,
    threads: Vec<JoinHandle<()>>,
}

impl VncServer {
    /// Listens at `address`, shows what `source` shows, and gives `sink` what clients do.
    ///
    /// # Errors
    /// [`VncError`] when the address is not to be had.
    pub fn start(
        address: &VncAddress,
        config: VncConfig,
        mut source: Box<dyn ScreenSource>,
        sink: Arc<dyn InputSink>,
    ) -> Result<Self, VncError> {
        let error = |source| VncError {
            address: address.clone(),
            source,
        };
        let listener = Listener::bind(address).map_err(error)?;
        let address = listener.address().map_err(error)?;
        let mut framebuffer = Framebuffer::new();
        source.refresh(&mut framebuffer);
        let shared = Arc::new(Shared {
            config,
            sink,
            state: Mutex::new(State {
                framebuffer,
                leds: None,
                clients: BTreeMap::new(),
                sockets: BTreeMap::new(),
                stopping: false,
            }),
            changed: Condvar::new(),
        });
        let accepting = Arc::clone(&shared);
        let refreshing = Arc::clone(&shared);
        let spawn =
            |name: &str, run: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.into()).spawn(run);
        let threads = vec![
            spawn("vnc-accept", Box::new(move || accept(&accepting, &listener))).map_err(error)?,
            spawn("vnc-refresh", Box::new(move || refresh(&refreshing, source))).map_err(error)?,
        ];
        Ok(Self {
            shared,
            address,
            threads,
        })
    }

    /// Where it listens, with the port that it got.
    #[must_use]
    pub fn address(&self) -> &VncAddress {
        &self.address
    }

    /// Clients that are connected and admitted.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.shared.lock().clients.len()
    }
}

impl Drop for VncServer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        state.sockets.values().for_each(Socket::close);
        drop(state);
        self.shared.notify();
        // The thread that accepts sees the end when somebody comes.
        let awake = Socket::connect(&self.address).is_ok();
        if let VncAddress::Unix(path) = &self.address {
            // It was ours.
            let _ = std::fs::remove_file(path);
        }
        for thread in self.threads.drain(..) {
            if awake {
                let _ = thread.join();
            }
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &Listener) {
    let mut next_id = 0u64;
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let accepted = listener.accept();
        let mut state = shared.lock();
        if state.stopping {
            break;
        }
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                drop(state);
                tracing::warn!(%error, "VNC: cannot accept a connection");
                // Out of descriptors, most likely: they come back.
                std::thread::sleep(FRAME);
                continue;
            }
        };
        connections.retain(|thread| !thread.is_finished());
        if state.sockets.len() >= MOST_CLIENTS {
            tracing::warn!(peer, "VNC: turned away, {MOST_CLIENTS} are connected");
            continue;
        }
        let Ok(to_close) = socket.try_clone() else {
            continue;
        };
        next_id += 1;
        let id = next_id;
        state.sockets.insert(id, to_close);
        drop(state);
        let theirs = Arc::clone(shared);
        let run = move || {
            connection::run(&theirs, id, socket, &peer);
            theirs.leave(id);
        };
        match std::thread::Builder::new().name(format!("vnc-{id}")).spawn(run) {
            Ok(thread) => connections.push(thread),
            Err(error) => {
                tracing::warn!(%error, "VNC: no thread for a connection");
                shared.leave(id);
            }
        }
    }
    for thread in connections {
        let _ = thread.join();
    }
}

/// Takes a new picture while somebody waits for one.
fn refresh(shared: &Shared, mut source: Box<dyn ScreenSource>) {
    loop {
        let mut state = shared.lock();
        while !state.stopping && !state.clients.values().any(ClientState::is_waiting) {
            state = shared.wait(state);
        }
        if state.stopping {
            return;
        }
        let start = Instant::now();
        let before = (
            state.framebuffer.generation(),
            state.framebuffer.cursor_generation(),
            state.leds,
        );
        source.refresh(&mut state.framebuffer);
        state.leds = shared.sink.leds();
        let after = (
            state.framebuffer.generation(),
            state.framebuffer.cursor_generation(),
            state.leds,
        );
        drop(state);
        if before != after {
            shared.notify();
        }
        std::thread::sleep(FRAME.max(start.elapsed() * SHARE));
    }
}
