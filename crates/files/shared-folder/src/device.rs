//! Numbers of devices in the form that kernels give each other: 12 bits of major number, 20 of minor number.

/// A device's number as the kernel encodes it: 12 bits of major, 20 of minor number.
pub(crate) fn encode(rdev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// The host's form of a device's number.
pub(crate) fn decode(rdev: u32) -> u64 {
    rustix::fs::makedev(rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_go_there_and_back() {
        for (major, minor) in [(1, 3), (8, 17), (0xfff, 0xf_ffff), (259, 300)] {
            let host = rustix::fs::makedev(major, minor);
            assert_eq!(decode(encode(host)), host);
        }
        // The kernel's own encoding of 259:300.
        assert_eq!(
            encode(rustix::fs::makedev(259, 300)),
            259 << 8 | 300 & 0xff | (300 & !0xff) << 12
        );
    }
}
