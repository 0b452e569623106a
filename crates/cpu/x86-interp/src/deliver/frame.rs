//! What changes of privilege level have in common: undoing them when they fault, inner stacks from the TSS, the checks of
//! a gate's code segment.
//!
//! Spec: SDM vol. 3 §5.8.5 (stack switching), §6.12.1, §6.14.2-6.14.5, §7.7 (64-bit TSS).

use cpu_model::SegmentState;
use x86_isa::Descriptor;
use x86_isa::Exception;
use x86_isa::Selector;
use x86_isa::Vector;
use x86_isa::attr;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::cpu::RSP;
use crate::cpu::SS;
use crate::flags::LazyFlags;
use crate::insn::Brk;
use crate::insn::R;
use crate::int::Int;
use crate::ops::segment::Found;

/// Where the interrupted program goes on.
pub(crate) struct ReturnPoint {
    pub(crate) cs: u16,
    pub(crate) rip: u64,
    pub(crate) ss: u16,
    pub(crate) sp: u64,
}

/// What a transfer of control changes.
struct Checkpoint {
    segs: [SegmentState; 6],
    rsp: u64,
    rip: u64,
    sysflags: u64,
    lazy: LazyFlags,
}

impl Cpu {
    /// Runs `transfer`; if it faults, registers, flags and mode are as before.
    pub(crate) fn attempt<T>(&mut self, transfer: impl FnOnce(&mut Self) -> R<T>) -> R<T> {
        let saved = Checkpoint {
            segs: self.segs,
            rsp: self.regs[RSP],
            rip: self.rip(),
            sysflags: self.sysflags,
            lazy: self.lazy,
        };
        let result = transfer(self);
        if matches!(result, Err(Brk::Fault)) {
            self.segs = saved.segs;
            self.regs[RSP] = saved.rsp;
            self.set_rip(saved.rip);
            self.sysflags = saved.sysflags;
            self.lazy = saved.lazy;
            self.update_mode();
        }
        result
    }

    pub(crate) fn return_point(&self) -> ReturnPoint {
        ReturnPoint {
            cs: self.segs[CS].selector,
            rip: self.rip(),
            ss: self.segs[SS].selector,
            sp: self.regs[RSP],
        }
    }

    /// The code segment of an interrupt gate: a handler runs at the same or an inner level.
    pub(super) fn gate_code_segment(&mut self, gate: Descriptor) -> R<Found> {
        let selector = gate.gate_selector();
        if selector.is_null() {
            return self.gp(0);
        }
        let code = self.descriptor(selector, Vector::Gp)?;
        let wrong_mode = self.long_mode() && (!code.desc.long() || code.desc.db());
        if !code.desc.is_code() || code.desc.dpl() > self.cpl || wrong_mode {
            return self.selector_fault(Vector::Gp, selector);
        }
        if !code.desc.present() {
            return self.selector_fault(Vector::Np, selector);
        }
        Ok(code)
    }

    /// Loads CS for privilege level `cpl`. SS must be that of the level already.
    pub(crate) fn set_code_segment(&mut self, code: &Found, cpl: u8) -> R {
        self.set_accessed(code)?;
        self.segs[CS] = SegmentState {
            selector: code.selector.with_rpl(cpl).0,
            ..code.hidden()
        };
        self.update_mode();
        Ok(())
    }

    /// #TS naming the present TSS: it is too short.
    fn short_tss<T>(&mut self) -> R<T> {
        self.selector_fault(Vector::Ts, Selector(self.tr.selector))
    }

    /// Loads SS:ESP for the inner level `cpl` from the present TSS.
    pub(crate) fn switch_stack(&mut self, cpl: u8) -> R {
        let tss = self.tr;
        let wide = tss.attr & 8 != 0;
        let at = if wide {
            4 + 8 * u64::from(cpl)
        } else {
            2 + 4 * u64::from(cpl)
        };
        if at + if wide { 5 } else { 3 } > tss.limit.into() {
            return self.short_tss();
        }
        let sp = if wide {
            self.read_sys::<u32>(tss.base + at)?
        } else {
            self.read_sys::<u16>(tss.base + at)?.into()
        };
        let selector = self.read_sys::<u16>(tss.base + at + if wide { 4 } else { 2 })?;
        let stack = self.stack_segment(Selector(selector), cpl, Vector::Ts)?;
        self.segs[SS] = stack;
        self.update_mode();
        // A 16-bit stack leaves the upper half of ESP as it is.
        let keep = if stack.attr & attr::DB != 0 {
            0
        } else {
            self.regs[RSP] & 0xffff_0000
        };
        self.regs[RSP] = keep | u64::from(sp) & self.sp_mask;
        Ok(())
    }

    /// A stack pointer of the 64-bit TSS, at offset `at`.
    pub(crate) fn tss_stack64(&mut self, at: u64) -> R<u64> {
        let tss = self.tr;
        if at + 7 > tss.limit.into() {
            return self.short_tss();
        }
        let sp = self.read_sys::<u64>(tss.base.wrapping_add(at))?;
        if !self.canonical(sp) {
            return self.raise(Exception::with_code(Vector::Ss, 0));
        }
        Ok(sp)
    }

    /// Pushes on a stack that was just switched to.
    pub(crate) fn push_inner<T: Int>(&mut self, value: T) -> R {
        self.push(value).or_else(|brk| self.blame_new_stack(brk))
    }

    /// #SS of a stack just switched to names its selector.
    pub(crate) fn blame_new_stack<T>(&mut self, brk: Brk) -> R<T> {
        if self.exc.vector == Vector::Ss {
            self.exc.code = Selector(self.segs[SS].selector).code().into();
        }
        Err(brk)
    }
}
