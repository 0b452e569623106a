//! `oxbow disk check`: damage, and its repair.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use disk_image::OpenOptions;
use disk_image::Report;
use serde_json::json;

use super::output;
use super::target::SourceArgs;
use crate::end;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Exit status:
  0  nothing is wrong (any more)
  1  the host could not read or write
  2  the image cannot be opened
  3  the image is damaged
  4  nothing is damaged, but space is lost

Examples:
  oxbow disk check system.qcow2
  oxbow disk check system.qcow2 --repair
  oxbow disk check system.vdi --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    source: SourceArgs,

    /// Repair what can be repaired without guessing
    #[arg(long, conflicts_with = "force_share")]
    repair: bool,

    /// Look at an image that another process writes to; what is found may be under way
    #[arg(long)]
    force_share: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &CheckArgs) -> Result<ExitCode, Failure> {
    let options = OpenOptions {
        write: args.repair,
        share: args.force_share,
        ..args.source.options()
    };
    let image = disk_image::open(&args.source.image, &options)?;
    let report = image.check(args.repair)?;
    let value = json!({ "image": args.source.image, "sound": report.is_sound(), "report": report });
    output::answer(args.json, &value, &lines(&report))?;
    Ok(ExitCode::from(match report {
        report if !report.is_sound() => end::NOT_SOUND,
        report if report.leaks > 0 => end::LEAKS,
        _ => 0,
    }))
}

fn lines(report: &Report) -> String {
    let mut text = String::new();
    for line in report.errors.iter().chain(&report.notes) {
        let _ = writeln!(text, "{line}");
    }
    let more = report.error_count - report.errors.len() as u64;
    if more > 0 {
        let _ = writeln!(text, "{more} more errors");
    }
    if report.repaired > 0 {
        let _ = writeln!(text, "{} repairs were made", report.repaired);
    }
    if report.blocks > 0 {
        let _ = writeln!(text, "{} of {} blocks are allocated", report.allocated, report.blocks);
    }
    let verdict = match (report.is_sound(), report.leaks) {
        (false, _) => format!("{} errors", report.error_count),
        (true, 0) => "no errors".to_owned(),
        (true, leaks) => format!("no errors, {leaks} blocks lost"),
    };
    let _ = writeln!(text, "{verdict}");
    text
}
