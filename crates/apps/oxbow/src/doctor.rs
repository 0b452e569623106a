//! `oxbow doctor`: what works on this host, and what would make more of it work.

mod host;

use std::fmt::Write;
use std::process::ExitCode;

use board::Availability;
use board::kvm_availability;
use board::kvm_models;
use board::try_engine;
use clap::Args;
use firmware::rom;
use serde::Serialize;
use spec::EngineKind;

use crate::completions::print;
use crate::end;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Exit status:
  0  machines can run; what is missing keeps only some of them from it
  1  no engine works here, or there is too little memory

Examples:
  oxbow doctor
  oxbow doctor --json";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How it is with one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Health {
    /// It works.
    Good,
    /// It works, but something else is better.
    Slow,
    /// It is not there; most things work without it.
    Missing,
    /// Nothing works without it.
    Bad,
}

impl Health {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "yes",
            Self::Slow => "slow",
            Self::Missing => "no",
            Self::Bad => "BAD",
        }
    }
}

/// What was found out about one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// What it belongs to.
    area: &'static str,
    name: String,
    health: Health,
    /// Why.
    detail: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

impl Finding {
    fn good(area: &'static str, name: &str, detail: impl Into<String>) -> Self {
        Self {
            area,
            name: name.to_owned(),
            health: Health::Good,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn lacking(area: &'static str, name: &str, health: Health, detail: impl Into<String>) -> Self {
        Self {
            health,
            ..Self::good(area, name, detail)
        }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode, Failure> {
    let kvm = kvm_availability();
    let mut findings = engines(&kvm);
    findings.extend(models(kvm.usable));
    findings.push(host::memory());
    findings.extend(images());
    let text = match args.json {
        true => {
            let json = serde_json::to_string_pretty(&findings).map_err(Failure::host)?;
            format!("{json}\n")
        }
        false => report(&findings),
    };
    print(text.as_bytes())?;
    match findings.iter().any(|finding| finding.health == Health::Bad) {
        true => Ok(ExitCode::from(end::FAILED)),
        false => Ok(ExitCode::SUCCESS),
    }
}

/// What executes instructions here.
fn engines(kvm: &Availability) -> Vec<Finding> {
    let mut findings = vec![match try_engine(EngineKind::Auto, "host") {
        Ok("kvm") => Finding::good("engines", "auto", "takes kvm"),
        Ok(name) => Finding::good(
            "engines",
            "auto",
            match kvm.usable {
                true => format!("takes {name}, which is faster than this host's KVM"),
                false => format!("takes {name}: {kvm}"),
            },
        ),
        Err(error) => Finding::lacking("engines", "auto", Health::Bad, error),
    }];
    let what = |kind| match kind {
        EngineKind::Jit => "translates the guest's code; AVX and BMI2 are there",
        _ => "executes one instruction after the other",
    };
    for kind in [EngineKind::Jit, EngineKind::Interp] {
        let name = kind.to_string();
        findings.push(match try_engine(kind, "host") {
            Ok(_) => Finding::good("engines", &name, what(kind)),
            Err(error) => Finding::lacking("engines", &name, Health::Missing, error),
        });
    }
    findings.push(host::kvm(kvm));
    findings
}

/// Processor models that guests can have.
fn models(kvm_works: bool) -> Vec<Finding> {
    let whole: Vec<&str> = kvm_models().iter().map(|model| model.name()).collect();
    let model = |name| match try_engine(EngineKind::Jit, name).or_else(|_| try_engine(EngineKind::Interp, name)) {
        Ok(_) => {
            let detail = match (kvm_works, whole.contains(&name)) {
                (false, _) => "the host has what it needs",
                (true, true) => "the host has what it needs, on every engine",
                (true, false) => "the host has what it needs; kvm leaves some of it out",
            };
            Finding::good("processor models", name, detail)
        }
        Err(error) => Finding::lacking("processor models", name, Health::Missing, error),
    };
    ["x86-64", "x86-64-v2", "x86-64-v3"].map(model).to_vec()
}

/// Firmware for machines that start with one.
fn images() -> Vec<Finding> {
    let there = |name, path: std::path::PathBuf| Finding::good("firmware", name, path.display().to_string());
    let absent = |name, detail, package| {
        let finding = Finding::lacking("firmware", name, Health::Missing, detail);
        finding.remedy(format!("apt-get install {package}"))
    };
    vec![
        match rom::find(None) {
            Ok(path) => there("BIOS", path),
            Err(_) => absent("BIOS", "--machine pc needs a --kernel or --firmware", "seabios"),
        },
        match rom::find_vga() {
            Some(path) => there("VGA BIOS", path),
            None => absent(
                "VGA BIOS",
                "screens stay dark until an operating system sets a mode",
                "seabios",
            ),
        },
        match rom::find_uefi() {
            Ok((path, _)) => there("UEFI", path),
            Err(_) => absent("UEFI", "--uefi does not work", "ovmf"),
        },
    ]
}

/// The findings as people read them.
fn report(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut area = "";
    for finding in findings {
        // Text in memory takes all that is written.
        if finding.area != area {
            area = finding.area;
            let _ = writeln!(text, "{area}");
        }
        let (word, name, detail) = (finding.health.word(), &finding.name, &finding.detail);
        let _ = writeln!(text, "  {word:<5}{name:<11}{detail}");
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "{:18}{remedy}", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_groups_findings_and_puts_remedies_below() {
        let findings = [
            Finding::good("engines", "jit", "works"),
            Finding::lacking("engines", "kvm", Health::Missing, "is not there").remedy("modprobe kvm"),
            Finding::good("memory", "available", "8 GiB"),
        ];
        let expected = "engines\n  yes  jit        works\n  no   kvm        is not there\n                  modprobe kvm\n\
                        memory\n  yes  available  8 GiB\n";
        assert_eq!(report(&findings), expected);
    }
}
