//! The CPUID policy: what a guest is told of its processor, and with it which instructions and registers exist.
//!
//! Named models make snapshots portable: `x86-64`, `x86-64-v2` and `x86-64-v3` are the same on every host that can run them,
//! and `x86-64` is what every host's KVM can run, too. `host` is all that is implemented and that this host has units for. Every model says the same TSC frequency. Engines ask
//! [`CpuPolicy::has`] before they decode an instruction or accept a control-register bit, so nothing is told that does
//! not work and nothing works that is not told.
//!
//! Spec: SDM vol. 2A "CPUID"; SDM vol. 4 table 2-2 (IA32_ARCH_CAPABILITIES); x86-64 psABI 1.0 §3.1.1
//! "Processor Architecture" (the levels).

mod choice;
mod feature;
mod host;
mod leaves;

use std::fmt;
use std::str::FromStr;

pub use choice::CpuChoice;
pub use feature::Feature;
use feature::FeatureSet;
use feature::Word;

/// Frequency of the TSC.
const TSC_HZ: u64 = 2_000_000_000;

/// Frequency of the crystal, which also drives the timer of the local APIC: one tick to a nanosecond of guest time.
const BUS_HZ: u64 = 1_000_000_000;

/// A state component of XSAVE beyond x87 and SSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XsaveComponent {
    /// Bit of XCR0 and of XSTATE_BV.
    pub index: u32,
    /// Offset in the standard format.
    pub offset: u32,
    /// Bytes.
    pub size: u32,
    /// The CPU has the component when it has this feature.
    pub feature: Feature,
}

/// The components in the order of their bits. In the compacted format they follow each other without gaps. The offsets
/// are those of Intel's processors: debuggers know the layout by heart.
pub const XSAVE_COMPONENTS: [XsaveComponent; 2] = [
    XsaveComponent {
        index: 2,
        offset: 576,
        size: 256,
        feature: Feature::Avx,
    },
    XsaveComponent {
        index: 9,
        offset: 2688,
        size: 8,
        feature: Feature::Pku,
    },
];

/// A named CPU model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// All that is implemented and that the host has units for.
    Host,
    /// The baseline of the psABI, with system features that every engine has on every host.
    V1,
    /// x86-64-v2 of the psABI.
    V2,
    /// x86-64-v3 of the psABI.
    V3,
}

impl Model {
    /// The names that [`FromStr`] knows.
    pub const NAMES: [&str; 4] = ["host", "x86-64", "x86-64-v2", "x86-64-v3"];

    /// Those that are the same on every host, from the one with least.
    pub const NAMED: [Self; 3] = [Self::V1, Self::V2, Self::V3];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::V1 => "x86-64",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Model {
    type Err = PolicyError;

    fn from_str(name: &str) -> Result<Self, PolicyError> {
        [Self::Host]
            .into_iter()
            .chain(Self::NAMED)
            .find(|model| model.name() == name)
            .ok_or_else(|| PolicyError::UnknownModel { name: name.to_owned() })
    }
}

/// What a guest is told of the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paravirt {
    /// Nothing, not even that there is one.
    None,
    /// That there is one, and the frequencies of its clocks.
    Minimal,
    /// What there is of KVM's interface, too.
    Kvm,
}

/// Why there is no such CPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// No model has this name.
    #[error("unknown CPU model `{name}`; known models: {}", Model::NAMES.join(", "))]
    UnknownModel {
        /// The name that was asked for.
        name: String,
    },
    /// What follows a model is no feature to take away.
    #[error("`{part}` is no CPU feature to take away: write `-` and a name as in /proc/cpuinfo, or one of KVM's")]
    UnknownFeature {
        /// What was written.
        part: String,
    },
    /// The model's arithmetic needs units that the host does not have.
    #[error("this host cannot run CPU model `{model}`: its processor lacks {missing}")]
    HostLacks {
        /// The model.
        model: Model,
        /// Names of the missing features, separated by spaces.
        missing: String,
    },
}

/// What a guest's processor is and has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuPolicy {
    // Configuration
    model: Model,
    features: FeatureSet,
    cpus: u32,
    // Derived
    words: [u32; Word::COUNT],
}

/// The state of a vCPU that shows in CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidContext {
    /// APIC ID in its 32-bit form.
    pub apic_id: u32,
    /// CR4: OSXSAVE and OSPKE repeat bits of it.
    pub cr4: u64,
    /// XCR0: leaf 0Dh gives the size of what it enables.
    pub xcr0: u64,
    /// IA32_APIC_BASE enables the local APIC.
    pub apic_enabled: bool,
}

impl CpuPolicy {
    /// The policy of `model`, for one vCPU.
    ///
    /// # Errors
    /// [`PolicyError::HostLacks`] when the host has no unit for something that the model contains.
    pub fn new(model: Model) -> Result<Self, PolicyError> {
        Self::on_host(model, host::units())
    }

    /// The policy for a machine of `cpus` vCPUs with the APIC IDs from zero on: one package, a core for each.
    #[must_use]
    pub fn with_cpus(mut self, cpus: u32) -> Self {
        // An APIC ID of x2APIC has 32 bits, of which the last one is the broadcast's.
        self.cpus = cpus.clamp(1, 1 << 31);
        let ht = FeatureSet::of(&[Feature::Ht]);
        self.features = if self.cpus > 1 {
            self.features.union(ht)
        } else {
            self.features.without(ht)
        };
        self.words = self.features.words();
        self
    }

    /// The policy of a machine whose guests are told so much of the hypervisor.
    #[must_use]
    pub fn with_paravirt(mut self, paravirt: Paravirt) -> Self {
        let all = KVM.union(KVM_KERNEL).union(KVM_CALLS);
        let gone = match paravirt {
            Paravirt::None => all.union(FeatureSet::of(&[Feature::Hypervisor])),
            Paravirt::Minimal => all,
            Paravirt::Kvm => return self,
        };
        self.features = self.features.without(gone).closed();
        self.words = self.features.words();
        self
    }

    /// The policy without a feature and what depends on it: for engines that it would slow down.
    #[must_use]
    pub fn without(mut self, feature: Feature) -> Self {
        self.features = self.features.without(FeatureSet::of(&[feature])).closed();
        self.words = self.features.words();
        self
    }

    /// The policy without what `cpuid` does not tell of, a host's CPUID instruction or the like: leaf and subleaf to EAX, EBX,
    /// ECX and EDX. What engines and boards provide whatever the processor has, stays.
    #[must_use]
    pub fn within(mut self, cpuid: &dyn Fn(u32, u32) -> [u32; 4]) -> Self {
        let lacks = |feature: &Feature| {
            let (word, bit) = feature.place();
            word.leaf()
                .is_some_and(|(leaf, subleaf, register)| cpuid(leaf, subleaf)[register] >> bit & 1 == 0)
        };
        let missing: Vec<Feature> = self
            .features()
            .filter(|f| !PROVIDED.contains(f))
            .filter(lacks)
            .collect();
        self.features = self.features.without(FeatureSet::of(&missing)).closed();
        self.words = self.features.words();
        self
    }

    /// The model.
    #[must_use]
    pub const fn model(&self) -> Model {
        self.model
    }

    /// Whether the CPU has `feature`.
    #[inline]
    #[must_use]
    pub const fn has(&self, feature: Feature) -> bool {
        self.features.contains(feature)
    }

    /// All that it has, in the order of the manual's leaves.
    pub fn features(&self) -> impl Iterator<Item = Feature> {
        self.features.iter()
    }

    /// Whether hypercalls are answered: some of KVM's interface is there.
    #[must_use]
    pub const fn has_hypercalls(&self) -> bool {
        self.words[Word::KvmEax as usize] != 0
    }

    /// Frequency of the TSC. The same for every model and host, so that a snapshot goes on anywhere.
    #[must_use]
    pub const fn tsc_hz(&self) -> u64 {
        TSC_HZ
    }

    /// Frequency of the local APIC's timer before its divider.
    #[must_use]
    pub const fn bus_hz(&self) -> u64 {
        BUS_HZ
    }

    /// IA32_ARCH_CAPABILITIES. A software processor does not speculate, so that nothing needs a work-around, and guests
    /// pay for none: no page-table isolation, retpolines, VERW or flushes. Linux does not take BHI_NO for an answer; with
    /// BHI_DIS_S to set it does without its loop at each system call.
    #[must_use]
    pub const fn arch_capabilities(&self) -> u64 {
        arch_cap::RDCL_NO
            | arch_cap::IBRS_ALL
            | arch_cap::SKIP_L1DFL_VMENTRY
            | arch_cap::SSB_NO
            | arch_cap::MDS_NO
            | arch_cap::IF_PSCHANGE_MC_NO
            | arch_cap::TAA_NO
            | arch_cap::SBDR_SSDP_NO
            | arch_cap::FBSDP_NO
            | arch_cap::PSDP_NO
            | arch_cap::BHI_NO
            | arch_cap::PBRSB_NO
            | arch_cap::GDS_NO
            | arch_cap::RFDS_NO
            | arch_cap::ITS_NO
    }

    fn on_host(model: Model, units: FeatureSet) -> Result<Self, PolicyError> {
        let features = match model {
            Model::Host => FeatureSet::all().without(host::UNITS.without(units)).closed(),
            Model::V1 => BASELINE,
            Model::V2 => BASELINE.union(SYSTEM).union(KVM_KERNEL).union(LEVEL_2),
            Model::V3 => BASELINE.union(SYSTEM).union(KVM_KERNEL).union(LEVEL_2).union(LEVEL_3),
        };
        let missing = features.intersection(host::UNITS).without(units);
        if !missing.is_empty() {
            return Err(PolicyError::HostLacks {
                model,
                missing: missing.to_string(),
            });
        }
        Ok(Self {
            model,
            features,
            cpus: 1,
            words: [0; Word::COUNT],
        }
        .with_cpus(1))
    }
}

/// What is no unit of a processor that executes the guest: the board's local APIC, the shape of the package, and what
/// engines answer themselves.
const PROVIDED: [Feature; 6] = [
    Feature::Apic,
    Feature::X2apic,
    Feature::TscDeadline,
    Feature::TscAdjust,
    Feature::Ht,
    Feature::Hypervisor,
];

/// Bits of IA32_ARCH_CAPABILITIES (RO), SDM vol. 4 table 2-2.
mod arch_cap {
    /// Not affected by Meltdown and L1TF.
    pub(super) const RDCL_NO: u64 = 1 << 0;
    /// IBRS may stay set ("enhanced IBRS").
    pub(super) const IBRS_ALL: u64 = 1 << 1;
    /// No L1D flush at a VM entry.
    pub(super) const SKIP_L1DFL_VMENTRY: u64 = 1 << 3;
    /// No speculative store bypass.
    pub(super) const SSB_NO: u64 = 1 << 4;
    /// No microarchitectural data sampling.
    pub(super) const MDS_NO: u64 = 1 << 5;
    /// No machine check when a page changes its size.
    pub(super) const IF_PSCHANGE_MC_NO: u64 = 1 << 6;
    /// No TSX asynchronous abort.
    pub(super) const TAA_NO: u64 = 1 << 8;
    /// No shared-buffer or sideband stale data read.
    pub(super) const SBDR_SSDP_NO: u64 = 1 << 13;
    /// No fill-buffer stale data propagation.
    pub(super) const FBSDP_NO: u64 = 1 << 14;
    /// No primary stale data propagation.
    pub(super) const PSDP_NO: u64 = 1 << 15;
    /// No branch history injection.
    pub(super) const BHI_NO: u64 = 1 << 20;
    /// No post-barrier return-stack prediction.
    pub(super) const PBRSB_NO: u64 = 1 << 24;
    /// No gather data sampling.
    pub(super) const GDS_NO: u64 = 1 << 26;
    /// No register-file data sampling.
    pub(super) const RFDS_NO: u64 = 1 << 27;
    /// No indirect target selection.
    pub(super) const ITS_NO: u64 = 1 << 62;
}

/// x86-64 itself, and of what operating systems want only what no processor and no kernel's emulator lacks: Intel's and AMD's
/// differ in self-snoop, PCIDs and the controls of speculation, emulators in much more.
#[rustfmt::skip]
const BASELINE: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[
        Fpu, De, Pse, Tsc, Msr, Pae, Mce, Cx8, Apic, Sep, Mtrr, Pge, Mca, Cmov, Pat, Pse36, Clflush, Mmx, Fxsr, Sse, Sse2,
        X2apic, TscDeadline, Hypervisor, TscAdjust, ArchCapabilities, Prefetchw, Syscall, Nx, Lm, InvariantTsc,
        KvmClockOld, KvmNoIoDelay, KvmClock, KvmClockStable, KvmPvEoi,
    ])
};

/// What there is of KVM's interface that every engine provides by itself.
const KVM: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[KvmClockOld, KvmNoIoDelay, KvmClock, KvmClockStable, KvmPvEoi])
};

/// What the host's kernel provides under its own engine, where it does.
const KVM_KERNEL: FeatureSet = FeatureSet::of(&[Feature::KvmStealTime, Feature::KvmPvTlbFlush]);

/// Hypercalls: not under the kernel's engine, whose own reach local APICs of its own only. A model with them is not the same on
/// every engine.
const KVM_CALLS: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[KvmPvUnhalt, KvmPvSendIpi, KvmPvSchedYield])
};

/// What operating systems want beside the psABI's level, the same in levels 2 and 3; user programs do not ask for it.
/// Without 5-level paging and protection keys, which cost page walks and need XSAVE.
#[rustfmt::skip]
const SYSTEM: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[
        Ss, Pcid, Rdrand, Fsgsbase, Smep, Erms, Invpcid, Rdseed, Smap, Umip, Fsrm, SpecCtrl, BhiCtrl, Pdpe1gb, Rdtscp,
    ])
};

/// What x86-64-v2 adds to x86-64.
const LEVEL_2: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[Cx16, LahfLm, Popcnt, Sse3, Ssse3, Sse4_1, Sse4_2])
};

/// What x86-64-v3 adds to x86-64-v2. OSXSAVE follows from XSAVE when the system sets CR4.
const LEVEL_3: FeatureSet = {
    use Feature::*;
    FeatureSet::of(&[Avx, Avx2, Bmi1, Bmi2, F16c, Fma, Abm, Movbe, Xsave])
};

#[cfg(test)]
mod tests;
