//! Intel 8042 keyboard controller of a PC/AT and PS/2, with a keyboard and a mouse.
//!
//! The controller's commands, its translation of set 2 to set 1, both PS/2 ports and the output port with its reset line are
//! modelled. Bytes take no time on the wire: the next one is there as soon as the last is read, with an interrupt edge of
//! its own. The A20 bit is that of the board's one gate, which port 92h moves too. The password commands accept and
//! forget a password.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990), "Keyboard/Auxiliary Device Controller".

use std::collections::VecDeque;
use std::sync::Arc;

use bitfield_struct::bitfield;
use device_model::At;
use device_model::Clock;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::Node;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Space;
use device_model::VmTime;
use device_model::Width;
use device_model::Widths;
use input::Event;
use serde::Deserialize;
use serde::Serialize;

pub use self::keyboard::KeyCode;
pub use self::mouse::MouseEvent;

use self::fingers::Fingers;
use self::keyboard::Keyboard;
use self::mouse::Mouse;
use crate::a20::A20Gate;
use crate::lanes;
use crate::reset_control::PowerControl;

mod fingers;
mod keyboard;
mod mouse;
mod scancodes;

/// Port of the data register.
pub const DATA_PORT: u64 = 0x60;
/// Port of the status and command register.
pub const COMMAND_PORT: u64 = 0x64;

const DATA: usize = 0;
const COMMAND: usize = 1;

const fn region(name: &'static str) -> Region {
    Region {
        name,
        space: Space::Pio,
        len: 1,
        widths: Widths::BYTE,
    }
}

const REGIONS: [Region; 2] = [region("data"), region("command")];

/// Answers of the controller that can wait: more than any guest has asked for without reading.
const ANSWERS: usize = 16;
const RAM: usize = 32;

/// The controller's configuration, "command byte" (RW by commands 20h and 60h).
#[bitfield(u8)]
struct CommandByte {
    /// Bytes of the keyboard raise IRQ 1.
    irq1: bool,
    /// Bytes of the mouse raise IRQ 12.
    irq12: bool,
    /// SYS: the self-test has passed.
    system: bool,
    __: bool,
    /// The keyboard's clock is held low.
    disable_keyboard: bool,
    /// The mouse's clock is held low.
    disable_aux: bool,
    /// The keyboard's codes are translated to set 1.
    translate: bool,
    __: bool,
}

impl CommandByte {
    /// As firmware leaves it: interrupts, translation, self-test passed.
    const USUAL: u8 = 0x47;
}

/// Status register (RO).
#[bitfield(u8)]
struct Status {
    /// OBF: a byte waits to be read.
    obf: bool,
    /// IBF: a byte waits to be taken by the controller; never, as it takes them at once.
    ibf: bool,
    /// SYS: as in the command byte.
    system: bool,
    /// A2: the last write was a command.
    command: bool,
    /// The key lock is open.
    unlocked: bool,
    /// The byte that waits comes from the mouse.
    aux_obf: bool,
    timeout: bool,
    parity: bool,
}

/// Output port.
#[bitfield(u8)]
struct OutputPort {
    /// Low resets the processor.
    not_reset: bool,
    /// A20 gate.
    a20: bool,
    #[bits(2)]
    __: u8,
    /// The keyboard's interrupt.
    irq1: bool,
    /// The mouse's interrupt.
    irq12: bool,
    #[bits(2)]
    lines: u8,
}

/// Whose byte is in the output buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Source {
    Keyboard,
    Aux,
}

/// What the next byte at the data port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Expect {
    /// A byte for the keyboard.
    Keyboard,
    /// A byte of the controller's RAM; cell 0 is the command byte.
    Ram(u8),
    OutputPort,
    /// A byte to come back as if from the keyboard.
    KeyboardEcho,
    /// A byte to come back as if from the mouse.
    AuxEcho,
    /// A byte for the mouse.
    Aux,
    /// A password, to its zero.
    Password,
}

/// The controller with what hangs on it.
pub struct I8042 {
    // Wiring
    clock: Arc<dyn Clock>,
    irq1: IrqLine,
    irq12: IrqLine,
    power: Arc<dyn PowerControl>,
    gate: Arc<A20Gate>,
    // State: the gate's is saved too
    command_byte: CommandByte,
    ram: [u8; RAM],
    last_was_command: bool,
    expect: Expect,
    /// The byte at the data port, and whose it is while it is unread.
    data: u8,
    full: Option<Source>,
    answers: VecDeque<(Source, u8)>,
    /// The keyboard sent F0h, which shows in the next translated code.
    break_prefix: bool,
    keyboard: Keyboard,
    mouse: Mouse,
    fingers: Fingers,
}

impl I8042 {
    /// A controller whose keyboard interrupts through `irq1` and mouse through `irq12`, and which resets through `power`.
    pub fn new(clock: Arc<dyn Clock>, irq1: IrqLine, irq12: IrqLine, power: Arc<dyn PowerControl>) -> Self {
        Self {
            clock,
            irq1,
            irq12,
            power,
            gate: A20Gate::detached(),
            command_byte: CommandByte::from_bits(CommandByte::USUAL),
            ram: [0; RAM],
            last_was_command: true,
            expect: Expect::Keyboard,
            data: 0,
            full: None,
            answers: VecDeque::new(),
            break_prefix: false,
            keyboard: Keyboard::new(),
            mouse: Mouse::new(),
            fingers: Fingers::default(),
        }
    }

    /// Gates address line 20 by `gate`.
    #[must_use]
    pub fn with_a20(mut self, gate: Arc<A20Gate>) -> Self {
        self.gate = gate;
        self
    }

    /// A key goes down or up. To be followed by a poll, because a key that is held repeats.
    pub fn key_event(&mut self, key: KeyCode, down: bool) {
        self.keyboard.key_event(key, down, self.clock.now());
        self.fill();
    }

    /// The mouse moves, or a button of it changes.
    pub fn mouse_event(&mut self, event: MouseEvent) {
        self.mouse.mouse_event(event);
        self.fill();
    }

    /// Something that the user does. To be followed by a poll, as [`Self::key_event`].
    pub fn input(&mut self, event: Event) {
        let buttons = self.mouse.buttons();
        let mouse = MouseEvent {
            buttons,
            ..MouseEvent::default()
        };
        match event {
            Event::Key { key, down } => self.press(KeyCode(key.scan_code()), down),
            Event::Move { dx, dy } => self.mouse_event(MouseEvent {
                dx,
                dy: dy.saturating_neg(),
                ..mouse
            }),
            Event::Button { button, down } => {
                let rest = buttons & !button.bit();
                let buttons = if down { rest | button.bit() } else { rest };
                self.mouse_event(MouseEvent { buttons, ..mouse });
            }
            // A mouse knows no places.
            Event::Place { .. } => {}
            // There is one wheel.
            Event::Wheel { dy, dx: _ } => self.mouse_event(MouseEvent { wheel: dy, ..mouse }),
        }
    }

    /// A key goes down or up, at once if the keyboard can remember it.
    fn press(&mut self, key: KeyCode, down: bool) {
        if self.fingers.len() == 0 && self.keyboard.has_room() {
            self.key_event(key, down);
        } else {
            self.fingers.push(key, down, self.clock.now());
        }
    }

    /// Keystrokes that the guest has not read, in bytes as far as the keyboard has them: whoever types for the user waits
    /// until there are few.
    pub fn keystrokes_waiting(&self) -> usize {
        self.codes_waiting() + self.fingers.len()
    }

    fn codes_waiting(&self) -> usize {
        self.keyboard.waiting() + usize::from(self.full == Some(Source::Keyboard))
    }

    /// The keyboard's lights: bit 0 Scroll Lock, bit 1 Num Lock, bit 2 Caps Lock.
    pub fn leds(&self) -> u8 {
        self.keyboard.leds()
    }

    /// The A20 gate as the guest set it last.
    pub fn a20(&self) -> bool {
        self.gate.is_open()
    }
}

impl Registers for I8042 {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        let value = if at.region == DATA {
            self.read_data()
        } else {
            self.status().into_bits()
        };
        Ok(u64::from(value))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let value = lanes::byte(value);
        self.last_was_command = at.region == COMMAND;
        if at.region == COMMAND {
            self.expect = Expect::Keyboard;
            self.command(value);
        } else {
            self.write_data(value);
        }
        self.fill();
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    match (at, width) {
        (
            At {
                region: DATA | COMMAND,
                offset: 0,
            },
            Width::Byte,
        ) => Ok(()),
        (
            At {
                region: DATA | COMMAND,
                offset: 0,
            },
            _,
        ) => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}

impl I8042 {
    fn status(&self) -> Status {
        Status::new()
            .with_obf(self.full.is_some())
            .with_system(self.command_byte.system())
            .with_command(self.last_was_command)
            .with_unlocked(true)
            .with_aux_obf(self.full == Some(Source::Aux))
    }

    fn read_data(&mut self) -> u8 {
        let data = self.data;
        self.full = None;
        // The line falls before the next byte comes, so that it makes an edge.
        self.update_irqs();
        self.fill();
        data
    }

    fn update_irqs(&self) {
        self.irq1
            .set(self.full == Some(Source::Keyboard) && self.command_byte.irq1());
        self.irq12
            .set(self.full == Some(Source::Aux) && self.command_byte.irq12());
    }

    /// Puts the next byte into the output buffer, if that is empty and there is one.
    fn fill(&mut self) {
        if self.full.is_none()
            && let Some((source, byte)) = self.next_byte()
        {
            self.data = byte;
            self.full = Some(source);
        }
        self.update_irqs();
    }

    fn next_byte(&mut self) -> Option<(Source, u8)> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        if !self.command_byte.disable_keyboard()
            && let Some(byte) = self.next_key_byte()
        {
            return Some((Source::Keyboard, byte));
        }
        if self.command_byte.disable_aux() {
            return None;
        }
        Some((Source::Aux, self.mouse.send()?))
    }

    fn next_key_byte(&mut self) -> Option<u8> {
        if !self.command_byte.translate() {
            self.break_prefix = false;
            return self.keyboard.send();
        }
        let mut byte = self.keyboard.send()?;
        if byte == scancodes::BREAK {
            self.break_prefix = true;
            byte = self.keyboard.send()?;
        }
        let release = if std::mem::take(&mut self.break_prefix) {
            0x80
        } else {
            0
        };
        Some(scancodes::translate(byte) | release)
    }

    fn answer(&mut self, source: Source, byte: u8) {
        if self.answers.len() < ANSWERS {
            self.answers.push_back((source, byte));
        }
    }

    fn command(&mut self, command: u8) {
        let say = Source::Keyboard;
        match command {
            0x20..=0x3F => {
                let byte = self.read_ram(command & 0x1F);
                self.answer(say, byte);
            }
            0x60..=0x7F => self.expect = Expect::Ram(command & 0x1F),
            // Is a password installed: no.
            0xA4 => self.answer(say, 0xF1),
            0xA5 => self.expect = Expect::Password,
            0xA7 => self.command_byte.set_disable_aux(true),
            0xA8 => self.command_byte.set_disable_aux(false),
            // Interface tests: passed.
            0xA9 | 0xAB => self.answer(say, 0x00),
            0xAA => {
                self.command_byte.set_system(true);
                self.answer(say, 0x55);
            }
            0xAD => self.command_byte.set_disable_keyboard(true),
            0xAE => self.command_byte.set_disable_keyboard(false),
            // Firmware version.
            0xAF => self.answer(say, 0x00),
            // Input port: not locked by the key.
            0xC0 => self.answer(say, 0x80),
            0xD0 => {
                let port = self.output_port().into_bits();
                self.answer(say, port);
            }
            0xD1 => self.expect = Expect::OutputPort,
            0xD2 => self.expect = Expect::KeyboardEcho,
            0xD3 => self.expect = Expect::AuxEcho,
            0xD4 => self.expect = Expect::Aux,
            0xDD => self.gate.set(false),
            0xDF => self.gate.set(true),
            // Test inputs: both clocks are high.
            0xE0 => self.answer(say, 0x03),
            // Bits 0 to 3 that are clear pulse their output lines; line 0 is the reset.
            0xF0..=0xFF if command & 1 == 0 => self.power.reset(),
            _ => {}
        }
    }

    fn read_ram(&self, cell: u8) -> u8 {
        match cell {
            0 => self.command_byte.into_bits(),
            cell => self.ram.get(usize::from(cell)).copied().unwrap_or(0),
        }
    }

    fn write_ram(&mut self, cell: u8, value: u8) {
        if cell == 0 {
            self.command_byte = CommandByte::from_bits(value & 0x7F);
        } else if let Some(cell) = self.ram.get_mut(usize::from(cell)) {
            *cell = value;
        }
    }

    fn output_port(&self) -> OutputPort {
        OutputPort::new()
            .with_not_reset(true)
            .with_a20(self.gate.is_open())
            .with_irq1(self.irq1.level())
            .with_irq12(self.irq12.level())
            .with_lines(3)
    }

    fn write_data(&mut self, value: u8) {
        match std::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::Keyboard => {
                self.command_byte.set_disable_keyboard(false);
                self.keyboard.receive(value);
            }
            Expect::Ram(cell) => self.write_ram(cell, value),
            Expect::OutputPort => {
                let port = OutputPort::from_bits(value);
                self.gate.set(port.a20());
                if !port.not_reset() {
                    self.power.reset();
                }
            }
            Expect::KeyboardEcho => self.answer(Source::Keyboard, value),
            Expect::AuxEcho => self.answer(Source::Aux, value),
            Expect::Aux => {
                self.command_byte.set_disable_aux(false);
                self.mouse.receive(value);
            }
            Expect::Password if value != 0 => self.expect = Expect::Password,
            Expect::Password => {}
        }
    }
}

impl Device for I8042 {
    fn reset(&mut self, _kind: Reset) {
        self.command_byte = CommandByte::from_bits(CommandByte::USUAL);
        self.ram = [0; RAM];
        self.gate.set(true);
        self.last_was_command = true;
        self.expect = Expect::Keyboard;
        self.data = 0;
        self.full = None;
        self.answers.clear();
        self.break_prefix = false;
        self.keyboard = Keyboard::new();
        self.mouse = Mouse::new();
        self.fingers = Fingers::default();
        self.update_irqs();
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        if self.codes_waiting() == 0
            && let Some((key, down)) = self.fingers.next(now)
        {
            self.key_event(key, down);
        }
        // A key whose release waits is not held: it must not repeat.
        let press = self.fingers.deadline(now);
        let next = press.or_else(|| self.keyboard.poll(now));
        self.fill();
        next
    }
}

impl Snapshot for I8042 {
    type State = I8042V3;

    fn save(&self) -> I8042V3 {
        let Self {
            clock: _,
            irq1: _,
            irq12: _,
            power: _,
            gate,
            command_byte,
            ram,
            last_was_command,
            expect,
            data,
            full,
            answers,
            break_prefix,
            keyboard,
            mouse,
            fingers,
        } = self;
        I8042V3 {
            command_byte: command_byte.into_bits(),
            ram: *ram,
            a20: gate.is_open(),
            last_was_command: *last_was_command,
            expect: *expect,
            data: *data,
            full: *full,
            answers: answers.clone(),
            break_prefix: *break_prefix,
            keyboard: keyboard.clone(),
            mouse: mouse.clone(),
            fingers: fingers.clone(),
        }
    }

    fn restore(&mut self, state: I8042V3) -> Result<(), RestoreError> {
        let I8042V3 {
            command_byte,
            ram,
            a20,
            last_was_command,
            expect,
            data,
            full,
            answers,
            break_prefix,
            keyboard,
            mouse,
            fingers,
        } = state;
        keyboard.check()?;
        mouse.check()?;
        if answers.len() > ANSWERS || !fingers.is_valid() {
            return Err(RestoreError::Invalid("i8042 has too many answers or keystrokes".into()));
        }
        self.command_byte = CommandByte::from_bits(command_byte & 0x7F);
        self.ram = ram;
        self.gate.set(a20);
        self.last_was_command = last_was_command;
        self.expect = expect;
        self.data = data;
        self.full = full;
        self.answers = answers;
        self.break_prefix = break_prefix;
        self.keyboard = keyboard;
        self.mouse = mouse;
        self.fingers = fingers;
        self.update_irqs();
        Ok(())
    }
}

impl Inspect for I8042 {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("command_byte", self.command_byte.into_bits())
            .with("status", self.status().into_bits())
            .with("output_port", self.output_port().into_bits())
            .with("data", self.data)
            .with("keyboard", self.keyboard.inspect())
            .with("mouse", self.mouse.inspect())
    }
}

/// Saved state of [`I8042`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct I8042V3 {
    command_byte: u8,
    ram: [u8; RAM],
    a20: bool,
    last_was_command: bool,
    expect: Expect,
    data: u8,
    full: Option<Source>,
    answers: VecDeque<(Source, u8)>,
    break_prefix: bool,
    keyboard: Keyboard,
    mouse: Mouse,
    fingers: Fingers,
}

impl Schema for I8042V3 {
    const NAME: &'static str = "i8042";
    const VERSION: u32 = 3;
}

#[cfg(test)]
mod tests;
