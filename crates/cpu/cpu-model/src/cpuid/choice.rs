//! A processor as users ask for it.

use std::str::FromStr;

use super::CpuPolicy;
use super::Feature;
use super::Model;
use super::PolicyError;

/// A model, and features that it is not to have: `MODEL[,-FEATURE]...`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuChoice {
    /// The model.
    pub model: Model,
    /// What is taken from it. What depends on these goes, too.
    pub without: Vec<Feature>,
}

impl CpuChoice {
    /// The policy, for one vCPU.
    ///
    /// # Errors
    /// As [`CpuPolicy::new`].
    pub fn policy(&self) -> Result<CpuPolicy, PolicyError> {
        let policy = CpuPolicy::new(self.model)?;
        Ok(self.without.iter().copied().fold(policy, CpuPolicy::without))
    }
}

impl FromStr for CpuChoice {
    type Err = PolicyError;

    fn from_str(text: &str) -> Result<Self, PolicyError> {
        let mut parts = text.split(',');
        let model = parts.next().unwrap_or_default().parse()?;
        let without = parts.map(taken).collect::<Result<_, _>>()?;
        Ok(Self { model, without })
    }
}

fn taken(part: &str) -> Result<Feature, PolicyError> {
    let named = |name: &str| Feature::ALL.iter().copied().find(|feature| feature.name() == name);
    let feature = part.strip_prefix('-').and_then(named);
    feature.ok_or_else(|| PolicyError::UnknownFeature { part: part.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_taken_from_the_model_with_what_depends_on_them() {
        let choice: CpuChoice = "x86-64-v3,-avx,-kvm_steal_time".parse().unwrap();
        assert_eq!(choice.model, Model::V3);
        let policy = choice.policy().unwrap();
        for gone in [
            Feature::Avx,
            Feature::Avx2,
            Feature::KvmStealTime,
            Feature::KvmPvTlbFlush,
        ] {
            assert!(!policy.has(gone), "{gone}");
        }
        assert!(policy.has(Feature::Sse4_2) && policy.has(Feature::KvmPvEoi));
        assert_eq!("x86-64".parse::<CpuChoice>().unwrap().without, []);
    }

    #[test]
    fn what_is_no_feature_to_take_away_is_refused_by_its_name() {
        for (text, wrong) in [
            ("host,-nonsense", "-nonsense"),
            ("host,avx", "avx"),
            ("host,+avx", "+avx"),
            ("host,", ""),
        ] {
            let error = text.parse::<CpuChoice>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{wrong}`")), "{error}");
        }
        assert!("z80,-avx".parse::<CpuChoice>().unwrap_err().to_string().contains("z80"));
    }
}
