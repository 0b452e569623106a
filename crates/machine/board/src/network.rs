//! Networks: what the cables of a machine's cards are plugged into.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::BuildHasher;
use std::hash::RandomState;
use std::io;
use std::net::UdpSocket;
use std::sync::Arc;
use std::time::Duration;

use device_model::FramePort;
use device_model::Inspect;
use device_model::Node;
use device_model::StreamHost;
use device_model::net::Mac;
use spec::CableLimits;
use spec::Forward;
use spec::HostOnlyConfig;
use spec::MachineSpec;
use spec::NatConfig;
use spec::NetworkConfig;
use spec::NicConfig;
use spec::NicModel;
use spec::PromiscuousPolicy;
use spec::Transport;
use spec::TunnelConfig;
use vnet::Capture;
use vnet::Limits;
use vnet::Nat;
use vnet::NullPort;
use vnet::Port;
use vnet::PortConfig;
use vnet::Promiscuous;
use vnet::Role;
use vnet::ShapedPort;
use vnet::Switch;
use vnet::desk::Wishes;
use vnet::hub::HostConfig;
use vnet::hub::HubConfig;
use vnet::hub::Starter;
use vnet::hub::Uplink;
use vnet::nat::NatError;
use vsock_host::VsockHost;

use crate::BuildError;
use crate::Placement;

/// A card's end of its cable, and what the card is to be.
pub(crate) struct Plugged {
    pub(crate) model: NicModel,
    pub(crate) mac: Mac,
    pub(crate) port: Arc<dyn FramePort>,
}

/// A card's cable, for users.
struct Cable {
    /// The port at a switch; none where there is none.
    port: Option<Arc<Port>>,
    /// What else there is of its network.
    network: Network,
}

/// A cable with limits between a card and its port.
fn shaped(port: &Arc<Port>, limits: CableLimits) -> Result<Arc<dyn FramePort>, BuildError> {
    let limits = Limits {
        bandwidth: limits.bandwidth,
        latency: Duration::from_micros(limits.latency.into()),
        loss: limits.loss,
    };
    let cable = ShapedPort::new(Arc::clone(port), limits).map_err(BuildError::Thread)?;
    Ok(Arc::new(cable))
}

/// What is behind a card's port, kept as long as the machine lives.
enum Network {
    /// Nothing that lives.
    Idle,
    Nat(Nat),
    Uplink(Uplink),
    /// Other machines, and what is asked of their network.
    Shared(Uplink, Wishes),
}

/// The cables of all cards, by the card's name.
pub(crate) struct Networks {
    cables: BTreeMap<String, Cable>,
    /// Ports that tests and embedders give.
    given: BTreeMap<String, Arc<dyn FramePort>>,
    /// Where frames are captured to.
    capture: Option<Arc<Capture>>,
    start_switch: SwitchStarter,
    /// What the streams of the guest's socket device lead to.
    streams: Option<VsockHost>,
}

/// Starts the switch process of a network, which is one for [`hub_config`]; returns at once.
pub type SwitchStarter = Arc<dyn Fn(&NetworkConfig) -> io::Result<()> + Send + Sync>;

/// For programs that have no switch process: somebody else has to have started it.
fn no_switch(_: &NetworkConfig) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

impl fmt::Debug for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.cables.keys()).finish()
    }
}

/// Why a card's cable cannot be what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CableError {
    /// There is no such card.
    #[error("there is no network card `{0}`")]
    NoCard(String),
    /// The card is at no network whose link goes up and down.
    #[error("the network of `{0}` has no link to be changed")]
    Fixed(String),
    /// The card's network has no ports of the host's.
    #[error("the network of `{0}` is no NAT: no port of the host leads there")]
    NoNat(String),
    /// The network of several machines does not do it.
    #[error("{0}")]
    Refused(String),
    /// The port cannot lead there.
    #[error(transparent)]
    Nat(#[from] NatError),
}

impl Networks {
    pub(crate) fn new(
        given: BTreeMap<String, Arc<dyn FramePort>>,
        capture: Option<Arc<Capture>>,
        start_switch: Option<SwitchStarter>,
    ) -> Self {
        Self {
            cables: BTreeMap::new(),
            given,
            capture,
            start_switch: start_switch.unwrap_or_else(|| Arc::new(no_switch)),
            streams: None,
        }
    }

    /// Keeps the programs of a socket device as long as the machine lives; returns the device's end.
    pub(crate) fn keep(&mut self, programs: VsockHost) -> Arc<dyn StreamHost> {
        self.streams.insert(programs).streams()
    }

    /// Plugs the card of a placement in.
    pub(crate) fn plug(&mut self, spec: &MachineSpec, place: &Placement) -> Result<Plugged, BuildError> {
        let usual = NicConfig::new(NetworkConfig::None);
        let config = spec.devices.nics.get(place.index as usize).unwrap_or(&usual);
        let mac = config.mac.map_or_else(made_up, |mac| mac.0);
        let (port, cable) = match self.given.remove(&place.name) {
            Some(port) => (port, Cable::idle()),
            None => self.connect(config, mac, &place.name)?,
        };
        if let Some(port) = &cable.port {
            port.set_capture(self.capture.clone());
            port.set_link(!config.unplugged);
        }
        let port = match &cable.port {
            Some(end) if !config.limits.is_none() => shaped(end, config.limits)?,
            _ => port,
        };
        self.cables.insert(place.name.clone(), cable);
        Ok(Plugged {
            model: config.model,
            mac,
            port,
        })
    }

    fn connect(&self, config: &NicConfig, mac: Mac, name: &str) -> Result<(Arc<dyn FramePort>, Cable), BuildError> {
        let plugged = || {
            let port = Switch::new().plug(port_config(config, name));
            let cable = Cable {
                port: Some(Arc::clone(&port)),
                network: Network::Idle,
            };
            (port as Arc<dyn FramePort>, cable)
        };
        Ok(match &config.network {
            NetworkConfig::None => (Arc::new(NullPort::unplugged()), Cable::idle()),
            // A switch all the same: its link can be changed and its frames captured.
            NetworkConfig::Null => plugged(),
            NetworkConfig::Nat(nat) => connect_nat(nat, port_config(config, name))?,
            NetworkConfig::NatNetwork(_) | NetworkConfig::Internal(_) | NetworkConfig::HostOnly(_) => {
                self.join(config, mac, port_config(config, name))?
            }
            NetworkConfig::Bridged(interface) => {
                let switch = Switch::new();
                let uplink = vnet::host::bridged(&switch, interface)?;
                plug_in(&switch, Network::Uplink(uplink), port_config(config, name))
            }
            NetworkConfig::Tap(tap) => {
                let switch = Switch::new();
                let uplink = vnet::host::tap(&switch, tap)?;
                plug_in(&switch, Network::Uplink(uplink), port_config(config, name))
            }
            NetworkConfig::Udp(tunnel) => connect_tunnel(*tunnel, port_config(config, name))?,
        })
    }

    /// Joins a network of several machines, and asks there for what the guest is to have.
    fn join(&self, config: &NicConfig, mac: Mac, port: PortConfig) -> Result<(Arc<dyn FramePort>, Cable), BuildError> {
        let Some(hub) = hub_config(&config.network) else {
            return Err(BuildError::Uplink(io::ErrorKind::InvalidInput.into()));
        };
        let mut network = config.network.clone();
        // Those are asked for by each machine, for itself.
        if let Some(forwards) = network.forwards_mut() {
            forwards.clear();
        }
        let start = Arc::clone(&self.start_switch);
        let start: Starter = Arc::new(move || start(&network));
        let failed = BuildError::Uplink;
        let directory = vnet::hub::directory().map_err(failed)?;
        if let Some(obstacle) = hub.obstacle(&directory) {
            return Err(obstacle.into());
        }
        let wishes = hub.wishes(&directory, mac).map_err(failed)?;
        let switch = Switch::new();
        let uplink = Uplink::join(&switch, &directory, &hub, start).map_err(failed)?;
        let Some(wishes) = wishes else {
            return Ok(plug_in(&switch, Network::Uplink(uplink), port));
        };
        if let Some(name) = &config.name {
            wishes.name(name);
        }
        for forward in config.network.forwards() {
            wishes.forward_later(door(forward));
        }
        Ok(plug_in(&switch, Network::Shared(uplink, wishes), port))
    }

    /// Plugs a card's cable in or out.
    ///
    /// # Errors
    /// [`CableError`] when there is no such card, or it has no cable.
    pub(crate) fn set_link(&self, name: &str, up: bool) -> Result<(), CableError> {
        let cable = self
            .cables
            .get(name)
            .ok_or_else(|| CableError::NoCard(name.to_owned()))?;
        let port = cable.port.as_ref().ok_or_else(|| CableError::Fixed(name.to_owned()))?;
        port.set_link(up);
        Ok(())
    }

    /// The network of a card that ports of the host's lead into, of the first card with one if none is named.
    fn open_network(&self, name: Option<&str>) -> Result<&Network, CableError> {
        let is_open = |network: &Network| matches!(network, Network::Nat(_) | Network::Shared(..));
        let network = match name {
            Some(name) => {
                let cable = self.cables.get(name);
                &cable.ok_or_else(|| CableError::NoCard(name.to_owned()))?.network
            }
            None => {
                let mut all = self.cables.values().map(|cable| &cable.network);
                let found = all.find(|network| is_open(network));
                found.ok_or_else(|| CableError::NoNat("all cards".to_owned()))?
            }
        };
        match is_open(network) {
            true => Ok(network),
            false => Err(CableError::NoNat(name.unwrap_or_default().to_owned())),
        }
    }

    /// Lets a port of the host's lead to the guest, or ends that.
    ///
    /// # Errors
    /// [`CableError`] when there is no such card, its network has no ports, or the port cannot be listened at.
    pub(crate) fn set_forward(&self, name: Option<&str>, forward: &Forward, on: bool) -> Result<(), CableError> {
        match self.open_network(name)? {
            Network::Nat(nat) if on => nat.forward(door(forward)).map(drop)?,
            Network::Nat(nat) => nat.unforward(door(forward))?,
            Network::Shared(_, wishes) => wishes.forward(door(forward), on).map_err(CableError::Refused)?,
            Network::Idle | Network::Uplink(_) => {}
        }
        Ok(())
    }
}

impl Cable {
    const fn idle() -> Self {
        Self {
            port: None,
            network: Network::Idle,
        }
    }
}

fn connect_nat(config: &NatConfig, port: PortConfig) -> Result<(Arc<dyn FramePort>, Cable), BuildError> {
    let switch = Switch::new();
    let nat = Nat::start(&switch, nat_config(config))?;
    for forward in &config.forwards {
        nat.forward(door(forward))?;
    }
    let port = switch.plug(port);
    let cable = Cable {
        port: Some(Arc::clone(&port)),
        network: Network::Nat(nat),
    };
    Ok((port, cable))
}

/// A NAT network as its crate wants it described.
#[must_use]
pub fn nat_config(config: &NatConfig) -> vnet::nat::NatConfig {
    vnet::nat::NatConfig {
        network: config.network,
        loopback: config.loopback,
        restricted: config.restricted,
        dns: config.dns,
        ipv6: config.ipv6,
        mtu: config.mtu,
        tftp: config.tftp.clone(),
        boot_file: config.bootfile.clone(),
        proxy: config.proxy,
        ..vnet::nat::NatConfig::default()
    }
}

/// The network between processes that a card's network is; none if it is none.
#[must_use]
pub fn hub_config(network: &NetworkConfig) -> Option<HubConfig> {
    let (name, nat, host) = match network {
        NetworkConfig::NatNetwork(config) => (&config.name, Some(nat_config(&config.nat)), None),
        NetworkConfig::Internal(name) => (name, None, None),
        NetworkConfig::HostOnly(config) => (&config.name, None, Some(host_config(config))),
        _ => return None,
    };
    let name = name.clone();
    Some(HubConfig { name, nat, host })
}

fn host_config(config: &HostOnlyConfig) -> HostConfig {
    HostConfig {
        network: config.network,
        dhcp: config.dhcp,
        range: config.range,
        loopback: config.loopback,
        proxy: config.proxy,
    }
}

fn connect_tunnel(tunnel: TunnelConfig, port: PortConfig) -> Result<(Arc<dyn FramePort>, Cable), BuildError> {
    let socket = UdpSocket::bind(tunnel.local).and_then(|socket| {
        socket.connect(tunnel.remote)?;
        Ok(socket)
    });
    let socket = socket.map_err(|error| BuildError::Network(NatError::Listen(tunnel.local, error)))?;
    let switch = Switch::new();
    let uplink = Uplink::tunnel(&switch, socket).map_err(BuildError::Uplink)?;
    Ok(plug_in(&switch, Network::Uplink(uplink), port))
}

/// A port of `switch`, which `network` is at.
fn plug_in(switch: &Arc<Switch>, network: Network, port: PortConfig) -> (Arc<dyn FramePort>, Cable) {
    let port = switch.plug(port);
    let cable = Cable {
        port: Some(Arc::clone(&port)),
        network,
    };
    (port, cable)
}

fn door(forward: &Forward) -> vnet::nat::Forward {
    vnet::nat::Forward {
        transport: match forward.transport {
            Transport::Tcp => vnet::nat::Transport::Tcp,
            Transport::Udp => vnet::nat::Transport::Udp,
        },
        host: forward.host,
        guest: forward.guest,
        port: forward.port,
    }
}

fn port_config(config: &NicConfig, name: &str) -> PortConfig {
    PortConfig {
        name: name.to_owned(),
        role: Role::Guest,
        promiscuous: match config.promiscuous {
            PromiscuousPolicy::Deny => Promiscuous::Deny,
            PromiscuousPolicy::AllowVms => Promiscuous::Guests,
            PromiscuousPolicy::AllowAll => Promiscuous::All,
        },
    }
}

/// An address that no other card has: of the range of virtual machines, with random low bytes.
fn made_up() -> Mac {
    // Each `RandomState` has keys of its own.
    let [a, b, c, ..] = RandomState::new().hash_one(0u8).to_le_bytes();
    [0x08, 0x00, 0x27, a, b, c]
}

impl Inspect for Networks {
    fn inspect(&self) -> Node {
        self.cables.iter().fold(Node::tree(), |tree, (name, cable)| {
            let port = cable.port.as_ref().map_or_else(Node::tree, |port| port.inspect());
            match &cable.network {
                Network::Idle => tree.with(name, port),
                Network::Uplink(uplink) | Network::Shared(uplink, _) => {
                    tree.with(name, port.with("uplink", uplink.inspect()))
                }
                Network::Nat(nat) => tree.with(name, port.with("nat", nat.inspect())),
            }
        })
    }
}
