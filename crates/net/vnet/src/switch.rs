//! A learning switch.
//!
//! It learns where addresses are from the frames that come from there, forgets them after five minutes, and shows frames
//! for addresses that it does not know to everybody. There is no spanning tree: a loop of switches is a mistake of the user's.
//!
//! Spec: IEEE 802.1D-2004 §7.7 (forwarding), §7.8 (learning), §7.9 (the filtering database and its ageing time).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::Weak;
use std::time::Duration;
use std::time::Instant;

use device_model::Frame;
use device_model::Inspect;
use device_model::Node;
use device_model::net::Mac;

use crate::Port;

/// Addresses that are known at most. A guest that makes addresses up gets no more than its share of them.
const ADDRESSES: usize = 4096;
const ADDRESSES_OF_A_PORT: usize = 512;
const AGEING: Duration = Duration::from_secs(300);

/// Who owns a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A guest's card.
    Guest,
    /// A service of the network's own, or the way to other machines. Frames between it and a guest wait for room.
    Service,
}

/// Whether a guest's card may see frames that are addressed to others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Promiscuous {
    /// Never.
    #[default]
    Deny,
    /// Those between guests.
    Guests,
    /// All.
    All,
}

/// A port to be plugged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// Name, for inspection.
    pub name: String,
    /// Its owner.
    pub role: Role,
    /// What the owner may overhear.
    pub promiscuous: Promiscuous,
}

impl PortConfig {
    /// A guest's card that overhears nothing.
    #[must_use]
    pub fn guest(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            role: Role::Guest,
            promiscuous: Promiscuous::Deny,
        }
    }

    /// A service.
    #[must_use]
    pub fn service(name: &str) -> Self {
        Self {
            role: Role::Service,
            ..Self::guest(name)
        }
    }
}

struct Station {
    port: u64,
    seen: Instant,
}

#[derive(Default)]
struct Table {
    ports: Vec<(u64, Weak<Port>)>,
    next: u64,
    stations: HashMap<Mac, Station>,
}

impl Table {
    fn learn(&mut self, address: Mac, port: u64, now: Instant) {
        if is_group(address) {
            return;
        }
        if let Some(station) = self.stations.get_mut(&address) {
            *station = Station { port, seen: now };
            return;
        }
        let of_port = self.stations.values().filter(|station| station.port == port).count();
        if self.stations.len() >= ADDRESSES || of_port >= ADDRESSES_OF_A_PORT {
            let old = self.stations.len();
            self.stations.retain(|_, station| now - station.seen < AGEING);
            if self.stations.len() == old {
                return;
            }
        }
        self.stations.insert(address, Station { port, seen: now });
    }

    fn find(&self, address: Mac, now: Instant) -> Option<Arc<Port>> {
        let station = self.stations.get(&address)?;
        let fresh = now.saturating_duration_since(station.seen) < AGEING;
        fresh.then(|| self.port(station.port)).flatten()
    }

    fn port(&self, id: u64) -> Option<Arc<Port>> {
        let (_, port) = self.ports.iter().find(|(other, _)| *other == id)?;
        port.upgrade()
    }

    fn others(&self, id: u64) -> impl Iterator<Item = Arc<Port>> {
        let others = self.ports.iter().filter(move |(other, _)| *other != id);
        others.filter_map(|(_, port)| port.upgrade())
    }
}

/// Whether an address is that of a group: multicast or broadcast.
fn is_group(address: Mac) -> bool {
    address.first().is_some_and(|first| first & 1 != 0)
}

fn address(bytes: &[u8], at: usize) -> Option<Mac> {
    bytes.get(at..at + 6)?.try_into().ok()
}

/// A switch with any number of ports.
#[derive(Default)]
pub struct Switch {
    table: Mutex<Table>,
}

impl Switch {
    /// A switch without ports.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// A new port.
    #[must_use]
    pub fn plug(self: &Arc<Self>, config: PortConfig) -> Arc<Port> {
        let mut table = self.lock();
        let id = table.next;
        table.next += 1;
        let port = Arc::new(Port::new(Arc::clone(self), id, config));
        table.ports.push((id, Arc::downgrade(&port)));
        port
    }

    pub(crate) fn unplug(&self, id: u64) {
        let mut table = self.lock();
        table.ports.retain(|(other, _)| *other != id);
        table.stations.retain(|_, station| station.port != id);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries a frame from a port to those that it is for. Gives it back when it is for one that has no room, if one of
    /// the two is a service.
    pub(crate) fn forward(&self, from: &Port, frame: Frame) -> Result<(), Frame> {
        let (Some(to), Some(source)) = (address(&frame.bytes, 0), address(&frame.bytes, 6)) else {
            return Ok(());
        };
        let now = Instant::now();
        let mut table = self.lock();
        table.learn(source, from.id(), now);
        let known = if is_group(to) { None } else { table.find(to, now) };
        let Some(target) = known else {
            let all: Vec<Arc<Port>> = table.others(from.id()).collect();
            drop(table);
            return flood(from, &all, frame, is_group(to));
        };
        let listeners: Vec<Arc<Port>> = table
            .others(from.id())
            .filter(|port| port.id() != target.id() && port.overhears(from.role(), target.role()))
            .collect();
        drop(table);
        let overheard = (!listeners.is_empty()).then(|| frame.clone());
        if target.id() != from.id() {
            let patient = from.role() == Role::Service || target.role() == Role::Service;
            target.deliver(frame, patient.then_some(from))?;
        }
        if let Some(frame) = overheard {
            for port in listeners {
                // Nobody waits for listeners.
                let _ = port.deliver(frame.clone(), None);
            }
        }
        Ok(())
    }
}

/// Shows a frame to everybody. One that is addressed to an unknown station, where there is only one port that it can be at,
/// waits for room as if it were known.
fn flood(from: &Port, all: &[Arc<Port>], frame: Frame, group: bool) -> Result<(), Frame> {
    let Some((last, others)) = all.split_last() else {
        return Ok(());
    };
    for port in others {
        let _ = port.deliver(frame.clone(), None);
    }
    let patient = !group && others.is_empty() && (from.role() == Role::Service || last.role() == Role::Service);
    last.deliver(frame, patient.then_some(from))
}

impl Inspect for Switch {
    fn inspect(&self) -> Node {
        let (ports, stations) = {
            let table = self.lock();
            let ports: Vec<Arc<Port>> = table.others(u64::MAX).collect();
            (ports, table.stations.len())
        };
        let tree = ports
            .iter()
            .fold(Node::tree(), |tree, port| tree.with(port.name(), port.inspect()));
        Node::tree().with("addresses", stations as u64).with("ports", tree)
    }
}

#[cfg(test)]
mod tests;
