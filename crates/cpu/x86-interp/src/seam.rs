//! What an engine that translates the same guest uses of the interpreter: its state at known places, its decoder, and
//! single instructions executed in its way.
//!
//! A translating engine keeps an [`InterpVcpu`] inside its own vCPU. While translated code runs, guest registers are in
//! the host's; before it calls any method here it puts them back to the places that [`layout`] names.

use std::ptr::NonNull;
use std::sync::Arc;

use cpu_model::CpuBoard;
use cpu_model::Feature;
use cpu_model::Signals;
use cpu_model::Stop;
use guest_memory::CodePage;
use iced_x86::Instruction;
use x86_isa::flags;

use crate::cpu::CS;
use crate::decode;
use crate::insn::Brk;
use crate::insn::DInsn;
use crate::mmu::ExecEntry;
pub use crate::mmu::TlbData;
pub use crate::ops::far::fast::FastCall;
use crate::vcpu::InterpVcpu;

/// Byte offsets inside an [`InterpVcpu`].
pub mod layout {
    use std::mem::offset_of;

    use cpu_model::SegmentState;

    use crate::cpu::Cpu;
    use crate::mmu::Tlb;
    use crate::mmu::layout as mmu;
    use crate::vcpu::InterpVcpu;

    const CPU: usize = offset_of!(InterpVcpu, cpu);
    const TLB: usize = CPU + offset_of!(Cpu, tlb);

    /// The 16 GPRs, a zero, RIP: eight bytes each.
    pub const REGS: usize = CPU + offset_of!(Cpu, regs);
    /// Segment bases, eight bytes each, as addresses use them.
    pub const EA_BASE: usize = CPU + offset_of!(Cpu, ea_base);
    /// RFLAGS without the arithmetic flags.
    pub const SYSFLAGS: usize = CPU + offset_of!(Cpu, sysflags);
    /// Whether the board has signalled an interrupt that was not taken: a byte.
    pub const INTERRUPT: usize = InterpVcpu::INTERRUPT;
    /// PKRU: four bytes.
    pub const PKRU: usize = CPU + offset_of!(Cpu, pkru);
    /// Pointer to the `Msrs`.
    pub const MSRS: usize = CPU + offset_of!(Cpu, msrs);
    /// The base that segment register `n` holds; [`EA_BASE`] repeats it.
    #[inline]
    #[must_use]
    pub const fn segment_base(n: usize) -> usize {
        CPU + offset_of!(Cpu, segs) + n * size_of::<SegmentState>() + offset_of!(SegmentState, base)
    }

    /// The limit in segment register `n`, granularity applied: four bytes.
    #[must_use]
    pub const fn segment_limit(n: usize) -> usize {
        CPU + offset_of!(Cpu, segs) + n * size_of::<SegmentState>() + offset_of!(SegmentState, limit)
    }

    /// Segment register `n`, with its hidden part: a `SegmentState`.
    #[must_use]
    pub const fn segment(n: usize) -> usize {
        CPU + offset_of!(Cpu, segs) + n * size_of::<SegmentState>()
    }

    /// See [`FastCall`](super::FastCall): eight bytes.
    pub const CONFIG: usize = CPU + offset_of!(Cpu, config);
    /// Privilege level: a byte.
    pub const CPL: usize = CPU + offset_of!(Cpu, cpl);
    /// The bank of the data translations that the privilege level uses: eight bytes. This and [`CPL`] are all that changes
    /// with the privilege level, in 64-bit mode without alignment checks, beside segment registers and flags.
    pub const BANK: usize = CPU + offset_of!(Cpu, bank);

    /// Bank of privilege level 3.
    pub const BANK_USER: u8 = Tlb::USER as u8;
    /// Bank of the others, where accesses to pages of level 3 are not let through by RFLAGS.AC alone.
    pub const BANK_SUPERVISOR: u8 = Tlb::SUPERVISOR as u8;

    /// The selector in segment register `n`: two bytes.
    #[must_use]
    pub const fn selector(n: usize) -> usize {
        CPU + offset_of!(Cpu, segs) + n * size_of::<SegmentState>() + offset_of!(SegmentState, selector)
    }

    /// Pointer to the `FpuState`.
    pub const FPU: usize = CPU + offset_of!(Cpu, fpu);
    /// Bytes between the banks.
    pub const TLB_BANK: usize = mmu::ENTRIES * mmu::ENTRY;
    /// Translations of a bank; slot = page number modulo this.
    pub const TLB_ENTRIES: usize = mmu::ENTRIES;
    /// log2 of the bytes of a translation.
    pub const TLB_ENTRY_SHIFT: u32 = mmu::ENTRY.trailing_zeros();
    /// In a translation: the page that may be read.
    pub const TLB_READ: usize = mmu::READ;
    /// In a translation: the page that may be written without noting.
    pub const TLB_WRITE: usize = mmu::WRITE;
    /// In a translation: host address minus virtual address.
    pub const TLB_ADDEND: usize = mmu::ADDEND;
    /// Stack pages of the banks, 16 bytes each: virtual address, host address minus virtual address.
    pub const STACK: usize = TLB + offset_of!(Tlb, stack);
}

/// What accesses through a segment may do outside 64-bit mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nothing, or something that takes more than a look at the limit: null, execute-only and expand-down segments.
    None,
    /// Read and write the whole 4 GiB.
    Whole,
    /// Read and write up to the limit.
    Limited,
    /// Read up to the limit.
    ReadOnly,
}

/// All of the processor's state that decides what the same bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    /// Code size: 16, 32 or 64.
    pub bits: u8,
    /// RDFSBASE and its kin are enabled.
    pub fs_gs_base: bool,
    /// RDTSC and RDTSCP raise #GP.
    pub no_tsc: bool,
    /// RDPKRU is enabled.
    pub pkru: bool,
    /// Privilege level.
    pub cpl: u8,
    /// Bank of the data TLB.
    pub bank: u8,
    /// x87 instructions raise #NM or #UD.
    pub no_x87: bool,
    /// MMX instructions raise #NM or #UD.
    pub no_mmx: bool,
    /// SSE instructions raise #NM or #UD.
    pub no_sse: bool,
    /// AVX instructions raise #NM or #UD.
    pub no_avx: bool,
    /// Outside 64-bit mode: CS, DS, ES and SS have base 0, and no access through DS, ES and SS needs a check.
    pub flat: bool,
    /// Outside 64-bit mode: no access through FS needs a check.
    pub fs_plain: bool,
    /// The same for GS.
    pub gs_plain: bool,
    /// Stack pointer of 32 bits (outside 64-bit mode).
    pub stack32: bool,
    /// By segment register, in the order of instructions; [`Reach::None`] throughout in 64-bit mode, and in 32-bit code that
    /// is `flat` with a stack pointer of 32 bits.
    pub reach: [Reach; 6],
    /// Unaligned accesses raise #AC.
    pub align_checks: bool,
}

/// What became of a single instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The next instruction follows, and nothing else has changed that translated code relies on.
    Next,
    /// Look at everything anew: a branch, a fault that was delivered, a change of mode.
    Elsewhere,
}

/// Memory that instructions are fetched from.
#[derive(Clone, Copy, Debug)]
pub struct CodeSource {
    /// Guest physical page.
    pub gpa: u64,
    /// Its first byte in the host.
    pub host: *const u8,
    /// Its code state.
    pub code: *const CodePage,
    entry: ExecEntry,
}

impl InterpVcpu {
    /// Keeps the data translations at `place`; [`layout`] tells how they look.
    ///
    /// # Safety
    /// `place` must be valid for writing (it need not be initialised), and used by nobody else but translated code of this
    /// vCPU, as long as the vCPU lives.
    pub unsafe fn keep_translations(&mut self, place: NonNull<TlbData>) {
        // SAFETY: as the caller promises; all bit patterns are valid translations.
        unsafe { self.cpu.tlb.move_data(place) };
    }

    /// Begins a `run`.
    pub fn begin(&mut self, board: &dyn CpuBoard) {
        self.enter(board);
    }

    /// Ends a `run`.
    pub fn end(&mut self) {
        self.leave();
    }

    /// Something is to be done before the next instruction, or it needs single-stepping.
    #[inline]
    #[must_use]
    pub fn needs_attention(&self) -> bool {
        self.cpu.signals.pending() != 0 || self.interrupt_open() || !self.quiet()
    }

    /// Ends the shadow of STI early, where no interrupt waits that it would hold back.
    #[inline]
    pub fn end_sti_shadow(&mut self) {
        if self.cpu.boundary.event.sti_shadow && self.cpu.signals.pending() == 0 && !self.interrupt_open() {
            self.cpu.boundary.event.sti_shadow = false;
        }
    }

    /// Does what other vCPUs wait for. Only between instructions.
    pub fn serve_requests(&mut self) {
        if self.cpu.peer.is_asked() {
            self.serve();
        }
    }

    /// Does what is to be done between instructions. `Some` when `run` must come back.
    pub fn attend(&mut self) -> Option<Stop> {
        self.between()
    }

    /// Whether whole blocks may run.
    #[must_use]
    pub fn runs_plain(&self) -> bool {
        self.plain()
    }

    /// Executes one instruction with all that single-stepping asks for.
    pub fn step(&mut self) {
        self.single_step();
    }

    /// Executes at most `limit` instructions, to the end of a block.
    pub fn interpret(&mut self, limit: u64) {
        match self.find_block() {
            Ok(block) => self.run_block(block, limit),
            Err(_) => self.deliver_fault(),
        }
    }

    /// Executes a block that may never come again: it is not kept.
    pub fn interpret_once(&mut self) {
        match self.find_passing_block() {
            Ok(block) => self.run_block(block, u64::MAX),
            Err(_) => self.deliver_fault(),
        }
    }

    /// Executes one decoded instruction at RIP; faults are delivered.
    #[inline]
    pub fn execute(&mut self, d: &DInsn) -> Outcome {
        let cpu = &mut self.cpu;
        let rip = cpu.rip();
        // Any address but null: handlers only ever clear it.
        cpu.block_end = std::ptr::from_ref(d);
        cpu.set_rip(rip.wrapping_add(u64::from(d.len)));
        cpu.executed += 1;
        match (d.exec)(cpu, d) {
            Ok(()) if !cpu.block_end.is_null() => Outcome::Next,
            Ok(()) | Err(Brk::Exit) => {
                if cpu.bits != 64 {
                    cpu.set_rip(cpu.rip() & 0xffff_ffff);
                }
                Outcome::Elsewhere
            }
            Err(Brk::Fault) => {
                cpu.set_rip(rip);
                cpu.executed -= 1;
                self.deliver_fault();
                Outcome::Elsewhere
            }
        }
    }

    /// Delivers the fault that [`Self::source`] has met.
    pub fn fault(&mut self) {
        self.deliver_fault();
    }

    /// Where the instruction at linear address `lin` comes from. `None` when the fetch faults; see [`Self::fault`].
    pub fn source(&mut self, lin: u64) -> Option<CodeSource> {
        let entry = self.cpu.exec_entry(lin).ok()?;
        Some(CodeSource {
            gpa: entry.gpa,
            host: entry.host,
            code: entry.code,
            entry,
        })
    }

    /// Reads code bytes from `lin` on, inside one page.
    pub fn fetch(&mut self, source: &CodeSource, lin: u64, to: &mut [u8]) {
        self.cpu.fetch_bytes(&source.entry, lin, to);
    }

    /// Says that code of bytes `first..=last` of the page is held from now on.
    pub fn hold(&mut self, source: &CodeSource, first: u64, last: u64) {
        self.hold_code(&source.entry, first, last);
    }

    /// Decodes for [`Self::execute`].
    #[must_use]
    pub fn decode(&self, ins: &Instruction) -> DInsn {
        decode::decode(ins, self.cpu.bits, &self.cpu.policy)
    }

    /// The present mode.
    #[inline]
    #[must_use]
    pub fn mode(&self) -> Mode {
        let c = &self.cpu;
        let gate = &c.fpu_gate;
        let plain = |i: usize| c.seg_ok[i] == 3 && c.ea_base[i] == 0;
        let flat = c.ea_base[CS] == 0 && c.segs[CS].limit == u32::MAX && [0, 2, 3].into_iter().all(plain);
        let stack32 = c.sp_mask == 0xffff_ffff;
        let reach = if c.bits == 64 || c.bits == 32 && flat && stack32 {
            [Reach::None; 6]
        } else {
            std::array::from_fn(|n| c.reach(n))
        };
        Mode {
            bits: c.bits,
            fs_gs_base: c.cr4 & x86_isa::cr4::FSGSBASE != 0,
            no_tsc: c.cpl > 0 && c.cr4 & x86_isa::cr4::TSD != 0,
            pkru: c.cr4 & x86_isa::cr4::PKE != 0,
            cpl: c.cpl,
            bank: c.bank as u8,
            no_x87: gate.x87_nm || gate.wait_nm,
            no_mmx: gate.mmx_ud || gate.vec_nm,
            no_sse: gate.sse_ud || gate.vec_nm,
            no_avx: gate.avx_ud || gate.vec_nm,
            flat,
            fs_plain: c.seg_ok[4] == 3,
            gs_plain: c.seg_ok[5] == 3,
            stack32,
            reach,
            align_checks: c.align_checks(),
        }
    }

    /// Generations of the code translations of the lower and the upper half of the address space.
    #[inline]
    #[must_use]
    pub fn code_generations(&self) -> [u32; 2] {
        self.cpu.tlb.code_gen
    }

    /// Forgets the code translations of the upper half, which another vCPU may have dropped.
    pub fn forget_high_code(&mut self) {
        self.cpu.tlb.forget_high_code();
    }

    /// Makes the page at `lin` the known stack page, if it may be written without noting; see [`layout::STACK`].
    #[inline]
    pub fn set_stack_page(&mut self, lin: u64) -> bool {
        let bank = self.cpu.bank;
        self.cpu.tlb.set_stack(bank, lin) || self.cpu.fill_ahead(lin, bank) && self.cpu.tlb.set_stack(bank, lin)
    }

    /// Host address minus guest address of the page that holds the `len` bytes at `lin`, if the TLB knows it and they
    /// may be accessed without more ado.
    #[inline]
    #[must_use]
    pub fn data_addend(&self, lin: u64, len: u64, write: bool) -> Option<u64> {
        let entry = self.cpu.tlb.data(self.cpu.bank, lin);
        let tag = if write { entry.write } else { entry.read };
        (lin.wrapping_sub(tag) <= 4096 - len).then_some(entry.addend)
    }

    /// The limit of the code segment, granularity applied.
    #[must_use]
    pub fn code_limit(&self) -> u32 {
        self.cpu.segs[CS].limit
    }

    /// What addresses relative to segment number `n` (as in instructions) begin with.
    #[must_use]
    pub fn segment_base(&self, n: usize) -> u64 {
        self.cpu.ea_base[n]
    }

    /// Host address minus guest address of the known stack page.
    #[inline]
    #[must_use]
    pub fn stack_addend(&self) -> u64 {
        self.cpu.tlb.stack[self.cpu.bank].addend
    }

    /// Whether the CPU model has `feature`.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.cpu.has(feature)
    }

    /// Instruction pointer.
    #[inline]
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.cpu.rip()
    }

    /// Sets the instruction pointer.
    #[inline]
    pub fn set_rip(&mut self, rip: u64) {
        self.cpu.set_rip(rip);
    }

    /// GPR number `index`.
    #[inline]
    #[must_use]
    pub fn gpr(&self, index: usize) -> u64 {
        self.cpu.regs[index]
    }

    /// Sets GPR number `index`.
    #[inline]
    pub fn set_gpr(&mut self, index: usize, value: u64) {
        self.cpu.regs[index] = value;
    }

    /// The six arithmetic flags at their places.
    #[inline]
    #[must_use]
    pub fn arith_flags(&self) -> u64 {
        self.cpu.lazy.bits()
    }

    /// Sets the six arithmetic flags.
    #[inline]
    pub fn set_arith_flags(&mut self, bits: u64) {
        self.cpu.lazy.set_bits(bits & flags::ARITH);
    }

    /// Moves the x87 registers into the host's unit, if they are not there.
    #[inline]
    pub fn load_x87(&mut self) {
        self.cpu.load_x87();
    }

    /// The time-stamp counter.
    #[must_use]
    pub fn tsc(&self) -> u64 {
        self.cpu.tsc()
    }

    /// Adds instructions that were executed elsewhere.
    #[inline]
    pub fn count(&mut self, instructions: u64) {
        self.cpu.executed += instructions;
    }

    /// Instructions executed so far.
    #[inline]
    #[must_use]
    pub fn executed(&self) -> u64 {
        self.cpu.executed
    }

    /// The vCPU's inputs.
    #[must_use]
    pub fn inputs(&self) -> Arc<Signals> {
        Arc::clone(&self.cpu.signals)
    }
}

impl DInsn {
    /// Whether it does nothing but raise #UD or #GP.
    #[must_use]
    pub fn is_invalid(&self) -> bool {
        std::ptr::fn_addr_eq(self.exec, crate::ops::invalid as crate::insn::Exec)
    }

    /// Length in bytes.
    #[must_use]
    pub fn length(&self) -> u8 {
        self.len
    }
}
