//! Where a VNC server listens, as users write it: `127.0.0.1:5900`, `:1`, `[::1]:5901`, `unix:/run/vm.sock`.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Port of display 0.
const FIRST_PORT: u16 = 5900;
/// Numbers up to here are displays, others are ports.
const LAST_DISPLAY: u16 = 99;

/// An address to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VncAddress {
    /// A TCP port; 0 for any free one.
    Tcp(SocketAddr),
    /// A socket in the file system.
    Unix(PathBuf),
}

/// An address makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address for VNC: write 127.0.0.1:5900, :0 for display 0 on this host, or unix:/path")]
pub struct AddressError(String);

impl FromStr for VncAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty()).then(|| Self::Unix(path.into())).ok_or_else(wrong);
        }
        if let Some(number) = text.strip_prefix(':') {
            let number: u16 = number.parse().map_err(|_| wrong())?;
            let port = if number <= LAST_DISPLAY {
                FIRST_PORT + number
            } else {
                number
            };
            return Ok(Self::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
        }
        let text_with_host = text.replacen("localhost:", "127.0.0.1:", 1);
        text_with_host.parse().map(Self::Tcp).map_err(|_| wrong())
    }
}

impl fmt::Display for VncAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_in_all_spellings() {
        for (text, meant) in [
            ("127.0.0.1:5900", "127.0.0.1:5900"),
            (":1", "127.0.0.1:5901"),
            (":5950", "127.0.0.1:5950"),
            ("localhost:5901", "127.0.0.1:5901"),
            ("[::1]:7", "[::1]:7"),
            ("unix:/run/vm.sock", "unix:/run/vm.sock"),
        ] {
            assert_eq!(text.parse::<VncAddress>().unwrap().to_string(), meant);
        }
        for wrong in ["", "unix:", "5900", ":x", ":70000", "somewhere"] {
            assert!(wrong.parse::<VncAddress>().is_err(), "{wrong}");
        }
    }
}
