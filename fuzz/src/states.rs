//! Damaged saved states of every chip.
//!
//! The first byte chooses the chip. It is used for a while, saved, its state damaged here and there, and restored. A chip
//! that takes such a state has to work with it, and to save it again as it is.

use device_model::Reset;
use device_model::TestClock;

use crate::chips::Chip;
use crate::input::Input;

/// Most places that are damaged.
const PLACES: u8 = 15;

/// Executes one input.
///
/// # Panics
/// When a chip panics or breaks a rule that holds for every device.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let clock = TestClock::new();
    let mut chip = Chip::new(input.byte(), &clock);
    chip.device().reset(Reset::Cold);
    let len = input.byte();
    test_kit::fuzz_accesses(chip.device(), &clock, input.bytes(len.into()));
    let mut blob = chip.device().save_blob();
    for _ in 0..input.byte() & PLACES {
        let (place, value) = (input.number(2) as usize, input.byte());
        if let Some(index) = place.checked_rem(blob.bytes.len()) {
            blob.bytes[index] = value;
        }
    }
    chip.device().reset(Reset::Cold);
    if chip.device().restore_blob(&blob).is_err() {
        return;
    }
    test_kit::fuzz_accesses(chip.device(), &clock, &[]);
    while !input.is_empty() {
        chip.wire(input.byte(), input.number(2));
        test_kit::fuzz_accesses(chip.device(), &clock, input.bytes(16));
    }
}
