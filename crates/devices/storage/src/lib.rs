//! Storage controllers of a PC, and the drives behind them.
//!
//! ```text
//!   registers ──► Ide ─┐
//!                      ├─► Drive: Disk | Optical ─┐
//!   registers ──► Ahci ┘                          ├─► Channel ──► Executor (worker threads) ──► Medium
//!   registers ──► Nvme ───────────────────────────┘      ▲                 │
//!                                                        └──── answers, waker
//! ```
//!
//! No controller waits for a medium: it hands requests to workers, which also carry the data to and from guest memory, and
//! looks at their answers when it is polled. What was asked for and not yet answered is part of a controller's saved
//! state; it is asked for again when the state is restored.
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

pub mod ahci;
mod ata;
mod bytes;
pub mod ide;
mod medium;
mod mode;
pub mod nvme;
pub mod scsi;
mod work;

pub use ata::Drive;
pub use ata::Identity;
pub use ata::Tray;
pub use medium::Medium;
pub use medium::MediumError;
pub use medium::MemoryMedium;
pub use work::Channel;
pub use work::Data;
pub use work::Executor;
pub use work::Fault;
pub use work::Inline;
pub use work::Job;
pub use work::MOST;
pub use work::Op;
pub use work::Outcome;
pub use work::Request;
pub use work::SEGMENTS;
pub use work::Segment;
pub use work::Submitted;
pub use work::Waker;
pub use work::guest_len;
