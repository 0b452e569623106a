//! The interpreter: a complete x86-64 processor in portable Rust, and the specification that other engines are checked
//! against.
//!
//! ```text
//!  vcpu.rs     run loop: events, block look-up, execution, fault delivery
//!  cache.rs    decoded blocks by physical address;  decode.rs  bytes → DInsn (via iced-x86)
//!  ops/*       one file per instruction group: how it decodes to a handler, and the handlers
//!  mmu/*       segmentation, software TLB, page walk, guest memory access
//!  native/*    x87, MMX, SSE and AVX arithmetic on the host's own units, one generated stub per instruction form
//!  seam.rs     what a translating engine uses of all this
//!  deliver.rs  exceptions and interrupts through IVT, IDT and task gates
//! ```
//!
//! UNSAFETY: guest registers are accessed by byte offset, guest memory through the raw pointers of `guest-memory`, and
//! vector instructions run as machine code generated at run time. All three need raw pointers.

mod cache;
mod cpu;
mod decode;
mod deliver;
mod engine;
mod fetch;
mod flags;
mod insn;
mod int;
mod mmu;
mod native;
mod ops;
pub mod seam;
mod state;
#[cfg(test)]
mod testing;
mod vcpu;

pub use engine::InterpEngine;
pub use insn::DInsn;
pub use vcpu::InterpVcpu;
