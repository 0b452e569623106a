//! The framebuffer that screens read: the picture last made, and what changed since when.
//!
//! Guests draw into memory without telling anyone, so a new picture is compared with the last one, in tiles. Each tile keeps
//! the generation in which it changed last: any number of screens can ask what changed since they looked, and none of them
//! makes the framebuffer remember more. Rows that have moved up or down, as when text scrolls, are told as such to those
//! who saw the generation before.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use crate::Rect;
use crate::ScanOut;
use crate::Surface;
use crate::lanes::index;

/// Size of a tile in pixels.
const TILE_WIDTH: u32 = 64;
const TILE_HEIGHT: u32 = 16;
/// Rows that must have moved together to be worth telling.
const LEAST_MOVED: u32 = 64;

/// Where pictures come from. Called from a screen's thread, which may block on the device's lock for a moment.
pub trait ScreenSource: Send {
    /// Makes the present picture with [`Framebuffer::update`].
    fn refresh(&mut self, framebuffer: &mut Framebuffer);
}

/// Whole rows that have moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// First row before.
    pub from: u32,
    /// First row now.
    pub to: u32,
    /// Rows.
    pub rows: u32,
}

/// A pointer's picture, for screens that draw it themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The pixels.
    pub picture: Surface,
    /// Which of them are seen; as many as there are pixels.
    pub mask: Vec<bool>,
    /// The pixel that points.
    pub hot: (u32, u32),
}

/// What a screen must draw to catch up, in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The picture has another size.
    pub resized: bool,
    /// Rows to move.
    pub moved: Option<Move>,
    /// Pixels to draw: rectangles that do not overlap.
    pub rects: Vec<Rect>,
}

impl Changes {
    /// Whether there is nothing to draw.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.resized && self.moved.is_none() && self.rects.is_empty()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Tile {
    /// The generation in which it changed last.
    changed: u64,
    /// It changed in the present generation, beyond what moved.
    beyond_move: bool,
}

/// The picture and its history.
#[derive(Debug, Default)]
pub struct Framebuffer {
    shown: Surface,
    next: Surface,
    generation: u64,
    resized_in: u64,
    moved: Option<Move>,
    tiles: Vec<Tile>,
    cursor: Option<Arc<Cursor>>,
    cursor_generation: u64,
}

impl Framebuffer {
    /// A framebuffer without a picture.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The picture.
    #[must_use]
    pub fn surface(&self) -> &Surface {
        &self.shown
    }

    /// Counts pictures that differed from the one before.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The pointer, where the guest's display adapter draws it apart from the picture; no adapter of ours does so far.
    #[must_use]
    pub fn cursor(&self) -> Option<&Arc<Cursor>> {
        self.cursor.as_ref()
    }

    /// Counts changes of the pointer's picture.
    #[must_use]
    pub fn cursor_generation(&self) -> u64 {
        self.cursor_generation
    }

    /// Changes the pointer's picture.
    pub fn set_cursor(&mut self, cursor: Option<Cursor>) {
        if self.cursor.as_deref() != cursor.as_ref() {
            self.cursor = cursor.map(Arc::new);
            self.cursor_generation += 1;
        }
    }

    /// Takes what is shown now as the picture. True when it differs from the last one.
    pub fn update(&mut self, scan: &ScanOut) -> bool {
        self.update_with(|surface| scan.render(surface))
    }

    /// Takes what `render` draws as the picture. It gets an older picture to draw over, and must draw all of it.
    pub fn update_with(&mut self, render: impl FnOnce(&mut Surface)) -> bool {
        render(&mut self.next);
        if self.next.bounds() != self.shown.bounds() {
            self.take_resized();
            return true;
        }
        let changed = self.compare();
        let count = changed.iter().filter(|changed| **changed).count();
        if count == 0 {
            return false;
        }
        self.generation += 1;
        self.moved = (count * 3 >= changed.len()).then(|| self.find_move()).flatten();
        let beyond = match self.moved {
            Some(Move { from, to, rows }) => {
                self.shown.move_rows(from, to, rows);
                self.compare()
            }
            None => changed.clone(),
        };
        for ((tile, changed), beyond) in self.tiles.iter_mut().zip(changed).zip(beyond) {
            if changed || beyond {
                tile.changed = self.generation;
            }
            tile.beyond_move = beyond;
        }
        std::mem::swap(&mut self.shown, &mut self.next);
        true
    }

    fn take_resized(&mut self) {
        self.generation += 1;
        self.resized_in = self.generation;
        self.moved = None;
        self.shown = self.next.clone();
        let tiles = index(self.tile_columns()) * index(self.shown.height().div_ceil(TILE_HEIGHT));
        self.tiles.clear();
        self.tiles.resize(
            tiles,
            Tile {
                changed: self.generation,
                beyond_move: true,
            },
        );
    }

    fn tile_columns(&self) -> u32 {
        self.shown.width().div_ceil(TILE_WIDTH)
    }

    /// Tiles that differ between the picture shown and the next.
    fn compare(&self) -> Vec<bool> {
        let mut changed = vec![false; self.tiles.len()];
        let columns = index(self.tile_columns()).max(1);
        let bands = changed.chunks_mut(columns);
        for (first, band) in (0..).step_by(index(TILE_HEIGHT)).zip(bands) {
            for y in first..first + TILE_HEIGHT {
                let (old, new) = (self.shown.row(y), self.next.row(y));
                if old == new {
                    continue;
                }
                let pieces = old.chunks(index(TILE_WIDTH)).zip(new.chunks(index(TILE_WIDTH)));
                for (changed, (old, new)) in band.iter_mut().zip(pieces) {
                    *changed |= old != new;
                }
            }
        }
        changed
    }

    /// The longest run of rows that moved by the distance for which most rows speak.
    fn find_move(&self) -> Option<Move> {
        let height = self.shown.height();
        let hash =
            |surface: &Surface| -> Vec<u64> { (0..height).map(|y| FxBuildHasher.hash_one(surface.row(y))).collect() };
        let (old, new) = (hash(&self.shown), hash(&self.next));
        let distance = most_spoken_for(&old, &new)?;
        let same = |y: u32| {
            let before = i64::from(y) + distance;
            u32::try_from(before)
                .ok()
                .and_then(|before| old.get(index(before)))
                .is_some_and(|old| new.get(index(y)) == Some(old))
        };
        let (mut best, mut run) = ((0, 0), 0);
        for y in 0..height {
            run = if same(y) { run + 1 } else { 0 };
            if run > best.1 {
                best = (y + 1 - run, run);
            }
        }
        let (to, rows) = best;
        let from = u32::try_from(i64::from(to) + distance).ok()?;
        // Hashes may agree by chance, pixels do not.
        let sound = (0..rows).all(|row| self.shown.row(from + row) == self.next.row(to + row));
        (rows >= LEAST_MOVED && sound).then_some(Move { from, to, rows })
    }

    /// What a screen must draw that has seen `generation`; 0 for one that has seen nothing. Without `moves` for a screen that
    /// cannot move rows.
    #[must_use]
    pub fn changes_since(&self, generation: u64, moves: bool) -> Changes {
        if generation >= self.generation {
            return Changes::default();
        }
        if generation < self.resized_in {
            return Changes {
                resized: true,
                moved: None,
                rects: vec![self.shown.bounds()],
            };
        }
        let moved = self.moved.filter(|_| moves && generation + 1 == self.generation);
        let dirty = self.tiles.iter().map(|tile| match moved {
            Some(_) => tile.beyond_move,
            None => tile.changed > generation,
        });
        Changes {
            resized: false,
            moved,
            rects: self.rects(dirty),
        }
    }

    /// Tiles as rectangles: neighbours in a row are one, and so are rows that are alike.
    fn rects(&self, mut dirty: impl Iterator<Item = bool>) -> Vec<Rect> {
        let columns = self.tile_columns();
        let bounds = self.shown.bounds();
        let mut done: Vec<Rect> = Vec::new();
        let mut above: Vec<Rect> = Vec::new();
        for y in (0..self.shown.height()).step_by(index(TILE_HEIGHT)) {
            let mut band: Vec<Rect> = Vec::new();
            for column in 0..columns {
                if !dirty.next().unwrap_or(false) {
                    continue;
                }
                let x = column * TILE_WIDTH;
                match band.last_mut() {
                    Some(last) if last.x + last.width == x => last.width += TILE_WIDTH,
                    _ => band.push(Rect::new(x, y, TILE_WIDTH, TILE_HEIGHT)),
                }
            }
            let alike =
                above.len() == band.len() && above.iter().zip(&band).all(|(a, b)| (a.x, a.width) == (b.x, b.width));
            if alike {
                above.iter_mut().for_each(|rect| rect.height += TILE_HEIGHT);
            } else {
                done.append(&mut above);
                above = band;
            }
        }
        done.append(&mut above);
        done.iter().map(|rect| rect.intersect(&bounds)).collect()
    }
}

/// The distance from new rows to the old ones that are like them, for which most rows speak. Rows that occur more than once
/// say nothing.
fn most_spoken_for(old: &[u64], new: &[u64]) -> Option<i64> {
    let mut places: HashMap<u64, Option<i64>, FxBuildHasher> = HashMap::default();
    for (y, hash) in (0..).zip(old) {
        places.entry(*hash).and_modify(|place| *place = None).or_insert(Some(y));
    }
    let mut votes: HashMap<i64, u32, FxBuildHasher> = HashMap::default();
    for (y, hash) in (0i64..).zip(new) {
        if let Some(Some(before)) = places.get(hash) {
            *votes.entry(before - y).or_default() += 1;
        }
    }
    let (distance, _) = votes
        .into_iter()
        .max_by_key(|(distance, votes)| (*votes, -distance.abs()))?;
    (distance != 0).then_some(distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u32) -> impl Fn(u32, u32) -> u32 {
        move |x, y| (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503) ^ seed).wrapping_mul(2_246_822_519) >> 8
    }

    fn draw(fb: &mut Framebuffer, width: u32, height: u32, pixel: impl Fn(u32, u32) -> u32) -> bool {
        fb.update_with(|surface| {
            surface.resize(width, height);
            for y in 0..height {
                for (x, to) in (0..).zip(surface.row_mut(y)) {
                    *to = pixel(x, y);
                }
            }
        })
    }

    /// A screen that draws what it is told to must show the same.
    fn replay(screen: &mut Surface, fb: &Framebuffer, changes: &Changes) {
        if changes.resized {
            screen.resize(fb.surface().width(), fb.surface().height());
        }
        if let Some(Move { from, to, rows }) = changes.moved {
            screen.move_rows(from, to, rows);
        }
        for rect in &changes.rects {
            screen.paste(rect.x, rect.y, &fb.surface().copy_out(rect));
        }
        assert_eq!(screen, fb.surface());
    }

    #[test]
    fn equal_picture_is_no_news() {
        let mut fb = Framebuffer::new();
        assert!(draw(&mut fb, 100, 50, noise(1)));
        assert!(!draw(&mut fb, 100, 50, noise(1)));
        assert_eq!(fb.generation(), 1);
        assert!(fb.changes_since(1, true).is_empty());
        assert_eq!(fb.changes_since(0, true).rects, [Rect::new(0, 0, 100, 50)]);
    }

    #[test]
    fn single_pixel_dirties_its_tile_only() {
        let mut fb = Framebuffer::new();
        draw(&mut fb, 200, 100, |_, _| 0);
        draw(&mut fb, 200, 100, |x, y| u32::from((x, y) == (199, 99)));
        assert_eq!(fb.changes_since(1, true).rects, [Rect::new(192, 96, 8, 4)]);
        draw(&mut fb, 200, 100, |x, y| {
            u32::from((x, y) == (199, 99) || (x, y) == (0, 0))
        });
        assert_eq!(fb.changes_since(1, true).rects.len(), 2);
        assert_eq!(fb.changes_since(2, true).rects, [Rect::new(0, 0, 64, 16)]);
    }

    #[test]
    fn scrolled_rows_are_told_as_moved_to_those_who_saw_them() {
        let mut fb = Framebuffer::new();
        let picture = noise(7);
        draw(&mut fb, 320, 200, &picture);
        let mut screen = Surface::default();
        replay(&mut screen, &fb, &fb.changes_since(0, true));
        draw(&mut fb, 320, 200, |x, y| if y < 184 { picture(x, y + 16) } else { 0 });
        let changes = fb.changes_since(1, true);
        let up = Move {
            from: 16,
            to: 0,
            rows: 184,
        };
        assert_eq!(changes.moved, Some(up));
        assert!(changes.rects.iter().all(|rect| rect.y >= 176), "{changes:?}");
        replay(&mut screen, &fb, &changes);
        assert_eq!(fb.changes_since(0, true).moved, None);
        assert_eq!(fb.changes_since(1, false).moved, None);
        // Downwards, too.
        draw(
            &mut fb,
            320,
            200,
            |x, y| if y >= 40 { picture(x, y + 16 - 40) } else { 3 },
        );
        let changes = fb.changes_since(2, true);
        assert!(changes.moved.is_some());
        replay(&mut screen, &fb, &changes);
    }

    #[test]
    fn screens_that_look_now_and_then_catch_up() {
        let mut fb = Framebuffer::new();
        let (mut often, mut seldom) = ((Surface::default(), 0), (Surface::default(), 0));
        let mut random = 12_345u32;
        for step in 0..200u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (seed, at) = (random >> 3 & 1, random >> 9 & 127);
            let (width, height) = if step % 50 < 25 { (300, 150) } else { (130, 90) };
            draw(&mut fb, width, height, |x, y| noise(seed)(x / 30, (y + at) / 9));
            for (screen, seen, due) in [
                (&mut often.0, &mut often.1, true),
                (&mut seldom.0, &mut seldom.1, random & 0x700 == 0),
            ] {
                if due {
                    replay(screen, &fb, &fb.changes_since(*seen, true));
                    *seen = fb.generation();
                }
            }
        }
        assert!(often.1 > 100);
    }
}
