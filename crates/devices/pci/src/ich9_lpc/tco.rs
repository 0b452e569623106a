//! The watchdog timer of an ICH9's TCO block.
//!
//! It counts down in steps of 0.6 s. When it ends, TIMEOUT is set and it begins again; when it ends a second time without
//! having been reloaded, SECOND_TO_STS is set and the machine is reset, unless NO_REBOOT forbids it. There is no system
//! management mode, so nobody is told of the first end. The messages and TCO_DAT registers keep what is written.
//!
//! DEVIATION: the timer is halted after a reset, as a BIOS of such a board leaves it; those for virtual machines do not know it.
//!
//! Spec: Intel 316972 (ICH9) §13.9 (system management TCO registers).

use std::sync::Arc;

use chipset::reset_control::PowerControl;
use device_model::Clock;
use device_model::Node;
use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

/// Bytes of the block.
pub(super) const LEN: usize = 32;
/// Nanoseconds of a step.
const STEP_NS: u64 = 600_000_000;
/// The timer has 10 bits; fewer steps than these are taken for as many.
const COUNT: u16 = 0x3ff;
const LEAST: u16 = 2;

/// Registers by offset.
mod reg {
    /// TCO_RLD, reload (RW): reads as the steps left, and a write begins anew.
    pub(super) const RLD: usize = 0x00;
    /// TCO1_STS, status (RW1C).
    pub(super) const STS1: usize = 0x04;
    /// TCO2_STS, status (RW1C).
    pub(super) const STS2: usize = 0x06;
    /// TCO1_CNT, control (RW).
    pub(super) const CNT1: usize = 0x08;
    /// TCO_TMR, steps to begin with (RW).
    pub(super) const TMR: usize = 0x12;
}

/// Value after reset.
#[rustfmt::skip]
const RESET: [u8; LEN] = {
    let mut bytes = [0; LEN];
    bytes[reg::CNT1 + 1] = HALT;
    bytes[0x0a] = 0x08; // TCO2_CNT
    bytes[0x10] = 0x03; // SW_IRQ_GEN
    bytes[reg::TMR] = 0x04;
    bytes
};
/// Bits that can be written.
#[rustfmt::skip]
const WRITABLE: [u8; LEN] = {
    let mut bytes = [0; LEN];
    bytes[0x02] = 0xff; // TCO_DAT_IN
    bytes[0x03] = 0xff; // TCO_DAT_OUT
    bytes[reg::CNT1 + 1] = HALT | LOCK | 0x02;
    bytes[0x0a] = 0x3f; // TCO2_CNT
    bytes[0x0c] = 0xff; // TCO_MESSAGE1
    bytes[0x0d] = 0xff; // TCO_MESSAGE2
    bytes[0x0e] = 0xff; // TCO_WDCNT
    bytes[0x10] = 0x03; // SW_IRQ_GEN
    bytes[reg::TMR] = 0xff;
    bytes[reg::TMR + 1] = 0x03;
    bytes
};
/// Bits that are cleared by writing ones.
const CLEARED: [(usize, u8); 4] = [
    (reg::STS1, 0x8f),
    (reg::STS1 + 1, 0x1f),
    (reg::STS2, 0x17),
    (reg::STS2 + 1, 0x00),
];
/// TCO1_CNT, high byte: the timer stands still; that is so until the next reset.
const HALT: u8 = 1 << 3;
const LOCK: u8 = 1 << 4;
/// TCO1_STS: the timer has ended.
const TIMEOUT: u8 = 1 << 3;
/// TCO2_STS: it has ended twice; and it did so before the processor fetched its first instruction.
const SECOND_TO: u8 = 1 << 1;

/// The block.
pub(super) struct Tco {
    // Wiring
    clock: Arc<dyn Clock>,
    power: Arc<dyn PowerControl>,
    // State
    registers: [u8; LEN],
    /// When the timer ends; none while it is halted.
    end: Option<VmTime>,
    /// Steps that were left when it was halted.
    left: u16,
    /// It has ended once since the last reload.
    ended: bool,
}

impl Tco {
    pub(super) fn new(clock: Arc<dyn Clock>, power: Arc<dyn PowerControl>) -> Self {
        let mut this = Self {
            clock,
            power,
            registers: RESET,
            end: None,
            left: 0,
            ended: false,
        };
        this.reset();
        this
    }

    pub(super) fn reset(&mut self) {
        (self.registers, self.end, self.ended) = (RESET, None, false);
        self.left = self.steps();
    }

    fn byte(&self, at: usize) -> u8 {
        self.registers.get(at).copied().unwrap_or(0)
    }

    fn set(&mut self, at: usize, value: u8) {
        if let Some(byte) = self.registers.get_mut(at) {
            *byte = value;
        }
    }

    /// Steps to begin with.
    fn steps(&self) -> u16 {
        (u16::from_le_bytes([self.byte(reg::TMR), self.byte(reg::TMR + 1)]) & COUNT).max(LEAST)
    }

    fn halted(&self) -> bool {
        self.byte(reg::CNT1 + 1) & HALT != 0
    }

    /// Steps that are left.
    fn count(&self) -> u16 {
        let Some(end) = self.end else {
            return self.left;
        };
        let ns = end.as_ns().saturating_sub(self.clock.now().as_ns());
        u16::try_from(ns.div_ceil(STEP_NS)).unwrap_or(COUNT)
    }

    /// Lets it run from `steps` on, unless it is halted.
    fn run(&mut self, steps: u16) {
        self.left = steps;
        let end = self.clock.now().as_ns().saturating_add(u64::from(steps) * STEP_NS);
        self.end = (!self.halted()).then(|| VmTime::from_ns(end));
    }

    pub(super) fn read(&self, at: usize) -> u8 {
        let [low, high] = self.count().to_le_bytes();
        match at {
            reg::RLD => low,
            1 => high,
            _ => self.byte(at),
        }
    }

    pub(super) fn write(&mut self, at: usize, value: u8) {
        if at == reg::RLD {
            self.ended = false;
            self.run(self.steps());
            return;
        }
        let cleared = CLEARED.iter().find(|(register, _)| *register == at);
        let cleared = cleared.map_or(0, |(_, bits)| *bits);
        let writable = WRITABLE.get(at).copied().unwrap_or(0);
        let locked = at == reg::CNT1 + 1 && self.byte(at) & LOCK != 0;
        let old = self.byte(at);
        // A locked register keeps what it has, its lock too.
        let writable = if locked { writable & !(HALT | LOCK) } else { writable };
        self.set(at, old & !writable & !(value & cleared) | value & writable);
        if at == reg::CNT1 + 1 && (old ^ self.byte(at)) & HALT != 0 {
            let steps = if self.halted() { self.count() } else { self.left };
            self.run(steps);
        }
    }

    /// Ends that have come. The machine is reset at the second, if `reboots`.
    pub(super) fn poll(&mut self, now: VmTime, reboots: bool) -> Option<VmTime> {
        if self.end.is_some_and(|end| end <= now) {
            self.set(reg::STS1, self.byte(reg::STS1) | TIMEOUT);
            if self.ended {
                self.set(reg::STS2, self.byte(reg::STS2) | SECOND_TO);
                if reboots {
                    tracing::warn!("the watchdog resets the machine");
                    self.power.reset();
                }
            }
            self.ended = true;
            self.run(self.steps());
        }
        self.end
    }

    pub(super) fn save(&self) -> TcoV1 {
        let Self {
            clock: _,
            power: _,
            registers,
            end,
            left,
            ended,
        } = self;
        TcoV1 {
            registers: *registers,
            end: end.map(VmTime::as_ns),
            left: *left,
            ended: *ended,
        }
    }

    pub(super) fn restore(&mut self, state: &TcoV1) {
        let TcoV1 {
            registers,
            end,
            left,
            ended,
        } = state;
        self.registers = *registers;
        self.ended = *ended;
        self.left = (*left).min(COUNT);
        // An end that is further off than the timer counts is no state of it.
        let longest = self.clock.now().as_ns().saturating_add(u64::from(COUNT) * STEP_NS);
        let end = end.map(|end| VmTime::from_ns(end.min(longest)));
        self.end = end.filter(|_| !self.halted());
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("running", self.end.is_some())
            .with("steps_left", self.count())
            .with("ended", self.ended)
    }
}

/// Saved state of [`Tco`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct TcoV1 {
    registers: [u8; LEN],
    end: Option<u64>,
    left: u16,
    ended: bool,
}
