//! Tests of the CPUID policy. The golden dumps are rewritten when `OXBOW_BLESS` is set.

use std::fmt::Write;
use std::path::Path;

use super::*;
use x86_isa::cr4;

const RESET: CpuidContext = CpuidContext {
    apic_id: 0,
    cr4: 0,
    xcr0: 1,
    apic_enabled: true,
};

fn policy(model: Model) -> CpuPolicy {
    CpuPolicy::on_host(model, host::UNITS).unwrap()
}

fn dump(policy: &CpuPolicy, ctx: &CpuidContext) -> String {
    let mut out = format!(
        "model {}, {} CPUs\n{}\n\nleaf     sub  eax      ebx      ecx      edx\n",
        policy.model(),
        policy.cpus,
        policy.features
    );
    for first in [0_u32, 0x4000_0000, 0x4000_0100, 0x8000_0000] {
        let [last, ..] = policy.cpuid(first, 0, ctx);
        for leaf in first..=last {
            let subleaves = match leaf {
                4 | 7 | 0xb | 0xd | 0x1f => 16,
                _ => 1,
            };
            for sub in 0..subleaves {
                let [eax, ebx, ecx, edx] = policy.cpuid(leaf, sub, ctx);
                let topology_end = matches!(leaf, 0xb | 0x1f) && ebx == 0;
                if [eax, ebx, ecx, edx] != [0; 4] && !topology_end {
                    writeln!(out, "{leaf:08x} {sub:3x}  {eax:08x} {ebx:08x} {ecx:08x} {edx:08x}").unwrap();
                }
            }
        }
    }
    out
}

#[test]
fn named_models_give_the_golden_leaves() {
    let ctx = CpuidContext {
        apic_id: 2,
        cr4: cr4::OSXSAVE,
        xcr0: 7,
        apic_enabled: true,
    };
    for model in Model::NAMED {
        let ours = dump(&policy(model).with_cpus(4), &ctx);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/cpuid-{model}.txt"));
        if std::env::var_os("OXBOW_BLESS").is_some() {
            std::fs::write(&path, &ours).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap();
        assert_eq!(ours, golden, "{} (set OXBOW_BLESS to accept)", path.display());
    }
}

#[test]
fn every_model_is_closed_under_prerequisites() {
    for model in Model::NAMED {
        let policy = policy(model);
        assert_eq!(policy.features, policy.features.closed(), "{model}");
    }
    for unit in host::UNITS.iter() {
        let without = host::UNITS.without(FeatureSet::of(&[unit]));
        let policy = CpuPolicy::on_host(Model::Host, without).unwrap();
        assert!(!policy.has(unit));
        assert_eq!(policy.features, policy.features.closed(), "without {unit}");
    }
}

#[test]
fn levels_grow_and_host_has_all_of_them() {
    let [v1, v2, v3] = Model::NAMED.map(|model| policy(model).features);
    let host = policy(Model::Host).features;
    assert!(v1.without(v2).is_empty() && v1.contains(Feature::Sse2) && !v1.contains(Feature::Sse3));
    assert!(v2.without(v3).is_empty() && v3.without(host).is_empty());
    assert_eq!(v3.without(v2), LEVEL_3);
    assert!(!v3.contains(Feature::Sha) && !v3.contains(Feature::Aes) && host.contains(Feature::Sha));
}

#[test]
fn levels_are_refused_when_the_host_lacks_a_unit() {
    let sse = host::UNITS.without(FeatureSet::of(&[
        Feature::Avx,
        Feature::Avx2,
        Feature::Fma,
        Feature::F16c,
    ]));
    assert!(CpuPolicy::on_host(Model::V2, sse).is_ok());
    let error = CpuPolicy::on_host(Model::V3, sse).unwrap_err();
    let text = "this host cannot run CPU model `x86-64-v3`: its processor lacks fma avx f16c avx2";
    assert_eq!(error.to_string(), text);
    let host = CpuPolicy::on_host(Model::Host, FeatureSet::default()).unwrap();
    assert!(host.has(Feature::Sse2) && host.has(Feature::Bmi2) && host.has(Feature::Movbe));
    assert!(!host.has(Feature::Sse3) && !host.has(Feature::Avx));
    assert_eq!(host.xcr0_mask(), 0x203);
}

#[test]
fn new_makes_the_host_model_of_this_host() {
    let policy = CpuPolicy::new(Model::Host).unwrap();
    assert_eq!(policy.has(Feature::Avx2), host::units().contains(Feature::Avx2));
}

#[test]
fn model_names_parse_and_unknown_ones_list_the_known() {
    for name in Model::NAMES {
        assert_eq!(name.parse::<Model>().unwrap().to_string(), name);
    }
    let error = "max".parse::<Model>().unwrap_err().to_string();
    assert_eq!(
        error,
        "unknown CPU model `max`; known models: host, x86-64, x86-64-v2, x86-64-v3"
    );
}

#[test]
fn operating_system_bits_follow_the_control_registers() {
    let host = policy(Model::Host);
    let on = CpuidContext {
        cr4: cr4::OSXSAVE | cr4::PKE,
        ..RESET
    };
    assert_eq!(host.cpuid(1, 0, &RESET)[2] >> 27 & 1, 0);
    assert_eq!(host.cpuid(1, 0, &on)[2] >> 27 & 1, 1);
    assert_eq!(host.cpuid(7, 0, &RESET)[2] >> 4 & 1, 0);
    assert_eq!(host.cpuid(7, 0, &on)[2] >> 4 & 1, 1);
    let off = CpuidContext {
        apic_enabled: false,
        ..RESET
    };
    assert_eq!(host.cpuid(1, 0, &RESET)[3] ^ host.cpuid(1, 0, &off)[3], 1 << 9);
    let v2 = policy(Model::V2);
    assert_eq!(v2.cpuid(1, 0, &on)[2] >> 27 & 1, 0);
    assert_eq!(v2.cpuid(7, 0, &on)[2] >> 4 & 1, 0);
}

#[test]
fn xsave_sizes_follow_from_the_components() {
    let host = policy(Model::Host);
    assert_eq!(host.xcr0_mask(), 0x207);
    let size = |xcr0: u64, sub: u32| host.cpuid(0xd, sub, &CpuidContext { xcr0, ..RESET })[1];
    for (xcr0, standard, compacted) in [
        (1, 576, 576),
        (3, 576, 576),
        (7, 832, 832),
        (0x203, 2696, 584),
        (0x207, 2696, 840),
    ] {
        assert_eq!((size(xcr0, 0), size(xcr0, 1)), (standard, compacted), "XCR0 {xcr0:#x}");
    }
    let [mask, _, max, _] = host.cpuid(0xd, 0, &RESET);
    assert_eq!((mask, max), (0x207, 2696));
    assert_eq!(host.cpuid(0xd, 1, &RESET)[0], 7);
    for sub in 2..64 {
        let [bytes, offset, flags, _] = host.cpuid(0xd, sub, &RESET);
        assert_eq!(bytes != 0, mask >> sub.min(31) & 1 != 0, "component {sub}");
        assert!(offset + bytes <= max && flags == 0);
    }
    assert_eq!(policy(Model::V3).cpuid(0xd, 9, &RESET), [0; 4]);
    assert_eq!(policy(Model::V3).cpuid(0xd, 0, &RESET)[2], 832);
    assert_eq!(policy(Model::V3).cpuid(0xd, 1, &RESET), [0; 4]);
    assert_eq!(policy(Model::V2).cpuid(0xd, 0, &RESET), [0; 4]);
}

#[test]
fn topology_leaves_agree_on_the_number_of_cpus() {
    for (cpus, bits) in [(1, 0), (2, 1), (5, 3), (8, 3), (200, 8), (3000, 12)] {
        let policy = policy(Model::V3).with_cpus(cpus);
        let ctx = CpuidContext {
            apic_id: cpus - 1,
            ..RESET
        };
        assert_eq!(policy.has(Feature::Ht), cpus > 1);
        let [_, ebx, _, edx] = policy.cpuid(1, 0, &ctx);
        assert_eq!(
            (ebx >> 16 & 0xff, ebx >> 24, edx >> 28 & 1 != 0),
            ((1 << bits).min(0xff), (cpus - 1) & 0xff, cpus > 1)
        );
        for leaf in [0xb, 0x1f] {
            assert_eq!(policy.cpuid(leaf, 0, &ctx), [0, 1, 0x100, cpus - 1]);
            assert_eq!(policy.cpuid(leaf, 1, &ctx), [bits, cpus, 0x201, cpus - 1]);
            assert_eq!(policy.cpuid(leaf, 2, &ctx), [0, 0, 2, cpus - 1]);
        }
        let [l1, l3] = [0, 3].map(|sub| policy.cpuid(4, sub, &ctx)[0]);
        assert_eq!((l1 >> 14 & 0xfff, l3 >> 14 & 0xfff), (0, (1 << bits) - 1));
        assert_eq!(
            (l1 >> 26, l3 >> 26),
            ((1_u32 << bits).min(64) - 1, (1_u32 << bits).min(64) - 1)
        );
    }
    assert_eq!(policy(Model::V3).with_cpus(0).cpus, 1);
    assert_eq!(
        policy(Model::V3).with_cpus(u32::MAX).cpuid(0xb, 1, &RESET)[..2],
        [31, 0xffff]
    );
}

#[test]
fn cache_sizes_of_both_leaves_agree() {
    let policy = policy(Model::V3);
    let bytes = |sub: u32| {
        let [_, ebx, ecx, _] = policy.cpuid(4, sub, &RESET);
        ((ebx >> 22) + 1) * ((ebx & 0xfff) + 1) * (ecx + 1)
    };
    assert_eq!([0, 1, 2, 3].map(bytes), [32 << 10, 32 << 10, 1 << 20, 16 << 20]);
    assert_eq!(policy.cpuid(4, 4, &RESET), [0; 4]);
    assert_eq!(policy.cpuid(0x8000_0006, 0, &RESET)[2] >> 16, bytes(2) >> 10);
}

#[test]
fn frequencies_of_all_leaves_agree() {
    let policy = policy(Model::V3);
    let [denominator, numerator, crystal, _] = policy.cpuid(0x15, 0, &RESET).map(u64::from);
    assert_eq!(crystal * numerator / denominator, policy.tsc_hz());
    assert_eq!(crystal, policy.bus_hz());
    assert_eq!(u64::from(policy.cpuid(0x16, 0, &RESET)[0]) * 1_000_000, policy.tsc_hz());
    assert_eq!(policy.cpuid(0x4000_0010, 0, &RESET), [2_000_000, 1_000_000, 0, 0]);
}

#[test]
fn leaves_out_of_range_give_the_highest_basic_one() {
    let policy = policy(Model::V3).with_cpus(4);
    let [max, ..] = policy.cpuid(0, 0, &RESET);
    for leaf in [
        max + 1,
        0x2000_0000,
        0x4000_0011,
        0x4000_0101,
        0x4000_0200,
        0x4fff_ffff,
        0x8000_0009,
        0x8fff_ffff,
        u32::MAX,
    ] {
        for sub in [0, 1, 2, 0x1ff] {
            assert_eq!(
                policy.cpuid(leaf, sub, &RESET),
                policy.cpuid(max, sub, &RESET),
                "{leaf:#x}.{sub}"
            );
        }
    }
    for leaf in (0..=max)
        .chain(0x4000_0000..=0x4000_0010)
        .chain([0x4000_0100])
        .chain(0x8000_0000..=0x8000_0008)
    {
        for sub in [2, 3, 64, u32::MAX] {
            let _ = policy.cpuid(leaf, sub, &RESET);
        }
    }
}

#[test]
fn brand_and_vendors_are_readable_text() {
    let text = |words: &[u32]| -> String {
        let bytes = words.iter().flat_map(|word| word.to_le_bytes());
        bytes.take_while(|&byte| byte != 0).map(char::from).collect()
    };
    for model in [Model::Host, Model::V2, Model::V3] {
        let policy = policy(model);
        let brand: Vec<u32> = (2..=4)
            .flat_map(|leaf| policy.cpuid(0x8000_0000 + leaf, 0, &RESET))
            .collect();
        assert_eq!(text(&brand), format!("Oxbow Virtual CPU ({model})"));
        let [_, ebx, ecx, edx] = policy.cpuid(0, 0, &RESET);
        assert_eq!(text(&[ebx, edx, ecx]), "GenuineIntel");
        assert_eq!(policy.cpuid(1, 0, &RESET)[0], policy.signature());
        assert_eq!(text(&policy.cpuid(0x4000_0100, 0, &RESET)[1..]), "OxbowOxbowOx");
    }
}

/// As Linux finds a hypervisor's leaves.
fn base_of(policy: &CpuPolicy, signature: &[u8; 12]) -> Option<u32> {
    (0x4000_0000..0x4001_0000).step_by(0x100).find(|&base| {
        let [_, words @ ..] = policy.cpuid(base, 0, &RESET);
        words.iter().flat_map(|word| word.to_le_bytes()).eq(*signature)
    })
}

#[test]
fn kvm_is_found_before_our_own_leaves() {
    for model in [Model::Host, Model::V2, Model::V3] {
        let policy = policy(model);
        assert_eq!(base_of(&policy, b"KVMKVMKVM\0\0\0"), Some(0x4000_0000));
        assert_eq!(base_of(&policy, b"OxbowOxbowOx"), Some(0x4000_0100));
        assert_eq!(policy.cpuid(0x4000_0000, 0, &RESET)[0], 0x4000_0010);
        // Clocks, no port delays, steal time, end of interrupt, unhalt, TLB flush, IPIs, yield.
        let mut features = 1 << 24 | 0b10_1010_1110_1011;
        if model != Model::Host {
            // Not the hypercalls.
            features &= !(1 << 7 | 1 << 11 | 1 << 13);
        }
        assert_eq!(policy.cpuid(0x4000_0001, 0, &RESET), [features, 0, 0, 0]);
    }
}

#[test]
fn kvm_leaves_go_with_their_last_feature() {
    use Feature::*;
    let v3 = policy(Model::V3);
    let features = |policy: &CpuPolicy| policy.cpuid(0x4000_0001, 0, &RESET)[0];
    let without = |feature| features(&v3) & !features(&v3.clone().without(feature));
    assert_eq!(without(KvmClock), 1 << 24 | 1 << 3);
    assert_eq!(without(InvariantTsc), 1 << 24);
    assert_eq!(without(KvmStealTime), 1 << 9 | 1 << 5);
    let none = [KvmClockOld, KvmNoIoDelay, KvmClock, KvmStealTime, KvmPvEoi]
        .into_iter()
        .fold(v3.clone(), CpuPolicy::without);
    assert_eq!(base_of(&none, b"KVMKVMKVM\0\0\0"), None);
    assert_eq!(base_of(&none, b"OxbowOxbowOx"), Some(0x4000_0000));
}

#[test]
fn hypervisor_tells_as_much_as_it_is_to() {
    for model in [Model::Host, Model::V1, Model::V3] {
        let told = |paravirt| policy(model).with_paravirt(paravirt);
        assert_eq!(told(Paravirt::Kvm), policy(model));
        let minimal = told(Paravirt::Minimal);
        assert_eq!(base_of(&minimal, b"KVMKVMKVM\0\0\0"), None);
        assert_eq!(base_of(&minimal, b"OxbowOxbowOx"), Some(0x4000_0000));
        assert_eq!(minimal.cpuid(0x4000_0001, 0, &RESET)[0], 0);
        assert_eq!(minimal.cpuid(0x4000_0010, 0, &RESET)[..2], [2_000_000, 1_000_000]);
        assert_eq!(minimal.cpuid(1, 0, &RESET)[2] >> 31, 1);
        let none = told(Paravirt::None);
        assert_eq!(none.cpuid(1, 0, &RESET)[2] >> 31, 0);
        for leaf in [0x4000_0000, 0x4000_0001, 0x4000_0010, 0x4000_0100] {
            // As on a processor that runs under nobody.
            assert_eq!(none.cpuid(leaf, 0, &RESET), none.cpuid(0x1f, 0, &RESET));
        }
        assert!(!none.has(Feature::KvmClock));
    }
}

#[test]
fn linear_address_width_follows_la57() {
    assert_eq!(policy(Model::Host).cpuid(0x8000_0008, 0, &RESET)[0], 57 << 8 | 40);
    assert_eq!(policy(Model::V3).cpuid(0x8000_0008, 0, &RESET)[0], 48 << 8 | 40);
}
