//! The memory balloon as users see it.

use std::fmt;
use std::sync::Arc;

use device_model::Slot;
use virtio::Mmio;
use virtio::Pci;
use virtio::balloon;

use crate::PollRequest;

pub use virtio::balloon::BalloonStatus;

/// The device, however the guest reaches it.
pub(crate) trait Ballooned: Send + Sync {
    /// Calls `f` with the device, under its lock.
    fn with_balloon(&self, f: &mut dyn FnMut(&mut balloon::Balloon));
}

impl Ballooned for Slot<Mmio<balloon::Balloon>> {
    fn with_balloon(&self, f: &mut dyn FnMut(&mut balloon::Balloon)) {
        f(self.lock().device_mut());
    }
}

impl Ballooned for Slot<Pci<balloon::Balloon>> {
    fn with_balloon(&self, f: &mut dyn FnMut(&mut balloon::Balloon)) {
        f(self.lock().device_mut());
    }
}

/// The memory balloon of a machine.
#[derive(Clone)]
pub struct Balloon {
    device: Arc<dyn Ballooned>,
    request: PollRequest,
}

impl fmt::Debug for Balloon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balloon").finish_non_exhaustive()
    }
}

impl Balloon {
    pub(crate) fn new(device: Arc<dyn Ballooned>, request: PollRequest) -> Self {
        Self { device, request }
    }

    /// Says how many bytes the guest is to do without; it follows as far as it can, once it runs.
    pub fn set_target(&self, bytes: u64) {
        self.device.with_balloon(&mut |balloon| balloon.set_target(bytes));
        self.request.raise();
    }

    /// How it stands.
    #[must_use]
    pub fn status(&self) -> BalloonStatus {
        let mut status = BalloonStatus::default();
        self.device.with_balloon(&mut |balloon| status = balloon.status());
        status
    }
}
