//! The controller as drivers use it.

use device_model::TestClock;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use proptest::prelude::*;
use test_kit::IrqProbe;
use test_kit::contract;
use test_kit::fuzz_registers;

use super::*;
use crate::dma8237::Dma8237;

const BUFFER: u64 = 0x1_0000;

struct Bench {
    clock: TestClock,
    probe: Arc<IrqProbe>,
    memory: Arc<GuestMemory>,
    dma: Dma8237,
    fdc: Fdc,
}

/// An image whose sectors begin with their number.
fn image(sectors: u32) -> Vec<u8> {
    (0..sectors)
        .flat_map(|number| {
            let mut sector = vec![0xE5; SECTOR];
            sector[..4].copy_from_slice(&number.to_le_bytes());
            sector
        })
        .collect()
}

fn bench() -> Bench {
    let mut memory = GuestMemory::new();
    let ram = MemoryRegion::new("ram", Kind::Ram, 1 << 20).unwrap();
    memory.add(0, Arc::new(ram)).unwrap();
    let memory = Arc::new(memory);
    let (clock, probe) = (TestClock::new(), IrqProbe::new());
    let dma = Dma8237::new(memory.clone());
    let mut fdc = Fdc::new(Arc::new(clock.clone()), probe.line(6), dma.channel(2), 1);
    assert!(fdc.insert(0, Some(Box::new(image(2880)))));
    Bench {
        clock,
        probe,
        memory,
        dma,
        fdc,
    }
}

impl Bench {
    fn out(&mut self, offset: u64, value: u8) {
        let at = At { region: PORTS, offset };
        self.fdc.write(at, Width::Byte, value.into()).unwrap();
        self.fdc.poll(self.clock.now());
    }

    fn input(&mut self, offset: u64) -> u8 {
        let at = At { region: PORTS, offset };
        self.fdc.read(at, Width::Byte).unwrap() as u8
    }

    fn pass(&mut self) {
        let now = self.clock.advance(10_000_000);
        self.fdc.poll(now);
    }

    fn command(&mut self, bytes: &[u8]) {
        for byte in bytes {
            assert_eq!(self.input(4) & 0xC0, 0x80, "ready for a byte");
            self.out(5, *byte);
        }
    }

    fn result(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.input(4) & 0xC0 == 0xC0 {
            bytes.push(self.input(5));
        }
        bytes
    }

    /// Resets, senses the drives, selects 500 kbit/s, starts the motor and recalibrates.
    fn start(&mut self, specify: u8) {
        self.out(2, 0);
        self.out(2, 0x1C);
        self.pass();
        for drive in 0..4 {
            self.command(&[8]);
            assert_eq!(self.result(), [0xC0 | drive, 0]);
        }
        let at = At { region: DIR, offset: 0 };
        self.fdc.write(at, Width::Byte, 0).unwrap();
        self.command(&[3, 0xAF, specify]);
        self.command(&[7, 0]);
        self.pass();
        assert!(self.probe.level(6));
        self.command(&[8]);
        assert_eq!(self.result(), [0x20, 0]);
        assert!(!self.probe.level(6));
    }

    /// Programs channel 2: mode, and bytes less one.
    fn dma(&mut self, mode: u64, count: u64) {
        let writes = [
            (0xC, 0),
            (4, 0),
            (4, 0),
            (5, count & 0xff),
            (5, count >> 8),
            (0xB, mode | 2),
            (0xA, 2),
        ];
        for (offset, value) in writes {
            self.dma.write(At { region: 0, offset }, Width::Byte, value).unwrap();
        }
        let page = At { region: 2, offset: 1 };
        self.dma.write(page, Width::Byte, BUFFER >> 16).unwrap();
    }

    fn seek(&mut self, cylinder: u8) {
        self.command(&[0xF, 0, cylinder]);
        assert_eq!(self.input(4) & 1, 1, "drive 0 seeks");
        self.pass();
        self.command(&[8]);
        assert_eq!(self.result(), [0x20, cylinder]);
    }
}

#[test]
fn reset_interrupts_and_every_drive_is_polled() {
    let mut bench = bench();
    bench.start(2);
    bench.command(&[8]);
    assert_eq!(bench.result(), [0x80], "nothing left to sense");
    bench.command(&[0x10]);
    assert_eq!(bench.result(), [0x90]);
    bench.command(&[0x1F]);
    assert_eq!(bench.result(), [0x80], "no such command");
}

#[test]
fn sectors_arrive_by_dma_across_both_sides() {
    let mut bench = bench();
    bench.start(2);
    bench.seek(3);
    bench.dma(0x44, 3 * 512 - 1);
    bench.command(&[0xE6, 0, 3, 0, 17, 2, 18, 0x1B, 0xFF]);
    bench.pass();
    assert!(bench.probe.level(6));
    // Side 1, sector 2 is next.
    assert_eq!(bench.result(), [0, 0, 0, 3, 1, 2, 2]);
    assert!(!bench.probe.level(6));
    let numbers: Vec<u32> = (0..3)
        .map(|i| bench.memory.read_obj(BUFFER + i * 512).unwrap())
        .collect();
    assert_eq!(numbers, [3 * 36 + 16, 3 * 36 + 17, 3 * 36 + 18]);
}

#[test]
fn written_sector_reads_back_through_the_fifo() {
    let mut bench = bench();
    bench.start(2);
    bench.memory.write(BUFFER, &[0xAB; 512]).unwrap();
    bench.dma(0x48, 511);
    bench.command(&[0x45, 0, 0, 0, 5, 2, 18, 0x1B, 0xFF]);
    bench.pass();
    assert_eq!(bench.result(), [0, 0, 0, 0, 0, 6, 2]);
    bench.start(3);
    bench.command(&[0x46, 0, 0, 0, 5, 2, 5, 0x1B, 0xFF]);
    bench.pass();
    assert!(bench.probe.level(6));
    let bytes: Vec<u8> = (0..512)
        .map(|_| {
            assert_eq!(bench.input(4), 0xF0);
            bench.input(5)
        })
        .collect();
    assert_eq!(bytes, [0xAB; 512]);
    // Without a terminal count the end of the track is an error.
    assert_eq!(bench.result(), [0x40, 0x80, 0, 1, 0, 1, 2]);
}

#[test]
fn bytes_through_the_fifo_are_written() {
    let mut bench = bench();
    bench.start(3);
    bench.command(&[0x45, 0, 0, 0, 1, 2, 1, 0x1B, 0xFF]);
    bench.pass();
    for _ in 0..512 {
        assert_eq!(bench.input(4), 0xB0);
        bench.out(5, 0x5A);
    }
    assert_eq!(bench.result()[..2], [0x40, 0x80]);
    bench.start(2);
    bench.dma(0x44, 511);
    bench.command(&[0x46, 0, 0, 0, 1, 2, 18, 0x1B, 0xFF]);
    bench.pass();
    assert_eq!(bench.result()[0], 0);
    assert_eq!(bench.memory.read_obj::<[u8; 512]>(BUFFER).unwrap(), [0x5A; 512]);
}

#[test]
fn track_is_formatted_with_its_filler() {
    let mut bench = bench();
    bench.start(2);
    bench.seek(1);
    let ids: Vec<u8> = (1..=18).flat_map(|sector| [1, 0, sector, 2]).collect();
    bench.memory.write(BUFFER, &ids).unwrap();
    bench.dma(0x48, ids.len() as u64 - 1);
    bench.command(&[0x4D, 0, 2, 18, 0x54, 0xF6]);
    bench.pass();
    assert_eq!(bench.result()[..3], [0, 0, 0]);
    bench.dma(0x44, 18 * 512 - 1);
    bench.command(&[0x46, 0, 1, 0, 1, 2, 18, 0x1B, 0xFF]);
    bench.pass();
    assert_eq!(bench.result()[0], 0);
    let mut track = vec![0; 18 * 512];
    bench.memory.read(BUFFER, &mut track).unwrap();
    assert!(track.iter().all(|byte| *byte == 0xF6));
}

#[test]
fn errors_are_told_apart() {
    let mut bench = bench();
    bench.start(2);
    bench.dma(0x54, 511);
    let mut read = |bytes: &[u8]| {
        bench.command(bytes);
        bench.pass();
        bench.result()[..3].to_vec()
    };
    assert_eq!(
        read(&[0x46, 0, 7, 0, 1, 2, 18, 0x1B, 0xFF]),
        [0x40, 4, 0x10],
        "another cylinder"
    );
    assert_eq!(
        read(&[0x46, 0, 0, 0, 19, 2, 19, 0x1B, 0xFF]),
        [0x40, 4, 0],
        "no such sector"
    );
    assert_eq!(
        read(&[0x46, 0, 0, 0, 1, 3, 18, 0x1B, 0xFF]),
        [0x40, 4, 0],
        "another size"
    );
    assert_eq!(read(&[0x46, 1, 0, 0, 1, 2, 18, 0x1B, 0xFF]), [0x49, 1, 0], "no drive");
    assert_eq!(read(&[0x4A, 0])[..2], [0, 0]);
    let at = At { region: DIR, offset: 0 };
    bench.fdc.write(at, Width::Byte, 2).unwrap();
    bench.command(&[0x4A, 0]);
    bench.pass();
    assert_eq!(bench.result()[..2], [0x40, 1], "another data rate");
}

#[test]
fn change_line_is_high_until_the_head_moves_over_a_medium() {
    let mut bench = bench();
    let at = At { region: DIR, offset: 0 };
    bench.out(2, 0x1C);
    assert_eq!(bench.fdc.read(at, Width::Byte), Ok(0x80));
    bench.start(2);
    assert_eq!(bench.fdc.read(at, Width::Byte), Ok(0));
    bench.fdc.insert(0, None);
    bench.command(&[0xF, 0, 1]);
    bench.pass();
    assert_eq!(bench.fdc.read(at, Width::Byte), Ok(0x80), "no medium");
    bench.out(2, 0x0C);
    assert_eq!(bench.fdc.read(at, Width::Byte), Ok(0), "the motor stands");
    assert!(!bench.fdc.insert(1, None), "no such drive");
}

#[test]
fn sizes_of_media_are_known() {
    for sectors in [320u64, 360, 640, 720, 1440, 2400, 2880, 3360, 5760] {
        assert!(is_floppy_size(sectors * 512), "{sectors}");
    }
    assert!(is_floppy_size(4096), "cut short");
    assert!(!is_floppy_size(0) && !is_floppy_size(100 << 20));
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || {
        let mut bench = bench();
        let mut fdc = Fdc::new(Arc::new(clock.clone()), IrqLine::detached(), bench.dma.channel(2), 1);
        std::mem::swap(&mut fdc.drives, &mut bench.fdc.drives);
        Box::new(fdc)
    });
}

proptest! {
    #[test]
    fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
        let mut bench = bench();
        let clock = bench.clock.clone();
        bench.dma(0x54, 0xFFFF);
        fuzz_registers(&mut bench.fdc, &clock, &bytes);
    }
}
