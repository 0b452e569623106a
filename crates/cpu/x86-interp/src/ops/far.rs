//! Transfers to another code segment, privilege level or task: far JMP and CALL, returns, software interrupts, fast
//! system calls.
//!
//! Spec: SDM vol. 2 (each instruction), vol. 3 §5.8 (gates and stack switching), §7.3 (tasks).

pub(crate) mod fast;
mod ret;

use iced_x86::Code;
use iced_x86::Mnemonic;
use x86_isa::Selector;
use x86_isa::Vector;
use x86_isa::descriptor::system;
use x86_isa::flags;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::cpu::RSP;
use crate::cpu::SS;
use crate::decode::Dec;
use crate::decode::Select;
use crate::deliver::Source;
use crate::deliver::Switch;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;
use crate::ops::segment::Found;
use crate::ops::segment::null_stack;
use crate::ops::segment::v86_segment;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.code() {
        Code::Jmp_ptr1616 | Code::Call_ptr1616 => {
            direct(x, d, 2);
            if x.mnemonic() == Mnemonic::Jmp {
                jmp_direct
            } else {
                call_direct::<u16>
            }
        }
        Code::Jmp_ptr1632 | Code::Call_ptr1632 => {
            direct(x, d, 4);
            if x.mnemonic() == Mnemonic::Jmp {
                jmp_direct
            } else {
                call_direct::<u32>
            }
        }
        Code::Jmp_m1616 => jmp_indirect::<u16>,
        Code::Jmp_m1632 => jmp_indirect::<u32>,
        Code::Jmp_m1664 => jmp_indirect::<u64>,
        Code::Call_m1616 => call_indirect::<u16>,
        Code::Call_m1632 => call_indirect::<u32>,
        Code::Call_m1664 => call_indirect::<u64>,
        Code::Int_imm8 => {
            d.imm = u64::from(x.ins.immediate8());
            int
        }
        Code::Int3 => int3,
        Code::Into => into,
        Code::Int1 => int1,
        _ => return ret::select(x, d).or_else(|| fast::select(x, d)),
    })
}

/// A pointer in the instruction: selector in `disp`, offset in `imm`.
fn direct(x: &Dec<'_>, d: &mut DInsn, bytes: u8) {
    d.disp = x.ins.far_branch_selector().into();
    d.imm = if bytes == 2 {
        x.ins.far_branch16().into()
    } else {
        x.ins.far_branch32().into()
    };
}

fn jmp_direct(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.attempt(|cpu| cpu.jump_far(d.disp as u16, d.imm))
}

fn call_direct<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.attempt(|cpu| cpu.call_far::<T>(d.disp as u16, d.imm))
}

fn far_pointer<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R<(u16, u64)> {
    let at = cpu.ea(d);
    let offset = cpu.read_seg::<T>(d.seg.into(), at)?.u64();
    let selector = cpu.read_seg::<u16>(d.seg.into(), at.wrapping_add(T::BYTES) << d.cut >> d.cut)?;
    Ok((selector, offset))
}

fn jmp_indirect<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (selector, offset) = far_pointer::<T>(cpu, d)?;
    cpu.attempt(|cpu| cpu.jump_far(selector, offset))
}

fn call_indirect<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let (selector, offset) = far_pointer::<T>(cpu, d)?;
    cpu.attempt(|cpu| cpu.call_far::<T>(selector, offset))
}

/// INT n. Without CR4.VME, virtual-8086 programs need IOPL 3.
fn int(cpu: &mut Cpu, d: &DInsn) -> R {
    if cpu.v86() && cpu.iopl() < 3 {
        return cpu.gp(0);
    }
    cpu.software_interrupt(d.imm as u8, Source::Int)
}

fn int3(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.software_interrupt(3, Source::Int3)
}

fn into(cpu: &mut Cpu, _d: &DInsn) -> R {
    if cpu.lazy.of() {
        cpu.software_interrupt(4, Source::Into)
    } else {
        Ok(())
    }
}

/// INT1 takes a debug trap along that MOV SS has held back.
fn int1(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.software_interrupt(1, Source::Icebp)?;
    cpu.dr[4] |= std::mem::take(&mut cpu.boundary.event.debug_trap);
    Ok(())
}

/// What a far pointer in protected mode leads to.
enum Target {
    Code(Found),
    /// A call gate and the code segment it names; the offset.
    Gate {
        gate: Found,
        code: Found,
        offset: u64,
    },
    Task(Found),
}

impl Cpu {
    fn software_interrupt(&mut self, vector: u8, source: Source) -> R {
        let stepping = self.flag(flags::TF);
        self.interrupt(vector, source, None)?;
        // The handler is not stepped into.
        self.boundary.no_step = stepping;
        Ok(())
    }

    /// Real and virtual-8086 mode.
    fn set_code_real(&mut self, selector: u16, offset: u64) -> R {
        if offset > self.segs[CS].limit.into() {
            return self.gp(0);
        }
        if self.v86() {
            self.segs[CS] = v86_segment(selector);
        } else {
            self.segs[CS].selector = selector;
            self.segs[CS].base = u64::from(selector) << 4;
        }
        self.set_rip(offset);
        self.update_mode();
        Ok(())
    }

    fn plain_segments(&self) -> bool {
        !self.protected() || self.v86()
    }

    fn jump_far(&mut self, selector: u16, offset: u64) -> R {
        if self.plain_segments() {
            return self.set_code_real(selector, offset);
        }
        match self.far_target(Selector(selector))? {
            Target::Code(code) => self.enter_code(&code, offset),
            Target::Gate { code, offset, .. } => {
                let level = if code.desc.is_conforming() {
                    code.desc.dpl() <= self.cpl
                } else {
                    code.desc.dpl() == self.cpl
                };
                if !level {
                    return self.selector_fault(Vector::Gp, code.selector);
                }
                self.check_present(&code)?;
                self.enter_code(&code, offset)
            }
            Target::Task(tss) => self.switch_task(&tss, Switch::Jump, None),
        }
    }

    fn call_far<T: Int>(&mut self, selector: u16, offset: u64) -> R {
        if self.plain_segments() {
            self.push_return::<T>()?;
            return self.set_code_real(selector, offset);
        }
        match self.far_target(Selector(selector))? {
            Target::Code(code) => {
                self.push_return::<T>()?;
                self.enter_code(&code, offset)
            }
            Target::Gate { gate, code, offset } => {
                if code.desc.dpl() > self.cpl {
                    return self.selector_fault(Vector::Gp, code.selector);
                }
                self.check_present(&code)?;
                let inner = !code.desc.is_conforming() && code.desc.dpl() < self.cpl;
                match (self.long_mode(), gate.desc.system()) {
                    (true, _) if inner => self.call_inner64(&code, offset),
                    (true, _) => self.call_same64(&code, offset),
                    (_, Some(system::CALL16)) if inner => self.call_inner::<u16>(&gate, &code, offset),
                    (_, Some(system::CALL16)) => self.call_same::<u16>(&code, offset),
                    _ if inner => self.call_inner::<u32>(&gate, &code, offset),
                    _ => self.call_same::<u32>(&code, offset),
                }
            }
            Target::Task(tss) => self.switch_task(&tss, Switch::Call, None),
        }
    }

    fn push_return<T: Int>(&mut self) -> R {
        self.push(T::from_u64(self.segs[CS].selector.into()))?;
        self.push(T::from_u64(self.rip()))
    }

    fn check_present(&mut self, found: &Found) -> R {
        if found.desc.present() {
            Ok(())
        } else {
            self.selector_fault(Vector::Np, found.selector)
        }
    }

    /// Loads CS:RIP at the present privilege level, with all but the level checked.
    fn enter_code(&mut self, code: &Found, offset: u64) -> R {
        self.set_code_segment(code, self.cpl)?;
        self.check_target(offset)?;
        self.set_rip(offset);
        Ok(())
    }

    /// Looks a far pointer up and checks that the present level may use it. The code segment of a gate is checked but
    /// for level and presence, which JMP and CALL judge differently.
    fn far_target(&mut self, selector: Selector) -> R<Target> {
        if selector.is_null() {
            return self.gp(0);
        }
        let found = self.descriptor(selector, Vector::Gp)?;
        let desc = found.desc;
        let long = self.long_mode();
        let reachable = desc.dpl() >= self.cpl.max(selector.rpl());
        match desc.system() {
            None => {
                let level = match desc.is_conforming() {
                    true => desc.dpl() <= self.cpl,
                    false => selector.rpl() <= self.cpl && desc.dpl() == self.cpl,
                };
                let no_such_mode = long && desc.long() && desc.db();
                if !desc.is_code() || !level || no_such_mode {
                    return self.selector_fault(Vector::Gp, selector);
                }
                self.check_present(&found)?;
                Ok(Target::Code(found))
            }
            Some(system::CALL32) if reachable => self.gate_target(found),
            Some(system::CALL16) if reachable && !long => self.gate_target(found),
            Some(system::TASK_GATE) if reachable && !long => {
                self.check_present(&found)?;
                Ok(Target::Task(self.gate_task(desc)?))
            }
            Some(system::TSS16 | system::TSS32) if reachable && !long => {
                self.check_available(&found)?;
                Ok(Target::Task(found))
            }
            _ => self.selector_fault(Vector::Gp, selector),
        }
    }

    fn gate_target(&mut self, gate: Found) -> R<Target> {
        self.check_present(&gate)?;
        let long = self.long_mode();
        let low = match gate.desc.system() {
            Some(system::CALL16) => u64::from(gate.desc.gate_offset() & 0xffff),
            _ => gate.desc.gate_offset().into(),
        };
        let offset = if !long {
            low
        } else {
            match self.descriptor_top(&gate)? {
                Some(top) => top << 32 | low,
                None => return self.selector_fault(Vector::Gp, gate.selector),
            }
        };
        let selector = gate.desc.gate_selector();
        if selector.is_null() {
            return self.gp(0);
        }
        let code = self.descriptor(selector, Vector::Gp)?;
        if !code.desc.is_code() || long && (!code.desc.long() || code.desc.db()) {
            return self.selector_fault(Vector::Gp, selector);
        }
        Ok(Target::Gate { gate, code, offset })
    }

    fn call_same<T: Int>(&mut self, code: &Found, offset: u64) -> R {
        self.push_return::<T>()?;
        self.enter_code(code, offset)
    }

    /// A call through a gate of long mode pushes eight bytes each, from compatibility mode too.
    fn call_same64(&mut self, code: &Found, offset: u64) -> R {
        let old = self.return_point();
        self.set_code_segment(code, self.cpl)?;
        self.push(u64::from(old.cs))?;
        self.push(old.rip)?;
        self.enter_code(code, offset)
    }

    fn call_inner64(&mut self, code: &Found, offset: u64) -> R {
        let old = self.return_point();
        let cpl = code.desc.dpl();
        let sp = self.tss_stack64(4 + 8 * u64::from(cpl))?;
        self.segs[SS] = null_stack(cpl.into(), cpl);
        self.set_code_segment(code, cpl)?;
        self.regs[RSP] = sp;
        self.push(u64::from(old.ss))?;
        self.push(old.sp)?;
        self.push(u64::from(old.cs))?;
        self.push(old.rip)?;
        self.enter_code(code, offset)
    }

    fn call_inner<T: Int>(&mut self, gate: &Found, code: &Found, offset: u64) -> R {
        let old = self.return_point();
        let cpl = code.desc.dpl();
        let count = u64::from(gate.desc.gate_params());
        let mut params = [0; 31];
        for i in 0..count {
            params[i as usize] = self.peek::<T>(i * T::BYTES)?.u64();
        }
        self.switch_stack(cpl)?;
        self.set_code_segment(code, cpl)?;
        self.push_inner(T::from_u64(old.ss.into()))?;
        self.push_inner(T::from_u64(old.sp))?;
        for i in (0..count).rev() {
            self.push_inner(T::from_u64(params[i as usize]))?;
        }
        self.push_inner(T::from_u64(old.cs.into()))?;
        self.push_inner(T::from_u64(old.rip))?;
        self.enter_code(code, offset)
    }
}

#[cfg(test)]
mod tests;
