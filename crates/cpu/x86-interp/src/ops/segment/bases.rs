//! The bases of FS and GS in 64-bit mode: RDFSBASE and its kin, SWAPGS.
//!
//! Spec: SDM vol. 2 (each instruction), vol. 3 §3.4.4.1.

use cpu_model::Feature;
use iced_x86::Mnemonic;
use x86_isa::cr4;

use crate::cpu::Cpu;
use crate::cpu::FS;
use crate::cpu::GS;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    if x.mnemonic() == Mnemonic::Swapgs {
        return Some(swapgs);
    }
    let (register, write) = match x.mnemonic() {
        Mnemonic::Rdfsbase => (FS, false),
        Mnemonic::Rdgsbase => (GS, false),
        Mnemonic::Wrfsbase => (FS, true),
        Mnemonic::Wrgsbase => (GS, true),
        _ => return None,
    };
    let Op::Reg(operand) = x.op(0) else { return None };
    (d.aux, d.src, d.dst) = (register as u8, operand, operand);
    Some(match (x.size(0), write) {
        (4, false) => read_base::<u32>,
        (_, false) => read_base::<u64>,
        (4, true) => write_base::<u32>,
        (_, true) => write_base::<u64>,
    })
}

impl Cpu {
    /// Whether an address may go into a register that holds one: segment bases, descriptor tables, MSRs. They take all
    /// the bits that the processor has, also while 5-level paging is off.
    pub(crate) fn canonical_base(&self, address: u64) -> bool {
        let unused = if self.has(Feature::La57) { 64 - 57 } else { 64 - 48 };
        (address << unused) as i64 >> unused == address as i64
    }

    /// Sets the base of FS or GS; the address is canonical.
    pub(crate) fn set_base(&mut self, register: usize, base: u64) {
        self.segs[register].base = base;
        self.ea_base[register] = base;
    }
}

fn swapgs(cpu: &mut Cpu, _d: &DInsn) -> R {
    cpu.privileged()?;
    let base = std::mem::replace(&mut cpu.msrs.kernel_gs_base, cpu.segs[GS].base);
    cpu.set_base(GS, base);
    Ok(())
}

fn read_base<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return cpu.ud();
    }
    let base = cpu.segs[usize::from(d.aux)].base;
    cpu.w(d.dst, T::from_u64(base));
    Ok(())
}

fn write_base<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    if cpu.cr4 & cr4::FSGSBASE == 0 {
        return cpu.ud();
    }
    let base = cpu.r::<T>(d.src).u64();
    if !cpu.canonical_base(base) {
        return cpu.gp(0);
    }
    cpu.set_base(d.aux.into(), base);
    Ok(())
}
