//! Intel PRO/1000 MT and its relatives: the gigabit controllers 82540EM, 82543GC and 82545EM.
//!
//! Rings of legacy and extended descriptors, checksums and TCP segmentation for the guest, filters for addresses and VLANs,
//! delays and throttling of interrupts, EEPROM, transceiver, statistics, loop-back in the transceiver. Wake-up registers keep
//! what is written and wake nobody. There is no flash, no packet buffer that guests could look into, no flow control: frames
//! for which there is no descriptor wait in the network.
//!
//! Spec: SDM 8254x §3 (descriptors), §5 (EEPROM), §13 (registers), §14 (initialisation).

mod eeprom;
mod filter;
mod interrupt;
mod phy;
mod regs;
mod ring;
mod rx;
mod statistics;
#[cfg(test)]
mod tests;
mod tx;

use std::sync::Arc;

use device_model::At;
use device_model::Device;
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
use eeprom::Eeprom;
use interrupt::Causes;
use phy::Phy;
use regs::File;
use regs::Reg;
use regs::cause;
use regs::ctrl;
use regs::rctl;
use regs::status;
use regs::table;
use statistics::Statistics;
use tx::Transmitter;

const REGISTERS: usize = 0;
const PORTS: usize = 1;
const REGISTERS_LEN: u64 = 0x2_0000;
const PORTS_LEN: u64 = 64;

const REGIONS: [Region; 2] = [
    Region {
        name: "registers",
        space: Space::Mmio,
        len: REGISTERS_LEN,
        widths: Widths::DWORD,
    },
    Region {
        name: "ports",
        space: Space::Pio,
        len: PORTS_LEN,
        widths: Widths::DWORD,
    },
];

/// Which controller it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Model {
    /// PRO/1000 MT Desktop.
    #[default]
    I82540Em,
    /// PRO/1000 T Server.
    I82543Gc,
    /// PRO/1000 MT Server.
    I82545Em,
}

impl Model {
    /// Vendor and device identifier.
    #[must_use]
    pub const fn id(self) -> (u16, u16) {
        match self {
            Self::I82540Em => (0x8086, 0x100e),
            Self::I82543Gc => (0x8086, 0x1004),
            Self::I82545Em => (0x8086, 0x100f),
        }
    }

    const fn phy_id(self) -> u16 {
        match self {
            Self::I82543Gc => 0x0c50,
            _ => 0x0c20,
        }
    }

    /// Whether the registers that came with the 82544 are there: MDIC, EERD, delays by absolute time.
    const fn has_mdic(self) -> bool {
        !matches!(self, Self::I82543Gc)
    }
}

/// A card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E1000Config {
    /// Which controller it is.
    pub model: Model,
    /// The address that the EEPROM has at first.
    pub mac: Mac,
}

/// The card's own state, as it is saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    file: File,
    /// Multicast table, receive addresses, VLAN table, wake-up addresses.
    mta: Vec<u32>,
    ra: Vec<u32>,
    vfta: Vec<u32>,
    wake: Vec<u32>,
    statistics: Statistics,
    causes: Causes,
    tx: Transmitter,
    eeprom: Eeprom,
    phy: Phy,
    /// Register that the ports reach.
    io_addr: u32,
}

impl State {
    fn new(config: &E1000Config, cable: bool) -> Self {
        let zeros = |len: u64| vec![0; bytes::index(len)];
        let mut state = Self {
            file: File::default(),
            mta: zeros(table::MTA_LEN),
            ra: zeros(table::RA_LEN),
            vfta: zeros(table::VFTA_LEN),
            wake: zeros(table::IP4AT_LEN + table::IP6AT_LEN),
            statistics: Statistics::default(),
            causes: Causes::default(),
            tx: Transmitter::default(),
            eeprom: Eeprom::new(config.model, config.mac),
            phy: Phy::new(config.model, cable),
            io_addr: 0,
        };
        state.load_address();
        state
    }

    /// The first receive address is loaded from the EEPROM.
    fn load_address(&mut self) {
        let [a, b, c, d, e, f] = self.eeprom.mac();
        let address = [
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, 0, 0]) | filter::VALID,
        ];
        for (place, value) in self.ra.iter_mut().zip(address) {
            *place = value;
        }
    }

    fn is_sound(&self) -> bool {
        let len = |table: &[u32], len: u64| table.len() as u64 == len;
        len(&self.mta, table::MTA_LEN)
            && len(&self.ra, table::RA_LEN)
            && len(&self.vfta, table::VFTA_LEN)
            && len(&self.wake, table::IP4AT_LEN + table::IP6AT_LEN)
            && self.file.is_sound()
            && self.statistics.is_sound()
            && self.eeprom.is_sound()
            && self.phy.is_sound()
            && self.tx.is_sound()
    }
}

/// The card.
pub struct E1000 {
    // Wiring
    interrupter: Interrupter,
    memory: Arc<GuestMemory>,
    port: Arc<dyn FramePort>,
    // Configuration
    config: E1000Config,
    // State
    header: PciHeader,
    state: State,
    // Derived
    /// A frame that the port gave back. It is the network's already: a saved state loses it, as a cable might.
    stuck: Option<device_model::Frame>,
    /// A frame for which there were too few descriptors.
    waiting: Option<device_model::Frame>,
    /// A frame that came back from the transceiver.
    looped: Option<device_model::Frame>,
}

impl E1000 {
    /// A card at `port` that interrupts through `pin`. `waker` asks for its poll.
    pub fn new(
        (pin, sink): (IrqLine, Arc<dyn MsiSink>),
        config: E1000Config,
        memory: &Arc<GuestMemory>,
        port: Arc<dyn FramePort>,
        waker: NetWaker,
    ) -> Self {
        let (vendor, device) = config.model.id();
        let mut function = Function::new(vendor, device, Class(0x02, 0x00, 0x00));
        function.pin = 1;
        function.revision = 2;
        let mut header = function.header();
        header.add_bar(Bar {
            at: BAR0,
            kind: BarKind::Memory32,
            len: REGISTERS_LEN,
            region: REGISTERS,
        });
        header.add_bar(Bar {
            at: BAR0 + 8,
            kind: BarKind::Io,
            len: PORTS_LEN,
            region: PORTS,
        });
        port.set_waker(waker);
        let cable = port.link_up();
        Self {
            interrupter: Interrupter::new(pin, sink),
            memory: Arc::clone(memory),
            port,
            config,
            header,
            state: State::new(&config, cable),
            stuck: None,
            waiting: None,
            looped: None,
        }
    }

    /// Forgets frames that are neither here nor there.
    fn drop_frames(&mut self) {
        (self.stuck, self.waiting, self.looped) = (None, None, None);
    }

    fn is_master(&self) -> bool {
        self.header.commanded(BUS_MASTER)
    }

    /// Raises causes, and drives the pin.
    fn raise(&mut self, causes: u32) {
        self.state.causes.raise(causes);
    }

    /// The pin follows the causes: it goes at once, and comes when throttling lets it, which a poll sees to.
    fn lower_pin(&mut self) {
        if self.state.causes.rest() {
            self.interrupter.set(&mut self.header, false);
        }
    }

    /// A reset by CTRL.RST: everything but configuration space, the EEPROM's contents and the transceiver.
    fn reset_controller(&mut self) {
        let cable = self.port.link_up();
        let mut eeprom = self.state.eeprom.clone();
        eeprom.reset();
        let mut phy = self.state.phy.clone();
        phy.set_cable(cable);
        self.state = State {
            eeprom,
            phy,
            statistics: std::mem::take(&mut self.state.statistics),
            io_addr: self.state.io_addr,
            ..State::new(&self.config, cable)
        };
        self.state.load_address();
        self.drop_frames();
        self.port.set_promiscuous(false);
        self.lower_pin();
    }

    fn write_ctrl(&mut self, value: u32) {
        if value & ctrl::RST != 0 {
            self.reset_controller();
            return;
        }
        self.state.file.set(Reg::Ctrl, value & ctrl::KEPT | value & ctrl::LRST);
        let model = self.config.model;
        if value & ctrl::PHY_RST != 0 && model.has_mdic() {
            self.state.phy.reset(model);
            self.raise(cause::LSC);
        }
        if !model.has_mdic() {
            let driven = value & ctrl::MDIO_OUT != 0;
            let data = driven.then_some(value & ctrl::MDIO != 0);
            if self.state.phy.wire(value & ctrl::MDC != 0, data, model) {
                self.raise(cause::LSC);
            }
        }
    }

    fn read_ctrl(&self) -> u32 {
        let value = self.state.file.get(Reg::Ctrl);
        if self.config.model.has_mdic() || value & ctrl::MDIO_OUT != 0 {
            return value;
        }
        let data = if self.state.phy.data_out() { ctrl::MDIO } else { 0 };
        value & !ctrl::MDIO | data
    }

    fn link(&self) -> bool {
        self.state.phy.link()
    }

    fn read_status(&self) -> u32 {
        let up = if self.link() { status::LU } else { 0 };
        status::FD | status::SPEED_1000 | status::PCI66 | up
    }

    /// The table entry at `offset`, if there is one.
    fn entry(&mut self, offset: u64) -> Option<&mut u32> {
        let State {
            mta, ra, vfta, wake, ..
        } = &mut self.state;
        let tables = [(table::MTA, mta), (table::RA, ra), (table::VFTA, vfta)];
        for (base, entries) in tables {
            if let Some(at) = offset.checked_sub(base).filter(|at| at / 4 < entries.len() as u64) {
                return entries.get_mut(bytes::index(at / 4));
            }
        }
        let at = match offset {
            table::IP6AT.. => (offset - table::IP6AT) / 4 + table::IP4AT_LEN,
            _ => offset.checked_sub(table::IP4AT)? / 4,
        };
        wake.get_mut(bytes::index(at))
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        let Some(reg) = Reg::at(offset) else {
            if let Some(at) = offset.checked_sub(table::STATISTICS)
                && let at = bytes::index(at / 4)
                && at < table::STATISTICS_LEN
            {
                return self.state.statistics.read(at);
            }
            return self.entry(offset).map_or(0, |entry| *entry);
        };
        match reg {
            Reg::Ctrl => self.read_ctrl(),
            Reg::Status => self.read_status(),
            Reg::Eecd => self.state.eeprom.eecd(),
            Reg::Icr => {
                let causes = self.state.causes.take();
                self.lower_pin();
                causes
            }
            Reg::Ics => 0,
            Reg::Ims | Reg::Imc => self.state.causes.mask(),
            _ => self.state.file.get(reg),
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let Some(reg) = Reg::at(offset) else {
            if let Some(entry) = self.entry(offset) {
                *entry = value;
            }
            return;
        };
        self.state.file.write(reg, value);
        match reg {
            Reg::Ctrl => self.write_ctrl(value),
            Reg::Eecd => self.state.eeprom.write_eecd(value),
            Reg::Eerd if self.config.model.has_mdic() => {
                let read = self.state.eeprom.read_by_register(value);
                self.state.file.set(Reg::Eerd, read);
            }
            Reg::Mdic if self.config.model.has_mdic() => {
                let (read, changed) = self.state.phy.access(value, self.config.model);
                self.state.file.set(Reg::Mdic, read);
                let asked = if value & 1 << 29 != 0 { cause::MDAC } else { 0 };
                self.raise(asked | if changed { cause::LSC } else { 0 });
            }
            Reg::Icr => {
                self.state.causes.clear(value);
                self.lower_pin();
            }
            Reg::Ics => self.raise(value & cause::ALL),
            Reg::Ims => self.state.causes.unmask(value & cause::ALL),
            Reg::Imc => {
                self.state.causes.hide(value);
                self.lower_pin();
            }
            Reg::Rctl => self
                .port
                .set_promiscuous(value & (rctl::EN | rctl::UPE) == rctl::EN | rctl::UPE),
            Reg::Rdtr if value & 1 << 31 != 0 => self.state.causes.flush_rx(),
            Reg::Tidv if value & 1 << 31 != 0 => self.state.causes.flush_tx(),
            _ => {}
        }
    }

    /// The cable was plugged in or out.
    fn look_at_cable(&mut self) {
        if self.state.phy.set_cable(self.port.link_up()) {
            self.raise(cause::LSC);
        }
    }

    /// Lets the pin come if it may, and returns when something is next due.
    fn settle(&mut self, now: VmTime) -> Option<VmTime> {
        let itr = u64::from(self.state.file.get(Reg::Itr)) * interrupt::THROTTLE_UNIT;
        let (level, next) = self.state.causes.settle(now, itr);
        self.interrupter.set(&mut self.header, level);
        next
    }
}

impl Registers for E1000 {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        let value = match (at.region, at.offset) {
            (REGISTERS, offset) => self.read_register(offset),
            (PORTS, 0) => self.state.io_addr,
            (PORTS, 4) => self.read_register(self.state.io_addr.into()),
            _ => 0,
        };
        Ok(value.into())
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        let value = bytes::low32(value);
        match (at.region, at.offset) {
            (REGISTERS, offset) => self.write_register(offset, value),
            // Registers only: there is no flash.
            (PORTS, 0) => self.state.io_addr = value & 0x1_fffc,
            (PORTS, 4) => self.write_register(self.state.io_addr.into(), value),
            _ => {}
        }
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    let region = REGIONS.get(at.region).ok_or(IoError::NoRegister)?;
    let end = at.offset.checked_add(width.bytes()).ok_or(IoError::NoRegister)?;
    if end > region.len {
        return Err(IoError::NoRegister);
    }
    let whole = width == Width::Dword && at.offset.is_multiple_of(4);
    if whole { Ok(()) } else { Err(IoError::Width) }
}

impl PciFunction for E1000 {
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

impl Device for E1000 {
    fn reset(&mut self, _kind: Reset) {
        self.header.reset();
        let eeprom = self.state.eeprom.clone();
        self.state = State::new(&self.config, self.port.link_up());
        // What was written to it is kept without power.
        self.state.eeprom = eeprom;
        self.state.eeprom.reset();
        self.state.load_address();
        self.drop_frames();
        self.port.set_promiscuous(false);
        self.interrupter.set(&mut self.header, false);
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        self.look_at_cable();
        let more = self.transmit(now) | self.receive(now);
        let next = self.settle(now);
        // What is left is done by the event thread, which other devices share.
        if more { Some(now + 1) } else { next }
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }
}

impl Snapshot for E1000 {
    type State = E1000V1;

    fn save(&self) -> E1000V1 {
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
        } = self;
        E1000V1 {
            header: header.save(),
            state: state.clone(),
        }
    }

    fn restore(&mut self, saved: E1000V1) -> Result<(), RestoreError> {
        let E1000V1 { header, state } = saved;
        if !state.is_sound() {
            return Err(RestoreError::Invalid("e1000 state that cannot be".to_owned()));
        }
        self.header.restore(&header)?;
        self.state = state;
        self.drop_frames();
        let rctl = self.state.file.get(Reg::Rctl);
        self.port
            .set_promiscuous(rctl & (rctl::EN | rctl::UPE) == rctl::EN | rctl::UPE);
        self.interrupter.update_pin(&self.header);
        Ok(())
    }
}

impl Inspect for E1000 {
    fn inspect(&self) -> Node {
        let file = &self.state.file;
        let ring = |head, tail| Node::tree().with("head", file.get(head)).with("tail", file.get(tail));
        let [a, b, c, d, e, f] = self.state.eeprom.mac();
        Node::tree()
            .with("mac", format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}"))
            .with("link", self.link())
            .with("rctl", file.get(Reg::Rctl))
            .with("tctl", file.get(Reg::Tctl))
            .with("icr", self.state.causes.all())
            .with("ims", self.state.causes.mask())
            .with("rx", ring(Reg::Rdh, Reg::Rdt))
            .with("tx", ring(Reg::Tdh, Reg::Tdt))
            .with("received", self.state.statistics.received())
            .with("sent", self.state.statistics.sent())
    }
}

/// Saved state of [`E1000`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct E1000V1 {
    header: Vec<u8>,
    state: State,
}

impl Schema for E1000V1 {
    const NAME: &'static str = "e1000";
    const VERSION: u32 = 1;
}
