//! Drives that are attached to a machine that was built already, and detached from it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

use crate::CdromConfig;
use crate::DiskConfig;
use crate::PciPlace;
use crate::StorageBus;

/// Ports of a SATA controller.
const SATA_PORTS: u8 = 6;
/// Targets of a SCSI host.
const SCSI_TARGETS: u8 = 64;

/// Where a drive is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Bay {
    /// A port of the machine's SATA controller, from 0.
    Sata(u8),
    /// A target of the machine's SCSI host, from 0.
    Scsi(u8),
    /// A place for PCI cards: a controller with this drive alone is put there.
    Card(PciPlace),
}

impl Bay {
    /// What may be written.
    pub const FORMS: &str = "sata0 to sata5, scsi0 to scsi63, slot1 to slot31, port1 to port4";
}

impl FromStr for Bay {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("unknown place `{text}`; there are {}", Self::FORMS);
        let number = |digits: &str, count: u8| {
            let number: u8 = digits.parse().map_err(|_| unknown())?;
            (number < count).then_some(number).ok_or_else(unknown)
        };
        if let Some(digits) = text.strip_prefix("sata") {
            return number(digits, SATA_PORTS).map(Self::Sata);
        }
        if let Some(digits) = text.strip_prefix("scsi") {
            return number(digits, SCSI_TARGETS).map(Self::Scsi);
        }
        text.parse().map(Self::Card).map_err(|_| unknown())
    }
}

impl fmt::Display for Bay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sata(number) => write!(f, "sata{number}"),
            Self::Scsi(number) => write!(f, "scsi{number}"),
            Self::Card(place) => place.fmt(f),
        }
    }
}

impl TryFrom<String> for Bay {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Bay> for String {
    fn from(bay: Bay) -> Self {
        bay.to_string()
    }
}

/// A drive of either kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveConfig {
    /// A hard disk.
    Disk(DiskConfig),
    /// A CD or DVD drive.
    Cdrom(CdromConfig),
}

impl DriveConfig {
    /// What it is attached to.
    #[must_use]
    pub fn bus(&self) -> StorageBus {
        match self {
            Self::Disk(disk) => disk.bus,
            Self::Cdrom(cdrom) => cdrom.bus,
        }
    }

    /// Its image.
    #[must_use]
    pub fn image(&self) -> Option<&Path> {
        match self {
            Self::Disk(disk) => Some(&disk.image),
            Self::Cdrom(cdrom) => cdrom.image.as_deref(),
        }
    }

    /// The kind's name.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Disk(_) => "disk",
            Self::Cdrom(_) => "cdrom",
        }
    }
}

/// A drive that is attached, as saved states have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Its name.
    pub id: String,
    /// Which of the machine's disks or CD drives it is, from 0: its serial number follows from that.
    pub number: u32,
    /// What it is.
    pub drive: DriveConfig,
    /// Where it is.
    pub bay: Bay,
    /// The guest has been asked to give it up.
    pub detaching: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bays_parse_and_print_alike() {
        for text in ["sata0", "sata5", "scsi0", "scsi63", "slot31", "port4"] {
            let bay: Bay = text.parse().unwrap();
            assert_eq!(bay.to_string(), text);
            let json = serde_json::to_string(&bay).unwrap();
            assert_eq!(serde_json::from_str::<Bay>(&json).unwrap(), bay);
        }
        for text in ["", "sata6", "sata", "scsi64", "scsi", "slot0", "ide0"] {
            assert!(text.parse::<Bay>().unwrap_err().contains("sata0"), "{text}");
        }
    }
}
