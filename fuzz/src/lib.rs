//! What the fuzz targets execute: one module per target, with a function `run` that takes any bytes and ends in a panic
//! when something is wrong. The targets themselves only call these, so that seeds and findings also run as plain tests.
//!
//! ```text
//!   chipset, states     chips ──────► device-model, chipset, display
//!   loaders             ────────────► firmware
//!   images              ────────────► disk-image
//!   decoder, cpu_state  machine ────► x86-interp
//!   translator          machine ────► x86-interp, x86-jit
//!   network             ────────────► vnet
//!   shares              ────────────► shared-folder
//!   virtio              ────────────► virtio, storage, shared-folder
//!   vnc                 ────────────► remote
//! ```
#![forbid(unsafe_code)]

mod chips;
pub mod chipset;
pub mod cpu_state;
pub mod decoder;
pub mod images;
mod input;
pub mod loaders;
mod machine;
pub mod network;
mod registers;
pub mod shares;
pub mod states;
pub mod translator;
pub mod virtio;
pub mod vnc;
