//! The paravirtual clock: what is written where, when, and when not.

use cpu_model::Activity;
use cpu_model::CpuPolicy;
use cpu_model::Engine;
use cpu_model::Feature;
use cpu_model::Model;
use cpu_model::Signal;
use cpu_model::Stop;
use iced_x86::code_asm::*;
use x86_isa::msr;

use crate::testing::*;

/// Where tests keep the time.
const AT: u64 = 0xe040;
/// 2^31: half a nanosecond to a tick.
const HALF: u32 = 1 << 31;

/// A `pvclock_vcpu_time_info`.
#[derive(Debug, PartialEq, Eq)]
struct Time {
    version: u32,
    tsc: u64,
    ns: u64,
    factor: u32,
    shift: u8,
    flags: u8,
}

fn time(m: &Machine, at: u64) -> Time {
    let [shift, flags, ..] = m.read::<[u8; 4]>(at + 28);
    Time {
        version: m.read(at),
        tsc: m.read(at + 8),
        ns: m.read(at + 16),
        factor: m.read(at + 24),
        shift,
        flags,
    }
}

fn right(version: u32, tsc: u64, ns: u64) -> Time {
    Time {
        version,
        tsc,
        ns,
        factor: HALF,
        shift: 0,
        flags: 1,
    }
}

fn machine() -> Machine {
    let m = Machine::new(Mode::Long);
    m.board.clock.advance(1_000);
    m
}

#[test]
fn time_is_the_tsc_at_guest_time_by_either_number() {
    for number in [msr::KVM_SYSTEM_TIME_OLD, msr::KVM_SYSTEM_TIME] {
        let mut m = machine();
        assert_eq!(wrmsr(&mut m, number, AT | 1), 0x40);
        assert_eq!(time(&m, AT), right(2, 2_000, 1_000));
        m.board.clock.advance(500);
        assert_eq!(wrmsr(&mut m, number, AT | 1), 0x40);
        assert_eq!(time(&m, AT), right(4, 3_000, 1_500));
    }
}

#[test]
fn version_goes_on_from_what_memory_holds_and_ends_even() {
    for (before, after) in [(6_u32, 8), (7, 10), (u32::MAX - 1, 0), (u32::MAX, 2)] {
        let mut m = machine();
        m.write(AT, before);
        wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT | 1);
        m.write(AT + 0x40, before);
        wrmsr(&mut m, msr::KVM_WALL_CLOCK, AT + 0x40);
        assert_eq!((m.read(AT), m.read(AT + 0x40)), (after, after), "{before:#x}");
    }
}

#[test]
fn time_without_its_enable_bit_is_not_kept() {
    let mut m = machine();
    assert_eq!(wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT), 0x40);
    assert_eq!(m.read::<[u64; 4]>(AT), [0; 4]);
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT | 1);
    let kept = m.read::<[u64; 4]>(AT);
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT);
    wrmsr(&mut m, msr::TSC_ADJUST, 10);
    assert_eq!(m.read::<[u64; 4]>(AT), kept);
}

#[test]
fn time_where_it_cannot_be_is_ignored() {
    let mut m = machine();
    m.write(0xd000, [0xaa_u8; 0x2000]);
    // A hole, the end of memory, ROM, across a page, across RAM and ROM, wrapping round.
    for at in [0x4000_0000, 1 << 52, ROM, ROM - 4, 0xdfe4, !1] {
        assert_eq!(wrmsr(&mut m, msr::KVM_SYSTEM_TIME, at | 1), 0x40, "{at:#x}");
    }
    assert_eq!(m.read::<[u8; 0x2000]>(0xd000), [0xaa; 0x2000]);
    assert_eq!((m.read::<u64>(ROM), m.read::<u32>(ROM - 4)), (0, 0));
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, 0xdfe0 | 1);
    assert_eq!(time(&m, 0xdfe0).ns, 1_000);
}

#[test]
fn wall_clock_is_the_date_of_power_on_by_either_number() {
    for number in [msr::KVM_WALL_CLOCK_OLD, msr::KVM_WALL_CLOCK] {
        // The second one crosses a page, as KVM allows.
        for at in [AT, 0xdffc] {
            let mut m = machine();
            assert_eq!(wrmsr(&mut m, number, at), 0x40);
            let (seconds, ns) = (BOOT_DATE.as_secs() as u32, BOOT_DATE.subsec_nanos());
            assert_eq!(m.read::<[u32; 4]>(at), [2, seconds, ns, 0]);
        }
    }
}

#[test]
fn wall_clock_where_it_cannot_be_is_ignored() {
    let mut m = machine();
    let first = m.read::<[u32; 3]>(0);
    for at in [0, 0x4000_0000, ROM, ROM - 8, !3] {
        assert_eq!(wrmsr(&mut m, msr::KVM_WALL_CLOCK, at), 0x40, "{at:#x}");
    }
    assert_eq!((m.read::<[u32; 3]>(0), m.read::<u64>(ROM - 8)), (first, 0));
    assert_eq!(m.read::<u64>(ROM), 0);
}

#[test]
fn registers_that_cpuid_does_not_tell_are_refused() {
    let old = [msr::KVM_WALL_CLOCK_OLD, msr::KVM_SYSTEM_TIME_OLD];
    let new = [msr::KVM_WALL_CLOCK, msr::KVM_SYSTEM_TIME];
    for (gone, refused, kept) in [(Feature::KvmClockOld, old, new), (Feature::KvmClock, new, old)] {
        let policy = CpuPolicy::new(Model::V2).unwrap().without(gone);
        let mut m = Machine::with_policy(Mode::Long, policy);
        for (number, kept) in refused.into_iter().zip(kept) {
            assert_eq!(wrmsr(&mut m, number, AT | 1), 13);
            assert_eq!(wrmsr(&mut m, kept, AT | 1), 0x40);
        }
    }
    let mut m = machine();
    assert_eq!(wrmsr(&mut m, msr::KVM_SYSTEM_TIME + 1, 0), 13);
}

#[test]
fn stability_is_not_told_where_the_guest_was_not_promised_it() {
    let policy = CpuPolicy::new(Model::V2).unwrap().without(Feature::KvmClockStable);
    let mut m = Machine::with_policy(Mode::Long, policy);
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT | 1);
    assert_eq!(time(&m, AT).flags, 0);
}

#[test]
fn time_follows_a_tsc_that_the_guest_sets() {
    let mut m = machine();
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT | 1);
    m.board.clock.advance(1_000);
    wrmsr(&mut m, msr::TSC, 70);
    assert_eq!(time(&m, AT), right(4, 70, 2_000));
    wrmsr(&mut m, msr::TSC_ADJUST, 5);
    assert_eq!(time(&m, AT), right(6, 4_005, 2_000));
}

#[test]
fn one_tsc_apart_ends_stability_for_all_until_it_comes_back() {
    let mut m = machine();
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT | 1);
    let mut other = m.engine.new_vcpu(1).unwrap();
    let state = m.state();
    let mut run_other = |m: &mut Machine, number: u32, value: u64| {
        m.code_at(0x3_0000, 64, |a| {
            a.wrmsr()?;
            a.hlt()
        });
        let mut state = state.clone();
        let before = other.state().msrs;
        (state.msrs.tsc_offset, state.msrs.tsc_adjust) = (before.tsc_offset, before.tsc_adjust);
        state.msrs.kvm_system_time = (AT + 0x40) | 1;
        (state.rip, state.activity) = (0x3_0000, Activity::Active);
        (state.gpr[1], state.gpr[0], state.gpr[2]) = (number.into(), value & 0xffff_ffff, value >> 32);
        other.set_state(&state).unwrap();
        assert_eq!(other.run(&m.board, None).unwrap(), Stop::Halted);
    };
    run_other(&mut m, msr::KVM_SYSTEM_TIME, (AT + 0x40) | 1);
    assert_eq!((time(&m, AT).flags, time(&m, AT + 0x40).flags), (1, 1));
    for (adjust, flags) in [(100, 0), (0, 1)] {
        run_other(&mut m, msr::TSC_ADJUST, adjust);
        m.code(|a| {
            a.nop()?;
            a.int(0x40)
        });
        m.edit(again);
        assert_eq!(m.vector(), 0x40);
        assert_eq!((time(&m, AT).flags, time(&m, AT + 0x40).flags), (flags, flags));
        assert_eq!(time(&m, AT + 0x40).tsc, 2_000 + adjust);
        assert_eq!(time(&m, AT).tsc, 2_000);
    }
}

#[test]
fn running_vcpu_corrects_its_time_when_another_tsc_moves() {
    let mut m = machine();
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT | 1);
    // Spins until its own page says that the TSCs differ.
    m.code(|a| {
        let mut spin = a.create_label();
        a.set_label(&mut spin)?;
        a.pause()?;
        a.test(byte_ptr(AT + 29), 1)?;
        a.jnz(spin)?;
        a.int(0x40)
    });
    m.edit(again);
    let mut other = m.engine.new_vcpu(1).unwrap();
    let Machine { vcpu, board, .. } = &mut m;
    std::thread::scope(|scope| {
        let spinning = scope.spawn(|| vcpu.run(board, None).unwrap());
        let mut state = other.state();
        state.msrs.tsc_offset = 1;
        other.set_state(&state).unwrap();
        assert_eq!(spinning.join().unwrap(), Stop::Halted);
    });
}

#[test]
fn restored_state_writes_the_time_anew_into_memory_that_lacks_it() {
    let mut m = machine();
    wrmsr(&mut m, msr::TSC, 70);
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT | 1);
    wrmsr(&mut m, msr::KVM_WALL_CLOCK, AT + 0x40);
    let saved = m.state();
    assert_eq!(
        (saved.msrs.kvm_system_time, saved.msrs.kvm_wall_clock),
        (AT | 1, AT + 0x40)
    );

    let mut new = machine();
    new.board.clock.advance(2_000);
    new.code(|a| a.int(0x40));
    new.edit(|s| {
        *s = saved.clone();
        again(s);
    });
    assert_eq!(new.state().msrs, saved.msrs);
    assert_eq!(new.vector(), 0x40);
    assert_eq!(time(&new, AT), right(2, 4_070, 3_000));
    assert_eq!(
        new.read::<u32>(AT + 0x40),
        0,
        "the date is written when it is asked for"
    );
}

#[test]
fn restored_state_leaves_a_time_that_is_right_and_mends_others() {
    let mut m = machine();
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT | 1);
    let go = |m: &mut Machine| {
        m.code(|a| a.int(0x40));
        m.edit(again);
        assert_eq!(m.vector(), 0x40);
        time(m, AT)
    };
    m.board.clock.advance(1_000);
    assert_eq!(go(&mut m), right(2, 2_000, 1_000));
    // A writer that did not end, another line, another scale, no flag.
    for (at, value, version) in [(0, 3_u32, 6), (8, 1, 8), (16, 7, 10), (24, 5, 12), (28, 0, 14)] {
        m.write(AT + at, value);
        assert_eq!(go(&mut m), right(version, 4_000, 2_000), "word at {at}");
    }
}

#[test]
fn init_ends_the_time_and_keeps_the_other_register() {
    let mut m = machine();
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, AT | 1);
    wrmsr(&mut m, msr::KVM_WALL_CLOCK, AT + 0x40);
    m.vcpu.signals().raise(Signal::Init);
    m.steps(1);
    let msrs = m.state().msrs;
    assert_eq!((msrs.kvm_system_time, msrs.kvm_wall_clock), (0, AT + 0x40));
}

#[test]
fn time_in_a_page_of_code_voids_the_code() {
    let mut m = machine();
    m.code_at(0x3_0000, 64, |a| {
        a.mov(ebx, 1)?;
        a.int(0x41)
    });
    m.code(|a| a.jmp(0x3_0000));
    m.edit(again);
    assert_eq!(m.vector(), 0x41);
    let version = |m: &Machine| m.memory.page(0x3_0000).unwrap().code.version();
    let before = version(&m);
    wrmsr(&mut m, msr::KVM_SYSTEM_TIME, 0x3_0000 | 1);
    assert_ne!(version(&m), before);
}
