//! CPUID feature flags: their names, places, prerequisites, and sets of them.
//!
//! Only what the engines carry out has a row here; a flag without a row is never told to a guest.
//!
//! Spec: SDM vol. 2A "CPUID" tables 3-8, 3-10, 3-11 and leaves 07h, 0Dh, 80000001h; APM vol. 3 appendix E (80000008h);
//! KVM cpuid.rst (40000001h).

use std::fmt;

/// A register of a CPUID leaf that consists of feature flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    Leaf1Ecx,
    Leaf1Edx,
    Leaf7Ebx,
    Leaf7Ecx,
    Leaf7Edx,
    Leaf7Sub2Edx,
    LeafD1Eax,
    Ext1Ecx,
    Ext1Edx,
    Ext7Edx,
    Ext8Ebx,
    KvmEax,
}

impl Word {
    pub(super) const COUNT: usize = 12;

    /// Leaf, subleaf and number of the register (EAX 0, EBX 1, ECX 2, EDX 3); none for what is a hypervisor's.
    pub(super) const fn leaf(self) -> Option<(u32, u32, usize)> {
        Some(match self {
            Self::Leaf1Ecx => (1, 0, 2),
            Self::Leaf1Edx => (1, 0, 3),
            Self::Leaf7Ebx => (7, 0, 1),
            Self::Leaf7Ecx => (7, 0, 2),
            Self::Leaf7Edx => (7, 0, 3),
            Self::Leaf7Sub2Edx => (7, 2, 3),
            Self::LeafD1Eax => (0xd, 1, 0),
            Self::Ext1Ecx => (0x8000_0001, 0, 2),
            Self::Ext1Edx => (0x8000_0001, 0, 3),
            Self::Ext7Edx => (0x8000_0007, 0, 3),
            Self::Ext8Ebx => (0x8000_0008, 0, 1),
            Self::KvmEax => return None,
        })
    }
}

macro_rules! features {
    ($($word:ident { $($bit:literal $name:ident $text:literal $doc:literal;)* })*) => {
        /// An instruction-set or system feature that the CPU may have.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Feature {
            $($(#[doc = $doc] $name,)*)*
        }

        impl Feature {
            /// Every feature, in the order of the manual's leaves.
            pub const ALL: &[Self] = &[$($(Self::$name,)*)*];

            /// Its name as Linux prints it in `/proc/cpuinfo`; those of KVM are not printed there, and have their names
            /// from its header.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$name => $text,)*)* }
            }

            /// Where CPUID tells it.
            pub(super) const fn place(self) -> (Word, u32) {
                match self { $($(Self::$name => (Word::$word, $bit),)*)* }
            }
        }
    };
}

#[rustfmt::skip]
features! {
    Leaf1Ecx {
         0 Sse3         "pni"           "SSE3.";
         1 Pclmulqdq    "pclmulqdq"     "Carry-less multiplication.";
         9 Ssse3        "ssse3"         "SSSE3.";
        12 Fma          "fma"           "Fused multiply-add of three operands.";
        13 Cx16         "cx16"          "CMPXCHG16B.";
        17 Pcid         "pcid"          "Process-context identifiers.";
        19 Sse4_1       "sse4_1"        "SSE4.1.";
        20 Sse4_2       "sse4_2"        "SSE4.2.";
        21 X2apic       "x2apic"        "x2APIC mode.";
        22 Movbe        "movbe"         "MOVBE.";
        23 Popcnt       "popcnt"        "POPCNT.";
        24 TscDeadline  "tsc_deadline_timer" "TSC-deadline mode of the local APIC's timer.";
        25 Aes          "aes"           "AES-NI.";
        26 Xsave        "xsave"         "XSAVE, XRSTOR, XSETBV, XGETBV and XCR0.";
        28 Avx          "avx"           "AVX.";
        29 F16c         "f16c"          "Half-precision conversions.";
        30 Rdrand       "rdrand"        "RDRAND.";
        31 Hypervisor   "hypervisor"    "The processor is virtual.";
    }
    Leaf1Edx {
         0 Fpu          "fpu"           "x87 unit.";
         2 De           "de"            "Debugging extensions: CR4.DE and I/O breakpoints.";
         3 Pse          "pse"           "Page-size extension: 4 MiB pages.";
         4 Tsc          "tsc"           "Time-stamp counter.";
         5 Msr          "msr"           "RDMSR and WRMSR.";
         6 Pae          "pae"           "Physical-address extension.";
         7 Mce          "mce"           "Machine-check exception.";
         8 Cx8          "cx8"           "CMPXCHG8B.";
         9 Apic         "apic"          "Local APIC.";
        11 Sep          "sep"           "SYSENTER and SYSEXIT.";
        12 Mtrr         "mtrr"          "Memory-type range registers.";
        13 Pge          "pge"           "Global pages.";
        14 Mca          "mca"           "Machine-check architecture.";
        15 Cmov         "cmov"          "Conditional moves.";
        16 Pat          "pat"           "Page-attribute table.";
        17 Pse36        "pse36"         "36-bit addresses of 4 MiB pages.";
        19 Clflush      "clflush"       "CLFLUSH.";
        23 Mmx          "mmx"           "MMX.";
        24 Fxsr         "fxsr"          "FXSAVE and FXRSTOR.";
        25 Sse          "sse"           "SSE.";
        26 Sse2         "sse2"          "SSE2.";
        27 Ss           "ss"            "Self-snoop: changes of memory type need no cache flush.";
        28 Ht           "ht"            "The package has more than one logical processor.";
    }
    Leaf7Ebx {
         0 Fsgsbase     "fsgsbase"      "RDFSBASE and its kin.";
         1 TscAdjust    "tsc_adjust"    "IA32_TSC_ADJUST.";
         3 Bmi1         "bmi1"          "Bit manipulation, first group.";
         5 Avx2         "avx2"          "AVX2.";
         7 Smep         "smep"          "Supervisor-mode execution prevention.";
         8 Bmi2         "bmi2"          "Bit manipulation, second group.";
         9 Erms         "erms"          "Fast REP MOVSB and REP STOSB.";
        10 Invpcid      "invpcid"       "INVPCID.";
        18 Rdseed       "rdseed"        "RDSEED.";
        19 Adx          "adx"           "ADCX and ADOX.";
        20 Smap         "smap"          "Supervisor-mode access prevention.";
        23 Clflushopt   "clflushopt"    "CLFLUSHOPT.";
        24 Clwb         "clwb"          "CLWB.";
        29 Sha          "sha_ni"        "SHA-1 and SHA-256.";
    }
    Leaf7Ecx {
         2 Umip         "umip"          "User-mode instruction prevention.";
         3 Pku          "pku"           "Protection keys for user pages.";
        16 La57         "la57"          "5-level paging.";
        22 Rdpid        "rdpid"         "RDPID.";
        31 Pks          "pks"           "Protection keys for supervisor pages.";
    }
    Leaf7Edx {
         4 Fsrm         "fsrm"          "Fast short REP MOVSB.";
        26 SpecCtrl     "spec_ctrl"     "IA32_SPEC_CTRL.IBRS and IA32_PRED_CMD.IBPB.";
        29 ArchCapabilities "arch_capabilities" "IA32_ARCH_CAPABILITIES.";
    }
    Leaf7Sub2Edx {
         4 BhiCtrl      "bhi_ctrl"      "IA32_SPEC_CTRL.BHI_DIS_S.";
    }
    LeafD1Eax {
         0 Xsaveopt     "xsaveopt"      "XSAVEOPT.";
         1 Xsavec       "xsavec"        "XSAVEC and the compacted format.";
         2 Xgetbv1      "xgetbv1"       "XGETBV of the components in use.";
    }
    Ext1Ecx {
         0 LahfLm       "lahf_lm"       "LAHF and SAHF in 64-bit mode.";
         5 Abm          "abm"           "LZCNT.";
         8 Prefetchw    "3dnowprefetch" "PREFETCHW.";
    }
    Ext1Edx {
        11 Syscall      "syscall"       "SYSCALL and SYSRET.";
        20 Nx           "nx"            "Execute-disable bit of page tables.";
        26 Pdpe1gb      "pdpe1gb"       "1 GiB pages.";
        27 Rdtscp       "rdtscp"        "RDTSCP and IA32_TSC_AUX.";
        29 Lm           "lm"            "Long mode.";
    }
    Ext7Edx {
         8 InvariantTsc "nonstop_tsc"   "The TSC runs at one rate in every power state.";
    }
    Ext8Ebx {
         9 Wbnoinvd     "wbnoinvd"      "WBNOINVD.";
    }
    KvmEax {
         0 KvmClockOld  "kvm_clocksource" "KVM's paravirtual clock at its first register numbers.";
         1 KvmNoIoDelay "kvm_nop_io_delay" "Port accesses need no delay.";
         3 KvmClock     "kvm_clocksource2" "KVM's paravirtual clock.";
         5 KvmStealTime "kvm_steal_time" "Time that the host's processor was another's, and whether a vCPU runs.";
         6 KvmPvEoi     "kvm_pv_eoi"    "The end of an interrupt is told in memory.";
         7 KvmPvUnhalt  "kvm_pv_unhalt" "One vCPU takes another out of HLT by a hypercall.";
         9 KvmPvTlbFlush "kvm_pv_tlb_flush" "A vCPU that does not run is told in memory to flush its TLB.";
        11 KvmPvSendIpi "kvm_pv_send_ipi" "Interrupts to many vCPUs by one hypercall.";
        13 KvmPvSchedYield "kvm_pv_sched_yield" "A vCPU lets another one go first by a hypercall.";
        24 KvmClockStable "kvm_clocksource_stable_bit" "The paravirtual clock says when one vCPU's page serves all.";
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What each feature is meaningless without. SDM vol. 1 §13.2, §14.3-14.7, §12; vol. 3 §4.1.4; KVM msr.rst.
#[rustfmt::skip]
const PREREQUISITES: &[(Feature, &[Feature])] = {
    use Feature::*;
    &[
        (Fxsr,         &[Fpu]),
        (Mmx,          &[Fpu]),
        (Sse,          &[Fxsr, Mmx]),
        (Sse2,         &[Sse]),
        (Sse3,         &[Sse2]),
        (Ssse3,        &[Sse3]),
        (Sse4_1,       &[Ssse3]),
        (Sse4_2,       &[Sse4_1]),
        (Pclmulqdq,    &[Sse2]),
        (Aes,          &[Sse2]),
        (Sha,          &[Ssse3]),
        (Cx16,         &[Cx8, Lm]),
        (Xsave,        &[Fxsr]),
        (Xsaveopt,     &[Xsave]),
        (Xsavec,       &[Xsave]),
        (Xgetbv1,      &[Xsave]),
        (Avx,          &[Xsave, Sse4_2]),
        (Avx2,         &[Avx]),
        (Fma,          &[Avx]),
        (F16c,         &[Avx]),
        (Pse36,        &[Pse]),
        (Mca,          &[Mce, Msr]),
        (Mtrr,         &[Msr]),
        (Pat,          &[Msr]),
        (Sep,          &[Msr]),
        (Apic,         &[Msr]),
        (X2apic,       &[Apic]),
        (TscDeadline,  &[Apic, Tsc]),
        (TscAdjust,    &[Tsc, Msr]),
        (InvariantTsc, &[Tsc]),
        (Rdtscp,       &[Tsc, Msr]),
        (Rdpid,        &[Msr]),
        (Nx,           &[Pae, Msr]),
        (Syscall,      &[Msr]),
        (Lm,           &[Pae, Pge, Msr, Syscall, Nx, Sse2]),
        (LahfLm,       &[Lm]),
        (Pdpe1gb,      &[Lm]),
        (La57,         &[Lm]),
        (Pcid,         &[Lm]),
        (Fsgsbase,     &[Lm]),
        (Invpcid,      &[Pcid]),
        (Pku,          &[Lm, Xsave]),
        (Pks,          &[Lm, Msr]),
        (Clflushopt,   &[Clflush]),
        (Clwb,         &[Clflush]),
        (Fsrm,         &[Erms]),
        (SpecCtrl,     &[Msr]),
        (BhiCtrl,      &[SpecCtrl]),
        (ArchCapabilities, &[Msr]),
        (KvmClockOld,  &[Hypervisor, Tsc, Msr]),
        (KvmNoIoDelay, &[Hypervisor]),
        (KvmClock,     &[Hypervisor, Tsc, Msr]),
        (KvmClockStable, &[KvmClock, InvariantTsc]),
        (KvmStealTime, &[Hypervisor, Msr]),
        (KvmPvEoi,     &[Hypervisor, Apic, Msr]),
        (KvmPvUnhalt,  &[Hypervisor, Apic]),
        (KvmPvTlbFlush, &[KvmStealTime]),
        (KvmPvSendIpi, &[Hypervisor, Apic]),
        (KvmPvSchedYield, &[KvmStealTime]),
    ]
};

/// A set of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FeatureSet(u128);

const _: () = assert!(Feature::ALL.len() <= 128, "FeatureSet has one bit for each feature");

impl FeatureSet {
    pub(super) const fn of(features: &[Feature]) -> Self {
        let mut set = Self(0);
        let mut i = 0;
        while i < features.len() {
            set = set.with(features[i]);
            i += 1;
        }
        set
    }

    pub(super) const fn all() -> Self {
        Self::of(Feature::ALL)
    }

    pub(super) const fn with(self, feature: Feature) -> Self {
        Self(self.0 | 1 << feature as u8)
    }

    pub(super) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(super) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(super) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(super) const fn contains(self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 != 0
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Feature> {
        Feature::ALL
            .iter()
            .copied()
            .filter(move |&feature| self.contains(feature))
    }

    /// The set without all that lacks a prerequisite in it.
    pub(super) fn closed(mut self) -> Self {
        loop {
            let before = self;
            for &(feature, needs) in PREREQUISITES {
                if !FeatureSet::of(needs).without(self).is_empty() {
                    self = self.without(FeatureSet::of(&[feature]));
                }
            }
            if self == before {
                return self;
            }
        }
    }

    /// The registers of flags.
    pub(super) fn words(self) -> [u32; Word::COUNT] {
        let mut words = [0; Word::COUNT];
        for feature in self.iter() {
            let (word, bit) = feature.place();
            words[word as usize] |= 1 << bit;
        }
        words
    }
}

impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, feature) in self.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{feature}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_names_of_features_are_unique() {
        for (i, a) in Feature::ALL.iter().enumerate() {
            for b in &Feature::ALL[i + 1..] {
                assert_ne!(a.place(), b.place(), "{a} and {b}");
                assert_ne!(a.name(), b.name());
            }
        }
    }

    #[test]
    fn closed_removes_what_stands_on_a_missing_feature() {
        let set = FeatureSet::all().without(FeatureSet::of(&[Feature::Sse4_1])).closed();
        for gone in [
            Feature::Sse4_1,
            Feature::Sse4_2,
            Feature::Avx,
            Feature::Avx2,
            Feature::Fma,
            Feature::F16c,
        ] {
            assert!(!set.contains(gone), "{gone}");
        }
        assert!(set.contains(Feature::Ssse3) && set.contains(Feature::Xsave) && set.contains(Feature::Lm));
        assert_eq!(FeatureSet::all().closed(), FeatureSet::all());
    }

    #[test]
    fn words_hold_one_bit_for_each_feature() {
        let bits: u32 = FeatureSet::all().words().iter().map(|word| word.count_ones()).sum();
        assert_eq!(bits as usize, Feature::ALL.len());
        assert_eq!(FeatureSet::of(&[Feature::Lm]).words()[Word::Ext1Edx as usize], 1 << 29);
    }
}
