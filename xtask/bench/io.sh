#!/bin/busybox sh
# First process of the guest that times disks and networks. The kernel hands it words of its command line as variables:
#   work=disk           fio on the one disk there is
#   work=nat            iperf3 with the server of port `server` behind the gateway, in both directions
#   work=serve          iperf3 waits for one client
#   work=call           iperf3 sends to 10.0.2.20
#   work=boot           nothing
#   address=A           the card's address
#   seconds=N           how long each line lasts
# Marks are @@boot, @@begin NAME UPTIME, @@end NAME UPTIME FIGURE, @@fail WHY and @@done.
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
for module in $(cat /modules/order); do insmod /modules/$module.ko 2>/dev/null; done

uptime() { cut -d ' ' -f 1 /proc/uptime; }
begin() { echo "@@begin $1 $(uptime)"; }
end() { echo "@@end $1 $(uptime) $2"; }

await() { # what must be there after at most 30 s
    for i in $(seq 300); do eval "$1" && return; sleep .1; done
    echo "@@fail $1 is not there"
}

disk() {
    for disk in /dev/vda /dev/sda /dev/nvme0n1; do [ -b $disk ] && break; done
    line 'randread-4k' 8 --rw=randread --bs=4k --iodepth=32
    line 'randwrite-4k' 49 --rw=randwrite --bs=4k --iodepth=32
    line 'single-read-4k' 8 --rw=randread --bs=4k --iodepth=1
    line 'read-256k' 7 --rw=read --bs=256k --iodepth=8
    line 'write-256k' 48 --rw=write --bs=256k --iodepth=8
}

line() { # name, field of fio's terse output (fio HOWTO, "Terse output"), options
    name=$1 field=$2
    shift 2
    begin $name
    fio --name=$name --filename=$disk --direct=1 --ioengine=libaio --time_based --runtime=$seconds --minimal "$@" >/tmp/fio
    end $name $(cut -d ';' -f $field /tmp/fio)
}

call() { # name, host, port, options; the server may not be there yet
    name=$1 host=$2 port=$3
    shift 3
    for i in $(seq 100); do
        begin $name
        iperf3 -c $host -p $port -t $seconds -f m "$@" >/tmp/iperf 2>&1 && break
        sleep .2
    done
    figure=$(sed -n 's/.* \([0-9.]*\) Mbits.*receiver/\1/p' /tmp/iperf)
    [ -n "$figure" ] || echo "@@fail $(tail -n 1 /tmp/iperf)"
    end $name $figure
}

if [ -n "$address" ]; then
    await '[ -d /sys/class/net/eth0 ]'
    ip link set lo up
    ip link set eth0 up
    ip addr add $address/24 dev eth0
fi
case $work in
disk | boot) await '[ -b /dev/vda -o -b /dev/sda -o -b /dev/nvme0n1 ]' ;;
esac
[ -n "$address" ] && await '[ "$(cat /sys/class/net/eth0/carrier)" = 1 ]'
echo "@@boot"
case $work in
disk) disk ;;
nat)
    call download 10.0.2.2 $server -R
    call upload 10.0.2.2 $server
    ;;
serve)
    iperf3 -s -p 5201 >/tmp/iperf &
    echo "@@serving"
    sleep 100000
    ;;
call) call to-guest 10.0.2.20 5201 ;;
esac
echo "@@done"
poweroff -f
