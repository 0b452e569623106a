//! ADD, ADC, SUB, SBB, CMP, INC, DEC, NEG, XADD, CMPXCHG, ADCX, ADOX, and the two-operand forms shared with `logic`.

use iced_x86::Mnemonic;

use crate::cpu::Cpu;
use crate::cpu::RAX;
use crate::cpu::RBX;
use crate::cpu::RCX;
use crate::cpu::RDX;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size;
use crate::decode::by_size_wide;
use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::F_LOCK;
use crate::insn::R;
use crate::int::Int;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Add => binary::<Add>(x, d)?,
        Mnemonic::Adc => binary::<Adc>(x, d)?,
        Mnemonic::Sub => binary::<Sub>(x, d)?,
        Mnemonic::Sbb => binary::<Sbb>(x, d)?,
        Mnemonic::Cmp => binary::<Cmp>(x, d)?,
        Mnemonic::Inc => unary::<Inc>(x, d)?,
        Mnemonic::Dec => unary::<Dec1>(x, d)?,
        Mnemonic::Neg => unary::<Neg>(x, d)?,
        Mnemonic::Xadd => exchange_form(x, d, by_size!(x.size(0), xadd_rr), by_size!(x.size(0), xadd_mr))?,
        Mnemonic::Cmpxchg => exchange_form(x, d, by_size!(x.size(0), cmpxchg_rr), by_size!(x.size(0), cmpxchg_mr))?,
        Mnemonic::Cmpxchg8b => cmpxchg8b,
        Mnemonic::Cmpxchg16b => cmpxchg16b,
        Mnemonic::Adcx => carry_chain::<false>(x, d)?,
        Mnemonic::Adox => carry_chain::<true>(x, d)?,
        _ => return None,
    })
}

/// A two-operand operation. Sets the flags; only stores its result when `WRITES`.
pub(crate) trait Binary {
    const WRITES: bool;
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T;
}

/// A one-operand operation.
pub(crate) trait Unary {
    fn run<T: Int>(cpu: &mut Cpu, a: T) -> T;
}

/// Chooses the form of a two-operand operation.
pub(crate) fn binary<O: Binary>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let size = x.size(0);
    Some(match (x.op(0), x.op(1)) {
        (Op::Reg(a), Op::Reg(b)) => {
            (d.dst, d.src) = (a, b);
            by_size!(size, rr, O)
        }
        (Op::Reg(a), Op::Imm) => {
            (d.dst, d.imm) = (a, x.imm(1));
            by_size!(size, ri, O)
        }
        (Op::Reg(a), Op::Mem) => {
            d.dst = a;
            by_size!(size, rm, O)
        }
        (Op::Mem, Op::Reg(b)) => {
            d.src = b;
            match (O::WRITES, d.flags & F_LOCK != 0) {
                (false, _) => by_size!(size, mr_read, O),
                (true, false) => by_size!(size, mr, O),
                (true, true) => by_size!(size, mr_locked, O),
            }
        }
        (Op::Mem, Op::Imm) => {
            d.imm = x.imm(1);
            match (O::WRITES, d.flags & F_LOCK != 0) {
                (false, _) => by_size!(size, mi_read, O),
                (true, false) => by_size!(size, mi, O),
                (true, true) => by_size!(size, mi_locked, O),
            }
        }
        _ => return None,
    })
}

/// Chooses the form of a one-operand operation.
pub(crate) fn unary<O: Unary>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let size = x.size(0);
    Some(match x.op(0) {
        Op::Reg(a) => {
            d.dst = a;
            by_size!(size, r, O)
        }
        Op::Mem if d.flags & F_LOCK != 0 => by_size!(size, m_locked, O),
        Op::Mem => by_size!(size, m, O),
        _ => return None,
    })
}

fn rr<O: Binary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (a, b) = (cpu.r::<T>(d.dst), cpu.r(d.src));
    let value = O::run(cpu, a, b);
    if O::WRITES {
        cpu.w(d.dst, value);
    }
    Ok(())
}

fn ri<O: Binary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let a = cpu.r::<T>(d.dst);
    let value = O::run(cpu, a, T::from_u64(d.imm));
    if O::WRITES {
        cpu.w(d.dst, value);
    }
    Ok(())
}

fn rm<O: Binary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = cpu.read_m::<T>(d)?;
    let a = cpu.r::<T>(d.dst);
    let value = O::run(cpu, a, b);
    if O::WRITES {
        cpu.w(d.dst, value);
    }
    Ok(())
}

fn mr_read<O: Binary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let a = cpu.read_m::<T>(d)?;
    let b = cpu.r(d.src);
    O::run(cpu, a, b);
    Ok(())
}

fn mi_read<O: Binary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let a = cpu.read_m::<T>(d)?;
    O::run(cpu, a, T::from_u64(d.imm));
    Ok(())
}

fn mr<O: Binary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = cpu.r::<T>(d.src);
    cpu.modify_m(d, |cpu, a| O::run(cpu, a, b))
}

fn mi<O: Binary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = T::from_u64(d.imm);
    cpu.modify_m(d, |cpu, a| O::run(cpu, a, b))
}

fn mr_locked<O: Binary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = cpu.r::<T>(d.src);
    let before = cpu.lazy;
    cpu.modify_m_locked(d, |cpu, a| {
        cpu.lazy = before;
        O::run(cpu, a, b)
    })
}

fn mi_locked<O: Binary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = T::from_u64(d.imm);
    let before = cpu.lazy;
    cpu.modify_m_locked(d, |cpu, a| {
        cpu.lazy = before;
        O::run(cpu, a, b)
    })
}

fn r<O: Unary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let a = cpu.r::<T>(d.dst);
    let value = O::run(cpu, a);
    cpu.w(d.dst, value);
    Ok(())
}

fn m<O: Unary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.modify_m(d, |cpu, a: T| O::run(cpu, a))
}

fn m_locked<O: Unary, T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let before = cpu.lazy;
    cpu.modify_m_locked(d, |cpu, a: T| {
        cpu.lazy = before;
        O::run(cpu, a)
    })
}

pub(crate) struct Add;
pub(crate) struct Adc;
pub(crate) struct Sub;
pub(crate) struct Sbb;
pub(crate) struct Cmp;
struct Inc;
struct Dec1;
struct Neg;

impl Binary for Add {
    const WRITES: bool = true;
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
        let res = T::from_u64(a.u64().wrapping_add(b.u64()));
        cpu.lazy.add(a, b, res);
        res
    }
}

impl Binary for Adc {
    const WRITES: bool = true;
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
        let res = T::from_u64(a.u64().wrapping_add(b.u64()).wrapping_add(cpu.lazy.cf() as u64));
        cpu.lazy.add(a, b, res);
        res
    }
}

impl Binary for Sub {
    const WRITES: bool = true;
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
        let res = T::from_u64(a.u64().wrapping_sub(b.u64()));
        cpu.lazy.sub(a, b, res);
        res
    }
}

impl Binary for Sbb {
    const WRITES: bool = true;
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
        let res = T::from_u64(a.u64().wrapping_sub(b.u64()).wrapping_sub(cpu.lazy.cf() as u64));
        cpu.lazy.sub(a, b, res);
        res
    }
}

impl Binary for Cmp {
    const WRITES: bool = false;
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T, b: T) -> T {
        Sub::run(cpu, a, b)
    }
}

impl Unary for Inc {
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T) -> T {
        let cf = cpu.lazy.cf();
        let res = T::from_u64(a.u64().wrapping_add(1));
        cpu.lazy.add(a, T::from_u64(1), res);
        cpu.lazy.set_cf(cf);
        res
    }
}

impl Unary for Dec1 {
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T) -> T {
        let cf = cpu.lazy.cf();
        let res = T::from_u64(a.u64().wrapping_sub(1));
        cpu.lazy.sub(a, T::from_u64(1), res);
        cpu.lazy.set_cf(cf);
        res
    }
}

impl Unary for Neg {
    #[inline(always)]
    fn run<T: Int>(cpu: &mut Cpu, a: T) -> T {
        Sub::run(cpu, T::from_u64(0), a)
    }
}

fn exchange_form(x: &Dec<'_>, d: &mut DInsn, register: Exec, memory: Exec) -> Select {
    let Op::Reg(source) = x.op(1) else { return None };
    d.src = source;
    match x.op(0) {
        Op::Reg(target) => {
            d.dst = target;
            Some(register)
        }
        Op::Mem => Some(memory),
        _ => None,
    }
}

fn xadd_rr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (a, b) = (cpu.r::<T>(d.dst), cpu.r::<T>(d.src));
    let sum = Add::run(cpu, a, b);
    cpu.w(d.src, a);
    cpu.w(d.dst, sum);
    Ok(())
}

fn xadd_mr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = cpu.r::<T>(d.src);
    let mut old = b;
    let f = |cpu: &mut Cpu, a| {
        old = a;
        Add::run(cpu, a, b)
    };
    if d.flags & F_LOCK != 0 {
        cpu.modify_m_locked(d, f)
    } else {
        cpu.modify_m(d, f)
    }?;
    cpu.w(d.src, old);
    Ok(())
}

fn cmpxchg_rr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (accumulator, target) = (cpu.gpr::<T>(RAX), cpu.r::<T>(d.dst));
    Sub::run(cpu, accumulator, target);
    if accumulator == target {
        let source = cpu.r::<T>(d.src);
        cpu.w(d.dst, source);
    } else {
        cpu.set_gpr(RAX, target);
    }
    Ok(())
}

/// The memory operand is always written (SDM: with its old value on a mismatch), so a read-only page faults either way.
fn cmpxchg_mr<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (accumulator, source) = (cpu.gpr::<T>(RAX), cpu.r::<T>(d.src));
    let mut target = accumulator;
    let f = |_: &mut Cpu, a: T| {
        target = a;
        if a == accumulator { source } else { a }
    };
    if d.flags & F_LOCK != 0 {
        cpu.modify_m_locked(d, f)
    } else {
        cpu.modify_m(d, f)
    }?;
    Sub::run(cpu, accumulator, target);
    if accumulator != target {
        cpu.set_gpr(RAX, target);
    }
    Ok(())
}

fn cmpxchg8b(cpu: &mut Cpu, d: &DInsn) -> R {
    let pair = |cpu: &Cpu, high, low| cpu.gpr::<u32>(high).u64() << 32 | cpu.gpr::<u32>(low).u64();
    let (expected, new) = (pair(cpu, RDX, RAX), pair(cpu, RCX, RBX));
    let mut found = 0;
    cpu.modify_m_locked(d, |_, old: u64| {
        found = old;
        if old == expected { new } else { old }
    })?;
    cpu.lazy.set_zf(found == expected);
    if found != expected {
        cpu.set_gpr(RAX, found as u32);
        cpu.set_gpr(RDX, (found >> 32) as u32);
    }
    Ok(())
}

fn cmpxchg16b(cpu: &mut Cpu, d: &DInsn) -> R {
    let ea = cpu.ea(d);
    let lin = cpu.lin_write(d.seg, ea, 16)?;
    if lin & 15 != 0 {
        return cpu.gp(0);
    }
    let pair = |cpu: &Cpu, high, low| u128::from(cpu.gpr::<u64>(high)) << 64 | u128::from(cpu.gpr::<u64>(low));
    let (expected, new) = (pair(cpu, RDX, RAX), pair(cpu, RCX, RBX));
    let found = cpu.cmpxchg16_lin(d.seg, lin, expected, new)?;
    cpu.lazy.set_zf(found == expected);
    if found != expected {
        cpu.set_gpr(RAX, found as u64);
        cpu.set_gpr(RDX, (found >> 64) as u64);
    }
    Ok(())
}

/// ADCX and ADOX: additions with carry in and out through CF or OF alone.
fn carry_chain<const OVERFLOW: bool>(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let Op::Reg(target) = x.op(0) else { return None };
    d.dst = target;
    Some(match x.op(1) {
        Op::Reg(source) => {
            d.src = source;
            if OVERFLOW {
                by_size_wide!(x.size(0), adox_r)
            } else {
                by_size_wide!(x.size(0), adcx_r)
            }
        }
        Op::Mem if OVERFLOW => by_size_wide!(x.size(0), adox_m),
        _ => by_size_wide!(x.size(0), adcx_m),
    })
}

fn chain<T: Int>(cpu: &mut Cpu, d: &DInsn, b: T, carry: bool) -> bool {
    let a = cpu.r::<T>(d.dst);
    let sum = u128::from(a.u64()) + u128::from(b.u64()) + u128::from(carry);
    cpu.w(d.dst, T::from_u64(sum as u64));
    sum >> T::BITS != 0
}

fn adcx_r<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = cpu.r::<T>(d.src);
    let carry = chain(cpu, d, b, cpu.lazy.cf());
    cpu.lazy.set_cf(carry);
    Ok(())
}

fn adcx_m<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = cpu.read_m::<T>(d)?;
    let carry = chain(cpu, d, b, cpu.lazy.cf());
    cpu.lazy.set_cf(carry);
    Ok(())
}

fn adox_r<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = cpu.r::<T>(d.src);
    let carry = chain(cpu, d, b, cpu.lazy.of());
    let cf = cpu.lazy.cf();
    cpu.lazy.set_cf_of(cf, carry);
    Ok(())
}

fn adox_m<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let b = cpu.read_m::<T>(d)?;
    let carry = chain(cpu, d, b, cpu.lazy.of());
    let cf = cpu.lazy.cf();
    cpu.lazy.set_cf_of(cf, carry);
    Ok(())
}
