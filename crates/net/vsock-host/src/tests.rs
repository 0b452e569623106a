//! Tests with sockets of this host, and a device that does what each test says.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use device_model::Flow;
use device_model::StreamHost;
use rustix::fd::OwnedFd;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketType;
use rustix::net::sockopt::Timeout;

use crate::STREAMS;
use crate::VsockError;
use crate::VsockHost;
use crate::socket::MESSAGE;
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
    assert_eq!(bench.host.table.receive(flow, 2).0, b"he");
    assert_eq!(bench.host.table.receive(flow, 100).0, b"llo");
    program.shutdown(Shutdown::Write).unwrap();
    wait(|| bench.host.table.status(flow)?.ended.then_some(()));
    // The other direction is still there.
    assert!(!bench.host.table.status(flow).unwrap().deaf);
    bench.host.table.send(flow, b"bye", false);
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
    assert_eq!(bench.host.table.receive(flow, 9).0, b"abc");
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
    let flow = Flow::stream(1234, 9);
    assert!(bench.host.table.connect(flow));
    assert!(!bench.host.table.connect(flow));
    let (mut program, _) = listener.accept().unwrap();
    assert_eq!(wait(|| bench.host.table.changed()), flow);
    assert!(bench.host.table.status(flow).unwrap().open);
    bench.host.table.send(flow, b"x", false);
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
    bench.host.table.send(flow, &[0; 1000], false);
    assert_eq!(bench.host.table.status(flow).unwrap().delivered, 1001);
}

#[test]
fn port_without_a_program_is_refused() {
    let bench = Bench::new();
    let flow = Flow::stream(4, 9);
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
        got += bench.host.table.receive(flow, 1000).0.len();
        (got == sent).then_some(())
    });
    for _ in 0..1000 {
        bench.host.table.send(flow, &chunk, false);
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
        bench.host.table.send(flow, piece, false);
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
        assert_eq!(bench.host.table.receive(*flow, 8).0, number.to_le_bytes());
    }
    bench.host.table.reset();
    for (program, _) in &mut pairs {
        assert_eq!(program.read(&mut [0]).unwrap(), 0);
    }
    wait(|| bench.host.table.with(|inner| (inner.sockets == 0).then_some(())));
    bench.host.table.with(|inner| inner.sockets = STREAMS);
    assert!(!bench.host.table.connect(Flow::stream(1, 1)));
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
    let packets = bench.packets();
    assert!(packets.exists());
    let Bench { host, path, dir: _dir } = bench;
    drop(host);
    assert!(!path.exists() && !packets.exists());
    // A socket that a process has left behind is in nobody's way.
    drop(UnixListener::bind(&path).unwrap());
    VsockHost::listen(&path).unwrap();
}

/// A program's socket of messages, which waits for what it is sent.
struct Packets(OwnedFd);

impl Packets {
    fn new() -> Self {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT)).unwrap();
        Self(socket)
    }

    fn connect(path: &Path) -> Self {
        let packets = Self::new();
        rustix::net::connect(&packets.0, &SocketAddrUnix::new(path).unwrap()).unwrap();
        packets
    }

    fn say(&self, bytes: &[u8]) {
        assert_eq!(
            rustix::net::send(&self.0, bytes, SendFlags::NOSIGNAL).unwrap(),
            bytes.len()
        );
    }

    fn hear(&self) -> Vec<u8> {
        let mut bytes = vec![0; MESSAGE];
        let (_, len) = rustix::net::recv(&self.0, &mut bytes, RecvFlags::empty()).unwrap();
        bytes.truncate(len);
        bytes
    }
}

impl Bench {
    fn packets(&self) -> PathBuf {
        self.dir.path().join("v.sock.seqpacket")
    }

    /// A program and a flow of messages that both have.
    fn packet_pair(&self) -> (Packets, Flow) {
        let program = Packets::connect(&self.packets());
        program.say(b"CONNECT 52\n");
        let flow = self.offered();
        assert_eq!(flow, Flow::packets(flow.host, 52));
        self.host.table.accept(flow);
        assert_eq!(program.hear(), format!("OK {}\n", flow.host).as_bytes());
        (program, flow)
    }
}

#[test]
fn messages_arrive_as_they_were_sent() {
    let bench = Bench::new();
    let (program, flow) = bench.packet_pair();
    let table = &bench.host.table;
    program.say(b"one");
    program.say(b"another");
    wait(|| (table.status(flow)?.readable == 10).then_some(()));
    assert_eq!(table.status(flow).unwrap().message, 3);
    assert_eq!(table.receive(flow, 2), (b"on".to_vec(), false));
    assert_eq!(table.receive(flow, 100), (b"e".to_vec(), true));
    assert_eq!(table.receive(flow, 100), (b"another".to_vec(), true));
    table.send(flow, b"in ", false);
    table.send(flow, b"parts", true);
    table.send(flow, b"", true);
    table.send(flow, &[7; 100_000], true);
    table.send(flow, b"never ended", false);
    assert_eq!(program.hear(), b"in parts");
    assert_eq!(program.hear(), [7; 100_000]);
    wait(|| (table.status(flow)?.delivered == 100_008).then_some(()));
    // What has no end is no message, and is not delivered.
    table.close(flow, true);
    assert_eq!(program.hear(), b"");
}

#[test]
fn messages_that_were_sent_are_delivered_after_the_end() {
    let bench = Bench::new();
    let (program, flow) = bench.packet_pair();
    for number in 0..2000u32 {
        bench.host.table.send(flow, &number.to_le_bytes().repeat(50), true);
    }
    bench.host.table.close(flow, true);
    for number in 0..2000u32 {
        assert_eq!(program.hear(), number.to_le_bytes().repeat(50));
    }
    assert_eq!(program.hear(), b"");
    wait(|| bench.host.table.with(|inner| (inner.sockets == 0).then_some(())));
}

#[test]
fn many_messages_hold_back_and_lose_nothing() {
    let bench = Bench::new();
    let (program, flow) = bench.packet_pair();
    let sender = thread::spawn(move || {
        for number in 0..5000u32 {
            program.say(&number.to_le_bytes().repeat(1 + number as usize % 100));
        }
        program
    });
    for number in 0..5000u32 {
        let expected = number.to_le_bytes().repeat(1 + number as usize % 100);
        wait(|| (bench.host.table.status(flow)?.message > 0).then_some(()));
        assert!(bench.host.table.status(flow).unwrap().readable <= FROM_HOST + MESSAGE);
        assert_eq!(bench.host.table.receive(flow, 1000), (expected, true));
    }
    drop(sender.join().unwrap());
    wait(|| bench.host.table.status(flow)?.ended.then_some(()));
}

#[test]
fn message_that_is_too_long_ends_its_flow() {
    let bench = Bench::new();
    let (program, flow) = bench.packet_pair();
    rustix::net::sockopt::set_socket_send_buffer_size(&program.0, 1 << 20).unwrap();
    // Where the host does not let programs send so much, there is nothing to be seen.
    if rustix::net::send(&program.0, &vec![1; MESSAGE + 1], SendFlags::NOSIGNAL).is_err() {
        eprintln!("skipped: this host's sockets send no message of {} bytes", MESSAGE + 1);
        return;
    }
    assert_eq!(wait(|| bench.host.table.changed()), flow);
    wait(|| bench.host.table.status(flow).is_none().then_some(()));
    assert_eq!(program.hear(), b"");
}

#[test]
fn wish_for_messages_is_a_message_of_its_own() {
    let bench = Bench::new();
    for wish in ["CONNECT 1\nmore", "GET /\n", &"CONNECT 1".repeat(9)] {
        let program = Packets::connect(&bench.packets());
        program.say(wish.as_bytes());
        assert_eq!(program.hear(), b"", "{wish:?}");
    }
    assert_eq!(bench.host.table.offered(), None);
    let program = Packets::connect(&bench.packets());
    program.say(b"CONNECT 7");
    assert_eq!(bench.offered().guest, 7);
}

#[test]
fn guest_reaches_a_program_of_its_own_type_only() {
    let bench = Bench::new();
    let path = bench.dir.path().join("v.sock_1234");
    let listener = Packets::new();
    rustix::net::bind(&listener.0, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&listener.0, 8).unwrap();
    let flow = Flow::packets(1234, 9);
    assert!(bench.host.table.connect(flow));
    let program = Packets(rustix::net::accept(&listener.0).unwrap());
    assert_eq!(wait(|| bench.host.table.changed()), flow);
    bench.host.table.send(flow, b"x", true);
    assert_eq!(program.hear(), b"x");
    // The same ports, of bytes.
    let stream = Flow::stream(1234, 9);
    assert!(bench.host.table.connect(stream));
    wait(|| (bench.host.table.changed() == Some(stream)).then_some(()));
    assert_eq!(bench.host.table.status(stream), None);
    assert!(bench.host.table.status(flow).is_some());
}
