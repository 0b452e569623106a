//! MUL, IMUL, MULX, DIV, IDIV.

use iced_x86::Mnemonic;
use x86_isa::Exception;
use x86_isa::Vector;

use crate::cpu::Cpu;
use crate::cpu::RAX;
use crate::cpu::RDX;
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
        Mnemonic::Mul => wide::<Mul>(x, d)?,
        Mnemonic::Imul if x.ins.op_count() == 1 => wide::<Imul>(x, d)?,
        Mnemonic::Imul => narrow(x, d)?,
        Mnemonic::Div => wide::<Div>(x, d)?,
        Mnemonic::Idiv => wide::<Idiv>(x, d)?,
        Mnemonic::Mulx => mulx(x, d)?,
        _ => return None,
    })
}

/// An operation on the accumulator pair and one operand.
trait Wide {
    fn run<T: Int>(cpu: &mut Cpu, operand: T) -> R;
}

fn wide<O: Wide>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    match x.op(0) {
        Op::Reg(source) => {
            d.src = source;
            Some(by_size!(x.size(0), wide_r, O))
        }
        Op::Mem => Some(by_size!(x.size(0), wide_m, O)),
        _ => None,
    }
}

fn wide_r<O: Wide, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let operand = cpu.r::<T>(d.src);
    O::run(cpu, operand)
}

fn wide_m<O: Wide, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let operand = cpu.read_m::<T>(d)?;
    O::run(cpu, operand)
}

/// Byte offset of AH, the upper half of the byte forms.
const AH: u8 = 1;

fn set_pair<T: Int>(cpu: &mut Cpu, low: T, high: T) {
    cpu.set_gpr(RAX, low);
    if T::BITS == 8 {
        cpu.w(AH, high);
    } else {
        cpu.set_gpr(RDX, high);
    }
}

/// The accumulator pair as one number.
fn pair<T: Int>(cpu: &Cpu) -> u128 {
    let high = if T::BITS == 8 {
        cpu.r::<T>(AH)
    } else {
        cpu.gpr::<T>(RDX)
    };
    u128::from(high.u64()) << T::BITS | u128::from(cpu.gpr::<T>(RAX).u64())
}

struct Mul;
struct Imul;
struct Div;
struct Idiv;

impl Wide for Mul {
    fn run<T: Int>(cpu: &mut Cpu, operand: T) -> R {
        let product = u128::from(cpu.gpr::<T>(RAX).u64()) * u128::from(operand.u64());
        let (low, high) = (T::from_u64(product as u64), T::from_u64((product >> T::BITS) as u64));
        set_pair(cpu, low, high);
        let overflow = high.u64() != 0;
        cpu.lazy.result_cf_of(low, overflow, overflow);
        Ok(())
    }
}

impl Wide for Imul {
    fn run<T: Int>(cpu: &mut Cpu, operand: T) -> R {
        let product = i128::from(cpu.gpr::<T>(RAX).i64()) * i128::from(operand.i64());
        let low = T::from_u64(product as u64);
        set_pair(cpu, low, T::from_u64((product >> T::BITS) as u64));
        let overflow = product != i128::from(low.i64());
        cpu.lazy.result_cf_of(low, overflow, overflow);
        Ok(())
    }
}

fn divide_error(cpu: &mut Cpu) -> R {
    cpu.raise(Exception::new(Vector::De))
}

impl Wide for Div {
    fn run<T: Int>(cpu: &mut Cpu, operand: T) -> R {
        let (dividend, divisor) = (pair::<T>(cpu), u128::from(operand.u64()));
        // The quotient fits exactly when the upper half is below the divisor.
        if dividend >> T::BITS >= divisor {
            return divide_error(cpu);
        }
        // A narrow division is much faster, and usual: the upper half is mostly zero.
        let (quotient, remainder) = if T::BITS < 64 || dividend >> 64 == 0 {
            let (a, b) = (dividend as u64, divisor as u64);
            (a / b, a % b)
        } else {
            ((dividend / divisor) as u64, (dividend % divisor) as u64)
        };
        set_pair(cpu, T::from_u64(quotient), T::from_u64(remainder));
        Ok(())
    }
}

impl Wide for Idiv {
    fn run<T: Int>(cpu: &mut Cpu, operand: T) -> R {
        let unused = 128 - 2 * T::BITS;
        let dividend = (pair::<T>(cpu) << unused) as i128 >> unused;
        let divisor = i128::from(operand.i64());
        let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor)) else {
            return divide_error(cpu);
        };
        let low = T::from_u64(quotient as u64);
        if i128::from(low.i64()) != quotient {
            return divide_error(cpu);
        }
        set_pair(cpu, low, T::from_u64(remainder as u64));
        Ok(())
    }
}

/// IMUL with two or three operands: the product cut to the operand size.
fn narrow(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let Op::Reg(target) = x.op(0) else { return None };
    d.dst = target;
    let size = x.size(0);
    let immediate = x.ins.op_count() == 3;
    if immediate {
        d.imm = x.imm(2);
    }
    Some(match (x.op(1), immediate) {
        (Op::Reg(source), true) => {
            d.src = source;
            by_size_wide!(size, imul_rri)
        }
        (Op::Reg(source), false) => {
            d.src = source;
            by_size_wide!(size, imul_rr)
        }
        (Op::Mem, true) => by_size_wide!(size, imul_rmi),
        (Op::Mem, false) => by_size_wide!(size, imul_rm),
        _ => return None,
    })
}

#[inline(always)]
fn imul<T: Int>(cpu: &mut Cpu, d: &DInsn, a: T, b: T) {
    let product = i128::from(a.i64()) * i128::from(b.i64());
    let low = T::from_u64(product as u64);
    let overflow = i128::from(low.i64()) != product;
    cpu.w(d.dst, low);
    cpu.lazy.result_cf_of(low, overflow, overflow);
}

fn imul_rr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (a, b) = (cpu.r::<T>(d.dst), cpu.r::<T>(d.src));
    imul(cpu, d, a, b);
    Ok(())
}

fn imul_rm<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = cpu.read_m::<T>(d)?;
    let a = cpu.r::<T>(d.dst);
    imul(cpu, d, a, b);
    Ok(())
}

fn imul_rri<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let a = cpu.r::<T>(d.src);
    imul(cpu, d, a, T::from_u64(d.imm));
    Ok(())
}

fn imul_rmi<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let a = cpu.read_m::<T>(d)?;
    imul(cpu, d, a, T::from_u64(d.imm));
    Ok(())
}

/// MULX: RDX times the operand into two registers, flags untouched.
fn mulx(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let (Op::Reg(high), Op::Reg(low)) = (x.op(0), x.op(1)) else {
        return None;
    };
    (d.dst, d.aux) = (high, low);
    match x.op(2) {
        Op::Reg(source) => {
            d.src = source;
            Some(by_size_wide!(x.size(0), mulx_r))
        }
        Op::Mem => Some(by_size_wide!(x.size(0), mulx_m)),
        _ => None,
    }
}

fn mulx_to<T: Int>(cpu: &mut Cpu, d: &DInsn, operand: T) {
    let product = u128::from(cpu.gpr::<T>(RDX).u64()) * u128::from(operand.u64());
    // The upper half is written last: it wins when both name one register.
    cpu.w(d.aux, T::from_u64(product as u64));
    cpu.w(d.dst, T::from_u64((product >> T::BITS) as u64));
}

fn mulx_r<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let operand = cpu.r::<T>(d.src);
    mulx_to(cpu, d, operand);
    Ok(())
}

fn mulx_m<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let operand = cpu.read_m::<T>(d)?;
    mulx_to(cpu, d, operand);
    Ok(())
}
