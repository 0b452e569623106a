//! A real-mode machine of memory, an interpreter, the adapter and as much PCI as its firmware asks for.

use std::path::Path;
use std::sync::Arc;

use cpu_model::CpuBoard;
use cpu_model::CpuPolicy;
use cpu_model::DescriptorTable;
use cpu_model::Engine;
use cpu_model::Model;
use cpu_model::MsrFault;
use cpu_model::SegmentState;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::Bus;
use device_model::Clock;
use device_model::Mapping;
use device_model::Registers;
use device_model::SharedDevice;
use device_model::Slot;
use device_model::TestClock;
use device_model::VmTime;
use device_model::Wake;
use device_model::Width;
use display::ScanOut;
use display::vga;
use display::vga::Vga;
use display::vga::VgaConfig;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use x86_interp::InterpEngine;

/// Where Debian's package `seabios` puts the firmware of this adapter.
pub(crate) const FIRMWARE: &str = "/usr/share/seabios/vgabios-stdvga.bin";

const ROM: u64 = 0xC_0000;
const CODE: u64 = 0x7C00;
/// BAR 0: video memory.
pub(crate) const LINEAR: u64 = 0xE000_0000;
/// BAR 2: registers.
const REGISTERS: u64 = 0xFEBF_0000;
/// The adapter is 00:02.0.
const BDF: u8 = 2 << 3;
const BUDGET: u64 = 20_000_000;

struct NoWake;
impl Wake for NoWake {
    fn wake(&self) {}
}

struct Board {
    pio: Bus,
    mmio: Bus,
    clock: TestClock,
    config: std::sync::atomic::AtomicU32,
}

impl Board {
    /// Configuration space of the adapter; nothing else is on the bus.
    fn config_read(&self) -> u32 {
        let address = self.config.load(std::sync::atomic::Ordering::Relaxed);
        if address >> 8 & 0xFFFF != u32::from(BDF) {
            return u32::MAX;
        }
        match address & 0xFC {
            0x00 => 0x1111_1234,
            0x04 => 0x0000_0003,
            0x08 => 0x0300_0002,
            0x10 => LINEAR as u32 | 8,
            0x18 => REGISTERS as u32,
            _ => 0,
        }
    }
}

impl CpuBoard for Board {
    fn pio_read(&self, _cpu: u32, port: u16, width: Width) -> u32 {
        // A frame passes in a few reads of the status: waiting loops end.
        self.clock.advance(10_000);
        match port {
            0xCF8 => self.config.load(std::sync::atomic::Ordering::Relaxed),
            0xCFC..=0xCFF => self.config_read() >> ((port & 3) * 8) & width.ones() as u32,
            _ => self.pio.read(port.into(), width) as u32,
        }
    }
    fn pio_write(&self, _cpu: u32, port: u16, width: Width, value: u32) {
        match port {
            0xCF8 => self.config.store(value, std::sync::atomic::Ordering::Relaxed),
            _ => self.pio.write(port.into(), width, value.into()),
        }
    }
    fn mmio_read(&self, _cpu: u32, gpa: u64, width: Width) -> u64 {
        self.mmio.read(gpa, width)
    }
    fn mmio_write(&self, _cpu: u32, gpa: u64, width: Width, value: u64) {
        self.mmio.write(gpa, width, value);
    }
    fn take_interrupt(&self, _cpu: u32) -> Option<u8> {
        None
    }
    fn apic_read_msr(&self, _cpu: u32, _msr: u32) -> Result<u64, MsrFault> {
        Err(MsrFault)
    }
    fn apic_write_msr(&self, _cpu: u32, _msr: u32, _value: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }
    fn apic_cr8(&self, _cpu: u32) -> u8 {
        0
    }
    fn set_apic_cr8(&self, _cpu: u32, _value: u8) {}
    fn now(&self) -> VmTime {
        self.clock.now()
    }
}

/// The machine, with the adapter's firmware initialised.
pub(crate) struct Machine {
    board: Board,
    vcpu: Box<dyn Vcpu>,
    pub(crate) memory: Arc<GuestMemory>,
    slot: Arc<Slot<Vga>>,
}

impl Machine {
    /// None where the host has no such firmware.
    pub(crate) fn new() -> Option<Self> {
        let mut machine = Self::without_firmware()?;
        // Its entry point takes the address of the function in AX.
        machine.call([BDF.into(), 0, 0, 0], &[0x9A, 0x03, 0x00, 0x00, 0xC0]);
        Some(machine)
    }

    /// The same before the firmware has run.
    pub(crate) fn without_firmware() -> Option<Self> {
        let Ok(rom) = std::fs::read(Path::new(FIRMWARE)) else {
            eprintln!("SKIPPED: {FIRMWARE} is not here; it is in Debian's package seabios");
            return None;
        };
        let region = |name, kind, len| Arc::new(MemoryRegion::new(name, kind, len).unwrap());
        let vram = region("vram", Kind::Ram, 16 << 20);
        // Shadowed: it initialises itself in place.
        let firmware = region("vgabios", Kind::Ram, 0x1_0000);
        firmware.load(0, &rom).unwrap();
        let expansion = region("expansion", Kind::Rom, 0x1_0000);
        expansion.load(0, &rom).unwrap();
        let mut memory = GuestMemory::new();
        for (gpa, region) in [
            (0, region("ram", Kind::Ram, 0xA_0000)),
            (ROM, firmware),
            (LINEAR, Arc::clone(&vram)),
        ] {
            memory.add(gpa, region).unwrap();
        }
        let clock = TestClock::new();
        let time: Arc<dyn Clock> = Arc::new(clock.clone());
        let chip = Vga::new(Arc::clone(&time), vram, Some(expansion), &VgaConfig::default()).unwrap();
        let slot = Slot::new("vga", chip, time, Arc::new(NoWake));
        let board = Board {
            pio: Bus::new(),
            mmio: Bus::new(),
            clock,
            config: 0.into(),
        };
        map(&board, &slot);
        // Kilobytes of memory, of which the firmware takes some for its stack.
        memory.write(0x413, &640u16.to_le_bytes()).unwrap();
        let memory = Arc::new(memory);
        let engine = InterpEngine::new(Arc::clone(&memory), Arc::new(CpuPolicy::new(Model::V2).unwrap())).unwrap();
        let vcpu = engine.new_vcpu(0).unwrap();
        Some(Self {
            board,
            vcpu,
            memory,
            slot,
        })
    }

    /// Executes `code` with AX, BX, CX and DX, and a HLT behind it; AX thereafter.
    pub(crate) fn call(&mut self, registers: [u16; 4], code: &[u8]) -> u16 {
        let mut all = code.to_vec();
        all.push(0xF4);
        self.memory.write(CODE, &all).unwrap();
        let mut state = self.vcpu.state();
        let segment = |attr, limit| SegmentState {
            selector: 0,
            base: 0,
            limit,
            attr,
        };
        // The firmware reads the EDID from BAR 2 with a segment limit of 4 GiB, as SeaBIOS calls it.
        state.segments = [segment(0x8093, u32::MAX); 6];
        state.segments[1] = segment(0x9B, 0xFFFF);
        state.idtr = DescriptorTable { base: 0, limit: 0x3FF };
        state.cr0 = 0x10;
        state.rflags = 2;
        state.rip = CODE;
        let [ax, bx, cx, dx] = registers;
        state.gpr[..8].copy_from_slice(&[ax.into(), cx.into(), dx.into(), bx.into(), 0x7000, 0, 0, 0]);
        state.activity = cpu_model::Activity::default();
        self.vcpu.set_state(&state).unwrap();
        let stop = self.vcpu.run(&self.board, Some(BUDGET)).unwrap();
        let state = self.vcpu.state();
        assert_eq!(stop, Stop::Halted, "at {:#x}", state.rip);
        assert_eq!(state.rip, CODE + all.len() as u64, "it halted elsewhere");
        (state.gpr[0] & 0xFFFF) as u16
    }

    /// Interrupt 10h.
    pub(crate) fn int10(&mut self, ax: u16, bx: u16, cx: u16, dx: u16) -> u16 {
        self.call([ax, bx, cx, dx], &[0xCD, 0x10])
    }

    /// Characters at the cursor.
    pub(crate) fn print(&mut self, text: &str) {
        for byte in text.bytes() {
            self.int10(0x0E00 | u16::from(byte), 0x0007, 0, 0);
        }
    }

    /// Writes the window at A0000h as the guest does.
    pub(crate) fn poke(&self, gpa: u64, value: u8) {
        self.board.mmio.write(gpa, Width::Byte, value.into());
    }

    pub(crate) fn vga<R>(&self, with: impl FnOnce(&mut Vga) -> R) -> R {
        self.slot.with(with)
    }

    pub(crate) fn out(&self, port: u16, value: u16) {
        self.board.pio.write(port.into(), Width::Word, value.into());
    }

    pub(crate) fn read_port(&self, port: u16) -> u8 {
        self.board.pio.read(port.into(), Width::Byte) as u8
    }

    /// What is shown in the first frame, with cursor and blinking characters.
    pub(crate) fn shown(&self) -> ScanOut {
        self.board.clock.set(VmTime::ZERO);
        self.slot.lock().scan_out()
    }
}

fn map(board: &Board, slot: &Arc<Slot<Vga>>) {
    let places = [
        vga::MONO_PORT,
        vga::VGA_PORT,
        vga::COLOUR_PORT,
        vga::DISPI_PORT,
        vga::WINDOW_BASE,
        REGISTERS,
    ];
    let regions = slot.lock().regions().to_vec();
    for ((index, region), base) in (0..).zip(regions).zip(places) {
        let device: SharedDevice = Arc::clone(slot) as SharedDevice;
        let bus = match region.space {
            device_model::Space::Pio => &board.pio,
            device_model::Space::Mmio => &board.mmio,
        };
        bus.map(Mapping {
            base,
            region,
            index,
            device,
            moving: false,
        })
        .unwrap();
    }
}
