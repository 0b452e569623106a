//! KVM's paravirtual clock, kept by us as under the other engines, so that a guest may change from one to another.
//!
//! The page says how TSC and guest time go together at one moment, and how fast the TSC counts. It is written when the
//! guest names the place, when its TSC was set, and when a pause has ended or a state was taken over.
//!
//! Spec: KVM msr.rst (MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME and their new numbers).

use std::sync::atomic::Ordering;
use std::sync::atomic::fence;

use cpu_model::CpuBoard;
use cpu_model::Feature;
use guest_memory::Kind;
use guest_memory::MemoryError;
use guest_memory::PAGE_MASK;
use guest_memory::PAGE_SIZE;

use crate::time::Moment;
use crate::vcpu::KvmVcpu;

/// MSR_KVM_SYSTEM_TIME: the time is kept at the address in the other bits.
const ENABLE: u64 = 1;
/// Bytes of a `pvclock_vcpu_time_info`, and of a `pvclock_wall_clock`.
const TIME_BYTES: u64 = 32;
const WALL_CLOCK_BYTES: u64 = 12;
/// PVCLOCK_TSC_STABLE_BIT, in the word of shift and flags.
const TSC_STABLE: u32 = 1 << 8;

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// Factor from ticks to nanoseconds in units of 2^-32, and the shift (at most 31) of ticks to the left before it.
fn factor(hz: u64) -> (u32, u32) {
    let shift = (0..31).find(|shift| hz << shift >= 1_000_000_000).unwrap_or(31);
    let factor = (1_000_000_000_u64 << 32) / (hz << shift).max(1);
    (u32::try_from(factor).unwrap_or(u32::MAX), shift)
}

impl KvmVcpu {
    fn is_ram(&self, at: u64, len: u64) -> bool {
        let ram = |gpa: u64| {
            self.shared
                .memory()
                .page(gpa)
                .is_some_and(|page| page.kind == Kind::Ram)
        };
        ram(at) && at.checked_add(len - 1).is_some_and(ram)
    }

    /// Writes the time, if the guest wants it.
    pub(crate) fn attend_clock(&self, board: &dyn CpuBoard) {
        let at = self.kept.kvm_system_time & !ENABLE;
        let wanted = self.kept.kvm_system_time & ENABLE != 0;
        if !wanted || at & PAGE_MASK > PAGE_SIZE - TIME_BYTES || !self.is_ram(at, TIME_BYTES) {
            return;
        }
        let now = Moment::now(board);
        let (tsc, time) = (self.tsc_at(now.host), now.time.as_ns());
        let ([tsc_low, tsc_high], [time_low, time_high]) = (halves(tsc), halves(time));
        let (factor, shift) = factor(self.shared.time.tsc_hz);
        let stable = self.shared.policy.has(Feature::KvmClockStable) && self.shared.tscs_agree();
        let flags = shift | if stable { TSC_STABLE } else { 0 };
        // There was RAM a moment ago.
        let _ = self.publish(at, &[0, tsc_low, tsc_high, time_low, time_high, factor, flags]);
    }

    pub(crate) fn write_wall_clock(&self, board: &dyn CpuBoard, at: u64) {
        if at == 0 || !self.is_ram(at, WALL_CLOCK_BYTES) {
            return;
        }
        let date = board.boot_date();
        // Seconds go round in 2106, as the structure has it.
        let _ = self.publish(at, &[date.as_secs() as u32, date.subsec_nanos()]);
    }

    /// Writes `words` behind the version at `at`, which is odd meanwhile: readers on other vCPUs wait and try again.
    fn publish<const N: usize>(&self, at: u64, words: &[u32; N]) -> Result<(), MemoryError> {
        let memory = self.shared.memory();
        // An odd one is what was in memory before, or a writer's that did not end.
        let version = memory.read_obj::<u32>(at)?.wrapping_add(1) | 1;
        memory.write_obj(at, &version)?;
        fence(Ordering::Release);
        memory.write_obj(at + 4, words)?;
        fence(Ordering::Release);
        memory.write_obj(at, &version.wrapping_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factor_turns_ticks_into_nanoseconds() {
        for hz in [2_000_000_000, 3_100_000_000, 800_000_000, 1_000_000] {
            let (factor, shift) = factor(hz);
            let second = (u128::from(hz << shift) * u128::from(factor)) >> 32;
            assert!(second.abs_diff(1_000_000_000) < 2, "{hz}: {second}");
        }
    }
}
