//! The whole state of a machine as a value: devices, processors, memory and time.

use std::collections::HashMap;
use std::sync::Arc;

use cpu_model::CpuState;
use cpu_model::Signal;
use device_model::Clock;
use device_model::RestoreError;
use device_model::SharedDevice;
use device_model::StateBlob;
use device_model::VmTime;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryError;
use guest_memory::MemoryRegion;
use guest_memory::PAGE_SIZE;
use serde::Deserialize;
use serde::Serialize;
use spec::Attachment;

use crate::control::StateError;
use crate::hotplug::PlugError;
use crate::machine::Parts;
use crate::vcpu::VcpuCell;

const PAGE: usize = PAGE_SIZE as usize;
/// Inputs of a vCPU that are events of their own; the others are derived from the interrupt controllers.
const EVENTS: [Signal; 3] = [Signal::Nmi, Signal::Init, Signal::Sipi];

/// One device's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceSnapshot {
    /// Name in the plan.
    pub name: String,
    /// The state.
    pub blob: StateBlob,
}

/// One processor's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuSnapshot {
    /// Registers.
    pub state: CpuState,
    /// NMI, INIT and SIPI that have arrived and are not yet taken: a bit set of [`Signal`].
    pub signals: u32,
    /// Vector of the SIPI.
    pub sipi_vector: u8,
}

/// A machine at rest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// Name of the board.
    pub board: String,
    /// Guest time.
    pub time: VmTime,
    /// The guest sleeps (ACPI S3), until power management wakes it.
    pub asleep: bool,
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// Processors by number.
    pub cpus: Vec<CpuSnapshot>,
    /// Drives that can be detached, in the order of their places.
    pub attached: Vec<Attachment>,
    /// Devices: cards that were attached, then those of the plan in its order.
    pub devices: Vec<DeviceSnapshot>,
    /// Pages of RAM that are not all zero, by address.
    pub pages: Vec<(u64, Vec<u8>)>,
    /// Pages of video memory that are not all zero, by offset.
    pub video: Vec<(u64, Vec<u8>)>,
}

impl Parts {
    /// The state now. The machine stands still.
    pub(crate) fn save(&self) -> Result<MachineState, StateError> {
        let devices = self.all_devices().into_iter().map(|device| DeviceSnapshot {
            name: device.name().to_owned(),
            blob: device.lock().save_blob(),
        });
        Ok(MachineState {
            board: self.plan.board.to_owned(),
            time: self.clock.now(),
            asleep: self.gate.is_asleep(),
            ram_bytes: self.memory.ram_bytes(),
            cpus: self.vcpus.iter().map(|cell| save_cpu(cell)).collect(),
            attached: self.bays.attached(),
            devices: devices.collect(),
            pages: save_pages(&ram(&self.memory)).map_err(StateError::Memory)?,
            video: save_pages(&self.video()).map_err(StateError::Memory)?,
        })
    }

    /// Takes over a state. The machine stands still. After an error the machine is as after power-on, without a guest.
    pub(crate) fn restore(&self, state: &MachineState) -> Result<(), StateError> {
        let plugged = self.match_drives(state).and_then(|()| self.check_shape(state));
        if let Err(error) = plugged {
            self.reset_hardware(device_model::Reset::Cold);
            return Err(StateError::Restore(error));
        }
        let result = self.restore_checked(state);
        if result.is_err() {
            self.reset_hardware(device_model::Reset::Cold);
        }
        if let Some(root) = self.board.pci() {
            root.look_everywhere();
        }
        self.board.refresh_lapic_pages();
        result
    }

    /// Attaches and detaches drives until they are those of the state. Nobody is asked: what devices see of it is overwritten.
    fn match_drives(&self, state: &MachineState) -> Result<(), RestoreError> {
        let invalid = |error: PlugError| {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
            RestoreError::Invalid(format!("{error}{}", cause.unwrap_or_default()))
        };
        let (gone, came) = self.bays.match_saved(&state.attached).map_err(invalid)?;
        self.watch_cards(&gone, came);
        for drive in gone {
            drive.medium.iter().for_each(|medium| medium.settle());
        }
        Ok(())
    }

    fn check_shape(&self, state: &MachineState) -> Result<(), RestoreError> {
        let same = |what: &str, here: &str, there: &str| {
            if here == there {
                return Ok(());
            }
            Err(RestoreError::Invalid(format!(
                "this machine has {what} {here}, the saved one {there}"
            )))
        };
        let count = |n: usize| n.to_string();
        same("board", self.plan.board, &state.board)?;
        same(
            "memory size",
            &self.memory.ram_bytes().to_string(),
            &state.ram_bytes.to_string(),
        )?;
        same(
            "a processor count of",
            &count(self.vcpus.len()),
            &count(state.cpus.len()),
        )?;
        let all = self.all_devices();
        let here: Vec<&str> = all.iter().map(|device| device.name()).collect();
        let there: Vec<&str> = state.devices.iter().map(|device| device.name.as_str()).collect();
        same("devices", &here.join(" "), &there.join(" "))
    }

    /// Video memory, from address zero.
    fn video(&self) -> Vec<(u64, Arc<MemoryRegion>)> {
        self.video.iter().map(|region| (0, Arc::clone(region))).collect()
    }

    fn restore_checked(&self, state: &MachineState) -> Result<(), StateError> {
        if !self.clock.set(state.time) {
            let error = RestoreError::Invalid("the machine's time is not to be had".to_owned());
            return Err(StateError::Restore(error));
        }
        restore_pages(&ram(&self.memory), &state.pages)?;
        restore_pages(&self.video(), &state.video)?;
        restore_devices(&self.all_devices(), &state.devices).map_err(StateError::Restore)?;
        for (cell, saved) in self.vcpus.iter().zip(&state.cpus) {
            restore_cpu(cell, saved).map_err(StateError::Restore)?;
        }
        self.gate.set_asleep(state.asleep);
        Ok(())
    }
}

/// In the order of the plan: interrupt controllers come last, so that what lines do meanwhile leaves no trace in them.
fn restore_devices(devices: &[SharedDevice], saved: &[DeviceSnapshot]) -> Result<(), RestoreError> {
    for (device, saved) in devices.iter().zip(saved) {
        device.lock().restore_blob(&saved.blob)?;
    }
    Ok(())
}

fn save_cpu(cell: &VcpuCell) -> CpuSnapshot {
    let state = cell.lock().state();
    let events = EVENTS.iter().fold(0, |set, signal| set | *signal as u32);
    CpuSnapshot {
        state,
        signals: cell.signals.pending() & events,
        sipi_vector: cell.signals.sipi_vector(),
    }
}

fn restore_cpu(cell: &VcpuCell, saved: &CpuSnapshot) -> Result<(), RestoreError> {
    cell.lock()
        .set_state(&saved.state)
        .map_err(|error| RestoreError::Invalid(format!("cpu {}: {error}", cell.id)))?;
    clear_signals(cell);
    for signal in EVENTS {
        match signal {
            _ if saved.signals & signal as u32 == 0 => {}
            Signal::Sipi => cell.signals.raise_sipi(saved.sipi_vector),
            _ => cell.signals.raise(signal),
        }
    }
    // Whether there is one, the interrupt controllers know.
    cell.signals.raise(Signal::Interrupt);
    Ok(())
}

/// Forgets every input of a vCPU.
pub(crate) fn clear_signals(cell: &VcpuCell) {
    for signal in EVENTS.into_iter().chain([Signal::Interrupt]) {
        cell.signals.take(signal);
    }
}

/// Regions by address.
type Regions = [(u64, Arc<MemoryRegion>)];

fn ram(memory: &GuestMemory) -> Vec<(u64, Arc<MemoryRegion>)> {
    let slots = memory.slots().iter();
    slots
        .filter(|(_, region)| region.kind() == Kind::Ram)
        .cloned()
        .collect()
}

/// Calls `f` with the address of every page, its region and the offset there: while address line 20 is closed, not all
/// of them are at their addresses.
fn each_page(regions: &Regions, mut f: impl FnMut(u64, &MemoryRegion, u64) -> Option<()>) -> Result<(), MemoryError> {
    for (base, region) in regions {
        for offset in (0..region.len()).step_by(PAGE) {
            let gpa = base + offset;
            f(gpa, region, offset).ok_or(MemoryError::Hole { gpa, len: PAGE_SIZE })?;
        }
    }
    Ok(())
}

fn save_pages(regions: &Regions) -> Result<Vec<(u64, Vec<u8>)>, MemoryError> {
    let mut pages = Vec::new();
    let mut page = vec![0; PAGE];
    each_page(regions, |gpa, region, offset| {
        region.fetch(offset, &mut page)?;
        if page.iter().any(|byte| *byte != 0) {
            pages.push((gpa, page.clone()));
        }
        Some(())
    })?;
    Ok(pages)
}

fn restore_pages(regions: &Regions, saved: &[(u64, Vec<u8>)]) -> Result<(), StateError> {
    let invalid = |gpa: u64| StateError::Restore(RestoreError::Invalid(format!("no page of RAM at {gpa:#x}")));
    let mut pages: HashMap<u64, &[u8]> = HashMap::new();
    for (gpa, bytes) in saved {
        if bytes.len() != PAGE || pages.insert(*gpa, bytes).is_some() {
            return Err(invalid(*gpa));
        }
    }
    let (mut page, zero) = (vec![0; PAGE], vec![0; PAGE]);
    each_page(regions, |gpa, region, offset| {
        let wanted = pages.remove(&gpa).unwrap_or(&zero);
        region.fetch(offset, &mut page)?;
        if page != wanted {
            region.load(offset, wanted)?;
        }
        Some(())
    })
    .map_err(StateError::Memory)?;
    match pages.keys().min() {
        Some(gpa) => Err(invalid(*gpa)),
        None => Ok(()),
    }
}
