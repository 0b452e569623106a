//! All virtio devices at once, each by its stock driver: over memory-mapped registers and over PCI.

use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::ensure;
use serde_json::Value;

use super::Lab;
use super::cases::no_complaints;
use super::cases::says;
use super::ctl::Ctl;
use super::ctl::with_user;
use crate::workspace;

/// How long the guest may take to say or do something.
const LIMIT: Duration = Duration::from_secs(300);
/// The same of its screen, in seconds; nothing is awaited there.
const SCREEN: &str = "300";
/// Bytes of the disk, of the balloon, and at least of what is reported when a file of twice that goes away.
const DISK: u64 = 32 << 20;
const BALLOON: u64 = 128 << 20;
const REPORTED: u64 = 48 << 20;

/// Writes to the disk and reads that back past the cache, reads random bytes, speaks on the console, frees memory; ends when
/// the card's link goes down. The kernel's command line has room for no double quotes.
const SCRIPT: &str = "for m in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio \
                      virtio_blk virtio-rng virtio_console virtio_balloon failover net_failover virtio_net; do \
                      insmod /lib/modules/$m.ko; done; sleep 1; \
                      echo @drivers $(ls -d /sys/bus/virtio/drivers/*/virtio* | wc -l); \
                      cat /sys/block/vda/serial; echo; \
                      dd if=/dev/urandom of=/tmp/x bs=1M count=8; dd if=/tmp/x of=/dev/vda bs=64k seek=3; sync; \
                      echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda of=/tmp/y bs=64k skip=3 count=128; \
                      cmp /tmp/x /tmp/y && echo @same; \
                      echo @random $(dd if=/dev/hwrng bs=512 count=1 | wc -c); \
                      echo spoken >/dev/hvc0; echo @port $(cat /sys/class/virtio-ports/vport*p1/name); \
                      ip link set eth0 up; rm /tmp/x /tmp/y; dd if=/dev/zero of=/tmp/big bs=1M count=96; sleep 4; \
                      echo @full; sleep 1; rm /tmp/big; \
                      while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep .2; done; echo @down";

pub(super) fn virtio_devices_work_on_the_microvm(lab: &Lab) -> anyhow::Result<()> {
    devices_work(lab, "microvm")
}

pub(super) fn virtio_devices_work_on_the_pc(lab: &Lab) -> anyhow::Result<()> {
    devices_work(lab, "pc")
}

fn devices_work(lab: &Lab, machine: &str) -> anyhow::Result<()> {
    let dir = workspace::guests_dir().join("virtio").join(machine);
    std::fs::create_dir_all(&dir)?;
    let (disk, console) = (dir.join("disk.raw"), dir.join("console"));
    std::fs::File::create(&disk)?.set_len(DISK)?;
    let drive = format!("{},bus=virtio,format=raw,serial=VIRTIO1", disk.display());
    let target = format!("file:{}", console.display());
    let boot = lab.commands("demo", SCRIPT)?;
    let boot = boot.with(&["--machine", machine, "--disk", &drive, "--rng", "--balloon"]);
    let boot = boot.with(&["--console", &target, "--console", "none,name=org.oxbow.test"]);
    let boot = boot.with(&["--nic", "null,model=virtio"]);
    let told = boot.told();
    let user = |ctl: &Ctl<'_>| {
        let mut heard = 0;
        told.wait_for_line("@full", &mut heard, LIMIT)?;
        let before = balloon(ctl, "reported")?;
        reaches(ctl, "reported", |reported| reported >= before + REPORTED)?;
        for size in [BALLOON, 0] {
            ctl.ask(&["balloon", &size.to_string()])?;
            reaches(ctl, "actual", |actual| actual == size)?;
        }
        ensure!(balloon(ctl, "inflated")? >= BALLOON, "the balloon gave nothing back");
        ctl.ask(&["link", "nic0", "down"]).map(drop)
    };
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        for part in [
            "@drivers 5",
            "VIRTIO1",
            "@same",
            "@random 512",
            "@port org.oxbow.test",
            "@down",
        ] {
            says(seen, part)?;
        }
        Ok(())
    })?;
    let said = std::fs::read_to_string(&console)?;
    ensure!(said.contains("spoken"), "the console says {said:?}");
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// A number of what the balloon says of itself.
fn balloon(ctl: &Ctl<'_>, name: &str) -> anyhow::Result<u64> {
    let said: Value = serde_json::from_str(&ctl.ask(&["balloon", "--json"])?)?;
    said.get(name).and_then(Value::as_u64).context("no such number")
}

/// Waits until a number of the balloon is as it should be.
fn reaches(ctl: &Ctl<'_>, name: &str, wanted: impl Fn(u64) -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        let now = balloon(ctl, name)?;
        if wanted(now) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the balloon's {name} stays at {now}");
        thread::sleep(Duration::from_millis(200));
    }
}
