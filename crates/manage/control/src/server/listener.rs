//! A socket in the file system that only its owner can reach.
//!
//! On Linux the mode of a socket before `bind` is that of its file, so that there is no moment in which others could connect:
//! unix(7) §"Pathname socket ownership and permissions", fchmod(2).

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::fs::fchmod;
use rustix::net::AddressFamily;
use rustix::net::SocketAddrUnix;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::sockopt;

use super::ControlError;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// The socket. Its file goes with it.
pub(super) struct Listener {
    listener: UnixListener,
    path: PathBuf,
    /// Device and number of the file that we made.
    file: (u64, u64),
}

impl Listener {
    pub(super) fn bind(path: &Path) -> Result<Self, ControlError> {
        make_room(path)?;
        let failed = |source: io::Error| ControlError::Listen {
            path: path.to_owned(),
            source,
        };
        let listener = bind_private(path).map_err(failed)?;
        let data = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: (data.dev(), data.ino()),
        })
    }

    /// Another descriptor of the same socket.
    pub(super) fn try_clone(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// The next client; none when it may not connect.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.listener.accept()?;
        // The file's mode says the same; this also holds for a descriptor that was handed on.
        let peer = sockopt::socket_peercred(&stream)?.uid;
        let (own, root) = (rustix::process::geteuid(), rustix::process::Uid::ROOT);
        if peer != own && peer != root {
            tracing::warn!(uid = peer.as_raw(), "control: turned away another user");
            return Ok(None);
        }
        Ok(Some(stream))
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
fn make_room(path: &Path) -> Result<(), ControlError> {
    let Ok(data) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !data.file_type().is_socket() {
        return Err(ControlError::NoSocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(|source| ControlError::Listen {
                path: path.to_owned(),
                source,
            })
        }
        _ => Err(ControlError::InUse(path.to_owned())),
    }
}

fn bind_private(path: &Path) -> io::Result<UnixListener> {
    let address = SocketAddrUnix::new(path)?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}
