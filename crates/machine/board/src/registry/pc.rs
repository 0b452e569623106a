//! The PCI chipset of a PC: where its functions go and how they are built.

use std::sync::Arc;

use chipset::acpi_pm;
use chipset::acpi_pm::AcpiPm;
use chipset::debugcon;
use chipset::debugcon::Debugcon;
use device_model::SharedDevice;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use pci::i440fx;
use pci::i440fx::I440fx;
use pci::piix3::Piix3;
use pci::piix4_pm::Piix4Pm;
use spec::MachineKind;
use spec::MachineSpec;

use super::Builder;
use super::Button;
use super::bdf;
use super::irq;
use crate::BuildError;
use crate::Placement;
use crate::Window;

/// `places` on a PC, nothing elsewhere.
fn on_a_pc(spec: &MachineSpec, place: impl FnOnce() -> Placement) -> Vec<Placement> {
    let is_pc = spec.machine == MachineKind::Pc;
    is_pc.then(place).into_iter().collect()
}

pub(super) fn place_i440fx(spec: &MachineSpec) -> Vec<Placement> {
    on_a_pc(spec, || {
        Placement::new("host", "i440fx")
            .at(bdf::HOST_BRIDGE)
            .window(Window::mmio("segments", 0xc_0000, 0x4_0000))
    })
}

pub(super) fn build_i440fx(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let shadow = MemoryRegion::new("shadow", Kind::Ram, i440fx::SHADOW_LEN)?;
    let latch = Arc::clone(builder.root.latch());
    let chip = I440fx::new(latch, builder.memory.clone(), Arc::new(shadow), builder.rom.clone());
    Ok(builder.slot(place, chip))
}

pub(super) fn place_piix3(spec: &MachineSpec) -> Vec<Placement> {
    on_a_pc(spec, || Placement::new("isa", "piix3").at(bdf::ISA_BRIDGE))
}

pub(super) fn build_piix3(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    Ok(builder.slot(place, Piix3::new(builder.router.clone())))
}

pub(super) fn place_piix4_pm(spec: &MachineSpec) -> Vec<Placement> {
    on_a_pc(spec, || {
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
    let pressed = Arc::clone(&slot);
    builder.buttons = Some(Box::new(move |button| {
        pressed.with(|chip| match button {
            Button::Power => chip.pm().press_power_button(),
            Button::Sleep => chip.pm().press_sleep_button(),
        });
    }));
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
