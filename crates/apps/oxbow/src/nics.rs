//! Network cards on the command line: a network, then what differs from the usual.

use std::net::IpAddr;

use spec::Forward;
use spec::NatConfig;
use spec::NetworkConfig;
use spec::NicConfig;

use crate::drives::split;

/// A network card.
pub(crate) fn parse_nic(text: &str) -> Result<NicConfig, String> {
    let (network, options) = split(text);
    let mut network = match network.as_str() {
        "nat" => NetworkConfig::Nat(NatConfig::default()),
        "null" => NetworkConfig::Null,
        "none" => NetworkConfig::None,
        _ => {
            return Err(format!(
                "unknown network `{network}`; there are {}",
                NetworkConfig::NAMES.join(", ")
            ));
        }
    };
    let options = match &mut network {
        NetworkConfig::Nat(nat) => nat_options(nat, options)?,
        NetworkConfig::None | NetworkConfig::Null => options,
    };
    let mut nic = NicConfig::new(network);
    for (name, value) in options {
        match (name.as_str(), value) {
            ("unplugged", None) => nic.unplugged = true,
            ("model", Some(value)) => nic.model = value.parse()?,
            ("mac", Some(value)) => nic.mac = Some(value.parse()?),
            ("promisc", Some(value)) => nic.promiscuous = value.parse()?,
            (name, _) => {
                return Err(format!(
                    "`{name}` is no option of such a network card; there are model=, mac=, promisc= and unplugged, and of nat \
                     loopback, restricted, net=, dns=, mtu= and ipv6=off"
                ));
            }
        }
    }
    Ok(nic)
}

type Options = Vec<(String, Option<String>)>;

/// Takes the options that are of a NAT network, and leaves the others.
fn nat_options(nat: &mut NatConfig, options: Options) -> Result<Options, String> {
    let mut rest = Vec::new();
    for (name, value) in options {
        match (name.as_str(), value) {
            ("loopback", None) => nat.loopback = true,
            ("restricted", None) => nat.restricted = true,
            ("net", Some(value)) => {
                let address = value.strip_suffix("/24").unwrap_or(&value);
                let wrong = |_| format!("`{value}` is no network of 24 bits; write one such as 10.0.2.0/24");
                nat.network = address.parse().map_err(wrong)?;
            }
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

/// Adds ports of the host's to the first NAT network of the cards.
pub(crate) fn add_forwards(nics: &mut [NicConfig], forwards: &[Forward]) -> anyhow::Result<()> {
    let nats = nics.iter_mut().find_map(|nic| match &mut nic.network {
        NetworkConfig::Nat(nat) => Some(nat),
        NetworkConfig::None | NetworkConfig::Null => None,
    });
    match nats {
        Some(nat) => nat.forwards.extend(forwards),
        None if forwards.is_empty() => {}
        None => anyhow::bail!("--forward needs a network card at a NAT network: --nic nat"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use spec::NicModel;
    use spec::PromiscuousPolicy;

    use super::*;

    #[test]
    fn options_follow_the_network_in_any_order() {
        let nic = parse_nic("null,unplugged,mac=08:00:27:00:00:01,model=82545em,promisc=allow-vms").unwrap();
        assert_eq!(nic.network, NetworkConfig::Null);
        assert_eq!(nic.mac.unwrap().0, [8, 0, 0x27, 0, 0, 1]);
        assert_eq!((nic.model, nic.unplugged), (NicModel::I82545Em, true));
        assert_eq!(nic.promiscuous, PromiscuousPolicy::AllowVms);
        assert_eq!(parse_nic("none").unwrap(), NicConfig::new(NetworkConfig::None));
    }

    #[test]
    fn nat_has_options_of_its_own_and_takes_forwards() {
        let nic = parse_nic("nat,loopback,net=192.168.5.0/24,dns=192.0.2.1,mtu=9000,ipv6=off,model=82543gc").unwrap();
        let mut nics = [parse_nic("null").unwrap(), nic];
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
        };
        assert_eq!(*nat, expected);
        assert!(add_forwards(&mut nics[..1], &[forward]).is_err());
        assert!(add_forwards(&mut nics[..1], &[]).is_ok());
    }

    #[test]
    fn what_makes_no_sense_is_told_with_what_does() {
        for (text, part) in [
            ("", "nat, null, none"),
            ("lan", "nat, null, none"),
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
}
