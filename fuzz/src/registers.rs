//! Contents of a processor's registers, chosen by bytes of the input.

use cpu_model::CpuState;

use crate::machine;

/// Values of general registers: numbers at edges, and addresses of all that the machine has.
#[rustfmt::skip]
const VALUES: [u64; 16] = [
    0, 1, u64::MAX, 0x7fff_ffff, 0x8000_0000, 0x7fff_ffff_ffff_ffff, 0x8000_0000_0000_0000, 0xc000,
    0xcff8, 0x1_0ffc, 0x3000, 0x1000, machine::RAM - 8, 0xfee0_0000, 0x0000_7fff_ffff_fff8, 0xffff_8000_0000_0000,
];

/// Fills general registers from RAX on, a byte each: a value of a table and an offset.
pub(crate) fn general(bytes: &[u8], state: &mut CpuState) {
    for (register, byte) in (0usize..).zip(bytes) {
        // The stack stays where it is unless the input wants another.
        if *byte != 0 || register != 4 {
            state.gpr[register] = VALUES[usize::from(byte & 15)].wrapping_add(u64::from(byte >> 4));
        }
    }
}

/// Fills the units: exceptions unmasked (bits 0, 1), rounding (bits 2, 3), vector registers (bit 4), x87 registers (bit 5).
pub(crate) fn floating_point(byte: u8, state: &mut CpuState) {
    let fpu = &mut state.fpu;
    let round = u16::from(byte >> 2 & 3);
    fpu.mxcsr = if byte & 1 == 0 { 0x1f80 } else { 0 } | u32::from(round) << 13;
    fpu.fcw = if byte & 2 == 0 { 0x37f } else { 0x340 } | round << 10;
    if byte & 0x10 != 0 {
        for (index, lanes) in (0u64..).zip(&mut fpu.ymm) {
            *lanes = [
                0x3ff0_0000_0000_0000 + index,
                0x7ff8_0000_7f80_0001 << index,
                index,
                u64::MAX - index,
            ];
        }
    }
    if byte & 0x20 != 0 {
        fpu.ftw = 0xff;
        for (index, register) in (0u8..).zip(&mut fpu.st) {
            *register = [
                index,
                0,
                0,
                0,
                0,
                0,
                0,
                0x80 | index << 4,
                0xff - (index & 3),
                0x3f | index << 6,
            ];
        }
    }
}
