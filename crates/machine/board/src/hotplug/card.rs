//! Cards: controllers that are built while the machine runs, with one drive each.

use std::sync::Arc;

use device_model::Clock;
use device_model::Device;
use device_model::SharedDevice;
use device_model::Slot;
use device_model::Wake;
use guest_memory::GuestMemory;
use pci::Bdf;
use pci::PirqRouter;
use pci::Root;
use spec::Attachment;
use spec::StorageBus;
use storage::Executor;
use storage::Identity;
use storage::Medium;
use storage::MemoryMedium;
use storage::Waker;
use storage::ahci::Ahci;
use storage::nvme::Nvme;
use storage::nvme::NvmeIdentity;
use virtio::Pci;
use virtio::blk::Blk;
use virtio::blk::BlkConfig;
use virtio::scsi::Scsi;

use super::identity;
use super::ports::make_drive;
use super::unit;
use crate::Plan;
use crate::events::Events;
use crate::events::PollRequest;
use crate::events::Watched;
use crate::fabric::Fabric;
use crate::optical::Trays;
use crate::storage::ImageMedium;
use crate::storage::WorkerPool;
use crate::storage::Workers;

/// What cards are built of.
pub(crate) struct Kit {
    pub(crate) root: Arc<Root>,
    pub(crate) router: Arc<PirqRouter>,
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) events: Arc<Events>,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) workers: Arc<Workers>,
    /// For the ways of interrupt pins.
    pub(crate) plan: Plan,
}

/// A card that was built.
pub(crate) struct Card {
    pub(crate) device: SharedDevice,
    pub(super) trays: Option<Arc<dyn Trays>>,
    request: PollRequest,
}

impl Card {
    /// For the event thread.
    pub(crate) fn watched(self) -> Watched {
        Watched {
            device: self.device,
            request: Some(self.request),
        }
    }
}

impl Kit {
    /// The controller of a drive, as it is after power-on.
    pub(super) fn card(&self, attachment: &Attachment, medium: Option<Arc<ImageMedium>>, at: Bdf) -> Card {
        let (slot, pin) = self.plan.root_pin(at, 1);
        let wires = (self.router.pin(slot, pin), self.fabric.messages());
        let request = PollRequest::new(Arc::clone(&self.events));
        let raised = request.clone();
        let waker: Waker = Arc::new(move || raised.raise());
        let executor: Arc<dyn Executor> = Arc::new(WorkerPool(Arc::clone(&self.workers)));
        let (memory, id) = (&self.memory, attachment.id.as_str());
        let (device, trays) = match attachment.drive.bus() {
            StorageBus::Nvme => {
                let Identity { serial, firmware, .. } = identity(&attachment.drive, attachment.number);
                let name = NvmeIdentity {
                    model: "OXBOW NVME".to_owned(),
                    serial,
                    firmware,
                };
                let media = medium.into_iter().map(|medium| medium as Arc<dyn Medium>).collect();
                let chip = Nvme::new(wires, name, media, memory, &executor, &waker);
                (self.slot(id, chip) as SharedDevice, None)
            }
            StorageBus::Virtio => {
                let config = BlkConfig {
                    serial: identity(&attachment.drive, attachment.number).serial,
                    queues: u16::try_from(self.plan.cpus).unwrap_or(u16::MAX),
                };
                // Only disks come here, and those have an image.
                let medium = medium.map_or_else(
                    || Arc::new(MemoryMedium::default()) as _,
                    |medium| medium as Arc<dyn Medium>,
                );
                let disk = Blk::new(medium, config, memory, &executor, &waker);
                (self.slot(id, Pci::new(disk, wires, memory)) as SharedDevice, None)
            }
            StorageBus::Scsi => {
                let unit = unit(&attachment.drive, attachment.number, medium);
                let queues = u16::try_from(self.plan.cpus).unwrap_or(u16::MAX);
                let host = Scsi::new(vec![Some(unit)], queues, memory, &executor, &waker);
                let chip = self.slot(id, Pci::new(host, wires, memory));
                let trays = Arc::clone(&chip) as Arc<dyn Trays>;
                (chip as SharedDevice, Some(trays))
            }
            StorageBus::Ahci | StorageBus::Ide => {
                let drive = make_drive(attachment, medium);
                let drives = [Some(drive), None, None, None, None, None];
                let chip = self.slot(id, Ahci::new(wires, drives, memory, &executor, &waker));
                let trays = Arc::clone(&chip) as Arc<dyn Trays>;
                (chip as SharedDevice, Some(trays))
            }
        };
        Card { device, trays, request }
    }

    fn slot<D: Device>(&self, name: &str, device: D) -> Arc<Slot<D>> {
        let wake = Arc::clone(&self.events) as Arc<dyn Wake>;
        Slot::new(name, device, Arc::clone(&self.clock), wake)
    }
}
