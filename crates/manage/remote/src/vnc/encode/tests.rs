//! Every encoding in every format, decoded again.

use super::decode::Decoder;
use super::decode::Source;
use super::*;

const ENCODINGS: [Encoding; 4] = [Encoding::Raw, Encoding::Hextile, Encoding::Zrle, Encoding::Tight];

fn formats() -> Vec<PixelFormat> {
    let format = |bits, depth, big_endian, max, shift| PixelFormat {
        bits,
        depth,
        big_endian,
        true_colour: true,
        max,
        shift,
    };
    vec![
        PixelFormat::OURS,
        format(32, 24, true, [255; 3], [0, 8, 16]),
        format(32, 24, false, [255; 3], [24, 16, 8]),
        format(32, 30, false, [1023; 3], [20, 10, 0]),
        format(16, 16, false, [31, 63, 31], [11, 5, 0]),
        format(16, 15, true, [31; 3], [10, 5, 0]),
        format(8, 8, false, [7, 7, 3], [0, 3, 6]),
    ]
}

/// Pictures of few and many colours, with and without runs, of sizes that are no multiples of tiles.
fn pictures() -> Vec<Surface> {
    let mut random = 1u32;
    let mut next = move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        random >> 8
    };
    let mut all = Vec::new();
    for (width, height) in [(1, 1), (17, 5), (130, 67), (2, 70)] {
        for colours in [1, 2, 3, 17, 120, 200, 1 << 24] {
            for run in [1, 40] {
                let mut surface = Surface::new(width, height);
                let mut left = 0;
                let mut colour = 0;
                for pixel in surface.pixels_mut() {
                    if left == 0 {
                        left = next() % run + 1;
                        colour = (next() % colours).wrapping_mul(0x3_0507) & 0xFF_FFFF;
                    }
                    left -= 1;
                    *pixel = colour;
                }
                all.push(surface);
            }
        }
    }
    all
}

/// Colours as the format can tell them.
fn rounded(decoder: &mut Decoder, picture: &Surface) -> Surface {
    let mut bytes = Vec::new();
    Translator::new(decoder.format).pixels(picture.pixels(), &mut bytes);
    let mut screen = Surface::new(picture.width(), picture.height());
    decoder.rect(&mut bytes.as_slice(), &picture.bounds(), number::RAW, &mut screen);
    screen
}

#[test]
fn every_picture_comes_back_in_every_encoding_and_format() {
    let pictures = pictures();
    for encoding in ENCODINGS {
        for format in formats() {
            let mut encoder = Encoder::new();
            assert_eq!(encoder.set_format(format), None);
            let mut decoder = Decoder::new(format);
            for picture in &pictures {
                let mut screen = Surface::new(picture.width(), picture.height());
                for rect in encoding.split(&picture.bounds()) {
                    let mut out = Vec::new();
                    encoder.rect(encoding, &rect, &picture.copy_out(&rect), &mut out);
                    let mut rest = out.as_slice();
                    let [x, y, width, height] = [(); 4].map(|()| u32::from(rest.u16()));
                    assert_eq!(Rect::new(x, y, width, height), rect);
                    let number = rest.u32().cast_signed();
                    decoder.rect(&mut rest, &rect, number, &mut screen);
                    assert!(rest.is_empty());
                }
                let wanted = rounded(&mut decoder, picture);
                assert!(
                    screen == wanted,
                    "{encoding:?} {format:?} {}x{}",
                    picture.width(),
                    picture.height()
                );
            }
        }
    }
}

#[test]
fn plain_pictures_become_small() {
    let mut surface = Surface::new(640, 480);
    surface.pixels_mut().fill(0x12_3456);
    for (encoding, most) in [(Encoding::Hextile, 2000), (Encoding::Zrle, 400), (Encoding::Tight, 300)] {
        let mut out = Vec::new();
        let mut encoder = Encoder::new();
        for rect in encoding.split(&surface.bounds()) {
            encoder.rect(encoding, &rect, &surface.copy_out(&rect), &mut out);
        }
        assert!(out.len() < most, "{encoding:?}: {} bytes", out.len());
    }
}

#[test]
fn cursor_has_pixels_and_a_mask() {
    let mut picture = Surface::new(9, 2);
    picture.pixels_mut().fill(0xFF_FFFF);
    let cursor = display::Cursor {
        mask: (0..18).map(|at| at % 9 != 0).collect(),
        picture,
        hot: (4, 1),
    };
    let mut out = Vec::new();
    Encoder::new().cursor(Some(&cursor), &mut out);
    assert_eq!(out[..12], [0, 4, 0, 1, 0, 9, 0, 2, 255, 255, 255, 17]);
    assert_eq!(out.len(), 12 + 9 * 2 * 4 + 4);
    assert_eq!(out[out.len() - 4..], [0x7F, 0x80, 0x7F, 0x80]);
    assert_eq!(Encoding::best(&[-239, 1, 7, 16]), Encoding::Tight);
    assert_eq!(Encoding::best(&[99]), Encoding::Raw);
}
