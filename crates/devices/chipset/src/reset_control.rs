//! Reset control register of the ICH9 (port CF9h), and the board's power switch as chips see it.
//!
//! A rising RST_CPU bit resets the machine. A processor-only (soft) reset and the full power cycle that FULL_RST asks
//! for are the same whole-machine reset here.
//!
//! Spec: Intel 316972 (ICH9) §13.7.5 (RST_CNT); ACPI 6.5 §4.8.3.6 (reset register).

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

use crate::lanes;

/// Port of the register. It lies inside PCI's CONFIG_ADDRESS doubleword, and is reached by byte accesses only.
pub const PORT: u64 = 0xCF9;
/// The byte that resets the machine: what the FADT's RESET_VALUE says.
pub const RESET_VALUE: u8 = 0x06;

const REGIONS: [Region; 1] = [Region {
    name: "reset_control",
    space: Space::Pio,
    len: 1,
    widths: Widths::BYTE,
}];

/// The machine's power switch and reset line, and the end that a test asks for.
///
/// Called by chips under their own lock, on a vCPU thread or the event thread, while the machine runs. An implementation
/// notes the request for the machine's owner and returns at once: it must not block, lock a device, or stop the caller.
pub trait PowerControl: Send + Sync {
    /// Power goes off (ACPI S5).
    fn power_off(&self);
    /// The reset line is asserted.
    fn reset(&self);
    /// The machine goes to sleep with its memory kept (ACPI S3).
    fn suspend(&self);
    /// What ends the sleep has happened.
    fn wake(&self);
    /// The guest ends the machine with a result of its own.
    fn debug_exit(&self, code: u8);
}

/// RST_CNT, reset control (RW).
#[bitfield(u8)]
struct RstCnt {
    #[bits(1)]
    __: u8,
    /// SYS_RST: the reset is a hard one.
    sys_rst: bool,
    /// RST_CPU: the rising edge starts the reset.
    rst_cpu: bool,
    /// FULL_RST: the reset goes through S5.
    full_rst: bool,
    #[bits(4)]
    __: u8,
}

impl RstCnt {
    const WRITABLE: u8 = 0x0E;
}

/// The reset control register.
pub struct ResetControl {
    // Wiring
    power: Arc<dyn PowerControl>,
    // State
    rst_cnt: RstCnt,
}

impl ResetControl {
    /// A register that resets through `power`.
    pub fn new(power: Arc<dyn PowerControl>) -> Self {
        Self {
            power,
            rst_cnt: RstCnt::new(),
        }
    }
}

impl Registers for ResetControl {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        Ok(u64::from(self.rst_cnt.into_bits()))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let was = self.rst_cnt;
        self.rst_cnt = RstCnt::from_bits(lanes::byte(value) & RstCnt::WRITABLE);
        if self.rst_cnt.rst_cpu() && !was.rst_cpu() {
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

impl Device for ResetControl {
    fn reset(&mut self, _kind: Reset) {
        self.rst_cnt = RstCnt::new();
    }
}

impl Snapshot for ResetControl {
    type State = ResetControlV1;

    fn save(&self) -> ResetControlV1 {
        let Self { power: _, rst_cnt } = self;
        ResetControlV1 {
            rst_cnt: rst_cnt.into_bits(),
        }
    }

    fn restore(&mut self, state: ResetControlV1) -> Result<(), RestoreError> {
        let ResetControlV1 { rst_cnt } = state;
        self.rst_cnt = RstCnt::from_bits(rst_cnt & RstCnt::WRITABLE);
        Ok(())
    }
}

impl Inspect for ResetControl {
    fn inspect(&self) -> Node {
        Node::tree().with("rst_cnt", self.rst_cnt.into_bits())
    }
}

/// Saved state of [`ResetControl`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResetControlV1 {
    rst_cnt: u8,
}

impl Schema for ResetControlV1 {
    const NAME: &'static str = "reset_control";
    const VERSION: u32 = 1;
}

/// A [`PowerControl`] that remembers what it was asked for.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct PowerProbe(std::sync::Mutex<Vec<String>>);

#[cfg(test)]
impl PowerProbe {
    /// What was asked for since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[cfg(test)]
impl PowerControl for PowerProbe {
    fn power_off(&self) {
        self.0.lock().unwrap().push("power_off".into());
    }
    fn reset(&self) {
        self.0.lock().unwrap().push("reset".into());
    }
    fn suspend(&self) {
        self.0.lock().unwrap().push("suspend".into());
    }
    fn wake(&self) {
        self.0.lock().unwrap().push("wake".into());
    }
    fn debug_exit(&self, code: u8) {
        self.0.lock().unwrap().push(format!("debug_exit {code}"));
    }
}

#[cfg(test)]
mod tests {
    use device_model::TestClock;
    use proptest::prelude::*;
    use test_kit::contract;
    use test_kit::fuzz_registers;

    use super::*;

    const CF9: At = At { region: 0, offset: 0 };

    fn chip() -> (ResetControl, Arc<PowerProbe>) {
        let power = Arc::new(PowerProbe::default());
        (ResetControl::new(power.clone()), power)
    }

    #[test]
    fn rising_rst_cpu_resets_once() {
        let (mut chip, power) = chip();
        chip.write(CF9, Width::Byte, 0x02).unwrap();
        assert!(power.take().is_empty());
        chip.write(CF9, Width::Byte, u64::from(RESET_VALUE)).unwrap();
        assert_eq!(power.take(), ["reset"]);
        chip.write(CF9, Width::Byte, 0x0E).unwrap();
        assert!(power.take().is_empty());
        chip.reset(Reset::Warm);
        chip.write(CF9, Width::Byte, 0x0E).unwrap();
        assert_eq!(power.take(), ["reset"]);
    }

    #[test]
    fn reserved_bits_read_as_zero() {
        let (mut chip, _) = chip();
        chip.write(CF9, Width::Byte, 0xFF).unwrap();
        assert_eq!(chip.read(CF9, Width::Byte), Ok(0x0E));
    }

    #[test]
    fn wider_access_is_refused() {
        let (mut chip, power) = chip();
        assert_eq!(chip.write(CF9, Width::Dword, 6), Err(IoError::Width));
        assert!(power.take().is_empty());
    }

    fn boxed() -> Box<ResetControl> {
        Box::new(ResetControl::new(Arc::new(PowerProbe::default())))
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
