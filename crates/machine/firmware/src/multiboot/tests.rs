//! Tests of multiboot images: ELF of both classes, and address fields.

use proptest::prelude::*;
use x86_isa::cr0;

use super::*;
use crate::boot;
use crate::image::tests::elf32;
use crate::image::tests::elf64;
use crate::layout::tests::memory;

/// A header and 16 bytes of code.
fn header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(HEADER_MAGIC).wrapping_sub(flags);
    let mut bytes: Vec<u8> = [HEADER_MAGIC, flags, checksum]
        .iter()
        .chain(addresses)
        .flat_map(|word| word.to_le_bytes())
        .collect();
    bytes.extend([0x90; 16]);
    bytes
}

/// ELF data lies behind 52 + 2 * 32 or 64 + 2 * 56 bytes of headers: both are multiples of four.
fn elfs(code: &[u8]) -> [Vec<u8>; 2] {
    let parts = [(0x40_0000, 0x40_0000, code, 0x1_0000)];
    [elf32(0x40_000c, &parts, None), elf64(0x40_000c, &parts, None)]
}

fn text(memory: &GuestMemory, at: u32) -> String {
    let bytes: [u8; 64] = memory.read_obj(at.into()).unwrap();
    let end = bytes.iter().position(|b| *b == 0).unwrap();
    String::from_utf8(bytes[..end].to_vec()).unwrap()
}

#[test]
fn elf_of_either_class_is_entered_with_its_information() {
    for kernel in elfs(&header(3, &[])) {
        let memory = memory(128 << 20);
        let request = BootRequest {
            kernel: &kernel,
            kernel_name: "x86/apic.flat",
            cmdline: "-smp 2",
            initrd: Some(b"VAR=1\n"),
            initrd_name: "env",
            rsdp: 0,
            ..BootRequest::default()
        };
        let loaded = boot::load(&memory, &request).unwrap();
        assert_eq!(loaded.kind.name(), "multiboot");
        assert_eq!((loaded.entry, loaded.state.rip), (0x40_000c, 0x40_000c));
        assert_eq!(loaded.state.gpr[RAX], LOADER_MAGIC);
        assert_eq!(loaded.state.cr0, cr0::PE | cr0::ET);
        let info = loaded.state.gpr[entry::RBX];
        assert!(info < layout::EBDA);
        let word = |i: u64| memory.read_obj::<u32>(info + i * 4).unwrap();
        assert_eq!(word(0), 0x24f);
        assert_eq!((word(1), word(2)), (639, 127 << 10));
        assert_eq!(text(&memory, word(4)), "x86/apic.flat -smp 2");
        assert_eq!(text(&memory, word(16)), "oxbow");
        assert_eq!((word(5), word(11)), (1, 3 * 24));
        let module: [u32; 4] = memory.read_obj(word(6).into()).unwrap();
        assert_eq!(module[..2], [0x41_0000, 0x41_0006]);
        assert_eq!(text(&memory, module[0]), "VAR=1\n");
        assert_eq!(text(&memory, module[2]), "env");
        let entry: [u32; 6] = memory.read_obj(u64::from(word(12)) + 48).unwrap();
        assert_eq!(entry, [20, 0x10_0000, 0, 127 << 20, 0, 1]);
    }
}

#[test]
fn address_fields_load_a_plain_image() {
    let file = |fields: [u32; 5]| {
        let mut file = vec![0xcc; 64];
        file.extend(header(header_flag::ADDRESSES, &fields));
        file
    };
    let load = |file: &[u8]| {
        let memory = memory(4 << 20);
        memory.write(0x10_0000, &[0xee; 0x200]).unwrap();
        let request = BootRequest {
            kernel: file,
            ..BootRequest::default()
        };
        boot::load(&memory, &request).map(|loaded| (memory, loaded))
    };
    // From 16 bytes before the header to 4 bytes of code, then zeroes.
    let (memory, loaded) = load(&file([0x10_0010, 0x10_0000, 0x10_0034, 0x10_0100, 0x10_0030])).unwrap();
    assert_eq!((loaded.entry, loaded.kernel), (0x10_0030, 0x10_0000..0x10_0100));
    assert_eq!(memory.read_obj::<u32>(0x10_000c).unwrap(), 0xcccc_cccc);
    assert_eq!(memory.read_obj::<u32>(0x10_0010).unwrap(), HEADER_MAGIC);
    assert_eq!(memory.read_obj::<u64>(0x10_0030).unwrap(), 0x9090_9090);
    assert_eq!(memory.read_obj::<u64>(0x10_00fc).unwrap(), 0xeeee_eeee_0000_0000);
    // The whole file, without zeroed data.
    let (memory, loaded) = load(&file([0x10_0040, u32::MAX, 0, 0, 0x10_0060])).unwrap();
    assert_eq!(loaded.kernel, 0x10_0000..0x10_0070);
    assert_eq!(memory.read_obj::<u64>(0x10_006c).unwrap(), 0xeeee_eeee_9090_9090);
    for bad in [
        [0x10_0010, 0x10_0020, 0, 0, 0x10_0020],
        [0x10_0100, 0x10_0000, 0, 0, 0x10_0020],
        [0x10_0010, 0x10_0000, 0x10_0000 - 1, 0, 0x10_0020],
        [0x10_0010, 0x10_0000, 0, 0x10_0000 - 1, 0x10_0020],
        [0x10, u32::MAX, 0, 0, 0x10_0020],
        [0x10_0010, 0x10_0000, 0, 0, 0x20_0000],
    ] {
        assert!(matches!(load(&file(bad)), Err(BootError::Damaged(_))), "{bad:x?}");
    }
    assert!(matches!(
        load(&file([0x10_0010, 0x10_0000, 0x10_0100, 0, 0])),
        Err(BootError::Truncated(_))
    ));
}

#[test]
fn header_past_8_kib_or_with_a_wrong_sum_is_none() {
    let mut file = vec![0; SEARCH];
    file.extend(header(0, &[]));
    assert!(find(&file).is_none());
    let mut file = header(0, &[]);
    assert!(find(&file).is_some());
    file[8] ^= 1;
    assert!(find(&file).is_none());
}

#[test]
fn unknown_requirement_is_refused_and_a_video_wish_is_not() {
    let load = |flags| {
        let [kernel, _] = elfs(&header(flags, &[]));
        let request = BootRequest {
            kernel: &kernel,
            ..BootRequest::default()
        };
        boot::load(&memory(8 << 20), &request)
    };
    assert!(load(7).is_ok());
    assert!(matches!(load(8), Err(BootError::Unsupported(8))));
}

#[test]
fn kernel_in_low_memory_keeps_its_place_and_the_information_moves() {
    let code = header(0, &[]);
    let kernel = elf32(0x4000, &[(0x4000, 0x4000, &code, 0x1_0000)], None);
    let memory = memory(2 << 20);
    let request = BootRequest {
        kernel: &kernel,
        kernel_name: "realmode.flat",
        ..BootRequest::default()
    };
    let loaded = boot::load(&memory, &request).unwrap();
    assert!(loaded.state.gpr[entry::RBX] >= 0x1_4000);
    assert!(loaded.state.gdtr.base >= 0x1_4000);
    assert_eq!(memory.read_obj::<u32>(0x4000).unwrap(), HEADER_MAGIC);
}

proptest! {
    #[test]
    fn corrupted_image_never_panics(changes in prop::collection::vec((0usize..200, any::<u8>()), 0..8),
                                    fields in prop::collection::vec(any::<u32>(), 5), which in 0usize..4,
                                    len in 0usize..300) {
        let plain = header(header_flag::ADDRESSES, &fields);
        let code = header(0, &[]);
        let parts: [(u64, u64, &[u8], u64); 1] = [(0x10_0000, 0x10_0000, &code, 0x1000)];
        let mut file = match which {
            0 => elf32(0x10_0000, &parts, None),
            1 => elf64(0x10_0000, &parts, None),
            2 => elf64(0x10_0000, &parts, Some(0x10_0004)),
            _ => plain,
        };
        let last = file.len() - 1;
        for (at, value) in changes {
            file[at.min(last)] = value;
        }
        file.truncate(len.max(100));
        let memory = memory(2 << 20);
        let request = BootRequest { kernel: &file, initrd: Some(&[1; 5000]), ..BootRequest::default() };
        if let Ok(loaded) = boot::load(&memory, &request) {
            prop_assert!(loaded.kernel.end <= 2 << 20);
        }
    }
}
