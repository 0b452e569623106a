//! Network cards on the command line: a network, then what differs from the usual.

use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;

use spec::Forward;
use spec::HostOnlyConfig;
use spec::NatConfig;
use spec::NatNetworkConfig;
use spec::NetworkConfig;
use spec::NicConfig;
use spec::NicModel;
use spec::TunnelConfig;

use crate::drives::split;

/// A network card, of the machine's usual model if none is named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NicArg {
    config: NicConfig,
    model: Option<NicModel>,
}

impl NicArg {
    /// The card on a machine with this usual model.
    pub(crate) fn on(&self, usual: NicModel) -> NicConfig {
        let mut config = self.config.clone();
        config.model = self.model.unwrap_or(usual);
        config
    }
}

/// A network card.
pub(crate) fn parse_nic(text: &str) -> Result<NicArg, String> {
    let (network, options) = split(text);
    let mut network = match network.as_str() {
        "nat" => NetworkConfig::Nat(NatConfig::default()),
        "null" => NetworkConfig::Null,
        "none" => NetworkConfig::None,
        other if other.contains('=') => named_network(other)?,
        _ => {
            return Err(format!(
                "unknown network `{network}`; there are {}",
                NetworkConfig::NAMES.join(", ")
            ));
        }
    };
    let options = match &mut network {
        NetworkConfig::Nat(nat) => nat_options(nat, options)?,
        NetworkConfig::NatNetwork(config) => nat_options(&mut config.nat, options)?,
        NetworkConfig::HostOnly(config) => host_options(config, options)?,
        _ => options,
    };
    let mut nic = NicConfig::new(network);
    let mut model = None;
    for (name, value) in options {
        match (name.as_str(), value) {
            ("unplugged", None) => nic.unplugged = true,
            ("model", Some(value)) => model = Some(value.parse()?),
            ("romfile", Some(value)) => nic.romfile = Some(value.into()),
            ("name", Some(value)) => nic.name = Some(value),
            ("mac", Some(value)) => nic.mac = Some(value.parse()?),
            ("promisc", Some(value)) => nic.promiscuous = value.parse()?,
            ("bandwidth", Some(value)) => nic.limits.bandwidth = Some(parse_bandwidth(&value)?),
            ("latency", Some(value)) => nic.limits.latency = parse_latency(&value)?,
            ("loss", Some(value)) => nic.limits.loss = parse_loss(&value)?,
            (name, _) => {
                return Err(format!(
                    "`{name}` is no option of such a network card; there are model=, mac=, name=, romfile=, promisc=, bandwidth=, \
                     latency=, loss= and unplugged, of nat and natnetwork \
                     loopback, restricted, net=, dns=, mtu=, ipv6=off, tftp=, bootfile= and proxy=, and of hostonly \
                     net=, range=, dhcp=off, loopback and proxy="
                ));
            }
        }
    }
    Ok(NicArg { config: nic, model })
}

/// Bits a second: a number with K, M or G, which are thousands.
fn parse_bandwidth(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is no bandwidth; write bits a second, such as 10M");
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1000),
        Some((at, 'm' | 'M')) => (text.get(..at), 1_000_000),
        Some((at, 'g' | 'G')) => (text.get(..at), 1_000_000_000),
        _ => (Some(text), 1),
    };
    let number: u64 = digits.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Microseconds: a number with `ms` or `us`.
fn parse_latency(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no latency; write one such as 20ms or 500us");
    let (digits, unit) = match (text.strip_suffix("ms"), text.strip_suffix("us")) {
        (Some(digits), _) => (digits, 1000),
        (_, Some(digits)) => (digits, 1),
        _ => return Err(wrong()),
    };
    let number: u32 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Of a million: a percentage with up to four decimals.
fn parse_loss(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is no loss; write a percentage such as 0.5%");
    let digits = text.strip_suffix('%').unwrap_or(text);
    let (whole, decimals) = digits.split_once('.').unwrap_or((digits, ""));
    if decimals.len() > 4 || !decimals.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let decimals: u32 = format!("{decimals:0<4}").parse().map_err(|_| wrong())?;
    whole.checked_mul(10_000).map(|loss| loss + decimals).ok_or_else(wrong)
}

/// A network that has a name, or addresses.
fn named_network(text: &str) -> Result<NetworkConfig, String> {
    let (kind, value) = text.split_once('=').unwrap_or((text, ""));
    match kind {
        "internal" => Ok(NetworkConfig::Internal(value.to_owned())),
        "natnetwork" => Ok(NetworkConfig::NatNetwork(NatNetworkConfig {
            name: value.to_owned(),
            nat: NatConfig::default(),
        })),
        "hostonly" => Ok(NetworkConfig::HostOnly(HostOnlyConfig {
            name: value.to_owned(),
            ..HostOnlyConfig::default()
        })),
        "bridged" => Ok(NetworkConfig::Bridged(value.to_owned())),
        "tap" => Ok(NetworkConfig::Tap(value.to_owned())),
        "udp" => {
            let wrong = || format!("`{value}` is no tunnel; write LOCAL-REMOTE, such as 0.0.0.0:5000-192.0.2.7:5000");
            let (local, remote) = value.split_once('-').ok_or_else(wrong)?;
            Ok(NetworkConfig::Udp(TunnelConfig {
                local: local.parse().map_err(|_| wrong())?,
                remote: remote.parse().map_err(|_| wrong())?,
            }))
        }
        _ => Err(format!(
            "unknown network `{kind}`; there are {}",
            NetworkConfig::NAMES.join(", ")
        )),
    }
}

type Options = Vec<(String, Option<String>)>;

fn parse_network(text: &str) -> Result<Ipv4Addr, String> {
    let address = text.strip_suffix("/24").unwrap_or(text);
    let wrong = |_| format!("`{text}` is no network of 24 bits; write one such as 10.0.2.0/24");
    address.parse().map_err(wrong)
}

/// Where a proxy listens: a port of this host's own, unless an address says otherwise.
fn parse_proxy(text: &str) -> Result<SocketAddr, String> {
    let port = text.parse().map(|port: u16| (Ipv4Addr::LOCALHOST, port).into());
    port.or_else(|_| text.parse())
        .map_err(|_| format!("`{text}` is no place for a proxy; write PORT or ADDRESS:PORT"))
}

/// Takes the options that are of a host-only network, and leaves the others.
fn host_options(config: &mut HostOnlyConfig, options: Options) -> Result<Options, String> {
    let mut rest = Vec::new();
    for (name, value) in options {
        match (name.as_str(), value) {
            ("loopback", None) => config.loopback = true,
            ("net", Some(value)) => config.network = parse_network(&value)?,
            ("proxy", Some(value)) => config.proxy = Some(parse_proxy(&value)?),
            ("dhcp", Some(value)) if value == "off" => config.dhcp = false,
            ("dhcp", Some(value)) if value == "on" => config.dhcp = true,
            ("range", Some(value)) => {
                let wrong = || format!("`{value}` is no range; write last bytes of addresses, such as 101-254");
                let (first, last) = value.split_once('-').ok_or_else(wrong)?;
                config.range = (first.parse().map_err(|_| wrong())?, last.parse().map_err(|_| wrong())?);
            }
            (_, value) => rest.push((name, value)),
        }
    }
    Ok(rest)
}

/// Takes the options that are of a NAT network, and leaves the others.
fn nat_options(nat: &mut NatConfig, options: Options) -> Result<Options, String> {
    let mut rest = Vec::new();
    for (name, value) in options {
        match (name.as_str(), value) {
            ("loopback", None) => nat.loopback = true,
            ("restricted", None) => nat.restricted = true,
            ("net", Some(value)) => nat.network = parse_network(&value)?,
            ("tftp", Some(value)) => {
                // The network's process may have another working directory.
                let path = std::path::absolute(&value).map_err(|error| format!("`{value}`: {error}"))?;
                if !path.is_dir() {
                    return Err(format!("`{value}` is no directory for TFTP to serve"));
                }
                nat.tftp = Some(path);
            }
            ("bootfile", Some(value)) => nat.bootfile = Some(value),
            ("proxy", Some(value)) => nat.proxy = Some(parse_proxy(&value)?),
            ("dns", Some(value)) => {
                let whole = value
                    .parse()
                    .or_else(|_| value.parse().map(|address: IpAddr| (address, 53).into()));
                nat.dns = Some(whole.map_err(|_| format!("`{value}` is no address; write ADDRESS or ADDRESS:PORT"))?);
            }
            ("mtu", Some(value)) => {
                nat.mtu = value
                    .parse()
                    .map_err(|_| format!("`{value}` is no mtu; 1500 is usual"))?
            }
            ("ipv6", Some(value)) if value == "off" => nat.ipv6 = false,
            ("ipv6", Some(value)) if value == "on" => nat.ipv6 = true,
            (_, value) => rest.push((name, value)),
        }
    }
    Ok(rest)
}

/// Adds ports of the host's to the first network of the cards that can have some.
pub(crate) fn add_forwards(nics: &mut [NicConfig], forwards: &[Forward]) -> anyhow::Result<()> {
    match nics.iter_mut().find_map(|nic| nic.network.forwards_mut()) {
        Some(known) => known.extend(forwards),
        None if forwards.is_empty() => {}
        None => anyhow::bail!("--forward needs a network card at a NAT or host-only network: --nic nat"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use spec::PromiscuousPolicy;

    use super::*;

    /// The card on a pc.
    fn card(text: &str) -> NicConfig {
        parse_nic(text).unwrap().on(NicModel::default())
    }

    #[test]
    fn model_is_the_machines_usual_one_unless_it_is_named() {
        let model = |text| parse_nic(text).unwrap().on(NicModel::Virtio).model;
        assert_eq!(model("nat"), NicModel::Virtio);
        assert_eq!(model("nat,model=e1000"), NicModel::E1000);
    }

    #[test]
    fn options_follow_the_network_in_any_order() {
        let nic = card("null,unplugged,mac=08:00:27:00:00:01,model=82545em,promisc=allow-vms");
        assert_eq!(nic.network, NetworkConfig::Null);
        assert_eq!(nic.mac.unwrap().0, [8, 0, 0x27, 0, 0, 1]);
        assert_eq!((nic.model, nic.unplugged), (NicModel::I82545Em, true));
        assert_eq!(nic.promiscuous, PromiscuousPolicy::AllowVms);
        assert_eq!(card("none"), NicConfig::new(NetworkConfig::None));
    }

    #[test]
    fn nat_has_options_of_its_own_and_takes_forwards() {
        let nic = card("nat,loopback,net=192.168.5.0/24,dns=192.0.2.1,mtu=9000,ipv6=off,model=82543gc");
        let mut nics = [card("null"), nic];
        let forward = "tcp:127.0.0.1:2222-:22".parse().unwrap();
        add_forwards(&mut nics, &[forward]).unwrap();
        let NetworkConfig::Nat(nat) = &nics[1].network else {
            panic!("{nics:?}")
        };
        let expected = NatConfig {
            network: [192, 168, 5, 0].into(),
            loopback: true,
            restricted: false,
            dns: Some("192.0.2.1:53".parse().unwrap()),
            ipv6: false,
            mtu: 9000,
            forwards: vec![forward],
            ..NatConfig::default()
        };
        assert_eq!(*nat, expected);
        assert!(add_forwards(&mut nics[..1], &[forward]).is_err());
        assert!(add_forwards(&mut nics[..1], &[]).is_ok());
    }

    #[test]
    fn networks_of_several_machines_have_names_or_addresses() {
        let network = |text| card(text).network;
        assert_eq!(network("internal=lan"), NetworkConfig::Internal("lan".to_owned()));
        let NetworkConfig::NatNetwork(shared) = network("natnetwork=office,loopback,net=10.9.0.0/24") else {
            panic!("another network");
        };
        assert_eq!((shared.name.as_str(), shared.nat.loopback), ("office", true));
        let tunnel = TunnelConfig {
            local: "0.0.0.0:5000".parse().unwrap(),
            remote: "192.0.2.7:5001".parse().unwrap(),
        };
        assert_eq!(network("udp=0.0.0.0:5000-192.0.2.7:5001"), NetworkConfig::Udp(tunnel));
    }

    #[test]
    fn cables_have_limits() {
        let nic = card("null,bandwidth=10M,latency=20ms,loss=0.25%");
        let limits = spec::CableLimits {
            bandwidth: Some(10_000_000),
            latency: 20_000,
            loss: 2500,
        };
        assert_eq!(nic.limits, limits);
        assert_eq!(parse_loss("100").unwrap(), 1_000_000);
        for text in [
            "bandwidth=fast",
            "bandwidth=99999999999G",
            "latency=20",
            "latency=-1ms",
            "loss=x",
            "loss=0.12345%",
            "loss=9999999%",
        ] {
            assert!(
                parse_nic(&format!("null,{text}")).unwrap_err().contains("such as"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_makes_no_sense_is_told_with_what_does() {
        for (text, part) in [
            (
                "",
                "internal=NAME, hostonly=NAME, bridged=INTERFACE, tap=NAME, udp=LOCAL-REMOTE",
            ),
            ("lan", "internal=NAME"),
            ("vde=x", "internal=NAME"),
            ("udp=1-2", "LOCAL-REMOTE"),
            ("null,loopback", "of nat"),
            ("nat,dns=x", "ADDRESS"),
            ("nat,net=1.2.3", "10.0.2.0/24"),
            ("nat,ipv6=maybe", "ipv6=off"),
            ("null,model=ne2000", "e1000"),
            ("null,mac=1", "08:00:27"),
            ("null,promisc=yes", "deny, allow-vms, allow-all"),
            ("null,speed=1", "model="),
            ("null,unplugged=1", "model="),
        ] {
            let error = parse_nic(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn networks_with_the_host_have_options_of_their_own() {
        let text = "hostonly=lab,net=10.9.8.0/24,range=20-30,dhcp=off,proxy=1080,loopback,name=web,romfile=x.rom";
        let nic = card(text);
        let expected = HostOnlyConfig {
            name: "lab".to_owned(),
            network: [10, 9, 8, 0].into(),
            dhcp: false,
            range: (20, 30),
            loopback: true,
            proxy: Some("127.0.0.1:1080".parse().unwrap()),
            forwards: Vec::new(),
        };
        assert_eq!(nic.network, NetworkConfig::HostOnly(expected));
        assert_eq!((nic.name.as_deref(), nic.romfile), (Some("web"), Some("x.rom".into())));
        assert_eq!(card("tap=tap0").network, NetworkConfig::Tap("tap0".to_owned()));
        for (text, part) in [
            ("hostonly=lab,range=7", "such as 101-254"),
            ("hostonly=lab,mtu=1500", "no option of such"),
            ("bridged=br0,net=10.0.0.0", "no option of such"),
            ("nat,proxy=x", "write PORT"),
            ("nat,tftp=/nonexistent", "no directory"),
        ] {
            let error = parse_nic(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
