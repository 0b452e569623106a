//! A generic driver: a byte string becomes register accesses, polls, time and resets.
//!
//! Used with random strings in unit tests and by the fuzz targets. Ends in a panic when the device panics or breaks a
//! rule that holds for every device.

use device_model::At;
use device_model::Clock;
use device_model::Device;
use device_model::Reset;
use device_model::TestClock;
use device_model::VmTime;
use device_model::Width;

/// 146 years: deadlines ahead of it can still be told.
const END_OF_TIME: VmTime = VmTime::from_ns(1 << 62);

/// Drives `device` as `bytes` say. `clock` is the clock that the device was made with.
///
/// Each operation takes one byte of code and as many bytes as it needs; missing ones are zero. The bus's rules are kept:
/// the device sees only widths it asked for, within its regions.
///
/// # Panics
/// When the device panics, asks for a poll at a time that has come, or does not take its own state back.
pub fn fuzz_registers<D: Device + ?Sized>(device: &mut D, clock: &TestClock, bytes: &[u8]) {
    device.reset(Reset::Cold);
    fuzz_accesses(device, clock, bytes);
}

/// As [`fuzz_registers`], from the state that the device is in.
///
/// # Panics
/// As [`fuzz_registers`].
pub fn fuzz_accesses<D: Device + ?Sized>(device: &mut D, clock: &TestClock, bytes: &[u8]) {
    let mut input = Input(bytes);
    while let Some(code) = input.next() {
        match code {
            0..=15 => {
                device.reset(match code {
                    12.. => Reset::Resume,
                    _ if code & 1 == 0 => Reset::Cold,
                    _ => Reset::Warm,
                });
            }
            16..=31 => take_back(device),
            32..=47 => {
                let shift = u32::from(input.byte() % 44);
                advance(clock, input.number(2) << shift);
                check_poll(device, clock.now());
            }
            48..=79 => {
                advance(clock, input.number(2));
                check_poll(device, clock.now());
            }
            80..=149 => {
                if let Some((at, width)) = place(device, &mut input) {
                    let _ = device.read(at, width);
                }
            }
            150..=255 => {
                if let Some((at, width)) = place(device, &mut input) {
                    let value = input.number(width.bytes());
                    let _ = device.write(at, width, value);
                    check_poll(device, clock.now());
                }
            }
        }
    }
    let _ = device.inspect();
    take_back(device);
}

/// Lets time pass, but not beyond what nanoseconds in 64 bits count.
fn advance(clock: &TestClock, ns: u64) {
    clock.set((clock.now() + ns).min(END_OF_TIME));
}

/// Polls, and checks that the deadline lies ahead: one that has come would keep the event thread spinning.
pub(crate) fn check_poll<D: Device + ?Sized>(device: &mut D, now: VmTime) {
    if let Some(next) = device.poll(now) {
        assert!(next > now, "polled at {now}, asks to be polled at {next}");
    }
}

/// The device must take back what it saved, and be the same thereafter.
pub(crate) fn take_back<D: Device + ?Sized>(device: &mut D) {
    let saved = device.save_blob();
    if let Err(error) = device.restore_blob(&saved) {
        panic!("`{}` refuses its own state: {error}", saved.name);
    }
    assert_eq!(device.save_blob(), saved, "`{}` changes when restored", saved.name);
}

/// A place to access: mostly aligned, and near the start of large regions more often than elsewhere.
fn place<D: Device + ?Sized>(device: &D, input: &mut Input<'_>) -> Option<(At, Width)> {
    let regions = device.regions();
    let index = usize::from(input.byte()).checked_rem(regions.len())?;
    let region = regions.get(index)?;
    let (min, max) = (region.widths.min.bytes(), region.widths.max.bytes());
    let selector = input.byte();
    let bytes = (min << (selector & 3)).min(max);
    let raw = if region.len > 256 {
        input.number(2)
    } else {
        input.number(1)
    };
    let last = region.len.checked_sub(bytes)?;
    let raw = if selector & 0x80 == 0 { raw & !(bytes - 1) } else { raw };
    let offset = raw % (last + 1);
    let offset = if region.widths.min == region.widths.max {
        offset & !(bytes - 1)
    } else {
        offset
    };
    Some((At { region: index, offset }, Width::from_bytes(bytes)?))
}

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    fn number(&mut self, bytes: u64) -> u64 {
        (0..bytes).fold(0, |value, _| value << 8 | u64::from(self.byte()))
    }
}
