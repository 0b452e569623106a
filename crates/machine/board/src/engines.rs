//! The engines that a machine may run on.

use std::sync::Arc;

use cpu_model::CpuPolicy;
use cpu_model::Engine;
use cpu_model::EngineError;
use cpu_model::Feature;
use guest_memory::GuestMemory;
use lockstep::LockstepEngine;
use spec::EngineKind;
use x86_interp::InterpEngine;
use x86_jit::JitEngine;

/// Makes the engine of one machine.
pub type EngineFactory<'a> = dyn Fn(Arc<GuestMemory>, Arc<CpuPolicy>) -> Result<Arc<dyn Engine>, EngineError> + 'a;

/// Without SMAP: STAC and CLAC would change the bank of the translator's TLB with every access to user memory.
fn for_translator(policy: &CpuPolicy) -> Arc<CpuPolicy> {
    Arc::new(policy.clone().without(Feature::Smap))
}

/// Makes an engine of `kind`.
pub(crate) fn make(
    kind: EngineKind,
    memory: Arc<GuestMemory>,
    policy: Arc<CpuPolicy>,
) -> Result<Arc<dyn Engine>, EngineError> {
    match kind {
        EngineKind::Jit => Ok(Arc::new(JitEngine::new(memory, for_translator(&policy))?)),
        EngineKind::Lockstep => Ok(Arc::new(LockstepEngine::new(memory, policy)?)),
        EngineKind::Interp => Ok(Arc::new(InterpEngine::new(memory, policy)?)),
        EngineKind::Auto => match JitEngine::new(Arc::clone(&memory), for_translator(&policy)) {
            Ok(engine) => Ok(Arc::new(engine)),
            Err(_) => Ok(Arc::new(InterpEngine::new(memory, policy)?)),
        },
    }
}
