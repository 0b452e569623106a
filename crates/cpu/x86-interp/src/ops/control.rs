//! Near jumps, calls and returns, conditional jumps, LOOP.

use iced_x86::Mnemonic;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::cpu::RCX;
use crate::cpu::SS;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size_wide;
use crate::insn::Brk;
use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::R;
use crate::int::Int;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let ins = x.ins;
    if ins.is_jcc_short_or_near() {
        branch(x, d);
        return Some(jcc(ins.condition_code() as u8 - 1));
    }
    Some(match x.mnemonic() {
        Mnemonic::Jmp if ins.is_jmp_short_or_near() => {
            branch(x, d);
            jmp
        }
        Mnemonic::Jmp if ins.is_jmp_near_indirect() => indirect(
            x,
            d,
            [jmp_r::<u16>, jmp_r::<u32>, jmp_r::<u64>],
            [jmp_m::<u16>, jmp_m::<u32>, jmp_m::<u64>],
        )?,
        Mnemonic::Call if ins.is_call_near() => {
            branch(x, d);
            by_size_wide!(d.size, call)
        }
        Mnemonic::Call if ins.is_call_near_indirect() => indirect(
            x,
            d,
            [call_r::<u16>, call_r::<u32>, call_r::<u64>],
            [call_m::<u16>, call_m::<u32>, call_m::<u64>],
        )?,
        Mnemonic::Ret => {
            d.size = ret_size(x);
            d.imm = if ins.op_count() > 0 {
                ins.immediate16().into()
            } else {
                0
            };
            by_size_wide!(d.size, ret)
        }
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz | Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
            counted(x, d)
        }
        _ => return None,
    })
}

/// Operand size of a direct near branch, which cuts the new instruction pointer.
fn branch(x: &Dec<'_>, d: &mut DInsn) {
    d.imm = x.branch();
    d.size = match x.ins.op_kind(0) {
        iced_x86::OpKind::NearBranch16 => 2,
        iced_x86::OpKind::NearBranch32 => 4,
        _ => 8,
    };
}

fn ret_size(x: &Dec<'_>) -> u8 {
    match x.ins.stack_pointer_increment()
        - if x.ins.op_count() > 0 {
            i32::from(x.ins.immediate16())
        } else {
            0
        } {
        2 => 2,
        4 => 4,
        _ => 8,
    }
}

fn indirect(x: &Dec<'_>, d: &mut DInsn, register: [Exec; 3], memory: [Exec; 3]) -> Select {
    let size = x.size(0);
    d.size = size as u8;
    let index = size.trailing_zeros() as usize - 1;
    match x.op(0) {
        Op::Reg(r) => {
            d.src = r;
            Some(register[index])
        }
        Op::Mem => Some(memory[index]),
        _ => None,
    }
}

/// Cuts an instruction pointer to `size` bytes.
#[inline(always)]
fn cut(target: u64, size: u8) -> u64 {
    let bits = 64 - u32::from(size) * 8;
    target << bits >> bits
}

impl Cpu {
    /// Checks a near branch target: canonical, or inside the code segment.
    #[inline(always)]
    pub(crate) fn check_target(&mut self, target: u64) -> R {
        let good = if self.is64() {
            self.canonical(target)
        } else {
            target <= self.segs[CS].limit.into()
        };
        if good { Ok(()) } else { self.gp(0) }
    }

    /// Pushes a value of `T`'s size.
    #[inline(always)]
    pub(crate) fn push<T: Int>(&mut self, value: T) -> R {
        let sp = self.regs[4].wrapping_sub(T::BYTES) & self.sp_mask;
        self.write_seg(SS, sp, value)?;
        self.set_sp(sp);
        Ok(())
    }

    /// Pops a value of `T`'s size.
    #[inline(always)]
    pub(crate) fn pop<T: Int>(&mut self) -> R<T> {
        let value = self.peek(0)?;
        self.set_sp(self.regs[4].wrapping_add(T::BYTES));
        Ok(value)
    }

    /// Reads the stack `offset` bytes above its top.
    #[inline(always)]
    pub(crate) fn peek<T: Int>(&mut self, offset: u64) -> R<T> {
        self.read_seg(SS, self.regs[4].wrapping_add(offset) & self.sp_mask)
    }

    /// Sets the stack pointer in its present width.
    #[inline(always)]
    pub(crate) fn set_sp(&mut self, sp: u64) {
        self.regs[4] = self.regs[4] & !self.sp_mask | sp & self.sp_mask;
    }
}

fn jcc(condition: u8) -> Exec {
    const TABLE: [Exec; 16] = [
        jcc_if::<0>,
        jcc_if::<1>,
        jcc_if::<2>,
        jcc_if::<3>,
        jcc_if::<4>,
        jcc_if::<5>,
        jcc_if::<6>,
        jcc_if::<7>,
        jcc_if::<8>,
        jcc_if::<9>,
        jcc_if::<10>,
        jcc_if::<11>,
        jcc_if::<12>,
        jcc_if::<13>,
        jcc_if::<14>,
        jcc_if::<15>,
    ];
    TABLE[usize::from(condition & 15)]
}

fn jcc_if<const C: u8>(cpu: &mut Cpu, d: &DInsn) -> R {
    if cpu.lazy.condition(C) { jmp(cpu, d) } else { Ok(()) }
}

fn jmp(cpu: &mut Cpu, d: &DInsn) -> R {
    let target = cut(cpu.rip().wrapping_add(d.imm), d.size);
    if !cpu.is64() {
        cpu.check_target(target)?;
    }
    cpu.set_rip(target);
    Err(Brk::Exit)
}

fn jump_to(cpu: &mut Cpu, target: u64) -> R {
    cpu.check_target(target)?;
    cpu.set_rip(target);
    Ok(())
}

fn jmp_r<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let target = cpu.r::<T>(d.src).u64();
    jump_to(cpu, target)
}

fn jmp_m<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let target = cpu.read_m::<T>(d)?.u64();
    jump_to(cpu, target)
}

fn call_to<T: Int>(cpu: &mut Cpu, target: u64) -> R {
    cpu.check_target(target)?;
    let back = T::from_u64(cpu.rip());
    cpu.push(back)?;
    cpu.set_rip(target);
    Ok(())
}

fn call<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    call_to::<T>(cpu, cut(cpu.rip().wrapping_add(d.imm), T::BYTES as u8))
}

fn call_r<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let target = cpu.r::<T>(d.src).u64();
    call_to::<T>(cpu, target)
}

fn call_m<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let target = cpu.read_m::<T>(d)?.u64();
    call_to::<T>(cpu, target)
}

fn ret<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let target = cpu.peek::<T>(0)?.u64();
    cpu.check_target(target)?;
    cpu.set_sp(cpu.regs[4].wrapping_add(T::BYTES + d.imm));
    cpu.set_rip(target);
    Ok(())
}

/// JCXZ and LOOP: the counter has the address size.
fn counted(x: &Dec<'_>, d: &mut DInsn) -> Exec {
    branch(x, d);
    let code = format!("{:?}", x.code());
    // The code's name ends in the counter register: Loop_rel8_16_ECX, Jrcxz_rel8_64.
    let counter = match () {
        () if code.ends_with("_RCX") || x.mnemonic() == Mnemonic::Jrcxz => 8,
        () if code.ends_with("_ECX") || x.mnemonic() == Mnemonic::Jecxz => 4,
        () => 2,
    };
    match x.mnemonic() {
        Mnemonic::Loop => by_size_wide!(counter, loop_),
        Mnemonic::Loope => by_size_wide!(counter, loope),
        Mnemonic::Loopne => by_size_wide!(counter, loopne),
        _ => by_size_wide!(counter, jcxz),
    }
}

fn jcxz<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    if cpu.gpr::<T>(RCX).u64() == 0 {
        jmp(cpu, d)
    } else {
        Ok(())
    }
}

fn count_down<T: Int>(cpu: &mut Cpu, d: &DInsn, condition: bool) -> R {
    let count = T::from_u64(cpu.gpr::<T>(RCX).u64().wrapping_sub(1));
    if count.u64() == 0 || !condition {
        cpu.set_gpr(RCX, count);
        return Ok(());
    }
    let taken = jmp(cpu, d);
    if taken == Err(Brk::Exit) {
        cpu.set_gpr(RCX, count);
    }
    taken
}

fn loop_<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    count_down::<T>(cpu, d, true)
}

fn loope<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let zf = cpu.lazy.zf();
    count_down::<T>(cpu, d, zf)
}

fn loopne<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let zf = cpu.lazy.zf();
    count_down::<T>(cpu, d, !zf)
}
