//! `oxbow disk resize`: a disk of another size.

use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;
use serde_json::json;
use spec::Size;

use super::output;
use super::output::Bar;
use super::target;
use super::target::SourceArgs;
use crate::failure::Failure;

const EXAMPLES: &str = "\
New space is zeros. The guest's partitions and file systems stay as they are: grow them in the guest
afterwards, shrink them before. Images that cannot be resized in place are written anew beside the old file.

Examples:
  oxbow disk resize system.qcow2 40G
  oxbow disk resize system.vdi +10G
  oxbow disk resize data.raw 5G --shrink";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ResizeArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// The new size, or with a plus sign how much is added
    #[arg(value_name = "[+]SIZE", value_parser = parse)]
    size: NewSize,

    /// Allow the disk to become smaller. What is behind its new end is lost
    #[arg(long)]
    shrink: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NewSize {
    Whole(u64),
    Added(u64),
}

fn parse(text: &str) -> Result<NewSize, spec::SizeError> {
    match text.strip_prefix('+') {
        Some(added) => Ok(NewSize::Added(added.parse::<Size>()?.bytes())),
        None => Ok(NewSize::Whole(text.parse::<Size>()?.bytes())),
    }
}

pub(super) fn run(args: &ResizeArgs) -> Result<ExitCode, Failure> {
    let old = args.source.open(false)?.info().size;
    let size = match args.size {
        NewSize::Whole(size) => size,
        NewSize::Added(added) => old
            .checked_add(added)
            .ok_or_else(|| anyhow!("a disk of that size is too large"))?,
    };
    if size < old && !args.shrink {
        return Err(anyhow!(
            "the disk has {old} bytes, so {size} would cut off its end; give --shrink if that is meant"
        )
        .into());
    }
    let bar = Bar::new("resizing", args.json)?;
    disk_image::resize(
        &target::files(),
        &args.source.image,
        &args.source.options(),
        size,
        &mut |progress| bar.show(progress),
    )?;
    drop(bar);
    let value = json!({ "image": args.source.image, "before": old, "size": size });
    let lines = format!(
        "{}: {}, was {}\n",
        args.source.image.display(),
        output::size(size),
        output::size(old)
    );
    output::answer(args.json, &value, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_whole_or_added() {
        assert_eq!(parse("1K").unwrap(), NewSize::Whole(1024));
        assert_eq!(parse("+2M").unwrap(), NewSize::Added(2 << 20));
        for text in ["", "+", "-1G", "lots"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
