//! Memory operands: a look-up in the software TLB in front of the access.
//!
//! ```text
//!  lea   T0, [base + disp]
//!  rorx  T1, T0, 7                 page number * 32 in the bits above 4
//!  and   T1d, (slots - 1) * 32
//!  sub   T0, gs:[T1 + read|write]  offset in the page, on a hit
//!  cmp   T0, 4096 - size           a miss, another page, and an access across pages are all above
//!  ja    slow
//!  mov   T1, gs:[T1 + addend]
//! ```
//!
//! What misses goes to the interpreter for that one instruction, which fills the TLB.

use iced_x86::MemoryOperand;
use iced_x86::OpAccess;
use iced_x86::OpKind;
use iced_x86::Register;
use x86_interp::seam::layout;

use crate::area;
use crate::asm::A;
use crate::asm::CMP;
use crate::asm::JCC;
use crate::asm::NE;
use crate::asm::RSP;
use crate::asm::Reg;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::thunk::Why;
use crate::translate::Parked;
use crate::translate::Translator;
use crate::translate::stack::stack_operand;

/// A memory operand as the host addresses it: `[base + index + disp]`, or `[base + disp]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) base: Reg,
    pub(crate) index: Option<Reg>,
    pub(crate) disp: i32,
}

impl Place {
    /// In the terms of the encoder.
    pub(crate) fn operand(&self) -> MemoryOperand {
        let full = |n: Reg| Register::RAX + u32::from(n);
        let index = self.index.map_or(Register::None, full);
        MemoryOperand::with_base_index_scale_displ_size(full(self.base), index, 1, self.disp.into(), 1)
    }
}

/// What is looked up in the TLB.
pub(crate) struct Look {
    /// T0, or a copy of it, which is destroyed.
    pub(crate) offset: Reg,
    pub(crate) write: bool,
    /// Bytes accessed.
    pub(crate) size: u32,
    /// The group that it is for.
    pub(crate) group: Option<u8>,
}

impl Look {
    pub(crate) fn new(offset: Reg, write: bool, size: u32) -> Self {
        Self {
            offset,
            write,
            size,
            group: None,
        }
    }
}

pub(crate) const SLOT_MASK: u32 = (layout::TLB_ENTRIES as u32 - 1) << layout::TLB_ENTRY_SHIFT;
pub(crate) const SLOT_ROTATE: u8 = 12 - layout::TLB_ENTRY_SHIFT as u8;

/// Guest registers that are not in host registers.
pub(crate) fn in_memory(n: Reg) -> bool {
    (8..12).contains(&n)
}

pub(crate) fn writes(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
    )
}

impl Translator {
    /// The host register that holds a 64-bit guest register at the end of a block; T2 after loading it, for those in
    /// memory.
    pub(crate) fn value_of(&mut self, register: Register) -> Reg {
        let n = register.number() as Reg;
        if in_memory(n) {
            self.asm.load(T2, area::gpr(n));
            T2
        } else {
            n
        }
    }

    /// Whether the memory operand of an instruction is written, and its size.
    fn operand_access(&mut self, index: usize) -> (bool, u32) {
        let ins = &self.items[index].ins;
        let options =
            iced_x86::InstructionInfoOptions::NO_MEMORY_USAGE | iced_x86::InstructionInfoOptions::NO_REGISTER_USAGE;
        let info = self.info.info_options(ins, options);
        let operand = (0..ins.op_count())
            .find(|&i| ins.op_kind(i) == OpKind::Memory)
            .unwrap_or(0);
        (writes(info.op_access(operand)), ins.memory_size().size() as u32)
    }

    /// Checks the memory operand. On success the code goes on with the place; else the interpreter takes over. `None`
    /// when there are too few registers.
    pub(crate) fn operand(&mut self, index: usize) -> Option<Place> {
        let item = &self.items[index];
        if item.on_stack
            && let Some(disp) = stack_operand(item)
        {
            return Some(Place {
                base: RSP,
                index: Some(self.stack_addend(index)?),
                disp: disp + self.moved,
            });
        }
        if let Some(g) = self.items[index].group {
            return self.group_operand(index, g);
        }
        let (write, size) = self.operand_access(index);
        if self.segmented {
            return self.segmented_operand(index, write, size);
        }
        if let Some(address) = self.fixed_operand(index)
            && segment(&self.items[index].ins).is_none()
            && on_one_page(address, size)
        {
            let flags = self.items[index].wanted != 0;
            self.claim(if flags { &[T1, T2] } else { &[T1] });
            self.with_flags(index, Parked::In(T2), |t, parked| {
                t.look_fixed_up(index, parked, address, &Look::new(T1, write, size));
            });
            if flags {
                self.release(T2);
            }
            return Some(Place {
                base: T1,
                index: None,
                disp: address,
            });
        }
        if let Some((base, disp)) = self.simple_base(index) {
            let flags = self.items[index].wanted != 0;
            self.claim(if flags { &[T0, T1, T2] } else { &[T0, T1] });
            let base = self.host_of(index, base)?;
            self.asm.lea(T0, base, disp);
            self.with_flags(index, Parked::In(T2), |t, parked| {
                t.look_up(index, parked, &Look::new(T0, write, size))
            });
            self.release(T0);
            if flags {
                self.release(T2);
            }
            return Some(Place {
                base,
                index: Some(T1),
                disp,
            });
        }
        self.claim(&[T0, T1]);
        self.address(index)?;
        // No sooner: the address may need two registers that live in memory.
        self.claim(&[T2]);
        self.asm.mov(T2, T0);
        self.with_flags(index, Parked::InMemory, |t, parked| {
            t.look_up(index, parked, &Look::new(T2, write, size))
        });
        self.release(T2);
        Some(Place {
            base: T0,
            index: Some(T1),
            disp: 0,
        })
    }

    /// Leaves the addend of the page in T1. T0 holds the address, and so does what `look` names.
    pub(crate) fn look_up(&mut self, index: usize, parked: Parked, look: &Look) {
        let Look {
            offset,
            write,
            size,
            group,
        } = *look;
        let tlb = area::tlb(self.bank);
        let tag = if write { layout::TLB_WRITE } else { layout::TLB_READ } as u32;
        self.asm.rorx(T1, T0, SLOT_ROTATE);
        self.asm.and32(T1, SLOT_MASK);
        self.asm.sub_at(offset, T1, tlb + tag);
        self.asm.keep_together(CMP + JCC);
        self.asm.cmp_imm(offset, 4096 - size);
        let fix = self.asm.jcc(A);
        self.asm.load_at(T1, T1, tlb + layout::TLB_ADDEND as u32);
        self.slow_of(vec![fix], Why::Slow, index, parked, group);
    }

    /// The same for an address that is known: its entry is too.
    pub(crate) fn look_fixed_up(&mut self, index: usize, parked: Parked, address: i32, look: &Look) {
        let tag = if look.write {
            layout::TLB_WRITE
        } else {
            layout::TLB_READ
        } as u32;
        let slot = (address as u32 >> 12) & (layout::TLB_ENTRIES as u32 - 1);
        let entry = area::tlb(self.bank) + (slot << layout::TLB_ENTRY_SHIFT);
        self.asm.keep_together(13 + JCC);
        self.asm.cmp_qword_gs(entry + tag, address & !0xfff);
        let fix = self.asm.jcc(NE);
        self.asm.load(T1, entry + layout::TLB_ADDEND as u32);
        self.slow_of(vec![fix], Why::Slow, index, parked, look.group);
    }

    /// The address of an operand relative to the instruction, if it is known.
    pub(crate) fn fixed_operand(&self, index: usize) -> Option<i32> {
        let ins = &self.items[index].ins;
        let relative = ins.is_ip_rel_memory_operand() && ins.memory_base() == Register::RIP;
        let offset = ins.ip_rel_memory_address().wrapping_sub(ins.ip() & !0xfff);
        if relative {
            self.fixed_address(offset as i64)
        } else {
            None
        }
    }

    /// `[base + disp]`
    fn simple_base(&self, index: usize) -> Option<(Reg, i32)> {
        let ins = &self.items[index].ins;
        let base = ins.memory_base();
        let plain = self.wide && base.is_gpr64() && ins.memory_index() == Register::None && segment(ins).is_none();
        plain.then(|| (base.number() as Reg, ins.memory_displacement64() as i32))
    }

    /// The linear address of the memory operand into T0.
    pub(crate) fn address(&mut self, index: usize) -> Option<()> {
        if let Some((n, address)) = segment(&self.items[index].ins).zip(self.fixed_operand(index)) {
            self.asm.load(T0, area::segment_base(n));
            self.asm.lea(T0, T0, address);
            return Some(());
        }
        if let Some((n, scaled)) = self.simple_in_segment(index) {
            let scaled = match scaled {
                Some((n, scale)) => Some((self.host_of(index, n)?, scale)),
                None => None,
            };
            self.asm.load(T0, area::segment_base(n));
            let disp = self.items[index].ins.memory_displacement64() as i32;
            self.asm.lea_any(T0, Some(T0), scaled, disp, true);
            if let Some((host, _)) = scaled {
                self.release(host);
            }
            return Some(());
        }
        self.effective_address(index)?;
        if let Some(n) = segment(&self.items[index].ins) {
            self.asm.load(T1, area::segment_base(n));
            if self.wide {
                self.asm.lea_sum(T0, T0, T1);
            } else {
                self.asm.lea_sum32(T0, T0, T1);
            }
        }
        Some(())
    }

    /// The number of a segment register, and the one register that the operand is relative to beside it.
    fn simple_in_segment(&self, index: usize) -> Option<(u8, Option<(Reg, u8)>)> {
        let ins = &self.items[index].ins;
        let n = segment(ins)?;
        let (base, scaled) = (ins.memory_base(), ins.memory_index());
        let scale = ins.memory_index_scale().trailing_zeros() as u8;
        match (base, scaled) {
            _ if !self.wide || ins.is_ip_rel_memory_operand() => None,
            (Register::None, Register::None) => (ins.memory_displ_size() != 4).then_some((n, None)),
            (base, Register::None) if base.is_gpr64() => Some((n, Some((base.number() as Reg, 0)))),
            (Register::None, scaled) if scaled.is_gpr64() => Some((n, Some((scaled.number() as Reg, scale)))),
            _ => None,
        }
    }

    /// The effective address of the memory operand into T0, which is claimed.
    pub(crate) fn effective_address(&mut self, index: usize) -> Option<()> {
        let ins = self.items[index].ins;
        if ins.is_ip_rel_memory_operand() {
            let page = ins.ip() & !0xfff;
            self.page_relative(ins.ip_rel_memory_address().wrapping_sub(page) as i64);
            return Some(());
        }
        let (base, scaled) = (ins.memory_base(), ins.memory_index());
        // An absolute address of 32 bits is not sign-extended.
        let absolute = base == Register::None && scaled == Register::None;
        let narrow = base.is_gpr32() || scaled.is_gpr32() || absolute && ins.memory_displ_size() == 4;
        let wide = self.wide && !narrow;
        let mut host = |r: Register| self.host_of(index, r.full_register().number() as Reg);
        let base = if base == Register::None {
            None
        } else {
            Some(host(base)?)
        };
        let scaled = if scaled == Register::None {
            None
        } else {
            Some(host(scaled)?)
        };
        let scale = ins.memory_index_scale().trailing_zeros() as u8;
        let disp = ins.memory_displacement64() as i32;
        self.asm.lea_any(T0, base, scaled.map(|r| (r, scale)), disp, wide);
        base.into_iter().chain(scaled).for_each(|r| self.release(r));
        Some(())
    }

    /// Reads the memory operand of a jump or push into T0.
    pub(crate) fn load_operand(&mut self, index: usize) -> Option<()> {
        let place = self.operand(index)?;
        self.release_all();
        self.claim(&[T0]);
        match place.index {
            Some(index) => self.load_slot(T0, place.base, index, place.disp),
            None => self.asm.load_disp(T0, place.base, place.disp),
        }
        Some(())
    }

    /// Writes `value` below the top of the stack, which is not known to be on the stack's page. T0 and T1 are claimed.
    pub(crate) fn checked_push(&mut self, index: usize, value: Reg) {
        let slot = self.slot();
        self.stack_address(RSP, -slot);
        self.with_flags(index, Parked::InMemory, |t, parked| {
            t.look_up(index, parked, &Look::new(T0, true, slot as u32));
        });
        self.stack_address(RSP, -slot);
        self.store_slot(T0, T1, 0, value);
    }

    /// Reads the eight bytes at `base` into T0, likewise.
    pub(crate) fn checked_stack_read(&mut self, index: usize, base: Reg) {
        self.claim(&[T0, T1]);
        let slot = self.slot();
        self.stack_address(base, 0);
        self.with_flags(index, Parked::InMemory, |t, parked| {
            t.look_up(index, parked, &Look::new(T0, false, slot as u32));
        });
        self.stack_address(base, 0);
        self.load_slot(T0, T0, T1, 0);
    }

    /// T0 = `base` + `by`, in the width of the mode.
    fn stack_address(&mut self, base: Reg, by: i32) {
        if self.wide {
            self.asm.lea(T0, base, by);
        } else {
            self.asm.lea32(T0, base, by);
        }
    }
}

/// Whether `size` bytes at a known address lie on one page.
pub(crate) fn on_one_page(address: i32, size: u32) -> bool {
    (address as u32 & 0xfff) + size <= 4096
}

/// FS or GS, when the memory operand is relative to one of them.
fn segment(ins: &iced_x86::Instruction) -> Option<u8> {
    match ins.memory_segment() {
        Register::FS => Some(4),
        Register::GS => Some(5),
        _ => None,
    }
}
