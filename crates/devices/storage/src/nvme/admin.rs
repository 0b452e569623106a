//! Admin commands: queues, identify data, logs, features, abort.
//!
//! Spec: NVMe base 1.4 §5.
use super::ENTRIES;
use super::Nvme;
use super::QUEUES;
use super::VECTORS;
use super::queue::Command;
use super::queue::CompletionQueue;
use super::queue::Done;
use super::queue::SubmissionQueue;
use super::queue::status;
use crate::bytes;

/// Features that are kept, by identifier.
pub(super) const FEATURES: usize = 16;
/// Asynchronous event requests at a time.
pub(super) const EVENTS: usize = 4;

/// Identifiers of features.
const TEMPERATURE: u8 = 0x04;
const WRITE_CACHE: u8 = 0x06;
const QUEUE_COUNT: u8 = 0x07;
/// Those that there are: arbitration to asynchronous events, without LBA ranges.
const KNOWN: [u8; 10] = [0x01, 0x02, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09, 0x0A, 0x0B];
/// Physically contiguous; interrupts are enabled.
const CONTIGUOUS: u32 = 1 << 0;
const INTERRUPTS: u32 = 1 << 1;
/// All namespaces.
const ALL: u32 = u32::MAX;

/// Values after a reset: a threshold of 343 K, the write cache in use.
pub(super) fn default_features() -> Vec<u32> {
    let mut features = vec![0; FEATURES];
    for (id, value) in [(TEMPERATURE, 343), (WRITE_CACHE, 1), (QUEUE_COUNT, queue_count())] {
        if let Some(feature) = features.get_mut(usize::from(id)) {
            *feature = value;
        }
    }
    features
}

/// I/O queues of each kind, less one.
fn queue_count() -> u32 {
    let count = bytes::low32(QUEUES as u64 - 2);
    count | count << 16
}

impl Nvme {
    pub(super) fn admin(&mut self, command: &Command) -> Done {
        let id = bytes::index((command.dword(10) & 0xFFFF).into());
        match command.opcode() {
            0x00 => Done::status(self.delete_submission(id)),
            0x01 => Done::status(self.create_submission(command, id)),
            0x02 => Done::status(self.log_page(command)),
            0x04 => Done::status(self.delete_completion(id)),
            0x05 => Done::status(self.create_completion(command, id)),
            0x06 => Done::status(self.identify(command)),
            // Commands are not aborted: those that a worker has come to their end.
            0x08 => Done::Now {
                status: status::OK,
                result: 1,
            },
            0x09 => self.set_feature(command),
            0x0A => self.get_feature(command),
            0x0C if self.state.events.len() >= EVENTS => Done::status(status::TOO_MANY_EVENTS),
            0x0C => {
                self.state.events.push(command.id());
                Done::Never
            }
            _ => Done::status(status::OPCODE),
        }
    }

    fn create_completion(&mut self, command: &Command, id: usize) -> u16 {
        let (size, flags) = ((command.dword(10) >> 16) + 1, command.dword(11));
        let vector = bytes::low16((flags >> 16).into());
        let place = match self.state.completions.get_mut(id) {
            Some(place @ None) if id != 0 => place,
            _ => return status::QUEUE_ID,
        };
        if !(2..=ENTRIES).contains(&size) {
            return status::QUEUE_SIZE;
        }
        if vector >= VECTORS {
            return status::VECTOR;
        }
        let base = command.qword(6);
        if flags & CONTIGUOUS == 0 || !base.is_multiple_of(4096) {
            return status::FIELD;
        }
        *place = Some(CompletionQueue::new(
            base,
            size,
            (flags & INTERRUPTS != 0).then_some(vector),
        ));
        status::OK
    }

    fn create_submission(&mut self, command: &Command, id: usize) -> u16 {
        let (size, flags) = ((command.dword(10) >> 16) + 1, command.dword(11));
        let completions = bytes::low16((flags >> 16).into());
        let there = self.state.completions.get(usize::from(completions));
        let usable = completions != 0 && there.is_some_and(Option::is_some);
        let place = match self.state.submissions.get_mut(id) {
            Some(place @ None) if id != 0 => place,
            _ => return status::QUEUE_ID,
        };
        if !usable {
            return status::CQ_INVALID;
        }
        if !(2..=ENTRIES).contains(&size) {
            return status::QUEUE_SIZE;
        }
        let base = command.qword(6);
        if flags & CONTIGUOUS == 0 || !base.is_multiple_of(4096) {
            return status::FIELD;
        }
        *place = Some(SubmissionQueue::new(base, size, completions));
        status::OK
    }

    fn delete_submission(&mut self, id: usize) -> u16 {
        match self.state.submissions.get_mut(id).filter(|_| id != 0) {
            Some(place @ Some(_)) => {
                *place = None;
                status::OK
            }
            _ => status::QUEUE_ID,
        }
    }

    fn delete_completion(&mut self, id: usize) -> u16 {
        let mut users = self.state.submissions.iter().flatten();
        let used = users.any(|queue| usize::from(queue.completions) == id);
        match self.state.completions.get_mut(id).filter(|_| id != 0) {
            Some(Some(_)) if used => status::QUEUE_DELETION,
            Some(place @ Some(_)) => {
                *place = None;
                status::OK
            }
            _ => status::QUEUE_ID,
        }
    }

    fn identify(&self, command: &Command) -> u16 {
        let (what, namespace) = (bytes::low8(command.dword(10).into()), command.namespace());
        match self.identify_page(what, namespace) {
            Ok(page) => self.give(command, &page),
            Err(status) => status,
        }
    }

    fn log_page(&self, command: &Command) -> u16 {
        let (ten, eleven) = (command.dword(10), command.dword(11));
        let dwords = (u64::from(ten >> 16) | u64::from(eleven & 0xFFFF) << 16) + 1;
        let page = match bytes::low8(ten.into()) {
            // No errors; firmware in slot 1; no asynchronous changes.
            0x01 => vec![0; 64],
            0x02 if matches!(command.namespace(), 0 | ALL) || self.medium(command.namespace()).is_some() => {
                self.smart_log()
            }
            0x02 => return status::NAMESPACE,
            0x03 => self.firmware_log(),
            _ => return status::LOG_PAGE,
        };
        let offset = command.qword(12);
        if offset >= page.len() as u64 || !offset.is_multiple_of(4) {
            return status::FIELD;
        }
        let from = bytes::index(offset);
        let len = bytes::index(dwords.saturating_mul(4)).min(4096);
        // What is asked for beyond the log's end is zeros.
        let data: Vec<u8> = (from..from.saturating_add(len))
            .map(|at| bytes::at(&page, at))
            .collect();
        self.give(command, &data)
    }

    fn feature(&self, id: u8) -> Option<u32> {
        let known = KNOWN.contains(&id);
        self.state.features.get(usize::from(id)).copied().filter(|_| known)
    }

    fn get_feature(&self, command: &Command) -> Done {
        let ten = command.dword(10);
        let id = bytes::low8(ten.into());
        let value = match ten >> 8 & 7 {
            0 => self.feature(id),
            // After a reset, and saved: the same, since nothing is saved.
            1 | 2 => self
                .feature(id)
                .and_then(|_| default_features().get(usize::from(id)).copied()),
            // What can be done: it is kept for the controller, and can be changed.
            3 => self.feature(id).map(|_| 1 << 2),
            _ => None,
        };
        match value {
            Some(result) => Done::Now {
                status: status::OK,
                result,
            },
            None => Done::status(status::FIELD),
        }
    }

    fn set_feature(&mut self, command: &Command) -> Done {
        let (ten, value) = (command.dword(10), command.dword(11));
        let id = bytes::low8(ten.into());
        // Nothing can be saved.
        if ten >> 31 != 0 || self.feature(id).is_none() {
            return Done::status(status::FIELD);
        }
        let value = match id {
            QUEUE_COUNT => {
                let (subs, comps) = (value & 0xFFFF, value >> 16);
                if subs == 0xFFFF || comps == 0xFFFF {
                    return Done::status(status::FIELD);
                }
                let most = queue_count() & 0xFFFF;
                subs.min(most) | comps.min(most) << 16
            }
            WRITE_CACHE => value & 1,
            _ => value,
        };
        if let Some(feature) = self.state.features.get_mut(usize::from(id)) {
            *feature = value;
        }
        Done::Now {
            status: status::OK,
            result: if id == QUEUE_COUNT { value } else { 0 },
        }
    }
}
