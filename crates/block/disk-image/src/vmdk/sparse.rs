//! Sparse extents of VMDK images: a directory of tables of grains.

use std::ops::Range;

use rustc_hash::FxHashSet;

use crate::Report;
use crate::Result;
use crate::bytes;
use crate::bytes::put;
use crate::engine::Map;
use crate::engine::Place;
use crate::engine::Run;
use crate::engine::State;
use crate::engine::Tables;
use crate::meta::Meta;
use crate::meta::Stage;
use crate::packed::Packed;
use crate::store::File;

pub(crate) const MAGIC: u32 = 0x564d_444b;
pub(crate) const SECTOR: u64 = 512;
/// The directory is at the end of the file, and the footer tells where.
pub(crate) const AT_END: u64 = u64::MAX;

pub(crate) const FLAG_NEWLINES: u32 = 1 << 0;
pub(crate) const FLAG_REDUNDANT: u32 = 1 << 1;
pub(crate) const FLAG_ZERO_GRAINS: u32 = 1 << 2;
pub(crate) const FLAG_COMPRESSED: u32 = 1 << 16;
pub(crate) const FLAG_MARKERS: u32 = 1 << 17;

/// The entry of a grain that is zeros.
const ZERO: u32 = 1;
/// The directory takes 64 MiB at most.
const MAX_DIRECTORY: u64 = 64 << 20;
/// Offset of the flag that the extent was not closed.
const AT_UNCLEAN: u64 = 72;

/// The header of a sparse extent. Sizes and offsets in sectors.
#[derive(Clone, Debug)]
pub(crate) struct SparseHeader {
    pub(crate) version: u32,
    pub(crate) flags: u32,
    pub(crate) capacity: u64,
    pub(crate) grain: u64,
    pub(crate) descriptor: u64,
    pub(crate) descriptor_size: u64,
    /// Entries in a grain table.
    pub(crate) entries: u64,
    pub(crate) redundant: u64,
    pub(crate) directory: u64,
    pub(crate) overhead: u64,
}

impl SparseHeader {
    pub(crate) fn read(file: &File) -> Result<Self> {
        let header = Self::read_at(file, 0)?;
        if header.directory != AT_END {
            return header.validated(file);
        }
        // The footer is before the end-of-stream marker.
        let len = file.len()?;
        let footer = len
            .checked_sub(2 * SECTOR)
            .ok_or_else(|| file.corrupt("the file ends before its footer; it was cut off"))?;
        let footer = Self::read_at(file, footer).map_err(|_| {
            file.corrupt("there is no footer at the end of the file, which should say where the grain directory is; it was cut off")
        })?;
        footer.validated(file)
    }

    fn read_at(file: &File, at: u64) -> Result<Self> {
        let mut head = [0; 512];
        file.read_exact(at, &mut head)?;
        let u64_at = |at| bytes::u64_le(&head, at);
        let version = bytes::u32_le(&head, 4);
        if bytes::u32_le(&head, 0) != MAGIC || !(1..=3).contains(&version) {
            return Err(file.unsupported(format!(
                "VMDK sparse extents of version {version} are not supported; 1 to 3 are"
            )));
        }
        if bytes::u32_le(&head, 8) & FLAG_COMPRESSED != 0 && bytes::u16_le(&head, 77) != 1 {
            return Err(file.unsupported("this compression of VMDK grains is not supported; deflate is"));
        }
        // What a transfer as text would have changed.
        if bytes::u32_le(&head, 8) & FLAG_NEWLINES != 0 && head.get(73..77) != Some(b"\n \r\n") {
            return Err(file.corrupt("line ends in the header were changed by a transfer as text"));
        }
        Ok(Self {
            version,
            flags: bytes::u32_le(&head, 8),
            capacity: u64_at(12),
            grain: u64_at(20),
            descriptor: u64_at(28),
            descriptor_size: u64_at(36),
            entries: bytes::u32_le(&head, 44).into(),
            redundant: u64_at(48),
            directory: u64_at(56),
            overhead: u64_at(64),
        })
    }

    fn validated(self, file: &File) -> Result<Self> {
        let bad = |what: String| Err(file.corrupt(what));
        if !self.grain.is_power_of_two() || !(8..=1 << 18).contains(&self.grain) {
            return bad(format!("the header says grains of {} sectors", self.grain));
        }
        if self.entries == 0 || self.entries > 4096 {
            return bad(format!("the header says grain tables of {} entries", self.entries));
        }
        if self.capacity > i64::MAX as u64 / SECTOR {
            return bad(format!("the header says {} sectors", self.capacity));
        }
        let sectors = file.len()? / SECTOR;
        let bytes = self.tables() * 4;
        let mut places = vec![("grain directory", self.directory)];
        if self.flags & FLAG_REDUNDANT != 0 {
            places.push(("redundant grain directory", self.redundant));
        }
        for (name, at) in places {
            let inside = at.checked_add(bytes.div_ceil(SECTOR)).is_some_and(|end| end <= sectors);
            if at == 0 || !inside || bytes > MAX_DIRECTORY {
                return bad(format!(
                    "the {name} of {bytes} bytes at sector {at:#x} is not within the file"
                ));
            }
        }
        Ok(self)
    }

    pub(crate) fn grain_bytes(&self) -> u64 {
        self.grain * SECTOR
    }

    /// Grain tables.
    pub(crate) fn tables(&self) -> u64 {
        self.capacity.div_ceil(self.grain * self.entries)
    }

    pub(crate) fn compressed(&self) -> bool {
        self.flags & FLAG_COMPRESSED != 0
    }

    /// The header's sector.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut head = vec![0; SECTOR as usize];
        let u32s = [
            (0, MAGIC),
            (4, self.version),
            (8, self.flags),
            (44, self.entries as u32),
        ];
        for (at, value) in u32s {
            put(&mut head, at, &value.to_le_bytes());
        }
        let u64s = [
            (12, self.capacity),
            (20, self.grain),
            (28, self.descriptor),
            (36, self.descriptor_size),
            (48, self.redundant),
            (56, self.directory),
            (64, self.overhead),
        ];
        for (at, value) in u64s {
            put(&mut head, at, &value.to_le_bytes());
        }
        put(&mut head, 73, b"\n \r\n");
        put(&mut head, 77, &u16::from(self.compressed()).to_le_bytes());
        head
    }
}

#[derive(Debug)]
pub(crate) struct SparseTables {
    pub(crate) header: SparseHeader,
    /// Length of the file.
    end: u64,
}

impl SparseTables {
    pub(crate) fn new(header: SparseHeader, end: u64) -> Self {
        Self { header, end }
    }

    /// The grain table for a grain in a directory; 0 for none.
    fn table(&self, meta: &mut Meta, directory: u64, grain: u64) -> Result<u64> {
        let index = grain / self.header.entries;
        let entry = u64::from(meta.u32_le(directory * SECTOR + index * 4)?) * SECTOR;
        if entry.saturating_add(self.header.entries * 4) > self.end {
            return Err(meta.file().corrupt(format!(
                "grain directory entry {index} says that a table is at {entry:#x}, behind the end of the file"
            )));
        }
        Ok(entry)
    }

    fn entry_at(&self, table: u64, grain: u64) -> u64 {
        table + grain % self.header.entries * 4
    }

    fn has_zero_grains(&self) -> bool {
        self.header.flags & FLAG_ZERO_GRAINS != 0
    }

    /// What an entry of a grain table says about the grain.
    fn decode(&self, meta: &mut Meta, grain: u64, entry: u32) -> Result<Map> {
        let at = u64::from(entry) * SECTOR;
        match entry {
            0 => return Ok(Map::Parent),
            ZERO if self.has_zero_grains() => return Ok(Map::Zero),
            _ => {}
        }
        let first = if self.header.compressed() {
            1
        } else {
            self.header.overhead.max(1)
        };
        if at >= self.end || at < first.saturating_mul(SECTOR) {
            return Err(meta.file().corrupt(format!(
                "grain {grain} is said to be at {at:#x}, where none can be; run `oxbow disk check`"
            )));
        }
        if !self.header.compressed() {
            return Ok(Map::Data { at, shared: false });
        }
        let len = u64::from(meta.u32_le(at + 8)?);
        Ok(Map::Packed(Packed { at: at + 12, len }))
    }

    /// New space at the end of the file.
    fn append(&mut self, meta: &Meta, len: u64, align: u64) -> Result<u64> {
        let at = self.end.next_multiple_of(align);
        // VMDK counts sectors in 32 bits.
        if (at + len) / SECTOR > u32::MAX.into() {
            return Err(meta
                .file()
                .unsupported("the extent's file is as large as VMDK allows (2 TiB)"));
        }
        meta.file().set_len(at + len)?;
        self.end = at + len;
        Ok(at)
    }

    /// The directories: the one that is read, and its copy.
    fn directories(&self) -> impl Iterator<Item = u64> + use<> {
        let copy = (self.header.flags & FLAG_REDUNDANT != 0).then_some(self.header.redundant);
        std::iter::once(self.header.directory).chain(copy)
    }

    /// Sets a grain's entry in all tables.
    fn set(&mut self, meta: &mut Meta, grain: u64, value: u32) -> Result<()> {
        for directory in self.directories() {
            let mut table = self.table(meta, directory, grain)?;
            if table == 0 {
                let len = (self.header.entries * 4).next_multiple_of(SECTOR);
                table = self.append(meta, len, SECTOR)?;
                meta.fresh(table, len)?;
                let at = directory * SECTOR + grain / self.header.entries * 4;
                meta.put(at, &((table / SECTOR) as u32).to_le_bytes(), Stage::Late)?;
            }
            meta.put(self.entry_at(table, grain), &value.to_le_bytes(), Stage::Late)?;
        }
        Ok(())
    }

    fn entry(&self, meta: &mut Meta, grain: u64) -> Result<u32> {
        match self.table(meta, self.header.directory, grain)? {
            0 => Ok(0),
            table => meta.u32_le(self.entry_at(table, grain)),
        }
    }
}

impl Tables for SparseTables {
    fn look(&mut self, meta: &mut Meta, offset: u64) -> Result<Run> {
        let size = self.header.grain_bytes();
        let (grain, within) = (offset / size, offset % size);
        if grain / self.header.entries >= self.header.tables() {
            return Ok(Run {
                map: Map::Parent,
                len: size - within,
            });
        }
        let table = self.table(meta, self.header.directory, grain)?;
        if table == 0 {
            let covers = size * self.header.entries;
            return Ok(Run {
                map: Map::Parent,
                len: covers - offset % covers,
            });
        }
        let entry = meta.u32_le(self.entry_at(table, grain))?;
        let map = match self.decode(meta, grain, entry)? {
            Map::Data { at, shared } => Map::Data {
                at: at + within,
                shared,
            },
            map => map,
        };
        Ok(Run {
            map,
            len: size - within,
        })
    }

    fn begin(&mut self, meta: &mut Meta, offset: u64, len: u64) -> Result<Place> {
        let size = self.header.grain_bytes();
        let first = offset / size;
        let mut count = 1;
        while count * size < len && matches!(self.entry(meta, first + count)?, 0 | ZERO) {
            count += 1;
        }
        let at = self.append(meta, count * size, size.min(65536))?;
        Ok(Place {
            at,
            len: count * size,
            zeros: true,
            whole: false,
            new: true,
        })
    }

    fn publish(&mut self, meta: &mut Meta, range: Range<u64>, at: u64) -> Result<()> {
        let size = self.header.grain_bytes();
        let first = range.start / size;
        for index in 0..(range.end - range.start).div_ceil(size) {
            let sector = (at + index * size) / SECTOR;
            self.set(meta, first + index, sector as u32)?;
        }
        Ok(())
    }

    fn zero(&mut self, meta: &mut Meta, range: Range<u64>) -> Result<bool> {
        if !self.has_zero_grains() {
            return Ok(false);
        }
        let size = self.header.grain_bytes();
        for grain in range.start / size..range.end / size {
            match self.entry(meta, grain)? {
                0 => self.set(meta, grain, ZERO)?,
                ZERO => {}
                // It got a place meanwhile.
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    fn first_write(&mut self, meta: &mut Meta) -> Result<()> {
        meta.put(AT_UNCLEAN, &[1], Stage::Late)
    }

    fn close(&mut self, meta: &mut Meta) -> Result<()> {
        meta.put(AT_UNCLEAN, &[0], Stage::Late)
    }
}

/// Looks at all tables of an extent. `repair` makes the redundant tables equal to the others.
pub(crate) fn check(state: &mut State<SparseTables>, report: &mut Report, repair: bool) -> Result<()> {
    let State { tables, meta } = state;
    let header = tables.header.clone();
    let grains = header.capacity.div_ceil(header.grain);
    report.blocks += grains;
    let mut seen_tables = FxHashSet::default();
    let mut seen = FxHashSet::default();
    for index in 0..header.tables() {
        let first = index * header.entries;
        let table = match tables.table(meta, header.directory, first) {
            Ok(0) => continue,
            Ok(table) => table,
            Err(error) => {
                report.error(|| error.to_string());
                continue;
            }
        };
        if !seen_tables.insert(table) {
            report.error(|| format!("the grain table at {table:#x} is used twice"));
            continue;
        }
        for grain in first..(first + header.entries).min(grains) {
            let entry = meta.u32_le(tables.entry_at(table, grain))?;
            match tables.decode(meta, grain, entry) {
                Ok(Map::Data { .. } | Map::Packed(_)) => {
                    report.allocated += 1;
                    if !seen.insert(entry) {
                        report.error(|| format!("grain {grain} shares its space with another one"));
                    }
                }
                Ok(_) => {}
                Err(error) => report.error(|| error.to_string()),
            }
        }
        if header.flags & FLAG_REDUNDANT != 0 {
            check_copy(tables, meta, report, first, repair)?;
        }
    }
    Ok(())
}

/// Whether the redundant table says the same.
fn check_copy(tables: &mut SparseTables, meta: &mut Meta, report: &mut Report, first: u64, repair: bool) -> Result<()> {
    let len = (tables.header.entries * 4) as usize;
    let mut content = [vec![0; len], vec![0; len]];
    let mut places = [0; 2];
    for ((directory, content), place) in tables.directories().zip(&mut content).zip(&mut places) {
        *place = tables.table(meta, directory, first).unwrap_or(0);
        if *place != 0 {
            meta.read(*place, content)?;
        }
    }
    let ([table, copy], [original, _]) = (places, &content);
    let same = copy == table || content.first() == content.last();
    if same {
        return Ok(());
    }
    report.note(|| format!("the redundant table for grain {first} differs; a repair makes it equal"));
    if repair && copy != 0 {
        meta.put(copy, original, Stage::Late)?;
        report.repaired += 1;
    }
    Ok(())
}
