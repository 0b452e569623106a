//! The name service of a network: names of guests, by what their machines and they themselves say.
//!
//! `NAME` and `NAME.oxbow.internal` are addresses of guests, those of IPv6 where they are known, `gateway.oxbow.internal` is the gateway's, and the reverse. Other
//! questions are not ours.
//!
//! Spec: RFC 1035 §4.1 (messages), §3.5 (IN-ADDR.ARPA); RFC 3596 (IPv6); RFC 2308 §2.2 (a name without such data).

use std::net::IpAddr;
use std::net::Ipv6Addr;

use device_model::net::packet::be16;

use super::dhcp::Server;
use super::link::Neighbors;
use super::link::Own;

/// The domain of guests.
const DOMAIN: &str = "oxbow.internal";
const GATEWAY: &str = "gateway";
/// Bytes of a header, of a label and of a name at most.
const HEADER: usize = 12;
const LABEL: usize = 63;
const NAME: usize = 255;
/// Types and the class of a question.
const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const IN: u16 = 1;
/// Flags of an answer: it is one, of an authority, that could look further if it was asked to.
const ANSWER: u16 = 0x8480;
const RECURSION: u16 = 0x0100;
const NO_SUCH_NAME: u16 = 3;
const REFUSED: u16 = 5;
/// Seconds that an answer is good for: machines come and go.
const TTL: u32 = 5;
/// Addresses of an answer at most.
const ADDRESSES: usize = 8;

/// Whom names are looked for among.
#[derive(Clone, Copy)]
pub(super) struct Hosts<'a> {
    pub(super) server: &'a Server,
    pub(super) own: &'a Own,
    pub(super) neighbors: &'a Neighbors,
}

/// Whether a word may be a machine's name in the network.
pub(super) fn is_label(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    (1..=LABEL).contains(&name.len()) && plain && !name.starts_with('-') && !name.ends_with('-')
}

/// A question.
struct Question {
    name: String,
    kind: u16,
    class: u16,
    /// Where it ends in the message.
    end: usize,
}

/// The one question of a message; none if it is no plain question.
fn question(message: &[u8]) -> Option<Question> {
    // A question with one entry: a standard query, no response.
    if be16(message, 2)? & 0xf800 != 0 || be16(message, 4)? != 1 {
        return None;
    }
    let (mut name, mut at) = (String::new(), HEADER);
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1;
        if len == 0 {
            break;
        }
        // No pointers: there is nothing yet to point to.
        if len > LABEL || name.len() + len > NAME {
            return None;
        }
        let label = message.get(at..at + len)?;
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(label).ok()?);
        at += len;
    }
    Some(Question {
        name: name.to_ascii_lowercase(),
        kind: be16(message, at)?,
        class: be16(message, at + 2)?,
        end: at + 4,
    })
}

/// What is known of a name.
enum Known {
    Addresses(Vec<IpAddr>),
    Name(String),
    Nothing,
}

/// The guest's own part of a name; none if the name is not of our domain. A name of one word may be a guest's.
fn label(name: &str) -> Option<(&str, bool)> {
    match name.strip_suffix(DOMAIN) {
        Some("") => Some(("", true)),
        Some(rest) => rest.strip_suffix('.').map(|label| (label, true)),
        None => (!name.contains('.')).then_some((name, false)),
    }
}

/// The address that a name of the reverse domains stands for.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(rest) = name.strip_suffix(".ip6.arpa") {
        let (mut address, mut count) = (0, 0);
        // Digits, the last one first.
        for digit in rest.split('.').collect::<Vec<_>>().into_iter().rev() {
            let [digit] = digit.as_bytes() else { return None };
            address = address << 4 | u128::from(char::from(*digit).to_digit(16)?);
            count += 1;
        }
        return (count == 32).then(|| Ipv6Addr::from_bits(address).into());
    }
    let mut bytes = [0; 4];
    let mut parts = name.strip_suffix(".in-addr.arpa")?.split('.');
    for byte in bytes.iter_mut().rev() {
        *byte = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(bytes.into())
}

impl Hosts<'_> {
    /// The gateway's addresses.
    fn gateway(&self) -> Vec<IpAddr> {
        let v6 = self.own.v6.map(|v6| v6.gateway.into());
        std::iter::once(self.server.gateway.into()).chain(v6).collect()
    }

    /// Addresses of the guest of a name.
    fn guest(&self, name: &str) -> Vec<IpAddr> {
        let addresses = |mac| {
            let v6 = self.neighbors.v6_of(mac, self.own).into_iter().map(IpAddr::V6);
            let all: Vec<IpAddr> = self
                .server
                .address_at(mac)
                .map(IpAddr::V4)
                .into_iter()
                .chain(v6)
                .collect();
            (!all.is_empty()).then_some(all)
        };
        self.server.called(name).find_map(addresses).unwrap_or_default()
    }

    /// Who is at an address.
    fn name_of(&self, address: IpAddr) -> Option<&str> {
        if self.gateway().contains(&address) {
            return Some(GATEWAY);
        }
        match address {
            IpAddr::V4(address) => self.server.name_of(address),
            IpAddr::V6(_) => self.server.name_at(self.neighbors.find(address)?),
        }
    }

    fn look_up(&self, question: &Question) -> Option<Known> {
        if let Some(address) = reversed(&question.name) {
            let name = self.name_of(address);
            return name.map(|name| Known::Name(format!("{name}.{DOMAIN}")));
        }
        let (label, ours) = label(&question.name)?;
        let addresses = match label {
            GATEWAY if ours => self.gateway(),
            "" => Vec::new(),
            label => self.guest(label),
        };
        match (addresses.is_empty(), ours) {
            (false, _) => Some(Known::Addresses(addresses)),
            (true, true) => Some(Known::Nothing),
            (true, false) => None,
        }
    }
}

fn name_bytes(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.') {
        out.push(u8::try_from(label.len()).unwrap_or(0));
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

fn reply(message: &[u8], question: &Question, code: u16, records: &[Vec<u8>]) -> Option<Vec<u8>> {
    let mut out = message.get(..question.end)?.to_vec();
    let flags = ANSWER | be16(message, 2)? & RECURSION | code;
    let answers = u16::try_from(records.len()).ok()?;
    for (at, value) in [(2, flags), (4, 1), (6, answers), (8, 0), (10, 0)] {
        out.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
    }
    for data in records {
        // A pointer to the name in the question.
        out.extend([0xc0, 12]);
        out.extend(question.kind.to_be_bytes());
        out.extend(IN.to_be_bytes());
        out.extend(TTL.to_be_bytes());
        out.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        out.extend(data);
    }
    Some(out)
}

/// The answer to a question about the network itself; none if it is about something else.
pub(super) fn answer(message: &[u8], hosts: &Hosts<'_>) -> Option<Vec<u8>> {
    let question = question(message).filter(|question| question.class == IN)?;
    let records = match hosts.look_up(&question)? {
        Known::Addresses(addresses) => addresses
            .into_iter()
            .filter_map(|address| match (address, question.kind) {
                (IpAddr::V4(address), A) => Some(address.octets().to_vec()),
                (IpAddr::V6(address), AAAA) => Some(address.octets().to_vec()),
                _ => None,
            })
            .take(ADDRESSES)
            .collect(),
        Known::Name(name) if question.kind == PTR => vec![name_bytes(&name)],
        // There is such a name, without such data.
        Known::Name(_) => Vec::new(),
        Known::Nothing => return reply(message, &question, NO_SUCH_NAME, &[]),
    };
    reply(message, &question, 0, &records)
}

/// The answer of a server that does not look further.
pub(super) fn refusal(message: &[u8]) -> Option<Vec<u8>> {
    reply(message, &question(message)?, REFUSED, &[])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::NatConfig;
    use super::super::dhcp6;
    use super::*;

    const GUEST: [u8; 6] = [2; 6];

    /// What a network knows of a guest with this address of IPv6.
    fn answer_with(v6: Option<IpAddr>, message: &[u8]) -> Option<Vec<u8>> {
        let config = NatConfig::default();
        let (mut server, own) = (Server::of(&config), Own::of(&config));
        server.lease(GUEST, None).unwrap();
        server.give_name(GUEST, Some("web".to_owned()));
        let mut neighbors = Neighbors::default();
        v6.into_iter().for_each(|v6| neighbors.learn(v6, GUEST, &own));
        let hosts = Hosts {
            server: &server,
            own: &own,
            neighbors: &neighbors,
        };
        super::answer(message, &hosts)
    }

    fn answer(message: &[u8]) -> Option<Vec<u8>> {
        answer_with(None, message)
    }

    fn ask(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        out.extend(name_bytes(name));
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out
    }

    #[test]
    fn guests_are_found_by_name_and_by_address() {
        for name in ["web", "WEB", "web.oxbow.internal"] {
            let answer = answer(&ask(name, A)).unwrap();
            assert_eq!(answer[..8], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1], "{name}");
            assert_eq!(answer[answer.len() - 6..], [0, 4, 10, 0, 2, 15], "{name}");
        }
        let gateway = answer(&ask("gateway.oxbow.internal", A)).unwrap();
        assert_eq!(gateway[gateway.len() - 4..], [10, 0, 2, 2]);
        let back = answer(&ask("15.2.0.10.in-addr.arpa", PTR)).unwrap();
        assert!(back.ends_with(b"\x03web\x05oxbow\x08internal\0"));
    }

    #[test]
    fn addresses_of_ipv6_are_told_once_they_are_known() {
        let given = dhcp6::address(&Own::of(&NatConfig::default()), GUEST).unwrap();
        let made_up: Ipv6Addr = "fd17:625c:f037:2::5".parse().unwrap();
        for address in [given, made_up] {
            let told = answer_with(Some(address.into()), &ask("web.oxbow.internal", AAAA)).unwrap();
            assert_eq!(told[6..8], [0, 1]);
            assert!(told.ends_with(&address.octets()), "{told:x?}");
            let digits: Vec<String> = address
                .octets()
                .iter()
                .rev()
                .flat_map(|byte| [format!("{:x}", byte & 15), format!("{:x}", byte >> 4)])
                .collect();
            let back = ask(&format!("{}.ip6.arpa", digits.join(".")), PTR);
            let told = answer_with(Some(address.into()), &back).unwrap();
            assert!(told.ends_with(b"\x03web\x05oxbow\x08internal\0"));
            assert_eq!(answer(&back), None, "nobody is known to be there");
            let short = ask(&format!("{}.ip6.arpa", digits[1..].join(".")), PTR);
            assert_eq!(answer_with(Some(address.into()), &short), None);
        }
        let link_local = answer_with(Some("fe80::5".parse().unwrap()), &ask("web", AAAA)).unwrap();
        assert_eq!(link_local[6..8], [0, 0]);
        let gateway = answer(&ask("gateway.oxbow.internal", AAAA)).unwrap();
        assert!(gateway.ends_with(&[0, 2]) && gateway[6..8] == [0, 1]);
    }

    #[test]
    fn names_of_the_domain_are_known_or_are_none_and_others_are_not_ours() {
        let nobody = answer(&ask("nobody.oxbow.internal", A)).unwrap();
        assert_eq!(nobody[3] & 15, 3);
        // No address of IPv6 is known: an answer without one, or the resolver asks on.
        let answer6 = answer(&ask("web", AAAA)).unwrap();
        assert_eq!(answer6[3..8], [0x80, 0, 1, 0, 0]);
        for name in [
            "nobody",
            "example.org",
            "notoxbow.internal",
            "1.1.1.1.in-addr.arpa",
            "x.15.2.0.10.in-addr.arpa",
        ] {
            assert_eq!(answer(&ask(name, A)), None, "{name}");
        }
        assert_eq!(refusal(&ask("example.org", A)).unwrap()[3] & 15, 5);
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(message in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (answer(&message), refusal(&message));
            let mut question = ask("web", A);
            question.extend(message);
            prop_assert!(answer(&question).is_some());
        }
    }
}
