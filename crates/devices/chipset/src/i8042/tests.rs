//! Tests of the keyboard controller as its drivers use it.
//!
//! Keyboard and mouse have their own tests; here they are seen through the controller.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990).

use device_model::TestClock;
use input::Button;
use input::Key;
use input::Layout;
use proptest::prelude::*;
use test_kit::IrqProbe;
use test_kit::contract;
use test_kit::fuzz_registers;

use super::*;
use crate::reset_control::PowerProbe;

struct Bench {
    chip: I8042,
    clock: TestClock,
    irqs: Arc<IrqProbe>,
    power: Arc<PowerProbe>,
}

impl Bench {
    fn new() -> Self {
        let (clock, irqs, power) = (TestClock::new(), IrqProbe::new(), Arc::new(PowerProbe::default()));
        let chip = I8042::new(Arc::new(clock.clone()), irqs.line(1), irqs.line(12), power.clone());
        Self {
            chip,
            clock,
            irqs,
            power,
        }
    }

    fn command(&mut self, value: u8) {
        let at = At {
            region: COMMAND,
            offset: 0,
        };
        self.chip.write(at, Width::Byte, u64::from(value)).unwrap();
    }

    fn data(&mut self, value: u8) {
        let at = At {
            region: DATA,
            offset: 0,
        };
        self.chip.write(at, Width::Byte, u64::from(value)).unwrap();
    }

    fn status(&mut self) -> u8 {
        lanes::byte(
            self.chip
                .read(
                    At {
                        region: COMMAND,
                        offset: 0,
                    },
                    Width::Byte,
                )
                .unwrap(),
        )
    }

    fn drain_after(&mut self, event: Event) -> Vec<(char, u8)> {
        self.chip.input(event);
        self.drain()
    }

    fn take(&mut self) -> u8 {
        lanes::byte(
            self.chip
                .read(
                    At {
                        region: DATA,
                        offset: 0,
                    },
                    Width::Byte,
                )
                .unwrap(),
        )
    }

    /// Everything that waits, with a mark where it is the mouse's.
    fn drain(&mut self) -> Vec<(char, u8)> {
        let mut all = Vec::new();
        while self.status() & 1 != 0 {
            let source = if self.status() & 0x20 == 0 { 'k' } else { 'm' };
            all.push((source, self.take()));
        }
        all
    }
}

#[test]
fn driver_start_finds_a_working_controller() {
    let mut b = Bench::new();
    for (command, answer) in [(0xAA, 0x55), (0xAB, 0x00), (0xA9, 0x00), (0x20, 0x47)] {
        b.command(command);
        assert_eq!(b.status(), 0x1D);
        assert_eq!(b.take(), answer);
        assert_eq!(b.status(), 0x1C);
    }
    b.command(0xA7);
    b.command(0x20);
    assert_eq!(b.take(), 0x67);
    b.command(0x60);
    b.data(0x74);
    b.command(0x20);
    assert_eq!(b.take(), 0x74);
    b.command(0x7F);
    b.data(0x99);
    b.command(0x3F);
    assert_eq!(b.take(), 0x99);
}

#[test]
fn pulsed_reset_line_resets() {
    let mut b = Bench::new();
    for command in [0xFF, 0xF1, 0xFE, 0xF0] {
        b.command(command);
    }
    assert_eq!(b.power.take(), ["reset", "reset"]);
    b.command(0xD1);
    b.data(0xDE);
    assert_eq!(b.power.take(), ["reset"]);
}

#[test]
fn a20_is_kept_in_the_output_port() {
    let mut b = Bench::new();
    b.command(0xD0);
    assert_eq!(b.take() & 0x03, 0x03);
    b.command(0xD1);
    b.data(0xDD);
    assert!(!b.chip.a20());
    b.command(0xD0);
    assert_eq!(b.take() & 0x03, 0x01);
    b.command(0xDF);
    assert!(b.chip.a20());
    assert!(b.power.take().is_empty());
}

#[test]
fn keystrokes_are_translated_and_each_byte_interrupts() {
    let mut b = Bench::new();
    b.chip.key_event(KeyCode(0xE048), true);
    b.chip.key_event(KeyCode(0xE048), false);
    assert!(b.irqs.level(1));
    let bytes: Vec<_> = b.drain().into_iter().map(|(_, byte)| byte).collect();
    assert_eq!(bytes, [0xE0, 0x48, 0xE0, 0xC8]);
    assert_eq!((b.irqs.rises(1), b.irqs.level(1), b.irqs.rises(12)), (4, false, 0));
    // Without translation the codes are the keyboard's own.
    b.command(0x60);
    b.data(0x07);
    b.chip.key_event(KeyCode(0x41), true);
    b.chip.key_event(KeyCode(0x41), false);
    assert_eq!(b.drain(), [('k', 0x83), ('k', 0xF0), ('k', 0x83)]);
}

#[test]
fn translated_identification_is_what_drivers_expect() {
    let mut b = Bench::new();
    b.data(0xF2);
    assert_eq!(b.drain(), [('k', 0xFA), ('k', 0xAB), ('k', 0x41)]);
    b.data(0xFF);
    assert_eq!(b.drain(), [('k', 0xFA), ('k', 0xAA)]);
}

#[test]
fn disabled_port_holds_its_bytes() {
    let mut b = Bench::new();
    b.command(0xAD);
    b.chip.key_event(KeyCode(0x1E), true);
    assert_eq!(b.status() & 1, 0);
    b.command(0xAE);
    assert_eq!(b.drain(), [('k', 0x1E)]);
    assert_eq!(b.irqs.rises(1), 1);
}

#[test]
fn mouse_talks_through_d4_on_irq12() {
    let mut b = Bench::new();
    for byte in [0xFF, 0xF4] {
        b.command(0xD4);
        b.data(byte);
    }
    assert_eq!(b.drain(), [('m', 0xFA), ('m', 0xAA), ('m', 0x00), ('m', 0xFA)]);
    b.chip.mouse_event(MouseEvent {
        dx: 1,
        dy: 1,
        ..MouseEvent::default()
    });
    assert_eq!(b.drain(), [('m', 0x08), ('m', 1), ('m', 1)]);
    assert_eq!((b.irqs.rises(12), b.irqs.rises(1)), (7, 0));
}

#[test]
fn input_reaches_keyboard_and_mouse() {
    let mut b = Bench::new();
    b.command(0xD4);
    b.data(0xF4);
    b.drain();
    for event in [
        Event::Key {
            key: Key::from_name("up").unwrap(),
            down: true,
        },
        Event::Move { dx: 3, dy: 5 },
        Event::Button {
            button: Button::Right,
            down: true,
        },
        Event::Button {
            button: Button::Left,
            down: true,
        },
        Event::Button {
            button: Button::Right,
            down: false,
        },
    ] {
        b.chip.input(event);
    }
    assert_eq!(b.chip.keystrokes_waiting(), 2);
    let all = b.drain();
    let (keys, mouse): (Vec<_>, Vec<_>) = all.into_iter().partition(|(source, _)| *source == 'k');
    assert_eq!(keys, [('k', 0xE0), ('k', 0x48)]);
    let heads: Vec<_> = mouse.iter().step_by(3).map(|(_, head)| *head).collect();
    assert_eq!(mouse[1..3], [('m', 3), ('m', 0xFB)]);
    assert_eq!(heads, [0x28, 0x0A, 0x0B, 0x09]);
    assert_eq!(b.chip.keystrokes_waiting(), 0);
}

#[test]
fn typed_text_arrives_as_its_scan_codes() {
    let mut b = Bench::new();
    let mut codes = Vec::new();
    for stroke in Layout::US.strokes("Hi!").unwrap() {
        stroke.events().for_each(|event| b.chip.input(event));
        codes.extend(b.drain().into_iter().map(|(_, code)| code));
    }
    let shifted = |code: u8| [0x2A, code, code | 0x80, 0xAA];
    assert_eq!(codes, [&shifted(0x23)[..], &[0x17, 0x97], &shifted(0x02)].concat());
}

#[test]
fn text_typed_at_once_waits_for_the_guest_and_is_paced() {
    let text = "the quick brown fox jumps over the lazy dog; THE END.".repeat(20);
    let strokes = Layout::US.strokes(&text).unwrap();
    let (mut slow, mut fast) = (Bench::new(), Bench::new());
    let mut wanted = Vec::new();
    for event in strokes.iter().flat_map(|stroke| stroke.events()) {
        slow.chip.input(event);
        wanted.extend(fast.drain_after(event));
    }
    // Who does not read gets nothing more.
    let waiting = slow.chip.keystrokes_waiting();
    slow.clock.advance(1_000_000_000);
    slow.chip.poll(slow.clock.now());
    assert_eq!(slow.chip.keystrokes_waiting(), waiting);
    let mut codes = slow.drain();
    while let Some(deadline) = slow.chip.poll(slow.clock.now()) {
        let more = slow.drain();
        // A key with a prefix has the most bytes, two.
        assert!(more.len() <= 2, "{more:?}");
        codes.extend(more);
        assert!(deadline > slow.clock.now());
        slow.clock.set(deadline);
    }
    codes.extend(slow.drain());
    assert_eq!(slow.chip.keystrokes_waiting(), 0);
    assert_eq!(codes, wanted);
}

#[test]
fn keys_that_nobody_reads_are_bounded() {
    let mut b = Bench::new();
    for _ in 0..20_000 {
        for down in [true, false] {
            let key = Key::from_name("a").unwrap();
            b.chip.input(Event::Key { key, down });
        }
    }
    assert!(b.chip.keystrokes_waiting() < 10_000);
    let state = b.chip.save();
    b.chip.restore(state).unwrap();
}

#[test]
fn echo_commands_come_back_from_each_side() {
    let mut b = Bench::new();
    b.command(0xD2);
    b.data(0x5A);
    b.command(0xD3);
    b.data(0xA5);
    assert_eq!(b.drain(), [('k', 0x5A), ('m', 0xA5)]);
}

#[test]
fn masked_interrupts_stay_low_until_enabled() {
    let mut b = Bench::new();
    b.command(0x60);
    b.data(0x44);
    b.chip.key_event(KeyCode(0x1E), true);
    assert!(!b.irqs.level(1));
    b.command(0x60);
    b.data(0x45);
    assert!(b.irqs.level(1));
}

#[test]
fn held_key_repeats_through_poll() {
    let mut b = Bench::new();
    b.chip.key_event(KeyCode(0x1E), true);
    let due = b.chip.poll(b.clock.now()).unwrap();
    assert_eq!(b.drain(), [('k', 0x1E)]);
    b.clock.set(due);
    assert!(b.chip.poll(due).is_some());
    assert_eq!(b.drain(), [('k', 0x1E)]);
}

#[test]
fn restored_controller_goes_on_between_two_bytes() {
    let mut b = Bench::new();
    b.chip.key_event(KeyCode(0xE048), true);
    assert_eq!(b.take(), 0xE0);
    let mut c = Bench::new();
    c.chip.restore(b.chip.save()).unwrap();
    assert!(c.irqs.level(1));
    assert_eq!(c.drain(), [('k', 0x48)]);
}

fn boxed(clock: &TestClock) -> Box<I8042> {
    let power = Arc::new(PowerProbe::default());
    let (irq1, irq12) = (IrqLine::detached(), IrqLine::detached());
    Box::new(I8042::new(Arc::new(clock.clone()), irq1, irq12, power))
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || {
        let mut chip = boxed(&clock);
        chip.key_event(KeyCode(0x1E), true);
        chip
    });
}

proptest! {
    #[test]
    fn any_accesses_and_input_are_harmless(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        input in proptest::collection::vec(any::<(u16, bool, i32, i32, i32, u8)>(), 0..20),
    ) {
        let clock = TestClock::new();
        let mut chip = boxed(&clock);
        fuzz_registers(&mut *chip, &clock, &bytes);
        for (key, down, dx, dy, wheel, buttons) in input {
            chip.key_event(KeyCode(key), down);
            chip.mouse_event(MouseEvent { dx, dy, wheel, buttons });
            clock.advance(1 << 28);
            chip.poll(clock.now());
            let _ = chip.read(At { region: DATA, offset: 0 }, Width::Byte);
        }
        prop_assert!(boxed(&clock).restore(chip.save()).is_ok());
    }
}
