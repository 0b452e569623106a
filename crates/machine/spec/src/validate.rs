//! Checks of a spec by itself: everything wrong is found at once, and each problem names the field.

use std::fmt;

use crate::DiskConfig;
use crate::MachineKind;
use crate::MachineSpec;
use crate::NICS;
use crate::NicModel;
use crate::PciPlace;
use crate::SHARES;
use crate::Size;
use crate::StorageBus;
use crate::VgaConfig;
use crate::VsockConfig;

/// Memory that holds the low megabyte and something above it.
const MIN_MEMORY: Size = Size::from_mib(2);
/// Kinds of device that the CMOS memory can name.
const BOOT_DEVICES: usize = 3;
/// Bytes of video memory.
const VIDEO_MEMORY: std::ops::RangeInclusive<u64> = 1 << 20..=256 << 20;
/// Drives of the floppy controller.
const FLOPPIES: usize = 2;
/// Drives of each bus.
const BUSES: [(StorageBus, &str, usize); 5] = [
    (StorageBus::Ide, "ide", 4),
    (StorageBus::Ahci, "ahci", 6),
    (StorageBus::Nvme, "nvme", 16),
    (StorageBus::Virtio, "virtio", 16),
    (StorageBus::Scsi, "scsi", 64),
];
/// PCI devices that may be elsewhere than usual.
const MOVABLE: [&str; 4] = ["vga", "ahci", "nvme", "nic0 to nic7"];
/// Ports of the virtio console, and characters of their names.
const CONSOLES: usize = 16;
const CONSOLE_NAME: usize = 64;
/// Characters of a serial number.
const SERIAL: usize = 20;
/// Memory that a PC's firmware can start with.
const MIN_PC_MEMORY: Size = Size::from_mib(4);
/// Physical addresses have 40 bits; half of them may be RAM.
const MAX_MEMORY: Size = Size::from_bytes(1 << 39);
/// xAPIC identifiers are 8 bits wide, and 255 is the broadcast.
const MAX_CPUS: u32 = 255;
const PAGE: u64 = 4096;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Field, such as `memory` or `devices.serial.com2`.
    pub field: String,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.what)
    }
}

/// Everything that is wrong with a spec. The message is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(Problem::to_string).collect::<Vec<_>>().join("; "))]
pub struct SpecError(pub Vec<Problem>);

impl MachineSpec {
    /// Checks the values by themselves. Addresses that collide are the plan's to find.
    ///
    /// # Errors
    /// [`SpecError`] with every problem there is.
    pub fn validate(&self) -> Result<(), SpecError> {
        let mut problems = Problems(Vec::new());
        self.check_machine(&mut problems);
        self.check_boot(&mut problems);
        self.check_devices(&mut problems);
        match problems.0 {
            none if none.is_empty() => Ok(()),
            some => Err(SpecError(some)),
        }
    }

    fn check_machine(&self, problems: &mut Problems) {
        if self.memory < MIN_MEMORY {
            let what = format!("{} is too little; at least {MIN_MEMORY} is needed", self.memory);
            problems.add("memory", what);
        } else if self.memory > MAX_MEMORY {
            let what = format!("{} is too much; at most {MAX_MEMORY} can be addressed", self.memory);
            problems.add("memory", what);
        } else if !self.memory.bytes().is_multiple_of(PAGE) {
            problems.add("memory", format!("{} is not a whole number of 4K pages", self.memory));
        } else if self.machine.has_pci() && self.memory < MIN_PC_MEMORY {
            let what = format!(
                "{} is too little for a {}; at least {MIN_PC_MEMORY} is needed",
                self.memory, self.machine
            );
            problems.add("memory", what);
        }
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            problems.add("cpus", format!("{} is not between 1 and {MAX_CPUS}", self.cpus));
        }
    }

    fn check_boot(&self, problems: &mut Problems) {
        if self.boot.kernel.is_none() && self.boot.initrd.is_some() {
            problems.add("boot.initrd", "needs a kernel beside it".to_owned());
        }
        if self.machine == MachineKind::Microvm && self.boot.firmware.is_some() {
            problems.add(
                "boot.firmware",
                "a microvm has none; the machines pc and q35 have".to_owned(),
            );
        }
        if self.machine == MachineKind::Microvm && self.boot.uefi.is_some() {
            problems.add(
                "boot.uefi",
                "a microvm has no firmware; the machines pc and q35 have".to_owned(),
            );
        }
        if self.boot.uefi.is_some() && self.boot.kernel.is_some() {
            problems.add("boot.uefi", "a kernel is booted without firmware".to_owned());
        }
        if self.boot.order.len() > BOOT_DEVICES {
            problems.add(
                "boot.order",
                format!("firmware tries at most {BOOT_DEVICES} kinds of device"),
            );
        }
        if self.boot.append.contains('\0') {
            problems.add("boot.append", "holds a zero byte".to_owned());
        }
    }

    fn check_devices(&self, problems: &mut Problems) {
        let floppies = self.devices.floppies.len();
        if floppies > 0 && !self.machine.has_pci() {
            let what = format!("a {} has no floppy controller", self.machine);
            problems.add("devices.floppies", what);
        } else if floppies > FLOPPIES {
            problems.add(
                "devices.floppies",
                format!("{floppies} drives are more than {FLOPPIES}"),
            );
        }
        self.check_storage(problems);
        self.check_consoles(problems);
        self.check_nics(problems);
        self.check_shares(problems);
        self.check_inputs(problems);
        if let Some(what) = self.devices.vsock.as_ref().and_then(VsockConfig::problem) {
            problems.add("devices.vsock", what);
        }
        self.check_places(problems);
        for (field, message) in self.devices.vga.iter().flat_map(vga_problems) {
            problems.add(field, message);
        }
        for (index, serial) in self.devices.serial.iter().enumerate() {
            let field = format!("devices.serial.{}", serial.name);
            if serial.name.is_empty() || serial.name.contains('/') {
                let what = format!("`{}` is not a name", serial.name);
                problems.add(&format!("devices.serial[{index}]"), what);
            }
            let mut before = self.devices.serial.iter().take(index);
            if before.any(|other| other.name == serial.name) {
                problems.add(&field, "the name is taken".to_owned());
            }
            if serial.irq > 15 || serial.irq == 2 {
                problems.add(&field, format!("irq {} is not an ISA interrupt", serial.irq));
            }
            if serial.port > 0xfff8 {
                problems.add(&field, format!("8 ports do not fit at {:#x}", serial.port));
            }
        }
        if let Some(exit) = &self.devices.debug_exit
            && exit.port > 0xfffc
        {
            problems.add("devices.debug_exit", format!("4 ports do not fit at {:#x}", exit.port));
        }
    }
}

impl MachineSpec {
    fn check_places(&self, problems: &mut Problems) {
        for (name, place) in &self.devices.places {
            let field = format!("devices.places.{name}");
            let movable = MOVABLE.contains(&name.as_str()) || is_nic(name);
            let on_root = matches!(place, PciPlace::Root(_));
            let what = match self.machine {
                MachineKind::Microvm => "a microvm has no PCI".to_owned(),
                _ if !movable => format!("not a device that can be elsewhere; there are {}", MOVABLE.join(", ")),
                MachineKind::Q35 if name == "ahci" => "a q35 has it at a fixed place".to_owned(),
                MachineKind::Pc if !on_root => format!("a pc has no {place}; it has slots"),
                _ => continue,
            };
            problems.add(&field, what);
        }
    }

    fn check_consoles(&self, problems: &mut Problems) {
        let consoles = &self.devices.consoles;
        if consoles.len() > CONSOLES {
            let what = format!("{} ports are more than {CONSOLES}", consoles.len());
            problems.add("devices.consoles", what);
        }
        for (index, name) in consoles.iter().enumerate() {
            let Some(name) = &name.name else { continue };
            let printable = name.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'/');
            if name.is_empty() || name.len() > CONSOLE_NAME || !printable {
                let what = format!("name `{name}` is not 1 to {CONSOLE_NAME} printable characters without `/`");
                problems.add(&format!("devices.consoles[{index}]"), what);
            }
            let mut before = consoles.iter().take(index);
            if before.any(|other| other.name.as_ref() == Some(name)) {
                problems.add(&format!("devices.consoles[{index}]"), "the name is taken".to_owned());
            }
        }
    }

    fn check_nics(&self, problems: &mut Problems) {
        let nics = &self.devices.nics;
        if nics.iter().any(|nic| nic.model != NicModel::Virtio) && !self.machine.has_pci() {
            let what = format!(
                "a {} has network cards of model virtio only; the machines pc and q35 have others",
                self.machine
            );
            problems.add("devices.nics", what);
        }
        if nics.len() > NICS {
            problems.add("devices.nics", format!("{} cards are more than {NICS}", nics.len()));
        }
        for (index, nic) in nics.iter().enumerate() {
            if let Some(what) = nic.problem() {
                problems.add(&format!("devices.nics[{index}]"), what);
            }
            let taken = nic.mac.is_some() && nics.iter().take(index).any(|other| other.mac == nic.mac);
            if taken {
                problems.add(
                    &format!("devices.nics[{index}]"),
                    "another card has this address".to_owned(),
                );
            }
        }
    }

    fn check_inputs(&self, problems: &mut Problems) {
        let inputs = &self.devices.inputs;
        for (index, input) in inputs.iter().enumerate() {
            if inputs.iter().take(index).any(|other| other == input) {
                problems.add("devices.inputs", format!("there is more than one {}", input.name()));
            }
        }
    }

    fn check_shares(&self, problems: &mut Problems) {
        let shares = &self.devices.shares;
        if shares.len() > SHARES {
            problems.add(
                "devices.shares",
                format!("{} shares are more than {SHARES}", shares.len()),
            );
        }
        for (index, share) in shares.iter().enumerate() {
            let field = format!("devices.shares[{index}]");
            if let Some(what) = share.problem() {
                problems.add(&field, what);
            }
            if shares.iter().take(index).any(|other| other.tag == share.tag) {
                problems.add(
                    &field,
                    format!("the tag `{}` is taken; give each share its own", share.tag),
                );
            }
        }
    }

    fn check_storage(&self, problems: &mut Problems) {
        let (disks, cdroms) = (&self.devices.disks, &self.devices.cdroms);
        let other = |bus| !matches!(bus, StorageBus::Virtio | StorageBus::Scsi);
        let cdrom = cdroms.iter().any(|cdrom| other(cdrom.bus));
        let other = disks.iter().any(|disk| other(disk.bus));
        if !self.machine.has_pci() && (other || cdrom) {
            let (field, what) = if other {
                ("disks", "disks only on virtio and scsi")
            } else {
                ("cdroms", "CD drives only on scsi")
            };
            let what = format!("a {} has {what}; the machines pc and q35 have others", self.machine);
            problems.add(&format!("devices.{field}"), what);
        }
        for (bus, name, most) in BUSES {
            let on_bus = disks.iter().filter(|disk| disk.bus == bus).count();
            let drives = on_bus + cdroms.iter().filter(|cdrom| cdrom.bus == bus).count();
            if drives > most {
                problems.add(
                    "devices.disks",
                    format!("{drives} drives on {name} are more than {most}"),
                );
            }
        }
        let on_ide = disks.iter().any(|disk| disk.bus == StorageBus::Ide)
            || cdroms.iter().any(|cdrom| cdrom.bus == StorageBus::Ide);
        if self.machine == MachineKind::Q35 && on_ide {
            let what = "a q35 has no ide; it has ahci and nvme";
            problems.add("devices.disks", what.to_owned());
        }
        for (bus, name) in [(StorageBus::Nvme, "nvme"), (StorageBus::Virtio, "virtio")] {
            if cdroms.iter().any(|cdrom| cdrom.bus == bus) {
                problems.add("devices.cdroms", format!("there are no CD drives on {name}"));
            }
        }
        for (index, disk) in disks.iter().enumerate() {
            if let Err(what) = disk.check_serial() {
                problems.add(&format!("devices.disks[{index}]"), what);
            }
        }
    }
}

impl DiskConfig {
    /// Whether the serial number is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check_serial(&self) -> Result<(), String> {
        let serial = self.serial.as_deref().unwrap_or("none");
        let printable = serial.bytes().all(|byte| (0x21..0x7f).contains(&byte));
        if serial.is_empty() || serial.len() > SERIAL || !printable {
            return Err(format!("serial `{serial}` is not 1 to {SERIAL} printable characters"));
        }
        Ok(())
    }
}

/// Whether a device is called as a network card is.
fn is_nic(name: &str) -> bool {
    let number = name.strip_prefix("nic").and_then(|number| number.parse::<usize>().ok());
    number.is_some_and(|number| number < NICS && name.len() == 4)
}

/// What has been found so far.
struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, field: &str, what: String) {
        let field = field.to_owned();
        self.0.push(Problem { field, what });
    }
}

fn vga_problems(vga: &VgaConfig) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    let memory = vga.memory.bytes();
    if !memory.is_power_of_two() || !VIDEO_MEMORY.contains(&memory) {
        let message = format!("{} is not a power of two between 1M and 256M", vga.memory);
        problems.push(("devices.vga.memory", message));
    }
    if !(640..=2560).contains(&vga.width) || !(480..=1600).contains(&vga.height) {
        let message = format!("{}x{} is not between 640x480 and 2560x1600", vga.width, vga.height);
        problems.push(("devices.vga", message));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SerialConfig;

    #[test]
    fn default_spec_is_valid() {
        assert_eq!(MachineSpec::default().validate(), Ok(()));
    }

    #[test]
    fn impossible_screens_are_refused() {
        let fields = |memory, width| {
            let mut spec = MachineSpec::default();
            spec.devices.vga = Some(VgaConfig {
                memory: Size::from_mib(memory),
                width,
                ..VgaConfig::default()
            });
            let problems = spec.validate().err().map(|error| error.0).unwrap_or_default();
            problems.into_iter().map(|problem| problem.field).collect::<Vec<_>>()
        };
        assert!(fields(256, 2560).is_empty());
        assert_eq!(fields(24, 1024), ["devices.vga.memory"]);
        assert_eq!(fields(512, 320), ["devices.vga.memory", "devices.vga"]);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let mut spec = MachineSpec {
            memory: Size::from_bytes(4096),
            cpus: 0,
            ..MachineSpec::default()
        };
        spec.boot.initrd = Some("initrd".into());
        let com1 = SerialConfig::com(0).unwrap();
        spec.devices.serial = vec![com1.clone(), SerialConfig { irq: 16, ..com1 }];
        let error = spec.validate().unwrap_err();
        let fields: Vec<&str> = error.0.iter().map(|p| p.field.as_str()).collect();
        let serial = "devices.serial.com1";
        assert_eq!(fields, ["memory", "cpus", "boot.initrd", serial, serial]);
        assert_eq!(error.to_string().lines().count(), 1);
    }

    #[test]
    fn what_only_a_pc_has_is_refused_elsewhere() {
        let mut spec = MachineSpec::default();
        spec.boot.firmware = Some("bios".into());
        spec.devices.floppies = vec![crate::FloppyConfig::default(); 3];
        spec.boot.order = vec![crate::BootDevice::Disk; 4];
        let fields = |spec: &MachineSpec| -> Vec<String> {
            let error = spec.validate().unwrap_err();
            error.0.into_iter().map(|problem| problem.field).collect()
        };
        assert_eq!(fields(&spec), ["boot.firmware", "boot.order", "devices.floppies"]);
        spec.machine = MachineKind::Pc;
        spec.memory = Size::from_mib(3);
        assert_eq!(fields(&spec), ["memory", "boot.order", "devices.floppies"]);
    }

    #[test]
    fn what_a_q35_lacks_is_refused_there() {
        let mut spec = MachineSpec {
            machine: MachineKind::Q35,
            ..MachineSpec::default()
        };
        spec.devices.disks = vec![crate::DiskConfig::default()];
        let places = [
            ("ahci", PciPlace::Root(4)),
            ("nvme", PciPlace::Port(2)),
            ("fdc", PciPlace::Root(5)),
        ];
        spec.devices.places = places.map(|(name, place)| (name.to_owned(), place)).into();
        let text = spec.validate().unwrap_err().to_string();
        for part in ["no ide", "places.ahci", "places.fdc"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("places.nvme"), "{text}");
        spec.machine = MachineKind::Pc;
        let text = spec.validate().unwrap_err().to_string();
        assert!(text.contains("a pc has no port2"), "{text}");
    }

    #[test]
    fn network_cards_suit_the_machine_and_have_addresses_of_their_own() {
        let mut spec = MachineSpec::default();
        let mut nic = crate::NicConfig::new(crate::NetworkConfig::Null);
        nic.mac = Some(crate::MacAddress([2, 0, 0, 0, 0, 1]));
        spec.devices.nics = vec![nic; 9];
        let text = spec.validate().unwrap_err().to_string();
        for part in ["model virtio only", "9 cards", "nics[1]: another card"] {
            assert!(text.contains(part), "{text}");
        }
        spec.machine = MachineKind::Pc;
        let nat = crate::NatConfig {
            network: [10, 0, 2, 1].into(),
            ..crate::NatConfig::default()
        };
        spec.devices.nics = vec![crate::NicConfig::new(crate::NetworkConfig::Nat(nat))];
        assert!(spec.validate().unwrap_err().to_string().contains("10.0.2.1"));
        spec.devices.nics = vec![crate::NicConfig::new(crate::NetworkConfig::Null)];
        spec.devices.places = [("nic0".to_owned(), PciPlace::Root(9))].into();
        assert_eq!(spec.validate(), Ok(()));
    }

    #[test]
    fn odd_memory_is_refused() {
        let spec = MachineSpec {
            memory: Size::from_bytes((64 << 20) + 1),
            ..MachineSpec::default()
        };
        assert!(spec.validate().unwrap_err().to_string().contains("4K pages"));
    }
}
