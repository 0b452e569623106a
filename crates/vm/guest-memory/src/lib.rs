//! Guest physical memory: RAM and ROM regions, typed access for devices and loaders, raw page look-up
//! for the CPU engines, and the map of pages that hold translated or decoded code.
//!
//! UNSAFETY: guest RAM is shared with running vCPUs and with the host kernel, so no `&[u8]` or `&mut [u8]` on it may
//! ever exist. Access goes through raw pointers with volatile operations; this crate is where they live.

mod code;
mod map;
mod overlay;
mod region;

pub use code::CodeMap;
pub use code::CodePage;
pub use code::CodeWatch;
pub use map::GuestMemory;
pub use map::MemoryError;
pub use map::PageRef;
pub use overlay::MapWatch;
pub use overlay::Overlay;
pub use overlay::Piece;
pub use region::Kind;
pub use region::MemoryRegion;

/// Size of a small page, the unit of look-ups.
pub const PAGE_SIZE: u64 = 4096;
/// Mask of the offset within a page.
pub const PAGE_MASK: u64 = PAGE_SIZE - 1;
