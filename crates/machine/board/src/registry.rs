//! The registry: every device that a board can have, a line each.
//!
//! An entry says which devices of its kind a spec asks for and where they go, and builds one of them. Nothing else knows
//! all devices. The order is that of building, reset and restore: interrupt controllers last, so that lines which move
//! meanwhile leave no trace in them, and local APICs after those that send to them.

mod interrupts;
mod legacy;
mod nic;
mod pc;
mod platform;
mod q35;
mod screen;
mod shares;
mod storage;
mod timers;
mod virtio;

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;

use chipset::a20::A20Gate;
use chipset::acpi_pm::AlarmLatch;
use chipset::cmos_rtc::CmosRtc;
use chipset::dma8237::DmaChannel;
use chipset::hpet::LegacyGate;
use chipset::reset_control::PowerControl;
use cpu_model::CpuPolicy;
use cpu_model::Signals;
use device_model::Clock;
use device_model::Device;
use device_model::SharedDevice;
use device_model::Slot;
use device_model::Wake;
use display::vga::Vga;
use guest_memory::GuestMemory;
use guest_memory::MemoryRegion;
use pci::PirqRouter;
use pci::Root;
use spec::Bay;
use spec::BootDevice;
use spec::MachineSpec;

use crate::Balloon;
use crate::BuildError;
use crate::Placement;
use crate::Plan;
use crate::SerialPort;
use crate::boot::FirmwareTables;
use crate::boot::Variables;
use crate::drives::RemovableDrive;
use crate::events::Events;
use crate::events::PollRequest;
use crate::fabric::Fabric;
use crate::hotplug::Sockets;
use crate::network::Networks;
use crate::screen::UserInput;
use crate::serial::SerialEnd;
use crate::storage::ImageMedium;
use crate::storage::Workers;

/// A kind of device.
pub(crate) struct Entry {
    /// The kind's name, that of its module in `chipset`.
    pub(crate) chip: &'static str,
    /// The devices of this kind that a spec asks for.
    pub(crate) place: fn(&MachineSpec) -> Vec<Placement>,
    /// Builds one of them.
    build: fn(&mut Builder<'_>, &Placement) -> Result<SharedDevice, BuildError>,
}

#[rustfmt::skip]
pub(crate) const REGISTRY: &[Entry] = &[
    Entry { chip: "pit",           place: timers::place_pit,           build: timers::build_pit },
    Entry { chip: "cmos_rtc",      place: timers::place_rtc,           build: timers::build_rtc },
    Entry { chip: "hpet",          place: timers::place_hpet,          build: timers::build_hpet },
    Entry { chip: "i8042",         place: legacy::place_i8042,         build: legacy::build_i8042 },
    Entry { chip: "uart16550",     place: legacy::place_uarts,         build: legacy::build_uart },
    Entry { chip: "i440fx",        place: pc::place_i440fx,            build: pc::build_i440fx },
    Entry { chip: "piix3",         place: pc::place_piix3,             build: pc::build_piix3 },
    Entry { chip: "q35_mch",       place: q35::place_mch,              build: q35::build_mch },
    Entry { chip: "ich9_lpc",      place: q35::place_lpc,              build: q35::build_lpc },
    Entry { chip: "ich9_smbus",    place: q35::place_smbus,            build: q35::build_smbus },
    Entry { chip: "root_port",     place: q35::place_ports,            build: q35::build_port },
    Entry { chip: "pci_bridge",    place: q35::place_bridge,           build: q35::build_bridge },
    Entry { chip: "ide",           place: storage::place_ide,          build: storage::build_ide },
    Entry { chip: "ahci",          place: storage::place_ahci,         build: storage::build_ahci },
    Entry { chip: "nvme",          place: storage::place_nvme,         build: storage::build_nvme },
    Entry { chip: "virtio_blk",    place: virtio::place_blk,           build: virtio::build_blk },
    Entry { chip: "virtio_net",    place: virtio::place_net,           build: virtio::build_net },
    Entry { chip: "virtio_rng",    place: virtio::place_rng,           build: virtio::build_rng },
    Entry { chip: "virtio_console", place: virtio::place_console,      build: virtio::build_console },
    Entry { chip: "virtio_balloon", place: virtio::place_balloon,      build: virtio::build_balloon },
    Entry { chip: "virtio_fs",     place: shares::place_fs,            build: shares::build_fs },
    Entry { chip: "virtio_9p",     place: shares::place_9p,            build: shares::build_9p },
    Entry { chip: "virtio_vsock",  place: virtio::place_vsock,         build: virtio::build_vsock },
    Entry { chip: "virtio_scsi",   place: virtio::place_scsi,          build: virtio::build_scsi },
    Entry { chip: "virtio_input",  place: virtio::place_input,         build: virtio::build_input },
    Entry { chip: "e1000",         place: nic::place_e1000,            build: nic::build_e1000 },
    Entry { chip: "pcnet",         place: nic::place_pcnet,            build: nic::build_pcnet },
    Entry { chip: "piix4_pm",      place: pc::place_piix4_pm,          build: pc::build_piix4_pm },
    Entry { chip: "acpi_slots",    place: pc::place_acpi_slots,        build: pc::build_acpi_slots },
    Entry { chip: "pflash",        place: pc::place_pflash,            build: pc::build_pflash },
    Entry { chip: "vga",           place: screen::place_vga,           build: screen::build_vga },
    Entry { chip: "debugcon",      place: pc::place_debugcon,          build: pc::build_debugcon },
    Entry { chip: "dma8237",       place: pc::place_dma,               build: pc::build_dma },
    Entry { chip: "fdc",           place: pc::place_fdc,               build: pc::build_fdc },
    Entry { chip: "parallel",      place: pc::place_parallel,          build: pc::build_parallel },
    Entry { chip: "acpi_pm",       place: platform::place_acpi_pm,     build: platform::build_acpi_pm },
    Entry { chip: "reset_control", place: platform::place_reset,       build: platform::build_reset },
    Entry { chip: "port92",        place: platform::place_port92,      build: platform::build_port92 },
    Entry { chip: "fw_cfg",        place: platform::place_fw_cfg,      build: platform::build_fw_cfg },
    Entry { chip: "debug_exit",    place: platform::place_debug_exit,  build: platform::build_debug_exit },
    Entry { chip: "pc_testdev",    place: platform::place_testdev,     build: platform::build_testdev },
    Entry { chip: "pic",           place: interrupts::place_pic,       build: interrupts::build_pic },
    Entry { chip: "ioapic",        place: interrupts::place_ioapic,    build: interrupts::build_ioapic },
    Entry { chip: "lapic",         place: interrupts::place_lapics,    build: interrupts::build_lapic },
];

/// Names of all chips that a machine may have.
pub fn chips() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|entry| entry.chip)
}

/// PCI addresses, whose buses are wires: the root's is wire 0, and PCI Express port `n` of a q35 has wire `n` behind it.
pub(crate) mod bdf {
    use pci::Bdf;
    use spec::MachineKind;
    use spec::MachineSpec;
    use spec::PORTS;
    use spec::PciPlace;

    /// The host bridge.
    pub(crate) const HOST_BRIDGE: Bdf = Bdf::new(0, 0, 0);
    /// The ISA bridge.
    pub(crate) const ISA_BRIDGE: Bdf = Bdf::new(0, 1, 0);
    /// The IDE channels.
    pub(crate) const IDE: Bdf = Bdf::new(0, 1, 1);
    /// Power management.
    pub(crate) const PM: Bdf = Bdf::new(0, 1, 3);
    /// LPC bridge of a q35.
    pub(crate) const LPC: Bdf = Bdf::new(0, 31, 0);
    /// Its SMBus controller.
    pub(crate) const SMBUS: Bdf = Bdf::new(0, 31, 3);
    /// Its bridge to a bus for conventional cards.
    pub(crate) const PCI_BRIDGE: Bdf = Bdf::new(0, 30, 0);
    /// The wire of that bus.
    pub(crate) const CARDS: u8 = PORTS + 1;

    /// PCI Express port number `number`, from one, of a q35.
    pub(crate) const fn port(number: u8) -> Bdf {
        Bdf::new(0, 28, number - 1)
    }

    /// Slots of the root bus for virtio devices other than network cards, in the order in which they are taken.
    fn virtio_slots() -> impl Iterator<Item = u8> {
        (10..28).chain(2..10)
    }

    /// Where virtio device number `index` is that is no network card: in the slots that nothing else has.
    pub(crate) fn virtio(spec: &MachineSpec, index: usize) -> Bdf {
        let nics = (0..spec.devices.nics.len()).map(|nic| of(spec, &format!("nic{nic}")));
        let mut others: Vec<Bdf> = ["vga", "ahci", "nvme"].map(|name| of(spec, name)).into();
        others.extend(nics);
        let slots = virtio_slots().map(|slot| Bdf::new(0, slot, 0));
        let mut free = slots.filter(|bdf| !others.contains(bdf));
        // Beyond the last there is a conflict, which the plan tells of.
        free.nth(index).unwrap_or(HOST_BRIDGE)
    }

    /// The usual slot of network card 0; those of the others follow.
    const fn first_nic(machine: MachineKind) -> u8 {
        match machine {
            MachineKind::Q35 => 2,
            _ => 5,
        }
    }

    /// Where the device called `name` is: `vga`, `ahci`, `nvme`, `nic0`.
    pub(crate) fn of(spec: &MachineSpec, name: &str) -> Bdf {
        match spec.devices.places.get(name) {
            Some(PciPlace::Root(slot)) => Bdf::new(0, *slot, 0),
            Some(PciPlace::Port(number)) => Bdf::new(*number, 0, 0),
            Some(PciPlace::Bridge(slot)) => Bdf::new(CARDS, *slot, 0),
            None => usual(spec.machine, name),
        }
    }

    fn usual(machine: MachineKind, name: &str) -> Bdf {
        if let Some(number) = name.strip_prefix("nic").and_then(|number| number.parse::<u8>().ok()) {
            return Bdf::new(0, first_nic(machine).saturating_add(number), 0);
        }
        match (machine, name) {
            (MachineKind::Q35, "vga") => Bdf::new(0, 1, 0),
            (MachineKind::Q35, "ahci") => Bdf::new(0, 31, 2),
            // A card in the first port.
            (MachineKind::Q35, _) => Bdf::new(1, 0, 0),
            (_, "vga") => Bdf::new(0, 2, 0),
            (_, "ahci") => Bdf::new(0, 3, 0),
            _ => Bdf::new(0, 4, 0),
        }
    }
}

/// What firmware boots from if nothing else is said.
pub(crate) const DEFAULT_ORDER: [BootDevice; 3] = [BootDevice::Disk, BootDevice::Cdrom, BootDevice::Floppy];

/// A button of the machine's case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Button {
    Power,
    Sleep,
}

/// Presses buttons.
pub(crate) type Buttons = Box<dyn Fn(Button) + Send + Sync>;

/// What devices are built from.
pub(crate) struct Builder<'a> {
    pub(crate) spec: &'a MachineSpec,
    pub(crate) plan: &'a Plan,
    pub(crate) root: Arc<Root>,
    /// From the pins of PCI functions to ISA interrupts.
    pub(crate) router: Arc<PirqRouter>,
    /// Firmware's ROM.
    pub(crate) rom: Option<Arc<MemoryRegion>>,
    /// UEFI's variables, until they are in their flash.
    pub(crate) variables: Option<Variables>,
    pub(crate) a20: Arc<A20Gate>,
    /// Where the debug port leads, until it is built.
    pub(crate) debugcon: Option<Box<dyn Write + Send>>,
    /// What hangs on the parallel port, until it is built.
    pub(crate) printer: Option<Box<dyn Write + Send>>,
    /// The floppy controller's DMA channel, between the two being built.
    pub(crate) floppy_dma: Option<DmaChannel>,
    /// The display adapter, once it is built.
    pub(crate) vga: Option<Arc<Slot<Vga>>>,
    /// Keyboards and pointers that are built.
    pub(crate) input: UserInput,
    /// The memory balloon, once it is built.
    pub(crate) balloon: Option<Balloon>,
    /// The machine's buttons, once there is a chip behind them.
    pub(crate) buttons: Option<Buttons>,
    /// What drives and cards are plugged into.
    pub(crate) sockets: Sockets,
    /// Told when the guest gives up what is in a place.
    pub(crate) given_up: Arc<dyn Fn(Bay) + Send + Sync>,
    /// Drives whose media users change.
    pub(crate) drives: Vec<Arc<dyn RemovableDrive>>,
    /// What firmware hands on, until it is with `fw_cfg`.
    pub(crate) tables: Option<FirmwareTables>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: Arc<Events>,
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) power: Arc<dyn PowerControl>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) policy: Arc<CpuPolicy>,
    pub(crate) signals: Vec<Arc<Signals>>,
    /// Threads of disks, and the images that were opened.
    pub(crate) workers: Arc<Workers>,
    pub(crate) media: Vec<Arc<ImageMedium>>,
    /// What the cables of network cards are plugged into.
    pub(crate) networks: Networks,
    /// Serial wires that no port has taken yet.
    pub(crate) serial: BTreeMap<String, SerialPort>,
    /// The wires that ports have taken.
    pub(crate) serial_ends: Vec<SerialEnd>,
    /// Whom to ask for a poll, by device.
    pub(crate) poll_requests: BTreeMap<String, PollRequest>,
    /// Between PIT and RTC and their lines, which the HPET can take over.
    pub(crate) legacy_gate: Arc<LegacyGate>,
    /// From the RTC's alarm to power management, which is polled when it rings.
    pub(crate) alarm: Arc<AlarmLatch>,
    pub(crate) alarm_request: PollRequest,
    /// The RTC, once it is built.
    pub(crate) rtc: Option<Arc<Slot<CmosRtc>>>,
}

impl Builder<'_> {
    fn slot<D: Device>(&self, place: &Placement, device: D) -> Arc<Slot<D>> {
        let wake = Arc::clone(&self.events) as Arc<dyn Wake>;
        Slot::new(&place.name, device, Arc::clone(&self.clock), wake)
    }
}

/// How workers and networks ask for a poll of the device.
fn waker(builder: &mut Builder<'_>, place: &Placement) -> Arc<dyn Fn() + Send + Sync> {
    let request = PollRequest::new(builder.events.clone());
    builder.poll_requests.insert(place.name.clone(), request.clone());
    Arc::new(move || request.raise())
}

/// The pin `pin` (1 for INTA#) of a PCI function.
fn pin(builder: &Builder<'_>, place: &Placement, pin: u8) -> device_model::IrqLine {
    match place.bdf {
        Some(bdf) => {
            let (slot, pin) = builder.plan.root_pin(bdf, pin);
            builder.router.pin(slot, pin)
        }
        None => device_model::IrqLine::detached(),
    }
}

/// Builds all devices of a plan, in its order.
pub(crate) fn build_all(builder: &mut Builder<'_>, plan: &[Placement]) -> Result<Vec<SharedDevice>, BuildError> {
    plan.iter()
        .map(|place| {
            let entry = REGISTRY.iter().find(|entry| entry.chip == place.chip);
            let entry = entry.ok_or_else(|| BuildError::Windows(place.name.clone()))?;
            (entry.build)(builder, place)
        })
        .collect()
}

/// The interrupt line number `index` of a placement; one that goes nowhere if the plan has none.
fn irq(builder: &Builder<'_>, place: &Placement, index: usize) -> device_model::IrqLine {
    match place.irqs.get(index) {
        Some(irq) => builder.fabric.isa(u32::from(*irq)),
        None => device_model::IrqLine::detached(),
    }
}
