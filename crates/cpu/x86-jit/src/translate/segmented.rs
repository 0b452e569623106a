//! 16-bit code, and 32-bit code with segments that are not flat.
//!
//! Addresses are offsets in a segment: each access is checked against the limit that the segment register holds, where it
//! has one, moved by the base, and looked up in the TLB. Limits and bases are read when the code runs, since real-mode code
//! changes them all the time; only the kinds of access that segments allow are part of what tells translations apart.
//! Whatever a check refuses is the interpreter's, which raises the fault.
//!
//! Instructions are decoded as if their page were at offset zero of the code segment: the jumps in them are relative, and
//! instruction pointers of 16 bits wrap only in pages that the segment does not hold whole (`EDGE`).

use iced_x86::Code;
use iced_x86::FlowControl;
use iced_x86::Instruction;
use iced_x86::MemoryOperand;
use iced_x86::OpKind;
use iced_x86::Register;
use x86_interp::seam::Mode;
use x86_interp::seam::Reach;

use crate::area;
use crate::asm::L;
use crate::asm::RSP;
use crate::asm::Reg;
use crate::asm::STK;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::thunk::Why;
use crate::translate::Class;
use crate::translate::Parked;
use crate::translate::Translator;
use crate::translate::encode::of_width;
use crate::translate::memory::Look;
use crate::translate::memory::Place;
use crate::translate::system::narrow;

const SS: u8 = 2;
const TARGET: u32 = area::SCRATCH + 8;

/// Number of a segment register, as in instructions.
pub(crate) fn segment_number(register: Register) -> u8 {
    register.number() as u8
}

/// Jumps, calls and returns whose operand size is that of the code. The others, and all of them where the page does not
/// lie wholly in the code segment, are the interpreter's.
pub(crate) fn control(ins: &Instruction, mode: &Mode, edge: bool) -> Option<Class> {
    if ins.flow_control() == FlowControl::Next {
        return None;
    }
    let near = if mode.bits == 16 {
        OpKind::NearBranch16
    } else {
        OpKind::NearBranch32
    };
    let class = match (ins.code(), mode.bits) {
        _ if edge => Class::Last,
        (Code::Call_rel16, 16) | (Code::Call_rel32_32, 32) => Class::Call,
        (Code::Call_rm16, 16) | (Code::Call_rm32, 32) if addressable(ins, mode) => Class::CallIndirect,
        (Code::Jmp_rm16, 16) | (Code::Jmp_rm32, 32) if addressable(ins, mode) => Class::JmpIndirect,
        (Code::Retnw | Code::Retnw_imm16, 16) | (Code::Retnd | Code::Retnd_imm16, 32) => Class::Ret,
        (Code::Jmp_rel8_16 | Code::Jmp_rel16, 16) | (Code::Jmp_rel8_32 | Code::Jmp_rel32_32, 32) => Class::Jmp,
        _ if ins.is_jcc_short_or_near() && ins.op0_kind() == near => Class::Jcc,
        _ => Class::Last,
    };
    Some(class)
}

/// The memory operand, if there is one, is in a segment that can be checked.
pub(crate) fn addressable(ins: &Instruction, mode: &Mode) -> bool {
    let memory = (0..ins.op_count())
        .filter(|&i| ins.op_kind(i) == OpKind::Memory)
        .count();
    memory == 0 || memory == 1 && mode.reach[usize::from(segment_number(ins.memory_segment()))] != Reach::None
}

/// PUSH and POP of two or four bytes.
pub(crate) fn stack_operand(ins: &Instruction, mode: &Mode) -> bool {
    let slot = ins.stack_pointer_increment().unsigned_abs();
    let selector = ins.op0_kind() == OpKind::Register && ins.op0_register().is_segment_register();
    matches!(slot, 2 | 4) && !(selector && slot == 4) && addressable(ins, mode)
}

fn register16(n: Reg) -> Register {
    Register::AX + u32::from(n)
}

fn found() -> MemoryOperand {
    Place {
        base: T0,
        index: Some(T1),
        disp: 0,
    }
    .operand()
}

impl Translator {
    /// T0, an offset, becomes a linear address, once all of `size` bytes there are inside segment `n`.
    fn linear(&mut self, index: usize, parked: Parked, n: u8, size: u32) {
        if self.reach[usize::from(n)] != Reach::Whole {
            let limit = super::system::at(area::segment_limit(n));
            self.put(Instruction::with2(Code::Mov_r32_rm32, Register::R11D, limit));
            self.put(Instruction::with2(Code::Sub_r64_rm64, Register::R11, Register::R10));
            self.asm.cmp_imm(T1, size - 1);
            let fix = self.asm.jcc(L);
            self.slow(vec![fix], Why::Slow, index, parked);
        }
        self.asm.load(T1, area::segment_base(n));
        self.asm.lea_sum32(T0, T0, T1);
    }

    /// Checks an access to `size` bytes at offset T0 of segment `n`, and leaves its place in T0 and T1.
    fn access(&mut self, index: usize, n: u8, write: bool, size: u32) {
        self.with_flags(index, Parked::InMemory, |t, parked| {
            t.linear(index, parked, n, size);
            t.asm.mov(T2, T0);
            t.look_up(index, parked, &Look::new(T2, write, size));
        });
    }

    /// Cuts T0 to 16 bits.
    pub(crate) fn cut(&mut self) {
        self.put(Instruction::with2(Code::Movzx_r32_rm16, Register::R10D, Register::R10W));
    }

    /// The offset of the memory operand into T0, which is claimed.
    pub(crate) fn offset(&mut self, index: usize) -> Option<()> {
        self.effective_address(index)?;
        let ins = &self.items[index].ins;
        let (base, scaled) = (ins.memory_base(), ins.memory_index());
        let absolute = base == Register::None && scaled == Register::None;
        if base.is_gpr16() || scaled.is_gpr16() || absolute && ins.memory_displ_size() == 2 {
            self.cut();
        }
        Some(())
    }

    /// As `operand`.
    pub(crate) fn segmented_operand(&mut self, index: usize, write: bool, size: u32) -> Option<Place> {
        let n = segment_number(self.items[index].ins.memory_segment());
        match self.reach[usize::from(n)] {
            Reach::None => return None,
            Reach::ReadOnly if write => return None,
            _ => {}
        }
        self.claim(&[T0, T1, T2]);
        self.offset(index)?;
        self.access(index, n, write, size);
        self.release(T2);
        Some(Place {
            base: T0,
            index: Some(T1),
            disp: 0,
        })
    }

    /// LEA.
    pub(crate) fn offset_only(&mut self, index: usize) -> Option<()> {
        let target = self.items[index].ins.op0_register();
        self.claim(&[T0]);
        self.offset(index)?;
        let n = target.full_register().number() as Reg;
        if target.is_gpr16() {
            self.put(Instruction::with2(Code::Mov_r16_rm16, target, Register::R10W));
        } else {
            self.asm.mov32(n, T0);
        }
        Some(())
    }

    /// T0 = the stack pointer + `by`.
    fn top(&mut self, by: i32) {
        self.asm.lea32(T0, RSP, by);
        if self.stack16 {
            self.cut();
        }
    }

    fn move_top(&mut self, by: i32) {
        if self.stack16 {
            let to = MemoryOperand::with_base_displ(Register::RSP, by.into());
            self.put(Instruction::with2(Code::Lea_r16_m, Register::SP, to));
        } else {
            self.asm.lea32(RSP, RSP, by);
        }
    }

    /// Pushes the register `value`, which is none of T0 to T2.
    fn push_value(&mut self, index: usize, slot: i32, value: Reg) {
        self.claim(&[T0, T1, T2]);
        self.top(-slot);
        self.access(index, SS, true, slot as u32);
        self.put(if slot == 2 {
            Instruction::with2(Code::Mov_rm16_r16, found(), register16(value))
        } else {
            Instruction::with2(Code::Mov_rm32_r32, found(), narrow(value))
        });
        self.move_top(-slot);
    }

    /// Reads the top of the stack into T0.
    fn read_top(&mut self, index: usize, slot: i32) {
        self.claim(&[T0, T1, T2]);
        self.top(0);
        self.access(index, SS, false, slot as u32);
        self.load_found(slot, T0);
    }

    fn load_found(&mut self, size: i32, to: Reg) {
        let code = if size == 2 {
            Code::Movzx_r32_rm16
        } else {
            Code::Mov_r32_rm32
        };
        self.put(Instruction::with2(code, narrow(to), found()));
    }

    /// Reads the memory operand into STK.
    fn operand_to_stk(&mut self, index: usize, size: i32) -> Option<()> {
        self.claim(&[STK]);
        self.segmented_operand(index, false, size as u32)?;
        self.load_found(size, STK);
        Some(())
    }

    pub(crate) fn segmented_push(&mut self, index: usize) {
        if self.try_segmented_push(index).is_none() {
            self.hand_over(index);
        }
    }

    fn try_segmented_push(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        let slot = ins.stack_pointer_increment().unsigned_abs() as i32;
        let value = match ins.op0_kind() {
            OpKind::Register if ins.op0_register().is_segment_register() => {
                self.claim(&[STK]);
                let from = super::system::at(area::selector(segment_number(ins.op0_register())));
                self.put(Instruction::with2(Code::Movzx_r32_rm16, narrow(STK), from));
                STK
            }
            OpKind::Register => ins.op0_register().full_register().number() as Reg,
            OpKind::Memory => {
                self.operand_to_stk(index, slot)?;
                STK
            }
            _ => {
                self.claim(&[STK]);
                self.asm.mov_imm64(STK, ins.immediate(0) & 0xffff_ffff);
                STK
            }
        };
        self.push_value(index, slot, value);
        Some(())
    }

    pub(crate) fn segmented_pop(&mut self, index: usize) {
        let ins = self.items[index].ins;
        let slot = ins.stack_pointer_increment();
        self.read_top(index, slot);
        self.move_top(slot);
        let target = ins.op0_register();
        self.put(if slot == 2 {
            Instruction::with2(Code::Mov_r16_rm16, target, of_width(Register::AX, T0))
        } else {
            Instruction::with2(Code::Mov_r32_rm32, target, of_width(Register::EAX, T0))
        });
    }

    /// The operand size of near jumps.
    fn branch_size(&self) -> i32 {
        i32::from(self.bits) / 8
    }

    /// STK = the instruction pointer behind the instruction.
    fn return_address(&mut self, index: usize) {
        let ins = &self.items[index].ins;
        let back = i64::from(self.items[index].offset) + ins.len() as i64;
        self.claim(&[T0, T1, STK]);
        self.page_relative(back);
        self.asm.mov(STK, T0);
    }

    pub(crate) fn segmented_call(&mut self, index: usize, page: u64) {
        self.return_address(index);
        self.push_value(index, self.branch_size(), STK);
        let ins = self.items[index].ins;
        let target = ins.near_branch_target();
        self.transfer(page, target, target <= ins.ip());
    }

    pub(crate) fn segmented_ret(&mut self, index: usize) {
        let ins = self.items[index].ins;
        let size = self.branch_size();
        let extra = if ins.op_count() > 0 {
            i32::from(ins.immediate16())
        } else {
            0
        };
        self.read_top(index, size);
        self.move_top(size + extra);
        self.indirect_from(index);
    }

    /// JMP and CALL through a register or memory.
    pub(crate) fn segmented_indirect(&mut self, index: usize) {
        if self.try_segmented_indirect(index).is_none() {
            self.hand_over(index);
        }
    }

    fn try_segmented_indirect(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        let size = self.branch_size();
        if ins.op0_kind() == OpKind::Memory {
            self.operand_to_stk(index, size)?;
        } else {
            self.claim(&[STK]);
            let n = ins.op0_register().full_register().number() as Reg;
            self.put(if size == 2 {
                Instruction::with2(Code::Movzx_r32_rm16, narrow(STK), register16(n))
            } else {
                Instruction::with2(Code::Mov_r32_rm32, narrow(STK), narrow(n))
            });
        }
        if self.items[index].class == Class::CallIndirect {
            self.asm.store(TARGET, STK);
            self.return_address(index);
            self.push_value(index, size, STK);
            self.asm.load(T0, TARGET);
        } else {
            self.claim(&[T0]);
            self.asm.mov(T0, STK);
        }
        self.indirect_from(index);
        Some(())
    }
}
