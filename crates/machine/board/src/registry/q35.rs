//! The chipset of a PC with PCI Express: where its functions go and how they are built.

use std::sync::Arc;

use chipset::acpi_pm;
use chipset::acpi_pm::AcpiPm;
use device_model::SharedDevice;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use pci::ich9_lpc::Ich9Lpc;
use pci::ich9_smbus::Ich9Smbus;
use pci::pci_bridge::PciBridge;
use pci::q35_mch::Q35Mch;
use pci::root_port::RootPort;
use pci::shadow;
use spec::Bay;
use spec::MachineKind;
use spec::MachineSpec;
use spec::PORTS;
use spec::PciPlace;

use super::Builder;
use super::Button;
use super::bdf;
use super::irq;
use super::pin;
use crate::BuildError;
use crate::Placement;
use crate::Window;

/// Interrupt pin of the SMBus controller.
const SMBUS_PIN: u8 = 2;

/// `place` on a q35, nothing elsewhere.
fn on_a_q35(spec: &MachineSpec, place: impl FnOnce() -> Placement) -> Vec<Placement> {
    let is_ours = spec.machine == MachineKind::Q35;
    is_ours.then(place).into_iter().collect()
}

pub(super) fn place_mch(spec: &MachineSpec) -> Vec<Placement> {
    on_a_q35(spec, || {
        Placement::new("host", "q35_mch")
            .at(bdf::HOST_BRIDGE)
            .window(Window::mmio("segments", 0xc_0000, 0x4_0000))
    })
}

pub(super) fn build_mch(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let shadow = MemoryRegion::new("shadow", Kind::Ram, shadow::SHADOW_LEN)?;
    let ways = (Arc::clone(builder.root.latch()), Arc::clone(builder.root.ecam()));
    let chip = Q35Mch::new(ways, builder.memory.clone(), Arc::new(shadow), builder.rom.clone());
    Ok(builder.slot(place, chip))
}

pub(super) fn place_lpc(spec: &MachineSpec) -> Vec<Placement> {
    on_a_q35(spec, || {
        Placement::new("lpc", "ich9_lpc")
            .at(bdf::LPC)
            .window(Window::pio("smi_command", acpi_pm::SMI_COMMAND_PORT, 2))
            .irq(9)
    })
}

pub(super) fn build_lpc(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let sci = irq(builder, place, 0);
    let request = builder.alarm_request.clone();
    builder.poll_requests.insert(place.name.clone(), request);
    let (clock, power) = (builder.clock.clone(), builder.power.clone());
    let pm = AcpiPm::new(clock.clone(), sci, power.clone(), builder.alarm.clone());
    let slot = builder.slot(place, Ich9Lpc::new(builder.router.clone(), pm, clock, power));
    let pressed = Arc::clone(&slot);
    builder.buttons = Some(Box::new(move |button| {
        pressed.with(|chip| match button {
            Button::Power => chip.pm().press_power_button(),
            Button::Sleep => chip.pm().press_sleep_button(),
        });
    }));
    Ok(slot)
}

pub(super) fn place_smbus(spec: &MachineSpec) -> Vec<Placement> {
    on_a_q35(spec, || Placement::new("smbus", "ich9_smbus").at(bdf::SMBUS))
}

pub(super) fn build_smbus(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let chip = Ich9Smbus::new(pin(builder, place, SMBUS_PIN));
    Ok(builder.slot(place, chip))
}

pub(super) fn place_ports(spec: &MachineSpec) -> Vec<Placement> {
    let place = |number: u8| {
        Placement::new(&format!("port{number}"), "root_port")
            .at(bdf::port(number))
            .index(number.into())
            .above(number)
    };
    let is_ours = spec.machine == MachineKind::Q35;
    (1..=PORTS).filter(|_| is_ours).map(place).collect()
}

pub(super) fn build_port(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let number = place.wire.unwrap_or(1).saturating_sub(1);
    let behind = |device: &&Placement| device.bdf.is_some_and(|bdf| Some(bdf.bus()) == place.wire);
    let present = builder.plan.devices.iter().any(|device| behind(&device));
    let wires = (pin(builder, place, RootPort::pin(number)), builder.fabric.messages());
    let given_up = Arc::clone(&builder.given_up);
    let bay = Bay::Card(PciPlace::Port(number + 1));
    let port = RootPort::new(number, present, wires).with_notice(Box::new(move || given_up(bay)));
    let slot = builder.slot(place, port);
    builder.sockets.ports.push((number + 1, Arc::clone(&slot)));
    Ok(slot)
}

pub(super) fn place_bridge(spec: &MachineSpec) -> Vec<Placement> {
    on_a_q35(spec, || {
        Placement::new("bridge", "pci_bridge")
            .at(bdf::PCI_BRIDGE)
            .above(bdf::CARDS)
    })
}

pub(super) fn build_bridge(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    Ok(builder.slot(place, PciBridge::new()))
}
