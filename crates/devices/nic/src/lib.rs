//! Network cards of a PC.
//!
//! ```text
//!   registers ──► E1000 ──► FramePort ──► network
//!                  ▲  │
//!   rings in guest memory
//! ```
//!
//! A card takes frames out of its port while it has descriptors for them; what it has no room for waits there. Frames are sent
//! within the register write that asks for it, or when the port has room again.
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

mod bytes;
pub mod e1000;
