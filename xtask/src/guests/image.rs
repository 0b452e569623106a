//! Kernel images: the ELF file inside a bzImage, and compressed modules.
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (setup header: setup_sects, payload_offset, payload_length).

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::process;

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const GZIP: &[u8] = b"\x1f\x8b";

/// Offsets in the setup header.
const SETUP_SECTS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// A file below `dir` whose name suits.
pub(super) fn find(dir: &Path, suits: impl Fn(&str) -> bool + Copy) -> Option<PathBuf> {
    for entry in std::fs::read_dir(dir).ok()?.flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if let Some(found) = find(&path, suits) {
                return Some(found);
            }
        } else if entry.file_name().to_str().is_some_and(suits) {
            return Some(path);
        }
    }
    None
}

/// The contents of a file that may be compressed.
pub(super) fn decompressed(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = std::fs::read(path)?;
    let Some(tool) = tool(&bytes) else {
        return Ok(bytes);
    };
    let output = Command::new(tool)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("cannot run {tool}"))?;
    anyhow::ensure!(output.status.success(), "{tool} cannot decompress {}", path.display());
    Ok(output.stdout)
}

/// Writes the ELF file inside a bzImage to `vmlinux`; leaves it out where the tool for it is not installed.
pub(super) fn extract_vmlinux(bzimage: &Path, vmlinux: &Path) -> anyhow::Result<()> {
    let image = std::fs::read(bzimage)?;
    let payload = payload(&image).with_context(|| format!("{} is no bzImage", bzimage.display()))?;
    if tool(payload).is_none_or(|tool| process::find(tool).is_none()) {
        return Ok(());
    }
    let packed = vmlinux.with_extension("packed");
    std::fs::write(&packed, payload)?;
    std::fs::write(vmlinux, decompressed(&packed)?)?;
    std::fs::remove_file(packed)?;
    Ok(())
}

/// The compressed kernel in a bzImage, without the size that is appended to it.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let setup = match image.get(SETUP_SECTS)? {
        0 => 4,
        &sectors => usize::from(sectors),
    };
    let start = ((setup + 1) * SECTOR).checked_add(word(PAYLOAD_OFFSET)?)?;
    let payload = image.get(start..start.checked_add(word(PAYLOAD_LENGTH)?)?)?;
    match payload.starts_with(GZIP) {
        true => Some(payload),
        false => payload.get(..payload.len().checked_sub(4)?),
    }
}

/// The program that decompresses this.
fn tool(bytes: &[u8]) -> Option<&'static str> {
    [(XZ, "xz"), (ZSTD, "zstd"), (GZIP, "gzip")]
        .into_iter()
        .find_map(|(magic, tool)| bytes.starts_with(magic).then_some(tool))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR + 8];
        image[SETUP_SECTS] = 2;
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&8u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn payload_leaves_out_the_appended_size() {
        let image = bzimage(b"\xfd7zXZ\0data\x10\x20\0\0");
        assert_eq!(payload(&image), Some(b"\xfd7zXZ\0data".as_slice()));
        let image = bzimage(b"\x1f\x8bdata");
        assert_eq!(payload(&image), Some(b"\x1f\x8bdata".as_slice()));
    }

    #[test]
    fn payload_of_a_truncated_image_is_none() {
        let image = bzimage(b"\xfd7zXZ\0data\x10\x20\0\0");
        assert_eq!(payload(&image[..image.len() - 1]), None);
        assert_eq!(payload(&[]), None);
    }

    #[test]
    fn decompressed_reads_plain_and_gzip() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "text").unwrap();
        assert_eq!(decompressed(&plain).unwrap(), b"text");
        std::fs::write(dir.path().join("t"), "text").unwrap();
        process::run(Command::new("gzip").arg(dir.path().join("t"))).unwrap();
        assert_eq!(decompressed(&dir.path().join("t.gz")).unwrap(), b"text");
    }
}
