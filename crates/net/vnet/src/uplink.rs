//! Frames between a port and another process: over a socket that keeps messages apart.
//!
//! To a switch process a frame goes with what is left to do on it, in a header of eight bytes; in a UDP tunnel it is the datagram.
//! A tap or a packet socket is a file of frames behind virtio-net headers. What the socket takes no more of waits in the port.

use std::io;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use device_model::Frame;
use device_model::FramePort;
use device_model::net::Accepts;
use device_model::net::Checksum;
use device_model::net::FRAME_MAX;
use device_model::net::Mac;
use device_model::net::Offload;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;
use device_model::net::header;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::net::SendAncillaryBuffer;
use rustix::net::SendFlags;

use crate::Port;

const HEADER: usize = 8;
/// Frames that go in one direction before the other has its turn.
const BUDGET: usize = 256;
const ECN: u8 = 0x80;
/// Stations of our side that are remembered at most.
const STATIONS: usize = 64;

/// How frames are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// With a header; between processes of this program.
    Own,
    /// As they are, finished.
    Plain,
    /// Behind a virtio-net header; to the host's own network.
    Host(Host),
}

/// What a tap or a packet socket is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// It takes long datagrams.
    pub(crate) long_datagrams: bool,
    /// It hears what is for others: only what is for stations on our side, or for groups, is taken.
    pub(crate) hears_all: bool,
}

fn head_of(offload: &Offload) -> [u8; HEADER] {
    let (kind, start, offset) = match offload.checksum {
        Checksum::Present => (0, 0, 0),
        Checksum::Good => (1, 0, 0),
        Checksum::Missing { start, offset } => (2, start, offset),
    };
    let (segments, size) = match offload.segmentation {
        None => (0, 0),
        Some(Segmentation { kind, size, ecn }) => {
            let kind = match kind {
                SegmentKind::Tcp4 => 1,
                SegmentKind::Tcp6 => 2,
                SegmentKind::Udp => 3,
            };
            (kind | if ecn { ECN } else { 0 }, size)
        }
    };
    let ([s0, s1], [o0, o1], [z0, z1]) = (start.to_le_bytes(), offset.to_le_bytes(), u16::to_le_bytes(size));
    [kind, segments, s0, s1, o0, o1, z0, z1]
}

/// The frame in a message; none if it is no frame.
fn parse(message: &[u8]) -> Option<Frame> {
    let (head, bytes) = message.split_first_chunk::<HEADER>()?;
    let [kind, segments, s0, s1, o0, o1, z0, z1] = *head;
    let checksum = match kind {
        0 => Checksum::Present,
        1 => Checksum::Good,
        2 => Checksum::Missing {
            start: u16::from_le_bytes([s0, s1]),
            offset: u16::from_le_bytes([o0, o1]),
        },
        _ => return None,
    };
    let split = |kind| Segmentation {
        kind,
        size: u16::from_le_bytes([z0, z1]),
        ecn: segments & ECN != 0,
    };
    let segmentation = match segments & !ECN {
        0 => None,
        1 => Some(split(SegmentKind::Tcp4)),
        2 => Some(split(SegmentKind::Tcp6)),
        3 => Some(split(SegmentKind::Udp)),
        _ => return None,
    };
    let offload = Offload { checksum, segmentation };
    let bytes = bytes.to_vec();
    Some(Frame { bytes, offload })
}

/// What a pump waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waits {
    pub(crate) to_read: bool,
    pub(crate) to_write: bool,
    /// There is more to do at once.
    pub(crate) more: bool,
}

/// A port and a socket.
pub(crate) struct Pump {
    port: Arc<Port>,
    socket: OwnedFd,
    wire: Wire,
    /// What the socket had no room for, and what the port had none for.
    unsent: Option<Frame>,
    undelivered: Option<Frame>,
    /// Who has sent from our side, where that matters: the one heard last is the last.
    stations: Vec<Mac>,
    buffer: Vec<u8>,
}

impl Pump {
    pub(crate) fn new(port: Arc<Port>, socket: OwnedFd, wire: Wire) -> Self {
        port.set_accepts(match wire {
            Wire::Own => Accepts::ALL,
            Wire::Plain => Accepts::default(),
            Wire::Host(host) => Accepts {
                udp: host.long_datagrams,
                ..Accepts::ALL
            },
        });
        Self {
            port,
            socket,
            wire,
            stations: Vec::new(),
            unsent: None,
            undelivered: None,
            buffer: vec![0; HEADER.max(header::LEN) + FRAME_MAX],
        }
    }

    pub(crate) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Moves frames both ways.
    ///
    /// # Errors
    /// When the other end is gone.
    pub(crate) fn pump(&mut self) -> io::Result<Waits> {
        let mut more = false;
        for left in (0..BUDGET).rev() {
            let Some(frame) = self.unsent.take().or_else(|| self.port.receive()) else {
                break;
            };
            if !self.write(&frame)? {
                self.unsent = Some(frame);
                break;
            }
            more |= left == 0;
        }
        for left in (0..BUDGET).rev() {
            let frame = match self.undelivered.take() {
                Some(frame) => frame,
                None => match self.read()? {
                    Some(frame) => frame,
                    None => break,
                },
            };
            if let Err(frame) = self.port.send(frame) {
                self.undelivered = Some(frame);
                break;
            }
            more |= left == 0;
        }
        Ok(Waits {
            to_read: self.undelivered.is_none(),
            to_write: self.unsent.is_some(),
            more,
        })
    }

    /// False if there is no room.
    fn write_host(&self, frame: &Frame) -> io::Result<bool> {
        let head = header::write(frame);
        let pieces = [IoSlice::new(&head), IoSlice::new(&frame.bytes)];
        match rustix::io::writev(&self.socket, &pieces) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(Errno::BADFD | Errno::NXIO | Errno::NODEV) => Err(io::ErrorKind::NotConnected.into()),
            // It is down or has no room, or the frame is too long for it: lost, as on a wire.
            Ok(_) | Err(_) => Ok(true),
        }
    }

    fn read_host(&mut self, hears_all: bool) -> io::Result<Option<Frame>> {
        loop {
            let len = match rustix::io::read(&self.socket, &mut self.buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => len,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR | Errno::NETDOWN) => continue,
                Err(error) => return Err(error.into()),
            };
            let message = self.buffer.get(..len).unwrap_or_default();
            let Some((head, bytes)) = message.split_first_chunk::<{ header::LEN }>() else {
                continue;
            };
            let to: Option<Mac> = bytes.get(..6).and_then(|to| to.try_into().ok());
            let ours = to.is_some_and(|to| to[0] & 1 != 0 || self.stations.contains(&to));
            if let Some(offload) = header::read(head)
                && (ours || !hears_all)
            {
                let bytes = bytes.to_vec();
                return Ok(Some(Frame { bytes, offload }));
            }
        }
    }

    /// Remembers who sends from our side.
    fn learn(&mut self, frame: &Frame) {
        let Some(from) = frame.bytes.get(6..12).and_then(|from| Mac::try_from(from).ok()) else {
            return;
        };
        if self.stations.last() != Some(&from) {
            self.stations.retain(|other| *other != from);
            if self.stations.len() >= STATIONS {
                self.stations.remove(0);
            }
            self.stations.push(from);
        }
    }

    /// False if the socket has no room.
    fn write(&mut self, frame: &Frame) -> io::Result<bool> {
        if let Wire::Host(Host { hears_all, .. }) = self.wire {
            if hears_all {
                self.learn(frame);
            }
            return self.write_host(frame);
        }
        let head = head_of(&frame.offload);
        let own = [IoSlice::new(&head), IoSlice::new(&frame.bytes)];
        let plain = [IoSlice::new(&frame.bytes)];
        let pieces = match self.wire {
            Wire::Own => own.as_slice(),
            Wire::Plain | Wire::Host(_) => plain.as_slice(),
        };
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = rustix::net::sendmsg(&self.socket, pieces, &mut SendAncillaryBuffer::default(), flags);
        match (sent, self.wire) {
            (Ok(_), _) => Ok(true),
            (Err(Errno::AGAIN | Errno::NOBUFS), _) => Ok(false),
            (Err(Errno::INTR), _) => Ok(false),
            // A tunnel has nobody at its other end for a while, or is too narrow: the frame is lost, as on a wire.
            (Err(_), Wire::Plain | Wire::Host(_)) => Ok(true),
            (Err(error), Wire::Own) => Err(error.into()),
        }
    }

    /// The next frame; none if there is none now.
    fn read(&mut self) -> io::Result<Option<Frame>> {
        if let Wire::Host(Host { hears_all, .. }) = self.wire {
            return self.read_host(hears_all);
        }
        loop {
            let received = rustix::net::recv(&self.socket, &mut self.buffer, RecvFlags::DONTWAIT);
            let len = match (received, self.wire) {
                (Ok((0, _)), Wire::Own) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (Ok((len, _)), _) => len,
                (Err(Errno::AGAIN), _) => return Ok(None),
                // What came back for an earlier frame.
                (Err(Errno::INTR), _) | (Err(_), Wire::Plain | Wire::Host(_)) => continue,
                (Err(error), Wire::Own) => return Err(error.into()),
            };
            let message = self.buffer.get(..len).unwrap_or_default();
            let frame = match self.wire {
                Wire::Own => parse(message),
                Wire::Plain | Wire::Host(_) => Some(Frame::new(message.to_vec())),
            };
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        for checksum in [
            Checksum::Present,
            Checksum::Good,
            Checksum::Missing { start: 34, offset: 16 },
        ] {
            for kind in [
                None,
                Some(SegmentKind::Tcp4),
                Some(SegmentKind::Tcp6),
                Some(SegmentKind::Udp),
            ] {
                let segmentation = kind.map(|kind| Segmentation {
                    kind,
                    size: 1460,
                    ecn: true,
                });
                let frame = Frame {
                    bytes: vec![1, 2, 3],
                    offload: Offload { checksum, segmentation },
                };
                let message = [&head_of(&frame.offload)[..], &frame.bytes].concat();
                assert_eq!(parse(&message), Some(frame));
            }
        }
    }

    proptest! {
        #[test]
        fn any_message_is_a_frame_or_none(message in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(frame) = parse(&message) {
                prop_assert_eq!(&frame.bytes, &message[HEADER..]);
            }
        }
    }
}
