//! The ways into and out of translated code.
//!
//! On the way out all guest state goes to its places in memory, so that Rust code sees a processor between two
//! instructions; on the way in it comes back. Vector registers travel whole, since Rust code and the C library may use
//! any of them, but only once a block has asked for them.

mod call;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::area;
use crate::memory::CodeMemory;

/// Why translated code was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Why {
    /// One instruction is to be interpreted; WHAT is its record.
    Slow,
    /// The page of the stack is not the known one; WHAT is the instruction's record.
    Stack,
    /// A direct jump without a link; WHAT is the exit's record.
    Exit,
    /// The jump cache does not know the target; WHAT is its address.
    Miss,
    /// The target is not in the first slot of the jump cache of privilege level 3 that it could be in. If it is not in the
    /// second either, it is a miss.
    SecondOfUser,
    /// The same for the other levels.
    SecondOfKernel,
    /// A signal is pending; WHAT is the record of the block's first instruction.
    Poll,
    /// The instruction needs the vector registers; WHAT is its record.
    Vectors,
    /// The host raised a signal; WHAT is the address of the host's instruction.
    Fault,
    /// Not left: RDTSC. T0 holds where to go on; T0 to T2 are used.
    Time,
    /// Not left, if all is as usual: SYSCALL. T0 holds its record, T2 the address behind it.
    Syscall,
    /// The same: SYSRET to 64-bit code.
    Sysret,
}

impl Why {
    pub(crate) const ALL: [Self; 12] = [
        Self::Slow,
        Self::Stack,
        Self::Exit,
        Self::Miss,
        Self::SecondOfUser,
        Self::SecondOfKernel,
        Self::Poll,
        Self::Vectors,
        Self::Fault,
        Self::Time,
        Self::Syscall,
        Self::Sysret,
    ];

    /// Where to look for jump targets of a privilege level that are not in their first slot.
    pub(crate) fn second(cpl: u8) -> Self {
        if cpl == 3 {
            Self::SecondOfUser
        } else {
            Self::SecondOfKernel
        }
    }

    /// The jump cache that is looked into, by a privilege level that has it.
    fn looks_into(self) -> Option<u8> {
        match self {
            Self::SecondOfUser => Some(3),
            Self::SecondOfKernel => Some(0),
            _ => None,
        }
    }

    /// What the helper is told.
    fn told(self) -> Self {
        if self.looks_into().is_some() { Self::Miss } else { self }
    }
}

/// Addresses of the thunks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Thunks {
    /// `extern "C" fn()`: continues at RESUME until the helper returns zero.
    pub(crate) enter: u64,
    /// By [`Why`]. What goes with it is expected in T0 (Fault: in WHAT).
    pub(crate) leave: [u64; Why::ALL.len()],
}

fn at(offset: u32) -> AsmMemoryOperand {
    ptr(offset).gs()
}

/// Guest registers that live in the host's register of the same number.
fn kept() -> [(AsmRegister64, u8); 11] {
    [
        (rcx, 1),
        (rdx, 2),
        (rbx, 3),
        (rsp, 4),
        (rbp, 5),
        (rsi, 6),
        (rdi, 7),
        (r12, 12),
        (r13, 13),
        (r14, 14),
        (r15, 15),
    ]
}

fn vectors() -> [AsmRegisterYmm; 16] {
    [
        ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15,
    ]
}

fn lower_vectors() -> [AsmRegisterXmm; 16] {
    [
        xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7, xmm8, xmm9, xmm10, xmm11, xmm12, xmm13, xmm14, xmm15,
    ]
}

const YMM: usize = std::mem::offset_of!(cpu_model::FpuState, ymm);
const MXCSR: usize = std::mem::offset_of!(cpu_model::FpuState, mxcsr);

/// Registers that hold now this, now that.
const LOW: [AsmRegister64; 4] = [r8, r9, r10, r11];

/// What the host's callee keeps for its caller.
const HOST: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

/// Loads the vector registers from the image at R10.
///
/// Upper halves that are all zero are not loaded: once one was, SSE instructions wait for the old value of the register
/// that they write (Intel 64 and IA-32 Architectures Optimization Reference Manual, 15.3).
fn load_vectors(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut whole = a.create_label();
    let mut done = a.create_label();
    a.vmovdqu(xmm0, xmmword_ptr(r10 + YMM + 16))?;
    for i in 1..16 {
        a.vpor(xmm0, xmm0, xmmword_ptr(r10 + YMM + i * 32 + 16))?;
    }
    a.vptest(xmm0, xmm0)?;
    a.jnz(whole)?;
    for (i, xmm) in lower_vectors().into_iter().enumerate() {
        a.vmovdqu(xmm, xmmword_ptr(r10 + YMM + i * 32))?;
    }
    a.jmp(done)?;
    a.set_label(&mut whole)?;
    for (i, ymm) in vectors().into_iter().enumerate() {
        a.vmovdqu(ymm, ymmword_ptr(r10 + YMM + i * 32))?;
    }
    a.set_label(&mut done)?;
    a.nop()
}

/// Code for when the guest's vector registers and MXCSR are to be in the host's, with R10 at their image. The flags are used.
fn if_units(
    a: &mut CodeAssembler,
    code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let mut without = a.create_label();
    a.cmp(dword_ptr(area::VECTORS).gs(), 0)?;
    a.je(without)?;
    a.mov(r10, at(area::FPU))?;
    code(a)?;
    a.set_label(&mut without)?;
    // A label needs an instruction behind it.
    a.nop()
}

fn load_units(a: &mut CodeAssembler) -> Result<(), IcedError> {
    if_units(a, |a| {
        a.ldmxcsr(dword_ptr(r10 + MXCSR))?;
        load_vectors(a)
    })
}

fn save_units(a: &mut CodeAssembler) -> Result<(), IcedError> {
    if_units(a, |a| {
        a.stmxcsr(dword_ptr(r10 + MXCSR))?;
        a.ldmxcsr(dword_ptr(area::HOST_MXCSR).gs())?;
        for (i, ymm) in vectors().into_iter().enumerate() {
            a.vmovdqu(ymmword_ptr(r10 + YMM + i * 32), ymm)?;
        }
        a.vzeroupper()
    })
}

/// AH = the low byte of the flags, AL = OF.
fn flags_to_ax(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.lahf()?;
    a.seto(al)
}

/// The flags, from AX.
fn flags_from_ax(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.add(al, 127)?;
    a.sahf()
}

fn load_guest(a: &mut CodeAssembler) -> Result<(), IcedError> {
    load_units(a)?;
    a.mov(rax, at(area::FLAGS))?;
    flags_from_ax(a)?;
    a.mov(rax, at(area::gpr(0)))?;
    for (register, n) in kept() {
        a.mov(register, at(area::gpr(n)))?;
    }
    for (i, register) in LOW.into_iter().enumerate() {
        a.mov(register, at(area::LOW + 8 * i as u32))?;
    }
    a.jmp(qword_ptr(area::RESUME).gs())
}

fn save_guest(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(at(area::gpr(0)), rax)?;
    flags_to_ax(a)?;
    a.mov(at(area::FLAGS), rax)?;
    for (register, n) in kept() {
        a.mov(at(area::gpr(n)), register)?;
    }
    for (i, register) in LOW.into_iter().enumerate() {
        a.mov(at(area::LOW + 8 * i as u32), register)?;
    }
    a.mov(rsp, at(area::HOST_RSP))?;
    save_units(a)
}

/// R11 = the second slot for the jump target in R10, in words. Flags stay.
fn second_slot(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.rorx(r11, r10, area::SECOND_ROTATE)?;
    a.lea(r11d, ptr(r11 + r10 * 4))?;
    a.pext(r11, r11, qword_ptr(area::JUMP_MASK).gs())?;
    a.lea(r11, ptr(r11 + r11))
}

/// Goes to the jump target in R10 if its second slot has it. Else only R11 has changed.
fn look_into_second(a: &mut CodeAssembler, cpl: u8) -> Result<(), IcedError> {
    let mut hit = a.create_label();
    let mut miss = a.create_label();
    second_slot(a)?;
    a.mov(r11, qword_ptr(r11 * 8 + area::jump_address(cpl)).gs())?;
    a.lea(r11, ptr(r11 + r10))?;
    a.xchg(rcx, r11)?;
    a.jrcxz(hit)?;
    a.mov(rcx, r11)?;
    a.jmp(miss)?;
    a.set_label(&mut hit)?;
    a.mov(rcx, r11)?;
    second_slot(a)?;
    a.jmp(qword_ptr(r11 * 8 + area::jump_host(cpl)).gs())?;
    a.set_label(&mut miss)?;
    a.nop()
}

/// EDX:EAX = what `time` returns; goes on at the address in R10. R9 and R11 are used, all else is kept.
fn time_stamp(a: &mut CodeAssembler, time: u64) -> Result<(), IcedError> {
    const KEPT: [AsmRegister64; 6] = [r10, rax, rcx, rsi, rdi, r8];
    a.mov(at(area::gpr(4)), rsp)?;
    a.mov(rsp, at(area::HOST_RSP))?;
    flags_to_ax(a)?;
    for register in KEPT {
        a.push(register)?;
    }
    save_units(a)?;
    a.mov(rdi, at(area::THIS))?;
    a.mov(rax, time)?;
    a.call(rax)?;
    a.mov(r9, rax)?;
    load_units(a)?;
    for register in KEPT.into_iter().rev() {
        a.pop(register)?;
    }
    a.mov(rsp, at(area::gpr(4)))?;
    flags_from_ax(a)?;
    a.mov(eax, r9d)?;
    a.rorx(rdx, r9, 32)?;
    a.mov(edx, edx)?;
    a.jmp(r10)
}

/// What the thunks call.
pub(crate) struct Helpers {
    /// Decides where to go on, or returns zero to leave.
    pub(crate) left: u64,
    /// Reads the time-stamp counter.
    pub(crate) time: u64,
}

/// Makes the thunks.
pub(crate) fn make(memory: &mut CodeMemory, helpers: &Helpers) -> Result<Thunks, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let mut load = a.create_label();
    let mut save = a.create_label();
    let mut leave = a.create_label();
    for register in HOST {
        a.push(register)?;
    }
    a.sub(rsp, 8)?;
    a.mov(at(area::HOST_RSP), rsp)?;
    a.set_label(&mut load)?;
    load_guest(&mut a)?;
    a.set_label(&mut save)?;
    save_guest(&mut a)?;
    a.mov(rdi, at(area::THIS))?;
    a.mov(rax, helpers.left)?;
    a.call(rax)?;
    a.test(rax, rax)?;
    a.jz(leave)?;
    a.mov(at(area::RESUME), rax)?;
    a.jmp(load)?;
    a.set_label(&mut leave)?;
    a.add(rsp, 8)?;
    for register in HOST.into_iter().rev() {
        a.pop(register)?;
    }
    a.ret()?;
    let mut ways = Vec::new();
    for why in Why::ALL {
        let mut label = a.create_label();
        a.set_label(&mut label)?;
        ways.push(label);
        if why == Why::Time {
            time_stamp(&mut a, helpers.time)?;
            continue;
        }
        if let Some(cpl) = why.looks_into() {
            look_into_second(&mut a, cpl)?;
        }
        match why {
            Why::Syscall => call::syscall(&mut a)?,
            Why::Sysret => call::sysret(&mut a)?,
            _ => {}
        }
        if why != Why::Fault {
            a.mov(at(area::WHAT), r10)?;
        }
        a.mov(qword_ptr(area::WHY).gs(), why.told() as i32)?;
        a.jmp(save)?;
    }
    let base = memory.next();
    let result = a.assemble_options(base, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    memory.add(&result.inner.code_buffer).expect("the memory is empty");
    memory.keep();
    let mut thunks = Thunks {
        enter: base,
        leave: [0; Why::ALL.len()],
    };
    for (slot, label) in thunks.leave.iter_mut().zip(&ways) {
        *slot = result.label_ip(label)?;
    }
    Ok(thunks)
}
