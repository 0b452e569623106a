//! Multiboot 1: ELF kernels and images with address fields, entered in flat 32-bit protected mode.
//!
//! Passed to the kernel: memory size and map, boot device, command line, one module (the initrd), the loader's name. Video
//! modes, drives, symbols and the APM table are not. ELF files for x86-64 are taken too, as long as their entry point is
//! 32-bit code below 4 GiB.
//!
//! Spec: The Multiboot Specification version 0.6.96, §3.1 (header), §3.2 (machine state), §3.3 (boot information).

use guest_memory::GuestMemory;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::BootError;
use crate::BootKind;
use crate::BootRequest;
use crate::Loaded;
use crate::arena::Arena;
use crate::arena::COMMAND_LINE_MAX;
use crate::arena::check_command_line;
use crate::bios_data;
use crate::entry;
use crate::image::Elf;
use crate::image::Image;
use crate::image::Segment;
use crate::layout;
use crate::layout::MIB;
use crate::layout::Ram;
use crate::pvh::span;

/// The header lies in this much of the file.
const SEARCH: usize = 8192;
/// First field of the header.
const HEADER_MAGIC: u32 = 0x1bad_b002;
/// EAX at the kernel's entry.
const LOADER_MAGIC: u64 = 0x2bad_b002;
/// The boot device that is none of the BIOS's.
const NO_BOOT_DEVICE: u32 = 0x8000_ffff;
/// What the kernel is told of its loader.
const LOADER_NAME: &str = "oxbow";

/// Header flags: bits 0 to 15 are requirements.
mod header_flag {
    /// Modules are wanted on page boundaries; they always are.
    pub(super) const PAGE_ALIGN: u32 = 1 << 0;
    /// Memory information is wanted; it is always given.
    pub(super) const MEMORY_INFO: u32 = 1 << 1;
    /// A video mode is wanted. That is a wish (§3.1.4): the kernel sees that there is no video information.
    pub(super) const VIDEO_MODE: u32 = 1 << 2;
    /// Every requirement.
    pub(super) const REQUIREMENTS: u32 = 0xffff;
    /// The address fields are valid.
    pub(super) const ADDRESSES: u32 = 1 << 16;
}

/// Information flags: which fields are valid.
mod info_flag {
    pub(super) const MEMORY: u32 = 1 << 0;
    pub(super) const BOOT_DEVICE: u32 = 1 << 1;
    pub(super) const CMDLINE: u32 = 1 << 2;
    pub(super) const MODULES: u32 = 1 << 3;
    pub(super) const MEMORY_MAP: u32 = 1 << 6;
    pub(super) const LOADER_NAME: u32 = 1 << 9;
}

/// Boot information, up to the loader's name and the fields after it that are always absent.
#[derive(IntoBytes, Immutable, Default)]
#[repr(C)]
struct Info {
    flags: u32,
    mem_lower: u32,
    mem_upper: u32,
    boot_device: u32,
    cmdline: u32,
    mods_count: u32,
    mods_addr: u32,
    syms: [u32; 4],
    mmap_length: u32,
    mmap_addr: u32,
    drives: [u32; 2],
    config_table: u32,
    boot_loader_name: u32,
    apm_table: u32,
    vbe: [u32; 4],
}

/// A module.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Module {
    start: u32,
    end: u32,
    text: u32,
    reserved: u32,
}

/// A memory map entry; `size` does not count itself.
#[derive(IntoBytes, Immutable)]
#[repr(C, packed)]
struct MapEntry {
    size: u32,
    start: u64,
    len: u64,
    kind: u32,
}

/// The address fields of a header.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

/// A multiboot header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// Offset in the file.
    offset: usize,
    flags: u32,
    addresses: Option<Addresses>,
}

/// Finds the header of a multiboot image.
pub(crate) fn find(file: &[u8]) -> Option<Header> {
    let area = file.get(..SEARCH).unwrap_or(file);
    (0..area.len()).step_by(4).find_map(|offset| {
        let word = |i: usize| -> Option<u32> {
            let at = offset + i * 4;
            Some(u32::from_le_bytes(*file.get(at..)?.first_chunk()?))
        };
        let (flags, checksum) = (word(1)?, word(2)?);
        if word(0)? != HEADER_MAGIC || HEADER_MAGIC.wrapping_add(flags).wrapping_add(checksum) != 0 {
            return None;
        }
        let addresses = match flags & header_flag::ADDRESSES {
            0 => None,
            _ => Some(Addresses {
                header: word(3)?,
                load: word(4)?,
                load_end: word(5)?,
                bss_end: word(6)?,
                entry: word(7)?,
            }),
        };
        Some(Header {
            offset,
            flags,
            addresses,
        })
    })
}

impl Header {
    /// The image that the address fields describe.
    fn image<'a>(&self, file: &'a [u8], addresses: Addresses) -> Result<Image<'a>, BootError> {
        const DAMAGED: BootError = BootError::Damaged("its multiboot address fields contradict each other");
        const TRUNCATED: BootError = BootError::Truncated("it ends before its multiboot load end address");
        let Addresses {
            header,
            load,
            load_end,
            bss_end,
            entry,
        } = addresses;
        // A load address of -1 means that the file is loaded from its start.
        let (start, load) = match load {
            u32::MAX => {
                let before = u32::try_from(self.offset).map_err(|_| DAMAGED)?;
                (0, header.checked_sub(before).ok_or(DAMAGED)?)
            }
            _ => {
                let before = header.checked_sub(load).ok_or(DAMAGED)? as usize;
                (self.offset.checked_sub(before).ok_or(DAMAGED)?, load)
            }
        };
        let data = file.get(start..).ok_or(TRUNCATED)?;
        let data = match load_end {
            0 => data,
            _ => {
                let len = load_end.checked_sub(load).ok_or(DAMAGED)? as usize;
                data.get(..len).ok_or(TRUNCATED)?
            }
        };
        let len = match bss_end {
            0 => data.len() as u64,
            _ => u64::from(bss_end.checked_sub(load).ok_or(DAMAGED)?).max(data.len() as u64),
        };
        let gpa = load.into();
        Image::new(vec![Segment { gpa, data, len }], entry.into())
    }
}

/// Loads a multiboot image; `elf` is what the file is as an ELF file.
pub(crate) fn load(
    memory: &GuestMemory,
    ram: &Ram,
    request: &BootRequest<'_>,
    header: &Header,
    elf: Result<Option<Elf<'_>>, BootError>,
) -> Result<Loaded, BootError> {
    let known = header_flag::PAGE_ALIGN | header_flag::MEMORY_INFO | header_flag::VIDEO_MODE;
    if header.flags & header_flag::REQUIREMENTS & !known != 0 {
        return Err(BootError::Unsupported(header.flags));
    }
    let image = match header.addresses {
        Some(addresses) => header.image(request.kernel, addresses)?,
        None => {
            elf?.ok_or(BootError::NotKernel(
                "a multiboot header, but neither ELF nor address fields",
            ))?
            .image
        }
    };
    let cmdline = match request.cmdline {
        "" => request.kernel_name.to_owned(),
        line => format!("{} {line}", request.kernel_name),
    };
    check_command_line(&cmdline, COMMAND_LINE_MAX)?;
    let mut used = image.check(ram)?;
    let kernel = span(&used);
    if !used.iter().any(|r| r.contains(&image.entry)) {
        return Err(BootError::Damaged("its entry point lies outside its segments"));
    }
    let entry = u32::try_from(image.entry).map_err(|_| BootError::Damaged("its entry point lies above 4 GiB"))?;
    let initrd = match request.module() {
        Some(initrd) => Some(place_module(ram, initrd, ram.low_end_of(&used))?),
        None => None,
    };
    used.extend(initrd.clone());

    bios_data::write(memory, &request.screen)?;
    image.write(memory)?;
    if let (Some(place), Some(data)) = (&initrd, request.module()) {
        memory.write(place.start, data)?;
    }
    let mut arena = Arena::new(memory, &used)?;
    let mut state = entry::protected_32(&mut arena, entry)?;
    let info = put_info(
        &mut arena,
        memory,
        ram,
        &cmdline,
        initrd.clone().map(|r| (r, request.initrd_name)),
    )?;
    state.gpr[RAX] = LOADER_MAGIC;
    state.gpr[entry::RBX] = info.into();
    Ok(Loaded {
        state,
        kind: BootKind::Multiboot,
        entry: entry.into(),
        kernel,
        initrd,
    })
}

const RAX: usize = 0;

/// Puts a module on the first page after the kernel.
fn place_module(ram: &Ram, module: &[u8], kernel_end: u64) -> Result<std::ops::Range<u64>, BootError> {
    let len = module.len() as u64;
    let start = kernel_end.checked_next_multiple_of(4096);
    let end = start.and_then(|start| start.checked_add(len));
    match (start, end) {
        (Some(start), Some(end)) if end <= ram.low_end() => Ok(start..end),
        _ => Err(BootError::TooLittleMemory {
            need: end.unwrap_or(u64::MAX),
            have: ram.low_end(),
        }),
    }
}

/// Writes the boot information and what it points to; returns its address.
fn put_info(
    arena: &mut Arena<'_>,
    memory: &GuestMemory,
    ram: &Ram,
    cmdline: &str,
    module: Option<(std::ops::Range<u64>, &str)>,
) -> Result<u32, BootError> {
    // The map is read entry by entry, so the fields stay together without padding.
    let map: Vec<u8> = layout::memory_map(memory)
        .into_iter()
        .map(|e| MapEntry {
            size: 20,
            start: e.start,
            len: e.len,
            kind: e.kind as u32,
        })
        .flat_map(|e| e.as_bytes().to_vec())
        .collect();
    let mut info = Info {
        flags: info_flag::MEMORY
            | info_flag::BOOT_DEVICE
            | info_flag::CMDLINE
            | info_flag::MODULES
            | info_flag::MEMORY_MAP
            | info_flag::LOADER_NAME,
        mem_lower: kib(layout::EBDA),
        mem_upper: kib(ram.low_end() - MIB),
        boot_device: NO_BOOT_DEVICE,
        cmdline: arena.put_text(cmdline)?,
        mmap_length: map.len() as u32,
        mmap_addr: arena.put(&map, 16)?,
        boot_loader_name: arena.put_text(LOADER_NAME)?,
        ..Info::default()
    };
    if let Some((place, name)) = module {
        check_command_line(name, COMMAND_LINE_MAX / 4)?;
        let module = Module {
            start: below_4_gib(place.start),
            end: below_4_gib(place.end),
            text: arena.put_text(name)?,
            reserved: 0,
        };
        info.mods_count = 1;
        info.mods_addr = arena.put(module.as_bytes(), 16)?;
    }
    arena.put(info.as_bytes(), 16)
}

fn kib(bytes: u64) -> u32 {
    below_4_gib(bytes >> 10)
}

/// Modules lie in low RAM, which ends below 4 GiB.
fn below_4_gib(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
