//! Fast system calls: SYSCALL and SYSRET, SYSENTER and SYSEXIT.
//!
//! Spec: SDM vol. 2 (each instruction), vol. 3 §5.8.7-5.8.8.

use cpu_model::SegmentState;
use iced_x86::Code;
use iced_x86::Mnemonic;
use x86_isa::efer;
use x86_isa::flags;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::cpu::RCX;
use crate::cpu::RDX;
use crate::cpu::RSP;
use crate::cpu::SS;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;
use crate::mmu::Tlb;
use crate::seam::Mode;
use crate::vcpu::InterpVcpu;

const R11: usize = 11;
/// DR6.BS.
const DR6_BS: u64 = 1 << 14;

pub(super) fn select(x: &Dec<'_>, _d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Syscall => syscall,
        Mnemonic::Sysret | Mnemonic::Sysretq => {
            if x.code() == Code::Sysretq {
                sysret::<true>
            } else {
                sysret::<false>
            }
        }
        Mnemonic::Sysenter => sysenter,
        Mnemonic::Sysexit | Mnemonic::Sysexitq => {
            if x.code() == Code::Sysexitq {
                sysexit::<true>
            } else {
                sysexit::<false>
            }
        }
        _ => return None,
    })
}

/// What SYSCALL or SYSRET changes beside flags, instruction pointer and registers.
#[derive(Clone, Copy, Debug)]
pub struct FastCall {
    /// The mode behind it.
    pub mode: Mode,
    /// The code segment behind it.
    pub cs: SegmentState,
    /// The stack segment behind it.
    pub ss: SegmentState,
    /// For how long all this holds: as long as the word at [`CONFIG`](crate::seam::layout::CONFIG) is this.
    pub config: u64,
}

/// Flags that SYSCALL always clears where its [`FastCall`] is known.
const CLEARED: u64 = flags::ARITH | flags::AC | flags::TF;

impl InterpVcpu {
    /// What SYSCALL, or the SYSRET to 64-bit code (`user`), does in the present mode, as long as the flags are none that make
    /// it do more: SYSRET with TF or AC, and SYSCALL in compatibility mode, are left to [`Self::execute`]. `None` where
    /// it is not that simple. No flag of [`flags::ARITH`] is set behind SYSCALL.
    #[must_use]
    pub fn fast_call(&self, user: bool) -> Option<FastCall> {
        let cpu = &self.cpu;
        let simple = cpu.is64() && (user || cpu.msrs.fmask & CLEARED == CLEARED);
        if cpu.msrs.efer & efer::SCE == 0 || !simple {
            return None;
        }
        let (cpl, bank) = if user { (3, Tlb::USER) } else { (0, Tlb::SUPERVISOR) };
        let (code, stack) = if user {
            let selector = cpu.msrs.star >> 48;
            (selector + 16, selector + 8)
        } else {
            let selector = cpu.msrs.star >> 32 & 0xfffc;
            (selector, selector + 8)
        };
        Some(FastCall {
            mode: Mode {
                cpl,
                bank: bank as u8,
                no_tsc: user && cpu.cr4 & x86_isa::cr4::TSD != 0,
                align_checks: false,
                ..self.mode()
            },
            cs: flat_code(code, cpl, true),
            ss: flat_stack(stack, cpl),
            config: cpu.config,
        })
    }
}

/// The flat code segment that fast system calls load without looking at descriptors.
fn flat_code(selector: u64, cpl: u8, long: bool) -> SegmentState {
    let mode = if long { 0xa9b } else { 0xc9b };
    SegmentState {
        selector: selector as u16 & !3 | u16::from(cpl),
        base: 0,
        limit: u32::MAX,
        attr: mode | u16::from(cpl) << 5,
    }
}

fn flat_stack(selector: u64, cpl: u8) -> SegmentState {
    SegmentState {
        selector: selector as u16 & !3 | u16::from(cpl),
        base: 0,
        limit: u32::MAX,
        attr: 0xc93 | u16::from(cpl) << 5,
    }
}

fn syscall(cpu: &mut Cpu, _d: &DInsn) -> R {
    if cpu.msrs.efer & efer::SCE == 0 || !cpu.is64() {
        return cpu.ud();
    }
    let old = cpu.rflags() & !flags::RF;
    cpu.regs[RCX] = cpu.rip();
    cpu.regs[R11] = old;
    let selector = cpu.msrs.star >> 32 & 0xfffc;
    cpu.segs[CS] = flat_code(selector, 0, true);
    cpu.segs[SS] = flat_stack(selector + 8, 0);
    cpu.set_rip(cpu.msrs.lstar);
    cpu.set_rflags(old & !cpu.msrs.fmask);
    // The flags after the call say whether it is followed by a single-step trap.
    cpu.boundary.no_step = old & flags::TF != 0 && !cpu.flag(flags::TF);
    cpu.update_mode();
    Ok(())
}

fn sysret<const WIDE: bool>(cpu: &mut Cpu, _d: &DInsn) -> R {
    if cpu.msrs.efer & efer::SCE == 0 || !cpu.is64() {
        return cpu.ud();
    }
    cpu.privileged()?;
    let (rip, image) = (cpu.regs[RCX], cpu.regs[R11]);
    if WIDE && !cpu.canonical(rip) {
        return cpu.gp(0);
    }
    let selector = cpu.msrs.star >> 48;
    cpu.segs[CS] = flat_code(if WIDE { selector + 16 } else { selector }, 3, WIDE);
    cpu.segs[SS] = flat_stack(selector + 8, 3);
    cpu.set_rip(if WIDE { rip } else { rip & 0xffff_ffff });
    cpu.set_rflags(image & flags::ALL & !(flags::RF | flags::VM) | flags::FIXED);
    if cpu.flag(flags::TF) {
        cpu.boundary.event.debug_trap |= DR6_BS;
    }
    cpu.update_mode();
    Ok(())
}

fn sysenter(cpu: &mut Cpu, _d: &DInsn) -> R {
    let selector = cpu.msrs.sysenter_cs & 0xfffc;
    if !cpu.protected() || selector == 0 {
        return cpu.gp(0);
    }
    let long = cpu.long_mode();
    cpu.set_rflags(cpu.rflags() & !(flags::VM | flags::IF | flags::RF));
    cpu.segs[CS] = flat_code(selector, 0, long);
    cpu.segs[SS] = flat_stack(selector + 8, 0);
    let mask = if long { u64::MAX } else { 0xffff_ffff };
    cpu.regs[RSP] = cpu.msrs.sysenter_esp & mask;
    cpu.set_rip(cpu.msrs.sysenter_eip & mask);
    cpu.update_mode();
    Ok(())
}

fn sysexit<const WIDE: bool>(cpu: &mut Cpu, _d: &DInsn) -> R {
    let selector = cpu.msrs.sysenter_cs & 0xfffc;
    if !cpu.protected() || selector == 0 || cpu.cpl != 0 {
        return cpu.gp(0);
    }
    let (rip, sp) = (cpu.regs[RDX], cpu.regs[RCX]);
    if WIDE && !(cpu.canonical(rip) && cpu.canonical(sp)) {
        return cpu.gp(0);
    }
    let base = if WIDE { selector + 32 } else { selector + 16 };
    cpu.segs[CS] = flat_code(base, 3, WIDE);
    cpu.segs[SS] = flat_stack(base + 8, 3);
    let mask = if WIDE { u64::MAX } else { 0xffff_ffff };
    cpu.regs[RSP] = sp & mask;
    cpu.set_rip(rip & mask);
    cpu.update_mode();
    Ok(())
}
