//! The control thread: the one owner of a machine's run state.
//!
//! ```text
//!   Created ──start──► Running ◄──pause / resume──► Paused
//!                         │                            │
//!                         └──────────► Stopped ◄───────┘
//! ```
//!
//! Requests of the host and events of the guest come through one queue, so that no two transitions ever meet. A guest
//! that resets its machine or turns it off is held at once, on the thread that noticed; the control thread then decides
//! what follows.
//!
//! A guest that sleeps (ACPI S3) is one of a running machine: time goes on and devices are polled, but the gate stays
//! held until power management wakes it.

use std::fmt;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use chipset::reset_control::PowerControl;
use cpu_model::EngineError;
use device_model::Node;
use device_model::Reset;
use device_model::RestoreError;
use serde::Serialize;
use spec::Attachment;
use spec::Bay;
use spec::EngineKind;
use spec::OnReset;
use spec::OnTripleFault;

use crate::events;
use crate::gate::Gate;
use crate::hotplug::Attach;
use crate::hotplug::Attached;
use crate::hotplug::PlugError;
use crate::machine::Parts;
use crate::state::MachineState;
use crate::storage::ImageMedium;
use crate::vcpu::VcpuEvent;

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    /// Built, not yet started.
    Created,
    /// The guest executes.
    Running,
    /// The guest sleeps with its memory kept (ACPI S3): its processors stand still, its time goes on.
    Suspended,
    /// The guest stands still, and so does its time.
    Paused,
    /// The machine has come to its end.
    Stopped,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// Where a processor stood when a fault could not be delivered, nor the double fault after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TripleFault {
    /// Processor number.
    pub cpu: u32,
    /// Instruction pointer.
    pub rip: u64,
    /// Page-table root.
    pub cr3: u64,
    /// The exception that began it, as the engine describes it.
    pub last_exception: String,
}

impl fmt::Display for TripleFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            rip,
            cr3,
            last_exception,
        } = self;
        write!(
            f,
            "triple fault on cpu {cpu}: RIP {rip:#x}, CR3 {cr3:#x}, last exception {last_exception}"
        )
    }
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest turned the power off.
    PowerOff,
    /// The guest reset the machine, and the spec says that this is the end.
    Reset,
    /// The guest wrote this value to the debug-exit port.
    DebugExit(u8),
    /// A processor shut down.
    TripleFault(TripleFault),
    /// The host stopped it.
    Stopped,
    /// The machine could not go on, through no fault of the guest.
    Failed(String),
}

/// Something that happened to a machine, for those who watch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// It does something else now.
    State(RunState),
    /// It was reset, and the guest boots again.
    Reset {
        /// The guest did that itself; else it was the button.
        by_guest: bool,
    },
    /// A drive was attached.
    Attached(Attachment),
    /// A drive has gone; its image is closed.
    Detached {
        /// Its name.
        id: String,
    },
    /// It came to its end.
    Ended(Outcome),
}

/// Told of events. Called on the machine's control thread: must return soon, and must not ask the machine anything.
pub type Watcher = Box<dyn Fn(&MachineEvent) + Send>;

/// A request that does not fit the run state, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The transition does not exist.
    #[error("cannot {what} a machine that is {state}")]
    Transition {
        /// What was asked for.
        what: &'static str,
        /// What the machine is doing.
        state: RunState,
    },
    /// The host gave no thread.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// A saved state does not fit the machine.
    #[error("cannot restore the machine")]
    Restore(#[source] RestoreError),
    /// The machine cannot go on with another engine.
    #[error("cannot change the engine")]
    Engine(#[source] EngineError),
    /// Guest memory could not be copied.
    #[error("cannot copy guest memory")]
    Memory(#[source] guest_memory::MemoryError),
}

/// Answer to a request.
pub(crate) type Reply<T> = Sender<Result<T, StateError>>;

/// What the control thread is asked.
pub(crate) enum Request {
    Start(Reply<()>),
    Pause(Reply<()>),
    Resume(Reply<()>),
    Reset(Reply<()>),
    Stop(Reply<()>),
    State(Reply<RunState>),
    Inspect(Reply<Node>),
    Save(Reply<MachineState>),
    Restore(Box<MachineState>, Reply<()>),
    SwitchEngine(EngineKind, Reply<()>),
    Attach(
        Box<Attach>,
        Option<Arc<ImageMedium>>,
        Reply<Result<Attachment, PlugError>>,
    ),
    Detach(String, bool, Reply<Result<bool, PlugError>>),
    Watch(Watcher),
    Guest(GuestEvent),
    Quit,
}

/// What the guest did to its machine.
pub(crate) enum GuestEvent {
    PowerOff,
    Reset,
    Sleep,
    Wake,
    DebugExit(u8),
    /// What is there may be pulled out.
    GivenUp(Bay),
    Vcpu(VcpuEvent),
}

/// The power switch that chips are wired to.
pub(crate) struct PowerPort {
    gate: Arc<Gate>,
    requests: Sender<Request>,
}

impl PowerPort {
    pub(crate) fn new(gate: Arc<Gate>, requests: Sender<Request>) -> Self {
        Self { gate, requests }
    }

    fn event(&self, event: GuestEvent) {
        // First the gate: not many instructions should follow the one that asked.
        self.gate.hold();
        self.tell(event);
    }

    /// The guest has turned off or ejected what is in `bay`.
    pub(crate) fn given_up(&self, bay: Bay) {
        self.event(GuestEvent::GivenUp(bay));
    }

    fn tell(&self, event: GuestEvent) {
        // The control thread is gone only when the machine is.
        let _ = self.requests.send(Request::Guest(event));
    }
}

impl PowerControl for PowerPort {
    fn power_off(&self) {
        self.event(GuestEvent::PowerOff);
    }

    fn reset(&self) {
        self.event(GuestEvent::Reset);
    }

    fn suspend(&self) {
        tracing::info!("guest asleep");
        self.gate.sleep();
        self.tell(GuestEvent::Sleep);
    }

    fn wake(&self) {
        self.tell(GuestEvent::Wake);
    }

    fn debug_exit(&self, code: u8) {
        self.event(GuestEvent::DebugExit(code));
    }
}

/// The place where the outcome appears.
#[derive(Default)]
pub(crate) struct OutcomeCell {
    outcome: Mutex<Option<Outcome>>,
    set: Condvar,
}

impl OutcomeCell {
    fn set(&self, outcome: Outcome) {
        let mut cell = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        cell.get_or_insert(outcome);
        self.set.notify_all();
    }

    /// Waits for the outcome, for at most `timeout`.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Option<Outcome> {
        let deadline = timeout.and_then(|time| Instant::now().checked_add(time));
        let mut cell = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        while cell.is_none() {
            let Some(deadline) = deadline else {
                cell = self.set.wait(cell).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            (cell, _) = self
                .set
                .wait_timeout(cell, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
        cell.clone()
    }
}

/// The control thread's own state.
pub(crate) struct Controller {
    parts: Arc<Parts>,
    requests: Sender<Request>,
    outcome: Arc<OutcomeCell>,
    state: RunState,
    threads: Vec<JoinHandle<()>>,
    watchers: Vec<Watcher>,
}

impl Controller {
    pub(crate) fn new(parts: Arc<Parts>, requests: Sender<Request>, outcome: Arc<OutcomeCell>) -> Self {
        Self {
            parts,
            requests,
            outcome,
            state: RunState::Created,
            threads: Vec::new(),
            watchers: Vec::new(),
        }
    }

    /// The body of the control thread.
    pub(crate) fn run(mut self, queue: &Receiver<Request>) {
        while let Ok(request) = queue.recv() {
            // A caller that no longer waits for its answer is none of our business.
            match request {
                Request::Start(reply) => drop(reply.send(self.start())),
                Request::Pause(reply) => drop(reply.send(self.pause())),
                Request::Resume(reply) => drop(reply.send(self.resume())),
                Request::Reset(reply) => drop(reply.send(self.reset_by_host())),
                Request::Stop(reply) => {
                    self.stop(Outcome::Stopped);
                    drop(reply.send(Ok(())));
                }
                Request::State(reply) => drop(reply.send(Ok(self.visible_state()))),
                Request::Inspect(reply) => drop(reply.send(Ok(self.standing(Parts::inspect)))),
                Request::Save(reply) => drop(reply.send(self.save())),
                Request::Restore(state, reply) => drop(reply.send(self.restore(&state))),
                Request::SwitchEngine(kind, reply) => drop(reply.send(self.switch_engine(kind))),
                Request::Attach(wish, medium, reply) => drop(reply.send(self.attach(&wish, medium))),
                Request::Detach(id, force, reply) => drop(reply.send(self.detach(&id, force))),
                Request::Watch(watcher) => self.watchers.push(watcher),
                Request::Guest(event) => self.guest_event(event),
                Request::Quit => break,
            }
        }
        self.stop(Outcome::Stopped);
    }

    fn tell(&self, event: &MachineEvent) {
        self.watchers.iter().for_each(|watcher| watcher(event));
    }

    fn tell_state(&self) {
        self.tell(&MachineEvent::State(self.visible_state()));
    }

    fn visible_state(&self) -> RunState {
        match self.state {
            RunState::Running if self.parts.gate.is_asleep() => RunState::Suspended,
            state => state,
        }
    }

    fn expect(&self, what: &'static str, allowed: &[RunState]) -> Result<(), StateError> {
        if allowed.contains(&self.state) {
            return Ok(());
        }
        Err(StateError::Transition {
            what,
            state: self.visible_state(),
        })
    }

    fn start(&mut self) -> Result<(), StateError> {
        self.expect("start", &[RunState::Created])?;
        if let Err(error) = self.spawn_threads() {
            self.stop(Outcome::Failed(format!("cannot start a thread: {error}")));
            return Err(StateError::Thread(error));
        }
        self.go();
        self.tell_state();
        Ok(())
    }

    fn spawn_threads(&mut self) -> std::io::Result<()> {
        let parts = Arc::clone(&self.parts);
        let events = move || events::run(&parts.events, &*parts.clock, &parts.watched);
        self.threads
            .push(std::thread::Builder::new().name("events".to_owned()).spawn(events)?);
        for cell in self.parts.vcpus.clone() {
            let parts = Arc::clone(&self.parts);
            let requests = self.requests.clone();
            let name = format!("vcpu{}", cell.id);
            let body = move || {
                cell.thread(&*parts.board, &parts.gate, |event| {
                    let _ = requests.send(Request::Guest(GuestEvent::Vcpu(event)));
                });
            };
            self.threads.push(std::thread::Builder::new().name(name).spawn(body)?);
        }
        Ok(())
    }

    /// Lets time, devices and vCPUs go on.
    fn go(&mut self) {
        self.parts.clock.resume();
        for device in self.parts.all_devices() {
            device.poll();
        }
        self.parts.events.run();
        self.parts.gate.run();
        self.state = RunState::Running;
    }

    /// Lets vCPUs, time and devices stand still.
    fn halt(&self) {
        self.parts.gate.hold();
        self.parts.gate.wait_empty();
        self.parts.clock.pause();
        self.parts.events.hold();
        for device in self.parts.all_devices() {
            while !device.lock().quiesce() {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    fn pause(&mut self) -> Result<(), StateError> {
        self.expect("pause", &[RunState::Running, RunState::Paused])?;
        if self.state == RunState::Running {
            self.halt();
            self.state = RunState::Paused;
            self.tell_state();
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<(), StateError> {
        self.expect("resume", &[RunState::Running, RunState::Paused])?;
        if self.state == RunState::Paused {
            self.go();
            self.tell_state();
        }
        Ok(())
    }

    /// Calls `f` while the machine stands still, and lets it go on if it ran.
    fn standing<R>(&mut self, f: impl FnOnce(&Parts) -> R) -> R {
        let ran = self.state == RunState::Running;
        if ran {
            self.halt();
        }
        let result = f(&self.parts);
        if ran {
            self.go();
        }
        result
    }

    fn save(&mut self) -> Result<MachineState, StateError> {
        self.expect("save", &[RunState::Created, RunState::Paused])?;
        self.parts.save()
    }

    fn restore(&mut self, state: &MachineState) -> Result<(), StateError> {
        self.expect("restore", &[RunState::Created, RunState::Paused])?;
        self.parts.restore(state)
    }

    fn switch_engine(&mut self, kind: EngineKind) -> Result<(), StateError> {
        self.expect(
            "change the engine of",
            &[RunState::Created, RunState::Running, RunState::Paused],
        )?;
        self.standing(|parts| parts.switch_engine(kind))
            .map_err(StateError::Engine)
    }

    fn attach(
        &mut self,
        wish: &Attach,
        medium: Option<Arc<ImageMedium>>,
    ) -> Result<Result<Attachment, PlugError>, StateError> {
        self.expect(
            "attach a drive to",
            &[RunState::Created, RunState::Running, RunState::Paused],
        )?;
        let attached = self.standing(|parts| {
            // Others may have been faster.
            let attachment = parts.bays.place(wish)?;
            let card = parts.bays.plug(attachment.clone(), medium);
            parts.watch_cards(&[], card);
            Ok(attachment)
        });
        if let Ok(attachment) = &attached {
            tracing::info!(id = attachment.id, bay = %attachment.bay, "drive attached");
            self.tell(&MachineEvent::Attached(attachment.clone()));
        }
        Ok(attached)
    }

    fn detach(&mut self, id: &str, force: bool) -> Result<Result<bool, PlugError>, StateError> {
        self.expect(
            "detach a drive from",
            &[RunState::Created, RunState::Running, RunState::Paused],
        )?;
        // Before it starts there is nobody to ask.
        let force = force || self.state == RunState::Created;
        Ok(match self.standing(|parts| parts.detach(id, force)) {
            Ok(Some(gone)) => {
                self.close(gone);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        })
    }

    /// Saves what was written to a drive that has gone, and closes its image.
    fn close(&self, gone: Attached) {
        gone.medium.iter().for_each(|medium| medium.settle());
        let id = gone.attachment.id.clone();
        drop(gone);
        tracing::info!(id, "drive detached");
        self.tell(&MachineEvent::Detached { id });
    }

    /// The guest has given up what is in `bay`.
    fn given_up(&mut self, bay: Bay) {
        if let Some(gone) = self.standing(|parts| parts.given_up(bay)) {
            self.close(gone);
        }
    }

    fn reset_by_host(&mut self) -> Result<(), StateError> {
        self.expect("reset", &[RunState::Running, RunState::Paused])?;
        self.reset(false);
        Ok(())
    }

    /// Boots again; a paused machine stays paused.
    fn reset(&mut self, by_guest: bool) {
        let slept = self.visible_state();
        match self.standing(|parts| parts.reset(Reset::Warm)) {
            Ok(()) => self.tell(&MachineEvent::Reset { by_guest }),
            Err(error) => self.stop(Outcome::Failed(format!("cannot boot again: {error}"))),
        }
        if slept == RunState::Suspended {
            self.tell_state();
        }
    }

    /// Ends the guest's sleep, as firmware does; a paused machine stays paused. A guest that left no way back boots again.
    fn wake(&mut self) {
        // A reset may have come before.
        if !self.parts.gate.is_asleep() {
            return;
        }
        let vector = match self.parts.boots_by_firmware() {
            // It looks for the vector itself.
            true => Some(0),
            false => firmware::acpi::waking_vector(&self.parts.memory),
        };
        let Some(vector) = vector else {
            return self.guest_event(GuestEvent::Reset);
        };
        match self.standing(|parts| parts.wake(vector)) {
            Ok(()) => self.tell_state(),
            Err(error) => self.stop(Outcome::Failed(format!("cannot wake: {error}"))),
        }
    }

    fn stop(&mut self, outcome: Outcome) {
        if self.state == RunState::Stopped {
            return;
        }
        self.parts.gate.exit();
        self.parts.gate.wait_empty();
        self.parts.clock.pause();
        self.parts.events.exit();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
        self.parts.end_disks();
        self.parts.end_serial();
        self.state = RunState::Stopped;
        self.tell_state();
        self.tell(&MachineEvent::Ended(outcome.clone()));
        self.outcome.set(outcome);
    }

    fn guest_event(&mut self, event: GuestEvent) {
        // Before its start and after its end a machine has no guest: a chip that was touched then speaks for nobody.
        if matches!(self.state, RunState::Created | RunState::Stopped) {
            return;
        }
        match event {
            GuestEvent::PowerOff => self.stop(Outcome::PowerOff),
            GuestEvent::DebugExit(code) => self.stop(Outcome::DebugExit(code)),
            GuestEvent::Reset if self.parts.on_reset == OnReset::Stop => self.stop(Outcome::Reset),
            GuestEvent::Reset => self.reset(true),
            GuestEvent::GivenUp(bay) => self.given_up(bay),
            GuestEvent::Sleep => self.tell_state(),
            GuestEvent::Wake => self.wake(),
            GuestEvent::Vcpu(VcpuEvent::Failed(error)) => self.stop(Outcome::Failed(error)),
            GuestEvent::Vcpu(VcpuEvent::TripleFault(fault)) => match self.parts.on_triple_fault {
                OnTripleFault::Stop => self.stop(Outcome::TripleFault(fault)),
                OnTripleFault::Reset if self.parts.on_reset == OnReset::Stop => self.stop(Outcome::Reset),
                OnTripleFault::Reset => self.reset(true),
            },
        }
    }
}
