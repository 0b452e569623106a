//! Reference counts of clusters, and finding free ones.
//!
//! Counts that grow are written early, so that what refers to a cluster on the medium never finds its count at zero.
//! Counts fall only when what no longer refers is on the medium. New refcount blocks and tables are rare: they are
//! written and synced at once.

use super::header::AT_REFTABLE;
use super::header::MAX_REFTABLE;
use super::tables::Tables2;
use crate::BlockError;
use crate::Result;
use crate::meta::Meta;
use crate::meta::Stage;

/// Offsets in refcount table entries; the low bits are reserved.
pub(crate) const OFFSET: u64 = 0xffff_ffff_ffff_fe00;
/// Clusters that are looked at for one allocation at most; beyond, the end of the file is taken.
const SEARCH: u64 = 1 << 22;

impl Tables2 {
    /// Refcounts in a refcount block.
    pub(crate) fn counts(&self) -> u64 {
        (self.cluster * 8) >> self.header.refcount_order
    }

    fn max_count(&self) -> u64 {
        u64::MAX >> (64 - (1 << self.header.refcount_order))
    }

    /// The refcount block of a cluster. None when it has none.
    fn block_of(&mut self, meta: &mut Meta, cluster: u64) -> Result<Option<u64>> {
        let index = cluster / self.counts();
        if index >= self.reftable_entries() {
            return Ok(None);
        }
        let entry = meta.u64_be(self.header.reftable_offset + index * 8)? & OFFSET;
        if entry == 0 {
            return Ok(None);
        }
        if !entry.is_multiple_of(self.cluster) || entry.saturating_add(self.cluster) > self.end {
            return Err(meta.file().corrupt(format!(
                "refcount table entry {index} says {entry:#x}, where no cluster is; run `oxbow disk check --repair`"
            )));
        }
        Ok(Some(entry))
    }

    pub(crate) fn reftable_entries(&self) -> u64 {
        self.header.reftable_clusters * self.cluster / 8
    }

    pub(crate) fn count(&mut self, meta: &mut Meta, cluster: u64) -> Result<u64> {
        let Some(block) = self.block_of(meta, cluster)? else {
            return Ok(0);
        };
        let index = cluster % self.counts();
        let at = |bytes: u64| block + index * bytes;
        Ok(match self.header.refcount_order {
            order @ 0..=2 => {
                let bit = index << order;
                let [byte] = meta.get(block + bit / 8)?;
                u64::from(byte) >> (bit % 8) & self.max_count()
            }
            3 => meta.get::<1>(at(1))?[0].into(),
            4 => meta.u16_be(at(2))?.into(),
            5 => meta.u32_be(at(4))?.into(),
            _ => meta.u64_be(at(8))?,
        })
    }

    /// Sets the count of a cluster; its refcount block is made if there is none.
    pub(crate) fn set_count(&mut self, meta: &mut Meta, cluster: u64, value: u64) -> Result<()> {
        if value > self.max_count() {
            return Err(meta.file().unsupported(format!(
                "more references to the cluster at {:#x} than its refcount of {} bits can hold",
                cluster * self.cluster,
                1 << self.header.refcount_order
            )));
        }
        let block = match self.block_of(meta, cluster)? {
            Some(block) => block,
            None if value == 0 => return Ok(()),
            None => self.new_block(meta, cluster)?,
        };
        self.put_count(meta, block, cluster, value)
    }

    fn put_count(&self, meta: &mut Meta, block: u64, cluster: u64, value: u64) -> Result<()> {
        let index = cluster % self.counts();
        let order = self.header.refcount_order;
        if order < 3 {
            let bit = index << order;
            let [byte] = meta.get(block + bit / 8)?;
            let mask = (self.max_count() as u8) << (bit % 8);
            let byte = byte & !mask | (value as u8) << (bit % 8);
            return meta.put(block + bit / 8, &[byte], Stage::Early);
        }
        let bytes = 1usize << (order - 3);
        let value = value.to_be_bytes();
        meta.put(
            block + index * bytes as u64,
            value.get(8 - bytes..).unwrap_or_default(),
            Stage::Early,
        )
    }

    /// Makes the refcount block that covers `cluster`, in the first free cluster that can hold it.
    fn new_block(&mut self, meta: &mut Meta, cluster: u64) -> Result<u64> {
        let index = cluster / self.counts();
        if index >= self.reftable_entries() {
            self.grow_reftable(meta, index)?;
            // The table's own clusters may have needed the same block.
            if let Some(block) = self.block_of(meta, cluster)? {
                return Ok(block);
            }
        }
        // At the end of the file nothing can be in the way; it may lie in the range that the block covers, or not.
        let block = self.end.div_ceil(self.cluster);
        self.extend(meta, block + 1)?;
        let at = block * self.cluster;
        meta.fresh(at, self.cluster)?;
        if block / self.counts() == index {
            self.put_count(meta, at, block, 1)?;
        }
        let mut content = vec![0; self.cluster as usize];
        meta.read(at, &mut content)?;
        meta.file().write(at, &content)?;
        meta.file().sync()?;
        meta.put(self.header.reftable_offset + index * 8, &at.to_be_bytes(), Stage::Early)?;
        if block / self.counts() != index {
            self.set_count(meta, block, 1)?;
        }
        Ok(at)
    }

    /// Moves the refcount table to the end of the file, with room for entry `index`.
    fn grow_reftable(&mut self, meta: &mut Meta, index: u64) -> Result<()> {
        let per_cluster = self.cluster / 8;
        let old = (self.header.reftable_offset, self.header.reftable_clusters);
        // Room for the table's own clusters too.
        let clusters = (index + 2).div_ceil(per_cluster).max(old.1 * 3 / 2) + 1;
        if clusters * self.cluster > MAX_REFTABLE {
            return Err(BlockError::Usage(format!(
                "{}: the image file is as large as clusters of {} bytes allow",
                meta.file().name(),
                self.cluster
            )));
        }
        let first = self.end.div_ceil(self.cluster);
        self.extend(meta, first + clusters)?;
        let at = first * self.cluster;
        let mut content = vec![0; (clusters * self.cluster) as usize];
        let len = (old.1 * self.cluster) as usize;
        meta.read(old.0, content.get_mut(..len).unwrap_or_default())?;
        meta.fresh(at, clusters * self.cluster)?;
        meta.put(at, &content, Stage::Early)?;
        (self.header.reftable_offset, self.header.reftable_clusters) = (at, clusters);
        for cluster in first..first + clusters {
            self.set_count(meta, cluster, 1)?;
        }
        // The new table goes live now, with everything that it refers to.
        let dirty = meta.take();
        let result = dirty
            .early
            .iter()
            .try_for_each(|(at, bytes)| meta.file().write(*at, bytes));
        let result = result.and_then(|()| meta.file().sync());
        // A flush may be writing an older state of the same sectors: they stay due.
        meta.written(&dirty, false);
        result?;
        let mut fields = [0; 12];
        crate::bytes::put(&mut fields, 0, &at.to_be_bytes());
        crate::bytes::put(&mut fields, 8, &(clusters as u32).to_be_bytes());
        // Beside these fields the sector may hold changes that must wait: only these are written.
        meta.file().write(AT_REFTABLE, &fields)?;
        meta.file().sync()?;
        meta.put(AT_REFTABLE, &fields, Stage::Late)?;
        if old.1 > 0 {
            self.freed.push((old.0, old.1 * self.cluster));
        }
        Ok(())
    }

    /// The file reaches to the end of cluster `last` (exclusive).
    pub(crate) fn extend(&mut self, meta: &mut Meta, last: u64) -> Result<()> {
        let end = last * self.cluster;
        if end > self.end {
            meta.file().set_len(end)?;
            self.end = end;
        }
        Ok(())
    }

    /// Up to `max` free clusters in a row, with a count of 1 each. Returns the first, how many, and whether they are new
    /// at the end of the file, where they read as zeros.
    pub(crate) fn allocate(&mut self, meta: &mut Meta, max: u64) -> Result<(u64, u64, bool)> {
        let file_end = self.end.div_ceil(self.cluster);
        let mut first = self.hint;
        let mut looked = 0;
        while first < file_end && looked < SEARCH && self.count(meta, first)? != 0 {
            first += 1;
            looked += 1;
        }
        if looked == SEARCH {
            first = file_end;
        }
        let mut count = 1;
        while count < max && (first + count >= file_end || self.count(meta, first + count)? == 0) {
            count += 1;
        }
        // A run does not straddle the end: its parts differ in what they read as.
        let fresh = first >= file_end;
        if !fresh {
            count = count.min(file_end - first);
        }
        self.extend(meta, first + count)?;
        // Making a refcount block may take clusters at the end of the file, which is behind these.
        for cluster in first..first + count {
            self.set_count(meta, cluster, 1)?;
        }
        self.hint = first + count;
        Ok((first, count, fresh))
    }

    /// `clusters` free clusters in a row at the end of the file.
    pub(crate) fn allocate_row(&mut self, meta: &mut Meta, clusters: u64) -> Result<u64> {
        let first = self.end.div_ceil(self.cluster);
        self.extend(meta, first + clusters)?;
        for cluster in first..first + clusters {
            self.set_count(meta, cluster, 1)?;
        }
        Ok(first)
    }

    /// One reference less to a cluster. True when it was the last.
    pub(crate) fn drop_count(&mut self, meta: &mut Meta, cluster: u64) -> Result<bool> {
        let count = self.count(meta, cluster)?;
        if count > 0 {
            self.set_count(meta, cluster, count - 1)?;
        }
        if count == 1 {
            self.hint = self.hint.min(cluster);
        }
        Ok(count == 1)
    }
}
