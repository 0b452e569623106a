//! Floppy drives as users see them.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use chipset::fdc::Fdc;
use chipset::fdc::FloppyMedium;
use device_model::Slot;

use crate::drives::DriveError;
use crate::drives::DriveKind;
use crate::drives::Medium;
use crate::drives::RemovableDrive;
use crate::storage::FloppyDisk;
use crate::storage::ImageMedium;

/// A drive as users see it.
pub(crate) struct FloppyDrive {
    controller: Arc<Slot<Fdc>>,
    number: usize,
    name: String,
    /// What is in it. Held while the medium changes, so that two changes never mix.
    medium: Mutex<Option<(Medium, Arc<ImageMedium>)>>,
}

impl FloppyDrive {
    /// Drive `number`, with what is in it already.
    pub(crate) fn new(controller: Arc<Slot<Fdc>>, number: usize, medium: Option<(Medium, Arc<ImageMedium>)>) -> Self {
        Self {
            controller,
            number,
            name: format!("floppy{number}"),
            medium: Mutex::new(medium),
        }
    }

    fn change(&self, medium: Option<(Medium, Arc<ImageMedium>)>) {
        let mut now = self.medium.lock().unwrap_or_else(PoisonError::into_inner);
        let disk = medium.as_ref().map(|(_, image)| FloppyDisk(Arc::clone(image)));
        let disk = disk.map(|disk| Box::new(disk) as Box<dyn FloppyMedium>);
        self.controller.with(|chip| chip.insert(self.number, disk));
        if let Some((_, old)) = std::mem::replace(&mut *now, medium) {
            old.settle();
        }
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
        {
            let medium = self.medium.lock().unwrap_or_else(PoisonError::into_inner);
            medium.as_ref().map(|(described, _)| described.clone())
        }
    }

    fn insert(&self, path: &Path, read_only: bool) -> Result<(), DriveError> {
        let image = Arc::new(ImageMedium::floppy(path, read_only)?);
        self.change(Some((image.describe(path), image)));
        Ok(())
    }

    fn eject(&self) -> Result<(), DriveError> {
        self.change(None);
        Ok(())
    }

    fn settle(&self) {
        let medium = self.medium.lock().unwrap_or_else(PoisonError::into_inner);
        medium.iter().for_each(|(_, image)| image.settle());
    }
}
