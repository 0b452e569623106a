//! The engine: what the vCPUs of one machine share.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use cpu_model::CpuPolicy;
use cpu_model::Engine;
use cpu_model::EngineCaps;
use cpu_model::EngineError;
use cpu_model::Signal;
use cpu_model::Signals;
use cpu_model::Vcpu;
use device_model::Inspect;
use device_model::Node;
use guest_memory::GuestMemory;

use crate::vcpu::InterpVcpu;

/// One vCPU as the others see it.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) signals: Arc<Signals>,
    /// Inside `run`: it may use its TLB at any moment.
    pub(crate) running: AtomicBool,
    /// Requests to drop write translations, and how many of them have been served.
    pub(crate) asked: AtomicU64,
    pub(crate) served: AtomicU64,
    /// How far its TSC is ahead of guest time.
    tsc_offset: AtomicU64,
    /// What the page of its paravirtual clock says may be wrong.
    clock_due: AtomicBool,
}

impl Peer {
    /// Whether a request waits.
    pub(crate) fn is_asked(&self) -> bool {
        self.served.load(Ordering::Acquire) != self.asked.load(Ordering::SeqCst)
    }

    /// Lets the vCPU compare the page of its clock before it executes another block.
    pub(crate) fn doubt_clock(&self) {
        self.clock_due.store(true, Ordering::SeqCst);
    }

    /// Whether the page is to be compared, which the caller does then.
    pub(crate) fn take_clock_doubt(&self) -> bool {
        self.clock_due.load(Ordering::Relaxed) && self.clock_due.swap(false, Ordering::SeqCst)
    }
}

/// What the vCPUs share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Held for locked accesses that the host's own locked instructions cannot make.
    pub(crate) split_lock: Mutex<()>,
    peers: Mutex<Vec<Arc<Peer>>>,
}

impl Shared {
    pub(crate) fn peers(&self) -> Vec<Arc<Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn join(&self, signals: Arc<Signals>) -> Arc<Peer> {
        let peer = Arc::new(Peer {
            signals,
            running: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            served: AtomicU64::new(0),
            tsc_offset: AtomicU64::new(0),
            clock_due: AtomicBool::new(false),
        });
        self.peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&peer));
        peer
    }

    /// Notes how far the TSC of `me` is ahead of guest time. The clocks of the others say whether all TSCs agree, which may
    /// have changed.
    pub(crate) fn set_tsc_offset(&self, me: &Arc<Peer>, offset: u64) {
        me.tsc_offset.store(offset, Ordering::SeqCst);
        for peer in self.peers().iter().filter(|p| !Arc::ptr_eq(p, me)) {
            peer.doubt_clock();
            peer.signals.raise(Signal::Engine);
        }
    }

    /// Whether the TSCs of all vCPUs show the same.
    pub(crate) fn tscs_agree(&self) -> bool {
        let offset = |peer: &Peer| peer.tsc_offset.load(Ordering::SeqCst);
        self.peers().windows(2).all(|pair| offset(&pair[0]) == offset(&pair[1]))
    }

    /// Makes every other vCPU forget its write translations before it executes another block. `serve` is called while
    /// waiting, so that two vCPUs that ask each other both go on.
    pub(crate) fn drop_writes_of_others(&self, me: &Arc<Peer>, mut serve: impl FnMut()) {
        let others: Vec<_> = self.peers().into_iter().filter(|p| !Arc::ptr_eq(p, me)).collect();
        for peer in &others {
            let ticket = peer.asked.fetch_add(1, Ordering::SeqCst) + 1;
            peer.signals.raise(Signal::Engine);
            let mut spins = 0u32;
            while peer.running.load(Ordering::SeqCst) && peer.served.load(Ordering::Acquire) < ticket {
                serve();
                spins += 1;
                if spins > 64 {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
    }
}

/// The interpreter as an engine.
#[derive(Debug)]
pub struct InterpEngine {
    caps: EngineCaps,
    memory: Arc<GuestMemory>,
    policy: Arc<CpuPolicy>,
    shared: Arc<Shared>,
}

impl InterpEngine {
    /// An engine for a machine with this memory and CPU model.
    ///
    /// # Errors
    /// [`EngineError::Host`] when the host gives no executable memory or lacks what the interpreter itself needs.
    pub fn new(memory: Arc<GuestMemory>, policy: Arc<CpuPolicy>) -> Result<Self, EngineError> {
        crate::native::init()?;
        let caps = EngineCaps {
            name: "interp",
            exact_budget: true,
        };
        Ok(Self {
            caps,
            memory,
            policy,
            shared: Arc::default(),
        })
    }
}

impl InterpEngine {
    /// As [`Engine::new_vcpu_on`], as what it is.
    ///
    /// # Errors
    /// [`EngineError::Host`] when the host refuses.
    pub fn vcpu(&self, id: u32, signals: Arc<Signals>) -> Result<InterpVcpu, EngineError> {
        let peer = self.shared.join(signals);
        let (memory, policy, shared) = (self.memory.clone(), self.policy.clone(), self.shared.clone());
        InterpVcpu::new(id, memory, policy, shared, peer)
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }
}

impl Engine for InterpEngine {
    fn caps(&self) -> &EngineCaps {
        &self.caps
    }

    fn new_vcpu_on(&self, id: u32, signals: Arc<Signals>) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(self.vcpu(id, signals)?))
    }
}

impl Inspect for InterpEngine {
    fn inspect(&self) -> Node {
        Node::tree()
            .with("name", self.caps.name)
            .with("vcpus", self.shared.peers().len() as u64)
    }
}
