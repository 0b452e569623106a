//! BT, BTS, BTR, BTC, BSF, BSR, LZCNT, TZCNT, POPCNT, BMI1, BMI2 bit instructions, CRC32, BSWAP.

use cpu_model::Feature;
use iced_x86::Mnemonic;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size;
use crate::decode::by_size_wide;
use crate::insn::DInsn;
use crate::insn::F_LOCK;
use crate::insn::R;
use crate::int::Int;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Bt => test::<Keep>(x, d)?,
        Mnemonic::Bts => test::<Set>(x, d)?,
        Mnemonic::Btr => test::<Clear>(x, d)?,
        Mnemonic::Btc => test::<Flip>(x, d)?,
        Mnemonic::Bsf => scan::<Bsf>(x, d)?,
        Mnemonic::Bsr => scan::<Bsr>(x, d)?,
        // Without the feature the prefix is ignored.
        Mnemonic::Lzcnt if !x.policy.has(Feature::Abm) => scan::<Bsr>(x, d)?,
        Mnemonic::Tzcnt if !x.policy.has(Feature::Bmi1) => scan::<Bsf>(x, d)?,
        Mnemonic::Lzcnt => scan::<Lzcnt>(x, d)?,
        Mnemonic::Tzcnt => scan::<Tzcnt>(x, d)?,
        Mnemonic::Popcnt => scan::<Popcnt>(x, d)?,
        Mnemonic::Blsi => lowest::<Blsi>(x, d)?,
        Mnemonic::Blsmsk => lowest::<Blsmsk>(x, d)?,
        Mnemonic::Blsr => lowest::<Blsr>(x, d)?,
        Mnemonic::Andn => three::<Andn>(x, d, 1, 2)?,
        Mnemonic::Pdep => three::<Pdep>(x, d, 1, 2)?,
        Mnemonic::Pext => three::<Pext>(x, d, 1, 2)?,
        Mnemonic::Bextr => three::<Bextr>(x, d, 2, 1)?,
        Mnemonic::Bzhi => three::<Bzhi>(x, d, 2, 1)?,
        Mnemonic::Crc32 => crc32(x, d)?,
        Mnemonic::Bswap => {
            let Op::Reg(target) = x.op(0) else { return None };
            d.dst = target;
            by_size_wide!(x.size(0), bswap)
        }
        _ => return None,
    })
}

/// What a bit test does to the bit.
trait Change {
    const WRITES: bool;
    fn apply(value: u64, mask: u64) -> u64;
}

struct Keep;
struct Set;
struct Clear;
struct Flip;

impl Change for Keep {
    const WRITES: bool = false;
    fn apply(value: u64, _: u64) -> u64 {
        value
    }
}

impl Change for Set {
    const WRITES: bool = true;
    fn apply(value: u64, mask: u64) -> u64 {
        value | mask
    }
}

impl Change for Clear {
    const WRITES: bool = true;
    fn apply(value: u64, mask: u64) -> u64 {
        value & !mask
    }
}

impl Change for Flip {
    const WRITES: bool = true;
    fn apply(value: u64, mask: u64) -> u64 {
        value ^ mask
    }
}

fn test<C: Change>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let size = x.size(0);
    let immediate = x.op(1) == Op::Imm;
    if immediate {
        d.imm = x.imm(1) & (size as u64 * 8 - 1);
    } else if let Op::Reg(index) = x.op(1) {
        d.src = index;
    }
    Some(match (x.op(0), immediate) {
        (Op::Reg(a), true) => {
            d.dst = a;
            by_size_wide!(size, test_ri, C)
        }
        (Op::Reg(a), false) => {
            d.dst = a;
            by_size_wide!(size, test_rr, C)
        }
        (Op::Mem, true) => by_size_wide!(size, test_mi, C),
        (Op::Mem, false) => by_size_wide!(size, test_mr, C),
        _ => return None,
    })
}

fn test_register<C: Change, T: Int>(cpu: &mut Cpu, d: &DInsn, index: u64) -> R {
    let value = cpu.r::<T>(d.dst).u64();
    let mask = 1 << (index & u64::from(T::BITS - 1));
    cpu.lazy.set_cf(value & mask != 0);
    if C::WRITES {
        cpu.w(d.dst, T::from_u64(C::apply(value, mask)));
    }
    Ok(())
}

fn test_ri<C: Change, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    test_register::<C, T>(cpu, d, d.imm)
}

fn test_rr<C: Change, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let index = cpu.r::<T>(d.src).u64();
    test_register::<C, T>(cpu, d, index)
}

fn test_memory<C: Change, T: Int>(cpu: &mut Cpu, d: &DInsn, ea: u64, bit: u64) -> R {
    let mask = 1u64 << bit;
    let mut old = 0;
    if C::WRITES {
        let lin = cpu.lin_write(d.seg, ea, T::BYTES)?;
        let f = |_: &mut Cpu, value: T| {
            old = value.u64();
            T::from_u64(C::apply(old, mask))
        };
        if d.flags & F_LOCK != 0 {
            cpu.modify_lin_locked(d.seg, lin, f)
        } else {
            cpu.modify_lin(d.seg, lin, f)
        }?;
    } else {
        old = cpu.read_seg::<T>(d.seg as usize, ea)?.u64();
    }
    cpu.lazy.set_cf(old & mask != 0);
    Ok(())
}

fn test_mi<C: Change, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let ea = cpu.ea(d);
    test_memory::<C, T>(cpu, d, ea, d.imm)
}

/// The bit index reaches beyond the operand, in both directions (SDM vol. 2, BT: bit strings).
fn test_mr<C: Change, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let index = cpu.r::<T>(d.src).i64();
    let element = index >> T::BITS.trailing_zeros();
    let ea = cpu.ea(d).wrapping_add((element * T::BYTES as i64) as u64) << d.cut >> d.cut;
    test_memory::<C, T>(cpu, d, ea, index as u64 & u64::from(T::BITS - 1))
}

/// A function of one source operand that sets flags.
trait Scan {
    /// `None` leaves the destination as it was.
    fn run<T: Int>(cpu: &mut Cpu, value: T) -> Option<T>;
}

fn scan<S: Scan>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let Op::Reg(target) = x.op(0) else { return None };
    d.dst = target;
    match x.op(1) {
        Op::Reg(source) => {
            d.src = source;
            Some(by_size_wide!(x.size(0), scan_r, S))
        }
        _ => Some(by_size_wide!(x.size(0), scan_m, S)),
    }
}

fn scan_to<S: Scan, T: Int>(cpu: &mut Cpu, d: &DInsn, value: T) {
    if let Some(result) = S::run(cpu, value) {
        cpu.w(d.dst, result);
    }
}

fn scan_r<S: Scan, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.src);
    scan_to::<S, T>(cpu, d, value);
    Ok(())
}

fn scan_m<S: Scan, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.read_m::<T>(d)?;
    scan_to::<S, T>(cpu, d, value);
    Ok(())
}

struct Bsf;
struct Bsr;
struct Lzcnt;
struct Tzcnt;
struct Popcnt;

/// Only ZF is defined. The others become those of a logical result, as on Intel.
fn scanned<T: Int>(cpu: &mut Cpu, value: T, result: u32) -> Option<T> {
    cpu.lazy.logic(value);
    (value.u64() != 0).then(|| T::from_u64(result.into()))
}

impl Scan for Bsf {
    fn run<T: Int>(cpu: &mut Cpu, value: T) -> Option<T> {
        scanned(cpu, value, value.u64().trailing_zeros())
    }
}

impl Scan for Bsr {
    fn run<T: Int>(cpu: &mut Cpu, value: T) -> Option<T> {
        scanned(cpu, value, 63u32.wrapping_sub(value.u64().leading_zeros()))
    }
}

/// CF for a zero source, ZF for a zero result.
fn counted<T: Int>(cpu: &mut Cpu, value: T, result: u32) -> Option<T> {
    let result = T::from_u64(result.into());
    cpu.lazy.result_cf_of(result, value.u64() == 0, false);
    Some(result)
}

impl Scan for Lzcnt {
    fn run<T: Int>(cpu: &mut Cpu, value: T) -> Option<T> {
        counted(cpu, value, value.u64().leading_zeros() - (64 - T::BITS))
    }
}

impl Scan for Tzcnt {
    fn run<T: Int>(cpu: &mut Cpu, value: T) -> Option<T> {
        counted(cpu, value, value.u64().trailing_zeros().min(T::BITS))
    }
}

impl Scan for Popcnt {
    fn run<T: Int>(cpu: &mut Cpu, value: T) -> Option<T> {
        // All flags are cleared but ZF, which says whether the source was zero.
        cpu.lazy.set_bits(if value.u64() == 0 { x86_isa::flags::ZF } else { 0 });
        Some(T::from_u64(value.u64().count_ones().into()))
    }
}

/// BLSI, BLSMSK and BLSR: the destination comes first, the source is a register or memory.
fn lowest<S: Scan>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    scan::<S>(x, d)
}

struct Blsi;
struct Blsmsk;
struct Blsr;

impl Scan for Blsi {
    fn run<T: Int>(cpu: &mut Cpu, value: T) -> Option<T> {
        let v = value.u64();
        let result = T::from_u64(v & v.wrapping_neg());
        cpu.lazy.result_cf_of(result, v != 0, false);
        Some(result)
    }
}

impl Scan for Blsmsk {
    fn run<T: Int>(cpu: &mut Cpu, value: T) -> Option<T> {
        let v = value.u64();
        let result = T::from_u64(v ^ v.wrapping_sub(1));
        cpu.lazy.result_cf_of(result, v == 0, false);
        Some(result)
    }
}

impl Scan for Blsr {
    fn run<T: Int>(cpu: &mut Cpu, value: T) -> Option<T> {
        let v = value.u64();
        let result = T::from_u64(v & v.wrapping_sub(1));
        cpu.lazy.result_cf_of(result, v == 0, false);
        Some(result)
    }
}

/// A function of two source operands.
trait Three {
    /// `operand` is the one that may be in memory for BEXTR and BZHI, and the mask for the others.
    fn run<T: Int>(cpu: &mut Cpu, register: T, operand: T) -> T;
}

/// `register` and `memory` are the numbers of the operand that is always a register and of the one that may be memory.
fn three<O: Three>(x: &Dec<'_>, d: &mut DInsn, register: u32, memory: u32) -> Select {
    let (Op::Reg(target), Op::Reg(source)) = (x.op(0), x.op(register)) else {
        return None;
    };
    (d.dst, d.aux) = (target, source);
    match x.op(memory) {
        Op::Reg(source) => {
            d.src = source;
            Some(by_size_wide!(x.size(0), three_r, O))
        }
        _ => Some(by_size_wide!(x.size(0), three_m, O)),
    }
}

fn three_r<O: Three, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (register, operand) = (cpu.r::<T>(d.aux), cpu.r::<T>(d.src));
    let result = O::run(cpu, register, operand);
    cpu.w(d.dst, result);
    Ok(())
}

fn three_m<O: Three, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let operand = cpu.read_m::<T>(d)?;
    let register = cpu.r::<T>(d.aux);
    let result = O::run(cpu, register, operand);
    cpu.w(d.dst, result);
    Ok(())
}

struct Andn;
struct Pdep;
struct Pext;
struct Bextr;
struct Bzhi;

impl Three for Andn {
    fn run<T: Int>(cpu: &mut Cpu, register: T, operand: T) -> T {
        let result = T::from_u64(!register.u64() & operand.u64());
        cpu.lazy.logic(result);
        result
    }
}

impl Three for Pdep {
    fn run<T: Int>(_: &mut Cpu, register: T, operand: T) -> T {
        let (mut source, mut mask, mut result) = (register.u64(), operand.u64(), 0);
        while mask != 0 {
            let lowest = mask & mask.wrapping_neg();
            if source & 1 != 0 {
                result |= lowest;
            }
            source >>= 1;
            mask ^= lowest;
        }
        T::from_u64(result)
    }
}

impl Three for Pext {
    fn run<T: Int>(_: &mut Cpu, register: T, operand: T) -> T {
        let (source, mut mask, mut result, mut at) = (register.u64(), operand.u64(), 0, 0);
        while mask != 0 {
            let lowest = mask & mask.wrapping_neg();
            if source & lowest != 0 {
                result |= 1 << at;
            }
            at += 1;
            mask ^= lowest;
        }
        T::from_u64(result)
    }
}

impl Three for Bextr {
    /// `register` holds start and length, `operand` is the source.
    fn run<T: Int>(cpu: &mut Cpu, register: T, operand: T) -> T {
        let (start, len) = (register.u64() & 0xff, register.u64() >> 8 & 0xff);
        let shifted = if start < 64 { operand.u64() >> start } else { 0 };
        let result = T::from_u64(if len < 64 { shifted & ((1 << len) - 1) } else { shifted });
        // Only ZF is defined; CF and OF are clear.
        cpu.lazy.logic(result);
        result
    }
}

impl Three for Bzhi {
    fn run<T: Int>(cpu: &mut Cpu, register: T, operand: T) -> T {
        let index = register.u64() & 0xff;
        let beyond = index >= u64::from(T::BITS);
        let result = if beyond {
            operand
        } else {
            T::from_u64(operand.u64() & ((1 << index) - 1))
        };
        cpu.lazy.result_cf_of(result, beyond, false);
        result
    }
}

fn crc32(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let Op::Reg(target) = x.op(0) else { return None };
    d.dst = target;
    match x.op(1) {
        Op::Reg(source) => {
            d.src = source;
            Some(by_size!(x.size(1), crc32_r))
        }
        _ => Some(by_size!(x.size(1), crc32_m)),
    }
}

/// CRC-32C (Castagnoli), bit-reflected, as the instruction defines it.
fn crc32_of<T: Int>(cpu: &mut Cpu, d: &DInsn, value: T) {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = cpu.r::<u32>(d.dst);
    for i in 0..T::BYTES {
        crc ^= (value.u64() >> (i * 8)) as u32 & 0xff;
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 != 0 { POLYNOMIAL } else { 0 };
        }
    }
    cpu.w(d.dst, crc);
}

fn crc32_r<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.src);
    crc32_of(cpu, d, value);
    Ok(())
}

fn crc32_m<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.read_m::<T>(d)?;
    crc32_of(cpu, d, value);
    Ok(())
}

/// The 16-bit form is undefined; Intel processors clear the register's low word.
fn bswap<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.dst).u64();
    let swapped = if T::BITS == 16 {
        0
    } else {
        value.swap_bytes() >> (64 - T::BITS)
    };
    cpu.w(d.dst, T::from_u64(swapped));
    Ok(())
}
