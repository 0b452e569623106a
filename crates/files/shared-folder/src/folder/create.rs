//! Making files: what is made belongs to whom the guest makes it for.

use std::ffi::CStr;

use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Folder;
use super::Found;
use super::Opened;
use super::Place;
use super::Result;
use super::name;
use super::open_flags;
use crate::credentials::Caller;
use crate::credentials::acting_for;
use crate::descriptor::Descriptor;

/// Permissions with the bits above them.
const PERMISSIONS: u32 = 0o7777;

fn mode(mode: u32) -> Mode {
    Mode::from_bits_retain(mode & PERMISSIONS)
}

impl Folder {
    pub(crate) fn mkdir(&self, parent: &Place, wanted: &CStr, bits: u32, caller: Caller) -> Result<Found> {
        self.writable()?;
        let (directory, new) = (parent.directory()?, name(wanted)?);
        acting_for(caller, || rustix::fs::mkdirat(directory, new, mode(bits)))?;
        self.lookup(parent, wanted)
    }

    /// Makes a file of any type but a directory or a link. `device` has the host's form.
    pub(crate) fn mknod(&self, parent: &Place, wanted: &CStr, bits: u32, device: u64, caller: Caller) -> Result<Found> {
        self.writable()?;
        let kind = match FileType::from_raw_mode(bits) {
            FileType::Unknown if bits & !PERMISSIONS == 0 => FileType::RegularFile,
            FileType::Directory | FileType::Symlink | FileType::Unknown => return Err(Errno::INVAL),
            kind => kind,
        };
        let (directory, new) = (parent.directory()?, name(wanted)?);
        acting_for(caller, || rustix::fs::mknodat(directory, new, kind, mode(bits), device))?;
        self.lookup(parent, wanted)
    }

    pub(crate) fn symlink(&self, parent: &Place, wanted: &CStr, target: &CStr, caller: Caller) -> Result<Found> {
        self.writable()?;
        let (directory, new) = (parent.directory()?, name(wanted)?);
        acting_for(caller, || rustix::fs::symlinkat(target, directory, new))?;
        self.lookup(parent, wanted)
    }

    /// Opens a file, which is made if it is not there.
    pub(crate) fn create(
        &self,
        parent: &Place,
        wanted: &CStr,
        flags: OFlags,
        bits: u32,
        caller: Caller,
    ) -> Result<(Found, Opened)> {
        self.writable()?;
        let (directory, new) = (parent.directory()?, name(wanted)?);
        let kept = open_flags(flags);
        let make = (kept - OFlags::TRUNC) | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match acting_for(caller, || rustix::fs::openat(directory, new, make, mode(bits))) {
            Ok(fd) => {
                let descriptor = Descriptor::new(fd)?;
                Ok((
                    of_opened(&descriptor)?,
                    Opened {
                        descriptor,
                        flags: kept,
                    },
                ))
            }
            // The guest has not seen yet that it is there.
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                let found = self.lookup(parent, wanted)?;
                let opened = self.reopen(&found.place, flags)?;
                Ok((found, opened))
            }
            Err(error) => Err(error),
        }
    }

    /// Opens a new file that has no name.
    pub(crate) fn create_unnamed(
        &self,
        parent: &Place,
        flags: OFlags,
        bits: u32,
        caller: Caller,
    ) -> Result<(Found, Opened)> {
        self.writable()?;
        parent.directory()?;
        let path = parent.descriptor()?.path();
        // The guest may give it a name, unless it said otherwise.
        let kept = open_flags(flags) - OFlags::TRUNC;
        let make = kept | flags & OFlags::EXCL | OFlags::TMPFILE | OFlags::CLOEXEC;
        let fd = acting_for(caller, || rustix::fs::openat(CWD, path, make, mode(bits)))?;
        let descriptor = Descriptor::new(fd)?;
        Ok((
            of_opened(&descriptor)?,
            Opened {
                descriptor,
                flags: kept,
            },
        ))
    }
}

/// The place of a file that is open.
fn of_opened(descriptor: &Descriptor) -> Result<Found> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let fd = rustix::fs::open(descriptor.path(), flags, Mode::empty())?;
    let (place, stat) = Place::new(fd)?;
    Ok(Found { place, stat })
}
