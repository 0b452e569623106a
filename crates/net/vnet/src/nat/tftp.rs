//! The TFTP server of a NAT network: files of one directory of the host's, for guests that boot by their network cards.
//!
//! Files are read, never written, and only those beneath the directory. A client that hears nothing for a while repeats its
//! acknowledgement, which is answered with the block again; the server has no timers.
//!
//! Spec: RFC 1350 (the protocol), RFC 2347 (options), RFC 2348 (`blksize`), RFC 2349 (`tsize`, `timeout`),
//! RFC 7440 (`windowsize`).

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use device_model::net::packet::be16;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::ResolveFlags;

/// Port of the server; transfers have ports of their own, from the first to the last.
pub(super) const SERVER: u16 = 69;
const FIRST_PORT: u16 = 40_000;
const PORTS: u16 = 8000;
/// Transfers at most, and how long one waits for its client.
const TRANSFERS: usize = 64;
const IDLE: Duration = Duration::from_secs(60);
/// A block is not sent again so soon: its acknowledgement may have been repeated on the way.
const REPEAT: Duration = Duration::from_millis(200);
/// Bytes of a block: without options, and at least. Headers of IP, UDP and TFTP go into a packet, too.
const BLOCK: usize = 512;
const SMALLEST: usize = 8;
const HEADERS: usize = 20 + 8 + 4;
/// Blocks that are sent ahead of their acknowledgement at most.
const WINDOW: u64 = 64;
/// Bytes of a file's name at most.
const NAME: usize = 512;

/// Operations.
const READ: u16 = 1;
const WRITE: u16 = 2;
const DATA: u16 = 3;
const ACKNOWLEDGEMENT: u16 = 4;
const ERROR: u16 = 5;
const OPTIONS: u16 = 6;
/// Errors.
const OTHER: u16 = 0;
const NOT_FOUND: u16 = 1;
const DENIED: u16 = 2;
const UNKNOWN_TRANSFER: u16 = 5;

/// A file on its way to a client.
struct Transfer {
    file: File,
    len: u64,
    block_size: usize,
    /// Blocks that are sent before one is acknowledged.
    window: u64,
    /// Which block was acknowledged last, and which was sent last; zero is the answer to options.
    acknowledged: u64,
    block: u64,
    /// The client has not acknowledged our options yet.
    opening: Option<Vec<u8>>,
    sent: Instant,
}

/// The server.
pub(super) struct Server {
    directory: PathBuf,
    /// Bytes of a block that fits a packet.
    largest: usize,
    /// By the client's port and ours.
    transfers: HashMap<(SocketAddr, u16), Transfer>,
    next: u16,
}

/// What goes back: from which port of ours, and the messages.
type Reply = (u16, Vec<Vec<u8>>);

/// What a client and we have agreed upon.
struct Agreed {
    block_size: usize,
    window: u64,
    /// The options that are acknowledged.
    options: Vec<u8>,
}

fn error(code: u16, text: &str) -> Vec<u8> {
    let mut out = [ERROR.to_be_bytes(), code.to_be_bytes()].concat();
    out.extend(text.as_bytes());
    out.push(0);
    out
}

/// The strings of a request, which end with zeros.
fn strings(bytes: &[u8]) -> Option<Vec<&str>> {
    let text = std::str::from_utf8(bytes.strip_suffix(&[0])?).ok()?;
    Some(text.split('\0').take(32).collect())
}

impl Transfer {
    /// The messages that the client waits for: what follows the block that it has acknowledged, as far as its window goes.
    fn messages(&mut self, now: Instant) -> io::Result<Vec<Vec<u8>>> {
        self.sent = now;
        if let Some(opening) = &self.opening {
            return Ok(vec![opening.clone()]);
        }
        let mut out = Vec::new();
        self.block = self.acknowledged;
        while self.block < self.acknowledged + self.window && (self.block == 0 || !self.is_last(self.block)) {
            self.block += 1;
            out.push(self.data()?);
        }
        Ok(out)
    }

    /// The block that is sent now.
    fn data(&self) -> io::Result<Vec<u8>> {
        let at = self.block.saturating_sub(1) * self.block_size as u64;
        let left = usize::try_from(self.len.saturating_sub(at)).unwrap_or(usize::MAX);
        let mut out = DATA.to_be_bytes().to_vec();
        out.extend(number(self.block).to_be_bytes());
        out.resize(4 + left.min(self.block_size), 0);
        self.file.read_exact_at(out.get_mut(4..).unwrap_or_default(), at)?;
        Ok(out)
    }

    /// Whether a block is the file's last.
    fn is_last(&self, block: u64) -> bool {
        self.len < block * self.block_size as u64
    }

    /// The block on its way that an acknowledgement means; that before them, if the first one is missing.
    fn meant(&self, acknowledged: u16) -> Option<u64> {
        let ahead = u64::from(acknowledged.wrapping_sub(number(self.acknowledged)));
        (ahead <= self.block - self.acknowledged).then_some(self.acknowledged + ahead)
    }
}

/// The number that a block has in messages: they begin anew after 65535, as clients expect.
fn number(block: u64) -> u16 {
    let [.., high, low] = block.to_be_bytes();
    u16::from_be_bytes([high, low])
}

impl Server {
    /// Serves what is beneath `directory`, in packets of `mtu` bytes at most.
    pub(super) fn new(directory: PathBuf, mtu: u16) -> Self {
        Self {
            directory,
            largest: usize::from(mtu).saturating_sub(HEADERS).max(BLOCK),
            transfers: HashMap::new(),
            next: 0,
        }
    }

    /// Whether a message of a client's to this port of ours is the server's.
    pub(super) fn has(&self, client: SocketAddr, port: u16) -> bool {
        port == SERVER || self.transfers.contains_key(&(client, port))
    }

    /// The answer to a message, if it gets one.
    pub(super) fn take(&mut self, client: SocketAddr, port: u16, message: &[u8], now: Instant) -> Option<Reply> {
        self.transfers
            .retain(|_, transfer| now.saturating_duration_since(transfer.sent) < IDLE);
        let rest = message.get(2..)?;
        match be16(message, 0)? {
            READ if port == SERVER => Some(self.begin(client, rest, now)),
            WRITE if port == SERVER => Some((port, vec![error(DENIED, "files can only be read")])),
            ACKNOWLEDGEMENT => self.acknowledged(client, port, be16(rest, 0)?, now),
            ERROR => {
                self.transfers.remove(&(client, port));
                None
            }
            _ => None,
        }
    }

    fn acknowledged(&mut self, client: SocketAddr, port: u16, number: u16, now: Instant) -> Option<Reply> {
        let Some(transfer) = self.transfers.get_mut(&(client, port)) else {
            return Some((port, vec![error(UNKNOWN_TRANSFER, "no such transfer")]));
        };
        let meant = transfer.meant(number)?;
        if transfer.opening.take_if(|_| meant == 0).is_none() && meant == transfer.acknowledged {
            // Nothing new: something was lost, or the acknowledgement came twice.
            if now.saturating_duration_since(transfer.sent) < REPEAT {
                return None;
            }
        } else if meant > 0 && transfer.is_last(meant) {
            self.transfers.remove(&(client, port));
            return None;
        }
        transfer.acknowledged = meant;
        match transfer.messages(now) {
            Ok(messages) => Some((port, messages)),
            Err(_) => {
                self.transfers.remove(&(client, port));
                Some((port, vec![error(OTHER, "the file cannot be read")]))
            }
        }
    }

    fn begin(&mut self, client: SocketAddr, request: &[u8], now: Instant) -> Reply {
        let refuse = |code, text: &str| (SERVER, vec![error(code, text)]);
        let Some(words) = strings(request) else {
            return refuse(OTHER, "no request");
        };
        let [name, mode, options @ ..] = words.as_slice() else {
            return refuse(OTHER, "no request");
        };
        if !mode.eq_ignore_ascii_case("octet") {
            return refuse(OTHER, "files are served in mode octet only");
        }
        let (file, len) = match self.open(name) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return refuse(NOT_FOUND, "no such file"),
            Err(_) => return refuse(DENIED, "the file cannot be read"),
        };
        if self.transfers.len() >= TRANSFERS {
            return refuse(OTHER, "too many transfers");
        }
        let agreed = self.agree(options, len);
        let opening = (!agreed.options.is_empty()).then(|| [&OPTIONS.to_be_bytes()[..], &agreed.options].concat());
        let mut transfer = Transfer {
            file,
            len,
            block_size: agreed.block_size,
            window: agreed.window,
            acknowledged: 0,
            block: 0,
            opening,
            sent: now,
        };
        let Ok(messages) = transfer.messages(now) else {
            return refuse(OTHER, "the file cannot be read");
        };
        self.next = (self.next + 1) % PORTS;
        let port = FIRST_PORT + self.next;
        self.transfers.insert((client, port), transfer);
        (port, messages)
    }

    /// Opens a file beneath the directory, whatever its name says.
    fn open(&self, name: &str) -> io::Result<(File, u64)> {
        let name = name.replace('\\', "/");
        let name = name.trim_start_matches('/');
        if name.is_empty() || name.len() > NAME {
            return Err(io::ErrorKind::NotFound.into());
        }
        let directory = File::open(&self.directory)?;
        // A pipe must not stop the network.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let found = rustix::fs::openat2(&directory, name, flags, Mode::empty(), ResolveFlags::BENEATH)?;
        let file = File::from(found);
        let data = file.metadata()?;
        if !data.is_file() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok((file, data.len()))
    }

    /// What is agreed upon of the options that a client asks for.
    fn agree(&self, options: &[&str], len: u64) -> Agreed {
        let mut agreed = Agreed {
            block_size: BLOCK,
            window: 1,
            options: Vec::new(),
        };
        for pair in options.chunks_exact(2) {
            let [name, value] = pair else { continue };
            let name = name.to_ascii_lowercase();
            let value = match (name.as_str(), value.parse::<u64>()) {
                ("blksize", Ok(wanted)) if wanted >= SMALLEST as u64 => {
                    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
                    agreed.block_size = wanted.min(self.largest);
                    agreed.block_size as u64
                }
                ("tsize", Ok(_)) => len,
                ("timeout", Ok(seconds @ 1..=255)) => seconds,
                ("windowsize", Ok(wanted @ 1..=65_535)) => {
                    agreed.window = wanted.min(WINDOW);
                    agreed.window
                }
                _ => continue,
            };
            agreed.options.extend(format!("{name}\0{value}\0").into_bytes());
        }
        agreed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn client() -> SocketAddr {
        "10.0.2.15:2070".parse().unwrap()
    }

    fn server(bytes: &[u8]) -> (tempfile::TempDir, Server) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::fs::write(dir.path().join("sub/file"), bytes).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("out")).unwrap();
        let server = Server::new(dir.path().to_owned(), 1500);
        (dir, server)
    }

    fn request(words: &[&str]) -> Vec<u8> {
        let mut out = READ.to_be_bytes().to_vec();
        words
            .iter()
            .for_each(|word| out.extend(format!("{word}\0").into_bytes()));
        out
    }

    fn acknowledge(block: u16) -> Vec<u8> {
        [ACKNOWLEDGEMENT.to_be_bytes(), block.to_be_bytes()].concat()
    }

    /// Fetches a file as a client does that acknowledges the last block of each window, and loses every block for which
    /// `is_lost` says so.
    fn fetch_by(server: &mut Server, request: &[u8], mut is_lost: impl FnMut() -> bool) -> Vec<u8> {
        let mut now = Instant::now();
        let (port, mut messages) = server.take(client(), SERVER, request, now).unwrap();
        let (mut file, mut have) = (Vec::new(), 0u16);
        loop {
            for message in messages {
                let next = have.wrapping_add(1);
                match (be16(&message, 0).unwrap(), be16(&message, 2).unwrap()) {
                    (OPTIONS, _) => {}
                    (DATA, number) if number == next && !is_lost() => {
                        file.extend(&message[4..]);
                        have = next;
                    }
                    // It has it, or one before it is missing.
                    (DATA, _) => {}
                    other => panic!("{other:?}"),
                }
            }
            now += REPEAT;
            match server.take(client(), port, &acknowledge(have), now) {
                Some((_, next)) => messages = next,
                None => return file,
            }
        }
    }

    fn fetch(server: &mut Server, request: &[u8]) -> Vec<u8> {
        fetch_by(server, request, || false)
    }

    #[test]
    fn files_of_any_length_come_whole() {
        for len in [0, 1, 511, 512, 513, 1468, 40_000] {
            let bytes: Vec<u8> = (0..len).map(|n: u32| n.to_le_bytes()[0]).collect();
            let (_dir, mut server) = server(&bytes);
            assert!(fetch(&mut server, &request(&["sub/file", "octet"])) == bytes);
            let with = request(&["/sub\\file", "OCTET", "blksize", "1432", "tsize", "0"]);
            assert!(fetch(&mut server, &with) == bytes);
            let window = request(&["sub/file", "octet", "windowsize", "5"]);
            assert!(fetch(&mut server, &window) == bytes);
            let mut sent = 0;
            let lossy = fetch_by(&mut server, &window, || {
                sent += 1;
                sent % 3 == 0
            });
            assert!(lossy == bytes);
            assert!(server.transfers.is_empty());
        }
    }

    #[test]
    fn file_of_more_blocks_than_there_are_numbers_comes_whole() {
        let bytes: Vec<u8> = (0..600_000u32).map(|n| (n / 8).to_le_bytes()[0]).collect();
        let (_dir, mut server) = server(&bytes);
        assert!(fetch(&mut server, &request(&["sub/file", "octet", "blksize", "8"])) == bytes);
        let window = request(&["sub/file", "octet", "blksize", "8", "windowsize", "7"]);
        assert!(fetch(&mut server, &window) == bytes);
    }

    #[test]
    fn options_are_agreed_upon_and_unknown_ones_passed_over() {
        let (_dir, mut server) = server(&[7; 3000]);
        let asked = [
            "sub/file",
            "octet",
            "blksize",
            "9000",
            "tsize",
            "0",
            "timeout",
            "3",
            "windowsize",
            "9000",
            "multicast",
            "",
        ];
        let (_, messages) = server.take(client(), SERVER, &request(&asked), Instant::now()).unwrap();
        let agreed = b"\0\x06blksize\x001468\0tsize\x003000\0timeout\x003\0windowsize\x0064\0";
        assert_eq!(messages, [agreed]);
    }

    #[test]
    fn window_goes_on_behind_the_block_that_was_acknowledged() {
        let (_dir, mut server) = server(&[1; 512 * 6]);
        let now = Instant::now();
        let asked = request(&["sub/file", "octet", "windowsize", "4"]);
        let (port, _) = server.take(client(), SERVER, &asked, now).unwrap();
        let mut blocks = |acknowledged, now| {
            let (_, messages) = server.take(client(), port, &acknowledge(acknowledged), now)?;
            let blocks: Vec<u16> = messages.iter().map(|message| be16(message, 2).unwrap()).collect();
            Some(blocks)
        };
        assert_eq!(blocks(0, now), Some(vec![1, 2, 3, 4]));
        // The third was lost.
        assert_eq!(blocks(2, now), Some(vec![3, 4, 5, 6]));
        assert_eq!(blocks(2, now), None);
        assert_eq!(blocks(1, now + REPEAT), None);
        assert_eq!(blocks(2, now + REPEAT), Some(vec![3, 4, 5, 6]));
        // The last is empty.
        assert_eq!(blocks(6, now), Some(vec![7]));
        assert_eq!(blocks(8, now), None);
        assert_eq!(blocks(7, now), None);
        assert!(!server.has(client(), port));
    }

    #[test]
    fn nothing_beyond_the_directory_is_served() {
        let (_dir, mut server) = server(&[]);
        for name in [
            "../etc/passwd",
            "/etc/passwd",
            "out",
            "sub",
            "sub/../../x",
            "",
            "nobody",
        ] {
            let (port, messages) = server
                .take(client(), SERVER, &request(&[name, "octet"]), Instant::now())
                .unwrap();
            assert_eq!((port, be16(&messages[0], 0)), (SERVER, Some(ERROR)), "{name}");
        }
        let write = [0, 2, b'f', 0, b'o', b'c', b't', b'e', b't', 0];
        let (_, messages) = server.take(client(), SERVER, &write, Instant::now()).unwrap();
        assert_eq!(messages[0][..4], [0, 5, 0, 2]);
    }

    #[test]
    fn lost_block_is_sent_again_when_its_client_asks() {
        let (_dir, mut server) = server(&[1; 2000]);
        let now = Instant::now();
        let (port, _) = server
            .take(client(), SERVER, &request(&["sub/file", "octet"]), now)
            .unwrap();
        let (_, second) = server.take(client(), port, &acknowledge(1), now).unwrap();
        assert_eq!(server.take(client(), port, &acknowledge(1), now), None);
        let again = server.take(client(), port, &acknowledge(1), now + REPEAT).unwrap();
        assert_eq!(again.1, second);
        assert_eq!(server.take(client(), port, &acknowledge(9), now + REPEAT), None);
        assert!(!server.has("10.0.2.15:2071".parse().unwrap(), port));
    }

    proptest! {
        #[test]
        fn garbage_does_no_harm(messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
            let (_dir, mut server) = server(&[1; 100]);
            for message in messages {
                let _ = server.take(client(), SERVER, &message, Instant::now());
                let mut read = READ.to_be_bytes().to_vec();
                read.extend(message);
                let _ = server.take(client(), SERVER, &read, Instant::now());
            }
            prop_assert!(server.transfers.len() <= TRANSFERS);
        }
    }
}
