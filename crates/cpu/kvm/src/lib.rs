//! KVM: the host's processor executes the guest, as far as the host's kernel lets it.
//!
//! ```text
//!  availability.rs   may it be used here, and is it worth while
//!  engine.rs         the machine: /dev/kvm, policy, guest memory ──► memory.rs   slots, the log of written pages
//!  vcpu.rs           the run loop ──► exits.rs   ports, memory, MSRs ──► msr.rs   those that we answer ourselves
//!     │                          └──► kick.rs   signals reach a vCPU in guest code
//!     ├── state.rs   CpuState in and out           time.rs   TSC and guest time
//!     ├── rescue.rs  the interpreter for what the kernel cannot execute
//!     └── cpuid.rs   what the guest is told        clock.rs  KVM's paravirtual clock, as the other engines keep it
//! ```
//!
//! All interrupt controllers are the board's, none is the kernel's: the same chips, states and inspection under every
//! engine. The kernel is asked for nothing newer than Linux 5.16 where it has no substitute for it.
//!
//! UNSAFETY: slots lend guest memory to the kernel by host address, exits are read from a page that the kernel writes,
//! and a signal handler gets vCPUs out of guest code. The engine keeps the memory for as long as the kernel has it.
//!
//! Spec: KVM api.rst (Linux 6.1); SDM vol. 3; SDM vol. 4.

mod availability;
mod clock;
mod cpuid;
mod engine;
mod exits;
mod kick;
mod memory;
mod msr;
mod probe;
mod rescue;
mod state;
mod time;
mod vcpu;

pub use availability::Availability;
pub use availability::availability;
pub use engine::KvmEngine;
pub use engine::supported_policy;
