//! What a user may write of a machine: plain serde types with defaults and validation, and nothing that runs.
//!
//! A [`MachineSpec`] is wishes. `board` turns it into a plan with addresses, and the plan into a machine.
#![forbid(unsafe_code)]

mod attach;
mod devices;
mod input;
mod machine;
mod net;
mod place;
mod share;
mod size;
mod validate;
mod vsock;

pub use attach::Attachment;
pub use attach::Bay;
pub use attach::DriveConfig;
pub use devices::BalloonConfig;
pub use devices::CacheMode;
pub use devices::CdromConfig;
pub use devices::ConsoleConfig;
pub use devices::DebugExitConfig;
pub use devices::DevicesSpec;
pub use devices::DiskConfig;
pub use devices::FloppyConfig;
pub use devices::HpetConfig;
pub use devices::I8042Config;
pub use devices::RngConfig;
pub use devices::RtcConfig;
pub use devices::SerialConfig;
pub use devices::StorageBus;
pub use devices::TestdevConfig;
pub use devices::VgaConfig;
pub use input::InputConfig;
pub use machine::BootDevice;
pub use machine::BootSpec;
pub use machine::EngineKind;
pub use machine::MachineKind;
pub use machine::MachineSpec;
pub use machine::OnReset;
pub use machine::OnTripleFault;
pub use machine::Paravirt;
pub use machine::UefiSpec;
pub use net::CableLimits;
pub use net::Forward;
pub use net::HostOnlyConfig;
pub use net::MacAddress;
pub use net::NICS;
pub use net::NatConfig;
pub use net::NatNetworkConfig;
pub use net::NetworkConfig;
pub use net::NicConfig;
pub use net::NicModel;
pub use net::PromiscuousPolicy;
pub use net::Transport;
pub use net::TunnelConfig;
pub use place::PORTS;
pub use place::PciPlace;
pub use share::SHARES;
pub use share::ShareCache;
pub use share::ShareConfig;
pub use share::ShareProtocol;
pub use size::Size;
pub use size::SizeError;
pub use validate::Problem;
pub use validate::SpecError;
pub use vsock::VsockConfig;
