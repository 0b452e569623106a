//! Input events, where they go, and absolute pointers as movement.

use crate::Key;

/// A button of the mouse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Button {
    /// The primary one.
    Left,
    /// The one for menus.
    Right,
    /// The wheel itself.
    Middle,
    /// The first at the side: back.
    Side,
    /// The second at the side: forward.
    Extra,
}

impl Button {
    /// Its bit in the sets of buttons that mice report: left, right, middle, side, extra from bit 0 on.
    #[must_use]
    pub const fn bit(self) -> u8 {
        match self {
            Self::Left => 1 << 0,
            Self::Right => 1 << 1,
            Self::Middle => 1 << 2,
            Self::Side => 1 << 3,
            Self::Extra => 1 << 4,
        }
    }
}

/// Something that the user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A key goes down or up. A press of a key that is down already is a repetition by the source.
    Key {
        /// The key.
        key: Key,
        /// Down or up.
        down: bool,
    },
    /// The mouse moves, in counts or pixels.
    Move {
        /// To the right.
        dx: i32,
        /// Down.
        dy: i32,
    },
    /// The pointer is at a place of the screen, for devices that know places ([`InputSink::takes_places`]).
    Place {
        /// Column.
        x: u32,
        /// Row.
        y: u32,
        /// Columns of the screen.
        width: u32,
        /// Rows of the screen.
        height: u32,
    },
    /// A button of the mouse goes down or up.
    Button {
        /// The button.
        button: Button,
        /// Down or up.
        down: bool,
    },
    /// The wheel turns, in notches.
    Wheel {
        /// Towards the user: down a page.
        dy: i32,
        /// To the right.
        dx: i32,
    },
}

/// Where input goes. Called from the threads of screens and of the control socket; must not block for longer than a device's
/// lock takes.
pub trait InputSink: Send + Sync {
    /// Takes an event.
    fn input(&self, event: Event);

    /// Whether the guest's pointing device knows places, as a tablet does. Others get movement.
    fn takes_places(&self) -> bool {
        false
    }

    /// The keyboard's lights as the guest set them: bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock. None while nobody
    /// knows.
    fn leds(&self) -> Option<u8> {
        None
    }
}

/// Places of a pointer on the screen as movement, for mice that know no places.
#[derive(Clone, Copy, Debug, Default)]
pub struct RelativePointer {
    last: Option<(i32, i32)>,
}

impl RelativePointer {
    /// A pointer that has not been anywhere.
    #[must_use]
    pub const fn new() -> Self {
        Self { last: None }
    }

    /// The pointer is at a place now; how far it moved. The first place says nothing.
    pub fn at(&mut self, x: i32, y: i32) -> Option<Event> {
        let (from_x, from_y) = self.last.replace((x, y))?;
        let (dx, dy) = (x.saturating_sub(from_x), y.saturating_sub(from_y));
        ((dx, dy) != (0, 0)).then_some(Event::Move { dx, dy })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_place_of_a_pointer_is_no_movement() {
        let mut pointer = RelativePointer::new();
        assert_eq!(pointer.at(100, 50), None);
        assert_eq!(pointer.at(97, 52), Some(Event::Move { dx: -3, dy: 2 }));
        assert_eq!(pointer.at(97, 52), None);
    }
}
