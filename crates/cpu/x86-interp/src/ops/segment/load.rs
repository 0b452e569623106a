//! From selector to segment register: table look-up, checks, the hidden part.
//!
//! Spec: SDM vol. 3 §3.4.2-3.4.5, §5.4-5.7, §20.1.1 (real mode), §20.2 (virtual-8086), §5.2.1 (64-bit mode).

use cpu_model::SegmentState;
use x86_isa::Descriptor;
use x86_isa::Exception;
use x86_isa::Selector;
use x86_isa::Vector;
use x86_isa::attr;

use crate::cpu::Cpu;
use crate::cpu::DS;
use crate::cpu::ES;
use crate::cpu::FS;
use crate::cpu::GS;
use crate::cpu::SS;
use crate::insn::R;

/// A descriptor and where it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) selector: Selector,
    pub(crate) desc: Descriptor,
    /// Linear address.
    pub(crate) at: u64,
}

impl Found {
    /// What a segment register holds after loading it, with the accessed bit.
    pub(crate) fn hidden(&self) -> SegmentState {
        SegmentState {
            selector: self.selector.0,
            base: self.desc.base().into(),
            limit: self.desc.limit(),
            attr: self.desc.attr() | attr::ACCESSED,
        }
    }
}

/// A segment register of virtual-8086 mode.
pub(crate) fn v86_segment(selector: u16) -> SegmentState {
    SegmentState {
        selector,
        base: u64::from(selector) << 4,
        limit: 0xffff,
        attr: 0xf3,
    }
}

/// A segment register with a null selector.
fn null_segment(selector: u16) -> SegmentState {
    SegmentState {
        selector,
        base: 0,
        limit: 0,
        attr: attr::UNUSABLE,
    }
}

/// SS with a null selector in 64-bit mode: it still tells the privilege level.
pub(crate) fn null_stack(selector: u16, cpl: u8) -> SegmentState {
    SegmentState {
        attr: attr::UNUSABLE | u16::from(cpl) << attr::DPL_SHIFT,
        ..null_segment(selector)
    }
}

impl Cpu {
    /// An exception whose error code names a selector.
    #[cold]
    pub(crate) fn selector_fault<T>(&mut self, vector: Vector, selector: Selector) -> R<T> {
        self.raise(Exception::with_code(vector, selector.code().into()))
    }

    /// Looks a selector up in its table. `None` when it lies beyond the table's limit or there is no table.
    pub(crate) fn find_descriptor(&mut self, selector: Selector) -> R<Option<Found>> {
        let (base, limit) = if selector.is_local() {
            if self.ldtr.attr & attr::UNUSABLE != 0 {
                return Ok(None);
            }
            (self.ldtr.base, u64::from(self.ldtr.limit))
        } else {
            (self.gdtr.base, u64::from(self.gdtr.limit))
        };
        if selector.offset() + 7 > limit {
            return Ok(None);
        }
        let at = base.wrapping_add(selector.offset());
        let desc = Descriptor(self.read_sys(at)?);
        Ok(Some(Found { selector, desc, at }))
    }

    /// As [`Self::find_descriptor`], with a fault for selectors without descriptor.
    pub(crate) fn descriptor(&mut self, selector: Selector, vector: Vector) -> R<Found> {
        match self.find_descriptor(selector)? {
            Some(found) => Ok(found),
            None => self.selector_fault(vector, selector),
        }
    }

    /// The upper half of a 16-byte descriptor in long mode: base or offset bits 63-32. `None` when it lies beyond the
    /// table or its type field is not zero.
    pub(crate) fn descriptor_top(&mut self, found: &Found) -> R<Option<u64>> {
        let limit = if found.selector.is_local() {
            self.ldtr.limit
        } else {
            self.gdtr.limit.into()
        };
        if found.selector.offset() + 15 > limit.into() {
            return Ok(None);
        }
        let top = self.read_sys::<u64>(found.at.wrapping_add(8))?;
        Ok((top >> 40 & 0x1f == 0).then_some(top & 0xffff_ffff))
    }

    /// Marks a code or data segment accessed.
    pub(crate) fn set_accessed(&mut self, found: &Found) -> R {
        if found.desc.attr() & attr::ACCESSED != 0 {
            return Ok(());
        }
        self.modify_sys_u8(found.at.wrapping_add(5), |byte| byte | attr::ACCESSED as u8)
    }

    /// Loads any segment register but CS, as MOV does.
    pub(crate) fn load_segment(&mut self, register: usize, selector: u16) -> R {
        let state = match () {
            () if !self.protected() => SegmentState {
                selector,
                base: u64::from(selector) << 4,
                ..self.segs[register]
            },
            () if self.v86() => v86_segment(selector),
            () if register == SS => self.mov_ss_segment(Selector(selector))?,
            () => self.data_segment(Selector(selector), Vector::Gp)?,
        };
        self.segs[register] = state;
        self.update_mode();
        Ok(())
    }

    fn mov_ss_segment(&mut self, selector: Selector) -> R<SegmentState> {
        if selector.is_null() && self.is64() && self.cpl < 3 && selector.rpl() == self.cpl {
            return Ok(null_stack(selector.0, self.cpl));
        }
        self.stack_segment(selector, self.cpl, Vector::Gp)
    }

    /// A stack segment for privilege level `cpl`. All faults but #SS have the given vector.
    pub(crate) fn stack_segment(&mut self, selector: Selector, cpl: u8, vector: Vector) -> R<SegmentState> {
        if selector.is_null() {
            return self.raise(Exception::with_code(vector, 0));
        }
        let found = self.descriptor(selector, vector)?;
        let desc = found.desc;
        if selector.rpl() != cpl || !desc.is_writable() || desc.dpl() != cpl {
            return self.selector_fault(vector, selector);
        }
        if !desc.present() {
            return self.selector_fault(Vector::Ss, selector);
        }
        self.set_accessed(&found)?;
        Ok(found.hidden())
    }

    /// A segment for ES, DS, FS or GS. All faults but #NP have the given vector.
    pub(crate) fn data_segment(&mut self, selector: Selector, vector: Vector) -> R<SegmentState> {
        if selector.is_null() {
            return Ok(null_segment(selector.0));
        }
        let found = self.descriptor(selector, vector)?;
        let desc = found.desc;
        let privileged = !desc.is_conforming() && desc.dpl() < self.cpl.max(selector.rpl());
        if !desc.is_readable() || privileged {
            return self.selector_fault(vector, selector);
        }
        if !desc.present() {
            return self.selector_fault(Vector::Np, selector);
        }
        self.set_accessed(&found)?;
        Ok(found.hidden())
    }

    /// After a return to an outer level: data segments that the new level may not use become null.
    pub(crate) fn drop_inner_segments(&mut self) {
        for register in [ES, DS, FS, GS] {
            let a = self.segs[register].attr;
            let conforming = a & (attr::CODE | attr::CONFORMING) == attr::CODE | attr::CONFORMING;
            let dpl = (a >> attr::DPL_SHIFT & 3) as u8;
            if a & attr::UNUSABLE == 0 && !conforming && dpl < self.cpl {
                // The base stays: 64-bit mode goes on using that of FS and GS.
                self.segs[register].selector = 0;
                self.segs[register].attr |= attr::UNUSABLE;
            }
        }
    }

    /// Virtual-8086 mode is left: the data segments mean nothing any more.
    pub(crate) fn clear_data_segments(&mut self) {
        for register in [ES, DS, FS, GS] {
            self.segs[register] = null_segment(0);
        }
    }
}
