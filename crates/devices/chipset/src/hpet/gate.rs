//! The wires of ISA interrupts 0 and 8, which legacy replacement takes from the 8254 and the real-time clock.
//!
//! Spec: HPET 1.0a §2.3.5 (LEG_RT_CNF).

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use device_model::IrqLine;
use device_model::LineTarget;

#[derive(Default)]
struct Levels {
    replaced: bool,
    inputs: [bool; 2],
}

/// Passes two lines on, or holds them low while the event timer stands in for their devices.
///
/// The one lock within a device: it makes a change of the gate and one of a line, which come from different devices, reach
/// the output in one order. Under it only the output lines are driven.
pub struct LegacyGate {
    outputs: [IrqLine; 2],
    levels: Mutex<Levels>,
}

impl LegacyGate {
    /// A gate in front of the lines of ISA interrupts 0 and 8.
    #[must_use]
    pub fn new(irq0: IrqLine, irq8: IrqLine) -> Arc<Self> {
        Arc::new(Self {
            outputs: [irq0, irq8],
            levels: Mutex::default(),
        })
    }

    /// The line for the 8254.
    #[must_use]
    pub fn irq0(self: &Arc<Self>) -> IrqLine {
        IrqLine::new(Arc::clone(self) as Arc<dyn LineTarget>, 0)
    }

    /// The line for the real-time clock.
    #[must_use]
    pub fn irq8(self: &Arc<Self>) -> IrqLine {
        IrqLine::new(Arc::clone(self) as Arc<dyn LineTarget>, 1)
    }

    pub(super) fn set_replaced(&self, replaced: bool) {
        let mut levels = self.lock();
        levels.replaced = replaced;
        self.drive(&levels);
    }

    fn drive(&self, levels: &Levels) {
        for (output, input) in self.outputs.iter().zip(levels.inputs) {
            output.set(input && !levels.replaced);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Levels> {
        self.levels.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LineTarget for LegacyGate {
    fn set_line(&self, pin: u32, level: bool) {
        let mut levels = self.lock();
        if let Some(input) = usize::try_from(pin).ok().and_then(|pin| levels.inputs.get_mut(pin)) {
            *input = level;
        }
        self.drive(&levels);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use test_kit::IrqProbe;

    #[test]
    fn replaced_lines_stay_low_and_come_back() {
        let probe = IrqProbe::new();
        let gate = LegacyGate::new(probe.line(0), probe.line(8));
        let (irq0, irq8) = (gate.irq0(), gate.irq8());
        irq0.set(true);
        assert!(probe.level(0) && !probe.level(8));
        gate.set_replaced(true);
        irq8.pulse();
        assert!(!probe.level(0));
        assert_eq!(probe.rises(8), 0);
        irq8.set(true);
        gate.set_replaced(false);
        assert!(probe.level(0) && probe.level(8));
    }
}
