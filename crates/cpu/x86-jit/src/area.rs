//! The vCPU as translated code sees it: `gs` points at its start, and everything has a fixed offset.

use std::mem::offset_of;
use std::sync::atomic::AtomicU32;

use cpu_model::SegmentState;
use x86_interp::InterpVcpu;
use x86_interp::seam::TlbData;
use x86_interp::seam::layout;

use crate::known::Table;
use crate::thunk::Thunks;
use crate::thunk::Why;

/// Slots of a jump cache.
pub(crate) const JUMPS: usize = 1 << 14;

/// A target of indirect jumps.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Jump {
    /// Its address negated, so that adding the address gives zero.
    pub(crate) address: u64,
    /// Where its code begins.
    pub(crate) host: u64,
}

/// Targets of indirect jumps, by a hash of their address.
#[repr(C)]
pub(crate) struct JumpCache([Jump; JUMPS]);

/// Pages of code that direct jumps from other pages are linked to.
pub(crate) const PAGES: usize = 4096;

/// By the number of a page of code: the virtual address at which it is known to be, negated. Behind them a place for all
/// pages that have none, which are not known to be anywhere.
#[repr(C)]
pub(crate) struct PageMap([u64; PAGES + 1]);

/// An address that no jump goes to: not canonical.
pub(crate) const NOWHERE: u64 = 1 << 62;

/// What SYSCALL or SYSRET leads to.
#[repr(C)]
pub(crate) struct Call {
    /// It holds as long as this is what the word at [`CONFIG`] says, which is never zero, and as long as the jump cache of
    /// that privilege level is of the mode behind it.
    pub(crate) config: u64,
    pub(crate) cs: SegmentState,
    pub(crate) ss: SegmentState,
}

/// What the code and the thunks keep beside the processor's state.
#[repr(C)]
pub(crate) struct Area {
    pub(crate) host_rsp: u64,
    /// Where to go on.
    pub(crate) resume: u64,
    /// Arithmetic flags as LAHF and SETO leave them in AX.
    pub(crate) flags: u64,
    pub(crate) scratch: [u64; 4],
    /// What was looked up for a hot loop, by group; the iterations for which it holds.
    pub(crate) loop_groups: [u64; crate::translate::HOT_GROUPS],
    pub(crate) loop_count: u64,
    /// What was looked up for the groups of the running block, as far as it was stored.
    pub(crate) groups: [u64; crate::block::GROUPS],
    /// Iterations since a hot loop was entered, up to those that its ordinary body does.
    pub(crate) loop_tries: u32,
    /// By a hash of a hot loop's address: iterations that its body without checks could have done the last time, and how
    /// many of them it did not do.
    pub(crate) loop_runs: [[u64; 2]; RUNS],
    /// Guest registers that a hot loop does not use, while it uses their host registers.
    pub(crate) borrowed: [u64; 16],
    /// Virtual address of the page that the running block is on.
    pub(crate) page: u64,
    /// The vCPU's pending signals.
    pub(crate) pending: *const AtomicU32,
    /// The host's R8 to R11: as translated code was left, and as it will be entered.
    pub(crate) low: [u64; 4],
    /// Why translated code was left, and the record or the address that goes with it.
    pub(crate) why: u64,
    pub(crate) what: u64,
    /// `JUMPS - 1`.
    pub(crate) jump_mask: u64,
    /// MXCSR as Rust code expects it.
    pub(crate) host_mxcsr: u32,
    /// The host's vector registers and MXCSR hold the guest's. Else they are in memory, and whoever needs them asks.
    pub(crate) vectors: u32,
    /// The vCPU's own address.
    pub(crate) this: *mut Frame,
    /// Likewise: what SYSRET and SYSCALL lead to.
    pub(crate) calls: [Call; 2],
    /// By privilege: level 3, others.
    pub(crate) jumps: [JumpCache; 2],
    /// Likewise.
    pub(crate) pages: [PageMap; 2],
    pub(crate) translations: TlbData,
}

/// What `gs` points at.
#[repr(C)]
pub(crate) struct Frame {
    pub(crate) interp: InterpVcpu,
    pub(crate) area: Area,
    pub(crate) rest: crate::vcpu::Rest,
}

const INTERP: usize = offset_of!(Frame, interp);

macro_rules! area {
    ($($name:ident = $field:ident),* $(,)?) => {
        $(pub(crate) const $name: u32 = offset_of!(Frame, area.$field) as u32;)*
    };
}

area! {
    HOST_RSP = host_rsp,
    RESUME = resume,
    FLAGS = flags,
    SCRATCH = scratch,
    PAGE = page,
    PENDING = pending,
    LOW = low,
    LOOP = loop_groups,
    LOOP_COUNT = loop_count,
    GROUPS = groups,
    LOOP_TRIES = loop_tries,
    BORROWED = borrowed,
    WHY = why,
    WHAT = what,
    JUMP_MASK = jump_mask,
    HOST_MXCSR = host_mxcsr,
    VECTORS = vectors,
    THIS = this,
    CALLS = calls,
    JUMP_CACHES = jumps,
    PAGE_MAPS = pages,
    TRANSLATIONS = translations,
}

pub(crate) const FPU: u32 = (INTERP + layout::FPU) as u32;
pub(crate) const SYSFLAGS: u32 = (INTERP + layout::SYSFLAGS) as u32;
pub(crate) const STACK: u32 = (INTERP + layout::STACK) as u32;

/// The board has signalled an interrupt that was not taken: a byte.
pub(crate) const INTERRUPT: u32 = (INTERP + layout::INTERRUPT) as u32;
pub(crate) const PKRU: u32 = (INTERP + layout::PKRU) as u32;
/// Pointer to the MSRs.
pub(crate) const MSRS: u32 = (INTERP + layout::MSRS) as u32;
/// IA32_KERNEL_GS_BASE among them.
pub(crate) const KERNEL_GS_BASE: i32 = offset_of!(cpu_model::Msrs, kernel_gs_base) as i32;
/// IA32_LSTAR among them.
pub(crate) const LSTAR: i32 = offset_of!(cpu_model::Msrs, lstar) as i32;
/// IA32_FMASK among them.
pub(crate) const FMASK: i32 = offset_of!(cpu_model::Msrs, fmask) as i32;
/// IA32_TSC_AUX among them.
pub(crate) const TSC_AUX: i32 = offset_of!(cpu_model::Msrs, tsc_aux) as i32;
/// See [`Call::config`].
pub(crate) const CONFIG: u32 = (INTERP + layout::CONFIG) as u32;
pub(crate) const CPL: u32 = (INTERP + layout::CPL) as u32;
pub(crate) const BANK: u32 = (INTERP + layout::BANK) as u32;

/// The call to a privilege level, and its parts.
pub(crate) const fn call(cpl: u8) -> u32 {
    CALLS + cache_of(cpl) * size_of::<Call>() as u32 + offset_of!(Call, config) as u32
}

pub(crate) const fn call_cs(cpl: u8) -> u32 {
    call(cpl) + offset_of!(Call, cs) as u32
}

pub(crate) const fn call_ss(cpl: u8) -> u32 {
    call(cpl) + offset_of!(Call, ss) as u32
}

/// Segment register `n` with its hidden part.
pub(crate) const fn segment(n: u8) -> u32 {
    (INTERP + layout::segment(n as usize)) as u32
}

/// The base in segment register `n` itself, beside the one that addresses use.
pub(crate) const fn own_base(n: u8) -> u32 {
    (INTERP + layout::segment_base(n as usize)) as u32
}

/// The limit in segment register `n`: four bytes.
pub(crate) const fn segment_limit(n: u8) -> u32 {
    (INTERP + layout::segment_limit(n as usize)) as u32
}

/// The selector in segment register `n`.
pub(crate) const fn selector(n: u8) -> u32 {
    (INTERP + layout::selector(n as usize)) as u32
}

/// Hot loops that are told apart by how long they ran.
const RUNS: usize = 256;

/// How long the loop at `address` ran the last time.
pub(crate) fn loop_run(address: u64) -> u32 {
    let slot = (address ^ address >> 8) as u32 & (RUNS as u32 - 1);
    offset_of!(Frame, area.loop_runs) as u32 + 16 * slot
}

/// GPR number `n`.
pub(crate) const fn gpr(n: u8) -> u32 {
    (INTERP + layout::REGS) as u32 + n as u32 * 8
}

/// Base of segment `n`.
pub(crate) const fn segment_base(n: u8) -> u32 {
    (INTERP + layout::EA_BASE) as u32 + n as u32 * 8
}

/// Data translations of `bank`.
pub(crate) const fn tlb(bank: u8) -> u32 {
    TRANSLATIONS + (layout::TLB_BANK * bank as usize) as u32
}

/// The bank of a privilege level, where SMAP makes no difference.
pub(crate) const fn bank(cpl: u8) -> u8 {
    if cpl == 3 {
        layout::BANK_USER
    } else {
        layout::BANK_SUPERVISOR
    }
}

/// Stack page of `bank`; its addend is 8 bytes further.
pub(crate) const fn stack(bank: u8) -> u32 {
    STACK + 16 * bank as u32
}

/// Addresses of the jump cache of a privilege level.
pub(crate) const fn jump_address(cpl: u8) -> u32 {
    JUMP_CACHES + cache_of(cpl) * size_of::<JumpCache>() as u32 + offset_of!(Jump, address) as u32
}

/// Code of the jump cache of a privilege level.
pub(crate) const fn jump_host(cpl: u8) -> u32 {
    JUMP_CACHES + cache_of(cpl) * size_of::<JumpCache>() as u32 + offset_of!(Jump, host) as u32
}

/// Where page number `page` is, for code of a privilege level.
pub(crate) const fn page_map(cpl: u8, page: u32) -> u32 {
    PAGE_MAPS + cache_of(cpl) * size_of::<PageMap>() as u32 + page * 8
}

pub(crate) const fn cache_of(cpl: u8) -> u32 {
    if cpl == 3 { 0 } else { 1 }
}

/// First slot of an address, as the code computes it.
pub(crate) fn jump_slot(address: u64) -> usize {
    address.wrapping_add(address.rotate_right(FIRST_ROTATE)) as u32 as usize & (JUMPS - 1)
}

/// By how much an address is rotated for its first slot.
pub(crate) const FIRST_ROTATE: u32 = 10;

/// By how much an address is rotated for its second slot.
pub(crate) const SECOND_ROTATE: u32 = 13;

/// Second slot of an address, as the thunks compute it: for one whose first slot another address has.
fn second_slot(address: u64) -> usize {
    let rotated = address.rotate_right(SECOND_ROTATE);
    rotated.wrapping_add(address.wrapping_mul(4)) as u32 as usize & (JUMPS - 1)
}

impl Jump {
    /// The entry for jumps to `address`, and its slot.
    pub(crate) fn new(address: u64, host: u64) -> (usize, Self) {
        let jump = Self {
            address: address.wrapping_neg(),
            host,
        };
        (jump_slot(address), jump)
    }

    /// The other slot that it may be in, if it is a target of jumps.
    pub(crate) fn second_slot(&self) -> Option<usize> {
        (self.address != NOWHERE).then(|| second_slot(self.address.wrapping_neg()))
    }
}

impl Table for JumpCache {
    type Entry = Jump;
    const SLOTS: usize = JUMPS;

    fn slot(&mut self, slot: usize) -> &mut Jump {
        &mut self.0[slot]
    }

    /// It still leads to code, which will not find the address that it is for.
    fn clear(&mut self, slot: usize) {
        self.0[slot].address = NOWHERE;
    }
}

impl Area {
    /// No jump cache knows anything. Every slot has code to go to.
    pub(crate) fn empty_jumps(&mut self, thunks: &Thunks) {
        for cpl in [0, 3] {
            let second = thunks.leave[Why::second(cpl) as usize];
            self.jumps[cache_of(cpl) as usize].init(second);
        }
    }
}

impl JumpCache {
    /// The first state: every slot has code to go to.
    pub(crate) fn init(&mut self, miss: u64) {
        self.0.fill(Jump {
            address: NOWHERE,
            host: miss,
        });
    }
}

impl Table for PageMap {
    type Entry = u64;
    const SLOTS: usize = PAGES;

    fn slot(&mut self, slot: usize) -> &mut u64 {
        &mut self.0[slot]
    }

    fn clear(&mut self, slot: usize) {
        self.0[slot] = NOWHERE;
    }
}

impl PageMap {
    /// The first state.
    pub(crate) fn init(&mut self) {
        self.0.fill(NOWHERE);
    }
}
