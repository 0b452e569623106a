//! Between the interpreter's own state and the engine-neutral [`CpuState`].

use cpu_model::CpuState;
use cpu_model::EngineError;
use cpu_model::PendingEvent;
use x86_isa::cr0;
use x86_isa::cr4;
use x86_isa::efer;
use x86_isa::flags;

use crate::cpu::Boundary;
use crate::cpu::Cpu;

/// DR6 bits of traps: data and I/O breakpoints, single step, task switch.
const DR6_TRAPS: u64 = 0xc00f;

impl Cpu {
    pub(crate) fn save_state(&mut self) -> CpuState {
        self.sync_x87();
        let mut gpr = [0; 16];
        gpr.copy_from_slice(&self.regs[..16]);
        CpuState {
            gpr,
            rip: self.rip(),
            rflags: self.rflags(),
            segments: self.segs,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            xcr0: self.xcr0,
            pdptr: self.pdptr,
            dr: self.dr,
            pkru: self.pkru,
            fpu: (*self.fpu).clone(),
            msrs: (*self.msrs).clone(),
            activity: self.activity,
            pending: self.boundary.event,
        }
    }

    pub(crate) fn load_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        check(state)?;
        self.sync_x87();
        self.regs[..16].copy_from_slice(&state.gpr);
        self.set_rip(state.rip);
        self.segs = state.segments;
        self.ldtr = state.ldtr;
        self.tr = state.tr;
        self.gdtr = state.gdtr;
        self.idtr = state.idtr;
        self.cr0 = state.cr0;
        self.cr2 = state.cr2;
        self.cr3 = state.cr3;
        self.cr4 = state.cr4;
        self.xcr0 = state.xcr0;
        self.pdptr = state.pdptr;
        self.dr = state.dr;
        self.pkru = state.pkru;
        *self.fpu = state.fpu.clone();
        if self.msrs.tsc_offset != state.msrs.tsc_offset {
            self.shared.set_tsc_offset(&self.peer, state.msrs.tsc_offset);
        }
        *self.msrs = state.msrs.clone();
        self.peer.doubt_clock();
        self.activity = state.activity;
        self.boundary = Boundary {
            event: state.pending,
            no_step: false,
        };
        self.delivering = None;
        self.set_rflags(state.rflags);
        self.configured();
        self.tlb.flush_all();
        self.update_mode();
        Ok(())
    }

    /// INIT: as after reset, but for the state that survives (SDM vol. 3 table 9-1).
    pub(crate) fn init(&mut self, bsp: bool) {
        let old = self.save_state();
        let mut state = CpuState::after_reset(bsp, self.policy.signature());
        state.cr0 |= old.cr0 & (cr0::CD | cr0::NW);
        state.fpu = old.fpu;
        state.xcr0 = old.xcr0;
        state.msrs = old.msrs;
        state.msrs.efer = 0;
        // What the guest booted before may use the page for something else now (KVM does so too).
        state.msrs.kvm_system_time = 0;
        state.msrs.kvm_steal_time = 0;
        state.pending = PendingEvent::default();
        self.load_state(&state).expect("the reset state is consistent");
    }
}

/// Refuses states that no processor can be in: they would break what the engine relies on.
fn check(state: &CpuState) -> Result<(), EngineError> {
    let refuse = |what: &str| Err(EngineError::State(what.to_owned()));
    let on = |value: u64, bit: u64| value & bit != 0;
    if on(state.cr0, cr0::PG) && !on(state.cr0, cr0::PE) {
        return refuse("paging without protected mode");
    }
    if on(state.msrs.efer, efer::LMA) != (on(state.msrs.efer, efer::LME) && on(state.cr0, cr0::PG)) {
        return refuse("EFER.LMA does not follow from LME and PG");
    }
    if on(state.msrs.efer, efer::LMA) && !on(state.cr4, cr4::PAE) {
        return refuse("long mode without PAE");
    }
    if state.fpu.mxcsr & !0xffff != 0 {
        return refuse("reserved bits in MXCSR");
    }
    if state.pending.debug_trap & !DR6_TRAPS != 0 {
        return refuse("a pending debug trap that is none");
    }
    if state.rflags & flags::FIXED == 0 || state.rflags & !flags::ALL != 0 {
        return refuse("reserved bits in RFLAGS");
    }
    Ok(())
}
