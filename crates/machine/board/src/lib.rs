//! The board: from what the user wants to a running machine.
//!
//! ```text
//!  MachineSpec ──plan()──► Plan ──build()──► Machine
//!                 (pure, printable)            │
//!        ┌───────────────┬────────────────┬────┴───────────┐
//!   vCPU threads    event thread     control thread     devices
//!   (vcpu.rs)       (events.rs)      (control.rs)       (registry.rs)
//! ```
//!
//! One thread, the control thread, owns the machine's run state. vCPU threads pass a gate to execute guest code, and the
//! event thread polls devices whose time has come; both stand still whenever the control thread needs the machine to.
#![forbid(unsafe_code)]

mod balloon;
mod boot;
mod clock;
mod control;
mod cpu_board;
mod drives;
mod engines;
mod events;
mod fabric;
mod floppy;
mod gate;
mod hotplug;
mod machine;
mod network;
mod optical;
mod plan;
mod registry;
mod screen;
mod serial;
mod state;
mod stolen;
mod storage;
mod vcpu;

pub use balloon::Balloon;
pub use balloon::BalloonStatus;
pub use clock::HostClock;
pub use control::MachineEvent;
pub use control::Outcome;
pub use control::RunState;
pub use control::StateError;
pub use control::TripleFault;
pub use control::Watcher;
pub use drives::DriveError;
pub use drives::DriveKind;
pub use drives::Medium;
pub use drives::RemovableDrive;
pub use engines::EngineFactory;
pub use engines::kvm_models;
pub use engines::try_engine;
pub use events::PollRequest;
pub use hotplug::Attach;
pub use hotplug::PlugError;
pub use kvm::Availability;
pub use kvm::availability as kvm_availability;
pub use machine::Backends;
pub use machine::BuildError;
pub use machine::Machine;
pub use network::CableError;
pub use network::SwitchStarter;
pub use network::hub_config;
pub use network::nat_config;
pub use plan::Placement;
pub use plan::Plan;
pub use plan::PlanError;
pub use plan::Window;
pub use plan::plan;
pub use registry::chips;
pub use screen::Screen;
pub use screen::UserInput;
pub use serial::SerialHost;
pub use serial::SerialPort;
pub use serial::serial_wire;
pub use state::CpuSnapshot;
pub use state::DeviceSnapshot;
pub use state::MachineState;
