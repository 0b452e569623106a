//! Makes the stubs: puts an instruction's operands in their canonical places, and writes the code around it.

use iced_x86::Code;
use iced_x86::Encoder;
use iced_x86::IcedError;
use iced_x86::Instruction;
use iced_x86::InstructionInfoFactory;
use iced_x86::InstructionInfoOptions;
use iced_x86::MemoryOperand;
use iced_x86::Mnemonic;
use iced_x86::OpAccess;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::native::arena::Arena;
use crate::native::arena::Emit;
use crate::native::arena::Key;
use crate::native::with_arena;

/// Operand slots from this number on are integer registers, those below vector registers.
pub(crate) const GPR_SLOT: u8 = 16;

/// Where operands are, by their index.
const POINTERS: [Register; 4] = [Register::RDI, Register::RSI, Register::RDX, Register::RCX];
/// MXCSR or the integer registers.
const CONTEXT: Register = Register::R8;
const GPR32: [Register; 3] = [Register::R9D, Register::R10D, Register::R11D];
const GPR64: [Register; 3] = [Register::R9, Register::R10, Register::R11];

type Entry = extern "sysv64" fn(*mut u8, *mut u8, *mut u8, *mut u8, *mut u8) -> u64;

/// A form of an instruction, with its stub.
#[derive(Debug)]
pub(crate) struct Form {
    pub(crate) entry: Entry,
    /// Bytes of the memory operand.
    pub(crate) size: u16,
    /// Alignment that the memory operand must have, else #GP.
    pub(crate) align: u16,
    /// Computes with MXCSR.
    pub(crate) arithmetic: bool,
    /// The result is RFLAGS.
    pub(crate) flags: bool,
}

/// What a stub has around its instruction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    /// Vector registers and general registers around the instruction.
    Vector { arithmetic: bool },
    /// The bare instruction.
    Plain,
}

/// The form of a vector or MMX instruction, and the slots of its register operands.
pub(crate) fn form_of(ins: &Instruction) -> Option<(&'static Form, [u8; 4])> {
    let (canonical, slots) = canonical(ins)?;
    let arithmetic = is_arithmetic(ins.mnemonic());
    Some((find(&canonical, Frame::Vector { arithmetic })?, slots))
}

/// The form of an instruction that only has a memory operand, x87 registers and flags. RSI holds RFLAGS for those that
/// read or change them.
pub(crate) fn plain_form(ins: &Instruction) -> Option<&'static Form> {
    let (canonical, _) = canonical(ins)?;
    find(&canonical, Frame::Plain)
}

/// Moves operands to their canonical places.
fn canonical(ins: &Instruction) -> Option<(Instruction, [u8; 4])> {
    let mut c = *ins;
    let mut slots = [0; 4];
    c.set_segment_prefix(Register::None);
    for i in 0..ins.op_count() {
        let n = i as usize;
        match ins.op_kind(i) {
            OpKind::Register => {
                let r = ins.op_register(i);
                let number = r.number() as u8;
                if r.is_xmm() {
                    slots[n] = number;
                    c.set_op_register(i, Register::XMM1 + i);
                } else if r.is_ymm() {
                    slots[n] = number;
                    c.set_op_register(i, Register::YMM1 + i);
                } else if r.is_gpr32() {
                    slots[n] = number + GPR_SLOT;
                    c.set_op_register(i, *GPR32.get(n)?);
                } else if r.is_gpr64() {
                    slots[n] = number + GPR_SLOT;
                    c.set_op_register(i, *GPR64.get(n)?);
                } else if !(r.is_mm() || r.is_st() || r == Register::AX) {
                    return None;
                }
            }
            OpKind::Memory => {
                c.set_memory_base(*POINTERS.get(n)?);
                c.set_memory_index(Register::None);
                c.set_memory_index_scale(1);
                c.set_memory_displ_size(0);
                c.set_memory_displacement64(0);
            }
            OpKind::Immediate8 | OpKind::Immediate8_2nd => {}
            _ => return None,
        }
    }
    Some((c, slots))
}

fn find(c: &Instruction, frame: Frame) -> Option<&'static Form> {
    let mut encoder = Encoder::new(64);
    encoder.encode(c, 0).ok()?;
    let bytes = encoder.take_buffer();
    let mut key: Key = [0; 16];
    key.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    key[15] = bytes.len() as u8;
    with_arena(|arena| {
        if let Some(form) = arena.forms.get(&key) {
            return Some(*form);
        }
        let code = build(arena, c, frame).ok()?;
        let at = arena.add(&code)?;
        let form: &'static Form = Box::leak(Box::new(describe(c, at, frame)));
        arena.forms.insert(key, form);
        Some(form)
    })?
}

fn describe(c: &Instruction, at: u64, frame: Frame) -> Form {
    // SAFETY: `at` is the address of code in the arena that was built for this signature.
    let entry = unsafe { std::mem::transmute::<*const u8, Entry>(at as *const u8) };
    Form {
        entry,
        size: c.memory_size().size() as u16,
        align: alignment(c),
        arithmetic: frame == Frame::Vector { arithmetic: true },
        flags: c.rflags_modified() != 0,
    }
}

/// Bytes that the memory operand must be aligned to; 1 when any address will do.
pub(crate) fn alignment(ins: &Instruction) -> u16 {
    use Mnemonic as M;
    let size = ins.memory_size().size() as u16;
    let aligned = match ins.mnemonic() {
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => false,
        M::Pcmpestri | M::Pcmpestrm | M::Pcmpistri | M::Pcmpistrm | M::Pcmpestri64 | M::Pcmpestrm64 => false,
        M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => true,
        _ => ins.encoding() == iced_x86::EncodingKind::Legacy && size == 16,
    };
    if aligned { size } else { 1 }
}

/// Whether the instruction rounds, or raises SIMD floating-point exceptions.
fn is_arithmetic(mnemonic: Mnemonic) -> bool {
    const STEMS: [&str; 17] = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "com", "ucom", "cvt", "round", "dp", "hadd", "hsub",
        "fm", "fnm",
    ];
    let name = format!("{mnemonic:?}").to_ascii_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    STEMS.iter().any(|stem| name.starts_with(stem))
}

fn at(pointer: Register) -> MemoryOperand {
    MemoryOperand::with_base(pointer)
}

fn build(arena: &Arena, c: &Instruction, frame: Frame) -> Result<Vec<u8>, IcedError> {
    let mut e = Emit::new(arena);
    match frame {
        Frame::Plain => plain(&mut e, c)?,
        Frame::Vector { arithmetic } => vector(&mut e, arena, c, arithmetic)?,
    }
    Ok(e.finish())
}

/// An x87 instruction: flags in from RSI for those that read or change them, flags or AX out.
fn plain(e: &mut Emit, c: &Instruction) -> Result<(), IcedError> {
    if c.rflags_read() | c.rflags_modified() != 0 {
        e.ins(Instruction::with1(Code::Push_r64, Register::RSI)?)?;
        e.ins(Instruction::with(Code::Popfq))?;
    }
    e.ins(*c)?;
    if c.mnemonic() == Mnemonic::Fnstsw && c.op_kind(0) == OpKind::Register {
        e.ins(Instruction::with2(Code::Movzx_r32_rm16, Register::EAX, Register::AX)?)?;
    } else {
        result(e, c)?;
    }
    e.ins(Instruction::with(Code::Retnq))
}

/// RAX: the flags if the instruction sets any, else zero.
fn result(e: &mut Emit, c: &Instruction) -> Result<(), IcedError> {
    if c.rflags_modified() != 0 {
        e.ins(Instruction::with(Code::Pushfq))?;
        e.ins(Instruction::with1(Code::Pop_r64, Register::RAX)?)
    } else {
        e.ins(Instruction::with2(Code::Xor_r32_rm32, Register::EAX, Register::EAX)?)
    }
}

fn vector(e: &mut Emit, arena: &Arena, c: &Instruction, arithmetic: bool) -> Result<(), IcedError> {
    let vex = c.encoding() == iced_x86::EncodingKind::VEX;
    let (load, store) = if vex {
        (Code::VEX_Vmovdqu_xmm_xmmm128, Code::VEX_Vmovdqu_ymmm256_ymm)
    } else {
        (Code::Movups_xmm_xmmm128, Code::Movups_xmmm128_xmm)
    };
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(
        c,
        InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE,
    );
    let mut wide = false;
    for i in 0..c.op_count() {
        let n = i as usize;
        if c.op_kind(i) != OpKind::Register {
            continue;
        }
        let r = c.op_register(i);
        if r.is_ymm() {
            wide = true;
            e.ins(Instruction::with2(Code::VEX_Vmovdqu_ymm_ymmm256, r, at(POINTERS[n]))?)?;
        } else if r.is_xmm() {
            e.ins(Instruction::with2(load, r, at(POINTERS[n]))?)?;
        } else if r.is_gpr() {
            e.ins(Instruction::with2(
                Code::Mov_r64_rm64,
                r.full_register(),
                at(POINTERS[n]),
            )?)?;
        }
    }
    let implicit = Implicit::of(c.mnemonic());
    implicit.load(e)?;
    if arithmetic {
        e.ins(Instruction::with1(Code::Ldmxcsr_m32, at(CONTEXT))?)?;
    }
    e.ins(*c)?;
    if arithmetic {
        e.ins(Instruction::with1(Code::Stmxcsr_m32, at(CONTEXT))?)?;
        e.restore_mxcsr(arena)?;
    }
    result(e, c)?;
    implicit.store(e, vex)?;
    for i in 0..c.op_count() {
        let n = i as usize;
        let written = matches!(
            info.op_access(i),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite
        );
        if c.op_kind(i) != OpKind::Register || !written {
            continue;
        }
        let r = c.op_register(i);
        if r.is_xmm() || r.is_ymm() {
            // A VEX instruction clears what is above its result; the whole register is stored.
            let r = if vex { Register::YMM0 + r.number() as u32 } else { r };
            e.ins(Instruction::with2(store, at(POINTERS[n]), r)?)?;
        } else if r.is_gpr() {
            e.ins(Instruction::with2(
                Code::Mov_rm64_r64,
                at(POINTERS[n]),
                r.full_register(),
            )?)?;
        }
    }
    if wide {
        e.ins(Instruction::with(Code::VEX_Vzeroupper))?;
    }
    e.ins(Instruction::with(Code::Retnq))
}

/// Operands that an instruction does not name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Implicit {
    Nothing,
    /// XMM0 is read: a mask, or the message words of SHA-256. The fourth pointer leads to it.
    Xmm0,
    /// String comparison: lengths in EAX and EDX if explicit; the result in ECX, or in XMM0 through the fourth pointer.
    Compare {
        explicit: bool,
        mask: bool,
    },
}

impl Implicit {
    fn of(mnemonic: Mnemonic) -> Self {
        use Mnemonic as M;
        match mnemonic {
            M::Blendvps | M::Blendvpd | M::Pblendvb | M::Sha256rnds2 => Self::Xmm0,
            M::Pcmpestri | M::Vpcmpestri | M::Pcmpestri64 | M::Vpcmpestri64 => Self::Compare {
                explicit: true,
                mask: false,
            },
            M::Pcmpestrm | M::Vpcmpestrm | M::Pcmpestrm64 | M::Vpcmpestrm64 => Self::Compare {
                explicit: true,
                mask: true,
            },
            M::Pcmpistri | M::Vpcmpistri => Self::Compare {
                explicit: false,
                mask: false,
            },
            M::Pcmpistrm | M::Vpcmpistrm => Self::Compare {
                explicit: false,
                mask: true,
            },
            _ => Self::Nothing,
        }
    }

    fn load(self, e: &mut Emit) -> Result<(), IcedError> {
        match self {
            Self::Xmm0 => e.ins(Instruction::with2(
                Code::Movups_xmm_xmmm128,
                Register::XMM0,
                at(Register::RCX),
            )?),
            Self::Compare { explicit: true, .. } => {
                // No third operand's pointer is in RDX: that is the immediate.
                e.ins(Instruction::with2(Code::Mov_r64_rm64, Register::RAX, at(CONTEXT))?)?;
                let rdx = MemoryOperand::with_base_displ(CONTEXT, 16);
                e.ins(Instruction::with2(Code::Mov_r64_rm64, Register::RDX, rdx)?)
            }
            _ => Ok(()),
        }
    }

    fn store(self, e: &mut Emit, vex: bool) -> Result<(), IcedError> {
        match self {
            Self::Compare { mask: true, .. } if vex => {
                let place = at(Register::RCX);
                e.ins(Instruction::with2(
                    Code::VEX_Vmovdqu_ymmm256_ymm,
                    place,
                    Register::YMM0,
                )?)
            }
            Self::Compare { mask: true, .. } => e.ins(Instruction::with2(
                Code::Movups_xmmm128_xmm,
                at(Register::RCX),
                Register::XMM0,
            )?),
            Self::Compare { mask: false, .. } => {
                let rcx = MemoryOperand::with_base_displ(CONTEXT, 8);
                e.ins(Instruction::with2(Code::Mov_rm64_r64, rcx, Register::RCX)?)
            }
            _ => Ok(()),
        }
    }
}
