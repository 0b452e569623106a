//! Data between messages and files. Guest memory is not to be had by reference, so they go through a buffer of the thread's.

use std::cell::RefCell;
use std::io::IoSlice;

use device_model::Message;
use rustix::io::Errno;
use rustix::io::ReadWriteFlags;

use crate::folder::Opened;
use crate::folder::Result;

/// Bytes that are carried at a time.
const PIECE: usize = 256 << 10;

thread_local! {
    static PIECES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_pieces<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    PIECES.with_borrow_mut(|pieces| {
        pieces.resize(PIECE, 0);
        f(pieces)
    })
}

/// Where the byte `done` bytes behind `offset` is.
fn place(offset: u64, done: usize) -> Result<u64> {
    offset.checked_add(done as u64).ok_or(Errno::FBIG)
}

/// Carries `size` bytes of the file, or what there is, into the message, from `at` of the answer on. Returns how many.
pub(crate) fn from_file(
    file: &Opened,
    offset: u64,
    size: usize,
    (message, at): (&mut dyn Message, usize),
) -> Result<usize> {
    with_pieces(|pieces| {
        let mut done = 0;
        while done < size {
            let len = pieces.len().min(size - done);
            let piece = pieces.get_mut(..len).ok_or(Errno::INVAL)?;
            let read = match rustix::io::pread(file, &mut *piece, place(offset, done)?) {
                // What was read is told; the rest fails when it is asked for.
                Err(error) if done == 0 => return Err(error),
                Err(_) | Ok(0) => break,
                Ok(read) => read,
            };
            let data = piece.get(..read).unwrap_or_default();
            message.put(at + done, data).map_err(|_| Errno::FAULT)?;
            done += read;
        }
        Ok(done)
    })
}

/// Carries the next `size` bytes of the message to the file. Returns how many are there.
pub(crate) fn to_file(
    file: &Opened,
    offset: u64,
    size: usize,
    flags: ReadWriteFlags,
    message: &mut dyn Message,
) -> Result<usize> {
    with_pieces(|pieces| {
        let mut done = 0;
        while done < size {
            let len = pieces.len().min(size - done);
            let piece = pieces.get_mut(..len).ok_or(Errno::INVAL)?;
            message.take(piece).map_err(|_| Errno::FAULT)?;
            let written = write_all(file, piece, place(offset, done)?, flags);
            match written {
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
                Ok(written) => done += written,
            }
            if written != Ok(len) {
                break;
            }
        }
        Ok(done)
    })
}

/// Writes a piece; returns how much of it is in the file.
fn write_all(file: &Opened, piece: &[u8], offset: u64, flags: ReadWriteFlags) -> Result<usize> {
    let mut done = 0;
    while let Some(rest) = piece.get(done..).filter(|rest| !rest.is_empty()) {
        let at = place(offset, done)?;
        let written = if flags.is_empty() {
            rustix::io::pwrite(file, rest, at)
        } else {
            rustix::io::pwritev2(file, &[IoSlice::new(rest)], at, flags)
        };
        match written {
            Err(error) if done == 0 => return Err(error),
            Err(_) | Ok(0) => break,
            Ok(written) => done += written,
        }
    }
    Ok(done)
}
