//! From the first byte to the first picture: version, security, sharing, the screen's size and name.
//!
//! Spec: RFC 6143 §7.1-7.3; §7.1.1 for clients of version 3.3.

use std::io;
use std::io::Read;
use std::io::Write;
use std::time::Duration;

use super::auth::CHALLENGE;
use super::auth::Password;
use super::pixel::PixelFormat;

const NONE: u8 = 1;
const VNC: u8 = 2;

/// What a wrong password costs, so that trying them all takes years.
const FAILURE_DELAY: Duration = Duration::from_millis(1000);

/// How far versions differ for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Version {
    V3_3,
    V3_7,
    V3_8,
}

/// Why a client was turned away.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it speaks no VNC")]
    NoVnc,
    #[error("wrong password")]
    Password,
    #[error("it chose security type {0}")]
    Security(u8),
    #[error("the host has no random numbers")]
    Random,
}

/// What the handshake needs to know.
pub(super) struct Offer<'a> {
    pub(super) password: Option<&'a Password>,
    pub(super) name: &'a str,
}

impl Offer<'_> {
    /// Agrees on version and security.
    pub(super) fn authenticate(&self, socket: &mut (impl Read + Write)) -> Result<(), HandshakeError> {
        socket.write_all(b"RFB 003.008\n")?;
        let version = read_version(socket)?;
        let security = if self.password.is_some() { VNC } else { NONE };
        if version == Version::V3_3 {
            socket.write_all(&[0, 0, 0, security])?;
        } else {
            socket.write_all(&[1, security])?;
            let [chosen] = read(socket)?;
            if chosen != security {
                return Err(HandshakeError::Security(chosen));
            }
        }
        if let Some(password) = self.password
            && !challenge(socket, password)?
        {
            std::thread::sleep(FAILURE_DELAY);
            socket.write_all(&[0, 0, 0, 1])?;
            if version == Version::V3_8 {
                let reason = b"wrong password";
                socket.write_all(&[0, 0, 0, 14])?;
                socket.write_all(reason)?;
            }
            return Err(HandshakeError::Password);
        }
        // Without a password, older clients go on at once.
        if self.password.is_some() || version == Version::V3_8 {
            socket.write_all(&[0; 4])?;
        }
        Ok(())
    }

    /// Tells the screen's size and name. Every client shares the machine with others, whatever it says.
    pub(super) fn start(&self, socket: &mut (impl Read + Write), size: (u16, u16)) -> Result<(), HandshakeError> {
        let [_shared] = read(socket)?;
        let (width, height) = size;
        let mut message = Vec::new();
        message.extend(width.to_be_bytes());
        message.extend(height.to_be_bytes());
        message.extend(PixelFormat::OURS.to_bytes());
        let name = self.name.as_bytes();
        let name = name.get(..name.len().min(255)).unwrap_or_default();
        message.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        message.extend(name);
        Ok(socket.write_all(&message)?)
    }
}

fn read<const N: usize>(socket: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    socket.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read_version(socket: &mut impl Read) -> Result<Version, HandshakeError> {
    let text: [u8; 12] = read(socket)?;
    let minor = match &text {
        [b'R', b'F', b'B', b' ', b'0', b'0', b'3', b'.', a, b, c, b'\n'] => [a, b, c],
        // Some servers of version 4 and more speak 3.8 to those who do.
        [b'R', b'F', b'B', b' ', b'0', b'0', b'4' | b'5', b'.', .., b'\n'] => return Ok(Version::V3_8),
        _ => return Err(HandshakeError::NoVnc),
    };
    match minor {
        [b'0', b'0', b'8'..=b'9'] | [b'8', b'8', b'9'] => Ok(Version::V3_8),
        [b'0', b'0', b'7'] => Ok(Version::V3_7),
        // §7.1.1: other versions are taken as 3.3.
        _ => Ok(Version::V3_3),
    }
}

fn challenge(socket: &mut (impl Read + Write), password: &Password) -> Result<bool, HandshakeError> {
    let mut challenge = [0; CHALLENGE];
    let got = rustix::rand::getrandom(&mut challenge, rustix::rand::GetRandomFlags::empty());
    if got != Ok(CHALLENGE) {
        return Err(HandshakeError::Random);
    }
    socket.write_all(&challenge)?;
    let response = read(socket)?;
    Ok(password.accepts(&challenge, &response))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn server(password: Option<&str>) -> (UnixStream, std::thread::JoinHandle<Result<(), HandshakeError>>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let password = password.map(|text| Password::new(text).unwrap());
        let thread = std::thread::spawn(move || {
            let mut ours = ours;
            let offer = Offer {
                password: password.as_ref(),
                name: "machine",
            };
            offer.authenticate(&mut ours)?;
            offer.start(&mut ours, (640, 480))
        });
        (theirs, thread)
    }

    fn expect(client: &mut UnixStream, wanted: &[u8]) {
        let mut bytes = vec![0; wanted.len()];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, wanted);
    }

    #[test]
    fn versions_agree_in_their_own_ways() {
        for (version, security, result) in [
            ("RFB 003.003\n", &[0u8, 0, 0, 1][..], &[][..]),
            ("RFB 003.005\n", &[0, 0, 0, 1], &[]),
            ("RFB 003.007\n", &[1, 1], &[]),
            ("RFB 003.008\n", &[1, 1], &[0; 4]),
        ] {
            let (mut client, thread) = server(None);
            expect(&mut client, b"RFB 003.008\n");
            client.write_all(version.as_bytes()).unwrap();
            expect(&mut client, security);
            if security.len() == 2 {
                client.write_all(&[1]).unwrap();
            }
            expect(&mut client, result);
            client.write_all(&[1]).unwrap();
            expect(&mut client, &[2, 128, 1, 224]);
            expect(&mut client, &PixelFormat::OURS.to_bytes());
            expect(&mut client, b"\0\0\0\x07machine");
            thread.join().unwrap().unwrap();
        }
    }

    #[test]
    fn wrong_password_is_told_and_the_right_one_passes() {
        for right in [false, true] {
            let (mut client, thread) = server(Some("secret"));
            expect(&mut client, b"RFB 003.008\n");
            client.write_all(b"RFB 003.008\n").unwrap();
            expect(&mut client, &[1, 2]);
            client.write_all(&[2]).unwrap();
            let challenge = read(&mut client).unwrap();
            let known = Password::new(if right { "secret" } else { "guess" }).unwrap();
            client.write_all(&known.response(&challenge)).unwrap();
            expect(&mut client, &[0, 0, 0, u8::from(!right)]);
            if right {
                client.write_all(&[0]).unwrap();
                thread.join().unwrap().unwrap();
            } else {
                expect(&mut client, b"\0\0\0\x0Ewrong password");
                assert!(matches!(thread.join().unwrap(), Err(HandshakeError::Password)));
            }
        }
    }

    #[test]
    fn strangers_are_turned_away() {
        let (mut client, thread) = server(None);
        client.write_all(b"GET / HTTP/1").unwrap();
        assert!(matches!(thread.join().unwrap(), Err(HandshakeError::NoVnc)));
        let (mut client, thread) = server(Some("secret"));
        client.write_all(b"RFB 003.008\n\x01").unwrap();
        assert!(matches!(thread.join().unwrap(), Err(HandshakeError::Security(1))));
    }
}
