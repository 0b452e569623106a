//! Memory balloon: pages that the guest does without go back to the host.
//!
//! The host says how large the balloon is to be, and the guest fills it with pages, which are released at once. Besides,
//! the guest may report pages that are free at present. Statistics come every ten seconds. Free page hints, which serve
//! migration, are not there.
//!
//! Spec: virtio 1.2 §5.5.

use device_model::Inspect;
use device_model::Node;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

use crate::Chain;
use crate::RingError;
use crate::Rings;
use crate::VirtioDevice;
use crate::id;

/// Entries of each queue.
const ENTRIES: u16 = 128;
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS: usize = 2;
/// Queues: those, free page hints where the specification counts them, reports.
const QUEUES: usize = 5;
/// Bytes of page numbers in one request at most, and of statistics.
const NUMBERS: u64 = 1 << 20;
/// Bytes of a page as the device counts them.
const PAGE: u64 = 4096;
/// How often the guest is asked for statistics.
const INTERVAL: u64 = 10_000_000_000;
/// Statistics that are known (§5.5.6.4), by tag.
#[rustfmt::skip]
const NAMES: [&str; 10] = [
    "swap_in", "swap_out", "major_faults", "minor_faults", "free_memory", "total_memory",
    "available_memory", "disk_caches", "hugetlb_allocations", "hugetlb_failures",
];
/// Bytes of one of them.
const STATISTIC: usize = 10;
/// Where the driver writes, in configuration space: the balloon's size, and what it fills free pages with.
const ACTUAL: usize = 4;
const POISON: usize = 12;

/// Features (§5.5.3).
const MUST_TELL_HOST: u64 = 1 << 0;
const STATS_VQ: u64 = 1 << 1;
const DEFLATE_ON_OOM: u64 = 1 << 2;
const PAGE_POISON: u64 = 1 << 4;
const REPORTING: u64 = 1 << 5;

/// What users are told of a balloon. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BalloonStatus {
    /// The guest has a driver for it.
    pub driver: bool,
    /// How large it is to be.
    pub target: u64,
    /// How large the guest has made it.
    pub actual: u64,
    /// What was released in all, by filling it.
    pub inflated: u64,
    /// What was released in all, since the guest reported it as free.
    pub reported: u64,
    /// Statistics of the guest's, by name.
    pub statistics: Vec<(&'static str, u64)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// In pages.
    target: u32,
    actual: u32,
    /// What the guest fills free pages with.
    poison: u32,
    inflated: u64,
    reported: u64,
    statistics: [Option<u64>; 10],
    /// The buffer of statistics, which the guest gets back when it is to fill it again.
    waiting: Option<u16>,
    next_statistics: u64,
}

/// The device.
pub struct Balloon {
    // State
    state: State,
    // Derived
    /// The target is another than the guest was told of.
    changed: bool,
    active: bool,
}

impl Default for Balloon {
    fn default() -> Self {
        Self::new()
    }
}

impl Balloon {
    /// An empty balloon.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::default(),
            changed: false,
            active: false,
        }
    }

    /// Says how large the balloon is to be, in bytes; whole pages count. The guest follows as far as it can.
    pub fn set_target(&mut self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.changed |= pages != self.state.target;
        self.state.target = pages;
    }

    /// What there is to tell.
    #[must_use]
    pub fn status(&self) -> BalloonStatus {
        let state = &self.state;
        let statistics = NAMES.into_iter().zip(state.statistics);
        BalloonStatus {
            driver: self.active,
            target: u64::from(state.target) * PAGE,
            actual: u64::from(state.actual) * PAGE,
            inflated: state.inflated,
            reported: state.reported,
            statistics: statistics.filter_map(|(name, value)| Some((name, value?))).collect(),
        }
    }

    /// The guest has given pages: their numbers.
    fn inflate(&mut self, chain: &mut Chain, rings: &Rings<'_>) -> Result<(), RingError> {
        let numbers = numbers(chain, rings)?;
        let mut run: Option<(u64, u64)> = None;
        for number in numbers {
            let at = u64::from(number) * PAGE;
            run = match run {
                Some((first, len)) if first + len == at => Some((first, len + PAGE)),
                // Linux gives from high to low.
                Some((first, len)) if at + PAGE == first => Some((at, len + PAGE)),
                other => {
                    self.release(other, rings);
                    Some((at, PAGE))
                }
            };
        }
        self.release(run, rings);
        Ok(())
    }

    fn release(&mut self, run: Option<(u64, u64)>, rings: &Rings<'_>) {
        if let Some((at, len)) = run {
            let released = rings.memory().release(at, len);
            self.state.inflated = self.state.inflated.wrapping_add(released);
        }
    }

    /// The guest reports buffers as free; they are its own again when they are given back.
    fn report(&mut self, chain: &Chain, rings: &Rings<'_>) {
        // Pages that are filled with something else than zeros must keep it (§5.5.6.7.2).
        if rings.features() & PAGE_POISON != 0 && self.state.poison != 0 {
            return;
        }
        for segment in &chain.writable {
            let released = rings.memory().release(segment.gpa, segment.len.into());
            self.state.reported = self.state.reported.wrapping_add(released);
        }
    }

    fn take_statistics(&mut self, now: VmTime, rings: &mut Rings<'_>) -> Result<(), RingError> {
        while let Some(mut chain) = rings.pop(STATISTICS) {
            let len = chain.readable_len();
            if len > NUMBERS {
                return Err(RingError::Long);
            }
            let mut bytes = vec![0; crate::queue::index(len)];
            chain.take(rings.memory(), &mut bytes)?;
            for statistic in bytes.chunks_exact(STATISTIC) {
                if let [low, high, value @ ..] = statistic
                    && let Ok(value) = value.try_into()
                    && let Some(known) = self
                        .state
                        .statistics
                        .get_mut(usize::from(u16::from_le_bytes([*low, *high])))
                {
                    *known = Some(u64::from_le_bytes(value));
                }
            }
            // One buffer goes to and fro.
            if let Some(head) = self.state.waiting.replace(chain.head) {
                rings.push(STATISTICS, head, 0);
            }
            self.state.next_statistics = (now + INTERVAL).as_ns();
        }
        Ok(())
    }

    /// Lets the guest fill its buffer again, when that is due; returns when it is.
    fn ask_for_statistics(&mut self, now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        let head = self.state.waiting?;
        let due = VmTime::from_ns(self.state.next_statistics);
        if due > now {
            return Some(due);
        }
        self.state.waiting = None;
        rings.push(STATISTICS, head, 0);
        None
    }

    fn go(&mut self, now: VmTime, rings: &mut Rings<'_>) -> Result<Option<VmTime>, RingError> {
        while let Some(mut chain) = rings.pop(INFLATE) {
            self.inflate(&mut chain, rings)?;
            rings.push(INFLATE, chain.head, 0);
        }
        // What is taken out of the balloon is memory as before: zeros, which become pages when they are written.
        while let Some(mut chain) = rings.pop(DEFLATE) {
            numbers(&mut chain, rings)?;
            rings.push(DEFLATE, chain.head, 0);
        }
        let statistics = rings.features() & STATS_VQ != 0;
        if statistics {
            self.take_statistics(now, rings)?;
        }
        // Drivers count the queues that they use; the specification counts all.
        let first = if statistics { STATISTICS + 1 } else { STATISTICS };
        for queue in [first, QUEUES - 1] {
            while rings.features() & REPORTING != 0
                && let Some(chain) = rings.pop(queue)
            {
                self.report(&chain, rings);
                rings.push(queue, chain.head, 0);
            }
        }
        Ok(self.ask_for_statistics(now, rings))
    }
}

/// Page numbers out of a chain.
fn numbers(chain: &mut Chain, rings: &Rings<'_>) -> Result<Vec<u32>, RingError> {
    let len = chain.readable_len();
    if len > NUMBERS {
        return Err(RingError::Long);
    }
    let mut bytes = vec![0; crate::queue::index(len)];
    chain.take(rings.memory(), &mut bytes)?;
    let words = bytes
        .chunks_exact(4)
        .map(|word| word.try_into().map_or(0, u32::from_le_bytes));
    Ok(words.collect())
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u16 {
        id::BALLOON
    }

    fn features(&self) -> u64 {
        MUST_TELL_HOST | STATS_VQ | DEFLATE_ON_OOM | PAGE_POISON | REPORTING
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; QUEUES]
    }

    fn config(&self) -> Vec<u8> {
        let State {
            target, actual, poison, ..
        } = self.state;
        [target, actual, 0, poison].map(u32::to_le_bytes).concat()
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let Ok(value) = <[u8; 4]>::try_from(bytes).map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            ACTUAL => self.state.actual = value,
            POISON => self.state.poison = value,
            _ => {}
        }
    }

    fn activate(&mut self, _features: u64) {
        self.active = true;
        // A driver that comes up reads the target.
        self.changed = false;
    }

    fn poll(&mut self, now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        if std::mem::take(&mut self.changed) {
            rings.config_changed();
        }
        let next = self.go(now, rings);
        rings.check(next).flatten()
    }

    fn reset(&mut self) {
        // The user's wish stays; all that the guest had given is its own again.
        let target = self.state.target;
        self.state = State {
            target,
            ..State::default()
        };
        (self.active, self.changed) = (false, false);
    }
}

impl Snapshot for Balloon {
    type State = BalloonV1;

    fn save(&self) -> BalloonV1 {
        let Self { state, changed, active } = self;
        BalloonV1 {
            state: state.clone(),
            changed: *changed,
            active: *active,
        }
    }

    fn restore(&mut self, saved: BalloonV1) -> Result<(), RestoreError> {
        let BalloonV1 { state, changed, active } = saved;
        (self.state, self.changed, self.active) = (state, changed, active);
        Ok(())
    }
}

impl Inspect for Balloon {
    fn inspect(&self) -> Node {
        let status = self.status();
        let mut statistics = Node::tree();
        for (name, value) in status.statistics {
            statistics = statistics.with(name, value);
        }
        Node::tree()
            .with("driver", status.driver)
            .with("target", status.target)
            .with("actual", status.actual)
            .with("inflated", status.inflated)
            .with("reported", status.reported)
            .with("statistics", statistics)
    }
}

/// Saved state of [`Balloon`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BalloonV1 {
    state: State,
    changed: bool,
    active: bool,
}

impl Schema for BalloonV1 {
    const NAME: &'static str = "virtio_balloon";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests {
    use device_model::Width;
    use test_kit::IrqProbe;
    use test_kit::TestClock;
    use test_kit::virtio::Link;

    use super::*;
    use crate::Pci;
    use crate::testing::Bench;
    use crate::testing::memory;

    fn fill(bench: &Bench, at: u64, pages: u64) {
        bench.memory.write(at, &vec![7; (pages * PAGE) as usize]).unwrap();
    }

    fn byte(bench: &Bench, at: u64) -> u8 {
        bench.memory.read_obj(at).unwrap()
    }

    #[test]
    fn pages_that_are_given_are_released_and_no_others() {
        let mut bench = Bench::new(Link::Mmio, Balloon::new());
        bench.start(u64::MAX);
        fill(&bench, 0x2_0000, 8);
        // Neighbours in both directions, one alone, one that there is not.
        bench
            .memory
            .write_obj(0x1000, &[0x22u32, 0x23, 0x21, 0x26, 0x1000_0000])
            .unwrap();
        bench.offer(0, &[(0x1000, 20)], &[]);
        assert_eq!(bench.used(0), Some((0, 0)));
        let left: Vec<u8> = (0..8).map(|page| byte(&bench, 0x2_0000 + page * PAGE)).collect();
        assert_eq!(left, [7, 0, 0, 0, 7, 7, 0, 7]);
        bench.offer(1, &[(0x1000, 20)], &[]);
        assert_eq!(bench.used(1), Some((0, 0)));
    }

    #[test]
    fn reported_pages_are_released_unless_they_are_poisoned() {
        for (poison, features, expected) in [(0, u64::MAX, 0), (0xaa, u64::MAX, 7), (0xaa, !PAGE_POISON, 0)] {
            for (queue, features) in [(3, features), (4, features), (2, features & !STATS_VQ)] {
                let mut bench = Bench::new(Link::Pci, Balloon::new());
                let at = Link::Pci.config() + 12;
                Link::Pci.write(&mut *bench.device, at, Width::Dword, 0);
                bench.start(features);
                Link::Pci.write(&mut *bench.device, at, Width::Dword, poison);
                fill(&bench, 0x2_0000, 2);
                bench.offer(queue, &[], &[(0x2_0000, 4096 + 100)]);
                assert_eq!(bench.used(queue), Some((0, 0)));
                assert_eq!([byte(&bench, 0x2_0000), byte(&bench, 0x2_1000)], [expected, 7]);
            }
        }
    }

    #[test]
    fn new_target_is_told_by_configuration() {
        let memory = memory();
        let probe = IrqProbe::new();
        let mut device = crate::Mmio::new(Balloon::new(), probe.line(0), &memory);
        let link = Link::Mmio;
        link.negotiate(&mut device, u64::MAX);
        link.go(&mut device);
        device.device_mut().set_target(10 * PAGE + 1);
        device_model::Device::poll(&mut device, VmTime::ZERO);
        assert_eq!(link.take_interrupts(&mut device), 2);
        assert_eq!(link.read(&mut device, 0xfc, Width::Dword), 1, "generation");
        assert_eq!(link.read(&mut device, 0x100, Width::Dword), 10);
        link.write(&mut device, 0x104, Width::Dword, 9);
        assert_eq!(device.device().status().actual, 9 * PAGE);
        link.set_status(&mut device, 0);
        let status = device.device().status();
        assert_eq!((status.driver, status.target, status.actual), (false, 10 * PAGE, 0));
    }

    #[test]
    fn statistics_are_asked_for_now_and_then() {
        let mut bench = Bench::new(Link::Mmio, Balloon::new());
        bench.start(u64::MAX);
        let statistics = [
            4u16.to_le_bytes().as_slice(),
            &1234u64.to_le_bytes(),
            &99u16.to_le_bytes(),
            &[1; 8],
        ]
        .concat();
        bench.memory.write(0x1000, &statistics).unwrap();
        bench.offer(2, &[(0x1000, 20)], &[]);
        assert_eq!(bench.used(2), None, "it is kept until they are wanted again");
        let shown = bench.device.inspect();
        assert_eq!(shown.at("device/statistics/free_memory"), Some(&Node::Number(1234)));
        let due = bench.device.poll(VmTime::ZERO).unwrap();
        assert_eq!(due, VmTime::from_ns(INTERVAL));
        assert_eq!(bench.device.poll(due), None);
        assert_eq!(bench.used(2), Some((0, 0)));
    }

    #[test]
    fn endless_numbers_break_the_device() {
        let mut bench = Bench::new(Link::Mmio, Balloon::new());
        bench.start(u64::MAX);
        bench.offer(0, &[(0, 1 << 20), (0, 1 << 20)], &[]);
        assert!(bench.is_broken());
    }

    #[test]
    fn keeps_the_contract() {
        let (clock, memory, probe) = (TestClock::new(), memory(), IrqProbe::new());
        test_kit::contract(&clock, || {
            Box::new(Pci::new(Balloon::new(), (probe.line(0), probe.clone() as _), &memory))
        });
    }
}
