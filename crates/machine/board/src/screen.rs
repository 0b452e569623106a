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

/// A machine's keyboard and mouse.
#[derive(Clone)]
pub struct UserInput(Arc<Slot<I8042>>);

impl UserInput {
    pub(crate) fn new(controller: Arc<Slot<I8042>>) -> Self {
        Self(controller)
    }

    /// Bytes of keystrokes that the guest has not taken: whoever types waits until there are few.
    #[must_use]
    pub fn keystrokes_waiting(&self) -> usize {
        self.0.lock().keystrokes_waiting()
    }
}

impl InputSink for UserInput {
    fn input(&self, event: Event) {
        self.0.with(|chip| chip.input(event));
    }

    fn leds(&self) -> Option<u8> {
        Some(self.0.lock().leds())
    }
}
