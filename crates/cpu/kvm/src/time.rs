//! The guest's TSC against guest time.
//!
//! Under the other engines the TSC *is* guest time, at 2 GHz. Here the processor counts: at the policy's frequency where
//! the kernel can scale (KVM_CAP_TSC_CONTROL), at the host's where it cannot. It is set against guest time when the machine
//! begins, and again after each pause, in which guest time stands still and the processor's counter does not. Between
//! these points it runs by itself, so that it may be apart from guest time by what the host's clock is corrected by: what a
//! guest has read is worked out from the host's counter, never from guest time.
//!
//! All vCPUs share one [`Count`], and each is ahead of it by a constant. Some kernels show guests the host's counter
//! whatever it is set to; the count is that counter then.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use cpu_model::CpuBoard;
use device_model::VmTime;

/// Nanoseconds by which the counter may be ahead of guest time without there having been a pause, and the same as a part
/// of the time between two looks: the host's clock is corrected by less.
const SLACK_NS: u64 = 2_000_000;
const SLACK_PART: u64 = 1000;
/// Host ticks between two readings of the counter, with guest time read in between, that count as "at once".
const AT_ONCE: u64 = 20_000;

/// The host's counter and guest time at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) host: u64,
    pub(crate) time: VmTime,
}

pub(crate) fn host_counter() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets user mode execute it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

impl Moment {
    pub(crate) fn now(board: &dyn CpuBoard) -> Self {
        let mut best = (
            u64::MAX,
            Self {
                host: 0,
                time: VmTime::ZERO,
            },
        );
        for _ in 0..8 {
            let before = host_counter();
            let time = board.now();
            let taken = host_counter().wrapping_sub(before);
            if taken < best.0 {
                // Not before the time was read: no guest has seen a later count at this time.
                let host = before.wrapping_add(taken);
                best = (taken, Self { host, time });
            }
            if taken <= AT_ONCE {
                break;
            }
        }
        best.1
    }
}

/// What the processor counts for a guest: its value at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) base: Moment,
    pub(crate) value: u64,
    hz: u64,
    host_hz: u64,
}

impl Count {
    /// Its value when the host's counter has this one.
    pub(crate) fn at(&self, host: u64) -> u64 {
        let passed = i128::from(host.wrapping_sub(self.base.host).cast_signed());
        self.value.wrapping_add(scale(passed, self.host_hz, self.hz) as u64)
    }
}

#[derive(Debug, Default)]
struct Seen {
    last: Option<Moment>,
    /// What all vCPUs count by, and its number.
    count: Option<Count>,
    epoch: u64,
}

/// What the vCPUs of a machine know of time.
#[derive(Debug)]
pub(crate) struct Timeline {
    /// Frequency of the host's counter.
    host_hz: u64,
    /// Frequency of the guest's TSC.
    pub(crate) tsc_hz: u64,
    policy_hz: u64,
    /// The kernel shows the guest what the TSC was set to.
    pub(crate) settable: bool,
    seen: Mutex<Seen>,
}

impl Timeline {
    pub(crate) fn new(host_hz: u64, tsc_hz: u64, policy_hz: u64, settable: bool) -> Self {
        Self {
            host_hz,
            tsc_hz,
            policy_hz,
            settable,
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vCPU looks at the clocks before it enters the guest, or after it has left it. Returns what TSCs are to be set
    /// by, and its number.
    pub(crate) fn look(&self, now: Moment) -> (Count, u64) {
        let mut seen = self.seen();
        let paused = seen.last.is_none_or(|last| self.paused(last, now));
        let count = match (seen.count, seen.last) {
            (Some(count), Some(last)) if paused => self.count_from(now, after_pause(&count, last, now)),
            (Some(count), _) => count,
            (None, _) => self.count_from(now, now.time.to_ticks(self.policy_hz)),
        };
        // Threads may come here in another order than they looked.
        if paused || seen.last.is_some_and(|last| last.time < now.time) {
            seen.last = Some(now);
        }
        if seen.count != Some(count) {
            seen.count = Some(count);
            seen.epoch += 1;
        }
        (count, seen.epoch)
    }

    fn count_from(&self, base: Moment, value: u64) -> Count {
        Count {
            base,
            value: if self.settable { value } else { base.host },
            hz: self.tsc_hz,
            host_hz: self.host_hz,
        }
    }

    /// The latest moment at which a vCPU has looked. The same for all of them while none runs.
    pub(crate) fn last(&self) -> Option<Moment> {
        self.seen().last
    }

    /// Whether guest time stood still between the two, or was set.
    fn paused(&self, last: Moment, now: Moment) -> bool {
        let host = VmTime::from_ticks(now.host.saturating_sub(last.host), self.host_hz).as_ns();
        let guest = now.time.as_ns().abs_diff(last.time.as_ns());
        host.abs_diff(guest) > SLACK_NS + host / SLACK_PART
    }
}

fn scale(ticks: i128, from: u64, to: u64) -> i128 {
    ticks * i128::from(to) / i128::from(from.max(1))
}

/// The count goes on from where the guest was left, by as much as guest time has.
fn after_pause(count: &Count, last: Moment, now: Moment) -> u64 {
    let passed = i128::from(now.time.as_ns()) - i128::from(last.time.as_ns());
    let ticks = scale(passed, 1_000_000_000, count.hz);
    count.at(last.host).wrapping_add(ticks as u64)
}

/// A vCPU's TSC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tsc {
    count: Count,
    policy_hz: u64,
    ahead: u64,
}

impl Tsc {
    /// One that shows at the count's base what an engine shows whose TSC is `offset` ahead of guest time; or the count itself,
    /// where the kernel shows nothing else.
    pub(crate) fn new(line: &Timeline, count: Count, offset: u64) -> Self {
        let mut tsc = Self {
            count,
            policy_hz: line.policy_hz,
            ahead: 0,
        };
        if line.settable {
            tsc.ahead = offset.wrapping_sub(tsc.offset_at(count.base));
        }
        tsc
    }

    /// The same TSC by a later count.
    pub(crate) fn follow(&mut self, count: Count) {
        self.count = count;
    }

    /// What it shows when the host's counter has this value.
    pub(crate) fn at(&self, host: u64) -> u64 {
        self.count.at(host).wrapping_add(self.ahead)
    }

    /// How far it is ahead of guest time, in the policy's ticks.
    pub(crate) fn offset_at(&self, moment: Moment) -> u64 {
        self.at(moment.host).wrapping_sub(moment.time.to_ticks(self.policy_hz))
    }

    /// How far it is ahead of the count.
    pub(crate) fn ahead(&self) -> u64 {
        self.ahead
    }

    /// The guest has set it.
    pub(crate) fn shift(&mut self, by: u64) {
        self.ahead = self.ahead.wrapping_add(by);
    }

    /// IA32_TSC_DEADLINE as the local APIC has it, which counts guest time in the policy's ticks. Zero is disarmed; a
    /// deadline before power-on is past anyway.
    pub(crate) fn to_apic(self, deadline: u64, now: Moment) -> u64 {
        if deadline == 0 {
            return 0;
        }
        let left = i128::from(deadline.wrapping_sub(self.at(now.host)).cast_signed());
        let ticks = i128::from(now.time.to_ticks(self.policy_hz)) + scale(left, self.count.hz, self.policy_hz);
        u64::try_from(ticks.max(1)).unwrap_or(u64::MAX)
    }

    /// IA32_TSC_DEADLINE as the guest has it.
    pub(crate) fn of_apic_deadline(self, deadline: u64, now: Moment) -> u64 {
        if deadline == 0 {
            return 0;
        }
        let left = i128::from(deadline) - i128::from(now.time.to_ticks(self.policy_hz));
        let ticks = i128::from(self.at(now.host)) + scale(left, self.policy_hz, self.count.hz);
        u64::try_from(ticks.max(1)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GHZ: u64 = 1_000_000_000;

    fn moment(host_ms: u64, guest_ms: u64) -> Moment {
        Moment {
            host: host_ms * 3_000_000,
            time: VmTime::from_ns(guest_ms * 1_000_000),
        }
    }

    #[test]
    fn look_begins_a_new_count_after_a_pause_only() {
        let line = Timeline::new(3 * GHZ, 2 * GHZ, 2 * GHZ, true);
        let (count, epoch) = line.look(moment(1000, 0));
        assert_eq!((count.base, count.value, epoch), (moment(1000, 0), 0, 1));
        assert_eq!(line.look(moment(2000, 1000)), (count, 1));
        assert_eq!(line.look(moment(2001, 1000)), (count, 1), "clocks are not exact");
        let after = moment(9000, 1001);
        let (next, epoch) = line.look(after);
        assert_eq!((next.base, next.value, epoch), (after, 1001 * 2_000_000, 2));
        assert_eq!(line.look(moment(9001, 1002)), (next, 2));
        assert_eq!(line.last(), Some(moment(9001, 1002)));
    }

    #[test]
    fn count_never_goes_back_where_the_hosts_clock_is_slower_than_its_counter() {
        // An hour in which guest time falls 100 ms behind, in looks that are no pauses each; then a pause.
        let line = Timeline::new(3 * GHZ, 3 * GHZ, 2 * GHZ, true);
        let (count, _) = line.look(moment(0, 0));
        for second in 1..=3600 {
            let drift = second * 100 / 3600;
            assert_eq!(line.look(moment(1000 * second, 1000 * second - drift)).1, 1);
        }
        let seen = count.at(moment(3_600_000, 0).host);
        let (next, epoch) = line.look(moment(3_700_000, 3_599_901));
        assert_eq!(epoch, 2);
        assert_eq!(
            next.value,
            seen + 3_000_000,
            "a millisecond on from what the guest has seen"
        );
    }

    #[test]
    fn tsc_of_the_policys_frequency_is_guest_time_and_an_offset() {
        let line = Timeline::new(2 * GHZ, 2 * GHZ, 2 * GHZ, true);
        let at = |ns: u64| Moment {
            host: 5000 + 2 * ns,
            time: VmTime::from_ns(ns),
        };
        let (count, _) = line.look(at(500));
        let tsc = Tsc::new(&line, count, 7);
        assert_eq!((tsc.at(at(1000).host), tsc.at(at(100).host)), (2007, 207));
        assert_eq!(tsc.offset_at(at(123_456)), 7);
        for now in [at(0), at(700), at(9000)] {
            assert_eq!(tsc.to_apic(2007, now), 2000);
            assert_eq!(tsc.of_apic_deadline(2000, now), 2007);
            assert_eq!((tsc.to_apic(0, now), tsc.of_apic_deadline(0, now)), (0, 0));
        }
        assert_eq!(tsc.to_apic(3, at(700)), 1);
    }

    #[test]
    fn tsc_of_another_frequency_goes_on_where_it_was() {
        let line = Timeline::new(3 * GHZ, 3 * GHZ, 2 * GHZ, true);
        let at = |ns: u64| Moment {
            host: 77 + 3 * ns,
            time: VmTime::from_ns(ns),
        };
        let (count, _) = line.look(at(1_000_000));
        let tsc = Tsc::new(&line, count, 0);
        assert_eq!(tsc.at(at(1_000_000).host), 2_000_000);
        let later = at(1_000_100);
        assert_eq!(tsc.at(later.host), 2_000_300);
        assert_eq!(later.time.to_ticks(2 * GHZ) + tsc.offset_at(later), 2_000_300);
        let now = at(1_000_000);
        assert_eq!(tsc.to_apic(2_000_300, now), 2_000_200);
        assert_eq!(tsc.of_apic_deadline(2_000_200, now), 2_000_300);
    }

    #[test]
    fn tsc_is_the_hosts_counter_where_the_kernel_shows_nothing_else() {
        let line = Timeline::new(3 * GHZ, 3 * GHZ, 2 * GHZ, false);
        let (count, _) = line.look(moment(1000, 0));
        let mut tsc = Tsc::new(&line, count, 123);
        assert_eq!(tsc.at(4711), 4711);
        let (count, epoch) = line.look(moment(5000, 1));
        tsc.follow(count);
        assert_eq!((epoch, tsc.at(4711)), (2, 4711), "pauses too");
        let last = moment(5000, 1);
        assert_eq!(tsc.offset_at(last), last.host - 2_000_000);
    }
}
