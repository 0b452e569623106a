//! National Semiconductor 16550A UART, as a PC's serial port.
//!
//! FIFOs with trigger levels and the receive timeout, loopback, line errors, break, and the THRE interrupt's habits are
//! modelled. The line has no speed: a character leaves when the backend takes it, and arrives when the guest has room for
//! it, so nothing is paced and the backend never overruns the guest. The far end is a terminal that is always there (CTS,
//! DSR and DCD high). OUT2 gates the interrupt as PC boards wire it, in loopback too. The DMA pins are not modelled.
//!
//! Spec: National Semiconductor PC16550D (1995) §8.

use std::collections::VecDeque;
use std::sync::Arc;

use device_model::At;
use device_model::Clock;
use device_model::Device;
use device_model::Inspect;
use device_model::IoError;
use device_model::IrqLine;
use device_model::Node;
use device_model::Region;
use device_model::Registers;
use device_model::Reset;
use device_model::RestoreError;
use device_model::Schema;
use device_model::SerialBackend;
use device_model::Snapshot;
use device_model::Space;
use device_model::VmTime;
use device_model::Width;
use device_model::Widths;
use serde::Deserialize;
use serde::Serialize;

use self::spec::Fcr;
use self::spec::Ier;
use self::spec::Interrupt;
use self::spec::Lcr;
use self::spec::Lsr;
use self::spec::Mcr;
use self::spec::Msr;
use crate::lanes;

mod spec;

const REGIONS: [Region; 1] = [Region {
    name: "uart",
    space: Space::Pio,
    len: 8,
    widths: Widths::BYTE,
}];

/// How soon a character that the backend had no room for is offered again.
const RETRY_NS: u64 = 1_000_000;
/// LSR reads in a row after which the guest is taken to wait for input by polling.
const POLLING_READS: u8 = 2;

/// A received character with its error bits (those of LSR).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Received {
    byte: u8,
    errors: u8,
}

/// A serial port.
pub struct Uart16550 {
    // Wiring
    clock: Arc<dyn Clock>,
    irq: IrqLine,
    backend: Box<dyn SerialBackend>,
    // State
    ier: Ier,
    fcr: Fcr,
    lcr: Lcr,
    mcr: Mcr,
    /// Error bits that the guest has not read yet.
    lsr: Lsr,
    /// Change bits that the guest has not read yet.
    msr: Msr,
    scr: u8,
    divisor: u16,
    rx: VecDeque<Received>,
    tx: VecDeque<u8>,
    thre_pending: bool,
    timeout_pending: bool,
    /// When the characters in the FIFO have waited long enough.
    timeout_at: Option<VmTime>,
    lsr_reads: u8,
    // Derived
    /// When the next poll comes, as far as asked for.
    armed: Option<VmTime>,
}

impl Uart16550 {
    /// A port that interrupts through `irq` and talks to `backend`.
    pub fn new(clock: Arc<dyn Clock>, irq: IrqLine, backend: Box<dyn SerialBackend>) -> Self {
        Self {
            clock,
            irq,
            backend,
            ier: Ier::new(),
            fcr: Fcr::new(),
            lcr: Lcr::new(),
            mcr: Mcr::new(),
            lsr: Lsr::new(),
            msr: Msr::new(),
            scr: 0,
            divisor: 1,
            rx: VecDeque::new(),
            tx: VecDeque::new(),
            thre_pending: false,
            timeout_pending: false,
            timeout_at: None,
            lsr_reads: 0,
            armed: None,
        }
    }

    /// The far end sends a break.
    pub fn receive_break(&mut self) {
        if !self.mcr.loopback() {
            self.arrive(break_character());
            self.wait_from(self.clock.now());
            self.update_irq();
        }
    }
}

fn break_character() -> Received {
    Received {
        byte: 0,
        errors: Lsr::new().with_bi(true).with_fe(true).into_bits(),
    }
}

impl Registers for Uart16550 {
    fn regions(&self) -> &[Region] {
        &REGIONS
    }

    fn read(&mut self, at: At, width: Width) -> Result<u64, IoError> {
        check(at, width)?;
        let [dll, dlm] = self.divisor.to_le_bytes();
        let value = match at.offset {
            spec::DATA if self.lcr.dlab() => dll,
            spec::DATA => self.read_rbr(),
            spec::IER if self.lcr.dlab() => dlm,
            spec::IER => self.ier.into_bits(),
            spec::IIR_FCR => self.read_iir(),
            spec::LCR => self.lcr.into_bits(),
            spec::MCR => self.mcr.into_bits(),
            spec::LSR => self.read_lsr(),
            spec::MSR => self.read_msr(),
            _ => self.scr,
        };
        self.update_irq();
        Ok(u64::from(value))
    }

    fn write(&mut self, at: At, width: Width, value: u64) -> Result<(), IoError> {
        check(at, width)?;
        self.lsr_reads = 0;
        let value = lanes::byte(value);
        let [dll, dlm] = self.divisor.to_le_bytes();
        match at.offset {
            spec::DATA if self.lcr.dlab() => self.divisor = u16::from_le_bytes([value, dlm]),
            spec::DATA => self.write_thr(value),
            spec::IER if self.lcr.dlab() => self.divisor = u16::from_le_bytes([dll, value]),
            spec::IER => self.write_ier(value),
            spec::IIR_FCR => self.write_fcr(value),
            spec::LCR => self.write_lcr(value),
            spec::MCR => self.write_mcr(value),
            spec::SCR => self.scr = value,
            // LSR and MSR are for reading; writing them is for factory tests.
            _ => {}
        }
        self.update_irq();
        Ok(())
    }
}

fn check(at: At, width: Width) -> Result<(), IoError> {
    match (at, width) {
        (
            At {
                region: 0,
                offset: 0..8,
            },
            Width::Byte,
        ) => Ok(()),
        (
            At {
                region: 0,
                offset: 0..8,
            },
            _,
        ) => Err(IoError::Width),
        _ => Err(IoError::NoRegister),
    }
}

impl Uart16550 {
    // PC16550D §8.6: the order of the interrupt identification register.
    fn interrupt(&self) -> Option<Interrupt> {
        if self.ier.elsi() && self.lsr.into_bits() & Lsr::ERRORS != 0 {
            Some(Interrupt::Line)
        } else if self.ier.erbfi() && self.rx.len() >= self.fcr.level() {
            Some(Interrupt::Receive)
        } else if self.ier.erbfi() && self.timeout_pending {
            Some(Interrupt::Timeout)
        } else if self.ier.etbei() && self.thre_pending {
            Some(Interrupt::Transmit)
        } else if self.ier.edssi() && self.msr.into_bits() & Msr::DELTAS != 0 {
            Some(Interrupt::Modem)
        } else {
            None
        }
    }

    fn update_irq(&self) {
        self.irq.set(self.mcr.out2() && self.interrupt().is_some());
    }

    fn read_rbr(&mut self) -> u8 {
        self.lsr_reads = 0;
        let Some(Received { byte, .. }) = self.rx.pop_front() else {
            return 0;
        };
        self.reveal();
        self.timeout_pending = false;
        // The line falls before more characters come, so that they make an edge.
        self.update_irq();
        let now = self.clock.now();
        if self.rx.is_empty() {
            self.pull();
        }
        self.wait_from(now);
        if self.armed.is_none() && self.timeout_at.is_some() {
            // Reading a register cannot ask for a poll, and none is to come: the wait is over at once.
            self.time_out();
        }
        byte
    }

    fn read_iir(&mut self) -> u8 {
        self.lsr_reads = 0;
        let fifos = if self.fcr.enable() { spec::IIR_FIFOS } else { 0 };
        let Some(interrupt) = self.interrupt() else {
            return spec::IIR_NONE | fifos;
        };
        if interrupt == Interrupt::Transmit {
            self.thre_pending = false;
        }
        interrupt as u8 | fifos
    }

    fn read_lsr(&mut self) -> u8 {
        self.lsr_reads = self.lsr_reads.saturating_add(1);
        if self.rx.is_empty() {
            self.pull();
        }
        let character_error = |received: &Received| received.errors & Lsr::CHARACTER_ERRORS != 0;
        let errors = self.lsr.into_bits() & Lsr::CHARACTER_ERRORS != 0 || self.rx.iter().any(character_error);
        let value = self
            .lsr
            .with_dr(!self.rx.is_empty())
            .with_thre(self.tx.is_empty())
            .with_temt(self.tx.is_empty())
            .with_fifo_error(self.fcr.enable() && errors);
        self.lsr = Lsr::new();
        value.into_bits()
    }

    fn read_msr(&mut self) -> u8 {
        let value = self.msr.into_bits() | self.modem_inputs().into_bits();
        self.msr = Msr::new();
        value
    }

    fn write_thr(&mut self, byte: u8) {
        self.thre_pending = false;
        self.update_irq();
        if self.mcr.loopback() {
            let byte = byte & self.lcr.data_mask();
            self.arrive(Received { byte, errors: 0 });
            self.wait_from(self.clock.now());
            self.thre_pending = true;
            return;
        }
        // DEVIATION: all eight bits go out whatever the word length; boot code often prints without setting one.
        if self.tx.len() < self.fcr.depth() {
            self.tx.push_back(byte);
        }
        self.transmit();
    }

    fn write_ier(&mut self, value: u8) {
        let was = self.ier;
        self.ier = Ier::from_bits(value & 0x0F);
        // PC16550D §8.6.3: enabling the interrupt with the transmitter empty raises it, again and again.
        if self.ier.etbei() && !was.etbei() {
            self.thre_pending = self.tx.is_empty();
        }
    }

    fn write_fcr(&mut self, value: u8) {
        let new = Fcr::from_bits(value);
        let toggled = new.enable() != self.fcr.enable();
        if toggled || new.enable() && new.reset_rx() {
            self.rx.clear();
            self.timeout_pending = false;
            self.timeout_at = None;
        }
        if (toggled || new.enable() && new.reset_tx()) && !self.tx.is_empty() {
            self.tx.clear();
            self.thre_pending = true;
        }
        // PC16550D §8.4: the other bits are not programmed unless bit 0 is 1.
        self.fcr = if new.enable() {
            new.with_reset_rx(false).with_reset_tx(false)
        } else {
            Fcr::new()
        };
    }

    fn write_lcr(&mut self, value: u8) {
        let was = self.lcr;
        self.lcr = Lcr::from_bits(value);
        if self.mcr.loopback() && self.lcr.set_break() && !was.set_break() {
            self.arrive(break_character());
            self.wait_from(self.clock.now());
        }
    }

    fn write_mcr(&mut self, value: u8) {
        let was = self.modem_inputs();
        self.mcr = Mcr::from_bits(value & 0x1F);
        let is = self.modem_inputs();
        self.msr = self
            .msr
            .with_dcts(self.msr.dcts() || was.cts() != is.cts())
            .with_ddsr(self.msr.ddsr() || was.dsr() != is.dsr())
            .with_teri(self.msr.teri() || was.ri() && !is.ri())
            .with_ddcd(self.msr.ddcd() || was.dcd() != is.dcd());
    }

    /// The modem's lines: our own outputs in loopback, else a terminal that is there and ready.
    fn modem_inputs(&self) -> Msr {
        if self.mcr.loopback() {
            Msr::new()
                .with_cts(self.mcr.rts())
                .with_dsr(self.mcr.dtr())
                .with_ri(self.mcr.out1())
                .with_dcd(self.mcr.out2())
        } else {
            Msr::new().with_cts(true).with_dsr(true).with_dcd(true)
        }
    }

    /// Sends what the backend takes.
    fn transmit(&mut self) {
        while let Some(byte) = self.tx.front()
            && self.backend.send(*byte)
        {
            self.tx.pop_front();
        }
        self.thre_pending |= self.tx.is_empty();
    }

    /// Takes what the backend has and the guest has room for.
    ///
    /// DEVIATION: only while the guest listens, by interrupt or by reading LSR over and over. Input that was piped in
    /// before a guest's driver is up would otherwise be lost when the driver clears the FIFO.
    fn pull(&mut self) {
        let listens = self.ier.erbfi() || self.lsr_reads >= POLLING_READS;
        if !listens || self.mcr.loopback() {
            return;
        }
        let mut arrived = false;
        while self.rx.len() < self.fcr.depth()
            && let Some(byte) = self.backend.receive()
        {
            self.arrive(Received { byte, errors: 0 });
            arrived = true;
        }
        if arrived {
            self.wait_from(self.clock.now());
        }
    }

    /// A character comes in from the line.
    fn arrive(&mut self, received: Received) {
        if self.rx.len() >= self.fcr.depth() {
            self.lsr.set_oe(true);
            // PC16550D §8.5: without FIFOs the new character replaces the old one; with them it is lost.
            if self.fcr.enable() {
                return;
            }
            self.rx.clear();
        }
        self.rx.push_back(received);
        if self.rx.len() == 1 {
            self.reveal();
        }
    }

    /// The errors of the character that is now on top show in LSR.
    fn reveal(&mut self) {
        if let Some(top) = self.rx.front_mut() {
            let errors = std::mem::take(&mut top.errors);
            self.lsr = Lsr::from_bits(self.lsr.into_bits() | errors & Lsr::CHARACTER_ERRORS);
        }
    }

    /// Restarts the wait of the characters in the FIFO.
    fn wait_from(&mut self, now: VmTime) {
        let waits = self.fcr.enable() && !self.rx.is_empty() && !self.timeout_pending;
        self.timeout_at = waits.then(|| now + self.timeout_ns());
    }

    /// PC16550D §8.8.1: four character times.
    fn timeout_ns(&self) -> u64 {
        let bits = 4 * self.lcr.character_bits();
        bits * 16 * u64::from(self.divisor.max(1)) * 1_000_000_000 / spec::CLOCK_HZ
    }

    fn time_out(&mut self) {
        self.timeout_at = None;
        self.timeout_pending = true;
    }
}

impl Device for Uart16550 {
    fn reset(&mut self, _kind: Reset) {
        self.ier = Ier::new();
        self.fcr = Fcr::new();
        self.lcr = Lcr::new();
        self.mcr = Mcr::new();
        self.lsr = Lsr::new();
        self.msr = Msr::new();
        self.scr = 0;
        self.divisor = 1;
        self.rx.clear();
        self.tx.clear();
        self.thre_pending = false;
        self.timeout_pending = false;
        self.timeout_at = None;
        self.lsr_reads = 0;
        self.update_irq();
    }

    fn poll(&mut self, now: VmTime) -> Option<VmTime> {
        if !self.tx.is_empty() {
            self.transmit();
        }
        self.pull();
        if self.timeout_at.is_some_and(|at| at <= now) {
            self.time_out();
        }
        self.update_irq();
        let retry = (!self.tx.is_empty()).then(|| now + RETRY_NS);
        self.armed = [retry, self.timeout_at].into_iter().flatten().min();
        self.armed
    }
}

impl Snapshot for Uart16550 {
    type State = Uart16550V1;

    fn save(&self) -> Uart16550V1 {
        let Self {
            clock: _,
            irq: _,
            backend: _,
            ier,
            fcr,
            lcr,
            mcr,
            lsr,
            msr,
            scr,
            divisor,
            rx,
            tx,
            thre_pending,
            timeout_pending,
            timeout_at,
            lsr_reads,
            armed: _,
        } = self;
        Uart16550V1 {
            ier: ier.into_bits(),
            fcr: fcr.into_bits(),
            lcr: lcr.into_bits(),
            mcr: mcr.into_bits(),
            lsr: lsr.into_bits(),
            msr: msr.into_bits(),
            scr: *scr,
            divisor: *divisor,
            rx: rx.iter().copied().collect(),
            tx: tx.iter().copied().collect(),
            thre_pending: *thre_pending,
            timeout_pending: *timeout_pending,
            timeout_at: *timeout_at,
            lsr_reads: *lsr_reads,
        }
    }

    fn restore(&mut self, state: Uart16550V1) -> Result<(), RestoreError> {
        let Uart16550V1 {
            ier,
            fcr,
            lcr,
            mcr,
            lsr,
            msr,
            scr,
            divisor,
            rx,
            tx,
            thre_pending,
            timeout_pending,
            timeout_at,
            lsr_reads,
        } = state;
        let fcr = Fcr::from_bits(fcr);
        if rx.len() > fcr.depth() || tx.len() > fcr.depth() {
            return Err(RestoreError::Invalid("uart16550 holds more than its FIFOs do".into()));
        }
        self.ier = Ier::from_bits(ier & 0x0F);
        self.fcr = fcr;
        self.lcr = Lcr::from_bits(lcr);
        self.mcr = Mcr::from_bits(mcr & 0x1F);
        self.lsr = Lsr::from_bits(lsr & Lsr::ERRORS);
        self.msr = Msr::from_bits(msr & Msr::DELTAS);
        self.scr = scr;
        self.divisor = divisor;
        self.rx = rx.into();
        self.tx = tx.into();
        self.thre_pending = thre_pending;
        self.timeout_pending = timeout_pending;
        self.timeout_at = timeout_at;
        self.lsr_reads = lsr_reads;
        self.armed = None;
        self.update_irq();
        Ok(())
    }
}

impl Inspect for Uart16550 {
    fn inspect(&self) -> Node {
        let interrupt = self
            .interrupt()
            .map_or("none".to_owned(), |i| format!("{i:?}").to_lowercase());
        Node::tree()
            .with("ier", self.ier.into_bits())
            .with("fcr", self.fcr.into_bits())
            .with("lcr", self.lcr.into_bits())
            .with("mcr", self.mcr.into_bits())
            .with("divisor", self.divisor)
            .with("rx_waiting", u64::try_from(self.rx.len()).unwrap_or(u64::MAX))
            .with("tx_waiting", u64::try_from(self.tx.len()).unwrap_or(u64::MAX))
            .with("interrupt", interrupt)
            .with("irq", self.irq.level())
    }
}

/// Saved state of [`Uart16550`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Uart16550V1 {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    lsr: u8,
    msr: u8,
    scr: u8,
    divisor: u16,
    rx: Vec<Received>,
    tx: Vec<u8>,
    thre_pending: bool,
    timeout_pending: bool,
    timeout_at: Option<VmTime>,
    lsr_reads: u8,
}

impl Schema for Uart16550V1 {
    const NAME: &'static str = "uart16550";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
