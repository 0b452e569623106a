//! Translation control: INVLPG, INVPCID, RDPKRU, WRPKRU.
//!
//! Spec: SDM vol. 2 (each instruction), vol. 3 §4.6.2, §4.10.4.1.

use iced_x86::Mnemonic;
use x86_isa::cr4;

use crate::cpu::Cpu;
use crate::cpu::RAX;
use crate::cpu::RCX;
use crate::cpu::RDX;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Invlpg => invlpg,
        Mnemonic::Invpcid => {
            let Op::Reg(kind) = x.op(0) else { return None };
            d.src = kind;
            invpcid
        }
        Mnemonic::Rdpkru => rdpkru,
        Mnemonic::Wrpkru => wrpkru,
        _ => return None,
    })
}

fn invlpg(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.privileged()?;
    let lin = cpu.ea_base[usize::from(d.seg)].wrapping_add(cpu.ea(d)) & cpu.lin_mask;
    cpu.tlb.flush_page(lin);
    cpu.end_block();
    Ok(())
}

fn invpcid(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.privileged()?;
    let kind = if cpu.is64() {
        cpu.r::<u64>(d.src)
    } else {
        cpu.r::<u32>(d.src).into()
    };
    let at = cpu.ea(d);
    let pcid = cpu.read_seg::<u64>(d.seg.into(), at)?;
    let lin = cpu.read_seg::<u64>(d.seg.into(), at.wrapping_add(8) << d.cut >> d.cut)?;
    let pcids = cpu.cr4 & cr4::PCIDE != 0;
    let individual = kind == 0;
    let refused =
        kind > 3 || pcid >> 12 != 0 || kind < 2 && pcid != 0 && !pcids || individual && !cpu.canonical_base(lin);
    if refused {
        return cpu.gp(0);
    }
    // Global translations may stay.
    let current = if pcids { cpu.cr3 & 0xfff } else { 0 };
    match kind {
        0 if pcid == current => cpu.tlb.flush_page(lin),
        0 => cpu.tlb.forget_space(pcid as u16),
        1 if pcid != current => cpu.tlb.forget_space(pcid as u16),
        1 => cpu.tlb.flush_local(),
        2 => cpu.tlb.flush_all(),
        _ => {
            cpu.tlb.forget_spaces();
            cpu.tlb.flush_local();
        }
    }
    cpu.end_block();
    Ok(())
}

fn check_keys(cpu: &mut Cpu) -> R {
    if cpu.cr4 & cr4::PKE == 0 {
        return cpu.ud();
    }
    if cpu.gpr::<u32>(RCX) != 0 { cpu.gp(0) } else { Ok(()) }
}

fn rdpkru(cpu: &mut Cpu, _d: &DInsn) -> R {
    check_keys(cpu)?;
    let value = cpu.pkru;
    cpu.set_edx_eax(value.into());
    Ok(())
}

fn wrpkru(cpu: &mut Cpu, _d: &DInsn) -> R {
    check_keys(cpu)?;
    if cpu.gpr::<u32>(RDX) != 0 {
        return cpu.gp(0);
    }
    let value = cpu.gpr::<u32>(RAX);
    if std::mem::replace(&mut cpu.pkru, value) != value {
        // The rights are part of cached translations.
        cpu.tlb.flush_all();
        cpu.end_block();
    }
    Ok(())
}
