//! A machine that writes down what is done to it.

use std::path::Path;
use std::sync::Mutex;

use control::AttachedStatus;
use control::BalloonState;
use control::Controlled;
use control::ErrorKind;
use control::Refusal;
use control::Request;
use control::Status;
use display::Surface;
use input::Event;
use input::InputSink;
use serde_json::Value;
use serde_json::json;

pub(crate) const WIDTH: u32 = 640;
pub(crate) const HEIGHT: u32 = 400;

#[derive(Default)]
struct State {
    paused: bool,
    ended: bool,
    text: Option<String>,
    done: Vec<String>,
    pressed: String,
    /// Keys in the buffer, and the most that there were.
    waiting: usize,
    most_waiting: usize,
    takes_none: bool,
}

#[derive(Default)]
pub(crate) struct Fake(Mutex<State>);

/// Noise, so that it does not compress.
pub(crate) fn picture() -> Surface {
    let mut surface = Surface::new(WIDTH, HEIGHT);
    let mut noise = 1u32;
    for pixel in surface.pixels_mut() {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *pixel = noise >> 8;
    }
    surface
}

impl Fake {
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.0.lock().unwrap())
    }

    pub(crate) fn done(&self) -> Vec<String> {
        self.with(|state| state.done.clone())
    }

    pub(crate) fn show(&self, text: Option<&str>) {
        self.with(|state| state.text = text.map(str::to_owned));
    }

    pub(crate) fn pressed(&self) -> String {
        self.with(|state| state.pressed.clone())
    }

    pub(crate) fn most_waiting(&self) -> usize {
        self.with(|state| state.most_waiting)
    }

    pub(crate) fn take_no_keys(&self) {
        self.with(|state| state.takes_none = true);
    }

    pub(crate) fn end(&self) {
        self.with(|state| state.ended = true);
    }

    fn note(&self, what: impl Into<String>) {
        self.with(|state| state.done.push(what.into()));
    }

    fn change(&self, paused: bool, what: &str) -> Result<(), Refusal> {
        let changed = self.with(|state| std::mem::replace(&mut state.paused, paused) != paused);
        if !changed {
            return Err(Refusal::new(ErrorKind::State, format!("cannot {what}")));
        }
        self.note(what);
        Ok(())
    }
}

impl InputSink for Fake {
    fn input(&self, event: Event) {
        self.with(|state| {
            if let Event::Key { key, down } = event {
                state.waiting += 1;
                state.most_waiting = state.most_waiting.max(state.waiting);
                if down {
                    state.pressed.push_str(key.name());
                }
            }
        });
    }
}

impl Controlled for Fake {
    fn status(&self) -> Status {
        Status {
            state: "running".to_owned(),
            machine: "fake".to_owned(),
            engine: "none".to_owned(),
            cpus: 1,
            memory: 1 << 20,
            time_ns: 1,
            pid: 1,
            screen: None,
            drives: Vec::new(),
            attached: Vec::new(),
        }
    }

    fn picture(&self) -> Option<Surface> {
        Some(picture())
    }

    fn text(&self) -> Result<Option<String>, Refusal> {
        Ok(self.with(|state| state.text.clone()))
    }

    fn input(&self) -> Option<&dyn InputSink> {
        Some(self)
    }

    /// The guest takes a key each time it is looked at.
    fn keystrokes_waiting(&self) -> usize {
        self.with(|state| {
            if !state.takes_none {
                state.waiting = state.waiting.saturating_sub(1);
            }
            state.waiting
        })
    }

    fn has_ended(&self) -> bool {
        self.with(|state| state.ended)
    }

    fn press_power_button(&self) -> bool {
        self.note("power");
        true
    }

    fn press_sleep_button(&self) -> bool {
        false
    }

    fn reset(&self) -> Result<(), Refusal> {
        self.note("reset");
        Ok(())
    }

    fn pause(&self) -> Result<(), Refusal> {
        self.change(true, "pause")
    }

    fn resume(&self) -> Result<(), Refusal> {
        self.change(false, "resume")
    }

    fn switch_engine(&self, engine: &str) -> Result<String, Refusal> {
        self.note(format!("engine {engine}"));
        Ok(engine.to_owned())
    }

    fn balloon(&self, size: Option<u64>) -> Result<BalloonState, Refusal> {
        self.note(format!("balloon {size:?}"));
        Ok(BalloonState {
            target: size.unwrap_or(0),
            ..BalloonState::default()
        })
    }

    fn quit(&self) {
        self.note("quit");
    }

    fn inspect(&self, path: &str) -> Result<Option<Value>, Refusal> {
        Ok((path == "pc/mode").then(|| json!(3)))
    }

    fn eject(&self, drive: &str) -> Result<(), Refusal> {
        self.note(format!("eject {drive}"));
        Ok(())
    }

    fn insert(&self, drive: &str, file: &Path, read_only: bool) -> Result<(), Refusal> {
        self.note(format!("insert {drive} {} {read_only}", file.display()));
        Ok(())
    }

    fn attach(&self, request: &Request) -> Result<AttachedStatus, Refusal> {
        let Request::Attach { kind, file, name, .. } = request else {
            return Err(Refusal::new(ErrorKind::Failed, "no attach"));
        };
        self.note(format!("attach {kind} {name:?}"));
        Ok(AttachedStatus {
            name: name.clone().unwrap_or_default(),
            kind: kind.clone(),
            bus: "ahci".to_owned(),
            place: "sata0".to_owned(),
            file: file.clone(),
            detaching: false,
        })
    }

    fn detach(&self, drive: &str, force: bool) -> Result<bool, Refusal> {
        self.note(format!("detach {drive} {force}"));
        // Drives called so are never given up.
        Ok(force || drive != "held")
    }

    fn is_attached(&self, drive: &str) -> bool {
        drive == "held"
    }

    fn set_link(&self, card: &str, up: bool) -> Result<(), Refusal> {
        self.note(format!("link {card} {up}"));
        Ok(())
    }

    fn set_forward(&self, card: Option<&str>, rule: &str, on: bool) -> Result<(), Refusal> {
        self.note(format!("forward {card:?} {rule} {on}"));
        Ok(())
    }
}
