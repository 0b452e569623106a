//! Two engines in lock-step: the translator runs the guest, the interpreter runs a copy of it with the same inputs, and
//! after every few instructions both must be in the same state.
//!
//! What the translator's vCPU asks of the board (ports, device memory, time, interrupts) is written down and told to the
//! interpreter's, which must ask the same. The copy has memory of its own, so a wrong store shows when it is read. One
//! vCPU only: two would race for the memory in two different ways.
#![forbid(unsafe_code)]

mod journal;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use cpu_model::CpuBoard;
use cpu_model::CpuPolicy;
use cpu_model::CpuState;
use cpu_model::Engine;
use cpu_model::EngineCaps;
use cpu_model::EngineError;
use cpu_model::Signal;
use cpu_model::Signals;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::Inspect;
use device_model::Node;
use guest_memory::GuestMemory;
use guest_memory::MemoryRegion;
use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::FastFormatter;
use x86_interp::InterpEngine;
use x86_isa::flags;
use x86_jit::JitEngine;

use journal::Journal;

/// Instructions between two comparisons.
const STEP: u64 = 64;

/// Signals that are handed on.
const INPUTS: [Signal; 5] = [
    Signal::Interrupt,
    Signal::Nmi,
    Signal::Init,
    Signal::Sipi,
    Signal::Unhalt,
];

/// Translator and interpreter, each with its own memory.
pub struct LockstepEngine {
    caps: EngineCaps,
    tested: JitEngine,
    model: InterpEngine,
    memory: Arc<GuestMemory>,
    compared: Arc<AtomicU64>,
    undefined: Arc<AtomicU64>,
}

impl LockstepEngine {
    /// An engine for a machine with this memory and CPU model.
    ///
    /// # Errors
    /// As the two engines, or when the host has no memory for the copy.
    pub fn new(memory: Arc<GuestMemory>, policy: Arc<CpuPolicy>) -> Result<Self, EngineError> {
        let copy = copy_of(&memory).map_err(|e| EngineError::Host {
            engine: "lockstep",
            reason: e.to_string(),
        })?;
        Ok(Self {
            caps: EngineCaps {
                name: "lockstep",
                exact_budget: true,
            },
            tested: JitEngine::new(Arc::clone(&memory), Arc::clone(&policy))?,
            model: InterpEngine::new(Arc::new(copy), policy)?,
            memory,
            compared: Arc::default(),
            undefined: Arc::default(),
        })
    }
}

fn copy_of(memory: &GuestMemory) -> Result<GuestMemory, guest_memory::MemoryError> {
    let mut copy = GuestMemory::new();
    for (gpa, region) in memory.slots() {
        let region = MemoryRegion::new(region.name(), region.kind(), region.len())?;
        copy.add(*gpa, Arc::new(region))?;
    }
    Ok(copy)
}

impl Engine for LockstepEngine {
    fn caps(&self) -> &EngineCaps {
        &self.caps
    }

    fn new_vcpu_on(&self, id: u32, signals: Arc<Signals>) -> Result<Box<dyn Vcpu>, EngineError> {
        if id != 0 {
            return Err(EngineError::Host {
                engine: "lockstep",
                reason: "it runs one vCPU only".into(),
            });
        }
        Ok(Box::new(LockstepVcpu {
            tested: self.tested.new_vcpu(id)?,
            model: self.model.new_vcpu(id)?,
            memory: Arc::clone(&self.memory),
            copy: Arc::clone(self.model.memory()),
            inputs: signals,
            journal: Mutex::default(),
            fresh: false,
            executed: 0,
            compared: Arc::clone(&self.compared),
            undefined: Arc::clone(&self.undefined),
        }))
    }
}

impl Inspect for LockstepEngine {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("name", self.caps.name)
            .with("compared", self.compared.load(Ordering::Relaxed))
            .with("undefined_flags", self.undefined.load(Ordering::Relaxed))
            .with("tested", self.tested.inspect())
    }
}

struct LockstepVcpu {
    tested: Box<dyn Vcpu>,
    model: Box<dyn Vcpu>,
    memory: Arc<GuestMemory>,
    copy: Arc<GuestMemory>,
    /// What the board raises; handed to both between two steps.
    inputs: Arc<Signals>,
    journal: Mutex<Journal>,
    /// The copy of memory was made.
    fresh: bool,
    executed: u64,
    compared: Arc<AtomicU64>,
    undefined: Arc<AtomicU64>,
}

impl LockstepVcpu {
    /// Copies memory: the loader has written it, or the machine was reset.
    fn copy_memory(&mut self) -> Result<(), EngineError> {
        let mut buffer = vec![0u8; 1 << 20];
        let mut old = vec![0u8; 1 << 20];
        let fail = |e: guest_memory::MemoryError| EngineError::State(e.to_string());
        for (gpa, region) in self.memory.slots() {
            let mut at = 0;
            while at < region.len() {
                let n = (region.len() - at).min(buffer.len() as u64) as usize;
                self.memory.read(gpa + at, &mut buffer[..n]).map_err(fail)?;
                self.copy.read(gpa + at, &mut old[..n]).map_err(fail)?;
                // Untouched memory stays untouched.
                if buffer[..n] != old[..n] {
                    self.copy.write(gpa + at, &buffer[..n]).map_err(fail)?;
                }
                at += n as u64;
            }
        }
        self.fresh = true;
        Ok(())
    }

    fn hand_on(&self) {
        for signal in INPUTS {
            if self.inputs.take(signal) {
                for vcpu in [&self.tested, &self.model] {
                    match signal {
                        Signal::Sipi => vcpu.signals().raise_sipi(self.inputs.sipi_vector()),
                        _ => vcpu.signals().raise(signal),
                    }
                }
            }
        }
    }

    /// Some instructions on both; then everything must be equal.
    fn step(&mut self, board: &dyn CpuBoard, limit: u64) -> Result<Stop, EngineError> {
        let before = self.tested.state();
        let recorder = journal::Recorder::new(board, &self.journal);
        let stop = self.tested.run(&recorder, Some(limit))?;
        let replayer = journal::Replayer::new(&self.journal);
        let model_stop = self.model.run(&replayer, Some(limit))?;
        let after = self.tested.state();
        let model = self.model.state();
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        let mut differences = journal.end();
        if stop != model_stop {
            differences.push(format!("stop: {stop:?} {model_stop:?}"));
        }
        let mut same_flags = model;
        let undefined = forgive_flags(&mut same_flags, &after);
        if after != same_flags {
            differences.extend(after.diff(&same_flags));
        } else if undefined {
            // Flags that the manuals call undefined are the host's here and a guess there. A wrong flag of the others
            // shows in what depends on it, before long.
            self.undefined.fetch_add(1, Ordering::Relaxed);
            self.model.set_state(&after)?;
        }
        if differences.is_empty() {
            self.executed += limit;
            self.compared.fetch_add(1, Ordering::Relaxed);
            return Ok(stop);
        }
        Err(EngineError::State(self.report(&before, &differences)))
    }

    fn report(&self, before: &CpuState, differences: &[String]) -> String {
        let mut text = format!(
            "the translator and the interpreter differ within {STEP} instructions from {:#x} (after some {}):\n  {}\n",
            before.rip,
            self.executed,
            differences.join("\n  ")
        );
        let mut bytes = [0u8; 256];
        if before.rip >> 63 == 0 && self.memory.read(before.rip, &mut bytes).is_ok() {
            let bits = if before.segments[1].attr & 0x200 != 0 { 64 } else { 32 };
            let mut decoder = Decoder::with_ip(bits, &bytes, before.rip, DecoderOptions::NONE);
            for _ in 0..50 {
                let ins = decoder.decode();
                let mut line = String::new();
                FastFormatter::new().format(&ins, &mut line);
                text.push_str(&format!("  {:x}: {line}\n", ins.ip()));
            }
        }
        text.push_str(&format!("  before: {:x?}\n", before.gpr));
        text
    }
}

/// Gives `model` the arithmetic flags of `other`; whether it had others.
///
/// Also those that were stored and lie in a register: kernels keep what PUSHF stored, and SYSCALL leaves flags in R11.
fn forgive_flags(model: &mut CpuState, other: &CpuState) -> bool {
    let before = model.clone();
    model.rflags = model.rflags & !flags::ARITH | other.rflags & flags::ARITH;
    for (mine, theirs) in model.gpr.iter_mut().zip(other.gpr) {
        let both_flags = is_flags(*mine) && is_flags(theirs);
        if both_flags && (*mine ^ theirs) & !flags::ARITH == 0 {
            *mine = theirs;
        }
    }
    *model != before
}

/// Whether this may be an image of RFLAGS: bit 1 is set, and nothing that is reserved.
fn is_flags(value: u64) -> bool {
    const RESERVED: u64 = !0x3f_7fd7;
    value & RESERVED == 0 && value & 2 != 0
}

impl Vcpu for LockstepVcpu {
    fn run(&mut self, board: &dyn CpuBoard, budget: Option<u64>) -> Result<Stop, EngineError> {
        if !self.fresh {
            self.copy_memory()?;
        }
        let mut left = budget.unwrap_or(u64::MAX);
        loop {
            self.hand_on();
            if self.inputs.take(Signal::Kick) {
                return Ok(Stop::Kicked);
            }
            if left == 0 {
                return Ok(Stop::Budget);
            }
            let limit = left.min(STEP);
            match self.step(board, limit)? {
                Stop::Budget => left -= limit,
                Stop::Kicked => {}
                stop => return Ok(stop),
            }
        }
    }

    fn state(&mut self) -> CpuState {
        self.hand_on();
        let _ = self.model.state();
        self.tested.state()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.fresh = false;
        self.tested.set_state(state)?;
        self.model.set_state(state)
    }

    fn signals(&self) -> Arc<Signals> {
        Arc::clone(&self.inputs)
    }
}

impl Inspect for LockstepVcpu {
    fn inspect(&self) -> Node {
        self.tested.inspect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_flags_may_differ_in_arithmetic_ones_only() {
        let mut state = CpuState::after_reset(true, 0);
        state.rflags = 0x246;
        state.gpr[3] = 0x12;
        state.gpr[6] = 0x1002;
        let mut model = state.clone();
        model.rflags = 0x202;
        model.gpr[3] = 2;
        assert!(forgive_flags(&mut model, &state));
        assert!(model == state);
        assert!(!forgive_flags(&mut model, &state));
        // The interrupt flag, a number that no flags are, and another number.
        for (register, value) in [(3, 0x212), (6, 0x1000), (0, 2)] {
            let mut model = state.clone();
            model.gpr[register] = value;
            forgive_flags(&mut model, &state);
            assert!(model != state, "{register} {value:#x}");
        }
    }
}
