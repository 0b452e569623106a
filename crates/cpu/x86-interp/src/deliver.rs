//! Exceptions and interrupts: from a vector to the handler's first instruction.
//!
//! Real-mode vector table; interrupt, trap and task gates in protected and virtual-8086 mode; 64-bit gates with the
//! interrupt stack table. Nested faults become double faults and shutdown. CR4.VME's redirection of software interrupts
//! is not offered.
//!
//! Spec: SDM vol. 3 §6 (protected mode §6.12, 64-bit §6.14, double faults table 6-5), §17.2 (DR6), §20.1.4 (real mode),
//! §20.3 (virtual-8086); vol. 2 "INT n".

mod frame;
mod task;

pub(crate) use task::Switch;

use x86_isa::Descriptor;
use x86_isa::Exception;
use x86_isa::Vector;
use x86_isa::descriptor::system;
use x86_isa::flags;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::insn::R;
use crate::int::Int;

/// Breakpoint bits of DR6: only they are replaced by a debug exception, the others accumulate.
const DR6_B: u64 = 0xf;
/// DR6.BD: access to a debug register under DR7.GD.
const DR6_BD: u64 = 1 << 13;
/// DR7.GD.
const DR7_GD: u64 = 1 << 13;

/// Nested exceptions that are delivered one after the other at most. Some processors loop here for ever.
const MAX_NESTED: usize = 16;

/// What asks for a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An exception. `fault`: the instruction is to be executed again.
    Exception {
        fault: bool,
    },
    /// A maskable interrupt.
    External,
    Nmi,
    /// INT n.
    Int,
    /// INT3.
    Int3,
    /// INTO.
    Into,
    /// INT1.
    Icebp,
}

impl Source {
    /// The program asks: the gate's privilege level counts, and faults are not external events.
    pub(crate) fn is_software(self) -> bool {
        matches!(self, Self::Int | Self::Int3 | Self::Into)
    }
}

/// An interrupt or exception on its way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    vector: u8,
    source: Source,
    code: Option<u32>,
    /// RFLAGS as they are pushed.
    flags: u64,
}

impl Event {
    /// Error code of a fault about this vector's gate.
    fn gate_code(&self) -> u16 {
        u16::from(self.vector) * 8 + 2
    }
}

/// How two exceptions combine (SDM vol. 3 table 6-4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    Double,
}

fn class(vector: Vector) -> Class {
    match vector {
        Vector::De | Vector::Ts | Vector::Np | Vector::Ss | Vector::Gp => Class::Contributory,
        Vector::Pf => Class::PageFault,
        Vector::Df => Class::Double,
        _ => Class::Benign,
    }
}

/// What is delivered when `second` is raised by the delivery of `first`. `None` is shutdown.
fn combine(first: Exception, second: Exception) -> Option<Exception> {
    match (class(first.vector), class(second.vector)) {
        (Class::Double, _) => None,
        (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Some(Exception::with_code(Vector::Df, 0))
        }
        _ => Some(second),
    }
}

/// Whether an exception reports the instruction that it interrupts, before its execution.
fn is_fault(exception: &Exception) -> bool {
    match exception.vector {
        Vector::Db => exception.info & DR6_BD != 0,
        Vector::Bp | Vector::Of | Vector::Nmi | Vector::Df | Vector::Mc => false,
        _ => true,
    }
}

impl Cpu {
    /// Delivers an exception, and what follows from its delivery, down to shutdown.
    pub(crate) fn deliver(&mut self, exception: Exception) {
        self.last_exception = Some((exception, self.rip()));
        // What an instruction that did not finish has watched is not reported.
        self.boundary.event.debug_trap = 0;
        let mut current = exception;
        for _ in 0..MAX_NESTED {
            self.delivering = Some(current);
            self.note_exception(&current);
            let code = current.vector.has_error_code().then_some(current.code);
            let source = Source::Exception {
                fault: is_fault(&current),
            };
            if self.interrupt(current.vector as u8, source, code).is_ok() {
                self.delivering = None;
                return;
            }
            let nested = self.exc;
            self.note_exception(&nested);
            match combine(current, nested) {
                Some(next) => current = next,
                None => break,
            }
        }
        self.delivering = None;
        self.activity = cpu_model::Activity::Shutdown;
        self.end_block();
    }

    /// Sets the registers that describe an exception.
    fn note_exception(&mut self, exception: &Exception) {
        match exception.vector {
            Vector::Pf => self.cr2 = exception.info,
            Vector::Db => {
                self.dr[4] = self.dr[4] & !DR6_B | exception.info;
                self.dr[5] &= !DR7_GD;
            }
            _ => {}
        }
    }

    /// Goes to the handler of `vector`. On a fault nothing has changed but accessed bits, or the processor is in the new
    /// task already.
    pub(crate) fn interrupt(&mut self, vector: u8, source: Source, code: Option<u32>) -> R {
        if source == Source::Nmi {
            self.boundary.event.nmi_blocked = true;
        }
        let restart = matches!(source, Source::Exception { fault: true });
        let flags = self.rflags() | if restart { flags::RF } else { 0 };
        let event = Event {
            vector,
            source,
            code,
            flags,
        };
        let result = if self.protected() {
            self.through_idt(&event)
        } else {
            self.through_ivt(&event)
        };
        let names_selector = matches!(self.exc.vector, Vector::Ts | Vector::Np | Vector::Ss | Vector::Gp);
        if result.is_err() && names_selector && !source.is_software() {
            self.exc.code |= 1;
        }
        self.end_block();
        result
    }

    /// Real mode.
    fn through_ivt(&mut self, event: &Event) -> R {
        let at = u64::from(event.vector) * 4;
        if at + 3 > self.idtr.limit.into() {
            return self.gp(event.gate_code());
        }
        let entry = self.read_sys::<u32>(self.idtr.base.wrapping_add(at))?;
        self.attempt(|cpu| {
            cpu.push(event.flags as u16)?;
            cpu.push(cpu.segs[CS].selector)?;
            cpu.push(cpu.rip() as u16)?;
            let selector = (entry >> 16) as u16;
            cpu.segs[CS].selector = selector;
            cpu.segs[CS].base = u64::from(selector) << 4;
            cpu.set_rip((entry & 0xffff).into());
            cpu.sysflags &= !(flags::IF | flags::TF | flags::AC | flags::RF);
            cpu.update_mode();
            Ok(())
        })
    }

    /// Protected, virtual-8086 and long mode.
    fn through_idt(&mut self, event: &Event) -> R {
        let long = self.long_mode();
        let bytes = if long { 16 } else { 8 };
        let offset = u64::from(event.vector) * bytes;
        if offset + bytes - 1 > self.idtr.limit.into() {
            return self.gp(event.gate_code());
        }
        let at = self.idtr.base.wrapping_add(offset);
        let gate = Descriptor(self.read_sys(at)?);
        let good = match gate.system() {
            Some(system::INTERRUPT32 | system::TRAP32) => true,
            Some(system::INTERRUPT16 | system::TRAP16 | system::TASK_GATE) => !long,
            _ => false,
        };
        if !good || event.source.is_software() && gate.dpl() < self.cpl {
            return self.gp(event.gate_code());
        }
        if !gate.present() {
            return self.raise(Exception::with_code(Vector::Np, event.gate_code().into()));
        }
        if gate.system() == Some(system::TASK_GATE) {
            return self.switch_by_gate(gate, event);
        }
        if long {
            let top = self.read_sys::<u32>(at.wrapping_add(8))?;
            return self.attempt(|cpu| cpu.enter_long(gate, top, event));
        }
        self.attempt(|cpu| match gate.system() {
            Some(system::INTERRUPT32 | system::TRAP32) => cpu.enter_legacy::<u32>(gate, event),
            _ => cpu.enter_legacy::<u16>(gate, event),
        })
    }

    /// RFLAGS in the handler.
    fn mask_flags(&mut self, gate: Descriptor) {
        self.sysflags &= !(flags::TF | flags::VM | flags::RF | flags::NT);
        if matches!(gate.system(), Some(system::INTERRUPT32 | system::INTERRUPT16)) {
            self.sysflags &= !flags::IF;
        }
    }

    /// Through an interrupt or trap gate in legacy mode.
    fn enter_legacy<T: Int>(&mut self, gate: Descriptor, event: &Event) -> R {
        let code = self.gate_code_segment(gate)?;
        let offset = u64::from(if T::BITS == 16 {
            gate.gate_offset() & 0xffff
        } else {
            gate.gate_offset()
        });
        let from_v86 = self.v86();
        let cpl = if code.desc.is_conforming() {
            self.cpl
        } else {
            code.desc.dpl()
        };
        if from_v86 && cpl != 0 {
            return self.selector_fault(Vector::Gp, code.selector);
        }
        let old = self.return_point();
        if cpl < self.cpl {
            let segments = self.segs;
            self.sysflags &= !flags::VM;
            self.switch_stack(cpl)?;
            self.set_code_segment(&code, cpl)?;
            if from_v86 {
                for register in [crate::cpu::GS, crate::cpu::FS, crate::cpu::DS, crate::cpu::ES] {
                    self.push_inner(T::from_u64(segments[register].selector.into()))?;
                }
                self.clear_data_segments();
            }
            self.push_inner(T::from_u64(old.ss.into()))?;
            self.push_inner(T::from_u64(old.sp))?;
            self.push_frame::<T>(&old, event)
                .or_else(|brk| self.blame_new_stack(brk))?;
        } else {
            self.push_frame::<T>(&old, event)?;
            self.set_code_segment(&code, cpl)?;
        }
        if offset > self.segs[CS].limit.into() {
            return self.gp(0);
        }
        self.set_rip(offset);
        self.mask_flags(gate);
        self.update_mode();
        Ok(())
    }

    fn push_frame<T: Int>(&mut self, old: &frame::ReturnPoint, event: &Event) -> R {
        self.push(T::from_u64(event.flags))?;
        self.push(T::from_u64(old.cs.into()))?;
        self.push(T::from_u64(old.rip))?;
        match event.code {
            Some(code) => self.push(T::from_u64(code.into())),
            None => Ok(()),
        }
    }

    /// Through a gate in long mode: always to 64-bit code, with SS and RSP pushed, on an aligned stack.
    fn enter_long(&mut self, gate: Descriptor, top: u32, event: &Event) -> R {
        let code = self.gate_code_segment(gate)?;
        let offset = u64::from(top) << 32 | u64::from(gate.gate_offset());
        let cpl = if code.desc.is_conforming() {
            self.cpl
        } else {
            code.desc.dpl()
        };
        let old = self.return_point();
        let sp = match gate.gate_ist() {
            0 if cpl < self.cpl => self.tss_stack64(4 + 8 * u64::from(cpl))?,
            0 => old.sp,
            ist => self.tss_stack64(0x1c + 8 * u64::from(ist))?,
        };
        if !self.canonical(offset) {
            return self.gp(0);
        }
        if cpl < self.cpl {
            self.segs[crate::cpu::SS] = crate::ops::segment::null_stack(cpl.into(), cpl);
        }
        self.set_code_segment(&code, cpl)?;
        self.regs[crate::cpu::RSP] = sp & !15;
        self.push(u64::from(old.ss))?;
        self.push(old.sp)?;
        self.push_frame::<u64>(&old, event)?;
        self.set_rip(offset);
        self.mask_flags(gate);
        self.update_mode();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
