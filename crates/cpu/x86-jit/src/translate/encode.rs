//! A guest instruction as itself, with the registers that live in memory and the memory operand replaced.

use iced_x86::Instruction;
use iced_x86::InstructionInfoOptions;
use iced_x86::Mnemonic;
use iced_x86::OpAccess;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::area;
use crate::asm::JCC;
use crate::asm::Reg;
use crate::asm::T0;
use crate::asm::T1;
use crate::translate::Class;
use crate::translate::Translator;
use crate::translate::memory::Place;
use crate::translate::memory::in_memory;
use crate::translate::memory::writes;

/// A guest register whose home is in memory, and what an instruction does with it.
#[derive(Clone, Copy)]
struct Spilled {
    guest: Reg,
    read: bool,
    written: bool,
}

/// The register of the same width with number `n` (8 to 15).
pub(crate) fn of_width(like: Register, n: Reg) -> Register {
    let n = u32::from(n);
    match like {
        _ if like.is_gpr64() => Register::RAX + n,
        _ if like.is_gpr32() => Register::EAX + n,
        _ if like.is_gpr16() => Register::AX + n,
        _ => Register::R8L + (n - 8),
    }
}

pub(crate) fn high_byte(ins: &Instruction) -> bool {
    (0..ins.op_count()).any(|i| {
        ins.op_kind(i) == OpKind::Register
            && matches!(
                ins.op_register(i),
                Register::AH | Register::BH | Register::CH | Register::DH
            )
    })
}

pub(crate) fn memory_operand(ins: &Instruction) -> bool {
    (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory)
}

/// The number of an integer register that lives in memory.
fn spilled(ins: &Instruction, operand: u32) -> Option<Reg> {
    let is_register = ins.op_kind(operand) == OpKind::Register && ins.op_register(operand).is_gpr();
    let n = is_register.then(|| ins.op_register(operand).full_register().number() as Reg)?;
    in_memory(n).then_some(n)
}

impl Translator {
    pub(crate) fn same(&mut self, index: usize) {
        if self.try_same(index).is_none() {
            self.catch_up();
            self.hand_over(index);
        }
    }

    fn try_same(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        if ins.mnemonic() == Mnemonic::Lea && (ins.is_ip_rel_memory_operand() || ins.memory_base() == Register::EIP) {
            return self.load_relative_address(index);
        }
        if self.segmented && ins.mnemonic() == Mnemonic::Lea {
            return self.offset_only(index);
        }
        let memory = memory_operand(&ins);
        if memory && high_byte(&ins) {
            return self.high_byte_and_memory(index);
        }
        let mut new = ins;
        if ins.mnemonic() == Mnemonic::Lea {
            self.rename_address(index, &mut new)?;
        } else if memory {
            let place = self.operand(index)?;
            replace_memory(&mut new, place);
        }
        let changed = self.rename(index, &mut new)?;
        let jump = self.items.get(index + 1).is_some_and(|next| next.class == Class::Jcc);
        if jump {
            // Nothing is to be done between the two: then they are executed as one.
            self.save_dirty();
        }
        self.hosts[index].2 = self.unsaved();
        let start = self.asm.len();
        if !self.emit(&new) {
            return None;
        }
        if jump {
            let pad = self.asm.padding(start, self.asm.len() - start, JCC, 2);
            if pad != 0 {
                self.asm.buf.truncate(start);
                self.asm.nops(pad);
                self.emit(&new);
            }
        }
        changed.into_iter().for_each(|r| self.written(r));
        Some(())
    }

    /// An instruction with AH, CH, DH or BH and a memory operand. No instruction has one of those beside R8 to R15: a register
    /// that it does not use holds the address.
    fn high_byte_and_memory(&mut self, index: usize) -> Option<()> {
        const KEPT: u32 = area::SCRATCH + 24;
        const FREE: [Register; 5] = [
            Register::RSI,
            Register::RDI,
            Register::RBX,
            Register::RDX,
            Register::RCX,
        ];
        let ins = self.items[index].ins;
        // CMPXCHG has an operand in AL.
        let used = |r: Register| {
            let is = |i| ins.op_kind(i) == OpKind::Register && ins.op_register(i).full_register() == r;
            (0..ins.op_count()).any(is)
        };
        let free = FREE.into_iter().find(|&r| !used(r))?;
        let n = free.number() as Reg;
        let place = self.operand(index)?;
        self.hosts[index].2 = self.unsaved();
        let start = self.asm.len();
        self.asm.store(KEPT, n);
        self.asm
            .lea_any(n, Some(place.base), place.index.map(|r| (r, 0)), place.disp, true);
        let mut new = ins;
        let address = Place {
            base: n,
            index: None,
            disp: 0,
        };
        replace_memory(&mut new, address);
        if !self.emit(&new) {
            self.asm.buf.truncate(start);
            return None;
        }
        self.asm.load(n, KEPT);
        Some(())
    }

    /// Replaces the registers of an address that is only computed.
    fn rename_address(&mut self, index: usize, new: &mut Instruction) -> Option<()> {
        let (base, scaled) = (new.memory_base(), new.memory_index());
        if base != Register::None && in_memory(base.full_register().number() as Reg) {
            let host = self.fetch(index, base.full_register().number() as Reg, true)?;
            new.set_memory_base(of_width(base, host));
        }
        if scaled != Register::None && in_memory(scaled.full_register().number() as Reg) {
            let host = self.fetch(index, scaled.full_register().number() as Reg, true)?;
            new.set_memory_index(of_width(scaled, host));
        }
        Some(())
    }

    /// Gives every spilled register operand a host register, and tells which of those are written.
    fn rename(&mut self, index: usize, new: &mut Instruction) -> Option<Vec<Reg>> {
        let ins = self.items[index].ins;
        let mut changed = Vec::new();
        for s in self.spilled_operands(&ins) {
            let host = self.fetch(index, s.guest, s.read)?;
            if s.written {
                changed.push(host);
            }
            for i in 0..ins.op_count() {
                if spilled(&ins, i) == Some(s.guest) {
                    new.set_op_register(i, of_width(ins.op_register(i), host));
                }
            }
        }
        Some(changed)
    }

    fn spilled_operands(&mut self, ins: &Instruction) -> Vec<Spilled> {
        let mut all: Vec<Spilled> = Vec::new();
        let options = InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
        for i in 0..ins.op_count() {
            let Some(guest) = spilled(ins, i) else { continue };
            let access = self.info.info_options(ins, options).op_access(i);
            let register = ins.op_register(i);
            let whole = access == OpAccess::Write
                && (register.is_gpr64() || register.is_gpr32())
                && !matches!(ins.mnemonic(), Mnemonic::Bsf | Mnemonic::Bsr);
            let found = match all.iter_mut().position(|s| s.guest == guest) {
                Some(found) => found,
                None => {
                    all.push(Spilled {
                        guest,
                        read: false,
                        written: false,
                    });
                    all.len() - 1
                }
            };
            all[found].read |= !whole;
            all[found].written |= writes(access);
        }
        all
    }

    /// Encodes an instruction that does not depend on its place; false when it has no encoding.
    pub(crate) fn emit(&mut self, ins: &Instruction) -> bool {
        self.encoder.set_buffer(std::mem::take(&mut self.asm.buf));
        let done = self.encoder.encode(ins, 0).is_ok();
        self.asm.buf = self.encoder.take_buffer();
        done
    }

    /// Encodes an instruction that is made here.
    pub(crate) fn put(&mut self, ins: Result<Instruction, iced_x86::IcedError>) {
        let done = self.emit(&ins.expect("the form fits the operands"));
        debug_assert!(done, "it has an encoding");
    }

    /// LEA of an address relative to the instruction.
    fn load_relative_address(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        let target = ins.op0_register();
        if target.is_gpr16() || ins.memory_base() == Register::EIP {
            return None;
        }
        let n = target.full_register().number() as Reg;
        if let Some(address) = self.fixed_operand(index)
            && target.is_gpr64()
        {
            let host = if in_memory(n) { self.fetch(index, n, false)? } else { n };
            self.asm.mov_imm(host, address);
            self.written(host);
            return Some(());
        }
        self.claim(&[T0, T1]);
        self.effective_address(index)?;
        let host = if in_memory(n) { self.fetch(index, n, false)? } else { n };
        if target.is_gpr32() {
            self.asm.mov32(host, T0);
        } else {
            self.asm.mov(host, T0);
        }
        self.written(host);
        Some(())
    }
}

fn replace_memory(ins: &mut Instruction, place: Place) {
    ins.set_segment_prefix(Register::None);
    ins.set_memory_base(Register::RAX + u32::from(place.base));
    ins.set_memory_index(place.index.map_or(Register::None, |r| Register::RAX + u32::from(r)));
    ins.set_memory_index_scale(1);
    ins.set_memory_displacement64(place.disp as i64 as u64);
    ins.set_memory_displ_size(u32::from(place.disp != 0));
}
