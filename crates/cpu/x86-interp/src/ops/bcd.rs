//! Decimal adjustment, sign extension of the accumulator, LAHF, SAHF, XLAT, BOUND.

use cpu_model::Feature;
use iced_x86::Mnemonic;
use x86_isa::Exception;
use x86_isa::Vector;
use x86_isa::flags;

use crate::cpu::Cpu;
use crate::cpu::RAX;
use crate::cpu::RBX;
use crate::cpu::RDX;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;

/// Byte offset of AH.
const AH: u8 = 1;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Cbw => widen::<u8, u16>,
        Mnemonic::Cwde => widen::<u16, u32>,
        Mnemonic::Cdqe => widen::<u32, u64>,
        Mnemonic::Cwd => spread::<u16>,
        Mnemonic::Cdq => spread::<u32>,
        Mnemonic::Cqo => spread::<u64>,
        Mnemonic::Aaa => aaa,
        Mnemonic::Aas => aas,
        Mnemonic::Daa => daa,
        Mnemonic::Das => das,
        Mnemonic::Aam => {
            d.imm = x.imm(0) & 0xff;
            aam
        }
        Mnemonic::Aad => {
            d.imm = x.imm(0) & 0xff;
            aad
        }
        Mnemonic::Salc => salc,
        Mnemonic::Lahf if x.bits != 64 || x.policy.has(Feature::LahfLm) => lahf,
        Mnemonic::Sahf if x.bits != 64 || x.policy.has(Feature::LahfLm) => sahf,
        Mnemonic::Xlatb => {
            d.cut = match x.ins.memory_base() {
                iced_x86::Register::BX => 48,
                iced_x86::Register::EBX => 32,
                _ => 0,
            };
            d.seg = crate::decode::seg(x.ins.memory_segment());
            xlat
        }
        Mnemonic::Bound => {
            let Op::Reg(index) = x.op(0) else { return None };
            d.src = index;
            if x.size(0) == 2 { bound::<u16> } else { bound::<u32> }
        }
        _ => return None,
    })
}

fn widen<From: Int, To: Int>(cpu: &mut Cpu, _d: &DInsn) -> R {
    let value = cpu.gpr::<From>(RAX).i64();
    cpu.set_gpr(RAX, To::from_u64(value as u64));
    Ok(())
}

fn spread<T: Int>(cpu: &mut Cpu, _d: &DInsn) -> R {
    let sign = cpu.gpr::<T>(RAX).i64() >> 63;
    cpu.set_gpr(RDX, T::from_u64(sign as u64));
    Ok(())
}

fn set(cpu: &mut Cpu, result: u8, cf: bool, af: bool) {
    cpu.lazy.result_cf_of(result, cf, false);
    let bits = cpu.lazy.bits() | if af { flags::AF } else { 0 };
    cpu.lazy.set_bits(bits);
}

/// AAA and AAS: `adjust` is +106h or -106h on AX.
fn ascii(cpu: &mut Cpu, adjust: u16) -> R {
    let ax = cpu.gpr::<u16>(RAX);
    let carry = ax & 15 > 9 || cpu.lazy.af();
    let ax = if carry { ax.wrapping_add(adjust) } else { ax };
    cpu.set_gpr(RAX, ax & 0xff0f);
    set(cpu, ax as u8 & 15, carry, carry);
    Ok(())
}

fn aaa(cpu: &mut Cpu, _d: &DInsn) -> R {
    ascii(cpu, 0x106)
}

fn aas(cpu: &mut Cpu, _d: &DInsn) -> R {
    ascii(cpu, 0x106u16.wrapping_neg())
}

fn daa(cpu: &mut Cpu, _d: &DInsn) -> R {
    let (old, old_cf) = (cpu.gpr::<u8>(RAX), cpu.lazy.cf());
    let af = old & 15 > 9 || cpu.lazy.af();
    let cf = old > 0x99 || old_cf;
    let al = old
        .wrapping_add(if af { 6 } else { 0 })
        .wrapping_add(if cf { 0x60 } else { 0 });
    cpu.set_gpr(RAX, al);
    set(cpu, al, cf, af);
    Ok(())
}

fn das(cpu: &mut Cpu, _d: &DInsn) -> R {
    let (old, old_cf) = (cpu.gpr::<u8>(RAX), cpu.lazy.cf());
    let af = old & 15 > 9 || cpu.lazy.af();
    let high = old > 0x99 || old_cf;
    let borrow = af && old < 6;
    let al = old
        .wrapping_sub(if af { 6 } else { 0 })
        .wrapping_sub(if high { 0x60 } else { 0 });
    cpu.set_gpr(RAX, al);
    set(cpu, al, high || old_cf || borrow, af);
    Ok(())
}

fn aam(cpu: &mut Cpu, d: &DInsn) -> R {
    let (al, base) = (cpu.gpr::<u8>(RAX), d.imm as u8);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return cpu.raise(Exception::new(Vector::De));
    };
    cpu.set_gpr(RAX, u16::from(high) << 8 | u16::from(low));
    cpu.lazy.logic(low);
    Ok(())
}

fn aad(cpu: &mut Cpu, d: &DInsn) -> R {
    let (al, ah) = (cpu.gpr::<u8>(RAX), cpu.r::<u8>(AH));
    let result = al.wrapping_add(ah.wrapping_mul(d.imm as u8));
    cpu.set_gpr(RAX, u16::from(result));
    cpu.lazy.logic(result);
    Ok(())
}

fn salc(cpu: &mut Cpu, _d: &DInsn) -> R {
    let value = if cpu.lazy.cf() { 0xff } else { 0u8 };
    cpu.set_gpr(RAX, value);
    Ok(())
}

fn lahf(cpu: &mut Cpu, _d: &DInsn) -> R {
    let image = (cpu.lazy.bits() | flags::FIXED) as u8;
    cpu.w(AH, image);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _d: &DInsn) -> R {
    let low = flags::ARITH & 0xff;
    let bits = cpu.lazy.bits() & !low | u64::from(cpu.r::<u8>(AH)) & low;
    cpu.lazy.set_bits(bits);
    Ok(())
}

fn xlat(cpu: &mut Cpu, d: &DInsn) -> R {
    let offset = cpu.regs[RBX].wrapping_add(cpu.gpr::<u8>(RAX).into()) << d.cut >> d.cut;
    let value = cpu.read_seg::<u8>(d.seg as usize, offset)?;
    cpu.set_gpr(RAX, value);
    Ok(())
}

fn bound<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let ea = cpu.ea(d);
    let low = cpu.read_seg::<T>(d.seg as usize, ea)?.i64();
    let high = cpu
        .read_seg::<T>(d.seg as usize, ea.wrapping_add(T::BYTES) << d.cut >> d.cut)?
        .i64();
    let index = cpu.r::<T>(d.src).i64();
    if index < low || index > high {
        return cpu.raise(Exception::new(Vector::Br));
    }
    Ok(())
}
