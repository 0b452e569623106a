//! Controllers with places for drives that come and go: SATA ports, targets of the SCSI host.

use std::sync::Arc;

use device_model::Slot;
use spec::Attachment;
use spec::DriveConfig;
use storage::Drive;
use storage::Medium;
use storage::ahci::Ahci;
use storage::scsi::LogicalUnit;
use virtio::Mmio;
use virtio::Pci;
use virtio::scsi::Scsi;

use super::identity;
use crate::optical::Trays;
use crate::storage::ImageMedium;

/// What comes to a place: the drive, and its image.
type Coming<'a> = (&'a Attachment, Option<Arc<ImageMedium>>);

/// A controller with places for drives, which tells its guest what comes and goes. Called without its lock.
pub(crate) trait Ports: Trays {
    /// Whether there is a drive at a place; none where there is no such place.
    fn is_occupied(&self, place: usize) -> Option<bool>;

    /// Plugs a drive in, or out.
    fn plug(&self, place: usize, drive: Option<Coming<'_>>);
}

impl Ports for Slot<Ahci> {
    fn is_occupied(&self, place: usize) -> Option<bool> {
        (place < storage::ahci::PORTS).then(|| self.lock().is_occupied(place))
    }

    fn plug(&self, place: usize, drive: Option<Coming<'_>>) {
        let drive = drive.map(|(attachment, medium)| make_drive(attachment, medium));
        self.lock().plug(place, drive);
    }
}

/// The SCSI unit that comes.
fn coming(drive: Option<Coming<'_>>) -> Option<LogicalUnit> {
    drive.map(|(attachment, medium)| unit(&attachment.drive, attachment.number, medium))
}

impl Ports for Slot<Pci<Scsi>> {
    fn is_occupied(&self, place: usize) -> Option<bool> {
        self.lock().device_mut().is_occupied(place)
    }

    fn plug(&self, place: usize, drive: Option<Coming<'_>>) {
        self.with(|chip| chip.device_mut().plug(place, coming(drive)));
    }
}

impl Ports for Slot<Mmio<Scsi>> {
    fn is_occupied(&self, place: usize) -> Option<bool> {
        self.lock().device_mut().is_occupied(place)
    }

    fn plug(&self, place: usize, drive: Option<Coming<'_>>) {
        self.with(|chip| chip.device_mut().plug(place, coming(drive)));
    }
}

/// The SCSI unit of a drive.
pub(crate) fn unit(drive: &DriveConfig, number: u32, medium: Option<Arc<ImageMedium>>) -> LogicalUnit {
    let identity = identity(drive, number);
    let medium = medium.map(|medium| medium as Arc<dyn Medium>);
    match (drive, medium) {
        (DriveConfig::Disk(_), Some(medium)) => LogicalUnit::disk(medium, identity),
        (_, medium) => LogicalUnit::optical(medium, identity),
    }
}

/// The drive of a port.
pub(super) fn make_drive(attachment: &Attachment, medium: Option<Arc<ImageMedium>>) -> Drive {
    let identity = identity(&attachment.drive, attachment.number);
    let medium = medium.map(|medium| medium as Arc<dyn Medium>);
    match (&attachment.drive, medium) {
        (DriveConfig::Disk(_), Some(medium)) => Drive::disk(medium, identity),
        (_, medium) => Drive::optical(medium, identity),
    }
}
