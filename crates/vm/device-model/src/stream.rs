//! Streams of bytes, and of messages, between programs of the guest and of the host: what a socket device is plugged into.
//!
//! Both sides hold back: what the device has not taken waits with the host's program, and what that has not taken waits with
//! the guest's.

use std::sync::Arc;

/// What a flow carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowKind {
    /// Bytes.
    #[default]
    Stream,
    /// Messages that arrive as they were sent, in their order. None is empty.
    Packets,
}

/// One stream, by its ports. Those of different kinds do not know of one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// Port of the host.
    pub host: u32,
    /// Port of the guest.
    pub guest: u32,
    /// What it carries.
    pub kind: FlowKind,
}

impl Flow {
    /// A stream of bytes.
    #[must_use]
    pub const fn stream(host: u32, guest: u32) -> Self {
        let kind = FlowKind::Stream;
        Self { host, guest, kind }
    }

    /// A stream of messages.
    #[must_use]
    pub const fn packets(host: u32, guest: u32) -> Self {
        let kind = FlowKind::Packets;
        Self { host, guest, kind }
    }
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowStatus {
    /// The host's program has it; until then it is still being reached.
    pub open: bool,
    /// Bytes that [`StreamHost::receive`] would give.
    pub readable: usize,
    /// How many of them are of the first message; all of them where there are no messages.
    pub message: usize,
    /// Bytes that the host's program has been given so far.
    pub delivered: u64,
    /// Nothing comes after what is readable.
    pub ended: bool,
    /// The host's program takes nothing any more.
    pub deaf: bool,
}

/// Asks for a poll of the device. Called on any thread, with no lock of the streams held; must not block.
pub type StreamWaker = Arc<dyn Fn() + Send + Sync>;

/// The host's programs, as a socket device sees them.
///
/// Every method may be called under a device's lock, and returns at once. The waker is called when [`Self::offered`] or
/// [`Self::changed`] have something again.
pub trait StreamHost: Send + Sync {
    /// Says whom to tell.
    fn set_waker(&self, waker: StreamWaker);

    /// The next stream that a program of the host wants: it is answered by [`Self::accept`] or [`Self::close`].
    fn offered(&self) -> Option<Flow>;

    /// The next stream whose status has changed since it was last taken from here.
    fn changed(&self) -> Option<Flow>;

    /// Where a stream stands; none when there is none, or the host's program could not be reached.
    fn status(&self, flow: Flow) -> Option<FlowStatus>;

    /// Opens a stream that the guest wants. False when there can be no more of them.
    fn connect(&self, flow: Flow) -> bool;

    /// The guest takes a stream that was offered.
    fn accept(&self, flow: Flow);

    /// Sends to the host's program; where there are messages, one ends with these bytes if `end` says so, and is sent then. The
    /// caller sees to it that no more than it promised to keep is under way.
    fn send(&self, flow: Flow, bytes: &[u8], end: bool);

    /// Takes up to `most` of the bytes that have come, of one message where there are messages, and says whether that ends with
    /// them.
    fn receive(&self, flow: Flow, most: usize) -> (Vec<u8>, bool);

    /// The guest sends (`sends`) or takes (`takes`) nothing any more.
    fn shut_down(&self, flow: Flow, sends: bool, takes: bool);

    /// Forgets a stream; with `flush`, once what was sent has been delivered.
    fn close(&self, flow: Flow, flush: bool);

    /// Ends all streams that were taken or asked for.
    fn reset(&self);
}

/// A host without programs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoStreams;

impl StreamHost for NoStreams {
    fn set_waker(&self, _waker: StreamWaker) {}

    fn offered(&self) -> Option<Flow> {
        None
    }

    fn changed(&self) -> Option<Flow> {
        None
    }

    fn status(&self, _flow: Flow) -> Option<FlowStatus> {
        None
    }

    fn connect(&self, _flow: Flow) -> bool {
        false
    }

    fn accept(&self, _flow: Flow) {}

    fn send(&self, _flow: Flow, _bytes: &[u8], _end: bool) {}

    fn receive(&self, _flow: Flow, _most: usize) -> (Vec<u8>, bool) {
        (Vec::new(), false)
    }

    fn shut_down(&self, _flow: Flow, _sends: bool, _takes: bool) {}

    fn close(&self, _flow: Flow, _flush: bool) {}

    fn reset(&self) {}
}
