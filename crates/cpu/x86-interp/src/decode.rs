//! From bytes to [`DInsn`]: iced-x86 decodes, each group of `ops` chooses a handler.

use cpu_model::CpuPolicy;
use iced_x86::Code;
use iced_x86::FlowControl;
use iced_x86::Instruction;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::F_LOCK;
use crate::insn::F_REP;
use crate::insn::F_REPNE;
use crate::insn::RIP;
use crate::insn::ZERO;
use crate::ops;

/// An instruction on its way to a handler.
pub(crate) struct Dec<'a> {
    pub(crate) ins: &'a Instruction,
    /// Code size: 16, 32 or 64.
    pub(crate) bits: u8,
    pub(crate) policy: &'a CpuPolicy,
}

/// An operand, as far as choosing a handler needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Integer register at a byte offset of the register file.
    Reg(u8),
    Mem,
    Imm,
    /// Anything else: branch targets, string operands, other register files, or no operand.
    Other,
}

impl Dec<'_> {
    /// Operand `n`.
    pub(crate) fn op(&self, n: u32) -> Op {
        if n >= self.ins.op_count() {
            return Op::Other;
        }
        match self.ins.op_kind(n) {
            OpKind::Register => {
                let register = self.ins.op_register(n);
                if register.is_gpr() {
                    Op::Reg(reg(register))
                } else {
                    Op::Other
                }
            }
            OpKind::Memory => Op::Mem,
            kind if is_immediate(kind) => Op::Imm,
            _ => Op::Other,
        }
    }

    /// Size of operand `n` in bytes: register or memory.
    pub(crate) fn size(&self, n: u32) -> usize {
        match self.ins.op_kind(n) {
            OpKind::Register => self.ins.op_register(n).size(),
            OpKind::Memory => self.ins.memory_size().size(),
            _ => 0,
        }
    }

    /// Immediate operand `n`, sign-extended.
    pub(crate) fn imm(&self, n: u32) -> u64 {
        self.ins.immediate(n)
    }

    pub(crate) fn mnemonic(&self) -> Mnemonic {
        self.ins.mnemonic()
    }

    pub(crate) fn code(&self) -> Code {
        self.ins.code()
    }

    /// Displacement of a near branch from the next instruction.
    pub(crate) fn branch(&self) -> u64 {
        self.ins.near_branch_target().wrapping_sub(self.ins.next_ip())
    }
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate8_2nd
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

/// Byte offset of an integer register in the register file; AH to BH are the second bytes of RAX to RBX.
pub(crate) fn reg(register: Register) -> u8 {
    match register {
        Register::AH => 1,
        Register::CH => 9,
        Register::DH => 17,
        Register::BH => 25,
        _ => (register.full_register().number() * 8) as u8,
    }
}

/// Number of a segment register.
pub(crate) fn seg(register: Register) -> u8 {
    match register {
        Register::ES => 0,
        Register::CS => 1,
        Register::SS => 2,
        Register::FS => 4,
        Register::GS => 5,
        _ => 3,
    }
}

/// Bits to cut off an address of `bytes` bytes.
pub(crate) fn cut(bytes: u32) -> u8 {
    match bytes {
        2 => 48,
        4 => 32,
        _ => 0,
    }
}

/// Decodes one instruction.
pub(crate) fn decode(ins: &Instruction, bits: u8, policy: &CpuPolicy) -> DInsn {
    let mut d = DInsn {
        exec: ops::invalid,
        len: ins.len() as u8,
        ..too_long(bits)
    };
    if ins.is_invalid() || !ops::known(ins, policy) {
        d.len = d.len.max(1);
        return d;
    }
    if ins.has_lock_prefix() {
        d.flags |= F_LOCK;
    }
    if ins.has_rep_prefix() {
        d.flags |= F_REP;
    }
    if ins.has_repne_prefix() {
        d.flags |= F_REPNE;
    }
    if (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory) {
        memory(ins, bits, &mut d);
    }
    let dec = Dec { ins, bits, policy };
    if let Some(exec) = ops::select(&dec, &mut d) {
        d.exec = exec;
    }
    d
}

/// What stands for an instruction of more than 15 bytes: #GP(0).
pub(crate) fn too_long(bits: u8) -> DInsn {
    DInsn {
        exec: |cpu, _| cpu.gp(0),
        imm: 0,
        disp: 0,
        base: ZERO,
        index: ZERO,
        scale: 0,
        seg: 3,
        dst: 0,
        src: 0,
        len: 1,
        cut: 0,
        aux: 0,
        flags: 0,
        size: 0,
        bits,
    }
}

fn memory(ins: &Instruction, bits: u8, d: &mut DInsn) {
    let (base, index) = (ins.memory_base(), ins.memory_index());
    d.seg = match ins.memory_segment() {
        segment @ (Register::FS | Register::GS) => seg(segment),
        // The other overrides mean nothing in 64-bit mode, not even which exception is raised.
        _ if bits == 64 && matches!(base.full_register(), Register::RSP | Register::RBP) => seg(Register::SS),
        _ if bits == 64 => seg(Register::DS),
        segment => seg(segment),
    };
    let bytes = match (base, index) {
        (Register::RIP, _) => 8,
        (Register::EIP, _) => 4,
        (Register::None, Register::None) => ins.memory_displ_size(),
        (Register::None, index) if index.is_gpr() => index.size() as u32,
        // Vector index registers: the base or the address size says how wide addresses are.
        (Register::None, _) => 8,
        (base, _) => base.size() as u32,
    };
    d.cut = cut(bytes);
    if matches!(base, Register::RIP | Register::EIP) {
        d.base = RIP as u8;
        d.disp = ins.memory_displacement64().wrapping_sub(ins.next_ip()) as i32;
        return;
    }
    d.disp = ins.memory_displacement64() as i32;
    if base != Register::None {
        d.base = base.full_register().number() as u8;
    }
    if index.is_gpr() {
        d.index = index.full_register().number() as u8;
        d.scale = ins.memory_index_scale().trailing_zeros() as u8;
    }
}

/// Whether nothing after this instruction is reached by falling through it.
pub(crate) fn ends_block(ins: &Instruction) -> bool {
    ins.is_invalid()
        || !matches!(ins.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch)
        || matches!(ins.mnemonic(), Mnemonic::Hlt)
}

/// Handlers by operand size: `by_size!(size, f, A)` is `f::<A, u8>` and so on.
macro_rules! by_size {
    ($size:expr, $f:ident $(, $g:ty)*) => {
        match $size {
            1 => $f::<$($g,)* u8> as $crate::insn::Exec,
            2 => $f::<$($g,)* u16>,
            4 => $f::<$($g,)* u32>,
            _ => $f::<$($g,)* u64>,
        }
    };
}
pub(crate) use by_size;

/// As [`by_size!`] for groups without byte operands.
macro_rules! by_size_wide {
    ($size:expr, $f:ident $(, $g:ty)*) => {
        match $size {
            2 => $f::<$($g,)* u16> as $crate::insn::Exec,
            4 => $f::<$($g,)* u32>,
            _ => $f::<$($g,)* u64>,
        }
    };
}
pub(crate) use by_size_wide;

/// A group's choice: the handler, or `None` when the instruction is not of the group.
pub(crate) type Select = Option<Exec>;
