//! MOV, MOVZX, MOVSX, MOVSXD, MOVBE, LEA, XCHG, CMOVcc, SETcc.

use iced_x86::Mnemonic;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size;
use crate::decode::by_size_wide;
use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::R;
use crate::int::Int;
use crate::ops::nop;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let mnemonic = x.mnemonic();
    match mnemonic {
        Mnemonic::Mov => mov(x, d),
        Mnemonic::Lea => {
            let Op::Reg(target) = x.op(0) else { return None };
            d.dst = target;
            Some(by_size_wide!(x.size(0), lea))
        }
        Mnemonic::Movzx => extend::<false>(x, d),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend::<true>(x, d),
        Mnemonic::Movbe => movbe(x, d),
        Mnemonic::Xchg => xchg(x, d),
        _ if is_cmov(mnemonic) => cmov(x, d),
        _ if is_set(mnemonic) => set(x, d),
        _ => None,
    }
}

fn is_cmov(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Cmovo
            | M::Cmovno
            | M::Cmovb
            | M::Cmovae
            | M::Cmove
            | M::Cmovne
            | M::Cmovbe
            | M::Cmova
            | M::Cmovs
            | M::Cmovns
            | M::Cmovp
            | M::Cmovnp
            | M::Cmovl
            | M::Cmovge
            | M::Cmovle
            | M::Cmovg
    )
}

fn is_set(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Seto
            | M::Setno
            | M::Setb
            | M::Setae
            | M::Sete
            | M::Setne
            | M::Setbe
            | M::Seta
            | M::Sets
            | M::Setns
            | M::Setp
            | M::Setnp
            | M::Setl
            | M::Setge
            | M::Setle
            | M::Setg
    )
}

fn mov(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let size = x.size(0);
    Some(match (x.op(0), x.op(1)) {
        (Op::Reg(a), Op::Reg(b)) => {
            (d.dst, d.src) = (a, b);
            by_size!(size, mov_rr)
        }
        (Op::Reg(a), Op::Imm) => {
            (d.dst, d.imm) = (a, x.imm(1));
            by_size!(size, mov_ri)
        }
        (Op::Reg(a), Op::Mem) => {
            d.dst = a;
            if absolute(x, d) {
                by_size!(size, mov_ra)
            } else {
                by_size!(size, mov_rm)
            }
        }
        (Op::Mem, Op::Reg(b)) => {
            d.src = b;
            if absolute(x, d) {
                by_size!(size, mov_ar)
            } else {
                by_size!(size, mov_mr)
            }
        }
        (Op::Mem, Op::Imm) => {
            d.imm = x.imm(1);
            by_size!(size, mov_mi)
        }
        // Control, debug and segment registers.
        _ => return None,
    })
}

/// The forms with a full-width address in the instruction (A0-A3 in 64-bit mode): it does not fit `disp`.
fn absolute(x: &Dec<'_>, d: &mut DInsn) -> bool {
    if x.ins.memory_displ_size() != 8 || x.ins.memory_base() != iced_x86::Register::None || d.index != crate::insn::ZERO
    {
        return false;
    }
    d.imm = x.ins.memory_displacement64();
    true
}

fn mov_rr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.src);
    cpu.w(d.dst, value);
    Ok(())
}

fn mov_ri<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.w(d.dst, T::from_u64(d.imm));
    Ok(())
}

fn mov_rm<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.read_m::<T>(d)?;
    cpu.w(d.dst, value);
    Ok(())
}

fn mov_mr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.src);
    cpu.write_m(d, value)
}

fn mov_mi<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.write_m(d, T::from_u64(d.imm))
}

fn mov_ra<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.read_seg::<T>(d.seg as usize, d.imm)?;
    cpu.w(d.dst, value);
    Ok(())
}

fn mov_ar<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.src);
    cpu.write_seg(d.seg as usize, d.imm, value)
}

fn lea<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let ea = cpu.ea(d);
    cpu.w(d.dst, T::from_u64(ea));
    Ok(())
}

fn extend<const SIGNED: bool>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let Op::Reg(target) = x.op(0) else { return None };
    d.dst = target;
    let register = match x.op(1) {
        Op::Reg(source) => {
            d.src = source;
            true
        }
        Op::Mem => false,
        _ => return None,
    };
    macro_rules! pick {
        ($from:ty) => {
            match (x.size(0), register) {
                (2, true) => extend_r::<SIGNED, $from, u16> as Exec,
                (4, true) => extend_r::<SIGNED, $from, u32>,
                (_, true) => extend_r::<SIGNED, $from, u64>,
                (2, false) => extend_m::<SIGNED, $from, u16>,
                (4, false) => extend_m::<SIGNED, $from, u32>,
                (_, false) => extend_m::<SIGNED, $from, u64>,
            }
        };
    }
    Some(match x.size(1) {
        1 => pick!(u8),
        2 => pick!(u16),
        _ => pick!(u32),
    })
}

#[inline(always)]
fn extended<const SIGNED: bool, From: Int, To: Int>(value: From) -> To {
    To::from_u64(if SIGNED { value.i64() as u64 } else { value.u64() })
}

fn extend_r<const SIGNED: bool, From: Int, To: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<From>(d.src);
    cpu.w(d.dst, extended::<SIGNED, From, To>(value));
    Ok(())
}

fn extend_m<const SIGNED: bool, From: Int, To: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.read_m::<From>(d)?;
    cpu.w(d.dst, extended::<SIGNED, From, To>(value));
    Ok(())
}

fn movbe(x: &Dec<'_>, d: &mut DInsn) -> Select {
    match (x.op(0), x.op(1)) {
        (Op::Reg(target), Op::Mem) => {
            d.dst = target;
            Some(by_size_wide!(x.size(0), movbe_rm))
        }
        (Op::Mem, Op::Reg(source)) => {
            d.src = source;
            Some(by_size_wide!(x.size(0), movbe_mr))
        }
        _ => None,
    }
}

fn swapped<T: Int>(value: T) -> T {
    T::from_u64(value.u64().swap_bytes() >> (64 - T::BITS))
}

fn movbe_rm<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.read_m::<T>(d)?;
    cpu.w(d.dst, swapped(value));
    Ok(())
}

fn movbe_mr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.src);
    cpu.write_m(d, swapped(value))
}

fn xchg(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let size = x.size(0);
    Some(match (x.op(0), x.op(1)) {
        (Op::Reg(a), Op::Reg(b)) => {
            // XCHG EAX, EAX as encoded by 87h clears the upper half; 90h is decoded as NOP.
            (d.dst, d.src) = (a, b);
            if a == b && size != 4 {
                nop
            } else {
                by_size!(size, xchg_rr)
            }
        }
        (Op::Mem, Op::Reg(b)) | (Op::Reg(b), Op::Mem) => {
            d.src = b;
            by_size!(size, xchg_mr)
        }
        _ => return None,
    })
}

fn xchg_rr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (a, b) = (cpu.r::<T>(d.dst), cpu.r::<T>(d.src));
    cpu.w(d.dst, b);
    cpu.w(d.src, a);
    Ok(())
}

/// Locked whether prefixed or not (SDM vol. 3 §8.1.2.1).
fn xchg_mr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let new = cpu.r::<T>(d.src);
    let mut old = new;
    cpu.modify_m_locked(d, |_, value| {
        old = value;
        new
    })?;
    cpu.w(d.src, old);
    Ok(())
}

fn cmov(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let Op::Reg(target) = x.op(0) else { return None };
    d.dst = target;
    d.aux = x.ins.condition_code() as u8 - 1;
    match x.op(1) {
        Op::Reg(source) => {
            d.src = source;
            Some(by_size_wide!(x.size(0), cmov_rr))
        }
        _ => Some(by_size_wide!(x.size(0), cmov_rm)),
    }
}

/// The 32-bit form clears the upper half even when the condition is false.
fn cmov_rr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let from = if cpu.lazy.condition(d.aux) { d.src } else { d.dst };
    let value = cpu.r::<T>(from);
    cpu.w(d.dst, value);
    Ok(())
}

fn cmov_rm<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let loaded = cpu.read_m::<T>(d)?;
    let value = if cpu.lazy.condition(d.aux) {
        loaded
    } else {
        cpu.r::<T>(d.dst)
    };
    cpu.w(d.dst, value);
    Ok(())
}

fn set(x: &Dec<'_>, d: &mut DInsn) -> Select {
    d.aux = x.ins.condition_code() as u8 - 1;
    match x.op(0) {
        Op::Reg(target) => {
            d.dst = target;
            Some(set_r)
        }
        Op::Mem => Some(set_m),
        _ => None,
    }
}

fn set_r(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.lazy.condition(d.aux) as u8;
    cpu.w(d.dst, value);
    Ok(())
}

fn set_m(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.lazy.condition(d.aux) as u8;
    cpu.write_m(d, value)
}
