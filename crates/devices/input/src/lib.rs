//! What a user does with keyboard and mouse, on its way to any machine: keys, chords, typed text, pointer events.
//!
//! ```text
//!   VNC, control socket, script ──► Event ──► InputSink ──► PS/2, USB, virtio
//!        keysym, scan code, text ──► Key
//! ```
//!
//! Keys are physical: what they mean is the guest's keyboard layout. Where characters come in, the [`Layout`] says which
//! keys a guest with that layout takes for them.
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

mod chord;
mod event;
mod key;
mod keysym;
mod layout;

pub use chord::ChordError;
pub use chord::parse_chord;
pub use chord::press;
pub use event::Button;
pub use event::Event;
pub use event::InputSink;
pub use event::RelativePointer;
pub use key::Key;
pub use keysym::stroke_of_keysym;
pub use layout::Layout;
pub use layout::Stroke;
pub use layout::TypeError;
pub use layout::UnknownLayout;
