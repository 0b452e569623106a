//! The control socket of a running machine: requests from other processes of the same user, and events to them.
//!
//! ```text
//!   oxbow ctl ──► Client ══ JSON lines ══► ControlServer ──► Controlled (the machine)
//!                        ◄═══════════════      ▲
//!                                              └── Publisher ◄── what happens to the machine
//! ```
//!
//! Each connection has two threads of its own: one answers requests, one writes. Neither the machine nor another client ever
//! waits for a client. The protocol is described in docs/control.md.
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

mod client;
mod event;
mod machine;
mod protocol;
mod server;

pub use client::Client;
pub use client::ClientError;
pub use event::Event;
pub use event::Publisher;
pub use machine::Controlled;
pub use protocol::AttachedStatus;
pub use protocol::BalloonState;
pub use protocol::ButtonAction;
pub use protocol::DriveStatus;
pub use protocol::ErrorKind;
pub use protocol::Executed;
pub use protocol::Greeting;
pub use protocol::MAX_REQUEST;
pub use protocol::MediumStatus;
pub use protocol::MouseButton;
pub use protocol::Picture;
pub use protocol::Refusal;
pub use protocol::Request;
pub use protocol::ScreenStatus;
pub use protocol::ScreenText;
pub use protocol::Status;
pub use protocol::Typed;
pub use protocol::VERSION;
pub use server::ControlError;
pub use server::ControlServer;
