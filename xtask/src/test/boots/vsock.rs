//! Sockets between the guest's programs and the host's, by the stock driver and `socat`.

use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::ensure;
use rustix::fd::OwnedFd;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketType;
use rustix::net::sockopt::Timeout;

use super::Case;
use super::Lab;
use super::cases::no_complaints;
use super::cases::says;
use super::ctl::Ctl;
use super::ctl::with_user;
use crate::process;

/// How long the guest may take to say or do something.
const LIMIT: Duration = Duration::from_secs(300);
/// The same of its screen, in seconds; nothing is awaited there.
const SCREEN: &str = "300";
/// Bytes that go one way and back.
const SIZE: usize = 100 << 20;
/// Connections at a time.
const MANY: u32 = 100;

/// Fetches a file from the host and sends it back, serves it to the host, opens many connections at a time, and is an echo
/// that the host opens many to. The kernel's command line has room for no double quotes.
const SCRIPT: &str = "for m in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio vsock \
                      vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do insmod /lib/modules/$m.ko; done; \
                      s=/usr/bin/socat; cd /tmp; \
                      $s -u VSOCK-CONNECT:2:1234 CREATE:file; echo @hash $(sha256sum <file); \
                      $s -u OPEN:file VSOCK-CONNECT:2:1235; echo @sent-$?; \
                      $s VSOCK-CONNECT:2:1 - </dev/null 2>/dev/null; echo @refused-$?; \
                      n=0; while [ $n -lt 100 ]; do \
                      (echo $n | $s -t 60 - VSOCK-CONNECT:2:1236 >answer$n; echo done >>answers) & n=$((n+1)); done; wait; \
                      n=0; good=0; while [ $n -lt 100 ]; do \
                      [ x$(cat answer$n) = xanswer-$n ] && good=$((good+1)); n=$((n+1)); done; echo @answered $good; \
                      $s -u OPEN:file VSOCK-LISTEN:52 & $s VSOCK-LISTEN:53,fork PIPE & \
                      sleep 1; echo @listening; $s VSOCK-LISTEN:54 -; echo @end";

/// Sends messages of 20000 bytes and a shorter one to the host, is refused a stream there, and says how long the messages are
/// that a program of the host sends. Addresses are what is behind the family in `sockaddr_vm`; 5 is SOCK_SEQPACKET.
const MESSAGES_SCRIPT: &str = "for m in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio vsock \
     vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport; do insmod /lib/modules/$m.ko; done; \
     s=/usr/bin/socat; cd /tmp; head -c 70000 /dev/urandom >file; \
     $s -u -b 20000 OPEN:file SOCKET-CONNECT:40:0:x0000140500000200000000000000,type=5; echo @sent-$?; \
     $s VSOCK-CONNECT:2:1300 - </dev/null 2>/dev/null; echo @other-$?; echo @hash $(sha256sum <file); \
     $s -v -b 262144 SOCKET-LISTEN:40:0:x00003c000000ffffffff00000000,type=5 EXEC:cat 2>said; \
     echo @lengths $(grep -a -o '> 2[^=]*length=[0-9]*' said | grep -o length=[0-9]*)";
/// Lengths of what a program of the host sends, and gets back.
const LENGTHS: [usize; 4] = [10, 5000, 100_000, 1];

pub(super) const CASES: [Case; 4] = [
    Case {
        name: "virtio_sockets_reach_both_ways_on_the_microvm",
        check: on_the_microvm,
        extra: false,
    },
    Case {
        name: "virtio_sockets_reach_both_ways_on_the_pc",
        check: on_the_pc,
        extra: false,
    },
    Case {
        name: "virtio_sockets_carry_messages_on_the_microvm",
        check: messages_on_the_microvm,
        extra: false,
    },
    Case {
        name: "virtio_sockets_carry_messages_on_the_q35",
        check: messages_on_the_q35,
        extra: false,
    },
];

/// What the host's programs found.
struct Found {
    listeners: Vec<UnixListener>,
    sent_back: mpsc::Receiver<Vec<u8>>,
}

/// The programs that the guest connects to.
fn programs(socket: &Path, file: Vec<u8>) -> anyhow::Result<Found> {
    let listen = |port: u32| {
        let path = format!("{}_{port}", socket.display());
        UnixListener::bind(&path).with_context(|| format!("cannot listen at {path}"))
    };
    let listeners = vec![listen(1234)?, listen(1235)?, listen(1236)?];
    let (sender, sent_back) = mpsc::channel();
    let clones = listeners
        .iter()
        .map(UnixListener::try_clone)
        .collect::<Result<Vec<_>, _>>()?;
    let mut clones = clones.into_iter();
    if let (Some(gives), Some(takes), Some(answers)) = (clones.next(), clones.next(), clones.next()) {
        thread::spawn(move || {
            if let Ok((mut stream, _)) = gives.accept() {
                let _ = stream.write_all(&file);
            }
        });
        thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Ok((mut stream, _)) = takes.accept() {
                let _ = stream.read_to_end(&mut bytes);
            }
            let _ = sender.send(bytes);
        });
        thread::spawn(move || answer_together(&answers));
    }
    Ok(Found { listeners, sent_back })
}

/// Answers when all are there: each gets back what it says.
fn answer_together(listener: &UnixListener) {
    let streams: Vec<UnixStream> = (0..MANY).filter_map(|_| Some(listener.accept().ok()?.0)).collect();
    for mut stream in streams {
        let mut said = String::new();
        let _ = stream.read_to_string(&mut said);
        let _ = write!(stream, "answer-{}", said.trim());
    }
}

/// Connects to a port of the guest.
fn connect(socket: &Path, port: u32) -> anyhow::Result<UnixStream> {
    let end = Instant::now() + LIMIT;
    loop {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        writeln!(stream, "CONNECT {port}")?;
        let (mut line, mut byte) = (Vec::new(), [0]);
        while matches!(stream.read(&mut byte), Ok(1)) && byte != [b'\n'] {
            line.extend(byte);
        }
        if line.starts_with(b"OK ") {
            return Ok(stream);
        }
        ensure!(Instant::now() < end, "port {port} of the guest is not reached");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Reads what the guest serves, and speaks with many of its programs at a time.
fn visit(socket: &Path, file: &[u8]) -> anyhow::Result<()> {
    let mut bytes = Vec::new();
    connect(socket, 52)?.read_to_end(&mut bytes)?;
    ensure!(bytes == file, "the guest serves {} other bytes", bytes.len());
    let mut streams = Vec::new();
    for number in 0..MANY {
        let mut stream = connect(socket, 53)?;
        write!(stream, "echo-{number}")?;
        streams.push(stream);
    }
    for (number, mut stream) in streams.into_iter().enumerate() {
        let expected = format!("echo-{number}");
        let mut said = vec![0; expected.len()];
        stream.read_exact(&mut said)?;
        ensure!(said == expected.as_bytes(), "{number} hears something else");
        // The guest's program ends once it is told that nothing follows.
        stream.shutdown(Shutdown::Write)?;
        ensure!(stream.read(&mut said)? == 0, "{number} does not end");
    }
    connect(socket, 54).map(drop)
}

fn messages_on_the_microvm(lab: &Lab) -> anyhow::Result<()> {
    messages_work(lab, "microvm")
}

fn messages_on_the_q35(lab: &Lab) -> anyhow::Result<()> {
    messages_work(lab, "q35")
}

/// A socket of messages that does not wait for ever.
fn packets() -> anyhow::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None)?;
    rustix::net::sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
    Ok(socket)
}

/// The next message; none at the end.
fn message(socket: &OwnedFd) -> anyhow::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; 256 << 10];
    let (_, len) = rustix::net::recv(socket, &mut bytes, RecvFlags::empty())?;
    bytes.truncate(len);
    Ok((len > 0).then_some(bytes))
}

/// Connects to a port of the guest, for messages.
fn connect_packets(socket: &Path, port: u32) -> anyhow::Result<OwnedFd> {
    let end = Instant::now() + LIMIT;
    loop {
        let packets = packets()?;
        rustix::net::connect(&packets, &SocketAddrUnix::new(socket)?)?;
        rustix::net::send(&packets, format!("CONNECT {port}").as_bytes(), SendFlags::NOSIGNAL)?;
        if message(&packets)?.is_some_and(|answer| answer.starts_with(b"OK ")) {
            return Ok(packets);
        }
        ensure!(Instant::now() < end, "port {port} of the guest is not reached");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Takes what the guest sends, and lets it send back what it is sent; returns the former's hash.
fn exchange(dir: &Path, socket: &Path, listener: &OwnedFd) -> anyhow::Result<String> {
    let program = rustix::net::accept(listener)?;
    let (mut lengths, mut bytes) = (Vec::new(), Vec::new());
    while let Some(message) = message(&program)? {
        lengths.push(message.len());
        bytes.extend(message);
    }
    ensure!(
        lengths == [20_000, 20_000, 20_000, 10_000],
        "the guest's messages are {lengths:?} long"
    );
    fs::write(dir.join("file"), &bytes)?;
    let program = connect_packets(&socket.with_extension("sock.seqpacket"), 60)?;
    for len in LENGTHS {
        rustix::net::send(&program, &vec![7; len], SendFlags::NOSIGNAL)?;
    }
    rustix::net::shutdown(&program, rustix::net::Shutdown::Write)?;
    let mut back = 0;
    while let Some(message) = message(&program)? {
        ensure!(message.iter().all(|byte| *byte == 7), "something else comes back");
        back += message.len();
    }
    ensure!(back == LENGTHS.iter().sum::<usize>(), "{back} bytes come back");
    let hash = process::output(Command::new("sha256sum").arg(dir.join("file")))?;
    Ok(hash.split_whitespace().next().context("no hash")?.to_owned())
}

fn messages_work(lab: &Lab, machine: &str) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("oxbow-packets-{machine}-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let socket = dir.join("v.sock");
    let vsock = format!("cid=3,socket={}", socket.display());
    let boot = lab.commands("tools", MESSAGES_SCRIPT)?;
    let boot = boot.with(&["--machine", machine, "--vsock", &vsock]);
    let listener = packets()?;
    let port = format!("{}_1300", socket.display());
    rustix::net::bind(&listener, &SocketAddrUnix::new(port.as_str())?)?;
    rustix::net::listen(&listener, 8)?;
    let hash = OnceLock::new();
    let user = |_: &Ctl<'_>| {
        let _ = hash.set(exchange(&dir, &socket, &listener)?);
        Ok(())
    };
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        for part in ["@sent-0", "@other-1", "length=10 length=5000 length=100000 length=1"] {
            says(seen, part)?;
        }
        says(seen, &format!("@hash {}", hash.get().context("nothing was exchanged")?))
    })?;
    fs::remove_dir_all(&dir)?;
    Ok(())
}

fn on_the_microvm(lab: &Lab) -> anyhow::Result<()> {
    sockets_work(lab, "microvm")
}

fn on_the_pc(lab: &Lab) -> anyhow::Result<()> {
    sockets_work(lab, "pc")
}

fn sockets_work(lab: &Lab, machine: &str) -> anyhow::Result<()> {
    let dir = std::env::temp_dir().join(format!("oxbow-vsock-{machine}-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let mut file = vec![0; SIZE];
    fs::File::open("/dev/urandom")?.read_exact(&mut file)?;
    fs::write(dir.join("file"), &file)?;
    let hash = process::output(Command::new("sha256sum").arg(dir.join("file")))?;
    let hash = hash.split_whitespace().next().context("no hash")?.to_owned();
    let socket = dir.join("v.sock");
    let found = programs(&socket, file.clone())?;
    let vsock = format!("cid=3,socket={}", socket.display());
    let boot = lab.commands("tools", SCRIPT)?;
    let boot = boot.with(&["--machine", machine, "--memory", "1G", "--vsock", &vsock]);
    let told = boot.told();
    let user = |_: &Ctl<'_>| {
        told.wait_for_line("@listening", &mut 0, LIMIT)?;
        visit(&socket, &file)
    };
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        for part in ["@sent-0", "@refused-1", "@answered 100", "@end"] {
            says(seen, part)?;
        }
        says(seen, &format!("@hash {hash}"))
    })?;
    ensure!(
        found.sent_back.recv_timeout(LIMIT)? == file,
        "the guest sent something else"
    );
    ensure!(!socket.exists(), "the socket is left behind");
    drop(found.listeners);
    fs::remove_dir_all(&dir)?;
    Ok(())
}
