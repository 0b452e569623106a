//! A machine for tests: 16 MiB of RAM, flat segments, gates to handlers that halt, a board that records ports.
//!
//! ```text
//!   1000 page tables (identity, user)   5000 IDT    6000 GDT    7000 TSS
//!   9000 top of the ring 0 stack from the TSS   b000 first stack   10000 code   20000 + 16 n handler of vector n
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cpu_model::Activity;
use cpu_model::CpuBoard;
use cpu_model::CpuPolicy;
use cpu_model::CpuState;
use cpu_model::DescriptorTable;
use cpu_model::Engine;
use cpu_model::Model;
use cpu_model::MsrFault;
use cpu_model::SegmentState;
use cpu_model::Signal;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::TestClock;
use device_model::VmTime;
use device_model::Width;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use iced_x86::code_asm::eax;
use iced_x86::code_asm::ecx;
use iced_x86::code_asm::edx;

use crate::InterpEngine;

/// Selectors of the GDT.
pub(crate) const CODE32: u16 = 0x08;
pub(crate) const DATA: u16 = 0x10;
pub(crate) const CODE64: u16 = 0x18;
pub(crate) const USER_CODE32: u16 = 0x23;
pub(crate) const USER_DATA: u16 = 0x2b;
pub(crate) const USER_CODE64: u16 = 0x33;
pub(crate) const TSS: u16 = 0x38;
/// First selector that tests may use.
pub(crate) const FREE: u16 = 0x48;

pub(crate) const IDT_BASE: u64 = 0x5000;
pub(crate) const GDT_BASE: u64 = 0x6000;
pub(crate) const TSS_BASE: u64 = 0x7000;
pub(crate) const KERNEL_STACK: u64 = 0x9000;
pub(crate) const STACK: u64 = 0xb000;
pub(crate) const CODE: u64 = 0x1_0000;
pub(crate) const HANDLERS: u64 = 0x2_0000;

/// A page of ROM behind 16 MiB of RAM.
pub(crate) const ROM: u64 = 0x100_0000;
/// The board's date at power-on.
pub(crate) const BOOT_DATE: Duration = Duration::new(1_234_567_890, 500_000_000);

/// Instructions that a test runs at most.
const BUDGET: u64 = 100_000;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Real,
    /// 32-bit, without paging.
    Protected,
    /// 64-bit.
    Long,
}

#[derive(Default)]
pub(crate) struct Board {
    pub(crate) written: Mutex<Vec<(u16, u32)>>,
    pub(crate) interrupts: Mutex<VecDeque<u8>>,
    pub(crate) clock: TestClock,
    cr8: AtomicU8,
    /// Sender, first APIC id, set and ICR of IPIs; the id alone of those taken out of HLT.
    pub(crate) ipis: Mutex<Vec<(u32, u32, u128, u32)>>,
    pub(crate) unhalted: Mutex<Vec<u32>>,
    pub(crate) stolen: Mutex<Duration>,
}

impl CpuBoard for Board {
    fn pio_read(&self, _cpu: u32, _port: u16, width: Width) -> u32 {
        width.ones() as u32
    }
    fn pio_write(&self, _cpu: u32, port: u16, _width: Width, value: u32) {
        self.written.lock().unwrap().push((port, value));
    }
    fn mmio_read(&self, _cpu: u32, _gpa: u64, width: Width) -> u64 {
        width.ones()
    }
    fn mmio_write(&self, _cpu: u32, _gpa: u64, _width: Width, _value: u64) {}
    fn take_interrupt(&self, _cpu: u32) -> Option<u8> {
        self.interrupts.lock().unwrap().pop_front()
    }
    fn apic_read_msr(&self, _cpu: u32, msr: u32) -> Result<u64, MsrFault> {
        if msr == x86_isa::msr::APIC_BASE {
            Ok(0xfee0_0900)
        } else {
            Err(MsrFault)
        }
    }
    fn apic_write_msr(&self, _cpu: u32, _msr: u32, _value: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }
    fn apic_cr8(&self, _cpu: u32) -> u8 {
        self.cr8.load(Ordering::Relaxed)
    }
    fn set_apic_cr8(&self, _cpu: u32, value: u8) {
        self.cr8.store(value, Ordering::Relaxed);
    }
    fn send_ipis(&self, cpu: u32, first: u32, set: u128, icr: u32) -> Option<u32> {
        self.ipis.lock().unwrap().push((cpu, first, set, icr));
        Some(set.count_ones())
    }
    fn unhalt(&self, apic_id: u32) {
        self.unhalted.lock().unwrap().push(apic_id);
    }
    fn stolen(&self, _cpu: u32) -> Duration {
        *self.stolen.lock().unwrap()
    }
    fn now(&self) -> VmTime {
        use device_model::Clock as _;
        self.clock.now()
    }
    fn boot_date(&self) -> Duration {
        BOOT_DATE
    }
}

pub(crate) struct Machine {
    pub(crate) engine: InterpEngine,
    pub(crate) vcpu: Box<dyn Vcpu>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) board: Board,
    mode: Mode,
}

impl Machine {
    pub(crate) fn new(mode: Mode) -> Self {
        Self::with_policy(mode, CpuPolicy::new(Model::V2).unwrap())
    }

    pub(crate) fn with_policy(mode: Mode, policy: CpuPolicy) -> Self {
        let mut memory = GuestMemory::new();
        for (gpa, name, kind, len) in [(0, "ram", Kind::Ram, ROM), (ROM, "rom", Kind::Rom, 0x1000)] {
            let region = MemoryRegion::new(name, kind, len).unwrap();
            memory.add(gpa, Arc::new(region)).unwrap();
        }
        let memory = Arc::new(memory);
        let engine = InterpEngine::new(Arc::clone(&memory), Arc::new(policy)).unwrap();
        let vcpu = engine.new_vcpu(0).unwrap();
        let mut machine = Self {
            engine,
            vcpu,
            memory,
            board: Board::default(),
            mode,
        };
        machine.tables();
        machine.edit(|state| first_state(state, mode));
        machine
    }

    /// Changes the state before or between runs.
    pub(crate) fn edit(&mut self, change: impl FnOnce(&mut CpuState)) {
        let mut state = self.vcpu.state();
        change(&mut state);
        self.vcpu.set_state(&state).unwrap();
    }

    /// Goes on in ring 3.
    pub(crate) fn user(&mut self) {
        let code = if self.mode == Mode::Long {
            (USER_CODE64, 0xafb)
        } else {
            (USER_CODE32, 0xcfb)
        };
        self.edit(|state| {
            for segment in &mut state.segments {
                *segment = flat(USER_DATA, 0xcf3);
            }
            state.segments[1] = flat(code.0, code.1);
        });
    }

    /// Assembles code at [`CODE`].
    pub(crate) fn code(&mut self, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) {
        let bits = match self.mode {
            Mode::Real => 16,
            Mode::Protected => 32,
            Mode::Long => 64,
        };
        self.code_at(CODE, bits, build);
    }

    pub(crate) fn code_at(
        &mut self,
        at: u64,
        bits: u32,
        build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
    ) {
        let mut asm = CodeAssembler::new(bits).unwrap();
        build(&mut asm).unwrap();
        // Real-mode code has its own segment, in which it starts at zero.
        let ip = if bits == 16 { 0 } else { at };
        self.memory.write(at, &asm.assemble(ip).unwrap()).unwrap();
    }

    pub(crate) fn run(&mut self) -> Stop {
        self.steps(BUDGET)
    }

    pub(crate) fn steps(&mut self, count: u64) -> Stop {
        self.vcpu.run(&self.board, Some(count)).unwrap()
    }

    /// Runs until a handler halts; its vector.
    pub(crate) fn vector(&mut self) -> u64 {
        assert_eq!(self.run(), Stop::Halted, "at {:#x}", self.state().rip);
        let state = self.state();
        let at = state.segments[1].base + state.rip;
        assert!(at > HANDLERS && at % 16 == 1, "halted at {at:#x}");
        (at - HANDLERS) / 16
    }

    pub(crate) fn state(&mut self) -> CpuState {
        self.vcpu.state()
    }

    /// Word `n` on the stack, in the size of the mode.
    pub(crate) fn stack(&mut self, n: u64) -> u64 {
        let state = self.state();
        let base = state.segments[2].base;
        match self.mode {
            Mode::Real => self.read::<u16>(base + state.gpr[4] + n * 2).into(),
            Mode::Protected => self.read::<u32>(base + state.gpr[4] + n * 4).into(),
            Mode::Long => self.read(state.gpr[4] + n * 8),
        }
    }

    pub(crate) fn read<T: zerocopy::FromBytes + zerocopy::IntoBytes>(&self, at: u64) -> T {
        self.memory.read_obj(at).unwrap()
    }

    pub(crate) fn write<T: zerocopy::IntoBytes + zerocopy::Immutable>(&self, at: u64, value: T) {
        self.memory.write_obj(at, &value).unwrap();
    }

    pub(crate) fn descriptor(&self, selector: u16, value: u64) {
        self.write(GDT_BASE + u64::from(selector & !7), value);
    }

    /// Sets an interrupt gate (`attr` is byte 5) to the usual handler of its vector.
    pub(crate) fn gate(&self, vector: u64, selector: u16, attr: u64, ist: u64) {
        let offset = HANDLERS + vector * 16;
        let low = offset & 0xffff | u64::from(selector) << 16 | ist << 32 | attr << 40 | offset >> 16 << 48;
        let size = if self.mode == Mode::Long { 16 } else { 8 };
        self.write(IDT_BASE + vector * size, low);
        if self.mode == Mode::Long {
            self.write(IDT_BASE + vector * 16 + 8, 0u64);
        }
    }

    /// Signals a maskable interrupt.
    pub(crate) fn interrupt(&self, vector: u8) {
        self.board.interrupts.lock().unwrap().push_back(vector);
        self.vcpu.signals().raise(Signal::Interrupt);
    }

    fn tables(&mut self) {
        self.write(0x1000, 0x2007u64);
        self.write(0x2000, 0x3007u64);
        for i in 0..8u64 {
            self.write(0x3000 + i * 8, i << 21 | 0x87);
        }
        let descriptors: [u64; 7] = [
            0,
            0x00cf_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00af_9b00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
        ];
        for (i, descriptor) in descriptors.iter().enumerate() {
            self.descriptor(i as u16 * 8, *descriptor);
        }
        self.descriptor(TSS, 0x0000_8b00_7000_0067);
        if self.mode == Mode::Long {
            self.write(TSS_BASE + 4, KERNEL_STACK);
        } else {
            self.write(TSS_BASE + 4, KERNEL_STACK as u32);
            self.write(TSS_BASE + 8, u32::from(DATA));
        }
        for vector in 0..256u64 {
            self.memory.write(HANDLERS + vector * 16, &[0xf4]).unwrap();
            match self.mode {
                Mode::Real => self.write(vector * 4, (HANDLERS as u32 >> 4) << 16 | (vector as u32 * 16)),
                Mode::Protected => self.gate(vector, CODE32, 0x8e, 0),
                Mode::Long => self.gate(vector, CODE64, 0x8e, 0),
            }
        }
    }
}

pub(crate) fn flat(selector: u16, attr: u16) -> SegmentState {
    SegmentState {
        selector,
        base: 0,
        limit: u32::MAX,
        attr,
    }
}

fn first_state(state: &mut CpuState, mode: Mode) {
    state.rflags = 2;
    state.gpr[4] = STACK;
    if mode == Mode::Real {
        state.rip = 0;
        state.segments[1] = SegmentState {
            selector: (CODE >> 4) as u16,
            base: CODE,
            limit: 0xffff,
            attr: 0x9b,
        };
        state.idtr = DescriptorTable { base: 0, limit: 0x3ff };
        state.cr0 = 0x10;
        return;
    }
    state.rip = CODE;
    state.cr0 = 0x11;
    for segment in &mut state.segments {
        *segment = flat(DATA, 0xc93);
    }
    state.segments[1] = flat(CODE32, 0xc9b);
    state.tr = SegmentState {
        selector: TSS,
        base: TSS_BASE,
        limit: 0x67,
        attr: 0x8b,
    };
    state.ldtr.attr = x86_isa::attr::UNUSABLE;
    state.gdtr = DescriptorTable {
        base: GDT_BASE,
        limit: 0xff,
    };
    state.idtr = DescriptorTable {
        base: IDT_BASE,
        limit: 0x7ff,
    };
    if mode == Mode::Long {
        state.segments[1] = flat(CODE64, 0xa9b);
        state.idtr.limit = 0xfff;
        state.cr0 = 0x8000_0011;
        state.cr3 = 0x1000;
        state.cr4 = 0x20;
        state.msrs.efer = 0xd01;
    }
}

/// Begins at the start of the code again.
pub(crate) fn again(s: &mut CpuState) {
    s.rip = CODE;
    s.gpr[4] = STACK;
    s.activity = Activity::Active;
}

/// Runs WRMSR in long mode: the vector of its exception, or that of the INT behind it. The register reads as written.
pub(crate) fn wrmsr(m: &mut Machine, number: u32, value: u64) -> u64 {
    m.code(|a| {
        a.mov(ecx, number as i32)?;
        a.mov(eax, value as i32)?;
        a.mov(edx, (value >> 32) as i32)?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.int(0x40)
    });
    m.edit(again);
    let vector = m.vector();
    if vector == 0x40 {
        let s = m.state();
        assert_eq!(s.gpr[2] << 32 | s.gpr[0], value, "{number:#x} reads as written");
    }
    vector
}
