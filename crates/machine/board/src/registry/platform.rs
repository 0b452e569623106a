//! Power management, reset, firmware configuration and test devices: where they go and how they are built.

use std::sync::Arc;

use chipset::acpi_pm;
use chipset::acpi_pm::AcpiPm;
use chipset::debug_exit::DebugExit;
use chipset::fw_cfg;
use chipset::fw_cfg::FwCfg;
use chipset::fw_cfg::FwCfgError;
use chipset::pc_testdev;
use chipset::pc_testdev::PcTestdev;
use chipset::port92;
use chipset::port92::Port92;
use chipset::reset_control;
use chipset::reset_control::ResetControl;
use device_model::SharedDevice;
use spec::MachineSpec;

use super::Builder;
use super::Button;
use super::irq;
use crate::BuildError;
use crate::Placement;
use crate::Window;
use crate::boot::FirmwareTables;
use crate::fabric::GSIS;

pub(super) fn place_acpi_pm(spec: &MachineSpec) -> Vec<Placement> {
    // On a PC it is part of a PCI function.
    if spec.machine.has_pci() {
        return Vec::new();
    }
    let place = Placement::new("acpi_pm", "acpi_pm")
        .window(Window::pio("pm1_event", acpi_pm::PM1_EVENT_PORT, 4))
        .window(Window::pio("pm1_control", acpi_pm::PM1_CONTROL_PORT, 2))
        .window(Window::pio("pm_timer", acpi_pm::PM_TIMER_PORT, 4))
        .window(Window::pio("gpe0", acpi_pm::GPE0_PORT, 4))
        .window(Window::pio("smi_command", acpi_pm::SMI_COMMAND_PORT, 2))
        .irq(9);
    vec![place]
}

pub(super) fn build_acpi_pm(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let sci = irq(builder, place, 0);
    let request = builder.alarm_request.clone();
    builder.poll_requests.insert(place.name.clone(), request);
    let chip = AcpiPm::new(builder.clock.clone(), sci, builder.power.clone(), builder.alarm.clone());
    let slot = builder.slot(place, chip);
    let pressed = Arc::clone(&slot);
    builder.buttons = Some(Box::new(move |button| {
        pressed.with(|chip| match button {
            Button::Power => chip.press_power_button(),
            Button::Sleep => chip.press_sleep_button(),
        });
    }));
    Ok(slot)
}

pub(super) fn place_reset(_: &MachineSpec) -> Vec<Placement> {
    let window = Window::pio("reset_control", reset_control::PORT, 1);
    vec![Placement::new("reset", "reset_control").window(window)]
}

pub(super) fn build_reset(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    Ok(builder.slot(place, ResetControl::new(builder.power.clone())))
}

pub(super) fn place_port92(_: &MachineSpec) -> Vec<Placement> {
    vec![Placement::new("port92", "port92").window(Window::pio("port92", port92::PORT, 1))]
}

pub(super) fn build_port92(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    Ok(builder.slot(place, Port92::new(builder.power.clone()).with_a20(builder.a20.clone())))
}

pub(super) fn place_fw_cfg(_: &MachineSpec) -> Vec<Placement> {
    let place = Placement::new("fw_cfg", "fw_cfg")
        .window(Window::pio("ports", fw_cfg::SELECTOR_PORT, 2))
        .window(Window::pio("dma", fw_cfg::DMA_PORT, 8));
    vec![place]
}

pub(super) fn build_fw_cfg(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let mut chip = FwCfg::new(Some(builder.memory.clone()));
    let cpus = u16::try_from(builder.spec.cpus).unwrap_or(u16::MAX).to_le_bytes();
    chip.add_item(fw_cfg::key::RAM_SIZE, builder.plan.memory.to_le_bytes());
    chip.add_item(fw_cfg::key::NB_CPUS, cpus);
    chip.add_item(fw_cfg::key::MAX_CPUS, cpus);
    chip.add_item(fw_cfg::key::NOGRAPHIC, 1u16.to_le_bytes());
    if let Some(tables) = builder.tables.take() {
        add_firmware_files(&mut chip, builder.spec, &tables)?;
    }
    Ok(builder.slot(place, chip))
}

/// What firmware reads: memory map, tables, sleep states, boot menu.
fn add_firmware_files(chip: &mut FwCfg, spec: &MachineSpec, tables: &FirmwareTables) -> Result<(), FwCfgError> {
    // By state: whether it is there, and its value of SLP_TYP.
    const THERE: u8 = 0x80;
    let sleep_states = [THERE, 0, 0, THERE | 1, 0, THERE];
    let files: [(&str, &[u8]); 7] = [
        ("etc/e820", &tables.e820),
        ("etc/acpi/rsdp", &tables.acpi.rsdp),
        ("etc/acpi/tables", &tables.acpi.tables),
        ("etc/table-loader", &tables.acpi.loader),
        ("etc/smbios/smbios-tables", &tables.smbios.tables),
        ("etc/smbios/smbios-anchor", &tables.smbios.anchor),
        ("etc/system-states", &sleep_states),
    ];
    for (name, bytes) in files {
        chip.add_file(name, bytes)?;
    }
    let order = super::storage::boot_paths(spec);
    if !order.is_empty() {
        chip.add_file("bootorder", order)?;
    }
    if let Some(wait) = spec.boot.menu {
        chip.add_item(fw_cfg::key::BOOT_MENU, 1u16.to_le_bytes());
        chip.add_file("etc/boot-menu-wait", wait.to_le_bytes())?;
    }
    Ok(())
}

pub(super) fn place_debug_exit(spec: &MachineSpec) -> Vec<Placement> {
    let place = |config: &spec::DebugExitConfig| {
        Placement::new("debug_exit", "debug_exit").window(Window::pio("debug_exit", config.port.into(), 4))
    };
    spec.devices.debug_exit.iter().map(place).collect()
}

pub(super) fn build_debug_exit(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    Ok(builder.slot(place, DebugExit::new(builder.power.clone())))
}

pub(super) fn place_testdev(spec: &MachineSpec) -> Vec<Placement> {
    let place = |_| {
        Placement::new("testdev", "pc_testdev")
            .window(Window::pio("ioport", pc_testdev::IOPORT_PORT, 4))
            .window(Window::pio("flush", pc_testdev::FLUSH_PORT, 4))
            .window(Window::pio("irq", pc_testdev::IRQ_PORT, pc_testdev::LINES as u64))
            .window(Window::mmio("iomem", pc_testdev::IOMEM_ADDRESS, 0x1_0000))
    };
    spec.devices.testdev.iter().map(place).collect()
}

pub(super) fn build_testdev(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let lines = (0..).take(GSIS).map(|line| builder.fabric.isa(line)).collect();
    Ok(builder.slot(place, PcTestdev::new(lines)))
}
