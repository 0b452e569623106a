//! Power management, reset, firmware configuration and test devices: where they go and how they are built.

use chipset::acpi_pm;
use chipset::acpi_pm::AcpiPm;
use chipset::debug_exit::DebugExit;
use chipset::fw_cfg;
use chipset::fw_cfg::FwCfg;
use chipset::pc_testdev;
use chipset::pc_testdev::PcTestdev;
use chipset::port92;
use chipset::port92::Port92;
use chipset::reset_control;
use chipset::reset_control::ResetControl;
use device_model::SharedDevice;
use spec::MachineSpec;

use super::Builder;
use super::irq;
use crate::Placement;
use crate::Window;
use crate::fabric::GSIS;

pub(super) fn place_acpi_pm(_: &MachineSpec) -> Vec<Placement> {
    let place = Placement::new("acpi_pm", "acpi_pm")
        .window(Window::pio("pm1_event", acpi_pm::PM1_EVENT_PORT, 4))
        .window(Window::pio("pm1_control", acpi_pm::PM1_CONTROL_PORT, 2))
        .window(Window::pio("pm_timer", acpi_pm::PM_TIMER_PORT, 4))
        .window(Window::pio("gpe0", acpi_pm::GPE0_PORT, 4))
        .window(Window::pio("smi_command", acpi_pm::SMI_COMMAND_PORT, 2))
        .irq(9);
    vec![place]
}

pub(super) fn build_acpi_pm(builder: &mut Builder<'_>, place: &Placement) -> SharedDevice {
    let sci = irq(builder, place, 0);
    let request = builder.alarm_request.clone();
    builder.poll_requests.insert(place.name.clone(), request);
    let chip = AcpiPm::new(builder.clock.clone(), sci, builder.power.clone(), builder.alarm.clone());
    builder.slot(place, chip)
}

pub(super) fn place_reset(_: &MachineSpec) -> Vec<Placement> {
    let window = Window::pio("reset_control", reset_control::PORT, 1);
    vec![Placement::new("reset", "reset_control").window(window)]
}

pub(super) fn build_reset(builder: &mut Builder<'_>, place: &Placement) -> SharedDevice {
    builder.slot(place, ResetControl::new(builder.power.clone()))
}

pub(super) fn place_port92(_: &MachineSpec) -> Vec<Placement> {
    vec![Placement::new("port92", "port92").window(Window::pio("port92", port92::PORT, 1))]
}

pub(super) fn build_port92(builder: &mut Builder<'_>, place: &Placement) -> SharedDevice {
    builder.slot(place, Port92::new(builder.power.clone()))
}

pub(super) fn place_fw_cfg(_: &MachineSpec) -> Vec<Placement> {
    let place = Placement::new("fw_cfg", "fw_cfg")
        .window(Window::pio("ports", fw_cfg::SELECTOR_PORT, 2))
        .window(Window::pio("dma", fw_cfg::DMA_PORT, 8));
    vec![place]
}

pub(super) fn build_fw_cfg(builder: &mut Builder<'_>, place: &Placement) -> SharedDevice {
    let mut chip = FwCfg::new(Some(builder.memory.clone()));
    let cpus = u16::try_from(builder.spec.cpus).unwrap_or(u16::MAX).to_le_bytes();
    chip.add_item(fw_cfg::key::RAM_SIZE, builder.memory.ram_bytes().to_le_bytes());
    chip.add_item(fw_cfg::key::NB_CPUS, cpus);
    chip.add_item(fw_cfg::key::MAX_CPUS, cpus);
    chip.add_item(fw_cfg::key::NOGRAPHIC, 1u16.to_le_bytes());
    builder.slot(place, chip)
}

pub(super) fn place_debug_exit(spec: &MachineSpec) -> Vec<Placement> {
    let place = |config: &spec::DebugExitConfig| {
        Placement::new("debug_exit", "debug_exit").window(Window::pio("debug_exit", config.port.into(), 4))
    };
    spec.devices.debug_exit.iter().map(place).collect()
}

pub(super) fn build_debug_exit(builder: &mut Builder<'_>, place: &Placement) -> SharedDevice {
    builder.slot(place, DebugExit::new(builder.power.clone()))
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

pub(super) fn build_testdev(builder: &mut Builder<'_>, place: &Placement) -> SharedDevice {
    let lines = (0..).take(GSIS).map(|line| builder.fabric.isa(line)).collect();
    builder.slot(place, PcTestdev::new(lines))
}
