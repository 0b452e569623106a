//! Disks and CD drives on the command line: a file's name, then what differs from the usual.

use spec::CdromConfig;
use spec::DiskConfig;
use spec::PciPlace;
use spec::StorageBus;

/// A drive, and what it is attached to if that is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DriveArg<T> {
    pub(crate) config: T,
    pub(crate) bus: Option<StorageBus>,
}

impl DriveArg<DiskConfig> {
    /// The disk, on `usual` if nothing else is said.
    pub(crate) fn on(&self, usual: StorageBus) -> DiskConfig {
        DiskConfig {
            bus: self.bus.unwrap_or(usual),
            ..self.config.clone()
        }
    }
}

impl DriveArg<CdromConfig> {
    /// The drive, on `usual` if nothing else is said.
    pub(crate) fn on(&self, usual: StorageBus) -> CdromConfig {
        CdromConfig {
            bus: self.bus.unwrap_or(usual),
            ..self.config.clone()
        }
    }
}

/// Where a PCI device is to be: `NAME=PLACE`.
pub(crate) fn parse_place(text: &str) -> Result<(String, PciPlace), String> {
    let (name, place) = text
        .split_once('=')
        .ok_or_else(|| format!("write NAME=PLACE; places are {}", PciPlace::FORMS))?;
    Ok((name.to_owned(), place.parse()?))
}

/// The name and the options of `FILE[,name[=value]]...`. A comma that belongs to the name is written twice.
pub(crate) fn split(text: &str) -> (String, Vec<(String, Option<String>)>) {
    const COMMA: &str = "\0";
    let text = text.replace(",,", COMMA);
    let mut parts = text.split(',').map(|part| part.replace(COMMA, ","));
    let name = parts.next().unwrap_or_default();
    let option = |part: String| match part.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (part, None),
    };
    (name, parts.map(option).collect())
}

/// A hard disk.
pub(crate) fn parse_disk(text: &str) -> Result<DriveArg<DiskConfig>, String> {
    let (image, options) = split(text);
    if image.is_empty() {
        return Err("write an image's name".to_owned());
    }
    let mut bus = None;
    let mut disk = DiskConfig {
        image: image.into(),
        ..DiskConfig::default()
    };
    for (name, value) in options {
        match (name.as_str(), value) {
            ("ro", None) => disk.read_only = true,
            ("format", Some(value)) => {
                value.parse::<disk_image::Format>().map_err(|error| error.to_string())?;
                disk.format = Some(value);
            }
            ("bus", Some(value)) => bus = Some(value.parse()?),
            ("cache", Some(value)) => disk.cache = value.parse()?,
            ("serial", Some(value)) => disk.serial = Some(value),
            (name, _) => {
                return Err(format!(
                    "`{name}` is no option of a disk; there are format=, bus=, cache=, serial= and ro"
                ));
            }
        }
    }
    Ok(DriveArg { config: disk, bus })
}

/// A CD or DVD drive.
pub(crate) fn parse_cdrom(text: &str) -> Result<DriveArg<CdromConfig>, String> {
    let (image, options) = split(text);
    if image.is_empty() {
        return Err("write an image's name, or none".to_owned());
    }
    let mut bus = None;
    let cdrom = CdromConfig {
        image: (image != "none").then(|| image.into()),
        ..CdromConfig::default()
    };
    for (name, value) in options {
        match (name.as_str(), value) {
            ("bus", Some(value)) => bus = Some(value.parse()?),
            (name, _) => return Err(format!("`{name}` is no option of a CD drive; there is bus=")),
        }
    }
    Ok(DriveArg { config: cdrom, bus })
}

#[cfg(test)]
mod tests {
    use spec::CacheMode;

    use super::*;

    #[test]
    fn options_follow_the_name_in_any_order() {
        let disk = parse_disk("a,,b.img,ro,bus=nvme,cache=unsafe,format=qcow2,serial=X1").unwrap();
        let expected = DiskConfig {
            image: "a,b.img".into(),
            format: Some("qcow2".to_owned()),
            bus: StorageBus::Nvme,
            cache: CacheMode::Unsafe,
            read_only: true,
            serial: Some("X1".to_owned()),
        };
        assert_eq!(disk.on(StorageBus::Ide), expected);
        assert_eq!(parse_disk("a").unwrap().on(StorageBus::Ahci).bus, StorageBus::Ahci);
        assert_eq!(parse_cdrom("none").unwrap().on(StorageBus::Ide).image, None);
        let cdrom = parse_cdrom("x.iso,bus=ahci").unwrap();
        assert_eq!(cdrom.on(StorageBus::Ide).bus, StorageBus::Ahci);
    }

    #[test]
    fn place_has_a_name_and_where_it_is() {
        assert_eq!(parse_place("vga=port2"), Ok(("vga".to_owned(), PciPlace::Port(2))));
        for text in ["vga", "vga=", "vga=somewhere"] {
            assert!(parse_place(text).unwrap_err().contains("port1"), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_told_with_what_does() {
        for (text, part) in [
            ("", "name"),
            ("x,bus=usb", "ide, ahci, nvme, virtio, scsi"),
            ("x,cache=off", "writeback, writethrough, none, directsync, unsafe"),
            ("x,format=cow", "qcow2"),
            ("x,readonly", "ro"),
            ("x,ro=1", "ro"),
        ] {
            let error = parse_disk(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(parse_cdrom("x,ro").is_err());
    }
}
