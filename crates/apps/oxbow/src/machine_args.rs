//! The options that describe a machine.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use spec::BalloonConfig;
use spec::BootDevice;
use spec::BootSpec;
use spec::CdromConfig;
use spec::ConsoleConfig;
use spec::DebugExitConfig;
use spec::DevicesSpec;
use spec::DiskConfig;
use spec::EngineKind;
use spec::FloppyConfig;
use spec::Forward;
use spec::InputConfig;
use spec::MachineKind;
use spec::MachineSpec;
use spec::NatConfig;
use spec::NetworkConfig;
use spec::NicConfig;
use spec::NicModel;
use spec::OnReset;
use spec::Paravirt;
use spec::PciPlace;
use spec::RngConfig;
use spec::SerialConfig;
use spec::ShareConfig;
use spec::Size;
use spec::StorageBus;
use spec::TestdevConfig;
use spec::UefiSpec;
use spec::VsockConfig;

use crate::drives;
use crate::drives::DriveArg;
use crate::nics;
use crate::serial::SerialTarget;
use crate::shares;

/// Options of `run` and `plan`.
#[derive(Clone, Debug, Args)]
pub(crate) struct MachineArgs {
    /// Kind of computer: microvm; pc with PCI and a BIOS; or q35, a pc with PCI Express
    ///
    /// A microvm boots a kernel directly. The others do so too if one is named, else they start with their firmware.
    #[arg(long, value_name = "KIND")]
    pub(crate) machine: Option<MachineKind>,

    /// Firmware image of a pc; that of the package seabios if this is not given
    #[arg(long, value_name = "FILE")]
    pub(crate) firmware: Option<PathBuf>,

    /// Start a pc with UEFI firmware, that of the package ovmf, and keep its variables in this file
    ///
    /// The file is made if it is not there. Without one the variables are forgotten when the machine ends.
    #[arg(long, value_name = "FILE", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "absent, without a file, with a file")]
    pub(crate) uefi: Option<Option<PathBuf>>,

    /// Let the firmware show its boot menu for so many milliseconds
    #[arg(long, value_name = "MS", num_args = 0..=1, default_missing_value = "5000")]
    pub(crate) boot_menu: Option<u32>,

    /// What a pc's firmware boots from, such as cdrom,disk: up to three of floppy, disk, cdrom, network
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    pub(crate) boot_order: Vec<BootDevice>,

    /// Image of a floppy disk, for drive A of a pc and then B; `none` for an empty drive, `FILE,ro` for a protected disk
    #[arg(long, value_name = "FILE", value_parser = parse_floppy)]
    pub(crate) floppy: Vec<FloppyConfig>,

    /// Hard disk: FILE[,format=F][,bus=ide|ahci|nvme|virtio|scsi][,cache=MODE][,serial=S][,ro]
    ///
    /// A q35 has no IDE; its drives are on AHCI if no bus is given. A microvm has virtio and scsi only, which is a virtio
    /// SCSI host with a target for each drive.
    /// The format is found by the file's contents if it is not given.
    /// Cache modes: `writeback`; `writethrough` makes each write safe at once; `none` and `directsync` are the same two past the
    /// host's page cache; `unsafe` lets the guest's flushes do nothing.
    #[arg(long, value_name = "FILE", value_parser = drives::parse_disk)]
    pub(crate) disk: Vec<DriveArg<DiskConfig>>,

    /// Add a virtio entropy source, which is fed by the host's
    #[arg(long)]
    pub(crate) rng: bool,

    /// Share a folder with the guest: TAG=PATH[,ro][,proto=virtiofs|9p][,cache=auto|never|always][,writeback]. Repeated for more
    ///
    /// The guest mounts it by its tag: `mount -t virtiofs TAG /mnt`, or with proto=9p
    /// `mount -t 9p -o trans=virtio,version=9p2000.L TAG /mnt`. Cache policies of virtiofs say how long the guest may go without asking
    /// what the host has: `auto` a second, `never` not at all, `always` for ever. With `writeback` it may keep for a while what is written.
    #[arg(long, value_name = "TAG=PATH", value_parser = shares::parse_share)]
    pub(crate) share: Vec<ShareConfig>,

    /// CD or DVD drive: FILE[,bus=ide|ahci|scsi], or `none` for an empty one
    #[arg(long, value_name = "FILE", value_parser = drives::parse_cdrom)]
    pub(crate) cdrom: Vec<DriveArg<CdromConfig>>,

    /// Network card: NETWORK[,model=e1000|82543gc|82545em|pcnet|am79c970a|virtio][,mac=M][,option]... Up to eight times
    ///
    /// Networks: `nat` reaches what the host reaches, by the host's own connections; its options are loopback (the gateway's
    /// address reaches the host's own loop-back), restricted (only forwarded ports lead in and out), net=10.0.2.0/24,
    /// dns=ADDRESS (in place of the host's name servers), mtu=1500, ipv6=off, tftp=DIR and bootfile=NAME (what guests boot by
    /// their cards) and proxy=PORT (a SOCKS5 proxy that leads to guests).
    /// `natnetwork=NAME` is the same for several machines of this user, `internal=NAME` has only such machines in it,
    /// `hostonly=NAME` the host as well; its options are net=192.168.56.0/24, range=101-254, dhcp=off, proxy=PORT and loopback.
    /// name= is what the others of such a network call the guest.
    /// `bridged=INTERFACE` is the network that an interface of the host's is at, `tap=NAME` a tap that somebody has made;
    /// `udp=LOCAL-REMOTE` leads to another host. `null` has nobody in it; `none` is no cable.
    /// bandwidth=10M (bits a second), latency=20ms and loss=0.5% are those of its cable, unplugged leaves that out at first.
    /// romfile=FILE is the card's expansion ROM; with --boot-order network it is iPXE of the package ipxe-qemu otherwise.
    /// promisc= says whether the card may see what is addressed to others: deny, allow-vms or allow-all.
    #[arg(long, value_name = "NETWORK", value_parser = nics::parse_nic)]
    pub(crate) nic: Vec<nics::NicArg>,

    /// Leave out the network card that a machine has if none is given, at a NAT network: an e1000, or virtio on a microvm
    #[arg(long, conflicts_with = "nic")]
    pub(crate) no_nic: bool,

    /// Let a port of the host lead to the guest by the first card at a NAT or host-only network: tcp:127.0.0.1:2222-:22, or udp
    ///
    /// PROTOCOL:[ADDRESS]:PORT-[GUEST]:PORT; 127.0.0.1 if no address is given, and the guest that got the network's first
    /// address if no guest is; addresses of IPv6 in brackets. `oxbow ctl forward` adds and removes them later.
    #[arg(long, value_name = "RULE")]
    pub(crate) forward: Vec<Forward>,

    /// Put a PCI device of a pc or q35 elsewhere: vga, nvme, a pc's ahci or nic0 to nic7, and slot1 to slot31, port1 to port4, bridge1 to bridge31
    ///
    /// Ports are those of PCI Express, and the bridge leads to a bus for conventional cards; a q35 has them.
    #[arg(long, value_name = "NAME=PLACE", value_parser = drives::parse_place)]
    pub(crate) place: Vec<(String, PciPlace)>,

    /// Kernel: a Linux bzImage, an uncompressed vmlinux (PVH), or a multiboot image
    ///
    /// Without one the demo guest is booted, which `cargo xtask demo` fetches.
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,

    /// Initial RAM disk, or the module of a multiboot image
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,

    /// Kernel command line; nothing is added to it
    ///
    /// Linux needs `console=ttyS0` to speak on the serial port. The demo guest gets `console=ttyS0 quiet` if this is
    /// not given.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) append: Option<String>,

    /// Guest RAM, such as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "512M")]
    pub(crate) memory: Size,

    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,

    /// Processor model: host, x86-64, x86-64-v2 or x86-64-v3
    ///
    /// `x86-64` is the one that every engine has, KVM on any host among them: a machine with it can change its engine
    /// while it runs. `MODEL,-FEATURE` is without a feature, named as in /proc/cpuinfo: `host,-avx2`.
    #[arg(long, value_name = "MODEL", default_value = "host")]
    pub(crate) cpu: String,

    /// What executes the guest's instructions: auto, kvm, jit or interp
    ///
    /// auto takes KVM where the host's processor executes guests, else the translator (jit), else the interpreter.
    #[arg(long, value_name = "ENGINE", default_value = "auto")]
    pub(crate) engine: EngineKind,

    /// What the guest is told of the hypervisor: none, minimal or kvm
    ///
    /// `minimal` is that there is one and the frequencies of its clocks, `kvm` also KVM's interface: the paravirtual clock.
    #[arg(long, value_name = "INTERFACE", default_value = "kvm")]
    pub(crate) paravirt: Paravirt,

    /// Where a serial port leads: stdio, file:PATH, pty or none. Once for each of COM1 to COM4
    ///
    /// The first leads to stdio if none is given, unless a console does.
    #[arg(long, value_name = "TARGET")]
    pub(crate) serial: Vec<SerialTarget>,

    /// Where a port of the virtio console leads: stdio, file:PATH, pty or none. Repeated for more ports
    ///
    /// Each is a console of the guest's, hvc0 and so on, or with `,name=NAME` a serial port that the guest finds by that name.
    #[arg(long, value_name = "TARGET[,name=NAME]", value_parser = parse_console)]
    pub(crate) console: Vec<ConsoleArg>,

    /// Add a virtio memory balloon: `oxbow ctl SOCKET balloon` sets its size, and memory that the guest frees goes back to the host
    #[arg(long)]
    pub(crate) balloon: bool,

    /// Add a virtio input device: keyboard, tablet or mouse. Once for each
    ///
    /// What the user does at the screen goes there while the guest has a driver for it, else to the PS/2 keyboard and mouse. A
    /// tablet knows where the pointer is.
    #[arg(long, value_name = "KIND")]
    pub(crate) input: Vec<InputConfig>,

    /// Add a virtio socket device: cid=N[,socket=PATH], where N is 3 or more
    ///
    /// Programs of the host connect to PATH and write `CONNECT PORT`; those that the guest connects to at CID 2 listen at PATH_PORT.
    #[arg(long, value_name = "cid=N[,socket=PATH]")]
    pub(crate) vsock: Option<VsockConfig>,

    /// Port whose write ends the machine with status (value << 1) | 1; adds the test device too
    #[arg(long, value_name = "PORT", value_parser = parse_port)]
    pub(crate) debug_exit: Option<u16>,

    /// Add the test device of kvm-unit-tests
    #[arg(long)]
    pub(crate) testdev: bool,

    /// End, instead of booting again, when the guest resets
    #[arg(long)]
    pub(crate) no_reboot: bool,
}

impl MachineArgs {
    /// The machine that the options describe.
    pub(crate) fn spec(&self) -> anyhow::Result<MachineSpec> {
        let targets = self.serial_targets();
        let consoles = self.console.iter().map(|console| &console.target);
        let terminals = targets
            .iter()
            .chain(consoles)
            .filter(|target| **target == SerialTarget::Stdio);
        if terminals.count() > 1 {
            bail!("stdio is given twice with --serial and --console; only one port can have the terminal");
        }
        let serial: Option<Vec<SerialConfig>> = (0..targets.len()).map(SerialConfig::com).collect();
        let Some(serial) = serial else {
            bail!("--serial is given {} times; there are four ports", targets.len());
        };
        let usual = self.machine_kind().usual_bus();
        // A microvm's are on SCSI: virtio has no others.
        let usual_of_cds = match usual {
            StorageBus::Virtio => StorageBus::Scsi,
            other => other,
        };
        let testdev = self.testdev || self.debug_exit.is_some();
        Ok(MachineSpec {
            machine: self.machine_kind(),
            memory: self.memory,
            cpus: self.cpus,
            cpu: self.cpu.clone(),
            engine: self.engine,
            paravirt: self.paravirt,
            boot: BootSpec {
                kernel: self.kernel.clone(),
                initrd: self.initrd.clone(),
                append: self.append.clone().unwrap_or_default(),
                firmware: self.firmware.clone(),
                uefi: self.uefi.clone().map(|variables| UefiSpec { variables }),
                menu: self.boot_menu,
                order: self.boot_order.clone(),
            },
            on_reset: if self.no_reboot {
                OnReset::Stop
            } else {
                OnReset::Restart
            },
            devices: DevicesSpec {
                serial,
                debug_exit: self.debug_exit.map(|port| DebugExitConfig { port }),
                testdev: testdev.then(TestdevConfig::default),
                floppies: self.floppy.clone(),
                disks: self.disk.iter().map(|disk| disk.on(usual)).collect(),
                cdroms: self.cdrom.iter().map(|cdrom| cdrom.on(usual_of_cds)).collect(),
                rng: self.rng.then(RngConfig::default),
                consoles: self.console.iter().map(|console| console.config.clone()).collect(),
                balloon: self.balloon.then(BalloonConfig::default),
                shares: self.share.clone(),
                inputs: self.input.clone(),
                vsock: self.vsock.clone(),
                nics: self.nics()?,
                places: self.place.iter().cloned().collect(),
                ..DevicesSpec::default()
            },
            ..MachineSpec::default()
        })
    }
}

impl MachineArgs {
    /// Where serial ports lead. The terminal is the first one's unless a console has it.
    pub(crate) fn serial_targets(&self) -> Vec<SerialTarget> {
        let has_terminal = |console: &ConsoleArg| console.target == SerialTarget::Stdio;
        match self.serial.as_slice() {
            [] if self.console.iter().any(has_terminal) => vec![SerialTarget::None],
            [] => vec![SerialTarget::Stdio],
            given => given.to_vec(),
        }
    }

    /// Where serial ports and consoles lead, by their names.
    pub(crate) fn lines(&self) -> Vec<(String, SerialTarget)> {
        let serial = self.serial_targets().into_iter().enumerate();
        let consoles = self.console.iter().enumerate();
        serial
            .map(|(index, target)| (format!("com{}", index + 1), target))
            .chain(consoles.map(|(index, console)| (ConsoleConfig::backend(index), console.target.clone())))
            .collect()
    }

    /// The network cards, with the ports that lead to them.
    fn nics(&self) -> anyhow::Result<Vec<NicConfig>> {
        let usual = if self.machine_kind().has_pci() {
            NicModel::default()
        } else {
            NicModel::Virtio
        };
        let mut nics: Vec<_> = self.nic.iter().map(|nic| nic.on(usual)).collect();
        if nics.is_empty() && !self.no_nic {
            let mut nic = NicConfig::new(NetworkConfig::Nat(NatConfig::default()));
            nic.model = usual;
            nics.push(nic);
        }
        nics::add_forwards(&mut nics, &self.forward)?;
        Ok(nics)
    }

    /// The kind that is named, or that which the other options need.
    fn machine_kind(&self) -> MachineKind {
        let has_drives = !(self.floppy.is_empty() && self.disk.is_empty() && self.cdrom.is_empty());
        let wants_pc = self.firmware.is_some() || self.uefi.is_some() || has_drives || !self.nic.is_empty();
        let kind = if wants_pc {
            MachineKind::Pc
        } else {
            MachineKind::Microvm
        };
        self.machine.unwrap_or(kind)
    }
}

/// A port of the virtio console, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ConsoleArg {
    pub(crate) target: SerialTarget,
    pub(crate) config: ConsoleConfig,
}

/// A target, with or without `,name=NAME`.
fn parse_console(text: &str) -> Result<ConsoleArg, String> {
    let (target, name) = match text.rsplit_once(",name=") {
        Some((target, name)) => (target, Some(name.to_owned())),
        None => (text, None),
    };
    Ok(ConsoleArg {
        target: target.parse()?,
        config: ConsoleConfig { name },
    })
}

/// A floppy drive: `none`, or a file with or without `,ro`.
fn parse_floppy(text: &str) -> Result<FloppyConfig, String> {
    if text == "none" {
        return Ok(FloppyConfig::default());
    }
    let (path, read_only) = match text.strip_suffix(",ro") {
        Some(path) => (path, true),
        None => (text, false),
    };
    if path.is_empty() {
        return Err("write a file's name, or none".to_owned());
    }
    Ok(FloppyConfig {
        image: Some(path.into()),
        read_only,
    })
}

/// A port number, decimal or with `0x`.
fn parse_port(text: &str) -> Result<u16, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| "not a port number; write one such as 0xf4".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn console_leads_somewhere_and_may_have_a_name() {
        let console = parse_console("file:a,b,name=org.x").unwrap();
        assert_eq!(console.target, SerialTarget::File("a,b".into()));
        assert_eq!(console.config.name.as_deref(), Some("org.x"));
        assert_eq!(parse_console("stdio").unwrap().config.name, None);
        assert!(parse_console("name=x").is_err());
    }

    #[test]
    fn port_is_hexadecimal_with_prefix_only() {
        assert_eq!(parse_port("0xf4"), Ok(0xf4));
        assert_eq!(parse_port("0XF4"), Ok(0xf4));
        assert_eq!(parse_port("244"), Ok(244));
        for text in ["f4", "0x", "65536", "-1", ""] {
            assert!(parse_port(text).is_err(), "{text}");
        }
    }
}
