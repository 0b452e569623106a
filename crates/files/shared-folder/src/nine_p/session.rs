//! What requests do to the folder.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use device_model::Message;
use rustix::fs::FileType;
use rustix::fs::OFlags;
use rustix::fs::RenameFlags;
use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::io::ReadWriteFlags;

use super::fids::Fid;
use super::fids::Fids;
use super::fids::Handle;
use super::fids::NewAttribute;
use super::fids::Use;
use super::fields::Answer;
use super::fields::Fields;
use super::fields::HEADER;
use super::fields::kind;
use super::server::MSIZE;
use super::server::NinePState;
use crate::Caller;
use crate::Folder;
use crate::credentials::without_set_id;
use crate::device;
use crate::folder::Changes;
use crate::folder::Found;
use crate::folder::Result;
use crate::folder::Time;
use crate::folder::XATTR;
use crate::transfer;

/// Names of one walk at most.
const NAMES: u16 = 16;
/// Bytes of an answer to a read that come before the data.
const READ_HEADER: usize = HEADER + 4;
/// UNLINKAT: a directory.
const REMOVEDIR: u32 = 0x200;
/// What file systems of this protocol are called (STATFS).
const MAGIC: u32 = 0x0102_1997;
/// Types of locks, and what asking for one comes to.
const UNLOCKED: u8 = 2;
const GRANTED: u8 = 0;
/// GETATTR: all that stat(2) tells.
const BASIC: u64 = 0x7ff;

/// What SETATTR changes.
mod valid {
    pub(super) const MODE: u32 = 1;
    pub(super) const UID: u32 = 2;
    pub(super) const GID: u32 = 4;
    pub(super) const SIZE: u32 = 8;
    pub(super) const ATIME: u32 = 0x10;
    pub(super) const MTIME: u32 = 0x20;
    pub(super) const ATIME_SET: u32 = 0x80;
    pub(super) const MTIME_SET: u32 = 0x100;
}

/// A request that went well.
pub(super) struct Done {
    pub(super) answer: Answer,
    /// Bytes behind the answer that are in the message already.
    pub(super) written: usize,
}

impl Done {
    pub(super) fn of(answer: Answer) -> Self {
        Self { answer, written: 0 }
    }
}

fn done() -> Result<Done> {
    Ok(Done::of(Answer::new()))
}

/// A session.
pub(super) struct Session {
    folder: Arc<Folder>,
    /// Bytes of a message at most; 0 before that is agreed upon.
    msize: u32,
    fids: Mutex<Fids>,
}

impl Session {
    pub(super) fn new(folder: Arc<Folder>, msize: u32) -> Self {
        Self {
            folder,
            msize,
            fids: Mutex::default(),
        }
    }

    pub(super) fn msize(&self) -> u32 {
        self.msize
    }

    /// Files that the guest has numbers for, and that it has open.
    pub(super) fn open(&self) -> (usize, usize) {
        self.fids().len()
    }

    pub(super) fn save(&self) -> NinePState {
        NinePState {
            msize: self.msize,
            fids: self.fids().save(&self.folder),
        }
    }

    pub(super) fn restore(folder: Arc<Folder>, state: &NinePState) -> std::result::Result<Self, &'static str> {
        if state.msize > MSIZE {
            return Err("messages that are too long");
        }
        let fids = Fids::restore(&folder, &state.fids)?;
        Ok(Self {
            fids: Mutex::new(fids),
            ..Self::new(folder, state.msize)
        })
    }

    fn fids(&self) -> MutexGuard<'_, Fids> {
        self.fids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fid(&self, fields: &mut Fields<'_>) -> Result<Fid> {
        let number = fields.u32()?;
        self.fids().get(number)
    }

    /// Carries out a request. Behind its fields `data` more bytes are in the message.
    pub(super) fn execute(
        &self,
        kind: u8,
        fields: &mut Fields<'_>,
        (message, data): (&mut dyn Message, usize),
    ) -> Result<Done> {
        match kind {
            kind::ATTACH => self.attach(fields),
            kind::WALK => self.walk(fields),
            kind::CLUNK => self.clunk(fields),
            // The number is gone even so.
            kind::REMOVE => self.clunk(fields).and(Err(Errno::OPNOTSUPP)),
            kind::LOPEN => self.lopen(fields),
            kind::LCREATE => self.lcreate(fields),
            kind::READ => self.read(fields, message),
            kind::WRITE => self.write(fields, message, data),
            kind::READDIR => self.readdir(fields, message),
            kind::GETATTR => self.getattr(fields),
            kind::SETATTR => self.setattr(fields),
            kind::STATFS => self.statfs(fields),
            kind::READLINK => {
                let target = self.folder.readlink(&self.fid(fields)?.place)?;
                Ok(Done::of(Answer::new().string(target.as_bytes())))
            }
            kind::FSYNC => self.fsync(fields),
            kind::SYMLINK | kind::MKNOD | kind::MKDIR => self.make(kind, fields),
            kind::LINK => {
                let (parent, file, name) = (self.fid(fields)?, self.fid(fields)?, fields.string()?);
                self.folder.link(&file.place, &parent.place, &name)?;
                done()
            }
            kind::RENAMEAT => {
                let (from, old) = (self.fid(fields)?, fields.string()?);
                let (to, new) = (self.fid(fields)?, fields.string()?);
                let (from, to) = ((&*from.place, &*old), (&*to.place, &*new));
                self.folder.rename(from, to, RenameFlags::empty())?;
                done()
            }
            kind::UNLINKAT => {
                let (parent, name, flags) = (self.fid(fields)?, fields.string()?, fields.u32()?);
                self.folder.unlink(&parent.place, &name, flags & REMOVEDIR != 0)?;
                done()
            }
            kind::XATTRWALK => self.xattr_walk(fields),
            kind::XATTRCREATE => self.xattr_create(fields),
            kind::LOCK => self.fid(fields).map(|_| Done::of(Answer::new().u8(GRANTED))),
            kind::GETLOCK => self.getlock(fields),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn attach(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let (number, _afid) = (fields.u32()?, fields.u32()?);
        let (_uname, _aname, uid) = (fields.string()?, fields.string()?, fields.u32()?);
        let place = Arc::clone(self.folder.root());
        let qid = self.qid(&self.folder.stat(&place)?);
        // Who has no number is the one that the guest takes for its own server: its root.
        let uid = if uid == u32::MAX { 0 } else { uid };
        let used = Use::Path;
        self.fids().add(number, Fid { place, uid, used })?;
        Ok(Done::of(Answer::new().bytes(&qid)))
    }

    fn walk(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let (from, number) = (fields.u32()?, fields.u32()?);
        let start = self.fids().get(from)?;
        let count = fields.u16()?;
        if count > NAMES {
            return Err(Errno::INVAL);
        }
        if !matches!(start.used, Use::Path) {
            return Err(Errno::BADF);
        }
        let (mut place, mut qids) = (Arc::clone(&start.place), Vec::new());
        for step in 0..count {
            let name = fields.string()?;
            match self.folder.lookup(&place, &name) {
                Ok(found) => {
                    qids.push(self.qid(&found.stat));
                    place = Arc::new(found.place);
                }
                Err(error) if step == 0 => return Err(error),
                // How far it went is told; the new number names nothing.
                Err(_) => return Ok(walked(&qids)),
            }
        }
        let used = Use::Path;
        let uid = start.uid;
        let fid = Fid { place, uid, used };
        if from == number {
            self.fids().replace(number, fid)?;
        } else {
            self.fids().add(number, fid)?;
        }
        Ok(walked(&qids))
    }

    fn clunk(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let number = fields.u32()?;
        let fid = self.fids().remove(number)?;
        if let Use::NewAttribute(new) = &fid.used {
            let value = new.value.lock().unwrap_or_else(PoisonError::into_inner);
            match value.len() {
                0 if new.size == 0 => self.folder.remove_xattr(&fid.place, &new.name)?,
                len if len == new.size => self.folder.set_xattr(&fid.place, &new.name, &value, new.flags)?,
                _ => return Err(Errno::INVAL),
            }
        }
        done()
    }

    /// The user who asks, with a group that the message names.
    fn caller(fid: &Fid, gid: u32) -> Caller {
        let uid = fid.uid;
        Caller { uid, gid }
    }

    /// For a user who is not root, set-user-ID bits go with a write.
    fn as_writer<T>(fid: &Fid, f: impl FnOnce() -> Result<T>) -> Result<T> {
        if fid.uid == 0 { f() } else { without_set_id(f) }
    }

    fn lopen(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let (number, flags) = (fields.u32()?, fields.u32()?);
        let fid = self.fids().get(number)?;
        if !matches!(fid.used, Use::Path) {
            return Err(Errno::BADF);
        }
        let wanted = OFlags::from_bits_retain(flags);
        let opened = Self::as_writer(&fid, || self.folder.reopen(&fid.place, wanted))?;
        let qid = self.qid(&self.folder.stat(&fid.place)?);
        let used = Use::Open(Arc::new(Handle::new(opened, flags)));
        self.fids().replace(number, Fid { used, ..fid })?;
        Ok(Done::of(Answer::new().bytes(&qid).u32(0)))
    }

    fn lcreate(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let (number, name) = (fields.u32()?, fields.string()?);
        let (flags, mode, gid) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let fid = self.fids().get(number)?;
        if !matches!(fid.used, Use::Path) {
            return Err(Errno::BADF);
        }
        let (wanted, caller) = (OFlags::from_bits_retain(flags), Self::caller(&fid, gid));
        let (found, opened) = self.folder.create(&fid.place, &name, wanted, mode, caller)?;
        let qid = self.qid(&found.stat);
        let fid = Fid {
            place: Arc::new(found.place),
            uid: fid.uid,
            used: Use::Open(Arc::new(Handle::new(opened, flags))),
        };
        self.fids().replace(number, fid)?;
        Ok(Done::of(Answer::new().bytes(&qid).u32(0)))
    }

    fn make(&self, kind: u8, fields: &mut Fields<'_>) -> Result<Done> {
        let (parent, name) = (self.fid(fields)?, fields.string()?);
        let place = &*parent.place;
        let found: Found = match kind {
            kind::SYMLINK => {
                let (target, gid) = (fields.string()?, fields.u32()?);
                self.folder.symlink(place, &name, &target, Self::caller(&parent, gid))?
            }
            kind::MKNOD => {
                let (mode, major, minor, gid) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u32()?);
                let device = rustix::fs::makedev(major, minor);
                self.folder
                    .mknod(place, &name, mode, device, Self::caller(&parent, gid))?
            }
            _ => {
                let (mode, gid) = (fields.u32()?, fields.u32()?);
                self.folder.mkdir(place, &name, mode, Self::caller(&parent, gid))?
            }
        };
        Ok(Done::of(Answer::new().bytes(&self.qid(&found.stat))))
    }

    /// Bytes of data that an answer may have, of the `count` that are asked for.
    fn room(&self, count: u32, message: &dyn Message) -> Result<usize> {
        let room = usize::try_from(self.msize).unwrap_or(0).min(message.room());
        let room = room.checked_sub(READ_HEADER).ok_or(Errno::INVAL)?;
        Ok(usize::try_from(count).unwrap_or(room).min(room))
    }

    fn read(&self, fields: &mut Fields<'_>, message: &mut dyn Message) -> Result<Done> {
        let (fid, offset, count) = (self.fid(fields)?, fields.u64()?, fields.u32()?);
        let size = self.room(count, message)?;
        let written = match &fid.used {
            Use::Attribute(value) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = value.get(from..).unwrap_or_default();
                let part = rest.get(..size).unwrap_or(rest);
                message.put(READ_HEADER, part).map_err(|_| Errno::FAULT)?;
                part.len()
            }
            _ => {
                let handle = fid.handle()?;
                if fid.place.kind == FileType::Directory {
                    return Err(Errno::ISDIR);
                }
                transfer::from_file(&handle.opened, offset, size, (message, READ_HEADER))?
            }
        };
        let answer = Answer::new().u32(u32::try_from(written).unwrap_or(0));
        Ok(Done { answer, written })
    }

    fn write(&self, fields: &mut Fields<'_>, message: &mut dyn Message, data: usize) -> Result<Done> {
        let (fid, offset, count) = (self.fid(fields)?, fields.u64()?, fields.u32()?);
        let size = usize::try_from(count).map_err(|_| Errno::INVAL)?;
        if size > data || count > self.msize {
            return Err(Errno::INVAL);
        }
        self.folder.writable()?;
        let written = match &fid.used {
            Use::NewAttribute(new) => new.write(offset, size, message)?,
            _ => {
                let handle = fid.handle()?;
                // Who appends means the end of the file as it is on the host.
                let append = OFlags::from_bits_retain(handle.flags).contains(OFlags::APPEND);
                let flags = if append {
                    ReadWriteFlags::APPEND
                } else {
                    ReadWriteFlags::empty()
                };
                Self::as_writer(&fid, || transfer::to_file(&handle.opened, offset, size, flags, message))?
            }
        };
        Ok(Done::of(Answer::new().u32(u32::try_from(written).unwrap_or(0))))
    }

    fn readdir(&self, fields: &mut Fields<'_>, message: &mut dyn Message) -> Result<Done> {
        let (fid, offset, count) = (self.fid(fields)?, fields.u64()?, fields.u32()?);
        let handle = fid.handle()?;
        if fid.place.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let room = self.room(count, message)?;
        let mut out = Vec::new();
        let _one = handle.position.lock().unwrap_or_else(PoisonError::into_inner);
        handle.opened.entries(offset, room, |entry| {
            // Number, place of the next, type, and the name with its length.
            if out.len() + QID + 8 + 1 + 2 + entry.name.count_bytes() > room {
                return Ok(false);
            }
            out.extend(self.qid_of(entry.kind, 0, (fid.place.key.0, entry.ino)));
            out.extend(entry.next.to_le_bytes());
            out.extend((entry.kind.as_raw_mode() >> 12).to_le_bytes().first());
            out.extend(u16::try_from(entry.name.count_bytes()).unwrap_or(0).to_le_bytes());
            out.extend(entry.name.to_bytes());
            Ok(true)
        })?;
        let count = u32::try_from(out.len()).map_err(|_| Errno::INVAL)?;
        Ok(Done::of(Answer::new().u32(count).bytes(&out)))
    }

    fn getattr(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let fid = self.fid(fields)?;
        let stat = self.folder.stat(&fid.place)?;
        let number = |value: i64| u64::try_from(value).unwrap_or(0);
        let seconds = |seconds: i64| u64::from_ne_bytes(seconds.to_ne_bytes());
        let answer = Answer::new().u64(BASIC).bytes(&self.qid(&stat)).u32(stat.st_mode);
        let answer = answer.u32(stat.st_uid).u32(stat.st_gid).u64(stat.st_nlink);
        let answer = answer
            .u64(device::encode(stat.st_rdev).into())
            .u64(number(stat.st_size));
        let answer = answer.u64(number(stat.st_blksize)).u64(number(stat.st_blocks));
        let answer = answer.u64(seconds(stat.st_atime)).u64(stat.st_atime_nsec);
        let answer = answer.u64(seconds(stat.st_mtime)).u64(stat.st_mtime_nsec);
        let answer = answer.u64(seconds(stat.st_ctime)).u64(stat.st_ctime_nsec);
        // No time of birth, generation or version of the data.
        Ok(Done::of(answer.bytes(&[0; 32])))
    }

    fn setattr(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let (fid, asked) = (self.fid(fields)?, fields.u32()?);
        let (mode, uid, gid, size) = (fields.u32()?, fields.u32()?, fields.u32()?, fields.u64()?);
        let has = |bit: u32| asked & bit != 0;
        let mut time = |bit, set| {
            let (seconds, part) = (fields.u64()?, fields.u64()?);
            let part = u32::try_from(part).map_err(|_| Errno::INVAL)?;
            Ok(match () {
                () if !has(bit) => Time::Same,
                () if !has(set) => Time::Now,
                () => Time::At(i64::from_ne_bytes(seconds.to_ne_bytes()), part),
            })
        };
        let changes = Changes {
            mode: has(valid::MODE).then_some(mode),
            uid: has(valid::UID).then_some(uid),
            gid: has(valid::GID).then_some(gid),
            size: has(valid::SIZE).then_some(size),
            accessed: time(valid::ATIME, valid::ATIME_SET)?,
            modified: time(valid::MTIME, valid::MTIME_SET)?,
            kill_set_id: fid.uid != 0,
        };
        let opened = fid.handle().ok().map(|handle| &handle.opened);
        self.folder.change(&fid.place, opened, &changes)?;
        done()
    }

    fn statfs(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let stat = self.folder.statfs(&self.fid(fields)?.place)?;
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        let answer = Answer::new().u32(MAGIC).u32(small(stat.f_frsize)).u64(stat.f_blocks);
        let answer = answer
            .u64(stat.f_bfree)
            .u64(stat.f_bavail)
            .u64(stat.f_files)
            .u64(stat.f_ffree);
        Ok(Done::of(answer.u64(stat.f_fsid).u32(small(stat.f_namemax))))
    }

    fn fsync(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let (fid, data_only) = (self.fid(fields)?, fields.u32()?);
        let opened = &fid.handle()?.opened;
        if data_only == 0 {
            rustix::fs::fsync(opened)?;
        } else {
            rustix::fs::fdatasync(opened)?;
        }
        done()
    }

    fn xattr_walk(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let (fid, number, name) = (self.fid(fields)?, fields.u32()?, fields.string()?);
        let value = if name.is_empty() {
            self.folder.xattrs(&fid.place)?
        } else {
            self.folder.xattr(&fid.place, &name)?
        };
        let len = value.len() as u64;
        let used = Use::Attribute(Arc::new(value));
        self.fids().add(number, Fid { used, ..fid })?;
        Ok(Done::of(Answer::new().u64(len)))
    }

    fn xattr_create(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let (number, name): (u32, CString) = (fields.u32()?, fields.string()?);
        let (size, flags) = (fields.u64()?, fields.u32()?);
        let size = usize::try_from(size)
            .ok()
            .filter(|size| *size <= XATTR)
            .ok_or(Errno::TOOBIG)?;
        let fid = self.fids().get(number)?;
        let used = Use::NewAttribute(Arc::new(NewAttribute {
            name,
            flags,
            size,
            value: Mutex::default(),
        }));
        self.fids().replace(number, Fid { used, ..fid })?;
        done()
    }

    /// Nobody else has a lock: the guest's kernel has asked its own processes.
    fn getlock(&self, fields: &mut Fields<'_>) -> Result<Done> {
        let (_fid, _kind) = (self.fid(fields)?, fields.u8()?);
        let (start, length, process) = (fields.u64()?, fields.u64()?, fields.u32()?);
        let client = fields.string()?;
        let answer = Answer::new().u8(UNLOCKED).u64(start).u64(length).u32(process);
        Ok(Done::of(answer.string(client.as_bytes())))
    }
}

impl NewAttribute {
    /// The next part of it, which comes in order.
    fn write(&self, offset: u64, size: usize, message: &mut dyn Message) -> Result<usize> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = value.len().checked_add(size).is_some_and(|end| end <= self.size);
        if offset != value.len() as u64 || !fits {
            return Err(Errno::INVAL);
        }
        let mut part = vec![0; size];
        message.take(&mut part).map_err(|_| Errno::FAULT)?;
        value.extend(part);
        Ok(size)
    }
}

/// Bytes of what identifies a file.
const QID: usize = 13;

impl Session {
    fn qid(&self, stat: &Stat) -> [u8; QID] {
        // Another version whenever the data may be other ones.
        let changed = stat
            .st_mtime
            .unsigned_abs()
            .wrapping_mul(1_000_000_000)
            .wrapping_add(stat.st_mtime_nsec);
        let [a, b, c, d, e, f, g, h] = changed.to_le_bytes();
        let version = u32::from_le_bytes([a, b, c, d]) ^ u32::from_le_bytes([e, f, g, h]);
        self.qid_of(
            FileType::from_raw_mode(stat.st_mode),
            version,
            (stat.st_dev, stat.st_ino),
        )
    }

    /// Type, version and number. The protocol has one number for a file: those of other devices than the folder's are mixed
    /// with the device's.
    fn qid_of(&self, file: FileType, version: u32, (dev, ino): (u64, u64)) -> [u8; QID] {
        let kind = match file {
            FileType::Directory => 0x80,
            FileType::Symlink => 0x02,
            _ => 0,
        };
        let other = dev ^ self.folder.root().key.0;
        let number = ino ^ other.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let [a, b, c, d] = version.to_le_bytes();
        let [e, f, g, h, i, j, k, l] = number.to_le_bytes();
        [kind, a, b, c, d, e, f, g, h, i, j, k, l]
    }
}

fn walked(qids: &[[u8; QID]]) -> Done {
    let count = u16::try_from(qids.len()).unwrap_or(0);
    Done::of(Answer::new().u16(count).bytes(qids.as_flattened()))
}
