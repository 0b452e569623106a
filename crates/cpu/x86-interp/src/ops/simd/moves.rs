//! Loads, stores and copies of vector registers, bitwise logic, VZEROUPPER. In Rust: they are most of what vector code
//! does, and need no unit.

use iced_x86::Mnemonic;
use iced_x86::OpKind;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::reg;
use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::R;
use crate::int::Int;
use crate::native::alignment;
use crate::ops::simd::Unit;

/// Sixteen bytes of a register.
type Half = [u64; 2];

/// What an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arg {
    Xmm(u8),
    Ymm(u8),
    Gpr(u8),
    Mem,
    Other,
}

fn arg(x: &Dec<'_>, n: u32) -> Arg {
    if n >= x.ins.op_count() {
        return Arg::Other;
    }
    match x.ins.op_kind(n) {
        OpKind::Memory => Arg::Mem,
        OpKind::Register => {
            let r = x.ins.op_register(n);
            match () {
                () if r.is_xmm() => Arg::Xmm(r.number() as u8),
                () if r.is_ymm() => Arg::Ymm(r.number() as u8),
                () if r.is_gpr() => Arg::Gpr(reg(r)),
                () => Arg::Other,
            }
        }
        _ => Arg::Other,
    }
}

/// MOVNTI: an integer store, free of the vector unit's conditions.
pub(super) fn movnti(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let Op::Reg(source) = x.op(1) else { return None };
    d.src = source;
    Some(if x.size(0) == 8 {
        store_gpr_plain::<u64>
    } else {
        store_gpr_plain::<u32>
    })
}

fn store_gpr_plain<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.src);
    cpu.write_m(d, value)
}

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn, unit: Unit) -> Select {
    if !matches!(unit, Unit::Sse | Unit::Avx) {
        return None;
    }
    use Mnemonic as M;
    match x.mnemonic() {
        M::Vzeroupper => Some(|cpu, _| zero_upper(cpu)),
        M::Vzeroall => Some(if x.bits == 64 { vzeroall::<16> } else { vzeroall::<8> }),
        M::Movups
        | M::Movupd
        | M::Movdqu
        | M::Lddqu
        | M::Movaps
        | M::Movapd
        | M::Movdqa
        | M::Movntps
        | M::Movntpd
        | M::Movntdq
        | M::Movntdqa
        | M::Vmovups
        | M::Vmovupd
        | M::Vmovdqu
        | M::Vlddqu
        | M::Vmovaps
        | M::Vmovapd
        | M::Vmovdqa
        | M::Vmovntps
        | M::Vmovntpd
        | M::Vmovntdq
        | M::Vmovntdqa => whole(x, d, unit),
        M::Movd | M::Movq | M::Vmovd | M::Vmovq => integer(x, d, unit),
        M::Movss | M::Vmovss => scalar::<u32>(x, d, unit),
        M::Movsd | M::Vmovsd => scalar::<u64>(x, d, unit),
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => half::<0>(x, d, unit),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => half::<1>(x, d, unit),
        M::Pxor | M::Xorps | M::Xorpd | M::Vpxor | M::Vxorps | M::Vxorpd => logic::<Xor>(x, d, unit),
        M::Pand | M::Andps | M::Andpd | M::Vpand | M::Vandps | M::Vandpd => logic::<And>(x, d, unit),
        M::Por | M::Orps | M::Orpd | M::Vpor | M::Vorps | M::Vorpd => logic::<Or>(x, d, unit),
        M::Pandn | M::Andnps | M::Andnpd | M::Vpandn | M::Vandnps | M::Vandnpd => logic::<AndNot>(x, d, unit),
        _ => None,
    }
}

#[inline(always)]
fn ask<const VEX: bool>(cpu: &mut Cpu) -> R {
    if VEX { cpu.ask_avx() } else { cpu.ask_sse() }
}

impl Cpu {
    /// The lower half of a vector register.
    #[inline(always)]
    fn xmm(&mut self, n: u8) -> &mut Half {
        debug_assert!(n < 16);
        // SAFETY: the decoder only makes numbers below 16; a half is the first two words of a register.
        unsafe { &mut *self.fpu.ymm.as_mut_ptr().add(n.into()).cast::<Half>() }
    }

    #[inline(always)]
    fn ymm(&mut self, n: u8) -> &mut [u64; 4] {
        debug_assert!(n < 16);
        // SAFETY: as above.
        unsafe { self.fpu.ymm.get_unchecked_mut(usize::from(n)) }
    }

    /// Sets the lower half; the VEX form clears the upper one.
    #[inline(always)]
    fn set_xmm<const VEX: bool>(&mut self, n: u8, value: Half) {
        if VEX {
            *self.ymm(n) = [value[0], value[1], 0, 0];
        } else {
            *self.xmm(n) = value;
        }
    }
}

/// Reads `N` words of guest memory at a host address.
#[inline(always)]
fn load<const N: usize>(at: *const u8) -> [u64; N] {
    // SAFETY: the caller got `N` words from `operand_in`.
    std::array::from_fn(|i| unsafe { u64::load_mem(at.add(i * 8)) })
}

#[inline(always)]
fn store<const N: usize>(at: *mut u8, value: [u64; N]) {
    for (i, word) in value.into_iter().enumerate() {
        // SAFETY: the caller got `N` words from `operand_out`.
        unsafe { u64::store_mem(at.add(i * 8), word) };
    }
}

fn zero_upper(cpu: &mut Cpu) -> R {
    cpu.ask_avx()?;
    let n = if cpu.is64() { 16 } else { 8 };
    for register in &mut cpu.fpu.ymm[..n] {
        (register[2], register[3]) = (0, 0);
    }
    Ok(())
}

fn vzeroall<const N: usize>(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.ask_avx()?;
    cpu.fpu.ymm[..N].fill([0; 4]);
    Ok(())
}

macro_rules! by_vex {
    ($unit:expr, $f:ident $(, $g:ty)*) => {
        if $unit == Unit::Avx { $f::<true $(, $g)*> as Exec } else { $f::<false $(, $g)*> }
    };
}

/// Whole-register moves.
fn whole(x: &Dec<'_>, d: &mut DInsn, unit: Unit) -> Select {
    d.size = alignment(x.ins) as u8;
    Some(match (arg(x, 0), arg(x, 1)) {
        (Arg::Xmm(a), Arg::Xmm(b)) => {
            (d.dst, d.src) = (a, b);
            by_vex!(unit, copy_xmm)
        }
        (Arg::Xmm(a), Arg::Mem) => {
            d.dst = a;
            by_vex!(unit, load_xmm)
        }
        (Arg::Mem, Arg::Xmm(b)) => {
            d.src = b;
            by_vex!(unit, store_xmm)
        }
        (Arg::Ymm(a), Arg::Ymm(b)) => {
            (d.dst, d.src) = (a, b);
            copy_ymm
        }
        (Arg::Ymm(a), Arg::Mem) => {
            d.dst = a;
            load_ymm
        }
        (Arg::Mem, Arg::Ymm(b)) => {
            d.src = b;
            store_ymm
        }
        _ => return None,
    })
}

fn copy_xmm<const VEX: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let value = *cpu.xmm(d.src);
    cpu.set_xmm::<VEX>(d.dst, value);
    Ok(())
}

fn load_xmm<const VEX: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let at = cpu.operand_in(d, 16, d.size.into())?;
    cpu.set_xmm::<VEX>(d.dst, load(at));
    Ok(())
}

fn store_xmm<const VEX: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let out = cpu.operand_out(d, 16, d.size.into())?;
    store(out.at, *cpu.xmm(d.src));
    cpu.operand_done(d, 16, out)
}

fn copy_ymm(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_avx()?;
    *cpu.ymm(d.dst) = *cpu.ymm(d.src);
    Ok(())
}

fn load_ymm(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_avx()?;
    let at = cpu.operand_in(d, 32, d.size.into())?;
    *cpu.ymm(d.dst) = load(at);
    Ok(())
}

fn store_ymm(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_avx()?;
    let out = cpu.operand_out(d, 32, d.size.into())?;
    store(out.at, *cpu.ymm(d.src));
    cpu.operand_done(d, 32, out)
}

/// MOVD and MOVQ.
fn integer(x: &Dec<'_>, d: &mut DInsn, unit: Unit) -> Select {
    let wide = x.size(0).max(x.size(1)) == 16 && x.size(0).min(x.size(1)) == 8 || x.size(0) == x.size(1);
    Some(match (arg(x, 0), arg(x, 1)) {
        (Arg::Xmm(a), Arg::Xmm(b)) => {
            (d.dst, d.src) = (a, b);
            by_vex!(unit, copy_low)
        }
        (Arg::Xmm(a), Arg::Gpr(b)) => {
            (d.dst, d.src) = (a, b);
            if wide {
                by_vex!(unit, from_gpr, u64)
            } else {
                by_vex!(unit, from_gpr, u32)
            }
        }
        (Arg::Gpr(a), Arg::Xmm(b)) => {
            (d.dst, d.src) = (a, b);
            if wide {
                by_vex!(unit, to_gpr, u64)
            } else {
                by_vex!(unit, to_gpr, u32)
            }
        }
        (Arg::Xmm(a), Arg::Mem) => {
            d.dst = a;
            if wide {
                by_vex!(unit, load_low, u64)
            } else {
                by_vex!(unit, load_low, u32)
            }
        }
        (Arg::Mem, Arg::Xmm(b)) => {
            d.src = b;
            if wide {
                by_vex!(unit, store_word, u64)
            } else {
                by_vex!(unit, store_word, u32)
            }
        }
        _ => return None,
    })
}

fn copy_low<const VEX: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let low = cpu.xmm(d.src)[0];
    cpu.set_xmm::<VEX>(d.dst, [low, 0]);
    Ok(())
}

fn from_gpr<const VEX: bool, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let value = cpu.r::<T>(d.src).u64();
    cpu.set_xmm::<VEX>(d.dst, [value, 0]);
    Ok(())
}

fn to_gpr<const VEX: bool, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let value = T::from_u64(cpu.xmm(d.src)[0]);
    cpu.w(d.dst, value);
    Ok(())
}

fn load_low<const VEX: bool, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let value = cpu.read_m::<T>(d)?.u64();
    cpu.set_xmm::<VEX>(d.dst, [value, 0]);
    Ok(())
}

fn store_word<const VEX: bool, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let value = T::from_u64(cpu.xmm(d.src)[0]);
    cpu.write_m(d, value)
}

/// MOVSS and MOVSD.
fn scalar<T: Int>(x: &Dec<'_>, d: &mut DInsn, unit: Unit) -> Select {
    Some(match (arg(x, 0), arg(x, 1), arg(x, 2)) {
        (Arg::Xmm(a), Arg::Mem, _) => {
            d.dst = a;
            by_vex!(unit, load_low, T)
        }
        (Arg::Mem, Arg::Xmm(b), _) => {
            d.src = b;
            by_vex!(unit, store_word, T)
        }
        (Arg::Xmm(a), Arg::Xmm(b), Arg::Xmm(c)) => {
            (d.dst, d.src, d.aux) = (a, b, c);
            merge::<true, T>
        }
        (Arg::Xmm(a), Arg::Xmm(b), _) => {
            (d.dst, d.src, d.aux) = (a, a, b);
            merge::<false, T>
        }
        _ => return None,
    })
}

/// The lowest element of the last operand, the others of the one before.
fn merge<const VEX: bool, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let ones = u64::MAX >> (64 - T::BITS);
    let low = cpu.xmm(d.aux)[0];
    let mut value = *cpu.xmm(d.src);
    value[0] = value[0] & !ones | low & ones;
    cpu.set_xmm::<VEX>(d.dst, value);
    Ok(())
}

/// MOVLPS, MOVHPS and their kin with a memory operand. The register forms are shuffles with names of their own.
fn half<const HIGH: usize>(x: &Dec<'_>, d: &mut DInsn, unit: Unit) -> Select {
    Some(match (arg(x, 0), arg(x, 1), arg(x, 2)) {
        (Arg::Xmm(a), Arg::Xmm(b), Arg::Mem) => {
            (d.dst, d.src) = (a, b);
            load_half::<true, HIGH>
        }
        (Arg::Xmm(a), Arg::Mem, _) => {
            (d.dst, d.src) = (a, a);
            load_half::<false, HIGH>
        }
        (Arg::Mem, Arg::Xmm(b), _) => {
            d.src = b;
            if unit == Unit::Avx {
                store_half::<true, HIGH>
            } else {
                store_half::<false, HIGH>
            }
        }
        _ => return None,
    })
}

fn load_half<const VEX: bool, const HIGH: usize>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let word = cpu.read_m::<u64>(d)?;
    let mut value = *cpu.xmm(d.src);
    value[HIGH] = word;
    cpu.set_xmm::<VEX>(d.dst, value);
    Ok(())
}

fn store_half<const VEX: bool, const HIGH: usize>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let word = cpu.xmm(d.src)[HIGH];
    cpu.write_m(d, word)
}

/// A bitwise operation.
trait Logic {
    fn run(a: u64, b: u64) -> u64;
}

macro_rules! logic {
    ($($name:ident = $f:expr;)*) => {
        $(
            struct $name;
            impl Logic for $name {
                #[inline(always)]
                fn run(a: u64, b: u64) -> u64 {
                    let f: fn(u64, u64) -> u64 = $f;
                    f(a, b)
                }
            }
        )*
    };
}

logic! {
    Xor = |a, b| a ^ b;
    And = |a, b| a & b;
    Or = |a, b| a | b;
    AndNot = |a, b| !a & b;
}

/// Chooses the form: two operands, or three with VEX.
fn logic<O: Logic>(x: &Dec<'_>, d: &mut DInsn, unit: Unit) -> Select {
    d.size = alignment(x.ins) as u8;
    let vex = unit == Unit::Avx;
    let (first, second) = if vex {
        (arg(x, 1), arg(x, 2))
    } else {
        (arg(x, 0), arg(x, 1))
    };
    Some(match (arg(x, 0), first, second) {
        (Arg::Xmm(a), Arg::Xmm(b), Arg::Xmm(c)) => {
            (d.dst, d.src, d.aux) = (a, b, c);
            by_vex!(unit, logic_rr, O)
        }
        (Arg::Xmm(a), Arg::Xmm(b), Arg::Mem) => {
            (d.dst, d.src) = (a, b);
            by_vex!(unit, logic_rm, O)
        }
        (Arg::Ymm(a), Arg::Ymm(b), Arg::Ymm(c)) => {
            (d.dst, d.src, d.aux) = (a, b, c);
            logic_ymm_rr::<O>
        }
        (Arg::Ymm(a), Arg::Ymm(b), Arg::Mem) => {
            (d.dst, d.src) = (a, b);
            logic_ymm_rm::<O>
        }
        _ => return None,
    })
}

#[inline(always)]
fn each<O: Logic, const N: usize>(a: [u64; N], b: [u64; N]) -> [u64; N] {
    std::array::from_fn(|i| O::run(a[i], b[i]))
}

fn logic_rr<const VEX: bool, O: Logic>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let value = each::<O, 2>(*cpu.xmm(d.src), *cpu.xmm(d.aux));
    cpu.set_xmm::<VEX>(d.dst, value);
    Ok(())
}

fn logic_rm<const VEX: bool, O: Logic>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let at = cpu.operand_in(d, 16, d.size.into())?;
    let value = each::<O, 2>(*cpu.xmm(d.src), load(at));
    cpu.set_xmm::<VEX>(d.dst, value);
    Ok(())
}

fn logic_ymm_rr<O: Logic>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_avx()?;
    let value = each::<O, 4>(*cpu.ymm(d.src), *cpu.ymm(d.aux));
    *cpu.ymm(d.dst) = value;
    Ok(())
}

fn logic_ymm_rm<O: Logic>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_avx()?;
    let at = cpu.operand_in(d, 32, d.size.into())?;
    let value = each::<O, 4>(*cpu.ymm(d.src), load(at));
    *cpu.ymm(d.dst) = value;
    Ok(())
}
