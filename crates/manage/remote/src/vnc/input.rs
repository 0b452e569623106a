//! What a client does with keyboard and pointer, as events of the machine.
//!
//! Keys go by their scan codes where the client sends them, else by what they mean on the guest's layout. Whatever a client holds
//! when it leaves is let go.

use std::sync::Arc;

use input::Button;
use input::Event;
use input::InputSink;
use input::Key;
use input::Layout;
use input::RelativePointer;
use input::Stroke;
use input::stroke_of_keysym;

/// Bits of a pointer message.
const BUTTONS: [(u8, Button); 3] = [(0x01, Button::Left), (0x02, Button::Middle), (0x04, Button::Right)];
/// Wheels: bit, down, right.
const WHEELS: [(u8, i32, i32); 4] = [(0x08, -1, 0), (0x10, 1, 0), (0x20, 0, -1), (0x40, 0, 1)];

/// A client's keys and pointer.
pub(super) struct Hands {
    sink: Arc<dyn InputSink>,
    layout: Layout,
    held: Vec<Key>,
    pointer: RelativePointer,
    buttons: u8,
}

impl Hands {
    pub(super) fn new(sink: Arc<dyn InputSink>, layout: Layout) -> Self {
        Self {
            sink,
            layout,
            held: Vec::new(),
            pointer: RelativePointer::new(),
            buttons: 0,
        }
    }

    /// A key by where it is; by what it means when the client does not know.
    pub(super) fn extended_key(&mut self, down: bool, keysym: u32, keycode: u32) {
        let scan_code = match u16::try_from(keycode) {
            Ok(code @ 0x01..=0x7F) => Some(code),
            // Bit 7 stands for the prefix.
            Ok(code @ 0x80..=0xFF) => Some(0xE000 | code & 0x7F),
            _ => None,
        };
        match scan_code.and_then(Key::from_scan_code) {
            Some(key) => self.set(key, down),
            None => self.key(down, keysym),
        }
    }

    /// A key by what it means. Clients that send characters without their Shift or AltGr get it added.
    pub(super) fn key(&mut self, down: bool, keysym: u32) {
        let Some(Stroke { key, shift, alt_gr }) = stroke_of_keysym(keysym, &self.layout) else {
            tracing::debug!(keysym, "no key for this keysym");
            return;
        };
        let holds = |this: &Self, keys: &[Key]| keys.iter().any(|key| this.held.contains(key));
        let needed = |this: &Self| {
            let right_shift = Key::from_name("rightshift").unwrap_or(Key::SHIFT);
            [
                (shift && !holds(this, &[Key::SHIFT, right_shift])).then_some(Key::SHIFT),
                (alt_gr && !holds(this, &[Key::ALT_GR])).then_some(Key::ALT_GR),
            ]
        };
        let added = if down { needed(self) } else { [None; 2] };
        for modifier in added.into_iter().flatten() {
            self.set(modifier, true);
        }
        self.set(key, down);
        for modifier in added.into_iter().flatten() {
            self.set(modifier, false);
        }
    }

    fn set(&mut self, key: Key, down: bool) {
        self.held.retain(|held| *held != key);
        if down {
            self.held.push(key);
        }
        self.sink.input(Event::Key { key, down });
    }

    /// The pointer is somewhere on a screen of this size, with these buttons held.
    pub(super) fn pointer(&mut self, buttons: u8, place: (u16, u16), size: (u32, u32)) {
        let (x, y) = place;
        if self.sink.takes_places() {
            let (width, height) = size;
            let (x, y) = (u32::from(x), u32::from(y));
            self.sink.input(Event::Place { x, y, width, height });
        } else if let Some(event) = self.pointer.at(x.into(), y.into()) {
            self.sink.input(event);
        }
        let changed = buttons ^ std::mem::replace(&mut self.buttons, buttons);
        for (bit, button) in BUTTONS {
            if changed & bit != 0 {
                let down = buttons & bit != 0;
                self.sink.input(Event::Button { button, down });
            }
        }
        for (bit, dy, dx) in WHEELS {
            if changed & buttons & bit != 0 {
                self.sink.input(Event::Wheel { dy, dx });
            }
        }
    }
}

impl Drop for Hands {
    fn drop(&mut self) {
        for key in self.held.drain(..).rev() {
            self.sink.input(Event::Key { key, down: false });
        }
        for (bit, button) in BUTTONS {
            if self.buttons & bit != 0 {
                self.sink.input(Event::Button { button, down: false });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Log(Mutex<Vec<String>>);

    impl InputSink for Log {
        fn input(&self, event: Event) {
            let text = match event {
                Event::Key { key, down } => format!("{}{}", if down { '+' } else { '-' }, key.name()),
                Event::Move { dx, dy } => format!("{dx},{dy}"),
                Event::Button { button, down } => format!("{button:?} {down}"),
                Event::Wheel { dy, dx } => format!("wheel {dy} {dx}"),
                Event::Place { .. } => "place".to_owned(),
            };
            self.0.lock().unwrap().push(text);
        }
    }

    fn seen(act: impl FnOnce(&mut Hands)) -> Vec<String> {
        let log = Arc::new(Log::default());
        let mut hands = Hands::new(log.clone(), Layout::US);
        act(&mut hands);
        drop(hands);
        log.0.lock().unwrap().clone()
    }

    #[test]
    fn character_without_its_shift_gets_one() {
        let events = seen(|hands| {
            hands.key(true, u32::from('A'));
            hands.key(false, u32::from('A'));
        });
        assert_eq!(events, ["+shift", "+a", "-shift", "-a"]);
        let events = seen(|hands| {
            hands.key(true, 0xFFE1);
            hands.key(true, u32::from('A'));
            hands.key(false, u32::from('a'));
            hands.key(false, 0xFFE1);
        });
        assert_eq!(events, ["+shift", "+a", "-a", "-shift"]);
    }

    #[test]
    fn scan_codes_come_before_meanings() {
        let events = seen(|hands| {
            hands.extended_key(true, u32::from('y'), 0x2C);
            hands.extended_key(false, u32::from('y'), 0x2C);
            hands.extended_key(true, 0xFFE4, 0x9D);
            hands.extended_key(false, 0xFFE4, 0x9D);
            hands.extended_key(true, u32::from('q'), 0);
            hands.extended_key(true, 0, 0xFFFF);
        });
        // What is held at the end is let go.
        assert_eq!(events, ["+z", "-z", "+rightctrl", "-rightctrl", "+q", "-q"]);
    }

    #[test]
    fn pointer_moves_clicks_and_turns_its_wheel() {
        let size = (640, 480);
        let events = seen(|hands| {
            hands.pointer(0, (100, 100), size);
            hands.pointer(1, (110, 95), size);
            hands.pointer(0x10, (110, 95), size);
            hands.pointer(0x08, (110, 95), size);
            hands.pointer(4, (110, 95), size);
        });
        let wanted = [
            "10,-5",
            "Left true",
            "Left false",
            "wheel 1 0",
            "wheel -1 0",
            "Right true",
            "Right false",
        ];
        assert_eq!(events, wanted);
    }
}
