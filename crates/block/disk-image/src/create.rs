//! Making images.

use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use crate::BlockError;
use crate::Compression;
use crate::Files;
use crate::Format;
use crate::Identity;
use crate::Image;
use crate::OpenOptions;
use crate::Result;
use crate::open_in;
use crate::qcow2;
use crate::store::Access;
use crate::store::File;
use crate::vdi;
use crate::vhd;
use crate::vmdk;

/// A format's varieties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// The format's usual one, which grows with its contents.
    #[default]
    Default,
    /// VDI, VHD, raw: all space is there from the beginning.
    Fixed,
    /// VMDK: one file that grows.
    MonolithicSparse,
    /// VMDK: a descriptor and one file of the disk's bytes.
    MonolithicFlat,
    /// VMDK: a descriptor and files of up to 2 GB that grow.
    TwoGbMaxExtentSparse,
    /// VMDK: a descriptor and files of up to 2 GB of the disk's bytes.
    TwoGbMaxExtentFlat,
    /// VMDK: compressed, written once from the beginning to the end.
    StreamOptimized,
    /// qcow2 version 2.
    V2,
    /// qcow2 version 3.
    V3,
}

impl Variant {
    /// All variants with the names that users write.
    pub const NAMES: [(&'static str, Self); 9] = [
        ("dynamic", Self::Default),
        ("fixed", Self::Fixed),
        ("monolithicSparse", Self::MonolithicSparse),
        ("monolithicFlat", Self::MonolithicFlat),
        ("twoGbMaxExtentSparse", Self::TwoGbMaxExtentSparse),
        ("twoGbMaxExtentFlat", Self::TwoGbMaxExtentFlat),
        ("streamOptimized", Self::StreamOptimized),
        ("v2", Self::V2),
        ("v3", Self::V3),
    ];

    fn fits(self, format: Format) -> bool {
        match self {
            Self::Default => true,
            Self::Fixed => matches!(format, Format::Raw | Format::Vdi | Format::Vhd),
            Self::V2 | Self::V3 => format == Format::Qcow2,
            _ => format == Format::Vmdk,
        }
    }

    fn name(self) -> &'static str {
        Self::NAMES
            .into_iter()
            .find(|(_, variant)| *variant == self)
            .map_or("", |(name, _)| name)
    }
}

impl FromStr for Variant {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::NAMES
            .into_iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(text));
        known.map(|(_, variant)| variant).ok_or_else(|| {
            let names: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            BlockError::Usage(format!(
                "`{text}` is no variant of an image format; known are {}",
                names.join(", ")
            ))
        })
    }
}

/// The parent of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentReference {
    /// Where it is.
    pub path: PathBuf,
    /// Its format; found by its contents if none is given.
    pub format: Option<Format>,
}

/// What image is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// The format.
    pub format: Format,
    /// Its variety.
    pub variant: Variant,
    /// Size of the disk in bytes, a multiple of 512. None takes the parent's.
    pub size: Option<u64>,
    /// Unit of allocation in bytes, a power of two. None takes what is usual.
    pub block_size: Option<u64>,
    /// qcow2: how compressed clusters are.
    pub compression: Compression,
    /// qcow2: entries of tables have 32 subclusters.
    pub subclusters: bool,
    /// qcow2: refcounts may be written late.
    pub lazy_refcounts: bool,
    /// What the image differs from.
    pub parent: Option<ParentReference>,
    /// By what children know it; new if none is given.
    pub identity: Option<Identity>,
    /// The path that the file is going to have, where that is another one.
    pub named: Option<PathBuf>,
}

impl CreateOptions {
    /// The usual image of `format` with `size` bytes.
    #[must_use]
    pub fn new(format: Format, size: u64) -> Self {
        Self {
            format,
            variant: Variant::Default,
            size: Some(size),
            block_size: None,
            compression: Compression::Zlib,
            subclusters: false,
            lazy_refcounts: false,
            parent: None,
            identity: None,
            named: None,
        }
    }
}

/// An open parent and the name by which the child refers to it.
pub(crate) struct ParentImage {
    pub(crate) image: Arc<dyn Image>,
    /// Relative to the child's folder where both have a folder in common.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

impl ParentImage {
    pub(crate) fn format(&self) -> Format {
        self.image.info().format
    }
}

/// An image that is being made.
pub(crate) struct Making<'a> {
    pub(crate) files: &'a Arc<dyn Files>,
    pub(crate) path: &'a Path,
    pub(crate) options: &'a CreateOptions,
    pub(crate) size: u64,
    pub(crate) parent: Option<ParentImage>,
}

impl Making<'_> {
    /// The name of a file beside the image, as the image refers to it.
    pub(crate) fn beside(&self, suffix: &str) -> String {
        let stem = self
            .options
            .named
            .as_deref()
            .unwrap_or(self.path)
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy();
        format!("{stem}{suffix}.vmdk")
    }

    pub(crate) fn create_beside(&self, name: &str) -> Result<File> {
        File::open(&**self.files, &self.path.with_file_name(name), Access::Create)
    }

    pub(crate) fn identity(&self) -> Identity {
        self.options.identity.unwrap_or_else(|| Identity {
            uuid: crate::Uuid::random(),
            modified: crate::Uuid::random(),
            cid: None,
        })
    }
}

/// Makes an empty image. Nothing may have its name yet; it appears under that name when it is whole.
///
/// # Errors
/// The options contradict each other or the format, the parent cannot be opened, or the host cannot write.
pub fn create(files: &Arc<dyn Files>, path: &Path, options: &CreateOptions) -> Result<()> {
    in_place_of_nothing(files, path, options, &mut |path, options| make(files, path, options))
}

/// Lets `write` make an image under another name beside `path`, and gives it that name.
pub(crate) fn in_place_of_nothing(
    files: &Arc<dyn Files>,
    path: &Path,
    options: &CreateOptions,
    write: &mut dyn FnMut(&Path, &CreateOptions) -> Result<()>,
) -> Result<()> {
    let exists = || BlockError::Io {
        file: path.display().to_string(),
        action: "create",
        source: rustix::io::Errno::EXIST.into(),
    };
    if files.id(path).is_some() {
        return Err(exists());
    }
    let unfinished = Unfinished::new(files, path, options.format);
    let options = CreateOptions {
        named: Some(path.to_owned()),
        ..options.clone()
    };
    // The user knows nothing of the other name.
    write(&unfinished.path, &options).map_err(|error| error.renamed(&unfinished.path, path))?;
    files.rename_new(&unfinished.path, path)?;
    unfinished.done();
    Ok(())
}

/// An image that has not got its name yet. It is removed when this is dropped.
pub(crate) struct Unfinished<'a> {
    files: &'a Arc<dyn Files>,
    pub(crate) path: PathBuf,
    format: Format,
    finished: bool,
}

impl<'a> Unfinished<'a> {
    /// A name beside `path` that nobody else uses.
    pub(crate) fn new(files: &'a Arc<dyn Files>, path: &Path, format: Format) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self {
            files,
            path: path.with_file_name(format!(".{name}.{}", crate::Uuid::random())),
            format,
            finished: false,
        }
    }

    /// It has its name.
    pub(crate) fn done(mut self) {
        self.finished = true;
    }
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.finished || self.files.id(&self.path).is_none() {
            return;
        }
        // Extents are files beside it. Nothing but a descriptor that was just made says which: what a raw image holds is
        // the guest's.
        let extents = match self.format {
            Format::Vmdk => vmdk::extents(self.files, &self.path),
            _ => Vec::new(),
        };
        for path in extents.iter().chain([&self.path]) {
            // The error that is reported is the first one.
            let _ = self.files.remove(path);
        }
    }
}

/// Makes an empty image. After an error, a part of it may be there.
pub(crate) fn make(files: &Arc<dyn Files>, path: &Path, options: &CreateOptions) -> Result<()> {
    let making = prepare(files, path, options)?;
    if matches!(options.format, Format::Iso | Format::Vhdx) {
        return Err(BlockError::Usage(format!(
            "images of format {} are read only",
            options.format
        )));
    }
    let file = File::open(&**files, path, Access::Create)?;
    match options.format {
        Format::Vdi => vdi::create(&making, &file),
        Format::Vmdk => vmdk::create::create(&making, &file),
        Format::Vhd => vhd::create(&making, &file),
        Format::Qcow2 => qcow2::create::create(&making, &file),
        _ => create_raw(&making, &file),
    }
}

/// Checks what holds for every format, and opens the parent.
pub(crate) fn prepare<'a>(files: &'a Arc<dyn Files>, path: &'a Path, options: &'a CreateOptions) -> Result<Making<'a>> {
    if !options.variant.fits(options.format) {
        return Err(BlockError::Usage(format!(
            "{} has no variant `{}`",
            options.format,
            options.variant.name()
        )));
    }
    if options.format != Format::Qcow2
        && (options.subclusters || options.lazy_refcounts || options.compression != Compression::Zlib)
    {
        return Err(BlockError::Usage(
            "zstd, subclusters and lazy refcounts are for qcow2 only".to_owned(),
        ));
    }
    let parent = match &options.parent {
        None => None,
        Some(reference) => Some(open_parent(files, path, reference)?),
    };
    let size = options.size.or(parent.as_ref().map(|parent| parent.image.info().size));
    let size = size.ok_or_else(|| BlockError::Usage("the disk's size is missing".to_owned()))?;
    if !size.is_multiple_of(512) {
        return Err(BlockError::Usage(format!(
            "a disk of {size} bytes is not a whole number of sectors of 512 bytes"
        )));
    }
    if i64::try_from(size).is_err() {
        return Err(BlockError::Usage(format!("a disk of {size} bytes is too large")));
    }
    Ok(Making {
        files,
        path,
        options,
        size,
        parent,
    })
}

fn open_parent(files: &Arc<dyn Files>, path: &Path, reference: &ParentReference) -> Result<ParentImage> {
    let options = OpenOptions {
        format: reference.format,
        ..OpenOptions::default()
    };
    let image = open_in(files, &reference.path, &options)?;
    let unnamed = || BlockError::Usage(format!("{}: the path is no text", reference.path.display()));
    let name = relative(path, &reference.path).to_str().ok_or_else(unnamed)?.to_owned();
    Ok(ParentImage {
        image,
        name,
        path: reference.path.clone(),
    })
}

/// `to` as seen from the folder of `from`. Absolute where they have nothing but the root in common.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let (Ok(from), Ok(absolute)) = (std::path::absolute(from), std::path::absolute(to)) else {
        return to.to_owned();
    };
    let folder: Vec<_> = from.parent().into_iter().flat_map(Path::components).collect();
    let parts: Vec<_> = absolute.components().collect();
    let common = folder.iter().zip(&parts).take_while(|(a, b)| a == b).count();
    if common <= 1 {
        return absolute;
    }
    let up = std::iter::repeat_n(Path::new(".."), folder.len() - common);
    up.map(Path::to_owned)
        .chain(parts.iter().skip(common).map(|part| PathBuf::from(part.as_os_str())))
        .collect()
}

fn create_raw(making: &Making<'_>, file: &File) -> Result<()> {
    if making.parent.is_some() {
        return Err(BlockError::Usage(
            "raw images have no parents; take vdi, vmdk, vhd or qcow2".to_owned(),
        ));
    }
    file.set_len(making.size)?;
    if making.options.variant == Variant::Fixed {
        file.zero(0, making.size, true)?;
    }
    file.sync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_paths_go_up_and_down() {
        for (from, to, name) in [
            ("/vm/child.vdi", "/vm/base.vdi", "base.vdi"),
            ("/vm/snapshots/child.vdi", "/vm/base.vdi", "../base.vdi"),
            ("/vm/child.vdi", "/vm/base/a.vdi", "base/a.vdi"),
            ("/vm/child.vdi", "/srv/base.vdi", "/srv/base.vdi"),
        ] {
            assert_eq!(relative(Path::new(from), Path::new(to)), Path::new(name), "{from}");
        }
    }
}
