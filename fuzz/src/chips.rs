//! The chips of the board, each alone with probes at its wires.

use std::sync::Arc;

use chipset::acpi_pm::AcpiPm;
use chipset::acpi_pm::AlarmLatch;
use chipset::cmos_rtc::CmosRtc;
use chipset::cmos_rtc::RtcConfig;
use chipset::debug_exit::DebugExit;
use chipset::fw_cfg;
use chipset::fw_cfg::FwCfg;
use chipset::hpet::Hpet;
use chipset::hpet::LegacyGate;
use chipset::i8042::I8042;
use chipset::ioapic::IoApic;
use chipset::lapic::Lapic;
use chipset::lapic::LapicConfig;
use chipset::pc_testdev::PcTestdev;
use chipset::pic::DualPic;
use chipset::pit::Pit;
use chipset::port92::Port92;
use chipset::reset_control::PowerControl;
use chipset::reset_control::ResetControl;
use chipset::uart16550::Uart16550;
use cpu_model::Signals;
use device_model::Clock;
use device_model::Device;
use device_model::SerialBackend;
use device_model::TestClock;
use display::Surface;
use display::vga::Vga;
use display::vga::VgaConfig;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use test_kit::IrqProbe;

/// Lines that the event timer and the test device get.
const LINES: u32 = 24;
/// Guest memory behind the chips that reach it: enough for requests that lie across its end.
const MEMORY: u64 = 16 * guest_memory::PAGE_SIZE;

/// One chip.
#[rustfmt::skip]
pub(crate) enum Chip {
    Pit(Pit), Rtc(CmosRtc), Hpet(Hpet), I8042(I8042), Uart(Uart16550), AcpiPm(AcpiPm), Reset(ResetControl),
    FwCfg(FwCfg), DebugExit(DebugExit), Testdev(PcTestdev), Pic(DualPic), IoApic(IoApic), Lapic(Lapic), Port92(Port92),
    Vga(Vga),
}

impl Chip {
    /// The chip number `kind`, and from 15 on all over again.
    pub(crate) fn new(kind: u8, clock: &TestClock) -> Self {
        let probe = IrqProbe::new();
        let line = |pin| probe.line(pin);
        let lines = || (0..LINES).map(line).collect::<Vec<_>>();
        let time: Arc<dyn Clock> = Arc::new(clock.clone());
        let power = Arc::new(NoPower);
        match kind % 15 {
            0 => Self::Pit(Pit::new(time, line(0))),
            1 => Self::Rtc(CmosRtc::new(time, line(8), line(9), &RTC)),
            2 => Self::Hpet(Hpet::new(
                time,
                lines(),
                probe.clone(),
                LegacyGate::new(line(0), line(8)),
            )),
            3 => Self::I8042(I8042::new(time, line(1), line(12), power)),
            4 => Self::Uart(Uart16550::new(time, line(4), Box::new(Chatter { next: 0, room: 0 }))),
            5 => Self::AcpiPm(AcpiPm::new(time, line(9), power, AlarmLatch::new(|| {}))),
            6 => Self::Reset(ResetControl::new(power)),
            7 => Self::FwCfg(fw_cfg()),
            8 => Self::DebugExit(DebugExit::new(power)),
            9 => Self::Testdev(PcTestdev::new(lines())),
            10 => Self::Pic(DualPic::new(line(0))),
            11 => Self::IoApic(IoApic::new(kind, probe.clone())),
            12 => Self::Lapic(Lapic::new(LAPIC, time, Arc::new(Signals::new()), Arc::default())),
            13 => Self::Port92(Port92::new(power)),
            _ => Self::Vga(vga(time)),
        }
    }

    pub(crate) fn device(&mut self) -> &mut dyn Device {
        match self {
            Self::Pit(chip) => chip,
            Self::Rtc(chip) => chip,
            Self::Hpet(chip) => chip,
            Self::I8042(chip) => chip,
            Self::Uart(chip) => chip,
            Self::AcpiPm(chip) => chip,
            Self::Reset(chip) => chip,
            Self::FwCfg(chip) => chip,
            Self::DebugExit(chip) => chip,
            Self::Testdev(chip) => chip,
            Self::Pic(chip) => chip,
            Self::IoApic(chip) => chip,
            Self::Lapic(chip) => chip,
            Self::Port92(chip) => chip,
            Self::Vga(chip) => chip,
        }
    }

    /// Something else than a register access: a line, a key, an acknowledgement.
    pub(crate) fn wire(&mut self, op: u8, value: u64) {
        let (low, high) = (value as u8, (value >> 8) as u8);
        match self {
            Self::I8042(chip) => i8042(chip, op, low, high),
            Self::Uart(chip) if op & 1 != 0 => chip.receive_break(),
            Self::AcpiPm(chip) => match op % 4 {
                0 => chip.press_power_button(),
                1 => chip.press_sleep_button(),
                2 => chip.alarm().line().pulse(),
                _ => chip.raise_gpe(low.into()),
            },
            Self::Pic(chip) => match op % 3 {
                0 => {
                    let _ = chip.acknowledge();
                }
                _ => chip.set_line(u32::from(low) % 20, high & 1 != 0),
            },
            Self::IoApic(chip) => match op % 3 {
                0 => chip.eoi(low),
                _ => chip.set_line(u32::from(low) % 30, high & 1 != 0),
            },
            Self::Lapic(chip) => lapic(chip, op, low, value),
            Self::Vga(chip) => look(chip),
            _ => {}
        }
    }
}

fn i8042(chip: &mut I8042, op: u8, low: u8, high: u8) {
    use chipset::i8042::KeyCode;
    use chipset::i8042::MouseEvent;
    match op % 3 {
        0 => chip.mouse_event(MouseEvent {
            dx: i32::from(low as i8) << (high & 0x18),
            dy: i32::from(high as i8),
            wheel: i32::from(low & 7) - 3,
            buttons: high,
        }),
        _ => chip.key_event(KeyCode(low.into()), high & 1 != 0),
    }
}

fn lapic(chip: &mut Lapic, op: u8, low: u8, value: u64) {
    match op % 8 {
        0 => chip.set_cr8(low),
        1 => chip.set_lint(u32::from(low) & 3, value & 0x100 != 0),
        2 => drop(chip.take_interrupt()),
        3 => drop(chip.take_effects()),
        4 => chip.on_init(),
        5 => drop(chip.read_msr(0x1b + u32::from(low) * 8)),
        6 => drop(chip.write_msr(0x800 + u32::from(low & 0x3f), value)),
        _ => drop(chip.write_msr(0x1b, 0xfee0_0000 | value & 0xd00)),
    }
}

/// The smallest adapter.
fn vga(time: Arc<dyn Clock>) -> Vga {
    let vram = MemoryRegion::new("vram", Kind::Ram, display::vga::MIN_VRAM).expect("the host has a few pages");
    Vga::new(time, Arc::new(vram), None, &VgaConfig::default()).expect("the size is one that there is")
}

/// Whatever the registers say must make a picture of the size that they say.
fn look(chip: &Vga) {
    let scan = chip.scan_out();
    let mut surface = Surface::default();
    scan.render(&mut surface);
    assert_eq!((surface.width(), surface.height()), scan.size());
    let _ = scan.text();
}

const RTC: RtcConfig = RtcConfig {
    boot_unix_time: 1_000_000_000,
    boot_nanoseconds: 0,
    ram_below_4g: 1 << 29,
    ram_above_4g: 0,
    cpus: 2,
};

const LAPIC: LapicConfig = LapicConfig {
    id: 1,
    bsp: true,
    bus_hz: 1_000_000_000,
    tsc_hz: 2_000_000_000,
};

fn fw_cfg() -> FwCfg {
    let mut memory = GuestMemory::new();
    let region = MemoryRegion::new("ram", Kind::Ram, MEMORY).expect("the host has a few pages");
    memory.add(0, Arc::new(region)).expect("the memory is empty");
    let mut chip = FwCfg::new(Some(Arc::new(memory)));
    chip.add_item(fw_cfg::key::NB_CPUS, 2u16.to_le_bytes());
    chip.add_file("etc/fixed", [1; 100]).expect("the name is free");
    chip.add_writable_file("etc/note", [2; 20]).expect("the name is free");
    chip
}

/// A machine that does not mind being switched off.
struct NoPower;

impl PowerControl for NoPower {
    fn power_off(&self) {}
    fn reset(&self) {}
    fn suspend(&self) {}
    fn wake(&self) {}
    fn debug_exit(&self, _code: u8) {}
}

/// A far end that always has something to say, and takes two bytes of three.
struct Chatter {
    next: u8,
    room: u8,
}

impl SerialBackend for Chatter {
    fn send(&mut self, _byte: u8) -> bool {
        self.room = (self.room + 1) % 3;
        self.room != 0
    }

    fn receive(&mut self) -> Option<u8> {
        self.next = self.next.wrapping_add(1);
        (self.next & 3 != 0).then_some(self.next)
    }
}
