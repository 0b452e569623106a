#!/bin/sh
# Makes a system that boots from a disk out of what mmdebstrap has put into $1.
set -e
root=$1
# Every controller's driver, not those of the machine that this runs on.
cat >"$root/etc/initramfs-tools/modules" <<END
ata_piix
ata_generic
ahci
nvme
virtio_pci
virtio_blk
virtio_scsi
sd_mod
sr_mod
ext4
END
echo MODULES=list >"$root/etc/initramfs-tools/conf.d/modules"
echo oxbow >"$root/etc/hostname"
echo "LABEL=oxbow / ext4 errors=remount-ro 0 1" >"$root/etc/fstab"
# For hosts that are busy with other things, too.
mkdir -p "$root/etc/systemd/system.conf.d"
cat >"$root/etc/systemd/system.conf.d/patience.conf" <<END
[Manager]
DefaultTimeoutStartSec=900
DefaultDeviceTimeoutSec=900
END
chroot "$root" passwd --delete root
# Works that begin by themselves some time after the boot.
chroot "$root" systemctl mask e2scrub_reap.service e2scrub_all.timer fstrim.timer apt-daily.timer \
    apt-daily-upgrade.timer dpkg-db-backup.timer
chroot "$root" update-initramfs -u
mkdir -p "$root/boot/grub/i386-pc"
cp "$root"/usr/lib/grub/i386-pc/*.mod "$root"/usr/lib/grub/i386-pc/*.lst "$root/boot/grub/i386-pc/"
cat >"$root/boot/grub/grub.cfg" <<END
insmod serial
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=1
search --no-floppy --label oxbow --set=root
if [ "\$grub_platform" = pc ]; then
    # The screen stays in its text mode, which can be read as text.
    set screen=modprobe.blacklist=bochs
fi
menuentry "Debian" {
    linux /vmlinuz root=LABEL=oxbow ro console=tty0 console=ttyS0,115200 \$screen
    initrd /initrd.img
}
END
