//! A server of 9P2000.L messages, the dialect of Linux.
//!
//! All messages that Linux sends are there. Locks are granted: the guest's kernel keeps them among its own processes. Names move
//! and go by directory and name only (no `Tremove`, no `Trename`, for which Linux has others), and nobody has to prove who he is
//! (no `Tauth`): users are who the guest says they are.
//!
//! Sources: intro(5) of Plan 9 from User Space (9P2000); `protocol.md` of diod (9P2000.L); Linux `include/net/9p/9p.h` of 6.1.

mod fids;
mod fields;
mod server;
mod session;

pub use fields::Fields;
pub use server::NinePServer;
pub use server::NinePState;
