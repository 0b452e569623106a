//! What the guest is told of its processor: the machine's policy, as far as this host's KVM carries it out.
//!
//! Family, model and vendor are the policy's, also on a host of another vendor: a guest goes on anywhere. What the TSC
//! counts is told as it is here, where the kernel cannot make it count as the policy says.

use cpu_model::CpuPolicy;
use cpu_model::CpuidContext;
use cpu_model::EngineError;
use cpu_model::Feature;
use cpu_model::XSAVE_COMPONENTS;
use kvm_bindings::CpuId;
use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
use kvm_bindings::KVM_MAX_CPUID_ENTRIES;
use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::Kvm;

use crate::engine::host_error;

const XSAVE_LEAF: u32 = 0xd;
/// Leaves with the frequency of the TSC: crystal and ratio, MHz, kHz.
const TSC_LEAF: u32 = 0x15;
const MHZ_LEAF: u32 = 0x16;
const KHZ_LEAF: u32 = 0x4000_0010;
/// KVM's features, and the bits of those that the kernel provides under this engine.
const KVM_LEAF: u32 = 0x4000_0001;
const STEAL_TIME: u32 = 5;
const TLB_FLUSH: u32 = 9;
/// The kernel answers hypercalls itself, and reaches only local APICs that it keeps: these would be lost.
const HYPERCALLS: [Feature; 3] = [Feature::KvmPvUnhalt, Feature::KvmPvSendIpi, Feature::KvmPvSchedYield];

/// Leaves and the number of their subleaves.
#[rustfmt::skip]
const LEAVES: [(std::ops::RangeInclusive<u32>, u32); 12] = [
    (0x00..=0x03, 1),
    (0x04..=0x04, 5),
    (0x05..=0x06, 1),
    (0x07..=0x07, 3),
    (0x08..=0x0a, 1),
    (0x0b..=0x0b, 3),
    (XSAVE_LEAF..=XSAVE_LEAF, 10),
    (0x0e..=0x1e, 1),
    (0x1f..=0x1f, 3),
    (0x4000_0000..=KHZ_LEAF, 1),
    (0x4000_0100..=0x4000_0100, 1),
    (0x8000_0000..=0x8000_0008, 1),
];

/// What the kernel says that it can give to guests.
pub(crate) struct Supported(CpuId);

impl Supported {
    pub(crate) fn ask(kvm: &Kvm) -> Result<Self, EngineError> {
        let entries = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        entries
            .map(Self)
            .map_err(|error| host_error(format!("no CPUID: {error}")))
    }

    pub(crate) fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let mut entries = self.0.as_slice().iter();
        let entry = entries.find(|e| e.function == leaf && e.index == subleaf);
        entry.map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
    }

    /// The part of `policy` that guests can have here.
    pub(crate) fn narrow(&self, policy: &CpuPolicy) -> CpuPolicy {
        let narrowed = policy.clone().within(&|leaf, subleaf| self.cpuid(leaf, subleaf));
        // The processor itself lays out XSAVE areas.
        let elsewhere = XSAVE_COMPONENTS.iter().filter(|c| {
            let [size, offset, ..] = self.cpuid(XSAVE_LEAF, c.index);
            narrowed.has(c.feature) && (size, offset) != (c.size, c.offset)
        });
        let moved: Vec<Feature> = elsewhere.map(|c| c.feature).collect();
        let narrowed = moved.into_iter().fold(narrowed, CpuPolicy::without);
        let [kernels, ..] = self.cpuid(KVM_LEAF, 0);
        let lacks = |bit: u32| kernels >> bit & 1 == 0;
        let gone = [
            (lacks(STEAL_TIME), &[Feature::KvmStealTime][..]),
            (lacks(TLB_FLUSH), &[Feature::KvmPvTlbFlush]),
            (true, &HYPERCALLS),
        ];
        let gone = gone
            .iter()
            .filter(|(gone, _)| *gone)
            .flat_map(|(_, features)| *features);
        gone.copied().fold(narrowed, CpuPolicy::without)
    }

    /// Offset of an XSAVE component in the kernel's form of the state, if guests may have it.
    pub(crate) fn component(&self, index: u32) -> Option<usize> {
        let [size, offset, ..] = self.cpuid(XSAVE_LEAF, index);
        (size != 0).then_some(offset as usize)
    }
}

/// The entries for vCPU `id`.
pub(crate) fn entries(policy: &CpuPolicy, id: u32, tsc_hz: u64) -> Result<CpuId, EngineError> {
    // The kernel keeps those bits true that follow control registers.
    let context = CpuidContext {
        apic_id: id,
        cr4: 0,
        xcr0: 1,
        apic_enabled: true,
    };
    let mut entries = Vec::new();
    for (leaves, subleaves) in LEAVES {
        for (leaf, index) in leaves.flat_map(|leaf| (0..subleaves).map(move |index| (leaf, index))) {
            let [eax, ebx, ecx, edx] = with_tsc(leaf, policy.cpuid(leaf, index, &context), policy, tsc_hz);
            entries.push(kvm_cpuid_entry2 {
                function: leaf,
                index,
                flags: if subleaves > 1 {
                    KVM_CPUID_FLAG_SIGNIFCANT_INDEX
                } else {
                    0
                },
                eax,
                ebx,
                ecx,
                edx,
                ..kvm_cpuid_entry2::default()
            });
        }
    }
    CpuId::from_entries(&entries).map_err(|error| host_error(format!("CPUID: {error:?}")))
}

/// A leaf with the TSC's frequency as it is here.
fn with_tsc(leaf: u32, registers: [u32; 4], policy: &CpuPolicy, tsc_hz: u64) -> [u32; 4] {
    if tsc_hz == policy.tsc_hz() {
        return registers;
    }
    let [eax, _, ecx, edx] = registers;
    let megahertz = (tsc_hz / 1_000_000) as u32;
    match leaf {
        // In steps of 1 kHz of a crystal that is the local APIC's clock.
        TSC_LEAF => {
            let bus = policy.bus_hz();
            [(bus / 1000) as u32, (tsc_hz / 1000) as u32, bus as u32, 0]
        }
        MHZ_LEAF => [megahertz, megahertz, ecx, edx],
        KHZ_LEAF if eax != 0 => [(tsc_hz / 1000) as u32, registers[1], ecx, edx],
        _ => registers,
    }
}

#[cfg(test)]
mod tests {
    use cpu_model::Model;

    use super::*;

    #[test]
    fn entries_are_the_policys() {
        let policy = CpuPolicy::new(Model::V2).unwrap().with_cpus(4);
        let entries = entries(&policy, 3, policy.tsc_hz()).unwrap();
        let find = |leaf, index| {
            let mut all = entries.as_slice().iter();
            all.find(|e| e.function == leaf && e.index == index).copied().unwrap()
        };
        assert_eq!(find(1, 0).ebx >> 24, 3);
        assert_eq!(find(0xb, 1).edx, 3);
        assert_eq!(find(0x15, 0).ebx, 2);
        assert_eq!(find(0x4000_0010, 0).eax, 2_000_000);
    }

    #[test]
    fn entries_tell_another_frequency_as_it_is() {
        let policy = CpuPolicy::new(Model::V2).unwrap();
        let hz = 2_899_998_000;
        let entries = entries(&policy, 0, hz).unwrap();
        let find = |leaf| entries.as_slice().iter().find(|e| e.function == leaf).copied().unwrap();
        let leaf = find(0x15);
        assert_eq!(u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax), hz);
        assert_eq!(find(0x16).eax, 2899);
        assert_eq!(find(0x4000_0010).eax, 2_899_998);
    }
}
