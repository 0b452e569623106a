//! The adapter under its real firmware: SeaBIOS's VGA BIOS sets modes, prints and draws, and the pictures are compared with
//! golden ones.
//!
//! `OXBOW_BLESS=1` accepts the pictures as they are. Where the firmware is not installed the tests say so and pass.

mod machine;

use std::path::PathBuf;

use device_model::Inspect;
use display::ScanOut;
use display::Surface;
use display::scanout::Mode;
use display::vga::LinearMode;
use display::vga::Vga;
use display::write_png;

use machine::LINEAR;
use machine::Machine;

fn render(scan: &ScanOut) -> Surface {
    let mut surface = Surface::default();
    scan.render(&mut surface);
    surface
}

/// Compares a picture with `tests/golden/NAME.png`, pixel by pixel.
fn golden(name: &str, surface: &Surface) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.png"));
    if std::env::var_os("OXBOW_BLESS").is_some() {
        write_png(surface, std::fs::File::create(&path).unwrap()).unwrap();
    }
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut reader = png::Decoder::new(std::io::BufReader::new(file)).read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    assert_eq!((info.width, info.height), (surface.width(), surface.height()), "{name}");
    let (wanted, _) = data.as_chunks();
    for (at, (pixel, [red, green, blue])) in (0u32..).zip(surface.pixels().iter().zip(wanted)) {
        let (x, y) = (at % info.width, at / info.width);
        let wanted = u32::from_be_bytes([0, *red, *green, *blue]);
        assert_eq!(*pixel, wanted, "{name}: pixel {x}, {y}");
    }
}

#[test]
fn text_mode_shows_what_is_printed() {
    let Some(mut m) = Machine::new() else { return };
    m.int10(0x0003, 0, 0, 0);
    m.print("Hello, world!\r\n");
    // Attributes: bright yellow on blue, blinking, and line-drawing characters.
    m.int10(0x09C9, 0x001E, 1, 0);
    m.print("\r\n");
    m.int10(0x09DB, 0x0084, 3, 0);
    let scan = m.shown();
    assert_eq!((scan.mode(), scan.size()), (Mode::Text, (720, 400)));
    let text = scan.text().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 25);
    assert_eq!(lines[..4], ["Hello, world!", "╔", "███", ""]);
    golden("text80", &render(&scan));
    // Forty columns are as wide.
    m.int10(0x0001, 0, 0, 0);
    m.print("forty");
    let scan = m.shown();
    assert_eq!(scan.size(), (720, 400));
    assert_eq!(scan.text().unwrap().lines().next(), Some("forty"));
    golden("text40", &render(&scan));
    // Fifty rows of eight lines.
    m.int10(0x0003, 0, 0, 0);
    m.int10(0x1112, 0, 0, 0);
    m.print("fifty\r\nrows");
    let text = m.shown().text().unwrap();
    assert_eq!(text.lines().count(), 50);
    golden("text50", &render(&m.shown()));
}

#[test]
fn modes_without_firmware_are_those_that_firmware_sets() {
    let (Some(mut m), Some(bare)) = (Machine::new(), Machine::without_firmware()) else {
        return;
    };
    let registers = |m: &Machine| {
        let tree = m.vga(|vga| vga.inspect());
        (tree, render(&m.shown()))
    };
    m.int10(0x0003, 0, 0, 0);
    assert!(bare.vga(Vga::set_text_mode));
    let ((theirs, dark), (ours, blank)) = (registers(&m), registers(&bare));
    assert_eq!(theirs, ours);
    assert_eq!(dark.pixels(), blank.pixels());
    // All characters in all colours.
    for m in [&m, &bare] {
        for at in 0..2000u64 {
            m.poke(0xB_8000 + at * 2, at as u8);
            m.poke(0xB_8001 + at * 2, (at * 7 / 5) as u8);
        }
    }
    assert_eq!(render(&m.shown()).pixels(), render(&bare.shown()).pixels());
    m.int10(0x4F02, 0x4114, 0, 0);
    let mode = |width, height| LinearMode {
        width,
        height,
        bits: 16,
    };
    assert!(bare.vga(|vga| vga.set_linear_mode(mode(800, 600))));
    assert_eq!(m.shown().mode(), bare.shown().mode());
    assert_eq!(render(&m.shown()).pixels(), render(&bare.shown()).pixels());
    assert!(!bare.vga(|vga| vga.set_linear_mode(mode(4096, 600))));
}

#[test]
fn panned_and_split_text_keeps_the_lower_part_still() {
    let Some(mut m) = Machine::new() else { return };
    m.int10(0x0003, 0, 0, 0);
    m.print("status\r\n");
    for line in 0..20 {
        m.print(&format!("line {line}\r\n"));
    }
    // The picture starts in row 5 and three dots to the right, the part below line 320 at the top of memory.
    for (index, value) in [(0x0C, 1), (0x0D, 0x90), (0x18, 0x3F)] {
        m.out(0x3D4, value << 8 | index);
    }
    m.out(0x3D4, 0x0F07 | 0x1000);
    m.out(0x3D4, 0x0F09);
    m.read_port(0x3DA);
    for value in [0x30, 0x2C, 0x33, 0x02] {
        m.out(0x3C0, value);
    }
    let scan = m.shown();
    let text = scan.text().unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[20]), ("line 4", "status"));
    golden("split", &render(&scan));
}

#[test]
fn planar_mode_shows_pixels_of_sixteen_colours() {
    let Some(mut m) = Machine::new() else { return };
    m.int10(0x0012, 0, 0, 0);
    for i in 0..64u16 {
        m.int10(0x0C00 | i & 15, 0, 8 * i, 5 * i);
    }
    m.print("planar");
    let scan = m.shown();
    assert_eq!((scan.mode(), scan.size()), (Mode::Planar, (640, 480)));
    assert_eq!(render(&scan).pixel(8 * 15, 5 * 15), 0xFF_FFFF);
    golden("planar12", &render(&scan));
    m.int10(0x000D, 0, 0, 0);
    m.print("320 by 200");
    let scan = m.shown();
    assert_eq!(scan.size(), (640, 400));
    golden("planar0d", &render(&scan));
}

#[test]
fn cga_modes_take_pixels_from_two_banks() {
    let Some(mut m) = Machine::new() else { return };
    for (mode, name) in [(0x0004, "cga4"), (0x0006, "cga6")] {
        m.int10(mode, 0, 0, 0);
        for i in 0..100u16 {
            m.int10(0x0C01 + i % 3, 0, 2 * i, i);
        }
        m.print("CGA");
        let scan = m.shown();
        assert_eq!((scan.mode(), scan.size()), (Mode::Planar, (640, 400)));
        golden(name, &render(&scan));
    }
}

#[test]
fn mode_13h_is_linear_and_mode_x_is_made_of_it() {
    let Some(mut m) = Machine::new() else { return };
    m.int10(0x0013, 0, 0, 0);
    for i in 0..320 * 200u64 {
        m.poke(0xA_0000 + i, ((i % 320) ^ (i / 320)) as u8);
    }
    let scan = m.shown();
    assert_eq!((scan.mode(), scan.size()), (Mode::Chained, (640, 400)));
    golden("mode13", &render(&scan));
    // Mode X: no chain 4, byte mode, 240 lines.
    m.out(0x3C4, 0x0604);
    for value in [0x0D06, 0x3E07, 0xEA10, 0xAC11, 0xDF12, 0x0014, 0xE715, 0x0616, 0xE317] {
        m.out(0x3D4, value);
    }
    m.out(0x3C2, 0x00E3);
    for plane in 0..4 {
        m.out(0x3C4, 0x0002 | 0x100 << plane);
        for i in 0..80 * 240u64 {
            let x = i % 80 * 4 + plane;
            m.poke(0xA_0000 + i, (x + i / 80) as u8);
        }
    }
    let scan = m.shown();
    assert_eq!((scan.mode(), scan.size()), (Mode::Chained, (640, 480)));
    let surface = render(&scan);
    assert_eq!(surface.pixel(100, 40), surface.pixel(101, 41));
    golden("mode_x", &surface);
}

#[test]
fn vesa_modes_show_linear_memory() {
    let Some(mut m) = Machine::new() else { return };
    // Information on mode 118h: its linear framebuffer is where BAR 0 is.
    assert_eq!(m.call([0x4F01, 0, 0x0118, 0], &[0xBF, 0x00, 0x60, 0xCD, 0x10]), 0x004F);
    assert_eq!(m.memory.read_obj::<u32>(0x6028).unwrap(), LINEAR as u32);
    for (mode, size, bits) in [
        (0x0101, (640, 480), 8),
        (0x0103, (800, 600), 8),
        (0x010D, (320, 200), 15),
        (0x0111, (640, 480), 16),
        (0x0118, (1024, 768), 24),
        (0x011B, (1280, 1024), 24),
        (0x0144, (1024, 768), 32),
    ] {
        assert_eq!(m.int10(0x4F02, 0x4000 | mode, 0, 0), 0x004F, "mode {mode:x}");
        let scan = m.shown();
        assert_eq!((scan.mode(), scan.size()), (Mode::Linear(bits), size), "mode {mode:x}");
        // White at the second pixel of the second line, and nowhere else.
        let bytes = u64::from(bits.div_ceil(8));
        let white = if bits == 8 {
            vec![15]
        } else {
            vec![0xFF; bytes as usize]
        };
        m.memory
            .write(LINEAR + (u64::from(size.0) + 1) * bytes, &white)
            .unwrap();
        let surface = render(&m.shown());
        let lit: Vec<_> = (0..surface.height())
            .flat_map(|y| (0..surface.width()).map(move |x| (x, y)))
            .filter(|(x, y)| surface.pixel(*x, *y) != 0)
            .collect();
        assert_eq!(lit, [(1, 1)], "mode {mode:x}");
        assert_eq!(surface.pixel(1, 1), 0xFF_FFFF, "mode {mode:x}");
    }
    // A planar mode of 800 by 600.
    assert_eq!(m.int10(0x4F02, 0x0102, 0, 0), 0x004F);
    m.print("800 by 600");
    let scan = m.shown();
    assert_eq!((scan.mode(), scan.size()), (Mode::LinearPlanar, (800, 600)));
    golden("planar800", &render(&scan));
    // And back to text.
    m.int10(0x0003, 0, 0, 0);
    m.print("back");
    assert_eq!(m.shown().text().unwrap().lines().next(), Some("back"));
}
