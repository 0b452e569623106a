//! VNC server: the remote framebuffer protocol, versions 3.3, 3.7 and 3.8.
//!
//! Security None and VNC authentication; encodings Raw, `CopyRect`, Hextile, ZRLE and Tight (fill, palette, full colour);
//! pseudo-encodings Cursor, `DesktopSize`, `ExtendedDesktopSize`, QEMU extended keys and LEDs. Pixels of 8, 16 and 32 bits of any
//! shape, and colour maps. Not there: JPEG, TLS, the clipboard, and changing the screen's size from the client, which is
//! answered as prohibited.
//!
//! ```text
//!   ScreenSource ──► refresher ──► Framebuffer ──► writer ─┐
//!                    (one thread,   (what changed          ├─ client (two threads each)
//!                     when asked)    since when)           │
//!   InputSink ◄──────────────────────────────── reader ◄──┘
//! ```
//!
//! A client gets what changed since its last update, when it asks for it: one that is slow gets fewer and larger updates, and
//! holds up nobody else. The machine is never waited for, nor does it wait.
//!
//! Spec: RFC 6143; The RFB Protocol, community version 3.8 (rfbproto.rst) for Tight, `ExtendedDesktopSize` and QEMU's extensions.

mod address;
mod auth;
mod connection;
mod encode;
mod handshake;
mod input;
pub mod message;
pub mod pixel;
mod server;
mod socket;

pub use address::AddressError;
pub use address::VncAddress;
pub use auth::Password;
pub use auth::PasswordError;
pub use server::VncConfig;
pub use server::VncError;
pub use server::VncServer;
