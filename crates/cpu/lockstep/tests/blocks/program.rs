//! Random programs: a run of instructions with what they need in registers, pushes and pops, accesses relative to RSP, and
//! jumps forwards. They end with UD2.

use iced_x86::Code;
use iced_x86::CpuidFeature;
use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::Encoder;
use iced_x86::Formatter;
use iced_x86::Instruction;
use iced_x86::IntelFormatter;
use iced_x86::MemoryOperand;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;
use iced_x86::RflagsBits;

use crate::case::CODE;
use crate::case::Regs;
use crate::case::rflags;
use crate::case::undefined_flags;
use crate::generate;
use crate::generate::Rng;

/// Bases of FS and GS: small, so that what they move mostly still hits the data.
pub(crate) const BASES: [u64; 2] = [0x28, 0u64.wrapping_sub(0x30)];

/// Random parts of a program at most.
const PARTS: u64 = 30;

/// Instruction forms to choose from.
pub(crate) struct Forms {
    all: Vec<Code>,
    /// Without vectors and x87.
    integer: Vec<Code>,
    /// Those that read arithmetic flags.
    readers: Vec<Code>,
}

impl Forms {
    pub(crate) fn new() -> Self {
        // The addresses of the last x87 instruction and its operand are not kept for translated code.
        let shows_addresses = |code: &Code| matches!(code.mnemonic(), Mnemonic::Fnsave | Mnemonic::Fnstenv);
        let all: Vec<Code> = generate::codes().into_iter().filter(|c| !shows_addresses(c)).collect();
        let is_integer = |code: &&Code| {
            let op = code.op_code();
            (0..op.op_count()).all(|i| {
                let kind = format!("{:?}", op.op_kind(i));
                !(kind.contains("mm_") || kind.contains("st"))
            })
        };
        let integer: Vec<Code> = all.iter().filter(is_integer).copied().collect();
        let reads = |code: &&Code| {
            let mut ins = Instruction::default();
            ins.set_code(**code);
            ins.rflags_read() & !RflagsBits::DF != 0
        };
        let readers = integer.iter().filter(reads).copied().collect();
        Self { all, integer, readers }
    }

    fn any(&self, rng: &mut Rng) -> Code {
        let from = match rng.below(10) {
            0..4 => &self.all,
            4..7 => &self.integer,
            _ => &self.readers,
        };
        from[rng.below(from.len() as u64) as usize]
    }
}

#[derive(Clone)]
pub(crate) struct Program {
    pub(crate) start: u64,
    pub(crate) before: Regs,
    parts: Vec<Part>,
}

#[derive(Clone)]
enum Part {
    Plain(Instruction),
    /// Some that make no sense apart.
    Together(Vec<Instruction>),
    /// A conditional or unconditional jump over so many parts.
    Jump(Code, usize),
}

impl Program {
    /// A program that mostly runs to its end, as `survives` finds out.
    pub(crate) fn random(forms: &Forms, rng: &mut Rng, survives: &mut dyn FnMut(&Self) -> bool) -> Self {
        let mut program = Self {
            start: CODE + rng.below(64),
            before: Regs::EMPTY,
            parts: Vec::new(),
        };
        while program.before == Regs::EMPTY {
            let code = forms.any(rng);
            program.before = generate::case(code, rng).map_or(Regs::EMPTY, |case| case.before);
        }
        // Some begin near the end of the page and go on in the next one.
        if rng.below(4) == 0 {
            program.start = (CODE | 4095) - rng.below(300);
        }
        let wanted = 1 + rng.below(PARTS) as usize;
        for _ in 0..wanted * 2 {
            let kept = program.parts.len();
            program.add(forms, rng);
            if !survives(&program) && rng.below(6) != 0 {
                program.parts.truncate(kept);
            }
            if program.parts.len() >= wanted {
                break;
            }
        }
        program
    }

    /// Adds something at the end.
    fn add(&mut self, forms: &Forms, rng: &mut Rng) {
        match rng.below(100) {
            0..15 => stack(&mut self.parts, rng),
            15..25 => {
                let condition = Code::Jo_rel32_64 as usize + rng.below(16) as usize * 3;
                let condition = Code::try_from(condition).expect("three forms for each of sixteen conditions");
                let code = if rng.below(5) == 0 {
                    Code::Jmp_rel32_64
                } else {
                    condition
                };
                self.parts.push(Part::Jump(code, 1 + rng.below(6) as usize));
            }
            25..32 => empty_shift(&mut self.parts, rng),
            _ => {
                let code = forms.any(rng);
                if let Some(case) = generate::case(code, rng) {
                    plain(&mut self.parts, case.instruction(), &case.before, rng);
                }
            }
        }
    }

    /// Number of parts.
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// The same without a part; jumps still lead to the same place behind it.
    pub(crate) fn without(&self, index: usize) -> Self {
        let mut less = self.clone();
        less.parts.remove(index);
        for (at, part) in less.parts.iter_mut().enumerate().take(index) {
            if let Part::Jump(_, over) = part
                && at + *over >= index
            {
                *over -= 1;
            }
        }
        less
    }

    /// Machine code.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        // Jumps have the same length wherever they lead, so that the first pass finds all addresses.
        let mut addresses = vec![self.start; self.parts.len() + 8];
        let mut bytes = Vec::new();
        for _ in 0..2 {
            bytes.clear();
            let mut next = self.start;
            for (index, part) in self.parts.iter().enumerate() {
                addresses[index] = next;
                let together = match part {
                    Part::Plain(ins) => vec![*ins],
                    Part::Together(all) => all.clone(),
                    Part::Jump(code, over) => {
                        let target = addresses[index + 1 + over];
                        vec![Instruction::with_branch(*code, target).expect("a jump")]
                    }
                };
                for ins in together {
                    let mut encoder = Encoder::new(64);
                    next += encoder.encode(&ins, next).expect("it was encoded before") as u64;
                    bytes.extend(encoder.take_buffer());
                }
            }
            addresses[self.parts.len()..].fill(next);
        }
        bytes.extend([0x0f, 0x0b]);
        bytes
    }

    /// Address of UD2.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes().len() as u64 - 2
    }

    /// The instruction at `rip`, and all that follow.
    pub(crate) fn from(&self, rip: u64) -> Vec<Instruction> {
        let bytes = self.bytes();
        let skip = (rip.wrapping_sub(self.start) as usize).min(bytes.len());
        Decoder::with_ip(64, &bytes[skip..], rip, DecoderOptions::NONE)
            .into_iter()
            .collect()
    }

    /// Arithmetic flags that code behind a fault at `rip` surely reads.
    pub(crate) fn live_flags(&self, rip: u64) -> u64 {
        let (mut live, mut open) = (0, u32::MAX);
        for ins in self.from(rip) {
            live |= ins.rflags_read() & open;
            open &= !ins.rflags_modified();
            if ins.is_jcc_short_or_near() || ins.is_jmp_short_or_near() {
                break;
            }
        }
        rflags(live)
    }

    /// In assembler.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for ins in self.from(self.start) {
            let mut line = String::new();
            IntelFormatter::new().format(&ins, &mut line);
            text += &format!("    {:#x}: {line}\n", ins.ip());
        }
        text
    }
}

/// An instruction, and before it what loads the registers that it addresses memory with.
fn plain(parts: &mut Vec<Part>, mut ins: Instruction, before: &Regs, rng: &mut Rng) {
    // Whether SHA minds operands that are not aligned depends on the processor.
    let sha = ins.cpuid_features().contains(&CpuidFeature::SHA);
    let memory = (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Memory);
    if ins.is_vsib() || sha && memory {
        return;
    }
    let mut wanted = Vec::new();
    for i in 0..ins.op_count() {
        match ins.op_kind(i) {
            OpKind::Memory => wanted.extend([ins.memory_base(), ins.memory_index()]),
            OpKind::Register | OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate32 => {}
            OpKind::Immediate64 | OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 => {}
            _ => wanted.extend([Register::RSI, Register::RDI, Register::RCX]),
        }
    }
    for register in wanted {
        if register != Register::None && register != Register::RIP && register.is_gpr() {
            let full = register.full_register();
            let value = before.gpr[full.number()];
            let load = Instruction::with2(Code::Mov_r64_imm64, full, value).expect("MOV");
            parts.push(Part::Plain(load));
        }
    }
    if memory && rng.below(15) == 0 {
        ins.set_segment_prefix(if rng.below(2) == 0 { Register::FS } else { Register::GS });
    }
    let mut together = vec![ins];
    if generate::is_narrow_double_shift(ins.code()) {
        // With the count of the case.
        let load = Instruction::with2(Code::Mov_r64_imm64, Register::RCX, before.gpr[1]).expect("MOV");
        together.insert(0, load);
    }
    // Engines may differ in undefined flags: nothing shall see them.
    if undefined_flags(&ins) != 0 {
        together.push(Instruction::with2(Code::Cmp_rm32_imm32, Register::EDX, rng.next() as i32).expect("CMP"));
    }
    parts.push(Part::Together(together));
}

/// A shift by a count of zero, which leaves all flags as they are.
fn empty_shift(parts: &mut Vec<Part>, rng: &mut Rng) {
    let code = [
        Code::Shl_rm32_CL,
        Code::Shr_rm64_CL,
        Code::Sar_rm32_CL,
        Code::Rol_rm64_CL,
        Code::Rcr_rm32_CL,
    ][rng.below(5) as usize];
    let wide = matches!(code, Code::Shr_rm64_CL | Code::Rol_rm64_CL);
    let count = if wide { 0x40 } else { 0x20 * rng.below(3) as u32 };
    let register = if wide { Register::RAX } else { Register::EAX } + 8 * rng.below(2) as u32;
    let load = Instruction::with2(Code::Mov_r32_imm32, Register::ECX, count).expect("MOV");
    let shift = Instruction::with2(code, register, Register::CL).expect("a shift");
    parts.push(Part::Together(vec![load, shift]));
}

/// Work on the stack.
fn stack(parts: &mut Vec<Part>, rng: &mut Rng) {
    let register = Register::RAX + rng.below(16) as u32;
    let disp = rng.below(200) as i64 - 100;
    let slot = MemoryOperand::with_base_displ(Register::RSP, disp);
    let ins = match rng.below(9) {
        0 => Instruction::with1(Code::Push_r64, register),
        1 => Instruction::with1(Code::Pop_r64, register),
        2 => Instruction::with1(Code::Pushq_imm32, rng.next() as i32),
        3 => Instruction::with2(Code::Mov_rm64_r64, slot, register),
        4 => Instruction::with2(Code::Add_r64_rm64, register, slot),
        5 => Instruction::with2(Code::Lea_r64_m, Register::RSP, slot),
        6 => Instruction::with1(Code::Push_rm64, slot),
        7 => Instruction::with2(Code::Xor_rm32_r32, slot, Register::EBX),
        _ => Instruction::with2(Code::Sub_rm64_imm8, Register::RSP, (disp & -8) as i32),
    };
    parts.push(Part::Plain(ins.expect("forms that exist")));
}
