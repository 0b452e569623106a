//! What a machine shows: display adapters, and the framebuffer that screens read.
//!
//! ```text
//!   guest ──► Vga ──► ScanOut ──► Framebuffer ──► VNC, screenshots
//!             (device,  (a value:    (pixels, what changed since when)
//!              locked)   registers and
//!                        a handle on video memory)
//! ```
//!
//! A screen takes a [`ScanOut`] under the device's lock, which costs a copy of the registers, and makes pixels of it
//! afterwards: the guest never waits for a picture.
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

mod codepage;
mod framebuffer;
mod lanes;
pub mod scanout;
mod screenshot;
mod surface;
pub mod vga;

pub use framebuffer::Changes;
pub use framebuffer::Cursor;
pub use framebuffer::Framebuffer;
pub use framebuffer::Move;
pub use framebuffer::ScreenSource;
pub use scanout::ScanOut;
pub use screenshot::ScreenshotError;
pub use screenshot::write_png;
pub use surface::Rect;
pub use surface::Surface;
