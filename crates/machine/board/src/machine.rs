//! The machine: built from a plan, driven through its control thread.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::mpsc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;
use std::time::Duration;

use chipset::a20::A20Gate;
use chipset::acpi_pm::AlarmLatch;
use chipset::hpet::LegacyGate;
use cpu_model::CpuChoice;
use cpu_model::CpuPolicy;
use cpu_model::CpuState;
use cpu_model::Engine;
use cpu_model::EngineError;
use cpu_model::Paravirt;
use cpu_model::PolicyError;
use cpu_model::Signal;
use device_model::BusConflict;
use device_model::Clock;
use device_model::FramePort;
use device_model::Inspect;
use device_model::IrqLine;
use device_model::Mapping;
use device_model::Node;
use device_model::Region;
use device_model::Reset;
use device_model::SharedDevice;
use device_model::Space;
use device_model::VmTime;
use firmware::layout::HOLE_END;
use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryError;
use guest_memory::MemoryRegion;
use pci::PirqRouter;
use pci::Root;
use spec::Attachment;
use spec::EngineKind;
use spec::Forward;
use spec::MachineKind;
use spec::MachineSpec;
use spec::OnReset;
use spec::OnTripleFault;
use vnet::Capture;

use crate::Balloon;
use crate::EngineFactory;
use crate::HostClock;
use crate::Placement;
use crate::Plan;
use crate::PlanError;
use crate::SerialPort;
use crate::boot;
use crate::boot::BootSource;
use crate::boot::firmware_tables;
use crate::control::Controller;
use crate::control::Outcome;
use crate::control::OutcomeCell;
use crate::control::PowerPort;
use crate::control::Reply;
use crate::control::Request;
use crate::control::RunState;
use crate::control::StateError;
use crate::control::Watcher;
use crate::cpu_board::Board;
use crate::drives::RemovableDrive;
use crate::engines;
use crate::events::Events;
use crate::events::PollRequest;
use crate::events::Watched;
use crate::fabric::Fabric;
use crate::fabric::ISA_LINES;
use crate::gate::Gate;
use crate::hotplug;
use crate::hotplug::Attach;
use crate::hotplug::Bays;
use crate::hotplug::PlugError;
use crate::hotplug::Sockets;
use crate::network::CableError;
use crate::network::Networks;
use crate::network::SwitchStarter;
use crate::registry;
use crate::registry::Builder;
use crate::registry::Button;
use crate::registry::Buttons;
use crate::screen::Screen;
use crate::screen::UserInput;
use crate::serial::SerialEnd;
use crate::state;
use crate::state::MachineState;
use crate::storage::ImageMedium;
use crate::storage::Workers;
use crate::vcpu::Remapped;
use crate::vcpu::VcpuCell;

/// How long the machine's end waits for images that hang.
const DISKS_LIMIT: Duration = Duration::from_secs(10);

/// Host ends that devices are connected to.
#[derive(Default)]
pub struct Backends {
    /// Serial wires by the name of the port; a port without one sends into the void.
    pub serial: BTreeMap<String, SerialPort>,
    /// Where what firmware writes to its debug port goes. It is written on the vCPU's thread: a file, not a pipe.
    pub debugcon: Option<Box<dyn Write + Send>>,
    /// Where the parallel port prints; without it no printer answers. As with [`Self::debugcon`].
    pub printer: Option<Box<dyn Write + Send>>,
    /// Cables of network cards by the card's name, `nic0`, in place of those of the spec.
    pub cables: BTreeMap<String, Arc<dyn FramePort>>,
    /// Where the frames of all network cards are captured to.
    pub capture: Option<Arc<Capture>>,
    /// Starts switch processes of networks of several machines.
    pub start_switch: Option<SwitchStarter>,
}

impl fmt::Debug for Backends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            serial,
            debugcon,
            printer,
            cables,
            capture,
            start_switch,
        } = self;
        f.debug_struct("Backends")
            .field("serial", serial)
            .field("debugcon", &debugcon.is_some())
            .field("printer", &printer.is_some())
            .field("cables", &cables.keys())
            .field("capture", &capture.is_some())
            .field("start_switch", &start_switch.is_some())
            .finish()
    }
}

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The spec has no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The host lacks what the CPU model needs.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The host refused memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The engine does not work on this host.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A file could not be read.
    #[error("cannot read `{}`", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is no image of a floppy disk.
    #[error("`{}` is no image of a floppy disk: its {} bytes are of no format", .path.display(), .len)]
    Floppy {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// A disk image cannot be opened.
    #[error(transparent)]
    Image(#[from] disk_image::BlockError),
    /// The kernel cannot be booted.
    #[error("cannot boot `{}`", .path.display())]
    Boot {
        /// The kernel's file.
        path: PathBuf,
        /// What is wrong with it.
        source: firmware::BootError,
    },
    /// The display adapter has no such memory.
    #[error(transparent)]
    Video(#[from] display::vga::VramError),
    /// There is no firmware to start with.
    #[error(transparent)]
    Firmware(#[from] firmware::RomError),
    /// Firmware's files do not fit.
    #[error(transparent)]
    FwCfg(#[from] chipset::fw_cfg::FwCfgError),
    /// The firmware tables do not fit.
    #[error(transparent)]
    Acpi(#[from] firmware::acpi::AcpiError),
    /// A network cannot be set up.
    #[error(transparent)]
    Network(#[from] vnet::nat::NatError),
    /// There is no way to the host's own network.
    #[error(transparent)]
    Host(#[from] vnet::host::HostError),
    /// There is no way to other machines.
    #[error("cannot join a network of other machines")]
    Uplink(#[source] std::io::Error),
    /// A folder cannot be shared.
    #[error(transparent)]
    Share(#[from] shared_folder::FolderError),
    /// The sockets of the guest's socket device cannot be had.
    #[error(transparent)]
    Vsock(#[from] vsock_host::VsockError),
    /// Two devices claim one address: the plan missed it.
    #[error(transparent)]
    Bus(#[from] BusConflict),
    /// A device has other register windows than the plan says.
    #[error("the plan of `{0}` does not fit the device")]
    Windows(String),
    /// The host gave no thread.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

/// What a machine consists of. The control thread owns the run state; this is what it works on.
pub(crate) struct Parts {
    pub(crate) plan: Plan,
    pub(crate) on_reset: OnReset,
    pub(crate) on_triple_fault: OnTripleFault,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) engine: Mutex<Arc<dyn Engine>>,
    /// What the guest was told of its processors.
    pub(crate) policy: Arc<CpuPolicy>,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) events: Arc<Events>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) board: Arc<Board>,
    pub(crate) vcpus: Vec<Arc<VcpuCell>>,
    pub(crate) devices: Vec<SharedDevice>,
    pub(crate) watched: RwLock<Vec<Watched>>,
    /// Drives that come and go.
    pub(crate) bays: Bays,
    pub(crate) serial_ends: Vec<SerialEnd>,
    pub(crate) workers: Arc<Workers>,
    /// Images of disks that stay.
    pub(crate) media: Vec<Arc<ImageMedium>>,
    /// Video memory, which is nowhere while its base address is not set.
    pub(crate) video: Option<Arc<MemoryRegion>>,
    screen: Option<Screen>,
    input: Option<UserInput>,
    balloon: Option<Balloon>,
    buttons: Option<Buttons>,
    drives: Vec<Arc<dyn RemovableDrive>>,
    networks: Networks,
    /// Each vCPU as the engine made it.
    reset_states: Vec<CpuState>,
    boot: BootSource,
}

impl Parts {
    /// Resets every device and processor, and loads no guest.
    pub(crate) fn reset_hardware(&self, kind: Reset) {
        self.memory.set_a20(true);
        for device in self.all_devices() {
            device.lock().reset(kind);
        }
        self.bays.forget_requests();
        if let Some(root) = self.board.pci() {
            root.look_everywhere();
        }
        self.gate.set_asleep(false);
        self.board.refresh_lapic_pages();
        for (cell, state) in self.vcpus.iter().zip(&self.reset_states) {
            // The engine takes back what it made itself.
            let _ = cell.lock().set_state(state);
            state::clear_signals(cell);
        }
    }

    /// All devices in the order in which they are reset and restored: cards that came later, then those of the plan.
    pub(crate) fn all_devices(&self) -> Vec<SharedDevice> {
        let mut all = self.bays.cards();
        all.extend(self.devices.iter().cloned());
        all
    }

    /// Resets the machine and loads the guest anew.
    pub(crate) fn reset(&self, kind: Reset) -> Result<(), BuildError> {
        self.reset_hardware(kind);
        if self.boot.by_firmware() {
            return Ok(());
        }
        boot::power_on_self(&self.board, &self.plan, &self.vcpus, &self.reset_states)?;
        let screen = match (&self.screen, self.board.pci()) {
            (Some(screen), Some(root)) => self.boot.light(screen, root, &self.plan),
            _ => firmware::video::Screen::None,
        };
        self.boot.load(&self.memory, &self.plan, screen, &self.vcpus)
    }

    /// Whether firmware starts the guest, and wakes it.
    pub(crate) fn boots_by_firmware(&self) -> bool {
        self.boot.by_firmware()
    }

    /// Resets what lost power in the guest's sleep, and enters the guest at its waking vector.
    pub(crate) fn wake(&self, vector: u32) -> Result<(), BuildError> {
        self.reset_hardware(Reset::Resume);
        if self.boot.by_firmware() {
            // Firmware begins anew, and finds in the CMOS memory that it is to resume.
            self.board.note_resume();
            return Ok(());
        }
        boot::power_on_self(&self.board, &self.plan, &self.vcpus, &self.reset_states)?;
        boot::wake(&self.vcpus, vector)
    }

    /// Ends what disks are asked for, and saves what was written. No vCPU runs any more.
    pub(crate) fn end_disks(&self) {
        self.workers.settle(DISKS_LIMIT);
        self.media.iter().for_each(|medium| medium.settle());
        self.bays.settle();
        self.drives.iter().for_each(|drive| drive.settle());
    }

    /// Sends out what serial ports still hold, and ends their wires. No vCPU runs any more.
    pub(crate) fn end_serial(&self) {
        self.serial_ends.iter().for_each(SerialEnd::last_call);
        for Watched { device, request } in &*self.watched.read().unwrap_or_else(PoisonError::into_inner) {
            if request.is_some() {
                device.poll();
            }
        }
        self.serial_ends.iter().for_each(SerialEnd::close);
    }

    /// What executes the guest.
    pub(crate) fn engine(&self) -> Arc<dyn Engine> {
        Arc::clone(&self.engine.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Lets the guest go on with another engine. The machine stands still. After an error it is as it was.
    pub(crate) fn switch_engine(&self, kind: EngineKind) -> Result<(), EngineError> {
        let Some(kind) = engines::other(kind, self.engine().caps().name) else {
            return Ok(());
        };
        let engine = engines::take_over(kind, Arc::clone(&self.memory), &self.policy)?;
        let mut vcpus = Vec::new();
        for cell in &self.vcpus {
            let mut vcpu = engine.new_vcpu_on(cell.id, Arc::clone(&cell.signals))?;
            vcpu.set_state(&cell.lock().state())?;
            vcpus.push(vcpu);
        }
        for (cell, vcpu) in self.vcpus.iter().zip(vcpus) {
            *cell.lock() = vcpu;
            // Whether there is an interrupt, the interrupt controllers know.
            cell.signals.raise(Signal::Interrupt);
        }
        if kind != EngineKind::Jit {
            // Nobody holds code any more.
            self.memory.unwatch_code();
        }
        tracing::info!(engine = engine.caps().name, "engine changed");
        *self.engine.lock().unwrap_or_else(PoisonError::into_inner) = engine;
        Ok(())
    }

    /// Everything live as a tree. The machine stands still.
    pub(crate) fn inspect(&self) -> Node {
        let vcpus = self.vcpus.iter().fold(Node::tree(), |tree, cell| {
            tree.with(&format!("cpu{}", cell.id), cell.inspect())
        });
        let devices = self.all_devices().iter().fold(Node::tree(), |tree, device| {
            tree.with(device.name(), device.lock().inspect())
        });
        let machine = Node::tree()
            .with("time_ns", self.clock.now().as_ns())
            .with("memory", self.memory.ram_bytes())
            .with("engine", self.engine().inspect())
            .with("cpus", vcpus)
            .with("devices", devices)
            .with("networks", self.networks.inspect());
        Node::tree().with(self.plan.board, machine)
    }
}

/// A machine. Dropping it stops it.
pub struct Machine {
    parts: Arc<Parts>,
    requests: Sender<Request>,
    outcome: Arc<OutcomeCell>,
    control: Option<JoinHandle<()>>,
}

impl Machine {
    /// Builds the machine of `spec`, with its guest loaded, on the engine that the spec names.
    ///
    /// # Errors
    /// [`BuildError`] where the spec or the host does not allow it.
    pub fn build(spec: &MachineSpec, backends: Backends) -> Result<Self, BuildError> {
        let kind = spec.engine;
        Self::build_with(spec, backends, &|memory, policy| engines::make(kind, memory, policy))
    }

    /// Builds the machine of `spec` on an engine of the caller's.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_with(spec: &MachineSpec, backends: Backends, engine: &EngineFactory<'_>) -> Result<Self, BuildError> {
        let plan = crate::plan(spec)?;
        let (requests, queue) = mpsc::channel();
        let parts = Arc::new(assemble(spec, plan, backends, engine, &requests)?);
        parts.reset(Reset::Cold)?;
        let outcome = Arc::new(OutcomeCell::default());
        let controller = Controller::new(Arc::clone(&parts), requests.clone(), Arc::clone(&outcome));
        let control = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || controller.run(&queue))
            .map_err(BuildError::Thread)?;
        Ok(Self {
            parts,
            requests,
            outcome,
            control: Some(control),
        })
    }

    /// The plan it was built from.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.parts.plan
    }

    /// The devices of the plan in its order: for tests and tools that look at one.
    #[must_use]
    pub fn devices(&self) -> &[SharedDevice] {
        &self.parts.devices
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.parts.memory
    }

    /// Lets a machine that was just built run.
    ///
    /// # Errors
    /// [`StateError`] when it was started before, or when the host gives no threads.
    pub fn start(&self) -> Result<(), StateError> {
        self.ask(Request::Start)
    }

    /// Lets the guest and its time stand still; returns when they do.
    ///
    /// # Errors
    /// [`StateError::Transition`] when it does not run.
    pub fn pause(&self) -> Result<(), StateError> {
        self.ask(Request::Pause)
    }

    /// Lets a paused machine go on.
    ///
    /// # Errors
    /// [`StateError::Transition`] when it is not paused.
    pub fn resume(&self) -> Result<(), StateError> {
        self.ask(Request::Resume)
    }

    /// Presses the reset button: the guest boots again.
    ///
    /// # Errors
    /// [`StateError::Transition`] when it is not started or has ended.
    pub fn reset(&self) -> Result<(), StateError> {
        self.ask(Request::Reset)
    }

    /// Plugs the cable of a network card in or out, in every state of the machine.
    ///
    /// # Errors
    /// [`CableError`] when there is no such card, or it has no cable.
    pub fn set_link(&self, card: &str, up: bool) -> Result<(), CableError> {
        self.parts.networks.set_link(card, up)
    }

    /// Lets a port of the host's lead to the guest by the NAT of a network card, the first that has one if none is named, or
    /// ends that. In every state of the machine.
    ///
    /// # Errors
    /// [`CableError`] when there is no such card or NAT, or the port cannot be listened at.
    pub fn set_forward(&self, card: Option<&str>, forward: &Forward, on: bool) -> Result<(), CableError> {
        self.parts.networks.set_forward(card, forward, on)
    }

    /// Presses the power button: the guest is asked to turn itself off. False when the machine has none.
    pub fn press_power_button(&self) -> bool {
        let buttons = self.parts.buttons.as_ref();
        buttons.map(|buttons| buttons(Button::Power)).is_some()
    }

    /// Presses the sleep button. False when the machine has none.
    pub fn press_sleep_button(&self) -> bool {
        let buttons = self.parts.buttons.as_ref();
        buttons.map(|buttons| buttons(Button::Sleep)).is_some()
    }

    /// The screen; none without a display adapter.
    #[must_use]
    pub fn screen(&self) -> Option<Screen> {
        self.parts.screen.clone()
    }

    /// Keyboard and mouse; none without their controller.
    #[must_use]
    pub fn input(&self) -> Option<UserInput> {
        self.parts.input.clone()
    }

    /// The memory balloon; none without one.
    #[must_use]
    pub fn balloon(&self) -> Option<Balloon> {
        self.parts.balloon.clone()
    }

    /// Drives whose media change while the machine runs.
    #[must_use]
    pub fn drives(&self) -> Vec<Arc<dyn RemovableDrive>> {
        let mut drives = self.parts.drives.clone();
        drives.extend(self.parts.bays.trays());
        drives
    }

    /// Drives that can be detached, in the order of their places.
    #[must_use]
    pub fn attached(&self) -> Vec<Attachment> {
        self.parts.bays.attached()
    }

    /// Attaches a drive. A running machine is held meanwhile, for as long as it takes to plug it in.
    ///
    /// # Errors
    /// [`PlugError`] when its image cannot be had, or there is no place for it.
    pub fn attach(&self, wish: Attach) -> Result<Attachment, PlugError> {
        // Before the image is opened: what cannot be placed need not wait for it.
        self.parts.bays.place(&wish)?;
        let medium = hotplug::open(&wish.drive)?;
        self.ask(|reply| Request::Attach(Box::new(wish), medium, reply))?
    }

    /// Detaches a drive; returns whether it has gone. A card that the guest uses goes when the guest has given it up, which
    /// [`Self::attached`] and [`crate::MachineEvent::Detached`] tell; with `force` it goes at once.
    ///
    /// # Errors
    /// [`PlugError`] when there is no such drive, or the guest holds it.
    pub fn detach(&self, id: &str, force: bool) -> Result<bool, PlugError> {
        self.ask(|reply| Request::Detach(id.to_owned(), force, reply))?
    }

    /// Guest time: it stands still while the machine is paused.
    #[must_use]
    pub fn now(&self) -> VmTime {
        self.parts.clock.now()
    }

    /// Tells `watcher` what happens from now on.
    pub fn watch(&self, watcher: Watcher) {
        // The control thread is gone only when the machine is.
        let _ = self.requests.send(Request::Watch(watcher));
    }

    /// Ends the machine; returns when no guest instruction runs any more.
    ///
    /// # Errors
    /// None once the machine is built.
    pub fn stop(&self) -> Result<(), StateError> {
        self.ask(Request::Stop)
    }

    /// What the machine is doing.
    #[must_use]
    pub fn state(&self) -> RunState {
        self.ask(Request::State).unwrap_or(RunState::Stopped)
    }

    /// Waits for the machine's end.
    #[must_use]
    pub fn wait(&self) -> Outcome {
        self.waiter()()
    }

    /// What waits for the machine's end without keeping the machine.
    pub fn waiter(&self) -> impl FnOnce() -> Outcome + Send + use<> {
        let outcome = Arc::clone(&self.outcome);
        move || outcome.wait(None).unwrap_or(Outcome::Stopped)
    }

    /// Waits for the machine's end for at most `timeout`.
    #[must_use]
    pub fn wait_timeout(&self, timeout: Duration) -> Option<Outcome> {
        self.outcome.wait(Some(timeout))
    }

    /// The name of the engine that executes the guest.
    #[must_use]
    pub fn engine(&self) -> &'static str {
        self.parts.engine().caps().name
    }

    /// Lets the guest go on with another engine: it is held, its processors' states are carried over, and it goes on if it
    /// ran. `Auto` is what a new machine would get.
    ///
    /// # Errors
    /// [`StateError::Engine`] where the engine does not work on this host, or lacks something that the guest has been told
    /// of; the machine goes on as before.
    pub fn switch_engine(&self, kind: EngineKind) -> Result<(), StateError> {
        self.ask(|reply| Request::SwitchEngine(kind, reply))
    }

    /// Everything live as a tree, such as `microvm/devices/pit/counter0/mode`. A running machine is held meanwhile.
    ///
    /// # Errors
    /// None once the machine is built.
    pub fn inspect(&self) -> Result<Node, StateError> {
        self.ask(Request::Inspect)
    }

    /// The whole state of a machine that is paused or not yet started.
    ///
    /// # Errors
    /// [`StateError::Transition`] in any other state.
    pub fn save(&self) -> Result<MachineState, StateError> {
        self.ask(Request::Save)
    }

    /// Takes over a saved state. The machine is of the same shape, and paused or not yet started.
    ///
    /// # Errors
    /// [`StateError`] where the state does not fit; the machine is then to be reset before it goes on.
    pub fn restore(&self, state: MachineState) -> Result<(), StateError> {
        let state = Box::new(state);
        self.ask(|reply| Request::Restore(state, reply))
    }

    fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StateError> {
        let gone = || StateError::Transition {
            what: "reach",
            state: RunState::Stopped,
        };
        let (reply, answer) = mpsc::channel();
        self.requests.send(request(reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.requests.send(Request::Quit);
        if let Some(control) = self.control.take() {
            let _ = control.join();
        }
    }
}

/// RAM at its places, and firmware's ROM at the end of the first 4 GiB.
fn make_memory(plan: &Plan, rom: Option<&Arc<MemoryRegion>>) -> Result<Arc<GuestMemory>, MemoryError> {
    let mut memory = GuestMemory::new();
    if let Some(rom) = rom {
        memory.add(HOLE_END - rom.len(), Arc::clone(rom))?;
    }
    for (index, (base, len)) in plan.ram.iter().enumerate() {
        let region = MemoryRegion::new(&format!("ram{index}"), Kind::Ram, *len)?;
        memory.add(*base, Arc::new(region))?;
    }
    Ok(Arc::new(memory))
}

/// What the guest is to be told of its processors.
fn policy(spec: &MachineSpec, cpus: u32) -> Result<CpuPolicy, BuildError> {
    let unknown = |error| PlanError(vec![format!("cpu: {error}")]);
    let choice: CpuChoice = spec.cpu.parse().map_err(unknown)?;
    let paravirt = match spec.paravirt {
        spec::Paravirt::None => Paravirt::None,
        spec::Paravirt::Minimal => Paravirt::Minimal,
        spec::Paravirt::Kvm => Paravirt::Kvm,
    };
    Ok(choice.policy()?.with_cpus(cpus).with_paravirt(paravirt))
}

fn assemble(
    spec: &MachineSpec,
    plan: Plan,
    backends: Backends,
    engine: &EngineFactory<'_>,
    requests: &Sender<Request>,
) -> Result<Parts, BuildError> {
    let policy = Arc::new(policy(spec, plan.cpus)?);
    let boot = BootSource::new(spec);
    let (rom, variables) = (boot.rom()?, boot.variables()?);
    let memory = make_memory(&plan, rom.as_ref())?;
    let engine = engine(Arc::clone(&memory), Arc::clone(&policy))?;
    let told = Arc::new(engines::told(engine.caps().name, &policy)?);
    let mut vcpus = Vec::new();
    for id in 0..plan.cpus {
        vcpus.push(VcpuCell::new(id, engine.new_vcpu(id)?, Arc::clone(&memory)));
    }
    let reset_states = vcpus.iter().map(|cell| cell.lock().state()).collect();
    let signals: Vec<_> = vcpus.iter().map(|cell| Arc::clone(&cell.signals)).collect();
    let (clock, events) = (Arc::new(HostClock::new()), Arc::new(Events::new()));
    let gate = Arc::new(Gate::new(signals.clone()));
    let fabric = Fabric::new(signals.clone());
    memory.overlay().watch(Arc::new(Remapped(signals.clone())));
    let board = Board::new(Arc::clone(&fabric), Arc::clone(&clock), Arc::clone(&memory), plan.cpus);
    let board = Arc::new(board);
    let root = Root::new(Arc::clone(&board.pio), Arc::clone(&board.mmio), Arc::clone(&memory));
    let legacy_gate = LegacyGate::new(fabric.isa(0), fabric.isa(8));
    let alarm_request = PollRequest::new(Arc::clone(&events));
    let raised = alarm_request.clone();
    let alarm = AlarmLatch::new(move || raised.raise());
    let router = pirq_router(spec.machine, &fabric);
    let mut builder = Builder {
        spec,
        plan: &plan,
        root,
        router,
        rom,
        variables,
        a20: A20Gate::new(Arc::clone(&memory)),
        debugcon: backends.debugcon,
        printer: backends.printer,
        floppy_dma: None,
        vga: None,
        input: UserInput::default(),
        balloon: None,
        buttons: None,
        sockets: Sockets::default(),
        given_up: hotplug::given_up(&gate, requests),
        drives: Vec::new(),
        tables: firmware_tables(spec, &plan),
        clock: Arc::clone(&clock) as Arc<dyn Clock>,
        events: Arc::clone(&events),
        fabric,
        power: Arc::new(PowerPort::new(Arc::clone(&gate), requests.clone())),
        memory: Arc::clone(&memory),
        policy,
        signals,
        networks: Networks::new(backends.cables, backends.capture, backends.start_switch),
        serial: backends.serial,
        workers: Arc::default(),
        media: Vec::new(),
        serial_ends: Vec::new(),
        poll_requests: BTreeMap::new(),
        legacy_gate,
        alarm,
        alarm_request,
        rtc: None,
    };
    let devices = registry::build_all(&mut builder, &plan.devices)?;
    connect(&mut builder, &board, &devices)?;
    let bays = hotplug::bays(&mut builder);
    let video = builder.vga.as_ref().map(|slot| Arc::clone(slot.lock().vram()));
    let Builder {
        balloon,
        buttons,
        drives,
        serial_ends,
        poll_requests,
        vga,
        input,
        workers,
        media,
        networks,
        ..
    } = builder;
    let (screen, input) = (vga.map(Screen::new), input.if_any());
    let watched = watched(&devices, poll_requests);
    Ok(Parts {
        bays,
        workers,
        media,
        video,
        screen,
        input,
        balloon,
        buttons,
        drives,
        networks,
        on_reset: spec.on_reset,
        on_triple_fault: spec.on_triple_fault,
        watched,
        serial_ends,
        boot,
        plan,
        memory,
        engine: Mutex::new(engine),
        policy: told,
        clock,
        events,
        gate,
        board,
        vcpus,
        devices,
        reset_states,
    })
}

/// What the event thread looks after.
fn watched(devices: &[SharedDevice], mut requests: BTreeMap<String, PollRequest>) -> RwLock<Vec<Watched>> {
    let watched = devices.iter().map(|device| Watched {
        device: Arc::clone(device),
        request: requests.remove(device.name()),
    });
    RwLock::new(watched.collect())
}

/// The way of PCI interrupt pins in a machine's chipset.
fn pirq_router(machine: MachineKind, fabric: &Arc<Fabric>) -> Arc<PirqRouter> {
    match machine {
        MachineKind::Q35 => PirqRouter::ich9(|irq| fabric.isa(irq), ich9_pins(fabric)),
        MachineKind::Microvm | MachineKind::Pc => PirqRouter::new(|irq| fabric.isa(irq)),
    }
}

/// The pins of the I/O APIC that an ICH9's interrupt lines are.
fn ich9_pins(fabric: &Arc<Fabric>) -> [IrqLine; pci::pirq::ICH9_LINES] {
    let mut pins = ISA_LINES..;
    std::array::from_fn(|_| fabric.gsi(pins.next().unwrap_or(0)))
}

/// Puts devices on the buses, and tells the board of those that it knows itself.
fn connect(builder: &mut Builder<'_>, board: &Board, devices: &[SharedDevice]) -> Result<(), BuildError> {
    if builder.spec.machine.has_pci() {
        board.set_pci(Arc::clone(&builder.root));
    }
    if let Some(rtc) = builder.rtc.take() {
        board.set_rtc(rtc);
    }
    for place in &builder.plan.devices {
        if let (Some(bdf), Some(wire)) = (place.bdf, place.wire) {
            builder.root.add_wire(wire, bdf);
        }
    }
    for (device, place) in devices.iter().zip(&builder.plan.devices) {
        map_windows(board, device, place)?;
        if let Some(bdf) = place.bdf {
            builder.root.add(bdf, Arc::clone(device));
        }
    }
    Ok(())
}

/// Puts a device's regions where the plan says, after checking that the two speak of the same.
fn map_windows(board: &Board, device: &SharedDevice, place: &Placement) -> Result<(), BuildError> {
    let regions = device.lock().regions().to_vec();
    // The other regions of a PCI function are where its base addresses say.
    if place.bdf.is_none() && regions.len() != place.windows.len() {
        return Err(BuildError::Windows(place.name.clone()));
    }
    for window in &place.windows {
        let fits = |r: &Region| r.name == window.region && r.space == window.space && r.len == window.len;
        let Some(index) = regions.iter().position(fits) else {
            return Err(BuildError::Windows(place.name.clone()));
        };
        let region = regions[index];
        // A local APIC answers to its own processor only: the board routes its page.
        if window.per_cpu {
            continue;
        }
        let bus = match window.space {
            Space::Pio => &board.pio,
            Space::Mmio => &board.mmio,
        };
        bus.map(Mapping {
            base: window.base,
            region,
            index,
            device: Arc::clone(device),
            moving: false,
        })?;
    }
    Ok(())
}
