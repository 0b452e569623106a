//! 16550A registers as bit fields.
//!
//! Names are the data sheet's; each register says who may read and write it.
//!
//! Spec: National Semiconductor PC16550D (1995) §8.

use bitfield_struct::bitfield;

/// Input clock of the divisor on a PC, Hz.
pub(super) const CLOCK_HZ: u64 = 1_843_200;
/// Depth of each FIFO.
pub(super) const FIFO_DEPTH: usize = 16;

/// Offset of RBR (RO), THR (WO), and DLL where DLAB is set.
pub(super) const DATA: u64 = 0;
/// Offset of IER, and DLM where DLAB is set.
pub(super) const IER: u64 = 1;
/// Offset of IIR (RO) and FCR (WO).
pub(super) const IIR_FCR: u64 = 2;
/// Offset of LCR.
pub(super) const LCR: u64 = 3;
/// Offset of MCR.
pub(super) const MCR: u64 = 4;
/// Offset of LSR.
pub(super) const LSR: u64 = 5;
/// Offset of MSR.
pub(super) const MSR: u64 = 6;
/// Offset of SCR.
pub(super) const SCR: u64 = 7;

/// IER, interrupt enable (RW).
#[bitfield(u8)]
pub(super) struct Ier {
    /// ERBFI: received data, and the FIFO's timeout.
    pub erbfi: bool,
    /// ETBEI: transmitter holding register empty.
    pub etbei: bool,
    /// ELSI: line status.
    pub elsi: bool,
    /// EDSSI: modem status.
    pub edssi: bool,
    #[bits(4)]
    __: u8,
}

/// FCR, FIFO control (WO).
#[bitfield(u8)]
pub(super) struct Fcr {
    /// FIFO enable.
    pub enable: bool,
    /// RCVR FIFO reset; clears itself.
    pub reset_rx: bool,
    /// XMIT FIFO reset; clears itself.
    pub reset_tx: bool,
    /// DMA mode select; the RXRDY and TXRDY pins go nowhere on a PC.
    pub dma: bool,
    #[bits(2)]
    __: u8,
    /// RCVR trigger level.
    #[bits(2)]
    pub trigger: u8,
}

impl Fcr {
    /// Characters that raise the received-data interrupt.
    pub(super) fn level(self) -> usize {
        match (self.enable(), self.trigger()) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// Characters that fit.
    pub(super) fn depth(self) -> usize {
        if self.enable() { FIFO_DEPTH } else { 1 }
    }
}

/// IIR, interrupt identification (RO): the pending interrupt of highest priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Interrupt {
    /// Modem status.
    Modem = 0x0,
    /// Transmitter holding register empty.
    Transmit = 0x2,
    /// Received data available.
    Receive = 0x4,
    /// Receiver line status.
    Line = 0x6,
    /// Characters wait in the FIFO and none came or went for a while.
    Timeout = 0xC,
}

/// IIR where nothing is pending.
pub(super) const IIR_NONE: u8 = 0x01;
/// IIR bits that are set where FIFOs are enabled.
pub(super) const IIR_FIFOS: u8 = 0xC0;

/// LCR, line control (RW).
#[bitfield(u8)]
pub(super) struct Lcr {
    /// WLS: data bits, less 5.
    #[bits(2)]
    pub wls: u8,
    /// STB: two stop bits.
    pub stb: bool,
    /// PEN: parity enable.
    pub pen: bool,
    /// EPS: even parity.
    pub eps: bool,
    /// Stick parity.
    pub stick: bool,
    /// Set break: the line is held at space.
    pub set_break: bool,
    /// DLAB: the divisor latch is at offsets 0 and 1.
    pub dlab: bool,
}

impl Lcr {
    /// Bits of one character on the line.
    pub(super) fn character_bits(self) -> u64 {
        1 + u64::from(5 + self.wls()) + u64::from(self.pen()) + 1 + u64::from(self.stb())
    }

    /// The data bits of a character.
    pub(super) fn data_mask(self) -> u8 {
        0xFF >> (3 - self.wls())
    }
}

/// MCR, modem control (RW).
#[bitfield(u8)]
pub(super) struct Mcr {
    /// Data terminal ready.
    pub dtr: bool,
    /// Request to send.
    pub rts: bool,
    /// Auxiliary output 1.
    pub out1: bool,
    /// Auxiliary output 2: connects the interrupt output on a PC.
    pub out2: bool,
    /// Loopback.
    pub loopback: bool,
    #[bits(3)]
    __: u8,
}

/// LSR, line status (RO).
#[bitfield(u8)]
pub(super) struct Lsr {
    /// DR: data ready.
    pub dr: bool,
    /// OE: overrun; cleared by reading.
    pub oe: bool,
    /// PE: parity error; cleared by reading.
    pub pe: bool,
    /// FE: framing error; cleared by reading.
    pub fe: bool,
    /// BI: break; cleared by reading.
    pub bi: bool,
    /// THRE: transmitter holding register empty.
    pub thre: bool,
    /// TEMT: transmitter empty.
    pub temt: bool,
    /// An error is somewhere in the receiver FIFO.
    pub fifo_error: bool,
}

impl Lsr {
    /// The bits that reading clears, and that raise the line status interrupt.
    pub(super) const ERRORS: u8 = 0x1E;
    /// The errors that travel with a character.
    pub(super) const CHARACTER_ERRORS: u8 = 0x1C;
}

/// MSR, modem status (RO).
#[bitfield(u8)]
pub(super) struct Msr {
    /// DCTS: CTS changed; cleared by reading.
    pub dcts: bool,
    /// DDSR: DSR changed; cleared by reading.
    pub ddsr: bool,
    /// TERI: RI went away; cleared by reading.
    pub teri: bool,
    /// DDCD: DCD changed; cleared by reading.
    pub ddcd: bool,
    /// Clear to send.
    pub cts: bool,
    /// Data set ready.
    pub dsr: bool,
    /// Ring indicator.
    pub ri: bool,
    /// Data carrier detect.
    pub dcd: bool,
}

impl Msr {
    /// The change bits.
    pub(super) const DELTAS: u8 = 0x0F;
}
