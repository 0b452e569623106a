//! LAR, LSL, VERR, VERW, ARPL: questions about selectors that are answered in ZF.
//!
//! Spec: SDM vol. 2 (each instruction), vol. 3 §5.10.

use iced_x86::Mnemonic;
use x86_isa::Selector;
use x86_isa::descriptor::system;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size_wide;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;
use crate::ops::segment::Found;
use crate::ops::segment::IN_MEMORY;
use crate::ops::segment::operand16;

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Lar | Mnemonic::Lsl => {
            let Op::Reg(target) = x.op(0) else { return None };
            d.dst = target;
            operand16(x, d, 1)?;
            if x.mnemonic() == Mnemonic::Lar {
                by_size_wide!(x.size(0), lar)
            } else {
                by_size_wide!(x.size(0), lsl)
            }
        }
        Mnemonic::Verr => {
            operand16(x, d, 0)?;
            verr
        }
        Mnemonic::Verw => {
            operand16(x, d, 0)?;
            verw
        }
        Mnemonic::Arpl => {
            match x.op(0) {
                Op::Reg(r) => d.dst = r,
                _ => d.aux = IN_MEMORY,
            }
            if let Op::Reg(r) = x.op(1) {
                d.src = r;
            }
            arpl
        }
        _ => return None,
    })
}

impl Cpu {
    /// The descriptor of the operand, if there is one that the present privilege may see.
    fn visible(&mut self, d: &DInsn) -> R<Option<Found>> {
        if !self.protected() || self.v86() {
            return self.ud();
        }
        let selector = Selector(self.operand16(d)?);
        if selector.is_null() {
            return Ok(None);
        }
        let cpl = self.cpl;
        Ok(self
            .find_descriptor(selector)?
            .filter(|found| found.desc.is_conforming() || found.desc.dpl() >= cpl.max(selector.rpl())))
    }
}

fn lar<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let long = cpu.long_mode();
    let found = cpu.visible(d)?.filter(|found| match found.desc.system() {
        None | Some(system::LDT | system::TSS32 | system::TSS32_BUSY | system::CALL32) => true,
        Some(system::TSS16 | system::TSS16_BUSY | system::CALL16 | system::TASK_GATE) => !long,
        Some(_) => false,
    });
    if let Some(found) = found {
        cpu.w(d.dst, T::from_u64(u64::from(found.desc.high() & 0x00ff_ff00)));
    }
    cpu.lazy.set_zf(found.is_some());
    Ok(())
}

fn lsl<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let long = cpu.long_mode();
    let found = cpu.visible(d)?.filter(|found| match found.desc.system() {
        None | Some(system::LDT | system::TSS32 | system::TSS32_BUSY) => true,
        Some(system::TSS16 | system::TSS16_BUSY) => !long,
        Some(_) => false,
    });
    if let Some(found) = found {
        cpu.w(d.dst, T::from_u64(found.desc.limit().into()));
    }
    cpu.lazy.set_zf(found.is_some());
    Ok(())
}

fn verr(cpu: &mut Cpu, d: &DInsn) -> R {
    let found = cpu.visible(d)?;
    cpu.lazy.set_zf(found.is_some_and(|found| found.desc.is_readable()));
    Ok(())
}

fn verw(cpu: &mut Cpu, d: &DInsn) -> R {
    let found = cpu.visible(d)?;
    cpu.lazy.set_zf(found.is_some_and(|found| found.desc.is_writable()));
    Ok(())
}

fn arpl(cpu: &mut Cpu, d: &DInsn) -> R {
    if !cpu.protected() || cpu.v86() {
        return cpu.ud();
    }
    let rpl = cpu.r::<u16>(d.src) & 3;
    let adjust = |value: u16| if value & 3 < rpl { value & !3 | rpl } else { value };
    let mut raised = false;
    if d.aux == IN_MEMORY {
        cpu.modify_m(d, |_, value: u16| {
            raised = adjust(value) != value;
            adjust(value)
        })?;
    } else {
        let value = cpu.r::<u16>(d.dst);
        raised = adjust(value) != value;
        cpu.w(d.dst, adjust(value));
    }
    cpu.lazy.set_zf(raised);
    Ok(())
}
