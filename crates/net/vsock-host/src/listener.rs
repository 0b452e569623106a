//! The socket that programs of the host connect to, and those that the guest's connections lead to.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;

use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// Bytes of a socket's path at most, and of what a port adds to it: `_4294967295`.
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
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file that we made.
    file: (u64, u64),
}

impl Listener {
    pub(crate) fn bind(path: &Path) -> Result<Self, VsockError> {
        if path.as_os_str().as_bytes().len() + PORT > PATH {
            return Err(VsockError::Long(path.to_owned()));
        }
        let failed = |source: io::Error| VsockError::Listen {
            path: path.to_owned(),
            source,
        };
        make_room(path)?;
        let listener = listen(path).map_err(failed)?;
        let data = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (data.dev(), data.ino()),
        })
    }

    pub(crate) fn socket(&self) -> &UnixListener {
        &self.listener
    }

    /// Where the guest's connections to a port lead.
    pub(crate) fn of_port(&self, port: u32) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        path.into()
    }
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
fn make_room(path: &Path) -> Result<(), VsockError> {
    let Ok(data) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !data.file_type().is_socket() {
        return Err(VsockError::NoSocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| VsockError::Listen {
                path: path.to_owned(),
                source,
            })
        }
        _ => Err(VsockError::InUse(path.to_owned())),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Connects to a program of the host; none when it has too many connections that wait.
pub(crate) fn connect(path: &Path) -> io::Result<Option<UnixStream>> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) => Ok(Some(UnixStream::from(socket))),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
