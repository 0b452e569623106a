//! `oxbow ctl key`, `type` and `mouse`.

use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use anyhow::bail;
use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;
use control::ButtonAction;
use control::MAX_REQUEST;
use control::MouseButton;
use control::Request;

use super::Link;
use crate::failure::Failure;

const KEYS: &str = "\
Keys have the names that are printed on them: a, 7, f1, enter, esc, tab, space, backspace, delete, insert, home, end, pageup,
pagedown, up, down, left, right, ctrl, alt, shift, altgr, meta, rightctrl, capslock, numlock, sysrq, kp0, kpenter.

Examples:
  oxbow ctl vm.sock key ctrl-alt-delete
  oxbow ctl vm.sock key down down enter
  oxbow ctl vm.sock key shift --hold 3000";

const TYPING: &str = "\
The characters are pressed as keys: `--layout` is the keyboard layout that the guest has set. The command ends when the
guest has taken all but the last key.

Examples:
  oxbow ctl vm.sock type root --enter
  oxbow ctl vm.sock type 'straße' --layout de
  oxbow ctl vm.sock type --file commands.txt";

#[derive(Debug, Args)]
#[command(after_help = KEYS)]
pub(super) struct KeyArgs {
    /// Keys that are pressed together, as ctrl-alt-f2
    #[arg(required = true, value_name = "KEYS")]
    keys: Vec<String>,

    /// Hold them for so many milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    hold: u64,
}

#[derive(Debug, Args)]
#[command(after_help = TYPING)]
pub(super) struct TypeArgs {
    /// What to type
    #[arg(
        required_unless_present = "file",
        conflicts_with = "file",
        allow_hyphen_values = true
    )]
    text: Option<String>,

    /// Type what is in this file
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Press the enter key after it
    #[arg(long)]
    enter: bool,

    /// The guest's keyboard layout: us, uk, de or fr
    #[arg(long, value_name = "LAYOUT", default_value = "us")]
    layout: String,
}

#[derive(Debug, Args)]
pub(super) struct MouseArgs {
    #[command(subcommand)]
    action: MouseVerb,
}

#[derive(Debug, Subcommand)]
enum MouseVerb {
    /// Move it, in counts: to the right and down
    #[command(allow_negative_numbers = true)]
    Move {
        /// To the right
        dx: i32,
        /// Down
        dy: i32,
    },
    /// Press and release a button
    Click {
        /// Which
        #[arg(default_value = "left")]
        button: Button,
    },
    /// Press a button and keep it down
    Down {
        /// Which
        #[arg(default_value = "left")]
        button: Button,
    },
    /// Release a button
    Up {
        /// Which
        #[arg(default_value = "left")]
        button: Button,
    },
    /// Turn the wheel, in notches: towards the user, and to the right
    #[command(allow_negative_numbers = true)]
    Wheel {
        /// Towards the user
        dy: i32,
        /// To the right
        #[arg(default_value_t = 0)]
        dx: i32,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Button {
    Left,
    Right,
    Middle,
    Side,
    Extra,
}

impl From<Button> for MouseButton {
    fn from(button: Button) -> Self {
        match button {
            Button::Left => Self::Left,
            Button::Right => Self::Right,
            Button::Middle => Self::Middle,
            Button::Side => Self::Side,
            Button::Extra => Self::Extra,
        }
    }
}

pub(super) fn key(link: &mut Link, args: &KeyArgs) -> Result<ExitCode, Failure> {
    link.done(&Request::Key {
        keys: args.keys.clone(),
        hold: args.hold,
    })
}

pub(super) fn type_text(link: &mut Link, args: &TypeArgs) -> Result<ExitCode, Failure> {
    let mut text = match &args.file {
        Some(path) => read(path)?,
        None => args.text.clone().unwrap_or_default(),
    };
    if args.enter {
        text.push('\n');
    }
    link.done(&Request::Type {
        text,
        layout: Some(args.layout.clone()),
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    let what = || format!("cannot read `{}`", path.display());
    let len = std::fs::metadata(path).with_context(what)?.len();
    // In JSON a character can take twice its space.
    if len > (MAX_REQUEST / 4) as u64 {
        bail!("`{}` is too long to be typed", path.display());
    }
    std::fs::read_to_string(path).with_context(what)
}

pub(super) fn mouse(link: &mut Link, args: &MouseArgs) -> Result<ExitCode, Failure> {
    let press = |button: Button, action| Request::MouseButton {
        button: button.into(),
        action,
    };
    let request = match args.action {
        MouseVerb::Move { dx, dy } => Request::MouseMove { dx, dy },
        MouseVerb::Click { button } => press(button, ButtonAction::Click),
        MouseVerb::Down { button } => press(button, ButtonAction::Down),
        MouseVerb::Up { button } => press(button, ButtonAction::Up),
        MouseVerb::Wheel { dy, dx } => Request::MouseWheel { dy, dx },
    };
    link.done(&request)
}
