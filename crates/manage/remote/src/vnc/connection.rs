//! A client: what it has asked for, a thread that reads what it says, and a thread that writes what it is owed.
//!
//! Memory is bounded: of what a client sends, one message is kept; of what it gets, the pixels of one update.

use std::io;
use std::io::Read;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use display::Cursor;
use display::Framebuffer;
use display::Move;
use display::Rect;
use display::Surface;

use super::encode::Encoder;
use super::encode::Encoding;
use super::encode::head;
use super::encode::number;
use super::handshake::Offer;
use super::input::Hands;
use super::message;
use super::message::ClientMessage;
use super::message::MessageReader;
use super::pixel::PixelFormat;
use super::server::Shared;
use super::server::State;
use super::socket::Socket;

/// How long a client may take for each step of the handshake, and for taking what it asked for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes that are gathered before they are written.
const GATHERED: usize = 64 << 10;
/// Answer to a client that wants another size: it was the client, and it may not.
const PROHIBITED: (u16, u16) = (1, 1);

/// How a client learns of another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resizing {
    /// It cannot.
    No,
    Plain,
    Extended,
}

/// A screen's size, to be told.
#[derive(Clone, Copy, Debug)]
struct TellSize {
    resizing: Resizing,
    /// Reason and status.
    why: (u16, u16),
    size: (u32, u32),
}

/// What a client has asked for.
#[derive(Clone, Copy, Debug)]
struct Request {
    incremental: bool,
    rect: Rect,
}

/// What the server knows of a client.
pub(super) struct ClientState {
    format: PixelFormat,
    encoding: Encoding,
    level: Option<u32>,
    copy_rect: bool,
    resizing: Resizing,
    cursor: bool,
    led: bool,
    request: Option<Request>,
    /// The size that it believes.
    size: (u32, u32),
    /// The generation that it has seen; 0 for none.
    seen: u64,
    /// The pointer's picture that it has.
    seen_cursor: u64,
    seen_leds: Option<u8>,
    /// It is to be told that extended keys are understood.
    tell_keys: bool,
    /// It is to be told the size, for this reason and with this status.
    tell_size: Option<(u16, u16)>,
}

/// An update, ready to be encoded without a lock.
struct Update {
    format: PixelFormat,
    encoding: Encoding,
    level: Option<u32>,
    tell_keys: bool,
    size: Option<TellSize>,
    cursor: Option<Option<Arc<Cursor>>>,
    leds: Option<u8>,
    moved: Option<Move>,
    width: u32,
    parts: Vec<(Rect, Surface)>,
}

impl ClientState {
    fn new(size: (u32, u32)) -> Self {
        Self {
            format: PixelFormat::OURS,
            encoding: Encoding::Raw,
            level: None,
            copy_rect: false,
            resizing: Resizing::No,
            cursor: false,
            led: false,
            request: None,
            size,
            seen: 0,
            seen_cursor: 0,
            seen_leds: None,
            tell_keys: false,
            tell_size: None,
        }
    }

    /// Whether it waits for a picture.
    pub(super) fn is_waiting(&self) -> bool {
        self.request.is_some()
    }

    fn set_encodings(&mut self, wanted: &[i32]) {
        let knows = |number: i32| wanted.contains(&number);
        self.encoding = Encoding::best(wanted);
        self.copy_rect = knows(number::COPY_RECT);
        self.level = wanted
            .iter()
            .find(|encoding| (number::LEVEL_0..=number::LEVEL_9).contains(encoding))
            .and_then(|encoding| u32::try_from(encoding - number::LEVEL_0).ok());
        let before = self.resizing;
        self.resizing = if knows(number::EXTENDED_DESKTOP_SIZE) {
            Resizing::Extended
        } else if knows(number::DESKTOP_SIZE) {
            Resizing::Plain
        } else {
            Resizing::No
        };
        if self.resizing == Resizing::Extended && before != Resizing::Extended {
            self.tell_size = Some((0, 0));
        }
        self.cursor = knows(number::CURSOR);
        self.led = knows(number::QEMU_LED);
        self.tell_keys = knows(number::QEMU_EXTENDED_KEY);
    }

    /// What it is owed now; nothing while there is nothing new.
    fn update(&mut self, framebuffer: &Framebuffer, leds: Option<u8>) -> Option<Update> {
        let request = self.request?;
        let mut update = Update {
            format: self.format,
            encoding: self.encoding,
            level: self.level,
            tell_keys: std::mem::take(&mut self.tell_keys),
            size: None,
            cursor: None,
            leds: None,
            moved: None,
            width: self.size.0,
            parts: Vec::new(),
        };
        let bounds = framebuffer.surface().bounds();
        let size = (bounds.width, bounds.height);
        if self.resizing != Resizing::No && (self.tell_size.is_some() || self.size != size) {
            // An update of its own: what follows is asked for by a client that knows the size.
            if self.size != size {
                self.seen = 0;
            }
            self.size = size;
            update.size = Some(TellSize {
                resizing: self.resizing,
                why: self.tell_size.take().unwrap_or((0, 0)),
                size,
            });
            self.request = None;
            return Some(update);
        }
        if self.cursor && self.seen_cursor != framebuffer.cursor_generation() {
            self.seen_cursor = framebuffer.cursor_generation();
            update.cursor = Some(framebuffer.cursor().cloned());
        }
        if self.led && self.seen_leds != leds {
            self.seen_leds = leds;
            update.leds = leds;
        }
        self.add_pixels(framebuffer, request, &mut update);
        if update.is_empty() {
            return None;
        }
        self.request = None;
        Some(update)
    }

    fn add_pixels(&mut self, framebuffer: &Framebuffer, request: Request, update: &mut Update) {
        let whole = Rect::new(0, 0, self.size.0, self.size.1);
        let surface = framebuffer.surface();
        let rects = if !request.incremental {
            let rect = request.rect.intersect(&whole);
            if rect == whole {
                self.seen = framebuffer.generation();
            }
            vec![rect]
        } else {
            let moves = self.copy_rect && surface.bounds() == whole;
            let changes = framebuffer.changes_since(self.seen, moves);
            self.seen = framebuffer.generation();
            update.moved = changes.moved;
            // A client that cannot be resized sees the part that it has room for, and black beside it.
            if changes.resized { vec![whole] } else { changes.rects }
        };
        for rect in rects {
            let rect = rect.intersect(&whole);
            for piece in self.encoding.split(&rect).into_iter().filter(|piece| !piece.is_empty()) {
                let mut part = surface.copy_out(&piece);
                if (part.width(), part.height()) != (piece.width, piece.height) {
                    let inside = part;
                    part = Surface::new(piece.width, piece.height);
                    part.paste(0, 0, &inside);
                }
                update.parts.push((piece, part));
            }
        }
    }
}

impl Update {
    fn is_empty(&self) -> bool {
        !self.tell_keys
            && self.size.is_none()
            && self.cursor.is_none()
            && self.leds.is_none()
            && self.moved.is_none()
            && self.parts.is_empty()
    }

    fn rectangles(&self) -> usize {
        let flags = [
            self.tell_keys,
            self.size.is_some(),
            self.cursor.is_some(),
            self.leds.is_some(),
            self.moved.is_some(),
        ];
        flags.into_iter().filter(|flag| *flag).count() + self.parts.len()
    }

    /// Encodes and writes it.
    fn send(self, encoder: &mut Encoder, socket: &mut impl Write) -> io::Result<()> {
        encoder.set_level(self.level);
        let mut out = encoder.set_format(self.format).unwrap_or_default();
        // A screen has fewer tiles than that.
        let count = u16::try_from(self.rectangles()).unwrap_or(u16::MAX);
        out.extend([0, 0]);
        out.extend(count.to_be_bytes());
        if self.tell_keys {
            head(&Rect::default(), number::QEMU_EXTENDED_KEY, &mut out);
        }
        if let Some(told) = self.size {
            put_size(told, &mut out);
        }
        if let Some(cursor) = self.cursor {
            encoder.cursor(cursor.as_deref(), &mut out);
        }
        if let Some(leds) = self.leds {
            head(&Rect::default(), number::QEMU_LED, &mut out);
            out.push(leds);
        }
        if let Some(Move { from, to, rows }) = self.moved {
            head(&Rect::new(0, to, self.width, rows), number::COPY_RECT, &mut out);
            out.extend([0, 0]);
            out.extend(u16::try_from(from).unwrap_or(u16::MAX).to_be_bytes());
        }
        for (rect, part) in self.parts {
            encoder.rect(self.encoding, &rect, &part, &mut out);
            if out.len() >= GATHERED {
                socket.write_all(&out)?;
                out.clear();
            }
        }
        socket.write_all(&out)
    }
}

fn put_size(told: TellSize, out: &mut Vec<u8>) {
    let (width, height) = told.size;
    if told.resizing == Resizing::Plain {
        return head(&Rect::new(0, 0, width, height), number::DESKTOP_SIZE, out);
    }
    // Reason and status are where other rectangles have their place; then one screen, the whole of it.
    let (reason, status) = told.why;
    head(
        &Rect::new(reason.into(), status.into(), width, height),
        number::EXTENDED_DESKTOP_SIZE,
        out,
    );
    out.extend([1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    for side in [width, height] {
        out.extend(u16::try_from(side).unwrap_or(u16::MAX).to_be_bytes());
    }
    out.extend([0; 4]);
}

/// Serves a client until it leaves, or is sent away.
pub(super) fn run(shared: &Arc<Shared>, id: u64, mut socket: Socket, peer: &str) {
    let size = match admit(shared, &mut socket) {
        Ok(size) => size,
        Err(error) => {
            tracing::info!(peer, %error, "VNC: connection refused");
            return socket.close();
        }
    };
    let Ok(mut writing) = socket.try_clone() else {
        return;
    };
    shared.lock().clients.insert(id, ClientState::new(size));
    tracing::info!(peer, "VNC: connected");
    let theirs = Arc::clone(shared);
    let name = peer.to_owned();
    let write = move || {
        if let Err(error) = write_updates(&theirs, id, &mut writing) {
            tracing::info!(peer = name, %error, "VNC: client takes nothing any more");
        }
        writing.close();
    };
    let writer = std::thread::Builder::new().name(format!("vnc-{id}-out")).spawn(write);
    match read_messages(shared, id, &mut socket) {
        Ok(()) => tracing::info!(peer, "VNC: disconnected"),
        Err(error) => tracing::warn!(peer, %error, "VNC: client sent away"),
    }
    socket.close();
    shared.leave(id);
    if let Ok(writer) = writer {
        let _ = writer.join();
    }
}

/// The handshake; the size that the client was told.
fn admit(shared: &Shared, socket: &mut Socket) -> Result<(u32, u32), super::handshake::HandshakeError> {
    socket.set_timeouts(Some(PATIENCE), Some(PATIENCE))?;
    let offer = Offer {
        password: shared.config.password.as_ref(),
        name: &shared.config.name,
    };
    offer.authenticate(socket)?;
    let bounds = shared.lock().framebuffer.surface().bounds();
    let field = |side: u32| u16::try_from(side).unwrap_or(u16::MAX);
    offer.start(socket, (field(bounds.width), field(bounds.height)))?;
    // A client may be silent as long as it likes.
    socket.set_timeouts(None, Some(PATIENCE))?;
    Ok((bounds.width, bounds.height))
}

fn write_updates(shared: &Shared, id: u64, socket: &mut Socket) -> io::Result<()> {
    let mut encoder = Encoder::new();
    loop {
        let mut state = shared.lock();
        let update = loop {
            let State {
                framebuffer,
                leds,
                clients,
                stopping,
                ..
            } = &mut *state;
            let Some(client) = clients.get_mut(&id).filter(|_| !*stopping) else {
                return Ok(());
            };
            if let Some(update) = client.update(framebuffer, *leds) {
                break update;
            }
            state = shared.wait(state);
        };
        drop(state);
        update.send(&mut encoder, socket)?;
    }
}

/// Why a client was sent away.
#[derive(Debug, thiserror::Error)]
enum ClientError {
    #[error("{0}")]
    Protocol(#[from] message::ProtocolError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

fn read_messages(shared: &Shared, id: u64, socket: &mut Socket) -> Result<(), ClientError> {
    let mut hands = Hands::new(Arc::clone(&shared.sink), shared.config.layout);
    let mut reader = MessageReader::new();
    let mut chunk = [0; 4096];
    loop {
        let count = match socket.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let bytes = chunk.get(..count).unwrap_or_default();
        reader.push(bytes, |message| take(shared, id, &mut hands, message))?;
    }
}

fn take(shared: &Shared, id: u64, hands: &mut Hands, message: ClientMessage) {
    // Input goes out without the lock: a device may have to be waited for.
    match message {
        ClientMessage::Key { down, keysym } => return hands.key(down, keysym),
        ClientMessage::ExtendedKey { down, keysym, keycode } => return hands.extended_key(down, keysym, keycode),
        ClientMessage::Pointer { buttons, x, y } => {
            let size = shared.lock().clients.get(&id).map_or((1, 1), |client| client.size);
            return hands.pointer(buttons, (x, y), size);
        }
        _ => {}
    }
    let mut state = shared.lock();
    let Some(client) = state.clients.get_mut(&id) else {
        return;
    };
    match message {
        ClientMessage::SetPixelFormat(format) => client.format = format,
        ClientMessage::SetEncodings(wanted) => client.set_encodings(&wanted),
        ClientMessage::UpdateRequest { incremental, rect } => {
            // Of two requests that wait, the one for more stays.
            let both = client.request.is_none_or(|waiting| waiting.incremental);
            if both {
                client.request = Some(Request { incremental, rect });
            }
        }
        ClientMessage::SetDesktopSize { .. } => client.tell_size = Some(PROHIBITED),
        _ => {}
    }
    drop(state);
    shared.notify();
}

#[cfg(test)]
mod tests;
