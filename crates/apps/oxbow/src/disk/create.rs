//! `oxbow disk create`: an empty image, or a layer.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use disk_image::OpenOptions;
use serde_json::json;
use spec::Size;

use super::output;
use super::target;
use super::target::KindArgs;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Nothing that exists is overwritten.

Examples:
  oxbow disk create system.qcow2 20G
  oxbow disk create system.vdi 20G --variant fixed
  oxbow disk create system.vmdk 20G --variant twoGbMaxExtentSparse
  oxbow disk create layer.qcow2 --parent system.vmdk";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CreateArgs {
    /// The new image
    image: PathBuf,

    /// Size of the disk: a number with K, M, G or T. A layer has its parent's size if none is given
    #[arg(required_unless_present = "parent")]
    size: Option<Size>,

    #[command(flatten)]
    kind: KindArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CreateArgs) -> Result<ExitCode, Failure> {
    let files = target::files();
    let options = args.kind.options(&args.image, args.size.map(Size::bytes))?;
    disk_image::create(&files, &args.image, &options)?;
    let open = OpenOptions {
        format: Some(options.format),
        ..OpenOptions::default()
    };
    let info = disk_image::open(&args.image, &open)?.info();
    let value = json!({ "image": args.image, "info": info });
    let lines = format!(
        "{}: {} of {}\n",
        args.image.display(),
        options.format,
        output::size(info.size)
    );
    output::answer(args.json, &value, &lines)
}
