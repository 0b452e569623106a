//! Floppy drives, and files as their media.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use chipset::fdc;
use chipset::fdc::Fdc;
use chipset::fdc::FloppyMedium;
use device_model::Slot;

use crate::BuildError;
use crate::drives::DriveError;
use crate::drives::DriveKind;
use crate::drives::Medium;
use crate::drives::RemovableDrive;

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

    /// What users are told of it.
    pub(crate) fn describe(&self, path: &Path) -> Medium {
        Medium {
            path: path.to_owned(),
            read_only: self.read_only,
        }
    }
}

/// A drive as users see it.
pub(crate) struct FloppyDrive {
    controller: Arc<Slot<Fdc>>,
    number: usize,
    name: String,
    /// What is in it. Held while the medium changes, so that two changes never mix.
    medium: Mutex<Option<Medium>>,
}

impl FloppyDrive {
    /// Drive `number`, with what is in it already.
    pub(crate) fn new(controller: Arc<Slot<Fdc>>, number: usize, medium: Option<Medium>) -> Self {
        Self {
            controller,
            number,
            name: format!("floppy{number}"),
            medium: Mutex::new(medium),
        }
    }

    fn change(&self, medium: Option<(Medium, FloppyFile)>) {
        let (described, file) = medium.unzip();
        let mut now = self.medium.lock().unwrap_or_else(PoisonError::into_inner);
        let file = file.map(|file| Box::new(file) as Box<dyn FloppyMedium>);
        self.controller.with(|chip| chip.insert(self.number, file));
        *now = described;
    }
}

impl RemovableDrive for FloppyDrive {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> DriveKind {
        DriveKind::Floppy
    }

    fn medium(&self) -> Option<Medium> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn insert(&self, path: &Path, read_only: bool) -> Result<(), DriveError> {
        let file = FloppyFile::open(path, read_only)?;
        self.change(Some((file.describe(path), file)));
        Ok(())
    }

    fn eject(&self) -> Result<(), DriveError> {
        self.change(None);
        Ok(())
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
