//! A decoded instruction: handler, operands, length. 32 bytes, so that two share a cache line.

use x86_isa::Exception;

use crate::cpu::Cpu;

/// Why a handler did not fall through to the next instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Brk {
    /// `cpu.exc` is to be delivered; RIP and every register are as before the instruction (string instructions: as
    /// before the faulting iteration).
    Fault,
    /// The block ends here: a branch was taken, or the rest of the block may no longer be valid. RIP is right.
    Exit,
}

/// Outcome of a handler.
pub(crate) type R<T = ()> = Result<T, Brk>;

/// A handler. RIP is already at the next instruction.
pub(crate) type Exec = fn(&mut Cpu, &DInsn) -> R;

/// Index of the register that always reads zero, for addresses without base or index.
pub(crate) const ZERO: u8 = 16;
/// Index of RIP in the register file, for RIP-relative addresses.
pub(crate) const RIP: usize = 17;

/// LOCK prefix.
pub(crate) const F_LOCK: u8 = 1;
/// REP or REPE prefix.
pub(crate) const F_REP: u8 = 2;
/// REPNE prefix.
pub(crate) const F_REPNE: u8 = 4;

/// A decoded instruction.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct DInsn {
    pub(crate) exec: Exec,
    /// Immediate (sign-extended), relative branch displacement, or a pointer to further data of the form.
    pub(crate) imm: u64,
    pub(crate) disp: i32,
    /// Base register number, [`ZERO`] or [`RIP`].
    pub(crate) base: u8,
    /// Index register number or [`ZERO`].
    pub(crate) index: u8,
    /// log2 of the scale.
    pub(crate) scale: u8,
    /// Segment of the memory operand.
    pub(crate) seg: u8,
    /// First register operand: byte offset in the register file (or a plain number where the group says so).
    pub(crate) dst: u8,
    /// Second register operand, likewise.
    pub(crate) src: u8,
    pub(crate) len: u8,
    /// Bits to cut off the top of an effective address: 0, 32 or 48 for address sizes 64, 32 and 16.
    pub(crate) cut: u8,
    /// Third register operand, condition, or what else the group needs.
    pub(crate) aux: u8,
    pub(crate) flags: u8,
    /// Operand size in bytes, where the handler is not specialised on it.
    pub(crate) size: u8,
    /// Code size in bits (16, 32, 64).
    pub(crate) bits: u8,
}

impl Cpu {
    /// Raises an exception: `return self.raise(Exception::gp0())`.
    #[cold]
    pub(crate) fn raise<T>(&mut self, exception: Exception) -> R<T> {
        self.exc = exception;
        Err(Brk::Fault)
    }

    /// #GP with an error code.
    #[cold]
    pub(crate) fn gp<T>(&mut self, code: u16) -> R<T> {
        self.raise(Exception::with_code(x86_isa::Vector::Gp, code.into()))
    }

    /// #UD.
    #[cold]
    pub(crate) fn ud<T>(&mut self) -> R<T> {
        self.raise(Exception::new(x86_isa::Vector::Ud))
    }
}
