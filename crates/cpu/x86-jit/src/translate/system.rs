//! Privileged instructions that kernels execute with every system call and interrupt.

use iced_x86::Mnemonic;
use x86_isa::flags;

use crate::area;
use crate::asm::NE;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::thunk::Why;
use crate::translate::Parked;
use crate::translate::Translator;

impl Translator {
    /// CLI, STI and SWAPGS at privilege level 0, where they cannot fault.
    pub(crate) fn system(&mut self, index: usize) {
        self.claim(&[T0, T1, T2]);
        match self.items[index].ins.mnemonic() {
            Mnemonic::Swapgs => self.swapgs(),
            Mnemonic::Cli => self.with_flags(index, Parked::In(T1), |t, _| {
                t.asm.and_dword_gs(area::SYSFLAGS, !(flags::IF as u32))
            }),
            _ => self.sti(index),
        }
    }

    /// Where an interrupt waits, the interpreter does it, and holds the interrupt back for one more instruction. Where none
    /// does, there is nothing to hold back.
    fn sti(&mut self, index: usize) {
        self.with_flags(index, Parked::In(T1), |t, parked| {
            t.asm.load(T0, area::PENDING);
            t.asm.cmp_dword_zero(T0);
            let signal = t.asm.jcc(NE);
            t.asm.cmp_byte_gs_zero(area::INTERRUPT);
            let interrupt = t.asm.jcc(NE);
            t.slow(vec![signal, interrupt], Why::Slow, index, parked);
            t.asm.or_dword_gs(area::SYSFLAGS, flags::IF as u32);
        });
    }

    fn swapgs(&mut self) {
        const GS: u8 = 5;
        self.asm.load(T1, area::MSRS);
        self.asm.load_disp(T0, T1, area::KERNEL_GS_BASE);
        self.asm.load(T2, area::SEGMENT_GS_BASE);
        self.asm.store_disp(T1, area::KERNEL_GS_BASE, T2);
        self.asm.store(area::SEGMENT_GS_BASE, T0);
        self.asm.store(area::segment_base(GS), T0);
    }
}
