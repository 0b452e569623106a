//! Parallel port of a PC/AT: data, status and control, with a printer that takes every byte.
//!
//! Standard mode only (SPP), bidirectional by the direction bit of the control register, as in PS/2. A byte is taken on the
//! strobe's falling edge; the printer acknowledges at once, with an interrupt if that is enabled. Without a printer the
//! status shows none.
//!
//! Spec: IBM PC/AT Technical Reference 6183355 ("Parallel Printer Adapter"); IEEE 1284-1994 §6 (compatibility mode).

use std::io::Write;

use bitfield_struct::bitfield;
use device_model::At;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
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

/// Usual port, that of LPT1.
pub const PORT: u64 = 0x378;

const REGIONS: [Region; 1] = [Region {
    name: "parallel",
    space: Space::Pio,
    len: 3,
    widths: Widths::BYTE,
}];

/// Control register (RW).
#[bitfield(u8)]
struct Control {
    /// Low to high tells the printer of a byte; the wire is inverted.
    strobe: bool,
    auto_feed: bool,
    /// High: the printer is not initialising.
    not_init: bool,
    select: bool,
    /// An acknowledgement interrupts.
    irq_enable: bool,
    /// The data port is an input.
    input: bool,
    #[bits(2)]
    __: u8,
}

impl Control {
    const WRITABLE: u8 = 0x3F;
    const RESET: u8 = 0x0C;
    /// Reserved bits read as ones.
    const RESERVED: u8 = 0xC0;
}

/// Status (RO) with a printer that is idle: not busy, no acknowledgement, selected, no error; and its absence.
const READY: u8 = 0xDF;
const ABSENT: u8 = 0x7F;

/// The port.
pub struct Parallel {
    // Wiring
    irq: IrqLine,
    printer: Option<Box<dyn Write + Send>>,
    // State
    data: u8,
    control: Control,
}

impl Parallel {
    /// A port that interrupts through `irq` and prints to `printer`. Bytes that it does not take are lost.
    pub fn new(irq: IrqLine, printer: Option<Box<dyn Write + Send>>) -> Self {
        Self {
            irq,
            printer,
            data: 0,
            control: Control::from_bits(Control::RESET),
        }
    }

    fn print(&mut self) {
        if let Some(printer) = &mut self.printer {
            // A printer that fails looks like one that prints: there is no error to be seen at the port.
            let _ = printer.write_all(&[self.data]);
            if self.control.irq_enable() {
                self.irq.pulse();
            }
        }
    }
}

impl Registers for Parallel {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        let value = match at.offset {
            // Nobody drives the wires towards the port.
            0 if self.control.input() => 0xFF,
            0 => self.data,
            1 if self.printer.is_some() => READY,
            1 => ABSENT,
            _ => self.control.into_bits() | Control::RESERVED,
        };
        Ok(u64::from(value))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let value = lanes::byte(value);
        match at.offset {
            0 => self.data = value,
            2 => {
                let was = self.control;
                self.control = Control::from_bits(value & Control::WRITABLE);
                if self.control.strobe() && !was.strobe() && self.control.not_init() {
                    self.print();
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    match (at, width) {
        (
            At {
                region: 0,
                offset: 0..3,
            },
            Width::Byte,
        ) => Ok(()),
        (
            At {
                region: 0,
                offset: 0..3,
            },
            _,
        ) => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}

impl Device for Parallel {
    fn reset(&mut self, _kind: Reset) {
        self.data = 0;
        self.control = Control::from_bits(Control::RESET);
        if let Some(printer) = &mut self.printer {
            let _ = printer.flush();
        }
    }
}

impl Snapshot for Parallel {
    type State = ParallelV1;

    fn save(&self) -> ParallelV1 {
        let Self {
            irq: _,
            printer: _,
            data,
            control,
        } = self;
        ParallelV1 {
            data: *data,
            control: control.into_bits(),
        }
    }

    fn restore(&mut self, state: ParallelV1) -> Result<(), RestoreError> {
        let ParallelV1 { data, control } = state;
        self.data = data;
        self.control = Control::from_bits(control & Control::WRITABLE);
        Ok(())
    }
}

impl Inspect for Parallel {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("data", self.data)
            .with("control", self.control.into_bits())
            .with("printer", self.printer.is_some())
    }
}

/// Saved state of [`Parallel`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ParallelV1 {
    data: u8,
    control: u8,
}

impl Schema for ParallelV1 {
    const NAME: &'static str = "parallel";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Mutex;

    use device_model::TestClock;
    use proptest::prelude::*;
    use test_kit::IrqProbe;
    use test_kit::contract;
    use test_kit::fuzz_registers;

    use super::*;

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn at(offset: u64) -> At {
        At { region: 0, offset }
    }

    #[test]
    fn strobed_bytes_are_printed_with_an_interrupt_if_wanted() {
        let (probe, paper) = (IrqProbe::new(), Paper::default());
        let mut chip = Parallel::new(probe.line(7), Some(Box::new(paper.clone())));
        for (byte, enable) in [(b'o', 0), (b'x', 0x10)] {
            chip.write(at(0), Width::Byte, u64::from(byte)).unwrap();
            for control in [0x0D, 0x0D, 0x0C] {
                chip.write(at(2), Width::Byte, control | enable).unwrap();
            }
        }
        assert_eq!(*paper.0.lock().unwrap(), b"ox");
        assert_eq!(probe.rises(7), 1);
        assert_eq!(chip.read(at(1), Width::Byte), Ok(0xDF));
        assert_eq!(chip.read(at(2), Width::Byte), Ok(0xDC));
    }

    #[test]
    fn port_without_a_printer_reads_back_its_registers() {
        let mut chip = Parallel::new(IrqLine::detached(), None);
        chip.write(at(0), Width::Byte, 0x55).unwrap();
        assert_eq!(chip.read(at(0), Width::Byte), Ok(0x55));
        assert_eq!(chip.read(at(1), Width::Byte), Ok(0x7F));
        chip.write(at(2), Width::Byte, 0x20).unwrap();
        assert_eq!(chip.read(at(0), Width::Byte), Ok(0xFF));
    }

    #[test]
    fn keeps_the_contract() {
        contract(&TestClock::new(), || Box::new(Parallel::new(IrqLine::detached(), None)));
    }

    proptest! {
        #[test]
        fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut chip = Parallel::new(IrqLine::detached(), None);
            fuzz_registers(&mut chip, &TestClock::new(), &bytes);
        }
    }
}
