//! Random accesses to the chips of the Q35 chipset: to their registers, and to configuration space with all of them on buses.

use std::sync::Arc;

use chipset::acpi_pm::AcpiPm;
use chipset::acpi_pm::AlarmLatch;
use chipset::reset_control::PowerControl;
use device_model::Bus;
use device_model::Clock;
use device_model::Device;
use device_model::Slot;
use device_model::TestClock;
use device_model::Wake;
use device_model::Width;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use proptest::prelude::*;
use test_kit::Endpoint;
use test_kit::IrqProbe;
use test_kit::fuzz_registers;

use crate::Bdf;
use crate::PirqRouter;
use crate::Root;
use crate::ich9_lpc::Ich9Lpc;
use crate::ich9_smbus::Ich9Smbus;
use crate::pci_bridge::PciBridge;
use crate::q35_mch::Q35Mch;
use crate::root_port::RootPort;
use crate::shadow::SHADOW_LEN;

struct Nobody;

impl PowerControl for Nobody {
    fn power_off(&self) {}
    fn reset(&self) {}
    fn suspend(&self) {}
    fn wake(&self) {}
    fn debug_exit(&self, _: u8) {}
}

impl Wake for Nobody {
    fn wake(&self) {}
}

struct Chips {
    clock: TestClock,
    memory: Arc<GuestMemory>,
    root: Arc<Root>,
    mmio: Arc<Bus>,
    probe: Arc<IrqProbe>,
}

impl Chips {
    fn new() -> Self {
        let memory = Arc::new(GuestMemory::new());
        let mmio = Arc::new(Bus::new());
        Self {
            clock: TestClock::new(),
            root: Root::new(Arc::new(Bus::new()), Arc::clone(&mmio), Arc::clone(&memory)),
            mmio,
            memory,
            probe: IrqProbe::new(),
        }
    }

    fn mch(&self) -> Q35Mch {
        let shadow = Arc::new(MemoryRegion::new("shadow", Kind::Ram, SHADOW_LEN).unwrap());
        let ways = (Arc::clone(self.root.latch()), Arc::clone(self.root.ecam()));
        Q35Mch::new(ways, Arc::clone(&self.memory), shadow, None)
    }

    fn lpc(&self) -> Ich9Lpc {
        let time: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let router = PirqRouter::ich9(|irq| self.probe.line(irq), std::array::from_fn(|_| self.probe.line(16)));
        let power = Arc::new(Nobody);
        let pm = AcpiPm::new(time.clone(), self.probe.line(9), power.clone(), AlarmLatch::new(|| ()));
        Ich9Lpc::new(router, pm, time, power)
    }

    fn smbus(&self) -> Ich9Smbus {
        Ich9Smbus::new(self.probe.line(17))
    }

    fn port(&self) -> RootPort {
        RootPort::new(0, true, (self.probe.line(18), self.probe.clone()))
    }

    fn add<D: Device + 'static>(&self, bdf: Bdf, device: D) {
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let slot = Slot::new(&bdf.to_string(), device, clock, Arc::new(Nobody));
        self.root.add(bdf, slot);
    }

    /// All of them, with a function behind each bridge.
    fn on_buses() -> Self {
        let chips = Self::new();
        let (port, bridge) = (Bdf::new(0, 28, 0), Bdf::new(0, 30, 0));
        chips.root.add_wire(1, port);
        chips.root.add_wire(2, bridge);
        chips.add(Bdf::new(0, 0, 0), chips.mch());
        chips.add(Bdf::new(0, 31, 0), chips.lpc());
        chips.add(Bdf::new(0, 31, 3), chips.smbus());
        chips.add(port, chips.port());
        chips.add(bridge, PciBridge::new());
        chips.add(Bdf::new(1, 0, 0), Endpoint::new());
        chips.add(Bdf::new(2, 1, 0), Endpoint::new());
        chips
    }
}

/// A function that is there more often than not.
fn function() -> impl Strategy<Value = Bdf> {
    let places = vec![
        (0u8, 0u8, 0u8),
        (0, 28, 0),
        (0, 30, 0),
        (0, 31, 0),
        (0, 31, 3),
        (1, 0, 0),
        (2, 1, 0),
    ];
    prop_oneof![
        9 => prop::sample::select(places).prop_map(|(bus, device, function)| Bdf::new(bus, device, function)),
        1 => any::<u16>().prop_map(Bdf::from_bits),
    ]
}

fn value() -> impl Strategy<Value = u32> {
    // Bus numbers, command bits, addresses: small numbers lead further than most.
    prop_oneof![
        any::<u32>(),
        0u32..8,
        Just(0x0002_0200),
        Just(0x0001_0100),
        Just(7),
        Just(0xfed1_c001)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn no_accesses_to_registers_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let chips = Chips::new();
        fuzz_registers(&mut chips.lpc(), &chips.clock, &bytes);
        fuzz_registers(&mut chips.smbus(), &chips.clock, &bytes);
        fuzz_registers(&mut chips.port(), &chips.clock, &bytes);
    }

    #[test]
    fn no_accesses_to_configuration_space_cause_a_panic(
        writes in prop::collection::vec((function(), 0u16..0x110, 0usize..3, value()), 0..400),
    ) {
        let chips = Chips::on_buses();
        for (bdf, at, width, value) in writes {
            let width = [Width::Byte, Width::Word, Width::Dword][width];
            chips.root.write(bdf, at, width, value);
            let _ = chips.root.read(bdf, at, width);
            let _ = chips.mmio.read(u64::from(value), Width::Dword);
        }
        for (_, function) in chips.root.functions() {
            let blob = function.lock().save_blob();
            prop_assert!(function.lock().restore_blob(&blob).is_ok());
            prop_assert_eq!(function.lock().save_blob(), blob);
        }
    }
}
