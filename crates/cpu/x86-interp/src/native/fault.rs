//! SIGFPE: a stub's instruction raised an unmasked floating-point exception. The handler makes the stub return that as
//! its result; any other SIGFPE goes to the handler that was there before.

use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::OnceLock;

use crate::native::arena::Arena;

/// Vector number of #MF in the signal's context.
const TRAP_MF: i64 = 16;

struct Exits {
    arena: std::ops::Range<u64>,
    xm: u64,
    mf: u64,
    previous: libc::sigaction,
}

/// Set before the handler is installed.
static EXITS: OnceLock<Exits> = OnceLock::new();

pub(super) fn install(arena: &Arena) -> std::io::Result<()> {
    let mut previous = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: only asks for the present action.
    if unsafe { libc::sigaction(libc::SIGFPE, null_mut(), previous.as_mut_ptr()) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the call has filled it in.
    let previous = unsafe { previous.assume_init() };
    EXITS.get_or_init(|| Exits {
        arena: arena.range(),
        xm: arena.xm_exit,
        mf: arena.mf_exit,
        previous,
    });
    // SAFETY: an all-zero action is valid: no flags, empty mask, default handler.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_sigfpe;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler only touches its arguments and a static that is set already.
    match unsafe { libc::sigaction(libc::SIGFPE, &raw const action, null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

extern "C" fn on_sigfpe(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let Some(exits) = EXITS.get() else { return };
    // SAFETY: the kernel passes the interrupted context to SA_SIGINFO handlers.
    let gregs = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = &mut gregs[libc::REG_RIP as usize];
    if exits.arena.contains(&(*rip as u64)) {
        let trap = gregs[libc::REG_TRAPNO as usize];
        gregs[libc::REG_RIP as usize] = if trap == TRAP_MF { exits.mf } else { exits.xm } as i64;
        return;
    }
    chain(&exits.previous, signal, info, context);
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
