//! Disks, CD drives and their controllers: where they go and how they are built.

use std::fmt::Write;
use std::sync::Arc;

use device_model::SharedDevice;
use pci::Bdf;
use spec::Attachment;
use spec::Bay;
use spec::BootDevice;
use spec::DriveConfig;
use spec::MachineKind;
use spec::MachineSpec;
use spec::StorageBus;
use storage::Drive;
use storage::Executor;
use storage::Identity;
use storage::Medium;
use storage::ahci;
use storage::ahci::Ahci;
use storage::ide;
use storage::ide::Ide;
use storage::nvme::Nvme;
use storage::nvme::NvmeIdentity;
use storage::scsi::LogicalUnit;
use virtio::scsi;

use super::Builder;
use super::DEFAULT_ORDER;
use super::bdf;
use super::irq;
use super::pin;
use super::waker;
use crate::BuildError;
use crate::Placement;
use crate::drives;
use crate::drives::RemovableDrive;
use crate::hotplug;
use crate::hotplug::Attached;
use crate::hotplug::Ports;
use crate::optical::CdDrive;
use crate::optical::Trays;
use crate::storage::ImageMedium;
use crate::storage::WorkerPool;

/// Places of IDE drives in the order in which disks take them, and CD drives: the first CD drive is the second channel's
/// first, as systems expect it.
const DISK_PLACES: [usize; 4] = [0, 1, 3, 2];
const CDROM_PLACES: [usize; 4] = [2, 3, 1, 0];

/// A drive of the spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Disk(usize),
    Cdrom(usize),
}

/// The drives of the IDE channels.
fn ide_drives(spec: &MachineSpec) -> [Option<Wish>; 4] {
    let mut places = [None; 4];
    let mut take = |order: [usize; 4], wish| {
        let free = order.into_iter().find(|place| places.get(*place) == Some(&None));
        if let Some(place) = free.and_then(|place| places.get_mut(place)) {
            *place = Some(wish);
        }
    };
    let on_ide = |bus: StorageBus| bus == StorageBus::Ide;
    for (index, _) in spec.devices.cdroms.iter().enumerate().filter(|(_, c)| on_ide(c.bus)) {
        take(CDROM_PLACES, Wish::Cdrom(index));
    }
    for (index, _) in spec.devices.disks.iter().enumerate().filter(|(_, d)| on_ide(d.bus)) {
        take(DISK_PLACES, Wish::Disk(index));
    }
    places
}

/// A drive as it is configured, and its number.
fn config(spec: &MachineSpec, wish: Wish) -> (DriveConfig, u32) {
    let (config, index) = match wish {
        Wish::Disk(index) => {
            let disk = spec.devices.disks.get(index).cloned();
            (DriveConfig::Disk(disk.unwrap_or_default()), index)
        }
        Wish::Cdrom(index) => {
            let cdrom = spec.devices.cdroms.get(index).cloned();
            (DriveConfig::Cdrom(cdrom.unwrap_or_default()), index)
        }
    };
    (config, u32::try_from(index).unwrap_or(u32::MAX))
}

/// What users call a drive.
fn name(wish: Wish) -> String {
    match wish {
        Wish::Disk(index) => format!("disk{index}"),
        Wish::Cdrom(index) => format!("cd{index}"),
    }
}

/// Opens the image of a disk that stays.
pub(super) fn disk_medium(builder: &mut Builder<'_>, index: usize) -> Result<Arc<dyn Medium>, BuildError> {
    let config = builder.spec.devices.disks.get(index).cloned().unwrap_or_default();
    let medium = ImageMedium::disk(&config)?;
    builder.media.push(Arc::clone(&medium));
    Ok(medium)
}

/// A drive, and the image in it.
fn drive(builder: &Builder<'_>, wish: Wish) -> Result<(Drive, Option<Arc<ImageMedium>>), BuildError> {
    let (config, number) = config(builder.spec, wish);
    let (identity, image) = (hotplug::identity(&config, number), hotplug::open(&config)?);
    let medium = image.clone().map(|image| image as Arc<dyn Medium>);
    Ok(match (wish, medium) {
        (Wish::Disk(_), Some(medium)) => (Drive::disk(medium, identity), image),
        (_, medium) => (Drive::optical(medium, identity), None),
    })
}

/// Lets users change the discs of a controller's drives.
fn add_trays(builder: &mut Builder<'_>, controller: &Arc<dyn Trays>, wishes: &[Option<Wish>]) {
    for (place, wish) in wishes.iter().enumerate() {
        let Some(Wish::Cdrom(number)) = *wish else { continue };
        let config = builder.spec.devices.cdroms.get(number);
        let path = config.and_then(|config| config.image.clone());
        let medium = path.map(|path| drives::Medium { path, read_only: true });
        let drive = CdDrive::new(Arc::clone(controller), place, &name(Wish::Cdrom(number)), medium);
        builder.drives.push(Arc::new(drive));
    }
}

/// Lets users detach the drive at a place of a controller, and change its discs.
fn add_attached(
    builder: &mut Builder<'_>,
    controller: &Arc<dyn Trays>,
    bay: (Bay, usize),
    wish: Wish,
    medium: Option<Arc<ImageMedium>>,
) {
    let (drive, number) = config(builder.spec, wish);
    let tray = matches!(wish, Wish::Cdrom(_)).then(|| {
        let disc = drive.image().map(|path| drives::Medium {
            path: path.to_owned(),
            read_only: true,
        });
        Arc::new(CdDrive::new(Arc::clone(controller), bay.1, &name(wish), disc)) as Arc<dyn RemovableDrive>
    });
    builder.sockets.drives.push(Attached {
        attachment: Attachment {
            id: name(wish),
            number,
            drive,
            bay: bay.0,
            detaching: false,
        },
        medium,
        card: None,
        tray,
    });
}

pub(super) fn executor(builder: &Builder<'_>) -> Arc<dyn Executor> {
    Arc::new(WorkerPool(Arc::clone(&builder.workers)))
}

pub(super) fn place_ide(spec: &MachineSpec) -> Vec<Placement> {
    let [primary, secondary] = ide::IRQS;
    let place = || Placement::new("ide", "ide").at(bdf::IDE).irq(primary).irq(secondary);
    (spec.machine == MachineKind::Pc).then(place).into_iter().collect()
}

pub(super) fn build_ide(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let mut drives = [const { None }; 4];
    for (slot, wish) in drives.iter_mut().zip(ide_drives(builder.spec)) {
        let Some(wish) = wish else { continue };
        let (drive, medium) = drive(builder, wish)?;
        *slot = Some(drive);
        builder.media.extend(medium);
        builder.sockets.fixed.push((name(wish), "a drive of an IDE channel"));
    }
    let irqs = [irq(builder, place, 0), irq(builder, place, 1)];
    let (executor, waker) = (executor(builder), waker(builder, place));
    let chip = Ide::new(irqs, drives, &builder.memory, &executor, &waker);
    let slot = builder.slot(place, chip);
    let trays: Arc<dyn Trays> = Arc::clone(&slot) as _;
    add_trays(builder, &trays, &ide_drives(builder.spec));
    Ok(slot)
}

/// The drives of the SATA ports: disks, then CD drives.
fn ahci_drives(spec: &MachineSpec) -> [Option<Wish>; ahci::PORTS] {
    let disks = spec.devices.disks.iter().enumerate();
    let disks = disks.filter(|(_, disk)| disk.bus == StorageBus::Ahci);
    let cdroms = spec.devices.cdroms.iter().enumerate();
    let cdroms = cdroms.filter(|(_, cdrom)| cdrom.bus == StorageBus::Ahci);
    let mut wishes = disks
        .map(|(index, _)| Wish::Disk(index))
        .chain(cdroms.map(|(index, _)| Wish::Cdrom(index)));
    std::array::from_fn(|_| wishes.next())
}

pub(super) fn place_ahci(spec: &MachineSpec) -> Vec<Placement> {
    // That of a q35 is part of its chipset.
    let wanted = ahci_drives(spec).iter().any(Option::is_some) || spec.machine == MachineKind::Q35;
    let place = || Placement::new("ahci", "ahci").at(bdf::of(spec, "ahci"));
    wanted.then(place).into_iter().collect()
}

pub(super) fn build_ahci(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let mut drives = [const { None }; ahci::PORTS];
    let mut media = [const { None }; ahci::PORTS];
    let wishes = ahci_drives(builder.spec);
    for ((slot, medium), wish) in drives.iter_mut().zip(&mut media).zip(wishes) {
        if let Some(wish) = wish {
            let (drive, image) = drive(builder, wish)?;
            (*slot, *medium) = (Some(drive), image);
        }
    }
    let wires = (pin(builder, place, 1), builder.fabric.messages());
    let (executor, waker) = (executor(builder), waker(builder, place));
    let chip = Ahci::new(wires, drives, &builder.memory, &executor, &waker);
    let slot = builder.slot(place, chip);
    for ((port, wish), medium) in (0u8..).zip(wishes).zip(media) {
        if let Some(wish) = wish {
            let bay = (Bay::Sata(port), port.into());
            add_attached(builder, &(Arc::clone(&slot) as _), bay, wish, medium);
        }
    }
    builder.sockets.ahci = Some(Arc::clone(&slot) as _);
    Ok(slot)
}

/// The disks on a bus.
pub(super) fn disks_on(spec: &MachineSpec, bus: StorageBus) -> Vec<usize> {
    let disks = spec.devices.disks.iter().enumerate();
    let ours = disks.filter(|(_, disk)| disk.bus == bus);
    ours.map(|(index, _)| index).collect()
}

/// The drives on SCSI, target 0 first: disks, then CD drives.
fn targets(spec: &MachineSpec) -> Vec<Wish> {
    let disks = disks_on(spec, StorageBus::Scsi).into_iter().map(Wish::Disk);
    let cdroms = spec.devices.cdroms.iter().enumerate();
    let cdroms = cdroms.filter(|(_, cdrom)| cdrom.bus == StorageBus::Scsi);
    disks.chain(cdroms.map(|(index, _)| Wish::Cdrom(index))).collect()
}

/// Places of a SCSI host.
type Units = Vec<Option<LogicalUnit>>;
/// Images of disks that can go.
type Images = Vec<Option<Arc<ImageMedium>>>;

/// Whether there are drives on SCSI.
pub(super) fn wants_scsi(spec: &MachineSpec) -> bool {
    !targets(spec).is_empty()
}

/// The units of SCSI targets, and the images in them; places for others after them.
pub(super) fn scsi_units(spec: &MachineSpec) -> Result<(Units, Images), BuildError> {
    let (mut units, mut images) = (Vec::new(), Vec::new());
    for wish in targets(spec) {
        let (config, number) = config(spec, wish);
        let image = hotplug::open(&config)?;
        units.push(Some(hotplug::unit(&config, number, image.clone())));
        images.push(image.filter(|_| matches!(wish, Wish::Disk(_))));
    }
    units.resize_with(scsi::TARGETS, || None);
    Ok((units, images))
}

/// Lets users attach and detach drives at the SCSI host, and change discs.
pub(super) fn add_scsi(builder: &mut Builder<'_>, host: &Arc<dyn Ports>, images: Images) {
    for (target, (wish, image)) in targets(builder.spec).into_iter().zip(images).enumerate() {
        let bay = Bay::Scsi(u8::try_from(target).unwrap_or(u8::MAX));
        add_attached(builder, &(Arc::clone(host) as _), (bay, target), wish, image);
    }
    builder.sockets.scsi = Some(Arc::clone(host));
}

/// The disks that are namespaces.
fn namespaces(spec: &MachineSpec) -> Vec<usize> {
    disks_on(spec, StorageBus::Nvme)
}

/// Serial number of a disk.
pub(super) fn serial(spec: &MachineSpec, disk: usize) -> String {
    let (config, number) = config(spec, Wish::Disk(disk));
    hotplug::identity(&config, number).serial
}

pub(super) fn place_nvme(spec: &MachineSpec) -> Vec<Placement> {
    let wanted = !namespaces(spec).is_empty();
    let place = || Placement::new("nvme", "nvme").at(bdf::of(spec, "nvme"));
    wanted.then(place).into_iter().collect()
}

pub(super) fn build_nvme(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let disks = namespaces(builder.spec);
    let first = disks.first().copied().unwrap_or(0);
    let (config, number) = config(builder.spec, Wish::Disk(first));
    let Identity { serial, firmware, .. } = hotplug::identity(&config, number);
    let says = NvmeIdentity {
        model: "OXBOW NVME".to_owned(),
        serial,
        firmware,
    };
    let mut media = Vec::new();
    for disk in disks {
        media.push(disk_medium(builder, disk)?);
        let fixed = (
            name(Wish::Disk(disk)),
            "a namespace of the machine's own NVMe controller",
        );
        builder.sockets.fixed.push(fixed);
    }
    let wires = (pin(builder, place, 1), builder.fabric.messages());
    let (executor, waker) = (executor(builder), waker(builder, place));
    let chip = Nvme::new(wires, says, media, &builder.memory, &executor, &waker);
    Ok(builder.slot(place, chip))
}

/// Where firmware finds each drive, in the order in which it is to boot from them: the file `bootorder`.
pub(super) fn boot_paths(spec: &MachineSpec) -> Vec<u8> {
    let order = match spec.boot.order.as_slice() {
        [] => DEFAULT_ORDER.as_slice(),
        order => order,
    };
    let isa = match spec.machine {
        MachineKind::Q35 => bdf::LPC,
        _ => bdf::ISA_BRIDGE,
    };
    let mut text = String::new();
    for kind in order {
        let paths = match kind {
            BootDevice::Disk => drive_paths(spec, |wish| matches!(wish, Wish::Disk(_))),
            BootDevice::Cdrom => drive_paths(spec, |wish| matches!(wish, Wish::Cdrom(_))),
            BootDevice::Floppy => (0..spec.devices.floppies.len())
                .map(|drive| format!("{}/fdc@03f0/floppy@{drive}", firmware_path(isa, "isa")))
                .collect(),
            BootDevice::Network => super::nic::boot_paths(spec),
        };
        for path in paths {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{path}");
        }
    }
    let mut bytes = text.into_bytes();
    // Lines are separated by newlines, and the last one ends with a zero.
    if let Some(last) = bytes.last_mut() {
        *last = 0;
    }
    bytes
}

/// Open Firmware's path of a PCI function that is called `name`.
pub(super) fn firmware_path(bdf: Bdf, name: &str) -> String {
    let node = |bdf: Bdf, name: &str| match bdf.function() {
        0 => format!("/{name}@{:x}", bdf.device()),
        function => format!("/{name}@{:x},{function:x}", bdf.device()),
    };
    let bridge = match bdf.bus() {
        0 => String::new(),
        bdf::CARDS => node(bdf::PCI_BRIDGE, "pci-bridge"),
        port => node(bdf::port(port), "pci-bridge"),
    };
    format!("/pci@i0cf8{bridge}{}", node(bdf, name))
}

/// Paths of drives, in the order of the spec.
fn drive_paths(spec: &MachineSpec, wanted: impl Fn(&Wish) -> bool) -> Vec<String> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let ahci = firmware_path(bdf::of(spec, "ahci"), "pci8086,2922");
    let nvme = firmware_path(bdf::of(spec, "nvme"), "pci80ee,4e56");
    let mut add = |wish: &Wish, path: String| {
        let (Wish::Disk(index) | Wish::Cdrom(index)) = wish;
        found.push((*index, path));
    };
    for (place, wish) in ide_drives(spec).iter().enumerate() {
        if let Some(wish) = wish.as_ref().filter(|wish| wanted(wish)) {
            let (channel, device) = (place / 2, place % 2);
            add(wish, format!("/pci@i0cf8/ide@1,1/drive@{channel}/disk@{device}"));
        }
    }
    for (port, wish) in ahci_drives(spec).iter().enumerate() {
        if let Some(wish) = wish.as_ref().filter(|wish| wanted(wish)) {
            add(wish, format!("{ahci}/drive@{port}/disk@0"));
        }
    }
    for (number, index) in namespaces(spec).into_iter().enumerate() {
        let wish = Wish::Disk(index);
        if wanted(&wish) {
            add(&wish, format!("{nvme}/namespace@{},0", number + 1));
        }
    }
    for (number, index) in disks_on(spec, StorageBus::Virtio).into_iter().enumerate() {
        let wish = Wish::Disk(index);
        if wanted(&wish) && spec.machine.has_pci() {
            add(
                &wish,
                format!("{}/disk@0,0", firmware_path(bdf::virtio(spec, number), "scsi")),
            );
        }
    }
    for (target, wish) in targets(spec).into_iter().enumerate() {
        if wanted(&wish) && spec.machine.has_pci() {
            let host = firmware_path(super::virtio::bdf_of(spec, "scsi"), "scsi");
            add(&wish, format!("{host}/channel@0/disk@{target:x},0"));
        }
    }
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}
