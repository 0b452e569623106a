//! The root with test functions behind it.

use device_model::Clock;
use device_model::Slot;
use device_model::TestClock;
use device_model::Wake;
use device_model::pci::control;
use device_model::pci::reg;
use device_model::pci::reg1;
use test_kit::Endpoint;

use super::*;
use crate::pci_bridge::PciBridge;

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

struct Bench {
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    memory: Arc<GuestMemory>,
    root: Arc<Root>,
}

fn bench() -> Bench {
    let (pio, mmio) = (Arc::new(Bus::new()), Arc::new(Bus::new()));
    let memory = Arc::new(GuestMemory::new());
    let root = Root::new(pio.clone(), mmio.clone(), memory.clone());
    Bench {
        pio,
        mmio,
        memory,
        root,
    }
}

impl Bench {
    fn add(&self, bdf: Bdf) {
        let clock: Arc<dyn Clock> = Arc::new(TestClock::new());
        self.root.add(
            bdf,
            Slot::new(&bdf.to_string(), Endpoint::new(), clock, Arc::new(NoWake)),
        );
    }

    fn set(&self, bdf: Bdf, at: u16, value: u32) {
        self.root.write(bdf, at, Width::Dword, value);
    }
}

const ONE: Bdf = Bdf::new(0, 3, 0);
const OTHER: Bdf = Bdf::new(0, 4, 0);

#[test]
fn mechanism_1_reads_and_writes_parts_of_registers() {
    let bench = bench();
    bench.add(ONE);
    let root = &bench.root;
    let select = |bdf: Bdf, at: u32| {
        assert!(root.write_port(ADDRESS_PORT, Width::Dword, 1 << 31 | u32::from(bdf.bits()) << 8 | at))
    };
    select(ONE, 0);
    assert_eq!(root.read_port(DATA_PORT, Width::Dword), Some(0x0001_1b36));
    assert_eq!(root.read_port(DATA_PORT + 2, Width::Word), Some(1));
    assert_eq!(root.read_port(DATA_PORT + 1, Width::Byte), Some(0x1b));
    assert_eq!(root.read_port(DATA_PORT + 2, Width::Dword), None, "beyond the register");
    assert_eq!(root.read_port(ADDRESS_PORT, Width::Dword), Some(0x8000_1800));
    // Narrower accesses are for other registers.
    assert_eq!(root.read_port(ADDRESS_PORT, Width::Byte), None);
    assert!(!root.write_port(ADDRESS_PORT + 1, Width::Byte, 6));
    select(OTHER, 0);
    assert_eq!(root.read_port(DATA_PORT, Width::Word), Some(0xffff));
    select(ONE, 0x3c);
    assert!(root.write_port(DATA_PORT, Width::Byte, 11));
    assert_eq!(root.read_port(DATA_PORT, Width::Byte), Some(11));
    root.write_port(ADDRESS_PORT, Width::Dword, 0x0000_1800);
    assert_eq!(root.read_port(DATA_PORT, Width::Dword), Some(u32::MAX), "not enabled");
}

#[test]
fn ecam_reaches_the_same_registers() {
    let bench = bench();
    bench.add(ONE);
    let base = u64::from(ONE.bits()) << 12;
    assert_eq!(bench.root.read_ecam(base, Width::Qword), 0x0000_0000_0001_1b36);
    bench.root.write_ecam(base + 0x3c, Width::Byte, 5);
    assert_eq!(bench.root.read_ecam(base + 0x3c, Width::Byte), 5);
    assert_eq!(bench.root.read_ecam(base + 0x1000, Width::Dword), 0xffff_ffff);
    assert_eq!(bench.root.read_ecam(u64::MAX, Width::Byte), 0xff);
}

#[test]
fn registers_and_memory_move_with_their_base_addresses() {
    let bench = bench();
    bench.add(ONE);
    bench.set(ONE, reg::BAR0, 0xc000);
    bench.set(ONE, reg::BAR0 + 4, 0xfeb0_0000);
    bench.set(ONE, reg::BAR0 + 8, 0xe000_0000);
    assert_eq!(bench.pio.read(0xc000, Width::Dword), 0xffff_ffff);
    bench.set(ONE, reg::COMMAND, 3);
    bench.pio.write(0xc000, Width::Dword, 0x1234_5678);
    assert_eq!(bench.mmio.read(0xfeb0_0000, Width::Dword), 0x1234_5678);
    bench.memory.write(0xe000_0000, b"frame").unwrap();
    bench.set(ONE, reg::BAR0, 0xc040);
    assert_eq!(bench.pio.read(0xc000, Width::Dword), 0xffff_ffff);
    assert_eq!(bench.pio.read(0xc040, Width::Dword), 0x1234_5678);
    bench.set(ONE, reg::BAR0 + 8, 0xd000_0000);
    assert!(bench.memory.page(0xe000_0000).is_none());
    assert_eq!(bench.memory.read_obj::<[u8; 5]>(0xd000_0000).unwrap(), *b"frame");
    bench.set(ONE, reg::COMMAND, 0);
    assert!(bench.memory.page(0xd000_0000).is_none());
    assert_eq!(bench.mmio.read(0xfeb0_0000, Width::Dword), 0xffff_ffff);
}

#[test]
fn of_two_at_one_place_one_answers_until_it_moves() {
    let bench = bench();
    bench.add(ONE);
    bench.add(OTHER);
    for bdf in [ONE, OTHER] {
        bench.set(bdf, reg::BAR0, 0xc000);
        bench.set(bdf, reg::COMMAND, 1);
    }
    bench.pio.write(0xc000, Width::Dword, 7);
    bench.set(ONE, reg::BAR0, 0xc100);
    assert_eq!(bench.pio.read(0xc000, Width::Dword), 0);
    assert_eq!(bench.pio.read(0xc100, Width::Dword), 7);
    bench.root.remove(ONE);
    assert_eq!(bench.pio.read(0xc100, Width::Dword), 0xffff_ffff);
    assert_eq!(bench.root.functions().len(), 1);
}

/// A port at 00:1c.0 with wire 1 behind it, and a bridge there with wire 2 behind it.
fn bench_with_bridges() -> Bench {
    let bench = bench();
    let clock: Arc<dyn Clock> = Arc::new(TestClock::new());
    for (wire, at) in [(1, PORT), (2, NESTED)] {
        bench.root.add_wire(wire, at);
        let bridge = PciBridge::new();
        bench.root.add(
            at,
            Slot::new(&at.to_string(), bridge, Arc::clone(&clock), Arc::new(NoWake)),
        );
    }
    bench.add(Bdf::new(1, 3, 0));
    bench.add(Bdf::new(2, 4, 0));
    bench
}

const PORT: Bdf = Bdf::new(0, 0x1c, 0);
const NESTED: Bdf = Bdf::new(1, 0, 0);

#[test]
fn buses_behind_bridges_have_the_numbers_that_the_guest_gives_them() {
    let bench = bench_with_bridges();
    let root = &bench.root;
    let id = |bus, device| root.read(Bdf::new(bus, device, 0), 0, Width::Dword);
    assert!(
        (1..=u8::MAX).all(|bus| id(bus, 3) == u32::MAX),
        "no bus has a number yet"
    );
    bench.set(PORT, reg1::PRIMARY, 0x0009_0500);
    assert_eq!((id(5, 3), id(5, 4), id(1, 3)), (0x0001_1b36, u32::MAX, u32::MAX));
    bench.set(Bdf::new(5, 0, 0), reg1::PRIMARY, 0x0008_0705);
    assert_eq!((id(7, 4), id(7, 3), id(8, 4)), (0x0001_1b36, u32::MAX, u32::MAX));
    let base = u64::from(Bdf::new(7, 4, 0).bits()) << 12;
    assert_eq!(root.read_ecam(base, Width::Dword), 0x0001_1b36);
    bench.set(PORT, reg1::PRIMARY, 0x0006_0500);
    assert_eq!(id(7, 4), u32::MAX, "beyond the subordinate of the bridge above");
}

#[test]
fn functions_decode_what_all_bridges_above_pass_on() {
    let bench = bench_with_bridges();
    bench.set(PORT, reg1::PRIMARY, 0x0009_0500);
    bench.set(Bdf::new(5, 0, 0), reg1::PRIMARY, 0x0007_0705);
    let (near, far) = (Bdf::new(5, 3, 0), Bdf::new(7, 4, 0));
    for (bdf, memory) in [(near, 0xfe80_0000), (far, 0xfe90_0000)] {
        bench.set(bdf, reg::BAR0 + 4, memory);
        bench.set(bdf, reg::BAR0 + 8, memory + 0x20_0000);
        bench.set(bdf, reg::COMMAND, 3);
    }
    let answers = |at: u64| bench.mmio.read(at, Width::Dword) != 0xffff_ffff;
    let seen = || [0xfe80_0000, 0xfe90_0000].map(answers);
    assert_eq!(seen(), [false, false]);
    bench.set(PORT, reg::COMMAND, 3);
    assert_eq!(seen(), [true, false]);
    assert!(bench.memory.page(0xfea0_0000).is_some() && bench.memory.page(0xfeb0_0000).is_none());
    bench.set(Bdf::new(5, 0, 0), reg::COMMAND, 3);
    assert_eq!(seen(), [true, true]);
    assert!(bench.memory.page(0xfeb0_0000).is_some());
    bench.set(PORT, reg::COMMAND, 0);
    assert_eq!(seen(), [false, false]);
    assert!(bench.memory.page(0xfea0_0000).is_none() && bench.memory.page(0xfeb0_0000).is_none());
}

#[test]
fn secondary_reset_resets_all_that_is_behind() {
    let bench = bench_with_bridges();
    bench.set(PORT, reg1::PRIMARY, 0x0009_0500);
    bench.set(Bdf::new(5, 0, 0), reg1::PRIMARY, 0x0007_0705);
    for bdf in [Bdf::new(5, 3, 0), Bdf::new(7, 4, 0)] {
        bench.set(bdf, reg::BAR0, 0xc000);
    }
    bench
        .root
        .write(PORT, reg1::CONTROL, Width::Word, control::RESET.into());
    bench.root.write(PORT, reg1::CONTROL, Width::Word, 0);
    let at = |bdf| bench.root.read(bdf, reg::BAR0, Width::Dword);
    assert_eq!(at(Bdf::new(5, 3, 0)), 1);
    assert_eq!(at(Bdf::new(7, 4, 0)), u32::MAX, "the bridge above it has no bus number");
    bench.set(Bdf::new(5, 0, 0), reg1::PRIMARY, 0x0007_0705);
    assert_eq!(at(Bdf::new(7, 4, 0)), 1);
}
