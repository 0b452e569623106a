//! What an image can do beyond being a disk: tell about itself, be checked, be resized.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::Serialize;

use crate::BlockBackend;
use crate::BlockError;
use crate::Result;
use crate::Uuid;

/// A file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The disk's bytes and nothing else.
    Raw,
    /// A CD or DVD (ISO 9660): raw, for reading.
    Iso,
    /// VirtualBox.
    Vdi,
    /// VMware.
    Vmdk,
    /// Virtual PC, Hyper-V.
    Vhd,
    /// Hyper-V; for reading.
    Vhdx,
    /// QEMU.
    Qcow2,
}

impl Format {
    /// All formats.
    pub const ALL: [Self; 7] = [
        Self::Raw,
        Self::Iso,
        Self::Vdi,
        Self::Vmdk,
        Self::Vhd,
        Self::Vhdx,
        Self::Qcow2,
    ];

    /// The name that users write.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Iso => "iso",
            Self::Vdi => "vdi",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.to_ascii_lowercase();
        let known = match lower.as_str() {
            "img" | "dd" => Some(Self::Raw),
            "vpc" => Some(Self::Vhd),
            name => Self::ALL.into_iter().find(|format| format.name() == name),
        };
        known.ok_or_else(|| {
            BlockError::Usage(format!(
                "`{text}` is not an image format; known are raw, vdi, vmdk, vhd, vhdx, qcow2 and iso"
            ))
        })
    }
}

/// How blocks of a qcow2 image are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Deflate: every program reads it.
    #[default]
    Zlib,
    /// Zstandard: faster; version 3 images only.
    Zstd,
}

/// By what children know an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Never changes (VDI, VMDK, VHD); changes with every use that writes (VHDX).
    pub uuid: Uuid,
    /// Changes with every use that writes (VDI, VMDK as VirtualBox makes it).
    pub modified: Uuid,
    /// Changes with every use that writes (VMDK).
    pub cid: Option<u32>,
}

/// The outcome of a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is damaged, a line each; the first hundred.
    pub errors: Vec<String>,
    /// How many errors there are in all.
    pub error_count: u64,
    /// What is untidy but harmless, a line each; the first hundred.
    pub notes: Vec<String>,
    /// Blocks of the file that nothing refers to.
    pub leaks: u64,
    /// Errors and leaks that were repaired.
    pub repaired: u64,
    /// Blocks of the disk that have data in this file.
    pub allocated: u64,
    /// Those of them that are compressed.
    pub compressed: u64,
    /// Blocks of the disk.
    pub blocks: u64,
}

impl Report {
    const LINES: usize = 100;

    /// Counts an error.
    pub(crate) fn error(&mut self, line: impl FnOnce() -> String) {
        if self.errors.len() < Self::LINES {
            self.errors.push(line());
        }
        self.error_count += 1;
    }

    pub(crate) fn note(&mut self, line: impl FnOnce() -> String) {
        if self.notes.len() < Self::LINES {
            self.notes.push(line());
        }
    }

    /// Nothing is damaged.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.error_count == 0
    }
}

/// An open image.
pub trait Image: BlockBackend {
    /// Looks at all metadata. With `repair`, what can be mended without guessing is; the image must be writable then, and
    /// nobody may write to it meanwhile.
    ///
    /// # Errors
    /// The host cannot read or write, or the image was opened for reading and is to be repaired.
    fn check(&self, repair: bool) -> Result<Report>;

    /// Grows or shrinks the disk. What is new is zeros. False when that cannot be done in place; nothing is changed then.
    ///
    /// # Errors
    /// Read-only, too large for the format, or the host cannot write.
    fn resize(&self, size: u64) -> Result<bool>;

    /// The files that the image consists of, without parents. The first is the one that was opened.
    fn files(&self) -> Vec<PathBuf>;

    /// Bytes that its files occupy on the host.
    ///
    /// # Errors
    /// The host's.
    fn allocated(&self) -> Result<u64>;

    /// The image's parent and where it is.
    fn parent(&self) -> Option<(PathBuf, Arc<dyn Image>)> {
        None
    }

    /// By what children refer to it.
    fn identity(&self) -> Identity {
        Identity::default()
    }

    /// Gives it the identity of the image that it takes the place of.
    ///
    /// # Errors
    /// The host cannot read or write.
    fn set_identity(&self, _identity: &Identity) -> Result<()> {
        Ok(())
    }

    /// What else is worth telling: names and values.
    fn details(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Writes blocks, in compressed form where the format has one and a block becomes smaller.
    ///
    /// # Errors
    /// As `write_at`.
    fn write_packed(&self, offset: u64, blocks: &[u8]) -> Result<()> {
        self.write_at(offset, blocks)
    }

    /// Why the image cannot be rewritten as another file of the same kind, if it cannot.
    fn pinned(&self) -> Option<String> {
        None
    }

    /// What a rewritten image has to be made with, beside size and parent.
    fn kind(&self) -> crate::CreateOptions;
}

/// The short form of `inspect` for every image.
pub(crate) fn inspect(image: &dyn Image) -> device_model::Node {
    let info = image.info();
    let node = device_model::Node::tree()
        .with("format", info.format.name())
        .with("variant", info.variant)
        .with("size", info.size)
        .with("writable", info.writable);
    match image.parent() {
        None => node,
        Some((path, parent)) => node.with(
            "parent",
            device_model::Node::tree()
                .with("file", path.display().to_string())
                .with("image", parent.inspect()),
        ),
    }
}
