//! Gates, faults while delivering, double faults, windows.

use cpu_model::Signal;
use cpu_model::Stop;
use iced_x86::code_asm::*;
use x86_isa::flags;

use crate::testing::*;

const LIMIT_ERROR: u64 = 2;

fn gate_error(vector: u64) -> u64 {
    vector * 8 + LIMIT_ERROR
}

#[test]
fn real_mode_int_pushes_flags_cs_ip_and_clears_if() {
    let mut m = Machine::new(Mode::Real);
    m.edit(|s| s.rflags |= flags::IF | flags::CF);
    m.code(|a| a.int(0x21));
    assert_eq!(m.vector(), 0x21);
    assert_eq!(
        [m.stack(0), m.stack(1), m.stack(2)],
        [2, CODE >> 4, flags::IF | flags::CF | 2]
    );
    assert_eq!(m.state().rflags & flags::IF, 0);
}

#[test]
fn int_from_ring3_switches_to_the_stack_of_the_tss() {
    let mut m = Machine::new(Mode::Protected);
    m.gate(0x40, CODE32, 0xee, 0);
    m.code(|a| a.int(0x40));
    m.user();
    assert_eq!(m.vector(), 0x40);
    let frame: Vec<_> = (0..5).map(|i| m.stack(i)).collect();
    assert_eq!(frame, [CODE + 2, USER_CODE32.into(), 2, STACK, USER_DATA.into()]);
    let s = m.state();
    assert_eq!((s.gpr[4], s.segments[2].selector), (KERNEL_STACK - 20, DATA));
}

#[test]
fn int_through_a_privileged_gate_is_gp_naming_the_gate() {
    let mut m = Machine::new(Mode::Protected);
    m.code(|a| a.int(0x40));
    m.user();
    assert_eq!(m.vector(), 13);
    assert_eq!([m.stack(0), m.stack(1)], [gate_error(0x40), CODE]);
}

#[test]
fn fault_pushes_rf_and_restarts_while_trap_goes_on() {
    let mut m = Machine::new(Mode::Protected);
    m.gate(3, CODE32, 0xee, 0);
    m.code(|a| a.ud2());
    assert_eq!(m.vector(), 6);
    assert_eq!([m.stack(0), m.stack(2)], [CODE, 2 | flags::RF]);
    let mut m = Machine::new(Mode::Protected);
    m.code(|a| a.int3());
    assert_eq!(m.vector(), 3);
    assert_eq!([m.stack(0), m.stack(2)], [CODE + 1, 2]);
}

#[test]
fn external_interrupt_through_an_absent_gate_sets_ext() {
    let mut m = Machine::new(Mode::Protected);
    m.gate(0x30, CODE32, 0x0e, 0);
    m.edit(|s| s.rflags |= flags::IF);
    m.code(|a| a.hlt());
    m.interrupt(0x30);
    assert_eq!(m.vector(), 11);
    assert_eq!(m.stack(0), gate_error(0x30) | 1);
}

#[test]
fn long_mode_frame_is_aligned_and_always_has_ss() {
    let mut m = Machine::new(Mode::Long);
    m.edit(|s| s.gpr[4] = STACK - 3);
    m.code(|a| a.ud2());
    assert_eq!(m.vector(), 6);
    assert_eq!(m.state().gpr[4], ((STACK - 3) & !15) - 40);
    assert_eq!([m.stack(3), m.stack(4)], [STACK - 3, DATA.into()]);
}

#[test]
fn long_mode_ring3_to_ring0_loads_null_ss_and_returns() {
    let mut m = Machine::new(Mode::Long);
    m.gate(0x80, CODE64, 0xee, 0);
    m.code_at(HANDLERS + 0x800, 64, |a| a.iretq());
    m.code(|a| {
        a.int(0x80)?;
        a.ud2()
    });
    m.user();
    assert_eq!(m.vector(), 6);
    let s = m.state();
    assert_eq!((s.segments[2].selector, s.gpr[4]), (0, KERNEL_STACK - 40));
    assert_eq!(
        [m.stack(0), m.stack(1), m.stack(3)],
        [CODE + 2, USER_CODE64.into(), STACK]
    );
}

#[test]
fn ist_gives_the_stack_without_a_change_of_level() {
    let mut m = Machine::new(Mode::Long);
    m.write(TSS_BASE + 0x24 + 8, 0xd008u64);
    m.gate(6, CODE64, 0x8e, 2);
    m.code(|a| a.ud2());
    assert_eq!(m.vector(), 6);
    assert_eq!(m.state().gpr[4], 0xd000 - 40);
}

#[test]
fn fault_on_a_bad_stack_is_a_double_fault() {
    let mut m = Machine::new(Mode::Long);
    m.write(TSS_BASE + 0x24, 0xd000u64);
    m.gate(8, CODE64, 0x8e, 1);
    m.edit(|s| s.gpr[4] = 0x4000_0000);
    m.code(|a| a.push(rax));
    assert_eq!(m.vector(), 8);
    assert_eq!([m.stack(0), m.stack(1), m.stack(4)], [0, CODE, 0x4000_0000]);
    assert_eq!(m.state().cr2, 0x4000_0000 - 8);
}

#[test]
fn double_fault_without_a_handler_is_shutdown() {
    let mut m = Machine::new(Mode::Protected);
    m.edit(|s| s.idtr.limit = 0);
    m.code(|a| a.ud2());
    assert_eq!(m.run(), Stop::TripleFault);
}

#[test]
fn page_fault_reports_address_and_access() {
    let mut m = Machine::new(Mode::Long);
    m.gate(14, CODE64, 0x8e, 0);
    m.code(|a| {
        a.mov(rax, 0x123_4567_8000u64)?;
        a.mov(qword_ptr(rax), rcx)
    });
    m.user();
    assert_eq!(m.vector(), 14);
    assert_eq!((m.stack(0), m.state().cr2), (6, 0x123_4567_8000));
}

#[test]
fn v86_interrupt_saves_the_data_segments_on_the_inner_stack() {
    let mut m = Machine::new(Mode::Protected);
    m.gate(0x60, CODE32, 0xee, 0);
    m.code_at(CODE, 16, |a| a.int(0x60));
    m.edit(|s| {
        s.rflags |= flags::VM | flags::IOPL;
        for (i, segment) in s.segments.iter_mut().enumerate() {
            *segment = crate::ops::segment::v86_segment(0x100 + i as u16);
        }
        s.segments[1] = crate::ops::segment::v86_segment((CODE >> 4) as u16);
        s.rip = 0;
    });
    assert_eq!(m.vector(), 0x60);
    let frame: Vec<_> = (0..9).map(|i| m.stack(i)).collect();
    let saved_flags = flags::VM | flags::IOPL | 2;
    assert_eq!(
        frame,
        [2, CODE >> 4, saved_flags, STACK, 0x102, 0x100, 0x103, 0x104, 0x105]
    );
    assert_eq!(m.state().segments[3].selector, 0);
}

#[test]
fn v86_software_interrupt_needs_iopl_3() {
    let mut m = Machine::new(Mode::Protected);
    m.gate(0x60, CODE32, 0xee, 0);
    m.code_at(CODE, 16, |a| a.int(0x60));
    m.edit(|s| {
        s.rflags |= flags::VM;
        for segment in &mut s.segments {
            *segment = crate::ops::segment::v86_segment((CODE >> 4) as u16);
        }
        s.rip = 0;
    });
    assert_eq!(m.vector(), 13);
    assert_eq!(m.stack(0), 0);
}

#[test]
fn nmi_stays_out_until_iret() {
    let mut m = Machine::new(Mode::Long);
    m.code(|a| a.hlt());
    m.vcpu.signals().raise(Signal::Nmi);
    assert_eq!(m.vector(), 2);
    assert!(m.state().pending.nmi_blocked);
    m.vcpu.signals().raise(Signal::Nmi);
    assert_eq!(m.run(), Stop::Halted);
    let s = m.state();
    assert!(s.pending.nmi, "held back");
    m.code_at(0x3_0000, 64, |a| a.iretq());
    m.edit(|s| {
        s.rip = 0x3_0000;
        s.activity = cpu_model::Activity::Active;
    });
    assert_eq!(m.vector(), 2);
    assert!(!m.state().pending.nmi);
}

#[test]
fn sti_holds_interrupts_for_one_instruction() {
    let mut m = Machine::new(Mode::Long);
    m.code(|a| {
        a.sti()?;
        a.inc(ebx)?;
        a.inc(ecx)?;
        a.hlt()
    });
    m.interrupt(0x50);
    assert_eq!(m.vector(), 0x50);
    let s = m.state();
    assert_eq!((s.gpr[3], s.gpr[1]), (1, 0));
}

#[test]
fn debug_trap_that_waits_behind_mov_ss_survives_save_and_restore() {
    let mut m = Machine::new(Mode::Protected);
    m.write(0xe000, DATA);
    m.edit(|s| (s.dr[0], s.dr[5], s.gpr[3]) = (0xe000, 1 | 7 << 16 | 0x400, 0xe000));
    m.code(|a| {
        a.mov(ss, word_ptr(ebx))?;
        a.nop()?;
        a.ud2()
    });
    m.steps(1);
    assert_eq!(m.state().pending.debug_trap, 1);
    m.edit(|_| ());
    assert_eq!(m.vector(), 1);
    assert_eq!((m.stack(0), m.state().dr[4]), (CODE + 3, 0xffff_0ff1));
}

#[test]
fn single_step_traps_after_each_instruction_but_not_behind_mov_ss() {
    let mut m = Machine::new(Mode::Long);
    m.edit(|s| s.rflags |= flags::TF);
    m.code(|a| {
        a.mov(ss, ecx)?;
        a.inc(ebx)?;
        a.inc(ebx)
    });
    m.edit(|s| s.gpr[1] = DATA.into());
    assert_eq!(m.vector(), 1);
    let s = m.state();
    assert_eq!((s.gpr[3], s.dr[4]), (1, 0xffff_4ff0));
    assert_eq!(m.stack(0), CODE + 4);
}

/// A 32-bit TSS at `base` with the selector that describes it.
fn task(m: &Machine, selector: u16, base: u64, entry: u64) {
    m.descriptor(selector, 0x0000_8900_0000_0067 | base << 16);
    let words = [
        (0x20, entry as u32),
        (0x24, 2),
        (0x38, 0xc000),
        (0x48, u32::from(DATA)),
        (0x4c, u32::from(CODE32)),
        (0x50, u32::from(DATA)),
        (0x54, u32::from(DATA)),
    ];
    for (offset, value) in words {
        m.write(base + offset, value);
    }
}

#[test]
fn call_to_a_task_and_iret_come_back_with_all_registers() {
    let mut m = Machine::new(Mode::Protected);
    task(&m, FREE, 0x7800, 0x3_0000);
    m.code_at(0x3_0000, 32, |a| {
        a.mov(ebx, 7)?;
        a.iretd()
    });
    m.code(|a| {
        a.mov(ebx, 5)?;
        // CALL 48h:0
        a.db(&[0x9a, 0, 0, 0, 0, FREE as u8, 0])?;
        a.int(0x44)
    });
    assert_eq!(m.vector(), 0x44);
    let s = m.state();
    assert_eq!((s.gpr[3], s.tr.selector, s.rflags & flags::NT), (5, TSS, 0));
    assert_ne!(s.cr0 & 8, 0, "CR0.TS");
    assert_eq!(m.read::<u16>(0x7800), TSS, "back link");
    assert_eq!(m.read::<u32>(0x7800 + 0x34), 7, "EBX of the other task");
    assert_eq!(m.read::<u8>(GDT_BASE + u64::from(FREE) + 5), 0x89, "not busy");
}

#[test]
fn double_fault_through_a_task_gate_pushes_its_code_in_the_new_task() {
    let mut m = Machine::new(Mode::Protected);
    task(&m, FREE, 0x7800, HANDLERS + 8 * 16);
    m.write(IDT_BASE + 8 * 8, 0x0000_8500_0000_0000u64 | u64::from(FREE) << 16);
    // The stack segment ends below the stack pointer.
    m.edit(|s| s.segments[2].limit = 0xfff);
    m.code(|a| a.push(eax));
    assert_eq!(m.vector(), 8);
    let s = m.state();
    assert_eq!((s.tr.selector, s.gpr[4], m.stack(0)), (FREE, 0xbffc, 0));
    assert_eq!(m.read::<u32>(TSS_BASE + 0x20), CODE as u32, "EIP of the old task");
}

#[test]
fn fault_in_the_new_task_is_taken_at_its_first_instruction() {
    let mut m = Machine::new(Mode::Protected);
    task(&m, FREE, 0x7800, 0x3_0000);
    m.write(0x7800 + 0x54, u32::from(FREE) + 0x70);
    m.code(|a| a.db(&[0xea, 0, 0, 0, 0, FREE as u8, 0]));
    assert_eq!(m.vector(), 10);
    assert_eq!([m.stack(0), m.stack(1)], [u64::from(FREE) + 0x70, 0x3_0000]);
    assert_eq!(m.state().tr.selector, FREE);
}

#[test]
fn jump_to_a_busy_task_is_gp_and_changes_nothing() {
    let mut m = Machine::new(Mode::Protected);
    m.code(|a| a.db(&[0xea, 0, 0, 0, 0, TSS as u8, 0]));
    assert_eq!(m.vector(), 13);
    assert_eq!([m.stack(0), m.stack(1)], [TSS.into(), CODE]);
}
