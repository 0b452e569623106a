//! Network cards, and what their cables are plugged into.

use std::fmt;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

/// Cards of a machine at most.
pub const NICS: usize = 8;

/// An Ethernet address of one card, written `08:00:27:12:34:56`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl FromStr for MacAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no Ethernet address; write one such as 08:00:27:12:34:56");
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        let [first, ..] = bytes;
        if parts.next().is_some() {
            return Err(wrong());
        }
        if first & 1 != 0 {
            return Err(format!(
                "`{text}` is the address of a group; a card's own has an even first byte"
            ));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl TryFrom<String> for MacAddress {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

/// Which card it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NicModel {
    /// Intel PRO/1000 MT Desktop, 82540EM.
    #[default]
    E1000,
    /// Intel PRO/1000 T Server, 82543GC.
    #[serde(rename = "82543gc")]
    I82543Gc,
    /// Intel PRO/1000 MT Server, 82545EM.
    #[serde(rename = "82545em")]
    I82545Em,
    /// AMD PCnet-FAST III, Am79C973.
    Pcnet,
    /// AMD PCnet-PCI II, Am79C970A.
    Am79C970A,
    /// virtio: what a microvm has, too.
    Virtio,
}

impl NicModel {
    const ALL: [Self; 6] = [
        Self::E1000,
        Self::I82543Gc,
        Self::I82545Em,
        Self::Pcnet,
        Self::Am79C970A,
        Self::Virtio,
    ];

    /// What is written for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::E1000 => "e1000",
            Self::I82543Gc => "82543gc",
            Self::I82545Em => "82545em",
            Self::Pcnet => "pcnet",
            Self::Am79C970A => "am79c970a",
            Self::Virtio => "virtio",
        }
    }
}

impl FromStr for NicModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        crate::devices::named(text, Self::ALL, Self::name, "card")
    }
}

/// Whether a card may see frames that are addressed to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromiscuousPolicy {
    /// Never.
    #[default]
    Deny,
    /// Those between guests.
    AllowVms,
    /// All.
    AllowAll,
}

impl PromiscuousPolicy {
    const ALL: [Self; 3] = [Self::Deny, Self::AllowVms, Self::AllowAll];

    /// What is written for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::AllowVms => "allow-vms",
            Self::AllowAll => "allow-all",
        }
    }
}

impl FromStr for PromiscuousPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        crate::devices::named(text, Self::ALL, Self::name, "policy")
    }
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the host that leads into the guest: `tcp:127.0.0.1:2222-:22`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Forward {
    /// Of which protocol.
    pub transport: Transport,
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's address; none: the one that it got from the network.
    pub guest: Option<IpAddr>,
    /// The guest's port.
    pub port: u16,
}

impl Forward {
    const FORM: &str =
        "write PROTOCOL:[ADDRESS]:PORT-[GUEST]:PORT, such as tcp:127.0.0.1:2222-:22; addresses of IPv6 in brackets";
}

/// An address, empty or not, and a port.
fn split_port(text: &str) -> Option<(Option<IpAddr>, u16)> {
    let (address, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    if address.is_empty() {
        return Some((None, port));
    }
    let address = match address.strip_prefix('[') {
        Some(rest) => IpAddr::V6(rest.strip_suffix(']')?.parse().ok()?),
        None => IpAddr::V4(address.parse().ok()?),
    };
    Some((Some(address), port))
}

impl FromStr for Forward {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no forwarding; {}", Self::FORM);
        let (transport, rest) = text.split_once(':').ok_or_else(wrong)?;
        let transport = match transport {
            "tcp" => Transport::Tcp,
            "udp" => Transport::Udp,
            _ => return Err(wrong()),
        };
        let (host, guest) = rest.split_once('-').ok_or_else(wrong)?;
        let (host, host_port) = split_port(host).ok_or_else(wrong)?;
        let (guest, port) = split_port(guest).ok_or_else(wrong)?;
        let host = host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        Ok(Self {
            transport,
            host: SocketAddr::new(host, host_port),
            guest,
            port,
        })
    }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            transport,
            host,
            guest,
            port,
        } = self;
        match guest {
            Some(guest) => write!(f, "{transport}:{host}-{}", SocketAddr::new(*guest, *port)),
            None => write!(f, "{transport}:{host}-:{port}"),
        }
    }
}

impl TryFrom<String> for Forward {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Forward> for String {
    fn from(forward: Forward) -> Self {
        forward.to_string()
    }
}

/// The way to the world by the host's own connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatConfig {
    /// The network; its second address is the gateway's, its third the name server's, its fifteenth the guest's.
    pub network: Ipv4Addr,
    /// The gateway's address reaches the host's own loop-back.
    pub loopback: bool,
    /// Guests reach nobody but the network's own services and those who come by forwarded ports.
    pub restricted: bool,
    /// Name server that is asked instead of those of the host.
    pub dns: Option<SocketAddr>,
    /// There is IPv6 too.
    pub ipv6: bool,
    /// Bytes of an IP packet at most, 1280 to 9000.
    pub mtu: u16,
    /// The directory whose files TFTP serves.
    pub tftp: Option<PathBuf>,
    /// What guests boot by their network cards: a file beneath that directory, or an address that they can fetch from.
    pub bootfile: Option<String>,
    /// Where the host's programs find a SOCKS5 proxy that leads to guests.
    pub proxy: Option<SocketAddr>,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<Forward>,
}

impl Default for NatConfig {
    fn default() -> Self {
        Self {
            network: Ipv4Addr::new(10, 0, 2, 0),
            loopback: false,
            restricted: false,
            dns: None,
            ipv6: true,
            mtu: 1500,
            tftp: None,
            bootfile: None,
            proxy: None,
            forwards: Vec::new(),
        }
    }
}

/// Characters of a boot file's name that a DHCP message has room for.
const BOOT_FILE: usize = 127;

/// What is wrong with a network's address.
fn check_network(network: Ipv4Addr) -> Option<String> {
    let [.., last] = network.octets();
    let wrong = last != 0 || network.is_loopback() || network.is_multicast() || network.is_unspecified();
    wrong.then(|| format!("`{network}` is no network of 24 bits, such as 10.0.2.0"))
}

impl NatConfig {
    fn problem(&self) -> Option<String> {
        let wrong = check_network(self.network);
        if wrong.is_some() {
            return wrong;
        }
        if self
            .bootfile
            .as_ref()
            .is_some_and(|name| name.is_empty() || name.len() > BOOT_FILE)
        {
            return Some(format!("a bootfile has 1 to {BOOT_FILE} characters"));
        }
        let fits = (1280..=9000).contains(&self.mtu);
        (!fits).then(|| format!("an mtu of {} is not between 1280 and 9000", self.mtu))
    }
}

/// What is wrong with a network's name.
fn check_name(name: &str) -> Option<String> {
    let fits = (1..=32).contains(&name.len());
    let plain = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    (!fits || !plain).then(|| format!("`{name}` is no network's name: letters, digits, - and _, 32 at most"))
}

/// What a cable is plugged into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum NetworkConfig {
    /// Nothing: the link is down.
    None,
    /// A network with nobody in it.
    Null,
    /// The way to the world by the host's own connections.
    Nat(NatConfig),
    /// The same for several machines of this user's, by a name.
    NatNetwork(NatNetworkConfig),
    /// Other machines of this user's at the network of this name, and nobody else.
    Internal(String),
    /// The same, and the host.
    HostOnly(HostOnlyConfig),
    /// The network that this interface of the host's is at.
    Bridged(String),
    /// A tap of this name, which somebody has made.
    Tap(String),
    /// Another host, by frames in datagrams.
    Udp(TunnelConfig),
}

/// A NAT network of several machines. The machine that is there first says what it is like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatNetworkConfig {
    /// Its name.
    pub name: String,
    /// What it is like. The ports are those that lead to this machine.
    pub nat: NatConfig,
}

/// A network of machines and the host. The machine that is there first says what it is like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostOnlyConfig {
    /// Its name.
    pub name: String,
    /// The network; its first address is the host's, its hundredth the DHCP server's.
    pub network: Ipv4Addr,
    /// There is a DHCP server.
    pub dhcp: bool,
    /// Last bytes of the first and the last address that it gives.
    pub range: (u8, u8),
    /// Where the host is at the network by services only, its address reaches its own loop-back.
    pub loopback: bool,
    /// Where the host's programs find a SOCKS5 proxy that leads to guests.
    pub proxy: Option<SocketAddr>,
    /// Ports of the host that lead into the guest.
    pub forwards: Vec<Forward>,
}

impl Default for HostOnlyConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            network: Ipv4Addr::new(192, 168, 56, 0),
            dhcp: true,
            range: (101, 254),
            loopback: false,
            proxy: None,
            forwards: Vec::new(),
        }
    }
}

impl HostOnlyConfig {
    fn problem(&self) -> Option<String> {
        let (first, last) = self.range;
        let range = (first < 2 || last < first || last == 255)
            .then(|| format!("`{first}-{last}` is no range of addresses; write one from 2 to 254, such as 101-254"));
        check_name(&self.name).or_else(|| check_network(self.network)).or(range)
    }
}

/// What is wrong with the name of an interface of the host's.
fn check_interface(name: &str) -> Option<String> {
    let plain = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    (name.is_empty() || name.len() > 15 || !plain).then(|| format!("`{name}` is no interface's name"))
}

/// Both ends of a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TunnelConfig {
    /// Where this host listens.
    pub local: SocketAddr,
    /// Where the other one does.
    pub remote: SocketAddr,
}

impl NetworkConfig {
    /// What may be written.
    pub const NAMES: [&str; 9] = [
        "nat",
        "natnetwork=NAME",
        "internal=NAME",
        "hostonly=NAME",
        "bridged=INTERFACE",
        "tap=NAME",
        "udp=LOCAL-REMOTE",
        "null",
        "none",
    ];

    /// The ports of the host that lead into the guest; none where no ports can.
    pub fn forwards_mut(&mut self) -> Option<&mut Vec<Forward>> {
        match self {
            Self::Nat(nat) => Some(&mut nat.forwards),
            Self::NatNetwork(config) => Some(&mut config.nat.forwards),
            Self::HostOnly(config) => Some(&mut config.forwards),
            _ => None,
        }
    }

    /// The same.
    #[must_use]
    pub fn forwards(&self) -> &[Forward] {
        match self {
            Self::Nat(nat) => &nat.forwards,
            Self::NatNetwork(config) => &config.nat.forwards,
            Self::HostOnly(config) => &config.forwards,
            _ => &[],
        }
    }

    /// What is wrong with it.
    fn problem(&self) -> Option<String> {
        match self {
            Self::None | Self::Null => None,
            Self::Nat(nat) => nat.problem(),
            Self::NatNetwork(config) => check_name(&config.name).or_else(|| config.nat.problem()),
            Self::Internal(name) => check_name(name),
            Self::HostOnly(config) => config.problem(),
            Self::Bridged(name) | Self::Tap(name) => check_interface(name),
            Self::Udp(TunnelConfig { local, remote }) => {
                let apart = local.is_ipv4() != remote.is_ipv4();
                apart.then(|| format!("`{local}` and `{remote}` are of different kinds"))
            }
        }
    }
}

/// What a cable carries, in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CableLimits {
    /// Bits a second; none: as many as there are.
    pub bandwidth: Option<u64>,
    /// Microseconds from one end to the other.
    pub latency: u32,
    /// Frames that are lost, of a million.
    pub loss: u32,
}

impl CableLimits {
    /// Whether it limits nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicConfig {
    /// What its cable is plugged into.
    pub network: NetworkConfig,
    /// Which card it is.
    #[serde(default)]
    pub model: NicModel,
    /// Its address; none: one that is made up.
    #[serde(default)]
    pub mac: Option<MacAddress>,
    /// Its guest's name in a network of several machines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The image of its expansion ROM; none: that of iPXE if the machine is to boot from the network, else it has no ROM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub romfile: Option<PathBuf>,
    /// The cable is unplugged at first.
    #[serde(default)]
    pub unplugged: bool,
    /// What it may overhear.
    #[serde(default)]
    pub promiscuous: PromiscuousPolicy,
    /// What its cable carries.
    #[serde(default, skip_serializing_if = "CableLimits::is_none")]
    pub limits: CableLimits,
}

impl NicConfig {
    /// A card of the usual model at `network`.
    #[must_use]
    pub fn new(network: NetworkConfig) -> Self {
        Self {
            network,
            model: NicModel::default(),
            mac: None,
            name: None,
            romfile: None,
            unplugged: false,
            promiscuous: PromiscuousPolicy::default(),
            limits: CableLimits::default(),
        }
    }

    /// What is wrong with it.
    pub(crate) fn problem(&self) -> Option<String> {
        let CableLimits {
            bandwidth,
            latency,
            loss,
        } = self.limits;
        if loss > 1_000_000 || latency > 10_000_000 || bandwidth.is_some_and(|bits| bits < 1000) {
            return Some(
                "a cable carries 1000 bits a second at least, within ten seconds, and loses 100 % at most".to_owned(),
            );
        }
        let name = self.name.as_deref().and_then(|name| {
            let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            let fits = (1..=63).contains(&name.len()) && plain && !name.starts_with('-') && !name.ends_with('-');
            (!fits).then(|| format!("`{name}` is no guest's name: letters, digits and -, 63 at most"))
        });
        self.network.problem().or(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print_alike() {
        let mac: MacAddress = "08:00:27:AB:cd:0f".parse().unwrap();
        assert_eq!(mac.to_string(), "08:00:27:ab:cd:0f");
        for text in [
            "",
            "08:00:27:ab:cd",
            "08:00:27:ab:cd:0f:1",
            "08:00:27:ab:cd:g0",
            "8:0:27:ab:cd:0f",
        ] {
            assert!(text.parse::<MacAddress>().unwrap_err().contains("such as"), "{text}");
        }
        assert!("01:00:5e:00:00:01".parse::<MacAddress>().unwrap_err().contains("group"));
    }

    #[test]
    fn forwards_parse_and_print_alike() {
        for text in [
            "tcp:127.0.0.1:2222-:22",
            "udp:0.0.0.0:53-10.0.2.15:53",
            "tcp:[::1]:80-[fd17:625c:f037:2::15]:8080",
        ] {
            assert_eq!(text.parse::<Forward>().unwrap().to_string(), text);
        }
        let short: Forward = "tcp::2222-:22".parse().unwrap();
        assert_eq!(short.host, "127.0.0.1:2222".parse().unwrap());
        for text in [
            "",
            "tcp",
            "tcp:22",
            "tcp::22",
            "icmp::1-:1",
            "tcp::0-:22",
            "tcp::22-:99999",
            "tcp:::1:22-:22",
            "tcp:x:1-:1",
        ] {
            assert!(text.parse::<Forward>().unwrap_err().contains("such as"), "{text}");
        }
    }

    #[test]
    fn networks_that_cannot_be_are_told() {
        let host = |range| {
            NetworkConfig::HostOnly(HostOnlyConfig {
                name: "lab".to_owned(),
                range,
                ..HostOnlyConfig::default()
            })
        };
        assert_eq!(host((101, 254)).problem(), None);
        for range in [(1, 9), (9, 8), (200, 255)] {
            assert!(host(range).problem().unwrap().contains("no range"), "{range:?}");
        }
        for name in ["", "a/b", "a-name-that-is-too-long"] {
            assert!(NetworkConfig::Bridged(name.to_owned()).problem().is_some(), "{name}");
        }
        let mut nic = NicConfig::new(NetworkConfig::Null);
        for (name, fits) in [("web-1", true), ("-web", false), ("we_b", false), ("", false)] {
            nic.name = Some(name.to_owned());
            assert_eq!(nic.problem().is_none(), fits, "{name}");
        }
    }
}
