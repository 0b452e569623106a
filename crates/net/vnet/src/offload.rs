//! Finishing frames in software: filling in checksums, splitting segments.
//!
//! Spec: RFC 1071; RFC 9293 §3.1 (TCP header); virtio 1.2 §5.1.6.2 (which fields of a long segment hold what).

use device_model::Frame;
use device_model::net::Accepts;
use device_model::net::Checksum;
use device_model::net::Offload;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;
use device_model::net::packet::IPV4;
use device_model::net::packet::IPV6;
use device_model::net::packet::Layout;
use device_model::net::packet::TCP;
use device_model::net::packet::UDP;
use device_model::net::packet::be16;
use device_model::net::packet::be32;
use device_model::net::packet::checksum;
use device_model::net::packet::put;
use device_model::net::packet::sum;

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

/// A length that is known to fit 16 bits; the largest number if it does not.
fn len16(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// Splits a long segment. `None` when it is none.
fn split(bytes: &[u8], how: Segmentation, out: &mut dyn FnMut(Frame)) -> Option<Result<(), BadFrame>> {
    let layout = long_layout(bytes, how.kind)?;
    let header_end = layout.transport + layout.transport_header(bytes)?;
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
    let mut layout = Layout::of(bytes)?;
    layout.end = bytes.len();
    let fits = match kind {
        SegmentKind::Tcp4 => layout.ethertype == IPV4 && layout.protocol == TCP,
        SegmentKind::Tcp6 => layout.ethertype == IPV6 && layout.protocol == TCP,
        SegmentKind::Udp => layout.protocol == UDP,
    };
    fits.then_some(layout)
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
    let total = layout.pseudo_header(bytes, len - transport)? + sum(bytes.get(transport..)?);
    let value = match checksum(total) {
        0 => 0xffff,
        value => value,
    };
    put(bytes, field, &value.to_be_bytes())
}

/// Whether the checksum of a TCP segment or UDP datagram is right. True where there is none to look at.
#[must_use]
pub fn checksum_is_right(frame: &Frame) -> bool {
    frame.offload.checksum != Checksum::Present
        || Layout::of(&frame.bytes).is_none_or(|layout| layout.checksum_is_right(&frame.bytes) != Some(false))
}

#[cfg(test)]
mod tests;
