//! What is in files: reading, writing, space.

use device_model::Message;
use rustix::fs::FallocateFlags;
use rustix::fs::OFlags;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::io::ReadWriteFlags;

use super::MAX_WRITE;
use super::Session;
use crate::credentials::without_set_id;
use crate::folder::Result;
use crate::fuse::reply::Answer;
use crate::fuse::request::Operation;
use crate::fuse::wire;
use crate::fuse::wire::OUT_HEADER;
use crate::transfer;

/// Bytes that one request copies at most: it may be asked for again.
const COPY: u64 = 64 << 20;
/// What LSEEK looks for.
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Session {
    pub(in super::super) fn read(&self, asked: &wire::ReadIn, message: &mut dyn Message) -> Result<Answer> {
        let handle = self.handle(asked.fh)?;
        let file = handle.file()?;
        let room = message.room().checked_sub(OUT_HEADER).ok_or(Errno::INVAL)?;
        let size = usize::try_from(asked.size.min(MAX_WRITE)).unwrap_or(0).min(room);
        let read = transfer::from_file(file, asked.offset, size, (message, OUT_HEADER))?;
        Ok(Answer::Written(read))
    }

    /// Writes what follows in the message: `data` bytes.
    pub(in super::super) fn write(
        &self,
        asked: &wire::WriteIn,
        data: usize,
        message: &mut dyn Message,
    ) -> Result<Answer> {
        let handle = self.handle(asked.fh)?;
        let file = handle.file()?;
        let size = usize::try_from(asked.size).map_err(|_| Errno::INVAL)?;
        if asked.size > MAX_WRITE || size > data {
            return Err(Errno::INVAL);
        }
        self.folder.writable()?;
        // Who appends means the end of the file as it is on the host. What comes out of the guest's cache has its place.
        let cached = asked.write_flags & wire::WRITE_CACHE != 0;
        let append = OFlags::from_bits_retain(asked.flags).contains(OFlags::APPEND) && !cached;
        let flags = if append {
            ReadWriteFlags::APPEND
        } else {
            ReadWriteFlags::empty()
        };
        let mut write = || transfer::to_file(file, asked.offset, size, flags, message);
        let written = if asked.write_flags & wire::WRITE_KILL_SUIDGID != 0 {
            without_set_id(write)?
        } else {
            write()?
        };
        Ok(Answer::of(&wire::WriteOut {
            size: u32::try_from(written).map_err(|_| Errno::INVAL)?,
            padding: 0,
        }))
    }

    /// Requests about data that move none.
    pub(super) fn data(&self, operation: &Operation<'_>) -> Result<Answer> {
        match *operation {
            // Whoever closes a file has written all of it already.
            Operation::Flush(flush) => self.handle(flush.fh).map(|_| Answer::done()),
            Operation::Fsync(fsync) => {
                let handle = self.handle(fsync.fh)?;
                let file = handle.opened()?;
                if fsync.fsync_flags & wire::FSYNC_FDATASYNC != 0 {
                    rustix::fs::fdatasync(file)?;
                } else {
                    rustix::fs::fsync(file)?;
                }
                Ok(Answer::done())
            }
            Operation::Fallocate(asked) => {
                self.folder.writable()?;
                let handle = self.handle(asked.fh)?;
                let mode = FallocateFlags::from_bits(asked.mode).ok_or(Errno::OPNOTSUPP)?;
                rustix::fs::fallocate(handle.file()?, mode, asked.offset, asked.length)?;
                Ok(Answer::done())
            }
            Operation::Lseek(asked) => {
                let handle = self.handle(asked.fh)?;
                let position = match asked.whence {
                    SEEK_DATA => SeekFrom::Data(asked.offset),
                    SEEK_HOLE => SeekFrom::Hole(asked.offset),
                    // The guest's kernel knows the other positions.
                    _ => return Err(Errno::INVAL),
                };
                let offset = rustix::fs::seek(handle.file()?, position)?;
                Ok(Answer::of(&wire::LseekOut { offset }))
            }
            Operation::CopyFileRange(asked) => self.copy(&asked),
            _ => Err(Errno::NOSYS),
        }
    }

    fn copy(&self, asked: &wire::CopyFileRangeIn) -> Result<Answer> {
        self.folder.writable()?;
        let (from, to) = (self.handle(asked.fh_in)?, self.handle(asked.fh_out)?);
        if asked.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (mut at, mut into) = (asked.off_in, asked.off_out);
        let len = usize::try_from(asked.len.min(COPY)).map_err(|_| Errno::INVAL)?;
        let copied = rustix::fs::copy_file_range(from.file()?, Some(&mut at), to.file()?, Some(&mut into), len)?;
        Ok(Answer::of(&wire::WriteOut {
            size: u32::try_from(copied).map_err(|_| Errno::INVAL)?,
            padding: 0,
        }))
    }
}
