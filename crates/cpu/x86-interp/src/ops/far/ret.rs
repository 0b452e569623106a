//! Far returns: RETF and IRET in every mode, to the same level, to an outer one, to virtual-8086 mode, to another task.
//!
//! Spec: SDM vol. 2 "RET", "IRET/IRETD/IRETQ"; vol. 3 §5.8.6, §6.7.1 (NMI unblocking), §7.3, §20.2.

use cpu_model::SegmentState;
use iced_x86::Code;
use x86_isa::Selector;
use x86_isa::Vector;
use x86_isa::attr;
use x86_isa::flags;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::cpu::DS;
use crate::cpu::ES;
use crate::cpu::FS;
use crate::cpu::GS;
use crate::cpu::RSP;
use crate::cpu::SS;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;
use crate::ops::segment::Found;
use crate::ops::segment::null_stack;
use crate::ops::segment::v86_segment;

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    if x.ins.op_count() > 0 && matches!(x.code(), Code::Retfw_imm16 | Code::Retfd_imm16 | Code::Retfq_imm16) {
        d.imm = x.ins.immediate16().into();
    }
    Some(match x.code() {
        Code::Retfw | Code::Retfw_imm16 => retf::<u16>,
        Code::Retfd | Code::Retfd_imm16 => retf::<u32>,
        Code::Retfq | Code::Retfq_imm16 => retf::<u64>,
        Code::Iretw => iret::<u16>,
        Code::Iretd => iret::<u32>,
        Code::Iretq => iret::<u64>,
        _ => return None,
    })
}

fn retf<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.attempt(|cpu| {
        let rip = cpu.peek::<T>(0)?.u64();
        let selector = cpu.peek::<T>(T::BYTES)?.u64() as u16;
        let popped = 2 * T::BYTES + d.imm;
        if cpu.plain_segments() {
            cpu.set_code_real(selector, rip)?;
            cpu.set_sp(cpu.regs[RSP].wrapping_add(popped));
            return Ok(());
        }
        let code = cpu.return_code_segment(Selector(selector))?;
        let level = Selector(selector).rpl();
        if level == cpu.cpl {
            cpu.set_sp(cpu.regs[RSP].wrapping_add(popped));
            return cpu.enter_code(&code, rip);
        }
        let sp = cpu.peek::<T>(popped)?.u64();
        let ss = cpu.peek::<T>(popped + T::BYTES)?.u64() as u16;
        cpu.enter_outer(&code, rip, Selector(ss), sp)?;
        cpu.set_sp(cpu.regs[RSP].wrapping_add(d.imm));
        Ok(())
    })
}

fn iret<T: Int>(cpu: &mut Cpu, _d: &DInsn) -> R {
    // NMIs are let in again even if the return faults.
    cpu.boundary.event.nmi_blocked = false;
    if cpu.plain_segments() {
        return cpu.attempt(Cpu::iret_real::<T>);
    }
    if cpu.flag(flags::NT) {
        return if cpu.long_mode() {
            cpu.gp(0)
        } else {
            cpu.return_to_task()
        };
    }
    cpu.attempt(Cpu::iret_protected::<T>)
}

impl Cpu {
    fn iret_real<T: Int>(&mut self) -> R {
        if self.v86() && self.iopl() < 3 {
            return self.gp(0);
        }
        let rip = self.peek::<T>(0)?.u64();
        let selector = self.peek::<T>(T::BYTES)?.u64() as u16;
        let image = self.peek::<T>(2 * T::BYTES)?.u64();
        let mut kept = flags::VM | flags::VIF | flags::VIP;
        if self.v86() {
            kept |= flags::IOPL;
        }
        if T::BITS == 16 {
            kept |= flags::ALL & !0xffff & !flags::RF;
        }
        let flags = self.rflags() & kept | image & !kept;
        self.set_code_real(selector, rip)?;
        self.set_sp(self.regs[RSP].wrapping_add(3 * T::BYTES));
        self.set_rflags(flags);
        self.end_block();
        Ok(())
    }

    fn iret_protected<T: Int>(&mut self) -> R {
        let rip = self.peek::<T>(0)?.u64();
        let selector = Selector(self.peek::<T>(T::BYTES)?.u64() as u16);
        let image = self.peek::<T>(2 * T::BYTES)?.u64();
        if T::BITS == 32 && image & flags::VM != 0 && self.cpl == 0 && !self.long_mode() {
            return self.enter_v86(rip, selector.0, image);
        }
        let code = self.return_code_segment(selector)?;
        let flags = self.returned_flags::<T>(image);
        if selector.rpl() == self.cpl && !self.is64() {
            self.set_sp(self.regs[RSP].wrapping_add(3 * T::BYTES));
            self.enter_code(&code, rip)?;
        } else {
            let sp = self.peek::<T>(3 * T::BYTES)?.u64();
            let ss = Selector(self.peek::<T>(4 * T::BYTES)?.u64() as u16);
            self.enter_outer(&code, rip, ss, sp)?;
        }
        self.set_rflags(flags);
        self.update_mode();
        Ok(())
    }

    /// The flags after IRET: the level before the return says what it may change.
    fn returned_flags<T: Int>(&self, image: u64) -> u64 {
        let mut writable = flags::ARITH | flags::TF | flags::DF | flags::NT;
        if T::BITS > 16 {
            writable |= flags::RF | flags::AC | flags::ID;
        }
        if self.cpl <= self.iopl() {
            writable |= flags::IF;
        }
        if self.cpl == 0 {
            writable |= flags::IOPL;
            if T::BITS > 16 {
                writable |= flags::VIF | flags::VIP;
            }
        }
        self.rflags() & !writable | image & writable
    }

    /// The code segment of a far return.
    fn return_code_segment(&mut self, selector: Selector) -> R<Found> {
        if selector.is_null() {
            return self.gp(0);
        }
        let code = self.descriptor(selector, Vector::Gp)?;
        let level = match code.desc.is_conforming() {
            true => code.desc.dpl() <= selector.rpl(),
            false => code.desc.dpl() == selector.rpl(),
        };
        let no_such_mode = self.long_mode() && code.desc.long() && code.desc.db();
        if !code.desc.is_code() || selector.rpl() < self.cpl || !level || no_such_mode {
            return self.selector_fault(Vector::Gp, selector);
        }
        self.check_present(&code)?;
        Ok(code)
    }

    /// Returns with a new stack: to an outer level, or from 64-bit mode's IRET to any.
    fn enter_outer(&mut self, code: &Found, rip: u64, ss: Selector, sp: u64) -> R {
        let level = code.selector.rpl();
        let outer = level > self.cpl;
        let to64 = self.long_mode() && code.desc.long();
        let stack = self.returned_stack(ss, level, to64)?;
        self.segs[SS] = stack;
        self.set_code_segment(code, level)?;
        self.check_target(rip)?;
        self.set_rip(rip);
        self.regs[RSP] = match () {
            () if to64 => sp,
            () if stack.attr & attr::DB != 0 => sp & 0xffff_ffff,
            // A 16-bit stack leaves the upper bits alone, and so shows the inner level's to the outer one.
            () => self.regs[RSP] & !0xffff | sp & 0xffff,
        };
        if outer {
            self.drop_inner_segments();
            self.update_mode();
        }
        Ok(())
    }

    fn returned_stack(&mut self, ss: Selector, level: u8, to64: bool) -> R<SegmentState> {
        if !ss.is_null() {
            return self.stack_segment(ss, level, Vector::Gp);
        }
        if to64 && level < 3 && ss.rpl() == level {
            return Ok(null_stack(ss.0, level));
        }
        self.gp(0)
    }

    /// IRETD at level 0 with VM set in the image.
    fn enter_v86(&mut self, rip: u64, cs: u16, image: u64) -> R {
        let mut slots = [0u32; 6];
        for (i, slot) in slots.iter_mut().enumerate() {
            *slot = self.peek::<u32>(12 + 4 * i as u64)?;
        }
        let [sp, ss, es, ds, fs, gs] = slots;
        if rip > 0xffff {
            return self.gp(0);
        }
        let segments = [(CS, u32::from(cs)), (SS, ss), (ES, es), (DS, ds), (FS, fs), (GS, gs)];
        for (register, selector) in segments {
            self.segs[register] = v86_segment(selector as u16);
        }
        self.set_rip(rip);
        self.regs[RSP] = sp.into();
        self.set_rflags(image);
        self.update_mode();
        Ok(())
    }
}
