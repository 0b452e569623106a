//! What the host's processor can execute for the engines: the units that floating-point and vector arithmetic runs on.

use super::feature::Feature;
use super::feature::FeatureSet;

/// Features whose arithmetic runs on the host's own units. All others are computed, and need nothing of the host beyond
/// x86-64 itself.
pub(super) const UNITS: FeatureSet = FeatureSet::of(&[
    Feature::Sse3,
    Feature::Ssse3,
    Feature::Sse4_1,
    Feature::Sse4_2,
    Feature::Pclmulqdq,
    Feature::Aes,
    Feature::Sha,
    Feature::Avx,
    Feature::Avx2,
    Feature::Fma,
    Feature::F16c,
]);

/// Those of [`UNITS`] that the host has and its kernel lets us use.
#[cfg(target_arch = "x86_64")]
pub(super) fn units() -> FeatureSet {
    let found = [
        (Feature::Sse3, std::is_x86_feature_detected!("sse3")),
        (Feature::Ssse3, std::is_x86_feature_detected!("ssse3")),
        (Feature::Sse4_1, std::is_x86_feature_detected!("sse4.1")),
        (Feature::Sse4_2, std::is_x86_feature_detected!("sse4.2")),
        (Feature::Pclmulqdq, std::is_x86_feature_detected!("pclmulqdq")),
        (Feature::Aes, std::is_x86_feature_detected!("aes")),
        (Feature::Sha, std::is_x86_feature_detected!("sha")),
        (Feature::Avx, std::is_x86_feature_detected!("avx")),
        (Feature::Avx2, std::is_x86_feature_detected!("avx2")),
        (Feature::Fma, std::is_x86_feature_detected!("fma")),
        (Feature::F16c, std::is_x86_feature_detected!("f16c")),
    ];
    let add = |set: FeatureSet, &(feature, found): &(Feature, bool)| if found { set.with(feature) } else { set };
    found.iter().fold(FeatureSet::default(), add)
}

/// A host of another architecture has none of them.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn units() -> FeatureSet {
    FeatureSet::default()
}
