//! Kernel files in every boot protocol.
//!
//! ```text
//!   byte 0      template: which headers are put into the file, so that the loader comes past its first checks
//!   byte 1      memory size, CPUs
//!   bytes 2-3   length of the initrd, length of the command line
//!   rest        initrd, command line, kernel file
//! ```

use std::sync::Arc;

use firmware::BootRequest;
use firmware::Loaded;
use firmware::acpi::AcpiInput;
use firmware::layout;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;

use crate::input::Input;

/// Sizes of RAM; the second one ends within the kernel that most seeds hold.
const RAM: [u64; 4] = [0x8_0000, 0x11_0000, 0x20_0000, 0x80_0000];

/// Executes one input.
///
/// # Panics
/// When a loader panics, writes other than RAM, or returns what contradicts the machine.
pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let (template, machine) = (input.byte(), input.byte());
    let (initrd_len, cmdline_len) = (usize::from(input.byte()) * 16, input.byte());
    let initrd = input.bytes(initrd_len);
    let cmdline = String::from_utf8_lossy(input.bytes(cmdline_len.into()));
    let mut kernel = input.rest().to_vec();
    apply(template, &mut kernel);
    let memory = memory(RAM[usize::from(machine & 3)]);
    let acpi = AcpiInput {
        apic_ids: (0..u32::from(machine >> 2)).collect(),
        hpet: machine & 4 != 0,
        i8042: machine & 8 != 0,
        ..AcpiInput::default()
    };
    let rsdp = firmware::acpi::build(&acpi, &memory).map_or(0, |tables| tables.rsdp);
    let request = BootRequest {
        kernel: &kernel,
        kernel_name: "kernel",
        initrd: Some(initrd),
        initrd_name: "initrd",
        cmdline: &cmdline,
        rsdp,
        screen: firmware::video::Screen::None,
    };
    match firmware::load(&memory, &request) {
        Ok(loaded) => check(&memory, &loaded, initrd),
        Err(error) => assert!(!error.to_string().contains('\n'), "one line"),
    }
}

fn memory(bytes: u64) -> GuestMemory {
    let mut memory = GuestMemory::new();
    let region = MemoryRegion::new("ram", Kind::Ram, bytes).expect("the host has a few MiB");
    memory.add(0, Arc::new(region)).expect("the memory is empty");
    memory
}

/// What holds for every kernel that was loaded.
fn check(memory: &GuestMemory, loaded: &Loaded, initrd: &[u8]) {
    let ram = memory.ram_bytes();
    let kernel = &loaded.kernel;
    assert!(kernel.start < kernel.end, "kernel in {kernel:x?}");
    assert!(kernel.end <= ram, "kernel in {kernel:x?} of {ram:#x}");
    assert!(loaded.entry < ram, "entry at {:#x} of {ram:#x}", loaded.entry);
    assert_eq!(loaded.state.rip, loaded.entry);
    assert_eq!(loaded.initrd.is_some(), !initrd.is_empty());
    if let Some(range) = &loaded.initrd {
        assert_eq!(range.end - range.start, initrd.len() as u64);
        assert!(range.end <= ram, "initrd in {range:x?} of {ram:#x}");
        assert!(range.start >= layout::MIB, "initrd in {range:x?}");
        assert!(
            range.end <= kernel.start || kernel.end <= range.start,
            "{range:x?} over {kernel:x?}"
        );
        let mut copy = vec![0; initrd.len()];
        memory.read(range.start, &mut copy).expect("the range is RAM");
        assert_eq!(copy, initrd);
    }
    let gdtr = loaded.state.gdtr;
    assert!(gdtr.base + u64::from(gdtr.limit) < ram, "GDT at {:#x}", gdtr.base);
}

/// Puts the headers in that make a file a kernel at first sight. What else the file holds stays.
fn apply(template: u8, file: &mut Vec<u8>) {
    match template % 7 {
        1 => {
            put(file, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
            put(file, 0x202, b"HdrS");
        }
        2 => put(file, 0, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0"),
        3 => put(file, 0, b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0"),
        4 => multiboot(file, 0),
        5 => {
            multiboot(file, 0x200);
            put(file, 0, b"\x7fELF\x01\x01\x01");
        }
        6 => {
            put(file, 0, b"\x7fELF\x02\x01\x01");
            // XEN_ELFNOTE_PHYS32_ENTRY, where the seeds' program header says there are notes.
            put(file, 0xb0, b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0");
        }
        _ => {}
    }
}

/// A multiboot header at `at`, with the checksum of the flags that are there.
fn multiboot(file: &mut Vec<u8>, at: usize) {
    put(file, at, &0x1bad_b002u32.to_le_bytes());
    let flags = file
        .get(at + 4..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_le_bytes);
    let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    put(file, at + 8, &checksum.to_le_bytes());
}

/// Overwrites the file at `at`, which grows as needed.
fn put(file: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    file.resize(file.len().max(end), 0);
    file[at..end].copy_from_slice(bytes);
}
