//! Pixel formats: the framebuffer's colours as a client wants them.
//!
//! Spec: RFC 6143 §7.4, §7.5.1.

use super::message::ProtocolError;

/// What a pixel looks like on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    /// 8, 16 or 32.
    pub bits: u8,
    /// Bits that count.
    pub depth: u8,
    /// The most significant byte comes first.
    pub big_endian: bool,
    /// Pixels are colours; otherwise they are numbers of a colour map.
    pub true_colour: bool,
    /// Largest values of red, green and blue.
    pub max: [u16; 3],
    /// Where red, green and blue begin.
    pub shift: [u8; 3],
}

impl PixelFormat {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// What the server offers: `0x00RRGGBB`, low byte first.
    pub const OURS: Self = Self {
        bits: 32,
        depth: 24,
        big_endian: false,
        true_colour: true,
        max: [255; 3],
        shift: [16, 8, 0],
    };

    /// Eight bits for clients with colour maps: three red, three green, two blue from the top.
    const MAPPED: Self = Self {
        bits: 8,
        depth: 8,
        big_endian: false,
        true_colour: false,
        max: [7, 7, 3],
        shift: [5, 2, 0],
    };

    /// From its bytes.
    ///
    /// # Errors
    /// [`ProtocolError::PixelFormat`] where there are no such pixels.
    pub fn parse(bytes: &[u8; Self::LEN]) -> Result<Self, ProtocolError> {
        let [
            bits,
            depth,
            big,
            colour,
            r1,
            r0,
            g1,
            g0,
            b1,
            b0,
            red,
            green,
            blue,
            _,
            _,
            _,
        ] = *bytes;
        if !matches!(bits, 8 | 16 | 32) {
            return Err(ProtocolError::PixelFormat);
        }
        if colour == 0 {
            return if bits == 8 {
                Ok(Self::MAPPED)
            } else {
                Err(ProtocolError::PixelFormat)
            };
        }
        let max = [[r1, r0], [g1, g0], [b1, b0]].map(u16::from_be_bytes);
        let shift = [red, green, blue];
        let format = Self {
            bits,
            depth,
            big_endian: big != 0,
            true_colour: true,
            max,
            shift,
        };
        let sound = max.iter().zip(shift).all(|(max, shift)| {
            let width = max.count_ones();
            // All ones from the lowest bit on, within the pixel.
            u32::from(*max).wrapping_add(1).is_power_of_two() && u32::from(shift) + width <= u32::from(bits)
        });
        if sound {
            Ok(format)
        } else {
            Err(ProtocolError::PixelFormat)
        }
    }

    /// As its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [[r1, r0], [g1, g0], [b1, b0]] = self.max.map(u16::to_be_bytes);
        let [red, green, blue] = self.shift;
        let (big, colour) = (u8::from(self.big_endian), u8::from(self.true_colour));
        [
            self.bits, self.depth, big, colour, r1, r0, g1, g0, b1, b0, red, green, blue, 0, 0, 0,
        ]
    }
}

/// Which bytes of a pixel are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    One,
    Two,
    Four,
    /// The three low ones, which hold all colours.
    ThreeLow,
    /// The three high ones.
    ThreeHigh,
    /// Red, green, blue, whatever the format.
    Rgb,
}

/// Makes pixels of a format.
pub(super) struct Translator {
    format: PixelFormat,
    tables: [Vec<u32>; 3],
    /// As many bytes as the format says.
    whole: Bytes,
    /// CPIXEL of ZRLE.
    compressed: Bytes,
    /// TPIXEL of Tight.
    tight: Bytes,
}

impl Translator {
    pub(super) fn new(format: PixelFormat) -> Self {
        let [red, green, blue] = format.max;
        let [red_at, green_at, blue_at] = format.shift;
        let table = |max: u16, shift: u8| -> Vec<u32> {
            let scaled = |value: u32| (value * u32::from(max) + 127) / 255;
            (0..=255).map(|value| scaled(value) << shift).collect()
        };
        let whole = match format.bits {
            8 => Bytes::One,
            16 => Bytes::Two,
            _ => Bytes::Four,
        };
        let tables = [table(red, red_at), table(green, green_at), table(blue, blue_at)];
        let used = tables
            .iter()
            .filter_map(|table| table.last())
            .fold(0, |all, top| all | top);
        let short = format.bits == 32 && format.depth <= 24;
        let compressed = match used {
            _ if !short => whole,
            0..=0xFF_FFFF => Bytes::ThreeLow,
            used if used & 0xFF == 0 => Bytes::ThreeHigh,
            _ => whole,
        };
        let tight = if format.bits == 32 && format.depth == 24 && format.max == [255; 3] {
            Bytes::Rgb
        } else {
            whole
        };
        Self {
            format,
            tables,
            whole,
            compressed,
            tight,
        }
    }

    /// Bytes of a pixel.
    pub(super) fn size(&self) -> usize {
        usize::from(self.format.bits / 8)
    }

    fn value(&self, rgb: u32) -> u32 {
        let [_, red, green, blue] = rgb.to_be_bytes();
        self.tables
            .iter()
            .zip([red, green, blue])
            .filter_map(|(table, value)| table.get(usize::from(value)))
            .fold(0, |pixel, part| pixel | part)
    }

    fn put(&self, rgb: u32, bytes: Bytes, out: &mut Vec<u8>) {
        if bytes == Bytes::Rgb {
            let [_, red, green, blue] = rgb.to_be_bytes();
            return out.extend([red, green, blue]);
        }
        let [a, b, c, d] = self.value(rgb).to_le_bytes();
        let big = self.format.big_endian;
        match bytes {
            Bytes::One => out.push(a),
            Bytes::Two => out.extend(if big { [b, a] } else { [a, b] }),
            Bytes::ThreeLow => out.extend(if big { [c, b, a] } else { [a, b, c] }),
            Bytes::ThreeHigh => out.extend(if big { [d, c, b] } else { [b, c, d] }),
            Bytes::Four | Bytes::Rgb => out.extend(if big { [d, c, b, a] } else { [a, b, c, d] }),
        }
    }

    /// A pixel as it is.
    pub(super) fn pixel(&self, rgb: u32, out: &mut Vec<u8>) {
        self.put(rgb, self.whole, out);
    }

    /// Pixels as they are.
    pub(super) fn pixels(&self, row: &[u32], out: &mut Vec<u8>) {
        if self.format == PixelFormat::OURS {
            return out.extend(row.iter().flat_map(|pixel| pixel.to_le_bytes()));
        }
        row.iter().for_each(|pixel| self.pixel(*pixel, out));
    }

    /// A pixel as ZRLE wants it.
    pub(super) fn cpixel(&self, rgb: u32, out: &mut Vec<u8>) {
        self.put(rgb, self.compressed, out);
    }

    /// A pixel as Tight wants it.
    pub(super) fn tpixel(&self, rgb: u32, out: &mut Vec<u8>) {
        self.put(rgb, self.tight, out);
    }

    /// The message that tells a client the colours of its map; none where pixels are colours.
    pub(super) fn colour_map(&self) -> Option<Vec<u8>> {
        if self.format.true_colour {
            return None;
        }
        let mut message = vec![1, 0, 0, 0, 1, 0];
        for pixel in 0..=255u16 {
            for (max, shift) in self.format.max.iter().zip(self.format.shift) {
                let part = u32::from(pixel >> shift & max) * 0xFFFF / u32::from(*max).max(1);
                message.extend(u16::try_from(part).unwrap_or(u16::MAX).to_be_bytes());
            }
        }
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits: u8, big_endian: bool, max: [u16; 3], shift: [u8; 3]) -> PixelFormat {
        PixelFormat {
            bits,
            depth: if bits == 32 { 24 } else { bits },
            big_endian,
            true_colour: true,
            max,
            shift,
        }
    }

    #[test]
    fn formats_that_overlap_their_pixel_are_refused() {
        for good in [
            PixelFormat::OURS,
            format(16, true, [31, 63, 31], [11, 5, 0]),
            format(8, false, [7, 7, 3], [0, 3, 6]),
            format(32, true, [1023; 3], [20, 10, 0]),
        ] {
            assert_eq!(PixelFormat::parse(&good.to_bytes()), Ok(good));
        }
        for bad in [
            format(24, false, [255; 3], [16, 8, 0]),
            format(16, false, [255; 3], [16, 8, 0]),
            format(32, false, [254, 255, 255], [16, 8, 0]),
            format(32, false, [255; 3], [255, 8, 0]),
        ] {
            assert!(PixelFormat::parse(&bad.to_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn pixels_are_shifted_scaled_and_turned() {
        let pixel = |format, rgb| {
            let mut out = Vec::new();
            Translator::new(format).pixel(rgb, &mut out);
            out
        };
        assert_eq!(pixel(PixelFormat::OURS, 0x12_3456), [0x56, 0x34, 0x12, 0]);
        let rgb565 = format(16, false, [31, 63, 31], [11, 5, 0]);
        assert_eq!(pixel(rgb565, 0xFF_0000), [0x00, 0xF8]);
        assert_eq!(
            pixel(
                PixelFormat {
                    big_endian: true,
                    ..rgb565
                },
                0xFF_0000
            ),
            [0xF8, 0x00]
        );
        assert_eq!(pixel(format(8, false, [7, 7, 3], [0, 3, 6]), 0xFF_FFFF), [0xFF]);
    }

    #[test]
    fn short_pixels_leave_out_the_byte_without_colours() {
        let pixel = |shift, big| {
            let translator = Translator::new(format(32, big, [255; 3], shift));
            let mut out = Vec::new();
            translator.cpixel(0x12_3456, &mut out);
            out.push(0);
            translator.tpixel(0x12_3456, &mut out);
            out
        };
        assert_eq!(pixel([16, 8, 0], false), [0x56, 0x34, 0x12, 0, 0x12, 0x34, 0x56]);
        assert_eq!(pixel([24, 16, 8], false), [0x56, 0x34, 0x12, 0, 0x12, 0x34, 0x56]);
        assert_eq!(pixel([0, 8, 16], true), [0x56, 0x34, 0x12, 0, 0x12, 0x34, 0x56]);
        assert_eq!(pixel([16, 8, 0], true), [0x12, 0x34, 0x56, 0, 0x12, 0x34, 0x56]);
    }

    #[test]
    fn clients_with_colour_maps_are_told_the_colours() {
        let mapped = PixelFormat::parse(
            &PixelFormat {
                true_colour: false,
                ..PixelFormat::MAPPED
            }
            .to_bytes(),
        )
        .unwrap();
        let message = Translator::new(mapped).colour_map().unwrap();
        assert_eq!(message.len(), 6 + 256 * 6);
        assert_eq!(message[message.len() - 6..], [0xFF; 6]);
        assert_eq!(Translator::new(PixelFormat::OURS).colour_map(), None);
    }
}
