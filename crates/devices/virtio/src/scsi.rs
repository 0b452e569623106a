//! SCSI host: disks and CD drives, each a target with one logical unit, by any number of request queues up to 16.
//!
//! What a command means is `storage::scsi`; workers carry requests out. Task management waits for the commands that it ends,
//! rather than cutting them short. Targets come and go, which the driver is told by events.
//!
//! Spec: virtio 1.2 §5.6.

mod control;
mod events;
mod wire;

use std::sync::Arc;

use device_model::Inspect;
use device_model::Node;
use device_model::RestoreError;
use device_model::Schema;
use device_model::Snapshot;
use device_model::VmTime;
use guest_memory::GuestMemory;
use serde::Deserialize;
use serde::Serialize;
use storage::Channel;
use storage::Data;
use storage::Executor;
use storage::Outcome;
use storage::Request;
use storage::Submitted;
use storage::Tray;
use storage::Waker;
use storage::scsi::Action;
use storage::scsi::LogicalUnit;
use storage::scsi::SENSE;
use storage::scsi::UnitState;

use crate::Chain;
use crate::RingError;
use crate::Rings;
use crate::VirtioDevice;
use crate::id;
use crate::queue::index;
use control::Deferred;
use events::Events;
use events::What;
use events::scsi_feature;
use wire::Address;
use wire::Answer;
use wire::Limits;
use wire::response;

/// Targets at most.
pub const TARGETS: usize = 64;
/// Request queues at most.
pub const QUEUES: u16 = 16;
/// Entries of each queue.
const ENTRIES: u16 = 256;
/// The queues of task management and of events; those of requests follow (§5.6.2).
const CONTROL: usize = 0;
const EVENTS: usize = 1;
const REQUESTS: u16 = 2;
/// Commands that are under way at most.
const BUSY: usize = 256;

/// A command that waits for the medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    token: u64,
    queue: u16,
    target: u8,
    /// What the driver calls it.
    tag: u64,
    /// Where the answer goes.
    answer: Chain,
    /// Bytes that the driver has room for, or gives, and that are not used.
    residual: u32,
    request: Request,
    /// The target that it was for is gone.
    lost: bool,
    /// A worker has it. After a restore none has.
    #[serde(skip)]
    submitted: Submitted,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counters {
    commands: u64,
    failed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    limits: Limits,
    pending: Vec<Pending>,
    /// Task management that waits for commands to end.
    deferred: Vec<Deferred>,
    events: Events,
    next_token: u64,
    counters: Counters,
}

impl State {
    fn new() -> Self {
        Self {
            limits: Limits::default(),
            pending: Vec::new(),
            deferred: Vec::new(),
            events: Events::default(),
            next_token: 0,
            counters: Counters::default(),
        }
    }
}

/// The device.
pub struct Scsi {
    // Wiring
    work: Channel,
    // Configuration
    queues: u16,
    // State
    /// Target 0 first.
    units: Vec<Option<LogicalUnit>>,
    state: State,
}

/// A command as it has come.
struct Command {
    queue: u16,
    target: u8,
    tag: u64,
    cdb: Vec<u8>,
    /// Where the answer goes, what the driver gives, and where it has room.
    answer: Chain,
    data: Chain,
}

impl Scsi {
    /// A host with a place for a target for each of `units`, at most [`TARGETS`], and so many request queues: one for each
    /// processor.
    #[must_use]
    pub fn new(
        mut units: Vec<Option<LogicalUnit>>,
        queues: u16,
        memory: &Arc<GuestMemory>,
        executor: &Arc<dyn Executor>,
        waker: &Waker,
    ) -> Self {
        units.truncate(TARGETS);
        Self {
            work: Channel::new(Arc::clone(executor), Arc::clone(memory), Arc::clone(waker)),
            queues: queues.clamp(1, QUEUES),
            units,
            state: State::new(),
        }
    }

    /// Hands the tray of a target's drive to `f`, if it has one. The driver is told when the disc is another one then.
    pub fn with_tray<R>(&mut self, target: usize, f: impl FnOnce(&mut dyn Tray) -> R) -> Option<R> {
        let unit = self.units.get_mut(target)?.as_mut()?;
        let before = unit.medium().cloned();
        let result = f(unit.tray()?);
        let same = match (&before, unit.medium()) {
            (None, None) => true,
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            _ => false,
        };
        if !same {
            let (code, qualifier) = storage::scsi::MEDIUM_CHANGED;
            self.state.events.add(target, What::Changed(code, qualifier));
        }
        Some(result)
    }

    /// Whether a target is there; none where there is no place for it.
    #[must_use]
    pub fn is_occupied(&self, target: usize) -> Option<bool> {
        self.units.get(target).map(Option::is_some)
    }

    /// Plugs a target in, or out, in the place of what was there; false where there is no such place. Commands that are under
    /// way at the old one fail. The driver is told.
    pub fn plug(&mut self, target: usize, unit: Option<LogicalUnit>) -> bool {
        let Some(place) = self.units.get_mut(target) else {
            return false;
        };
        let came = unit.is_some();
        if std::mem::replace(place, unit).is_some() {
            self.state.events.add(target, What::Went);
            for pending in &mut self.state.pending {
                pending.lost |= usize::from(pending.target) == target;
            }
        }
        if came {
            self.state.events.add(target, What::Came);
        }
        true
    }

    fn unit(&self, target: u8) -> Option<&LogicalUnit> {
        self.units.get(usize::from(target))?.as_ref()
    }

    fn unit_mut(&mut self, target: u8) -> Option<&mut LogicalUnit> {
        self.units.get_mut(usize::from(target))?.as_mut()
    }

    /// Takes answers and commands, until nothing is left that can be done now.
    fn go(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        loop {
            self.resubmit();
            self.collect(rings)?;
            self.manage(rings)?;
            if self.work.is_held() || !self.fetch(rings)? {
                self.collect(rings)?;
                return self.manage(rings);
            }
        }
    }

    /// Requests that no worker has are handed over.
    fn resubmit(&mut self) {
        if self.work.is_held() {
            return;
        }
        let waits = |pending: &&mut Pending| !pending.submitted.0 && !pending.lost;
        for pending in self.state.pending.iter_mut().filter(waits) {
            let unit = self.units.get(usize::from(pending.target)).and_then(Option::as_ref);
            // A disc that was taken out meanwhile is missed when the machine is polled next.
            if let Some(medium) = unit.and_then(LogicalUnit::medium) {
                pending.submitted.0 = true;
                self.work.submit(medium, pending.token, pending.request.clone());
            }
        }
    }

    fn collect(&mut self, rings: &mut Rings<'_>) -> Result<(), RingError> {
        while let Some((token, outcome)) = self.work.answer() {
            let at = self.state.pending.iter().position(|pending| pending.token == token);
            let Some(at) = at else { continue };
            let pending = self.state.pending.swap_remove(at);
            self.end(pending, outcome, rings)?;
        }
        // Those whose medium is gone.
        while let Some(at) = self.orphan() {
            let pending = self.state.pending.swap_remove(at);
            let gone = storage::Fault::Medium(storage::MediumError::Failed);
            self.end(pending, Err(gone), rings)?;
        }
        Ok(())
    }

    /// A request that can be handed to nobody.
    fn orphan(&self) -> Option<usize> {
        let gone = |target: u8| self.unit(target).and_then(LogicalUnit::medium).is_none();
        let mut pending = self.state.pending.iter();
        pending.position(|pending| !pending.submitted.0 && (pending.lost || gone(pending.target)))
    }

    fn end(&mut self, pending: Pending, outcome: Outcome, rings: &mut Rings<'_>) -> Result<(), RingError> {
        let mut answer = Answer::new(response::OK);
        answer.residual = pending.residual;
        let mut moved = 0;
        match outcome {
            Ok(_) => {
                if pending.request.op == storage::Op::Read {
                    moved = u32::try_from(pending.request.len).unwrap_or(u32::MAX);
                }
            }
            Err(fault) => {
                let len = u32::try_from(pending.request.len).unwrap_or(u32::MAX);
                answer.residual = pending.residual.saturating_add(len);
                match self.unit_mut(pending.target) {
                    Some(unit) if !pending.lost => answer.check(unit.fault(fault)),
                    _ => answer.response = response::BAD_TARGET,
                }
            }
        }
        self.answer(pending.queue, pending.answer, &answer, moved, rings)
    }

    /// Answers a command, `moved` bytes of whose data were written.
    fn answer(
        &mut self,
        queue: u16,
        mut chain: Chain,
        answer: &Answer,
        moved: u32,
        rings: &mut Rings<'_>,
    ) -> Result<(), RingError> {
        let counters = &mut self.state.counters;
        counters.commands = counters.commands.wrapping_add(1);
        counters.failed = counters.failed.wrapping_add(answer.has_failed().into());
        let bytes = answer.bytes(self.state.limits.sense);
        let put = chain.put(rings.memory(), &bytes)?;
        let written = u32::try_from(put).unwrap_or(0).saturating_add(moved);
        rings.push(queue.into(), chain.head, written);
        Ok(())
    }

    /// Takes a command from each queue that has one. False when none has, or too many are under way.
    fn fetch(&mut self, rings: &mut Rings<'_>) -> Result<bool, RingError> {
        let mut fetched = false;
        for queue in REQUESTS..REQUESTS + self.queues {
            if self.state.pending.len() >= BUSY {
                return Ok(false);
            }
            let Some(chain) = rings.pop(queue.into()) else {
                continue;
            };
            fetched = true;
            self.take(queue, chain, rings)?;
        }
        Ok(fetched)
    }

    fn take(&mut self, queue: u16, mut chain: Chain, rings: &mut Rings<'_>) -> Result<(), RingError> {
        let Limits { cdb, .. } = self.state.limits;
        let mut head = vec![0; wire::COMMAND + usize::from(cdb)];
        chain.take(rings.memory(), &mut head)?;
        let answer = chain.split(self.state.limits.answer())?;
        let (address, tag) = wire::addressed(&head);
        let cdb = head.split_off(wire::COMMAND);
        let Address { target, unit } = match address {
            Some(address) if self.unit(address.target).is_some() => address,
            _ => {
                let bad = Answer::new(response::BAD_TARGET);
                return self.answer(queue, answer, &bad, 0, rings);
            }
        };
        let command = Command {
            queue,
            target,
            tag,
            cdb,
            answer,
            data: chain,
        };
        let action = match (storage::scsi::report_luns(&command.cdb), unit) {
            (Some(action), _) => action,
            (None, 0) => match self.unit_mut(target) {
                Some(unit) => unit.command(&command.cdb),
                None => storage::scsi::nobody(&command.cdb),
            },
            (None, _) => storage::scsi::nobody(&command.cdb),
        };
        self.act(command, action, rings)
    }

    /// Does what a command needs.
    fn act(&mut self, mut command: Command, action: Action, rings: &mut Rings<'_>) -> Result<(), RingError> {
        let room = command.data.writable_len().saturating_add(command.data.readable_len());
        let mut answer = Answer::new(response::OK);
        answer.residual = u32::try_from(room).unwrap_or(u32::MAX);
        let mut moved = 0;
        match action {
            Action::Good => {}
            Action::Check(sense) => answer.check(sense),
            Action::Conflict => answer.conflict(),
            Action::Send(bytes) => {
                moved = u32::try_from(command.data.put(rings.memory(), &bytes)?).unwrap_or(0);
                answer.residual = answer.residual.saturating_sub(moved);
                if index(moved.into()) < bytes.len() {
                    answer.response = response::OVERRUN;
                }
            }
            Action::Take(len) if (len as u64) > command.data.readable_len() => answer.response = response::OVERRUN,
            Action::Take(len) => {
                let mut bytes = vec![0; len];
                command.data.take(rings.memory(), &mut bytes)?;
                let unit = self.unit_mut(command.target);
                let next = unit.map_or(Action::Good, |unit| unit.receive(&command.cdb, &bytes));
                // What comes after parameters moves no data.
                match next {
                    Action::Ask(request) => return self.ask(command, request),
                    Action::Check(sense) => answer.check(sense),
                    Action::Conflict => answer.conflict(),
                    _ => answer.residual = u32::try_from(command.data.readable_len()).unwrap_or(u32::MAX),
                }
            }
            Action::Move(mut request) => {
                let reads = request.op == storage::Op::Read;
                let data = &mut command.data;
                let taken = if reads {
                    data.split(request.len)
                } else {
                    data.split_readable(request.len)
                };
                match taken {
                    Ok(part) => {
                        request.data = Data::Guest(if reads { part.writable } else { part.readable });
                        return self.ask(command, request);
                    }
                    Err(_) => answer.response = response::OVERRUN,
                }
            }
            Action::Ask(request) => return self.ask(command, request),
        }
        self.answer(command.queue, command.answer, &answer, moved, rings)
    }

    /// Lets a worker do what a command asks for.
    fn ask(&mut self, command: Command, request: Request) -> Result<(), RingError> {
        let left = command.data.writable_len().saturating_add(command.data.readable_len());
        let token = self.state.next_token;
        self.state.next_token = token.wrapping_add(1);
        self.state.pending.push(Pending {
            token,
            queue: command.queue,
            target: command.target,
            tag: command.tag,
            answer: command.answer,
            residual: u32::try_from(left).unwrap_or(u32::MAX),
            request,
            lost: false,
            submitted: Submitted(false),
        });
        self.resubmit();
        Ok(())
    }
}

impl VirtioDevice for Scsi {
    fn id(&self) -> u16 {
        id::SCSI
    }

    fn features(&self) -> u64 {
        scsi_feature::HOTPLUG | scsi_feature::CHANGE
    }

    fn queues(&self) -> Vec<u16> {
        vec![ENTRIES; usize::from(REQUESTS + self.queues)]
    }

    fn config(&self) -> Vec<u8> {
        let targets = u16::try_from(self.units.len()).unwrap_or(u16::MAX);
        self.state.limits.config(self.queues, targets)
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        self.state.limits.write(offset, bytes);
    }

    fn activate(&mut self, features: u64) {
        self.state.events.listen(features);
    }

    fn poll(&mut self, _now: VmTime, rings: &mut Rings<'_>) -> Option<VmTime> {
        self.work.hold(false);
        let done = self.tell(rings).and_then(|()| self.go(rings));
        rings.check(done);
        None
    }

    fn quiesce(&mut self, rings: Option<&mut Rings<'_>>) -> bool {
        self.work.hold(true);
        match rings {
            Some(rings) => {
                let done = self.collect(rings);
                rings.check(done);
            }
            // Nobody waits for them.
            None => while self.work.answer().is_some() {},
        }
        self.work.in_flight() == 0
    }

    fn reset(&mut self) {
        self.work.abandon();
        self.state = State::new();
        self.units.iter_mut().flatten().for_each(LogicalUnit::reset);
    }

    fn power_off(&mut self) {
        self.units.iter_mut().flatten().for_each(LogicalUnit::power_off);
    }
}

impl Snapshot for Scsi {
    type State = ScsiV1;

    fn save(&self) -> ScsiV1 {
        let Self {
            work: _,
            queues: _,
            units,
            state,
        } = self;
        ScsiV1 {
            units: units.iter().map(|unit| unit.as_ref().map(LogicalUnit::save)).collect(),
            state: state.clone(),
        }
    }

    fn restore(&mut self, saved: ScsiV1) -> Result<(), RestoreError> {
        let ScsiV1 { units, state } = saved;
        let invalid = |what: &str| RestoreError::Invalid(format!("a SCSI host with {what}"));
        let same = |(here, there): (&Option<_>, &Option<_>)| here.is_some() == there.is_some();
        if units.len() != self.units.len() || !self.units.iter().zip(&units).all(same) {
            return Err(invalid("other targets"));
        }
        if state.pending.len() > BUSY || state.deferred.len() > usize::from(ENTRIES) {
            return Err(invalid("too much under way"));
        }
        state.limits.check()?;
        state.events.check()?;
        let queues = REQUESTS..REQUESTS + self.queues;
        for pending in &state.pending {
            if !queues.contains(&pending.queue) || usize::from(pending.target) >= units.len() {
                return Err(invalid("commands from nowhere"));
            }
            pending.request.check()?;
            pending.answer.check()?;
        }
        for deferred in &state.deferred {
            deferred.check()?;
        }
        self.work.abandon();
        for (unit, saved) in self.units.iter_mut().zip(units) {
            if let (Some(unit), Some(saved)) = (unit, saved) {
                unit.restore(saved)?;
            }
        }
        self.state = state;
        Ok(())
    }
}

impl Inspect for Scsi {
    fn inspect(&self) -> Node {
        let mut targets = Node::tree();
        for (number, unit) in self.units.iter().enumerate() {
            let Some(unit) = unit else { continue };
            targets = targets.with(&number.to_string(), unit.inspect());
        }
        Node::tree()
            .with("queues", self.queues)
            .with("commands", self.state.counters.commands)
            .with("failed", self.state.counters.failed)
            .with("under_way", self.state.pending.len() as u64)
            .with("managed", self.state.deferred.len() as u64)
            .with("events", self.state.events.waiting() as u64)
            .with("events_missed", self.state.events.missed())
            .with("targets", targets)
    }
}

/// Saved state of [`Scsi`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScsiV1 {
    units: Vec<Option<UnitState>>,
    state: State,
}

impl Schema for ScsiV1 {
    const NAME: &'static str = "virtio_scsi";
    const VERSION: u32 = 1;
}

#[cfg(test)]
mod tests;
