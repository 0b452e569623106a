//! `oxbow ctl attach` and `detach`.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::Subcommand;
use control::Request;
use serde_json::Value;
use spec::Bay;
use spec::CdromConfig;
use spec::DiskConfig;

use super::Link;
use crate::drives;
use crate::drives::DriveArg;
use crate::failure::Failure;

#[derive(Debug, Subcommand)]
pub(super) enum AttachArgs {
    /// Attach a hard disk
    #[command(
        after_help = "Without a place a disk goes to a free port of the SATA controller, with bus=scsi to a free target of the \
                      SCSI host. Others, and those that are put into a port of a q35 or a slot of a pc, bring their own \
                      controller.\n\nExamples:\n  oxbow ctl vm.sock \
                      attach disk data.vdi\n  oxbow ctl vm.sock attach disk data.qcow2,bus=nvme --at port2 --name scratch"
    )]
    Disk(DiskArgs),
    /// Attach a CD or DVD drive
    #[command(
        after_help = "Examples:\n  oxbow ctl vm.sock attach cdrom none\n  oxbow ctl vm.sock attach cdrom tools.iso --at sata3"
    )]
    Cdrom(CdromArgs),
}

#[derive(Debug, Args)]
pub(super) struct DiskArgs {
    /// The image, and options: format=, bus=ahci, nvme, virtio or scsi, cache=, serial=, ro
    #[arg(value_name = "FILE[,OPTION]...", value_parser = drives::parse_disk)]
    disk: DriveArg<DiskConfig>,

    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
pub(super) struct CdromArgs {
    /// The image of the disc in it, or none
    #[arg(value_name = "FILE|none", value_parser = drives::parse_cdrom)]
    cdrom: DriveArg<CdromConfig>,

    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
struct PlaceArgs {
    /// Where: sata0 to sata5, scsi0 to scsi63, port1 to port4 of a q35, slot1 to slot31 of a pc
    #[arg(long, value_name = "PLACE")]
    at: Option<Bay>,

    /// What it is called; by its kind and number if this is not given
    #[arg(long)]
    name: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "`oxbow ctl SOCKET status` shows what can be detached. A drive of a SATA port or a SCSI target goes at once; one with a controller \
                  of its own when the guest has given it up.\n\nExamples:\n  oxbow ctl vm.sock detach disk1\n  oxbow ctl vm.sock \
                  detach disk1 --force"
)]
pub(super) struct DetachArgs {
    /// Name of the drive
    drive: String,

    /// Pull it out without asking the guest
    #[arg(long)]
    force: bool,

    /// Wait so long for the guest
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    timeout: f64,
}

pub(super) fn attach(link: &mut Link, args: &AttachArgs) -> Result<ExitCode, Failure> {
    let request = match args {
        AttachArgs::Disk(DiskArgs { disk, place }) => {
            let DiskConfig {
                image,
                format,
                bus: _,
                cache,
                read_only,
                serial,
            } = disk.config.clone();
            Request::Attach {
                kind: "disk".to_owned(),
                file: Some(absolute(&image)?),
                name: place.name.clone(),
                place: place.at.map(|bay| bay.to_string()),
                bus: disk.bus.map(|bus| bus.name().to_owned()),
                format,
                cache: Some(cache.name().to_owned()),
                serial,
                read_only,
            }
        }
        AttachArgs::Cdrom(CdromArgs { cdrom, place }) => Request::Attach {
            kind: "cdrom".to_owned(),
            file: cdrom.config.image.as_deref().map(absolute).transpose()?,
            name: place.name.clone(),
            place: place.at.map(|bay| bay.to_string()),
            bus: cdrom.bus.map(|bus| bus.name().to_owned()),
            format: None,
            cache: None,
            serial: None,
            read_only: false,
        },
    };
    let value = link.client.call(&request)?;
    let part = |name| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let line = format!("{} in {}\n", part("name"), part("place"));
    link.answer(&value, &line)
}

/// The machine may have been started elsewhere.
fn absolute(file: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    Ok(path)
}

pub(super) fn detach(link: &mut Link, args: &DetachArgs) -> Result<ExitCode, Failure> {
    link.done(&Request::Detach {
        drive: args.drive.clone(),
        force: args.force,
        timeout: Some(args.timeout),
    })
}
