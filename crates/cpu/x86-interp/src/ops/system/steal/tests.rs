//! Steal time, and the TLB flush that others leave word of; hypercalls and the end of HLT that they bring.

use std::time::Duration;

use cpu_model::Activity;
use cpu_model::CpuPolicy;
use cpu_model::Engine;
use cpu_model::Feature;
use cpu_model::Model;
use cpu_model::Paravirt;
use cpu_model::Signal;
use cpu_model::Stop;
use iced_x86::code_asm::*;
use x86_isa::flags;
use x86_isa::msr;

use crate::testing::*;

/// Where tests keep the structure.
const AT: u64 = 0xe040;
/// Its `preempted`.
const WORD: u64 = AT + 16;

/// Steal time and version.
fn stolen(m: &Machine) -> (u64, u32) {
    (m.read(AT), m.read(AT + 8))
}

fn machine() -> Machine {
    let mut m = Machine::new(Mode::Long);
    assert_eq!(wrmsr(&mut m, msr::KVM_STEAL_TIME, AT | 1), 0x40);
    m
}

/// Runs once more, after `ms` milliseconds of which the host gave `stolen` microseconds to others.
fn go(m: &mut Machine, ms: u64, stolen: u64) {
    m.board.clock.advance(ms * 1_000_000);
    *m.board.stolen.lock().unwrap() += Duration::from_micros(stolen);
    m.code(|a| a.int(0x40));
    m.edit(again);
    assert_eq!(m.vector(), 0x40);
}

#[test]
fn time_that_the_host_gave_away_is_added_up() {
    let mut m = Machine::new(Mode::Long);
    *m.board.stolen.lock().unwrap() = Duration::from_secs(1);
    m.write(AT, 7_u64);
    assert_eq!(wrmsr(&mut m, msr::KVM_STEAL_TIME, AT | 1), 0x40);
    assert_eq!(stolen(&m), (7, 0), "what was before is not the guest's");
    go(&mut m, 2, 5);
    assert_eq!(stolen(&m), (5_007, 2));
    go(&mut m, 2, 0);
    assert_eq!(stolen(&m), (5_007, 2));
    go(&mut m, 0, 9);
    assert_eq!(stolen(&m), (5_007, 2), "not asked within a millisecond");
    go(&mut m, 1, 1);
    assert_eq!(stolen(&m), (15_007, 4));
}

#[test]
fn count_goes_on_in_a_restored_state() {
    let mut m = machine();
    go(&mut m, 2, 5);
    let saved = m.state();
    assert_eq!(saved.msrs.kvm_steal_time, AT | 1);
    m.vcpu = m.engine.new_vcpu(0).unwrap();
    m.vcpu.set_state(&saved).unwrap();
    go(&mut m, 2, 50);
    assert_eq!(stolen(&m).0, 5_000, "of another thread");
    go(&mut m, 2, 3);
    assert_eq!(stolen(&m).0, 8_000);
}

#[test]
fn running_is_told_in_memory() {
    let mut m = machine();
    assert_eq!(m.read::<u8>(WORD), 1, "in HLT");
    m.code(|a| {
        a.mov(rbx, WORD)?;
        a.movzx(ecx, byte_ptr(rbx))?;
        a.int(0x40)
    });
    m.edit(again);
    assert_eq!(m.vector(), 0x40);
    assert_eq!((m.state().gpr[1], m.read::<u8>(WORD)), (0, 1));
    wrmsr(&mut m, msr::KVM_STEAL_TIME, 0);
    m.write(WORD, 0_u8);
    go(&mut m, 1, 0);
    assert_eq!(m.read::<u8>(WORD), 0, "disabled");
}

/// A page that is read, moved while the vCPU does not run, and read again: what it reads then.
fn moved(m: &mut Machine, word: u8) -> u64 {
    const PAGE: u64 = 0x20_0000;
    m.write(PAGE, 1_u64);
    m.write(PAGE + 0x20_0000, 2_u64);
    m.code(|a| {
        a.mov(rbx, PAGE)?;
        a.mov(rcx, qword_ptr(rbx))?;
        a.int(0x40)
    });
    // The state is not touched from here on: that would flush.
    m.edit(again);
    assert_eq!(m.vector(), 0x40);
    assert_eq!(m.state().gpr[1], 1);
    m.write(0x3008, (PAGE + 0x20_0000) | 0x87);
    m.write(WORD, word);
    m.code_at(HANDLERS + 0x40 * 16 + 1, 64, |a| {
        a.mov(rcx, qword_ptr(rbx))?;
        a.int(0x41)
    });
    m.vcpu.signals().raise(Signal::Unhalt);
    assert_eq!(m.vector(), 0x41);
    m.state().gpr[1]
}

#[test]
fn tlb_is_flushed_if_somebody_left_word() {
    assert_eq!(moved(&mut machine(), 1), 1, "the TLB has the old page");
    assert_eq!(moved(&mut machine(), 3), 2);
    let policy = CpuPolicy::new(Model::V2).unwrap().without(Feature::KvmPvTlbFlush);
    let mut m = Machine::with_policy(Mode::Long, policy);
    wrmsr(&mut m, msr::KVM_STEAL_TIME, AT | 1);
    assert_eq!(moved(&mut m, 3), 1, "not promised");
}

#[test]
fn stand_in_passes_the_flush_on_and_leaves_the_time_alone() {
    let mut m = machine();
    let mut vcpu = m.engine.vcpu(0, m.vcpu.signals()).unwrap();
    vcpu.stand_in();
    let state = m.state();
    cpu_model::Vcpu::set_state(&mut vcpu, &state).unwrap();
    m.vcpu = Box::new(vcpu);
    go(&mut m, 2, 5);
    go(&mut m, 2, 5);
    assert_eq!((stolen(&m).0, m.read::<u8>(WORD)), (0, 3));
}

#[test]
fn register_refuses_reserved_bits_and_goes_with_its_feature() {
    let mut m = machine();
    for bit in 1..6 {
        assert_eq!(wrmsr(&mut m, msr::KVM_STEAL_TIME, AT & !0x3f | 1 << bit | 1), 13);
    }
    for at in [0x4000_0000, ROM] {
        assert_eq!(wrmsr(&mut m, msr::KVM_STEAL_TIME, at | 1), 0x40);
    }
    assert_eq!(m.read::<[u64; 3]>(ROM), [0; 3]);
    let mut m = Machine::with_policy(Mode::Long, CpuPolicy::new(Model::V1).unwrap());
    assert_eq!(wrmsr(&mut m, msr::KVM_STEAL_TIME, AT | 1), 13);
}

#[test]
fn init_ends_steal_time() {
    let mut m = machine();
    m.vcpu.signals().raise(Signal::Init);
    m.steps(1);
    assert_eq!(m.state().msrs.kvm_steal_time, 0);
}

/// The models that are the same under every engine have none.
fn with_hypercalls() -> Machine {
    Machine::with_policy(Mode::Long, CpuPolicy::new(Model::Host).unwrap())
}

/// Makes a hypercall by either instruction; the vector that follows and RAX.
fn hypercall(m: &mut Machine, number: u64, amd: bool) -> (u64, u64) {
    m.code(|a| {
        a.mov(rax, number)?;
        a.mov(ebx, 0b101)?;
        a.xor(ecx, ecx)?;
        a.mov(edx, 2)?;
        a.mov(esi, 0xfd)?;
        if amd {
            a.vmmcall()?
        } else {
            a.vmcall()?
        }
        a.int(0x40)
    });
    m.edit(again);
    (m.vector(), m.state().gpr[0])
}

#[test]
fn hypercalls_reach_the_board_by_either_instruction() {
    for amd in [false, true] {
        let mut m = with_hypercalls();
        assert_eq!(hypercall(&mut m, 10, amd), (0x40, 2));
        assert_eq!(*m.board.ipis.lock().unwrap(), [(0, 2, 0b101, 0xfd)]);
        assert_eq!(hypercall(&mut m, 5, amd), (0x40, 0));
        assert_eq!(*m.board.unhalted.lock().unwrap(), [0]);
        assert_eq!(hypercall(&mut m, 77, amd), (0x40, -1000_i64 as u64));
    }
}

#[test]
fn hypercalls_of_user_programs_are_refused() {
    let mut m = with_hypercalls();
    m.gate(0x40, CODE64, 0xee, 0);
    m.user();
    assert_eq!(hypercall(&mut m, 10, false), (0x40, u64::MAX));
    assert!(m.board.ipis.lock().unwrap().is_empty());
}

#[test]
fn hypercalls_are_undefined_where_no_hypervisor_answers() {
    let policy = CpuPolicy::new(Model::V2).unwrap().with_paravirt(Paravirt::Minimal);
    for amd in [false, true] {
        let mut m = Machine::with_policy(Mode::Long, policy.clone());
        assert_eq!(hypercall(&mut m, 10, amd).0, 6);
    }
}

#[test]
fn another_vcpu_ends_hlt_with_interrupts_disabled() {
    let mut m = Machine::new(Mode::Long);
    m.code(|a| {
        a.cli()?;
        a.hlt()?;
        a.hlt()?;
        a.int(0x40)
    });
    assert_eq!(m.run(), Stop::Halted);
    m.interrupt(0x60);
    assert_eq!(m.run(), Stop::Halted);
    m.vcpu.signals().raise(Signal::Unhalt);
    assert_eq!(m.run(), Stop::Halted, "in the next HLT");
    m.vcpu.signals().raise(Signal::Unhalt);
    let saved = m.state();
    assert!(saved.pending.unhalted && saved.activity == Activity::Halted);
    m.vcpu = m.engine.new_vcpu(0).unwrap();
    m.vcpu.set_state(&saved).unwrap();
    assert_eq!(m.vector(), 0x40);
    assert_eq!(m.state().rflags & flags::IF, 0);
}

#[test]
fn end_of_hlt_that_comes_before_it_is_not_lost() {
    let mut m = Machine::new(Mode::Long);
    m.vcpu.signals().raise(Signal::Unhalt);
    m.code(|a| {
        a.nop()?;
        a.hlt()?;
        a.int(0x40)
    });
    assert_eq!(m.vector(), 0x40);
}
