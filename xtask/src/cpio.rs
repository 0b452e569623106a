//! The cpio archive of an initramfs, "newc" format.
//!
//! Directories, files, symbolic links and character devices are written, all owned by root and all of the same time, so
//! that equal contents make equal archives. Hard links become copies.
//!
//! Spec: Linux Documentation/driver-api/early-userspace/buffer-format.rst.

use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const MAGIC: &str = "070701";
const TRAILER: &[u8] = b"TRAILER!!!";
const ALIGNMENT: u64 = 4;

/// File types in `c_mode`.
mod kind {
    pub(super) const CHARACTER: u32 = 0o020_000;
    pub(super) const DIRECTORY: u32 = 0o040_000;
    pub(super) const FILE: u32 = 0o100_000;
    pub(super) const LINK: u32 = 0o120_000;
    pub(super) const PERMISSIONS: u32 = 0o7777;
}

/// An archive being written.
#[derive(Debug)]
pub(crate) struct Archive<W: Write> {
    out: W,
    position: u64,
    inode: u32,
}

/// The fields of a header that differ from entry to entry.
#[derive(Clone, Copy, Debug, Default)]
struct Header {
    mode: u32,
    links: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            position: 0,
            inode: 0,
        }
    }

    pub(crate) fn directory(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        let mode = kind::DIRECTORY | permissions & kind::PERMISSIONS;
        let header = Header {
            mode,
            links: 2,
            ..Header::default()
        };
        self.header(name.as_bytes(), header)
    }

    pub(crate) fn file(&mut self, name: &str, permissions: u32, contents: &[u8]) -> io::Result<()> {
        self.stream(name.as_bytes(), permissions, contents.len() as u64, contents)
    }

    pub(crate) fn character_device(&mut self, name: &str, permissions: u32, device: (u32, u32)) -> io::Result<()> {
        let mode = kind::CHARACTER | permissions & kind::PERMISSIONS;
        let header = Header {
            mode,
            links: 1,
            device,
            ..Header::default()
        };
        self.header(name.as_bytes(), header)
    }

    /// Adds what lies below `dir`, in the order of names. Sockets and pipes are left out.
    pub(crate) fn tree(&mut self, dir: &Path) -> io::Result<()> {
        self.subtree(dir, dir)
    }

    /// Writes the end mark.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        let header = Header {
            links: 1,
            ..Header::default()
        };
        self.write_header(TRAILER, header, 0)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn subtree(&mut self, top: &Path, dir: &Path) -> io::Result<()> {
        let mut entries = std::fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(|entry| entry.file_name());
        for entry in entries {
            let path = entry.path();
            let name = path.strip_prefix(top).unwrap_or(&path).as_os_str().as_bytes();
            let meta = std::fs::symlink_metadata(&path)?;
            let kind = meta.file_type();
            let mode = meta.mode();
            if kind.is_symlink() {
                self.link(name, std::fs::read_link(&path)?.as_os_str().as_bytes())?;
            } else if kind.is_dir() {
                let header = Header {
                    mode,
                    links: 2,
                    ..Header::default()
                };
                self.header(name, header)?;
                self.subtree(top, &path)?;
            } else if kind.is_file() {
                self.stream(name, mode, meta.len(), std::fs::File::open(&path)?)?;
            } else if kind.is_char_device() {
                let header = Header {
                    mode,
                    links: 1,
                    device: device_numbers(meta.rdev()),
                    ..Header::default()
                };
                self.header(name, header)?;
            }
        }
        Ok(())
    }

    fn link(&mut self, name: &[u8], target: &[u8]) -> io::Result<()> {
        let header = Header {
            mode: kind::LINK | 0o777,
            links: 1,
            size: size(target.len() as u64)?,
            ..Header::default()
        };
        self.header(name, header)?;
        self.bytes(target)?;
        self.pad()
    }

    fn stream(&mut self, name: &[u8], permissions: u32, len: u64, contents: impl Read) -> io::Result<()> {
        let header = Header {
            mode: kind::FILE | permissions & kind::PERMISSIONS,
            links: 1,
            size: size(len)?,
            ..Header::default()
        };
        self.header(name, header)?;
        let copied = io::copy(&mut contents.take(len), &mut self.out)?;
        self.position += copied;
        if copied != len {
            return Err(io::Error::other("a file became shorter while it was read"));
        }
        self.pad()
    }

    fn header(&mut self, name: &[u8], header: Header) -> io::Result<()> {
        self.inode += 1;
        self.write_header(name, header, self.inode)
    }

    fn write_header(&mut self, name: &[u8], header: Header, inode: u32) -> io::Result<()> {
        let name_size = size(name.len() as u64 + 1)?;
        // ino mode uid gid nlink mtime filesize dev(major minor) rdev(major minor) namesize check
        let fields = [
            inode,
            header.mode,
            0,
            0,
            header.links,
            0,
            header.size,
            0,
            0,
            header.device.0,
            header.device.1,
            name_size,
            0,
        ];
        let mut text = MAGIC.to_owned();
        for field in fields {
            text.push_str(&format!("{field:08X}"));
        }
        self.bytes(text.as_bytes())?;
        self.bytes(name)?;
        self.bytes(&[0])?;
        self.pad()
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self) -> io::Result<()> {
        while !self.position.is_multiple_of(ALIGNMENT) {
            self.bytes(&[0])?;
        }
        Ok(())
    }
}

fn size(len: u64) -> io::Result<u32> {
    u32::try_from(len).map_err(|_| io::Error::other("too large for a cpio archive"))
}

/// Major and minor number as glibc packs them into `st_rdev`.
fn device_numbers(rdev: u64) -> (u32, u32) {
    let major = (rdev >> 8) & 0xfff | (rdev >> 32) & 0xffff_f000;
    let minor = rdev & 0xff | (rdev >> 12) & 0xffff_ff00;
    (major as u32, minor as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, contents and device.
    type Entry = (String, u32, Vec<u8>, (u32, u32));

    /// Reads the entries back, independently of the writer.
    fn parse(mut archive: &[u8]) -> Vec<Entry> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&archive[6 + 8 * n..14 + 8 * n]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, len, name_len) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            let name = String::from_utf8(archive[110..110 + name_len - 1].to_vec()).unwrap();
            assert_eq!(archive[110 + name_len - 1], 0, "name ends in NUL");
            let data = (110 + name_len).next_multiple_of(4);
            let contents = archive[data..data + len].to_vec();
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, mode, contents, device));
            archive = &archive[(data + len).next_multiple_of(4)..];
        }
    }

    #[test]
    fn entries_read_back_with_odd_lengths() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, (5, 1)).unwrap();
        archive.file("init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.file("empty", 0o644, b"").unwrap();
        archive.link(b"bin/sh", b"busybox").unwrap();
        let entries = parse(&archive.finish().unwrap());
        let entry = |name: &str, mode, contents: &[u8], device| (name.to_owned(), mode, contents.to_vec(), device);
        assert_eq!(
            entries,
            [
                entry("dev", 0o040_755, b"", (0, 0)),
                entry("dev/console", 0o020_600, b"", (5, 1)),
                entry("init", 0o100_755, b"#!/bin/sh\n", (0, 0)),
                entry("empty", 0o100_644, b"", (0, 0)),
                entry("bin/sh", 0o120_777, b"busybox", (0, 0)),
            ]
        );
    }

    #[test]
    fn tree_is_sorted_and_keeps_links_and_modes() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        std::fs::write(dir.path().join("b/file"), "text").unwrap();
        let executable = std::fs::Permissions::from_mode(0o750);
        std::fs::set_permissions(dir.path().join("b/file"), executable).unwrap();
        std::os::unix::fs::symlink("b/file", dir.path().join("a")).unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.tree(dir.path()).unwrap();
        let entries = parse(&archive.finish().unwrap());
        let names: Vec<&str> = entries.iter().map(|entry| entry.0.as_str()).collect();
        assert_eq!(names, ["a", "b", "b/file"]);
        assert_eq!(
            (entries[0].1, entries[0].2.as_slice()),
            (0o120_777, b"b/file".as_slice())
        );
        assert_eq!((entries[2].1, entries[2].2.as_slice()), (0o100_750, b"text".as_slice()));
    }

    #[test]
    fn file_that_shrinks_is_an_error() {
        let mut archive = Archive::new(Vec::new());
        assert!(archive.stream(b"name", 0o644, 10, b"short".as_slice()).is_err());
    }

    #[test]
    fn device_numbers_match_glibc() {
        assert_eq!(device_numbers(0x501), (5, 1));
        assert_eq!(device_numbers(0x0010_0302), (3, 0x102));
    }
}
