//! Where a PCI device is: a slot of the root bus, a PCI Express port, or a slot of the bus for conventional cards.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

/// PCI Express ports of a q35.
pub const PORTS: u8 = 4;
/// Slots of a bus.
const SLOTS: u8 = 32;

/// A place for a PCI device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PciPlace {
    /// A slot of the root bus, 1 to 31.
    Root(u8),
    /// A PCI Express port, from 1.
    Port(u8),
    /// A slot of the bus behind the PCI bridge, 1 to 31.
    Bridge(u8),
}

impl PciPlace {
    /// What may be written.
    pub const FORMS: &str = "slot1 to slot31, port1 to port4, bridge1 to bridge31";
}

impl FromStr for PciPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("unknown place `{text}`; there are {}", Self::FORMS);
        let digits = text.find(|c: char| c.is_ascii_digit()).ok_or_else(unknown)?;
        let (kind, number) = text.split_at(digits);
        let number: u8 = number.parse().map_err(|_| unknown())?;
        match kind {
            "slot" if (1..SLOTS).contains(&number) => Ok(Self::Root(number)),
            "port" if (1..=PORTS).contains(&number) => Ok(Self::Port(number)),
            "bridge" if (1..SLOTS).contains(&number) => Ok(Self::Bridge(number)),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for PciPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(number) => write!(f, "slot{number}"),
            Self::Port(number) => write!(f, "port{number}"),
            Self::Bridge(number) => write!(f, "bridge{number}"),
        }
    }
}

impl TryFrom<String> for PciPlace {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<PciPlace> for String {
    fn from(place: PciPlace) -> Self {
        place.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_parse_and_print_alike() {
        for text in ["slot5", "port4", "bridge31"] {
            let place: PciPlace = text.parse().unwrap();
            assert_eq!(place.to_string(), text);
            let json = serde_json::to_string(&place).unwrap();
            assert_eq!(serde_json::from_str::<PciPlace>(&json).unwrap(), place);
        }
        for text in ["", "slot0", "slot32", "port5", "port", "bus1", "7", "port1x"] {
            assert!(text.parse::<PciPlace>().unwrap_err().contains("port1"), "{text}");
        }
    }
}
