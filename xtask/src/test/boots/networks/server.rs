//! The world that guests reach in tests of networks: a web server, an echo, a name server; it runs in a network namespace as a
//! process of its own, `cargo xtask network-server`.

use std::io::Read;
use std::io::Write;
use std::net::Ipv4Addr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::thread;

/// Where everything is, and a second name server with another idea of where that is.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
pub(crate) const ADDRESS6: &str = "2001:db8::1";
pub(crate) const NAME: &str = "server.oxbow.test";
/// Said when all is ready.
pub(crate) const READY: &str = "@serving";

/// A piece of the file that the web server has: no two are the same.
pub(crate) fn piece(index: u32) -> Vec<u8> {
    let mut state = u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(1 << 20);
    while out.len() < 1 << 20 {
        // xorshift64.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend(state.to_le_bytes());
    }
    out
}

/// A file for who boots from here: the initial RAM disk.
pub(crate) const INITRD: &str = "initrd.cpio";

/// Answers `GET /N` with N pieces, and `GET /initrd.cpio` with that file of the working directory.
fn web(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = [0; 1024];
    let len = stream.read(&mut request)?;
    let text = String::from_utf8_lossy(request.get(..len).unwrap_or_default()).into_owned();
    if text.starts_with(&format!("GET /{INITRD} ")) {
        let bytes = std::fs::read(INITRD)?;
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len())?;
        return stream.write_all(&bytes);
    }
    let count: u32 = text
        .strip_prefix("GET /")
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
        u64::from(count) << 20
    )?;
    for index in 0..count {
        stream.write_all(&piece(index))?;
    }
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    std::io::copy(&mut stream.try_clone()?, &mut stream)?;
    Ok(())
}

fn accept(port: u16, serve: fn(TcpStream) -> std::io::Result<()>) -> std::io::Result<()> {
    let listener = TcpListener::bind(("::", port))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Clients that go away are no matter of ours.
            let one = thread::Builder::new().stack_size(256 << 10);
            let _ = one.spawn(move || serve(stream));
        }
    });
    Ok(())
}

fn echo_datagrams() -> std::io::Result<()> {
    let socket = UdpSocket::bind(("::", 7))?;
    thread::spawn(move || {
        let mut buffer = vec![0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    Ok(())
}

fn names(at: Ipv4Addr) -> std::io::Result<()> {
    let socket = UdpSocket::bind((at, 53))?;
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = super::super::net::answer(&buffer[..len], NAME, at.octets()) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    Ok(())
}

/// Serves until standard input ends.
pub(crate) fn main() -> anyhow::Result<()> {
    accept(80, web)?;
    accept(7, echo)?;
    echo_datagrams()?;
    names(ADDRESS)?;
    names(OTHER)?;
    println!("{READY}");
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
