//! Registers, wires and timers of every chip.
//!
//! The first byte chooses the chip. Then follow runs of register accesses in the language of `test_kit::fuzz_accesses`,
//! each preceded by its length, with what the rest of the board does to the chip between them.

use device_model::Reset;
use device_model::TestClock;

use crate::chips::Chip;
use crate::input::Input;

/// Longest run of register accesses.
const RUN: u8 = 0x7f;

/// Executes one input.
///
/// # Panics
/// When a chip panics or breaks a rule that holds for every device.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let clock = TestClock::new();
    let mut chip = Chip::new(input.byte(), &clock);
    chip.device().reset(Reset::Cold);
    while !input.is_empty() {
        let len = input.byte() & RUN;
        test_kit::fuzz_accesses(chip.device(), &clock, input.bytes(len.into()));
        chip.wire(input.byte(), input.number(2));
    }
    test_kit::fuzz_accesses(chip.device(), &clock, &[]);
}
