//! The server: a session from one INIT to the next.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use device_model::FileServer;
use device_model::Message;
use device_model::MessageError;
use device_model::Node;
use device_model::RestoreError;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::reply;
use super::reply::Answer;
use super::request;
use super::request::Operation;
use super::request::Request;
use super::session::Session;
use super::state::CachePolicy;
use super::state::FuseState;
use super::wire::IN_HEADER;
use super::wire::InHeader;
use super::wire::OUT_HEADER;
use crate::Folder;
use crate::credentials::prepare_thread;

/// How a folder is served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FuseConfig {
    /// How long the guest may go without asking.
    pub cache: CachePolicy,
    /// The guest may keep what is written for a while. Only where nobody else writes to the folder.
    pub writeback: bool,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    errors: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
}

/// A folder, served to one guest.
pub struct FuseServer {
    folder: Arc<Folder>,
    config: FuseConfig,
    session: Mutex<Arc<Session>>,
    counters: Counters,
}

impl FuseServer {
    /// A server of `folder`.
    #[must_use]
    pub fn new(folder: Folder, config: FuseConfig) -> Self {
        let folder = Arc::new(folder);
        let session = Arc::new(Session::new(Arc::clone(&folder), config));
        Self {
            folder,
            config,
            session: Mutex::new(session),
            counters: Counters::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Session>> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new session takes the place of the one that there is, whose files are closed when the last request of it ends.
    fn renew(&self, session: Session) -> Arc<Session> {
        let new = Arc::new(session);
        let old = std::mem::replace(&mut *self.lock(), Arc::clone(&new));
        drop(old);
        new
    }

    /// Takes a request and carries it out. Returns the answer's length.
    fn serve(&self, message: &mut dyn Message) -> Result<usize, MessageError> {
        let whole = message.left();
        let mut header = InHeader::default();
        message.take(header.as_mut_bytes())?;
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        let body = len.checked_sub(IN_HEADER).filter(|_| len <= whole);
        let result = match body {
            Some(body) => self.execute(header, body, message)?,
            None => Err(Errno::INVAL),
        };
        match result {
            Ok(Answer::Silence) => Ok(0),
            Ok(Answer::Written(len)) => {
                self.counters.read.fetch_add(len as u64, Ordering::Relaxed);
                reply::finish(message, header.unique, 0, len)
            }
            Ok(Answer::Bytes(bytes)) => {
                message.put(OUT_HEADER, &bytes)?;
                reply::finish(message, header.unique, 0, bytes.len())
            }
            // Who forgets hears nothing.
            Err(_) if message.room() < OUT_HEADER => Ok(0),
            Err(error) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                reply::finish(message, header.unique, error.raw_os_error(), 0)
            }
        }
    }

    fn execute(
        &self,
        header: InHeader,
        body: usize,
        message: &mut dyn Message,
    ) -> Result<Result<Answer, Errno>, MessageError> {
        let mut arguments = vec![0; body.min(request::arguments(&header))];
        message.take(&mut arguments)?;
        let request = match Request::parse(header, &arguments) {
            Ok(request) => request,
            Err(error) => return Ok(Err(error)),
        };
        prepare_thread();
        let session = Arc::clone(&self.lock());
        Ok(match &request.operation {
            Operation::Init(init) => {
                let session = self.renew(Session::new(Arc::clone(&self.folder), self.config));
                session.init(init)
            }
            Operation::Destroy => {
                self.renew(Session::new(Arc::clone(&self.folder), self.config));
                Ok(Answer::done())
            }
            _ if !session.is_begun() => Err(Errno::IO),
            Operation::Read(read) => session.read(read, message),
            Operation::Write(write) => {
                let data = body.saturating_sub(arguments.len());
                let written = session.write(write, data, message);
                if written.is_ok() {
                    self.counters.written.fetch_add(write.size.into(), Ordering::Relaxed);
                }
                written
            }
            operation => session.execute(&header, operation, message.room().saturating_sub(OUT_HEADER)),
        })
    }
}

impl FileServer for FuseServer {
    type State = FuseState;

    fn answer(&self, message: &mut dyn Message) -> usize {
        // A message without room for its answer gets none.
        self.serve(message).unwrap_or(0)
    }

    fn reset(&self) {
        self.renew(Session::new(Arc::clone(&self.folder), self.config));
    }

    fn save(&self) -> FuseState {
        Arc::clone(&self.lock()).save()
    }

    fn restore(&self, state: FuseState) -> Result<(), RestoreError> {
        let session = Session::restore(Arc::clone(&self.folder), self.config, &state);
        let invalid = |what: &str| RestoreError::Invalid(format!("a shared folder with {what}"));
        self.renew(session.map_err(invalid)?);
        Ok(())
    }

    fn inspect(&self) -> Node {
        let session = Arc::clone(&self.lock());
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (nodes, handles) = session.open();
        Node::tree()
            .with("protocol", "virtiofs")
            .with("path", self.folder.path().display().to_string())
            .with("read_only", self.folder.is_read_only())
            .with("mounted", session.is_begun())
            .with("files_known", nodes as u64)
            .with("files_open", handles as u64)
            .with("requests", count(&self.counters.requests))
            .with("errors", count(&self.counters.errors))
            .with("read_bytes", count(&self.counters.read))
            .with("written_bytes", count(&self.counters.written))
    }
}

#[cfg(test)]
mod tests;
