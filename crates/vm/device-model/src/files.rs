//! File servers: what answers the messages that a guest sends to a shared folder.
//!
//! A device carries messages, whatever their protocol; a server knows the protocol and the files.

use std::fmt::Debug;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Node;
use crate::RestoreError;

/// There are fewer bytes, or there is less room, than was asked for; or nobody waits for the answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message without room for its answer")]
pub struct MessageError;

/// A request and the room for its answer, both in the guest's memory.
pub trait Message {
    /// Bytes of the request that have not been taken.
    fn left(&self) -> usize;

    /// Takes the next `buf.len()` bytes of the request.
    ///
    /// # Errors
    /// There are fewer.
    fn take(&mut self, buf: &mut [u8]) -> Result<(), MessageError>;

    /// Bytes that the answer may have.
    fn room(&self) -> usize;

    /// Writes a part of the answer, `at` bytes from its start.
    ///
    /// # Errors
    /// It does not fit, or nobody waits for it any more.
    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), MessageError>;
}

/// What answers messages.
///
/// `answer` is called on workers' threads, for any number of messages at once, with no lock held; it may take as long as the host's
/// files do. All else is called under the device's lock and does not wait for answers.
pub trait FileServer: Send + Sync + 'static {
    /// What the guest has open: the saved form.
    type State: Clone + Debug + PartialEq + Serialize + DeserializeOwned + Send;

    /// Answers one message. Returns the answer's length: 0 where there is none.
    fn answer(&self, message: &mut dyn Message) -> usize;

    /// Forgets everything that the guest has open. Messages that are being answered end with what they had.
    fn reset(&self);

    /// What the guest has open.
    fn save(&self) -> Self::State;

    /// Opens again what the guest had open.
    ///
    /// # Errors
    /// [`RestoreError::Invalid`] where the values contradict. What is not there any more is no error: the guest is told when
    /// it uses that.
    fn restore(&self, state: Self::State) -> Result<(), RestoreError>;

    /// What is shown of it.
    fn inspect(&self) -> Node;
}
