//! Processor states out of nowhere, as a damaged or malicious snapshot has them.
//!
//! The first byte is a mode. With its top bit clear, that mode's good state is taken and registers overwritten: one byte
//! names the register, one the length of the value that follows; a length of zero ends that. With it set, the rest is a
//! state in postcard form. What is left is executed, wherever the state points.

use cpu_model::Activity;
use cpu_model::CpuState;
use cpu_model::SegmentState;

use crate::decoder;
use crate::input::Input;
use crate::machine;
use crate::machine::Board;
use crate::machine::Mode;

/// Instructions per run.
const BUDGET: u64 = 32;
/// Longest code.
const CODE_MAX: usize = 256;

/// Executes one input.
///
/// # Panics
/// When the processor panics, or takes a state and then tells another one.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let first = input.byte();
    let mode = Mode::of(first & 0x7f);
    let (state, code) = if first & 0x80 == 0 {
        let mut state = machine::state(mode, first & 0x40 != 0, 16);
        overwrite(&mut state, &mut input);
        (state, input.bytes(CODE_MAX))
    } else {
        let Ok((state, code)) = postcard::take_from_bytes::<CpuState>(input.rest()) else {
            return;
        };
        (state, &code[..code.len().min(CODE_MAX)])
    };
    let memory = machine::memory(mode, true);
    memory.write(machine::CODE_END - 16, code).expect("code is in RAM");
    let mut vcpu = machine::vcpu(&memory);
    if vcpu.set_state(&state).is_err() {
        return;
    }
    let told = vcpu.state();
    let diff = told.diff(&state);
    assert!(diff.is_empty(), "restored to another state: {diff:#?}");
    assert_eq!(told, state);
    let board = Board::new(state.gpr[0] as u8, 1);
    vcpu.run(&board, Some(BUDGET)).expect("the engine goes on");
    let state = vcpu.state();
    drop(vcpu);
    drop(decoder::restored(&memory, &state));
}

fn overwrite(state: &mut CpuState, input: &mut Input<'_>) {
    while !input.is_empty() {
        let (register, len) = (input.byte(), input.byte() & 15);
        if len == 0 {
            return;
        }
        set(state, register, input.number(len.into()));
    }
}

/// Sets one register by number.
fn set(state: &mut CpuState, register: u8, value: u64) {
    let index = usize::from(register);
    match register {
        0..=15 => state.gpr[index] = value,
        16..=21 => state.segments[index - 16] = segment(value),
        22 => state.ldtr = segment(value),
        23 => state.tr = segment(value),
        24 => (state.gdtr.base, state.gdtr.limit) = (value >> 16, value as u16),
        25 => (state.idtr.base, state.idtr.limit) = (value >> 16, value as u16),
        26 => state.rip = value,
        27 => state.rflags = value,
        28 => state.cr0 = value,
        29 => state.cr2 = value,
        30 => state.cr3 = value,
        31 => state.cr4 = value,
        32 => state.xcr0 = value,
        33..=36 => state.pdptr[index - 33] = value,
        37..=42 => state.dr[index - 37] = value,
        43 => state.pkru = value as u32,
        44 => state.fpu.fcw = value as u16,
        45 => state.fpu.fsw = value as u16,
        46 => state.fpu.ftw = value as u8,
        47 => state.fpu.fop = value as u16,
        48 => (state.fpu.fip, state.fpu.fcs) = (value, (value >> 48) as u16),
        49 => (state.fpu.fdp, state.fpu.fds) = (value, (value >> 48) as u16),
        50 => state.fpu.mxcsr = value as u32,
        51..=58 => state.fpu.st[index - 51][2..].copy_from_slice(&value.to_le_bytes()),
        59..=74 => state.fpu.ymm[index - 59] = [value; 4],
        75 => state.activity = activity(value),
        76 => events(state, value),
        77 => state.rflags ^= 1 << (value & 63),
        78 => state.cr0 ^= 1 << (value & 63),
        79 => state.cr4 ^= 1 << (value & 63),
        80..=85 => state.segments[index - 80].base = value,
        86..=91 => state.segments[index - 86].limit = value as u32,
        92..=97 => state.segments[index - 92].attr = value as u16,
        _ => msr(state, register, value),
    }
}

fn msr(state: &mut CpuState, register: u8, value: u64) {
    let msrs = &mut state.msrs;
    match register {
        98 => msrs.efer = value,
        99 => msrs.efer ^= 1 << (value & 63),
        100 => msrs.star = value,
        101 => msrs.lstar = value,
        102 => msrs.cstar = value,
        103 => msrs.fmask = value,
        104 => msrs.kernel_gs_base = value,
        105 => msrs.tsc_aux = value,
        106 => msrs.tsc_offset = value,
        107 => msrs.tsc_adjust = value,
        108 => msrs.sysenter_cs = value,
        109 => msrs.sysenter_esp = value,
        110 => msrs.sysenter_eip = value,
        111 => msrs.pat = value,
        112 => msrs.misc_enable = value,
        113 => msrs.spec_ctrl = value,
        114 => msrs.mtrr_def_type = value,
        115 => msrs.mtrr_var[0] = (value, !value),
        116 => msrs.mtrr_fixed[0] = value,
        117 => msrs.debugctl = value,
        118 => msrs.mcg_status = value,
        119 => msrs.pkrs = value,
        120 => msrs.kvm_wall_clock = value,
        121 => msrs.kvm_system_time = value,
        _ => msrs.other.push((register.into(), value)),
    }
}

fn segment(value: u64) -> SegmentState {
    SegmentState {
        selector: value as u16,
        attr: (value >> 16) as u16,
        limit: (value >> 24) as u32,
        base: value >> 32 & 0xff_ffff,
    }
}

fn activity(value: u64) -> Activity {
    match value & 3 {
        0 => Activity::Active,
        1 => Activity::Halted,
        2 => Activity::WaitSipi,
        _ => Activity::Shutdown,
    }
}

fn events(state: &mut CpuState, value: u64) {
    let bit = |bit: u32| value >> bit & 1 != 0;
    let pending = &mut state.pending;
    (pending.nmi, pending.nmi_blocked) = (bit(0), bit(1));
    (pending.sti_shadow, pending.mov_ss_shadow) = (bit(2), bit(3));
}
