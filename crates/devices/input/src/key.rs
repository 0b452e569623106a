//! Keys by the codes of Linux's input subsystem, with their names and their scan codes in set 1.
//!
//! Spec: Linux include/uapi/linux/input-event-codes.h; IBM Personal System/2 Hardware Interface Technical Reference (1990),
//! "Keyboards (101- and 102-key)"; Microsoft, "Keyboard Scan Code Specification" (2000) for keys of media and power.

use std::fmt;

/// A physical key, by its `KEY_` code of Linux.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(u16);

/// Code, scan code in set 1 (E0xxh with that prefix, E11Dh for Pause), names: the first one is told, others are understood.
#[rustfmt::skip]
const KEYS: &[(u16, u16, &[&str])] = &[
    (1,  0x01, &["esc", "escape"]),
    (2,  0x02, &["1"]), (3,  0x03, &["2"]), (4,  0x04, &["3"]), (5,  0x05, &["4"]), (6,  0x06, &["5"]),
    (7,  0x07, &["6"]), (8,  0x08, &["7"]), (9,  0x09, &["8"]), (10, 0x0A, &["9"]), (11, 0x0B, &["0"]),
    (12, 0x0C, &["minus"]), (13, 0x0D, &["equal", "="]),
    (14, 0x0E, &["backspace", "bksp"]), (15, 0x0F, &["tab"]),
    (16, 0x10, &["q"]), (17, 0x11, &["w"]), (18, 0x12, &["e"]), (19, 0x13, &["r"]), (20, 0x14, &["t"]),
    (21, 0x15, &["y"]), (22, 0x16, &["u"]), (23, 0x17, &["i"]), (24, 0x18, &["o"]), (25, 0x19, &["p"]),
    (26, 0x1A, &["leftbrace", "["]), (27, 0x1B, &["rightbrace", "]"]),
    (28, 0x1C, &["enter", "return", "ret"]), (29, 0x1D, &["ctrl", "leftctrl", "control", "lctrl"]),
    (30, 0x1E, &["a"]), (31, 0x1F, &["s"]), (32, 0x20, &["d"]), (33, 0x21, &["f"]), (34, 0x22, &["g"]),
    (35, 0x23, &["h"]), (36, 0x24, &["j"]), (37, 0x25, &["k"]), (38, 0x26, &["l"]),
    (39, 0x27, &["semicolon", ";"]), (40, 0x28, &["apostrophe", "'"]), (41, 0x29, &["grave", "`"]),
    (42, 0x2A, &["shift", "leftshift", "lshift"]), (43, 0x2B, &["backslash", "\\"]),
    (44, 0x2C, &["z"]), (45, 0x2D, &["x"]), (46, 0x2E, &["c"]), (47, 0x2F, &["v"]), (48, 0x30, &["b"]),
    (49, 0x31, &["n"]), (50, 0x32, &["m"]),
    (51, 0x33, &["comma", ","]), (52, 0x34, &["dot", "."]), (53, 0x35, &["slash", "/"]),
    (54, 0x36, &["rightshift", "rshift"]), (55, 0x37, &["kpasterisk", "kp*"]),
    (56, 0x38, &["alt", "leftalt", "lalt"]), (57, 0x39, &["space", "spc"]), (58, 0x3A, &["capslock"]),
    (59, 0x3B, &["f1"]), (60, 0x3C, &["f2"]), (61, 0x3D, &["f3"]), (62, 0x3E, &["f4"]), (63, 0x3F, &["f5"]),
    (64, 0x40, &["f6"]), (65, 0x41, &["f7"]), (66, 0x42, &["f8"]), (67, 0x43, &["f9"]), (68, 0x44, &["f10"]),
    (69, 0x45, &["numlock"]), (70, 0x46, &["scrolllock"]),
    (71, 0x47, &["kp7"]), (72, 0x48, &["kp8"]), (73, 0x49, &["kp9"]), (74, 0x4A, &["kpminus"]),
    (75, 0x4B, &["kp4"]), (76, 0x4C, &["kp5"]), (77, 0x4D, &["kp6"]), (78, 0x4E, &["kpplus", "kp+"]),
    (79, 0x4F, &["kp1"]), (80, 0x50, &["kp2"]), (81, 0x51, &["kp3"]), (82, 0x52, &["kp0"]), (83, 0x53, &["kpdot", "kp."]),
    (86, 0x56, &["102nd", "less"]), (87, 0x57, &["f11"]), (88, 0x58, &["f12"]),
    (89, 0x73, &["ro"]), (92, 0x79, &["henkan"]), (93, 0x70, &["katakanahiragana"]), (94, 0x7B, &["muhenkan"]),
    (96, 0xE01C, &["kpenter"]), (97, 0xE01D, &["rightctrl", "rctrl"]), (98, 0xE035, &["kpslash", "kp/"]),
    (99, 0xE037, &["sysrq", "print", "printscreen"]), (100, 0xE038, &["rightalt", "altgr", "ralt"]),
    (102, 0xE047, &["home"]), (103, 0xE048, &["up"]), (104, 0xE049, &["pageup", "pgup"]),
    (105, 0xE04B, &["left"]), (106, 0xE04D, &["right"]),
    (107, 0xE04F, &["end"]), (108, 0xE050, &["down"]), (109, 0xE051, &["pagedown", "pgdn"]),
    (110, 0xE052, &["insert", "ins"]), (111, 0xE053, &["delete", "del"]),
    (113, 0xE020, &["mute"]), (114, 0xE02E, &["volumedown"]), (115, 0xE030, &["volumeup"]),
    (116, 0xE05E, &["power"]), (117, 0x59, &["kpequal", "kp="]), (119, 0xE11D, &["pause", "break"]),
    (121, 0x7E, &["kpcomma"]), (124, 0x7D, &["yen"]),
    (125, 0xE05B, &["meta", "leftmeta", "super", "win", "cmd", "lmeta"]), (126, 0xE05C, &["rightmeta", "rmeta"]),
    (127, 0xE05D, &["menu", "compose"]),
    (140, 0xE021, &["calc"]), (142, 0xE05F, &["sleep"]), (143, 0xE063, &["wakeup"]),
    (155, 0xE06C, &["mail"]), (156, 0xE066, &["bookmarks"]), (157, 0xE06B, &["computer"]),
    (158, 0xE06A, &["back"]), (159, 0xE069, &["forward"]),
    (163, 0xE019, &["nextsong"]), (164, 0xE022, &["playpause"]), (165, 0xE010, &["previoussong"]), (166, 0xE024, &["stopcd"]),
    (172, 0xE032, &["homepage"]), (173, 0xE067, &["refresh"]),
    (183, 0x64, &["f13"]), (184, 0x65, &["f14"]), (185, 0x66, &["f15"]), (186, 0x67, &["f16"]), (187, 0x68, &["f17"]),
    (188, 0x69, &["f18"]), (189, 0x6A, &["f19"]), (190, 0x6B, &["f20"]), (191, 0x6C, &["f21"]), (192, 0x6D, &["f22"]),
    (193, 0x6E, &["f23"]), (194, 0x76, &["f24"]),
    (217, 0xE065, &["search"]), (226, 0xE06D, &["media"]),
];

impl Key {
    /// The left Ctrl key.
    pub const CTRL: Self = Self(29);
    /// The left Shift key.
    pub const SHIFT: Self = Self(42);
    /// The left Alt key.
    pub const ALT: Self = Self(56);
    /// The right Alt key, which is AltGr on many layouts.
    pub const ALT_GR: Self = Self(100);
    /// The enter key.
    pub const ENTER: Self = Self(28);
    /// The tabulator.
    pub const TAB: Self = Self(15);
    /// The space bar.
    pub const SPACE: Self = Self(57);
    /// The escape key.
    pub const ESC: Self = Self(1);
    /// The backspace key.
    pub const BACKSPACE: Self = Self(14);
    /// The delete key.
    pub const DELETE: Self = Self(111);

    /// The key with this `KEY_` code, if keyboards of PCs have it.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::find(|(known, _, _)| *known == code)
    }

    /// The key with this name, such as `f2`, `enter` or `a`, in upper or lower case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::find(|(_, _, names)| names.contains(&name.as_str()))
    }

    /// The key with this scan code in set 1: `xxh`, E0xxh, or E11Dh for Pause.
    #[must_use]
    pub fn from_scan_code(scan_code: u16) -> Option<Self> {
        // Print Screen and Pause have other codes together with Alt and Ctrl.
        let scan_code = match scan_code {
            0x54 => 0xE037,
            0xE046 => 0xE11D,
            other => other,
        };
        Self::find(|(_, known, _)| *known == scan_code)
    }

    fn find(wanted: impl Fn(&(u16, u16, &[&str])) -> bool) -> Option<Self> {
        KEYS.iter().find(|row| wanted(row)).map(|(code, _, _)| Self(*code))
    }

    fn row(self) -> Option<&'static (u16, u16, &'static [&'static str])> {
        KEYS.binary_search_by_key(&self.0, |(code, _, _)| *code)
            .ok()
            .and_then(|at| KEYS.get(at))
    }

    /// Its `KEY_` code.
    #[must_use]
    pub const fn code(self) -> u16 {
        self.0
    }

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row()
            .and_then(|(_, _, names)| names.first())
            .copied()
            .unwrap_or("?")
    }

    /// Its scan code in set 1: `xxh`, E0xxh, or E11Dh for Pause.
    #[must_use]
    pub fn scan_code(self) -> u16 {
        self.row().map_or(0, |(_, scan_code, _)| *scan_code)
    }

    /// All keys.
    pub fn all() -> impl Iterator<Item = Self> {
        KEYS.iter().map(|(code, _, _)| Self(*code))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.name())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_scan_codes_and_names_are_distinct() {
        assert!(KEYS.is_sorted_by_key(|(code, _, _)| *code));
        let scan_codes: BTreeSet<_> = KEYS.iter().map(|(_, scan_code, _)| scan_code).collect();
        assert_eq!(scan_codes.len(), KEYS.len());
        let mut names = BTreeSet::new();
        for name in KEYS.iter().flat_map(|(_, _, names)| *names) {
            assert!(names.insert(name), "{name} twice");
        }
    }

    #[test]
    fn every_key_is_found_by_all_that_it_has() {
        for key in Key::all() {
            assert_eq!(Key::from_code(key.code()), Some(key));
            assert_eq!(Key::from_name(&key.name().to_uppercase()), Some(key));
            assert_eq!(Key::from_scan_code(key.scan_code()), Some(key));
        }
        assert_eq!(Key::from_scan_code(0x54).map(Key::name), Some("sysrq"));
        assert_eq!(Key::from_code(84), None);
        assert_eq!(Key::from_name("hyper"), None);
    }
}
