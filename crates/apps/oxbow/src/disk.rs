//! `oxbow disk`: disk images.

mod check;
mod compact;
mod compare;
mod convert;
mod create;
mod info;
pub(crate) mod output;
mod resize;
mod target;

use std::process::ExitCode;

use clap::Args;
use clap::Subcommand;

use crate::failure::Failure;

const EXAMPLES: &str = "\
Formats: raw, vdi, vmdk, vhd and qcow2 are read and written, vhdx and iso only read.
An existing image's format is found by its contents, a new one's by the ending of its name.

Examples:
  oxbow disk create system.qcow2 20G
  oxbow disk create layer.vdi --parent system.vdi
  oxbow disk convert system.vmdk system.qcow2 --compress
  oxbow disk info system.qcow2 --json
  oxbow disk resize system.qcow2 +10G
  oxbow disk compact system.vdi
  oxbow disk check system.qcow2 --repair
  oxbow disk compare system.vmdk system.qcow2";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct DiskArgs {
    #[command(subcommand)]
    command: DiskCommand,
}

#[derive(Debug, Subcommand)]
enum DiskCommand {
    /// Make an empty image, or a layer over another image
    Create(create::CreateArgs),
    /// Show what an image is: format, sizes, parents
    Info(info::InfoArgs),
    /// Write the contents of an image as a new image, in any format
    Convert(convert::ConvertArgs),
    /// Change the size of the disk in an image
    Resize(resize::ResizeArgs),
    /// Give the space of zeros back to the host
    Compact(compact::CompactArgs),
    /// Look for damage, and repair what can be
    Check(check::CheckArgs),
    /// Compare the contents of two images
    Compare(compare::CompareArgs),
}

pub(crate) fn run(args: &DiskArgs) -> Result<ExitCode, Failure> {
    match &args.command {
        DiskCommand::Create(args) => create::run(args),
        DiskCommand::Info(args) => info::run(args),
        DiskCommand::Convert(args) => convert::run(args),
        DiskCommand::Resize(args) => resize::run(args),
        DiskCommand::Compact(args) => compact::run(args),
        DiskCommand::Check(args) => check::run(args),
        DiskCommand::Compare(args) => compare::run(args),
    }
}
