//! System control port A of the PS/2, as in the ICH9 (port 92h): fast processor reset and the alternate A20 gate.
//!
//! A rising INIT_NOW resets the whole machine; hardware resets the processor alone. The A20 bit is that of the board's one
//! gate, which the keyboard controller moves too. The disk light and the password lock are not there, their bits read as zero.
//!
//! Spec: Intel 316972 (ICH9) §13.7.3 (PORT92); IBM Personal System/2 Hardware Interface Technical Reference (1990),
//! "System Control Port A".

use std::sync::Arc;

use bitfield_struct::bitfield;
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

use crate::a20::A20Gate;
use crate::lanes;
use crate::reset_control::PowerControl;

/// Port of the register.
pub const PORT: u64 = 0x92;

const REGIONS: [Region; 1] = [Region {
    name: "port92",
    space: Space::Pio,
    len: 1,
    widths: Widths::BYTE,
}];

/// PORT92, fast A20 and INIT (RW).
#[bitfield(u8)]
struct Port92Reg {
    /// INIT_NOW: the rising edge resets.
    init_now: bool,
    /// ALT_A20_GATE: address line 20 is open.
    a20: bool,
    #[bits(6)]
    __: u8,
}

impl Port92Reg {
    const WRITABLE: u8 = 0x03;
    /// As firmware leaves it.
    const USUAL: u8 = 0x02;
}

/// The register.
pub struct Port92 {
    // Wiring
    power: Arc<dyn PowerControl>,
    gate: Arc<A20Gate>,
    // State
    reg: Port92Reg,
}

impl Port92 {
    /// A port that resets through `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        let reg = Port92Reg::from_bits(Port92Reg::USUAL);
        let gate = A20Gate::detached();
        Self { power, gate, reg }
    }

    /// Gates address line 20 by `gate`.
    #[must_use]
    pub fn with_a20(mut self, gate: Arc<A20Gate>) -> Self {
        self.gate = gate;
        self
    }

    /// The register with the gate as it is.
    fn now(&self) -> Port92Reg {
        self.reg.with_a20(self.gate.is_open())
    }
}

impl Registers for Port92 {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        Ok(u64::from(self.now().into_bits()))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let was = self.reg;
        self.reg = Port92Reg::from_bits(lanes::byte(value) & Port92Reg::WRITABLE);
        self.gate.set(self.reg.a20());
        if self.reg.init_now() && !was.init_now() {
            self.power.reset();
        }
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    match (at, width) {
        (At { region: 0, offset: 0 }, Width::Byte) => Ok(()),
        (At { region: 0, offset: 0 }, _) => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}

impl Device for Port92 {
    fn reset(&mut self, _kind: Reset) {
        self.reg = Port92Reg::from_bits(Port92Reg::USUAL);
        self.gate.set(true);
    }
}

impl Snapshot for Port92 {
    type State = Port92V1;

    fn save(&self) -> Port92V1 {
        let Self {
            power: _,
            gate: _,
            reg: _,
        } = self;
        Port92V1 {
            reg: self.now().into_bits(),
        }
    }

    fn restore(&mut self, state: Port92V1) -> Result<(), RestoreError> {
        let Port92V1 { reg } = state;
        self.reg = Port92Reg::from_bits(reg & Port92Reg::WRITABLE);
        self.gate.set(self.reg.a20());
        Ok(())
    }
}

impl Inspect for Port92 {
    fn inspect(&self) -> Node {
        Node::tree().with("port92", self.now().into_bits())
    }
}

/// Saved state of [`Port92`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Port92V1 {
    reg: u8,
}

impl Schema for Port92V1 {
    const NAME: &'static str = "port92";
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

    const HERE: At = At { region: 0, offset: 0 };

    fn chip() -> (Port92, Arc<PowerProbe>) {
        let power = Arc::new(PowerProbe::default());
        (Port92::new(power.clone()), power)
    }

    #[test]
    fn rising_init_now_resets_once() {
        let (mut chip, power) = chip();
        chip.write(HERE, Width::Byte, 0x00).unwrap();
        assert!(power.take().is_empty());
        chip.write(HERE, Width::Byte, 0x01).unwrap();
        assert_eq!(power.take(), ["reset"]);
        chip.write(HERE, Width::Byte, 0x03).unwrap();
        assert!(power.take().is_empty());
        chip.reset(Reset::Warm);
        assert_eq!(chip.read(HERE, Width::Byte), Ok(0x02), "INIT_NOW is clear, A20 open");
        chip.write(HERE, Width::Byte, 0x03).unwrap();
        assert_eq!(power.take(), ["reset"]);
    }

    #[test]
    fn a20_reads_back_and_reserved_bits_are_zero() {
        let (mut chip, power) = chip();
        chip.write(HERE, Width::Byte, 0xFC).unwrap();
        assert_eq!(chip.read(HERE, Width::Byte), Ok(0x00));
        chip.write(HERE, Width::Byte, 0xFE).unwrap();
        assert_eq!(chip.read(HERE, Width::Byte), Ok(0x02));
        assert!(power.take().is_empty());
    }

    #[test]
    fn wider_access_is_refused() {
        let (mut chip, power) = chip();
        assert_eq!(chip.write(HERE, Width::Word, 1), Err(IoError::Width));
        assert!(power.take().is_empty());
    }

    fn boxed() -> Box<Port92> {
        Box::new(chip().0)
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
