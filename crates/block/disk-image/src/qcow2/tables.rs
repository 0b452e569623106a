//! L1 and L2 tables: where clusters are.

use std::ops::Range;

use super::header::AT_AUTOCLEAR;
use super::header::Header;
use crate::Result;
use crate::engine::Map;
use crate::engine::Place;
use crate::engine::Run;
use crate::engine::Space;
use crate::engine::Tables;
use crate::meta::Meta;
use crate::meta::Stage;
use crate::packed::Packed;

/// The cluster's refcount is exactly one: it may be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const COMPRESSED: u64 = 1 << 62;
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Reads as zeros (version 3, without subclusters).
pub(crate) const ZERO: u64 = 1;
/// Subclusters of a cluster.
const SUBCLUSTERS: u64 = 32;

/// The tables of a qcow2 image.
#[derive(Debug)]
pub(crate) struct Tables2 {
    // Configuration
    pub(crate) header: Header,
    pub(crate) cluster: u64,
    /// There is a backing file.
    backed: bool,
    // State
    /// Length of the file.
    pub(crate) end: u64,
    /// No cluster before this one is free.
    pub(crate) hint: u64,
    pub(crate) freed: Vec<Space>,
    /// Where the next compressed cluster goes, within a cluster; 0 for nowhere.
    packed_at: u64,
}

/// A decoded L2 entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Unallocated,
    /// With the space that it has all the same; 0 for none.
    Zero(u64),
    Data(u64),
    Packed(Packed),
}

impl Tables2 {
    pub(crate) fn new(header: Header, end: u64) -> Self {
        Self {
            cluster: header.cluster(),
            backed: header.backing.is_some(),
            header,
            end,
            hint: 1,
            freed: Vec::new(),
            packed_at: 0,
        }
    }

    /// The L1 entry for an offset of the disk: where it is in the file.
    fn l1_at(&self, offset: u64) -> u64 {
        self.header.l1_offset + offset / self.header.l2_covers() * 8
    }

    /// Where the L2 entry for an offset is within its table.
    fn l2_at(&self, offset: u64) -> u64 {
        offset % self.header.l2_covers() / self.cluster * self.header.entry_bytes()
    }

    /// The L2 table of an L1 entry; 0 for none.
    pub(crate) fn l2_table(&self, meta: &Meta, l1_entry: u64) -> Result<u64> {
        let table = l1_entry & OFFSET;
        if table == 0 || self.holds_cluster(table) {
            return Ok(table);
        }
        Err(meta.file().corrupt(format!(
            "an L1 entry says that an L2 table is at {table:#x}, where none can be"
        )))
    }

    /// A cluster of data or an L2 table can be there: in the file, and not in the header or the top tables.
    fn holds_cluster(&self, at: u64) -> bool {
        let within = |start: u64, len: u64| (start..start + len).contains(&at);
        at.is_multiple_of(self.cluster)
            && at >= self.cluster
            && at < self.end
            && !within(self.header.l1_offset, self.header.l1_size * 8)
            && !within(
                self.header.reftable_offset,
                self.header.reftable_clusters * self.cluster,
            )
    }

    /// What an L2 entry says. The subclusters are for `Data` and `Zero` of extended entries.
    pub(crate) fn decode(&self, meta: &Meta, entry: u64) -> Result<Entry> {
        if entry & COMPRESSED != 0 {
            return self.decode_packed(meta, entry).map(Entry::Packed);
        }
        let at = entry & OFFSET;
        if at != 0 && !self.holds_cluster(at) {
            return Err(meta.file().corrupt(format!(
                "an L2 entry says that data is at {at:#x}, where none can be; run `oxbow disk check`"
            )));
        }
        let zero = entry & ZERO != 0 && self.header.version >= 3 && !self.header.extended();
        Ok(match (zero, at) {
            (true, at) => Entry::Zero(at),
            (false, 0) => Entry::Unallocated,
            (false, at) => Entry::Data(at),
        })
    }

    fn packed_shift(&self) -> u32 {
        62 - (self.header.cluster_bits - 8)
    }

    fn decode_packed(&self, meta: &Meta, entry: u64) -> Result<Packed> {
        let shift = self.packed_shift();
        let at = entry & ((1 << shift) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> shift;
        let len = (sectors + 1) * 512 - at % 512;
        if at < self.cluster || at >= self.end {
            return Err(meta
                .file()
                .corrupt(format!("an L2 entry says that a compressed cluster is at {at:#x}")));
        }
        Ok(Packed { at, len })
    }

    /// The L2 entry for an offset and its subclusters: where it is, and what it says. None without an L2 table.
    fn l2_entry(&mut self, meta: &mut Meta, offset: u64) -> Result<Option<(u64, u64)>> {
        let l1 = meta.u64_be(self.l1_at(offset))?;
        let table = self.l2_table(meta, l1)?;
        if table == 0 {
            return Ok(None);
        }
        let at = table + self.l2_at(offset);
        Ok(Some((at, meta.u64_be(at)?)))
    }

    /// The kind of one subcluster, and how many behind it are of the same kind.
    fn subclusters(&self, bitmap: u64, first: u64) -> (Sub, u64) {
        let kind = |index: u64| match (bitmap >> (index + SUBCLUSTERS) & 1, bitmap >> index & 1) {
            (1, _) => Sub::Zero,
            (_, 1) => Sub::Data,
            _ => Sub::Parent,
        };
        let this = kind(first);
        let same = (first..SUBCLUSTERS).take_while(|&index| kind(index) == this).count();
        (this, same as u64)
    }

    /// The L2 table for an offset, such that it may be changed: made, or copied from a snapshot's, if need be.
    fn own_l2(&mut self, meta: &mut Meta, offset: u64) -> Result<u64> {
        let l1_at = self.l1_at(offset);
        let l1 = meta.u64_be(l1_at)?;
        let old = self.l2_table(meta, l1)?;
        if old != 0 && l1 & COPIED != 0 {
            return Ok(old);
        }
        let (cluster, _, _) = self.allocate(meta, 1)?;
        let table = cluster * self.cluster;
        meta.fresh(table, self.cluster)?;
        if old != 0 {
            let mut content = vec![0; self.cluster as usize];
            meta.read(old, &mut content)?;
            meta.put(table, &content, Stage::Early)?;
            self.freed.push((old, self.cluster));
        }
        meta.put(l1_at, &(table | COPIED).to_be_bytes(), Stage::Late)?;
        Ok(table)
    }

    /// Records what an L2 entry is now, and frees what it was.
    fn set_entry(&mut self, meta: &mut Meta, offset: u64, value: u64, bitmap: u64) -> Result<()> {
        let at = self.own_l2(meta, offset)? + self.l2_at(offset);
        let old = meta.u64_be(at)?;
        let keeps = old & COMPRESSED == 0 && old & OFFSET == value & OFFSET;
        match self.decode(meta, old)? {
            Entry::Data(at) | Entry::Zero(at) if at != 0 && !keeps => self.freed.push((at, self.cluster)),
            Entry::Packed(packed) => self.freed.push((packed.at, packed.len)),
            _ => {}
        }
        meta.put(at, &value.to_be_bytes(), Stage::Late)?;
        if self.header.extended() {
            meta.put(at + 8, &bitmap.to_be_bytes(), Stage::Late)?;
        }
        Ok(())
    }

    fn bitmap(&self, meta: &mut Meta, at: u64) -> Result<u64> {
        if self.header.extended() {
            meta.u64_be(at + 8)
        } else {
            Ok(0)
        }
    }

    /// Space for `len` bytes of a compressed cluster. Compressed clusters share clusters.
    pub(crate) fn begin_packed(&mut self, meta: &mut Meta, len: u64) -> Result<u64> {
        let left = self.packed_at.next_multiple_of(self.cluster) - self.packed_at;
        if self.packed_at != 0 && len <= left {
            let cluster = self.packed_at / self.cluster;
            let count = self.count(meta, cluster)?;
            if count > 0 && self.set_count(meta, cluster, count + 1).is_ok() {
                let at = self.packed_at;
                self.packed_at = if len == left { 0 } else { at + len };
                return Ok(at);
            }
        }
        let (cluster, _, _) = self.allocate(meta, 1)?;
        let at = cluster * self.cluster;
        self.packed_at = if len == self.cluster { 0 } else { at + len };
        Ok(at)
    }

    /// The cluster at `offset` is `len` compressed bytes at `at` now.
    pub(crate) fn publish_packed(&mut self, meta: &mut Meta, offset: u64, at: u64, len: u64) -> Result<()> {
        let sectors = (at + len - 1) / 512 - at / 512;
        self.set_entry(meta, offset, COMPRESSED | sectors << self.packed_shift() | at, 0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sub {
    Parent,
    Zero,
    Data,
}

impl Tables for Tables2 {
    fn look(&mut self, meta: &mut Meta, offset: u64) -> Result<Run> {
        let Some((at, entry)) = self.l2_entry(meta, offset)? else {
            let covers = self.header.l2_covers();
            return Ok(Run {
                map: Map::Parent,
                len: covers - offset % covers,
            });
        };
        let within = offset % self.cluster;
        let len = self.cluster - within;
        let shared = entry & COPIED == 0;
        let run = match self.decode(meta, entry)? {
            Entry::Packed(packed) => Run {
                map: Map::Packed(packed),
                len,
            },
            Entry::Zero(_) => Run { map: Map::Zero, len },
            Entry::Data(data) if !self.header.extended() => Run {
                map: Map::Data {
                    at: data + within,
                    shared,
                },
                len,
            },
            Entry::Unallocated if !self.header.extended() => Run { map: Map::Parent, len },
            entry => {
                let data = if let Entry::Data(data) = entry { data } else { 0 };
                let size = self.cluster / SUBCLUSTERS;
                let (kind, count) = self.subclusters(self.bitmap(meta, at)?, within / size);
                let len = count * size - within % size;
                match kind {
                    Sub::Zero => Run { map: Map::Zero, len },
                    Sub::Data if data != 0 => Run {
                        map: Map::Data {
                            at: data + within,
                            shared,
                        },
                        len,
                    },
                    Sub::Data => {
                        return Err(meta
                            .file()
                            .corrupt(format!("the L2 entry at {at:#x} has subclusters, but no space")));
                    }
                    Sub::Parent => Run { map: Map::Parent, len },
                }
            }
        };
        Ok(run)
    }

    fn begin(&mut self, meta: &mut Meta, offset: u64, len: u64) -> Result<Place> {
        let mut wanted = 0;
        let mut whole = false;
        while wanted * self.cluster < len {
            let entry = self.l2_entry(meta, offset + wanted * self.cluster)?;
            let (at, entry) = entry.unwrap_or((0, 0));
            let own = entry & COPIED != 0;
            match self.decode(meta, entry)? {
                // Space of its own that reads as zeros, or whose subclusters do.
                Entry::Zero(space) if wanted == 0 && own && space != 0 => {
                    return Ok(Place {
                        new: false,
                        ..self.place(space, 1, false)
                    });
                }
                Entry::Data(space) if wanted == 0 && own && self.header.extended() => {
                    return Ok(Place {
                        new: false,
                        ..self.place(space, 1, false)
                    });
                }
                Entry::Data(_) | Entry::Zero(_) if own => break,
                Entry::Data(_) | Entry::Packed(_) if self.header.extended() => {
                    if wanted == 0 {
                        (wanted, whole) = (1, true);
                    }
                    break;
                }
                _ if wanted > 0 && self.header.extended() && self.bitmap(meta, at)? != 0 => break,
                _ => wanted += 1,
            }
        }
        let (first, count, fresh) = self.allocate(meta, wanted.max(1))?;
        Ok(Place {
            whole,
            ..self.place(first * self.cluster, count, fresh)
        })
    }

    fn publish(&mut self, meta: &mut Meta, range: Range<u64>, at: u64) -> Result<()> {
        let mut offset = range.start - range.start % self.cluster;
        let mut space = at - range.start % self.cluster;
        while offset < range.end {
            let mut bitmap = 0;
            if self.header.extended() {
                let old = match self.l2_entry(meta, offset)? {
                    Some((at, entry)) if entry & COMPRESSED == 0 => self.bitmap(meta, at)?,
                    _ => 0,
                };
                let size = self.cluster / SUBCLUSTERS;
                let first = range.start.saturating_sub(offset) / size;
                let last = (range.end - offset).div_ceil(size).min(SUBCLUSTERS);
                let bits = (1u64 << last) - (1 << first);
                bitmap = (old | bits) & !(bits << SUBCLUSTERS);
            }
            self.set_entry(meta, offset, space | COPIED, bitmap)?;
            offset += self.cluster;
            space += self.cluster;
        }
        Ok(())
    }

    fn zero(&mut self, meta: &mut Meta, range: Range<u64>) -> Result<bool> {
        if self.header.version < 3 && self.backed {
            return Ok(false);
        }
        let (value, bitmap) = match (self.backed, self.header.extended()) {
            (false, _) => (0, 0),
            (true, false) => (ZERO, 0),
            (true, true) => (0, u64::MAX << SUBCLUSTERS),
        };
        let mut offset = range.start;
        while offset < range.end {
            if self.backed || self.l2_entry(meta, offset)?.is_some() {
                self.set_entry(meta, offset, value, bitmap)?;
            }
            offset += self.cluster;
        }
        Ok(true)
    }

    fn frees(&self) -> bool {
        self.header.version >= 3 || !self.backed
    }

    fn abandon(&mut self, meta: &mut Meta, place: Place) {
        for cluster in place.at / self.cluster..(place.at + place.len) / self.cluster {
            // What cannot be counted down is a leak.
            let _ = self.drop_count(meta, cluster);
        }
    }

    fn first_write(&mut self, meta: &mut Meta) -> Result<()> {
        if self.header.autoclear == 0 {
            return Ok(());
        }
        // Bitmaps and the like are not kept up to date from here on; the header must say so before.
        meta.file().write(AT_AUTOCLEAR, &[0; 8])?;
        meta.file().sync()?;
        self.header.autoclear = 0;
        meta.put(AT_AUTOCLEAR, &[0; 8], Stage::Late)
    }

    fn take_freed(&mut self) -> Vec<Space> {
        std::mem::take(&mut self.freed)
    }

    fn release(&mut self, meta: &mut Meta, spaces: &[Space]) -> Result<Vec<Space>> {
        let mut empty: Vec<Space> = Vec::new();
        for &(at, len) in spaces {
            for cluster in at / self.cluster..(at + len).div_ceil(self.cluster) {
                if !self.drop_count(meta, cluster)? {
                    continue;
                }
                let start = cluster * self.cluster;
                if self.packed_at / self.cluster == cluster {
                    self.packed_at = 0;
                }
                meta.forget(start, self.cluster);
                match empty.last_mut() {
                    Some((at, len)) if *at + *len == start => *len += self.cluster,
                    _ => empty.push((start, self.cluster)),
                }
            }
        }
        // The last cluster may end beyond the file.
        let end = self.end;
        Ok(empty
            .into_iter()
            .map(|(at, len)| (at, len.min(end.saturating_sub(at))))
            .collect())
    }
}

impl Tables2 {
    fn place(&self, at: u64, clusters: u64, zeros: bool) -> Place {
        Place {
            at,
            len: clusters * self.cluster,
            zeros,
            whole: false,
            new: true,
        }
    }
}
