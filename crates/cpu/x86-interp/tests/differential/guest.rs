//! The guest's side: a machine in 64-bit mode, ring 3, with the same virtual addresses as the host's process, and
//! an IDT whose handlers' addresses tell the vector.

use std::sync::Arc;

use cpu_model::CpuBoard;
use cpu_model::CpuPolicy;
use cpu_model::CpuState;
use cpu_model::DescriptorTable;
use cpu_model::Engine;
use cpu_model::Model;
use cpu_model::MsrFault;
use cpu_model::SegmentState;
use cpu_model::Vcpu;
use device_model::VmTime;
use device_model::Width;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;

use crate::case::CODE;
use crate::case::Case;
use crate::case::DATA;
use crate::case::DATA_LEN;
use crate::case::NO_FAULT;
use crate::case::Outcome;
use crate::case::Regs;
use crate::case::WINDOWS;
use crate::case::checksum;

/// Where the guest's kernel sees the first 2 MiB, far from what user mode could hit.
const KERNEL_BASE: u64 = 0xffff_8000_0000_0000;
/// Physical addresses.
const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT_CODE: u64 = 0x4000;
const PT_DATA: u64 = 0x5000;
const PDPT_KERNEL: u64 = 0xc000;
const PD_KERNEL: u64 = 0xd000;
const GDT: u64 = 0x6000;
const IDT: u64 = 0x7000;
const TSS: u64 = 0x8000;
const STACK_TOP: u64 = 0xa000;
const HANDLERS: u64 = 0xb000;
const CODE_FRAME: u64 = 0x10_0000;
const DATA_FRAME: u64 = 0x11_0000;

/// Present, writable, user, accessed, dirty.
const USER: u64 = 0x67;
/// The same without user.
const KERNEL: u64 = 0x63;

/// A board that has nothing.
pub(crate) struct NoBoard;

impl CpuBoard for NoBoard {
    fn pio_read(&self, _: u32, _: u16, _: Width) -> u32 {
        u32::MAX
    }
    fn pio_write(&self, _: u32, _: u16, _: Width, _: u32) {}
    fn mmio_read(&self, _: u32, _: u64, width: Width) -> u64 {
        width.ones()
    }
    fn mmio_write(&self, _: u32, _: u64, _: Width, _: u64) {}
    fn take_interrupt(&self, _: u32) -> Option<u8> {
        None
    }
    fn apic_read_msr(&self, _: u32, _: u32) -> Result<u64, MsrFault> {
        Err(MsrFault)
    }
    fn apic_write_msr(&self, _: u32, _: u32, _: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }
    fn apic_cr8(&self, _: u32) -> u8 {
        0
    }
    fn set_apic_cr8(&self, _: u32, _: u8) {}
    fn now(&self) -> VmTime {
        VmTime::ZERO
    }
}

pub(crate) struct Guest {
    memory: Arc<GuestMemory>,
    ram: Arc<MemoryRegion>,
    pub(crate) vcpu: Box<dyn Vcpu>,
    base: CpuState,
}

impl Guest {
    /// A machine whose processor is of the engine that `make` makes.
    pub(crate) fn new(make: impl FnOnce(Arc<GuestMemory>, Arc<CpuPolicy>) -> Box<dyn Engine>) -> Self {
        let mut memory = GuestMemory::new();
        let ram = Arc::new(MemoryRegion::new("ram", Kind::Ram, 16 << 20).expect("16 MiB are there"));
        memory.add(0, Arc::clone(&ram)).expect("the map is empty");
        build(&memory);
        let memory = Arc::new(memory);
        let policy = Arc::new(CpuPolicy::new(Model::Host).expect("the host model fits the host"));
        let engine = make(Arc::clone(&memory), policy);
        let vcpu = engine.new_vcpu(0).expect("a first vCPU");
        Self {
            memory,
            ram,
            vcpu,
            base: base_state(),
        }
    }

    /// Executes a case: one instruction.
    pub(crate) fn run(&mut self, case: &Case) -> Outcome {
        self.load(CODE, &case.bytes);
        self.enter(CODE, &case.before, [0; 2]);
        self.step();
        let (mut outcome, rip) = self.outcome(&case.before);
        // An instruction pointer that is wrong shows as a wrong exception.
        let right = if outcome.vector == NO_FAULT {
            CODE + u64::from(case.len)
        } else {
            CODE
        };
        if rip != right {
            outcome.vector = 0x1000;
        }
        outcome
    }

    /// Writes code, which may go on in the page behind that of `CODE`.
    pub(crate) fn load(&mut self, at: u64, bytes: &[u8]) {
        self.memory
            .write(CODE_FRAME + (at - (CODE & !4095)), bytes)
            .expect("inside RAM");
    }

    /// Sets the state before the code at `rip`; `bases` are those of FS and GS.
    pub(crate) fn enter(&mut self, rip: u64, r: &Regs, bases: [u64; 2]) {
        let data = self.data();
        data.fill(0);
        let mut at = 0;
        for (start, len) in WINDOWS {
            data[start..start + len].copy_from_slice(&r.window[at..at + len]);
            at += len;
        }
        let mut state = self.base.clone();
        (state.gpr, state.rflags, state.rip) = (r.gpr, r.flags, rip);
        (state.segments[4].base, state.segments[5].base) = (bases[0], bases[1]);
        let f = &mut state.fpu;
        (f.ymm, f.st, f.mxcsr, f.fcw, f.fsw, f.ftw) = (r.ymm, r.st, r.mxcsr, r.fcw, r.fsw, r.ftw);
        self.vcpu.set_state(&state).expect("a state of user mode");
    }

    /// The pages of data.
    fn data(&mut self) -> &mut [u8] {
        // SAFETY: the range lies inside the region, and the vCPU does not run while the slice lives.
        unsafe { std::slice::from_raw_parts_mut(self.ram.host().as_ptr().add(DATA_FRAME as usize), DATA_LEN) }
    }

    /// One instruction; a repeated string instruction may come back in the middle.
    fn step(&mut self) {
        for _ in 0..100 {
            self.vcpu.run(&NoBoard, Some(1)).expect("the engine goes on");
            let rip = self.vcpu.state().rip;
            if rip != CODE {
                return;
            }
        }
    }

    /// What has come of the state `before`, and RIP.
    pub(crate) fn outcome(&mut self, before: &Regs) -> (Outcome, u64) {
        let mut state = self.vcpu.state();
        let (mut vector, mut error) = (NO_FAULT, 0);
        let mut rip = state.rip;
        let handlers = KERNEL_BASE + HANDLERS;
        if (handlers..handlers + 32 * 16).contains(&state.rip) {
            vector = ((state.rip - handlers) / 16) as u32;
            let mut frame = state.gpr[4] - KERNEL_BASE;
            let word = |at: u64| self.memory.read_obj::<u64>(at).expect("the stack is in RAM");
            if matches!(vector, 8 | 10..=14 | 17) {
                error = word(frame) as u32;
                frame += 8;
            }
            (rip, state.rflags, state.gpr[4]) = (word(frame), word(frame + 16), word(frame + 24));
        }
        let data = self.data();
        let mut regs = *before;
        (regs.gpr, regs.flags) = (state.gpr, state.rflags);
        let f = &state.fpu;
        (regs.ymm, regs.st, regs.mxcsr, regs.fcw, regs.fsw, regs.ftw) = (f.ymm, f.st, f.mxcsr, f.fcw, f.fsw, f.ftw);
        let mut at = 0;
        for (start, len) in WINDOWS {
            regs.window[at..at + len].copy_from_slice(&data[start..start + len]);
            at += len;
        }
        let outcome = Outcome {
            regs,
            data: checksum(data),
            vector,
            error,
            cr2: if vector == 14 { state.cr2 } else { 0 },
        };
        (outcome, rip)
    }
}

/// Page tables, descriptor tables, TSS.
fn build(memory: &GuestMemory) {
    let put = |at: u64, value: u64| memory.write_obj(at, &value).expect("inside RAM");
    put(PML4, PDPT | USER);
    put(PDPT, PD | USER);
    put(PML4 + 256 * 8, PDPT_KERNEL | KERNEL);
    put(PDPT_KERNEL, PD_KERNEL | KERNEL);
    put(PD_KERNEL, 0x80 | KERNEL);
    put(PD + (CODE >> 21) * 8, PT_CODE | USER);
    put(PD + (DATA >> 21) * 8, PT_DATA | USER);
    for page in 0..2 {
        put(
            PT_CODE + ((CODE >> 12 & 511) + page) * 8,
            (CODE_FRAME + page * 4096) | USER,
        );
    }
    for page in 0..DATA_LEN as u64 / 4096 {
        put(
            PT_DATA + ((DATA >> 12 & 511) + page) * 8,
            (DATA_FRAME + page * 4096) | USER,
        );
    }
    put(GDT + 8, 0x00af_9b00_0000_ffff);
    put(GDT + 16, 0x00cf_9300_0000_ffff);
    put(TSS + 0x24, KERNEL_BASE + STACK_TOP);
    for vector in 0..32 {
        let handler = KERNEL_BASE + HANDLERS + vector * 16;
        // An interrupt gate to selector 8 on the first interrupt stack.
        put(
            IDT + vector * 16,
            handler & 0xffff | 8 << 16 | 1 << 32 | 0x8e << 40 | (handler >> 16 & 0xffff) << 48,
        );
        put(IDT + vector * 16 + 8, handler >> 32);
        memory.write(HANDLERS + vector * 16, &[0xf4]).expect("inside RAM");
    }
}

fn base_state() -> CpuState {
    let mut state = CpuState {
        cr0: 0x8005_0033,
        cr3: PML4,
        cr4: 0x4_06a0,
        xcr0: 7,
        ..CpuState::default()
    };
    state.msrs.efer = 0xd01;
    for segment in &mut state.segments {
        *segment = SegmentState {
            selector: 0x23,
            base: 0,
            limit: u32::MAX,
            attr: 0xcf3,
        };
    }
    state.segments[1] = SegmentState {
        selector: 0x1b,
        base: 0,
        limit: u32::MAX,
        attr: 0xafb,
    };
    state.ldtr = SegmentState {
        selector: 0,
        base: 0,
        limit: 0xffff,
        attr: 0x82,
    };
    state.tr = SegmentState {
        selector: 0x28,
        base: KERNEL_BASE + TSS,
        limit: 0x67,
        attr: 0x8b,
    };
    state.gdtr = DescriptorTable {
        base: KERNEL_BASE + GDT,
        limit: 0x37,
    };
    state.idtr = DescriptorTable {
        base: KERNEL_BASE + IDT,
        limit: 0x1ff,
    };
    (state.dr[4], state.dr[5]) = (0xffff_0ff0, 0x400);
    state
}
