//! Statistics of the 8254x: counters that stop at their ends, and begin anew when they are read.
//!
//! Errors of a wire never happen here; their counters stay zero.
//!
//! Spec: SDM 8254x §13.7.

use device_model::net::Mac;
use serde::Deserialize;
use serde::Serialize;

use super::regs::table;
use crate::bytes;

/// Indices of counters: offset from 4000h, divided by four.
mod at {
    pub(super) const MPC: usize = 0x10 / 4;
    /// Frames received and sent by size: 64 bytes, to 127, 255, 511, 1023 and more.
    pub(super) const PRC: usize = 0x5c / 4;
    pub(super) const PTC: usize = 0xd8 / 4;
    pub(super) const GPRC: usize = 0x74 / 4;
    pub(super) const BPRC: usize = 0x78 / 4;
    pub(super) const MPRC: usize = 0x7c / 4;
    pub(super) const GPTC: usize = 0x80 / 4;
    pub(super) const GORC: usize = 0x88 / 4;
    pub(super) const GOTC: usize = 0x90 / 4;
    pub(super) const ROC: usize = 0xac / 4;
    pub(super) const TOR: usize = 0xc0 / 4;
    pub(super) const TOT: usize = 0xc8 / 4;
    pub(super) const TPR: usize = 0xd0 / 4;
    pub(super) const TPT: usize = 0xd4 / 4;
    pub(super) const MPTC: usize = 0xf0 / 4;
    pub(super) const BPTC: usize = 0xf4 / 4;
    pub(super) const TSCTC: usize = 0xf8 / 4;
    /// Low halves of counters of 64 bits.
    pub(super) const WIDE: [usize; 4] = [GORC, GOTC, TOR, TOT];
}

/// The counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Statistics(Vec<u32>);

impl Default for Statistics {
    fn default() -> Self {
        Self(vec![0; table::STATISTICS_LEN])
    }
}

impl Statistics {
    pub(super) fn is_sound(&self) -> bool {
        self.0.len() == table::STATISTICS_LEN
    }

    fn get(&self, at: usize) -> u32 {
        self.0.get(at).copied().unwrap_or(0)
    }

    /// Reads a counter. Those of 64 bits are cleared with their high halves.
    pub(super) fn read(&mut self, index: usize) -> u32 {
        let value = self.get(index);
        if at::WIDE.contains(&index) {
            return value;
        }
        if let Some(counter) = self.0.get_mut(index) {
            *counter = 0;
        }
        if let Some(low) = at::WIDE.iter().find(|low| **low + 1 == index)
            && let Some(counter) = self.0.get_mut(*low)
        {
            *counter = 0;
        }
        value
    }

    fn count(&mut self, at: usize) {
        if let Some(counter) = self.0.get_mut(at) {
            *counter = counter.saturating_add(1);
        }
    }

    fn count_bytes(&mut self, at: usize, len: usize) {
        let old = u64::from(self.get(at + 1)) << 32 | u64::from(self.get(at));
        let new = old.saturating_add(len as u64);
        let halves = [bytes::low32(new), bytes::low32(new >> 32)];
        for (counter, half) in self.0.iter_mut().skip(at).zip(halves) {
            *counter = half;
        }
    }

    /// A frame of `len` bytes, its check sequence included, came in.
    pub(super) fn count_received(&mut self, to: Mac, len: usize) {
        self.count(at::TPR);
        self.count(at::GPRC);
        self.count_bytes(at::TOR, len);
        self.count_bytes(at::GORC, len);
        self.count(at::PRC + size_class(len));
        self.count_group(to, at::BPRC, at::MPRC);
    }

    /// A frame of `len` bytes, its check sequence included, went out.
    pub(super) fn count_sent(&mut self, to: Mac, len: usize) {
        self.count(at::TPT);
        self.count(at::GPTC);
        self.count_bytes(at::TOT, len);
        self.count_bytes(at::GOTC, len);
        self.count(at::PTC + size_class(len));
        self.count_group(to, at::BPTC, at::MPTC);
    }

    fn count_group(&mut self, to: Mac, broadcast: usize, multicast: usize) {
        if to == [0xff; 6] {
            self.count(broadcast);
        } else if to.first().is_some_and(|first| first & 1 != 0) {
            self.count(multicast);
        }
    }

    /// A long segment was split.
    pub(super) fn count_split(&mut self) {
        self.count(at::TSCTC);
    }

    /// A frame was longer than the guest takes.
    pub(super) fn count_oversize(&mut self) {
        self.count(at::ROC);
    }

    /// A frame was missed: there was nowhere to put it.
    pub(super) fn count_missed(&mut self) {
        self.count(at::MPC);
    }

    pub(super) fn received(&self) -> u32 {
        self.get(at::TPR)
    }

    pub(super) fn sent(&self) -> u32 {
        self.get(at::TPT)
    }
}

fn size_class(len: usize) -> usize {
    match len {
        0..=64 => 0,
        65..=127 => 1,
        128..=255 => 2,
        256..=511 => 3,
        512..=1023 => 4,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_cleared_by_reading_and_wide_ones_with_their_high_half() {
        let mut statistics = Statistics::default();
        statistics.count_received([0xff; 6], 64);
        statistics.count_received([1, 0, 0x5e, 0, 0, 1], 1518);
        assert_eq!(statistics.read(at::GPRC), 2);
        assert_eq!(statistics.read(at::GPRC), 0);
        assert_eq!(statistics.read(at::PRC), 1);
        assert_eq!(statistics.read(at::PRC + 5), 1);
        assert_eq!((statistics.read(at::BPRC), statistics.read(at::MPRC)), (1, 1));
        assert_eq!(statistics.read(at::GORC), 1582);
        assert_eq!(statistics.read(at::GORC), 1582);
        assert_eq!(statistics.read(at::GORC + 1), 0);
        assert_eq!(statistics.read(at::GORC), 0);
    }
}
