//! `oxbow ctl link` and `forward`.

use std::process::ExitCode;

use clap::Args;
use clap::ValueEnum;
use control::Request;
use spec::Forward;

use super::Link;
use crate::failure::Failure;

/// Where a cable is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum State {
    /// Plugged in
    Up,
    /// Plugged out
    Down,
}

#[derive(Debug, Args)]
#[command(after_help = "Cards are called nic0 to nic7.\n\nExample:\n  oxbow ctl vm.sock link nic0 down")]
pub(super) struct LinkArgs {
    /// Name of the card
    card: String,

    /// Whether its cable is plugged in
    state: State,
}

#[derive(Debug, Args)]
#[command(
    after_help = "`oxbow ctl SOCKET inspect pc/networks` shows the networks.\n\nExamples:\n  oxbow ctl vm.sock forward \
                  tcp:127.0.0.1:2222-:22\n  oxbow ctl vm.sock forward --remove tcp:127.0.0.1:2222-:22"
)]
pub(super) struct ForwardArgs {
    /// PROTOCOL:[ADDRESS]:PORT-[GUEST]:PORT
    rule: Forward,

    /// The card at whose NAT the guest is; the first with one if it is not given
    #[arg(long)]
    card: Option<String>,

    /// Let it lead there no more
    #[arg(long)]
    remove: bool,
}

pub(super) fn link(link: &mut Link, args: &LinkArgs) -> Result<ExitCode, Failure> {
    link.done(&Request::Link {
        card: args.card.clone(),
        up: args.state == State::Up,
    })
}

pub(super) fn forward(link: &mut Link, args: &ForwardArgs) -> Result<ExitCode, Failure> {
    link.done(&Request::Forward {
        rule: args.rule.to_string(),
        card: args.card.clone(),
        remove: args.remove,
    })
}
