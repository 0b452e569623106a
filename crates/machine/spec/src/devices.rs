//! Configuration of the devices: one struct each, with the defaults of a plain PC.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::InputConfig;
use crate::NicConfig;
use crate::PciPlace;
use crate::ShareConfig;
use crate::Size;
use crate::VsockConfig;

/// Base ports and ISA interrupts of the four serial ports that software looks for.
const COM: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// A serial port (16550A).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// Name in the plan, in snapshots, and for its backend: `com1` and so on.
    pub name: String,
    /// First of its eight ports.
    pub port: u16,
    /// ISA interrupt.
    pub irq: u8,
}

impl SerialConfig {
    /// The conventional port number `index`: 0 is COM1 at 3F8h on IRQ 4. None beyond COM4.
    #[must_use]
    pub fn com(index: usize) -> Option<Self> {
        let (port, irq) = *COM.get(index)?;
        let name = format!("com{}", index + 1);
        Some(Self { name, port, irq })
    }
}

/// The exit port of kernel test-suites: a write ends the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebugExitConfig {
    /// First of its four ports.
    pub port: u16,
}

/// The test device of kvm-unit-tests: ports E0h, E4h and 2000h, and 64 KiB of memory at FF000000h.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestdevConfig {}

/// The real-time clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RtcConfig {
    /// Time of day at power-on in seconds since 1970 (UTC). None: the host's time.
    pub base: Option<i64>,
}

/// The high-precision event timer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HpetConfig {}

/// The keyboard controller with a PS/2 keyboard and mouse.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct I8042Config {}

/// The display adapter: a VGA with the Bochs VBE extensions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VgaConfig {
    /// Video memory: a power of two from 1 MiB to 256 MiB.
    pub memory: Size,
    /// Width in pixels that the monitor prefers, from 640 to 2560.
    pub width: u16,
    /// Height in pixels that the monitor prefers, from 480 to 1600.
    pub height: u16,
}

impl Default for VgaConfig {
    fn default() -> Self {
        Self {
            memory: Size::from_mib(16),
            width: 1280,
            height: 800,
        }
    }
}

/// A floppy drive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FloppyConfig {
    /// Image of the disk in it; none when it is empty.
    pub image: Option<PathBuf>,
    /// The disk is write-protected.
    pub read_only: bool,
}

/// The one of `all` that is written `text`, or an error that tells what there is.
pub(crate) fn named<T: Copy, const N: usize>(
    text: &str,
    all: [T; N],
    name: fn(T) -> &'static str,
    what: &str,
) -> Result<T, String> {
    let found = all.into_iter().find(|one| name(*one) == text);
    found.ok_or_else(|| format!("unknown {what} `{text}`; there are {}", all.map(name).join(", ")))
}

/// What a disk or CD drive is attached to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StorageBus {
    /// The IDE channels of the chipset: four drives at most.
    #[default]
    Ide,
    /// A SATA controller: six drives at most.
    Ahci,
    /// NVM Express: each disk is a namespace of one controller. No CD drives.
    Nvme,
    /// virtio: each disk is a device of its own. No CD drives.
    Virtio,
    /// SCSI: each drive is a target of one virtio host.
    Scsi,
}

impl StorageBus {
    const ALL: [Self; 5] = [Self::Ide, Self::Ahci, Self::Nvme, Self::Virtio, Self::Scsi];

    /// What is written for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ide => "ide",
            Self::Ahci => "ahci",
            Self::Nvme => "nvme",
            Self::Virtio => "virtio",
            Self::Scsi => "scsi",
        }
    }
}

impl FromStr for StorageBus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(text, Self::ALL, Self::name, "bus")
    }
}

/// What becomes of a disk's writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// They are safe once the guest has flushed them.
    #[default]
    Writeback,
    /// They are safe when the guest is told that they are done.
    Writethrough,
    /// As `Writeback`, past the host's page cache.
    None,
    /// As `Writethrough`, past the host's page cache.
    Directsync,
    /// Flushes do nothing: a crash of the host loses or damages data.
    Unsafe,
}

impl CacheMode {
    const ALL: [Self; 5] = [
        Self::Writeback,
        Self::Writethrough,
        Self::None,
        Self::Directsync,
        Self::Unsafe,
    ];

    /// What is written for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Writeback => "writeback",
            Self::Writethrough => "writethrough",
            Self::None => "none",
            Self::Directsync => "directsync",
            Self::Unsafe => "unsafe",
        }
    }

    /// Past the host's page cache.
    #[must_use]
    pub fn is_direct(self) -> bool {
        matches!(self, Self::None | Self::Directsync)
    }

    /// Each write is safe when the guest is told that it is done.
    #[must_use]
    pub fn is_through(self) -> bool {
        matches!(self, Self::Writethrough | Self::Directsync)
    }
}

impl FromStr for CacheMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(text, Self::ALL, Self::name, "cache mode")
    }
}

/// A hard disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiskConfig {
    /// Its image.
    pub image: PathBuf,
    /// Format of the image; none: what it looks like.
    pub format: Option<String>,
    /// What it is attached to.
    pub bus: StorageBus,
    /// What becomes of its writes.
    pub cache: CacheMode,
    /// It is write-protected.
    pub read_only: bool,
    /// Serial number, at most 20 printable characters; none: one by its place.
    pub serial: Option<String>,
}

/// A CD or DVD drive.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CdromConfig {
    /// Image of the disc in it; none when it is empty.
    pub image: Option<PathBuf>,
    /// What it is attached to.
    pub bus: StorageBus,
}

/// A virtio entropy source, from the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RngConfig {}

/// A virtio memory balloon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonConfig {}

/// A port of the virtio console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConsoleConfig {
    /// What the guest finds the port by, at most 64 printable characters; none: the port is a console of the guest's.
    pub name: Option<String>,
}

impl ConsoleConfig {
    /// What the backend of port number `index`, from 0, is called.
    #[must_use]
    pub fn backend(index: usize) -> String {
        format!("console{index}")
    }
}

/// The devices that may be there or not, or that have a choice. What every PC has is not listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DevicesSpec {
    /// Serial ports in the order of their names.
    pub serial: Vec<SerialConfig>,
    /// Exit port, where wanted.
    pub debug_exit: Option<DebugExitConfig>,
    /// Test device, where wanted.
    pub testdev: Option<TestdevConfig>,
    /// Real-time clock.
    pub rtc: RtcConfig,
    /// High-precision event timer; none takes it away.
    pub hpet: Option<HpetConfig>,
    /// Keyboard controller; none takes it away.
    pub i8042: Option<I8042Config>,
    /// Display adapter of a PC; none takes it away.
    pub vga: Option<VgaConfig>,
    /// Floppy drives A and B of a PC.
    pub floppies: Vec<FloppyConfig>,
    /// Hard disks, in the order in which they are numbered and booted from.
    pub disks: Vec<DiskConfig>,
    /// CD and DVD drives of a PC.
    pub cdroms: Vec<CdromConfig>,
    /// Entropy source, where wanted.
    pub rng: Option<RngConfig>,
    /// Ports of the virtio console; without any there is none.
    pub consoles: Vec<ConsoleConfig>,
    /// Memory balloon, where wanted.
    pub balloon: Option<BalloonConfig>,
    /// Folders of the host that the guest mounts, `share0` first.
    pub shares: Vec<ShareConfig>,
    /// Virtio input devices, one of a kind at most. What the user does goes to them while the guest has drivers for them.
    pub inputs: Vec<InputConfig>,
    /// Socket device, where wanted.
    pub vsock: Option<VsockConfig>,
    /// Network cards of a PC, `nic0` first.
    pub nics: Vec<NicConfig>,
    /// PCI devices that are to be elsewhere than usual, by name: `vga`, `ahci`, `nvme`, `nic0`.
    pub places: BTreeMap<String, PciPlace>,
}

impl Default for DevicesSpec {
    fn default() -> Self {
        Self {
            serial: SerialConfig::com(0).into_iter().collect(),
            debug_exit: None,
            testdev: None,
            rtc: RtcConfig::default(),
            hpet: Some(HpetConfig {}),
            i8042: Some(I8042Config {}),
            vga: Some(VgaConfig::default()),
            floppies: Vec::new(),
            disks: Vec::new(),
            cdroms: Vec::new(),
            rng: None,
            consoles: Vec::new(),
            balloon: None,
            shares: Vec::new(),
            inputs: Vec::new(),
            vsock: None,
            nics: Vec::new(),
            places: BTreeMap::new(),
        }
    }
}
