//! A vCPU's thread: it runs the guest while the gate is open, and sleeps while the guest is in HLT.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use cpu_model::Activity;
use cpu_model::CpuBoard;
use cpu_model::CpuState;
use cpu_model::EngineError;
use cpu_model::Signal;
use cpu_model::Signals;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::Inspect;
use device_model::Node;
use guest_memory::GuestMemory;
use guest_memory::MapWatch;

use crate::control::TripleFault;
use crate::gate::Gate;

/// x86 EFLAGS.IF (SDM vol. 1 §3.4.3.3).
const RFLAGS_IF: u64 = x86_isa::flags::IF;
/// What ends a sleep whatever state the processor is in.
const ALWAYS: u32 = Signal::Kick as u32 | Signal::Engine as u32 | Signal::Init as u32;

/// A vCPU that its own thread holds while it runs, and the control thread while it stands.
pub(crate) struct VcpuCell {
    pub(crate) id: u32,
    pub(crate) signals: Arc<Signals>,
    memory: Arc<GuestMemory>,
    /// The change of the memory map that the vCPU has last been told of.
    generation: AtomicU64,
    vcpu: Mutex<Box<dyn Vcpu>>,
}

/// Makes every vCPU look at the memory map again.
pub(crate) struct Remapped(pub(crate) Vec<Arc<Signals>>);

impl MapWatch for Remapped {
    fn remapped(&self) {
        self.0.iter().for_each(|signals| signals.raise(Signal::Kick));
    }
}

/// What a vCPU's thread has to say when it leaves the gate on its own.
pub(crate) enum VcpuEvent {
    /// A triple fault.
    TripleFault(TripleFault),
    /// The engine gave up.
    Failed(String),
}

impl VcpuCell {
    pub(crate) fn new(id: u32, vcpu: Box<dyn Vcpu>, memory: Arc<GuestMemory>) -> Arc<Self> {
        Arc::new(Self {
            id,
            signals: vcpu.signals(),
            generation: AtomicU64::new(memory.overlay().generation()),
            memory,
            vcpu: Mutex::new(vcpu),
        })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Box<dyn Vcpu>> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The body of the thread. `report` must not wait for the thread.
    pub(crate) fn thread(&self, board: &dyn CpuBoard, gate: &Gate, report: impl Fn(VcpuEvent)) {
        while gate.enter() {
            let event = self.run_while_open(board, gate);
            gate.leave();
            if let Some(event) = event {
                report(event);
            }
        }
    }

    fn run_while_open(&self, board: &dyn CpuBoard, gate: &Gate) -> Option<VcpuEvent> {
        let mut vcpu = self.lock();
        while gate.is_open() {
            if let Err(error) = self.follow_memory(&mut **vcpu) {
                gate.hold();
                return Some(VcpuEvent::Failed(chain(&error)));
            }
            match vcpu.run(board, None) {
                Ok(Stop::Kicked) => {
                    self.signals.take(Signal::Kick);
                }
                Ok(Stop::Halted) => self.sleep(&mut **vcpu, gate),
                Ok(Stop::Budget | Stop::Debug) => {}
                Ok(Stop::TripleFault) => {
                    gate.hold();
                    return Some(VcpuEvent::TripleFault(triple_fault(self.id, &mut **vcpu)));
                }
                Err(error) => {
                    gate.hold();
                    return Some(VcpuEvent::Failed(chain(&error)));
                }
            }
        }
        None
    }

    /// Lets the vCPU forget what it has looked up of a memory map that has changed: taking over a state is all that it takes.
    fn follow_memory(&self, vcpu: &mut dyn Vcpu) -> Result<(), EngineError> {
        let now = self.memory.overlay().generation();
        if self.generation.swap(now, Ordering::Relaxed) == now {
            return Ok(());
        }
        let state = vcpu.state();
        vcpu.set_state(&state)
    }

    /// Sleeps until a signal comes that the halted vCPU can act on. The state is only asked for when an input is pending
    /// already: mostly none is.
    fn sleep(&self, vcpu: &mut dyn Vcpu, gate: &Gate) {
        let idle = self.signals.pending() == 0;
        let mask = if idle {
            u32::MAX
        } else {
            let state = vcpu.state();
            if goes_on(&state) {
                return;
            }
            wake_mask(&state)
        };
        self.signals.wait(mask, None);
        if !gate.is_open() {
            self.signals.take(Signal::Kick);
        }
    }
}

/// Whether a vCPU in `state` has taken a signal over that ends its sleep: asking for the state does that.
fn goes_on(state: &CpuState) -> bool {
    let pending = &state.pending;
    let nmi = pending.nmi && !pending.nmi_blocked;
    match state.activity {
        Activity::Active => true,
        Activity::Halted => nmi || pending.unhalted,
        Activity::WaitSipi | Activity::Shutdown => false,
    }
}

/// The signals that a vCPU in `state` can act on. Waiting for others would never sleep once they are pending.
fn wake_mask(state: &CpuState) -> u32 {
    let nmi = if state.pending.nmi_blocked {
        0
    } else {
        Signal::Nmi as u32
    };
    let unhalt = Signal::Unhalt as u32;
    match state.activity {
        Activity::WaitSipi => ALWAYS | Signal::Sipi as u32,
        Activity::Shutdown => ALWAYS | nmi,
        Activity::Halted if state.rflags & RFLAGS_IF == 0 => ALWAYS | nmi | unhalt,
        Activity::Halted | Activity::Active => ALWAYS | nmi | unhalt | Signal::Interrupt as u32,
    }
}

fn triple_fault(cpu: u32, vcpu: &mut dyn Vcpu) -> TripleFault {
    let state = vcpu.state();
    let last_exception = match vcpu.inspect().at("last_exception") {
        Some(Node::Text(text)) => text.clone(),
        _ => "none recorded".to_owned(),
    };
    TripleFault {
        cpu,
        rip: state.rip,
        cr3: state.cr3,
        last_exception,
    }
}

fn chain(error: &EngineError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

impl Inspect for VcpuCell {
    fn inspect(&self) -> Node {
        self.lock().inspect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(activity: Activity, rflags: u64) -> CpuState {
        CpuState {
            activity,
            rflags,
            ..CpuState::default()
        }
    }

    #[test]
    fn wake_mask_leaves_out_what_the_state_cannot_take() {
        let interrupt = Signal::Interrupt as u32;
        let nmi = Signal::Nmi as u32;
        let mask = |activity, rflags| wake_mask(&state(activity, rflags));
        assert_eq!(mask(Activity::Halted, RFLAGS_IF) & (interrupt | nmi), interrupt | nmi);
        assert_eq!(mask(Activity::Halted, 0) & (interrupt | nmi), nmi);
        let waiting = mask(Activity::WaitSipi, RFLAGS_IF);
        assert_eq!(waiting & (interrupt | nmi), 0);
        assert_ne!(waiting & Signal::Sipi as u32, 0);
        let mut blocked = state(Activity::Halted, RFLAGS_IF);
        blocked.pending.nmi_blocked = true;
        assert_eq!(wake_mask(&blocked) & nmi, 0);
    }

    #[test]
    fn signal_that_the_state_has_taken_over_ends_the_sleep() {
        let mut halted = state(Activity::Halted, 0);
        assert!(!goes_on(&halted));
        halted.pending.unhalted = true;
        assert!(goes_on(&halted));
        halted.pending.unhalted = false;
        halted.pending.nmi = true;
        assert!(goes_on(&halted));
        halted.pending.nmi_blocked = true;
        assert!(!goes_on(&halted));
        let mut waiting = state(Activity::WaitSipi, 0);
        waiting.pending.nmi = true;
        assert!(!goes_on(&waiting));
    }

    #[test]
    fn wake_mask_always_lets_kicks_through() {
        for activity in [
            Activity::Active,
            Activity::Halted,
            Activity::WaitSipi,
            Activity::Shutdown,
        ] {
            assert_ne!(wake_mask(&state(activity, 0)) & Signal::Kick as u32, 0);
        }
    }
}
