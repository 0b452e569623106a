//! A floppy drive with a medium: geometry by the medium's size, head position, the disk change line.
//!
//! Spec: ISO/IEC 9529-1 (1.44 MB), IBM PC/AT Technical Reference 6183355 ("Diskette Drive"), ECMA-100.

/// Bytes of a sector: the only size that PCs use.
pub(super) const SECTOR: usize = 512;

/// What a drive's medium is kept in.
///
/// Called under the controller's lock, mostly on the event thread.
pub trait FloppyMedium: Send {
    /// Bytes of the image.
    fn len(&self) -> u64;

    /// Whether it has no bytes at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The write-protect notch is open.
    fn is_read_only(&self) -> bool;

    /// Reads at a byte offset.
    ///
    /// # Errors
    /// What the host says: the guest sees bad data.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()>;

    /// Writes at a byte offset.
    ///
    /// # Errors
    /// As for reading.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()>;
}

impl FloppyMedium for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let from = usize::try_from(offset)
            .ok()
            .and_then(|at| self.get(at..at.checked_add(buffer.len())?));
        buffer.copy_from_slice(from.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let to = at.checked_add(bytes.len()).and_then(|end| self.get_mut(at..end));
        to.ok_or(std::io::ErrorKind::UnexpectedEof)?.copy_from_slice(bytes);
        Ok(())
    }
}

/// A format: bytes, cylinders, sides, sectors of a track, and the data rates it can be read at (bits by rate code: 0 is
/// 500 kbit/s, 1 is 300, 2 is 250, 3 is 1000).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Format {
    pub(super) cylinders: u8,
    pub(super) sides: u8,
    pub(super) sectors: u8,
    pub(super) rates: u8,
}

#[rustfmt::skip]
const FORMATS: [Format; 10] = [
    Format { cylinders: 80, sides: 2, sectors: 36, rates: 0b1000 }, // 2.88 MB
    Format { cylinders: 80, sides: 2, sectors: 21, rates: 0b0001 }, // 1.68 MB (DMF)
    Format { cylinders: 80, sides: 2, sectors: 18, rates: 0b0001 }, // 1.44 MB
    Format { cylinders: 80, sides: 2, sectors: 15, rates: 0b0001 }, // 1.2 MB
    Format { cylinders: 80, sides: 2, sectors: 9,  rates: 0b0100 }, // 720 KB
    Format { cylinders: 40, sides: 2, sectors: 9,  rates: 0b0110 }, // 360 KB
    Format { cylinders: 40, sides: 2, sectors: 8,  rates: 0b0110 }, // 320 KB
    Format { cylinders: 40, sides: 1, sectors: 9,  rates: 0b0110 }, // 180 KB
    Format { cylinders: 40, sides: 1, sectors: 8,  rates: 0b0110 }, // 160 KB
    Format { cylinders: 80, sides: 2, sectors: 20, rates: 0b0001 }, // 1.6 MB
];

impl Format {
    const fn bytes(self) -> u64 {
        self.cylinders as u64 * self.sides as u64 * self.sectors as u64 * SECTOR as u64
    }

    /// The smallest format that holds `bytes`; that of 1.44 MB for images that are cut short.
    fn of(bytes: u64) -> Option<Self> {
        let exact = FORMATS.iter().find(|format| format.bytes() == bytes);
        let usual = FORMATS.iter().filter(|format| format.sectors == 18);
        let holds = usual
            .filter(|format| bytes > 0 && bytes < format.bytes())
            .min_by_key(|f| f.bytes());
        exact.or(holds).copied()
    }
}

/// Whether a medium of `bytes` has a format.
#[must_use]
pub fn is_floppy_size(bytes: u64) -> bool {
    Format::of(bytes).is_some()
}

/// A drive.
#[derive(Default)]
pub(super) struct Drive {
    medium: Option<Box<dyn FloppyMedium>>,
    format: Option<Format>,
    /// There is such a drive.
    pub(super) present: bool,
    /// Cylinder of the head.
    pub(super) cylinder: u8,
    /// The medium may have changed since the head last moved.
    pub(super) changed: bool,
}

/// Why a sector could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DriveError {
    /// The host failed.
    Data,
}

impl Drive {
    /// Puts a medium in, or takes it out.
    pub(super) fn insert(&mut self, medium: Option<Box<dyn FloppyMedium>>) {
        self.format = medium.as_ref().and_then(|medium| Format::of(medium.len()));
        self.medium = medium;
        self.changed = true;
    }

    /// The medium's format; none without one.
    pub(super) fn format(&self) -> Option<Format> {
        self.format.filter(|_| self.present)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.medium.as_ref().is_some_and(|medium| medium.is_read_only())
    }

    /// The head moves to `cylinder`. With a medium that ends the doubt about a change.
    pub(super) fn seek(&mut self, cylinder: u8) {
        self.cylinder = cylinder.min(MAX_CYLINDER);
        if self.medium.is_some() {
            self.changed = false;
        }
    }

    fn offset(&self, side: u8, sector: u8) -> u64 {
        let format = self.format.unwrap_or(Format {
            cylinders: 0,
            sides: 0,
            sectors: 0,
            rates: 0,
        });
        let track = u64::from(self.cylinder) * u64::from(format.sides) + u64::from(side);
        (track * u64::from(format.sectors) + u64::from(sector) - 1) * SECTOR as u64
    }

    /// Reads a sector under the head; beyond the end of a short image there are zeros. The sector exists in the format.
    pub(super) fn read(&mut self, side: u8, sector: u8, buffer: &mut [u8; SECTOR]) -> Result<(), DriveError> {
        let offset = self.offset(side, sector);
        let medium = self.medium.as_mut().ok_or(DriveError::Data)?;
        buffer.fill(0);
        let here = usize::try_from(medium.len().saturating_sub(offset))
            .unwrap_or(SECTOR)
            .min(SECTOR);
        let part = buffer.get_mut(..here).ok_or(DriveError::Data)?;
        medium.read_at(offset, part).map_err(|_| DriveError::Data)
    }

    /// Writes a sector under the head. A short image does not grow.
    pub(super) fn write(&mut self, side: u8, sector: u8, bytes: &[u8; SECTOR]) -> Result<(), DriveError> {
        let offset = self.offset(side, sector);
        let medium = self.medium.as_mut().ok_or(DriveError::Data)?;
        let here = usize::try_from(medium.len().saturating_sub(offset))
            .unwrap_or(SECTOR)
            .min(SECTOR);
        let part = bytes
            .get(..here)
            .filter(|part| !part.is_empty())
            .ok_or(DriveError::Data)?;
        medium.write_at(offset, part).map_err(|_| DriveError::Data)
    }
}

/// Heads stop there.
const MAX_CYLINDER: u8 = 83;
