#!/bin/busybox sh
# First process of the guests that boot from an initramfs of one program.
#
# The kernel hands words of its command line that it does not know to this script as variables:
#   demo=batch          show what kind of machine this is, then power off
#   oxbow_run="..."     run these commands, then power off
# With neither there is a shell, and power off when it ends.

/bin/busybox mkdir -p /proc /sys /dev /tmp /root
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root PS1='\w \$ '
echo "@@init"
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mkdir -p /dev/pts && mount -t devpts pts /dev/pts
hostname oxbow
cd /root

finish() {
    echo "@@end $1"
    poweroff -f
}

batch() {
    echo "@@begin"
    uname -a
    echo "processors: $(nproc)"
    sed -n 's/^model name[^:]*: /model:      /p' /proc/cpuinfo | head -n 1
    sed -n 's/^MemTotal: */memory:     /p' /proc/meminfo
    echo "clock:      $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
}

case $demo in
batch)
    batch
    finish $?
    ;;
esac
if [ -n "$oxbow_run" ]; then
    echo "@@begin"
    eval "$oxbow_run"
    finish $?
fi

cat <<GREETING

  Linux $(uname -r) on $(nproc) processor(s) made of software.
  This is busybox: try \`uname -a\`, \`cat /proc/cpuinfo\`, \`dmesg | less\`, \`top\`.
  \`exit\` powers the machine off; Ctrl-A x ends it at once, Ctrl-A h helps.

GREETING
# cttyhack gives the shell the console as its controlling terminal, so that Ctrl-C and job control work.
setsid cttyhack sh
poweroff -f
