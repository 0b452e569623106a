//! Writing streamOptimized VMDK images: compressed grains from the beginning to the end, then the tables.
//!
//! Spec: VMware, Virtual Disk Format 5.0, §"Stream-Optimized Compressed Sparse Extents" ("VMDK").

use super::create::DESCRIPTOR_SECTORS;
use super::create::descriptor;
use super::sparse::AT_END;
use super::sparse::FLAG_COMPRESSED;
use super::sparse::FLAG_MARKERS;
use super::sparse::FLAG_NEWLINES;
use super::sparse::SECTOR;
use super::sparse::SparseHeader;
use crate::BlockError;
use crate::Result;
use crate::bytes::put;
use crate::convert::Sink;
use crate::create::Making;
use crate::packed;
use crate::packed::Codec;
use crate::store::File;

const GRAIN: u64 = 128;
const ENTRIES: u64 = 512;
/// Grains that are compressed at once.
const BATCH: usize = 32;
/// Sectors before the first grain.
const OVERHEAD: u64 = 128;

const MARKER_TABLE: u32 = 1;
const MARKER_DIRECTORY: u32 = 2;
const MARKER_FOOTER: u32 = 3;

pub(crate) struct StreamWriter {
    file: File,
    header: SparseHeader,
    /// Where the next piece goes, in sectors.
    next: u64,
    /// Grains that are to be written, in rising order; the last one is being filled.
    grains: Vec<(u64, Vec<u8>)>,
    table: Vec<u32>,
    /// Which table that is.
    table_index: u64,
    directory: Vec<u32>,
}

impl StreamWriter {
    pub(crate) fn new(making: &Making<'_>, file: File) -> Result<Self> {
        if making.parent.is_some() {
            return Err(BlockError::Usage("a streamOptimized image has no parent".to_owned()));
        }
        let header = SparseHeader {
            version: 3,
            flags: FLAG_NEWLINES | FLAG_COMPRESSED | FLAG_MARKERS,
            capacity: making.size / SECTOR,
            grain: GRAIN,
            descriptor: 1,
            descriptor_size: DESCRIPTOR_SECTORS,
            entries: ENTRIES,
            redundant: 0,
            directory: AT_END,
            overhead: OVERHEAD,
        };
        let name = making.beside("");
        let text = descriptor(making, "streamOptimized", &[(header.capacity, "SPARSE", name)])?;
        file.set_len(OVERHEAD * SECTOR)?;
        file.write(SECTOR, text.as_bytes())?;
        file.write(0, &header.bytes())?;
        Ok(Self {
            file,
            header,
            next: OVERHEAD,
            grains: Vec::new(),
            table: Vec::new(),
            table_index: 0,
            directory: Vec::new(),
        })
    }

    /// Writes bytes, padded to sectors. Returns the sector where they are.
    fn append(&mut self, bytes: &mut Vec<u8>) -> Result<u32> {
        bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
        let at = self.next;
        self.file.write(at * SECTOR, bytes)?;
        self.next += bytes.len() as u64 / SECTOR;
        u32::try_from(at).map_err(|_| self.file.unsupported("the file is as large as VMDK allows (2 TiB)"))
    }

    fn marker(&mut self, sectors: u64, kind: u32) -> Result<u32> {
        let mut marker = vec![0; SECTOR as usize];
        put(&mut marker, 0, &sectors.to_le_bytes());
        put(&mut marker, 12, &kind.to_le_bytes());
        self.append(&mut marker)
    }

    /// Writes the grains that were filled.
    fn end_grains(&mut self) -> Result<()> {
        let grains = std::mem::take(&mut self.grains);
        let blocks: Vec<&[u8]> = grains.iter().map(|(_, data)| data.as_slice()).collect();
        let packed = packed::pack_all(Codec::Zlib, &blocks);
        for ((index, data), packed) in grains.iter().zip(packed) {
            // What does not become smaller is stored all the same: every grain has a marker.
            let packed = packed.or_else(|| packed::store(data));
            let packed = packed.ok_or_else(|| self.file.unsupported("a grain cannot be compressed"))?;
            self.put_grain(*index, &packed)?;
        }
        Ok(())
    }

    fn put_grain(&mut self, index: u64, packed: &[u8]) -> Result<()> {
        while self.table_index < index / ENTRIES {
            self.end_table()?;
        }
        let mut bytes = vec![0; 12];
        put(&mut bytes, 0, &(index * GRAIN).to_le_bytes());
        put(&mut bytes, 8, &(packed.len() as u32).to_le_bytes());
        bytes.extend(packed);
        let at = self.append(&mut bytes)?;
        self.table.resize((index % ENTRIES) as usize, 0);
        self.table.push(at);
        Ok(())
    }

    /// Writes the table that was filled.
    fn end_table(&mut self) -> Result<()> {
        let mut at = 0;
        if !self.table.is_empty() {
            self.table.resize(ENTRIES as usize, 0);
            let mut bytes: Vec<u8> = self.table.drain(..).flat_map(u32::to_le_bytes).collect();
            self.marker(bytes.len() as u64 / SECTOR, MARKER_TABLE)?;
            at = self.append(&mut bytes)?;
        }
        self.directory.push(at);
        self.table_index += 1;
        Ok(())
    }
}

impl Sink for StreamWriter {
    fn block(&self) -> u64 {
        GRAIN * SECTOR
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let size = GRAIN * SECTOR;
        let (mut offset, mut data) = (offset, data);
        while !data.is_empty() {
            let (index, within) = (offset / size, (offset % size) as usize);
            let len = (size as usize - within).min(data.len());
            let (part, rest) = data.split_at(len);
            if self.grains.last().is_none_or(|(last, _)| *last != index) {
                if self.grains.len() >= BATCH {
                    self.end_grains()?;
                }
                self.grains.push((index, vec![0; size as usize]));
            }
            if let Some((_, grain)) = self.grains.last_mut() {
                put(grain, within, part);
            }
            offset += len as u64;
            data = rest;
        }
        Ok(())
    }

    fn zero(&mut self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.end_grains()?;
        while self.table_index < self.header.tables() {
            self.end_table()?;
        }
        let mut bytes: Vec<u8> = self.directory.drain(..).flat_map(u32::to_le_bytes).collect();
        bytes.resize(bytes.len().max(1).next_multiple_of(SECTOR as usize), 0);
        self.marker(bytes.len() as u64 / SECTOR, MARKER_DIRECTORY)?;
        self.header.directory = self.append(&mut bytes)?.into();
        self.marker(1, MARKER_FOOTER)?;
        let mut footer = self.header.bytes();
        self.append(&mut footer)?;
        // The end of the stream is a marker of zeros.
        self.marker(0, 0)?;
        self.file.sync()
    }
}
