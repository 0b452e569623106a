//! System instructions: processor control, identification, counters, caches, hints.
//!
//! Control and debug registers, MSRs and translation control have files of their own. VMX, SMX, SMM and MONITOR are not
//! offered: their instructions raise #UD, but for VMCALL, a guest's way to KVM's hypercalls.
//!
//! Spec: SDM vol. 2 (each instruction), vol. 3 §2.

mod control;
mod debug;
mod hypercall;
mod kvmclock;
mod msr;
mod paging;
mod steal;

use std::sync::atomic::Ordering;
use std::sync::atomic::fence;

use cpu_model::Activity;
use cpu_model::CpuidContext;
use iced_x86::Code;
use iced_x86::Mnemonic;
use x86_isa::cr4;
use x86_isa::flags;
use x86_isa::msr as number;

use crate::cpu::Cpu;
use crate::cpu::RAX;
use crate::cpu::RBX;
use crate::cpu::RCX;
use crate::cpu::RDX;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size_wide;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;
use crate::mmu::Access;
use crate::ops::nop;

pub(crate) use steal::Steal;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    hints(x)
        .or_else(|| processor(x, d))
        .or_else(|| control::select(x, d))
        .or_else(|| debug::select(x, d))
        .or_else(|| msr::select(x, d))
        .or_else(|| paging::select(x, d))
}

/// What only guides the processor. The shadow-stack instructions are among them where shadow stacks are not offered.
fn hints(x: &Dec<'_>) -> Select {
    use Mnemonic as M;
    Some(match x.mnemonic() {
        M::Nop | M::Reservednop | M::Endbr32 | M::Endbr64 | M::Cldemote => nop,
        M::Prefetch
        | M::Prefetchw
        | M::Prefetchwt1
        | M::Prefetchnta
        | M::Prefetcht0
        | M::Prefetcht1
        | M::Prefetcht2 => nop,
        // 0F 1E with a register is a reserved NOP without CET.
        M::Rdsspd | M::Rdsspq => nop,
        M::Pause => pause,
        M::Lfence | M::Sfence | M::Mfence => memory_fence,
        _ => return None,
    })
}

fn processor(x: &Dec<'_>, d: &mut DInsn) -> Select {
    use Mnemonic as M;
    Some(match x.mnemonic() {
        M::Hlt => hlt,
        M::Cli => cli,
        M::Sti => sti,
        M::Cpuid => cpuid,
        M::Rdtsc => rdtsc,
        M::Rdtscp => rdtscp,
        M::Rdpid => {
            let Op::Reg(target) = x.op(0) else { return None };
            d.dst = target;
            rdpid
        }
        M::Rdpmc => rdpmc,
        M::Rdrand | M::Rdseed => {
            let Op::Reg(target) = x.op(0) else { return None };
            d.dst = target;
            by_size_wide!(x.size(0), random)
        }
        M::Stac if x.code() == Code::Stac => set_ac::<true>,
        M::Clac => set_ac::<false>,
        M::Vmcall | M::Vmmcall => hypercall::hypercall,
        M::Invd | M::Wbinvd | M::Wbnoinvd => flush_caches,
        M::Clflush | M::Clflushopt | M::Clwb => flush_line,
        _ => return None,
    })
}

fn pause(_cpu: &mut Cpu, _d: &DInsn) -> R {
    std::hint::spin_loop();
    Ok(())
}

/// LFENCE, SFENCE and MFENCE: what orders our accesses to guest memory is the host's fence.
fn memory_fence(_cpu: &mut Cpu, _d: &DInsn) -> R {
    fence(Ordering::SeqCst);
    Ok(())
}

fn hlt(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()?;
    cpu.activity = Activity::Halted;
    cpu.end_block();
    Ok(())
}

/// CLI and STI need IOPL. CR4.PVI and VME are not offered.
fn check_iopl(cpu: &mut Cpu) -> R {
    if cpu.protected() && cpu.cpl > cpu.iopl() {
        cpu.gp(0)
    } else {
        Ok(())
    }
}

fn cli(cpu: &mut Cpu, _d: &DInsn) -> R {
    check_iopl(cpu)?;
    cpu.sysflags &= !flags::IF;
    Ok(())
}

/// Interrupts stay out for one more instruction if they were disabled before.
fn sti(cpu: &mut Cpu, _d: &DInsn) -> R {
    check_iopl(cpu)?;
    if !cpu.flag(flags::IF) {
        cpu.sysflags |= flags::IF;
        cpu.boundary.event.sti_shadow = true;
    }
    cpu.end_block();
    Ok(())
}

fn cpuid(cpu: &mut Cpu, _d: &DInsn) -> R {
    let (leaf, subleaf) = (cpu.gpr::<u32>(RAX), cpu.gpr::<u32>(RCX));
    let base = cpu.board().apic_read_msr(cpu.id, number::APIC_BASE).unwrap_or(0);
    let context = CpuidContext {
        apic_id: cpu.id,
        cr4: cpu.cr4,
        xcr0: cpu.xcr0,
        apic_enabled: base & 1 << 11 != 0,
    };
    let [eax, ebx, ecx, edx] = cpu.policy.cpuid(leaf, subleaf, &context);
    cpu.set_gpr(RAX, eax);
    cpu.set_gpr(RBX, ebx);
    cpu.set_gpr(RCX, ecx);
    cpu.set_gpr(RDX, edx);
    // Serialising.
    fence(Ordering::SeqCst);
    cpu.end_block();
    Ok(())
}

impl Cpu {
    /// The time-stamp counter: guest time in its ticks.
    pub(crate) fn tsc(&self) -> u64 {
        self.board()
            .now()
            .to_ticks(self.policy.tsc_hz())
            .wrapping_add(self.msrs.tsc_offset)
    }

    fn check_tsc(&mut self) -> R {
        if self.cpl > 0 && self.cr4 & cr4::TSD != 0 {
            self.gp(0)
        } else {
            Ok(())
        }
    }

    /// EDX:EAX.
    pub(crate) fn set_edx_eax(&mut self, value: u64) {
        self.set_gpr(RAX, value as u32);
        self.set_gpr(RDX, (value >> 32) as u32);
    }
}

fn rdtsc(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.check_tsc()?;
    let value = cpu.tsc();
    cpu.set_edx_eax(value);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.check_tsc()?;
    fence(Ordering::SeqCst);
    let value = cpu.tsc();
    cpu.set_edx_eax(value);
    let aux = cpu.msrs.tsc_aux as u32;
    cpu.set_gpr(RCX, aux);
    Ok(())
}

fn rdpid(cpu: &mut Cpu, d: &DInsn) -> R {
    let aux = cpu.msrs.tsc_aux;
    cpu.w(d.dst, aux);
    Ok(())
}

/// There are no performance counters: every index is beyond the last.
fn rdpmc(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.gp(0)
}

/// RDRAND and RDSEED.
fn random<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let number = cpu.board().random();
    // Without a number the target is zero and CF clear: the guest tries again.
    cpu.w(d.dst, T::from_u64(number.unwrap_or(0)));
    cpu.lazy.set_bits(if number.is_some() { flags::CF } else { 0 });
    Ok(())
}

fn set_ac<const ON: bool>(cpu: &mut Cpu, _d: &DInsn) -> R {
    if cpu.cpl != 0 {
        return cpu.ud();
    }
    cpu.sysflags = if ON {
        cpu.sysflags | flags::AC
    } else {
        cpu.sysflags & !flags::AC
    };
    cpu.update_bank();
    Ok(())
}

/// INVD, WBINVD, WBNOINVD: guest memory is coherent always.
fn flush_caches(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()
}

/// CLFLUSH, CLFLUSHOPT, CLWB: nothing to write back, but the address is checked as by a load.
fn flush_line(cpu: &mut Cpu, d: &DInsn) -> R {
    let at = cpu.ea(d);
    let lin = cpu.lin_read(d.seg, at, 1)?;
    cpu.host_run(d.seg, lin, 1, Access::Read)?;
    Ok(())
}

#[cfg(test)]
mod tests;
