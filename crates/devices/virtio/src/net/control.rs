//! The queue of commands: what the driver wants to see, its address, the queues that it uses, what it takes unfinished.
//!
//! Spec: virtio 1.2 §5.1.6.5.

use device_model::net::Mac;
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;

use super::Net;
use super::net_feature;
use crate::Chain;
use crate::RingError;
use crate::Rings;

/// Addresses of a table that are compared; more are as if all were wanted.
const TABLE: usize = 64;
/// Addresses of a table that are read.
const LISTED: u32 = 1024;
/// How commands end.
const OK: u8 = 0;
const ERROR: u8 = 1;

/// Classes of commands.
mod class {
    pub(super) const RX: u8 = 0;
    pub(super) const MAC: u8 = 1;
    pub(super) const MQ: u8 = 4;
    pub(super) const OFFLOADS: u8 = 5;
}

/// A table of addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    addresses: Vec<Mac>,
    overflow: bool,
}

/// Which frames the driver wants to see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Filter {
    pub(super) promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: Table,
    multicast: Table,
}

impl Filter {
    /// Whether a frame is wanted by a card whose address is `mac`.
    pub(super) fn passes(&self, frame: &[u8], mac: Mac) -> bool {
        let Some(Ok(to)) = frame.get(..6).map(Mac::try_from) else {
            return false;
        };
        let listed = |table: &Table| table.overflow || table.addresses.contains(&to);
        if self.promiscuous {
            return true;
        }
        match to {
            [0xff, 0xff, 0xff, 0xff, 0xff, 0xff] => !self.no_broadcast,
            [first, ..] if first & 1 != 0 => !self.no_multicast && (self.all_multicast || listed(&self.multicast)),
            _ => !self.no_unicast && (self.all_unicast || to == mac || listed(&self.unicast)),
        }
    }

    pub(super) fn is_sound(&self) -> bool {
        [&self.unicast, &self.multicast]
            .iter()
            .all(|table| table.addresses.len() <= TABLE)
    }
}

/// Reads a table; none when it is not whole, or too long to be one.
fn table(chain: &mut Chain, memory: &GuestMemory) -> Result<Option<Table>, RingError> {
    if chain.readable_len() < 4 {
        return Ok(None);
    }
    let count: u32 = chain.take_obj(memory)?;
    if count > LISTED || chain.readable_len() < u64::from(count) * 6 {
        return Ok(None);
    }
    let mut table = Table::default();
    for _ in 0..count {
        let address: Mac = chain.take_obj(memory)?;
        if table.addresses.len() < TABLE {
            table.addresses.push(address);
        } else {
            table.overflow = true;
        }
    }
    Ok(Some(table))
}

impl Net {
    /// Carries commands out.
    pub(super) fn commands(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        let queue = self.control_queue();
        while let Some(mut chain) = rings.pop(queue) {
            let [class, command]: [u8; 2] = chain.take_obj(rings.memory())?;
            let well = self.command(class, command, &mut chain, rings.memory())?;
            let put = chain.put(rings.memory(), &[if well { OK } else { ERROR }])?;
            if put == 0 {
                return Err(RingError::Shape);
            }
            rings.push(queue, chain.head, 1);
            self.tell_port();
        }
        Ok(())
    }

    fn command(&mut self, class: u8, command: u8, chain: &mut Chain, memory: &GuestMemory) -> Result<bool, RingError> {
        let len = chain.readable_len();
        match (class, command) {
            (class::RX, 0..=5) if len == 1 => {
                let [on]: [u8; 1] = chain.take_obj(memory)?;
                let filter = &mut self.state.filter;
                let flag = match command {
                    0 => &mut filter.promiscuous,
                    1 => &mut filter.all_multicast,
                    2 => &mut filter.all_unicast,
                    3 => &mut filter.no_multicast,
                    4 => &mut filter.no_unicast,
                    _ => &mut filter.no_broadcast,
                };
                *flag = on != 0;
                Ok(true)
            }
            (class::MAC, 0) => {
                let (Some(unicast), Some(multicast)) = (table(chain, memory)?, table(chain, memory)?) else {
                    return Ok(false);
                };
                (self.state.filter.unicast, self.state.filter.multicast) = (unicast, multicast);
                Ok(true)
            }
            (class::MAC, 1) if len == 6 => {
                self.state.mac = chain.take_obj(memory)?;
                Ok(true)
            }
            (class::MQ, 0) if len == 2 && self.has(net_feature::MQ) => {
                let pairs = u16::from_le_bytes(chain.take_obj(memory)?);
                let known = (1..=self.config.pairs).contains(&pairs);
                if known {
                    self.state.pairs = pairs;
                    // What waits goes to a pair that is in use.
                    if self.arrived.as_ref().is_some_and(|(pair, _)| *pair >= pairs.into()) {
                        self.arrived = None;
                    }
                }
                Ok(known)
            }
            (class::OFFLOADS, 0) if len == 8 && self.has(net_feature::CTRL_GUEST_OFFLOADS) => {
                let wanted = u64::from_le_bytes(chain.take_obj(memory)?);
                let known = wanted & !(self.state.features & net_feature::GUEST_OFFLOADS) == 0;
                if known {
                    self.state.offloads = wanted;
                }
                Ok(known)
            }
            _ => Ok(false),
        }
    }
}
