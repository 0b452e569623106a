//! A server of FUSE messages: requests are taken apart by `request`, and carried out on a [`Folder`](crate::Folder).
//!
//! Protocol 7.31 and later, as the kernel speaks it over virtio-fs: no device, no splicing. Locks are left to the guest's kernel,
//! and so is the check of permissions. There is no direct access (DAX), no notification, no access control list.
//!
//! Sources: Linux `include/uapi/linux/fuse.h` of 6.1 (7.37), `Documentation/filesystems/fuse.rst`; virtio 1.2 §5.11.

mod handles;
mod nodes;
mod reply;
mod request;
mod server;
mod session;
mod state;
pub mod wire;

pub use request::Operation;
pub use request::Request;
pub use server::FuseConfig;
pub use server::FuseServer;
pub use state::CachePolicy;
pub use state::FuseState;
