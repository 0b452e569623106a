//! Linux/x86 boot protocol: bzImage with `boot_params`, entered at its 64-bit or its 32-bit entry point.
//!
//! Protocol 2.02 and later with a kernel that is loaded high. The real-mode setup code is not run: the loader fills the
//! zero page in its stead. Kernels are put at their preferred address, so that they need not move themselves.
//!
//! Spec: Linux Documentation/arch/x86/boot.rst and zero-page.rst.

use std::ops::Range;

use guest_memory::GuestMemory;

use crate::BootError;
use crate::BootKind;
use crate::BootRequest;
use crate::Loaded;
use crate::arena::Arena;
use crate::arena::check_command_line;
use crate::bios_data;
use crate::entry;
use crate::layout;
use crate::layout::MIB;
use crate::layout::Ram;

/// Offsets in the first sectors of the file and, the same, in the zero page.
mod header {
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const SYSSIZE: usize = 0x1f4;
    pub(super) const BOOT_FLAG: usize = 0x1fe;
    pub(super) const JUMP_DISTANCE: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE_KERNEL: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const SETUP_DATA: usize = 0x250;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
}

/// Offsets of zero-page fields that are not in the setup header.
mod zero_page {
    pub(super) const LEN: usize = 4096;
    pub(super) const EXT_MEM_K: usize = 0x2;
    pub(super) const ACPI_RSDP_ADDR: usize = 0x70;
    pub(super) const ALT_MEM_K: usize = 0x1e0;
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const HEADER_START: usize = 0x1f1;
    pub(super) const HEADER_END_MAX: usize = 0x290;
    pub(super) const E820_TABLE: usize = 0x2d0;
    pub(super) const E820_ENTRY_LEN: usize = 20;
    pub(super) const E820_MAX: usize = 128;
}

/// The loader's type: none that was assigned.
const LOADER_UNDEFINED: u8 = 0xff;
/// LOADFLAGS: the kernel belongs to 1 MiB, not to 10000h.
const LOADED_HIGH: u8 = 1 << 0;
/// XLOADFLAGS: there is a 64-bit entry point at 200h.
const XLF_KERNEL_64: u16 = 1 << 0;
/// Offset of the 64-bit entry point.
const ENTRY_64: u64 = 0x200;
/// INITRD_ADDR_MAX of kernels that do not say.
const INITRD_ADDR_MAX_OLD: u32 = 0x37ff_ffff;
/// CMDLINE_SIZE of kernels that do not say.
const CMDLINE_SIZE_OLD: u32 = 255;

/// Whether the file begins with a setup header.
pub(crate) fn is_linux(kernel: &[u8]) -> bool {
    kernel.get(header::MAGIC..header::MAGIC + 4) == Some(b"HdrS")
        && kernel.get(header::BOOT_FLAG..header::BOOT_FLAG + 2) == Some(&[0x55, 0xaa])
}

/// Little-endian fields of a file by offset.
struct Setup<'a>(&'a [u8]);

impl Setup<'_> {
    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N], BootError> {
        self.0
            .get(at..)
            .and_then(|rest| rest.first_chunk::<N>())
            .copied()
            .ok_or(BootError::Truncated("the setup header is not complete"))
    }

    fn u8(&self, at: usize) -> Result<u8, BootError> {
        self.field(at).map(u8::from_le_bytes)
    }

    fn u16(&self, at: usize) -> Result<u16, BootError> {
        self.field(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, BootError> {
        self.field(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, BootError> {
        self.field(at).map(u64::from_le_bytes)
    }
}

/// What the setup header says, with the values of old protocols filled in.
struct Kernel<'a> {
    /// The setup header's bytes.
    header: &'a [u8],
    /// The protected-mode kernel.
    payload: &'a [u8],
    /// Where it is put.
    load: u64,
    /// First address that the kernel does not use before it reads the memory map.
    end: u64,
    /// Whether it has a 64-bit entry point.
    long: bool,
    /// Last address that an initrd may use.
    initrd_max: u32,
    /// Longest command line, its zero byte not counted.
    cmdline_size: u32,
}

impl<'a> Kernel<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, BootError> {
        let setup = Setup(file);
        let version = setup.u16(header::VERSION)?;
        let [minor, major] = version.to_le_bytes();
        if version < 0x202 {
            return Err(BootError::TooOld { major, minor });
        }
        if setup.u8(header::LOADFLAGS)? & LOADED_HIGH == 0 {
            return Err(BootError::NotKernel("a Linux zImage, which is loaded below 640 KiB"));
        }
        let sectors = match setup.u8(header::SETUP_SECTS)? {
            0 => 4,
            n => usize::from(n),
        };
        let payload = file
            .get((sectors + 1) * 512..)
            .filter(|payload| payload.len() as u64 > ENTRY_64)
            .ok_or(BootError::Truncated("nothing follows the setup code"))?;
        // SYSSIZE counts paragraphs, and not every build rounds it the same way.
        let announced = u64::from(setup.u32(header::SYSSIZE)?) * 16;
        if version >= 0x204 && payload.len() as u64 + 15 < announced {
            return Err(BootError::Truncated("it is shorter than its setup header says"));
        }
        let header_end = header::MAGIC + usize::from(setup.u8(header::JUMP_DISTANCE)?);
        let header = file
            .get(zero_page::HEADER_START..header_end.min(zero_page::HEADER_END_MAX))
            .ok_or(BootError::Truncated("the setup header is not complete"))?;
        let (load, end) = place_kernel(&setup, version, payload.len() as u64)?;
        Ok(Self {
            header,
            payload,
            load,
            end,
            long: version >= 0x20c && setup.u16(header::XLOADFLAGS)? & XLF_KERNEL_64 != 0,
            initrd_max: match version {
                0x203.. => setup.u32(header::INITRD_ADDR_MAX)?,
                _ => INITRD_ADDR_MAX_OLD,
            },
            cmdline_size: match version {
                0x206.. => setup.u32(header::CMDLINE_SIZE)?,
                _ => CMDLINE_SIZE_OLD,
            },
        })
    }
}

/// Where a kernel is loaded, and the end of the memory that it uses from there.
fn place_kernel(setup: &Setup<'_>, version: u16, len: u64) -> Result<(u64, u64), BootError> {
    const DAMAGED: BootError = BootError::Damaged("its preferred address is nonsense");
    if version < 0x20a {
        return Ok((MIB, MIB + len));
    }
    let preferred = setup.u64(header::PREF_ADDRESS)?.max(MIB);
    let size = u64::from(setup.u32(header::INIT_SIZE)?).max(len);
    let end = preferred.checked_add(size).ok_or(DAMAGED)?;
    if setup.u8(header::RELOCATABLE_KERNEL)? == 0 {
        // It moves itself to the preferred address, but its entry code may count on being at 1 MiB.
        return Ok((MIB, end.max(MIB + len)));
    }
    let align = u64::from(setup.u32(header::KERNEL_ALIGNMENT)?);
    let load = match align.is_power_of_two() {
        true => preferred.checked_next_multiple_of(align).ok_or(DAMAGED)?,
        false => preferred,
    };
    Ok((load, load.checked_add(size).ok_or(DAMAGED)?))
}

/// Loads a bzImage.
pub(crate) fn load(memory: &GuestMemory, ram: &Ram, request: &BootRequest<'_>) -> Result<Loaded, BootError> {
    let kernel = Kernel::parse(request.kernel)?;
    check_command_line(
        request.cmdline,
        usize::try_from(kernel.cmdline_size).unwrap_or(usize::MAX),
    )?;
    if kernel.end > ram.low_end() {
        let initrd = request.module().map_or(0, |initrd| initrd.len() as u64);
        return Err(BootError::TooLittleMemory {
            need: kernel.end.saturating_add(initrd),
            have: ram.low_end(),
        });
    }
    let initrd = match request.module() {
        Some(initrd) => {
            let limit = u64::from(kernel.initrd_max) + 1;
            Some(place_initrd(ram, initrd, kernel.end, limit)?)
        }
        None => None,
    };

    bios_data::write(memory, &request.screen)?;
    memory.write(kernel.load, kernel.payload)?;
    if let (Some(place), Some(data)) = (&initrd, request.module()) {
        memory.write(place.start, data)?;
    }
    let mut arena = Arena::new(memory, &[])?;
    let cmdline = arena.put_text(request.cmdline)?;
    let page = zero_page(memory, ram, request, &kernel, cmdline, initrd.as_ref());
    let page = arena.put(&page, 4096)?;
    let (kind, entry) = match kernel.long {
        true => (BootKind::Linux64, kernel.load + ENTRY_64),
        false => (BootKind::Linux32, kernel.load),
    };
    let mut state = match kind {
        BootKind::Linux64 => entry::long_64(&mut arena, entry)?,
        _ => entry::protected_32(&mut arena, low(entry))?,
    };
    state.gpr[entry::RSI] = page.into();
    Ok(Loaded {
        state,
        kind,
        entry,
        kernel: kernel.load..kernel.end,
        initrd,
    })
}

/// Puts an initrd as high as RAM below 4 GiB and `limit` allow, above the kernel.
pub(crate) fn place_initrd(ram: &Ram, initrd: &[u8], kernel_end: u64, limit: u64) -> Result<Range<u64>, BootError> {
    let len = initrd.len() as u64;
    let top = ram.low_end().min(limit);
    let start = top.checked_sub(len).map(|start| start & !0xfff);
    match start {
        Some(start) if start >= kernel_end => Ok(start..start + len),
        _ if limit < ram.low_end() => Err(BootError::InitrdTooLarge {
            len,
            room: limit.saturating_sub(kernel_end),
        }),
        _ => Err(BootError::TooLittleMemory {
            need: kernel_end.saturating_add(len).saturating_add(4095),
            have: ram.low_end(),
        }),
    }
}

/// An address or length below 4 GiB, which the caller has seen to.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Writes `bytes` into the zero page at `at`, which lies inside it.
fn set(page: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(field) = page.get_mut(at..at + bytes.len()) {
        field.copy_from_slice(bytes);
    }
}

/// The `boot_params`: the file's setup header, what the loader adds to it, and the memory map.
fn zero_page(
    memory: &GuestMemory,
    ram: &Ram,
    request: &BootRequest<'_>,
    kernel: &Kernel<'_>,
    cmdline: u32,
    initrd: Option<&Range<u64>>,
) -> Vec<u8> {
    let mut page = vec![0; zero_page::LEN];
    set(&mut page, zero_page::HEADER_START, kernel.header);
    set(&mut page, header::TYPE_OF_LOADER, &[LOADER_UNDEFINED]);
    set(&mut page, header::CODE32_START, &low(kernel.load).to_le_bytes());
    set(&mut page, header::CMD_LINE_PTR, &cmdline.to_le_bytes());
    set(&mut page, header::SETUP_DATA, &0u64.to_le_bytes());
    let (image, size) = initrd.map_or((0, 0), |r| (low(r.start), low(r.end - r.start)));
    set(&mut page, header::RAMDISK_IMAGE, &image.to_le_bytes());
    set(&mut page, header::RAMDISK_SIZE, &size.to_le_bytes());
    set(&mut page, zero_page::ACPI_RSDP_ADDR, &request.rsdp.to_le_bytes());
    for (at, bytes) in request.screen.fields() {
        set(&mut page, at, &bytes);
    }
    let extended_kib = (ram.low_end() - MIB) >> 10;
    let ext_mem_k = u16::try_from(extended_kib).unwrap_or(u16::MAX);
    set(&mut page, zero_page::EXT_MEM_K, &ext_mem_k.to_le_bytes());
    set(&mut page, zero_page::ALT_MEM_K, &low(extended_kib).to_le_bytes());
    let map = layout::memory_map(memory);
    for (i, entry) in map.iter().take(zero_page::E820_MAX).enumerate() {
        let at = zero_page::E820_TABLE + i * zero_page::E820_ENTRY_LEN;
        set(&mut page, at, &entry.start.to_le_bytes());
        set(&mut page, at + 8, &entry.len.to_le_bytes());
        set(&mut page, at + 16, &(entry.kind as u32).to_le_bytes());
    }
    let entries = map.len().min(zero_page::E820_MAX) as u8;
    set(&mut page, zero_page::E820_ENTRIES, &[entries]);
    page
}

#[cfg(test)]
pub(crate) mod tests;
