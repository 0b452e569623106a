//! The control socket, with a machine of the test's own behind it: what clients get, and what they cannot do to the rest.

mod fake;

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use control::AttachedStatus;
use control::Client;
use control::ClientError;
use control::ControlError;
use control::ControlServer;
use control::ErrorKind;
use control::Event;
use control::MAX_REQUEST;
use control::Publisher;
use control::Refusal;
use control::Request;
use control::ScreenText;
use control::Status;
use control::Typed;
use fake::Fake;
use serde_json::Value;
use serde_json::json;
use tempfile::TempDir;

struct Bench {
    machine: Arc<Fake>,
    publisher: Publisher,
    server: Option<ControlServer>,
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let machine = Arc::new(Fake::default());
        let publisher = Publisher::default();
        let server = ControlServer::start(&dir.path().join("s"), machine.clone(), publisher.clone()).unwrap();
        Self {
            machine,
            publisher,
            server: Some(server),
            dir,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    fn client(&self) -> Client {
        Client::connect(&self.path()).unwrap()
    }

    /// A connection without our client, after the greeting.
    fn raw(&self) -> BufReader<UnixStream> {
        let mut stream = BufReader::new(UnixStream::connect(self.path()).unwrap());
        let greeting = line(&mut stream);
        assert_eq!(
            (&greeting["oxbow"], &greeting["version"]),
            (&json!("control"), &json!(1))
        );
        stream
    }
}

fn line(stream: &mut impl BufRead) -> Value {
    let mut text = String::new();
    stream.read_line(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> Refusal {
    match result {
        Err(ClientError::Refused(refusal)) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn socket_is_its_owners_alone_and_goes_with_the_server() {
    let mut bench = Bench::new();
    let mode = std::fs::metadata(bench.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    bench.server = None;
    assert!(!bench.path().exists());
}

#[test]
fn place_that_is_taken_is_refused_and_a_leftover_is_replaced() {
    let bench = Bench::new();
    let start = |path: &PathBuf| ControlServer::start(path, Arc::new(Fake::default()), Publisher::default());
    assert!(matches!(start(&bench.path()), Err(ControlError::InUse(_))));
    bench.client();
    let file = bench.dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(start(&file), Err(ControlError::NoSocket(_))));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let leftover = bench.dir.path().join("leftover");
    drop(UnixListener::bind(&leftover).unwrap());
    start(&leftover).unwrap();
    let long = bench.dir.path().join("x".repeat(200));
    assert!(matches!(start(&long), Err(ControlError::Listen { .. })));
}

#[test]
fn requests_do_what_they_say() {
    let bench = Bench::new();
    let mut client = bench.client();
    let status: Status = client.get(&Request::Status {}).unwrap();
    assert_eq!(status.state, "running");
    client.call(&Request::Pause {}).unwrap();
    let refusal = refused(client.call(&Request::Pause {}));
    assert_eq!(refusal.kind, ErrorKind::State);
    client.call(&Request::Resume {}).unwrap();
    client.call(&Request::PowerButton {}).unwrap();
    assert_eq!(refused(client.call(&Request::SleepButton {})).kind, ErrorKind::Absent);
    let insert = |file: &str| Request::Insert {
        drive: "floppy0".to_owned(),
        file: file.into(),
        read_only: true,
    };
    assert_eq!(refused(client.call(&insert("relative.img"))).kind, ErrorKind::Invalid);
    client.call(&insert("/a/disk.img")).unwrap();
    let inspect = |path: &str| Request::Inspect { path: path.to_owned() };
    assert_eq!(client.call(&inspect("pc/mode")).unwrap(), json!(3));
    assert_eq!(refused(client.call(&inspect("pc/none"))).kind, ErrorKind::Absent);
    let engine = Request::Engine {
        engine: "interp".to_owned(),
    };
    assert_eq!(client.call(&engine).unwrap(), json!({"engine": "interp"}));
    let done = bench.machine.done();
    let wanted = [
        "pause",
        "resume",
        "power",
        "insert floppy0 /a/disk.img true",
        "engine interp",
    ];
    assert_eq!(done, wanted);
}

#[test]
fn drives_are_attached_and_detached() {
    let bench = Bench::new();
    let mut client = bench.client();
    let attach = |file: &str| {
        let request = json!({"do": "attach", "kind": "disk", "file": file, "name": "extra"});
        serde_json::from_value::<Request>(request).unwrap()
    };
    assert_eq!(refused(client.call(&attach("relative.img"))).kind, ErrorKind::Invalid);
    let attached: AttachedStatus = client.get(&attach("/a/disk.img")).unwrap();
    assert_eq!((attached.name.as_str(), attached.place.as_str()), ("extra", "sata0"));
    let detach = |drive: &str, force, timeout| Request::Detach {
        drive: drive.to_owned(),
        force,
        timeout: Some(timeout),
    };
    client.call(&detach("extra", false, 60.0)).unwrap();
    let refusal = refused(client.call(&detach("held", false, 0.01)));
    assert_eq!(refusal.kind, ErrorKind::Timeout);
    assert!(refusal.message.contains("by force"), "{refusal}");
    client.call(&detach("held", true, 0.01)).unwrap();
    assert_eq!(
        refused(client.call(&detach("held", true, -1.0))).kind,
        ErrorKind::Invalid
    );
    let done = bench.machine.done();
    let wanted = [
        "attach disk Some(\"extra\")",
        "detach extra false",
        "detach held false",
        "detach held true",
    ];
    assert_eq!(done, wanted);
}

#[test]
fn cables_and_forwarded_ports_are_changed() {
    let bench = Bench::new();
    let mut client = bench.client();
    for request in [
        json!({"do": "link", "card": "nic0", "up": false}),
        json!({"do": "forward", "rule": "tcp::2222-:22"}),
        json!({"do": "forward", "rule": "tcp::2222-:22", "card": "nic1", "remove": true}),
    ] {
        client
            .call(&serde_json::from_value::<Request>(request).unwrap())
            .unwrap();
    }
    let wanted = [
        "link nic0 false",
        "forward None tcp::2222-:22 true",
        "forward Some(\"nic1\") tcp::2222-:22 false",
    ];
    assert_eq!(bench.machine.done(), wanted);
}

#[test]
fn screenshot_is_a_png_of_the_screen() {
    let bench = Bench::new();
    let (picture, file) = bench.client().screenshot().unwrap();
    assert_eq!((picture.width, picture.height), (fake::WIDTH, fake::HEIGHT));
    let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height), (fake::WIDTH, fake::HEIGHT));
    let shown: Vec<u8> = fake::picture()
        .pixels()
        .iter()
        .flat_map(|p| p.to_be_bytes()[1..].to_vec())
        .collect();
    assert_eq!(pixels, shown);
}

#[test]
fn screen_text_comes_at_once_or_when_it_shows_something() {
    let bench = Bench::new();
    let mut client = bench.client();
    let text = |wait_for: Option<&str>, timeout| Request::ScreenText {
        wait_for: wait_for.map(str::to_owned),
        timeout: Some(timeout),
    };
    bench.machine.show(None);
    assert_eq!(refused(client.call(&text(None, 1.0))).kind, ErrorKind::State);
    assert_eq!(
        refused(client.call(&text(Some("login:"), 0.1))).kind,
        ErrorKind::Timeout
    );
    assert_eq!(refused(client.call(&text(Some("x"), -1.0))).kind, ErrorKind::Invalid);
    let machine = Arc::clone(&bench.machine);
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(120));
        machine.show(Some("web login:\n"));
    });
    let shown: ScreenText = client.get(&text(Some("login:"), 60.0)).unwrap();
    assert_eq!(shown.text, "web login:\n");
    later.join().unwrap();
}

#[test]
fn typing_waits_for_the_guest_and_two_typists_are_not_mixed() {
    let bench = Bench::new();
    let typing = |text: &str| Request::Type {
        text: text.to_owned(),
        layout: None,
    };
    let mut first = bench.client();
    let long = "abc".repeat(10);
    let other = std::thread::spawn({
        let (mut client, request) = (bench.client(), typing(&"x".repeat(20)));
        move || client.get::<Typed>(&request).unwrap()
    });
    let typed: Typed = first.get(&typing(&long)).unwrap();
    assert_eq!((typed.typed, other.join().unwrap().typed), (30, 20));
    let keys = bench.machine.pressed();
    let at = keys.find('x').unwrap();
    assert_eq!(keys.get(at..at + 20), Some(&*"x".repeat(20)), "{keys}");
    assert_eq!(keys.replace('x', ""), long);
    assert!(bench.machine.most_waiting() <= 2, "a key at a time");
    let refusal = refused(first.call(&typing("é")));
    assert_eq!(refusal.kind, ErrorKind::Invalid);
    let chord = |keys: &str| Request::Key {
        keys: vec![keys.to_owned()],
        hold: 0,
    };
    assert_eq!(refused(first.call(&chord("ctrl-hyper"))).kind, ErrorKind::Invalid);
    first.call(&chord("a-b")).unwrap();
    assert!(bench.machine.pressed().ends_with("ab"));
}

#[test]
fn typing_ends_when_the_machine_does() {
    let bench = Bench::new();
    bench.machine.take_no_keys();
    let machine = Arc::clone(&bench.machine);
    let later = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        machine.end();
    });
    let request = Request::Type {
        text: "abc".to_owned(),
        layout: None,
    };
    let refusal = refused(bench.client().call(&request));
    assert_eq!(refusal.kind, ErrorKind::State);
    assert!(refusal.message.contains("1 of 3"), "{refusal}");
    later.join().unwrap();
}

#[test]
fn malformed_lines_are_answered_and_the_connection_goes_on() {
    let bench = Bench::new();
    let mut stream = bench.raw();
    for wrong in ["hello\n", "{}\n", "[1,2]\n", "{\"id\":4,\"do\":\"fly\"}\n", "\u{0}\n"] {
        stream.get_mut().write_all(wrong.as_bytes()).unwrap();
        let reply = line(&mut stream);
        assert_eq!(reply["error"]["kind"], "malformed", "{wrong}");
    }
    stream
        .get_mut()
        .write_all(b"\n\r\n{\"id\":\"a\",\"do\":\"status\"}\r\n")
        .unwrap();
    let reply = line(&mut stream);
    assert_eq!((&reply["id"], &reply["ok"]["state"]), (&json!("a"), &json!("running")));
}

#[test]
fn last_line_may_lack_its_end() {
    let bench = Bench::new();
    let mut stream = bench.raw();
    stream.get_mut().write_all(b"{\"do\":\"status\"}").unwrap();
    stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(line(&mut stream)["ok"]["state"], "running");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn oversized_request_is_refused_and_ends_its_connection_only() {
    let bench = Bench::new();
    let mut stream = bench.raw();
    let mut writer = stream.get_ref().try_clone().unwrap();
    let flood = std::thread::spawn(move || {
        let part = vec![b'x'; MAX_REQUEST];
        // The server hangs up at some time.
        while writer.write_all(&part).is_ok() {}
    });
    assert_eq!(line(&mut stream)["error"]["kind"], "too-long");
    // Then its end, or a reset because of what was not read.
    match stream.read(&mut [0]) {
        Ok(n) => assert_eq!(n, 0),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
    drop(stream);
    flood.join().unwrap();
    bench.client().call(&Request::Status {}).unwrap();
}

#[test]
fn clients_that_do_not_read_hold_up_nobody() {
    let mut bench = Bench::new();
    let lazy: Vec<BufReader<UnixStream>> = (0..8).map(|_| bench.raw()).collect();
    for stream in &lazy {
        let mut stream = stream.get_ref();
        stream.write_all(b"{\"do\":\"subscribe\"}\n").unwrap();
        // Far more replies than any buffer takes.
        stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
        while stream.write_all(b"{\"do\":\"screenshot\"}\n").is_ok() {}
    }
    let start = Instant::now();
    for _ in 0..100_000 {
        bench.publisher.publish(&Event::Reset { by: "guest".to_owned() });
    }
    bench.client().call(&Request::Status {}).unwrap();
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
    bench.server = None;
    assert!(
        start.elapsed() < Duration::from_secs(90),
        "the end does not wait for them"
    );
}

#[test]
fn events_arrive_in_order_and_the_last_one_before_the_end() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    client.call(&Request::Subscribe {}).unwrap();
    client.call(&Request::Subscribe {}).unwrap();
    let events = [
        Event::State {
            state: "paused".to_owned(),
        },
        Event::Medium {
            drive: "floppy0".to_owned(),
            file: None,
        },
        Event::End {
            reason: "power-off".to_owned(),
            detail: None,
        },
    ];
    for event in &events {
        bench.publisher.publish(event);
    }
    // Those that come before a reply are not lost.
    client.call(&Request::Status {}).unwrap();
    bench.server = None;
    let seen: Vec<Event> = std::iter::from_fn(|| client.next_event().unwrap()).collect();
    assert_eq!(seen, events);
    assert!(matches!(client.call(&Request::Status {}), Err(ClientError::Ended)));
}

#[test]
fn quit_is_answered_before_it_is_done() {
    let bench = Bench::new();
    bench.client().call(&Request::Quit {}).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while bench.machine.done() != ["quit"] {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn one_client_too_many_is_told_so() {
    let bench = Bench::new();
    let mut clients: Vec<Client> = (0..16).map(|_| bench.client()).collect();
    assert_eq!(refused(Client::connect(&bench.path())).kind, ErrorKind::Busy);
    clients.pop();
    let end = Instant::now() + Duration::from_secs(60);
    while Client::connect(&bench.path()).is_err() {
        assert!(Instant::now() < end, "the place becomes free");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn what_is_no_control_socket_is_recognized() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("other");
    let missing = Client::connect(&path).unwrap_err();
    assert!(matches!(missing, ClientError::Connect { .. }));
    let listener = UnixListener::bind(&path).unwrap();
    let other = std::thread::spawn(move || {
        for greeting in [
            "220 mail ready\n",
            "{\"oxbow\":\"control\",\"version\":99,\"program\":\"9\"}\n",
        ] {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(greeting.as_bytes()).unwrap();
        }
    });
    for _ in 0..2 {
        assert!(matches!(Client::connect(&path), Err(ClientError::Protocol { .. })));
    }
    other.join().unwrap();
}
