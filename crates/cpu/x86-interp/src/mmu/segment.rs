//! From effective to linear address: segment limits and rights, canonical form, alignment.

use x86_isa::Exception;
use x86_isa::Vector;
use x86_isa::attr;
use x86_isa::cr4;

use crate::cpu::Cpu;
use crate::cpu::SEG_READ;
use crate::cpu::SEG_WRITE;
use crate::cpu::SS;
use crate::insn::DInsn;
use crate::insn::R;
use crate::seam::Reach;

impl Cpu {
    /// The effective address of an instruction's memory operand, cut to the address size.
    #[inline(always)]
    pub(crate) fn ea(&self, d: &DInsn) -> u64 {
        debug_assert!(d.base < 18 && d.index < 18);
        // SAFETY: the decoder only makes register numbers inside the file.
        let (base, index) = unsafe {
            (
                *self.regs.get_unchecked(d.base as usize),
                *self.regs.get_unchecked(d.index as usize),
            )
        };
        let ea = base.wrapping_add(index << d.scale).wrapping_add(d.disp as i64 as u64);
        ea << d.cut >> d.cut
    }

    /// The linear address of offset `off` in segment `seg` for a read of `size` bytes.
    #[inline(always)]
    pub(crate) fn lin_read(&mut self, seg: u8, off: u64, size: u64) -> R<u64> {
        if self.seg_ok[seg as usize] & SEG_READ != 0 {
            Ok(self.ea_base[seg as usize].wrapping_add(off) & self.lin_mask)
        } else {
            self.lin_checked(seg as usize, off, size, false)
        }
    }

    /// The linear address of offset `off` in segment `seg` for a write of `size` bytes.
    #[inline(always)]
    pub(crate) fn lin_write(&mut self, seg: u8, off: u64, size: u64) -> R<u64> {
        if self.seg_ok[seg as usize] & SEG_WRITE != 0 {
            Ok(self.ea_base[seg as usize].wrapping_add(off) & self.lin_mask)
        } else {
            self.lin_checked(seg as usize, off, size, true)
        }
    }

    #[cold]
    #[inline(never)]
    fn lin_checked(&mut self, seg: usize, off: u64, size: u64, write: bool) -> R<u64> {
        if !self.is64() && !self.segment_allows(seg, off, size, write) {
            return self.segment_fault(seg);
        }
        let lin = self.ea_base[seg].wrapping_add(off) & self.lin_mask;
        if self.align_checks() && size > 1 && lin & (size.min(8) - 1) != 0 {
            // A non-canonical address is the graver fault.
            if self.is64() && !self.canonical(lin) {
                return self.segment_fault(seg);
            }
            return self.raise(Exception::with_code(Vector::Ac, 0));
        }
        Ok(lin)
    }

    /// #SS(0) for the stack segment, #GP(0) for the others.
    #[cold]
    pub(crate) fn segment_fault<T>(&mut self, seg: usize) -> R<T> {
        let vector = if seg == SS { Vector::Ss } else { Vector::Gp };
        self.raise(Exception::with_code(vector, 0))
    }

    /// SDM vol. 3 §5.3-5.5: limit and type checks of a legacy-mode access.
    fn segment_allows(&self, seg: usize, off: u64, size: u64, write: bool) -> bool {
        let s = &self.segs[seg];
        let a = s.attr;
        if self.protected() && !self.v86() {
            let code = a & attr::CODE != 0;
            let rw = a & attr::WRITABLE != 0;
            let refused = if write { code || !rw } else { code && !rw };
            if a & attr::UNUSABLE != 0 || refused {
                return false;
            }
        }
        let Some(last) = off.checked_add(size - 1) else {
            return false;
        };
        let expand_down = a & (attr::CODE | attr::CONFORMING) == attr::CONFORMING;
        if expand_down {
            let top = if a & attr::DB != 0 { 0xffff_ffff } else { 0xffff };
            off > s.limit.into() && last <= top
        } else {
            last <= s.limit.into()
        }
    }

    /// What accesses through segment register `n` may do; the same rules as in [`Self::segment_allows`].
    pub(crate) fn reach(&self, n: usize) -> Reach {
        let a = self.segs[n].attr;
        let code = a & attr::CODE != 0;
        let writable = a & attr::WRITABLE != 0;
        let expand_down = a & (attr::CODE | attr::CONFORMING) == attr::CONFORMING;
        if !self.protected() || self.v86() {
            return if expand_down { Reach::None } else { Reach::Limited };
        }
        match () {
            () if self.seg_ok[n] == SEG_READ | SEG_WRITE => Reach::Whole,
            () if a & attr::UNUSABLE != 0 || expand_down || code && !writable => Reach::None,
            () if code || !writable => Reach::ReadOnly,
            () => Reach::Limited,
        }
    }

    /// Whether an address is canonical in the present paging mode.
    #[inline]
    pub(crate) fn canonical(&self, address: u64) -> bool {
        let unused = if self.cr4 & cr4::LA57 != 0 { 64 - 57 } else { 64 - 48 };
        (address << unused) as i64 >> unused == address as i64
    }
}
