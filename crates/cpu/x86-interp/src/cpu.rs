//! The processor's state as the handlers see it, and what is derived from it.

use std::ptr::NonNull;
use std::sync::Arc;

use cpu_model::Activity;
use cpu_model::CpuBoard;
use cpu_model::CpuPolicy;
use cpu_model::Feature;
use cpu_model::FpuState;
use cpu_model::Msrs;
use cpu_model::PendingEvent;
use cpu_model::SegmentState;
use cpu_model::Signals;
use guest_memory::GuestMemory;
use x86_isa::Exception;
use x86_isa::Seg;
use x86_isa::attr;
use x86_isa::cr0;
use x86_isa::cr4;
use x86_isa::efer;
use x86_isa::flags;

use crate::engine::Peer;
use crate::engine::Shared;
use crate::flags::LazyFlags;
use crate::insn::DInsn;
use crate::insn::RIP;
use crate::int::Int;
use crate::mmu::Tlb;
use crate::native::Native;
use crate::ops::system::Steal;

pub(crate) const RAX: usize = 0;
pub(crate) const RCX: usize = 1;
pub(crate) const RDX: usize = 2;
pub(crate) const RBX: usize = 3;
pub(crate) const RSP: usize = 4;
pub(crate) const RBP: usize = 5;
pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

pub(crate) const ES: usize = Seg::Es as usize;
pub(crate) const CS: usize = Seg::Cs as usize;
pub(crate) const SS: usize = Seg::Ss as usize;
pub(crate) const DS: usize = Seg::Ds as usize;
pub(crate) const FS: usize = Seg::Fs as usize;
pub(crate) const GS: usize = Seg::Gs as usize;

/// Reads through this segment need no check.
pub(crate) const SEG_READ: u8 = 1;
/// Writes through this segment need no check.
pub(crate) const SEG_WRITE: u8 = 2;

/// What an instruction that uses floating-point or vector state must ask first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FpuGate {
    /// x87 instructions raise #NM (CR0.EM or CR0.TS).
    pub(crate) x87_nm: bool,
    /// WAIT raises #NM (CR0.MP and CR0.TS).
    pub(crate) wait_nm: bool,
    /// MMX and SSE instructions raise #UD (CR0.EM; for SSE also CR4.OSFXSR clear).
    pub(crate) mmx_ud: bool,
    /// SSE instructions raise #UD.
    pub(crate) sse_ud: bool,
    /// AVX instructions raise #UD (CR4.OSXSAVE clear, XCR0 without SSE and AVX, real or virtual-8086 mode).
    pub(crate) avx_ud: bool,
    /// MMX, SSE and AVX instructions raise #NM (CR0.TS).
    pub(crate) vec_nm: bool,
}

/// Events and inhibitions between instructions that the hot path tests with one load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Boundary {
    pub(crate) event: PendingEvent,
    /// The instruction just executed does not raise the single-step trap though TF was set before it.
    pub(crate) no_step: bool,
}

pub(crate) struct Cpu {
    // Hot state
    /// GPRs, then the zero register, then RIP.
    pub(crate) regs: [u64; 18],
    pub(crate) lazy: LazyFlags,
    /// One past the last instruction of the running block; null ends the block after the current instruction.
    pub(crate) block_end: *const DInsn,
    /// Segment bases as address computation uses them: zero for the flat segments of 64-bit mode.
    pub(crate) ea_base: [u64; 6],
    /// [`SEG_READ`] and [`SEG_WRITE`] by segment.
    pub(crate) seg_ok: [u8; 6],
    /// All ones in 64-bit mode, else 32 bits.
    pub(crate) lin_mask: u64,
    /// Width of the stack pointer.
    pub(crate) sp_mask: u64,
    /// Which bank of the data TLB the current privilege uses.
    pub(crate) bank: usize,
    pub(crate) tlb: Tlb,
    pub(crate) cpl: u8,
    /// Code size: 16, 32 or 64.
    pub(crate) bits: u8,
    pub(crate) fpu_gate: FpuGate,
    /// Changes whenever something does that SYSCALL, SYSRET or the code behind them depend on, but for privilege, flags
    /// and addresses. Never zero.
    pub(crate) config: u64,
    pub(crate) exc: Exception,

    // Architectural state
    /// RFLAGS but for the arithmetic flags, which are in `lazy`.
    pub(crate) sysflags: u64,
    pub(crate) segs: [SegmentState; 6],
    pub(crate) ldtr: SegmentState,
    pub(crate) tr: SegmentState,
    pub(crate) gdtr: cpu_model::DescriptorTable,
    pub(crate) idtr: cpu_model::DescriptorTable,
    pub(crate) cr0: u64,
    pub(crate) cr2: u64,
    pub(crate) cr3: u64,
    pub(crate) cr4: u64,
    pub(crate) xcr0: u64,
    pub(crate) pdptr: [u64; 4],
    /// DR0 to DR3, DR6, DR7.
    pub(crate) dr: [u64; 6],
    pub(crate) pkru: u32,
    /// YMM registers and MXCSR are always right; the x87 part only while `native` does not hold it in the host's FPU.
    pub(crate) fpu: Box<FpuState>,
    pub(crate) msrs: Box<Msrs>,
    pub(crate) activity: Activity,
    pub(crate) boundary: Boundary,
    /// The exception being delivered, for double faults.
    pub(crate) delivering: Option<Exception>,
    /// The last exception that was delivered, with its RIP, for reports.
    pub(crate) last_exception: Option<(Exception, u64)>,

    // Wiring
    pub(crate) id: u32,
    pub(crate) native: Native,
    pub(crate) policy: Arc<CpuPolicy>,
    pub(crate) mem: Arc<GuestMemory>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) peer: Arc<Peer>,
    /// The board of the `run` in progress.
    pub(crate) board: Option<NonNull<dyn CpuBoard>>,
    pub(crate) steal: Steal,
    /// Instructions executed since the start, for budgets and inspection.
    pub(crate) executed: u64,
}

// SAFETY: `block_end` and `board` are only set while `run` is on the stack, on the one thread that runs the vCPU; the
// other pointers inside lead to memory that this vCPU owns or that is shared with atomic access.
unsafe impl Send for Cpu {}

impl Cpu {
    /// Reads a register by byte offset.
    #[inline(always)]
    pub(crate) fn r<T: Int>(&self, offset: u8) -> T {
        debug_assert!(offset as usize + T::BYTES as usize <= 18 * 8);
        // SAFETY: the decoder only makes offsets inside the register file.
        unsafe { T::load(self.regs.as_ptr().cast::<u8>().add(offset as usize)) }
    }

    /// Writes a register by byte offset; 32-bit values clear the upper half.
    #[inline(always)]
    pub(crate) fn w<T: Int>(&mut self, offset: u8, value: T) {
        debug_assert!(offset as usize + T::BYTES as usize <= 18 * 8);
        // SAFETY: as for `r`; slots of 32- and 64-bit operands are whole.
        unsafe { T::store_reg(self.regs.as_mut_ptr().cast::<u8>().add(offset as usize), value) }
    }

    /// Reads GPR number `index`.
    #[inline(always)]
    pub(crate) fn gpr<T: Int>(&self, index: usize) -> T {
        self.r((index * 8) as u8)
    }

    /// Writes GPR number `index`.
    #[inline(always)]
    pub(crate) fn set_gpr<T: Int>(&mut self, index: usize, value: T) {
        self.w((index * 8) as u8, value);
    }

    #[inline(always)]
    pub(crate) fn rip(&self) -> u64 {
        self.regs[RIP]
    }

    #[inline(always)]
    pub(crate) fn set_rip(&mut self, rip: u64) {
        self.regs[RIP] = rip;
    }

    /// The board of the run in progress.
    #[inline(always)]
    pub(crate) fn board(&self) -> &dyn CpuBoard {
        // SAFETY: `run` sets the pointer from a reference that outlives it, and no handler runs outside `run`.
        unsafe { self.board.expect("handlers only run inside run()").as_ref() }
    }

    /// RFLAGS whole.
    pub(crate) fn rflags(&self) -> u64 {
        self.sysflags | flags::FIXED | self.lazy.bits()
    }

    /// Sets RFLAGS whole and what depends on it (not VM: see [`Self::update_mode`]).
    pub(crate) fn set_rflags(&mut self, value: u64) {
        self.lazy.set_bits(value);
        let old = self.sysflags;
        self.sysflags = value & flags::ALL & !flags::ARITH & !flags::FIXED;
        if (old ^ value) & (flags::AC | flags::VM) != 0 {
            self.update_mode();
        }
    }

    pub(crate) fn flag(&self, flag: u64) -> bool {
        self.sysflags & flag != 0
    }

    pub(crate) fn iopl(&self) -> u8 {
        (self.sysflags >> 12 & 3) as u8
    }

    pub(crate) fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    pub(crate) fn v86(&self) -> bool {
        self.sysflags & flags::VM != 0
    }

    /// Long mode is active (64-bit or compatibility).
    pub(crate) fn long_mode(&self) -> bool {
        self.msrs.efer & efer::LMA != 0
    }

    /// 64-bit mode.
    #[inline(always)]
    pub(crate) fn is64(&self) -> bool {
        self.bits == 64
    }

    pub(crate) fn has(&self, feature: Feature) -> bool {
        self.policy.has(feature)
    }

    /// Recomputes all that follows from CR0, CR4, EFER, RFLAGS.VM/AC and the segment registers: privilege, code size, stack
    /// width, segment short cuts, TLB bank, and what floating-point instructions may do. Called after any of them
    /// changed.
    pub(crate) fn update_mode(&mut self) {
        self.cpl = self.compute_cpl();
        let cs = self.segs[CS].attr;
        self.bits = match () {
            () if self.long_mode() && cs & attr::L != 0 => 64,
            () if self.protected() && !self.v86() && cs & attr::DB != 0 => 32,
            // Real mode keeps the D bit of the hidden part as well ("unreal" code segments).
            () if !self.protected() && cs & attr::DB != 0 => 32,
            () => 16,
        };
        let is64 = self.bits == 64;
        self.lin_mask = if is64 { u64::MAX } else { 0xffff_ffff };
        self.sp_mask = match () {
            () if is64 => u64::MAX,
            () if self.segs[SS].attr & attr::DB != 0 => 0xffff_ffff,
            () => 0xffff,
        };
        let align_checks = self.align_checks();
        for i in 0..6 {
            let base = self.segs[i].base;
            self.ea_base[i] = if is64 && i < FS { 0 } else { base };
            self.seg_ok[i] = match () {
                () if align_checks => 0,
                () if is64 => SEG_READ | SEG_WRITE,
                () => flat_rights(&self.segs[i]),
            };
        }
        self.bank = self.compute_bank();
        self.update_fpu_gate();
        self.block_end = std::ptr::null();
    }

    fn compute_cpl(&self) -> u8 {
        if !self.protected() {
            0
        } else if self.v86() {
            3
        } else {
            (self.segs[SS].attr >> attr::DPL_SHIFT & 3) as u8
        }
    }

    /// Whether unaligned accesses raise #AC.
    pub(crate) fn align_checks(&self) -> bool {
        self.cr0 & cr0::AM != 0 && self.sysflags & flags::AC != 0 && self.cpl == 3
    }

    fn compute_bank(&self) -> usize {
        if self.cpl == 3 {
            Tlb::USER
        } else if self.cr4 & cr4::SMAP != 0 && self.sysflags & flags::AC != 0 {
            Tlb::SUPERVISOR_AC
        } else {
            Tlb::SUPERVISOR
        }
    }

    /// RFLAGS.AC changed by STAC or CLAC: only the bank follows.
    pub(crate) fn update_bank(&mut self) {
        self.bank = self.compute_bank();
    }

    pub(crate) fn update_fpu_gate(&mut self) {
        let on = |bit| self.cr0 & bit != 0;
        let em = on(cr0::EM);
        let xcr0_avx = self.xcr0 & 6 == 6;
        let gate = FpuGate {
            x87_nm: em || on(cr0::TS),
            wait_nm: on(cr0::MP) && on(cr0::TS),
            mmx_ud: em,
            sse_ud: em || self.cr4 & cr4::OSFXSR == 0,
            avx_ud: self.cr4 & cr4::OSXSAVE == 0 || !xcr0_avx || !self.protected() || self.v86(),
            vec_nm: on(cr0::TS),
        };
        if gate != self.fpu_gate {
            self.fpu_gate = gate;
            self.configured();
        }
    }

    /// See [`Self::config`].
    pub(crate) fn configured(&mut self) {
        self.config += 1;
    }

    /// Ends the running block after the current instruction.
    pub(crate) fn end_block(&mut self) {
        self.block_end = std::ptr::null();
    }
}

/// Which accesses through a legacy segment can skip all checks: a present, expand-up segment that reaches over the
/// whole 4 GiB.
fn flat_rights(seg: &SegmentState) -> u8 {
    let a = seg.attr;
    if a & attr::UNUSABLE != 0 || a & (attr::P | attr::S) != attr::P | attr::S || seg.limit != u32::MAX {
        return 0;
    }
    if a & attr::CODE != 0 {
        return if a & attr::WRITABLE != 0 { SEG_READ } else { 0 };
    }
    match a & (attr::CONFORMING | attr::WRITABLE) {
        0 => SEG_READ,
        x if x == attr::WRITABLE => SEG_READ | SEG_WRITE,
        _ => 0,
    }
}
