//! Ethernet frames to and from the host's own network: taps, and packet sockets at an interface.
//!
//! Both are descriptors of which one read or write is a frame behind a virtio-net header of ten bytes, which says what is left
//! to do on it. Both go with their last descriptor: nothing stays behind when a process is killed. What becomes of a tap
//! (its address, the bridge that it is a port of) is netlink's, not this crate's.
//!
//! UNSAFETY: the ioctls of taps and the addresses and options of packet sockets have no safe form in rustix.
//!
//! Spec: Linux Documentation/networking/tuntap.rst; packet(7); `include/uapi/linux/if_tun.h`, `if_packet.h`.

use std::ffi::c_int;
use std::ffi::c_short;
use std::ffi::c_uint;
use std::ffi::c_ulong;
use std::fs::OpenOptions;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

/// The device that taps are made of.
pub const CLONE_DEVICE: &str = "/dev/net/tun";
/// Bytes of an interface's name at most.
pub const NAME_MAX: usize = 15;

const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const IFF_TAP: c_short = 0x0002;
const IFF_NO_PI: c_short = 0x1000;
const IFF_VNET_HDR: c_short = 0x4000;
/// What readers of a tap take: missing checksums, long segments of TCP with and without ECN, long datagrams.
const TUN_F_CSUM: c_uint = 0x01;
const TUN_F_TSO4: c_uint = 0x02;
const TUN_F_TSO6: c_uint = 0x04;
const TUN_F_TSO_ECN: c_uint = 0x08;
const TUN_F_USO4: c_uint = 0x20;
const TUN_F_USO6: c_uint = 0x40;
/// Option of packet sockets: frames go behind a virtio-net header.
const PACKET_VNET_HDR: c_int = 15;

/// A way for frames. Reads and writes do not block.
#[derive(Debug)]
pub struct Frames {
    /// One read or write of it is a header and a frame.
    pub fd: OwnedFd,
    /// The interface's name.
    pub name: String,
    /// Long UDP datagrams may be written, and come.
    pub long_datagrams: bool,
}

/// `struct ifreq` with flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: c_short,
    rest: [u8; 22],
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A tap of this name, new or one that is there and has no reader. `%d` in a name stands for the first number that is free.
///
/// # Errors
/// `NotFound` where the host has no taps, `PermissionDenied` without the right to make one or to use this one,
/// `ResourceBusy` when it has a reader, `InvalidInput` for a name that is none or is that of another kind of interface.
pub fn open_tap(name: &str) -> io::Result<Frames> {
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(CLONE_DEVICE)?;
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    for (to, from) in request.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is, and keeps no pointer to it.
    check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) })?;
    let usual = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    let set = |features: c_uint| {
        // SAFETY: TUNSETOFFLOAD takes a number and no pointer.
        check(unsafe { libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD, c_ulong::from(features)) })
    };
    // Kernels before 6.2 know no long datagrams.
    let long_datagrams = set(usual | TUN_F_USO4 | TUN_F_USO6).is_ok();
    if !long_datagrams {
        set(usual)?;
    }
    let len = request.name.iter().position(|byte| *byte == 0).unwrap_or(NAME_MAX);
    let name = request.name.get(..len).unwrap_or_default();
    Ok(Frames {
        fd: file.into(),
        name: String::from_utf8_lossy(name).into_owned(),
        long_datagrams,
    })
}

fn set_option<T>(socket: &OwnedFd, option: c_int, value: &T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(mem::size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of `value`, which it has.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const *value).cast(),
            len,
        )
    })?;
    Ok(())
}

/// All frames that pass interface `index`, called `name`, whoever they are for, and a way to send others by it. Frames that
/// are sent go out by the wire; the host itself does not hear them.
///
/// # Errors
/// `PermissionDenied` without the right to raw sockets.
pub fn open_interface(index: u32, name: &str) -> io::Result<Frames> {
    let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // With protocol 0 nothing comes before it is bound to its interface.
    // SAFETY: `socket` takes numbers only.
    let raw = check(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })?;
    // SAFETY: `raw` is a descriptor that was just made and nobody else has.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    let index = c_int::try_from(index).map_err(|_| io::ErrorKind::InvalidInput)?;
    set_option(&fd, PACKET_VNET_HDR, &1i32)?;
    // SAFETY: all zeros are a `packet_mreq` and a `sockaddr_ll`.
    let (mut member, mut address): (libc::packet_mreq, libc::sockaddr_ll) = unsafe { mem::zeroed() };
    member.mr_ifindex = index;
    member.mr_type = libc::PACKET_MR_PROMISC as u16;
    set_option(&fd, libc::PACKET_ADD_MEMBERSHIP, &member)?;
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index;
    let len = libc::socklen_t::try_from(mem::size_of_val(&address)).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of `address`, which it has.
    check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) })?;
    Ok(Frames {
        fd,
        name: name.to_owned(),
        long_datagrams: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_none_are_refused() {
        for name in ["", "much-too-long-a-name"] {
            assert_eq!(open_tap(name).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }

    #[test]
    fn tap_goes_with_its_descriptor() {
        let name = format!("oxt{}", std::process::id());
        let tap = match open_tap(&name) {
            Ok(tap) => tap,
            Err(error) => {
                eprintln!("SKIPPED: no tap can be made here: {error}");
                return;
            }
        };
        assert_eq!(tap.name, name);
        // It has a reader.
        assert_eq!(open_tap(&name).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        drop(tap);
        let again = open_tap(&name).unwrap();
        // Its cable is not up: nothing can be written yet, and reading waits.
        let mut byte = [0; 64];
        assert_eq!(rustix::io::read(&again.fd, &mut byte), Err(rustix::io::Errno::AGAIN));
    }
}
