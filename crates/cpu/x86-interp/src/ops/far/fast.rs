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
