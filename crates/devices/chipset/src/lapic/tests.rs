//! Acceptance, priorities, destinations, inputs; the rig that the tests of the other parts use.

use super::*;
use device_model::Snapshot;
use proptest::prelude::*;
use test_kit::TestClock;
use x86_isa::msr;

pub(super) const BUS_HZ: u64 = 1_000_000_000;
pub(super) const TSC_HZ: u64 = 2_000_000_000;

/// A page of RAM.
fn page() -> Arc<GuestMemory> {
    let mut memory = GuestMemory::new();
    let region = guest_memory::MemoryRegion::new("ram", guest_memory::Kind::Ram, 0x1000).unwrap();
    memory.add(0, Arc::new(region)).unwrap();
    Arc::new(memory)
}

pub(super) struct Rig {
    pub(super) lapic: Lapic,
    pub(super) clock: TestClock,
    pub(super) signals: Arc<Signals>,
    pub(super) memory: Arc<GuestMemory>,
}

impl Rig {
    pub(super) fn new(id: u32, bsp: bool) -> Self {
        Self::on(id, bsp, page())
    }

    pub(super) fn on(id: u32, bsp: bool, memory: Arc<GuestMemory>) -> Self {
        let clock = TestClock::new();
        let signals = Arc::new(Signals::new());
        let config = LapicConfig {
            id,
            bsp,
            bus_hz: BUS_HZ,
            tsc_hz: TSC_HZ,
        };
        let lapic = Lapic::new(
            config,
            Arc::new(clock.clone()),
            Arc::clone(&signals),
            Arc::clone(&memory),
        );
        Self {
            lapic,
            clock,
            signals,
            memory,
        }
    }

    /// A software-enabled xAPIC.
    pub(super) fn ready() -> Self {
        let mut rig = Self::new(0, true);
        rig.put(0xF0, 0x1FF);
        rig
    }

    pub(super) fn x2apic(id: u32) -> Self {
        let mut rig = Self::new(id, false);
        rig.lapic.write_msr(msr::APIC_BASE, 0xFEE0_0C00).unwrap();
        rig.lapic.write_msr(0x80F, 0x1FF).unwrap();
        rig
    }

    pub(super) fn get(&mut self, offset: u64) -> u32 {
        let at = At { region: 0, offset };
        u32::try_from(self.lapic.read(at, Width::Dword).unwrap()).unwrap()
    }

    pub(super) fn put(&mut self, offset: u64, value: u32) {
        let at = At { region: 0, offset };
        self.lapic.write(at, Width::Dword, value.into()).unwrap();
    }

    pub(super) fn signalled(&self, signal: Signal) -> bool {
        self.signals.take(signal)
    }

    pub(super) fn fixed(&mut self, vector: u8, level_triggered: bool) {
        let mode = DeliveryMode::Fixed;
        self.lapic.deliver(&Interrupt {
            vector,
            mode,
            level_triggered,
            assert: true,
        });
    }

    fn message(&mut self, mode: DeliveryMode, vector: u8) {
        self.lapic.deliver(&Interrupt {
            vector,
            mode,
            level_triggered: false,
            assert: true,
        });
    }
}

#[test]
fn highest_vector_is_taken_first_and_blocks_its_class() {
    let mut rig = Rig::ready();
    rig.fixed(0x41, false);
    assert!(rig.signalled(Signal::Interrupt));
    rig.fixed(0x52, false);
    assert_eq!(rig.lapic.take_interrupt(), Some(0x52));
    assert_eq!(rig.get(0xA0), 0x50);
    rig.fixed(0x5F, false);
    assert_eq!(rig.lapic.take_interrupt(), None, "same class");
    rig.fixed(0x60, false);
    assert_eq!(rig.lapic.take_interrupt(), Some(0x60), "nests");
    rig.put(0xB0, 0);
    assert!(!rig.lapic.has_interrupt());
    rig.signalled(Signal::Interrupt);
    rig.put(0xB0, 0);
    assert!(rig.signalled(Signal::Interrupt));
    assert_eq!(rig.lapic.take_interrupt(), Some(0x5F));
    rig.put(0xB0, 0);
    assert_eq!(rig.lapic.take_interrupt(), Some(0x41));
}

#[test]
fn task_priority_holds_back_and_lets_go() {
    let mut rig = Rig::ready();
    rig.lapic.set_cr8(5);
    assert_eq!(rig.get(0x80), 0x50);
    rig.fixed(0x51, false);
    assert!(!rig.signalled(Signal::Interrupt));
    assert_eq!(rig.lapic.take_interrupt(), None);
    rig.put(0x80, 0x4F);
    assert!(rig.signalled(Signal::Interrupt));
    assert_eq!((rig.lapic.cr8(), rig.lapic.ppr()), (4, 0x4F));
    assert_eq!(rig.lapic.take_interrupt(), Some(0x51));
}

#[test]
fn end_of_level_interrupt_is_broadcast_unless_suppressed() {
    let mut rig = Rig::ready();
    for (svr, level, told) in [(0x1FF, false, false), (0x1FF, true, true), (0x11FF, true, false)] {
        rig.put(0xF0, svr);
        rig.fixed(0x79, level);
        assert_eq!(rig.get(0x180 + 0x30) >> 25 & 1 != 0, level, "TMR");
        assert_eq!(rig.lapic.take_interrupt(), Some(0x79));
        rig.put(0xB0, 0);
        assert_eq!(rig.lapic.take_effects().eois, if told { vec![0x79] } else { vec![] });
    }
}

#[test]
fn software_disable_drops_fixed_masks_the_table_and_keeps_nmi() {
    let mut rig = Rig::ready();
    rig.put(0x350, 0x8700);
    rig.put(0xF0, 0xFF);
    assert_eq!(rig.get(0x350), 0x1_8700);
    rig.put(0x350, 0x8700);
    assert_eq!(rig.get(0x350), 0x1_8700, "cannot be unmasked");
    rig.fixed(0x40, false);
    assert!(!rig.lapic.has_interrupt());
    rig.message(DeliveryMode::Nmi, 0);
    assert!(rig.signalled(Signal::Nmi));
}

#[test]
fn illegal_vector_is_logged_and_raises_the_error_interrupt_once() {
    let mut rig = Rig::ready();
    rig.put(0x370, 0xFE);
    rig.fixed(0x0F, false);
    assert_eq!(rig.get(0x280), 0, "latched by a write only");
    assert_eq!(rig.lapic.take_interrupt(), Some(0xFE));
    rig.put(0xB0, 0);
    rig.put(0x300, 0x0000_4003);
    rig.get(0x3F0);
    assert_eq!(rig.lapic.take_interrupt(), None);
    assert!(rig.lapic.take_effects().ipis.is_empty());
    rig.put(0x280, 0);
    assert_eq!(rig.get(0x280), 0xE0);
    rig.put(0x280, 0);
    assert_eq!(rig.get(0x280), 0);
    rig.put(0x370, 0x03);
    rig.fixed(0x01, false);
    assert_eq!(
        rig.lapic.take_interrupt(),
        None,
        "an illegal error vector stays an error"
    );
}

#[test]
fn init_resets_the_registers_and_not_the_mode() {
    let mut rig = Rig::x2apic(3);
    rig.lapic.write_msr(0x808, 0x20).unwrap();
    rig.fixed(0x80, false);
    rig.message(DeliveryMode::Init, 0);
    assert!(rig.signalled(Signal::Init));
    assert!(!rig.lapic.has_interrupt());
    assert_eq!(rig.lapic.read_msr(0x808), Ok(0));
    assert_eq!(rig.lapic.read_msr(0x80F), Ok(0xFF));
    assert_eq!(rig.lapic.read_msr(0x802), Ok(3));
    rig.message(DeliveryMode::Sipi, 0x9A);
    assert!(rig.signalled(Signal::Sipi));
    assert_eq!(rig.signals.sipi_vector(), 0x9A);
}

#[test]
fn flat_and_cluster_destinations_match_as_the_format_says() {
    let mut rig = Rig::ready();
    rig.put(0xD0, 0x2400_0000);
    assert_eq!(rig.get(0xE0), 0xFFFF_FFFF);
    for (dest, flat, cluster) in [
        (0x04, true, false),
        (0x24, true, true),
        (0x2B, true, false),
        (0x34, true, false),
        (0x0B, false, false),
        (0xFF, true, true),
        (0x124, false, false),
    ] {
        rig.put(0xE0, 0xF000_0000);
        assert_eq!(rig.lapic.matches(dest, true), flat, "{dest:#x}");
        rig.put(0xE0, 0);
        assert_eq!(rig.get(0xE0), 0x0FFF_FFFF);
        assert_eq!(rig.lapic.matches(dest, true), cluster, "{dest:#x}");
    }
}

#[test]
fn physical_destination_is_the_id_or_broadcast() {
    let mut rig = Rig::new(5, false);
    for (dest, matches) in [(5, true), (4, false), (0xFF, true), (0xFFFF_FFFF, true), (0x105, false)] {
        assert_eq!(rig.lapic.matches(dest, false), matches, "{dest:#x}");
    }
    rig.put(0x20, 0x0900_0000);
    assert!(rig.lapic.matches(9, false) && !rig.lapic.matches(5, false));
    rig.lapic.write_msr(msr::APIC_BASE, 0xFEE0_0000).unwrap();
    assert!(
        !rig.lapic.matches(5, false) && !rig.lapic.matches(0xFF, true),
        "disabled"
    );
}

#[test]
fn x2apic_logical_id_is_cluster_and_bit() {
    let mut rig = Rig::x2apic(0x123);
    assert_eq!(rig.lapic.read_msr(0x80D), Ok(0x12_0008));
    for (dest, matches) in [
        (0x12_0008, true),
        (0x12_00FF, true),
        (0x12_0004, false),
        (0x13_0008, false),
        (0xFFFF_FFFF, true),
    ] {
        assert_eq!(rig.lapic.matches(dest, true), matches, "{dest:#x}");
    }
    assert!(rig.lapic.matches(0x123, false) && !rig.lapic.matches(0x23, false));
}

#[test]
fn lint0_passes_the_8259_in_virtual_wire_mode_and_when_disabled() {
    let mut rig = Rig::new(0, true);
    rig.lapic.set_lint(0, true);
    assert!(rig.signalled(Signal::Interrupt));
    assert!(rig.lapic.accepts_pic() && rig.lapic.take_interrupt().is_none());
    rig.put(0xF0, 0x1FF);
    rig.put(0x350, 0x1_0700);
    assert!(!rig.lapic.accepts_pic(), "masked");
    rig.signalled(Signal::Interrupt);
    rig.put(0x350, 0x700);
    assert!(rig.lapic.accepts_pic() && rig.signalled(Signal::Interrupt));
    rig.put(0x350, 0x1_0700);
    rig.lapic.write_msr(msr::APIC_BASE, 0xFEE0_0000).unwrap();
    assert!(rig.lapic.accepts_pic());
    rig.lapic.set_lint(1, true);
    assert!(rig.signalled(Signal::Nmi));
    rig.lapic.set_lint(0, false);
    assert!(!rig.lapic.accepts_pic());
    assert!(!Rig::new(1, false).lapic.accepts_pic());
}

#[test]
fn lint1_nmi_is_an_edge() {
    let mut rig = Rig::ready();
    rig.put(0x360, 0x400);
    rig.lapic.set_lint(1, true);
    assert!(rig.signalled(Signal::Nmi));
    rig.lapic.set_lint(1, true);
    rig.put(0x360, 0x400);
    assert!(!rig.signalled(Signal::Nmi));
}

#[test]
fn level_lint_waits_for_eoi_and_comes_again_while_asserted() {
    let mut rig = Rig::ready();
    rig.put(0x350, 0x8000 | 0x44);
    rig.lapic.set_lint(0, true);
    assert_eq!(rig.get(0x350), 0xC044);
    assert_eq!(rig.lapic.take_interrupt(), Some(0x44));
    assert_eq!(rig.lapic.take_interrupt(), None);
    rig.put(0xB0, 0);
    assert_eq!(rig.lapic.take_interrupt(), Some(0x44));
    rig.lapic.set_lint(0, false);
    rig.put(0xB0, 0);
    assert_eq!((rig.get(0x350), rig.lapic.has_interrupt()), (0x8044, false));
}

#[test]
fn external_interrupt_message_is_offered_until_the_next_acknowledge() {
    let mut rig = Rig::new(1, false);
    rig.put(0xF0, 0x1FF);
    rig.message(DeliveryMode::ExtInt, 0);
    assert!(rig.signalled(Signal::Interrupt) && rig.lapic.accepts_pic());
    assert_eq!(rig.lapic.take_interrupt(), None);
    assert!(rig.lapic.accepts_pic());
    assert_eq!(rig.lapic.take_interrupt(), None);
    assert!(!rig.lapic.accepts_pic());
}

#[test]
fn restore_signals_what_is_pending() {
    let mut rig = Rig::ready();
    rig.fixed(0x40, false);
    let state = rig.lapic.save();
    let mut other = Rig::new(0, true);
    other.lapic.restore(state.clone()).unwrap();
    assert!(other.signalled(Signal::Interrupt));
    assert_eq!(other.lapic.take_interrupt(), Some(0x40));
    assert!(
        Rig::new(0, false).lapic.restore(state).is_err(),
        "of a bootstrap processor"
    );
}

#[test]
fn keeps_the_device_contract() {
    let clock = TestClock::new();
    test_kit::contract(&clock, || {
        let config = LapicConfig {
            id: 1,
            bsp: true,
            bus_hz: BUS_HZ,
            tsc_hz: TSC_HZ,
        };
        Box::new(Lapic::new(
            config,
            Arc::new(clock.clone()),
            Arc::new(Signals::new()),
            page(),
        ))
    });
}

proptest! {
    #[test]
    fn no_access_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..400), x2apic: bool) {
        let mut rig = Rig::ready();
        let clock = rig.clock.clone();
        test_kit::fuzz_registers(&mut rig.lapic, &clock, &bytes);
        if x2apic {
            let _ = rig.lapic.write_msr(msr::APIC_BASE, 0xFEE0_0C00);
        }
        for chunk in bytes.chunks(6) {
            let [register, a, b, c, d, op] = *chunk else { break };
            let value = u64::from(u32::from_le_bytes([a, b, c, d]));
            match op & 7 {
                0..=2 => drop(rig.lapic.write_msr(0x800 | u32::from(register), value)),
                3 => drop(rig.lapic.read_msr(0x800 | u32::from(register))),
                4 => rig.fixed(register, a & 1 != 0),
                5 => rig.lapic.set_lint(u32::from(register) % 3, a & 1 != 0),
                6 => drop(rig.lapic.take_interrupt()),
                _ if a & 1 != 0 => drop(rig.lapic.write_msr(msr::KVM_PV_EOI, value & 0xfff)),
                _ => drop(rig.lapic.write_msr(msr::TSC_DEADLINE, value)),
            }
            let now = clock.advance(u64::from(b) << (c % 40));
            prop_assert!(rig.lapic.poll(now).is_none_or(|next| next > now));
            rig.lapic.take_effects();
        }
    }
}
