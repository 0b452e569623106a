//! PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE. Segment registers are pushed and popped in `segment`.

use iced_x86::Mnemonic;
use iced_x86::OpKind;
use x86_isa::flags;

use crate::cpu::Cpu;
use crate::cpu::RBP;
use crate::cpu::RSP;
use crate::cpu::SS;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size_wide;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    // The stack pointer's step is the operand size, whatever the form says.
    let step = x.ins.stack_pointer_increment().unsigned_abs() as usize;
    Some(match x.mnemonic() {
        Mnemonic::Push => match x.op(0) {
            Op::Reg(source) => {
                d.src = source;
                by_size_wide!(step, push_r)
            }
            Op::Mem => by_size_wide!(step, push_m),
            _ if x.ins.op_kind(0) != OpKind::Register => {
                d.imm = x.imm(0);
                by_size_wide!(step, push_i)
            }
            _ => return None,
        },
        Mnemonic::Pop => match x.op(0) {
            Op::Reg(target) => {
                d.dst = target;
                by_size_wide!(step, pop_r)
            }
            Op::Mem => by_size_wide!(step, pop_m),
            _ => return None,
        },
        Mnemonic::Pusha | Mnemonic::Pushad => {
            if step == 16 {
                pusha::<u16>
            } else {
                pusha::<u32>
            }
        }
        Mnemonic::Popa | Mnemonic::Popad => {
            if step == 16 {
                popa::<u16>
            } else {
                popa::<u32>
            }
        }
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => by_size_wide!(step, pushf),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => by_size_wide!(step, popf),
        Mnemonic::Enter => {
            d.imm = x.ins.immediate16().into();
            d.aux = x.ins.immediate8_2nd() & 31;
            match x.code() {
                iced_x86::Code::Enterw_imm16_imm8 => enter::<u16>,
                iced_x86::Code::Enterd_imm16_imm8 => enter::<u32>,
                _ => enter::<u64>,
            }
        }
        Mnemonic::Leave => match x.code() {
            iced_x86::Code::Leavew => leave::<u16>,
            iced_x86::Code::Leaved => leave::<u32>,
            _ => leave::<u64>,
        },
        _ => return None,
    })
}

fn push_r<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.r::<T>(d.src);
    cpu.push(value)
}

fn push_i<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.push(T::from_u64(d.imm))
}

fn push_m<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.read_m::<T>(d)?;
    cpu.push(value)
}

fn pop_r<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let value = cpu.pop::<T>()?;
    cpu.w(d.dst, value);
    Ok(())
}

/// The address is computed with the stack pointer already moved (SDM: POP, "ESP as base register").
fn pop_m<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let before = cpu.regs[RSP];
    let value = cpu.pop::<T>()?;
    let stored = cpu.write_m(d, value);
    if stored.is_err() {
        cpu.regs[RSP] = before;
    }
    stored
}

fn pusha<T: Int>(cpu: &mut Cpu, _d: &DInsn) -> R {
    let top = cpu.regs[RSP];
    // Every slot must be writable before the first is written: a fault leaves the stack pointer alone anyway.
    for i in 0..8 {
        let sp = top.wrapping_sub((i as u64 + 1) * T::BYTES) & cpu.sp_mask;
        let value = cpu.gpr::<T>(i);
        cpu.write_seg(SS, sp, value)?;
    }
    cpu.set_sp(top.wrapping_sub(8 * T::BYTES));
    Ok(())
}

fn popa<T: Int>(cpu: &mut Cpu, _d: &DInsn) -> R {
    let mut values = [0; 8];
    for (i, value) in values.iter_mut().enumerate() {
        *value = cpu.peek::<T>(i as u64 * T::BYTES)?.u64();
    }
    for (i, &value) in values.iter().enumerate() {
        let register = 7 - i;
        if register != RSP {
            cpu.set_gpr(register, T::from_u64(value));
        }
    }
    cpu.set_sp(cpu.regs[RSP].wrapping_add(8 * T::BYTES));
    Ok(())
}

/// Virtual-8086 mode with IOPL below 3 leaves the flags to the monitor.
fn v86_guarded(cpu: &Cpu) -> bool {
    cpu.v86() && cpu.iopl() < 3
}

fn pushf<T: Int>(cpu: &mut Cpu, _d: &DInsn) -> R {
    if v86_guarded(cpu) {
        return cpu.gp(0);
    }
    let image = cpu.rflags() & !(flags::VM | flags::RF);
    cpu.push(T::from_u64(image))
}

fn popf<T: Int>(cpu: &mut Cpu, _d: &DInsn) -> R {
    if v86_guarded(cpu) {
        return cpu.gp(0);
    }
    let image = cpu.pop::<T>()?.u64();
    let mut writable = flags::ARITH | flags::TF | flags::DF | flags::NT;
    if T::BITS > 16 {
        writable |= flags::AC | flags::ID;
    }
    if cpu.cpl == 0 {
        writable |= flags::IOPL;
    }
    if cpu.cpl <= cpu.iopl() {
        writable |= flags::IF;
    }
    let kept = cpu.rflags() & !flags::RF & !(if T::BITS > 16 { flags::VIF | flags::VIP } else { 0 });
    let kept = if cpu.v86() { cpu.rflags() & !flags::RF } else { kept };
    cpu.set_rflags(kept & !writable | image & writable);
    cpu.end_block();
    Ok(())
}

fn enter<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (frame, depth) = (d.imm, u64::from(d.aux));
    let sp = cpu.regs[RSP];
    let slot = |n: u64| sp.wrapping_sub(n * T::BYTES);
    let bp = cpu.gpr::<T>(RBP);
    cpu.write_seg(SS, slot(1) & cpu.sp_mask, bp)?;
    let frame_pointer = slot(1);
    for i in 1..depth {
        let from = cpu.regs[RBP].wrapping_sub(i * T::BYTES) & cpu.sp_mask;
        let link = cpu.read_seg::<T>(SS, from)?;
        cpu.write_seg(SS, slot(1 + i) & cpu.sp_mask, link)?;
    }
    if depth > 0 {
        cpu.write_seg(
            SS,
            slot(1 + depth) & cpu.sp_mask,
            T::from_u64(frame_pointer & cpu.sp_mask),
        )?;
    }
    let new = slot(1 + depth).wrapping_sub(frame) & cpu.sp_mask;
    // The processor checks that the new top of the stack can be written.
    let lin = cpu.lin_write(SS as u8, new, T::BYTES)?;
    cpu.probe_write(SS as u8, lin, T::BYTES)?;
    cpu.set_gpr(RBP, T::from_u64(frame_pointer & cpu.sp_mask));
    cpu.set_sp(new);
    Ok(())
}

fn leave<T: Int>(cpu: &mut Cpu, _d: &DInsn) -> R {
    let frame = cpu.regs[RBP] & cpu.sp_mask;
    let bp = cpu.read_seg::<T>(SS, frame)?;
    cpu.set_sp(frame.wrapping_add(T::BYTES));
    cpu.set_gpr(RBP, bp);
    Ok(())
}
