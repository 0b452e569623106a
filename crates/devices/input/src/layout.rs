//! Keyboard layouts: which keys a guest takes for a character.
//!
//! Characters of dead keys and of the compose key are left out.

use std::str::FromStr;

use crate::Event;
use crate::Key;

/// A key with the modifiers that make it a character.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stroke {
    /// The key.
    pub key: Key,
    /// Together with Shift.
    pub shift: bool,
    /// Together with AltGr.
    pub alt_gr: bool,
}

impl Stroke {
    /// A key without modifiers.
    #[must_use]
    pub const fn alone(key: Key) -> Self {
        Self {
            key,
            shift: false,
            alt_gr: false,
        }
    }

    /// Its events: modifiers and key down, then up.
    pub fn events(self) -> impl Iterator<Item = Event> {
        let modifiers = [(self.shift, Key::SHIFT), (self.alt_gr, Key::ALT_GR)];
        let mut keys: Vec<Key> = modifiers
            .into_iter()
            .filter_map(|(held, key)| held.then_some(key))
            .collect();
        keys.push(self.key);
        crate::press(&keys).collect::<Vec<_>>().into_iter()
    }
}

/// Text has a character that the layout has no key for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the keyboard layout {layout} has no key for `{character}`")]
pub struct TypeError {
    /// Name of the layout.
    pub layout: &'static str,
    /// The character, printable.
    pub character: String,
}

/// A layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    name: &'static str,
    /// Characters of the keys of [`POSITIONS`]; blank where there is none, or a dead one.
    plain: &'static str,
    shifted: &'static str,
    /// Characters with AltGr, and the character that the same key has alone.
    alt_gr: &'static [(char, char)],
}

/// Keys that have characters, row by row, by their codes.
#[rustfmt::skip]
const POSITIONS: [u16; 48] = [
    41, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
        16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27,
        30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 43,
    44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 86,
];

const LAYOUTS: [Layout; 4] = [
    Layout {
        name: "us",
        plain: r"`1234567890-=qwertyuiop[]asdfghjkl;'\zxcvbnm,./ ",
        shifted: r#"~!@#$%^&*()_+QWERTYUIOP{}ASDFGHJKL:"|ZXCVBNM<>? "#,
        alt_gr: &[],
    },
    Layout {
        name: "uk",
        plain: r"`1234567890-=qwertyuiop[]asdfghjkl;'#zxcvbnm,./\",
        shifted: r#"¬!"£$%^&*()_+QWERTYUIOP{}ASDFGHJKL:@~ZXCVBNM<>?|"#,
        alt_gr: &[('€', '4')],
    },
    Layout {
        name: "de",
        plain: r" 1234567890ß qwertzuiopü+asdfghjklöä#yxcvbnm,.-<",
        shifted: r#"°!"§$%&/()=? QWERTZUIOPÜ*ASDFGHJKLÖÄ'YXCVBNM;:_>"#,
        #[rustfmt::skip]
        alt_gr: &[
            ('²', '2'), ('³', '3'), ('{', '7'), ('[', '8'), (']', '9'), ('}', '0'), ('\\', 'ß'),
            ('@', 'q'), ('€', 'e'), ('~', '+'), ('µ', 'm'), ('|', '<'),
        ],
    },
    Layout {
        name: "fr",
        plain: r#"²&é"'(-è_çà)=azertyuiop $qsdfghjklmù*wxcvbn,;:!<"#,
        shifted: r" 1234567890°+AZERTYUIOP £QSDFGHJKLM%µWXCVBN?./§>",
        #[rustfmt::skip]
        alt_gr: &[
            ('#', '"'), ('{', '\''), ('[', '('), ('|', '-'), ('\\', '_'), ('^', 'ç'), ('@', 'à'),
            (']', ')'), ('}', '='), ('€', 'e'),
        ],
    },
];

impl Layout {
    /// The layout of the United States.
    pub const US: Self = LAYOUTS[0];

    /// Names of all layouts.
    pub fn names() -> impl Iterator<Item = &'static str> {
        LAYOUTS.iter().map(|layout| layout.name)
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The key for a character.
    #[must_use]
    pub fn stroke(&self, character: char) -> Option<Stroke> {
        let stroke = |key, shift, alt_gr| Stroke { key, shift, alt_gr };
        let control = match character {
            '\n' | '\r' => Some(Key::ENTER),
            '\t' => Some(Key::TAB),
            ' ' => Some(Key::SPACE),
            '\x1B' => Some(Key::ESC),
            '\x08' => Some(Key::BACKSPACE),
            '\x7F' => Some(Key::DELETE),
            _ => None,
        };
        if let Some(key) = control {
            return Some(stroke(key, false, false));
        }
        let find = |row: &str, wanted: char| {
            let at = row.chars().position(|c| c == wanted)?;
            POSITIONS.get(at).and_then(|code| Key::from_code(*code))
        };
        if let Some(key) = find(self.plain, character) {
            return Some(stroke(key, false, false));
        }
        if let Some(key) = find(self.shifted, character) {
            return Some(stroke(key, true, false));
        }
        let (_, base) = self.alt_gr.iter().find(|(c, _)| *c == character)?;
        find(self.plain, *base).map(|key| stroke(key, false, true))
    }

    /// The strokes that type `text`. A line's end is the enter key; a carriage return before it counts for nothing.
    ///
    /// # Errors
    /// [`TypeError`] for the first character that has no key; nothing is typed then.
    pub fn strokes(&self, text: &str) -> Result<Vec<Stroke>, TypeError> {
        let mut strokes = Vec::new();
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == '\r' && characters.peek() == Some(&'\n') {
                continue;
            }
            let stroke = self.stroke(character).ok_or_else(|| TypeError {
                layout: self.name,
                character: character.escape_debug().to_string(),
            })?;
            strokes.push(stroke);
        }
        Ok(strokes)
    }
}

impl Default for Layout {
    fn default() -> Self {
        Self::US
    }
}

/// There is no layout of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no keyboard layout is called `{0}`; there are us, uk, de and fr")]
pub struct UnknownLayout(String);

impl FromStr for Layout {
    type Err = UnknownLayout;

    fn from_str(name: &str) -> Result<Self, UnknownLayout> {
        let found = LAYOUTS.into_iter().find(|layout| layout.name == name);
        found.ok_or_else(|| UnknownLayout(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_a_character_for_each_position() {
        for layout in LAYOUTS {
            let (plain, shifted) = (layout.plain.chars().count(), layout.shifted.chars().count());
            assert_eq!((plain, shifted), (48, 48), "{}", layout.name);
            for (character, base) in layout.alt_gr {
                assert!(layout.stroke(*character).is_some(), "{character} of {}", layout.name);
                assert!(layout.plain.contains(*base));
            }
            assert_eq!(layout.name.parse(), Ok(layout));
        }
        assert!("xx".parse::<Layout>().is_err());
    }

    #[test]
    fn every_ascii_character_can_be_typed() {
        for character in (' '..='~').chain(['\n', '\t']) {
            let stroke = Layout::US.stroke(character).unwrap();
            assert!(!stroke.alt_gr, "{character}");
        }
        // Dead keys aside.
        for (layout, without) in [("de", "^`"), ("uk", ""), ("fr", "^`~")] {
            let layout: Layout = layout.parse().unwrap();
            for character in (' '..='~').filter(|c| !without.contains(*c)) {
                assert!(layout.stroke(character).is_some(), "{character} of {}", layout.name);
            }
        }
    }

    #[test]
    fn modifiers_go_with_their_keys() {
        let stroke = |layout: &str, c| {
            let layout: Layout = layout.parse().unwrap();
            layout.stroke(c).map(|s| (s.key.name(), s.shift, s.alt_gr))
        };
        assert_eq!(stroke("us", 'Z'), Some(("z", true, false)));
        assert_eq!(stroke("de", 'Z'), Some(("y", true, false)));
        assert_eq!(stroke("de", '@'), Some(("q", false, true)));
        assert_eq!(stroke("us", '|'), Some(("backslash", true, false)));
        assert_eq!(stroke("us", 'é'), None);
        let error = Layout::US.strokes("aé").unwrap_err();
        assert_eq!(error.to_string(), "the keyboard layout us has no key for `é`");
        assert_eq!(Layout::US.strokes("a\r\nb\r").unwrap().len(), 4);
    }
}
