//! The run loop, and what happens when translated code is left.

use std::collections::VecDeque;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::RwLockReadGuard;
use std::sync::atomic::Ordering;

use cpu_model::CpuBoard;
use cpu_model::CpuState;
use cpu_model::EngineError;
use cpu_model::Signals;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::Inspect;
use device_model::Node;
use x86_interp::InterpVcpu;
use x86_interp::seam::Outcome;

mod decoded;
mod find;
mod warm;

use crate::area;
use crate::area::Frame;
use crate::area::JUMPS;
use crate::block::Base;
use crate::block::Block;
use crate::block::HOT;
use crate::block::Held;
use crate::block::Holdings;
use crate::block::Hot;
use crate::block::Record;
use crate::engine::Shared;
use crate::known::Known;
use crate::signals::Quiet;
use crate::thunk::Helpers;
use crate::thunk::Why;
use crate::translate;
use crate::translate::EDGE;
use crate::translate::EXACT_STACK;
use decoded::Decoded;
use find::Found;
use find::NOT_PLACED;
use find::PLACED;
use find::Placed;
use find::SEEN;
use find::Seen;
use find::UNSEEN;
use warm::Warmth;

/// MXCSR after reset: all exceptions masked.
const HOST_MXCSR: u32 = 0x1f80;

/// What is not reached from translated code.
pub(crate) struct Rest {
    shared: Arc<Shared>,
    /// Code generations and flushes that the jump caches are of.
    generations: [u32; 2],
    flushes: u64,
    /// Of the links without guards: what this vCPU knows of the kernel's pages is no older.
    epoch: u64,
    /// Generation of the code in the lower half that the jump cache of privilege level 3 is of. It follows when that level is
    /// entered.
    space: u32,
    /// What will make SYSRET known again then.
    return_config: u64,
    /// Modes that the jump caches are of.
    modes: [u32; 2],
    /// Base and limit of the code segment that they are of, outside flat code.
    code_segments: [(u64, u32); 2],
    /// Blocks that were found, by a hash of their address.
    found: Box<[Seen]>,
    /// By a hash of their physical address.
    placed: Box<[Placed]>,
    decoded: Decoded,
    warmth: Warmth,
    /// What the jump caches and the page maps hold.
    known: [Known; 2],
    /// The same of other address spaces: code generation, mode, and what it is. The oldest is first.
    aside: VecDeque<(u32, u32, Known)>,
    /// Of those, what is used again.
    spare: Vec<Known>,
    /// The kernel's jump cache has targets in the lower half.
    low: bool,
    /// Why `run` is to come back.
    stop: Option<Stop>,
    /// The budget of `run`, as a number of instructions executed: blocks run one at a time.
    end: Option<u64>,
    /// Of the running block, when blocks run one at a time: instructions that the interpreter has counted.
    counted: u64,
    /// The running block, when blocks run one at a time.
    running: *const Block,
    world: Option<RwLockReadGuard<'static, ()>>,
    /// The block translated next is a hot loop.
    hot: bool,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    slow: u64,
    calls: u64,
    stack: u64,
    exits: u64,
    misses: u64,
    polls: u64,
    faults: u64,
    hot: u64,
    interpreted_blocks: u64,
    cold_blocks: u64,
    translated: u64,
    user_clears: u64,
    kernel_clears: u64,
    mode_clears: u64,
    segment_clears: u64,
}

/// A translated vCPU.
pub(crate) struct JitVcpu {
    frame: Box<Frame>,
}

// SAFETY: the frame's pointers lead to itself, to memory shared with atomic access, and to blocks that are only used
// inside `run`, on the one thread that runs the vCPU.
unsafe impl Send for JitVcpu {}

/// Addresses of what the thunks call.
pub(crate) fn helpers() -> Helpers {
    let left: extern "C" fn(*mut Frame) -> u64 = helper;
    let time: extern "C" fn(*mut Frame) -> u64 = time;
    Helpers {
        left: left as usize as u64,
        time: time as usize as u64,
    }
}

extern "C" fn time(frame: *mut Frame) -> u64 {
    // SAFETY: as in `helper`.
    unsafe { &*frame }.interp.tsc()
}

extern "C" fn helper(frame: *mut Frame) -> u64 {
    // SAFETY: the thunks pass the frame whose `run` is on the stack, and nobody else uses it meanwhile.
    unsafe { &mut *frame }.left()
}

impl JitVcpu {
    pub(crate) fn new(interp: InterpVcpu, shared: Arc<Shared>) -> Self {
        let pending = std::ptr::from_ref(interp.inputs().pending_cell());
        let thunks = shared.thunks;
        let warmth = Warmth::new(shared.cold);
        let rest = Rest {
            shared,
            generations: [0; 2],
            flushes: 0,
            epoch: u64::MAX,
            space: 0,
            return_config: 0,
            modes: [u32::MAX; 2],
            code_segments: [(0, 0); 2],
            found: vec![UNSEEN; SEEN].into(),
            placed: vec![NOT_PLACED; PLACED].into(),
            decoded: Decoded::new(),
            warmth,
            known: [Known::new(), Known::new()],
            aside: VecDeque::new(),
            spare: Vec::new(),
            low: false,
            stop: None,
            end: None,
            counted: 0,
            running: std::ptr::null(),
            world: None,
            hot: false,
            counters: Counters::default(),
        };
        let mut frame = Frame::new(interp, rest);
        frame.area.pending = pending;
        frame.area.jump_mask = JUMPS as u64 - 1;
        frame.area.host_mxcsr = HOST_MXCSR;
        frame.area.this = &raw mut *frame;
        frame.area.empty_jumps(&thunks);
        frame.area.pages.iter_mut().for_each(area::PageMap::init);
        Self { frame }
    }
}

impl Frame {
    fn new(interp: InterpVcpu, rest: Rest) -> Box<Self> {
        let mut frame = Box::<Self>::new_zeroed();
        let at = frame.as_mut_ptr();
        // SAFETY: the parts are written before they are used; the area is numbers and raw pointers, which may be zero. The
        // translations stay where they are as long as the frame, which the vCPU is part of.
        unsafe {
            (&raw mut (*at).rest).write(rest);
            (&raw mut (*at).interp).write(interp);
            let mut frame = frame.assume_init();
            let translations = NonNull::from(&mut frame.area.translations);
            frame.interp.keep_translations(translations);
            frame
        }
    }

    /// Translated code was left. Where to go on; zero to come back from `run`.
    fn left(&mut self) -> u64 {
        let flags = self.area.flags;
        // AH has the low byte of the flags, AL is one with OF.
        self.interp.set_arith_flags(flags >> 8 & 0xd5 | (flags & 1) << 11);
        let what = self.area.what;
        match self.area.why {
            w if w == Why::Slow as u64 => {
                let (block, index) = record(what);
                self.rest.counters.slow += 1;
                self.one(block, index)
            }
            w if w == Why::Syscall as u64 || w == Why::Sysret as u64 => {
                let (block, index) = record(what);
                self.rest.counters.calls += 1;
                self.get_ready(w == Why::Sysret as u64);
                self.one(block, index)
            }
            w if w == Why::Stack as u64 => {
                let (block, index) = record(what);
                self.stack(block, index)
            }
            w if w == Why::Exit as u64 => {
                let (block, exit) = record(what);
                self.exit(block, exit)
            }
            w if w == Why::Vectors as u64 => {
                let (block, index) = record(what);
                self.area.vectors = 1;
                self.enter_at(block, index)
            }
            w if w == Why::Poll as u64 => {
                let (block, _) = record(what);
                self.rest.counters.polls += 1;
                self.at(block, 0);
                self.dispatch()
            }
            w if w == Why::Fault as u64 => {
                self.rest.counters.faults += 1;
                let found = self.rest.shared.registry.lock().find_host(what);
                // SAFETY: a block in which the host has faulted is held until the next flush.
                let block = unsafe { &*found.expect("faults outside blocks are not ours") };
                let index = block.insn_at(what);
                if let Some(hot) = block.hot_at(what) {
                    self.leave_hot(hot);
                    return self.one(block, index);
                }
                for (reg, n) in block.insns[index].unsaved.guests() {
                    self.interp.set_gpr(n.into(), self.area.low[usize::from(reg - 8)]);
                }
                self.one(block, index)
            }
            _ => {
                self.rest.counters.misses += 1;
                if (what as i64) << 16 >> 16 != what as i64 && self.area.low[1] != 0 {
                    return self.not_canonical();
                }
                self.block_done();
                self.interp.set_rip(what);
                self.dispatch()
            }
        }
    }

    /// Lets the next SYSCALL, or SYSRET to `user`, stay in translated code, if the jump cache is of the mode that it leads to.
    fn get_ready(&mut self, user: bool) {
        let Some(call) = self.interp.fast_call(user) else {
            return;
        };
        if user && self.rest.space != self.rest.generations[0] {
            return;
        }
        let cache = area::cache_of(call.mode.cpl) as usize;
        if translate::mode_key(&call.mode) == Some(self.rest.modes[cache]) {
            self.area.calls[cache] = area::Call {
                config: call.config,
                cs: call.cs,
                ss: call.ss,
            };
        }
    }

    /// Brings all guest registers home from the body without checks.
    fn leave_hot(&mut self, hot: &Hot) {
        let value = |host: u8| match host {
            8..12 => self.area.low[usize::from(host - 8)],
            _ => self.interp.gpr(host.into()),
        };
        let spilled: Vec<u64> = hot.spilled.iter().map(|s| value(s.1)).collect();
        for ((n, _), value) in hot.spilled.iter().zip(spilled) {
            self.interp.set_gpr((*n).into(), value);
        }
        for (n, value) in hot.borrowed.iter().zip(self.area.borrowed) {
            self.interp.set_gpr((*n).into(), value);
        }
    }

    /// An indirect jump goes where there can be no code: the fault is the jump's own, if this is none with 57 bits.
    fn not_canonical(&mut self) -> u64 {
        let (block, index) = record(self.area.low[1]);
        self.at(block, index);
        if let Some(ins) = self.read_again(block) {
            let moved = i64::from(ins.stack_pointer_increment()) as u64;
            self.interp.set_gpr(4, self.interp.gpr(4).wrapping_sub(moved));
        }
        self.one(block, index)
    }

    /// Sets RIP to an instruction of the running block.
    fn at(&mut self, block: &Block, index: usize) {
        // Where it looks at signals, a block has not noted its page yet.
        let page = block.fixed.unwrap_or(self.area.page);
        let rip = page.wrapping_add(u64::from(block.insns[index].offset));
        self.interp.set_rip(rip);
    }

    /// Has one instruction interpreted, and goes on behind it.
    fn one(&mut self, block: &Block, index: usize) -> u64 {
        self.at(block, index);
        if self.rest.end.is_some() {
            self.interp.count(index as u64 - self.rest.counted);
            self.rest.counted = index as u64 + 1;
        }
        let Some(decoded) = self.decoded(block, index) else {
            return self.dispatch();
        };
        let outcome = self.interp.execute(&decoded);
        if self.rest.end.is_none() {
            self.interp.end_sti_shadow();
        }
        if index + 1 < block.insns.len()
            && outcome == Outcome::Next
            && !self.interp.needs_attention()
            && self.interp.code_generations() == self.rest.generations
        {
            self.enter_at(block, index + 1)
        } else {
            self.dispatch()
        }
    }

    /// The stack is not on the known page.
    fn stack(&mut self, block: &Block, index: usize) -> u64 {
        self.rest.counters.stack += 1;
        self.at(block, index);
        if let Some(span) = block.span(index) {
            let low = self
                .interp
                .gpr(span.register.into())
                .wrapping_add(span.low as i64 as u64);
            let high = low.wrapping_add((span.high - span.low - 1) as u64);
            if low >> 12 == high >> 12 && self.interp.set_stack_page(low) {
                return self.enter_at(block, index);
            }
        }
        if self.rest.end.is_some() {
            self.interp.count(index as u64 - self.rest.counted);
        }
        self.exactly()
    }

    /// Goes on at RIP with the translation that checks each access for itself.
    fn exactly(&mut self) -> u64 {
        match self.find(EXACT_STACK) {
            // SAFETY: found just now.
            Found::Code(exact) if unsafe { &*exact }.insns.len() as u64 <= self.room() => self.go(exact, false),
            _ if self.room() == 0 => self.dispatch(),
            _ => {
                self.interp.interpret(1);
                self.dispatch()
            }
        }
    }

    /// A direct jump that is not linked.
    fn exit(&mut self, block: &Block, exit: usize) -> u64 {
        self.rest.counters.exits += 1;
        self.block_done();
        let target = &block.exits[exit];
        self.interp
            .set_rip(self.area.page.wrapping_add(target.target as i64 as u64));
        if self.interp.needs_attention() || self.rest.end.is_some() {
            return self.dispatch();
        }
        let flushes = self.rest.flushes;
        let more = if target.exact { EXACT_STACK } else { 0 };
        if target.target == i32::from(block.insns[0].offset) && (block.key.1 | more) & EXACT_STACK == 0 {
            let spins = block.spins.fetch_add(1, Ordering::Relaxed);
            if spins == HOT {
                self.make_hot(block);
            } else if spins < HOT {
                return self.dispatch();
            }
        }
        match self.find(more) {
            Found::Code(to) => {
                // SAFETY: found just now.
                let to_block = unsafe { &*to };
                // After a flush there is nothing left to link.
                if self.rest.flushes == flushes {
                    let epoch = self.rest.epoch;
                    self.rest.shared.registry.lock().link(block, exit, to_block, epoch);
                }
                self.go(to, target.leaves_page())
            }
            // An instruction that has no translation of its own, as in `stack`.
            _ if target.exact => {
                self.interp.interpret(1);
                self.dispatch()
            }
            Found::Cold => {
                self.interpret_cold();
                self.dispatch()
            }
            Found::Interpret | Found::Fault => self.dispatch(),
        }
    }

    /// Has a loop translated anew the next time it is looked for.
    fn make_hot(&mut self, block: &Block) {
        self.rest.counters.hot += 1;
        self.rest.shared.registry.lock().kill(block.id);
        self.rest.hot = true;
    }

    /// Counts a block that has run to one of its ends, when blocks run one at a time.
    fn block_done(&mut self) {
        if self.rest.end.is_some() && !self.rest.running.is_null() {
            // SAFETY: set when it was entered; flushes only happen in `dispatch`.
            let len = unsafe { &*self.rest.running }.insns.len() as u64;
            self.interp.count(len - self.rest.counted);
        }
    }

    /// Does what is to be done between blocks. Where to go on; zero to come back from `run`.
    fn dispatch(&mut self) -> u64 {
        self.rest.running = std::ptr::null();
        loop {
            if self.interp.needs_attention() {
                if let Some(stop) = self.interp.attend() {
                    return self.come_back(stop);
                }
                if !self.interp.runs_plain() {
                    if self.room() == 0 {
                        return self.come_back(Stop::Budget);
                    }
                    self.interp.step();
                    continue;
                }
            }
            // Whether or not a signal is there: the interpreter may have taken it.
            self.yield_world();
            let room = self.room();
            if room == 0 {
                return self.come_back(Stop::Budget);
            }
            match self.find(0) {
                Found::Code(block) => {
                    // SAFETY: found just now.
                    if self.rest.end.is_none() || unsafe { &*block }.insns.len() as u64 <= room {
                        return self.go(block, self.rest.end.is_none());
                    }
                    self.interp.interpret(room);
                }
                Found::Interpret => {
                    self.rest.counters.interpreted_blocks += 1;
                    self.interp.interpret(room);
                }
                Found::Cold => self.interpret_cold(),
                Found::Fault => self.interp.fault(),
            }
        }
    }

    /// Has the block at RIP interpreted, which is not worth a translation yet.
    fn interpret_cold(&mut self) {
        self.rest.counters.cold_blocks += 1;
        self.interp.interpret_once();
    }

    /// Instructions that may still be executed.
    fn room(&self) -> u64 {
        self.rest
            .end
            .map_or(u64::MAX, |end| end.saturating_sub(self.interp.executed()))
    }

    fn come_back(&mut self, stop: Stop) -> u64 {
        self.rest.stop = Some(stop);
        0
    }

    /// Lets somebody flush who waits for it.
    fn yield_world(&mut self) {
        if self.rest.shared.flush_wanted.load(Ordering::SeqCst) {
            self.rest.world = None;
            // Not any sooner: the signal that has led here does not come again.
            while self.rest.shared.flush_wanted.load(Ordering::SeqCst) {
                self.interp.serve_requests();
                std::thread::yield_now();
            }
            self.take_world();
        }
    }

    /// Takes part again. Other vCPUs may wait for this one to serve them meanwhile, while they hold up a flush.
    fn take_world(&mut self) {
        let shared = Arc::clone(&self.rest.shared);
        loop {
            if let Some(guard) = shared.try_read() {
                // SAFETY: the lock is inside `shared`, which this vCPU holds longer than the guard.
                let guard =
                    unsafe { std::mem::transmute::<RwLockReadGuard<'_, ()>, RwLockReadGuard<'static, ()>>(guard) };
                self.rest.world = Some(guard);
                return;
            }
            self.interp.serve_requests();
            std::thread::yield_now();
        }
    }

    /// Enters a block at RIP, and lets jumps find it if they may.
    fn go(&mut self, block: *const Block, remember: bool) -> u64 {
        // SAFETY: the caller has found it since the last flush.
        let found = unsafe { &*block };
        let rip = self.interp.rip();
        // Of the start of the linear page, which may be below the segment's.
        self.area.page = rip.wrapping_sub(self.linear(rip) & 0xfff);
        let (segmented, edge) = (translate::segmented(found.key.1), found.key.1 & EDGE != 0);
        // Most code does without; who does not asks again.
        self.area.vectors = 0;
        self.rest.running = block;
        self.rest.counted = 0;
        let cache = area::cache_of(found.key.1 as u8 & 3) as usize;
        let known = &mut self.rest.known[cache];
        if remember && segmented {
            // Blocks at the edge are looked for each time.
            if !edge {
                known.set_jump(&mut self.area.jumps[cache], rip, found.host);
            }
        } else if remember {
            known.set_jump(&mut self.area.jumps[cache], rip, found.host);
            known.set_page(&mut self.area.pages[cache], found.page, rip & !0xfff);
            self.rest.low |= cache == 1 && rip >> 63 == 0;
        }
        if let Some(page) = found.second_page {
            known.set_page(&mut self.area.pages[cache], page, find::next_page(rip));
            self.rest.low |= cache == 1 && rip >> 63 == 0;
        }
        self.enter(found.host + u64::from(found.entries.body), Holdings::START)
    }

    /// Goes on with an instruction of a block.
    fn enter_at(&mut self, block: &Block, index: usize) -> u64 {
        if !self.look_groups_up(block, index) {
            self.at(block, index);
            return self.exactly();
        }
        let insn = &block.insns[index];
        self.enter(block.host + u64::from(insn.host), insn.holdings)
    }

    /// Looks up again what instruction `index` expects to have been looked up. False when the TLB does not know it.
    fn look_groups_up(&mut self, block: &Block, index: usize) -> bool {
        for (n, group) in block.groups.iter().enumerate() {
            if !(usize::from(group.first) < index && index <= usize::from(group.last)) {
                continue;
            }
            let gpr = |n: u8| self.interp.gpr(n.into());
            let base = match group.base {
                Base::None => 0,
                Base::Page => self.area.page,
                Base::Register(n) => gpr(n),
            };
            let scaled = group.scaled.map_or(0, |(n, scale)| gpr(n) << scale);
            let segment = group.segment.map_or(0, |n| self.interp.segment_base(n.into()));
            let low = base
                .wrapping_add(scaled)
                .wrapping_add(segment)
                .wrapping_add(group.low as i64 as u64);
            let Some(addend) = self
                .interp
                .data_addend(low, (group.high - group.low) as u64, group.write)
            else {
                return false;
            };
            self.area.groups[n] = if group.pointer() {
                low.wrapping_add(addend)
            } else {
                addend
            };
        }
        true
    }

    /// Goes on at a host address, in the present state.
    fn enter(&mut self, host: u64, holdings: Holdings) -> u64 {
        self.interp.load_x87();
        let flags = self.interp.arith_flags();
        self.area.flags = (flags & 0xd5) << 8 | flags >> 11 & 1;
        self.area.low[0] = self.interp.stack_addend();
        if holdings != Holdings::START {
            for reg in 8..12 {
                self.area.low[usize::from(reg - 8)] = match holdings.get(reg) {
                    Held::Nothing => 0,
                    Held::Stack => self.interp.stack_addend(),
                    Held::Guest(n) => self.interp.gpr(n.into()),
                    Held::Group(n) => self.area.groups[usize::from(n)],
                };
            }
        }
        host
    }
}

/// The block and the number that a stub has handed over.
fn record(at: u64) -> (&'static Block, usize) {
    // SAFETY: stubs hand over records in their own block's code, which is there until the next flush, and no reference
    // is kept beyond that.
    unsafe {
        let record = &*(at as *const Record);
        (&*record.block, record.index as usize)
    }
}

/// Lets GS point at the frame.
fn set_gs(frame: *const Frame) {
    const ARCH_SET_GS: i32 = 0x1001;
    // SAFETY: nothing else in the process uses GS.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, frame) };
    assert_eq!(result, 0, "ARCH_SET_GS takes any address of the process");
}

impl Vcpu for JitVcpu {
    fn run(&mut self, board: &dyn CpuBoard, budget: Option<u64>) -> Result<Stop, EngineError> {
        let _quiet = Quiet::new();
        let frame = &mut *self.frame;
        set_gs(frame);
        frame.interp.begin(board);
        frame.take_world();
        frame.rest.end = budget.map(|n| frame.interp.executed().saturating_add(n));
        frame.rest.stop = None;
        let start = frame.dispatch();
        if start != 0 {
            frame.area.resume = start;
            // SAFETY: the thunk keeps to the C ABI; GS points at the frame, which nobody else uses until it returns.
            unsafe {
                let enter: extern "C" fn() = std::mem::transmute(frame.rest.shared.thunks.enter as usize);
                enter();
            }
        }
        let stop = self.frame.rest.stop.take();
        self.frame.rest.world = None;
        self.frame.interp.end();
        Ok(stop.unwrap_or(Stop::Kicked))
    }

    fn state(&mut self) -> CpuState {
        self.frame.interp.state()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.frame.interp.set_state(state)
    }

    fn signals(&self) -> Arc<Signals> {
        self.frame.interp.signals()
    }
}

impl Inspect for JitVcpu {
    fn inspect(&self) -> Node {
        let c = &self.frame.rest.counters;
        let translator = Node::tree()
            .with("slow", c.slow)
            .with("slow_calls", c.calls)
            .with("stack_misses", c.stack)
            .with("exits", c.exits)
            .with("jump_misses", c.misses)
            .with("polls", c.polls)
            .with("host_faults", c.faults)
            .with("hot_loops", c.hot)
            .with("interpreted_blocks", c.interpreted_blocks)
            .with("cold_blocks", c.cold_blocks)
            .with("translated", c.translated)
            .with("user_jump_clears", c.user_clears)
            .with("kernel_jump_clears", c.kernel_clears)
            .with("mode_jump_clears", c.mode_clears)
            .with("segment_jump_clears", c.segment_clears);
        self.frame.interp.inspect().with("translator", translator)
    }
}
