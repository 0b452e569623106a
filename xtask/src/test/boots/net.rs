//! Networks of guests: a stock driver gets its lease, resolves a name, fetches a file, and is reached from outside.

use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::ensure;

use super::Lab;
use super::cases::no_complaints;
use super::cases::says;
use super::ctl::Ctl;
use super::ctl::with_user;
use crate::boot::Boot;
use crate::process;

/// How long the guest may take to say something.
const LIMIT: Duration = Duration::from_secs(300);
/// The same of its screen, in seconds; nothing is awaited there.
const SCREEN: &str = "300";
/// Bytes that the guest fetches.
const SIZE: usize = 32 << 20;
/// The name that the guest asks for: that of the gateway, behind which this host is.
const NAME: &str = "server.oxbow.test";
const GATEWAY: [u8; 4] = [10, 0, 2, 2];

/// What udhcpc runs. The kernel's command line has room for no double quotes.
const LEASED: &str = "echo '#!/bin/sh' >/tmp/leased; echo 'test -n $ip || exit 0; test $1 = bound || exit 0; \
                      ifconfig $interface $ip netmask $subnet; route add default gw $router; \
                      mkdir -p /etc; echo nameserver $dns >/etc/resolv.conf; echo @lease $ip $router $dns' >>/tmp/leased; \
                      chmod +x /tmp/leased; ip link set lo up; ip link set eth0 up; \
                      udhcpc -i eth0 -n -q -t 10 -s /tmp/leased";

/// Serves one file to everybody who asks for anything. Its port.
fn serve(file: Arc<Vec<u8>>) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let one = move |mut stream: TcpStream| -> std::io::Result<()> {
        let mut request = [0; 4096];
        let _ = stream.read(&mut request)?;
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", file.len())?;
        stream.write_all(&file)?;
        stream.shutdown(Shutdown::Write)
    };
    // It lives as long as the tests; a client that goes away is the guest's to complain about.
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let _ = one(stream);
        }
    });
    Ok(port)
}

/// A name server that knows one address of one name. Its port.
fn name_server() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let port = socket.local_addr()?.port();
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..len], NAME, GATEWAY) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Ok(port)
}

/// The answer of a server that knows one address of one name to a question (RFC 1035 §4.1).
pub(super) fn answer(question: &[u8], name: &str, address: [u8; 4]) -> Option<Vec<u8>> {
    let name: Vec<u8> = name
        .split('.')
        .flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat())
        .collect();
    let asked = question.get(12..)?;
    let known = asked
        .strip_prefix(name.as_slice())
        .is_some_and(|rest| rest.starts_with(&[0, 0, 1]));
    let end = asked.iter().position(|byte| *byte == 0)? + 5;
    let mut out = question.get(..2)?.to_vec();
    // A response, recursion available; a name that is not known is an empty answer.
    out.extend([0x81, 0x80, 0, 1, 0, u8::from(known), 0, 0, 0, 0]);
    out.extend(asked.get(..end)?);
    if known {
        out.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        out.extend(address);
    }
    Some(out)
}

/// Nothing was said of networks: the guest has a virtio card, whose network gives it an address and answers pings.
pub(super) fn microvm_has_a_network_if_nothing_is_said(lab: &Lab) -> anyhow::Result<()> {
    let load =
        "for m in virtio virtio_ring virtio_mmio failover net_failover virtio_net; do insmod /lib/modules/$m.ko; done";
    let script = format!("{load}; {LEASED}; ping -c 1 -W 60 10.0.2.2 && echo @pinged");
    lab.watch(
        &lab.commands("demo", &script)?.with(&["--machine", "microvm"]),
        |seen| {
            ensure!(seen.status == Some(0), "the machine did not power off");
            no_complaints(seen)?;
            says(seen, "@lease 10.0.2.15 10.0.2.2")?;
            says(seen, "@pinged")
        },
    )
}

/// A port of this host that is free now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Speaks to a server in the guest until it answers.
fn hears_back(port: u16) -> anyhow::Result<()> {
    let end = Instant::now() + LIMIT;
    loop {
        let said = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(b"hello guest\n")?;
            let mut back = [0; 12];
            stream.read_exact(&mut back)?;
            Ok(back)
        });
        if said.as_ref().is_ok_and(|back| back == b"hello guest\n") {
            return Ok(());
        }
        ensure!(Instant::now() < end, "the guest is not reached: {said:?}");
        thread::sleep(Duration::from_millis(200));
    }
}

/// What cannot be guessed, and its hash as `sha256sum` says it.
fn file() -> anyhow::Result<(Arc<Vec<u8>>, String)> {
    let mut bytes = vec![0; SIZE];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let path = std::env::temp_dir().join(format!("oxbow-net-{}", std::process::id()));
    std::fs::write(&path, &bytes)?;
    let hash = process::output(Command::new("sha256sum").arg(&path));
    std::fs::remove_file(&path)?;
    let hash = hash?.split_whitespace().next().context("no hash")?.to_owned();
    Ok((Arc::new(bytes), hash))
}

pub(super) fn nat_leads_to_the_world_and_back(lab: &Lab) -> anyhow::Result<()> {
    let (file, hash) = file()?;
    let (web, names) = (serve(file)?, name_server()?);
    let (first, second) = (free_port()?, free_port()?);
    let script = format!(
        "insmod /lib/modules/e1000.ko; {LEASED}; ping -c 2 10.0.2.2 >/dev/null; echo @ping-$?; \
         wget -q -O /tmp/file http://{NAME}:{web}/ && echo @hash $(sha256sum </tmp/file); \
         nc -ll -p 7 -e cat & echo @listening; \
         while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep .1; done; echo @down; \
         while [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep .1; done; echo @up; \
         wget -q -O /dev/null http://{NAME}:{web}/; echo @again-$?"
    );
    let nic = format!("nat,loopback,dns=127.0.0.1:{names}");
    let forward = format!("tcp:127.0.0.1:{first}-:7");
    let boot = lab.commands("full", &script)?;
    let boot = boot.with(&[
        "--machine",
        "pc",
        "--memory",
        "256M",
        "--nic",
        &nic,
        "--forward",
        &forward,
    ]);
    let told = boot.told();
    let user = |ctl: &Ctl<'_>| {
        let mut heard = 0;
        told.wait_for_line("@listening", &mut heard, LIMIT)?;
        hears_back(first)?;
        ctl.ask(&["forward", &format!("tcp:127.0.0.1:{second}-:7")])?;
        hears_back(second)?;
        ctl.ask(&["link", "nic0", "down"])?;
        told.wait_for_line("@down", &mut heard, LIMIT)?;
        ctl.ask(&["link", "nic0", "up"]).map(drop)
    };
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        says(seen, "@lease 10.0.2.15 10.0.2.2 10.0.2.3")?;
        says(seen, "@ping-0")?;
        says(seen, &format!("@hash {hash}"))?;
        says(seen, "@again-0")
    })
}

/// How long machines may take to have a switch again.
const AGAIN: Duration = Duration::from_secs(2);

/// The switch process of the network whose description holds `wanted`, by its command line.
pub(super) fn switch_of(wanted: &str) -> Option<u32> {
    let processes = std::fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line);
        (line.contains("network-switch") && line.contains(wanted)).then_some(pid)
    })
}

/// Kills the switch of a network, and waits for another.
fn replace_switch(network: &str) -> anyhow::Result<()> {
    let wanted = format!("\"internal\":\"{network}\"");
    let old = switch_of(&wanted).context("the network has no switch")?;
    process::output(Command::new("kill").args(["-9", &old.to_string()]))?;
    let killed = Instant::now();
    loop {
        if switch_of(&wanted).is_some_and(|new| new != old) {
            return Ok(());
        }
        ensure!(killed.elapsed() < AGAIN, "nobody starts another switch");
        thread::sleep(Duration::from_millis(10));
    }
}

pub(super) fn two_guests_talk_and_outlive_their_switch(lab: &Lab) -> anyhow::Result<()> {
    let network = format!("test{}", std::process::id());
    let serves = "insmod /lib/modules/mii.ko; insmod /lib/modules/pcnet32.ko; \
                  head -c 8388608 /dev/urandom >/tmp/f; echo @served $(sha256sum </tmp/f); ifconfig eth0 10.77.0.1 up; \
                  (while true; do nc -l -p 9 </tmp/f; done) & nc -l -p 10; echo @done";
    let fetches = "insmod /lib/modules/e1000.ko; ifconfig eth0 10.77.0.2 up; \
                   reach() { until ping -c 1 -W 1 10.77.0.1 >/dev/null; do sleep .2; done; }; \
                   fetch() { reach; until nc 10.77.0.1 9 >/tmp/f && test -s /tmp/f; do sleep .2; done; sha256sum </tmp/f; }; \
                   echo @fetched $(fetch); echo @before; sleep 4; echo @again $(fetch); echo end | nc 10.77.0.1 10";
    let with = |boot: Boot, model: &str| {
        let nic = format!("internal={network},model={model}");
        boot.with(&["--machine", "pc", "--memory", "128M", "--nic", &nic])
    };
    let server = with(lab.commands("full", serves)?, "pcnet");
    let client = with(lab.commands("full", fetches)?, "e1000");
    let told = client.told();
    let (served, killed, watched) = thread::scope(|scope| {
        let server = scope.spawn(|| server.watch());
        let killer = scope.spawn(|| {
            told.wait_for_line("@before", &mut 0, LIMIT)?;
            replace_switch(&network)
        });
        let watched = lab.watch(&client, |seen| {
            ensure!(seen.status == Some(0), "the machine did not power off");
            no_complaints(seen)?;
            says(seen, "@again")
        });
        (server.join(), killer.join(), watched)
    });
    watched?;
    let panicked = |_| anyhow::anyhow!("a thread panicked");
    killed.map_err(panicked)??;
    let served = served.map_err(panicked)??;
    let hash = |log: &str, mark: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(mark));
        line.and_then(|rest| rest.split_whitespace().next().map(str::to_owned))
    };
    let said: Vec<&str> = served.lines.iter().map(|line| line.text.as_str()).collect();
    let (mine, theirs) = (hash(&said.join("\n"), "@served"), told.wait_for("@@end", LIMIT)?);
    ensure!(mine.is_some(), "the other guest served nothing");
    for mark in ["@fetched", "@again"] {
        ensure!(
            hash(&theirs, mark) == mine,
            "{mark}: {:?} instead of {mine:?}",
            hash(&theirs, mark)
        );
    }
    Ok(())
}
