//! Tests with sockets of this host, and a device that does what each test says.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use device_model::Flow;
use device_model::StreamHost;

use crate::STREAMS;
use crate::VsockError;
use crate::VsockHost;
use crate::table::FROM_HOST;

const LIMIT: Duration = Duration::from_secs(20);

struct Bench {
    host: VsockHost,
    path: PathBuf,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v.sock");
        Self {
            host: VsockHost::listen(&path).unwrap(),
            path,
            dir,
        }
    }

    fn ask(&self, port: u32) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        writeln!(stream, "CONNECT {port}").unwrap();
        stream
    }

    fn offered(&self) -> Flow {
        wait(|| self.host.table.offered())
    }

    /// A program and a stream that both have.
    fn pair(&self) -> (UnixStream, Flow) {
        let mut program = self.ask(52);
        let flow = self.offered();
        assert_eq!(flow.guest, 52);
        self.host.table.accept(flow);
        assert_eq!(line(&mut program), format!("OK {}", flow.host));
        (program, flow)
    }
}

fn wait<T>(mut ready: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < end, "nothing comes");
        thread::sleep(Duration::from_millis(1));
    }
}

fn line(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        if byte == [b'\n'] {
            return String::from_utf8(text).unwrap();
        }
        text.push(byte[0]);
    }
}

#[test]
fn program_reaches_the_guest_and_both_end_in_turn() {
    let bench = Bench::new();
    let (mut program, flow) = bench.pair();
    program.write_all(b"hello").unwrap();
    wait(|| (bench.host.table.status(flow)?.readable == 5).then_some(()));
    assert_eq!(bench.host.table.changed(), Some(flow));
    assert_eq!(bench.host.table.receive(flow, 2), b"he");
    assert_eq!(bench.host.table.receive(flow, 100), b"llo");
    program.shutdown(Shutdown::Write).unwrap();
    wait(|| bench.host.table.status(flow)?.ended.then_some(()));
    // The other direction is still there.
    assert!(!bench.host.table.status(flow).unwrap().deaf);
    bench.host.table.send(flow, b"bye");
    bench.host.table.shut_down(flow, true, false);
    let mut said = String::new();
    program.read_to_string(&mut said).unwrap();
    assert_eq!(said, "bye");
    assert_eq!(bench.host.table.status(flow).unwrap().delivered, 3);
}

#[test]
fn what_comes_behind_the_wish_is_not_lost() {
    let bench = Bench::new();
    let mut program = UnixStream::connect(&bench.path).unwrap();
    program.write_all(b"CONN").unwrap();
    thread::sleep(Duration::from_millis(5));
    program.write_all(b"ECT 7\nabc").unwrap();
    let flow = bench.offered();
    bench.host.table.accept(flow);
    wait(|| (bench.host.table.status(flow)?.readable == 3).then_some(()));
    assert_eq!(bench.host.table.receive(flow, 9), b"abc");
}

#[test]
fn who_asks_for_nothing_is_turned_away() {
    let bench = Bench::new();
    for wish in [
        "GET / HTTP/1.0\r\n\r\n",
        "CONNECT 1 2\n",
        "CONNECT 00000000000000000000000000000000001\n",
    ] {
        let mut program = UnixStream::connect(&bench.path).unwrap();
        program.write_all(wish.as_bytes()).unwrap();
        // Unread bytes make an end a reset.
        assert!(!matches!(program.read(&mut [0; 8]), Ok(1..)), "{wish:?}");
    }
    assert_eq!(bench.host.table.offered(), None);
}

#[test]
fn program_that_gives_up_takes_its_offer_back() {
    let bench = Bench::new();
    let program = bench.ask(1);
    wait(|| bench.host.table.with(|inner| (inner.streams.len() == 1).then_some(())));
    drop(program);
    wait(|| bench.host.table.with(|inner| (inner.sockets == 0).then_some(())));
    assert_eq!(bench.host.table.offered(), None);
    // One that the device has seen already is told of.
    let program = bench.ask(1);
    let flow = bench.offered();
    drop(program);
    assert_eq!(wait(|| bench.host.table.changed()), flow);
    assert_eq!(bench.host.table.status(flow), None);
}

#[test]
fn guest_reaches_the_program_of_a_port() {
    let bench = Bench::new();
    let listener = UnixListener::bind(bench.dir.path().join("v.sock_1234")).unwrap();
    let flow = Flow { host: 1234, guest: 9 };
    assert!(bench.host.table.connect(flow));
    assert!(!bench.host.table.connect(flow));
    let (mut program, _) = listener.accept().unwrap();
    assert_eq!(wait(|| bench.host.table.changed()), flow);
    assert!(bench.host.table.status(flow).unwrap().open);
    bench.host.table.send(flow, b"x");
    program.read_exact(&mut [0]).unwrap();
    drop(program);
    wait(|| {
        bench
            .host
            .table
            .status(flow)
            .filter(|status| status.ended && status.deaf)
    });
    // What is sent to nobody does not pile up.
    bench.host.table.send(flow, &[0; 1000]);
    assert_eq!(bench.host.table.status(flow).unwrap().delivered, 1001);
}

#[test]
fn port_without_a_program_is_refused() {
    let bench = Bench::new();
    let flow = Flow { host: 4, guest: 9 };
    assert!(bench.host.table.connect(flow));
    assert_eq!(wait(|| bench.host.table.changed()), flow);
    assert_eq!(bench.host.table.status(flow), None);
}

#[test]
fn both_sides_hold_back() {
    let bench = Bench::new();
    let (mut program, flow) = bench.pair();
    program.set_nonblocking(true).unwrap();
    let chunk = [7; 4096];
    let mut sent = 0;
    wait(|| match program.write(&chunk) {
        Ok(len) => {
            sent += len;
            None
        }
        Err(_) => (bench.host.table.status(flow)?.readable == FROM_HOST).then_some(()),
    });
    // Nobody takes more until the device does.
    thread::sleep(Duration::from_millis(20));
    assert_eq!(bench.host.table.status(flow).unwrap().readable, FROM_HOST);
    let mut got = 0;
    wait(|| {
        got += bench.host.table.receive(flow, 1000).len();
        (got == sent).then_some(())
    });
    for _ in 0..1000 {
        bench.host.table.send(flow, &chunk);
    }
    thread::sleep(Duration::from_millis(20));
    let delivered = bench.host.table.status(flow).unwrap().delivered;
    assert!(delivered < 4096 * 1000, "{delivered}");
    program.set_nonblocking(false).unwrap();
    let mut bytes = vec![0; 4096 * 1000];
    program.read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
    wait(|| (bench.host.table.status(flow)?.delivered == 4096 * 1000).then_some(()));
}

#[test]
fn what_was_sent_is_delivered_after_the_end() {
    let bench = Bench::new();
    let (mut program, flow) = bench.pair();
    let bytes: Vec<u8> = (0..600_000u32).map(|i| (i % 251) as u8).collect();
    for piece in bytes.chunks(5000) {
        bench.host.table.send(flow, piece);
    }
    bench.host.table.close(flow, true);
    assert_eq!(bench.host.table.status(flow), None);
    let mut got = Vec::new();
    program.read_to_end(&mut got).unwrap();
    assert!(got == bytes);
    wait(|| bench.host.table.with(|inner| (inner.sockets == 0).then_some(())));
}

#[test]
fn hundreds_at_once_and_no_more_than_there_may_be() {
    let bench = Bench::new();
    let mut pairs: Vec<_> = (0..300).map(|_| bench.pair()).collect();
    for (number, (program, _)) in pairs.iter_mut().enumerate() {
        program.write_all(&number.to_le_bytes()).unwrap();
    }
    for (number, (_, flow)) in pairs.iter().enumerate() {
        wait(|| (bench.host.table.status(*flow)?.readable == 8).then_some(()));
        assert_eq!(bench.host.table.receive(*flow, 8), number.to_le_bytes());
    }
    bench.host.table.reset();
    for (program, _) in &mut pairs {
        assert_eq!(program.read(&mut [0]).unwrap(), 0);
    }
    wait(|| bench.host.table.with(|inner| (inner.sockets == 0).then_some(())));
    bench.host.table.with(|inner| inner.sockets = STREAMS);
    assert!(!bench.host.table.connect(Flow { host: 1, guest: 1 }));
}

#[test]
fn path_is_ours_alone_and_goes_with_us() {
    let bench = Bench::new();
    assert!(matches!(VsockHost::listen(&bench.path), Err(VsockError::InUse(_))));
    let file = bench.dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    assert!(matches!(VsockHost::listen(&file), Err(VsockError::NoSocket(_))));
    let long = bench.dir.path().join("x".repeat(100));
    assert!(matches!(VsockHost::listen(&long), Err(VsockError::Long(_))));
    let Bench { host, path, dir: _dir } = bench;
    drop(host);
    assert!(!path.exists());
    // A socket that a process has left behind is in nobody's way.
    drop(UnixListener::bind(&path).unwrap());
    VsockHost::listen(&path).unwrap();
}
