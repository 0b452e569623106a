//! Registers of the PCnet: numbers, bits, what is there after a reset.
//!
//! Spec: AMD 21510 "Control and Status Registers", "Bus Configuration Registers"; IEEE 802.3-2018 §22.2.4.

use super::PcnetConfig;

/// Control and status registers.
pub(super) mod csr {
    pub(in super::super) const COUNT: usize = 128;
    /// Base addresses of the rings, two registers each; lengths and counters, as two's complements.
    pub(in super::super) const RX_BASE: u16 = 24;
    pub(in super::super) const TX_BASE: u16 = 30;
    pub(in super::super) const RX_COUNTER: u16 = 72;
    pub(in super::super) const TX_COUNTER: u16 = 74;
    pub(in super::super) const RX_LENGTH: u16 = 76;
    pub(in super::super) const TX_LENGTH: u16 = 78;
    pub(in super::super) const MISSED: u16 = 112;
}

/// CSR0: status and commands.
pub(super) mod csr0 {
    pub(in super::super) const INIT: u16 = 1 << 0;
    pub(in super::super) const STRT: u16 = 1 << 1;
    pub(in super::super) const STOP: u16 = 1 << 2;
    pub(in super::super) const TDMD: u16 = 1 << 3;
    pub(in super::super) const TXON: u16 = 1 << 4;
    pub(in super::super) const RXON: u16 = 1 << 5;
    pub(in super::super) const IENA: u16 = 1 << 6;
    pub(in super::super) const INTR: u16 = 1 << 7;
    pub(in super::super) const IDON: u16 = 1 << 8;
    pub(in super::super) const TINT: u16 = 1 << 9;
    pub(in super::super) const RINT: u16 = 1 << 10;
    pub(in super::super) const MERR: u16 = 1 << 11;
    pub(in super::super) const MISS: u16 = 1 << 12;
    pub(in super::super) const CERR: u16 = 1 << 13;
    pub(in super::super) const BABL: u16 = 1 << 14;
    pub(in super::super) const ERR: u16 = 1 << 15;
    /// What is cleared by writing ones.
    pub(in super::super) const EVENTS: u16 = IDON | TINT | RINT | MERR | MISS | CERR | BABL;
    /// What asks for an interrupt; CSR3 masks it with the same bits.
    pub(in super::super) const ASKS: u16 = IDON | TINT | RINT | MERR | MISS | BABL;
}

/// CSR4: events and their masks, features.
pub(super) mod csr4 {
    /// Jabber, transmit start, collision counter, user, missed frame counter.
    pub(in super::super) const EVENTS: u16 = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9;
    pub(in super::super) const MASKS: u16 = 1 << 0 | 1 << 2 | 1 << 4 | 1 << 8;
    pub(in super::super) const TXSTRT: u16 = 1 << 3;
    pub(in super::super) const MFCO: u16 = 1 << 9;
    pub(in super::super) const ASTRP_RCV: u16 = 1 << 10;
    pub(in super::super) const APAD_XMT: u16 = 1 << 11;
    pub(in super::super) const DPOLL: u16 = 1 << 12;
}

/// Events of CSR5.
pub(super) const CSR5_EVENTS: u16 = 1 << 3 | 1 << 4 | 1 << 7 | 1 << 9 | 1 << 11;
/// CSR3: interrupts of transmission only where the descriptor asks for them is CSR5's LTINTEN.
pub(super) const LTINTEN: u16 = 1 << 14;
pub(super) const SPND: u16 = 1 << 0;

/// CSR15, the mode.
pub(super) mod mode {
    pub(in super::super) const DRX: u16 = 1 << 0;
    pub(in super::super) const DTX: u16 = 1 << 1;
    pub(in super::super) const LOOP: u16 = 1 << 2;
    pub(in super::super) const DRCVPA: u16 = 1 << 13;
    pub(in super::super) const DRCVBC: u16 = 1 << 14;
    pub(in super::super) const PROM: u16 = 1 << 15;
}

/// Bus configuration registers.
pub(super) mod bcr {
    pub(in super::super) const COUNT: usize = 64;
    pub(in super::super) const LNKST: u16 = 4;
    pub(in super::super) const BSBC: u16 = 18;
    pub(in super::super) const SWS: u16 = 20;
    pub(in super::super) const MIIADDR: u16 = 33;
    pub(in super::super) const MIIMDR: u16 = 34;
    pub(in super::super) const VENDOR: u16 = 35;
}

/// The transceiver's address and registers.
pub(super) const PHY_ADDRESS: u16 = 30;
pub(super) const PHY_REGISTERS: usize = 32;

pub(super) fn put(registers: &mut [u16], at: usize, value: u16) {
    if let Some(register) = registers.get_mut(at) {
        *register = value;
    }
}

pub(super) fn reset_csrs(config: &PcnetConfig) -> Vec<u16> {
    let mut all = vec![0; csr::COUNT];
    let [a, b, c, d] = config.model.part().to_le_bytes();
    // Its own address comes out of the EEPROM.
    let [m0, m1, m2, m3, m4, m5] = config.mac;
    #[rustfmt::skip]
    let values = [
        (0, csr0::STOP), (4, 0x0115), (58, 0x0200), (80, 0x1410), (88, u16::from_le_bytes([a, b])), (89, u16::from_le_bytes([c, d])),
        (12, u16::from_le_bytes([m0, m1])), (13, u16::from_le_bytes([m2, m3])), (14, u16::from_le_bytes([m4, m5])), (100, 0x0200), (103, 0x0105), (105, 0x0103),
    ];
    values.into_iter().for_each(|(at, value)| put(&mut all, at, value));
    all
}

pub(super) fn reset_bcrs() -> Vec<u16> {
    let mut all = vec![0; bcr::COUNT];
    #[rustfmt::skip]
    let values = [
        (0, 0x0005), (1, 0x0005), (2, 0x0002), (4, 0x00c0), (5, 0x0084), (6, 0x0088), (7, 0x0090), (18, 0x9001), (19, 0x0002),
        (20, 0x0200), (22, 0xff06), (32, 0x0400), (35, 0x1022),
    ];
    values.into_iter().for_each(|(at, value)| put(&mut all, at, value));
    all
}

/// Control (negotiation), status (what can be), identifiers of AMD's transceiver, advertisement.
pub(super) fn reset_phy() -> Vec<u16> {
    let mut all = vec![0; PHY_REGISTERS];
    let values = [(0, 0x3100), (1, 0x7809), (2, 0x0000), (3, 0x6b60), (4, 0x01e1)];
    values.into_iter().for_each(|(at, value)| put(&mut all, at, value));
    all
}
