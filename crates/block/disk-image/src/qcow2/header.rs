//! The header of a qcow2 image and its extensions.

use bitflags::bitflags;

use crate::BlockError;
use crate::Format;
use crate::Result;
use crate::bytes;
use crate::packed::Codec;
use crate::store::File;

pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// What QEMU takes too: 32 MiB of L1 table, 8 MiB of refcount table.
pub(crate) const MAX_L1: u64 = 32 << 20;
pub(crate) const MAX_REFTABLE: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
const EXTENSIONS: usize = 64;

const EXT_END: u32 = 0;
pub(crate) const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_ENCRYPTION: u32 = 0x0537_be77;

bitflags! {
    /// Features that a reader must know.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Incompatible: u64 {
        /// Refcounts may be wrong.
        const DIRTY = 1 << 0;
        /// Metadata is damaged.
        const CORRUPT = 1 << 1;
        /// Data is in another file.
        const EXTERNAL_DATA = 1 << 2;
        /// The header says how clusters are compressed.
        const COMPRESSION = 1 << 3;
        /// L2 entries have subclusters.
        const EXTENDED_L2 = 1 << 4;
    }
}

/// Refcounts may be written late.
pub(crate) const LAZY_REFCOUNTS: u64 = 1;

/// Offsets of fields that change.
pub(crate) const AT_SIZE: u64 = 24;
pub(crate) const AT_L1_SIZE: u64 = 36;
pub(crate) const AT_REFTABLE: u64 = 48;
pub(crate) const AT_INCOMPATIBLE: u64 = 72;
pub(crate) const AT_AUTOCLEAR: u64 = 88;

/// What the header says, checked.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) backing: Option<String>,
    pub(crate) backing_format: Option<Format>,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    /// Entries.
    pub(crate) l1_size: u64,
    pub(crate) l1_offset: u64,
    pub(crate) reftable_offset: u64,
    /// In clusters.
    pub(crate) reftable_clusters: u64,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: Incompatible,
    pub(crate) compatible: u64,
    pub(crate) autoclear: u64,
    pub(crate) refcount_order: u32,
    pub(crate) codec: Codec,
}

impl Header {
    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    pub(crate) fn extended(&self) -> bool {
        self.incompatible.contains(Incompatible::EXTENDED_L2)
    }

    /// Bytes of an L2 entry.
    pub(crate) fn entry_bytes(&self) -> u64 {
        if self.extended() { 16 } else { 8 }
    }

    /// Bytes of the disk that an L2 table covers.
    pub(crate) fn l2_covers(&self) -> u64 {
        self.cluster() / self.entry_bytes() * self.cluster()
    }

    pub(crate) fn read(file: &File) -> Result<Self> {
        let mut head = [0; 112];
        file.read_padded(0, head.get_mut(..72).unwrap_or_default())?;
        if bytes::u32_be(&head, 0) != MAGIC {
            return Err(file.no_such_image(Format::Qcow2));
        }
        file.read_exact(0, head.get_mut(..72).unwrap_or_default())?;
        let version = bytes::u32_be(&head, 4);
        if !(2..=3).contains(&version) {
            return Err(file.unsupported(format!("qcow2 version {version} is not supported; 2 and 3 are")));
        }
        if version == 3 {
            file.read_padded(72, head.get_mut(72..).unwrap_or_default())?;
        }
        let header_len = if version == 3 { bytes::u32_be(&head, 100) } else { 72 };
        if version == 3 && header_len < 104 {
            return Err(file.corrupt(format!(
                "the header says that it is {header_len} bytes long; 104 are the least"
            )));
        }
        let known = if version == 3 { bytes::u64_be(&head, 72) } else { 0 };
        let incompatible = Incompatible::from_bits(known).ok_or_else(|| {
            file.unsupported(format!(
                "qcow2 feature bits {:#x} are not supported",
                known & !Incompatible::all().bits()
            ))
        })?;
        refuse(file, incompatible, bytes::u32_be(&head, 32))?;
        let compression = if header_len >= 105 {
            bytes::get::<1>(&head, 104)[0]
        } else {
            0
        };
        let mut header = Self {
            version,
            backing: None,
            backing_format: None,
            cluster_bits: bytes::u32_be(&head, 20),
            size: bytes::u64_be(&head, 24),
            l1_size: bytes::u32_be(&head, 36).into(),
            l1_offset: bytes::u64_be(&head, 40),
            reftable_offset: bytes::u64_be(&head, 48),
            reftable_clusters: bytes::u32_be(&head, 56).into(),
            snapshots: bytes::u32_be(&head, 60),
            snapshots_offset: bytes::u64_be(&head, 64),
            incompatible,
            compatible: if version == 3 { bytes::u64_be(&head, 80) } else { 0 },
            autoclear: if version == 3 { bytes::u64_be(&head, 88) } else { 0 },
            refcount_order: if version == 3 { bytes::u32_be(&head, 96) } else { 4 },
            codec: match compression {
                0 => Codec::Deflate,
                1 => Codec::Zstd,
                other => return Err(file.unsupported(format!("qcow2 compression type {other} is not supported"))),
            },
        };
        header.validate(file)?;
        header.extensions(file, header_len.into())?;
        header.backing = backing(file, &head, header.cluster())?;
        Ok(header)
    }

    fn validate(&self, file: &File) -> Result<()> {
        if !(9..=21).contains(&self.cluster_bits) || self.extended() && self.cluster_bits < 14 {
            return Err(file.corrupt(format!("the header says clusters of 2^{} bytes", self.cluster_bits)));
        }
        if self.refcount_order > 6 {
            return Err(file.corrupt(format!("the header says refcounts of 2^{} bits", self.refcount_order)));
        }
        if self.l1_size * 8 > MAX_L1 {
            return Err(file.corrupt(format!("the L1 table has {} entries, more than 32 MiB", self.l1_size)));
        }
        if self.size.div_ceil(self.l2_covers()) > self.l1_size {
            return Err(file.corrupt(format!(
                "a disk of {} bytes needs more than the {} entries of the L1 table",
                self.size, self.l1_size
            )));
        }
        if self.reftable_clusters << self.cluster_bits > MAX_REFTABLE {
            return Err(file.corrupt(format!(
                "the refcount table has {} clusters, more than 8 MiB",
                self.reftable_clusters
            )));
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(file.corrupt(format!("the header says {} snapshots", self.snapshots)));
        }
        let len = file.len()?;
        let tables = [
            ("L1 table", self.l1_offset, self.l1_size * 8),
            (
                "refcount table",
                self.reftable_offset,
                self.reftable_clusters << self.cluster_bits,
            ),
            ("snapshot table", self.snapshots_offset, u64::from(self.snapshots) * 40),
        ];
        for (name, offset, bytes) in tables {
            let end = offset.checked_add(bytes);
            let first = if bytes == 0 { 0 } else { self.cluster() };
            if bytes > 0 && !offset.is_multiple_of(self.cluster())
                || offset < first
                || end.is_none_or(|end| bytes > 0 && end > len)
            {
                return Err(file.corrupt(format!(
                    "the {name} of {bytes} bytes at {offset:#x} is not within the file"
                )));
            }
        }
        Ok(())
    }

    fn extensions(&mut self, file: &File, mut at: u64) -> Result<()> {
        for _ in 0..EXTENSIONS {
            let mut head = [0; 8];
            if at + 8 > self.cluster() {
                return Ok(());
            }
            file.read_padded(at, &mut head)?;
            let (kind, len) = (bytes::u32_be(&head, 0), u64::from(bytes::u32_be(&head, 4)));
            if kind == EXT_END {
                return Ok(());
            }
            if at + 8 + len > self.cluster() {
                return Err(file.corrupt(format!(
                    "the header extension at {at:#x} does not end within the first cluster"
                )));
            }
            if kind == EXTENSION_BACKING_FORMAT {
                let mut name = [0; 16];
                let name = name.get_mut(..len.min(16) as usize).unwrap_or_default();
                file.read_padded(at + 8, name)?;
                let name = String::from_utf8_lossy(name).into_owned();
                self.backing_format = Some(name.parse().map_err(|_| {
                    file.unsupported(format!(
                        "the backing file's format `{}` is not supported",
                        name.escape_default()
                    ))
                })?);
            }
            if kind == EXT_ENCRYPTION {
                return Err(encrypted(file, "LUKS"));
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(())
    }
}

fn encrypted(file: &File, what: &str) -> BlockError {
    BlockError::Encrypted {
        file: file.name().to_owned(),
        what: what.to_owned(),
    }
}

/// What is understood, but not supported.
fn refuse(file: &File, incompatible: Incompatible, crypt: u32) -> Result<()> {
    match crypt {
        0 => {}
        1 => return Err(encrypted(file, "qcow2 AES")),
        2 => return Err(encrypted(file, "LUKS")),
        other => return Err(encrypted(file, &format!("method {other}"))),
    }
    if incompatible.contains(Incompatible::EXTERNAL_DATA) {
        return Err(file.unsupported(
            "its data is in another file, which is not supported; `qemu-img convert` makes one image of both",
        ));
    }
    Ok(())
}

/// The name of the backing file.
fn backing(file: &File, head: &[u8], cluster: u64) -> Result<Option<String>> {
    let (at, len) = (bytes::u64_be(head, 8), bytes::u32_be(head, 16));
    if at == 0 || len == 0 {
        return Ok(None);
    }
    if len > 1023 || at.checked_add(len.into()).is_none_or(|end| end > cluster) {
        return Err(file.corrupt(format!(
            "the name of the backing file ({len} bytes at {at:#x}) is not within the first cluster"
        )));
    }
    let mut name = vec![0; len as usize];
    file.read_exact(at, &mut name)?;
    String::from_utf8(name)
        .map(Some)
        .map_err(|_| file.corrupt("the name of the backing file is no text"))
}
