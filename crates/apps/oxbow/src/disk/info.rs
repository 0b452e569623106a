//! `oxbow disk info`: what an image is.

use std::fmt::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use disk_image::Image;
use serde_json::Value;
use serde_json::json;

use super::output;
use super::target::SourceArgs;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  oxbow disk info system.qcow2
  oxbow disk info layer.vdi --json
  oxbow disk info running.vdi --force-share";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Look at an image that another process writes to
    #[arg(long)]
    force_share: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &InfoArgs) -> Result<ExitCode, Failure> {
    let image = args.source.open(args.force_share)?;
    let mut layers = vec![(args.source.image.clone(), image)];
    while let Some(parent) = layers.last().and_then(|(_, image)| image.parent()) {
        layers.push(parent);
    }
    let mut text = String::new();
    let mut values = Vec::new();
    for (index, (path, image)) in layers.iter().enumerate() {
        if index > 0 {
            text.push_str("\nParent:\n");
        }
        values.push(describe(path, image, &mut text)?);
    }
    // The image itself, with its parents in a list.
    let parents = values.split_off(1);
    let mut value = values.pop().unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("parents".to_owned(), Value::Array(parents));
    }
    output::answer(args.json, &value, &text)
}

/// Adds lines about an image, and returns the same as a value.
fn describe(path: &Path, image: &Arc<dyn Image>, text: &mut String) -> Result<Value, Failure> {
    let info = image.info();
    let allocated = image.allocated()?;
    let details = image.details();
    let files: Vec<PathBuf> = image.files().into_iter().skip(1).collect();
    let mut line = |name: &str, value: String| {
        // Text in memory takes all that is written.
        let _ = writeln!(text, "{:<20}{value}", format!("{name}:"));
    };
    line("image", path.display().to_string());
    line("format", format!("{} {}", info.format, info.variant).trim().to_owned());
    line(
        "disk size",
        format!("{} ({} bytes)", output::size(info.size), info.size),
    );
    line("on the host", output::size(allocated));
    if info.block_size > 1 {
        line("block size", output::size(info.block_size));
    }
    for (name, value) in &details {
        line(name, value.clone());
    }
    for file in &files {
        line("extent", file.display().to_string());
    }
    let details: serde_json::Map<String, Value> = details
        .into_iter()
        .map(|(name, value)| (name.replace(' ', "-"), Value::String(value)))
        .collect();
    Ok(json!({
        "image": path,
        "format": info.format,
        "variant": info.variant,
        "size": info.size,
        "sector-size": info.sector_size,
        "block-size": info.block_size,
        "allocated": allocated,
        "extents": files,
        "details": details,
    }))
}
