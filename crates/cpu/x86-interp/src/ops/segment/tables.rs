//! LLDT, LTR, SLDT, STR, LGDT, LIDT, SGDT, SIDT: the registers that say where descriptors are.
//!
//! Spec: SDM vol. 2 (each instruction), vol. 3 §2.4, §3.5, §7.2.

use cpu_model::DescriptorTable;
use cpu_model::SegmentState;
use iced_x86::Code;
use iced_x86::Mnemonic;
use x86_isa::Selector;
use x86_isa::Vector;
use x86_isa::attr;
use x86_isa::cr4;
use x86_isa::descriptor::TSS_BUSY;
use x86_isa::descriptor::system;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::R;
use crate::ops::segment::operand16;
use crate::ops::segment::target16;

pub(super) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::Lldt => {
            operand16(x, d, 0)?;
            lldt
        }
        Mnemonic::Ltr => {
            operand16(x, d, 0)?;
            ltr
        }
        Mnemonic::Sldt => {
            target16(x, d, 0)?;
            sldt
        }
        Mnemonic::Str => {
            target16(x, d, 0)?;
            str
        }
        Mnemonic::Lgdt => {
            table_size(x, d);
            lgdt
        }
        Mnemonic::Lidt => {
            table_size(x, d);
            lidt
        }
        Mnemonic::Sgdt => {
            table_size(x, d);
            sgdt
        }
        Mnemonic::Sidt => {
            table_size(x, d);
            sidt
        }
        _ => return None,
    })
}

/// Bytes of the base that count: three with a 16-bit operand, four, or eight.
fn table_size(x: &Dec<'_>, d: &mut DInsn) {
    d.size = match x.code() {
        Code::Lgdt_m1632_16 | Code::Lidt_m1632_16 | Code::Sgdt_m1632_16 | Code::Sidt_m1632_16 => 3,
        Code::Lgdt_m1664 | Code::Lidt_m1664 | Code::Sgdt_m1664 | Code::Sidt_m1664 => 8,
        _ => 4,
    };
}

impl Cpu {
    /// #UD outside of protected mode, #GP(0) above privilege level 0.
    fn privileged_system(&mut self) -> R {
        if !self.protected() || self.v86() {
            return self.ud();
        }
        self.privileged()
    }

    /// #GP(0) above privilege level 0.
    pub(crate) fn privileged(&mut self) -> R {
        if self.cpl == 0 { Ok(()) } else { self.gp(0) }
    }

    /// #GP(0) for user programs when CR4.UMIP hides the system registers from them.
    pub(crate) fn umip(&mut self) -> R {
        if self.cpl > 0 && self.cr4 & cr4::UMIP != 0 {
            self.gp(0)
        } else {
            Ok(())
        }
    }

    /// LDTR for a selector that is not null. `absent` is the vector for a descriptor that is not present, `vector` that
    /// of all other faults.
    pub(crate) fn ldt_segment(&mut self, selector: Selector, vector: Vector, absent: Vector) -> R<SegmentState> {
        if selector.is_local() {
            return self.selector_fault(vector, selector);
        }
        let found = self.descriptor(selector, vector)?;
        if found.desc.system() != Some(system::LDT) {
            return self.selector_fault(vector, selector);
        }
        if !found.desc.present() {
            return self.selector_fault(absent, selector);
        }
        let base = self.system_base(&found, vector)?;
        Ok(SegmentState {
            selector: selector.0,
            base,
            limit: found.desc.limit(),
            attr: found.desc.attr(),
        })
    }

    /// The base of a system segment: 64 bits in long mode.
    fn system_base(&mut self, found: &crate::ops::segment::Found, vector: Vector) -> R<u64> {
        let low = u64::from(found.desc.base());
        if !self.long_mode() {
            return Ok(low);
        }
        match self.descriptor_top(found)? {
            Some(top) if self.canonical_base(top << 32 | low) => Ok(top << 32 | low),
            _ => self.selector_fault(vector, found.selector),
        }
    }
}

/// LDTR without a table.
pub(crate) fn no_ldt(selector: u16) -> SegmentState {
    SegmentState {
        selector,
        base: 0,
        limit: 0,
        attr: attr::UNUSABLE | u16::from(system::LDT),
    }
}

fn lldt(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.privileged_system()?;
    let selector = Selector(cpu.operand16(d)?);
    cpu.ldtr = if selector.is_null() {
        no_ldt(selector.0)
    } else {
        cpu.ldt_segment(selector, Vector::Gp, Vector::Np)?
    };
    Ok(())
}

fn ltr(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.privileged_system()?;
    let selector = Selector(cpu.operand16(d)?);
    if selector.is_null() {
        return cpu.gp(0);
    }
    if selector.is_local() {
        return cpu.gp(selector.code());
    }
    let found = cpu.descriptor(selector, Vector::Gp)?;
    let good = match found.desc.system() {
        Some(system::TSS32) => true,
        Some(system::TSS16) => !cpu.long_mode(),
        _ => false,
    };
    if !good {
        return cpu.gp(selector.code());
    }
    if !found.desc.present() {
        return cpu.selector_fault(Vector::Np, selector);
    }
    let base = cpu.system_base(&found, Vector::Gp)?;
    cpu.modify_sys_u8(found.at.wrapping_add(5), |byte| byte | TSS_BUSY)?;
    let attr = found.desc.attr() | u16::from(TSS_BUSY);
    cpu.tr = SegmentState {
        selector: selector.0,
        base,
        limit: found.desc.limit(),
        attr,
    };
    Ok(())
}

fn sldt(cpu: &mut Cpu, d: &DInsn) -> R {
    store_selector(cpu, d, cpu.ldtr.selector)
}

fn str(cpu: &mut Cpu, d: &DInsn) -> R {
    store_selector(cpu, d, cpu.tr.selector)
}

fn store_selector(cpu: &mut Cpu, d: &DInsn, selector: u16) -> R {
    if !cpu.protected() || cpu.v86() {
        return cpu.ud();
    }
    cpu.umip()?;
    cpu.store16(d, selector)
}

fn load_table(cpu: &mut Cpu, d: &DInsn) -> R<DescriptorTable> {
    cpu.privileged()?;
    let at = cpu.ea(d);
    let limit = cpu.read_seg::<u16>(d.seg.into(), at)?;
    let next = at.wrapping_add(2) << d.cut >> d.cut;
    let base = if d.size == 8 {
        let base = cpu.read_seg::<u64>(d.seg.into(), next)?;
        if !cpu.canonical_base(base) {
            return cpu.gp(0);
        }
        base
    } else {
        let base = cpu.read_seg::<u32>(d.seg.into(), next)?;
        u64::from(if d.size == 3 { base & 0xff_ffff } else { base })
    };
    Ok(DescriptorTable { base, limit })
}

fn lgdt(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.gdtr = load_table(cpu, d)?;
    Ok(())
}

fn lidt(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.idtr = load_table(cpu, d)?;
    Ok(())
}

/// The 16-bit form stores all 32 bits of the base as well.
fn store_table(cpu: &mut Cpu, d: &DInsn, table: DescriptorTable) -> R {
    cpu.umip()?;
    let mut image = [0; 10];
    image[..2].copy_from_slice(&table.limit.to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let image = &image[..if d.size == 8 { 10 } else { 6 }];
    let at = cpu.ea(d);
    let last = at.wrapping_add(image.len() as u64 - 1) << d.cut >> d.cut;
    let lin = cpu.lin_write(d.seg, at, 1)?;
    cpu.lin_write(d.seg, last, 1)?;
    cpu.write_block(d.seg, lin, image)
}

fn sgdt(cpu: &mut Cpu, d: &DInsn) -> R {
    store_table(cpu, d, cpu.gdtr)
}

fn sidt(cpu: &mut Cpu, d: &DInsn) -> R {
    store_table(cpu, d, cpu.idtr)
}
