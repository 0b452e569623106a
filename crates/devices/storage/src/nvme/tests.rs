//! Tests of the NVMe controller.

use guest_memory::Kind;
use guest_memory::MemoryRegion;
use proptest::prelude::*;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::contract;
use test_kit::fuzz_accesses;

use super::*;
use crate::Inline;
use crate::MemoryMedium;

/// Queues: of the administrator at 1000h and 2000h, of input and output at 3000h and 4000h; data at 8000h.
struct Bench {
    probe: Arc<IrqProbe>,
    memory: Arc<GuestMemory>,
    disk: Arc<MemoryMedium>,
    nvme: Nvme,
    tails: [u64; 2],
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
    let identity = NvmeIdentity {
        model: "OXBOW NVME".to_owned(),
        serial: "S1".to_owned(),
        firmware: "1".to_owned(),
    };
    let media: Vec<Arc<dyn Medium>> = vec![disk.clone(), Arc::new(MemoryMedium::new(vec![5; 8192]))];
    let executor: Arc<dyn Executor> = Arc::new(Inline);
    let waker: Waker = Arc::new(|| ());
    let nvme = Nvme::new(
        (probe.line(0), probe.clone()),
        identity,
        media,
        &memory,
        &executor,
        &waker,
    );
    Bench {
        probe,
        memory,
        disk,
        nvme,
        tails: [0; 2],
    }
}

impl Bench {
    fn write(&mut self, offset: u64, value: u64) {
        let at = At { region: 0, offset };
        self.nvme.write(at, Width::Dword, value).unwrap();
        self.nvme.poll(VmTime::ZERO);
    }

    fn read(&mut self, offset: u64) -> u64 {
        self.nvme.read(At { region: 0, offset }, Width::Dword).unwrap()
    }

    fn start(&mut self) {
        self.nvme.config_write(4, Width::Word, 6);
        for (offset, value) in [(0x24, 0x000F_000F), (0x28, 0x1000), (0x30, 0x2000), (0x14, 0x0046_0001)] {
            self.write(offset, value);
        }
        assert_eq!(self.read(0x1C), 1);
        assert_eq!(self.command(0, 5, 0, 0x4000, [1 | 15 << 16, 3, 0]), 0);
        assert_eq!(self.command(0, 1, 0, 0x3000, [1 | 15 << 16, 1 | 1 << 16, 0]), 0);
    }

    /// Gives a command and returns the status of its completion.
    fn command(&mut self, queue: usize, opcode: u32, namespace: u32, prp: u64, args: [u32; 3]) -> u32 {
        let (sq, cq) = [(0x1000, 0x2000), (0x3000, 0x4000)][queue];
        let tail = self.tails[queue];
        let mut entry = [0u32; 16];
        entry[0] = opcode | (0x100 + tail as u32) << 16;
        entry[1] = namespace;
        entry[6] = prp as u32;
        entry[8] = (prp as u32 & !0xFFF) + 0x1000;
        entry[10..13].copy_from_slice(&args);
        self.memory.write_obj(sq + tail * 64, &entry).unwrap();
        self.tails[queue] = (tail + 1) % 16;
        self.write(0x1000 + queue as u64 * 8, self.tails[queue]);
        let done: [u32; 4] = self.memory.read_obj(cq + tail * 16).unwrap();
        assert_eq!(done[3] & 0xFFFF, 0x100 + tail as u32, "its identifier");
        self.write(0x1004 + queue as u64 * 8, self.tails[queue]);
        done[3] >> 17
    }
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || Box::new(bench().nvme));
}

#[test]
fn sectors_are_read_written_compared_and_zeroed() {
    let mut bench = bench();
    bench.start();
    assert_eq!(bench.command(1, 2, 1, 0x8E00, [7, 0, 1]), 0);
    let mut got = vec![0; 512];
    bench.memory.read(0x8E00, &mut got).unwrap();
    assert_eq!(got, bench.disk.bytes()[7 * 512..][..512]);
    assert_eq!(bench.command(1, 1, 1, 0x8000, [100, 0, 7]), 0);
    assert_eq!(bench.command(1, 5, 1, 0x8000, [100, 0, 7]), 0);
    assert_eq!(bench.command(1, 8, 1, 0, [101, 0, 0]), 0);
    assert_eq!(bench.disk.bytes()[101 * 512..][..512], [0; 512]);
    assert_eq!(bench.command(1, 0, 1, 0, [0; 3]), 0);
    assert_eq!(bench.command(1, 2, 2, 0x8000, [0, 0, 0]), 0);
    assert_eq!(bench.memory.read_obj::<u8>(0x8000).unwrap(), 5, "the other namespace");
    assert_eq!(bench.command(1, 2, 3, 0x8000, [0, 0, 0]), 0x400B);
    assert_eq!(bench.command(1, 2, 1, 0x8000, [2048, 0, 0]), 0x4080);
    assert_eq!(bench.command(1, 2, 1, 0x8000, [0, 0, 0xFFFF]), 0x4002, "more than MDTS");
}

#[test]
fn lists_of_prps_lead_to_pages() {
    let mut bench = bench();
    bench.start();
    // 16 KiB: a page from PRP1, the list at 9000h has the others.
    bench
        .memory
        .write_obj(0x9000, &[0x2_0000u64, 0x3_0000, 0x4_0000])
        .unwrap();
    assert_eq!(bench.command(1, 2, 1, 0x8000, [0, 0, 31]), 0);
    let disk = bench.disk.bytes();
    for (page, at) in [0x8000u64, 0x2_0000, 0x3_0000, 0x4_0000].into_iter().enumerate() {
        let mut got = vec![0; 4096];
        bench.memory.read(at, &mut got).unwrap();
        assert_eq!(got, disk[page * 4096..][..4096]);
    }
    bench.memory.write_obj(0x9000, &[0x2_0008u64]).unwrap();
    assert_eq!(bench.command(1, 2, 1, 0x8000, [0, 0, 31]), 0x4013);
}

#[test]
fn pin_follows_completions_that_were_not_taken() {
    let mut bench = bench();
    bench.start();
    assert!(!bench.probe.level(0));
    bench.memory.write_obj(0x3000, &[2u32, 1]).unwrap();
    bench.write(0x1008, 1);
    assert!(bench.probe.level(0));
    bench.write(0x0C, 1);
    assert!(!bench.probe.level(0), "masked");
    bench.write(0x10, 1);
    bench.write(0x100C, 1);
    assert!(!bench.probe.level(0), "taken");
}

#[test]
fn identify_and_smart_have_what_tools_read() {
    let mut bench = bench();
    bench.start();
    assert_eq!(bench.command(0, 6, 0, 0x8000, [1, 0, 0]), 0);
    let mut page = vec![0; 4096];
    bench.memory.read(0x8000, &mut page).unwrap();
    assert_eq!((&page[24..34], page[516]), (b"OXBOW NVME".as_slice(), 2));
    assert_eq!(bench.command(0, 6, 1, 0x8000, [0, 0, 0]), 0);
    assert_eq!(bench.memory.read_obj::<u64>(0x8000).unwrap(), 2048);
    assert_eq!(bench.command(0, 6, 9, 0x8000, [0, 0, 0]), 0x400B);
    assert_eq!(bench.command(0, 2, u32::MAX, 0x8000, [2 | 127 << 16, 0, 0]), 0);
    assert_eq!(bench.memory.read_obj::<[u8; 4]>(0x8000).unwrap(), [0, 0x2F, 0x01, 100]);
    assert_eq!(bench.command(0, 2, 0, 0x8000, [0x77, 0, 0]), 0x4109);
}

#[test]
fn shutdown_is_complete_once_everything_is_flushed() {
    let mut bench = bench();
    bench.start();
    bench.write(0x14, 0x0046_4001);
    assert_eq!(bench.read(0x1C), 9);
    bench.write(0x14, 0);
    assert_eq!(bench.read(0x1C), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_queues_cause_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        queue in prop::collection::vec(any::<u8>(), 2048),
        opcodes in prop::collection::vec(0u8..16, 16),
    ) {
        let clock = TestClock::new();
        let mut bench = bench();
        bench.start();
        bench.memory.write(0x3000, &queue).unwrap();
        for (slot, opcode) in opcodes.iter().enumerate() {
            let at = 0x3000 + slot as u64 * 64;
            bench.memory.write_obj(at, &[u32::from(*opcode) | 1 << 16, 1]).unwrap();
        }
        bench.write(0x1008, 15);
        fuzz_accesses(&mut bench.nvme, &clock, &bytes);
    }
}
