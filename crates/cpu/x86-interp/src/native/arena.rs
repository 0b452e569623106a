//! Memory for generated code: one file mapped twice, writable here and executable there, never both.

use std::ptr::null_mut;

use iced_x86::Code;
use iced_x86::Encoder;
use iced_x86::IcedError;
use iced_x86::Instruction;
use iced_x86::MemoryOperand;
use iced_x86::Register;
use rustc_hash::FxHashMap;
use rustix::fs::MemfdFlags;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

use crate::native::FAULT_MF;
use crate::native::FAULT_XM;
use crate::native::stub::Form;

/// Bytes reserved. All forms that exist (some hundred instructions, each with up to 256 immediates, in a register and a
/// memory form) fit, and only what is used takes memory.
const LEN: usize = 32 << 20;

/// MXCSR as Rust code expects it.
const HOST_MXCSR: u32 = 0x1f80;

/// Key of a form: its machine code, with operands in their canonical places.
pub(super) type Key = [u8; 16];

pub(super) struct Arena {
    write: *mut u8,
    exec: *mut u8,
    used: usize,
    pub(super) forms: FxHashMap<Key, &'static Form>,
    /// Where SIGFPE sends a stub whose instruction raised a SIMD exception.
    pub(super) xm_exit: u64,
    /// The same for a pending x87 exception.
    pub(super) mf_exit: u64,
}

// SAFETY: the mappings are the process's, for ever; all access is under the arena's lock.
unsafe impl Send for Arena {}

impl Arena {
    pub(super) fn new() -> std::io::Result<Self> {
        let file = rustix::fs::memfd_create("oxbow-stubs", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, LEN as u64)?;
        let map = |prot| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { rustix::mm::mmap(null_mut(), LEN, prot, MapFlags::SHARED | MapFlags::NORESERVE, &file, 0) }
        };
        let exec = map(ProtFlags::READ | ProtFlags::EXEC)?.cast();
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?.cast();
        let mut arena = Self {
            write,
            exec,
            used: 0,
            forms: FxHashMap::default(),
            xm_exit: 0,
            mf_exit: 0,
        };
        arena.exits().map_err(std::io::Error::other)?;
        Ok(arena)
    }

    /// Address range of the executable mapping.
    pub(super) fn range(&self) -> std::ops::Range<u64> {
        self.exec as u64..self.exec as u64 + LEN as u64
    }

    /// Address of the constant that MXCSR is set to after guest arithmetic.
    pub(super) fn host_mxcsr(&self) -> u64 {
        self.exec as u64
    }

    /// Adds code; `None` when the arena is full.
    pub(super) fn add(&mut self, code: &[u8]) -> Option<u64> {
        let at = self.used.next_multiple_of(16);
        if at + code.len() > LEN {
            return None;
        }
        // SAFETY: the range lies in the writable mapping, and nothing executes it yet.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.write.add(at), code.len()) };
        self.used = at + code.len();
        // Code written through another address needs a serialising instruction before it runs (SDM vol. 3 §8.1.3).
        std::arch::x86_64::__cpuid(0);
        Some(self.exec as u64 + at as u64)
    }

    /// Address that the next code gets.
    pub(super) fn next(&self) -> u64 {
        self.exec as u64 + self.used.next_multiple_of(16) as u64
    }

    /// The constant, and the code that faulting stubs leave through.
    fn exits(&mut self) -> Result<(), IcedError> {
        const FULL: &str = "the arena holds more than this";
        self.add(&HOST_MXCSR.to_le_bytes()).expect(FULL);
        let mut e = Emit::new(self);
        e.ins(Instruction::with1(
            Code::Stmxcsr_m32,
            MemoryOperand::with_base(Register::R8),
        )?)?;
        e.leave(self, FAULT_XM)?;
        self.xm_exit = self.add(&e.finish()).expect(FULL);
        let mut e = Emit::new(self);
        e.leave(self, FAULT_MF)?;
        self.mf_exit = self.add(&e.finish()).expect(FULL);
        Ok(())
    }
}

/// Machine code on its way into the arena.
pub(super) struct Emit {
    encoder: Encoder,
    at: u64,
}

impl Emit {
    pub(super) fn new(arena: &Arena) -> Self {
        Self {
            encoder: Encoder::new(64),
            at: arena.next(),
        }
    }

    pub(super) fn ins(&mut self, ins: Instruction) -> Result<(), IcedError> {
        self.at += self.encoder.encode(&ins, self.at)? as u64;
        Ok(())
    }

    /// LDMXCSR of the host's value.
    pub(super) fn restore_mxcsr(&mut self, arena: &Arena) -> Result<(), IcedError> {
        let place = MemoryOperand::with_base_displ(Register::RIP, arena.host_mxcsr() as i64);
        self.ins(Instruction::with1(Code::Ldmxcsr_m32, place)?)
    }

    fn leave(&mut self, arena: &Arena, result: u64) -> Result<(), IcedError> {
        self.restore_mxcsr(arena)?;
        if std::is_x86_feature_detected!("avx") {
            self.ins(Instruction::with(Code::VEX_Vzeroupper))?;
        }
        self.ins(Instruction::with2(Code::Mov_rm64_imm32, Register::RAX, result as i32)?)?;
        self.ins(Instruction::with(Code::Retnq))
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        self.encoder.take_buffer()
    }
}
