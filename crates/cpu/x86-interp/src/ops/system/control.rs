//! Control and debug registers: MOV CRn, MOV DRn, LMSW, SMSW, CLTS, and what a change of mode entails.
//!
//! Spec: SDM vol. 3 §2.5, §4.1, §17.2; vol. 2 "MOV—Move to/from Control Registers".

use cpu_model::Feature;
use iced_x86::Mnemonic;
use x86_isa::Exception;
use x86_isa::Vector;
use x86_isa::attr;
use x86_isa::cr0;
use x86_isa::cr4;
use x86_isa::efer;
use x86_isa::pte;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size_wide;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;

/// Bit 63 of a value for CR3: keep the translations of the new PCID.
const CR3_NO_FLUSH: u64 = 1 << 63;
/// Physical address bits that do not exist.
const PHYS_RESERVED: u64 = !((1 << 40) - 1);
/// DR6 bits that always read as one.
const DR6_FIXED: u64 = 0xffff_0ff0;
/// DR7 bit that always reads as one.
const DR7_FIXED: u64 = 1 << 10;
/// DR7.GD: any access to a debug register raises #DB.
const DR7_GD: u64 = 1 << 13;
/// DR6.BD: that is what happened.
const DR6_BD: u64 = 1 << 13;

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Mov => return mov(x, d),
        Mnemonic::Clts => clts,
        Mnemonic::Lmsw => match x.op(0) {
            Op::Reg(source) => {
                d.src = source;
                lmsw_r
            }
            _ => lmsw_m,
        },
        Mnemonic::Smsw => match x.op(0) {
            Op::Reg(target) => {
                d.dst = target;
                by_size_wide!(x.size(0), smsw_r)
            }
            _ => smsw_m,
        },
        _ => return None,
    })
}

fn mov(x: &Dec<'_>, d: &mut DInsn) -> Select {
    for control in [true, false] {
        if let (Some(n), Op::Reg(source)) = (super::is_special(x, 0, control), x.op(1)) {
            (d.aux, d.src) = (n, source);
            return Some(if control { mov_to_cr } else { mov_to_dr });
        }
        if let (Op::Reg(target), Some(n)) = (x.op(0), super::is_special(x, 1, control)) {
            (d.aux, d.dst) = (n, target);
            return Some(if control { mov_from_cr } else { mov_from_dr });
        }
    }
    None
}

/// The register operand in its natural width.
fn source(cpu: &Cpu, d: &DInsn) -> u64 {
    if cpu.is64() { cpu.r::<u64>(d.src) } else { cpu.r::<u32>(d.src).into() }
}

fn put(cpu: &mut Cpu, d: &DInsn, value: u64) {
    if cpu.is64() {
        cpu.w(d.dst, value);
    } else {
        cpu.w(d.dst, value as u32);
    }
}

fn mov_from_cr(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.privileged()?;
    let value = match d.aux {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        8 => cpu.board().apic_cr8(cpu.id).into(),
        _ => return cpu.ud(),
    };
    put(cpu, d, value);
    Ok(())
}

fn mov_to_cr(cpu: &mut Cpu, d: &DInsn) -> R {
    if !matches!(d.aux, 0 | 2 | 3 | 4 | 8) {
        return cpu.ud();
    }
    cpu.privileged()?;
    let value = source(cpu, d);
    match d.aux {
        0 => cpu.write_cr0(value)?,
        2 => cpu.cr2 = value,
        3 => cpu.write_cr3(value)?,
        4 => cpu.write_cr4(value)?,
        _ => {
            if value & !15 != 0 {
                return cpu.gp(0);
            }
            cpu.board().set_apic_cr8(cpu.id, value as u8);
        }
    }
    cpu.end_block();
    Ok(())
}

impl Cpu {
    /// Writes CR0 with all its consequences.
    pub(crate) fn write_cr0(&mut self, value: u64) -> R {
        const DEFINED: u64 = cr0::PE
            | cr0::MP
            | cr0::EM
            | cr0::TS
            | cr0::ET
            | cr0::NE
            | cr0::WP
            | cr0::AM
            | cr0::NW
            | cr0::CD
            | cr0::PG;
        if value >> 32 != 0 {
            return self.gp(0);
        }
        let new = value & DEFINED | cr0::ET;
        let set = |bit| new & bit != 0;
        if set(cr0::PG) && !set(cr0::PE) || set(cr0::NW) && !set(cr0::CD) {
            return self.gp(0);
        }
        let changed = self.cr0 ^ new;
        if changed & cr0::PG != 0 {
            self.check_paging_switch(set(cr0::PG))?;
        }
        let pae = set(cr0::PG) && self.cr4 & cr4::PAE != 0 && self.msrs.efer & efer::LME == 0;
        if pae && changed & (cr0::PG | cr0::CD | cr0::NW) != 0 {
            let pointers = self.read_pdptrs(self.cr3)?;
            self.pdptr = pointers;
        }
        self.cr0 = new;
        if changed & cr0::PG != 0 {
            let active = set(cr0::PG) && self.msrs.efer & efer::LME != 0;
            self.msrs.efer = self.msrs.efer & !efer::LMA | if active { efer::LMA } else { 0 };
        }
        if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }

    /// What must hold when paging is switched on or off (SDM vol. 3 §9.8.5, §4.10.4.1).
    fn check_paging_switch(&mut self, on: bool) -> R {
        let long = self.msrs.efer & efer::LME != 0;
        let bad = if on {
            long && (self.cr4 & cr4::PAE == 0 || self.segs[CS].attr & attr::L != 0)
        } else {
            self.cr4 & cr4::PCIDE != 0 || self.is64()
        };
        if bad { self.gp(0) } else { Ok(()) }
    }

    /// Reads the four page-directory pointers of PAE paging.
    fn read_pdptrs(&mut self, cr3: u64) -> R<[u64; 4]> {
        const RESERVED: u64 = PHYS_RESERVED | 0x1e6;
        let mut pointers = [0; 4];
        for (i, pointer) in pointers.iter_mut().enumerate() {
            let at = (cr3 & 0xffff_ffe0) + i as u64 * 8;
            *pointer = self.mem.read_obj(at).unwrap_or(u64::MAX);
            if *pointer & pte::P != 0 && *pointer & RESERVED != 0 {
                return self.gp(0);
            }
        }
        Ok(pointers)
    }

    /// Loads CR3 as a task switch or MOV does.
    pub(crate) fn write_cr3(&mut self, value: u64) -> R {
        let pcid = self.cr4 & cr4::PCIDE != 0;
        let keep = pcid && value & CR3_NO_FLUSH != 0;
        let value = if pcid { value & !CR3_NO_FLUSH } else { value };
        if self.long_mode() {
            if value & PHYS_RESERVED != 0 {
                return self.gp(0);
            }
        } else if self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            let pointers = self.read_pdptrs(value)?;
            self.pdptr = pointers;
        }
        // Translations are not kept by PCID: asking to keep them only matters when the tables stay the same.
        let same = value == self.cr3;
        self.cr3 = value;
        if !(keep && same) {
            self.tlb.flush_local();
        }
        Ok(())
    }

    /// The CR4 bits that this CPU model has.
    fn cr4_defined(&self) -> u64 {
        let of = |feature, bit| if self.has(feature) { bit } else { 0 };
        cr4::TSD
            | cr4::DE
            | cr4::PSE
            | cr4::PAE
            | cr4::MCE
            | cr4::PGE
            | cr4::PCE
            | cr4::OSFXSR
            | cr4::OSXMMEXCPT
            | of(Feature::Umip, cr4::UMIP)
            | of(Feature::La57, cr4::LA57)
            | of(Feature::Fsgsbase, cr4::FSGSBASE)
            | of(Feature::Pcid, cr4::PCIDE)
            | of(Feature::Xsave, cr4::OSXSAVE)
            | of(Feature::Smep, cr4::SMEP)
            | of(Feature::Smap, cr4::SMAP)
            | of(Feature::Pku, cr4::PKE)
            | of(Feature::Pks, cr4::PKS)
    }

    /// Writes CR4 with all its consequences.
    pub(crate) fn write_cr4(&mut self, new: u64) -> R {
        if new & !self.cr4_defined() != 0 {
            return self.gp(0);
        }
        let changed = self.cr4 ^ new;
        let sets = |bit| changed & new & bit != 0;
        let long = self.long_mode();
        let bad = long && (new & cr4::PAE == 0 || changed & cr4::LA57 != 0)
            || sets(cr4::PCIDE) && (!long || self.cr3 & 0xfff != 0);
        if bad {
            return self.gp(0);
        }
        let paging = self.cr0 & cr0::PG != 0;
        if paging && !long && new & cr4::PAE != 0 && changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0 {
            let pointers = self.read_pdptrs(self.cr3)?;
            self.pdptr = pointers;
        }
        self.cr4 = new;
        const TRANSLATION: u64 = cr4::PSE
            | cr4::PAE
            | cr4::PGE
            | cr4::PCIDE
            | cr4::SMEP
            | cr4::SMAP
            | cr4::PKE
            | cr4::PKS
            | cr4::LA57;
        if changed & TRANSLATION != 0 {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }
}

fn clts(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()?;
    cpu.cr0 &= !cr0::TS;
    cpu.update_fpu_gate();
    Ok(())
}

/// LMSW can set PE but not clear it, and reaches only the low four bits.
fn lmsw(cpu: &mut Cpu, value: u16) -> R {
    cpu.privileged()?;
    let low = u64::from(value) & 0xf | cpu.cr0 & cr0::PE;
    cpu.write_cr0(cpu.cr0 & !0xf | low)
}

fn lmsw_r(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<u16>(d.src);
    lmsw(cpu, value)
}

fn lmsw_m(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.privileged()?;
    let value = cpu.read_m::<u16>(d)?;
    lmsw(cpu, value)
}

fn smsw_r<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.umip()?;
    cpu.w(d.dst, T::from_u64(cpu.cr0));
    Ok(())
}

fn smsw_m(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.umip()?;
    cpu.write_m(d, cpu.cr0 as u16)
}

/// Checks an access to debug register `n`, and returns its index in `Cpu::dr`.
fn debug_register(cpu: &mut Cpu, n: u8) -> R<usize> {
    // DR4 and DR5 are other names of DR6 and DR7, unless CR4.DE takes them away.
    if n > 7 || matches!(n, 4 | 5) && cpu.cr4 & cr4::DE != 0 {
        return cpu.ud();
    }
    cpu.privileged()?;
    if cpu.dr[5] & DR7_GD != 0 {
        return cpu.raise(Exception { vector: Vector::Db, code: 0, info: DR6_BD });
    }
    Ok(match n {
        0..=3 => n.into(),
        4 | 6 => 4,
        _ => 5,
    })
}

fn mov_from_dr(cpu: &mut Cpu, d: &DInsn) -> R {
    let index = debug_register(cpu, d.aux)?;
    let value = cpu.dr[index];
    put(cpu, d, value);
    Ok(())
}

fn mov_to_dr(cpu: &mut Cpu, d: &DInsn) -> R {
    let index = debug_register(cpu, d.aux)?;
    let value = source(cpu, d);
    if index >= 4 && value >> 32 != 0 {
        return cpu.gp(0);
    }
    cpu.dr[index] = match index {
        4 => value & 0xe00f | DR6_FIXED,
        5 => value & 0xffff_2bff | DR7_FIXED,
        _ => value,
    };
    // Watched pages are kept out of the TLB.
    if index != 4 {
        cpu.tlb.flush_all();
    }
    cpu.end_block();
    Ok(())
}
