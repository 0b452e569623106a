//! PS/2 mouse with the IntelliMouse extensions: the device at the end of the controller's second port.
//!
//! Stream, remote and wrap mode, scaling, resolution and rate, the wheel (ID 3) and five buttons (ID 4) are modelled.
//! Reports are made when there is room for them rather than at the sample rate, and movement in between adds up.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990), "Mouse"; Microsoft, "IntelliMouse Explorer
//! PS/2 protocol".

use std::collections::VecDeque;

use bitfield_struct::bitfield;
use device_model::Node;
use device_model::RestoreError;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;

/// A movement of the mouse, and its buttons.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MouseEvent {
    /// Counts to the right.
    pub dx: i32,
    /// Counts upwards.
    pub dy: i32,
    /// Notches of the wheel towards the user.
    pub wheel: i32,
    /// Buttons held now: bit 0 left, 1 right, 2 middle, 3 and 4 the side buttons.
    pub buttons: u8,
}

const ACK: u8 = 0xFA;
const RESEND: u8 = 0xFE;
const ERROR: u8 = 0xFC;
const TEST_PASSED: u8 = 0xAA;
const FIRST_COMMAND: u8 = 0xE6;
/// Reports wait in this many bytes.
const BUFFER: usize = 16;
/// Answers that can wait: more than any command has.
const REPLIES: usize = 8;
/// Movement that adds up while nobody reads.
const FARTHEST: i32 = 0x7FFF;
/// 4 counts a millimetre.
const DEFAULT_RESOLUTION: u8 = 2;
/// Reports a second.
const DEFAULT_RATE: u8 = 100;
const ID_STANDARD: u8 = 0;
const ID_WHEEL: u8 = 3;
const ID_EXPLORER: u8 = 4;
const BUTTONS: u8 = 0x1F;

/// What the next byte from the host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    Command,
    Resolution,
    Rate,
}

/// The first byte of a report.
#[bitfield(u8)]
struct Head {
    left: bool,
    right: bool,
    middle: bool,
    one: bool,
    x_sign: bool,
    y_sign: bool,
    x_overflow: bool,
    y_overflow: bool,
}

/// The first byte of a status report.
#[bitfield(u8)]
struct Status {
    right: bool,
    middle: bool,
    left: bool,
    __: bool,
    scaling: bool,
    reporting: bool,
    remote: bool,
    __: bool,
}

/// The mouse's state, all of it: it has no wires but those of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mouse {
    id: u8,
    reporting: bool,
    remote: bool,
    wrap: bool,
    scaling: bool,
    resolution: u8,
    rate: u8,
    /// The two rates set before this one: the knock that enables the extensions.
    knock: [u8; 2],
    expect: Expect,
    last: u8,
    dx: i32,
    dy: i32,
    wheel: i32,
    buttons: u8,
    reported_buttons: u8,
    replies: VecDeque<u8>,
    reports: VecDeque<u8>,
}

impl Mouse {
    pub(super) fn new() -> Self {
        Self {
            id: ID_STANDARD,
            reporting: false,
            remote: false,
            wrap: false,
            scaling: false,
            resolution: DEFAULT_RESOLUTION,
            rate: DEFAULT_RATE,
            knock: [0; 2],
            expect: Expect::Command,
            last: 0,
            dx: 0,
            dy: 0,
            wheel: 0,
            buttons: 0,
            reported_buttons: 0,
            replies: VecDeque::new(),
            reports: VecDeque::new(),
        }
    }

    /// The mouse moves, or a button changes.
    pub(super) fn mouse_event(&mut self, event: MouseEvent) {
        let add = |sum: i32, more: i32| sum.saturating_add(more).clamp(-FARTHEST, FARTHEST);
        self.dx = add(self.dx, event.dx);
        self.dy = add(self.dy, event.dy);
        self.wheel = add(self.wheel, event.wheel);
        self.buttons = event.buttons & BUTTONS;
        self.stream();
    }

    /// Buttons held now.
    pub(super) fn buttons(&self) -> u8 {
        self.buttons
    }

    /// A byte from the host.
    pub(super) fn receive(&mut self, byte: u8) {
        if self.wrap && byte != 0xEC && byte != 0xFF {
            self.reply(&[byte]);
            return;
        }
        match std::mem::replace(&mut self.expect, Expect::Command) {
            Expect::Command => self.command(byte),
            Expect::Resolution if byte <= 3 => {
                self.resolution = byte;
                self.reply(&[ACK]);
            }
            Expect::Rate if [10, 20, 40, 60, 80, 100, 200].contains(&byte) => self.set_rate(byte),
            // A command in place of an argument ends the command that waits; anything else is an error.
            _ if byte >= FIRST_COMMAND => self.command(byte),
            _ => self.reply(&[ERROR]),
        }
    }

    /// The next byte for the host.
    pub(super) fn send(&mut self) -> Option<u8> {
        let byte = self.replies.pop_front().or_else(|| self.reports.pop_front())?;
        if byte != RESEND {
            self.last = byte;
        }
        self.stream();
        Some(byte)
    }

    /// Checks a restored state.
    pub(super) fn check(&self) -> Result<(), RestoreError> {
        let far = |v: i32| !(-FARTHEST..=FARTHEST).contains(&v);
        if self.reports.len() > BUFFER
            || self.replies.len() > REPLIES
            || far(self.dx)
            || far(self.dy)
            || far(self.wheel)
            || (self.buttons | self.reported_buttons) & !BUTTONS != 0
        {
            return Err(RestoreError::Invalid("mouse buffer or movement".into()));
        }
        Ok(())
    }

    pub(super) fn inspect(&self) -> Node {
        Node::tree()
            .with("id", self.id)
            .with("reporting", self.reporting)
            .with("remote", self.remote)
            .with("wrap", self.wrap)
            .with("resolution", self.resolution)
            .with("rate", self.rate)
            .with("buttons", self.buttons)
            .with(
                "waiting",
                u64::try_from(self.replies.len() + self.reports.len()).unwrap_or(u64::MAX),
            )
    }

    fn command(&mut self, command: u8) {
        match command {
            0xE6 | 0xE7 => self.scaling = command == 0xE7,
            0xE8 => self.expect = Expect::Resolution,
            0xE9 => {
                let [status, resolution, rate] = self.status();
                return self.reply(&[ACK, status, resolution, rate]);
            }
            0xEA => self.remote = false,
            0xEB => {
                self.reply(&[ACK]);
                let report = self.report(false);
                return self.reply(&report);
            }
            0xEC => self.wrap = false,
            0xEE => self.wrap = true,
            0xF0 => self.remote = true,
            0xF2 => return self.reply(&[ACK, self.id]),
            0xF3 => self.expect = Expect::Rate,
            0xF4 => self.reporting = true,
            0xF5 => self.reporting = false,
            0xF6 => self.set_defaults(),
            RESEND => return self.reply(&[self.last]),
            0xFF => {
                let buttons = self.buttons;
                *self = Self::new();
                self.buttons = buttons;
                self.reported_buttons = buttons;
                return self.reply(&[ACK, TEST_PASSED, self.id]);
            }
            _ => return self.reply(&[RESEND]),
        }
        // A change of mode throws away what has not been sent.
        self.forget();
        self.reply(&[ACK]);
    }

    fn set_defaults(&mut self) {
        self.reporting = false;
        self.remote = false;
        self.scaling = false;
        self.resolution = DEFAULT_RESOLUTION;
        self.rate = DEFAULT_RATE;
    }

    fn set_rate(&mut self, rate: u8) {
        let [older, old] = self.knock;
        self.id = match [older, old, rate] {
            [200, 100, 80] => ID_WHEEL,
            [200, 200, 80] => ID_EXPLORER,
            _ => self.id,
        };
        self.knock = [old, rate];
        self.rate = rate;
        self.reply(&[ACK]);
    }

    fn forget(&mut self) {
        self.reports.clear();
        (self.dx, self.dy, self.wheel) = (0, 0, 0);
        self.reported_buttons = self.buttons;
    }

    fn status(&self) -> [u8; 3] {
        let status = Status::new()
            .with_left(self.buttons & 1 != 0)
            .with_right(self.buttons & 2 != 0)
            .with_middle(self.buttons & 4 != 0)
            .with_scaling(self.scaling)
            .with_reporting(self.reporting)
            .with_remote(self.remote);
        [status.into_bits(), self.resolution, self.rate]
    }

    fn reply(&mut self, bytes: &[u8]) {
        // A host that sends commands and reads no answers loses the oldest.
        while self.replies.len() + bytes.len() > REPLIES {
            self.replies.pop_front();
        }
        self.replies.extend(bytes);
    }

    fn something_new(&self) -> bool {
        let wheel = self.wheel != 0 && self.id != ID_STANDARD;
        self.dx != 0 || self.dy != 0 || wheel || self.buttons != self.reported_buttons
    }

    /// In stream mode, reports what is new: at once where nothing waits, and button changes while there is room.
    fn stream(&mut self) {
        while self.reporting && !self.remote && !self.wrap && self.something_new() {
            let pressing = self.buttons != self.reported_buttons;
            let room = if pressing { BUFFER - 4 } else { 0 };
            if self.reports.len() > room {
                break;
            }
            let report = self.report(self.scaling);
            self.reports.extend(report);
        }
    }

    /// A report of what is new, which then is not any more.
    fn report(&mut self, scaled: bool) -> Vec<u8> {
        let take = |sum: &mut i32, least: i32, most: i32| {
            let part = (*sum).clamp(least, most);
            *sum -= part;
            part
        };
        let scale = |v: i32| if scaled { scale_2_to_1(v) } else { v };
        // Twice 127 still fits nine bits.
        let most = if scaled { 127 } else { 255 };
        let dx = scale(take(&mut self.dx, -most, most));
        let dy = scale(take(&mut self.dy, -most, most));
        let buttons = self.buttons;
        self.reported_buttons = buttons;
        let head = Head::new()
            .with_left(buttons & 1 != 0)
            .with_right(buttons & 2 != 0)
            .with_middle(buttons & 4 != 0)
            .with_one(true)
            .with_x_sign(dx < 0)
            .with_y_sign(dy < 0);
        let mut report = vec![head.into_bits(), low_byte(dx), low_byte(dy)];
        match self.id {
            ID_WHEEL => report.push(low_byte(take(&mut self.wheel, -8, 7))),
            ID_EXPLORER => {
                let wheel = low_byte(take(&mut self.wheel, -8, 7)) & 0x0F;
                report.push(wheel | (buttons & 0x18) << 1);
            }
            _ => self.wheel = 0,
        }
        report
    }
}

fn low_byte(value: i32) -> u8 {
    lanes::byte(u64::from(value.cast_unsigned()))
}

/// The table of 2:1 scaling.
fn scale_2_to_1(value: i32) -> i32 {
    let scaled = match value.abs() {
        small @ 0..=1 => small,
        2 => 1,
        3 => 3,
        4 => 6,
        5 => 9,
        large => large * 2,
    };
    scaled * value.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(mouse: &mut Mouse, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|byte| mouse.receive(*byte));
        drain(mouse)
    }

    fn drain(mouse: &mut Mouse) -> Vec<u8> {
        std::iter::from_fn(|| mouse.send()).collect()
    }

    fn moved(dx: i32, dy: i32, wheel: i32, buttons: u8) -> MouseEvent {
        MouseEvent { dx, dy, wheel, buttons }
    }

    #[test]
    fn reset_says_standard_mouse() {
        let mut m = Mouse::new();
        assert_eq!(tell(&mut m, &[0xFF]), [0xFA, 0xAA, 0x00]);
        assert_eq!(tell(&mut m, &[0xE9]), [0xFA, 0x00, 0x02, 100]);
        assert_eq!(tell(&mut m, &[0x00]), [0xFE]);
    }

    #[test]
    fn movement_is_reported_only_when_enabled() {
        let mut m = Mouse::new();
        m.mouse_event(moved(5, 5, 0, 0));
        assert!(drain(&mut m).is_empty());
        assert_eq!(tell(&mut m, &[0xF4]), [0xFA]);
        m.mouse_event(moved(3, -2, 1, 1));
        assert_eq!(drain(&mut m), [0x29, 3, 0xFE]);
    }

    #[test]
    fn large_movement_takes_several_reports() {
        let mut m = Mouse::new();
        tell(&mut m, &[0xF4]);
        m.mouse_event(moved(-300, 256, 0, 0));
        assert_eq!(drain(&mut m), [0x18, 0x01, 0xFF, 0x18, 0xD3, 0x01]);
    }

    #[test]
    fn clicks_are_not_lost_while_nobody_reads() {
        let mut m = Mouse::new();
        tell(&mut m, &[0xF4]);
        for buttons in [1, 0, 1, 0] {
            m.mouse_event(moved(0, 0, 0, buttons));
        }
        let heads: Vec<_> = drain(&mut m).into_iter().step_by(3).collect();
        assert_eq!(heads, [0x09, 0x08, 0x09, 0x08]);
    }

    #[test]
    fn knock_enables_wheel_and_buttons() {
        let mut m = Mouse::new();
        let acks = tell(&mut m, &[0xF3, 200, 0xF3, 100]);
        assert_eq!(acks, [0xFA; 4]);
        assert_eq!(tell(&mut m, &[0xF3, 80, 0xF2]), [0xFA, 0xFA, 0xFA, 3]);
        tell(&mut m, &[0xF4]);
        m.mouse_event(moved(0, 0, -1, 0));
        assert_eq!(drain(&mut m), [0x08, 0, 0, 0xFF]);
        tell(&mut m, &[0xF3, 200, 0xF3, 200]);
        assert_eq!(tell(&mut m, &[0xF3, 80, 0xF2]), [0xFA, 0xFA, 0xFA, 4]);
        m.mouse_event(moved(0, 0, -1, 0x18));
        assert_eq!(drain(&mut m), [0x08, 0, 0, 0x3F]);
    }

    #[test]
    fn remote_mode_reports_when_asked() {
        let mut m = Mouse::new();
        tell(&mut m, &[0xF0, 0xF4]);
        m.mouse_event(moved(1, 2, 0, 2));
        assert!(drain(&mut m).is_empty());
        assert_eq!(tell(&mut m, &[0xEB]), [0xFA, 0x0A, 1, 2]);
        assert_eq!(tell(&mut m, &[0xEB]), [0xFA, 0x0A, 0, 0]);
    }

    #[test]
    fn wrap_mode_echoes_until_it_ends() {
        let mut m = Mouse::new();
        assert_eq!(
            tell(&mut m, &[0xEE, 0xF2, 0x55, 0xEC, 0xF2]),
            [0xFA, 0xF2, 0x55, 0xFA, 0xFA, 0]
        );
    }

    #[test]
    fn scaling_follows_the_table() {
        let mut m = Mouse::new();
        tell(&mut m, &[0xE7, 0xF4]);
        for (from, to) in [(1, 1), (2, 1), (3, 3), (4, 6), (5, 9), (6, 12), (127, 254)] {
            m.mouse_event(moved(from, 0, 0, 0));
            assert_eq!(drain(&mut m), [0x08, to, 0]);
        }
    }

    #[test]
    fn wrong_argument_is_an_error() {
        let mut m = Mouse::new();
        assert_eq!(tell(&mut m, &[0xE8, 7]), [0xFA, 0xFC]);
        assert_eq!(tell(&mut m, &[0xF3, 99]), [0xFA, 0xFC]);
        assert_eq!(tell(&mut m, &[0xE8, 1, 0xE9]), [0xFA, 0xFA, 0xFA, 0, 1, 100]);
        // A reset forgets the answer that waited, too.
        assert_eq!(tell(&mut m, &[0xE8, 0xFF]), [0xFA, 0xAA, 0]);
    }
}
