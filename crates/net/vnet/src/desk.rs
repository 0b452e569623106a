//! What machines ask of a network's switch process beside carrying frames: names for their guests, ports of the host's that
//! lead to them, where the proxy is.
//!
//! Lines of text over a socket beside that of the frames, each answered by `ok` or `error` and more:
//! `name MAC NAME`, `forward tcp|udp ADDRESS:PORT GUEST|- PORT MAC`, `unforward ...`. What a machine has asked for ends with its
//! connection; when the process is replaced, machines ask again.

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;

use device_model::net::Mac;
use rustix::event::EventfdFlags;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;

use crate::Nat;
use crate::nat::Forward;
use crate::nat::Transport;

/// Bytes of a line at most.
const LINE: u64 = 512;
/// How often a machine looks for the desk of its network, and how long it waits for an answer.
const RETRY: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(5);

/// An address of Ethernet as it is written.
pub(crate) fn shown(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// The address that a text is; none if it is none.
pub(crate) fn parse_mac(text: &str) -> Option<Mac> {
    let mut mac = Mac::default();
    let mut parts = text.split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// A machine's wish.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Wish {
    Name(Mac, String),
    Forward(Forward, Mac),
    Unforward(Forward, Mac),
}

impl Wish {
    fn line(&self) -> String {
        let rule = |forward: &Forward| {
            let transport = match forward.transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            let guest = forward.guest.map_or_else(|| "-".to_owned(), |guest| guest.to_string());
            format!("{transport} {} {guest} {}", forward.host, forward.port)
        };
        match self {
            Self::Name(mac, name) => format!("name {} {name}\n", shown(*mac)),
            Self::Forward(forward, mac) => format!("forward {} {}\n", rule(forward), shown(*mac)),
            Self::Unforward(forward, mac) => format!("unforward {} {}\n", rule(forward), shown(*mac)),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["name", mac, name] => Some(Self::Name(parse_mac(mac)?, (*name).to_owned())),
            [kind @ ("forward" | "unforward"), transport, host, guest, port, mac] => {
                let forward = Forward {
                    transport: match *transport {
                        "tcp" => Transport::Tcp,
                        "udp" => Transport::Udp,
                        _ => return None,
                    },
                    host: host.parse().ok()?,
                    guest: match *guest {
                        "-" => None,
                        guest => Some(guest.parse().ok()?),
                    },
                    port: port.parse().ok()?,
                };
                let mac = parse_mac(mac)?;
                Some(match *kind {
                    "forward" => Self::Forward(forward, mac),
                    _ => Self::Unforward(forward, mac),
                })
            }
            _ => None,
        }
    }
}

/// An error with its causes, in one line.
fn told(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    causes.join(": ").replace('\n', " ")
}

/// What one machine has asked for.
struct Client<'a> {
    nat: &'a Nat,
    named: Vec<Mac>,
    forwards: Vec<Forward>,
}

impl Client<'_> {
    /// The forward to the guest itself where its address was left open.
    fn to_guest(&self, forward: Forward, mac: Mac) -> Result<Forward, String> {
        let guest = match forward.guest {
            Some(guest) => guest,
            None => IpAddr::V4(self.nat.address_of(mac).ok_or("the network has no address left")?),
        };
        Ok(Forward {
            guest: Some(guest),
            ..forward
        })
    }

    fn grant(&mut self, wish: Wish) -> Result<(), String> {
        match wish {
            Wish::Name(mac, name) => {
                self.nat.name(mac, Some(name));
                self.named.push(mac);
            }
            Wish::Forward(forward, mac) => {
                let forward = self.to_guest(forward, mac)?;
                let host = self.nat.forward(forward).map_err(|error| told(&error))?;
                self.forwards.push(Forward { host, ..forward });
            }
            Wish::Unforward(forward, mac) => {
                let forward = self.to_guest(forward, mac)?;
                let at = self.forwards.iter().position(|other| *other == forward);
                let at = at.ok_or_else(|| format!("{} is not a port of this guest", forward.host))?;
                self.nat
                    .unforward(self.forwards.remove(at))
                    .map_err(|error| told(&error))?;
            }
        }
        Ok(())
    }
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        for mac in self.named.drain(..) {
            self.nat.name(mac, None);
        }
        for forward in self.forwards.drain(..) {
            // It goes with the network otherwise.
            let _ = self.nat.unforward(forward);
        }
    }
}

fn serve(stream: &UnixStream, nat: &Nat) -> io::Result<()> {
    let mut client = Client {
        nat,
        named: Vec::new(),
        forwards: Vec::new(),
    };
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        let len = reader.by_ref().take(LINE).read_line(&mut line)?;
        if len == 0 {
            return Ok(());
        }
        let wish = Wish::parse(&line).ok_or_else(|| "no such wish".to_owned());
        let answer = match wish.and_then(|wish| client.grant(wish)) {
            Ok(()) => "ok\n".to_owned(),
            Err(why) => format!("error {why}\n"),
        };
        (&mut &*stream).write_all(answer.as_bytes())?;
    }
}

/// The desk of a network. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct Desk {
    path: PathBuf,
    ended: Arc<AtomicBool>,
}

impl Desk {
    /// Opens it at `path`, where nobody else's may be.
    pub(crate) fn open(path: &Path, nat: &Arc<Nat>) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        let ended = Arc::<AtomicBool>::default();
        let (over, nat) = (Arc::clone(&ended), Arc::downgrade(nat));
        thread::Builder::new().name("desk".to_owned()).spawn(move || {
            for stream in listener.incoming() {
                let (Some(nat), false) = (nat.upgrade(), over.load(Ordering::Acquire)) else {
                    return;
                };
                let Ok(stream) = stream else {
                    // No descriptors are left: some will be given back.
                    thread::sleep(RETRY);
                    continue;
                };
                // A machine that is not served asks again.
                let _ = thread::Builder::new()
                    .name("desk".to_owned())
                    .spawn(move || serve(&stream, &nat));
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            ended,
        })
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        // Its thread looks at that when somebody comes.
        let _ = UnixStream::connect(&self.path);
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A wish, and who waits for its answer.
type Request = (Wish, Option<Sender<Result<(), String>>>);

/// A machine's place at the desk of its network: what is asked for there is asked for again when the network's process was
/// replaced. Dropping it ends all that.
pub struct Wishes {
    mac: Mac,
    requests: Sender<Request>,
    event: Arc<OwnedFd>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Wishes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wishes").field("mac", &self.mac).finish_non_exhaustive()
    }
}

/// What the thread of [`Wishes`] has.
struct Asker {
    path: PathBuf,
    requests: Receiver<Request>,
    event: Arc<OwnedFd>,
    ended: Arc<AtomicBool>,
    granted: Vec<Wish>,
}

fn ask(stream: &UnixStream, wish: &Wish) -> io::Result<Result<(), String>> {
    (&mut &*stream).write_all(wish.line().as_bytes())?;
    let mut answer = String::new();
    // Byte for byte: what comes behind the line is not for us to keep.
    let mut byte = [0];
    while answer.len() < 4096 {
        (&mut &*stream).read_exact(&mut byte)?;
        match byte {
            [b'\n'] => break,
            [byte] => answer.push(char::from(byte)),
        }
    }
    Ok(match answer.strip_prefix("error ") {
        Some(why) => Err(why.to_owned()),
        None => Ok(()),
    })
}

impl Asker {
    fn run(mut self) {
        while !self.ended.load(Ordering::Acquire) {
            let Ok(stream) = UnixStream::connect(&self.path) else {
                thread::sleep(RETRY);
                continue;
            };
            // When it breaks, there will be another.
            let _ = self.stay(&stream);
        }
    }

    fn stay(&mut self, stream: &UnixStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        for wish in &self.granted {
            if let Err(why) = ask(stream, wish)? {
                tracing::warn!(
                    wish = wish.line().trim_end(),
                    why,
                    "a network no longer grants what it has granted"
                );
            }
        }
        while !self.ended.load(Ordering::Acquire) {
            while let Ok((wish, waiting)) = self.requests.try_recv() {
                let answer = ask(stream, &wish)?;
                match (&answer, &wish) {
                    (Ok(()), Wish::Unforward(forward, mac)) => {
                        self.granted.retain(|other| *other != Wish::Forward(*forward, *mac));
                    }
                    (Ok(()), _) => self.granted.push(wish),
                    (Err(why), _) if waiting.is_none() => {
                        tracing::warn!(wish = wish.line().trim_end(), why, "a network does not grant it");
                    }
                    (Err(_), _) => {}
                }
                // Nobody has to wait for it.
                let _ = waiting.map(|waiting| waiting.send(answer));
            }
            let mut both = [
                PollFd::new(&*self.event, PollFlags::IN),
                PollFd::new(stream, PollFlags::IN),
            ];
            match rustix::event::poll(&mut both, None::<&Timespec>) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [_, at_desk] = &both;
            if !at_desk.revents().is_empty() {
                // Nothing is said without being asked: it is gone.
                return Ok(());
            }
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.event, &mut count);
        }
        Ok(())
    }
}

impl Wishes {
    /// A place for the guest with this address of Ethernet, at the desk that is or will be at `path`.
    ///
    /// # Errors
    /// When the host gives no thread or no descriptor.
    pub(crate) fn new(path: PathBuf, mac: Mac) -> io::Result<Self> {
        let event = Arc::new(rustix::event::eventfd(
            0,
            EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC,
        )?);
        let (requests, queue) = mpsc::channel();
        let ended = Arc::<AtomicBool>::default();
        let asker = Asker {
            path,
            requests: queue,
            event: Arc::clone(&event),
            ended: Arc::clone(&ended),
            granted: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("wishes".to_owned())
            .spawn(move || asker.run())?;
        Ok(Self {
            mac,
            requests,
            event,
            ended,
            thread: Some(thread),
        })
    }

    fn wish(&self, wish: Wish, waiting: Option<Sender<Result<(), String>>>) {
        // The thread ends last.
        let _ = self.requests.send((wish, waiting));
        self.wake();
    }

    fn wake(&self) {
        // It only fails if it has been woken 2^64 times.
        let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
    }

    /// Names the guest, once the network is there.
    pub fn name(&self, name: &str) {
        self.wish(Wish::Name(self.mac, name.to_owned()), None);
    }

    /// Lets a port of the host's lead to the guest, once the network is there; to the guest itself where the rule names none.
    pub fn forward_later(&self, forward: Forward) {
        self.wish(Wish::Forward(forward, self.mac), None);
    }

    /// Lets a port of the host's lead to the guest, or ends that.
    ///
    /// # Errors
    /// What the network says to it; or that it is not there.
    pub fn forward(&self, forward: Forward, on: bool) -> Result<(), String> {
        let (reply, replied) = mpsc::channel();
        let wish = match on {
            true => Wish::Forward(forward, self.mac),
            false => Wish::Unforward(forward, self.mac),
        };
        self.wish(wish, Some(reply));
        let answer = replied.recv_timeout(PATIENCE);
        answer.unwrap_or_else(|_| Err("the network does not answer".to_owned()))
    }
}

impl Drop for Wishes {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It does not panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::Switch;
    use crate::nat::NatConfig;

    const MAC: Mac = [8, 0, 0x27, 0, 0, 1];

    fn forward() -> Forward {
        Forward {
            transport: Transport::Tcp,
            host: "127.0.0.1:0".parse().unwrap(),
            guest: None,
            port: 22,
        }
    }

    #[test]
    fn wishes_are_read_as_they_were_written() {
        let open = Forward {
            guest: Some("fd17::15".parse().unwrap()),
            transport: Transport::Udp,
            ..forward()
        };
        for wish in [
            Wish::Name(MAC, "web".to_owned()),
            Wish::Forward(forward(), MAC),
            Wish::Unforward(open, MAC),
        ] {
            assert_eq!(Wish::parse(&wish.line()), Some(wish));
        }
    }

    proptest! {
        #[test]
        fn any_line_is_a_wish_or_none(line in "\\PC{0,80}") {
            let _ = Wish::parse(&line);
        }
    }

    /// Waits for something.
    fn until(mut done: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < end, "it does not happen");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn what_was_wished_for_is_granted_when_there_is_a_desk_and_ends_with_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("desk");
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let wishes = Wishes::new(path.clone(), MAC).unwrap();
        wishes.name("web");
        wishes.forward_later(Forward {
            host: free,
            ..forward()
        });
        let nat = Arc::new(Nat::start(&Switch::new(), NatConfig::default()).unwrap());
        let desk = Desk::open(&path, &nat).unwrap();
        until(|| TcpStream::connect(free).is_ok());
        let missing = wishes.forward(forward(), false).unwrap_err();
        assert_eq!(missing, "127.0.0.1:0 is not a port of this guest");
        let taken = wishes
            .forward(
                Forward {
                    host: free,
                    ..forward()
                },
                true,
            )
            .unwrap_err();
        assert!(taken.contains("cannot listen"), "{taken}");
        drop(desk);
        drop(wishes);
        until(|| TcpStream::connect(free).is_err());
    }
}
