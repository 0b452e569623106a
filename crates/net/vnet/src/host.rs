//! Ways to the host's own network: a tap, a tap that is a port of a bridge, a packet socket at an interface, a tap with an address.
//!
//! Taps and packet sockets go with their descriptors, and with them addresses and ports of bridges: nothing is left to be removed,
//! however a process ends.

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::io;
use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::sync::Arc;

use device_model::net::Mac;
use tap::Frames;

use crate::Switch;
use crate::hub::Uplink;
use crate::netlink::Interface;
use crate::netlink::Netlink;
use crate::uplink::Host;

/// Taps of ours that need no name.
const ANY_NAME: &str = "oxbow%d";
const MTU: u32 = 1500;

/// Why there is no way to the host's network.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// There is no such interface.
    #[error("there is no interface `{0}` on this host")]
    NoInterface(String),
    /// There is no such tap.
    #[error("there is no tap `{0}`; root makes one with: ip tuntap add {0} mode tap user NAME && ip link set {0} up")]
    NoTap(String),
    /// The interface is no tap.
    #[error("`{0}` is no tap")]
    OtherKind(String),
    /// The interface belongs to another.
    #[error("`{0}` is a port of a bridge: use the bridge's name")]
    Port(String),
    /// This user may not.
    #[error("{0} needs {1}: run as root, give the program that capability, or let root make a tap and use tap=NAME")]
    Denied(String, &'static str),
    /// Somebody else uses the tap.
    #[error("the tap `{0}` is in use")]
    Busy(String),
    /// The host has no taps.
    #[error("this host has no {}: load its module with `modprobe tun`", tap::CLONE_DEVICE)]
    NoTaps,
    /// The network is somebody else's.
    #[error("the address {0} is one of this host's already; give the network another with net=")]
    Taken(Ipv4Addr),
    /// The system says no.
    #[error("cannot set up {0}")]
    System(String, #[source] io::Error),
}

const NET_ADMIN: &str = "the capability CAP_NET_ADMIN";
const NET_RAW: &str = "the capability CAP_NET_RAW";

/// What it means that something about `what` has failed.
fn failed(what: &str, needs: &'static str, error: io::Error) -> HostError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => HostError::Denied(what.to_owned(), needs),
        _ => HostError::System(what.to_owned(), error),
    }
}

fn tap_failed(what: &str, name: &str, error: io::Error) -> HostError {
    match error.kind() {
        io::ErrorKind::NotFound => HostError::NoTaps,
        io::ErrorKind::ResourceBusy => HostError::Busy(name.to_owned()),
        io::ErrorKind::InvalidInput => HostError::OtherKind(name.to_owned()),
        _ => failed(what, NET_ADMIN, error),
    }
}

fn look_up(netlink: &mut Netlink, name: &str) -> Result<Option<Interface>, HostError> {
    if name.is_empty() || name.len() > tap::NAME_MAX {
        return Ok(None);
    }
    netlink
        .find(name)
        .map_err(|error| HostError::System(name.to_owned(), error))
}

fn open() -> Result<Netlink, HostError> {
    Netlink::open().map_err(|error| HostError::System("a netlink socket".to_owned(), error))
}

fn uplink(switch: &Arc<Switch>, frames: Frames, hears_all: bool) -> Result<Uplink, HostError> {
    let host = Host {
        long_datagrams: frames.long_datagrams,
        hears_all,
    };
    Uplink::host(switch, frames.fd, host).map_err(|error| HostError::System(frames.name, error))
}

/// A tap that somebody has made for us, plugged into `switch`.
///
/// # Errors
/// When there is none of this name, it is in use, or not this user's.
pub fn tap(switch: &Arc<Switch>, name: &str) -> Result<Uplink, HostError> {
    let found = look_up(&mut open()?, name)?;
    // A name that is free would be a new tap's, which nobody knows of.
    match found.ok_or_else(|| HostError::NoTap(name.to_owned()))?.kind.as_str() {
        "tun" => {}
        _ => return Err(HostError::OtherKind(name.to_owned())),
    }
    let frames = tap::open_tap(name).map_err(|error| tap_failed(&format!("tap={name}"), name, error))?;
    uplink(switch, frames, false)
}

/// The network that an interface of the host's is at: by a port of its own if it is a bridge, else by the interface itself.
///
/// # Errors
/// When there is none of this name, it belongs to a bridge, or this user may not.
pub fn bridged(switch: &Arc<Switch>, name: &str) -> Result<Uplink, HostError> {
    let mut netlink = open()?;
    let found = look_up(&mut netlink, name)?.ok_or_else(|| HostError::NoInterface(name.to_owned()))?;
    let what = format!("bridged={name}");
    if found.kind == "bridge" {
        let frames = port_of(&mut netlink, &found).map_err(|error| tap_failed(&what, name, error))?;
        return uplink(switch, frames, false);
    }
    if found.is_port {
        return Err(HostError::Port(name.to_owned()));
    }
    let frames = tap::open_interface(found.index, name).map_err(|error| failed(&what, NET_RAW, error))?;
    uplink(switch, frames, true)
}

/// A new tap that is a port of a bridge.
fn port_of(netlink: &mut Netlink, bridge: &Interface) -> io::Result<Frames> {
    let frames = tap::open_tap(ANY_NAME)?;
    let port = find(netlink, &frames.name)?;
    // A bridge without an address of its own takes the lowest of its ports': ours is to be the highest.
    let [a, b, c, d, ..] = RandomState::new().hash_one(0u8).to_le_bytes();
    netlink.set_mac(port.index, [0xfe, 0xff, a, b, c, d])?;
    netlink.set_master(port.index, bridge.index)?;
    netlink.set_up(port.index, bridge.mtu)?;
    Ok(frames)
}

fn find(netlink: &mut Netlink, name: &str) -> io::Result<Interface> {
    netlink.find(name)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// A new tap with an address, by which the host is at the network called `name`.
///
/// # Errors
/// [`HostError::Denied`] and [`HostError::NoTaps`] where the host can only be at it in another way.
pub(crate) fn host_only(switch: &Arc<Switch>, name: &str, address: Ipv4Addr) -> Result<Uplink, HostError> {
    if UdpSocket::bind((address, 0)).is_ok() {
        return Err(HostError::Taken(address));
    }
    let what = format!("hostonly={name}");
    let own = format!("ox-{name}");
    let frames = match tap::open_tap(&own) {
        // Its name is too long, or another user's network has it.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::ResourceBusy) => {
            tap::open_tap(ANY_NAME)
        }
        other => other,
    };
    let frames = frames.map_err(|error| tap_failed(&what, &own, error))?;
    let set_up = || -> io::Result<()> {
        let mut netlink = Netlink::open()?;
        let index = find(&mut netlink, &frames.name)?.index;
        netlink.set_mac(index, mac_of(name))?;
        netlink.add_address(index, address)?;
        netlink.set_up(index, MTU)
    };
    set_up().map_err(|error| failed(&what, NET_ADMIN, error))?;
    uplink(switch, frames, false)
}

/// The host's Ethernet address at a network: always the same, so that guests find the host where it was when a switch is replaced.
pub(crate) fn mac_of(name: &str) -> Mac {
    // FNV-1a.
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let [a, b, c, d, ..] = name.bytes().fold(0xcbf2_9ce4_8422_2325, mix).to_le_bytes();
    [0x0a, 0x00, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_that_are_none_are_named() {
        let switch = Switch::new();
        for name in ["oxbow-nobody", "", "a-name-that-is-too-long"] {
            let error = bridged(&switch, name).unwrap_err();
            assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
            assert!(tap(&switch, name).unwrap_err().to_string().contains("ip tuntap add"));
        }
        assert!(matches!(tap(&switch, "lo"), Err(HostError::OtherKind(_))));
    }

    #[test]
    fn host_keeps_its_address_and_networks_have_different_ones() {
        assert_eq!(mac_of("lab"), mac_of("lab"));
        assert_ne!(mac_of("lab"), mac_of("lab2"));
        assert_eq!(mac_of("lab")[0] & 3, 2);
    }

    #[test]
    fn network_that_is_the_hosts_already_is_refused() {
        let error = host_only(&Switch::new(), "x", Ipv4Addr::LOCALHOST).unwrap_err();
        assert!(matches!(error, HostError::Taken(_)), "{error}");
    }
}
