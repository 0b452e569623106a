//! Numbers of files that the guest knows.

use std::sync::Arc;

use rustc_hash::FxHashMap;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::state::NodeState;
use super::wire::ROOT;
use crate::Folder;
use crate::folder::Place;
use crate::folder::Result;

/// A file that the guest knows.
struct Known {
    place: Arc<Place>,
    /// How often it was told of it, less how often it said that it has forgotten.
    lookups: u64,
}

/// All of them. A number is never used twice.
pub(super) struct Nodes {
    known: FxHashMap<u64, Known>,
    by_key: FxHashMap<(u64, u64), u64>,
    next: u64,
}

impl Nodes {
    /// The root only, which is never forgotten.
    pub(super) fn new(folder: &Folder) -> Self {
        let mut nodes = Self {
            known: FxHashMap::default(),
            by_key: FxHashMap::default(),
            next: ROOT,
        };
        nodes.insert(Arc::clone(folder.root()));
        nodes
    }

    pub(super) fn get(&self, number: u64) -> Result<Arc<Place>> {
        let known = self.known.get(&number).ok_or(Errno::STALE)?;
        Ok(Arc::clone(&known.place))
    }

    /// The number of what was found; the one that it has if it is known.
    pub(super) fn add(&mut self, place: Place) -> u64 {
        if let Some(number) = self.by_key.get(&place.key)
            && let Some(known) = self.known.get_mut(number)
        {
            known.lookups = known.lookups.saturating_add(1);
            return *number;
        }
        self.insert(Arc::new(place))
    }

    fn insert(&mut self, place: Arc<Place>) -> u64 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.by_key.insert(place.key, number);
        self.known.insert(number, Known { place, lookups: 1 });
        number
    }

    /// The guest has forgotten `lookups` of what it was told. Returns what is to be closed.
    pub(super) fn forget(&mut self, number: u64, lookups: u64) -> Option<Arc<Place>> {
        let known = self.known.get_mut(&number).filter(|_| number != ROOT)?;
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return None;
        }
        let place = self.known.remove(&number)?.place;
        if self.by_key.get(&place.key) == Some(&number) {
            self.by_key.remove(&place.key);
        }
        Some(place)
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn save(&self, folder: &Folder) -> (Vec<NodeState>, u64) {
        let node = |(number, known): (&u64, &Known)| NodeState {
            number: *number,
            lookups: known.lookups,
            kind: known.place.kind.as_raw_mode(),
            path: folder.path_of(&known.place),
        };
        let mut nodes: Vec<_> = self.known.iter().map(node).collect();
        nodes.sort_unstable_by_key(|node| node.number);
        (nodes, self.next)
    }

    /// What a saved state has. Places that are not there any more, or are of another kind now, are lost.
    ///
    /// # Errors
    /// The numbers contradict.
    pub(super) fn restore(folder: &Folder, saved: &[NodeState], next: u64) -> std::result::Result<Self, &'static str> {
        let mut nodes = Self::new(folder);
        for state in saved.iter().filter(|state| state.number != ROOT) {
            if state.number >= next || state.lookups == 0 {
                return Err("a file's number that cannot be");
            }
            let found = state.path.as_ref().and_then(|path| folder.find(path).ok());
            let same = found.filter(|place| place.kind.as_raw_mode() == state.kind);
            let place = Arc::new(same.unwrap_or_else(|| Place::lost(FileType::from_raw_mode(state.kind))));
            if !place.is_lost() {
                nodes.by_key.insert(place.key, state.number);
            }
            let known = Known {
                place,
                lookups: state.lookups,
            };
            if nodes.known.insert(state.number, known).is_some() {
                return Err("two files of one number");
            }
        }
        nodes.next = next.max(ROOT + 1);
        Ok(nodes)
    }
}
