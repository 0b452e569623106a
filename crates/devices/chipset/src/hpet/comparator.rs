//! One comparator of the event timer block.
//!
//! Spec: HPET 1.0a §2.3.8 (configuration), §2.3.9 (comparator), §2.3.9.2 (non-periodic and periodic mode).

use bitfield_struct::bitfield;
use device_model::MsiMessage;
use device_model::Node;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;

use super::COMPARATORS;

/// Inputs that a comparator can be routed to: those of an ICH9.
const ROUTE_CAP: [u32; COMPARATORS] = [0x00F0_0000, 0x00F0_0000, 0x00F0_0800];

/// Configuration and capabilities, without the routing capabilities in the upper half.
#[bitfield(u32)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Conf {
    __: bool,
    /// Interrupt type (RW).
    pub(super) level: bool,
    /// Interrupt enable (RW).
    pub(super) enabled: bool,
    /// Type (RW).
    pub(super) periodic: bool,
    /// Can be periodic (RO).
    periodic_cap: bool,
    /// Has 64 bits (RO).
    size_cap: bool,
    /// The next write of a periodic comparator sets its value, not only its period (WO).
    val_set: bool,
    __: bool,
    /// Counts in 32 bits (RW).
    mode32: bool,
    #[bits(5)]
    route: u8,
    /// Delivery by message (RW).
    pub(super) fsb: bool,
    /// Can deliver by message (RO).
    fsb_cap: bool,
    #[bits(16)]
    __: u16,
}

impl Conf {
    const WRITABLE: u32 = 0x7F4E;
}

/// A comparator.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Comparator {
    conf: Conf,
    route_cap: u32,
    value: u64,
    period: u64,
    fsb_route: u64,
    /// Count up to which matches have been seen.
    seen: u64,
}

/// The comparators after reset.
pub(super) fn at_reset() -> [Comparator; COMPARATORS] {
    ROUTE_CAP.map(|route_cap| Comparator {
        conf: Conf::new(),
        route_cap,
        value: u64::MAX,
        period: 0,
        fsb_route: 0,
        seen: 0,
    })
}

/// Whether saved comparators can be.
pub(super) fn are_legal(comparators: &[Comparator; COMPARATORS]) -> bool {
    comparators.iter().zip(ROUTE_CAP).all(|(timer, route_cap)| {
        timer.conf.into_bits() & !Conf::WRITABLE == 0
            && timer.route_cap == route_cap
            && (timer.value | timer.period) & !timer.ones() == 0
    })
}

impl Comparator {
    fn ones(&self) -> u64 {
        if self.conf.mode32() { 0xFFFF_FFFF } else { u64::MAX }
    }

    pub(super) fn conf(&self) -> Conf {
        self.conf
    }

    pub(super) fn read_conf(&self) -> u64 {
        let conf = self.conf.with_val_set(false);
        let conf = conf.with_periodic_cap(true).with_size_cap(true).with_fsb_cap(true);
        u64::from(self.route_cap) << 32 | u64::from(conf.into_bits())
    }

    pub(super) fn write_conf(&mut self, value: u64) {
        let route = self.conf.route();
        self.conf = Conf::from_bits(lanes::dword(value) & Conf::WRITABLE);
        if self.route().is_none() {
            self.conf.set_route(route);
        }
        self.value &= self.ones();
        self.period &= self.ones();
    }

    /// The input that interrupts go to.
    pub(super) fn route(&self) -> Option<usize> {
        let route = self.conf.route();
        (self.route_cap >> route & 1 != 0).then_some(route.into())
    }

    pub(super) fn value(&self) -> u64 {
        self.value
    }

    /// Writes the value. `merged` holds what the bits outside of `mask` already are.
    pub(super) fn write_value(&mut self, merged: u64, mask: u64, count: u64) {
        if self.conf.periodic() {
            // What a partial write leaves of the period is the period's, not the value's.
            self.period = (self.period & !mask | merged & mask) & self.ones();
        }
        if !self.conf.periodic() || self.conf.val_set() {
            self.value = merged & self.ones();
            // A value that is the present count matches.
            self.seen = count.wrapping_sub(1);
        }
        self.conf.set_val_set(false);
    }

    pub(super) fn fsb_route(&self) -> u64 {
        self.fsb_route
    }

    pub(super) fn set_fsb_route(&mut self, value: u64) {
        self.fsb_route = value;
    }

    pub(super) fn message(&self) -> MsiMessage {
        MsiMessage {
            address: self.fsb_route >> 32,
            data: lanes::dword(self.fsb_route),
        }
    }

    /// The counter was set or started: only what comes after `count` matches.
    pub(super) fn watch_from(&mut self, count: u64) {
        self.seen = count;
    }

    /// Whether the counter has passed the value since the last call; a periodic value then moves on.
    pub(super) fn expire(&mut self, count: u64) -> bool {
        let passed = count.wrapping_sub(self.seen);
        let before = self.value.wrapping_sub(self.seen).wrapping_sub(1) & self.ones();
        self.seen = count;
        if before >= passed {
            return false;
        }
        if self.conf.periodic() && self.period != 0 {
            let periods = (passed - 1 - before) / self.period;
            let ahead = self.period.wrapping_mul(periods.wrapping_add(1));
            self.value = self.value.wrapping_add(ahead) & self.ones();
        }
        true
    }

    /// Ticks until the next match that anyone is told of, seen right after [`Self::expire`].
    pub(super) fn ticks_left(&self, count: u64) -> Option<u64> {
        if !self.conf.enabled() {
            return None;
        }
        let before = self.value.wrapping_sub(count).wrapping_sub(1) & self.ones();
        before.checked_add(1)
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("conf", self.conf.into_bits())
            .with("value", self.value)
            .with("period", self.period)
            .with("fsb_route", self.fsb_route)
    }
}
