//! The server: who is connected.

mod commands;
mod connection;
mod listener;
mod outbox;

use std::collections::BTreeMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use serde_json::json;

pub(crate) use outbox::Outbox;

use crate::Controlled;
use crate::ErrorKind;
use crate::Publisher;
use crate::Refusal;
use listener::Listener;

/// Connections at most.
const MOST_CLIENTS: usize = 16;
/// How long clients get to read their last lines when the server ends.
const LAST_LINES: Duration = Duration::from_secs(1);
/// What passes between two attempts to accept when the host gives no descriptors.
const LATER: Duration = Duration::from_millis(100);
/// How long a client that is turned away may take to read why.
const TURNED_AWAY: Duration = Duration::from_millis(100);

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another process listens there.
    #[error("another machine listens at `{}`", .0.display())]
    InUse(PathBuf),
    /// There is something else.
    #[error("`{}` is there already, and no socket", .0.display())]
    NoSocket(PathBuf),
    /// The host refuses.
    #[error("cannot listen at `{}`", .path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// What threads share.
struct Shared {
    machine: Arc<dyn Controlled>,
    publisher: Publisher,
    /// Whoever presses keys holds it for as long: what two clients type is not mixed.
    keyboard: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    clients: BTreeMap<u64, Client>,
    stopping: bool,
}

/// A connection, seen from outside.
struct Client {
    socket: UnixStream,
    outbox: Arc<Outbox>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running server. When dropped it gives clients a moment to read their last lines, and removes the socket.
pub struct ControlServer {
    shared: Arc<Shared>,
    path: PathBuf,
    /// Another descriptor of the socket that the thread waits at.
    listening: UnixListener,
    accepting: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens at `path`, for processes of the same user. A socket that is left over from a machine that was killed is replaced.
    ///
    /// # Errors
    /// [`ControlError`] when the place is taken or the host refuses.
    pub fn start(path: &Path, machine: Arc<dyn Controlled>, publisher: Publisher) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Listen {
            path: path.to_owned(),
            source,
        };
        let listener = Listener::bind(path)?;
        let listening = listener.try_clone().map_err(failed)?;
        let shared = Arc::new(Shared {
            machine,
            publisher,
            keyboard: Mutex::new(()),
            state: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let accepting = std::thread::Builder::new()
            .name("control-accept".to_owned())
            .spawn(move || accept(&theirs, &listener))
            .map_err(failed)?;
        Ok(Self {
            shared,
            path: path.to_owned(),
            listening,
            accepting: Some(accepting),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.stopping = true;
        let outboxes: Vec<Arc<Outbox>> = state
            .clients
            .values()
            .map(|client| Arc::clone(&client.outbox))
            .collect();
        drop(state);
        outboxes.iter().for_each(|outbox| outbox.close());
        let deadline = Instant::now() + LAST_LINES;
        outboxes.iter().for_each(|outbox| outbox.wait_empty_until(deadline));
        for client in self.shared.lock().clients.values() {
            // One that has ended already has nothing to be told.
            let _ = client.socket.shutdown(Shutdown::Both);
        }
        // A listening socket that is shut down accepts no more, and says so to whoever waits.
        let _ = rustix::net::shutdown(&self.listening, rustix::net::Shutdown::Both);
        if let Some(thread) = self.accepting.take() {
            let _ = thread.join();
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &Listener) {
    let mut next_id = 0u64;
    let mut connections: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let accepted = listener.accept();
        if shared.lock().stopping {
            break;
        }
        connections.retain(|thread| !thread.is_finished());
        let socket = match accepted {
            Ok(Some(socket)) => socket,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(%error, "control: cannot accept a connection");
                // Out of descriptors, most likely: they come back.
                std::thread::sleep(LATER);
                continue;
            }
        };
        next_id += 1;
        match connect(shared, next_id, socket) {
            Ok(thread) => connections.push(thread),
            Err(error) => {
                tracing::warn!(%error, "control: a connection was refused");
                shared.lock().clients.remove(&next_id);
            }
        }
    }
    for thread in connections {
        let _ = thread.join();
    }
}

/// Starts a connection's thread.
fn connect(shared: &Arc<Shared>, id: u64, socket: UnixStream) -> io::Result<JoinHandle<()>> {
    let mut state = shared.lock();
    if state.stopping {
        return Err(io::Error::other("the machine ends"));
    }
    if state.clients.len() >= MOST_CLIENTS {
        drop(state);
        return Err(turn_away(&socket));
    }
    let outbox = Arc::new(Outbox::default());
    let client = Client {
        socket: socket.try_clone()?,
        outbox: Arc::clone(&outbox),
    };
    state.clients.insert(id, client);
    drop(state);
    let theirs = Arc::clone(shared);
    let body = move || {
        connection::run(&theirs, id, &socket, &outbox);
        theirs.lock().clients.remove(&id);
    };
    std::thread::Builder::new().name(format!("control-{id}")).spawn(body)
}

/// Says why there is no room.
fn turn_away(mut socket: &UnixStream) -> io::Error {
    let message = format!("{MOST_CLIENTS} clients are connected already");
    let refusal = Refusal::new(ErrorKind::Busy, message.clone());
    let line = format!("{}\n", json!({"id": null, "error": refusal}));
    // The one line fits into the socket, or the client has not been reading: then it learns nothing.
    let _ = socket.set_write_timeout(Some(TURNED_AWAY));
    let _ = io::Write::write_all(&mut socket, line.as_bytes());
    io::Error::other(message)
}
