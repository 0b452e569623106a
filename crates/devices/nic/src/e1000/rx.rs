//! The receiver of the 8254x.
//!
//! Spec: SDM 8254x §3.2 (receive), §3.2.3 (descriptors), §3.2.9 (checksums), §9.2.2-9.3 (VLAN stripping).

use device_model::Frame;
use device_model::VmTime;
use device_model::net::Checksum;
use device_model::net::Mac;
use device_model::net::packet::IPV4;
use device_model::net::packet::Layout;
use device_model::net::packet::TCP;
use device_model::net::packet::UDP;
use device_model::net::packet::be16;
use device_model::net::packet::checksum;
use device_model::net::packet::fold;
use device_model::net::packet::sum;

use super::E1000;
use super::filter::Filter;
use super::filter::Match;
use super::regs::Reg;
use super::regs::cause;
use super::regs::ctrl;
use super::regs::rctl;
use super::ring::Ring;
use crate::bytes;

/// Status of a descriptor (§3.2.3.1).
const DD: u8 = 1 << 0;
const EOP: u8 = 1 << 1;
const IXSM: u8 = 1 << 2;
const VP: u8 = 1 << 3;
const TCPCS: u8 = 1 << 5;
const IPCS: u8 = 1 << 6;
const PIF: u8 = 1 << 7;
/// Errors of a descriptor (§3.2.3.2).
const TCPE: u8 = 1 << 5;
const IPE: u8 = 1 << 6;
/// RXCSUM: IP and TCP/UDP checksums are looked at.
const IPOFL: u32 = 1 << 8;
const TUOFL: u32 = 1 << 9;
/// Bytes of the longest frame without RCTL.LPE, its check sequence included.
const LONGEST: usize = 1522;
/// Frames that one poll takes at most.
const BUDGET: usize = 256;

/// What a descriptor says of the whole frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Report {
    checksum: u16,
    status: u8,
    errors: u8,
    special: u16,
}

/// What comes out of trying to receive a frame.
enum Received {
    Done,
    /// There are no descriptors for it now.
    Later(Frame),
}

impl E1000 {
    /// Takes frames from the port while there are descriptors. True if there may be more to do.
    pub(super) fn receive(&mut self, now: VmTime) -> bool {
        let enabled = self.state.file.get(Reg::Rctl) & rctl::EN != 0 && self.is_master();
        if !enabled {
            // Nobody listens: frames pass by.
            (self.looped, self.waiting) = (None, None);
            return (0..BUDGET).all(|_| self.port.receive().is_some());
        }
        let mut received = 0;
        for _ in 0..BUDGET {
            if !self.has_room() {
                break;
            }
            let held = self.looped.take().or_else(|| self.waiting.take());
            let Some(frame) = held.or_else(|| self.port.receive()) else {
                break;
            };
            match self.receive_frame(frame) {
                Received::Done => received += 1,
                Received::Later(frame) => {
                    self.waiting = Some(frame);
                    break;
                }
            }
        }
        if self.looped.take().is_some() {
            // Nothing holds back what comes from the wire.
            self.state.statistics.count_missed();
        }
        if received > 0 {
            let delay = self.state.file.get(Reg::Rdtr);
            let absolute = self.state.file.get(Reg::Radv);
            self.state.causes.received(now, delay, absolute);
        }
        received == BUDGET
    }

    fn rx_ring(&self) -> Option<Ring> {
        let file = &self.state.file;
        let base = file.base(Reg::Rdbal, Reg::Rdbah);
        Ring::new(base, file.get(Reg::Rdlen), file.get(Reg::Rdh), file.get(Reg::Rdt))
    }

    /// Whether there is a descriptor.
    fn has_room(&self) -> bool {
        self.rx_ring().is_some_and(|ring| ring.available() > 0)
    }

    fn receive_frame(&mut self, mut frame: Frame) -> Received {
        bytes::pad(&mut frame.bytes);
        let Some(to) = destination(&frame.bytes) else {
            return Received::Done;
        };
        let Some(matched) = self.filter().address(to) else {
            return Received::Done;
        };
        let rctl = self.state.file.get(Reg::Rctl);
        let len = frame.bytes.len() + 4;
        if len > LONGEST && rctl & rctl::LPE == 0 || len > 16_384 {
            self.state.statistics.count_oversize();
            return Received::Done;
        }
        let buffer = rctl::buffer(rctl);
        let Some(ring) = self.rx_ring() else {
            return Received::Done;
        };
        let needed = len.div_ceil(buffer as usize);
        if (ring.available() as usize) < needed {
            if ring.len() as usize <= needed {
                // Such a ring never has room for it.
                self.state.statistics.count_missed();
                return Received::Done;
            }
            return Received::Later(frame);
        }
        let mut report = self.report(&frame, matched);
        let vet = self.state.file.get(Reg::Vet);
        if let Some(tag) = tag(&frame.bytes, vet) {
            if !self.filter().vlan(tag) {
                return Received::Done;
            }
            if self.state.file.get(Reg::Ctrl) & ctrl::VME != 0 {
                frame.bytes.drain(12..16);
                (report.special, report.status) = (tag, report.status | VP);
            }
        }
        self.state.statistics.count_received(to, len);
        if rctl & rctl::SECRC == 0 {
            let sequence = bytes::frame_check_sequence(&frame.bytes);
            frame.bytes.extend(sequence);
        }
        self.store(ring, &frame.bytes, buffer, report);
        Received::Done
    }

    fn filter(&self) -> Filter<'_> {
        Filter {
            rctl: self.state.file.get(Reg::Rctl),
            ra: &self.state.ra,
            mta: &self.state.mta,
            vfta: &self.state.vfta,
        }
    }

    /// What the card finds out about a frame's checksums.
    fn report(&self, frame: &Frame, matched: Match) -> Report {
        let rxcsum = self.state.file.get(Reg::Rxcsum);
        let start = (rxcsum & 0xff) as usize;
        let mut report = Report {
            checksum: fold(sum(frame.bytes.get(start..).unwrap_or_default())),
            ..Report::default()
        };
        if matched == Match::Inexact {
            report.status |= PIF;
        }
        let Some(layout) = Layout::of(&frame.bytes).filter(|_| rxcsum & (IPOFL | TUOFL) != 0) else {
            report.status |= IXSM;
            return report;
        };
        if layout.ethertype == IPV4 && rxcsum & IPOFL != 0 {
            let header = frame.bytes.get(layout.network..layout.transport).unwrap_or_default();
            report.status |= IPCS;
            if checksum(sum(header)) != 0 {
                report.errors |= IPE;
            }
        }
        // IPv6 is not looked into (§3.2.9).
        let transport = layout.ethertype == IPV4 && matches!(layout.protocol, TCP | UDP);
        if transport && rxcsum & TUOFL != 0 {
            // Frames that have been on no wire are taken as they are.
            let right = match frame.offload.checksum {
                Checksum::Good => Some(true),
                _ => layout.checksum_is_right(&frame.bytes),
            };
            match right {
                Some(true) => report.status |= TCPCS,
                Some(false) => (report.status, report.errors) = (report.status | TCPCS, report.errors | TCPE),
                None => {}
            }
        }
        report
    }

    /// Puts a frame into buffers, for which there are descriptors.
    fn store(&mut self, mut ring: Ring, frame: &[u8], buffer: u32, report: Report) {
        let mut pieces = frame.chunks(buffer as usize).peekable();
        while let Some(piece) = pieces.next() {
            let at = ring.address();
            let last = pieces.peek().is_none();
            let address: u64 = self.memory.read_obj(at).unwrap_or(0);
            // A null address takes the descriptor and stores nothing (§3.2.3).
            if address != 0 {
                // Where there is no memory nothing is stored.
                let _ = self.memory.write(address, piece);
            }
            let len = bytes::low16(piece.len() as u64);
            let status = report.status | DD | if last { EOP } else { 0 };
            let [l0, l1] = len.to_le_bytes();
            let [c0, c1] = report.checksum.to_le_bytes();
            let [s0, s1] = report.special.to_le_bytes();
            // DD comes last: the driver may look at any time.
            let _ = self.memory.write(at + 8, &[l0, l1, c0, c1]);
            let _ = self.memory.write(at + 14, &[s0, s1]);
            let _ = self.memory.write(at + 12, &[status, report.errors]);
            ring.advance();
        }
        self.state.file.set(Reg::Rdh, ring.head);
        let free = ring.available();
        if free == rctl::threshold(self.state.file.get(Reg::Rctl), ring.len()) {
            self.raise(cause::RXDMT0);
        }
        let small = self.state.file.get(Reg::Rsrpd);
        if small != 0 && frame.len() <= small as usize {
            self.raise(cause::SRPD);
        }
    }
}

pub(super) fn destination(frame: &[u8]) -> Option<Mac> {
    frame.get(..6)?.try_into().ok()
}

/// The VLAN tag of a frame, where its type is `vet`.
fn tag(frame: &[u8], vet: u32) -> Option<u16> {
    let is_tagged = be16(frame, 12).map(u32::from) == Some(vet & 0xffff);
    be16(frame, 14).filter(|_| is_tagged && frame.len() >= 18)
}
