//! Reading directories.

use std::ffi::CStr;
use std::mem::MaybeUninit;

use rustix::fs::FileType;
use rustix::fs::RawDir;
use rustix::fs::SeekFrom;

use super::Opened;
use super::Result;

/// Bytes of the buffer at least: an entry with the longest name.
const LEAST: usize = 512;
/// The same at most.
const MOST: usize = 64 << 10;

/// One entry of a directory.
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a CStr,
    /// The file's number on its device.
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
    /// Where the entry after this one is, as the host's file system counts.
    pub(crate) next: u64,
}

impl Opened {
    /// Calls `f` with each entry from `offset` on, which is 0 or what an entry said is next, until it returns false.
    /// `room` is how many bytes the caller has for them.
    ///
    /// One caller at a time: the descriptor has one position.
    pub(crate) fn entries(
        &self,
        offset: u64,
        room: usize,
        mut f: impl FnMut(&Entry<'_>) -> Result<bool>,
    ) -> Result<()> {
        rustix::fs::seek(self, SeekFrom::Start(offset))?;
        let mut buffer = vec![MaybeUninit::uninit(); room.clamp(LEAST, MOST)];
        let mut entries = RawDir::new(self, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let entry = Entry {
                name: entry.file_name(),
                ino: entry.ino(),
                kind: entry.file_type(),
                next: entry.next_entry_cookie(),
            };
            if !f(&entry)? {
                break;
            }
        }
        Ok(())
    }
}
