//! The instruction groups. Each file decodes its instructions to handlers (`select`) and holds the handlers.

pub(crate) mod arith;
pub(crate) mod bcd;
pub(crate) mod bits;
pub(crate) mod control;
pub(crate) mod far;
pub(crate) mod io;
pub(crate) mod logic;
pub(crate) mod mov;
pub(crate) mod muldiv;
pub(crate) mod segment;
pub(crate) mod shift;
pub(crate) mod simd;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;
pub(crate) mod x87;
pub(crate) mod xsave;

use cpu_model::CpuPolicy;
use cpu_model::Feature;
use iced_x86::CpuidFeature;
use iced_x86::Instruction;
use iced_x86::Mnemonic;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;

/// Chooses the handler of a valid instruction; `None` makes it #UD.
pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    mov::select(x, d)
        .or_else(|| arith::select(x, d))
        .or_else(|| logic::select(x, d))
        .or_else(|| stack::select(x, d))
        .or_else(|| control::select(x, d))
        .or_else(|| shift::select(x, d))
        .or_else(|| bits::select(x, d))
        .or_else(|| muldiv::select(x, d))
        .or_else(|| string::select(x, d))
        .or_else(|| bcd::select(x, d))
        .or_else(|| segment::select(x, d))
        .or_else(|| far::select(x, d))
        .or_else(|| system::select(x, d))
        .or_else(|| io::select(x, d))
        .or_else(|| xsave::select(x, d))
        .or_else(|| simd::select(x, d))
        .or_else(|| x87::select(x, d))
}

/// #UD.
pub(crate) fn invalid(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.ud()
}

/// Does nothing.
pub(crate) fn nop(_cpu: &mut Cpu, _d: &DInsn) -> R {
    Ok(())
}

/// Whether the CPU model has the instruction.
pub(crate) fn known(ins: &Instruction, policy: &CpuPolicy) -> bool {
    // Without their features these are BSF and BSR with a prefix that means nothing, and compilers rely on that.
    if matches!(ins.mnemonic(), Mnemonic::Tzcnt | Mnemonic::Lzcnt) {
        return true;
    }
    // Of the instructions of VMX and SVM, those that guests have.
    if matches!(ins.mnemonic(), Mnemonic::Vmcall | Mnemonic::Vmmcall) {
        return policy.has_hypercalls();
    }
    ins.cpuid_features().iter().all(|&feature| match required(feature) {
        Need::Nothing => true,
        Need::Feature(f) => policy.has(f),
        Need::Never => false,
    })
}

enum Need {
    Nothing,
    Feature(Feature),
    Never,
}

fn required(feature: CpuidFeature) -> Need {
    use CpuidFeature as C;
    Need::Feature(match feature {
        C::INTEL8086 | C::INTEL8086_ONLY | C::INTEL186 | C::INTEL286 | C::INTEL386 | C::INTEL486 => {
            return Need::Nothing;
        }
        C::X64 | C::CPUID | C::MULTIBYTENOP | C::PAUSE | C::SMM | C::FPU | C::FPU287 | C::FPU387 | C::SYSCALL => {
            return Need::Nothing;
        }
        C::PREFETCHW | C::PREFETCHWT1 | C::CET_IBT | C::CET_SS | C::CLDEMOTE => return Need::Nothing,
        C::TSC => Feature::Tsc,
        C::MSR => Feature::Msr,
        C::CX8 => Feature::Cx8,
        C::SEP => Feature::Sep,
        C::CMOV => Feature::Cmov,
        C::CLFSH => Feature::Clflush,
        C::MMX => Feature::Mmx,
        C::FXSR => Feature::Fxsr,
        C::SSE => Feature::Sse,
        C::SSE2 => Feature::Sse2,
        C::SSE3 => Feature::Sse3,
        C::PCLMULQDQ => Feature::Pclmulqdq,
        C::SSSE3 => Feature::Ssse3,
        C::FMA => Feature::Fma,
        C::CMPXCHG16B => Feature::Cx16,
        C::SSE4_1 => Feature::Sse4_1,
        C::SSE4_2 => Feature::Sse4_2,
        C::MOVBE => Feature::Movbe,
        C::POPCNT => Feature::Popcnt,
        C::AES => Feature::Aes,
        C::XSAVE => Feature::Xsave,
        C::AVX => Feature::Avx,
        C::F16C => Feature::F16c,
        C::RDRAND => Feature::Rdrand,
        C::FSGSBASE => Feature::Fsgsbase,
        C::BMI1 => Feature::Bmi1,
        C::AVX2 => Feature::Avx2,
        C::BMI2 => Feature::Bmi2,
        C::INVPCID => Feature::Invpcid,
        C::RDSEED => Feature::Rdseed,
        C::ADX => Feature::Adx,
        C::SMAP => Feature::Smap,
        C::CLFLUSHOPT => Feature::Clflushopt,
        C::CLWB => Feature::Clwb,
        C::SHA => Feature::Sha,
        C::PKU => Feature::Pku,
        C::RDPID => Feature::Rdpid,
        C::XSAVEOPT => Feature::Xsaveopt,
        C::XSAVEC => Feature::Xsavec,
        C::LZCNT => Feature::Abm,
        C::RDTSCP => Feature::Rdtscp,
        C::WBNOINVD => Feature::Wbnoinvd,
        _ => return Need::Never,
    })
}
