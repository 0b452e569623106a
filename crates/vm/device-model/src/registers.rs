//! Register access: one trait for ports and memory, so that a chip does not know where it sits.

/// Width of one register access.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Width {
    /// 1 byte.
    Byte = 1,
    /// 2 bytes.
    Word = 2,
    /// 4 bytes.
    Dword = 4,
    /// 8 bytes.
    Qword = 8,
}

impl Width {
    /// Number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self as u64
    }

    /// Number of bits.
    #[must_use]
    pub const fn bits(self) -> u32 {
        self as u32 * 8
    }

    /// All ones in this width: what an unclaimed bus cycle reads.
    #[must_use]
    pub const fn ones(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The width of `bytes` bytes, when there is one.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            1 => Some(Self::Byte),
            2 => Some(Self::Word),
            4 => Some(Self::Dword),
            8 => Some(Self::Qword),
            _ => None,
        }
    }
}

/// The range of access widths that a region takes; the bus splits wider accesses and widens narrower ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// Narrowest access the device sees.
    pub min: Width,
    /// Widest access the device sees.
    pub max: Width,
}

impl Widths {
    /// Byte registers: every wider access is split.
    pub const BYTE: Self = Self {
        min: Width::Byte,
        max: Width::Byte,
    };
    /// 32-bit registers only: narrower accesses are widened, wider ones are split.
    pub const DWORD: Self = Self {
        min: Width::Dword,
        max: Width::Dword,
    };
    /// Any width from 1 to 4 bytes reaches the device as it is.
    pub const UP_TO_DWORD: Self = Self {
        min: Width::Byte,
        max: Width::Dword,
    };
    /// Any width from 1 to 8 bytes reaches the device as it is.
    pub const ANY: Self = Self {
        min: Width::Byte,
        max: Width::Qword,
    };
}

/// The address space that a region is decoded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Port I/O.
    Pio,
    /// Memory-mapped I/O.
    Mmio,
}

/// A window of registers that a device offers; where it sits is the board's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Name within the device, for plans, traces and inspection.
    pub name: &'static str,
    /// Space it is decoded in.
    pub space: Space,
    /// Length in bytes.
    pub len: u64,
    /// Access widths the device takes.
    pub widths: Widths,
}

/// A place within a device: region index and byte offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Index into [`Registers::regions`].
    pub region: usize,
    /// Byte offset within the region.
    pub offset: u64,
}

/// Why a register access found nothing. The bus answers reads with all ones and drops writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// There is no register at this place.
    #[error("no such register")]
    NoRegister,
    /// The register exists, but not at this width.
    #[error("invalid access width")]
    Width,
}

/// The register file of a device.
///
/// Called by the bus under the device's lock, on the thread of the vCPU that made the access. Must not block, and must
/// not call another device.
pub trait Registers {
    /// The windows this device offers; constant over its life.
    fn regions(&self) -> &[Region];

    /// Reads a register. The value is returned in the low bits.
    ///
    /// # Errors
    /// [`IoError`] where there is no such register; the bus then answers all ones.
    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError>;

    /// Writes a register.
    ///
    /// # Errors
    /// [`IoError`] where there is no such register; the bus then drops the write.
    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError>;
}
