//! Entries, direct and indirect jumps, calls and returns.
//!
//! Direct jumps are linked: their displacement is changed to lead to the target's code. To another page they lead there by
//! way of a guard (`registry.rs`), which finds out whether that page still is where it was. All others go through the
//! jump cache of the vCPU, whose entry the code it leads to compares with the address meant: `T0` holds the address on the way, `T1`
//! the slot, `T2` the instruction that jumps.

use iced_x86::OpKind;

use crate::area;
use crate::asm::Asm;
use crate::asm::Fix;
use crate::asm::NE;
use crate::asm::RCX;
use crate::asm::RSP;
use crate::asm::STK;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::block::Entries;
use crate::block::Exit;
use crate::thunk::Why;
use crate::translate::Class;
use crate::translate::Cold;
use crate::translate::Parked;
use crate::translate::Translator;

/// Targets in a page that are linked anyway. An instruction that begins further on may cross into the next page, and then
/// looks whether that still is the same.
const LINKED: u64 = 4096 - 14;

impl Translator {
    /// The entries: through the jump cache, of backward jumps, of jumps from other pages that are linked without a guard, and
    /// of all others. Returns where those behind the first are.
    ///
    /// Until it is sure that the jump was meant for this block, nothing may touch the flags: the block that it was meant
    /// for may want them.
    pub(crate) fn header(&mut self) -> Entries {
        let offset = i32::from(self.items[0].offset);
        // At least eight bytes: the first instruction may be overwritten by a jump.
        self.asm.load_scaled(T1, T1, area::jump_address(self.cpl));
        self.asm.lea_sum(T1, T1, T0);
        self.asm.xchg_rcx(T1);
        let hit = self.asm.jrcxz();
        self.asm.mov(RCX, T1);
        let jump = self.asm.jmp();
        self.thunks.push((jump, Why::second(self.cpl)));
        self.asm.here_short(hit);
        self.asm.mov(RCX, T1);
        let page = self.fixed_address(0);
        if page.is_none() {
            self.asm.lea(T1, T0, -offset);
            self.asm.store(area::PAGE, T1);
        }
        let poll = self.asm.len() as u32;
        self.poll();
        let paged = page.map(|page| {
            let here = self.asm.len() as u32;
            self.asm.mov_qword_gs(area::PAGE, page);
            here
        });
        let body = self.asm.len() as u32;
        if self.crossing {
            self.check_next_page(offset);
        }
        Entries { poll, paged, body }
    }

    /// Leaves when the page behind the running one is not the one that the rest of the instruction was read from. The
    /// number of that page is not known yet.
    fn check_next_page(&mut self, offset: i32) {
        self.asm.load(T0, area::PAGE);
        self.asm.lea(T1, T0, 4096);
        self.asm.load(T2, area::page_map(self.cpl, 0));
        self.next_page = Some(self.asm.len() - 4);
        self.asm.lea_sum(T2, T2, T1);
        self.asm.xchg_rcx(T2);
        let hit = self.asm.jrcxz();
        self.asm.mov(RCX, T2);
        self.asm.lea(T0, T0, offset);
        self.asm.zero(T2);
        let jump = self.asm.jmp();
        self.thunks.push((jump, Why::Miss));
        self.asm.here_short(hit);
        self.asm.mov(RCX, T2);
    }

    /// Leaves when a signal is pending.
    pub(crate) fn poll(&mut self) {
        self.check(0, Why::Poll, Parked::In(T0), |asm| {
            asm.load(T1, area::PENDING);
            asm.cmp_dword_zero(T1);
            asm.jcc(NE)
        });
    }

    /// Leaves before instruction `index` when the jump that `test` ends with is taken. `test` destroys flags and uses
    /// neither RAX nor `place`.
    pub(crate) fn check(&mut self, index: usize, why: Why, place: Parked, test: impl FnOnce(&mut Asm) -> Fix) {
        self.with_flags(index, place, |t, parked| {
            let fixes = vec![test(&mut t.asm)];
            t.slow(fixes, why, index, parked);
        });
    }

    /// Leaves before instruction `index` when one of the jumps is taken.
    pub(crate) fn slow(&mut self, fixes: Vec<Fix>, why: Why, index: usize, parked: Parked) {
        self.slow_of(fixes, why, index, parked, None);
    }

    /// The same, where the check of a group may have failed.
    pub(crate) fn slow_of(&mut self, fixes: Vec<Fix>, why: Why, index: usize, parked: Parked, group: Option<u8>) {
        let (unsaved, held) = (self.unsaved(), self.holdings());
        self.cold.push(Cold::Slow {
            fixes,
            why,
            index,
            parked,
            unsaved,
            held,
            group,
            behind: self.asm.len(),
        });
    }

    /// Does something that destroys the flags before instruction `index`. If they are wanted, they are in AX meanwhile, and
    /// RAX in `place`: nothing may use either.
    pub(crate) fn with_flags(&mut self, index: usize, place: Parked, f: impl FnOnce(&mut Self, Parked)) {
        if self.items[index].wanted == 0 {
            return f(self, Parked::Not);
        }
        match place {
            Parked::Not => {}
            Parked::In(register) => {
                self.claim(&[register]);
                self.asm.mov(register, 0);
            }
            Parked::InMemory => self.asm.store(area::SCRATCH, 0),
        }
        self.asm.flags_to_ax();
        f(self, place);
        self.restore_flags(place);
    }

    pub(crate) fn restore_flags(&mut self, parked: Parked) {
        match parked {
            Parked::Not => {}
            Parked::In(register) => {
                self.asm.flags_from_ax();
                self.asm.mov(0, register);
            }
            Parked::InMemory => {
                self.asm.flags_from_ax();
                self.asm.load(0, area::SCRATCH);
            }
        }
    }

    /// Goes to the address in T0; T2 holds the record of the instruction that has computed it, or zero.
    pub(crate) fn through_cache(&mut self) {
        if self.single {
            let jump = self.asm.jmp();
            self.thunks.push((jump, Why::Miss));
            return;
        }
        let a = &mut self.asm;
        a.rorx(T1, T0, area::FIRST_ROTATE as u8);
        a.lea_sum32(T1, T0, T1);
        a.pext(T1, T1, area::JUMP_MASK);
        // A slot is two words.
        a.lea_sum(T1, T1, T1);
        a.jmp_scaled(T1, area::jump_host(self.cpl));
    }

    /// Goes to `offset` from the start of the running page.
    pub(crate) fn far(&mut self, offset: i64) {
        self.page_relative(offset);
        match self.bits {
            64 => {}
            // Jumps wrap. The flags are the guest's.
            16 => self.cut(),
            _ => self.asm.mov32(T0, T0),
        }
        self.asm.zero(T2);
        self.through_cache();
    }

    /// T0 = start of the running page + `offset`.
    pub(crate) fn page_relative(&mut self, offset: i64) {
        if let Some(address) = self.fixed_address(offset) {
            return self.asm.mov_imm(T0, address);
        }
        self.asm.load(T0, area::PAGE);
        match i32::try_from(offset) {
            Ok(offset) => self.asm.lea(T0, T0, offset),
            Err(_) => {
                self.asm.mov_imm64(T1, offset as u64);
                self.asm.bytes(&[0x4f, 0x8d, 0x14, 0x1a]);
            }
        }
    }

    /// The address `offset` from the start of the page, if it is known and sign-extended from 32 bits.
    pub(crate) fn fixed_address(&self, offset: i64) -> Option<i32> {
        i32::try_from(self.fixed?.wrapping_add(offset as u64) as i64).ok()
    }

    /// A direct jump to `target`.
    pub(crate) fn transfer(&mut self, page: u64, target: u64, backward: bool) {
        let offset = target.wrapping_sub(page) as i64;
        if let Some(offset) = self.linked(offset) {
            let fix = self.asm.jmp_aligned();
            self.exit(offset, fix, backward);
        } else {
            self.far(offset);
        }
    }

    /// Goes on behind the block, at `next`. The instruction pointer does not wrap there in 16-bit code, but runs into the limit
    /// of the segment.
    pub(crate) fn fall_through(&mut self, page: u64, next: u64) {
        let offset = next.wrapping_sub(page) as i64;
        if self.bits == 16 && self.linked(offset).is_none() {
            self.page_relative(offset);
            self.asm.zero(T2);
            self.through_cache();
        } else {
            self.transfer(page, next, false);
        }
    }

    /// The distance of a target from the page, if jumps to it are linked.
    fn linked(&self, offset: i64) -> Option<i32> {
        let same_page = (offset as u64) < 4096;
        let free = self.wide && !self.single;
        let fits = free || (offset as u64) % 4096 < LINKED && same_page && !self.edge;
        i32::try_from(offset).ok().filter(|_| fits)
    }

    fn exit(&mut self, target: i32, fix: Fix, backward: bool) {
        let exit = self.new_exit(target, fix, backward, false);
        self.cold.push(Cold::Exit { exit });
    }

    pub(crate) fn new_exit(&mut self, target: i32, fix: Fix, backward: bool, exact: bool) -> usize {
        self.exits.push(Exit {
            target,
            place: fix.place() as u32,
            stub: 0,
            far: 0,
            backward,
            exact,
        });
        self.exits.len() - 1
    }

    pub(crate) fn conditional(&mut self, index: usize, page: u64) {
        self.bring_home();
        let ins = self.items[index].ins;
        let condition = ins.condition_code() as u8 - 1;
        let target = ins.near_branch_target();
        let offset = target.wrapping_sub(page) as i64;
        let backward = target <= ins.ip();
        if let Some(offset) = self.linked(offset) {
            let fix = self.asm.jcc_aligned(condition);
            self.exit(offset, fix, backward);
        } else {
            let fix = self.asm.jcc(condition);
            self.cold.push(Cold::Far { fix, offset });
        }
    }

    pub(crate) fn call(&mut self, index: usize, page: u64) {
        let ins = self.items[index].ins;
        let back = ins.next_ip().wrapping_sub(page) as i64;
        match self.fixed_address(back) {
            Some(back) if self.items[index].on_stack => {
                let by = std::mem::take(&mut self.moved) - self.slot();
                self.asm.store_mem_imm(self.wide, RSP, STK, by, back);
                self.move_stack(RSP, by);
            }
            _ => {
                self.page_relative(back);
                self.push_t0(index);
            }
        }
        let target = ins.near_branch_target();
        self.transfer(page, target, target <= ins.ip());
    }

    /// Pushes T0, the return address of a call.
    fn push_t0(&mut self, index: usize) {
        if self.items[index].on_stack {
            self.store_slot(RSP, STK, self.moved - self.slot(), T0);
        } else {
            self.asm.mov(T2, T0);
            self.checked_push(index, T2);
        }
        let by = std::mem::take(&mut self.moved) - self.slot();
        self.move_stack(RSP, by);
    }

    pub(crate) fn indirect(&mut self, index: usize) {
        let ins = self.items[index].ins;
        let call = self.items[index].class == Class::CallIndirect;
        let memory = ins.op0_kind() == OpKind::Memory;
        match ins.op0_kind() {
            OpKind::Memory => {
                if self.load_operand(index).is_none() {
                    return self.hand_over(index);
                }
                self.bring_home();
            }
            _ => {
                let value = self.value_of(ins.op0_register());
                self.target_from(value);
            }
        }
        if call {
            let page = ins.ip() & !0xfff;
            if self.items[index].on_stack {
                self.asm.mov(T2, T0);
                self.page_relative(ins.next_ip().wrapping_sub(page) as i64);
                self.store_slot(RSP, STK, -self.slot(), T0);
                self.move_stack(RSP, -self.slot());
                self.asm.mov(T0, T2);
            } else if memory {
                const TARGET: u32 = area::SCRATCH + 8;
                self.asm.store(TARGET, T0);
                self.page_relative(ins.next_ip().wrapping_sub(page) as i64);
                self.asm.mov(T2, T0);
                self.checked_push(index, T2);
                self.move_stack(RSP, -self.slot());
                self.asm.load(T0, TARGET);
            } else {
                self.page_relative(ins.next_ip().wrapping_sub(page) as i64);
                self.asm.mov(T2, T0);
                self.checked_push(index, T2);
                self.move_stack(RSP, -self.slot());
                let value = self.value_of(ins.op0_register());
                // A call through RSP itself goes where it pointed before the push.
                if value == RSP {
                    self.asm.lea(T0, RSP, self.slot());
                } else {
                    self.target_from(value);
                }
                if !self.wide {
                    self.asm.mov32(T0, T0);
                }
            }
        }
        self.indirect_from(index);
    }

    /// T0 = `value`, the target of a jump.
    fn target_from(&mut self, value: crate::asm::Reg) {
        if self.wide {
            self.asm.mov(T0, value);
        } else {
            self.asm.mov32(T0, value);
        }
    }

    /// Goes to the address in T0, which may be one that the instruction faults on.
    pub(crate) fn indirect_from(&mut self, index: usize) {
        let fix = self.asm.lea_rip(T2);
        self.records.push((fix, index as u64));
        self.through_cache();
    }

    pub(crate) fn ret(&mut self, index: usize) {
        let ins = self.items[index].ins;
        let extra = if ins.op_count() > 0 {
            i32::from(ins.immediate16())
        } else {
            0
        };
        self.pop_to_t0(index).expect("nothing else is in use");
        let by = std::mem::take(&mut self.moved) + self.slot() + extra;
        self.move_stack(RSP, by);
        self.indirect_from(index);
    }
}
