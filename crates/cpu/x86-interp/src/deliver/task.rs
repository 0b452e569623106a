//! Hardware task switches, with 16- and 32-bit task-state segments.
//!
//! A fault before the new task's state is loaded leaves the old task as it was. A later one happens in the new task, at
//! its first instruction.
//!
//! Spec: SDM vol. 3 §7 (steps §7.3, checks table 7-1, NT and busy flags table 7-2).

use cpu_model::SegmentState;
use x86_isa::Descriptor;
use x86_isa::Selector;
use x86_isa::Vector;
use x86_isa::attr;
use x86_isa::cr0;
use x86_isa::cr4;
use x86_isa::descriptor::TSS_BUSY;
use x86_isa::descriptor::system;
use x86_isa::flags;

use super::Event;
use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::cpu::DS;
use crate::cpu::ES;
use crate::cpu::FS;
use crate::cpu::GS;
use crate::cpu::SS;
use crate::insn::R;
use crate::int::Int;
use crate::mmu::Tlb;
use crate::ops::segment::Found;
use crate::ops::segment::null_stack;
use crate::ops::segment::tables::no_ldt;
use crate::ops::segment::v86_segment;

/// DR6.BT: task switch to a task with its debug trap flag set.
const DR6_BT: u64 = 1 << 15;
/// DR7: local breakpoint enables, L0 to L3 and LE.
const DR7_LOCAL: u64 = 0x155;

/// What switches tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Switch {
    Jump,
    /// CALL: the new task can return.
    Call,
    /// IRET with NT set.
    Return,
    /// An interrupt or exception through a task gate.
    Gate,
}

/// Where a TSS keeps what.
struct Layout {
    /// The least limit.
    limit: u32,
    ip: u64,
    /// The general registers follow the flags, in the order of their numbers.
    flags: u64,
    gprs: u64,
    es: u64,
    ldt: u64,
    /// Bytes of a slot.
    step: u64,
}

const TSS16: Layout = Layout {
    limit: 0x2b,
    ip: 0xe,
    flags: 0x10,
    gprs: 0x12,
    es: 0x22,
    ldt: 0x2a,
    step: 2,
};
const TSS32: Layout = Layout {
    limit: 0x67,
    ip: 0x20,
    flags: 0x24,
    gprs: 0x28,
    es: 0x48,
    ldt: 0x60,
    step: 4,
};
/// CR3 in a 32-bit TSS.
const TSS32_CR3: u64 = 0x1c;
/// Debug trap flag of a 32-bit TSS.
const TSS32_TRAP: u64 = 0x64;

fn is_wide(attr: u16) -> bool {
    attr & 8 != 0
}

fn layout(attr: u16) -> &'static Layout {
    if is_wide(attr) { &TSS32 } else { &TSS16 }
}

/// What is read from the new TSS.
#[derive(Default)]
struct Task {
    wide: bool,
    ip: u64,
    flags: u64,
    gprs: [u64; 8],
    /// ES, CS, SS, DS, FS, GS.
    selectors: [u16; 6],
    ldt: u16,
    cr3: u64,
    trap: bool,
}

impl Cpu {
    /// An event through a task gate. The error code goes on the new task's stack.
    pub(super) fn switch_by_gate(&mut self, gate: Descriptor, event: &Event) -> R {
        let tss = self.gate_task(gate)?;
        self.switch_task(&tss, Switch::Gate, Some(event))
    }

    /// The TSS that a task gate leads to.
    pub(crate) fn gate_task(&mut self, gate: Descriptor) -> R<Found> {
        let selector = gate.gate_selector();
        if selector.is_local() {
            return self.selector_fault(Vector::Gp, selector);
        }
        let tss = self.descriptor(selector, Vector::Gp)?;
        self.check_available(&tss)?;
        Ok(tss)
    }

    /// A TSS that JMP, CALL and gates can switch to.
    pub(crate) fn check_available(&mut self, tss: &Found) -> R {
        if !matches!(tss.desc.system(), Some(system::TSS16 | system::TSS32)) {
            return self.selector_fault(Vector::Gp, tss.selector);
        }
        if !tss.desc.present() {
            return self.selector_fault(Vector::Np, tss.selector);
        }
        Ok(())
    }

    /// IRET with NT set: back to the task that the present one was called from.
    pub(crate) fn return_to_task(&mut self) -> R {
        let link = Selector(self.read_sys::<u16>(self.tr.base)?);
        if link.is_local() {
            return self.selector_fault(Vector::Ts, link);
        }
        let tss = self.descriptor(link, Vector::Ts)?;
        if !matches!(tss.desc.system(), Some(system::TSS16_BUSY | system::TSS32_BUSY)) {
            return self.selector_fault(Vector::Ts, link);
        }
        if !tss.desc.present() {
            return self.selector_fault(Vector::Np, link);
        }
        self.switch_task(&tss, Switch::Return, None)
    }

    /// Switches to the task of `tss`. `event` is given for gates only.
    ///
    /// When the new task faults while it is set up, the fault of a hardware event goes to the caller, which knows how
    /// exceptions combine; that of an instruction is delivered here, since the instruction is done.
    pub(crate) fn switch_task(&mut self, tss: &Found, how: Switch, event: Option<&Event>) -> R {
        let saved_flags = match how {
            Switch::Return => self.rflags() & !flags::NT,
            _ => event.map_or(self.rflags(), |event| event.flags),
        };
        let pdptr = self.check_switch(tss)?;
        self.save_task(saved_flags)?;
        let old = Selector(self.tr.selector);
        if matches!(how, Switch::Jump | Switch::Return) {
            self.set_busy(old, false)?;
        }
        let mut task = self.read_task(tss)?;
        if matches!(how, Switch::Call | Switch::Gate) {
            self.write_sys(u64::from(tss.desc.base()), old.0)?;
            task.flags |= flags::NT;
        }
        if how != Switch::Return {
            self.modify_sys_u8(tss.at.wrapping_add(5), |byte| byte | TSS_BUSY)?;
        }
        self.begin_task(tss, &task, pdptr);
        let code = event.and_then(|event| event.code);
        let result = self.load_task(&task).and_then(|()| match code {
            Some(code) if task.wide => self.push(code),
            Some(code) => self.push(code as u16),
            None => Ok(()),
        });
        if task.trap {
            self.boundary.event.debug_trap |= DR6_BT;
        }
        self.end_block();
        let instruction = event.is_none_or(|event| event.source.is_software());
        if result.is_err() && instruction {
            self.boundary.no_step = saved_flags & flags::TF != 0;
            self.deliver(self.exc);
            return Ok(());
        }
        result
    }

    /// Everything that can fault in the old task. Returns the new PAE pointers.
    fn check_switch(&mut self, tss: &Found) -> R<[u64; 4]> {
        let new = layout(tss.desc.attr());
        if tss.desc.limit() < new.limit {
            return self.selector_fault(Vector::Ts, tss.selector);
        }
        let task = self.read_task(tss)?;
        self.probe_sys_write(tss.desc.base().into(), 2)?;
        let old = self.tr;
        let saved = layout(old.attr);
        let last = saved.es + 6 * saved.step - 1;
        if u64::from(old.limit) < last {
            return self.selector_fault(Vector::Ts, Selector(old.selector));
        }
        self.probe_sys_write(old.base.wrapping_add(saved.ip), last - saved.ip + 1)?;
        if task.wide && self.cr0 & cr0::PG != 0 && self.cr4 & cr4::PAE != 0 {
            return self.read_pdptrs(task.cr3);
        }
        Ok(self.pdptr)
    }

    fn probe_sys_write(&mut self, lin: u64, len: u64) -> R {
        let bank = std::mem::replace(&mut self.bank, Tlb::SUPERVISOR);
        let result = self.probe_write(DS as u8, lin & 0xffff_ffff, len);
        self.bank = bank;
        result
    }

    /// Sets or clears the busy flag in the descriptor of a TSS.
    fn set_busy(&mut self, selector: Selector, busy: bool) -> R {
        let at = self.gdtr.base.wrapping_add(selector.offset() + 5);
        self.modify_sys_u8(at, |byte| if busy { byte | TSS_BUSY } else { byte & !TSS_BUSY })
    }

    fn save_task(&mut self, saved_flags: u64) -> R {
        if is_wide(self.tr.attr) {
            self.save_slots::<u32>(saved_flags)
        } else {
            self.save_slots::<u16>(saved_flags)
        }
    }

    fn save_slots<T: Int>(&mut self, saved_flags: u64) -> R {
        let (base, to) = (self.tr.base, layout(self.tr.attr));
        self.write_sys(base + to.ip, T::from_u64(self.rip()))?;
        self.write_sys(base + to.flags, T::from_u64(saved_flags))?;
        for i in 0..8 {
            self.write_sys(base + to.gprs + i as u64 * to.step, T::from_u64(self.regs[i]))?;
        }
        let count = if T::BITS == 32 { 6 } else { 4 };
        for i in 0..count {
            self.write_sys(base + to.es + i as u64 * to.step, self.segs[i].selector)?;
        }
        Ok(())
    }

    fn read_task(&mut self, tss: &Found) -> R<Task> {
        if is_wide(tss.desc.attr()) {
            self.read_slots::<u32>(tss)
        } else {
            self.read_slots::<u16>(tss)
        }
    }

    fn read_slots<T: Int>(&mut self, tss: &Found) -> R<Task> {
        let (base, from) = (u64::from(tss.desc.base()), layout(tss.desc.attr()));
        let mut task = Task {
            wide: T::BITS == 32,
            ..Task::default()
        };
        task.ip = self.read_sys::<T>(base + from.ip)?.u64();
        task.flags = self.read_sys::<T>(base + from.flags)?.u64();
        for i in 0..8 {
            task.gprs[i] = self.read_sys::<T>(base + from.gprs + i as u64 * from.step)?.u64();
        }
        let count = if task.wide { 6 } else { 4 };
        for i in 0..count {
            task.selectors[i] = self.read_sys::<u16>(base + from.es + i as u64 * from.step)?;
        }
        task.ldt = self.read_sys::<u16>(base + from.ldt)?;
        if task.wide {
            task.cr3 = self.read_sys::<u32>(base + TSS32_CR3)?.into();
            task.trap = self.read_sys::<u16>(base + TSS32_TRAP)? & 1 != 0;
        }
        Ok(task)
    }

    /// The point of no return: TR, CR3, flags and general registers are the new task's, and its segment registers hold
    /// selectors that are not yet looked at.
    fn begin_task(&mut self, tss: &Found, task: &Task, pdptr: [u64; 4]) {
        self.tr = SegmentState {
            selector: tss.selector.0,
            base: tss.desc.base().into(),
            limit: tss.desc.limit(),
            attr: tss.desc.attr() | u16::from(TSS_BUSY),
        };
        self.cr0 |= cr0::TS;
        if self.dr[5] & DR7_LOCAL != 0 {
            self.dr[5] &= !DR7_LOCAL;
            self.tlb.flush_all();
        }
        if task.wide && self.cr0 & cr0::PG != 0 {
            self.cr3 = task.cr3;
            self.pdptr = pdptr;
            self.tlb.forget_spaces();
            self.tlb.flush_local();
        }
        for (i, &gpr) in task.gprs.iter().enumerate() {
            self.regs[i] = gpr;
        }
        self.set_rip(task.ip);
        for (i, &selector) in task.selectors.iter().enumerate() {
            self.segs[i] = SegmentState {
                selector,
                base: 0,
                limit: 0,
                attr: attr::UNUSABLE,
            };
        }
        let cpl = Selector(task.selectors[CS]).rpl();
        self.segs[SS] = null_stack(task.selectors[SS], cpl);
        self.ldtr = no_ldt(task.ldt);
        self.set_rflags(task.flags);
        if self.v86() {
            for (i, &selector) in task.selectors.iter().enumerate() {
                self.segs[i] = v86_segment(selector);
            }
        }
        self.update_mode();
    }

    /// Loads LDTR and the segment registers.
    fn load_task(&mut self, task: &Task) -> R {
        let ldt = Selector(task.ldt);
        if !ldt.is_null() {
            self.ldtr = self.ldt_segment(ldt, Vector::Ts, Vector::Ts)?;
        }
        if !self.v86() {
            self.load_task_code(Selector(task.selectors[CS]))?;
            self.segs[SS] = self.stack_segment(Selector(task.selectors[SS]), self.cpl, Vector::Ts)?;
            for register in [DS, ES, FS, GS] {
                self.segs[register] = self.data_segment(Selector(task.selectors[register]), Vector::Ts)?;
            }
            self.update_mode();
        }
        if task.ip > self.segs[CS].limit.into() {
            return self.gp(0);
        }
        Ok(())
    }

    fn load_task_code(&mut self, selector: Selector) -> R {
        if selector.is_null() {
            return self.selector_fault(Vector::Ts, selector);
        }
        let code = self.descriptor(selector, Vector::Ts)?;
        let level = match code.desc.is_conforming() {
            true => code.desc.dpl() <= selector.rpl(),
            false => code.desc.dpl() == selector.rpl(),
        };
        if !code.desc.is_code() || !level {
            return self.selector_fault(Vector::Ts, selector);
        }
        if !code.desc.present() {
            return self.selector_fault(Vector::Np, selector);
        }
        self.set_code_segment(&code, selector.rpl())
    }
}
