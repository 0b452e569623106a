//! A picture of RGB pixels, and rectangles of one.

use crate::lanes::index;

/// A rectangle of pixels. The origin is the upper left corner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rect {
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Pixels to the right.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

impl Rect {
    /// A rectangle.
    #[must_use]
    pub const fn new(x: u32, y: u32, width: u32, height: u32) -> Self {
        Self { x, y, width, height }
    }

    /// Whether it has no pixels.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0
    }

    /// What both have; empty when they are apart.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let (x, y) = (self.x.max(other.x), self.y.max(other.y));
        let right = self
            .x
            .saturating_add(self.width)
            .min(other.x.saturating_add(other.width));
        let bottom = self
            .y
            .saturating_add(self.height)
            .min(other.y.saturating_add(other.height));
        Self::new(x, y, right.saturating_sub(x), bottom.saturating_sub(y))
    }
}

/// Pixels as `0x00RRGGBB`, row by row without gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    width: u32,
    height: u32,
    pixels: Vec<u32>,
}

impl Surface {
    /// A black picture.
    #[must_use]
    pub fn new(width: u32, height: u32) -> Self {
        let mut surface = Self::default();
        surface.resize(width, height);
        surface
    }

    /// Takes another size; the picture is black thereafter, unless it had that size.
    pub fn resize(&mut self, width: u32, height: u32) {
        if (self.width, self.height) == (width, height) {
            return;
        }
        (self.width, self.height) = (width, height);
        self.pixels.clear();
        self.pixels.resize(index(width).saturating_mul(index(height)), 0);
    }

    /// Pixels in a row.
    #[must_use]
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    #[must_use]
    pub const fn height(&self) -> u32 {
        self.height
    }

    /// The whole picture.
    #[must_use]
    pub const fn bounds(&self) -> Rect {
        Rect::new(0, 0, self.width, self.height)
    }

    /// All pixels.
    #[must_use]
    pub fn pixels(&self) -> &[u32] {
        &self.pixels
    }

    /// All pixels.
    pub fn pixels_mut(&mut self) -> &mut [u32] {
        &mut self.pixels
    }

    /// Row `y`; empty below the picture.
    #[must_use]
    pub fn row(&self, y: u32) -> &[u32] {
        let start = index(y).saturating_mul(index(self.width));
        self.pixels.get(start..start + index(self.width)).unwrap_or_default()
    }

    /// Row `y`; empty below the picture.
    pub fn row_mut(&mut self, y: u32) -> &mut [u32] {
        let start = index(y).saturating_mul(index(self.width));
        self.pixels
            .get_mut(start..start + index(self.width))
            .unwrap_or_default()
    }

    /// The part of row `y` that lies in columns `x..x + width`, as far as there is one.
    #[must_use]
    pub fn span(&self, x: u32, y: u32, width: u32) -> &[u32] {
        let end = x.saturating_add(width).min(self.width);
        self.row(y).get(index(x.min(end))..index(end)).unwrap_or_default()
    }

    /// The pixel at a place; black outside.
    #[must_use]
    pub fn pixel(&self, x: u32, y: u32) -> u32 {
        self.span(x, y, 1).first().copied().unwrap_or(0)
    }

    /// The pixels of a rectangle, row by row, as far as it lies within.
    #[must_use]
    pub fn copy_out(&self, rect: &Rect) -> Self {
        let rect = rect.intersect(&self.bounds());
        let mut pixels = Vec::with_capacity(index(rect.width).saturating_mul(index(rect.height)));
        for y in rect.y..rect.y + rect.height {
            pixels.extend_from_slice(self.span(rect.x, y, rect.width));
        }
        Self {
            width: rect.width,
            height: rect.height,
            pixels,
        }
    }

    /// Puts `part` at a place, as far as it lies within.
    pub fn paste(&mut self, x: u32, y: u32, part: &Self) {
        for row in 0..part.height {
            let to = self.row_mut(y.saturating_add(row));
            for (to, from) in to.iter_mut().skip(index(x)).zip(part.row(row)) {
                *to = *from;
            }
        }
    }

    /// Moves `rows` whole rows from `from` to `to`, as far as they lie within.
    pub fn move_rows(&mut self, from: u32, to: u32, rows: u32) {
        let rows = rows
            .min(self.height.saturating_sub(from))
            .min(self.height.saturating_sub(to));
        let at = |row: u32| index(row).saturating_mul(index(self.width));
        self.pixels.copy_within(at(from)..at(from + rows), at(to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_outside_are_left_out() {
        let mut surface = Surface::new(4, 3);
        let part = Surface {
            width: 2,
            height: 2,
            pixels: vec![1, 2, 3, 4],
        };
        surface.paste(3, 2, &part);
        assert_eq!(surface.pixel(3, 2), 1);
        assert_eq!(surface.copy_out(&Rect::new(3, 1, 5, 5)).pixels(), [0, 1]);
        assert!(surface.copy_out(&Rect::new(9, 9, 5, 5)).pixels().is_empty());
        assert!(surface.row(3).is_empty() && surface.span(4, 0, 1).is_empty());
        surface.move_rows(2, 0, 9);
        assert_eq!(surface.pixel(3, 0), 1);
    }

    #[test]
    fn intersection_of_rectangles_apart_is_empty() {
        let a = Rect::new(0, 0, 10, 10);
        assert_eq!(a.intersect(&Rect::new(5, 6, 10, 10)), Rect::new(5, 6, 5, 4));
        assert!(a.intersect(&Rect::new(10, 0, 1, 1)).is_empty());
        assert!(a.intersect(&Rect::new(u32::MAX, u32::MAX, 9, 9)).is_empty());
    }
}
