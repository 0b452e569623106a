//! The Marvell 88E1000/88E1011 transceiver of the 8254x, and the wires by which the 82543 reaches it.
//!
//! The link is there or not, always with 1000 Mbit/s and full duplex; negotiation takes no time. Loop-back works; power-down
//! takes the link away. Test modes, cable diagnostics and interrupts of the transceiver itself are not modelled.
//!
//! Spec: SDM 8254x §13.4.8 (MDIC), §8 (transceiver), tables 13-11 to 13-40; IEEE 802.3-2018 §22.2.4 (registers), §22.2.4.5 (frames).

use serde::Deserialize;
use serde::Serialize;

use super::Model;

const REGISTERS: usize = 32;
/// Address of the transceiver on the management bus.
const ADDRESS: u32 = 1;

/// Register numbers.
mod reg {
    pub(super) const CONTROL: u32 = 0;
    pub(super) const STATUS: u32 = 1;
    pub(super) const ID1: u32 = 2;
    pub(super) const ID2: u32 = 3;
    pub(super) const PARTNER: u32 = 5;
    pub(super) const EXPANSION: u32 = 6;
    pub(super) const GIGABIT_STATUS: u32 = 10;
    pub(super) const EXTENDED_STATUS: u32 = 15;
    pub(super) const SPECIFIC_STATUS: u32 = 17;
    pub(super) const INTERRUPT_STATUS: u32 = 19;
    pub(super) const ERRORS: u32 = 21;
}

/// CONTROL: reset, loop-back, negotiation enabled, power-down, restart of negotiation.
const RESET: u16 = 1 << 15;
const LOOPBACK: u16 = 1 << 14;
const POWER_DOWN: u16 = 1 << 11;
const RESTART: u16 = 1 << 9;
const CONTROL: u16 = 0x1140;
/// STATUS: what can be, negotiation complete, link (latches low).
const CAPABLE: u16 = 0x7949;
const COMPLETE: u16 = 1 << 5;
const LINK: u16 = 1 << 2;
/// SPECIFIC_STATUS: 1000 Mbit/s, full duplex, resolved, link.
const RESOLVED: u16 = 0xac00;
/// MDIC: operations, ready, error.
const WRITE: u32 = 1;
const READ: u32 = 2;
const READY: u32 = 1 << 28;
const ERROR: u32 = 1 << 30;

/// A management frame on the wires, bit by bit (§22.2.4.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Wires {
    clock: bool,
    /// Bits since the start of the frame.
    bits: u8,
    input: u32,
    output: u16,
    out: bool,
}

/// The transceiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Phy {
    registers: Vec<u16>,
    /// The cable is plugged in.
    cable: bool,
    /// STATUS has been read since the link was lost.
    link_lost: bool,
    wires: Wires,
}

impl Phy {
    pub(super) fn new(model: Model, cable: bool) -> Self {
        let mut phy = Self {
            registers: vec![0; REGISTERS],
            cable,
            link_lost: false,
            wires: Wires::default(),
        };
        phy.reset(model);
        phy
    }

    /// Goes to the state after a hardware reset.
    pub(super) fn reset(&mut self, model: Model) {
        self.registers.fill(0);
        #[rustfmt::skip]
        let values = [
            (reg::CONTROL, CONTROL), (reg::ID1, 0x0141), (reg::ID2, model.phy_id()), (4, 0x0de1), (9, 0x0e00),
            (reg::EXTENDED_STATUS, 0x3000), (16, 0x0068), (20, 0x0d60), (24, 0x4100),
        ];
        for (at, value) in values {
            self.set(at, value);
        }
        self.wires = Wires::default();
        self.link_lost = !self.cable;
    }

    pub(super) fn is_sound(&self) -> bool {
        self.registers.len() == REGISTERS && self.wires.bits <= 32
    }

    fn get(&self, at: u32) -> u16 {
        self.registers.get(at as usize).copied().unwrap_or(0)
    }

    fn set(&mut self, at: u32, value: u16) {
        if let Some(register) = self.registers.get_mut(at as usize) {
            *register = value;
        }
    }

    /// Whether frames go back where they come from.
    pub(super) fn loops(&self) -> bool {
        self.get(reg::CONTROL) & LOOPBACK != 0
    }

    /// Whether the link is up.
    pub(super) fn link(&self) -> bool {
        self.cable && self.get(reg::CONTROL) & POWER_DOWN == 0
    }

    /// The cable is plugged in or out. True if that changes the link.
    pub(super) fn set_cable(&mut self, cable: bool) -> bool {
        let was = self.link();
        self.cable = cable;
        self.changed_from(was)
    }

    fn changed_from(&mut self, was: bool) -> bool {
        let now = self.link();
        self.link_lost |= was && !now;
        was != now
    }

    fn read(&mut self, at: u32) -> u16 {
        let link = self.link();
        let value = match at {
            reg::STATUS => {
                // The link bit stays low once, if the link was lost meanwhile.
                let shown = link && !std::mem::take(&mut self.link_lost);
                CAPABLE | if link { COMPLETE } else { 0 } | if shown { LINK } else { 0 }
            }
            reg::PARTNER if link => 0x45e1,
            reg::EXPANSION if link => 0x0007,
            reg::GIGABIT_STATUS if link => 0x3c00,
            reg::SPECIFIC_STATUS => {
                if link || self.loops() {
                    RESOLVED
                } else {
                    0x8000
                }
            }
            _ => self.get(at),
        };
        if matches!(at, reg::INTERRUPT_STATUS | reg::ERRORS) {
            self.set(at, 0);
        }
        value
    }

    /// Writes a register. True if the link went, came, or was negotiated anew.
    fn write(&mut self, at: u32, value: u16, model: Model) -> bool {
        let was = self.link();
        match at {
            reg::CONTROL if value & RESET != 0 => {
                self.reset(model);
                self.link()
            }
            reg::CONTROL => {
                self.set(at, value & !(RESET | RESTART | 0x3f));
                let restarted = value & RESTART != 0 && self.link();
                self.changed_from(was) || restarted
            }
            reg::STATUS | reg::ID1 | reg::ID2 | reg::PARTNER | reg::EXPANSION => false,
            reg::GIGABIT_STATUS | reg::EXTENDED_STATUS | reg::SPECIFIC_STATUS => false,
            _ => {
                self.set(at, value);
                false
            }
        }
    }

    /// MDIC is written: what it reads as, and whether the link changed.
    pub(super) fn access(&mut self, value: u32, model: Model) -> (u32, bool) {
        let (at, address) = (value >> 16 & 31, value >> 21 & 31);
        let kept = value & !(READY | ERROR | 0x8000_0000);
        if address != ADDRESS {
            return (kept | READY | ERROR, false);
        }
        match value >> 26 & 3 {
            READ => (kept & !0xffff | u32::from(self.read(at)) | READY, false),
            WRITE => {
                let data = u16::try_from(value & 0xffff).unwrap_or(0);
                (kept | READY, self.write(at, data, model))
            }
            _ => (kept | READY | ERROR, false),
        }
    }

    /// What the transceiver puts on the data wire.
    pub(super) fn data_out(&self) -> bool {
        self.wires.out
    }

    /// The wires change: the clock, and the data that the card drives, if it does. True if the link changed.
    pub(super) fn wire(&mut self, clock: bool, data: Option<bool>, model: Model) -> bool {
        if !clock || std::mem::replace(&mut self.wires.clock, clock) {
            self.wires.clock = clock;
            return false;
        }
        let Wires { bits, .. } = self.wires;
        // Start (01), operation, five bits of address, five of register, turn-around, sixteen of data.
        let bit = data.unwrap_or(true);
        match bits {
            0 => {
                // Preamble: ones.
                if !bit {
                    (self.wires.bits, self.wires.input) = (1, 0);
                }
                return false;
            }
            1 if !bit => return false,
            _ => {}
        }
        self.wires.bits += 1;
        self.wires.input = self.wires.input << 1 | u32::from(bit);
        let input = self.wires.input;
        if self.wires.bits == 14 {
            let (at, address) = (input & 31, input >> 5 & 31);
            let reads = input >> 10 & 3 == READ && address == ADDRESS;
            self.wires.output = if reads { self.read(at) } else { u16::MAX };
        }
        match self.wires.bits {
            // The first bit is there before the clock that it is read with.
            bits @ 15..=31 => self.wires.out = self.wires.output >> (31 - bits).min(15) & 1 != 0,
            32.. => {
                self.wires.bits = 0;
                self.wires.out = true;
                let written = input >> 28 & 3 == WRITE && input >> 23 & 31 == ADDRESS;
                if written {
                    let data = u16::try_from(input & 0xffff).unwrap_or(0);
                    return self.write(input >> 18 & 31, data, model);
                }
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: Model = Model::I82540Em;

    fn read(phy: &mut Phy, at: u32) -> u16 {
        let (value, _) = phy.access(READ << 26 | ADDRESS << 21 | at << 16, MODEL);
        assert_eq!(value & (READY | ERROR), READY);
        (value & 0xffff) as u16
    }

    #[test]
    fn lost_link_is_seen_once_even_if_it_is_back() {
        let mut phy = Phy::new(MODEL, true);
        assert_eq!(read(&mut phy, 1) & (LINK | COMPLETE), LINK | COMPLETE);
        assert!(phy.set_cable(false) && phy.set_cable(true));
        assert_eq!(read(&mut phy, 1) & LINK, 0);
        assert_eq!(read(&mut phy, 1) & LINK, LINK);
        assert_eq!(read(&mut phy, 17), RESOLVED);
    }

    #[test]
    fn power_down_takes_the_link_and_others_on_the_bus_are_not_there() {
        let mut phy = Phy::new(MODEL, true);
        let (_, changed) = phy.access(WRITE << 26 | ADDRESS << 21 | 0x1940, MODEL);
        assert!(changed && !phy.link());
        let (value, _) = phy.access(READ << 26 | 2 << 21, MODEL);
        assert_eq!(value & (READY | ERROR), READY | ERROR);
    }

    /// As the driver of the 82543 does it: preamble, command by the card, then data by either.
    fn by_wire(phy: &mut Phy, command: u32, bits: u32, data: Option<u16>) -> u16 {
        let clock = |phy: &mut Phy, bit: Option<bool>| {
            phy.wire(false, bit, MODEL);
            phy.wire(true, bit, MODEL);
            let out = phy.data_out();
            phy.wire(false, bit, MODEL);
            out
        };
        (0..32).for_each(|_| {
            clock(phy, Some(true));
        });
        (0..bits).rev().for_each(|bit| {
            clock(phy, Some(command >> bit & 1 != 0));
        });
        match data {
            Some(data) => (0..16).rev().for_each(|bit| {
                clock(phy, Some(data >> bit & 1 != 0));
            }),
            None => {
                clock(phy, None);
                let read = (0..16).fold(0, |value, _| value << 1 | u16::from(clock(phy, None)));
                clock(phy, None);
                return read;
            }
        }
        0
    }

    #[test]
    fn registers_are_reached_by_wires() {
        let mut phy = Phy::new(Model::I82543Gc, true);
        let read = |at: u32| 0b01_10 << 10 | ADDRESS << 5 | at;
        assert_eq!(by_wire(&mut phy, read(2), 14, None), 0x0141);
        let write = (0b01_01 << 10 | ADDRESS << 5 | 20) << 2 | 0b10;
        by_wire(&mut phy, write, 16, Some(0x1234));
        assert_eq!(by_wire(&mut phy, read(20), 14, None), 0x1234);
        assert_eq!(by_wire(&mut phy, read(3), 14, None), 0x0c50);
    }
}
