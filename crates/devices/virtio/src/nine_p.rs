//! 9P transport: carries 9P messages to a server of a folder.
//!
//! Spec: virtio 1.2 §5.9 (9P Device, reserved); its layout is that of Linux `include/uapi/linux/virtio_9p.h`.

use std::sync::Arc;

use device_model::FileServer;
use device_model::Inspect;
use device_model::Node;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::VmTime;
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;
use storage::Executor;
use storage::Waker;

use crate::Rings;
use crate::VirtioDevice;
use crate::id;
use crate::post::Post;
use crate::post::PostState;

/// Entries of the queue: what Linux has buffers for.
const ENTRIES: u16 = 128;
/// Queues.
const QUEUES: u16 = 1;
/// Feature: configuration space has a tag.
const MOUNT_TAG: u64 = 1 << 0;

/// The device.
pub struct NineP<S> {
    // Wiring, and State
    post: Post<S>,
    // Configuration
    tag: String,
}

impl<S: FileServer> NineP<S> {
    /// A device that has `server` answer, which a guest mounts as `tag`.
    #[must_use]
    pub fn new(
        server: Arc<S>,
        tag: &str,
        memory: &Arc<GuestMemory>,
        executor: &Arc<dyn Executor>,
        waker: &Waker,
    ) -> Self {
        Self {
            post: Post::new(server, memory, executor, waker),
            tag: tag.to_owned(),
        }
    }
}

impl<S: FileServer> VirtioDevice for NineP<S> {
    fn id(&self) -> u16 {
        id::NINE_P
    }

    fn features(&self) -> u64 {
        MOUNT_TAG
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; QUEUES.into()]
    }

    fn config(&self) -> Vec<u8> {
        let len = u16::try_from(self.tag.len()).unwrap_or(0);
        [len.to_le_bytes().as_slice(), self.tag.as_bytes()].concat()
    }

    fn activate(&mut self, _features: u64) {}

    fn poll(&mut self, _now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        self.post.go(QUEUES, rings);
        None
    }

    fn quiesce(&mut self, rings: Option<&mut Rings<'_>>) -> bool {
        self.post.rest(rings)
    }

    fn reset(&mut self) {
        self.post.reset();
    }
}

impl<S: FileServer> Snapshot for NineP<S> {
    type State = NinePV1<S::State>;

    fn save(&self) -> NinePV1<S::State> {
        let Self { post, tag: _ } = self;
        let (post, server) = post.save();
        NinePV1 { post, server }
    }

    fn restore(&mut self, saved: NinePV1<S::State>) -> Result<(), RestoreError> {
        let NinePV1 { post, server } = saved;
        self.post.restore(post, server, QUEUES)
    }
}

impl<S: FileServer> Inspect for NineP<S> {
    fn inspect(&self) -> Node {
        let server = self.post.server().inspect();
        server
            .with("tag", self.tag.clone())
            .with("pending", self.post.pending() as u64)
    }
}

/// Saved state of [`NineP`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NinePV1<T> {
    post: PostState,
    server: T,
}

impl<T: Serialize + DeserializeOwned> Schema for NinePV1<T> {
    const NAME: &'static str = "virtio_9p";
    const VERSION: u32 = 1;
}
