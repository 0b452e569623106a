//! Guest code on the translator, against the interpreter.
//!
//! ```text
//!   byte 0       mode: 64-bit and 32-bit ones
//!   byte 1       bit 0 ring 3, 1 second page of code absent, 2 IF, 3 AC, 4 CR0.TS, 5 an interrupt waits (64-bit IDT)
//!   byte 2       bytes of code before the end of the page, times eight
//!   byte 3       instructions after which a run with a budget comes back
//!   byte 4       floating point: exceptions unmasked, rounding, registers filled
//!   bytes 5-20   general registers, each a value of a table and an offset
//!   rest         code
//! ```
//!
//! The interpreter goes first, instruction by instruction, up to where code would see what the manuals leave undefined.
//! The translator then does as many instructions with a budget: its state must be the same. At full speed it has no end
//! of its own, so code that does not come to HLT or to an exception (whose handlers are HLT) gets a HLT where the
//! interpreter left off. The translator executes that three times, later ones through links and caches of the earlier.

mod flags;
mod guest;

use std::sync::Arc;

use cpu_model::CpuState;
use cpu_model::Stop;
use x86_isa::cr0;
use x86_isa::flags as rflags;
use x86_jit::JitEngine;
use x86_jit::JitOptions;

use crate::input::Input;
use crate::machine;
use crate::machine::Board;
use crate::machine::Mode;
use crate::registers;
use guest::Guest;
use guest::Outcome;
use guest::Patch;

/// Instructions of a run at most.
const BUDGET: u64 = 600;
/// Longest code.
const CODE_MAX: usize = 1024;
/// HLTs put into code that has no end.
const PATCHES: usize = 6;
/// The interrupt that waits.
const INTERRUPT: u8 = 0x81;
/// Code memory of the translator.
const CODE_MEMORY: usize = 1 << 20;

/// An input.
struct Case<'a> {
    mode: Mode,
    second_page: bool,
    start: u64,
    interrupt: bool,
    slice: u64,
    state: CpuState,
    code: &'a [u8],
}

/// How a run of the interpreter ended.
enum End {
    /// In HLT or shutdown, perhaps by way of a fault at this address.
    Natural { fault: Option<u64> },
    /// Before the instruction at this address: it would see what is undefined, or the run was long enough.
    Before(u64),
}

/// A run of the interpreter.
struct Reference {
    outcome: Outcome,
    end: End,
    executed: u64,
    /// Arithmetic flags that are undefined at the end.
    undefined: u64,
}

/// Executes one input.
///
/// # Panics
/// When an engine panics, hangs, or the engines differ.
pub fn run(data: &[u8]) {
    let case = case(&mut Input::new(data));
    let mut model = Guest::new(&case, machine::vcpu);
    let mut tested = Guest::new(&case, |memory| {
        let options = JitOptions {
            code_memory: CODE_MEMORY,
            ..JitOptions::at_once()
        };
        let engine = JitEngine::with_options(Arc::clone(memory), machine::policy(), &options);
        let engine = engine.expect("the host has AVX and BMI2, and gives executable memory");
        cpu_model::Engine::new_vcpu(&engine, 0).expect("the host gives memory")
    });
    let mut patches: Vec<Patch> = Vec::new();
    let mut right = reference(&case, &mut model, &patches);
    let slices = with_budget(&case, &mut tested, right.executed);
    compare(&case, "with a budget", &right, &slices, right.undefined);
    while let End::Before(rip) = right.end {
        let Some(patch) = model.halt_at(rip) else { return };
        if patches.contains(&patch) || patches.len() == PATCHES {
            return;
        }
        patches.push(patch);
        right = reference(&case, &mut model, &patches);
    }
    let End::Natural { fault } = right.end else { return };
    // The translator does not keep flags that the code goes on to overwrite.
    let state = &right.outcome.state;
    let dead = flags::ARITH & !model.live_flags(fault.unwrap_or(state.rip), state);
    for what in ["at full speed", "at full speed again", "at full speed once more"] {
        tested.enter(&case, &patches);
        let outcome = tested.run_to_end(&board(&case));
        compare(&case, what, &right, &outcome, right.undefined | dead);
    }
}

fn case<'a>(input: &mut Input<'a>) -> Case<'a> {
    let mode = match input.byte() & 7 {
        0..=3 => Mode::Long,
        4 | 5 => Mode::Compatibility,
        6 => Mode::Paged32,
        _ => Mode::Protected32,
    };
    let options = input.byte();
    let option = |bit: u8| options & 1 << bit != 0;
    let before = u64::from(input.byte()) * 8 + 1;
    let mut state = machine::state(mode, option(0), before);
    if option(2) {
        state.rflags |= rflags::IF;
    }
    if option(3) {
        state.rflags |= rflags::AC;
        state.cr0 |= cr0::AM;
    }
    if option(4) {
        state.cr0 |= cr0::TS;
    }
    let slice = u64::from(input.byte() & 63) + 1;
    registers::floating_point(input.byte(), &mut state);
    registers::general(input.bytes(16), &mut state);
    if mode != Mode::Long {
        // Upper halves are undefined outside 64-bit mode.
        state.gpr.iter_mut().for_each(|value| *value &= 0xffff_ffff);
    }
    Case {
        mode,
        second_page: !option(1),
        start: machine::CODE_END - before,
        interrupt: option(5) && mode.is_long(),
        slice,
        state,
        code: input.bytes(CODE_MAX),
    }
}

fn board(case: &Case<'_>) -> Board {
    Board::new(INTERRUPT, u8::from(case.interrupt))
}

/// Runs on the interpreter.
fn reference(case: &Case<'_>, guest: &mut Guest, patches: &[Patch]) -> Reference {
    guest.enter(case, patches);
    let board = board(case);
    let mut seen = flags::Seen::default();
    let mut executed = 0;
    let mut fault = None;
    let (end, stop) = loop {
        let state = guest.vcpu.state();
        let ins = guest.instruction(&state);
        let enough = executed == BUDGET || guest.is_in_device(case.mode, &state);
        if enough || ins.is_some_and(|ins| seen.is_seen_by(&ins)) {
            break (End::Before(state.rip), Stop::Budget);
        }
        let writer = ins.filter(flags::writes_memory);
        let code = writer.map(|ins| (guest.code(), guest.live_behind(&ins, &state)));
        let interrupts = board.interrupts_left();
        let stop = guest.vcpu.run(&board, Some(1)).expect("the engine goes on");
        executed += 1;
        if stop != Stop::Budget {
            break (End::Natural { fault }, stop);
        }
        let after = guest.vcpu.state().rip;
        fault = guest::is_halt(after).then_some(state.rip);
        // Behind a fault nothing has been written, and behind an interrupt its handler was executed.
        if let Some(ins) = ins
            && fault.is_none()
            && board.interrupts_left() == interrupts
        {
            seen.execute(&ins);
        }
        // The translator keeps the flags that the code behind a write would have read had it stayed as it was.
        if let Some((old, live)) = code
            && old != guest.code()
        {
            seen.forget(flags::ARITH & !live);
        }
    };
    Reference {
        outcome: guest.outcome(stop),
        end,
        executed,
        undefined: seen.undefined(),
    }
}

/// Runs on the translator, some instructions at a time.
fn with_budget(case: &Case<'_>, guest: &mut Guest, mut left: u64) -> Outcome {
    guest.enter(case, &[]);
    let board = board(case);
    let mut stop = Stop::Budget;
    while left > 0 && stop == Stop::Budget {
        let slice = left.min(case.slice);
        stop = guest.watched(|vcpu| vcpu.run(&board, Some(slice)).expect("the engine goes on"));
        left -= slice;
    }
    guest.outcome(stop)
}

/// Compares two outcomes, but for arithmetic flags in `ignored`.
fn compare(case: &Case<'_>, what: &str, right: &Reference, other: &Outcome, ignored: u64) {
    let mut found = right.outcome.differences(other, ignored, case.mode);
    if right.outcome.stop != other.stop {
        found.push(format!("stop: {:?} {:?}", right.outcome.stop, other.stop));
    }
    assert!(
        found.is_empty(),
        "interpreter and translator, {what}, {:?}, {} instructions: {found:#?}\n{}",
        case.mode,
        right.executed,
        guest::listing(case)
    );
}
