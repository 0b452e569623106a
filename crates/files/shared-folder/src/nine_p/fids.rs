//! Numbers that the guest has given to files.

use std::collections::btree_map::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::CString;
use std::sync::Arc;
use std::sync::Mutex;

use rustix::fs::FileType;
use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::Deserialize;
use serde::Serialize;

use crate::Folder;
use crate::folder::Opened;
use crate::folder::Place;
use crate::folder::Result;

/// Numbers at most, and those among them that hold an extended attribute.
const MOST: usize = 1 << 20;
const ATTRIBUTES: usize = 256;

/// A file or directory that is open.
pub(super) struct Handle {
    pub(super) opened: Opened,
    /// What it was opened with, by the guest's word.
    pub(super) flags: u32,
    /// Held while the descriptor's one position is used.
    pub(super) position: Mutex<()>,
}

impl Handle {
    pub(super) fn new(opened: Opened, flags: u32) -> Self {
        Self {
            opened,
            flags,
            position: Mutex::default(),
        }
    }
}

/// What has been done with a number.
#[derive(Clone)]
pub(super) enum Use {
    /// It names a file.
    Path,
    /// The file is open.
    Open(Arc<Handle>),
    /// It is an extended attribute, or the list of their names, to be read.
    Attribute(Arc<Vec<u8>>),
    /// It is an extended attribute to be written, which is set when all of it has come.
    NewAttribute(Arc<NewAttribute>),
    /// A saved state named what is not there any more.
    /// This had it open, if that is what it was.
    Lost(Option<u32>),
}

/// An extended attribute that is coming.
pub(super) struct NewAttribute {
    pub(super) name: CString,
    pub(super) flags: u32,
    pub(super) size: usize,
    pub(super) value: Mutex<Vec<u8>>,
}

/// A number's file.
#[derive(Clone)]
pub(super) struct Fid {
    pub(super) place: Arc<Place>,
    /// The user for whom it was made.
    pub(super) uid: u32,
    pub(super) used: Use,
}

impl Fid {
    pub(super) fn handle(&self) -> Result<&Arc<Handle>> {
        match &self.used {
            Use::Open(handle) => Ok(handle),
            Use::Lost(_) => Err(Errno::STALE),
            _ => Err(Errno::BADF),
        }
    }

    fn is_attribute(&self) -> bool {
        matches!(self.used, Use::Attribute(_) | Use::NewAttribute(_))
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Fids {
    fids: BTreeMap<u32, Fid>,
    attributes: usize,
}

/// Saved state of a number. Attributes that were being read or written are not saved: they are lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FidState {
    number: u32,
    uid: u32,
    /// The type's bits of its mode.
    kind: u32,
    /// From the folder on; none where it had no name any more, or was an attribute.
    path: Option<Vec<u8>>,
    /// What it was opened with.
    open: Option<u32>,
}

impl Fids {
    pub(super) fn get(&self, number: u32) -> Result<Fid> {
        self.fids.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// Gives a number to a file.
    ///
    /// # Errors
    /// It is another's; there are too many.
    pub(super) fn add(&mut self, number: u32, fid: Fid) -> Result<()> {
        let attribute = fid.is_attribute();
        if self.fids.len() >= MOST || attribute && self.attributes >= ATTRIBUTES {
            return Err(Errno::NFILE);
        }
        match self.fids.entry(number) {
            Entry::Occupied(_) => return Err(Errno::BADF),
            Entry::Vacant(entry) => entry.insert(fid),
        };
        self.attributes += usize::from(attribute);
        Ok(())
    }

    /// The number is from now on this.
    pub(super) fn replace(&mut self, number: u32, fid: Fid) -> Result<()> {
        let old = self.remove(number)?;
        let added = self.add(number, fid);
        if added.is_err() {
            self.add(number, old)?;
        }
        added
    }

    pub(super) fn remove(&mut self, number: u32) -> Result<Fid> {
        let fid = self.fids.remove(&number).ok_or(Errno::BADF)?;
        self.attributes = self.attributes.saturating_sub(usize::from(fid.is_attribute()));
        Ok(fid)
    }

    /// Numbers, and how many of them are open.
    pub(super) fn len(&self) -> (usize, usize) {
        let open = self.fids.values().filter(|fid| matches!(fid.used, Use::Open(_)));
        (self.fids.len(), open.count())
    }

    pub(super) fn save(&self, folder: &Folder) -> Vec<FidState> {
        let state = |(number, fid): (&u32, &Fid)| {
            let lost = fid.is_attribute() || matches!(fid.used, Use::Lost(_));
            FidState {
                number: *number,
                uid: fid.uid,
                kind: fid.place.kind.as_raw_mode(),
                path: folder.path_of(&fid.place).filter(|_| !lost),
                open: match &fid.used {
                    Use::Open(handle) => Some(handle.flags),
                    Use::Lost(open) => *open,
                    _ => None,
                },
            }
        };
        self.fids.iter().map(state).collect()
    }

    /// What a saved state has. Files that are not there any more, or are of another kind now, are lost.
    ///
    /// # Errors
    /// Numbers contradict.
    pub(super) fn restore(folder: &Folder, saved: &[FidState]) -> std::result::Result<Self, &'static str> {
        let mut fids = Self::default();
        for state in saved {
            let found = state.path.as_ref().and_then(|path| folder.find(path).ok());
            let same = found.filter(|place| place.kind.as_raw_mode() == state.kind);
            let place = Arc::new(same.unwrap_or_else(|| Place::lost(FileType::from_raw_mode(state.kind))));
            let reopen = |flags: u32| {
                let kept = OFlags::from_bits_retain(flags) - OFlags::TRUNC;
                let opened = folder.reopen(&place, kept).ok()?;
                Some(Use::Open(Arc::new(Handle::new(opened, flags))))
            };
            let used = match state.open {
                open if place.is_lost() => Use::Lost(open),
                Some(flags) => reopen(flags).unwrap_or(Use::Lost(Some(flags))),
                None => Use::Path,
            };
            let fid = Fid {
                place,
                uid: state.uid,
                used,
            };
            fids.add(state.number, fid).map_err(|_| "two files of one number")?;
        }
        Ok(fids)
    }
}
