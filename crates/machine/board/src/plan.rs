//! The plan of a machine: which device sits where, before any of them exists.
//!
//! A plan is a plain value that prints as a table. Everything that cannot be built is found here: a bad value in the
//! spec, a CPU model that does not exist, two devices that want one address or interrupt. All of it is reported at once.

use std::fmt;

use cpu_model::CpuChoice;
use device_model::Space;
use pci::Bdf;
use serde::Serialize;
use spec::EngineKind;
use spec::MachineKind;
use spec::MachineSpec;
use spec::Size;

use crate::registry::REGISTRY;

/// A range of addresses that a device answers to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Window {
    /// The device's name for it.
    pub region: &'static str,
    /// Ports or memory.
    #[serde(serialize_with = "space_name")]
    pub space: Space,
    /// First address.
    pub base: u64,
    /// Number of addresses.
    pub len: u64,
    /// Each processor sees its own device here.
    pub per_cpu: bool,
}

impl Window {
    /// Ports from `base`.
    pub(crate) fn pio(region: &'static str, base: u64, len: u64) -> Self {
        Self {
            region,
            space: Space::Pio,
            base,
            len,
            per_cpu: false,
        }
    }

    /// Memory from `base`.
    pub(crate) fn mmio(region: &'static str, base: u64, len: u64) -> Self {
        Self {
            region,
            space: Space::Mmio,
            base,
            len,
            per_cpu: false,
        }
    }

    fn last(&self) -> u64 {
        self.base.saturating_add(self.len.saturating_sub(1))
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.space == other.space
            && self.base <= other.last()
            && other.base <= self.last()
            && !(self.per_cpu && other.per_cpu)
    }

    fn range(&self) -> String {
        match self.space {
            Space::Pio => format!("{:04x}-{:04x}", self.base, self.last()),
            Space::Mmio => format!("{:08x}-{:08x}", self.base, self.last()),
        }
    }
}

/// A device in the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Name of this one, such as `com1`.
    pub name: String,
    /// What it is, such as `uart16550`.
    pub chip: &'static str,
    /// Which of several of its kind it is.
    pub index: u32,
    /// Where it answers, in the order of its regions.
    pub windows: Vec<Window>,
    /// ISA interrupts that it drives.
    pub irqs: Vec<u8>,
    /// Address of the PCI function that it is; its bus is a wire, zero being that of the root. Windows are then those that do
    /// not move.
    pub bdf: Option<Bdf>,
    /// The wire behind the bridge that it is.
    pub wire: Option<u8>,
}

impl Placement {
    /// A device that answers nowhere yet.
    pub(crate) fn new(name: &str, chip: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            chip,
            index: 0,
            windows: Vec::new(),
            irqs: Vec::new(),
            bdf: None,
            wire: None,
        }
    }

    pub(crate) fn at(mut self, bdf: Bdf) -> Self {
        self.bdf = Some(bdf);
        self
    }

    pub(crate) fn above(mut self, wire: u8) -> Self {
        self.wire = Some(wire);
        self
    }

    pub(crate) fn index(mut self, index: u32) -> Self {
        self.index = index;
        self
    }

    pub(crate) fn window(mut self, window: Window) -> Self {
        self.windows.push(window);
        self
    }

    pub(crate) fn irq(mut self, irq: u8) -> Self {
        self.irqs.push(irq);
        self
    }

    /// Serial ports take turns on a line by convention, and virtio devices drive theirs by level; nobody else shares.
    fn may_share(&self, other: &Self) -> bool {
        let virtio = |place: &Self| place.chip.starts_with("virtio_");
        self.chip == other.chip && self.chip == "uart16550" || virtio(self) && virtio(other)
    }
}

/// A machine on paper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Name of the board.
    pub board: &'static str,
    /// Number of processors.
    pub cpus: u32,
    /// Processor model.
    pub cpu: String,
    /// Engine.
    pub engine: EngineKind,
    /// Bytes of RAM in all, that behind video memory and firmware too.
    pub memory: u64,
    /// RAM: first address and length of each piece.
    pub ram: Vec<(u64, u64)>,
    /// Devices in the order in which they are built, reset and restored: interrupt controllers come last.
    pub devices: Vec<Placement>,
}

/// Everything that keeps a spec from becoming a machine. The message is one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("; "))]
pub struct PlanError(pub Vec<String>);

/// Plans the machine of `spec`.
///
/// # Errors
/// [`PlanError`] with every problem there is.
pub fn plan(spec: &MachineSpec) -> Result<Plan, PlanError> {
    let mut problems = Vec::new();
    if let Err(error) = spec.validate() {
        problems.extend(error.0.iter().map(ToString::to_string));
    }
    if let Err(error) = spec.cpu.parse::<CpuChoice>() {
        problems.push(format!("cpu: {error}"));
    }
    if spec.engine == EngineKind::Lockstep && spec.machine.has_pci() {
        // Its second engine works on a copy of memory that does not move.
        problems.push(format!("engine: lockstep cannot run a {}", spec.machine));
    }
    if !problems.is_empty() {
        return Err(PlanError(problems));
    }
    let plan = Plan {
        board: match spec.machine {
            MachineKind::Microvm => "microvm",
            MachineKind::Pc => "pc",
            MachineKind::Q35 => "q35",
        },
        cpus: spec.cpus,
        cpu: spec.cpu.clone(),
        engine: spec.engine,
        memory: spec.memory.bytes(),
        ram: match spec.machine {
            MachineKind::Microvm => firmware::layout::ram_ranges(spec.memory.bytes()),
            MachineKind::Pc => firmware::layout::pc_ram_ranges(spec.memory.bytes()),
            MachineKind::Q35 => firmware::layout::express_ram_ranges(spec.memory.bytes()),
        },
        devices: REGISTRY.iter().flat_map(|entry| (entry.place)(spec)).collect(),
    };
    let conflicts = plan.conflicts();
    if conflicts.is_empty() {
        Ok(plan)
    } else {
        Err(PlanError(conflicts))
    }
}

impl Plan {
    /// The pin of the root bus that pin `pin` of the function at `bdf` reaches: slot and pin.
    pub(crate) fn root_pin(&self, bdf: Bdf, pin: u8) -> (u8, u8) {
        let (mut at, mut pin) = (bdf, pin);
        // No path is longer than there are devices.
        for _ in &self.devices {
            let above = self.devices.iter().find(|place| place.wire == Some(at.bus()));
            let Some(bridge) = above.and_then(|place| place.bdf) else {
                break;
            };
            pin = pci::pirq::behind_bridge(at.device(), pin);
            at = bridge;
        }
        (at.device(), pin)
    }

    /// Slots of the root bus with nothing in them, a bit for each.
    pub(crate) fn free_slots(&self) -> u32 {
        let slots = self.devices.iter().filter_map(|place| place.bdf);
        let slots = slots.filter(|bdf| bdf.bus() == 0);
        // Slot 0 is the host bridge's.
        slots.fold(!1, |free, bdf| free & !(1 << (bdf.device() & 31)))
    }

    /// Every pair of devices that want the same, with both names.
    fn conflicts(&self) -> Vec<String> {
        let mut out = Vec::new();
        for (at, one) in self.devices.iter().enumerate() {
            for window in &one.windows {
                let hit = |(base, len): &&(u64, u64)| {
                    window.space == Space::Mmio && window.base < base + len && *base <= window.last()
                };
                if self.ram.iter().any(|ram| hit(&ram)) {
                    out.push(format!(
                        "{}/{} at {} overlaps RAM",
                        one.name,
                        window.region,
                        window.range()
                    ));
                }
            }
            for other in self.devices.iter().skip(at + 1) {
                conflicts_of(one, other, &mut out);
            }
        }
        out
    }
}

fn conflicts_of(one: &Placement, other: &Placement, out: &mut Vec<String>) {
    if one.name == other.name {
        out.push(format!("two devices are called {}", one.name));
    }
    for a in &one.windows {
        for b in other.windows.iter().filter(|b| a.overlaps(b)) {
            let (at, there) = (b.range(), a.range());
            out.push(format!(
                "{}/{} at {at} overlaps {}/{} at {there}",
                other.name, b.region, one.name, a.region
            ));
        }
    }
    if let Some(bdf) = one.bdf.filter(|_| one.bdf == other.bdf) {
        out.push(format!(
            "{} wants PCI address {bdf}, which {} has",
            other.name, one.name
        ));
    }
    if !one.may_share(other) {
        for irq in one.irqs.iter().filter(|irq| other.irqs.contains(irq)) {
            out.push(format!("{} wants irq {irq}, which {} has", other.name, one.name));
        }
    }
}

fn space_name<S: serde::Serializer>(space: &Space, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match space {
        Space::Pio => "pio",
        Space::Mmio => "mmio",
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.cpus == 1 { "" } else { "s" };
        writeln!(
            f,
            "{}: {} cpu{plural} ({}), {} memory, engine {}",
            self.board,
            self.cpus,
            self.cpu,
            Size::from_bytes(self.memory),
            self.engine
        )?;
        writeln!(f)?;
        for (base, len) in &self.ram {
            writeln!(
                f,
                "ram         {base:012x}-{:012x}  {}",
                base + len - 1,
                Size::from_bytes(*len)
            )?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<11} {:<13} {:<4} {:<17}  {:<12} irq",
            "device", "chip", "", "address", "region"
        )?;
        for device in &self.devices {
            write_device(f, device)?;
        }
        Ok(())
    }
}

fn write_device(f: &mut fmt::Formatter<'_>, device: &Placement) -> fmt::Result {
    let irqs: Vec<String> = device.irqs.iter().map(u8::to_string).collect();
    let mut head = (device.name.as_str(), device.chip, irqs.join(" "));
    if let Some(bdf) = device.bdf {
        let (name, chip, irqs) = std::mem::take(&mut head);
        let behind = device.wire.map(|wire| format!("bus {wire}")).unwrap_or_default();
        let line = format!(
            "{name:<11} {chip:<13} pci  {:<17}  {behind:<12} {irqs}",
            bdf.to_string()
        );
        writeln!(f, "{}", line.trim_end())?;
    }
    for window in &device.windows {
        let space = match window.space {
            Space::Pio => "pio",
            Space::Mmio => "mmio",
        };
        let (name, chip, irqs) = std::mem::take(&mut head);
        let per_cpu = if window.per_cpu { "per cpu" } else { "" };
        let line = format!(
            "{name:<11} {chip:<13} {space:<4} {:<17}  {:<12} {irqs}{per_cpu}",
            window.range(),
            window.region
        );
        writeln!(f, "{}", line.trim_end())?;
    }
    Ok(())
}
