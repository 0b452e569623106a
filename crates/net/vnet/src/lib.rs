//! Virtual networks: what the cables of network cards are plugged into.
//!
//! ```text
//!   card ◄─► Port ─┐                ┌─ Port ◄─► card
//!                  ├─► Switch ◄─────┤
//!   card ◄─► Port ─┘   (learns)     └─ Port ◄─► service (NAT, uplink)
//!             │
//!             └─► Capture (pcap)
//! ```
//!
//! A port is a bounded queue of frames for its owner, who takes them when it has buffers. The switch delivers on the sender's
//! thread, and finishes frames (checksums, segments) for owners that do not take them unfinished. Everything that guests send
//! is hostile: headers lie, lengths are wrong, addresses are forged.
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

pub mod desk;
pub mod host;
pub mod hub;
pub mod nat;
mod netlink;
mod null;
pub mod offload;
mod pcap;
mod port;
mod shaper;
mod switch;
mod uplink;

pub use nat::Nat;
pub use null::NullPort;
pub use pcap::Capture;
pub use port::Counters;
pub use port::Port;
pub use shaper::Limits;
pub use shaper::ShapedPort;
pub use switch::PortConfig;
pub use switch::Promiscuous;
pub use switch::Role;
pub use switch::Switch;
