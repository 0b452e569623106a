//! Opening an image with all its parents.
//!
//! Parents are opened for reading. A name is relative to the folder of the image that says it. A chain that goes round,
//! or is longer than 64 images, is refused.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::BlockError;
use crate::FileId;
use crate::Files;
use crate::Format;
use crate::HostFiles;
use crate::Image;
use crate::Result;
use crate::bytes;
use crate::qcow2;
use crate::raw;
use crate::store::Access;
use crate::store::File;
use crate::vdi;
use crate::vhd;
use crate::vhdx;
use crate::vmdk;

/// Images in a chain at most.
const MAX_CHAIN: usize = 64;

/// How an image is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// For writing too. Nobody else can open it then.
    pub write: bool,
    /// The format; found by the file's contents if none is given.
    pub format: Option<Format>,
    /// Open for reading even if somebody else writes. What is read may be inconsistent.
    pub share: bool,
}

impl OpenOptions {
    /// For writing, in whatever format it is.
    #[must_use]
    pub fn writable() -> Self {
        Self {
            write: true,
            ..Self::default()
        }
    }
}

/// Opens an image of the host.
///
/// # Errors
/// It cannot be read, is no such image, is damaged, encrypted, or in use.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Image>> {
    let files: Arc<dyn Files> = Arc::new(HostFiles::default());
    open_in(&files, path, options)
}

/// Opens an image among `files`.
///
/// # Errors
/// As `open`.
pub fn open_in(files: &Arc<dyn Files>, path: &Path, options: &OpenOptions) -> Result<Arc<dyn Image>> {
    Opening {
        files: Arc::clone(files),
        path: path.to_owned(),
        options: *options,
        chain: Vec::new(),
    }
    .run()
}

/// An image that is being opened, and who its children are.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) path: PathBuf,
    pub(crate) options: OpenOptions,
    chain: Vec<FileId>,
}

impl Opening {
    fn run(mut self) -> Result<Arc<dyn Image>> {
        let file = self.file(&self.path)?;
        self.chain.push(file.id());
        let format = match self.options.format {
            Some(format) => format,
            None => probe(&file)?,
        };
        match format {
            Format::Raw | Format::Iso => raw::open(&self, file, format),
            Format::Vdi => vdi::open(&self, file),
            Format::Vmdk => vmdk::open(&self, file),
            Format::Vhd => vhd::open(&self, file),
            Format::Vhdx => vhdx::open(&self, file),
            Format::Qcow2 => qcow2::open(&self, file),
        }
    }

    /// Opens a file of the image as the image itself is opened.
    pub(crate) fn file(&self, path: &Path) -> Result<File> {
        let access = match self.options {
            OpenOptions { write: true, .. } => Access::Write,
            OpenOptions { share: true, .. } => Access::ReadShared,
            _ => Access::Read,
        };
        File::open(&*self.files, path, access)
    }

    pub(crate) fn write(&self) -> bool {
        self.options.write
    }

    /// Where a name that the image says leads to.
    pub(crate) fn resolve(&self, name: &str) -> Result<PathBuf> {
        let refuse = |what: String| BlockError::Parent {
            file: self.path.display().to_string(),
            what,
        };
        if name.is_empty() || name.contains('\0') {
            return Err(refuse(
                "the name of another file that it refers to is empty or damaged".to_owned(),
            ));
        }
        let plain = name.strip_prefix("file:").unwrap_or(name);
        let scheme = plain.split_once(':').map_or("", |(scheme, _)| scheme);
        if scheme.len() > 1 && !scheme.contains(['/', '.', ' ']) && !plain.starts_with('/') && plain != name
            || [
                "json", "nbd", "http", "https", "ssh", "rbd", "iscsi", "nfs", "fat", "gluster",
            ]
            .contains(&scheme)
        {
            return Err(refuse(format!("it refers to `{name}`, which is not a file")));
        }
        Ok(match self.path.parent() {
            Some(folder) if Path::new(plain).is_relative() => folder.join(plain),
            _ => PathBuf::from(plain),
        })
    }

    /// Opens a parent.
    pub(crate) fn parent(&self, path: &Path, format: Option<Format>) -> Result<Arc<dyn Image>> {
        let refuse = |what: String| BlockError::Parent {
            file: self.path.display().to_string(),
            what,
        };
        if self.chain.len() >= MAX_CHAIN {
            return Err(refuse(format!("the chain of parents has more than {MAX_CHAIN} images")));
        }
        if self.files.id(path).is_some_and(|id| self.chain.contains(&id)) {
            return Err(refuse(format!(
                "its parent `{}` is the image itself or one of its children",
                path.display()
            )));
        }
        let opening = Self {
            files: Arc::clone(&self.files),
            path: path.to_owned(),
            options: OpenOptions {
                write: false,
                format,
                share: self.options.share,
            },
            chain: self.chain.clone(),
        };
        opening.run().map_err(|error| match error {
            BlockError::Io {
                action: "open", source, ..
            } if source.kind() == std::io::ErrorKind::NotFound => refuse(format!(
                "its parent `{}` does not exist; put it there, or move the image beside it",
                path.display()
            )),
            error => error,
        })
    }
}

/// The format by the file's contents. What is nothing else is raw.
pub(crate) fn probe(file: &File) -> Result<Format> {
    let mut head = [0; 512];
    file.read_padded(0, &mut head)?;
    let format = match &head {
        [b'Q', b'F', b'I', 0xfb, ..] => Some(Format::Qcow2),
        [b'K', b'D', b'M', b'V', ..] | [b'C', b'O', b'W', b'D', ..] => Some(Format::Vmdk),
        [b'v', b'h', b'd', b'x', b'f', b'i', b'l', b'e', ..] => Some(Format::Vhdx),
        [b'c', b'o', b'n', b'e', b'c', b't', b'i', b'x', ..] => Some(Format::Vhd),
        head if bytes::u32_le(head, 64) == vdi::SIGNATURE => Some(Format::Vdi),
        head if vmdk::is_descriptor(head) => Some(Format::Vmdk),
        _ => None,
    };
    if let Some(format) = format {
        return Ok(format);
    }
    let len = file.len()?;
    if len >= 512 {
        // A fixed VHD has nothing but a footer.
        file.read_padded(len - 512, &mut head)?;
        if vhd::is_footer(&head) {
            return Ok(Format::Vhd);
        }
    }
    // ECMA-119 §8.1: the volume descriptors begin at sector 16.
    let mut descriptor = [0; 6];
    file.read_padded(16 * 2048, &mut descriptor)?;
    let named = Path::new(file.name())
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("iso"));
    Ok(if named && &descriptor[1..] == b"CD001" {
        Format::Iso
    } else {
        Format::Raw
    })
}
