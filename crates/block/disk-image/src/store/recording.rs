//! A file that remembers what was done to it, so that a test can cut the power at any moment.
//!
//! The model of the medium: whatever was written before a completed sync is there. Of what came later, any sector of 512
//! bytes may be there or not, each for itself; where a sector was written more than once, any of its versions.

use std::io;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use super::MemoryStore;
use super::Store;

const SECTOR: usize = 512;

#[derive(Clone, Debug)]
enum Operation {
    Write(u64, Vec<u8>),
    SetLen(u64),
    Zero(u64, u64),
    Sync,
}

/// A file in memory and the journal of its changes.
#[derive(Debug)]
pub struct Recording {
    start: Vec<u8>,
    now: MemoryStore,
    journal: Mutex<Vec<Operation>>,
    limit: usize,
}

impl Recording {
    /// A file with these bytes, all of them on the medium.
    #[must_use]
    pub fn new(bytes: &[u8], limit: usize) -> Self {
        Self {
            start: bytes.to_vec(),
            now: MemoryStore::with(bytes, limit),
            journal: Mutex::default(),
            limit,
        }
    }

    /// How many operations there were until now.
    #[must_use]
    pub fn position(&self) -> usize {
        self.journal().len()
    }

    /// What is on the medium when the power is cut after `count` operations. `keep` is asked for each sector that was
    /// not yet synced, whether it is there.
    #[must_use]
    pub fn cut(&self, count: usize, mut keep: impl FnMut() -> bool) -> MemoryStore {
        let journal = self.journal();
        let store = MemoryStore::with(&self.start, self.limit);
        let done = journal.get(..count).unwrap_or(&journal);
        let synced = done
            .iter()
            .rposition(|operation| matches!(operation, Operation::Sync))
            .unwrap_or(0);
        for (index, operation) in done.iter().enumerate() {
            let certain = index < synced;
            // A store in memory within its limit does not fail: it held the same before.
            let _ = match operation {
                Operation::Write(offset, bytes) if certain => store.write_at(*offset, bytes),
                Operation::Write(offset, bytes) => {
                    let first = SECTOR - (*offset % SECTOR as u64) as usize;
                    let (head, tail) = bytes.split_at(first.min(bytes.len()));
                    let mut at = *offset;
                    for part in std::iter::once(head).chain(tail.chunks(SECTOR)) {
                        if keep() {
                            let _ = store.write_at(at, part);
                        }
                        at += part.len() as u64;
                    }
                    Ok(())
                }
                Operation::SetLen(len) if certain || keep() => store.set_len(*len),
                Operation::Zero(offset, len) if certain || keep() => store.zero(*offset, *len, true),
                _ => Ok(()),
            };
        }
        store
    }

    fn journal(&self) -> MutexGuard<'_, Vec<Operation>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for Recording {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.now.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.journal().push(Operation::Write(offset, buf.to_vec()));
        self.now.write_at(offset, buf)
    }

    fn length(&self) -> io::Result<u64> {
        self.now.length()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.journal().push(Operation::SetLen(len));
        self.now.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.journal().push(Operation::Sync);
        Ok(())
    }

    fn zero(&self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        self.journal().push(Operation::Zero(offset, len));
        self.now.zero(offset, len, keep)
    }

    fn data_run(&self, offset: u64) -> io::Result<(bool, u64)> {
        self.now.data_run(offset)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.now.allocated()
    }
}
