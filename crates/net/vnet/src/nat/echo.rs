//! ICMP echo: guests' pings by the host's unprivileged ICMP sockets, where its administrator allows them.
//!
//! Spec: RFC 792, RFC 4443 §4; icmp(7), `ping_group_range`.

use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;
use std::time::Instant;

use device_model::net::Mac;
use rustix::net::AddressFamily;
use rustix::net::RecvFlags;
use rustix::net::SendFlags;
use rustix::net::SocketFlags;
use rustix::net::SocketType;
use rustix::net::ipproto;

const IDLE: Duration = Duration::from_secs(30);
/// Kinds of message: request and reply of ICMP and of ICMPv6.
pub(super) const REQUEST: u8 = 8;
const REPLY: u8 = 0;
pub(super) const REQUEST6: u8 = 128;
const REPLY6: u8 = 129;

/// A guest's ping: it and its identifier, and whom it pings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ping {
    pub(super) guest: IpAddr,
    pub(super) other: IpAddr,
    pub(super) id: [u8; 2],
}

/// The host's socket for a ping.
pub(super) struct Pinger {
    pub(super) ping: Ping,
    pub(super) mac: Mac,
    pub(super) socket: OwnedFd,
    used: Instant,
}

impl Pinger {
    pub(super) fn new(ping: Ping, mac: Mac) -> io::Result<Self> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (family, protocol) = match ping.other {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let socket = rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
        Ok(Self {
            ping,
            mac,
            socket,
            used: Instant::now(),
        })
    }

    /// Sends a request; the kernel puts an identifier of its own in. `to` is whom the host knows the other as.
    pub(super) fn send(&mut self, message: &[u8], to: IpAddr) -> io::Result<()> {
        self.used = Instant::now();
        rustix::net::sendto(&self.socket, message, SendFlags::empty(), &SocketAddr::new(to, 0))?;
        Ok(())
    }

    /// The next reply, with the guest's identifier in it.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Option<Vec<u8>> {
        let (received, _) = rustix::net::recv(&self.socket, &mut *buffer, RecvFlags::empty()).ok()?;
        let mut message = buffer.get(..received)?.to_vec();
        message.get_mut(4..6)?.copy_from_slice(&self.ping.id);
        Some(message)
    }

    pub(super) fn ends(&self) -> Instant {
        self.used + IDLE
    }
}

/// The reply to a request, with its checksum still to be made. None if the message is none.
pub(super) fn reply(message: &[u8]) -> Option<Vec<u8>> {
    let kind = match *message.first()? {
        REQUEST => REPLY,
        REQUEST6 => REPLY6,
        _ => return None,
    };
    let mut reply = message.to_vec();
    *reply.first_mut()? = kind;
    (reply.len() >= 8).then_some(reply)
}
