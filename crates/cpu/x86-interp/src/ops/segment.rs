//! Segment registers: MOV, PUSH, POP, LDS to LSS, their bases, and what inspects or loads descriptors.
//!
//! Spec: SDM vol. 2 (each instruction), vol. 3 §3.4, §5.4-5.10.

mod bases;
mod load;
mod query;
pub(crate) mod tables;

pub(crate) use load::Found;
pub(crate) use load::null_stack;
pub(crate) use load::v86_segment;

use iced_x86::Mnemonic;
use iced_x86::OpKind;
use x86_isa::flags;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::cpu::ES;
use crate::cpu::FS;
use crate::cpu::GS;
use crate::cpu::RSP;
use crate::cpu::SS;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size_wide;
use crate::decode::seg;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;

/// In `aux`: the 16-bit operand is in memory.
pub(crate) const IN_MEMORY: u8 = 1;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    moves(x, d)
        .or_else(|| query::select(x, d))
        .or_else(|| tables::select(x, d))
        .or_else(|| bases::select(x, d))
}

fn moves(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Mov => {
            if let Some(register) = segment(x, 0) {
                if register == CS as u8 {
                    return None;
                }
                d.dst = register;
                operand16(x, d, 1)?;
                mov_to
            } else {
                d.src = segment(x, 1)?;
                target16(x, d, 0)?;
                mov_from
            }
        }
        Mnemonic::Push => {
            d.src = segment(x, 0)?;
            by_size_wide!(x.ins.stack_pointer_increment().unsigned_abs(), push)
        }
        Mnemonic::Pop => {
            d.dst = segment(x, 0)?;
            by_size_wide!(x.ins.stack_pointer_increment().unsigned_abs(), pop)
        }
        Mnemonic::Lds => pointer(x, d, crate::cpu::DS),
        Mnemonic::Les => pointer(x, d, ES),
        Mnemonic::Lfs => pointer(x, d, FS),
        Mnemonic::Lgs => pointer(x, d, GS),
        Mnemonic::Lss => pointer(x, d, SS),
        _ => return None,
    })
}

/// Operand `n` if it is a segment register.
fn segment(x: &Dec<'_>, n: u32) -> Option<u8> {
    if n >= x.ins.op_count() || x.ins.op_kind(n) != OpKind::Register {
        return None;
    }
    let register = x.ins.op_register(n);
    register.is_segment_register().then(|| seg(register))
}

/// Operand `n` is a 16-bit source: see [`Cpu::operand16`].
pub(crate) fn operand16(x: &Dec<'_>, d: &mut DInsn, n: u32) -> Option<()> {
    match x.op(n) {
        Op::Reg(r) => d.src = r,
        Op::Mem => d.aux = IN_MEMORY,
        _ => return None,
    }
    Some(())
}

/// Operand `n` takes a 16-bit value: see [`Cpu::store16`].
pub(crate) fn target16(x: &Dec<'_>, d: &mut DInsn, n: u32) -> Option<()> {
    match x.op(n) {
        Op::Reg(r) => {
            d.dst = r;
            d.size = x.size(n) as u8;
        }
        Op::Mem => d.aux = IN_MEMORY,
        _ => return None,
    }
    Some(())
}

fn pointer(x: &Dec<'_>, d: &mut DInsn, segment: usize) -> crate::insn::Exec {
    d.src = segment as u8;
    if let Op::Reg(target) = x.op(0) {
        d.dst = target;
    }
    by_size_wide!(x.size(0), load_pointer)
}

impl Cpu {
    /// A 16-bit source in a register or in memory.
    pub(crate) fn operand16(&mut self, d: &DInsn) -> R<u16> {
        if d.aux == IN_MEMORY {
            self.read_m(d)
        } else {
            Ok(self.r(d.src))
        }
    }

    /// Stores a 16-bit value: wider registers are zero-extended, memory takes 16 bits whatever the operand size.
    pub(crate) fn store16(&mut self, d: &DInsn, value: u16) -> R {
        if d.aux == IN_MEMORY {
            return self.write_m(d, value);
        }
        if d.size == 2 {
            self.w(d.dst, value);
        } else {
            self.w(d.dst, u64::from(value));
        }
        Ok(())
    }
}

fn mov_to(cpu: &mut Cpu, d: &DInsn) -> R {
    let selector = cpu.operand16(d)?;
    load(cpu, d.dst.into(), selector)
}

/// MOV and POP to SS hold back interrupts and debug traps until the next instruction is done, and are not stepped.
fn load(cpu: &mut Cpu, register: usize, selector: u16) -> R {
    cpu.load_segment(register, selector)?;
    if register == SS {
        cpu.boundary.event.mov_ss_shadow = true;
        cpu.boundary.no_step = cpu.flag(flags::TF);
        cpu.end_block();
    }
    Ok(())
}

fn mov_from(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.segs[usize::from(d.src)].selector;
    cpu.store16(d, value)
}

/// A 32-bit push only writes the lower half of its slot, as recent processors do.
fn push<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let selector = cpu.segs[usize::from(d.src)].selector;
    let sp = cpu.regs[RSP].wrapping_sub(T::BYTES) & cpu.sp_mask;
    if T::BYTES == 8 {
        cpu.write_seg(SS, sp, u64::from(selector))?;
    } else {
        cpu.write_seg(SS, sp, selector)?;
    }
    cpu.set_sp(sp);
    Ok(())
}

fn pop<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let selector = cpu.peek::<T>(0)?.u64() as u16;
    // The stack pointer moves in the width of the old stack segment.
    let mask = cpu.sp_mask;
    load(cpu, d.dst.into(), selector)?;
    let sp = cpu.regs[RSP];
    cpu.regs[RSP] = sp & !mask | sp.wrapping_add(T::BYTES) & mask;
    Ok(())
}

fn load_pointer<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let at = cpu.ea(d);
    let offset = cpu.read_seg::<T>(d.seg.into(), at)?;
    let next = at.wrapping_add(T::BYTES) << d.cut >> d.cut;
    let selector = cpu.read_seg::<u16>(d.seg.into(), next)?;
    cpu.load_segment(d.src.into(), selector)?;
    cpu.w(d.dst, offset);
    Ok(())
}
