//! The register file of the 8254x: names, offsets, what can be written, what is there after a reset.
//!
//! Spec: SDM 8254x §13.4 (register set), table 13-2 (offsets).

use serde::Deserialize;
use serde::Serialize;

/// What a guest's write to a register does, beyond what the card makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// (RW) for the bits of the mask.
    Rw(u32),
    /// (RO), or the card keeps what is written elsewhere.
    Ro,
    /// (RW1C)
    Rw1c,
}

use Access::Ro;
use Access::Rw;
use Access::Rw1c;

const ALL: Access = Rw(u32::MAX);

macro_rules! registers {
    ($($(#[$doc:meta])* $name:ident = $offset:literal, $access:expr, $reset:expr;)*) => {
        /// A register.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Reg { $($(#[$doc])* $name,)* }

        impl Reg {
            /// The one at `offset`.
            pub(super) fn at(offset: u64) -> Option<Self> {
                match offset { $($offset => Some(Self::$name),)* _ => None }
            }
            pub(super) fn access(self) -> Access {
                match self { $(Self::$name => $access,)* }
            }
        }

        /// Values after a reset, in the order of `Reg`.
        const RESET: &[u32] = &[$($reset,)*];
    };
}

#[rustfmt::skip]
registers! {
    /// Device control
    Ctrl    = 0x0000, Ro,                  0x0000_0a09;
    /// Device status
    Status  = 0x0008, Ro,                  0;
    /// EEPROM control and data
    Eecd    = 0x0010, Ro,                  0;
    /// EEPROM read
    Eerd    = 0x0014, Ro,                  0;
    /// Extended device control
    CtrlExt = 0x0018, Rw(0x00ff_dfff),     0;
    /// Flash access
    Fla     = 0x001c, Rw(0x0000_0030),     0;
    /// MDI control
    Mdic    = 0x0020, Ro,                  1 << 28;
    /// Flow control address low
    Fcal    = 0x0028, ALL,                 0x00c2_8001;
    /// Flow control address high
    Fcah    = 0x002c, Rw(0xffff),          0x0000_0100;
    /// Flow control type
    Fct     = 0x0030, Rw(0xffff),          0x0000_8808;
    /// VLAN ether type
    Vet     = 0x0038, Rw(0xffff),          0x0000_8100;
    /// Flow control transmit timer value
    Fcttv   = 0x0170, Rw(0xffff),          0;
    /// Transmit configuration word
    Txcw    = 0x0178, ALL,                 0;
    /// Receive configuration word
    Rxcw    = 0x0180, Ro,                  0;
    /// LED control
    Ledctl  = 0x0e00, ALL,                 0x0706_8302;
    /// Packet buffer allocation
    Pba     = 0x1000, Rw(0x0000_ffff),     0x0010_0030;
    /// Interrupt cause read
    Icr     = 0x00c0, Ro,                  0;
    /// Interrupt throttling
    Itr     = 0x00c4, Rw(0xffff),          0;
    /// Interrupt cause set
    Ics     = 0x00c8, Ro,                  0;
    /// Interrupt mask set
    Ims     = 0x00d0, Ro,                  0;
    /// Interrupt mask clear
    Imc     = 0x00d8, Ro,                  0;
    /// Receive control
    Rctl    = 0x0100, Rw(0x077f_fffe),     0;
    /// Transmit control
    Tctl    = 0x0400, Rw(0x017f_fffa),     0;
    /// Transmit inter-packet gap
    Tipg    = 0x0410, Rw(0x3fff_ffff),     0x0060_2006;
    /// Adaptive inter-frame spacing throttle
    Ait     = 0x0458, Rw(0xffff),          0;
    /// Flow control receive threshold low
    Fcrtl   = 0x2160, Rw(0x8000_fff8),     0;
    /// Flow control receive threshold high
    Fcrth   = 0x2168, Rw(0x0000_fff8),     0;
    /// Receive descriptor base low
    Rdbal   = 0x2800, Rw(0xffff_fff0),     0;
    /// Receive descriptor base high
    Rdbah   = 0x2804, ALL,                 0;
    /// Receive descriptor length
    Rdlen   = 0x2808, Rw(0x000f_ff80),     0;
    /// Receive descriptor head
    Rdh     = 0x2810, Rw(0xffff),          0;
    /// Receive descriptor tail
    Rdt     = 0x2818, Rw(0xffff),          0;
    /// Receive delay timer
    Rdtr    = 0x2820, Rw(0xffff),          0;
    /// Receive descriptor control
    Rxdctl  = 0x2828, Rw(0x013f_3f3f),     0x0101_0000;
    /// Receive interrupt absolute delay timer
    Radv    = 0x282c, Rw(0xffff),          0;
    /// Receive small packet detect
    Rsrpd   = 0x2c00, Rw(0x0fff),          0;
    /// Transmit DMA control
    Txdmac  = 0x3000, Rw(1),               0;
    /// Transmit descriptor base low
    Tdbal   = 0x3800, Rw(0xffff_fff0),     0;
    /// Transmit descriptor base high
    Tdbah   = 0x3804, ALL,                 0;
    /// Transmit descriptor length
    Tdlen   = 0x3808, Rw(0x000f_ff80),     0;
    /// Transmit descriptor head
    Tdh     = 0x3810, Rw(0xffff),          0;
    /// Transmit descriptor tail
    Tdt     = 0x3818, Rw(0xffff),          0;
    /// Transmit interrupt delay value
    Tidv    = 0x3820, Rw(0xffff),          0;
    /// Transmit descriptor control
    Txdctl  = 0x3828, Rw(0xff3f_3f3f),     0;
    /// Transmit interrupt absolute delay value
    Tadv    = 0x382c, Rw(0xffff),          0;
    /// TCP segmentation pad and minimum threshold
    Tspmt   = 0x3830, ALL,                 0x0100_0400;
    /// Receive checksum control
    Rxcsum  = 0x5000, Rw(0x07ff),          0;
    /// Wake-up control
    Wuc     = 0x5800, Rw(0x000f),          0;
    /// Wake-up filter control
    Wufc    = 0x5808, Rw(0x000f_80ff),     0;
    /// Wake-up status
    Wus     = 0x5810, Rw1c,                0;
    /// Management control
    Manc    = 0x5820, Rw(0xffff_ff03),     0;
    /// IP address valid
    Ipav    = 0x5838, Rw(0x0001_000f),     0;
    /// Wake-up packet length
    Wupl    = 0x5900, Ro,                  0;
}

/// Tables: first offset, entries of four bytes, and how far apart the entries are that exist.
pub(super) mod table {
    pub(in super::super) const STATISTICS: u64 = 0x4000;
    pub(in super::super) const STATISTICS_LEN: usize = 64;
    /// Multicast table array.
    pub(in super::super) const MTA: u64 = 0x5200;
    pub(in super::super) const MTA_LEN: u64 = 128;
    /// Receive addresses.
    pub(in super::super) const RA: u64 = 0x5400;
    pub(in super::super) const RA_LEN: u64 = 32;
    /// VLAN filter table array.
    pub(in super::super) const VFTA: u64 = 0x5600;
    pub(in super::super) const VFTA_LEN: u64 = 128;
    /// Addresses for wake-up, and its filters: kept for drivers that test them.
    pub(in super::super) const IP4AT: u64 = 0x5840;
    pub(in super::super) const IP4AT_LEN: u64 = 8;
    pub(in super::super) const IP6AT: u64 = 0x5880;
    pub(in super::super) const IP6AT_LEN: u64 = 4;
}

/// The values of all registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File(Vec<u32>);

impl Default for File {
    fn default() -> Self {
        Self(RESET.to_vec())
    }
}

impl File {
    pub(super) fn get(&self, reg: Reg) -> u32 {
        self.0.get(reg as usize).copied().unwrap_or(0)
    }

    pub(super) fn set(&mut self, reg: Reg, value: u32) {
        if let Some(place) = self.0.get_mut(reg as usize) {
            *place = value;
        }
    }

    /// Writes as a guest does. Bits that cannot be written stay.
    pub(super) fn write(&mut self, reg: Reg, value: u32) {
        let old = self.get(reg);
        match reg.access() {
            Rw(mask) => self.set(reg, old & !mask | value & mask),
            Rw1c => self.set(reg, old & !value),
            Ro => {}
        }
    }

    /// A base address of two registers.
    pub(super) fn base(&self, low: Reg, high: Reg) -> u64 {
        u64::from(self.get(high)) << 32 | u64::from(self.get(low))
    }

    /// Whether saved values are as many as there are registers, and the writable ones can be.
    pub(super) fn is_sound(&self) -> bool {
        self.0.len() == RESET.len()
    }
}

/// CTRL (§13.4.1)
pub(super) mod ctrl {
    pub(in super::super) const LRST: u32 = 1 << 3;
    /// Software definable pins 2 and 3, and their directions: management data and clock of the 82543.
    pub(in super::super) const MDIO: u32 = 1 << 20;
    pub(in super::super) const MDC: u32 = 1 << 21;
    pub(in super::super) const MDIO_OUT: u32 = 1 << 24;
    pub(in super::super) const RST: u32 = 1 << 26;
    pub(in super::super) const VME: u32 = 1 << 30;
    pub(in super::super) const PHY_RST: u32 = 1 << 31;
    /// What reads as it was written.
    pub(in super::super) const KEPT: u32 = 0x7bfd_3be9 & !RST;
}

/// STATUS (§13.4.2): full duplex, link up, transmission off, speed of 1000 Mbit/s, 66 MHz.
pub(super) mod status {
    pub(in super::super) const FD: u32 = 1 << 0;
    pub(in super::super) const LU: u32 = 1 << 1;
    pub(in super::super) const SPEED_1000: u32 = 2 << 6;
    pub(in super::super) const PCI66: u32 = 1 << 11;
}

/// Interrupt causes (§13.4.17)
pub(super) mod cause {
    pub(in super::super) const TXDW: u32 = 1 << 0;
    pub(in super::super) const TXQE: u32 = 1 << 1;
    pub(in super::super) const LSC: u32 = 1 << 2;
    pub(in super::super) const RXDMT0: u32 = 1 << 4;
    pub(in super::super) const RXT0: u32 = 1 << 7;
    pub(in super::super) const MDAC: u32 = 1 << 9;
    pub(in super::super) const TXD_LOW: u32 = 1 << 15;
    pub(in super::super) const SRPD: u32 = 1 << 16;
    pub(in super::super) const ALL: u32 = 0x0001_f7df;
}

/// RCTL (§13.4.22)
pub(super) mod rctl {
    pub(in super::super) const EN: u32 = 1 << 1;
    pub(in super::super) const UPE: u32 = 1 << 3;
    pub(in super::super) const MPE: u32 = 1 << 4;
    pub(in super::super) const LPE: u32 = 1 << 5;
    pub(in super::super) const LBM: u32 = 3 << 6;
    pub(in super::super) const BAM: u32 = 1 << 15;
    pub(in super::super) const VFE: u32 = 1 << 18;
    pub(in super::super) const CFIEN: u32 = 1 << 19;
    pub(in super::super) const CFI: u32 = 1 << 20;
    pub(in super::super) const BSEX: u32 = 1 << 25;
    pub(in super::super) const SECRC: u32 = 1 << 26;

    /// Bytes of a receive buffer.
    pub(in super::super) fn buffer(value: u32) -> u32 {
        let shift = value >> 16 & 3;
        match value & BSEX != 0 {
            // 16384, 8192, 4096; the first is reserved and taken for the largest.
            true => 16_384 >> shift.saturating_sub(1),
            false => 2048 >> shift,
        }
    }

    /// The threshold of free descriptors: a half, a quarter, an eighth of all.
    pub(in super::super) fn threshold(value: u32, all: u32) -> u32 {
        all >> ((value >> 8 & 3) + 1).min(3)
    }
}

/// TCTL (§13.4.33): enable; pad short packets.
pub(super) mod tctl {
    pub(in super::super) const EN: u32 = 1 << 1;
    pub(in super::super) const PSP: u32 = 1 << 3;
}
