//! The display adapter: where it goes and how it is built.

use std::sync::Arc;

use device_model::SharedDevice;
use display::vga::Vga;
use display::vga::VgaConfig;
use firmware::rom;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use spec::MachineSpec;

use super::Builder;
use super::bdf;
use crate::BuildError;
use crate::Placement;
use crate::boot::read_file;

/// Its ports and windows follow its configuration space.
pub(super) fn place_vga(spec: &MachineSpec) -> Vec<Placement> {
    let place = |_| Placement::new("vga", "vga").at(bdf::of(spec, "vga"));
    let wanted = spec.devices.vga.iter().filter(|_| spec.machine.has_pci());
    wanted.map(place).collect()
}

pub(super) fn build_vga(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let config = builder.spec.devices.vga.clone().unwrap_or_default();
    let vram = MemoryRegion::new("vram", Kind::Ram, config.memory.bytes())?;
    let preferred = VgaConfig {
        preferred: (config.width, config.height),
    };
    let chip = Vga::new(builder.clock.clone(), Arc::new(vram), vga_bios()?, &preferred)?;
    let slot = builder.slot(place, chip);
    builder.vga = Some(Arc::clone(&slot));
    Ok(slot)
}

/// The adapter's firmware. Without it the screen stays dark until an operating system sets a mode by itself.
fn vga_bios() -> Result<Option<Arc<MemoryRegion>>, BuildError> {
    let Some(path) = rom::find_vga() else {
        tracing::warn!("there is no VGA BIOS on this host; `apt-get install seabios` brings one");
        return Ok(None);
    };
    let image = read_file(&path)?;
    Ok(Some(Arc::new(rom::expansion(&path, &image)?)))
}
