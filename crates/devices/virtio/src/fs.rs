//! File system device: carries FUSE messages to a server of a folder.
//!
//! A queue for messages that must not wait behind others (those that forget), and request queues. There is no notification
//! queue and no shared memory for direct access.
//!
//! Spec: virtio 1.2 §5.11.

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

/// Request queues at most.
pub const QUEUES: u16 = 16;
/// Bytes of a tag.
pub const TAG: usize = 36;
/// Entries of a queue: requests of 256 pages fit with what is around them.
const ENTRIES: u16 = 1024;
/// Queues that are no request queues.
const OTHER: u16 = 1;

/// What a share is called, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsConfig {
    /// What a guest mounts: at most 36 bytes.
    pub tag: String,
    /// Request queues, 1 to 16: one for each processor.
    pub queues: u16,
}

/// The device.
pub struct Fs<S> {
    // Wiring, and State
    post: Post<S>,
    // Configuration
    config: FsConfig,
}

impl<S: FileServer> Fs<S> {
    /// A device that has `server` answer.
    #[must_use]
    pub fn new(
        server: Arc<S>,
        config: FsConfig,
        memory: &Arc<GuestMemory>,
        executor: &Arc<dyn Executor>,
        waker: &Waker,
    ) -> Self {
        let queues = config.queues.clamp(1, QUEUES);
        Self {
            post: Post::new(server, memory, executor, waker),
            config: FsConfig { queues, ..config },
        }
    }

    fn all_queues(&self) -> u16 {
        OTHER + self.config.queues
    }
}

impl<S: FileServer> VirtioDevice for Fs<S> {
    fn id(&self) -> u16 {
        id::FS
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; self.all_queues().into()]
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.config.tag.clone().into_bytes();
        config.resize(TAG, 0);
        config.extend(u32::from(self.config.queues).to_le_bytes());
        config
    }

    fn activate(&mut self, _features: u64) {}

    fn poll(&mut self, _now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        self.post.go(self.all_queues(), rings);
        None
    }

    fn quiesce(&mut self, rings: Option<&mut Rings<'_>>) -> bool {
        self.post.rest(rings)
    }

    fn reset(&mut self) {
        self.post.reset();
    }
}

impl<S: FileServer> Snapshot for Fs<S> {
    type State = FsV1<S::State>;

    fn save(&self) -> FsV1<S::State> {
        let Self { post, config: _ } = self;
        let (post, server) = post.save();
        FsV1 { post, server }
    }

    fn restore(&mut self, saved: FsV1<S::State>) -> Result<(), RestoreError> {
        let FsV1 { post, server } = saved;
        let queues = self.all_queues();
        self.post.restore(post, server, queues)
    }
}

impl<S: FileServer> Inspect for Fs<S> {
    fn inspect(&self) -> Node {
        let server = self.post.server().inspect();
        server
            .with("tag", self.config.tag.clone())
            .with("pending", self.post.pending() as u64)
    }
}

/// Saved state of [`Fs`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FsV1<T> {
    post: PostState,
    server: T,
}

impl<T: Serialize + DeserializeOwned> Schema for FsV1<T> {
    const NAME: &'static str = "virtio_fs";
    const VERSION: u32 = 1;
}
