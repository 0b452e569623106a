//! A machine of one engine, its memory, and what has come of a run.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use cpu_model::CpuState;
use cpu_model::FpuState;
use cpu_model::Signal;
use cpu_model::Signals;
use cpu_model::Stop;
use cpu_model::Vcpu;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::FlowControl;
use iced_x86::Formatter;
use iced_x86::Instruction;
use iced_x86::IntelFormatter;

use super::Case;
use super::INTERRUPT;
use super::flags;
use super::flags::ARITH;
use crate::machine;
use crate::machine::Board;
use crate::machine::Mode;

/// RAM: little, since all of it is compared.
const RAM: u64 = 0x1_3000;
/// Handlers that are HLT, eight bytes for each vector.
const HALTS: u64 = machine::HANDLER + 0x800;
/// Where the two pages of code are seen a second time.
const ALIAS: u64 = 0x4_0000;
/// The first page of code.
const CODE: u64 = machine::CODE_END - 0x1000;
/// Pages of data that are in each other's place, so that an address that is no virtual one shows.
const SWAPPED: [u64; 2] = [0xd, 0x12];
/// Longest instruction.
const LONGEST: usize = 15;
/// Time after which a run counts as stuck, and after which it does not even listen.
const PATIENCE: Duration = Duration::from_secs(5);
/// RFLAGS in the frame on a stack that was empty.
const FRAME_FLAGS: usize = (machine::STACK - 24) as usize;
const HLT: u8 = 0xf4;
const UD2: [u8; 2] = [0x0f, 0x0b];

/// The address of a HLT.
pub(super) type Patch = u64;

pub(super) struct Guest {
    memory: Arc<GuestMemory>,
    pub(super) vcpu: Box<dyn Vcpu>,
    /// Memory before a run.
    image: Vec<u8>,
}

/// What has come of a run.
pub(super) struct Outcome {
    pub(super) stop: Stop,
    pub(super) state: CpuState,
    memory: Vec<u8>,
}

/// Whether the processor is at a handler that is HLT.
pub(super) fn is_halt(rip: u64) -> bool {
    (HALTS..HALTS + 256 * 8).contains(&rip)
}

impl Guest {
    /// A machine for this case whose processor is what `make` makes.
    pub(super) fn new(case: &Case<'_>, make: impl FnOnce(&Arc<GuestMemory>) -> Box<dyn Vcpu>) -> Self {
        let image = image(case);
        let mut memory = GuestMemory::new();
        let region = MemoryRegion::new("ram", Kind::Ram, RAM).expect("the host has the memory");
        memory.add(0, Arc::new(region)).expect("the memory is empty");
        memory.write(0, &image).expect("the range is RAM");
        let memory = Arc::new(memory);
        let vcpu = make(&memory);
        Self { memory, vcpu, image }
    }

    /// Makes everything as it was in the beginning, with a HLT in some places.
    pub(super) fn enter(&mut self, case: &Case<'_>, patches: &[Patch]) {
        let mut image = self.image.clone();
        patches.iter().for_each(|at| image[*at as usize] = HLT);
        // What is right already is left alone, so that translations of it stay.
        let now = contents(&self.memory);
        for (at, _, new) in chunks(&now, &image) {
            self.memory.write(at as u64, new).expect("the range is RAM");
        }
        self.vcpu.set_state(&case.state).expect("a state that machines are in");
    }

    /// Runs with no budget until the processor halts.
    pub(super) fn run_to_end(&mut self, board: &Board) -> Outcome {
        let stop = self.watched(|vcpu| vcpu.run(board, None).expect("the engine goes on"));
        self.outcome(stop)
    }

    /// Calls `f`, which ends in a panic when it takes too long.
    pub(super) fn watched(&mut self, f: impl FnOnce(&mut dyn Vcpu) -> Stop) -> Stop {
        let watch = watch();
        let set = |job| *watch.lock().unwrap_or_else(PoisonError::into_inner) = job;
        set(Some((Instant::now(), self.vcpu.signals())));
        let stop = f(&mut *self.vcpu);
        set(None);
        assert!(
            stop != Stop::Kicked,
            "the guest goes on for ever, at {:#x}",
            self.vcpu.state().rip
        );
        stop
    }

    pub(super) fn outcome(&mut self, stop: Stop) -> Outcome {
        let _ = self.vcpu.inspect();
        Outcome {
            stop,
            state: self.vcpu.state(),
            memory: contents(&self.memory),
        }
    }

    /// The patch that halts the processor before the instruction at `rip`.
    pub(super) fn halt_at(&mut self, rip: u64) -> Option<Patch> {
        let base = self.vcpu.state().segments[1].base;
        physical(base.wrapping_add(rip)).filter(|at| (*at as usize) < self.image.len())
    }

    /// Whether the instruction at RIP would come from no memory. Devices tell something else each time.
    pub(super) fn is_in_device(&self, mode: Mode, state: &CpuState) -> bool {
        let linear = state.segments[1].base.wrapping_add(state.rip);
        let mapped = if mode == Mode::Protected32 {
            1 << 32
        } else {
            machine::RAM
        };
        let at = if mode == Mode::Protected32 {
            Some(linear)
        } else {
            physical(linear)
        };
        at.is_some_and(|at| (RAM - LONGEST as u64..mapped).contains(&at))
    }

    /// The instruction at RIP.
    pub(super) fn instruction(&self, state: &CpuState) -> Option<Instruction> {
        let ins = self.decode(state.rip, state, LONGEST).into_iter().next()?;
        (!ins.is_invalid()).then_some(ins)
    }

    /// Arithmetic flags that code from `rip` on surely reads.
    pub(super) fn live_flags(&self, rip: u64, state: &CpuState) -> u64 {
        flags::live(self.decode(rip, state, 64).into_iter())
    }

    /// Arithmetic flags that code behind an instruction surely reads.
    pub(super) fn live_behind(&self, ins: &Instruction, state: &CpuState) -> u64 {
        match ins.flow_control() {
            FlowControl::Next => self.live_flags(ins.next_ip(), state),
            _ => 0,
        }
    }

    /// The pages of code.
    pub(super) fn code(&self) -> Vec<u8> {
        let mut bytes = vec![0; 0x2000];
        self.memory.read(CODE, &mut bytes).expect("the range is RAM");
        bytes
    }

    fn decode(&self, rip: u64, state: &CpuState, len: usize) -> Vec<Instruction> {
        let Some(at) = physical(state.segments[1].base.wrapping_add(rip)) else {
            return Vec::new();
        };
        let mut bytes = vec![0; len];
        if self.memory.read(at, &mut bytes).is_err() {
            return Vec::new();
        }
        let bits = match state.segments[1].attr & 0x600 {
            0 => 16,
            0x400 => 32,
            _ => 64,
        };
        Decoder::with_ip(bits, &bytes, rip, DecoderOptions::NONE)
            .into_iter()
            .collect()
    }
}

/// Memory before a run. The tables of a mode are made once.
fn image(case: &Case<'_>) -> Vec<u8> {
    static TABLES: Mutex<Vec<(Mode, bool, Vec<u8>)>> = Mutex::new(Vec::new());
    let mut tables = TABLES.lock().unwrap_or_else(PoisonError::into_inner);
    let known = tables
        .iter()
        .find(|(mode, second, _)| (*mode, *second) == (case.mode, case.second_page));
    let mut image = match known {
        Some((_, _, image)) => image.clone(),
        None => {
            let memory = machine::memory(case.mode, case.second_page);
            handlers(&memory, case.mode);
            pages(&memory, case.mode);
            tables.push((case.mode, case.second_page, contents(&memory)));
            contents(&memory)
        }
    };
    // What lies around the code ends blocks and runs.
    for at in (CODE..CODE + 0x2000).step_by(2) {
        image[at as usize..][..2].copy_from_slice(&UD2);
    }
    let start = case.start as usize;
    image[start..start + case.code.len()].copy_from_slice(case.code);
    image
}

/// Where code at a linear address is, with the page tables of the machine. The first GiB is there three times.
fn physical(linear: u64) -> Option<u64> {
    let gib = linear >> 30;
    let first = gib == 0 || gib == u64::MAX >> 30 || gib == u64::MAX << 9 & u64::MAX >> 30;
    let at = linear & 0x3fff_ffff;
    match at {
        _ if !first => None,
        _ if at >> 12 == SWAPPED[0] => Some(at ^ (SWAPPED[0] ^ SWAPPED[1]) << 12),
        _ if at >> 12 == SWAPPED[1] => Some(at ^ (SWAPPED[0] ^ SWAPPED[1]) << 12),
        ALIAS..0x4_2000 => Some(at - ALIAS + CODE),
        _ => Some(at),
    }
}

/// Lets most vectors lead to a HLT of their own.
fn handlers(memory: &GuestMemory, mode: Mode) {
    for vector in 0..=255u8 {
        let halt = HALTS + u64::from(vector) * 8;
        memory.write(halt, &[HLT, 0xeb, 0xfd]).expect("handlers are in RAM");
        let at = machine::IDT + u64::from(vector) * if mode.is_long() { 16 } else { 8 };
        let mut old: u64 = memory.read_obj(at).expect("the table is in RAM");
        if old >> 40 & 15 == 5 {
            // A task gate. What that task returns to has no page tables.
            old = memory.read_obj(machine::IDT).expect("the table is in RAM");
        }
        let returns = matches!(vector, 3 | 4 | 0x80 | INTERRUPT);
        let offset = if returns { old & 0xffff } else { halt };
        // In 64-bit mode all are on the first stack of the TSS, whatever has become of RSP.
        let stack = if mode.is_long() { 1 << 32 } else { 0 };
        memory
            .write_obj(at, &(old & !0xffff | offset | stack))
            .expect("the table is in RAM");
    }
}

/// Shows the code a second time, and takes the right to write to page tables away: when changes take effect is not told.
fn pages(memory: &GuestMemory, mode: Mode) {
    let size = if mode == Mode::Paged32 { 4 } else { 8 };
    let entry = |page: u64, of: u64, keep: u8| {
        let mut value = [0; 8];
        let value = &mut value[..size as usize];
        memory
            .read(machine::TABLE + of * size, value)
            .expect("tables are in RAM");
        value[0] &= keep;
        memory
            .write(machine::TABLE + page * size, value)
            .expect("tables are in RAM");
    };
    for page in [5, 6, 7, 8, 0xe, 0xf] {
        entry(page, page, !2);
    }
    memory.write_obj(machine::PDPT + 8, &0u64).expect("tables are in RAM");
    // The last GiB as the first, for addresses that are sign-extended.
    let first: u64 = memory.read_obj(machine::PDPT).expect("tables are in RAM");
    memory
        .write_obj(machine::PDPT + 511 * 8, &first)
        .expect("tables are in RAM");
    entry(SWAPPED[0], SWAPPED[1], !0);
    memory
        .write(
            machine::TABLE + SWAPPED[1] * size,
            &((SWAPPED[0] << 12) as u32 | 7).to_le_bytes(),
        )
        .expect("tables are in RAM");
    (0..2).for_each(|page| entry((ALIAS >> 12) + page, (CODE >> 12) + page, !0));
}

impl Outcome {
    /// What differs, but for arithmetic flags in `ignored`.
    pub(super) fn differences(&self, other: &Self, ignored: u64, mode: Mode) -> Vec<String> {
        let (a, b) = (comparable(&self.state, ignored), comparable(&other.state, ignored));
        let mut found = a.diff(&b);
        if found.is_empty() && a != b {
            found.push("states".into());
        }
        if self.memory != other.memory {
            self.memory_differences(other, mode, &mut found);
        }
        found
    }

    /// Frames hold flags that nobody may have wanted when the exception came.
    fn memory_differences(&self, other: &Self, mode: Mode, found: &mut Vec<String>) {
        let at_halt = is_halt(self.state.rip.wrapping_sub(1));
        let top = self.state.gpr[4];
        let frame: Vec<usize> = (0..20)
            .filter_map(|n| Some(physical(top + n & 0xffff_ffff)? as usize))
            .collect();
        for (at, a, b) in differing(&self.memory, &other.memory) {
            let in_frame = match mode {
                _ if mode.is_long() => at & !3 == FRAME_FLAGS,
                _ if self.stop == Stop::TripleFault => true,
                _ => at_halt && frame.contains(&at),
            };
            let excused = match at >> 12 {
                // Accessed flags: translations may be looked up that turn out not to be wanted.
                5..=8 | 0xe if at & 3 == 0 => 0x20,
                _ if in_frame => ARITH | ARITH >> 8,
                _ => 0,
            };
            if u64::from(a ^ b) & !excused & 0xff != 0 {
                found.push(format!("memory at {at:#x}: {a:#x} {b:#x}"));
            }
        }
        found.truncate(20);
    }
}

fn contents(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    memory.read(0, &mut bytes).expect("the range is RAM");
    bytes
}

/// The places at which two memories differ.
fn differing<'a>(one: &'a [u8], other: &'a [u8]) -> impl Iterator<Item = (usize, u8, u8)> + 'a {
    chunks(one, other).flat_map(|(start, one, other)| {
        let bytes = one.iter().zip(other).zip(start..);
        bytes.filter(|((a, b), _)| a != b).map(|((a, b), at)| (at, *a, *b))
    })
}

/// The chunks that are different in two memories. Pages first: byte by byte is slow when it is watched for coverage.
fn chunks<'a>(one: &'a [u8], other: &'a [u8]) -> impl Iterator<Item = (usize, &'a [u8], &'a [u8])> + 'a {
    let parts = |start: usize, one: &'a [u8], other: &'a [u8], len: usize| {
        let pairs = one.chunks(len).zip(other.chunks(len)).zip((start..).step_by(len));
        pairs.filter(|((a, b), _)| a != b).map(|((a, b), at)| (at, a, b))
    };
    parts(0, one, other, 4096).flat_map(move |(start, one, other)| parts(start, one, other, 64))
}

/// The state without what may differ.
fn comparable(state: &CpuState, ignored: u64) -> CpuState {
    let mut state = state.clone();
    state.rflags &= !ignored;
    state.fpu = FpuState {
        fop: 0,
        fip: 0,
        fcs: 0,
        fdp: 0,
        fds: 0,
        ..state.fpu
    };
    state
}

type Job = Option<(Instant, Arc<Signals>)>;

/// The run that is going on. A thread kicks those that take too long.
fn watch() -> &'static Mutex<Job> {
    static JOB: Mutex<Job> = Mutex::new(None);
    static STARTED: OnceLock<()> = OnceLock::new();
    STARTED.get_or_init(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(PATIENCE / 10);
                if let Some((since, signals)) = &*JOB.lock().unwrap_or_else(PoisonError::into_inner) {
                    match since.elapsed() {
                        time if time > 2 * PATIENCE => std::process::abort(),
                        time if time > PATIENCE => signals.raise(Signal::Kick),
                        _ => {}
                    }
                }
            }
        });
    });
    &JOB
}

/// The code of a case in assembler, with the registers before it.
pub(super) fn listing(case: &Case<'_>) -> String {
    let bits = if case.mode == Mode::Long { 64 } else { 32 };
    let mut text = String::new();
    for ins in Decoder::with_ip(bits, case.code, case.start, DecoderOptions::NONE)
        .iter()
        .take(80)
    {
        let mut line = String::new();
        IntelFormatter::new().format(&ins, &mut line);
        text += &format!("  {:x}: {line}\n", ins.ip());
    }
    format!("{text}  {:x?} rflags {:x}", case.state.gpr, case.state.rflags)
}
