//! PCI: functions and their interrupts, the bus that finds them, and the chips of a PC that are PCI functions.
//!
//! ```text
//!  CF8h/CFCh, ECAM ──► Root ──► Slot (lock) ──► PciFunction (header, hooks)
//!                        │                          │
//!     buses, memory ◄────┘ where it decodes now     ├──► Pins: INTA#-INTD# ──► PirqRouter ──► ISA lines
//!                                                   └──► MSI, MSI-X ──► MsiSink
//! ```
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

pub mod acpi_slots;
mod address;
mod function;
pub mod i440fx;
pub mod ich9_lpc;
pub mod ich9_smbus;
mod interrupt;
mod msi;
mod msix;
pub mod pci_bridge;
pub mod piix3;
pub mod piix4_pm;
pub mod pirq;
pub mod q35_mch;
pub mod root;
pub mod root_port;
pub mod shadow;

#[cfg(test)]
mod tests;

pub use address::Bdf;
pub use function::Class;
pub use function::Function;
pub use interrupt::Interrupter;
pub use msi::Msi;
pub use msix::Msix;
pub use msix::MsixState;
pub use pirq::PirqRouter;
pub use root::Root;
