//! What a file is like: mode, owner, size, times.

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Gid;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::Timespec;
use rustix::fs::Timestamps;
use rustix::fs::UTIME_NOW;
use rustix::fs::UTIME_OMIT;
use rustix::fs::Uid;
use rustix::io::Errno;

use super::Folder;
use super::Opened;
use super::Place;
use super::Result;
use crate::credentials::without_set_id;

/// What a time becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Time {
    #[default]
    Same,
    Now,
    /// Seconds since 1970, and nanoseconds.
    At(i64, u32),
}

impl Time {
    fn spec(self) -> Result<Timespec> {
        let nanoseconds = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        Ok(match self {
            Self::Same => nanoseconds(0, UTIME_OMIT),
            Self::Now => nanoseconds(0, UTIME_NOW),
            Self::At(seconds, part) if part < 1_000_000_000 => nanoseconds(seconds, part.into()),
            Self::At(..) => return Err(Errno::INVAL),
        })
    }
}

/// What is to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) size: Option<u64>,
    pub(crate) accessed: Time,
    pub(crate) modified: Time,
    /// A change of the size takes set-user-ID and set-group-ID bits away.
    pub(crate) kill_set_id: bool,
}

impl Folder {
    /// Changes a file, by the descriptor that the guest has it open by if there is one.
    pub(crate) fn change(&self, place: &Place, opened: Option<&Opened>, changes: &Changes) -> Result<()> {
        self.writable()?;
        let path = place.descriptor()?.path();
        if let Some(bits) = changes.mode {
            if place.kind == FileType::Symlink {
                return Err(Errno::OPNOTSUPP);
            }
            rustix::fs::chmodat(CWD, &path, Mode::from_bits_retain(bits & 0o7777), AtFlags::empty())?;
        }
        if changes.uid.is_some() || changes.gid.is_some() {
            let none = |id: &u32| *id != u32::MAX;
            let owner = changes.uid.filter(none).map(Uid::from_raw);
            let group = changes.gid.filter(none).map(Gid::from_raw);
            rustix::fs::chownat(place.fd()?, c"", owner, group, AtFlags::EMPTY_PATH)?;
        }
        if let Some(size) = changes.size {
            let resize = || resize(place, opened, size);
            if changes.kill_set_id {
                without_set_id(resize)?;
            } else {
                resize()?;
            }
        }
        if (changes.accessed, changes.modified) != (Time::Same, Time::Same) {
            let times = Timestamps {
                last_access: changes.accessed.spec()?,
                last_modification: changes.modified.spec()?,
            };
            rustix::fs::utimensat(CWD, &path, &times, AtFlags::empty())?;
        }
        Ok(())
    }
}

fn resize(place: &Place, opened: Option<&Opened>, size: u64) -> Result<()> {
    let writes = |opened: &&Opened| !matches!(opened.flags & OFlags::ACCMODE, OFlags::RDONLY);
    match opened.filter(writes) {
        Some(opened) => rustix::fs::ftruncate(opened, size),
        None if place.kind == FileType::Directory => Err(Errno::ISDIR),
        None => {
            let file = place.reopen(OFlags::WRONLY | OFlags::NONBLOCK)?;
            rustix::fs::ftruncate(file, size)
        }
    }
}
