//! Block device: a disk in sectors of 512 bytes, by any number of queues up to 16.
//!
//! Reads and writes of any layout, flushes, write-back or write-through as the driver wants, discards and zeroes, the
//! serial number. Workers carry requests out. There is no secure erase, no lifetime, no zones.
//!
//! Spec: virtio 1.2 §5.2.

use std::sync::Arc;

use device_model::Inspect;
use device_model::Node;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::VmTime;
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;
use storage::Channel;
use storage::Data;
use storage::Executor;
use storage::Fault;
use storage::Medium;
use storage::MediumError;
use storage::Op;
use storage::Request;
use storage::Submitted;
use storage::Waker;

use crate::Chain;
use crate::RingError;
use crate::Rings;
use crate::VirtioDevice;
use crate::id;

/// Queues at most.
pub const QUEUES: u16 = 16;
/// Characters of the serial number.
pub const SERIAL: usize = 20;
/// Entries of each queue.
const ENTRIES: u16 = 256;
/// Requests that workers have at most.
const BUSY: usize = 256;
const SECTOR: u64 = 512;
/// Segments of data in one request: a chain of a full queue, without header and status.
const SEGMENTS: u32 = ENTRIES as u32 - 2;
/// Sectors of one discard or of one request for zeroes, and ranges of one discard.
const RANGE_SECTORS: u32 = 0x3f_ffff;
const RANGES: u32 = 256;
/// Sectors of a page of the host, in which space is given back.
const PAGE_SECTORS: u32 = 8;

/// Features (§5.2.3).
mod blk_feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(super) const CONFIG_WCE: u64 = 1 << 11;
    pub(super) const MQ: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

/// Types of requests (§5.2.6).
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// How requests end.
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// Where the cache mode is in configuration space.
const WRITEBACK: usize = 32;
/// A range may be given back rather than written.
const UNMAP: u32 = 1;

/// What a disk is called, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// Serial number, at most 20 characters.
    pub serial: String,
    /// Queues, 1 to 16: one for each processor.
    pub queues: u16,
}

/// A request that waits for the medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    token: u64,
    queue: u16,
    head: u16,
    /// Where the status byte goes.
    status_at: u64,
    request: Request,
    /// A worker has it. After a restore none has.
    #[serde(skip)]
    submitted: Submitted,
}

impl Pending {
    /// Bytes that the device writes if all goes well: data, and the status.
    fn written(&self) -> u32 {
        let data = if self.request.op == Op::Read {
            self.request.len
        } else {
            0
        };
        u32::try_from(data).unwrap_or(u32::MAX).saturating_add(1)
    }
}

/// What became of a request at once.
enum Done {
    /// It ended with this status, and so many bytes of data were written.
    Now(u8, u32),
    Ask(Request),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counters {
    reads: u64,
    writes: u64,
    read_bytes: u64,
    written_bytes: u64,
    flushes: u64,
    errors: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    writeback: bool,
    pending: Vec<Pending>,
    next_token: u64,
    counters: Counters,
}

impl State {
    fn new() -> Self {
        Self {
            writeback: true,
            pending: Vec::new(),
            next_token: 0,
            counters: Counters::default(),
        }
    }
}

/// The device.
pub struct Blk {
    // Wiring
    work: Channel,
    medium: Arc<dyn Medium>,
    // Configuration
    config: BlkConfig,
    // State
    state: State,
}

impl Blk {
    /// A disk on `medium`.
    #[must_use]
    pub fn new(
        medium: Arc<dyn Medium>,
        config: BlkConfig,
        memory: &Arc<GuestMemory>,
        executor: &Arc<dyn Executor>,
        waker: &Waker,
    ) -> Self {
        let queues = config.queues.clamp(1, QUEUES);
        Self {
            work: Channel::new(Arc::clone(executor), Arc::clone(memory), Arc::clone(waker)),
            medium,
            config: BlkConfig { queues, ..config },
            state: State::new(),
        }
    }

    fn sectors(&self) -> u64 {
        self.medium.size() / SECTOR
    }

    /// Takes answers and requests, until nothing is left that can be done now.
    fn go(&mut self, rings: &mut Rings<'_>) {
        loop {
            self.resubmit();
            self.collect(rings);
            if self.work.is_held() || !self.fetch(rings) {
                self.collect(rings);
                return;
            }
        }
    }

    /// Requests that no worker has are handed over.
    fn resubmit(&mut self) {
        if self.work.is_held() {
            return;
        }
        for pending in self.state.pending.iter_mut().filter(|pending| !pending.submitted.0) {
            pending.submitted.0 = true;
            self.work.submit(&self.medium, pending.token, pending.request.clone());
        }
    }

    fn collect(&mut self, rings: &mut Rings<'_>) {
        while let Some((token, outcome)) = self.work.answer() {
            let at = self.state.pending.iter().position(|pending| pending.token == token);
            let Some(at) = at else { continue };
            let pending = self.state.pending.swap_remove(at);
            self.count(&pending, outcome.is_ok());
            match outcome {
                Ok(_) => finish(rings, &pending, OK, pending.written()),
                // It was there when the request came; a driver that takes memory away has lost the data.
                Err(Fault::Memory) => finish(rings, &pending, IO_ERROR, 1),
                Err(Fault::Medium(MediumError::Beyond | MediumError::Failed | MediumError::Protected))
                | Err(Fault::Differs) => finish(rings, &pending, IO_ERROR, 1),
            }
        }
    }

    fn count(&mut self, pending: &Pending, well: bool) {
        let counters = &mut self.state.counters;
        let (events, bytes) = match pending.request.op {
            _ if !well => (&mut counters.errors, None),
            Op::Read => (&mut counters.reads, Some(&mut counters.read_bytes)),
            Op::Write { .. } => (&mut counters.writes, Some(&mut counters.written_bytes)),
            Op::Flush => (&mut counters.flushes, None),
            _ => return,
        };
        *events = events.saturating_add(1);
        if let Some(bytes) = bytes {
            *bytes = bytes.saturating_add(pending.request.len);
        }
    }

    /// Takes a request from each queue that has one. False when none has, or workers have enough.
    fn fetch(&mut self, rings: &mut Rings<'_>) -> bool {
        let mut fetched = false;
        for queue in 0..self.config.queues {
            if self.state.pending.len() >= BUSY {
                return false;
            }
            let Some(chain) = rings.pop(queue.into()) else {
                continue;
            };
            fetched = true;
            if let Err(error) = self.take(queue, chain, rings) {
                rings.fail(error);
                return false;
            }
        }
        fetched
    }

    fn take(&mut self, queue: u16, mut chain: Chain, rings: &mut Rings<'_>) -> Result<(), RingError> {
        let [kind, _, low, high]: [u32; 4] = chain.take_obj(rings.memory())?;
        let status_at = chain.take_last().ok_or(RingError::Shape)?;
        let sector = u64::from(low) | u64::from(high) << 32;
        let head = chain.head;
        let request = match self.execute(kind, sector, &mut chain, rings)? {
            Done::Now(status, written) => {
                rings.memory().write_obj(status_at, &status)?;
                rings.push(queue.into(), head, written.saturating_add(1));
                return Ok(());
            }
            Done::Ask(request) => request,
        };
        let token = self.state.next_token;
        self.state.next_token = token.wrapping_add(1);
        self.state.pending.push(Pending {
            token,
            queue,
            head,
            status_at,
            request,
            submitted: Submitted(false),
        });
        self.resubmit();
        Ok(())
    }

    fn execute(&self, kind: u32, sector: u64, chain: &mut Chain, rings: &mut Rings<'_>) -> Result<Done, RingError> {
        let read_only = self.medium.is_read_only();
        Ok(match kind {
            kind::IN => self.transfer(Op::Read, sector, std::mem::take(&mut chain.writable)),
            kind::OUT if read_only => Done::Now(IO_ERROR, 0),
            kind::OUT => {
                let op = Op::Write {
                    through: self.is_through(rings.features()),
                };
                self.transfer(op, sector, std::mem::take(&mut chain.readable))
            }
            kind::FLUSH => Done::Ask(Request::flush()),
            kind::GET_ID => {
                let mut serial = self.config.serial.clone().into_bytes();
                serial.resize(SERIAL, 0);
                let put = chain.put(rings.memory(), &serial)?;
                Done::Now(OK, u32::try_from(put).unwrap_or(0))
            }
            kind::DISCARD | kind::WRITE_ZEROES if read_only => Done::Now(IO_ERROR, 0),
            kind::DISCARD => self.discard(chain, rings)?,
            kind::WRITE_ZEROES => self.write_zeroes(chain, rings)?,
            _ => Done::Now(UNSUPPORTED, 0),
        })
    }

    /// Whether writes are to be safe when they end (§5.2.6.2).
    fn is_through(&self, features: u64) -> bool {
        if features & blk_feature::CONFIG_WCE != 0 {
            !self.state.writeback
        } else {
            features & blk_feature::FLUSH == 0
        }
    }

    fn transfer(&self, op: Op, sector: u64, segments: Vec<storage::Segment>) -> Done {
        let len = storage::guest_len(&segments);
        let inside = sector
            .checked_add(len / SECTOR)
            .is_some_and(|end| end <= self.sectors());
        if !inside || !len.is_multiple_of(SECTOR) || len > storage::MOST {
            return Done::Now(IO_ERROR, 0);
        }
        if len == 0 {
            return Done::Now(OK, 0);
        }
        Done::Ask(Request::new(op, sector * SECTOR, len, Data::Guest(segments)))
    }

    fn discard(&self, chain: &mut Chain, rings: &Rings<'_>) -> Result<Done, RingError> {
        let count = chain.readable_len() / 16;
        if !chain.readable_len().is_multiple_of(16) || count == 0 || count > RANGES.into() {
            return Ok(Done::Now(IO_ERROR, 0));
        }
        let mut ranges = Vec::new();
        for _ in 0..count {
            let (range, flags) = match self.range(chain, rings.memory())? {
                Ok(range) => range,
                Err(status) => return Ok(Done::Now(status, 0)),
            };
            if flags != 0 {
                return Ok(Done::Now(UNSUPPORTED, 0));
            }
            ranges.push(range);
        }
        let through = self.is_through(rings.features());
        Ok(Done::Ask(Request::new(
            Op::Discard { through },
            0,
            0,
            Data::Ranges(ranges),
        )))
    }

    fn write_zeroes(&self, chain: &mut Chain, rings: &Rings<'_>) -> Result<Done, RingError> {
        if chain.readable_len() != 16 {
            return Ok(Done::Now(IO_ERROR, 0));
        }
        let ((offset, len), flags) = match self.range(chain, rings.memory())? {
            Ok(range) => range,
            Err(status) => return Ok(Done::Now(status, 0)),
        };
        // A discarded range reads as zeros on every medium of ours.
        let through = self.is_through(rings.features());
        let op = match flags {
            0 => Op::WriteZeroes { through },
            UNMAP => Op::Discard { through },
            _ => return Ok(Done::Now(UNSUPPORTED, 0)),
        };
        Ok(Done::Ask(Request::new(op, offset, len, Data::None)))
    }

    /// The next range of a discard in bytes, with its flags; or the status that says why it is none.
    #[expect(
        clippy::type_complexity,
        reason = "a ring that breaks the device, or a request that fails"
    )]
    fn range(&self, chain: &mut Chain, memory: &GuestMemory) -> Result<Result<((u64, u64), u32), u8>, RingError> {
        let [low, high, sectors, flags]: [u32; 4] = chain.take_obj(memory)?;
        let first = u64::from(low) | u64::from(high) << 32;
        let end = first.checked_add(sectors.into());
        if sectors > RANGE_SECTORS || end.is_none_or(|end| end > self.sectors()) {
            return Ok(Err(IO_ERROR));
        }
        Ok(Ok(((first * SECTOR, u64::from(sectors) * SECTOR), flags)))
    }
}

fn finish(rings: &mut Rings<'_>, pending: &Pending, status: u8, written: u32) {
    let put = rings.memory().write_obj(pending.status_at, &status);
    if rings.check(put.map_err(Into::into)).is_some() {
        rings.push(pending.queue.into(), pending.head, written);
    }
}

impl VirtioDevice for Blk {
    fn id(&self) -> u16 {
        id::BLOCK
    }

    fn features(&self) -> u64 {
        use blk_feature as f;
        let always = f::SEG_MAX | f::BLK_SIZE | f::FLUSH | f::TOPOLOGY | f::CONFIG_WCE;
        let writable = if self.medium.is_read_only() {
            f::RO
        } else {
            f::DISCARD | f::WRITE_ZEROES
        };
        let several = if self.config.queues > 1 { f::MQ } else { 0 };
        always | writable | several
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; self.config.queues.into()]
    }

    fn config(&self) -> Vec<u8> {
        let block = u32::try_from(SECTOR).unwrap_or(0);
        [
            self.sectors().to_le_bytes().as_slice(),
            &0u32.to_le_bytes(),
            &SEGMENTS.to_le_bytes(),
            // No geometry.
            &[0; 4],
            &block.to_le_bytes(),
            // Blocks of the host are of 2 to the power of 3 sectors; the least and the best size of requests.
            &[3, 0, 8, 0, 0, 0, 0, 0],
            &[self.state.writeback.into(), 0],
            &self.config.queues.to_le_bytes(),
            &RANGE_SECTORS.to_le_bytes(),
            &RANGES.to_le_bytes(),
            &PAGE_SECTORS.to_le_bytes(),
            &RANGE_SECTORS.to_le_bytes(),
            &1u32.to_le_bytes(),
            // Zeroes may be made by giving space back.
            &[1, 0, 0, 0],
        ]
        .concat()
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let at = WRITEBACK.checked_sub(offset);
        if let Some(byte) = at.and_then(|at| bytes.get(at)) {
            self.state.writeback = byte & 1 != 0;
        }
    }

    fn activate(&mut self, _features: u64) {}

    fn poll(&mut self, _now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        self.work.hold(false);
        self.go(rings);
        None
    }

    fn quiesce(&mut self, rings: Option<&mut Rings<'_>>) -> bool {
        self.work.hold(true);
        match rings {
            Some(rings) => self.go(rings),
            // Nobody waits for these.
            None => while self.work.answer().is_some() {},
        }
        self.work.in_flight() == 0
    }

    fn reset(&mut self) {
        self.work.abandon();
        self.state = State::new();
    }
}

impl Snapshot for Blk {
    type State = BlkV1;

    fn save(&self) -> BlkV1 {
        let Self {
            work: _,
            medium: _,
            config: _,
            state,
        } = self;
        BlkV1(state.clone())
    }

    fn restore(&mut self, saved: BlkV1) -> Result<(), RestoreError> {
        let BlkV1(state) = saved;
        let known = |pending: &Pending| pending.queue < self.config.queues;
        if state.pending.len() > BUSY || !state.pending.iter().all(known) {
            return Err(RestoreError::Invalid("requests to a disk that cannot be".to_owned()));
        }
        for pending in &state.pending {
            pending.request.check()?;
        }
        self.work.abandon();
        self.state = state;
        Ok(())
    }
}

impl Inspect for Blk {
    fn inspect(&self) -> Node {
        let State {
            writeback,
            pending,
            next_token: _,
            counters,
        } = &self.state;
        Node::tree()
            .with("sectors", self.sectors())
            .with("read_only", self.medium.is_read_only())
            .with("writeback", *writeback)
            .with("pending", pending.len() as u64)
            .with("reads", counters.reads)
            .with("writes", counters.writes)
            .with("read_bytes", counters.read_bytes)
            .with("written_bytes", counters.written_bytes)
            .with("flushes", counters.flushes)
            .with("errors", counters.errors)
    }
}

/// Saved state of [`Blk`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlkV1(State);

impl Schema for BlkV1 {
    const NAME: &'static str = "virtio_blk";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
