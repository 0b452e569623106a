//! Extended attributes.
//!
//! Access control lists are not passed on: the guest's kernel checks permissions by modes, and a list that it does not look at
//! would promise what nobody keeps.

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::Folder;
use super::Place;
use super::Result;

/// Bytes of a value, and of a list of names, at most (xattr(7)).
pub(crate) const MOST: usize = 64 << 10;
/// Bytes of a name at most.
const NAME: usize = 255;
/// What access control lists begin with.
const LISTS: &[u8] = b"system.posix_acl_";

fn name(name: &CStr) -> Result<&CStr> {
    let bytes = name.to_bytes();
    match bytes {
        b"" => Err(Errno::INVAL),
        _ if bytes.len() > NAME => Err(Errno::RANGE),
        _ if bytes.starts_with(LISTS) => Err(Errno::OPNOTSUPP),
        _ => Ok(name),
    }
}

impl Folder {
    pub(crate) fn set_xattr(&self, place: &Place, wanted: &CStr, value: &[u8], flags: u32) -> Result<()> {
        self.writable()?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::setxattr(place.descriptor()?.path(), name(wanted)?, value, flags)
    }

    pub(crate) fn remove_xattr(&self, place: &Place, wanted: &CStr) -> Result<()> {
        self.writable()?;
        rustix::fs::removexattr(place.descriptor()?.path(), name(wanted)?)
    }

    pub(crate) fn xattr(&self, place: &Place, wanted: &CStr) -> Result<Vec<u8>> {
        let mut value = Vec::with_capacity(MOST);
        let path = place.descriptor()?.path();
        rustix::fs::getxattr(path, name(wanted)?, rustix::buffer::spare_capacity(&mut value))?;
        Ok(value)
    }

    /// Names, each with a zero byte behind it.
    pub(crate) fn xattrs(&self, place: &Place) -> Result<Vec<u8>> {
        let mut names = Vec::with_capacity(MOST);
        let path = place.descriptor()?.path();
        rustix::fs::listxattr(path, rustix::buffer::spare_capacity(&mut names))?;
        let shown = names.split_inclusive(|byte| *byte == 0);
        Ok(shown
            .filter(|name| !name.starts_with(LISTS))
            .flatten()
            .copied()
            .collect())
    }
}
