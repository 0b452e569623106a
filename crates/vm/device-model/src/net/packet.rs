//! What is where in a frame that carries TCP or UDP, and the Internet checksum.
//!
//! Frames come from guests and networks: every length in them may be wrong.
//!
//! Spec: RFC 1071 (checksum), RFC 791 §3.1, RFC 8200 §3 and §8.1, RFC 9293 §3.1, RFC 768; IEEE 802.1Q-2018 §9 (tags).

use crate::net::ETHERNET_HEADER;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag.
pub const VLAN: u16 = 0x8100;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;

/// The number at `at`; none beyond the end.
#[must_use]
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(pair.try_into().ok()?))
}

/// The number at `at`; none beyond the end.
#[must_use]
pub fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(four.try_into().ok()?))
}

/// Puts `new` at `at`; nothing if it does not fit.
pub fn put(bytes: &mut [u8], at: usize, new: &[u8]) -> Option<()> {
    let end = at.checked_add(new.len())?;
    bytes.get_mut(at..end)?.copy_from_slice(new);
    Some(())
}

/// The sum of 16-bit numbers, not folded: an odd last byte is the high half of one.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    let mut total: u64 = 0;
    for chunk in &mut chunks {
        let eight = u64::from_be_bytes(chunk.try_into().unwrap_or_default());
        // PERF: the sum of 32-bit halves folds to the same 16 bits.
        total += (eight >> 32) + (eight & 0xffff_ffff);
    }
    let mut rest = chunks.remainder().chunks_exact(2);
    for pair in &mut rest {
        total += u64::from(u16::from_be_bytes(pair.try_into().unwrap_or_default()));
    }
    if let [last] = rest.remainder() {
        total += u64::from(*last) << 8;
    }
    total
}

/// Folds a sum to 16 bits, without complementing it.
#[must_use]
pub fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [.., a, b] = sum.to_be_bytes();
    u16::from_be_bytes([a, b])
}

/// The checksum of a sum.
#[must_use]
pub fn checksum(sum: u64) -> u16 {
    !fold(sum)
}

/// Where the parts of a frame are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// [`IPV4`] or [`IPV6`].
    pub ethertype: u16,
    /// Where the network header begins.
    pub network: usize,
    /// Where the transport header begins.
    pub transport: usize,
    /// Protocol number behind the network header. Extension headers of IPv6 are not looked behind.
    pub protocol: u8,
    /// Where the packet ends, by what its header says; padding follows.
    pub end: usize,
}

impl Layout {
    /// The layout of an IP packet in a frame. None if it is none, is cut off, or is a fragment.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
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
        fits.then_some(Self {
            ethertype,
            network,
            transport,
            protocol,
            end,
        })
    }

    /// The sum of the pseudo-header for `len` bytes of transport header and payload.
    #[must_use]
    pub fn pseudo_header(&self, bytes: &[u8], len: usize) -> Option<u64> {
        let addresses = match self.ethertype {
            IPV4 => bytes.get(self.network + 12..self.network + 20)?,
            _ => bytes.get(self.network + 8..self.network + 40)?,
        };
        Some(sum(addresses) + u64::from(self.protocol) + len as u64)
    }

    /// Bytes of the header of TCP or UDP. None if it is cut off.
    #[must_use]
    pub fn transport_header(&self, bytes: &[u8]) -> Option<usize> {
        let (len, least) = match self.protocol {
            TCP => (usize::from(bytes.get(self.transport + 12)? >> 4) * 4, 20),
            UDP => (8, 8),
            _ => return None,
        };
        let fits = len >= least && self.transport + len <= self.end;
        fits.then_some(len)
    }

    /// Where the checksum field is, from the start of the frame. None if the protocol has none that we know.
    #[must_use]
    pub fn checksum_field(&self) -> Option<usize> {
        match self.protocol {
            TCP => Some(self.transport + 16),
            UDP => Some(self.transport + 6),
            _ => None,
        }
    }

    /// Whether the checksum of TCP or UDP is right. None where there is none to look at.
    #[must_use]
    pub fn checksum_is_right(&self, bytes: &[u8]) -> Option<bool> {
        let field = be16(bytes, self.checksum_field()?)?;
        if self.protocol == UDP && self.ethertype == IPV4 && field == 0 {
            return None;
        }
        let body = bytes.get(self.transport..self.end)?;
        Some(checksum(self.pseudo_header(bytes, body.len())? + sum(body)) == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_is_that_of_pairs_at_every_length() {
        let bytes: Vec<u8> = (0..=255u8).map(|n| n.wrapping_mul(151) ^ 0x5a).collect();
        for len in 0..bytes.len() {
            let pairs = bytes[..len].chunks(2);
            let pairs = pairs.map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)));
            assert_eq!(fold(sum(&bytes[..len])), fold(pairs.sum()), "{len}");
        }
    }

    #[test]
    fn checksum_is_that_of_the_rfc() {
        // RFC 1071 §3
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)), 0xddf2);
        assert_eq!(checksum(sum(&bytes)), 0x220d);
    }

    #[test]
    fn layout_believes_no_length_that_cannot_be() {
        let mut bytes = vec![0; 14];
        bytes[12] = 8;
        bytes.extend([0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        bytes.extend([0, 1, 0, 2, 0, 12, 0, 0, 1, 2, 3, 4]);
        let right = Layout::of(&bytes).unwrap();
        assert_eq!(
            (right.transport, right.end, right.transport_header(&bytes)),
            (34, 46, Some(8))
        );
        for (at, value) in [(14, 0x44), (14, 0x65), (17, 19), (17, 33), (20, 0x20), (21, 1), (12, 9)] {
            let mut wrong = bytes.clone();
            wrong[at] = value;
            assert_eq!(Layout::of(&wrong), None, "{at}");
        }
        for len in 0..bytes.len() {
            assert_eq!(Layout::of(&bytes[..len]), None, "{len}");
        }
    }
}
