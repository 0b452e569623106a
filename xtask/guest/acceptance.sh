#!/bin/busybox sh
# First process of the guest that has Debian's own programs try all virtio devices. The kernel hands it words of its command
# line as variables:
#   work=tools          fio, rngtest and iperf3
#   work=shares         /test.sh, with the shared folder `files` at /mnt
#   server=PORT         of iperf3, behind the gateway
# What it has to say begins with @.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /mnt /root
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "@fail module $module"; done

await() { # what must be there after at most 30 s
    for i in $(seq 300); do eval "$1" && return; sleep .1; done
    echo "@fail $1 is not there"
}

try() { # a name, and a command, which has to succeed
    name=$1
    shift
    "$@" >/tmp/out 2>&1 && echo "@ok $name" || { echo "@fail $name $?"; tail -n 20 /tmp/out; }
}

verified() { # every block is written with its checksum, and read back
    fio --name=verified --filename=$1 --size=12m --rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16 \
        --verify=crc32c --do_verify=1 --verify_fatal=1
}

carried() { # options; how much came through
    # The server may still be busy with the last client.
    for i in $(seq 50); do
        iperf3 -c 10.0.2.2 -p $server -n 40M -f m $1 >/tmp/iperf 2>&1 && break
        sleep .2
    done
    cat /tmp/iperf
    grep -q 'MBytes.*receiver' /tmp/iperf
}

tools() {
    await '[ -b /dev/vda -a -b /dev/sda -a -d /sys/class/net/eth0 -a -c /dev/hvc0 -a -c /dev/hwrng ]'
    for device in /sys/bus/virtio/devices/*; do
        echo "@device $(basename $(readlink $device/driver)) $(cat $device/status)"
    done
    echo "@inputs $(grep -c 'Name=.*[Vv]irt' /proc/bus/input/devices)"
    ip link set lo up
    ip link set eth0 up
    ip addr add 10.0.2.15/24 dev eth0
    await '[ "$(cat /sys/class/net/eth0/carrier)" = 1 ]'
    try blk verified /dev/vda
    try scsi verified /dev/sda
    rngtest -c 50 </dev/hwrng >/tmp/out 2>&1
    sed -n 's/.*FIPS 140-2 \(successes\|failures\): /@\1 /p' /tmp/out
    try upload carried
    try download carried -R
    mount -t virtiofs files /mnt && mkdir /tmp/9p && mount -t 9p -o trans=virtio,version=9p2000.L plan9 /tmp/9p
    try virtiofs cp /mnt/given /tmp/9p/taken
    try 9p cmp /mnt/given /tmp/9p/taken
    echo spoken >/dev/hvc0
}

shares() {
    mount -t virtiofs files /mnt || echo "@fail no folder"
    sh /test.sh
}

$work
umount /mnt
echo "@done"
poweroff -f
