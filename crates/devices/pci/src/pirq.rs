//! Interrupt pins of PCI functions: from INTA#-INTD# over the board's four lines to ISA interrupts.
//!
//! Each slot's four pins reach the lines PIRQA#-PIRQD# shifted by the slot's number, so that functions spread over them. A
//! register of the ISA bridge says which ISA interrupt each line becomes.
//!
//! Spec: Intel 290550-002 (PIIX3) §2.2.10 (PIRQRC); PCI Local Bus 3.0 §2.2.6 (pins).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use device_model::IrqLine;
use device_model::LineTarget;

/// Lines of the board.
pub const LINES: usize = 4;
/// ISA interrupts.
pub const ISA_LINES: usize = 16;

#[derive(Default)]
struct State {
    /// Sources that hold each line asserted.
    sources: [u32; LINES],
    /// The ISA interrupt of each line.
    routes: [Option<u8>; LINES],
}

/// The router.
pub struct PirqRouter {
    /// For each line one end of every ISA interrupt.
    isa: Vec<Vec<IrqLine>>,
    state: Mutex<State>,
}

impl PirqRouter {
    /// A router that drives ends of ISA interrupts that `isa` gives. No line is routed.
    pub fn new(isa: impl Fn(u32) -> IrqLine) -> Arc<Self> {
        let ends = |_| (0..16).map(&isa).collect();
        Arc::new(Self {
            isa: (0..LINES).map(ends).collect(),
            state: Mutex::default(),
        })
    }

    /// The line that pin `pin` (1 for INTA# to 4 for INTD#) of slot `slot` reaches.
    pub fn pin(self: &Arc<Self>, slot: u8, pin: u8) -> IrqLine {
        // Slot 1 is the first behind the host bridge: its INTA# is PIRQA#.
        let line = (u32::from(slot) + 3 + u32::from(pin.saturating_sub(1))) % 4;
        IrqLine::new(Arc::clone(self) as Arc<dyn LineTarget>, line)
    }

    /// Routes line `line` to ISA interrupt `irq`, or to none.
    pub fn route(&self, line: usize, irq: Option<u8>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let asserted = state.sources.get(line).is_some_and(|sources| *sources > 0);
        if let Some(route) = state.routes.get_mut(line)
            && *route != irq
        {
            let old = std::mem::replace(route, irq);
            self.drive(line, old, false);
            self.drive(line, irq, asserted);
        }
    }

    fn drive(&self, line: usize, irq: Option<u8>, level: bool) {
        let ends = self.isa.get(line);
        if let Some(end) = irq.and_then(|irq| ends?.get(usize::from(irq))) {
            end.set(level);
        }
    }
}

impl LineTarget for PirqRouter {
    fn set_line(&self, pin: u32, level: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let line = usize::try_from(pin).unwrap_or(usize::MAX);
        let Some(sources) = state.sources.get_mut(line) else {
            return;
        };
        *sources = if level { *sources + 1 } else { sources.saturating_sub(1) };
        let asserted = *sources > 0;
        let irq = state.routes.get(line).copied().flatten();
        // The table stays locked, so that the controllers see the changes of one line in their order.
        self.drive(line, irq, asserted);
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
}
