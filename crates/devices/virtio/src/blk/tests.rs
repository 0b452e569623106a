//! Tests of the disk, as a driver.

use std::sync::Mutex;

use device_model::Width;
use storage::Inline;
use storage::Job;
use storage::MemoryMedium;
use test_kit::IrqProbe;
use test_kit::TestClock;
use test_kit::virtio::Link;

use super::*;
use crate::Mmio;
use crate::testing::Bench;
use crate::testing::memory;

const LEN: u64 = 1 << 20;
/// Header, data and status of a request.
const HEADER: u64 = 0x1000;
const DATA: u64 = 0x2000;
const STATUS: u64 = 0x1800;

fn bytes() -> Vec<u8> {
    (0..LEN).map(|n| (n / 512 + n % 512) as u8).collect()
}

fn blk(medium: &Arc<MemoryMedium>, memory: &Arc<GuestMemory>, executor: Arc<dyn Executor>, queues: u16) -> Blk {
    let config = BlkConfig {
        serial: "VB123".to_owned(),
        queues,
    };
    let waker: Waker = Arc::new(|| ());
    Blk::new(Arc::clone(medium) as _, config, memory, &executor, &waker)
}

struct Disk {
    bench: Bench,
    medium: Arc<MemoryMedium>,
}

fn disk(link: Link, queues: u16) -> Disk {
    let (memory, medium) = (memory(), Arc::new(MemoryMedium::new(bytes())));
    let device = blk(&medium, &memory, Arc::new(Inline), queues);
    let bench = Bench::with(link, &memory, device);
    Disk { bench, medium }
}

impl Disk {
    fn header(&self, kind: u32, sector: u64) {
        let header = [kind, 0, sector as u32, (sector >> 32) as u32];
        self.bench.memory.write_obj(HEADER, &header).unwrap();
        self.bench.memory.write_obj(STATUS, &0xffu8).unwrap();
    }

    /// A request with data that the device reads or writes; its status, and the bytes that were written.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32)], writes: bool) -> (u8, u32) {
        self.header(kind, sector);
        let (mut readable, mut writable) = (vec![(HEADER, 16)], Vec::new());
        if writes {
            writable.extend(data);
        } else {
            readable.extend(data);
        }
        writable.push((STATUS, 1));
        let head = self.bench.offer(0, &readable, &writable);
        let (used, len) = self.bench.used(0).unwrap();
        assert_eq!(used, head);
        (self.bench.memory.read_obj(STATUS).unwrap(), len)
    }

    fn range(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let words = ranges.iter().flat_map(|(first, count, flags)| {
            let words = [*first as u32, (*first >> 32) as u32, *count, *flags];
            words.into_iter().flat_map(u32::to_le_bytes)
        });
        let words: Vec<u8> = words.collect();
        self.bench.memory.write(DATA, &words).unwrap();
        self.request(kind, 0, &[(DATA, words.len() as u32)], false).0
    }
}

#[test]
fn sectors_are_read_and_written_over_every_interface() {
    for link in [Link::Mmio, Link::Pci, Link::Legacy] {
        let mut disk = disk(link, 1);
        disk.bench.start(u64::MAX);
        assert_eq!(
            disk.request(kind::IN, 7, &[(DATA, 100), (0x4000, 924)], true),
            (OK, 1025)
        );
        let mut got = vec![0; 100];
        disk.bench.memory.read(DATA, &mut got).unwrap();
        assert_eq!(got, bytes()[7 * 512..][..100]);
        disk.bench.memory.write(DATA, &[9; 512]).unwrap();
        assert_eq!(disk.request(kind::OUT, 3, &[(DATA, 512)], false), (OK, 1));
        assert_eq!(disk.medium.bytes()[3 * 512..][..512], [9; 512]);
        assert_eq!(disk.request(kind::FLUSH, 0, &[], false), (OK, 1));
        assert_eq!(disk.request(kind::GET_ID, 0, &[(DATA, 20)], true), (OK, 21));
        let serial: [u8; 8] = disk.bench.memory.read_obj(DATA).unwrap();
        assert_eq!(serial, *b"VB123\0\0\0");
        assert_eq!(disk.request(99, 0, &[], false), (UNSUPPORTED, 1));
    }
}

#[test]
fn header_and_status_may_be_anywhere() {
    let mut disk = disk(Link::Mmio, 1);
    disk.bench.start(u64::MAX);
    disk.header(kind::IN, 1);
    let readable = [(HEADER, 5), (HEADER + 5, 11)];
    // Status in the same buffer as the data.
    disk.bench.offer(0, &readable, &[(DATA, 513)]);
    assert_eq!(disk.bench.used(0), Some((0, 513)));
    let mut got = vec![0xff; 513];
    disk.bench.memory.read(DATA, &mut got).unwrap();
    assert_eq!(got[..512], bytes()[512..1024]);
    assert_eq!(got[512], OK);
}

#[test]
fn what_lies_beyond_the_end_or_is_no_whole_sector_fails() {
    let mut disk = disk(Link::Mmio, 1);
    disk.bench.start(u64::MAX);
    let last = LEN / 512 - 1;
    assert_eq!(disk.request(kind::IN, last, &[(DATA, 512)], true), (OK, 513));
    for (sector, len) in [(last, 1024), (last + 1, 512), (u64::MAX, 512), (0, 100)] {
        assert_eq!(disk.request(kind::IN, sector, &[(DATA, len)], true), (IO_ERROR, 1));
        assert_eq!(disk.request(kind::OUT, sector, &[(DATA, len)], false), (IO_ERROR, 1));
    }
    assert_eq!(disk.medium.bytes(), bytes());
}

#[test]
fn ranges_are_given_back_and_zeroed() {
    let mut disk = disk(Link::Pci, 1);
    disk.bench.start(u64::MAX);
    assert_eq!(disk.range(kind::DISCARD, &[(8, 8, 0), (32, 1, 0), (40, 0, 0)]), OK);
    let mut expected = bytes();
    expected[8 * 512..16 * 512].fill(0);
    expected[32 * 512..33 * 512].fill(0);
    assert_eq!(disk.medium.bytes(), expected);
    assert_eq!(disk.range(kind::WRITE_ZEROES, &[(100, 2, 0)]), OK);
    assert_eq!(disk.range(kind::WRITE_ZEROES, &[(102, 1, UNMAP)]), OK);
    expected[100 * 512..103 * 512].fill(0);
    assert_eq!(disk.medium.bytes(), expected);
    for (kind, ranges, status) in [
        (kind::DISCARD, [(0, 1, UNMAP), (0, 1, 0)].as_slice(), UNSUPPORTED),
        (kind::WRITE_ZEROES, &[(0, 1, 2)], UNSUPPORTED),
        (kind::WRITE_ZEROES, &[(0, 1, 0), (1, 1, 0)], IO_ERROR),
        (kind::DISCARD, &[(2048, 1, 0)], IO_ERROR),
        (kind::DISCARD, &[(u64::MAX, 1, 0)], IO_ERROR),
        (kind::DISCARD, &[(0, u32::MAX, 0)], IO_ERROR),
        (kind::DISCARD, &[], IO_ERROR),
    ] {
        assert_eq!(disk.range(kind, ranges), status, "{ranges:?}");
    }
    assert_eq!(disk.medium.bytes(), expected);
}

#[test]
fn request_without_header_or_status_breaks_the_device() {
    for (readable, writable) in [
        ([(HEADER, 15)].as_slice(), [(STATUS, 1)].as_slice()),
        (&[(HEADER, 16)], &[]),
    ] {
        let mut disk = disk(Link::Mmio, 1);
        disk.bench.start(u64::MAX);
        disk.bench.offer(0, readable, writable);
        assert!(disk.bench.is_broken());
        assert_eq!(disk.bench.used(0), None);
    }
}

#[test]
fn cache_mode_is_the_driver_s() {
    let medium = Arc::new(MemoryMedium::new(bytes()));
    let mut device = blk(&medium, &memory(), Arc::new(Inline), 1);
    assert!(device.is_through(0), "nobody could flush");
    assert!(!device.is_through(blk_feature::FLUSH));
    assert!(!device.is_through(blk_feature::CONFIG_WCE));
    device.write_config(30, &[9, 9, 0]);
    assert!(device.is_through(blk_feature::CONFIG_WCE));
    assert_eq!(device.config()[32], 0);
}

#[test]
fn configuration_says_what_there_is() {
    let mut disk = disk(Link::Mmio, 3);
    let config = |bench: &mut Bench, offset, width| bench.config(offset, width);
    let bench = &mut disk.bench;
    assert_eq!(config(bench, 0, Width::Dword), LEN / 512);
    assert_eq!(config(bench, 12, Width::Dword), 254);
    assert_eq!(config(bench, 34, Width::Word), 3);
    assert_eq!(config(bench, 60, Width::Dword), 0);
    assert_eq!(Link::Mmio.queue_size(&mut *bench.device, 2), 256);
    assert_eq!(Link::Mmio.queue_size(&mut *bench.device, 3), 0);
}

/// Keeps jobs until they are let go.
#[derive(Default)]
struct Later(Mutex<Vec<Job>>);

impl Executor for Later {
    fn run(&self, job: Job) {
        self.0.lock().unwrap().push(job);
    }
}

impl Later {
    fn let_go(&self) {
        let jobs = std::mem::take(&mut *self.0.lock().unwrap());
        for job in jobs.into_iter().rev() {
            job();
        }
    }
}

#[test]
fn queues_work_side_by_side_and_end_in_any_order() {
    let (memory, medium, later) = (
        memory(),
        Arc::new(MemoryMedium::new(bytes())),
        Arc::new(Later::default()),
    );
    let mut bench = Bench::with(Link::Pci, &memory, blk(&medium, &memory, later.clone(), 2));
    bench.start(u64::MAX);
    for (queue, sector) in [(0, 1u32), (1, 2), (0, 3)] {
        let at = 0x1_0000 + u64::from(sector) * 0x1000;
        memory.write_obj(at, &[kind::IN, 0, sector, 0]).unwrap();
        bench.offer(queue, &[(at, 16)], &[(at + 0x200, 513)]);
    }
    assert_eq!((bench.used(0), bench.used(1)), (None, None));
    later.let_go();
    bench.poll();
    assert_eq!(
        [bench.used(0), bench.used(0), bench.used(1)],
        [Some((2, 513)), Some((0, 513)), Some((0, 513))]
    );
    assert_eq!(memory.read_obj::<u8>(0x1_3200).unwrap(), bytes()[3 * 512]);
}

#[test]
fn what_was_asked_for_goes_on_after_a_restore_and_not_after_a_reset() {
    let (memory, medium, later) = (
        memory(),
        Arc::new(MemoryMedium::new(bytes())),
        Arc::new(Later::default()),
    );
    let mut bench = Bench::with(Link::Mmio, &memory, blk(&medium, &memory, later.clone(), 1));
    bench.start(u64::MAX);
    memory.write_obj(HEADER, &[kind::IN, 0, 1, 0]).unwrap();
    bench.offer(0, &[(HEADER, 16)], &[(DATA, 513)]);
    assert!(!bench.device.quiesce());
    let saved = bench.device.save_blob();
    bench.link.set_status(&mut *bench.device, 0);
    later.let_go();
    bench.poll();
    assert_eq!(bench.used(0), None);
    assert_eq!(memory.read_obj::<u8>(DATA).unwrap(), 0);
    let mut other = Bench::with(Link::Mmio, &memory, blk(&medium, &memory, Arc::new(Inline), 1));
    other.device.restore_blob(&saved).unwrap();
    assert_eq!(other.device.save_blob(), saved);
    other.poll();
    assert_eq!(bench.used(0), Some((0, 513)));
    assert_eq!(memory.read_obj::<u8>(DATA).unwrap(), bytes()[512]);
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    let (memory, medium) = (memory(), Arc::new(MemoryMedium::new(bytes())));
    let probe = IrqProbe::new();
    test_kit::contract(&clock, || {
        let device = blk(&medium, &memory, Arc::new(Inline), 2);
        Box::new(Mmio::new(device, probe.line(0), &memory))
    });
}
