//! KVM's paravirtual clock: numbers in guest memory from which the guest makes the time out of its TSC.
//!
//! Each vCPU has a `pvclock_vcpu_time_info` where its guest wants it. TSC and guest time are one count here, so what it
//! says stays true until the guest sets the TSC. It is written when the guest names the place, when the TSC was set, and
//! when a state was taken over whose memory says something else. Bit 0 of its flags, that every vCPU may use any of them,
//! is for when all TSCs show the same. `pvclock_wall_clock`, the date of power-on, is written once for each time that a
//! guest asks.
//!
//! Addresses where there is no RAM, and a time that would cross a page, raise no exception; nothing is written then.
//!
//! Spec: KVM msr.rst (MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME and their new numbers), cpuid.rst.

use std::sync::atomic::Ordering;
use std::sync::atomic::fence;

use cpu_model::Feature;
use device_model::VmTime;
use guest_memory::Kind;
use guest_memory::MemoryError;
use guest_memory::PAGE_MASK;
use guest_memory::PAGE_SIZE;
use x86_isa::msr as n;

use crate::cpu::Cpu;

/// MSR_KVM_SYSTEM_TIME: the time is kept at the address in the other bits.
const ENABLE: u64 = 1;
/// Bytes of a `pvclock_vcpu_time_info`.
const TIME_BYTES: u64 = 32;
/// Bytes of a `pvclock_wall_clock`.
const WALL_CLOCK_BYTES: u64 = 12;
/// PVCLOCK_TSC_STABLE_BIT, in the word of shift and flags.
const TSC_STABLE: u32 = 1 << 8;

/// A register of the clock, by either of its numbers.
#[derive(Clone, Copy)]
pub(super) enum Register {
    WallClock,
    SystemTime,
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

impl Cpu {
    /// The clock's register `number`, if the guest has it.
    pub(super) fn clock_register(&self, number: u32) -> Option<Register> {
        let (feature, register) = match number {
            n::KVM_WALL_CLOCK_OLD => (Feature::KvmClockOld, Register::WallClock),
            n::KVM_SYSTEM_TIME_OLD => (Feature::KvmClockOld, Register::SystemTime),
            n::KVM_WALL_CLOCK => (Feature::KvmClock, Register::WallClock),
            n::KVM_SYSTEM_TIME => (Feature::KvmClock, Register::SystemTime),
            _ => return None,
        };
        self.has(feature).then_some(register)
    }

    pub(super) fn read_clock(&self, register: Register) -> u64 {
        match register {
            Register::WallClock => self.msrs.kvm_wall_clock,
            Register::SystemTime => self.msrs.kvm_system_time,
        }
    }

    pub(super) fn write_clock(&mut self, register: Register, value: u64) {
        match register {
            Register::WallClock => {
                self.msrs.kvm_wall_clock = value;
                self.write_wall_clock(value);
            }
            Register::SystemTime => {
                self.msrs.kvm_system_time = value;
                self.write_time();
            }
        }
    }

    /// The guest has set its TSC.
    pub(super) fn tsc_moved(&self) {
        self.shared.set_tsc_offset(&self.peer, self.msrs.tsc_offset);
        self.write_time();
    }

    /// Corrects the time in guest memory, if somebody doubts it. One that is right stays as it is: a state that was taken
    /// over unchanged leaves no trace.
    pub(crate) fn attend_clock(&self) {
        if self.peer.take_clock_doubt() && !self.time_is_right() {
            self.write_time();
        }
    }

    /// Where the time is kept.
    fn time_place(&self) -> Option<u64> {
        let value = self.msrs.kvm_system_time;
        let at = value & !ENABLE;
        let good = value & ENABLE != 0 && at & PAGE_MASK <= PAGE_SIZE - TIME_BYTES && self.is_ram(at, TIME_BYTES);
        good.then_some(at)
    }

    pub(super) fn is_ram(&self, at: u64, len: u64) -> bool {
        let ram = |gpa: u64| self.mem.page(gpa).is_some_and(|page| page.kind == Kind::Ram);
        ram(at) && at.checked_add(len - 1).is_some_and(ram)
    }

    /// The TSC at guest time `time`.
    fn tsc_at(&self, time: VmTime) -> u64 {
        time.to_ticks(self.policy.tsc_hz()).wrapping_add(self.msrs.tsc_offset)
    }

    /// The last two words of the time: the factor from ticks to nanoseconds in units of 2^-32, then shift and flags. The TSC
    /// counts faster than nanoseconds, so that no shift is needed.
    fn scale(&self) -> [u32; 2] {
        let factor = (1_000_000_000 << 32) / self.policy.tsc_hz();
        let stable = self.has(Feature::KvmClockStable) && self.shared.tscs_agree();
        [factor as u32, if stable { TSC_STABLE } else { 0 }]
    }

    fn time_is_right(&self) -> bool {
        let Some(at) = self.time_place() else {
            return true;
        };
        let Ok([version, _, words @ ..]) = self.mem.read_obj::<[u32; 8]>(at) else {
            return true;
        };
        let [tsc_low, tsc_high, time_low, time_high, scale @ ..] = words.map(u64::from);
        let time = VmTime::from_ns(time_high << 32 | time_low);
        version & 1 == 0 && tsc_high << 32 | tsc_low == self.tsc_at(time) && scale == self.scale().map(u64::from)
    }

    fn write_time(&self) {
        let Some(at) = self.time_place() else {
            return;
        };
        let now = self.board().now();
        let ([tsc_low, tsc_high], [time_low, time_high]) = (halves(self.tsc_at(now)), halves(now.as_ns()));
        let [factor, flags] = self.scale();
        // There was RAM a moment ago, and memory does not move.
        let _ = self.publish(at, &[0, tsc_low, tsc_high, time_low, time_high, factor, flags]);
    }

    fn write_wall_clock(&self, at: u64) {
        if at == 0 || !self.is_ram(at, WALL_CLOCK_BYTES) {
            return;
        }
        let date = self.board().boot_date();
        // Seconds go round in 2106, as the structure has it.
        let _ = self.publish(at, &[date.as_secs() as u32, date.subsec_nanos()]);
    }

    /// Writes `words` behind the version at `at`.
    fn publish<const N: usize>(&self, at: u64, words: &[u32; N]) -> Result<(), MemoryError> {
        self.under_version(at, || self.mem.write_obj(at + 4, words))
    }

    /// Writes what the version at `at` is of. It is odd meanwhile: readers on other vCPUs wait and try again.
    pub(super) fn under_version(
        &self,
        at: u64,
        write: impl FnOnce() -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        // An odd one is what was in memory before, or a writer's that did not end.
        let version = self.mem.read_obj::<u32>(at)?.wrapping_add(1) | 1;
        self.mem.write_obj(at, &version)?;
        fence(Ordering::Release);
        write()?;
        fence(Ordering::Release);
        self.mem.write_obj(at, &version.wrapping_add(1))
    }
}

#[cfg(test)]
mod tests;
