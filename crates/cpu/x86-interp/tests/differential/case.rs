//! What a case is: an instruction, the state before it, and the outcome.

use iced_x86::Code;
use iced_x86::CpuidFeature;
use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::Formatter;
use iced_x86::Instruction;
use iced_x86::IntelFormatter;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::RflagsBits;

/// Where the instruction is, on the host and in the guest. No round number: addresses that go astray should not find it.
pub(crate) const CODE: u64 = 0x1357_9000 + 0x800;
/// Two pages of data; what follows is not mapped.
pub(crate) const DATA: u64 = 0x2000_0000;
pub(crate) const DATA_LEN: usize = 8192;
/// The parts of the data that a case fills: around the boundary of the pages, and at their end. The rest is zero.
pub(crate) const WINDOWS: [(usize, usize); 2] = [(0xf00, 512), (0x1f00, 256)];
pub(crate) const WINDOW_LEN: usize = 768;

/// No exception.
pub(crate) const NO_FAULT: u32 = u32::MAX;

/// The state of a processor in user mode.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Regs {
    pub(crate) gpr: [u64; 16],
    pub(crate) flags: u64,
    pub(crate) ymm: [[u64; 4]; 16],
    pub(crate) st: [[u8; 10]; 8],
    pub(crate) mxcsr: u32,
    pub(crate) fcw: u16,
    pub(crate) fsw: u16,
    pub(crate) ftw: u8,
    pub(crate) window: [u8; WINDOW_LEN],
}

impl Regs {
    pub(crate) const EMPTY: Self = Self {
        gpr: [0; 16],
        flags: 0x202,
        ymm: [[0; 4]; 16],
        st: [[0; 10]; 8],
        mxcsr: 0x1f80,
        fcw: 0x37f,
        fsw: 0,
        ftw: 0,
        window: [0; WINDOW_LEN],
    };
}

/// What an instruction did.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) regs: Regs,
    /// Checksum of all data pages.
    pub(crate) data: u64,
    /// Exception vector or [`NO_FAULT`].
    pub(crate) vector: u32,
    pub(crate) error: u32,
    pub(crate) cr2: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) bytes: [u8; 16],
    pub(crate) len: u32,
    pub(crate) before: Regs,
}

impl Case {
    pub(crate) fn instruction(&self) -> Instruction {
        Decoder::with_ip(64, &self.bytes[..self.len as usize], CODE, DecoderOptions::NONE).decode()
    }

    /// In assembler, with its bytes.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        IntelFormatter::new().format(&self.instruction(), &mut text);
        let bytes: String = self.bytes[..self.len as usize]
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        format!("{text}    ; {bytes}")
    }
}

/// Checksum of the data pages.
pub(crate) fn checksum(data: &[u8]) -> u64 {
    let (words, _) = data.as_chunks::<8>();
    words.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, word| {
        (hash ^ u64::from_le_bytes(*word))
            .wrapping_mul(0x100_0000_01b3)
            .rotate_left(23)
    })
}

/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;

/// RFLAGS bits that the instruction leaves undefined.
pub(crate) fn undefined_flags(ins: &Instruction) -> u64 {
    // A rotation by as many places as there are bits, the carry included, comes out the same; processors differ in
    // whether OF does.
    let rotates = matches!(ins.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    let by_many = rotates && ins.op1_kind() == OpKind::Immediate8 && ins.immediate8() & 31 > 1;
    rflags(ins.rflags_undefined() | if by_many { RflagsBits::OF } else { 0 })
}

/// The arithmetic flags among iced's `RflagsBits`, as RFLAGS has them.
pub(crate) fn rflags(flags: u32) -> u64 {
    let table = [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::OF, 11),
    ];
    table
        .iter()
        .filter(|(bit, _)| flags & bit != 0)
        .map(|(_, at)| 1u64 << at)
        .sum()
}

const GPR: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
];

/// What processors do in different ways when an instruction faults, and no system relies on.
#[derive(Default)]
struct Leeway {
    /// A masked store without a chosen byte may fault or not; so may one of x87 that has an exception to report as well.
    fault: bool,
    /// A faulting locked bit instruction may have set CF; one that compares strings, the flags of what it compared.
    flags: u64,
    /// A faulting MMX store may have set TOP, and with it which register is ST(0).
    x87: bool,
    /// A faulting store of more than eight bytes may have written some of them.
    memory: bool,
    /// A faulting gather may have got some elements.
    vectors: bool,
    /// A faulting store may have reported what its conversion came to.
    mxcsr: bool,
}

fn leeway(ins: &Instruction, host: &Outcome, guest: &Outcome) -> Leeway {
    use Mnemonic as M;
    const ERROR_SUMMARY: u16 = 0x80;
    if host.vector == NO_FAULT {
        return Leeway::default();
    }
    match ins.mnemonic() {
        M::Maskmovdqu | M::Vmaskmovdqu | M::Maskmovq => Leeway {
            fault: true,
            x87: true,
            ..Leeway::default()
        },
        M::Bts | M::Btr | M::Btc => Leeway {
            flags: 1,
            ..Leeway::default()
        },
        M::Fstp | M::Fbstp | M::Fnstenv | M::Fnsave => Leeway {
            fault: guest.regs.fsw & ERROR_SUMMARY != 0,
            memory: true,
            ..Leeway::default()
        },
        M::Fist | M::Fistp | M::Fisttp | M::Fst => Leeway {
            fault: guest.regs.fsw & ERROR_SUMMARY != 0,
            ..Leeway::default()
        },
        M::Scasb | M::Scasw | M::Scasd | M::Scasq | M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => Leeway {
            flags: ARITHMETIC,
            ..Leeway::default()
        },
        M::Vcvtps2ph => Leeway {
            mxcsr: true,
            ..Leeway::default()
        },
        _ if ins.is_vsib() => Leeway {
            vectors: true,
            ..Leeway::default()
        },
        M::Movd | M::Movq | M::Movntq => Leeway {
            x87: true,
            ..Leeway::default()
        },
        _ => Leeway::default(),
    }
}

/// Whether the processors may fault in different ways: not all mind operands of SHA that are not aligned, a conversion
/// that is stored nowhere may come to an exception before, AMD's have one more bit in MXCSR, and read four bytes for a MOVSXD
/// of two.
fn may_fault_otherwise(ins: &Instruction, host: &Outcome, guest: &Outcome) -> bool {
    let sha = ins.cpuid_features().contains(&CpuidFeature::SHA);
    let more = ins.mnemonic() == Mnemonic::Ldmxcsr || ins.mnemonic() == Mnemonic::Vldmxcsr;
    let misaligned_mask = more && (host.vector, guest.vector) == (NO_FAULT, 13) && host.regs.mxcsr & 1 << 17 != 0;
    misaligned_mask
        || ins.code() == Code::Movsxd_r16_rm16 && (host.vector, guest.vector) == (14, NO_FAULT)
        || sha && guest.vector == 13
        || ins.mnemonic() == Mnemonic::Vcvtps2ph && (host.vector, guest.vector) == (14, 19)
}

/// A string instruction with 32-bit addresses.
fn is_narrow_string(ins: &Instruction) -> bool {
    (0..ins.op_count()).any(|i| matches!(ins.op_kind(i), OpKind::MemorySegESI | OpKind::MemoryESEDI))
}

/// What differs between the host's and the interpreter's outcome, one line each.
pub(crate) fn differences(ins: &Instruction, host: &Outcome, guest: &Outcome, ignored_flags: u64) -> Vec<String> {
    if host == guest || may_fault_otherwise(ins, host, guest) {
        return Vec::new();
    }
    let leeway = leeway(ins, host, guest);
    if leeway.fault && guest.vector == NO_FAULT {
        return Vec::new();
    }
    let mut out = Vec::new();
    let mut differ = |name: String, a: u64, b: u64| {
        if a != b {
            out.push(format!("{name}: host {a:#x}, interpreter {b:#x}"));
        }
    };
    differ("exception".into(), host.vector.into(), guest.vector.into());
    if host.vector == guest.vector && host.vector == 14 {
        // Long operands are accessed in an order of the processor's choice, and the host's kernel may hide whether the
        // page was present.
        differ("page of cr2".into(), host.cr2 & !4095, guest.cr2 & !4095);
        differ("error code".into(), (host.error & !1).into(), (guest.error & !1).into());
    }
    let (a, b) = (&host.regs, &guest.regs);
    for (i, name) in GPR.into_iter().enumerate() {
        // Zero repetitions with 32-bit addresses: whether the upper halves are cleared differs between instructions.
        let cut = if is_narrow_string(ins) && matches!(i, 1 | 6 | 7) {
            32
        } else {
            0
        };
        differ(name.into(), a.gpr[i] << cut, b.gpr[i] << cut);
    }
    let mask = if host.vector == NO_FAULT {
        !ignored_flags
    } else {
        !0x1_0000 & !leeway.flags
    };
    differ("rflags".into(), a.flags & mask, b.flags & mask);
    for i in 0..if leeway.vectors { 0 } else { 16 } {
        for j in 0..4 {
            differ(format!("ymm{i}[{j}]"), a.ymm[i][j], b.ymm[i][j]);
        }
    }
    let reported = if leeway.mxcsr { 0x3f } else { 0 };
    differ(
        "mxcsr".into(),
        (a.mxcsr & !reported).into(),
        (b.mxcsr & !reported).into(),
    );
    differ("fcw".into(), a.fcw.into(), b.fcw.into());
    let top = if leeway.x87 { 0x3800 } else { 0 };
    differ("fsw".into(), (a.fsw & !top).into(), (b.fsw & !top).into());
    differ("ftw".into(), a.ftw.into(), b.ftw.into());
    for i in 0..if leeway.x87 { 0 } else { 8 } {
        let parts = |st: &[u8; 10]| {
            let wide: [u8; 16] = std::array::from_fn(|i| st.get(i).copied().unwrap_or(0));
            u128::from_le_bytes(wide)
        };
        let (x, y) = (parts(&a.st[i]), parts(&b.st[i]));
        differ(format!("st{i} mantissa"), x as u64, y as u64);
        differ(format!("st{i} sign and exponent"), (x >> 64) as u64, (y >> 64) as u64);
    }
    if leeway.memory {
        return out;
    }
    let mut at = 0;
    for (start, len) in WINDOWS {
        for i in (0..len).step_by(8) {
            let word = |w: &[u8]| u64::from_le_bytes(std::array::from_fn(|j| w[at + i + j]));
            differ(
                format!("[{:#x}]", DATA as usize + start + i),
                word(&a.window),
                word(&b.window),
            );
        }
        at += len;
    }
    differ("checksum of memory".into(), host.data, guest.data);
    out
}

/// The registers and memory that are not at their neutral values.
pub(crate) fn describe(r: &Regs) -> Vec<String> {
    let mut out = Vec::new();
    for (name, value) in GPR.iter().zip(r.gpr).filter(|(_, value)| *value != 0) {
        out.push(format!("{name} = {value:#x}"));
    }
    out.push(format!("rflags = {:#x}", r.flags));
    for (i, ymm) in r.ymm.iter().enumerate().filter(|(_, ymm)| **ymm != [0; 4]) {
        out.push(format!("ymm{i} = {ymm:#x?}").replace(['\n', ' '], ""));
    }
    out.push(format!(
        "mxcsr = {:#x} fcw = {:#x} fsw = {:#x} ftw = {:#x}",
        r.mxcsr, r.fcw, r.fsw, r.ftw
    ));
    for (i, st) in r.st.iter().enumerate().filter(|(_, st)| **st != [0; 10]) {
        let hex: String = st.iter().rev().map(|b| format!("{b:02x}")).collect();
        out.push(format!("st{i} = {hex}"));
    }
    let mut at = 0;
    for (start, len) in WINDOWS {
        for i in (0..len).step_by(8) {
            let word = u64::from_le_bytes(std::array::from_fn(|j| r.window[at + i + j]));
            if word != 0 {
                out.push(format!("[{:#x}] = {word:#x}", DATA as usize + start + i));
            }
        }
        at += len;
    }
    out
}
