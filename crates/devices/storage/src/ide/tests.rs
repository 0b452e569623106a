//! Tests of the IDE controller.

use guest_memory::Kind;
use guest_memory::MemoryRegion;
use proptest::prelude::*;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::contract;
use test_kit::fuzz_registers;

use super::*;
use crate::Identity;
use crate::Inline;
use crate::Medium;
use crate::MemoryMedium;

struct Bench {
    probe: Arc<IrqProbe>,
    memory: Arc<GuestMemory>,
    disk: Arc<MemoryMedium>,
    ide: Ide,
}

fn identity() -> Identity {
    Identity {
        model: "OXBOW TEST".to_owned(),
        serial: "S1".to_owned(),
        firmware: "1".to_owned(),
    }
}

fn bench() -> Bench {
    let probe = IrqProbe::new();
    let mut memory = GuestMemory::new();
    memory
        .add(0, Arc::new(MemoryRegion::new("ram", Kind::Ram, 1 << 20).unwrap()))
        .unwrap();
    let memory = Arc::new(memory);
    let bytes = (0..1u32 << 20).map(|n| (n / 512 + n % 512) as u8).collect();
    let disk = Arc::new(MemoryMedium::new(bytes));
    let disc = Arc::new(MemoryMedium::new((0..1u32 << 18).map(|n| (n / 2048) as u8).collect()));
    let drives = [
        Some(Drive::disk(disk.clone(), identity())),
        None,
        Some(Drive::optical(Some(disc), identity())),
        None,
    ];
    let executor: Arc<dyn Executor> = Arc::new(Inline);
    let waker: Waker = Arc::new(|| ());
    let ide = Ide::new([probe.line(14), probe.line(15)], drives, &memory, &executor, &waker);
    Bench {
        probe,
        memory,
        disk,
        ide,
    }
}

impl Bench {
    fn out(&mut self, region: usize, offset: u64, value: u64) {
        self.ide.write(At { region, offset }, Width::Byte, value).unwrap();
        self.ide.poll(VmTime::ZERO);
    }

    fn input(&mut self, region: usize, offset: u64) -> u64 {
        self.ide.read(At { region, offset }, Width::Byte).unwrap()
    }

    fn words(&mut self, region: usize, count: usize) -> Vec<u8> {
        let mut read = || self.ide.read(At { region, offset: 0 }, Width::Word).unwrap() as u16;
        (0..count).flat_map(|_| read().to_le_bytes()).collect()
    }

    fn command(&mut self, region: usize, count: u64, lba: u64, code: u64) {
        for (offset, value) in [
            (2, count),
            (3, lba),
            (4, lba >> 8),
            (5, lba >> 16),
            (6, 0xE0),
            (7, code),
        ] {
            self.out(region, offset, value & 0xFF);
        }
    }
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || Box::new(bench().ide));
}

#[test]
fn sectors_come_by_pio_with_an_interrupt_each() {
    let mut bench = bench();
    bench.command(0, 2, 5, 0x20);
    let disk = bench.disk.bytes();
    for sector in 5..7 {
        assert!(bench.probe.level(14));
        assert_eq!(bench.input(0, 7), 0x58);
        assert!(!bench.probe.level(14), "reading the status clears it");
        assert_eq!(bench.words(0, 256), disk[sector * 512..][..512]);
    }
    assert_eq!(bench.input(0, 7), 0x50);
}

#[test]
fn sectors_are_written_by_pio() {
    let mut bench = bench();
    bench.command(0, 2, 9, 0x30);
    assert!(!bench.probe.level(14));
    for word in 0..512u64 {
        assert_eq!(bench.input(1, 0) & 8, 8);
        let at = At { region: 0, offset: 0 };
        bench.ide.write(at, Width::Word, word).unwrap();
    }
    bench.ide.poll(VmTime::ZERO);
    assert_eq!(bench.input(0, 7), 0x50);
    let disk = bench.disk.bytes();
    assert_eq!(disk[9 * 512..][..4], [0, 0, 1, 0]);
    assert_eq!(disk[10 * 512 + 510..][..2], [255, 1]);
}

#[test]
fn bus_master_carries_sectors_to_regions_and_interrupts() {
    let mut bench = bench();
    bench.ide.config_write(4, Width::Word, 5);
    // 512 bytes to 1000h, the rest to 2000h.
    bench
        .memory
        .write_obj(0x100, &[0x1000u32, 0x200, 0x2000, 0x8000_0200])
        .unwrap();
    bench
        .ide
        .write(At { region: 4, offset: 4 }, Width::Dword, 0x100)
        .unwrap();
    bench.command(0, 2, 3, 0xC8);
    assert_eq!(bench.input(1, 0), 0x80);
    bench.out(4, 0, 9);
    assert!(bench.probe.level(14));
    assert_eq!(bench.input(4, 2), 4, "interrupt, not active");
    let disk = bench.disk.bytes();
    let mut got = vec![0; 512];
    bench.memory.read(0x2000, &mut got).unwrap();
    assert_eq!(got, disk[4 * 512..][..512]);
    // A table that is too short is an error of both.
    bench.memory.write_obj(0x100, &[0x1000u32, 0x8000_0200]).unwrap();
    bench.out(4, 0, 0);
    bench.out(4, 2, 6);
    bench.command(0, 2, 3, 0xC8);
    bench.out(4, 0, 9);
    assert_eq!((bench.input(0, 7), bench.input(4, 2)), (0x51, 6));
}

#[test]
fn disc_is_read_by_packets() {
    let mut bench = bench();
    assert_eq!((bench.input(2, 4), bench.input(2, 5)), (0x14, 0xEB));
    let mut packet = |code: u16, bytes: [u16; 5]| {
        bench.out(2, 4, 0);
        bench.out(2, 5, 8);
        bench.out(2, 7, 0xA0);
        for word in std::iter::once(code).chain(bytes) {
            bench
                .ide
                .write(At { region: 2, offset: 0 }, Width::Word, word.into())
                .unwrap();
        }
        bench.ide.poll(VmTime::ZERO);
        bench.input(2, 7)
    };
    assert_eq!(packet(0, [0; 5]), 0x41, "unit attention");
    // READ(10) of blocks 7 and 8.
    assert_eq!(packet(0x28, [0, 0x0700, 0, 2, 0]), 0x48);
    for block in [7, 8] {
        assert_eq!((bench.input(2, 4), bench.input(2, 5)), (0, 8));
        assert_eq!(bench.words(2, 1024), [block; 2048]);
    }
    assert_eq!((bench.input(2, 7), bench.input(2, 2)), (0x40, 3));
}

#[test]
fn absent_drives_answer_nothing() {
    let mut bench = bench();
    bench.out(0, 6, 0x10);
    bench.out(0, 2, 0x55);
    assert_eq!((bench.input(0, 2), bench.input(0, 7)), (0, 0));
    assert!(bench.disk.size() > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_accesses_cause_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
        let clock = TestClock::new();
        let mut bench = bench();
        fuzz_registers(&mut bench.ide, &clock, &bytes);
    }
}
