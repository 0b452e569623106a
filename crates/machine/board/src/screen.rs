//! What a user sees of a machine and does with it: its screen, its keyboard and mouse.

use std::sync::Arc;

use chipset::i8042::I8042;
use device_model::Slot;
use display::Framebuffer;
use display::ScanOut;
use display::ScreenSource;
use display::Surface;
use display::vga::Vga;
use input::Event;
use input::InputSink;
use virtio::Mmio;
use virtio::Pci;
use virtio::input::Input;
use virtio::input::InputKind;

/// A machine's screen. Clones show the same; the machine runs on while a picture is made.
#[derive(Clone)]
pub struct Screen(Arc<Slot<Vga>>);

impl Screen {
    pub(crate) fn new(vga: Arc<Slot<Vga>>) -> Self {
        Self(vga)
    }

    pub(crate) fn adapter(&self) -> &Slot<Vga> {
        &self.0
    }

    /// What is shown now.
    #[must_use]
    pub fn scan_out(&self) -> ScanOut {
        self.0.lock().scan_out()
    }

    /// A picture of it.
    #[must_use]
    pub fn picture(&self) -> Surface {
        let mut surface = Surface::default();
        self.scan_out().render(&mut surface);
        surface
    }

    /// The text on it, a line for each row of characters; none in graphics modes.
    #[must_use]
    pub fn text(&self) -> Option<String> {
        self.scan_out().text()
    }
}

impl ScreenSource for Screen {
    fn refresh(&mut self, framebuffer: &mut Framebuffer) {
        let scan = self.scan_out();
        framebuffer.update(&scan);
    }
}

/// A virtio input device, however the guest reaches it.
pub(crate) trait VirtioInput: Send + Sync {
    /// Calls `f` with the device, under its lock.
    fn with_input(&self, f: &mut dyn FnMut(&mut Input));
}

impl VirtioInput for Slot<Mmio<Input>> {
    fn with_input(&self, f: &mut dyn FnMut(&mut Input)) {
        self.with(|chip| f(chip.device_mut()));
    }
}

impl VirtioInput for Slot<Pci<Input>> {
    fn with_input(&self, f: &mut dyn FnMut(&mut Input)) {
        self.with(|chip| f(chip.device_mut()));
    }
}

/// A machine's keyboards and pointers. What the user does goes to a virtio device that the guest has a driver for, else to the
/// keyboard controller.
#[derive(Clone, Default)]
pub struct UserInput {
    controller: Option<Arc<Slot<I8042>>>,
    devices: Vec<Arc<dyn VirtioInput>>,
}

impl UserInput {
    pub(crate) fn set_controller(&mut self, controller: Arc<Slot<I8042>>) {
        self.controller = Some(controller);
    }

    pub(crate) fn add(&mut self, device: Arc<dyn VirtioInput>) {
        self.devices.push(device);
    }

    /// None without any device.
    pub(crate) fn if_any(self) -> Option<Self> {
        (self.controller.is_some() || !self.devices.is_empty()).then_some(self)
    }

    /// Calls `f` with the first device of these kinds that the guest has a driver for; none when there is none.
    fn with<T>(&self, kinds: &[InputKind], mut f: impl FnMut(&mut Input) -> T) -> Option<T> {
        let mut result = None;
        for kind in kinds {
            for device in &self.devices {
                device.with_input(&mut |input| {
                    if result.is_none() && input.kind() == *kind && input.is_up() {
                        result = Some(f(input));
                    }
                });
            }
        }
        result
    }

    /// Bytes or events of keystrokes that the guest has not taken: whoever types waits until there are few.
    #[must_use]
    pub fn keystrokes_waiting(&self) -> usize {
        let controller = || self.controller.as_ref().map(|chip| chip.lock().keystrokes_waiting());
        let waiting = self.with(&[InputKind::Keyboard], |input| input.waiting());
        waiting.or_else(controller).unwrap_or(0)
    }
}

impl InputSink for UserInput {
    fn input(&self, event: Event) {
        const POINTERS: [InputKind; 2] = [InputKind::Tablet, InputKind::Mouse];
        let kinds: &[InputKind] = match event {
            Event::Key { .. } => &[InputKind::Keyboard],
            Event::Move { .. } => &[InputKind::Mouse],
            Event::Place { .. } => &[InputKind::Tablet],
            Event::Button { .. } | Event::Wheel { .. } => &POINTERS,
        };
        if self.with(kinds, |input| input.input(event)).is_none()
            && let Some(controller) = &self.controller
        {
            controller.with(|chip| chip.input(event));
        }
    }

    fn takes_places(&self) -> bool {
        self.with(&[InputKind::Tablet], |_| ()).is_some()
    }

    fn leds(&self) -> Option<u8> {
        let controller = || self.controller.as_ref().map(|chip| chip.lock().leds());
        self.with(&[InputKind::Keyboard], |input| input.leds())
            .or_else(controller)
    }
}
