//! Tests of the server, as a guest's kernel.

use std::ffi::CString;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;
use test_kit::Bytes;
use zerocopy::FromBytes;
use zerocopy::Immutable;

use super::*;
use crate::fuse::wire;
use crate::fuse::wire::ROOT;
use crate::fuse::wire::fattr;
use crate::fuse::wire::opcode;

const O_WRONLY: u32 = 1;
const O_RDWR: u32 = 2;
const O_EXCL: u32 = 0o200;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;

/// A guest that has mounted a folder.
struct Guest {
    dir: TempDir,
    server: FuseServer,
    uid: u32,
    gid: u32,
}

type Reply = Result<Vec<u8>, Errno>;

fn guest_with(config: FuseConfig, read_only: bool) -> Guest {
    let dir = TempDir::new().unwrap();
    // As wide as /tmp, or other users get nowhere.
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let server = FuseServer::new(Folder::open(dir.path(), read_only).unwrap(), config);
    let (uid, gid) = (0, 0);
    let guest = Guest { dir, server, uid, gid };
    guest.init().unwrap();
    guest
}

fn guest() -> Guest {
    guest_with(FuseConfig::default(), false)
}

fn value<T: FromBytes + Immutable>(bytes: &[u8]) -> T {
    T::read_from_prefix(bytes).unwrap().0
}

fn c(name: &str) -> Vec<u8> {
    CString::new(name).unwrap().into_bytes_with_nul()
}

impl Guest {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn init(&self) -> Reply {
        let init = wire::InitIn {
            major: 7,
            minor: 38,
            max_readahead: 128 << 10,
            flags: u32::MAX,
        };
        self.ask(opcode::INIT, 0, &[init.as_bytes()])
    }

    fn ask(&self, opcode: u32, nodeid: u64, parts: &[&[u8]]) -> Reply {
        self.ask_for(opcode, nodeid, parts, 2 << 20)
    }

    fn ask_for(&self, opcode: u32, nodeid: u64, parts: &[&[u8]], room: usize) -> Reply {
        let body = parts.concat();
        let header = InHeader {
            len: (IN_HEADER + body.len()) as u32,
            opcode,
            unique: 42,
            nodeid,
            uid: self.uid,
            gid: self.gid,
            ..Default::default()
        };
        let mut message = Bytes::new([header.as_bytes(), &body].concat(), OUT_HEADER + room);
        let len = self.server.answer(&mut message);
        let out: wire::OutHeader = value(&message.answer);
        assert_eq!((out.len as usize, out.unique), (len, 42));
        match out.error {
            0 => Ok(message.answer[OUT_HEADER..len].to_vec()),
            error => Err(Errno::from_raw_os_error(-error)),
        }
    }

    fn lookup(&self, parent: u64, name: &str) -> Result<wire::EntryOut, Errno> {
        self.ask(opcode::LOOKUP, parent, &[&c(name)]).map(|bytes| value(&bytes))
    }

    /// What has no answer.
    fn forget(&self, nodeid: u64, lookups: u64) {
        let header = InHeader {
            len: 48,
            opcode: opcode::FORGET,
            nodeid,
            ..Default::default()
        };
        let mut message = Bytes::new([header.as_bytes(), lookups.as_bytes()].concat(), 0);
        assert_eq!(self.server.answer(&mut message), 0);
    }

    fn open(&self, node: u64, flags: u32) -> Result<u64, Errno> {
        let open = wire::OpenIn { flags, open_flags: 0 };
        let bytes = self.ask(opcode::OPEN, node, &[open.as_bytes()])?;
        Ok(value::<wire::OpenOut>(&bytes).fh)
    }

    fn create(&self, parent: u64, name: &str, flags: u32, mode: u32) -> Result<(wire::EntryOut, u64), Errno> {
        let create = wire::CreateIn {
            flags,
            mode,
            ..Default::default()
        };
        let bytes = self.ask(opcode::CREATE, parent, &[create.as_bytes(), &c(name)])?;
        let open: wire::OpenOut = value(&bytes[size_of::<wire::EntryOut>()..]);
        Ok((value(&bytes), open.fh))
    }

    fn mkdir(&self, parent: u64, name: &str, mode: u32) -> Result<wire::EntryOut, Errno> {
        let mkdir = wire::MkdirIn { mode, umask: 0 };
        let bytes = self.ask(opcode::MKDIR, parent, &[mkdir.as_bytes(), &c(name)])?;
        Ok(value(&bytes))
    }

    fn read(&self, fh: u64, offset: u64, size: u32) -> Reply {
        let read = wire::ReadIn {
            fh,
            offset,
            size,
            ..Default::default()
        };
        self.ask(opcode::READ, 0, &[read.as_bytes()])
    }

    fn write(&self, fh: u64, offset: u64, data: &[u8], (flags, write_flags): (u32, u32)) -> Result<u32, Errno> {
        let write = wire::WriteIn {
            fh,
            offset,
            size: data.len() as u32,
            write_flags,
            flags,
            ..Default::default()
        };
        let bytes = self.ask(opcode::WRITE, 0, &[write.as_bytes(), data])?;
        Ok(value::<wire::WriteOut>(&bytes).size)
    }

    fn setattr(&self, node: u64, changes: wire::SetattrIn) -> Result<wire::Attr, Errno> {
        let bytes = self.ask(opcode::SETATTR, node, &[changes.as_bytes()])?;
        Ok(value::<wire::AttrOut>(&bytes).attr)
    }

    fn getattr(&self, node: u64) -> Result<wire::Attr, Errno> {
        let bytes = self.ask(opcode::GETATTR, node, &[wire::GetattrIn::default().as_bytes()])?;
        Ok(value::<wire::AttrOut>(&bytes).attr)
    }

    fn rename(&self, (from, old): (u64, &str), (newdir, new): (u64, &str), flags: u32) -> Reply {
        let to = wire::Rename2In {
            newdir,
            flags,
            padding: 0,
        };
        self.ask(opcode::RENAME2, from, &[to.as_bytes(), &c(old), &c(new)])
    }

    fn opendir(&self, node: u64) -> u64 {
        let bytes = self.ask(opcode::OPENDIR, node, &[&[0; 8]]).unwrap();
        value::<wire::OpenOut>(&bytes).fh
    }

    /// Names, each with where the next one is.
    fn readdir(&self, fh: u64, offset: u64, size: u32) -> Vec<(String, u64)> {
        let read = wire::ReadIn {
            fh,
            offset,
            size,
            ..Default::default()
        };
        let bytes = self.ask(opcode::READDIR, ROOT, &[read.as_bytes()]).unwrap();
        assert!(bytes.len() <= size as usize);
        let (mut rest, mut names) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let dirent: wire::Dirent = value(rest);
            let name = &rest[24..24 + dirent.namelen as usize];
            names.push((String::from_utf8(name.to_vec()).unwrap(), dirent.off));
            rest = &rest[(24 + name.len()).next_multiple_of(8)..];
        }
        names
    }

    fn as_user<T>(&mut self, uid: u32, gid: u32, f: impl FnOnce(&Self) -> T) -> T {
        (self.uid, self.gid) = (uid, gid);
        let result = f(self);
        (self.uid, self.gid) = (0, 0);
        result
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn both_sides_agree_on_what_both_know() {
    let guest = guest();
    let out: wire::InitOut = value(&guest.init().unwrap());
    assert_eq!(
        (out.major, out.minor, out.max_write, out.max_pages),
        (7, 37, 1 << 20, 256)
    );
    assert_eq!(out.flags & wire::init::WRITEBACK_CACHE, 0);
    let init = wire::InitIn {
        major: 8,
        minor: 0,
        ..Default::default()
    };
    let newer: wire::InitOut = value(&guest.ask(opcode::INIT, 0, &[init.as_bytes()]).unwrap());
    assert_eq!(newer.major, 7);
    // Nothing was agreed upon.
    assert_eq!(guest.lookup(ROOT, "a").unwrap_err(), Errno::IO);
    let init = wire::InitIn {
        major: 7,
        minor: 12,
        ..init
    };
    assert_eq!(guest.ask(opcode::INIT, 0, &[init.as_bytes()]), Err(Errno::PROTO));
}

#[test]
fn names_that_lead_out_are_refused_everywhere() {
    let guest = guest();
    std::fs::create_dir(guest.path("d")).unwrap();
    let d = guest.lookup(ROOT, "d").unwrap().nodeid;
    for name in ["..", ".", "", "d/..", "../x", "/etc", "a/b"] {
        assert_eq!(guest.lookup(d, name).unwrap_err(), Errno::INVAL, "{name}");
        assert_eq!(
            guest.create(d, name, O_RDWR, 0o600).unwrap_err(),
            Errno::INVAL,
            "{name}"
        );
        assert_eq!(guest.mkdir(d, name, 0o700).unwrap_err(), Errno::INVAL, "{name}");
        for opcode in [opcode::UNLINK, opcode::RMDIR] {
            assert_eq!(guest.ask(opcode, d, &[&c(name)]), Err(Errno::INVAL), "{name}");
        }
        let mknod = wire::MknodIn {
            mode: 0o100_600,
            ..Default::default()
        };
        let made = guest.ask(opcode::MKNOD, d, &[mknod.as_bytes(), &c(name)]);
        assert_eq!(made, Err(Errno::INVAL), "{name}");
        let linked = guest.ask(opcode::SYMLINK, d, &[&c(name), &c("x")]);
        assert_eq!(linked, Err(Errno::INVAL), "{name}");
        assert_eq!(guest.rename((ROOT, "d"), (ROOT, name), 0), Err(Errno::INVAL), "{name}");
        assert_eq!(guest.rename((ROOT, name), (ROOT, "e"), 0), Err(Errno::INVAL), "{name}");
    }
}

#[test]
fn links_are_never_followed_on_the_host() {
    let guest = guest();
    let outside = TempDir::new().unwrap();
    std::fs::write(outside.path().join("secret"), "x").unwrap();
    symlink(outside.path(), guest.path("dir")).unwrap();
    symlink(outside.path().join("secret"), guest.path("file")).unwrap();
    symlink("/proc/self/root", guest.path("root")).unwrap();
    for name in ["dir", "root"] {
        let link = guest.lookup(ROOT, name).unwrap();
        assert_eq!(link.attr.mode & 0o170_000, 0o120_000);
        assert_eq!(guest.lookup(link.nodeid, "secret").unwrap_err(), Errno::NOTDIR);
        assert_eq!(guest.ask(opcode::OPENDIR, link.nodeid, &[&[0; 8]]), Err(Errno::NOTDIR));
        assert_eq!(guest.mkdir(link.nodeid, "x", 0o700).unwrap_err(), Errno::NOTDIR);
    }
    let file = guest.lookup(ROOT, "file").unwrap().nodeid;
    assert_eq!(guest.open(file, 0).unwrap_err(), Errno::LOOP);
    let target = guest.ask(opcode::READLINK, file, &[]).unwrap();
    assert_eq!(target, outside.path().join("secret").as_os_str().as_encoded_bytes());
    let size = wire::SetattrIn {
        valid: fattr::SIZE,
        ..Default::default()
    };
    assert_eq!(guest.setattr(file, size).unwrap_err(), Errno::LOOP);
    // A new file of that name does not go where the link leads.
    let (entry, _) = guest.create(ROOT, "new", O_RDWR, 0o600).unwrap();
    assert_ne!(entry.nodeid, file);
    assert_eq!(
        guest.create(ROOT, "file", O_RDWR | O_TRUNC, 0o600).unwrap_err(),
        Errno::LOOP
    );
    // A directory that was replaced by a link while the guest knew it stays the directory.
    std::fs::create_dir(guest.path("swap")).unwrap();
    let swap = guest.lookup(ROOT, "swap").unwrap().nodeid;
    std::fs::rename(guest.path("swap"), guest.path("was")).unwrap();
    symlink(outside.path(), guest.path("swap")).unwrap();
    guest.mkdir(swap, "inside", 0o700).unwrap();
    assert!(guest.path("was/inside").is_dir());
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn devices_and_pipes_are_not_opened_on_the_host() {
    let guest = guest();
    let mknod = wire::MknodIn {
        mode: 0o010_600,
        ..Default::default()
    };
    let bytes = guest.ask(opcode::MKNOD, ROOT, &[mknod.as_bytes(), &c("pipe")]).unwrap();
    let pipe: wire::EntryOut = value(&bytes);
    assert!(std::fs::metadata(guest.path("pipe")).unwrap().file_type().is_fifo());
    for flags in [0, O_WRONLY, O_RDWR] {
        assert_eq!(guest.open(pipe.nodeid, flags).unwrap_err(), Errno::NXIO);
    }
    if !is_root() {
        return;
    }
    let mknod = wire::MknodIn {
        mode: 0o020_666,
        rdev: 1 << 8 | 3,
        ..Default::default()
    };
    let bytes = guest.ask(opcode::MKNOD, ROOT, &[mknod.as_bytes(), &c("null")]).unwrap();
    let null: wire::EntryOut = value(&bytes);
    assert_eq!(null.attr.rdev, 1 << 8 | 3);
    assert_eq!(guest.open(null.nodeid, 0).unwrap_err(), Errno::NXIO);
}

#[test]
fn data_are_written_and_read_at_any_place() {
    let guest = guest();
    let (entry, fh) = guest.create(ROOT, "f", O_RDWR | O_EXCL, 0o640).unwrap();
    let data: Vec<u8> = (0..1u32 << 20).map(|n| (n % 251) as u8).collect();
    assert_eq!(guest.write(fh, 5, &data, (O_RDWR, 0)), Ok(1 << 20));
    assert_eq!(guest.getattr(entry.nodeid).unwrap().size, 5 + (1 << 20));
    assert_eq!(guest.read(fh, 5, 1 << 20), Ok(data.clone()));
    assert_eq!(guest.read(fh, 1 << 20, 4096).unwrap(), data[(1 << 20) - 5..]);
    assert_eq!(guest.read(fh, 9 << 20, 4096).unwrap(), []);
    assert_eq!(
        guest.create(ROOT, "f", O_RDWR | O_EXCL, 0o640).unwrap_err(),
        Errno::EXIST
    );
    // More than was agreed upon, and more than came.
    let write = wire::WriteIn {
        fh,
        size: 9,
        ..Default::default()
    };
    assert_eq!(
        guest.ask(opcode::WRITE, 0, &[write.as_bytes(), b"short"]),
        Err(Errno::INVAL)
    );
    let release = wire::ReleaseIn {
        fh,
        ..Default::default()
    };
    assert_eq!(
        guest.ask(opcode::RELEASE, entry.nodeid, &[release.as_bytes()]),
        Ok(Vec::new())
    );
    assert_eq!(guest.read(fh, 0, 1), Err(Errno::BADF));
}

#[test]
fn who_appends_meets_the_end_of_the_file_on_the_host() {
    let guest = guest();
    let (_, fh) = guest.create(ROOT, "log", O_WRONLY | O_APPEND, 0o600).unwrap();
    std::fs::write(guest.path("log"), "host").unwrap();
    // The guest believes that the file is empty.
    assert_eq!(guest.write(fh, 0, b"guest", (O_WRONLY | O_APPEND, 0)), Ok(5));
    assert_eq!(std::fs::read(guest.path("log")).unwrap(), b"hostguest");
    // What comes out of its cache has its place, by whichever handle.
    let cached = wire::WRITE_CACHE;
    assert_eq!(guest.write(fh, 0, b"H", (O_WRONLY | O_APPEND, cached)), Ok(1));
    assert_eq!(std::fs::read(guest.path("log")).unwrap(), b"Hostguest");
}

#[test]
fn removed_files_live_on_while_they_are_open() {
    let guest = guest();
    let (entry, fh) = guest.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    guest.write(fh, 0, b"alive", (O_RDWR, 0)).unwrap();
    guest.ask(opcode::UNLINK, ROOT, &[&c("f")]).unwrap();
    assert_eq!(guest.lookup(ROOT, "f").unwrap_err(), Errno::NOENT);
    assert_eq!(guest.read(fh, 0, 9).unwrap(), b"alive");
    let attr = guest.getattr(entry.nodeid).unwrap();
    assert_eq!((attr.nlink, attr.size), (0, 5));
    // Another file of that name is another file, even if it got the old one's number on the host.
    let (other, _) = guest.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    assert_ne!(other.nodeid, entry.nodeid);
}

#[test]
fn names_move_between_directories() {
    let guest = guest();
    let (a, b) = (
        guest.mkdir(ROOT, "a", 0o755).unwrap(),
        guest.mkdir(ROOT, "b", 0o755).unwrap(),
    );
    let (file, _) = guest.create(a.nodeid, "f", O_RDWR, 0o600).unwrap();
    guest.rename((a.nodeid, "f"), (b.nodeid, "g"), 0).unwrap();
    let found = guest.lookup(b.nodeid, "g").unwrap();
    assert_eq!(found.nodeid, file.nodeid);
    guest.create(a.nodeid, "f", O_RDWR, 0o600).unwrap();
    assert_eq!(guest.rename((a.nodeid, "f"), (b.nodeid, "g"), 1), Err(Errno::EXIST));
    guest.rename((a.nodeid, "f"), (b.nodeid, "g"), 2).unwrap();
    assert_eq!(guest.lookup(a.nodeid, "f").unwrap().nodeid, file.nodeid);
    assert_eq!(guest.rename((ROOT, "a"), (a.nodeid, "x"), 0), Err(Errno::INVAL));
    let link = wire::LinkIn { oldnodeid: file.nodeid };
    let bytes = guest.ask(opcode::LINK, b.nodeid, &[link.as_bytes(), &c("h")]).unwrap();
    let linked: wire::EntryOut = value(&bytes);
    assert_eq!((linked.nodeid, linked.attr.nlink), (file.nodeid, 2));
}

#[test]
fn numbers_live_until_they_are_forgotten() {
    let guest = guest();
    std::fs::write(guest.path("f"), "").unwrap();
    let first = guest.lookup(ROOT, "f").unwrap();
    let again = guest.lookup(ROOT, "f").unwrap();
    assert_eq!(first.nodeid, again.nodeid);
    guest.forget(first.nodeid, 1);
    assert!(guest.getattr(first.nodeid).is_ok());
    guest.forget(first.nodeid, 1);
    assert_eq!(guest.getattr(first.nodeid).unwrap_err(), Errno::STALE);
    assert_ne!(guest.lookup(ROOT, "f").unwrap().nodeid, first.nodeid);
    guest.forget(ROOT, u64::MAX);
    assert!(guest.getattr(ROOT).is_ok());
}

#[test]
fn a_big_directory_is_read_to_its_end_while_entries_go() {
    let guest = guest();
    for number in 0..2000 {
        std::fs::write(guest.path(&format!("file-with-a-long-name-{number:05}")), "").unwrap();
    }
    let fh = guest.opendir(ROOT);
    let (mut offset, mut seen) = (0, std::collections::BTreeSet::new());
    loop {
        let names = guest.readdir(fh, offset, 1024);
        let Some((_, last)) = names.last() else { break };
        offset = *last;
        for (name, _) in names.into_iter().filter(|(name, _)| name.starts_with("file")) {
            // What was seen goes away: places of the rest stay what they are.
            std::fs::remove_file(guest.path(&name)).unwrap();
            assert!(seen.insert(name));
        }
    }
    assert_eq!(seen.len(), 2000);
    assert_eq!(guest.readdir(fh, 0, 4096).len(), 2);
}

#[test]
fn entries_come_with_what_is_known_of_them() {
    let guest = guest();
    std::fs::write(guest.path("f"), "12345").unwrap();
    let read = wire::ReadIn {
        fh: guest.opendir(ROOT),
        size: 4096,
        ..Default::default()
    };
    let bytes = guest.ask(opcode::READDIRPLUS, ROOT, &[read.as_bytes()]).unwrap();
    let (mut rest, mut known) = (bytes.as_slice(), Vec::new());
    while !rest.is_empty() {
        let (entry, dirent): (wire::EntryOut, wire::Dirent) = (value(rest), value(&rest[128..]));
        let len = dirent.namelen as usize;
        known.push((rest[152..152 + len].to_vec(), entry.nodeid, entry.attr.size));
        rest = &rest[128 + (24 + len).next_multiple_of(8)..];
    }
    known.sort();
    let file = guest.lookup(ROOT, "f").unwrap();
    assert_eq!(known[2], (b"f".to_vec(), file.nodeid, 5));
    // The directory itself and its parent are not looked up: they would count.
    assert_eq!(known[0].1, 0);
    assert_eq!(known[1].1, 0);
    guest.forget(file.nodeid, 2);
    assert_eq!(guest.getattr(file.nodeid).unwrap_err(), Errno::STALE);
}

#[test]
fn holes_are_found_and_made() {
    let guest = guest();
    let (entry, fh) = guest.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    let seek = |offset, whence| {
        let seek = wire::LseekIn {
            fh,
            offset,
            whence,
            padding: 0,
        };
        let bytes = guest.ask(opcode::LSEEK, entry.nodeid, &[seek.as_bytes()])?;
        Ok(value::<wire::LseekOut>(&bytes).offset)
    };
    guest.write(fh, 8 << 20, b"x", (O_RDWR, 0)).unwrap();
    let data = seek(0, 3).unwrap();
    // A file system without holes has data from the start.
    assert!(data == 0 || data == 8 << 20, "{data}");
    assert_eq!(seek(9 << 20, 3), Err(Errno::NXIO));
    assert_eq!(seek(8 << 20, 4), Ok((8 << 20) + 1));
    assert_eq!(seek(0, 0), Err(Errno::INVAL));
    let space = wire::FallocateIn {
        fh,
        offset: 0,
        length: 4096,
        mode: 1,
        padding: 0,
    };
    guest.ask(opcode::FALLOCATE, entry.nodeid, &[space.as_bytes()]).unwrap();
    assert_eq!(guest.getattr(entry.nodeid).unwrap().size, (8 << 20) + 1);
    let copy = wire::CopyFileRangeIn {
        fh_in: fh,
        off_in: 8 << 20,
        nodeid_out: entry.nodeid,
        fh_out: fh,
        off_out: 0,
        len: 1,
        flags: 0,
    };
    guest
        .ask(opcode::COPY_FILE_RANGE, entry.nodeid, &[copy.as_bytes()])
        .unwrap();
    assert_eq!(guest.read(fh, 0, 1).unwrap(), b"x");
}

#[test]
fn attributes_by_name_are_kept_but_for_lists() {
    let guest = guest();
    let (entry, _) = guest.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    let set = |name: &str, data: &[u8], flags| {
        let size = data.len() as u32;
        let set = wire::SetxattrIn { size, flags };
        guest.ask(opcode::SETXATTR, entry.nodeid, &[set.as_bytes(), &c(name), data])
    };
    let get = |name: &str, size| {
        let get = wire::GetxattrIn { size, padding: 0 };
        guest.ask(opcode::GETXATTR, entry.nodeid, &[get.as_bytes(), &c(name)])
    };
    if set("user.a", b"value", 0) == Err(Errno::OPNOTSUPP) {
        eprintln!("skipped: the file system of the temporary directory has no extended attributes");
        return;
    }
    assert_eq!(get("user.a", 0).unwrap(), [5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(get("user.a", 5).unwrap(), b"value");
    assert_eq!(get("user.a", 4), Err(Errno::RANGE));
    assert_eq!(get("user.b", 9), Err(Errno::NODATA));
    assert_eq!(set("user.a", b"", 1), Err(Errno::EXIST));
    assert_eq!(set("system.posix_acl_access", b"x", 0), Err(Errno::OPNOTSUPP));
    let list = wire::GetxattrIn { size: 100, padding: 0 };
    let names = guest.ask(opcode::LISTXATTR, entry.nodeid, &[list.as_bytes()]).unwrap();
    assert!(names.starts_with(b"user.a\0"));
    guest.ask(opcode::REMOVEXATTR, entry.nodeid, &[&c("user.a")]).unwrap();
    assert_eq!(get("user.a", 9), Err(Errno::NODATA));
}

#[test]
fn what_is_made_belongs_to_who_made_it() {
    if !is_root() {
        return;
    }
    let mut guest = guest();
    // A directory of a group, in which new things are of that group, too.
    let team = guest.mkdir(ROOT, "team", 0o777).unwrap();
    std::os::unix::fs::chown(guest.path("team"), None, Some(77)).unwrap();
    std::fs::set_permissions(guest.path("team"), PermissionsExt::from_mode(0o2777)).unwrap();
    // The host's own mask (022 or more, as a rule) has no say.
    let (file, _) = guest.as_user(1000, 100, |guest| guest.create(ROOT, "f", O_RDWR, 0o666).unwrap());
    let dir = guest.as_user(1000, 100, |guest| guest.mkdir(team.nodeid, "d", 0o755).unwrap());
    assert_eq!((file.attr.uid, file.attr.gid, file.attr.mode), (1000, 100, 0o100_666));
    assert_eq!((dir.attr.uid, dir.attr.gid, dir.attr.mode), (1000, 77, 0o042_755));
    // The thread is root again.
    assert!(rustix::process::geteuid().is_root());
    let (file, _) = guest.create(ROOT, "g", O_RDWR, 0o600).unwrap();
    assert_eq!((file.attr.uid, file.attr.gid), (0, 0));
    // Supplementary groups are the guest's business: its kernel allowed this.
    std::fs::create_dir(guest.path("closed")).unwrap();
    std::fs::set_permissions(guest.path("closed"), PermissionsExt::from_mode(0o770)).unwrap();
    let closed = guest.lookup(ROOT, "closed").unwrap().nodeid;
    guest.as_user(1000, 100, |guest| guest.mkdir(closed, "mine", 0o700).unwrap());
    assert_eq!(std::fs::metadata(guest.path("closed/mine")).unwrap().uid(), 1000);
}

#[test]
fn set_user_id_goes_when_a_user_writes() {
    let guest = guest();
    let (entry, fh) = guest.create(ROOT, "f", O_RDWR, 0o755).unwrap();
    let mode = |bits| wire::SetattrIn {
        valid: fattr::MODE,
        mode: bits,
        ..Default::default()
    };
    let set = || assert_eq!(guest.setattr(entry.nodeid, mode(0o6755)).unwrap().mode, 0o106_755);
    let bits = || guest.getattr(entry.nodeid).unwrap().mode;
    set();
    if is_root() {
        // Root keeps them.
        guest.write(fh, 0, b"x", (O_RDWR, 0)).unwrap();
        assert_eq!(bits(), 0o106_755);
    }
    guest.write(fh, 0, b"x", (O_RDWR, wire::WRITE_KILL_SUIDGID)).unwrap();
    assert_eq!(bits(), 0o100_755);
    set();
    let size = wire::SetattrIn {
        valid: fattr::SIZE | fattr::KILL_SUIDGID,
        ..Default::default()
    };
    assert_eq!(guest.setattr(entry.nodeid, size).unwrap().mode, 0o100_755);
    set();
    let open = wire::OpenIn {
        flags: O_WRONLY | O_TRUNC,
        open_flags: wire::OPEN_KILL_SUIDGID,
    };
    guest.ask(opcode::OPEN, entry.nodeid, &[open.as_bytes()]).unwrap();
    assert_eq!(bits(), 0o100_755);
}

#[test]
fn times_are_set_and_left_alone() {
    let guest = guest();
    let (entry, _) = guest.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    let before = guest.getattr(entry.nodeid).unwrap();
    let times = wire::SetattrIn {
        valid: fattr::MTIME,
        mtime: 1_000_000_000,
        mtimensec: 5,
        ..Default::default()
    };
    let after = guest.setattr(entry.nodeid, times).unwrap();
    assert_eq!((after.mtime, after.mtimensec), (1_000_000_000, 5));
    assert_eq!((after.atime, after.atimensec), (before.atime, before.atimensec));
    let wrong = wire::SetattrIn {
        mtimensec: 1_000_000_000,
        ..times
    };
    assert_eq!(guest.setattr(entry.nodeid, wrong).unwrap_err(), Errno::INVAL);
}

#[test]
fn a_protected_folder_stays_as_it_is() {
    let dir = guest();
    std::fs::write(dir.path("f"), "x").unwrap();
    let server = FuseServer::new(Folder::open(dir.dir.path(), true).unwrap(), FuseConfig::default());
    let guest = Guest { server, ..dir };
    guest.init().unwrap();
    let file = guest.lookup(ROOT, "f").unwrap().nodeid;
    let fh = guest.open(file, 0).unwrap();
    assert_eq!(guest.read(fh, 0, 9).unwrap(), b"x");
    assert_eq!(guest.write(fh, 0, b"y", (O_RDWR, 0)), Err(Errno::ROFS));
    for flags in [O_WRONLY, O_RDWR, O_TRUNC] {
        assert_eq!(guest.open(file, flags).unwrap_err(), Errno::ROFS);
    }
    assert_eq!(guest.create(ROOT, "g", O_RDWR, 0o600).unwrap_err(), Errno::ROFS);
    assert_eq!(guest.mkdir(ROOT, "d", 0o700).unwrap_err(), Errno::ROFS);
    assert_eq!(guest.ask(opcode::UNLINK, ROOT, &[&c("f")]), Err(Errno::ROFS));
    assert_eq!(guest.rename((ROOT, "f"), (ROOT, "g"), 0), Err(Errno::ROFS));
    assert_eq!(
        guest.setattr(file, wire::SetattrIn::default()).unwrap_err(),
        Errno::ROFS
    );
    assert_eq!(std::fs::read(guest.path("f")).unwrap(), b"x");
}

#[test]
fn what_is_open_is_open_again_after_a_restore() {
    let guest = guest();
    std::fs::create_dir(guest.path("d")).unwrap();
    let d = guest.lookup(ROOT, "d").unwrap().nodeid;
    let (file, fh) = guest.create(d, "f", O_RDWR, 0o600).unwrap();
    guest.write(fh, 0, b"kept", (O_RDWR, 0)).unwrap();
    symlink("f", guest.path("d/l")).unwrap();
    let link = guest.lookup(d, "l").unwrap().nodeid;
    let (gone, gone_fh) = guest.create(ROOT, "gone", O_RDWR, 0o600).unwrap();
    guest.ask(opcode::UNLINK, ROOT, &[&c("gone")]).unwrap();
    let (other, other_fh) = guest.create(ROOT, "other", O_RDWR, 0o600).unwrap();
    // Moved since it was found: the path is where it is now.
    guest.rename((d, "f"), (ROOT, "moved"), 0).unwrap();
    let listed = guest.opendir(ROOT);

    let state = guest.server.save();
    std::fs::remove_file(guest.path("other")).unwrap();
    std::fs::create_dir(guest.path("other")).unwrap();
    let folder = Folder::open(guest.dir.path(), false).unwrap();
    let server = FuseServer::new(folder, FuseConfig::default());
    server.restore(state.clone()).unwrap();
    let guest = Guest { server, ..guest };
    assert_eq!(guest.read(fh, 0, 9).unwrap(), b"kept");
    assert_eq!(guest.getattr(file.nodeid).unwrap().size, 4);
    assert_eq!(guest.lookup(ROOT, "moved").unwrap().nodeid, file.nodeid);
    assert_eq!(guest.ask(opcode::READLINK, link, &[]).unwrap(), b"f");
    assert!(!guest.readdir(listed, 0, 4096).is_empty());
    // What is not there any more, or is something else now, is stale; nothing else is.
    for (node, fh) in [(gone.nodeid, gone_fh), (other.nodeid, other_fh)] {
        assert_eq!(guest.getattr(node).unwrap_err(), Errno::STALE);
        assert_eq!(guest.read(fh, 0, 1), Err(Errno::STALE));
    }
    assert_eq!(
        guest.create(ROOT, "new", O_RDWR, 0o600).unwrap().0.nodeid,
        state.next_node
    );
    // A state that says what cannot be is refused.
    let damaged = FuseState {
        next_node: 2,
        ..state.clone()
    };
    assert!(guest.server.restore(damaged).is_err());
    let mut outside = state;
    outside.nodes[1].path = Some(b"../../etc".to_vec());
    guest.server.restore(outside.clone()).unwrap();
    assert_eq!(guest.getattr(outside.nodes[1].number).unwrap_err(), Errno::STALE);
}

#[test]
fn files_without_a_name_get_one() {
    let guest = guest();
    let create = wire::CreateIn {
        flags: O_RDWR,
        mode: 0o600,
        ..Default::default()
    };
    let bytes = match guest.ask(opcode::TMPFILE, ROOT, &[create.as_bytes(), &c("")]) {
        Err(Errno::OPNOTSUPP) => {
            eprintln!("skipped: the file system of the temporary directory has no files without names");
            return;
        }
        bytes => bytes.unwrap(),
    };
    let (entry, open): (wire::EntryOut, wire::OpenOut) = (value(&bytes), value(&bytes[128..]));
    guest.write(open.fh, 0, b"there", (O_RDWR, 0)).unwrap();
    assert_eq!(std::fs::read_dir(guest.dir.path()).unwrap().count(), 0);
    let link = wire::LinkIn {
        oldnodeid: entry.nodeid,
    };
    guest.ask(opcode::LINK, ROOT, &[link.as_bytes(), &c("named")]).unwrap();
    assert_eq!(std::fs::read(guest.path("named")).unwrap(), b"there");
}

#[test]
fn messages_of_no_shape_get_an_error_or_nothing() {
    let guest = guest();
    let whole = InHeader {
        len: 44,
        opcode: opcode::LOOKUP,
        nodeid: ROOT,
        ..Default::default()
    };
    for len in [0, 39, 45, u32::MAX] {
        let header = InHeader { len, ..whole };
        let mut message = Bytes::new([header.as_bytes(), b"abc\0"].concat(), 64);
        assert_eq!(guest.server.answer(&mut message), 16, "{len}");
        assert_eq!(value::<wire::OutHeader>(&message.answer).error, -22);
    }
    // No header, and no room for one.
    assert_eq!(guest.server.answer(&mut Bytes::new(vec![0; 39], 64)), 0);
    assert_eq!(guest.server.answer(&mut Bytes::new(whole.as_bytes().to_vec(), 15)), 0);
    // Room for the header, and not for the answer.
    std::fs::write(guest.path("abc"), "").unwrap();
    let mut message = Bytes::new([whole.as_bytes(), b"abc\0"].concat(), 100);
    assert_eq!(guest.server.answer(&mut message), 0);
    let (_, fh) = guest.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    let file = std::fs::File::options().write(true).open(guest.path("f")).unwrap();
    file.write_all_at(b"12345678", 0).unwrap();
    let read = wire::ReadIn {
        fh,
        size: 1 << 30,
        ..Default::default()
    };
    assert_eq!(guest.ask_for(opcode::READ, 0, &[read.as_bytes()], 3).unwrap(), b"123");
}

#[test]
fn nobody_waits_for_a_session_that_is_over() {
    let guest = guest();
    let (entry, fh) = guest.create(ROOT, "f", O_RDWR, 0o600).unwrap();
    guest.ask(opcode::DESTROY, 0, &[]).unwrap();
    assert_eq!(guest.read(fh, 0, 1), Err(Errno::IO));
    guest.init().unwrap();
    assert_eq!(guest.read(fh, 0, 1), Err(Errno::BADF));
    assert_eq!(guest.getattr(entry.nodeid).unwrap_err(), Errno::STALE);
}
