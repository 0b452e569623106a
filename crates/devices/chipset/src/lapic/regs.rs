//! The registers of the local APIC behind both doors: the memory-mapped page and the x2APIC MSRs; IA32_APIC_BASE.
//!
//! Spec: SDM vol. 3 §11.4 (page), §11.12 (MSRs, mode changes).

use cpu_model::MsrFault;
use device_model::At;
use device_model::IoError;
use device_model::Width;
use x86_isa::msr;

use crate::lanes;

use super::DeliveryMode;
use super::FIRST_VECTOR;
use super::Interrupt;
use super::Ipi;
use super::LVT_COUNT;
use super::LVT_LINT0;
use super::LVT_LINT1;
use super::LVT_TIMER;
use super::Lapic;
use super::Lvt;
use super::Mode;
use super::Shorthand;
use super::Svr;
use super::spec::ApicBase;
use super::spec::DFR_ONES;
use super::spec::DIVIDE_WRITABLE;
use super::spec::ESR_ILLEGAL_REGISTER;
use super::spec::ESR_SEND_ILLEGAL;
use super::spec::ICR_RESERVED;
use super::spec::ICR_WRITABLE;
use super::spec::Icr;
use super::spec::LVT_READ_ONLY;
use super::spec::LVT_WRITABLE;
use super::spec::SVR_WRITABLE;
use super::spec::VERSION;
use super::spec::reg;

impl Lapic {
    /// The register offset of an access to the page.
    pub(super) fn page_offset(&self, at: At, width: Width) -> Result<u16, IoError> {
        let offset = u16::try_from(at.offset).ok().filter(|offset| *offset < 0x1000);
        match (at.region, offset, self.base()) {
            (0, Some(_), Some(_)) if width != Width::Dword => Err(IoError::Width),
            (0, Some(offset), Some(_)) => Ok(offset),
            _ => Err(IoError::NoRegister),
        }
    }

    pub(super) fn read_page(&mut self, offset: u16) -> u32 {
        if offset & 0xF != 0 {
            // Only the first 4 of each 16 bytes hold a register.
            return 0;
        }
        match offset {
            reg::ID => u32::from(self.xapic_id) << 24,
            reg::APR | reg::RRD | reg::EOI => 0,
            reg::LDR => u32::from(self.ldr) << 24,
            reg::DFR => DFR_ONES | if self.flat { !DFR_ONES } else { 0 },
            reg::ICR_HIGH => lanes::dword(self.icr >> 32),
            _ => self.read_common(offset).unwrap_or_else(|| {
                self.error(ESR_ILLEGAL_REGISTER);
                0
            }),
        }
    }

    pub(super) fn write_page(&mut self, offset: u16, value: u32) {
        let top = lanes::byte(u64::from(value) >> 24);
        match offset {
            reg::ID => self.xapic_id = top,
            reg::LDR => self.ldr = top,
            reg::DFR => self.flat = top >> 4 != 0,
            reg::ESR => self.write_esr(),
            reg::ICR => {
                self.icr = self.icr & !0xFFFF_FFFF | u64::from(value & ICR_WRITABLE);
                self.send(self.icr >> 56);
            }
            reg::ICR_HIGH => self.icr = self.icr & 0xFFFF_FFFF | u64::from(top) << 56,
            _ if offset & 0xF != 0 || self.is_read_only(offset) => {}
            _ if self.write_common(offset, value) => {}
            _ => self.error(ESR_ILLEGAL_REGISTER),
        }
    }

    fn is_read_only(&self, offset: u16) -> bool {
        let constant = [reg::VERSION, reg::APR, reg::PPR, reg::RRD, reg::CURRENT_COUNT];
        constant.contains(&offset) || (reg::ISR..=reg::IRR_END).contains(&offset)
    }

    /// Registers that both doors read alike.
    fn read_common(&mut self, offset: u16) -> Option<u32> {
        let word = usize::from(offset >> 4 & 7);
        Some(match offset {
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::PPR => self.ppr().into(),
            reg::SVR => self.svr.into_bits(),
            reg::IRR..=reg::IRR_END => self.irr.word(word),
            reg::TMR..reg::IRR => self.tmr.word(word),
            reg::ISR..reg::TMR => self.isr.word(word),
            reg::ESR => self.esr,
            reg::ICR => lanes::dword(self.icr),
            reg::LVT..=reg::LVT_END => self.lvt.get(lvt_index(offset))?.into_bits(),
            reg::INITIAL_COUNT => self.timer.initial(),
            reg::CURRENT_COUNT => {
                let now = self.instant();
                self.run_timer(now);
                self.timer.current(now)
            }
            reg::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    /// Registers that both doors write alike; false where there is none.
    fn write_common(&mut self, offset: u16, value: u32) -> bool {
        match offset {
            reg::TPR => self.set_tpr(lanes::byte(value.into())),
            reg::EOI => self.end_of_interrupt(),
            reg::SVR => self.write_svr(Svr::from_bits(value & SVR_WRITABLE)),
            reg::LVT..=reg::LVT_END => self.write_lvt(lvt_index(offset), value),
            reg::INITIAL_COUNT => {
                let now = self.instant();
                self.run_timer(now);
                if self.timer_mode() != Mode::TscDeadline {
                    self.timer.start(value, now);
                }
            }
            reg::DIVIDE => {
                let now = self.instant();
                self.run_timer(now);
                self.timer.set_divide(value, now);
            }
            _ => return false,
        }
        true
    }

    pub(super) fn set_tpr(&mut self, value: u8) {
        self.tpr = value;
        self.signal();
    }

    fn write_esr(&mut self) {
        self.esr = std::mem::take(&mut self.errors);
    }

    fn write_svr(&mut self, svr: Svr) {
        self.svr = svr;
        if svr.enabled() {
            return;
        }
        // SDM vol. 3 §11.4.7.2: disabled by software, all entries are masked and stay so.
        let now = self.instant();
        self.run_timer(now);
        for entry in &mut self.lvt {
            entry.set_masked(true);
        }
    }

    fn write_lvt(&mut self, index: usize, value: u32) {
        let now = self.instant();
        self.run_timer(now);
        let was = self.timer_mode();
        let Some((entry, writable)) = self.lvt.get_mut(index).zip(LVT_WRITABLE.get(index)) else {
            return;
        };
        let kept = entry.into_bits() & LVT_READ_ONLY;
        *entry = Lvt::from_bits(value & writable | kept);
        if !self.svr.enabled() {
            entry.set_masked(true);
        }
        if !entry.level() {
            entry.set_remote_irr(false);
        }
        match index {
            LVT_TIMER if (was == Mode::TscDeadline) != (self.timer_mode() == Mode::TscDeadline) => {
                self.timer.disarm();
            }
            LVT_LINT0 | LVT_LINT1 => self.serve_lint(index, self.lint_level(index), false),
            _ => {}
        }
    }

    fn lint_level(&self, index: usize) -> bool {
        let [lint0, lint1] = self.lint;
        if index == LVT_LINT0 { lint0 } else { lint1 }
    }

    pub(super) fn end_of_interrupt(&mut self) {
        let Some(vector) = self.isr.highest() else {
            return;
        };
        self.isr.set(vector, false);
        if self.tmr.contains(vector) {
            if !self.svr.suppress_broadcast() {
                self.effects.eois.push(vector);
            }
            for index in [LVT_LINT0, LVT_LINT1] {
                self.end_of_lint(index, vector);
            }
        }
        self.signal();
    }

    fn end_of_lint(&mut self, index: usize, vector: u8) {
        if let Some(entry) = self.lvt.get_mut(index)
            && entry.remote_irr()
            && entry.vector() == vector
        {
            entry.set_remote_irr(false);
            self.serve_lint(index, self.lint_level(index), false);
        }
    }

    /// Sends what the interrupt command register says.
    fn send(&mut self, dest: u64) {
        let icr = Icr::from_bits(lanes::dword(self.icr));
        let mode = DeliveryMode::from_bits(icr.delivery_mode());
        let interrupt = Interrupt {
            vector: icr.vector(),
            mode,
            level_triggered: false,
            // SDM vol. 3 table 11-3: only the de-assertion of INIT is one, and it does nothing.
            assert: !(mode == DeliveryMode::Init && icr.level() && !icr.assert()),
        };
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if icr.vector() < FIRST_VECTOR => {
                return self.error(ESR_SEND_ILLEGAL);
            }
            // Not to be sent by processors.
            DeliveryMode::Reserved | DeliveryMode::ExtInt => return,
            _ => {}
        }
        match Shorthand::from_bits(icr.shorthand()) {
            // Table 11-3: to oneself only as a fixed interrupt.
            Shorthand::Myself if mode == DeliveryMode::Fixed => self.deliver(&interrupt),
            Shorthand::Myself => {}
            shorthand => self.effects.ipis.push(Ipi {
                interrupt,
                dest: lanes::dword(dest),
                logical: icr.logical(),
                shorthand,
            }),
        }
    }

    /// Reads IA32_APIC_BASE, IA32_TSC_DEADLINE, MSR_KVM_PV_EOI_EN or an x2APIC register.
    ///
    /// # Errors
    /// [`MsrFault`] where the register does not exist in the present mode.
    pub fn read_msr(&mut self, msr: u32) -> Result<u64, MsrFault> {
        match msr {
            msr::KVM_PV_EOI => Ok(self.read_pv_eoi()),
            msr::APIC_BASE => Ok(self.base.into_bits()),
            msr::TSC_DEADLINE => {
                let now = self.instant();
                self.run_timer(now);
                Ok(self.timer.deadline())
            }
            _ => match self.x2apic_register(msr)? {
                reg::ID => Ok(self.config.id.into()),
                reg::LDR => Ok(self.x2apic_ldr().into()),
                reg::ICR => Ok(self.icr),
                offset => self.read_common(offset).map(u64::from).ok_or(MsrFault),
            },
        }
    }

    /// Writes IA32_APIC_BASE, IA32_TSC_DEADLINE, MSR_KVM_PV_EOI_EN or an x2APIC register.
    ///
    /// # Errors
    /// [`MsrFault`] where the register does not exist in the present mode, is read-only, or a reserved bit is set.
    pub fn write_msr(&mut self, msr: u32, value: u64) -> Result<(), MsrFault> {
        match msr {
            msr::KVM_PV_EOI => self.write_pv_eoi(value),
            msr::APIC_BASE => self.write_base(ApicBase::from_bits(value)),
            msr::TSC_DEADLINE => {
                if self.timer_mode() == Mode::TscDeadline {
                    self.timer.set_deadline(value);
                    let now = self.instant();
                    self.run_timer(now);
                }
                Ok(())
            }
            _ => {
                let offset = self.x2apic_register(msr)?;
                self.write_x2apic(offset, value)
            }
        }
    }

    /// The offset of an x2APIC register. What it says may depend on what is in service.
    fn x2apic_register(&mut self, msr: u32) -> Result<u16, MsrFault> {
        self.settle_eoi();
        if !(self.base.en() && self.base.extd()) {
            return Err(MsrFault);
        }
        let index = msr.checked_sub(msr::X2APIC_FIRST).filter(|index| *index < 0x100);
        index.and_then(|index| u16::try_from(index << 4).ok()).ok_or(MsrFault)
    }

    fn write_x2apic(&mut self, offset: u16, value: u64) -> Result<(), MsrFault> {
        if offset == reg::ICR {
            if value & ICR_RESERVED != 0 {
                return Err(MsrFault);
            }
            self.icr = value & !0xFFFF_FFFF | value & u64::from(ICR_WRITABLE);
            self.send(self.icr >> 32);
            return Ok(());
        }
        let allowed = match offset {
            reg::TPR | reg::SELF_IPI => 0xFF,
            reg::EOI | reg::ESR => 0,
            reg::SVR => SVR_WRITABLE,
            reg::LVT..=reg::LVT_END => LVT_WRITABLE.get(lvt_index(offset)).unwrap_or(&0) | LVT_READ_ONLY,
            reg::INITIAL_COUNT => u32::MAX,
            reg::DIVIDE => DIVIDE_WRITABLE,
            _ => return Err(MsrFault),
        };
        let value = u32::try_from(value).map_err(|_| MsrFault)?;
        if value & !allowed != 0 {
            return Err(MsrFault);
        }
        match offset {
            reg::ESR => self.write_esr(),
            reg::SELF_IPI => self.send_to_self(lanes::byte(value.into())),
            _ if self.write_common(offset, value) => {}
            _ => return Err(MsrFault),
        }
        Ok(())
    }

    fn send_to_self(&mut self, vector: u8) {
        if vector < FIRST_VECTOR {
            return self.error(ESR_SEND_ILLEGAL);
        }
        self.accept(vector, false);
    }

    /// SDM vol. 3 §11.12.5, fig. 11-27: x2APIC mode is entered from xAPIC mode and left by disabling only.
    fn write_base(&mut self, base: ApicBase) -> Result<(), MsrFault> {
        let legal = !matches!(
            (self.base.en(), self.base.extd(), base.en(), base.extd()),
            (_, _, false, true) | (false, _, true, true) | (true, true, true, false)
        );
        if !legal || base.into_bits() & ApicBase::RESERVED != 0 {
            return Err(MsrFault);
        }
        let was = std::mem::replace(&mut self.base, base.with_bsp(self.config.bsp));
        if was.en() && !base.en() {
            self.xapic_id = lanes::byte(self.config.id.into());
            self.on_init();
        }
        if base.extd() && !was.extd() {
            self.xapic_id = lanes::byte(self.config.id.into());
            self.icr &= 0xFFFF_FFFF;
        }
        // A disabled APIC passes its pins straight through.
        self.signal();
        Ok(())
    }
}

fn lvt_index(offset: u16) -> usize {
    usize::from(offset.saturating_sub(reg::LVT) >> 4).min(LVT_COUNT)
}

#[cfg(test)]
mod tests {
    use super::super::tests::Rig;
    use super::*;
    use cpu_model::Signal;
    use device_model::Device;

    const BASE: u64 = 0xFEE0_0000;
    const EN: u64 = 0x800;
    const EXTD: u64 = 0x400;

    #[test]
    fn mode_changes_are_those_of_the_manual() {
        let mut rig = Rig::new(0, true);
        let mut write = |value| rig.lapic.write_msr(msr::APIC_BASE, value).is_ok();
        assert!(!write(BASE | EXTD), "xAPIC to invalid");
        assert!(write(BASE | EN | EXTD));
        assert!(!write(BASE | EXTD), "x2APIC to invalid");
        assert!(!write(BASE | EN), "x2APIC to xAPIC");
        assert!(write(BASE));
        assert!(!write(BASE | EXTD), "disabled to invalid");
        assert!(!write(BASE | EN | EXTD), "disabled to x2APIC");
        assert!(write(BASE | EN));
        assert!(!write(BASE | EN | 1), "reserved");
        assert!(!write(BASE | EN | 1 << 40), "above the physical address width");
        assert_eq!(rig.lapic.read_msr(msr::APIC_BASE), Ok(BASE | EN | 0x100));
    }

    #[test]
    fn page_moves_and_vanishes_with_the_mode() {
        let mut rig = Rig::new(0, true);
        assert_eq!(rig.lapic.base(), Some(BASE));
        rig.lapic.write_msr(msr::APIC_BASE, 0xFED4_0000 | EN).unwrap();
        assert_eq!(rig.lapic.base(), Some(0xFED4_0000));
        rig.lapic.write_msr(msr::APIC_BASE, BASE | EN | EXTD).unwrap();
        assert_eq!((rig.lapic.base(), rig.lapic.is_enabled()), (None, true));
        assert!(
            rig.lapic
                .page_offset(
                    At {
                        region: 0,
                        offset: 0x30
                    },
                    Width::Dword
                )
                .is_err()
        );
    }

    #[test]
    fn disabling_resets_the_registers_but_cr8_still_works() {
        let mut rig = Rig::ready();
        rig.put(0x20, 0x0700_0000);
        rig.lapic.write_msr(msr::APIC_BASE, BASE).unwrap();
        rig.lapic.set_cr8(0xF);
        assert_eq!(rig.lapic.cr8(), 0xF);
        rig.lapic.write_msr(msr::APIC_BASE, BASE | EN).unwrap();
        assert_eq!((rig.get(0x20), rig.get(0x80), rig.get(0xF0)), (0, 0xF0, 0xFF));
    }

    #[test]
    fn x2apic_registers_fault_on_what_the_manual_reserves() {
        let mut rig = Rig::x2apic(2);
        let lapic = &mut rig.lapic;
        for (msr, value) in [
            (0x802, 0),
            (0x803, 0),
            (0x808, 0x100),
            (0x80A, 0),
            (0x80B, 1),
            (0x80D, 0),
            (0x80E, 0),
            (0x80F, 0x400),
            (0x810, 0),
            (0x828, 1),
            (0x82F, 0),
            (0x830, 1 << 13),
            (0x831, 0),
            (0x832, 0x100),
            (0x835, 1 << 17),
            (0x838, 1 << 32),
            (0x839, 0),
            (0x83E, 4),
            (0x83F, 0x100),
            (0x840, 0),
            (0x8FF, 0),
        ] {
            assert_eq!(lapic.write_msr(msr, value), Err(MsrFault), "{msr:#x}");
        }
        for msr in [0x800, 0x809, 0x80B, 0x80C, 0x80E, 0x82F, 0x831, 0x83F, 0x840, 0x8FF] {
            assert_eq!(lapic.read_msr(msr), Err(MsrFault), "{msr:#x}");
        }
        assert_eq!(lapic.read_msr(0x803), Ok(0x0105_0014));
        assert_eq!(Rig::ready().lapic.read_msr(0x803), Err(MsrFault), "xAPIC mode");
    }

    #[test]
    fn command_register_sends_what_it_says() {
        let mut rig = Rig::ready();
        rig.put(0x310, 0x0300_0000);
        rig.put(0x300, 0x0000_48F1);
        rig.put(0x300, 0x000C_0500);
        rig.put(0x300, 0x0000_8500);
        let ipis = rig.lapic.take_effects().ipis;
        let first = ipis[0];
        assert_eq!((first.dest, first.logical, first.shorthand), (3, true, Shorthand::None));
        assert_eq!(
            (first.interrupt.vector, first.interrupt.mode),
            (0xF1, DeliveryMode::Fixed)
        );
        assert_eq!(
            (ipis[1].shorthand, ipis[1].interrupt.mode),
            (Shorthand::Others, DeliveryMode::Init)
        );
        assert_eq!((ipis[1].interrupt.assert, ipis[2].interrupt.assert), (true, false));
        let mut rig = Rig::x2apic(0);
        rig.lapic.write_msr(0x830, 0x1234_5678_0000_0044).unwrap();
        assert_eq!(rig.lapic.take_effects().ipis[0].dest, 0x1234_5678);
        assert_eq!(rig.lapic.read_msr(0x830), Ok(0x1234_5678_0000_0044));
    }

    #[test]
    fn interrupt_to_oneself_arrives_at_once() {
        let mut rig = Rig::ready();
        rig.put(0x300, 0x0004_00F1);
        assert!(rig.signalled(Signal::Interrupt));
        assert_eq!(rig.lapic.take_interrupt(), Some(0xF1));
        let mut rig = Rig::x2apic(0);
        rig.lapic.write_msr(0x83F, 0x61).unwrap();
        assert_eq!(rig.lapic.take_interrupt(), Some(0x61));
        rig.lapic.write_msr(0x83F, 0x01).unwrap();
        rig.lapic.write_msr(0x828, 0).unwrap();
        assert_eq!(rig.lapic.read_msr(0x828), Ok(0x20));
    }

    #[test]
    fn one_shot_counts_down_and_fires_once() {
        let mut rig = Rig::ready();
        rig.put(0x3E0, 0xB);
        rig.put(0x320, 0xEE);
        rig.put(0x380, 0x10000);
        let due = rig.lapic.poll(rig.clock.advance(0x4000));
        assert_eq!(due.map(|time| time.as_ns()), Some(0x10000));
        assert_eq!(rig.get(0x390), 0xC000);
        assert!(!rig.signalled(Signal::Interrupt));
        assert_eq!(rig.lapic.poll(rig.clock.advance(0xC000)), None);
        assert!(rig.signalled(Signal::Interrupt));
        assert_eq!((rig.get(0x390), rig.get(0x380)), (0, 0x10000));
    }

    #[test]
    fn mode_changes_keep_the_count_running() {
        let mut rig = Rig::ready();
        rig.put(0x3E0, 0xB);
        rig.put(0x320, 0x1_00EE);
        rig.put(0x380, 1_000);
        rig.clock.advance(600);
        rig.put(0x320, 0x3_00EE);
        assert_eq!(rig.get(0x390), 400, "one-shot to periodic");
        rig.clock.advance(500);
        assert_eq!(rig.get(0x390), 900, "reloaded");
        rig.clock.advance(600);
        rig.put(0x320, 0x1_00EE);
        assert_eq!(rig.get(0x390), 300, "periodic to one-shot");
        rig.clock.advance(600);
        assert_eq!(rig.get(0x390), 0);
        rig.put(0x320, 0x3_00EE);
        rig.clock.advance(100);
        assert_eq!(rig.get(0x390), 0, "stands until started again");
        assert!(!rig.lapic.has_interrupt(), "masked all the time");
    }

    #[test]
    fn tsc_deadline_in_the_past_fires_at_once() {
        let mut rig = Rig::ready();
        rig.clock.advance(500);
        rig.lapic.set_tsc_offset(50);
        rig.lapic.write_msr(msr::TSC_DEADLINE, 1_000).unwrap();
        assert_eq!(rig.lapic.read_msr(msr::TSC_DEADLINE), Ok(0), "not in deadline mode");
        rig.put(0x320, 0x4_00EF);
        rig.lapic.write_msr(msr::TSC_DEADLINE, 1_050).unwrap();
        assert_eq!(rig.lapic.take_interrupt(), Some(0xEF));
        assert_eq!(rig.lapic.read_msr(msr::TSC_DEADLINE), Ok(0));
        rig.put(0xB0, 0);
        rig.lapic.write_msr(msr::TSC_DEADLINE, 2_051).unwrap();
        let due = rig.lapic.poll(rig.clock.advance(0));
        assert_eq!(due.map(|time| time.as_ns()), Some(1_001));
        rig.put(0x320, 0xEF);
        rig.put(0x320, 0x4_00EF);
        assert_eq!(rig.lapic.read_msr(msr::TSC_DEADLINE), Ok(0), "leaving the mode disarms");
        rig.put(0x380, 5);
        assert_eq!((rig.get(0x380), rig.get(0x390)), (0, 0));
    }
}
