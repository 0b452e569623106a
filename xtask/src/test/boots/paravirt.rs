//! What a guest is told of the hypervisor.

use anyhow::ensure;

use super::Case;
use super::Lab;
use super::cases::no_complaints;
use super::cases::says;

/// What the kernel found, and how it tells the time.
const SCRIPT: &str = "echo @flags $(grep -c hypervisor /proc/cpuinfo); dmesg | grep -i hypervisor.detected; \
                      echo @clock $(cat /sys/devices/system/clocksource/clocksource0/available_clocksource)";

/// What the kernel uses on two processors, whose processes then keep each other busy.
const TOGETHER: &str = "for i in 1 2 3 4; do (for n in $(seq 200); do /bin/true; done) & done; wait; \
                        echo @steal $(head -1 /proc/stat | wc -w); dmesg | grep kvm-guest:";

pub(super) const CASES: [Case; 2] = [
    Case {
        name: "paravirt_interface_is_what_was_asked_for",
        check: interface_is_what_was_asked_for,
        extra: false,
    },
    Case {
        name: "paravirt_processors_use_what_they_are_offered",
        check: processors_use_what_they_are_offered,
        extra: false,
    },
];

fn processors_use_what_they_are_offered(lab: &Lab) -> anyhow::Result<()> {
    for (cpu, expected) in [
        (
            "host",
            &[
                "pv remote TLB flush",
                "PV sched yield",
                "PV spinlocks enabled",
                "setup PV IPIs",
            ][..],
        ),
        ("x86-64-v2", &["pv remote TLB flush"]),
        ("host,-kvm_steal_time", &["PV spinlocks enabled", "setup PV IPIs"]),
    ] {
        let boot = lab.commands("demo", TOGETHER)?.with(&["--cpus", "2", "--cpu", cpu]);
        lab.watch(&boot, |seen| {
            ensure!(seen.status == Some(0), "the machine did not power off");
            no_complaints(seen)?;
            says(seen, "@steal 11")?;
            let log = seen.log();
            for text in [
                "pv remote TLB flush",
                "PV sched yield",
                "PV spinlocks enabled",
                "setup PV IPIs",
            ] {
                ensure!(log.contains(text) == expected.contains(&text), "{cpu}: {text}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

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
