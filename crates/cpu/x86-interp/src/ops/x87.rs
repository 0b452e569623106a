//! x87: every instruction runs on the host's own unit, which holds the guest's registers (see [`native`]). Ours are the
//! conditions, the memory operands, the instruction and operand pointers, and the formats of the saved environment
//! (`env.rs`).
//!
//! The pointers are kept by the rules of processors without FDP_EXCPTN_ONLY and with FCS and FDS (CPUID.07H): every
//! instruction but the control ones sets them. An unmasked exception that is pending is #MF at the next waiting
//! instruction, whatever CR0.NE says: the interrupt of NE = 0 (FERR#, IRQ 13) is not modelled.
//!
//! Spec: SDM vol. 1 §8; vol. 2 by mnemonic; vol. 3 §2.5 table 2-3 (EM, MP, TS).
//!
//! [`native`]: crate::native

mod env;

use iced_x86::Code;
use iced_x86::CpuidFeature;
use iced_x86::Encoder;
use iced_x86::InstructionInfoFactory;
use iced_x86::Mnemonic;
use iced_x86::OpAccess;
use iced_x86::OpKind;
use x86_isa::Exception;
use x86_isa::Vector;
use x86_isa::flags;

use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::cpu::RAX;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::Brk;
use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::R;
use crate::native::FAULT_MF;
use crate::native::Form;
use crate::native::plain_form;
use crate::ops::simd::form;

const NONE: u8 = 0;
const READ: u8 = 1;
const WRITE: u8 = 2;

/// FSW.ES: an unmasked exception is pending.
const FSW_ES: u16 = 0x80;
/// The exceptions that keep a result from being stored when they are unmasked: all but precision.
const FSW_BEFORE_STORE: u16 = 0x1f;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    if let Some(exec) = env::select(x, d) {
        return Some(exec);
    }
    let is_x87 = |f: &CpuidFeature| matches!(f, CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387);
    if x.code() != Code::Wait && !x.ins.cpuid_features().iter().any(is_x87) && !is_later_x87(x.mnemonic()) {
        return None;
    }
    d.imm = std::ptr::from_ref(plain_form(x.ins)?) as u64;
    match x.code() {
        Code::Wait => return Some(wait),
        Code::Fnstsw_AX => return Some(fnstsw_ax),
        Code::Fninit => return Some(fninit),
        _ => {}
    }
    let fop = fop(x);
    [d.dst, d.src] = fop.to_le_bytes();
    let memory = match memory_access(x) {
        None => NONE,
        Some(OpAccess::Write) => WRITE,
        Some(_) => READ,
    };
    Some(
        match (
            memory,
            is_control(x.mnemonic()),
            x.ins.rflags_read() | x.ins.rflags_modified() != 0,
        ) {
            (NONE, true, _) => run::<NONE, false> as Exec,
            (READ, true, _) => run::<READ, false>,
            (_, true, _) => run::<WRITE, false>,
            (NONE, false, false) => run::<NONE, true>,
            (NONE, false, true) => run_flags,
            (READ, false, _) => run::<READ, true>,
            (_, false, _) => run::<WRITE, true>,
        },
    )
}

/// x87 instructions that came with another feature: FCMOVcc and FCOMI with CMOV, FISTTP with SSE3.
fn is_later_x87(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fcmovb
            | M::Fcmove
            | M::Fcmovbe
            | M::Fcmovu
            | M::Fcmovnb
            | M::Fcmovne
            | M::Fcmovnbe
            | M::Fcmovnu
            | M::Fcomi
            | M::Fcomip
            | M::Fucomi
            | M::Fucomip
            | M::Fisttp
    )
}

/// Control instructions leave the instruction and operand pointers alone (SDM vol. 1 §8.1.8).
fn is_control(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fnclex | M::Fldcw | M::Fnstcw | M::Fnstsw | M::Fneni | M::Fndisi | M::Fnsetpm
    )
}

fn memory_access(x: &Dec<'_>) -> Option<OpAccess> {
    let i = (0..x.ins.op_count()).find(|&i| x.ins.op_kind(i) == OpKind::Memory)?;
    Some(InstructionInfoFactory::new().info(x.ins).op_access(i))
}

/// The opcode as FOP shows it: the low three bits of the first byte, and ModRM.
fn fop(x: &Dec<'_>) -> u16 {
    let mut encoder = Encoder::new(u32::from(x.bits));
    if encoder.encode(x.ins, x.ins.ip()).is_err() {
        return 0;
    }
    let bytes = encoder.take_buffer();
    let escape = bytes.windows(2).find(|pair| pair[0] & 0xf8 == 0xd8);
    escape.map_or(0, |pair| u16::from(pair[0] & 7) << 8 | u16::from(pair[1]))
}

impl Cpu {
    /// #NM of an x87 instruction; afterwards the host's unit holds the registers.
    #[inline(always)]
    pub(super) fn ask_x87(&mut self) -> R {
        if self.fpu_gate.x87_nm {
            return self.raise(Exception::new(Vector::Nm));
        }
        self.load_x87();
        Ok(())
    }

    /// Notes an instruction as the last one of the x87 unit.
    #[inline(always)]
    fn set_fip(&mut self, d: &DInsn) {
        self.fpu.fop = u16::from_le_bytes([d.dst, d.src]);
        self.fpu.fip = self.regs[crate::insn::RIP].wrapping_sub(d.len.into()) & self.lin_mask;
        self.fpu.fcs = self.segs[CS].selector;
    }
}

/// Runs a stub. `POINTERS`: the instruction is none of the control ones.
fn run<const MEMORY: u8, const POINTERS: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_x87()?;
    let f = form(d);
    let none = std::ptr::null_mut();
    let result = match MEMORY {
        NONE => (f.entry)(none, none, none, none, none),
        READ => match cpu.operand_in(d, f.size.into(), 1) {
            Ok(at) => (f.entry)(at, none, none, none, none),
            Err(fault) => return cpu.pending_x87_or(fault),
        },
        _ => match cpu.operand_out(d, f.size.into(), 1) {
            Ok(out) => {
                let result = (f.entry)(out.at, none, none, none, none);
                if result < FAULT_MF {
                    cpu.operand_done(d, f.size.into(), out)?;
                }
                result
            }
            // FNSTCW and FNSTSW neither wait nor compute.
            Err(fault) if !POINTERS => return Err(fault),
            Err(fault) => cpu.run_without_store(f, fault)?,
        },
    };
    if result >= FAULT_MF {
        return cpu.stub_fault(result);
    }
    if POINTERS {
        cpu.set_fip(d);
        if MEMORY != NONE {
            cpu.fpu.fdp = cpu.ea(d);
            cpu.fpu.fds = cpu.segs[usize::from(d.seg)].selector;
        }
    }
    Ok(())
}

impl Cpu {
    /// A fault of the memory operand of a waiting instruction; a pending x87 exception comes first.
    #[cold]
    pub(crate) fn pending_x87_or(&mut self, fault: Brk) -> R {
        self.sync_x87();
        if self.fpu.fsw & FSW_ES != 0 {
            return self.stub_fault(FAULT_MF);
        }
        Err(fault)
    }

    /// A store whose memory operand faults: an unmasked exception of the conversion leaves nothing to store, and so no
    /// fault. Any other conversion has not happened.
    #[cold]
    fn run_without_store(&mut self, f: &Form, fault: Brk) -> R<u64> {
        self.sync_x87();
        if self.fpu.fsw & FSW_ES != 0 {
            return Ok(FAULT_MF);
        }
        let before = self.fpu.clone();
        self.load_x87();
        let mut nowhere = [0u8; 16];
        let none = std::ptr::null_mut();
        let result = (f.entry)(nowhere.as_mut_ptr(), none, none, none, none);
        self.sync_x87();
        if self.fpu.fsw & !self.fpu.fcw & FSW_BEFORE_STORE != 0 {
            return Ok(result);
        }
        self.fpu = before;
        Err(fault)
    }
}

/// FCMOVcc, FCOMI and its kin: flags in and out.
fn run_flags(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_x87()?;
    let f = form(d);
    let none = std::ptr::null_mut();
    let bits = cpu.lazy.bits() | flags::FIXED;
    let result = (f.entry)(none, std::ptr::without_provenance_mut(bits as usize), none, none, none);
    if result >= FAULT_MF {
        return cpu.stub_fault(result);
    }
    if f.flags {
        cpu.lazy.set_bits(result);
    }
    cpu.set_fip(d);
    Ok(())
}

/// FWAIT. Without a pending exception there is nothing to wait for.
fn wait(cpu: &mut Cpu, d: &DInsn) -> R {
    if cpu.fpu_gate.wait_nm {
        return cpu.raise(Exception::new(Vector::Nm));
    }
    if !cpu.native.live && cpu.fpu.fsw & FSW_ES == 0 {
        return Ok(());
    }
    cpu.load_x87();
    let none = std::ptr::null_mut();
    match (form(d).entry)(none, none, none, none, none) {
        0 => Ok(()),
        fault => cpu.stub_fault(fault),
    }
}

fn fnstsw_ax(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_x87()?;
    let none = std::ptr::null_mut();
    let fsw = (form(d).entry)(none, none, none, none, none) as u16;
    cpu.set_gpr(RAX, fsw);
    Ok(())
}

fn fninit(cpu: &mut Cpu, d: &DInsn) -> R {
    run::<NONE, false>(cpu, d)?;
    cpu.clear_x87_pointers();
    Ok(())
}

impl Cpu {
    pub(super) fn clear_x87_pointers(&mut self) {
        let f = &mut *self.fpu;
        (f.fop, f.fip, f.fcs, f.fdp, f.fds) = (0, 0, 0, 0, 0);
    }
}
