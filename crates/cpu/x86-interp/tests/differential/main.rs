//! Differential test: the interpreter against the host's own processor.
//!
//! Random user-mode instructions in random states, integer, x87, MMX, SSE and AVX, run once by the interpreter and once
//! natively in a child process; registers, flags, memory and faults must be the same bit for bit. Flags that the manuals
//! call undefined are left out, unless `OXBOW_DIFF_STRICT` is set.
//!
//! ```text
//! OXBOW_DIFF_CASES=1000000 OXBOW_DIFF_SEED=7 OXBOW_DIFF_ONLY=Pshuf cargo test -p x86-interp --test differential
//! ```
//!
//! A case that fails is reduced to what it needs to fail, and printed in assembler. One is printed for each instruction
//! form.
//!
//! UNSAFETY: executes generated machine code in the child process.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod case;
mod generate;
mod guest;
mod host;

use std::collections::HashSet;

use iced_x86::Code;
use x86_interp::InterpEngine;

use crate::case::Case;
use crate::case::Outcome;
use crate::case::Regs;
use crate::case::describe;
use crate::case::differences;
use crate::case::undefined_flags;
use crate::generate::Rng;
use crate::generate::setting;
use crate::guest::Guest;
use crate::host::BATCH;
use crate::host::Host;

/// Cases unless `OXBOW_DIFF_CASES` says otherwise.
const CASES: usize = 100_000;
/// Instruction forms whose failures are printed.
const PRINTED: usize = 40;

struct Test {
    host: Host,
    guest: Guest,
    strict: bool,
}

impl Test {
    fn compare(&mut self, case: &Case, host: &Outcome) -> Vec<String> {
        let guest = self.guest.run(case);
        let ins = case.instruction();
        let ignored = if self.strict { 0 } else { undefined_flags(&ins) };
        differences(&ins, host, &guest, ignored)
    }

    fn fails(&mut self, case: &Case) -> bool {
        let host = self.host.run(std::slice::from_ref(case));
        !self.compare(case, &host[0]).is_empty()
    }

    /// Makes everything neutral that the failure does not need.
    fn reduce(&mut self, mut case: Case) -> Case {
        let neutral = Regs::EMPTY;
        let mut attempt = |case: &mut Case, change: &dyn Fn(&mut Regs)| {
            let mut simpler = *case;
            change(&mut simpler.before);
            if simpler.before != case.before && self.fails(&simpler) {
                *case = simpler;
            }
        };
        attempt(&mut case, &|r| {
            (r.st, r.fcw, r.fsw, r.ftw) = (neutral.st, neutral.fcw, neutral.fsw, neutral.ftw)
        });
        attempt(&mut case, &|r| r.mxcsr = neutral.mxcsr);
        attempt(&mut case, &|r| r.window = neutral.window);
        attempt(&mut case, &|r| r.ymm = neutral.ymm);
        for bit in [0, 2, 4, 6, 7, 10, 11] {
            attempt(&mut case, &|r| r.flags &= !(1 << bit));
        }
        for i in 0..16 {
            attempt(&mut case, &|r| r.gpr[i] = 0);
            attempt(&mut case, &|r| r.ymm[i] = [0; 4]);
            for j in 0..4 {
                attempt(&mut case, &|r| r.ymm[i][j] = 0);
            }
        }
        for i in 0..8 {
            attempt(&mut case, &|r| r.st[i] = [0; 10]);
        }
        attempt(&mut case, &|r| (r.fsw, r.fcw) = (r.fsw & 0x3800, 0x37f));
        attempt(&mut case, &|r| r.fsw = 0);
        attempt(&mut case, &|r| r.ftw = 0);
        for chunk in 0..case.before.window.len() / 16 {
            attempt(&mut case, &|r| r.window[chunk * 16..chunk * 16 + 16].fill(0));
        }
        case
    }

    fn report(&mut self, case: Case) -> String {
        let case = self.reduce(case);
        let host = self.host.run(&[case]);
        let lines = self.compare(&case, &host[0]);
        let mut text = format!("{}\n  differs:", case.text());
        lines.iter().take(12).for_each(|line| text += &format!("\n    {line}"));
        text += "\n  before:";
        describe(&case.before)
            .iter()
            .take(24)
            .for_each(|line| text += &format!("\n    {line}"));
        text
    }
}

#[test]
fn every_instruction_does_what_the_host_does() {
    if !std::is_x86_feature_detected!("avx") {
        eprintln!("skipped: saving the state of the host's processor needs AVX");
        return;
    }
    let seed = generate::seed();
    let cases = setting("OXBOW_DIFF_CASES").map_or(CASES, |n| n as usize);
    println!("OXBOW_DIFF_SEED={seed} OXBOW_DIFF_CASES={cases}");
    let only = std::env::var("OXBOW_DIFF_ONLY").unwrap_or_default();
    let codes: Vec<Code> = generate::codes()
        .into_iter()
        .filter(|code| format!("{code:?}").contains(&only))
        .collect();
    println!("{} instruction forms", codes.len());
    let strict = std::env::var_os("OXBOW_DIFF_STRICT").is_some();
    let mut test = Test {
        host: Host::new(),
        guest: Guest::new(|memory, policy| {
            Box::new(InterpEngine::new(memory, policy).expect("the host runs the interpreter"))
        }),
        strict,
    };
    let mut rng = Rng(seed);
    let mut failed = HashSet::new();
    let mut reports = Vec::new();
    let mut done = 0;
    let mut faults = 0;
    while done < cases {
        let mut batch = Vec::with_capacity(BATCH);
        while batch.len() < BATCH {
            let code = codes[rng.below(codes.len() as u64) as usize];
            batch.extend(generate::case(code, &mut rng));
        }
        let outcomes = test.host.run(&batch);
        done += batch.len();
        for (case, outcome) in batch.iter().zip(&outcomes) {
            faults += usize::from(outcome.vector != case::NO_FAULT);
            let code = case.instruction().code();
            if !failed.contains(&code) && !test.compare(case, outcome).is_empty() {
                failed.insert(code);
                if reports.len() < PRINTED {
                    reports.push(test.report(*case));
                }
            }
        }
    }
    println!("{done} cases, {faults} of them faults");
    assert!(faults * 2 < done, "most cases fault: they test little");
    assert!(
        failed.is_empty(),
        "{} forms differ\n\n{}",
        failed.len(),
        reports.join("\n\n")
    );
}
