//! Sending and receiving of the PCnet.
//!
//! Spec: AMD 21510 "Transmit Operation", "Receive Operation", "Address Matching"; IEEE 802.3-2018 §3.2.9 (the filter's hash).

use device_model::Frame;
use device_model::net::ETHERNET_HEADER;
use device_model::net::Mac;

use super::Pcnet;
use super::regs::LTINTEN;
use super::regs::SPND;
use super::regs::bcr;
use super::regs::csr;
use super::regs::csr0;
use super::regs::csr4;
use super::regs::mode;
use super::ring::BAM;
use super::ring::BUFF;
use super::ring::Descriptor;
use super::ring::ENP;
use super::ring::ERR;
use super::ring::LAFM;
use super::ring::LTINT;
use super::ring::OWN;
use super::ring::PAM;
use super::ring::STP;
use super::ring::Style;
use crate::bytes;

/// Bytes of a frame at most.
pub(super) const LONGEST: usize = 4096;
/// Descriptors that one poll carries out at most, and frames that it takes.
const BUDGET: usize = 512;

/// A ring as its registers describe it.
#[derive(Clone, Copy, Debug)]
struct Ring {
    base: u32,
    length: u16,
    counter: u16,
}

impl Pcnet {
    fn style(&self) -> Style {
        Style::of(self.state.bcr(bcr::SWS))
    }

    fn ring(&self, base: u16, length: u16, counter: u16) -> Ring {
        Ring {
            base: self.state.wide(base),
            length: self.state.csr(length),
            counter: self.state.csr(counter),
        }
    }

    /// Where the descriptor is that the counter stands for.
    fn address(&self, ring: Ring) -> u64 {
        // Counters count up to zero from the length's complement.
        let index = ring.counter.wrapping_sub(ring.length);
        u64::from(ring.base) + u64::from(index) * self.style().len()
    }

    fn advance(ring: &mut Ring) {
        ring.counter = ring.counter.wrapping_add(1);
        if ring.counter == 0 {
            ring.counter = ring.length;
        }
    }

    fn raise(&mut self, events: u16) {
        self.state.set_csr(0, self.state.csr(0) | events);
    }

    /// Whether it looks at the rings by itself.
    pub(super) fn polls(&self) -> bool {
        let csr0 = self.state.csr(0);
        csr0 & csr0::TXON != 0 && self.state.csr(4) & csr4::DPOLL == 0
    }

    fn runs(&self, bit: u16) -> bool {
        self.state.csr(0) & bit != 0 && self.state.csr(5) & SPND == 0 && self.is_master()
    }

    /// Sends what is the card's. True if there may be more.
    pub(super) fn transmit(&mut self) -> bool {
        if let Some(frame) = self.stuck.take() {
            self.stuck = self.port.send(frame).err();
        }
        if !self.runs(csr0::TXON) || self.stuck.is_some() {
            return false;
        }
        self.state.set_csr(0, self.state.csr(0) & !csr0::TDMD);
        let (style, mut ring) = (self.style(), self.ring(csr::TX_BASE, csr::TX_LENGTH, csr::TX_COUNTER));
        let mut left = BUDGET;
        while left > 0 && self.stuck.is_none() && self.looped.is_none() {
            let at = self.address(ring);
            let Some(mut descriptor) = Descriptor::read(&self.memory, at, style) else {
                self.raise(csr0::MERR);
                break;
            };
            if descriptor.status & OWN == 0 {
                break;
            }
            left -= 1;
            self.gather(&descriptor);
            let last = descriptor.status & ENP != 0;
            let wants = self.state.csr(5) & LTINTEN == 0 || descriptor.status & LTINT != 0;
            descriptor.status &= !(OWN | ERR);
            descriptor.write(&self.memory, at, style, None);
            Self::advance(&mut ring);
            if last {
                self.send();
                if wants {
                    self.raise(csr0::TINT);
                }
            }
        }
        self.state.set_csr(csr::TX_COUNTER, ring.counter);
        left == 0 || self.looped.is_some()
    }

    fn gather(&mut self, descriptor: &Descriptor) {
        if descriptor.status & STP != 0 {
            self.state.sending.clear();
            self.state.overlong = false;
        }
        let (old, len) = (self.state.sending.len(), usize::from(descriptor.len));
        if old + len > LONGEST {
            self.state.overlong = true;
            return;
        }
        self.state.sending.resize(old + len, 0);
        let place = self.state.sending.get_mut(old..).unwrap_or_default();
        if self.memory.read(descriptor.buffer, place).is_err() {
            // What is not there reads as ones.
            place.fill(0xff);
        }
    }

    fn send(&mut self) {
        let mut frame = std::mem::take(&mut self.state.sending);
        let csr4 = self.state.csr(4);
        self.state.set_csr(4, csr4 | csr4::TXSTRT);
        if std::mem::take(&mut self.state.overlong) || frame.len() < ETHERNET_HEADER {
            return;
        }
        if csr4 & csr4::APAD_XMT != 0 {
            bytes::pad(&mut frame);
        }
        let frame = Frame::new(frame);
        if self.state.csr(15) & mode::LOOP != 0 {
            self.looped = Some(frame);
        } else if self.link {
            self.stuck = self.port.send(frame).err();
        }
    }

    /// Takes frames while descriptors are the card's. True if there may be more.
    pub(super) fn receive(&mut self) -> bool {
        if !self.runs(csr0::RXON) {
            (self.looped, self.waiting) = (None, None);
            return (0..BUDGET).all(|_| self.port.receive().is_some());
        }
        for _ in 0..BUDGET {
            let held = self.looped.take().or_else(|| self.waiting.take());
            let Some(frame) = held.or_else(|| self.port.receive()) else {
                return false;
            };
            if let Err(frame) = self.receive_frame(frame) {
                self.waiting = Some(frame);
                return false;
            }
        }
        true
    }

    /// Why a frame to this address is taken; none if it is not.
    fn matched(&self, to: Mac) -> Option<u16> {
        let mode = self.state.csr(15);
        let own = [12, 13, 14].map(|at| self.state.csr(at).to_le_bytes());
        if own.as_flattened() == to && mode & mode::DRCVPA == 0 {
            return Some(PAM);
        }
        if to == [0xff; 6] {
            return (mode & (mode::DRCVBC | mode::PROM) != mode::DRCVBC).then_some(BAM);
        }
        if to.first().is_some_and(|first| first & 1 != 0) {
            // The upper six bits of the sum before it is inverted.
            let hash = !crc32fast::hash(&to) >> 26;
            let word = self.state.csr(8 + bytes::low16(u64::from(hash >> 4)));
            if word >> (hash & 15) & 1 != 0 {
                return Some(LAFM);
            }
        }
        (mode & mode::PROM != 0).then_some(0)
    }

    /// Stores a frame, or gives it back if no descriptor is the card's.
    fn receive_frame(&mut self, mut frame: Frame) -> Result<(), Frame> {
        let loops = self.state.csr(15) & mode::LOOP != 0;
        bytes::pad(&mut frame.bytes);
        let to: Option<Mac> = frame.bytes.get(..6).and_then(|to| to.try_into().ok());
        let Some(why) = to.and_then(|to| self.matched(to)) else {
            return Ok(());
        };
        let style = self.style();
        let mut ring = self.ring(csr::RX_BASE, csr::RX_LENGTH, csr::RX_COUNTER);
        let first = Descriptor::read(&self.memory, self.address(ring), style);
        let Some(mut descriptor) = first else {
            self.raise(csr0::MERR);
            return Ok(());
        };
        if descriptor.status & OWN == 0 {
            if loops {
                self.miss();
                return Ok(());
            }
            return Err(frame);
        }
        if self.state.csr(4) & csr4::ASTRP_RCV == 0 || !strip(&mut frame.bytes) {
            let sequence = bytes::frame_check_sequence(&frame.bytes);
            frame.bytes.extend(sequence);
        }
        let count = bytes::low16(frame.bytes.len() as u64) & 0xfff;
        let mut rest = frame.bytes.as_slice();
        let mut begin = STP;
        loop {
            let at = self.address(ring);
            let (now, later) = rest.split_at(rest.len().min(descriptor.len.into()));
            // Where there is no memory nothing is stored.
            let _ = self.memory.write(descriptor.buffer, now);
            rest = later;
            Self::advance(&mut ring);
            let next = Descriptor::read(&self.memory, self.address(ring), style);
            let next = next.filter(|next| next.status & OWN != 0 && !rest.is_empty());
            let kept = descriptor.status & 0x00ff & !(PAM | LAFM | BAM);
            descriptor.status = kept | begin;
            begin = 0;
            if rest.is_empty() {
                descriptor.status |= ENP | if style == Style::Narrow { 0 } else { why };
            } else if next.is_none() {
                // The rest of the frame has nowhere to go.
                descriptor.status |= ERR | BUFF;
            }
            let last = next.is_none();
            descriptor.write(&self.memory, at, style, (last && rest.is_empty()).then_some(count));
            match next {
                Some(next) => descriptor = next,
                None => break,
            }
        }
        self.state.set_csr(csr::RX_COUNTER, ring.counter);
        self.raise(csr0::RINT);
        Ok(())
    }

    fn miss(&mut self) {
        let missed = self.state.csr(csr::MISSED).wrapping_add(1);
        self.state.set_csr(csr::MISSED, missed);
        if missed == 0 {
            self.state.set_csr(4, self.state.csr(4) | csr4::MFCO);
        }
        self.raise(csr0::MISS);
    }
}

/// Takes the padding of a frame away whose header has its length. False if it has none.
fn strip(frame: &mut Vec<u8>) -> bool {
    let len = device_model::net::packet::be16(frame, 12).map_or(usize::MAX, usize::from);
    let padded = len < bytes::SHORTEST - ETHERNET_HEADER;
    if padded {
        frame.truncate(ETHERNET_HEADER + len);
    }
    padded
}
