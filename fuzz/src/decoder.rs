//! Instruction bytes in every mode of the processor.
//!
//! ```text
//!   byte 0       mode
//!   byte 1       bit 0 ring 3, 1 second page of code absent, 2 TF, 3 IF, 4 AC, 5 CR0.TS, 6 NMI pending, 7 NT
//!   byte 2       bytes of code before the end of the page, and after how many instructions the run is split
//!   byte 3       bits of CR4
//!   byte 4       floating point: exceptions unmasked, rounding, registers filled; bit 6 port writes kick the processor
//!   byte 5       vector of the one external interrupt; 0 for none
//!   bytes 6-21   general registers, each a value of a table and an offset
//!   rest         code
//! ```
//!
//! Run once in one go and once with the state saved and restored into another processor on the way: both must end in the
//! same state with the same memory, unless the code asks for random numbers.

use std::sync::Arc;

use cpu_model::CpuState;
use cpu_model::Signal;
use cpu_model::Stop;
use cpu_model::Vcpu;
use guest_memory::GuestMemory;
use x86_isa::cr0;
use x86_isa::cr4;
use x86_isa::flags;

use crate::input::Input;
use crate::machine;
use crate::machine::Board;
use crate::machine::Mode;
use crate::registers;

/// Instructions per run.
const BUDGET: u64 = 64;
/// Longest code.
const CODE_MAX: usize = 512;

struct Case {
    mode: Mode,
    second_page: bool,
    before: u64,
    split: u64,
    nmi: bool,
    kicks: bool,
    vector: u8,
    state: CpuState,
}

/// Executes one input.
///
/// # Panics
/// When the processor panics, refuses its own state, or goes on differently after it was saved and restored.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let case = case(&mut input);
    let code = input.bytes(CODE_MAX);
    let (whole, parts) = if case.kicks {
        // How far a kicked processor came is not told: both runs come back at the same places, and one goes on elsewhere.
        let slices = vec![case.split; (BUDGET / case.split) as usize];
        (once(&case, code, &slices, false), once(&case, code, &slices, true))
    } else {
        let slices = [case.split, BUDGET - case.split];
        (once(&case, code, &[BUDGET], false), once(&case, code, &slices, true))
    };
    let diff = whole.1.diff(&parts.1);
    assert!(
        diff.is_empty(),
        "in one go and after {} instructions restored: {diff:#?}",
        case.split
    );
    assert_eq!(whole.1, parts.1);
    assert_eq!(whole.0, parts.0, "the runs stop for different reasons");
    assert_memory(&whole.2, &parts.2);
}

/// Compares as a whole first: what is compared byte by byte is slow when it is watched for coverage.
fn assert_memory(whole: &[u8], parts: &[u8]) {
    if whole != parts
        && let Some(at) = whole.iter().zip(parts).position(|(one, other)| one != other)
    {
        panic!("memory differs at {at:#x}: {:#x} {:#x}", whole[at], parts[at]);
    }
}

/// Runs for some instructions at a time, on one processor or each time on another one.
fn once(case: &Case, code: &[u8], slices: &[u64], restore: bool) -> (Stop, CpuState, Vec<u8>) {
    let memory = machine::memory(case.mode, case.second_page);
    memory
        .write(machine::CODE_END - case.before, code)
        .expect("code is in RAM");
    let mut board = Board::new(case.vector, u8::from(case.vector != 0));
    let mut vcpu = restored(&memory, &case.state);
    if case.nmi {
        vcpu.signals().raise(Signal::Nmi);
    }
    let mut stop = Stop::Budget;
    for (index, slice) in slices.iter().enumerate() {
        if restore && index != 0 {
            let state = vcpu.state();
            drop(vcpu);
            vcpu = restored(&memory, &state);
        }
        if case.kicks {
            board.kick(vcpu.signals());
        }
        stop = vcpu.run(&board, Some(*slice)).expect("the engine goes on");
        if !matches!(stop, Stop::Budget | Stop::Kicked) {
            break;
        }
    }
    let state = vcpu.state();
    let _ = vcpu.inspect();
    (stop, state, machine::contents(&memory))
}

/// A new processor in `state`, which it must tell again.
pub(crate) fn restored(memory: &Arc<GuestMemory>, state: &CpuState) -> Box<dyn Vcpu> {
    let mut vcpu = machine::vcpu(memory);
    if let Err(error) = vcpu.set_state(state) {
        panic!("{error}: {state:x?}");
    }
    let told = vcpu.state();
    let diff = told.diff(state);
    assert!(diff.is_empty(), "restored to another state: {diff:#?}");
    assert_eq!(&told, state);
    vcpu
}

fn case(input: &mut Input<'_>) -> Case {
    let (mode, options, place) = (Mode::of(input.byte()), input.byte(), input.byte());
    let option = |bit: u8| options & 1 << bit != 0;
    let before = u64::from(place & 0x1f) + 1;
    let mut state = machine::state(mode, option(0), before);
    for (bit, flag) in [(2, flags::TF), (3, flags::IF), (4, flags::AC), (7, flags::NT)] {
        if option(bit) {
            state.rflags |= flag;
        }
    }
    if option(4) {
        state.cr0 |= cr0::AM;
    }
    if option(5) {
        state.cr0 |= cr0::TS;
    }
    let cr4_bits = [
        cr4::VME,
        cr4::PVI,
        cr4::TSD,
        cr4::DE,
        cr4::PGE,
        cr4::UMIP,
        cr4::PCE,
        cr4::SMEP,
    ];
    let chosen = input.byte();
    for (bit, flag) in cr4_bits.into_iter().enumerate() {
        if chosen & 1 << bit != 0 {
            state.cr4 |= flag;
        }
    }
    let fill = input.byte();
    registers::floating_point(fill, &mut state);
    let vector = input.byte();
    registers::general(input.bytes(16), &mut state);
    Case {
        mode,
        second_page: !option(1),
        before,
        split: u64::from(place >> 5) * 3 + 1,
        nmi: option(6),
        kicks: fill & 0x40 != 0,
        vector,
        state,
    }
}
