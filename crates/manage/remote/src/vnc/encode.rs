//! Rectangles of pixels as messages.
//!
//! Spec: RFC 6143 §7.7; rfbproto.rst "Tight Encoding".

use std::collections::HashMap;

use display::Rect;
use display::Surface;
use flate2::Compress;
use flate2::Compression;
use flate2::FlushCompress;
use rustc_hash::FxBuildHasher;

use super::pixel::PixelFormat;
use super::pixel::Translator;

mod hextile;
mod tight;
mod zrle;

#[cfg(test)]
pub(super) mod decode;

/// Numbers of encodings and pseudo-encodings.
pub(super) mod number {
    pub(crate) const RAW: i32 = 0;
    pub(crate) const COPY_RECT: i32 = 1;
    pub(crate) const HEXTILE: i32 = 5;
    pub(crate) const TIGHT: i32 = 7;
    pub(crate) const ZRLE: i32 = 16;
    pub(crate) const DESKTOP_SIZE: i32 = -223;
    pub(crate) const CURSOR: i32 = -239;
    pub(crate) const LEVEL_0: i32 = -256;
    pub(crate) const LEVEL_9: i32 = -247;
    pub(crate) const QEMU_EXTENDED_KEY: i32 = -258;
    pub(crate) const QEMU_LED: i32 = -261;
    pub(crate) const EXTENDED_DESKTOP_SIZE: i32 = -308;
}

/// Pixels of a rectangle at most, so that what is encoded at once stays small.
const BAND: u32 = 1 << 16;
/// Used where the client does not choose: most of the gain for little time.
const USUAL_LEVEL: u32 = 3;

/// How pixels are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Raw,
    Hextile,
    Zrle,
    Tight,
}

impl Encoding {
    /// The first of a client's encodings that packs pixels and that is known here.
    pub(super) fn best(wanted: &[i32]) -> Self {
        wanted
            .iter()
            .find_map(|encoding| match *encoding {
                number::RAW => Some(Self::Raw),
                number::HEXTILE => Some(Self::Hextile),
                number::ZRLE => Some(Self::Zrle),
                number::TIGHT => Some(Self::Tight),
                _ => None,
            })
            .unwrap_or(Self::Raw)
    }

    const fn number(self) -> i32 {
        match self {
            Self::Raw => number::RAW,
            Self::Hextile => number::HEXTILE,
            Self::Zrle => number::ZRLE,
            Self::Tight => number::TIGHT,
        }
    }

    /// Pieces that `rect` is sent as.
    pub(super) fn split(self, rect: &Rect) -> Vec<Rect> {
        let (width, height) = match self {
            // Small pieces have few colours more often.
            Self::Tight => (256, 128),
            // Whole rows of tiles.
            Self::Zrle => (rect.width.max(1), (BAND / rect.width.max(1)).max(64) & !63),
            Self::Raw | Self::Hextile => (rect.width.max(1), (BAND / rect.width.max(1)).max(16) & !15),
        };
        tiles(rect, width, height).collect()
    }
}

/// A rectangle cut into pieces of at most this size, row by row.
pub(super) fn tiles(rect: &Rect, width: u32, height: u32) -> impl Iterator<Item = Rect> {
    let rect = *rect;
    let columns = (rect.x..rect.x + rect.width).step_by(width as usize);
    (rect.y..rect.y + rect.height)
        .step_by(height as usize)
        .flat_map(move |y| {
            columns
                .clone()
                .map(move |x| Rect::new(x, y, width, height).intersect(&rect))
        })
}

/// A compressed stream of a connection.
struct Stream(Option<Compress>);

impl Stream {
    /// Appends `data` to `out`, up to its last bit.
    fn deflate(&mut self, data: &[u8], level: u32, out: &mut Vec<u8>) {
        let stream = self
            .0
            .get_or_insert_with(|| Compress::new(Compression::new(level), true));
        let mut rest = data;
        loop {
            out.reserve(rest.len() / 2 + 256);
            let before = stream.total_in();
            // Only a finished stream fails, and this one is never finished.
            let _ = stream.compress_vec(rest, out, FlushCompress::Sync);
            let taken = usize::try_from(stream.total_in() - before).unwrap_or(usize::MAX);
            rest = rest.get(taken..).unwrap_or_default();
            if rest.is_empty() && out.len() < out.capacity() {
                return;
            }
        }
    }
}

/// Makes a connection's rectangles. Compressed streams last as long as the connection.
pub(super) struct Encoder {
    format: PixelFormat,
    translator: Translator,
    level: u32,
    zrle: Stream,
    tight: [Stream; 3],
}

impl Encoder {
    pub(super) fn new() -> Self {
        Self {
            format: PixelFormat::OURS,
            translator: Translator::new(PixelFormat::OURS),
            level: USUAL_LEVEL,
            zrle: Stream(None),
            tight: [Stream(None), Stream(None), Stream(None)],
        }
    }

    /// Pixels from now on are of this format. The message with which it begins, if it needs one.
    pub(super) fn set_format(&mut self, format: PixelFormat) -> Option<Vec<u8>> {
        if format == self.format {
            return None;
        }
        self.format = format;
        self.translator = Translator::new(format);
        self.translator.colour_map()
    }

    /// Level of compression from 0 to 9, for streams that have not begun.
    pub(super) fn set_level(&mut self, level: Option<u32>) {
        self.level = level.unwrap_or(USUAL_LEVEL).clamp(1, 9);
    }

    /// Appends a rectangle whose pixels are `part`.
    pub(super) fn rect(&mut self, encoding: Encoding, rect: &Rect, part: &Surface, out: &mut Vec<u8>) {
        head(rect, encoding.number(), out);
        match encoding {
            Encoding::Raw => self.translator.pixels(part.pixels(), out),
            Encoding::Hextile => hextile::encode(&self.translator, part, out),
            Encoding::Zrle => {
                let data = zrle::encode(&self.translator, part);
                let start = out.len();
                out.extend([0; 4]);
                self.zrle.deflate(&data, self.level, out);
                let len = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
                if let Some(field) = out.get_mut(start..start + 4) {
                    field.copy_from_slice(&len.to_be_bytes());
                }
            }
            Encoding::Tight => tight::encode(&self.translator, &mut self.tight, self.level, part, out),
        }
    }

    /// Appends the picture of a pointer; none hides the client's own.
    pub(super) fn cursor(&self, cursor: Option<&display::Cursor>, out: &mut Vec<u8>) {
        let Some(cursor) = cursor else {
            return head(&Rect::default(), number::CURSOR, out);
        };
        let (x, y) = cursor.hot;
        let picture = &cursor.picture;
        let (width, height) = (picture.width(), picture.height());
        head(&Rect::new(x, y, width, height), number::CURSOR, out);
        self.translator.pixels(picture.pixels(), out);
        for row in cursor.mask.chunks(width.max(1) as usize).take(height as usize) {
            bits(row.iter().copied(), out);
        }
    }
}

/// Head of a rectangle.
pub(super) fn head(rect: &Rect, encoding: i32, out: &mut Vec<u8>) {
    for field in [rect.x, rect.y, rect.width, rect.height] {
        // No screen is larger.
        out.extend(u16::try_from(field).unwrap_or(u16::MAX).to_be_bytes());
    }
    out.extend(encoding.to_be_bytes());
}

/// A row of bits from the left, with the last byte filled up.
fn bits(row: impl IntoIterator<Item = bool>, out: &mut Vec<u8>) {
    pack(row.into_iter().map(u8::from), 1, out);
}

/// A row of numbers of `width` bits (1, 2 or 4) from the left, with the last byte filled up.
fn pack(row: impl IntoIterator<Item = u8>, width: u32, out: &mut Vec<u8>) {
    let (mut byte, mut free) = (0u8, 8);
    for value in row {
        free -= width;
        byte |= value << free;
        if free == 0 {
            out.push(byte);
            (byte, free) = (0, 8);
        }
    }
    if free < 8 {
        out.push(byte);
    }
}

/// The colours of a picture in the order in which they come, with their numbers.
struct Palette {
    colours: Vec<u32>,
    numbers: HashMap<u32, u8, FxBuildHasher>,
}

impl Palette {
    /// None where there are more than `most`, which is at most 256.
    fn of<'a>(pixels: impl IntoIterator<Item = &'a u32>, most: usize) -> Option<Self> {
        let mut palette = Self {
            colours: Vec::new(),
            numbers: HashMap::default(),
        };
        let mut last = None;
        for pixel in pixels {
            if last == Some(pixel) {
                continue;
            }
            last = Some(pixel);
            if palette.numbers.contains_key(pixel) {
                continue;
            }
            if palette.colours.len() >= most {
                return None;
            }
            let number = u8::try_from(palette.colours.len()).ok()?;
            palette.numbers.insert(*pixel, number);
            palette.colours.push(*pixel);
        }
        Some(palette)
    }

    fn len(&self) -> usize {
        self.colours.len()
    }

    fn number(&self, pixel: u32) -> u8 {
        self.numbers.get(&pixel).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
