//! Answers, and files in the protocol's terms.

use std::ffi::CStr;

use device_model::Message;
use device_model::MessageError;
use rustix::fs::FileType;
use rustix::fs::Stat;
use zerocopy::IntoBytes;

use super::wire;
use super::wire::Attr;
use super::wire::OUT_HEADER;
use crate::device;

/// What a request comes to.
pub(super) enum Answer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many bytes, which have been written into the message already.
    Written(usize),
    /// None at all.
    Silence,
}

impl Answer {
    /// Nothing but that it went well.
    pub(super) fn done() -> Self {
        Self::Bytes(Vec::new())
    }

    pub(super) fn of<T: IntoBytes + zerocopy::Immutable>(value: &T) -> Self {
        Self::Bytes(value.as_bytes().to_vec())
    }
}

/// Writes the header; returns the answer's length.
pub(super) fn finish(message: &mut dyn Message, unique: u64, error: i32, len: usize) -> Result<usize, MessageError> {
    let whole = OUT_HEADER.saturating_add(len);
    let header = wire::OutHeader {
        len: u32::try_from(whole).map_err(|_| MessageError)?,
        error: error.wrapping_neg(),
        unique,
    };
    message.put(0, header.as_bytes())?;
    Ok(whole)
}

/// The low half, in which the protocol has a number that the kernel has a word for.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// What a file is like.
pub(super) fn attr(stat: &Stat) -> Attr {
    let seconds = |seconds: i64| u64::from_ne_bytes(seconds.to_ne_bytes());
    Attr {
        ino: stat.st_ino,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        atime: seconds(stat.st_atime),
        mtime: seconds(stat.st_mtime),
        ctime: seconds(stat.st_ctime),
        atimensec: low(stat.st_atime_nsec),
        mtimensec: low(stat.st_mtime_nsec),
        ctimensec: low(stat.st_ctime_nsec),
        mode: stat.st_mode,
        nlink: low(stat.st_nlink),
        uid: stat.st_uid,
        gid: stat.st_gid,
        rdev: device::encode(stat.st_rdev),
        blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
        flags: 0,
    }
}

/// Appends an entry of a directory to `out`, behind what is known of the file if that is wanted. False, and nothing appended, if
/// it does not fit into `room` bytes.
pub(super) fn add_dirent(
    out: &mut Vec<u8>,
    room: usize,
    known: Option<&wire::EntryOut>,
    (ino, next, kind): (u64, u64, FileType),
    name: &CStr,
) -> bool {
    if out.len() + dirent_len(known.is_some(), name) > room {
        return false;
    }
    if let Some(known) = known {
        out.extend(known.as_bytes());
    }
    let dirent = wire::Dirent {
        ino,
        off: next,
        namelen: u32::try_from(name.count_bytes()).unwrap_or(0),
        kind: kind.as_raw_mode() >> 12,
    };
    out.extend(dirent.as_bytes());
    out.extend(name.to_bytes());
    out.resize(out.len().next_multiple_of(8), 0);
    true
}

/// Bytes of an entry of a directory.
pub(super) fn dirent_len(plus: bool, name: &CStr) -> usize {
    let known = if plus { size_of::<wire::EntryOut>() } else { 0 };
    known + (size_of::<wire::Dirent>() + name.count_bytes()).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_fit() {
        let mut out = Vec::new();
        let what = (5, 9, FileType::RegularFile);
        assert!(!add_dirent(&mut out, 31, None, what, c"abc"));
        assert!(out.is_empty());
        assert!(add_dirent(&mut out, 32, None, what, c"abc"));
        assert_eq!(out.len(), 32);
        assert_eq!(out[20..24], 8u32.to_le_bytes());
        assert_eq!(out[24..], *b"abc\0\0\0\0\0");
        assert!(add_dirent(
            &mut out,
            1000,
            Some(&wire::EntryOut::default()),
            what,
            c"abcdefgh"
        ));
        assert_eq!(out.len(), 32 + 128 + 32);
    }
}
