//! Processor states at kernel entry points: flat 32-bit protected mode without paging, 64-bit mode on identity-mapped
//! page tables, and real mode after a sleep.
//!
//! Segments, control registers and the MSRs that firmware programs are complete; the rest is as after reset.
//!
//! Spec: SDM vol. 3 §3.4.5 (descriptors), §4.5 (4-level paging), §10.11 (MTRRs), §10.12 (PAT); ACPI 6.5 §16.3.2 (waking).

use cpu_model::CpuState;
use cpu_model::DescriptorTable;
use cpu_model::Msrs;
use cpu_model::SegmentState;
use x86_isa::Seg;
use x86_isa::attr;
use x86_isa::cr0;
use x86_isa::cr4;
use x86_isa::efer;
use x86_isa::flags;
use x86_isa::pte;

use crate::BootError;
use crate::arena::Arena;

/// Selector of the flat code segment: the Linux boot protocol's `__BOOT_CS`.
const CODE: u16 = 0x10;
/// Selector of the flat data segment: the Linux boot protocol's `__BOOT_DS`.
const DATA: u16 = 0x18;
/// Attributes of the flat code segments, less the bit of their width.
const CODE_ATTR: u16 = attr::P | attr::S | attr::CODE | attr::WRITABLE | attr::ACCESSED | attr::G;
/// Attributes of the flat data segment.
const DATA_ATTR: u16 = attr::P | attr::S | attr::WRITABLE | attr::ACCESSED | attr::DB | attr::G;
/// Type of a busy 32-bit or 64-bit TSS.
const TSS_BUSY: u16 = 0xb;
/// Type of an LDT.
const LDT: u16 = 0x2;

/// IA32_PAT after reset: WB, WT, UC-, UC, and the same again.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_MISC_ENABLE: fast strings.
const MISC_FAST_STRINGS: u64 = 1 << 0;
/// IA32_MTRR_DEF_TYPE: MTRRs enabled, default type write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Bytes of stack that a kernel may count on at its entry.
const STACK_LEN: u64 = 4096;
/// Size of a page mapped by a page-directory entry.
const LARGE_PAGE: u64 = 2 << 20;
/// Address space that the identity mapping covers.
const IDENTITY_GIB: u64 = 4;

/// The MSRs as firmware leaves them. They hold for every processor: the board must give them to the others too, or
/// kernels find fault with MTRRs that differ.
#[must_use]
pub fn firmware_msrs() -> Msrs {
    Msrs {
        pat: PAT_RESET,
        misc_enable: MISC_FAST_STRINGS,
        mtrr_def_type: MTRR_ENABLED_WRITE_BACK,
        ..Msrs::default()
    }
}

/// Flat 32-bit protected mode at `rip`, paging off, interrupts off. The descriptor table and a stack go into `arena`.
pub(crate) fn protected_32(arena: &mut Arena<'_>, rip: u32) -> Result<CpuState, BootError> {
    state(arena, CODE_ATTR | attr::DB, rip.into())
}

/// 64-bit mode at `rip`, the first 4 GiB identity-mapped, interrupts off. Tables and a stack go into `arena`.
pub(crate) fn long_64(arena: &mut Arena<'_>, rip: u64) -> Result<CpuState, BootError> {
    let mut state = state(arena, CODE_ATTR | attr::L, rip)?;
    state.cr3 = identity_map(arena)?.into();
    state.cr4 = cr4::PAE;
    state.cr0 |= cr0::PG;
    state.msrs.efer = efer::LME | efer::LMA;
    Ok(state)
}

/// Real mode at the waking vector of an operating system, interrupts off, out of the boot processor's state after reset.
#[must_use]
pub fn waking_state(reset: CpuState, vector: u32) -> CpuState {
    let mut state = reset;
    // 20 bits of address: CS is their upper 16, and IP their lower 4.
    let vector = vector & 0xf_ffff;
    if let Some(cs) = state.segments.get_mut(Seg::Cs as usize) {
        cs.selector = (vector >> 4) as u16;
        cs.base = u64::from(vector & !0xf);
    }
    state.rip = u64::from(vector & 0xf);
    // Caches on.
    state.cr0 = cr0::ET;
    state
}

fn state(arena: &mut Arena<'_>, code_attr: u16, rip: u64) -> Result<CpuState, BootError> {
    let segment = |selector, attr| SegmentState {
        selector,
        base: 0,
        limit: u32::MAX,
        attr,
    };
    let (code, data) = (segment(CODE, code_attr), segment(DATA, DATA_ATTR));
    let system = |limit, attr| SegmentState {
        selector: 0,
        base: 0,
        limit,
        attr,
    };
    let gdt = [0, 0, descriptor(&code), descriptor(&data)];
    let gdt: Vec<u8> = gdt.into_iter().flat_map(u64::to_le_bytes).collect();
    let gdtr = DescriptorTable {
        base: arena.put(&gdt, 16)?.into(),
        limit: (gdt.len() - 1) as u16,
    };
    let stack = arena.reserve(STACK_LEN, 16)?;
    let mut gpr = [0; 16];
    gpr[RSP] = u64::from(stack) + STACK_LEN;
    let mut segments = [data; 6];
    if let Some(cs) = segments.get_mut(Seg::Cs as usize) {
        *cs = code;
    }
    Ok(CpuState {
        gpr,
        rip,
        rflags: flags::FIXED,
        segments,
        ldtr: system(0, LDT | attr::UNUSABLE),
        tr: system(0x67, attr::P | TSS_BUSY),
        gdtr,
        cr0: cr0::PE | cr0::ET,
        xcr0: 1,
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        msrs: firmware_msrs(),
        ..CpuState::default()
    })
}

/// Index of RBX in [`CpuState::gpr`].
pub(crate) const RBX: usize = 3;
const RSP: usize = 4;
/// Index of RSI in [`CpuState::gpr`].
pub(crate) const RSI: usize = 6;

/// The 8-byte descriptor of a flat segment.
fn descriptor(segment: &SegmentState) -> u64 {
    let attr = u64::from(segment.attr);
    let limit = u64::from(segment.limit >> 12);
    (limit & 0xffff) | (attr & 0xff) << 40 | (limit >> 16) << 48 | (attr >> 8 & 0xf) << 52
}

/// Page tables that map the first 4 GiB to themselves with large pages; returns the root's address.
fn identity_map(arena: &mut Arena<'_>) -> Result<u32, BootError> {
    let link = |table: u32| u64::from(table) | pte::P | pte::RW;
    let mut pdpt = Vec::new();
    for gib in 0..IDENTITY_GIB {
        let directory: Vec<u64> = (0..512)
            .map(|i| (gib << 30) + i * LARGE_PAGE)
            .map(|page| page | pte::P | pte::RW | pte::PS)
            .collect();
        pdpt.push(link(put_table(arena, &directory)?));
    }
    let pdpt = put_table(arena, &pdpt)?;
    put_table(arena, &[link(pdpt)])
}

/// Writes one page table; entries that are not given are absent.
fn put_table(arena: &mut Arena<'_>, entries: &[u64]) -> Result<u32, BootError> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le_bytes()).collect();
    bytes.resize(4096, 0);
    arena.put(&bytes, 4096)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::memory;

    #[test]
    fn gdt_in_memory_matches_the_segment_registers() {
        let memory = memory(1 << 20);
        let mut arena = Arena::new(&memory, &[]).unwrap();
        let state = protected_32(&mut arena, 0x10_0000).unwrap();
        assert_eq!(state.gdtr.limit, 31);
        assert_eq!(memory.read_obj::<u64>(state.gdtr.base).unwrap(), 0);
        assert_eq!(
            memory.read_obj::<u64>(state.gdtr.base + 0x10).unwrap(),
            0x00cf_9b00_0000_ffff
        );
        assert_eq!(
            memory.read_obj::<u64>(state.gdtr.base + 0x18).unwrap(),
            0x00cf_9300_0000_ffff
        );
        assert_eq!(state.segments[Seg::Cs as usize].attr, 0xc9b);
        assert_eq!(state.segments[Seg::Ss as usize].attr, 0xc93);
        assert_eq!(state.cr0 & cr0::PG, 0);
        let long = long_64(&mut arena, 0x10_0200).unwrap();
        assert_eq!(
            memory.read_obj::<u64>(long.gdtr.base + 0x10).unwrap(),
            0x00af_9b00_0000_ffff
        );
    }

    #[test]
    fn long_mode_maps_every_large_page_of_4_gib_to_itself() {
        let memory = memory(1 << 20);
        let state = long_64(&mut Arena::new(&memory, &[]).unwrap(), 0).unwrap();
        let entry = |table: u64, index: u64| memory.read_obj::<u64>((table & !0xfff) + index * 8).unwrap();
        for linear in (0..4u64 << 30).step_by(LARGE_PAGE as usize) {
            let pdpt = entry(state.cr3, linear >> 39 & 511);
            let directory = entry(pdpt, linear >> 30 & 511);
            let page = entry(directory, linear >> 21 & 511);
            assert_eq!(page, linear | pte::P | pte::RW | pte::PS);
        }
        assert_eq!(entry(entry(state.cr3, 0), 4), 0);
        assert_eq!(state.msrs.efer, efer::LMA | efer::LME);
    }

    #[test]
    fn waking_vector_is_split_into_segment_and_offset() {
        let state = waking_state(CpuState::default(), 0xfff9_a125);
        let cs = state.segments[Seg::Cs as usize];
        assert_eq!((cs.selector, cs.base, state.rip), (0x9a12, 0x9_a120, 5));
    }

    #[test]
    fn stack_lies_inside_the_arena_and_below_what_follows() {
        let memory = memory(1 << 20);
        let mut arena = Arena::new(&memory, &[]).unwrap();
        let state = protected_32(&mut arena, 0).unwrap();
        let next = arena.put(&[0], 1).unwrap();
        assert_eq!(state.gpr[RSP], u64::from(next));
        assert_eq!(state.gpr[RSP] % 16, 0);
    }
}
