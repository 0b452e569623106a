//! The DHCP server of a NAT network: it gives every guest the address that the network has for it.
//!
//! Leases are given out in the order in which guests come, and stay with their Ethernet addresses as long as the network lives.
//!
//! Spec: RFC 2131; RFC 2132 (options).

use std::net::Ipv4Addr;

use device_model::net::Mac;
use device_model::net::packet::be16;

/// Port of the server, and of clients.
pub(super) const SERVER: u16 = 67;
pub(super) const CLIENT: u16 = 68;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Where the options begin.
const OPTIONS: usize = 240;
/// Seconds.
const LEASE: u32 = 86_400;
/// Addresses that are given out: from the fifteenth on.
const FIRST: u8 = 15;
const LEASES: usize = 200;
/// The shortest message that all clients take (RFC 1542 §2.1).
const SHORTEST: usize = 300;

/// Options.
mod option {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE: u8 = 51;
    pub(super) const TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const END: u8 = 255;
}

/// Kinds of message.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const DECLINE: u8 = 4;
const ACK: u8 = 5;
const NAK: u8 = 6;
const RELEASE: u8 = 7;
const INFORM: u8 = 8;

/// What the server tells of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) network: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    pub(super) dns: Ipv4Addr,
    pub(super) domain: Option<String>,
    pub(super) mtu: u16,
    leases: Vec<Mac>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) message: Vec<u8>,
    /// Where it goes; none if everybody has to hear it.
    pub(super) to: Option<Ipv4Addr>,
}

impl Server {
    pub(super) fn new(network: Ipv4Addr, gateway: Ipv4Addr, dns: Ipv4Addr, mtu: u16) -> Self {
        Self {
            network,
            gateway,
            dns,
            domain: None,
            mtu,
            leases: Vec::new(),
        }
    }

    /// The address number `index`.
    fn address(&self, index: usize) -> Option<Ipv4Addr> {
        let last = u8::try_from(index).ok()?.checked_add(FIRST)?;
        let [a, b, c, _] = self.network.octets();
        Some(Ipv4Addr::new(a, b, c, last))
    }

    /// The address that the first guest gets.
    pub(super) fn first(&self) -> Ipv4Addr {
        self.address(0).unwrap_or(self.network)
    }

    /// The address of a guest, which it keeps.
    fn lease(&mut self, mac: Mac) -> Option<Ipv4Addr> {
        let known = self.leases.iter().position(|other| *other == mac);
        let index = match known {
            Some(index) => index,
            None if self.leases.len() < LEASES => {
                self.leases.push(mac);
                self.leases.len() - 1
            }
            None => return None,
        };
        self.address(index)
    }

    /// The answer to a message, if it gets one.
    pub(super) fn answer(&mut self, message: &[u8]) -> Option<Answer> {
        // A request of an Ethernet client's.
        if message.get(..3)? != [1, 1, 6] || message.get(236..OPTIONS)? != MAGIC {
            return None;
        }
        let mac: Mac = message.get(28..34)?.try_into().ok()?;
        let kind = *find(message, option::TYPE)?.first()?;
        let current = address(message.get(12..16)?)?;
        let named = find(message, option::SERVER).and_then(address);
        if named.is_some_and(|server| server != self.gateway) || matches!(kind, DECLINE | RELEASE) {
            return None;
        }
        let own = self.lease(mac)?;
        let wanted = find(message, option::REQUESTED).and_then(address).unwrap_or(current);
        let reply = match kind {
            DISCOVER => OFFER,
            REQUEST if wanted == own => ACK,
            REQUEST => NAK,
            INFORM => ACK,
            _ => return None,
        };
        let given = if kind == INFORM || reply == NAK {
            Ipv4Addr::UNSPECIFIED
        } else {
            own
        };
        let broadcast = be16(message, 10)? & 0x8000 != 0 || reply == NAK;
        let to = match (broadcast, current.is_unspecified()) {
            (true, _) => None,
            (false, true) => Some(own),
            (false, false) => Some(current),
        };
        let message = self.message(message, reply, given)?;
        Some(Answer { message, to })
    }

    fn message(&self, request: &[u8], reply: u8, given: Ipv4Addr) -> Option<Vec<u8>> {
        let mut out = vec![2, 1, 6, 0];
        out.extend_from_slice(request.get(4..8)?);
        // Seconds, flags, the client's address.
        out.extend([0, 0]);
        out.extend_from_slice(request.get(10..12)?);
        out.extend_from_slice(request.get(12..16)?);
        out.extend(given.octets());
        out.extend(self.gateway.octets());
        // The relay's address, the client's hardware address.
        out.extend_from_slice(request.get(24..44)?);
        out.resize(236, 0);
        out.extend(MAGIC);
        let mut add = |code: u8, value: &[u8]| {
            let len = u8::try_from(value.len()).unwrap_or(0);
            out.extend([code, len]);
            out.extend(value.iter().take(len.into()));
        };
        add(option::TYPE, &[reply]);
        add(option::SERVER, &self.gateway.octets());
        if reply != NAK {
            let [a, b, c, _] = self.network.octets();
            add(option::MASK, &[255, 255, 255, 0]);
            add(option::BROADCAST, &[a, b, c, 255]);
            add(option::ROUTER, &self.gateway.octets());
            add(option::DNS, &self.dns.octets());
            add(option::MTU, &self.mtu.to_be_bytes());
            if !given.is_unspecified() {
                add(option::LEASE, &LEASE.to_be_bytes());
            }
            if let Some(domain) = &self.domain {
                add(option::DOMAIN, domain.as_bytes());
            }
        }
        out.push(option::END);
        if out.len() < SHORTEST {
            out.resize(SHORTEST, 0);
        }
        Some(out)
    }
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    let bytes: [u8; 4] = bytes.get(..4)?.try_into().ok()?;
    Some(bytes.into())
}

/// An option of a message.
fn find(message: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = message.get(OPTIONS..)?;
    loop {
        let (code, after) = rest.split_first()?;
        match *code {
            0 => rest = after,
            option::END => return None,
            code => {
                let (len, after) = after.split_first()?;
                let (value, after) = after.split_at_checked(usize::from(*len))?;
                if code == wanted {
                    return Some(value);
                }
                rest = after;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn server() -> Server {
        Server::new([10, 0, 2, 0].into(), [10, 0, 2, 2].into(), [10, 0, 2, 3].into(), 1500)
    }

    fn request(mac: u8, options: &[u8]) -> Vec<u8> {
        let mut out = vec![1, 1, 6, 0, 1, 2, 3, 4];
        out.resize(28, 0);
        out.extend([8, 0, 0x27, 0, 0, mac]);
        out.resize(236, 0);
        out.extend(MAGIC);
        out.extend_from_slice(options);
        out.push(255);
        out
    }

    #[test]
    fn guest_is_offered_and_given_its_address() {
        let mut server = server();
        let offer = server.answer(&request(1, &[53, 1, DISCOVER])).unwrap();
        assert_eq!(offer.message[16..20], [10, 0, 2, 15]);
        assert_eq!(offer.message[4..8], [1, 2, 3, 4]);
        assert_eq!(find(&offer.message, option::TYPE), Some(&[OFFER][..]));
        assert_eq!(find(&offer.message, option::ROUTER), Some(&[10, 0, 2, 2][..]));
        assert_eq!(find(&offer.message, option::DNS), Some(&[10, 0, 2, 3][..]));
        assert_eq!(offer.to, Some([10, 0, 2, 15].into()));
        let ask = [53, 1, REQUEST, 54, 4, 10, 0, 2, 2, 50, 4, 10, 0, 2, 15];
        let ack = server.answer(&request(1, &ask)).unwrap();
        assert_eq!(find(&ack.message, option::TYPE), Some(&[ACK][..]));
        let second = server.answer(&request(2, &[53, 1, DISCOVER])).unwrap();
        assert_eq!(second.message[16..20], [10, 0, 2, 16]);
    }

    #[test]
    fn guest_with_anothers_address_is_refused_and_other_servers_are_left_alone() {
        let mut server = server();
        let nak = server
            .answer(&request(1, &[53, 1, REQUEST, 50, 4, 192, 168, 0, 9]))
            .unwrap();
        assert_eq!(find(&nak.message, option::TYPE), Some(&[NAK][..]));
        assert_eq!(nak.to, None);
        assert_eq!(server.answer(&request(1, &[53, 1, REQUEST, 54, 4, 9, 9, 9, 9])), None);
        assert_eq!(server.answer(&request(1, &[53, 1, RELEASE])), None);
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(cut in 0usize..300, options in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut message = request(1, &options);
            message.truncate(cut.max(200));
            let _ = server().answer(&message);
        }
    }

    #[test]
    fn guests_beyond_all_addresses_get_none() {
        let mut server = server();
        for n in 0..=255u8 {
            let answer = server.answer(&request(n, &[53, 1, DISCOVER]));
            assert_eq!(answer.is_some(), n < 200);
        }
    }
}
