//! FXSAVE, FXRSTOR, XSAVE, XSAVEC, XSAVEOPT, XRSTOR, XGETBV, XSETBV, LDMXCSR, STMXCSR.
//!
//! Components are x87 (0), SSE (1), AVX (2) and PKRU (9), as far as the CPU model has them. The init optimisation is
//! done; the modified optimisation of XSAVEOPT, which hardware may omit, is not.
//!
//! Spec: SDM vol. 1 §10.5 (FXSAVE), §13 (XSAVE); vol. 2 by mnemonic.

use cpu_model::Feature;
use cpu_model::FpuState;
use cpu_model::XSAVE_COMPONENTS;
use iced_x86::Code;
use x86_isa::Exception;
use x86_isa::Vector;
use x86_isa::cr4;

use crate::cpu::Cpu;
use crate::cpu::RAX;
use crate::cpu::RCX;
use crate::cpu::RDX;
use crate::decode::Dec;
use crate::decode::Select;
use crate::insn::DInsn;
use crate::insn::Exec;
use crate::insn::R;
use crate::native::get_x87;
use crate::native::put_x87;

/// Bits of MXCSR that exist.
const MXCSR_MASK: u32 = 0xffff;
const MXCSR_INIT: u32 = 0x1f80;

const X87: u64 = 1 << 0;
const SSE: u64 = 1 << 1;
const AVX: u64 = 1 << 2;
const PKRU: u64 = 1 << 9;
/// XCOMP_BV: the area is in the compacted format.
const COMPACTED: u64 = 1 << 63;

/// The legacy region, up to XMM15, and the header.
const LEGACY: usize = 416;
const HEADER: usize = 512;
const EXTENDED: usize = 576;
/// The largest area: PKRU's end in the standard format.
const AREA: usize = 2696;

pub(crate) fn select(x: &Dec<'_>, d: &mut DInsn) -> Select {
    let _ = d;
    Some(match x.code() {
        Code::Fxsave_m512byte => fxsave::<false> as Exec,
        Code::Fxsave64_m512byte => fxsave::<true>,
        Code::Fxrstor_m512byte => fxrstor::<false>,
        Code::Fxrstor64_m512byte => fxrstor::<true>,
        Code::Xsave_mem => xsave::<false>,
        Code::Xsave64_mem => xsave::<true>,
        Code::Xsaveopt_mem => xsaveopt::<false>,
        Code::Xsaveopt64_mem => xsaveopt::<true>,
        Code::Xsavec_mem => xsavec::<false>,
        Code::Xsavec64_mem => xsavec::<true>,
        Code::Xrstor_mem => xrstor::<false>,
        Code::Xrstor64_mem => xrstor::<true>,
        Code::Xgetbv => xgetbv,
        Code::Xsetbv => xsetbv,
        Code::Ldmxcsr_m32 => ldmxcsr::<false>,
        Code::VEX_Vldmxcsr_m32 => ldmxcsr::<true>,
        Code::Stmxcsr_m32 => stmxcsr::<false>,
        Code::VEX_Vstmxcsr_m32 => stmxcsr::<true>,
        _ => return None,
    })
}

fn ask<const VEX: bool>(cpu: &mut Cpu) -> R {
    if VEX { cpu.ask_avx() } else { cpu.ask_sse() }
}

fn ldmxcsr<const VEX: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let value = cpu.read_m::<u32>(d)?;
    if value & !MXCSR_MASK != 0 {
        return cpu.gp(0);
    }
    cpu.fpu.mxcsr = value;
    Ok(())
}

fn stmxcsr<const VEX: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    ask::<VEX>(cpu)?;
    let value = cpu.fpu.mxcsr;
    cpu.write_m(d, value)
}

fn nm<T>(cpu: &mut Cpu) -> R<T> {
    cpu.raise(Exception::new(Vector::Nm))
}

fn put<const N: usize>(image: &mut [u8], at: usize, bytes: [u8; N]) {
    image[at..at + N].copy_from_slice(&bytes);
}

fn u32_at(image: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([image[at], image[at + 1], image[at + 2], image[at + 3]])
}

fn u64_at(image: &[u8], at: usize) -> u64 {
    u64::from(u32_at(image, at)) | u64::from(u32_at(image, at + 4)) << 32
}

/// The x87 component with its pointers: 64 bits wide each (`wide`, REX.W), or offset and selector.
fn put_x87_component(fpu: &FpuState, image: &mut [u8], wide: bool) {
    put_x87(fpu, image);
    put(image, 6, fpu.fop.to_le_bytes());
    put(image, 8, fpu.fip.to_le_bytes());
    put(image, 16, fpu.fdp.to_le_bytes());
    if !wide {
        put(image, 12, u32::from(fpu.fcs).to_le_bytes());
        put(image, 20, u32::from(fpu.fds).to_le_bytes());
    }
}

/// The same back. Control and status word get the form that the unit would give them.
fn get_x87_component(fpu: &mut FpuState, image: &[u8], wide: bool) {
    get_x87(fpu, image);
    fpu.fcw = fpu.fcw & 0x1f3f | 0x40;
    let pending = fpu.fsw & !fpu.fcw & 0x3f != 0;
    fpu.fsw = fpu.fsw & !0x8080 | if pending { 0x8080 } else { 0 };
    fpu.fop = u32_at(image, 4).to_le_bytes()[2..]
        .try_into()
        .map_or(0, u16::from_le_bytes)
        & 0x7ff;
    if wide {
        (fpu.fip, fpu.fcs) = (u64_at(image, 8), 0);
        (fpu.fdp, fpu.fds) = (u64_at(image, 16), 0);
    } else {
        (fpu.fip, fpu.fcs) = (u32_at(image, 8).into(), u32_at(image, 12) as u16);
        (fpu.fdp, fpu.fds) = (u32_at(image, 16).into(), u32_at(image, 20) as u16);
    }
}

/// XMM registers as far as the mode has them.
fn put_xmm(fpu: &FpuState, image: &mut [u8], count: usize) {
    for (place, ymm) in image[160..].chunks_exact_mut(16).zip(&fpu.ymm[..count]) {
        put(place, 0, ymm[0].to_le_bytes());
        put(place, 8, ymm[1].to_le_bytes());
    }
}

fn get_xmm(fpu: &mut FpuState, image: &[u8], count: usize) {
    for (place, ymm) in image[160..].chunks_exact(16).zip(&mut fpu.ymm[..count]) {
        (ymm[0], ymm[1]) = (u64_at(place, 0), u64_at(place, 8));
    }
}

fn put_mxcsr(fpu: &FpuState, image: &mut [u8]) {
    put(image, 24, fpu.mxcsr.to_le_bytes());
    put(image, 28, MXCSR_MASK.to_le_bytes());
}

impl Cpu {
    /// Vector registers that the mode has.
    fn vectors(&self) -> usize {
        if self.is64() { 16 } else { 8 }
    }
}

/// #NM with EM or TS set; #GP unless aligned to 16 bytes. What follows XMM is the software's.
fn fxsave<const WIDE: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    if cpu.fpu_gate.x87_nm {
        return nm(cpu);
    }
    let lin = cpu.operand_lin(d, 512, 16, true)?;
    cpu.sync_x87();
    let mut image = [0; LEGACY];
    let count = cpu.vectors();
    put_x87_component(&cpu.fpu, &mut image, WIDE);
    put_mxcsr(&cpu.fpu, &mut image);
    put_xmm(&cpu.fpu, &mut image, count);
    cpu.write_block(d.seg, lin, &image[..160 + count * 16])
}

fn fxrstor<const WIDE: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    if cpu.fpu_gate.x87_nm {
        return nm(cpu);
    }
    let lin = cpu.operand_lin(d, 512, 16, false)?;
    let mut image = [0; 512];
    cpu.read_block(d.seg, lin, &mut image)?;
    let mxcsr = u32_at(&image, 24);
    if mxcsr & !MXCSR_MASK != 0 {
        return cpu.gp(0);
    }
    cpu.sync_x87();
    let count = cpu.vectors();
    get_x87_component(&mut cpu.fpu, &image, WIDE);
    get_xmm(&mut cpu.fpu, &image, count);
    cpu.fpu.mxcsr = mxcsr;
    Ok(())
}

/// XSAVE and its variants.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Save {
    /// Everything asked for.
    All,
    /// What is in use.
    Opt,
    /// What is in use, compacted.
    Compact,
}

fn xsave<const WIDE: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    save(cpu, d, Save::All, WIDE)
}

fn xsaveopt<const WIDE: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    save(cpu, d, Save::Opt, WIDE)
}

fn xsavec<const WIDE: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    save(cpu, d, Save::Compact, WIDE)
}

/// The state components that the CPU model has.
fn supported(cpu: &Cpu) -> u64 {
    let has = |c: &&cpu_model::XsaveComponent| cpu.has(c.feature);
    XSAVE_COMPONENTS
        .iter()
        .filter(has)
        .fold(X87 | SSE, |mask, c| mask | 1 << c.index)
}

/// Offset of extended component `i` in an area of the given format.
fn offset(i: u32, layout: u64) -> usize {
    if layout & COMPACTED == 0 {
        return XSAVE_COMPONENTS
            .iter()
            .find(|c| c.index == i)
            .map_or(EXTENDED, |c| c.offset as usize);
    }
    let before = XSAVE_COMPONENTS
        .iter()
        .filter(|c| c.index < i && layout >> c.index & 1 != 0);
    EXTENDED + before.map(|c| c.size as usize).sum::<usize>()
}

impl Cpu {
    /// #UD and #NM of the XSAVE family.
    fn ask_xsave(&mut self) -> R {
        if self.cr4 & cr4::OSXSAVE == 0 {
            return self.ud();
        }
        if self.fpu_gate.vec_nm {
            return nm(self);
        }
        Ok(())
    }

    /// The requested-feature bitmap: EDX:EAX as far as XCR0 has it enabled.
    fn rfbm(&self) -> u64 {
        (self.gpr::<u32>(RAX) as u64 | (self.gpr::<u32>(RDX) as u64) << 32) & self.xcr0
    }

    /// Components not in their initial configuration. The x87 registers must be in `self.fpu`.
    fn xinuse(&self) -> u64 {
        let f = &*self.fpu;
        let pointers = (f.fop, f.fip, f.fcs, f.fdp, f.fds) != (0, 0, 0, 0, 0);
        let x87 = (f.fcw, f.fsw, f.ftw) != (0x37f, 0, 0) || pointers || f.st != [[0; 10]; 8];
        let sse = f.ymm.iter().any(|ymm| ymm[0] | ymm[1] != 0);
        let avx = f.ymm.iter().any(|ymm| ymm[2] | ymm[3] != 0);
        let bit = |used: bool, component: u64| if used { component } else { 0 };
        bit(x87, X87) | bit(sse, SSE) | bit(avx, AVX) | bit(self.pkru != 0, PKRU)
    }
}

fn save(cpu: &mut Cpu, d: &DInsn, how: Save, wide: bool) -> R {
    cpu.ask_xsave()?;
    let rfbm = cpu.rfbm();
    let lin = cpu.operand_lin(d, EXTENDED as u64, 64, true)?;
    cpu.sync_x87();
    let in_use = cpu.xinuse()
        | if how == Save::Compact && cpu.fpu.mxcsr != MXCSR_INIT {
            SSE
        } else {
            0
        };
    let layout = if how == Save::Compact { COMPACTED | rfbm } else { 0 };
    let saved = if how == Save::All { rfbm } else { rfbm & in_use };
    let mut image = [0; AREA];
    let (pieces, count) = fill(cpu, &mut image, saved, layout, wide);
    let pieces = &pieces[..count];
    let mxcsr = if how == Save::Compact {
        saved & SSE != 0
    } else {
        rfbm & (SSE | AVX) != 0
    };
    let header = if how == Save::Compact { 16 } else { 8 };
    // All that is written must be writable before anything is.
    let limit = pieces
        .iter()
        .map(|&(at, len)| at + len)
        .max()
        .unwrap_or(0)
        .max(EXTENDED);
    cpu.operand_lin(d, limit as u64, 64, true)?;
    cpu.probe_write(d.seg, lin.wrapping_add(HEADER as u64), 16)?;
    for &(at, len) in pieces.iter().chain(mxcsr.then_some(&(24, 8))) {
        cpu.probe_write(d.seg, lin.wrapping_add(at as u64), len as u64)?;
    }
    let bv = if how == Save::Compact {
        saved
    } else {
        let old = cpu.read_lin::<u64>(d.seg, lin.wrapping_add(HEADER as u64))?;
        old & !rfbm | in_use & rfbm
    };
    put(&mut image, HEADER, bv.to_le_bytes());
    put(&mut image, HEADER + 8, layout.to_le_bytes());
    put_mxcsr(&cpu.fpu, &mut image);
    for &(at, len) in pieces
        .iter()
        .chain(mxcsr.then_some(&(24, 8)))
        .chain([&(HEADER, header)])
    {
        cpu.write_block(d.seg, lin.wrapping_add(at as u64), &image[at..at + len])?;
    }
    Ok(())
}

/// Puts the components of `saved` into an image, and lists the pieces of it that are written: start and length.
fn fill(cpu: &Cpu, image: &mut [u8; AREA], saved: u64, layout: u64, wide: bool) -> ([(usize, usize); 5], usize) {
    let mut pieces = [(0, 0); 5];
    let mut count = 0;
    let mut piece = |at, len| {
        pieces[count] = (at, len);
        count += 1;
    };
    let vectors = cpu.vectors();
    if saved & X87 != 0 {
        put_x87_component(&cpu.fpu, image, wide);
        piece(0, 24);
        piece(32, 128);
    }
    if saved & SSE != 0 {
        put_xmm(&cpu.fpu, image, vectors);
        piece(160, vectors * 16);
    }
    if saved & AVX != 0 {
        let start = offset(2, layout);
        for (place, ymm) in image[start..].chunks_exact_mut(16).zip(&cpu.fpu.ymm[..vectors]) {
            put(place, 0, ymm[2].to_le_bytes());
            put(place, 8, ymm[3].to_le_bytes());
        }
        piece(start, vectors * 16);
    }
    if saved & PKRU != 0 {
        let start = offset(9, layout);
        put(image, start, u64::from(cpu.pkru).to_le_bytes());
        piece(start, 8);
    }
    (pieces, count)
}

fn xrstor<const WIDE: bool>(cpu: &mut Cpu, d: &DInsn) -> R {
    cpu.ask_xsave()?;
    let rfbm = cpu.rfbm();
    let lin = cpu.operand_lin(d, EXTENDED as u64, 64, false)?;
    let mut image = [0; AREA];
    cpu.read_block(d.seg, lin.wrapping_add(HEADER as u64), &mut image[HEADER..EXTENDED])?;
    let (bv, layout) = (u64_at(&image, HEADER), u64_at(&image, HEADER + 8));
    let compacted = layout & COMPACTED != 0;
    if !header_is_good(cpu, &image[HEADER..EXTENDED]) {
        return cpu.gp(0);
    }
    let loaded = rfbm & bv;
    let mxcsr = if compacted {
        loaded & SSE != 0
    } else {
        rfbm & (SSE | AVX) != 0
    };
    for (at, len) in pieces_to_read(cpu, loaded, layout, mxcsr)
        .into_iter()
        .filter(|&(_, len)| len != 0)
    {
        cpu.operand_lin(d, (at + len) as u64, 64, false)?;
        cpu.read_block(d.seg, lin.wrapping_add(at as u64), &mut image[at..at + len])?;
    }
    if mxcsr && u32_at(&image, 24) & !MXCSR_MASK != 0 {
        return cpu.gp(0);
    }
    restore(cpu, &image, rfbm, loaded, layout, WIDE);
    if mxcsr {
        cpu.fpu.mxcsr = u32_at(&image, 24);
    } else if compacted && rfbm & SSE != 0 {
        cpu.fpu.mxcsr = MXCSR_INIT;
    }
    Ok(())
}

/// SDM vol. 1 §13.8: what XRSTOR asks of the header.
fn header_is_good(cpu: &Cpu, header: &[u8]) -> bool {
    let (bv, layout) = (u64_at(header, 0), u64_at(header, 8));
    let zero = |from: usize, to: usize| header[from..to].iter().all(|&byte| byte == 0);
    if layout & COMPACTED == 0 {
        return bv & !cpu.xcr0 == 0 && zero(8, 24);
    }
    let components = layout & !COMPACTED;
    cpu.has(Feature::Xsavec) && components & !cpu.xcr0 == 0 && bv & !components == 0 && zero(16, 64)
}

fn pieces_to_read(cpu: &Cpu, loaded: u64, layout: u64, mxcsr: bool) -> [(usize, usize); 6] {
    let on = |component: u64, at: usize, len: usize| if loaded & component != 0 { (at, len) } else { (0, 0) };
    let vectors = cpu.vectors() * 16;
    [
        on(X87, 0, 24),
        on(X87, 32, 128),
        on(SSE, 160, vectors),
        on(AVX, offset(2, layout), vectors),
        on(PKRU, offset(9, layout), 8),
        if mxcsr { (24, 8) } else { (0, 0) },
    ]
}

/// Brings the components of `loaded` from the image, and the others of `rfbm` to their initial state.
fn restore(cpu: &mut Cpu, image: &[u8; AREA], rfbm: u64, loaded: u64, layout: u64, wide: bool) {
    let vectors = cpu.vectors();
    let on = |component: u64| loaded & component != 0;
    if rfbm & X87 != 0 {
        cpu.sync_x87();
        if on(X87) {
            get_x87_component(&mut cpu.fpu, image, wide);
        } else {
            let f = FpuState::default();
            let now = &mut *cpu.fpu;
            (now.fcw, now.fsw, now.ftw, now.st) = (f.fcw, f.fsw, f.ftw, f.st);
            (now.fop, now.fip, now.fcs, now.fdp, now.fds) = (0, 0, 0, 0, 0);
        }
    }
    if rfbm & SSE != 0 {
        // What is not loaded is zero in the image.
        get_xmm(&mut cpu.fpu, image, vectors);
    }
    if rfbm & AVX != 0 {
        let start = offset(2, layout);
        for (place, ymm) in image[start..].chunks_exact(16).zip(&mut cpu.fpu.ymm[..vectors]) {
            (ymm[2], ymm[3]) = if on(AVX) {
                (u64_at(place, 0), u64_at(place, 8))
            } else {
                (0, 0)
            };
        }
    }
    if rfbm & PKRU != 0 {
        let pkru = if on(PKRU) { u32_at(image, offset(9, layout)) } else { 0 };
        if pkru != cpu.pkru {
            cpu.pkru = pkru;
            cpu.tlb.flush_all();
        }
    }
}

fn xgetbv(cpu: &mut Cpu, _d: &DInsn) -> R {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    let value = match cpu.gpr::<u32>(RCX) {
        0 => cpu.xcr0,
        1 if cpu.has(Feature::Xgetbv1) => {
            cpu.sync_x87();
            let mxcsr = if cpu.fpu.mxcsr != MXCSR_INIT { SSE } else { 0 };
            cpu.xcr0 & (cpu.xinuse() | mxcsr)
        }
        _ => return cpu.gp(0),
    };
    cpu.set_gpr(RAX, value as u32);
    cpu.set_gpr(RDX, (value >> 32) as u32);
    Ok(())
}

fn xsetbv(cpu: &mut Cpu, _d: &DInsn) -> R {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return cpu.ud();
    }
    let value = u64::from(cpu.gpr::<u32>(RAX)) | u64::from(cpu.gpr::<u32>(RDX)) << 32;
    let wrong = value & X87 == 0 || value & !supported(cpu) != 0 || value & (SSE | AVX) == AVX;
    if cpu.cpl != 0 || cpu.gpr::<u32>(RCX) != 0 || wrong {
        return cpu.gp(0);
    }
    cpu.xcr0 = value;
    cpu.update_mode();
    Ok(())
}
