//! Many connections, or one long datagram, from within a guest: what busybox has no program for.
//!
//! `flows tcp ADDRESS:PORT COUNT` opens COUNT connections, holds all, says something on each and hears it back from each.
//! `flows udp ADDRESS:PORT SIZE` sends a datagram of SIZE bytes and hears it back.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn tcp(to: SocketAddr, count: u32) -> std::io::Result<()> {
    let mut held = Vec::new();
    for n in 0..count {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&n.to_be_bytes())?;
        held.push(stream);
    }
    for (n, stream) in held.iter_mut().enumerate() {
        let mut back = [0; 4];
        stream.read_exact(&mut back)?;
        assert_eq!(u32::from_be_bytes(back), n as u32);
    }
    println!("@held {}", held.len());
    Ok(())
}

fn udp(to: SocketAddr, size: usize) -> std::io::Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let bytes: Vec<u8> = (0..size).map(|n| (n / 3) as u8).collect();
    let mut back = vec![0; 65_536];
    // Datagrams may be lost while the way to a neighbour is looked for.
    for attempt in 1..=10 {
        // One that the kernel knows to be too long is split from now on.
        let _ = socket.send_to(&bytes, to);
        if let Ok((len, _)) = socket.recv_from(&mut back) {
            assert!(back[..len] == bytes);
            println!("@echoed {len} at attempt {attempt}");
            return Ok(());
        }
    }
    Err(std::io::ErrorKind::TimedOut.into())
}

fn main() -> std::io::Result<()> {
    let words: Vec<String> = std::env::args().collect();
    let [_, kind, to, number] = words.as_slice() else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let to = to.parse().map_err(std::io::Error::other)?;
    let number: u32 = number.parse().map_err(std::io::Error::other)?;
    match kind.as_str() {
        "tcp" => tcp(to, number),
        _ => udp(to, number as usize),
    }
}
