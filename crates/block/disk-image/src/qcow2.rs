//! QEMU's qcow2 images, versions 2 and 3.
//!
//! Backing files, compressed clusters (deflate and zstd), subclusters, internal snapshots (kept, not made), any refcount
//! width. Lazy refcounts are kept up to date all the same; an image that was left dirty is repaired when it is opened for
//! writing. Bitmaps are given up by the first write, as the format prescribes. Encryption and external data files are
//! refused.
//!
//! Spec: QEMU docs/interop/qcow2.txt ("qcow2").

mod check;
pub(crate) mod create;
mod header;
mod refcount;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;

use self::header::AT_L1_SIZE;
use self::header::AT_SIZE;
use self::header::Header;
use self::header::Incompatible;
use self::header::LAZY_REFCOUNTS;
use self::header::MAX_L1;
use self::tables::Tables2;
use crate::BlockBackend;
use crate::BlockError;
use crate::Compression;
use crate::CreateOptions;
use crate::Format;
use crate::Image;
use crate::ImageInfo;
use crate::Report;
use crate::Result;
use crate::Variant;
use crate::bytes;
use crate::engine::Engine;
use crate::engine::Parent;
use crate::engine::Shape;
use crate::engine::Tables;
use crate::engine::disk_of_engine;
use crate::meta::Meta;
use crate::meta::Stage;
use crate::open::Opening;
use crate::packed;
use crate::packed::Codec;
use crate::store::File;

pub(crate) struct Qcow2 {
    engine: Engine<Tables2>,
    path: PathBuf,
    parent: Option<(PathBuf, Arc<dyn Image>)>,
    header: Header,
}

pub(crate) fn open(opening: &Opening, file: File) -> Result<Arc<dyn Image>> {
    let header = Header::read(&file)?;
    if opening.write() && header.incompatible.contains(Incompatible::CORRUPT) {
        tracing::warn!(file = file.name(), "the image is marked as damaged");
    }
    let parent = match &header.backing {
        None => None,
        Some(name) => {
            let path = opening.resolve(name)?;
            let image = opening.parent(&path, header.backing_format)?;
            Some((path, image))
        }
    };
    let tables = Tables2::new(header.clone(), file.len()?);
    let unit = if header.extended() {
        header.cluster() / 32
    } else {
        header.cluster()
    };
    let shape = Shape {
        size: header.size,
        block: header.cluster(),
        unit,
        codec: header.codec,
    };
    let backing = parent.as_ref().map(|(_, image)| Parent {
        image: Arc::clone(image),
        offset: 0,
    });
    let image = Qcow2 {
        engine: Engine::new(Meta::new(file), tables, shape, backing, opening.write()),
        path: opening.path.clone(),
        parent,
        header,
    };
    if opening.write() && image.header.incompatible.contains(Incompatible::DIRTY) {
        image.check(true)?;
    }
    Ok(Arc::new(image))
}

impl Qcow2 {
    /// Writes fields of the header's first sector with the next flush.
    fn put_header(&self, fields: &[(u64, &[u8])]) -> Result<()> {
        let mut state = self.engine.state();
        fields
            .iter()
            .try_for_each(|(at, bytes)| state.meta.put(*at, bytes, Stage::Late))
    }

    /// A cluster becomes these compressed bytes.
    fn put_packed(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let len = bytes.len() as u64;
        self.engine
            .write_out_of_line(offset, self.engine.block(), |tables, meta| {
                let at = tables.begin_packed(meta, len)?;
                meta.file().write(at, bytes)?;
                tables.publish_packed(meta, offset, at, len)
            })
    }

    /// Room in the L1 table for a disk of `size` bytes.
    fn grow_l1(&self, size: u64) -> Result<()> {
        let entries = size.div_ceil(self.header.l2_covers());
        if entries * 8 > MAX_L1 {
            return Err(BlockError::Usage(format!(
                "a disk of {size} bytes is too large for clusters of {} bytes",
                self.header.cluster()
            )));
        }
        let mut state = self.engine.state();
        let crate::engine::State { tables, meta } = &mut *state;
        let (old_at, old) = (tables.header.l1_offset, tables.header.l1_size);
        if entries <= old {
            return Ok(());
        }
        let mut content = vec![0; (entries * 8) as usize];
        meta.read(old_at, content.get_mut(..(old * 8) as usize).unwrap_or_default())?;
        let clusters = (entries * 8).div_ceil(tables.cluster);
        let at = tables.allocate_row(meta, clusters)? * tables.cluster;
        meta.fresh(at, clusters * tables.cluster)?;
        meta.put(at, &content, Stage::Early)?;
        let mut fields = [0; 12];
        bytes::put(&mut fields, 0, &(entries as u32).to_be_bytes());
        bytes::put(&mut fields, 4, &at.to_be_bytes());
        meta.put(AT_L1_SIZE, &fields, Stage::Late)?;
        (tables.header.l1_offset, tables.header.l1_size) = (at, entries);
        if old > 0 {
            tables.freed.push((old_at, (old * 8).next_multiple_of(tables.cluster)));
        }
        Ok(())
    }
}

disk_of_engine!(Qcow2, |image: &Qcow2| ImageInfo {
    format: Format::Qcow2,
    variant: format!("v{}", image.header.version),
    size: image.engine.size(),
    sector_size: 512,
    block_size: image.engine.block(),
    writable: image.engine.writable(),
});

impl Image for Qcow2 {
    fn check(&self, repair: bool) -> Result<Report> {
        self.engine.flush()?;
        let mut report = check::run(&mut self.engine.state(), false)?;
        let marked = self.header.incompatible & (Incompatible::DIRTY | Incompatible::CORRUPT);
        if repair && (report.error_count + report.leaks > 0 || !marked.is_empty()) {
            self.engine.prepare_maintenance()?;
            let mended = check::run(&mut self.engine.state(), true)?;
            self.engine.flush()?;
            report = check::run(&mut self.engine.state(), false)?;
            report.repaired = mended.repaired;
            if report.is_sound() && !marked.is_empty() {
                let rest = self.header.incompatible & !marked;
                self.put_header(&[(header::AT_INCOMPATIBLE, &rest.bits().to_be_bytes())])?;
                self.engine.flush()?;
            }
        }
        Ok(report)
    }

    fn resize(&self, size: u64) -> Result<bool> {
        let old = self.engine.size();
        if self.header.snapshots > 0 {
            return Err(BlockError::Usage(format!(
                "{}: images with internal snapshots are not resized; delete them with `qemu-img snapshot -d`",
                self.engine.file().name()
            )));
        }
        self.engine.prepare_maintenance()?;
        if size < old {
            self.engine.zero_range(size, old - size, true)?;
            self.engine.flush()?;
            self.engine.set_size(size);
        } else {
            self.grow_l1(size)?;
            self.engine.set_size(size);
            // What the file or the parent has behind the old end is no part of the disk.
            self.engine.zero_range(old, size - old, true)?;
            self.engine.flush()?;
        }
        self.put_header(&[(AT_SIZE, &size.to_be_bytes())])?;
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

    fn details(&self) -> Vec<(&'static str, String)> {
        let mut details = vec![("refcount bits", (1 << self.header.refcount_order).to_string())];
        if self.header.codec == Codec::Zstd {
            details.push(("compression", "zstd".to_owned()));
        }
        if self.header.extended() {
            details.push(("subclusters", "yes".to_owned()));
        }
        if self.header.compatible & LAZY_REFCOUNTS != 0 {
            details.push(("lazy refcounts", "yes".to_owned()));
        }
        if self.header.snapshots > 0 {
            details.push(("internal snapshots", self.header.snapshots.to_string()));
        }
        details
    }

    fn write_packed(&self, offset: u64, data: &[u8]) -> Result<()> {
        let block = usize::try_from(self.engine.block()).unwrap_or(usize::MAX);
        if !offset.is_multiple_of(self.engine.block()) {
            return self.write_at(offset, data);
        }
        // The last cluster reaches beyond the end of the disk.
        let at_end = offset + data.len() as u64 == self.engine.size();
        let mut padded = data.get(data.len() - data.len() % block..).unwrap_or_default().to_vec();
        if at_end && !padded.is_empty() {
            padded.resize(block, 0);
        }
        let mut blocks: Vec<&[u8]> = data.chunks_exact(block).collect();
        blocks.extend(padded.chunks_exact(block));
        let packed = packed::pack_all(self.header.codec, &blocks);
        for ((index, block), packed) in (0..)
            .zip(data.chunks(block))
            .zip(packed.iter().chain(std::iter::repeat(&None)))
        {
            let at = offset + index * self.engine.block();
            match packed {
                Some(bytes) => self.put_packed(at, bytes)?,
                None => self.write_at(at, block)?,
            }
        }
        Ok(())
    }

    fn pinned(&self) -> Option<String> {
        let count = self.header.snapshots;
        (count > 0).then(|| format!("it has {count} internal snapshots; delete them with `qemu-img snapshot -d`"))
    }

    fn kind(&self) -> CreateOptions {
        CreateOptions {
            variant: if self.header.version == 2 {
                Variant::V2
            } else {
                Variant::V3
            },
            block_size: Some(self.header.cluster()),
            compression: if self.header.codec == Codec::Zstd {
                Compression::Zstd
            } else {
                Compression::Zlib
            },
            subclusters: self.header.extended(),
            lazy_refcounts: self.header.compatible & LAZY_REFCOUNTS != 0,
            ..CreateOptions::new(Format::Qcow2, self.engine.size())
        }
    }
}

impl Tables2 {
    /// All space that is not referred to, given back before a check counts references.
    pub(crate) fn settle(&mut self, meta: &mut Meta) -> Result<()> {
        let freed = self.take_freed();
        self.release(meta, &freed).map(drop)
    }
}
