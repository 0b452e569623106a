//! Code of a loop without checks.

use iced_x86::Code;
use iced_x86::Instruction;
use iced_x86::Register;
use x86_interp::seam::layout;

use super::Form;
use super::Group;
use super::Loop;
use super::inside;
use crate::area;
use crate::asm::A;
use crate::asm::B;
use crate::asm::Fix;
use crate::asm::JCC;
use crate::asm::LINE;
use crate::asm::NE;
use crate::asm::Reg;
use crate::asm::STK;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::asm::in_line;
use crate::block::Base;
use crate::block::Hot;
use crate::translate::Class;
use crate::translate::Translator;
use crate::translate::encode::of_width;
use crate::translate::memory::SLOT_MASK;
use crate::translate::memory::SLOT_ROTATE;
use crate::translate::memory::in_memory;

/// Iterations without looking for signals at most.
const MOST: i32 = 512;
/// Iterations that the ordinary body does first: a loop that is left sooner is not worth a look-up.
const FIRST: i8 = 6;
/// With more iterations than this the last time, none is done there.
const LONG: u32 = 12;

/// A 64-bit register by its number.
fn wide(n: Reg) -> Register {
    Register::RAX + u32::from(n)
}

/// Where code leads that has no place yet.
#[derive(Default)]
pub(crate) struct Pending {
    /// To an instruction of the ordinary body.
    pub(crate) ordinary: Vec<(Fix, usize)>,
}

impl Translator {
    /// Emits the look-up and the body without checks, with the entry of the jump back in front.
    pub(crate) fn hot_loop(&mut self, l: &Loop, page: u64) -> (Hot, Pending) {
        let mut pending = Pending::default();
        let last = area::loop_run(self.items[0].ins.ip());
        self.asm.mov_dword_gs(area::LOOP_TRIES, 0);
        self.asm.load(T0, last);
        self.asm.sub(T0, last + 8);
        self.asm.cmp_imm(T0, LONG);
        let long = self.asm.jcc(A);
        let enter = self.asm.jmp();
        pending.ordinary.push((enter, 0));
        let again = self.asm.len() as u32;
        self.poll();
        self.asm.add_dword_gs(area::LOOP_TRIES, 1);
        self.asm.cmp_dword_gs(area::LOOP_TRIES, FIRST);
        let early = self.asm.jcc(B);
        pending.ordinary.push((early, 0));
        self.asm.here(long);
        self.look_groups_up(l, &mut pending);
        self.take_registers(l);
        self.asm.store(last, l.counter);
        self.asm.align(LINE);
        let top = self.asm.len();
        let mut hosts = Vec::with_capacity(l.last + 1);
        let mut leaving: Vec<(Fix, usize)> = Vec::new();
        let mut forward: Vec<(Fix, usize)> = Vec::new();
        for k in 0..l.last {
            hosts.push(self.asm.len() as u32);
            match self.items[k].class {
                Class::Jcc => {
                    let fix = self.asm.jcc(self.items[k].ins.condition_code() as u8 - 1);
                    match inside(&self.items[..=l.last], k) {
                        Some(m) => forward.push((fix, m)),
                        None => leaving.push((fix, k)),
                    }
                }
                Class::Same => {
                    let start = self.asm.len();
                    self.unchecked(l, k);
                    let len = self.asm.len() - start;
                    if self.items[k + 1].class == Class::Jcc && !in_line(start, len + JCC) {
                        self.asm.buf.truncate(start);
                        self.asm.align(LINE);
                        self.unchecked(l, k);
                    }
                }
                _ => {}
            }
        }
        hosts.push(self.asm.len() as u32);
        let done = self.asm.jcc((self.items[l.last].ins.condition_code() as u8 - 1) ^ 1);
        // With the jump, which it is fused with.
        self.asm.keep_together(3 + JCC);
        self.put(Instruction::with1(Code::Dec_rm64, wide(l.counter)));
        let more = self.asm.jcc(NE);
        self.asm.lead(more, top as i64);
        // It was left for the page's sake.
        self.asm.mov_dword_gs(last, LONG + 1);
        self.asm.mov_dword_gs(last + 8, 0);
        self.give_registers_back(l);
        self.transfer(page, self.items[0].ins.ip(), true);
        for (fix, m) in forward {
            self.asm.lead(fix, hosts[m].into());
        }
        self.asm.here(done);
        self.asm.store(last + 8, l.counter);
        self.give_registers_back(l);
        let fix = self.asm.jmp();
        pending.ordinary.push((fix, l.last + 1));
        for (fix, k) in leaving {
            self.asm.here(fix);
            self.asm.store(last + 8, l.counter);
            self.give_registers_back(l);
            let target = self.items[k].ins.near_branch_target();
            self.transfer(page, target, target <= self.items[k].ins.ip());
        }
        let hot = Hot {
            again,
            hosts: hosts.into(),
            spilled: l.spilled.iter().map(|&(n, host, _)| (n, host)).collect(),
            borrowed: l.borrowed.clone().into(),
        };
        (hot, pending)
    }

    /// Looks all groups up, and computes for how many iterations that holds.
    fn look_groups_up(&mut self, l: &Loop, pending: &mut Pending) {
        if self.items[..=l.last].iter().any(|i| i.vector) {
            self.asm.cmp_dword_gs(area::VECTORS, 0);
            let fix = self.asm.jcc(crate::asm::E);
            pending.ordinary.push((fix, 0));
        }
        self.put(Instruction::with2(Code::Mov_r32_imm32, Register::R10D, MOST));
        self.asm.store(area::LOOP_COUNT, T0);
        for (n, group) in l.groups.iter().enumerate() {
            let fix = self.look_group_up(group);
            pending.ordinary.push((fix, 0));
            self.iterations(group);
            if group.form == Form::Pointer {
                match group.base {
                    Base::None => {}
                    Base::Page => self.add_base(area::PAGE),
                    Base::Register(b) if in_memory(b) => self.add_base(area::gpr(b)),
                    Base::Register(b) => self.asm.lea_sum(T1, b, T1),
                }
            }
            self.asm.store(area::LOOP + 8 * n as u32, T1);
        }
    }

    fn add_base(&mut self, at: u32) {
        self.asm.load(T0, at);
        self.asm.lea_sum(T1, T0, T1);
    }

    /// Leaves the offset of the group in its page in T2, and the page's addend in T1. The jump that is taken when the
    /// look-up fails.
    fn look_group_up(&mut self, group: &Group) -> Fix {
        let home = |t: &mut Self, n: Reg, temporary: Reg| {
            if in_memory(n) {
                t.asm.load(temporary, area::gpr(n));
                temporary
            } else {
                n
            }
        };
        let index = group.index.map(|(n, scale)| (home(self, n, T1), scale));
        let base = match group.base {
            Base::None => None,
            Base::Page => {
                self.asm.load(T0, area::PAGE);
                Some(T0)
            }
            Base::Register(n) => Some(home(self, n, T0)),
        };
        self.asm.lea_any(T0, base, index, group.low as i32, true);
        let tlb = area::tlb(self.bank);
        let tag = if group.write {
            layout::TLB_WRITE
        } else {
            layout::TLB_READ
        } as u32;
        self.asm.mov(T2, T0);
        self.asm.rorx(T1, T0, SLOT_ROTATE);
        self.asm.and32(T1, SLOT_MASK);
        self.asm.sub_at(T2, T1, tlb + tag);
        self.asm.cmp_imm(T2, 4096 - (group.high - group.low) as u32);
        let fix = self.asm.jcc(A);
        self.asm.load_at(T1, T1, tlb + layout::TLB_ADDEND as u32);
        fix
    }

    /// Limits the count to the iterations for which the group, at offset T2 of its page, stays there.
    fn iterations(&mut self, group: &Group) {
        let by = group.stride.unsigned_abs();
        if by == 0 {
            return;
        }
        if group.stride > 0 {
            self.put(Instruction::with1(Code::Neg_rm64, Register::R9));
            let last = 4096 - (group.high - group.low) as i32;
            self.put(Instruction::with2(Code::Add_rm64_imm32, Register::R9, last));
        }
        if by == 1 {
            // As it is.
        } else if by.is_power_of_two() {
            let shift = by.trailing_zeros().min(63);
            self.put(Instruction::with2(Code::Shr_rm64_imm8, Register::R9, shift));
        } else {
            // Rounded down: an iteration less is no harm.
            let factor = (65536 / by) as i32;
            self.put(Instruction::with3(
                Code::Imul_r64_rm64_imm32,
                Register::R9,
                Register::R9,
                factor,
            ));
            self.put(Instruction::with2(Code::Shr_rm64_imm8, Register::R9, 16));
        }
        self.asm.lea(T2, T2, 1);
        self.asm.load(T0, area::LOOP_COUNT);
        self.put(Instruction::with2(Code::Cmp_r64_rm64, Register::R9, Register::R10));
        self.put(Instruction::with2(Code::Cmova_r64_rm64, Register::R9, Register::R10));
        self.asm.store(area::LOOP_COUNT, T2);
    }

    fn take_registers(&mut self, l: &Loop) {
        for (k, &r) in l.borrowed.iter().enumerate() {
            self.asm.store(area::BORROWED + 8 * k as u32, r);
        }
        for &(n, host, _) in &l.spilled {
            self.asm.load(host, area::gpr(n));
        }
        for (k, group) in l.groups.iter().enumerate() {
            self.asm.load(group.host, area::LOOP + 8 * k as u32);
        }
        self.asm.load(l.counter, area::LOOP_COUNT);
    }

    /// The state between instructions again. Flags stay.
    fn give_registers_back(&mut self, l: &Loop) {
        for &(n, host, _) in l.spilled.iter().filter(|s| s.2) {
            self.asm.store(area::gpr(n), host);
        }
        for (k, &r) in l.borrowed.iter().enumerate() {
            self.asm.load(r, area::BORROWED + 8 * k as u32);
        }
        self.asm.load(STK, area::stack(self.bank) + 8);
    }

    /// An instruction with its registers and its memory operand replaced.
    fn unchecked(&mut self, l: &Loop, k: usize) {
        let mut new = self.items[k].ins;
        let host = |r: Register| {
            let n = r.full_register().number() as Reg;
            let found = l.spilled.iter().find(|s| s.0 == n && r.is_gpr());
            found.map_or(r, |s| of_width(r, s.1))
        };
        for i in 0..new.op_count() {
            if new.op_kind(i) == iced_x86::OpKind::Register {
                new.set_op_register(i, host(new.op_register(i)));
            }
        }
        if let Some(group) = l.sites[k].map(|n| &l.groups[n]) {
            replace_operand(&mut new, group, host);
        } else {
            new.set_memory_base(host(new.memory_base()));
            new.set_memory_index(host(new.memory_index()));
        }
        let done = self.emit(&new);
        debug_assert!(done, "forms with an encoding keep one");
    }
}

/// Replaces the memory operand by one of its group.
fn replace_operand(ins: &mut Instruction, group: &Group, host: impl Fn(Register) -> Register) {
    let disp = if group.base == Base::Page {
        ins.ip_rel_memory_address().wrapping_sub(ins.ip() & !0xfff)
    } else {
        ins.memory_displacement64()
    };
    let (base, index, scale) = match group.form {
        Form::Addend => (host(ins.memory_base()), wide(group.host), 1),
        Form::Pointer => match group.index {
            Some((n, scale)) => (wide(group.host), host(wide(n)), 1 << scale),
            None => (wide(group.host), Register::None, 1),
        },
    };
    ins.set_segment_prefix(Register::None);
    ins.set_memory_base(base);
    ins.set_memory_index(index);
    ins.set_memory_index_scale(scale);
    ins.set_memory_displacement64(disp);
    ins.set_memory_displ_size(u32::from(disp != 0));
}
