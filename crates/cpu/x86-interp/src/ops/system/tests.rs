//! Control registers, MSRs, privilege of system instructions.

use cpu_model::Stop;
use iced_x86::code_asm::*;
use x86_isa::cr0;
use x86_isa::efer;
use x86_isa::msr;

use crate::testing::*;

/// Runs WRMSR in long mode on a new machine: the vector of its exception, or `None` where there was none.
fn refused(number: u32, value: u64) -> Option<u64> {
    let vector = wrmsr(&mut Machine::new(Mode::Long), number, value);
    (vector != 0x40).then_some(vector)
}

#[test]
fn real_to_protected_to_long_mode_as_loaders_do_it() {
    let mut m = Machine::new(Mode::Long);
    m.edit(|s| {
        s.cr0 = 0x11;
        s.cr4 = 0;
        s.cr3 = 0;
        s.msrs.efer = 0;
        s.segments[1] = flat(CODE32, 0xc9b);
    });
    m.code_at(0x3_0000, 64, |a| a.int(0x40));
    m.code_at(CODE, 32, |a| {
        a.mov(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, 0x1000)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, msr::EFER as i32)?;
        a.rdmsr()?;
        a.or(eax, efer::LME as i32)?;
        a.wrmsr()?;
        a.mov(eax, 0x8000_0011u32)?;
        a.mov(cr0, eax)?;
        a.db(&[0xea, 0, 0, 3, 0, CODE64 as u8, 0])
    });
    assert_eq!(m.vector(), 0x40);
    let s = m.state();
    assert_eq!(s.msrs.efer, efer::LME | efer::LMA);
    assert_eq!(m.stack(1), CODE64.into());
}

#[test]
fn cr0_refuses_paging_without_protection() {
    let mut m = Machine::new(Mode::Protected);
    m.code(|a| {
        a.mov(eax, cr0::PG as u32)?;
        a.mov(cr0, eax)
    });
    assert_eq!(m.vector(), 13);
    assert_eq!(m.state().cr0, 0x11);
}

#[test]
fn cr4_refuses_unknown_bits_and_loss_of_pae_in_long_mode() {
    for value in [0x20 | 1 << 13, 0x20 | 1 << 23, 0] {
        let mut m = Machine::new(Mode::Long);
        m.edit(|s| s.gpr[0] = value);
        m.code(|a| a.mov(cr4, rax));
        assert_eq!(m.vector(), 13, "{value:#x}");
    }
}

#[test]
fn cr3_refuses_addresses_that_do_not_exist() {
    let mut m = Machine::new(Mode::Long);
    m.edit(|s| s.gpr[0] = 1 << 52);
    m.code(|a| a.mov(cr3, rax));
    assert_eq!(m.vector(), 13);
}

#[test]
fn msrs_take_what_they_hold_and_refuse_the_rest() {
    assert_eq!(refused(msr::LSTAR, 0xffff_8000_0000_0000), None);
    assert_eq!(refused(msr::LSTAR, 0x8000_0000_0000), Some(13));
    assert_eq!(refused(msr::PAT, 0x0007_0406_0007_0406), None);
    assert_eq!(refused(msr::PAT, 2), Some(13));
    assert_eq!(refused(msr::EFER, 0xc01), Some(13));
    assert_eq!(refused(msr::MTRR_FIX4K + 3, 0x0606_0505_0404_0100), None);
    assert_eq!(refused(msr::MTRR_FIX4K + 3, 2), Some(13));
    assert_eq!(refused(msr::MTRR_PHYSBASE0 + 1, 0xff_f000_0800), None);
    assert_eq!(refused(msr::MTRR_PHYSBASE0 + 1, 0x100_0000_0800), Some(13));
    assert_eq!(refused(msr::MC0_CTL, u64::MAX), None);
    assert_eq!(refused(msr::MC0_CTL + 1, 1), Some(13));
    assert_eq!(refused(msr::TSC_ADJUST, 0x1_2345_6789), None);
    assert_eq!(refused(0x1234_5678, 0), Some(13));
}

#[test]
fn tsc_follows_guest_time_and_can_be_set() {
    let mut m = Machine::new(Mode::Long);
    m.board.clock.advance(1_000);
    m.code(|a| {
        a.rdtsc()?;
        a.mov(ebx, eax)?;
        a.mov(ecx, msr::TSC as i32)?;
        a.mov(eax, 77)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.rdtsc()?;
        a.hlt()
    });
    assert_eq!(m.run(), Stop::Halted);
    let s = m.state();
    assert_eq!((s.gpr[3], s.gpr[0]), (2_000, 77));
    assert_eq!(s.msrs.tsc_adjust, 77u64.wrapping_sub(2_000));
}

#[test]
fn debug_register_access_under_gd_is_a_debug_exception() {
    let mut m = Machine::new(Mode::Long);
    m.edit(|s| s.dr[5] = 0x2400);
    m.code(|a| a.mov(rax, dr0));
    assert_eq!(m.vector(), 1);
    let s = m.state();
    assert_eq!((s.dr[4], s.dr[5]), (0xffff_2ff0, 0x400));
    assert_eq!(m.stack(0), CODE);
}

#[test]
fn data_breakpoint_traps_after_the_write() {
    let mut m = Machine::new(Mode::Long);
    m.edit(|s| (s.dr[1], s.dr[5]) = (0xe004, 1 << 2 | 0xd << 20 | 0x400));
    m.code(|a| {
        a.mov(dword_ptr(0xe000), eax)?;
        a.mov(byte_ptr(0xe006), al)?;
        a.nop()
    });
    assert_eq!(m.vector(), 1);
    assert_eq!((m.state().dr[4], m.stack(0)), (0xffff_0ff2, CODE + 18));
}

#[test]
fn instruction_breakpoint_is_skipped_with_rf() {
    let mut m = Machine::new(Mode::Long);
    m.code(|a| {
        a.inc(ebx)?;
        a.inc(ecx)?;
        a.int(0x40)
    });
    m.edit(|s| (s.dr[0], s.dr[5]) = (CODE + 2, 0x401));
    assert_eq!(m.vector(), 1);
    assert_eq!((m.state().dr[4], m.stack(0)), (0xffff_0ff1, CODE + 2));
    m.edit(|s| {
        (s.rip, s.gpr[4]) = (CODE, STACK);
        s.rflags |= 1 << 16;
        s.activity = cpu_model::Activity::Active;
        s.rip = CODE + 2;
    });
    assert_eq!(m.vector(), 0x40);
    assert_eq!(m.state().gpr[1], 1);
}

#[test]
fn instruction_breakpoint_behind_mov_ss_is_passed() {
    let mut m = Machine::new(Mode::Long);
    m.edit(|s| (s.dr[0], s.dr[5], s.gpr[1]) = (CODE + 2, 0x401, DATA.into()));
    m.code(|a| {
        a.mov(ss, ecx)?;
        a.inc(ebx)?;
        a.int(0x40)
    });
    assert_eq!(m.vector(), 0x40);
    assert_eq!(m.state().gpr[3], 1);
}

#[test]
fn return_to_ring3_empties_gs_but_keeps_its_base() {
    let mut m = Machine::new(Mode::Long);
    m.gate(0x40, CODE64, 0xee, 0);
    m.edit(|s| s.segments[5].base = 0x1234_5000);
    m.code_at(0x3_0000, 64, |a| {
        a.inc(ebx)?;
        a.int(0x40)
    });
    m.code(|a| {
        a.push(USER_DATA as i32)?;
        a.push(0xa000)?;
        a.pushfq()?;
        a.push(USER_CODE64 as i32)?;
        a.push(0x3_0000)?;
        a.iretq()
    });
    assert_eq!(m.vector(), 0x40);
    let s = m.state();
    assert_eq!((s.segments[5].selector, s.segments[5].base), (0, 0x1234_5000));
}

#[test]
fn umip_hides_descriptor_tables_from_user_programs() {
    let mut m = Machine::new(Mode::Long);
    m.edit(|s| s.cr4 |= x86_isa::cr4::UMIP);
    m.code(|a| a.sgdt(ptr(0xe000)));
    m.user();
    assert_eq!(m.vector(), 13);
}

#[test]
fn cr8_is_the_task_priority_of_the_apic() {
    let mut m = Machine::new(Mode::Long);
    m.code(|a| {
        a.mov(eax, 9)?;
        a.mov(cr8, rax)?;
        a.mov(rbx, cr8)?;
        a.mov(eax, 16)?;
        a.mov(cr8, rax)
    });
    assert_eq!(m.vector(), 13);
    assert_eq!(m.state().gpr[3], 9);
}

#[test]
fn smap_stops_the_kernel_from_reading_user_pages_but_for_ac() {
    let mut m = Machine::new(Mode::Long);
    // One supervisor mapping of all memory for code and stack at 1 GiB is out of reach of the tables: the tables become
    // supervisor ones but for the page of the data.
    m.write(0x3000, 0x4007u64);
    for page in 0..512u64 {
        m.write(0x4000 + page * 8, page << 12 | if page == 0xe { 7 } else { 3 });
    }
    m.edit(|s| s.cr4 |= x86_isa::cr4::SMAP);
    m.code(|a| {
        a.stac()?;
        a.mov(eax, dword_ptr(0xe000))?;
        a.clac()?;
        a.mov(eax, dword_ptr(0xe000))
    });
    assert_eq!(m.vector(), 14);
    assert_eq!((m.stack(0), m.stack(1)), (1, CODE + 3 + 9 + 3));
}
