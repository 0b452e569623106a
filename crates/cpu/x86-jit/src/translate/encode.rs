//! A guest instruction as itself, with the registers that live in memory and the memory operand replaced.

use iced_x86::Instruction;
use iced_x86::InstructionInfoOptions;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::area;
use crate::asm::Reg;
use crate::asm::STK;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::translate::Translator;
use crate::translate::memory::Place;
use crate::translate::memory::in_memory;
use crate::translate::memory::writes;

/// A guest register in memory, and the temporary that stands for it.
#[derive(Clone, Copy)]
struct Renamed {
    guest: Reg,
    host: Reg,
    written: bool,
}

/// The register of the same width with number `n` (8 to 15).
fn of_width(like: Register, n: Reg) -> Register {
    let n = u32::from(n);
    match like {
        _ if like.is_gpr64() => Register::RAX + n,
        _ if like.is_gpr32() => Register::EAX + n,
        _ if like.is_gpr16() => Register::AX + n,
        _ => Register::R8L + (n - 8),
    }
}

fn high_byte(ins: &Instruction) -> bool {
    (0..ins.op_count()).any(|i| {
        ins.op_kind(i) == OpKind::Register
            && matches!(
                ins.op_register(i),
                Register::AH | Register::BH | Register::CH | Register::DH
            )
    })
}

fn memory_operand(ins: &Instruction) -> bool {
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
        let ins = self.items[index].ins;
        if ins.mnemonic() == Mnemonic::Lea {
            return self.load_address(index);
        }
        let memory = memory_operand(&ins);
        let any_spilled = (0..ins.op_count()).any(|i| spilled(&ins, i).is_some());
        if high_byte(&ins) && (memory || any_spilled) {
            return self.hand_over(index);
        }
        let mut new = ins;
        let mut free = vec![STK, T2];
        if memory {
            let place = self.operand(index);
            replace_memory(&mut new, place);
            if place.base != T0 {
                free.push(T0);
            }
            if place.index == STK {
                free[0] = T1;
            }
        } else {
            free.extend([T1, T0]);
        }
        let Some(renamed) = self.rename(&ins, &mut new, free) else {
            return self.hand_over(index);
        };
        for r in &renamed {
            self.asm.load(r.host, area::gpr(r.guest));
        }
        if !self.emit(&new) {
            return self.hand_over(index);
        }
        for r in renamed.iter().filter(|r| r.written) {
            self.asm.store(area::gpr(r.guest), r.host);
        }
        if renamed.iter().any(|r| r.host == STK) {
            self.asm.load(STK, area::stack(self.bank) + 8);
        }
    }

    /// Gives every spilled register operand a temporary; `None` when there are too few.
    fn rename(&mut self, ins: &Instruction, new: &mut Instruction, mut free: Vec<Reg>) -> Option<Vec<Renamed>> {
        let mut renamed: Vec<Renamed> = Vec::new();
        let options = InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
        for i in 0..ins.op_count() {
            let Some(guest) = spilled(ins, i) else { continue };
            let written = writes(self.info.info_options(ins, options).op_access(i));
            let host = match renamed.iter_mut().find(|r| r.guest == guest) {
                Some(r) => {
                    r.written |= written;
                    r.host
                }
                None => {
                    let host = free.pop()?;
                    renamed.push(Renamed { guest, host, written });
                    host
                }
            };
            new.set_op_register(i, of_width(ins.op_register(i), host));
        }
        Some(renamed)
    }

    /// Encodes an instruction that does not depend on its place; false when it has no encoding.
    fn emit(&mut self, ins: &Instruction) -> bool {
        self.encoder.set_buffer(std::mem::take(&mut self.asm.buf));
        let done = self.encoder.encode(ins, 0).is_ok();
        self.asm.buf = self.encoder.take_buffer();
        done
    }

    fn load_address(&mut self, index: usize) {
        let ins = self.items[index].ins;
        let target = ins.op0_register();
        let plain = |r: Register| r == Register::None || !in_memory(r.full_register().number() as Reg);
        if !ins.is_ip_rel_memory_operand()
            && [target, ins.memory_base(), ins.memory_index()].into_iter().all(plain)
            && self.emit(&ins)
        {
            return;
        }
        if target.is_gpr16() || ins.memory_base() == Register::EIP {
            return self.hand_over(index);
        }
        self.effective_address(index);
        if target.is_gpr32() {
            self.asm.mov32(T0, T0);
        }
        self.set(target.full_register().number() as Reg, T0);
    }
}

fn replace_memory(ins: &mut Instruction, place: Place) {
    ins.set_segment_prefix(Register::None);
    ins.set_memory_base(Register::RAX + u32::from(place.base));
    ins.set_memory_index(Register::RAX + u32::from(place.index));
    ins.set_memory_index_scale(1);
    ins.set_memory_displacement64(place.disp as i64 as u64);
    ins.set_memory_displ_size(u32::from(place.disp != 0));
}
