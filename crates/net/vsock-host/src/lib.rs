//! The host's side of virtio sockets: Unix sockets.
//!
//! ```text
//!   guest connects to CID 2, port P  ──► PATH_P
//!   PATH ◄── `CONNECT P\n`, answered by `OK PORT\n`  ──► guest listens at port P
//! ```
//!
//! Sockets of messages (SOCK_SEQPACKET) have a path of their own, PATH.seqpacket; the wish and its answer are messages there.
//! PATH_P is reached by a socket of the type that the guest's has.
//!
//! One thread moves bytes between sockets and the bounded buffers that the device looks at.
//!
//! Spec: the convention of Firecracker, docs/vsock.md, which Cloud Hypervisor has too.
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

mod lane;
mod listener;
mod pump;
mod socket;
mod table;

pub use listener::VsockError;
pub use pump::VsockHost;
pub use table::STREAMS;

#[cfg(test)]
mod tests;
