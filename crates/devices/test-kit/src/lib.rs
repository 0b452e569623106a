//! What tests of devices share: a probe at the end of interrupt lines, the contract that every device keeps, a driver
//! that turns a byte string into register accesses, and messages for file servers.
//!
//! ```text
//!   TestClock ──► device under test ──► IrqProbe (lines and messages)
//!                     ▲
//!   contract(), fuzz_registers()
//! ```
#![forbid(unsafe_code)]

mod contract;
mod endpoint;
mod fuzz;
mod message;
mod probe;
pub mod virtio;

pub use contract::contract;
pub use device_model::TestClock;
pub use endpoint::Endpoint;
pub use fuzz::fuzz_accesses;
pub use fuzz::fuzz_registers;
pub use message::Bytes;
pub use probe::IrqEvent;
pub use probe::IrqProbe;
