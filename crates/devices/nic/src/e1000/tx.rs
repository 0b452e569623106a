//! The transmitter of the 8254x: legacy, context and data descriptors, checksums, segmentation.
//!
//! A frame is gathered from its descriptors and handed to the port in one piece. Long segments are left to the network, with
//! headers made whole as a network expects them.
//!
//! Spec: SDM 8254x §3.3 (descriptors), §3.5 (segmentation), §3.6 (checksums).

use device_model::Frame;
use device_model::VmTime;
use device_model::net::Checksum;
use device_model::net::FRAME_MAX;
use device_model::net::Offload;
use device_model::net::SegmentKind;
use device_model::net::Segmentation;
use device_model::net::packet::IPV4;
use device_model::net::packet::IPV6;
use device_model::net::packet::Layout;
use device_model::net::packet::VLAN;
use device_model::net::packet::be16;
use device_model::net::packet::checksum;
use device_model::net::packet::fold;
use device_model::net::packet::put;
use device_model::net::packet::sum;
use serde::Deserialize;
use serde::Serialize;

use super::E1000;
use super::regs::Reg;
use super::regs::cause;
use super::regs::ctrl;
use super::regs::rctl;
use super::regs::tctl;
use super::ring::Ring;
use super::rx::destination;
use crate::bytes;

/// Commands, in the low byte of a descriptor's command field; TSE is that of data descriptors, IC that of legacy ones.
const EOP: u8 = 1 << 0;
const IC: u8 = 1 << 2;
const TSE: u8 = 1 << 2;
const RS: u8 = 1 << 3;
const RPS: u8 = 1 << 4;
const DEXT: u8 = 1 << 5;
const VLE: u8 = 1 << 6;
const IDE: u8 = 1 << 7;
/// TUCMD of a context: TCP, IPv4.
const TCP: u8 = 1 << 0;
const IP: u8 = 1 << 1;
/// POPTS: checksums of IP and of TCP or UDP.
const IXSM: u8 = 1 << 0;
const TXSM: u8 = 1 << 1;
const DD: u8 = 1 << 0;
/// Descriptors that one poll carries out at most.
const BUDGET: usize = 1024;

/// A descriptor, taken apart (§3.3.3, §3.3.7).
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    low: u64,
    high: u64,
}

impl Descriptor {
    fn command(self) -> u8 {
        bytes::low8(self.high >> 24)
    }

    fn is_context(self) -> bool {
        self.command() & DEXT != 0 && self.high >> 20 & 15 == 0
    }

    fn is_data(self) -> bool {
        self.command() & DEXT != 0 && self.high >> 20 & 15 == 1
    }

    fn len(self) -> usize {
        let mask = if self.command() & DEXT != 0 { 0xf_ffff } else { 0xffff };
        bytes::index(self.high & mask)
    }

    fn special(self) -> u16 {
        bytes::low16(self.high >> 48)
    }
}

/// What a context descriptor set up (§3.3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Context {
    /// Starts, offsets and ends of the checksums of IP and of TCP or UDP; an end of zero is that of the frame.
    ip: (u8, u8, u16),
    transport: (u8, u8, u16),
    payload: u32,
    header: u8,
    mss: u16,
    command: u8,
}

/// How the frame that is being gathered ends up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Plan {
    /// It is known: the first descriptor was seen.
    begun: bool,
    split: bool,
    options: u8,
    /// Start and offset of a legacy checksum.
    legacy: Option<(u8, u8)>,
    tag: Option<u16>,
}

/// What the transmitter has in hand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transmitter {
    context: Context,
    plan: Plan,
    /// What was gathered so far.
    frame: Vec<u8>,
    /// It became too long to be a frame.
    overlong: bool,
}

impl Transmitter {
    pub(super) fn is_sound(&self) -> bool {
        self.frame.len() <= FRAME_MAX
    }
}

impl E1000 {
    /// Carries out descriptors. True if there is more to do at once.
    pub(super) fn transmit(&mut self, now: VmTime) -> bool {
        if let Some(frame) = self.stuck.take()
            && !self.hand_over(frame)
        {
            return false;
        }
        let file = &self.state.file;
        if file.get(Reg::Tctl) & tctl::EN == 0 || !self.is_master() {
            return false;
        }
        let base = file.base(Reg::Tdbal, Reg::Tdbah);
        let ring = Ring::new(base, file.get(Reg::Tdlen), file.get(Reg::Tdh), file.get(Reg::Tdt));
        let Some(mut ring) = ring.filter(|ring| ring.available() > 0) else {
            return false;
        };
        let mut report = None;
        let mut left = BUDGET;
        while ring.available() > 0 && left > 0 && self.stuck.is_none() && self.looped.is_none() {
            left -= 1;
            let at = ring.address();
            let words: [u64; 2] = self.memory.read_obj(at).unwrap_or([0; 2]);
            let [low, high] = words;
            let descriptor = Descriptor { low, high };
            self.carry_out(descriptor);
            if descriptor.command() & (RS | RPS) != 0 {
                let _ = self.memory.write(at + 12, &[bytes::low8(high >> 32) & 0xf0 | DD]);
                let delayed = descriptor.command() & IDE != 0;
                report = Some(report.unwrap_or(true) && delayed);
            }
            ring.advance();
        }
        self.state.file.set(Reg::Tdh, ring.head);
        if let Some(delayed) = report {
            let delay = if delayed { self.state.file.get(Reg::Tidv) } else { 0 };
            let absolute = self.state.file.get(Reg::Tadv);
            self.state.causes.sent(now, delay, absolute);
        }
        self.report_fill(&ring);
        ring.available() > 0 && self.stuck.is_none()
    }

    /// The ring is empty, or has become as empty as TXDCTL.LWTHRESH says.
    fn report_fill(&mut self, ring: &Ring) {
        let low = self.state.file.get(Reg::Txdctl) >> 25 & 0x7f;
        if ring.available() == 0 {
            self.raise(cause::TXQE);
        }
        if low != 0 && ring.available() <= low * 8 {
            self.raise(cause::TXD_LOW);
        }
    }

    fn carry_out(&mut self, descriptor: Descriptor) {
        if descriptor.is_context() {
            self.state.tx.context = context(descriptor);
            return;
        }
        let tx = &mut self.state.tx;
        if !tx.plan.begun {
            tx.plan = plan(descriptor);
        }
        let len = descriptor.len();
        let old = tx.frame.len();
        // A null address stands for no data (§3.3.3).
        if descriptor.low != 0 && !tx.overlong {
            if old + len > FRAME_MAX {
                tx.overlong = true;
            } else {
                tx.frame.resize(old + len, 0);
                let place = tx.frame.get_mut(old..).unwrap_or_default();
                if self.memory.read(descriptor.low, place).is_err() {
                    // What is not there reads as zeros.
                    place.fill(0);
                }
            }
        }
        if descriptor.command() & EOP == 0 {
            return;
        }
        let tx = &mut self.state.tx;
        tx.plan.tag = (descriptor.command() & VLE != 0).then_some(descriptor.special());
        let frame = std::mem::take(&mut tx.frame);
        let plan = std::mem::take(&mut tx.plan);
        if !std::mem::take(&mut tx.overlong) && frame.len() >= device_model::net::ETHERNET_HEADER {
            self.send(frame, plan);
        }
    }

    fn send(&mut self, bytes: Vec<u8>, plan: Plan) {
        let context = self.state.tx.context;
        let mut frame = Frame::new(bytes);
        if plan.split {
            if make_long(&mut frame, &context).is_none() {
                return;
            }
            self.state.statistics.count_split();
        } else {
            if plan.options & IXSM != 0 {
                fill(&mut frame.bytes, context.ip);
            }
            if plan.options & TXSM != 0 {
                leave(&mut frame, context.transport);
            }
            if let Some((start, field)) = plan.legacy {
                leave(&mut frame, (start, field, 0));
            }
        }
        if self.state.file.get(Reg::Ctrl) & ctrl::VME != 0
            && let Some(tag) = plan.tag
        {
            insert_tag(&mut frame, bytes::low16(self.state.file.get(Reg::Vet).into()), tag);
        }
        if self.state.file.get(Reg::Tctl) & tctl::PSP != 0 {
            bytes::pad(&mut frame.bytes);
        }
        let to = destination(&frame.bytes).unwrap_or_default();
        self.state.statistics.count_sent(to, frame.bytes.len() + 4);
        let loops = self.state.file.get(Reg::Rctl) & rctl::LBM != 0 || self.state.phy.loops();
        if loops {
            if frame.offload.segmentation.is_none() {
                self.looped = finished(frame);
            }
        } else if self.link() {
            self.hand_over(frame);
        }
    }

    /// Gives a frame to the port. False if it has no room: then it is kept.
    fn hand_over(&mut self, frame: Frame) -> bool {
        self.stuck = self.port.send(frame).err();
        self.stuck.is_none()
    }
}

fn context(Descriptor { low, high }: Descriptor) -> Context {
    let byte = |word: u64, at: u32| bytes::low8(word >> at);
    let word = |word: u64, at: u32| bytes::low16(word >> at);
    Context {
        ip: (byte(low, 0), byte(low, 8), word(low, 16)),
        transport: (byte(low, 32), byte(low, 40), word(low, 48)),
        payload: bytes::low32(high & 0xf_ffff),
        header: byte(high, 40),
        mss: word(high, 48),
        command: byte(high, 24),
    }
}

/// What the first descriptor of a frame says of it.
fn plan(descriptor: Descriptor) -> Plan {
    let command = descriptor.command();
    let mut plan = Plan {
        begun: true,
        ..Plan::default()
    };
    if descriptor.is_data() {
        plan.split = command & TSE != 0;
        plan.options = bytes::low8(descriptor.high >> 40);
    } else if command & (DEXT | IC) == IC {
        plan.legacy = Some((bytes::low8(descriptor.high >> 40), bytes::low8(descriptor.high >> 16)));
    }
    plan
}

/// Computes a checksum over a part of a frame. Nothing if the part or the field is not in it.
fn fill(frame: &mut [u8], (start, field, end): (u8, u8, u16)) {
    let end = match usize::from(end) {
        0 => frame.len(),
        end => frame.len().min(end + 1),
    };
    if let Some(part) = frame.get(usize::from(start)..end) {
        let value = checksum(sum(part));
        put(frame, field.into(), &value.to_be_bytes());
    }
}

/// Leaves a checksum to the network, if it is of the usual kind: over all the rest of the frame.
fn leave(frame: &mut Frame, (start, field, end): (u8, u8, u16)) {
    let rest = end == 0 || usize::from(end) + 1 >= frame.bytes.len();
    let fits = usize::from(field) + 2 <= frame.bytes.len();
    match field.checked_sub(start) {
        Some(offset) if rest && fits => {
            frame.offload.checksum = Checksum::Missing {
                start: start.into(),
                offset: offset.into(),
            };
        }
        _ => fill(&mut frame.bytes, (start, field, end)),
    }
}

/// Makes the headers of a long segment whole: lengths, the header's checksum, the sum of the pseudo-header.
fn make_long(frame: &mut Frame, context: &Context) -> Option<()> {
    let bytes = &mut frame.bytes;
    let network = usize::from(context.ip.0);
    let total = bytes.len().checked_sub(network)?;
    let v4 = context.command & IP != 0;
    let ethertype = be16(bytes, network.checked_sub(2)?)?;
    let len = u16::try_from(if v4 { total } else { total.checked_sub(40)? }).ok()?;
    let kind = match (v4, ethertype, context.command & TCP != 0) {
        (true, IPV4, true) => SegmentKind::Tcp4,
        (false, IPV6, true) => SegmentKind::Tcp6,
        (true, IPV4, false) | (false, IPV6, false) => SegmentKind::Udp,
        _ => return None,
    };
    put(bytes, network + if v4 { 2 } else { 4 }, &len.to_be_bytes())?;
    let layout = Layout::of(bytes)?;
    let header = layout.transport + layout.transport_header(bytes)?;
    if layout.network != network || header != usize::from(context.header) {
        return None;
    }
    if v4 {
        put(bytes, network + 10, &[0, 0])?;
        let value = checksum(sum(bytes.get(network..layout.transport)?));
        put(bytes, network + 10, &value.to_be_bytes())?;
    }
    let field = layout.checksum_field()?;
    let pseudo = fold(layout.pseudo_header(bytes, layout.end - layout.transport)?);
    put(bytes, field, &pseudo.to_be_bytes())?;
    frame.offload = Offload {
        checksum: Checksum::Missing {
            start: u16::try_from(layout.transport).ok()?,
            offset: u16::try_from(field - layout.transport).ok()?,
        },
        segmentation: Some(Segmentation {
            kind,
            size: context.mss,
            ecn: true,
        }),
    };
    (context.mss != 0).then_some(())
}

/// Puts a VLAN tag behind the addresses; what is behind it moves.
fn insert_tag(frame: &mut Frame, vet: u16, tag: u16) {
    let mut both = [0; 4];
    let [v0, v1] = vet.to_be_bytes();
    let [t0, t1] = tag.to_be_bytes();
    both.copy_from_slice(&[v0, v1, t0, t1]);
    if frame.bytes.len() < 12 {
        return;
    }
    frame.bytes.splice(12..12, both);
    if let Checksum::Missing { start, .. } = &mut frame.offload.checksum {
        *start += 4;
    }
    if vet != VLAN && frame.offload.segmentation.is_some() {
        // Nobody else finds the headers behind such a tag.
        frame.offload.segmentation = None;
    }
}

/// A frame with its checksum, for those who look at it without a network between.
fn finished(mut frame: Frame) -> Option<Frame> {
    if let Checksum::Missing { start, offset } = frame.offload.checksum {
        let value = checksum(sum(frame.bytes.get(usize::from(start)..)?));
        put(
            &mut frame.bytes,
            usize::from(start) + usize::from(offset),
            &value.to_be_bytes(),
        )?;
        frame.offload.checksum = Checksum::Good;
    }
    Some(frame)
}
