//! Faults of the host's processor in translated code: a division error, an unmasked floating-point exception, an
//! unaligned vector operand. The handler leaves the code through a thunk, and the interpreter finds out what the guest
//! gets. Any other signal goes to the handler that was there before.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::ptr::null_mut;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::area;

/// Code memories of a process at most.
const RANGES: usize = 64;
const SIGNALS: [i32; 4] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL];
/// Bytes of a thread's signal stack.
const STACK: usize = 128 << 10;
/// Linux: the signal stack is disarmed while a handler runs, and the interrupted RSP is not compared with it. A guest's
/// stack pointer may have any value.
const SS_AUTODISARM: i32 = 1 << 31;

struct Code {
    start: AtomicU64,
    end: AtomicU64,
    thunk: AtomicU64,
}

static CODE: [Code; RANGES] = [const {
    Code {
        start: AtomicU64::new(0),
        end: AtomicU64::new(0),
        thunk: AtomicU64::new(0),
    }
}; RANGES];
static LOCK: Mutex<()> = Mutex::new(());
static PREVIOUS: OnceLock<[libc::sigaction; 4]> = OnceLock::new();

/// Watches over a code memory.
pub(crate) fn install(range: Range<u64>, thunk: u64) -> std::io::Result<()> {
    let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    if PREVIOUS.get().is_none() {
        set_handlers()?;
    }
    let free = CODE.iter().find(|c| c.start.load(Ordering::SeqCst) == 0);
    let code = free.ok_or_else(|| std::io::Error::other("too many machines in one process"))?;
    code.end.store(range.end, Ordering::SeqCst);
    code.thunk.store(thunk, Ordering::SeqCst);
    code.start.store(range.start, Ordering::SeqCst);
    Ok(())
}

/// The code memory that holds `address` is going away.
pub(crate) fn remove(address: u64) {
    let _guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(code) = find(address) {
        code.start.store(0, Ordering::SeqCst);
    }
}

fn find(address: u64) -> Option<&'static Code> {
    CODE.iter().find(|c| {
        let start = c.start.load(Ordering::Relaxed);
        start != 0 && (start..c.end.load(Ordering::Relaxed)).contains(&address)
    })
}

fn set_handlers() -> std::io::Result<()> {
    let mut previous = [const { MaybeUninit::<libc::sigaction>::uninit() }; 4];
    for (signal, slot) in SIGNALS.iter().zip(&mut previous) {
        // SAFETY: only asks for the present action.
        if unsafe { libc::sigaction(*signal, null_mut(), slot.as_mut_ptr()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    // SAFETY: the calls have filled them in.
    PREVIOUS.get_or_init(|| previous.map(|p| unsafe { p.assume_init() }));
    for signal in SIGNALS {
        // SAFETY: an all-zero action is valid: no flags, empty mask, default handler.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_signal;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        // SAFETY: the handler only touches its arguments, statics that are set already, and the vCPU of the thread.
        if unsafe { libc::sigaction(signal, &raw const action, null_mut()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_signal(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the interrupted context to SA_SIGINFO handlers.
    let gregs = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = gregs[libc::REG_RIP as usize] as u64;
    if let Some(code) = find(rip) {
        // SAFETY: translated code runs with GS at the vCPU's frame.
        unsafe { std::arch::asm!("mov gs:[{}], {}", in(reg) u64::from(area::WHAT), in(reg) rip, options(nostack)) };
        gregs[libc::REG_RIP as usize] = code.thunk.load(Ordering::Relaxed) as i64;
        return;
    }
    let index = SIGNALS.iter().position(|s| *s == signal);
    if let (Some(index), Some(previous)) = (index, PREVIOUS.get()) {
        chain(&previous[index], signal, info, context);
    }
}

fn chain(previous: &libc::sigaction, signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    match previous.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the action comes from the kernel. With the default action back in place, the instruction that
            // faulted is executed again and ends the process as it would have without us.
            unsafe { libc::sigaction(signal, &raw const *previous, null_mut()) };
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever installed it with SA_SIGINFO vouches for this type.
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever installed it without SA_SIGINFO vouches for this type.
            let handler: extern "C" fn(i32) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// A thread's own stack for signal handlers.
struct SignalStack(Box<[u8]>);

impl SignalStack {
    fn new() -> Self {
        let mut memory = vec![0u8; STACK].into_boxed_slice();
        let stack = libc::stack_t {
            ss_sp: memory.as_mut_ptr().cast(),
            ss_flags: SS_AUTODISARM,
            ss_size: STACK,
        };
        // SAFETY: the memory lives until the thread ends, when `drop` takes the stack out of use.
        unsafe { libc::sigaltstack(&raw const stack, null_mut()) };
        Self(memory)
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        let stack = libc::stack_t {
            ss_sp: null_mut(),
            ss_flags: libc::SS_DISABLE,
            ss_size: self.0.len(),
        };
        // SAFETY: takes the stack out of use before its memory goes.
        unsafe { libc::sigaltstack(&raw const stack, null_mut()) };
    }
}

thread_local! {
    static SIGNAL_STACK: SignalStack = SignalStack::new();
}

/// While it lives, this thread takes no asynchronous signal: none could be delivered on a guest's stack.
pub(crate) struct Quiet {
    before: libc::sigset_t,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        SIGNAL_STACK.with(|_| ());
        let mut before = MaybeUninit::uninit();
        let mut all = MaybeUninit::uninit();
        // SAFETY: the sets are initialised by the calls before they are used.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            for signal in SIGNALS.into_iter().chain([libc::SIGTRAP, libc::SIGABRT]) {
                libc::sigdelset(all.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            Self {
                before: before.assume_init(),
            }
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: the set comes from the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, null_mut()) };
    }
}
