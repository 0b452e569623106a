//! Between the kernel's forms of a vCPU's state and the engine-neutral [`CpuState`].
//!
//! The kernel reads PAE's page-directory pointers again from memory when it takes CR3 over. Exceptions that are on their way
//! to the guest are left out: their instructions raise them again. FCS and FDS, which 64-bit forms of the state do not
//! have, are kept for as long as the pointers beside them stay the same.
//!
//! Spec: KVM api.rst §4.3 (KVM_GET_SREGS and the like); SDM vol. 1 §13.4 (XSAVE area); SDM vol. 3 §3.4.5 (attributes).

use cpu_model::Activity;
use cpu_model::CpuState;
use cpu_model::DescriptorTable;
use cpu_model::EngineError;
use cpu_model::FpuState;
use cpu_model::Msrs;
use cpu_model::PendingEvent;
use cpu_model::SegmentState;
use kvm_bindings::KVM_VCPUEVENT_VALID_NMI_PENDING;
use kvm_bindings::KVM_VCPUEVENT_VALID_SHADOW;
use kvm_bindings::kvm_debugregs;
use kvm_bindings::kvm_dtable;
use kvm_bindings::kvm_msr_entry;
use kvm_bindings::kvm_regs;
use kvm_bindings::kvm_segment;
use kvm_bindings::kvm_sregs;
use kvm_bindings::kvm_vcpu_events;
use kvm_bindings::kvm_xcrs;
use kvm_bindings::kvm_xsave;
use x86_isa::attr;
use x86_isa::cr0;
use x86_isa::cr4;
use x86_isa::efer;
use x86_isa::flags;
use x86_isa::msr as n;

use crate::engine::failed;
use crate::vcpu::KvmVcpu;
use crate::vcpu::TscState;

/// Segment numbers.
const CS: usize = 1;
const SS: usize = 2;
/// Vector of #DB.
const DB: u8 = 1;
/// `kvm_vcpu_events.interrupt.shadow`.
const SHADOW_MOV_SS: u8 = 1;
const SHADOW_STI: u8 = 2;
/// Places in an XSAVE area.
const MXCSR: usize = 24;
const ST: usize = 32;
const XMM: usize = 160;
const XSTATE_BV: usize = 512;
/// XSAVE components.
const LEGACY: u64 = 3;
const AVX: u32 = 2;
const PKRU: u32 = 9;

/// x87 pointers with their selectors.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pointers {
    fip: u64,
    fcs: u16,
    fdp: u64,
    fds: u16,
}

/// The registers that the kernel keeps by number, with their places.
#[rustfmt::skip]
fn numbered(m: &mut Msrs) -> Vec<(u32, &mut u64)> {
    let mut all: Vec<(u32, &mut u64)> = vec![
        (n::SYSENTER_CS, &mut m.sysenter_cs),
        (n::SYSENTER_ESP, &mut m.sysenter_esp),
        (n::SYSENTER_EIP, &mut m.sysenter_eip),
        (n::PAT, &mut m.pat),
        (n::STAR, &mut m.star),
        (n::LSTAR, &mut m.lstar),
        (n::CSTAR, &mut m.cstar),
        (n::FMASK, &mut m.fmask),
        (n::KERNEL_GS_BASE, &mut m.kernel_gs_base),
        (n::TSC_AUX, &mut m.tsc_aux),
        (n::SPEC_CTRL, &mut m.spec_ctrl),
        (n::DEBUGCTL, &mut m.debugctl),
        (n::MTRR_DEF_TYPE, &mut m.mtrr_def_type),
        (n::KVM_STEAL_TIME, &mut m.kvm_steal_time),
    ];
    let fixed = [n::MTRR_FIX64K].into_iter().chain(n::MTRR_FIX16K..n::MTRR_FIX16K + 2);
    let fixed = fixed.chain(n::MTRR_FIX4K..n::MTRR_FIX4K + 8);
    all.extend(fixed.zip(&mut m.mtrr_fixed));
    for (number, (base, mask)) in (n::MTRR_PHYSBASE0..).step_by(2).zip(&mut m.mtrr_var) {
        all.push((number, base));
        all.push((number + 1, mask));
    }
    all
}

fn segment_in(s: &SegmentState) -> kvm_segment {
    let bit = |at: u32| (s.attr >> at & 1) as u8;
    let unusable = u8::from(s.attr & attr::UNUSABLE != 0);
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.attr & attr::TYPE) as u8,
        s: bit(4),
        dpl: (s.attr >> 5 & 3) as u8,
        present: bit(7) & !unusable,
        avl: bit(8),
        l: bit(9),
        db: bit(10),
        g: bit(11),
        unusable,
        padding: 0,
    }
}

fn segment_out(s: &kvm_segment) -> SegmentState {
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    let unusable = if s.unusable != 0 { attr::UNUSABLE } else { 0 };
    let kind = u16::from(s.type_ & 0xf) | u16::from(s.dpl & 3) << 5;
    let bits = bit(s.s, 4) | bit(s.present, 7) | bit(s.avl, 8) | bit(s.l, 9) | bit(s.db, 10) | bit(s.g, 11);
    SegmentState {
        selector: s.selector,
        base: s.base,
        limit: s.limit,
        attr: kind | bits | unusable,
    }
}

fn table_in(t: DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: t.base,
        limit: t.limit,
        ..kvm_dtable::default()
    }
}

fn table_out(t: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: t.base,
        limit: t.limit,
    }
}

/// The privilege level, which the kernel takes from SS.
fn cpl(state: &CpuState) -> u8 {
    match () {
        () if state.cr0 & cr0::PE == 0 => 0,
        () if state.rflags & flags::VM != 0 => 3,
        () => (state.segments[CS].selector & 3) as u8,
    }
}

fn regs_in(state: &CpuState) -> kvm_regs {
    let [
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
    ] = state.gpr;
    let (rip, rflags) = (state.rip, state.rflags);
    kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    }
}

fn gpr_out(r: &kvm_regs) -> [u64; 16] {
    [
        r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15,
    ]
}

/// An XSAVE area as bytes.
struct Area([u8; 4096]);

impl Area {
    fn from_kernel(xsave: &kvm_xsave) -> Self {
        let mut bytes = [0; 4096];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(&xsave.region) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        Self(bytes)
    }

    fn to_kernel(&self, xsave: &mut kvm_xsave) {
        for (chunk, word) in self.0.chunks_exact(4).zip(&mut xsave.region) {
            *word = u32::from_le_bytes(chunk.try_into().unwrap_or_default());
        }
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        self.0
            .get(at..at + N)
            .and_then(|bytes| bytes.try_into().ok())
            .unwrap_or([0; N])
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(place) = self.0.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    }

    fn has(&self, component: u32) -> bool {
        u64::from_le_bytes(self.get(XSTATE_BV)) >> component & 1 != 0
    }

    fn fpu(&self, ymm: Option<usize>) -> FpuState {
        let half = |at: usize| [self.get(at), self.get(at + 8)].map(u64::from_le_bytes);
        let mut fpu = FpuState {
            fcw: u16::from_le_bytes(self.get(0)),
            fsw: u16::from_le_bytes(self.get(2)),
            ftw: self.get::<1>(4)[0],
            fop: u16::from_le_bytes(self.get(6)),
            fip: u64::from_le_bytes(self.get(8)),
            fdp: u64::from_le_bytes(self.get(16)),
            mxcsr: u32::from_le_bytes(self.get(MXCSR)),
            ..FpuState::default()
        };
        for (i, st) in fpu.st.iter_mut().enumerate() {
            *st = self.get(ST + 16 * i);
        }
        let ymm = ymm.filter(|_| self.has(AVX));
        for (i, register) in fpu.ymm.iter_mut().enumerate() {
            let [low, high] = half(XMM + 16 * i);
            let [third, fourth] = ymm.map_or([0; 2], |at| half(at + 16 * i));
            *register = [low, high, third, fourth];
        }
        fpu
    }

    fn set_fpu(&mut self, fpu: &FpuState, ymm: Option<usize>) {
        self.put(0, &fpu.fcw.to_le_bytes());
        self.put(2, &fpu.fsw.to_le_bytes());
        self.put(4, &[fpu.ftw, 0]);
        self.put(6, &fpu.fop.to_le_bytes());
        self.put(8, &fpu.fip.to_le_bytes());
        self.put(16, &fpu.fdp.to_le_bytes());
        self.put(MXCSR, &fpu.mxcsr.to_le_bytes());
        for (i, st) in fpu.st.iter().enumerate() {
            self.put(ST + 16 * i, st);
        }
        for (i, register) in fpu.ymm.iter().enumerate() {
            let places = [
                Some(XMM + 16 * i),
                Some(XMM + 16 * i + 8),
                ymm.map(|at| at + 16 * i),
                ymm.map(|at| at + 16 * i + 8),
            ];
            for (at, value) in places.into_iter().zip(register) {
                at.into_iter().for_each(|at| self.put(at, &value.to_le_bytes()));
            }
        }
    }
}

impl KvmVcpu {
    /// Sets a register; false where the host does not have it, or not this value.
    pub(crate) fn put_msr(&self, index: u32, data: u64) -> bool {
        let entry = kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        };
        let msrs = kvm_bindings::Msrs::from_entries(&[entry]);
        msrs.is_ok_and(|msrs| self.fd.set_msrs(&msrs) == Ok(1))
    }

    fn get_msr(&self, index: u32) -> Option<u64> {
        let entry = kvm_msr_entry {
            index,
            ..kvm_msr_entry::default()
        };
        let mut msrs = kvm_bindings::Msrs::from_entries(&[entry]).ok()?;
        let known = self.fd.get_msrs(&mut msrs) == Ok(1);
        known.then(|| msrs.as_slice().first().map(|entry| entry.data))?
    }

    /// The state now. No instruction waits for its end.
    pub(crate) fn save(&mut self) -> Result<CpuState, EngineError> {
        let regs = self.fd.get_regs().map_err(failed("no registers"))?;
        let sregs = self.fd.get_sregs().map_err(failed("no registers"))?;
        let debug = self.fd.get_debug_regs().map_err(failed("no debug registers"))?;
        let xcrs = self.fd.get_xcrs().map_err(failed("no XCR0"))?;
        let xsave = self.fd.get_xsave().map_err(failed("no x87 and vector state"))?;
        let events = self.fd.get_vcpu_events().map_err(failed("no events"))?;
        let area = Area::from_kernel(&xsave);
        let mut fpu = area.fpu(self.shared.supported.component(AVX));
        let Pointers { fip, fcs, fdp, fds } = self.pointers;
        fpu.fcs = if fpu.fip == fip { fcs } else { 0 };
        fpu.fds = if fpu.fdp == fdp { fds } else { 0 };
        let pkru = self.shared.supported.component(PKRU).filter(|_| area.has(PKRU));
        let mut msrs = self.kept.clone();
        for (number, place) in numbered(&mut msrs) {
            *place = self.get_msr(number).unwrap_or(*place);
        }
        msrs.efer = sregs.efer;
        msrs.tsc_offset = self.tsc_offset();
        let segments = [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(segment_out);
        let xcr0 = xcrs.xcrs[..(xcrs.nr_xcrs as usize).min(16)].iter().find(|x| x.xcr == 0);
        Ok(CpuState {
            gpr: gpr_out(&regs),
            rip: regs.rip,
            rflags: regs.rflags,
            segments,
            ldtr: segment_out(&sregs.ldt),
            tr: segment_out(&sregs.tr),
            gdtr: table_out(&sregs.gdt),
            idtr: table_out(&sregs.idt),
            cr0: sregs.cr0,
            cr2: sregs.cr2,
            cr3: sregs.cr3,
            cr4: sregs.cr4,
            xcr0: xcr0.map_or(1, |x| x.value),
            pdptr: self.pdptr(&sregs),
            dr: [debug.db[0], debug.db[1], debug.db[2], debug.db[3], debug.dr6, debug.dr7],
            pkru: pkru.map_or(0, |at| u32::from_le_bytes(area.get(at))),
            fpu,
            msrs,
            activity: self.activity,
            pending: self.pending(&events, debug.dr6),
        })
    }

    /// How far the TSC was ahead of guest time when a vCPU of the machine was left last.
    fn tsc_offset(&self) -> u64 {
        match (self.tsc, self.shared.time.last()) {
            (TscState::Loaded(offset), _) => offset,
            (TscState::Running(tsc), Some(last)) => tsc.offset_at(last),
            (TscState::Running(_), None) => 0,
        }
    }

    /// What PAE's page-directory pointers were loaded from.
    fn pdptr(&self, sregs: &kvm_sregs) -> [u64; 4] {
        let used = sregs.cr0 & cr0::PG != 0 && sregs.cr4 & cr4::PAE != 0 && sregs.efer & efer::LMA == 0;
        let table = || self.shared.memory().read_obj(sregs.cr3 & 0xffff_ffe0).ok();
        used.then(table).flatten().unwrap_or_default()
    }

    fn pending(&self, events: &kvm_vcpu_events, dr6: u64) -> PendingEvent {
        let e = &events.exception;
        let trap = (e.injected | e.pending) != 0 && e.nr == DB;
        let interrupt = events.interrupt.injected != 0 && events.interrupt.soft == 0;
        PendingEvent {
            nmi: self.nmi || events.nmi.pending != 0 || events.nmi.injected != 0,
            nmi_blocked: events.nmi.masked != 0 && events.nmi.injected == 0,
            sti_shadow: events.interrupt.shadow & SHADOW_STI != 0,
            mov_ss_shadow: events.interrupt.shadow & SHADOW_MOV_SS != 0,
            debug_trap: if trap { dr6 & 0xc00f } else { 0 },
            interrupt: interrupt.then_some(events.interrupt.nr),
            unhalted: self.unhalted,
        }
    }

    /// Takes over a state.
    pub(crate) fn load(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.load_sregs(state)?;
        self.load_units(state)?;
        self.fd.set_regs(&regs_in(state)).map_err(failed("registers"))?;
        let [db0, db1, db2, db3, dr6, dr7] = state.dr;
        let debug = kvm_debugregs {
            db: [db0, db1, db2, db3],
            dr6: dr6 | state.pending.debug_trap,
            dr7,
            ..kvm_debugregs::default()
        };
        self.fd.set_debug_regs(&debug).map_err(failed("debug registers"))?;
        self.load_msrs(&state.msrs);
        self.load_events(state)?;
        self.activity = state.activity;
        self.unhalted = state.pending.unhalted;
        self.pointers = Pointers {
            fip: state.fpu.fip,
            fcs: state.fpu.fcs,
            fdp: state.fpu.fdp,
            fds: state.fpu.fds,
        };
        self.forget_told();
        Ok(())
    }

    fn load_sregs(&mut self, state: &CpuState) -> Result<(), EngineError> {
        let [es, cs, mut ss, ds, fs, gs] = state.segments.each_ref().map(segment_in);
        ss.dpl = cpl(state);
        debug_assert_eq!(state.segments[SS].selector, ss.selector);
        let sregs = kvm_sregs {
            cs,
            ds,
            es,
            fs,
            gs,
            ss,
            tr: segment_in(&state.tr),
            ldt: segment_in(&state.ldtr),
            gdt: table_in(state.gdtr),
            idt: table_in(state.idtr),
            cr0: state.cr0,
            cr2: state.cr2,
            cr3: state.cr3,
            cr4: state.cr4,
            cr8: 0,
            efer: state.msrs.efer,
            apic_base: self.apic_base,
            interrupt_bitmap: [0; 4],
        };
        self.fd
            .set_sregs(&sregs)
            .map_err(failed("segments and control registers"))
    }

    /// x87, vectors, protection keys.
    fn load_units(&mut self, state: &CpuState) -> Result<(), EngineError> {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..kvm_xcrs::default()
        };
        xcrs.xcrs[0].value = state.xcr0;
        self.fd.set_xcrs(&xcrs).map_err(failed("XCR0"))?;
        let mut xsave = self.fd.get_xsave().map_err(failed("no x87 and vector state"))?;
        let mut area = Area::from_kernel(&xsave);
        let (ymm, pkru) = (
            self.shared.supported.component(AVX),
            self.shared.supported.component(PKRU),
        );
        area.set_fpu(&state.fpu, ymm);
        let mut components = u64::from_le_bytes(area.get(XSTATE_BV)) | LEGACY;
        if ymm.is_some() {
            components |= 1 << AVX;
        }
        if let Some(at) = pkru {
            components |= 1 << PKRU;
            area.put(at, &state.pkru.to_le_bytes());
        }
        area.put(XSTATE_BV, &components.to_le_bytes());
        area.to_kernel(&mut xsave);
        // SAFETY: the kernel reads more than the structure only for vCPUs with components that programs must ask for first,
        // which we do not.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(failed("x87 and vector state"))
    }

    fn load_msrs(&mut self, msrs: &Msrs) {
        self.kept = msrs.clone();
        for (number, value) in numbered(&mut msrs.clone()) {
            // What the host does not have, a guest with this policy does not use; it is kept.
            if self.get_msr(number) != Some(*value) && !self.put_msr(number, *value) && *value != 0 {
                tracing::debug!(msr = number, value, "the kernel does not take the value of an MSR");
            }
        }
        self.tsc = TscState::Loaded(msrs.tsc_offset);
    }

    fn load_events(&mut self, state: &CpuState) -> Result<(), EngineError> {
        let pending = &state.pending;
        let mut events = kvm_vcpu_events {
            flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW,
            ..kvm_vcpu_events::default()
        };
        if pending.debug_trap != 0 {
            events.exception.injected = 1;
            events.exception.nr = DB;
        }
        if let Some(vector) = pending.interrupt {
            events.interrupt.injected = 1;
            events.interrupt.nr = vector;
        }
        if pending.sti_shadow {
            events.interrupt.shadow |= SHADOW_STI;
        }
        if pending.mov_ss_shadow {
            events.interrupt.shadow |= SHADOW_MOV_SS;
        }
        // A processor that does not execute gets it when it is woken.
        let active = state.activity == Activity::Active;
        self.nmi = pending.nmi && !active;
        events.nmi.pending = (pending.nmi && active).into();
        events.nmi.masked = pending.nmi_blocked.into();
        self.fd.set_vcpu_events(&events).map_err(failed("events"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_go_through_unchanged() {
        for attr in [0x93, 0xc9b, 0xa9b, 0x8b, 0xcf3, 0x82] {
            let segment = SegmentState {
                selector: 0x33,
                base: 0x1234_5000,
                limit: 0xf_ffff,
                attr,
            };
            assert_eq!(segment_out(&segment_in(&segment)), segment, "{attr:#x}");
        }
    }

    #[test]
    fn fpu_goes_through_an_area_unchanged() {
        let mut fpu = FpuState {
            fcw: 0x27f,
            fsw: 0x3800,
            ftw: 0x81,
            fop: 0x123,
            fip: 0x1_2345_6789,
            fdp: 0x55,
            mxcsr: 0x1fa0,
            ..FpuState::default()
        };
        fpu.st[7] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        fpu.ymm[15] = [1, 2, 3, 4];
        let mut area = Area([0; 4096]);
        area.set_fpu(&fpu, Some(576));
        area.put(XSTATE_BV, &7u64.to_le_bytes());
        assert_eq!(area.fpu(Some(576)), fpu);
        fpu.ymm[15] = [1, 2, 0, 0];
        assert_eq!(area.fpu(None), fpu, "no AVX");
    }

    #[test]
    fn every_numbered_register_has_a_place_of_its_own() {
        let mut msrs = Msrs::default();
        for (number, place) in numbered(&mut msrs) {
            *place = number.into();
        }
        assert_eq!(msrs.mtrr_fixed[0], 0x250);
        assert_eq!(msrs.mtrr_fixed[3], 0x268);
        assert_eq!(msrs.mtrr_fixed[10], 0x26f);
        assert_eq!(msrs.mtrr_var[7], (0x20e, 0x20f));
        let mut seen = std::collections::BTreeSet::new();
        assert!(numbered(&mut msrs).into_iter().all(|(number, _)| seen.insert(number)));
    }

    #[test]
    fn privilege_level_is_zero_in_real_mode_whatever_cs_is() {
        let mut state = CpuState::after_reset(true, 0);
        state.segments[CS].selector = 0x0803;
        assert_eq!(cpl(&state), 0);
        state.cr0 |= cr0::PE;
        assert_eq!(cpl(&state), 3);
        state.segments[CS].selector = 8;
        state.rflags |= flags::VM;
        assert_eq!(cpl(&state), 3);
    }
}
