//! Engines and virtual CPUs.

use std::sync::Arc;

use crate::CpuBoard;
use crate::CpuState;
use crate::Signals;
use device_model::Inspect;

/// What an engine can do; constant over its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineCaps {
    /// `"interp"`, `"jit"` or `"kvm"`.
    pub name: &'static str,
    /// Honours the instruction budget of [`Vcpu::run`] exactly.
    pub exact_budget: bool,
}

/// Why an engine could not do its work. Never the guest's doing.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The host lacks something.
    #[error("this host cannot run the `{engine}` engine: {reason}")]
    Host {
        /// Engine name.
        engine: &'static str,
        /// What is missing.
        reason: String,
    },
    /// A state names something that this engine or CPU model does not have.
    #[error("CPU state does not fit: {0}")]
    State(String),
}

/// Why [`Vcpu::run`] came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// [`Signal::Kick`](crate::Signal::Kick) was raised.
    Kicked,
    /// The instruction budget is used up.
    Budget,
    /// The vCPU waits in HLT, for SIPI or in shutdown; [`Signals::wait`] tells when to go on.
    Halted,
    /// Triple fault: the vCPU is in shutdown.
    TripleFault,
    /// A debugger's breakpoint or single step.
    Debug,
}

/// One engine serves one machine.
pub trait Engine: Send + Sync + Inspect {
    /// What it can do.
    fn caps(&self) -> &EngineCaps;

    /// Makes vCPU number `id`, in its state after reset. The boot processor (0) is ready to run, the others wait for
    /// SIPI.
    ///
    /// # Errors
    /// [`EngineError::Host`] when the host refuses.
    fn new_vcpu(&self, id: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        self.new_vcpu_on(id, Arc::default())
    }

    /// The same, with inputs that exist already: those of the vCPU whose place it takes when a machine changes its engine.
    ///
    /// # Errors
    /// As [`Self::new_vcpu`].
    fn new_vcpu_on(&self, id: u32, signals: Arc<Signals>) -> Result<Box<dyn Vcpu>, EngineError>;
}

/// A virtual CPU. It lives on one thread at a time.
pub trait Vcpu: Send + Inspect {
    /// Executes until something needs the board's attention, for at most `budget` instructions.
    ///
    /// # Errors
    /// [`EngineError`] when the engine cannot go on; never for anything a guest does.
    fn run(&mut self, board: &dyn CpuBoard, budget: Option<u64>) -> Result<Stop, EngineError>;

    /// The whole architectural state, at an instruction boundary.
    fn state(&mut self) -> CpuState;

    /// Takes over a state.
    ///
    /// # Errors
    /// [`EngineError::State`] when it does not fit this CPU model; the vCPU is then unchanged.
    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError>;

    /// The vCPU's inputs: interrupts, INIT, SIPI, kicks. Raised from any thread.
    fn signals(&self) -> Arc<Signals>;
}
