//! Memory that a guest frees goes back to the host by itself.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::ensure;

use super::Lab;
use super::cases::no_complaints;
use super::ctl::Ctl;
use super::ctl::with_user;
use crate::guests::VIRTIO_MODULES;

/// How long the guest may take to fill its memory, and how long the host waits for it to come back.
const LIMIT: Duration = Duration::from_secs(300);
const BACK: Duration = Duration::from_secs(30);
const SCREEN: &str = "300";
/// MiB that the guest uses and frees, and of those what must come back.
const FREED: u64 = 1024;
const COMES_BACK: u64 = FREED * 9 / 10;

pub(super) fn freed_memory_goes_back_to_the_host(lab: &Lab) -> anyhow::Result<()> {
    let modules = VIRTIO_MODULES.join(" ");
    let script = format!(
        "for m in {modules}; do insmod /lib/modules/$m.ko; done; mount -t tmpfs -o size=90% big /root; \
         dd if=/dev/zero of=/root/big bs=1M count={FREED}; echo @full; sleep 5; rm /root/big; sleep 1000"
    );
    let boot = lab.commands("demo", &script)?;
    let boot = boot.with(&["--machine", "microvm", "--memory", "2G", "--balloon"]);
    let told = boot.told();
    let user = |ctl: &Ctl<'_>| {
        let mut heard = 0;
        told.wait_for_line("@full", &mut heard, LIMIT)?;
        let full = resident_mib(told.process())?;
        ensure!(full > FREED, "{FREED} MiB were filled, but the process has {full} MiB");
        let end = Instant::now() + BACK;
        loop {
            let now = resident_mib(told.process())?;
            if now + COMES_BACK <= full {
                return ctl.ask(&["quit"]).map(drop);
            }
            ensure!(
                Instant::now() < end,
                "of {FREED} MiB that were freed {} came back",
                full.saturating_sub(now)
            );
            thread::sleep(Duration::from_millis(200));
        }
    };
    with_user(lab, boot, SCREEN, user, no_complaints)
}

/// Memory of a process that is in the host's RAM.
fn resident_mib(process: u32) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024)
}
