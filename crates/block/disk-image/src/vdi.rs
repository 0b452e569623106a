//! VirtualBox disk images (VDI), version 1.1: dynamic, fixed and differencing.
//!
//! A map of 32-bit block numbers, in memory order of the disk; blocks follow behind it in whatever order they were
//! allocated. A discarded block keeps its place and becomes a hole of the file; one that never had a place and has a
//! parent becomes a zero block. VDI names no parent: it is found by its identifier among the images beside the child and
//! in the folder above, or by the name that we leave in the comment.
//!
//! The header counts the blocks in the map. Header and map cannot be written at once, so the count is written first and
//! may be too high after a power cut; the map is what counts.
//!
//! Spec: VirtualBox, VDICore.h; QEMU, block/vdi.c ("VDI").

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rustc_hash::FxHashSet;

use crate::BlockError;
use crate::CreateOptions;
use crate::Format;
use crate::Identity;
use crate::Image;
use crate::ImageInfo;
use crate::Report;
use crate::Result;
use crate::Uuid;
use crate::Variant;
use crate::bytes;
use crate::bytes::put;
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
use crate::store::Access;
use crate::store::File;

pub(crate) const SIGNATURE: u32 = 0xbeda_107f;
const VERSION: u32 = 0x0001_0001;
/// Nothing there: the parent's, or zeros.
const FREE: u32 = 0xffff_ffff;
/// Zeros, whatever a parent has.
const ZERO: u32 = 0xffff_fffe;
/// The map takes 512 MiB at most.
const MAX_BLOCKS: u32 = 1 << 27;
const MIB: u64 = 1 << 20;
/// Files that are looked at for a parent.
const MAX_CANDIDATES: usize = 1000;
/// What the comment begins with when it names the parent.
const PARENT_COMMENT: &str = "parent=";

const TYPE_DYNAMIC: u32 = 1;
const TYPE_FIXED: u32 = 2;
const TYPE_DIFF: u32 = 4;

/// Offsets in the header.
const AT_TYPE: usize = 76;
const AT_COMMENT: usize = 84;
const AT_MAP: usize = 340;
const AT_DATA: usize = 344;
const AT_SIZE: usize = 368;
const AT_BLOCK: usize = 376;
const AT_EXTRA: usize = 380;
const AT_BLOCKS: usize = 384;
const AT_ALLOCATED: usize = 388;
const AT_UUID: usize = 392;
const AT_MODIFIED: usize = 408;
const AT_PARENT: usize = 424;
const AT_PARENT_MODIFIED: usize = 440;

#[derive(Clone, Debug)]
struct Header {
    kind: u32,
    comment: String,
    map: u64,
    data: u64,
    size: u64,
    block: u64,
    blocks: u32,
    allocated: u32,
    uuid: Uuid,
    modified: Uuid,
    parent: Uuid,
    parent_modified: Uuid,
}

impl Header {
    fn read(file: &File) -> Result<Self> {
        let mut head = [0; 512];
        file.read_exact(0, &mut head)?;
        let u32_at = |at| bytes::u32_le(&head, at);
        let version = u32_at(68);
        if u32_at(64) != SIGNATURE {
            return Err(file.no_such_image(Format::Vdi));
        }
        if version >> 16 != 1 || version & 0xffff == 0 {
            return Err(file.unsupported(format!(
                "VDI version {}.{} is not supported; 1.1 is",
                version >> 16,
                version & 0xffff
            )));
        }
        let comment = head.get(AT_COMMENT..AT_COMMENT + 256).unwrap_or_default();
        let comment = comment.split(|&byte| byte == 0).next().unwrap_or_default();
        let header = Self {
            kind: u32_at(AT_TYPE),
            comment: String::from_utf8_lossy(comment).into_owned(),
            map: u32_at(AT_MAP).into(),
            data: u32_at(AT_DATA).into(),
            size: bytes::u64_le(&head, AT_SIZE),
            block: u32_at(AT_BLOCK).into(),
            blocks: u32_at(AT_BLOCKS),
            allocated: u32_at(AT_ALLOCATED),
            uuid: Uuid(bytes::get(&head, AT_UUID)),
            modified: Uuid(bytes::get(&head, AT_MODIFIED)),
            parent: Uuid(bytes::get(&head, AT_PARENT)),
            parent_modified: Uuid(bytes::get(&head, AT_PARENT_MODIFIED)),
        };
        if u32_at(AT_EXTRA) != 0 {
            return Err(file.unsupported("VDI blocks with extra data are not supported"));
        }
        header.validate(file)?;
        Ok(header)
    }

    fn validate(&self, file: &File) -> Result<()> {
        let bad = |what: String| Err(file.corrupt(what));
        if !matches!(self.kind, TYPE_DYNAMIC | TYPE_FIXED | TYPE_DIFF) {
            return Err(file.unsupported(format!("VDI type {} is not supported", self.kind)));
        }
        if !self.block.is_power_of_two() || !(4096..=256 * MIB).contains(&self.block) {
            return bad(format!("the header says blocks of {} bytes", self.block));
        }
        if self.blocks > MAX_BLOCKS {
            return bad(format!("the header says {} blocks", self.blocks));
        }
        if self.size.div_ceil(self.block) > self.blocks.into() {
            return bad(format!(
                "a disk of {} bytes needs more than {} blocks",
                self.size, self.blocks
            ));
        }
        let end = self.map + u64::from(self.blocks) * 4;
        if self.map < 512 || !self.map.is_multiple_of(512) || !self.data.is_multiple_of(512) || end > self.data {
            return bad(format!(
                "the block map at {:#x} reaches into the data at {:#x}",
                self.map, self.data
            ));
        }
        if end > file.len()? {
            return bad(format!(
                "the file ends within the block map at {:#x}; it was cut off",
                self.map
            ));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct VdiTables {
    header: Header,
    /// Length of the file.
    end: u64,
    /// Block numbers from here on are free. None until somebody needs to know.
    next: Option<u32>,
}

impl VdiTables {
    fn entry(&self, meta: &mut Meta, block: u64) -> Result<u32> {
        meta.u32_le(self.header.map + block * 4)
    }

    fn place(&self, number: u32) -> u64 {
        self.header.data + u64::from(number) * self.header.block
    }

    /// The highest number in the map, plus one.
    fn next(&mut self, meta: &mut Meta) -> Result<u32> {
        if let Some(next) = self.next {
            return Ok(next);
        }
        let mut next = 0;
        for block in 0..u64::from(self.header.blocks) {
            let entry = self.entry(meta, block)?;
            if entry < ZERO {
                self.check_entry(meta, block, entry)?;
                next = next.max(entry + 1);
            }
        }
        self.next = Some(next);
        Ok(next)
    }

    fn check_entry(&self, meta: &Meta, block: u64, entry: u32) -> Result<()> {
        if self.place(entry) >= self.end {
            return Err(meta.file().corrupt(format!(
                "block {block} of the disk is said to be block {entry} of the file, which is behind its end"
            )));
        }
        Ok(())
    }
}

impl Tables for VdiTables {
    fn look(&mut self, meta: &mut Meta, offset: u64) -> Result<Run> {
        let (block, within) = (offset / self.header.block, offset % self.header.block);
        let len = self.header.block - within;
        if block >= self.header.blocks.into() {
            return Ok(Run { map: Map::Parent, len });
        }
        let map = match self.entry(meta, block)? {
            FREE => Map::Parent,
            ZERO => Map::Zero,
            entry => {
                self.check_entry(meta, block, entry)?;
                Map::Data {
                    at: self.place(entry) + within,
                    shared: false,
                }
            }
        };
        Ok(Run { map, len })
    }

    fn begin(&mut self, meta: &mut Meta, offset: u64, len: u64) -> Result<Place> {
        let first = offset / self.header.block;
        let number = self.next(meta)?;
        let mut count = 1;
        while count * self.header.block < len && self.entry(meta, first + count)? >= ZERO {
            count += 1;
        }
        // Numbers run out only when a map is full of the same ones.
        let full = || {
            meta.file()
                .corrupt("more blocks are in use than the map has; run `oxbow disk check`")
        };
        let next = u32::try_from(u64::from(number) + count)
            .ok()
            .filter(|&next| next <= self.header.blocks);
        let next = next.ok_or_else(full)?;
        let (at, end) = (self.place(number), self.place(next));
        let zeros = at >= self.end;
        if end > self.end {
            meta.file().set_len(end)?;
            self.end = end;
        }
        self.next = Some(next);
        Ok(Place {
            at,
            len: count * self.header.block,
            zeros,
            whole: false,
            new: true,
        })
    }

    fn publish(&mut self, meta: &mut Meta, range: Range<u64>, at: u64) -> Result<()> {
        let first = range.start / self.header.block;
        let number = (at - self.header.data) / self.header.block;
        let count = (range.end - range.start).div_ceil(self.header.block);
        for index in 0..count {
            let entry = (number + index) as u32;
            meta.put(self.header.map + (first + index) * 4, &entry.to_le_bytes(), Stage::Late)?;
        }
        self.header.allocated = self.header.allocated.saturating_add(count as u32);
        meta.put(AT_ALLOCATED as u64, &self.header.allocated.to_le_bytes(), Stage::Late)
    }

    fn zero(&mut self, meta: &mut Meta, range: Range<u64>) -> Result<bool> {
        for block in range.start / self.header.block..range.end / self.header.block {
            match self.entry(meta, block)? {
                FREE => meta.put(self.header.map + block * 4, &ZERO.to_le_bytes(), Stage::Late)?,
                ZERO => {}
                // It got a place meanwhile.
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn first_write(&mut self, meta: &mut Meta) -> Result<()> {
        self.header.modified = Uuid::random();
        meta.put(AT_MODIFIED as u64, &self.header.modified.0, Stage::Late)
    }
}

struct Vdi {
    engine: Engine<VdiTables>,
    path: PathBuf,
    parent: Option<(PathBuf, Arc<dyn Image>)>,
}

pub(crate) fn open(opening: &Opening, file: File) -> Result<Arc<dyn Image>> {
    let header = Header::read(&file)?;
    let parent = if header.kind == TYPE_DIFF {
        Some(find_parent(opening, &header)?)
    } else {
        None
    };
    let shape = Shape {
        size: header.size,
        block: header.block,
        unit: header.block,
        codec: Codec::Zlib,
    };
    let tables = VdiTables {
        end: file.len()?,
        header,
        next: None,
    };
    let backing = parent.as_ref().map(|(_, image)| Parent {
        image: Arc::clone(image),
        offset: 0,
    });
    Ok(Arc::new(Vdi {
        engine: Engine::new(Meta::new(file), tables, shape, backing, opening.write()),
        path: opening.path.clone(),
        parent,
    }))
}

/// The parent: by the name in the comment, else by the identifier, beside the child and in the folder above.
fn find_parent(opening: &Opening, header: &Header) -> Result<(PathBuf, Arc<dyn Image>)> {
    let refuse = |what: String| BlockError::Parent {
        file: opening.path.display().to_string(),
        what,
    };
    let path = match header.comment.strip_prefix(PARENT_COMMENT) {
        Some(name) => Some(opening.resolve(name)?).filter(|path| opening.files.id(path).is_some()),
        None => None,
    };
    let path = match path {
        Some(path) => path,
        None => search(opening, header.parent).ok_or_else(|| {
            refuse(format!(
                "its parent with the identifier {} is neither beside it nor in the folder above; put it there",
                header.parent
            ))
        })?,
    };
    let image = opening.parent(&path, None)?;
    let identity = image.identity();
    let other = !header.parent.is_zero() && !identity.uuid.is_zero() && identity.uuid != header.parent;
    if other {
        return Err(refuse(format!(
            "`{}` is not its parent: the identifiers differ",
            path.display()
        )));
    }
    let changed = !header.parent_modified.is_zero()
        && !identity.modified.is_zero()
        && identity.modified != header.parent_modified;
    if changed {
        return Err(refuse(format!(
            "its parent `{}` was written to since; what the child has no longer fits",
            path.display()
        )));
    }
    Ok((path, image))
}

fn search(opening: &Opening, wanted: Uuid) -> Option<PathBuf> {
    let folder = opening.path.parent()?;
    let above = folder.join("..");
    let folders = [folder, &above];
    let candidates = folders
        .iter()
        .flat_map(|folder| opening.files.list(folder, MAX_CANDIDATES));
    candidates
        .filter(|path| path.extension().is_some_and(|extension| extension == "vdi"))
        .find(|path| {
            let head = File::open(&*opening.files, path, Access::ReadShared).and_then(|file| Header::read(&file));
            *path != opening.path && head.is_ok_and(|head| head.uuid == wanted)
        })
}

disk_of_engine!(Vdi, |image: &Vdi| ImageInfo {
    format: Format::Vdi,
    variant: image.variant().to_owned(),
    size: image.engine.size(),
    sector_size: 512,
    block_size: image.engine.block(),
    writable: image.engine.writable(),
});

impl Vdi {
    fn kind_code(&self) -> u32 {
        self.engine.state().tables.header.kind
    }

    fn variant(&self) -> &'static str {
        match self.kind_code() {
            TYPE_FIXED => "fixed",
            TYPE_DIFF => "differencing",
            _ => "dynamic",
        }
    }
}

impl Image for Vdi {
    fn check(&self, repair: bool) -> Result<Report> {
        if repair {
            self.engine.prepare_maintenance()?;
        }
        let report = check(&mut self.engine.state(), repair)?;
        self.engine.flush()?;
        Ok(report)
    }

    /// In place as long as the map has room, which new images have for some hundred gigabytes.
    fn resize(&self, size: u64) -> Result<bool> {
        let (old, header) = (self.engine.size(), self.engine.state().tables.header.clone());
        let blocks = size.div_ceil(header.block);
        if size < old
            || header.kind == TYPE_FIXED
            || header.map + blocks * 4 > header.data
            || blocks > MAX_BLOCKS.into()
        {
            return Ok(false);
        }
        self.engine.prepare_maintenance()?;
        {
            let State { tables, meta } = &mut *self.engine.state();
            for block in u64::from(header.blocks)..blocks {
                meta.put(header.map + block * 4, &FREE.to_le_bytes(), Stage::Late)?;
            }
            tables.header.blocks = tables.header.blocks.max(blocks as u32);
        }
        self.engine.set_size(size);
        self.engine.zero_range(old, size - old, true)?;
        // The header says so when everything is there.
        self.engine.flush()?;
        let mut state = self.engine.state();
        let blocks = state.tables.header.blocks;
        state.tables.header.size = size;
        state.meta.put(AT_SIZE as u64, &size.to_le_bytes(), Stage::Late)?;
        state.meta.put(AT_BLOCKS as u64, &blocks.to_le_bytes(), Stage::Late)?;
        drop(state);
        self.engine.flush()?;
        Ok(true)
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
        let state = self.engine.state();
        Identity {
            uuid: state.tables.header.uuid,
            modified: state.tables.header.modified,
            cid: None,
        }
    }

    fn set_identity(&self, identity: &Identity) -> Result<()> {
        self.engine.prepare_maintenance()?;
        let mut state = self.engine.state();
        state.tables.header.modified = identity.modified;
        state.meta.put(AT_MODIFIED as u64, &identity.modified.0, Stage::Late)
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        vec![("identifier", self.identity().uuid.to_string())]
    }

    fn kind(&self) -> CreateOptions {
        CreateOptions {
            variant: if self.kind_code() == TYPE_FIXED {
                Variant::Fixed
            } else {
                Variant::Default
            },
            block_size: Some(self.engine.block()),
            ..CreateOptions::new(Format::Vdi, self.engine.size())
        }
    }
}

fn check(state: &mut State<VdiTables>, repair: bool) -> Result<Report> {
    let State { tables, meta } = state;
    let blocks = u64::from(tables.header.blocks);
    let mut report = Report {
        blocks,
        ..Report::default()
    };
    let mut seen = FxHashSet::default();
    let mut highest = 0;
    for block in 0..blocks {
        let entry = tables.entry(meta, block)?;
        if entry >= ZERO {
            continue;
        }
        report.allocated += 1;
        if let Err(error) = tables.check_entry(meta, block, entry) {
            report.error(|| error.to_string());
        } else if !seen.insert(entry) {
            report.error(|| format!("block {block} of the disk shares block {entry} of the file with another one"));
        } else {
            highest = highest.max(u64::from(entry) + 1);
        }
        // A map of nothing but errors needs no further look.
        if report.error_count > 1 << 20 {
            break;
        }
    }
    report.leaks = highest - seen.len() as u64;
    if report.leaks > 0 {
        let leaks = report.leaks;
        report.note(|| format!("{leaks} blocks of the file are not in use; `oxbow disk compact` gives them back"));
    }
    let counted = u64::from(tables.header.allocated);
    if counted != report.allocated {
        let allocated = report.allocated;
        report.note(|| {
            format!("the header counts {counted} blocks, the map has {allocated}; a repair corrects the count")
        });
        if repair {
            tables.header.allocated = report.allocated as u32;
            meta.put(AT_ALLOCATED as u64, &tables.header.allocated.to_le_bytes(), Stage::Late)?;
            report.repaired += 1;
        }
    }
    Ok(report)
}

pub(crate) fn create(making: &Making<'_>, file: &File) -> Result<()> {
    let options = making.options;
    let block = options.block_size.unwrap_or(MIB);
    if !block.is_power_of_two() || !(4096..=256 * MIB).contains(&block) {
        return Err(BlockError::Usage(format!(
            "VDI blocks are a power of two from 4K to 256M, not {block} bytes"
        )));
    }
    let blocks = making.size.div_ceil(block);
    let data = (MIB + blocks * 4).next_multiple_of(MIB);
    if blocks > MAX_BLOCKS.into() || u32::try_from(data).is_err() {
        return Err(BlockError::Usage(format!(
            "a disk of {} bytes is too large for VDI with blocks of {block} bytes",
            making.size
        )));
    }
    let fixed = options.variant == Variant::Fixed;
    if fixed && making.parent.is_some() {
        return Err(BlockError::Usage("a fixed image has no parent".to_owned()));
    }
    let head = header(making, block, blocks as u32, data as u32, fixed)?;
    let entry = |block: u32| if fixed { block } else { FREE };
    // The map in pieces: it may be large.
    file.set_len(data)?;
    let mut block_number = 0;
    while block_number < blocks {
        let count = (blocks - block_number).min(1 << 18);
        let piece: Vec<u8> = (block_number..block_number + count)
            .flat_map(|block| entry(block as u32).to_le_bytes())
            .collect();
        file.write(MIB + block_number * 4, &piece)?;
        block_number += count;
    }
    if fixed {
        file.set_len(data + blocks * block)?;
        file.zero(data, blocks * block, true)?;
    }
    file.write(0, &head)?;
    file.sync()
}

fn header(making: &Making<'_>, block: u64, blocks: u32, data: u32, fixed: bool) -> Result<Vec<u8>> {
    let mut head = vec![0; 512];
    let identity = making.identity();
    let kind = if fixed { TYPE_FIXED } else { TYPE_DYNAMIC };
    let u32s = [
        (64, SIGNATURE),
        (68, VERSION),
        (72, 400),
        (AT_MAP, MIB as u32),
        (AT_DATA, data),
        (360, 512),
    ];
    for (at, value) in u32s {
        put(&mut head, at, &value.to_le_bytes());
    }
    put(&mut head, 0, b"<<< Oracle VM VirtualBox Disk Image >>>\n");
    put(&mut head, AT_TYPE, &kind.to_le_bytes());
    put(&mut head, AT_SIZE, &making.size.to_le_bytes());
    put(&mut head, AT_BLOCK, &(block as u32).to_le_bytes());
    put(&mut head, AT_BLOCKS, &blocks.to_le_bytes());
    put(&mut head, AT_ALLOCATED, &(if fixed { blocks } else { 0 }).to_le_bytes());
    put(&mut head, AT_UUID, &identity.uuid.0);
    put(&mut head, AT_MODIFIED, &identity.modified.0);
    if let Some(parent) = &making.parent {
        let identity = parent.image.identity();
        let comment = format!("{PARENT_COMMENT}{}", parent.name);
        if comment.len() > 255 {
            return Err(BlockError::Usage(format!(
                "the parent's name of {} bytes is too long for VDI's comment",
                parent.name.len()
            )));
        }
        put(&mut head, AT_TYPE, &TYPE_DIFF.to_le_bytes());
        put(&mut head, AT_COMMENT, comment.as_bytes());
        put(&mut head, AT_PARENT, &identity.uuid.0);
        put(&mut head, AT_PARENT_MODIFIED, &identity.modified.0);
    }
    Ok(head)
}
