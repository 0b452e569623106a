//! `oxbow`: the command line.
#![forbid(unsafe_code)]

mod cli;
mod completions;
mod console;
mod control;
mod ctl;
mod demo;
mod disk;
mod doctor;
mod drives;
mod end;
mod escape;
mod failure;
mod machine_args;
mod man;
mod network_switch;
mod nics;
mod plan;
mod pseudo_terminal;
mod run;
mod screen;
mod serial;
mod shares;
mod signals;
mod terminal;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let result = match cli.command {
        cli::Command::Run(args) => run::run(&args),
        cli::Command::Plan(args) => plan::run(&args),
        cli::Command::Disk(args) => disk::run(&args),
        cli::Command::Ctl(args) => ctl::run(&args),
        cli::Command::Doctor(args) => doctor::run(&args),
        cli::Command::Completions(args) => completions::run(&args),
        cli::Command::Man(args) => man::run(&args),
        cli::Command::NetworkSwitch(args) => network_switch::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
