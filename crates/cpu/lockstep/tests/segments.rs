//! Differential test: the translator at its full speed against the interpreter, on random programs of 16-bit real-mode code
//! and of 32-bit code whose segments have bases and limits.
//!
//! A program ends with HLT, its own or that of a handler of exceptions. Registers, memory, and how it ended must be the
//! same; of the arithmetic flags those that its instructions have read.
//!
//! ```text
//! OXBOW_DIFF_CASES=100000 OXBOW_DIFF_SEED=7 cargo test --release -p lockstep --test segments
//! ```

#[expect(dead_code, reason = "shared with the other tests")]
#[path = "../../x86-interp/tests/differential/case.rs"]
mod case;
#[expect(dead_code, reason = "shared with the other tests")]
#[path = "../../x86-interp/tests/differential/generate.rs"]
mod generate;
#[expect(dead_code, reason = "shared with the other tests")]
#[path = "../../x86-interp/tests/differential/guest.rs"]
mod guest;

use std::sync::Arc;

use cpu_model::CpuPolicy;
use cpu_model::CpuState;
use cpu_model::DescriptorTable;
use cpu_model::Engine;
use cpu_model::Model;
use cpu_model::SegmentState;
use cpu_model::Stop;
use cpu_model::Vcpu;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use x86_interp::InterpEngine;
use x86_jit::JitEngine;
use x86_jit::JitOptions;

use crate::generate::Rng;
use crate::generate::setting;
use crate::guest::NoBoard;

/// Cases unless `OXBOW_DIFF_CASES` says otherwise.
const CASES: u64 = if cfg!(debug_assertions) { 500 } else { 5_000 };
/// Instructions after which a program counts as endless.
const BUDGET: u64 = 5_000;
const RAM: usize = 1 << 20;
const GDT: u64 = 0x5000;
const IDT: u64 = 0x6000;
const HANDLER: u64 = 0x7000;
/// Bases of ES, CS, SS, DS, FS and GS.
const BASES: [u64; 6] = [0x3_0000, 0x1_0010, 0x4_0000, 0x2_0000, 0x2_8000, 0x3_8000];
/// What the arithmetic flags are in RFLAGS.
const ARITHMETIC: u64 = 0x8d5;

struct Machine {
    memory: Arc<GuestMemory>,
    vcpu: Box<dyn Vcpu>,
}

struct Outcome {
    stop: Stop,
    state: CpuState,
    memory: Vec<u8>,
}

impl Machine {
    fn new(make: impl FnOnce(Arc<GuestMemory>, Arc<CpuPolicy>) -> Box<dyn Engine>) -> Self {
        let mut memory = GuestMemory::new();
        let ram = Arc::new(MemoryRegion::new("ram", Kind::Ram, RAM as u64).expect("1 MiB is there"));
        memory.add(0, ram).expect("the map is empty");
        let memory = Arc::new(memory);
        let policy = Arc::new(CpuPolicy::new(Model::V2).expect("a model"));
        let vcpu = make(Arc::clone(&memory), policy).new_vcpu(0).expect("a first vCPU");
        Self { memory, vcpu }
    }

    fn run(&mut self, first: &[u8], state: &CpuState, budget: Option<u64>) -> Outcome {
        self.memory.write(0, first).expect("inside RAM");
        self.vcpu.set_state(state).expect("a valid state");
        let stop = self.vcpu.run(&NoBoard, budget).expect("the engine goes on");
        let mut memory = vec![0; RAM];
        self.memory.read(0, &mut memory).expect("inside RAM");
        Outcome {
            stop,
            state: self.vcpu.state(),
            memory,
        }
    }
}

/// A random program: its instructions, and those that jump, with the number of instructions that they leave out.
struct Program {
    parts: Vec<Vec<u8>>,
    jumps: Vec<(usize, usize)>,
}

/// A ModRM byte and what follows it, for 16- or 32-bit addresses.
fn modrm(rng: &mut Rng, wide: bool, memory: bool, reg: Option<u8>) -> Vec<u8> {
    let reg = reg.unwrap_or(rng.below(8) as u8) << 3;
    if !memory && rng.below(3) == 0 {
        return vec![0xc0 | reg | rng.below(8) as u8];
    }
    let mode = rng.below(3) as u8;
    let rm = rng.below(8) as u8;
    let mut bytes = vec![mode << 6 | reg | rm];
    let mut absolute = mode == 0 && rm == if wide { 5 } else { 6 };
    if wide && rm == 4 {
        let sib = rng.below(256) as u8;
        absolute |= mode == 0 && sib & 7 == 5;
        bytes.push(sib);
    }
    match (mode, absolute, wide) {
        (1, _, _) => bytes.push(rng.below(256) as u8),
        (0, false, _) => {}
        // Mostly inside the segments.
        (_, _, false) => bytes.extend((rng.below(0x8000) as u16).to_le_bytes()),
        (_, _, true) => bytes.extend((rng.below(0x3000) as u32).to_le_bytes()),
    }
    bytes
}

fn instruction(rng: &mut Rng, code32: bool) -> Vec<u8> {
    let (mut data32, mut address32) = (code32, code32);
    let mut out = Vec::new();
    if rng.below(5) == 0 {
        out.push(0x66);
        data32 = !data32;
    }
    if rng.below(8) == 0 {
        out.push(0x67);
        address32 = !address32;
    }
    if rng.below(5) == 0 {
        out.push([0x26, 0x36, 0x3e, 0x64, 0x65][rng.below(5) as usize]);
    }
    let immediate = |rng: &mut Rng| {
        let value = rng.below(1 << 32) as u32;
        value.to_le_bytes()[..if data32 { 4 } else { 2 }].to_vec()
    };
    let byte = |rng: &mut Rng| rng.below(256) as u8;
    match rng.below(21) {
        // Code is read, but not written: other instructions might read flags that these leave undefined.
        20 => {
            out.extend([0x2e, 0x8a + rng.below(2) as u8]);
            out.extend(modrm(rng, address32, true, None));
        }
        0..4 => {
            out.push((rng.below(8) << 3 | rng.below(4)) as u8);
            out.extend(modrm(rng, address32, false, None));
        }
        4..7 => {
            out.push(0x88 + rng.below(4) as u8);
            out.extend(modrm(rng, address32, false, None));
        }
        7 => {
            out.push(0x8d);
            out.extend(modrm(rng, address32, true, None));
        }
        8..10 => out.push(0x50 + rng.below(16) as u8),
        10 => out.push([0x06, 0x0e, 0x16, 0x1e][rng.below(4) as usize]),
        11 => {
            out.push(0xff);
            out.extend(modrm(rng, address32, false, Some(6)));
        }
        12 => out.push(0x40 + rng.below(16) as u8),
        13 => {
            out.push(0x68);
            out.extend(immediate(rng));
        }
        14 => out.extend([0x6a, byte(rng)]),
        15 => {
            out.push(0xd0 + rng.below(2) as u8);
            let operation = [0, 1, 2, 3, 4, 5, 7, 5][rng.below(8) as usize];
            out.extend(modrm(rng, address32, false, Some(operation)));
        }
        16 => {
            out.push(0xa0 + rng.below(4) as u8);
            let at = rng.below(0x8000) as u32;
            out.extend(&at.to_le_bytes()[..if address32 { 4 } else { 2 }]);
        }
        17 => {
            out.extend([0x0f, 0x90 + rng.below(16) as u8]);
            out.extend(modrm(rng, address32, false, None));
        }
        18 => {
            out.extend([0x0f, [0xb6, 0xb7, 0xbe, 0xbf][rng.below(4) as usize]]);
            out.extend(modrm(rng, address32, false, None));
        }
        _ => {
            out.push(0xb8 + rng.below(8) as u8);
            out.extend(immediate(rng));
        }
    }
    out
}

impl Program {
    fn random(rng: &mut Rng, code32: bool) -> Self {
        let mut program = Self {
            parts: Vec::new(),
            jumps: Vec::new(),
        };
        for _ in 0..2 + rng.below(30) {
            match rng.below(12) {
                0 => {
                    program.jumps.push((program.parts.len(), 1 + rng.below(5) as usize));
                    program.parts.push(vec![0x70 + rng.below(16) as u8, 0]);
                }
                // A call of the RET behind the jump that follows it.
                1 if code32 => program.parts.push(vec![0xe8, 2, 0, 0, 0, 0xeb, 1, 0xc3]),
                1 => program.parts.push(vec![0xe8, 2, 0, 0xeb, 1, 0xc3]),
                // PUSH of the address behind, which POP takes.
                2 if code32 => program.parts.push(vec![0xe8, 0, 0, 0, 0, 0x58]),
                2 => program.parts.push(vec![0xe8, 0, 0, 0x58]),
                _ => program.parts.push(instruction(rng, code32)),
            }
        }
        program
    }

    fn bytes(&self) -> Vec<u8> {
        let mut parts = self.parts.clone();
        for &(at, over) in &self.jumps {
            let skipped: usize = parts.iter().skip(at + 1).take(over).map(Vec::len).sum();
            parts[at][1] = u8::try_from(skipped).expect("at most six instructions");
        }
        let mut bytes = parts.concat();
        bytes.push(0xf4);
        bytes
    }
}

/// Memory with vectors, handlers and the program, and the state at its start.
fn setting_of(rng: &mut Rng, program: &Program, code32: bool, base: &CpuState) -> (Vec<u8>, CpuState) {
    let mut memory = vec![0u8; RAM];
    for chunk in memory[0x2_0000..0x5_0000].chunks_exact_mut(8) {
        chunk.copy_from_slice(&rng.below(u64::MAX).to_le_bytes());
    }
    let mut state = base.clone();
    let put = |memory: &mut Vec<u8>, at: u64, bytes: &[u8]| {
        memory[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    };
    // Sometimes at the end of a page, and of what the segment has of its first page.
    let start = [0x100, 0xff0 - 0x10, 0xfff0 - 0x60][rng.below(3) as usize] + rng.below(16);
    put(&mut memory, BASES[1] + start, &program.bytes());
    put(&mut memory, HANDLER, &[0xf4; 256]);
    for vector in 0..32u64 {
        if code32 {
            let offset = HANDLER + vector;
            let gate = offset & 0xffff | 8 << 16 | 0x8e00 << 32;
            put(&mut memory, IDT + vector * 8, &gate.to_le_bytes());
        } else {
            let gate = (HANDLER / 16) << 16 | vector;
            put(&mut memory, vector * 4, &(gate as u32).to_le_bytes());
        }
    }
    put(&mut memory, GDT + 8, &0x00cf_9b00_0000_ffff_u64.to_le_bytes());
    for (n, segment) in state.segments.iter_mut().enumerate() {
        let (limit, attr) = match (code32, n) {
            (false, 1) => (0xffff, 0x9b),
            (false, _) => (0xffff, 0x93),
            (true, 1) => (u32::MAX, 0xc9b),
            // Up to a limit, all, read-only, expand-down.
            (true, 0) => (0x3fff, 0x493),
            (true, 2) => (
                [u32::MAX, 0xffff][rng.below(2) as usize],
                [0xc93, 0x93][rng.below(2) as usize],
            ),
            (true, 3) => ([0x4fff, u32::MAX][rng.below(2) as usize], 0xc93),
            (true, 4) => (0x2fff, 0x491),
            (true, _) => (0xfff, 0x497),
        };
        *segment = SegmentState {
            selector: if code32 { 0x10 } else { (BASES[n] >> 4) as u16 },
            base: BASES[n],
            limit,
            attr,
        };
    }
    state.gdtr = DescriptorTable { base: GDT, limit: 0xff };
    state.idtr = DescriptorTable {
        base: if code32 { IDT } else { 0 },
        limit: 0xff | if code32 { 0 } else { 0x300 },
    };
    state.cr0 = if code32 { 0x11 } else { 0x10 };
    state.rip = start;
    state.rflags = 2 | rng.below(u64::MAX) & ARITHMETIC;
    for gpr in &mut state.gpr[..8] {
        *gpr = match rng.below(4) {
            0 => rng.below(1 << 32),
            1 => 0xffff - rng.below(8),
            _ => rng.below(0x4000),
        };
    }
    state.gpr[4] = [0x2000, 0x2001, 4, 1, 0xffff_0000 | 0x1000][rng.below(5) as usize];
    (memory, state)
}

/// How a translated run differs from an interpreted one.
fn differences(right: &Outcome, other: &Outcome) -> Vec<String> {
    let mut out = Vec::new();
    if right.stop != other.stop {
        out.push(format!("stop: {:?}, {:?}", right.stop, other.stop));
    }
    let (a, b) = (&right.state, &other.state);
    if (a.rip, a.gpr, a.segments, a.cr2) != (b.rip, b.gpr, b.segments, b.cr2) {
        out.push(format!(
            "rip {:#x} {:#x}, registers {:x?} {:x?}",
            a.rip, b.rip, a.gpr, b.gpr
        ));
    }
    // Flags that nobody reads any more are not kept for handlers: their image is near the top of the stack, which may wrap.
    let wrap: u32 = if a.segments[2].attr & 0x400 == 0 {
        0xffff
    } else {
        u32::MAX
    };
    let faulted = a.segments[1].base != BASES[1] || right.stop == Stop::TripleFault;
    let in_frame = |at: usize| {
        let offset = (at as u32).wrapping_sub(a.segments[2].base as u32);
        // Where the handler is not reached, the frame is below what the stack pointer still is.
        faulted && offset.wrapping_sub(a.gpr[4] as u32).wrapping_add(16) & wrap < 32
    };
    let differs = |(at, (x, y)): (usize, (&u8, &u8))| (x != y && !in_frame(at)).then_some((at, *x, *y));
    if let Some((at, x, y)) = right.memory.iter().zip(&other.memory).enumerate().find_map(differs) {
        out.push(format!("memory at {at:#x}: {x:#x}, {y:#x}"));
    }
    out
}

fn compare(code32: bool) {
    if !(std::is_x86_feature_detected!("avx") && std::is_x86_feature_detected!("bmi2")) {
        eprintln!("skipped: the translator needs AVX and BMI2");
        return;
    }
    let mut interp = Machine::new(|memory, policy| Box::new(InterpEngine::new(memory, policy).expect("it runs")));
    let mut jit = Machine::new(|memory, policy| {
        Box::new(JitEngine::with_options(memory, policy, &JitOptions::at_once()).expect("it was asked"))
    });
    let base = interp.vcpu.state();
    let seed = generate::seed();
    let cases = setting("OXBOW_DIFF_CASES").unwrap_or(CASES);
    println!("OXBOW_DIFF_SEED={seed} OXBOW_DIFF_CASES={cases}");
    let mut rng = Rng(seed);
    let (mut whole, mut faults) = (0, 0);
    for number in 0..cases {
        let program = Program::random(&mut rng, code32);
        let (memory, state) = setting_of(&mut rng, &program, code32, &base);
        let right = interp.run(&memory, &state, Some(BUDGET));
        if right.stop == Stop::Budget {
            continue;
        }
        let own = right.state.segments[1].base == BASES[1];
        whole += u64::from(own);
        faults += u64::from(!own);
        for turn in 0..2 {
            let other = jit.run(&memory, &state, None);
            let found = differences(&right, &other);
            assert!(
                found.is_empty(),
                "program {number}, turn {turn}, at {:#x}, ended at {:#x}: {:02x?}\n{}\nbefore {:x?}",
                state.rip,
                right.state.rip,
                program.parts,
                found.join("\n"),
                state.gpr,
            );
        }
    }
    println!("{cases} programs, {whole} to their end, {faults} to a fault");
    assert!(whole > cases / 20 && faults > cases / 20, "both ends are met");
}

#[test]
fn real_mode_programs_do_the_same_translated() {
    compare(false);
}

#[test]
fn programs_in_segments_with_bases_and_limits_do_the_same_translated() {
    compare(true);
}
