//! The VNC server against real clients: `vncdotool` types, moves, clicks and captures; TigerVNC's viewer shows the picture,
//! sends keys and follows the screen's size.
//!
//! The clients are looked for in `PATH` (`pip install vncdotool`; Debian's `tigervnc-viewer`, `xvfb`, `xdotool` and
//! `imagemagick`). Where
//! they are absent the tests say so and pass.

use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use display::Framebuffer;
use display::ScreenSource;
use display::Surface;
use input::Event;
use input::InputSink;
use input::Key;
use remote::vnc::Password;
use remote::vnc::VncAddress;
use remote::vnc::VncConfig;
use remote::vnc::VncServer;

const WIDTH: u32 = 640;
const HEIGHT: u32 = 400;
/// The size after a change of mode.
const LARGE: (u32, u32) = (800, 600);

/// A picture with text-like, plain and noisy parts, with the keys that were pressed along its upper edge.
#[derive(Default)]
struct Machine {
    events: Mutex<Vec<Event>>,
    large: AtomicBool,
}

impl Machine {
    fn draw(&self, surface: &mut Surface) {
        let pressed: Vec<u16> = self.pressed().iter().map(|key| key.code()).collect();
        let (width, height) = match self.large.load(Ordering::Relaxed) {
            true => LARGE,
            false => (WIDTH, HEIGHT),
        };
        surface.resize(width, height);
        for y in 0..height {
            for (x, pixel) in (0..).zip(surface.row_mut(y)) {
                *pixel = match (pressed.get((x / 16) as usize), y) {
                    (Some(code), 0..16) => u32::from(*code) * 0x2_0301,
                    (_, 0..100) => 0x20_4060,
                    (_, 100..200) => (x * y % 7 / 6) * 0xFF_FFFF,
                    (_, 200..300) => (x * 255 / width) << 16 | (y & 255) << 8,
                    _ => (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(2_246_822_519)) >> 8,
                };
            }
        }
    }

    fn pressed(&self) -> Vec<Key> {
        let press = |event: &Event| match event {
            Event::Key { key, down: true } => Some(*key),
            _ => None,
        };
        self.events.lock().unwrap().iter().filter_map(press).collect()
    }
}

impl InputSink for Machine {
    fn input(&self, event: Event) {
        self.events.lock().unwrap().push(event);
    }
}

struct Screen(Arc<Machine>);

impl ScreenSource for Screen {
    fn refresh(&mut self, framebuffer: &mut Framebuffer) {
        framebuffer.update_with(|surface| self.0.draw(surface));
    }
}

fn start(password: Option<&str>) -> (Arc<Machine>, VncServer, u16) {
    let machine = Arc::new(Machine::default());
    let config = VncConfig {
        name: "clients".to_owned(),
        password: password.map(|text| Password::new(text).unwrap()),
        ..VncConfig::default()
    };
    let address = "127.0.0.1:0".parse().unwrap();
    let screen = Box::new(Screen(Arc::clone(&machine)));
    let server = VncServer::start(&address, config, screen, machine.clone()).unwrap();
    let VncAddress::Tcp(at) = server.address() else {
        panic!("a port was asked for");
    };
    let port = at.port();
    (machine, server, port)
}

/// Whether a program is there; says so where it is not.
fn there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    if !found {
        eprintln!("SKIPPED: {program} is not in PATH");
    }
    found
}

fn vncdo(port: u16, arguments: &[&str]) -> bool {
    Command::new("timeout")
        .args(["-s", "KILL", "60", "vncdo", "-s"])
        .arg(format!("127.0.0.1::{port}"))
        .args(arguments)
        .stdin(Stdio::null())
        .status()
        .unwrap()
        .success()
}

fn read_png(path: &Path) -> Surface {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    let samples = info.color_type.samples();
    let mut surface = Surface::new(info.width, info.height);
    for (pixel, bytes) in surface.pixels_mut().iter_mut().zip(data.chunks(samples)) {
        let (red, green, blue) = if samples < 3 {
            (bytes[0], bytes[0], bytes[0])
        } else {
            (bytes[0], bytes[1], bytes[2])
        };
        *pixel = u32::from_be_bytes([0, red, green, blue]);
    }
    surface
}

fn assert_same(machine: &Machine, captured: &Surface) {
    let mut shown = Surface::default();
    machine.draw(&mut shown);
    assert_eq!(captured.bounds(), shown.bounds());
    let differs = (0..HEIGHT)
        .flat_map(|y| (0..WIDTH).map(move |x| (x, y)))
        .find(|(x, y)| captured.pixel(*x, *y) != shown.pixel(*x, *y));
    let colours = differs.map(|(x, y)| (captured.pixel(x, y), shown.pixel(x, y)));
    assert_eq!(differs, None, "the first pixel that differs: {colours:x?}");
}

#[test]
fn vncdotool_types_points_and_captures_what_is_shown() {
    if !there("vncdo") {
        return;
    }
    let (machine, _server, port) = start(None);
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("picture.png");
    let file = picture.to_str().unwrap();
    let script = [
        "type",
        "Hi2",
        "key",
        "enter",
        "key",
        "ctrl-alt-f2",
        "move",
        "100",
        "100",
        "move",
        "130",
        "90",
        "click",
        "1",
        "click",
        "3",
        "pause",
        "0.5",
    ];
    assert!(vncdo(port, &script));
    let names: Vec<&str> = machine.pressed().into_iter().map(Key::name).collect();
    assert_eq!(names, ["shift", "h", "i", "2", "enter", "ctrl", "alt", "f2"]);
    let events = machine.events.lock().unwrap().clone();
    assert!(events.contains(&Event::Move { dx: 30, dy: -10 }), "{events:?}");
    let clicks = events.iter().filter(|event| matches!(event, Event::Button { .. }));
    assert_eq!(clicks.count(), 4);
    // On a host that is busy the picture may be one from before the last key.
    let mut shown = Surface::default();
    machine.draw(&mut shown);
    for _ in 0..5 {
        assert!(vncdo(port, &["pause", "0.5", "capture", file]));
        if read_png(&picture) == shown {
            break;
        }
    }
    assert_same(&machine, &read_png(&picture));
}

#[test]
fn vncdotool_needs_the_password() {
    if !there("vncdo") {
        return;
    }
    let (machine, _server, port) = start(Some("secret"));
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("picture.png");
    let file = picture.to_str().unwrap();
    assert!(vncdo(
        port,
        &["-p", "secret", "key", "a", "pause", "0.3", "capture", file]
    ));
    assert_same(&machine, &read_png(&picture));
    vncdo(port, &["-p", "guess", "-t", "5", "key", "b"]);
    let names: Vec<&str> = machine.pressed().into_iter().map(Key::name).collect();
    assert_eq!(names, ["a"], "nothing gets through with a wrong one");
}

/// Ends with its value.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(program: &str, arguments: &[&str]) -> Child {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    Child(child.unwrap())
}

#[test]
fn tigervnc_shows_the_picture_in_its_encodings() {
    if !["xtigervncviewer", "Xvfb", "import"].into_iter().all(there) {
        return;
    }
    let (machine, server, port) = start(None);
    let dir = tempfile::tempdir().unwrap();
    let picture = dir.path().join("picture.png");
    let display = format!(":{}", 100 + std::process::id() % 20_000);
    let _x = spawn("Xvfb", &[&display, "-screen", "0", &format!("{WIDTH}x{HEIGHT}x24")]);
    std::thread::sleep(Duration::from_secs(2));
    for encoding in ["Tight", "ZRLE", "Hextile", "Raw"] {
        let server_name = format!("127.0.0.1::{port}");
        let preferred = format!("-PreferredEncoding={encoding}");
        #[rustfmt::skip]
        let viewer = spawn("xtigervncviewer", &[
            &server_name, "-display", &display, "-FullScreen=1", "-AutoSelect=0", &preferred, "-NoJPEG=1", "-RemoteResize=0",
            "-FullColor=1", "-DotWhenNoCursor=0",
        ]);
        let end = Instant::now() + Duration::from_secs(30);
        let mut shown = Surface::default();
        machine.draw(&mut shown);
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let captured = Command::new("timeout")
                .args(["-s", "KILL", "20", "import", "-display", &display, "-window", "root"])
                .arg(&picture)
                .status()
                .unwrap();
            if captured.success() && read_png(&picture) == shown {
                break;
            }
            if Instant::now() > end {
                assert_same(&machine, &read_png(&picture));
                panic!("no picture with {encoding}");
            }
        }
        drop(viewer);
        while server.clients() > 0 {
            assert!(
                Instant::now() < end + Duration::from_secs(10),
                "the viewer does not leave"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn xdotool(display: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["-s", "KILL", "20", "xdotool"])
        .args(arguments)
        .env("DISPLAY", display)
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until something is as it should be.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn tigervnc_sends_keys_and_follows_the_size() {
    if !["xtigervncviewer", "Xvfb", "xdotool"].into_iter().all(there) {
        return;
    }
    let (machine, _server, port) = start(None);
    let display = format!(":{}", 20_101 + std::process::id() % 20_000);
    let _x = spawn("Xvfb", &[&display, "-screen", "0", "1280x1024x24"]);
    std::thread::sleep(Duration::from_secs(2));
    let _viewer = spawn(
        "xtigervncviewer",
        &[&format!("127.0.0.1::{port}"), "-display", &display],
    );
    let mut window = String::new();
    eventually("no window", || {
        window = xdotool(&display, &["search", "--name", "TigerVNC"]).trim().to_owned();
        !window.is_empty()
    });
    let shows = |width: u32, height: u32| {
        let geometry = xdotool(&display, &["getwindowgeometry", &window]);
        geometry.contains(&format!("Geometry: {width}x{height}"))
    };
    eventually("not the screen's size", || shows(WIDTH, HEIGHT));
    xdotool(&display, &["windowfocus", &window]);
    xdotool(&display, &["type", "--delay", "80", "Ox!"]);
    xdotool(&display, &["key", "Return", "ctrl+c", "F2"]);
    let expected = ["shift", "o", "x", "shift", "1", "enter", "ctrl", "c", "f2"];
    let names = || machine.pressed().into_iter().map(Key::name).collect::<Vec<_>>();
    let end = Instant::now() + Duration::from_secs(30);
    while names().len() < expected.len() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(names(), expected);
    machine.large.store(true, Ordering::Relaxed);
    eventually("not the new size", || shows(LARGE.0, LARGE.1));
}
