//! The PCI chipset of a PC: where its functions go and how they are built.

use std::sync::Arc;

use chipset::acpi_pm;
use chipset::acpi_pm::AcpiPm;
use chipset::debugcon;
use chipset::debugcon::Debugcon;
use chipset::dma8237;
use chipset::dma8237::Dma8237;
use chipset::fdc;
use chipset::fdc::Fdc;
use chipset::parallel;
use chipset::parallel::Parallel;
use device_model::SharedDevice;
use firmware::layout;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use pci::acpi_slots;
use pci::acpi_slots::AcpiSlots;
use pci::i440fx::I440fx;
use pci::piix3::Piix3;
use pci::piix4_pm::Piix4Pm;
use pci::shadow;
use spec::Bay;
use spec::MachineKind;
use spec::MachineSpec;
use spec::PciPlace;

use super::Builder;
use super::Button;
use super::bdf;
use super::irq;
use crate::BuildError;
use crate::Placement;
use crate::Window;
use crate::floppy::FloppyDrive;
use crate::storage::FloppyDisk;
use crate::storage::ImageMedium;

/// DMA channel of the floppy controller.
const FLOPPY_CHANNEL: u8 = 2;

/// `place` on every PC, nothing elsewhere.
fn on_a_pc(spec: &MachineSpec, place: impl FnOnce() -> Placement) -> Vec<Placement> {
    spec.machine.has_pci().then(place).into_iter().collect()
}

/// `place` on a PC with this chipset, nothing elsewhere.
fn on_i440fx(spec: &MachineSpec, place: impl FnOnce() -> Placement) -> Vec<Placement> {
    let is_ours = spec.machine == MachineKind::Pc;
    is_ours.then(place).into_iter().collect()
}

pub(super) fn place_i440fx(spec: &MachineSpec) -> Vec<Placement> {
    on_i440fx(spec, || {
        Placement::new("host", "i440fx")
            .at(bdf::HOST_BRIDGE)
            .window(Window::mmio("segments", 0xc_0000, 0x4_0000))
    })
}

pub(super) fn build_i440fx(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let shadow = MemoryRegion::new("shadow", Kind::Ram, shadow::SHADOW_LEN)?;
    let latch = Arc::clone(builder.root.latch());
    let chip = I440fx::new(latch, builder.memory.clone(), Arc::new(shadow), builder.rom.clone());
    Ok(builder.slot(place, chip))
}

pub(super) fn place_piix3(spec: &MachineSpec) -> Vec<Placement> {
    on_i440fx(spec, || Placement::new("isa", "piix3").at(bdf::ISA_BRIDGE))
}

pub(super) fn build_piix3(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    Ok(builder.slot(place, Piix3::new(builder.router.clone())))
}

pub(super) fn place_piix4_pm(spec: &MachineSpec) -> Vec<Placement> {
    on_i440fx(spec, || {
        Placement::new("pm", "piix4_pm")
            .at(bdf::PM)
            .window(Window::pio("smi_command", acpi_pm::SMI_COMMAND_PORT, 2))
            .irq(9)
    })
}

pub(super) fn build_piix4_pm(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let sci = irq(builder, place, 0);
    let request = builder.alarm_request.clone();
    builder.poll_requests.insert(place.name.clone(), request);
    let pm = AcpiPm::new(builder.clock.clone(), sci, builder.power.clone(), builder.alarm.clone());
    let slot = builder.slot(place, Piix4Pm::new(pm));
    let raised = Arc::clone(&slot);
    // The machine may stand still: nobody polls.
    builder.sockets.gpe = Some(Box::new(move |number| raised.lock().pm().raise_gpe(number)));
    let pressed = Arc::clone(&slot);
    builder.buttons = Some(Box::new(move |button| {
        pressed.with(|chip| match button {
            Button::Power => chip.pm().press_power_button(),
            Button::Sleep => chip.pm().press_sleep_button(),
        });
    }));
    Ok(slot)
}

pub(super) fn place_acpi_slots(spec: &MachineSpec) -> Vec<Placement> {
    on_i440fx(spec, || {
        let window = Window::pio("slots", acpi_slots::PORT.into(), acpi_slots::LEN.into());
        Placement::new("slots", "acpi_slots").window(window)
    })
}

pub(super) fn build_acpi_slots(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let given_up = Arc::clone(&builder.given_up);
    let notice = Box::new(move |slot| given_up(Bay::Card(PciPlace::Root(slot))));
    let slot = builder.slot(place, AcpiSlots::new(builder.plan.free_slots(), notice));
    builder.sockets.slots = Some(Arc::clone(&slot));
    Ok(slot)
}

pub(super) fn place_debugcon(spec: &MachineSpec) -> Vec<Placement> {
    on_a_pc(spec, || {
        Placement::new("debugcon", "debugcon").window(Window::pio("debugcon", debugcon::PORT, 1))
    })
}

pub(super) fn build_debugcon(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let output = builder.debugcon.take();
    Ok(builder.slot(place, Debugcon::new(output)))
}

pub(super) fn place_dma(spec: &MachineSpec) -> Vec<Placement> {
    on_a_pc(spec, || {
        Placement::new("dma", "dma8237")
            .window(Window::pio("bytes", dma8237::BYTE_PORT, 16))
            .window(Window::pio("words", dma8237::WORD_PORT, 32))
            .window(Window::pio("pages", dma8237::PAGE_PORT, 16))
    })
}

pub(super) fn build_dma(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let chip = Dma8237::new(builder.memory.clone());
    builder.floppy_dma = Some(chip.channel(FLOPPY_CHANNEL));
    Ok(builder.slot(place, chip))
}

pub(super) fn place_fdc(spec: &MachineSpec) -> Vec<Placement> {
    on_a_pc(spec, || {
        Placement::new("fdc", "fdc")
            .window(Window::pio("fdc", fdc::PORT, 6))
            .window(Window::pio("dir", fdc::DIR_PORT, 1))
            .irq(6)
    })
}

pub(super) fn build_fdc(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let line = irq(builder, place, 0);
    // The plan has the DMA controllers before the devices that they serve.
    let missing = || BuildError::Windows(place.name.clone());
    let dma = builder.floppy_dma.take().ok_or_else(missing)?;
    let drives = &builder.spec.devices.floppies;
    let mut chip = Fdc::new(builder.clock.clone(), line, dma, drives.len());
    let mut media = Vec::new();
    for (number, drive) in drives.iter().enumerate() {
        let mut medium = None;
        if let Some(path) = &drive.image {
            let disk = Arc::new(ImageMedium::floppy(path, drive.read_only)?);
            builder.media.push(Arc::clone(&disk));
            medium = Some((disk.describe(path), Arc::clone(&disk)));
            chip.insert(number, Some(Box::new(FloppyDisk(disk))));
        }
        media.push(medium);
    }
    let slot = builder.slot(place, chip);
    for (number, medium) in media.into_iter().enumerate() {
        let drive = FloppyDrive::new(Arc::clone(&slot), number, medium);
        builder.drives.push(Arc::new(drive));
    }
    Ok(slot)
}

pub(super) fn place_parallel(spec: &MachineSpec) -> Vec<Placement> {
    on_a_pc(spec, || {
        Placement::new("lpt1", "parallel")
            .window(Window::pio("parallel", parallel::PORT, 3))
            .irq(7)
    })
}

pub(super) fn build_parallel(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let line = irq(builder, place, 0);
    let printer = builder.printer.take();
    Ok(builder.slot(place, Parallel::new(line, printer)))
}

/// Where the flash with UEFI's variables ends, and how long it is: below the image, as the two are made to lie together.
fn variables_window() -> Option<(u64, u64)> {
    let (code, variables) = firmware::rom::find_uefi().ok()?;
    let len = |path: &std::path::Path| std::fs::metadata(path).map(|data| data.len()).ok();
    let (code, variables) = (len(&code)?, len(&variables)?);
    let base = layout::HOLE_END.checked_sub(code)?.checked_sub(variables)?;
    Some((base, variables))
}

pub(super) fn place_pflash(spec: &MachineSpec) -> Vec<Placement> {
    let wanted = spec.machine.has_pci() && spec.boot.uefi.is_some() && spec.boot.kernel.is_none();
    // Without the image there is no machine; that is found when it is built.
    let window = wanted.then(variables_window).flatten();
    let place = |(base, len)| Placement::new("variables", "pflash").window(Window::mmio("flash", base, len));
    window.map(place).into_iter().collect()
}

pub(super) fn build_pflash(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let missing = || BuildError::Windows(place.name.clone());
    let variables = builder.variables.take().ok_or_else(missing)?;
    let chip = variables.into_flash().ok_or_else(missing)?;
    Ok(builder.slot(place, chip))
}
