//! EDID: what the monitor says of itself. Drivers read it from the register window and offer its resolution first.
//!
//! Spec: VESA Enhanced EDID Standard (EDID 1.4); VESA CVT 1.2 (reduced blanking).

use crate::lanes;

/// Pixels that reduced blanking adds to each line, and their parts.
const H_BLANK: u64 = 160;
const H_FRONT: u64 = 48;
const H_SYNC: u64 = 32;
/// Lines that it adds to each frame.
const V_FRONT: u64 = 3;
const V_SYNC: u64 = 6;
const V_BLANK_NS: u64 = 460_000;
const FRAME_NS: u64 = 16_666_667;
/// Dots per inch that the size in millimetres is made up from.
const DPI: u64 = 100;

/// The block of 128 bytes of a monitor that likes `width` by `height` pixels at 60 Hz best.
pub(super) fn block(width: u16, height: u16) -> [u8; 128] {
    let (width, height) = (u64::from(width), u64::from(height));
    let mut block = [0; 128];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in block.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, &[0, 255, 255, 255, 255, 255, 255, 0]);
    // Manufacturer OXB, product, serial, week, year 2024, version 1.4.
    let maker: u16 = (b'O' as u16 & 31) << 10 | (b'X' as u16 & 31) << 5 | (b'B' as u16 & 31);
    put(8, &maker.to_be_bytes());
    put(10, &[0x11, 0x11, 1, 0, 0, 0, 1, 34, 1, 4]);
    // Digital, 8 bits, centimetres, gamma 2.2, sRGB, preferred timing.
    let cm = |pixels: u64| lanes::byte((pixels * 254 / DPI / 100).min(255));
    put(20, &[0xA5, cm(width), cm(height), 120, 0x06]);
    // sRGB primaries and white.
    put(25, &[0xEE, 0x91, 0xA3, 0x54, 0x4C, 0x99, 0x26, 0x0F, 0x50, 0x54]);
    // Established: 640x480, 800x600, 1024x768 at 60 Hz; no standard timings.
    put(35, &[0x21, 0x08, 0]);
    put(38, &[1; 16]);
    put(54, &timing(width, height));
    put(
        72,
        &[0, 0, 0, 0xFD, 0, 50, 125, 30, 160, 40, 0, 10, 32, 32, 32, 32, 32, 32],
    );
    put(90, b"\0\0\0\xFC\0Oxbow\n       ");
    put(108, &[0, 0, 0, 0x10]);
    let sum = block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(last) = block.last_mut() {
        *last = 0u8.wrapping_sub(sum);
    }
    block
}

/// A detailed timing descriptor (EDID 1.4 §3.10.2) with reduced blanking (CVT 1.2 §3.4).
fn timing(width: u64, height: u64) -> [u8; 18] {
    let line_ns = (FRAME_NS - V_BLANK_NS) / height.max(1);
    let v_blank = (V_BLANK_NS / line_ns.max(1) + 1).max(V_FRONT + V_SYNC + 6);
    let (h_total, v_total) = (width + H_BLANK, height + v_blank);
    let clock = h_total * v_total * 60 / 10_000;
    let [clock_low, clock_high, ..] = clock.to_le_bytes();
    let (b, nibbles) = (lanes::byte, |high: u64, low: u64| {
        lanes::byte((high >> 8 & 15) << 4 | low >> 8 & 15)
    });
    let (mm_w, mm_h) = (width * 254 / DPI / 10, height * 254 / DPI / 10);
    [
        clock_low,
        clock_high,
        b(width),
        b(H_BLANK),
        nibbles(width, H_BLANK),
        b(height),
        b(v_blank),
        nibbles(height, v_blank),
        b(H_FRONT),
        b(H_SYNC),
        b(V_FRONT << 4 | V_SYNC),
        0,
        b(mm_w),
        b(mm_h),
        nibbles(mm_w, mm_h),
        0,
        0,
        // Digital separate sync, horizontal positive.
        0x1A,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sums_to_zero_and_tells_its_resolution() {
        for (width, height) in [(640, 480), (1280, 800), (2560, 1600)] {
            let block = block(width, height);
            assert_eq!(block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            let dtd = &block[54..72];
            assert_eq!(u16::from(dtd[2]) | u16::from(dtd[4] & 0xF0) << 4, width);
            assert_eq!(u16::from(dtd[5]) | u16::from(dtd[7] & 0xF0) << 4, height);
            let total = |low: u8, high: u8, blank: u8, more: u8| {
                u64::from(low) + (u64::from(high >> 4) << 8) + u64::from(blank) + (u64::from(more & 15) << 8)
            };
            let dots = total(dtd[2], dtd[4], dtd[3], dtd[4]) * total(dtd[5], dtd[7], dtd[6], dtd[7]);
            let hz = u64::from(u16::from_le_bytes([dtd[0], dtd[1]])) * 10_000 / dots;
            assert!((59..=60).contains(&hz), "{hz}");
        }
    }
}
