//! What a PC's firmware leaves in memory for an operating system: a loaded kernel with its boot protocol's structures and
//! the processor state of its entry point, and the ACPI tables.
//!
//! ```text
//!   acpi::build ──► tables at E0000h, address of the RSDP
//!                        │
//!   boot::load  ◄────────┘   kernel file ──► bzImage | ELF with PVH note | multiboot ──► memory + entry state
//! ```
//!
//! Kernel, initrd and command line are untrusted: every length and address in them is checked against the file and
//! against guest RAM before it is used.
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

pub mod acpi;
mod arena;
mod bios_data;
mod boot;
mod entry;
mod error;
mod image;
pub mod layout;
mod linux;
mod multiboot;
mod pvh;
pub mod rom;
pub mod smbios;
pub mod video;

pub use bios_data::PORT_WRITES;
pub use boot::BootKind;
pub use boot::BootRequest;
pub use boot::Loaded;
pub use boot::load;
pub use entry::firmware_msrs;
pub use entry::waking_state;
pub use error::BootError;
pub use rom::RomError;
