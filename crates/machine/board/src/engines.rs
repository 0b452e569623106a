//! The engines that a machine may run on.

use std::sync::Arc;

use cpu_model::CpuChoice;
use cpu_model::CpuPolicy;
use cpu_model::Engine;
use cpu_model::EngineError;
use cpu_model::Feature;
use cpu_model::Model;
use guest_memory::GuestMemory;
use kvm::KvmEngine;
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

/// Without ends of interrupts in memory, which the board would write into one of two memories.
fn for_lockstep(policy: &CpuPolicy) -> Arc<CpuPolicy> {
    Arc::new(policy.clone().without(Feature::KvmPvEoi))
}

/// Makes an engine of `kind`, which tells the guest what suits it best of `policy`.
pub(crate) fn make(
    kind: EngineKind,
    memory: Arc<GuestMemory>,
    policy: Arc<CpuPolicy>,
) -> Result<Arc<dyn Engine>, EngineError> {
    match choose(kind) {
        EngineKind::Kvm => Ok(Arc::new(KvmEngine::new(memory, &policy)?)),
        EngineKind::Jit => Ok(Arc::new(JitEngine::new(memory, for_translator(&policy))?)),
        EngineKind::Lockstep => Ok(Arc::new(LockstepEngine::new(memory, for_lockstep(&policy))?)),
        EngineKind::Interp => Ok(Arc::new(InterpEngine::new(memory, policy)?)),
        EngineKind::Auto => match JitEngine::new(Arc::clone(&memory), for_translator(&policy)) {
            Ok(engine) => Ok(Arc::new(engine)),
            Err(_) => Ok(Arc::new(InterpEngine::new(memory, policy)?)),
        },
    }
}

/// KVM in the place of `Auto`, where the host's processor executes guests.
fn choose(kind: EngineKind) -> EngineKind {
    if kind != EngineKind::Auto {
        return kind;
    }
    let found = kvm::availability();
    tracing::info!(hardware = found.hardware, "{found}");
    if found.hardware { EngineKind::Kvm } else { kind }
}

/// What the guest of an engine by this name is told of `policy`: see [`make`]. An engine of the caller's tells all of it.
pub(crate) fn told(engine: &str, policy: &CpuPolicy) -> Result<CpuPolicy, EngineError> {
    match engine {
        "jit" => Ok((*for_translator(policy)).clone()),
        "lockstep" => Ok((*for_lockstep(policy)).clone()),
        "kvm" => kvm::supported_policy(policy),
        _ => Ok(policy.clone()),
    }
}

/// The kind that a machine on the engine `present` is to change to when `kind` is asked for; none when it has it.
pub(crate) fn other(kind: EngineKind, present: &str) -> Option<EngineKind> {
    let kind = match choose(kind) {
        EngineKind::Auto => EngineKind::Jit,
        kind => kind,
    };
    (kind.to_string() != present).then_some(kind)
}

/// Makes an engine of `kind` for a guest that has been told `policy` and goes on with it.
///
/// # Errors
/// [`EngineError::State`] with the names of the features that the engine does not have.
pub(crate) fn take_over(
    kind: EngineKind,
    memory: Arc<GuestMemory>,
    policy: &Arc<CpuPolicy>,
) -> Result<Arc<dyn Engine>, EngineError> {
    match kind {
        EngineKind::Kvm => {
            let narrowed = kvm::supported_policy(policy)?;
            let lost = policy.features().filter(|feature| !narrowed.has(*feature));
            let lost: Vec<&str> = lost.map(Feature::name).collect();
            if !lost.is_empty() {
                return Err(EngineError::State(format!(
                    "the guest was told of features that KVM does not have on this host: {}; {}",
                    lost.join(" "),
                    advice(kvm_models().last())
                )));
            }
            Ok(Arc::new(KvmEngine::new(memory, policy)?))
        }
        EngineKind::Interp => Ok(Arc::new(InterpEngine::new(memory, Arc::clone(policy))?)),
        EngineKind::Jit => Ok(Arc::new(JitEngine::new(memory, Arc::clone(policy))?)),
        EngineKind::Lockstep | EngineKind::Auto => Err(EngineError::State(format!(
            "a machine that runs cannot go on with the engine `{kind}`"
        ))),
    }
}

/// The named models that KVM has completely on this host, the one with most in it last.
#[must_use]
pub fn kvm_models() -> Vec<Model> {
    let whole = |model: &Model| {
        let policy = CpuPolicy::new(*model).ok()?;
        Some(kvm::supported_policy(&policy).ok()? == policy)
    };
    let mut models = Model::NAMED.to_vec();
    models.retain(|model| whole(model).unwrap_or(false));
    models
}

/// How a machine is to begin that can go on with KVM.
fn advice(model: Option<&Model>) -> String {
    match model {
        Some(model) => format!("a machine begun with --cpu {model}, or on --engine kvm, can change to it"),
        None => "a machine begun on --engine kvm can change to it".to_owned(),
    }
}

/// Tries an engine of `kind` on this host with a processor model, as a machine would: its name, or why there is none.
///
/// # Errors
/// What a machine that asked for it would end with, in one line.
pub fn try_engine(kind: EngineKind, cpu: &str) -> Result<&'static str, String> {
    let choice: CpuChoice = cpu.parse().map_err(|error| format!("{error}"))?;
    let policy = choice.policy().map_err(|error| error.to_string())?;
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

    #[test]
    fn advice_names_a_model_where_there_is_one() {
        assert!(advice(Some(&Model::V1)).contains("--cpu x86-64,"));
        assert!(advice(None).contains("--engine kvm"));
    }

    #[test]
    fn baseline_is_whole_on_every_kvm() {
        let found = kvm::availability();
        if !found.usable {
            eprintln!("SKIPPED: {found}");
            return;
        }
        assert_eq!(kvm_models().first(), Some(&Model::V1));
    }
}
