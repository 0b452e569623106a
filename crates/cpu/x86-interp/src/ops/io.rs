//! IN, OUT, INS, OUTS and the I/O permission check.

use device_model::Width;
use iced_x86::Mnemonic;
use x86_isa::attr;

use crate::cpu::Cpu;
use crate::cpu::ES;
use crate::cpu::RAX;
use crate::cpu::RDI;
use crate::cpu::RDX;
use crate::cpu::RSI;
use crate::decode::Dec;
use crate::decode::Op;
use crate::decode::Select;
use crate::decode::by_size;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;
use crate::ops::string::prepare;

/// In `aux`: the port is in DX.
const PORT_DX: u8 = 1;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    Some(match x.mnemonic() {
        Mnemonic::In => {
            port(x, d, 1);
            by_size!(x.size(0), input)
        }
        Mnemonic::Out => {
            port(x, d, 0);
            by_size!(x.size(1), output)
        }
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => {
            prepare(x, d);
            d.aux = PORT_DX;
            by_size!(string_size(x.mnemonic()), ins)
        }
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
            prepare(x, d);
            d.aux = PORT_DX;
            by_size!(string_size(x.mnemonic()), outs)
        }
        _ => return None,
    })
}

fn string_size(mnemonic: Mnemonic) -> usize {
    match mnemonic {
        Mnemonic::Insb | Mnemonic::Outsb => 1,
        Mnemonic::Insw | Mnemonic::Outsw => 2,
        _ => 4,
    }
}

fn port(x: &Dec<'_>, d: &mut DInsn, operand: u32) {
    if x.op(operand) == Op::Imm {
        d.imm = x.imm(operand) & 0xff;
    } else {
        d.aux = PORT_DX;
    }
}

fn width<T: Int>() -> Width {
    match T::BYTES {
        1 => Width::Byte,
        2 => Width::Word,
        _ => Width::Dword,
    }
}

impl Cpu {
    /// SDM vol. 1 §19.5: IOPL, then the I/O permission bitmap of the TSS.
    fn check_port<T: Int>(&mut self, d: &DInsn) -> R<u16> {
        let port = if d.aux == PORT_DX {
            self.gpr::<u16>(RDX)
        } else {
            d.imm as u16
        };
        if self.protected() && (self.cpl > self.iopl() || self.v86()) && !self.port_in_bitmap(port, T::BYTES)? {
            return self.gp(0);
        }
        Ok(port)
    }

    fn port_in_bitmap(&mut self, port: u16, bytes: u64) -> R<bool> {
        let tss = self.tr;
        // Only a 32- or 64-bit TSS has a bitmap.
        if tss.attr & attr::P == 0 || tss.attr & 0xd != 0x9 || tss.limit < 0x67 {
            return Ok(false);
        }
        let map = u64::from(self.read_sys::<u16>(tss.base + 0x66)?) + u64::from(port / 8);
        // The processor reads two bytes, so that an access may span them.
        if map + 1 > tss.limit.into() {
            return Ok(false);
        }
        let bits = self.read_sys::<u16>(tss.base + map)?;
        let mask = ((1u32 << bytes) - 1) << (port % 8);
        Ok(u32::from(bits) & mask == 0)
    }

    fn port_read<T: Int>(&mut self, port: u16) -> T {
        let value = self.board().pio_read(self.id, port, width::<T>());
        self.end_block();
        T::from_u64(value.into())
    }

    fn port_write<T: Int>(&mut self, port: u16, value: T) {
        self.board().pio_write(self.id, port, width::<T>(), value.u64() as u32);
        // The device may have raised an interrupt.
        self.end_block();
    }
}

fn input<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let port = cpu.check_port::<T>(d)?;
    let value = cpu.port_read::<T>(port);
    cpu.set_gpr(RAX, value);
    Ok(())
}

fn output<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let port = cpu.check_port::<T>(d)?;
    let value = cpu.gpr::<T>(RAX);
    cpu.port_write(port, value);
    Ok(())
}

fn ins<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let port = cpu.check_port::<T>(d)?;
    let step = cpu.string_step(T::BYTES);
    cpu.repeat(d, |cpu| {
        let di = cpu.string_reg(d, RDI);
        // A value read from the device must not be lost to a fault.
        let lin = cpu.lin_write(ES as u8, di, T::BYTES)?;
        cpu.probe_write(ES as u8, lin, T::BYTES)?;
        let value = cpu.port_read::<T>(port);
        cpu.write_lin(ES as u8, lin, value)?;
        cpu.set_string_reg(d, RDI, di.wrapping_add(step));
        Ok(true)
    })
}

fn outs<T: Int>(cpu: &mut Cpu, d: &DInsn) -> R {
    let port = cpu.check_port::<T>(d)?;
    let step = cpu.string_step(T::BYTES);
    cpu.repeat(d, |cpu| {
        let si = cpu.string_reg(d, RSI);
        let value = cpu.read_seg::<T>(d.seg as usize, si)?;
        cpu.port_write(port, value);
        cpu.set_string_reg(d, RSI, si.wrapping_add(step));
        Ok(true)
    })
}
