//! What the control socket needs of a machine.

use std::path::Path;

use display::Surface;
use input::InputSink;

use crate::AttachedStatus;
use crate::BalloonState;
use crate::Refusal;
use crate::Request;
use crate::Status;

/// A machine that clients control. Called from the threads of connections, several at a time, with no lock held; a call may take
/// as long as the machine takes to stand still. Must not wait for a client.
pub trait Controlled: Send + Sync {
    /// What it is and does.
    fn status(&self) -> Status;

    /// A picture of its screen; none without one.
    fn picture(&self) -> Option<Surface>;

    /// Whether it has a screen, and the text on it; none in graphics modes.
    ///
    /// # Errors
    /// [`Refusal`] when there is no screen.
    fn text(&self) -> Result<Option<String>, Refusal>;

    /// Keyboard and mouse; none without them.
    fn input(&self) -> Option<&dyn InputSink>;

    /// Bytes of keystrokes that the guest has not taken.
    fn keystrokes_waiting(&self) -> usize;

    /// Whether it has come to its end.
    fn has_ended(&self) -> bool;

    /// Presses the power button; false when there is none.
    fn press_power_button(&self) -> bool;

    /// Presses the sleep button; false when there is none.
    fn press_sleep_button(&self) -> bool;

    /// Presses the reset button.
    ///
    /// # Errors
    /// [`Refusal`] in a state that knows none.
    fn reset(&self) -> Result<(), Refusal>;

    /// Lets guest and time stand still; returns when they do.
    ///
    /// # Errors
    /// As [`Self::reset`].
    fn pause(&self) -> Result<(), Refusal>;

    /// Lets a paused machine go on.
    ///
    /// # Errors
    /// As [`Self::reset`].
    fn resume(&self) -> Result<(), Refusal>;

    /// Lets another engine execute the guest; returns its name when it does.
    ///
    /// # Errors
    /// [`Refusal`] when there is no such engine, or the guest cannot go on with it.
    fn switch_engine(&self, engine: &str) -> Result<String, Refusal>;

    /// The memory balloon, which is to have `size` bytes from now on if that is said.
    ///
    /// # Errors
    /// [`Refusal`] when there is none.
    fn balloon(&self, size: Option<u64>) -> Result<BalloonState, Refusal>;

    /// Asks for the machine's end. The reply is on its way by then.
    fn quit(&self);

    /// Part of the live state; none when there is no such part.
    ///
    /// # Errors
    /// As [`Self::reset`].
    fn inspect(&self, path: &str) -> Result<Option<serde_json::Value>, Refusal>;

    /// Takes the medium out of a drive.
    ///
    /// # Errors
    /// [`Refusal`] when there is no such drive, or the guest holds the medium.
    fn eject(&self, drive: &str) -> Result<(), Refusal>;

    /// Puts a medium into a drive.
    ///
    /// # Errors
    /// As [`Self::eject`], and when the image does not fit.
    fn insert(&self, drive: &str, file: &Path, read_only: bool) -> Result<(), Refusal>;

    /// Attaches a drive, as `request`, which is a [`Request::Attach`], says.
    ///
    /// # Errors
    /// [`Refusal`] when the image does not fit, or there is no place for it.
    fn attach(&self, request: &Request) -> Result<AttachedStatus, Refusal>;

    /// Detaches a drive, or asks the guest to give it up; true when it has gone already.
    ///
    /// # Errors
    /// [`Refusal`] when there is no such drive, or it cannot be detached.
    fn detach(&self, drive: &str, force: bool) -> Result<bool, Refusal>;

    /// Whether a drive of this name can be detached.
    fn is_attached(&self, drive: &str) -> bool;

    /// Plugs the cable of a network card in or out.
    ///
    /// # Errors
    /// [`Refusal`] when there is no such card, or it has no cable.
    fn set_link(&self, card: &str, up: bool) -> Result<(), Refusal>;

    /// Lets a port of the host lead to the guest by a card's NAT, the first if none is named, or ends that.
    ///
    /// # Errors
    /// [`Refusal`] when the rule is none, there is no such card or NAT, or the port cannot be had.
    fn set_forward(&self, card: Option<&str>, rule: &str, on: bool) -> Result<(), Refusal>;
}
