//! Neighbours: ARP, neighbour discovery, router advertisements, and where guests are.
//!
//! Spec: RFC 826 (ARP); RFC 4861 (neighbour discovery), RFC 8106 (name servers in advertisements).

use std::collections::HashMap;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;

use device_model::Frame;
use device_model::net::Mac;
use device_model::net::packet::be16;

use super::NatConfig;
use super::dhcp;
use super::dhcp6;
use super::packet;
use super::packet::Packet;
use super::packet::Way;

/// EtherType of ARP.
pub(super) const ARP: u16 = 0x0806;
/// The gateway's Ethernet address, which is that of VirtualBox's NAT.
const MAC: Mac = [0x52, 0x54, 0x00, 0x12, 0x35, 0x02];
const BROADCAST: Mac = [0xff; 6];
/// Hardware and protocol types and lengths of ARP over Ethernet.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Messages of ICMPv6.
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// Neighbours that are remembered at most.
const NEIGHBORS: usize = 1024;
/// Seconds.
const ROUTER_LIFETIME: u16 = 1800;
const PREFIX_LIFETIME: u32 = 86_400;

/// Addresses of our own on the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) mac: Mac,
    pub(super) gateway: Ipv4Addr,
    pub(super) dns: Ipv4Addr,
    /// Those of IPv6, if there is any.
    pub(super) v6: Option<Own6>,
    pub(super) mtu: u16,
}

/// Our addresses of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Own6 {
    /// The network, of 64 bits.
    pub(super) prefix: Ipv6Addr,
    pub(super) link: Ipv6Addr,
    pub(super) gateway: Ipv6Addr,
    pub(super) dns: Ipv6Addr,
}

impl Own {
    /// Those of a network that is so configured.
    pub(super) fn of(config: &NatConfig) -> Self {
        let v6 = |last: u16| Ipv6Addr::new(0xfd17, 0x625c, 0xf037, 2, 0, 0, 0, last);
        Self {
            mac: MAC,
            gateway: dhcp::at(config.network, config.addresses.gateway),
            dns: dhcp::at(config.network, config.addresses.dns),
            v6: config.ipv6.then(|| Own6 {
                prefix: v6(0),
                link: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2),
                gateway: v6(2),
                dns: v6(3),
            }),
            mtu: config.mtu,
        }
    }

    /// Whether an address is that of the gateway.
    pub(super) fn is_gateway(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.gateway,
            IpAddr::V6(address) => self.v6.is_some_and(|v6| address == v6.gateway || address == v6.link),
        }
    }

    /// Whether an address is that of the name server.
    pub(super) fn is_dns(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address == self.dns,
            IpAddr::V6(address) => self.v6.is_some_and(|v6| address == v6.dns),
        }
    }

    /// Whether an address is on the link: nobody else's there is to be asked beyond it.
    pub(super) fn is_on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => address.octets().get(..3) == self.gateway.octets().get(..3),
            IpAddr::V6(address) => {
                let same = |v6: Own6| address.octets().get(..8) == v6.prefix.octets().get(..8);
                address.is_unicast_link_local() || self.v6.is_some_and(same)
            }
        }
    }

    /// The gateway's address of the kind of `like`.
    pub(super) fn gateway_for(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => Some(self.gateway.into()),
            IpAddr::V6(_) => self.v6.map(|v6| v6.gateway.into()),
        }
    }
}

/// Where guests are.
#[derive(Debug, Default)]
pub(super) struct Neighbors(HashMap<IpAddr, Mac>);

impl Neighbors {
    pub(super) fn learn(&mut self, address: IpAddr, mac: Mac, own: &Own) {
        let is_ours = own.is_gateway(address) || own.is_dns(address);
        let room = self.0.len() < NEIGHBORS || self.0.contains_key(&address);
        if own.is_on_link(address) && !is_ours && room && !address.is_unspecified() {
            self.0.insert(address, mac);
        }
    }

    pub(super) fn find(&self, address: IpAddr) -> Option<Mac> {
        self.0.get(&address).copied()
    }

    /// The addresses of IPv6 on our network of the guest with an Ethernet address: that which DHCPv6 gives, or those that it
    /// has made up.
    pub(super) fn v6_of(&self, mac: Mac, own: &Own) -> Vec<Ipv6Addr> {
        let known = self.0.iter().filter(|(_, other)| **other == mac);
        let mut all: Vec<Ipv6Addr> = known
            .filter_map(|(address, _)| match address {
                IpAddr::V6(address) => Some(*address),
                IpAddr::V4(_) => None,
            })
            .filter(|address| !address.is_unicast_link_local() && own.is_on_link((*address).into()))
            .collect();
        if let Some(given) = dhcp6::address(own, mac).filter(|given| all.contains(given)) {
            return vec![given];
        }
        all.sort_unstable();
        all
    }

    /// A guest's address of IPv6 on our network, for ports that lead there.
    pub(super) fn any_v6(&self, own: &Own) -> Option<IpAddr> {
        let known = self.0.keys().filter(|address| match address {
            IpAddr::V6(address) => !address.is_unicast_link_local() && own.is_on_link((*address).into()),
            IpAddr::V4(_) => false,
        });
        known.min().copied()
    }
}

/// What an ARP message says and wants: the sender's addresses, and the answer to a question for one of ours.
pub(super) fn arp(bytes: &[u8], own: &Own) -> Option<(IpAddr, Mac, Option<Frame>)> {
    let message = bytes.get(14..42)?;
    if message.get(..6)? != ETHERNET_IPV4 {
        return None;
    }
    let mac: Mac = message.get(8..14)?.try_into().ok()?;
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(message.get(at..at + 4)?).ok()?));
    let (from, to) = (address(14)?, address(24)?);
    let ours = to == own.gateway || to == own.dns;
    let asked = be16(message, 6)? == REQUEST && ours;
    let answer = asked.then(|| arp_message(own.mac, mac, REPLY, (own.mac, to), (mac, from)));
    Some((from.into(), mac, answer))
}

fn arp_message(own: Mac, to: Mac, operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Frame {
    let mut bytes = packet::ethernet(to, own, ARP);
    bytes.extend(ETHERNET_IPV4);
    bytes.extend(operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        bytes.extend(mac);
        bytes.extend(address.octets());
    }
    Frame::new(bytes)
}

/// The question where a guest is.
pub(super) fn ask(address: IpAddr, own: &Own) -> Option<Frame> {
    match address {
        IpAddr::V4(address) => {
            let sender = (own.mac, own.gateway);
            Some(arp_message(own.mac, BROADCAST, REQUEST, sender, ([0; 6], address)))
        }
        IpAddr::V6(address) => {
            let [.., a, b, c] = address.octets();
            let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
            let way = Way {
                to_mac: [0x33, 0x33, 0xff, a, b, c],
                from_mac: own.mac,
                from: own.v6?.link.into(),
                to: group.into(),
            };
            let mut message = vec![NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
            message.extend(address.octets());
            message.extend([1, 1]);
            message.extend(own.mac);
            packet::icmp(&way, &mut message)
        }
    }
}

/// The answer to a message of neighbour discovery. None for other messages of ICMPv6; whether it was one is the first.
pub(super) fn discovery(packet: &Packet<'_>, own: &Own) -> (bool, Option<Frame>) {
    let kind = packet.payload.first().copied().unwrap_or(0);
    match kind {
        ROUTER_SOLICITATION => (true, advertisement(Some(packet), own)),
        NEIGHBOR_SOLICITATION => (true, neighbor(packet, own)),
        ROUTER_ADVERTISEMENT | NEIGHBOR_ADVERTISEMENT => (true, None),
        _ => (false, None),
    }
}

fn neighbor(packet: &Packet<'_>, own: &Own) -> Option<Frame> {
    let target: [u8; 16] = packet.payload.get(8..24)?.try_into().ok()?;
    let target = IpAddr::from(target);
    if !own.is_gateway(target) && !own.is_dns(target) {
        return None;
    }
    let IpAddr::V6(address) = target else { return None };
    // An unspecified sender looks whether its own address is taken.
    let to = match packet.from {
        from if from.is_unspecified() => IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
        from => from,
    };
    let way = Way {
        to_mac: packet.mac,
        from_mac: own.mac,
        from: target,
        to,
    };
    // Router, solicited, override.
    let mut message = vec![NEIGHBOR_ADVERTISEMENT, 0, 0, 0, 0xe0, 0, 0, 0];
    message.extend(address.octets());
    message.extend([2, 1]);
    message.extend(own.mac);
    packet::icmp(&way, &mut message)
}

/// A router advertisement: for everybody, or for who has asked.
pub(super) fn advertisement(asked: Option<&Packet<'_>>, own: &Own) -> Option<Frame> {
    let v6 = own.v6?;
    let everybody = (
        [0x33, 0x33, 0, 0, 0, 1],
        IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)),
    );
    let (to_mac, to) = match asked {
        Some(packet) if !packet.from.is_unspecified() => (packet.mac, packet.from),
        _ => everybody,
    };
    let way = Way {
        to_mac,
        from_mac: own.mac,
        from: v6.link.into(),
        to,
    };
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    message.extend(ROUTER_LIFETIME.to_be_bytes());
    message.extend([0; 8]);
    // Source link-layer address; MTU; prefix (on link, autonomous); name server.
    message.extend([1, 1]);
    message.extend(own.mac);
    message.extend([5, 1, 0, 0]);
    message.extend(u32::from(own.mtu).to_be_bytes());
    message.extend([3, 4, 64, 0xc0]);
    message.extend(PREFIX_LIFETIME.to_be_bytes());
    message.extend(PREFIX_LIFETIME.to_be_bytes());
    message.extend([0; 4]);
    message.extend(v6.prefix.octets());
    message.extend([25, 3, 0, 0]);
    message.extend(u32::from(ROUTER_LIFETIME).to_be_bytes());
    message.extend(v6.dns.octets());
    packet::icmp(&way, &mut message)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn own() -> Own {
        Own {
            mac: [0x52, 0x54, 0, 0x12, 0x35, 2],
            gateway: [10, 0, 2, 2].into(),
            dns: [10, 0, 2, 3].into(),
            v6: Some(Own6 {
                prefix: "fd17:625c:f037:2::".parse().unwrap(),
                link: "fe80::2".parse().unwrap(),
                gateway: "fd17:625c:f037:2::2".parse().unwrap(),
                dns: "fd17:625c:f037:2::3".parse().unwrap(),
            }),
            mtu: 1500,
        }
    }

    #[test]
    fn question_for_our_address_is_answered_and_no_other() {
        let guest = [8, 0, 0x27, 0, 0, 1];
        let question = |last| {
            let target = ([0; 6], Ipv4Addr::new(10, 0, 2, last));
            arp_message(guest, BROADCAST, REQUEST, (guest, [10, 0, 2, 15].into()), target)
        };
        let (from, mac, answer) = arp(&question(2).bytes, &own()).unwrap();
        assert_eq!((from, mac), ("10.0.2.15".parse().unwrap(), guest));
        let answer = answer.unwrap();
        assert_eq!(answer.bytes[..6], guest);
        assert_eq!(
            arp(&answer.bytes, &own()).unwrap().0,
            "10.0.2.2".parse::<IpAddr>().unwrap()
        );
        assert!(arp(&question(15).bytes, &own()).unwrap().2.is_none());
        for len in 0..42 {
            assert!(arp(&question(2).bytes[..len], &own()).is_none());
        }
    }

    #[test]
    fn solicitations_are_answered_with_right_checksums() {
        let guest: Mac = [8, 0, 0x27, 0, 0, 1];
        let way = Way {
            to_mac: [0x33, 0x33, 0, 0, 0, 2],
            from_mac: guest,
            from: "fe80::a".parse().unwrap(),
            to: "ff02::2".parse().unwrap(),
        };
        let mut neighbor = vec![NEIGHBOR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
        neighbor.extend("fe80::2".parse::<Ipv6Addr>().unwrap().octets());
        for message in [&mut vec![ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0], &mut neighbor] {
            let frame = packet::icmp(&way, message).unwrap();
            let (is_discovery, answer) = discovery(&Packet::of(&frame.bytes).unwrap(), &own());
            let answer = answer.unwrap();
            let packet = Packet::of(&answer.bytes).unwrap();
            assert!(is_discovery && packet.to == way.from);
            let layout = device_model::net::packet::Layout::of(&answer.bytes).unwrap();
            let pseudo = layout.pseudo_header(&answer.bytes, packet.payload.len()).unwrap();
            let total = pseudo + device_model::net::packet::sum(packet.payload);
            assert_eq!(device_model::net::packet::checksum(total), 0);
        }
    }

    #[test]
    fn addresses_that_are_not_of_the_link_are_not_learned() {
        let mut neighbors = Neighbors::default();
        for address in [
            "10.0.2.2",
            "10.0.3.15",
            "0.0.0.0",
            "2001:db8::1",
            "10.0.2.15",
            "fd17:625c:f037:2::a",
        ] {
            neighbors.learn(address.parse().unwrap(), [2; 6], &own());
        }
        assert_eq!(neighbors.0.len(), 2);
        assert_eq!(neighbors.any_v6(&own()), Some("fd17:625c:f037:2::a".parse().unwrap()));
    }
}
