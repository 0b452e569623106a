//! Making an empty VMDK image in each of its varieties.

use super::descriptor::NO_PARENT;
use super::sparse::FLAG_NEWLINES;
use super::sparse::FLAG_REDUNDANT;
use super::sparse::FLAG_ZERO_GRAINS;
use super::sparse::SECTOR;
use super::sparse::SparseHeader;
use super::stream::StreamWriter;
use crate::BlockError;
use crate::Identity;
use crate::Result;
use crate::Variant;
use crate::convert::Sink;
use crate::create::Making;
use crate::store::File;

/// Room for an embedded descriptor.
pub(crate) const DESCRIPTOR_SECTORS: u64 = 20;
const ENTRIES: u64 = 512;
/// Sectors of an extent of at most 2 GB: as VMware makes them.
const SPLIT: u64 = 4_192_256;

pub(crate) fn create(making: &Making<'_>, file: &File) -> Result<()> {
    let sectors = making.size / SECTOR;
    let (kind, split, name) = match making.options.variant {
        Variant::StreamOptimized => {
            return StreamWriter::new(making, file.clone())?.finish();
        }
        Variant::MonolithicFlat => ("FLAT", sectors.max(1), "monolithicFlat"),
        Variant::TwoGbMaxExtentFlat => ("FLAT", SPLIT, "twoGbMaxExtentFlat"),
        Variant::TwoGbMaxExtentSparse => ("SPARSE", SPLIT, "twoGbMaxExtentSparse"),
        _ => return monolithic_sparse(making, file, sectors),
    };
    if kind == "FLAT" && making.parent.is_some() {
        return Err(BlockError::Usage(
            "a flat image has no parent; take monolithicSparse".to_owned(),
        ));
    }
    let count = sectors.div_ceil(split);
    if count > 4096 {
        return Err(BlockError::Usage(format!(
            "a disk of {} bytes takes more than 4096 files of 2 GB",
            making.size
        )));
    }
    let mut extents = Vec::new();
    let mut made = Vec::new();
    let result = (0..count).try_for_each(|index| {
        let len = split.min(sectors - index * split);
        let suffix = match (kind, making.options.variant) {
            (_, Variant::MonolithicFlat) => "-flat".to_owned(),
            ("FLAT", _) => format!("-f{:03}", index + 1),
            _ => format!("-s{:03}", index + 1),
        };
        let name = making.beside(&suffix);
        let extent = making.create_beside(&name)?;
        made.push(name.clone());
        if kind == "FLAT" {
            extent.set_len(len * SECTOR)?;
        } else {
            write_sparse(&extent, &sparse_header(making, len, 0)?, None)?;
        }
        extents.push((len, kind, name));
        extent.sync()
    });
    let result = result.and_then(|()| {
        file.write(0, descriptor(making, name, &extents)?.as_bytes())?;
        file.sync()
    });
    if result.is_err() {
        for name in made {
            let _ = making.files.remove(&making.path.with_file_name(name));
        }
    }
    result
}

fn monolithic_sparse(making: &Making<'_>, file: &File, sectors: u64) -> Result<()> {
    let text = descriptor(making, "monolithicSparse", &[(sectors, "SPARSE", making.beside(""))])?;
    let header = sparse_header(making, sectors, DESCRIPTOR_SECTORS)?;
    write_sparse(file, &header, Some(&text))?;
    file.sync()
}

fn sparse_header(making: &Making<'_>, sectors: u64, descriptor_size: u64) -> Result<SparseHeader> {
    let grain = making.options.block_size.unwrap_or(65536) / SECTOR;
    if !grain.is_power_of_two() || !(8..=1 << 18).contains(&grain) {
        return Err(BlockError::Usage(
            "VMDK grains are a power of two from 4K to 128M".to_owned(),
        ));
    }
    // Zero grains are needed over a parent only, and not every program knows them.
    let (version, zeros) = if making.parent.is_some() {
        (2, FLAG_ZERO_GRAINS)
    } else {
        (1, 0)
    };
    let mut header = SparseHeader {
        version,
        flags: FLAG_NEWLINES | FLAG_REDUNDANT | zeros,
        capacity: sectors,
        grain,
        descriptor: u64::from(descriptor_size > 0),
        descriptor_size,
        entries: ENTRIES,
        redundant: 1 + descriptor_size,
        directory: 0,
        overhead: 0,
    };
    let set = directory_sectors(&header) + header.tables() * ENTRIES * 4 / SECTOR;
    header.directory = header.redundant + set;
    header.overhead = (header.directory + set).next_multiple_of(grain);
    if header.overhead + sectors > u32::MAX.into() {
        return Err(BlockError::Usage(format!(
            "a disk of {} bytes is too large for a VMDK file (2 TiB); take twoGbMaxExtentSparse",
            making.size
        )));
    }
    Ok(header)
}

fn directory_sectors(header: &SparseHeader) -> u64 {
    (header.tables() * 4).div_ceil(SECTOR)
}

/// Header, descriptor, and the directories with all tables, which are still empty.
fn write_sparse(file: &File, header: &SparseHeader, text: Option<&str>) -> Result<()> {
    file.set_len(header.overhead * SECTOR)?;
    for directory in [header.redundant, header.directory] {
        let first = directory + directory_sectors(header);
        let table = ENTRIES * 4 / SECTOR;
        let entries: Vec<u8> = (0..header.tables())
            .flat_map(|index| ((first + index * table) as u32).to_le_bytes())
            .collect();
        file.write(directory * SECTOR, &entries)?;
    }
    if let Some(text) = text {
        file.write(SECTOR, text.as_bytes())?;
    }
    file.write(0, &header.bytes())
}

/// The descriptor's text.
pub(crate) fn descriptor(making: &Making<'_>, kind: &str, extents: &[(u64, &str, String)]) -> Result<String> {
    let sectors = making.size / SECTOR;
    let identity = making.identity();
    let cid = identity.cid.unwrap_or_else(new_cid);
    let (parent_cid, parent) = match &making.parent {
        None => (NO_PARENT, String::new()),
        Some(parent) => {
            // Images of other formats have no CID; any that does not mean "no parent" will do.
            let cid = parent.image.identity().cid.unwrap_or(0);
            if parent.name.contains(['"', '\n']) {
                return Err(BlockError::Usage(format!(
                    "{}: VMDK cannot name such a parent",
                    parent.path.display()
                )));
            }
            (cid, format!("parentFileNameHint=\"{}\"\n", parent.name))
        }
    };
    let lines: Vec<String> = extents
        .iter()
        .map(|(sectors, kind, name)| match *kind {
            "FLAT" => format!("RW {sectors} FLAT \"{name}\" 0\n"),
            kind => format!("RW {sectors} {kind} \"{name}\"\n"),
        })
        .collect();
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID={cid:08x}\nparentCID={parent_cid:08x}\ncreateType=\"{kind}\"\n{parent}\n\
         # Extent description\n{}\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"4\"\n\
         ddb.geometry.cylinders = \"{}\"\nddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n\
         ddb.adapterType = \"ide\"\n{}",
        lines.concat(),
        (sectors / (16 * 63)).min(16383),
        uuids(&identity, making.parent.as_ref().map(|parent| parent.image.identity())),
    );
    if extents.len() == 1 && text.len() as u64 > DESCRIPTOR_SECTORS * SECTOR {
        return Err(BlockError::Usage(
            "the names are too long for VMDK's descriptor".to_owned(),
        ));
    }
    Ok(text)
}

/// VirtualBox's identifiers. An image that had none when it was rewritten has none.
fn uuids(identity: &Identity, parent: Option<Identity>) -> String {
    if identity.uuid.is_zero() {
        return String::new();
    }
    let parent = parent.unwrap_or_default();
    let lines = [
        ("image", identity.uuid),
        ("modification", identity.modified),
        ("parent", parent.uuid),
        ("parentmodification", parent.modified),
    ];
    lines
        .map(|(name, uuid)| format!("ddb.uuid.{name} = \"{uuid}\"\n"))
        .concat()
}

/// A CID: not the one that means "no parent", and not the one for parents without.
pub(crate) fn new_cid() -> u32 {
    let [a, b, c, d, ..] = crate::Uuid::random().0;
    u32::from_le_bytes([a, b, c, d]).clamp(1, NO_PARENT - 1)
}
