//! The guest that times disks and networks: a stock kernel and its modules, fio, iperf3 and what these need.

use crate::guests::DRIVERS;
use crate::guests::programs::Programs;

/// What it boots.
pub(super) const GUEST: Programs = Programs {
    name: "bench-io",
    packages: "busybox-static,fio,iperf3,linux-image-amd64",
    programs: &["usr/bin/fio", "usr/bin/iperf3"],
    modules: DRIVERS,
    init: include_str!("../../../bench/io.sh"),
};
