//! What requests do to the folder.

mod data;

use std::ffi::CStr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::handles::Handle;
use super::handles::Handles;
use super::nodes::Nodes;
use super::reply;
use super::reply::Answer;
use super::request::Operation;
use super::server::FuseConfig;
use super::state::Agreement;
use super::state::CachePolicy;
use super::state::FuseState;
use super::wire;
use super::wire::InHeader;
use super::wire::fattr;
use super::wire::fopen;
use super::wire::init;
use crate::Caller;
use crate::Folder;
use crate::credentials::without_set_id;
use crate::device;
use crate::folder::Changes;
use crate::folder::Found;
use crate::folder::Opened;
use crate::folder::Place;
use crate::folder::Result;
use crate::folder::Time;

/// Bytes that one request writes at most, and pages that it has.
const MAX_WRITE: u32 = 1 << 20;
const MAX_PAGES: u16 = 256;
/// Requests that the guest has under way without being waited for.
const BACKGROUND: u16 = 64;

/// What is offered, whatever the configuration.
const OFFERED: u32 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::SUBMOUNTS
    | init::HANDLE_KILLPRIV_V2;

/// A session.
pub(super) struct Session {
    folder: Arc<Folder>,
    config: FuseConfig,
    agreement: Mutex<Agreement>,
    nodes: Mutex<Nodes>,
    handles: Mutex<Handles>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn caller(header: &InHeader) -> Caller {
    Caller {
        uid: header.uid,
        gid: header.gid,
    }
}

impl Session {
    pub(super) fn new(folder: Arc<Folder>, config: FuseConfig) -> Self {
        Self {
            nodes: Mutex::new(Nodes::new(&folder)),
            handles: Mutex::default(),
            agreement: Mutex::default(),
            folder,
            config,
        }
    }

    /// Whether there was an INIT.
    pub(super) fn is_begun(&self) -> bool {
        locked(&self.agreement).minor != 0
    }

    /// Files that the guest knows, and files that it has open.
    pub(super) fn open(&self) -> (usize, usize) {
        (locked(&self.nodes).len(), locked(&self.handles).len())
    }

    pub(super) fn save(&self) -> FuseState {
        let (nodes, next_node) = locked(&self.nodes).save(&self.folder);
        let (handles, next_handle) = locked(&self.handles).save();
        FuseState {
            agreement: *locked(&self.agreement),
            nodes,
            next_node,
            handles,
            next_handle,
        }
    }

    pub(super) fn restore(
        folder: Arc<Folder>,
        config: FuseConfig,
        state: &FuseState,
    ) -> std::result::Result<Self, &'static str> {
        let nodes = Nodes::restore(&folder, &state.nodes, state.next_node)?;
        let handles = Handles::restore(&folder, &nodes, &state.handles, state.next_handle)?;
        Ok(Self {
            nodes: Mutex::new(nodes),
            handles: Mutex::new(handles),
            agreement: Mutex::new(state.agreement),
            folder,
            config,
        })
    }

    fn place(&self, number: u64) -> Result<Arc<Place>> {
        locked(&self.nodes).get(number)
    }

    fn handle(&self, number: u64) -> Result<Arc<Handle>> {
        locked(&self.handles).get(number)
    }

    pub(super) fn init(&self, asked: &wire::InitIn) -> Result<Answer> {
        let mut answer = wire::InitOut {
            major: wire::MAJOR,
            minor: wire::MINOR,
            ..Default::default()
        };
        if asked.major > wire::MAJOR {
            // It asks again with a version that both know.
            return Ok(Answer::of(&answer));
        }
        if asked.major < wire::MAJOR || asked.minor < wire::MINOR_LEAST {
            return Err(Errno::PROTO);
        }
        let cache = match self.config.cache {
            CachePolicy::Auto => init::AUTO_INVAL_DATA,
            CachePolicy::Never | CachePolicy::Always => 0,
        };
        let writeback = if self.config.writeback {
            init::WRITEBACK_CACHE
        } else {
            0
        };
        answer.flags = asked.flags & (OFFERED | cache | writeback);
        answer.minor = asked.minor.min(wire::MINOR);
        answer.max_readahead = asked.max_readahead.min(MAX_WRITE);
        answer.max_background = BACKGROUND;
        answer.congestion_threshold = BACKGROUND / 4 * 3;
        answer.max_write = MAX_WRITE;
        answer.max_pages = MAX_PAGES;
        answer.time_gran = 1;
        *locked(&self.agreement) = Agreement {
            minor: answer.minor,
            flags: answer.flags,
        };
        Ok(Answer::of(&answer))
    }

    /// Carries out everything but the transfer of data. The answer has at most `room` bytes.
    pub(super) fn execute(&self, header: &InHeader, operation: &Operation<'_>, room: usize) -> Result<Answer> {
        let (number, caller) = (header.nodeid, caller(header));
        match *operation {
            Operation::Forget(ref forgotten) => {
                for (number, lookups) in forgotten {
                    // Closed without the lock.
                    let forgotten = locked(&self.nodes).forget(*number, *lookups);
                    drop(forgotten);
                }
                Ok(Answer::Silence)
            }
            Operation::Interrupt => Ok(Answer::Silence),
            Operation::Unlink(name) => self.done(self.folder.unlink(&*self.place(number)?, name, false)),
            Operation::Rmdir(name) => self.done(self.folder.unlink(&*self.place(number)?, name, true)),
            Operation::Rename(old, to, new) => {
                let (from, into) = (self.place(number)?, self.place(to.newdir)?);
                let flags = RenameFlags::from_bits(to.flags).ok_or(Errno::INVAL)?;
                self.done(self.folder.rename((&from, old), (&into, new), flags))
            }
            Operation::Getattr(_) => self.attributes(&*self.place(number)?),
            Operation::Readlink => {
                let target = self.folder.readlink(&*self.place(number)?)?;
                Ok(Answer::Bytes(target.into_bytes()))
            }
            Operation::Access { mask } => self.done(self.access(&*self.place(number)?, mask, caller)),
            Operation::Statfs => self.statfs(&*self.place(number)?),
            Operation::Open(open) => self.open_file(number, open),
            Operation::Opendir(_) => self.open_directory(number),
            Operation::Create(create, name) => self.create(number, create, Some(name), caller),
            Operation::Tmpfile(create) => self.create(number, create, None, caller),
            Operation::Release(release) => {
                let released = locked(&self.handles).remove(release.fh)?;
                drop(released);
                Ok(Answer::done())
            }
            Operation::Readdir { plus, ref read } => self.readdir(number, read, plus, room),
            Operation::Setxattr { flags, name, value } => {
                self.done(self.folder.set_xattr(&*self.place(number)?, name, value, flags))
            }
            Operation::Removexattr(name) => self.done(self.folder.remove_xattr(&*self.place(number)?, name)),
            Operation::Getxattr { size, name } => sized(self.folder.xattr(&*self.place(number)?, name)?, size),
            Operation::Listxattr { size } => sized(self.folder.xattrs(&*self.place(number)?)?, size),
            Operation::Syncfs => self.done(self.folder.sync()),
            Operation::Setattr(ref changes) => self.setattr(number, changes),
            ref other => self.named(header, other),
        }
    }

    /// Finds or makes what a name is given to; or else it is about data.
    fn named(&self, header: &InHeader, operation: &Operation<'_>) -> Result<Answer> {
        let (number, caller) = (header.nodeid, caller(header));
        match *operation {
            Operation::Lookup(name) => {
                let parent = self.place(number)?;
                self.entry(&parent, self.folder.lookup(&parent, name)?)
            }
            Operation::Symlink { name, target } => {
                let parent = self.place(number)?;
                self.entry(&parent, self.folder.symlink(&parent, name, target, caller)?)
            }
            Operation::Mknod(mknod, name) => {
                let parent = self.place(number)?;
                let device = device::decode(mknod.rdev);
                self.entry(&parent, self.folder.mknod(&parent, name, mknod.mode, device, caller)?)
            }
            Operation::Mkdir(mkdir, name) => {
                let parent = self.place(number)?;
                self.entry(&parent, self.folder.mkdir(&parent, name, mkdir.mode, caller)?)
            }
            Operation::Link(link, name) => {
                let (from, parent) = (self.place(link.oldnodeid)?, self.place(number)?);
                self.entry(&parent, self.folder.link(&from, &parent, name)?)
            }
            ref data => self.data(data),
        }
    }

    fn done(&self, result: Result<()>) -> Result<Answer> {
        result.map(|()| Answer::done())
    }

    /// How long the guest may keep what it is told of names and attributes.
    fn validity(&self) -> Duration {
        match self.config.cache {
            CachePolicy::Auto => Duration::from_secs(1),
            CachePolicy::Never => Duration::ZERO,
            CachePolicy::Always => Duration::from_secs(86_400),
        }
    }

    /// A file that was found in `parent`, with a number.
    fn known(&self, parent: &Place, found: Found) -> wire::EntryOut {
        let mut attr = reply::attr(&found.stat);
        let elsewhere = found.place.key.0 != parent.key.0 && found.place.kind == FileType::Directory;
        if elsewhere && locked(&self.agreement).flags & init::SUBMOUNTS != 0 {
            attr.flags |= wire::ATTR_SUBMOUNT;
        }
        let valid = self.validity().as_secs();
        wire::EntryOut {
            nodeid: locked(&self.nodes).add(found.place),
            entry_valid: valid,
            attr_valid: valid,
            attr,
            ..Default::default()
        }
    }

    fn entry(&self, parent: &Place, found: Found) -> Result<Answer> {
        Ok(Answer::of(&self.known(parent, found)))
    }

    fn attributes(&self, place: &Place) -> Result<Answer> {
        Ok(Answer::of(&wire::AttrOut {
            attr_valid: self.validity().as_secs(),
            attr: reply::attr(&self.folder.stat(place)?),
            ..Default::default()
        }))
    }

    fn setattr(&self, number: u64, asked: &wire::SetattrIn) -> Result<Answer> {
        let place = self.place(number)?;
        let has = |bit: u32| asked.valid & bit != 0;
        let handle = has(fattr::FH).then(|| self.handle(asked.fh)).transpose()?;
        let opened = handle.as_ref().map(|handle| handle.opened()).transpose()?;
        let time = |bit, now, seconds: u64, part| match () {
            () if !has(bit) => Time::Same,
            () if has(now) => Time::Now,
            () => Time::At(i64::from_ne_bytes(seconds.to_ne_bytes()), part),
        };
        let changes = Changes {
            mode: has(fattr::MODE).then_some(asked.mode),
            uid: has(fattr::UID).then_some(asked.uid),
            gid: has(fattr::GID).then_some(asked.gid),
            size: has(fattr::SIZE).then_some(asked.size),
            accessed: time(fattr::ATIME, fattr::ATIME_NOW, asked.atime, asked.atimensec),
            modified: time(fattr::MTIME, fattr::MTIME_NOW, asked.mtime, asked.mtimensec),
            kill_set_id: has(fattr::KILL_SUIDGID),
        };
        self.folder.change(&place, opened, &changes)?;
        self.attributes(&place)
    }

    /// Whether the modes allow `mask` (1 to execute, 2 to write, 4 to read). Guests whose kernel checks by itself do not ask.
    fn access(&self, place: &Place, mask: u32, caller: Caller) -> Result<()> {
        let stat = self.folder.stat(place)?;
        let shift = match () {
            () if caller.uid == stat.st_uid => 6,
            () if caller.gid == stat.st_gid => 3,
            () => 0,
        };
        let allowed = if caller.uid == 0 { 7 } else { stat.st_mode >> shift & 7 };
        if mask & 7 & !allowed == 0 {
            Ok(())
        } else {
            Err(Errno::ACCESS)
        }
    }

    fn statfs(&self, place: &Place) -> Result<Answer> {
        let stat = self.folder.statfs(place)?;
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(Answer::of(&wire::StatfsOut {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: small(stat.f_bsize),
            namelen: small(stat.f_namemax),
            frsize: small(stat.f_frsize),
            ..Default::default()
        }))
    }

    /// What a file is opened with. A guest that keeps what is written reads what is around it, too.
    fn flags(&self, flags: u32) -> OFlags {
        let flags = OFlags::from_bits_retain(flags);
        let writeback = locked(&self.agreement).flags & init::WRITEBACK_CACHE != 0;
        if writeback && flags & OFlags::ACCMODE == OFlags::WRONLY {
            return (flags - OFlags::ACCMODE) | OFlags::RDWR;
        }
        flags
    }

    fn opened(&self, handle: Handle) -> wire::OpenOut {
        let open_flags = match (self.config.cache, handle.is_directory) {
            (CachePolicy::Auto, _) | (CachePolicy::Never, true) => 0,
            (CachePolicy::Never, false) => fopen::DIRECT_IO,
            (CachePolicy::Always, false) => fopen::KEEP_CACHE,
            (CachePolicy::Always, true) => fopen::KEEP_CACHE | fopen::CACHE_DIR,
        };
        wire::OpenOut {
            fh: locked(&self.handles).add(handle),
            open_flags,
            ..Default::default()
        }
    }

    fn open_file(&self, number: u64, asked: wire::OpenIn) -> Result<Answer> {
        let place = self.place(number)?;
        let flags = self.flags(asked.flags);
        let open = || self.folder.reopen(&place, flags);
        let opened = if asked.open_flags & wire::OPEN_KILL_SUIDGID != 0 {
            without_set_id(open)?
        } else {
            open()?
        };
        let directory = place.kind == FileType::Directory;
        Ok(Answer::of(&self.opened(Handle::new(opened, number, directory))))
    }

    fn open_directory(&self, number: u64) -> Result<Answer> {
        let opened = self.folder.open_directory(&*self.place(number)?)?;
        Ok(Answer::of(&self.opened(Handle::new(opened, number, true))))
    }

    /// CREATE, and without a name TMPFILE.
    fn create(&self, number: u64, asked: wire::CreateIn, name: Option<&CStr>, caller: Caller) -> Result<Answer> {
        let parent = self.place(number)?;
        let flags = self.flags(asked.flags);
        let (found, opened): (Found, Opened) = match name {
            Some(name) => self.folder.create(&parent, name, flags, asked.mode, caller)?,
            None => self.folder.create_unnamed(&parent, flags, asked.mode, caller)?,
        };
        let entry = self.known(&parent, found);
        let open = self.opened(Handle::new(opened, entry.nodeid, false));
        Ok(Answer::Bytes([entry.as_bytes(), open.as_bytes()].concat()))
    }

    fn readdir(&self, number: u64, asked: &wire::ReadIn, plus: bool, room: usize) -> Result<Answer> {
        let handle = self.handle(asked.fh)?;
        if !handle.is_directory {
            return Err(Errno::NOTDIR);
        }
        let parent = self.place(number)?;
        let room = usize::try_from(asked.size).unwrap_or(room).min(room);
        let mut out = Vec::new();
        let _one = locked(&handle.position);
        // Of the host's shorter entries a smaller buffer holds as many.
        let read = if plus { room / 4 } else { room };
        handle.opened()?.entries(asked.offset, read, |entry| {
            let what = (entry.ino, entry.next, entry.kind);
            let fits = out.len() + reply::dirent_len(plus, entry.name) <= room;
            if !fits {
                return Ok(false);
            }
            let known = plus.then(|| self.listed(&parent, entry.name));
            Ok(reply::add_dirent(&mut out, room, known.as_ref(), what, entry.name))
        })?;
        Ok(Answer::Bytes(out))
    }

    /// What is known of an entry of a directory. Of some nothing is: the guest looks these up if it needs them.
    fn listed(&self, parent: &Place, name: &CStr) -> wire::EntryOut {
        match self.folder.lookup(parent, name) {
            Ok(found) => self.known(parent, found),
            Err(_) => wire::EntryOut::default(),
        }
    }
}

/// Bytes, or how many there are where that was asked for.
fn sized(bytes: Vec<u8>, size: u32) -> Result<Answer> {
    let len = u32::try_from(bytes.len()).map_err(|_| Errno::TOOBIG)?;
    match size {
        0 => Ok(Answer::of(&wire::GetxattrOut { size: len, padding: 0 })),
        size if size < len => Err(Errno::RANGE),
        _ => Ok(Answer::Bytes(bytes)),
    }
}
