//! Keyboard, tablet and mouse of virtio, by the stock driver.

use std::time::Duration;

use anyhow::ensure;

use super::Case;
use super::Lab;
use super::cases::no_complaints;
use super::cases::says;
use super::ctl::Ctl;
use super::ctl::with_user;

/// How long the guest may take to say something.
const LIMIT: Duration = Duration::from_secs(300);
/// The same of its screen, in seconds; nothing is awaited there.
const SCREEN: &str = "300";
/// Tells the names of devices, what the keyboard, the mouse and the tablet say, turns a light on, and ends with a key. The
/// kernel's command line has room for no double quotes.
const SCRIPT: &str = "for m in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio evdev \
                      virtio_input; do insmod /lib/modules/$m.ko; done; sleep 1; cd /sys/class/input; \
                      of() { echo /dev/input/$(grep -l virtio.$1 event*/device/name | cut -d/ -f1); }; \
                      next() { dd bs=24 count=1 2>/dev/null | tail -c 8 | hexdump -C | head -n 1; }; \
                      grep -h virtio event*/device/name; k=$(of keyboard); m=$(of mouse); t=$(of tablet); \
                      head -c 16 /dev/zero >/tmp/led; printf '\\021\\0\\001\\0\\001\\0\\0\\0' >>/tmp/led; cat /tmp/led >$k; \
                      exec 3<$k 4<$m 5<$t; echo @ready; \
                      for n in 1 2 3 4 5; do echo @key $(next <&3); done; for n in 1 2 3; do echo @mouse $(next <&4); done; \
                      for n in 1 2 3 4; do echo @tablet $(next <&5); done; echo @lit; next <&3";

pub(super) const CASES: [Case; 2] = [
    Case {
        name: "virtio_input_works_on_the_microvm",
        check: on_the_microvm,
        extra: false,
    },
    Case {
        name: "virtio_input_works_on_the_pc",
        check: on_the_pc,
        extra: false,
    },
];

fn on_the_microvm(lab: &Lab) -> anyhow::Result<()> {
    input_works(lab, "microvm")
}

fn on_the_pc(lab: &Lab) -> anyhow::Result<()> {
    input_works(lab, "pc")
}

fn input_works(lab: &Lab, machine: &str) -> anyhow::Result<()> {
    let boot = lab.commands("tools", SCRIPT)?.with(&["--machine", machine]);
    let boot = boot.with(&["--input", "keyboard", "--input", "tablet", "--input", "mouse"]);
    let told = boot.told();
    let user = |ctl: &Ctl<'_>| {
        let mut heard = 0;
        told.wait_for_line("@ready", &mut heard, LIMIT)?;
        ctl.key("a")?;
        ctl.ask(&["mouse", "move", "3", "-2"])?;
        ctl.ask(&["mouse", "click", "right"])?;
        told.wait_for_line("@lit", &mut heard, LIMIT)?;
        let leds = ctl.ask(&["inspect", &format!("{machine}/devices/keyboard/device/leds")])?;
        ensure!(leds.trim().ends_with('4'), "the lights are {leds}");
        ctl.key("b")
    };
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        for part in [
            "Oxbow virtio keyboard",
            "Oxbow virtio tablet",
            "Oxbow virtio mouse",
            "@key 00000000 01 00 1e 00 01 00 00 00",
            "@key 00000000 01 00 1e 00 00 00 00 00",
            "@mouse 00000000 02 00 00 00 03 00 00 00",
            "@mouse 00000000 02 00 01 00 fe ff ff ff",
            "@tablet 00000000 01 00 11 01 01 00 00 00",
            "@tablet 00000000 01 00 11 01 00 00 00 00",
        ] {
            says(seen, part)?;
        }
        Ok(())
    })
}
