//! Debug registers: MOV to and from DR0 to DR7. The breakpoints themselves are looked for by the run loop and by memory
//! accesses.
//!
//! Spec: SDM vol. 2 "MOV—Move to/from Debug Registers"; vol. 3 §17.2.

use iced_x86::Mnemonic;
use iced_x86::OpKind;
use x86_isa::Exception;
use x86_isa::Vector;
use x86_isa::cr4;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Select;
use crate::decode::reg;
use crate::insn::DInsn;
use crate::insn::R;

/// DR6 bits that software can set: B0-B3, BD, BS, BT.
const DR6_WRITABLE: u64 = 0xe00f;
/// DR6 bits that read as one.
const DR6_ONES: u64 = 0xffff_0ff0;
/// DR6.BD.
const DR6_BD: u64 = 1 << 13;
/// DR7 bits that software can set.
const DR7_WRITABLE: u64 = 0xffff_23ff;
/// DR7 bits that read as one.
const DR7_ONES: u64 = 0x400;
/// DR7.GD: the next access to a debug register is a debug exception.
const DR7_GD: u64 = 1 << 13;

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    if x.mnemonic() != Mnemonic::Mov || (0..2).any(|n| x.ins.op_kind(n) != OpKind::Register) {
        return None;
    }
    let (target, source) = (x.ins.op_register(0), x.ins.op_register(1));
    if target.is_dr() && target.number() < 8 {
        (d.aux, d.src) = (target.number() as u8, reg(source));
        Some(write)
    } else if source.is_dr() && source.number() < 8 {
        (d.aux, d.dst) = (source.number() as u8, reg(target));
        Some(read)
    } else {
        None
    }
}

/// The register's place in `cpu.dr`: DR4 and DR5 are DR6 and DR7 unless CR4.DE makes them undefined.
fn check(cpu: &mut Cpu, d: &DInsn) -> R<usize> {
    let index = match d.aux {
        4 | 5 if cpu.cr4 & cr4::DE != 0 => return cpu.ud(),
        4 | 6 => 4,
        5 | 7 => 5,
        n => n.into(),
    };
    cpu.privileged()?;
    if cpu.dr[5] & DR7_GD != 0 {
        return cpu.raise(Exception {
            vector: Vector::Db,
            code: 0,
            info: DR6_BD,
        });
    }
    Ok(index)
}

fn read(cpu: &mut Cpu, d: &DInsn) -> R {
    let index = check(cpu, d)?;
    let value = cpu.dr[index];
    if cpu.is64() {
        cpu.w(d.dst, value);
    } else {
        cpu.w(d.dst, value as u32);
    }
    Ok(())
}

fn write(cpu: &mut Cpu, d: &DInsn) -> R {
    let index = check(cpu, d)?;
    let value = if cpu.is64() {
        cpu.r::<u64>(d.src)
    } else {
        cpu.r::<u32>(d.src).into()
    };
    if index >= 4 && value >> 32 != 0 {
        return cpu.gp(0);
    }
    let new = match index {
        4 => value & DR6_WRITABLE | DR6_ONES,
        5 => value & DR7_WRITABLE | DR7_ONES,
        _ => value,
    };
    let old = std::mem::replace(&mut cpu.dr[index], new);
    // Pages with breakpoints are kept out of the TLB.
    if index != 4 && old != new && (cpu.dr[5] | old) & 0xff != 0 {
        cpu.tlb.flush_all();
    }
    cpu.end_block();
    Ok(())
}
