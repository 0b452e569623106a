//! GRUB, of Debian's package grub-rescue-pc, on the translator and on KVM: from a CD on IDE and on AHCI, and from a floppy disk,
//! to its menu and its command line on the screen.
//!
//! A KVM that is an emulator in the kernel needs a minute or two to the menu.

use std::path::Path;

use anyhow::Context;
use anyhow::ensure;
use serde_json::Value;

use super::Case;
use super::Lab;
use super::Skip;
use super::ctl::Ctl;
use super::ctl::with_user;
use crate::boot::Boot;
use crate::process;

/// How long GRUB may take to show something, in seconds.
const SCREEN: &str = "600";
const IMAGES: &str = "/usr/lib/grub-rescue";

pub(super) const CASES: [Case; 6] = [
    grub("grub_from_floppy_on_kvm"),
    grub("grub_from_ide_cd_on_kvm"),
    grub("grub_from_ahci_cd_on_kvm"),
    grub("grub_from_floppy_on_jit"),
    grub("grub_from_ide_cd_on_jit"),
    grub("grub_from_ahci_cd_on_jit"),
];

const fn grub(name: &'static str) -> Case {
    Case {
        name,
        check: grub_shows_its_menu,
        extra: false,
    }
}

/// The test's name says from which drive, and on which engine.
fn grub_shows_its_menu(lab: &Lab) -> anyhow::Result<()> {
    let (_, engine) = lab.name.rsplit_once('_').context("no engine")?;
    let (machine, option, image) = match lab.name {
        name if name.contains("floppy") => ("pc", "--floppy", "grub-rescue-floppy.img"),
        name if name.contains("ide") => ("pc", "--cdrom", "grub-rescue-cdrom.iso"),
        _ => ("q35", "--cdrom", "grub-rescue-cdrom.iso"),
    };
    let image = Path::new(IMAGES).join(image);
    if !image.exists() {
        return Err(Skip(format!(
            "{} is not here: apt-get install grub-rescue-pc",
            image.display()
        ))
        .into());
    }
    engine_works(lab, engine)?;
    let image = match option {
        "--floppy" => format!("{},ro", image.display()),
        _ => image.display().to_string(),
    };
    let options = ["--engine", engine, option, &image];
    let boot = Boot::firmware(lab.oxbow, machine).with(&options);
    with_user(lab, boot, SCREEN, use_grub, |seen| {
        ensure!(seen.status == Some(0), "the machine was not ended by `quit`");
        ensure!(seen.errors.is_empty(), "oxbow had something to say: {}", seen.errors);
        Ok(())
    })
}

fn engine_works(lab: &Lab, engine: &str) -> anyhow::Result<()> {
    let mut doctor = std::process::Command::new(lab.oxbow);
    let found: Value = serde_json::from_str(&process::output(doctor.args(["doctor", "--json"]))?)?;
    let findings = found.as_array().context("doctor finds nothing")?;
    for name in [engine, "BIOS", "VGA BIOS"] {
        let finding = findings.iter().find(|finding| finding["name"] == name);
        let finding = finding.with_context(|| format!("doctor says nothing of {name}"))?;
        if finding["health"] == "missing" {
            return Err(Skip(format!("{name}: {}", finding["detail"].as_str().unwrap_or_default())).into());
        }
    }
    Ok(())
}

/// The menu, then the command line with an answer.
fn use_grub(ctl: &Ctl<'_>) -> anyhow::Result<()> {
    ctl.wait_for("GNU GRUB")?;
    ctl.wait_for("for a command-line")?;
    ctl.ask(&["type", "c"])?;
    ctl.wait_for("grub>")?;
    // The quotes keep the echo of what is typed from looking like what is awaited.
    ctl.ask(&["type", "echo he\"\"re", "--enter"])?;
    ctl.wait_for("here")?;
    ctl.ask(&["quit"]).map(drop)
}
