//! The host's side: a child process loads the whole user-visible state, executes the instruction, and saves the state.
//! Faults reach it as signals, whose handler continues at the code that saves.

use std::ptr::null_mut;

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use crate::case::CODE;
use crate::case::Case;
use crate::case::DATA;
use crate::case::DATA_LEN;
use crate::case::NO_FAULT;
use crate::case::Outcome;
use crate::case::WINDOWS;
use crate::case::checksum;

/// The page of the trampoline and the instruction.
const CODE_PAGE: u64 = CODE & !4095;
/// The page that the trampoline keeps its state in.
const CONTEXT: u64 = 0x3579_b000;
/// Cases that one child process runs.
pub(crate) const BATCH: usize = 1024;

#[repr(C, align(64))]
struct Context {
    fx: [u8; 512],
    ymm: [[u64; 4]; 16],
    gpr: [u64; 16],
    flags: u64,
    host_rsp: u64,
    host_mxcsr: u32,
    vector: u32,
    error: u32,
    cr2: u64,
}

/// A batch in memory that parent and child share.
struct Batch {
    count: usize,
    done: usize,
    cases: [Case; BATCH],
    outcomes: [Outcome; BATCH],
}

pub(crate) struct Host {
    batch: *mut Batch,
    enter: extern "sysv64" fn(),
    tail: u64,
}

/// Where the code that saves begins, for the signal handler.
static TAIL: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

fn map(at: u64, len: usize, prot: i32, flags: i32) -> *mut u8 {
    let fixed = if at != 0 { libc::MAP_FIXED_NOREPLACE } else { 0 };
    let flags = flags | fixed | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping; MAP_FIXED_NOREPLACE never replaces one.
    let mapped = unsafe { libc::mmap(at as *mut libc::c_void, len, prot, flags, -1, 0) };
    assert!(
        mapped != libc::MAP_FAILED && (at == 0 || mapped as u64 == at),
        "no memory at {at:#x}"
    );
    mapped.cast()
}

impl Host {
    pub(crate) fn new() -> Self {
        let rw = libc::PROT_READ | libc::PROT_WRITE;
        map(CODE_PAGE, 4096, rw | libc::PROT_EXEC, libc::MAP_PRIVATE);
        map(DATA, DATA_LEN, rw, libc::MAP_PRIVATE);
        map(CONTEXT, 4096, rw, libc::MAP_PRIVATE);
        let batch = map(0, size_of::<Batch>(), rw, libc::MAP_SHARED).cast();
        let (enter, tail) = trampoline().expect("the trampoline is plain code");
        assert!(
            enter.len() < 0x400 && tail.len() < 0x400,
            "the trampoline overlaps the instruction"
        );
        let tail_at = CODE_PAGE + 0x400;
        // SAFETY: the page was mapped above, writable and executable.
        let enter = unsafe {
            std::ptr::copy_nonoverlapping(enter.as_ptr(), CODE_PAGE as *mut u8, enter.len());
            std::ptr::copy_nonoverlapping(tail.as_ptr(), tail_at as *mut u8, tail.len());
            std::mem::transmute::<*const u8, extern "sysv64" fn()>(CODE_PAGE as *const u8)
        };
        Self {
            batch,
            enter,
            tail: tail_at,
        }
    }

    /// Executes cases on the host.
    pub(crate) fn run(&mut self, cases: &[Case]) -> Vec<Outcome> {
        assert!(cases.len() <= BATCH);
        // SAFETY: the mapping is large enough and ours; no child is alive.
        let batch = unsafe { &mut *self.batch };
        (batch.count, batch.done) = (cases.len(), 0);
        batch.cases[..cases.len()].copy_from_slice(cases);
        // SAFETY: the child only touches memory that was mapped before, and calls nothing that allocates or locks.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork failed");
        if pid == 0 {
            // SAFETY: this is the child.
            unsafe { self.child() }
        }
        let mut status = 0;
        // SAFETY: waits for our own child.
        unsafe { libc::waitpid(pid, &raw mut status, 0) };
        let done = batch.done;
        assert!(
            status == 0,
            "the child died (status {status:#x}) in: {}",
            cases[done.min(cases.len() - 1)].text()
        );
        batch.outcomes[..cases.len()].to_vec()
    }

    /// Runs the batch in the child process.
    ///
    /// # Safety
    /// Only in a child that fork has just made.
    unsafe fn child(&self) -> ! {
        TAIL.store(self.tail, std::sync::atomic::Ordering::Relaxed);
        // SAFETY: all pointers lead to mappings of `new`, which the child has inherited.
        unsafe {
            install_handlers();
            let batch = &mut *self.batch;
            for i in 0..batch.count {
                batch.done = i;
                self.one(&batch.cases[i], &mut batch.outcomes[i]);
            }
            libc::_exit(0)
        }
    }

    /// # Safety
    /// As for `child`.
    unsafe fn one(&self, case: &Case, out: &mut Outcome) {
        // SAFETY: the caller vouches for the mappings.
        unsafe {
            let data = std::slice::from_raw_parts_mut(DATA as *mut u8, DATA_LEN);
            data.fill(0);
            let mut at = 0;
            for (start, len) in WINDOWS {
                data[start..start + len].copy_from_slice(&case.before.window[at..at + len]);
                at += len;
            }
            let code = CODE as *mut u8;
            let len = case.len as usize;
            std::ptr::copy_nonoverlapping(case.bytes.as_ptr(), code, len);
            let distance = (self.tail as i64 - (CODE as i64 + len as i64 + 5)) as i32;
            code.add(len).write(0xe9);
            code.add(len + 1).cast::<i32>().write_unaligned(distance);
            let c = &mut *(CONTEXT as *mut Context);
            let r = &case.before;
            c.fx = [0; 512];
            c.fx[0..2].copy_from_slice(&r.fcw.to_le_bytes());
            c.fx[2..4].copy_from_slice(&r.fsw.to_le_bytes());
            c.fx[4] = r.ftw;
            c.fx[24..28].copy_from_slice(&r.mxcsr.to_le_bytes());
            for i in 0..8 {
                c.fx[32 + i * 16..42 + i * 16].copy_from_slice(&r.st[i]);
            }
            (c.ymm, c.gpr, c.flags) = (r.ymm, r.gpr, r.flags);
            (c.host_mxcsr, c.vector, c.error, c.cr2) = (0x1f80, NO_FAULT, 0, 0);
            (self.enter)();
            let r = &mut out.regs;
            (r.ymm, r.gpr, r.flags) = (c.ymm, c.gpr, c.flags);
            r.fcw = u16::from_le_bytes([c.fx[0], c.fx[1]]);
            r.fsw = u16::from_le_bytes([c.fx[2], c.fx[3]]);
            r.ftw = c.fx[4];
            r.mxcsr = u32::from_le_bytes([c.fx[24], c.fx[25], c.fx[26], c.fx[27]]);
            for i in 0..8 {
                r.st[i].copy_from_slice(&c.fx[32 + i * 16..42 + i * 16]);
            }
            let mut at = 0;
            for (start, len) in WINDOWS {
                r.window[at..at + len].copy_from_slice(&data[start..start + len]);
                at += len;
            }
            out.data = checksum(data);
            (out.vector, out.error, out.cr2) = (c.vector, c.error, c.cr2);
        }
    }
}

const REGISTERS: [AsmRegister64; 16] = [
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
];
const VECTORS: [AsmRegisterYmm; 16] = [
    ymm0, ymm1, ymm2, ymm3, ymm4, ymm5, ymm6, ymm7, ymm8, ymm9, ymm10, ymm11, ymm12, ymm13, ymm14, ymm15,
];
const SAVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

/// The code that loads the state and goes to the instruction, and the code that saves it and comes back.
fn trampoline() -> Result<(Vec<u8>, Vec<u8>), IcedError> {
    let context = |offset: usize| ptr(CONTEXT + offset as u64);
    let gpr = |i: usize| qword_ptr(CONTEXT + (std::mem::offset_of!(Context, gpr) + i * 8) as u64);
    let ymm = |i: usize| context(std::mem::offset_of!(Context, ymm) + i * 32);
    let flags = qword_ptr(CONTEXT + std::mem::offset_of!(Context, flags) as u64);
    let host_rsp = qword_ptr(CONTEXT + std::mem::offset_of!(Context, host_rsp) as u64);
    let mut a = CodeAssembler::new(64)?;
    for r in SAVED {
        a.push(r)?;
    }
    a.mov(host_rsp, rsp)?;
    a.fxrstor64(context(0))?;
    for (i, v) in VECTORS.into_iter().enumerate() {
        a.vmovups(v, ymm(i))?;
    }
    a.push(flags)?;
    a.popfq()?;
    for (i, r) in REGISTERS.into_iter().enumerate() {
        a.mov(r, gpr(i))?;
    }
    a.jmp(CODE)?;
    let enter = a.assemble(CODE_PAGE)?;
    let mut a = CodeAssembler::new(64)?;
    for (i, r) in REGISTERS.into_iter().enumerate() {
        a.mov(gpr(i), r)?;
    }
    a.mov(rsp, host_rsp)?;
    a.pushfq()?;
    a.pop(flags)?;
    a.cld()?;
    a.fxsave64(context(0))?;
    for (i, v) in VECTORS.into_iter().enumerate() {
        a.vmovups(ymm(i), v)?;
    }
    a.fninit()?;
    a.ldmxcsr(dword_ptr(CONTEXT + std::mem::offset_of!(Context, host_mxcsr) as u64))?;
    a.vzeroupper()?;
    for r in SAVED.into_iter().rev() {
        a.pop(r)?;
    }
    a.ret()?;
    Ok((enter, a.assemble(CODE_PAGE + 0x400)?))
}

/// # Safety
/// Only in the child.
unsafe fn install_handlers() {
    static mut STACK: [u8; 65536] = [0; 65536];
    // SAFETY: the stack is used by nothing else; the handler only touches the context page.
    unsafe {
        let stack = libc::stack_t {
            ss_sp: (&raw mut STACK).cast(),
            ss_flags: 0,
            ss_size: 65536,
        };
        libc::sigaltstack(&raw const stack, null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP] {
            libc::sigaction(signal, &raw const action, null_mut());
        }
    }
}

extern "C" fn on_fault(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the interrupted context; the page is mapped.
    unsafe {
        let gregs = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let rip = gregs[libc::REG_RIP as usize] as u64;
        if !(CODE..CODE + 16).contains(&rip) {
            libc::_exit(98);
        }
        let c = &mut *(CONTEXT as *mut Context);
        c.vector = gregs[libc::REG_TRAPNO as usize] as u32;
        c.error = gregs[libc::REG_ERR as usize] as u32;
        c.cr2 = gregs[libc::REG_CR2 as usize] as u64;
        gregs[libc::REG_RIP as usize] = TAIL.load(std::sync::atomic::Ordering::Relaxed) as i64;
    }
}
