//! `oxbow ctl eject` and `insert`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use control::Request;

use super::Link;
use crate::failure::Failure;

#[derive(Debug, Args)]
#[command(after_help = "`oxbow ctl SOCKET status` shows the drives.\n\nExample:\n  oxbow ctl vm.sock eject floppy0")]
pub(super) struct EjectArgs {
    /// Name of the drive
    drive: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "`oxbow ctl SOCKET status` shows the drives. What was in the drive is taken out.\n\nExample:\n  oxbow ctl \
                  vm.sock insert floppy0 disk2.img --read-only"
)]
pub(super) struct InsertArgs {
    /// Name of the drive
    drive: String,

    /// The image
    file: PathBuf,

    /// Protect it from writes of the guest
    #[arg(long)]
    read_only: bool,
}

pub(super) fn eject(link: &mut Link, args: &EjectArgs) -> Result<ExitCode, Failure> {
    link.done(&Request::Eject {
        drive: args.drive.clone(),
    })
}

pub(super) fn insert(link: &mut Link, args: &InsertArgs) -> Result<ExitCode, Failure> {
    // The machine may have been started elsewhere.
    let file = std::path::absolute(&args.file).with_context(|| format!("cannot read `{}`", args.file.display()))?;
    link.done(&Request::Insert {
        drive: args.drive.clone(),
        file,
        read_only: args.read_only,
    })
}
