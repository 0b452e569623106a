//! Fragments of IP packets: guests' are put together again, long packets for guests are split.
//!
//! What is put together is bounded in number, bytes and time. Fragments that overlap void their packet, in IPv4 too: nobody
//! who means well sends such.
//!
//! Spec: RFC 791 §3.2, RFC 815 (IPv4); RFC 8200 §4.5, RFC 5722 (IPv6).

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use device_model::Frame;
use device_model::net::ETHERNET_HEADER;
use device_model::net::packet::IPV4;
use device_model::net::packet::IPV6;
use device_model::net::packet::be16;
use device_model::net::packet::be32;
use device_model::net::packet::checksum;
use device_model::net::packet::fold;
use device_model::net::packet::put;
use device_model::net::packet::sum;

use super::packet::len16;

/// Packets that are being put together at most, and their bytes.
const PACKETS: usize = 64;
const BYTES: usize = 2 << 20;
/// Fragments of one packet at most: of the longest in the smallest that links carry, and some more.
const PIECES: usize = 256;
/// How long the first fragment waits for the last.
const PATIENCE: Duration = Duration::from_secs(15);
/// Bytes of headers.
const HEADER4: usize = 20;
const HEADER6: usize = 40;
const FRAGMENT_HEADER: usize = 8;
/// Bytes behind a header of IPv4, and of IPv6, at most.
const LONGEST: usize = 65_535 - HEADER4;
/// Next header "fragment" of IPv6.
pub(super) const FRAGMENT: u8 = 44;
/// Flag "more fragments" of IPv4.
const MORE: u16 = 0x2000;

/// What fragments of a packet have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    /// Both addresses.
    addresses: Vec<u8>,
    id: u32,
    protocol: u8,
}

/// A fragment, taken apart.
struct Fragment<'a> {
    key: Key,
    /// Its first byte in the packet.
    at: usize,
    more: bool,
    /// Ethernet and IP headers, those of the fragment left out.
    header: &'a [u8],
    payload: &'a [u8],
}

/// A packet with holes.
struct Partial {
    began: Instant,
    pieces: BTreeMap<usize, Vec<u8>>,
    /// Its bytes behind the header, once the last fragment has come.
    len: Option<usize>,
    header: Vec<u8>,
    bytes: usize,
    /// Nothing will come of it.
    void: bool,
}

/// Packets that are being put together.
#[derive(Default)]
pub(super) struct Assembler {
    partial: BTreeMap<Key, Partial>,
}

impl<'a> Fragment<'a> {
    /// None if the frame holds no fragment.
    fn of(bytes: &'a [u8]) -> Option<Self> {
        let start = ETHERNET_HEADER;
        match be16(bytes, start - 2)? {
            IPV4 => {
                let first = *bytes.get(start)?;
                let words = usize::from(first & 15);
                let place = be16(bytes, start + 6)?;
                if first >> 4 != 4 || words < 5 || place & 0x3fff == 0 {
                    return None;
                }
                let end = start + usize::from(be16(bytes, start + 2)?);
                let header = bytes.get(..start + words * 4)?;
                Some(Self {
                    key: Key {
                        addresses: bytes.get(start + 12..start + 20)?.to_vec(),
                        id: be16(bytes, start + 4)?.into(),
                        protocol: *bytes.get(start + 9)?,
                    },
                    at: usize::from(place & 0x1fff) * 8,
                    more: place & MORE != 0,
                    header,
                    payload: bytes.get(header.len()..end)?,
                })
            }
            IPV6 => {
                // Only where the fragment's header is the first behind the packet's.
                if bytes.get(start + 6) != Some(&FRAGMENT) {
                    return None;
                }
                if bytes.get(start + HEADER6) == Some(&FRAGMENT) {
                    return None;
                }
                let end = start + HEADER6 + usize::from(be16(bytes, start + 4)?);
                let place = be16(bytes, start + HEADER6 + 2)?;
                Some(Self {
                    key: Key {
                        addresses: bytes.get(start + 8..start + 40)?.to_vec(),
                        id: be32(bytes, start + HEADER6 + 4)?,
                        protocol: *bytes.get(start + HEADER6)?,
                    },
                    at: usize::from(place & !7),
                    more: place & 1 != 0,
                    header: bytes.get(..start + HEADER6)?,
                    payload: bytes.get(start + HEADER6 + FRAGMENT_HEADER..end)?,
                })
            }
            _ => None,
        }
    }
}

impl Partial {
    fn add(&mut self, fragment: &Fragment<'_>) {
        let end = fragment.at + fragment.payload.len();
        let uneven = fragment.more && !fragment.payload.len().is_multiple_of(8);
        let beyond = self.len.is_some_and(|len| end > len || !fragment.more && end != len);
        let before = self.pieces.range(..=fragment.at).next_back();
        let after = self.pieces.range(fragment.at + 1..).next();
        // The same one twice is a repetition and no overlap.
        if before.is_some_and(|(at, piece)| *at == fragment.at && piece == fragment.payload) {
            return;
        }
        let overlaps = before.is_some_and(|(at, piece)| at + piece.len() > fragment.at || *at == fragment.at)
            || after.is_some_and(|(at, _)| end > *at);
        let shortened = !fragment.more
            && self
                .pieces
                .iter()
                .next_back()
                .is_some_and(|(at, piece)| at + piece.len() > end);
        let empty = fragment.payload.is_empty();
        if uneven || beyond || overlaps || shortened || empty || end > LONGEST || self.pieces.len() >= PIECES {
            self.void = true;
            return;
        }
        if fragment.at == 0 {
            self.header = fragment.header.to_vec();
        }
        if !fragment.more {
            self.len = Some(end);
        }
        self.bytes += fragment.payload.len();
        self.pieces.insert(fragment.at, fragment.payload.to_vec());
    }

    fn is_whole(&self) -> bool {
        !self.void && self.len == Some(self.bytes)
    }

    /// The packet. None if its headers cannot be made.
    fn finish(self, protocol: u8) -> Option<Frame> {
        let mut bytes = self.header;
        let header = bytes.len();
        bytes.extend(self.pieces.into_values().flatten());
        let start = ETHERNET_HEADER;
        let len = bytes.len() - start;
        if be16(&bytes, start - 2)? == IPV4 {
            put(&mut bytes, start + 2, &u16::try_from(len).ok()?.to_be_bytes())?;
            put(&mut bytes, start + 6, &[0, 0])?;
            put(&mut bytes, start + 10, &[0, 0])?;
            let sum = checksum(sum(bytes.get(start..header)?));
            put(&mut bytes, start + 10, &sum.to_be_bytes())?;
        } else {
            put(&mut bytes, start + 4, &u16::try_from(len - HEADER6).ok()?.to_be_bytes())?;
            put(&mut bytes, start + 6, &[protocol])?;
        }
        Some(Frame::new(bytes))
    }
}

impl Assembler {
    /// Takes a fragment. Returns the packet that it makes whole; none if there is none, or it is no fragment.
    pub(super) fn take(&mut self, bytes: &[u8], now: Instant) -> Option<Frame> {
        let fragment = Fragment::of(bytes)?;
        self.partial
            .retain(|_, partial| now.saturating_duration_since(partial.began) < PATIENCE);
        let held: usize = self.partial.values().map(|partial| partial.bytes).sum();
        if !self.partial.contains_key(&fragment.key) && self.partial.len() >= PACKETS || held >= BYTES {
            // The oldest goes: a guest that leaves packets unfinished harms itself only.
            let oldest = self.partial.iter().min_by_key(|(_, partial)| partial.began);
            let oldest = oldest.map(|(key, _)| key.clone())?;
            self.partial.remove(&oldest);
        }
        let partial = self.partial.entry(fragment.key.clone()).or_insert_with(|| Partial {
            began: now,
            pieces: BTreeMap::new(),
            len: None,
            header: Vec::new(),
            bytes: 0,
            void: false,
        });
        partial.add(&fragment);
        if partial.void {
            // It stays until its time is over, so that its other fragments are known as such.
            partial.pieces.clear();
            partial.bytes = 0;
            return None;
        }
        if !partial.is_whole() {
            return None;
        }
        self.partial.remove(&fragment.key)?.finish(fragment.key.protocol)
    }
}

/// Splits a packet that is longer than `mtu`. Long segments stay as they are: the network card splits them.
pub(super) fn split(frame: Frame, mtu: usize) -> Vec<Frame> {
    if frame.offload.segmentation.is_some() || frame.bytes.len() <= ETHERNET_HEADER + mtu {
        return vec![frame];
    }
    match be16(&frame.bytes, ETHERNET_HEADER - 2) {
        Some(IPV4) => split4(frame, mtu).unwrap_or_default(),
        Some(IPV6) => split6(frame, mtu).unwrap_or_default(),
        _ => vec![frame],
    }
}

/// The parts of a payload that fit: where each begins, its bytes, and whether others follow.
fn parts(payload: &[u8], room: usize) -> impl Iterator<Item = (usize, &[u8], bool)> {
    let size = (room & !7).max(8);
    let pieces = payload.chunks(size).enumerate();
    pieces.map(move |(index, piece)| (index * size, piece, index * size + piece.len() < payload.len()))
}

fn split4(mut frame: Frame, mtu: usize) -> Option<Vec<Frame>> {
    crate::offload::fill_checksum(&mut frame).ok()?;
    let start = ETHERNET_HEADER + HEADER4;
    let header = frame.bytes.get(..start)?;
    let payload = frame.bytes.get(start..)?;
    let id = fold(sum(payload));
    let mut out = Vec::new();
    for (at, piece, more) in parts(payload, mtu.checked_sub(HEADER4)?) {
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(piece);
        let place = len16(at / 8) | if more { MORE } else { 0 };
        put(
            &mut bytes,
            ETHERNET_HEADER + 2,
            &len16(HEADER4 + piece.len()).to_be_bytes(),
        )?;
        put(&mut bytes, ETHERNET_HEADER + 4, &id.to_be_bytes())?;
        put(&mut bytes, ETHERNET_HEADER + 6, &place.to_be_bytes())?;
        put(&mut bytes, ETHERNET_HEADER + 10, &[0, 0])?;
        let sum = checksum(sum(bytes.get(ETHERNET_HEADER..start)?));
        put(&mut bytes, ETHERNET_HEADER + 10, &sum.to_be_bytes())?;
        out.push(Frame::new(bytes));
    }
    Some(out)
}

fn split6(mut frame: Frame, mtu: usize) -> Option<Vec<Frame>> {
    crate::offload::fill_checksum(&mut frame).ok()?;
    let start = ETHERNET_HEADER + HEADER6;
    let header = frame.bytes.get(..start)?;
    let payload = frame.bytes.get(start..)?;
    let protocol = *header.get(ETHERNET_HEADER + 6)?;
    let id = fold(sum(payload));
    let mut out = Vec::new();
    for (at, piece, more) in parts(payload, mtu.checked_sub(HEADER6 + FRAGMENT_HEADER)?) {
        let mut bytes = header.to_vec();
        put(
            &mut bytes,
            ETHERNET_HEADER + 4,
            &len16(FRAGMENT_HEADER + piece.len()).to_be_bytes(),
        )?;
        put(&mut bytes, ETHERNET_HEADER + 6, &[FRAGMENT])?;
        bytes.extend([protocol, 0]);
        bytes.extend((len16(at) | u16::from(more)).to_be_bytes());
        bytes.extend(u32::from(id).to_be_bytes());
        bytes.extend_from_slice(piece);
        out.push(Frame::new(bytes));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::packet::Way;
    use super::super::packet::datagram;
    use super::*;

    fn frame(is_ipv6: bool, len: usize) -> Frame {
        let (from, to) = match is_ipv6 {
            true => ("fd17::2", "fd17::15"),
            false => ("10.0.2.2", "10.0.2.15"),
        };
        let way = Way {
            to_mac: [2; 6],
            from_mac: [4; 6],
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
        };
        let payload: Vec<u8> = (0..len).map(|n| (n / 7) as u8).collect();
        let mut frame = datagram(&way, 53, 1000, &payload).unwrap();
        // Of no fragment's flags, so that what is put together is the same.
        if !is_ipv6 {
            frame.bytes[20..22].copy_from_slice(&[0, 0]);
            frame.bytes[24..26].copy_from_slice(&[0, 0]);
            let sum = checksum(sum(&frame.bytes[14..34]));
            frame.bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        crate::offload::fill_checksum(&mut frame).unwrap();
        frame
    }

    proptest! {
        #[test]
        fn what_was_split_is_put_together_in_any_order(
            is_ipv6: bool, len in 1600usize..60_000, mtu in 1280usize..9000, seed: u64,
        ) {
            let whole = frame(is_ipv6, len);
            let mut fragments = split(whole.clone(), mtu);
            prop_assert!(fragments.iter().all(|fragment| fragment.bytes.len() <= 14 + mtu));
            let count = fragments.len();
            // Some order, with repetitions.
            for n in 0..count {
                fragments.swap(n, (seed as usize).wrapping_mul(n + 31) % count);
            }
            fragments.extend(fragments[..count / 2].to_vec());
            if count > 1 {
                let mut assembler = Assembler::default();
                let now = Instant::now();
                let mut made = fragments.iter().filter_map(|fragment| assembler.take(&fragment.bytes, now));
                let first = made.next().unwrap();
                let same = first.bytes[18..20] == whole.bytes[18..20] || is_ipv6;
                prop_assert!(first.bytes[26..] == whole.bytes[26..] || same && is_ipv6 && first.bytes == whole.bytes);
            }
        }

        #[test]
        fn any_frames_do_no_harm(frames in proptest::collection::vec(
            (any::<bool>(), any::<[u8; 12]>(), proptest::collection::vec(any::<u8>(), 0..60)), 0..40,
        )) {
            let mut assembler = Assembler::default();
            let now = Instant::now();
            for (is_ipv6, salt, tail) in frames {
                let mut bytes = split(frame(is_ipv6, 2000), 1280)[0].bytes.clone();
                for (at, value) in salt.iter().enumerate() {
                    bytes[14 + at] ^= value & 3;
                }
                bytes.truncate(60);
                bytes.extend(tail);
                if let Some(made) = assembler.take(&bytes, now) {
                    prop_assert!(made.bytes.len() <= 65_535 + 14);
                }
            }
        }
    }

    #[test]
    fn overlap_voids_the_packet() {
        let fragments = split(frame(false, 4000), 1500);
        let mut assembler = Assembler::default();
        let now = Instant::now();
        assert_eq!(assembler.take(&fragments[0].bytes, now), None);
        let mut evil = fragments[1].bytes.clone();
        evil[21] -= 1;
        assert_eq!(assembler.take(&evil, now), None);
        for fragment in &fragments {
            assert_eq!(assembler.take(&fragment.bytes, now), None);
        }
        // After its time the same identifier is a new packet's.
        let later = now + PATIENCE;
        let made: Vec<Frame> = fragments
            .iter()
            .filter_map(|f| assembler.take(&f.bytes, later))
            .collect();
        assert_eq!(made.len(), 1);
    }

    #[test]
    fn unfinished_packets_are_bounded() {
        let mut assembler = Assembler::default();
        let now = Instant::now();
        let first = split(frame(false, 9000), 9000)[0].bytes.clone();
        for n in 0..2000u16 {
            let mut bytes = first.clone();
            bytes[18..20].copy_from_slice(&n.to_be_bytes());
            assert_eq!(assembler.take(&bytes, now), None);
        }
        assert!(assembler.partial.len() <= PACKETS);
        let held: usize = assembler.partial.values().map(|partial| partial.bytes).sum();
        assert!(held <= BYTES + 9000);
    }
}
