//! Machines that `oxbow ctl` controls: a PC in its BIOS, and guests of a few bytes.

use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use tempfile::TempDir;

use crate::guest::Guest;
use crate::guest::IDLE;
use crate::guest::check;
use crate::guest::oxbow;

/// mov dx, 600h; in ax, dx; test ah, 1; jz to the in: until the power button is pressed. Then S5.
const UNTIL_BUTTON: &[u8] =
    b"\x66\xba\x00\x06\x66\xed\xf6\xc4\x01\x74\xf9\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xf4\xeb\xfd";

/// A machine with a control socket.
struct Machine {
    child: Child,
    dir: TempDir,
}

impl Machine {
    /// Starts `run` and waits until its socket is there.
    fn start(command: &mut Command) -> Self {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("vm.sock");
        command.arg("--control").arg(&socket);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(120);
        while !socket.exists() {
            assert_eq!(child.try_wait().unwrap(), None, "it ended early");
            assert!(Instant::now() < end, "no socket");
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { child, dir }
    }

    /// A PC without a disk, or none where there is no BIOS.
    fn pc(options: &[&str]) -> Option<Self> {
        let found = firmware::rom::find(None).is_ok() && firmware::rom::find_vga().is_some();
        if !found {
            eprintln!("SKIPPED: SeaBIOS or its VGA BIOS is not here; both are in Debian's package seabios");
            return None;
        }
        let base = ["run", "--machine", "pc", "--memory", "64M", "--serial", "none"];
        Some(Self::start(oxbow(&base).args(options)))
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("vm.sock")
    }

    fn ctl_command(&self, args: &[&str]) -> Command {
        let mut command = oxbow(&["ctl"]);
        command.arg(self.socket()).args(args).stdin(Stdio::null());
        command
    }

    fn ctl(&self, args: &[&str]) -> Output {
        self.ctl_command(args).output().unwrap()
    }

    /// What a command prints that succeeds.
    #[track_caller]
    fn ask(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        check(&output, 0, "");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ask(&[args, &["--json"]].concat())).unwrap()
    }

    #[track_caller]
    fn wait_for(&self, text: &str) -> String {
        self.ask(&["screen-text", "--wait-for", text, "--timeout", "240"])
    }

    /// Its output, when it has ended.
    fn finish(mut self) -> Output {
        let end = Instant::now() + Duration::from_secs(120);
        while self.child.try_wait().unwrap().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let socket = self.socket();
        // One that has ended already cannot be killed.
        let _ = self.child.kill();
        let (stdout, stderr) = (read(self.child.stdout.take()), read(self.child.stderr.take()));
        assert!(!socket.exists(), "the socket goes with its machine");
        Output {
            status: self.child.wait().unwrap(),
            stdout,
            stderr,
        }
    }
}

fn read(stream: Option<impl std::io::Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

impl Drop for Machine {
    fn drop(&mut self) {
        // One that has ended already cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Size and pixels (RGB) of a PNG file.
fn read_png(path: &Path) -> (u32, u32, Vec<u8>) {
    let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
    let mut decoder = png::Decoder::new(file);
    decoder.set_transformations(png::Transformations::EXPAND | png::Transformations::STRIP_16);
    let mut reader = decoder.read_info().unwrap();
    let mut data = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut data).unwrap();
    let samples = info.color_type.samples();
    let rgb = data.chunks(samples).flat_map(|bytes| match bytes {
        [red, green, blue, ..] => [*red, *green, *blue],
        other => [other[0]; 3],
    });
    (info.width, info.height, rgb.collect())
}

/// A boot sector that writes keystrokes to the screen: interrupt 16h, then 10h, over and over.
fn typewriter(path: &Path) {
    let mut disk = vec![0; 1440 << 10];
    let code = b"\x30\xe4\xcd\x16\xb4\x0e\xbb\x07\x00\xcd\x10\xeb\xf3";
    disk[..code.len()].copy_from_slice(code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(path, disk).unwrap();
}

#[test]
fn screen_is_read_as_text_and_as_a_picture() {
    let Some(machine) = Machine::pc(&["--engine", "jit"]) else {
        return;
    };
    let text = machine.wait_for("No bootable device");
    assert!(text.contains("SeaBIOS (version"), "{text}");
    let picture = machine.dir.path().join("screen.png");
    machine.ask(&["screenshot", picture.to_str().unwrap()]);
    let (width, height, pixels) = read_png(&picture);
    assert_eq!((width, height), (720, 400));
    assert!(pixels.iter().any(|sample| *sample != 0), "not all black");
    let status = machine.json(&["status"]);
    assert_eq!((&status["engine"], &status["machine"]), (&"jit".into(), &"pc".into()));
    assert_eq!(status["screen"]["mode"], "text");
    assert!(machine.ask(&["inspect", "pc/devices/pit"]).contains("counter0"));
    let missing = machine.ctl(&["screen-text", "--wait-for", "never", "--timeout", "0.2"]);
    check(&missing, 124, "did not appear");
    check(&machine.ctl(&["inspect", "pc/warp"]), 2, "no `pc/warp`");
    check(&machine.ctl(&["key", "ctrl-hyper"]), 2, "hyper");
    check(&machine.ctl(&["eject", "cd9"]), 2, "no drive is called `cd9`");
    machine.ask(&["mouse", "move", "-5", "3"]);
    machine.ask(&["mouse", "wheel", "-1"]);
    machine.ask(&["mouse", "click", "right"]);
    machine.ask(&["quit"]);
    check(&machine.finish(), 0, "");
}

#[test]
fn keys_text_and_media_reach_the_guest() {
    let Some(machine) = Machine::pc(&["--floppy", "none"]) else {
        return;
    };
    let disk = machine.dir.path().join("typewriter.img");
    typewriter(&disk);
    machine.wait_for("No bootable device");
    let odd = machine.dir.path().join("odd.img");
    std::fs::write(&odd, vec![0; 4 << 20]).unwrap();
    check(
        &machine.ctl(&["insert", "floppy0", odd.to_str().unwrap()]),
        2,
        "no image of a floppy disk",
    );
    check(&machine.ctl(&["insert", "floppy0", "/dev/null"]), 2, "neither a file");
    // A path is that of the client.
    let mut insert = machine.ctl_command(&["insert", "floppy0", "typewriter.img", "--read-only"]);
    check(&insert.current_dir(machine.dir.path()).output().unwrap(), 0, "");
    let drive = &machine.json(&["status"])["drives"][0];
    assert_eq!(drive["medium"]["file"], disk.to_str().unwrap());
    machine.ask(&["reset"]);
    machine.wait_for("Booting from Floppy");
    std::thread::sleep(Duration::from_millis(500));
    machine.ask(&["type", "Hello, World! {2+2=4}"]);
    machine.ask(&["key", "shift-z", "minus", "7"]);
    machine.wait_for("Hello, World! {2+2=4}Z-7");
    machine.ask(&["eject", "floppy0"]);
    assert_eq!(machine.json(&["status"])["drives"][0]["medium"], Value::Null);
    machine.ask(&["reset"]);
    machine.wait_for("No bootable device");
}

#[test]
fn paused_machine_and_its_time_stand_still() {
    let machine = Machine::start(&mut Guest::new(&[IDLE]).command(&[]));
    let time = || machine.json(&["status"])["time-ns"].as_u64().unwrap();
    machine.ask(&["pause"]);
    assert_eq!(machine.json(&["status"])["state"], "paused");
    let before = time();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(time(), before, "no time passes");
    machine.ask(&["resume"]);
    let (resumed, end) = (time(), Instant::now() + Duration::from_secs(60));
    while time() <= resumed {
        assert!(Instant::now() < end, "time goes on");
    }
    check(&machine.ctl(&["screenshot", "x.png"]), 2, "no screen");
    machine.ask(&["quit"]);
    check(&machine.finish(), 0, "");
}

#[test]
fn power_button_ends_a_guest_that_listens_and_events_say_so() {
    let machine = Machine::start(&mut Guest::new(&[UNTIL_BUTTON]).command(&["--debug-exit", "0xf4"]));
    let mut events = machine.ctl_command(&["events", "--json"]);
    let mut events = events.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let seen = events.stdout.take().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(seen));
    // The subscription is there when the first event comes: until then the machine is paused over and over.
    let (first, done) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        while let Some(Ok(line)) = lines.next() {
            let _ = first.send(());
            all.push(serde_json::from_str::<Value>(&line).unwrap());
        }
        all
    });
    let end = Instant::now() + Duration::from_secs(60);
    while done.try_recv().is_err() {
        assert!(Instant::now() < end, "no event");
        machine.ask(&["pause"]);
        machine.ask(&["resume"]);
    }
    // The first may have been that of going on.
    machine.ask(&["pause"]);
    machine.ask(&["resume"]);
    machine.ask(&["power-button"]);
    check(&machine.finish(), 0, "");
    let all = reader.join().unwrap();
    assert!(events.wait().unwrap().success());
    let states: Vec<&Value> = all.iter().filter(|event| event["event"] == "state").collect();
    assert!(states.iter().any(|event| event["state"] == "paused"), "{all:?}");
    assert_eq!(states.last().unwrap()["state"], "stopped");
    let last = all.last().unwrap();
    assert_eq!((&last["event"], &last["reason"]), (&"end".into(), &"power-off".into()));
}

#[test]
fn wrong_places_are_named() {
    let dir = TempDir::new().unwrap();
    let nowhere = dir.path().join("nowhere");
    let output = oxbow(&["ctl"]).arg(&nowhere).arg("status").output().unwrap();
    check(&output, 2, "no machine listens at");
    let guest = Guest::new(&[IDLE]);
    std::fs::write(&nowhere, "a file").unwrap();
    let output = guest.run(&["--control", nowhere.to_str().unwrap()]);
    check(&output, 2, "and no socket");
    check(&guest.run(&["--screen", "vnc"]), 2, "no screen to show");
    check(&guest.run(&["--screen", "opera"]), 2, "vnc[=ADDRESS[:PORT]]");
    let first = Machine::start(&mut guest.command(&[]));
    let socket = first.socket();
    check(
        &guest.run(&["--control", socket.to_str().unwrap()]),
        2,
        "another machine listens",
    );
    assert_eq!(first.json(&["status"])["state"], "running");
}

/// `vncdo` of the package vncdotool: in `PATH`, or where `OXBOW_VNCDO` says.
fn vncdo() -> Option<PathBuf> {
    let named = std::env::var_os("OXBOW_VNCDO").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = named.or_else(|| {
        std::env::split_paths(&path)
            .map(|dir| dir.join("vncdo"))
            .find(|file| file.is_file())
    });
    if found.is_none() {
        eprintln!("SKIPPED: vncdo is not in PATH; `pip install vncdotool` brings it");
    }
    found
}

#[test]
fn vnc_client_captures_what_the_screenshot_shows() {
    let Some(vncdo) = vncdo() else {
        return;
    };
    let secret = TempDir::new().unwrap();
    let password = secret.path().join("password");
    std::fs::write(&password, "oxen\n").unwrap();
    let screen = format!("vnc=127.0.0.1:0,password={}", password.display());
    let Some(machine) = Machine::pc(&["--screen", &screen, "--floppy", "none"]) else {
        return;
    };
    machine.wait_for("No bootable device");
    let disk = machine.dir.path().join("typewriter.img");
    typewriter(&disk);
    machine.ask(&["insert", "floppy0", disk.to_str().unwrap()]);
    machine.ask(&["reset"]);
    machine.wait_for("Booting from Floppy");
    std::thread::sleep(Duration::from_millis(500));
    let at = machine.json(&["status"])["screen"]["vnc"]
        .as_str()
        .unwrap()
        .replace(':', "::");
    let captured = machine.dir.path().join("captured.png");
    let vnc = |args: &[&str]| {
        let mut command = Command::new("timeout");
        command
            .args(["-s", "KILL", "240"])
            .arg(&vncdo)
            .args(["-s", &at, "-p", "oxen"])
            .args(args);
        assert!(command.stdin(Stdio::null()).status().unwrap().success());
    };
    vnc(&["type", "typed"]);
    machine.wait_for("typed");
    // The cursor blinks with the guest's time.
    machine.ask(&["pause"]);
    vnc(&["pause", "1", "capture", captured.to_str().unwrap()]);
    let shot = machine.dir.path().join("shot.png");
    machine.ask(&["screenshot", shot.to_str().unwrap()]);
    let (captured, shot) = (read_png(&captured), read_png(&shot));
    assert_eq!((captured.0, captured.1), (shot.0, shot.1));
    assert!(captured.2 == shot.2, "the pictures differ");
    machine.ask(&["quit"]);
    let output = machine.finish();
    check(&output, 0, "the screen is at 127.0.0.1:");
}

#[test]
fn doctor_says_what_works_here() {
    let output = oxbow(&["doctor", "--json"]).output().unwrap();
    check(&output, 0, "");
    let findings: Value = serde_json::from_slice(&output.stdout).unwrap();
    let find = |name: &str| {
        let all = findings.as_array().unwrap();
        all.iter().find(|finding| finding["name"] == name).unwrap().clone()
    };
    assert_eq!(find("interp")["health"], "good");
    assert_eq!(find("auto")["health"], "good");
    // KVM is taken where it is hardware; else `auto` says why not.
    let (auto, kvm) = (&find("auto")["detail"], &find("kvm"));
    assert_eq!(auto == "takes kvm", kvm["health"] == "good", "{auto} {kvm}");
    assert_eq!(
        auto.as_str().unwrap().contains("faster"),
        kvm["health"] == "slow",
        "{auto} {kvm}"
    );
    let output = oxbow(&["doctor"]).output().unwrap();
    check(&output, 0, "");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("engines\n"));
}
