//! What the manuals leave undefined, and where code would see it.

use iced_x86::Instruction;
use iced_x86::InstructionInfoFactory;
use iced_x86::Mnemonic;
use iced_x86::OpAccess;
use iced_x86::OpKind;
use iced_x86::RflagsBits;

pub(super) use x86_isa::flags::ARITH;

/// The arithmetic flags among iced's bits, as RFLAGS has them.
pub(super) fn rflags(bits: u32) -> u64 {
    let table = [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ];
    let chosen = table.iter().filter(|(bit, _)| bits & bit != 0);
    chosen.map(|(_, at)| 1u64 << at).sum()
}

/// Flags that are undefined behind the instructions executed so far.
#[derive(Default)]
pub(super) struct Seen(u64);

impl Seen {
    pub(super) fn undefined(&self) -> u64 {
        self.0
    }

    /// Whether the instruction would show what is undefined, or what the translator does not keep.
    pub(super) fn is_seen_by(&self, ins: &Instruction) -> bool {
        shows_x87_pointers(ins) || self.0 & reads(ins) != 0
    }

    /// These flags count as undefined from now on.
    pub(super) fn forget(&mut self, flags: u64) {
        self.0 |= flags;
    }

    pub(super) fn execute(&mut self, ins: &Instruction) {
        let undefined = rflags(ins.rflags_undefined());
        self.0 = if may_leave_flags(ins) {
            self.0 | undefined
        } else {
            self.0 & !rflags(ins.rflags_modified()) | undefined
        };
    }
}

/// Arithmetic flags that an instruction depends on, or passes on.
fn reads(ins: &Instruction) -> u64 {
    use Mnemonic as M;
    match ins.mnemonic() {
        M::Pushf | M::Pushfd | M::Pushfq | M::Syscall | M::Int | M::Int1 | M::Int3 | M::Into => ARITH,
        _ => rflags(ins.rflags_read()),
    }
}

/// A count of zero leaves all flags as they are.
fn may_leave_flags(ins: &Instruction) -> bool {
    use Mnemonic as M;
    let last = ins.op_count().saturating_sub(1);
    let counted = ins.op_count() > 0 && ins.op_kind(last) == OpKind::Immediate8 && ins.immediate8() & 31 != 0;
    let repeated = ins.has_rep_prefix() || ins.has_repne_prefix();
    ins.is_string_instruction() && repeated
        || !counted
            && matches!(
                ins.mnemonic(),
                M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
            )
}

pub(super) fn writes_memory(ins: &Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(ins);
    let writes = |access| {
        use OpAccess as A;
        matches!(access, A::Write | A::CondWrite | A::ReadWrite | A::ReadCondWrite)
    };
    info.used_memory().iter().any(|used| writes(used.access()))
}

/// Where the last x87 instruction and its operand were is only kept for those that the interpreter executes.
fn shows_x87_pointers(ins: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        ins.mnemonic(),
        M::Fnstenv
            | M::Fstenv
            | M::Fnsave
            | M::Fsave
            | M::Fxsave
            | M::Fxsave64
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xsavec
            | M::Xsavec64
            | M::Xsaves
            | M::Xsaves64
    )
}

/// Arithmetic flags that straight code from here on reads before it writes them.
pub(super) fn live(code: impl Iterator<Item = Instruction>) -> u64 {
    let (mut live, mut open) = (0, ARITH);
    for ins in code {
        live |= reads(&ins) & open;
        if !may_leave_flags(&ins) {
            open &= !rflags(ins.rflags_modified());
        }
        if ins.flow_control() != iced_x86::FlowControl::Next {
            break;
        }
    }
    live
}
