//! virtio devices: where they go and how they are built. On a machine with PCI each is a function of the root bus, else its
//! registers are in memory and the ACPI tables tell of it.

use std::sync::Arc;

use device_model::NoStreams;
use device_model::NullSerial;
use device_model::SerialBackend;
use device_model::SharedDevice;
use device_model::StreamHost;
use device_model::pci::PciFunction;
use pci::Bdf;
use spec::ConsoleConfig;
use spec::InputConfig;
use spec::MachineSpec;
use spec::NicModel;
use spec::StorageBus;
use virtio::MMIO_LEN;
use virtio::Mmio;
use virtio::Pci;
use virtio::VirtioDevice;
use virtio::balloon;
use virtio::blk;
use virtio::blk::Blk;
use virtio::blk::BlkConfig;
use virtio::console::Console;
use virtio::console::Port;
use virtio::input::Input;
use virtio::input::InputKind;
use virtio::net::Net;
use virtio::net::NetConfig;
use virtio::net::PAIRS;
use virtio::rng::Entropy;
use virtio::rng::Rng;
use virtio::scsi::Scsi;
use virtio::vsock::Vsock;
use vsock_host::VsockHost;

use super::Builder;
use super::bdf;
use super::irq;
use super::pin;
use super::shares;
use super::storage;
use super::waker;
use crate::Balloon;
use crate::BuildError;
use crate::Placement;
use crate::PollRequest;
use crate::Window;

/// Memory-mapped registers: the first device's, and how far apart they are.
const REGISTERS: u64 = 0xd000_0000;
const STRIDE: u64 = 0x1000;
/// Pins of the I/O APIC that they interrupt by, which they share when there are more of them.
const PINS: (u8, u8) = (16, 8);

/// Names and chips of all virtio devices of a spec, in the order of their places.
fn all(spec: &MachineSpec) -> Vec<(String, &'static str, u32)> {
    let disks = storage::disks_on(spec, StorageBus::Virtio).into_iter();
    let mut all: Vec<_> = disks
        .map(|disk| {
            (
                format!("disk{disk}"),
                "virtio_blk",
                u32::try_from(disk).unwrap_or(u32::MAX),
            )
        })
        .collect();
    let rng = spec.devices.rng.iter();
    all.extend(rng.map(|_| ("rng".to_owned(), "virtio_rng", 0)));
    let console = spec.devices.consoles.first().into_iter();
    all.extend(console.map(|_| ("console".to_owned(), "virtio_console", 0)));
    let balloon = spec.devices.balloon.iter();
    all.extend(balloon.map(|_| ("balloon".to_owned(), "virtio_balloon", 0)));
    all.extend(shares::all(spec));
    let vsock = spec.devices.vsock.iter();
    all.extend(vsock.map(|_| ("vsock".to_owned(), "virtio_vsock", 0)));
    let inputs = (0u32..).zip(&spec.devices.inputs);
    all.extend(inputs.map(|(index, input)| (input.name().to_owned(), "virtio_input", index)));
    let scsi = storage::wants_scsi(spec).then(|| ("scsi".to_owned(), "virtio_scsi", 0));
    all.extend(scsi);
    // Cards come last: on a machine with PCI they have slots of their own.
    let nics = (0u32..).zip(&spec.devices.nics);
    let nics = nics.filter(|(_, nic)| nic.model == NicModel::Virtio);
    all.extend(nics.map(|(index, _)| (format!("nic{index}"), "virtio_net", index)));
    all
}

/// The devices that are this chip.
pub(super) fn place(spec: &MachineSpec, chip: &str) -> Vec<Placement> {
    let devices = all(spec).into_iter().enumerate();
    let ours = devices.filter(|(_, (_, other, _))| *other == chip);
    ours.map(|(number, (name, chip, index))| {
        let place = Placement::new(&name, chip).index(index);
        if spec.machine.has_pci() {
            return place.at(match chip {
                "virtio_net" => bdf::of(spec, &name),
                _ => bdf::virtio(spec, number),
            });
        }
        let (first, count) = PINS;
        let pin = first + u8::try_from(number % usize::from(count)).unwrap_or(0);
        let base = REGISTERS + STRIDE * number as u64;
        place.window(Window::mmio("virtio", base, MMIO_LEN)).irq(pin)
    })
    .collect()
}

/// Where the device called `name` is, on a machine with PCI.
pub(super) fn bdf_of(spec: &MachineSpec, name: &str) -> Bdf {
    let number = all(spec).iter().position(|(other, ..)| other == name);
    bdf::virtio(spec, number.unwrap_or(usize::MAX))
}

/// `device` with the transport of its place.
pub(super) fn build<D: VirtioDevice + 'static>(builder: &Builder<'_>, place: &Placement, device: D) -> SharedDevice {
    if place.bdf.is_some() {
        let wires = (pin(builder, place, 1), builder.fabric.messages());
        return builder.slot(place, Pci::new(device, wires, &builder.memory));
    }
    let line = irq(builder, place, 0);
    builder.slot(place, Mmio::new(device, line, &builder.memory))
}

pub(super) fn place_blk(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_blk")
}

pub(super) fn build_blk(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let disk = usize::try_from(place.index).unwrap_or(usize::MAX);
    let medium = storage::disk_medium(builder, disk)?;
    let config = BlkConfig {
        serial: storage::serial(builder.spec, disk),
        queues: u16::try_from(builder.spec.cpus).map_or(blk::QUEUES, |cpus| cpus.min(blk::QUEUES)),
    };
    let (executor, waker) = (storage::executor(builder), waker(builder, place));
    builder
        .sockets
        .fixed
        .push((place.name.clone(), "a virtio disk of the machine's own"));
    let device = Blk::new(medium, config, &builder.memory, &executor, &waker);
    Ok(build(builder, place, device))
}

pub(super) fn place_net(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_net")
}

pub(super) fn build_net(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let nic = builder.networks.plug(builder.spec, place)?;
    let config = NetConfig {
        mac: nic.mac,
        pairs: u16::try_from(builder.spec.cpus).map_or(PAIRS, |cpus| cpus.min(PAIRS)),
    };
    let waker = waker(builder, place);
    let device = Net::new(nic.port, config, waker);
    if place.bdf.is_none() {
        return Ok(build(builder, place, device));
    }
    let wires = (pin(builder, place, 1), builder.fabric.messages());
    let mut chip = Pci::new(device, wires, &builder.memory);
    super::nic::add_rom(builder.spec, place, chip.header_mut())?;
    Ok(builder.slot(place, chip))
}

pub(super) fn place_rng(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_rng")
}

/// The host's random bytes, without waiting for them.
fn entropy() -> Entropy {
    Box::new(|bytes| rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::NONBLOCK).unwrap_or(0))
}

pub(super) fn build_rng(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    Ok(build(builder, place, Rng::new(entropy())))
}

pub(super) fn place_console(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_console")
}

pub(super) fn build_console(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let request = PollRequest::new(builder.events.clone());
    let mut ports = Vec::new();
    for (index, config) in builder.spec.devices.consoles.iter().enumerate() {
        let backend: Box<dyn SerialBackend> = match builder.serial.remove(&ConsoleConfig::backend(index)) {
            Some(port) => {
                builder.serial_ends.push(port.connect(request.clone()));
                Box::new(port)
            }
            None => Box::new(NullSerial),
        };
        let name = config.name.clone();
        ports.push(Port { name, backend });
    }
    builder.poll_requests.insert(place.name.clone(), request);
    Ok(build(builder, place, Console::new(ports)))
}

pub(super) fn place_vsock(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_vsock")
}

pub(super) fn build_vsock(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let waker = waker(builder, place);
    let config = builder.spec.devices.vsock.as_ref();
    let cid = config.map_or(*virtio::vsock::CIDS.start(), |config| config.cid);
    let host: Arc<dyn StreamHost> = match config.and_then(|config| config.socket.as_ref()) {
        Some(socket) => builder.networks.keep(VsockHost::listen(socket)?),
        None => Arc::new(NoStreams),
    };
    Ok(build(builder, place, Vsock::new(cid, host, waker)))
}

pub(super) fn place_scsi(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_scsi")
}

pub(super) fn build_scsi(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let (units, images) = storage::scsi_units(builder.spec)?;
    let queues = u16::try_from(builder.spec.cpus).unwrap_or(u16::MAX);
    let (executor, waker) = (storage::executor(builder), waker(builder, place));
    let (device, memory) = (
        Scsi::new(units, queues, &builder.memory, &executor, &waker),
        &builder.memory,
    );
    if place.bdf.is_some() {
        let wires = (pin(builder, place, 1), builder.fabric.messages());
        let slot = builder.slot(place, Pci::new(device, wires, memory));
        storage::add_scsi(builder, &(Arc::clone(&slot) as _), images);
        return Ok(slot);
    }
    let slot = builder.slot(place, Mmio::new(device, irq(builder, place, 0), memory));
    storage::add_scsi(builder, &(Arc::clone(&slot) as _), images);
    Ok(slot)
}

pub(super) fn place_input(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_input")
}

pub(super) fn build_input(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let config = builder.spec.devices.inputs.get(place.index as usize);
    let device = Input::new(match config {
        Some(InputConfig::Tablet) => InputKind::Tablet,
        Some(InputConfig::Mouse) => InputKind::Mouse,
        Some(InputConfig::Keyboard) | None => InputKind::Keyboard,
    });
    let memory = &builder.memory;
    if place.bdf.is_some() {
        let wires = (pin(builder, place, 1), builder.fabric.messages());
        let slot = builder.slot(place, Pci::new(device, wires, memory));
        builder.input.add(Arc::clone(&slot) as _);
        return Ok(slot);
    }
    let slot = builder.slot(place, Mmio::new(device, irq(builder, place, 0), memory));
    builder.input.add(Arc::clone(&slot) as _);
    Ok(slot)
}

pub(super) fn place_balloon(spec: &MachineSpec) -> Vec<Placement> {
    place(spec, "virtio_balloon")
}

pub(super) fn build_balloon(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let request = PollRequest::new(builder.events.clone());
    builder.poll_requests.insert(place.name.clone(), request.clone());
    let (device, memory) = (balloon::Balloon::new(), &builder.memory);
    if place.bdf.is_some() {
        let wires = (pin(builder, place, 1), builder.fabric.messages());
        let slot = builder.slot(place, Pci::new(device, wires, memory));
        builder.balloon = Some(Balloon::new(Arc::clone(&slot) as _, request));
        return Ok(slot);
    }
    let slot = builder.slot(place, Mmio::new(device, irq(builder, place, 0), memory));
    builder.balloon = Some(Balloon::new(Arc::clone(&slot) as _, request));
    Ok(slot)
}
