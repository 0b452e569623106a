//! One socket of a program, as the thread has it. It is watched by edges, so what it is ready for is kept here.

use std::io::IoSlice;
use std::time::Instant;

use device_model::Flow;
use device_model::FlowKind;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendFlags;
use rustix::net::Shutdown;

use crate::lane::Lane;
use crate::table::Inner;
use crate::table::Phase;
use crate::table::Table;

/// Bytes that one socket moves before the others have their turn.
const TURN: usize = 64 << 10;
/// Bytes of a program's message at most: what a socket of the host sends at once if nobody has enlarged its buffer.
pub(crate) const MESSAGE: usize = 256 << 10;
/// The longest line that is a wish, with its end: `CONNECT 4294967295\n`.
const WISH: usize = 32;

/// What a socket is for.
#[derive(Debug)]
pub(crate) enum Role {
    /// Its program has not said yet which port it wants.
    Asking(Vec<u8>, Instant),
    /// A stream; `greeting` goes before it once the guest has it.
    Stream { flow: Flow, greeting: Vec<u8> },
    /// What the guest has sent before it closed.
    Leaving(Lane),
}

/// What is to become of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It waits for something.
    Wait,
    /// There is more to move at once.
    More,
    /// It is done with.
    Close,
}

/// A socket.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: OwnedFd,
    kind: FlowKind,
    token: u64,
    pub(crate) role: Role,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The program has closed it.
    pub(crate) hung_up: bool,
    shut: bool,
    deafened: bool,
}

impl Socket {
    pub(crate) fn new(stream: OwnedFd, kind: FlowKind, token: u64, role: Role) -> Self {
        Self {
            stream,
            kind,
            token,
            role,
            readable: true,
            writable: true,
            hung_up: false,
            shut: false,
            deafened: false,
        }
    }

    /// Moves what can be moved.
    pub(crate) fn serve(&mut self, table: &Table, buffer: &mut [u8]) -> Fate {
        match &self.role {
            Role::Asking(..) => self.ask(table),
            Role::Stream { flow, .. } => {
                let flow = *flow;
                let moved = self.exchange(flow, table, buffer);
                if moved == Fate::Close {
                    table.with(|inner| inner.lose(flow, self.token));
                }
                moved
            }
            Role::Leaving(_) => self.leave(),
        }
    }

    /// Takes a line that says which port is wanted.
    fn ask(&mut self, table: &Table) -> Fate {
        let Role::Asking(line, _) = &mut self.role else {
            return Fate::Close;
        };
        let mut bytes = [0; WISH];
        loop {
            let Some(rest) = bytes.get_mut(line.len()..).filter(|rest| !rest.is_empty()) else {
                return Fate::Close;
            };
            match receive(&self.stream, self.kind, rest) {
                Ok(Some(0)) | Err(_) => return Fate::Close,
                Ok(None) => {
                    self.readable = false;
                    return Fate::Wait;
                }
                Ok(Some(len)) => line.extend(rest.get(..len).unwrap_or_default()),
            }
            let end = match line.iter().position(|byte| *byte == b'\n') {
                Some(end) => end,
                None if self.kind == FlowKind::Stream => continue,
                // A message ends without a line feed as well.
                None => line.len().saturating_sub(1),
            };
            let (wish, first) = line.split_at_checked(end + 1).unwrap_or_default();
            let Some(port) = port_of(wish) else {
                return Fate::Close;
            };
            if self.kind == FlowKind::Packets && !first.is_empty() {
                return Fate::Close;
            }
            let flow = table.with(|inner| inner.offer(self.token, self.kind, port, first));
            self.role = Role::Stream {
                flow,
                greeting: format!("OK {}\n", flow.host).into_bytes(),
            };
            return Fate::Wait;
        }
    }

    fn exchange(&mut self, flow: Flow, table: &Table, buffer: &mut [u8]) -> Fate {
        let phase = table.with(|inner| inner.stream(flow, self.token).map(|stream| stream.phase));
        match phase {
            // The device has closed it: that comes as a task of its own.
            None => return Fate::Wait,
            Some(Phase::Offered) if self.hung_up => return Fate::Close,
            Some(Phase::Offered | Phase::Connecting) => return Fate::Wait,
            Some(Phase::Open) => {}
        }
        let more = self.write(flow, table) | self.read(flow, table, buffer);
        if self.hung_up {
            // What it had sent before is taken first.
            let ended = |inner: &mut Inner| inner.stream(flow, self.token).is_some_and(|stream| stream.ended);
            if table.with(ended) {
                table.with(|inner| inner.deafen(flow, self.token));
            }
        }
        if more { Fate::More } else { Fate::Wait }
    }

    /// Tells the program that the guest has it. Whether there is more to tell.
    fn greet(&mut self, flow: Flow, table: &Table) -> bool {
        let Role::Stream { greeting, .. } = &mut self.role else {
            return false;
        };
        if !greeting.is_empty() {
            match send(&self.stream, &[IoSlice::new(greeting)]) {
                Ok(len) => drop(greeting.drain(..len.min(greeting.len()))),
                Err(error) => self.cannot_write(error, flow, table),
            }
        }
        !greeting_of(&self.role).is_empty()
    }

    /// Gives the program what there is. Whether there is more.
    fn write(&mut self, flow: Flow, table: &Table) -> bool {
        if self.greet(flow, table) {
            return self.writable;
        }
        let take = |inner: &mut Inner| {
            let stream = inner.stream(flow, self.token)?;
            Some((
                std::mem::replace(&mut stream.to_host, Lane::new(self.kind)),
                stream.guest_ended,
                stream.guest_deaf,
            ))
        };
        let Some((mut bytes, ended, deaf)) = table.with(take) else {
            return false;
        };
        if deaf && !std::mem::replace(&mut self.deafened, true) {
            let _ = rustix::net::shutdown(&self.stream, Shutdown::Read);
        }
        let (written, failed) = self.send_turn(&mut bytes);
        let left = table.with(|inner| {
            let stream = inner.stream(flow, self.token)?;
            stream.delivered += written as u64;
            // What was sent meanwhile comes behind.
            bytes.append(&mut stream.to_host);
            std::mem::swap(&mut stream.to_host, &mut bytes);
            let left = stream.to_host.ready();
            if written > 0 {
                inner.tell(flow);
            }
            Some(left)
        });
        if left == Some(0) && ended && !std::mem::replace(&mut self.shut, true) {
            let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
        }
        match failed {
            Some(error) => self.cannot_write(error, flow, table),
            None if left.is_none() && bytes.ready() > 0 => {
                // The device closed the stream while its bytes were here: they are the first of what is left.
                self.role = Role::Leaving(bytes);
            }
            None => {}
        }
        self.writable && left.is_some_and(|left| left > 0)
    }

    /// Sends a turn's worth; how many bytes, and why no more if that is for good.
    fn send_turn(&mut self, bytes: &mut Lane) -> (usize, Option<Errno>) {
        let mut written = 0;
        while self.writable && bytes.ready() > 0 && written < TURN {
            match send_all(&self.stream, bytes) {
                Ok(len) => {
                    bytes.skip(len);
                    written += len;
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(error) => return (written, Some(error)),
            }
        }
        (written, None)
    }

    /// The program takes nothing any more, or has no room.
    fn cannot_write(&mut self, error: Errno, flow: Flow, table: &Table) {
        self.writable = false;
        if error == Errno::AGAIN {
            return;
        }
        table.with(|inner| inner.deafen(flow, self.token));
    }

    /// Takes what the program has sent. Whether there is more.
    fn read(&mut self, flow: Flow, table: &Table, buffer: &mut [u8]) -> bool {
        if !self.readable {
            return false;
        }
        let room = table.with(|inner| inner.stream(flow, self.token).map_or(0, |stream| stream.room()));
        let most = match self.kind {
            FlowKind::Stream => room.min(TURN),
            // A message is taken as a whole.
            FlowKind::Packets if room > 0 => MESSAGE,
            FlowKind::Packets => 0,
        };
        let Some(space) = buffer.get_mut(..most).filter(|space| !space.is_empty()) else {
            return false;
        };
        // A program that reset the connection has said its last.
        let Some(len) = receive(&self.stream, self.kind, space).unwrap_or(Some(0)) else {
            self.readable = false;
            return false;
        };
        if len > space.len() {
            // The rest of the message is gone.
            table.with(|inner| inner.lose(flow, self.token));
            self.role = Role::Leaving(Lane::new(self.kind));
            return true;
        }
        table.with(|inner| {
            if let Some(stream) = inner.stream(flow, self.token) {
                stream.from_host.push(space.get(..len).unwrap_or_default(), true);
                stream.ended |= len == 0;
                inner.tell(flow);
            }
        });
        len > 0
    }

    /// Delivers what the guest had sent before it closed.
    fn leave(&mut self) -> Fate {
        let Role::Leaving(bytes) = &mut self.role else {
            return Fate::Close;
        };
        while bytes.ready() > 0 && self.writable {
            match send_all(&self.stream, bytes) {
                Ok(len) => bytes.skip(len),
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => return Fate::Close,
            }
        }
        if bytes.ready() == 0 { Fate::Close } else { Fate::Wait }
    }

    /// The device has closed the stream: `rest` is still to be delivered.
    pub(crate) fn end(&mut self, mut rest: Lane) {
        match &mut self.role {
            Role::Leaving(bytes) => bytes.append(&mut rest),
            role => *role = Role::Leaving(rest),
        }
    }
}

fn greeting_of(role: &Role) -> &[u8] {
    match role {
        Role::Stream { greeting, .. } => greeting,
        Role::Asking(..) | Role::Leaving(_) => &[],
    }
}

/// The port of a line `CONNECT 1234`.
fn port_of(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let (word, port) = line.trim_end().split_once(' ')?;
    if !word.eq_ignore_ascii_case("connect") {
        return None;
    }
    port.trim_start().parse().ok()
}

fn send(stream: &OwnedFd, pieces: &[IoSlice<'_>]) -> Result<usize, Errno> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    loop {
        match rustix::net::sendmsg(stream, pieces, &mut SendAncillaryBuffer::default(), flags) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Sends what there is, or the first message.
fn send_all(stream: &OwnedFd, bytes: &Lane) -> Result<usize, Errno> {
    let (first, second) = bytes.front();
    send(stream, &[IoSlice::new(first), IoSlice::new(second)])
}

/// How much has come; none when nothing has, no bytes at the end, more than the buffer takes where a message did not fit.
fn receive(stream: &OwnedFd, kind: FlowKind, buffer: &mut [u8]) -> Result<Option<usize>, Errno> {
    let mut flags = RecvFlags::DONTWAIT;
    if kind == FlowKind::Packets {
        flags |= RecvFlags::TRUNC;
    }
    loop {
        match rustix::net::recv(stream, &mut *buffer, flags) {
            Ok((_, len)) => return Ok(Some(len)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wish_is_a_word_and_a_port() {
        assert_eq!(port_of(b"CONNECT 1234\n"), Some(1234));
        assert_eq!(port_of(b"connect 4294967295\r\n"), Some(u32::MAX));
        for line in [
            "CONNECT\n",
            "CONNECT x\n",
            "CONNECT 4294967296\n",
            "HELLO 1\n",
            "CONNECT -1\n",
            "\n",
        ] {
            assert_eq!(port_of(line.as_bytes()), None, "{line:?}");
        }
    }
}
