//! Making an empty qcow2 image.

use super::header::EXTENSION_BACKING_FORMAT;
use super::header::Incompatible;
use super::header::LAZY_REFCOUNTS;
use super::header::MAGIC;
use super::header::MAX_L1;
use super::header::MAX_REFTABLE;
use crate::BlockError;
use crate::Compression;
use crate::CreateOptions;
use crate::Result;
use crate::Variant;
use crate::bytes::put;
use crate::create::Making;
use crate::store::File;

/// 16 bits each.
const REFCOUNT_ORDER: u32 = 4;
const HEADER: usize = 112;

/// How the first clusters of the file are used.
struct Layout {
    reftable: u64,
    blocks: u64,
    l1: u64,
}

impl Layout {
    fn of(cluster: u64, l1_bytes: u64) -> Self {
        let l1 = l1_bytes.div_ceil(cluster).max(1);
        let counts = cluster / 2;
        let (mut reftable, mut blocks) = (1, 1);
        loop {
            let all = 1 + reftable + blocks + l1;
            let needed = all.div_ceil(counts);
            let table = (needed * 8).div_ceil(cluster);
            if needed <= blocks && table <= reftable {
                return Self { reftable, blocks, l1 };
            }
            (blocks, reftable) = (needed.max(blocks), table.max(reftable));
        }
    }

    fn all(&self) -> u64 {
        1 + self.reftable + self.blocks + self.l1
    }
}

pub(crate) fn create(making: &Making<'_>, file: &File) -> Result<()> {
    let options = making.options;
    let cluster = options.block_size.unwrap_or(65536);
    if !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster) || options.subclusters && cluster < 16384 {
        return Err(BlockError::Usage(format!(
            "clusters of {cluster} bytes are not possible; take a power of two from 512 (16K with subclusters) to 2M"
        )));
    }
    let version3 = options.variant != Variant::V2;
    if !version3 && (options.subclusters || options.lazy_refcounts || options.compression == Compression::Zstd) {
        return Err(BlockError::Usage(
            "qcow2 version 2 has no zstd, subclusters or lazy refcounts".to_owned(),
        ));
    }
    let entry = if options.subclusters { 16 } else { 8 };
    let entries = making.size.div_ceil(cluster / entry * cluster);
    let layout = Layout::of(cluster, entries * 8);
    if entries * 8 > MAX_L1 || layout.reftable * cluster > MAX_REFTABLE {
        return Err(BlockError::Usage(format!(
            "a disk of {} bytes is too large for clusters of {cluster} bytes",
            making.size
        )));
    }
    let header = header(options, making, cluster, entries, &layout)?;
    // The refcounts of the first clusters, in one row over all blocks; and the table of these blocks.
    let first_block = 1 + layout.reftable;
    let table: Vec<u8> = (0..layout.blocks)
        .flat_map(|block| ((first_block + block) * cluster).to_be_bytes())
        .collect();
    let counts: Vec<u8> = (0..layout.all()).flat_map(|_| 1u16.to_be_bytes()).collect();
    file.set_len(layout.all() * cluster)?;
    file.write(cluster, &table)?;
    file.write(first_block * cluster, &counts)?;
    file.write(0, &header)?;
    file.sync()
}

fn header(
    options: &CreateOptions,
    making: &Making<'_>,
    cluster: u64,
    entries: u64,
    layout: &Layout,
) -> Result<Vec<u8>> {
    let mut head = vec![0; HEADER];
    let version3 = options.variant != Variant::V2;
    put(&mut head, 0, &MAGIC.to_be_bytes());
    put(&mut head, 4, &(if version3 { 3u32 } else { 2 }).to_be_bytes());
    put(&mut head, 20, &cluster.trailing_zeros().to_be_bytes());
    put(&mut head, 24, &making.size.to_be_bytes());
    put(&mut head, 36, &(entries as u32).to_be_bytes());
    put(
        &mut head,
        40,
        &((1 + layout.reftable + layout.blocks) * cluster).to_be_bytes(),
    );
    put(&mut head, 48, &cluster.to_be_bytes());
    put(&mut head, 56, &(layout.reftable as u32).to_be_bytes());
    if version3 {
        let mut incompatible = Incompatible::empty();
        incompatible.set(Incompatible::COMPRESSION, options.compression == Compression::Zstd);
        incompatible.set(Incompatible::EXTENDED_L2, options.subclusters);
        put(&mut head, 72, &incompatible.bits().to_be_bytes());
        put(
            &mut head,
            80,
            &(if options.lazy_refcounts { LAZY_REFCOUNTS } else { 0 }).to_be_bytes(),
        );
        put(&mut head, 96, &REFCOUNT_ORDER.to_be_bytes());
        put(&mut head, 100, &(HEADER as u32).to_be_bytes());
        put(&mut head, 104, &[u8::from(options.compression == Compression::Zstd)]);
    } else {
        head.truncate(72);
    }
    if let Some(parent) = &making.parent {
        let format = parent.format().name().as_bytes();
        let format: &[u8] = if format == b"vhd" {
            b"vpc"
        } else if format == b"iso" {
            b"raw"
        } else {
            format
        };
        head.extend(EXTENSION_BACKING_FORMAT.to_be_bytes());
        head.extend((format.len() as u32).to_be_bytes());
        head.extend(format);
        head.resize(head.len().next_multiple_of(8), 0);
        head.extend([0; 8]);
        let at = head.len() as u64;
        let name = parent.name.as_bytes();
        put(&mut head, 8, &at.to_be_bytes());
        put(&mut head, 16, &(name.len() as u32).to_be_bytes());
        head.extend(name);
        if name.len() > 1023 || head.len() as u64 > cluster {
            return Err(BlockError::Usage(format!(
                "the parent's name of {} bytes is too long for the image's header",
                name.len()
            )));
        }
    }
    Ok(head)
}
