//! `oxbow ctl balloon`.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use control::BalloonState;
use control::Request;
use spec::Size;

use super::Link;
use crate::disk::output::size;
use crate::failure::Failure;

#[derive(Debug, Args)]
#[command(
    after_help = "The guest gives the memory up as far as it can, and gets it back when the balloon becomes smaller.\n\nExamples:\n  \
                  oxbow ctl vm.sock balloon 256M\n  oxbow ctl vm.sock balloon 0\n  oxbow ctl vm.sock balloon"
)]
pub(super) struct BalloonArgs {
    /// How much memory the guest is to do without, such as 256M; without it the balloon is shown
    size: Option<Size>,
}

pub(super) fn balloon(link: &mut Link, args: &BalloonArgs) -> Result<ExitCode, Failure> {
    let value = link.client.call(&Request::Balloon {
        size: args.size.map(Size::bytes),
    })?;
    let state: BalloonState = serde_json::from_value(value.clone()).map_err(Failure::host)?;
    link.answer(&value, &describe(&state))
}

fn describe(state: &BalloonState) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Text in memory takes all that is written.
        let _ = writeln!(text, "{:<12}{value}", format!("{name}:"));
    };
    line("driver", if state.driver { "there" } else { "not there" });
    line("target", &size(state.target));
    line("actual", &size(state.actual));
    line("inflated", &size(state.inflated));
    line("reported", &size(state.reported));
    for (name, value) in &state.statistics {
        let bytes = name.ends_with("memory") || name.starts_with("swap") || name == "disk_caches";
        let value = if bytes { size(*value) } else { value.to_string() };
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}
