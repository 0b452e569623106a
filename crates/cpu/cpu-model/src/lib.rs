//! The seam between machines and CPU engines: what an engine is, what it asks of the board, and the one CPU state that
//! every engine saves and takes.
//!
//! ```text
//!   board (threads, devices)                     engine (interp | jit | kvm)
//!   ────────────────────────                     ──────────────────────────
//!   Engine::new_vcpu ───────────────────────────► Box<dyn Vcpu>
//!   Vcpu::run(&board) ──────────────────────────► executes until a Stop
//!                     ◄── CpuBoard callbacks ────  port and memory I/O, interrupt acknowledge, local APIC
//!   Signals::raise ─────────────────────────────► looked at between instructions
//! ```
#![forbid(unsafe_code)]

mod board;
mod cpuid;
mod engine;
mod signals;
mod state;

pub use board::CpuBoard;
pub use board::MsrFault;
pub use cpuid::CpuChoice;
pub use cpuid::CpuPolicy;
pub use cpuid::CpuidContext;
pub use cpuid::Feature;
pub use cpuid::Model;
pub use cpuid::Paravirt;
pub use cpuid::PolicyError;
pub use cpuid::XSAVE_COMPONENTS;
pub use cpuid::XsaveComponent;
pub use engine::Engine;
pub use engine::EngineCaps;
pub use engine::EngineError;
pub use engine::Stop;
pub use engine::Vcpu;
pub use signals::Signal;
pub use signals::Signals;
pub use signals::Waker;
pub use state::Activity;
pub use state::CpuState;
pub use state::DescriptorTable;
pub use state::FpuState;
pub use state::Msrs;
pub use state::PendingEvent;
pub use state::SegmentState;
