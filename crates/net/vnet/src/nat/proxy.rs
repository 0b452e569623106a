//! A SOCKS5 proxy that leads the host's programs to guests, for networks that the host is not at itself.
//!
//! Connections only, by address or by a guest's name, without authentication. A connection is said to be there before the guest
//! has answered; one that it refuses ends at once.
//!
//! Spec: RFC 1928.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use super::Command;

/// Clients that are listened to at a time, and how long one may take to say where it wants to go.
const CLIENTS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);
const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NOT_ACCEPTABLE: u8 = 0xff;
const CONNECT: u8 = 1;
/// Kinds of address.
const V4: u8 = 1;
const NAME: u8 = 3;
const V6: u8 = 4;
/// What is said of a request.
pub(super) const DONE: u8 = 0;
pub(super) const UNREACHABLE: u8 = 4;
const NOT_SUPPORTED: u8 = 7;

/// Whom a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Address(IpAddr),
    /// A guest's name.
    Name(String),
}

/// The proxy's listener. Dropping it ends it; connections that are there stay.
#[derive(Debug)]
pub(super) struct Proxy {
    at: SocketAddr,
    ended: Arc<AtomicBool>,
}

/// The answer to a request.
pub(super) fn answer(code: u8) -> [u8; 10] {
    [VERSION, code, 0, V4, 0, 0, 0, 0, 0, 0]
}

fn byte(stream: &mut impl Read) -> io::Result<u8> {
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    let [byte] = byte;
    Ok(byte)
}

fn some(stream: &mut impl Read, len: u8) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len.into()];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Hears whom a client wants; tells it of its mistakes.
fn hear<S: Read + Write>(stream: &mut S) -> io::Result<(Wanted, u16)> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    if byte(stream)? != VERSION {
        return Err(wrong());
    }
    let count = byte(stream)?;
    if !some(stream, count)?.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[VERSION, NOT_ACCEPTABLE])?;
        return Err(wrong());
    }
    stream.write_all(&[VERSION, NO_AUTHENTICATION])?;
    let [version, command, _, kind] = some(stream, 4)?.try_into().map_err(|_| wrong())?;
    if version != VERSION || command != CONNECT {
        stream.write_all(&answer(NOT_SUPPORTED))?;
        return Err(wrong());
    }
    let wanted = match kind {
        V4 => {
            let bytes: [u8; 4] = some(stream, 4)?.try_into().map_err(|_| wrong())?;
            Wanted::Address(bytes.into())
        }
        V6 => {
            let bytes: [u8; 16] = some(stream, 16)?.try_into().map_err(|_| wrong())?;
            Wanted::Address(Ipv6Addr::from(bytes).into())
        }
        NAME => {
            let len = byte(stream)?;
            let name = String::from_utf8(some(stream, len)?).map_err(|_| wrong())?;
            // Clients may leave it to us to read an address.
            match name.parse() {
                Ok(address) => Wanted::Address(address),
                Err(_) => Wanted::Name(name),
            }
        }
        _ => {
            stream.write_all(&answer(NOT_SUPPORTED))?;
            return Err(wrong());
        }
    };
    let port = [byte(stream)?, byte(stream)?];
    Ok((wanted, u16::from_be_bytes(port)))
}

fn serve(mut stream: TcpStream, commands: &Sender<Command>, wake: &OwnedFd) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let (wanted, port) = hear(&mut stream)?;
    // The network's thread ends last.
    let _ = commands.send(Command::Lead(stream, wanted, port));
    super::wake(wake);
    Ok(())
}

impl Proxy {
    /// Listens at an address of the host's.
    pub(super) fn open(at: SocketAddr, commands: Sender<Command>, wake: Arc<OwnedFd>) -> io::Result<Self> {
        let listener = TcpListener::bind(at)?;
        let at = listener.local_addr()?;
        let ended = Arc::<AtomicBool>::default();
        let (over, clients) = (Arc::clone(&ended), Arc::<AtomicUsize>::default());
        thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                if over.load(Ordering::Acquire) {
                    return;
                }
                let Ok(stream) = stream else {
                    // No descriptors are left: some will be given back.
                    thread::sleep(Duration::from_millis(100));
                    continue;
                };
                if clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS {
                    clients.fetch_sub(1, Ordering::AcqRel);
                    continue;
                }
                let (commands, wake, count) = (commands.clone(), Arc::clone(&wake), Arc::clone(&clients));
                let one = move || {
                    // A client that says nothing of use has its connection ended.
                    let _ = serve(stream, &commands, &wake);
                    count.fetch_sub(1, Ordering::AcqRel);
                };
                if thread::Builder::new().name("proxy".to_owned()).spawn(one).is_err() {
                    clients.fetch_sub(1, Ordering::AcqRel);
                }
            }
        })?;
        Ok(Self { at, ended })
    }

    /// Where it listens.
    pub(super) fn at(&self) -> SocketAddr {
        self.at
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Its thread looks at that when somebody comes.
        let _ = TcpStream::connect_timeout(&self.at, Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    /// Reads what is given, and keeps what is written.
    struct Client(Cursor<Vec<u8>>, Vec<u8>);

    impl Read for Client {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }

    impl Write for Client {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn say(bytes: &[u8]) -> (io::Result<(Wanted, u16)>, Vec<u8>) {
        let mut client = Client(Cursor::new(bytes.to_vec()), Vec::new());
        let heard = hear(&mut client);
        (heard, client.1)
    }

    #[test]
    fn clients_say_whom_they_want() {
        let (heard, said) = say(b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x02\x0f\x00\x16");
        assert_eq!(heard.unwrap(), (Wanted::Address("10.0.2.15".parse().unwrap()), 22));
        assert_eq!(said, [5, 0]);
        let (heard, _) = say(b"\x05\x02\x02\x00\x05\x01\x00\x03\x03web\x00\x50");
        assert_eq!(heard.unwrap(), (Wanted::Name("web".to_owned()), 80));
        let (heard, _) = say(b"\x05\x01\x00\x05\x01\x00\x03\x0910.0.2.15\x00\x50");
        assert_eq!(heard.unwrap().0, Wanted::Address("10.0.2.15".parse().unwrap()));
    }

    #[test]
    fn clients_hear_what_is_not_done() {
        assert_eq!(say(b"\x05\x01\x02").1, [5, 0xff]);
        assert_eq!(say(b"\x05\x01\x00\x05\x02\x00\x01").1[2..4], [5, NOT_SUPPORTED]);
        assert!(say(b"\x04\x01\x00\x50").0.is_err());
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = say(&bytes);
            let _ = say(&[&[5, 1, 0][..], &bytes].concat());
        }
    }
}
