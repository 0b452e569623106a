//! MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, AVX, AVX2, FMA, F16C: arithmetic through stubs of [`native`], the rest in
//! the submodules.
//!
//! ```text
//!   moves.rs    loads, stores and copies, logic, zeroing: what every program does most
//!   masked.rs   masked moves and gathers, which fault element by element
//!   memory.rs   memory operands
//! ```
//!
//! Spec: SDM vol. 2; vol. 2A §2.4 (exception classes); vol. 1 §11.5 (SIMD floating-point exceptions).
//!
//! [`native`]: crate::native

mod masked;
mod memory;
mod moves;

use iced_x86::CpuidFeature;
use iced_x86::EncodingKind;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use x86_isa::Exception;
use x86_isa::Vector;
use x86_isa::cr4;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::Brk;
use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::R;
use crate::native::FAULT_MF;
use crate::native::Form;
use crate::native::GPR_SLOT;
use crate::native::form_of;

/// Which unit an instruction belongs to, and so what it must ask first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Mmx,
    Sse,
    Avx,
    /// SSE with an MMX operand.
    Both,
}

const MMX: u8 = 0;
const SSE: u8 = 1;
const AVX: u8 = 2;
const BOTH: u8 = 3;

/// No memory operand, or one that is written (operand 0), or read.
const NONE: u8 = 0;
const WRITE: u8 = 1;
const READ_1: u8 = 2;
const READ_2: u8 = 3;
const READ_3: u8 = 4;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    if x.mnemonic() == Mnemonic::Movnti {
        return moves::movnti(x, d);
    }
    let unit = unit(x)?;
    moves::select(x, d, unit)
        .or_else(|| masked::select(x, d, unit))
        .or_else(|| stub(x, d, unit))
}

/// The unit of a vector instruction; `None` for all others.
fn unit(x: &Dec<'_>) -> Option<Unit> {
    let ins = x.ins;
    let is_vector = |f: &CpuidFeature| {
        use CpuidFeature as C;
        matches!(
            f,
            C::MMX
                | C::SSE
                | C::SSE2
                | C::SSE3
                | C::SSSE3
                | C::SSE4_1
                | C::SSE4_2
                | C::AES
                | C::PCLMULQDQ
                | C::SHA
                | C::AVX
                | C::AVX2
                | C::FMA
                | C::F16C
        )
    };
    let mut registers = (0..ins.op_count())
        .filter(|&i| ins.op_kind(i) == OpKind::Register)
        .map(|i| ins.op_register(i));
    let vector = registers.clone().any(|r| r.is_xmm() || r.is_ymm() || r.is_mm());
    if !(vector || is_bare(x.mnemonic())) || !ins.cpuid_features().iter().any(is_vector) {
        return None;
    }
    let mmx = registers.any(|r| r.is_mm()) || x.mnemonic() == Mnemonic::Emms;
    Some(match (ins.encoding() == EncodingKind::VEX, mmx) {
        (true, _) => Unit::Avx,
        (false, true) if has_xmm(x) || x.mnemonic() == Mnemonic::Cvtpi2ps => Unit::Both,
        (false, true) => Unit::Mmx,
        (false, false) => Unit::Sse,
    })
}

/// Vector instructions whose operands need not be vector registers.
fn is_bare(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    let conversion = matches!(
        mnemonic,
        M::Cvtss2si
            | M::Cvttss2si
            | M::Cvtsd2si
            | M::Cvttsd2si
            | M::Vcvtss2si
            | M::Vcvttss2si
            | M::Vcvtsd2si
            | M::Vcvttsd2si
    );
    conversion || matches!(mnemonic, M::Emms | M::Vzeroupper | M::Vzeroall)
}

fn has_xmm(x: &Dec<'_>) -> bool {
    (0..x.ins.op_count()).any(|i| x.ins.op_kind(i) == OpKind::Register && x.ins.op_register(i).is_xmm())
}

/// Chooses the handler that runs the instruction's stub.
fn stub(x: &Dec<'_>, d: &mut DInsn, unit: Unit) -> Select {
    let (form, slots) = form_of(x.ins)?;
    d.imm = std::ptr::from_ref(form) as u64;
    (d.dst, d.src, d.aux, d.size) = (slots[0], slots[1], slots[2], slots[3]);
    let memory = (0..x.ins.op_count()).find(|&i| x.ins.op_kind(i) == OpKind::Memory);
    if memory == Some(0) && form.arithmetic {
        return Some(run_converting_store);
    }
    macro_rules! by_memory {
        ($unit:expr) => {
            match memory {
                None => run::<$unit, NONE> as Exec,
                Some(0) => run::<$unit, WRITE>,
                Some(1) => run::<$unit, READ_1>,
                Some(2) => run::<$unit, READ_2>,
                Some(_) => run::<$unit, READ_3>,
            }
        };
    }
    Some(match unit {
        Unit::Mmx => by_memory!(MMX),
        Unit::Sse => by_memory!(SSE),
        Unit::Avx => by_memory!(AVX),
        Unit::Both => by_memory!(BOTH),
    })
}

/// The form that `stub` left in the instruction.
#[inline(always)]
pub(crate) fn form(d: &DInsn) -> &'static Form {
    // SAFETY: `imm` is the address of a form, and forms are never freed.
    unsafe { &*(d.imm as *const Form) }
}

impl Cpu {
    /// #UD and #NM of an SSE instruction.
    #[inline(always)]
    pub(crate) fn ask_sse(&mut self) -> R {
        self.ask(self.fpu_gate.sse_ud)
    }

    /// #UD and #NM of an AVX instruction.
    #[inline(always)]
    pub(crate) fn ask_avx(&mut self) -> R {
        self.ask(self.fpu_gate.avx_ud)
    }

    /// #UD and #NM of an MMX instruction; afterwards the host's unit holds the registers.
    #[inline(always)]
    pub(crate) fn ask_mmx(&mut self) -> R {
        self.ask(self.fpu_gate.mmx_ud)?;
        self.load_x87();
        Ok(())
    }

    #[inline(always)]
    fn ask(&mut self, ud: bool) -> R {
        if ud | self.fpu_gate.vec_nm {
            return self.refuse(ud);
        }
        Ok(())
    }

    #[cold]
    fn refuse(&mut self, ud: bool) -> R {
        if ud {
            self.ud()
        } else {
            self.raise(Exception::new(Vector::Nm))
        }
    }

    /// Where a vector or integer register is.
    #[inline(always)]
    fn slot(&mut self, n: u8) -> *mut u8 {
        debug_assert!(n < 2 * GPR_SLOT);
        if n < GPR_SLOT {
            // SAFETY: there are sixteen vector registers.
            unsafe { self.fpu.ymm.as_mut_ptr().add(n.into()).cast() }
        } else {
            // SAFETY: the file has more than sixteen integer registers.
            unsafe { self.regs.as_mut_ptr().add((n - GPR_SLOT).into()).cast() }
        }
    }

    /// The exception that a stub came back with.
    #[cold]
    pub(crate) fn stub_fault(&mut self, result: u64) -> R {
        let vector = match result {
            FAULT_MF => Vector::Mf,
            _ if self.cr4 & cr4::OSXMMEXCPT != 0 => Vector::Xm,
            _ => Vector::Ud,
        };
        self.raise(Exception::new(vector))
    }
}

/// Runs a stub.
fn run<const UNIT: u8, const MEMORY: u8>(cpu: &mut Cpu, d: &DInsn) -> R {
    match UNIT {
        MMX => cpu.ask_mmx()?,
        SSE => cpu.ask_sse()?,
        AVX => cpu.ask_avx()?,
        _ => {
            cpu.ask_sse()?;
            cpu.load_x87();
        }
    }
    let f = form(d);
    let (size, align) = (u64::from(f.size), u64::from(f.align));
    let mut p = [cpu.slot(d.dst), cpu.slot(d.src), cpu.slot(d.aux), cpu.slot(d.size)];
    let mut out = None;
    match MEMORY {
        NONE => {}
        WRITE => {
            let place = match cpu.operand_out(d, size, align) {
                Ok(place) => place,
                Err(fault) => return after_pending::<UNIT>(cpu, fault),
            };
            p[0] = place.at;
            out = Some(place);
        }
        _ => match cpu.operand_in(d, size, align) {
            Ok(at) => p[usize::from(MEMORY - READ_1) + 1] = at,
            Err(fault) => return after_pending::<UNIT>(cpu, fault),
        },
    }
    let context = if f.arithmetic {
        (&raw mut cpu.fpu.mxcsr).cast()
    } else {
        cpu.regs.as_mut_ptr().cast()
    };
    let result = (f.entry)(p[0], p[1], p[2], p[3], context);
    if result >= FAULT_MF {
        return cpu.stub_fault(result);
    }
    if f.flags {
        cpu.lazy.set_bits(result);
    }
    match out {
        Some(place) => cpu.operand_done(d, size, place),
        None => Ok(()),
    }
}

/// A fault of the memory operand; for MMX, a pending x87 exception comes first.
#[cold]
fn after_pending<const UNIT: u8>(cpu: &mut Cpu, fault: Brk) -> R {
    if matches!(UNIT, MMX | BOTH) {
        cpu.pending_x87_or(fault)
    } else {
        Err(fault)
    }
}

/// VCVTPS2PH to memory: what the conversion raises comes before what the store does, and MXCSR has it even when the store
/// faults.
fn run_converting_store(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_avx()?;
    let f = form(d);
    let mut value = [0u8; 16];
    let source = cpu.slot(d.src);
    let none = std::ptr::null_mut();
    let result = (f.entry)(value.as_mut_ptr(), source, none, none, (&raw mut cpu.fpu.mxcsr).cast());
    if result >= FAULT_MF {
        return cpu.stub_fault(result);
    }
    let size = u64::from(f.size);
    let out = cpu.operand_out(d, size, 1)?;
    // SAFETY: `operand_out` gives `size` bytes, eight or sixteen; guest memory does not overlap our stack.
    unsafe { crate::mmu::copy(value.as_ptr(), out.at, size as usize) };
    cpu.operand_done(d, size, out)
}
