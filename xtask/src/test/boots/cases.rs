//! The boots that are tested, the longest first, so that the last to end is a short one.

use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

use super::Case;
use super::Lab;
use super::Skip;
use super::balloon::freed_memory_goes_back_to_the_host;
use super::control::screen_and_keyboard_work_by_the_control_socket;
use super::net::microvm_has_a_network_if_nothing_is_said;
use super::net::nat_leads_to_the_world_and_back;
use super::net::two_guests_talk_and_outlive_their_switch;
use super::plug::discs_of_a_sata_drive_are_changed;
use super::plug::discs_of_an_ide_drive_are_changed;
use super::plug::nvme_card_is_plugged_into_a_port_and_pulled_out;
use super::plug::nvme_card_is_plugged_into_a_slot_and_ejected;
use super::plug::sata_disk_is_plugged_in_and_pulled_out;
use super::shares::shared_folders_work_on_the_microvm;
use super::shares::shared_folders_work_on_the_pc;
use super::virtio::virtio_devices_work_on_the_microvm;
use super::virtio::virtio_devices_work_on_the_pc;
use crate::boot::Boot;
use crate::boot::Seen;

/// What a kernel says when something about the machine is wrong.
const COMPLAINTS: [&str; 12] = [
    "ACPI Error",
    "ACPI Warning",
    "ACPI BIOS",
    "[Firmware Bug]",
    "BUG:",
    "WARNING: CPU",
    "Oops",
    "Call Trace",
    "soft lockup",
    "rcu_sched",
    "rcu_preempt",
    "unchecked MSR",
];

pub(super) const CASES: &[Case] = &[
    case("full_kernel_runs_bpf_self_tests", full_kernel_runs_bpf_self_tests),
    case("i386_kernel_runs_bpf_self_tests", i386_kernel_runs_bpf_self_tests),
    case(
        "full_kernel_boots_without_complaints",
        full_kernel_boots_without_complaints,
    ),
    case(
        "i386_kernel_boots_without_complaints",
        i386_kernel_boots_without_complaints,
    ),
    case("freed_memory_goes_back_to_the_host", freed_memory_goes_back_to_the_host),
    case("virtio_devices_work_on_the_pc", virtio_devices_work_on_the_pc),
    case("virtio_devices_work_on_the_microvm", virtio_devices_work_on_the_microvm),
    case("shared_folders_work_on_the_pc", shared_folders_work_on_the_pc),
    case("shared_folders_work_on_the_microvm", shared_folders_work_on_the_microvm),
    case("nat_leads_to_the_world_and_back", nat_leads_to_the_world_and_back),
    case(
        "microvm_has_a_network_if_nothing_is_said",
        microvm_has_a_network_if_nothing_is_said,
    ),
    case(
        "two_guests_talk_and_outlive_their_switch",
        two_guests_talk_and_outlive_their_switch,
    ),
    case("discs_of_an_ide_drive_are_changed", discs_of_an_ide_drive_are_changed),
    case("discs_of_a_sata_drive_are_changed", discs_of_a_sata_drive_are_changed),
    case(
        "sata_disk_is_plugged_in_and_pulled_out",
        sata_disk_is_plugged_in_and_pulled_out,
    ),
    case(
        "nvme_card_is_plugged_into_a_port_and_pulled_out",
        nvme_card_is_plugged_into_a_port_and_pulled_out,
    ),
    case(
        "nvme_card_is_plugged_into_a_slot_and_ejected",
        nvme_card_is_plugged_into_a_slot_and_ejected,
    ),
    case("suspended_guest_wakes_by_its_alarm", suspended_guest_wakes_by_its_alarm),
    case("suspended_pc_wakes_by_its_alarm", suspended_pc_wakes_by_its_alarm),
    case("pc_shows_its_pci_devices", pc_shows_its_pci_devices),
    case("q35_shows_its_pci_devices", q35_shows_its_pci_devices),
    case(
        "two_processors_work_at_the_same_time",
        two_processors_work_at_the_same_time,
    ),
    case(
        "cloud_kernel_boots_without_complaints",
        cloud_kernel_boots_without_complaints,
    ),
    case(
        "screen_and_keyboard_work_by_the_control_socket",
        screen_and_keyboard_work_by_the_control_socket,
    ),
    case("older_processor_model_boots", older_processor_model_boots),
    case("vmlinux_boots_by_pvh", vmlinux_boots_by_pvh),
    case("shell_answers_on_the_serial_port", shell_answers_on_the_serial_port),
    case("idle_guest_leaves_the_host_alone", idle_guest_leaves_the_host_alone),
    case("reset_ends_the_machine_when_asked", reset_ends_the_machine_when_asked),
    case("triple_fault_is_told", triple_fault_is_told),
    case("debug_exit_gives_the_exit_status", debug_exit_gives_the_exit_status),
    case("timeout_ends_the_machine", timeout_ends_the_machine),
];

const fn case(name: &'static str, check: fn(&Lab) -> anyhow::Result<()>) -> Case {
    Case {
        name,
        check,
        extra: false,
    }
}

fn cloud_kernel_boots_without_complaints(lab: &Lab) -> anyhow::Result<()> {
    let boot = Boot::new(lab.oxbow, lab.guest("demo")?, "console=ttyS0 panic=-1 demo=batch");
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        no_complaints(seen)?;
        says(seen, "x86_64 GNU/Linux")?;
        says(seen, "processors: 1")
    })
}

fn full_kernel_boots_without_complaints(lab: &Lab) -> anyhow::Result<()> {
    let boot = Boot::new(lab.oxbow, lab.guest("full")?, "console=ttyS0 panic=-1 demo=batch");
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        no_complaints(seen)?;
        says(seen, "x86_64 GNU/Linux")
    })
}

fn i386_kernel_boots_without_complaints(lab: &Lab) -> anyhow::Result<()> {
    let boot = Boot::new(lab.oxbow, lab.guest("i386")?, "console=ttyS0 panic=-1 demo=batch");
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        no_complaints(seen)?;
        says(seen, "i686 GNU/Linux")
    })
}

fn suspended_guest_wakes_by_its_alarm(lab: &Lab) -> anyhow::Result<()> {
    wakes_by_its_alarm(lab, "microvm")
}

fn suspended_pc_wakes_by_its_alarm(lab: &Lab) -> anyhow::Result<()> {
    wakes_by_its_alarm(lab, "pc")
}

fn pc_shows_its_pci_devices(lab: &Lab) -> anyhow::Result<()> {
    // The memory has a hole, and goes on behind it.
    let devices = "for i in /sys/bus/pci/devices/*; do echo ${i##*/} $(cat $i/vendor $i/device); done";
    let commands = format!("{devices}; grep -c System /proc/iomem");
    let options = ["--machine", "pc", "--cpus", "2", "--memory", "4G"];
    let boot = lab.commands("full", &commands)?.with(&options);
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        no_complaints(seen)?;
        for part in [
            "PCI: Using configuration type 1",
            "PCI: Using ACPI for IRQ routing",
            "Interrupt link LNKD configured for IRQ 11",
            "quirk: [io  0x0600-0x063f] claimed by PIIX4 ACPI",
            "0000:00:00.0 0x8086 0x1237",
            "0000:00:01.0 0x8086 0x7000",
            "0000:00:01.3 0x8086 0x7113",
        ] {
            says(seen, part)?;
        }
        ensure!(seen.line("PCI: Fatal").is_none(), "there is no configuration space");
        Ok(())
    })
}

fn q35_shows_its_pci_devices(lab: &Lab) -> anyhow::Result<()> {
    // A display adapter in a PCI Express port; then a sleep, after which bridges and interrupts are as before.
    let devices = "for i in /sys/bus/pci/devices/*; do echo ${i##*/} $(cat $i/vendor $i/device); done";
    let sleep = "echo +10 > /sys/class/rtc/rtc0/wakealarm; echo mem > /sys/power/state && echo awake:$(nproc)";
    let commands = format!("{devices}; {sleep}; grep MMCONFIG /proc/iomem");
    let options = [
        "--machine",
        "q35",
        "--cpus",
        "2",
        "--memory",
        "4G",
        "--place",
        "vga=port2",
    ];
    let boot = lab.commands("full", &commands)?.with(&options);
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        no_complaints(seen)?;
        for part in [
            "PCI: Using ACPI for IRQ routing",
            "_OSC: OS now controls [PCIeHotplug PME PCIeCapability]",
            "quirk: [io  0x0600-0x067f] claimed by ICH6 ACPI/GPIO/TCO",
            "pcieport 0000:00:1c.1: pciehp: Slot #2",
            "0000:00:00.0 0x8086 0x29c0",
            "0000:00:1f.0 0x8086 0x2918",
            "0000:00:1f.2 0x8086 0x2922",
            "0000:02:00.0 0x1234 0x1111",
            "awake:2",
            "b0000000-bfffffff : PCI MMCONFIG 0000 [bus 00-ff]",
        ] {
            says(seen, part)?;
        }
        Ok(())
    })
}

fn wakes_by_its_alarm(lab: &Lab, machine: &str) -> anyhow::Result<()> {
    // Twice, so that the first sleep is seen to leave the machine fit for another. An alarm that goes off before the guest
    // is asleep is lost on it: it has ten seconds on a busy host.
    let sleep = "echo +10 > /sys/class/rtc/rtc0/wakealarm; echo mem > /sys/power/state && echo awake:$(nproc)";
    let boot = lab
        .commands("full", &format!("{sleep}; {sleep}"))?
        .with(&["--cpus", "2", "--machine", machine]);
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        no_complaints(seen)?;
        says(seen, "PM: suspend entry (deep)")?;
        let awake = seen
            .lines
            .iter()
            .filter(|line| line.text.starts_with("awake:2"))
            .count();
        ensure!(awake == 2, "the guest woke {awake} times of 2 with both processors");
        Ok(())
    })
}

fn two_processors_work_at_the_same_time(lab: &Lab) -> anyhow::Result<()> {
    // The same sum from both at once, while pipes make them wake each other.
    let sum = "seq 20000 | sort -r | md5sum > /tmp/$i";
    let commands = format!(
        "nproc; for i in 1 2 3 4; do ({sum}) & done; wait; sort -u /tmp/1 /tmp/2 /tmp/3 /tmp/4 | sed s/^/sum:/; \
         grep -c ^processor /proc/cpuinfo"
    );
    let boot = lab.commands("demo", &commands)?.with(&["--cpus", "2"]);
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        no_complaints(seen)?;
        says(seen, "Brought up 1 node, 2 CPUs")?;
        let sums = seen.lines.iter().filter(|line| line.text.starts_with("sum:")).count();
        ensure!(sums == 1, "the sums differ between the processors");
        let said = after_begin(seen);
        ensure!(
            said.iter().filter(|text| **text == "2").count() == 2,
            "two processors are not at work"
        );
        Ok(())
    })
}

fn older_processor_model_boots(lab: &Lab) -> anyhow::Result<()> {
    let boot = lab
        .commands("demo", "grep ^flags /proc/cpuinfo")?
        .with(&["--cpu", "x86-64-v2"]);
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        no_complaints(seen)?;
        let flags = seen.line("flags\t").context("no flags in /proc/cpuinfo")?;
        let has = |name| flags.text.split(' ').any(|flag| flag == name);
        ensure!(has("sse4_2") && has("popcnt"), "x86-64-v2 has SSE4.2 and POPCNT");
        ensure!(!has("avx") && !has("avx2"), "x86-64-v2 has no AVX");
        Ok(())
    })
}

fn vmlinux_boots_by_pvh(lab: &Lab) -> anyhow::Result<()> {
    let guest = lab.guest("demo")?;
    let Some(vmlinux) = &guest.vmlinux else {
        return Err(Skip("the tool that decompresses the kernel is not installed".to_owned()).into());
    };
    let boot = Boot::kernel(lab.oxbow, vmlinux, &guest.initrd, "console=ttyS0 panic=-1 demo=batch");
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        no_complaints(seen)?;
        says(seen, "x86_64 GNU/Linux")
    })
}

fn full_kernel_runs_bpf_self_tests(lab: &Lab) -> anyhow::Result<()> {
    bpf_self_tests(lab, "full")
}

fn i386_kernel_runs_bpf_self_tests(lab: &Lab) -> anyhow::Result<()> {
    bpf_self_tests(lab, "i386")
}

/// The kernel's own tests of its BPF interpreter and compiler: a thousand small programs of every kind of arithmetic.
fn bpf_self_tests(lab: &Lab, guest: &str) -> anyhow::Result<()> {
    let commands = "insmod /lib/modules/test_bpf.ko; dmesg | grep -E 'test_bpf:.*(FAIL|Summary)'";
    let append = format!("console=ttyS0 panic=-1 quiet log_buf_len=4M oxbow_run=\"{commands}\"");
    let guest = lab.guest(guest)?;
    // Where it is at hand, the kernel that need not decompress itself first: that alone takes longer than most boots.
    let kernel = guest.vmlinux.as_ref().unwrap_or(&guest.kernel);
    let boot = Boot::kernel(lab.oxbow, kernel, &guest.initrd, &append).timeout(Duration::from_secs(1500));
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        let summaries: Vec<&str> = after_begin(seen)
            .into_iter()
            .filter(|text| text.contains("Summary:"))
            .collect();
        ensure!(!summaries.is_empty(), "test_bpf said nothing");
        ensure!(
            summaries.iter().all(|text| text.contains(" 0 FAILED")),
            "test_bpf failed:\n{}",
            summaries.join("\n")
        );
        Ok(())
    })
}

fn shell_answers_on_the_serial_port(lab: &Lab) -> anyhow::Result<()> {
    let dialogue = [
        ("/root # ", "echo $((6 * 7))-$(tty)\n"),
        // The quotes keep the echo of what is typed from looking like what is awaited.
        ("/root # ", "sh -c 'echo sle\"\"eping; sleep 1000'\n"),
        // Ctrl-C reaches the guest, not us, and job control is there to stop the sleeper.
        ("sleeping", "\u{3}"),
        ("/root # ", "echo status $?; exit\n"),
    ];
    let boot = Boot::new(lab.oxbow, lab.guest("demo")?, "console=ttyS0 panic=-1 quiet").dialogue(&dialogue);
    lab.watch(&boot, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        says(seen, "42-/dev/ttyS0")?;
        says(seen, "status 130")
    })
}

fn idle_guest_leaves_the_host_alone(lab: &Lab) -> anyhow::Result<()> {
    // The kernel's own late work is over after the first sleep.
    let boot = lab.commands("demo", "sleep 3; echo @@idle; sleep 5; echo @@busy")?;
    lab.watch(&boot, |seen| {
        ends_well(seen)?;
        let begin = seen.line("@@idle").context("no @@idle")?;
        let end = seen.line("@@busy").context("no @@busy")?;
        let used = end.cpu.saturating_sub(begin.cpu);
        // A few timer ticks, not a loop that waits: 4 % of a processor, however slow it is.
        ensure!(
            used <= Duration::from_millis(200),
            "{used:?} of processor time in an idle guest of 5 s"
        );
        Ok(())
    })
}

fn reset_ends_the_machine_when_asked(lab: &Lab) -> anyhow::Result<()> {
    let boot = lab.commands("demo", "echo @@reset; reboot -f")?;
    lab.watch(&boot, |seen| {
        says(seen, "@@reset")?;
        ensure!(
            seen.status == Some(0),
            "--no-reboot ends a machine that resets with status 0"
        );
        let boots = seen.lines.iter().filter(|line| line.text.contains("@@init")).count();
        ensure!(boots == 1, "the guest was booted {boots} times");
        Ok(())
    })
}

fn triple_fault_is_told(lab: &Lab) -> anyhow::Result<()> {
    let append = "console=ttyS0 panic=-1 reboot=triple,force oxbow_run=\"reboot -f\"";
    let boot = Boot::new(lab.oxbow, lab.guest("demo")?, append);
    lab.watch(&boot, |seen| {
        ensure!(seen.status == Some(3), "a triple fault has exit status 3");
        let told = seen.errors.to_lowercase();
        ensure!(
            told.contains("rip") && told.contains("cr3"),
            "the message has no RIP and CR3"
        );
        Ok(())
    })
}

fn debug_exit_gives_the_exit_status(lab: &Lab) -> anyhow::Result<()> {
    // The kernel for clouds has no /dev/port.
    let guest = lab.guest("full")?;
    let kernel = guest.vmlinux.as_ref().unwrap_or(&guest.kernel);
    let commands = "printf '\\052' | dd of=/dev/port bs=1 seek=244 conv=notrunc";
    let append = format!("console=ttyS0 panic=-1 quiet oxbow_run=\"{commands}\"");
    let boot = Boot::kernel(lab.oxbow, kernel, &guest.initrd, &append).with(&["--debug-exit", "0xf4"]);
    lab.watch(&boot, |seen| {
        ensure!(seen.status == Some(42 << 1 | 1), "42 at the port is exit status 85");
        Ok(())
    })
}

fn timeout_ends_the_machine(lab: &Lab) -> anyhow::Result<()> {
    let boot = lab.commands("demo", "sleep 1000")?.timeout(Duration::from_secs(3));
    lab.watch(&boot, |seen| {
        ensure!(seen.status == Some(124), "--timeout has exit status 124");
        Ok(())
    })
}

fn ends_well(seen: &Seen) -> anyhow::Result<()> {
    match seen.status {
        Some(0) => {}
        Some(status) => bail!("exit status {status}"),
        None => bail!("killed, since it did not end"),
    }
    ensure!(seen.line("@@init").is_some(), "the kernel did not get to init");
    let end = seen.line("@@end").context("init did not come to its end")?;
    ensure!(
        end.text.trim() == "@@end 0",
        "a command in the guest failed: {}",
        end.text
    );
    ensure!(seen.errors.is_empty(), "oxbow had something to say: {}", seen.errors);
    Ok(())
}

pub(super) fn no_complaints(seen: &Seen) -> anyhow::Result<()> {
    let complaint = seen
        .lines
        .iter()
        .find(|line| COMPLAINTS.iter().any(|part| line.text.contains(part)));
    match complaint {
        Some(line) => bail!("the kernel complains: {}", line.text),
        None => Ok(()),
    }
}

pub(super) fn says(seen: &Seen, part: &str) -> anyhow::Result<()> {
    ensure!(seen.line(part).is_some(), "the guest did not say {part:?}");
    Ok(())
}

/// What the commands in the guest said.
fn after_begin(seen: &Seen) -> Vec<&str> {
    let texts = seen.lines.iter().map(|line| line.text.as_str());
    texts.skip_while(|text| !text.contains("@@begin")).skip(1).collect()
}
