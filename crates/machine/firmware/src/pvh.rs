//! PVH boot protocol: an ELF kernel entered in 32-bit protected mode with the address of `hvm_start_info` in EBX.
//!
//! Version 1 of the structure: command line, RSDP, memory map, and the initrd as module 0.
//!
//! Spec: Xen docs/misc/pvh.markdown, Xen public/arch-x86/hvm/start_info.h.

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
use crate::image::Image;
use crate::layout;
use crate::layout::Ram;
use crate::linux::place_initrd;

/// `xEn3` with the top bit of the E set.
const START_MAGIC: u32 = 0x336e_c578;

/// hvm_start_info.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    cmdline: u64,
    rsdp: u64,
    memmap: u64,
    memmap_entries: u32,
    reserved: u32,
}

/// hvm_modlist_entry.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Module {
    start: u64,
    len: u64,
    cmdline: u64,
    reserved: u64,
}

/// hvm_memmap_table_entry.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct MapEntry {
    start: u64,
    len: u64,
    kind: u32,
    reserved: u32,
}

/// Loads `image` and enters it at `entry`, the address of its PVH note.
pub(crate) fn load(
    memory: &GuestMemory,
    ram: &Ram,
    request: &BootRequest<'_>,
    image: &Image<'_>,
    entry: u32,
) -> Result<Loaded, BootError> {
    check_command_line(request.cmdline, COMMAND_LINE_MAX)?;
    let used = image.check(ram)?;
    if !used.iter().any(|r| r.contains(&entry.into())) {
        return Err(BootError::Damaged("its PVH entry point lies outside its segments"));
    }
    let kernel_end = ram.low_end_of(&used);
    let initrd = match request.module() {
        Some(initrd) => Some(place_initrd(ram, initrd, kernel_end, ram.low_end())?),
        None => None,
    };

    bios_data::write(memory, &request.screen)?;
    image.write(memory)?;
    let mut arena = Arena::new(memory, &used)?;
    let mut state = entry::protected_32(&mut arena, entry)?;
    let mut module_list = 0;
    if let (Some(place), Some(data)) = (&initrd, request.module()) {
        memory.write(place.start, data)?;
        let module = Module {
            start: place.start,
            len: place.end - place.start,
            cmdline: 0,
            reserved: 0,
        };
        module_list = arena.put(module.as_bytes(), 16)?;
    }
    let map = memory_map(memory);
    let info = StartInfo {
        magic: START_MAGIC,
        version: 1,
        flags: 0,
        modules: initrd.is_some().into(),
        module_list: module_list.into(),
        cmdline: arena.put_text(request.cmdline)?.into(),
        rsdp: request.rsdp,
        memmap: arena.put(map.as_bytes(), 16)?.into(),
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    state.gpr[entry::RBX] = arena.put(info.as_bytes(), 16)?.into();
    Ok(Loaded {
        state,
        kind: BootKind::Pvh,
        entry: entry.into(),
        kernel: span(&used),
        initrd,
    })
}

/// From the first byte to the last of `ranges`.
pub(crate) fn span(ranges: &[std::ops::Range<u64>]) -> std::ops::Range<u64> {
    let start = ranges.iter().map(|r| r.start).min().unwrap_or(0);
    let end = ranges.iter().map(|r| r.end).max().unwrap_or(0);
    start..end
}

fn memory_map(memory: &GuestMemory) -> Vec<MapEntry> {
    layout::memory_map(memory)
        .into_iter()
        .map(|e| MapEntry {
            start: e.start,
            len: e.len,
            kind: e.kind as u32,
            reserved: 0,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use x86_isa::cr0;

    use super::*;
    use crate::boot;
    use crate::image::tests::elf64;
    use crate::layout::tests::memory;

    #[test]
    fn pvh_kernel_finds_everything_through_ebx() {
        let memory = memory(16 << 20);
        let kernel = elf64(0, &[(0, 0x10_0000, b"entry", 0x1000)], Some(0x10_0000));
        let request = BootRequest {
            kernel: &kernel,
            initrd: Some(b"initrd"),
            cmdline: "console=ttyS0",
            rsdp: 0xe_0000,
            ..BootRequest::default()
        };
        let loaded = boot::load(&memory, &request).unwrap();
        assert_eq!(loaded.kind.name(), "pvh");
        assert_eq!((loaded.entry, loaded.state.rip), (0x10_0000, 0x10_0000));
        assert_eq!(loaded.state.cr0, cr0::PE | cr0::ET);
        let info = loaded.state.gpr[entry::RBX];
        let dword = |at: u64| memory.read_obj::<u32>(at).unwrap();
        let qword = |at: u64| memory.read_obj::<u64>(at).unwrap();
        assert_eq!((dword(info), dword(info + 4), dword(info + 12)), (START_MAGIC, 1, 1));
        let module = qword(info + 16);
        let initrd = loaded.initrd.unwrap();
        assert_eq!((qword(module), qword(module + 8)), (initrd.start, 6));
        assert_eq!(memory.read_obj::<[u8; 6]>(initrd.start).unwrap(), *b"initrd");
        assert_eq!(
            memory.read_obj::<[u8; 14]>(qword(info + 24)).unwrap(),
            *b"console=ttyS0\0"
        );
        assert_eq!(qword(info + 32), 0xe_0000);
        let (map, entries) = (qword(info + 40), dword(info + 48));
        assert_eq!(entries, 3);
        assert_eq!(
            (qword(map + 48), qword(map + 56), dword(map + 64)),
            (layout::MIB, 15 << 20, 1)
        );
    }

    #[test]
    fn entry_outside_the_segments_is_refused() {
        let kernel = elf64(0, &[(0, 0x10_0000, b"entry", 0x1000)], Some(0x10_1000));
        let request = BootRequest {
            kernel: &kernel,
            ..BootRequest::default()
        };
        assert!(matches!(
            boot::load(&memory(16 << 20), &request),
            Err(BootError::Damaged(_))
        ));
    }
}
