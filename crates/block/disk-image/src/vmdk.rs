//! VMware disk images (VMDK): monolithicSparse, monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat, and
//! streamOptimized, which is written once.
//!
//! A descriptor lists extents, which are files of the disk's bytes or sparse. Parents are found by the descriptor's hint,
//! and must have the CID that the child remembers. Both copies of the grain tables are kept. ESX's own sparse formats
//! (COWD, SESPARSE) are refused.
//!
//! Spec: VMware, Virtual Disk Format 5.0 ("VMDK").

pub(crate) mod create;
mod descriptor;
mod parent;
mod sparse;
pub(crate) mod stream;

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use device_model::Inspect;
use device_model::Node;

pub(crate) use self::descriptor::is_descriptor;

use self::create::new_cid;
use self::descriptor::Descriptor;
use self::descriptor::ExtentType;
use self::descriptor::MAX_DESCRIPTOR;
use self::sparse::SECTOR;
use self::sparse::SparseHeader;
use self::sparse::SparseTables;
use crate::BlockBackend;
use crate::BlockError;
use crate::CreateOptions;
use crate::Extent;
use crate::ExtentKind;
use crate::Files;
use crate::Format;
use crate::Identity;
use crate::Image;
use crate::ImageInfo;
use crate::Report;
use crate::Result;
use crate::Uuid;
use crate::Variant;
use crate::engine::Engine;
use crate::engine::Parent;
use crate::engine::Shape;
use crate::engine::in_range;
use crate::image;
use crate::meta::Meta;
use crate::meta::Stage;
use crate::open::Opening;
use crate::packed::Codec;
use crate::raw::Window;
use crate::store::Access;
use crate::store::File;

/// What an extent is.
enum Content {
    Sparse(Box<Engine<SparseTables>>),
    Flat(Window),
    Zero,
}

/// A part of the disk.
struct Part {
    start: u64,
    size: u64,
    writable: bool,
    content: Content,
    path: PathBuf,
}

struct Vmdk {
    path: PathBuf,
    file: File,
    writable: bool,
    descriptor: Descriptor,
    /// Where the descriptor begins in the file.
    descriptor_at: u64,
    parts: Vec<Part>,
    size: u64,
    parent: Option<(PathBuf, Arc<dyn Image>)>,
    /// By what children know it.
    identity: Mutex<Identity>,
    /// It was changed since the image was opened.
    changed: AtomicBool,
}

pub(crate) fn open(opening: &Opening, file: File) -> Result<Arc<dyn Image>> {
    let mut head = [0; 4];
    file.read_padded(0, &mut head)?;
    match &head {
        b"KDMV" => open_monolithic(opening, file),
        b"COWD" => {
            Err(file.unsupported("VMDK of the type COWD (ESX) is not supported; convert it with VMware's tools"))
        }
        _ => open_descriptor(opening, file),
    }
}

/// One sparse file with the descriptor in it.
fn open_monolithic(opening: &Opening, file: File) -> Result<Arc<dyn Image>> {
    let header = SparseHeader::read(&file)?;
    if opening.write() && header.compressed() {
        return Err(BlockError::ReadOnly {
            file: file.name().to_owned(),
            what: "streamOptimized images are written once; convert it to another format to change it".to_owned(),
        });
    }
    let descriptor_at = header.descriptor.saturating_mul(SECTOR);
    let descriptor = if header.descriptor > 0 {
        let text = read_text(&file, descriptor_at, header.descriptor_size.saturating_mul(SECTOR))?;
        Descriptor::parse(&file, &text)?
    } else {
        Descriptor {
            create_type: "monolithicSparse".to_owned(),
            ..Descriptor::default()
        }
    };
    let mut image = Vmdk::new(opening, file.clone(), descriptor, descriptor_at)?;
    image.add_sparse(file, header, None, opening.path.clone())?;
    Ok(Arc::new(image))
}

/// A descriptor and the files that it names.
fn open_descriptor(opening: &Opening, file: File) -> Result<Arc<dyn Image>> {
    let mut head = [0; 512];
    file.read_padded(0, &mut head)?;
    if !is_descriptor(&head) {
        return Err(file.no_such_image(Format::Vmdk));
    }
    let text = read_text(&file, 0, file.len()?)?;
    let descriptor = Descriptor::parse(&file, &text)?;
    if descriptor.extents.is_empty() {
        return Err(file.corrupt("the descriptor names no extents"));
    }
    let extents = descriptor.extents.clone();
    let mut image = Vmdk::new(opening, file, descriptor, 0)?;
    let mut names = BTreeSet::new();
    for line in extents {
        let size = line.sectors * SECTOR;
        if line.kind == ExtentType::Zero {
            image.add(size, line.writable, Content::Zero, opening.path.clone())?;
            continue;
        }
        let path = opening.resolve(&line.name)?;
        if path == opening.path || !names.insert(path.clone()) && line.kind == ExtentType::Sparse {
            return Err(image.file.corrupt(format!(
                "the extent `{}` is named twice, or is the descriptor",
                line.name
            )));
        }
        let file = opening.file(&path)?;
        if line.kind == ExtentType::Sparse {
            let header = SparseHeader::read(&file)?;
            if opening.write() && header.compressed() {
                return Err(file.unsupported("compressed extents are not written to"));
            }
            image.add_sparse(file, header, Some(size), path)?;
        } else {
            let end = line.offset * SECTOR + size;
            if file.len()? < end {
                return Err(file.corrupt(format!(
                    "the extent should have {end} bytes, but the file is shorter; it was cut off"
                )));
            }
            image.add(
                size,
                line.writable,
                Content::Flat(Window::new(file, line.offset * SECTOR, size)),
                path,
            )?;
        }
    }
    Ok(Arc::new(image))
}

/// The files beside a descriptor that it says its extents are.
pub(crate) fn extents(files: &Arc<dyn Files>, path: &Path) -> Vec<PathBuf> {
    let Ok(file) = File::open(&**files, path, Access::ReadShared) else {
        return Vec::new();
    };
    let text = file.len().and_then(|len| read_text(&file, 0, len)).unwrap_or_default();
    let descriptor = match is_descriptor(text.get(..512.min(text.len())).unwrap_or_default()) {
        true => Descriptor::parse(&file, &text).unwrap_or_default(),
        false => Descriptor::default(),
    };
    let names = descriptor.extents.iter().map(|extent| extent.name.as_str());
    let beside = names.filter(|name| !name.is_empty() && !name.contains('/'));
    beside.map(|name| path.with_file_name(name)).collect()
}

fn read_text(file: &File, at: u64, len: u64) -> Result<Vec<u8>> {
    if len > MAX_DESCRIPTOR {
        return Err(file.corrupt(format!("the descriptor has {len} bytes, more than {MAX_DESCRIPTOR}")));
    }
    let mut text = vec![0; len as usize];
    file.read_exact(at, &mut text)?;
    Ok(text)
}

impl Vmdk {
    fn new(opening: &Opening, file: File, descriptor: Descriptor, descriptor_at: u64) -> Result<Self> {
        let parent = match descriptor.parent_cid {
            None => None,
            Some(cid) => Some(parent::find(opening, &descriptor, cid)?),
        };
        Ok(Self {
            path: opening.path.clone(),
            file,
            writable: opening.write(),
            identity: Mutex::new(Identity {
                uuid: descriptor.uuid,
                modified: descriptor.modified,
                cid: Some(descriptor.cid),
            }),
            changed: AtomicBool::new(false),
            descriptor,
            descriptor_at,
            parts: Vec::new(),
            size: 0,
            parent,
        })
    }

    fn add(&mut self, size: u64, writable: bool, content: Content, path: PathBuf) -> Result<()> {
        let start = self.size;
        self.size = start
            .checked_add(size)
            .filter(|&size| i64::try_from(size).is_ok())
            .ok_or_else(|| self.file.corrupt("the extents together are larger than a disk can be"))?;
        let writable = writable && self.writable;
        self.parts.push(Part {
            start,
            size,
            writable,
            content,
            path,
        });
        Ok(())
    }

    /// Adds a sparse extent of `size` bytes, or of what its header says.
    fn add_sparse(&mut self, file: File, header: SparseHeader, size: Option<u64>, path: PathBuf) -> Result<()> {
        let capacity = header.capacity * SECTOR;
        let size = size.unwrap_or(capacity);
        if size > capacity {
            return Err(file.corrupt(format!("the extent has {capacity} bytes, the descriptor says {size}")));
        }
        let block = header.grain_bytes();
        let shape = Shape {
            size,
            block,
            unit: block,
            codec: Codec::Zlib,
        };
        let parent = self.parent.as_ref().map(|(_, image)| Parent {
            image: Arc::clone(image),
            offset: self.size,
        });
        let tables = SparseTables::new(header, file.len()?);
        let engine = Engine::new(Meta::new(file), tables, shape, parent, self.writable);
        self.add(size, true, Content::Sparse(Box::new(engine)), path)
    }

    /// The parts that a range touches, with the range in each and where that is in the whole range.
    fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = (&Part, u64, usize, usize)> {
        let first = self.parts.partition_point(|part| part.start + part.size <= offset);
        let end = offset + len;
        self.parts
            .iter()
            .skip(first)
            .take_while(move |part| part.start < end)
            .map(move |part| {
                let from = offset.max(part.start);
                let to = end.min(part.start + part.size);
                (part, from - part.start, (from - offset) as usize, (to - from) as usize)
            })
    }

    fn prepare_write(&self, offset: u64, len: u64) -> Result<()> {
        in_range(offset, len, self.size)?;
        let read_only = |what: &str| BlockError::ReadOnly {
            file: self.file.name().to_owned(),
            what: what.to_owned(),
        };
        if !self.writable {
            return Err(read_only("the image was opened for reading only"));
        }
        if self
            .parts(offset, len)
            .any(|(part, ..)| !part.writable || matches!(part.content, Content::Zero))
        {
            return Err(read_only("this extent of the image is for reading only"));
        }
        if len > 0 && !self.changed.load(Ordering::Acquire) {
            let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.changed.load(Ordering::Acquire) {
                identity.cid = Some(new_cid());
                identity.modified = match self.descriptor.modified_at {
                    Some(_) => Uuid::random(),
                    None => Uuid::default(),
                };
                self.put_identity(&identity)?;
                self.changed.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Overwrites what changes with every use in the descriptor.
    fn put_identity(&self, identity: &Identity) -> Result<()> {
        let cid = identity.cid.map(|cid| format!("{cid:08x}"));
        let modified = identity.modified.to_string();
        self.put_digits(self.descriptor.cid_at, cid.as_deref().unwrap_or_default())?;
        self.put_digits(self.descriptor.modified_at, &modified)?;
        // Flat extents have nothing else to write: no flush would take the descriptor along.
        match self.embedding() {
            Some(_) => Ok(()),
            None => self.file.sync(),
        }
    }

    /// The extent that has the descriptor in it.
    fn embedding(&self) -> Option<&Engine<SparseTables>> {
        match self.parts.first().map(|part| &part.content) {
            Some(Content::Sparse(engine)) if engine.file().id() == self.file.id() => Some(engine),
            _ => None,
        }
    }

    fn put_digits(&self, at: Option<usize>, digits: &str) -> Result<()> {
        let Some(at) = at else { return Ok(()) };
        let at = self.descriptor_at + at as u64;
        match self.embedding() {
            Some(engine) => {
                engine.prepare_maintenance()?;
                engine.state().meta.put(at, digits.as_bytes(), Stage::Late)
            }
            None => self.file.write(at, digits.as_bytes()),
        }
    }

    fn zero_range(&self, offset: u64, len: u64, discard: bool) -> Result<()> {
        self.prepare_write(offset, len)?;
        self.parts(offset, len)
            .try_for_each(|(part, at, _, len)| match &part.content {
                Content::Sparse(engine) => engine.zero_range(at, len as u64, discard),
                Content::Flat(window) => window.zero_range(at, len as u64, discard),
                Content::Zero => Ok(()),
            })
    }

    fn variant(&self) -> Variant {
        let known = Variant::NAMES
            .into_iter()
            .find(|(name, _)| *name == self.descriptor.create_type);
        known.map_or(Variant::MonolithicSparse, |(_, variant)| variant)
    }
}

impl BlockBackend for Vmdk {
    fn info(&self) -> ImageInfo {
        let block = self.parts.iter().find_map(|part| match &part.content {
            Content::Sparse(engine) => Some(engine.block()),
            _ => None,
        });
        ImageInfo {
            format: Format::Vmdk,
            variant: self.descriptor.create_type.clone(),
            size: self.size,
            sector_size: 512,
            block_size: block.unwrap_or(1),
            writable: self.writable,
        }
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        in_range(offset, buf.len() as u64, self.size)?;
        for (part, at, start, len) in self.parts(offset, buf.len() as u64) {
            let buf = buf.get_mut(start..start + len).unwrap_or_default();
            match &part.content {
                Content::Sparse(engine) => engine.read_at(at, buf)?,
                Content::Flat(window) => window.read_at(at, buf)?,
                Content::Zero => buf.fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<()> {
        self.prepare_write(offset, buf.len() as u64)?;
        self.parts(offset, buf.len() as u64)
            .try_for_each(|(part, at, start, len)| {
                let buf = buf.get(start..start + len).unwrap_or_default();
                match &part.content {
                    Content::Sparse(engine) => engine.write_at(at, buf),
                    Content::Flat(window) => window.write_at(at, buf),
                    Content::Zero => Ok(()),
                }
            })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_range(offset, len, false)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.zero_range(offset, len, true)
    }

    fn flush(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| match &part.content {
            Content::Sparse(engine) => engine.flush(),
            Content::Flat(window) => window.flush(),
            Content::Zero => Ok(()),
        })
    }

    fn extent(&self, offset: u64) -> Result<Extent> {
        in_range(offset, 1, self.size)?;
        let none = Extent {
            len: 1,
            kind: ExtentKind::Zero,
            depth: 0,
        };
        let Some((part, at, ..)) = self.parts(offset, 1).next() else {
            return Ok(none);
        };
        match &part.content {
            Content::Sparse(engine) => engine.extent(at),
            Content::Flat(window) => window.extent(at),
            Content::Zero => Ok(Extent {
                len: part.size - at,
                ..none
            }),
        }
    }
}

impl Image for Vmdk {
    fn check(&self, repair: bool) -> Result<Report> {
        let mut report = Report::default();
        for part in &self.parts {
            if let Content::Sparse(engine) = &part.content {
                if repair {
                    engine.prepare_maintenance()?;
                }
                sparse::check(&mut engine.state(), &mut report, repair)?;
            }
        }
        self.flush()?;
        Ok(report)
    }

    /// Never in place: the tables have the size of the disk.
    fn resize(&self, _size: u64) -> Result<bool> {
        Ok(false)
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files = vec![self.path.clone()];
        files.extend(
            self.parts
                .iter()
                .map(|part| part.path.clone())
                .filter(|path| *path != self.path),
        );
        files
    }

    fn allocated(&self) -> Result<u64> {
        let mut sum = self.file.allocated()?;
        for part in &self.parts {
            sum += match &part.content {
                Content::Sparse(engine) if engine.file().id() != self.file.id() => engine.file().allocated()?,
                Content::Flat(window) => window.file().allocated()?,
                _ => 0,
            };
        }
        Ok(sum)
    }

    fn parent(&self) -> Option<(PathBuf, Arc<dyn Image>)> {
        self.parent.clone()
    }

    fn identity(&self) -> Identity {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_identity(&self, identity: &Identity) -> Result<()> {
        self.changed.store(true, Ordering::Release);
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = *identity;
        self.put_identity(identity)
    }

    fn details(&self) -> Vec<(&'static str, String)> {
        let identity = self.identity();
        let mut details = vec![("CID", format!("{:08x}", identity.cid.unwrap_or_default()))];
        if !identity.uuid.is_zero() {
            details.push(("identifier", identity.uuid.to_string()));
        }
        details
    }

    fn pinned(&self) -> Option<String> {
        (self.files().len() > 1).then(|| "it consists of several files; convert it to a new image instead".to_owned())
    }

    fn kind(&self) -> CreateOptions {
        let block = self.info().block_size;
        CreateOptions {
            variant: self.variant(),
            block_size: (block > 1).then_some(block),
            ..CreateOptions::new(Format::Vmdk, self.size)
        }
    }
}

impl Inspect for Vmdk {
    fn inspect(&self) -> Node {
        image::inspect(self)
    }
}
