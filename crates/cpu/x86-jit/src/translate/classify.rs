//! What becomes of a guest instruction: its own form again, one of a few sequences, or the interpreter.

use iced_x86::Code;
use iced_x86::CodeSize;
use iced_x86::ConditionCode;
use iced_x86::CpuidFeature;
use iced_x86::FlowControl;
use iced_x86::Instruction;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;
use x86_interp::seam::Mode;
use x86_interp::seam::Reach;

use crate::translate::EDGE;
use crate::translate::SINGLE;
use crate::translate::segmented;

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Itself, with operands renamed and its memory operand checked.
    Same,
    /// Nothing at all.
    Nothing,
    Push,
    Pop,
    Leave,
    Call,
    CallIndirect,
    Ret,
    Jmp,
    JmpIndirect,
    Jcc,
    /// CLI, STI, CLD, STD, SWAPGS, RDTSC, RDTSCP, RDPKRU.
    System,
    /// PUSHFQ.
    PushFlags,
    /// MOV from a segment register.
    Selector,
    /// RDFSBASE and its kin.
    Base,
    /// BT and its kin, with a string of bits in memory.
    BitString,
    /// REP STOS, REP MOVS.
    String,
    /// SYSCALL, SYSRET to 64-bit code.
    FastCall,
    /// By the interpreter; what follows may be translated.
    Interpret,
    /// By the interpreter, and the block ends.
    Last,
}

impl Class {
    /// What runs after it, if anything does, is another block, or unknown.
    pub(crate) fn leaves(self) -> bool {
        self.ends_block() || self == Self::Interpret
    }

    /// Nothing is reached by falling through it.
    pub(crate) fn ends_block(self) -> bool {
        matches!(
            self,
            Self::Call | Self::CallIndirect | Self::Ret | Self::Jmp | Self::JmpIndirect | Self::FastCall | Self::Last
        )
    }
}

/// Chooses for a valid instruction.
pub(crate) fn classify(ins: &Instruction, mode: &Mode, key: u32) -> Class {
    let single = key & SINGLE != 0;
    let segmented = super::segmented(key);
    let class = if segmented {
        segmented::control(ins, mode, key & EDGE != 0)
    } else {
        control(ins, mode)
    };
    if let Some(class) = class {
        return class;
    }
    if mode.bits == 64 && !single && matches!((ins.code(), mode.cpl), (Code::Syscall, 3) | (Code::Sysretq, 0)) {
        return Class::FastCall;
    }
    if ins.flow_control() != FlowControl::Next {
        return Class::Last;
    }
    match ins.mnemonic() {
        // They change the bank of the TLB that the rest of the block would use.
        Mnemonic::Stac | Mnemonic::Clac => Class::Last,
        Mnemonic::Cli | Mnemonic::Swapgs if mode.cpl == 0 => Class::System,
        Mnemonic::Cld | Mnemonic::Std => Class::System,
        Mnemonic::Rdtsc | Mnemonic::Rdtscp if !mode.no_tsc => Class::System,
        Mnemonic::Rdpkru if mode.pkru => Class::System,
        // Whoever looks at the state between two blocks sees the shadow of STI.
        Mnemonic::Sti if mode.cpl == 0 && !single => Class::System,
        Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase if mode.fs_gs_base => {
            Class::Base
        }
        // Processors differ in what they leave undefined.
        Mnemonic::Shld | Mnemonic::Shrd if beyond_operand(ins) => Class::Interpret,
        Mnemonic::Nop | Mnemonic::Endbr64 | Mnemonic::Endbr32 | Mnemonic::Pause => Class::Nothing,
        Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 | Mnemonic::Prefetcht2 | Mnemonic::Prefetchnta => Class::Nothing,
        Mnemonic::Prefetchw | Mnemonic::Prefetchwt1 => Class::Nothing,
        // Real mode does not know them.
        _ if segmented && ins_is_vex(ins) => Class::Interpret,
        Mnemonic::Push if segmented && segmented::stack_operand(ins, mode) => Class::Push,
        Mnemonic::Pop
            if segmented
                && segmented::stack_operand(ins, mode)
                && ins.op0_kind() == OpKind::Register
                && ins.op0_register().is_gpr() =>
        {
            Class::Pop
        }
        Mnemonic::Push | Mnemonic::Pop | Mnemonic::Leave if segmented => Class::Interpret,
        Mnemonic::Push if stack_operand(ins, mode) => Class::Push,
        Mnemonic::Pop if stack_operand(ins, mode) && ins.op0_kind() == OpKind::Register => Class::Pop,
        Mnemonic::Leave if matches!((ins.code(), mode.bits), (Code::Leaveq, 64) | (Code::Leaved, 32)) => Class::Leave,
        _ if mode.bits == 64 && !single && super::string::element(ins).is_some() => Class::String,
        _ if mode.bits == 64 && ins.code() == Code::Pushfq => Class::PushFlags,
        _ if mode.bits == 64 && from_selector(ins) && operand_ok(ins, mode) => Class::Selector,
        _ if mode.bits == 64 && bit_string(ins) && plain_address(ins) && operand_ok(ins, mode) => Class::BitString,
        _ if encodable(ins, mode) && (integer(ins) || unit(ins, mode)) => Class::Same,
        _ => Class::Interpret,
    }
}

/// A valid encoding of an instruction that every processor has, in every mode that it can be decoded in.
pub(crate) fn is_everywhere(ins: &Instruction) -> bool {
    use Mnemonic as M;
    let common = matches!(
        ins.mnemonic(),
        M::Mov
            | M::Movzx
            | M::Movsxd
            | M::Lea
            | M::Add
            | M::Sub
            | M::And
            | M::Or
            | M::Xor
            | M::Cmp
            | M::Test
            | M::Inc
            | M::Dec
            | M::Shl
            | M::Shr
            | M::Sar
            | M::Push
            | M::Pop
            | M::Call
            | M::Ret
            | M::Jmp
    );
    let plain = |i: u32| match ins.op_kind(i) {
        OpKind::Register => ins.op_register(i).is_gpr(),
        OpKind::FarBranch16 | OpKind::FarBranch32 => false,
        _ => true,
    };
    (common && !ins.is_jmp_far_indirect() && !ins.is_call_far_indirect() || ins.is_jcc_short_or_near())
        && !ins.has_lock_prefix()
        && (0..ins.op_count()).all(plain)
}

/// A double shift that may be by more bits than the operand has.
fn beyond_operand(ins: &Instruction) -> bool {
    let count = (ins.op2_kind() == OpKind::Immediate8).then(|| ins.immediate8() & 31);
    ins.op1_register().is_gpr16() && count.is_none_or(|n| n > 16)
}

fn control(ins: &Instruction, mode: &Mode) -> Option<Class> {
    Some(match ins.code() {
        Code::Call_rel32_64 | Code::Call_rel32_32 => Class::Call,
        Code::Call_rm64 | Code::Call_rm32 if operand_ok(ins, mode) => Class::CallIndirect,
        Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16 => Class::Ret,
        Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => Class::Jmp,
        Code::Jmp_rm64 | Code::Jmp_rm32 if operand_ok(ins, mode) => Class::JmpIndirect,
        _ if ins.is_jcc_short_or_near() && ins.op0_kind() != OpKind::NearBranch16 => Class::Jcc,
        _ => return None,
    })
}

/// Push and pop of 64 bits: a register, an immediate, or memory.
fn stack_operand(ins: &Instruction, mode: &Mode) -> bool {
    ins.stack_pointer_increment().unsigned_abs() == u32::from(mode.bits) / 8
        && !(ins.op0_kind() == OpKind::Register && ins.op0_register().is_segment_register())
        && operand_ok(ins, mode)
}

/// A memory operand, if any, is of a kind that can be checked.
fn operand_ok(ins: &Instruction, mode: &Mode) -> bool {
    let memory = (0..ins.op_count())
        .filter(|&i| ins.op_kind(i) == OpKind::Memory)
        .count();
    if memory == 0 {
        return true;
    }
    if mode.reach[2] != Reach::None {
        return segmented::addressable(ins, mode);
    }
    if mode.bits == 32 && !plain_32bit(ins, mode) {
        return false;
    }
    let index = ins.memory_index();
    // Absolute 64-bit addresses do not fit into an address computation.
    memory == 1
        && ins.memory_base() != Register::EIP
        && (index == Register::None || index.is_gpr())
        && (ins.memory_displ_size() != 8 || has_base(ins) || fits(ins))
}

/// Addresses of 32 bits in a segment that needs no check.
fn plain_32bit(ins: &Instruction, mode: &Mode) -> bool {
    let narrow = |r: Register| r.is_gpr16();
    let size = ins.memory_displ_size();
    let segment = match ins.memory_segment() {
        Register::CS => false,
        Register::FS => mode.fs_plain,
        Register::GS => mode.gs_plain,
        _ => true,
    };
    let absolute = ins.memory_base() == Register::None && ins.memory_index() == Register::None;
    segment && !(narrow(ins.memory_base()) || narrow(ins.memory_index()) || absolute && size == 2)
}

fn has_base(ins: &Instruction) -> bool {
    ins.memory_base() != Register::None
}

fn fits(ins: &Instruction) -> bool {
    let disp = ins.memory_displacement64();
    // Addresses of 32 bits are not sign-extended, and wrap.
    ins.memory_index() != Register::None || i32::try_from(disp as i64).is_ok() || ins.code_size() == CodeSize::Code32
}

/// MOV between the accumulator and an absolute address has no other address.
fn absolute_form(ins: &Instruction) -> bool {
    matches!(
        ins.code(),
        Code::Mov_AL_moffs8
            | Code::Mov_AX_moffs16
            | Code::Mov_EAX_moffs32
            | Code::Mov_RAX_moffs64
            | Code::Mov_moffs8_AL
            | Code::Mov_moffs16_AX
            | Code::Mov_moffs32_EAX
            | Code::Mov_moffs64_RAX
    )
}

/// Short forms that exist only for some operands, or only in 32-bit code, as the general form.
pub(crate) fn generalize(ins: &mut Instruction) {
    let general = match ins.code() {
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        _ if !fits(ins) => return,
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        _ => return,
    };
    ins.set_code(general);
}

/// Operands that the rewriting understands: registers, immediates, one plain memory operand.
fn encodable(ins: &Instruction, mode: &Mode) -> bool {
    let kinds = (0..ins.op_count()).all(|i| match ins.op_kind(i) {
        OpKind::Register => {
            let r = ins.op_register(i);
            !(r.is_segment_register() || r.is_cr() || r.is_dr() || r.is_tr() || r.is_zmm() || r.is_k())
        }
        OpKind::Memory => ins.mnemonic() == Mnemonic::Lea || (1..=32).contains(&ins.memory_size().size()),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => false,
        OpKind::FarBranch16 | OpKind::FarBranch32 => false,
        OpKind::MemorySegSI | OpKind::MemorySegESI | OpKind::MemorySegRSI => false,
        OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI => false,
        OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => false,
        _ => true,
    });
    kinds && operand_ok(ins, mode) && !absolute_form(ins) && ins.memory_base() != Register::EIP
}

fn from_selector(ins: &Instruction) -> bool {
    ins.mnemonic() == Mnemonic::Mov
        && ins.op1_kind() == OpKind::Register
        && ins.op1_register().is_segment_register()
        && (ins.op0_kind() == OpKind::Memory || ins.op0_register().is_gpr())
}

/// BT and its kin, where the register tells how far the bit is from the operand.
fn bit_string(ins: &Instruction) -> bool {
    matches!(
        ins.mnemonic(),
        Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
    ) && ins.op0_kind() == OpKind::Memory
        && ins.op1_kind() == OpKind::Register
}

/// An address of 64 bits, and a bit string of 32 or 64 bits at a time.
fn plain_address(ins: &Instruction) -> bool {
    let plain = |r: Register| r == Register::None || r.is_gpr64();
    let relative = ins.is_ip_rel_memory_operand() && ins.memory_base() == Register::RIP;
    (relative || plain(ins.memory_base()) && has_base(ins))
        && plain(ins.memory_index())
        && !ins.op1_register().is_gpr16()
}

/// Unprivileged integer instructions without anything implicit but registers.
fn integer(ins: &Instruction) -> bool {
    use Mnemonic as M;
    // SETcc and CMOVcc.
    let conditional = ins.condition_code() != ConditionCode::None;
    !bit_string(ins)
        && (conditional
            || matches!(
                ins.mnemonic(),
                M::Mov
                    | M::Movzx
                    | M::Movsx
                    | M::Movsxd
                    | M::Lea
                    | M::Add
                    | M::Adc
                    | M::Sub
                    | M::Sbb
                    | M::And
                    | M::Or
                    | M::Xor
                    | M::Cmp
                    | M::Test
                    | M::Inc
                    | M::Dec
                    | M::Neg
                    | M::Not
                    | M::Shl
                    | M::Shr
                    | M::Sar
                    | M::Sal
                    | M::Rol
                    | M::Ror
                    | M::Rcl
                    | M::Rcr
                    | M::Shld
                    | M::Shrd
                    | M::Mul
                    | M::Imul
                    | M::Div
                    | M::Idiv
                    | M::Cbw
                    | M::Cwde
                    | M::Cdqe
                    | M::Cwd
                    | M::Cdq
                    | M::Cqo
                    | M::Xchg
                    | M::Bswap
                    | M::Bt
                    | M::Bts
                    | M::Btr
                    | M::Btc
                    | M::Bsf
                    | M::Bsr
                    | M::Tzcnt
                    | M::Lzcnt
                    | M::Popcnt
                    | M::Xadd
                    | M::Cmpxchg
                    | M::Cmpxchg8b
                    | M::Cmpxchg16b
                    | M::Cmc
                    | M::Clc
                    | M::Stc
                    | M::Lahf
                    | M::Sahf
                    | M::Movbe
                    | M::Crc32
                    | M::Movnti
                    | M::Andn
                    | M::Bextr
                    | M::Blsi
                    | M::Blsmsk
                    | M::Blsr
                    | M::Bzhi
                    | M::Mulx
                    | M::Pdep
                    | M::Pext
                    | M::Rorx
                    | M::Sarx
                    | M::Shlx
                    | M::Shrx
                    | M::Adcx
                    | M::Adox
                    | M::Lfence
                    | M::Mfence
                    | M::Sfence
            ))
}

/// Floating-point and vector instructions that the present mode lets run.
fn unit(ins: &Instruction, mode: &Mode) -> bool {
    use CpuidFeature as C;
    if has_more_to_it(ins) {
        return false;
    }
    let mmx = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Register && ins.op_register(i).is_mm());
    if mmx && mode.no_mmx {
        return false;
    }
    ins.cpuid_features().iter().all(|feature| match feature {
        C::FPU | C::FPU287 | C::FPU387 => !mode.no_x87,
        C::MMX => !mode.no_mmx,
        C::SSE | C::SSE2 | C::SSE3 | C::SSSE3 | C::SSE4_1 | C::SSE4_2 => !mode.no_sse,
        C::AES | C::PCLMULQDQ | C::SHA => !(mode.no_sse || ins_is_vex(ins) && mode.no_avx),
        C::AVX | C::AVX2 | C::FMA | C::F16C => !mode.no_avx,
        C::CMOV => true,
        _ => false,
    })
}

/// Whether an instruction of the units works on the vector registers or MXCSR.
pub(crate) fn uses_vectors(ins: &Instruction) -> bool {
    use CpuidFeature as C;
    !integer(ins)
        && !ins
            .cpuid_features()
            .iter()
            .all(|f| matches!(f, C::FPU | C::FPU287 | C::FPU387 | C::MMX | C::CMOV))
}

fn ins_is_vex(ins: &Instruction) -> bool {
    ins.encoding() == iced_x86::EncodingKind::VEX
}

/// Implicit memory, faults that depend on a mask, or images that hold host addresses.
fn has_more_to_it(ins: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        ins.mnemonic(),
        M::Maskmovdqu
            | M::Maskmovq
            | M::Vmaskmovdqu
            | M::Vmaskmovps
            | M::Vmaskmovpd
            | M::Vpmaskmovd
            | M::Vpmaskmovq
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Fnsave
            | M::Fsave
            | M::Frstor
            | M::Fldenv
            | M::Fnstenv
            | M::Fstenv
            | M::Clflush
            | M::Ldmxcsr
            | M::Vldmxcsr
            | M::Emms
            | M::Fninit
            | M::Finit
            | M::Vzeroall
    ) || ins.is_vsib()
        || ins.encoding() == iced_x86::EncodingKind::EVEX
}
