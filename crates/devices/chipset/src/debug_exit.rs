//! QEMU's `isa-debug-exit`: a port whose write ends the machine with the guest's own result.
//!
//! A write of any width reports the low byte of its value; the program's exit status `(value << 1) | 1` is made by the
//! board. Reads give zero.
//!
//! Spec: QEMU hw/misc/debugexit.c.

use std::sync::Arc;

use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::Node;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Space;
use device_model::Width;
use device_model::Widths;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;
use crate::reset_control::PowerControl;

/// The port that test suites expect by habit.
pub const USUAL_PORT: u64 = 0xF4;

const REGIONS: [Region; 1] = [Region {
    name: "debug_exit",
    space: Space::Pio,
    len: 4,
    widths: Widths::UP_TO_DWORD,
}];

/// The exit port.
pub struct DebugExit {
    // Wiring
    power: Arc<dyn PowerControl>,
    // State
    last: Option<u8>,
}

impl DebugExit {
    /// A port that ends the machine through `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self { power, last: None }
    }
}

impl Registers for DebugExit {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        Ok(0)
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let code = lanes::byte(value);
        self.last = Some(code);
        self.power.debug_exit(code);
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    match (at, width) {
        (_, Width::Qword) => Err(IoError::Width),
        (
            At {
                region: 0,
                offset: 0..4,
            },
            _,
        ) => Ok(()),
        _ => Err(IoError::NoRegister),
    }
}

impl Device for DebugExit {
    fn reset(&mut self, _kind: Reset) {
        self.last = None;
    }
}

impl Snapshot for DebugExit {
    type State = DebugExitV1;

    fn save(&self) -> DebugExitV1 {
        let Self { power: _, last } = self;
        DebugExitV1 { last: *last }
    }

    fn restore(&mut self, state: DebugExitV1) -> Result<(), RestoreError> {
        let DebugExitV1 { last } = state;
        self.last = last;
        Ok(())
    }
}

impl Inspect for DebugExit {
    fn inspect(&self) -> Node {
        match self.last {
            Some(code) => Node::tree().with("last", code),
            None => Node::tree(),
        }
    }
}

/// Saved state of [`DebugExit`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DebugExitV1 {
    last: Option<u8>,
}

impl Schema for DebugExitV1 {
    const NAME: &'static str = "debug_exit";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use device_model::TestClock;
    use proptest::prelude::*;
    use test_kit::contract;
    use test_kit::fuzz_registers;

    use super::*;
    use crate::reset_control::PowerProbe;

    #[test]
    fn write_of_any_width_ends_with_its_low_byte() {
        let power = Arc::new(PowerProbe::default());
        let mut port = DebugExit::new(power.clone());
        for (width, value) in [(Width::Byte, 0x00), (Width::Word, 0x0121), (Width::Dword, 0xFFFF_FF4D)] {
            port.write(At { region: 0, offset: 0 }, width, value).unwrap();
        }
        assert_eq!(power.take(), ["debug_exit 0", "debug_exit 33", "debug_exit 77"]);
    }

    #[test]
    fn read_is_zero_and_ends_nothing() {
        let power = Arc::new(PowerProbe::default());
        let mut port = DebugExit::new(power.clone());
        assert_eq!(port.read(At { region: 0, offset: 0 }, Width::Dword), Ok(0));
        assert!(power.take().is_empty());
    }

    fn boxed() -> Box<DebugExit> {
        Box::new(DebugExit::new(Arc::new(PowerProbe::default())))
    }

    #[test]
    fn keeps_the_contract() {
        let clock = TestClock::new();
        contract(&clock, boxed);
    }

    proptest! {
        #[test]
        fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let clock = TestClock::new();
            fuzz_registers(&mut *boxed(), &clock, &bytes);
        }
    }
}
