//! The address of a PCI function: bus, device, function.
//!
//! Spec: PCI Local Bus 3.0 §3.2.2.3.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;

/// Bus, device and function number in 16 bits, as they travel in configuration addresses and requester identifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bdf(u16);

impl Bdf {
    /// The function numbered `function` (0-7) of device `device` (0-31) on bus `bus`.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | ((device & 31) as u16) << 3 | (function & 7) as u16)
    }

    /// From its 16 bits.
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// The 16 bits.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device number, 0-31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.0.to_be_bytes()[1] >> 3
    }

    /// Function number, 0-7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0.to_be_bytes()[1] & 7
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_and_print_as_tools_print_them() {
        let bdf = Bdf::new(1, 31, 2);
        assert_eq!((bdf.bus(), bdf.device(), bdf.function()), (1, 31, 2));
        assert_eq!(bdf.to_string(), "01:1f.2");
        assert_eq!(Bdf::from_bits(bdf.bits()), bdf);
    }
}
