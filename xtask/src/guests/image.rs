//! Kernel images: the ELF file inside a bzImage, and compressed modules.
//!
//! xz, zstd and gzip are left to the programs of those names; the legacy frame of LZ4, which Debian's kernel for clouds
//! has and whose program few have installed, is read here.
//!
//! Spec: Linux Documentation/arch/x86/boot.rst (setup header: setup_sects, payload_offset, payload_length);
//! lz4 doc/lz4_Frame_format.md ("Legacy frame"), doc/lz4_Block_format.md.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::process;

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";
const GZIP: &[u8] = b"\x1f\x8b";
const LZ4_LEGACY: &[u8] = b"\x02\x21\x4c\x18";

/// What a block of a legacy frame may become.
const LZ4_BLOCK: usize = 8 << 20;

/// Offsets in the setup header.
const SETUP_SECTS: usize = 0x1f1;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

/// A file below `dir` whose name suits.
pub(crate) fn find(dir: &Path, suits: impl Fn(&str) -> bool + Copy) -> Option<PathBuf> {
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
    if let Some(frame) = bytes.strip_prefix(LZ4_LEGACY) {
        return lz4_legacy(frame).with_context(|| format!("{} is damaged", path.display()));
    }
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
    let readable = match tool(payload) {
        Some(tool) => process::find(tool).is_some(),
        None => payload.starts_with(LZ4_LEGACY),
    };
    if !readable {
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

/// The blocks of an LZ4 legacy frame, after its magic number.
fn lz4_legacy(mut frame: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    while let Some((len, rest)) = frame.split_first_chunk() {
        let (block, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
        let start = out.len();
        lz4_block(block, start, &mut out)?;
        frame = rest;
    }
    frame.is_empty().then_some(out)
}

/// Appends a block: sequences of literals and of copies out of what came before.
fn lz4_block(mut block: &[u8], start: usize, out: &mut Vec<u8>) -> Option<()> {
    while let Some((&token, rest)) = block.split_first() {
        block = rest;
        let literals = lz4_length(usize::from(token >> 4), &mut block)?;
        let (bytes, rest) = block.split_at_checked(literals)?;
        out.extend_from_slice(bytes);
        block = rest;
        // The last sequence is literals only.
        if block.is_empty() {
            return Some(());
        }
        let (&distance, rest) = block.split_first_chunk()?;
        block = rest;
        let distance = usize::from(u16::from_le_bytes(distance));
        let len = lz4_length(usize::from(token & 15), &mut block)? + 4;
        if distance == 0 || out.len() + len > start + LZ4_BLOCK {
            return None;
        }
        // Byte by byte: a copy may reach into what it writes.
        let from = out.len().checked_sub(distance).filter(|&from| from >= start)?;
        for at in from..from + len {
            out.push(*out.get(at)?);
        }
    }
    Some(())
}

/// A length of four bits, of which 15 says that bytes follow, the last of them below 255.
fn lz4_length(nibble: usize, block: &mut &[u8]) -> Option<usize> {
    let mut len = nibble;
    let mut more = nibble == 15;
    while more {
        let (&byte, rest) = block.split_first()?;
        *block = rest;
        len += usize::from(byte);
        more = byte == 255;
    }
    Some(len)
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
    fn lz4_copies_reach_into_what_they_write() {
        // "ab", then 4 + 15 + 2 bytes from distance 2, then "!" as literals.
        let block = [0x2f, b'a', b'b', 2, 0, 2, 0x10, b'!'];
        let mut frame = (block.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(&block);
        let text = lz4_legacy(&frame).unwrap();
        assert_eq!(text, format!("{}a!", "ab".repeat(11)).into_bytes());
    }

    #[test]
    fn damaged_lz4_is_refused() {
        for block in [
            &[0x20u8, b'a'] as &[u8],
            &[0x10, b'a', 2, 0],
            &[0x10, b'a', 0, 0],
            &[0x10, b'a', 1],
            &[0x1f, b'a', 1, 0, 255],
        ] {
            let mut frame = (block.len() as u32).to_le_bytes().to_vec();
            frame.extend_from_slice(block);
            assert_eq!(lz4_legacy(&frame), None, "{block:x?}");
        }
        assert_eq!(lz4_legacy(&[9, 0, 0, 0, 0]), None);
        assert_eq!(lz4_legacy(&[0]), None);
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
