//! Files of the host.
//!
//! Locks are `flock`, which belongs to the open file: a second open of the same image conflicts within one process too,
//! and a killed process leaves none behind. File systems without locks are used without.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::CWD;
use rustix::fs::FallocateFlags;
use rustix::fs::FlockOperation;
use rustix::fs::RenameFlags;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::Access;
use super::FileId;
use super::Files;
use super::Store;
use super::direct::DirectFile;
use crate::BlockError;
use crate::Result;

/// Zeros are written in pieces of this many bytes where the host cannot make holes.
static ZEROS: [u8; 65536] = [0; 65536];

/// How often, and after what time, a lock that another process has is tried again.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The host's file system.
#[derive(Clone, Copy, Debug)]
pub struct HostFiles {
    /// A flush waits for the medium. Without it, a power cut may lose what was flushed; a killed process loses nothing.
    pub sync: bool,
    /// Past the host's page cache, by `O_DIRECT`. File systems that cannot do that are refused.
    pub direct: bool,
}

impl Default for HostFiles {
    fn default() -> Self {
        Self {
            sync: true,
            direct: false,
        }
    }
}

#[derive(Debug)]
pub(super) struct HostFile {
    file: fs::File,
    sync: bool,
}

impl HostFile {
    pub(super) fn file(&self) -> &fs::File {
        &self.file
    }
}

/// Locks the file. A process that is being started holds our other files for a moment, so one refusal is not the end.
fn lock(file: &fs::File, operation: FlockOperation) -> rustix::io::Result<()> {
    for _ in 0..LOCK_TRIES {
        match rustix::fs::flock(file, operation) {
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
            result => return result,
        }
    }
    rustix::fs::flock(file, operation)
}

/// The entry of `path` in its folder is on the medium.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    fs::File::open(folder)?.sync_all()
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> BlockError {
    let file = path.display().to_string();
    move |source| BlockError::Io { file, action, source }
}

impl Files for HostFiles {
    fn open(&self, path: &Path, access: Access) -> Result<(Arc<dyn Store>, FileId)> {
        let io = |action| {
            let file = path.display().to_string();
            move |source: io::Error| BlockError::Io { file, action, source }
        };
        let write = matches!(access, Access::Write | Access::Create);
        // A FIFO without a writer would block the open for ever.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
        let mut options = fs::OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
        options.read(true).write(write).create_new(access == Access::Create);
        let action = match access {
            Access::Create => "create",
            Access::Write => "open for writing",
            Access::Read | Access::ReadShared => "open",
        };
        let file = options.open(path).map_err(io(action))?;
        let data = file.metadata().map_err(io("open"))?;
        let kind = data.file_type();
        if !(kind.is_file() || std::os::unix::fs::FileTypeExt::is_block_device(&kind)) {
            return Err(BlockError::Unsupported {
                file: path.display().to_string(),
                what: "neither a file nor a block device".to_owned(),
            });
        }
        let operation = match access {
            Access::Read => Some(FlockOperation::NonBlockingLockShared),
            Access::ReadShared => None,
            Access::Write | Access::Create => Some(FlockOperation::NonBlockingLockExclusive),
        };
        match operation.map(|operation| lock(&file, operation)) {
            None | Some(Ok(()) | Err(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS)) => {}
            Some(Err(Errno::WOULDBLOCK)) => {
                return Err(BlockError::Locked {
                    file: path.display().to_string(),
                });
            }
            Some(Err(error)) => return Err(io("lock")(error.into())),
        }
        let id = (data.dev(), data.ino());
        let file = HostFile { file, sync: self.sync };
        let store: Arc<dyn Store> = match self.direct {
            true => Arc::new(DirectFile::open(file, path, write)?),
            false => Arc::new(file),
        };
        Ok((store, id))
    }

    fn id(&self, path: &Path) -> Option<FileId> {
        let data = fs::metadata(path).ok()?;
        Some((data.dev(), data.ino()))
    }

    fn list(&self, folder: &Path, limit: usize) -> Vec<PathBuf> {
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let entries = fs::read_dir(folder).into_iter().flatten().take(limit);
        entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to)
            .and_then(|()| sync_folder(to))
            .map_err(io_error(to, "replace"))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> Result<()> {
        let renamed = rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE);
        let result = match renamed {
            // Not every file system can do that; a second name does not replace anything either.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                fs::hard_link(from, to).and_then(|()| fs::remove_file(from))
            }
            result => result.map_err(io::Error::from),
        };
        result.and_then(|()| sync_folder(to)).map_err(io_error(to, "create"))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(|source| BlockError::Io {
            file: path.display().to_string(),
            action: "remove",
            source,
        })
    }
}

impl Store for HostFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Positions beyond what the kernel takes are beyond the end.
                Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) && offset > i64::MAX as u64 => {
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn length(&self) -> io::Result<u64> {
        // Block devices have no length other than where their end is.
        match self.file.metadata()? {
            data if data.is_file() => Ok(data.len()),
            _ => Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        if self.sync { self.file.sync_data() } else { Ok(()) }
    }

    fn zero(&self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let flags = match keep {
            true => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            false => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        };
        match rustix::fs::fallocate(&self.file, flags, offset, len) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => {}
            Err(error) => return Err(error.into()),
        }
        let mut at = offset;
        while at < offset + len {
            let part = usize::try_from(offset + len - at).map_or(ZEROS.len(), |rest| rest.min(ZEROS.len()));
            self.file.write_all_at(ZEROS.get(..part).unwrap_or(&ZEROS), at)?;
            at += part as u64;
        }
        Ok(())
    }

    fn data_run(&self, offset: u64) -> io::Result<(bool, u64)> {
        let len = self.length()?;
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => Ok((false, data)),
            Ok(_) => match rustix::fs::seek(&self.file, SeekFrom::Hole(offset)) {
                Ok(hole) if hole > offset => Ok((true, hole)),
                _ => Ok((true, len.max(offset + 1))),
            },
            // No data from here to the end.
            Err(Errno::NXIO) => Ok((false, len.max(offset + 1))),
            // Not every file knows its holes.
            Err(_) => Ok((true, len.max(offset + 1))),
        }
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }
}
