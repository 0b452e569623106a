//! Messages to a file server: taken from queues, answered by workers, given back.
//!
//! What the file system device and the 9P transport have in common. A message stays where it is, in the guest's memory; a worker
//! has the server read and answer it there. After a reset nobody waits for what is under way, and no more guest memory is written.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;

use device_model::FileServer;
use device_model::Message;
use device_model::MessageError;
use device_model::RestoreError;
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;
use storage::Executor;
use storage::Segment;
use storage::Submitted;
use storage::Waker;

use crate::Chain;
use crate::Rings;
use crate::queue::index;

/// Messages that workers have at most.
const BUSY: usize = 256;

/// A message that waits for its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pending {
    token: u64,
    queue: u16,
    chain: Chain,
    /// A worker has it. After a restore none has.
    #[serde(skip)]
    submitted: Submitted,
}

/// What is saved of a [`Post`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PostState {
    pending: Vec<Pending>,
    next_token: u64,
}

struct Reply {
    epoch: u64,
    token: u64,
    len: usize,
}

/// The way from queues to a server and back.
pub(crate) struct Post<S> {
    // Wiring
    server: Arc<S>,
    memory: Arc<GuestMemory>,
    executor: Arc<dyn Executor>,
    waker: Waker,
    sender: Sender<Reply>,
    replies: Receiver<Reply>,
    // State
    state: PostState,
    // Derived
    /// Raised when what is under way is abandoned.
    epoch: Arc<AtomicU64>,
    in_flight: usize,
    held: bool,
}

impl<S: FileServer> Post<S> {
    pub(crate) fn new(server: Arc<S>, memory: &Arc<GuestMemory>, executor: &Arc<dyn Executor>, waker: &Waker) -> Self {
        let (sender, replies) = mpsc::channel();
        Self {
            server,
            memory: Arc::clone(memory),
            executor: Arc::clone(executor),
            waker: Arc::clone(waker),
            sender,
            replies,
            state: PostState::default(),
            epoch: Arc::default(),
            in_flight: 0,
            held: false,
        }
    }

    pub(crate) fn server(&self) -> &S {
        &self.server
    }

    /// Takes messages from the first `queues` queues and gives answers back, until nothing is left that can be done now.
    pub(crate) fn go(&mut self, queues: u16, rings: &mut Rings<'_>) {
        self.held = false;
        loop {
            self.resubmit();
            self.collect(rings);
            if !self.fetch(queues, rings) {
                self.collect(rings);
                return;
            }
        }
    }

    /// Takes no more messages, and gives back what is answered. True when workers have none.
    pub(crate) fn rest(&mut self, rings: Option<&mut Rings<'_>>) -> bool {
        self.held = true;
        match rings {
            Some(rings) => self.collect(rings),
            // Nobody waits for these.
            None => while self.reply().is_some() {},
        }
        self.in_flight == 0
    }

    /// Nobody waits any more for what was asked.
    pub(crate) fn reset(&mut self) {
        self.abandon();
        self.state = PostState::default();
        self.server.reset();
    }

    fn abandon(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }

    /// Messages that no worker has are handed over.
    fn resubmit(&mut self) {
        if self.held {
            return;
        }
        for pending in self.state.pending.iter_mut().filter(|pending| !pending.submitted.0) {
            pending.submitted.0 = true;
            self.in_flight += 1;
            let mut letter = Letter {
                memory: Arc::clone(&self.memory),
                current: Arc::clone(&self.epoch),
                epoch: self.epoch.load(Ordering::Acquire),
                readable: Cursor::new(pending.chain.readable.clone()),
                writable: pending.chain.writable.clone(),
            };
            let (token, sender) = (pending.token, self.sender.clone());
            let (server, waker) = (Arc::clone(&self.server), Arc::clone(&self.waker));
            self.executor.run(Box::new(move || {
                let len = server.answer(&mut letter);
                let epoch = letter.epoch;
                // A device that is gone waits for nothing.
                let _ = sender.send(Reply { epoch, token, len });
                waker();
            }));
        }
    }

    /// The next reply that somebody waits for.
    fn reply(&mut self) -> Option<Reply> {
        while let Ok(reply) = self.replies.try_recv() {
            self.in_flight = self.in_flight.saturating_sub(1);
            if reply.epoch == self.epoch.load(Ordering::Acquire) {
                return Some(reply);
            }
        }
        None
    }

    fn collect(&mut self, rings: &mut Rings<'_>) {
        while let Some(reply) = self.reply() {
            let at = self
                .state
                .pending
                .iter()
                .position(|pending| pending.token == reply.token);
            let Some(at) = at else { continue };
            let pending = self.state.pending.swap_remove(at);
            let len = u32::try_from(reply.len).unwrap_or(u32::MAX);
            rings.push(pending.queue.into(), pending.chain.head, len);
        }
    }

    /// Takes a message from each queue that has one. False when none has, or workers have enough.
    fn fetch(&mut self, queues: u16, rings: &mut Rings<'_>) -> bool {
        let mut fetched = false;
        for queue in 0..queues {
            if self.state.pending.len() >= BUSY {
                return false;
            }
            let Some(chain) = rings.pop(queue.into()) else {
                continue;
            };
            fetched = true;
            let token = self.state.next_token;
            self.state.next_token = token.wrapping_add(1);
            self.state.pending.push(Pending {
                token,
                queue,
                chain,
                submitted: Submitted(false),
            });
            self.resubmit();
        }
        fetched
    }

    pub(crate) fn pending(&self) -> usize {
        self.state.pending.len()
    }

    pub(crate) fn save(&self) -> (PostState, S::State) {
        (self.state.clone(), self.server.save())
    }

    pub(crate) fn restore(&mut self, state: PostState, server: S::State, queues: u16) -> Result<(), RestoreError> {
        let known = |pending: &Pending| pending.queue < queues;
        if state.pending.len() > BUSY || !state.pending.iter().all(known) {
            return Err(RestoreError::Invalid(
                "messages to a shared folder that cannot be".to_owned(),
            ));
        }
        for pending in &state.pending {
            pending.chain.check()?;
        }
        self.abandon();
        self.server.restore(server)?;
        self.state = state;
        Ok(())
    }
}

/// Segments of which a part is used up.
struct Cursor {
    segments: Vec<Segment>,
    /// The first one that is not used up, and how much of it is.
    at: usize,
    used: u32,
    left: u64,
}

impl Cursor {
    fn new(segments: Vec<Segment>) -> Self {
        let left = storage::guest_len(&segments);
        Self {
            segments,
            at: 0,
            used: 0,
            left,
        }
    }

    /// The next piece, of `most` bytes at most.
    fn next(&mut self, most: usize) -> Option<(u64, usize)> {
        let segment = self.segments.get(self.at)?;
        let rest = segment.len.saturating_sub(self.used);
        let len = rest.min(u32::try_from(most).unwrap_or(u32::MAX));
        let gpa = segment.gpa.wrapping_add(self.used.into());
        self.used += len;
        self.left = self.left.saturating_sub(len.into());
        if len == rest {
            (self.at, self.used) = (self.at + 1, 0);
        }
        Some((gpa, index(len.into())))
    }
}

/// A message on a worker's thread.
struct Letter {
    memory: Arc<GuestMemory>,
    current: Arc<AtomicU64>,
    epoch: u64,
    readable: Cursor,
    writable: Vec<Segment>,
}

impl Message for Letter {
    fn left(&self) -> usize {
        index(self.readable.left)
    }

    fn take(&mut self, buf: &mut [u8]) -> Result<(), MessageError> {
        let mut rest = buf;
        while !rest.is_empty() {
            let (gpa, len) = self.readable.next(rest.len()).ok_or(MessageError)?;
            let (now, later) = std::mem::take(&mut rest)
                .split_at_mut_checked(len)
                .ok_or(MessageError)?;
            self.memory.read(gpa, now).map_err(|_| MessageError)?;
            rest = later;
        }
        Ok(())
    }

    fn room(&self) -> usize {
        index(storage::guest_len(&self.writable))
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), MessageError> {
        let (mut skip, mut rest) = (at, bytes);
        for segment in &self.writable {
            if rest.is_empty() {
                break;
            }
            let len = index(segment.len.into());
            if skip >= len {
                skip -= len;
                continue;
            }
            // The device may have been reset meanwhile: its memory is somebody else's then.
            if self.current.load(Ordering::Acquire) != self.epoch {
                return Err(MessageError);
            }
            let (now, later) = rest.split_at_checked(rest.len().min(len - skip)).ok_or(MessageError)?;
            let gpa = segment.gpa.checked_add(skip as u64).ok_or(MessageError)?;
            self.memory.write(gpa, now).map_err(|_| MessageError)?;
            (skip, rest) = (0, later);
        }
        if rest.is_empty() { Ok(()) } else { Err(MessageError) }
    }
}

#[cfg(test)]
mod tests;
