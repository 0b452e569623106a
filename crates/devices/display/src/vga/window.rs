//! The path from the host's window A0000h-BFFFFh to the planes: write modes, read modes, latches, chaining.
//!
//! The planes lie interleaved: byte `4 n + p` of video memory is byte `n` of plane `p`. With chain 4, address `n` is byte `n`
//! of video memory, so that 256-colour modes are linear.
//!
//! DEVIATION: a VGA of 1987 uses every fourth byte of each plane with chain 4; later ones, and so this one, pack them.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990), "Video Subsystem", "Graphics Controller".

use guest_memory::MemoryRegion;

use super::regs::GraphicsMisc;
use super::regs::Regs;

/// Bytes of a plane without extensions.
const PLANE: u32 = 0x1_0000;

/// Where in the planes an address lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Byte within each plane.
    pub(super) offset: u32,
    /// Planes that the address itself chooses, a bit each.
    pub(super) planes: u8,
    /// The plane that a read takes, when the address chooses it.
    pub(super) read_plane: Option<u8>,
}

/// Where address `A0000h + at` lies; none outside of the mapped part. `bank` is in units of 64 KiB.
pub(super) fn place(regs: &Regs, at: u32, bank: u32) -> Option<Place> {
    let misc = regs.graphics_misc();
    let within = within_map(misc, at)?;
    let address = if misc.map() < 2 {
        within.wrapping_add(bank << 16)
    } else {
        within
    };
    let mode = regs.memory_mode();
    if mode.chain4() {
        let plane = plane_of(address & 3);
        return Some(Place {
            offset: address >> 2,
            planes: 1 << plane,
            read_plane: Some(plane),
        });
    }
    let odd = address & 1 != 0;
    let offset = match misc.chain_odd_even() {
        // In the window of 128 KiB, address bit 16 takes the place of bit 0.
        true => address & !1 & !PLANE | within >> 16 & 1,
        false => address,
    };
    let planes = match (mode.sequential(), odd) {
        (true, _) => 0x0F,
        (false, false) => 0x05,
        (false, true) => 0x0A,
    };
    let read_plane = regs.graphics_mode().odd_even().then(|| regs.gfx[4] & 2 | u8::from(odd));
    Some(Place {
        offset,
        planes,
        read_plane,
    })
}

fn within_map(misc: GraphicsMisc, at: u32) -> Option<u32> {
    let (start, len) = match misc.map() {
        0 => (0, 0x2_0000),
        1 => (0, 0x1_0000),
        2 => (0x1_0000, 0x8000),
        _ => (0x1_8000, 0x8000),
    };
    at.checked_sub(start).filter(|within| *within < len)
}

fn plane_of(low: u32) -> u8 {
    match low {
        0 => 0,
        1 => 1,
        2 => 2,
        _ => 3,
    }
}

/// The four planes at one place, plane 0 in the low byte.
pub(super) fn load(vram: &MemoryRegion, offset: u32) -> u32 {
    let mut bytes = [0; 4];
    // An address beyond video memory reads as nothing.
    let _ = vram.fetch(u64::from(offset) * 4, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// Writes the planes of `planes` at one place, and no others: another processor may be at those.
pub(super) fn store(vram: &MemoryRegion, offset: u32, planes: u8, data: u32) {
    let at = u64::from(offset) * 4;
    let bytes = data.to_le_bytes();
    if planes == 0x0F {
        let _ = vram.load(at, &bytes);
        return;
    }
    for (plane, byte) in (0u32..).zip(bytes) {
        if planes >> plane & 1 != 0 {
            let _ = vram.load(at + u64::from(plane), &[byte]);
        }
    }
}

/// A bit for each plane as a byte for each plane.
pub(super) fn expand(planes: u8) -> u32 {
    let bit = |plane: u8| if planes >> plane & 1 != 0 { 0xFF } else { 0 };
    u32::from_le_bytes([bit(0), bit(1), bit(2), bit(3)])
}

/// The same byte for each plane.
fn spread(value: u8) -> u32 {
    u32::from_le_bytes([value; 4])
}

/// What the host reads, from latches that have just been loaded.
pub(super) fn read_value(regs: &Regs, latches: u32, read_plane: Option<u8>) -> u8 {
    if regs.graphics_mode().compare() && !regs.memory_mode().chain4() {
        let differs = (latches ^ expand(regs.gfx[2])) & expand(regs.gfx[7]);
        let [a, b, c, d] = differs.to_le_bytes();
        return !(a | b | c | d);
    }
    let plane = read_plane.unwrap_or(regs.gfx[4] & 3);
    latches.to_le_bytes().get(usize::from(plane)).copied().unwrap_or(0)
}

/// What a byte from the host makes of the latches.
pub(super) fn write_value(regs: &Regs, latches: u32, value: u8) -> u32 {
    let rotate = regs.rotate();
    let rotated = value.rotate_right(rotate.count().into());
    let mut mask = spread(regs.gfx[8]);
    let set_reset = expand(regs.gfx[0]);
    let data = match regs.graphics_mode().write_mode() {
        0 => {
            let enabled = expand(regs.gfx[1]);
            spread(rotated) & !enabled | set_reset & enabled
        }
        1 => return latches,
        2 => expand(value),
        _ => {
            mask &= spread(rotated);
            set_reset
        }
    };
    let combined = match rotate.function() {
        0 => data,
        1 => data & latches,
        2 => data | latches,
        _ => data ^ latches,
    };
    combined & mask | latches & !mask
}
