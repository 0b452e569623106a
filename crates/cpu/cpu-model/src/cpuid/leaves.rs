//! CPUID leaves: the registers that the instruction returns.
//!
//! All basic leaves up to 1Fh, extended leaves up to 80000008h, and two groups of hypervisor leaves. KVM's come first,
//! with what we have of its interface, since some guests look for its signature nowhere else; our own signature is at
//! 40000100h. Without KVM's ours is the first, and without the hypervisor's bit in leaf 1 there are none. TSC and bus frequencies are at 40000010h where guests of several
//! hypervisors look for them. Leaves of
//! features that the CPU does not have (performance monitoring, SGX, processor trace, …) read as zero.
//!
//! Spec: SDM vol. 2A "CPUID"; vol. 1 §13.2 (leaf 0Dh); vol. 3 §9.9 (topology); KVM cpuid.rst.

use super::BUS_HZ;
use super::CpuPolicy;
use super::CpuidContext;
use super::Feature;
use super::TSC_HZ;
use super::XSAVE_COMPONENTS;
use super::XsaveComponent;
use super::feature::Word;
use x86_isa::cr4;

/// EAX, EBX, ECX, EDX.
pub(super) type Leaf = [u32; 4];

const MAX_BASIC: u32 = 0x1f;
const HYPERVISOR: u32 = 0x4000_0000;
const MAX_HYPERVISOR: u32 = 0x4000_0010;
const KVM_FEATURES: u32 = 0x4000_0001;
const SECOND_HYPERVISOR: u32 = 0x4000_0100;
const EXTENDED: u32 = 0x8000_0000;
const MAX_EXTENDED: u32 = 0x8000_0008;

const VENDOR: &[u8; 12] = b"GenuineIntel";
const HYPERVISOR_VENDOR: &[u8; 12] = b"OxbowOxbowOx";
const KVM_VENDOR: &[u8; 12] = b"KVMKVMKVM\0\0\0";

/// Family 6, model AFh, stepping 3. A recent server model: guests know of no errata that have to be worked around and
/// are not told off by [`CpuPolicy::arch_capabilities`]. It is one without AVX-512: some programs choose their code by the
/// model alone.
const SIGNATURE: u32 = 0x000a_06f3;

/// Bytes of a cache line.
const LINE: u32 = 64;

/// The legacy region and the header of an XSAVE area.
const XSAVE_HEADER_END: u32 = 576;

/// Physical address width, as the page walkers have it.
const PHYSICAL_BITS: u32 = 40;

/// XCR0: x87 and SSE, which every processor with XSAVE has.
const XCR0_LEGACY: u64 = 3;

/// A cache of leaf 4.
struct Cache {
    /// 1 data, 2 instructions, 3 unified.
    kind: u32,
    level: u32,
    ways: u32,
    sets: u32,
    /// One for the package, or one for each core.
    shared: bool,
}

#[rustfmt::skip]
const CACHES: [Cache; 4] = [
    Cache { kind: 1, level: 1, ways:  8, sets:    64, shared: false },
    Cache { kind: 2, level: 1, ways:  8, sets:    64, shared: false },
    Cache { kind: 3, level: 2, ways: 16, sets:  1024, shared: false },
    Cache { kind: 3, level: 3, ways: 16, sets: 16384, shared: true  },
];

impl CpuPolicy {
    /// What CPUID returns in EAX, EBX, ECX and EDX.
    #[must_use]
    pub fn cpuid(&self, leaf: u32, subleaf: u32, ctx: &CpuidContext) -> [u32; 4] {
        match leaf {
            0..=MAX_BASIC => self.basic(leaf, subleaf, ctx),
            HYPERVISOR..=MAX_HYPERVISOR if self.has(Feature::Hypervisor) => self.hypervisor(leaf),
            SECOND_HYPERVISOR if self.has_hypercalls() => signature(SECOND_HYPERVISOR, HYPERVISOR_VENDOR),
            EXTENDED..=MAX_EXTENDED => self.extended(leaf),
            // Beyond either range an Intel processor returns the data of the highest basic leaf.
            _ => self.basic(MAX_BASIC, subleaf, ctx),
        }
    }

    /// Family, model and stepping: EAX of leaf 1, and EDX after reset.
    #[must_use]
    pub const fn signature(&self) -> u32 {
        SIGNATURE
    }

    /// The components that XCR0 may enable. Zero when there is no XSAVE.
    #[must_use]
    pub fn xcr0_mask(&self) -> u64 {
        if !self.has(Feature::Xsave) {
            return 0;
        }
        let add = |mask: u64, c: &XsaveComponent| if self.has(c.feature) { mask | 1 << c.index } else { mask };
        XSAVE_COMPONENTS.iter().fold(XCR0_LEGACY, add)
    }

    fn word(&self, word: Word) -> u32 {
        self.words[word as usize]
    }

    fn basic(&self, leaf: u32, subleaf: u32, ctx: &CpuidContext) -> Leaf {
        match leaf {
            0x00 => {
                let [ebx, edx, ecx] = words(VENDOR);
                [MAX_BASIC, ebx, ecx, edx]
            }
            0x01 => self.version(ctx),
            // Descriptors FFh ("see leaf 4"), F0h (64-byte prefetch) and those of a two-level TLB.
            0x02 => [0x7603_6301, 0x00f0_b6ff, 0, 0x00c3_0000],
            0x04 => self.cache(subleaf),
            // ARAT: the local APIC's timer never stops.
            0x06 => [1 << 2, 0, 0, 0],
            0x07 if subleaf == 0 => {
                let mut ecx = self.word(Word::Leaf7Ecx);
                if self.has(Feature::Pku) && ctx.cr4 & cr4::PKE != 0 {
                    // OSPKE.
                    ecx |= 1 << 4;
                }
                let last = if self.word(Word::Leaf7Sub2Edx) != 0 { 2 } else { 0 };
                [last, self.word(Word::Leaf7Ebx), ecx, self.word(Word::Leaf7Edx)]
            }
            0x07 if subleaf == 2 => [0, 0, 0, self.word(Word::Leaf7Sub2Edx)],
            0x0b | 0x1f => self.topology(subleaf, ctx),
            0x0d => self.xsave(subleaf, ctx),
            // TSC = crystal × EBX / EAX. Linux takes the crystal for the clock of the local APIC's timer.
            0x15 => [1, (TSC_HZ / BUS_HZ) as u32, BUS_HZ as u32, 0],
            // Base, maximum and bus frequency in MHz.
            0x16 => [(TSC_HZ / 1_000_000) as u32, (TSC_HZ / 1_000_000) as u32, 100, 0],
            _ => [0; 4],
        }
    }

    fn version(&self, ctx: &CpuidContext) -> Leaf {
        let ids = (1 << self.core_bits()).min(0xff_u32);
        let ebx = (LINE / 8) << 8 | ids << 16 | (ctx.apic_id & 0xff) << 24;
        let mut ecx = self.word(Word::Leaf1Ecx);
        if self.has(Feature::Xsave) && ctx.cr4 & cr4::OSXSAVE != 0 {
            ecx |= 1 << 27;
        }
        let mut edx = self.word(Word::Leaf1Edx);
        if !ctx.apic_enabled {
            edx &= !(1 << 9);
        }
        [SIGNATURE, ebx, ecx, edx]
    }

    fn cache(&self, subleaf: u32) -> Leaf {
        let Some(cache) = CACHES.get(subleaf as usize) else {
            return [0; 4];
        };
        let ids = 1_u32 << self.core_bits();
        let sharing = if cache.shared { ids.min(0x1000) - 1 } else { 0 };
        let cores = ids.min(0x40) - 1;
        // Self-initialising.
        let eax = cache.kind | cache.level << 5 | 1 << 8 | sharing << 14 | cores << 26;
        [eax, (LINE - 1) | ((cache.ways - 1) << 22), cache.sets - 1, 0]
    }

    /// One thread to a core, all cores in one package: leaf 0Bh or 1Fh.
    fn topology(&self, subleaf: u32, ctx: &CpuidContext) -> Leaf {
        const THREAD: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        let level = subleaf & 0xff;
        match subleaf {
            0 => [0, 1, level | THREAD, ctx.apic_id],
            1 => [self.core_bits(), self.cpus.min(0xffff), level | CORE, ctx.apic_id],
            _ => [0, 0, level, ctx.apic_id],
        }
    }

    /// Bits of an APIC ID that number the package's cores.
    fn core_bits(&self) -> u32 {
        self.cpus.next_power_of_two().trailing_zeros()
    }

    fn xsave(&self, subleaf: u32, ctx: &CpuidContext) -> Leaf {
        let mask = self.xcr0_mask();
        if mask == 0 {
            return [0; 4];
        }
        match subleaf {
            0 => [
                mask as u32,
                standard_size(ctx.xcr0 & mask),
                standard_size(mask),
                (mask >> 32) as u32,
            ],
            1 => {
                let compacts = self.has(Feature::Xsavec);
                let size = if compacts { compacted_size(ctx.xcr0 & mask) } else { 0 };
                [self.word(Word::LeafD1Eax), size, 0, 0]
            }
            _ => XSAVE_COMPONENTS
                .iter()
                .find(|c| c.index == subleaf && self.has(c.feature))
                .map_or([0; 4], |c| [c.size, c.offset, 0, 0]),
        }
    }

    fn hypervisor(&self, leaf: u32) -> Leaf {
        match leaf {
            HYPERVISOR if self.has_hypercalls() => signature(MAX_HYPERVISOR, KVM_VENDOR),
            HYPERVISOR => signature(MAX_HYPERVISOR, HYPERVISOR_VENDOR),
            // No hints: EDX stays zero.
            KVM_FEATURES => [self.word(Word::KvmEax), 0, 0, 0],
            // TSC and local APIC timer in kHz.
            MAX_HYPERVISOR => [(TSC_HZ / 1000) as u32, (BUS_HZ / 1000) as u32, 0, 0],
            _ => [0; 4],
        }
    }

    fn extended(&self, leaf: u32) -> Leaf {
        match leaf & 0xff {
            0x00 => [MAX_EXTENDED, 0, 0, 0],
            0x01 => [0, 0, self.word(Word::Ext1Ecx), self.word(Word::Ext1Edx)],
            part @ 2..=4 => self.brand(part - 2),
            // L2: size in KiB, 16 ways (code 8), line size.
            0x06 => {
                let l2 = &CACHES[2];
                [0, 0, (l2.ways * l2.sets * LINE / 1024) << 16 | 8 << 12 | LINE, 0]
            }
            0x07 => [0, 0, 0, self.word(Word::Ext7Edx)],
            0x08 => {
                let linear = if self.has(Feature::La57) { 57 } else { 48 };
                [PHYSICAL_BITS | linear << 8, self.word(Word::Ext8Ebx), 0, 0]
            }
            _ => [0; 4],
        }
    }

    /// 16 of the brand string's 48 bytes.
    fn brand(&self, part: u32) -> Leaf {
        let text = format!("Oxbow Virtual CPU ({})", self.model);
        let mut bytes = [0; 16];
        let rest = text.as_bytes().iter().skip(16 * part as usize);
        for (byte, &from) in bytes.iter_mut().zip(rest) {
            *byte = from;
        }
        words(&bytes)
    }
}

/// The first leaf of a group that ends with leaf `last`.
fn signature(last: u32, vendor: &[u8; 12]) -> Leaf {
    let [ebx, ecx, edx] = words(vendor);
    [last, ebx, ecx, edx]
}

/// Text as registers hold it.
fn words<const BYTES: usize, const WORDS: usize>(text: &[u8; BYTES]) -> [u32; WORDS] {
    const { assert!(BYTES == 4 * WORDS, "a register holds four characters") };
    std::array::from_fn(|i| u32::from_le_bytes(std::array::from_fn(|j| text[4 * i + j])))
}

/// Size of the XSAVE area in the standard format: up to the end of the highest component.
fn standard_size(components: u64) -> u32 {
    let end = |c: &XsaveComponent| {
        if components >> c.index & 1 != 0 {
            c.offset + c.size
        } else {
            0
        }
    };
    XSAVE_COMPONENTS.iter().map(end).fold(XSAVE_HEADER_END, u32::max)
}

/// Size of the XSAVE area in the compacted format. No component asks for alignment.
fn compacted_size(components: u64) -> u32 {
    let size = |c: &XsaveComponent| if components >> c.index & 1 != 0 { c.size } else { 0 };
    XSAVE_HEADER_END + XSAVE_COMPONENTS.iter().map(size).sum::<u32>()
}
