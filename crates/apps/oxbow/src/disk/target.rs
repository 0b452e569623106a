//! Arguments that several subcommands share: which image is opened, and what kind of image is made.

use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use clap::ValueEnum;
use disk_image::BlockError;
use disk_image::Compression;
use disk_image::CreateOptions;
use disk_image::Files;
use disk_image::Format;
use disk_image::HostFiles;
use disk_image::Image;
use disk_image::OpenOptions;
use disk_image::ParentReference;
use disk_image::Variant;
use spec::Size;

/// The files of the host.
pub(super) fn files() -> Arc<dyn Files> {
    Arc::new(HostFiles::default())
}

#[derive(Debug, Args)]
pub(super) struct SourceArgs {
    /// The image
    pub(super) image: PathBuf,

    /// Its format, instead of what its contents look like. Give it for raw images that guests can write to
    #[arg(long, value_name = "FORMAT")]
    pub(super) format: Option<Format>,
}

impl SourceArgs {
    pub(super) fn options(&self) -> OpenOptions {
        OpenOptions {
            format: self.format,
            ..OpenOptions::default()
        }
    }

    /// For reading, even while somebody writes if that is asked for.
    pub(super) fn open(&self, share: bool) -> Result<Arc<dyn Image>, BlockError> {
        disk_image::open(
            &self.image,
            &OpenOptions {
                share,
                ..self.options()
            },
        )
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CompressionArg {
    Zlib,
    Zstd,
}

#[derive(Debug, Args)]
pub(super) struct KindArgs {
    /// The new image's format; else by the ending of its name
    #[arg(long, short = 'O', value_name = "FORMAT")]
    to: Option<Format>,

    /// dynamic or fixed (raw, vdi, vhd); v2 or v3 (qcow2); monolithicSparse, monolithicFlat, twoGbMaxExtentSparse,
    /// twoGbMaxExtentFlat or streamOptimized (vmdk)
    #[arg(long)]
    variant: Option<Variant>,

    /// Unit of allocation, a power of two: 64K for qcow2 and vmdk, 1M for vdi, 2M for vhd if not given
    #[arg(long, value_name = "SIZE")]
    block_size: Option<Size>,

    /// Make a layer that holds only what differs from this image
    #[arg(long, value_name = "IMAGE")]
    parent: Option<PathBuf>,

    /// The parent's format, instead of what its contents look like
    #[arg(long, value_name = "FORMAT", requires = "parent")]
    parent_format: Option<Format>,

    /// How compressed clusters of a qcow2 image are made
    #[arg(long, value_enum, default_value = "zlib")]
    compression: CompressionArg,

    /// qcow2: keep track of 32nds of a cluster, which makes writes over a parent smaller
    #[arg(long)]
    subclusters: bool,

    /// qcow2: allow programs to write reference counts late
    #[arg(long)]
    lazy_refcounts: bool,
}

impl KindArgs {
    /// What is to be made at `path`.
    pub(super) fn options(&self, path: &Path, size: Option<u64>) -> anyhow::Result<CreateOptions> {
        let format = match self.to {
            Some(format) => format,
            None => by_name(path)?,
        };
        let parent = self.parent.as_ref().map(|path| ParentReference {
            path: path.clone(),
            format: self.parent_format,
        });
        Ok(CreateOptions {
            variant: self.variant.unwrap_or_default(),
            size,
            block_size: self.block_size.map(Size::bytes),
            compression: match self.compression {
                CompressionArg::Zlib => Compression::Zlib,
                CompressionArg::Zstd => Compression::Zstd,
            },
            subclusters: self.subclusters,
            lazy_refcounts: self.lazy_refcounts,
            parent,
            ..CreateOptions::new(format, 0)
        })
    }
}

/// The format that the ending of a name stands for.
fn by_name(path: &Path) -> anyhow::Result<Format> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    match ending.parse() {
        Ok(format) => Ok(format),
        Err(_) => bail!(
            "the name `{}` does not say which format is meant; give --to raw, vdi, vmdk, vhd or qcow2",
            path.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_say_the_format() {
        for (name, format) in [
            ("a.qcow2", Format::Qcow2),
            ("a.VDI", Format::Vdi),
            ("b.img", Format::Raw),
            ("b.vpc", Format::Vhd),
        ] {
            assert_eq!(by_name(Path::new(name)).unwrap(), format);
        }
        assert!(by_name(Path::new("disk")).is_err());
    }
}
