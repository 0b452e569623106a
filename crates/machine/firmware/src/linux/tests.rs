//! Tests of the Linux boot protocol, on images that are all header.

use proptest::prelude::*;
use x86_isa::Seg;
use x86_isa::attr;
use x86_isa::cr0;
use x86_isa::efer;
use x86_isa::flags;

use super::*;
use crate::boot;
use crate::layout::tests::memory;
use crate::video::Linear;
use crate::video::Mode;
use crate::video::Screen;

/// A bzImage of protocol 2.15 with a 64-bit entry point, preferred address 16 MiB, and 4 MiB of init size.
pub(crate) fn bz_image() -> Vec<u8> {
    let mut file = vec![0; 2 * 512 + 0x2000];
    set(&mut file, header::SETUP_SECTS, &[1]);
    set(&mut file, header::SYSSIZE, &0x200u32.to_le_bytes());
    set(&mut file, header::BOOT_FLAG, &[0x55, 0xaa, 0xeb, 0x6a]);
    set(&mut file, header::MAGIC, b"HdrS\x0f\x02");
    set(&mut file, header::LOADFLAGS, &[LOADED_HIGH]);
    set(&mut file, header::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
    set(&mut file, header::KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
    set(&mut file, header::RELOCATABLE_KERNEL, &[1]);
    set(&mut file, header::XLOADFLAGS, &[0x7f]);
    set(&mut file, header::CMDLINE_SIZE, &2047u32.to_le_bytes());
    set(&mut file, header::PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
    set(&mut file, header::INIT_SIZE, &0x40_0000u32.to_le_bytes());
    file[1024..].fill(0x90);
    file
}

fn request(kernel: &[u8]) -> BootRequest<'_> {
    BootRequest {
        kernel,
        cmdline: "quiet",
        rsdp: 0xe_0000,
        ..BootRequest::default()
    }
}

#[test]
fn kernel_with_a_64_bit_entry_starts_in_long_mode_at_its_preferred_address() {
    let memory = memory(64 << 20);
    let loaded = boot::load(&memory, &request(&bz_image())).unwrap();
    assert_eq!(loaded.kind.name(), "linux-64");
    assert_eq!((loaded.entry, loaded.state.rip), (0x100_0200, 0x100_0200));
    assert_eq!(loaded.state.rflags, flags::FIXED);
    assert_ne!(loaded.state.cr0 & cr0::PG, 0);
    assert_ne!(loaded.state.msrs.efer & efer::LMA, 0);
    let code = loaded.state.segments[Seg::Cs as usize];
    assert_eq!((code.selector, code.attr & (attr::L | attr::DB)), (0x10, attr::L));
    assert_eq!(loaded.state.segments[Seg::Ds as usize].selector, 0x18);
    assert_eq!(memory.read_obj::<u32>(loaded.entry).unwrap(), 0x9090_9090);
}

#[test]
fn zero_page_holds_header_command_line_map_and_rsdp() {
    let memory = memory(64 << 20);
    let initrd = vec![0xa5; 5000];
    let file = bz_image();
    let request = BootRequest {
        initrd: Some(&initrd),
        ..request(&file)
    };
    let loaded = boot::load(&memory, &request).unwrap();
    let page = loaded.state.gpr[entry::RSI];
    let dword = |at: usize| memory.read_obj::<u32>(page + at as u64).unwrap();
    let qword = |at: usize| memory.read_obj::<u64>(page + at as u64).unwrap();
    assert_eq!(dword(header::MAGIC), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(dword(header::CODE32_START), 0x100_0000);
    assert_eq!(dword(header::TYPE_OF_LOADER) & 0xff, 0xff);
    let cmdline = memory.read_obj::<[u8; 6]>(dword(header::CMD_LINE_PTR).into()).unwrap();
    assert_eq!(cmdline, *b"quiet\0");
    assert_eq!(qword(zero_page::ACPI_RSDP_ADDR), 0xe_0000);
    let place = loaded.initrd.unwrap();
    assert_eq!(place, (64 << 20) - 8192..(64 << 20) - 8192 + 5000);
    assert_eq!(u64::from(dword(header::RAMDISK_IMAGE)), place.start);
    assert_eq!(dword(header::RAMDISK_SIZE), 5000);
    assert_eq!(memory.read_obj::<[u8; 2]>(place.end - 1).unwrap(), [0xa5, 0]);
    assert_eq!(dword(zero_page::E820_ENTRIES) & 0xff, 3);
    assert_eq!(qword(zero_page::E820_TABLE + 40), layout::MIB);
    assert_eq!(qword(zero_page::E820_TABLE + 48), 63 << 20);
    assert_eq!(dword(zero_page::ALT_MEM_K), 63 << 10);
    assert_eq!(dword(header::INIT_SIZE), 0x40_0000);
    assert_eq!(dword(header::INIT_SIZE + 12), 0, "bytes past the header are not copied");
}

#[test]
fn kernel_without_64_bit_entry_starts_in_protected_mode() {
    let memory = memory(64 << 20);
    let mut file = bz_image();
    set(&mut file, header::XLOADFLAGS, &[0]);
    let loaded = boot::load(&memory, &request(&file)).unwrap();
    assert_eq!(loaded.kind.name(), "linux-32");
    assert_eq!(loaded.entry, 0x100_0000);
    assert_eq!(loaded.state.cr0, cr0::PE | cr0::ET);
    assert_eq!(loaded.state.segments[Seg::Cs as usize].selector, 0x10);
}

#[test]
fn kernel_of_an_old_protocol_is_put_at_1_mib() {
    let memory = memory(64 << 20);
    let mut file = bz_image();
    set(&mut file, header::VERSION, &[3, 2]);
    let loaded = boot::load(&memory, &request(&file)).unwrap();
    assert_eq!((loaded.kind, loaded.entry), (BootKind::Linux32, layout::MIB));
    set(&mut file, header::VERSION, &[1, 2]);
    let error = boot::load(&memory, &request(&file)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the kernel is too old: its boot protocol is 2.01, and 2.02 is needed"
    );
}

#[test]
fn kernel_that_cannot_be_relocated_is_put_at_1_mib_and_needs_its_preferred_memory() {
    let mut file = bz_image();
    set(&mut file, header::RELOCATABLE_KERNEL, &[0]);
    let loaded = boot::load(&memory(20 << 20), &request(&file)).unwrap();
    assert_eq!(
        (loaded.entry, loaded.kernel),
        (layout::MIB + 0x200, layout::MIB..20 << 20)
    );
    assert!(boot::load(&memory(19 << 20), &request(&file)).is_err());
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let file = bz_image();
    let error = boot::load(&memory(19 << 20), &request(&file)).unwrap_err().to_string();
    assert_eq!(
        error,
        "too little memory: the kernel and its initrd need 20 MiB below 3 GiB, the guest has 19 MiB"
    );
    let initrd = vec![0; 3 << 20];
    let request = BootRequest {
        initrd: Some(&initrd),
        ..request(&file)
    };
    assert!(matches!(
        boot::load(&memory(22 << 20), &request),
        Err(BootError::TooLittleMemory { have: 0x160_0000, .. })
    ));
    assert!(boot::load(&memory(23 << 20), &request).is_ok());
}

#[test]
fn initrd_stays_below_the_kernel_s_limit() {
    let mut file = bz_image();
    set(&mut file, header::INITRD_ADDR_MAX, &0x17f_ffffu32.to_le_bytes());
    let memory = memory(64 << 20);
    let small = vec![0; 1 << 20];
    let request = BootRequest {
        initrd: Some(&small),
        ..request(&file)
    };
    let place = boot::load(&memory, &request).unwrap().initrd.unwrap();
    assert_eq!(place.end, 0x180_0000);
    let large = vec![0; 5 << 20];
    let request = BootRequest {
        initrd: Some(&large),
        ..request
    };
    assert_eq!(
        boot::load(&memory, &request).unwrap_err().to_string(),
        "the initrd is too large for this kernel: 5 MiB, and 4 MiB have room"
    );
}

#[test]
fn command_line_longer_than_the_kernel_takes_is_refused() {
    let file = bz_image();
    let line = "x".repeat(2048);
    let memory = memory(64 << 20);
    let request = |cmdline| BootRequest {
        cmdline,
        ..request(&file)
    };
    assert!(boot::load(&memory, &request(&line[1..])).is_ok());
    assert!(matches!(
        boot::load(&memory, &request(&line)),
        Err(BootError::CommandLine { len: 2048, max: 2047 })
    ));
}

#[test]
fn truncated_kernel_is_refused() {
    let file = bz_image();
    let memory = memory(64 << 20);
    for len in [0x206, 0x250, 1024, 1024 + 0x200, file.len() - 16] {
        assert!(
            matches!(
                boot::load(&memory, &request(&file[..len])),
                Err(BootError::Truncated(_))
            ),
            "{len:#x}"
        );
    }
}

#[test]
fn second_load_leaves_nothing_of_the_first() {
    let (used, fresh) = (memory(64 << 20), memory(64 << 20));
    used.write(0x8000, &[0xff; 0x2_0000]).unwrap();
    let file = bz_image();
    let state = boot::load(&used, &request(&file)).unwrap().state;
    assert_eq!(state, boot::load(&fresh, &request(&file)).unwrap().state);
    let page = |memory: &GuestMemory| memory.read_obj::<[u8; 4096]>(state.gpr[entry::RSI]).unwrap();
    assert_eq!(page(&used), page(&fresh));
}

proptest! {
    #[test]
    fn corrupted_header_never_panics(changes in prop::collection::vec((0x1f1usize..0x268, any::<u8>()), 0..12),
                                     len in 0usize..=0x2400, initrd in 0usize..0x40_0000) {
        let mut file = bz_image();
        for (at, value) in changes {
            file[at] = value;
        }
        file.truncate(len.max(0x210));
        let initrd = vec![0; initrd];
        let memory = memory(24 << 20);
        let request = BootRequest { initrd: Some(&initrd), ..request(&file) };
        if let Ok(loaded) = boot::load(&memory, &request) {
            prop_assert!(loaded.kernel.end <= 24 << 20);
            if let Some(place) = loaded.initrd {
                prop_assert!(place.start >= loaded.kernel.end && place.end <= 24 << 20);
            }
        }
    }
}

#[test]
fn zero_page_tells_what_the_screen_shows() {
    let file = bz_image();
    let page = |screen| {
        let memory = memory(64 << 20);
        let request = BootRequest {
            screen,
            ..request(&file)
        };
        let loaded = boot::load(&memory, &request).unwrap();
        let page = memory.read_obj::<[u8; 64]>(loaded.state.gpr[entry::RSI]).unwrap();
        (page, memory.read_obj::<[u8; 2]>(0x449).unwrap())
    };
    let (dark, data_area) = page(Screen::None);
    assert_eq!((dark[0xf], data_area), (0, [0, 0]));
    let (text, data_area) = page(Screen::Text);
    assert_eq!(
        (text[0x6], text[0x7], text[0xe], text[0xf], text[0x10]),
        (3, 80, 25, 1, 16)
    );
    assert_eq!(data_area, [3, 80]);
    let mode = Mode {
        width: 800,
        height: 600,
        bits: 16,
    };
    let (base, len) = (0xe000_0000, 16 << 20);
    let (pixels, _) = page(Screen::Linear(Linear { base, len, mode }));
    assert_eq!(pixels[0xf], 0x23);
    assert_eq!(pixels[0x12..0x20], [32, 3, 88, 2, 16, 0, 0, 0, 0, 0xe0, 0, 1, 0, 0]);
    assert_eq!(pixels[0x24..0x2e], [0x40, 6, 5, 11, 6, 5, 5, 0, 0, 0]);
}
