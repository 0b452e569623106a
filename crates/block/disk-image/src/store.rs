//! Where the bytes of an image lie: a file of the host, or memory for tests.

mod direct;
mod host;
mod memory;
mod recording;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

pub use host::HostFiles;
pub use memory::MemoryFiles;
pub use memory::MemoryStore;
pub use recording::Recording;

use crate::BlockError;
use crate::Format;
use crate::Result;

/// A file of bytes: positional, shared by threads.
pub trait Store: Debug + Send + Sync {
    /// Reads up to `buf.len()` bytes. Less only at the end of the file.
    ///
    /// # Errors
    /// The host's.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `buf`, beyond the end too.
    ///
    /// # Errors
    /// The host's.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// The host's.
    fn length(&self) -> io::Result<u64>;

    /// Cuts or grows the file. What is new reads as zeros.
    ///
    /// # Errors
    /// The host's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when everything written before is on the medium.
    ///
    /// # Errors
    /// The host's.
    fn sync(&self) -> io::Result<()>;

    /// Makes a range within the file zeros and gives its space back; `keep` leaves the space where the host can.
    ///
    /// # Errors
    /// The host's.
    fn zero(&self, offset: u64, len: u64, keep: bool) -> io::Result<()>;

    /// Whether there is data at `offset`, and where that ends. Holes read as zeros.
    ///
    /// # Errors
    /// The host's.
    fn data_run(&self, offset: u64) -> io::Result<(bool, u64)>;

    /// Bytes that the file occupies on the host.
    ///
    /// # Errors
    /// The host's.
    fn allocated(&self) -> io::Result<u64>;
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// For reading; others may read, nobody may write.
    Read,
    /// For reading, whatever others do with it.
    ReadShared,
    /// For reading and writing, alone.
    Write,
    /// New, for reading and writing, alone. It must not exist.
    Create,
}

/// Who a file is, by whatever name it was found.
pub type FileId = (u64, u64);

/// Where files are found by their names.
pub trait Files: Debug + Send + Sync {
    /// Opens a file.
    ///
    /// # Errors
    /// It does not exist, cannot be opened, or is locked.
    fn open(&self, path: &Path, access: Access) -> Result<(Arc<dyn Store>, FileId)>;

    /// Who a file is, if it exists.
    fn id(&self, path: &Path) -> Option<FileId>;

    /// The names of the files in a folder, at most `limit`; none where it cannot be read.
    fn list(&self, folder: &Path, limit: usize) -> Vec<PathBuf>;

    /// Moves a file over another one, durably.
    ///
    /// # Errors
    /// The host's.
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;

    /// Moves a file to a name that nobody has, durably.
    ///
    /// # Errors
    /// The host's, or somebody has the name.
    fn rename_new(&self, from: &Path, to: &Path) -> Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The host's.
    fn remove(&self, path: &Path) -> Result<()>;
}

/// An open file with its name, for messages.
#[derive(Clone, Debug)]
pub(crate) struct File {
    store: Arc<dyn Store>,
    name: Arc<str>,
    id: FileId,
}

impl File {
    /// Opens `path`.
    pub(crate) fn open(files: &dyn Files, path: &Path, access: Access) -> Result<Self> {
        let (store, id) = files.open(path, access)?;
        Ok(Self {
            store,
            name: path.display().to_string().into(),
            id,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    fn io(&self, action: &'static str) -> impl FnOnce(io::Error) -> BlockError {
        let file = self.name.to_string();
        move |source| BlockError::Io { file, action, source }
    }

    /// A damaged image: which structure says what.
    pub(crate) fn corrupt(&self, what: impl Into<String>) -> BlockError {
        BlockError::Corrupt {
            file: self.name.to_string(),
            what: what.into(),
        }
    }

    /// Not an image of that format at all.
    pub(crate) fn no_such_image(&self, format: Format) -> BlockError {
        self.unsupported(format!(
            "it does not look like {format}; leave out the format to have it found by the contents"
        ))
    }

    pub(crate) fn unsupported(&self, what: impl Into<String>) -> BlockError {
        BlockError::Unsupported {
            file: self.name.to_string(),
            what: what.into(),
        }
    }

    /// Fills `buf`. What is beyond the end of the file reads as zeros.
    pub(crate) fn read_padded(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let got = self.store.read_at(offset, buf).map_err(self.io("read"))?;
        if let Some(rest) = buf.get_mut(got..) {
            rest.fill(0);
        }
        Ok(())
    }

    /// Fills `buf`; the file must be that long.
    pub(crate) fn read_exact(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let got = self.store.read_at(offset, buf).map_err(self.io("read"))?;
        if got < buf.len() {
            return Err(self.corrupt(format!(
                "the file ends within a structure of {} bytes at {offset:#x}; it was cut off",
                buf.len()
            )));
        }
        Ok(())
    }

    pub(crate) fn write(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.store.write_at(offset, buf).map_err(self.io("write"))
    }

    pub(crate) fn len(&self) -> Result<u64> {
        self.store.length().map_err(self.io("find the length"))
    }

    pub(crate) fn set_len(&self, len: u64) -> Result<()> {
        self.store.set_len(len).map_err(self.io("change the length"))
    }

    pub(crate) fn sync(&self) -> Result<()> {
        self.store.sync().map_err(self.io("write"))
    }

    pub(crate) fn zero(&self, offset: u64, len: u64, keep: bool) -> Result<()> {
        self.store.zero(offset, len, keep).map_err(self.io("write zeros"))
    }

    pub(crate) fn data_run(&self, offset: u64) -> Result<(bool, u64)> {
        self.store.data_run(offset).map_err(self.io("look for data"))
    }

    pub(crate) fn allocated(&self) -> Result<u64> {
        self.store.allocated().map_err(self.io("find the size"))
    }
}
