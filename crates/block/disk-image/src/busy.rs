//! Ranges of the disk whose mapping somebody is about to change.

use std::ops::Range;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

#[derive(Debug, Default)]
pub(crate) struct Busy {
    ranges: Mutex<Vec<Range<u64>>>,
    ended: Condvar,
}

/// The range is busy as long as this lives.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    busy: &'a Busy,
    range: Range<u64>,
}

impl Busy {
    /// Waits until nobody else holds any part of `range`.
    pub(crate) fn hold(&self, range: Range<u64>) -> Hold<'_> {
        let free = |ranges: &mut Vec<Range<u64>>| {
            ranges
                .iter()
                .any(|other| other.start < range.end && range.start < other.end)
        };
        let guard = self.ended.wait_while(self.ranges(), free);
        guard.unwrap_or_else(PoisonError::into_inner).push(range.clone());
        Hold { busy: self, range }
    }

    fn ranges(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut ranges = self.busy.ranges();
        if let Some(index) = ranges.iter().position(|range| *range == self.range) {
            ranges.swap_remove(index);
        }
        self.busy.ended.notify_all();
    }
}
