//! AMD PCnet: the 10/100 Mbit/s controllers Am79C973 (PCnet-FAST III) and Am79C970A (PCnet-PCI II).
//!
//! Rings in the three software styles of 16 and 32 bits, initialisation block, address filters, padding and stripping, word and
//! double word access, APROM, and the management registers of a transceiver. Loop-back is modelled; jumbo frames, VLANs,
//! wake-up, the EEPROM's wires and the general-purpose timer are not.
//!
//! A frame for which no descriptor is the card's waits in the network; the rings are looked at after each register access
//! and, as the card polls them by itself, every few milliseconds.
//!
//! Spec: AMD 21510 (Am79C973) "Register descriptions", "Descriptors", "Initialization block"; AMD 19436 (Am79C970A).

mod regs;
mod ring;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;

use device_model::At;
use device_model::Device;
use device_model::Frame;
use device_model::FramePort;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::MsiSink;
use device_model::Node;
use device_model::PciFunction;
use device_model::PciHeader;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::Space;
use device_model::VmTime;
use device_model::Width;
use device_model::Widths;
use device_model::net::Mac;
use device_model::net::NetWaker;
use device_model::pci::Bar;
use device_model::pci::BarKind;
use device_model::pci::command::BUS_MASTER;
use device_model::pci::reg::BAR0;
use guest_memory::GuestMemory;
use pci::Class;
use pci::Function;
use pci::Interrupter;
use serde::Deserialize;
use serde::Serialize;

use crate::bytes;
use regs::bcr;
use regs::csr;
use regs::csr0;
use regs::csr4;
use regs::mode;
use regs::reset_bcrs;
use regs::reset_csrs;
use ring::Block;

const ID: (u16, u16) = (0x1022, 0x2000);
const LEN: u64 = 32;
/// Where the address PROM ends, and the registers begin.
const APROM: u64 = 16;
/// How often the rings are looked at while nobody asks for it, and while frames wait for descriptors.
const POLL: u64 = 20_000_000;
const POLL_WAITING: u64 = 1_000_000;

const fn region(name: &'static str, space: Space) -> Region {
    Region {
        name,
        space,
        len: LEN,
        widths: Widths {
            min: Width::Byte,
            max: Width::Dword,
        },
    }
}

const REGIONS: [Region; 2] = [region("ports", Space::Pio), region("registers", Space::Mmio)];

/// Which controller it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Model {
    /// PCnet-FAST III: 100 Mbit/s, with a transceiver.
    #[default]
    Am79C973,
    /// PCnet-PCI II: 10 Mbit/s.
    Am79C970A,
}

impl Model {
    /// Manufacturer, part and version (CSR88 and 89).
    const fn part(self) -> u32 {
        match self {
            Self::Am79C973 => 0x0262_5003,
            Self::Am79C970A => 0x0262_1003,
        }
    }

    const fn has_phy(self) -> bool {
        matches!(self, Self::Am79C973)
    }
}

/// A card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcnetConfig {
    /// Which controller it is.
    pub model: Model,
    /// Its address.
    pub mac: Mac,
}

/// The card's own state, as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    csr: Vec<u16>,
    bcr: Vec<u16>,
    phy: Vec<u16>,
    rap: u16,
    /// Registers are double words.
    dwio: bool,
    /// What was gathered of a frame to send.
    sending: Vec<u8>,
    /// It became too long to be a frame.
    overlong: bool,
    /// The rings are looked at then.
    next: Option<VmTime>,
}

/// The card.
pub struct Pcnet {
    // Wiring
    interrupter: Interrupter,
    memory: Arc<GuestMemory>,
    port: Arc<dyn FramePort>,
    // Configuration
    config: PcnetConfig,
    // State
    header: PciHeader,
    state: State,
    // Derived
    /// A frame that the port gave back, one for which there are no descriptors, and one that comes back by loop-back.
    stuck: Option<Frame>,
    waiting: Option<Frame>,
    looped: Option<Frame>,
    link: bool,
}

impl State {
    fn new(config: &PcnetConfig) -> Self {
        Self {
            csr: reset_csrs(config),
            bcr: reset_bcrs(),
            phy: regs::reset_phy(),
            rap: 0,
            dwio: false,
            sending: Vec::new(),
            overlong: false,
            next: None,
        }
    }

    fn csr(&self, at: u16) -> u16 {
        self.csr.get(usize::from(at)).copied().unwrap_or(0)
    }

    fn set_csr(&mut self, at: u16, value: u16) {
        if let Some(register) = self.csr.get_mut(usize::from(at)) {
            *register = value;
        }
    }

    fn bcr(&self, at: u16) -> u16 {
        self.bcr.get(usize::from(at)).copied().unwrap_or(0)
    }

    fn set_bcr(&mut self, at: u16, value: u16) {
        if let Some(register) = self.bcr.get_mut(usize::from(at)) {
            *register = value;
        }
    }

    /// Two registers as one number.
    fn wide(&self, low: u16) -> u32 {
        u32::from(self.csr(low)) | u32::from(self.csr(low + 1)) << 16
    }

    fn set_wide(&mut self, low: u16, value: u32) {
        self.set_csr(low, bytes::low16(value.into()));
        self.set_csr(low + 1, bytes::low16(u64::from(value) >> 16));
    }

    fn is_sound(&self) -> bool {
        self.csr.len() == csr::COUNT
            && self.bcr.len() == bcr::COUNT
            && self.phy.len() == regs::PHY_REGISTERS
            && self.sending.len() <= transfer::LONGEST
    }
}

impl Pcnet {
    /// A card at `port` that interrupts through `pin`. `waker` asks for its poll.
    pub fn new(
        (pin, sink): (IrqLine, Arc<dyn MsiSink>),
        config: PcnetConfig,
        memory: &Arc<GuestMemory>,
        port: Arc<dyn FramePort>,
        waker: NetWaker,
    ) -> Self {
        let mut function = Function::new(ID.0, ID.1, Class(0x02, 0x00, 0x00));
        function.pin = 1;
        function.revision = if config.model.has_phy() { 0x40 } else { 0x16 };
        let mut header = function.header();
        for (index, kind) in [BarKind::Io, BarKind::Memory32].into_iter().enumerate() {
            let at = BAR0 + if index == 0 { 0 } else { 4 };
            header.add_bar(Bar {
                at,
                kind,
                len: LEN,
                region: index,
            });
        }
        port.set_waker(waker);
        let link = port.link_up();
        Self {
            interrupter: Interrupter::new(pin, sink),
            memory: Arc::clone(memory),
            port,
            config,
            header,
            state: State::new(&config),
            stuck: None,
            waiting: None,
            looped: None,
            link,
        }
    }

    fn is_master(&self) -> bool {
        self.header.commanded(BUS_MASTER)
    }

    /// The address PROM: the address, a sum, and two letters W.
    fn aprom(&self, at: u64) -> u8 {
        let mut prom = [0; 16];
        for (byte, value) in prom.iter_mut().zip(self.config.mac) {
            *byte = value;
        }
        let [.., c, d, e, f] = &mut prom;
        (*e, *f) = (0x57, 0x57);
        let sum = self.config.mac.iter().map(|byte| u16::from(*byte)).sum::<u16>() + 2 * 0x57;
        [*c, *d] = sum.to_le_bytes();
        prom.get(bytes::index(at)).copied().unwrap_or(0)
    }

    fn read_csr(&self, at: u16) -> u16 {
        let value = self.state.csr(at);
        match at {
            0 => {
                let errors = value & (csr0::MERR | csr0::MISS | csr0::CERR | csr0::BABL) != 0;
                let asks = self.asks();
                value | if errors { csr0::ERR } else { 0 } | if asks { csr0::INTR } else { 0 }
            }
            58 => self.state.bcr(bcr::SWS),
            _ => value,
        }
    }

    fn write_csr(&mut self, at: u16, value: u16) {
        match at {
            0 => self.write_csr0(value),
            4 => {
                let old = self.state.csr(4);
                self.state
                    .set_csr(4, value & !csr4::EVENTS | old & csr4::EVENTS & !value);
            }
            5 => {
                let old = self.state.csr(5);
                self.state
                    .set_csr(5, value & !regs::CSR5_EVENTS | old & regs::CSR5_EVENTS & !value);
            }
            15 => {
                self.state.set_csr(15, value);
                self.tell_promiscuous();
            }
            58 => self.write_bcr(bcr::SWS, value),
            88 | 89 => {}
            _ => self.state.set_csr(at, value),
        }
    }

    fn write_csr0(&mut self, value: u16) {
        let old = self.state.csr(0);
        let mut new = old & !(value & csr0::EVENTS);
        if value & csr0::STOP != 0 {
            new = csr0::STOP;
            self.stop();
        } else {
            new = new & !csr0::IENA | value & csr0::IENA;
            new |= value & csr0::TDMD;
            if value & csr0::INIT != 0 && new & csr0::INIT == 0 {
                new = self.initialize(new);
            }
            if value & csr0::STRT != 0 && new & csr0::STRT == 0 {
                new = self.start(new);
            }
        }
        self.state.set_csr(0, new);
    }

    /// Frames under way are forgotten.
    fn stop(&mut self) {
        self.state.sending.clear();
        self.state.overlong = false;
        (self.stuck, self.waiting, self.looped) = (None, None, None);
        // Suspension ends with it.
        self.state.set_csr(5, self.state.csr(5) & !1);
    }

    /// Reads the initialisation block.
    fn initialize(&mut self, csr0: u16) -> u16 {
        if !self.is_master() {
            return csr0 | csr0::MERR;
        }
        let at = self.state.wide(1);
        let Some(block) = Block::read(&self.memory, at.into(), self.is_wide()) else {
            return csr0 | csr0::MERR;
        };
        self.state.set_csr(15, block.mode);
        for (register, value) in (8..).zip(block.filter).chain((12..).zip(block.address)) {
            self.state.set_csr(register, value);
        }
        self.state.set_wide(csr::RX_BASE, block.rx.0);
        self.state.set_wide(csr::TX_BASE, block.tx.0);
        for (length, counter, value) in [
            (csr::RX_LENGTH, csr::RX_COUNTER, block.rx.1),
            (csr::TX_LENGTH, csr::TX_COUNTER, block.tx.1),
        ] {
            // Lengths are two's complements, and counters begin there.
            let complement = 0u16.wrapping_sub(value);
            self.state.set_csr(length, complement);
            self.state.set_csr(counter, complement);
        }
        self.tell_promiscuous();
        csr0 & !csr0::STOP | csr0::INIT | csr0::IDON
    }

    fn start(&mut self, csr0: u16) -> u16 {
        let mode = self.state.csr(15);
        let rx = if mode & mode::DRX == 0 { csr0::RXON } else { 0 };
        let tx = if mode & mode::DTX == 0 { csr0::TXON } else { 0 };
        csr0 & !csr0::STOP | csr0::STRT | rx | tx
    }

    fn tell_promiscuous(&self) {
        self.port.set_promiscuous(self.state.csr(15) & mode::PROM != 0);
    }

    /// Descriptors and block are of 32 bits.
    fn is_wide(&self) -> bool {
        self.state.bcr(bcr::SWS) & 0xff != 0
    }

    fn read_bcr(&self, at: u16) -> u16 {
        match at {
            bcr::LNKST => {
                let up = if self.link { 0x8000 } else { 0 };
                self.state.bcr(at) & 0x7fff | up
            }
            bcr::MIIMDR => self.read_phy(),
            _ => self.state.bcr(at),
        }
    }

    fn write_bcr(&mut self, at: u16, value: u16) {
        match at {
            bcr::SWS => {
                // Style 1 is reserved; those of 32 bits say so.
                let style = value & 0xff;
                let wide = if matches!(style, 2 | 3) { 0x0100 } else { 0 };
                let kept = if matches!(style, 0 | 2 | 3) { style } else { 0 };
                self.state.set_bcr(at, value & 0xfc00 | 0x0200 | wide | kept);
            }
            bcr::BSBC => {
                // DWIO is only left by a reset (BCR18).
                self.state
                    .set_bcr(at, value & !0x80 | if self.state.dwio { 0x80 } else { 0 });
            }
            bcr::MIIMDR => self.write_phy(value),
            bcr::VENDOR => {}
            _ => self.state.set_bcr(at, value),
        }
    }

    /// The register of the transceiver that MIIADDR names, if it names ours.
    fn phy_register(&self) -> Option<usize> {
        let address = self.state.bcr(bcr::MIIADDR);
        let ours = self.config.model.has_phy() && address >> 5 & 31 == regs::PHY_ADDRESS;
        ours.then_some(usize::from(address & 31))
    }

    fn read_phy(&self) -> u16 {
        let Some(at) = self.phy_register() else { return 0xffff };
        let value = self.state.phy.get(at).copied().unwrap_or(0);
        let up = self.link;
        match at {
            1 => value | if up { 0x0024 } else { 0 },
            5 if up => 0x41e1,
            6 if up => 0x0001,
            _ => value,
        }
    }

    fn write_phy(&mut self, value: u16) {
        let Some(at) = self.phy_register() else { return };
        match at {
            0 if value & 0x8000 != 0 => self.state.phy = regs::reset_phy(),
            // Negotiation restarts and is over at once.
            0 => regs::put(&mut self.state.phy, 0, value & !0x0200),
            4 | 16.. => regs::put(&mut self.state.phy, at, value),
            _ => {}
        }
    }

    /// Whether something asks for an interrupt, regardless of IENA.
    fn asks(&self) -> bool {
        let csr0 = self.state.csr(0) & csr0::ASKS & !self.state.csr(3);
        let csr4 = self.state.csr(4);
        // Each mask stands one below its event.
        csr0 != 0 || csr4 & csr4::EVENTS & !(csr4 & csr4::MASKS) << 1 != 0
    }

    fn update_pin(&mut self) {
        let level = self.state.csr(0) & csr0::IENA != 0 && self.asks();
        self.interrupter.set(&mut self.header, level);
    }

    /// The software reset: control and status registers, not the bus configuration.
    fn soft_reset(&mut self) {
        self.stop();
        self.state.csr = reset_csrs(&self.config);
        self.state.rap = 0;
        self.state.dwio = false;
        self.state.set_bcr(bcr::BSBC, self.state.bcr(bcr::BSBC) & !0x80);
        self.tell_promiscuous();
        self.update_pin();
    }

    fn read_register(&mut self, offset: u64) -> u16 {
        // Offsets are those of words, or of double words.
        let (rdp, rap, reset, bdp) = if self.state.dwio { (0, 4, 8, 12) } else { (0, 2, 4, 6) };
        match offset - APROM {
            at if at == rdp => self.read_csr(self.state.rap),
            at if at == rap => self.state.rap,
            at if at == reset => {
                self.soft_reset();
                0
            }
            at if at == bdp => self.read_bcr(self.state.rap),
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: u64, value: u16) {
        let (rdp, rap, bdp) = if self.state.dwio { (0, 4, 12) } else { (0, 2, 6) };
        let at = offset - APROM;
        if at == rdp {
            self.write_csr(self.state.rap, value);
        } else if at == rap {
            self.state.rap = value & 0x7f;
        } else if at == bdp {
            self.write_bcr(self.state.rap, value);
        }
        self.update_pin();
    }
}

impl Registers for Pcnet {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        if at.offset < APROM {
            let bytes = (0..width.bytes()).map(|index| self.aprom(at.offset + index));
            return Ok(bytes
                .zip(0u32..)
                .map(|(byte, index)| u64::from(byte) << (8 * index))
                .sum());
        }
        match (width, self.state.dwio) {
            (Width::Dword, true) | (Width::Word, false) => Ok(self.read_register(at.offset).into()),
            // Registers are not taken apart.
            _ => Ok(0),
        }
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        if at.offset < APROM {
            return Ok(());
        }
        if width == Width::Dword && at.offset == APROM && !self.state.dwio {
            self.state.dwio = true;
            self.state.set_bcr(bcr::BSBC, self.state.bcr(bcr::BSBC) | 0x80);
            return Ok(());
        }
        if matches!((width, self.state.dwio), (Width::Dword, true) | (Width::Word, false)) {
            self.write_register(at.offset, bytes::low16(value));
        }
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    let region = REGIONS.get(at.region).ok_or(IoError::NoRegister)?;
    let end = at.offset.checked_add(width.bytes()).ok_or(IoError::NoRegister)?;
    if end > region.len || width == Width::Qword {
        return Err(IoError::NoRegister);
    }
    Ok(())
}

impl PciFunction for Pcnet {
    fn header(&self) -> &PciHeader {
        &self.header
    }

    fn header_mut(&mut self) -> &mut PciHeader {
        &mut self.header
    }

    fn config_write(&mut self, at: u16, width: Width, value: u32) {
        self.header.write(at, width, value);
        self.interrupter.written(&mut self.header, at, width);
    }
}

impl Device for Pcnet {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
        self.stop();
        self.state = State::new(&self.config);
        self.link = self.port.link_up();
        self.tell_promiscuous();
        self.interrupter.set(&mut self.header, false);
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        self.link = self.port.link_up();
        let more = self.transmit() | self.receive();
        self.update_pin();
        self.state.next = if more {
            Some(now + 1)
        } else if self.waiting.is_some() {
            Some(now + POLL_WAITING)
        } else if self.polls() {
            Some(now + POLL)
        } else {
            None
        };
        self.state.next
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for Pcnet {
    type State = PcnetV1;

    fn save(&self) -> PcnetV1 {
        let Self {
            interrupter: _,
            memory: _,
            port: _,
            config: _,
            header,
            state,
            stuck: _,
            waiting: _,
            looped: _,
            link: _,
        } = self;
        PcnetV1 {
            header: header.save(),
            state: state.clone(),
        }
    }

    fn restore(&mut self, saved: PcnetV1) -> Result<(), RestoreError> {
        let PcnetV1 { header, state } = saved;
        if !state.is_sound() {
            return Err(RestoreError::Invalid("pcnet state that cannot be".to_owned()));
        }
        self.header.restore(&header)?;
        self.state = state;
        (self.stuck, self.waiting, self.looped) = (None, None, None);
        self.link = self.port.link_up();
        self.tell_promiscuous();
        self.interrupter.update_pin(&self.header);
        Ok(())
    }
}

impl Inspect for Pcnet {
    fn inspect(&self) -> Node {
        let [a, b, c, d, e, f] = self.config.mac;
        let ring = |base, length| {
            Node::tree()
                .with("base", self.state.wide(base))
                .with("length", 0u16.wrapping_sub(self.state.csr(length)))
        };
        Node::tree()
            .with("mac", format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
            .with("link", self.link)
            .with("csr0", self.read_csr(0))
            .with("csr15", self.state.csr(15))
            .with("dwio", self.state.dwio)
            .with("style", self.state.bcr(bcr::SWS) & 0xff)
            .with("rx", ring(csr::RX_BASE, csr::RX_LENGTH))
            .with("tx", ring(csr::TX_BASE, csr::TX_LENGTH))
    }
}

/// Saved state of [`Pcnet`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PcnetV1 {
    header: Vec<u8>,
    state: State,
}

impl Schema for PcnetV1 {
    const NAME: &'static str = "pcnet";
    const VERSION: u32 = 1;
}
