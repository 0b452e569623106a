//! The run loop: what happens between instructions, finding blocks, executing them, delivering faults.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cpu_model::Activity;
use cpu_model::CpuBoard;
use cpu_model::CpuPolicy;
use cpu_model::CpuState;
use cpu_model::EngineError;
use cpu_model::Signal;
use cpu_model::Signals;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::Inspect;
use device_model::Node;
use guest_memory::GuestMemory;
use x86_isa::Exception;
use x86_isa::Vector;
use x86_isa::flags;

use crate::cache::Cache;
use crate::cache::Run;
use crate::cpu::Boundary;
use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::deliver::Source;
use crate::engine::Peer;
use crate::engine::Shared;
use crate::insn::Brk;
use crate::insn::DInsn;
use crate::insn::RIP;
use crate::mmu::Tlb;
use crate::native::Native;

/// DR6.BS: single step.
const DR6_BS: u64 = 1 << 14;
/// DR7: any breakpoint is enabled.
const DR7_ENABLED: u64 = 0xff;

/// An interpreted vCPU.
pub struct InterpVcpu {
    pub(crate) cpu: Cpu,
    pub(crate) cache: Cache,
    /// The board has signalled an interrupt that was not taken yet.
    interrupt: bool,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    blocks: u64,
    interrupts: u64,
    exceptions: u64,
    halts: u64,
}

impl InterpVcpu {
    /// Offset of `interrupt`, for translated code.
    pub(crate) const INTERRUPT: usize = std::mem::offset_of!(Self, interrupt);

    pub(crate) fn new(
        id: u32,
        mem: Arc<GuestMemory>,
        policy: Arc<CpuPolicy>,
        shared: Arc<Shared>,
        peer: Arc<Peer>,
    ) -> Result<Self, EngineError> {
        let mut cpu = Cpu {
            regs: [0; 18],
            lazy: Default::default(),
            block_end: std::ptr::null(),
            ea_base: [0; 6],
            seg_ok: [0; 6],
            lin_mask: 0xffff_ffff,
            sp_mask: 0xffff,
            bank: Tlb::SUPERVISOR,
            tlb: Tlb::new(),
            cpl: 0,
            bits: 16,
            config: 1,
            fpu_gate: Default::default(),
            exc: Exception::gp0(),
            sysflags: 0,
            segs: Default::default(),
            ldtr: Default::default(),
            tr: Default::default(),
            gdtr: Default::default(),
            idtr: Default::default(),
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            pdptr: [0; 4],
            dr: [0; 6],
            pkru: 0,
            fpu: Box::default(),
            msrs: Box::default(),
            activity: Activity::Active,
            boundary: Boundary::default(),
            delivering: None,
            last_exception: None,
            id,
            native: Native::new()?,
            policy,
            mem,
            shared,
            signals: Arc::clone(&peer.signals),
            peer,
            board: None,
            steal: Default::default(),
            executed: 0,
        };
        let state = CpuState::after_reset(id == 0, cpu.policy.signature());
        cpu.load_state(&state)?;
        Ok(Self {
            cpu,
            cache: Cache::new(),
            interrupt: false,
            counters: Counters::default(),
        })
    }

    fn run_loop(&mut self, budget: Option<u64>) -> Stop {
        let end = budget.map_or(u64::MAX, |n| self.cpu.executed.saturating_add(n));
        loop {
            if self.cpu.signals.pending() != 0 || self.interrupt_open() || !self.quiet() {
                if let Some(stop) = self.between() {
                    return stop;
                }
                if !self.plain() {
                    if self.cpu.executed >= end {
                        return Stop::Budget;
                    }
                    self.single_step();
                    continue;
                }
            }
            if self.cpu.executed >= end {
                return Stop::Budget;
            }
            match self.find_block() {
                Ok(block) => self.run_block(block, end - self.cpu.executed),
                Err(_) => self.deliver_fault(),
            }
        }
    }

    /// The board has signalled an interrupt, and RFLAGS.IF lets it in.
    #[inline(always)]
    pub(crate) fn interrupt_open(&self) -> bool {
        self.interrupt && self.cpu.sysflags & flags::IF != 0
    }

    /// Nothing is to be done before the next instruction but to look at the signals.
    #[inline(always)]
    pub(crate) fn quiet(&self) -> bool {
        self.plain() && self.cpu.activity == Activity::Active
    }

    /// Whole blocks may run: no shadow, no trap, no single step, no breakpoint.
    #[inline(always)]
    pub(crate) fn plain(&self) -> bool {
        let c = &self.cpu;
        let event = c.boundary.event;
        !(event.nmi | event.sti_shadow | event.mov_ss_shadow)
            && event.debug_trap == 0
            && c.sysflags & (flags::TF | flags::RF) == 0
            && c.dr[5] & DR7_ENABLED == 0
    }

    /// Takes what is pending at an instruction boundary, in the order of SDM vol. 3 table 6-2. `Some` when `run` must
    /// come back.
    pub(crate) fn between(&mut self) -> Option<Stop> {
        self.take_signals();
        if self.cpu.signals.take(Signal::Kick) {
            return Some(Stop::Kicked);
        }
        match self.cpu.activity {
            Activity::Active => {}
            Activity::WaitSipi => return Some(Stop::Halted),
            Activity::Shutdown => return Some(Stop::TripleFault),
            Activity::Halted => {
                let nmi = self.cpu.boundary.event.nmi && !self.cpu.boundary.event.nmi_blocked;
                let unhalted = std::mem::take(&mut self.cpu.boundary.event.unhalted);
                if !(nmi || unhalted || self.cpu.boundary.event.debug_trap != 0 || self.take_interrupt(true)) {
                    self.counters.halts += 1;
                    return Some(Stop::Halted);
                }
                if self.cpu.activity == Activity::Halted {
                    self.cpu.activity = Activity::Active;
                }
            }
        }
        let event = self.cpu.boundary.event;
        if event.mov_ss_shadow {
            return None;
        }
        if self.cpu.boundary.event.debug_trap != 0 {
            let bits = std::mem::take(&mut self.cpu.boundary.event.debug_trap);
            self.exception(Exception {
                vector: Vector::Db,
                code: 0,
                info: bits,
            });
            return self.shutdown();
        }
        if event.nmi && !event.nmi_blocked {
            self.cpu.boundary.event.nmi = false;
            self.cpu.boundary.event.sti_shadow = false;
            self.external(2, Source::Nmi);
            return self.shutdown();
        }
        if !event.sti_shadow {
            self.take_interrupt(false);
        }
        self.shutdown()
    }

    fn shutdown(&self) -> Option<Stop> {
        (self.cpu.activity == Activity::Shutdown).then_some(Stop::TripleFault)
    }

    fn take_signals(&mut self) {
        let pending = self.cpu.signals.pending();
        if pending == 0 {
            return;
        }
        let signals = Arc::clone(&self.cpu.signals);
        let on = |signal: Signal| pending & signal as u32 != 0;
        if on(Signal::Engine) && signals.take(Signal::Engine) {
            self.serve();
            self.cpu.attend_clock();
        }
        if on(Signal::Interrupt) && signals.take(Signal::Interrupt) {
            self.interrupt = true;
        }
        if on(Signal::Nmi) && signals.take(Signal::Nmi) {
            self.cpu.boundary.event.nmi = true;
        }
        if on(Signal::Unhalt) && signals.take(Signal::Unhalt) {
            self.cpu.boundary.event.unhalted = true;
        }
        if on(Signal::Init) && signals.take(Signal::Init) {
            self.cpu.init(self.cpu.id == 0);
            self.interrupt = false;
        }
        if on(Signal::Sipi) && signals.take(Signal::Sipi) && self.cpu.activity == Activity::WaitSipi {
            let vector = u64::from(signals.sipi_vector());
            self.cpu.segs[CS].selector = (vector << 8) as u16;
            self.cpu.segs[CS].base = vector << 12;
            self.cpu.set_rip(0);
            self.cpu.activity = Activity::Active;
            self.cpu.update_mode();
        }
    }

    /// Takes a pending maskable interrupt if the guest allows; true when one was delivered. A halted processor goes on
    /// only when there really is one.
    fn take_interrupt(&mut self, halted: bool) -> bool {
        let event = self.cpu.boundary.event;
        let open = self.cpu.flag(flags::IF) && !event.sti_shadow && !event.mov_ss_shadow;
        if !self.interrupt || !(open || halted && self.cpu.flag(flags::IF)) {
            return false;
        }
        let acknowledged = self.cpu.boundary.event.interrupt.take();
        let Some(vector) = acknowledged.or_else(|| self.cpu.board().take_interrupt(self.cpu.id)) else {
            self.interrupt = false;
            return false;
        };
        self.cpu.activity = Activity::Active;
        self.cpu.boundary.event.sti_shadow = false;
        self.external(vector, Source::External);
        true
    }

    fn external(&mut self, vector: u8, source: Source) {
        self.counters.interrupts += 1;
        if self.cpu.interrupt(vector, source, None).is_err() {
            let exception = self.cpu.exc;
            self.exception(exception);
        }
    }

    fn exception(&mut self, exception: Exception) {
        self.counters.exceptions += 1;
        self.cpu.deliver(exception);
    }

    /// Delivers the fault in `cpu.exc`; RIP is at the faulting instruction.
    #[cold]
    pub(crate) fn deliver_fault(&mut self) {
        // A fault counts as an instruction, so that a budget also bounds a loop of nothing but faults.
        self.cpu.executed += 1;
        let exception = self.cpu.exc;
        self.exception(exception);
    }

    /// One instruction with everything that a plain run leaves out: shadows, instruction breakpoints, TF, RF.
    #[cold]
    pub(crate) fn single_step(&mut self) {
        let event = &mut self.cpu.boundary.event;
        let behind_mov_ss = std::mem::take(&mut event.mov_ss_shadow);
        event.sti_shadow = false;
        if self.cpu.activity != Activity::Active {
            return;
        }
        if !(behind_mov_ss || self.cpu.flag(flags::RF))
            && let Some(bits) = self.instruction_breakpoint()
        {
            return self.exception(Exception {
                vector: Vector::Db,
                code: 0,
                info: bits,
            });
        }
        let stepping = self.cpu.flag(flags::TF);
        let exceptions = self.counters.exceptions;
        let had_rf = self.cpu.flag(flags::RF);
        self.cpu.sysflags &= !flags::RF;
        match self.find_block() {
            Ok(block) => self.run_block_from(block, 1, had_rf),
            Err(_) => {
                self.restore_rf(had_rf);
                self.deliver_fault();
            }
        }
        let faulted = self.counters.exceptions != exceptions;
        if stepping && !faulted && !std::mem::take(&mut self.cpu.boundary.no_step) {
            self.cpu.boundary.event.debug_trap |= DR6_BS;
        }
    }

    fn restore_rf(&mut self, had_rf: bool) {
        if had_rf {
            self.cpu.sysflags |= flags::RF;
        }
    }

    /// DR6 bits of the enabled instruction breakpoints at RIP.
    fn instruction_breakpoint(&self) -> Option<u64> {
        let c = &self.cpu;
        let lin = c.ea_base[CS].wrapping_add(c.rip()) & c.lin_mask;
        let hit = (0..4).filter(|&i| {
            c.dr[5] >> (i * 2) & 3 != 0 && c.dr[5] >> (16 + i * 4) & 15 == 0 && c.dr[i] & c.lin_mask == lin
        });
        let bits = hit.fold(0, |bits, i| bits | 1 << i);
        (bits != 0).then_some(bits)
    }

    #[inline(always)]
    pub(crate) fn run_block(&mut self, block: Run, limit: u64) {
        self.run_block_from(block, limit, false);
    }

    /// Executes at most `limit` instructions of a block.
    #[inline(always)]
    fn run_block_from(&mut self, block: Run, limit: u64, had_rf: bool) {
        self.counters.blocks += 1;
        let cpu = &mut self.cpu;
        // Blocks are only freed when others are decoded, which happens between blocks.
        let start = block.insns;
        let count = usize::from(block.len).min(usize::try_from(limit).unwrap_or(usize::MAX));
        // SAFETY: `count` is at most the block's length.
        cpu.block_end = unsafe { start.add(count) };
        let mut at = start;
        // Only instructions that end the block change RIP, so it can be kept in a register on the way.
        let mut rip = cpu.regs[RIP];
        loop {
            // SAFETY: `at` is below `block_end`, which never grows while the block runs.
            let d: &DInsn = unsafe { &*at };
            rip = rip.wrapping_add(u64::from(d.len));
            cpu.regs[RIP] = rip;
            let outcome = (d.exec)(cpu, d);
            // SAFETY: at most one past the last instruction.
            at = unsafe { at.add(1) };
            match outcome {
                Ok(()) if at < cpu.block_end => {}
                Ok(()) | Err(Brk::Exit) => break,
                Err(Brk::Fault) => {
                    cpu.regs[RIP] = rip.wrapping_sub(u64::from(d.len));
                    // SAFETY: both are in the same block.
                    cpu.executed += unsafe { at.offset_from(start) } as u64 - 1;
                    self.restore_rf(had_rf);
                    return self.deliver_fault();
                }
            }
        }
        // SAFETY: both are in the same block.
        cpu.executed += unsafe { at.offset_from(start) } as u64;
        if cpu.bits != 64 {
            cpu.regs[RIP] &= 0xffff_ffff;
        }
    }

    /// Somebody else runs this vCPU, too, and takes its state over after each run. He keeps its steal time, and is asked to
    /// flush his TLB each time.
    pub fn stand_in(&mut self) {
        self.cpu.steal.stand_in();
    }

    /// Forgets all decoded code: somebody may have written to memory who does not tell.
    pub fn forget_code(&mut self) {
        self.cache.flush();
    }

    /// Begins a `run`: from here on other vCPUs wait for this one when they ask something of it.
    pub(crate) fn enter(&mut self, board: &dyn CpuBoard) {
        // SAFETY: only the lifetime is erased; `leave` takes the pointer back before the borrow ends.
        let board =
            unsafe { std::mem::transmute::<NonNull<dyn CpuBoard + '_>, NonNull<dyn CpuBoard>>(NonNull::from(board)) };
        self.cpu.board = Some(board);
        self.cpu.peer.running.store(true, Ordering::SeqCst);
        if self.cpu.peer.is_asked() {
            self.serve();
        }
        self.cpu.attend_clock();
        self.cpu.begin_steal();
    }

    /// Ends a `run`.
    pub(crate) fn leave(&mut self) {
        self.cpu.end_steal();
        self.cpu.peer.running.store(false, Ordering::SeqCst);
        self.cpu.sync_x87();
        self.cpu.board = None;
    }

    /// Serves a request of another vCPU to forget write translations.
    pub(crate) fn serve(&mut self) {
        serve(&self.cpu.peer, &mut self.cpu.tlb);
    }
}

/// Serves requests to forget write translations.
pub(crate) fn serve(peer: &Peer, tlb: &mut Tlb) {
    let asked = peer.asked.load(Ordering::SeqCst);
    if peer.served.load(Ordering::Acquire) != asked {
        tlb.drop_writes();
        peer.served.store(asked, Ordering::Release);
    }
}

impl Vcpu for InterpVcpu {
    fn run(&mut self, board: &dyn CpuBoard, budget: Option<u64>) -> Result<Stop, EngineError> {
        self.enter(board);
        let stop = self.run_loop(budget);
        self.leave();
        Ok(stop)
    }

    fn state(&mut self) -> CpuState {
        // A signal that has arrived but was not looked at belongs to the state.
        if self.cpu.signals.take(Signal::Nmi) {
            self.cpu.boundary.event.nmi = true;
        }
        if self.cpu.signals.take(Signal::Unhalt) {
            self.cpu.boundary.event.unhalted = true;
        }
        self.cpu.save_state()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.cpu.load_state(state)?;
        // Interrupts are level signals of the board: it is asked again.
        self.interrupt = true;
        Ok(())
    }

    fn signals(&self) -> Arc<Signals> {
        Arc::clone(&self.cpu.signals)
    }
}

impl Inspect for InterpVcpu {
    fn inspect(&self) -> Node {
        let c = &self.cpu;
        let last = c.last_exception.map_or_else(
            || "none".to_owned(),
            |(e, rip)| format!("{} code {:#x} info {:#x} at {rip:#x}", e.vector.name(), e.code, e.info),
        );
        let cache = Node::tree()
            .with("instructions", self.cache.len() as u64)
            .with("decoded", self.cache.decoded)
            .with("flushes", self.cache.flushes);
        Node::tree()
            .with("rip", c.rip())
            .with("cr3", c.cr3)
            .with("activity", format!("{:?}", c.activity))
            .with("last_exception", last)
            .with("executed", c.executed)
            .with("blocks", self.counters.blocks)
            .with("interrupts", self.counters.interrupts)
            .with("exceptions", self.counters.exceptions)
            .with("halts", self.counters.halts)
            .with("tlb_flushes", c.tlb.flushes)
            .with("cache", cache)
    }
}
