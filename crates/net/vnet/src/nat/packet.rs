//! Making frames: Ethernet, IPv4 and IPv6 headers, UDP, ICMP errors.
//!
//! Spec: RFC 791, RFC 792, RFC 768, RFC 8200, RFC 4443.

use std::net::IpAddr;
use std::net::SocketAddr;

use device_model::Frame;
use device_model::net::Checksum;
use device_model::net::ETHERNET_HEADER;
use device_model::net::Mac;
use device_model::net::packet::IPV4;
use device_model::net::packet::IPV6;
use device_model::net::packet::Layout;
use device_model::net::packet::TCP;
use device_model::net::packet::UDP;
use device_model::net::packet::be32;
use device_model::net::packet::checksum;
use device_model::net::packet::fold;
use device_model::net::packet::put;
use device_model::net::packet::sum;

/// Hops that our packets may take; there is none between the guest and us.
const HOP_LIMIT: u8 = 64;
/// Protocol numbers.
pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;

/// A length that is known to fit 16 bits; the largest number if it does not.
pub(super) fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// An Ethernet header.
pub(super) fn ethernet(to: Mac, from: Mac, ethertype: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend(to);
    bytes.extend(from);
    bytes.extend(ethertype.to_be_bytes());
    bytes
}

/// Ethernet addresses and those of the network, from us to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) to_mac: Mac,
    pub(super) from_mac: Mac,
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
}

/// A packet with a payload. None if the two addresses are of different kinds.
pub(super) fn packet(way: &Way, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = match (way.from, way.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut bytes = ethernet(way.to_mac, way.from_mac, IPV4);
            bytes.extend([0x45, 0]);
            bytes.extend(u16::try_from(20 + payload.len()).ok()?.to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
            let header = checksum(sum(bytes.get(ETHERNET_HEADER..)?));
            put(&mut bytes, ETHERNET_HEADER + 10, &header.to_be_bytes())?;
            bytes
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut bytes = ethernet(way.to_mac, way.from_mac, IPV6);
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(u16::try_from(payload.len()).ok()?.to_be_bytes());
            // Neighbour discovery is only believed if it has come over no router (RFC 4861 §7.1).
            bytes.extend([protocol, if protocol == ICMPV6 { 255 } else { HOP_LIMIT }]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
            bytes
        }
        _ => return None,
    };
    bytes.extend_from_slice(payload);
    Some(bytes)
}

/// A UDP datagram, whose checksum is left to the network.
pub(super) fn datagram(way: &Way, from_port: u16, to_port: u16, payload: &[u8]) -> Option<Frame> {
    let mut udp = Vec::with_capacity(8 + payload.len());
    udp.extend(from_port.to_be_bytes());
    udp.extend(to_port.to_be_bytes());
    udp.extend(u16::try_from(8 + payload.len()).ok()?.to_be_bytes());
    udp.extend([0, 0]);
    udp.extend_from_slice(payload);
    let mut frame = Frame::new(packet(way, UDP, &udp)?);
    leave_checksum(&mut frame)?;
    Some(frame)
}

/// Puts the pseudo-header's sum into the checksum field, and leaves the rest to the network.
pub(super) fn leave_checksum(frame: &mut Frame) -> Option<()> {
    let layout = Layout::of(&frame.bytes)?;
    let field = layout.checksum_field()?;
    let pseudo = fold(layout.pseudo_header(&frame.bytes, layout.end - layout.transport)?);
    put(&mut frame.bytes, field, &pseudo.to_be_bytes())?;
    frame.offload.checksum = Checksum::Missing {
        start: len16(layout.transport),
        offset: len16(field - layout.transport),
    };
    Some(())
}

/// An ICMP or ICMPv6 message, with its checksum.
pub(super) fn icmp(way: &Way, message: &mut [u8]) -> Option<Frame> {
    put(message, 2, &[0, 0])?;
    let (protocol, pseudo) = match (way.from, way.to) {
        (IpAddr::V4(_), _) => (ICMP, 0),
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let addresses = sum(&from.octets()) + sum(&to.octets());
            (ICMPV6, addresses + u64::from(ICMPV6) + message.len() as u64)
        }
        _ => return None,
    };
    let value = checksum(pseudo + sum(message));
    put(message, 2, &value.to_be_bytes())?;
    Some(Frame::new(packet(way, protocol, message)?))
}

/// What a packet could not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreachable {
    /// There is no way to the host.
    Host,
    /// Nobody has the port.
    Port,
    /// It is longer than the way carries: so many bytes of a packet.
    TooLong(u16),
}

/// The message that a packet, from its IP header on, could not be delivered.
pub(super) fn unreachable(way: &Way, why: Unreachable, original: &[u8]) -> Option<Frame> {
    let (kind, code, mtu) = match (way.from, why) {
        (IpAddr::V4(_), Unreachable::Host) => (3, 1, 0),
        (IpAddr::V4(_), Unreachable::Port) => (3, 3, 0),
        (IpAddr::V4(_), Unreachable::TooLong(mtu)) => (3, 4, mtu),
        (IpAddr::V6(_), Unreachable::Host) => (1, 3, 0),
        (IpAddr::V6(_), Unreachable::Port) => (1, 4, 0),
        (IpAddr::V6(_), Unreachable::TooLong(mtu)) => (2, 0, mtu),
    };
    // Of IPv6 as much as fits the smallest packet that all links carry.
    let most = if way.from.is_ipv4() { 28 } else { 1232 };
    let [high, low] = mtu.to_be_bytes();
    let mut message = vec![kind, code, 0, 0, 0, 0, high, low];
    message.extend(original.iter().take(most));
    icmp(way, &mut message)
}

/// Flags of a TCP header.
const FIN: u8 = 1 << 0;
const SYN: u8 = 1 << 1;
const RST: u8 = 1 << 2;
const ACK: u8 = 1 << 4;

/// Whether a TCP segment begins a connection.
pub(super) fn begins(segment: &[u8]) -> bool {
    segment
        .get(13)
        .is_some_and(|flags| flags & (SYN | ACK | RST | FIN) == SYN)
}

/// The answer to a TCP segment of no connection (RFC 9293 §3.5.2). None to a reset.
pub(super) fn reset(packet: &Packet<'_>, own: Mac) -> Option<Frame> {
    let segment = packet.payload;
    let flags = *segment.get(13)?;
    let header = usize::from(segment.get(12)? >> 4) * 4;
    if flags & RST != 0 {
        return None;
    }
    let len = segment.len().checked_sub(header)?;
    let one = |flag: u8| u32::from(flags & flag != 0);
    let (sequence, acknowledged, answer) = if flags & ACK != 0 {
        (be32(segment, 8)?, 0, RST)
    } else {
        let end = be32(segment, 4)?.wrapping_add(u32::try_from(len).ok()? + one(SYN) + one(FIN));
        (0, end, RST | ACK)
    };
    let mut tcp = Vec::with_capacity(20);
    tcp.extend_from_slice(segment.get(2..4)?);
    tcp.extend_from_slice(segment.get(..2)?);
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledged.to_be_bytes());
    tcp.extend([0x50, answer, 0, 0, 0, 0, 0, 0]);
    let mut frame = Frame::new(self::packet(&packet.back(own), TCP, &tcp)?);
    leave_checksum(&mut frame)?;
    Some(frame)
}

/// An IP packet of a guest's, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet<'a> {
    pub(super) mac: Mac,
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) protocol: u8,
    /// From the IP header on.
    pub(super) whole: &'a [u8],
    /// Behind the IP header.
    pub(super) payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// The packet in a frame; none if it is none or a fragment.
    pub(super) fn of(bytes: &'a [u8]) -> Option<Self> {
        let layout = Layout::of(bytes)?;
        let mac = bytes.get(6..12)?.try_into().ok()?;
        let at = layout.network;
        let (from, to) = if layout.ethertype == IPV4 {
            let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
            (address(at + 12)?, address(at + 16)?)
        } else {
            let address = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?));
            (address(at + 8)?, address(at + 24)?)
        };
        Some(Self {
            mac,
            from,
            to,
            protocol: layout.protocol,
            whole: bytes.get(at..layout.end)?,
            payload: bytes.get(layout.transport..layout.end)?,
        })
    }

    /// The two ports of TCP or UDP with their addresses: the guest's, then the other's.
    pub(super) fn ports(&self) -> Option<(SocketAddr, SocketAddr)> {
        let port = |at: usize| device_model::net::packet::be16(self.payload, at);
        Some((SocketAddr::new(self.from, port(0)?), SocketAddr::new(self.to, port(2)?)))
    }

    /// Whether its sender wants to hear if it is too long, rather than have it split. All packets of IPv6 are so.
    pub(super) fn is_to_stay_whole(&self) -> bool {
        self.to.is_ipv6() || self.whole.get(6).is_some_and(|flags| flags & 0x40 != 0)
    }

    /// The way back to its sender, from `own`.
    pub(super) fn back(&self, own: Mac) -> Way {
        Way {
            to_mac: self.mac,
            from_mac: own,
            from: self.to,
            to: self.from,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn way() -> Way {
        Way {
            to_mac: [2; 6],
            from_mac: [4; 6],
            from: "10.0.2.2".parse().unwrap(),
            to: "10.0.2.15".parse().unwrap(),
        }
    }

    #[test]
    fn packet_is_taken_apart() {
        let frame = datagram(&way(), 53, 1000, b"abc").unwrap();
        let packet = Packet::of(&frame.bytes).unwrap();
        assert_eq!(packet.ports().unwrap().0, "10.0.2.2:53".parse().unwrap());
        assert_eq!((packet.protocol, &packet.payload[8..]), (UDP, &b"abc"[..]));
        for len in 0..frame.bytes.len() {
            assert_eq!(Packet::of(&frame.bytes[..len]), None);
        }
    }
}
