//! The DHCP server of a network: it gives every guest the address that the network has for it.
//!
//! Guests get the lowest address that is free, or the one that they ask for if it is; it stays with their Ethernet addresses as
//! long as the network lives. A network whose process may be replaced keeps its leases in a file. Guests tell their names, and
//! learn what to boot.
//!
//! Spec: RFC 2131; RFC 2132 (options).

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::path::PathBuf;

use device_model::net::Mac;
use device_model::net::packet::be16;

use super::NatConfig;
use super::names;
use crate::desk;

/// Port of the server, and of clients.
pub(super) const SERVER: u16 = 67;
pub(super) const CLIENT: u16 = 68;
const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Where the server's name, the file's name and the options begin.
const FILE: usize = 108;
const FILE_END: usize = 236;
const OPTIONS: usize = 240;
/// Seconds.
const LEASE: u32 = 86_400;
/// The shortest message that all clients take (RFC 1542 §2.1).
const SHORTEST: usize = 300;

/// Options.
mod option {
    pub(super) const MASK: u8 = 1;
    pub(super) const ROUTER: u8 = 3;
    pub(super) const DNS: u8 = 6;
    pub(super) const HOST_NAME: u8 = 12;
    pub(super) const DOMAIN: u8 = 15;
    pub(super) const MTU: u8 = 26;
    pub(super) const BROADCAST: u8 = 28;
    pub(super) const REQUESTED: u8 = 50;
    pub(super) const LEASE: u8 = 51;
    pub(super) const TYPE: u8 = 53;
    pub(super) const SERVER: u8 = 54;
    pub(super) const TFTP_SERVER: u8 = 66;
    pub(super) const BOOT_FILE: u8 = 67;
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

/// Which addresses of a network of 24 bits are whose: last bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The gateway's, which is the DHCP server's too.
    pub gateway: u8,
    /// The name server's; it may be the gateway's.
    pub dns: u8,
    /// The first guest's.
    pub first: u8,
    /// The last guest's.
    pub last: u8,
    /// Guests are told that the gateway leads further.
    pub router: bool,
    /// There is a DHCP server.
    pub dhcp: bool,
}

impl Default for Addresses {
    fn default() -> Self {
        Self {
            gateway: 2,
            dns: 3,
            first: 15,
            last: 214,
            router: true,
            dhcp: true,
        }
    }
}

/// A guest's address, and its name for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lease {
    mac: Mac,
    address: Ipv4Addr,
    name: Option<String>,
}

/// What the server tells of its network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) network: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    pub(super) dns: Ipv4Addr,
    pub(super) domain: Option<String>,
    pub(super) mtu: u16,
    /// The file that guests boot.
    pub(super) boot_file: Option<String>,
    addresses: Addresses,
    leases: Vec<Lease>,
    /// Names that machines have for their guests.
    given: Vec<(Mac, String)>,
    file: Option<PathBuf>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) message: Vec<u8>,
    /// Where it goes; none if everybody has to hear it.
    pub(super) to: Option<Ipv4Addr>,
}

/// The address of a network of 24 bits that ends with `last`.
pub(super) fn at(network: Ipv4Addr, last: u8) -> Ipv4Addr {
    let [a, b, c, _] = network.octets();
    Ipv4Addr::new(a, b, c, last)
}

impl Server {
    pub(super) fn new(network: Ipv4Addr, addresses: Addresses, mtu: u16) -> Self {
        Self {
            network,
            gateway: at(network, addresses.gateway),
            dns: at(network, addresses.dns),
            domain: None,
            mtu,
            boot_file: None,
            addresses,
            leases: Vec::new(),
            given: Vec::new(),
            file: None,
        }
    }

    /// That of a network that is so configured.
    pub(super) fn of(config: &NatConfig) -> Self {
        let mut server = Self::new(config.network, config.addresses, config.mtu);
        server.boot_file.clone_from(&config.boot_file);
        if let Some(file) = &config.leases {
            server.keep_in(file.clone());
        }
        server
    }

    /// Keeps leases in this file from now on, beginning with those that are in it.
    pub(super) fn keep_in(&mut self, file: PathBuf) {
        let text = fs::read_to_string(&file).unwrap_or_default();
        for line in text.lines().take(usize::from(u8::MAX)) {
            let mut words = line.split(' ');
            let (Some(mac), Some(address)) = (words.next().and_then(desk::parse_mac), words.next()) else {
                continue;
            };
            let name = words.next().filter(|name| names::is_label(name)).map(str::to_owned);
            if let Ok(address) = address.parse()
                && self.is_free(address)
            {
                self.leases.push(Lease { mac, address, name });
            }
        }
        self.file = Some(file);
    }

    /// Writes the leases down. A file that cannot be written costs their memory only.
    fn write_down(&self) {
        if let Some(file) = &self.file
            && let Err(error) = write(file, &self.leases)
        {
            tracing::warn!(%error, "a network's leases cannot be kept");
        }
    }

    /// Whether an address may be given to somebody.
    fn is_free(&self, address: Ipv4Addr) -> bool {
        let [.., last] = address.octets();
        let Addresses { first, last: end, .. } = self.addresses;
        at(self.network, last) == address
            && (first..=end).contains(&last)
            && address != self.gateway
            && address != self.dns
            && self.leases.iter().all(|lease| lease.address != address)
    }

    /// The address that the first guest gets.
    pub(super) fn first(&self) -> Ipv4Addr {
        at(self.network, self.addresses.first)
    }

    /// The address of a guest, which it keeps: `wanted` if it is free.
    pub(super) fn lease(&mut self, mac: Mac, wanted: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        if let Some(lease) = self.leases.iter().find(|lease| lease.mac == mac) {
            return Some(lease.address);
        }
        let Addresses { first, last, .. } = self.addresses;
        let mut candidates = wanted
            .into_iter()
            .chain((first..=last).map(|last| at(self.network, last)));
        let address = candidates.find(|address| self.is_free(*address))?;
        let name = None;
        self.leases.push(Lease { mac, address, name });
        self.write_down();
        Some(address)
    }

    /// Somebody has been seen with this address: nobody else gets it.
    pub(super) fn note(&mut self, mac: Mac, address: Ipv4Addr) {
        if self.addresses.dhcp && self.is_free(address) {
            self.lease(mac, Some(address));
        }
    }

    /// Names the guest with this address of Ethernet; no name takes the name away.
    pub(super) fn give_name(&mut self, mac: Mac, name: Option<String>) {
        self.given.retain(|(other, _)| *other != mac);
        if let Some(name) = name
            && self.given.len() < usize::from(u8::MAX)
        {
            self.given.push((mac, name));
        }
    }

    /// Remembers what a guest calls itself.
    fn hear_name(&mut self, mac: Mac, message: &[u8]) {
        let name = find(message, option::HOST_NAME).and_then(|name| std::str::from_utf8(name).ok());
        // What comes behind a dot is its idea of the domain.
        let label = name.and_then(|name| name.trim_end_matches('\0').split('.').next());
        let Some(name) = label.filter(|name| names::is_label(name)) else {
            return;
        };
        let name = name.to_ascii_lowercase();
        if let Some(lease) = self.leases.iter_mut().find(|lease| lease.mac == mac)
            && lease.name.as_ref() != Some(&name)
        {
            lease.name = Some(name);
            self.write_down();
        }
    }

    /// The guests of this name. What a machine says goes before what guests say, and among these the first.
    pub(super) fn called(&self, name: &str) -> impl Iterator<Item = Mac> {
        let by_machine = self
            .given
            .iter()
            .filter(move |(_, other)| other.eq_ignore_ascii_case(name))
            .map(|(mac, _)| *mac);
        let by_guest = self
            .leases
            .iter()
            .filter(move |lease| {
                lease
                    .name
                    .as_ref()
                    .is_some_and(|other| other.eq_ignore_ascii_case(name))
            })
            .map(|lease| lease.mac);
        by_machine.chain(by_guest)
    }

    /// The address that a guest has.
    pub(super) fn address_at(&self, mac: Mac) -> Option<Ipv4Addr> {
        let lease = self.leases.iter().find(|lease| lease.mac == mac);
        lease.map(|lease| lease.address)
    }

    /// Where the guest of this name is.
    pub(super) fn address_of(&self, name: &str) -> Option<Ipv4Addr> {
        self.called(name).find_map(|mac| self.address_at(mac))
    }

    /// What a guest is called.
    pub(super) fn name_at(&self, mac: Mac) -> Option<&str> {
        let given = self.given.iter().find(|(other, _)| *other == mac);
        let heard = || self.leases.iter().find(|lease| lease.mac == mac)?.name.as_deref();
        given.map(|(_, name)| name.as_str()).or_else(heard)
    }

    /// Who is at an address.
    pub(super) fn name_of(&self, address: Ipv4Addr) -> Option<&str> {
        let lease = self.leases.iter().find(|lease| lease.address == address)?;
        self.name_at(lease.mac)
    }

    /// The answer to a message, if it gets one.
    pub(super) fn answer(&mut self, message: &[u8]) -> Option<Answer> {
        // A request of an Ethernet client's.
        let is_request = message.get(..3)? == [1, 1, 6] && message.get(FILE_END..OPTIONS)? == MAGIC;
        if !self.addresses.dhcp || !is_request {
            return None;
        }
        let mac: Mac = message.get(28..34)?.try_into().ok()?;
        let kind = *find(message, option::TYPE)?.first()?;
        let current = address(message.get(12..16)?)?;
        let named = find(message, option::SERVER).and_then(address);
        if named.is_some_and(|server| server != self.gateway) || matches!(kind, DECLINE | RELEASE) {
            return None;
        }
        let asked = find(message, option::REQUESTED).and_then(address).unwrap_or(current);
        let own = self.lease(mac, Some(asked))?;
        self.hear_name(mac, message);
        let wanted = asked;
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
        out.resize(FILE, 0);
        let boot_file = self.boot_file.as_deref().filter(|_| reply != NAK).unwrap_or_default();
        if boot_file.len() < FILE_END - FILE {
            out.extend(boot_file.as_bytes());
        }
        out.resize(FILE_END, 0);
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
            if self.addresses.router {
                add(option::ROUTER, &self.gateway.octets());
            }
            add(option::DNS, &self.dns.octets());
            add(option::MTU, &self.mtu.to_be_bytes());
            if !given.is_unspecified() {
                add(option::LEASE, &LEASE.to_be_bytes());
            }
            if let Some(domain) = &self.domain {
                add(option::DOMAIN, domain.as_bytes());
            }
            if !boot_file.is_empty() {
                add(option::TFTP_SERVER, self.gateway.to_string().as_bytes());
                add(option::BOOT_FILE, boot_file.as_bytes());
            }
        }
        out.push(option::END);
        if out.len() < SHORTEST {
            out.resize(SHORTEST, 0);
        }
        Some(out)
    }
}

fn write(file: &Path, leases: &[Lease]) -> io::Result<()> {
    let lines = leases.iter().map(|Lease { mac, address, name }| {
        let name = name.as_deref().unwrap_or_default();
        format!("{} {address} {name}\n", desk::shown(*mac))
    });
    let new = file.with_extension("new");
    fs::write(&new, lines.collect::<String>())?;
    fs::rename(&new, file)
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
        Server::new([10, 0, 2, 0].into(), Addresses::default(), 1500)
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

    #[test]
    fn replaced_server_knows_who_has_what() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("leases");
        let mut first = server();
        first.keep_in(file.clone());
        for mac in 1..=3 {
            first
                .answer(&request(mac, &[53, 1, DISCOVER, 12, 3, b'v', b'm', b'0' + mac]))
                .unwrap();
        }
        let mut second = server();
        second.keep_in(file.clone());
        assert_eq!(second.lease([8, 0, 0x27, 0, 0, 2], None), Some([10, 0, 2, 16].into()));
        assert_eq!(second.address_of("VM3"), Some([10, 0, 2, 17].into()));
        assert_eq!(second.lease([8, 0, 0x27, 0, 0, 9], None), Some([10, 0, 2, 18].into()));
        // What is no lease is passed over.
        fs::write(&file, "x\n08:00:27:00:00:01 10.0.9.15 \n08:00:27:00:00:01 10.0.2.2\n\n").unwrap();
        let mut third = server();
        third.keep_in(file);
        assert!(third.leases.is_empty());
    }

    #[test]
    fn guest_keeps_an_address_that_nobody_else_has() {
        let mut server = server();
        let ask = |last| [53, 1, REQUEST, 50, 4, 10, 0, 2, last];
        let ack = server.answer(&request(1, &ask(20))).unwrap();
        assert_eq!(find(&ack.message, option::TYPE), Some(&[ACK][..]));
        let nak = server.answer(&request(2, &ask(20))).unwrap();
        assert_eq!(find(&nak.message, option::TYPE), Some(&[NAK][..]));
        // A guest that was only seen has its address, too.
        server.note([8, 0, 0x27, 0, 0, 3], [10, 0, 2, 16].into());
        assert_eq!(server.lease([8, 0, 0x27, 0, 0, 4], None), Some([10, 0, 2, 17].into()));
        server.note([8, 0, 0x27, 0, 0, 5], [10, 0, 2, 2].into());
        assert_eq!(server.leases.len(), 4);
    }

    #[test]
    fn names_are_the_machines_first_and_then_the_guests() {
        let mut server = server();
        server
            .answer(&request(1, &[53, 1, DISCOVER, 12, 5, b'a', b'.', b'b', b'.', b'c']))
            .unwrap();
        server.answer(&request(2, &[53, 1, DISCOVER, 12, 1, b'-'])).unwrap();
        assert_eq!(server.address_of("a"), Some([10, 0, 2, 15].into()));
        assert_eq!(server.name_of([10, 0, 2, 16].into()), None);
        server.give_name([8, 0, 0x27, 0, 0, 2], Some("a".to_owned()));
        assert_eq!(server.address_of("A"), Some([10, 0, 2, 16].into()));
        assert_eq!(server.name_of([10, 0, 2, 16].into()), Some("a"));
        server.give_name([8, 0, 0x27, 0, 0, 2], None);
        assert_eq!(server.address_of("a"), Some([10, 0, 2, 15].into()));
    }

    #[test]
    fn guest_is_told_what_to_boot() {
        let mut server = server();
        server.boot_file = Some("pxe/boot.ipxe".to_owned());
        let offer = server.answer(&request(1, &[53, 1, DISCOVER])).unwrap();
        assert_eq!(offer.message[20..24], [10, 0, 2, 2]);
        assert_eq!(offer.message[108..122], *b"pxe/boot.ipxe\0");
        assert_eq!(find(&offer.message, option::BOOT_FILE), Some(&b"pxe/boot.ipxe"[..]));
        assert_eq!(find(&offer.message, option::TFTP_SERVER), Some(&b"10.0.2.2"[..]));
    }
}
