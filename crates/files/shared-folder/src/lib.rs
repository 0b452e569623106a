//! Folders of the host that guests see as file systems: FUSE messages, and the files behind them.
//!
//! ```text
//!   virtio-fs ──► fuse::FuseServer ─► Folder ──► the host's files, by descriptors
//!                   requests, node      one step of a path at a time,
//!                   numbers, handles    never a symbolic link, never `..`
//! ```
//!
//! A guest names files by numbers that were given to it, and by single names in directories that it has such numbers of. Nothing
//! that it can say is a path, so nothing leads out of the folder.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::cast_possible_truncation
    )
)]

mod credentials;
mod descriptor;
mod device;
mod folder;
pub mod fuse;
pub mod nine_p;
mod transfer;

pub use credentials::Caller;
pub use folder::Folder;
pub use folder::FolderError;
