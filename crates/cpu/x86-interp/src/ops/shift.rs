//! SHL, SHR, SAR, ROL, ROR, RCL, RCR, SHLD, SHRD, and the BMI2 shifts that leave the flags alone.
//!
//! A count of zero changes no flag. OF is defined for counts of one only; for larger counts it follows what Intel
//! processors do.

use iced_x86::Mnemonic;

use crate::cpu::Cpu;
use crate::cpu::RCX;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size;
use crate::decode::by_size_wide;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => shift::<Shl>(x, d)?,
        Mnemonic::Shr => shift::<Shr>(x, d)?,
        Mnemonic::Sar => shift::<Sar>(x, d)?,
        Mnemonic::Rol => shift::<Rol>(x, d)?,
        Mnemonic::Ror => shift::<Ror>(x, d)?,
        Mnemonic::Rcl => shift::<Rcl>(x, d)?,
        Mnemonic::Rcr => shift::<Rcr>(x, d)?,
        Mnemonic::Shld => double::<Left>(x, d)?,
        Mnemonic::Shrd => double::<Right>(x, d)?,
        Mnemonic::Shlx => flagless::<Shl>(x, d)?,
        Mnemonic::Shrx => flagless::<Shr>(x, d)?,
        Mnemonic::Sarx => flagless::<Sar>(x, d)?,
        Mnemonic::Rorx => flagless::<Ror>(x, d)?,
        _ => return None,
    })
}

/// A shift by a count that is already masked to 5 or 6 bits and not zero.
trait Shift {
    fn run<T: Int>(cpu: &mut Cpu, value: T, count: u32) -> T;
}

/// 6 bits of the count for 64-bit operands, 5 for the others.
#[inline(always)]
fn masked<T: Int>(count: u64) -> u32 {
    (count & if T::BITS == 64 { 63 } else { 31 }) as u32
}

fn shift<S: Shift>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let size = x.size(0);
    // Count: an immediate (1 included), or CL.
    let by_cl = match x.op(1) {
        Op::Imm => {
            d.imm = x.imm(1);
            false
        }
        Op::Reg(_) => true,
        _ => return None,
    };
    Some(match (x.op(0), by_cl) {
        (Op::Reg(a), false) => {
            d.dst = a;
            by_size!(size, ri, S)
        }
        (Op::Reg(a), true) => {
            d.dst = a;
            by_size!(size, rc, S)
        }
        (Op::Mem, false) => by_size!(size, mi, S),
        (Op::Mem, true) => by_size!(size, mc, S),
        _ => return None,
    })
}

#[inline(always)]
fn in_register<S: Shift, T: Int>(cpu: &mut Cpu, d: &DInsn, count: u32) {
    let value = cpu.r::<T>(d.dst);
    // The 32-bit form clears the upper half even when nothing is shifted.
    let result = if count == 0 { value } else { S::run(cpu, value, count) };
    cpu.w(d.dst, result);
}

fn ri<S: Shift, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    in_register::<S, T>(cpu, d, masked::<T>(d.imm));
    Ok(())
}

fn rc<S: Shift, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let count = masked::<T>(cpu.regs[RCX]);
    in_register::<S, T>(cpu, d, count);
    Ok(())
}

fn in_memory<S: Shift, T: Int>(cpu: &mut Cpu, d: &DInsn, count: u32) -> R {
    cpu.modify_m(
        d,
        |cpu, value: T| if count == 0 { value } else { S::run(cpu, value, count) },
    )
}

fn mi<S: Shift, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    in_memory::<S, T>(cpu, d, masked::<T>(d.imm))
}

fn mc<S: Shift, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let count = masked::<T>(cpu.regs[RCX]);
    in_memory::<S, T>(cpu, d, count)
}

struct Shl;
struct Shr;
struct Sar;
struct Rol;
struct Ror;
struct Rcl;
struct Rcr;

#[inline(always)]
fn top<T: Int>(value: T) -> bool {
    value.u64() & T::SIGN != 0
}

impl Shift for Shl {
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, value: T, count: u32) -> T {
        let wide = u128::from(value.u64()) << count;
        let result = T::from_u64(wide as u64);
        let carry = wide >> T::BITS & 1 != 0;
        cpu.lazy.result_cf_of(result, carry, top(result) != carry);
        result
    }
}

impl Shift for Shr {
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, value: T, count: u32) -> T {
        let v = value.u64();
        let result = T::from_u64(v >> count);
        let carry = v >> (count - 1) & 1 != 0;
        // The sign before the last of the single-bit steps: for counts over one it is zero on Intel.
        cpu.lazy.result_cf_of(result, carry, count == 1 && top(value));
        result
    }
}

impl Shift for Sar {
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, value: T, count: u32) -> T {
        let v = value.i64();
        let result = T::from_u64((v >> count) as u64);
        cpu.lazy.result_cf_of(result, v >> (count - 1) & 1 != 0, false);
        result
    }
}

impl Shift for Rol {
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, value: T, count: u32) -> T {
        let (v, n) = (value.u64(), count % T::BITS);
        let result = if n == 0 {
            value
        } else {
            T::from_u64(v << n | v >> (T::BITS - n))
        };
        let carry = result.u64() & 1 != 0;
        cpu.lazy.set_cf_of(carry, top(result) != carry);
        result
    }
}

impl Shift for Ror {
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, value: T, count: u32) -> T {
        let (v, n) = (value.u64(), count % T::BITS);
        let result = if n == 0 {
            value
        } else {
            T::from_u64(v >> n | v << (T::BITS - n))
        };
        let r = result.u64();
        cpu.lazy
            .set_cf_of(top(result), (r >> (T::BITS - 1) ^ r >> (T::BITS - 2)) & 1 != 0);
        result
    }
}

impl Shift for Rcl {
    fn run<T: Int>(cpu: &mut Cpu, value: T, count: u32) -> T {
        let n = count % (T::BITS + 1);
        if n == 0 {
            return value;
        }
        // The operand with CF above it, rotated as one number of BITS + 1 bits.
        let ring = u128::from(value.u64()) | u128::from(cpu.lazy.cf()) << T::BITS;
        let turned = ring << n | ring >> (T::BITS + 1 - n);
        let result = T::from_u64(turned as u64);
        let carry = turned >> T::BITS & 1 != 0;
        cpu.lazy.set_cf_of(carry, top(result) != carry);
        result
    }
}

impl Shift for Rcr {
    fn run<T: Int>(cpu: &mut Cpu, value: T, count: u32) -> T {
        let n = count % (T::BITS + 1);
        if n == 0 {
            return value;
        }
        let ring = u128::from(value.u64()) | u128::from(cpu.lazy.cf()) << T::BITS;
        let turned = ring >> n | ring << (T::BITS + 1 - n);
        let result = T::from_u64(turned as u64);
        let r = result.u64();
        cpu.lazy.set_cf_of(
            turned >> T::BITS & 1 != 0,
            (r >> (T::BITS - 1) ^ r >> (T::BITS - 2)) & 1 != 0,
        );
        result
    }
}

/// SHLD and SHRD.
trait Double {
    fn run<T: Int>(cpu: &mut Cpu, value: T, filler: T, count: u32) -> T;
}

struct Left;
struct Right;

impl Double for Left {
    fn run<T: Int>(cpu: &mut Cpu, value: T, filler: T, count: u32) -> T {
        let bits = T::BITS;
        // Three operands' width, so that 16-bit counts over 16 shift the destination in again, as hardware does.
        let (v, f) = (u128::from(value.u64()), u128::from(filler.u64()));
        let (result, carry) = if bits == 16 && count > 16 {
            let wide = (v << 32 | f << 16 | v) << count;
            (T::from_u64((wide >> 32) as u64), wide >> 48 & 1 != 0)
        } else {
            let wide = v << bits | f;
            (
                T::from_u64((wide << count >> bits) as u64),
                wide >> (2 * bits - count) & 1 != 0,
            )
        };
        cpu.lazy.result_cf_of(result, carry, top(result) != top(value));
        result
    }
}

impl Double for Right {
    fn run<T: Int>(cpu: &mut Cpu, value: T, filler: T, count: u32) -> T {
        let bits = T::BITS;
        let (v, f) = (u128::from(value.u64()), u128::from(filler.u64()));
        let wide = if bits == 16 {
            v << 32 | f << 16 | v
        } else {
            f << bits | v
        };
        let result = T::from_u64((wide >> count) as u64);
        cpu.lazy
            .result_cf_of(result, wide >> (count - 1) & 1 != 0, top(result) != top(value));
        result
    }
}

fn double<D: Double>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let Op::Reg(filler) = x.op(1) else { return None };
    d.src = filler;
    let by_cl = match x.op(2) {
        Op::Imm => {
            d.imm = x.imm(2);
            false
        }
        _ => true,
    };
    d.aux = by_cl.into();
    match x.op(0) {
        Op::Reg(target) => {
            d.dst = target;
            Some(by_size_wide!(x.size(0), double_r, D))
        }
        Op::Mem => Some(by_size_wide!(x.size(0), double_m, D)),
        _ => None,
    }
}

fn double_count<T: Int>(cpu: &Cpu, d: &DInsn) -> u32 {
    masked::<T>(if d.aux != 0 { cpu.regs[RCX] } else { d.imm })
}

fn double_r<D: Double, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let count = double_count::<T>(cpu, d);
    let (value, filler) = (cpu.r::<T>(d.dst), cpu.r::<T>(d.src));
    let result = if count == 0 {
        value
    } else {
        D::run(cpu, value, filler, count)
    };
    cpu.w(d.dst, result);
    Ok(())
}

fn double_m<D: Double, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let count = double_count::<T>(cpu, d);
    let filler = cpu.r::<T>(d.src);
    cpu.modify_m(d, |cpu, value: T| {
        if count == 0 {
            value
        } else {
            D::run(cpu, value, filler, count)
        }
    })
}

/// SHLX, SHRX, SARX, RORX: the count is the third operand.
fn flagless<S: Shift>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let Op::Reg(target) = x.op(0) else { return None };
    d.dst = target;
    match x.op(2) {
        Op::Imm => {
            d.imm = x.imm(2);
            d.aux = u8::MAX;
        }
        Op::Reg(count) => d.aux = count,
        _ => return None,
    }
    match x.op(1) {
        Op::Reg(source) => {
            d.src = source;
            Some(by_size_wide!(x.size(0), flagless_r, S))
        }
        Op::Mem => Some(by_size_wide!(x.size(0), flagless_m, S)),
        _ => None,
    }
}

fn flagless_to<S: Shift, T: Int>(cpu: &mut Cpu, d: &DInsn, value: T) {
    let count = masked::<T>(if d.aux == u8::MAX { d.imm } else { cpu.r(d.aux) });
    let flags = cpu.lazy;
    let result = if count == 0 { value } else { S::run(cpu, value, count) };
    cpu.lazy = flags;
    cpu.w(d.dst, result);
}

fn flagless_r<S: Shift, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.src);
    flagless_to::<S, T>(cpu, d, value);
    Ok(())
}

fn flagless_m<S: Shift, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.read_m::<T>(d)?;
    flagless_to::<S, T>(cpu, d, value);
    Ok(())
}
