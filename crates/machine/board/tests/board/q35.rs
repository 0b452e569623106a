//! The PC with PCI Express: its chipset from a processor's point of view, and firmware on a real engine.

use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use board::Backends;
use board::Machine;
use board::Outcome;
use device_model::Width;
use spec::CdromConfig;
use spec::EngineKind;
use spec::MachineKind;
use spec::MachineSpec;
use spec::PciPlace;
use spec::Size;
use spec::StorageBus;
use tempfile::TempDir;

use crate::fake::Next;
use crate::fake::build;
use crate::pc;
use crate::pc::read_config;
use crate::pc::write_config;

/// Where the tests put memory-mapped configuration space.
const ECAM: u64 = 0xb000_0000;

/// Everything that such a PC can have.
pub(crate) fn everything(dir: &TempDir) -> MachineSpec {
    let mut spec = MachineSpec {
        machine: MachineKind::Q35,
        ..pc::everything(dir)
    };
    spec.devices.disks.retain(|disk| disk.bus != StorageBus::Ide);
    spec.devices.cdroms.retain(|cdrom| cdrom.bus != StorageBus::Ide);
    spec
}

fn configuration(bus: u64, device: u64, function: u64, register: u64) -> u64 {
    ECAM + (bus << 20 | device << 15 | function << 12 | register)
}

#[test]
fn chipset_and_cards_are_found_by_memory_mapped_configuration() {
    let dir = TempDir::new().unwrap();
    let mut spec = everything(&dir);
    spec.devices.nics.truncate(1);
    let places = [("vga", PciPlace::Bridge(3)), ("nic0", PciPlace::Bridge(4))];
    spec.devices.places = places.map(|(name, place)| (name.to_owned(), place)).into();
    let (ids, found) = mpsc::channel();
    let machine = build(&spec, Backends::default(), move |step| {
        if step.number > 0 || step.cpu > 0 {
            return Next::Halt;
        }
        let read = |at: u64| step.board.mmio_read(0, at, Width::Dword);
        assert_eq!(read(configuration(0, 0, 0, 0)), 0xffff_ffff, "it is nowhere yet");
        write_config(step, 0, 0, 0x60, ECAM as u32 | 1);
        let on_bus = |bus: u64| {
            let all = (0..32).flat_map(|device| (0..8).map(move |function| (device, function)));
            let id = |(device, function)| (bus, device, function, read(configuration(bus, device, function, 0)));
            all.map(id).filter(|(.., id)| *id != 0xffff_ffff).collect::<Vec<_>>()
        };
        let mut all = on_bus(0);
        for (device, number) in [(0x1c, 0x07), (0x1e, 0x09)] {
            let buses = configuration(0, device, 0, 0x18);
            step.board
                .mmio_write(0, buses, Width::Dword, number << 16 | number << 8);
            all.extend(on_bus(number));
        }
        // The same registers through the ports.
        write_config(step, 0x1c, 0, 0x18, 0);
        assert_eq!(read_config(step, 0x1c, 0, 0x18), 0);
        assert!(on_bus(7).is_empty());
        let _ = ids.send(all);
        Next::Halt
    });
    machine.start().unwrap();
    let expected = [
        (0, 0x00, 0, 0x29c0_8086),
        (0, 0x0a, 0, 0x1001_1af4),
        (0, 0x0b, 0, 0x1005_1af4),
        (0, 0x0c, 0, 0x1003_1af4),
        (0, 0x0d, 0, 0x1002_1af4),
        (0, 0x0e, 0, 0x105a_1af4),
        (0, 0x0f, 0, 0x1009_1af4),
        (0, 0x10, 0, 0x1053_1af4),
        (0, 0x11, 0, 0x1052_1af4),
        (0, 0x12, 0, 0x1052_1af4),
        (0, 0x13, 0, 0x1052_1af4),
        (0, 0x14, 0, 0x1004_1af4),
        (0, 0x1c, 0, 0x2940_8086),
        (0, 0x1c, 1, 0x2942_8086),
        (0, 0x1c, 2, 0x2944_8086),
        (0, 0x1c, 3, 0x2946_8086),
        (0, 0x1e, 0, 0x244e_8086),
        (0, 0x1f, 0, 0x2918_8086),
        (0, 0x1f, 2, 0x2922_8086),
        (0, 0x1f, 3, 0x2930_8086),
        (7, 0, 0, 0x4e56_80ee),
        (9, 3, 0, 0x1111_1234),
        (9, 4, 0, 0x100e_8086),
    ];
    assert_eq!(found.recv().unwrap(), expected);
}

#[test]
fn acpi_registers_appear_at_their_base_and_soft_off_ends_the_machine() {
    let dir = TempDir::new().unwrap();
    let machine = build(&everything(&dir), Backends::default(), |step| {
        let port = |port| step.board.pio_read(0, port, Width::Word);
        if step.cpu > 0 {
            return Next::Halt;
        }
        assert_eq!(port(0x804), 0xffff);
        write_config(step, 31, 0, 0x40, 0x801);
        write_config(step, 31, 0, 0x44, 0x80);
        assert_eq!(port(0x804), 0, "legacy mode");
        step.out(0xb2, 0xf1);
        assert_eq!(port(0x804), 1, "ACPI mode");
        step.board.pio_write(0, 0x804, Width::Word, 0x2000);
        Next::Go
    });
    machine.start().unwrap();
    assert_eq!(machine.wait(), Outcome::PowerOff);
}

#[test]
fn machine_without_firmware_is_set_up_as_a_bios_would() {
    let dir = TempDir::new().unwrap();
    let kernel = dir.path().join("kernel");
    std::fs::write(&kernel, multiboot()).unwrap();
    let mut spec = everything(&dir);
    spec.boot.firmware = None;
    spec.boot.menu = None;
    spec.boot.kernel = Some(kernel);
    let (values, told) = mpsc::channel();
    let machine = build(&spec, Backends::default(), move |step| {
        if step.cpu == 0 && step.number == 0 {
            return Next::Go;
        }
        let read = |at: u64| step.board.mmio_read(0, at, Width::Dword);
        let seen = [
            read(configuration(0, 0, 0, 0x60)),
            read(configuration(0, 31, 0, 0x40)),
            read(configuration(0, 0x1c, 1, 0x18)),
            read(0xfed1_f410),
        ];
        let _ = values.send(seen);
        Next::Halt
    });
    machine.start().unwrap();
    assert_eq!(told.recv().unwrap(), [0xb000_0001, 0x601, 0x0002_0200, 0x20]);
}

/// The smallest multiboot kernel: a header with addresses, and HLT.
fn multiboot() -> Vec<u8> {
    const LOAD: u32 = 0x10_0000;
    let (magic, flags) = (0x1bad_b002_u32, 0x1_0000_u32);
    let sum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    let fields = [magic, flags, sum, LOAD, LOAD, 0, 0, LOAD + 32];
    let mut image: Vec<u8> = fields.into_iter().flat_map(u32::to_le_bytes).collect();
    image.extend([0xf4; 64]);
    image
}

/// SeaBIOS finds the CD drive of the chipset's own controller, and starts what is on the disc.
#[test]
fn seabios_boots_the_cd_of_the_sata_controller() {
    if let Err(error) = firmware::rom::find(None) {
        eprintln!("SKIPPED: {error}");
        return;
    }
    let dir = TempDir::new().unwrap();
    let disc = dir.path().join("disc.iso");
    std::fs::write(&disc, bootable_disc()).unwrap();
    let mut spec = MachineSpec {
        machine: MachineKind::Q35,
        engine: EngineKind::Jit,
        memory: Size::from_mib(32),
        ..MachineSpec::default()
    };
    spec.devices.debug_exit = Some(spec::DebugExitConfig { port: 0xf4 });
    spec.devices.cdroms = vec![CdromConfig {
        image: Some(disc),
        bus: StorageBus::Ahci,
    }];
    let machine = Machine::build(&spec, Backends::default()).unwrap();
    machine.start().unwrap();
    let begin = Instant::now();
    let outcome = machine.wait_timeout(Duration::from_secs(300));
    assert_eq!(outcome, Some(Outcome::DebugExit(0x2a)), "after {:?}", begin.elapsed());
}

/// A disc by El Torito without emulation, whose code writes 2Ah to the debug-exit port.
fn bootable_disc() -> Vec<u8> {
    const SECTOR: usize = 2048;
    let mut disc = vec![0; 64 * SECTOR];
    let mut put = |sector: usize, at: usize, bytes: &[u8]| {
        let start = sector * SECTOR + at;
        disc[start..start + bytes.len()].copy_from_slice(bytes);
    };
    put(16, 0, b"\x01CD001\x01");
    put(17, 0, b"\x00CD001\x01EL TORITO SPECIFICATION");
    put(17, 71, &20u32.to_le_bytes());
    put(18, 0, b"\xffCD001\x01");
    // Validation entry, whose words add up to zero, then the initial entry: four sectors of 512 bytes at sector 21.
    put(20, 0, &[1, 0, 0, 0]);
    put(20, 28, &[0xaa, 0x55, 0x55, 0xaa]);
    put(20, 32, &[0x88, 0, 0, 0, 0, 0, 4, 0, 21, 0, 0, 0]);
    // mov al, 2Ah; out F4h, al; hlt; jmp back.
    put(21, 0, &[0xb0, 0x2a, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd]);
    disc
}
