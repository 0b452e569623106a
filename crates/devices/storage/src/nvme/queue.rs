//! Queues in guest memory: doorbells, commands that are fetched, completions that are posted.
//!
//! Spec: NVMe base 1.4 §3.1.24-25 (doorbells), §4.1-4.2 (queues, submission entries), §4.6 (completion entries).
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use super::BUSY;
use super::NAMESPACES;
use super::Nvme;
use super::SHST_BUSY;
use super::SHST_DONE;
use crate::bytes;
use crate::medium::MediumError;
use crate::work::Fault;
use crate::work::Outcome;
use crate::work::Request;
use crate::work::Submitted;

/// Bytes of a submission and of a completion entry.
const COMMAND: u64 = 64;
const COMPLETION: u64 = 16;

/// Status codes, with their types in bits 10-8 (§4.6.1). Bit 14 says that a retry does not help.
pub(super) mod status {
    pub(crate) const OK: u16 = 0;
    pub(crate) const OPCODE: u16 = 0x4001;
    pub(crate) const FIELD: u16 = 0x4002;
    pub(crate) const TRANSFER: u16 = 0x0004;
    pub(crate) const NAMESPACE: u16 = 0x400B;
    pub(crate) const PRP_OFFSET: u16 = 0x4013;
    pub(crate) const BEYOND: u16 = 0x4080;
    pub(crate) const CQ_INVALID: u16 = 0x4100;
    pub(crate) const QUEUE_ID: u16 = 0x4101;
    pub(crate) const QUEUE_SIZE: u16 = 0x4102;
    pub(crate) const TOO_MANY_EVENTS: u16 = 0x4105;
    pub(crate) const VECTOR: u16 = 0x4108;
    pub(crate) const LOG_PAGE: u16 = 0x4109;
    pub(crate) const QUEUE_DELETION: u16 = 0x410C;
    pub(crate) const WRITE_FAULT: u16 = 0x0280;
    pub(crate) const READ_ERROR: u16 = 0x0281;
    pub(crate) const COMPARE: u16 = 0x4285;
    pub(crate) const READ_ONLY: u16 = 0x4182;
}

/// A submission queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SubmissionQueue {
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
    pub(super) completions: u16,
}

impl SubmissionQueue {
    pub(super) fn new(base: u64, entries: u32, completions: u16) -> Self {
        Self {
            base,
            entries,
            head: 0,
            tail: 0,
            completions,
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        (2..=4096).contains(&self.entries)
            && self.head < self.entries
            && self.tail < self.entries
            && usize::from(self.completions) < super::QUEUES
    }
}

/// A completion queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CompletionQueue {
    base: u64,
    entries: u32,
    head: u32,
    tail: u32,
    phase: bool,
    /// The vector that it interrupts by, if it does.
    vector: Option<u16>,
}

impl CompletionQueue {
    pub(super) fn new(base: u64, entries: u32, vector: Option<u16>) -> Self {
        Self {
            base,
            entries,
            head: 0,
            tail: 0,
            phase: true,
            vector,
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        (2..=4096).contains(&self.entries) && self.head < self.entries && self.tail < self.entries
    }

    /// There is something in it that the host has not taken, and it may tell.
    pub(super) fn interrupts(&self) -> bool {
        self.vector.is_some() && self.head != self.tail
    }

    pub(super) fn vector(&self) -> u16 {
        self.vector.unwrap_or(0)
    }

    fn is_full(&self) -> bool {
        (self.tail + 1) % self.entries == self.head
    }
}

/// A command that waits for a medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) token: u64,
    /// The queue that it came from; none: the controller's own.
    pub(super) queue: Option<u16>,
    pub(super) id: u16,
    pub(super) namespace: u32,
    pub(super) request: Request,
    /// A worker has it. After a restore none has.
    #[serde(skip)]
    submitted: Submitted,
}

impl Pending {
    pub(super) fn check(&self) -> Result<(), RestoreError> {
        self.request.check()
    }
}

/// A command's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Completion {
    queue: u16,
    id: u16,
    status: u16,
    result: u32,
}

/// A submission entry.
#[derive(Clone, Copy)]
pub(super) struct Command {
    pub(super) queue: u16,
    pub(super) bytes: [u8; 64],
}

impl Command {
    pub(super) fn opcode(&self) -> u8 {
        bytes::at(&self.bytes, 0)
    }

    pub(super) fn id(&self) -> u16 {
        bytes::le16(&self.bytes, 2)
    }

    pub(super) fn namespace(&self) -> u32 {
        bytes::le32(&self.bytes, 4)
    }

    /// Double word `number` of the command.
    pub(super) fn dword(&self, number: usize) -> u32 {
        bytes::le32(&self.bytes, number * 4)
    }

    pub(super) fn qword(&self, number: usize) -> u64 {
        bytes::le64(&self.bytes, number * 4)
    }

    /// It describes its data by PRPs, and is not half of a fused pair.
    pub(super) fn is_plain(&self) -> bool {
        bytes::at(&self.bytes, 1) & 0xC3 == 0
    }
}

/// What executing a command comes to.
pub(super) enum Done {
    Now {
        status: u16,
        result: u32,
    },
    /// The medium is asked.
    Ask {
        namespace: u32,
        request: Request,
    },
    /// It ends with the controller.
    Never,
}

impl Done {
    pub(super) fn status(status: u16) -> Self {
        Self::Now { status, result: 0 }
    }
}

impl Nvme {
    /// A doorbell was written: tails of submission queues and heads of completion queues take turns.
    pub(super) fn ring(&mut self, offset: u64, value: u32) {
        let (index, value) = (bytes::index(offset / 8), value & 0xFFFF);
        if offset.is_multiple_of(8) {
            if let Some(Some(queue)) = self.state.submissions.get_mut(index)
                && value < queue.entries
            {
                queue.tail = value;
            }
        } else if let Some(Some(queue)) = self.state.completions.get_mut(index)
            && value < queue.entries
        {
            queue.head = value;
        }
    }

    /// Takes answers, posts completions, fetches commands, until nothing is left that can be done now.
    pub(super) fn go(&mut self) {
        loop {
            self.resubmit();
            self.collect();
            self.post_all();
            if !self.is_ready() || self.work.is_held() || !self.fetch_round() {
                self.collect();
                self.post_all();
                return;
            }
        }
    }

    fn collect(&mut self) {
        while let Some((token, outcome)) = self.work.answer() {
            let at = self.state.pending.iter().position(|pending| pending.token == token);
            if let Some(at) = at {
                let pending = self.state.pending.swap_remove(at);
                self.answered(&pending, &outcome);
            }
        }
    }

    /// Requests that were restored are handed over anew.
    fn resubmit(&mut self) {
        if self.work.is_held() {
            return;
        }
        for at in 0..self.state.pending.len() {
            let Some(pending) = self.state.pending.get_mut(at).filter(|pending| !pending.submitted.0) else {
                continue;
            };
            pending.submitted.0 = true;
            let (token, namespace, request) = (pending.token, pending.namespace, pending.request.clone());
            if let Some(medium) = self.medium(namespace).cloned() {
                self.work.submit(&medium, token, request);
            }
        }
        // Without a namespace nothing answers.
        let known = 1..=self.namespaces.len() as u64;
        self.state
            .pending
            .retain(|pending| known.contains(&pending.namespace.into()));
    }

    fn answered(&mut self, pending: &Pending, outcome: &Outcome) {
        let Some(queue) = pending.queue else {
            return self.flushed();
        };
        let writes = matches!(pending.request.op, crate::work::Op::Write { .. });
        let status = match outcome {
            Ok(_) => status::OK,
            Err(Fault::Memory) => status::TRANSFER,
            Err(Fault::Differs) => status::COMPARE,
            Err(Fault::Medium(MediumError::Beyond)) => status::BEYOND,
            Err(Fault::Medium(MediumError::Protected)) => status::READ_ONLY,
            Err(Fault::Medium(MediumError::Failed)) if writes => status::WRITE_FAULT,
            Err(Fault::Medium(MediumError::Failed)) => status::READ_ERROR,
        };
        self.count(pending, status);
        self.complete(queue, pending.id, status, 0);
    }

    fn count(&mut self, pending: &Pending, status: u16) {
        let counters = &mut self.state.counters;
        let len = pending.request.len;
        match pending.request.op {
            _ if status != status::OK => {}
            crate::work::Op::Read | crate::work::Op::Compare => {
                counters.reads = counters.reads.saturating_add(1);
                counters.read_bytes = counters.read_bytes.saturating_add(len);
            }
            crate::work::Op::Write { .. } => {
                counters.writes = counters.writes.saturating_add(1);
                counters.written_bytes = counters.written_bytes.saturating_add(len);
            }
            _ => {}
        }
    }

    fn complete(&mut self, queue: u16, id: u16, status: u16, result: u32) {
        self.state.ready.push(Completion {
            queue,
            id,
            status,
            result,
        });
    }

    /// Posts what there is room for, in order of each queue.
    fn post_all(&mut self) {
        let ready = std::mem::take(&mut self.state.ready);
        for completion in ready {
            if !self.post(&completion) {
                self.state.ready.push(completion);
            }
        }
    }

    /// False when the queue is full. A queue that is gone takes everything.
    fn post(&mut self, completion: &Completion) -> bool {
        let sq = self
            .state
            .submissions
            .get(usize::from(completion.queue))
            .copied()
            .flatten();
        let Some(sq) = sq else {
            return true;
        };
        let Some(Some(cq)) = self.state.completions.get_mut(usize::from(sq.completions)) else {
            return true;
        };
        if cq.is_full() {
            return false;
        }
        let status = u32::from(completion.status) << 17 | u32::from(cq.phase) << 16;
        let entry = [
            completion.result,
            0,
            sq.head | u32::from(completion.queue) << 16,
            status | u32::from(completion.id),
        ];
        let at = cq.base.wrapping_add(u64::from(cq.tail) * COMPLETION);
        cq.tail = (cq.tail + 1) % cq.entries;
        cq.phase ^= cq.tail == 0;
        let vector = cq.vector;
        // A queue that is no memory loses its entries.
        let _ = self.work.memory().write_obj(at, &entry);
        if let Some(vector) = vector
            && self.interrupter.by_message(&self.header)
        {
            self.interrupter.fire(&mut self.header, vector);
        }
        true
    }

    /// Fetches a command from each queue that has one. False when none has, or there is no room for more.
    fn fetch_round(&mut self) -> bool {
        let mut fetched = false;
        for queue in 0..super::QUEUES {
            if self.state.pending.len() + self.state.ready.len() >= BUSY {
                return false;
            }
            let number = bytes::low16(queue as u64);
            let Some(Some(sq)) = self.state.submissions.get(queue).copied() else {
                continue;
            };
            if sq.head == sq.tail {
                continue;
            }
            let at = sq.base.wrapping_add(u64::from(sq.head) * COMMAND);
            let bytes = self.work.memory().read_obj(at).unwrap_or([0; 64]);
            let command = Command { queue: number, bytes };
            if queue == 0 && self.must_wait(&command) {
                continue;
            }
            if let Some(Some(sq)) = self.state.submissions.get_mut(queue) {
                sq.head = (sq.head + 1) % sq.entries;
            }
            fetched = true;
            self.execute(&command);
        }
        fetched
    }

    /// A queue is deleted once nothing of it is pending.
    fn must_wait(&self, command: &Command) -> bool {
        let queue = bytes::low16(command.dword(10).into());
        let of_queue = |pending: &Pending| pending.queue == Some(queue);
        command.opcode() == 0 && queue != 0 && self.state.pending.iter().any(of_queue)
    }

    fn execute(&mut self, command: &Command) {
        let done = match (command.is_plain(), command.queue) {
            (false, _) => Done::status(status::FIELD),
            (true, 0) => self.admin(command),
            (true, _) => self.io(command),
        };
        match done {
            Done::Now { status, result } => self.complete(command.queue, command.id(), status, result),
            Done::Ask { namespace, request } => self.ask(Some(command.queue), command.id(), namespace, request),
            Done::Never => {}
        }
    }

    fn ask(&mut self, queue: Option<u16>, id: u16, namespace: u32, request: Request) {
        let token = self.state.next_token;
        self.state.next_token = token.wrapping_add(1);
        self.state.pending.push(Pending {
            token,
            queue,
            id,
            namespace,
            request,
            submitted: Submitted(false),
        });
        self.resubmit();
    }

    /// The host is about to turn the power off: everything is flushed.
    pub(super) fn shut_down(&mut self) {
        self.state.csts = self.state.csts & !SHST_DONE | SHST_BUSY;
        for namespace in (1..).take(self.namespaces.len().min(NAMESPACES)) {
            self.ask(None, 0, namespace, Request::flush());
        }
        self.flushed();
    }

    /// Shut down once all namespaces are flushed.
    fn flushed(&mut self) {
        if self.state.csts & SHST_BUSY != 0 && self.state.pending.iter().all(|pending| pending.queue.is_some()) {
            self.state.csts = self.state.csts & !SHST_BUSY | SHST_DONE;
        }
    }
}
