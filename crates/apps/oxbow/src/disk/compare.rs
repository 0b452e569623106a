//! `oxbow disk compare`: whether two images hold the same disk.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use disk_image::Comparison;
use disk_image::Format;
use disk_image::OpenOptions;
use serde_json::json;

use super::output;
use super::output::Bar;
use super::target::SourceArgs;
use crate::end;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Disks of different sizes are the same when the longer one ends with zeros, unless --strict is given.

Exit status:
  0  the same
  1  the host could not read
  2  an image cannot be opened
  3  they differ

Examples:
  oxbow disk compare system.vmdk system.qcow2
  oxbow disk compare before.raw after.vdi --strict";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// The other image
    other: PathBuf,

    /// Its format, instead of what its contents look like
    #[arg(long, value_name = "FORMAT")]
    other_format: Option<Format>,

    /// Disks of different sizes differ
    #[arg(long)]
    strict: bool,

    /// Read images that other processes write to
    #[arg(long)]
    force_share: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CompareArgs) -> Result<ExitCode, Failure> {
    let first = args.source.open(args.force_share)?;
    let options = OpenOptions {
        format: args.other_format,
        share: args.force_share,
        ..OpenOptions::default()
    };
    let second = disk_image::open(&args.other, &options)?;
    let bar = Bar::new("comparing", args.json)?;
    let comparison = disk_image::compare(&*first, &*second, &mut |progress| bar.show(progress));
    drop(bar);
    let (same, value, line) = match comparison? {
        Comparison::Equal => (true, json!({ "same": true }), "the same".to_owned()),
        Comparison::Longer { size } => {
            let line = format!("the same up to {size} bytes; behind that, one has zeros and the other ends");
            (
                !args.strict,
                json!({ "same": !args.strict, "same-size": false, "common": size }),
                line,
            )
        }
        Comparison::Different { offset } => {
            let line = format!("they differ first at byte {offset} ({offset:#x})");
            (false, json!({ "same": false, "offset": offset }), line)
        }
    };
    output::answer(args.json, &value, &format!("{line}\n"))?;
    Ok(ExitCode::from(if same { 0 } else { end::NOT_SOUND }))
}
