//! A folder of the host, and what can be done in it.
//!
//! Everything begins at a [`Place`], a file or directory that is held by a descriptor which neither reads nor writes (`O_PATH`), and
//! takes one name at most. Names are looked up without following symbolic links and are never `.` or `..`, so that what is below
//! the folder is all that can be reached, whatever else moves on the host meanwhile. Only regular files and directories are ever
//! opened: a device or a pipe that a guest made is for guests, not for the host's drivers.
//!
//! Spec: Linux openat(2), open(2) (`O_PATH`), proc_pid_fd(5).

mod create;
mod entries;
mod settings;
mod xattr;

use std::ffi::CStr;
use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::AtFlags;
use rustix::fs::CWD;
use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::fs::ResolveFlags;
use rustix::fs::Stat;
use rustix::fs::StatVfs;
use rustix::io::Errno;

use crate::descriptor::Descriptor;

pub(crate) use settings::Changes;
pub(crate) use settings::Time;
pub(crate) use xattr::MOST as XATTR;

/// What an operation comes to: an error of the host's is the guest's.
pub(crate) type Result<T> = std::result::Result<T, Errno>;

/// Bytes of a name at most.
const NAME: usize = 255;

/// Why a folder cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// It is not there, or may not be entered.
    #[error("cannot share `{}`", .path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is a file.
    #[error("`{}` is not a directory; share the one that it is in", .0.display())]
    NotDirectory(PathBuf),
}

/// A file or directory.
#[derive(Debug)]
pub(crate) struct Place {
    /// None where a saved state named what is not there any more.
    descriptor: Option<Descriptor>,
    pub(crate) kind: FileType,
    /// Device and number on it.
    pub(crate) key: (u64, u64),
}

impl Place {
    fn new(fd: OwnedFd) -> Result<(Self, Stat)> {
        let stat = rustix::fs::statat(&fd, c"", AtFlags::EMPTY_PATH)?;
        let place = Self {
            descriptor: Some(Descriptor::new(fd)?),
            kind: FileType::from_raw_mode(stat.st_mode),
            key: (stat.st_dev, stat.st_ino),
        };
        Ok((place, stat))
    }

    /// What was somewhere and is not there any more: a file of this type.
    pub(crate) fn lost(kind: FileType) -> Self {
        Self {
            descriptor: None,
            kind,
            key: (0, 0),
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.descriptor.is_none()
    }

    fn descriptor(&self) -> Result<&Descriptor> {
        self.descriptor.as_ref().ok_or(Errno::STALE)
    }

    fn fd(&self) -> Result<BorrowedFd<'_>> {
        self.descriptor().map(AsFd::as_fd)
    }

    /// As a directory that a name is looked up in.
    fn directory(&self) -> Result<BorrowedFd<'_>> {
        let fd = self.fd()?;
        if self.kind == FileType::Directory {
            Ok(fd)
        } else {
            Err(Errno::NOTDIR)
        }
    }

    /// Opens it again, to read or write.
    fn reopen(&self, flags: OFlags) -> Result<OwnedFd> {
        let descriptor = self.descriptor()?;
        match self.kind {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        rustix::fs::open(
            descriptor.path(),
            flags | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
        )
    }
}

/// A place that was found, and what it is like.
pub(crate) struct Found {
    pub(crate) place: Place,
    pub(crate) stat: Stat,
}

/// A file or directory that is open to be read or written.
#[derive(Debug)]
pub(crate) struct Opened {
    descriptor: Descriptor,
    pub(crate) flags: OFlags,
}

impl AsFd for Opened {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A name in a directory.
pub(crate) fn name(name: &CStr) -> Result<&CStr> {
    let bytes = name.to_bytes();
    match bytes {
        b"" | b"." | b".." => Err(Errno::INVAL),
        _ if bytes.len() > NAME => Err(Errno::NAMETOOLONG),
        _ if bytes.contains(&b'/') => Err(Errno::INVAL),
        _ => Ok(name),
    }
}

/// A folder of the host.
#[derive(Debug)]
pub struct Folder {
    root: Arc<Place>,
    path: PathBuf,
    read_only: bool,
}

impl Folder {
    /// The directory at `path`, a symbolic link to one included.
    ///
    /// # Errors
    /// It cannot be entered, or is no directory.
    pub fn open(path: &Path, read_only: bool) -> std::result::Result<Self, FolderError> {
        let failed = |source: Errno| FolderError::Open {
            path: path.to_owned(),
            source: source.into(),
        };
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
        let (root, _) = Place::new(fd).map_err(failed)?;
        if root.kind != FileType::Directory {
            return Err(FolderError::NotDirectory(path.to_owned()));
        }
        // That it can be entered and read is found out now, not by the guest.
        root.reopen(OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
        Ok(Self {
            root: Arc::new(root),
            path: path.to_owned(),
            read_only,
        })
    }

    /// Where it is on the host.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing in it can be changed.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    pub(crate) fn root(&self) -> &Arc<Place> {
        &self.root
    }

    /// Whether something may be changed.
    pub(crate) fn writable(&self) -> Result<()> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// What is called `wanted` in a directory.
    pub(crate) fn lookup(&self, parent: &Place, wanted: &CStr) -> Result<Found> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent.directory()?, name(wanted)?, flags, Mode::empty())?;
        let (place, stat) = Place::new(fd)?;
        Ok(Found { place, stat })
    }

    pub(crate) fn stat(&self, place: &Place) -> Result<Stat> {
        rustix::fs::statat(place.fd()?, c"", AtFlags::EMPTY_PATH)
    }

    pub(crate) fn readlink(&self, place: &Place) -> Result<CString> {
        if place.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        rustix::fs::readlinkat(place.fd()?, c"", Vec::new())
    }

    pub(crate) fn statfs(&self, place: &Place) -> Result<StatVfs> {
        rustix::fs::fstatvfs(place.fd()?)
    }

    /// Removes a name: that of a directory, or any other.
    pub(crate) fn unlink(&self, parent: &Place, wanted: &CStr, directory: bool) -> Result<()> {
        self.writable()?;
        let flags = if directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        rustix::fs::unlinkat(parent.directory()?, name(wanted)?, flags)
    }

    /// Moves a name.
    pub(crate) fn rename(&self, from: (&Place, &CStr), to: (&Place, &CStr), flags: RenameFlags) -> Result<()> {
        self.writable()?;
        let (old, new) = (name(from.1)?, name(to.1)?);
        rustix::fs::renameat_with(from.0.directory()?, old, to.0.directory()?, new, flags)
    }

    /// Gives a file another name.
    pub(crate) fn link(&self, place: &Place, parent: &Place, wanted: &CStr) -> Result<Found> {
        self.writable()?;
        if place.kind == FileType::Directory {
            return Err(Errno::PERM);
        }
        let from = place.descriptor()?.path();
        rustix::fs::linkat(CWD, from, parent.directory()?, name(wanted)?, AtFlags::SYMLINK_FOLLOW)?;
        self.lookup(parent, wanted)
    }

    /// Opens a regular file or a directory. Of `flags` those are left out that make files, wait, or are about the guest's own
    /// descriptors; where each write goes is said with it.
    pub(crate) fn reopen(&self, place: &Place, flags: OFlags) -> Result<Opened> {
        let flags = open_flags(flags);
        let writes = !matches!(flags & OFlags::ACCMODE, OFlags::RDONLY) || flags.contains(OFlags::TRUNC);
        if writes {
            self.writable()?;
        }
        let fd = place.reopen(flags)?;
        Ok(Opened {
            descriptor: Descriptor::new(fd)?,
            flags,
        })
    }

    /// Opens a directory to be read.
    pub(crate) fn open_directory(&self, place: &Place) -> Result<Opened> {
        place.directory()?;
        self.reopen(place, OFlags::RDONLY | OFlags::DIRECTORY)
    }

    /// Makes all of the file system safe that the folder is on.
    pub(crate) fn sync(&self) -> Result<()> {
        let directory = self.root.reopen(OFlags::RDONLY | OFlags::DIRECTORY)?;
        rustix::fs::syncfs(directory)
    }

    /// Where a place is now, from the folder on; none where it has no name any more, or is not below it.
    pub(crate) fn path_of(&self, place: &Place) -> Option<Vec<u8>> {
        let absolute = |place: &Place| {
            let link = rustix::fs::readlink(place.descriptor().ok()?.path(), Vec::new()).ok()?;
            Some(link.into_bytes())
        };
        if place.key == self.root.key {
            return Some(Vec::new());
        }
        let mut root = absolute(&self.root)?;
        if root != b"/" {
            root.push(b'/');
        }
        let path = absolute(place)?.strip_prefix(root.as_slice())?.to_vec();
        // A file that was removed has a path too, and another one may be there.
        let there = self.find(&path).ok()?;
        (there.key == place.key).then_some(path)
    }

    /// What is at a path from the folder on that a saved state has.
    pub(crate) fn find(&self, path: &[u8]) -> Result<Place> {
        let path = CString::new(path).map_err(|_| Errno::INVAL)?;
        let path = if path.is_empty() { c".".to_owned() } else { path };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let opened = rustix::fs::openat2(self.root.fd()?, &path, flags, Mode::empty(), resolve);
        // A link at the end is what was meant; the kernel refuses it nevertheless.
        let fd = match opened {
            Err(Errno::LOOP) => self.find_link(path.to_bytes())?,
            opened => opened?,
        };
        Ok(Place::new(fd)?.0)
    }

    /// A symbolic link at a path.
    fn find_link(&self, path: &[u8]) -> Result<OwnedFd> {
        let (parent, last) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => path.split_at_checked(at).ok_or(Errno::INVAL)?,
            None => (b"".as_slice(), path),
        };
        let last = last.strip_prefix(b"/").unwrap_or(last);
        let last = CString::new(last).map_err(|_| Errno::INVAL)?;
        let parent = if parent.is_empty() { b".".as_slice() } else { parent };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
        let parent = rustix::fs::openat2(self.root.fd()?, parent, flags, Mode::empty(), resolve)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(parent, name(&last)?, flags, Mode::empty())
    }
}

/// Those of a guest's flags that its file is opened with on the host.
fn open_flags(flags: OFlags) -> OFlags {
    let kept = OFlags::ACCMODE | OFlags::TRUNC | OFlags::DIRECTORY | OFlags::SYNC | OFlags::DSYNC;
    // A regular file never makes its opener wait, but for leases.
    flags & kept | OFlags::NONBLOCK
}
