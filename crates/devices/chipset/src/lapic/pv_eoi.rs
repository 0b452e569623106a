//! The end of an interrupt in memory (MSR_KVM_PV_EOI_EN): software need not come out to the APIC for it.
//!
//! When an edge-triggered interrupt is taken into service and nothing else waits, bit 0 of a byte that software has named is
//! set: the end of that interrupt is lent to software, which clears the bit instead of writing the EOI register. Whoever
//! touches the APIC from the processor next looks first: a bit that is clear was an EOI, one that is set is taken back, and
//! software will write the register. While the end is lent, the processor is told of every interrupt that arrives, as it is
//! not known whether priority holds it back.
//!
//! Spec: KVM msr.rst (MSR_KVM_PV_EOI_EN).

use std::sync::Arc;

use cpu_model::MsrFault;
use guest_memory::GuestMemory;

use super::Lapic;

/// MSR_KVM_PV_EOI_EN: bit 0 enables, bit 1 is reserved, the others are the address.
const ENABLE: u64 = 1;
const RESERVED: u64 = 2;
/// In memory: the end may be told here.
const LENT: u8 = 1;

/// The place in memory, and what is known of it.
pub(super) struct PvEoi {
    // Wiring
    memory: Arc<GuestMemory>,
    // State
    register: u64,
    /// The end of the highest interrupt in service is software's to tell.
    lent: bool,
}

impl PvEoi {
    pub(super) fn new(memory: Arc<GuestMemory>) -> Self {
        Self {
            memory,
            register: 0,
            lent: false,
        }
    }

    pub(super) fn reset(&mut self) {
        (self.register, self.lent) = (0, false);
    }

    pub(super) fn is_lent(&self) -> bool {
        self.lent
    }

    /// The register, and whether an end is lent.
    pub(super) fn save(&self) -> (u64, bool) {
        (self.register, self.lent)
    }

    pub(super) fn restore(&mut self, (register, lent): (u64, bool)) {
        (self.register, self.lent) = (register, lent);
    }

    /// Whether a saved register and what is lent go together.
    pub(super) fn is_legal((register, lent): (u64, bool)) -> bool {
        register & RESERVED == 0 && (!lent || register & ENABLE != 0)
    }

    /// Writes the byte; what was in it, if it is enabled and there is memory.
    fn swap(&self, value: u8) -> Option<u8> {
        let enabled = self.register & ENABLE != 0;
        let address = self.register & !(ENABLE | RESERVED);
        enabled.then(|| self.memory.swap_u8(address, value).ok())?
    }
}

impl Lapic {
    /// Lends the end of `vector`, which is the highest in service, if that is of no interest to anybody else.
    pub(super) fn lend_eoi(&mut self, vector: u8) {
        let plain = self.irr.highest().is_none() && !self.tmr.contains(vector);
        if plain && self.pv_eoi.swap(LENT).is_some() {
            self.pv_eoi.lent = true;
        }
    }

    /// Looks whether software has told an end that was lent, and takes it back if not.
    pub(super) fn settle_eoi(&mut self) {
        if !std::mem::take(&mut self.pv_eoi.lent) {
            return;
        }
        if self.pv_eoi.swap(0).is_some_and(|byte| byte & LENT == 0) {
            self.end_of_interrupt();
        }
    }

    pub(super) fn read_pv_eoi(&self) -> u64 {
        self.pv_eoi.register
    }

    pub(super) fn write_pv_eoi(&mut self, value: u64) -> Result<(), MsrFault> {
        self.settle_eoi();
        let address = value & !(ENABLE | RESERVED);
        if value & RESERVED != 0 || value & ENABLE != 0 && !self.pv_eoi.memory.holds(address, 1) {
            return Err(MsrFault);
        }
        self.pv_eoi.register = value;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use cpu_model::Signal;
    use device_model::Snapshot;
    use x86_isa::msr;

    use super::super::tests::Rig;

    const AT: u64 = 0x104;

    /// An x2APIC that lends ends at [`AT`].
    fn rig() -> Rig {
        let mut rig = Rig::x2apic(0);
        rig.lapic.write_msr(msr::KVM_PV_EOI, AT | 1).unwrap();
        rig
    }

    impl Rig {
        fn byte(&self) -> u8 {
            let mut byte = [0];
            self.memory.read(AT, &mut byte).unwrap();
            byte[0]
        }

        /// Software ends an interrupt: in memory if it may, else by the register. Whether that was in memory.
        fn end(&mut self) -> bool {
            let lent = self.memory.swap_u8(AT, 0).unwrap() & 1 != 0;
            if !lent {
                self.lapic.write_msr(0x80b, 0).unwrap();
            }
            lent
        }

        fn take(&mut self, vector: u8) {
            self.fixed(vector, false);
            assert_eq!(self.lapic.take_interrupt(), Some(vector));
        }
    }

    #[test]
    fn end_in_memory_lets_the_next_interrupt_of_the_class_through() {
        let mut rig = rig();
        rig.take(0x51);
        assert_eq!(rig.byte(), 1);
        assert!(rig.end());
        rig.signalled(Signal::Interrupt);
        rig.fixed(0x50, false);
        assert!(
            rig.signalled(Signal::Interrupt),
            "though the APIC does not know of the end"
        );
        assert_eq!(rig.lapic.take_interrupt(), Some(0x50));
        assert!(rig.end());
        assert_eq!(rig.lapic.read_msr(0x812).unwrap(), 0, "nothing in service");
    }

    #[test]
    fn end_that_was_not_told_is_taken_back() {
        let mut rig = rig();
        rig.take(0x51);
        rig.fixed(0x50, false);
        assert_eq!(rig.lapic.take_interrupt(), None);
        assert_eq!(rig.byte(), 0);
        assert!(!rig.end(), "by the register");
        assert_eq!(rig.lapic.take_interrupt(), Some(0x50));
    }

    #[test]
    fn nested_interrupts_end_in_their_order() {
        let mut rig = rig();
        rig.take(0x51);
        rig.take(0x61);
        assert!(rig.end(), "the inner one in memory");
        assert!(
            !rig.end(),
            "the outer one by the register, which must not end the inner one"
        );
        assert_eq!(rig.lapic.read_msr(0x812).unwrap(), 0);
        assert_eq!(rig.lapic.read_msr(0x813).unwrap(), 0);
    }

    #[test]
    fn level_triggered_ones_and_those_that_others_wait_behind_are_not_lent() {
        let mut rig = rig();
        rig.fixed(0x51, true);
        assert_eq!(rig.lapic.take_interrupt(), Some(0x51));
        assert!(!rig.end());
        assert_eq!(rig.lapic.take_effects().eois, [0x51]);
        rig.fixed(0x40, false);
        rig.fixed(0x60, false);
        assert_eq!(rig.lapic.take_interrupt(), Some(0x60));
        assert!(!rig.end());
    }

    #[test]
    fn register_refuses_what_is_reserved_and_where_no_memory_is() {
        let mut rig = rig();
        for value in [AT | 3, AT | 2, 1 << 40 | 1] {
            assert!(rig.lapic.write_msr(msr::KVM_PV_EOI, value).is_err(), "{value:#x}");
        }
        assert_eq!(rig.lapic.read_msr(msr::KVM_PV_EOI).unwrap(), AT | 1);
        rig.take(0x51);
        rig.lapic.write_msr(msr::KVM_PV_EOI, 0).unwrap();
        assert_eq!(rig.byte(), 0, "taken back before");
        rig.lapic.write_msr(0x80b, 0).unwrap();
        rig.take(0x51);
        assert_eq!(rig.byte(), 0);
    }

    #[test]
    fn lent_end_goes_with_the_state() {
        let mut rig = rig();
        rig.take(0x51);
        let state = rig.lapic.save();
        assert!(rig.end());
        let mut other = Rig::on(0, false, rig.memory.clone());
        other.lapic.restore(state).unwrap();
        other.fixed(0x50, false);
        assert!(other.signalled(Signal::Interrupt));
        assert_eq!(other.lapic.take_interrupt(), Some(0x50));
    }

    #[test]
    fn init_forgets_the_place() {
        let mut rig = rig();
        rig.take(0x51);
        rig.lapic.on_init();
        assert_eq!(rig.lapic.read_msr(msr::KVM_PV_EOI).unwrap(), 0);
        rig.lapic.settle_eoi();
        assert_eq!(rig.byte(), 1, "not looked at any more");
    }
}
