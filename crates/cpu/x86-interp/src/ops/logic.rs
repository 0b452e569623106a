//! AND, OR, XOR, TEST, NOT and the flag instructions on CF and DF.

use iced_x86::Mnemonic;
use x86_isa::flags;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;
use crate::ops::arith::Binary;
use crate::ops::arith::Unary;
use crate::ops::arith::binary;
use crate::ops::arith::unary;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::And => binary::<And>(x, d)?,
        Mnemonic::Or => binary::<Or>(x, d)?,
        Mnemonic::Xor => binary::<Xor>(x, d)?,
        Mnemonic::Test => binary::<Test>(x, d)?,
        Mnemonic::Not => unary::<Not>(x, d)?,
        Mnemonic::Clc => clc,
        Mnemonic::Stc => stc,
        Mnemonic::Cmc => cmc,
        Mnemonic::Cld => cld,
        Mnemonic::Std => std,
        _ => return None,
    })
}

struct And;
struct Or;
struct Xor;
struct Test;
struct Not;

impl Binary for And {
    const WRITES: bool = true;
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
        let res = T::from_u64(a.u64() & b.u64());
        cpu.lazy.logic(res);
        res
    }
}

impl Binary for Or {
    const WRITES: bool = true;
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
        let res = T::from_u64(a.u64() | b.u64());
        cpu.lazy.logic(res);
        res
    }
}

impl Binary for Xor {
    const WRITES: bool = true;
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
        let res = T::from_u64(a.u64() ^ b.u64());
        cpu.lazy.logic(res);
        res
    }
}

impl Binary for Test {
    const WRITES: bool = false;
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
        And::run(cpu, a, b)
    }
}

impl Unary for Not {
    #[inline(always)]
    fn run<T: Int>(_: &mut Cpu, a: T) -> T {
        T::from_u64(!a.u64())
    }
}

fn clc(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.lazy.set_cf(false);
    Ok(())
}

fn stc(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.lazy.set_cf(true);
    Ok(())
}

fn cmc(cpu: &mut Cpu, _d: &DInsn) -> R {
    let cf = cpu.lazy.cf();
    cpu.lazy.set_cf(!cf);
    Ok(())
}

fn cld(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.sysflags &= !flags::DF;
    Ok(())
}

fn std(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.sysflags |= flags::DF;
    Ok(())
}
