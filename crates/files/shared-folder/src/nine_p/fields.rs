//! The fields that messages are made of: little-endian numbers, and strings with their lengths in front.

use std::ffi::CString;

use rustix::io::Errno;

/// Bytes of a message's length, type and tag.
pub(super) const HEADER: usize = 7;

/// Types of messages: requests have even numbers, and their answers the next.
#[rustfmt::skip]
pub(super) mod kind {
    pub(crate) const LERROR: u8 = 7;
    pub(crate) const STATFS: u8 = 8;
    pub(crate) const LOPEN: u8 = 12;
    pub(crate) const LCREATE: u8 = 14;
    pub(crate) const SYMLINK: u8 = 16;
    pub(crate) const MKNOD: u8 = 18;
    pub(crate) const READLINK: u8 = 22;
    pub(crate) const GETATTR: u8 = 24;
    pub(crate) const SETATTR: u8 = 26;
    pub(crate) const XATTRWALK: u8 = 30;
    pub(crate) const XATTRCREATE: u8 = 32;
    pub(crate) const READDIR: u8 = 40;
    pub(crate) const FSYNC: u8 = 50;
    pub(crate) const LOCK: u8 = 52;
    pub(crate) const GETLOCK: u8 = 54;
    pub(crate) const LINK: u8 = 70;
    pub(crate) const MKDIR: u8 = 72;
    pub(crate) const RENAMEAT: u8 = 74;
    pub(crate) const UNLINKAT: u8 = 76;
    pub(crate) const VERSION: u8 = 100;
    pub(crate) const ATTACH: u8 = 104;
    pub(crate) const FLUSH: u8 = 108;
    pub(crate) const WALK: u8 = 110;
    pub(crate) const READ: u8 = 116;
    pub(crate) const WRITE: u8 = 118;
    pub(crate) const CLUNK: u8 = 120;
    pub(crate) const REMOVE: u8 = 122;
}

/// Fields of a request that have not been taken.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    /// The fields in `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (now, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*now)
    }

    /// The next number of one byte.
    ///
    /// # Errors
    /// EINVAL: the message ends before it.
    pub fn u8(&mut self) -> Result<u8, Errno> {
        self.take().map(u8::from_le_bytes)
    }

    /// The next number of two bytes.
    ///
    /// # Errors
    /// As [`Self::u8`].
    pub fn u16(&mut self) -> Result<u16, Errno> {
        self.take().map(u16::from_le_bytes)
    }

    /// The next number of four bytes.
    ///
    /// # Errors
    /// As [`Self::u8`].
    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_le_bytes)
    }

    /// The next number of eight bytes.
    ///
    /// # Errors
    /// As [`Self::u8`].
    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_le_bytes)
    }

    /// The next string.
    ///
    /// # Errors
    /// As [`Self::u8`]; it has a zero byte in it.
    pub fn string(&mut self) -> Result<CString, Errno> {
        let len = usize::from(self.u16()?);
        let (now, rest) = self.0.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.0 = rest;
        CString::new(now).map_err(|_| Errno::INVAL)
    }
}

/// An answer that is being written: fields behind the place of the header.
pub(super) struct Answer(Vec<u8>);

impl Answer {
    pub(super) fn new() -> Self {
        Self(vec![0; HEADER])
    }

    pub(super) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(super) fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// As many bytes of a string as its length can tell.
    pub(super) fn string(self, string: &[u8]) -> Self {
        let string = string.get(..usize::from(u16::MAX)).unwrap_or(string);
        let len = u16::try_from(string.len()).unwrap_or(u16::MAX);
        self.u16(len).bytes(string)
    }

    /// With its header, and `more` bytes that are written behind it.
    pub(super) fn finish(mut self, kind: u8, tag: u16, more: usize) -> Vec<u8> {
        let len = u32::try_from(self.0.len().saturating_add(more)).unwrap_or(u32::MAX);
        let [a, b, c, d] = len.to_le_bytes();
        let [e, f] = tag.to_le_bytes();
        if let Some(header) = self.0.first_chunk_mut::<HEADER>() {
            *header = [a, b, c, d, kind, e, f];
        }
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_end_where_the_message_does() {
        let mut fields = Fields::new(&[1, 2, 0, 2, 0, b'a', b'b', 9]);
        assert_eq!(fields.u8(), Ok(1));
        assert_eq!(fields.u16(), Ok(2));
        assert_eq!(fields.string().unwrap().as_c_str(), c"ab");
        assert_eq!(fields.u16(), Err(Errno::INVAL));
        assert_eq!(fields.u8(), Ok(9));
        assert_eq!(Fields::new(&[3, 0, b'a', 0, b'b']).string(), Err(Errno::INVAL));
        assert_eq!(Fields::new(&[3, 0, b'a']).string(), Err(Errno::INVAL));
    }

    #[test]
    fn answers_have_their_length_and_tag_in_front() {
        let answer = Answer::new().u32(5).string(b"xy").finish(25, 0x102, 3);
        assert_eq!(answer, [18, 0, 0, 0, 25, 2, 1, 5, 0, 0, 0, 2, 0, b'x', b'y']);
    }
}
