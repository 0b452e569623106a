//! The screen and the keyboard of a PC under its real firmware.

use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use board::Backends;
use board::Machine;
use display::Framebuffer;
use display::ScreenSource;
use display::Surface;
use display::scanout::Mode;
use input::InputSink;
use input::Layout;
use spec::EngineKind;
use spec::FloppyConfig;
use spec::MachineKind;
use spec::MachineSpec;
use spec::Size;
use tempfile::TempDir;

/// Whether the host has SeaBIOS and its VGA BIOS; says so if not.
fn has_firmware() -> bool {
    let found = firmware::rom::find(None).is_ok() && firmware::rom::find_vga().is_some();
    if !found {
        eprintln!("SKIPPED: SeaBIOS or its VGA BIOS is not here; both are in Debian's package seabios");
    }
    found
}

fn pc(engine: EngineKind) -> MachineSpec {
    MachineSpec {
        machine: MachineKind::Pc,
        memory: Size::from_mib(64),
        engine,
        ..MachineSpec::default()
    }
}

/// Waits until the screen has a text.
fn wait_for(machine: &Machine, wanted: &str) -> String {
    let screen = machine.screen().unwrap();
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let text = screen.text().unwrap_or_default();
        if text.contains(wanted) {
            return text;
        }
        assert!(Instant::now() < end, "no `{wanted}` on the screen:\n{text}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn seabios_writes_on_the_screen_and_the_picture_survives_a_restore() {
    if !has_firmware() {
        return;
    }
    for engine in [EngineKind::Interp, EngineKind::Jit] {
        let machine = Machine::build(&pc(engine), Backends::default()).unwrap();
        machine.start().unwrap();
        // The last words that SeaBIOS writes: afterwards the text stands still.
        let text = wait_for(&machine, "Retrying in 60 seconds.");
        assert!(text.contains("SeaBIOS (version"), "{engine}:\n{text}");
        let screen = machine.screen().unwrap();
        assert_eq!((screen.scan_out().mode(), screen.picture().width()), (Mode::Text, 720));
        machine.pause().unwrap();
        let mut framebuffer = Framebuffer::new();
        machine.screen().unwrap().refresh(&mut framebuffer);
        assert_eq!(framebuffer.surface(), &screen.picture());
        assert_ne!(&Surface::new(720, 400), framebuffer.surface(), "{engine}: all black");
        let other = Machine::build(&pc(engine), Backends::default()).unwrap();
        other.restore(machine.save().unwrap()).unwrap();
        assert_eq!(other.screen().unwrap().text().unwrap(), text, "{engine}");
        assert_eq!(&other.screen().unwrap().picture(), framebuffer.surface());
    }
}

/// A boot sector that writes keystrokes to the screen: interrupt 16h, then 10h, over and over.
fn typewriter(path: &Path) {
    let mut disk = vec![0; 1440 << 10];
    let code = [
        0x30, 0xe4, 0xcd, 0x16, 0xb4, 0x0e, 0xbb, 0x07, 0x00, 0xcd, 0x10, 0xeb, 0xf3,
    ];
    disk[..code.len()].copy_from_slice(&code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(path, disk).unwrap();
}

#[test]
fn typed_text_appears_on_the_screen() {
    if !has_firmware() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("typewriter");
    typewriter(&image);
    let mut spec = pc(EngineKind::Jit);
    spec.devices.floppies = vec![FloppyConfig {
        image: Some(image),
        read_only: true,
    }];
    let machine = Machine::build(&spec, Backends::default()).unwrap();
    machine.start().unwrap();
    wait_for(&machine, "Booting from Floppy");
    let input = machine.input().unwrap();
    let text = "Hello, World! 2+2=4 <{[|]}> ~`@#$%^&*()";
    std::thread::sleep(Duration::from_millis(500));
    for stroke in Layout::US.strokes(text).unwrap() {
        while input.keystrokes_waiting() > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        stroke.events().for_each(|event| input.input(event));
        std::thread::sleep(Duration::from_millis(5));
    }
    wait_for(&machine, text);
}

#[test]
fn machine_without_a_display_adapter_has_no_screen() {
    let mut spec = pc(EngineKind::Interp);
    spec.devices.vga = None;
    if has_firmware() {
        assert!(Machine::build(&spec, Backends::default()).unwrap().screen().is_none());
    }
}

/// A multiboot image, loaded at 1 MiB, that writes the letter A into the first character of the screen, or as pixels.
fn letter(path: &Path, video: u32) {
    const BASE: u32 = 0x10_0000;
    let mut image = Vec::new();
    let flags: u32 = 1 << 16;
    let magic: u32 = 0x1bad_b002;
    let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
    let end = BASE + 64;
    for word in [magic, flags, checksum, BASE, BASE, end, end, BASE + 32] {
        image.extend(word.to_le_bytes());
    }
    // mov word [video], 0741h; cli; hlt
    image.extend([0x66, 0xc7, 0x05]);
    image.extend(video.to_le_bytes());
    image.extend([0x41, 0x07, 0xfa, 0xf4]);
    image.resize(64, 0xf4);
    std::fs::write(path, image).unwrap();
}

#[test]
fn kernel_booted_directly_finds_text_or_the_mode_of_its_command_line() {
    if !has_firmware() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let kernel = dir.path().join("letter");
    let boot = |append: &str| {
        let mut spec = pc(EngineKind::Interp);
        spec.boot.kernel = Some(kernel.clone());
        spec.boot.append = append.to_owned();
        let machine = Machine::build(&spec, Backends::default()).unwrap();
        machine.start().unwrap();
        machine
    };
    letter(&kernel, 0xb_8000);
    let machine = boot("vga=normal");
    let text = wait_for(&machine, "A");
    assert_eq!((text.trim_end(), text.lines().count()), ("A", 25));
    // Video memory is at the start of the window for PCI memory.
    letter(&kernel, 0x8000_0000);
    let machine = boot("vga=788");
    let shown = machine.screen().unwrap();
    assert_eq!(shown.scan_out().mode(), Mode::Linear(16));
    assert_eq!(shown.scan_out().size(), (800, 600));
    let end = Instant::now() + Duration::from_secs(120);
    while shown.picture().pixel(0, 0) != 0x00_EB_08 {
        assert!(Instant::now() < end, "{:06x}", shown.picture().pixel(0, 0));
        std::thread::sleep(Duration::from_millis(20));
    }
}
