//! Which frames the 8254x takes.
//!
//! Spec: SDM 8254x §3.2.1 (filtering), §13.4.22 (RCTL), §13.5.1 (multicast table), §13.5.2-3 (addresses), §13.5.4 (VLANs).

use device_model::net::Mac;

use super::regs::rctl;

/// A receive address is valid (RAH bit 31).
pub(super) const VALID: u32 = 1 << 31;
/// It is compared with the destination (RAH bits 16 and 17).
const SELECT: u32 = 3 << 16;

/// Why a frame is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Match {
    /// An address is exactly this.
    Exact,
    /// The hash of a group's address is in the table: it may be another's.
    Inexact,
    /// Everything is taken, or broadcasts are.
    Open,
}

/// The filters as their registers are.
pub(super) struct Filter<'a> {
    pub(super) rctl: u32,
    pub(super) ra: &'a [u32],
    pub(super) mta: &'a [u32],
    pub(super) vfta: &'a [u32],
}

impl Filter<'_> {
    /// Whether a frame to this address is taken.
    pub(super) fn address(&self, to: Mac) -> Option<Match> {
        let [a, b, c, d, e, f] = to;
        let (low, high) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0]));
        let exact = self
            .ra
            .chunks_exact(2)
            .any(|pair| matches!(pair, [ral, rah] if *ral == low && rah & (VALID | SELECT | 0xffff) == VALID | high));
        if exact {
            return Some(Match::Exact);
        }
        if to == [0xff; 6] && self.rctl & rctl::BAM != 0 {
            return Some(Match::Open);
        }
        if a & 1 == 0 {
            return (self.rctl & rctl::UPE != 0).then_some(Match::Open);
        }
        if self.rctl & rctl::MPE != 0 {
            return Some(Match::Open);
        }
        let shift = [4, 3, 2, 0].get((self.rctl >> 12 & 3) as usize).copied().unwrap_or(0);
        let hash = (u32::from(f) << 8 | u32::from(e)) >> shift & 0xfff;
        let word = self.mta.get((hash >> 5) as usize).copied().unwrap_or(0);
        (word >> (hash & 31) & 1 != 0).then_some(Match::Inexact)
    }

    /// Whether a frame with this tag is taken.
    pub(super) fn vlan(&self, tag: u16) -> bool {
        if self.rctl & rctl::VFE == 0 {
            return true;
        }
        let canonical = u32::from(tag >> 12 & 1);
        if self.rctl & rctl::CFIEN != 0 && canonical != u32::from(self.rctl & rctl::CFI != 0) {
            return false;
        }
        let word = self.vfta.get(usize::from(tag >> 5 & 0x7f)).copied().unwrap_or(0);
        word >> (tag & 31) & 1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = [0x08, 0, 0x27, 1, 2, 3];
    const GROUP: Mac = [0x01, 0, 0x5e, 0, 0, 0xfb];

    #[test]
    fn addresses_are_taken_by_filter() {
        let mut ra = vec![0; 32];
        ra[..2].copy_from_slice(&[0x0127_0008, 0x0302 | VALID]);
        let mut mta = vec![0; 128];
        let taken = |rctl, mta: &[u32], to| {
            Filter {
                rctl,
                ra: &ra,
                mta,
                vfta: &[],
            }
            .address(to)
        };
        assert_eq!(taken(0, &mta, OWN), Some(Match::Exact));
        assert_eq!(taken(0, &mta, [0x08, 0, 0x27, 1, 2, 4]), None);
        assert_eq!(taken(rctl::UPE, &mta, [0x08, 0, 0x27, 1, 2, 4]), Some(Match::Open));
        assert_eq!(taken(rctl::UPE, &mta, [0xff; 6]), None);
        assert_eq!(taken(rctl::BAM, &mta, [0xff; 6]), Some(Match::Open));
        assert_eq!(taken(rctl::MPE, &mta, GROUP), Some(Match::Open));
        assert_eq!(taken(0, &mta, GROUP), None);
        // Bits 47:36 of the address are FB0h: word 125, bit 16.
        mta[0xfb0 >> 5] = 1 << (0xfb0 & 31);
        assert_eq!(taken(0, &mta, GROUP), Some(Match::Inexact));
        assert_eq!(taken(3 << 12, &mta, GROUP), None);
    }

    #[test]
    fn tags_are_taken_by_table() {
        let mut vfta = vec![0; 128];
        vfta[100 >> 5] = 1 << (100 & 31);
        let taken = |rctl, tag| {
            Filter {
                rctl,
                ra: &[],
                mta: &[],
                vfta: &vfta,
            }
            .vlan(tag)
        };
        assert!(taken(0, 5));
        assert!(!taken(rctl::VFE, 5));
        assert!(taken(rctl::VFE, 0xe000 | 100));
        assert!(!taken(rctl::VFE | rctl::CFIEN, 1 << 12 | 100));
    }
}
