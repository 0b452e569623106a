//! Firmware images: where Debian's packages put them, and the ROM that one becomes.
//!
//! An image ends at 4 GiB, where the processor's first instruction is; the board shows its last 128 KiB below 1 MiB too.
//!
//! Spec: SDM vol. 3 §10.1.4 (first instruction).

use std::path::Path;
use std::path::PathBuf;

use guest_memory::Kind;
use guest_memory::MemoryError;
use guest_memory::MemoryRegion;

/// Where SeaBIOS may be, the best first.
const SEABIOS: [&str; 3] = [
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/seabios/bios.bin",
];
/// UEFI images by the package `ovmf`, with the template of their variables.
const OVMF: [(&str, &str); 2] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
];
/// Where the firmware of the display adapter may be.
const VGA_BIOS: [&str; 2] = [
    "/usr/share/seabios/vgabios-stdvga.bin",
    "/usr/share/qemu/vgabios-stdvga.bin",
];
/// Bytes of an expansion ROM at most: what its base address register can ask for. It may hold several images.
const MAX_EXPANSION: usize = 16 << 20;
/// Where the package `ipxe-qemu` has what boots by network cards: with images for BIOS and UEFI, or for BIOS only.
const IPXE: [(&str, &str); 2] = [("/usr/lib/ipxe/qemu", "efi"), ("/usr/lib/ipxe/qemu", "pxe")];
/// What is seen below 1 MiB: an image has at least that.
const MIN: usize = 128 << 10;
/// The interrupt controllers are below.
const MAX: usize = 16 << 20;
/// Images are made of blocks of flash memory.
const BLOCK: usize = 4096;

/// Why there is no firmware.
#[derive(Debug, thiserror::Error)]
pub enum RomError {
    /// No image was named, and none found.
    #[error("there is no BIOS on this host; `apt-get install seabios` brings one, `--firmware FILE` names another")]
    Missing,
    /// No UEFI image was found.
    #[error("there is no UEFI firmware on this host; `apt-get install ovmf` brings it")]
    MissingUefi,
    /// No image for a network card was found.
    #[error(
        "there is no iPXE on this host to boot by the network; `apt-get install ipxe-qemu` brings it, romfile= names another"
    )]
    MissingNetwork,
    /// The file of variables is not of the image's size.
    #[error("`{}` holds no variables of this firmware: {} bytes, not {}", .path.display(), .len, .wanted)]
    Variables {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: usize,
        /// The template's.
        wanted: usize,
    },
    /// The file is no image.
    #[error("`{}` is no firmware image: {} bytes are not a multiple of 4K between 128K and 16M", .path.display(), .len)]
    Size {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// The file is no expansion ROM.
    #[error("`{}` is no expansion ROM: it begins with 55h AAh and has 16M at most", .0.display())]
    Expansion(PathBuf),
    /// The host refused memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// The image that `wanted` names, or that of the package `seabios`.
///
/// # Errors
/// [`RomError::Missing`] when none is named and none found.
pub fn find(wanted: Option<&Path>) -> Result<PathBuf, RomError> {
    let usual = || SEABIOS.iter().map(PathBuf::from).find(|path| path.is_file());
    wanted.map(Path::to_owned).or_else(usual).ok_or(RomError::Missing)
}

/// The UEFI image of the package `ovmf`, and the template of its variables.
///
/// # Errors
/// [`RomError::MissingUefi`] when they are not there.
pub fn find_uefi() -> Result<(PathBuf, PathBuf), RomError> {
    let there = |(code, variables): &&(&str, &str)| Path::new(code).is_file() && Path::new(variables).is_file();
    let found = OVMF.iter().find(there);
    let paths = found.map(|(code, variables)| (PathBuf::from(code), PathBuf::from(variables)));
    paths.ok_or(RomError::MissingUefi)
}

/// The image of the display adapter's firmware from the package `seabios`, if it is there.
#[must_use]
pub fn find_vga() -> Option<PathBuf> {
    VGA_BIOS.iter().map(PathBuf::from).find(|path| path.is_file())
}

/// The image that boots by a card that iPXE calls `card` (`e1000`, `pcnet`, `virtio`), from the package `ipxe-qemu`.
///
/// # Errors
/// [`RomError::MissingNetwork`] when it is not there.
pub fn find_network(card: &str) -> Result<PathBuf, RomError> {
    let mut paths = IPXE
        .iter()
        .map(|(dir, kind)| PathBuf::from(format!("{dir}/{kind}-{card}.rom")));
    paths.find(|path| path.is_file()).ok_or(RomError::MissingNetwork)
}

/// Says in an expansion ROM that it is for function `vendor`:`device`: firmware passes over those for other functions, and one image
/// serves several. What is no ROM stays as it is (PCI Firmware Specification 3.0, §5.1).
pub fn adopt(image: &mut [u8], vendor: u16, device: u16) {
    let [v0, v1] = vendor.to_le_bytes();
    let [d0, d1] = device.to_le_bytes();
    let mut rest = image;
    while let Some((data, len, last)) = images(rest) {
        let Some((one, others)) = rest.split_at_mut_checked(len) else {
            return;
        };
        if let Some(id) = one.get_mut(data + 4..data + 8) {
            id.copy_from_slice(&[v0, v1, d0, d1]);
        }
        // Those for a BIOS have a sum of zero, with a byte to make it so.
        if one.get(data + 20) == Some(&0) {
            let sum = one.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            if let Some(byte) = one.get_mut(6) {
                *byte = byte.wrapping_sub(sum);
            }
        }
        if last {
            return;
        }
        rest = others;
    }
}

/// The first image of a ROM: where its data structure is, its bytes, whether it is the last.
fn images(rom: &[u8]) -> Option<(usize, usize, bool)> {
    let word = |at: usize| Some(usize::from(u16::from_le_bytes(rom.get(at..at + 2)?.try_into().ok()?)));
    let data = word(0x18)?;
    let known = rom.starts_with(&[0x55, 0xaa]) && rom.get(data..data + 4)? == b"PCIR";
    let len = word(data + 16)? * 512;
    (known && len > 0).then_some((data, len, rom.get(data + 21)? & 0x80 != 0))
}

/// The expansion ROM that holds `image`, as long as a base address register can tell; `path` is for the message.
///
/// # Errors
/// [`RomError::Expansion`] for what is no expansion ROM.
pub fn expansion(path: &Path, image: &[u8]) -> Result<MemoryRegion, RomError> {
    if image.len() > MAX_EXPANSION || !image.starts_with(&[0x55, 0xaa]) {
        return Err(RomError::Expansion(path.to_owned()));
    }
    let len = image.len().next_power_of_two().max(4096);
    let region = MemoryRegion::new("expansion", Kind::Rom, len as u64)?;
    // It fits.
    let _ = region.load(0, image);
    Ok(region)
}

/// The ROM that holds `image`; `path` is for the message.
///
/// # Errors
/// [`RomError::Size`] for what cannot be an image.
pub fn region(path: &Path, image: &[u8]) -> Result<MemoryRegion, RomError> {
    let len = image.len();
    if !(MIN..=MAX).contains(&len) || !len.is_multiple_of(BLOCK) {
        let path = path.to_owned();
        return Err(RomError::Size { path, len });
    }
    let region = MemoryRegion::new("firmware", Kind::Rom, len as u64)?;
    // The region has the image's length.
    let _ = region.load(0, image);
    Ok(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_fills_its_rom_and_other_sizes_are_refused() {
        let path = Path::new("bios.bin");
        let mut image = vec![0x90; 256 << 10];
        image[0x3_fff0] = 0xea;
        let rom = region(path, &image).unwrap();
        let mut first = [0; 2];
        rom.fetch(0x3_fff0, &mut first).unwrap();
        assert_eq!((rom.kind(), first), (Kind::Rom, [0xea, 0x90]));
        for len in [0, 4096, (128 << 10) + 1, (16 << 20) + 4096] {
            let error = region(path, &vec![0; len]).unwrap_err().to_string();
            assert!(error.contains("bios.bin") && error.lines().count() == 1, "{error}");
        }
    }

    #[test]
    fn expansion_rom_has_a_power_of_two_and_a_signature() {
        let path = Path::new("vga.bin");
        let mut image = vec![0; 40_000];
        image[..2].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(expansion(path, &image).unwrap().len(), 65536);
        assert!(expansion(path, &image[1..]).is_err());
        image.resize((16 << 20) + 1, 0);
        assert!(expansion(path, &image).is_err());
    }

    #[test]
    fn adopted_rom_is_for_its_card_and_sums_up() {
        let mut image = vec![3; 2048];
        for (start, kind, last) in [(0, 0, 0), (1024, 3, 0x80)] {
            let one = &mut image[start..start + 1024];
            one[..2].copy_from_slice(&[0x55, 0xaa]);
            one[0x18..0x1a].copy_from_slice(&[0x40, 0]);
            one[0x40..0x48].copy_from_slice(&[b'P', b'C', b'I', b'R', 1, 2, 3, 4]);
            one[0x50..0x52].copy_from_slice(&[2, 0]);
            (one[0x54], one[0x55]) = (kind, last);
        }
        adopt(&mut image, 0x1af4, 0x1000);
        for start in [0, 1024] {
            assert_eq!(image[start + 0x44..start + 0x48], [0xf4, 0x1a, 0x00, 0x10]);
        }
        assert_eq!(image[..1024].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        // What is none is left alone, wherever it ends.
        for len in 0..1024 {
            adopt(&mut image[..len].to_vec(), 1, 2);
        }
    }

    #[test]
    fn named_image_is_taken_as_it_is() {
        assert_eq!(find(Some(Path::new("x"))).unwrap(), Path::new("x"));
    }
}
