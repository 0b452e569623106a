//! MOVS, STOS, LODS, SCAS, CMPS with their repeat prefixes.
//!
//! A repeated instruction is one handler call for many elements. Registers are right after every element, so that a fault
//! in the middle is resumable; after a bounded number of elements the handler lets the run loop look at interrupts.

use iced_x86::Mnemonic;
use iced_x86::OpKind;
use x86_isa::flags;

use crate::cpu::Cpu;
use crate::cpu::ES;
use crate::cpu::RAX;
use crate::cpu::RCX;
use crate::cpu::RDI;
use crate::cpu::RSI;
use crate::decode::Dec;
use crate::decode::Select;
use crate::decode::by_size;
use crate::decode::cut;
use crate::decode::seg;
use crate::insn::Brk;
use crate::insn::DInsn;
use crate::insn::F_REP;
use crate::insn::F_REPNE;
use crate::insn::R;
use crate::int::Int;
use crate::mmu::Access;
use crate::mmu::copy;
use crate::mmu::fill;
use crate::ops::arith::Binary;
use crate::ops::arith::Sub;

/// Elements that one call works through one by one.
const SLOW_ELEMENTS: u32 = 2048;
/// Bytes that one call moves in bulk.
const BULK_BYTES: u64 = 64 * 1024;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    // MOVSD and CMPSD are also SSE instructions; those have no string operands.
    if !(0..x.ins.op_count()).any(|i| is_string(x.ins.op_kind(i))) {
        return None;
    }
    let size = match x.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Stosb | Mnemonic::Lodsb | Mnemonic::Scasb | Mnemonic::Cmpsb => 1,
        Mnemonic::Movsw | Mnemonic::Stosw | Mnemonic::Lodsw | Mnemonic::Scasw | Mnemonic::Cmpsw => 2,
        Mnemonic::Movsd | Mnemonic::Stosd | Mnemonic::Lodsd | Mnemonic::Scasd | Mnemonic::Cmpsd => 4,
        Mnemonic::Movsq | Mnemonic::Stosq | Mnemonic::Lodsq | Mnemonic::Scasq | Mnemonic::Cmpsq => 8,
        _ => return None,
    };
    prepare(x, d);
    d.size = size as u8;
    Some(match x.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => by_size!(size, movs),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => by_size!(size, stos),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => by_size!(size, lods),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => by_size!(size, scas),
        _ => by_size!(size, cmps),
    })
}

fn is_string(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::MemorySegSI
            | OpKind::MemorySegESI
            | OpKind::MemorySegRSI
            | OpKind::MemoryESDI
            | OpKind::MemoryESEDI
            | OpKind::MemoryESRDI
    )
}

/// Source segment and address size of a string instruction (INS and OUTS too).
pub(crate) fn prepare(x: &Dec<'_>, d: &mut DInsn) {
    for i in 0..x.ins.op_count() {
        let bytes = match x.ins.op_kind(i) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => 2,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => 4,
            OpKind::MemorySegRSI | OpKind::MemoryESRDI => 8,
            _ => continue,
        };
        d.cut = cut(bytes);
    }
    d.seg = seg(x.ins.memory_segment());
}

impl Cpu {
    /// RSI, RDI or RCX in the address size.
    #[inline(always)]
    pub(crate) fn string_reg(&self, d: &DInsn, register: usize) -> u64 {
        self.regs[register] << d.cut >> d.cut
    }

    /// Sets RSI, RDI or RCX in the address size; 32-bit sizes clear the upper half.
    #[inline(always)]
    pub(crate) fn set_string_reg(&mut self, d: &DInsn, register: usize, value: u64) {
        if d.cut == 48 {
            self.set_gpr(register, value as u16);
        } else {
            self.regs[register] = value << d.cut >> d.cut;
        }
    }

    /// Distance from one element to the next.
    #[inline(always)]
    pub(crate) fn string_step(&self, bytes: u64) -> u64 {
        if self.sysflags & flags::DF != 0 {
            bytes.wrapping_neg()
        } else {
            bytes
        }
    }

    #[inline(always)]
    fn advance(&mut self, d: &DInsn, register: usize, step: u64) {
        let value = self.string_reg(d, register).wrapping_add(step);
        self.set_string_reg(d, register, value);
    }

    /// Lets the run loop look around and come back to this instruction.
    pub(crate) fn come_back(&mut self, d: &DInsn) -> R {
        let rip = self.rip().wrapping_sub(d.len.into());
        self.set_rip(rip);
        Err(Brk::Exit)
    }

    /// Runs `element` once, or RCX times under a repeat prefix, until it says that the condition has ended.
    #[inline(always)]
    pub(crate) fn repeat(&mut self, d: &DInsn, mut element: impl FnMut(&mut Self) -> R<bool>) -> R {
        if d.flags & (F_REP | F_REPNE) == 0 {
            return element(self).map(|_| ());
        }
        let mut left = if self.sysflags & flags::TF != 0 {
            1
        } else {
            SLOW_ELEMENTS
        };
        let before = self.lazy;
        loop {
            let count = self.string_reg(d, RCX);
            if count == 0 {
                return Ok(());
            }
            if left == 0 {
                return self.come_back(d);
            }
            left -= 1;
            // The counters of the elements before a fault stand, the flags are those before the instruction.
            let go_on = element(self).inspect_err(|_| self.lazy = before)?;
            self.set_string_reg(d, RCX, count - 1);
            if !go_on {
                return Ok(());
            }
        }
    }
}

fn movs<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    if d.flags & (F_REP | F_REPNE) != 0 && cpu.sysflags & (flags::DF | flags::TF) == 0 {
        return rep_upwards::<T>(cpu, d, movs_run::<T>, movs_element::<T>);
    }
    let step = cpu.string_step(T::BYTES);
    cpu.repeat(d, |cpu| movs_element::<T>(cpu, d, step))
}

fn movs_element<T: Int>(cpu: &mut Cpu, d: &DInsn, step: u64) -> R<bool> {
    let value = cpu.read_seg::<T>(d.seg as usize, cpu.string_reg(d, RSI))?;
    cpu.write_seg(ES, cpu.string_reg(d, RDI), value)?;
    cpu.advance(d, RSI, step);
    cpu.advance(d, RDI, step);
    Ok(true)
}

/// Whole elements that lie before the address size wraps.
fn elements_before_wrap(d: &DInsn, offset: u64, bytes: u64) -> u64 {
    let last = u64::MAX >> d.cut;
    ((last - offset) / bytes).saturating_add(1)
}

/// A part of a repeated instruction that works on up to that many elements at once, and says how many it did.
type Bulk = fn(&mut Cpu, &DInsn, u64) -> R<u64>;
/// One element of an instruction; the step to the next is given.
type Element = fn(&mut Cpu, &DInsn, u64) -> R<bool>;

/// REP MOVS and REP STOS upwards: in bulk where there is plain memory, one by one elsewhere.
fn rep_upwards<T: Int>(cpu: &mut Cpu, d: &DInsn, bulk: Bulk, element: Element) -> R {
    let mut budget = BULK_BYTES;
    let mut slow = SLOW_ELEMENTS;
    loop {
        let count = cpu.string_reg(d, RCX);
        if count == 0 {
            return Ok(());
        }
        if budget == 0 || slow == 0 {
            return cpu.come_back(d);
        }
        let done = bulk(cpu, d, count)?;
        if done > 0 {
            budget = budget.saturating_sub(done * T::BYTES);
            continue;
        }
        element(cpu, d, T::BYTES)?;
        cpu.set_string_reg(d, RCX, count - 1);
        slow -= 1;
    }
}

/// Moves as many elements as lie in one page on both sides; zero when that is not even one.
fn movs_run<T: Int>(cpu: &mut Cpu, d: &DInsn, count: u64) -> R<u64> {
    let (si, di) = (cpu.string_reg(d, RSI), cpu.string_reg(d, RDI));
    let room = elements_before_wrap(d, si.max(di), T::BYTES);
    let most = count.min(4096).min(room) * T::BYTES;
    let from = cpu.lin_read(d.seg, si, T::BYTES)?;
    let to = cpu.lin_write(ES as u8, di, T::BYTES)?;
    let bytes = most.min(4096 - (from & 4095)).min(4096 - (to & 4095)) & !(T::BYTES - 1);
    // Segment limits are checked element by element: only flat segments may skip that.
    if bytes == 0 || !cpu.flat_for_bulk(d.seg) {
        return Ok(0);
    }
    let Some((source, _)) = cpu.host_run(d.seg, from, bytes, Access::Read)? else {
        return Ok(0);
    };
    let Some((target, _)) = cpu.host_run(ES as u8, to, bytes, Access::Write)? else {
        return Ok(0);
    };
    let distance = (target as usize).wrapping_sub(source as usize);
    // SAFETY: both runs lie inside one page of guest memory each.
    unsafe {
        if distance >= bytes as usize {
            copy(source, target, bytes as usize);
        } else {
            // The target overlaps what is still to be read: elements must go one by one, as the guest asked.
            for i in (0..bytes as usize).step_by(T::BYTES as usize) {
                T::store_mem(target.add(i), T::load_mem(source.add(i)));
            }
        }
    }
    cpu.advance(d, RSI, bytes);
    cpu.advance(d, RDI, bytes);
    cpu.set_string_reg(d, RCX, count - bytes / T::BYTES);
    Ok(bytes / T::BYTES)
}

impl Cpu {
    /// Source and ES need no limit checks.
    fn flat_for_bulk(&self, source: u8) -> bool {
        self.seg_ok[source as usize] & crate::cpu::SEG_READ != 0 && self.seg_ok[ES] & crate::cpu::SEG_WRITE != 0
    }
}

fn stos<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    if d.flags & (F_REP | F_REPNE) != 0 && cpu.sysflags & (flags::DF | flags::TF) == 0 {
        return rep_upwards::<T>(cpu, d, stos_run::<T>, stos_element::<T>);
    }
    let step = cpu.string_step(T::BYTES);
    cpu.repeat(d, |cpu| stos_element::<T>(cpu, d, step))
}

fn stos_element<T: Int>(cpu: &mut Cpu, d: &DInsn, step: u64) -> R<bool> {
    let value = cpu.gpr::<T>(RAX);
    cpu.write_seg(ES, cpu.string_reg(d, RDI), value)?;
    cpu.advance(d, RDI, step);
    Ok(true)
}

/// Stores as many elements as lie in one page.
fn stos_run<T: Int>(cpu: &mut Cpu, d: &DInsn, count: u64) -> R<u64> {
    let di = cpu.string_reg(d, RDI);
    let most = count.min(4096).min(elements_before_wrap(d, di, T::BYTES)) * T::BYTES;
    let to = cpu.lin_write(ES as u8, di, T::BYTES)?;
    let bytes = most.min(4096 - (to & 4095)) & !(T::BYTES - 1);
    if bytes == 0 || !cpu.flat_for_bulk(ES as u8) {
        return Ok(0);
    }
    let Some((target, _)) = cpu.host_run(ES as u8, to, bytes, Access::Write)? else {
        return Ok(0);
    };
    let value = cpu.gpr::<T>(RAX);
    let pattern = (0..8 / T::BYTES).fold(0, |all, i| all | value.u64() << ((i * u64::from(T::BITS)) & 63));
    let words = bytes as usize / 8;
    // SAFETY: the run lies inside one page of guest memory.
    unsafe {
        fill(target, pattern, words * 8);
        for i in (words * 8..bytes as usize).step_by(T::BYTES as usize) {
            T::store_mem(target.add(i), value);
        }
    }
    cpu.advance(d, RDI, bytes);
    cpu.set_string_reg(d, RCX, count - bytes / T::BYTES);
    Ok(bytes / T::BYTES)
}

fn lods<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let step = cpu.string_step(T::BYTES);
    cpu.repeat(d, |cpu| {
        let value = cpu.read_seg::<T>(d.seg as usize, cpu.string_reg(d, RSI))?;
        cpu.set_gpr(RAX, value);
        cpu.advance(d, RSI, step);
        Ok(true)
    })
}

/// Whether a compare under REPE or REPNE goes on.
fn goes_on(cpu: &Cpu, d: &DInsn) -> bool {
    cpu.lazy.zf() == (d.flags & F_REPNE == 0)
}

fn scas<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let step = cpu.string_step(T::BYTES);
    cpu.repeat(d, |cpu| {
        let value = cpu.read_seg::<T>(ES, cpu.string_reg(d, RDI))?;
        let accumulator = cpu.gpr::<T>(RAX);
        Sub::run(cpu, accumulator, value);
        cpu.advance(d, RDI, step);
        Ok(goes_on(cpu, d))
    })
}

fn cmps<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let step = cpu.string_step(T::BYTES);
    cpu.repeat(d, |cpu| {
        // The order in which processors read shows in CR2 when both fault.
        let right = cpu.read_seg::<T>(ES, cpu.string_reg(d, RDI))?;
        let left = cpu.read_seg::<T>(d.seg as usize, cpu.string_reg(d, RSI))?;
        Sub::run(cpu, left, right);
        cpu.advance(d, RSI, step);
        cpu.advance(d, RDI, step);
        Ok(goes_on(cpu, d))
    })
}
