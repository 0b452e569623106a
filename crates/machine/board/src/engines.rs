//! The engines that a machine may run on.

use std::sync::Arc;

use cpu_model::CpuPolicy;
use cpu_model::Engine;
use cpu_model::EngineError;
use cpu_model::Feature;
use cpu_model::Model;
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

/// Tries an engine of `kind` on this host with a processor model, as a machine would: its name, or why there is none.
///
/// # Errors
/// What a machine that asked for it would end with, in one line.
pub fn try_engine(kind: EngineKind, cpu: &str) -> Result<&'static str, String> {
    let model: Model = cpu.parse().map_err(|error| format!("{error}"))?;
    let policy = CpuPolicy::new(model).map_err(|error| error.to_string())?;
    let engine = make(kind, Arc::new(GuestMemory::new()), Arc::new(policy));
    let engine = engine.map_err(|error| error.to_string())?;
    Ok(engine.caps().name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interpreter_works_everywhere_and_auto_finds_something() {
        assert_eq!(try_engine(EngineKind::Interp, "x86-64-v2"), Ok("interp"));
        assert!(try_engine(EngineKind::Auto, "host").is_ok());
        assert!(try_engine(EngineKind::Auto, "z80").unwrap_err().contains("z80"));
    }
}
