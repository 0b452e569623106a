//! `oxbow man`: manual pages.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::CommandFactory;

use crate::cli::Cli;
use crate::completions::print;
use crate::failure::Failure;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  oxbow man > oxbow.1 && man ./oxbow.1")]
pub(crate) struct ManArgs {
    /// Write a page for every command into this directory instead of printing the first
    directory: Option<PathBuf>,
}

pub(crate) fn run(args: &ManArgs) -> Result<ExitCode, Failure> {
    let command = Cli::command();
    let Some(directory) = &args.directory else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .context("cannot write the page")?;
        return print(&page);
    };
    let what = || format!("cannot write manual pages into `{}`", directory.display());
    std::fs::create_dir_all(directory).with_context(what)?;
    clap_mangen::generate_to(command, directory).with_context(what)?;
    Ok(ExitCode::SUCCESS)
}
