//! What firmware does between power-on and the kernel's first instruction.
//!
//! There is no firmware image: interrupt controllers and memory-type registers are set as PC firmware leaves them, the ACPI tables
//! are written, and the kernel is loaded by its boot protocol. Files are read anew at every reset, so that they take no
//! memory while the guest runs.

mod screen;
mod setup;

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use chipset::lapic::Lapic;
use chipset::pflash::FlashStore;
use chipset::pflash::Pflash;
use cpu_model::CpuState;
use cpu_model::Msrs;
use device_model::At;
use device_model::Registers;
use device_model::Width;
use firmware::BootRequest;
use firmware::acpi::AcpiInput;
use firmware::acpi::HotSlots;
use firmware::acpi::PciInput;
use firmware::acpi::PmPorts;
use firmware::layout;
use firmware::smbios::SmbiosInput;
use firmware::video;
use guest_memory::GuestMemory;
use guest_memory::MemoryRegion;
use pci::Root;
use spec::BootSpec;
use spec::MachineKind;
use spec::MachineSpec;

use crate::BuildError;
use crate::Plan;
use crate::cpu_board::Board;
use crate::screen::Screen;
use crate::vcpu::VcpuCell;

/// Spurious-interrupt vector register and its value: software-enabled, vector FFh (SDM vol. 3 §11.9).
const SVR: (u64, u64) = (0xf0, 0x1ff);
/// LVT LINT0 and its value: ExtINT, so that the 8259 pair reaches the processor (virtual wire mode).
const LINT0: (u64, u64) = (0x350, 0x700);
/// LVT LINT1 and its value: NMI.
const LINT1: (u64, u64) = (0x360, 0x400);

/// What the machine boots, as files.
pub(crate) struct BootSource {
    boot: BootSpec,
    machine: MachineKind,
}

impl BootSource {
    pub(crate) fn new(spec: &MachineSpec) -> Self {
        Self {
            boot: spec.boot.clone(),
            machine: spec.machine,
        }
    }

    /// Whether the machine starts with firmware: one that has it, without a kernel that is booted directly.
    pub(crate) fn by_firmware(&self) -> bool {
        self.machine.has_pci() && self.boot.kernel.is_none()
    }

    /// UEFI's variables, if that is the firmware: the file's, or the template's.
    pub(crate) fn variables(&self) -> Result<Option<Variables>, BuildError> {
        let Some(uefi) = self.boot.uefi.as_ref().filter(|_| self.by_firmware()) else {
            return Ok(None);
        };
        let template = read_file(firmware::rom::find_uefi()?.1)?;
        let Some(path) = &uefi.variables else {
            return Ok(Some(Variables {
                bytes: template,
                file: None,
            }));
        };
        Variables::open(path, &template).map(Some)
    }

    /// The firmware's ROM, if the machine starts with it.
    pub(crate) fn rom(&self) -> Result<Option<Arc<MemoryRegion>>, BuildError> {
        if !self.by_firmware() {
            return Ok(None);
        }
        let path = match (&self.boot.firmware, &self.boot.uefi) {
            (None, Some(_)) => firmware::rom::find_uefi()?.0,
            (named, _) => firmware::rom::find(named.as_deref())?,
        };
        let image = read_file(&path)?;
        tracing::info!(path = %path.display(), "firmware");
        let region = firmware::rom::region(&path, &image)?;
        Ok(Some(Arc::new(region)))
    }

    /// Turns the display adapter on for a kernel that is booted directly, in the mode that its command line asks for.
    pub(crate) fn light(&self, screen: &Screen, root: &Root, plan: &Plan) -> video::Screen {
        let mode = video::wanted(&self.boot.append).unwrap_or_else(|value| {
            tracing::warn!(value, "`vga=` names no video mode: text is shown");
            None
        });
        let place = plan.devices.iter().find(|place| place.chip == "vga");
        // Behind a bridge nothing is seen before the operating system has set the bridge's windows.
        match place.and_then(|place| place.bdf).filter(|bdf| bdf.bus() == 0) {
            Some(bdf) => screen::light(screen.adapter(), root, (bdf, windows(plan).memory), mode),
            None => video::Screen::None,
        }
    }

    /// Loads the kernel and sets the boot processor to its entry point. Without a kernel nothing is done: the processor
    /// stays at its reset vector.
    pub(crate) fn load(
        &self,
        memory: &GuestMemory,
        plan: &Plan,
        screen: video::Screen,
        vcpus: &[Arc<VcpuCell>],
    ) -> Result<(), BuildError> {
        let Some(path) = &self.boot.kernel else {
            return Ok(());
        };
        let kernel = read_file(path)?;
        let initrd = self.boot.initrd.as_deref().map(read_file).transpose()?;
        let initrd_path = self.boot.initrd.as_deref().unwrap_or(Path::new(""));
        let acpi = firmware::acpi::build(&acpi_input(plan), memory)?;
        let (name, initrd_name) = (path.to_string_lossy(), initrd_path.to_string_lossy());
        let request = BootRequest {
            kernel: &kernel,
            kernel_name: &name,
            initrd: initrd.as_deref(),
            initrd_name: &initrd_name,
            cmdline: &self.boot.append,
            rsdp: acpi.rsdp,
            screen,
        };
        let loaded = firmware::load(memory, &request).map_err(|source| BuildError::Boot {
            path: path.clone(),
            source,
        })?;
        tracing::info!(kind = ?loaded.kind, entry = loaded.entry, "kernel loaded");
        let Some(boot_cpu) = vcpus.first() else {
            return Ok(());
        };
        let mut vcpu = boot_cpu.lock();
        let before = vcpu.state();
        vcpu.set_state(&entry_state(loaded.state, before))?;
        Ok(())
    }
}

/// Sets the boot processor to the guest's waking vector, from the state that [`power_on_self`] left.
pub(crate) fn wake(vcpus: &[Arc<VcpuCell>], vector: u32) -> Result<(), BuildError> {
    tracing::info!(vector, "guest woken");
    if let Some(boot_cpu) = vcpus.first() {
        let mut vcpu = boot_cpu.lock();
        let state = firmware::waking_state(vcpu.state(), vector);
        vcpu.set_state(&state)?;
    }
    Ok(())
}

/// The kernel's entry state, completed by what the engine and the power-on have set.
fn entry_state(loaded: CpuState, before: CpuState) -> CpuState {
    CpuState {
        msrs: Msrs {
            efer: loaded.msrs.efer,
            ..before.msrs
        },
        fpu: before.fpu,
        xcr0: before.xcr0,
        dr: before.dr,
        pkru: before.pkru,
        ..loaded
    }
}

/// Sets processors and interrupt controllers as firmware leaves them, from the state after reset.
pub(crate) fn power_on_self(
    board: &Board,
    plan: &Plan,
    vcpus: &[Arc<VcpuCell>],
    reset: &[CpuState],
) -> Result<(), BuildError> {
    for (cell, reset) in vcpus.iter().zip(reset) {
        let msrs = firmware::firmware_msrs();
        let state = CpuState {
            msrs: Msrs {
                pat: msrs.pat,
                misc_enable: msrs.misc_enable,
                mtrr_def_type: msrs.mtrr_def_type,
                mtrr_var: msrs.mtrr_var,
                mtrr_fixed: msrs.mtrr_fixed,
                ..reset.msrs.clone()
            },
            ..reset.clone()
        };
        cell.lock().set_state(&state)?;
    }
    for (port, value) in firmware::PORT_WRITES {
        board.pio.write(port.into(), Width::Byte, value.into());
    }
    if let Some(root) = board.pci() {
        setup::chipset(root, &board.pio, plan);
    }
    if let Some(lapic) = board.fabric.lapic(0) {
        virtual_wire(&mut lapic.lock());
    }
    Ok(())
}

/// UEFI's variables as they are at power-on, and the file that keeps them.
pub(crate) struct Variables {
    pub(crate) bytes: Vec<u8>,
    pub(crate) file: Option<File>,
}

impl Variables {
    /// Those of a file, which is made of the template if it is not there.
    fn open(path: &Path, template: &[u8]) -> Result<Self, BuildError> {
        let failed = |source| BuildError::File {
            path: path.to_owned(),
            source,
        };
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let file = opened.map_err(failed)?;
        let mut bytes = Vec::new();
        // One byte more than wanted tells that it is too long.
        let limit = template.len() as u64 + 1;
        (&file).take(limit).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.is_empty() {
            file.write_all_at(template, 0).map_err(failed)?;
            bytes = template.to_vec();
        }
        if bytes.len() != template.len() {
            let (path, len, wanted) = (path.to_owned(), bytes.len(), template.len());
            return Err(firmware::RomError::Variables { path, len, wanted }.into());
        }
        Ok(Self {
            bytes,
            file: Some(file),
        })
    }

    /// Makes the flash that holds them.
    pub(crate) fn into_flash(self) -> Option<Pflash> {
        let store = self.file.map(|file| Box::new(FlashFile(file)) as Box<dyn FlashStore>);
        Pflash::new(self.bytes, store)
    }
}

/// The file behind a flash.
struct FlashFile(File);

impl FlashStore for FlashFile {
    fn keep(&mut self, offset: u64, bytes: &[u8]) -> bool {
        self.0.write_all_at(bytes, offset).is_ok()
    }
}

/// Lets the 8259 pair and NMI through to the boot processor.
fn virtual_wire(lapic: &mut Lapic) {
    for (offset, value) in [SVR, LINT0, LINT1] {
        let at = At { region: 0, offset };
        let _ = lapic.write(at, Width::Dword, value);
    }
}

pub(crate) fn read_file(path: impl AsRef<Path>) -> Result<Vec<u8>, BuildError> {
    let path: PathBuf = path.as_ref().to_owned();
    std::fs::read(&path).map_err(|source| BuildError::File { path, source })
}

/// End of the RAM below 4 GiB.
fn low_end(plan: &Plan) -> u64 {
    let ends = plan.ram.iter().map(|(base, len)| base + len);
    ends.filter(|end| *end <= layout::HOLE_END).max().unwrap_or(0)
}

/// End of all RAM.
fn end(plan: &Plan) -> u64 {
    plan.ram.iter().map(|(base, len)| base + len).max().unwrap_or(0)
}

/// The tables that firmware hands on, for a machine that starts with it.
pub(crate) fn firmware_tables(spec: &MachineSpec, plan: &Plan) -> Option<FirmwareTables> {
    let source = BootSource::new(spec);
    source.by_firmware().then(|| FirmwareTables {
        acpi: firmware::acpi::linked(&acpi_input(plan)),
        smbios: firmware::smbios::build(&SmbiosInput {
            cpus: plan.cpus,
            memory: plan.memory,
            ram: plan.ram.clone(),
        }),
        e820: e820(plan),
    })
}

/// What firmware hands on to the operating system.
pub(crate) struct FirmwareTables {
    pub(crate) acpi: firmware::acpi::Linked,
    pub(crate) smbios: firmware::smbios::Smbios,
    /// The item `etc/e820`.
    pub(crate) e820: Vec<u8>,
}

/// Where RAM is, in the terms of E820: the low megabyte in one piece, since firmware cuts it itself.
fn e820(plan: &Plan) -> Vec<u8> {
    let low = (0, low_end(plan));
    let high = plan.ram.iter().copied().filter(|(base, _)| *base >= layout::HOLE_END);
    let entry = |(base, len): (u64, u64)| {
        let kind = layout::MapKind::Usable as u32;
        [base.to_le_bytes().as_slice(), &len.to_le_bytes(), &kind.to_le_bytes()].concat()
    };
    std::iter::once(low).chain(high).flat_map(entry).collect()
}

/// Where PCI devices get their memory.
fn windows(plan: &Plan) -> PciInput {
    let has = |chip: &str| plan.devices.iter().any(|device| device.chip == chip);
    let ecam = if has("pflash") { layout::UEFI_ECAM } else { layout::ECAM };
    if has("q35_mch") {
        PciInput::express(low_end(plan), ecam)
    } else {
        PciInput {
            slots: has("acpi_slots").then(|| HotSlots {
                port: pci::acpi_slots::PORT,
                len: pci::acpi_slots::LEN,
                gpe: pci::acpi_slots::GPE,
                slots: plan.free_slots(),
            }),
            ..PciInput::below(low_end(plan))
        }
    }
}

/// The devices that the ACPI tables speak of, out of the plan.
fn acpi_input(plan: &Plan) -> AcpiInput {
    let has = |chip: &str| plan.devices.iter().any(|device| device.chip == chip);
    let uarts = plan.devices.iter().filter(|device| device.chip == "uart16550");
    let uart = |device: &crate::Placement| {
        let port = u16::try_from(device.windows.first()?.base).ok()?;
        Some((port, *device.irqs.first()?))
    };
    let virtio = plan.devices.iter().filter(|device| device.chip.starts_with("virtio_"));
    let registers = |device: &crate::Placement| {
        let base = u32::try_from(device.windows.first()?.base).ok()?;
        Some((base, *device.irqs.first()?))
    };
    let pci = plan.devices.iter().any(|device| device.bdf.is_some());
    let express = has("q35_mch");
    AcpiInput {
        pm: match (pci, express, has("pflash")) {
            (false, ..) => PmPorts::default(),
            (true, false, false) => PmPorts::PIIX4,
            (true, false, true) => PmPorts::piix4(layout::UEFI_PM_BASE),
            (true, true, false) => PmPorts::ich9(layout::PM_BASE),
            (true, true, true) => PmPorts::ich9(layout::UEFI_ICH9_PM_BASE),
        },
        pci: pci.then(|| windows(plan).with_high(end(plan))),
        vga: has("vga"),
        floppy: has("fdc"),
        parallel: has("parallel"),
        apic_ids: (0..plan.cpus).collect(),
        hpet: has("hpet"),
        i8042: has("i8042"),
        uarts: uarts.filter_map(uart).collect(),
        virtio: virtio.filter_map(registers).collect(),
        ..AcpiInput::default()
    }
}
