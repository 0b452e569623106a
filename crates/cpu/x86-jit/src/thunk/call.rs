//! SYSCALL and SYSRET without leaving translated code.
//!
//! What they change beside flags, registers and the instruction pointer is known beforehand (`area::Call`), as long as nothing
//! has been configured anew. All else is left: the code falls through to the way out, with everything as it was.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use x86_isa::flags;

use super::at;
use super::flags_from_ax;
use super::flags_to_ax;
use crate::area;

const CS: u8 = 1;
const SS: u8 = 2;

/// Bytes of a segment register, in words.
const WORDS: u32 = (size_of::<cpu_model::SegmentState>() / 8) as u32;

/// AX = the flags; RAX is put aside.
fn park(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(at(area::SCRATCH), rax)?;
    flags_to_ax(a)
}

/// The flags, from AX, and RAX.
fn unpark(a: &mut CodeAssembler) -> Result<(), IcedError> {
    flags_from_ax(a)?;
    a.mov(rax, at(area::SCRATCH))
}

/// Jumps to `otherwise` when it is not known what a call to `cpl` leads to. R11 is used.
fn check(a: &mut CodeAssembler, cpl: u8, otherwise: CodeLabel) -> Result<(), IcedError> {
    a.mov(r11, at(area::CONFIG))?;
    a.cmp(r11, at(area::call(cpl)))?;
    a.jne(otherwise)
}

/// Changes the privilege level, with CS and SS. R8 becomes the addend of the stack's page; R9 is used.
fn enter_level(a: &mut CodeAssembler, cpl: u8) -> Result<(), IcedError> {
    for (from, n) in [(area::call_cs(cpl), CS), (area::call_ss(cpl), SS)] {
        for word in 0..WORDS {
            a.mov(r9, at(from + 8 * word))?;
            a.mov(at(area::segment(n) + 8 * word), r9)?;
        }
    }
    let bank = area::bank(cpl);
    a.mov(byte_ptr(area::CPL).gs(), i32::from(cpl))?;
    a.mov(qword_ptr(area::BANK).gs(), i32::from(bank))?;
    a.mov(r8, at(area::stack(bank) + 8))
}

/// Goes to the address in R10. Flags stay.
fn go(a: &mut CodeAssembler, cpl: u8) -> Result<(), IcedError> {
    // No instruction of the block that is entered has computed it.
    a.mov(r9d, 0)?;
    a.rorx(r11, r10, area::FIRST_ROTATE)?;
    a.lea(r11d, ptr(r10 + r11))?;
    a.pext(r11, r11, at(area::JUMP_MASK))?;
    a.lea(r11, ptr(r11 + r11))?;
    a.jmp(qword_ptr(r11 * 8 + area::jump_host(cpl)).gs())
}

/// R10 is the record, R9 the address behind the instruction.
pub(super) fn syscall(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut otherwise = a.create_label();
    park(a)?;
    check(a, 0, otherwise)?;
    // R11 of the guest = RFLAGS: AH has the low byte, AL is one with OF.
    a.movzx(r11d, al)?;
    a.shl(r11d, flags::OF.trailing_zeros())?;
    a.movzx(eax, ah)?;
    a.and(eax, (flags::ARITH & !flags::OF) as i32)?;
    a.or(r11d, eax)?;
    a.mov(rax, at(area::SYSFLAGS))?;
    a.or(r11, rax)?;
    a.or(r11, flags::FIXED as i32)?;
    a.mov(at(area::gpr(11)), r11)?;
    a.mov(rcx, r9)?;
    a.mov(r11, at(area::MSRS))?;
    a.mov(r10, qword_ptr(r11 + area::FMASK))?;
    a.andn(rax, r10, rax)?;
    a.mov(at(area::SYSFLAGS), rax)?;
    a.mov(r10, qword_ptr(r11 + area::LSTAR))?;
    enter_level(a, 0)?;
    // All flags of arithmetic are clear.
    a.mov(eax, 0)?;
    unpark(a)?;
    go(a, 0)?;
    a.set_label(&mut otherwise)?;
    unpark(a)
}

/// R10 is the record.
pub(super) fn sysret(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const HIDDEN: u64 = flags::RF | flags::VM;
    const KEPT: u64 = flags::ALL & !(HIDDEN | flags::ARITH | flags::FIXED);
    let mut otherwise = a.create_label();
    park(a)?;
    check(a, 3, otherwise)?;
    a.mov(r11, at(area::gpr(11)))?;
    a.test(r11d, (flags::TF | flags::AC) as i32)?;
    a.jnz(otherwise)?;
    // It may let an interrupt in.
    a.mov(r9, at(area::PENDING))?;
    a.cmp(dword_ptr(r9), 0)?;
    a.jne(otherwise)?;
    a.cmp(byte_ptr(area::INTERRUPT).gs(), 0)?;
    a.jne(otherwise)?;
    // What is canonical with 48 bits is so with 57.
    a.mov(r9, rcx)?;
    a.shl(r9, 16)?;
    a.sar(r9, 16)?;
    a.cmp(r9, rcx)?;
    a.jne(otherwise)?;
    a.mov(r10, rcx)?;
    a.mov(eax, r11d)?;
    a.and(eax, KEPT as i32)?;
    a.mov(at(area::SYSFLAGS), rax)?;
    enter_level(a, 3)?;
    a.movzx(eax, r11b)?;
    a.shl(eax, 8)?;
    a.bt(r11d, flags::OF.trailing_zeros())?;
    a.setc(al)?;
    unpark(a)?;
    go(a, 3)?;
    a.set_label(&mut otherwise)?;
    unpark(a)
}
