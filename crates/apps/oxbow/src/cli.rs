//! The subcommands, and how wrong usage is reported: in one line.

use std::process::ExitCode;

use clap::Parser;
use clap::Subcommand;

use crate::completions::CompletionsArgs;
use crate::ctl::CtlArgs;
use crate::disk::DiskArgs;
use crate::doctor::DoctorArgs;
use crate::end;
use crate::man::ManArgs;
use crate::network_switch::NetworkSwitchArgs;
use crate::plan::PlanArgs;
use crate::run::RunArgs;

const EXAMPLES: &str = "\
Examples:
  oxbow run                                     boot the demo guest to a shell
  oxbow run --kernel vmlinuz --initrd initrd.img --append 'console=ttyS0'
  oxbow run --kernel vmlinuz --memory 2G --cpus 2 --append 'console=ttyS0' < script > log
  oxbow run --kernel realmode.flat --debug-exit 0xf4 --timeout 60
  oxbow plan --cpus 4 --memory 8G               show what such a machine consists of
  oxbow disk create system.qcow2 20G            make a disk image
  oxbow run --machine pc --control vm.sock      a machine that `oxbow ctl` controls
  oxbow ctl vm.sock screenshot screen.png       what it shows
  oxbow doctor                                  what works on this host

`oxbow <command> --help` says more, `oxbow run --help` also what the exit status means.";

/// A PC in a process: boots an operating system on a processor made of software.
#[derive(Debug, Parser)]
#[command(name = "oxbow", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a kernel in a machine that lives as long as the command
    Run(RunArgs),
    /// Show the machine that `run` would build: every device with its addresses and interrupts
    Plan(PlanArgs),
    /// Make, convert, check and change disk images
    Disk(DiskArgs),
    /// Control a machine that runs: its screen, keyboard, buttons, media
    Ctl(CtlArgs),
    /// Say what works on this host, and what would make more of it work
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page, or write all pages into a directory
    Man(ManArgs),
    /// The switch of a network of several machines; they start it themselves
    #[command(hide = true)]
    NetworkSwitch(NetworkSwitchArgs),
}

/// The command line, parsed. Help and mistakes are printed here; then the error is the exit status.
pub(crate) fn parse() -> Result<Cli, ExitCode> {
    Cli::try_parse().map_err(|error| {
        if !error.use_stderr() {
            // A reader that has seen enough of the help is no mistake.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            let _ = error.print();
        } else {
            eprintln!("oxbow: {}", one_line(&error.render().to_string()));
        }
        ExitCode::from(end::WRONG_INPUT)
    })
}

/// The message of a rendered error, without the usage lines that follow it.
fn one_line(rendered: &str) -> String {
    let message = rendered.split("\n\n").next().unwrap_or(rendered);
    let words: Vec<&str> = message.split_whitespace().collect();
    let text = words.join(" ");
    text.strip_prefix("error: ").unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn one_line_drops_usage_and_joins_lists() {
        let rendered = "error: the following arguments were not provided:\n  <SHELL>\n\nUsage: oxbow\n";
        assert_eq!(one_line(rendered), "the following arguments were not provided: <SHELL>");
    }
}
