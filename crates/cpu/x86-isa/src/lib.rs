//! Constants and value types of the x86 architecture: control registers, flags, MSRs, descriptors, page-table entries
//! and exceptions. No behaviour: the engines bring that.
//!
//! Spec: Intel 64 and IA-32 Architectures Software Developer's Manual (SDM), order 325462; AMD64 Architecture
//! Programmer's Manual (APM), order 40332.
#![forbid(unsafe_code)]

pub mod attr;
pub mod cr0;
pub mod cr4;
pub mod descriptor;
pub mod efer;
mod exception;
pub mod flags;
pub mod msr;
pub mod pte;

pub use descriptor::Descriptor;
pub use descriptor::Selector;
pub use exception::Exception;
pub use exception::Vector;

/// Segment registers in the hardware's numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Seg {
    /// Extra.
    Es = 0,
    /// Code.
    Cs = 1,
    /// Stack.
    Ss = 2,
    /// Data.
    Ds = 3,
    /// FS.
    Fs = 4,
    /// GS.
    Gs = 5,
}
