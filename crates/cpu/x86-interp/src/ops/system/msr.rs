//! RDMSR and WRMSR, RDPMC.
//!
//! Spec: SDM vol. 4 §2.1 (architectural MSRs); vol. 3 §11.11 (MTRRs), §11.12 (PAT).

use cpu_model::Feature;
use iced_x86::Mnemonic;
use x86_isa::cr0;
use x86_isa::efer;
use x86_isa::msr;

use crate::cpu::Cpu;
use crate::cpu::FS;
use crate::cpu::GS;
use crate::cpu::RCX;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;

/// Variable-range MTRRs.
const VARIABLE_RANGES: u32 = 8;
/// Machine-check banks.
const BANKS: u32 = 4;
/// Write-combining type is supported; fixed ranges exist.
const MTRRCAP: u64 = VARIABLE_RANGES as u64 | 1 << 8 | 1 << 10;
/// MCG_CAP: number of banks; MCG_CTL exists; software error recovery does not.
const MCG_CAP: u64 = BANKS as u64 | 1 << 8;
const MCG_CTL: u32 = 0x17b;
/// IA32_FEATURE_CONTROL: locked, nothing enabled.
const FEATURE_CONTROL: u64 = 1;
/// Microcode revision, in the upper half.
const MICROCODE: u64 = 0x2b00_0000 << 32;
/// Physical address bits that do not exist.
const PHYS_RESERVED: u64 = !((1 << 40) - 1);

pub(super) fn select(x: &Dec<'_>, _d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Rdmsr => rdmsr,
        Mnemonic::Wrmsr => wrmsr,
        Mnemonic::Rdpmc => rdpmc,
        _ => return None,
    })
}

fn rdmsr(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()?;
    let number = cpu.gpr::<u32>(RCX);
    let Some(value) = cpu.read_msr(number) else { return cpu.gp(0) };
    cpu.set_edx_eax(value);
    Ok(())
}

fn wrmsr(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()?;
    let (number, value) = (cpu.gpr::<u32>(RCX), cpu.edx_eax());
    if cpu.write_msr(number, value).is_none() {
        return cpu.gp(0);
    }
    cpu.end_block();
    Ok(())
}

/// There are no performance counters.
fn rdpmc(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.gp(0)
}

fn of_apic(number: u32) -> bool {
    matches!(number, msr::APIC_BASE | msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST)
}

/// Index of a fixed-range MTRR.
fn fixed_range(number: u32) -> Option<usize> {
    Some(match number {
        msr::MTRR_FIX64K => 0,
        n if n.wrapping_sub(msr::MTRR_FIX16K) < 2 => 1 + (n - msr::MTRR_FIX16K) as usize,
        n if n.wrapping_sub(msr::MTRR_FIX4K) < 8 => 3 + (n - msr::MTRR_FIX4K) as usize,
        _ => return None,
    })
}

fn variable_range(number: u32) -> Option<usize> {
    let n = number.wrapping_sub(msr::MTRR_PHYSBASE0);
    (n < 2 * VARIABLE_RANGES).then_some(n as usize)
}

fn is_bank(number: u32) -> bool {
    number.wrapping_sub(msr::MC0_CTL) < BANKS * 4
}

impl Cpu {
    /// The value of an MSR; `None` when there is none of this number.
    pub(crate) fn read_msr(&self, number: u32) -> Option<u64> {
        if of_apic(number) {
            return self.board().apic_read_msr(self.id, number).ok();
        }
        let m = &self.msrs;
        Some(match number {
            msr::TSC => self.tsc(),
            msr::TSC_ADJUST if self.has(Feature::TscAdjust) => m.tsc_adjust,
            msr::PLATFORM_ID | msr::PERF_STATUS => 0,
            msr::FEATURE_CONTROL => FEATURE_CONTROL,
            msr::SPEC_CTRL if self.has(Feature::SpecCtrl) => m.spec_ctrl,
            msr::BIOS_SIGN_ID => MICROCODE,
            msr::MTRRCAP => MTRRCAP,
            msr::ARCH_CAPABILITIES if self.has(Feature::ArchCapabilities) => self.policy.arch_capabilities(),
            msr::SYSENTER_CS => m.sysenter_cs,
            msr::SYSENTER_ESP => m.sysenter_esp,
            msr::SYSENTER_EIP => m.sysenter_eip,
            msr::MCG_CAP => MCG_CAP,
            msr::MCG_STATUS => m.mcg_status,
            msr::MISC_ENABLE => m.misc_enable,
            msr::DEBUGCTL => m.debugctl,
            msr::PAT => m.pat,
            msr::MTRR_DEF_TYPE => m.mtrr_def_type,
            msr::PKRS if self.has(Feature::Pks) => m.pkrs,
            msr::EFER => m.efer,
            msr::STAR => m.star,
            msr::LSTAR => m.lstar,
            msr::CSTAR => m.cstar,
            msr::FMASK => m.fmask,
            msr::FS_BASE => self.segs[FS].base,
            msr::GS_BASE => self.segs[GS].base,
            msr::KERNEL_GS_BASE => m.kernel_gs_base,
            msr::TSC_AUX if self.has(Feature::Rdtscp) || self.has(Feature::Rdpid) => m.tsc_aux,
            MCG_CTL => self.other_msr(number),
            n if is_bank(n) => self.other_msr(n),
            n => return self.read_mtrr(n),
        })
    }

    fn read_mtrr(&self, number: u32) -> Option<u64> {
        if let Some(index) = variable_range(number) {
            let (base, mask) = self.msrs.mtrr_var[index / 2];
            return Some(if index % 2 == 0 { base } else { mask });
        }
        fixed_range(number).map(|index| self.msrs.mtrr_fixed[index])
    }

    fn other_msr(&self, number: u32) -> u64 {
        self.msrs.other.iter().find(|(n, _)| *n == number).map_or(0, |(_, value)| *value)
    }

    fn set_other_msr(&mut self, number: u32, value: u64) {
        match self.msrs.other.iter_mut().find(|(n, _)| *n == number) {
            Some((_, old)) => *old = value,
            None => self.msrs.other.push((number, value)),
        }
    }

    /// Writes an MSR; `None` when there is none of this number, or the value is not allowed.
    pub(crate) fn write_msr(&mut self, number: u32, value: u64) -> Option<()> {
        if of_apic(number) {
            return self.board().apic_write_msr(self.id, number, value).ok();
        }
        let fits = |mask: u64| (value & !mask == 0).then_some(value);
        let canonical = if self.canonical(value) { Some(value) } else { None };
        match number {
            msr::TSC => self.move_tsc(value.wrapping_sub(self.tsc())),
            msr::TSC_ADJUST if self.has(Feature::TscAdjust) => {
                self.move_tsc(value.wrapping_sub(self.msrs.tsc_adjust));
            }
            msr::SPEC_CTRL if self.has(Feature::SpecCtrl) => self.msrs.spec_ctrl = fits(1)?,
            msr::PRED_CMD if self.has(Feature::SpecCtrl) => {
                fits(1)?;
            }
            msr::FLUSH_CMD | msr::BIOS_UPDT_TRIG | msr::BIOS_SIGN_ID => {}
            msr::SYSENTER_CS => self.msrs.sysenter_cs = value,
            msr::SYSENTER_ESP => self.msrs.sysenter_esp = canonical?,
            msr::SYSENTER_EIP => self.msrs.sysenter_eip = canonical?,
            msr::MCG_STATUS => self.msrs.mcg_status = fits(7)?,
            // Fast strings and what only names a feature: bits are kept, nothing follows from them.
            msr::MISC_ENABLE => self.msrs.misc_enable = value,
            // Branch records and single step on branches do not exist.
            msr::DEBUGCTL => self.msrs.debugctl = fits(0)?,
            msr::PAT => self.msrs.pat = valid_pat(value)?,
            msr::PKRS if self.has(Feature::Pks) => {
                self.msrs.pkrs = fits(0xffff_ffff)?;
                self.tlb.flush_all();
            }
            msr::EFER => return self.write_efer(value),
            msr::STAR => self.msrs.star = value,
            msr::LSTAR => self.msrs.lstar = canonical?,
            msr::CSTAR => self.msrs.cstar = canonical?,
            msr::FMASK => self.msrs.fmask = fits(0xffff_ffff)?,
            msr::FS_BASE => self.set_base(FS, canonical?),
            msr::GS_BASE => self.set_base(GS, canonical?),
            msr::KERNEL_GS_BASE => self.msrs.kernel_gs_base = canonical?,
            msr::TSC_AUX if self.has(Feature::Rdtscp) || self.has(Feature::Rdpid) => {
                self.msrs.tsc_aux = fits(0xffff_ffff)?;
            }
            MCG_CTL => self.set_other_msr(number, value),
            n if is_bank(n) => self.write_bank(n, value)?,
            n => return self.write_mtrr(n, value),
        }
        Some(())
    }

    /// Moves the TSC; TSC_ADJUST moves with it (SDM vol. 3 §17.17.3).
    fn move_tsc(&mut self, by: u64) {
        self.msrs.tsc_offset = self.msrs.tsc_offset.wrapping_add(by);
        self.msrs.tsc_adjust = self.msrs.tsc_adjust.wrapping_add(by);
    }

    fn write_efer(&mut self, value: u64) -> Option<()> {
        let defined = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        let changes_mode = (value ^ self.msrs.efer) & efer::LME != 0 && self.cr0 & cr0::PG != 0;
        if value & !defined != 0 || changes_mode {
            return None;
        }
        let nx = (value ^ self.msrs.efer) & efer::NXE != 0;
        // LMA is read-only.
        self.msrs.efer = value & !efer::LMA | self.msrs.efer & efer::LMA;
        if nx {
            self.tlb.flush_all();
        }
        self.update_mode();
        Some(())
    }

    /// Bank registers only take zero, but for the control register, which takes all ones as well.
    fn write_bank(&mut self, number: u32, value: u64) -> Option<()> {
        let control = number % 4 == 0;
        if value != 0 && !(control && value == u64::MAX) {
            return None;
        }
        self.set_other_msr(number, value);
        Some(())
    }

    fn write_mtrr(&mut self, number: u32, value: u64) -> Option<()> {
        if number == msr::MTRR_DEF_TYPE {
            let valid = value & !0xcff == 0 && memory_type(value & 0xff);
            self.msrs.mtrr_def_type = valid.then_some(value)?;
            return Some(());
        }
        if let Some(index) = variable_range(number) {
            let range = &mut self.msrs.mtrr_var[index / 2];
            let base = index % 2 == 0;
            let reserved = PHYS_RESERVED | if base { 0xf00 } else { 0x7ff };
            if value & reserved != 0 || base && !memory_type(value & 0xff) {
                return None;
            }
            *(if base { &mut range.0 } else { &mut range.1 }) = value;
            return Some(());
        }
        let index = fixed_range(number)?;
        if !value.to_le_bytes().into_iter().all(|t| memory_type(t.into())) {
            return None;
        }
        self.msrs.mtrr_fixed[index] = value;
        Some(())
    }
}

/// Uncacheable, write-combining, write-through, write-protected, write-back.
fn memory_type(value: u64) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// Every entry must be a memory type; the PAT also has "uncached" (7).
fn valid_pat(value: u64) -> Option<u64> {
    value.to_le_bytes().into_iter().all(|t| t == 7 || memory_type(t.into())).then_some(value)
}
