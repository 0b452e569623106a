//! The display adapter as a kernel finds it that is booted without firmware: with its memory mapped, and text or pixels shown.

use device_model::Slot;
use device_model::Width;
use device_model::pci::command;
use device_model::pci::reg;
use display::vga::LinearMode;
use display::vga::Vga;
use firmware::video::Linear;
use firmware::video::Mode;
use firmware::video::Screen;
use pci::Bdf;
use pci::Root;

/// Base address registers of video memory and of the adapter's registers.
const VRAM_BAR: u16 = reg::BAR0;
const REGISTERS_BAR: u16 = reg::BAR0 + 8;

/// Maps the adapter, the function `at`, at the start of the window for PCI memory, `base`, and sets `mode`, or text if it is
/// none.
pub(super) fn light(adapter: &Slot<Vga>, root: &Root, (at, base): (Bdf, u32), mode: Option<Mode>) -> Screen {
    let len = adapter.lock().vram().len();
    // The adapter has 256 MiB of memory at most, the window more.
    let behind = base.saturating_add(u32::try_from(len).unwrap_or(u32::MAX));
    for (register, address) in [(VRAM_BAR, base), (REGISTERS_BAR, behind)] {
        root.write(at, register, Width::Dword, address);
    }
    let on = u32::from(command::IO | command::MEMORY);
    root.write(at, reg::COMMAND, Width::Byte, on);
    adapter.with(|vga| {
        if let Some(mode) = mode {
            let Mode { width, height, bits } = mode;
            if vga.set_linear_mode(LinearMode { width, height, bits }) {
                return Screen::Linear(Linear { base, len, mode });
            }
            tracing::warn!(
                ?mode,
                "the display adapter has too little memory for this mode: text is shown"
            );
        }
        if vga.set_text_mode() {
            Screen::Text
        } else {
            Screen::None
        }
    })
}
