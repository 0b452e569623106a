//! The guest-visible chips of a PC board.
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

pub mod a20;
pub mod acpi_pm;
pub mod cmos_rtc;
pub mod debug_exit;
pub mod debugcon;
pub mod dma8237;
pub mod fdc;
pub mod fw_cfg;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
mod lanes;
pub mod lapic;
pub mod parallel;
pub mod pc_testdev;
pub mod pic;
pub mod pit;
pub mod port92;
pub mod reset_control;
pub mod uart16550;
