//! Virtual PC and Hyper-V disk images (VHD), version 1.0: fixed, dynamic and differencing.
//!
//! A table of blocks, each with a bitmap of its sectors in front. In a differencing image the bitmap tells which sectors
//! are the child's; elsewhere all are. The file ends with a footer, which has to move when blocks are added: room for
//! several blocks is made at once, and the footer is on the medium at its new place before its old one is written over.
//! A footer that a power cut lost is taken from its copy at the beginning.
//!
//! VHD cannot say that a block is zero: over a parent, zeros are written.
//!
//! Spec: Microsoft, Virtual Hard Disk Image Format Specification, 1.0 ("VHD").

mod fixed;
mod format;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rustc_hash::FxHashSet;

pub(crate) use self::format::is_footer;

use self::fixed::FixedVhd;
use self::format::DIFFERENCING;
use self::format::DYNAMIC;
use self::format::DynamicHeader;
use self::format::FIXED;
use self::format::Footer;
use self::format::MAX_SIZE;
use self::format::SECTOR;
use self::format::UNUSED;
use self::format::windows_path;
use crate::BlockError;
use crate::CreateOptions;
use crate::Format;
use crate::Identity;
use crate::Image;
use crate::ImageInfo;
use crate::Report;
use crate::Result;
use crate::Variant;
use crate::create::Making;
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
use crate::meta::Stage;
use crate::open::Opening;
use crate::packed::Codec;
use crate::store::File;

const MIB: u64 = 1 << 20;
/// Room for this many blocks is made at once.
const RESERVE: u64 = 8;
/// Data begins at multiples of this many bytes.
const ALIGN: u64 = 4096;

#[derive(Debug)]
struct VhdTables {
    footer: Footer,
    header: DynamicHeader,
    /// Bytes of a bitmap.
    bitmap: u64,
    /// Where the footer is, or would be.
    end: u64,
    has_footer: bool,
    /// From here on, space reads as zeros.
    fresh: u64,
    /// Where the next block goes. None until somebody needs to know.
    next: Option<u64>,
}

impl VhdTables {
    fn differencing(&self) -> bool {
        self.footer.kind == DIFFERENCING
    }

    /// Where a block and its bitmap are. None when it is not there.
    fn block(&self, meta: &mut Meta, block: u64) -> Result<Option<u64>> {
        let entry = meta.u32_be(self.header.table + block * 4)?;
        if entry == UNUSED {
            return Ok(None);
        }
        let at = u64::from(entry) * SECTOR;
        if at < self.footer.data + 1024 || at + self.bitmap >= self.end {
            return Err(meta.file().corrupt(format!(
                "block {block} is said to be at {at:#x}, where none can be; run `oxbow disk check`"
            )));
        }
        Ok(Some(at))
    }

    /// Behind the last block.
    fn next(&mut self, meta: &mut Meta) -> Result<u64> {
        if let Some(next) = self.next {
            return Ok(next);
        }
        let mut next = self.first_block(meta)?;
        for block in 0..u64::from(self.header.entries) {
            if let Some(at) = self.block(meta, block)? {
                next = next.max(at + self.bitmap + self.header.block);
            }
        }
        self.next = Some(next);
        Ok(next)
    }

    /// Behind header, table and locators. Locators of other programs may be anywhere, so all that is in the file when
    /// there are no blocks is left alone.
    fn first_block(&self, meta: &mut Meta) -> Result<u64> {
        let table_end = (self.header.table + u64::from(self.header.entries) * 4).next_multiple_of(SECTOR);
        let mut lowest = self.end;
        for block in 0..u64::from(self.header.entries) {
            if let Some(at) = self.block(meta, block)? {
                lowest = lowest.min(at);
            }
        }
        Ok(lowest.max(table_end.max(self.footer.data + 1024)))
    }

    /// Space for a block, whose data is aligned.
    fn append(&mut self, meta: &mut Meta) -> Result<u64> {
        let next = self.next(meta)?;
        let at = (next + self.bitmap).next_multiple_of(ALIGN) - self.bitmap;
        let len = self.bitmap + self.header.block;
        if (at + len * RESERVE) / SECTOR > u32::MAX.into() {
            return Err(meta.file().unsupported("the file is as large as VHD allows (2 TiB)"));
        }
        if at + len > self.end || !self.has_footer {
            let file = meta.file();
            let old = (self.end, self.has_footer);
            let end = (at + len * RESERVE).max(self.end);
            file.write(end, &self.footer.sector)?;
            file.sync()?;
            if old.1 && old.0 < end {
                file.zero(old.0, SECTOR, false)?;
            }
            (self.end, self.has_footer) = (end, true);
        }
        self.next = Some(at + len);
        Ok(at)
    }

    /// The sectors from `first` on that are alike: whether they are the child's, and how many.
    fn sectors(&self, meta: &mut Meta, bitmap: u64, first: u64) -> Result<(bool, u64)> {
        let all = self.header.block / SECTOR;
        let mut piece = [0; 64];
        let mut sector = first;
        let mut kind = None;
        while sector < all {
            let byte = sector / 8;
            let len = (all / 8 - byte).min(64) as usize;
            let piece = piece.get_mut(..len).unwrap_or_default();
            meta.read(bitmap + byte, piece)?;
            for &byte in piece.iter() {
                while sector < all {
                    let own = byte << (sector % 8) & 0x80 != 0;
                    if *kind.get_or_insert(own) != own {
                        return Ok((!own, sector - first));
                    }
                    sector += 1;
                    if sector.is_multiple_of(8) {
                        break;
                    }
                }
            }
        }
        Ok((kind.unwrap_or(false), (sector - first).max(1)))
    }

    /// Marks sectors of a block as the child's.
    fn mark(&self, meta: &mut Meta, bitmap: u64, sectors: Range<u64>) -> Result<()> {
        let first = sectors.start / 8;
        let mut bytes = vec![0; (sectors.end.div_ceil(8) - first) as usize];
        meta.read(bitmap + first, &mut bytes)?;
        for sector in sectors {
            if let Some(byte) = bytes.get_mut((sector / 8 - first) as usize) {
                *byte |= 0x80 >> (sector % 8);
            }
        }
        meta.put(bitmap + first, &bytes, Stage::Late)
    }
}

impl Tables for VhdTables {
    fn look(&mut self, meta: &mut Meta, offset: u64) -> Result<Run> {
        let size = self.header.block;
        let (block, within) = (offset / size, offset % size);
        let len = size - within;
        if block >= self.header.entries.into() {
            return Ok(Run { map: Map::Parent, len });
        }
        let Some(at) = self.block(meta, block)? else {
            return Ok(Run { map: Map::Parent, len });
        };
        let data = Map::Data {
            at: at + self.bitmap + within,
            shared: false,
        };
        if !self.differencing() {
            return Ok(Run { map: data, len });
        }
        let (own, count) = self.sectors(meta, at, within / SECTOR)?;
        let len = count * SECTOR - within % SECTOR;
        Ok(Run {
            map: if own { data } else { Map::Parent },
            len,
        })
    }

    fn begin(&mut self, meta: &mut Meta, offset: u64, _len: u64) -> Result<Place> {
        let len = self.header.block;
        if let Some(at) = self.block(meta, offset / len)? {
            return Ok(Place {
                at: at + self.bitmap,
                len,
                zeros: false,
                whole: false,
                new: false,
            });
        }
        let at = self.append(meta)?;
        meta.fresh(at, self.bitmap)?;
        if !self.differencing() {
            meta.put(at, &vec![0xff; (len / SECTOR / 8) as usize], Stage::Early)?;
        }
        Ok(Place {
            at: at + self.bitmap,
            len,
            zeros: at >= self.fresh,
            whole: false,
            new: true,
        })
    }

    fn publish(&mut self, meta: &mut Meta, range: Range<u64>, at: u64) -> Result<()> {
        let size = self.header.block;
        let (block, within) = (range.start / size, range.start % size);
        let bitmap = at - within - self.bitmap;
        if self.differencing() {
            let first = within / SECTOR;
            self.mark(meta, bitmap, first..first + (range.end - range.start) / SECTOR)?;
        }
        let entry = ((bitmap / SECTOR) as u32).to_be_bytes();
        let entry_at = self.header.table + block * 4;
        if meta.get(entry_at)? != entry {
            meta.put(entry_at, &entry, Stage::Late)?;
        }
        Ok(())
    }

    fn zero(&mut self, _meta: &mut Meta, _range: Range<u64>) -> Result<bool> {
        Ok(false)
    }

    /// Gives back the room that no block took.
    fn close(&mut self, meta: &mut Meta) -> Result<()> {
        let Some(next) = self.next.filter(|&next| self.has_footer && next + SECTOR <= self.end) else {
            return Ok(());
        };
        let file = meta.file();
        file.write(next, &self.footer.sector)?;
        file.sync()?;
        file.set_len(next + SECTOR)?;
        self.end = next;
        Ok(())
    }
}

struct Vhd {
    engine: Engine<VhdTables>,
    path: PathBuf,
    parent: Option<(PathBuf, Arc<dyn Image>)>,
}

pub(crate) fn open(opening: &Opening, file: File) -> Result<Arc<dyn Image>> {
    let (footer, at_end) = Footer::read(&file)?;
    let len = file.len()?;
    if footer.kind == FIXED {
        if footer.size + SECTOR > len {
            return Err(file.corrupt(format!(
                "a disk of {} bytes does not fit the file of {len}; it was cut off",
                footer.size
            )));
        }
        return Ok(Arc::new(FixedVhd::new(opening, file, footer)));
    }
    if !matches!(footer.kind, DYNAMIC | DIFFERENCING) {
        return Err(file.unsupported(format!("VHD type {} is not supported", footer.kind)));
    }
    let header = DynamicHeader::read(&file, &footer)?;
    let parent = if footer.kind == DIFFERENCING {
        Some(find_parent(opening, &header)?)
    } else {
        None
    };
    let end = if at_end {
        len - SECTOR
    } else {
        len.next_multiple_of(SECTOR)
    };
    let shape = Shape {
        size: footer.size,
        block: header.block,
        unit: if footer.kind == DIFFERENCING {
            SECTOR
        } else {
            header.block
        },
        codec: Codec::Zlib,
    };
    let tables = VhdTables {
        bitmap: (header.block / SECTOR / 8).next_multiple_of(SECTOR),
        footer,
        header,
        end,
        has_footer: at_end,
        fresh: end,
        next: None,
    };
    let backing = parent.as_ref().map(|(_, image)| Parent {
        image: Arc::clone(image),
        offset: 0,
    });
    Ok(Arc::new(Vhd {
        engine: Engine::new(Meta::new(file), tables, shape, backing, opening.write()),
        path: opening.path.clone(),
        parent,
    }))
}

fn find_parent(opening: &Opening, header: &DynamicHeader) -> Result<(PathBuf, Arc<dyn Image>)> {
    let refuse = |what: String| BlockError::Parent {
        file: opening.path.display().to_string(),
        what,
    };
    let mut paths = Vec::new();
    for name in &header.parents {
        paths.push(opening.resolve(name)?);
    }
    let known = paths
        .iter()
        .find(|path| opening.files.id(path).is_some())
        .or(paths.first());
    let path = known.ok_or_else(|| refuse("it has a parent, but no name for it".to_owned()))?;
    let image = opening.parent(path, None)?;
    let uuid = image.identity().uuid;
    if !uuid.is_zero() && !header.parent.is_zero() && uuid != header.parent {
        return Err(refuse(format!(
            "`{}` is not its parent: the identifiers differ",
            path.display()
        )));
    }
    Ok((path.clone(), image))
}

disk_of_engine!(Vhd, |image: &Vhd| ImageInfo {
    format: Format::Vhd,
    variant: if image.parent.is_some() {
        "differencing"
    } else {
        "dynamic"
    }
    .to_owned(),
    size: image.engine.size(),
    sector_size: 512,
    block_size: image.engine.block(),
    writable: image.engine.writable(),
});

impl Image for Vhd {
    fn check(&self, repair: bool) -> Result<Report> {
        if repair {
            self.engine.prepare_maintenance()?;
        }
        self.engine.flush()?;
        let report = check(&mut self.engine.state(), repair)?;
        self.engine.wrote();
        self.engine.flush()?;
        Ok(report)
    }

    /// Never in place: the table has the size of the disk.
    fn resize(&self, _size: u64) -> Result<bool> {
        Ok(false)
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
            uuid: self.engine.state().tables.footer.uuid,
            ..Identity::default()
        }
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![("identifier", self.identity().uuid.to_string())]
    }

    fn kind(&self) -> CreateOptions {
        CreateOptions {
            block_size: Some(self.engine.block()),
            ..CreateOptions::new(Format::Vhd, self.engine.size())
        }
    }
}

fn check(state: &mut State<VhdTables>, repair: bool) -> Result<Report> {
    let State { tables, meta } = state;
    let mut report = Report {
        blocks: tables.header.entries.into(),
        ..Report::default()
    };
    let mut starts = Vec::new();
    let mut seen = FxHashSet::default();
    for block in 0..u64::from(tables.header.entries) {
        match tables.block(meta, block) {
            Ok(None) => {}
            Ok(Some(at)) if seen.insert(at) => {
                report.allocated += 1;
                starts.push((at, block));
            }
            Ok(Some(at)) => report.error(|| format!("block {block} shares its place at {at:#x} with another one")),
            Err(error) => report.error(|| error.to_string()),
        }
    }
    starts.sort_unstable();
    let len = tables.bitmap + tables.header.block;
    for pair in starts.windows(2) {
        if let [(a, first), (b, second)] = pair
            && a + len > *b
        {
            report.error(|| format!("blocks {first} and {second} overlap at {b:#x}"));
        }
    }
    if !tables.has_footer {
        report.note(|| "the footer at the end of the file is missing; its copy at the beginning is used".to_owned());
        if repair {
            meta.file().write(tables.end, &tables.footer.sector)?;
            tables.has_footer = true;
            report.repaired += 1;
        }
    }
    Ok(report)
}

pub(crate) fn create(making: &Making<'_>, file: &File) -> Result<()> {
    let (options, size) = (making.options, making.size);
    if size > MAX_SIZE {
        return Err(BlockError::Usage(format!(
            "a disk of {size} bytes is too large for VHD (2040 GiB)"
        )));
    }
    let uuid = making.identity().uuid;
    if options.variant == Variant::Fixed {
        if making.parent.is_some() {
            return Err(BlockError::Usage("a fixed image has no parent".to_owned()));
        }
        file.set_len(size + SECTOR)?;
        file.zero(0, size, true)?;
        file.write(size, &Footer::make(size, FIXED, uuid))?;
        return file.sync();
    }
    let block = options.block_size.unwrap_or(2 * MIB);
    if !block.is_power_of_two() || !(4096..=256 * MIB).contains(&block) {
        return Err(BlockError::Usage(format!(
            "VHD blocks are a power of two from 4K to 256M, not {block} bytes"
        )));
    }
    let entries = size.div_ceil(block);
    if entries > 1 << 24 {
        return Err(BlockError::Usage(format!(
            "a disk of {size} bytes is too large for VHD with blocks of {block} bytes"
        )));
    }
    let table = 3 * SECTOR;
    let table_len = (entries * 4).next_multiple_of(SECTOR);
    let locator = table + table_len;
    let mut end = locator;
    let mut parent = None;
    if let Some(image) = &making.parent {
        let path = windows_path(&image.name);
        if path.len() > 65536 {
            return Err(BlockError::Usage("the parent's name is too long".to_owned()));
        }
        file.write(locator, &path)?;
        end += (path.len() as u64).next_multiple_of(SECTOR);
        parent = Some((image.image.identity().uuid, image.name.as_str(), locator));
    }
    let kind = if parent.is_some() { DIFFERENCING } else { DYNAMIC };
    let footer = Footer::make(size, kind, uuid);
    file.write(table, &vec![0xff; table_len as usize])?;
    file.write(SECTOR, &DynamicHeader::make(table, entries as u32, block, parent))?;
    file.write(end, &footer)?;
    file.write(0, &footer)?;
    file.sync()
}
