//! CD and DVD drives as users see them.

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use device_model::Slot;
use storage::Tray;
use storage::ahci::Ahci;
use storage::ide::Ide;
use virtio::Mmio;
use virtio::Pci;
use virtio::scsi::Scsi;

use crate::drives::DriveError;
use crate::drives::DriveKind;
use crate::drives::Medium;
use crate::drives::RemovableDrive;
use crate::storage::ImageMedium;

/// A controller with trays.
pub(crate) trait Trays: Send + Sync {
    /// Hands the tray of drive `place` to `f`, under the controller's lock; nothing where there is no such drive.
    fn tray(&self, place: usize, f: &mut dyn FnMut(&mut dyn Tray));
}

impl Trays for Slot<Ide> {
    fn tray(&self, place: usize, f: &mut dyn FnMut(&mut dyn Tray)) {
        self.with(|chip| chip.tray(place).map(f));
    }
}

impl Trays for Slot<Ahci> {
    fn tray(&self, place: usize, f: &mut dyn FnMut(&mut dyn Tray)) {
        self.with(|chip| chip.tray(place).map(f));
    }
}

impl Trays for Slot<Pci<Scsi>> {
    fn tray(&self, place: usize, f: &mut dyn FnMut(&mut dyn Tray)) {
        self.with(|chip| chip.device_mut().with_tray(place, f));
    }
}

impl Trays for Slot<Mmio<Scsi>> {
    fn tray(&self, place: usize, f: &mut dyn FnMut(&mut dyn Tray)) {
        self.with(|chip| chip.device_mut().with_tray(place, f));
    }
}

/// A drive as users see it.
pub(crate) struct CdDrive {
    controller: Arc<dyn Trays>,
    place: usize,
    name: String,
    /// What was put into it. Held while the disc changes, so that two changes never mix.
    medium: Mutex<Option<Medium>>,
}

impl CdDrive {
    /// The user's drive `name`, which is drive `place` of its controller, with what is in it already.
    pub(crate) fn new(controller: Arc<dyn Trays>, place: usize, name: &str, medium: Option<Medium>) -> Self {
        Self {
            controller,
            place,
            name: name.to_owned(),
            medium: Mutex::new(medium),
        }
    }

    /// Takes out what is in it.
    fn empty(&self) -> Result<(), DriveError> {
        let mut out = false;
        self.controller.tray(self.place, &mut |tray| out = tray.eject(false));
        if out {
            Ok(())
        } else {
            Err(DriveError::Locked(self.name.clone()))
        }
    }
}

impl RemovableDrive for CdDrive {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> DriveKind {
        DriveKind::Cdrom
    }

    fn medium(&self) -> Option<Medium> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn insert(&self, path: &Path, _read_only: bool) -> Result<(), DriveError> {
        let disc = ImageMedium::disc(path)?;
        let mut medium = self.medium.lock().unwrap_or_else(PoisonError::into_inner);
        if medium.is_some() {
            self.empty()?;
        }
        *medium = Some(disc.describe(path));
        self.controller.tray(self.place, &mut |tray| {
            tray.insert(Arc::clone(&disc) as Arc<dyn storage::Medium>)
        });
        Ok(())
    }

    fn eject(&self) -> Result<(), DriveError> {
        let mut medium = self.medium.lock().unwrap_or_else(PoisonError::into_inner);
        self.empty()?;
        *medium = None;
        Ok(())
    }
}
