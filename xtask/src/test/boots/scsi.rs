//! Disks and CD drives on a SCSI host, by the stock drivers.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::ensure;

use super::Case;
use super::Lab;
use super::cases::no_complaints;
use super::cases::says;
use super::plug;
use crate::workspace;

/// Bytes of the disk; the guest writes the first half and then gives that back.
const DISK: u64 = 32 << 20;
/// Loads what disks and discs need.
const LOAD: &str = "for m in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio scsi_common \
                    scsi_mod sd_mod cdrom sr_mod virtio_scsi; do insmod /lib/modules/$m.ko; done; sleep 1";
/// Writes and reads back past the cache, looks at names and limits, gives space back, which reads as zeros then, and is
/// refused to write to a protected disk. The kernel's command line has room for no double quotes.
const SCRIPT: &str = "h=/sys/bus/scsi/devices/0:0; d=$(echo $h:0:0/block/*); a=/dev/${d##*/}; b=$(echo $h:1:0/block/*); \
                      b=/dev/${b##*/}; echo @size $(cat $d/size) @name $(cat $d/device/wwid); \
                      echo @serial $(tail -c 8 $d/device/vpd_pg80); echo @queues $(ls $d/mq | wc -l); \
                      echo @unmap $(cat $d/device/scsi_disk/*/provisioning_mode); \
                      dd if=/dev/urandom of=/tmp/x bs=1M count=16; dd if=/tmp/x of=$a bs=256k; sync; \
                      echo 3 >/proc/sys/vm/drop_caches; dd if=$a of=/tmp/y bs=64k count=256; \
                      cmp /tmp/x /tmp/y && echo @same; sleep 1; blkdiscard -l 16M $a && echo @discarded; \
                      echo 3 >/proc/sys/vm/drop_caches; dd if=$a of=/tmp/y bs=64k count=256; \
                      [ $(tr -d '\\0' </tmp/y | wc -c) = 0 ] && echo @zeros; \
                      dd if=$b of=/dev/null count=1 && dd if=/tmp/x of=$b count=1 conv=fsync || echo @protected; \
                      head -c 6 /dev/sr0; echo; ls -d /sys/bus/virtio/drivers/virtio_scsi/virtio*";

/// Switches the write cache off and on as the kernel and as a program do, registers and reserves, and is told of conflicts.
const RESERVE: &str = "PATH=$PATH:/usr/bin; d=/dev/sda; c=$(echo /sys/class/scsi_disk/*/cache_type); echo @cache $(cat $c); \
                       echo write through >$c; echo @cache $(cat $c) $(sdparm -q -g WCE $d); \
                       dd if=/dev/urandom of=/tmp/x bs=64k count=16; dd if=/tmp/x of=$d bs=64k oflag=direct; \
                       echo none >$c || echo @refused; \
                       sdparm -q -s WCE=1 $d; echo 1 >/sys/block/sda/device/rescan; echo @cache $(cat $c); \
                       sg_persist -o -G -S 0x1234 $d; sg_persist -i -k $d; sg_persist -o -R -K 0x99 -T 5 $d; \
                       sg_persist -o -R -K 0x1234 -T 5 $d; sg_persist -i -r $d; sg_persist -i -s $d; sg_persist -i -c $d; \
                       sg_raw $d 16 0 0 0 0 0 2>&1; sg_persist -o -P -K 0x1234 -S 0x1234 -T 3 $d; sg_persist -i -r $d; \
                       dd if=$d of=/tmp/y bs=64k count=16; cmp /tmp/x /tmp/y && echo @same; \
                       sg_persist -o -L -K 0x1234 -T 3 $d && echo @released; sg_persist -o -C -K 0x1234 $d && echo @cleared; \
                       sg_persist -i -k $d; sg_raw $d 16 0 0 0 0 0 && sg_raw $d 17 0 0 0 0 0 && echo @older";

pub(super) const CASES: [Case; 8] = [
    Case {
        name: "virtio_uefi_boots_from_blk_and_a_disk_is_plugged_in",
        check: plug::virtio_disk_is_plugged_in_after_uefi,
        extra: false,
    },
    Case {
        name: "virtio_uefi_boots_from_scsi_and_a_disk_is_plugged_in",
        check: uefi_boots_from_scsi,
        extra: false,
    },
    Case {
        name: "virtio_scsi_disks_work_on_the_microvm",
        check: on_the_microvm,
        extra: false,
    },
    Case {
        name: "virtio_scsi_disks_work_on_the_pc",
        check: on_the_pc,
        extra: false,
    },
    Case {
        name: "virtio_scsi_discs_are_changed",
        check: discs_are_changed,
        extra: false,
    },
    Case {
        name: "virtio_scsi_caches_are_switched_and_disks_are_reserved",
        check: reserved,
        extra: false,
    },
    Case {
        name: "virtio_scsi_disks_are_plugged_in_and_pulled_out_on_the_microvm",
        check: plugged_on_the_microvm,
        extra: false,
    },
    Case {
        name: "virtio_scsi_disks_are_plugged_in_and_pulled_out_on_the_q35",
        check: plugged_on_the_q35,
        extra: false,
    },
];

fn on_the_microvm(lab: &Lab) -> anyhow::Result<()> {
    disks_work(lab, "microvm")
}

fn on_the_pc(lab: &Lab) -> anyhow::Result<()> {
    disks_work(lab, "pc")
}

fn discs_are_changed(lab: &Lab) -> anyhow::Result<()> {
    plug::discs(lab, "microvm", "scsi", ("tools", LOAD))
}

fn uefi_boots_from_scsi(lab: &Lab) -> anyhow::Result<()> {
    plug::scsi_disk_is_plugged_in_after_uefi(lab, LOAD)
}

fn reserved(lab: &Lab) -> anyhow::Result<()> {
    let dir = workspace::guests_dir().join("scsi").join("reserved");
    fs::create_dir_all(&dir)?;
    let disk = dir.join("disk.raw");
    fs::File::create(&disk)?.set_len(DISK)?;
    let drive = format!("{},bus=scsi,format=raw", disk.display());
    let boot = lab.commands("tools", &format!("{LOAD}; {RESERVE}"))?;
    lab.watch(&boot.with(&["--machine", "microvm", "--disk", &drive]), |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        for part in [
            "@cache write back",
            "@cache write through WCE 0 [cha: y, def: 1]",
            "@refused",
            "1 registered reservation key follows",
            "0x1234",
            "PR out (Reserve): Reservation conflict",
            "No specified protocol",
            "type: Write Exclusive, registrants only",
            "Reservation holder",
            "Exclusive Access: 1",
            "type: Exclusive Access",
            "@same",
            "@released",
            "@cleared",
            "there are NO registered reservation keys",
            "@older",
        ] {
            says(seen, part)?;
        }
        let caches = seen.lines.iter().filter(|line| line.text.contains("@cache write back"));
        ensure!(caches.count() == 2, "the write cache did not come back");
        no_complaints(seen)
    })?;
    fs::remove_dir_all(dir)?;
    Ok(())
}

fn plugged_on_the_microvm(lab: &Lab) -> anyhow::Result<()> {
    plug::scsi_target(lab, "microvm", ("tools", LOAD))
}

fn plugged_on_the_q35(lab: &Lab) -> anyhow::Result<()> {
    plug::scsi_target(lab, "q35", ("tools", LOAD))
}

fn disks_work(lab: &Lab, machine: &str) -> anyhow::Result<()> {
    let dir = workspace::guests_dir().join("scsi").join(machine);
    fs::create_dir_all(&dir)?;
    let (disk, protected, disc) = (dir.join("disk.raw"), dir.join("protected.raw"), dir.join("disc.iso"));
    for image in [&disk, &protected] {
        fs::File::create(image)?.set_len(DISK)?;
    }
    fs::write(&disc, [b"@disc ".to_vec(), vec![0; 64 << 10]].concat())?;
    let drive = format!("{},bus=scsi,format=raw,serial=SCSI0001", disk.display());
    let other = format!("{},bus=scsi,format=raw,ro", protected.display());
    let cdrom = format!("{},bus=scsi", disc.display());
    let boot = lab.commands("tools", &format!("{LOAD}; {SCRIPT}"))?;
    let boot = boot.with(&["--machine", machine, "--cpus", "2", "--disk", &drive, "--disk", &other]);
    let boot = boot.with(&["--cdrom", &cdrom]);
    lab.watch(&boot, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        for part in [
            "@size 65536 @name t10.OXBOW",
            "SCSI0001",
            "@queues 2",
            "@unmap unmap",
            "@same",
            "@discarded",
            "@zeros",
            "@protected",
            "@disc",
            "/virtio_scsi/virtio",
        ] {
            says(seen, part)?;
        }
        no_complaints(seen)
    })?;
    let used = fs::metadata(&disk)?.blocks() * 512;
    ensure!(used < DISK / 8, "{used} bytes are still used");
    fs::remove_dir_all(dir)?;
    Ok(())
}
