//! Input device: a keyboard, a tablet or a mouse, as Linux's input subsystem knows them.
//!
//! Events wait for the driver, a bounded number of them; keys that went down always come up again. Lights of the keyboard are
//! the driver's to set.
//!
//! Spec: virtio 1.2 §5.8; Linux include/uapi/linux/input-event-codes.h.

use std::collections::BTreeSet;
use std::collections::VecDeque;

use ::input::Button;
use ::input::Event;
use ::input::Key;
use device_model::Inspect;
use device_model::Node;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::VmTime;
use serde::Deserialize;
use serde::Serialize;

use crate::RingError;
use crate::Rings;
use crate::VirtioDevice;
use crate::id;

/// Entries of each queue.
const ENTRIES: u16 = 64;
/// Queues (§5.8.2).
const EVENTS: usize = 0;
const STATUS: usize = 1;
/// Events that wait at most; what comes then is lost, but for keys that come up.
const WAITING: usize = 1024;
/// The largest place of a tablet on each axis.
const PLACE_MAX: u32 = 0x7fff;
/// Bytes of configuration space before what was selected, and of the latter.
const HEAD: usize = 8;
const SELECTED: usize = 128;

/// What is selected in configuration space (§5.8.4).
mod select {
    pub(super) const ID_NAME: u8 = 0x01;
    pub(super) const ID_DEVIDS: u8 = 0x03;
    pub(super) const PROP_BITS: u8 = 0x10;
    pub(super) const EV_BITS: u8 = 0x11;
    pub(super) const ABS_INFO: u8 = 0x12;
}

/// Types of events.
mod ev {
    pub(super) const SYN: u16 = 0x00;
    pub(super) const KEY: u16 = 0x01;
    pub(super) const REL: u16 = 0x02;
    pub(super) const ABS: u16 = 0x03;
    pub(super) const LED: u16 = 0x11;
    pub(super) const REP: u16 = 0x14;
}

/// Axes, of movement and of places.
const X: u16 = 0;
const Y: u16 = 1;
const REL_HWHEEL: u16 = 6;
const REL_WHEEL: u16 = 8;
/// The first button of mice.
const BTN_LEFT: u16 = 0x110;
/// Lights: Num Lock, Caps Lock, Scroll Lock.
const LEDS: [u16; 3] = [0, 1, 2];
/// A bus of virtual devices; a pointer, as a property.
const BUS_VIRTUAL: u16 = 6;
const PROP_POINTER: u16 = 0;

/// What kind of device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    /// A keyboard with lights.
    Keyboard,
    /// A pointer that knows places.
    Tablet,
    /// A pointer that knows movement.
    Mouse,
}

impl InputKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Keyboard => "Oxbow virtio keyboard",
            Self::Tablet => "Oxbow virtio tablet",
            Self::Mouse => "Oxbow virtio mouse",
        }
    }

    const fn product(self) -> u16 {
        match self {
            Self::Keyboard => 1,
            Self::Mouse => 2,
            Self::Tablet => 3,
        }
    }

    /// Codes of a type of event that it has.
    fn codes(self, kind: u16) -> Vec<u16> {
        let buttons = || (BTN_LEFT..BTN_LEFT + 5).collect();
        match (self, kind) {
            (Self::Keyboard, ev::KEY) => Key::all().map(Key::code).collect(),
            (Self::Keyboard, ev::LED) => LEDS.to_vec(),
            // Delay and period: the guest repeats keys by itself.
            (Self::Keyboard, ev::REP) => vec![0, 1],
            (Self::Tablet | Self::Mouse, ev::KEY) => buttons(),
            (Self::Tablet, ev::ABS) => vec![X, Y],
            (Self::Tablet, ev::REL) => vec![REL_HWHEEL, REL_WHEEL],
            (Self::Mouse, ev::REL) => vec![X, Y, REL_HWHEEL, REL_WHEEL],
            _ => Vec::new(),
        }
    }
}

/// An event as the driver gets it: type, code, value.
type Raw = (u16, u16, i32);

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    /// The driver is up.
    up: bool,
    select: u8,
    subsel: u8,
    waiting: VecDeque<Raw>,
    /// Keys and buttons that are down, as far as the driver knows or will know.
    down: BTreeSet<u16>,
    leds: u8,
    lost: u64,
}

/// The device.
pub struct Input {
    // Configuration
    kind: InputKind,
    // State
    state: State,
}

/// Bits of `codes`, as short as may be.
fn bitmap(codes: &[u16]) -> Vec<u8> {
    let len = codes.iter().max().map_or(0, |most| usize::from(*most) / 8 + 1);
    let mut bytes = vec![0u8; len];
    for code in codes {
        if let Some(byte) = bytes.get_mut(usize::from(*code) / 8) {
            *byte |= 1 << (code % 8);
        }
    }
    bytes
}

impl Input {
    /// A device of a kind.
    #[must_use]
    pub fn new(kind: InputKind) -> Self {
        Self {
            kind,
            state: State::default(),
        }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> InputKind {
        self.kind
    }

    /// Whether the guest has a driver for it.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.state.up
    }

    /// Events that the driver has not taken.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state.waiting.len()
    }

    /// Lights, as the guest set them: bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock.
    #[must_use]
    pub fn leds(&self) -> u8 {
        self.state.leds
    }

    /// Something that the user does; what is none of its kind's business is left out.
    pub fn input(&mut self, event: Event) {
        match (self.kind, event) {
            (InputKind::Keyboard, Event::Key { key, down }) => self.press(key.code(), down),
            (InputKind::Tablet | InputKind::Mouse, Event::Button { button, down }) => {
                let code = match button {
                    Button::Left => BTN_LEFT,
                    Button::Right => BTN_LEFT + 1,
                    Button::Middle => BTN_LEFT + 2,
                    Button::Side => BTN_LEFT + 3,
                    Button::Extra => BTN_LEFT + 4,
                };
                self.press(code, down);
            }
            (InputKind::Mouse, Event::Move { dx, dy }) => self.tell(&[(ev::REL, X, dx), (ev::REL, Y, dy)]),
            (InputKind::Tablet, Event::Place { x, y, width, height }) => {
                let (x, y) = (scaled(x, width), scaled(y, height));
                self.tell(&[(ev::ABS, X, x), (ev::ABS, Y, y)]);
            }
            // A wheel that turns up counts up.
            (InputKind::Tablet | InputKind::Mouse, Event::Wheel { dy, dx }) => {
                self.tell(&[(ev::REL, REL_WHEEL, dy.saturating_neg()), (ev::REL, REL_HWHEEL, dx)]);
            }
            _ => {}
        }
    }

    fn press(&mut self, code: u16, down: bool) {
        let full = self.state.waiting.len() >= WAITING;
        let known = self.state.down.contains(&code);
        if down && full {
            self.state.lost = self.state.lost.wrapping_add(1);
        } else if down != known {
            if down {
                self.state.down.insert(code);
            } else {
                self.state.down.remove(&code);
            }
            self.state.waiting.push_back((ev::KEY, code, down.into()));
            self.state.waiting.push_back((ev::SYN, 0, 0));
        }
    }

    /// Movement and places: those that are not zero, or all of places.
    fn tell(&mut self, events: &[Raw]) {
        if self.state.waiting.len() >= WAITING {
            self.state.lost = self.state.lost.wrapping_add(1);
            return;
        }
        let events = events.iter().filter(|(kind, _, value)| *kind == ev::ABS || *value != 0);
        let before = self.state.waiting.len();
        self.state.waiting.extend(events);
        if self.state.waiting.len() > before {
            self.state.waiting.push_back((ev::SYN, 0, 0));
        }
    }

    /// What is selected in configuration space.
    fn selected(&self) -> Vec<u8> {
        let (select, subsel) = (self.state.select, self.state.subsel);
        match (select, subsel) {
            (select::ID_NAME, 0) => self.kind.name().as_bytes().to_vec(),
            (select::ID_DEVIDS, 0) => {
                let ids = [BUS_VIRTUAL, 0x80ee, self.kind.product(), 1];
                ids.iter().flat_map(|id| id.to_le_bytes()).collect()
            }
            (select::PROP_BITS, 0) if self.kind == InputKind::Mouse => bitmap(&[PROP_POINTER]),
            (select::EV_BITS, kind) => bitmap(&self.kind.codes(kind.into())),
            (select::ABS_INFO, 0 | 1) if self.kind == InputKind::Tablet => {
                // From, to, noise, flat middle, resolution.
                let info = [0, PLACE_MAX, 0, 0, 0];
                info.iter().flat_map(|word| word.to_le_bytes()).collect()
            }
            _ => Vec::new(),
        }
    }

    fn go(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        while let Some(mut chain) = rings.pop(STATUS) {
            let [kind, code, value, _]: [u16; 4] = chain.take_obj(rings.memory())?;
            if kind == ev::LED {
                self.light(code, value != 0);
            }
            rings.push(STATUS, chain.head, 0);
        }
        while !self.state.waiting.is_empty() {
            let Some(mut chain) = rings.pop(EVENTS) else { break };
            if chain.writable_len() < 8 {
                return Err(RingError::Shape);
            }
            let (kind, code, value) = self.state.waiting.pop_front().unwrap_or_default();
            let ([a, b], [c, d], [e, f, g, h]) = (kind.to_le_bytes(), code.to_le_bytes(), value.to_le_bytes());
            let put = chain.put(rings.memory(), &[a, b, c, d, e, f, g, h])?;
            rings.push(EVENTS, chain.head, u32::try_from(put).unwrap_or(0));
        }
        Ok(())
    }

    fn light(&mut self, code: u16, on: bool) {
        // The order of lights here is that of PS/2.
        let bit = match code {
            0 => 1 << 1,
            1 => 1 << 2,
            2 => 1 << 0,
            _ => return,
        };
        self.state.leds = self.state.leds & !bit | if on { bit } else { 0 };
    }
}

/// A place among `size` as one among all that a tablet knows.
fn scaled(at: u32, size: u32) -> i32 {
    let last = u64::from(size.saturating_sub(1).max(1));
    let scaled = u64::from(at).min(last) * u64::from(PLACE_MAX) / last;
    i32::try_from(scaled).unwrap_or(0)
}

impl VirtioDevice for Input {
    fn id(&self) -> u16 {
        id::INPUT
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; 2]
    }

    fn config(&self) -> Vec<u8> {
        let mut selected = self.selected();
        let size = u8::try_from(selected.len()).unwrap_or(0);
        selected.resize(SELECTED, 0);
        let mut config = vec![self.state.select, self.state.subsel, size];
        config.resize(HEAD, 0);
        config.extend(selected);
        config
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            match at {
                0 => self.state.select = *byte,
                1 => self.state.subsel = *byte,
                _ => {}
            }
        }
    }

    fn activate(&mut self, _features: u64) {
        self.state.up = true;
    }

    fn poll(&mut self, _now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        let done = self.go(rings);
        rings.check(done);
        None
    }

    fn reset(&mut self) {
        self.state = State::default();
    }
}

impl Snapshot for Input {
    type State = InputV1;

    fn save(&self) -> InputV1 {
        let Self { kind: _, state } = self;
        InputV1 { state: state.clone() }
    }

    fn restore(&mut self, saved: InputV1) -> Result<(), RestoreError> {
        let InputV1 { state } = saved;
        // Each key that is down may wait to come up, with what follows it.
        let most = WAITING + 2 * SELECTED * 8 + 3;
        if state.waiting.len() > most || state.down.len() > SELECTED * 8 {
            return Err(RestoreError::Invalid("more input than waits".to_owned()));
        }
        self.state = state;
        Ok(())
    }
}

impl Inspect for Input {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("name", self.kind.name())
            .with("up", self.state.up)
            .with("waiting", self.state.waiting.len() as u64)
            .with("down", self.state.down.len() as u64)
            .with("leds", self.state.leds)
            .with("lost", self.state.lost)
    }
}

/// Saved state of [`Input`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputV1 {
    state: State,
}

impl Schema for InputV1 {
    const NAME: &'static str = "virtio_input";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
