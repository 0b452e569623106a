//! The server: a session from one `Tversion` to the next.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Condvar;
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
use serde::Deserialize;
use serde::Serialize;

use super::fids::FidState;
use super::fields::Answer;
use super::fields::Fields;
use super::fields::HEADER;
use super::fields::kind;
use super::session::Done;
use super::session::Session;
use crate::Folder;
use crate::credentials::prepare_thread;

/// Bytes of a message at most, and at least (Tversion).
pub(super) const MSIZE: u32 = 512 << 10;
const MSIZE_LEAST: u32 = 4096;
/// What is spoken.
const VERSION: &[u8] = b"9P2000.L";
/// Bytes of a request at most, without the data of a write.
const FIELDS: usize = 8 << 10;
/// Fields of a write that come before its data.
const WRITE_FIELDS: usize = 16;

/// Saved state of [`NinePServer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NinePState {
    /// Bytes of a message at most, as agreed; 0 before that.
    pub(super) msize: u32,
    pub(super) fids: Vec<FidState>,
}

/// Tags of requests that are being answered; how many have each is the guest's affair.
#[derive(Default)]
struct Tags {
    busy: Mutex<HashMap<u16, u32>>,
    free: Condvar,
}

impl Tags {
    fn lock(&self) -> MutexGuard<'_, HashMap<u16, u32>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, tag: u16) {
        *self.lock().entry(tag).or_default() += 1;
    }

    fn end(&self, tag: u16) {
        let mut busy = self.lock();
        if let Some(count) = busy.get_mut(&tag) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&tag);
            }
        }
        self.free.notify_all();
    }

    /// Waits until no request has the tag.
    fn wait(&self, tag: u16) {
        let mut busy = self.lock();
        while busy.contains_key(&tag) {
            busy = self.free.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A folder, served to one guest.
pub struct NinePServer {
    folder: Arc<Folder>,
    session: Mutex<Arc<Session>>,
    tags: Tags,
    requests: AtomicU64,
    errors: AtomicU64,
}

impl NinePServer {
    /// A server of `folder`.
    #[must_use]
    pub fn new(folder: Folder) -> Self {
        let folder = Arc::new(folder);
        let session = Arc::new(Session::new(Arc::clone(&folder), 0));
        Self {
            folder,
            session: Mutex::new(session),
            tags: Tags::default(),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        }
    }

    fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A new session takes the place of the one that there is.
    fn renew(&self, session: Session) {
        let mut current = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *current, Arc::new(session));
        drop(current);
        drop(old);
    }

    fn serve(&self, message: &mut dyn Message) -> Result<usize, MessageError> {
        let whole = message.left();
        let mut header = [0; HEADER];
        message.take(&mut header)?;
        let [a, b, c, d, kind, e, f] = header;
        let tag = u16::from_le_bytes([e, f]);
        let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        self.requests.fetch_add(1, Ordering::Relaxed);
        let body = len.checked_sub(HEADER).filter(|_| len <= whole);
        let done = match body {
            Some(body) if kind == kind::FLUSH => self.execute(kind, body, message)?,
            Some(body) => {
                self.tags.begin(tag);
                let done = self.execute(kind, body, message);
                self.tags.end(tag);
                done?
            }
            None => Err(Errno::INVAL),
        };
        let (answer, written) = match done {
            Ok(Done { answer, written }) => (answer.finish(kind.wrapping_add(1), tag, written), written),
            Err(error) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                let code = u32::try_from(error.raw_os_error()).unwrap_or(0);
                (Answer::new().u32(code).finish(kind::LERROR, tag, 0), 0)
            }
        };
        message.put(0, &answer)?;
        Ok(answer.len() + written)
    }

    fn execute(&self, kind: u8, body: usize, message: &mut dyn Message) -> Result<Result<Done, Errno>, MessageError> {
        let most = if kind == kind::WRITE { WRITE_FIELDS } else { FIELDS };
        let mut bytes = vec![0; body.min(most)];
        message.take(&mut bytes)?;
        let mut fields = Fields::new(&bytes);
        let data = body.saturating_sub(bytes.len());
        prepare_thread();
        Ok(match kind {
            kind::VERSION => self.version(&mut fields),
            kind::FLUSH => fields.u16().map(|old| {
                self.tags.wait(old);
                Done::of(Answer::new())
            }),
            kind => {
                let session = self.session();
                match session.msize() {
                    0 => Err(Errno::PROTO),
                    _ => session.execute(kind, &mut fields, (message, data)),
                }
            }
        })
    }

    /// Begins anew: everything that was open is closed.
    fn version(&self, fields: &mut Fields<'_>) -> Result<Done, Errno> {
        let (msize, version) = (fields.u32()?, fields.string()?);
        if msize < MSIZE_LEAST {
            return Err(Errno::INVAL);
        }
        let msize = msize.min(MSIZE);
        let known = version.to_bytes() == VERSION;
        let agreed = if known { msize } else { 0 };
        self.renew(Session::new(Arc::clone(&self.folder), agreed));
        let version = if known { VERSION } else { b"unknown" };
        Ok(Done::of(Answer::new().u32(msize).string(version)))
    }
}

impl FileServer for NinePServer {
    type State = NinePState;

    fn answer(&self, message: &mut dyn Message) -> usize {
        // A message without room for its answer gets none.
        self.serve(message).unwrap_or(0)
    }

    fn reset(&self) {
        self.renew(Session::new(Arc::clone(&self.folder), 0));
    }

    fn save(&self) -> NinePState {
        self.session().save()
    }

    fn restore(&self, state: NinePState) -> Result<(), RestoreError> {
        let session = Session::restore(Arc::clone(&self.folder), &state);
        let invalid = |what: &str| RestoreError::Invalid(format!("a shared folder with {what}"));
        self.renew(session.map_err(invalid)?);
        Ok(())
    }

    fn inspect(&self) -> Node {
        let session = self.session();
        let (known, open) = session.open();
        Node::tree()
            .with("protocol", "9p")
            .with("path", self.folder.path().display().to_string())
            .with("read_only", self.folder.is_read_only())
            .with("mounted", session.msize() != 0)
            .with("message_bytes", session.msize())
            .with("files_known", known as u64)
            .with("files_open", open as u64)
            .with("requests", self.requests.load(Ordering::Relaxed))
            .with("errors", self.errors.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests;
