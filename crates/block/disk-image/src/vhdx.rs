//! Hyper-V disk images (VHDX), for reading: fixed, dynamic and differencing, with the log of an unclean shutdown.
//!
//! Parents are found by the locator's relative path, then by its absolute one. Writing is not supported: convert the
//! image instead.
//!
//! Spec: Microsoft, \[MS-VHDX\]: Virtual Hard Disk v2 (VHDX) File Format ("MS-VHDX").

mod log;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::BlockError;
use crate::CreateOptions;
use crate::Format;
use crate::Identity;
use crate::Image;
use crate::ImageInfo;
use crate::Report;
use crate::Result;
use crate::Uuid;
use crate::bytes;
use crate::engine::Engine;
use crate::engine::Map;
use crate::engine::Parent;
use crate::engine::Place;
use crate::engine::Run;
use crate::engine::Shape;
use crate::engine::State;
use crate::engine::Tables;
use crate::engine::disk_of_engine;
use crate::meta::Meta;
use crate::open::Opening;
use crate::packed::Codec;
use crate::store::File;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The block table takes 256 MiB at most.
const MAX_TABLE: u64 = 256 * MIB;
/// Bytes of the longest locator.
const MAX_LOCATOR: u32 = 1 << 20;

/// Identifiers of regions and metadata items, as they are in the file.
const REGION_BAT: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const REGION_METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const ITEM_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const ITEM_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const ITEM_SECTOR: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const ITEM_LOCATOR: [u8; 16] = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

/// An identifier from its printed form.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let (a, b, c, d) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes(), d.to_be_bytes());
    [
        a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7],
    ]
}

/// Payload states. MS-VHDX §2.5.1.1.
const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;

#[derive(Debug)]
struct VhdxTables {
    table: u64,
    entries: u64,
    block: u64,
    sector: u64,
    size: u64,
    /// Payload blocks for each bitmap block.
    ratio: u64,
    end: u64,
}

impl VhdxTables {
    /// The state and place of a table entry.
    fn entry(&self, meta: &mut Meta, index: u64) -> Result<(u64, u64)> {
        if index >= self.entries {
            return Err(meta
                .file()
                .corrupt(format!("the block table ends before entry {index}")));
        }
        let entry = meta.u64_le(self.table + index * 8)?;
        let (state, at) = (entry & 7, entry >> 20 << 20);
        if matches!(state, FULLY_PRESENT | PARTIALLY_PRESENT) && (at < MIB || at >= self.end) {
            return Err(meta
                .file()
                .corrupt(format!("block table entry {index} says {at:#x}, where no block can be")));
        }
        Ok((state, at))
    }

    /// Sectors from `offset` on that are alike in the bitmap: whether they are the child's, and how many bytes.
    fn sectors(&self, meta: &mut Meta, offset: u64) -> Result<(bool, u64)> {
        let block = offset / self.block;
        let (state, bitmap) = self.entry(meta, block / self.ratio * (self.ratio + 1) + self.ratio)?;
        if state != FULLY_PRESENT {
            return Err(meta
                .file()
                .corrupt(format!("the sector bitmap for block {block} is missing")));
        }
        // A bitmap covers 2^23 sectors.
        let first = offset / self.sector % (1 << 23);
        let last = first + (self.block - offset % self.block).div_ceil(self.sector);
        let mut kind = None;
        let mut byte = 0;
        for sector in first..last {
            if kind.is_none() || sector.is_multiple_of(8) {
                [byte] = meta.get(bitmap + sector / 8)?;
            }
            let own = byte >> (sector % 8) & 1 != 0;
            if *kind.get_or_insert(own) != own {
                return Ok((!own, (sector - first) * self.sector - offset % self.sector));
            }
        }
        Ok((kind.unwrap_or(false), self.block - offset % self.block))
    }
}

impl Tables for VhdxTables {
    fn look(&mut self, meta: &mut Meta, offset: u64) -> Result<Run> {
        let (block, within) = (offset / self.block, offset % self.block);
        let len = self.block - within;
        if offset >= self.size {
            return Ok(Run { map: Map::Zero, len });
        }
        let index = block + block / self.ratio;
        let (state, at) = self.entry(meta, index)?;
        let data = Map::Data {
            at: at + within,
            shared: true,
        };
        let (map, len) = match state {
            NOT_PRESENT => (Map::Parent, len),
            UNDEFINED | ZERO | UNMAPPED => (Map::Zero, len),
            FULLY_PRESENT => (data, len),
            PARTIALLY_PRESENT => {
                let (own, len) = self.sectors(meta, offset)?;
                (if own { data } else { Map::Parent }, len)
            }
            other => {
                return Err(meta
                    .file()
                    .corrupt(format!("block table entry {index} has the unknown state {other}")));
            }
        };
        Ok(Run { map, len })
    }

    fn begin(&mut self, meta: &mut Meta, _offset: u64, _len: u64) -> Result<Place> {
        Err(read_only(meta.file()))
    }

    fn publish(&mut self, meta: &mut Meta, _range: Range<u64>, _at: u64) -> Result<()> {
        Err(read_only(meta.file()))
    }

    fn zero(&mut self, meta: &mut Meta, _range: Range<u64>) -> Result<bool> {
        Err(read_only(meta.file()))
    }
}

fn read_only(file: &File) -> BlockError {
    BlockError::ReadOnly {
        file: file.name().to_owned(),
        what: "VHDX is for reading only; convert the image to another format to change it".to_owned(),
    }
}

/// A region of the file: offset and length.
type Region = (u64, u64);

struct Vhdx {
    engine: Engine<VhdxTables>,
    path: PathBuf,
    parent: Option<(PathBuf, Arc<dyn Image>)>,
    sector: u32,
    fixed: bool,
    uuid: Uuid,
}

pub(crate) fn open(opening: &Opening, file: File) -> Result<Arc<dyn Image>> {
    if opening.write() {
        return Err(read_only(&file));
    }
    let mut meta = Meta::new(file.clone());
    let (uuid, end) = recover(&file, &mut meta)?;
    let (table, metadata) = regions(&file, &mut meta)?;
    let items = Items::read(&file, &mut meta, metadata)?;
    let parent = match &items.locator {
        None => None,
        Some(locator) => Some(find_parent(opening, locator)?),
    };
    let ratio = (items.sector << 23) / items.block;
    let blocks = items.size.div_ceil(items.block);
    let tables = VhdxTables {
        table: table.0,
        entries: table.1 / 8,
        block: items.block,
        sector: items.sector,
        size: items.size,
        ratio,
        end,
    };
    if blocks + blocks.div_ceil(ratio).saturating_sub(1) > tables.entries {
        return Err(file.corrupt(format!(
            "a disk of {} bytes needs more than the {} entries of the block table",
            items.size, tables.entries
        )));
    }
    let shape = Shape {
        size: items.size,
        block: items.block,
        unit: items.block,
        codec: Codec::Zlib,
    };
    let backing = parent.as_ref().map(|(_, image)| Parent {
        image: Arc::clone(image),
        offset: 0,
    });
    Ok(Arc::new(Vhdx {
        engine: Engine::new(meta, tables, shape, backing, false),
        path: opening.path.clone(),
        parent,
        sector: items.sector as u32,
        fixed: items.fixed,
        uuid,
    }))
}

/// A structure of `len` bytes whose CRC-32C at `at` is right.
fn checked(bytes: &[u8], at: usize) -> bool {
    let (head, rest) = bytes.split_at(at.min(bytes.len()));
    let sum = crc32c::crc32c_append(crc32c::crc32c(head), &[0; 4]);
    crc32c::crc32c_append(sum, rest.get(4..).unwrap_or_default()) == bytes::u32_le(bytes, at)
}

/// Finds the current header and applies the log that it names. Returns the identifier that changes with the data, and how
/// long the file is.
fn recover(file: &File, meta: &mut Meta) -> Result<(Uuid, u64)> {
    let mut signature = [0; 8];
    file.read_padded(0, &mut signature)?;
    if signature != *b"vhdxfile" {
        return Err(file.no_such_image(Format::Vhdx));
    }
    let mut newest: Option<(u64, Vec<u8>)> = None;
    for at in [64 * KIB, 128 * KIB] {
        let mut head = vec![0; 4096];
        file.read_padded(at, &mut head)?;
        let sequence = bytes::u64_le(&head, 8);
        let valid = head.starts_with(b"head") && checked(&head, 4);
        if valid && newest.as_ref().is_none_or(|(newest, _)| sequence > *newest) {
            newest = Some((sequence, head));
        }
    }
    let Some((_, head)) = newest else {
        return Err(file.corrupt("neither of the two headers has the right checksum"));
    };
    let version = u16::from_le_bytes(bytes::get(&head, 66));
    if version != 1 {
        return Err(file.unsupported(format!("VHDX version {version} is not supported; 1 is")));
    }
    let written = Uuid(bytes::get(&head, 32));
    let guid = bytes::get(&head, 48);
    let end = if guid == [0; 16] {
        file.len()?
    } else {
        let (offset, len) = (bytes::u64_le(&head, 72), bytes::u32_le(&head, 68));
        log::replay(file, meta, offset, len.into(), guid)?
    };
    Ok((written, end))
}

/// The block table and the metadata region.
fn regions(file: &File, meta: &mut Meta) -> Result<(Region, Region)> {
    let len = file.len()?;
    for at in [192 * KIB, 256 * KIB] {
        let mut table = vec![0; 64 << 10];
        meta.read(at, &mut table)?;
        let count = bytes::u32_le(&table, 8) as usize;
        if !table.starts_with(b"regi") || count > 2047 || !checked(&table, 4) {
            continue;
        }
        let (mut bat, mut metadata) = (None, None);
        for entry in table.get(16..).unwrap_or_default().chunks_exact(32).take(count) {
            let region = (bytes::u64_le(entry, 16), u64::from(bytes::u32_le(entry, 24)));
            let inside = region.0 >= MIB && region.0.checked_add(region.1).is_some_and(|end| end <= len);
            match bytes::get::<16>(entry, 0) {
                REGION_BAT if inside && region.1 <= MAX_TABLE => bat = Some(region),
                REGION_METADATA if inside => metadata = Some(region),
                REGION_BAT | REGION_METADATA => {
                    return Err(file.corrupt(format!(
                        "a region of {} bytes at {:#x} is not within the file",
                        region.1, region.0
                    )));
                }
                _ if bytes::u32_le(entry, 28) & 1 != 0 => {
                    return Err(file.unsupported("the image has a region that is required, but not known"));
                }
                _ => {}
            }
        }
        if let (Some(bat), Some(metadata)) = (bat, metadata) {
            return Ok((bat, metadata));
        }
    }
    Err(file.corrupt("neither of the two region tables is valid"))
}

/// Metadata items. MS-VHDX §2.6.2.
#[derive(Default)]
struct Items {
    block: u64,
    sector: u64,
    size: u64,
    /// Blocks stay allocated.
    fixed: bool,
    locator: Option<Vec<(String, String)>>,
}

impl Items {
    fn read(file: &File, meta: &mut Meta, region: Region) -> Result<Self> {
        let mut table = vec![0; 64 << 10];
        meta.read(region.0, &mut table)?;
        let count = usize::from(bytes::u16_le(&table, 10));
        if !table.starts_with(b"metadata") || count > 2047 {
            return Err(file.corrupt(format!("the metadata table at {:#x} is damaged", region.0)));
        }
        let mut items = Self::default();
        let mut has_parent = false;
        for entry in table.get(32..).unwrap_or_default().chunks_exact(32).take(count) {
            let (at, len) = (u64::from(bytes::u32_le(entry, 16)), bytes::u32_le(entry, 20));
            if at + u64::from(len) > region.1 || len > MAX_LOCATOR {
                return Err(file.corrupt(format!(
                    "a metadata item of {len} bytes at {at:#x} is not within its region"
                )));
            }
            let mut item = vec![0; len as usize];
            meta.read(region.0 + at, &mut item)?;
            match bytes::get::<16>(entry, 0) {
                ITEM_PARAMETERS => {
                    items.block = bytes::u32_le(&item, 0).into();
                    items.fixed = bytes::u32_le(&item, 4) & 1 != 0;
                    has_parent = bytes::u32_le(&item, 4) & 2 != 0;
                }
                ITEM_SIZE => items.size = bytes::u64_le(&item, 0),
                ITEM_SECTOR => items.sector = bytes::u32_le(&item, 0).into(),
                ITEM_LOCATOR => items.locator = Some(locator(file, &item)?),
                // Required, and not one of the two that say nothing of use here (page 83 data, physical sector size).
                id if bytes::u32_le(entry, 24) & 4 != 0 && id[0] != 0xab && id[0] != 0xc7 => {
                    return Err(file.unsupported("the image has a metadata item that is required, but not known"));
                }
                _ => {}
            }
        }
        if !has_parent {
            items.locator = None;
        } else if items.locator.is_none() {
            return Err(file.corrupt("the image has a parent, but does not say which"));
        }
        let sound = matches!(items.sector, 512 | 4096)
            && items.block.is_power_of_two()
            && (MIB..=256 * MIB).contains(&items.block)
            && items.size.is_multiple_of(items.sector)
            && items.size <= 64 << 40;
        if !sound {
            return Err(file.corrupt(format!(
                "the metadata says a disk of {} bytes with blocks of {} and sectors of {}",
                items.size, items.block, items.sector
            )));
        }
        Ok(items)
    }
}

/// Keys and values of a parent locator. MS-VHDX §2.6.2.6.
fn locator(file: &File, item: &[u8]) -> Result<Vec<(String, String)>> {
    let count = usize::from(bytes::u16_le(item, 18));
    let text = |offset: u32, len: u16| {
        let part = item.get(offset as usize..).and_then(|rest| rest.get(..len.into()));
        let units = part?.as_chunks().0.iter().map(|unit| u16::from_le_bytes(*unit));
        Some(
            char::decode_utf16(units)
                .map(|unit| unit.unwrap_or('\u{fffd}'))
                .collect::<String>(),
        )
    };
    let entries = item.get(20..).unwrap_or_default().chunks_exact(12).take(count.min(64));
    entries
        .map(|entry| {
            let key = text(bytes::u32_le(entry, 0), bytes::u16_le(entry, 8));
            let value = text(bytes::u32_le(entry, 4), bytes::u16_le(entry, 10));
            key.zip(value)
                .ok_or_else(|| file.corrupt("the parent locator is damaged"))
        })
        .collect()
}

fn find_parent(opening: &Opening, locator: &[(String, String)]) -> Result<(PathBuf, Arc<dyn Image>)> {
    let mut paths = Vec::new();
    for wanted in ["relative_path", "absolute_win32_path"] {
        for (_, value) in locator.iter().filter(|(key, _)| key == wanted) {
            let path = value.trim_start_matches(r"\\?\").replace('\\', "/");
            let path = path.split_once(':').map_or(path.as_str(), |(_, rest)| rest);
            paths.push(opening.resolve(path)?);
        }
    }
    let known = paths
        .iter()
        .find(|path| opening.files.id(path).is_some())
        .or(paths.first());
    let path = known.ok_or_else(|| BlockError::Parent {
        file: opening.path.display().to_string(),
        what: "it has a parent, but no name for it".to_owned(),
    })?;
    let image = opening.parent(path, None)?;
    // MS-VHDX §2.6.2.6.3: the identifier of the parent's data when the child was made.
    let linkages: Vec<Uuid> = locator
        .iter()
        .filter(|(key, _)| key == "parent_linkage" || key == "parent_linkage2")
        .filter_map(|(_, value)| Uuid::parse(value))
        .filter(|uuid| !uuid.is_zero())
        .collect();
    if image.info().format == Format::Vhdx && !linkages.is_empty() && !linkages.contains(&image.identity().uuid) {
        return Err(BlockError::Parent {
            file: opening.path.display().to_string(),
            what: format!(
                "`{}` is not its parent, or was written to since: the identifiers differ",
                path.display()
            ),
        });
    }
    Ok((path.clone(), image))
}

disk_of_engine!(Vhdx, |image: &Vhdx| ImageInfo {
    format: Format::Vhdx,
    variant: if image.parent.is_some() {
        "differencing"
    } else if image.fixed {
        "fixed"
    } else {
        "dynamic"
    }
    .to_owned(),
    size: image.engine.size(),
    sector_size: image.sector,
    block_size: image.engine.block(),
    writable: false,
});

impl Image for Vhdx {
    fn check(&self, repair: bool) -> Result<Report> {
        if repair {
            return Err(read_only(self.engine.file()));
        }
        let State { tables, meta } = &mut *self.engine.state();
        let blocks = tables.size.div_ceil(tables.block);
        let mut report = Report {
            blocks,
            ..Report::default()
        };
        let mut seen = rustc_hash::FxHashSet::default();
        for block in 0..blocks {
            match tables.entry(meta, block + block / tables.ratio) {
                Ok((FULLY_PRESENT | PARTIALLY_PRESENT, at)) => {
                    report.allocated += 1;
                    if !seen.insert(at) {
                        report.error(|| format!("block {block} shares its place at {at:#x} with another one"));
                    }
                }
                Ok(_) => {}
                Err(error) => report.error(|| error.to_string()),
            }
        }
        Ok(report)
    }

    fn resize(&self, _size: u64) -> Result<bool> {
        Err(read_only(self.engine.file()))
    }

    fn files(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    fn allocated(&self) -> Result<u64> {
        self.engine.file().allocated()
    }

    fn parent(&self) -> Option<(PathBuf, Arc<dyn Image>)> {
        self.parent.clone()
    }

    fn identity(&self) -> Identity {
        Identity {
            uuid: self.uuid,
            ..Identity::default()
        }
    }

    fn pinned(&self) -> Option<String> {
        Some("VHDX is for reading only".to_owned())
    }

    fn kind(&self) -> CreateOptions {
        CreateOptions::new(Format::Vhdx, self.engine.size())
    }
}
