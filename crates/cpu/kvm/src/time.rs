//! The guest's TSC against guest time.
//!
//! Under the other engines the TSC *is* guest time, at 2 GHz. Here the processor counts: at the policy's frequency where
//! the kernel can scale (KVM_CAP_TSC_CONTROL), at the host's where it cannot. It is set against guest time when the machine
//! begins, and again after each pause, in which guest time stands still and the processor's counter does not. Between
//! these points it runs by itself, so that it may be apart from guest time by what the host's clock is corrected by.

use std::sync::Mutex;
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
                let host = before.wrapping_add(taken / 2);
                best = (taken, Self { host, time });
            }
            if taken <= AT_ONCE {
                break;
            }
        }
        best.1
    }
}

#[derive(Debug, Default)]
struct Seen {
    last: Option<Moment>,
    /// Where the TSCs of all vCPUs are set from, and its number.
    base: Option<Moment>,
    epoch: u64,
}

/// What the vCPUs of a machine know of time.
#[derive(Debug)]
pub(crate) struct Timeline {
    /// Frequency of the host's counter.
    host_hz: u64,
    /// Frequency of the guest's TSC.
    pub(crate) tsc_hz: u64,
    seen: Mutex<Seen>,
}

impl Timeline {
    pub(crate) fn new(host_hz: u64, tsc_hz: u64) -> Self {
        Self {
            host_hz,
            tsc_hz,
            seen: Mutex::default(),
        }
    }

    /// A vCPU looks at the clocks before it enters the guest, or after it has left it. Returns where TSCs are to be set
    /// from, and its number.
    pub(crate) fn look(&self, now: Moment) -> (Moment, u64) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let paused = seen.last.is_none_or(|last| self.paused(last, now));
        // Threads may come here in another order than they looked.
        if paused || seen.last.is_some_and(|last| last.time < now.time) {
            seen.last = Some(now);
        }
        if paused || seen.base.is_none() {
            seen.base = Some(now);
            seen.epoch += 1;
        }
        (seen.base.unwrap_or(now), seen.epoch)
    }

    pub(crate) fn host_hz(&self) -> u64 {
        self.host_hz
    }

    /// Whether guest time stood still between the two, or was set.
    fn paused(&self, last: Moment, now: Moment) -> bool {
        let host = VmTime::from_ticks(now.host.saturating_sub(last.host), self.host_hz).as_ns();
        let guest = now.time.as_ns().abs_diff(last.time.as_ns());
        host.abs_diff(guest) > SLACK_NS + host / SLACK_PART
    }
}

/// A vCPU's TSC: its value at one moment of guest time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tsc {
    hz: u64,
    policy_hz: u64,
    time: VmTime,
    value: u64,
}

fn scale(ticks: i128, from: u64, to: u64) -> i128 {
    ticks * i128::from(to) / i128::from(from.max(1))
}

impl Tsc {
    /// One that shows at `time` what an engine shows whose TSC is `offset` ahead of guest time.
    pub(crate) fn new(hz: u64, policy_hz: u64, time: VmTime, offset: u64) -> Self {
        let value = time.to_ticks(policy_hz).wrapping_add(offset);
        Self {
            hz,
            policy_hz,
            time,
            value,
        }
    }

    /// What it shows at `time`.
    pub(crate) fn at(&self, time: VmTime) -> u64 {
        if time >= self.time {
            self.value
                .wrapping_add(VmTime::from_ns(time - self.time).to_ticks(self.hz))
        } else {
            self.value
                .wrapping_sub(VmTime::from_ns(self.time - time).to_ticks(self.hz))
        }
    }

    /// How far it is ahead of guest time at `time`, in the policy's ticks.
    pub(crate) fn offset_at(&self, time: VmTime) -> u64 {
        self.at(time).wrapping_sub(time.to_ticks(self.policy_hz))
    }

    /// The guest has set it.
    pub(crate) fn shift(&mut self, by: u64) {
        self.value = self.value.wrapping_add(by);
    }

    /// IA32_TSC_DEADLINE as the local APIC has it, which counts guest time in the policy's ticks. Zero is disarmed; a
    /// deadline before power-on is past anyway.
    pub(crate) fn to_apic(self, deadline: u64) -> u64 {
        if deadline == 0 {
            return 0;
        }
        let ahead = i128::from(deadline.wrapping_sub(self.value).cast_signed());
        let ticks = i128::from(self.time.to_ticks(self.policy_hz)) + scale(ahead, self.hz, self.policy_hz);
        u64::try_from(ticks.max(1)).unwrap_or(u64::MAX)
    }

    /// IA32_TSC_DEADLINE as the guest has it.
    pub(crate) fn of_apic_deadline(self, deadline: u64) -> u64 {
        if deadline == 0 {
            return 0;
        }
        let ahead = i128::from(deadline) - i128::from(self.time.to_ticks(self.policy_hz));
        let ticks = i128::from(self.value) + scale(ahead, self.policy_hz, self.hz);
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
    fn look_sets_a_new_base_after_a_pause_only() {
        let line = Timeline::new(3 * GHZ, 2 * GHZ);
        let (base, epoch) = line.look(moment(1000, 0));
        assert_eq!((base, epoch), (moment(1000, 0), 1));
        assert_eq!(line.look(moment(2000, 1000)), (base, 1));
        assert_eq!(line.look(moment(2001, 1000)), (base, 1), "clocks are not exact");
        let after = moment(9000, 1001);
        assert_eq!(line.look(after), (after, 2));
        assert_eq!(line.look(moment(9001, 1002)), (after, 2));
    }

    #[test]
    fn tsc_of_the_policys_frequency_is_guest_time_and_an_offset() {
        let tsc = Tsc::new(2 * GHZ, 2 * GHZ, VmTime::from_ns(500), 7);
        assert_eq!(tsc.at(VmTime::from_ns(1000)), 2007);
        assert_eq!(tsc.at(VmTime::from_ns(100)), 207);
        assert_eq!(tsc.offset_at(VmTime::from_ns(123_456)), 7);
        assert_eq!(tsc.to_apic(2007), 2000);
        assert_eq!(tsc.of_apic_deadline(2000), 2007);
        assert_eq!((tsc.to_apic(0), tsc.to_apic(3)), (0, 1));
    }

    #[test]
    fn tsc_of_another_frequency_goes_on_where_it_was() {
        let at = VmTime::from_ns(1_000_000);
        let tsc = Tsc::new(3 * GHZ, 2 * GHZ, at, 0);
        assert_eq!(tsc.at(at), 2_000_000);
        let later = VmTime::from_ns(1_000_100);
        assert_eq!(tsc.at(later), 2_000_300);
        let again = Tsc::new(2 * GHZ, 2 * GHZ, later, tsc.offset_at(later));
        assert_eq!(again.at(later), 2_000_300);
        assert_eq!(tsc.to_apic(2_000_300), 2_000_200);
        assert_eq!(tsc.of_apic_deadline(2_000_200), 2_000_300);
    }
}
