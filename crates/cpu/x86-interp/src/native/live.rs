//! The guest's x87 and MMX registers in the host's x87 unit.
//!
//! They move in when an x87 or MMX instruction finds them absent, and out when something wants to see them: the end of a
//! `run`, FXSAVE, XSAVE. Between, the unit is in the guest's state while Rust code runs; Rust and the C library's
//! integer, memory and I/O functions use SSE only, and signal handlers start with a fresh unit.

use std::arch::asm;

use cpu_model::EngineError;
use cpu_model::FpuState;

use crate::cpu::Cpu;

/// The 512 bytes of FXSAVE (SDM vol. 1 §10.5.1).
#[repr(C, align(64))]
pub(crate) struct FxImage(pub(crate) [u8; 512]);

/// A vCPU's part in native execution.
pub(crate) struct Native {
    /// Memory operands that are not one piece of host memory (two pages, devices) are put together here.
    pub(crate) bounce: Box<FxImage>,
    /// The host's x87 unit holds the guest's registers.
    pub(crate) live: bool,
}

impl Native {
    #[expect(
        clippy::unnecessary_wraps,
        reason = "the construction of a vCPU asks every part whether the host can do it"
    )]
    pub(crate) fn new() -> Result<Self, EngineError> {
        Ok(Self {
            bounce: Box::new(FxImage([0; 512])),
            live: false,
        })
    }
}

impl Cpu {
    /// Moves the x87 registers into the host's unit if they are not there.
    #[inline(always)]
    pub(crate) fn load_x87(&mut self) {
        if !self.native.live {
            self.load_x87_now();
        }
    }

    #[cold]
    #[inline(never)]
    fn load_x87_now(&mut self) {
        let mut image = FxImage([0; 512]);
        put_x87(&self.fpu, &mut image.0);
        image.0[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
        // SAFETY: the image is aligned, and its MXCSR has no reserved bit; the vector registers are declared changed.
        unsafe {
            asm!(
                "fxrstor64 [{}]",
                in(reg) image.0.as_ptr(),
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
                out("xmm6") _, out("xmm7") _, out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nostack),
            );
        }
        self.native.live = true;
    }

    /// Moves the x87 registers out of the host's unit into `self.fpu`.
    #[inline]
    pub(crate) fn sync_x87(&mut self) {
        if self.native.live {
            self.sync_x87_now();
        }
    }

    #[inline(never)]
    fn sync_x87_now(&mut self) {
        let mut image = FxImage([0; 512]);
        // SAFETY: the image is aligned and large enough. FNINIT leaves the unit as the ABI wants it.
        unsafe { asm!("fxsave64 [{}]", "fninit", in(reg) image.0.as_mut_ptr(), options(nostack)) };
        get_x87(&mut self.fpu, &image.0);
        self.native.live = false;
    }
}

/// Control, status, tags and registers into an FXSAVE image.
pub(crate) fn put_x87(fpu: &FpuState, image: &mut [u8]) {
    image[0..2].copy_from_slice(&fpu.fcw.to_le_bytes());
    image[2..4].copy_from_slice(&fpu.fsw.to_le_bytes());
    image[4..6].copy_from_slice(&u16::from(fpu.ftw).to_le_bytes());
    for (slot, st) in image[32..160].chunks_exact_mut(16).zip(&fpu.st) {
        slot[..10].copy_from_slice(st);
        slot[10..].fill(0);
    }
}

/// The same out of an FXSAVE image.
pub(crate) fn get_x87(fpu: &mut FpuState, image: &[u8]) {
    fpu.fcw = u16::from_le_bytes([image[0], image[1]]);
    fpu.fsw = u16::from_le_bytes([image[2], image[3]]);
    fpu.ftw = image[4];
    for (slot, st) in image[32..160].chunks_exact(16).zip(&mut fpu.st) {
        st.copy_from_slice(&slot[..10]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x87_registers_come_back_from_an_image_as_they_went_in() {
        let mut fpu = FpuState {
            fcw: 0x27f,
            fsw: 0x3800,
            ftw: 0x81,
            ..FpuState::default()
        };
        fpu.st.iter_mut().enumerate().for_each(|(i, st)| st.fill(i as u8 + 1));
        let mut image = [0xff; 512];
        put_x87(&fpu, &mut image);
        let mut back = FpuState::default();
        get_x87(&mut back, &image);
        assert_eq!(back, fpu);
        assert_eq!(image[32 + 10..48], [0; 6]);
    }
}
