//! How signals reach a vCPU that executes guest code.
//!
//! Two things together leave no gap: a byte that the kernel looks at before it enters the guest, and a Unix signal that
//! gets the thread out of it. The thread says when it is on its way in; before that nobody need be told, since it looks at
//! its signals afterwards.

use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

use cpu_model::Waker;
use kvm_ioctls::VcpuFd;

/// The Unix signal: its handler does nothing, its arrival is what counts.
fn number() -> i32 {
    libc::SIGRTMIN() + 1
}

extern "C" fn nothing(_signal: i32) {}

/// Installs the handler, once for the process.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero action is valid; the handler does nothing. Without SA_RESTART system calls return.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32) = nothing;
            action.sa_sigaction = handler as usize;
            libc::sigaction(number(), &raw const action, std::ptr::null_mut());
        }
    });
}

/// Lets the signal through on this thread.
fn unblock() {
    thread_local! {
        static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    }
    if DONE.replace(true) {
        return;
    }
    // SAFETY: the set is initialised by sigemptyset before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, number());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Gets one vCPU out of guest code.
pub(crate) struct Kicker {
    /// The thread that is on its way into the guest or in it; 0 is nobody.
    thread: AtomicI32,
    /// `kvm_run.immediate_exit`.
    immediate: *mut u8,
}

// SAFETY: the byte is only reached by atomic operations, and stays mapped for as long as the kicker is known to anybody:
// see `Kicker::new`.
unsafe impl Send for Kicker {}
// SAFETY: as above.
unsafe impl Sync for Kicker {}

impl Kicker {
    /// For `vcpu`, which must not be dropped before everybody but its owner has let the kicker go.
    pub(crate) fn new(vcpu: &mut VcpuFd) -> Arc<Self> {
        install();
        Arc::new(Self {
            thread: AtomicI32::new(0),
            immediate: &raw mut vcpu.get_kvm_run().immediate_exit,
        })
    }

    fn immediate(&self) -> &AtomicU8 {
        // SAFETY: the byte is mapped, and the kernel reads it at any time by itself.
        unsafe { AtomicU8::from_ptr(self.immediate) }
    }

    /// Lets the next entry come back at once, after it has completed what the last exit asked for; or not.
    pub(crate) fn set_immediate(&self, on: bool) {
        self.immediate().store(on.into(), Ordering::SeqCst);
    }

    /// Says that this thread is about to enter the guest. The caller looks at its signals after this and before it enters.
    pub(crate) fn arm(&self) {
        unblock();
        self.set_immediate(false);
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        self.thread.store(thread, Ordering::SeqCst);
    }

    /// Says that this thread is out of the guest.
    pub(crate) fn disarm(&self) {
        self.thread.store(0, Ordering::SeqCst);
    }

    /// Calls `f`, which enters the guest.
    pub(crate) fn during<R>(&self, f: impl FnOnce() -> R) -> R {
        self.arm();
        let result = f();
        self.disarm();
        result
    }

    /// Gets the thread out, if it is in.
    pub(crate) fn interrupt(&self) {
        let thread = self.thread.load(Ordering::SeqCst);
        if thread == 0 {
            return;
        }
        self.set_immediate(true);
        // SAFETY: sends a signal whose handler does nothing, to a thread of this process. One that has ended meanwhile
        // does not get it.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, number()) };
    }
}

impl Waker for Kicker {
    fn wake(&self) {
        self.interrupt();
    }
}
