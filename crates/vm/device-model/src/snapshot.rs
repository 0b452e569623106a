//! Saved state: typed, versioned, separate from the runtime struct, and required of every device.

use serde::Deserialize;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A saved-state type with its name and version on disk.
pub trait Schema: Serialize + DeserializeOwned {
    /// Name in the snapshot file, such as `"uart16550"`.
    const NAME: &'static str;
    /// Version; raised with every change of the serialized form.
    const VERSION: u32;
}

/// Why a state could not be restored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The blob belongs to another kind of device.
    #[error("state of `{found}` where `{expected}` was expected")]
    WrongName {
        /// What this device saves.
        expected: String,
        /// What the blob holds.
        found: String,
    },
    /// The blob is of a version that this build does not know.
    #[error("version {found} of `{name}` is not known (this build knows {known})")]
    Version {
        /// Schema name.
        name: String,
        /// Version in the blob.
        found: u32,
        /// Version of this build.
        known: u32,
    },
    /// The blob's bytes are not what the schema says.
    #[error("damaged state of `{0}`")]
    Damaged(String),
    /// The values contradict each other or the machine.
    #[error("invalid state: {0}")]
    Invalid(String),
}

/// Saving and restoring, typed. There is no default: a device that forgets its state does not compile.
pub trait Snapshot {
    /// The saved form.
    type State: Schema;

    /// The state now. Starts with an exhaustive `let Self { .. } = self`, so that a new field must be thought about.
    fn save(&self) -> Self::State;

    /// Takes over a saved state. The values come from a file and are not to be trusted.
    ///
    /// # Errors
    /// [`RestoreError::Invalid`] where values contradict; the device is then to be reset before use.
    fn restore(&mut self, state: Self::State) -> Result<(), RestoreError>;
}

/// A saved state with its type erased: what the snapshot file stores per device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateBlob {
    /// [`Schema::NAME`].
    pub name: String,
    /// [`Schema::VERSION`].
    pub version: u32,
    /// The state in postcard form.
    pub bytes: Vec<u8>,
}

/// [`Snapshot`] with the type erased; implemented for every [`Snapshot`].
pub trait DynSnapshot {
    /// The state now, serialized.
    fn save_blob(&self) -> StateBlob;

    /// Takes over a serialized state.
    ///
    /// # Errors
    /// [`RestoreError`] where the blob is of another device, of an unknown version, or damaged.
    fn restore_blob(&mut self, blob: &StateBlob) -> Result<(), RestoreError>;
}

impl<T: Snapshot> DynSnapshot for T {
    fn save_blob(&self) -> StateBlob {
        // Serializing plain data into memory has no way to fail.
        let bytes = postcard::to_stdvec(&self.save()).unwrap_or_default();
        StateBlob {
            name: T::State::NAME.to_owned(),
            version: T::State::VERSION,
            bytes,
        }
    }

    fn restore_blob(&mut self, blob: &StateBlob) -> Result<(), RestoreError> {
        if blob.name != T::State::NAME {
            return Err(RestoreError::WrongName {
                expected: T::State::NAME.to_owned(),
                found: blob.name.clone(),
            });
        }
        if blob.version != T::State::VERSION {
            let (found, known) = (blob.version, T::State::VERSION);
            return Err(RestoreError::Version {
                name: blob.name.clone(),
                found,
                known,
            });
        }
        let state = postcard::from_bytes(&blob.bytes).map_err(|_| RestoreError::Damaged(blob.name.clone()))?;
        self.restore(state)
    }
}
