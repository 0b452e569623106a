//! `--control`: the machine at the other end of the control socket.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use board::Attach;
use board::BalloonStatus;
use board::CableError;
use board::DriveError;
use board::Machine;
use board::MachineEvent;
use board::Outcome;
use board::PlugError;
use board::RemovableDrive;
use board::RunState;
use board::Screen;
use board::StateError;
use board::UserInput;
use control::AttachedStatus;
use control::BalloonState;
use control::Controlled;
use control::DriveStatus;
use control::ErrorKind;
use control::Event;
use control::MediumStatus;
use control::Publisher;
use control::Refusal;
use control::Request;
use control::ScreenStatus;
use control::Status;
use display::Surface;
use input::InputSink;
use spec::Attachment;
use spec::Bay;
use spec::CdromConfig;
use spec::DiskConfig;
use spec::DriveConfig;
use spec::EngineKind;
use spec::Forward;
use spec::MachineKind;
use spec::StorageBus;

use crate::end::End;
use crate::failure;

/// A machine as clients control it.
pub(crate) struct Controls {
    machine: Arc<Machine>,
    screen: Option<Screen>,
    input: Option<UserInput>,
    /// Where VNC clients find the screen.
    vnc: Option<String>,
    ends: Sender<End>,
    publisher: Publisher,
}

impl Controls {
    /// The machine, which tells `publisher` what happens to it from now on.
    pub(crate) fn new(machine: &Arc<Machine>, vnc: Option<String>, ends: Sender<End>, publisher: &Publisher) -> Self {
        let told = publisher.clone();
        machine.watch(Box::new(move |event| told.publish(&describe(event))));
        Self {
            screen: machine.screen(),
            input: machine.input(),
            machine: Arc::clone(machine),
            vnc,
            ends,
            publisher: publisher.clone(),
        }
    }

    fn drive(&self, name: &str) -> Result<Arc<dyn RemovableDrive>, Refusal> {
        let drives = self.machine.drives();
        if let Some(drive) = drives.iter().find(|drive| drive.name() == name) {
            return Ok(Arc::clone(drive));
        }
        let names: Vec<&str> = drives.iter().map(|drive| drive.name()).collect();
        let there = match names.as_slice() {
            [] => "the machine has none whose media change".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        Err(Refusal::new(
            ErrorKind::Absent,
            format!("no drive is called `{name}`; {there}"),
        ))
    }

    fn tell_medium(&self, drive: &dyn RemovableDrive) {
        self.publisher.publish(&Event::Medium {
            drive: drive.name().to_owned(),
            file: drive.medium().map(|medium| medium.path),
        });
    }
}

/// What clients are told of an event.
fn describe(event: &MachineEvent) -> Event {
    match event {
        MachineEvent::State(state) => Event::State {
            state: state.to_string(),
        },
        MachineEvent::Reset { by_guest } => Event::Reset {
            by: if *by_guest { "guest" } else { "host" }.to_owned(),
        },
        MachineEvent::Attached(attachment) => Event::Attached {
            drive: attachment.id.clone(),
            place: attachment.bay.to_string(),
        },
        MachineEvent::Detached { id } => Event::Detached { drive: id.clone() },
        MachineEvent::Ended(outcome) => {
            let (reason, detail) = match outcome {
                Outcome::PowerOff => ("power-off", None),
                Outcome::Reset => ("reset", None),
                Outcome::DebugExit(code) => ("debug-exit", Some(code.to_string())),
                Outcome::TripleFault(fault) => ("triple-fault", Some(fault.to_string())),
                Outcome::Stopped => ("stopped", None),
                Outcome::Failed(error) => ("failed", Some(error.clone())),
            };
            Event::End {
                reason: reason.to_owned(),
                detail,
            }
        }
    }
}

fn refuse(error: StateError) -> Refusal {
    let kind = match error {
        StateError::Transition { .. } => ErrorKind::State,
        _ => ErrorKind::Failed,
    };
    Refusal::new(kind, failure::one_line(&error.into()))
}

fn refuse_medium(error: DriveError) -> Refusal {
    let kind = match error {
        DriveError::Locked(_) => ErrorKind::State,
        DriveError::Medium(_) => ErrorKind::Invalid,
    };
    Refusal::new(kind, failure::one_line(&error.into()))
}

fn refuse_plug(error: PlugError) -> Refusal {
    let kind = match error {
        PlugError::State(error) => return refuse(error),
        PlugError::Image(_) | PlugError::Name(_) | PlugError::Place(_) => ErrorKind::Invalid,
        PlugError::Absent { .. } => ErrorKind::Absent,
        PlugError::Fixed { .. } | PlugError::Locked(_) => ErrorKind::State,
    };
    Refusal::new(kind, failure::one_line(&error.into()))
}

fn refuse_cable(error: CableError) -> Refusal {
    let kind = match error {
        CableError::NoCard(_) => ErrorKind::Absent,
        CableError::Fixed(_) | CableError::NoNat(_) => ErrorKind::State,
        CableError::Nat(_) | CableError::Refused(_) => ErrorKind::Failed,
    };
    Refusal::new(kind, failure::one_line(&error.into()))
}

/// What a client wants to be attached; drives for which no bus is said are on `usual`, unless their place tells another.
fn wish(request: &Request, usual: StorageBus) -> Result<Attach, String> {
    let Request::Attach {
        kind,
        file,
        name,
        place,
        bus,
        format,
        cache,
        serial,
        read_only,
    } = request
    else {
        return Err("nothing to attach".to_owned());
    };
    let bay = place.as_deref().map(str::parse::<Bay>).transpose()?;
    let bus = bus.as_deref().map(str::parse::<StorageBus>).transpose()?;
    let of_place = |bay| match bay {
        Some(Bay::Sata(_)) => StorageBus::Ahci,
        Some(Bay::Scsi(_)) => StorageBus::Scsi,
        Some(Bay::Card(_)) | None => usual,
    };
    let drive = match kind.as_str() {
        "disk" => {
            if let Some(format) = format {
                let known: Result<disk_image::Format, _> = format.parse();
                known.map_err(|error| error.to_string())?;
            }
            let disk = DiskConfig {
                image: file.clone().ok_or("a disk needs an image")?,
                format: format.clone(),
                bus: bus.unwrap_or(match bay {
                    Some(Bay::Card(_)) => StorageBus::Nvme,
                    bay => of_place(bay),
                }),
                cache: cache.as_deref().map(str::parse).transpose()?.unwrap_or_default(),
                read_only: *read_only,
                serial: serial.clone(),
            };
            disk.check_serial()?;
            DriveConfig::Disk(disk)
        }
        "cdrom" if format.is_some() || cache.is_some() || serial.is_some() || *read_only => {
            return Err("a CD drive has no format, cache, serial number or write protection".to_owned());
        }
        "cdrom" => DriveConfig::Cdrom(CdromConfig {
            image: file.clone(),
            bus: bus.unwrap_or(of_place(bay)),
        }),
        other => return Err(format!("unknown kind `{other}`; there are disk, cdrom")),
    };
    Ok(Attach {
        id: name.clone(),
        drive,
        bay,
    })
}

fn describe_drive(attachment: &Attachment) -> AttachedStatus {
    let bus = attachment.drive.bus().name();
    AttachedStatus {
        name: attachment.id.clone(),
        kind: attachment.drive.kind().to_owned(),
        bus: bus.to_owned(),
        place: attachment.bay.to_string(),
        file: attachment.drive.image().map(Path::to_owned),
        detaching: attachment.detaching,
    }
}

impl Controlled for Controls {
    fn status(&self) -> Status {
        let plan = self.machine.plan();
        let screen = self.screen.as_ref().map(|screen| {
            let scan = screen.scan_out();
            let (width, height) = scan.size();
            ScreenStatus {
                mode: scan.mode().name().to_owned(),
                width,
                height,
                vnc: self.vnc.clone(),
            }
        });
        let drive = |drive: &Arc<dyn RemovableDrive>| DriveStatus {
            name: drive.name().to_owned(),
            kind: drive.kind().name().to_owned(),
            medium: drive.medium().map(|medium| MediumStatus {
                file: medium.path,
                read_only: medium.read_only,
            }),
        };
        Status {
            state: self.machine.state().to_string(),
            machine: plan.board.to_owned(),
            engine: self.machine.engine().to_owned(),
            cpus: plan.cpus,
            memory: plan.ram.iter().map(|(_, len)| len).sum(),
            time_ns: self.machine.now().as_ns(),
            pid: std::process::id(),
            screen,
            drives: self.machine.drives().iter().map(drive).collect(),
            attached: self.machine.attached().iter().map(describe_drive).collect(),
        }
    }

    fn picture(&self) -> Option<Surface> {
        self.screen.as_ref().map(Screen::picture)
    }

    fn text(&self) -> Result<Option<String>, Refusal> {
        let none = || Refusal::new(ErrorKind::Absent, "the machine has no screen");
        self.screen.as_ref().map(Screen::text).ok_or_else(none)
    }

    fn input(&self) -> Option<&dyn InputSink> {
        self.input.as_ref().map(|input| input as &dyn InputSink)
    }

    fn keystrokes_waiting(&self) -> usize {
        self.input.as_ref().map_or(0, UserInput::keystrokes_waiting)
    }

    fn has_ended(&self) -> bool {
        self.machine.state() == RunState::Stopped
    }

    fn press_power_button(&self) -> bool {
        self.machine.press_power_button()
    }

    fn press_sleep_button(&self) -> bool {
        self.machine.press_sleep_button()
    }

    fn reset(&self) -> Result<(), Refusal> {
        self.machine.reset().map_err(refuse)
    }

    fn pause(&self) -> Result<(), Refusal> {
        self.machine.pause().map_err(refuse)
    }

    fn resume(&self) -> Result<(), Refusal> {
        self.machine.resume().map_err(refuse)
    }

    fn switch_engine(&self, engine: &str) -> Result<String, Refusal> {
        let kind: EngineKind = engine
            .parse()
            .map_err(|error: String| Refusal::new(ErrorKind::Invalid, error))?;
        self.machine.switch_engine(kind).map_err(refuse)?;
        Ok(self.machine.engine().to_owned())
    }

    fn balloon(&self, size: Option<u64>) -> Result<BalloonState, Refusal> {
        let Some(balloon) = self.machine.balloon() else {
            let message = "the machine has no balloon; `oxbow run --balloon` adds one";
            return Err(Refusal::new(ErrorKind::Absent, message.to_owned()));
        };
        if let Some(size) = size {
            let memory = self.machine.plan().memory;
            if size >= memory {
                let message = format!("a balloon of {size} bytes leaves nothing of the guest's {memory}");
                return Err(Refusal::new(ErrorKind::Invalid, message));
            }
            balloon.set_target(size);
        }
        let BalloonStatus {
            driver,
            target,
            actual,
            inflated,
            reported,
            statistics,
        } = balloon.status();
        let named = statistics.into_iter().map(|(name, value)| (name.to_owned(), value));
        Ok(BalloonState {
            driver,
            target,
            actual,
            inflated,
            reported,
            statistics: named.collect(),
        })
    }

    fn quit(&self) {
        // A run that ends already does not listen any more.
        let _ = self.ends.send(End::Quit);
    }

    fn inspect(&self, path: &str) -> Result<Option<serde_json::Value>, Refusal> {
        let tree = self.machine.inspect().map_err(refuse)?;
        let failed = |error: serde_json::Error| Refusal::new(ErrorKind::Failed, error.to_string());
        tree.at(path).map(serde_json::to_value).transpose().map_err(failed)
    }

    fn eject(&self, drive: &str) -> Result<(), Refusal> {
        let drive = self.drive(drive)?;
        drive.eject().map_err(refuse_medium)?;
        self.tell_medium(&*drive);
        Ok(())
    }

    fn insert(&self, drive: &str, file: &Path, read_only: bool) -> Result<(), Refusal> {
        let drive = self.drive(drive)?;
        drive.insert(file, read_only).map_err(refuse_medium)?;
        self.tell_medium(&*drive);
        Ok(())
    }

    fn attach(&self, request: &Request) -> Result<AttachedStatus, Refusal> {
        // Where there is no PCI, SCSI is all that there can be.
        let kind = self.machine.plan().board.parse::<MachineKind>();
        let usual = match kind.is_ok_and(MachineKind::has_pci) {
            true => StorageBus::Ahci,
            false => StorageBus::Scsi,
        };
        let wish = wish(request, usual).map_err(|error| Refusal::new(ErrorKind::Invalid, error))?;
        let attachment = self.machine.attach(wish).map_err(refuse_plug)?;
        Ok(describe_drive(&attachment))
    }

    fn detach(&self, drive: &str, force: bool) -> Result<bool, Refusal> {
        self.machine.detach(drive, force).map_err(refuse_plug)
    }

    fn is_attached(&self, drive: &str) -> bool {
        self.machine.attached().iter().any(|attached| attached.id == drive)
    }

    fn set_link(&self, card: &str, up: bool) -> Result<(), Refusal> {
        self.machine.set_link(card, up).map_err(refuse_cable)
    }

    fn set_forward(&self, card: Option<&str>, rule: &str, on: bool) -> Result<(), Refusal> {
        let invalid = |error: String| Refusal::new(ErrorKind::Invalid, error);
        let forward: Forward = rule.parse().map_err(invalid)?;
        self.machine.set_forward(card, &forward, on).map_err(refuse_cable)
    }
}
