//! Model-specific registers that we answer in the kernel's place.
//!
//! Those of the board's local APIC, of time, of machine checks and of KVM's clock and end of interrupt mean the same under every engine only if
//! the kernel leaves them alone: a filter lets the guest come out for them. It also comes out for the numbers that the
//! kernel does not know, x2APIC's among them; what the other engines have of these is here, the rest is #GP(0).
//!
//! Spec: SDM vol. 4 table 2-2; KVM api.rst §4.97 (KVM_X86_SET_MSR_FILTER), msr.rst.

use cpu_model::CpuBoard;
use cpu_model::EngineError;
use cpu_model::Feature;
use kvm_ioctls::MsrFilterDefaultAction;
use kvm_ioctls::MsrFilterRange;
use kvm_ioctls::MsrFilterRangeFlags;
use kvm_ioctls::VmFd;
use x86_isa::msr as n;

use crate::engine::failed;
use crate::time::host_counter;
use crate::vcpu::KvmVcpu;

/// MSR_EBL_CR_POWERON, MSR_PLATFORM_INFO and IA32_PERF_CTL.
const EBL_CR_POWERON: u32 = 0x2a;
const PLATFORM_INFO: u32 = 0xce;
const PERF_CTL: u32 = 0x199;
/// IA32_P5_MC_ADDR and IA32_P5_MC_TYPE.
const P5_MC: std::ops::RangeInclusive<u32> = 0..=1;

/// IA32_MCG_CAP (RO): number of banks.
const MC_BANKS: u32 = 10;
/// IA32_FEATURE_CONTROL (RO): locked, nothing enabled.
const FEATURE_CONTROL: u64 = 1;
/// IA32_BIOS_SIGN_ID (RO): the microcode revision is in the upper half.
const MICROCODE: u64 = 0x2b00_0000 << 32;
/// IA32_MISC_ENABLE: what software may set, and what always reads as one.
const MISC_ENABLE_WRITABLE: u64 = 0x4_00c5_0089;
const MISC_ENABLE_ONES: u64 = 0x1800;

/// First number, how many, and whether reading is ours, too. The TSC and steal time are the kernel's.
#[rustfmt::skip]
const OURS: [(u32, u32, bool); 11] = [
    (n::TSC,                 1,             false),
    (n::KVM_WALL_CLOCK_OLD,  2,             true),
    (n::APIC_BASE,           1,             true),
    (n::TSC_ADJUST,          1,             true),
    (n::MCG_CAP,             2,             true),
    (n::MISC_ENABLE,         1,             true),
    (n::MC0_CTL,             MC_BANKS * 4,  true),
    (n::TSC_DEADLINE,        1,             true),
    (n::KVM_WALL_CLOCK,      2,             true),
    (n::KVM_STEAL_TIME,      1,             false),
    (n::KVM_PV_EOI,          1,             true),
];

/// Makes the guest come out for the registers that are ours.
pub(crate) fn filter(vm: &VmFd) -> Result<(), EngineError> {
    // A bit that is clear denies.
    let none = [0; 8];
    let ranges = OURS.map(|(base, msr_count, reads)| MsrFilterRange {
        flags: if reads {
            MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE
        } else {
            MsrFilterRangeFlags::WRITE
        },
        base,
        msr_count,
        bitmap: &none[..(msr_count as usize).div_ceil(8)],
    });
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges)
        .map_err(failed("no filter for MSRs"))
}

/// A register of a machine-check bank: 0 CTL, 1 STATUS, 2 ADDR, 3 MISC.
fn bank_register(number: u32) -> Option<u32> {
    let offset = number.checked_sub(n::MC0_CTL)?;
    (offset < MC_BANKS * 4).then_some(offset & 3)
}

/// A condition as an outcome: `None` is #GP(0).
fn allow(good: bool) -> Option<()> {
    good.then_some(())
}

impl KvmVcpu {
    fn has(&self, feature: Feature) -> bool {
        self.shared.policy.has(feature)
    }

    /// Ratio of the TSC to the bus of 100 MHz, in bits 15-8.
    fn ratio(&self) -> u64 {
        (self.shared.time.tsc_hz / 100_000_000) << 8
    }

    /// Reads a register that the kernel left to us; `None` is #GP(0).
    pub(crate) fn read_msr(&mut self, board: &dyn CpuBoard, number: u32) -> Option<u64> {
        Some(match number {
            n::TSC_DEADLINE => {
                allow(self.has(Feature::TscDeadline))?;
                self.of_apic_deadline(board, board.apic_read_msr(self.id, number).ok()?)
            }
            n::KVM_PV_EOI => {
                allow(self.has(Feature::KvmPvEoi))?;
                board.apic_read_msr(self.id, number).ok()?
            }
            n::APIC_BASE | n::X2APIC_FIRST..=n::X2APIC_LAST => board.apic_read_msr(self.id, number).ok()?,
            n::KVM_WALL_CLOCK_OLD | n::KVM_WALL_CLOCK => {
                self.clock_msr(number)?;
                self.kept.kvm_wall_clock
            }
            n::KVM_SYSTEM_TIME_OLD | n::KVM_SYSTEM_TIME => {
                self.clock_msr(number)?;
                self.kept.kvm_system_time
            }
            n::TSC => self.tsc_at(host_counter()),
            n::TSC_ADJUST => {
                allow(self.has(Feature::TscAdjust))?;
                self.kept.tsc_adjust
            }
            n::MCG_CAP => MC_BANKS.into(),
            n::MCG_STATUS => self.kept.mcg_status,
            n::MISC_ENABLE => self.kept.misc_enable | MISC_ENABLE_ONES,
            n::PLATFORM_ID | EBL_CR_POWERON => 0,
            _ if P5_MC.contains(&number) => 0,
            n::FEATURE_CONTROL => FEATURE_CONTROL,
            n::BIOS_SIGN_ID => MICROCODE,
            PLATFORM_INFO | n::PERF_STATUS => self.ratio(),
            PERF_CTL => self.stored(number),
            _ => {
                bank_register(number)?;
                self.stored(number)
            }
        })
    }

    /// Writes a register that the kernel left to us; `None` is #GP(0).
    pub(crate) fn write_msr(
        &mut self,
        board: &dyn CpuBoard,
        number: u32,
        value: u64,
    ) -> Result<Option<()>, EngineError> {
        match number {
            n::TSC => {
                let by = value.wrapping_sub(self.tsc_at(host_counter()));
                self.move_tsc_and_deadline(board, by)?;
            }
            n::TSC_ADJUST if self.has(Feature::TscAdjust) => {
                self.move_tsc_and_deadline(board, value.wrapping_sub(self.kept.tsc_adjust))?;
            }
            n::APIC_BASE => {
                if board.apic_write_msr(self.id, number, value).is_err() {
                    return Ok(None);
                }
                self.follow_apic_base(value)?;
            }
            _ => return Ok(self.write_plain(board, number, value)),
        }
        Ok(Some(()))
    }

    /// The TSC and IA32_TSC_ADJUST move together. An armed deadline stays where it is in the guest's count.
    fn move_tsc_and_deadline(&mut self, board: &dyn CpuBoard, by: u64) -> Result<(), EngineError> {
        let armed = board.apic_read_msr(self.id, n::TSC_DEADLINE).unwrap_or(0);
        let deadline = self.of_apic_deadline(board, armed);
        self.move_tsc(board, by)?;
        if armed != 0 {
            // Reading has just shown that the register is there, and any value is a deadline.
            let _ = board.apic_write_msr(self.id, n::TSC_DEADLINE, self.to_apic_deadline(board, deadline));
        }
        Ok(())
    }

    fn write_plain(&mut self, board: &dyn CpuBoard, number: u32, value: u64) -> Option<()> {
        match number {
            n::TSC_DEADLINE => {
                allow(self.has(Feature::TscDeadline))?;
                let deadline = self.to_apic_deadline(board, value);
                return board.apic_write_msr(self.id, number, deadline).ok();
            }
            n::KVM_PV_EOI => {
                allow(self.has(Feature::KvmPvEoi))?;
                return board.apic_write_msr(self.id, number, value).ok();
            }
            n::X2APIC_FIRST..=n::X2APIC_LAST => return board.apic_write_msr(self.id, number, value).ok(),
            n::KVM_WALL_CLOCK_OLD | n::KVM_WALL_CLOCK => {
                self.clock_msr(number)?;
                self.kept.kvm_wall_clock = value;
                self.write_wall_clock(board, value);
            }
            n::KVM_SYSTEM_TIME_OLD | n::KVM_SYSTEM_TIME => {
                self.clock_msr(number)?;
                self.kept.kvm_system_time = value;
                self.attend_clock(board);
            }
            n::KVM_STEAL_TIME => {
                allow(self.has(Feature::KvmStealTime) && self.put_msr(number, value))?;
                self.kept.kvm_steal_time = value;
            }
            n::MCG_STATUS => self.kept.mcg_status = value,
            n::MISC_ENABLE => self.kept.misc_enable = value & MISC_ENABLE_WRITABLE,
            // The revision is loaded again by CPUID, and updates are not for us.
            n::BIOS_SIGN_ID | n::BIOS_UPDT_TRIG | EBL_CR_POWERON => {}
            _ if P5_MC.contains(&number) => {}
            PERF_CTL => self.store(number, value),
            _ => {
                // CTL takes all or nothing (bit 10 may be off, as old systems leave it), STATUS is only cleared.
                allow(match bank_register(number)? {
                    0 => value == 0 || value | 1 << 10 | 1 == u64::MAX,
                    1 => value == 0,
                    _ => true,
                })?;
                self.store(number, value);
            }
        }
        Some(())
    }

    /// A register of KVM's clock: it is there with its feature.
    fn clock_msr(&self, number: u32) -> Option<()> {
        let old = matches!(number, n::KVM_WALL_CLOCK_OLD | n::KVM_SYSTEM_TIME_OLD);
        allow(self.has(if old { Feature::KvmClockOld } else { Feature::KvmClock }))
    }

    fn stored(&self, number: u32) -> u64 {
        let mut all = self.kept.other.iter();
        all.find(|(stored, _)| *stored == number).map_or(0, |(_, value)| *value)
    }

    /// Keeps a register without effect. Only a fixed set of numbers comes here.
    fn store(&mut self, number: u32, value: u64) {
        match self.kept.other.iter_mut().find(|(stored, _)| *stored == number) {
            Some((_, stored)) => *stored = value,
            None => self.kept.other.push((number, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bank_registers_end_with_the_last_bank() {
        assert_eq!(bank_register(0x3ff), None);
        assert_eq!(bank_register(0x405), Some(1));
        assert_eq!(bank_register(0x427), Some(3));
        assert_eq!(bank_register(0x428), None);
    }

    #[test]
    fn filter_has_room_for_each_range() {
        for (base, count, _) in OURS {
            assert!(count <= 64, "{base:#x}");
        }
    }
}
