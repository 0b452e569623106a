//! The CPUID policy: what a guest is told of its processor.

/// A named CPU model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    Host,
    V2,
    V3,
}
/// x
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    Sse,
}
/// x
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidLeaf;
/// x
#[derive(Clone, Debug)]
pub struct CpuPolicy;
/// x
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct PolicyError;
