//! The contract that every device keeps, whatever it models.

use device_model::At;
use device_model::Clock;
use device_model::Device;
use device_model::Region;
use device_model::Reset;
use device_model::RestoreError;
use device_model::StateBlob;
use device_model::TestClock;
use device_model::Width;

use crate::fuzz::check_poll;
use crate::fuzz::take_back;

/// Offsets tried at each end of a region.
const OFFSETS: u64 = 0x400;
/// Places of a saved state that are damaged in turn: all of a small one, some of a large one.
const DAMAGED: usize = 400;
const DAMAGED_OF_LARGE: usize = 48;
/// Length from which a saved state is large: it holds memory, whose bytes are all alike.
const LARGE: usize = 4096;

/// Checks a device against the contract:
///
/// - resetting twice gives the state that resetting once gives, also after use;
/// - every region can be read and written at every width it takes and every offset, and accesses outside are harmless;
/// - looking at the device does not change its state;
/// - a saved state restores to the same state, in the same and in a new device;
/// - states of other devices, other versions and cut-off ones are refused, and damaged ones never cause a panic;
/// - a deadline lies ahead of the time that the device was polled at.
///
/// `make` makes a device that uses `clock`; all it makes are alike.
///
/// # Panics
/// When the device breaks the contract.
pub fn contract<D: Device + ?Sized>(clock: &TestClock, mut make: impl FnMut() -> Box<D>) {
    let mut device = make();
    check_reset(&mut *device, clock);
    exercise(&mut *device, clock, OFFSETS);
    check_inspect(&mut *device);
    take_back(&mut *device);
    let used = device.save_blob();
    check_restored(&mut *make(), clock, &used);
    check_refusals(&mut *make(), &used);
    check_damaged(&mut *make(), clock, &used);
    check_reset(&mut *device, clock);
}

fn check_reset<D: Device + ?Sized>(device: &mut D, clock: &TestClock) {
    for kind in [Reset::Cold, Reset::Warm, Reset::Resume] {
        device.reset(kind);
        let once = device.save_blob();
        device.reset(kind);
        assert_eq!(
            device.save_blob(),
            once,
            "{kind:?} reset of `{}` is not idempotent",
            once.name
        );
        take_back(device);
        check_poll(device, clock.now());
    }
}

fn check_inspect<D: Device + ?Sized>(device: &mut D) {
    let before = device.save_blob();
    let first = device.inspect();
    assert_eq!(
        device.save_blob(),
        before,
        "looking at `{}` changes its state",
        before.name
    );
    assert_eq!(device.inspect(), first, "looking at `{}` twice differs", before.name);
}

fn check_restored<D: Device + ?Sized>(fresh: &mut D, clock: &TestClock, used: &StateBlob) {
    fresh.reset(Reset::Cold);
    if let Err(error) = fresh.restore_blob(used) {
        panic!("a new `{}` refuses a saved state: {error}", used.name);
    }
    assert_eq!(&fresh.save_blob(), used, "`{}` restores to another state", used.name);
    exercise(fresh, clock, 64);
}

fn check_refusals<D: Device + ?Sized>(device: &mut D, used: &StateBlob) {
    let mut other = used.clone();
    other.name.push('x');
    assert!(matches!(
        device.restore_blob(&other),
        Err(RestoreError::WrongName { .. })
    ));
    let mut newer = used.clone();
    newer.version += 1;
    assert!(matches!(device.restore_blob(&newer), Err(RestoreError::Version { .. })));
    for len in places(used) {
        let mut cut = used.clone();
        cut.bytes.truncate(len);
        assert!(
            device.restore_blob(&cut).is_err(),
            "`{}` takes a state cut off at {len}",
            used.name
        );
    }
}

fn places(blob: &StateBlob) -> impl Iterator<Item = usize> + use<> {
    let len = blob.bytes.len();
    let count = if len < LARGE { DAMAGED } else { DAMAGED_OF_LARGE };
    let spread = (0..count).map(move |index| len * index / count);
    (0..len.min(count)).chain(spread.filter(move |at| *at >= count))
}

fn check_damaged<D: Device + ?Sized>(device: &mut D, clock: &TestClock, used: &StateBlob) {
    for at in places(used) {
        for flip in [0x01, 0x40, 0x80, 0xff] {
            let mut damaged = used.clone();
            if let Some(byte) = damaged.bytes.get_mut(at) {
                *byte ^= flip;
            }
            device.reset(Reset::Cold);
            if device.restore_blob(&damaged).is_ok() {
                exercise(device, clock, 8);
                take_back(device);
                let _ = device.inspect();
            }
        }
    }
}

/// Reads and writes everything within `reach` of both ends of every region, with time passing.
fn exercise<D: Device + ?Sized>(device: &mut D, clock: &TestClock, reach: u64) {
    check_poll(device, clock.now());
    let regions: Vec<Region> = device.regions().to_vec();
    for (index, region) in regions.iter().enumerate() {
        assert!(region.len > 0, "region {} is empty", region.name);
        let (min, max) = (region.widths.min, region.widths.max);
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            if width < min || width > max {
                continue;
            }
            let step = if min == max { width.bytes() } else { 1 };
            let end = region.len.saturating_sub(width.bytes() - 1);
            let high = end.saturating_sub(reach).next_multiple_of(step);
            let low = (0..end.min(reach)).step_by(step as usize);
            for offset in low.chain((high.max(reach)..end).step_by(step as usize)) {
                access(device, clock, At { region: index, offset }, width);
            }
        }
        outside(device, index, region);
    }
    outside_all(device, regions.len());
    clock.advance(1 << 40);
    check_poll(device, clock.now());
}

fn access<D: Device + ?Sized>(device: &mut D, clock: &TestClock, at: At, width: Width) {
    for value in [None, Some(0), Some(u64::MAX), Some(0x5aa5_3cc3_1234_8001)] {
        match value {
            None => drop(device.read(at, width)),
            Some(value) => drop(device.write(at, width, value & width.ones())),
        }
        clock.advance(1_021);
        check_poll(device, clock.now());
    }
    let _ = device.read(at, width);
}

/// Places past the end and widths that the region does not take.
fn outside<D: Device + ?Sized>(device: &mut D, index: usize, region: &Region) {
    for offset in [0, region.len - 1, region.len, region.len + 1, u64::MAX] {
        for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
            let at = At { region: index, offset };
            let _ = device.read(at, width);
            let _ = device.write(at, width, width.ones());
        }
    }
}

fn outside_all<D: Device + ?Sized>(device: &mut D, regions: usize) {
    for index in [regions, usize::MAX] {
        let at = At {
            region: index,
            offset: 0,
        };
        assert!(
            device.read(at, Width::Byte).is_err(),
            "region {index} does not exist but reads"
        );
        assert!(
            device.write(at, Width::Byte, 0).is_err(),
            "region {index} does not exist but takes writes"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use device_model::Inspect;
    use device_model::IoError;
    use device_model::Node;
    use device_model::Registers;
    use device_model::Schema;
    use device_model::Snapshot;
    use device_model::Space;
    use device_model::VmTime;
    use device_model::Widths;
    use serde::Deserialize;
    use serde::Serialize;

    const REGIONS: [Region; 1] = [Region {
        name: "counter",
        space: Space::Pio,
        len: 2,
        widths: Widths::BYTE,
    }];

    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Fault {
        None,
        Spins,
        ForgetsState,
        KeepsStateOverReset,
        TakesAnyRegion,
        PanicsOnDamage,
    }

    /// Counts its writes.
    struct Counter {
        fault: Fault,
        writes: u8,
    }

    #[derive(Serialize, Deserialize)]
    struct CounterV1 {
        writes: u8,
    }

    impl Schema for CounterV1 {
        const NAME: &'static str = "counter";
        const VERSION: u32 = 1;
    }

    impl Registers for Counter {
        fn regions(&self) -> &[Region] {
            &REGIONS
        }

        fn read(&mut self, at: At, _width: Width) -> Result<u64, IoError> {
            let exists = at.region == 0 || self.fault == Fault::TakesAnyRegion;
            exists.then_some(self.writes.into()).ok_or(IoError::NoRegister)
        }

        fn write(&mut self, at: At, _width: Width, _value: u64) -> Result<(), IoError> {
            if at.region != 0 {
                return Err(IoError::NoRegister);
            }
            assert!(self.fault != Fault::PanicsOnDamage || self.writes < 200);
            self.writes = (self.writes + 1) % 100;
            Ok(())
        }
    }

    impl Device for Counter {
        fn reset(&mut self, _kind: Reset) {
            self.writes = if self.fault == Fault::KeepsStateOverReset {
                self.writes + 1
            } else {
                0
            };
        }

        fn poll(&mut self, now: VmTime) -> Option<VmTime> {
            (self.fault == Fault::Spins).then_some(now)
        }
    }

    impl Snapshot for Counter {
        type State = CounterV1;

        fn save(&self) -> CounterV1 {
            let Self { fault: _, writes } = self;
            CounterV1 { writes: *writes }
        }

        fn restore(&mut self, state: CounterV1) -> Result<(), RestoreError> {
            match self.fault {
                Fault::ForgetsState => {}
                Fault::PanicsOnDamage => self.writes = state.writes,
                _ if state.writes >= 100 => return Err(RestoreError::Invalid("too many".into())),
                _ => self.writes = state.writes,
            }
            Ok(())
        }
    }

    impl Inspect for Counter {
        fn inspect(&self) -> Node {
            Node::tree().with("writes", self.writes)
        }
    }

    fn check(fault: Fault) {
        contract(&TestClock::new(), || Box::new(Counter { fault, writes: 0 }));
    }

    #[test]
    fn sound_device_passes() {
        check(Fault::None);
    }

    #[test]
    #[should_panic(expected = "asks to be polled at")]
    fn deadline_that_has_come_is_found() {
        check(Fault::Spins);
    }

    #[test]
    #[should_panic(expected = "restores to another state")]
    fn forgotten_state_is_found() {
        check(Fault::ForgetsState);
    }

    #[test]
    #[should_panic(expected = "is not idempotent")]
    fn incomplete_reset_is_found() {
        check(Fault::KeepsStateOverReset);
    }

    #[test]
    #[should_panic(expected = "does not exist but reads")]
    fn region_too_many_is_found() {
        check(Fault::TakesAnyRegion);
    }

    #[test]
    #[should_panic(expected = "self.writes < 200")]
    fn trusted_state_is_found() {
        check(Fault::PanicsOnDamage);
    }
}
