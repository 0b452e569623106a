//! A file as the medium of a floppy drive.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use chipset::fdc;
use chipset::fdc::FloppyMedium;

use crate::BuildError;

/// The file.
pub(crate) struct FloppyFile {
    file: File,
    len: u64,
    read_only: bool,
}

impl FloppyFile {
    /// Opens an image. One that the user may not write is write-protected.
    pub(crate) fn open(path: &Path, read_only: bool) -> Result<Self, BuildError> {
        let open = |write| OpenOptions::new().read(true).write(write).open(path);
        let denied = |error: &io::Error| {
            let kinds = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
            kinds.contains(&error.kind())
        };
        let (opened, read_only) = match open(!read_only) {
            Err(error) if !read_only && denied(&error) => (open(false), true),
            opened => (opened, read_only),
        };
        let failed = |source| BuildError::File {
            path: path.to_owned(),
            source,
        };
        let file = opened.map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        if !fdc::is_floppy_size(len) {
            let path = path.to_owned();
            return Err(BuildError::Floppy { path, len });
        }
        Ok(Self { file, len, read_only })
    }
}

impl FloppyMedium for FloppyFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
}
