//! KVM's steal time: how long a vCPU had to wait for the host, whether it runs, and whether it is to flush its TLB.
//!
//! Each vCPU has a `kvm_steal_time` where its guest wants it. The time is brought up to date when the vCPU begins to run.
//! `preempted` says that it does not: others then neither wait for it nor interrupt it to flush its TLB, but leave word in
//! bit 1, and the whole TLB is flushed before the next instruction. A vCPU in HLT does not run, in this sense.
//!
//! ```text
//!   0  steal: u64, ns    8  version: u32, odd while it is written    12  flags: u32    16  preempted: u8    64 bytes in all
//! ```
//!
//! Spec: KVM msr.rst (MSR_KVM_STEAL_TIME), cpuid.rst (KVM_FEATURE_PV_TLB_FLUSH).

use std::time::Duration;

use cpu_model::Feature;
use device_model::VmTime;
use guest_memory::MemoryError;

use crate::cpu::Cpu;

/// MSR_KVM_STEAL_TIME: the structure is at the address in the other bits. Those between are reserved: it is aligned to 64.
const ENABLE: u64 = 1;
const RESERVED: u64 = 0x3e;
const BYTES: u64 = 64;
/// Places in it.
const VERSION: u64 = 8;
const WAS_PREEMPTED: u64 = 16;
/// Bits of `preempted`.
const PREEMPTED: u8 = 1;
const FLUSH_TLB: u8 = 2;
/// The host is not asked more often for the time that it gave to others.
const SPAN: Duration = Duration::from_millis(1);

/// What is known of the time that the host gave to others.
#[derive(Debug, Default)]
pub(crate) struct Steal {
    /// What it was when the structure was last brought up to date, and when that was.
    last: Option<(Duration, VmTime)>,
    /// Somebody else runs the vCPU, too, keeps its time, and has a TLB that this one cannot flush.
    stands_in: bool,
}

impl Steal {
    pub(crate) fn stand_in(&mut self) {
        self.stands_in = true;
    }
}

impl Cpu {
    /// Writes the register; `None` is #GP(0).
    pub(super) fn write_steal_time(&mut self, value: u64) -> Option<()> {
        if value & RESERVED != 0 {
            return None;
        }
        self.msrs.kvm_steal_time = value;
        self.steal.last = None;
        self.begin_steal();
        Some(())
    }

    /// Where the structure is.
    fn steal_place(&self) -> Option<u64> {
        let value = self.msrs.kvm_steal_time;
        let at = value & !ENABLE;
        (value & ENABLE != 0 && self.is_ram(at, BYTES)).then_some(at)
    }

    /// The vCPU begins to run.
    pub(crate) fn begin_steal(&mut self) {
        let Some(at) = self.steal_place() else {
            return;
        };
        // There was RAM a moment ago, and memory does not move.
        let word = self.mem.swap_u8(at + WAS_PREEMPTED, 0).unwrap_or(0);
        if word & FLUSH_TLB != 0 && self.has(Feature::KvmPvTlbFlush) {
            self.tlb.flush_all();
        }
        if !self.steal.stands_in {
            let _ = self.add_stolen(at);
        }
    }

    /// The vCPU stops running.
    pub(crate) fn end_steal(&mut self) {
        if let Some(at) = self.steal_place() {
            let flush = if self.steal.stands_in { FLUSH_TLB } else { 0 };
            let _ = self.mem.swap_u8(at + WAS_PREEMPTED, PREEMPTED | flush);
        }
    }

    fn add_stolen(&mut self, at: u64) -> Result<(), MemoryError> {
        let now = self.board().now();
        if let Some((_, when)) = self.steal.last
            && now.as_ns().saturating_sub(when.as_ns()) < SPAN.as_nanos() as u64
        {
            return Ok(());
        }
        let stolen = self.board().stolen(self.id);
        // The first time tells where the count begins: it is the thread's.
        let before = self
            .steal
            .last
            .replace((stolen, now))
            .map_or(stolen, |(before, _)| before);
        let more = stolen.saturating_sub(before).as_nanos() as u64;
        if more == 0 {
            return Ok(());
        }
        self.under_version(at + VERSION, || {
            let steal = self.mem.read_obj::<u64>(at)?.wrapping_add(more);
            self.mem.write_obj(at, &steal)
        })
    }
}

#[cfg(test)]
mod tests;
