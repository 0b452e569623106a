//! Far transfers, gates, returns, system calls.

use cpu_model::Stop;
use iced_x86::code_asm::*;
use x86_isa::flags;

use crate::testing::*;

/// A call gate descriptor.
fn call_gate(selector: u16, offset: u64, params: u64, dpl: u64) -> u64 {
    offset & 0xffff | u64::from(selector) << 16 | params << 32 | (0x8c | dpl << 5) << 40 | offset >> 16 << 48
}

#[test]
fn call_gate_copies_parameters_and_retf_drops_them_on_both_stacks() {
    let mut m = Machine::new(Mode::Protected);
    m.descriptor(FREE, call_gate(CODE32, 0x3_0000, 2, 3));
    m.code_at(0x3_0000, 32, |a| {
        a.mov(ebx, dword_ptr(esp + 8))?;
        a.mov(ecx, dword_ptr(esp + 12))?;
        a.mov(edx, esp)?;
        a.retf_1(8)
    });
    m.gate(0x40, CODE32, 0xee, 0);
    m.code(|a| {
        a.push(0x11)?;
        a.push(0x22)?;
        a.db(&[0x9a, 0, 0, 0, 0, FREE as u8 | 3, 0])?;
        a.mov(esi, esp)?;
        a.int(0x40)
    });
    m.user();
    assert_eq!(m.vector(), 0x40);
    let s = m.state();
    assert_eq!((s.gpr[3], s.gpr[1]), (0x22, 0x11));
    assert_eq!((s.gpr[2], s.gpr[6]), (KERNEL_STACK - 24, STACK));
    assert_eq!(m.stack(1), USER_CODE32.into());
}

#[test]
fn far_jump_to_an_inner_segment_is_gp_naming_it() {
    let mut m = Machine::new(Mode::Protected);
    m.code(|a| a.db(&[0xea, 0, 0, 3, 0, CODE32 as u8, 0]));
    m.user();
    assert_eq!(m.vector(), 13);
    assert_eq!([m.stack(0), m.stack(1)], [CODE32.into(), CODE]);
}

#[test]
fn return_to_ring3_empties_inner_data_segments() {
    let mut m = Machine::new(Mode::Protected);
    m.gate(0x40, CODE32, 0xee, 0);
    m.code_at(0x3_0000, 32, |a| a.int(0x40));
    m.code(|a| {
        a.mov(eax, USER_DATA as i32)?;
        a.mov(es, eax)?;
        a.push(USER_DATA as i32)?;
        a.push(0xa000)?;
        a.pushfd()?;
        a.push(USER_CODE32 as i32)?;
        a.push(0x3_0000)?;
        a.iretd()
    });
    assert_eq!(m.vector(), 0x40);
    let s = m.state();
    assert_eq!((s.segments[0].selector, s.segments[3].selector), (USER_DATA, 0));
    assert_eq!(m.stack(3), 0xa000);
}

#[test]
fn iret_in_ring3_keeps_iopl_and_if() {
    let mut m = Machine::new(Mode::Long);
    m.gate(0x40, CODE64, 0xee, 0);
    m.code_at(0x3_0000, 64, |a| a.int(0x40));
    m.code(|a| {
        a.push(USER_DATA as i32)?;
        a.push(0xa000)?;
        a.push((flags::ALL & !flags::VM & !flags::TF) as i32)?;
        a.push(USER_CODE64 as i32)?;
        a.push(0x3_0000)?;
        a.iretq()
    });
    m.user();
    assert_eq!(m.vector(), 0x40);
    let kept = flags::IOPL | flags::IF | flags::VIF | flags::VIP | flags::RF;
    assert_eq!(m.stack(2) & kept, 0);
    assert_eq!(m.stack(2), flags::ALL & !flags::VM & !flags::TF & !kept);
}

#[test]
fn iretq_to_a_non_canonical_address_is_gp_before_the_return() {
    let mut m = Machine::new(Mode::Long);
    m.code(|a| {
        a.mov(rax, 0x8000_0000_0000u64)?;
        a.push(USER_DATA as i32)?;
        a.push(0xa000)?;
        a.pushfq()?;
        a.push(USER_CODE64 as i32)?;
        a.push(rax)?;
        a.iretq()
    });
    assert_eq!(m.vector(), 13);
    assert_eq!((m.stack(0), m.stack(2)), (0, CODE64.into()));
}

#[test]
fn iretd_enters_virtual_8086_mode() {
    let mut m = Machine::new(Mode::Protected);
    m.code_at(0x3_0000, 16, |a| {
        a.mov(ax, ds)?;
        a.hlt()
    });
    m.code(|a| {
        for value in [0x105, 0x104, 0x3000, 0x100, 0xa00, 0x1000, 0x20002, 0x3000, 0] {
            a.push(value)?;
        }
        a.iretd()
    });
    // HLT is privileged.
    assert_eq!(m.vector(), 13);
    let s = m.state();
    assert_eq!(s.gpr[0] & 0xffff, 0x3000);
    assert_eq!(
        [m.stack(0), m.stack(1), m.stack(2), m.stack(3)],
        [0, 2, 0x3000, 0x20002 | flags::RF]
    );
    assert_eq!([m.stack(4), m.stack(5), m.stack(7)], [0x1000, 0xa00, 0x3000]);
}

#[test]
fn syscall_and_sysret_change_level_with_flat_segments() {
    let mut m = Machine::new(Mode::Long);
    m.edit(|s| {
        s.msrs.star = 0x23 << 48 | u64::from(CODE64) << 32;
        s.msrs.lstar = 0x3_0000;
        s.msrs.fmask = flags::IF;
    });
    m.gate(0x40, CODE64, 0xee, 0);
    m.code_at(0x3_0000, 64, |a| {
        a.pushfq()?;
        a.pop(rbx)?;
        a.sysretq()
    });
    m.code(|a| {
        a.syscall()?;
        a.int(0x40)
    });
    m.user();
    m.edit(|s| s.rflags |= flags::IF | flags::CF);
    assert_eq!(m.vector(), 0x40);
    let s = m.state();
    assert_eq!(
        (s.gpr[1], s.gpr[11], s.gpr[3]),
        (CODE + 2, flags::IF | flags::CF | 2, flags::CF | 2)
    );
    assert_eq!(
        [m.stack(1), m.stack(2), m.stack(4)],
        [0x33, flags::IF | flags::CF | 2, 0x2b]
    );
}

#[test]
fn sysenter_without_its_segment_is_gp() {
    let mut m = Machine::new(Mode::Protected);
    m.code(|a| a.sysenter());
    assert_eq!(m.vector(), 13);
}

#[test]
fn real_mode_far_call_and_return_go_through_the_stack() {
    let mut m = Machine::new(Mode::Real);
    m.code_at(0x3_0000, 16, |a| {
        a.mov(bx, 9)?;
        a.retf()
    });
    m.code(|a| {
        a.db(&[0x9a, 0, 0, 0, 0x30])?;
        a.mov(cx, cs)?;
        a.hlt()
    });
    assert_eq!(m.run(), Stop::Halted);
    let s = m.state();
    assert_eq!((s.gpr[3], s.gpr[1], s.gpr[4]), (9, CODE >> 4, STACK));
}
