//! Tests of the adapter's registers and of its window.

use device_model::TestClock;
use guest_memory::Kind;
use proptest::prelude::*;
use test_kit::contract;
use test_kit::fuzz_registers;

use super::*;
use crate::scanout::Mode;

pub(crate) struct Bench {
    pub(crate) chip: Vga,
    pub(crate) clock: TestClock,
}

pub(crate) fn vram(len: u64) -> Arc<MemoryRegion> {
    Arc::new(MemoryRegion::new("vram", Kind::Ram, len).unwrap())
}

impl Bench {
    pub(crate) fn new(vram_bytes: u64) -> Self {
        let clock = TestClock::new();
        let chip = Vga::new(Arc::new(clock.clone()), vram(vram_bytes), None, &VgaConfig::default()).unwrap();
        Self { chip, clock }
    }

    fn at(port: u16) -> At {
        let (region, base) = match port {
            0x1CE..=0x1D1 => (DISPI, 0x1CE),
            0x3B0..=0x3BB => (MONO, 0x3B0),
            0x3C0..=0x3CF => (VGA, 0x3C0),
            _ => (COLOUR, 0x3D0),
        };
        At {
            region,
            offset: u64::from(port - base),
        }
    }

    pub(crate) fn out(&mut self, port: u16, value: u8) {
        self.chip.write(Self::at(port), Width::Byte, value.into()).unwrap();
    }

    pub(crate) fn inb(&mut self, port: u16) -> u8 {
        lanes::byte(self.chip.read(Self::at(port), Width::Byte).unwrap())
    }

    pub(crate) fn set(&mut self, port: u16, index: u8, value: u8) {
        self.out(port, index);
        self.out(port + 1, value);
    }

    pub(crate) fn attr(&mut self, index: u8, value: u8) {
        self.inb(0x3DA);
        self.out(0x3C0, index);
        self.out(0x3C0, value);
    }

    pub(crate) fn dispi(&mut self, index: u16, value: u16) {
        self.chip.write(Self::at(0x1CE), Width::Word, index.into()).unwrap();
        self.chip.write(Self::at(0x1CF), Width::Word, value.into()).unwrap();
    }

    pub(crate) fn read_dispi(&mut self, index: u16) -> u16 {
        self.chip.write(Self::at(0x1CE), Width::Word, index.into()).unwrap();
        lanes::word(self.chip.read(Self::at(0x1CF), Width::Word).unwrap())
    }

    pub(crate) fn poke(&mut self, offset: u64, value: u8) {
        let at = At { region: WINDOW, offset };
        self.chip.write(at, Width::Byte, value.into()).unwrap();
    }

    pub(crate) fn peek(&mut self, offset: u64) -> u8 {
        let at = At { region: WINDOW, offset };
        lanes::byte(self.chip.read(at, Width::Byte).unwrap())
    }
}

#[test]
fn crtc_is_protected_but_for_the_line_compare() {
    let mut b = Bench::new(MIN_VRAM);
    b.out(0x3C2, 0x67);
    b.set(0x3D4, 0x11, 0x80);
    b.set(0x3D4, 0, 0x55);
    b.set(0x3D4, 7, 0xFF);
    b.set(0x3D4, 8, 0x12);
    for (index, value) in [(0, 0), (7, 0x10), (8, 0x12)] {
        b.out(0x3D4, index);
        assert_eq!(b.inb(0x3D5), value, "CR{index:x}");
    }
    // The other adapter's ports are not there.
    assert_eq!(b.chip.read(Bench::at(0x3B4), Width::Byte), Err(IoError::NoRegister));
    b.out(0x3C2, 0x66);
    assert!(b.chip.read(Bench::at(0x3B4), Width::Byte).is_ok());
    assert!(b.chip.read(Bench::at(0x3D4), Width::Byte).is_err());
}

#[test]
fn attribute_port_takes_index_and_data_in_turn() {
    let mut b = Bench::new(MIN_VRAM);
    b.out(0x3C2, 0x67);
    b.attr(0x11, 0x5A);
    b.attr(0x31, 0xA5);
    assert_eq!((b.inb(0x3C0), b.inb(0x3C1)), (0x31, 0xA5));
    // Half a pair is forgotten by the status register.
    b.out(0x3C0, 0x12);
    b.inb(0x3DA);
    b.out(0x3C0, 0x31);
    assert_eq!(b.inb(0x3C1), 0xA5);
}

#[test]
fn dac_takes_colours_of_six_and_eight_bits() {
    let mut b = Bench::new(MIN_VRAM);
    b.out(0x3C8, 0xFF);
    for value in [0xFF, 0x01, 0x02, 0x3F, 0x20] {
        b.out(0x3C9, value);
    }
    b.out(0x3C7, 0xFF);
    assert_eq!(b.inb(0x3C7), 3);
    let colours: Vec<_> = (0..6).map(|_| b.inb(0x3C9)).collect();
    // The second colour is not complete.
    assert_eq!(colours, [0x3F, 0x01, 0x02, 0, 0, 0]);
    b.dispi(dispi::index::ENABLE, 0x20);
    b.out(0x3C8, 5);
    assert_eq!(b.inb(0x3C7), 0);
    for value in [0xFF, 0x80, 0x01] {
        b.out(0x3C9, value);
    }
    b.out(0x3C7, 5);
    assert_eq!([b.inb(0x3C9), b.inb(0x3C9), b.inb(0x3C9)], [0xFF, 0x80, 0x01]);
}

#[test]
fn retrace_is_seen_once_a_frame_however_seldom_one_looks() {
    let mut b = Bench::new(MIN_VRAM);
    b.out(0x3C2, 0x67);
    let mut seen = 0;
    for _ in 0..600 {
        // Never within the retrace itself: every hundredth of a second and a bit.
        b.clock.advance(1_000_003);
        seen += u32::from(b.inb(0x3DA) & 8 != 0);
    }
    let frames = 600 * 1_000_003 / Timing::of(&Regs::new()).frame_ns();
    assert!(
        (frames..=frames + frames / 4).contains(&u64::from(seen)),
        "{seen} of {frames}"
    );
    // Both states show within a frame.
    let mut states = std::collections::BTreeSet::new();
    for _ in 0..2000 {
        b.clock.advance(10_000);
        states.insert(b.inb(0x3DA) & 9);
    }
    assert_eq!(states.into_iter().collect::<Vec<_>>(), [0, 1, 9]);
}

/// What the manual says of a write, a pixel's bits at a time.
fn model_write(regs: &[u8; 9], map_mask: u8, latches: [u8; 4], planes: &mut [u8; 4], value: u8) {
    let (set_reset, enable, rotate, function) = (regs[0], regs[1], u32::from(regs[3] & 7), regs[3] >> 3 & 3);
    let (mode, mask) = (regs[5] & 3, regs[8]);
    let rotated = (value >> rotate) | ((u32::from(value) << (8 - rotate)) & 0xFF) as u8;
    for plane in 0..4 {
        if map_mask >> plane & 1 == 0 {
            continue;
        }
        let mut result = 0;
        for bit in 0..8 {
            let latch = latches[plane] >> bit & 1;
            let source = match mode {
                0 if enable >> plane & 1 != 0 => set_reset >> plane & 1,
                0 => rotated >> bit & 1,
                1 => latch,
                2 => value >> plane & 1,
                _ => set_reset >> plane & 1,
            };
            let enabled = match mode {
                1 => 0,
                3 => mask & rotated,
                _ => mask,
            } >> bit
                & 1;
            let combined = match function {
                0 => source,
                1 => source & latch,
                2 => source | latch,
                _ => source ^ latch,
            };
            result |= if enabled == 0 { latch } else { combined } << bit;
        }
        planes[plane] = result;
    }
}

fn model_read(regs: &[u8; 9], planes: [u8; 4]) -> u8 {
    if regs[5] & 8 == 0 {
        return planes[usize::from(regs[4] & 3)];
    }
    let mut result = 0;
    for bit in 0..8 {
        let same = (0..4).all(|plane| regs[7] >> plane & 1 == 0 || planes[plane] >> bit & 1 == regs[2] >> plane & 1);
        result |= u8::from(same) << bit;
    }
    result
}

proptest! {
    #[test]
    fn planes_do_what_the_model_does(
        steps in proptest::collection::vec((any::<[u8; 9]>(), 0u8..16, 0u64..4, any::<u8>(), any::<bool>()), 1..200),
    ) {
        let mut b = Bench::new(MIN_VRAM);
        b.out(0x3C2, 0x67);
        b.set(0x3C4, 4, 0x06);
        let mut planes = [[0u8; 4]; 4];
        let mut latches = [0u8; 4];
        for (regs, map_mask, offset, value, write) in steps {
            let mut regs = regs;
            // The map at A0000h, without odd and even.
            regs[5] &= 0x0B;
            regs[6] = 0x05;
            for (index, value) in (0..).zip(regs) {
                b.set(0x3CE, index, value);
            }
            b.set(0x3C4, 2, map_mask);
            let at = usize::try_from(offset).unwrap();
            if write {
                b.poke(offset, value);
                model_write(&regs, map_mask, latches, &mut planes[at], value);
            } else {
                latches = planes[at];
                prop_assert_eq!(b.peek(offset), model_read(&regs, planes[at]));
            }
            let mut bytes = [0; 16];
            b.chip.vram().fetch(0, &mut bytes).unwrap();
            prop_assert_eq!(bytes.as_slice(), planes.concat());
        }
    }
}

proptest! {
    // Pictures can be large, and are drawn without optimisation, too.
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_accesses_are_harmless(bytes in proptest::collection::vec(any::<u8>(), 0..900)) {
        let mut b = Bench::new(MIN_VRAM);
        fuzz_registers(&mut b.chip, &b.clock, &bytes);
        let scan = b.chip.scan_out();
        let mut surface = crate::Surface::default();
        scan.render(&mut surface);
        prop_assert_eq!((surface.width(), surface.height()), scan.size());
        let _ = scan.text();
    }

    #[test]
    fn any_registers_make_a_picture(
        crtc in any::<[u8; 32]>(), gfx in any::<[u8; 9]>(), seq in any::<[u8; 5]>(), attr in any::<[u8; 21]>(),
        misc: u8, modes in proptest::collection::vec((0u16..11, any::<u16>()), 0..8),
    ) {
        let mut b = Bench::new(1 << 20);
        for (index, value) in modes {
            b.dispi(index, value);
        }
        b.out(0x3C2, misc | 1);
        for (index, value) in (0..).zip(crtc) {
            b.set(0x3D4, index, if index == 0x17 { value | 0x80 } else { value });
        }
        for (index, value) in (0..).zip(gfx) {
            b.set(0x3CE, index, value);
        }
        for (index, value) in (0..).zip(seq) {
            b.set(0x3C4, index, if index == 1 { value & 0x1F } else { value });
        }
        for (index, value) in (0..).zip(attr) {
            b.attr(index, value);
        }
        b.out(0x3C0, 0x20);
        let scan = b.chip.scan_out();
        let mut surface = crate::Surface::default();
        scan.render(&mut surface);
        let _ = scan.text();
        prop_assert_eq!((surface.width(), surface.height()), scan.size());
    }
}

#[test]
fn chained_window_is_linear_and_odd_even_takes_turns() {
    let mut b = Bench::new(MIN_VRAM);
    b.out(0x3C2, 0x67);
    b.set(0x3C4, 2, 0x0F);
    b.set(0x3CE, 8, 0xFF);
    // Chain 4.
    b.set(0x3C4, 4, 0x0E);
    b.set(0x3CE, 6, 0x05);
    let alias = b.chip.window_alias().unwrap();
    assert_eq!((alias.window, alias.vram, alias.len), (0, 0, 0x1_0000));
    for at in 0..9 {
        b.poke(at, 0x10 + at as u8);
    }
    let mut bytes = [0; 9];
    b.chip.vram().fetch(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
    assert_eq!((b.peek(5), b.peek(0xFFFF)), (0x15, 0));
    // Odd and even at B8000h.
    b.set(0x3C4, 4, 0x02);
    b.set(0x3C4, 2, 0x03);
    b.set(0x3CE, 5, 0x10);
    b.set(0x3CE, 6, 0x0E);
    assert_eq!(b.chip.window_alias(), None);
    b.poke(0x1_8000, b'A');
    b.poke(0x1_8001, 0x07);
    b.poke(0x1_8002, b'B');
    assert_eq!([0x1_8000, 0x1_8001, 0x1_8002].map(|at| b.peek(at)), [b'A', 7, b'B']);
    let at = At {
        region: WINDOW,
        offset: 0x1_8000,
    };
    assert_eq!(b.chip.read(at, Width::Dword), Ok(0x0042_0741));
    // A0000h is not mapped then, and nothing is without RAM enable.
    assert!(b.chip.read(At { offset: 0, ..at }, Width::Byte).is_err());
    b.out(0x3C2, 0x65);
    assert!(b.chip.read(at, Width::Byte).is_err());
}

#[test]
fn dispi_sets_modes_that_fit_only() {
    let mut b = Bench::new(16 << 20);
    assert_eq!(b.read_dispi(0), 0xB0C5);
    b.dispi(0, 0xB0C0);
    assert_eq!(b.read_dispi(0), 0xB0C0);
    b.dispi(0, 0x1234);
    assert_eq!(b.read_dispi(0), 0xB0C0);
    assert_eq!(b.read_dispi(10), 256);
    b.dispi(4, 2);
    assert_eq!([1, 2, 3].map(|index| b.read_dispi(index)), [2560, 1600, 32]);
    b.dispi(4, 0);
    b.chip.vram().load(0, &[1; 8]).unwrap();
    for (index, value) in [(1, 2560), (2, 1600), (3, 32), (4, 0x41)] {
        b.dispi(index, value);
    }
    assert_eq!(b.chip.scan_out().mode(), Mode::Linear(32));
    assert_eq!(b.chip.scan_out().size(), (2560, 1600));
    assert_eq!((b.read_dispi(6), b.read_dispi(7)), (2560, 1638));
    // Setting the mode has cleared what it shows.
    let mut bytes = [1; 8];
    b.chip.vram().fetch(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0; 8]);
    // Offsets stay inside.
    b.dispi(9, 100);
    assert_eq!(b.read_dispi(9), 38);
    b.dispi(6, 4096);
    assert_eq!((b.read_dispi(6), b.read_dispi(7), b.read_dispi(2)), (4096, 1024, 1024));
}

#[test]
fn banked_window_shows_the_bank() {
    let mut b = Bench::new(1 << 20);
    for (index, value) in [(1, 640), (2, 480), (3, 8), (4, 0x81), (5, 3)] {
        b.dispi(index, value);
    }
    b.poke(5, 0x77);
    let mut byte = [0];
    b.chip.vram().fetch(0x3_0005, &mut byte).unwrap();
    assert_eq!((byte[0], b.peek(5)), (0x77, 0x77));
    assert_eq!(b.chip.window_alias().map(|alias| alias.vram), Some(0x3_0000));
    b.dispi(5, 999);
    assert_eq!(b.read_dispi(5), 15);
}

#[test]
fn registers_window_mirrors_ports_and_dispi() {
    let mut b = Bench::new(1 << 20);
    let read = |b: &mut Bench, offset, width| {
        let at = At {
            region: REGISTERS,
            offset,
        };
        b.chip.read(at, width).unwrap()
    };
    assert_eq!(read(&mut b, 0, Width::Word), 0xFF00);
    assert_eq!(read(&mut b, 0x500, Width::Word), 0xB0C5);
    assert_eq!(read(&mut b, 0x600, Width::Word), 8);
    assert_eq!(read(&mut b, 0x604, Width::Word), 0x1E1E);
    let at = At {
        region: REGISTERS,
        offset: 0x502,
    };
    b.chip.write(at, Width::Word, 800).unwrap();
    assert_eq!(b.read_dispi(1), 800);
    // A word to an index port writes the data port too.
    let at = At {
        region: REGISTERS,
        offset: 0x404,
    };
    b.chip.write(at, Width::Word, 0x0B02).unwrap();
    assert_eq!((b.inb(0x3C4), b.inb(0x3C5)), (2, 0x0B));
}

#[test]
fn memory_of_a_strange_size_is_refused() {
    for len in [128 << 10, 384 << 10] {
        let made = Vga::new(Arc::new(TestClock::new()), vram(len), None, &VgaConfig::default());
        assert_eq!(made.err(), Some(VramError(len)));
    }
}

#[test]
fn keeps_the_contract() {
    let clock = TestClock::new();
    contract(&clock, || {
        let time = Arc::new(clock.clone());
        Box::new(Vga::new(time, vram(MIN_VRAM), None, &VgaConfig::default()).unwrap())
    });
}

#[test]
fn windows_follow_the_command_register_and_base_addresses() {
    let rom = Arc::new(MemoryRegion::new("rom", Kind::Rom, 40 << 10).unwrap());
    let clock = Arc::new(TestClock::new());
    let mut chip = Vga::new(clock, vram(16 << 20), Some(rom), &VgaConfig::default()).unwrap();
    assert_eq!(chip.header().read(reg::VENDOR, Width::Dword), 0x1111_1234);
    assert_eq!(chip.windows(), []);
    for (at, size) in [(0x10, 0xFF00_0008u32), (0x18, 0xFFFF_F000), (0x30, 0xFFFF_0001)] {
        chip.config_write(at, Width::Dword, u32::MAX);
        assert_eq!(chip.config_read(at, Width::Dword), size, "{at:x}");
    }
    for (at, value) in [
        (0x10, 0xE000_0000),
        (0x18, 0xFEBF_0000),
        (0x30, 0xFEBE_0001),
        (reg::COMMAND, 3),
    ] {
        chip.config_write(at, Width::Dword, value);
    }
    let bases: Vec<u64> = chip.windows().iter().map(|window| window.base).collect();
    assert_eq!(
        bases,
        [
            0xE000_0000,
            0xFEBF_0000,
            0xFEBE_0000,
            0x3B0,
            0x3C0,
            0x3D0,
            0x1CE,
            0xA_0000
        ]
    );
    assert_eq!(chip.memory(VRAM).unwrap().len(), 16 << 20);
    chip.config_write(reg::COMMAND, Width::Word, 1);
    assert!(chip.windows().iter().all(|window| window.space == Space::Pio));
    chip.reset(Reset::Warm);
    assert_eq!(chip.windows(), []);
}
