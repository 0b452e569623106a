//! A client's side of the encodings, for tests: written from the specification, without a look at the encoders.

use display::Rect;
use display::Surface;
use flate2::Decompress;
use flate2::FlushDecompress;

use super::number;
use crate::vnc::pixel::PixelFormat;

/// Takes bytes of a stream, which a test provides.
pub(crate) trait Source {
    fn octets(&mut self, len: usize) -> Vec<u8>;

    fn u8(&mut self) -> u8 {
        self.octets(1)[0]
    }
    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.octets(2).try_into().unwrap())
    }
    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.octets(4).try_into().unwrap())
    }
}

impl Source for &[u8] {
    fn octets(&mut self, len: usize) -> Vec<u8> {
        let (taken, rest) = self.split_at(len);
        *self = rest;
        taken.to_vec()
    }
}

pub(crate) struct Decoder {
    pub(crate) format: PixelFormat,
    zrle: Decompress,
    tight: [Decompress; 4],
}

fn inflate(stream: &mut Decompress, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = data;
    loop {
        out.reserve(1 << 16);
        let before = stream.total_in();
        stream.decompress_vec(rest, &mut out, FlushDecompress::Sync).unwrap();
        rest = &rest[(stream.total_in() - before) as usize..];
        if rest.is_empty() && out.len() < out.capacity() {
            return out;
        }
    }
}

impl Decoder {
    pub(crate) fn new(format: PixelFormat) -> Self {
        Self {
            format,
            zrle: Decompress::new(true),
            tight: [(); 4].map(|()| Decompress::new(true)),
        }
    }

    fn colour(&self, value: u32) -> u32 {
        let part = |i: usize| {
            let max = u32::from(self.format.max[i]);
            ((value >> self.format.shift[i] & max) * 255 + max / 2) / max
        };
        part(0) << 16 | part(1) << 8 | part(2)
    }

    fn number(&self, bytes: &[u8]) -> u32 {
        let fold = |value: u32, byte: &u8| value << 8 | u32::from(*byte);
        if self.format.big_endian {
            bytes.iter().fold(0, fold)
        } else {
            bytes.iter().rev().fold(0, fold)
        }
    }

    fn pixel(&self, source: &mut impl Source) -> u32 {
        let bytes = source.octets(usize::from(self.format.bits / 8));
        self.colour(self.number(&bytes))
    }

    fn used(&self) -> u32 {
        (0..3)
            .map(|i| u32::from(self.format.max[i]) << self.format.shift[i])
            .sum()
    }

    fn cpixel(&self, source: &mut impl Source) -> u32 {
        if self.format.bits != 32 || self.format.depth > 24 {
            return self.pixel(source);
        }
        if self.used() <= 0xFF_FFFF {
            let value = self.number(&source.octets(3));
            return self.colour(value);
        }
        if self.used() & 0xFF == 0 {
            let value = self.number(&source.octets(3)) << 8;
            return self.colour(value);
        }
        self.pixel(source)
    }

    fn tpixel(&self, source: &mut impl Source) -> u32 {
        if self.format.bits == 32 && self.format.depth == 24 && self.format.max == [255; 3] {
            let rgb = source.octets(3);
            return u32::from_be_bytes([0, rgb[0], rgb[1], rgb[2]]);
        }
        self.pixel(source)
    }

    /// Reads a rectangle of pixels and draws it.
    pub(crate) fn rect(&mut self, source: &mut impl Source, rect: &Rect, encoding: i32, screen: &mut Surface) {
        let count = (rect.width * rect.height) as usize;
        let part: Vec<u32> = match encoding {
            number::RAW => (0..count).map(|_| self.pixel(source)).collect(),
            number::HEXTILE => return self.hextile(source, rect, screen),
            number::ZRLE => {
                let len = source.u32() as usize;
                let data = inflate(&mut self.zrle, &source.octets(len));
                let mut rest = data.as_slice();
                self.zrle(&mut rest, rect, screen);
                assert!(rest.is_empty(), "{} bytes too many", rest.len());
                return;
            }
            number::TIGHT => self.tight(source, rect),
            other => panic!("encoding {other}"),
        };
        paste(screen, rect, &part);
    }

    fn hextile(&self, source: &mut impl Source, rect: &Rect, screen: &mut Surface) {
        let (mut background, mut foreground) = (0, 0);
        for y in (rect.y..rect.y + rect.height).step_by(16) {
            for x in (rect.x..rect.x + rect.width).step_by(16) {
                let tile = Rect::new(x, y, 16, 16).intersect(rect);
                let mask = source.u8();
                if mask & 1 != 0 {
                    let part: Vec<u32> = (0..tile.width * tile.height).map(|_| self.pixel(source)).collect();
                    paste(screen, &tile, &part);
                    continue;
                }
                if mask & 2 != 0 {
                    background = self.pixel(source);
                }
                if mask & 4 != 0 {
                    foreground = self.pixel(source);
                }
                fill(screen, &tile, background);
                let count = if mask & 8 != 0 { source.u8() } else { 0 };
                for _ in 0..count {
                    let colour = if mask & 16 != 0 { self.pixel(source) } else { foreground };
                    let (place, size) = (u32::from(source.u8()), u32::from(source.u8()));
                    let sub = Rect::new(x + (place >> 4), y + (place & 15), (size >> 4) + 1, (size & 15) + 1);
                    assert_eq!(sub.intersect(&tile), sub);
                    fill(screen, &sub, colour);
                }
            }
        }
    }

    fn zrle(&self, source: &mut &[u8], rect: &Rect, screen: &mut Surface) {
        for y in (rect.y..rect.y + rect.height).step_by(64) {
            for x in (rect.x..rect.x + rect.width).step_by(64) {
                let tile = Rect::new(x, y, 64, 64).intersect(rect);
                let count = (tile.width * tile.height) as usize;
                let kind = source.u8();
                let colours = usize::from(kind & 0x7F);
                let palette: Vec<u32> = match kind {
                    0 | 128 => Vec::new(),
                    _ => (0..colours).map(|_| self.cpixel(source)).collect(),
                };
                let mut part = Vec::new();
                match kind {
                    0 => part.extend((0..count).map(|_| self.cpixel(source))),
                    1 => part.resize(count, palette[0]),
                    2..=16 => {
                        let width = match kind {
                            2 => 1,
                            3..=4 => 2,
                            _ => 4,
                        };
                        for _ in 0..tile.height {
                            let row = source.octets((tile.width * width).div_ceil(8) as usize);
                            for x in 0..tile.width {
                                let bit = x * width;
                                let byte = row[(bit / 8) as usize];
                                let number = byte >> (8 - width - bit % 8) & ((1 << width) - 1);
                                part.push(palette[usize::from(number)]);
                            }
                        }
                    }
                    128 => {
                        while part.len() < count {
                            let colour = self.cpixel(source);
                            let len = run_len(source);
                            part.resize(part.len() + len, colour);
                        }
                    }
                    130.. => {
                        while part.len() < count {
                            let number = source.u8();
                            let len = if number & 128 != 0 { run_len(source) } else { 1 };
                            part.resize(part.len() + len, palette[usize::from(number & 127)]);
                        }
                    }
                    other => panic!("tile of kind {other}"),
                }
                assert_eq!(part.len(), count);
                paste(screen, &tile, &part);
            }
        }
    }

    fn tight(&mut self, source: &mut impl Source, rect: &Rect) -> Vec<u32> {
        let control = source.u8();
        assert_eq!(control & 15, 0, "no stream is ever reset");
        let count = (rect.width * rect.height) as usize;
        if control >> 4 == 8 {
            return vec![self.tpixel(source); count];
        }
        assert!(control >> 4 < 8);
        let filter = if control & 0x40 != 0 { source.u8() } else { 0 };
        let stream = usize::from(control >> 4 & 3);
        if filter == 0 {
            let mut probe: &[u8] = &[0; 8];
            self.tpixel(&mut probe);
            let data = self.tight_data(source, stream, count * (8 - probe.len()));
            let mut rest = data.as_slice();
            return (0..count).map(|_| self.tpixel(&mut rest)).collect();
        }
        assert_eq!(filter, 1);
        let colours = usize::from(source.u8()) + 1;
        let palette: Vec<u32> = (0..colours).map(|_| self.tpixel(source)).collect();
        if colours > 2 {
            let data = self.tight_data(source, stream, count);
            return data.iter().map(|number| palette[usize::from(*number)]).collect();
        }
        let row = rect.width.div_ceil(8) as usize;
        let data = self.tight_data(source, stream, row * rect.height as usize);
        let bit = |row: &[u8], x: u32| row[(x / 8) as usize] >> (7 - x % 8) & 1;
        data.chunks(row)
            .flat_map(|row| (0..rect.width).map(|x| palette[usize::from(bit(row, x))]))
            .collect()
    }

    fn tight_data(&mut self, source: &mut impl Source, stream: usize, len: usize) -> Vec<u8> {
        if len < 12 {
            return source.octets(len);
        }
        let mut packed = 0;
        for at in 0..3 {
            let byte = usize::from(source.u8());
            let (bits, more) = if at < 2 {
                (byte & 0x7F, byte & 0x80 != 0)
            } else {
                (byte, false)
            };
            packed |= bits << (7 * at);
            if !more {
                break;
            }
        }
        let data = inflate(&mut self.tight[stream], &source.octets(packed));
        assert_eq!(data.len(), len);
        data
    }
}

fn run_len(source: &mut &[u8]) -> usize {
    let mut len = 1;
    loop {
        let byte = source.u8();
        len += usize::from(byte);
        if byte != 255 {
            return len;
        }
    }
}

fn paste(screen: &mut Surface, rect: &Rect, part: &[u32]) {
    let mut surface = Surface::new(rect.width, rect.height);
    surface.pixels_mut().copy_from_slice(part);
    screen.paste(rect.x, rect.y, &surface);
}

fn fill(screen: &mut Surface, rect: &Rect, colour: u32) {
    paste(screen, rect, &vec![colour; (rect.width * rect.height) as usize]);
}
