//! The vocabulary of device models: what a device is, how the bus reaches it, how it raises interrupts, what time it
//! sees, how it is saved and looked at.
//!
//! A device is a plain struct with `&mut self` methods. The board owns the lock around it, the bus fixes access widths,
//! and interrupt lines, messages and DMA go through handles that are safe to use under that lock.
//!
//! ```text
//!            register access                 level / message
//!  vCPU ──► Bus ──► Slot (lock) ──► Device ──► IrqLine / MsiSink ──► interrupt controllers
//!                     │  ▲
//!          deadline   ▼  │ poll(now)
//!                 event thread
//! ```
#![forbid(unsafe_code)]

mod bus;
pub mod bytes;
mod device;
pub mod files;
mod inspect;
mod irq;
pub mod net;
pub mod pci;
mod registers;
mod serial;
mod snapshot;
mod stream;
mod time;

pub use bus::Bus;
pub use bus::BusConflict;
pub use bus::Mapping;
pub use device::Device;
pub use device::Reset;
pub use device::SharedDevice;
pub use device::Slot;
pub use device::Wake;
pub use files::FileServer;
pub use files::Message;
pub use files::MessageError;
pub use inspect::Inspect;
pub use inspect::Node;
pub use irq::IrqLine;
pub use irq::LineTarget;
pub use irq::MsiMessage;
pub use irq::MsiSink;
pub use net::Frame;
pub use net::FramePort;
pub use pci::PciFunction;
pub use pci::PciHeader;
pub use registers::At;
pub use registers::IoError;
pub use registers::Region;
pub use registers::Registers;
pub use registers::Space;
pub use registers::Width;
pub use registers::Widths;
pub use serial::NullSerial;
pub use serial::SerialBackend;
pub use snapshot::DynSnapshot;
pub use snapshot::RestoreError;
pub use snapshot::Schema;
pub use snapshot::Snapshot;
pub use snapshot::StateBlob;
pub use stream::Flow;
pub use stream::FlowKind;
pub use stream::FlowStatus;
pub use stream::NoStreams;
pub use stream::StreamHost;
pub use stream::StreamWaker;
pub use time::Clock;
pub use time::TestClock;
pub use time::VmTime;
