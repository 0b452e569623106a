//! System instructions: descriptor tables, TLB, HLT, CLI and STI, CPUID, time stamps, random numbers, and what does
//! nothing but must exist.

mod control;
mod msr;

use cpu_model::Activity;
use cpu_model::CpuidContext;
use cpu_model::Feature;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use x86_isa::cr4;
use x86_isa::flags;
use x86_isa::msr as isa_msr;

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
use crate::ops::nop;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    harmless(x).or_else(|| control::select(x, d)).or_else(|| msr::select(x, d)).or_else(|| {
        Some(match x.mnemonic() {
            Mnemonic::Lgdt => table(x, d, lgdt),
            Mnemonic::Lidt => table(x, d, lidt),
            Mnemonic::Sgdt => table(x, d, sgdt),
            Mnemonic::Sidt => table(x, d, sidt),
            Mnemonic::Invlpg => invlpg,
            Mnemonic::Invpcid => {
                let Op::Reg(kind) = x.op(0) else { return None };
                d.src = kind;
                invpcid
            }
            Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => cache_control,
            Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => flush_line,
            Mnemonic::Hlt => hlt,
            Mnemonic::Cli => cli,
            Mnemonic::Sti => sti,
            Mnemonic::Cpuid => cpuid,
            Mnemonic::Rdtsc => rdtsc,
            Mnemonic::Rdtscp => rdtscp,
            Mnemonic::Rdpid => {
                let Op::Reg(target) = x.op(0) else { return None };
                d.dst = target;
                rdpid
            }
            Mnemonic::Rdrand | Mnemonic::Rdseed => {
                let Op::Reg(target) = x.op(0) else { return None };
                d.dst = target;
                by_size_wide!(x.size(0), random)
            }
            Mnemonic::Stac => stac,
            Mnemonic::Clac => clac,
            Mnemonic::Rdpkru => rdpkru,
            Mnemonic::Wrpkru => wrpkru,
            _ => return None,
        })
    })
}

/// Instructions that change nothing a guest could see.
fn harmless(x: &Dec<'_>) -> Select {
    use Mnemonic as M;
    match x.mnemonic() {
        M::Nop | M::Pause | M::Endbr32 | M::Endbr64 | M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2
        | M::Prefetchw | M::Prefetchwt1 | M::Prefetch | M::Cldemote | M::Rdsspd | M::Rdsspq => Some(nop),
        M::Reservednop => Some(nop),
        M::Lfence | M::Sfence | M::Mfence => Some(fence),
        _ => None,
    }
}

fn fence(_cpu: &mut Cpu, _d: &DInsn) -> R {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

impl Cpu {
    /// The time-stamp counter.
    pub(crate) fn tsc(&self) -> u64 {
        self.board().now().to_ticks(self.policy.tsc_hz()).wrapping_add(self.msrs.tsc_offset)
    }

    /// Reads the TSC for RDTSC: refused in user mode under CR4.TSD.
    fn guarded_tsc(&mut self) -> R<u64> {
        if self.cr4 & cr4::TSD != 0 && self.cpl != 0 {
            return self.gp(0);
        }
        Ok(self.tsc())
    }

    /// Puts a value into EDX:EAX.
    fn set_edx_eax(&mut self, value: u64) {
        self.set_gpr(RAX, value as u32);
        self.set_gpr(RDX, (value >> 32) as u32);
    }

    fn edx_eax(&self) -> u64 {
        self.gpr::<u32>(RDX).u64() << 32 | self.gpr::<u32>(RAX).u64()
    }
}

/// Operand of LGDT and its kin: in `size` the bytes of the base, in `aux` whether only 24 bits of it count.
fn table(x: &Dec<'_>, d: &mut DInsn, handler: crate::insn::Exec) -> crate::insn::Exec {
    let wide = x.bits == 64;
    d.size = if wide { 8 } else { 4 };
    let code = format!("{:?}", x.code());
    // The 16-bit forms are named Lgdt_m1632_16.
    d.aux = code.ends_with("_16").into();
    handler
}

fn load_table(cpu: &mut Cpu, d: &DInsn) -> R<cpu_model::DescriptorTable> {
    cpu.privileged()?;
    let ea = cpu.ea(d);
    let limit = cpu.read_seg::<u16>(d.seg as usize, ea)?;
    let at = ea.wrapping_add(2) << d.cut >> d.cut;
    let base = if d.size == 8 {
        let base = cpu.read_seg::<u64>(d.seg as usize, at)?;
        if !cpu.canonical(base) {
            return cpu.gp(0);
        }
        base
    } else {
        let base = cpu.read_seg::<u32>(d.seg as usize, at)?;
        u64::from(if d.aux != 0 { base & 0xff_ffff } else { base })
    };
    Ok(cpu_model::DescriptorTable { base, limit })
}

fn lgdt(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.gdtr = load_table(cpu, d)?;
    Ok(())
}

fn lidt(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.idtr = load_table(cpu, d)?;
    Ok(())
}

fn store_table(cpu: &mut Cpu, d: &DInsn, table: cpu_model::DescriptorTable) -> R {
    cpu.umip()?;
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
    bytes[2..].copy_from_slice(&table.base.to_le_bytes());
    let len = 2 + u64::from(d.size);
    let ea = cpu.ea(d);
    let lin = cpu.lin_write(d.seg, ea, len)?;
    cpu.write_block(d.seg, lin, &bytes[..len as usize])
}

fn sgdt(cpu: &mut Cpu, d: &DInsn) -> R {
    store_table(cpu, d, cpu.gdtr)
}

fn sidt(cpu: &mut Cpu, d: &DInsn) -> R {
    store_table(cpu, d, cpu.idtr)
}

fn invlpg(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.privileged()?;
    let lin = cpu.ea_base[d.seg as usize].wrapping_add(cpu.ea(d)) & cpu.lin_mask;
    // A non-canonical address names no page.
    if cpu.canonical(lin) || !cpu.is64() {
        cpu.tlb.flush_page(lin);
    }
    cpu.end_block();
    Ok(())
}

/// INVPCID (SDM vol. 2): type 0 one address, 1 one PCID, 2 everything, 3 everything but global pages.
fn invpcid(cpu: &mut Cpu, d: &DInsn) -> R {
    if !cpu.protected() {
        return invpcid_any(cpu, d);
    }
    if cpu.v86() {
        return cpu.gp(0);
    }
    cpu.privileged()?;
    invpcid_any(cpu, d)
}

fn invpcid_any(cpu: &mut Cpu, d: &DInsn) -> R {
    let kind = if cpu.is64() { cpu.r::<u64>(d.src) } else { cpu.r::<u32>(d.src).into() };
    let ea = cpu.ea(d);
    let pcid = cpu.read_seg::<u64>(d.seg as usize, ea)?;
    let address = cpu.read_seg::<u64>(d.seg as usize, ea.wrapping_add(8) << d.cut >> d.cut)?;
    let bad_pcid = pcid >> 12 != 0 || kind < 2 && pcid != 0 && cpu.cr4 & cr4::PCIDE == 0;
    if kind > 3 || bad_pcid || kind == 0 && !cpu.canonical(address) {
        return cpu.gp(0);
    }
    match kind {
        0 => cpu.tlb.flush_page(address),
        2 => cpu.tlb.flush_all(),
        _ => cpu.tlb.flush_local(),
    }
    cpu.end_block();
    Ok(())
}

fn cache_control(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()
}

/// CLFLUSH and its kin check the address as a byte load does.
fn flush_line(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.read_m::<u8>(d).map(|_| ())
}

fn hlt(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()?;
    cpu.activity = Activity::Halted;
    cpu.end_block();
    Ok(())
}

fn may_change_if(cpu: &mut Cpu) -> R {
    if cpu.protected() && cpu.cpl > cpu.iopl() { cpu.gp(0) } else { Ok(()) }
}

fn cli(cpu: &mut Cpu, _d: &DInsn) -> R {
    may_change_if(cpu)?;
    cpu.sysflags &= !flags::IF;
    Ok(())
}

fn sti(cpu: &mut Cpu, _d: &DInsn) -> R {
    may_change_if(cpu)?;
    if !cpu.flag(flags::IF) {
        cpu.sysflags |= flags::IF;
        cpu.boundary.event.sti_shadow = true;
        cpu.end_block();
    }
    Ok(())
}

fn cpuid(cpu: &mut Cpu, _d: &DInsn) -> R {
    // The APIC's global enable shows in CPUID.
    let apic_base = cpu.board().apic_read_msr(cpu.id, isa_msr::APIC_BASE).unwrap_or(0);
    let context = CpuidContext {
        apic_id: cpu.id,
        cr4: cpu.cr4,
        xcr0: cpu.xcr0,
        apic_enabled: apic_base & 1 << 11 != 0,
    };
    let leaf = cpu.policy.cpuid(cpu.gpr::<u32>(RAX), cpu.gpr::<u32>(RCX), &context);
    for (register, value) in [RAX, RBX, RCX, RDX].into_iter().zip(leaf) {
        cpu.set_gpr(register, value);
    }
    Ok(())
}

fn rdtsc(cpu: &mut Cpu, _d: &DInsn) -> R {
    let tsc = cpu.guarded_tsc()?;
    cpu.set_edx_eax(tsc);
    Ok(())
}

fn rdtscp(cpu: &mut Cpu, _d: &DInsn) -> R {
    let tsc = cpu.guarded_tsc()?;
    cpu.set_edx_eax(tsc);
    let aux = cpu.msrs.tsc_aux as u32;
    cpu.set_gpr(RCX, aux);
    Ok(())
}

fn rdpid(cpu: &mut Cpu, d: &DInsn) -> R {
    let aux = cpu.msrs.tsc_aux & 0xffff_ffff;
    if cpu.is64() {
        cpu.w(d.dst, aux);
    } else {
        cpu.w(d.dst, aux as u32);
    }
    Ok(())
}

/// RDRAND and RDSEED: the host's random numbers; CF says that there was one.
fn random<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let mut bytes = [0; 8];
    let flags = rustix::rand::GetRandomFlags::empty();
    let got = rustix::rand::getrandom(&mut bytes, flags).is_ok_and(|n| n == bytes.len());
    let value = if got { u64::from_le_bytes(bytes) } else { 0 };
    cpu.w(d.dst, T::from_u64(value));
    cpu.lazy.set_bits(if got { x86_isa::flags::CF } else { 0 });
    Ok(())
}

fn set_ac(cpu: &mut Cpu, on: bool) -> R {
    if cpu.cpl != 0 || cpu.v86() {
        return cpu.ud();
    }
    cpu.sysflags = if on { cpu.sysflags | flags::AC } else { cpu.sysflags & !flags::AC };
    cpu.update_bank();
    Ok(())
}

fn stac(cpu: &mut Cpu, _d: &DInsn) -> R {
    set_ac(cpu, true)
}

fn clac(cpu: &mut Cpu, _d: &DInsn) -> R {
    set_ac(cpu, false)
}

fn pkru_usable(cpu: &mut Cpu) -> R {
    if cpu.cr4 & cr4::PKE == 0 || !cpu.has(Feature::Pku) {
        return cpu.ud();
    }
    if cpu.gpr::<u32>(RCX) != 0 { cpu.gp(0) } else { Ok(()) }
}

fn rdpkru(cpu: &mut Cpu, _d: &DInsn) -> R {
    pkru_usable(cpu)?;
    let pkru = cpu.pkru;
    cpu.set_edx_eax(pkru.into());
    Ok(())
}

fn wrpkru(cpu: &mut Cpu, _d: &DInsn) -> R {
    pkru_usable(cpu)?;
    if cpu.gpr::<u32>(RDX) != 0 {
        return cpu.gp(0);
    }
    cpu.pkru = cpu.gpr(RAX);
    cpu.tlb.flush_all();
    Ok(())
}

/// Whether operand `n` is a register of another file than the integer one: control or debug.
fn is_special(x: &Dec<'_>, n: u32, control: bool) -> Option<u8> {
    if x.ins.op_kind(n) != OpKind::Register {
        return None;
    }
    let register = x.ins.op_register(n);
    let fits = if control { register.is_cr() } else { register.is_dr() };
    fits.then(|| register.number() as u8)
}
