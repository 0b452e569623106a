//! X11 keysyms, as VNC clients send them, to keys.
//!
//! Characters go by the guest's layout. Shift and AltGr come as keys of their own from most clients; some leave them out.
//!
//! Spec: X Window System Protocol, appendix A ("KEYSYM Encoding"); xorgproto include/X11/keysymdef.h.

use crate::Key;
use crate::Layout;
use crate::Stroke;

/// Keysym, and the name of the key.
#[rustfmt::skip]
const FUNCTION: &[(u32, &str)] = &[
    (0xFF08, "backspace"), (0xFF09, "tab"), (0xFE20, "tab"), (0xFF0A, "enter"), (0xFF0D, "enter"),
    (0xFF13, "pause"), (0xFF6B, "pause"), (0xFF14, "scrolllock"), (0xFF15, "sysrq"), (0xFF61, "sysrq"),
    (0xFF1B, "esc"), (0xFF23, "henkan"), (0xFF22, "muhenkan"), (0xFF27, "katakanahiragana"),
    (0xFF50, "home"), (0xFF51, "left"), (0xFF52, "up"), (0xFF53, "right"), (0xFF54, "down"),
    (0xFF55, "pageup"), (0xFF56, "pagedown"), (0xFF57, "end"), (0xFF63, "insert"), (0xFF67, "menu"),
    (0xFF7F, "numlock"), (0xFF7E, "altgr"), (0xFE03, "altgr"),
    (0xFF80, "space"), (0xFF89, "tab"), (0xFF8D, "kpenter"),
    (0xFF95, "kp7"), (0xFF96, "kp4"), (0xFF97, "kp8"), (0xFF98, "kp6"), (0xFF99, "kp2"),
    (0xFF9A, "kp9"), (0xFF9B, "kp3"), (0xFF9C, "kp1"), (0xFF9D, "kp5"), (0xFF9E, "kp0"), (0xFF9F, "kpdot"),
    (0xFFAA, "kpasterisk"), (0xFFAB, "kpplus"), (0xFFAC, "kpcomma"), (0xFFAD, "kpminus"), (0xFFAE, "kpdot"),
    (0xFFAF, "kpslash"), (0xFFBD, "kpequal"),
    (0xFFB0, "kp0"), (0xFFB1, "kp1"), (0xFFB2, "kp2"), (0xFFB3, "kp3"), (0xFFB4, "kp4"),
    (0xFFB5, "kp5"), (0xFFB6, "kp6"), (0xFFB7, "kp7"), (0xFFB8, "kp8"), (0xFFB9, "kp9"),
    (0xFFE1, "shift"), (0xFFE2, "rightshift"), (0xFFE3, "ctrl"), (0xFFE4, "rightctrl"), (0xFFE5, "capslock"),
    (0xFFE7, "meta"), (0xFFE8, "rightmeta"), (0xFFE9, "alt"), (0xFFEA, "rightalt"),
    (0xFFEB, "meta"), (0xFFEC, "rightmeta"), (0xFFFF, "delete"),
    (0x1008_FF11, "volumedown"), (0x1008_FF12, "mute"), (0x1008_FF13, "volumeup"),
    (0x1008_FF14, "playpause"), (0x1008_FF15, "stopcd"), (0x1008_FF16, "previoussong"), (0x1008_FF17, "nextsong"),
];

const F1: u32 = 0xFFBE;
const F24: u32 = 0xFFD5;

/// The key that makes a keysym on a keyboard of this layout, with the modifiers that a character needs.
#[must_use]
pub fn stroke_of_keysym(keysym: u32, layout: &Layout) -> Option<Stroke> {
    if let Some(character) = character(keysym) {
        return layout.stroke(character);
    }
    let key = if (F1..=F24).contains(&keysym) {
        Key::from_name(&format!("f{}", keysym - F1 + 1))
    } else {
        let (_, name) = FUNCTION.iter().find(|(known, _)| *known == keysym)?;
        Key::from_name(name)
    };
    key.map(Stroke::alone)
}

/// The printable character of a keysym: Latin 1 as it is, others above 01000000h.
fn character(keysym: u32) -> Option<char> {
    let code = match keysym {
        0x20..=0x7E | 0xA0..=0xFF => keysym,
        // The euro sign has a number of its own.
        0x20AC => keysym,
        0x0100_0100..=0x0110_FFFF => keysym - 0x0100_0000,
        _ => return None,
    };
    char::from_u32(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keysyms_find_their_keys() {
        let key = |keysym| stroke_of_keysym(keysym, &Layout::US).map(|stroke| stroke.key.name());
        assert_eq!(key(u32::from('a')), Some("a"));
        assert_eq!(key(u32::from('A')), Some("a"));
        assert_eq!(key(u32::from('!')), Some("1"));
        assert_eq!(
            (key(0xFF0D), key(0xFFBE), key(0xFFC9)),
            (Some("enter"), Some("f1"), Some("f12"))
        );
        assert_eq!((key(0xFFFF), key(0xFFE9), key(0)), (Some("delete"), Some("alt"), None));
        assert_eq!(key(0x0100_0000 + u32::from('é')), None);
        let german = "de".parse().unwrap();
        assert_eq!(
            stroke_of_keysym(0xE4, &german).map(|s| s.key.name()),
            Some("apostrophe")
        );
        assert_eq!(stroke_of_keysym(0x20AC, &german).map(|s| s.key.name()), Some("e"));
    }

    #[test]
    fn names_in_the_table_exist() {
        for (keysym, name) in FUNCTION {
            assert!(Key::from_name(name).is_some(), "{keysym:x} {name}");
        }
    }
}
