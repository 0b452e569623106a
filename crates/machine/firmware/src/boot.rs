//! Loading a kernel by whichever boot protocol its file speaks: Linux bzImage, ELF with a PVH note, multiboot 1.
//!
//! Spec: the protocols' modules name theirs.

use std::fmt;
use std::ops::Range;

use cpu_model::CpuState;
use guest_memory::GuestMemory;

use crate::BootError;
use crate::image;
use crate::layout;
use crate::layout::Ram;
use crate::linux;
use crate::multiboot;
use crate::pvh;
use crate::video::Screen;

/// What to boot.
#[derive(Clone, Copy, Default)]
pub struct BootRequest<'a> {
    /// Content of the kernel file.
    pub kernel: &'a [u8],
    /// Name of the kernel file: multiboot kernels find it as the first word of their command line.
    pub kernel_name: &'a str,
    /// Content of the initrd file; nothing when it is empty.
    pub initrd: Option<&'a [u8]>,
    /// Name of the initrd file: multiboot kernels find it with the module.
    pub initrd_name: &'a str,
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Guest physical address of the RSDP; zero where there are no ACPI tables.
    pub rsdp: u64,
    /// What the screen shows.
    pub screen: Screen,
}

impl<'a> BootRequest<'a> {
    /// The initrd, if there is anything in it.
    pub(crate) fn module(&self) -> Option<&'a [u8]> {
        self.initrd.filter(|initrd| !initrd.is_empty())
    }
}

impl fmt::Debug for BootRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            kernel_name,
            initrd,
            initrd_name,
            cmdline,
            rsdp,
            screen,
        } = self;
        f.debug_struct("BootRequest")
            .field("kernel_len", &kernel.len())
            .field("kernel_name", kernel_name)
            .field("initrd_len", &initrd.map(<[u8]>::len))
            .field("initrd_name", initrd_name)
            .field("cmdline", cmdline)
            .field("rsdp", rsdp)
            .field("screen", screen)
            .finish()
    }
}

/// The protocol that a kernel was loaded by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootKind {
    /// Linux bzImage at its 64-bit entry point.
    Linux64,
    /// Linux bzImage at its 32-bit entry point.
    Linux32,
    /// ELF with a PVH note.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

impl BootKind {
    /// Short name: `linux-64`, `linux-32`, `pvh` or `multiboot`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Linux64 => "linux-64",
            Self::Linux32 => "linux-32",
            Self::Pvh => "pvh",
            Self::Multiboot => "multiboot",
        }
    }
}

impl fmt::Display for BootKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A kernel in memory, ready to be entered.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Complete state of the boot processor at the kernel's first instruction.
    pub state: CpuState,
    /// By which protocol.
    pub kind: BootKind,
    /// Guest physical address of the first instruction.
    pub entry: u64,
    /// Guest physical addresses of the kernel in memory, its zeroed data included.
    pub kernel: Range<u64>,
    /// Guest physical addresses of the initrd.
    pub initrd: Option<Range<u64>>,
}

/// Loads a kernel into `memory`, with everything that its boot protocol asks for.
///
/// Called before the first instruction and again on every reset: all that it needs it writes, so that nothing depends on
/// what memory held.
///
/// # Errors
/// See [`BootError`]; memory may then be partly written.
pub fn load(memory: &GuestMemory, request: &BootRequest<'_>) -> Result<Loaded, BootError> {
    let ram = Ram::of(memory);
    if linux::is_linux(request.kernel) {
        require_first_mib(&ram)?;
        return linux::load(memory, &ram, request);
    }
    let elf = image::parse_elf(request.kernel);
    if let Ok(Some(elf)) = &elf
        && let Some(entry) = elf.pvh_entry
    {
        require_first_mib(&ram)?;
        return pvh::load(memory, &ram, request, &elf.image, entry);
    }
    if let Some(header) = multiboot::find(request.kernel) {
        require_first_mib(&ram)?;
        return multiboot::load(memory, &ram, request, &header, elf);
    }
    Err(match elf {
        Err(error) => error,
        Ok(Some(_)) => BootError::NotKernel("an ELF file without PVH note and multiboot header"),
        Ok(None) => BootError::NotKernel("neither a Linux bzImage, nor an ELF file, nor a multiboot image"),
    })
}

/// Every protocol needs conventional memory.
fn require_first_mib(ram: &Ram) -> Result<(), BootError> {
    if ram.low_end() < layout::MIB {
        return Err(BootError::TooLittleMemory {
            need: layout::MIB,
            have: ram.low_end(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::memory;

    fn error(kernel: &[u8], ram: u64) -> String {
        let request = BootRequest {
            kernel,
            ..BootRequest::default()
        };
        load(&memory(ram), &request).unwrap_err().to_string()
    }

    #[test]
    fn text_file_and_empty_file_are_not_kernels() {
        let expected = "not a kernel: neither a Linux bzImage, nor an ELF file, nor a multiboot image";
        assert_eq!(error(b"#!/bin/sh\necho hello\n", 1 << 20), expected);
        assert_eq!(error(b"", 1 << 20), expected);
    }

    #[test]
    fn elf_without_note_and_header_is_named_as_such() {
        let elf = image::tests::elf64(0x10_0000, &[(0x10_0000, 0x10_0000, b"code", 4)], None);
        assert_eq!(
            error(&elf, 2 << 20),
            "not a kernel: an ELF file without PVH note and multiboot header"
        );
    }

    #[test]
    fn memory_without_the_first_mebibyte_is_too_little() {
        let elf = image::tests::elf64(0x10_0000, &[(0x10_0000, 0x10_0000, b"code", 4)], Some(0x10_0000));
        assert!(error(&elf, 512 << 10).starts_with("too little memory"));
    }
}
