//! Debug port of virtual machines: firmware writes its log there, a byte at a time.
//!
//! Reading gives E9h, by which firmware knows that somebody listens.
//!
//! Spec: SeaBIOS docs/Debugging.md; QEMU docs/specs ("isa-debugcon").

use std::io::Write;

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

/// Usual port.
pub const PORT: u64 = 0x402;
/// What it reads as.
const PRESENT: u8 = 0xE9;

const REGIONS: [Region; 1] = [Region {
    name: "debugcon",
    space: Space::Pio,
    len: 1,
    widths: Widths::BYTE,
}];

/// The port.
pub struct Debugcon {
    // Wiring
    output: Option<Box<dyn Write + Send>>,
    // Derived
    line: Vec<u8>,
}

/// Longest line that is held back until its end.
const LINE: usize = 256;

impl Debugcon {
    /// A port whose bytes go to `output` line by line, or nowhere. Bytes that it does not take are lost.
    pub fn new(output: Option<Box<dyn Write + Send>>) -> Self {
        Self {
            output,
            line: Vec::new(),
        }
    }

    fn flush(&mut self) {
        if let Some(output) = &mut self.output {
            // There is nobody to tell: the guest's port has no status.
            let _ = output.write_all(&self.line).and_then(|()| output.flush());
        }
        self.line.clear();
    }
}

impl Drop for Debugcon {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Registers for Debugcon {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        Ok(u64::from(PRESENT))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let [byte, ..] = value.to_le_bytes();
        self.line.push(byte);
        if byte == b'\n' || self.line.len() >= LINE {
            self.flush();
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

impl Device for Debugcon {
    fn reset(&mut self, _kind: Reset) {
        self.flush();
    }
}

impl Snapshot for Debugcon {
    type State = DebugconV1;

    fn save(&self) -> DebugconV1 {
        let Self { output: _, line: _ } = self;
        DebugconV1 {}
    }

    fn restore(&mut self, state: DebugconV1) -> Result<(), RestoreError> {
        let DebugconV1 {} = state;
        Ok(())
    }
}

impl Inspect for Debugcon {
    fn inspect(&self) -> Node {
        Node::tree().with("connected", self.output.is_some())
    }
}

/// Saved state of [`Debugcon`]: there is none.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DebugconV1 {}

impl Schema for DebugconV1 {
    const NAME: &'static str = "debugcon";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use device_model::TestClock;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_whole_and_the_last_at_the_end() {
        let log = Log::default();
        let mut chip = Debugcon::new(Some(Box::new(log.clone())));
        let here = At { region: 0, offset: 0 };
        for byte in b"one\ntwo" {
            chip.write(here, Width::Byte, u64::from(*byte)).unwrap();
        }
        assert_eq!(*log.0.lock().unwrap(), b"one\n");
        drop(chip);
        assert_eq!(*log.0.lock().unwrap(), b"one\ntwo");
    }

    #[test]
    fn keeps_the_contract() {
        // A saved state of no bytes cannot be cut off, so the contract's other parts are checked here.
        let mut chip = Debugcon::new(None);
        let saved = device_model::DynSnapshot::save_blob(&chip);
        assert!(device_model::DynSnapshot::restore_blob(&mut chip, &saved).is_ok());
        assert_eq!(chip.read(At { region: 0, offset: 0 }, Width::Byte), Ok(0xE9));
        test_kit::fuzz_registers(&mut chip, &TestClock::new(), &[0xff; 64]);
    }
}
