#!/bin/bash
# First process of the benchmark guest. bench=NAME,NAME on the kernel's command line chooses benchmarks.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
echo "@@boot"
read -r line </proc/cmdline
[[ $line =~ bench=([a-z0-9,]+) ]] && names=${BASH_REMATCH[1]//,/ }
if [[ $names == none ]]; then echo "@@done"; else bash /bench/bench.sh $names; fi
poweroff -f 2>/dev/null || busybox poweroff -f
