//! The sockets that programs of the host connect to, and those that the guest's connections lead to.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use device_model::FlowKind;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// What is behind the path of the socket for messages.
const PACKETS: &str = ".seqpacket";
/// Bytes of a socket's path at most, and of what a port adds to it, `_4294967295`, which is longer than [`PACKETS`].
const PATH: usize = 107;
const PORT: usize = 11;

/// The sockets cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Another process listens there.
    #[error("somebody listens at `{}` already", .0.display())]
    InUse(PathBuf),
    /// There is something else.
    #[error("`{}` is there already, and no socket", .0.display())]
    NoSocket(PathBuf),
    /// A port's socket could not have its name.
    #[error("`{}` is too long for sockets: {PATH} bytes with `_` and a port", .0.display())]
    Long(PathBuf),
    /// The host refuses.
    #[error("cannot listen at `{}`", .path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

/// The socket at a path. Its file goes with it.
pub(crate) struct Listener {
    socket: OwnedFd,
    path: PathBuf,
    /// Device and number of the file that we made.
    file: (u64, u64),
}

impl Listener {
    /// Listens for flows of a kind at their place beside `base`.
    pub(crate) fn bind(base: &Path, kind: FlowKind) -> Result<Self, VsockError> {
        if base.as_os_str().as_bytes().len() + PORT > PATH {
            return Err(VsockError::Long(base.to_owned()));
        }
        let path = &match kind {
            FlowKind::Stream => base.to_owned(),
            FlowKind::Packets => beside(base, PACKETS),
        };
        let failed = |source: io::Error| VsockError::Listen {
            path: path.to_owned(),
            source,
        };
        make_room(path, kind)?;
        let socket = listen(path, kind).map_err(failed)?;
        let data = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            file: (data.dev(), data.ino()),
        })
    }

    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The next program; none while there is none.
    pub(crate) fn accept(&self) -> Result<Option<OwnedFd>, Errno> {
        loop {
            match rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => return Ok(Some(socket)),
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// `path` with something behind it.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.to_owned().into_os_string();
    path.push(suffix);
    path.into()
}

/// Where the guest's connections to a port lead.
pub(crate) fn of_port(base: &Path, port: u32) -> PathBuf {
    beside(base, &format!("_{port}"))
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Somebody else may have put a file of theirs there meanwhile.
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|data| (data.dev(), data.ino()) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens at any more.
fn make_room(path: &Path, kind: FlowKind) -> Result<(), VsockError> {
    let Ok(data) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !data.file_type().is_socket() {
        return Err(VsockError::NoSocket(path.to_owned()));
    }
    match connect(path, kind) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| VsockError::Listen {
                path: path.to_owned(),
                source,
            })
        }
        _ => Err(VsockError::InUse(path.to_owned())),
    }
}

fn socket(kind: FlowKind) -> io::Result<OwnedFd> {
    let kind = match kind {
        FlowKind::Stream => SocketType::STREAM,
        FlowKind::Packets => SocketType::SEQPACKET,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

fn listen(path: &Path, kind: FlowKind) -> io::Result<OwnedFd> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket(kind)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Connects to a program of the host; none when it has too many connections that wait.
pub(crate) fn connect(path: &Path, kind: FlowKind) -> io::Result<Option<OwnedFd>> {
    let address = SocketAddrUnix::new(path)?;
    let socket = socket(kind)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(Some(socket)),
        Err(Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
