//! FNSTENV, FLDENV, FNSAVE, FRSTOR: the x87 environment in memory.
//!
//! The host's unit writes and reads its own 32-bit protected-mode format; between that and the guest's format, this
//! changes the layout and brings in the guest's instruction and operand pointers.
//!
//! ```text
//!  32-bit protected       16-bit protected   32-bit real               16-bit real
//!  0  FCW                 0  FCW             0  FCW                    0  FCW
//!  4  FSW                 2  FSW             4  FSW                    2  FSW
//!  8  FTW                 4  FTW             8  FTW                    4  FTW
//!  12 FIP                 6  FIP             12 FIP 15-0               6  FIP 15-0
//!  16 FCS, 18 FOP         8  FCS             16 FIP 31-16 << 12, FOP   8  FIP 19-16 << 12, FOP
//!  20 FDP                 10 FDP             20 FDP 15-0               10 FDP 15-0
//!  24 FDS                 12 FDS             24 FDP 31-16 << 12        12 FDP 19-16 << 12
//! ```
//!
//! Reserved upper halves are stored as ones. Real formats hold linear addresses.
//!
//! Spec: SDM vol. 1 §8.1.10, figures 8-9 to 8-12.

use iced_x86::Code;
use iced_x86::Instruction;
use iced_x86::MemoryOperand;
use iced_x86::Register;

use crate::cpu::Cpu;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::R;
use crate::native::FAULT_MF;
use crate::native::plain_form;
use crate::ops::simd::form;

/// The environment in the host's format.
const HOST_ENV: usize = 28;
/// The same with the eight registers.
const HOST_SAVE: usize = 108;
const REGISTERS: usize = 80;

/// Selects the environment instructions; `size` is that of the guest's environment, without registers.
pub(super) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let (size, host, exec): (u8, Code, Exec) = match x.code() {
        Code::Fnstenv_m14byte => (14, Code::Fnstenv_m28byte, store::<false>),
        Code::Fnstenv_m28byte => (28, Code::Fnstenv_m28byte, store::<false>),
        Code::Fnsave_m94byte => (14, Code::Fnsave_m108byte, store::<true>),
        Code::Fnsave_m108byte => (28, Code::Fnsave_m108byte, store::<true>),
        Code::Fldenv_m14byte => (14, Code::Fldenv_m28byte, load::<false>),
        Code::Fldenv_m28byte => (28, Code::Fldenv_m28byte, load::<false>),
        Code::Frstor_m94byte => (14, Code::Frstor_m108byte, load::<true>),
        Code::Frstor_m108byte => (28, Code::Frstor_m108byte, load::<true>),
        _ => return None,
    };
    let host = Instruction::with1(host, MemoryOperand::with_base(Register::RDI)).ok()?;
    d.imm = std::ptr::from_ref(plain_form(&host)?) as u64;
    d.size = size;
    Some(exec)
}

/// The instruction and operand pointers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pointers {
    fop: u16,
    fip: u32,
    fcs: u16,
    fdp: u32,
    fds: u16,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Makes the guest's environment: control, status and tag word from the host's, and the pointers.
fn encode(host: &[u8], p: Pointers, wide: bool, real: bool) -> [u8; HOST_ENV] {
    let mut out = [0; HOST_ENV];
    let fip = if real {
        p.fip.wrapping_add(u32::from(p.fcs) << 4)
    } else {
        p.fip
    };
    let fdp = if real {
        p.fdp.wrapping_add(u32::from(p.fds) << 4)
    } else {
        p.fdp
    };
    let fop = p.fop & 0x7ff;
    let words = [u16_at(host, 0), u16_at(host, 4), u16_at(host, 8)];
    if wide {
        let high = |fp: u32| fp >> 16 << 12;
        let ones = |low: u16| 0xffff_0000 | u32::from(low);
        let [fcw, fsw, ftw] = words.map(ones);
        let tail = if real {
            [
                ones(fip as u16),
                high(fip) | u32::from(fop),
                ones(fdp as u16),
                high(fdp),
            ]
        } else {
            [fip, u32::from(p.fcs) | u32::from(fop) << 16, fdp, ones(p.fds)]
        };
        let all = [fcw, fsw, ftw, tail[0], tail[1], tail[2], tail[3]];
        out.chunks_exact_mut(4)
            .zip(all)
            .for_each(|(place, word)| place.copy_from_slice(&word.to_le_bytes()));
    } else {
        let high = |fp: u32| (fp >> 16 << 12) as u16;
        let [fcw, fsw, ftw] = words;
        let tail = if real {
            [fip as u16, high(fip) | fop, fdp as u16, high(fdp)]
        } else {
            [fip as u16, p.fcs, fdp as u16, p.fds]
        };
        let all = [fcw, fsw, ftw, tail[0], tail[1], tail[2], tail[3]];
        out.chunks_exact_mut(2)
            .zip(all)
            .for_each(|(place, word)| place.copy_from_slice(&word.to_le_bytes()));
    }
    out
}

/// Takes the guest's environment apart: control, status and tag word for the host, and the pointers.
fn decode(guest: &[u8], wide: bool, real: bool) -> ([u8; HOST_ENV], Pointers) {
    let step = if wide { 4 } else { 2 };
    let word = |i: usize| u16_at(guest, i * step);
    let long = |i: usize| {
        u32::from(word(i))
            | if wide {
                u32::from(u16_at(guest, i * step + 2)) << 16
            } else {
                0
            }
    };
    let mut host = [0; HOST_ENV];
    for i in 0..3 {
        host[i * 4..i * 4 + 2].copy_from_slice(&word(i).to_le_bytes());
    }
    let p = if real {
        let linear = |low: usize| u32::from(word(low)) | long(low + 1) >> 12 << 16;
        Pointers {
            fop: word(4) & 0x7ff,
            fip: linear(3),
            fcs: 0,
            fdp: linear(5),
            fds: 0,
        }
    } else {
        let fop = if wide { u16_at(guest, 18) & 0x7ff } else { 0 };
        Pointers {
            fop,
            fip: long(3),
            fcs: word(4),
            fdp: long(5),
            fds: word(6),
        }
    };
    (host, p)
}

impl Cpu {
    fn real_format(&self) -> bool {
        !self.protected() || self.v86()
    }

    fn x87_pointers(&self) -> Pointers {
        let f = &*self.fpu;
        Pointers {
            fop: f.fop,
            fip: f.fip as u32,
            fcs: f.fcs,
            fdp: f.fdp as u32,
            fds: f.fds,
        }
    }
}

/// FNSTENV, and FNSAVE with the registers. FNSTENV masks all exceptions afterwards, FNSAVE initialises the unit.
fn store<const REGS: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_x87()?;
    let env = usize::from(d.size);
    let size = (env + if REGS { REGISTERS } else { 0 }) as u64;
    let ea = cpu.ea(d);
    let lin = cpu.lin_write(d.seg, ea, size)?;
    cpu.probe_write(d.seg, lin, size)?;
    let none = std::ptr::null_mut();
    let mut host = [0u8; HOST_SAVE];
    (form(d).entry)(host.as_mut_ptr(), none, none, none, none);
    let mut guest = [0u8; HOST_SAVE];
    guest[..HOST_ENV].copy_from_slice(&encode(&host, cpu.x87_pointers(), env == HOST_ENV, cpu.real_format()));
    guest[env..env + REGISTERS].copy_from_slice(&host[HOST_ENV..]);
    if REGS {
        cpu.clear_x87_pointers();
    }
    cpu.write_block(d.seg, lin, &guest[..size as usize])
}

/// FLDENV, and FRSTOR with the registers.
fn load<const REGS: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_x87()?;
    let env = usize::from(d.size);
    let size = env + if REGS { REGISTERS } else { 0 };
    let ea = cpu.ea(d);
    let mut guest = [0u8; HOST_SAVE];
    let lin = cpu.lin_read(d.seg, ea, size as u64);
    if let Err(fault) = lin.and_then(|lin| cpu.read_block(d.seg, lin, &mut guest[..size])) {
        return cpu.pending_x87_or(fault);
    }
    let (words, pointers) = decode(&guest, env == HOST_ENV, cpu.real_format());
    let mut host = [0u8; HOST_SAVE];
    host[..HOST_ENV].copy_from_slice(&words);
    host[HOST_ENV..].copy_from_slice(&guest[env..env + REGISTERS]);
    let none = std::ptr::null_mut();
    let result = (form(d).entry)(host.as_mut_ptr(), none, none, none, none);
    if result >= FAULT_MF {
        return cpu.stub_fault(result);
    }
    let f = &mut *cpu.fpu;
    (f.fop, f.fcs, f.fds) = (pointers.fop, pointers.fcs, pointers.fds);
    (f.fip, f.fdp) = (pointers.fip.into(), pointers.fdp.into());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTERS: Pointers = Pointers {
        fop: 0x5a5,
        fip: 0x1234,
        fcs: 0x2000,
        fdp: 0x5678,
        fds: 0x3000,
    };

    fn host() -> [u8; HOST_ENV] {
        let mut host = [0; HOST_ENV];
        (host[0], host[1], host[4], host[8]) = (0x7f, 0x03, 0x41, 0xfc);
        host
    }

    #[test]
    fn protected_formats_come_back_as_they_were_stored() {
        for wide in [true, false] {
            let guest = encode(&host(), POINTERS, wide, false);
            let (words, pointers) = decode(&guest, wide, false);
            assert_eq!(words, host());
            // The 16-bit format has no place for the opcode.
            let fop = if wide { POINTERS.fop } else { 0 };
            assert_eq!(pointers, Pointers { fop, ..POINTERS });
        }
    }

    #[test]
    fn real_formats_hold_linear_addresses() {
        for wide in [true, false] {
            let guest = encode(&host(), POINTERS, wide, true);
            let (words, pointers) = decode(&guest, wide, true);
            assert_eq!(words, host());
            assert_eq!(
                pointers,
                Pointers {
                    fop: 0x5a5,
                    fip: 0x2_1234,
                    fcs: 0,
                    fdp: 0x3_5678,
                    fds: 0
                }
            );
        }
    }
}
