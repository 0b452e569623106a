//! Machine code on its way into the cache: the few forms that translated code is made of, byte by byte. Guest
//! instructions themselves come from the encoder of `iced-x86`.
//!
//! Memory of the vCPU is addressed as `gs:[offset]`.

use std::sync::LazyLock;

/// A host register by its number.
pub(crate) type Reg = u8;

pub(crate) const RCX: Reg = 1;
pub(crate) const RSP: Reg = 4;
/// Addend of the stack page: host address minus guest address.
pub(crate) const STK: Reg = 8;
/// Third temporary.
pub(crate) const T2: Reg = 9;
/// First temporary; target of indirect transfers; record of a stub.
pub(crate) const T0: Reg = 10;
/// Second temporary; addend of a checked access.
pub(crate) const T1: Reg = 11;

/// Conditions, as the low nibble of Jcc.
pub(crate) const B: u8 = 2;
pub(crate) const E: u8 = 4;
pub(crate) const NE: u8 = 5;
pub(crate) const BE: u8 = 6;
pub(crate) const A: u8 = 7;
pub(crate) const L: u8 = 12;

/// A place that a 32-bit displacement before it leads to, not yet known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fix(usize);

pub(crate) struct Asm {
    pub(crate) buf: Vec<u8>,
    /// Where the code begins that will lie elsewhere, and the displacements that lead there from before it.
    pub(crate) split: usize,
    pub(crate) across: Vec<usize>,
    /// Displacements that lead from there to before it.
    pub(crate) back: Vec<usize>,
}

/// Bytes of a near conditional jump.
pub(crate) const JCC: usize = 6;
/// Bytes of `cmp r64, imm32`.
pub(crate) const CMP: usize = 7;
/// Bytes that a processor keeps decoded together.
pub(crate) const LINE: usize = 32;

/// Whether the host decodes jumps anew each time that cross into another line or end with one (Intel, "Mitigations for Jump
/// Conditional Code Erratum", 2019). Elsewhere the padding against that would only make code longer.
fn lines_matter() -> bool {
    static MATTER: LazyLock<bool> = LazyLock::new(|| {
        let (vendor, version) = (std::arch::x86_64::__cpuid(0), std::arch::x86_64::__cpuid(1).eax);
        // "Genu".
        let intel = vendor.ebx == u32::from_le_bytes(*b"Genu");
        let (family, model) = (version >> 8 & 15, version >> 12 & 0xf0 | version >> 4 & 15);
        intel && family == 6 && matches!(model, 0x4e | 0x55 | 0x5e | 0x8e | 0x9e | 0xa5 | 0xa6)
    });
    *MATTER
}

/// Whether `n` bytes from `start` lie in one line, and end before it does.
pub(crate) fn in_line(start: usize, n: usize) -> bool {
    start % LINE + n < LINE
}

fn rex(w: u8, r: Reg, x: Reg, b: Reg) -> u8 {
    0x40 | w << 3 | r >> 3 << 2 | x >> 3 << 1 | b >> 3
}

impl Asm {
    pub(crate) fn new() -> Self {
        Self {
            buf: Vec::with_capacity(1024),
            split: usize::MAX,
            across: Vec::new(),
            back: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.buf.len()
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.buf.extend_from_slice(bytes);
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    /// `op reg, gs:[off]` with a 64-bit operand.
    fn gs(&mut self, op: u8, reg: Reg, off: u32) {
        self.bytes(&[0x65, rex(1, reg, 0, 0), op, (reg & 7) << 3 | 4, 0x25]);
        self.u32(off);
    }

    /// `op reg, gs:[base + off]` with a 64-bit operand; `base` is not RSP or R12.
    fn gs_base(&mut self, op: u8, reg: Reg, base: Reg, off: u32) {
        self.bytes(&[0x65, rex(1, reg, 0, base), op, 0x80 | (reg & 7) << 3 | base & 7]);
        self.u32(off);
    }

    /// `mov reg, gs:[off]`
    pub(crate) fn load(&mut self, reg: Reg, off: u32) {
        self.gs(0x8b, reg, off);
    }

    /// `mov gs:[off], reg`
    pub(crate) fn store(&mut self, off: u32, reg: Reg) {
        self.gs(0x89, reg, off);
    }

    /// `mov reg, gs:[base + off]`
    pub(crate) fn load_at(&mut self, reg: Reg, base: Reg, off: u32) {
        self.gs_base(0x8b, reg, base, off);
    }

    /// `add reg, gs:[off]`
    pub(crate) fn add(&mut self, reg: Reg, off: u32) {
        self.gs(0x03, reg, off);
    }

    /// `sub reg, gs:[off]`
    pub(crate) fn sub(&mut self, reg: Reg, off: u32) {
        self.gs(0x2b, reg, off);
    }

    /// `sub reg, gs:[base + off]`
    pub(crate) fn sub_at(&mut self, reg: Reg, base: Reg, off: u32) {
        self.gs_base(0x2b, reg, base, off);
    }

    /// `mov reg, gs:[index * 8 + off]`
    pub(crate) fn load_scaled(&mut self, reg: Reg, index: Reg, off: u32) {
        self.bytes(&[
            0x65,
            rex(1, reg, index, 0),
            0x8b,
            (reg & 7) << 3 | 4,
            0xc5 | (index & 7) << 3,
        ]);
        self.u32(off);
    }

    /// `jrcxz` to a place not yet known, less than 128 bytes away.
    pub(crate) fn jrcxz(&mut self) -> usize {
        self.keep_together(2);
        self.bytes(&[0xe3, 0]);
        self.len()
    }

    /// Lets the short jump that ends at `from` lead to the present place.
    pub(crate) fn here_short(&mut self, from: usize) {
        let distance = self.len() - from;
        debug_assert!(distance < 128);
        self.buf[from - 1] = distance as u8;
    }

    /// `jmp gs:[index * 8 + off]`
    pub(crate) fn jmp_scaled(&mut self, index: Reg, off: u32) {
        self.keep_together(9);
        self.bytes(&[0x65, rex(0, 0, index, 0), 0xff, 0x24, 0xc5 | (index & 7) << 3]);
        self.u32(off);
    }

    /// `pext dst, src, gs:[off]`
    pub(crate) fn pext(&mut self, dst: Reg, src: Reg, off: u32) {
        let (r, v) = (!(dst >> 3) & 1, !src & 15);
        self.bytes(&[0x65, 0xc4, r << 7 | 0x62, 0x82 | v << 3, 0xf5, (dst & 7) << 3 | 4, 0x25]);
        self.u32(off);
    }

    /// `rorx dst, src, count`
    pub(crate) fn rorx(&mut self, dst: Reg, src: Reg, count: u8) {
        let (r, b) = (!(dst >> 3) & 1, !(src >> 3) & 1);
        self.bytes(&[
            0xc4,
            r << 7 | 0x40 | b << 5 | 3,
            0xfb,
            0xf0,
            0xc0 | (dst & 7) << 3 | src & 7,
            count,
        ]);
    }

    /// `cmp reg, gs:[base + off]`
    pub(crate) fn cmp_at(&mut self, reg: Reg, base: Reg, off: u32) {
        self.gs_base(0x3b, reg, base, off);
    }

    /// `and reg, -4096`: the page that an address is in.
    pub(crate) fn page_of(&mut self, reg: Reg) {
        self.bytes(&[rex(1, 0, 0, reg), 0x81, 0xe0 | reg & 7]);
        self.u32(0xffff_f000);
    }

    /// `and reg32, imm`
    pub(crate) fn and32(&mut self, reg: Reg, imm: u32) {
        self.bytes(&[rex(0, 0, 0, reg), 0x81, 0xe0 | reg & 7]);
        self.u32(imm);
    }

    /// `cmp reg, imm`
    pub(crate) fn cmp_imm(&mut self, reg: Reg, imm: u32) {
        self.bytes(&[rex(1, 0, 0, reg), 0x81, 0xf8 | reg & 7]);
        self.u32(imm);
    }

    /// `mov dst, src`
    pub(crate) fn mov(&mut self, dst: Reg, src: Reg) {
        self.bytes(&[rex(1, src, 0, dst), 0x89, 0xc0 | (src & 7) << 3 | dst & 7]);
    }

    /// `mov reg32, 0`, without touching the flags
    pub(crate) fn zero(&mut self, reg: Reg) {
        self.bytes(&[rex(0, 0, 0, reg), 0xb8 | reg & 7]);
        self.u32(0);
    }

    /// `xchg rcx, reg`
    pub(crate) fn xchg_rcx(&mut self, reg: Reg) {
        self.bytes(&[rex(1, RCX, 0, reg), 0x87, 0xc0 | RCX << 3 | reg & 7]);
    }

    /// `mov reg, imm64`
    pub(crate) fn mov_imm64(&mut self, reg: Reg, imm: u64) {
        self.bytes(&[rex(1, 0, 0, reg), 0xb8 | reg & 7]);
        self.bytes(&imm.to_le_bytes());
    }

    /// ModRM, SIB and displacement of `[base + disp]`.
    fn base_disp(&mut self, reg: Reg, base: Reg, disp: i32) {
        let short = i8::try_from(disp).ok();
        let mode = if short.is_some() { 0x40 } else { 0x80 };
        self.bytes(&[mode | (reg & 7) << 3 | base & 7]);
        if base & 7 == 4 {
            self.bytes(&[0x24]);
        }
        match short {
            Some(disp) => self.bytes(&[disp as u8]),
            None => self.u32(disp as u32),
        }
    }

    /// ModRM, SIB and displacement of `[base + index + disp]`.
    fn base_index(&mut self, reg: Reg, base: Reg, index: Reg, disp: i32) {
        let short = i8::try_from(disp).ok();
        let mode = if short.is_some() { 0x40 } else { 0x80 };
        self.bytes(&[mode | (reg & 7) << 3 | 4, (index & 7) << 3 | base & 7]);
        match short {
            Some(disp) => self.bytes(&[disp as u8]),
            None => self.u32(disp as u32),
        }
    }

    /// `lea dst, [base + disp]`
    pub(crate) fn lea(&mut self, dst: Reg, base: Reg, disp: i32) {
        self.bytes(&[rex(1, dst, 0, base), 0x8d]);
        self.base_disp(dst, base, disp);
    }

    /// `lea dst32, [base + disp]`
    pub(crate) fn lea32(&mut self, dst: Reg, base: Reg, disp: i32) {
        self.bytes(&[rex(0, dst, 0, base), 0x8d]);
        self.base_disp(dst, base, disp);
    }

    /// `lea dst32, [a + b]`
    pub(crate) fn lea_sum32(&mut self, dst: Reg, a: Reg, b: Reg) {
        self.bytes(&[rex(0, dst, b, a), 0x8d]);
        self.base_index(dst, a, b, 0);
    }

    /// `lea dst, [a + b]`
    pub(crate) fn lea_sum(&mut self, dst: Reg, a: Reg, b: Reg) {
        self.bytes(&[rex(1, dst, b, a), 0x8d]);
        self.base_index(dst, a, b, 0);
    }

    /// `lea dst, [base + index << scale + disp]` with any part absent; 32 bits wide unless `wide`.
    pub(crate) fn lea_any(&mut self, dst: Reg, base: Option<Reg>, index: Option<(Reg, u8)>, disp: i32, wide: bool) {
        let (i, scale) = index.unwrap_or((RSP, 0));
        self.bytes(&[rex(u8::from(wide), dst, i, base.unwrap_or(0)), 0x8d]);
        let (mode, low) = match base {
            Some(base) if i8::try_from(disp).is_ok() => (0x40, base & 7),
            Some(base) => (0x80, base & 7),
            None => (0, 5),
        };
        self.bytes(&[mode | (dst & 7) << 3 | 4, scale << 6 | (i & 7) << 3 | low]);
        if mode == 0x40 {
            self.bytes(&[disp as u8]);
        } else {
            self.u32(disp as u32);
        }
    }

    /// `mov dst32, src32`
    pub(crate) fn mov32(&mut self, dst: Reg, src: Reg) {
        self.bytes(&[rex(0, src, 0, dst), 0x89, 0xc0 | (src & 7) << 3 | dst & 7]);
    }

    /// `mov reg, [base + index + disp]`; 32 bits wide unless `wide`.
    pub(crate) fn load_mem(&mut self, wide: bool, reg: Reg, base: Reg, index: Reg, disp: i32) {
        self.bytes(&[rex(u8::from(wide), reg, index, base), 0x8b]);
        self.base_index(reg, base, index, disp);
    }

    /// `mov [base + index + disp], reg`; 32 bits wide unless `wide`.
    pub(crate) fn store_mem(&mut self, wide: bool, base: Reg, index: Reg, disp: i32, reg: Reg) {
        self.bytes(&[rex(u8::from(wide), reg, index, base), 0x89]);
        self.base_index(reg, base, index, disp);
    }

    /// `mov dword or qword [base + index + disp], imm` (sign-extended)
    pub(crate) fn store_mem_imm(&mut self, wide: bool, base: Reg, index: Reg, disp: i32, imm: i32) {
        self.bytes(&[rex(u8::from(wide), 0, index, base), 0xc7]);
        self.base_index(0, base, index, disp);
        self.u32(imm as u32);
    }

    /// `cmp dword [reg], 0`; `reg` is not RSP, RBP, R12 or R13.
    pub(crate) fn cmp_dword_zero(&mut self, reg: Reg) {
        self.bytes(&[rex(0, 0, 0, reg), 0x83, 0x38 | reg & 7, 0]);
    }

    /// `cmp dword gs:[off], imm`
    pub(crate) fn cmp_dword_gs(&mut self, off: u32, imm: i8) {
        self.bytes(&[0x65, 0x83, 0x3c, 0x25]);
        self.u32(off);
        self.bytes(&[imm as u8]);
    }

    /// `add dword gs:[off], imm`
    pub(crate) fn add_dword_gs(&mut self, off: u32, imm: i8) {
        self.bytes(&[0x65, 0x83, 0x04, 0x25]);
        self.u32(off);
        self.bytes(&[imm as u8]);
    }

    /// `mov dword gs:[off], imm`
    pub(crate) fn mov_dword_gs(&mut self, off: u32, imm: u32) {
        self.bytes(&[0x65, 0xc7, 0x04, 0x25]);
        self.u32(off);
        self.u32(imm);
    }

    /// `mov qword gs:[off], imm` (sign-extended)
    pub(crate) fn mov_qword_gs(&mut self, off: u32, imm: i32) {
        self.bytes(&[0x65, 0x48, 0xc7, 0x04, 0x25]);
        self.u32(off);
        self.u32(imm as u32);
    }

    /// `cmp qword gs:[off], imm` (sign-extended)
    pub(crate) fn cmp_qword_gs(&mut self, off: u32, imm: i32) {
        self.bytes(&[0x65, 0x48, 0x81, 0x3c, 0x25]);
        self.u32(off);
        self.u32(imm as u32);
    }

    /// `mov reg, imm` (sign-extended)
    pub(crate) fn mov_imm(&mut self, reg: Reg, imm: i32) {
        self.bytes(&[rex(1, 0, 0, reg), 0xc7, 0xc0 | reg & 7]);
        self.u32(imm as u32);
    }

    /// `cmp byte gs:[off], 0`
    pub(crate) fn cmp_byte_gs_zero(&mut self, off: u32) {
        self.bytes(&[0x65, 0x80, 0x3c, 0x25]);
        self.u32(off);
        self.bytes(&[0]);
    }

    /// `and dword gs:[off], imm`
    pub(crate) fn and_dword_gs(&mut self, off: u32, imm: u32) {
        self.bytes(&[0x65, 0x81, 0x24, 0x25]);
        self.u32(off);
        self.u32(imm);
    }

    /// `or dword gs:[off], imm`
    pub(crate) fn or_dword_gs(&mut self, off: u32, imm: u32) {
        self.bytes(&[0x65, 0x81, 0x0c, 0x25]);
        self.u32(off);
        self.u32(imm);
    }

    /// `mov reg, [base + disp]`
    pub(crate) fn load_disp(&mut self, reg: Reg, base: Reg, disp: i32) {
        self.bytes(&[rex(1, reg, 0, base), 0x8b]);
        self.base_disp(reg, base, disp);
    }

    /// `mov [base + disp], reg`
    pub(crate) fn store_disp(&mut self, base: Reg, disp: i32, reg: Reg) {
        self.bytes(&[rex(1, reg, 0, base), 0x89]);
        self.base_disp(reg, base, disp);
    }

    /// `lahf; seto al`
    pub(crate) fn flags_to_ax(&mut self) {
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// `add al, 127; sahf`
    pub(crate) fn flags_from_ax(&mut self) {
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }

    /// `lea reg, [rip + ...]`
    pub(crate) fn lea_rip(&mut self, reg: Reg) -> Fix {
        self.bytes(&[rex(1, reg, 0, 0), 0x8d, (reg & 7) << 3 | 5]);
        self.fix()
    }

    /// `jmp` to a place not yet known.
    pub(crate) fn jmp(&mut self) -> Fix {
        self.keep_together(5);
        self.bytes(&[0xe9]);
        self.fix()
    }

    /// `jcc` to a place not yet known.
    pub(crate) fn jcc(&mut self, condition: u8) -> Fix {
        self.keep_together(JCC);
        self.bytes(&[0x0f, 0x80 | condition]);
        self.fix()
    }

    /// As [`Self::jmp`], with the displacement aligned to four bytes so that it can be changed while others execute it.
    pub(crate) fn jmp_aligned(&mut self) -> Fix {
        self.nops(self.padding(self.len(), 0, 5, 3));
        self.jmp()
    }

    /// As [`Self::jcc`], aligned likewise.
    pub(crate) fn jcc_aligned(&mut self, condition: u8) -> Fix {
        self.nops(self.padding(self.len(), 0, JCC, 2));
        self.jcc(condition)
    }

    /// Bytes to leave free at `start` so that a jump of `jump` bytes behind an instruction of `before` bytes begins at `phase`
    /// in four bytes, and the two lie in one line, if that matters and they can.
    pub(crate) fn padding(&self, start: usize, before: usize, jump: usize, phase: usize) -> usize {
        let anywhere = start >= self.split || !lines_matter();
        let aligned = phase.wrapping_sub(start + before) & 3;
        let mut choices = (aligned..LINE + 4).step_by(4);
        choices
            .find(|pad| anywhere || in_line(start + pad, before + jump))
            .unwrap_or(aligned)
    }

    /// Begins a new line where the next `n` bytes, which end with a jump, would cross into it or end with this one, if that
    /// matters.
    pub(crate) fn keep_together(&mut self, n: usize) {
        if self.len() < self.split && lines_matter() && !in_line(self.len(), n) {
            self.align(LINE);
        }
    }

    pub(crate) fn nops(&mut self, n: usize) {
        const LONGEST: usize = 9;
        let form: &[u8] = match n {
            0 => return,
            1 => &[0x90],
            2 => &[0x66, 0x90],
            3 => &[0x0f, 0x1f, 0x00],
            4 => &[0x0f, 0x1f, 0x40, 0x00],
            5 => &[0x0f, 0x1f, 0x44, 0x00, 0x00],
            6 => &[0x66, 0x0f, 0x1f, 0x44, 0x00, 0x00],
            7 => &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
            8 => &[0x0f, 0x1f, 0x84, 0x00, 0, 0, 0, 0],
            _ => &[0x66, 0x0f, 0x1f, 0x84, 0x00, 0, 0, 0, 0],
        };
        self.bytes(form);
        self.nops(n.saturating_sub(LONGEST.min(n)));
    }

    pub(crate) fn align(&mut self, to: usize) {
        self.nops(self.len().wrapping_neg() & (to - 1));
    }

    fn fix(&mut self) -> Fix {
        self.u32(0);
        Fix(self.len())
    }

    /// Lets `fix` lead to the present place.
    pub(crate) fn here(&mut self, fix: Fix) {
        let to = self.len();
        self.lead(fix, to as i64);
    }

    /// Lets `fix` lead to a place relative to the start of this code.
    pub(crate) fn lead(&mut self, fix: Fix, to: i64) {
        if fix.place() < self.split && usize::try_from(to).is_ok_and(|to| to >= self.split) {
            self.across.push(fix.place());
        } else if fix.place() >= self.split && usize::try_from(to).is_ok_and(|to| to < self.split) {
            self.back.push(fix.place());
        }
        let displacement = (to - fix.0 as i64) as i32;
        self.buf[fix.0 - 4..fix.0].copy_from_slice(&displacement.to_le_bytes());
    }
}

impl Fix {
    /// Where the displacement is.
    pub(crate) fn place(self) -> usize {
        self.0 - 4
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::Decoder;
    use iced_x86::DecoderOptions;

    use super::*;

    fn text(f: impl FnOnce(&mut Asm)) -> String {
        let mut asm = Asm::new();
        f(&mut asm);
        let mut decoder = Decoder::with_ip(64, &asm.buf, 0, DecoderOptions::NONE);
        let ins = decoder.decode();
        assert_eq!(ins.len(), asm.len(), "one instruction");
        let mut out = String::new();
        iced_x86::FastFormatter::new().format(&ins, &mut out);
        // Small numbers are the same in every base.
        for digit in '0'..='9' {
            for before in ['+', '-', ',', '[', '*'] {
                out = out.replace(&format!("{before}{digit}h"), &format!("{before}{digit}"));
            }
        }
        out
    }

    #[test]
    fn forms_are_what_their_names_say() {
        assert_eq!(text(|a| a.load(T0, 0x1234)), "mov r10,gs:[1234h]");
        assert_eq!(text(|a| a.store(0x40, 7)), "mov gs:[40h],rdi");
        assert_eq!(text(|a| a.load_at(T1, T1, 0x5000)), "mov r11,gs:[r11+5000h]");
        assert_eq!(text(|a| a.sub(T0, 0x88)), "sub r10,gs:[88h]");
        assert_eq!(text(|a| a.sub_at(T2, T1, 0x88)), "sub r9,gs:[r11+88h]");
        assert_eq!(text(|a| a.load_scaled(T1, T1, 0x900)), "mov r11,gs:[r11*8+900h]");
        assert_eq!(text(|a| a.jmp_scaled(T1, 0x900)), "jmp qword ptr gs:[r11*8+900h]");
        assert_eq!(text(|a| a.pext(T1, T1, 0x10)), "pext r11,r11,gs:[10h]");
        assert_eq!(text(|a| a.rorx(T1, T0, 7)), "rorx r11,r10,7");
        assert_eq!(text(|a| a.rorx(T1, 3, 7)), "rorx r11,rbx,7");
        assert_eq!(text(|a| a.and32(T1, 0x7fe0)), "and r11d,7FE0h");
        assert_eq!(text(|a| a.cmp_imm(T0, 0xff8)), "cmp r10,0FF8h");
        assert_eq!(text(|a| a.mov(T2, T0)), "mov r9,r10");
        assert_eq!(text(|a| a.zero(T2)), "mov r9d,0");
        assert_eq!(text(|a| a.xchg_rcx(T1)), "xchg r11,rcx");
        assert_eq!(text(|a| a.mov_imm64(0, 1 << 40)), "mov rax,10000000000h");
        assert_eq!(text(|a| a.lea(T0, RSP, -8)), "lea r10,[rsp-8]");
        assert_eq!(text(|a| a.lea(T0, 13, 0x1000)), "lea r10,[r13+1000h]");
        assert_eq!(text(|a| a.lea(T0, 12, 0)), "lea r10,[r12]");
        assert_eq!(text(|a| a.lea32(T0, 4, 4)), "lea r10d,[rsp+4]");
        assert_eq!(text(|a| a.store_mem(false, RSP, STK, -4, T0)), "mov [rsp+r8-4],r10d");
        assert_eq!(text(|a| a.load_mem(false, 1, RSP, STK, 300)), "mov ecx,[rsp+r8+12Ch]");
        assert_eq!(text(|a| a.lea_sum32(T1, T0, T1)), "lea r11d,[r10+r11]");
        assert_eq!(text(|a| a.load_mem(true, 5, RSP, STK, 0)), "mov rbp,[rsp+r8]");
        assert_eq!(text(|a| a.store_mem(true, RSP, STK, -8, T0)), "mov [rsp+r8-8],r10");
        assert_eq!(
            text(|a| a.store_mem_imm(true, RSP, STK, -8, -2)),
            "mov qword ptr [rsp+r8-8],0FFFFFFFFFFFFFFFEh"
        );
        assert_eq!(text(|a| a.lea_sum(T0, T0, T1)), "lea r10,[r10+r11]");
        assert_eq!(
            text(|a| a.lea_any(T0, Some(3), Some((6, 3)), 8, true)),
            "lea r10,[rbx+rsi*8+8]"
        );
        assert_eq!(
            text(|a| a.lea_any(T0, None, Some((15, 2)), -4, true)),
            "lea r10,[r15*4-4]"
        );
        assert_eq!(text(|a| a.lea_any(T0, Some(T0), None, 1, false)), "lea r10d,[r10+1]");
        assert_eq!(text(|a| a.lea_any(T0, None, None, 0x100, true)), "lea r10,[100h]");
        assert_eq!(text(|a| a.lea_any(T0, Some(12), None, 0, true)), "lea r10,[r12]");
        assert_eq!(text(|a| a.mov32(T0, T0)), "mov r10d,r10d");
        assert_eq!(text(|a| a.cmp_byte_gs_zero(0x44)), "cmp byte ptr gs:[44h],0");
        assert_eq!(
            text(|a| a.and_dword_gs(0x44, !0x200)),
            "and dword ptr gs:[44h],0FFFFFDFFh"
        );
        assert_eq!(text(|a| a.or_dword_gs(0x44, 0x200)), "or dword ptr gs:[44h],200h");
        assert_eq!(text(|a| a.load_disp(T0, T1, 8)), "mov r10,[r11+8]");
        assert_eq!(text(|a| a.store_disp(T1, 400, T2)), "mov [r11+190h],r9");
        assert_eq!(text(|a| a.cmp_dword_gs(0x44, 0)), "cmp dword ptr gs:[44h],0");
        assert_eq!(text(|a| a.add_dword_gs(0x44, 1)), "add dword ptr gs:[44h],1");
        assert_eq!(text(|a| a.mov_dword_gs(0x44, 7)), "mov dword ptr gs:[44h],7");
        assert_eq!(text(|a| a.cmp_dword_zero(T1)), "cmp dword ptr [r11],0");
    }

    #[test]
    fn aligned_jumps_have_aligned_displacements() {
        for lead in 0..8 {
            let mut asm = Asm::new();
            asm.nops(lead);
            assert_eq!(asm.jmp_aligned().place() % 4, 0);
            asm.nops(lead);
            assert_eq!(asm.jcc_aligned(NE).place() % 4, 0);
        }
    }
}
