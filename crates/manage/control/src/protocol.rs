//! The words of the control protocol: requests, replies, refusals.
//!
//! A line of JSON each. docs/control.md is the description for others; the types here are what both ends use.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

/// Version of the protocol. It grows when what is there changes its meaning; what is added does not count.
pub const VERSION: u32 = 1;
/// Bytes of a request at most, without its line's end.
pub const MAX_REQUEST: usize = 256 << 10;
/// Bytes of a reply at most, as far as a client reads: the largest screen as a PNG that does not compress, in Base64.
pub(crate) const MAX_REPLY: usize = 64 << 20;

/// The first line that a client gets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// `control`.
    pub oxbow: String,
    /// [`VERSION`].
    pub version: u32,
    /// The program's own version.
    pub program: String,
}

/// What a button of the mouse does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ButtonAction {
    /// Down and up.
    #[default]
    Click,
    /// Down.
    Down,
    /// Up.
    Up,
}

/// A button of the mouse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MouseButton {
    /// The primary one.
    #[default]
    Left,
    /// The one for menus.
    Right,
    /// The wheel.
    Middle,
    /// Back.
    Side,
    /// Forward.
    Extra,
}

impl From<MouseButton> for input::Button {
    fn from(button: MouseButton) -> Self {
        match button {
            MouseButton::Left => Self::Left,
            MouseButton::Right => Self::Right,
            MouseButton::Middle => Self::Middle,
            MouseButton::Side => Self::Side,
            MouseButton::Extra => Self::Extra,
        }
    }
}

/// What a client asks for, without the `id` that it gives.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "do",
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    deny_unknown_fields
)]
pub enum Request {
    /// What the machine is and does: [`Status`].
    Status {},
    /// The screen as a PNG file: [`Picture`].
    Screenshot {},
    /// The text on the screen: [`ScreenText`].
    ScreenText {
        /// Wait until this is on it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wait_for: Option<String>,
        /// For so many seconds at most; 60 if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout: Option<f64>,
    },
    /// Presses chords, one after the other: [`Typed`].
    Key {
        /// Such as `ctrl-alt-f2`.
        keys: Vec<String>,
        /// Milliseconds for which each is held.
        #[serde(default)]
        hold: u64,
    },
    /// Types text: [`Typed`].
    Type {
        /// The text. Line ends are the enter key.
        text: String,
        /// The guest's keyboard layout; `us` if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layout: Option<String>,
    },
    /// Moves the mouse.
    MouseMove {
        /// Counts to the right.
        dx: i32,
        /// Counts down.
        dy: i32,
    },
    /// Presses a button of the mouse.
    MouseButton {
        /// Which.
        #[serde(default)]
        button: MouseButton,
        /// What it does.
        #[serde(default)]
        action: ButtonAction,
    },
    /// Turns the wheel.
    MouseWheel {
        /// Notches towards the user.
        dy: i32,
        /// Notches to the right.
        #[serde(default)]
        dx: i32,
    },
    /// Presses the power button.
    PowerButton {},
    /// Presses the sleep button.
    SleepButton {},
    /// Presses the reset button.
    Reset {},
    /// Lets the guest and its time stand still.
    Pause {},
    /// Lets a paused guest go on.
    Resume {},
    /// Lets another engine execute the guest from here on: [`Executed`].
    Engine {
        /// Which, as `oxbow run --engine` names it.
        engine: String,
    },
    /// The memory balloon: [`BalloonState`].
    Balloon {
        /// How many bytes the guest is to do without from now on; absent to change nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
    },
    /// Ends the machine.
    Quit {},
    /// Part of the machine's live state, a tree.
    Inspect {
        /// Which, such as `pc/devices/pit`; all if it is empty.
        #[serde(default)]
        path: String,
    },
    /// Takes the medium out of a drive.
    Eject {
        /// Its name.
        drive: String,
    },
    /// Puts a medium into a drive.
    Insert {
        /// Its name.
        drive: String,
        /// The image, by its absolute path.
        file: PathBuf,
        /// The guest shall not write to it.
        #[serde(default)]
        read_only: bool,
    },
    /// Attaches a drive: [`AttachedStatus`].
    Attach {
        /// `disk` or `cdrom`.
        kind: String,
        /// The image, by its absolute path; none for a drive without a disc.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        file: Option<PathBuf>,
        /// What it is called; by its kind and number if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Where; the first free place if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        place: Option<String>,
        /// `ahci` or `nvme`; what fits the place, or AHCI, if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bus: Option<String>,
        /// Format of a disk's image; what it looks like if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        format: Option<String>,
        /// What becomes of a disk's writes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cache: Option<String>,
        /// A disk's serial number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        serial: Option<String>,
        /// The guest shall not write to a disk.
        #[serde(default)]
        read_only: bool,
    },
    /// Detaches a drive.
    Detach {
        /// Its name.
        drive: String,
        /// Without asking the guest.
        #[serde(default)]
        force: bool,
        /// The guest has so many seconds; 30 if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout: Option<f64>,
    },
    /// Plugs the cable of a network card in or out.
    Link {
        /// The card's name.
        card: String,
        /// In.
        up: bool,
    },
    /// Lets a port of the host lead to the guest.
    Forward {
        /// Which, and where to: `tcp:127.0.0.1:2222-:22`.
        rule: String,
        /// The card at whose NAT the guest is; the first with one if it is not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        card: Option<String>,
        /// It does not lead there any more.
        #[serde(default)]
        remove: bool,
    },
    /// Events from now on, besides replies.
    Subscribe {},
}

/// Answer to [`Request::Engine`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Executed {
    /// What executes the guest now.
    pub engine: String,
}

/// Answer to [`Request::Balloon`]. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BalloonState {
    /// The guest has a driver for it.
    pub driver: bool,
    /// How large it is to be.
    pub target: u64,
    /// How large the guest has made it.
    pub actual: u64,
    /// What went back to the host so far by filling it.
    pub inflated: u64,
    /// What went back to the host so far because the guest reported it as free.
    pub reported: u64,
    /// Statistics of the guest's, as far as it tells them: `free_memory`, `available_memory` and others.
    pub statistics: BTreeMap<String, u64>,
}

/// Why something was not done, as programs tell it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The line is no request.
    Malformed,
    /// The line is too long. The connection ends.
    TooLong,
    /// An argument makes no sense.
    Invalid,
    /// The machine has no such thing.
    Absent,
    /// It does not fit what the machine is doing.
    State,
    /// It did not happen in time.
    Timeout,
    /// The host could not.
    Failed,
    /// There are too many connections.
    Busy,
    /// A kind that this version does not know.
    #[serde(other)]
    Other,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub kind: ErrorKind,
    /// For people: one line.
    pub message: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

/// What is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScreenStatus {
    /// `blank`, `text`, `planar`, `256 colours`, or `linear` with the bits of a pixel.
    pub mode: String,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Where VNC clients find it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vnc: Option<String>,
}

/// What is in a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MediumStatus {
    /// The image.
    pub file: PathBuf,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// A drive whose media come and go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DriveStatus {
    /// Its name.
    pub name: String,
    /// `floppy` or `cdrom`.
    pub kind: String,
    /// What is in it.
    pub medium: Option<MediumStatus>,
}

/// A drive that can be detached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AttachedStatus {
    /// Its name.
    pub name: String,
    /// `disk` or `cdrom`.
    pub kind: String,
    /// `ahci` or `nvme`.
    pub bus: String,
    /// Where it is: `sata0`, `slot5`, `port1`.
    pub place: String,
    /// Its image, or what is in it.
    pub file: Option<PathBuf>,
    /// The guest has been asked to give it up, and has not yet.
    pub detaching: bool,
}

/// What a machine is and does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// `created`, `running`, `suspended`, `paused` or `stopped`.
    pub state: String,
    /// Kind of computer: `pc`, `microvm`.
    pub machine: String,
    /// What executes the guest's instructions.
    pub engine: String,
    /// Processors.
    pub cpus: u32,
    /// Bytes of RAM.
    pub memory: u64,
    /// Guest time since power-on in nanoseconds.
    pub time_ns: u64,
    /// The process that the machine is.
    pub pid: u32,
    /// The screen, if there is one.
    pub screen: Option<ScreenStatus>,
    /// Drives whose media come and go.
    pub drives: Vec<DriveStatus>,
    /// Drives that can be detached.
    #[serde(default)]
    pub attached: Vec<AttachedStatus>,
}

/// A picture of the screen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Picture {
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// A PNG file in Base64 (RFC 4648 §4).
    pub png: String,
}

/// The text on the screen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScreenText {
    /// A line for each row, without blanks at its end.
    pub text: String,
}

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Typed {
    /// Chords or characters.
    pub typed: usize,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Result<Request, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn requests_have_the_names_of_the_description() {
        assert_eq!(read(json!({"do": "power-button"})), Ok(Request::PowerButton {}));
        let wait = Request::ScreenText {
            wait_for: Some("x".to_owned()),
            timeout: None,
        };
        assert_eq!(
            serde_json::to_value(&wait).unwrap(),
            json!({"do": "screen-text", "wait-for": "x"})
        );
        assert_eq!(read(json!({"do": "screen-text", "wait-for": "x"})), Ok(wait));
        let click = Request::MouseButton {
            button: MouseButton::Left,
            action: ButtonAction::Click,
        };
        assert_eq!(read(json!({"do": "mouse-button"})), Ok(click));
    }

    #[test]
    fn what_is_unknown_is_refused() {
        assert!(read(json!({"do": "explode"})).unwrap_err().contains("explode"));
        assert!(read(json!({"do": "reset", "hard": true})).unwrap_err().contains("hard"));
        assert!(read(json!({"do": "key"})).unwrap_err().contains("keys"));
        assert!(read(json!({})).unwrap_err().contains("do"));
        let kind: ErrorKind = serde_json::from_value(json!("from-the-future")).unwrap();
        assert_eq!(kind, ErrorKind::Other);
    }
}
