//! virtio devices: paravirtual disks, shared folders, consoles, entropy, memory balloons, by PCI and by memory-mapped registers.
//!
//! ```text
//!   registers ──► Pci<D>  ─┐
//!                          ├─► Core: status, features, queues ──► Rings ──► D: Blk, Console, …
//!   registers ──► Mmio<D> ─┘                                        │
//!                                                    guest memory ◄─┘
//! ```
//!
//! A device knows its queues and its configuration space; a transport knows how a driver reaches them. Rings are the
//! guest's: whatever they say that cannot be breaks the device, which then asks for a reset, and does nothing else.
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

pub mod balloon;
pub mod blk;
pub mod console;
mod core;
mod device;
pub mod fs;
pub mod input;
mod mmio;
pub mod net;
pub mod nine_p;
mod pci;
mod post;
mod queue;
pub mod rng;
pub mod scsi;
#[cfg(test)]
mod testing;
pub mod vsock;

pub use device::Rings;
pub use device::VirtioDevice;
pub use device::feature;
pub use device::id;
pub use mmio::LEN as MMIO_LEN;
pub use mmio::Mmio;
pub use mmio::MmioState;
pub use pci::Pci;
pub use pci::PciState;
pub use queue::CHAIN;
pub use queue::Chain;
pub use queue::RingError;
