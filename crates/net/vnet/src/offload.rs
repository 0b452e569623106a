//! Finishing frames in software: filling in checksums, splitting segments.
//!
//! Spec: RFC 1071; RFC 9293 §3.1 (TCP header); virtio 1.2 §5.1.6.2 (which fields of a long segment hold what).

use std::ops::Range;

use device_model::Frame;
use device_model::net::Accepts;
use device_model::net::Checksum;
use device_model::net::ETHERNET_HEADER;
use device_model::net::Offload;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;

use crate::bytes::be16;
use crate::bytes::be32;
use crate::bytes::checksum;
use crate::bytes::len16;
use crate::bytes::put;
use crate::bytes::sum;

/// EtherType of IPv4.
pub(crate) const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub(crate) const IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag.
const VLAN: u16 = 0x8100;
/// Protocol number of TCP.
pub(crate) const TCP: u8 = 6;
/// Protocol number of UDP.
pub(crate) const UDP: u8 = 17;
/// Flags of a TCP header that only the last segment has (FIN, PSH), and only the first one (CWR).
const LAST_ONLY: u8 = 0x09;
const FIRST_ONLY: u8 = 0x80;
/// Segments of one frame at most: the smallest that TCP has to take is 536 bytes, and guests that ask for less are misled.
const SEGMENTS: usize = 1024;

/// A frame is not what it is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame is not what its sender said of it")]
pub struct BadFrame;

/// Makes `frame` one that `accepts` takes, and hands it or its segments to `out`.
///
/// # Errors
/// [`BadFrame`] when the frame's headers do not fit what is to be done. Some segments may have been handed out before.
pub fn finish(mut frame: Frame, accepts: &Accepts, out: &mut dyn FnMut(Frame)) -> Result<(), BadFrame> {
    if accepts.takes(&frame.offload) {
        out(frame);
        return Ok(());
    }
    if let Some(segmentation) = frame.offload.segmentation {
        return split(&frame.bytes, segmentation, out).ok_or(BadFrame)?;
    }
    fill_checksum(&mut frame)?;
    out(frame);
    Ok(())
}

/// Fills a checksum in that is missing.
///
/// # Errors
/// [`BadFrame`] when its place is beyond the frame's end.
pub fn fill_checksum(frame: &mut Frame) -> Result<(), BadFrame> {
    if let Checksum::Missing { start, offset } = frame.offload.checksum {
        let start = usize::from(start);
        let value = checksum(sum(frame.bytes.get(start..).ok_or(BadFrame)?));
        // Zero would mean "none" to UDP, and the two are the same to everybody else.
        let value = if value == 0 { 0xffff } else { value };
        put(&mut frame.bytes, start + usize::from(offset), &value.to_be_bytes()).ok_or(BadFrame)?;
        frame.offload.checksum = Checksum::Good;
    }
    Ok(())
}

/// Where the parts of a frame are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) ethertype: u16,
    /// Where the network header begins.
    pub(crate) network: usize,
    /// Where the transport header begins: only that of TCP and UDP, in the first fragment.
    pub(crate) transport: usize,
    pub(crate) protocol: u8,
    /// Where the packet ends, by what its header says; padding follows.
    pub(crate) end: usize,
}

/// The layout of an IP packet in a frame. None if it is none, is cut off, or is a fragment.
pub(crate) fn layout(bytes: &[u8]) -> Option<Layout> {
    let mut network = ETHERNET_HEADER;
    let mut ethertype = be16(bytes, network - 2)?;
    if ethertype == VLAN {
        network += 4;
        ethertype = be16(bytes, network - 2)?;
    }
    let (transport, protocol, end) = match ethertype {
        IPV4 => {
            let first = *bytes.get(network)?;
            let (version, words) = (first >> 4, usize::from(first & 15));
            let len = usize::from(be16(bytes, network + 2)?);
            let fragment = be16(bytes, network + 6)? & 0x3fff;
            if version != 4 || words < 5 || len < words * 4 || fragment != 0 {
                return None;
            }
            (network + words * 4, *bytes.get(network + 9)?, network + len)
        }
        IPV6 => {
            let len = usize::from(be16(bytes, network + 4)?);
            if *bytes.get(network)? >> 4 != 6 {
                return None;
            }
            (network + 40, *bytes.get(network + 6)?, network + 40 + len)
        }
        _ => return None,
    };
    let fits = transport <= end && end <= bytes.len();
    fits.then_some(Layout {
        ethertype,
        network,
        transport,
        protocol,
        end,
    })
}

/// The sum of a pseudo-header (RFC 9293 §3.1, RFC 8200 §8.1).
pub(crate) fn pseudo_header(bytes: &[u8], layout: &Layout, len: usize) -> Option<u64> {
    let addresses = match layout.ethertype {
        IPV4 => bytes.get(layout.network + 12..layout.network + 20)?,
        _ => bytes.get(layout.network + 8..layout.network + 40)?,
    };
    Some(sum(addresses) + u64::from(layout.protocol) + len as u64)
}

/// Splits a long segment. `None` when it is none.
fn split(bytes: &[u8], how: Segmentation, out: &mut dyn FnMut(Frame)) -> Option<Result<(), BadFrame>> {
    let layout = long_layout(bytes, how.kind)?;
    let header_end = layout.transport + transport_header(bytes, &layout)?;
    let payload = bytes.get(header_end..layout.end)?;
    let size = usize::from(how.size);
    if size == 0 || payload.len().div_ceil(size) > SEGMENTS {
        return None;
    }
    let header = bytes.get(..header_end)?;
    let count = payload.len().div_ceil(size).max(1);
    for index in 0..count {
        let from = index * size;
        let to = payload.len().min(from + size);
        let mut segment = Vec::with_capacity(header_end + to - from);
        segment.extend_from_slice(header);
        segment.extend_from_slice(payload.get(from..to)?);
        let place = Place {
            index,
            from,
            last: index + 1 == count,
        };
        finish_segment(&mut segment, &layout, &place)?;
        let checksum = Checksum::Good;
        out(Frame {
            bytes: segment,
            offload: Offload {
                checksum,
                segmentation: None,
            },
        });
    }
    Some(Ok(()))
}

/// The layout of a long segment, whose IP header need not have its length: it goes to the end of the frame.
fn long_layout(bytes: &[u8], kind: SegmentKind) -> Option<Layout> {
    let mut layout = layout(bytes)?;
    layout.end = bytes.len();
    let fits = match kind {
        SegmentKind::Tcp4 => layout.ethertype == IPV4 && layout.protocol == TCP,
        SegmentKind::Tcp6 => layout.ethertype == IPV6 && layout.protocol == TCP,
        SegmentKind::Udp => layout.protocol == UDP,
    };
    fits.then_some(layout)
}

/// Bytes of the transport header.
pub(crate) fn transport_header(bytes: &[u8], layout: &Layout) -> Option<usize> {
    let len = match layout.protocol {
        TCP => usize::from(bytes.get(layout.transport + 12)? >> 4) * 4,
        _ => 8,
    };
    let least = if layout.protocol == TCP { 20 } else { 8 };
    let fits = len >= least && layout.transport + len <= layout.end;
    fits.then_some(len)
}

/// Which part of a long segment a segment is.
struct Place {
    index: usize,
    /// Its first byte in the payload.
    from: usize,
    last: bool,
}

fn finish_segment(bytes: &mut [u8], layout: &Layout, place: &Place) -> Option<()> {
    let Layout { network, transport, .. } = *layout;
    let len = bytes.len();
    if layout.ethertype == IPV4 {
        put(bytes, network + 2, &len16(len - network).to_be_bytes())?;
        let id = be16(bytes, network + 4)?.wrapping_add(len16(place.index));
        put(bytes, network + 4, &id.to_be_bytes())?;
        put(bytes, network + 10, &[0, 0])?;
        let header = checksum(sum(bytes.get(network..transport)?));
        put(bytes, network + 10, &header.to_be_bytes())?;
    } else {
        put(bytes, network + 4, &len16(len - network - 40).to_be_bytes())?;
    }
    let field = if layout.protocol == TCP {
        let sequence = be32(bytes, transport + 4)?.wrapping_add(u32::try_from(place.from).ok()?);
        put(bytes, transport + 4, &sequence.to_be_bytes())?;
        let flags = bytes.get_mut(transport + 13)?;
        if !place.last {
            *flags &= !LAST_ONLY;
        }
        if place.index > 0 {
            *flags &= !FIRST_ONLY;
        }
        transport + 16
    } else {
        put(bytes, transport + 4, &len16(len - transport).to_be_bytes())?;
        transport + 6
    };
    put(bytes, field, &[0, 0])?;
    let total = pseudo_header(bytes, layout, len - transport)? + sum(bytes.get(transport..)?);
    let value = match checksum(total) {
        0 => 0xffff,
        value => value,
    };
    put(bytes, field, &value.to_be_bytes())
}

/// Whether the checksum of a TCP segment or UDP datagram is right. True where there is none to look at.
pub fn checksum_is_right(frame: &Frame) -> bool {
    if frame.offload.checksum != Checksum::Present {
        return true;
    }
    let Some(layout) = layout(&frame.bytes) else {
        return true;
    };
    let absent = layout.protocol == UDP
        && layout.ethertype == IPV4
        && be16(&frame.bytes, layout.transport + 6).is_none_or(|field| field == 0);
    if !matches!(layout.protocol, TCP | UDP) || absent {
        return true;
    }
    let range: Range<usize> = layout.transport..layout.end;
    let body = frame.bytes.get(range).unwrap_or_default();
    let pseudo = pseudo_header(&frame.bytes, &layout, body.len()).unwrap_or(0);
    checksum(pseudo + sum(body)) == 0
}

#[cfg(test)]
mod tests;
