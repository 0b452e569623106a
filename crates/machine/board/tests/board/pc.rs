//! The PC: its PCI chipset from a processor's point of view, and firmware on the real engines.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::time::Duration;
use std::time::Instant;

use board::Backends;
use board::Machine;
use board::Outcome;
use device_model::Width;
use spec::CdromConfig;
use spec::DebugExitConfig;
use spec::DiskConfig;
use spec::EngineKind;
use spec::FloppyConfig;
use spec::MacAddress;
use spec::MachineKind;
use spec::MachineSpec;
use spec::NetworkConfig;
use spec::NicConfig;
use spec::NicModel;
use spec::Size;
use spec::StorageBus;
use tempfile::TempDir;

use crate::fake::Next;
use crate::fake::Step;
use crate::fake::build;

/// Address of a register for CONFIG_ADDRESS: functions of bus 0.
pub(crate) fn config(device: u32, function: u32, register: u32) -> u32 {
    1 << 31 | device << 11 | function << 8 | register
}

pub(crate) fn read_config(step: &Step<'_>, device: u32, function: u32, register: u32) -> u32 {
    step.board
        .pio_write(step.cpu, 0xcf8, Width::Dword, config(device, function, register));
    step.board.pio_read(step.cpu, 0xcfc, Width::Dword)
}

pub(crate) fn write_config(step: &Step<'_>, device: u32, function: u32, register: u32, value: u32) {
    step.board
        .pio_write(step.cpu, 0xcf8, Width::Dword, config(device, function, register));
    step.board.pio_write(step.cpu, 0xcfc, Width::Dword, value);
}

/// A PC with an image of its own that is firmware by its size only.
struct Rom {
    dir: TempDir,
}

impl Rom {
    /// An image whose code at F000:E000 is entered by the reset vector.
    fn new(code: &[u8]) -> Self {
        let mut image = vec![0; 128 << 10];
        image[0x1_e000..0x1_e000 + code.len()].copy_from_slice(code);
        image[0x1_fff0..0x1_fff5].copy_from_slice(&[0xea, 0x00, 0xe0, 0x00, 0xf0]);
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("rom"), image).unwrap();
        Self { dir }
    }

    fn spec(&self) -> MachineSpec {
        let mut spec = MachineSpec {
            machine: MachineKind::Pc,
            memory: Size::from_mib(16),
            ..MachineSpec::default()
        };
        spec.boot.firmware = Some(self.dir.path().join("rom"));
        spec.devices.debug_exit = Some(DebugExitConfig { port: 0xf4 });
        spec
    }
}

/// An image of a disk for a bus.
fn hard_disk(dir: &TempDir, bus: StorageBus) -> PathBuf {
    let path = dir.path().join(format!("disk.{bus:?}"));
    std::fs::write(&path, vec![0x5a; 1 << 20]).unwrap();
    path
}

/// Everything that a PC can have.
pub(crate) fn everything(dir: &TempDir) -> MachineSpec {
    let rom = dir.path().join("rom");
    std::fs::write(&rom, vec![0xf4; 256 << 10]).unwrap();
    let disk = dir.path().join("floppy");
    std::fs::write(&disk, vec![0xe5; 1440 << 10]).unwrap();
    let mut spec = MachineSpec {
        machine: MachineKind::Pc,
        memory: Size::from_mib(4),
        ..crate::fake::everything()
    };
    spec.boot.firmware = Some(rom);
    spec.boot.menu = Some(100);
    let floppy = |image| FloppyConfig {
        image,
        // Machines of a pair share it.
        read_only: true,
    };
    spec.devices.floppies = vec![floppy(Some(disk)), floppy(None)];
    // One image for each drive, since an image is nobody else's while it is open.
    let drive = |bus| DiskConfig {
        image: hard_disk(dir, bus),
        bus,
        read_only: true,
        ..DiskConfig::default()
    };
    let buses = [StorageBus::Ide, StorageBus::Ahci, StorageBus::Nvme, StorageBus::Virtio];
    spec.devices.disks = buses.map(drive).into();
    spec.devices.disks.push(drive(StorageBus::Scsi));
    let cdrom = |bus| CdromConfig { image: None, bus };
    spec.devices.cdroms = vec![cdrom(StorageBus::Ide), cdrom(StorageBus::Ahci), cdrom(StorageBus::Scsi)];
    let nic = |model, last| NicConfig {
        model,
        mac: Some(MacAddress([8, 0, 0x27, 0, 0, last])),
        ..NicConfig::new(NetworkConfig::Null)
    };
    let models = [
        NicModel::E1000,
        NicModel::I82543Gc,
        NicModel::I82545Em,
        NicModel::Pcnet,
        NicModel::Am79C970A,
        NicModel::Virtio,
    ];
    spec.devices.nics = models
        .into_iter()
        .zip(1..)
        .map(|(model, last)| nic(model, last))
        .collect();
    spec
}

#[test]
fn chipset_is_found_on_bus_0_and_nothing_else() {
    let rom = Rom::new(&[]);
    let (ids, found) = mpsc::channel();
    let machine = build(&rom.spec(), Backends::default(), move |step| {
        if step.number == 0 {
            let all = (0..32).flat_map(|device| (0..8).map(move |function| (device, function)));
            let ids_of = |(device, function)| (device, function, read_config(step, device, function, 0));
            let there: Vec<_> = all.map(ids_of).filter(|(_, _, id)| *id != u32::MAX).collect();
            let _ = ids.send(there);
        }
        Next::Halt
    });
    machine.start().unwrap();
    let expected = [
        (0, 0, 0x1237_8086),
        (1, 0, 0x7000_8086),
        (1, 1, 0x7010_8086),
        (1, 3, 0x7113_8086),
        (2, 0, 0x1111_1234),
    ];
    assert_eq!(found.recv().unwrap(), expected);
}

#[test]
fn byte_write_to_cf9_still_resets() {
    let rom = Rom::new(&[]);
    let mut spec = rom.spec();
    spec.on_reset = spec::OnReset::Stop;
    let machine = build(&spec, Backends::default(), |step| {
        // A double word there is the configuration address.
        write_config(step, 0, 0, 0x50, 0x0600_0600);
        step.out(0xcf9, 6);
        Next::Go
    });
    machine.start().unwrap();
    assert_eq!(machine.wait(), Outcome::Reset);
}

#[test]
fn acpi_registers_appear_at_their_base_and_soft_off_ends_the_machine() {
    let rom = Rom::new(&[]);
    let machine = build(&rom.spec(), Backends::default(), |step| {
        let port = |port| step.board.pio_read(0, port, Width::Word);
        assert_eq!(port(0x804), 0xffff);
        write_config(step, 1, 3, 0x40, 0x801);
        write_config(step, 1, 3, 0x80, 1);
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
fn power_button_is_an_event_that_interrupts() {
    let rom = Rom::new(&[]);
    let (steps, stepped) = mpsc::channel();
    let machine = build(&rom.spec(), Backends::default(), move |step| {
        if step.number == 0 {
            // 8259s at 20h and 28h with interrupts 2 and 9 open, 9 level-triggered; the local APIC passes them on.
            let writes = [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfb)];
            let slave = [
                (0xa0, 0x11),
                (0xa1, 0x28),
                (0xa1, 2),
                (0xa1, 1),
                (0xa1, 0xfd),
                (0x4d1, 2),
            ];
            writes
                .into_iter()
                .chain(slave)
                .for_each(|(port, value)| step.out(port, value));
            step.board.mmio_write(0, 0xfee0_00f0, Width::Dword, 0x1ff);
            step.board.mmio_write(0, 0xfee0_0350, Width::Dword, 0x700);
            write_config(step, 1, 3, 0x40, 0x601);
            write_config(step, 1, 3, 0x80, 1);
            step.out(0xb2, 0xf1);
            step.board.pio_write(0, 0x602, Width::Word, 0x100);
            let _ = steps.send(None);
            return Next::Halt;
        }
        let vector = step.board.take_interrupt(0);
        if vector.is_some() {
            let status = step.board.pio_read(0, 0x600, Width::Word);
            step.board.pio_write(0, 0x600, Width::Word, 0x100);
            let _ = steps.send(vector.map(|vector| (vector, status & 0x100)));
        }
        Next::Halt
    });
    machine.start().unwrap();
    assert_eq!(stepped.recv().unwrap(), None);
    assert!(machine.press_power_button());
    assert_eq!(stepped.recv().unwrap(), Some((0x29, 0x100)));
}

#[test]
fn ram_is_where_the_map_has_it_around_the_hole() {
    let rom = Rom::new(&[]);
    let mut spec = rom.spec();
    for (mib, pieces) in [
        (16, vec![(0, 0xa_0000), (0x10_0000, 15 << 20)]),
        (3584, vec![(0, 0xa_0000), (0x10_0000, 0xe000_0000 - 0x10_0000)]),
        (
            3585,
            vec![(0, 0xa_0000), (0x10_0000, 0xbff0_0000), (1 << 32, 513 << 20)],
        ),
    ] {
        spec.memory = Size::from_mib(mib);
        let plan = board::plan(&spec).unwrap();
        assert_eq!(plan.ram, pieces, "{mib} MiB");
        assert_eq!(plan.memory, mib << 20);
    }
}

#[test]
fn shadow_ram_a20_and_config_address_survive_a_saved_state() {
    let rom = Rom::new(&[]);
    let (done, ready) = mpsc::channel();
    let used = build(&rom.spec(), Backends::default(), move |step| {
        if step.number == 0 {
            write_config(step, 0, 0, 0x58, 0x0000_3000);
            write_config(step, 0, 0, 0x5c, 0x0300_0000);
            step.out(0x92, 0);
            let _ = done.send(());
        }
        Next::Halt
    });
    used.start().unwrap();
    ready.recv().unwrap();
    used.pause().unwrap();
    used.memory().write(0xf_1234, b"shadow").unwrap();
    let saved = used.save().unwrap();
    let new = crate::fake::idle(&rom.spec());
    new.restore(saved.clone()).unwrap();
    assert_eq!(new.memory().read_obj::<[u8; 6]>(0xf_1234).unwrap(), *b"shadow");
    assert!(!new.memory().a20());
    assert_eq!(new.save().unwrap(), saved);
}

/// Code that ends the machine through the debug-exit port.
fn exit(code: u8) -> Vec<u8> {
    vec![0xba, 0xf4, 0x00, 0xb0, code, 0xee, 0xf4]
}

fn out8(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0xba, low, high, 0xb0, value, 0xee]
}

/// mov ax, segment; mov ds, ax
fn set_ds(segment: u16) -> Vec<u8> {
    let [low, high] = segment.to_le_bytes();
    vec![0xb8, low, high, 0x8e, 0xd8]
}

/// mov byte [offset], value
fn store(offset: u16, value: u8) -> Vec<u8> {
    let [low, high] = offset.to_le_bytes();
    vec![0xc6, 0x06, low, high, value]
}

/// Exits with `code` unless the byte at an offset is `value`.
fn check(code: u8, offset: u16, value: u8) -> Vec<u8> {
    let [low, high] = offset.to_le_bytes();
    [vec![0x80, 0x3e, low, high, value, 0x74, 7], exit(code)].concat()
}

/// Attributes of the segments at C0000h: register 5Ah of the host bridge, by way of CONFIG_ADDRESS 80000058h.
fn pam1(value: u8) -> Vec<u8> {
    let select = [0x66, 0xb8, 0x58, 0x00, 0x00, 0x80, 0xba, 0xf8, 0x0c, 0x66, 0xef];
    [select.to_vec(), out8(0xcfe, value)].concat()
}

#[test]
fn engines_see_remapped_memory_with_the_next_instruction() {
    let code = [
        set_ds(0xc000),
        check(1, 0, 0xff),
        pam1(3),
        check(2, 0, 0),
        store(0, 0x5a),
        check(3, 0, 0x5a),
        pam1(1),
        store(0, 0x11),
        check(4, 0, 0x5a),
        // Reads from the bus, writes to RAM.
        pam1(2),
        check(5, 0, 0xff),
        store(0, 0x22),
        pam1(3),
        check(6, 0, 0x22),
        pam1(0),
        check(7, 0, 0xff),
        // Address line 20.
        set_ds(0),
        store(0x500, 0x77),
        set_ds(0xffff),
        store(0x510, 0x66),
        set_ds(0),
        check(8, 0x500, 0x77),
        out8(0x92, 0),
        set_ds(0xffff),
        check(9, 0x510, 0x77),
        out8(0x92, 2),
        check(10, 0x510, 0x66),
        exit(0x2a),
    ]
    .concat();
    let rom = Rom::new(&code);
    for engine in [EngineKind::Interp, EngineKind::Jit, EngineKind::Kvm] {
        if !is_usable(engine) {
            continue;
        }
        let mut spec = rom.spec();
        spec.engine = engine;
        let machine = Machine::build(&spec, Backends::default()).unwrap();
        machine.start().unwrap();
        let outcome = machine.wait_timeout(Duration::from_secs(60));
        assert_eq!(outcome, Some(Outcome::DebugExit(0x2a)), "{engine}");
    }
}

/// Collects what firmware says.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn text(&self) -> String {
        let bytes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until firmware has said `text`.
    fn wait(&self, text: &str) -> String {
        let end = Instant::now() + Duration::from_secs(120);
        while !self.text().contains(text) {
            assert!(Instant::now() < end, "no `{text}` in:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(20));
        }
        self.text()
    }
}

/// Whether the host can run the engine; says so if not.
fn is_usable(engine: EngineKind) -> bool {
    let found = kvm::availability();
    let usable = engine != EngineKind::Kvm || found.usable;
    if !usable {
        eprintln!("SKIPPED: {found}");
    }
    usable
}

/// Whether the host has SeaBIOS; says so if not.
fn has_seabios() -> bool {
    let found = firmware::rom::find(None);
    if let Err(error) = &found {
        eprintln!("SKIPPED: {error}");
    }
    found.is_ok()
}

fn seabios(spec: &MachineSpec) -> (Machine, Log) {
    let log = Log::default();
    let backends = Backends {
        debugcon: Some(Box::new(log.clone())),
        ..Backends::default()
    };
    (Machine::build(spec, backends).unwrap(), log)
}

#[test]
fn seabios_finds_the_chipset_and_comes_to_its_end_on_every_engine() {
    if !has_seabios() {
        return;
    }
    for engine in [EngineKind::Interp, EngineKind::Jit, EngineKind::Kvm] {
        if !is_usable(engine) {
            continue;
        }
        let spec = MachineSpec {
            machine: MachineKind::Pc,
            memory: Size::from_mib(64),
            cpus: 2,
            engine,
            ..MachineSpec::default()
        };
        let (machine, log) = seabios(&spec);
        machine.start().unwrap();
        let text = log.wait("No bootable device.");
        for part in [
            "addr 0x0000000000000000 len 0x0000000004000000 [RAM]",
            "Found 2 cpu(s) max supported 2 cpu(s)",
            "init bdf=00:00.0 id=8086:1237",
            "init bdf=00:01.0 id=8086:7000",
            "init bdf=00:01.3 id=8086:7113",
            "Copying SMBIOS",
            "ACPI: parse DSDT",
            "PS2 keyboard initialized",
            "Booting from Hard Disk",
        ] {
            assert!(text.contains(part), "{engine}: no `{part}` in:\n{text}");
        }
        // The button of the case starts it over.
        machine.reset().unwrap();
        let again = |log: &Log| log.text().matches("No bootable device.").count() == 2;
        let end = Instant::now() + Duration::from_secs(120);
        while !again(&log) {
            assert!(Instant::now() < end, "{engine}: no second time:\n{}", log.text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[test]
fn seabios_reads_a_boot_sector_from_the_floppy_drive() {
    if !has_seabios() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("disk");
    let mut bytes = vec![0; 1440 << 10];
    // Reads the second sector to 7E00h by interrupt 13h, and exits with its first byte, or with the error.
    let code = [
        0x31, 0xc0, 0x8e, 0xc0, 0xbb, 0x00, 0x7e, 0xb8, 0x01, 0x02, 0xb9, 0x02, 0x00, 0x30, 0xf6, 0xcd, 0x13, 0x88,
        0xe0, 0x72, 0x05, 0x8e, 0xd8, 0xa0, 0x00, 0x7e, 0xba, 0xf4, 0x00, 0xee, 0xf4,
    ];
    bytes[..code.len()].copy_from_slice(&code);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes[512] = 0x37;
    std::fs::write(&image, bytes).unwrap();
    let mut spec = MachineSpec {
        machine: MachineKind::Pc,
        memory: Size::from_mib(32),
        ..MachineSpec::default()
    };
    spec.devices.debug_exit = Some(DebugExitConfig { port: 0xf4 });
    spec.devices.floppies = vec![FloppyConfig {
        image: Some(image),
        read_only: true,
    }];
    let (machine, log) = seabios(&spec);
    machine.start().unwrap();
    let outcome = machine.wait_timeout(Duration::from_secs(120));
    assert_eq!(outcome, Some(Outcome::DebugExit(0x37)), "{}", log.text());
}

#[test]
fn missing_and_odd_images_are_told_in_a_line() {
    let dir = TempDir::new().unwrap();
    let odd = dir.path().join("odd");
    std::fs::write(&odd, [0; 1000]).unwrap();
    let rom = Rom::new(&[]);
    let failure = |change: &dyn Fn(&mut MachineSpec)| {
        let mut spec = rom.spec();
        change(&mut spec);
        match Machine::build(&spec, Backends::default()) {
            Ok(_) => panic!("it was built"),
            Err(error) => error.to_string(),
        }
    };
    let image = |spec: &mut MachineSpec, path: PathBuf| {
        spec.devices.floppies = vec![FloppyConfig {
            image: Some(path),
            read_only: false,
        }];
    };
    let messages = [
        (
            failure(&|spec| spec.boot.firmware = Some(odd.clone())),
            "no firmware image",
        ),
        (
            failure(&|spec| spec.boot.firmware = Some("/nonexistent".into())),
            "cannot read",
        ),
        (failure(&|spec| image(spec, "/nonexistent".into())), "cannot open"),
        (
            failure(&|spec| spec.memory = Size::from_mib(2)),
            "memory: 2M is too little",
        ),
    ];
    for (message, part) in messages {
        assert!(message.contains(part) && message.lines().count() == 1, "{message}");
    }
}

/// A boot sector that reads the sector behind it to 7E00h, waits until the byte at 600h is set, and suspends to RAM.
fn sleeper() -> Vec<u8> {
    let mut bytes = vec![0; 1440 << 10];
    let code = [
        0x31, 0xc0, 0x8e, 0xc0, 0x8e, 0xd8, 0xbb, 0x00, 0x7e, 0xb8, 0x01, 0x02, 0xb9, 0x02, 0x00, 0x30, 0xf6, 0xcd,
        0x13, // cmp byte [600h], 0; je back; mov dx, 604h; mov ax, 2400h; out dx, ax; jmp to itself
        0x80, 0x3e, 0x00, 0x06, 0x00, 0x74, 0xf9, 0xba, 0x04, 0x06, 0xb8, 0x00, 0x24, 0xef, 0xeb, 0xfe,
    ];
    bytes[..code.len()].copy_from_slice(&code);
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes[512..519].copy_from_slice(&exit(0x53));
    bytes
}

/// Where firmware has put the FACS.
fn find_facs(machine: &Machine, end: u64) -> u64 {
    let is_facs = |at: &u64| {
        machine
            .memory()
            .read_obj::<[u8; 4]>(*at)
            .is_ok_and(|bytes| bytes == *b"FACS")
    };
    (end - (1 << 20)..end).step_by(64).find(is_facs).expect("a FACS")
}

#[test]
fn seabios_resumes_a_guest_that_suspended_to_ram() {
    if !has_seabios() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("disk");
    std::fs::write(&image, sleeper()).unwrap();
    let mut spec = MachineSpec {
        machine: MachineKind::Pc,
        memory: Size::from_mib(32),
        ..MachineSpec::default()
    };
    spec.devices.debug_exit = Some(DebugExitConfig { port: 0xf4 });
    spec.devices.floppies = vec![FloppyConfig {
        image: Some(image),
        read_only: true,
    }];
    let (machine, log) = seabios(&spec);
    machine.start().unwrap();
    log.wait("Booting from 0000:7c00");
    let end = Instant::now() + Duration::from_secs(60);
    while machine.memory().read_obj::<u8>(0x7e00).unwrap() == 0 {
        assert!(Instant::now() < end, "{}", log.text());
        std::thread::sleep(Duration::from_millis(10));
    }
    let facs = find_facs(&machine, 32 << 20);
    machine.memory().write(facs + 12, &0x7e00u32.to_le_bytes()).unwrap();
    machine.memory().write(0x600, &[1]).unwrap();
    while machine.state() != board::RunState::Suspended {
        assert!(Instant::now() < end, "it does not sleep:\n{}", log.text());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(machine.press_power_button());
    let outcome = machine.wait_timeout(Duration::from_secs(60));
    assert_eq!(outcome, Some(Outcome::DebugExit(0x53)), "{}", log.text());
}

/// Whether the host has OVMF; says so if not.
fn has_ovmf() -> bool {
    let found = firmware::rom::find_uefi();
    if let Err(error) = &found {
        eprintln!("SKIPPED: {error}");
    }
    found.is_ok()
}

#[test]
fn ovmf_starts_its_shell_and_keeps_its_variables() {
    if !has_ovmf() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let variables = dir.path().join("variables");
    let mut spec = MachineSpec {
        machine: MachineKind::Pc,
        memory: Size::from_mib(256),
        ..MachineSpec::default()
    };
    spec.boot.uefi = Some(spec::UefiSpec {
        variables: Some(variables.clone()),
    });
    let (port, host) = board::serial_wire();
    let mut backends = Backends::default();
    backends.serial.insert("com1".to_owned(), port);
    let machine = Machine::build(&spec, backends).unwrap();
    machine.start().unwrap();
    let seen = Log::default();
    let mut copy = seen.clone();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        while host.read(&mut bytes) {
            let _ = copy.write(&bytes);
            bytes.clear();
        }
    });
    seen.wait("UEFI Interactive Shell");
    machine.stop().unwrap();
    reader.join().unwrap();
    let template = std::fs::read(firmware::rom::find_uefi().unwrap().1).unwrap();
    let kept = std::fs::read(&variables).unwrap();
    assert_eq!(kept.len(), template.len());
    assert_ne!(kept, template, "the firmware has noted its boot options");
    std::fs::write(&variables, b"short").unwrap();
    let error = Machine::build(&spec, Backends::default()).err().unwrap().to_string();
    assert!(error.contains("holds no variables"), "{error}");
}
