//! Events: what happens to a machine, told to those who asked.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::Weak;

use serde::Deserialize;
use serde::Serialize;

use crate::server::Outbox;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Event {
    /// The machine does something else.
    State {
        /// What, as in [`crate::Status::state`].
        state: String,
    },
    /// The machine was reset.
    Reset {
        /// `guest` or `host`.
        by: String,
    },
    /// The machine has ended. The last event.
    End {
        /// `power-off`, `reset`, `debug-exit`, `triple-fault`, `stopped` or `failed`.
        reason: String,
        /// More about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// A medium was changed.
    Medium {
        /// Of this drive.
        drive: String,
        /// What is in it now.
        file: Option<PathBuf>,
    },
    /// A drive was attached.
    Attached {
        /// Its name.
        drive: String,
        /// Where it is.
        place: String,
    },
    /// A drive has gone; its image is closed.
    Detached {
        /// Its name.
        drive: String,
    },
    /// The client was too slow for so many events, which are lost.
    Lost {
        /// How many.
        count: u64,
    },
}

/// Tells events to all who subscribed. Never waits for any of them: callable from any thread, under any lock.
#[derive(Clone, Debug, Default)]
pub struct Publisher {
    subscribers: Arc<Mutex<Vec<Weak<Outbox>>>>,
}

impl Publisher {
    /// Tells an event.
    pub fn publish(&self, event: &Event) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|subscriber| subscriber.upgrade().is_some_and(|outbox| outbox.push_event(event)));
    }

    pub(crate) fn subscribe(&self, outbox: &Arc<Outbox>) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        let outbox = Arc::downgrade(outbox);
        // Twice is once.
        if !subscribers.iter().any(|known| known.ptr_eq(&outbox)) {
            subscribers.push(outbox);
        }
    }
}
