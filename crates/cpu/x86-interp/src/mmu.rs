//! Memory as instructions see it: effective address → segment → linear → page → host.

mod access;
mod filter;
mod segment;
mod space;
mod tlb;
mod walk;

pub(crate) use access::copy;
pub(crate) use access::fill;
pub(crate) use tlb::ExecEntry;
pub(crate) use tlb::Fill;
pub(crate) use tlb::Tlb;
pub use tlb::TlbData;
pub(crate) use tlb::layout;
pub(crate) use walk::Access;
pub(crate) use walk::PHYS_BITS;
pub(crate) use walk::Privilege;
