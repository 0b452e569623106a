//! Pictures as PNG files.
//!
//! Spec: PNG (W3C, third edition); colour type 2, eight bits per sample.

use std::io::Write;

use crate::Surface;

/// Why a picture could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the screenshot")]
pub struct ScreenshotError(#[from] png::EncodingError);

/// Writes `surface` as a PNG file. The picture of a screen that shows nothing yet is one black pixel, because a PNG has at
/// least one.
///
/// # Errors
/// [`ScreenshotError`] when `writer` takes no more.
pub fn write_png(surface: &Surface, writer: impl Write) -> Result<(), ScreenshotError> {
    let empty = surface.pixels().is_empty();
    let (width, height) = if empty {
        (1, 1)
    } else {
        (surface.width(), surface.height())
    };
    let rgb = |pixel: &u32| {
        let [_, red, green, blue] = pixel.to_be_bytes();
        [red, green, blue]
    };
    let mut data: Vec<u8> = surface.pixels().iter().flat_map(rgb).collect();
    if empty {
        data = vec![0; 3];
    }
    let mut encoder = png::Encoder::new(writer, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&data)?;
    writer.finish()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn png_reads_back_equal() {
        let mut surface = Surface::new(3, 2);
        surface
            .pixels_mut()
            .copy_from_slice(&[0xFF_0000, 0x00_FF00, 0x00_00FF, 0x12_3456, 0, 0xFF_FFFF]);
        let mut file = Vec::new();
        write_png(&surface, &mut file).unwrap();
        let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
        let mut data = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut data).unwrap();
        assert_eq!((info.width, info.height), (3, 2));
        assert_eq!(data[..6], [255, 0, 0, 0, 255, 0]);
        assert_eq!(data[9..12], [0x12, 0x34, 0x56]);
    }

    #[test]
    fn empty_screen_is_a_black_pixel() {
        let mut file = Vec::new();
        write_png(&Surface::default(), &mut file).unwrap();
        let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
        let mut data = vec![1; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut data).unwrap();
        assert_eq!(data, [0, 0, 0]);
    }
}
