//! What kernels execute with every system call, interrupt and process switch: CLI, STI, SWAPGS, PUSHF, RDTSC, RDPKRU,
//! selectors and bases of segments, strings of bits.

use iced_x86::Code;
use iced_x86::Instruction;
use iced_x86::MemoryOperand;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;
use x86_isa::flags;

use crate::area;
use crate::asm::NE;
use crate::asm::RSP;
use crate::asm::Reg;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::thunk::Why;
use crate::translate::Parked;
use crate::translate::Translator;
use crate::translate::encode::of_width;
use crate::translate::memory::Look;
use crate::translate::memory::in_memory;

const GS: u8 = 5;
const FS: u8 = 4;
const RAX: Reg = 0;

/// A place relative to GS, as instructions of the encoder have it.
pub(super) fn at(offset: u32) -> MemoryOperand {
    MemoryOperand::new(
        Register::None,
        Register::None,
        1,
        i64::from(offset),
        8,
        false,
        Register::GS,
    )
}

/// A 32-bit register by its number.
pub(super) fn narrow(n: Reg) -> Register {
    Register::EAX + u32::from(n)
}

impl Translator {
    /// CLI, STI and SWAPGS at privilege level 0, CLD, STD, RDTSC, RDTSCP and RDPKRU, where they are allowed.
    pub(crate) fn system(&mut self, index: usize) {
        self.claim(&[T0, T1, T2]);
        match self.items[index].ins.mnemonic() {
            Mnemonic::Swapgs => self.swapgs(),
            Mnemonic::Rdtsc => self.time_stamp(),
            Mnemonic::Rdtscp => {
                self.time_stamp();
                self.asm.load(T1, area::MSRS);
                let aux = MemoryOperand::with_base_displ(Register::RAX + u32::from(T1), area::TSC_AUX.into());
                self.put(Instruction::with2(Code::Mov_r32_rm32, Register::ECX, aux));
            }
            Mnemonic::Rdpkru => self.rdpkru(index),
            Mnemonic::Cli => self.with_flags(index, Parked::In(T1), |t, _| {
                t.asm.and_dword_gs(area::SYSFLAGS, !(flags::IF as u32))
            }),
            Mnemonic::Cld => self.with_flags(index, Parked::In(T1), |t, _| {
                t.asm.and_dword_gs(area::SYSFLAGS, !(flags::DF as u32));
            }),
            Mnemonic::Std => self.with_flags(index, Parked::In(T1), |t, _| {
                t.asm.or_dword_gs(area::SYSFLAGS, flags::DF as u32);
            }),
            _ => self.sti(index),
        }
    }

    /// Where an interrupt waits, the interpreter does it, and holds the interrupt back for one more instruction. Where none
    /// does, there is nothing to hold back.
    fn sti(&mut self, index: usize) {
        self.with_flags(index, Parked::In(T1), |t, parked| {
            t.asm.load(T0, area::PENDING);
            t.asm.cmp_dword_zero(T0);
            let signal = t.asm.jcc(NE);
            t.asm.cmp_byte_gs_zero(area::INTERRUPT);
            let interrupt = t.asm.jcc(NE);
            t.slow(vec![signal, interrupt], Why::Slow, index, parked);
            t.asm.or_dword_gs(area::SYSFLAGS, flags::IF as u32);
        });
    }

    /// EDX:EAX = the time-stamp counter.
    fn time_stamp(&mut self) {
        let back = self.asm.lea_rip(T0);
        let jump = self.asm.jmp();
        self.thunks.push((jump, Why::Time));
        self.asm.here(back);
    }

    /// ECX must be zero.
    fn rdpkru(&mut self, index: usize) {
        self.with_flags(index, Parked::In(T1), |t, parked| {
            t.put(Instruction::with2(Code::Test_rm32_r32, Register::ECX, Register::ECX));
            let fix = t.asm.jcc(NE);
            t.slow(vec![fix], Why::Slow, index, parked);
        });
        self.put(Instruction::with2(Code::Mov_r32_rm32, Register::EAX, at(area::PKRU)));
        self.put(Instruction::with2(Code::Mov_r32_imm32, Register::EDX, 0));
    }

    fn swapgs(&mut self) {
        self.asm.load(T1, area::MSRS);
        self.asm.load_disp(T0, T1, area::KERNEL_GS_BASE);
        self.asm.load(T2, area::own_base(GS));
        self.asm.store_disp(T1, area::KERNEL_GS_BASE, T2);
        self.asm.store(area::own_base(GS), T0);
        self.asm.store(area::segment_base(GS), T0);
    }

    /// SYSCALL, and SYSRET to 64-bit code.
    pub(crate) fn fast_call(&mut self, index: usize) {
        let ins = self.items[index].ins;
        let why = if ins.mnemonic() == Mnemonic::Syscall {
            self.page_relative(ins.next_ip().wrapping_sub(ins.ip() & !0xfff) as i64);
            self.asm.mov(T2, T0);
            Why::Syscall
        } else {
            Why::Sysret
        };
        self.hand(why, index as u64);
    }

    /// PUSHFQ whose slot is on the known stack page.
    pub(crate) fn push_flags(&mut self, index: usize) {
        if !self.items[index].on_stack || self.push_flags_covered(index).is_none() {
            self.hand_over(index);
        }
    }

    fn push_flags_covered(&mut self, index: usize) -> Option<()> {
        const HIDDEN: u64 = flags::VM | flags::RF;
        self.claim(&[T0, T1, T2]);
        let stack = self.stack_addend(index)?;
        self.asm.mov(T2, RAX);
        self.asm.flags_to_ax();
        self.asm.mov32(T0, RAX);
        self.asm.mov32(T1, RAX);
        self.asm.and32(T0, 1);
        let shift = |code, n, by: u32| Instruction::with2(code, narrow(n), by);
        self.put(shift(Code::Shl_rm32_imm8, T0, flags::OF.trailing_zeros()));
        self.put(shift(Code::Shr_rm32_imm8, T1, 8));
        self.asm.and32(T1, (flags::ARITH & !flags::OF) as u32);
        let or = |a, b| Instruction::with2(Code::Or_rm32_r32, narrow(a), narrow(b));
        self.put(or(T0, T1));
        self.asm.load(T1, area::SYSFLAGS);
        self.asm.and32(T1, !HIDDEN as u32);
        self.put(or(T0, T1));
        self.put(Instruction::with2(Code::Or_rm32_imm8, narrow(T0), flags::FIXED as u32));
        self.asm.flags_from_ax();
        self.asm.mov(RAX, T2);
        self.store_slot(RSP, stack, -self.slot(), T0);
        self.move_stack(RSP, -self.slot());
        Some(())
    }

    /// MOV from a segment register.
    pub(crate) fn selector(&mut self, index: usize) {
        if self.try_selector(index).is_none() {
            self.hand_over(index);
        }
    }

    fn try_selector(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        let from = at(area::selector(ins.op1_register().number() as Reg));
        if ins.op0_kind() == OpKind::Memory {
            let place = self.operand(index)?;
            let value = self.any_register(index)?;
            self.put(Instruction::with2(Code::Movzx_r32_rm16, narrow(value), from));
            let to = place.operand();
            self.put(Instruction::with2(
                Code::Mov_rm16_r16,
                to,
                of_width(Register::AX, value),
            ));
            return Some(());
        }
        let to = ins.op0_register();
        let n = to.full_register().number() as Reg;
        let host = if in_memory(n) {
            self.fetch(index, n, to.is_gpr16())?
        } else {
            n
        };
        if to.is_gpr16() {
            self.put(Instruction::with2(
                Code::Mov_r16_rm16,
                of_width(Register::AX, host),
                from,
            ));
        } else {
            self.put(Instruction::with2(Code::Movzx_r32_rm16, narrow(host), from));
        }
        self.written(host);
        Some(())
    }

    /// RDFSBASE, RDGSBASE, WRFSBASE, WRGSBASE, where they are enabled.
    pub(crate) fn base(&mut self, index: usize) {
        if self.try_base(index).is_none() {
            self.hand_over(index);
        }
    }

    fn try_base(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        let operand = ins.op0_register();
        let n = operand.full_register().number() as Reg;
        let (segment, read) = match ins.mnemonic() {
            Mnemonic::Rdfsbase => (FS, true),
            Mnemonic::Rdgsbase => (GS, true),
            Mnemonic::Wrfsbase => (FS, false),
            _ => (GS, false),
        };
        if read {
            let host = if in_memory(n) { self.fetch(index, n, false)? } else { n };
            self.asm.load(host, area::own_base(segment));
            if operand.is_gpr32() {
                self.asm.mov32(host, host);
            }
            self.written(host);
            return Some(());
        }
        self.claim(&[T0, T1, T2]);
        let host = self.host_of(index, n)?;
        if operand.is_gpr32() {
            self.asm.mov32(T0, host);
        } else {
            self.asm.mov(T0, host);
            // What is canonical with 48 bits is so with 57.
            self.with_flags(index, Parked::In(T2), |t, parked| {
                let wide = |n: Reg| Register::RAX + u32::from(n);
                t.asm.mov(T1, T0);
                t.put(Instruction::with2(Code::Shl_rm64_imm8, wide(T1), 16));
                t.put(Instruction::with2(Code::Sar_rm64_imm8, wide(T1), 16));
                t.put(Instruction::with2(Code::Cmp_r64_rm64, wide(T1), wide(T0)));
                let fix = t.asm.jcc(NE);
                t.slow(vec![fix], Why::Slow, index, parked);
            });
        }
        self.asm.store(area::own_base(segment), T0);
        self.asm.store(area::segment_base(segment), T0);
        Some(())
    }

    /// BT, BTS, BTR and BTC of a string of bits in memory.
    pub(crate) fn bit_string(&mut self, index: usize) {
        if self.try_bit_string(index).is_none() {
            self.hand_over(index);
        }
    }

    fn try_bit_string(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        let n = ins.op1_register().full_register().number() as Reg;
        let wide = ins.op1_register().is_gpr64();
        let write = ins.mnemonic() != Mnemonic::Bt;
        let (log, bytes) = if wide { (6, 8) } else { (5, 4) };
        self.claim(&[T0, T1, T2]);
        self.address(index)?;
        let host = self.host_of(index, n)?;
        let full = |n: Reg| Register::RAX + u32::from(n);
        if wide {
            self.asm.mov(T1, host);
        } else {
            self.put(Instruction::with2(Code::Movsxd_r64_rm32, full(T1), narrow(host)));
        }
        self.with_flags(index, Parked::InMemory, |t, parked| {
            t.put(Instruction::with2(Code::Sar_rm64_imm8, full(T1), log));
            t.asm.lea_any(T0, Some(T0), Some((T1, log as u8 - 3)), 0, true);
            t.asm.mov(T2, T0);
            t.look_up(index, parked, &Look::new(T2, write, bytes));
            if parked == Parked::InMemory && host == RAX {
                t.asm.load(T2, area::SCRATCH);
            } else {
                t.asm.mov(T2, host);
            }
            t.asm.and32(T2, bytes * 8 - 1);
        });
        let operand = MemoryOperand::with_base_index(full(T0), full(T1));
        let mut new = Instruction::with2(ins.code(), operand, of_width(ins.op1_register(), T2)).ok()?;
        new.set_has_lock_prefix(ins.has_lock_prefix());
        self.hosts[index].2 = self.unsaved();
        self.emit(&new).then_some(())
    }
}
