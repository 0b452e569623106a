//! What each request does.

use std::path::Path;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::TryLockError;
use std::time::Duration;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use input::Event as InputEvent;
use input::InputSink;
use input::Layout;
use serde::Serialize;
use serde_json::Value;
use serde_json::json;

use super::Shared;
use super::connection::Link;
use crate::ButtonAction;
use crate::ErrorKind;
use crate::Executed;
use crate::MouseButton;
use crate::Picture;
use crate::Refusal;
use crate::Request;
use crate::ScreenText;
use crate::Typed;

/// How often a screen is looked at that is waited for.
const LOOK: Duration = Duration::from_millis(50);
/// How long that is if it is not said.
const SCREEN: Duration = Duration::from_secs(60);
/// How long a guest may take to give a drive up if it is not said: five seconds of a blinking lamp, and what it has to write.
const GIVE_UP: Duration = Duration::from_secs(30);
/// How often the keyboard is looked at.
const KEYBOARD: Duration = Duration::from_millis(2);
/// Between a key and the next, besides: firmware that takes keys away at once may still look at them.
const BETWEEN: Duration = Duration::from_millis(5);
/// A guest that takes no key for so long takes none.
const UNTAKEN: Duration = Duration::from_secs(10);
/// A key is held for so long at most.
const HOLD: Duration = Duration::from_secs(60);

type Answer = Result<Value, Refusal>;

pub(super) fn run(shared: &Shared, link: &Link<'_>, request: &Request) -> Answer {
    let machine = &*shared.machine;
    match request {
        Request::Status {} => value(&machine.status()),
        Request::Screenshot {} => screenshot(shared),
        Request::ScreenText { wait_for, timeout } => screen_text(shared, link, wait_for.as_deref(), *timeout),
        Request::Key { keys, hold } => press_keys(shared, link, keys, *hold),
        Request::Type { text, layout } => type_text(shared, link, text, layout.as_deref()),
        Request::MouseMove { dx, dy } => mouse(shared, &[InputEvent::Move { dx: *dx, dy: *dy }]),
        Request::MouseButton { button, action } => mouse(shared, &button_events(*button, *action)),
        Request::MouseWheel { dy, dx } => mouse(shared, &[InputEvent::Wheel { dy: *dy, dx: *dx }]),
        Request::PowerButton {} => pressed(machine.press_power_button(), "power"),
        Request::SleepButton {} => pressed(machine.press_sleep_button(), "sleep"),
        Request::Reset {} => machine.reset().map(|()| json!({})),
        Request::Pause {} => machine.pause().map(|()| json!({})),
        Request::Resume {} => machine.resume().map(|()| json!({})),
        Request::Engine { engine } => value(&Executed {
            engine: machine.switch_engine(engine)?,
        }),
        Request::Balloon { size } => value(&machine.balloon(*size)?),
        // The connection does it once the reply is out.
        Request::Quit {} => Ok(json!({})),
        Request::Inspect { path } => machine.inspect(path)?.ok_or_else(|| {
            let message = format!("the machine has no `{path}`; look one level above");
            Refusal::new(ErrorKind::Absent, message)
        }),
        Request::Eject { drive } => machine.eject(drive).map(|()| json!({})),
        Request::Insert { drive, file, read_only } => insert(shared, drive, file, *read_only),
        Request::Attach { file, .. } => attach(shared, request, file.as_deref()),
        Request::Detach { drive, force, timeout } => detach(shared, link, drive, *force, *timeout),
        Request::Link { card, up } => machine.set_link(card, *up).map(|()| json!({})),
        Request::Forward { rule, card, remove } => {
            machine.set_forward(card.as_deref(), rule, !remove)?;
            Ok(json!({}))
        }
        Request::Subscribe {} => {
            shared.publisher.subscribe(link.outbox);
            Ok(json!({}))
        }
    }
}

fn value(of: &impl Serialize) -> Answer {
    serde_json::to_value(of).map_err(|error| Refusal::new(ErrorKind::Failed, error.to_string()))
}

fn no_screen() -> Refusal {
    Refusal::new(ErrorKind::Absent, "the machine has no screen")
}

fn screenshot(shared: &Shared) -> Answer {
    let picture = shared.machine.picture().ok_or_else(no_screen)?;
    let mut file = Vec::new();
    display::write_png(&picture, &mut file).map_err(|error| Refusal::new(ErrorKind::Failed, error.to_string()))?;
    value(&Picture {
        // As write_png does it: a PNG has a pixel at least.
        width: picture.width().max(1),
        height: picture.height().max(1),
        png: STANDARD.encode(file),
    })
}

fn seconds(timeout: Option<f64>) -> Result<Option<Duration>, Refusal> {
    let seconds = timeout.map(Duration::try_from_secs_f64).transpose();
    seconds.map_err(|_| Refusal::new(ErrorKind::Invalid, "the timeout is not a number of seconds"))
}

fn screen_text(shared: &Shared, link: &Link<'_>, wait_for: Option<&str>, timeout: Option<f64>) -> Answer {
    let limit = seconds(timeout)?.unwrap_or(SCREEN);
    let start = Instant::now();
    loop {
        let text = shared.machine.text()?;
        match (text, wait_for) {
            (Some(text), None) => return value(&ScreenText { text }),
            (None, None) => {
                let message = "the screen shows no text now; take a screenshot";
                return Err(Refusal::new(ErrorKind::State, message));
            }
            (Some(text), Some(wanted)) if text.contains(wanted) => return value(&ScreenText { text }),
            (_, Some(_)) => {}
        }
        if link.is_over() || shared.machine.has_ended() {
            return Err(Refusal::new(ErrorKind::State, "the machine has ended"));
        }
        if start.elapsed() >= limit {
            let message = format!("the text did not appear within {} seconds", limit.as_secs_f64());
            return Err(Refusal::new(ErrorKind::Timeout, message));
        }
        std::thread::sleep(LOOK);
    }
}

fn sink(shared: &Shared) -> Result<&dyn InputSink, Refusal> {
    let absent = || Refusal::new(ErrorKind::Absent, "the machine has no keyboard and mouse");
    shared.machine.input().ok_or_else(absent)
}

/// The keyboard for one client, when the others have finished.
fn keyboard<'a>(shared: &'a Shared, link: &Link<'_>) -> Result<MutexGuard<'a, ()>, Refusal> {
    loop {
        match shared.keyboard.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(error)) => return Ok(PoisonError::into_inner(error)),
            Err(TryLockError::WouldBlock) if link.is_over() => {
                return Err(Refusal::new(ErrorKind::State, "the machine has ended"));
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(KEYBOARD),
        }
    }
}

/// Waits until the guest has taken what was typed.
fn wait_taken(shared: &Shared, link: &Link<'_>, done: usize, of: usize) -> Result<(), Refusal> {
    let start = Instant::now();
    let mut least = usize::MAX;
    let mut since = start;
    loop {
        let waiting = shared.machine.keystrokes_waiting();
        if waiting == 0 {
            return Ok(());
        }
        if waiting < least {
            (least, since) = (waiting, Instant::now());
        }
        let why = if shared.machine.has_ended() || link.is_over() {
            (ErrorKind::State, "the machine has ended")
        } else if since.elapsed() >= UNTAKEN {
            (ErrorKind::Timeout, "the guest takes no keys")
        } else {
            std::thread::sleep(KEYBOARD);
            continue;
        };
        let (kind, what) = why;
        return Err(Refusal::new(kind, format!("{what}: {done} of {of} were typed")));
    }
}

fn press_keys(shared: &Shared, link: &Link<'_>, chords: &[String], hold: u64) -> Answer {
    let sink = sink(shared)?;
    let parsed: Result<Vec<_>, _> = chords.iter().map(|chord| input::parse_chord(chord)).collect();
    let parsed = parsed.map_err(|error| Refusal::new(ErrorKind::Invalid, error.to_string()))?;
    let hold = Duration::from_millis(hold);
    if hold > HOLD {
        let message = format!("keys are held for {} seconds at most", HOLD.as_secs());
        return Err(Refusal::new(ErrorKind::Invalid, message));
    }
    let _keyboard = keyboard(shared, link)?;
    for (done, keys) in parsed.iter().enumerate() {
        wait_taken(shared, link, done, parsed.len())?;
        for event in input::press(keys) {
            if matches!(event, InputEvent::Key { key, down: false } if keys.last() == Some(&key)) {
                std::thread::sleep(hold);
            }
            sink.input(event);
        }
        std::thread::sleep(BETWEEN);
    }
    value(&Typed { typed: parsed.len() })
}

fn type_text(shared: &Shared, link: &Link<'_>, text: &str, layout: Option<&str>) -> Answer {
    let sink = sink(shared)?;
    let invalid = |message: String| Refusal::new(ErrorKind::Invalid, message);
    let layout: Result<Layout, _> = layout.map_or(Ok(Layout::US), str::parse);
    let layout = layout.map_err(|error| invalid(error.to_string()))?;
    let strokes = layout.strokes(text).map_err(|error| invalid(error.to_string()))?;
    let _keyboard = keyboard(shared, link)?;
    for (done, stroke) in strokes.iter().enumerate() {
        wait_taken(shared, link, done, strokes.len())?;
        stroke.events().for_each(|event| sink.input(event));
        std::thread::sleep(BETWEEN);
    }
    value(&Typed { typed: strokes.len() })
}

fn button_events(button: MouseButton, action: ButtonAction) -> Vec<InputEvent> {
    let event = |down| InputEvent::Button {
        button: button.into(),
        down,
    };
    match action {
        ButtonAction::Click => vec![event(true), event(false)],
        ButtonAction::Down => vec![event(true)],
        ButtonAction::Up => vec![event(false)],
    }
}

fn mouse(shared: &Shared, events: &[InputEvent]) -> Answer {
    let sink = sink(shared)?;
    events.iter().for_each(|event| sink.input(*event));
    Ok(json!({}))
}

fn pressed(there: bool, button: &str) -> Answer {
    let message = || format!("the machine has no {button} button");
    let absent = || Refusal::new(ErrorKind::Absent, message());
    there.then(|| json!({})).ok_or_else(absent)
}

fn check_path(file: &Path) -> Result<(), Refusal> {
    if file.is_absolute() {
        return Ok(());
    }
    let message = format!("`{}` is no absolute path", file.display());
    Err(Refusal::new(ErrorKind::Invalid, message))
}

fn insert(shared: &Shared, drive: &str, file: &Path, read_only: bool) -> Answer {
    check_path(file)?;
    shared.machine.insert(drive, file, read_only).map(|()| json!({}))
}

fn attach(shared: &Shared, request: &Request, file: Option<&Path>) -> Answer {
    file.map(check_path).transpose()?;
    value(&shared.machine.attach(request)?)
}

/// Detaches a drive, and waits until the guest has given it up.
fn detach(shared: &Shared, link: &Link<'_>, drive: &str, force: bool, timeout: Option<f64>) -> Answer {
    let limit = seconds(timeout)?.unwrap_or(GIVE_UP);
    let start = Instant::now();
    if shared.machine.detach(drive, force)? {
        return Ok(json!({}));
    }
    while shared.machine.is_attached(drive) {
        if link.is_over() || shared.machine.has_ended() {
            return Err(Refusal::new(ErrorKind::State, "the machine has ended"));
        }
        if start.elapsed() >= limit {
            let message = format!(
                "the guest has not given `{drive}` up within {} seconds; it was asked and still may, or detach it by force",
                limit.as_secs_f64()
            );
            return Err(Refusal::new(ErrorKind::Timeout, message));
        }
        std::thread::sleep(LOOK);
    }
    Ok(json!({}))
}
