//! `oxbow ctl screenshot` and `screen-text`.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use control::Request;
use control::ScreenText;
use serde_json::json;

use super::Link;
use crate::completions::print;
use crate::failure::Failure;
use crate::run::parse_seconds;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  oxbow ctl vm.sock screenshot screen.png\n  oxbow ctl vm.sock screenshot - | display"
)]
pub(super) struct ScreenshotArgs {
    /// The file to write; - for standard output
    file: PathBuf,
}

#[derive(Debug, Args)]
#[command(
    after_help = "In graphics modes there is no text to be read.\n\nExamples:\n  oxbow ctl vm.sock screen-text\n  oxbow ctl \
                  vm.sock screen-text --wait-for 'No bootable device' --timeout 20"
)]
pub(super) struct TextArgs {
    /// Wait until this is on the screen
    #[arg(long, value_name = "TEXT")]
    wait_for: Option<String>,

    /// Wait for so many seconds at most, then end with status 124
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds, allow_negative_numbers = true)]
    timeout: Duration,
}

pub(super) fn screenshot(link: &mut Link, args: &ScreenshotArgs) -> Result<ExitCode, Failure> {
    let (picture, file) = link.client.screenshot()?;
    if args.file == Path::new("-") {
        return print(&file);
    }
    let what = || format!("cannot write `{}`", args.file.display());
    std::fs::write(&args.file, file).with_context(what)?;
    let (width, height) = (picture.width, picture.height);
    let value = json!({"file": args.file, "width": width, "height": height});
    link.answer(&value, "")
}

pub(super) fn text(link: &mut Link, args: &TextArgs) -> Result<ExitCode, Failure> {
    let request = Request::ScreenText {
        wait_for: args.wait_for.clone(),
        timeout: Some(args.timeout.as_secs_f64()),
    };
    let screen: ScreenText = link.client.get(&request)?;
    let shown = screen.text.trim_end_matches('\n');
    link.answer(&json!({"text": screen.text}), &format!("{shown}\n"))
}
