//! Rings and registers of every virtio device, as a driver that means no good writes them.
//!
//! The first byte chooses device and interface, the second the features that are taken. Then follow operations: descriptors,
//! tables, available entries and indexes, bytes of requests, notifications, time, register accesses in the language of
//! `test_kit::fuzz_accesses`, and new starts of the driver. Descriptors of the device's own kind are easier to write than others,
//! so that requests get somewhere.

use std::collections::BTreeMap;
use std::sync::Arc;

use device_model::Device;
use device_model::Flow;
use device_model::FlowStatus;
use device_model::Frame;
use device_model::FramePort;
use device_model::SerialBackend;
use device_model::StreamHost;
use device_model::StreamWaker;
use device_model::TestClock;
use device_model::VmTime;
use device_model::net::Accepts;
use device_model::net::NetWaker;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use shared_folder::fuse::FuseConfig;
use shared_folder::fuse::FuseServer;
use shared_folder::nine_p::NinePServer;
use storage::Executor;
use storage::Identity;
use storage::Inline;
use storage::MemoryMedium;
use storage::Waker;
use storage::scsi::LogicalUnit;
use test_kit::IrqProbe;
use test_kit::virtio::Link;
use test_kit::virtio::Ring;
use virtio::Mmio;
use virtio::Pci;
use virtio::VirtioDevice;
use virtio::balloon::Balloon;
use virtio::blk::Blk;
use virtio::blk::BlkConfig;
use virtio::console::Console;
use virtio::console::Port;
use virtio::fs::Fs;
use virtio::fs::FsConfig;
use virtio::input::Input as InputDevice;
use virtio::input::InputKind;
use virtio::net::Net;
use virtio::net::NetConfig;
use virtio::nine_p::NineP;
use virtio::rng::Rng;
use virtio::scsi::Scsi;
use virtio::vsock::Vsock;

use crate::input::Input;

/// Guest memory: the first half is for buffers, the second for rings of 4000h bytes.
const MEMORY: u64 = 1 << 18;
const RINGS: u64 = 1 << 17;
const RING: u64 = 0x4000;
/// Rings that there is room for, and entries of each.
const QUEUES: u16 = 8;
const ENTRIES: u16 = 8;
/// Operations that are executed: what takes more to be found, several shorter inputs find sooner.
const OPERATIONS: usize = 64;
/// Bytes of each disk.
const MEDIUM: usize = 1 << 14;

/// A driver at its device.
struct Driver {
    link: Link,
    memory: Arc<GuestMemory>,
    device: Box<dyn Device>,
    rings: Vec<Ring>,
    sizes: Vec<u16>,
}

/// Executes one input.
///
/// # Panics
/// When a device panics or breaks a rule that holds for every device.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let clock = TestClock::new();
    let (kind, features) = (input.byte(), input.number(1));
    let mut driver = Driver::new(kind);
    driver.start(spread(features));
    for _ in 0..OPERATIONS {
        if input.is_empty() {
            break;
        }
        driver.step(&mut input, &clock);
    }
    test_kit::fuzz_accesses(&mut *driver.device, &clock, &[]);
}

/// Features out of a byte: all of its bits over and over, but the one that every modern driver takes.
fn spread(byte: u64) -> u64 {
    !(byte * 0x0101_0101_0101_0101) | 1 << 32
}

thread_local! {
    /// PERF: one memory for all runs: mappings cost more than most inputs do.
    static RAM: Arc<GuestMemory> = {
        let mut memory = GuestMemory::new();
        let region = MemoryRegion::new("ram", Kind::Ram, MEMORY).expect("the host has a few pages");
        memory.add(0, Arc::new(region)).expect("the memory is empty");
        Arc::new(memory)
    };
}

/// The memory, all zeros whatever ran before.
fn memory() -> Arc<GuestMemory> {
    let memory = RAM.with(Arc::clone);
    clear(&memory, 0, MEMORY);
    memory
}

/// Makes whole pages zeros. Those that nobody has touched cost nothing.
fn clear(memory: &GuestMemory, at: u64, len: u64) {
    if memory.release(at, len) != len {
        memory.write(at, &vec![0; len as usize]).expect("it is in memory");
    }
}

impl Driver {
    fn new(kind: u8) -> Self {
        let memory = memory();
        let (device, link) = (kind % 10, kind / 10 % 3);
        let link = match link {
            0 => Link::Mmio,
            // Sockets, input devices and shared folders are no transitional devices.
            2 if !matches!(device, 4 | 6 | 8) => Link::Legacy,
            _ => Link::Pci,
        };
        let (device, sizes) = match device {
            0 => behind(link, &memory, blk(&memory)),
            1 => behind(link, &memory, console()),
            2 => behind(link, &memory, Balloon::new()),
            3 => behind(link, &memory, net()),
            4 => behind(link, &memory, vsock()),
            5 => behind(link, &memory, scsi(&memory)),
            6 => behind(link, &memory, InputDevice::new(InputKind::Tablet)),
            7 => behind(link, &memory, Rng::new(Box::new(|bytes| bytes.len() / 2))),
            8 => behind(link, &memory, fs(&memory)),
            _ => behind(link, &memory, nine_p(&memory)),
        };
        Self {
            link,
            memory,
            device,
            rings: Vec::new(),
            sizes,
        }
    }

    /// Brings the driver up anew.
    fn start(&mut self, features: u64) {
        self.link.negotiate(&mut *self.device, features);
        self.rings.clear();
        clear(&self.memory, RINGS, u64::from(QUEUES) * RING);
        for (number, max) in (0..QUEUES).zip(&self.sizes) {
            let base = RINGS + u64::from(number) * RING;
            // The legacy interface leaves no choice.
            let size = if self.link == Link::Legacy { *max } else { ENTRIES };
            let ring = Ring::new(&self.memory, base, size);
            self.link.enable(&mut *self.device, number, &ring);
            self.rings.push(ring);
        }
        self.link.go(&mut *self.device);
    }

    fn step(&mut self, input: &mut Input<'_>, clock: &TestClock) {
        let op = input.byte();
        let queue = u16::from(input.byte()) % QUEUES.min(self.rings.len() as u16).max(1);
        match op % 10 {
            // A chain of up to three buffers for the device to read and one to write.
            0 | 1 => {
                let shape = input.byte();
                let mut buffer = |len| (input.number(2), len);
                let small = buffer(u32::from(shape & 0x3f));
                let readable = [small, buffer(16), buffer(2048)];
                let writable = [buffer(1), buffer(512)];
                let readable = &readable[..usize::from(shape >> 6)];
                let writable = &writable[..usize::from(op / 10 % 3)];
                if !(readable.is_empty() && writable.is_empty()) {
                    let ring = &mut self.rings[usize::from(queue)];
                    match op / 30 % 2 {
                        0 => ring.offer(readable, writable),
                        _ => ring.offer_indirect(0x8000, readable, writable),
                    };
                }
                self.link.notify(&mut *self.device, queue);
            }
            // A descriptor of any kind.
            2 => {
                let (number, next) = (input.number(1) as u16, input.number(1) as u16);
                let (address, len) = (input.number(3) << (op / 10), input.number(4) as u32);
                let flags = input.number(1) as u16;
                let ring = &self.rings[usize::from(queue)];
                let (number, next) = (number % ring.size(), next % (ring.size() + 1));
                ring.describe(number, address, len, flags, next);
            }
            3 => {
                let head = input.number(2) as u16;
                self.rings[usize::from(queue)].publish(head);
                self.link.notify(&mut *self.device, queue);
            }
            4 => self.rings[usize::from(queue)].set_available(input.number(2) as u16),
            // Bytes of requests, or of rings.
            5 | 6 => {
                let (at, len) = (input.number(3) % MEMORY, input.byte());
                // What does not fit is left out.
                let _ = self.memory.write(at, input.bytes(len.into()));
            }
            7 => {
                clock.advance(input.number(2) << (op / 10));
                self.device.poll(device_model::Clock::now(clock));
            }
            8 => {
                let len = input.byte() & 0x1f;
                test_kit::fuzz_accesses(&mut *self.device, clock, input.bytes(len.into()));
            }
            _ => {
                let features = input.number(1);
                self.start(spread(features));
            }
        }
        assert!(self.device.poll(VmTime::ZERO).is_none_or(|next| next > VmTime::ZERO));
    }
}

/// The device behind an interface, and the most entries of its queues.
fn behind<D: VirtioDevice + 'static>(link: Link, memory: &Arc<GuestMemory>, device: D) -> (Box<dyn Device>, Vec<u16>) {
    let (probe, sizes) = (IrqProbe::new(), device.queues());
    let device: Box<dyn Device> = match link {
        Link::Mmio => Box::new(Mmio::new(device, probe.line(0), memory)),
        _ => Box::new(Pci::new(device, (probe.line(0), probe.clone() as _), memory)),
    };
    (device, sizes)
}

fn blk(memory: &Arc<GuestMemory>) -> Blk {
    let config = BlkConfig {
        serial: "FUZZ".to_owned(),
        queues: 2,
    };
    let (executor, waker): (Arc<dyn Executor>, Waker) = (Arc::new(Inline), Arc::new(|| ()));
    Blk::new(
        Arc::new(MemoryMedium::new(vec![1; MEDIUM])),
        config,
        memory,
        &executor,
        &waker,
    )
}

fn fs(memory: &Arc<GuestMemory>) -> Fs<FuseServer> {
    let server = FuseServer::new(crate::shares::folder(), FuseConfig::default());
    let config = FsConfig {
        tag: "fuzz".to_owned(),
        queues: 2,
    };
    let (executor, waker): (Arc<dyn Executor>, Waker) = (Arc::new(Inline), Arc::new(|| ()));
    Fs::new(Arc::new(server), config, memory, &executor, &waker)
}

fn nine_p(memory: &Arc<GuestMemory>) -> NineP<NinePServer> {
    let server = Arc::new(NinePServer::new(crate::shares::folder()));
    let (executor, waker): (Arc<dyn Executor>, Waker) = (Arc::new(Inline), Arc::new(|| ()));
    NineP::new(server, "fuzz", memory, &executor, &waker)
}

fn scsi(memory: &Arc<GuestMemory>) -> Scsi {
    let identity = || Identity {
        model: "FUZZ DISK".to_owned(),
        serial: "FUZZ".to_owned(),
        firmware: "1".to_owned(),
    };
    let medium = || Arc::new(MemoryMedium::new(vec![1; MEDIUM]));
    let units = vec![
        LogicalUnit::disk(medium(), identity()),
        LogicalUnit::optical(Some(medium()), identity()),
    ];
    let (executor, waker): (Arc<dyn Executor>, Waker) = (Arc::new(Inline), Arc::new(|| ()));
    Scsi::new(units.into_iter().map(Some).collect(), 2, memory, &executor, &waker)
}

/// A far end that always has something to say, and takes two bytes of three.
struct Chatter(u8);

impl SerialBackend for Chatter {
    fn send(&mut self, _byte: u8) -> bool {
        self.0 = self.0.wrapping_add(1);
        !self.0.is_multiple_of(3)
    }

    fn receive(&mut self) -> Option<u8> {
        self.0 = self.0.wrapping_add(1);
        (self.0 & 7 != 0).then_some(self.0)
    }
}

fn console() -> Console {
    let port = |name: Option<&str>| Port {
        name: name.map(str::to_owned),
        backend: Box::new(Chatter(0)),
    };
    Console::new(vec![port(None), port(Some("fuzz"))])
}

/// A network that sends back what comes, when it has room.
#[derive(Default)]
struct Echo(std::sync::Mutex<Vec<Frame>>);

impl FramePort for Echo {
    fn send(&self, frame: Frame) -> Result<(), Frame> {
        let mut frames = self.0.lock().expect("nothing panics under the lock");
        if frames.len() >= 4 {
            return Err(frame);
        }
        frames.push(frame);
        Ok(())
    }

    fn receive(&self) -> Option<Frame> {
        self.0.lock().expect("nothing panics under the lock").pop()
    }

    fn set_accepts(&self, _accepts: Accepts) {}

    fn set_promiscuous(&self, _on: bool) {}

    fn set_waker(&self, _waker: NetWaker) {}

    fn link_up(&self) -> bool {
        true
    }
}

fn net() -> Net {
    let config = NetConfig {
        mac: [2, 0, 0, 0, 0, 1],
        pairs: 2,
    };
    Net::new(Arc::new(Echo::default()), config, Arc::new(|| ()))
}

/// Programs that are always there: they say back what they hear, offer a stream now and then, and end at times.
#[derive(Default)]
struct Mirror(std::sync::Mutex<BTreeMap<Flow, Mirrored>>);

#[derive(Default)]
struct Mirrored {
    said: Vec<u8>,
    delivered: u64,
    ended: bool,
    offered: bool,
}

impl Mirrored {
    /// Bytes that are said at once, where there are messages.
    fn message(&self) -> usize {
        self.said.len().min(700)
    }
}

impl Mirror {
    fn with<T>(&self, f: impl FnOnce(&mut BTreeMap<Flow, Mirrored>) -> T) -> T {
        f(&mut self.0.lock().expect("nothing panics under the lock"))
    }
}

impl StreamHost for Mirror {
    fn set_waker(&self, _waker: StreamWaker) {}

    fn offered(&self) -> Option<Flow> {
        self.with(|flows| {
            let guest = u32::try_from(flows.len()).ok().filter(|count| *count < 3)?;
            let flow = match guest {
                1 => Flow::packets(1 << 30, guest),
                _ => Flow::stream(1 << 30, guest),
            };
            let offered = Mirrored {
                offered: true,
                ..Mirrored::default()
            };
            flows.insert(flow, offered).is_none().then_some(flow)
        })
    }

    fn changed(&self) -> Option<Flow> {
        self.with(|flows| {
            flows
                .iter()
                .find(|(_, one)| one.said.len() % 2 == 1)
                .map(|(flow, _)| *flow)
        })
        .inspect(|flow| self.send(*flow, b"!", true))
    }

    fn status(&self, flow: Flow) -> Option<FlowStatus> {
        self.with(|flows| {
            let one = flows.get(&flow)?;
            Some(FlowStatus {
                open: !one.offered,
                readable: one.said.len(),
                message: one.message(),
                delivered: one.delivered,
                ended: one.ended,
                deaf: one.ended && one.delivered % 2 == 1,
            })
        })
    }

    fn connect(&self, flow: Flow) -> bool {
        let there = flow.host % 4 != 3;
        if there {
            self.with(|flows| flows.insert(flow, Mirrored::default()));
        }
        there
    }

    fn accept(&self, flow: Flow) {
        self.with(|flows| flows.get_mut(&flow).map(|one| one.offered = false));
    }

    fn send(&self, flow: Flow, bytes: &[u8], _end: bool) {
        self.with(|flows| {
            if let Some(one) = flows.get_mut(&flow) {
                one.said.extend(bytes);
                one.delivered += bytes.len() as u64;
                one.ended |= one.delivered > 4096;
                // No more than the device may have under way is ever sent.
                assert!(one.said.len() <= 1 << 20);
            }
        });
    }

    fn receive(&self, flow: Flow, most: usize) -> (Vec<u8>, bool) {
        self.with(|flows| {
            let Some(one) = flows.get_mut(&flow) else {
                return (Vec::new(), false);
            };
            let message = one.message();
            let len = most.min(message);
            (one.said.drain(..len).collect(), len == message)
        })
    }

    fn shut_down(&self, flow: Flow, _sends: bool, takes: bool) {
        self.with(|flows| flows.get_mut(&flow).map(|one| one.ended |= takes));
    }

    fn close(&self, flow: Flow, _flush: bool) {
        self.with(|flows| flows.remove(&flow));
    }

    fn reset(&self) {
        self.with(BTreeMap::clear);
    }
}

fn vsock() -> Vsock {
    Vsock::new(3, Arc::new(Mirror::default()), Arc::new(|| ()))
}
