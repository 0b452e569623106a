//! Counting references, comparing them with the refcounts, and mending refcounts.
//!
//! Every L2 table is read once, however often it is referred to, so the time is bounded by the file. What cannot be a
//! cluster is an error and left alone: nothing says what should be there.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;
use rustc_hash::FxHashSet;

use super::header::MAX_L1;
use super::refcount;
use super::tables::COMPRESSED;
use super::tables::COPIED;
use super::tables::Entry;
use super::tables::Tables2;
use crate::Report;
use crate::Result;
use crate::bytes;
use crate::engine::State;
use crate::meta::Meta;
use crate::meta::Stage;

/// References are counted in chunks of this many clusters, so that a sparse file takes little memory.
const CHUNK: u64 = 4096;

#[derive(Default)]
struct Counts {
    chunks: FxHashMap<u64, Box<[u32; CHUNK as usize]>>,
}

impl Counts {
    fn add(&mut self, cluster: u64) {
        let chunk = self
            .chunks
            .entry(cluster / CHUNK)
            .or_insert_with(|| Box::new([0; CHUNK as usize]));
        if let Some(count) = chunk.get_mut((cluster % CHUNK) as usize) {
            *count = count.saturating_add(1);
        }
    }

    fn get(&self, cluster: u64) -> u64 {
        let chunk = self.chunks.get(&(cluster / CHUNK));
        chunk
            .and_then(|chunk| chunk.get((cluster % CHUNK) as usize))
            .map_or(0, |&count| count.into())
    }
}

struct Check<'a> {
    tables: &'a mut Tables2,
    meta: &'a mut Meta,
    counts: Counts,
    seen: FxHashSet<u64>,
    report: Report,
    repair: bool,
}

/// Looks at everything; `repair` sets refcounts and flags right.
pub(super) fn run(state: &mut State<Tables2>, repair: bool) -> Result<Report> {
    let State { tables, meta } = state;
    if repair {
        tables.settle(meta)?;
        drop_damaged_blocks(tables, meta)?;
    }
    let mut check = Check {
        report: Report {
            blocks: tables.header.size.div_ceil(tables.cluster),
            ..Report::default()
        },
        tables,
        meta,
        counts: Counts::default(),
        seen: FxHashSet::default(),
        repair,
    };
    check.metadata()?;
    let (at, entries) = (check.tables.header.l1_offset, check.tables.header.l1_size);
    check.l1(at, entries, true)?;
    check.snapshots()?;
    check.compare()?;
    if check.report.leaks > 0 {
        let leaks = check.report.leaks;
        check
            .report
            .note(|| format!("{leaks} clusters are not in use; `oxbow disk check --repair` gives them back"));
    }
    Ok(check.report)
}

/// Refcount table entries that lead nowhere: without them, new blocks can be made.
fn drop_damaged_blocks(tables: &mut Tables2, meta: &mut Meta) -> Result<()> {
    for index in 0..tables.reftable_entries() {
        let at = tables.header.reftable_offset + index * 8;
        let entry = meta.u64_be(at)? & refcount::OFFSET;
        if entry != 0 && (!entry.is_multiple_of(tables.cluster) || entry.saturating_add(tables.cluster) > tables.end) {
            meta.put(at, &[0; 8], Stage::Early)?;
        }
    }
    Ok(())
}

impl Check<'_> {
    fn cluster(&self) -> u64 {
        self.tables.cluster
    }

    /// Counts a reference to each cluster of a range.
    fn refer(&mut self, at: u64, len: u64) {
        for cluster in at / self.cluster()..at.saturating_add(len).div_ceil(self.cluster()) {
            self.counts.add(cluster);
        }
    }

    /// The header, the tables at its ends, and refcount blocks.
    fn metadata(&mut self) -> Result<()> {
        let header = self.tables.header.clone();
        self.refer(0, 1);
        self.refer(header.l1_offset, header.l1_size * 8);
        self.refer(header.reftable_offset, header.reftable_clusters * self.cluster());
        for index in 0..self.tables.reftable_entries() {
            let entry = self.meta.u64_be(header.reftable_offset + index * 8)? & refcount::OFFSET;
            if entry == 0 {
                continue;
            }
            if !entry.is_multiple_of(self.cluster()) || entry.saturating_add(self.cluster()) > self.tables.end {
                self.report
                    .error(|| format!("refcount table entry {index} says {entry:#x}, where no cluster is"));
            } else {
                self.refer(entry, 1);
            }
        }
        Ok(())
    }

    /// A table of L2 tables: the image's own, or a snapshot's.
    fn l1(&mut self, at: u64, entries: u64, active: bool) -> Result<()> {
        self.seen.clear();
        for index in 0..entries {
            let l1_at = at + index * 8;
            let entry = self.meta.u64_be(l1_at)?;
            match self.tables.l2_table(self.meta, entry) {
                Ok(0) => {}
                Ok(table) => {
                    self.refer(table, 1);
                    if active {
                        self.copied("L1", l1_at, entry, table)?;
                    }
                    self.l2(table, active)?;
                }
                Err(error) => self.report.error(|| format!("L1 entry {index}: {error}")),
            }
        }
        Ok(())
    }

    fn l2(&mut self, table: u64, active: bool) -> Result<()> {
        // Snapshots share tables with the image, and each of them refers to the clusters; within one, a table is for one
        // place of the disk only.
        if !self.seen.insert(table) {
            self.report
                .error(|| format!("the L2 table at {table:#x} is used twice"));
            return Ok(());
        }
        let bytes = self.tables.header.entry_bytes();
        let mut content = vec![0; self.cluster() as usize];
        self.meta.read(table, &mut content)?;
        for index in 0..self.cluster() / bytes {
            let entry = bytes::u64_be(&content, (index * bytes) as usize);
            let at = table + index * bytes;
            match self.tables.decode(self.meta, entry) {
                Ok(Entry::Unallocated) => {}
                Ok(Entry::Zero(0)) => {}
                Ok(Entry::Packed(packed)) => {
                    self.refer(packed.at, packed.len);
                    self.report.compressed += u64::from(active);
                    self.report.allocated += u64::from(active);
                }
                Ok(Entry::Zero(data) | Entry::Data(data)) => {
                    self.refer(data, 1);
                    self.report.allocated += u64::from(active);
                    if active {
                        self.copied("L2", at, entry, data)?;
                    }
                }
                Err(error) => self.report.error(|| format!("L2 entry at {at:#x}: {error}")),
            }
        }
        Ok(())
    }

    /// The flag that says whether the refcount is one.
    fn copied(&mut self, what: &str, at: u64, entry: u64, cluster: u64) -> Result<()> {
        // After a repair the refcount is what was counted; that is known at the end only, so the flag is set by the
        // refcount as it is, and once more by the check that follows.
        let Ok(count) = self.tables.count(self.meta, cluster / self.cluster()) else {
            return Ok(());
        };
        let flag = entry & COPIED != 0;
        if flag == (count == 1) || entry & COMPRESSED != 0 {
            return Ok(());
        }
        if !flag {
            // Writing makes a copy where none is needed: harmless.
            self.report
                .note(|| format!("{what} entry at {at:#x} lacks the flag that its cluster is not shared"));
            return Ok(());
        }
        self.report
            .error(|| format!("{what} entry at {at:#x} says that a cluster with refcount {count} is not shared"));
        if self.repair && count > 1 {
            self.meta.put(at, &(entry & !COPIED).to_be_bytes(), Stage::Late)?;
            self.report.repaired += 1;
        }
        Ok(())
    }

    /// qcow2 §"Snapshots".
    fn snapshots(&mut self) -> Result<()> {
        let header = self.tables.header.clone();
        let start = header.snapshots_offset;
        let mut tables = FxHashSet::default();
        let mut at = start;
        for index in 0..header.snapshots {
            let mut head = [0; 40];
            self.meta.read(at, &mut head)?;
            let (l1, entries) = (bytes::u64_be(&head, 0), u64::from(bytes::u32_be(&head, 8)));
            let extra = u64::from(bytes::u32_be(&head, 36));
            let names = u64::from(bytes::u32_be(&head, 12) >> 16) + u64::from(bytes::u32_be(&head, 12) & 0xffff);
            let end = l1.checked_add(entries * 8);
            if !l1.is_multiple_of(self.cluster())
                || extra > 1024
                || entries * 8 > MAX_L1
                || !tables.insert(l1)
                || end.is_none_or(|end| end > self.tables.end)
            {
                self.report
                    .error(|| format!("snapshot {index} says that its L1 table is at {l1:#x}"));
                return Ok(());
            }
            self.refer(l1, entries * 8);
            self.l1(l1, entries, false)?;
            at = (at + 40 + extra + names).next_multiple_of(8);
        }
        if header.snapshots > 0 {
            self.refer(start, at - start);
        }
        Ok(())
    }

    /// Refcounts as they are against references as they were counted.
    fn compare(&mut self) -> Result<()> {
        // Mending may make refcount blocks at the end of the file, which count themselves.
        let last = self.tables.end.div_ceil(self.cluster());
        for chunk in self.chunks()? {
            for cluster in chunk * CHUNK..((chunk + 1) * CHUNK).min(last) {
                let wanted = self.counts.get(cluster);
                match self.tables.count(self.meta, cluster) {
                    Ok(count) if count == wanted => {}
                    Ok(count) => self.differs(cluster, count, wanted)?,
                    // The table was reported already.
                    Err(_) if !self.repair => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Chunks of clusters that have references or refcounts.
    fn chunks(&mut self) -> Result<BTreeSet<u64>> {
        let mut chunks: BTreeSet<u64> = self.counts.chunks.keys().copied().collect();
        let mut seen = FxHashSet::default();
        let counts = self.tables.counts();
        for index in 0..self.tables.reftable_entries() {
            let entry = self.meta.u64_be(self.tables.header.reftable_offset + index * 8)? & refcount::OFFSET;
            if entry == 0 || entry >= self.tables.end {
                continue;
            }
            if !seen.insert(entry) {
                self.report
                    .error(|| format!("the refcount block at {entry:#x} is used twice"));
                continue;
            }
            chunks.extend(index * counts / CHUNK..=((index + 1) * counts - 1) / CHUNK);
        }
        Ok(chunks)
    }

    fn differs(&mut self, cluster: u64, count: u64, wanted: u64) -> Result<()> {
        let at = cluster * self.cluster();
        if wanted == 0 {
            self.report.leaks += 1;
        } else if count > wanted {
            self.report.leaks += 1;
            self.report
                .note(|| format!("the cluster at {at:#x} has refcount {count} and {wanted} references"));
        } else {
            self.report
                .error(|| format!("the cluster at {at:#x} has refcount {count}, but {wanted} references"));
        }
        if self.repair {
            self.tables.set_count(self.meta, cluster, wanted)?;
            self.tables.hint = 1;
            self.report.repaired += 1;
        }
        Ok(())
    }
}
