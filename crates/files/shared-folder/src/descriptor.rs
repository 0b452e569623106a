//! Descriptors that a guest keeps open, which are counted: the rest of the program needs some too.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::process::Resource;
use rustix::process::Rlimit;

/// Descriptors that are left to the rest of the program, if there are as many as twice that.
const RESERVED: u64 = 512;

/// Descriptors that guests have, of all folders.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// How many guests may have. Asked for the first time, raises what this process may have to what it can have.
fn most() -> u64 {
    static MOST: OnceLock<u64> = OnceLock::new();
    *MOST.get_or_init(|| {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let raised = Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        let current = match rustix::process::setrlimit(Resource::Nofile, raised) {
            Ok(()) => limit.maximum,
            Err(_) => limit.current,
        };
        let current = current.unwrap_or(u64::MAX);
        current.saturating_sub(RESERVED).max(current / 2)
    })
}

/// A descriptor that a guest keeps open.
#[derive(Debug)]
pub(crate) struct Descriptor(OwnedFd);

impl Descriptor {
    /// Counts a descriptor.
    ///
    /// # Errors
    /// ENFILE: guests have too many already.
    pub(crate) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let before = OPEN.fetch_add(1, Ordering::Relaxed);
        // Counted down again when it is dropped.
        let descriptor = Self(fd);
        if before >= most() {
            return Err(Errno::NFILE);
        }
        Ok(descriptor)
    }

    /// The file that is in the kernel's list of this process's descriptors, by which it can be opened in another way.
    pub(crate) fn path(&self) -> String {
        use std::os::fd::AsRawFd;
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
