//! What a guest is told of the hypervisor.

use anyhow::ensure;

use super::Case;
use super::Lab;
use super::cases::no_complaints;
use super::cases::says;

/// What the kernel found, and how it tells the time.
const SCRIPT: &str = "echo @flags $(grep -c hypervisor /proc/cpuinfo); dmesg | grep -i hypervisor.detected; \
                      echo @clock $(cat /sys/devices/system/clocksource/clocksource0/available_clocksource)";

pub(super) const CASES: [Case; 1] = [Case {
    name: "paravirt_interface_is_what_was_asked_for",
    check: interface_is_what_was_asked_for,
    extra: false,
}];

fn interface_is_what_was_asked_for(lab: &Lab) -> anyhow::Result<()> {
    for (interface, detected, clock, flag) in [
        ("kvm", true, true, true),
        ("minimal", false, false, true),
        ("none", false, false, false),
    ] {
        let boot = lab.commands("demo", SCRIPT)?.with(&["--paravirt", interface]);
        lab.watch(&boot, |seen| {
            ensure!(seen.status == Some(0), "the machine did not power off");
            no_complaints(seen)?;
            says(seen, "@clock")?;
            let log = seen.log();
            let has = |text: &str| log.contains(text);
            ensure!(
                has("Hypervisor detected: KVM") == detected,
                "{interface}: what was detected"
            );
            let found = log
                .lines()
                .any(|line| line.contains("@clock ") && line.contains("kvm-clock"));
            ensure!(found == clock, "{interface}: the paravirtual clock");
            says(seen, if flag { "@flags 1" } else { "@flags 0" })?;
            Ok(())
        })?;
    }
    Ok(())
}
