//! The host's interfaces by rtnetlink: looking one up, setting one up, making one a port of a bridge.
//!
//! Four messages of our own, since that is all there is to do: a crate for it brings an executor along, and `ip` need not be
//! installed. Whatever is asked for is answered before a call returns.
//!
//! Spec: rtnetlink(7), netlink(7); Linux `include/uapi/linux/if_link.h`, `if_addr.h`.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use device_model::net::Mac;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::netlink::SocketAddrNetlink;

/// Kinds of message.
const NLMSG_ERROR: u16 = 2;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
/// Flags of a message: it is a request; an answer is wanted; what is there already is a mistake; it is to be made.
const REQUEST: u16 = 0x001;
const ACK: u16 = 0x004;
const EXCL: u16 = 0x200;
const CREATE: u16 = 0x400;
/// Attributes of a link, of its kind, and of an address.
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
/// The flag of an interface that it is up.
const IFF_UP: u32 = 1;
const AF_INET: u8 = 2;
/// Bytes of headers: of a message, of what is about a link, of an attribute.
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ATTRIBUTE: usize = 4;

/// An interface of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    /// Such as `bridge`, `tun`, `veth`; empty for a card's.
    pub(crate) kind: String,
    /// Bytes of a packet at most.
    pub(crate) mtu: u32,
    /// It is a port of a bridge, or in another way a part of another interface.
    pub(crate) is_port: bool,
}

/// A way to ask.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// A message in the making.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((flags | REQUEST | ACK).to_ne_bytes());
        bytes.resize(HEADER, 0);
        Self(bytes)
    }

    /// About interface `index`, zero where its name says which.
    fn link(kind: u16, index: u32, up: bool) -> Self {
        let mut message = Self::new(kind, 0);
        let up = if up { IFF_UP } else { 0 };
        message.0.extend([0; 4]);
        message.0.extend(index.to_ne_bytes());
        message.0.extend(up.to_ne_bytes());
        // Which flags are to be changed.
        message.0.extend(up.to_ne_bytes());
        message
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        let len = u16::try_from(ATTRIBUTE + value.len()).unwrap_or(0);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap_or(0);
        for (at, value) in [(0, len), (8, sequence)] {
            if let Some(place) = self.0.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
        self.0
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The attribute of this kind.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (len, kind) = (usize::from(half(bytes, 0)?), half(bytes, 2)?);
        let value = bytes.get(ATTRIBUTE..len)?;
        // The two highest bits are flags.
        if kind & 0x3fff == wanted {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

/// The interface that a message is about.
fn interface(body: &[u8]) -> Option<Interface> {
    let attributes = body.get(LINK_HEADER..)?;
    let kind = attribute(attributes, IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_KIND));
    let kind = kind.map(|kind| String::from_utf8_lossy(kind).trim_end_matches('\0').to_owned());
    Some(Interface {
        index: number(body, 4)?,
        kind: kind.unwrap_or_default(),
        mtu: attribute(attributes, IFLA_MTU).and_then(|mtu| number(mtu, 0))?,
        is_port: attribute(attributes, IFLA_MASTER).is_some(),
    })
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        // Protocol 0 is NETLINK_ROUTE.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks, and waits for the answer: what the kernel tells of an interface before it says that all is well.
    fn ask(&mut self, message: Message) -> io::Result<Option<Interface>> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence);
        rustix::net::sendto(&self.socket, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut buffer = vec![0; 32 << 10];
        let mut told = None;
        loop {
            let (len, _) = rustix::net::recv(&self.socket, &mut buffer, RecvFlags::empty())?;
            let mut rest = buffer.get(..len).unwrap_or_default();
            while let (Some(size), Some(kind), Some(sequence)) = (number(rest, 0), half(rest, 4), number(rest, 8)) {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let Some(body) = rest.get(HEADER..size) else { break };
                match kind {
                    _ if sequence != self.sequence => {}
                    NLMSG_ERROR => {
                        let error = number(body, 0).unwrap_or(0).cast_signed();
                        return match error {
                            0 => Ok(told),
                            error => Err(io::Error::from_raw_os_error(-error)),
                        };
                    }
                    RTM_NEWLINK => told = interface(body),
                    _ => {}
                }
                rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    /// The interface of this name; none if there is none.
    pub(crate) fn find(&mut self, name: &str) -> io::Result<Option<Interface>> {
        let name = [name.as_bytes(), &[0]].concat();
        match self.ask(Message::link(RTM_GETLINK, 0, false).with(IFLA_IFNAME, &name)) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
            other => other,
        }
    }

    /// Gives an interface its Ethernet address.
    pub(crate) fn set_mac(&mut self, index: u32, mac: Mac) -> io::Result<()> {
        let message = Message::link(RTM_NEWLINK, index, false).with(IFLA_ADDRESS, &mac);
        self.ask(message).map(drop)
    }

    /// Sets an interface up, with this MTU.
    pub(crate) fn set_up(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        let message = Message::link(RTM_NEWLINK, index, true).with(IFLA_MTU, &mtu.to_ne_bytes());
        self.ask(message).map(drop)
    }

    /// Makes an interface a port of a bridge.
    pub(crate) fn set_master(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        let message = Message::link(RTM_NEWLINK, index, false).with(IFLA_MASTER, &bridge.to_ne_bytes());
        self.ask(message).map(drop)
    }

    /// Gives an interface an address of a network of 24 bits.
    pub(crate) fn add_address(&mut self, index: u32, address: Ipv4Addr) -> io::Result<()> {
        let [a, b, c, _] = address.octets();
        let mut message = Message::new(RTM_NEWADDR, CREATE | EXCL);
        message.0.extend([AF_INET, 24, 0, 0]);
        message.0.extend(index.to_ne_bytes());
        let message = message
            .with(IFA_LOCAL, &address.octets())
            .with(IFA_ADDRESS, &address.octets())
            .with(IFA_BROADCAST, &[a, b, c, 255]);
        self.ask(message).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn loopback_is_found_and_a_stranger_is_not() {
        let mut netlink = Netlink::open().unwrap();
        let found = netlink.find("lo").unwrap().unwrap();
        assert_eq!((found.index, found.kind.as_str()), (1, ""));
        assert!(found.mtu >= 1280);
        assert_eq!(netlink.find("oxbow-nobody").unwrap(), None);
    }

    #[test]
    fn what_may_not_be_done_is_an_error() {
        let mut netlink = Netlink::open().unwrap();
        assert!(netlink.set_up(u32::MAX >> 1, 1500).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_attributes_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (interface(&bytes), attribute(&bytes, IFLA_MTU));
        }
    }
}
