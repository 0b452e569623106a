//! The stack: one check for all accesses relative to RSP that follow each other with known distances.
//!
//! A check that fails raises no fault: it may cover accesses that are never reached. The instruction it stands before is
//! then executed by a translation that checks each access for itself.

use iced_x86::CodeSize;
use iced_x86::Instruction;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;
use x86_interp::seam::layout;

use crate::area;
use crate::asm::A;
use crate::asm::BE;
use crate::asm::CMP;
use crate::asm::JCC;
use crate::asm::NE;
use crate::asm::RSP;
use crate::asm::Reg;
use crate::asm::STK;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::block::Held;
use crate::block::Holdings;
use crate::block::Span;
use crate::thunk::Why;
use crate::translate::Class;
use crate::translate::Item;
use crate::translate::Parked;
use crate::translate::Translator;
use crate::translate::memory::SLOT_MASK;
use crate::translate::memory::SLOT_ROTATE;
use crate::translate::memory::in_memory;

/// Bytes that one check covers at most.
const REACH: i32 = 1024;
const RBP: u8 = 5;

/// What an instruction does with the stack pointer.
enum Effect {
    /// Accesses `low..high` from RSP, which then moves by `by`.
    Access { low: i32, high: i32, by: i32 },
    /// Moves RSP.
    Move(i32),
    /// As `mov rsp, rbp; pop rbp`.
    Leave,
    /// Nothing.
    None,
    /// Something else.
    Unknown,
}

/// Displacement of a plain access relative to RSP.
pub(crate) fn stack_operand(item: &Item) -> Option<i32> {
    let ins = &item.ins;
    let has = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory);
    (has && ins.mnemonic() != Mnemonic::Lea
        && ins.memory_base() == pointer(ins)
        && ins.memory_index() == Register::None
        && !matches!(ins.memory_segment(), Register::FS | Register::GS))
    .then(|| displacement(ins))
    .flatten()
}

/// The stack pointer of the instruction's mode.
fn pointer(ins: &Instruction) -> Register {
    if ins.code_size() == CodeSize::Code32 {
        Register::ESP
    } else {
        Register::RSP
    }
}

/// The displacement of the memory operand, where it has 32 bits.
fn displacement(ins: &Instruction) -> Option<i32> {
    if ins.code_size() == CodeSize::Code32 {
        Some(ins.memory_displacement32() as i32)
    } else {
        i32::try_from(ins.memory_displacement64() as i64).ok()
    }
}

fn effect(item: &Item, slot: i32) -> Effect {
    let ins = &item.ins;
    let operand = stack_operand(item).map(|low| (low, low + ins.memory_size().size() as i32));
    let (low, high) = operand.unwrap_or((0, 0));
    let push = |by: i32| Effect::Access {
        low: low.min(-slot),
        high,
        by: by - slot,
    };
    match item.class {
        Class::Nothing | Class::System | Class::BitString | Class::String | Class::Jcc | Class::Jmp => Effect::None,
        Class::Push | Class::PushFlags | Class::Call | Class::CallIndirect => push(0),
        Class::Pop | Class::Ret => Effect::Access {
            low: 0,
            high: slot,
            by: slot,
        },
        Class::Leave => Effect::Leave,
        Class::FastCall | Class::Interpret | Class::Last => Effect::Unknown,
        Class::Same | Class::Selector | Class::Base | Class::JmpIndirect => same(item, operand),
    }
}

fn same(item: &Item, operand: Option<(i32, i32)>) -> Effect {
    let ins = &item.ins;
    let is_pointer =
        |operand| ins.op_kind(operand) == OpKind::Register && ins.op_register(operand).full_register() == Register::RSP;
    let second = matches!(ins.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Mulx);
    let writes = ins.op_count() > 0 && is_pointer(0) || second && is_pointer(1);
    let constant = || i32::try_from(ins.immediate(1) as i64).ok();
    if !writes || matches!(ins.mnemonic(), Mnemonic::Cmp | Mnemonic::Test) {
        return operand.map_or(Effect::None, |(low, high)| Effect::Access { low, high, by: 0 });
    }
    let whole = ins.op0_register() == pointer(ins);
    let immediate = ins.op_count() == 2 && whole && !matches!(ins.op1_kind(), OpKind::Register | OpKind::Memory);
    match ins.mnemonic() {
        Mnemonic::Add if immediate => constant().map_or(Effect::Unknown, Effect::Move),
        Mnemonic::Sub if immediate => constant().map_or(Effect::Unknown, |by| Effect::Move(by.wrapping_neg())),
        Mnemonic::Lea if whole && ins.memory_base() == pointer(ins) && ins.memory_index() == Register::None => {
            displacement(ins).map_or(Effect::Unknown, Effect::Move)
        }
        _ => Effect::Unknown,
    }
}

/// Decides which accesses share a check, and where the checks are.
pub(crate) fn plan(items: &mut [Item], slot: i32) {
    // The open check: its instruction, what RSP has moved by since.
    let mut open: Option<(usize, i32)> = None;
    for item in items.iter_mut() {
        (item.check, item.on_stack) = (None, false);
    }
    for index in 0..items.len() {
        match effect(&items[index], slot) {
            Effect::None => {}
            Effect::Unknown => open = None,
            Effect::Move(by) => {
                open = open.and_then(|(first, moved)| Some((first, moved.checked_add(by)?)));
            }
            Effect::Access { low, high, by } => {
                let (first, moved) = match open {
                    Some((first, moved)) if widen(items, first, moved, low, high) => (first, moved),
                    _ => {
                        if high - low > REACH {
                            open = None;
                            continue;
                        }
                        items[index].check = Some(Span {
                            register: RSP,
                            low,
                            high,
                        });
                        (index, 0)
                    }
                };
                items[index].on_stack = true;
                open = moved.checked_add(by).map(|moved| (first, moved));
                if items[index].class == Class::Pop && items[index].ins.op0_register() == pointer(&items[index].ins) {
                    open = None;
                }
            }
            Effect::Leave => {
                items[index].on_stack = true;
                items[index].check = Some(Span {
                    register: RBP,
                    low: 0,
                    high: slot,
                });
                // RSP is where RBP was, and a slot more.
                open = Some((index, slot));
            }
        }
    }
}

/// Moves checks up to where nobody wants the flags that they would have to keep. What lies between moves RSP by known
/// distances or not at all.
pub(crate) fn hoist(items: &mut [Item], slot: i32) {
    for index in 1..items.len() {
        let Some(mut span) = items[index].check else { continue };
        if items[index].wanted == 0 || span.register != RSP {
            continue;
        }
        for place in (0..index).rev() {
            let by = match effect(&items[place], slot) {
                Effect::None => 0,
                Effect::Move(by) => by,
                _ => break,
            };
            let (Some(low), Some(high)) = (span.low.checked_add(by), span.high.checked_add(by)) else {
                break;
            };
            (span.low, span.high) = (low, high);
            if items[place].wanted == 0 {
                items[place].check = Some(span);
                items[index].check = None;
                break;
            }
        }
    }
}

/// Whether an instruction may be executed while the host's RSP is not yet the guest's: it cannot leave the block before its
/// end, and uses RSP in no other way than those that know of it.
pub(crate) fn rides(item: &Item) -> bool {
    use iced_x86::Mnemonic as M;
    let ins = &item.ins;
    let pointer = |r: Register| r.full_register() == Register::RSP;
    if item.check.is_some() || item.vector {
        return false;
    }
    let memory = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory);
    let on_stack = item.on_stack && stack_operand(item).is_some();
    let names_it = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Register && pointer(ins.op_register(i)));
    match item.class {
        Class::Nothing => true,
        Class::Push | Class::Pop => item.on_stack && !memory && !names_it,
        Class::Call | Class::Ret => item.on_stack,
        Class::Same if names_it => false,
        Class::Same if ins.mnemonic() == M::Lea => !pointer(ins.memory_base()),
        Class::Same => {
            (!memory || on_stack)
                && matches!(
                    ins.mnemonic(),
                    M::Mov
                        | M::Movzx
                        | M::Movsx
                        | M::Movsxd
                        | M::Add
                        | M::Sub
                        | M::And
                        | M::Or
                        | M::Xor
                        | M::Cmp
                        | M::Test
                )
        }
        _ => false,
    }
}

/// Lets the check at `first` cover another access.
fn widen(items: &mut [Item], first: usize, moved: i32, low: i32, high: i32) -> bool {
    let Some(span) = &mut items[first].check else {
        return false;
    };
    let (Some(low), Some(high)) = (low.checked_add(moved), high.checked_add(moved)) else {
        return false;
    };
    let (low, high) = (span.low.min(low), span.high.max(high));
    let fits = i64::from(high) - i64::from(low) <= i64::from(REACH);
    if fits {
        (span.low, span.high) = (low, high);
    }
    fits
}

impl Translator {
    /// Bytes of a push.
    pub(crate) fn slot(&self) -> i32 {
        if self.wide { 8 } else { 4 }
    }

    /// RSP = `from` + `by`, in the width of the mode.
    pub(crate) fn move_stack(&mut self, from: Reg, by: i32) {
        if self.wide {
            self.asm.lea(RSP, from, by);
        } else {
            self.asm.lea32(RSP, from, by);
        }
    }

    /// Writes a slot of the stack.
    pub(crate) fn store_slot(&mut self, base: Reg, index: Reg, disp: i32, value: Reg) {
        self.asm.store_mem(self.wide, base, index, disp, value);
    }

    /// Reads a slot of the stack, or a pointer to code.
    pub(crate) fn load_slot(&mut self, to: Reg, base: Reg, index: Reg, disp: i32) {
        self.asm.load_mem(self.wide, to, base, index, disp);
    }

    /// Checks that the bytes of `span` lie on the known stack page.
    pub(crate) fn stack_check(&mut self, index: usize, span: Span) {
        let page = area::stack(self.bank);
        self.claim(&[T0]);
        self.check(index, Why::Stack, Parked::In(T1), |asm| {
            asm.lea(T0, span.register, span.low);
            asm.sub(T0, page);
            asm.keep_together(CMP + JCC);
            asm.cmp_imm(T0, (4096 - (span.high - span.low)) as u32);
            asm.jcc(A)
        });
        self.release_all();
    }

    /// Where a stack check has failed: if the bytes lie on two pages, goes on with the translation that checks each access
    /// for itself.
    pub(crate) fn stack_across_pages(&mut self, index: usize, parked: Parked, held: Holdings) {
        let Some(span) = self.items[index].check else { return };
        self.asm.lea(T0, span.register, span.low);
        self.exit_across_pages(index, span.high - span.low, parked, held);
    }

    /// If the `len` bytes at T0 lie on two pages, goes on with the translation that checks each access for itself.
    pub(crate) fn exit_across_pages(&mut self, index: usize, len: i32, parked: Parked, held: Holdings) {
        self.asm.and32(T0, 0xfff);
        self.asm.cmp_imm(T0, (4096 - (len)) as u32);
        let on_one = self.asm.jcc(BE);
        self.restore_flags(parked);
        if held.get(STK) != Held::Stack {
            self.asm.load(STK, area::stack(self.bank) + 8);
        }
        let fix = self.asm.jmp_aligned();
        let exit = self.new_exit(self.items[index].offset.into(), fix, false, true);
        self.exit_stub(exit);
        self.asm.here(on_one);
    }

    /// Where a stack check has failed: makes the page the known one, if the TLB knows it, and goes on behind the check.
    pub(crate) fn find_stack(&mut self, index: usize, held: Holdings, behind: usize) {
        const KEPT: u32 = area::SCRATCH + 16;
        let Some(span) = self.items[index].check else { return };
        let (tlb, page) = (area::tlb(self.bank), area::stack(self.bank));
        self.asm.store(KEPT, T1);
        self.asm.lea(T0, span.register, span.low);
        self.asm.rorx(T1, T0, SLOT_ROTATE);
        self.asm.and32(T1, SLOT_MASK);
        self.asm.page_of(T0);
        self.asm.cmp_at(T0, T1, tlb + layout::TLB_WRITE as u32);
        let unknown = self.asm.jcc(NE);
        self.asm.cmp_at(T0, T1, tlb + layout::TLB_READ as u32);
        let guarded = self.asm.jcc(NE);
        self.asm.store(page, T0);
        self.asm.load_at(T0, T1, tlb + layout::TLB_ADDEND as u32);
        self.asm.store(page + 8, T0);
        self.asm.load(T1, KEPT);
        for reg in [STK, T2, T1] {
            if held.get(reg) == Held::Stack {
                self.asm.mov(reg, T0);
            }
        }
        let back = self.asm.jmp();
        self.asm.lead(back, behind as i64);
        self.asm.here(unknown);
        self.asm.here(guarded);
        self.asm.load(T1, KEPT);
    }

    pub(crate) fn push(&mut self, index: usize) {
        let done = if self.items[index].on_stack {
            self.push_covered(index)
        } else {
            self.push_checked(index)
        };
        match done {
            Some(()) if self.items[index].on_stack => {
                self.moved -= self.slot();
                if self.items[index].ins.op0_kind() == OpKind::Memory {
                    // Whoever has the interpreter do it comes back behind it.
                    self.catch_up();
                }
            }
            Some(()) => self.move_stack(RSP, -self.slot()),
            None => {
                self.catch_up();
                self.hand_over(index);
            }
        }
    }

    /// The host's RSP is the guest's again.
    pub(crate) fn catch_up(&mut self) {
        match std::mem::take(&mut self.moved) {
            0 => {}
            by => self.move_stack(RSP, by),
        }
    }

    fn push_covered(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        let value = match ins.op0_kind() {
            OpKind::Register => self.host_of(index, ins.op0_register().number() as Reg)?,
            OpKind::Memory => {
                self.load_operand(index)?;
                T0
            }
            _ => {
                let stack = self.stack_addend(index)?;
                self.asm
                    .store_mem_imm(self.wide, RSP, stack, self.moved - self.slot(), ins.immediate(0) as i32);
                return Some(());
            }
        };
        let stack = self.stack_addend(index)?;
        self.store_slot(RSP, stack, self.moved - self.slot(), value);
        Some(())
    }

    fn push_checked(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        if ins.op0_kind() == OpKind::Memory {
            self.load_operand(index)?;
            self.claim(&[T1, T2]);
            self.asm.mov(T2, T0);
            self.checked_push(index, T2);
            return Some(());
        }
        self.claim(&[T0, T1, T2]);
        let value = match ins.op0_kind() {
            OpKind::Register => self.host_of(index, ins.op0_register().number() as Reg)?,
            _ => {
                self.asm.mov_imm64(T2, ins.immediate(0));
                T2
            }
        };
        self.checked_push(index, value);
        Some(())
    }

    pub(crate) fn pop(&mut self, index: usize) {
        if self.try_pop(index).is_none() {
            self.catch_up();
            self.hand_over(index);
        }
    }

    fn try_pop(&mut self, index: usize) -> Option<()> {
        let n = self.items[index].ins.op0_register().number() as Reg;
        if self.items[index].on_stack && n != RSP {
            let stack = self.stack_addend(index)?;
            let host = if in_memory(n) { self.fetch(index, n, false)? } else { n };
            self.load_slot(host, RSP, stack, self.moved);
            self.written(host);
            self.moved += self.slot();
            return Some(());
        }
        self.pop_to_t0(index)?;
        // For RSP itself the value popped counts.
        self.move_stack(RSP, self.slot());
        let host = if in_memory(n) { self.fetch(index, n, false)? } else { n };
        self.asm.mov(host, T0);
        self.written(host);
        Some(())
    }

    /// Reads the top of the stack into T0.
    pub(crate) fn pop_to_t0(&mut self, index: usize) -> Option<()> {
        if self.items[index].on_stack {
            let stack = self.stack_addend(index)?;
            self.claim(&[T0]);
            self.load_slot(T0, RSP, stack, self.moved);
        } else {
            self.checked_stack_read(index, RSP);
        }
        Some(())
    }

    pub(crate) fn leave(&mut self, index: usize) {
        if self.items[index].on_stack {
            let stack = self.stack_addend(index).expect("nothing else is in use");
            self.claim(&[T0]);
            self.load_slot(T0, RBP, stack, 0);
        } else {
            self.checked_stack_read(index, RBP);
        }
        self.move_stack(RBP, self.slot());
        self.asm.mov(RBP, T0);
    }
}
