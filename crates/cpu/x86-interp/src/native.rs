//! Floating-point and vector arithmetic on the host's own units.
//!
//! Every form of an instruction (opcode, immediate, register or memory operand) has a stub: the instruction itself, with
//! operand *n* in a fixed register or at a fixed pointer, and around it what brings the guest's values and control
//! register there and back. Rounding, flags, NaNs and the last bit of transcendental functions are the processor's own.
//!
//! ```text
//!   rdi rsi rdx rcx   where operands 0 to 3 are: a register of the guest's files, or the memory operand
//!   r8                MXCSR of the guest (arithmetic), else the integer registers (implicit operands)
//!   xmm1 to xmm4      operands 0 to 3 when they are vector registers; xmm0 is the implicit one
//!   r9 r10 r11        operands 0 to 2 when they are integer registers
//!   rax               result: 0, RFLAGS, or FAULT_XM or FAULT_MF
//! ```
//!
//! The x87 registers (and MMX) have no copy on the way: from the first x87 instruction of a `run` until its end they are
//! in the host's x87 unit, which Rust code does not use. See [`live`].
//!
//! An unmasked floating-point exception reaches us as SIGFPE: see [`fault`].
//!
//! Spec: SDM vol. 1 §8 (x87), §11.5 (SIMD exceptions); System V ABI x86-64 1.0 §3.2.

mod arena;
mod fault;
mod live;
mod stub;

use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;

use cpu_model::EngineError;

use arena::Arena;
pub(crate) use live::Native;
pub(crate) use live::get_x87;
pub(crate) use live::put_x87;
pub(crate) use stub::Form;
pub(crate) use stub::GPR_SLOT;
pub(crate) use stub::alignment;
pub(crate) use stub::form_of;
pub(crate) use stub::plain_form;

/// Result of a stub: an unmasked SIMD floating-point exception; MXCSR has its flag.
pub(crate) const FAULT_XM: u64 = u64::MAX;
/// Result of a stub: an x87 exception was pending, nothing was executed.
pub(crate) const FAULT_MF: u64 = u64::MAX - 1;

/// The stubs of the process. Forms are few (operands are not part of them) and stay for ever.
static ARENA: OnceLock<Result<Mutex<Arena>, String>> = OnceLock::new();

/// Prepares the arena and the SIGFPE handler, once for the process.
pub(crate) fn init() -> Result<(), EngineError> {
    let host = |reason: String| EngineError::Host {
        engine: "interp",
        reason,
    };
    match ARENA.get_or_init(prepare) {
        Ok(_) => Ok(()),
        Err(reason) => Err(host(reason.clone())),
    }
}

fn prepare() -> Result<Mutex<Arena>, String> {
    let arena = Arena::new().map_err(|e| format!("no executable memory: {e}"))?;
    fault::install(&arena).map_err(|e| format!("no SIGFPE handler: {e}"))?;
    Ok(Mutex::new(arena))
}

/// Runs `f` on the arena; `None` before [`init`].
fn with_arena<T>(f: impl FnOnce(&mut Arena) -> T) -> Option<T> {
    let arena = ARENA.get()?.as_ref().ok()?;
    Some(f(&mut arena.lock().unwrap_or_else(PoisonError::into_inner)))
}
