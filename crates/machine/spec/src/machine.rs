//! The machine as a whole: memory, processors, what it boots, and what its end means.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::DevicesSpec;
use crate::Size;
use crate::StorageBus;
use crate::devices::named;

/// Which engine runs the guest's instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// The fastest that this host can run.
    #[default]
    Auto,
    /// The interpreter.
    Interp,
    /// The translator.
    Jit,
    /// The host's processor, by way of its kernel.
    Kvm,
    /// The translator, checked against the interpreter every few instructions.
    Lockstep,
}

impl EngineKind {
    /// What may be written.
    pub const NAMES: [&str; 5] = ["auto", "kvm", "jit", "interp", "lockstep"];
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "interp" => Ok(Self::Interp),
            "jit" => Ok(Self::Jit),
            "kvm" => Ok(Self::Kvm),
            "lockstep" => Ok(Self::Lockstep),
            _ => Err(format!("unknown engine `{text}`; there are {}", Self::NAMES.join(", "))),
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Interp => "interp",
            Self::Jit => "jit",
            Self::Kvm => "kvm",
            Self::Lockstep => "lockstep",
        })
    }
}

/// What a guest is told of the hypervisor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Paravirt {
    /// Nothing, not even that there is one.
    None,
    /// That there is one, and the frequencies of its clocks.
    Minimal,
    /// KVM's interface, too.
    #[default]
    Kvm,
}

impl Paravirt {
    const ALL: [Self; 3] = [Self::None, Self::Minimal, Self::Kvm];

    /// What is written for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Kvm => "kvm",
        }
    }
}

impl FromStr for Paravirt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(text, Self::ALL, Self::name, "paravirtual interface")
    }
}

/// The kind of computer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// No PCI, no firmware: a kernel is booted directly.
    #[default]
    Microvm,
    /// A PC of Intel's 440FX chipset, with a BIOS.
    Pc,
    /// A PC of Intel's Q35 chipset, with PCI Express.
    Q35,
}

impl MachineKind {
    /// What may be written.
    pub const NAMES: [&str; 3] = ["microvm", "pc", "q35"];

    /// Whether there is a PCI bus.
    #[must_use]
    pub fn has_pci(self) -> bool {
        self != Self::Microvm
    }

    /// What drives are attached to if nothing is said.
    #[must_use]
    pub fn usual_bus(self) -> StorageBus {
        match self {
            Self::Microvm => StorageBus::Virtio,
            Self::Pc => StorageBus::Ide,
            Self::Q35 => StorageBus::Ahci,
        }
    }
}

impl FromStr for MachineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "microvm" => Ok(Self::Microvm),
            "pc" => Ok(Self::Pc),
            "q35" => Ok(Self::Q35),
            _ => Err(format!(
                "unknown machine `{text}`; there are {}",
                Self::NAMES.join(", ")
            )),
        }
    }
}

impl fmt::Display for MachineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Microvm => "microvm",
            Self::Pc => "pc",
            Self::Q35 => "q35",
        })
    }
}

/// What a guest's reset does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReset {
    /// The machine boots again.
    #[default]
    Restart,
    /// The machine ends.
    Stop,
}

/// What a triple fault does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnTripleFault {
    /// The machine ends and reports where it stood.
    #[default]
    Stop,
    /// The machine resets, as a PC does.
    Reset,
}

/// A kind of device that firmware may boot from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootDevice {
    /// A floppy disk.
    Floppy,
    /// A hard disk.
    Disk,
    /// A CD or DVD.
    Cdrom,
    /// The network.
    Network,
}

impl BootDevice {
    /// What may be written.
    pub const NAMES: [&str; 4] = ["floppy", "disk", "cdrom", "network"];
}

impl FromStr for BootDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "floppy" => Ok(Self::Floppy),
            "disk" => Ok(Self::Disk),
            "cdrom" => Ok(Self::Cdrom),
            "network" => Ok(Self::Network),
            _ => Err(format!(
                "cannot boot from `{text}`; there are {}",
                Self::NAMES.join(", ")
            )),
        }
    }
}

/// UEFI firmware.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UefiSpec {
    /// File of the machine's variables, which is made if it is not there. None: they are forgotten with the machine.
    pub variables: Option<PathBuf>,
}

/// What the machine boots.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BootSpec {
    /// A Linux bzImage, a PVH vmlinux, or a multiboot image.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk, or the multiboot image's module.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub append: String,
    /// Firmware image that the machine starts with where no kernel is named. None: that of the package `seabios`.
    pub firmware: Option<PathBuf>,
    /// UEFI firmware instead of a BIOS: its image and its variables.
    pub uefi: Option<UefiSpec>,
    /// Firmware shows its boot menu, for this many milliseconds.
    pub menu: Option<u32>,
    /// What firmware boots from, in this order; at most three.
    pub order: Vec<BootDevice>,
}

/// A machine as the user wants it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSpec {
    /// Which kind of computer.
    pub machine: MachineKind,
    /// Guest RAM.
    pub memory: Size,
    /// Number of processors.
    pub cpus: u32,
    /// Processor model: `host`, `x86-64`, `x86-64-v2`, `x86-64-v3`.
    pub cpu: String,
    /// Engine.
    pub engine: EngineKind,
    /// What the guest is told of the hypervisor.
    pub paravirt: Paravirt,
    /// What to boot.
    pub boot: BootSpec,
    /// After a reset.
    pub on_reset: OnReset,
    /// After a triple fault.
    pub on_triple_fault: OnTripleFault,
    /// Devices.
    pub devices: DevicesSpec,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            machine: MachineKind::default(),
            memory: Size::from_mib(512),
            cpus: 1,
            cpu: "host".to_owned(),
            engine: EngineKind::Auto,
            paravirt: Paravirt::default(),
            boot: BootSpec::default(),
            on_reset: OnReset::Restart,
            on_triple_fault: OnTripleFault::Stop,
            devices: DevicesSpec::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serde_of_nothing_is_the_default_and_unknown_fields_are_refused() {
        assert_eq!(
            serde_json::from_str::<MachineSpec>("{}").unwrap(),
            MachineSpec::default()
        );
        assert!(serde_json::from_str::<MachineSpec>(r#"{"memroy": "1G"}"#).is_err());
    }

    #[test]
    fn serde_round_trip_keeps_everything() {
        let mut spec = MachineSpec {
            cpus: 4,
            on_reset: OnReset::Stop,
            ..MachineSpec::default()
        };
        spec.devices.debug_exit = Some(crate::DebugExitConfig { port: 0xf4 });
        spec.devices.hpet = None;
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<MachineSpec>(&text).unwrap(), spec);
    }

    #[test]
    fn machine_names_parse_and_print_alike() {
        for name in MachineKind::NAMES {
            assert_eq!(name.parse::<MachineKind>().unwrap().to_string(), name);
        }
        assert!("amiga".parse::<MachineKind>().unwrap_err().contains("pc"));
    }

    #[test]
    fn engine_names_parse_and_print_alike() {
        for name in EngineKind::NAMES {
            assert_eq!(name.parse::<EngineKind>().unwrap().to_string(), name);
        }
        assert!("quick".parse::<EngineKind>().unwrap_err().contains("interp"));
    }
}
