//! Timers and the real-time clock: where they go and how they are built.

use std::sync::Arc;
use std::time::Duration;
use std::time::SystemTime;

use chipset::cmos_rtc::CmosRtc;
use chipset::cmos_rtc::RtcConfig;
use chipset::hpet::Hpet;
use chipset::pit::Pit;
use device_model::SharedDevice;
use firmware::layout;
use spec::BootDevice;
use spec::MachineSpec;

use super::Builder;
use super::DEFAULT_ORDER;
use crate::BuildError;
use crate::Placement;
use crate::Window;
use crate::fabric::GSIS;

pub(super) fn place_pit(_: &MachineSpec) -> Vec<Placement> {
    let place = Placement::new("pit", "pit")
        .window(Window::pio("pit", 0x40, 4))
        .window(Window::pio("port61", 0x61, 1))
        .irq(0);
    vec![place]
}

pub(super) fn build_pit(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let chip = Pit::new(builder.clock.clone(), builder.legacy_gate.irq0());
    Ok(builder.slot(place, chip))
}

pub(super) fn place_rtc(_: &MachineSpec) -> Vec<Placement> {
    let place = Placement::new("rtc", "cmos_rtc")
        .window(Window::pio("rtc", 0x70, 2))
        .window(Window::pio("upper_bank", 0x72, 2))
        .irq(8);
    vec![place]
}

pub(super) fn build_rtc(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let above_4g = builder.plan.ram.iter().filter(|(base, _)| *base >= layout::HOLE_END);
    let above_4g: u64 = above_4g.map(|(_, len)| len).sum();
    let (boot_unix_time, boot_nanoseconds) = match builder.spec.devices.rtc.base {
        Some(base) => (base, 0),
        None => host_time(),
    };
    let config = RtcConfig {
        boot_unix_time,
        boot_nanoseconds,
        ram_below_4g: builder.plan.memory - above_4g,
        ram_above_4g: above_4g,
        cpus: builder.spec.cpus,
    };
    let line = builder.legacy_gate.irq8();
    let mut chip = CmosRtc::new(builder.clock.clone(), line, builder.alarm.line(), &config);
    chip.set_up(&set_up(builder.spec));
    let slot = builder.slot(place, chip);
    builder.rtc = Some(Arc::clone(&slot));
    Ok(slot)
}

/// What firmware's set-up would have noted of a PC in the CMOS memory: floppy drives, and what to boot from.
fn set_up(spec: &MachineSpec) -> Vec<(u8, u8)> {
    const FLOPPY_TYPES: u8 = 0x10;
    const EQUIPMENT: u8 = 0x14;
    const BOOT_FIRST: u8 = 0x3d;
    const BOOT_THIRD: u8 = 0x38;
    /// A mouse and a coprocessor.
    const USUAL: u8 = 0x06;
    /// 1.44 MB.
    const TYPE: u8 = 4;
    if !spec.machine.has_pci() {
        return Vec::new();
    }
    let (types, drives) = match spec.devices.floppies.len() {
        0 => (0, 0),
        1 => (TYPE << 4, 1),
        _ => (TYPE << 4 | TYPE, 1 | 1 << 6),
    };
    let code = |index: usize| match spec.boot.order.get(index).or(DEFAULT_ORDER.get(index)) {
        Some(BootDevice::Floppy) => 1,
        Some(BootDevice::Disk) => 2,
        Some(BootDevice::Cdrom) => 3,
        Some(BootDevice::Network) => 4,
        None => 0,
    };
    let given = |index: usize| match spec.boot.order.len() {
        // A shorter order is not filled up from the usual one.
        len if len > 0 && index >= len => 0,
        _ => code(index),
    };
    vec![
        (FLOPPY_TYPES, types),
        (EQUIPMENT, USUAL | drives),
        (BOOT_FIRST, given(0) | given(1) << 4),
        (BOOT_THIRD, given(2) << 4),
    ]
}

/// Seconds since 1970 on the host, and nanoseconds.
fn host_time() -> (i64, u32) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let time = since.unwrap_or(Duration::ZERO);
    (time.as_secs().try_into().unwrap_or(0), time.subsec_nanos())
}

pub(super) fn place_hpet(spec: &MachineSpec) -> Vec<Placement> {
    let place = |_| Placement::new("hpet", "hpet").window(Window::mmio("hpet", layout::HPET, 0x400));
    spec.devices.hpet.iter().map(place).collect()
}

pub(super) fn build_hpet(builder: &mut Builder<'_>, place: &Placement) -> Result<SharedDevice, BuildError> {
    let lines = (0..).take(GSIS).map(|gsi| builder.fabric.gsi(gsi)).collect();
    let chip = Hpet::new(
        builder.clock.clone(),
        lines,
        builder.fabric.messages(),
        builder.legacy_gate.clone(),
    );
    Ok(builder.slot(place, chip))
}
