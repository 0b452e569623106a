//! Whom a thread acts for.
//!
//! Where Oxbow runs as root, what a guest's user makes belongs to that user, and a write that is to take set-user-ID bits away does
//! so. Threads of Linux have credentials of their own; those of workers are changed for one system call and changed back.
//! Without root, all files belong to the user who runs Oxbow, and these are no-ops.
//!
//! The guest's kernel has checked permissions before it asks, with groups that nobody tells us of; so a thread that acts for a
//! user keeps the right to pass the host's check.

use std::cell::Cell;
use std::sync::Once;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::Gid;
use rustix::process::Uid;
use rustix::thread::CapabilitySet;
use rustix::thread::CapabilitySets;
use rustix::thread::UnshareFlags;

/// Who asks: user and group in the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Identifiers that mean "do not change".
const NOBODY: u32 = u32::MAX;

thread_local! {
    static PREPARED: Cell<bool> = const { Cell::new(false) };
}

/// Whether this process may act for others.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Makes this thread one that files can be made on: with a file mode mask of its own, which hides nothing, since the guest has
/// applied its own, and without supplementary groups.
pub(crate) fn prepare_thread() {
    if PREPARED.get() {
        return;
    }
    PREPARED.set(true);
    #[expect(
        deprecated,
        reason = "what makes it unsound is a table of descriptors of one's own; this asks for a mask only"
    )]
    let apart = rustix::thread::unshare(UnshareFlags::FS);
    match apart {
        Ok(()) => {
            rustix::process::umask(Mode::empty());
        }
        Err(error) => {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                tracing::warn!(%error, "threads of shared folders have no file mode mask of their own; the process's applies");
            });
        }
    }
    if is_root() {
        // Those that may not be given up are the user's own.
        let _ = rustix::thread::set_thread_groups(&[]);
    }
}

/// Calls `f` as `caller`: what it makes belongs to that user.
pub(crate) fn acting_for<T>(caller: Caller, f: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let root = caller.uid == 0 && caller.gid == 0;
    if root || !is_root() {
        return f();
    }
    if caller.uid == NOBODY || caller.gid == NOBODY {
        return Err(Errno::OVERFLOW);
    }
    let _back = Acting::begin(caller)?;
    f()
}

/// A thread that acts for somebody, until this is dropped.
struct Acting;

impl Acting {
    fn begin(caller: Caller) -> Result<Self, Errno> {
        rustix::thread::set_thread_res_gid(None, Gid::from_raw(caller.gid), None)?;
        let acting = Self;
        rustix::thread::set_thread_res_uid(None, Uid::from_raw(caller.uid), None)?;
        if caller.uid != 0 {
            let sets = rustix::thread::capabilities(None)?;
            let effective = sets.permitted & CapabilitySet::DAC_OVERRIDE;
            rustix::thread::set_capabilities(None, CapabilitySets { effective, ..sets })?;
        }
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        // The saved identifiers are root's, so this is always allowed; all capabilities come back with them.
        let user = rustix::thread::set_thread_res_uid(None, Uid::ROOT, None);
        let group = rustix::thread::set_thread_res_gid(None, Gid::ROOT, None);
        if let Err(error) = user.and(group) {
            tracing::error!(%error, "a thread of a shared folder keeps a guest's user");
        }
    }
}

/// Calls `f` without the right to keep set-user-ID and set-group-ID bits of what it writes to.
pub(crate) fn without_set_id<T>(f: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    if !is_root() {
        return f();
    }
    let sets = rustix::thread::capabilities(None)?;
    let effective = sets.effective - CapabilitySet::FSETID;
    rustix::thread::set_capabilities(None, CapabilitySets { effective, ..sets })?;
    let result = f();
    rustix::thread::set_capabilities(None, sets)?;
    result
}
