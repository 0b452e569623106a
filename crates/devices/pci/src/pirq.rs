//! Interrupt pins of PCI functions: from INTA#-INTD# over the board's lines to ISA interrupts.
//!
//! Each slot's four pins reach the lines PIRQA#-PIRQD# shifted by the slot's number, so that functions spread over them. A
//! register of the ISA bridge says which ISA interrupt each line becomes. An ICH9 has four lines more, PIRQE#-PIRQH#, for
//! what is no part of itself, and its lines are also pins 16-23 of the I/O APIC, whatever the registers say.
//!
//! Spec: Intel 290550-002 (PIIX3) §2.2.10 (PIRQRC); Intel 316972 (ICH9) §5.10 (interrupts), §10.1.41 (D31IR);
//! PCI Local Bus 3.0 §2.2.6 (pins); PCI-to-PCI Bridge 1.2 §9.1 (pins behind bridges).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use device_model::IrqLine;
use device_model::LineTarget;

/// Lines of a PIIX.
pub const LINES: usize = 4;
/// Lines of an ICH9.
pub const ICH9_LINES: usize = 8;
/// ISA interrupts.
pub const ISA_LINES: usize = 16;
/// First slot whose pins an ICH9 routes by its registers D25IR-D31IR.
const ICH9_OWN: u8 = 25;

#[derive(Clone, Copy, Default)]
struct Line {
    /// Sources that hold it asserted.
    sources: u32,
    /// Its ISA interrupt.
    route: Option<u8>,
}

/// The router.
pub struct PirqRouter {
    // Wiring
    /// For each line one end of every ISA interrupt.
    isa: Vec<Vec<IrqLine>>,
    /// For each line its pin of the I/O APIC; none on a PIIX.
    direct: Vec<IrqLine>,
    // State: counts are the devices', routes the ISA bridge's
    lines: Mutex<Vec<Line>>,
}

impl PirqRouter {
    /// A PIIX's router that drives ends of ISA interrupts that `isa` gives. No line is routed.
    pub fn new(isa: impl Fn(u32) -> IrqLine) -> Arc<Self> {
        Self::with(LINES, isa, Vec::new())
    }

    /// An ICH9's router; `direct` are its lines' pins of the I/O APIC.
    pub fn ich9(isa: impl Fn(u32) -> IrqLine, direct: [IrqLine; ICH9_LINES]) -> Arc<Self> {
        Self::with(ICH9_LINES, isa, direct.into())
    }

    fn with(lines: usize, isa: impl Fn(u32) -> IrqLine, direct: Vec<IrqLine>) -> Arc<Self> {
        let ends = |_| (0..16).map(&isa).collect();
        Arc::new(Self {
            isa: (0..lines).map(ends).collect(),
            direct,
            lines: Mutex::new(vec![Line::default(); lines]),
        })
    }

    /// The line that pin `pin` (1 for INTA# to 4 for INTD#) of slot `slot` reaches.
    pub fn pin(self: &Arc<Self>, slot: u8, pin: u8) -> IrqLine {
        let pin = u32::from(pin.saturating_sub(1));
        let line = match (self.direct.is_empty(), slot) {
            // Slot 1 is the first behind the host bridge: its INTA# is PIRQA#.
            (true, _) => (u32::from(slot) + 3 + pin) % 4,
            (false, ICH9_OWN..) => pin % 4,
            (false, _) => 4 + (u32::from(slot) + pin) % 4,
        };
        IrqLine::new(Arc::clone(self) as Arc<dyn LineTarget>, line)
    }

    /// Routes line `line` to ISA interrupt `irq`, or to none.
    pub fn route(&self, line: usize, irq: Option<u8>) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = lines.get_mut(line)
            && state.route != irq
        {
            let old = std::mem::replace(&mut state.route, irq);
            self.drive(line, old, false);
            self.drive(line, irq, state.sources > 0);
        }
    }

    fn drive(&self, line: usize, irq: Option<u8>, level: bool) {
        let ends = self.isa.get(line);
        if let Some(end) = irq.and_then(|irq| ends?.get(usize::from(irq))) {
            end.set(level);
        }
    }
}

/// The pin of its bridge that pin `pin` of slot `slot` behind it reaches.
#[must_use]
pub const fn behind_bridge(slot: u8, pin: u8) -> u8 {
    (pin.saturating_sub(1) + slot % 4) % 4 + 1
}

impl LineTarget for PirqRouter {
    fn set_line(&self, pin: u32, level: bool) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let line = usize::try_from(pin).unwrap_or(usize::MAX);
        let Some(state) = lines.get_mut(line) else {
            return;
        };
        state.sources = if level {
            state.sources + 1
        } else {
            state.sources.saturating_sub(1)
        };
        // The table stays locked, so that the controllers see the changes of one line in their order.
        let asserted = state.sources > 0;
        self.drive(line, state.route, asserted);
        if let Some(direct) = self.direct.get(line) {
            direct.set(asserted);
        }
    }
}

#[cfg(test)]
mod tests {
    use test_kit::IrqProbe;

    use super::*;

    #[test]
    fn pins_of_slots_spread_over_the_lines_and_share_them() {
        let probe = IrqProbe::new();
        let router = PirqRouter::new(|irq| probe.line(irq));
        for (line, irq) in [(0, 10), (1, 11), (2, 5), (3, 9)] {
            router.route(line, Some(irq));
        }
        for (slot, pin, irq) in [(1, 1, 10), (1, 4, 9), (2, 1, 11), (3, 1, 5), (4, 2, 10), (31, 4, 11)] {
            let line = router.pin(slot, pin);
            line.set(true);
            assert!(probe.level(irq), "slot {slot} pin {pin}");
            line.set(false);
            assert!(!probe.level(irq));
        }
        let (one, other) = (router.pin(1, 1), router.pin(5, 1));
        one.set(true);
        other.set(true);
        one.set(false);
        assert!(probe.level(10));
        other.set(false);
        assert!(!probe.level(10));
    }

    #[test]
    fn asserted_line_moves_with_its_route() {
        let probe = IrqProbe::new();
        let router = PirqRouter::new(|irq| probe.line(irq));
        let line = router.pin(1, 1);
        line.set(true);
        router.route(0, Some(10));
        assert!(probe.level(10));
        router.route(0, Some(11));
        assert!(!probe.level(10) && probe.level(11));
        router.route(0, None);
        assert!(!probe.level(11));
    }

    #[test]
    fn lines_of_an_ich9_are_pins_of_the_ioapic_too() {
        let probe = IrqProbe::new();
        let router = PirqRouter::ich9(
            |irq| probe.line(irq),
            std::array::from_fn(|n| probe.line(16 + n as u32)),
        );
        for (slot, pin, gsi) in [
            (1, 1, 21),
            (1, 4, 20),
            (24, 2, 21),
            (25, 1, 16),
            (31, 2, 17),
            (31, 4, 19),
        ] {
            let line = router.pin(slot, pin);
            line.set(true);
            assert!(probe.level(gsi), "slot {slot} pin {pin}");
            line.set(false);
            assert!(!probe.level(gsi));
        }
        router.route(5, Some(10));
        router.pin(1, 1).set(true);
        assert!(probe.level(10) && probe.level(21));
    }

    #[test]
    fn pins_behind_a_bridge_are_shifted_by_their_slot() {
        let pins: Vec<u8> = (0..5).map(|slot| behind_bridge(slot, 1)).collect();
        assert_eq!(pins, [1, 2, 3, 4, 1]);
        assert_eq!(behind_bridge(1, 4), 1);
    }
}
