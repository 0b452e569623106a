//! `oxbow completions`: scripts for shells.

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::cli::Cli;
use crate::failure::Failure;

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  oxbow completions bash > ~/.local/share/bash-completion/completions/oxbow")]
pub(crate) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "oxbow", &mut script);
    print(&script)
}

/// Prints all of `bytes`. A reader that has seen enough is no failure.
pub(crate) fn print(bytes: &[u8]) -> Result<ExitCode, Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::host(anyhow::Error::from(error).context("cannot print")))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
