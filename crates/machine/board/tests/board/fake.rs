//! A processor for tests: its program is a Rust function that is called with the board.

use std::sync::Arc;

use board::Backends;
use board::Machine;
use cpu_model::Activity;
use cpu_model::CpuBoard;
use cpu_model::CpuState;
use cpu_model::Engine;
use cpu_model::EngineCaps;
use cpu_model::EngineError;
use cpu_model::Signal;
use cpu_model::Signals;
use cpu_model::Stop;
use cpu_model::Vcpu;
use device_model::Inspect;
use device_model::Node;
use device_model::Width;
use spec::MachineSpec;
use spec::Size;

/// One step of a program. It gets the number of the step since power-on, and says how to go on.
pub(crate) type Program = Arc<dyn Fn(&Step<'_>) -> Next + Send + Sync>;

/// What a step works on.
pub(crate) struct Step<'a> {
    pub(crate) cpu: u32,
    pub(crate) number: u64,
    pub(crate) board: &'a dyn CpuBoard,
    pub(crate) signals: &'a Signals,
}

impl Step<'_> {
    pub(crate) fn out(&self, port: u16, value: u8) {
        self.board.pio_write(self.cpu, port, Width::Byte, value.into());
    }

    pub(crate) fn input(&self, port: u16) -> u8 {
        self.board.pio_read(self.cpu, port, Width::Byte) as u8
    }
}

/// What follows a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The next step.
    Go,
    /// HLT until an interrupt is raised, then the next step.
    Halt,
    /// Triple fault.
    Die,
}

pub(crate) struct FakeEngine {
    caps: EngineCaps,
    program: Program,
}

struct FakeVcpu {
    id: u32,
    state: CpuState,
    program: Program,
    signals: Arc<Signals>,
}

impl Inspect for FakeEngine {
    fn inspect(&self) -> Node {
        Node::tree()
    }
}

impl Engine for FakeEngine {
    fn caps(&self) -> &EngineCaps {
        &self.caps
    }

    fn new_vcpu_on(&self, id: u32, signals: Arc<Signals>) -> Result<Box<dyn Vcpu>, EngineError> {
        let activity = if id == 0 { Activity::Active } else { Activity::WaitSipi };
        Ok(Box::new(FakeVcpu {
            id,
            state: CpuState {
                activity,
                ..CpuState::default()
            },
            program: Arc::clone(&self.program),
            signals,
        }))
    }
}

impl Inspect for FakeVcpu {
    fn inspect(&self) -> Node {
        Node::tree().with("last_exception", "#UD at 0x1234")
    }
}

impl Vcpu for FakeVcpu {
    fn run(&mut self, board: &dyn CpuBoard, _budget: Option<u64>) -> Result<Stop, EngineError> {
        loop {
            if self.signals.pending() & Signal::Kick as u32 != 0 {
                return Ok(Stop::Kicked);
            }
            match self.state.activity {
                Activity::Active => {}
                Activity::Halted if self.signals.take(Signal::Interrupt) => self.state.activity = Activity::Active,
                Activity::WaitSipi if self.signals.take(Signal::Sipi) => self.state.activity = Activity::Active,
                _ => return Ok(Stop::Halted),
            }
            let next = (self.program)(&Step {
                cpu: self.id,
                number: self.state.rip,
                board,
                signals: &self.signals,
            });
            self.state.rip += 1;
            match next {
                Next::Go => {}
                Next::Halt => self.state.activity = Activity::Halted,
                Next::Die => {
                    self.state.activity = Activity::Shutdown;
                    return Ok(Stop::TripleFault);
                }
            }
        }
    }

    fn state(&mut self) -> CpuState {
        self.state.clone()
    }

    fn set_state(&mut self, state: &CpuState) -> Result<(), EngineError> {
        self.state = CpuState {
            // The interrupt flag of this processor is always set.
            rflags: 0x202,
            ..state.clone()
        };
        Ok(())
    }

    fn signals(&self) -> Arc<Signals> {
        Arc::clone(&self.signals)
    }
}

/// A small spec that every host can have.
pub(crate) fn small() -> MachineSpec {
    MachineSpec {
        memory: Size::from_mib(2),
        ..MachineSpec::default()
    }
}

/// A spec with every device that there is.
pub(crate) fn everything() -> MachineSpec {
    let mut spec = small();
    spec.cpus = 2;
    spec.devices.serial = (0..4).filter_map(spec::SerialConfig::com).collect();
    spec.devices.debug_exit = Some(spec::DebugExitConfig { port: 0xf4 });
    spec.devices.testdev = Some(spec::TestdevConfig {});
    spec.devices.rng = Some(spec::RngConfig {});
    let port = |name: Option<&str>| spec::ConsoleConfig {
        name: name.map(str::to_owned),
    };
    spec.devices.consoles = vec![port(None), port(Some("org.port"))];
    let mut nic = spec::NicConfig::new(spec::NetworkConfig::Null);
    nic.model = spec::NicModel::Virtio;
    spec.devices.nics = vec![nic];
    let share = |tag: &str, protocol| spec::ShareConfig {
        tag: tag.to_owned(),
        // What every host has, and nobody is to change.
        path: "/".into(),
        read_only: true,
        protocol,
        ..spec::ShareConfig::default()
    };
    spec.devices.shares = vec![
        share("files", spec::ShareProtocol::Virtiofs),
        share("more", spec::ShareProtocol::NineP),
    ];
    spec.devices.balloon = Some(spec::BalloonConfig {});
    spec.devices.cdroms = vec![spec::CdromConfig {
        image: None,
        bus: spec::StorageBus::Scsi,
    }];
    spec.devices.inputs = vec![
        spec::InputConfig::Keyboard,
        spec::InputConfig::Tablet,
        spec::InputConfig::Mouse,
    ];
    spec.devices.vsock = Some(spec::VsockConfig { cid: 3, socket: None });
    spec.devices.rtc.base = Some(1_000_000_000);
    spec
}

/// Builds a machine whose processors run `program`.
pub(crate) fn build(
    spec: &MachineSpec,
    backends: Backends,
    program: impl Fn(&Step<'_>) -> Next + Send + Sync + 'static,
) -> Machine {
    let program: Program = Arc::new(program);
    Machine::build_with(spec, backends, &|_, _| {
        let caps = EngineCaps {
            name: "fake",
            exact_budget: false,
        };
        let program = Arc::clone(&program);
        Ok(Arc::new(FakeEngine { caps, program }))
    })
    .unwrap()
}

/// A machine whose processors do nothing.
pub(crate) fn idle(spec: &MachineSpec) -> Machine {
    build(spec, Backends::default(), |_| Next::Halt)
}
