//! The engine: what the vCPUs of one machine share.

use std::sync::Arc;
use std::sync::RwLock;
use std::sync::RwLockReadGuard;
use std::sync::RwLockWriteGuard;
use std::sync::TryLockError;
use std::sync::TryLockResult;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;

use cpu_model::CpuPolicy;
use cpu_model::Engine;
use cpu_model::EngineCaps;
use cpu_model::EngineError;
use cpu_model::Signal;
use cpu_model::Signals;
use cpu_model::Vcpu;
use device_model::Inspect;
use device_model::Node;
use guest_memory::CodeWatch;
use guest_memory::GuestMemory;
use std::sync::Mutex;
use std::sync::PoisonError;
use x86_interp::InterpEngine;

use crate::memory::CodeMemory;
use crate::registry::SharedRegistry;
use crate::thunk;
use crate::thunk::Thunks;
use crate::vcpu::JitVcpu;

/// What the vCPUs share.
pub(crate) struct Shared {
    pub(crate) registry: Arc<SharedRegistry>,
    pub(crate) thunks: Thunks,
    /// Held for reading by every vCPU that is inside `run`, but for moments when it holds no block; for writing by one
    /// that flushes.
    world: RwLock<()>,
    /// Somebody waits for `world`.
    pub(crate) flush_wanted: AtomicBool,
    /// Flushes so far: jump caches of another number are void.
    pub(crate) flushes: AtomicU64,
    peers: Mutex<Vec<Arc<Signals>>>,
    /// As in [`JitOptions`].
    pub(crate) cold: u8,
}

/// What may be chosen of the translator.
#[derive(Clone, Copy, Debug)]
pub struct JitOptions {
    /// Room for so many bytes of code; too few are made enough for any block. The oldest of it is thrown away when it is full.
    pub code_memory: usize,
    /// Executions of a block, by the interpreter, before it is translated.
    pub cold: u8,
}

impl JitOptions {
    /// All is translated before it is executed.
    #[must_use]
    pub fn at_once() -> Self {
        Self {
            cold: 0,
            ..Self::default()
        }
    }
}

impl Default for JitOptions {
    fn default() -> Self {
        Self {
            code_memory: crate::memory::LEN,
            // A translation costs about what six executions by the interpreter do, but more than half of the code that
            // is executed twice is executed often.
            cold: 1,
        }
    }
}

/// The guard, if the lock was free.
fn unless_busy<G>(result: TryLockResult<G>) -> Option<G> {
    match result {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

impl Shared {
    /// Takes part, if nobody flushes.
    pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, ()>> {
        unless_busy(self.world.try_read())
    }

    /// Takes hold of all, if nobody takes part.
    pub(crate) fn try_write(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        unless_busy(self.world.try_write())
    }

    /// Makes every vCPU leave translated code soon.
    pub(crate) fn call_all(&self) {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.iter().for_each(|s| s.raise(Signal::Engine));
    }
}

/// The translator as an engine.
pub struct JitEngine {
    caps: EngineCaps,
    interp: InterpEngine,
    shared: Arc<Shared>,
}

/// Features of the host's processor that translated code uses.
fn host_lacks() -> Option<&'static str> {
    match () {
        () if !std::is_x86_feature_detected!("bmi2") => Some("BMI2"),
        () if !std::is_x86_feature_detected!("avx") => Some("AVX"),
        () => None,
    }
}

impl JitEngine {
    /// An engine for a machine with this memory and CPU model.
    ///
    /// # Errors
    /// [`EngineError::Host`] when the host's processor lacks what translated code uses, or gives no executable memory.
    pub fn new(memory: Arc<GuestMemory>, policy: Arc<CpuPolicy>) -> Result<Self, EngineError> {
        Self::with_options(memory, policy, &JitOptions::default())
    }

    /// The same, in another way than usual.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_options(
        memory: Arc<GuestMemory>,
        policy: Arc<CpuPolicy>,
        options: &JitOptions,
    ) -> Result<Self, EngineError> {
        let host = |reason: String| EngineError::Host { engine: "jit", reason };
        if let Some(feature) = host_lacks() {
            return Err(host(format!("the host's processor has no {feature}")));
        }
        let interp = InterpEngine::new(Arc::clone(&memory), policy)?;
        let mut code = CodeMemory::new(options.code_memory).map_err(|e| host(format!("no executable memory: {e}")))?;
        let thunks = thunk::make(&mut code, &crate::vcpu::helpers()).map_err(|e| host(e.to_string()))?;
        crate::signals::install(code.range(), thunks.leave[thunk::Why::Fault as usize])
            .map_err(|e| host(format!("no signal handlers: {e}")))?;
        let registry = Arc::new(SharedRegistry::new(code, thunks));
        let watch: Arc<dyn CodeWatch> = Arc::clone(&registry) as _;
        memory.watch_code(&watch);
        let caps = EngineCaps {
            name: "jit",
            exact_budget: true,
        };
        let shared = Shared {
            registry,
            thunks,
            world: RwLock::new(()),
            flush_wanted: AtomicBool::new(false),
            flushes: AtomicU64::new(0),
            peers: Mutex::default(),
            cold: options.cold,
        };
        Ok(Self {
            caps,
            interp,
            shared: Arc::new(shared),
        })
    }
}

impl Engine for JitEngine {
    fn caps(&self) -> &EngineCaps {
        &self.caps
    }

    fn new_vcpu_on(&self, id: u32, signals: Arc<Signals>) -> Result<Box<dyn Vcpu>, EngineError> {
        let interp = self.interp.vcpu(id, signals)?;
        let mut peers = self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.push(interp.signals());
        Ok(Box::new(JitVcpu::new(interp, Arc::clone(&self.shared))))
    }
}

impl Inspect for JitEngine {
    fn inspect(&self) -> Node {
        let registry = self.shared.registry.lock();
        let (bytes, blocks) = registry.size();
        Node::tree()
            .with("name", self.caps.name)
            .with("code_bytes", bytes as u64)
            .with("blocks", blocks as u64)
            .with("translated", registry.translated)
            .with("pages_overwritten", registry.overwritten)
            .with("evictions", registry.evictions)
            .with("blocks_evicted", registry.evicted)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        crate::signals::remove(self.thunks.enter);
    }
}
