//! `oxbow ctl`: what is done to a machine that runs.

mod attach;
mod balloon;
mod input;
mod media;
mod net;
mod screen;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::Subcommand;
use control::Client;
use control::Request;
use serde_json::Value;

use crate::completions::print;
use crate::failure::Failure;

const EXAMPLES: &str = "\
SOCKET is what the machine was started with: `oxbow run --control SOCKET`.

Exit status:
  0    done
  1    the machine refused, or is gone
  2    wrong usage; no machine there; it has no such key, drive or part
  124  what was waited for did not come in time

Examples:
  oxbow ctl vm.sock status
  oxbow ctl vm.sock screenshot screen.png
  oxbow ctl vm.sock screen-text --wait-for 'login:' --timeout 120
  oxbow ctl vm.sock type root --enter
  oxbow ctl vm.sock key ctrl-alt-f2
  oxbow ctl vm.sock mouse move 30 -10
  oxbow ctl vm.sock inspect pc/devices/pit
  oxbow ctl vm.sock insert floppy0 disk2.img
  oxbow ctl vm.sock attach disk data.qcow2,bus=nvme
  oxbow ctl vm.sock forward tcp:127.0.0.1:2222-:22
  oxbow ctl vm.sock engine interp
  oxbow ctl vm.sock power-button

docs/control.md describes the socket for programs.";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct CtlArgs {
    /// The machine's control socket
    socket: PathBuf,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Show what the machine is and does
    Status,
    /// Write a picture of the screen as a PNG file
    Screenshot(screen::ScreenshotArgs),
    /// Print the text on the screen, at once or when it shows something
    ScreenText(screen::TextArgs),
    /// Press keys together, such as ctrl-alt-f2; several one after the other
    Key(input::KeyArgs),
    /// Type text on the keyboard
    Type(input::TypeArgs),
    /// Move the mouse, press its buttons, turn its wheel
    Mouse(input::MouseArgs),
    /// Press the power button: the guest is asked to turn itself off
    PowerButton,
    /// Press the sleep button
    SleepButton,
    /// Press the reset button: the guest boots again at once
    Reset,
    /// Let the guest and its time stand still
    Pause,
    /// Let a paused guest go on
    Resume,
    /// Let another engine execute the guest from here on
    Engine(show::EngineArgs),
    /// Show the memory balloon, or say how large it is to be
    Balloon(balloon::BalloonArgs),
    /// End the machine at once, as if its plug were pulled
    Quit,
    /// Show the machine's live state, or a part of it
    Inspect(show::InspectArgs),
    /// Take the medium out of a drive
    Eject(media::EjectArgs),
    /// Put an image into a drive
    Insert(media::InsertArgs),
    /// Attach a drive while the machine runs
    #[command(subcommand)]
    Attach(attach::AttachArgs),
    /// Detach a drive that can go: the guest is asked where it has a say
    Detach(attach::DetachArgs),
    /// Plug the cable of a network card in or out
    Link(net::LinkArgs),
    /// Let a port of the host lead to the guest, or end that
    Forward(net::ForwardArgs),
    /// Print what happens to the machine, a line each, until it ends
    Events(show::EventsArgs),
}

pub(crate) fn run(args: &CtlArgs) -> Result<ExitCode, Failure> {
    let mut link = Link {
        client: Client::connect(&args.socket)?,
        json: args.json,
    };
    match &args.verb {
        Verb::Status => show::status(&mut link),
        Verb::Screenshot(args) => screen::screenshot(&mut link, args),
        Verb::ScreenText(args) => screen::text(&mut link, args),
        Verb::Key(args) => input::key(&mut link, args),
        Verb::Type(args) => input::type_text(&mut link, args),
        Verb::Mouse(args) => input::mouse(&mut link, args),
        Verb::PowerButton => link.done(&Request::PowerButton {}),
        Verb::SleepButton => link.done(&Request::SleepButton {}),
        Verb::Reset => link.done(&Request::Reset {}),
        Verb::Pause => link.done(&Request::Pause {}),
        Verb::Resume => link.done(&Request::Resume {}),
        Verb::Engine(args) => show::engine(&mut link, args),
        Verb::Balloon(args) => balloon::balloon(&mut link, args),
        Verb::Quit => link.done(&Request::Quit {}),
        Verb::Inspect(args) => show::inspect(&mut link, args),
        Verb::Eject(args) => media::eject(&mut link, args),
        Verb::Insert(args) => media::insert(&mut link, args),
        Verb::Attach(args) => attach::attach(&mut link, args),
        Verb::Detach(args) => attach::detach(&mut link, args),
        Verb::Link(args) => net::link(&mut link, args),
        Verb::Forward(args) => net::forward(&mut link, args),
        Verb::Events(args) => show::events(&mut link, args),
    }
}

/// The machine, and how answers are shown.
struct Link {
    client: Client,
    json: bool,
}

impl Link {
    /// Asks for something that has no answer but that it is done.
    fn done(&mut self, request: &Request) -> Result<ExitCode, Failure> {
        let value = self.client.call(request)?;
        self.answer(&value, "")
    }

    /// Prints an answer, as lines or as JSON.
    fn answer(&self, value: &Value, lines: &str) -> Result<ExitCode, Failure> {
        if self.json {
            print(format!("{value:#}\n").as_bytes())
        } else {
            print(lines.as_bytes())
        }
    }
}
