//! Requests to media: handed to workers, answered later.
//!
//! A worker carries out the whole of a request: it reads or writes the medium piece by piece, and carries the data to or from
//! guest memory. A controller that was reset abandons what it had asked for; the answer is then dropped, and no more
//! guest memory is written.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;

use device_model::RestoreError;
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;

use crate::bytes;
use crate::medium::Medium;
use crate::medium::MediumError;

/// What a worker does.
pub type Job = Box<dyn FnOnce() + Send>;

/// Who carries out jobs.
///
/// Called under a device's lock: must not block. A job may run on any thread, also within the call.
pub trait Executor: Send + Sync {
    /// Carries out `job` soon.
    fn run(&self, job: Job);
}

/// Carries out jobs within the call: for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inline;

impl Executor for Inline {
    fn run(&self, job: Job) {
        job();
    }
}

/// Asks for a poll of the device that waits for an answer. Called on a worker's thread, with no lock held.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// Bytes that a worker carries at a time.
const PIECE: u64 = 256 << 10;
/// Bytes that one request moves at most: 65536 sectors.
pub const MOST: u64 = 65_536 * 512;
/// Pieces of guest memory in one request at most.
pub const SEGMENTS: usize = 65_536;
/// Ranges in one request at most.
const RANGES: usize = 4096;

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// From the medium.
    Read,
    /// To the medium.
    Write {
        /// The data are safe before the answer comes.
        through: bool,
    },
    /// Makes a range zeros.
    WriteZeroes {
        /// As for writes.
        through: bool,
    },
    /// Gives the space of ranges back.
    Discard {
        /// As for writes.
        through: bool,
    },
    /// Makes all safe that was written.
    Flush,
    /// Reads, and tells only whether that was possible.
    Verify,
    /// Reads, and tells whether guest memory holds the same.
    Compare,
}

/// Where data come from or go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Data {
    /// With the answer, or nowhere.
    None,
    /// Bytes to be written.
    Bytes(Vec<u8>),
    /// Guest memory.
    Guest(Vec<Segment>),
    /// Offsets and lengths.
    Ranges(Vec<(u64, u64)>),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What is to be done.
    pub op: Op,
    /// Where on the medium it begins, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Where data come from or go to.
    pub data: Data,
}

impl Request {
    /// A request for `len` bytes of the medium from `offset` on.
    #[must_use]
    pub fn new(op: Op, offset: u64, len: u64, data: Data) -> Self {
        Self { op, offset, len, data }
    }

    /// A request that makes all safe that was written.
    #[must_use]
    pub fn flush() -> Self {
        Self::new(Op::Flush, 0, 0, Data::None)
    }

    /// Whether a saved request is one that a controller makes.
    ///
    /// # Errors
    /// [`RestoreError::Invalid`] when it is not.
    pub fn check(&self) -> Result<(), RestoreError> {
        let moves = !matches!(self.op, Op::WriteZeroes { .. } | Op::Discard { .. } | Op::Flush);
        let fits = match &self.data {
            Data::None => true,
            Data::Bytes(bytes) => bytes.len() as u64 == self.len,
            Data::Guest(segments) => segments.len() <= SEGMENTS && guest_len(segments) == self.len,
            Data::Ranges(ranges) => ranges.len() <= RANGES,
        };
        if fits && (!moves || self.len <= MOST) {
            return Ok(());
        }
        Err(RestoreError::Invalid("a request to a medium that cannot be".to_owned()))
    }
}

/// Bytes of all segments.
#[must_use]
pub fn guest_len(segments: &[Segment]) -> u64 {
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

/// Whether a worker has a request: no part of what is saved and compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Submitted(pub bool);

impl PartialEq for Submitted {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Submitted {}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The medium could not.
    Medium(MediumError),
    /// There is no guest memory where data were to come from or go to.
    Memory,
    /// Guest memory holds something else.
    Differs,
}

impl From<MediumError> for Fault {
    fn from(error: MediumError) -> Self {
        Self::Medium(error)
    }
}

/// What became of a request: the bytes that were read, if they go nowhere else.
pub type Outcome = Result<Vec<u8>, Fault>;

struct Answer {
    epoch: u64,
    token: u64,
    outcome: Outcome,
}

/// A controller's way to the workers.
pub struct Channel {
    // Wiring
    executor: Arc<dyn Executor>,
    memory: Arc<GuestMemory>,
    waker: Waker,
    sender: Sender<Answer>,
    answers: Receiver<Answer>,
    // Derived
    /// Raised when what was asked for is abandoned.
    epoch: Arc<AtomicU64>,
    in_flight: usize,
    held: bool,
}

impl Channel {
    /// A way to `executor`, whose answers ask for a poll by `waker`.
    #[must_use]
    pub fn new(executor: Arc<dyn Executor>, memory: Arc<GuestMemory>, waker: Waker) -> Self {
        let (sender, answers) = mpsc::channel();
        Self {
            executor,
            memory,
            waker,
            sender,
            answers,
            epoch: Arc::default(),
            in_flight: 0,
            held: false,
        }
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Nothing new may be asked for: the machine is being held.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.held
    }

    /// Holds new requests back, or lets them go again.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Requests that a worker has.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Hands a request over. Its answer bears `token`.
    pub fn submit(&mut self, medium: &Arc<dyn Medium>, token: u64, request: Request) {
        let task = Task {
            medium: Arc::clone(medium),
            memory: Arc::clone(&self.memory),
            current: Arc::clone(&self.epoch),
            epoch: self.epoch.load(Ordering::Acquire),
            request,
        };
        let (sender, waker) = (self.sender.clone(), Arc::clone(&self.waker));
        self.in_flight += 1;
        self.executor.run(Box::new(move || {
            let epoch = task.epoch;
            let outcome = task.perform();
            // A controller that is gone waits for nothing.
            let _ = sender.send(Answer { epoch, token, outcome });
            waker();
        }));
    }

    /// The next answer that somebody waits for.
    pub fn answer(&mut self) -> Option<(u64, Outcome)> {
        while let Ok(answer) = self.answers.try_recv() {
            self.in_flight = self.in_flight.saturating_sub(1);
            if answer.epoch == self.epoch.load(Ordering::Acquire) {
                return Some((answer.token, answer.outcome));
            }
        }
        None
    }

    /// Nobody waits any more for what was asked for.
    pub fn abandon(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
    }
}

/// A request on a worker's thread.
struct Task {
    medium: Arc<dyn Medium>,
    memory: Arc<GuestMemory>,
    current: Arc<AtomicU64>,
    epoch: u64,
    request: Request,
}

impl Task {
    fn perform(self) -> Outcome {
        let Request { op, offset, len, data } = &self.request;
        let medium = &*self.medium;
        let writes = matches!(op, Op::Write { .. } | Op::WriteZeroes { .. } | Op::Discard { .. });
        if writes && medium.is_read_only() {
            return Err(MediumError::Protected.into());
        }
        match (op, data) {
            (Op::Flush, _) => medium.flush()?,
            (Op::WriteZeroes { through }, _) => {
                medium.write_zeroes(*offset, *len)?;
                self.settle(*through)?;
            }
            (Op::Discard { through }, Data::Ranges(ranges)) => {
                for (offset, len) in ranges {
                    medium.discard(*offset, *len)?;
                }
                self.settle(*through)?;
            }
            (Op::Discard { through }, _) => {
                medium.discard(*offset, *len)?;
                self.settle(*through)?;
            }
            (Op::Read, Data::Guest(segments)) => self.pieces(segments, |at, piece, guest| {
                medium.read_at(at, piece)?;
                self.write_guest(guest, piece)
            })?,
            (Op::Compare, Data::Guest(segments)) => self.pieces(segments, |at, piece, guest| {
                medium.read_at(at, piece)?;
                let mut theirs = vec![0; piece.len()];
                self.read_guest(guest, &mut theirs)?;
                if *piece == *theirs { Ok(()) } else { Err(Fault::Differs) }
            })?,
            (Op::Write { through }, Data::Guest(segments)) => {
                self.pieces(segments, |at, piece, guest| {
                    self.read_guest(guest, piece)?;
                    Ok(medium.write_at(at, piece)?)
                })?;
                self.settle(*through)?;
            }
            (Op::Write { through }, Data::Bytes(bytes)) => {
                medium.write_at(*offset, bytes)?;
                self.settle(*through)?;
            }
            (Op::Verify, _) => self.pieces(&[], |at, piece, _| Ok(medium.read_at(at, piece)?))?,
            (Op::Read, _) => {
                let mut bytes = vec![0; bytes::index((*len).min(MOST))];
                medium.read_at(*offset, &mut bytes)?;
                return Ok(bytes);
            }
            (Op::Write { .. } | Op::Compare, _) => {}
        }
        Ok(Vec::new())
    }

    fn settle(&self, through: bool) -> Result<(), Fault> {
        if through {
            self.medium.flush()?;
        }
        Ok(())
    }

    /// Calls `f` with the place on the medium, a buffer, and the guest memory of each piece.
    fn pieces(
        &self,
        segments: &[Segment],
        mut f: impl FnMut(u64, &mut [u8], &[Segment]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let Request { offset, len, .. } = self.request;
        let mut buffer = vec![0; bytes::index(len.min(PIECE))];
        let mut rest = Cursor { segments, used: 0 };
        let mut done = 0;
        while done < len && self.wanted() {
            let piece = (len - done).min(PIECE);
            let guest = rest.take(piece);
            let buffer = buffer.get_mut(..bytes::index(piece)).unwrap_or_default();
            let at = offset.checked_add(done).ok_or(MediumError::Beyond)?;
            f(at, buffer, &guest)?;
            done += piece;
        }
        Ok(())
    }

    /// Whether the controller still waits.
    fn wanted(&self) -> bool {
        self.current.load(Ordering::Acquire) == self.epoch
    }

    fn write_guest(&self, guest: &[Segment], mut piece: &[u8]) -> Result<(), Fault> {
        for segment in guest.iter().take_while(|_| self.wanted()) {
            let len = bytes::index(segment.len.into()).min(piece.len());
            let (now, later) = piece.split_at_checked(len).unwrap_or_default();
            self.memory.write(segment.gpa, now).map_err(|_| Fault::Memory)?;
            piece = later;
        }
        Ok(())
    }

    fn read_guest(&self, guest: &[Segment], mut piece: &mut [u8]) -> Result<(), Fault> {
        for segment in guest {
            let len = bytes::index(segment.len.into()).min(piece.len());
            let (now, later) = piece.split_at_mut_checked(len).unwrap_or_default();
            self.memory.read(segment.gpa, now).map_err(|_| Fault::Memory)?;
            piece = later;
        }
        Ok(())
    }
}

/// Where in a list of segments the next piece begins.
struct Cursor<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that are used up.
    used: u32,
}

impl Cursor<'_> {
    fn take(&mut self, mut len: u64) -> Vec<Segment> {
        let mut out = Vec::new();
        while let Some((first, later)) = self.segments.split_first()
            && len > 0
        {
            let left = first.len.saturating_sub(self.used);
            let now = u64::from(left).min(len);
            let gpa = first.gpa.wrapping_add(self.used.into());
            let now32 = bytes::low32(now);
            if now > 0 {
                out.push(Segment { gpa, len: now32 });
            }
            len -= now;
            self.used = self.used.saturating_add(now32);
            if now == u64::from(left) {
                (self.segments, self.used) = (later, 0);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use guest_memory::Kind;
    use guest_memory::MemoryRegion;

    use super::*;
    use crate::medium::MemoryMedium;

    pub(super) fn memory(len: u64) -> Arc<GuestMemory> {
        let mut memory = GuestMemory::new();
        memory
            .add(0, Arc::new(MemoryRegion::new("ram", Kind::Ram, len).unwrap()))
            .unwrap();
        Arc::new(memory)
    }

    /// Keeps jobs until they are let go.
    #[derive(Default)]
    struct Later(Mutex<Vec<Job>>);

    impl Executor for Later {
        fn run(&self, job: Job) {
            self.0.lock().unwrap().push(job);
        }
    }

    fn channel(executor: Arc<dyn Executor>) -> (Channel, Arc<GuestMemory>) {
        let memory = memory(4 << 20);
        (Channel::new(executor, memory.clone(), Arc::new(|| ())), memory)
    }

    #[test]
    fn data_cross_pieces_and_segments_in_order() {
        let bytes: Vec<u8> = (0..700_000u32).map(|n| (n % 251) as u8).collect();
        let medium: Arc<dyn Medium> = Arc::new(MemoryMedium::new(bytes.clone()));
        let (mut channel, memory) = channel(Arc::new(Inline));
        let segments = vec![
            Segment { gpa: 0x1000, len: 3 },
            Segment {
                gpa: 0x8000,
                len: 300_000,
            },
            Segment {
                gpa: 0x20_0000,
                len: 299_997,
            },
        ];
        let request = Request::new(Op::Read, 512, 600_000, Data::Guest(segments.clone()));
        channel.submit(&medium, 7, request);
        assert_eq!(channel.answer(), Some((7, Ok(Vec::new()))));
        let mut got = Vec::new();
        for segment in &segments {
            let mut part = vec![0; segment.len as usize];
            memory.read(segment.gpa, &mut part).unwrap();
            got.extend(part);
        }
        assert_eq!(got, bytes[512..600_512]);
        let back = Request::new(Op::Write { through: true }, 0, 600_000, Data::Guest(segments.clone()));
        channel.submit(&medium, 8, back);
        assert_eq!(channel.answer(), Some((8, Ok(Vec::new()))));
        let same = Request::new(Op::Compare, 0, 600_000, Data::Guest(segments));
        channel.submit(&medium, 9, same.clone());
        assert_eq!(channel.answer(), Some((9, Ok(Vec::new()))));
        medium.write_at(599_999, &[got[599_999] ^ 1]).unwrap();
        channel.submit(&medium, 10, same);
        assert_eq!(channel.answer(), Some((10, Err(Fault::Differs))));
    }

    #[test]
    fn abandoned_request_writes_no_guest_memory_and_its_answer_is_dropped() {
        let medium: Arc<dyn Medium> = Arc::new(MemoryMedium::new(vec![7; 4096]));
        let later = Arc::new(Later::default());
        let (mut channel, memory) = channel(later.clone());
        let segments = vec![Segment { gpa: 0, len: 512 }];
        channel.submit(&medium, 1, Request::new(Op::Read, 0, 512, Data::Guest(segments)));
        channel.abandon();
        assert_eq!(channel.in_flight(), 1);
        for job in later.0.lock().unwrap().drain(..) {
            job();
        }
        assert_eq!(channel.answer(), None);
        assert_eq!(channel.in_flight(), 0);
        assert_eq!(memory.read_obj::<u8>(0).unwrap(), 0);
    }

    #[test]
    fn missing_memory_and_bad_places_are_faults() {
        let medium: Arc<dyn Medium> = Arc::new(MemoryMedium::new(vec![7; 4096]));
        let (mut channel, _) = channel(Arc::new(Inline));
        let segments = vec![Segment { gpa: 1 << 40, len: 512 }];
        channel.submit(&medium, 1, Request::new(Op::Read, 0, 512, Data::Guest(segments)));
        assert_eq!(channel.answer(), Some((1, Err(Fault::Memory))));
        channel.submit(&medium, 2, Request::new(Op::Verify, 4096, 512, Data::None));
        let beyond = Err(Fault::Medium(MediumError::Beyond));
        assert_eq!(channel.answer(), Some((2, beyond)));
    }
}
