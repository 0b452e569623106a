//! Differential test: the translator at its full speed against the interpreter, on random programs of 1 to 30 parts.
//!
//! Each runs in user mode until an exception, at its end or before, twice on the translator: the second time through the
//! links and caches of the first. Registers, memory and the exception must be the same. Of the flags at a fault those count
//! that code behind it would read.
//!
//! ```text
//! OXBOW_DIFF_CASES=1000000 OXBOW_DIFF_SEED=7 cargo test --release -p lockstep --test blocks
//! ```

#[expect(dead_code, reason = "shared with the test against the host")]
#[path = "../../../x86-interp/tests/differential/case.rs"]
mod case;
#[path = "../../../x86-interp/tests/differential/generate.rs"]
mod generate;
#[expect(dead_code, reason = "shared with the test against the host")]
#[path = "../../../x86-interp/tests/differential/guest.rs"]
mod guest;
mod program;

use cpu_model::Stop;
use x86_interp::InterpEngine;
use x86_jit::JitEngine;
use x86_jit::JitOptions;

use crate::case::Outcome;
use crate::case::describe;
use crate::generate::Rng;
use crate::generate::setting;
use crate::guest::Guest;
use crate::guest::NoBoard;
use crate::program::BASES;
use crate::program::Forms;
use crate::program::Program;

/// Cases unless `OXBOW_DIFF_CASES` says otherwise.
const CASES: u64 = if cfg!(debug_assertions) { 1_000 } else { 20_000 };
/// Failures that are printed.
const PRINTED: usize = 6;
const ARITHMETIC: u64 = 0x8d5;

struct Test {
    interp: Guest,
    jit: Guest,
}

impl Test {
    fn differences(&mut self, program: &Program) -> Vec<String> {
        let bytes = program.bytes();
        let run = |guest: &mut Guest| {
            guest.enter(program.start, &program.before, BASES);
            let stop = run_on(guest);
            (stop, guest.outcome(&program.before))
        };
        self.interp.load(program.start, &bytes);
        self.jit.load(program.start, &bytes);
        let (right_stop, right) = run(&mut self.interp);
        for turn in 0..2 {
            let (stop, outcome) = run(&mut self.jit);
            let mut found = compare(program, &right, &outcome);
            if stop != right_stop {
                found.push(format!("stop: {right_stop:?}, {stop:?}"));
            }
            if !found.is_empty() {
                found.push(format!("turn {turn}"));
                return found;
            }
        }
        Vec::new()
    }

    fn reduce(&mut self, mut program: Program) -> Program {
        let mut index = program.len();
        while index > 0 {
            index -= 1;
            let less = program.without(index);
            if !self.differences(&less).is_empty() {
                program = less;
            }
        }
        program
    }
}

/// Runs until an exception.
fn run_on(guest: &mut Guest) -> Stop {
    guest.vcpu.run(&NoBoard, None).expect("the engine goes on")
}

fn compare(program: &Program, right: &(Outcome, u64), other: &(Outcome, u64)) -> Vec<String> {
    let ((a, rip), (b, rip_b)) = (right, other);
    let mut out = Vec::new();
    let mut differ = |name: &str, a: u64, b: u64| {
        if a != b {
            out.push(format!("{name}: interpreter {a:#x}, translator {b:#x}"));
        }
    };
    differ("rip", *rip, *rip_b);
    differ("exception", a.vector.into(), b.vector.into());
    differ("error code", a.error.into(), b.error.into());
    differ("cr2", a.cr2, b.cr2);
    let live = if *rip == program.end() {
        ARITHMETIC
    } else {
        program.live_flags(*rip)
    };
    let mask = !ARITHMETIC | live;
    differ("rflags", a.regs.flags & mask, b.regs.flags & mask);
    differ("checksum of memory", a.data, b.data);
    let (mut x, mut y) = (a.regs, b.regs);
    (x.flags, y.flags) = (0, 0);
    if x != y {
        let (x, y) = (describe(&x), describe(&y));
        out.extend(x.iter().filter(|l| !y.contains(l)).map(|l| format!("interpreter {l}")));
        out.extend(y.iter().filter(|l| !x.contains(l)).map(|l| format!("translator {l}")));
    }
    out
}

#[test]
fn programs_do_on_the_translator_what_they_do_on_the_interpreter() {
    if !(std::is_x86_feature_detected!("avx") && std::is_x86_feature_detected!("bmi2")) {
        eprintln!("skipped: the translator needs AVX and BMI2");
        return;
    }
    let mut test = Test {
        interp: Guest::new(|memory, policy| Box::new(InterpEngine::new(memory, policy).expect("it runs everywhere"))),
        jit: Guest::new(|memory, policy| {
            Box::new(JitEngine::with_options(memory, policy, &JitOptions::at_once()).expect("it was asked"))
        }),
    };
    let seed = generate::seed();
    let cases = setting("OXBOW_DIFF_CASES").unwrap_or(CASES);
    println!("OXBOW_DIFF_SEED={seed} OXBOW_DIFF_CASES={cases}");
    let forms = Forms::new();
    let mut rng = Rng(seed);
    let mut reports = Vec::new();
    let mut to_the_end = 0;
    for number in 0..cases {
        let interp = &mut test.interp;
        let mut survives = |program: &Program| {
            interp.load(program.start, &program.bytes());
            interp.enter(program.start, &program.before, BASES);
            run_on(interp);
            interp.outcome(&program.before).1 == program.end()
        };
        let program = Program::random(&forms, &mut rng, &mut survives);
        if !test.differences(&program).is_empty() {
            let program = test.reduce(program.clone());
            let lines = test.differences(&program);
            reports.push(format!(
                "program {number}\n{}  {}\n  before:\n    {}",
                program.text(),
                lines.join("\n  "),
                describe(&program.before)[..24].join("\n    ")
            ));
            if reports.len() == PRINTED {
                break;
            }
        }
        to_the_end += u64::from(test.interp.outcome(&program.before).1 == program.end());
    }
    println!("{cases} programs, {to_the_end} of them to their end");
    assert!(reports.is_empty(), "{}", reports.join("\n\n"));
}
