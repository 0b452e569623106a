//! Tests of the SCSI host, as a driver.

use std::sync::Mutex;

use device_model::Reset;
use device_model::Width;
use storage::Identity;
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

/// Where commands, answers and data are.
const COMMAND: u64 = 0x1000;
const ANSWER: u64 = 0x2000;
const DATA: u64 = 0x4000;
/// Lengths as drivers leave them.
const COMMAND_LEN: u32 = 51;
const ANSWER_LEN: u32 = 108;

/// Keeps jobs until it is told to do them.
#[derive(Default)]
struct Later(Mutex<Vec<Job>>);

impl Later {
    fn work(&self) {
        let jobs = std::mem::take(&mut *self.0.lock().unwrap());
        jobs.into_iter().for_each(|job| job());
    }
}

impl Executor for Later {
    fn run(&self, job: Job) {
        self.0.lock().unwrap().push(job);
    }
}

fn identity() -> Identity {
    Identity {
        model: "OXBOW HARDDISK".to_owned(),
        serial: "SN1".to_owned(),
        firmware: "1.0".to_owned(),
    }
}

/// A disk, a drive, and a place that is free.
fn units(disk: &Arc<MemoryMedium>) -> Vec<Option<LogicalUnit>> {
    vec![
        Some(LogicalUnit::disk(Arc::clone(disk) as _, identity())),
        Some(LogicalUnit::optical(None, identity())),
        None,
    ]
}

fn numbered() -> Arc<MemoryMedium> {
    Arc::new(MemoryMedium::new((0..64 * 512u32).map(|at| (at / 512) as u8).collect()))
}

struct Driver {
    bench: Bench,
    later: Arc<Later>,
}

/// What a command came to: response, status, sense key and code, residual, bytes that were written.
type Seen = (u8, u8, [u8; 2], u32, u32);

impl Driver {
    /// A driver whose units have told their attention; with `inline` workers work at once.
    fn new(link: Link, disk: &Arc<MemoryMedium>, inline: bool) -> Self {
        let memory = memory();
        let later = Arc::new(Later::default());
        let executor: Arc<dyn Executor> = if inline { Arc::new(Inline) } else { later.clone() };
        let waker: Waker = Arc::new(|| ());
        let device = Scsi::new(units(disk), 2, &memory, &executor, &waker);
        let mut bench = Bench::with(link, &memory, device);
        bench.start(u64::MAX);
        let mut driver = Self { bench, later };
        for target in [0, 1] {
            let (_, status, sense, ..) = driver.command([1, target, 0x40, 0], &[0; 6], &[], 0).unwrap();
            assert_eq!((status, sense), (2, [6, 0x29]));
        }
        driver
    }

    fn give(&mut self, lun: [u8; 4], tag: u8, cdb: &[u8], data: &[u8], room: u32) {
        let mut head = vec![0; COMMAND_LEN as usize];
        head[..4].copy_from_slice(&lun);
        head[8] = tag;
        head[19..19 + cdb.len()].copy_from_slice(cdb);
        self.bench.memory.write(COMMAND, &head).unwrap();
        self.bench.memory.write(DATA, data).unwrap();
        let mut readable = vec![(COMMAND, COMMAND_LEN)];
        let mut writable = vec![(ANSWER, ANSWER_LEN)];
        if !data.is_empty() {
            readable.push((DATA, data.len() as u32));
        }
        if room > 0 {
            writable.push((DATA, room));
        }
        self.bench.offer(2, &readable, &writable);
    }

    fn seen(&mut self) -> Option<Seen> {
        self.bench.poll();
        let (_, written) = self.bench.used(2)?;
        let [_, residual]: [u32; 2] = self.bench.memory.read_obj(ANSWER).unwrap();
        let [_, _, status, response]: [u8; 4] = self.bench.memory.read_obj(ANSWER + 8).unwrap();
        let sense: [u8; 18] = self.bench.memory.read_obj(ANSWER + 12).unwrap();
        Some((response, status, [sense[2], sense[12]], residual, written))
    }

    fn command(&mut self, lun: [u8; 4], cdb: &[u8], data: &[u8], room: u32) -> Option<Seen> {
        self.give(lun, 0, cdb, data, room);
        self.seen()
    }

    fn manage(&mut self, function: u8, lun: [u8; 4], tag: u8) -> Option<u8> {
        let mut request = [0; 24];
        request[4] = function;
        request[8..12].copy_from_slice(&lun);
        request[16] = tag;
        self.bench.memory.write(0x6000, &request).unwrap();
        self.bench.offer(0, &[(0x6000, 24)], &[(0x7000, 1)]);
        self.managed()
    }

    fn managed(&mut self) -> Option<u8> {
        self.bench.poll();
        self.bench.used(0)?;
        Some(self.bench.memory.read_obj(0x7000).unwrap())
    }
}

const DISK: [u8; 4] = [1, 0, 0x40, 0];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 5, 0, 0, 2, 0];
const WRITE: [u8; 10] = [0x2A, 0, 0, 0, 0, 5, 0, 0, 2, 0];

#[test]
fn blocks_are_read_and_written_over_every_interface() {
    for link in [Link::Mmio, Link::Pci, Link::Legacy] {
        let disk = numbered();
        let mut driver = Driver::new(link, &disk, true);
        let seen = driver.command(DISK, &READ, &[], 1024).unwrap();
        assert_eq!(seen, (0, 0, [0, 0], 0, ANSWER_LEN + 1024));
        let data: [u8; 1024] = driver.bench.memory.read_obj(DATA).unwrap();
        assert_eq!((data[0], data[1023]), (5, 6));
        let seen = driver.command(DISK, &WRITE, &[9; 1024], 0).unwrap();
        assert_eq!(seen, (0, 0, [0, 0], 0, ANSWER_LEN));
        assert_eq!(disk.bytes()[5 * 512..7 * 512], [9; 1024]);
        assert!(driver.bench.is_interrupted());
    }
}

#[test]
fn room_that_is_left_over_is_told_and_too_little_is_an_overrun() {
    let mut driver = Driver::new(Link::Mmio, &numbered(), true);
    let (_, _, _, residual, written) = driver.command(DISK, &READ, &[], 1500).unwrap();
    assert_eq!((residual, written), (476, ANSWER_LEN + 1024));
    assert_eq!(driver.command(DISK, &READ, &[], 1000).unwrap().0, response::OVERRUN);
    assert_eq!(
        driver.command(DISK, &WRITE, &[0; 1000], 0).unwrap().0,
        response::OVERRUN
    );
    let inquiry = [0x12, 0, 0, 0, 36, 0];
    let (response, _, _, residual, written) = driver.command(DISK, &inquiry, &[], 100).unwrap();
    assert_eq!((response, residual, written), (0, 64, ANSWER_LEN + 36));
    assert_eq!(driver.command(DISK, &inquiry, &[], 10).unwrap().0, response::OVERRUN);
}

#[test]
fn targets_and_units_are_told_apart() {
    let mut driver = Driver::new(Link::Mmio, &numbered(), true);
    let bad = response::BAD_TARGET;
    assert_eq!(driver.command([1, 2, 0, 0], &[0; 6], &[], 0).unwrap().0, bad);
    assert_eq!(driver.command([0, 0, 0, 0], &[0; 6], &[], 0).unwrap().0, bad);
    // The drive has no disc; no other unit is there.
    assert_eq!(driver.command([1, 1, 0, 0], &[0; 6], &[], 0).unwrap().2, [2, 0x3A]);
    assert_eq!(driver.command([1, 0, 0x40, 1], &[0; 6], &[], 0).unwrap().2, [5, 0x25]);
    let luns = [0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0];
    assert_eq!(
        driver.command([1, 0, 0x40, 1], &luns, &[], 16).unwrap().4,
        ANSWER_LEN + 16
    );
}

#[test]
fn parameters_of_a_command_are_taken() {
    let disk = numbered();
    let mut driver = Driver::new(Link::Mmio, &disk, true);
    let same = [0x41, 0, 0, 0, 0, 8, 0, 0, 2, 0];
    assert_eq!(driver.command(DISK, &same, &[7; 512], 0).unwrap().1, 0);
    assert_eq!(disk.bytes()[8 * 512..10 * 512], [7; 1024]);
    let mut list = [0; 24];
    (list[3], list[15], list[19]) = (16, 8, 1);
    let unmap = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    assert_eq!(driver.command(DISK, &unmap, &list, 0).unwrap().1, 0);
    assert_eq!(disk.bytes()[8 * 512..9 * 512], [0; 512]);
    assert_eq!(disk.bytes()[9 * 512..10 * 512], [7; 512]);
    assert_eq!(
        driver.command(DISK, &unmap, &list[..20], 0).unwrap().0,
        response::OVERRUN
    );
}

#[test]
fn reservations_that_exclude_one_another_conflict() {
    let mut driver = Driver::new(Link::Mmio, &numbered(), true);
    assert_eq!(driver.command(DISK, &[0x16, 0, 0, 0, 0, 0], &[], 0).unwrap().1, 0);
    let keys = [0x5E, 0, 0, 0, 0, 0, 0, 0, 64, 0];
    let seen = driver.command(DISK, &keys, &[], 64).unwrap();
    assert_eq!(seen, (0, 0x18, [0, 0], 64, ANSWER_LEN));
    assert_eq!(driver.command(DISK, &[0x17, 0, 0, 0, 0, 0], &[], 0).unwrap().1, 0);
    let mut stranger = [0; 24];
    stranger[7] = 1;
    // A key that nobody has registered, which is found out when the parameters are there.
    let register = [0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    assert_eq!(driver.command(DISK, &register, &stranger, 0).unwrap().1, 0x18);
    assert_eq!(driver.command(DISK, &keys, &[], 64).unwrap().4, ANSWER_LEN + 8);
}

#[test]
fn power_off_ends_registrations_and_a_reset_does_not() {
    let mut driver = Driver::new(Link::Mmio, &numbered(), true);
    let register = [0x5F, 0, 0, 0, 0, 0, 0, 0, 24, 0];
    let mut list = [0; 24];
    list[15] = 9;
    assert_eq!(driver.command(DISK, &register, &list, 0).unwrap().1, 0);
    for (kind, key) in [(Reset::Warm, 9u64), (Reset::Cold, 0)] {
        driver.bench.device.reset(kind);
        let all = driver.bench.device.inspect();
        let told = all.at("device/targets/0/reservations/key");
        assert_eq!(told, Some(&Node::from(key)));
    }
}

#[test]
fn faults_are_sense_data() {
    let mut driver = Driver::new(Link::Mmio, &numbered(), false);
    driver.give(DISK, 0, &READ, &[], 1024);
    let beyond = [0x28, 0, 0, 0, 0, 63, 0, 0, 2, 0];
    driver.later.work();
    assert_eq!(driver.seen().unwrap().1, 0);
    assert_eq!(driver.command(DISK, &beyond, &[], 1024).unwrap().2, [5, 0x21]);
}

#[test]
fn commands_under_way_survive_a_restore() {
    let disk = numbered();
    let mut driver = Driver::new(Link::Mmio, &disk, false);
    driver.give(DISK, 0, &WRITE, &[3; 1024], 0);
    let saved = driver.bench.device.save_blob();
    let executor: Arc<dyn Executor> = Arc::new(Inline);
    let waker: Waker = Arc::new(|| ());
    let device = Scsi::new(units(&disk), 2, &driver.bench.memory, &executor, &waker);
    let mut other = Bench::with(Link::Mmio, &driver.bench.memory, device);
    other.device.restore_blob(&saved).unwrap();
    other.poll();
    assert_eq!(disk.bytes()[5 * 512..7 * 512], [3; 1024]);
    assert!(driver.bench.used(2).is_some());
}

#[test]
fn task_management_waits_for_what_it_ends() {
    let mut driver = Driver::new(Link::Mmio, &numbered(), false);
    assert_eq!(driver.manage(6, DISK, 7), Some(response::OK));
    driver.give(DISK, 7, &READ, &[], 1024);
    assert_eq!(driver.manage(6, DISK, 7), Some(response::FUNCTION_SUCCEEDED));
    assert_eq!(driver.manage(0, DISK, 8), Some(response::OK));
    assert_eq!(driver.manage(0, DISK, 7), None);
    driver.later.work();
    assert_eq!(driver.managed(), Some(response::OK));
    assert!(driver.seen().is_some());
    driver.give(DISK, 7, &READ, &[], 1024);
    assert_eq!(driver.manage(5, DISK, 0), None);
    driver.later.work();
    assert_eq!(driver.managed(), Some(response::OK));
    assert!(driver.seen().is_some());
    // The unit was reset.
    assert_eq!(driver.command(DISK, &[0; 6], &[], 0).unwrap().2, [6, 0x29]);
    assert_eq!(driver.manage(5, [1, 9, 0, 0], 0), Some(response::BAD_TARGET));
    assert_eq!(driver.manage(5, [1, 0, 0, 1], 0), Some(response::INCORRECT_LUN));
    assert_eq!(driver.manage(99, DISK, 0), Some(response::FUNCTION_REJECTED));
}

#[test]
fn there_are_no_notifications() {
    let mut driver = Driver::new(Link::Mmio, &numbered(), true);
    let request: [u32; 4] = [2, 1, 0, 0xff];
    driver.bench.memory.write_obj(0x6000, &request).unwrap();
    driver.bench.offer(0, &[(0x6000, 16)], &[(0x7000, 5)]);
    assert_eq!(driver.bench.used(0), Some((0, 5)));
    assert_eq!(driver.bench.memory.read_obj::<[u8; 5]>(0x7000).unwrap(), [0; 5]);
}

#[test]
fn lengths_of_sense_data_and_commands_are_the_drivers() {
    let mut driver = Driver::new(Link::Mmio, &numbered(), true);
    assert_eq!(driver.bench.config(20, Width::Dword), 96);
    let at = Link::Mmio.config();
    let mut write = |offset, value| Link::Mmio.write(&mut *driver.bench.device, at + offset, Width::Dword, value);
    write(20, 8);
    write(20, 0);
    write(24, 16);
    write(24, 1000);
    write(0, 99);
    assert_eq!(driver.bench.config(0, Width::Dword), 2);
    assert_eq!(driver.bench.config(20, Width::Dword), 8);
    driver.bench.memory.write(COMMAND, &[1, 0, 0x40, 1]).unwrap();
    driver.bench.memory.write(COMMAND + 4, &[0; 31]).unwrap();
    driver.bench.offer(3, &[(COMMAND, 19 + 16)], &[(ANSWER, 12 + 8)]);
    assert!(driver.bench.used(3).is_some());
    assert_eq!(driver.bench.memory.read_obj::<u32>(ANSWER).unwrap(), 8);
}

#[test]
fn short_commands_break_the_device() {
    for (command, answer) in [(COMMAND_LEN - 1, ANSWER_LEN), (COMMAND_LEN, ANSWER_LEN - 1)] {
        let mut driver = Driver::new(Link::Mmio, &numbered(), true);
        driver.bench.offer(2, &[(COMMAND, command)], &[(ANSWER, answer)]);
        assert!(driver.bench.is_broken());
    }
}

#[test]
fn reset_abandons_what_is_under_way() {
    let disk = numbered();
    let mut driver = Driver::new(Link::Mmio, &disk, false);
    driver.give(DISK, 0, &READ, &[], 1024);
    driver.bench.device.reset(Reset::Warm);
    driver.later.work();
    assert_eq!(driver.bench.memory.read_obj::<u8>(DATA).unwrap(), 0);
}

/// Where buffers for events are.
const EVENT: u64 = 0x8000;
/// Types and reasons of events.
const RESET: u32 = 1;
const CHANGE: u32 = 3;
const MISSED: u32 = 1 << 31;

/// A host that can be reached behind its transport, as the board does.
struct Plugged {
    memory: Arc<GuestMemory>,
    device: Mmio<Scsi>,
    events: test_kit::virtio::Ring,
}

impl Plugged {
    fn new(memory: &Arc<GuestMemory>) -> Self {
        let (executor, waker): (Arc<dyn Executor>, Waker) = (Arc::new(Inline), Arc::new(|| ()));
        let device = Scsi::new(units(&numbered()), 1, memory, &executor, &waker);
        Self {
            memory: Arc::clone(memory),
            device: Mmio::new(device, IrqProbe::new().line(0), memory),
            events: test_kit::virtio::Ring::new(memory, crate::testing::RINGS, 16),
        }
    }

    /// With a driver that takes those of `features` that there are.
    fn driven(features: u64) -> Self {
        let mut plugged = Self::new(&memory());
        plugged.start(features);
        plugged
    }

    fn start(&mut self, features: u64) {
        Link::Mmio.negotiate(&mut self.device, features);
        Link::Mmio.enable(&mut self.device, 1, &self.events);
        Link::Mmio.go(&mut self.device);
    }

    fn offer(&mut self, len: u32) {
        self.events.offer(&[], &[(EVENT, len)]);
        Link::Mmio.notify(&mut self.device, 1);
        self.poll();
    }

    fn poll(&mut self) {
        device_model::Device::poll(&mut self.device, VmTime::ZERO);
    }

    fn plug(&mut self, target: usize) {
        let disk = Arc::new(MemoryMedium::new(vec![0; 4096]));
        let unit = LogicalUnit::disk(disk, identity());
        assert!(self.device.device_mut().plug(target, Some(unit)));
        self.poll();
    }

    fn unplug(&mut self, target: usize) {
        assert!(self.device.device_mut().plug(target, None));
        self.poll();
    }

    fn insert(&mut self) {
        let disc: Arc<dyn storage::Medium> = Arc::new(MemoryMedium::new(vec![0; 4096]));
        let host = self.device.device_mut();
        host.with_tray(1, |tray| tray.insert(disc)).unwrap();
        self.poll();
    }

    /// The next event: type, target, reason.
    fn event(&mut self) -> Option<(u32, u8, u32)> {
        let (_, len) = self.events.used()?;
        assert_eq!(len, 16);
        let kind: u32 = self.memory.read_obj(EVENT).unwrap();
        let lun: [u8; 8] = self.memory.read_obj(EVENT + 4).unwrap();
        let reason: u32 = self.memory.read_obj(EVENT + 12).unwrap();
        assert_eq!((lun[0], &lun[2..]), (u8::from(kind != MISSED), &[0; 6][..]));
        Some((kind, lun[1], reason))
    }
}

#[test]
fn targets_that_come_and_go_are_events() {
    let mut host = Plugged::driven(u64::MAX);
    let device = host.device.device_mut();
    assert_eq!((device.is_occupied(2), device.is_occupied(3)), (Some(false), None));
    assert!(!device.plug(3, None));
    host.offer(16);
    host.plug(2);
    assert_eq!(host.event(), Some((RESET, 2, 1)));
    assert_eq!(host.device.device_mut().is_occupied(2), Some(true));
    host.offer(16);
    host.unplug(2);
    assert_eq!(host.event(), Some((RESET, 2, 2)));
    // An empty place that becomes empty is no event.
    host.offer(16);
    host.unplug(2);
    assert_eq!(host.event(), None);
    // One disk in the place of another is two.
    host.plug(0);
    assert_eq!(host.event(), Some((RESET, 0, 2)));
    host.offer(16);
    assert_eq!(host.event(), Some((MISSED, 0, 0)));
}

#[test]
fn discs_that_change_are_events() {
    let mut host = Plugged::driven(u64::MAX);
    host.offer(16);
    host.insert();
    assert_eq!(host.event(), Some((CHANGE, 1, 0x28)));
    host.offer(16);
    assert_eq!(
        host.device.device_mut().with_tray(1, |tray| tray.eject(false)),
        Some(true)
    );
    host.poll();
    assert_eq!(host.event(), Some((CHANGE, 1, 0x28)));
    // Nothing changes, and disks have no tray.
    host.offer(16);
    assert_eq!(
        host.device.device_mut().with_tray(1, |tray| tray.eject(false)),
        Some(true)
    );
    assert_eq!(host.device.device_mut().with_tray(0, |_| ()), None);
    host.poll();
    assert_eq!(host.event(), None);
}

#[test]
fn events_without_buffers_are_missed_and_told_once() {
    let mut host = Plugged::driven(u64::MAX);
    host.plug(2);
    host.unplug(2);
    host.offer(16);
    assert_eq!(host.event(), Some((MISSED, 0, 0)));
    host.offer(16);
    assert_eq!(host.event(), None);
    host.plug(2);
    assert_eq!(host.event(), Some((RESET, 2, 1)));
    // More than can wait while the machine stands still.
    for _ in 0..200 {
        host.device.device_mut().plug(2, None);
        let unit = LogicalUnit::optical(None, identity());
        host.device.device_mut().plug(2, Some(unit));
    }
    host.offer(16);
    assert_eq!(host.event(), Some((RESET | MISSED, 2, 2)));
    host.offer(16);
    assert_eq!(host.event(), Some((MISSED, 0, 0)));
}

#[test]
fn nobody_is_told_who_does_not_listen() {
    let mut host = Plugged::driven(events::scsi_feature::CHANGE | crate::device::feature::VERSION_1);
    host.offer(16);
    host.plug(2);
    assert_eq!(host.event(), None);
    host.insert();
    assert_eq!(host.event(), Some((CHANGE, 1, 0x28)));
    // Before the driver is up it is to look for itself.
    let mut host = Plugged::new(&memory());
    host.plug(2);
    host.start(u64::MAX);
    host.offer(16);
    assert_eq!(host.event(), None);
}

#[test]
fn reset_forgets_events_and_leaves_targets() {
    let mut host = Plugged::driven(u64::MAX);
    host.plug(2);
    host.device.device_mut().plug(0, None);
    device_model::Device::reset(&mut host.device, Reset::Warm);
    host.events = test_kit::virtio::Ring::new(&host.memory, crate::testing::RINGS, 16);
    host.start(u64::MAX);
    host.offer(16);
    assert_eq!(host.event(), None);
    let device = host.device.device_mut();
    assert_eq!(
        (device.is_occupied(0), device.is_occupied(2)),
        (Some(false), Some(true))
    );
}

#[test]
fn short_buffers_for_events_break_the_device() {
    let mut host = Plugged::driven(u64::MAX);
    host.offer(15);
    host.plug(2);
    assert_eq!(host.event(), None);
    assert!(Link::Mmio.is_broken(&mut host.device));
}

#[test]
fn events_are_part_of_a_saved_state() {
    let mut host = Plugged::driven(u64::MAX);
    host.plug(2);
    host.device.device_mut().plug(0, None);
    let saved = host.device.save();
    let mut other = Plugged::new(&host.memory);
    assert!(other.device.restore(saved.clone()).is_err(), "other targets");
    let mut other = Plugged::new(&host.memory);
    other.device.device_mut().plug(0, None);
    other
        .device
        .device_mut()
        .plug(2, Some(LogicalUnit::disk(numbered(), identity())));
    other.device.restore(saved).unwrap();
    other.events = host.events;
    other.offer(16);
    assert_eq!(other.event(), Some((RESET | MISSED, 0, 2)));
}

#[test]
fn commands_of_a_target_that_goes_fail() {
    let (memory, disk, later) = (memory(), numbered(), Arc::new(Later::default()));
    let (executor, waker): (Arc<dyn Executor>, Waker) = (later.clone(), Arc::new(|| ()));
    let mut host = Scsi::new(units(&disk), 1, &memory, &executor, &waker);
    host.state.pending.push(Pending {
        token: 0,
        queue: 2,
        target: 0,
        tag: 0,
        answer: Chain {
            head: 0,
            readable: Vec::new(),
            writable: Vec::new(),
        },
        residual: 0,
        request: Request::flush(),
        lost: false,
        submitted: Submitted(false),
    });
    host.plug(0, Some(LogicalUnit::disk(numbered(), identity())));
    // It does not go to the disk that came instead.
    host.resubmit();
    assert_eq!((host.orphan(), host.work.in_flight()), (Some(0), 0));
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    let (memory, probe, disk) = (memory(), IrqProbe::new(), numbered());
    let (executor, waker): (Arc<dyn Executor>, Waker) = (Arc::new(Inline), Arc::new(|| ()));
    test_kit::contract(&clock, || {
        let device = Scsi::new(units(&disk), 2, &memory, &executor, &waker);
        Box::new(Mmio::new(device, probe.line(0), &memory))
    });
}
