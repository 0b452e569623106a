//! `oxbow plan`: the machine on paper.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use crate::completions::print;
use crate::failure::Failure;
use crate::machine_args::MachineArgs;

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    machine: MachineArgs,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &PlanArgs) -> Result<ExitCode, Failure> {
    let plan = board::plan(&args.machine.spec()?).map_err(anyhow::Error::from)?;
    let text = if args.json {
        let json = serde_json::to_string_pretty(&plan).context("cannot write JSON")?;
        format!("{json}\n")
    } else {
        plan.to_string()
    };
    print(text.as_bytes())
}
