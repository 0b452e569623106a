//! Disks and CD drives on the command line: a file's name, then what differs from the usual.

use spec::CdromConfig;
use spec::DiskConfig;

/// The name and the options of `FILE[,name[=value]]...`. A comma that belongs to the name is written twice.
fn split(text: &str) -> (String, Vec<(String, Option<String>)>) {
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
pub(crate) fn parse_disk(text: &str) -> Result<DiskConfig, String> {
    let (image, options) = split(text);
    if image.is_empty() {
        return Err("write an image's name".to_owned());
    }
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
            ("bus", Some(value)) => disk.bus = value.parse()?,
            ("cache", Some(value)) => disk.cache = value.parse()?,
            ("serial", Some(value)) => disk.serial = Some(value),
            (name, _) => {
                return Err(format!(
                    "`{name}` is no option of a disk; there are format=, bus=, cache=, serial= and ro"
                ));
            }
        }
    }
    Ok(disk)
}

/// A CD or DVD drive.
pub(crate) fn parse_cdrom(text: &str) -> Result<CdromConfig, String> {
    let (image, options) = split(text);
    if image.is_empty() {
        return Err("write an image's name, or none".to_owned());
    }
    let mut cdrom = CdromConfig {
        image: (image != "none").then(|| image.into()),
        ..CdromConfig::default()
    };
    for (name, value) in options {
        match (name.as_str(), value) {
            ("bus", Some(value)) => cdrom.bus = value.parse()?,
            (name, _) => return Err(format!("`{name}` is no option of a CD drive; there is bus=")),
        }
    }
    Ok(cdrom)
}

#[cfg(test)]
mod tests {
    use spec::CacheMode;
    use spec::StorageBus;

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
        assert_eq!(disk, expected);
        assert_eq!(parse_cdrom("none").unwrap().image, None);
        assert_eq!(parse_cdrom("x.iso,bus=ahci").unwrap().bus, StorageBus::Ahci);
    }

    #[test]
    fn what_makes_no_sense_is_told_with_what_does() {
        for (text, part) in [
            ("", "name"),
            ("x,bus=scsi", "ide, ahci, nvme"),
            ("x,cache=none", "writeback, writethrough, unsafe"),
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
