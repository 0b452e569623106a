//! Ports without a network behind them: `null`, a cable to nobody, and `none`, no cable.

use device_model::Frame;
use device_model::FramePort;
use device_model::net::Accepts;
use device_model::net::NetWaker;

/// A port with no network behind it: what is sent is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullPort {
    link: bool,
}

impl NullPort {
    /// The network `null`: the link is up, and nobody is there.
    #[must_use]
    pub const fn connected() -> Self {
        Self { link: true }
    }

    /// The network `none`: no cable is plugged in.
    #[must_use]
    pub const fn unplugged() -> Self {
        Self { link: false }
    }
}

impl FramePort for NullPort {
    fn send(&self, _frame: Frame) -> Result<(), Frame> {
        Ok(())
    }

    fn receive(&self) -> Option<Frame> {
        None
    }

    fn set_accepts(&self, _accepts: Accepts) {}

    fn set_promiscuous(&self, _on: bool) {}

    fn set_waker(&self, _waker: NetWaker) {}

    fn link_up(&self) -> bool {
        self.link
    }
}
