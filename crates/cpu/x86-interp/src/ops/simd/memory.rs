//! Memory operands of x87 and vector instructions: as host memory where they are one piece of it, else by way of a
//! buffer.

use crate::cpu::Cpu;
use crate::insn::DInsn;
use crate::insn::R;

/// Where a result goes.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    /// Host memory for the instruction to write.
    pub(crate) at: *mut u8,
    /// The linear address to copy it to afterwards, if `at` is the buffer.
    copy_to: Option<u64>,
}

impl Cpu {
    /// The memory operand for reading: `size` bytes, aligned to `align` or #GP.
    #[inline(always)]
    pub(crate) fn operand_in(&mut self, d: &DInsn, size: u64, align: u64) -> R<*mut u8> {
        let lin = self.operand_lin(d, size, align, false)?;
        let e = self.tlb.data(self.bank, lin);
        if lin.wrapping_sub(e.read) <= 4096 - size {
            return Ok(lin.wrapping_add(e.addend) as *mut u8);
        }
        self.operand_in_slow(d.seg, lin, size)
    }

    /// The memory operand for writing. After the instruction comes [`Self::operand_done`].
    #[inline(always)]
    pub(crate) fn operand_out(&mut self, d: &DInsn, size: u64, align: u64) -> R<Out> {
        let lin = self.operand_lin(d, size, align, true)?;
        let e = self.tlb.data(self.bank, lin);
        if lin.wrapping_sub(e.write) <= 4096 - size {
            return Ok(Out {
                at: lin.wrapping_add(e.addend) as *mut u8,
                copy_to: None,
            });
        }
        self.operand_out_slow(d.seg, lin, size)
    }

    /// Brings a result that went to the buffer to its place.
    #[inline(always)]
    pub(crate) fn operand_done(&mut self, d: &DInsn, size: u64, out: Out) -> R {
        match out.copy_to {
            None => Ok(()),
            Some(lin) => self.operand_copy(d.seg, lin, size),
        }
    }

    /// The linear address of the memory operand. #GP unless it is aligned to `align`.
    #[inline(always)]
    pub(crate) fn operand_lin(&mut self, d: &DInsn, size: u64, align: u64, write: bool) -> R<u64> {
        let ea = self.ea(d);
        if align > 1 {
            let lin = self.ea_base[d.seg as usize].wrapping_add(ea) & self.lin_mask;
            if lin & (align - 1) != 0 {
                // Before the address is looked at any further, and whatever the segment.
                return self.gp(0);
            }
        }
        if write {
            self.lin_write(d.seg, ea, size)
        } else {
            self.lin_read(d.seg, ea, size)
        }
    }

    #[cold]
    #[inline(never)]
    fn operand_in_slow(&mut self, seg: u8, lin: u64, size: u64) -> R<*mut u8> {
        let mut bytes = [0; 64];
        match size {
            1 => bytes[0] = self.read_lin::<u8>(seg, lin)?,
            2 => bytes[..2].copy_from_slice(&self.read_lin::<u16>(seg, lin)?.to_le_bytes()),
            4 => bytes[..4].copy_from_slice(&self.read_lin::<u32>(seg, lin)?.to_le_bytes()),
            8 | 16 | 32 => {
                for (i, word) in bytes[..size as usize].chunks_exact_mut(8).enumerate() {
                    let at = lin.wrapping_add(i as u64 * 8) & self.lin_mask;
                    word.copy_from_slice(&self.read_lin::<u64>(seg, at)?.to_le_bytes());
                }
            }
            _ => self.read_block(seg, lin, &mut bytes[..size as usize])?,
        }
        self.native.bounce.0[..64].copy_from_slice(&bytes);
        Ok(self.native.bounce.0.as_mut_ptr())
    }

    #[cold]
    #[inline(never)]
    fn operand_out_slow(&mut self, seg: u8, lin: u64, size: u64) -> R<Out> {
        self.probe_write(seg, lin, size)?;
        // The probe has loaded the translation; a plain page goes the short way after all.
        let e = self.tlb.data(self.bank, lin);
        if lin.wrapping_sub(e.write) <= 4096 - size {
            return Ok(Out {
                at: lin.wrapping_add(e.addend) as *mut u8,
                copy_to: None,
            });
        }
        // An instruction that ends in an unmasked exception stores nothing: then the old bytes are written back.
        let mut old = [0; 64];
        self.read_block(seg, lin, &mut old[..size as usize])?;
        self.native.bounce.0[..64].copy_from_slice(&old);
        Ok(Out {
            at: self.native.bounce.0.as_mut_ptr(),
            copy_to: Some(lin),
        })
    }

    #[cold]
    #[inline(never)]
    fn operand_copy(&mut self, seg: u8, lin: u64, size: u64) -> R {
        let mut bytes = [0; 64];
        bytes.copy_from_slice(&self.native.bounce.0[..64]);
        let bytes = &bytes[..size as usize];
        match *bytes {
            [a] => self.write_lin(seg, lin, a),
            [a, b] => self.write_lin(seg, lin, u16::from_le_bytes([a, b])),
            [a, b, c, d] => self.write_lin(seg, lin, u32::from_le_bytes([a, b, c, d])),
            _ if size.is_multiple_of(8) => {
                let (words, _) = bytes.as_chunks::<8>();
                words.iter().enumerate().try_for_each(|(i, word)| {
                    let at = lin.wrapping_add(i as u64 * 8) & self.lin_mask;
                    self.write_lin(seg, at, u64::from_le_bytes(*word))
                })
            }
            _ => self.write_block(seg, lin, bytes),
        }
    }
}
