//! Drives that are attached and detached while the machine runs.
//!
//! ```text
//!  attach ──► image opened ──► control thread: the machine stands still ──► Bays ──► a SATA port, a SCSI target, or a card:
//!             by the caller                                                          a new controller on the bus
//!  detach ──► ports, targets and pulled cards at once; other cards when the guest has turned their slot off or ejected them
//! ```
//!
//! Cards go into PCI Express ports of a q35 and into slots of a pc that were empty when the machine was built.

mod card;
mod parts;
mod ports;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use device_model::SharedDevice;
use device_model::Slot;
use pci::Bdf;
use pci::acpi_slots;
use pci::acpi_slots::AcpiSlots;
use pci::root_port::RootPort;
use spec::Attachment;
use spec::Bay;
use spec::CdromConfig;
use spec::DriveConfig;
use spec::PciPlace;
use spec::StorageBus;
use storage::Identity;

use crate::BuildError;
use crate::control::StateError;
use crate::drives::RemovableDrive;
use crate::optical::CdDrive;
use crate::optical::Trays;
use crate::registry::bdf;
use crate::storage::ImageMedium;
pub(crate) use card::Card;
pub(crate) use card::Kit;
pub(crate) use parts::bays;
pub(crate) use parts::given_up;
pub(crate) use ports::Ports;
pub(crate) use ports::unit;

/// Characters of a drive's name at most.
const ID_MAX: usize = 32;

/// A drive that is to be attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    /// What it is to be called; none: by its kind and number.
    pub id: Option<String>,
    /// What it is.
    pub drive: DriveConfig,
    /// Where; none: the first place that is free.
    pub bay: Option<Bay>,
}

/// Why a drive was not attached or detached.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// It does not fit what the machine is doing.
    #[error(transparent)]
    State(#[from] StateError),
    /// Its image cannot be had.
    #[error(transparent)]
    Image(#[from] BuildError),
    /// It cannot be called so.
    #[error("{0}")]
    Name(String),
    /// It cannot be there.
    #[error("{0}")]
    Place(String),
    /// Nothing is called so.
    #[error("no drive is attached as `{id}`; {there}")]
    Absent {
        /// What was asked for.
        id: String,
        /// What there is.
        there: String,
    },
    /// It stays as long as the machine.
    #[error("`{id}` is {what}, which stays as long as the machine runs")]
    Fixed {
        /// Its name.
        id: String,
        /// What it is.
        what: &'static str,
    },
    /// The guest holds it.
    #[error("the guest has locked the drive `{0}`; unlock it there, or detach it by force")]
    Locked(String),
}

/// Raises a general-purpose event of ACPI.
pub(crate) type Gpe = Box<dyn Fn(u32) + Send + Sync>;

/// What drives and cards are plugged into.
#[derive(Default)]
pub(crate) struct Sockets {
    pub(crate) ahci: Option<Arc<dyn Ports>>,
    /// The machine's own SCSI host.
    pub(crate) scsi: Option<Arc<dyn Ports>>,
    /// By number, from one.
    pub(crate) ports: Vec<(u8, Arc<Slot<RootPort>>)>,
    pub(crate) slots: Option<Arc<Slot<AcpiSlots>>>,
    pub(crate) gpe: Option<Gpe>,
    /// Drives that cannot go, and what they are.
    pub(crate) fixed: Vec<(String, &'static str)>,
    /// Drives that were there from the start.
    pub(crate) drives: Vec<Attached>,
}

/// A drive that is there.
pub(crate) struct Attached {
    pub(crate) attachment: Attachment,
    /// The image of a disk.
    pub(crate) medium: Option<Arc<ImageMedium>>,
    /// The controller that came with it.
    pub(crate) card: Option<SharedDevice>,
    /// The drive as users see it, if its media come and go.
    pub(crate) tray: Option<Arc<dyn RemovableDrive>>,
}

impl Attached {
    /// The attachment, with the disc that is in it now.
    fn describe(&self) -> Attachment {
        let mut attachment = self.attachment.clone();
        if let (DriveConfig::Cdrom(cdrom), Some(tray)) = (&mut attachment.drive, &self.tray) {
            cdrom.image = tray.medium().map(|medium| medium.path);
        }
        attachment
    }

    /// Whether it is what a saved state has; discs may differ.
    fn is(&self, saved: &Attachment) -> bool {
        let plain = |attachment: &Attachment| {
            let mut attachment = attachment.clone();
            attachment.detaching = false;
            if let DriveConfig::Cdrom(CdromConfig { image, .. }) = &mut attachment.drive {
                *image = None;
            }
            attachment
        };
        plain(&self.attachment) == plain(saved)
    }
}

/// The places for drives. What changes them is called while the machine stands still.
pub(crate) struct Bays {
    kit: Kit,
    sockets: Sockets,
    /// Names that devices have.
    taken: Vec<String>,
    /// In the order of their places.
    attached: Mutex<Vec<Attached>>,
}

impl Bays {
    pub(crate) fn new(kit: Kit, mut sockets: Sockets, taken: Vec<String>) -> Self {
        let mut attached = std::mem::take(&mut sockets.drives);
        attached.sort_by_key(|drive| drive.attachment.bay);
        Self {
            kit,
            sockets,
            taken,
            attached: Mutex::new(attached),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Attached>> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The drives that can go, in the order of their places.
    pub(crate) fn attached(&self) -> Vec<Attachment> {
        self.lock().iter().map(Attached::describe).collect()
    }

    /// Controllers that came while the machine ran.
    pub(crate) fn cards(&self) -> Vec<SharedDevice> {
        self.lock().iter().filter_map(|drive| drive.card.clone()).collect()
    }

    /// Drives with media that come and go.
    pub(crate) fn trays(&self) -> Vec<Arc<dyn RemovableDrive>> {
        self.lock().iter().filter_map(|drive| drive.tray.clone()).collect()
    }

    /// Saves what was written to disks.
    pub(crate) fn settle(&self) {
        let media: Vec<_> = self.lock().iter().filter_map(|drive| drive.medium.clone()).collect();
        media.iter().for_each(|medium| medium.settle());
    }

    /// Forgets what guests were asked to give up: after a reset nobody remembers.
    pub(crate) fn forget_requests(&self) {
        self.lock()
            .iter_mut()
            .for_each(|drive| drive.attachment.detaching = false);
    }

    /// What a drive is to be called, which of its kind it is, and where it goes.
    pub(crate) fn place(&self, wish: &Attach) -> Result<Attachment, PlugError> {
        let attached = self.lock();
        let (kind, prefix) = match wish.drive {
            DriveConfig::Disk(_) => ("disk", "disk"),
            DriveConfig::Cdrom(_) => ("cdrom", "cd"),
        };
        let used = |number: u32| {
            let name = format!("{prefix}{number}");
            let same = |drive: &Attached| drive.attachment.drive.kind() == kind && drive.attachment.number == number;
            attached.iter().any(same) || self.is_taken(&attached, &name)
        };
        let number = (0..).find(|number| !used(*number)).unwrap_or(0);
        let id = match &wish.id {
            None => format!("{prefix}{number}"),
            Some(id) => {
                check_id(id)?;
                if self.is_taken(&attached, id) {
                    return Err(PlugError::Name(format!("the name `{id}` is taken")));
                }
                id.clone()
            }
        };
        drop(attached);
        Ok(Attachment {
            id,
            number,
            drive: wish.drive.clone(),
            bay: self.bay(wish)?,
            detaching: false,
        })
    }

    fn is_taken(&self, attached: &[Attached], name: &str) -> bool {
        self.taken.iter().any(|taken| taken == name)
            || self.sockets.fixed.iter().any(|(fixed, _)| fixed == name)
            || attached.iter().any(|drive| drive.attachment.id == name)
    }

    /// The controller with the place `bay`, and which of its places that is; none where the machine has no such controller.
    fn ports(&self, bay: Bay) -> Option<(&Arc<dyn Ports>, usize)> {
        match bay {
            Bay::Sata(port) => self.sockets.ahci.as_ref().map(|ahci| (ahci, port.into())),
            Bay::Scsi(target) => self.sockets.scsi.as_ref().map(|host| (host, target.into())),
            Bay::Card(_) => None,
        }
    }

    /// Where a drive goes.
    fn bay(&self, wish: &Attach) -> Result<Bay, PlugError> {
        let place = |what: String| Err(PlugError::Place(what));
        let bus = wish.drive.bus();
        let own = match (bus, &wish.drive) {
            (StorageBus::Ide, _) => {
                return place(
                    "drives of IDE channels stay as long as the machine runs; use bus=ahci or bus=nvme".to_owned(),
                );
            }
            (StorageBus::Nvme | StorageBus::Virtio, DriveConfig::Cdrom(_)) => {
                return place("there are no NVMe or virtio CD drives; use bus=ahci or bus=scsi".to_owned());
            }
            (StorageBus::Ahci, _) => Some(Bay::Sata as fn(u8) -> Bay),
            (StorageBus::Scsi, _) => Some(Bay::Scsi as fn(u8) -> Bay),
            (StorageBus::Nvme | StorageBus::Virtio, _) => None,
        };
        let Some(bay) = wish.bay else {
            return self.free(bus, own);
        };
        let (controller, wanted) = match bay {
            Bay::Card(card) => return self.check_card(card).map(Bay::Card),
            Bay::Sata(_) => ("SATA controller", StorageBus::Ahci),
            Bay::Scsi(_) => ("SCSI host", StorageBus::Scsi),
        };
        if bus != wanted {
            let (bus, wanted) = (bus.name(), wanted.name());
            return place(format!(
                "{bay} takes no {bus} disks; leave the place away, or use bus={wanted}"
            ));
        }
        match self.ports(bay).map(|(ports, index)| ports.is_occupied(index)) {
            Some(Some(false)) => Ok(bay),
            Some(Some(true)) => place(format!("{bay} is taken")),
            Some(None) => place(format!("the machine's {controller} has no {bay}")),
            None => place(format!(
                "the machine has no {controller}; leave the place away to plug one in"
            )),
        }
    }

    /// The first place that is free: at the machine's own controller of the bus, whose places are called `own`, or for a card.
    fn free(&self, bus: StorageBus, own: Option<fn(u8) -> Bay>) -> Result<Bay, PlugError> {
        let place = |what: &str| Err(PlugError::Place(what.to_owned()));
        if let Some((ports, _)) = own.and_then(|own| self.ports(own(0))) {
            let mut numbers = (0u8..).map_while(|number| Some((number, ports.is_occupied(number.into())?)));
            let free = numbers.find(|(_, occupied)| !occupied).map(|(number, _)| number);
            match (own.zip(free), bus) {
                (Some((own, number)), _) => return Ok(own(number)),
                (None, StorageBus::Scsi) if self.card_places().is_empty() => {
                    return place("all targets of the SCSI host are taken; detach a drive");
                }
                (None, StorageBus::Scsi) => {}
                (None, _) => return place("all ports of the SATA controller are taken; detach a drive"),
            }
        }
        if bus == StorageBus::Scsi && self.card_places().is_empty() {
            return place(
                "the machine has no SCSI host, and no slots that take one while it runs; start it with a SCSI drive, such as \
                 `--cdrom none,bus=scsi`",
            );
        }
        self.free_card().map(Bay::Card)
    }

    /// Places for cards: those that take cards while the machine runs.
    fn card_places(&self) -> Vec<PciPlace> {
        let ports = self.sockets.ports.iter().map(|(number, _)| PciPlace::Port(*number));
        let takes = |slot: &u8| self.sockets.slots.as_ref().is_some_and(|chip| chip.lock().has(*slot));
        let slots = (0u8..32).filter(takes).map(PciPlace::Root);
        ports.chain(slots).collect()
    }

    fn is_empty(&self, place: PciPlace) -> bool {
        self.kit.root.function(address(place)).is_none()
    }

    fn check_card(&self, place: PciPlace) -> Result<PciPlace, PlugError> {
        let places = self.card_places();
        let names: Vec<String> = places.iter().map(ToString::to_string).collect();
        let problem = match (places.contains(&place), self.is_empty(place)) {
            (true, true) => return Ok(place),
            (true, false) => format!("{place} is taken"),
            (false, _) if names.is_empty() => "the machine has no slots that take cards while it runs".to_owned(),
            (false, _) => format!("{place} takes no cards while the machine runs; {} do", names.join(", ")),
        };
        Err(PlugError::Place(problem))
    }

    fn free_card(&self) -> Result<PciPlace, PlugError> {
        let places = self.card_places();
        let free = places.iter().copied().find(|place| self.is_empty(*place));
        free.ok_or_else(|| {
            PlugError::Place(match places.is_empty() {
                true => "the machine has no slots that take cards while it runs".to_owned(),
                false => "all slots that take cards while the machine runs are taken; detach a drive".to_owned(),
            })
        })
    }

    /// Plugs a drive in. Returns the card that came with it, which the event thread is to look after.
    pub(crate) fn plug(&self, attachment: Attachment, medium: Option<Arc<ImageMedium>>) -> Option<Card> {
        let mut new = Attached {
            medium: medium
                .clone()
                .filter(|_| matches!(attachment.drive, DriveConfig::Disk(_))),
            card: None,
            tray: None,
            attachment,
        };
        let (trays, place, card) = match (new.attachment.bay, self.ports(new.attachment.bay)) {
            (Bay::Card(place), _) => {
                let card = self.kit.card(&new.attachment, medium, address(place));
                self.kit.root.add(address(place), Arc::clone(&card.device));
                self.tell(place, true);
                (card.trays.clone(), 0, Some(card))
            }
            (_, Some((ports, place))) => {
                ports.plug(place, Some((&new.attachment, medium)));
                (Some(Arc::clone(ports) as Arc<dyn Trays>), place, None)
            }
            // Without a controller there is no such place; the plan of it said so.
            (_, None) => return None,
        };
        new.card = card.as_ref().map(|card| Arc::clone(&card.device));
        if let (DriveConfig::Cdrom(cdrom), Some(trays)) = (&new.attachment.drive, trays) {
            let medium = cdrom
                .image
                .clone()
                .map(|path| crate::drives::Medium { path, read_only: true });
            new.tray = Some(Arc::new(CdDrive::new(trays, place, &new.attachment.id, medium)));
        }
        let mut attached = self.lock();
        attached.push(new);
        attached.sort_by_key(|drive| drive.attachment.bay);
        card
    }

    /// Tells the guest that a card has come to `place`, or that there is none any more.
    fn tell(&self, place: PciPlace, present: bool) {
        match place {
            PciPlace::Port(number) => {
                if let Some(port) = self.port(number) {
                    let mut chip = port.lock();
                    chip.plug(present);
                    if present && !chip.powered() {
                        // As a user does: guests that know of the button listen to nothing else.
                        chip.press_attention();
                    }
                    drop(chip);
                    self.kit.root.look_again(bdf::port(number));
                }
            }
            PciPlace::Root(slot) => {
                if let Some(slots) = &self.sockets.slots {
                    let mut chip = slots.lock();
                    match present {
                        true => chip.plug(slot),
                        // A guest looks for what is missing only when it is asked to give it up.
                        false => chip.ask(slot),
                    }
                    drop(chip);
                    self.raise();
                }
            }
            PciPlace::Bridge(_) => {}
        }
    }

    fn port(&self, number: u8) -> Option<&Arc<Slot<RootPort>>> {
        let ports = self.sockets.ports.iter();
        ports.clone().find(|(port, _)| *port == number).map(|(_, port)| port)
    }

    fn raise(&self) {
        if let Some(gpe) = &self.sockets.gpe {
            gpe(acpi_slots::GPE.into());
        }
    }

    /// Detaches a drive, or asks the guest to give it up: none then. `force` asks nobody.
    pub(crate) fn detach(&self, id: &str, force: bool) -> Result<Option<Attached>, PlugError> {
        let mut attached = self.lock();
        let Some(drive) = attached.iter_mut().find(|drive| drive.attachment.id == id) else {
            return Err(self.missing(&attached, id));
        };
        let waits = match drive.attachment.bay {
            Bay::Sata(_) | Bay::Scsi(_) => {
                let mut locked = false;
                if let (Some((ports, place)), false) = (self.ports(drive.attachment.bay), force) {
                    ports.tray(place, &mut |tray| locked = tray.is_loaded() && !tray.eject(false));
                }
                if locked {
                    return Err(PlugError::Locked(id.to_owned()));
                }
                false
            }
            Bay::Card(place) => !force && self.ask(place),
        };
        drive.attachment.detaching = waits;
        drop(attached);
        Ok(if waits {
            None
        } else {
            self.pull(false, |drive| drive.attachment.id == id)
        })
    }

    /// Asks the guest to give the card at `place` up; false where it has no power already.
    fn ask(&self, place: PciPlace) -> bool {
        match place {
            PciPlace::Port(number) => self.port(number).is_some_and(|port| {
                let mut port = port.lock();
                // While the lamp blinks the guest is about it; the button would call it off.
                if port.powered() && !port.lamp_blinks() {
                    port.press_attention();
                }
                port.powered()
            }),
            PciPlace::Root(slot) => self.sockets.slots.as_ref().is_some_and(|slots| {
                slots.lock().ask(slot);
                self.raise();
                true
            }),
            PciPlace::Bridge(_) => false,
        }
    }

    fn missing(&self, attached: &[Attached], id: &str) -> PlugError {
        if let Some((id, what)) = self.sockets.fixed.iter().find(|(fixed, _)| fixed == id) {
            let (id, what) = (id.clone(), *what);
            return PlugError::Fixed { id, what };
        }
        let names: Vec<&str> = attached.iter().map(|drive| drive.attachment.id.as_str()).collect();
        let there = match names.as_slice() {
            [] => "there is none that could be detached".to_owned(),
            names => format!("there are {}", names.join(", ")),
        };
        let id = id.to_owned();
        PlugError::Absent { id, there }
    }

    /// The guest has given up what is in `bay`: it goes, if that is what was wanted.
    pub(crate) fn given_up(&self, bay: Bay) -> Option<Attached> {
        let ejected = matches!(bay, Bay::Card(PciPlace::Root(_)));
        self.pull(ejected, |drive| {
            drive.attachment.bay == bay && (ejected || drive.attachment.detaching)
        })
    }

    /// Pulls a drive out, with its card; the guest has `ejected` it, or is told.
    fn pull(&self, ejected: bool, which: impl Fn(&Attached) -> bool) -> Option<Attached> {
        let mut attached = self.lock();
        let index = attached.iter().position(which)?;
        let gone = attached.remove(index);
        drop(attached);
        match gone.attachment.bay {
            bay @ (Bay::Sata(_) | Bay::Scsi(_)) => {
                if let Some((ports, place)) = self.ports(bay) {
                    ports.plug(place, None);
                }
            }
            Bay::Card(place) => {
                self.kit.root.remove(address(place));
                if let Some(card) = &gone.card {
                    // Its interrupt line goes low.
                    card.lock().reset(device_model::Reset::Cold);
                }
                if !ejected {
                    self.tell(place, false);
                }
            }
        }
        Some(gone)
    }

    /// Makes the drives those of a saved state. Returns what went and what came.
    pub(crate) fn match_saved(&self, saved: &[Attachment]) -> Result<(Vec<Attached>, Vec<Card>), PlugError> {
        let mut gone = Vec::new();
        while let Some(drive) = self.pull(false, |drive| !saved.iter().any(|saved| drive.is(saved))) {
            gone.push(drive);
        }
        let mut came = Vec::new();
        for attachment in saved {
            let mut attached = self.lock();
            if let Some(drive) = attached.iter_mut().find(|drive| drive.is(attachment)) {
                drive.attachment.detaching = attachment.detaching;
                continue;
            }
            drop(attached);
            let mut checked = self.place(&Attach {
                id: Some(attachment.id.clone()),
                drive: attachment.drive.clone(),
                bay: Some(attachment.bay),
            })?;
            checked.number = attachment.number;
            checked.detaching = attachment.detaching;
            let medium = open(&checked.drive)?;
            came.extend(self.plug(checked, medium));
        }
        Ok((gone, came))
    }
}

/// Where the guest finds the card at `place`; its bus is a wire.
fn address(place: PciPlace) -> Bdf {
    match place {
        PciPlace::Root(slot) => Bdf::new(0, slot, 0),
        PciPlace::Port(number) => Bdf::new(number, 0, 0),
        PciPlace::Bridge(slot) => Bdf::new(bdf::CARDS, slot, 0),
    }
}

fn check_id(id: &str) -> Result<(), PlugError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let begins = id.chars().next().is_some_and(|c| c.is_ascii_alphabetic());
    if begins && id.len() <= ID_MAX && id.chars().all(plain) {
        return Ok(());
    }
    Err(PlugError::Name(format!(
        "`{id}` is no name: letters, digits, `-` and `_`, a letter first, {ID_MAX} at most"
    )))
}

/// Opens the image of a drive.
pub(crate) fn open(drive: &DriveConfig) -> Result<Option<Arc<ImageMedium>>, BuildError> {
    match drive {
        DriveConfig::Disk(disk) => ImageMedium::disk(disk).map(Some),
        DriveConfig::Cdrom(cdrom) => cdrom.image.as_deref().map(ImageMedium::disc).transpose(),
    }
}

/// What a drive says of itself.
pub(crate) fn identity(drive: &DriveConfig, number: u32) -> Identity {
    let (model, kind, serial) = match drive {
        DriveConfig::Disk(disk) => ("OXBOW HARDDISK", "D", disk.serial.clone()),
        DriveConfig::Cdrom(_) => ("OXBOW CD-ROM", "C", None),
    };
    Identity {
        model: model.to_owned(),
        serial: serial.unwrap_or_else(|| format!("OX{kind}{:05}", u64::from(number) + 1)),
        firmware: "1.0".to_owned(),
    }
}
