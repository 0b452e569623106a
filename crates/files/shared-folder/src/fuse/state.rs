//! What a guest has open, saved: files by their paths, since descriptors die with the process.

use serde::Deserialize;
use serde::Serialize;

/// How long the guest may go without asking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CachePolicy {
    /// Names and attributes for a second; data until the file's time or size has changed: what changes on the host is seen soon.
    #[default]
    Auto,
    /// Nothing is kept: each access asks. There are no shared mappings then.
    Never,
    /// Everything, for as long as there is memory: the guest is the only one who changes the folder.
    Always,
}

/// A file that the guest knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeState {
    pub(super) number: u64,
    pub(super) lookups: u64,
    /// The type's bits of its mode.
    pub(super) kind: u32,
    /// From the folder on; none where it had no name any more.
    pub(super) path: Option<Vec<u8>>,
}

/// A file that the guest has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HandleState {
    pub(super) number: u64,
    pub(super) node: u64,
    pub(super) directory: bool,
    /// What it was opened with.
    pub(super) flags: u32,
}

/// What both sides have agreed upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Agreement {
    /// The guest's version; 0 before INIT.
    pub(super) minor: u32,
    pub(super) flags: u32,
}

/// Saved state of [`FuseServer`](super::FuseServer).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FuseState {
    pub(super) agreement: Agreement,
    pub(super) nodes: Vec<NodeState>,
    pub(super) next_node: u64,
    pub(super) handles: Vec<HandleState>,
    pub(super) next_handle: u64,
}
