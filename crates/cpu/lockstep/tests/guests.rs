//! The bare-metal guests in `guests/`, assembled by the host's C compiler and run to their result on every engine.
//!
//! The board is the least that they need: text on COM1, the result on port F4h, and of the local APIC its interrupt
//! command register.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use cpu_model::CpuBoard;
use cpu_model::CpuPolicy;
use cpu_model::CpuState;
use cpu_model::Engine;
use cpu_model::Model;
use cpu_model::MsrFault;
use cpu_model::SegmentState;
use cpu_model::Signal;
use cpu_model::Signals;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::VmTime;
use device_model::Width;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use kvm::KvmEngine;
use lockstep::LockstepEngine;
use x86_interp::InterpEngine;
use x86_jit::JitEngine;
use x86_jit::JitOptions;

#[path = "../../../../guests/build.rs"]
mod build;

const COM1: u16 = 0x3f8;
const EXIT: u16 = 0xf4;
const APIC_ICR: u64 = 0xfee0_0300;
const APIC_ICR_HIGH: u64 = 0xfee0_0310;

/// Instructions that a vCPU executes before the guest counts as stuck.
const BUDGET: u64 = 500_000_000;
/// Time after which a guest without a budget counts as stuck.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);
/// Results that no guest gives itself.
const SHUTDOWN: u32 = 20_000;
const STUCK: u32 = 20_001;

struct Cpu {
    signals: Arc<Signals>,
    interrupts: Mutex<VecDeque<u8>>,
    icr_high: AtomicU32,
}

struct Board {
    cpus: Vec<Cpu>,
    text: Mutex<Vec<u8>>,
    result: OnceLock<u32>,
    ticks: AtomicU64,
}

impl Board {
    fn end(&self, result: u32) {
        // The first result counts.
        let _ = self.result.set(result);
        self.cpus.iter().for_each(|cpu| cpu.signals.raise(Signal::Kick));
    }

    fn command(&self, from: u32, command: u32) {
        let own = command >> 18 & 3 == 1;
        let to = if own {
            from
        } else {
            self.cpus[from as usize].icr_high.load(Ordering::SeqCst) >> 24
        };
        let cpu = &self.cpus[to as usize];
        match command >> 8 & 7 {
            0 => {
                cpu.interrupts.lock().unwrap().push_back(command as u8);
                cpu.signals.raise(Signal::Interrupt);
            }
            4 => cpu.signals.raise(Signal::Nmi),
            5 => cpu.signals.raise(Signal::Init),
            6 => cpu.signals.raise_sipi(command as u8),
            mode => panic!("delivery mode {mode}"),
        }
    }
}

impl CpuBoard for Board {
    fn pio_read(&self, _cpu: u32, _port: u16, width: Width) -> u32 {
        width.ones() as u32
    }
    fn pio_write(&self, _cpu: u32, port: u16, _width: Width, value: u32) {
        match port {
            COM1 => self.text.lock().unwrap().push(value as u8),
            EXIT => self.end(value),
            _ => {}
        }
    }
    fn mmio_read(&self, _cpu: u32, _gpa: u64, width: Width) -> u64 {
        width.ones()
    }
    fn mmio_write(&self, cpu: u32, gpa: u64, _width: Width, value: u64) {
        match gpa {
            APIC_ICR => self.command(cpu, value as u32),
            APIC_ICR_HIGH => self.cpus[cpu as usize].icr_high.store(value as u32, Ordering::SeqCst),
            _ => {}
        }
    }
    fn take_interrupt(&self, cpu: u32) -> Option<u8> {
        self.cpus[cpu as usize].interrupts.lock().unwrap().pop_front()
    }
    fn apic_read_msr(&self, _cpu: u32, msr: u32) -> Result<u64, MsrFault> {
        if msr == x86_isa::msr::APIC_BASE {
            Ok(0xfee0_0800)
        } else {
            Err(MsrFault)
        }
    }
    fn apic_write_msr(&self, _cpu: u32, _msr: u32, _value: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }
    fn apic_cr8(&self, _cpu: u32) -> u8 {
        0
    }
    fn set_apic_cr8(&self, _cpu: u32, _value: u8) {}
    fn now(&self) -> VmTime {
        VmTime::from_ns(self.ticks.fetch_add(100, Ordering::Relaxed))
    }
}

/// Loads a 32-bit ELF file; its entry point.
fn load(memory: &GuestMemory, elf: &[u8]) -> u64 {
    let word = |at: usize| u32::from_le_bytes(elf[at..at + 4].try_into().unwrap()) as usize;
    let half = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
    for i in 0..half(44) {
        let header = word(28) + i * half(42);
        let (kind, offset, address, size) = (word(header), word(header + 4), word(header + 12), word(header + 16));
        if kind == 1 {
            memory.write(address as u64, &elf[offset..offset + size]).unwrap();
        }
    }
    word(24) as u64
}

/// What a multiboot loader leaves behind.
fn first_state(state: &mut CpuState, entry: u64) {
    for segment in &mut state.segments {
        *segment = SegmentState {
            selector: 0x10,
            base: 0,
            limit: u32::MAX,
            attr: 0xc93,
        };
    }
    state.segments[1] = SegmentState {
        selector: 8,
        base: 0,
        limit: u32::MAX,
        attr: 0xc9b,
    };
    state.cr0 = 0x11;
    state.rip = entry;
    state.gpr[0] = 0x2bad_b002;
}

/// Guests that do not look at what emulators of processors leave out: limits of segments, RF, reserved bits, when exactly
/// STI opens.
const ANYWHERE: [&str; 10] = [
    "gates", "groups", "high", "loops", "many", "mmio", "real", "smp", "task", "v86",
];

/// What executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Interp,
    /// The translator with a budget: blocks run one at a time.
    JitSingle,
    /// The translator at its full speed.
    Jit,
    /// The same with the least memory for code.
    JitSmall,
    Lockstep,
    /// The host's processor.
    Kvm,
}

impl On {
    fn engine(self, memory: Arc<GuestMemory>, policy: Arc<CpuPolicy>) -> Box<dyn Engine> {
        match self {
            Self::Interp => Box::new(InterpEngine::new(memory, policy).unwrap()),
            Self::JitSingle | Self::Jit => Box::new(JitEngine::new(memory, policy).unwrap()),
            Self::JitSmall => {
                let options = JitOptions {
                    code_memory: 0,
                    ..JitOptions::at_once()
                };
                Box::new(JitEngine::with_options(memory, policy, &options).unwrap())
            }
            Self::Lockstep => Box::new(LockstepEngine::new(memory, policy).unwrap()),
            Self::Kvm => Box::new(KvmEngine::new(memory, &policy).unwrap()),
        }
    }
}

fn drive(on: On, board: &Board, index: usize, vcpu: &mut dyn Vcpu) {
    // Without a budget the watchdog ends a guest that is stuck.
    let budget = (!matches!(on, On::Jit | On::JitSmall | On::Kvm)).then_some(BUDGET);
    while board.result.get().is_none() {
        match vcpu.run(board, budget).unwrap() {
            Stop::Halted => {
                board.cpus[index].signals.wait(u32::MAX, None);
            }
            Stop::TripleFault => board.end(SHUTDOWN),
            Stop::Budget => board.end(STUCK),
            Stop::Kicked | Stop::Debug => {}
        }
    }
}

/// Ends a guest that does not end by itself.
fn watch(board: &Board) {
    let start = std::time::Instant::now();
    while board.result.get().is_none() {
        std::thread::sleep(std::time::Duration::from_millis(10));
        if start.elapsed() > PATIENCE {
            board.end(STUCK);
        }
    }
}

fn run(name: &str, cpus: u32, on: On) {
    if on == On::Kvm {
        let found = kvm::availability();
        if !found.usable || !found.hardware && !ANYWHERE.contains(&name) {
            eprintln!("SKIPPED: {found}");
            return;
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../guests")
        .join(format!("{name}.S"));
    let text = std::fs::read_to_string(&source).unwrap();
    let expected = text.lines().find_map(|line| line.strip_prefix(" * expect: ")).unwrap();
    let mut memory = GuestMemory::new();
    memory
        .add(0, Arc::new(MemoryRegion::new("ram", Kind::Ram, 16 << 20).unwrap()))
        .unwrap();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let elf = std::fs::read(build::build(&source, directory, &format!("{on:?}"))).unwrap();
    let entry = load(&memory, &elf);
    let policy = CpuPolicy::new(Model::V2).unwrap().with_cpus(cpus);
    let engine = on.engine(Arc::new(memory), Arc::new(policy));
    let mut vcpus: Vec<_> = (0..cpus).map(|id| engine.new_vcpu(id).unwrap()).collect();
    let mut state = vcpus[0].state();
    first_state(&mut state, entry);
    vcpus[0].set_state(&state).unwrap();
    let cpu = |vcpu: &dyn Vcpu| Cpu {
        signals: vcpu.signals(),
        interrupts: Mutex::default(),
        icr_high: AtomicU32::new(0),
    };
    let board = Board {
        cpus: vcpus.iter().map(|vcpu| cpu(vcpu.as_ref())).collect(),
        text: Mutex::default(),
        result: OnceLock::new(),
        ticks: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        for (index, vcpu) in vcpus.iter_mut().enumerate() {
            let board = &board;
            scope.spawn(move || drive(on, board, index, vcpu.as_mut()));
        }
        watch(&board);
    });
    let printed = String::from_utf8_lossy(&board.text.lock().unwrap()).into_owned();
    if on == On::JitSmall && name == "many" {
        // It is about what happens then.
        let evictions = engine.inspect().at("evictions").cloned();
        assert!(
            evictions.is_some_and(|n| n != device_model::Node::from(0u64)),
            "room was made"
        );
    }
    let result = *board.result.get().unwrap();
    if on == On::Kvm && name == "mmio" {
        let inspected = vcpus[0].inspect();
        let none = inspected.at("interpreted/count").is_none();
        assert!(!none, "the kernel executes x87 on device memory: {inspected:?}");
    }
    let state = vcpus[0].state();
    assert_eq!(
        (result, printed.trim_end()),
        (0, expected),
        "at {:#x}, registers {:x?}",
        state.rip,
        state.gpr
    );
}

macro_rules! guests {
    ($on:ident, $module:ident: $($name:ident($guest:literal, $cpus:literal)),* $(,)?) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $name() {
                run($guest, $cpus, On::$on);
            })*
        }
    };
}

/// Between two steps of lock-step the board's signals wait, so that guests that count on them at once do not run.
macro_rules! on_engines {
    ($($on:ident, $module:ident;)*) => {
        $(guests!($on, $module:
            real_guest_passes("real", 1),
            v86_guest_passes("v86", 1),
            gates_guest_passes("gates", 1),
            task_guest_passes("task", 1),
            paging_guest_passes("paging", 1),
            smc_guest_passes("smc", 1),
            debug_guest_passes("debug", 1),
            long_guest_passes("long", 1),
            loops_guest_passes("loops", 1),
            pcid_guest_passes("pcid", 1),
            groups_guest_passes("groups", 1),
            crossing_guest_passes("crossing", 1),
            high_guest_passes("high", 1),
        );)*
    };
}

on_engines! {
    Interp, interp;
    JitSingle, jit_block_by_block;
    Jit, jit;
    JitSmall, jit_small;
    Lockstep, lock_step;
    Kvm, kvm_engine;
}

guests!(Interp, interp_irq: irq_guest_passes("irq", 1));
guests!(JitSingle, jit_block_by_block_irq: irq_guest_passes("irq", 1));
guests!(Jit, jit_irq: irq_guest_passes("irq", 1));
guests!(Kvm, kvm_irq: irq_guest_passes("irq", 1));

// Not in lock-step: the translator's x87 instruction pointer stays that of an instruction that the interpreter executed.
guests!(Interp, interp_mmio: mmio_guest_passes("mmio", 1));
guests!(JitSingle, jit_block_by_block_mmio: mmio_guest_passes("mmio", 1));
guests!(Jit, jit_mmio: mmio_guest_passes("mmio", 1));
guests!(Kvm, kvm_mmio: mmio_guest_passes("mmio", 1));

guests!(Interp, interp_smp: smp_guest_passes("smp", 2), many_guest_passes("many", 2), moved_guest_passes("moved", 2));
guests!(JitSingle, jit_block_by_block_smp: smp_guest_passes("smp", 2), many_guest_passes("many", 2), moved_guest_passes("moved", 2));
guests!(Jit, jit_smp: smp_guest_passes("smp", 2), many_guest_passes("many", 2), moved_guest_passes("moved", 2));
guests!(JitSmall, jit_small_smp: smp_guest_passes("smp", 2), many_guest_passes("many", 2), moved_guest_passes("moved", 2));
guests!(Kvm, kvm_smp: smp_guest_passes("smp", 2), many_guest_passes("many", 2), moved_guest_passes("moved", 2));
