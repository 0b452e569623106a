//! Instructions that the kernel cannot execute: the interpreter does, on the vCPU's state.
//!
//! Where the processor executes guests these are few: instructions on device memory that the kernel's emulator does not
//! know. A kernel that emulates all of a guest's code meets many, SSE among them. The interpreter takes the state over,
//! executes that instruction and some more, and gives the state back. It uses the same memory, board and signals, so that
//! interrupts and kicks reach it. Runs get longer while the kernel gets stuck again at once: such instructions come in
//! crowds.
//!
//! Spec: KVM api.rst §5 (KVM_EXIT_INTERNAL_ERROR), §7.25 (KVM_CAP_EXIT_ON_EMULATION_FAILURE).

use std::sync::Arc;

use cpu_model::CpuBoard;
use cpu_model::EngineError;
use cpu_model::Signal;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::Node;
use x86_interp::InterpVcpu;

use crate::engine::Shared;
use crate::exits::Exit;
use crate::time::Moment;
use crate::vcpu::KvmVcpu;

/// Instructions of the shortest run, and of the longest.
const SHORTEST: u64 = 32;
const LONGEST: u64 = 32 * 1024;

/// How long the interpreter runs.
#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    count: u64,
    /// Instructions of the last one.
    length: u64,
    /// How often the guest had been entered when the kernel got stuck last.
    entries: u64,
}

/// The interpreter in the place of one vCPU.
pub(crate) struct StandIn {
    vcpu: InterpVcpu,
    runs: Runs,
    /// Linear address and bytes of the last instruction that the kernel got stuck at.
    last: String,
}

impl Runs {
    /// How many instructions are to be executed, now that the guest has been entered so often.
    fn next(&mut self, entries: u64) -> u64 {
        // The first entry after a run has led nowhere.
        let at_once = entries.wrapping_sub(self.entries) <= 1;
        self.length = if at_once && self.count != 0 {
            (self.length * 2).min(LONGEST)
        } else {
            SHORTEST
        };
        self.entries = entries;
        self.count += 1;
        self.length
    }
}

impl StandIn {
    fn new(id: u32, shared: &Shared, signals: Arc<cpu_model::Signals>) -> Result<Self, EngineError> {
        let mut vcpu = shared.stand_in()?.vcpu(id, signals)?;
        vcpu.stand_in();
        Ok(Self {
            vcpu,
            runs: Runs::default(),
            last: String::new(),
        })
    }

    pub(crate) fn inspect(&self) -> Node {
        Node::tree()
            .with("count", self.runs.count)
            .with("instructions", self.vcpu.executed())
            .with("last", self.last.clone())
    }
}

impl KvmVcpu {
    /// Executes what the kernel cannot.
    pub(crate) fn rescue(&mut self, board: &dyn CpuBoard) -> Result<Exit, EngineError> {
        let mut stand_in = match self.stand_in.take() {
            Some(stand_in) => stand_in,
            None => Box::new(StandIn::new(self.id, &self.shared, self.signals())?),
        };
        let stepping = self.is_stepping();
        let place = self.place();
        if stand_in.runs.count == 0 {
            tracing::info!(cpu = self.id, "the kernel cannot execute {place}; the interpreter does");
        }
        stand_in.last = place;
        let length = stand_in.runs.next(self.counters.entries);
        let result = self.interpret(&mut stand_in.vcpu, board, if stepping { 1 } else { length });
        self.stand_in = Some(stand_in);
        result?;
        Ok(if stepping { Exit::Step } else { Exit::Done })
    }

    fn interpret(&mut self, vcpu: &mut InterpVcpu, board: &dyn CpuBoard, budget: u64) -> Result<(), EngineError> {
        // The TSC is to go on from now.
        self.shared.time.look(Moment::now(board));
        let before = self.save()?;
        // Nobody told it of what the guest has written since.
        vcpu.forget_code();
        vcpu.set_state(&before)?;
        let stop = vcpu.run(board, Some(budget))?;
        self.shared.slots.note_unseen_writes();
        let after = vcpu.state();
        self.load_here(&after)?;
        if stop == Stop::Kicked {
            // It was meant for us.
            self.signals().raise(Signal::Kick);
        }
        let moved = after.msrs.tsc_offset.wrapping_sub(before.msrs.tsc_offset);
        if moved != 0 {
            self.shift_tsc(moved)?;
        }
        if let Ok(base) = board.apic_read_msr(self.id, x86_isa::msr::APIC_BASE) {
            self.follow_apic_base(base)?;
        }
        // The interpreter's TSC counts at another frequency.
        self.attend_clock(board);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_get_longer_while_the_kernel_gets_stuck_at_once() {
        let mut runs = Runs::default();
        assert_eq!([1, 2, 3, 4].map(|entries| runs.next(entries)), [32, 64, 128, 256]);
        assert_eq!(
            [6, 7, 7].map(|entries| runs.next(entries)),
            [32, 64, 128],
            "it went on for a while"
        );
        assert_eq!((8..40).map(|entries| runs.next(entries)).max(), Some(LONGEST));
        assert_eq!(runs.count, 39);
    }
}
