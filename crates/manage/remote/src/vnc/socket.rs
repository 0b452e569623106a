//! A connection, by TCP or by a socket in the file system.

use std::io;
use std::io::Read;
use std::io::Write;
use std::net::Shutdown;
use std::net::TcpListener;
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::VncAddress;

/// Where clients come from.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(super) fn bind(address: &VncAddress) -> io::Result<Self> {
        match address {
            VncAddress::Tcp(address) => TcpListener::bind(address).map(Self::Tcp),
            VncAddress::Unix(path) => {
                // A socket that nobody listens at is left over from a machine that was killed.
                if UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused) {
                    std::fs::remove_file(path)?;
                }
                UnixListener::bind(path).map(Self::Unix)
            }
        }
    }

    pub(super) fn address(&self) -> io::Result<VncAddress> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(VncAddress::Tcp),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                Ok(VncAddress::Unix(
                    address.as_pathname().unwrap_or_else(|| "".as_ref()).into(),
                ))
            }
        }
    }

    /// The next client, and its name for traces.
    pub(super) fn accept(&self) -> io::Result<(Socket, String)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                // Updates are written whole; waiting for more only delays them.
                stream.set_nodelay(true)?;
                Ok((Socket::Tcp(stream), peer.to_string()))
            }
            Self::Unix(listener) => listener
                .accept()
                .map(|(stream, _)| (Socket::Unix(stream), "unix".to_owned())),
        }
    }
}

/// A connection.
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    pub(super) fn connect(address: &VncAddress) -> io::Result<Self> {
        match address {
            VncAddress::Tcp(address) => TcpStream::connect(address).map(Self::Tcp),
            VncAddress::Unix(path) => UnixStream::connect(path).map(Self::Unix),
        }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        match self {
            Self::Tcp(stream) => stream.try_clone().map(Self::Tcp),
            Self::Unix(stream) => stream.try_clone().map(Self::Unix),
        }
    }

    /// How long reads and writes may take; for ever without a limit.
    pub(super) fn set_timeouts(&self, read: Option<Duration>, write: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => {
                stream.set_read_timeout(read)?;
                stream.set_write_timeout(write)
            }
            Self::Unix(stream) => {
                stream.set_read_timeout(read)?;
                stream.set_write_timeout(write)
            }
        }
    }

    /// Ends the connection: whoever reads or writes returns.
    pub(super) fn close(&self) {
        // One that has ended already has nothing to be told.
        let _ = match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.read(buf),
            Self::Unix(stream) => stream.read(buf),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.write(buf),
            Self::Unix(stream) => stream.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
