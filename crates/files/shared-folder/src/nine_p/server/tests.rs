//! Tests of the server, as a guest's kernel.

use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use tempfile::TempDir;
use test_kit::Bytes;

use super::*;

const O_RDWR: u32 = 2;
const O_APPEND: u32 = 0o2000;
const O_DIRECTORY: u32 = 0o200_000;
/// The root's number.
const ROOT: u32 = 0;

struct Guest {
    dir: TempDir,
    server: NinePServer,
}

/// Fields of a request.
#[derive(Clone, Default)]
struct Body(Vec<u8>);

impl Body {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn string(self, text: &str) -> Self {
        let mut body = self.u16(text.len() as u16);
        body.0.extend(text.as_bytes());
        body
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

fn body() -> Body {
    Body::default()
}

type Reply = Result<Vec<u8>, Errno>;

fn guest() -> Guest {
    guest_of(false, 0)
}

fn guest_of(read_only: bool, uid: u32) -> Guest {
    let dir = TempDir::new().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let server = NinePServer::new(Folder::open(dir.path(), read_only).unwrap());
    let guest = Guest { dir, server };
    let agreed = guest
        .ask(kind::VERSION, body().u32(1 << 20).string("9P2000.L"))
        .unwrap();
    assert_eq!(agreed, body().u32(MSIZE).string("9P2000.L").0);
    guest.attach(uid).unwrap();
    guest
}

impl Guest {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ask(&self, kind: u8, fields: Body) -> Reply {
        let len = (HEADER + fields.0.len()) as u32;
        let request = [&len.to_le_bytes(), [kind, 5, 0].as_slice(), &fields.0].concat();
        let mut message = Bytes::new(request, 1 << 20);
        let len = self.server.answer(&mut message);
        let (header, rest) = message.answer.split_first_chunk::<HEADER>().unwrap();
        assert_eq!(u32::from_le_bytes(*header.first_chunk().unwrap()) as usize, len);
        assert_eq!(header[5..], [5, 0]);
        let rest = rest[..len - HEADER].to_vec();
        match header[4] {
            kind::LERROR => Err(Errno::from_raw_os_error(Fields::new(&rest).u32().unwrap() as i32)),
            answer => {
                assert_eq!(answer, kind + 1);
                Ok(rest)
            }
        }
    }

    fn attach(&self, uid: u32) -> Reply {
        let names = body().u32(ROOT).u32(u32::MAX).string("user").string("");
        self.ask(kind::ATTACH, names.u32(uid))
    }

    /// How many names were walked.
    fn walk(&self, from: u32, to: u32, names: &[&str]) -> Result<u16, Errno> {
        let fields = body().u32(from).u32(to).u16(names.len() as u16);
        let fields = names.iter().fold(fields, |fields, name| fields.string(name));
        let reply = self.ask(kind::WALK, fields)?;
        Ok(Fields::new(&reply).u16().unwrap())
    }

    fn open(&self, fid: u32, flags: u32) -> Reply {
        self.ask(kind::LOPEN, body().u32(fid).u32(flags))
    }

    /// A new file, with a number for it.
    fn create(&self, fid: u32, name: &str, flags: u32) -> Reply {
        self.walk(ROOT, fid, &[])?;
        let fields = body().u32(fid).string(name).u32(flags).u32(0o640).u32(0);
        self.ask(kind::LCREATE, fields)
    }

    fn write(&self, fid: u32, offset: u64, data: &[u8]) -> Reply {
        let fields = body().u32(fid).u64(offset).u32(data.len() as u32);
        self.ask(kind::WRITE, fields.bytes(data))
    }

    fn read(&self, fid: u32, offset: u64, count: u32) -> Reply {
        let reply = self.ask(kind::READ, body().u32(fid).u64(offset).u32(count))?;
        let mut fields = Fields::new(&reply);
        assert_eq!(fields.u32().unwrap() as usize, fields.0.len());
        Ok(fields.0.to_vec())
    }

    fn clunk(&self, fid: u32) -> Reply {
        self.ask(kind::CLUNK, body().u32(fid))
    }

    fn names(&self, fid: u32) -> Vec<String> {
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let reply = self.ask(kind::READDIR, body().u32(fid).u64(offset).u32(200)).unwrap();
            let mut fields = Fields::new(&reply);
            if fields.u32() == Ok(0) {
                return names;
            }
            while !fields.0.is_empty() {
                fields = Fields::new(&fields.0[13..]);
                offset = fields.u64().unwrap();
                fields.u8().unwrap();
                names.push(fields.string().unwrap().into_string().unwrap());
            }
        }
    }
}

#[test]
fn nothing_goes_before_a_version_is_agreed_upon() {
    let guest = guest();
    let unknown = guest.ask(kind::VERSION, body().u32(8192).string("9P2000.u")).unwrap();
    assert_eq!(unknown, body().u32(8192).string("unknown").0);
    assert_eq!(guest.attach(0), Err(Errno::PROTO));
    assert_eq!(
        guest.ask(kind::VERSION, body().u32(100).string("9P2000.L")),
        Err(Errno::INVAL)
    );
}

#[test]
fn names_that_lead_out_are_refused_everywhere() {
    let guest = guest();
    std::fs::create_dir(guest.path("d")).unwrap();
    assert_eq!(guest.walk(ROOT, 1, &["d"]), Ok(1));
    for name in ["..", ".", "", "../x", "/etc", "d/.."] {
        assert_eq!(guest.walk(1, 2, &[name]), Err(Errno::INVAL), "{name}");
        // The first step is told of, the second is not made.
        assert_eq!(guest.walk(ROOT, 2, &["d", name]), Ok(1));
        assert_eq!(guest.clunk(2), Err(Errno::BADF));
        assert_eq!(guest.create(3, name, O_RDWR), Err(Errno::INVAL), "{name}");
        guest.clunk(3).unwrap();
        let made = guest.ask(kind::MKDIR, body().u32(1).string(name).u32(0o700).u32(0));
        assert_eq!(made, Err(Errno::INVAL), "{name}");
        let made = guest.ask(kind::SYMLINK, body().u32(1).string(name).string("x").u32(0));
        assert_eq!(made, Err(Errno::INVAL), "{name}");
        let gone = guest.ask(kind::UNLINKAT, body().u32(1).string(name).u32(0));
        assert_eq!(gone, Err(Errno::INVAL), "{name}");
        let moved = body().u32(ROOT).string("d").u32(ROOT).string(name);
        assert_eq!(guest.ask(kind::RENAMEAT, moved), Err(Errno::INVAL), "{name}");
    }
}

#[test]
fn links_are_not_followed_and_pipes_not_opened() {
    let guest = guest();
    symlink("/etc", guest.path("link")).unwrap();
    assert_eq!(guest.walk(ROOT, 1, &["link", "passwd"]), Ok(1));
    assert_eq!(guest.walk(ROOT, 1, &["link"]), Ok(1));
    assert_eq!(guest.open(1, 0), Err(Errno::LOOP));
    assert_eq!(guest.ask(kind::READLINK, body().u32(1)), Ok(body().string("/etc").0));
    let pipe = body().u32(ROOT).string("pipe").u32(0o010_600).u32(0).u32(0).u32(0);
    guest.ask(kind::MKNOD, pipe).unwrap();
    assert_eq!(guest.walk(ROOT, 2, &["pipe"]), Ok(1));
    assert_eq!(guest.open(2, O_RDWR), Err(Errno::NXIO));
}

#[test]
fn data_are_written_and_read() {
    let guest = guest();
    guest.create(1, "f", O_RDWR).unwrap();
    let data: Vec<u8> = (0..400_000u32).map(|n| (n % 251) as u8).collect();
    assert_eq!(guest.write(1, 3, &data), Ok(400_000u32.to_le_bytes().to_vec()));
    assert_eq!(guest.read(1, 3, 1 << 20).unwrap(), data);
    assert_eq!(guest.read(1, 500_000, 9).unwrap(), []);
    // More than came, and more than a message has.
    let short = body().u32(1).u64(0).u32(9).bytes(b"short");
    assert_eq!(guest.ask(kind::WRITE, short), Err(Errno::INVAL));
    guest.clunk(1).unwrap();
    assert_eq!(guest.read(1, 0, 1), Err(Errno::BADF));
    guest.walk(ROOT, 1, &["f"]).unwrap();
    assert_eq!(guest.read(1, 0, 1), Err(Errno::BADF));
    guest.open(1, O_RDWR | O_APPEND).unwrap();
    guest.write(1, 0, b"end").unwrap();
    assert_eq!(std::fs::metadata(guest.path("f")).unwrap().len(), 400_006);
    assert_eq!(guest.ask(kind::FSYNC, body().u32(1).u32(0)), Ok(Vec::new()));
}

#[test]
fn directories_are_listed_in_parts() {
    let guest = guest();
    for number in 0..100 {
        std::fs::write(guest.path(&format!("file{number:03}")), "").unwrap();
    }
    guest.walk(ROOT, 1, &[]).unwrap();
    guest.open(1, O_DIRECTORY).unwrap();
    let mut names = guest.names(1);
    names.sort();
    assert_eq!(names.len(), 102);
    assert_eq!((names[0].as_str(), names[101].as_str()), (".", "file099"));
    assert_eq!(guest.read(1, 0, 1), Err(Errno::ISDIR));
}

#[test]
fn what_is_made_belongs_to_who_attached() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let guest = guest_of(false, 1000);
    let made = body().u32(ROOT).string("d").u32(0o755).u32(100);
    guest.ask(kind::MKDIR, made).unwrap();
    let found = std::fs::metadata(guest.path("d")).unwrap();
    assert_eq!((found.uid(), found.gid()), (1000, 100));
    guest.create(1, "f", O_RDWR).unwrap();
    std::fs::set_permissions(guest.path("f"), PermissionsExt::from_mode(0o6755)).unwrap();
    guest.write(1, 0, b"x").unwrap();
    assert_eq!(std::fs::metadata(guest.path("f")).unwrap().mode(), 0o100_755);
}

#[test]
fn attributes_are_changed_as_asked() {
    let guest = guest();
    guest.create(1, "f", O_RDWR).unwrap();
    guest.write(1, 0, b"12345").unwrap();
    // Mode, size and time of modification.
    let fields = body().u32(1).u32(1 | 8 | 0x20 | 0x100).u32(0o604).u32(0).u32(0).u64(3);
    guest.ask(kind::SETATTR, fields.u64(0).u64(0).u64(77).u64(0)).unwrap();
    let reply = guest.ask(kind::GETATTR, body().u32(1).u64(u64::MAX)).unwrap();
    assert_eq!(reply.len(), 8 + 13 + 4 * 3 + 8 * 15);
    let found = std::fs::metadata(guest.path("f")).unwrap();
    assert_eq!((found.mode(), found.len(), found.mtime()), (0o100_604, 3, 77));
    let mut fields = Fields::new(&reply[21..]);
    assert_eq!(fields.u32(), Ok(0o100_604));
}

#[test]
fn extended_attributes_come_in_pieces() {
    let guest = guest();
    guest.create(1, "f", O_RDWR).unwrap();
    guest.walk(ROOT, 2, &["f"]).unwrap();
    let create = |size| body().u32(2).string("user.a").u64(size).u32(0);
    guest.ask(kind::XATTRCREATE, create(5)).unwrap();
    guest.write(2, 0, b"val").unwrap();
    assert_eq!(guest.write(2, 0, b"again"), Err(Errno::INVAL));
    guest.write(2, 3, b"ue").unwrap();
    assert_eq!(guest.write(2, 5, b"more"), Err(Errno::INVAL));
    if guest.clunk(2) == Err(Errno::OPNOTSUPP) {
        eprintln!("skipped: the file system of the temporary directory has no extended attributes");
        return;
    }
    let walk = |number, name| guest.ask(kind::XATTRWALK, body().u32(1).u32(number).string(name));
    assert_eq!(walk(3, "user.a"), Ok(5u64.to_le_bytes().to_vec()));
    assert_eq!(guest.read(3, 1, 99).unwrap(), b"alue");
    walk(4, "").unwrap();
    assert!(guest.read(4, 0, 99).unwrap().starts_with(b"user.a\0"));
    // One that is not there leaves its number free.
    assert_eq!(walk(5, "user.b"), Err(Errno::NODATA));
    // An empty one is removed.
    guest.walk(ROOT, 2, &["f"]).unwrap();
    guest.ask(kind::XATTRCREATE, create(0)).unwrap();
    guest.clunk(2).unwrap();
    assert_eq!(walk(5, "user.a"), Err(Errno::NODATA));
    // Half of one is not set.
    guest.walk(ROOT, 2, &["f"]).unwrap();
    guest.ask(kind::XATTRCREATE, create(5)).unwrap();
    guest.write(2, 0, b"val").unwrap();
    assert_eq!(guest.clunk(2), Err(Errno::INVAL));
    let big = body().u32(1).string("user.b").u64(1 << 40).u32(0);
    assert_eq!(guest.ask(kind::XATTRCREATE, big), Err(Errno::TOOBIG));
}

#[test]
fn a_protected_folder_stays_as_it_is() {
    let guest = guest_of(true, 0);
    std::fs::write(guest.path("f"), "x").unwrap();
    guest.walk(ROOT, 1, &["f"]).unwrap();
    assert_eq!(guest.open(1, O_RDWR), Err(Errno::ROFS));
    guest.open(1, 0).unwrap();
    assert_eq!(guest.read(1, 0, 9).unwrap(), b"x");
    assert_eq!(guest.write(1, 0, b"y"), Err(Errno::ROFS));
    let gone = body().u32(ROOT).string("f").u32(0);
    assert_eq!(guest.ask(kind::UNLINKAT, gone), Err(Errno::ROFS));
    assert_eq!(guest.create(2, "g", O_RDWR), Err(Errno::ROFS));
}

#[test]
fn what_is_open_is_open_again_after_a_restore() {
    let guest = guest();
    guest.create(1, "f", O_RDWR).unwrap();
    guest.write(1, 0, b"kept").unwrap();
    guest.create(2, "gone", O_RDWR).unwrap();
    std::fs::remove_file(guest.path("gone")).unwrap();
    let state = guest.server.save();
    let server = NinePServer::new(Folder::open(guest.dir.path(), false).unwrap());
    server.restore(state.clone()).unwrap();
    let guest = Guest { server, ..guest };
    assert_eq!(guest.read(1, 0, 9).unwrap(), b"kept");
    assert_eq!(guest.read(2, 0, 9), Err(Errno::STALE));
    guest.clunk(2).unwrap();
    assert_eq!(guest.walk(ROOT, 2, &["f"]), Ok(1));
    let twice = NinePState {
        fids: [state.fids.clone(), state.fids.clone()].concat(),
        ..state
    };
    assert!(guest.server.restore(twice).is_err());
}

#[test]
fn messages_of_no_shape_get_an_error_or_nothing() {
    let guest = guest();
    for kind in 0..=255 {
        let reply = guest.ask(kind, body());
        assert!(
            matches!(reply, Err(Errno::INVAL | Errno::OPNOTSUPP)),
            "{kind}: {reply:?}"
        );
    }
    for (len, bytes) in [(6u32, 7), (200, 7), (u32::MAX, 7)] {
        let mut request = len.to_le_bytes().to_vec();
        request.resize(bytes, 0);
        let mut message = Bytes::new(request, 64);
        assert_eq!(guest.server.answer(&mut message), 11);
        assert_eq!(message.answer[4], kind::LERROR);
    }
    assert_eq!(guest.server.answer(&mut Bytes::new(vec![7; 6], 64)), 0);
    let names = vec!["a"; 17];
    assert_eq!(guest.walk(ROOT, 1, &names), Err(Errno::INVAL));
    assert_eq!(guest.walk(9, 1, &[]), Err(Errno::BADF));
    // A number that is in use is not given away.
    guest.walk(ROOT, 1, &[]).unwrap();
    assert_eq!(guest.walk(ROOT, 1, &[]), Err(Errno::BADF));
}

#[test]
fn a_flush_waits_for_what_it_flushes() {
    let guest = guest();
    guest.server.tags.begin(9);
    let flushed = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert_eq!(guest.ask(kind::FLUSH, body().u16(9)), Ok(Vec::new()));
            flushed.store(true, Ordering::SeqCst);
        });
        // A flush of another one, or of itself, waits for nothing.
        assert_eq!(guest.ask(kind::FLUSH, body().u16(5)), Ok(Vec::new()));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!flushed.load(Ordering::SeqCst));
        guest.server.tags.end(9);
    });
    assert!(flushed.load(Ordering::SeqCst));
}
