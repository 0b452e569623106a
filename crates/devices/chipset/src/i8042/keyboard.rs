//! PS/2 keyboard with 102 keys: the device at the end of the controller's first port.
//!
//! All commands of the enhanced keyboard, scan code sets 1 to 3 and typematic repetition are modelled. Repeated presses from
//! the input source are ignored, because the keyboard repeats by itself. Print Screen and Pause change their codes with Alt,
//! Ctrl and Shift. Num Lock adds no made-up shifts to the keys between the letters and the numbers.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990), "Keyboards (101- and 102-key)".

use std::collections::VecDeque;

use bitfield_struct::bitfield;
use device_model::Node;
use device_model::RestoreError;
use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

use super::scancodes;

/// A key, by its scan code in set 1: the code itself, or E0xxh for a key whose code has the prefix E0h.
///
/// `0xE11D` is Pause, `0xE037` Print Screen; what they become with other keys, the keyboard knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KeyCode(pub u16);

impl KeyCode {
    /// Pause, which reports no letting go.
    pub const PAUSE: Self = Self(0xE11D);
    /// Print Screen, which comes with a shift of its own.
    pub const PRINT_SCREEN: Self = Self(0xE037);
    /// Print Screen together with Alt.
    const SYSTEM_REQUEST: Self = Self(0x54);
    /// Print Screen together with Ctrl or Shift: it needs no shift of its own.
    const PRINT_SCREEN_ALONE: Self = Self(0xE237);
    /// Pause together with Ctrl.
    const BREAK: Self = Self(0xE046);
}

/// Keys that change others' codes while they are down.
#[bitfield(u8)]
#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Modifiers {
    left_ctrl: bool,
    right_ctrl: bool,
    left_shift: bool,
    right_shift: bool,
    left_alt: bool,
    right_alt: bool,
    #[bits(2)]
    __: u8,
}

impl Modifiers {
    fn track(&mut self, key: KeyCode, down: bool) {
        match key.0 {
            0x1D => self.set_left_ctrl(down),
            0xE01D => self.set_right_ctrl(down),
            0x2A => self.set_left_shift(down),
            0x36 => self.set_right_shift(down),
            0x38 => self.set_left_alt(down),
            0xE038 => self.set_right_alt(down),
            _ => {}
        }
    }

    fn ctrl(self) -> bool {
        self.left_ctrl() || self.right_ctrl()
    }

    fn shift(self) -> bool {
        self.left_shift() || self.right_shift()
    }

    fn alt(self) -> bool {
        self.left_alt() || self.right_alt()
    }
}

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const ECHO: u8 = 0xEE;
const FIRST_COMMAND: u8 = 0xED;
const TEST_PASSED: u8 = 0xAA;
const ID: [u8; 2] = [0xAB, 0x83];
/// Bytes of keystrokes that the keyboard remembers.
const BUFFER: usize = 16;
/// Bytes of the longest code: Pause, in set 2.
const LONGEST: usize = 8;
/// Answers that can wait: more than any command has.
const REPLIES: usize = 8;
/// 10.9 characters a second after 500 ms.
const TYPEMATIC_DEFAULT: u8 = 0x2B;

/// What a key does in set 3 besides reporting that it goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct KeyKind {
    repeats: bool,
    reports_break: bool,
}

const MAKE_ONLY: KeyKind = KeyKind {
    repeats: false,
    reports_break: false,
};
const MAKE_BREAK: KeyKind = KeyKind {
    repeats: false,
    reports_break: true,
};
const TYPEMATIC: KeyKind = KeyKind {
    repeats: true,
    reports_break: false,
};
const TYPEMATIC_BREAK: KeyKind = KeyKind {
    repeats: true,
    reports_break: true,
};

/// A set of scan codes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct CodeSet([u64; 4]);

impl CodeSet {
    fn fill(on: bool) -> Self {
        Self([if on { u64::MAX } else { 0 }; 4])
    }

    fn set(&mut self, code: u8, on: bool) {
        if let Some(word) = self.0.get_mut(usize::from(code / 64)) {
            let bit = 1u64 << (code % 64);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }

    fn contains(self, code: u8) -> bool {
        let word = self.0.get(usize::from(code / 64)).copied().unwrap_or(0);
        word >> (code % 64) & 1 != 0
    }
}

/// What the next byte from the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    Command,
    Leds,
    ScanCodeSet,
    Typematic,
    /// Codes of keys that are to be of this kind, until the next command.
    Keys(KeyKind),
}

/// The keyboard's state, all of it: it has no wires but those of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keyboard {
    scanning: bool,
    set: u8,
    leds: u8,
    typematic: u8,
    /// Set 3 codes that report being let go.
    reports_break: CodeSet,
    /// Set 3 codes that repeat.
    repeats: CodeSet,
    /// The key pressed last, while it is down, and when it is reported again.
    held: Option<(KeyCode, VmTime)>,
    modifiers: Modifiers,
    /// What Print Screen was when it went down: it goes up as the same.
    print_screen: KeyCode,
    expect: Expect,
    last: u8,
    replies: VecDeque<u8>,
    keys: VecDeque<u8>,
}

impl Keyboard {
    pub(super) fn new() -> Self {
        let mut this = Self {
            scanning: true,
            set: 2,
            leds: 0,
            typematic: TYPEMATIC_DEFAULT,
            reports_break: CodeSet::default(),
            repeats: CodeSet::default(),
            held: None,
            modifiers: Modifiers::new(),
            print_screen: KeyCode::PRINT_SCREEN,
            expect: Expect::Command,
            last: 0,
            replies: VecDeque::new(),
            keys: VecDeque::new(),
        };
        this.set_defaults();
        this
    }

    /// Bits 0 to 2: Scroll Lock, Num Lock, Caps Lock.
    pub(super) fn leds(&self) -> u8 {
        self.leds
    }

    /// A key goes down or up.
    pub(super) fn key_event(&mut self, key: KeyCode, down: bool, now: VmTime) {
        self.modifiers.track(key, down);
        let held = self.held.is_some_and(|(held, _)| held == key);
        if !self.scanning || held && down {
            return;
        }
        if down {
            self.held = self.repeats(key).then(|| (key, now + self.repeat_delay_ns()));
        } else if held {
            self.held = None;
        }
        self.report(key, down);
    }

    /// Repeats the key that is held when its time has come, and says when it comes next.
    pub(super) fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        let (key, due) = self.held?;
        if due > now {
            return Some(due);
        }
        self.report(key, true);
        let next = now + self.repeat_period_ns();
        self.held = Some((key, next));
        Some(next)
    }

    fn report(&mut self, key: KeyCode, down: bool) {
        let key = self.with_modifiers(key, down);
        let codes = if key == KeyCode::BREAK && self.set != 3 {
            // Break goes up as soon as it is down.
            let codes = |down| self.encode(key, down);
            if down {
                [codes(true), codes(false)].concat()
            } else {
                Vec::new()
            }
        } else {
            self.encode(key, down)
        };
        let overrun = self.overrun();
        if self.keys.len() + codes.len() <= BUFFER {
            self.keys.extend(codes);
        } else if self.keys.back() != Some(&overrun) {
            // The buffer is full: its last byte says that keystrokes are lost.
            self.keys.truncate(BUFFER - 1);
            self.keys.push_back(overrun);
        }
    }

    /// The code of a key as other keys change it.
    fn with_modifiers(&mut self, key: KeyCode, down: bool) -> KeyCode {
        let held = self.modifiers;
        match key {
            KeyCode::PRINT_SCREEN => {
                if down {
                    self.print_screen = match () {
                        () if held.alt() => KeyCode::SYSTEM_REQUEST,
                        () if held.ctrl() || held.shift() => KeyCode::PRINT_SCREEN_ALONE,
                        () => KeyCode::PRINT_SCREEN,
                    };
                }
                self.print_screen
            }
            KeyCode::PAUSE if held.ctrl() => KeyCode::BREAK,
            _ => key,
        }
    }

    fn repeats(&self, key: KeyCode) -> bool {
        let [prefix, code] = key.0.to_be_bytes();
        match self.set {
            3 => scancodes::set3(code, prefix == scancodes::EXTENDED).is_some_and(|code| self.repeats.contains(code)),
            _ => ![KeyCode::PAUSE, KeyCode::BREAK].contains(&key),
        }
    }

    fn repeat_delay_ns(&self) -> u64 {
        (u64::from(self.typematic >> 5 & 3) + 1) * 250_000_000
    }

    /// (8 + A) * 2^B * 4.17 ms.
    fn repeat_period_ns(&self) -> u64 {
        let (a, b) = (self.typematic & 7, self.typematic >> 3 & 3);
        ((8 + u64::from(a)) << b) * 4_170_000
    }

    /// A byte from the host.
    pub(super) fn receive(&mut self, byte: u8) {
        // A command in place of an argument ends the command that waits.
        let expect = std::mem::replace(&mut self.expect, Expect::Command);
        match expect {
            Expect::Leds if byte < 0x80 => {
                self.leds = byte & 0x07;
                self.reply(&[ACK]);
            }
            Expect::ScanCodeSet if byte <= 3 => self.select_set(byte),
            Expect::Typematic if byte < 0x80 => {
                self.typematic = byte;
                self.reply(&[ACK]);
            }
            Expect::Keys(kind) if byte < FIRST_COMMAND => {
                self.expect = expect;
                self.set_kind(byte, kind);
                self.reply(&[ACK]);
            }
            _ => self.command(byte),
        }
    }

    /// The next byte for the host.
    pub(super) fn send(&mut self) -> Option<u8> {
        let byte = self.replies.pop_front().or_else(|| self.keys.pop_front())?;
        if byte != RESEND {
            self.last = byte;
        }
        Some(byte)
    }

    /// Bytes of keystrokes that the host has not read.
    pub(super) fn waiting(&self) -> usize {
        self.keys.len()
    }

    /// Whether there is room for the longest code of a key.
    pub(super) fn has_room(&self) -> bool {
        self.keys.len() + LONGEST <= BUFFER
    }

    /// Checks a restored state.
    pub(super) fn check(&self) -> Result<(), RestoreError> {
        let print_screen = [
            KeyCode::PRINT_SCREEN,
            KeyCode::PRINT_SCREEN_ALONE,
            KeyCode::SYSTEM_REQUEST,
        ];
        if self.keys.len() > BUFFER
            || self.replies.len() > REPLIES
            || !(1..=3).contains(&self.set)
            || !print_screen.contains(&self.print_screen)
        {
            return Err(RestoreError::Invalid("keyboard buffer or scan code set".into()));
        }
        Ok(())
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("scanning", self.scanning)
            .with("set", self.set)
            .with("leds", self.leds)
            .with("typematic", self.typematic)
            .with(
                "waiting",
                u64::try_from(self.replies.len() + self.keys.len()).unwrap_or(u64::MAX),
            )
    }

    fn command(&mut self, command: u8) {
        match command {
            0xED => self.begin(Expect::Leds),
            ECHO => self.reply(&[ECHO]),
            0xF0 => self.begin(Expect::ScanCodeSet),
            0xF2 => {
                let [low, high] = ID;
                self.reply(&[ACK, low, high]);
            }
            0xF3 => self.begin(Expect::Typematic),
            0xF4 => {
                self.keys.clear();
                self.scanning = true;
                self.reply(&[ACK]);
            }
            0xF5 | 0xF6 => {
                self.set_defaults();
                self.keys.clear();
                self.held = None;
                self.scanning = command == 0xF6;
                self.reply(&[ACK]);
            }
            0xF7..=0xFA => {
                let kind = match command {
                    0xF7 => TYPEMATIC,
                    0xF8 => MAKE_BREAK,
                    0xF9 => MAKE_ONLY,
                    _ => TYPEMATIC_BREAK,
                };
                self.repeats = CodeSet::fill(kind.repeats);
                self.reports_break = CodeSet::fill(kind.reports_break);
                self.reply(&[ACK]);
            }
            0xFB => self.begin(Expect::Keys(TYPEMATIC)),
            0xFC => self.begin(Expect::Keys(MAKE_BREAK)),
            0xFD => self.begin(Expect::Keys(MAKE_ONLY)),
            RESEND => self.reply(&[self.last]),
            0xFF => {
                // Fingers stay where they are.
                let modifiers = self.modifiers;
                *self = Self::new();
                self.modifiers = modifiers;
                self.reply(&[ACK, TEST_PASSED]);
            }
            _ => self.reply(&[RESEND]),
        }
    }

    fn begin(&mut self, expect: Expect) {
        self.expect = expect;
        self.reply(&[ACK]);
    }

    fn reply(&mut self, bytes: &[u8]) {
        // A host that sends commands and reads no answers loses the oldest.
        while self.replies.len() + bytes.len() > REPLIES {
            self.replies.pop_front();
        }
        self.replies.extend(bytes);
    }

    fn select_set(&mut self, set: u8) {
        if set == 0 {
            self.reply(&[ACK, self.set]);
        } else {
            self.set = set;
            self.keys.clear();
            self.held = None;
            self.reply(&[ACK]);
        }
    }

    fn set_defaults(&mut self) {
        self.set = 2;
        self.typematic = TYPEMATIC_DEFAULT;
        self.repeats = CodeSet::fill(true);
        self.reports_break = CodeSet::fill(false);
        for code in scancodes::SET3_MAKE_BREAK {
            self.set_kind(code, MAKE_BREAK);
        }
        for code in scancodes::SET3_MAKE_ONLY {
            self.set_kind(code, MAKE_ONLY);
        }
    }

    fn set_kind(&mut self, code: u8, kind: KeyKind) {
        self.repeats.set(code, kind.repeats);
        self.reports_break.set(code, kind.reports_break);
    }

    fn overrun(&self) -> u8 {
        if self.set == 1 { 0xFF } else { 0x00 }
    }

    /// The bytes that report an event of `key`.
    fn encode(&self, key: KeyCode, down: bool) -> Vec<u8> {
        let alone = key == KeyCode::PRINT_SCREEN_ALONE;
        let [prefix, code] = key.0.to_be_bytes();
        let extended = alone || prefix == scancodes::EXTENDED;
        if key != KeyCode::PAUSE && (!extended && prefix != 0 || code == 0 || code >= 0x80) {
            return Vec::new();
        }
        match self.set {
            3 => self.encode_set3(key, code, extended, down),
            set => encode_set1_or_2(set, key, code, extended, down),
        }
    }

    fn encode_set3(&self, key: KeyCode, code: u8, extended: bool, down: bool) -> Vec<u8> {
        let code = if key == KeyCode::PAUSE {
            Some(0x62)
        } else {
            scancodes::set3(code, extended)
        };
        match code {
            Some(code) if down => vec![code],
            Some(code) if self.reports_break.contains(code) => vec![scancodes::BREAK, code],
            _ => Vec::new(),
        }
    }
}

fn encode_set1_or_2(set: u8, key: KeyCode, code: u8, extended: bool, down: bool) -> Vec<u8> {
    let one = |code: u8, extended: bool, down: bool| -> Vec<u8> {
        let prefix = extended.then_some(scancodes::EXTENDED);
        if set == 1 {
            let code = if down { code } else { code | 0x80 };
            return prefix.into_iter().chain([code]).collect();
        }
        let let_go = (!down).then_some(scancodes::BREAK);
        prefix.into_iter().chain(let_go).chain(scancodes::set2(code)).collect()
    };
    match key {
        KeyCode::PAUSE if !down => Vec::new(),
        KeyCode::PAUSE if set == 1 => vec![scancodes::PAUSE, 0x1D, 0x45, scancodes::PAUSE, 0x9D, 0xC5],
        KeyCode::PAUSE => vec![scancodes::PAUSE, 0x14, 0x77, scancodes::PAUSE, 0xF0, 0x14, 0xF0, 0x77],
        // The shift that Print Screen had on the 84-key keyboard.
        KeyCode::PRINT_SCREEN if down => [one(0x2A, true, true), one(0x37, true, true)].concat(),
        KeyCode::PRINT_SCREEN => [one(0x37, true, false), one(0x2A, true, false)].concat(),
        _ => one(code, extended, down),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(keyboard: &mut Keyboard, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|byte| keyboard.receive(*byte));
        drain(keyboard)
    }

    fn drain(keyboard: &mut Keyboard) -> Vec<u8> {
        std::iter::from_fn(|| keyboard.send()).collect()
    }

    #[test]
    fn reset_passes_and_identify_answers() {
        let mut k = Keyboard::new();
        assert_eq!(tell(&mut k, &[0xFF]), [0xFA, 0xAA]);
        assert_eq!(tell(&mut k, &[0xF2]), [0xFA, 0xAB, 0x83]);
        assert_eq!(tell(&mut k, &[0xEE]), [0xEE]);
        assert_eq!(tell(&mut k, &[0x12]), [0xFE]);
    }

    #[test]
    fn leds_and_rate_take_an_argument() {
        let mut k = Keyboard::new();
        assert_eq!(tell(&mut k, &[0xED, 0x05]), [0xFA, 0xFA]);
        assert_eq!(k.leds(), 5);
        assert_eq!(tell(&mut k, &[0xF3, 0x00]), [0xFA, 0xFA]);
        // A command where an argument was due is a command.
        assert_eq!(tell(&mut k, &[0xED, 0xEE]), [0xFA, 0xEE]);
        assert_eq!(k.leds(), 5);
    }

    #[test]
    fn keys_report_in_the_selected_set() {
        let mut k = Keyboard::new();
        let mut press = |set: u8, key: u16| {
            tell(&mut k, &[0xF0, set]);
            k.key_event(KeyCode(key), true, VmTime::ZERO);
            k.key_event(KeyCode(key), false, VmTime::ZERO);
            drain(&mut k)
        };
        assert_eq!(press(1, 0x1E), [0x1E, 0x9E]);
        assert_eq!(press(2, 0x1E), [0x1C, 0xF0, 0x1C]);
        assert_eq!(press(1, 0xE048), [0xE0, 0x48, 0xE0, 0xC8]);
        assert_eq!(press(2, 0xE048), [0xE0, 0x75, 0xE0, 0xF0, 0x75]);
        assert_eq!(
            press(2, 0xE037),
            [0xE0, 0x12, 0xE0, 0x7C, 0xE0, 0xF0, 0x7C, 0xE0, 0xF0, 0x12]
        );
        assert_eq!(press(2, 0xE11D), [0xE1, 0x14, 0x77, 0xE1, 0xF0, 0x14, 0xF0, 0x77]);
        assert_eq!(press(3, 0x1E), [0x1C]);
        assert_eq!(press(3, 0x2A), [0x12, 0xF0, 0x12]);
        assert!(press(2, 0x0080).is_empty() && press(2, 0xE300).is_empty());
    }

    #[test]
    fn print_screen_and_pause_change_with_other_keys() {
        let mut k = Keyboard::new();
        tell(&mut k, &[0xF0, 1]);
        let mut with = |modifier: u16, key: KeyCode| {
            k.key_event(KeyCode(modifier), true, VmTime::ZERO);
            drain(&mut k);
            k.key_event(key, true, VmTime::ZERO);
            let down = drain(&mut k);
            k.key_event(KeyCode(modifier), false, VmTime::ZERO);
            drain(&mut k);
            k.key_event(key, false, VmTime::ZERO);
            (down, drain(&mut k))
        };
        let print = KeyCode::PRINT_SCREEN;
        assert_eq!(with(0x38, print), (vec![0x54], vec![0xD4]));
        assert_eq!(with(0xE038, print), (vec![0x54], vec![0xD4]));
        assert_eq!(with(0x2A, print), (vec![0xE0, 0x37], vec![0xE0, 0xB7]));
        assert_eq!(
            with(0x1E, print),
            (vec![0xE0, 0x2A, 0xE0, 0x37], vec![0xE0, 0xB7, 0xE0, 0xAA])
        );
        assert_eq!(with(0x1D, KeyCode::PAUSE), (vec![0xE0, 0x46, 0xE0, 0xC6], vec![]));
    }

    #[test]
    fn set3_make_break_follows_commands() {
        let mut k = Keyboard::new();
        assert_eq!(tell(&mut k, &[0xF0, 3, 0xF0, 0]), [0xFA, 0xFA, 0xFA, 0xFA, 3]);
        assert_eq!(tell(&mut k, &[0xFC, 0x1C, 0x1B, 0xF4]), [0xFA; 4]);
        let mut release = |key| {
            k.key_event(KeyCode(key), false, VmTime::ZERO);
            drain(&mut k)
        };
        assert_eq!(release(0x1E), [0xF0, 0x1C]);
        assert_eq!(release(0x1F), [0xF0, 0x1B]);
        assert!(release(0x20).is_empty());
        assert_eq!(tell(&mut k, &[0xF8]), [0xFA]);
        k.key_event(KeyCode(0x20), false, VmTime::ZERO);
        assert_eq!(drain(&mut k), [0xF0, 0x23]);
    }

    #[test]
    fn disabled_keyboard_is_silent() {
        let mut k = Keyboard::new();
        tell(&mut k, &[0xF5]);
        k.key_event(KeyCode(0x1E), true, VmTime::ZERO);
        assert!(drain(&mut k).is_empty());
        tell(&mut k, &[0xF4]);
        k.key_event(KeyCode(0x1E), true, VmTime::ZERO);
        assert_eq!(drain(&mut k), [0x1C]);
    }

    #[test]
    fn full_buffer_ends_with_the_overrun_code() {
        let mut k = Keyboard::new();
        for _ in 0..8 {
            k.key_event(KeyCode(0x1E), true, VmTime::ZERO);
            k.key_event(KeyCode(0x1E), false, VmTime::ZERO);
        }
        let mut expected = [0x1C, 0xF0, 0x1C].repeat(5);
        expected.push(0x00);
        assert_eq!(drain(&mut k), expected);
    }

    #[test]
    fn resend_repeats_the_last_byte() {
        let mut k = Keyboard::new();
        assert_eq!(tell(&mut k, &[0xF2]), [0xFA, 0xAB, 0x83]);
        assert_eq!(tell(&mut k, &[0xFE]), [0x83]);
    }

    #[test]
    fn held_key_repeats_at_the_rate_that_was_set() {
        let mut k = Keyboard::new();
        // 250 ms, then 30 a second.
        tell(&mut k, &[0xF3, 0x00]);
        k.key_event(KeyCode(0x1E), true, VmTime::ZERO);
        assert_eq!(k.poll(VmTime::ZERO), Some(VmTime::from_ns(250_000_000)));
        assert_eq!(drain(&mut k), [0x1C]);
        let due = VmTime::from_ns(250_000_000);
        // The source's own repetition counts for nothing.
        k.key_event(KeyCode(0x1E), true, due);
        assert_eq!(k.poll(due), Some(VmTime::from_ns(283_360_000)));
        assert_eq!(drain(&mut k), [0x1C]);
        k.key_event(KeyCode(0x1E), false, due);
        assert_eq!(k.poll(due), None);
        assert_eq!(drain(&mut k), [0xF0, 0x1C]);
    }

    #[test]
    fn set3_repeats_typematic_keys_only() {
        let mut k = Keyboard::new();
        tell(&mut k, &[0xF0, 3]);
        k.key_event(KeyCode(0x3B), true, VmTime::ZERO);
        assert_eq!(k.poll(VmTime::ZERO), None);
        k.key_event(KeyCode(0x1E), true, VmTime::ZERO);
        assert!(k.poll(VmTime::ZERO).is_some());
    }
}
