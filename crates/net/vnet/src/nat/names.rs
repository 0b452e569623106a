//! The name service of a network: names of guests, by what their machines and they themselves say.
//!
//! `NAME` and `NAME.oxbow.internal` are addresses of guests, `gateway.oxbow.internal` is the gateway's, and the reverse. Other
//! questions are not ours.
//!
//! Spec: RFC 1035 §4.1 (messages), §3.5 (IN-ADDR.ARPA); RFC 2308 §2.2 (a name without such data).

use std::net::Ipv4Addr;

use device_model::net::packet::be16;

use super::dhcp::Server;

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
const IN: u16 = 1;
/// Flags of an answer: it is one, of an authority, that could look further if it was asked to.
const ANSWER: u16 = 0x8480;
const RECURSION: u16 = 0x0100;
const NO_SUCH_NAME: u16 = 3;
const REFUSED: u16 = 5;
/// Seconds that an answer is good for: machines come and go.
const TTL: u32 = 5;

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
    Address(Ipv4Addr),
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

/// The address that a name of the reverse domain stands for.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let mut bytes = [0; 4];
    let mut parts = name.strip_suffix(".in-addr.arpa")?.split('.');
    for byte in bytes.iter_mut().rev() {
        *byte = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then_some(bytes.into())
}

fn look_up(question: &Question, server: &Server) -> Option<Known> {
    if let Some(address) = reversed(&question.name) {
        let name = match address {
            address if address == server.gateway => Some(GATEWAY),
            address => server.name_of(address),
        };
        return name.map(|name| Known::Name(format!("{name}.{DOMAIN}")));
    }
    let (label, ours) = label(&question.name)?;
    let address = match label {
        GATEWAY if ours => Some(server.gateway),
        "" => None,
        label => server.address_of(label),
    };
    match (address, ours) {
        (Some(address), _) => Some(Known::Address(address)),
        (None, true) => Some(Known::Nothing),
        (None, false) => None,
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

fn reply(message: &[u8], question: &Question, code: u16, record: Option<(u16, Vec<u8>)>) -> Option<Vec<u8>> {
    let mut out = message.get(..question.end)?.to_vec();
    let flags = ANSWER | be16(message, 2)? & RECURSION | code;
    let answers = u16::from(record.is_some());
    for (at, value) in [(2, flags), (4, 1), (6, answers), (8, 0), (10, 0)] {
        out.get_mut(at..at + 2)?.copy_from_slice(&value.to_be_bytes());
    }
    if let Some((kind, data)) = record {
        // A pointer to the name in the question.
        out.extend([0xc0, 12]);
        out.extend(kind.to_be_bytes());
        out.extend(IN.to_be_bytes());
        out.extend(TTL.to_be_bytes());
        out.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
        out.extend(data);
    }
    Some(out)
}

/// The answer to a question about the network itself; none if it is about something else.
pub(super) fn answer(message: &[u8], server: &Server) -> Option<Vec<u8>> {
    let question = question(message).filter(|question| question.class == IN)?;
    let record = match (look_up(&question, server)?, question.kind) {
        (Known::Address(address), A) => Some((A, address.octets().to_vec())),
        (Known::Name(name), PTR) => Some((PTR, name_bytes(&name))),
        (Known::Nothing, _) => return reply(message, &question, NO_SUCH_NAME, None),
        // There is such a name, without such data.
        (Known::Address(_) | Known::Name(_), _) => None,
    };
    reply(message, &question, 0, record)
}

/// The answer of a server that does not look further.
pub(super) fn refusal(message: &[u8]) -> Option<Vec<u8>> {
    reply(message, &question(message)?, REFUSED, None)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::dhcp::Addresses;
    use super::*;

    const AAAA: u16 = 28;

    fn server() -> Server {
        let mut server = Server::new([10, 0, 2, 0].into(), Addresses::default(), 1500);
        server.lease([2; 6], None).unwrap();
        server.give_name([2; 6], Some("web".to_owned()));
        server
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
            let answer = answer(&ask(name, A), &server()).unwrap();
            assert_eq!(answer[..8], [0x12, 0x34, 0x85, 0x80, 0, 1, 0, 1], "{name}");
            assert_eq!(answer[answer.len() - 6..], [0, 4, 10, 0, 2, 15], "{name}");
        }
        let gateway = answer(&ask("gateway.oxbow.internal", A), &server()).unwrap();
        assert_eq!(gateway[gateway.len() - 4..], [10, 0, 2, 2]);
        let back = answer(&ask("15.2.0.10.in-addr.arpa", PTR), &server()).unwrap();
        assert!(back.ends_with(b"\x03web\x05oxbow\x08internal\0"));
    }

    #[test]
    fn names_of_the_domain_are_known_or_are_none_and_others_are_not_ours() {
        let nobody = answer(&ask("nobody.oxbow.internal", A), &server()).unwrap();
        assert_eq!(nobody[3] & 15, 3);
        // No address of IPv6 is known: an answer without one, or the resolver asks on.
        let answer6 = answer(&ask("web", AAAA), &server()).unwrap();
        assert_eq!(answer6[3..8], [0x80, 0, 1, 0, 0]);
        for name in [
            "nobody",
            "example.org",
            "notoxbow.internal",
            "1.1.1.1.in-addr.arpa",
            "x.15.2.0.10.in-addr.arpa",
        ] {
            assert_eq!(answer(&ask(name, A), &server()), None, "{name}");
        }
        assert_eq!(refusal(&ask("example.org", A)).unwrap()[3] & 15, 5);
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(message in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (answer(&message, &server()), refusal(&message));
            let mut question = ask("web", A);
            question.extend(message);
            prop_assert!(answer(&question, &server()).is_some());
        }
    }
}
