//! Model-specific registers: RDMSR and WRMSR.
//!
//! All that a current system wants of a processor without performance counters, VMX and SMX. Ten machine-check banks
//! record nothing. The registers of the local APIC are its device's; KVM's are in `kvmclock` and `steal`. MTRRs are
//! kept but mean nothing: memory types have no effect here. Any other number is #GP(0).
//!
//! Spec: SDM vol. 4 table 2-2; vol. 3 §2.2.1 (EFER), §11.11 (MTRRs), §11.12 (PAT), §15.3 (machine check), §17.17 (TSC).

use cpu_model::Feature;
use iced_x86::Mnemonic;
use x86_isa::cr0;
use x86_isa::efer;
use x86_isa::msr as n;

use crate::cpu::Cpu;
use crate::cpu::FS;
use crate::cpu::GS;
use crate::cpu::RAX;
use crate::cpu::RCX;
use crate::cpu::RDX;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;
use crate::mmu::PHYS_BITS;

/// IA32_P5_MC_ADDR and IA32_P5_MC_TYPE: of the Pentium's machine check.
const P5_MC_ADDR: u32 = 0;
const P5_MC_TYPE: u32 = 1;
/// MSR_EBL_CR_POWERON: power-on configuration.
const EBL_CR_POWERON: u32 = 0x2a;
/// MSR_PLATFORM_INFO: ratios.
const PLATFORM_INFO: u32 = 0xce;
/// IA32_PERF_CTL.
const PERF_CTL: u32 = 0x199;

/// IA32_MTRRCAP (RO): eight variable ranges, fixed ranges, write-combining.
const MTRRCAP: u64 = 0x508;
/// IA32_MCG_CAP (RO): number of banks.
const MC_BANKS: u32 = 10;
/// IA32_FEATURE_CONTROL (RO): locked, nothing enabled.
const FEATURE_CONTROL: u64 = 1;
/// IA32_BIOS_SIGN_ID (RO): the microcode revision is in the upper half.
const MICROCODE: u64 = 0x2b00_0000 << 32;
/// Ratio of the TSC to the bus of 100 MHz, in bits 15-8.
fn ratio(tsc_hz: u64) -> u64 {
    (tsc_hz / 100_000_000) << 8
}

/// IA32_MISC_ENABLE: what software may set. Fast strings, thermal control, SpeedStep, MONITOR, CPUID limit, xTPR, XD.
const MISC_ENABLE_WRITABLE: u64 = 0x4_00c5_0089;
/// IA32_MISC_ENABLE: no branch trace store, no event-based sampling (RO).
const MISC_ENABLE_ONES: u64 = 0x1800;

/// IA32_DEBUGCTL: LBR and BTF.
const DEBUGCTL_BITS: u64 = 3;
/// IA32_SPEC_CTRL: IBRS and STIBP.
const SPEC_CTRL_BITS: u64 = 3;
/// IA32_SPEC_CTRL: no predictions from the branch history of less privileged code.
const BHI_DIS_S: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE: type, FE and E.
const MTRR_DEF_TYPE_BITS: u64 = 0xcff;
/// Reserved bits of physical addresses.
const PHYS_RESERVED: u64 = !((1 << PHYS_BITS) - 1);

pub(super) fn select(x: &Dec<'_>, _d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Rdmsr => rdmsr,
        Mnemonic::Wrmsr => wrmsr,
        _ => return None,
    })
}

fn rdmsr(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()?;
    let number = cpu.gpr::<u32>(RCX);
    match cpu.read_msr(number) {
        Some(value) => {
            cpu.set_edx_eax(value);
            Ok(())
        }
        None => cpu.gp(0),
    }
}

fn wrmsr(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()?;
    let number = cpu.gpr::<u32>(RCX);
    let value = u64::from(cpu.gpr::<u32>(RDX)) << 32 | u64::from(cpu.gpr::<u32>(RAX));
    match cpu.write_msr(number, value) {
        Some(()) => {
            cpu.end_block();
            Ok(())
        }
        None => cpu.gp(0),
    }
}

/// Memory types of MTRRs; PAT has one more.
fn mtrr_type(value: u64) -> bool {
    matches!(value & 0xff, 0 | 1 | 4 | 5 | 6)
}

fn bytes(value: u64) -> impl Iterator<Item = u64> {
    value.to_le_bytes().into_iter().map(u64::from)
}

fn pat_valid(value: u64) -> bool {
    bytes(value).all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

/// Place of a fixed-range MTRR in the order of addresses.
fn fixed_range(number: u32) -> Option<usize> {
    let index = match number {
        n::MTRR_FIX64K => 0,
        0x258..=0x259 => 1 + number - n::MTRR_FIX16K,
        0x268..=0x26f => 3 + number - n::MTRR_FIX4K,
        _ => return None,
    };
    Some(index as usize)
}

/// A register of a machine-check bank: 0 CTL, 1 STATUS, 2 ADDR, 3 MISC.
fn bank_register(number: u32) -> Option<u32> {
    let offset = number.checked_sub(n::MC0_CTL)?;
    (offset < MC_BANKS * 4).then_some(offset & 3)
}

/// Registers of the local APIC.
fn is_apic(number: u32) -> bool {
    matches!(
        number,
        n::APIC_BASE | n::TSC_DEADLINE | n::X2APIC_FIRST..=n::X2APIC_LAST | n::KVM_PV_EOI
    )
}

/// A condition as an outcome: `None` is #GP(0).
fn allow(good: bool) -> Option<()> {
    good.then_some(())
}

impl Cpu {
    fn has_apic_msr(&self, number: u32) -> bool {
        match number {
            n::TSC_DEADLINE => self.has(Feature::TscDeadline),
            n::KVM_PV_EOI => self.has(Feature::KvmPvEoi),
            _ => true,
        }
    }

    /// Reads a register; `None` is #GP(0).
    fn read_msr(&mut self, number: u32) -> Option<u64> {
        if is_apic(number) {
            allow(self.has_apic_msr(number))?;
            let value = self.board().apic_read_msr(self.id, number).ok()?;
            return Some(if number == n::TSC_DEADLINE {
                self.shift_deadline(value, self.msrs.tsc_offset)
            } else {
                value
            });
        }
        if let Some(register) = self.clock_register(number) {
            return Some(self.read_clock(register));
        }
        let m = &self.msrs;
        Some(match number {
            P5_MC_ADDR | P5_MC_TYPE | EBL_CR_POWERON | n::PLATFORM_ID => 0,
            n::TSC => self.tsc(),
            n::TSC_ADJUST if self.has(Feature::TscAdjust) => m.tsc_adjust,
            n::FEATURE_CONTROL => FEATURE_CONTROL,
            n::SPEC_CTRL if self.has(Feature::SpecCtrl) => m.spec_ctrl,
            n::BIOS_SIGN_ID => MICROCODE,
            PLATFORM_INFO | n::PERF_STATUS => ratio(self.policy.tsc_hz()),
            PERF_CTL => self.stored_msr(number),
            n::MTRRCAP => MTRRCAP,
            n::ARCH_CAPABILITIES if self.has(Feature::ArchCapabilities) => self.policy.arch_capabilities(),
            n::SYSENTER_CS => m.sysenter_cs,
            n::SYSENTER_ESP => m.sysenter_esp,
            n::SYSENTER_EIP => m.sysenter_eip,
            n::MCG_CAP => MC_BANKS.into(),
            n::MCG_STATUS => m.mcg_status,
            n::MISC_ENABLE => m.misc_enable | MISC_ENABLE_ONES,
            n::DEBUGCTL => m.debugctl,
            0x200..=0x20f => {
                let (base, mask) = m.mtrr_var[(number as usize - 0x200) / 2];
                if number & 1 == 0 { base } else { mask }
            }
            n::PAT => m.pat,
            n::MTRR_DEF_TYPE => m.mtrr_def_type,
            n::KVM_STEAL_TIME if self.has(Feature::KvmStealTime) => m.kvm_steal_time,
            n::PKRS if self.has(Feature::Pks) => m.pkrs,
            n::EFER => m.efer,
            _ => return self.read_msr_long(number),
        })
    }

    /// The registers of long mode, and the ranges.
    fn read_msr_long(&self, number: u32) -> Option<u64> {
        let m = &self.msrs;
        Some(match number {
            n::STAR => m.star,
            n::LSTAR if self.has(Feature::Lm) => m.lstar,
            n::CSTAR if self.has(Feature::Lm) => m.cstar,
            n::FMASK if self.has(Feature::Lm) => m.fmask,
            n::FS_BASE if self.has(Feature::Lm) => self.segs[FS].base,
            n::GS_BASE if self.has(Feature::Lm) => self.segs[GS].base,
            n::KERNEL_GS_BASE if self.has(Feature::Lm) => m.kernel_gs_base,
            n::TSC_AUX if self.has(Feature::Rdtscp) || self.has(Feature::Rdpid) => m.tsc_aux,
            _ if bank_register(number).is_some() => self.stored_msr(number),
            _ => m.mtrr_fixed[fixed_range(number)?],
        })
    }

    /// Writes a register; `None` is #GP(0).
    fn write_msr(&mut self, number: u32, value: u64) -> Option<()> {
        if is_apic(number) {
            return self.write_apic(number, value);
        }
        if let Some(register) = self.clock_register(number) {
            self.write_clock(register, value);
            return Some(());
        }
        match number {
            n::EFER => self.write_efer(value)?,
            n::TSC => {
                let moved = value.wrapping_sub(self.tsc());
                self.move_tsc(moved);
            }
            n::TSC_ADJUST if self.has(Feature::TscAdjust) => self.move_tsc(value.wrapping_sub(self.msrs.tsc_adjust)),
            n::SPEC_CTRL if self.has(Feature::SpecCtrl) => {
                let more = if self.has(Feature::BhiCtrl) { BHI_DIS_S } else { 0 };
                allow(value & !(SPEC_CTRL_BITS | more) == 0)?;
                self.msrs.spec_ctrl = value;
            }
            // IBPB: there is no prediction to forget.
            n::PRED_CMD if self.has(Feature::SpecCtrl) => allow(value & !1 == 0)?,
            // The revision is loaded again by CPUID, and updates are not for us.
            n::BIOS_SIGN_ID | n::BIOS_UPDT_TRIG => {}
            P5_MC_ADDR | P5_MC_TYPE | EBL_CR_POWERON => {}
            PERF_CTL => self.store_msr(number, value),
            n::SYSENTER_CS => self.msrs.sysenter_cs = value,
            n::MCG_STATUS => self.msrs.mcg_status = value,
            n::KVM_STEAL_TIME if self.has(Feature::KvmStealTime) => self.write_steal_time(value)?,
            n::MISC_ENABLE => self.msrs.misc_enable = value & MISC_ENABLE_WRITABLE,
            n::DEBUGCTL => {
                allow(value & !DEBUGCTL_BITS == 0)?;
                self.msrs.debugctl = value;
            }
            n::PAT => {
                allow(pat_valid(value))?;
                self.msrs.pat = value;
            }
            n::PKRS if self.has(Feature::Pks) => {
                allow(value >> 32 == 0)?;
                self.msrs.pkrs = value;
                self.tlb.flush_all();
            }
            n::STAR => {
                self.msrs.star = value;
                self.configured();
            }
            n::FMASK if self.has(Feature::Lm) => {
                allow(value >> 32 == 0)?;
                self.msrs.fmask = value;
                self.configured();
            }
            n::TSC_AUX if self.has(Feature::Rdtscp) || self.has(Feature::Rdpid) => {
                allow(value >> 32 == 0)?;
                self.msrs.tsc_aux = value;
            }
            _ if bank_register(number).is_some() => self.write_bank(number, value)?,
            _ => {
                return self
                    .write_range(number, value)
                    .or_else(|| self.write_address(number, value));
            }
        }
        Some(())
    }

    /// Registers of the local APIC.
    fn write_apic(&mut self, number: u32, value: u64) -> Option<()> {
        allow(self.has_apic_msr(number))?;
        let offset = self.msrs.tsc_offset.wrapping_neg();
        let value = if number == n::TSC_DEADLINE {
            self.shift_deadline(value, offset)
        } else {
            value
        };
        self.board().apic_write_msr(self.id, number, value).ok()
    }

    /// Registers that hold a canonical address.
    fn write_address(&mut self, number: u32, value: u64) -> Option<()> {
        allow(self.canonical_base(value))?;
        let long = self.has(Feature::Lm);
        match number {
            n::SYSENTER_ESP => self.msrs.sysenter_esp = value,
            n::SYSENTER_EIP => self.msrs.sysenter_eip = value,
            n::LSTAR if long => self.msrs.lstar = value,
            n::CSTAR if long => self.msrs.cstar = value,
            n::FS_BASE if long => self.set_base(FS, value),
            n::GS_BASE if long => self.set_base(GS, value),
            n::KERNEL_GS_BASE if long => self.msrs.kernel_gs_base = value,
            _ => return None,
        }
        Some(())
    }

    /// MTRRs.
    fn write_range(&mut self, number: u32, value: u64) -> Option<()> {
        if let Some(index) = fixed_range(number) {
            allow(bytes(value).all(mtrr_type))?;
            self.msrs.mtrr_fixed[index] = value;
            return Some(());
        }
        match number {
            n::MTRR_DEF_TYPE => {
                allow(value & !MTRR_DEF_TYPE_BITS == 0 && mtrr_type(value))?;
                self.msrs.mtrr_def_type = value;
            }
            0x200..=0x20f => {
                let (base, mask) = &mut self.msrs.mtrr_var[(number as usize - 0x200) / 2];
                if number & 1 == 0 {
                    allow(value & (PHYS_RESERVED | 0xf00) == 0 && mtrr_type(value))?;
                    *base = value;
                } else {
                    allow(value & (PHYS_RESERVED | 0x7ff) == 0)?;
                    *mask = value;
                }
            }
            _ => return None,
        }
        Some(())
    }

    /// Machine-check banks: CTL takes all or nothing (bit 10 of it may be off, as old systems leave it), STATUS is only
    /// cleared.
    fn write_bank(&mut self, number: u32, value: u64) -> Option<()> {
        let good = match bank_register(number)? {
            0 => value == 0 || value | 1 << 10 | 1 == u64::MAX,
            1 => value == 0,
            _ => true,
        };
        allow(good)?;
        self.store_msr(number, value);
        Some(())
    }

    /// IA32_TSC_DEADLINE between the guest's TSC and the local APIC's, which counts from power-on. Zero is disarmed; a
    /// deadline before power-on is past anyway.
    fn shift_deadline(&self, value: u64, by: u64) -> u64 {
        match value {
            0 => 0,
            _ if by as i64 >= 0 => value.saturating_add(by),
            _ => value.saturating_sub(by.wrapping_neg()).max(1),
        }
    }

    /// The TSC and IA32_TSC_ADJUST move together. An armed deadline stays where it is in the guest's count.
    fn move_tsc(&mut self, by: u64) {
        let armed = self.board().apic_read_msr(self.id, n::TSC_DEADLINE).unwrap_or(0);
        if armed != 0 {
            let moved = self.shift_deadline(armed, by.wrapping_neg());
            // Reading has just shown that the register is there, and any value is a deadline.
            let _ = self.board().apic_write_msr(self.id, n::TSC_DEADLINE, moved);
        }
        self.msrs.tsc_offset = self.msrs.tsc_offset.wrapping_add(by);
        self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(by);
        self.tsc_moved();
    }

    fn write_efer(&mut self, value: u64) -> Option<()> {
        let mut known = efer::LMA;
        for (feature, bit) in [
            (Feature::Syscall, efer::SCE),
            (Feature::Lm, efer::LME),
            (Feature::Nx, efer::NXE),
        ] {
            if self.has(feature) {
                known |= bit;
            }
        }
        let old = self.msrs.efer;
        let changed = old ^ value;
        let paging = self.cr0 & cr0::PG != 0;
        allow(value & !known == 0 && !(paging && changed & efer::LME != 0))?;
        // LMA is the processor's to set.
        self.msrs.efer = value & !efer::LMA | old & efer::LMA;
        if changed & efer::NXE != 0 {
            self.tlb.flush_all();
        }
        self.configured();
        self.update_mode();
        Some(())
    }

    fn stored_msr(&self, number: u32) -> u64 {
        self.msrs
            .other
            .iter()
            .find(|(stored, _)| *stored == number)
            .map_or(0, |(_, value)| *value)
    }

    /// Keeps a register without effect. Only a fixed set of numbers comes here.
    fn store_msr(&mut self, number: u32, value: u64) {
        match self.msrs.other.iter_mut().find(|(stored, _)| *stored == number) {
            Some((_, stored)) => *stored = value,
            None => self.msrs.other.push((number, value)),
        }
    }
}
