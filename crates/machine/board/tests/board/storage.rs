//! Disks and CD drives under real firmware: boot loaders come up from every controller.

use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use board::Backends;
use board::Machine;
use spec::CdromConfig;
use spec::DiskConfig;
use spec::EngineKind;
use spec::FloppyConfig;
use spec::MachineKind;
use spec::MachineSpec;
use spec::Size;
use spec::StorageBus;
use tempfile::TempDir;

/// An image of Debian's package grub-rescue-pc; none, and a word about it, where it or the firmware is missing.
fn rescue(name: &str) -> Option<PathBuf> {
    let path = Path::new("/usr/lib/grub-rescue").join(name);
    let here = path.exists() && firmware::rom::find(None).is_ok() && firmware::rom::find_vga().is_some();
    if !here {
        eprintln!("SKIPPED: Debian's packages grub-rescue-pc and seabios are not both here");
    }
    here.then_some(path)
}

fn pc(engine: EngineKind) -> MachineSpec {
    MachineSpec {
        machine: MachineKind::Pc,
        memory: Size::from_mib(128),
        engine,
        ..MachineSpec::default()
    }
}

/// Waits until the screen has a text.
fn boots_to(spec: &MachineSpec, wanted: &str) {
    let machine = Machine::build(spec, Backends::default()).unwrap();
    machine.start().unwrap();
    shows(&machine, wanted);
}

fn shows(machine: &Machine, wanted: &str) {
    let screen = machine.screen().unwrap();
    let end = Instant::now() + Duration::from_secs(300);
    loop {
        let text = screen.text().unwrap_or_default();
        if text.contains(wanted) {
            return;
        }
        assert!(
            Instant::now() < end,
            "{}: no `{wanted}` on the screen:\n{text}\n{:?}",
            machine.engine(),
            machine.inspect()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

const ENGINES: [EngineKind; 2] = [EngineKind::Jit, EngineKind::Interp];

#[test]
fn grub_comes_up_from_a_cd_on_ide_and_ahci() {
    let Some(image) = rescue("grub-rescue-cdrom.iso") else {
        return;
    };
    for engine in ENGINES {
        for bus in [StorageBus::Ide, StorageBus::Ahci] {
            let mut spec = pc(engine);
            let image = Some(image.clone());
            spec.devices.cdroms = vec![CdromConfig { image, bus }];
            boots_to(&spec, "GNU GRUB");
        }
    }
}

#[test]
fn disc_that_is_put_in_boots_and_comes_out_again() {
    let Some(image) = rescue("grub-rescue-cdrom.iso") else {
        return;
    };
    for bus in [StorageBus::Ide, StorageBus::Ahci] {
        let mut spec = pc(EngineKind::Jit);
        spec.devices.cdroms = vec![CdromConfig { image: None, bus }];
        let machine = Machine::build(&spec, Backends::default()).unwrap();
        machine.start().unwrap();
        shows(&machine, "No bootable device");
        let drives = machine.drives();
        let [drive] = drives.as_slice() else {
            panic!("one drive");
        };
        assert_eq!((drive.name(), drive.medium()), ("cd0", None));
        assert!(drive.insert(Path::new("/nonexistent"), true).is_err());
        drive.insert(&image, true).unwrap();
        assert_eq!(drive.medium().map(|medium| medium.path), Some(image.clone()));
        machine.reset().unwrap();
        shows(&machine, "GNU GRUB");
        drive.eject().unwrap();
        assert_eq!(drive.medium(), None);
        machine.reset().unwrap();
        shows(&machine, "No bootable device");
    }
}

#[test]
fn grub_comes_up_from_a_floppy() {
    let Some(image) = rescue("grub-rescue-floppy.img") else {
        return;
    };
    for engine in ENGINES {
        let mut spec = pc(engine);
        spec.devices.floppies = vec![FloppyConfig {
            image: Some(image.clone()),
            read_only: true,
        }];
        boots_to(&spec, "GNU GRUB");
    }
}

#[test]
fn grub_comes_up_from_a_disk_on_every_bus() {
    let Some(image) = rescue("grub-rescue-cdrom.iso") else {
        return;
    };
    // The image is one for sticks too: it begins with a boot sector.
    for engine in ENGINES {
        for bus in [StorageBus::Ide, StorageBus::Ahci, StorageBus::Nvme] {
            let mut spec = pc(engine);
            spec.devices.disks = vec![DiskConfig {
                image: image.clone(),
                bus,
                read_only: true,
                ..DiskConfig::default()
            }];
            boots_to(&spec, "GNU GRUB");
        }
    }
}

#[test]
fn what_cannot_be_opened_is_told_in_a_line() {
    let dir = TempDir::new().unwrap();
    let odd = dir.path().join("odd");
    std::fs::write(&odd, b"QFI\xfb and nothing else").unwrap();
    for (image, part) in [("/nonexistent".into(), "cannot open"), (odd, "odd")] {
        let mut spec = pc(EngineKind::Interp);
        spec.devices.disks = vec![DiskConfig {
            image,
            ..DiskConfig::default()
        }];
        let error = Machine::build(&spec, Backends::default()).err().unwrap().to_string();
        assert!(error.contains(part) && error.lines().count() == 1, "{error}");
    }
}
