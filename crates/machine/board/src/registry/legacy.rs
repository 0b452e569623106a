//! Keyboard controller and serial ports: where they go and how they are built.

use std::sync::Arc;

use chipset::i8042::I8042;
use chipset::uart16550::Uart16550;
use device_model::NullSerial;
use device_model::SerialBackend;
use device_model::SharedDevice;
use spec::MachineSpec;

use super::Builder;
use super::irq;
use crate::BuildError;
use crate::Placement;
use crate::PollRequest;
use crate::Window;

pub(super) fn place_i8042(spec: &MachineSpec) -> Vec<Placement> {
    let place = |_| {
        Placement::new("i8042", "i8042")
            .window(Window::pio("data", 0x60, 1))
            .window(Window::pio("command", 0x64, 1))
            .irq(1)
            .irq(12)
    };
    spec.devices.i8042.iter().map(place).collect()
}

pub(super) fn build_i8042(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let (keyboard, mouse) = (irq(builder, place, 0), irq(builder, place, 1));
    let chip = I8042::new(builder.clock.clone(), keyboard, mouse, builder.power.clone());
    let slot = builder.slot(place, chip.with_a20(builder.a20.clone()));
    builder.input.set_controller(Arc::clone(&slot));
    Ok(slot)
}

pub(super) fn place_uarts(spec: &MachineSpec) -> Vec<Placement> {
    let place = |(index, config): (u32, &spec::SerialConfig)| {
        Placement::new(&config.name, "uart16550")
            .index(index)
            .window(Window::pio("uart", config.port.into(), 8))
            .irq(config.irq)
    };
    (0..).zip(&spec.devices.serial).map(place).collect()
}

pub(super) fn build_uart(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let backend: Box<dyn SerialBackend> = match builder.serial.remove(&place.name) {
        Some(port) => {
            let request = PollRequest::new(builder.events.clone());
            builder.serial_ends.push(port.connect(request.clone()));
            builder.poll_requests.insert(place.name.clone(), request);
            Box::new(port)
        }
        None => Box::new(NullSerial),
    };
    let chip = Uart16550::new(builder.clock.clone(), irq(builder, place, 0), backend);
    Ok(builder.slot(place, chip))
}
