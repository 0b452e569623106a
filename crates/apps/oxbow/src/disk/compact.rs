//! `oxbow disk compact`: the space of zeros goes back to the host.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::output;
use super::output::Bar;
use super::target;
use super::target::SourceArgs;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Images with blocks are written anew beside the old file, which needs space for that; raw and fixed ones get
holes. Let the guest fill or trim what it does not use before: `fstrim -av` in Linux.

Examples:
  oxbow disk compact system.vdi
  oxbow disk compact layer.qcow2 --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompactArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CompactArgs) -> Result<ExitCode, Failure> {
    let bar = Bar::new("compacting", args.json)?;
    let image = &args.source.image;
    let sizes = disk_image::compact(&target::files(), image, &args.source.options(), &mut |progress| {
        bar.show(progress)
    });
    drop(bar);
    let (before, after) = sizes?;
    let value = json!({ "image": image, "before": before, "allocated": after });
    let lines = format!(
        "{}: {} on the host, was {}\n",
        image.display(),
        output::size(after),
        output::size(before)
    );
    output::answer(args.json, &value, &lines)
}
