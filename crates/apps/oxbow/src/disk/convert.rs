//! `oxbow disk convert`: the same disk in another format.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use disk_image::OpenOptions;
use serde_json::json;

use super::output;
use super::output::Bar;
use super::target;
use super::target::KindArgs;
use super::target::SourceArgs;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Zeros take no space in the new image. Of a layer, the new image has everything that its parents have too;
with --parent it has only what differs.

Examples:
  oxbow disk convert system.vmdk system.qcow2
  oxbow disk convert system.qcow2 small.qcow2 --compress --compression zstd
  oxbow disk convert system.qcow2 export.vmdk --variant streamOptimized
  oxbow disk convert changed.raw layer.qcow2 --parent system.qcow2
  oxbow disk convert /dev/sdx backup.vdi";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// The new image
    target: PathBuf,

    #[command(flatten)]
    kind: KindArgs,

    /// Write compressed clusters (qcow2)
    #[arg(long, short = 'c')]
    compress: bool,

    /// Read an image that another process writes to; the copy may be inconsistent
    #[arg(long)]
    force_share: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ConvertArgs) -> Result<ExitCode, Failure> {
    let files = target::files();
    let source = args.source.open(args.force_share)?;
    let options = args.kind.options(&args.target, Some(source.info().size))?;
    let bar = Bar::new("converting", args.json)?;
    disk_image::copy(
        &files,
        &*source,
        &args.target,
        &options,
        args.compress,
        &mut |progress| bar.show(progress),
    )?;
    drop(bar);
    let open = OpenOptions {
        format: Some(options.format),
        ..OpenOptions::default()
    };
    let image = disk_image::open(&args.target, &open)?;
    let (info, allocated) = (image.info(), image.allocated()?);
    let value = json!({ "image": args.target, "info": info, "allocated": allocated });
    let lines = format!(
        "{}: {} of {}, {} on the host\n",
        args.target.display(),
        info.format,
        output::size(info.size),
        output::size(allocated)
    );
    output::answer(args.json, &value, &lines)
}
