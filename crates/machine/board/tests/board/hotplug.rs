//! Drives that come and go while the machine runs, with a guest that does what its registers ask for.

use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use board::Attach;
use board::Machine;
use board::PlugError;
use device_model::At;
use device_model::SharedDevice;
use device_model::Width;
use disk_image::OpenOptions;
use spec::Bay;
use spec::CdromConfig;
use spec::DiskConfig;
use spec::DriveConfig;
use spec::MachineKind;
use spec::MachineSpec;
use spec::PciPlace;
use spec::Size;
use spec::StorageBus;
use tempfile::TempDir;

use crate::fake::idle;

/// Slot control of a root port, and that its power is off.
const SLOT_CONTROL: u16 = 0x60;
const POWER_OFF: u32 = 1 << 10;

fn spec(machine: MachineKind) -> MachineSpec {
    MachineSpec {
        machine,
        memory: Size::from_mib(16),
        ..MachineSpec::default()
    }
}

fn image(dir: &TempDir, name: &str) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    path
}

fn disk(image: PathBuf, bus: StorageBus) -> Attach {
    let disk = DiskConfig {
        image,
        bus,
        ..DiskConfig::default()
    };
    Attach {
        id: None,
        drive: DriveConfig::Disk(disk),
        bay: None,
    }
}

fn device<'a>(machine: &'a Machine, name: &str) -> &'a SharedDevice {
    machine.devices().iter().find(|device| device.name() == name).unwrap()
}

fn ids(machine: &Machine) -> Vec<(String, Bay, bool)> {
    let attached = machine.attached().into_iter();
    attached.map(|drive| (drive.id, drive.bay, drive.detaching)).collect()
}

/// Waits until nothing is attached.
fn gone(machine: &Machine) {
    let end = Instant::now() + Duration::from_secs(60);
    while !machine.attached().is_empty() {
        assert!(Instant::now() < end, "{:?}", ids(machine));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether another program could write to the image.
fn is_free(image: &std::path::Path) -> bool {
    let options = OpenOptions {
        write: true,
        ..OpenOptions::default()
    };
    disk_image::open(image, &options).is_ok()
}

/// Whether there is a device of this name.
fn shows(machine: &Machine, name: &str) -> bool {
    machine
        .inspect()
        .unwrap()
        .at(&format!("{}/devices/{name}", machine.plan().board))
        .is_some()
}

#[test]
fn card_in_a_slot_goes_when_the_guest_ejects_it() {
    let dir = TempDir::new().unwrap();
    let machine = idle(&spec(MachineKind::Pc));
    machine.start().unwrap();
    let image = image(&dir, "a.img");
    let attached = machine.attach(disk(image.clone(), StorageBus::Nvme)).unwrap();
    let bay = Bay::Card(PciPlace::Root(3));
    assert_eq!((attached.id.as_str(), attached.bay), ("disk0", bay));
    assert!(shows(&machine, "disk0") && !is_free(&image));
    let slots = device(&machine, "slots");
    let read = |offset| slots.read(At { region: 0, offset }, Width::Dword);
    assert_eq!((read(0), read(4)), (8, 0));
    assert!(!machine.detach("disk0", false).unwrap());
    assert_eq!(ids(&machine), [("disk0".to_owned(), bay, true)]);
    assert_eq!((read(0), read(4)), (0, 8));
    slots.write(At { region: 0, offset: 8 }, Width::Dword, 8);
    gone(&machine);
    assert!(!shows(&machine, "disk0") && is_free(&image));
    // Without being asked.
    machine.attach(disk(image.clone(), StorageBus::Ahci)).unwrap();
    assert!(machine.detach("disk0", true).unwrap());
    assert!(machine.attached().is_empty() && is_free(&image));
}

#[test]
fn card_in_a_port_goes_when_the_guest_turns_its_power_off() {
    let dir = TempDir::new().unwrap();
    let machine = idle(&spec(MachineKind::Q35));
    machine.start().unwrap();
    let image = image(&dir, "a.img");
    let wish = Attach {
        id: Some("scratch".to_owned()),
        bay: Some(Bay::Card(PciPlace::Port(2))),
        ..disk(image.clone(), StorageBus::Nvme)
    };
    machine.attach(wish).unwrap();
    let control = |value: u32| {
        device(&machine, "port2").with(|port| port.as_pci().unwrap().config_write(SLOT_CONTROL, Width::Word, value));
    };
    control(0);
    assert!(!machine.detach("scratch", false).unwrap());
    control(POWER_OFF);
    gone(&machine);
    assert!(is_free(&image));
    // A slot that is turned off by itself keeps its card, which then goes at once.
    machine.attach(disk(image.clone(), StorageBus::Nvme)).unwrap();
    assert_eq!(
        ids(&machine),
        [("disk0".to_owned(), Bay::Card(PciPlace::Port(1)), false)]
    );
    assert!(machine.detach("disk0", false).unwrap(), "it has no power");
}

#[test]
fn saved_machine_has_its_drives() {
    let dir = TempDir::new().unwrap();
    let mut spec = spec(MachineKind::Q35);
    spec.devices.disks = vec![DiskConfig {
        image: image(&dir, "boot.img"),
        bus: StorageBus::Ahci,
        ..DiskConfig::default()
    }];
    let machine = idle(&spec);
    machine.attach(disk(image(&dir, "a.img"), StorageBus::Ahci)).unwrap();
    machine.attach(disk(image(&dir, "b.img"), StorageBus::Nvme)).unwrap();
    let cdrom = DriveConfig::Cdrom(CdromConfig {
        image: None,
        bus: StorageBus::Ahci,
    });
    let (id, bay) = (None, Some(Bay::Sata(5)));
    machine.attach(Attach { id, drive: cdrom, bay }).unwrap();
    assert!(machine.detach("disk0", false).unwrap(), "a drive of the spec goes too");
    let before = ids(&machine);
    let state = machine.save().unwrap();
    assert_eq!(machine.drives().len(), 1);
    for id in ["disk1", "disk2", "cd0"] {
        assert!(machine.detach(id, true).unwrap());
    }
    assert!(machine.drives().is_empty());
    machine.restore(state.clone()).unwrap();
    assert_eq!(ids(&machine), before);
    assert_eq!(machine.save().unwrap(), state);
    machine.start().unwrap();
    machine.reset().unwrap();
    assert_eq!(ids(&machine), before, "a reset changes nothing");
    drop(machine);
    let other = idle(&spec);
    other.restore(state.clone()).unwrap();
    assert_eq!(other.save().unwrap(), state);
    std::fs::remove_file(dir.path().join("a.img")).unwrap();
    drop(other);
    let error = idle(&spec).restore(state).unwrap_err();
    assert!(format!("{:?}", anyhow_like(&error)).contains("a.img"), "{error:?}");
}

/// An error and its causes.
fn anyhow_like(error: &dyn std::error::Error) -> Vec<String> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect()
}

/// A machine with a SCSI host, at which there is a CD drive.
fn scsi(machine: MachineKind) -> MachineSpec {
    let mut spec = spec(machine);
    spec.devices.cdroms = vec![CdromConfig {
        image: None,
        bus: StorageBus::Scsi,
    }];
    spec
}

#[test]
fn targets_of_a_scsi_host_come_and_go_on_every_board() {
    let dir = TempDir::new().unwrap();
    for kind in [MachineKind::Microvm, MachineKind::Pc, MachineKind::Q35] {
        let machine = idle(&scsi(kind));
        machine.start().unwrap();
        let image = image(&dir, "a.img");
        let attached = machine.attach(disk(image.clone(), StorageBus::Scsi)).unwrap();
        assert_eq!((attached.id.as_str(), attached.bay), ("disk0", Bay::Scsi(1)));
        assert!(!is_free(&image));
        assert!(shows(&machine, "scsi/device/targets/1"), "{kind}");
        machine.pause().unwrap();
        let state = machine.save().unwrap();
        // The drive that was there from the start goes as well.
        assert!(machine.detach("disk0", false).unwrap() && machine.detach("cd0", false).unwrap());
        assert!(is_free(&image) && machine.attached().is_empty() && machine.drives().is_empty());
        assert!(!shows(&machine, "scsi/device/targets/1"));
        machine.restore(state.clone()).unwrap();
        assert_eq!(machine.save().unwrap(), state);
        assert!(!is_free(&image) && machine.drives().len() == 1);
    }
}

#[test]
fn scsi_drive_brings_a_host_where_there_is_none() {
    let dir = TempDir::new().unwrap();
    let pc = idle(&spec(MachineKind::Pc));
    let attached = pc.attach(disk(image(&dir, "a.img"), StorageBus::Scsi)).unwrap();
    assert_eq!(attached.bay, Bay::Card(PciPlace::Root(3)));
    let microvm = idle(&spec(MachineKind::Microvm));
    let error = microvm
        .attach(disk(image(&dir, "b.img"), StorageBus::Scsi))
        .unwrap_err();
    assert!(error.to_string().contains("--cdrom none,bus=scsi"), "{error}");
}

#[test]
fn what_cannot_be_attached_is_told() {
    let dir = TempDir::new().unwrap();
    let mut pc = spec(MachineKind::Pc);
    pc.devices.disks = vec![DiskConfig {
        image: image(&dir, "ide.img"),
        ..DiskConfig::default()
    }];
    let pc = idle(&pc);
    let q35 = idle(&spec(MachineKind::Q35));
    let at = |bay: &str, wish: Attach| Attach {
        bay: Some(bay.parse().unwrap()),
        ..wish
    };
    let named = |id: &str, wish: Attach| Attach {
        id: Some(id.to_owned()),
        ..wish
    };
    let any = || disk(image(&dir, "a.img"), StorageBus::Nvme);
    let sata = || disk(image(&dir, "a.img"), StorageBus::Ahci);
    let full = idle(&scsi(MachineKind::Microvm));
    for target in 1..64 {
        let cdrom = DriveConfig::Cdrom(CdromConfig {
            image: None,
            bus: StorageBus::Scsi,
        });
        let (id, bay) = (None, None);
        let attached = full.attach(Attach { id, drive: cdrom, bay }).unwrap();
        assert_eq!(attached.bay, Bay::Scsi(target));
    }
    let scsi = || disk(image(&dir, "a.img"), StorageBus::Scsi);
    q35.attach(disk(image(&dir, "taken.img"), StorageBus::Ahci)).unwrap();
    for (machine, wish, part) in [
        (&pc, disk(image(&dir, "a.img"), StorageBus::Ide), "bus=ahci"),
        (&pc, at("port1", any()), "port1 takes no cards"),
        (&pc, at("slot1", any()), "slot1 takes no cards"),
        (&pc, at("sata0", sata()), "no SATA controller"),
        (&pc, named("a/b", any()), "is no name"),
        (&pc, named("pm", any()), "is taken"),
        (&q35, named("disk0", sata()), "is taken"),
        (&q35, at("sata0", sata()), "sata0 is taken"),
        (&q35, at("sata1", any()), "no nvme disks"),
        (&q35, at("bridge3", any()), "bridge3 takes no cards"),
        (&q35, at("scsi3", any()), "scsi3 takes no nvme disks"),
        (&q35, at("scsi3", scsi()), "no SCSI host"),
        (&full, at("scsi1", scsi()), "scsi1 is taken"),
        (&full, scsi(), "all targets of the SCSI host are taken"),
        (&q35, disk(dir.path().join("none.img"), StorageBus::Ahci), "none.img"),
        (&q35, disk(dir.path().join("taken.img"), StorageBus::Ahci), "taken.img"),
    ] {
        let error = machine.attach(wish.clone()).unwrap_err();
        let told = anyhow_like(&error).join(": ");
        assert!(told.contains(part), "{wish:?}: {told}");
    }
    let error = pc.detach("disk0", true).unwrap_err();
    assert!(matches!(error, PlugError::Fixed { .. }), "{error}");
    let error = q35.detach("disk7", true).unwrap_err();
    assert!(error.to_string().contains("there are disk0"), "{error}");
    for _ in 0..4 {
        let name = format!("{}.img", q35.attached().len());
        q35.attach(disk(image(&dir, &name), StorageBus::Nvme)).unwrap();
    }
    let error = q35.attach(any()).unwrap_err();
    assert!(error.to_string().contains("are taken; detach a drive"), "{error}");
}
