//! REP STOS and REP MOVS: the host does as much at once as lies on one page. Elements that lie on two, and pages that the TLB
//! does not know, are the interpreter's.

use iced_x86::Code;
use iced_x86::Instruction;
use iced_x86::Register;
use x86_interp::seam::layout;
use x86_isa::flags;

use crate::area;
use crate::asm::A;
use crate::asm::Fix;
use crate::asm::NE;
use crate::asm::RCX;
use crate::asm::Reg;
use crate::asm::STK;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::thunk::Why;
use crate::translate::Parked;
use crate::translate::Translator;
use crate::translate::memory::SLOT_MASK;
use crate::translate::memory::SLOT_ROTATE;

const RSI: Reg = 6;
const RDI: Reg = 7;

/// log2 of the bytes of one element, if the instruction may be done here.
pub(crate) fn element(ins: &Instruction) -> Option<u8> {
    if !ins.has_rep_prefix() || matches!(ins.segment_prefix(), Register::FS | Register::GS) {
        return None;
    }
    let wide = |code| {
        Some(match code {
            Code::Stosb_m8_AL | Code::Movsb_m8_m8 => 0,
            Code::Stosw_m16_AX | Code::Movsw_m16_m16 => 1,
            Code::Stosd_m32_EAX | Code::Movsd_m32_m32 => 2,
            Code::Stosq_m64_RAX | Code::Movsq_m64_m64 => 3,
            _ => return None,
        })
    };
    use iced_x86::OpKind as K;
    let plain = (0..2).all(|i| matches!(ins.op_kind(i), K::Register | K::MemoryESRDI | K::MemorySegRSI));
    wide(ins.code()).filter(|_| plain)
}

impl Translator {
    /// REP STOS and REP MOVS.
    pub(crate) fn string(&mut self, index: usize) {
        let ins = self.items[index].ins;
        let log = element(&ins).expect("it was classified so");
        let copies = ins.op1_kind() != iced_x86::OpKind::Register;
        const SOURCE: u32 = area::SCRATCH + 24;
        const REST: u32 = area::SCRATCH + 16;
        self.claim(&[T0, T1, T2, STK]);
        let again = self.asm.len();
        self.with_flags(index, Parked::InMemory, |t, parked| {
            let mut fixes = Vec::new();
            t.asm.load(T0, area::PENDING);
            t.asm.cmp_dword_zero(T0);
            fixes.push(t.asm.jcc(NE));
            t.put(Instruction::with2(
                Code::Test_rm32_imm32,
                super::system::at(area::SYSFLAGS),
                flags::DF as i32,
            ));
            fixes.push(t.asm.jcc(NE));
            // As many bytes as are left, or as a page has.
            t.put(Instruction::with2(Code::Mov_r32_imm32, Register::R9D, 4096 >> log));
            t.put(Instruction::with2(Code::Cmp_r64_rm64, Register::R9, Register::RCX));
            t.put(Instruction::with2(Code::Cmova_r64_rm64, Register::R9, Register::RCX));
            t.asm.lea_any(T2, None, Some((T2, log)), 0, true);
            if copies {
                fixes.push(t.page_of_string(RSI, layout::TLB_READ));
                t.asm.store(SOURCE, T1);
            }
            fixes.push(t.page_of_string(RDI, layout::TLB_WRITE));
            t.put(Instruction::with2(Code::Mov_r64_rm64, Register::R10, Register::R9));
            if log != 0 {
                // None of them lies on two pages.
                t.put(Instruction::with2(Code::Shr_rm64_imm8, Register::R10, u32::from(log)));
                let some = t.asm.jcc(NE);
                let none_left = t.asm.jrcxz();
                fixes.push(t.asm.jmp());
                t.asm.here_short(none_left);
                t.asm.here(some);
                t.asm.lea_any(T2, None, Some((T0, log)), 0, true);
            }
            t.slow(fixes, Why::Slow, index, parked);
            t.put(Instruction::with2(Code::Sub_r64_rm64, Register::RCX, Register::R10));
            t.asm.store(REST, RCX);
            t.asm.mov(RCX, T0);
        });
        self.asm.mov(T0, RDI);
        self.asm.lea_sum(RDI, RDI, T1);
        if copies {
            self.asm.load(STK, SOURCE);
            self.asm.mov(T1, RSI);
            self.asm.lea_sum(RSI, RSI, STK);
        }
        let done = self.emit(&ins);
        debug_assert!(done, "it has an encoding");
        self.asm.lea_sum(RDI, T0, T2);
        if copies {
            self.asm.lea_sum(RSI, T1, T2);
        }
        self.asm.load(RCX, REST);
        let done = self.asm.jrcxz();
        let more = self.asm.jmp();
        self.asm.lead(more, again as i64);
        self.asm.here_short(done);
    }

    /// The addend of the page that `pointer` leads to into T1, and T2 bytes become as many as are left there. The jump that is
    /// taken when it is not known.
    fn page_of_string(&mut self, pointer: Reg, tag: usize) -> Fix {
        let tlb = area::tlb(self.bank);
        self.asm.rorx(T1, pointer, SLOT_ROTATE);
        self.asm.and32(T1, SLOT_MASK);
        self.asm.mov(T0, pointer);
        self.asm.sub_at(T0, T1, tlb + tag as u32);
        self.asm.cmp_imm(T0, 4095);
        let fix = self.asm.jcc(A);
        self.asm.load_at(T1, T1, tlb + layout::TLB_ADDEND as u32);
        self.put(Instruction::with1(Code::Neg_rm64, Register::R10));
        self.asm.lea(T0, T0, 4096);
        self.put(Instruction::with2(Code::Cmp_r64_rm64, Register::R9, Register::R10));
        self.put(Instruction::with2(Code::Cmova_r64_rm64, Register::R9, Register::R10));
        fix
    }
}
