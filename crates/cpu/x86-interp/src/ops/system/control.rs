//! Control registers: MOV to and from CR0, CR2, CR3, CR4 and CR8, LMSW, SMSW, CLTS, and the mode switches they make.
//!
//! Spec: SDM vol. 2 "MOV—Move to/from Control Registers"; vol. 3 §2.5, §4.1, §4.4.1 (PDPTE registers), §4.10.4
//! (invalidation), §9.8.5 (long mode).

use cpu_model::Feature;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;
use x86_isa::attr;
use x86_isa::cr0;
use x86_isa::cr4;
use x86_isa::descriptor::system;
use x86_isa::efer;
use x86_isa::pte;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::reg;
use crate::insn::DInsn;
use crate::insn::R;
use crate::mmu::PHYS_BITS;
use crate::ops::segment::operand16;

/// Bits of CR0 that exist.
const CR0_BITS: u64 =
    cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
/// MOV to CR3: leave the translations of the PCID alone.
const CR3_NO_FLUSH: u64 = 1 << 63;

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Mov => {
            let (target, source) = (register(x, 0)?, register(x, 1)?);
            if target.is_cr() {
                d.src = reg(source);
                write(target)?
            } else if source.is_cr() {
                d.dst = reg(target);
                d.aux = x.size(0) as u8;
                read(source)?
            } else {
                return None;
            }
        }
        Mnemonic::Lmsw => {
            operand16(x, d, 0)?;
            lmsw
        }
        Mnemonic::Smsw => match x.op(0) {
            Op::Reg(target) => {
                (d.dst, d.size) = (target, x.size(0) as u8);
                smsw_r
            }
            _ => smsw_m,
        },
        Mnemonic::Clts => clts,
        _ => return None,
    })
}

fn register(x: &Dec<'_>, n: u32) -> Option<Register> {
    (x.ins.op_kind(n) == OpKind::Register).then(|| x.ins.op_register(n))
}

fn write(target: Register) -> Select {
    Some(match target {
        Register::CR0 => |cpu, d| write_cr(cpu, d, Cpu::write_cr0),
        Register::CR2 => |cpu, d| {
            write_cr(cpu, d, |cpu, value| {
                cpu.cr2 = value;
                Ok(())
            })
        },
        Register::CR3 => |cpu, d| write_cr(cpu, d, Cpu::write_cr3),
        Register::CR4 => |cpu, d| write_cr(cpu, d, Cpu::write_cr4),
        Register::CR8 => |cpu, d| write_cr(cpu, d, Cpu::write_cr8),
        _ => return None,
    })
}

fn read(source: Register) -> Select {
    Some(match source {
        Register::CR0 => |cpu, d| read_cr(cpu, d, |cpu| cpu.cr0),
        Register::CR2 => |cpu, d| read_cr(cpu, d, |cpu| cpu.cr2),
        Register::CR3 => |cpu, d| read_cr(cpu, d, |cpu| cpu.cr3),
        Register::CR4 => |cpu, d| read_cr(cpu, d, |cpu| cpu.cr4),
        Register::CR8 => |cpu, d| read_cr(cpu, d, |cpu| cpu.board().apic_cr8(cpu.id).into()),
        _ => return None,
    })
}

fn write_cr(cpu: &mut Cpu, d: &DInsn, set: fn(&mut Cpu, u64) -> R) -> R {
    cpu.privileged()?;
    let value = if cpu.is64() {
        cpu.r::<u64>(d.src)
    } else {
        cpu.r::<u32>(d.src).into()
    };
    set(cpu, value)
}

fn read_cr(cpu: &mut Cpu, d: &DInsn, get: fn(&Cpu) -> u64) -> R {
    cpu.privileged()?;
    let value = get(cpu);
    if cpu.is64() {
        cpu.w(d.dst, value);
    } else {
        cpu.w(d.dst, value as u32);
    }
    Ok(())
}

/// PE can be set but not cleared.
fn lmsw(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.privileged()?;
    let value = u64::from(cpu.operand16(d)?);
    let low = cr0::MP | cr0::EM | cr0::TS;
    cpu.write_cr0(cpu.cr0 & !low | value & (low | cr0::PE))
}

fn smsw_r(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.umip()?;
    match d.size {
        2 => cpu.w(d.dst, cpu.cr0 as u16),
        4 => cpu.w(d.dst, cpu.cr0 as u32),
        _ => cpu.w(d.dst, cpu.cr0),
    }
    Ok(())
}

fn smsw_m(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.umip()?;
    cpu.write_m(d, cpu.cr0 as u16)
}

fn clts(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()?;
    cpu.cr0 &= !cr0::TS;
    cpu.update_fpu_gate();
    cpu.end_block();
    Ok(())
}

impl Cpu {
    /// PAE paging is in use or about to be: the page-directory pointers are in registers.
    fn legacy_pae(cr0: u64, cr4: u64, efer: u64) -> bool {
        cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && efer & efer::LMA == 0
    }

    fn write_cr0(&mut self, value: u64) -> R {
        let on = |bit| value & bit != 0;
        if value >> 32 != 0 || on(cr0::PG) && !on(cr0::PE) || on(cr0::NW) && !on(cr0::CD) {
            return self.gp(0);
        }
        let new = value & CR0_BITS | cr0::ET;
        let changed = new ^ self.cr0;
        let mut efer = self.msrs.efer;
        if changed & cr0::PG != 0 && on(cr0::PG) && efer & efer::LME != 0 {
            let tss16 = matches!((self.tr.attr & attr::TYPE) as u8, system::TSS16 | system::TSS16_BUSY);
            if self.cr4 & cr4::PAE == 0 || self.segs[CS].attr & attr::L != 0 || tss16 {
                return self.gp(0);
            }
            efer |= efer::LMA;
        }
        if changed & cr0::PG != 0 && !on(cr0::PG) {
            if self.is64() || self.cr4 & cr4::PCIDE != 0 {
                return self.gp(0);
            }
            efer &= !efer::LMA;
        }
        if changed & (cr0::PG | cr0::CD | cr0::NW) != 0 && Self::legacy_pae(new, self.cr4, efer) {
            self.pdptr = self.read_pdptrs(self.cr3)?;
        }
        self.cr0 = new;
        self.msrs.efer = efer;
        self.configured();
        if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> R {
        let mut new = value;
        let mut keep = false;
        if self.cr4 & cr4::PCIDE != 0 {
            keep = value & CR3_NO_FLUSH != 0;
            new &= !CR3_NO_FLUSH;
        }
        if self.is64() && new >> PHYS_BITS != 0 {
            return self.gp(0);
        }
        if Self::legacy_pae(self.cr0, self.cr4, self.msrs.efer) {
            self.pdptr = self.read_pdptrs(new)?;
        }
        let pcid = |cr3: u64| (cr3 & 0xfff) as u16;
        if self.cr4 & cr4::PCIDE != 0 && pcid(new) != pcid(self.cr3) {
            self.tlb.switch_space(pcid(self.cr3), pcid(new), keep);
        } else if !(keep && new == self.cr3) {
            self.tlb.flush_local();
        }
        self.cr3 = new;
        self.end_block();
        Ok(())
    }

    /// Bits of CR4 that this processor has.
    fn cr4_bits(&self) -> u64 {
        use Feature as F;
        let table = [
            (F::Tsc, cr4::TSD),
            (F::De, cr4::DE),
            (F::Pse, cr4::PSE),
            (F::Pae, cr4::PAE),
            (F::Mce, cr4::MCE),
            (F::Pge, cr4::PGE),
            (F::Fxsr, cr4::OSFXSR),
            (F::Sse, cr4::OSXMMEXCPT),
            (F::Umip, cr4::UMIP),
            (F::La57, cr4::LA57),
            (F::Fsgsbase, cr4::FSGSBASE),
            (F::Pcid, cr4::PCIDE),
            (F::Xsave, cr4::OSXSAVE),
            (F::Smep, cr4::SMEP),
            (F::Smap, cr4::SMAP),
            (F::Pku, cr4::PKE),
            (F::Pks, cr4::PKS),
        ];
        table
            .iter()
            .filter(|(feature, _)| self.has(*feature))
            .fold(cr4::PCE, |bits, (_, bit)| bits | bit)
    }

    fn write_cr4(&mut self, value: u64) -> R {
        let changed = value ^ self.cr4;
        let set = changed & value;
        let long = self.long_mode();
        let refused = value & !self.cr4_bits() != 0
            || long && (value & cr4::PAE == 0 || changed & cr4::LA57 != 0)
            || set & cr4::PCIDE != 0 && (!long || self.cr3 & 0xfff != 0);
        if refused {
            return self.gp(0);
        }
        let pointers = cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP;
        if changed & pointers != 0 && Self::legacy_pae(self.cr0, value, self.msrs.efer) {
            self.pdptr = self.read_pdptrs(self.cr3)?;
        }
        self.cr4 = value;
        self.configured();
        let translation = pointers | cr4::SMAP | cr4::PCIDE | cr4::PKE | cr4::PKS | cr4::LA57;
        if changed & translation != 0 {
            self.tlb.flush_all();
        }
        self.update_mode();
        Ok(())
    }

    fn write_cr8(&mut self, value: u64) -> R {
        if value > 15 {
            return self.gp(0);
        }
        self.board().set_apic_cr8(self.id, value as u8);
        self.end_block();
        Ok(())
    }

    /// Reads the four PAE page-directory pointers that `cr3` leads to; #GP(0) for reserved bits.
    pub(crate) fn read_pdptrs(&mut self, cr3: u64) -> R<[u64; 4]> {
        const RESERVED: u64 = !((1 << PHYS_BITS) - 1) | 0x1e6;
        let mut bytes = [0; 32];
        if self.mem.read(cr3 & 0xffff_ffe0, &mut bytes).is_err() {
            // Outside of memory: as an unclaimed bus reads.
            bytes = [0xff; 32];
        }
        let mut pointers = [0; 4];
        for (pointer, chunk) in pointers.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *pointer = u64::from_le_bytes(*chunk);
            if *pointer & pte::P != 0 && *pointer & RESERVED != 0 {
                return self.gp(0);
            }
        }
        Ok(pointers)
    }
}
