//! Files and directories that the guest has open.

use std::sync::Arc;
use std::sync::Mutex;

use rustc_hash::FxHashMap;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::nodes::Nodes;
use super::state::HandleState;
use crate::Folder;
use crate::folder::Opened;
use crate::folder::Result;

/// One of them.
pub(super) struct Handle {
    /// None where a saved state named what is not there any more.
    opened: Option<Opened>,
    /// What it was opened with.
    flags: OFlags,
    /// The file's number.
    pub(super) node: u64,
    pub(super) is_directory: bool,
    /// Held while the descriptor's one position is used.
    pub(super) position: Mutex<()>,
}

impl Handle {
    pub(super) fn new(opened: Opened, node: u64, is_directory: bool) -> Self {
        Self {
            flags: opened.flags,
            opened: Some(opened),
            node,
            is_directory,
            position: Mutex::default(),
        }
    }

    pub(super) fn opened(&self) -> Result<&Opened> {
        self.opened.as_ref().ok_or(Errno::STALE)
    }

    /// The file; a directory is none.
    pub(super) fn file(&self) -> Result<&Opened> {
        if self.is_directory {
            return Err(Errno::ISDIR);
        }
        self.opened()
    }
}

/// All of them. A number is never used twice.
#[derive(Default)]
pub(super) struct Handles {
    open: FxHashMap<u64, Arc<Handle>>,
    next: u64,
}

impl Handles {
    pub(super) fn get(&self, number: u64) -> Result<Arc<Handle>> {
        self.open.get(&number).cloned().ok_or(Errno::BADF)
    }

    pub(super) fn add(&mut self, handle: Handle) -> u64 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.open.insert(number, Arc::new(handle));
        number
    }

    pub(super) fn remove(&mut self, number: u64) -> Result<Arc<Handle>> {
        self.open.remove(&number).ok_or(Errno::BADF)
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn save(&self) -> (Vec<HandleState>, u64) {
        let handle = |(number, handle): (&u64, &Arc<Handle>)| HandleState {
            number: *number,
            node: handle.node,
            directory: handle.is_directory,
            flags: handle.flags.bits(),
        };
        let mut handles: Vec<_> = self.open.iter().map(handle).collect();
        handles.sort_unstable_by_key(|handle| handle.number);
        (handles, self.next)
    }

    /// What a saved state has. Files that are not there any more are lost.
    ///
    /// # Errors
    /// The numbers contradict.
    pub(super) fn restore(
        folder: &Folder,
        nodes: &Nodes,
        saved: &[HandleState],
        next: u64,
    ) -> std::result::Result<Self, &'static str> {
        let mut open = FxHashMap::default();
        for state in saved {
            if state.number >= next {
                return Err("an open file's number that cannot be");
            }
            // It was truncated when it was opened.
            let flags = OFlags::from_bits_retain(state.flags) - OFlags::TRUNC;
            let opened = nodes.get(state.node).and_then(|place| {
                if state.directory {
                    folder.open_directory(&place)
                } else {
                    folder.reopen(&place, flags)
                }
            });
            let handle = Handle {
                opened: opened.ok(),
                flags: OFlags::from_bits_retain(state.flags),
                node: state.node,
                is_directory: state.directory,
                position: Mutex::default(),
            };
            if open.insert(state.number, Arc::new(handle)).is_some() {
                return Err("two open files of one number");
            }
        }
        Ok(Self { open, next })
    }
}
