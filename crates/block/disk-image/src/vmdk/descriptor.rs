//! The descriptor of a VMDK image: lines of text, in a file of their own or within the only extent.

use crate::BlockError;
use crate::Result;
use crate::Uuid;
use crate::store::File;

/// Bytes at most.
pub(crate) const MAX_DESCRIPTOR: u64 = 1 << 20;
/// Extents at most.
const MAX_EXTENTS: usize = 4096;
/// A parent's CID when there is none.
pub(crate) const NO_PARENT: u32 = 0xffff_ffff;

/// How an extent's file is organised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExtentType {
    Sparse,
    Flat,
    Zero,
}

/// A line about an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ExtentLine {
    pub(crate) writable: bool,
    /// Of 512 bytes.
    pub(crate) sectors: u64,
    pub(crate) kind: ExtentType,
    pub(crate) name: String,
    /// In the file, in sectors.
    pub(crate) offset: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) cid: u32,
    /// Where the eight digits of the CID are in the text.
    pub(crate) cid_at: Option<usize>,
    pub(crate) parent_cid: Option<u32>,
    pub(crate) create_type: String,
    pub(crate) parent: Option<String>,
    /// VirtualBox's identifiers.
    pub(crate) uuid: Uuid,
    pub(crate) modified: Uuid,
    /// Where the digits of `modified` are in the text.
    pub(crate) modified_at: Option<usize>,
    pub(crate) parent_uuid: Uuid,
    pub(crate) parent_modified: Uuid,
    pub(crate) extents: Vec<ExtentLine>,
}

/// Text that begins like a descriptor, maybe after blank lines and comments.
pub(crate) fn is_descriptor(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    for line in text.lines().map(str::trim) {
        if line.starts_with("# Disk DescriptorFile")
            || line.starts_with("version=") && text.contains("CID=")
            || line.starts_with("encryption.keySafe")
        {
            return true;
        }
        if !line.is_empty() && !line.starts_with(['#', '.']) {
            return false;
        }
    }
    false
}

impl Descriptor {
    pub(crate) fn parse(file: &File, bytes: &[u8]) -> Result<Self> {
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        let mut descriptor = Self::default();
        let mut at = 0;
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            let start = at;
            at += line.len();
            // Other encodings than UTF-8 occur in names; what cannot be read will not be found.
            let line = String::from_utf8_lossy(line);
            let line = line.trim_end();
            if let Some(extent) = extent(file, line.trim())? {
                descriptor.extents.push(extent);
                if descriptor.extents.len() > MAX_EXTENTS {
                    return Err(file.corrupt(format!("the descriptor has more than {MAX_EXTENTS} extents")));
                }
                continue;
            }
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            descriptor.key(file, key.trim(), value, start + key.len() + 1)?;
        }
        Ok(descriptor)
    }

    /// A line `key=value`; the value is at `at` of the text.
    fn key(&mut self, file: &File, key: &str, value: &str, at: usize) -> Result<()> {
        let plain = value.trim().trim_matches('"');
        let hex =
            || u32::from_str_radix(plain, 16).map_err(|_| file.corrupt(format!("the descriptor's {key} is `{plain}`")));
        match key {
            "CID" => {
                self.cid = hex()?;
                self.cid_at = (value.len() == 8).then_some(at);
            }
            "parentCID" => self.parent_cid = Some(hex()?).filter(|&cid| cid != NO_PARENT),
            "createType" => plain.clone_into(&mut self.create_type),
            "parentFileNameHint" => self.parent = Some(plain.to_owned()),
            "ddb.uuid.image" => self.uuid = uuid(plain),
            "ddb.uuid.modification" => {
                self.modified = uuid(plain);
                let digits = value.find(plain).filter(|_| !self.modified.is_zero());
                self.modified_at = digits.map(|digits| at + digits);
            }
            "ddb.uuid.parent" => self.parent_uuid = uuid(plain),
            "ddb.uuid.parentmodification" => self.parent_modified = uuid(plain),
            "encryption.keySafe" | "encryption.data" => {
                return Err(BlockError::Encrypted {
                    file: file.name().to_owned(),
                    what: "VMware key safe".to_owned(),
                });
            }
            _ => {}
        }
        Ok(())
    }
}

/// One that cannot be read is none.
fn uuid(text: &str) -> Uuid {
    Uuid::parse(text).unwrap_or_default()
}

/// `RW 4192256 SPARSE "disk-s001.vmdk"`, with the offset of flat ones behind. None for other lines.
fn extent(file: &File, line: &str) -> Result<Option<ExtentLine>> {
    let mut words = line.splitn(4, char::is_whitespace);
    let writable = match words.next() {
        Some("RW") => true,
        Some("RDONLY") => false,
        Some("NOACCESS") => return Err(file.unsupported("an extent may not be accessed")),
        _ => return Ok(None),
    };
    let bad = || file.corrupt(format!("the descriptor's line `{line}` is no extent"));
    let sectors: u64 = words.next().and_then(|word| word.parse().ok()).ok_or_else(bad)?;
    if sectors > i64::MAX as u64 / 512 {
        return Err(bad());
    }
    let kind = match words.next() {
        Some("SPARSE") => ExtentType::Sparse,
        Some("FLAT" | "VMFS") => ExtentType::Flat,
        Some("ZERO") => ExtentType::Zero,
        Some(other) => return Err(file.unsupported(format!("extents of type {other} are not supported"))),
        None => return Err(bad()),
    };
    let rest = words.next().unwrap_or_default().trim();
    let (name, rest) = match rest.strip_prefix('"').and_then(|rest| rest.split_once('"')) {
        Some((name, rest)) => (name, rest),
        None if kind == ExtentType::Zero => ("", ""),
        None => return Err(bad()),
    };
    let offset = match rest.split_whitespace().next() {
        None => 0,
        Some(word) => word
            .parse()
            .ok()
            .filter(|&offset: &u64| offset <= i64::MAX as u64 / 512 - sectors)
            .ok_or_else(bad)?,
    };
    Ok(Some(ExtentLine {
        writable,
        sectors,
        kind,
        name: name.to_owned(),
        offset,
    }))
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::store::Access;
    use crate::store::MemoryFiles;
    use crate::store::MemoryStore;

    fn parse(text: &str) -> Result<Descriptor> {
        let files = MemoryFiles::default();
        files.put("d.vmdk", Arc::new(MemoryStore::new(0)));
        Descriptor::parse(&File::open(&files, Path::new("d.vmdk"), Access::Read)?, text.as_bytes())
    }

    #[test]
    fn keys_and_extents_are_found() {
        let text = "# Disk DescriptorFile\nversion=1\nCID=0123abcd\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\
                    RW 2048 FLAT \"a b.vmdk\" 16\nRDONLY 8 ZERO\n";
        let descriptor = parse(text).unwrap();
        assert_eq!(descriptor.cid, 0x0123_abcd);
        assert_eq!(&text[descriptor.cid_at.unwrap()..][..8], "0123abcd");
        assert_eq!(
            (descriptor.parent_cid, descriptor.create_type.as_str()),
            (None, "monolithicFlat")
        );
        let [flat, zero] = &descriptor.extents[..] else {
            panic!("{:?}", descriptor.extents)
        };
        assert_eq!(
            (flat.name.as_str(), flat.offset, flat.sectors, flat.writable),
            ("a b.vmdk", 16, 2048, true)
        );
        assert_eq!((zero.kind, zero.sectors), (ExtentType::Zero, 8));
    }

    #[test]
    fn places_to_write_over_are_those_in_the_file() {
        // Latin-1 in a comment: one byte that is three as UTF-8.
        let mut bytes = b"# Disk DescriptorFile\n# caf\xe9\nCID=0123abcd\nddb.uuid.modification = \"".to_vec();
        let uuid = Uuid::random();
        bytes.extend(format!("{uuid}\"\nddb.uuid.image=\"{uuid}\"\n").bytes());
        let files = MemoryFiles::default();
        files.put("d.vmdk", Arc::new(MemoryStore::new(0)));
        let file = File::open(&files, Path::new("d.vmdk"), Access::Read).unwrap();
        let descriptor = Descriptor::parse(&file, &bytes).unwrap();
        assert_eq!((descriptor.uuid, descriptor.modified), (uuid, uuid));
        assert_eq!(&bytes[descriptor.cid_at.unwrap()..][..8], b"0123abcd");
        assert_eq!(
            &bytes[descriptor.modified_at.unwrap()..][..36],
            uuid.to_string().as_bytes()
        );
    }

    #[test]
    fn encrypted_descriptors_are_known_as_such() {
        let text = ".encoding = \"UTF-8\"\nencryption.keySafe = \"vmware:key/list/(pair/(phrase/x\"\nencryption.data = \"abcd\"\n";
        assert!(is_descriptor(text.as_bytes()));
        assert!(matches!(parse(text), Err(BlockError::Encrypted { .. })));
    }

    #[test]
    fn damaged_lines_are_named() {
        for text in [
            "RW x SPARSE \"a\"",
            "RW 1 SPARSE",
            "RW 99999999999999999999 FLAT \"a\"",
            "RW 1 FLAT \"a\" -1",
            "CID=xyz",
        ] {
            assert!(matches!(parse(text), Err(BlockError::Corrupt { .. })), "{text}");
        }
    }
}
