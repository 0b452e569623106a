//! Hot plug and the rest of the machine: the event thread, the control thread, the builder.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::mpsc::Sender;

use device_model::SharedDevice;
use spec::Bay;

use super::Attached;
use super::Bays;
use super::Card;
use super::Kit;
use super::PlugError;
use crate::control::PowerPort;
use crate::control::Request;
use crate::gate::Gate;
use crate::machine::Parts;
use crate::registry::Builder;

impl Parts {
    /// Looks after cards that have come, and no more after those that have gone.
    pub(crate) fn watch_cards(&self, gone: &[Attached], came: impl IntoIterator<Item = Card>) {
        let mut watched = self.watched.write().unwrap_or_else(PoisonError::into_inner);
        let is_gone = |device: &SharedDevice| {
            let mut cards = gone.iter().filter_map(|drive| drive.card.as_ref());
            cards.any(|card| Arc::ptr_eq(card, device))
        };
        watched.retain(|watched| !is_gone(&watched.device));
        watched.extend(came.into_iter().map(Card::watched));
    }

    /// Detaches a drive, or asks the guest to give it up: none then.
    pub(crate) fn detach(&self, id: &str, force: bool) -> Result<Option<Attached>, PlugError> {
        let gone = self.bays.detach(id, force)?;
        self.watch_cards(gone.as_slice(), None);
        Ok(gone)
    }

    /// The guest has given up what is in `bay`.
    pub(crate) fn given_up(&self, bay: Bay) -> Option<Attached> {
        let gone = self.bays.given_up(bay);
        self.watch_cards(gone.as_slice(), None);
        gone
    }
}

/// Tells the control thread what the guest gives up.
pub(crate) fn given_up(gate: &Arc<Gate>, requests: &Sender<Request>) -> Arc<dyn Fn(Bay) + Send + Sync> {
    let port = PowerPort::new(Arc::clone(gate), requests.clone());
    Arc::new(move |bay| port.given_up(bay))
}

/// The places for drives that come and go.
pub(crate) fn bays(builder: &mut Builder<'_>) -> Bays {
    let kit = Kit {
        root: Arc::clone(&builder.root),
        router: Arc::clone(&builder.router),
        fabric: Arc::clone(&builder.fabric),
        clock: Arc::clone(&builder.clock),
        events: Arc::clone(&builder.events),
        memory: Arc::clone(&builder.memory),
        workers: Arc::clone(&builder.workers),
        plan: builder.plan.clone(),
    };
    let names = builder.plan.devices.iter().map(|place| place.name.clone());
    let drives = builder.drives.iter().map(|drive| drive.name().to_owned());
    let taken = names.chain(drives).collect();
    Bays::new(kit, std::mem::take(&mut builder.sockets), taken)
}
