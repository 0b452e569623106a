//! Disk images: raw, VDI, VMDK, VHD, qcow2, and VHDX and ISO 9660 for reading.
//!
//! ```text
//!   open ─► probe ─► raw ────────────────────────────┐
//!              ├───► vdi | vmdk | vhd | qcow2 ─► Engine ├─► Image: BlockBackend
//!              └───► vhdx ───────────────────────────┘        │ parent
//!                       │                                     ▼
//!                     Meta (cache, order of writing)        Image …
//!                       │
//!                     Store: a file of the host, or memory
//! ```
//!
//! A format consists of its tables ([`engine::Tables`]): where a block is, and how that is recorded. The engine does the
//! rest for all of them. Images are not believed: every offset and length is checked against the file before it is used,
//! nothing is allocated by the size that an image claims, and references to parents are limited and may not go round.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

mod backend;
mod busy;
mod bytes;
mod convert;
mod create;
mod engine;
mod error;
mod image;
mod meta;
mod open;
mod packed;
mod qcow2;
mod raw;
mod rewrite;
mod store;
mod uuid;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

pub use backend::BlockBackend;
pub use backend::Extent;
pub use backend::ExtentKind;
pub use backend::ImageInfo;
pub use convert::Comparison;
pub use convert::Progress;
pub use convert::Watcher;
pub use convert::compare;
pub use convert::copy;
pub use create::CreateOptions;
pub use create::ParentReference;
pub use create::Variant;
pub use create::create;
pub use error::BlockError;
pub use error::Result;
pub use image::Compression;
pub use image::Format;
pub use image::Identity;
pub use image::Image;
pub use image::Report;
pub use open::OpenOptions;
pub use open::open;
pub use open::open_in;
pub use rewrite::compact;
pub use rewrite::resize;
pub use store::Access;
pub use store::FileId;
pub use store::Files;
pub use store::HostFiles;
pub use store::MemoryFiles;
pub use store::MemoryStore;
pub use store::Recording;
pub use store::Store;
pub use uuid::Uuid;
