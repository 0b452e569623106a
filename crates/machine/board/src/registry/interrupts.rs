//! Interrupt controllers: where they go and how they are built.

use std::sync::Arc;

use chipset::ioapic::IoApic;
use chipset::lapic::Lapic;
use chipset::lapic::LapicConfig;
use chipset::pic::DualPic;
use cpu_model::Signals;
use device_model::SharedDevice;
use firmware::layout;
use spec::MachineSpec;

use super::Builder;
use crate::BuildError;
use crate::Placement;
use crate::Window;

pub(super) fn place_pic(_: &MachineSpec) -> Vec<Placement> {
    let place = Placement::new("pic", "pic")
        .window(Window::pio("master", 0x20, 2))
        .window(Window::pio("slave", 0xa0, 2))
        .window(Window::pio("elcr", 0x4d0, 2));
    vec![place]
}

pub(super) fn build_pic(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let slot = builder.slot(place, DualPic::new(builder.fabric.pic_output()));
    builder.fabric.set_pic(Arc::clone(&slot));
    Ok(slot)
}

pub(super) fn place_ioapic(_: &MachineSpec) -> Vec<Placement> {
    let window = Window::mmio("ioapic", layout::IOAPIC, 0x1000);
    vec![Placement::new("ioapic", "ioapic").window(window)]
}

pub(super) fn build_ioapic(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let slot = builder.slot(place, IoApic::new(0, builder.fabric.messages()));
    builder.fabric.set_ioapic(Arc::clone(&slot));
    Ok(slot)
}

pub(super) fn place_lapics(spec: &MachineSpec) -> Vec<Placement> {
    let place = |cpu: u32| {
        let mut window = Window::mmio("lapic", layout::LAPIC, 0x1000);
        window.per_cpu = true;
        Placement::new(&format!("lapic{cpu}"), "lapic")
            .index(cpu)
            .window(window)
    };
    (0..spec.cpus).map(place).collect()
}

pub(super) fn build_lapic(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let cpu = place.index;
    let config = LapicConfig {
        id: cpu,
        bsp: cpu == 0,
        bus_hz: builder.policy.bus_hz(),
        tsc_hz: builder.policy.tsc_hz(),
    };
    // The plan has as many local APICs as the machine has processors.
    let signals = match builder.signals.get(cpu as usize) {
        Some(signals) => Arc::clone(signals),
        None => Arc::new(Signals::new()),
    };
    let memory = Arc::clone(&builder.memory);
    let slot = builder.slot(place, Lapic::new(config, builder.clock.clone(), signals, memory));
    builder.fabric.add_lapic(Arc::clone(&slot));
    Ok(slot)
}
