//! Random cases: every instruction form that user mode can execute, from iced-x86's tables, with random operands in
//! states that make something happen.

use iced_x86::Code;
use iced_x86::CpuidFeature;
use iced_x86::Encoder;
use iced_x86::FlowControl;
use iced_x86::Instruction;
use iced_x86::Mnemonic;
use iced_x86::OpCodeOperandKind as K;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::case::CODE;
use crate::case::Case;
use crate::case::DATA;
use crate::case::Regs;

/// SplitMix64.
pub(crate) struct Rng(pub(crate) u64);

/// A number from the environment.
pub(crate) fn setting(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// The seed from the environment, or else the time.
pub(crate) fn seed() -> u64 {
    setting("OXBOW_DIFF_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |time| time.as_nanos() as u64)
    })
}

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True `percent` times of a hundred.
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// The instruction forms to test: those that the host has and that do nothing but compute.
pub(crate) fn codes() -> Vec<Code> {
    Code::values().filter(|&code| is_tested(code)).collect()
}

fn is_tested(code: Code) -> bool {
    use Mnemonic as M;
    let op = code.op_code();
    let features = code.cpuid_features();
    let plain = op.is_instruction()
        && op.mode64()
        && op.compatibility_or_long()
        && !op.fwait()
        && !op.is_privileged()
        && !op.is_input_output()
        && code.flow_control() == FlowControl::Next
        && features.iter().all(|&f| host_has(f))
        && op.op_kinds().iter().all(|&kind| operand_is_known(kind));
    let other = matches!(
        code.mnemonic(),
        // Depends on more than user state, or changes it.
        M::Popf
            | M::Popfq
            | M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Cpuid
            | M::Sldt
            | M::Str
            | M::Sgdt
            | M::Sidt
            | M::Smsw
            | M::Lar
            | M::Lsl
            | M::Verr
            | M::Verw
            | M::Lfs
            | M::Lgs
            | M::Lss
            | M::Cli
            | M::Sti
            | M::Clflush
            | M::Ud0
            | M::Ud1
            | M::Ud2
            | M::Int
            | M::Int1
            | M::Int3
            | M::Pushf
            | M::Pushfq
            | M::Pause
            | M::Wbinvd
            | M::Invd
            | M::Hlt
            | M::Swapgs
            | M::Rdtsc
            | M::Rdpmc
            | M::Sysexit
            | M::Montmul
    );
    // AMD's processors have nothing but prefetches there.
    let reserved = matches!(
        code,
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
    );
    plain && !other && !reserved
}

/// Whether this moves so many bits from a register to another of 16 bits that, by more than 16, the result is undefined.
pub(crate) fn is_narrow_double_shift(code: Code) -> bool {
    matches!(
        code,
        Code::Shld_rm16_r16_imm8 | Code::Shld_rm16_r16_CL | Code::Shrd_rm16_r16_imm8 | Code::Shrd_rm16_r16_CL
    )
}

/// A shorthand for what the tables spread over two properties.
trait LongMode {
    fn compatibility_or_long(&self) -> bool;
}

impl LongMode for iced_x86::OpCodeInfo {
    fn compatibility_or_long(&self) -> bool {
        self.long_mode() && self.protected_mode() | self.long_mode() && self.cpl3()
    }
}

fn host_has(feature: CpuidFeature) -> bool {
    use CpuidFeature as C;
    match feature {
        C::INTEL8086
        | C::INTEL186
        | C::INTEL286
        | C::INTEL386
        | C::INTEL486
        | C::X64
        | C::CMOV
        | C::CX8
        | C::FPU
        | C::FPU287
        | C::FPU387
        | C::MMX
        | C::SSE
        | C::SSE2
        | C::MULTIBYTENOP => true,
        C::CMPXCHG16B => std::is_x86_feature_detected!("cmpxchg16b"),
        C::SSE3 => std::is_x86_feature_detected!("sse3"),
        C::SSSE3 => std::is_x86_feature_detected!("ssse3"),
        C::SSE4_1 => std::is_x86_feature_detected!("sse4.1"),
        C::SSE4_2 => std::is_x86_feature_detected!("sse4.2"),
        C::POPCNT => std::is_x86_feature_detected!("popcnt"),
        C::LZCNT => std::is_x86_feature_detected!("lzcnt"),
        C::MOVBE => std::is_x86_feature_detected!("movbe"),
        C::BMI1 => std::is_x86_feature_detected!("bmi1"),
        C::BMI2 => std::is_x86_feature_detected!("bmi2"),
        C::ADX => std::is_x86_feature_detected!("adx"),
        C::AES => std::is_x86_feature_detected!("aes"),
        C::PCLMULQDQ => std::is_x86_feature_detected!("pclmulqdq"),
        C::SHA => std::is_x86_feature_detected!("sha"),
        C::AVX => std::is_x86_feature_detected!("avx"),
        C::AVX2 => std::is_x86_feature_detected!("avx2"),
        C::FMA => std::is_x86_feature_detected!("fma"),
        C::F16C => std::is_x86_feature_detected!("f16c"),
        _ => false,
    }
}

fn operand_is_known(kind: K) -> bool {
    use K::*;
    matches!(
        kind,
        mem_offs
            | mem
            | mem_vsib32x
            | mem_vsib64x
            | mem_vsib32y
            | mem_vsib64y
            | r8_or_mem
            | r16_or_mem
            | r32_or_mem
            | r64_or_mem
            | mm_or_mem
            | xmm_or_mem
            | ymm_or_mem
            | r8_reg
            | r8_opcode
            | r16_reg
            | r16_reg_mem
            | r16_rm
            | r16_opcode
            | r32_reg
            | r32_reg_mem
            | r32_rm
            | r32_opcode
            | r32_vvvv
            | r64_reg
            | r64_reg_mem
            | r64_rm
            | r64_opcode
            | r64_vvvv
            | mm_reg
            | mm_rm
            | xmm_reg
            | xmm_rm
            | xmm_vvvv
            | xmm_is4
            | ymm_reg
            | ymm_rm
            | ymm_vvvv
            | ymm_is4
            | al
            | cl
            | ax
            | eax
            | rax
            | st0
            | sti_opcode
            | imm8
            | imm8_const_1
            | imm8sex16
            | imm8sex32
            | imm8sex64
            | imm16
            | imm32
            | imm32sex64
            | imm64
            | seg_rSI
            | es_rDI
            | seg_rDI
            | seg_rBX_al
    )
}

const GPR8: [Register; 20] = {
    use Register::*;
    [
        AL, CL, DL, BL, SPL, BPL, SIL, DIL, R8L, R9L, R10L, R11L, R12L, R13L, R14L, R15L, AH, CH, DH, BH,
    ]
};

/// A case of this form, or `None` when the operands that came up cannot be encoded together.
pub(crate) fn case(code: Code, rng: &mut Rng) -> Option<Case> {
    let mut before = regs(rng);
    let mut ins = Instruction::default();
    ins.set_code(code);
    for i in 0..code.op_code().op_count() {
        operand(&mut ins, i, code.op_code().op_kind(i), rng, &mut before);
    }
    prefixes(&mut ins, rng);
    settle(&ins, rng, &mut before);
    if is_narrow_double_shift(code) {
        before.gpr[1] &= !16;
        if ins.op2_kind() == OpKind::Immediate8 {
            ins.set_immediate8(ins.immediate8() & !16);
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&ins, CODE).ok()?;
    let code_bytes = encoder.take_buffer();
    let mut bytes = [0x90; 16];
    bytes[..code_bytes.len()].copy_from_slice(&code_bytes);
    let case = Case {
        bytes,
        len: code_bytes.len() as u32,
        before,
    };
    let again = case.instruction();
    (!again.is_invalid() && again.len() == code_bytes.len() && again.code() == code).then_some(case)
}

fn operand(ins: &mut Instruction, i: u32, kind: K, rng: &mut Rng, before: &mut Regs) {
    use K::*;
    let number = rng.below(16) as u32;
    let mut register = |r: Register| ins.set_op_register(i, r);
    match kind {
        r8_reg | r8_opcode => register(rng.pick(&GPR8)),
        r16_reg | r16_reg_mem | r16_rm | r16_opcode => register(Register::AX + number),
        r32_reg | r32_reg_mem | r32_rm | r32_opcode | r32_vvvv => register(Register::EAX + number),
        r64_reg | r64_reg_mem | r64_rm | r64_opcode | r64_vvvv => register(Register::RAX + number),
        mm_reg | mm_rm => register(Register::MM0 + number % 8),
        xmm_reg | xmm_rm | xmm_vvvv | xmm_is4 => register(Register::XMM0 + number),
        ymm_reg | ymm_rm | ymm_vvvv | ymm_is4 => register(Register::YMM0 + number),
        al => register(Register::AL),
        cl => register(Register::CL),
        ax => register(Register::AX),
        eax => register(Register::EAX),
        rax => register(Register::RAX),
        st0 => register(Register::ST0),
        sti_opcode => register(Register::ST0 + number % 8),
        r8_or_mem if rng.chance(50) => register(rng.pick(&GPR8)),
        r16_or_mem if rng.chance(50) => register(Register::AX + number),
        r32_or_mem if rng.chance(50) => register(Register::EAX + number),
        r64_or_mem if rng.chance(50) => register(Register::RAX + number),
        mm_or_mem if rng.chance(50) => register(Register::MM0 + number % 8),
        xmm_or_mem if rng.chance(50) => register(Register::XMM0 + number),
        ymm_or_mem if rng.chance(50) => register(Register::YMM0 + number),
        imm8 | imm8_const_1 | imm8sex16 | imm8sex32 | imm8sex64 | imm16 | imm32 | imm32sex64 | imm64 => {
            immediate(ins, i, kind, rng);
        }
        seg_rSI => ins.set_op_kind(
            i,
            if rng.chance(90) {
                OpKind::MemorySegRSI
            } else {
                OpKind::MemorySegESI
            },
        ),
        es_rDI => ins.set_op_kind(
            i,
            if rng.chance(90) {
                OpKind::MemoryESRDI
            } else {
                OpKind::MemoryESEDI
            },
        ),
        seg_rDI => ins.set_op_kind(i, OpKind::MemorySegRDI),
        seg_rBX_al => {
            ins.set_op_kind(i, OpKind::Memory);
            ins.set_memory_base(Register::RBX);
            ins.set_memory_index(Register::AL);
            before.gpr[3] = address(rng);
        }
        mem_offs => {
            ins.set_op_kind(i, OpKind::Memory);
            ins.set_memory_displ_size(8);
            ins.set_memory_displacement64(address(rng));
        }
        mem_vsib32x => memory(ins, i, Register::XMM0 + number, rng, before),
        mem_vsib64x => memory(ins, i, Register::XMM0 + number, rng, before),
        mem_vsib32y | mem_vsib64y => memory(ins, i, Register::YMM0 + number, rng, before),
        _ => memory(ins, i, Register::None, rng, before),
    }
}

fn immediate(ins: &mut Instruction, i: u32, kind: K, rng: &mut Rng) {
    use K::*;
    let value = if rng.chance(40) { rng.below(40) } else { rng.next() };
    let second = (0..i).any(|j| ins.op_kind(j) == OpKind::Immediate8 || ins.op_kind(j) == OpKind::Immediate16);
    let op_kind = match kind {
        imm8 if second => OpKind::Immediate8_2nd,
        imm8 | imm8_const_1 => OpKind::Immediate8,
        imm8sex16 => OpKind::Immediate8to16,
        imm8sex32 => OpKind::Immediate8to32,
        imm8sex64 => OpKind::Immediate8to64,
        imm16 => OpKind::Immediate16,
        imm32 => OpKind::Immediate32,
        imm32sex64 => OpKind::Immediate32to64,
        _ => OpKind::Immediate64,
    };
    ins.set_op_kind(i, op_kind);
    match op_kind {
        OpKind::Immediate8_2nd => ins.set_immediate8_2nd((value % 40) as u8),
        OpKind::Immediate8 => ins.set_immediate8(if kind == imm8_const_1 { 1 } else { value as u8 }),
        OpKind::Immediate16 => ins.set_immediate16(value as u16),
        OpKind::Immediate32 => ins.set_immediate32(value as u32),
        OpKind::Immediate32to64 => ins.set_immediate32to64((value as i32).into()),
        OpKind::Immediate64 => ins.set_immediate64(value),
        OpKind::Immediate8to16 => ins.set_immediate8to16((value as i8).into()),
        OpKind::Immediate8to32 => ins.set_immediate8to32((value as i8).into()),
        _ => ins.set_immediate8to64((value as i8).into()),
    }
}

/// An address for a memory operand: most inside the filled data, some across the boundary of the pages, at the end of
/// what is mapped, or nowhere.
fn address(rng: &mut Rng) -> u64 {
    match rng.below(100) {
        0..40 => DATA + 0xf40 + rng.below(0x14) * 16,
        40..70 => DATA + 0xf40 + rng.below(0x150),
        70..90 => DATA + 0x1000 - rng.below(40),
        90..98 => DATA + 0x2000 - rng.below(70),
        98 => 0x1234_5678_9abc_def0,
        _ => rng.below(0x1000),
    }
}

/// A memory operand with registers that lead to [`address`].
fn memory(ins: &mut Instruction, i: u32, vector_index: Register, rng: &mut Rng, before: &mut Regs) {
    ins.set_op_kind(i, OpKind::Memory);
    let target = address(rng);
    if vector_index == Register::None && rng.chance(8) && target >> 31 == 0 {
        ins.set_memory_base(Register::RIP);
        ins.set_memory_displ_size(8);
        ins.set_memory_displacement64(target);
        return;
    }
    let narrow = rng.chance(5) && target >> 32 == 0;
    let first = if narrow { Register::EAX } else { Register::RAX };
    // RSP stays what it is: an instruction may use the stack as well.
    let base = rng.pick(&[0u32, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    let displacement = match rng.below(3) {
        0 => 0,
        1 => rng.below(256) as i64 - 128,
        _ => rng.below(0x1_0000_0000) as i64 - 0x8000_0000,
    };
    ins.set_memory_base(first + base);
    ins.set_memory_displ_size(if displacement == 0 { 0 } else { 1 });
    ins.set_memory_displacement64(displacement as u64);
    let scale = 1 << rng.below(4);
    let mut offset = displacement as u64;
    if vector_index != Register::None {
        ins.set_memory_index(vector_index);
        ins.set_memory_index_scale(scale);
        // Small indices of either width: the upper halves of quadwords are zero, or all ones for negative ones.
        for word in &mut before.ymm[vector_index.number()] {
            let small = rng.below(60) as i64 - 30;
            *word = if rng.chance(50) {
                small as u64
            } else {
                rng.below(30) | rng.below(30) << 32
            };
        }
    } else if rng.chance(40) {
        let index = rng.pick(&[0u32, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        if index != base {
            ins.set_memory_index(first + index);
            ins.set_memory_index_scale(scale);
            if rng.chance(70) {
                before.gpr[index as usize] = rng.below(512);
            }
            offset = offset.wrapping_add(before.gpr[index as usize].wrapping_mul(scale.into()));
        }
    }
    before.gpr[base as usize] = target.wrapping_sub(offset);
    if narrow {
        before.gpr[base as usize] = before.gpr[base as usize] & 0xffff_ffff | rng.next() << 32;
    }
}

fn prefixes(ins: &mut Instruction, rng: &mut Rng) {
    let op = ins.op_code();
    if op.can_use_lock_prefix() && ins.op0_kind() == OpKind::Memory && rng.chance(40) {
        ins.set_has_lock_prefix(true);
    }
    if ins.is_string_instruction() && rng.chance(60) {
        if op.can_use_repne_prefix() && rng.chance(50) {
            ins.set_has_repne_prefix(true);
        } else if op.can_use_rep_prefix() {
            ins.set_has_rep_prefix(true);
        }
    }
    let memory = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory);
    if memory && rng.chance(4) {
        ins.set_segment_prefix(rng.pick(&[Register::CS, Register::DS, Register::ES, Register::SS]));
    }
}

/// Bends the state where wholly random values would only ever fault.
fn settle(ins: &Instruction, rng: &mut Rng, before: &mut Regs) {
    use Mnemonic as M;
    let string = (0..ins.op_count()).any(|i| {
        matches!(
            ins.op_kind(i),
            OpKind::MemorySegRSI
                | OpKind::MemoryESRDI
                | OpKind::MemorySegESI
                | OpKind::MemoryESEDI
                | OpKind::MemorySegRDI
        )
    });
    if string {
        (before.gpr[6], before.gpr[7]) = (address(rng), address(rng));
        before.gpr[1] = rng.below(50);
        if rng.chance(30) {
            // Equal contents, so that comparisons run on.
            let byte = rng.next() as u8;
            before.window[..512].fill(byte);
            before.gpr[0] = u64::from_le_bytes([byte; 8]);
        }
    }
    let bit_string = matches!(ins.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc) && ins.op0_kind() == OpKind::Memory;
    if bit_string && ins.op1_kind() == OpKind::Register && ins.op1_register() != ins.memory_base() {
        let n = ins.op1_register().number();
        if ins.memory_base().number() != n && ins.memory_index().number() != n {
            before.gpr[n] = (rng.below(4000) as i64 - 2000) as u64;
        }
    }
    if matches!(ins.mnemonic(), M::Div | M::Idiv) && rng.chance(70) {
        // A quotient that fits more often than not.
        before.gpr[2] = if rng.chance(50) { 0 } else { rng.below(4) };
    }
    if matches!(ins.mnemonic(), M::Cmpxchg8b | M::Cmpxchg16b | M::Cmpxchg) && rng.chance(50) {
        before.window.fill(0x5a);
        (before.gpr[0], before.gpr[2]) = (0x5a5a_5a5a_5a5a_5a5a, 0x5a5a_5a5a_5a5a_5a5a);
    }
    if matches!(ins.mnemonic(), M::Enter | M::Leave) {
        before.gpr[5] = DATA + 0x1000 + rng.below(64);
    }
}

fn regs(rng: &mut Rng) -> Regs {
    let mut r = Regs::EMPTY;
    r.gpr = std::array::from_fn(|_| integer(rng));
    r.gpr[4] = DATA + 0x1000 + rng.below(16) * 8;
    r.flags = 0x202 | rng.next() & 0x8d5 | if rng.chance(10) { 0x400 } else { 0 };
    for register in &mut r.ymm {
        *register = vector(rng);
    }
    for chunk in r.window.chunks_exact_mut(32) {
        let words = if rng.chance(20) {
            std::array::from_fn(|_| integer(rng))
        } else {
            vector(rng)
        };
        chunk
            .iter_mut()
            .zip(words.iter().flat_map(|w| w.to_le_bytes()))
            .for_each(|(place, byte)| *place = byte);
    }
    r.mxcsr = 0x1f80 | rng.next() as u32 & 0xe07f;
    if rng.chance(20) {
        r.mxcsr &= !(rng.next() as u32 & 0x1f80);
    }
    x87(&mut r, rng);
    r
}

fn integer(rng: &mut Rng) -> u64 {
    match rng.below(8) {
        0 => rng.below(70),
        1 => rng.pick(&[
            0,
            1,
            u64::MAX,
            1 << 63,
            (1 << 63) - 1,
            0x8000_0000,
            0x7fff_ffff,
            0xffff_ffff,
            0x8000,
            0x80,
            0xff,
        ]),
        2 => rng.next() & 0xffff_ffff,
        3 => u64::MAX << rng.below(64),
        4 => rng.next() >> rng.below(64),
        _ => rng.next(),
    }
}

/// A vector of one kind of element.
fn vector(rng: &mut Rng) -> [u64; 4] {
    match rng.below(6) {
        0 | 1 => std::array::from_fn(|_| double(rng)),
        2 | 3 => std::array::from_fn(|_| u64::from(single(rng)) | u64::from(single(rng)) << 32),
        4 => std::array::from_fn(|_| integer(rng)),
        _ => std::array::from_fn(|_| rng.next()),
    }
}

fn double(rng: &mut Rng) -> u64 {
    match rng.below(6) {
        0 => rng.pick(&[
            0,
            1 << 63,
            0x3ff0_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0000,
            0x7ff0_0000_0000_0001,
            1,
            0x000f_ffff_ffff_ffff,
            0x7fef_ffff_ffff_ffff,
            0x0010_0000_0000_0000,
        ]),
        1 => f64::to_bits((rng.below(2000) as f64 - 1000.0) / 4.0),
        2 => rng.next() & 0x800f_ffff_ffff_ffff | (0x3f0 + rng.below(32)) << 52,
        3 => f64::to_bits(rng.next() as i64 as f64),
        _ => rng.next(),
    }
}

fn single(rng: &mut Rng) -> u32 {
    match rng.below(6) {
        0 => rng.pick(&[
            0,
            1 << 31,
            0x3f80_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0000,
            0x7f80_0001,
            1,
            0x007f_ffff,
            0x7f7f_ffff,
            0x0080_0000,
        ]),
        1 => f32::to_bits((rng.below(2000) as f32 - 1000.0) / 4.0),
        2 => rng.next() as u32 & 0x807f_ffff | (0x70 + rng.below(32) as u32) << 23,
        _ => rng.next() as u32,
    }
}

fn x87(r: &mut Regs, rng: &mut Rng) {
    for st in &mut r.st {
        let mantissa = match rng.below(4) {
            0 => 1 << 63,
            1 => rng.next(),
            2 => 1 << 63 | rng.next() << rng.below(64),
            _ => rng.pick(&[0, 1 << 63, u64::MAX, 3 << 62, 1, 0xa000_0000_0000_0000]),
        };
        let exponent = match rng.below(4) {
            0 => 0x3fff,
            1 => 0x3fd0 + rng.below(0x60),
            2 => rng.pick(&[0, 1, 0x7fff, 0x7ffe, 0x3fff, 0x403e]),
            _ => rng.below(0x8000),
        };
        st[..8].copy_from_slice(&mantissa.to_le_bytes());
        st[8..].copy_from_slice(&((exponent | rng.below(2) << 15) as u16).to_le_bytes());
    }
    r.ftw = match rng.below(4) {
        0 => rng.next() as u8,
        1 => 0,
        _ => 0xff,
    };
    r.fcw = 0x7f | (rng.next() as u16 & 0x0f00);
    if rng.chance(20) {
        r.fcw &= !(rng.next() as u16 & 0x3f);
    }
    // Condition codes and the top of the stack; now and then exceptions that have happened.
    r.fsw = rng.next() as u16 & 0x7f00;
    if rng.chance(20) {
        r.fsw |= rng.next() as u16 & 0x7f;
        if r.fsw & !r.fcw & 0x3f != 0 {
            r.fsw |= 0x8080;
        }
    }
}
