//! `--screen`: where a machine's screen is seen.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use anyhow::Context;
use anyhow::bail;
use board::Machine;
use remote::vnc::Password;
use remote::vnc::VncAddress;
use remote::vnc::VncConfig;
use remote::vnc::VncError;
use remote::vnc::VncServer;

use crate::failure::Failure;

/// Port of VNC's display 0, and how many displays are tried.
const FIRST_PORT: u16 = 5900;
const DISPLAYS: u16 = 100;
/// A file with a password is not longer.
const PASSWORD_FILE: u64 = 256;

/// Where a screen is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ScreenTarget {
    /// Nowhere.
    #[default]
    None,
    /// By VNC.
    Vnc {
        /// Where the server listens.
        at: Where,
        /// The file with its password.
        password: Option<PathBuf>,
    },
}

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// At the first display that is free.
    FirstFree(IpAddr),
    /// There.
    At(VncAddress),
}

impl FromStr for ScreenTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::None);
        }
        let wrong = || "write none, or vnc[=ADDRESS[:PORT]][,password=FILE]".to_owned();
        let (target, password) = match text.split_once(",password=") {
            Some((target, file)) if !file.is_empty() => (target, Some(PathBuf::from(file))),
            Some(_) => return Err(wrong()),
            None => (text, None),
        };
        let at = match target.strip_prefix("vnc").ok_or_else(wrong)? {
            "" => Where::FirstFree(Ipv4Addr::LOCALHOST.into()),
            address => parse_where(address.strip_prefix('=').ok_or_else(wrong)?)?,
        };
        Ok(Self::Vnc { at, password })
    }
}

/// An address with or without a port.
fn parse_where(text: &str) -> Result<Where, String> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let ip = match text {
        "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
        text => bare.unwrap_or(text).parse(),
    };
    match ip {
        Ok(ip) => Ok(Where::FirstFree(ip)),
        Err(_) => text.parse().map(Where::At).map_err(|error| format!("{error}")),
    }
}

/// Shows the machine's screen where `target` says, and tells the user where that is.
pub(crate) fn open(target: &ScreenTarget, machine: &Machine) -> Result<Option<VncServer>, Failure> {
    let ScreenTarget::Vnc { at, password } = target else {
        return Ok(None);
    };
    let (Some(screen), Some(input)) = (machine.screen(), machine.input()) else {
        return Err(anyhow::anyhow!("this machine has no screen to show; one of --machine pc has").into());
    };
    let config = VncConfig {
        name: format!("oxbow {}", machine.plan().board),
        password: password.as_deref().map(read_password).transpose()?,
        ..VncConfig::default()
    };
    let open = config.password.is_none();
    let input = Arc::new(input);
    let start = |address: &VncAddress| {
        let source = Box::new(screen.clone());
        VncServer::start(address, config.clone(), source, input.clone())
    };
    let server = match at {
        Where::At(address) => start(address),
        Where::FirstFree(ip) => first_free(*ip, start),
    };
    let server = server.map_err(anyhow::Error::from)?;
    announce(server.address(), open);
    Ok(Some(server))
}

/// Starts a server at the first display that nobody has.
fn first_free(ip: IpAddr, start: impl Fn(&VncAddress) -> Result<VncServer, VncError>) -> Result<VncServer, VncError> {
    let mut port = FIRST_PORT;
    loop {
        let result = start(&VncAddress::Tcp(SocketAddr::new(ip, port)));
        port += 1;
        match result {
            Err(error) if error.source.kind() == std::io::ErrorKind::AddrInUse && port < FIRST_PORT + DISPLAYS => {}
            result => return result,
        }
    }
}

fn announce(address: &VncAddress, open: bool) {
    let (display, everywhere) = match address {
        VncAddress::Tcp(at) => {
            let display = at.port().checked_sub(FIRST_PORT).filter(|display| *display < DISPLAYS);
            let display = display.map_or_else(String::new, |display| format!(", display :{display}"));
            (display, !at.ip().is_loopback())
        }
        VncAddress::Unix(_) => (String::new(), false),
    };
    let warning = if open && everywhere {
        "; whoever reaches it may watch and type, since it has no password"
    } else {
        ""
    };
    eprintln!("oxbow: the screen is at {address} by VNC{display}{warning}");
}

/// The first line of a file.
fn read_password(path: &Path) -> anyhow::Result<Password> {
    let what = || format!("cannot read the password in `{}`", path.display());
    let mut text = String::new();
    let file = File::open(path).with_context(what)?;
    let read = file.take(PASSWORD_FILE).read_to_string(&mut text).with_context(what)?;
    let Some(line) = text.lines().next() else {
        bail!("`{}` holds no password", path.display());
    };
    if read as u64 == PASSWORD_FILE {
        bail!("`{}` is too long for a password", path.display());
    }
    Password::new(line).with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vnc(at: Where) -> ScreenTarget {
        ScreenTarget::Vnc { at, password: None }
    }

    #[test]
    fn targets_are_read_with_and_without_their_parts() {
        let local: IpAddr = Ipv4Addr::LOCALHOST.into();
        for (text, meant) in [
            ("none", ScreenTarget::None),
            ("vnc", vnc(Where::FirstFree(local))),
            ("vnc=localhost", vnc(Where::FirstFree(local))),
            ("vnc=::1", vnc(Where::FirstFree("::1".parse().unwrap()))),
            ("vnc=[::1]", vnc(Where::FirstFree("::1".parse().unwrap()))),
            ("vnc=:3", vnc(Where::At(":3".parse().unwrap()))),
            ("vnc=0.0.0.0:5950", vnc(Where::At("0.0.0.0:5950".parse().unwrap()))),
            ("vnc=unix:/tmp/s", vnc(Where::At("unix:/tmp/s".parse().unwrap()))),
        ] {
            assert_eq!(text.parse(), Ok(meant), "{text}");
        }
        let with_password = ScreenTarget::Vnc {
            at: Where::FirstFree(local),
            password: Some("/p".into()),
        };
        assert_eq!("vnc,password=/p".parse(), Ok(with_password));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "sdl",
            "vnc:",
            "vnc=",
            "vncx",
            "vnc=nowhere",
            "vnc,password=",
            "vnc=:0,pass=x",
        ] {
            assert!(text.parse::<ScreenTarget>().is_err(), "{text}");
        }
    }
}
