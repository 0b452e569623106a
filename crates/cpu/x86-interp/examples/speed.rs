//! How many guest instructions per second the interpreter executes in a few typical loops.
//!
//! `cargo run --release -p x86-interp --example speed`

use std::sync::Arc;
use std::time::Instant;

use cpu_model::CpuBoard;
use cpu_model::CpuPolicy;
use cpu_model::CpuState;
use cpu_model::Engine;
use cpu_model::Model;
use cpu_model::MsrFault;
use cpu_model::SegmentState;
use device_model::VmTime;
use device_model::Width;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use iced_x86::code_asm::*;
use x86_interp::InterpEngine;

struct NoBoard;

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

const CODE: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;

/// 64-bit mode, ring 0, 2 MiB identity pages.
fn state(memory: &GuestMemory) -> CpuState {
    memory.write_obj(0x1000, &0x2003u64).unwrap();
    memory.write_obj(0x2000, &0x3003u64).unwrap();
    for i in 0..8u64 {
        memory.write_obj(0x3000 + i * 8, &(i << 21 | 0x83)).unwrap();
    }
    let mut state = CpuState {
        rip: CODE,
        rflags: 2,
        cr0: 0x8001_0033,
        cr3: 0x1000,
        cr4: 0x6a0,
        ..CpuState::default()
    };
    state.msrs.efer = 0x500;
    state.xcr0 = 1;
    for segment in &mut state.segments {
        *segment = SegmentState {
            selector: 0x10,
            base: 0,
            limit: u32::MAX,
            attr: 0xc93,
        };
    }
    state.segments[1].attr = 0xa9b;
    state.gpr[4] = DATA + 0x8000;
    state.gpr[6] = DATA;
    state
}

fn measure(name: &str, build: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) {
    let mut memory = GuestMemory::new();
    memory
        .add(0, Arc::new(MemoryRegion::new("ram", Kind::Ram, 16 << 20).unwrap()))
        .unwrap();
    let mut asm = CodeAssembler::new(64).unwrap();
    build(&mut asm).unwrap();
    memory.write(CODE, &asm.assemble(CODE).unwrap()).unwrap();
    let state = state(&memory);
    let memory = Arc::new(memory);
    let policy = Arc::new(CpuPolicy::new(Model::Host).unwrap());
    let engine = InterpEngine::new(memory, policy).unwrap();
    let mut vcpu = engine.new_vcpu(0).unwrap();
    vcpu.set_state(&state).unwrap();
    const COUNT: u64 = 100_000_000;
    let start = Instant::now();
    vcpu.run(&NoBoard, Some(COUNT)).unwrap();
    let ns = start.elapsed().as_nanos() as f64 / COUNT as f64;
    println!("{name:10} {ns:6.2} ns/instruction {:6.0} MIPS", 1000.0 / ns);
}

fn main() {
    measure("moves", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        for _ in 0..40 {
            a.mov(rax, rbx)?;
        }
        a.jmp(top)
    });
    measure("independent", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        for r in [rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15] {
            a.mov(r, r8)?;
            a.add(r, r9)?;
        }
        a.jmp(top)
    });
    measure("alu", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.add(rax, rbx)?;
        a.xor(rcx, rax)?;
        a.lea(rdx, rcx + rax * 4 + 8)?;
        a.shr(rdx, 3)?;
        a.inc(rbx)?;
        a.cmp(rbx, 1000)?;
        a.jne(top)?;
        a.jmp(top)
    });
    measure("memory", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rax, qword_ptr(rsi + 8))?;
        a.add(qword_ptr(rsi + 16), rax)?;
        a.mov(dword_ptr(rsi + rcx * 4 + 64), eax)?;
        a.push(rax)?;
        a.movzx(edx, byte_ptr(rsi + 3))?;
        a.pop(rbx)?;
        a.test(dl, dl)?;
        a.jmp(top)
    });
    measure("calls", |a| {
        let (mut top, mut f) = (a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.call(f)?;
        a.jmp(top)?;
        a.set_label(&mut f)?;
        a.push(rbx)?;
        a.mov(rbx, rsp)?;
        a.pop(rbx)?;
        a.ret()
    });
}
