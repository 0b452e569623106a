//! The DHCPv6 server of a NAT network: addresses for guests that ask for them, and the name server for those that only want that.
//!
//! Router advertisements say how guests get their addresses; this is for those that rather ask. An address is made of the
//! guest's Ethernet address and is the same each time, so there is nothing to remember. Relays, prefixes and temporary addresses are not served.
//!
//! Spec: RFC 8415; RFC 3646 (name servers).

use std::net::Ipv6Addr;

use device_model::net::Mac;
use device_model::net::packet::be16;

use super::link::Own;

/// Port of the server, and of clients.
pub(super) const SERVER: u16 = 547;
pub(super) const CLIENT: u16 = 546;
/// Where clients find servers.
pub(super) const GROUP: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Seconds: of an address preferred and valid, and until a client asks again.
const PREFERRED: u32 = 43_200;
const VALID: u32 = 86_400;
/// Identity associations of one message that are answered.
const ASSOCIATIONS: usize = 4;
/// Bytes of a client's identifier at most (RFC 8415 §11.1).
const IDENTIFIER: usize = 130;

/// Kinds of message.
mod kind {
    pub(super) const SOLICIT: u8 = 1;
    pub(super) const ADVERTISE: u8 = 2;
    pub(super) const REQUEST: u8 = 3;
    pub(super) const CONFIRM: u8 = 4;
    pub(super) const RENEW: u8 = 5;
    pub(super) const REBIND: u8 = 6;
    pub(super) const REPLY: u8 = 7;
    pub(super) const RELEASE: u8 = 8;
    pub(super) const INFORMATION: u8 = 11;
}

/// Options.
mod option {
    pub(super) const CLIENT: u16 = 1;
    pub(super) const SERVER: u16 = 2;
    pub(super) const IA_NA: u16 = 3;
    pub(super) const ADDRESS: u16 = 5;
    pub(super) const STATUS: u16 = 13;
    pub(super) const RAPID_COMMIT: u16 = 14;
    pub(super) const DNS: u16 = 23;
}

/// The options of a message or of another option.
fn options(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (code, len) = (be16(bytes, 0)?, usize::from(be16(bytes, 2)?));
        let value = bytes.get(4..4 + len)?;
        bytes = bytes.get(4 + len..)?;
        Some((code, value))
    })
}

fn add(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend(code.to_be_bytes());
    out.extend(u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
    out.extend(value);
}

/// Our identifier: by our Ethernet address (RFC 8415 §11.4).
fn identifier(own: &Own) -> Vec<u8> {
    let mut out = vec![0, 3, 0, 1];
    out.extend(own.mac);
    out
}

/// Whether an answer gives its client an address for good.
pub(super) fn grants(answer: &[u8]) -> bool {
    let rest = answer.get(4..).unwrap_or_default();
    answer.first() == Some(&kind::REPLY) && options(rest).any(|(code, _)| code == option::IA_NA)
}

/// The address of the guest with an Ethernet address: in a range of its own, apart from those that guests make up.
pub(super) fn address(own: &Own, mac: Mac) -> Option<Ipv6Addr> {
    let [a, b, c, d, ..] = own.v6?.prefix.segments();
    let [e, f, g, h, i, j] = mac;
    let word = |high, low| u16::from_be_bytes([high, low]);
    Some(Ipv6Addr::new(a, b, c, d, 0xd, word(e, f), word(g, h), word(i, j)))
}

/// The answer to a message of the guest with an Ethernet address, if it gets one.
pub(super) fn answer(message: &[u8], mac: Mac, own: &Own) -> Option<Vec<u8>> {
    let v6 = own.v6?;
    let (&asked, rest) = message.split_first()?;
    let (transaction, rest) = rest.split_at_checked(3)?;
    let find = |wanted| options(rest).find(|(code, _)| *code == wanted).map(|(_, value)| value);
    let client = find(option::CLIENT).filter(|id| !id.is_empty() && id.len() <= IDENTIFIER);
    let server = find(option::SERVER);
    let ours = identifier(own);
    // Whom a message of this kind has to name (RFC 8415 §16).
    let named = match asked {
        kind::SOLICIT | kind::CONFIRM | kind::REBIND => client.is_some() && server.is_none(),
        kind::REQUEST | kind::RENEW | kind::RELEASE => client.is_some() && server == Some(&ours),
        kind::INFORMATION => server.is_none_or(|server| server == ours),
        _ => false,
    };
    if !named {
        return None;
    }
    let rapid = asked == kind::SOLICIT && find(option::RAPID_COMMIT).is_some();
    let mut out = vec![if asked == kind::SOLICIT && !rapid {
        kind::ADVERTISE
    } else {
        kind::REPLY
    }];
    out.extend(transaction);
    if let Some(client) = client {
        add(&mut out, option::CLIENT, client);
    }
    add(&mut out, option::SERVER, &ours);
    if rapid {
        add(&mut out, option::RAPID_COMMIT, &[]);
    }
    match asked {
        kind::CONFIRM => {
            // Zero: the addresses are of this link. Others are not confirmed (RFC 8415 §18.3.3).
            confirms(rest, own).then(|| add(&mut out, option::STATUS, &[0, 0]))?;
        }
        kind::RELEASE => add(&mut out, option::STATUS, &[0, 0]),
        kind::INFORMATION => {}
        _ => {
            let given = address(own, mac)?;
            for association in associations(rest).take(ASSOCIATIONS) {
                add(&mut out, option::IA_NA, &granted(association, given)?);
            }
        }
    }
    add(&mut out, option::DNS, &v6.dns.octets());
    Some(out)
}

fn associations(rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    options(rest)
        .filter(|(code, _)| *code == option::IA_NA)
        .map(|(_, value)| value)
}

/// The addresses that a client has of an association.
fn addresses(association: &[u8]) -> impl Iterator<Item = Ipv6Addr> {
    let inner = options(association.get(12..).unwrap_or_default());
    inner
        .filter(|(code, _)| *code == option::ADDRESS)
        .filter_map(|(_, value)| Some(<[u8; 16]>::try_from(value.get(..16)?).ok()?.into()))
}

fn confirms(rest: &[u8], own: &Own) -> bool {
    let mut all = associations(rest).flat_map(addresses).peekable();
    all.peek().is_some() && all.all(|address| own.is_on_link(address.into()))
}

/// The answer to an association: the address, and that others that the client has are no more.
fn granted(association: &[u8], given: Ipv6Addr) -> Option<Vec<u8>> {
    let mut out = association.get(..4)?.to_vec();
    out.extend((PREFERRED / 2).to_be_bytes());
    out.extend((PREFERRED / 5 * 4).to_be_bytes());
    let mut one = |address: Ipv6Addr, preferred: u32, valid: u32| {
        let mut value = address.octets().to_vec();
        value.extend(preferred.to_be_bytes());
        value.extend(valid.to_be_bytes());
        add(&mut out, option::ADDRESS, &value);
    };
    one(given, PREFERRED, VALID);
    for other in addresses(association)
        .filter(|other| *other != given)
        .take(ASSOCIATIONS)
    {
        one(other, 0, 0);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::link::tests::own;
    use super::*;

    const MAC: Mac = [8, 0, 0x27, 0, 0, 1];

    fn message(kind: u8, parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut out = vec![kind, 1, 2, 3];
        parts.iter().for_each(|(code, value)| add(&mut out, *code, value));
        out
    }

    fn find(message: &[u8], wanted: u16) -> Option<Vec<u8>> {
        let mut all = options(&message[4..]);
        all.find(|(code, _)| *code == wanted).map(|(_, value)| value.to_vec())
    }

    #[test]
    fn guest_is_advertised_and_given_its_address() {
        let id: &[u8] = &[0, 3, 0, 1, 8, 0, 0x27, 0, 0, 1];
        let association: &[u8] = &[0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0];
        let solicit = message(kind::SOLICIT, &[(option::CLIENT, id), (option::IA_NA, association)]);
        let offer = answer(&solicit, MAC, &own()).unwrap();
        assert_eq!(offer[..4], [kind::ADVERTISE, 1, 2, 3]);
        let server = find(&offer, option::SERVER).unwrap();
        let request = message(
            kind::REQUEST,
            &[
                (option::CLIENT, id),
                (option::SERVER, &server),
                (option::IA_NA, association),
            ],
        );
        let reply = answer(&request, MAC, &own()).unwrap();
        assert_eq!(reply[0], kind::REPLY);
        let association = find(&reply, option::IA_NA).unwrap();
        assert_eq!(association[..4], [0, 0, 0, 7]);
        let address = addresses(&association).next().unwrap();
        assert_eq!(address, "fd17:625c:f037:2:d:800:2700:1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(find(&reply, option::DNS).unwrap()[15], 3);
        // At once, where the guest wants that.
        let rapid = [&solicit[..], &[0, 14, 0, 0]].concat();
        assert_eq!(answer(&rapid, MAC, &own()).unwrap()[0], kind::REPLY);
    }

    #[test]
    fn guest_without_need_of_an_address_learns_the_name_server() {
        let reply = answer(&message(kind::INFORMATION, &[]), MAC, &own()).unwrap();
        assert_eq!(reply[0], kind::REPLY);
        assert!(find(&reply, option::DNS).is_some() && find(&reply, option::IA_NA).is_none());
    }

    #[test]
    fn messages_for_other_servers_and_of_no_client_get_no_answer() {
        let request = message(kind::REQUEST, &[(option::CLIENT, &[1]), (option::SERVER, &[9])]);
        assert_eq!(answer(&request, MAC, &own()), None);
        assert_eq!(answer(&message(kind::SOLICIT, &[]), MAC, &own()), None);
        let none = Own { v6: None, ..own() };
        assert_eq!(answer(&message(kind::INFORMATION, &[]), MAC, &none), None);
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(kind in 0u8..14, tail in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut message = message(kind, &[(option::CLIENT, &[1])]);
            message.extend(tail);
            if let Some(answer) = answer(&message, MAC, &own()) {
                prop_assert!(answer.len() < 1200);
            }
        }
    }
}
