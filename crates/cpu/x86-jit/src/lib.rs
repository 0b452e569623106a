//! The translator: x86-64 guest code as x86-64 host code.
//!
//! The guest's instruction is the host's instruction. Guest registers live in host registers, guest flags in host flags,
//! vector and x87 instructions work on the guest's own vector and x87 state. Only what touches memory, jumps, or is
//! privileged is rewritten; what is rare is executed by the interpreter, one instruction at a time.
//!
//! ```text
//!  vcpu.rs       run loop; what happens when translated code is left
//!  translate.rs  guest code → host code;  translate/*  by kind of instruction
//!  registry.rs   all blocks: found, linked, thrown away when their code is overwritten
//!  area.rs       what translated code keeps in memory;  thunk.rs  the ways in and out
//!  asm.rs        machine code, byte by byte;  memory.rs  where it lives
//!  signals.rs    faults of the host's processor in translated code
//! ```
//!
//! UNSAFETY: executes machine code generated at run time, which shares memory with Rust code at fixed offsets.

mod area;
mod asm;
mod block;
mod engine;
mod known;
mod memory;
mod perf;
mod registry;
mod signals;
mod thunk;
mod translate;
mod vcpu;

pub use engine::JitEngine;
pub use engine::JitOptions;
