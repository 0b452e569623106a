//! Saved state of the local APIC.

use cpu_model::Signal;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use serde::Deserialize;
use serde::Serialize;

use crate::lanes;

use super::Effects;
use super::ExtInt;
use super::Lapic;
use super::pv_eoi::PvEoi;
use super::spec::ApicBase;
use super::spec::ESR_KNOWN;
use super::spec::ICR_WRITABLE;
use super::spec::LVT_COUNT;
use super::spec::LVT_READ_ONLY;
use super::spec::LVT_WRITABLE;
use super::spec::Lvt;
use super::spec::SVR_WRITABLE;
use super::spec::Svr;
use super::timer::Timer;
use super::vectors::Vectors;

impl Snapshot for Lapic {
    type State = LapicV2;

    fn save(&self) -> LapicV2 {
        let Self {
            clock: _,
            signals: _,
            config: _,
            base,
            xapic_id,
            tpr,
            ldr,
            flat,
            svr,
            irr,
            isr,
            tmr,
            esr,
            errors,
            icr,
            lvt,
            timer,
            tsc_offset,
            lint,
            extint,
            pv_eoi,
            effects: _,
        } = self;
        LapicV2 {
            base: base.into_bits(),
            xapic_id: *xapic_id,
            tpr: *tpr,
            ldr: *ldr,
            flat: *flat,
            svr: svr.into_bits(),
            irr: *irr,
            isr: *isr,
            tmr: *tmr,
            esr: *esr,
            errors: *errors,
            icr: *icr,
            lvt: lvt.map(Lvt::into_bits),
            timer: timer.clone(),
            tsc_offset: *tsc_offset,
            lint: *lint,
            extint: *extint,
            pv_eoi: pv_eoi.save(),
        }
    }

    fn restore(&mut self, state: LapicV2) -> Result<(), RestoreError> {
        state.check(self.config.bsp)?;
        self.base = ApicBase::from_bits(state.base);
        self.xapic_id = state.xapic_id;
        self.tpr = state.tpr;
        self.ldr = state.ldr;
        self.flat = state.flat;
        self.svr = Svr::from_bits(state.svr);
        self.irr = state.irr;
        self.isr = state.isr;
        self.tmr = state.tmr;
        self.esr = state.esr;
        self.errors = state.errors;
        self.icr = state.icr;
        self.lvt = state.lvt.map(Lvt::from_bits);
        self.timer = state.timer;
        self.tsc_offset = state.tsc_offset;
        self.lint = state.lint;
        self.extint = state.extint;
        self.pv_eoi.restore(state.pv_eoi);
        self.effects = Effects::default();
        self.signal();
        if self.extint == ExtInt::Pending {
            self.signals.raise(Signal::Interrupt);
        }
        Ok(())
    }
}

/// Saved state of [`Lapic`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LapicV2 {
    base: u64,
    xapic_id: u8,
    tpr: u8,
    ldr: u8,
    flat: bool,
    svr: u32,
    irr: Vectors,
    isr: Vectors,
    tmr: Vectors,
    esr: u32,
    errors: u32,
    icr: u64,
    lvt: [u32; LVT_COUNT],
    timer: Timer,
    tsc_offset: u64,
    lint: [bool; 2],
    extint: ExtInt,
    /// MSR_KVM_PV_EOI_EN, and whether an end is lent.
    pv_eoi: (u64, bool),
}

impl LapicV2 {
    fn check(&self, bsp: bool) -> Result<(), RestoreError> {
        let base = ApicBase::from_bits(self.base);
        let base_ok = base.with_bsp(false).into_bits() & ApicBase::RESERVED == 0
            && base.bsp() == bsp
            && (base.en() || !base.extd());
        let lvt_ok = self
            .lvt
            .iter()
            .zip(LVT_WRITABLE)
            .all(|(entry, writable)| entry & !(writable | LVT_READ_ONLY) == 0);
        let registers_ok = self.svr & !SVR_WRITABLE == 0
            && (self.esr | self.errors) & !ESR_KNOWN == 0
            && lanes::dword(self.icr) & !ICR_WRITABLE == 0;
        let vectors_ok = [self.irr, self.isr, self.tmr].iter().all(Vectors::is_legal);
        let eoi_ok = PvEoi::is_legal(self.pv_eoi);
        if base_ok && lvt_ok && registers_ok && vectors_ok && eoi_ok && self.timer.is_legal() {
            return Ok(());
        }
        Err(RestoreError::Invalid("local APIC registers out of range".into()))
    }
}

impl Schema for LapicV2 {
    const NAME: &'static str = "lapic";
    const VERSION: u32 = 2;
}
