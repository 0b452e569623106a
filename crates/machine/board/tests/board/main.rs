//! The board as a whole, on a processor that runs test programs written in Rust.

mod contract;
mod engines;
mod fake;
mod hotplug;
mod machine;
mod pc;
mod plan;
mod q35;
mod screen;
mod serial;
mod sleep;
mod storage;
