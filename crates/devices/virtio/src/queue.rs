//! Split virtqueues, the device's side: descriptor table, available ring, used ring.
//!
//! Everything that the rings say is checked: an index, address or chain that cannot be is an error, after which the device
//! asks for a reset and looks at no ring any more. A chain has at most [`CHAIN`] descriptors whatever the tables claim, so
//! that nothing loops or grows without bound. Indirect descriptors and event indexes are there, packed rings are not.
//!
//! Spec: virtio 1.2 §2.7 (split virtqueues).

pub(crate) use device_model::bytes::index;
use std::sync::atomic::Ordering;
use std::sync::atomic::fence;

use device_model::RestoreError;
use guest_memory::GuestMemory;
use guest_memory::MemoryError;
use serde::Deserialize;
use serde::Serialize;
use storage::Segment;
use zerocopy::FromBytes;
use zerocopy::Immutable;
use zerocopy::IntoBytes;

use crate::device::feature;

/// Descriptors of one chain at most.
pub const CHAIN: usize = 1024;
/// Entries of a queue at most (§2.7).
const SIZE_MAX: u16 = 32768;
/// Descriptor flags (§2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Flag of the available ring: the driver wants no interrupts (§2.7.7).
const NO_INTERRUPT: u16 = 1;
/// Bytes of a descriptor and of a used element.
const DESCRIPTOR: u64 = 16;
const ELEMENT: u64 = 8;
/// Where the entries of both rings begin, behind flags and index.
const ENTRIES: u64 = 4;
/// Distance of what used and available rings of the legacy interface are aligned to (§2.7.2).
const LEGACY_ALIGN: u64 = 4096;

/// What a driver did that no driver may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The ring's index is farther ahead than it has entries.
    #[error("an available index that is too far ahead")]
    Index,
    /// A descriptor that the table does not have.
    #[error("a descriptor beyond the table's end")]
    Descriptor,
    /// More descriptors than a chain may have, or a loop.
    #[error("a chain without end")]
    Long,
    /// A table in a table, an empty one, or one that was not agreed upon.
    #[error("an indirect table that may not be")]
    Indirect,
    /// What the device reads comes after what it writes.
    #[error("a readable descriptor behind a writable one")]
    Order,
    /// There is no guest memory.
    #[error("an address without memory")]
    Memory,
    /// A chain without room for what the device has to answer.
    #[error("a request without room for its answer")]
    Shape,
    /// A queue's areas are misaligned.
    #[error("a queue at an odd address")]
    Aligned,
}

impl From<MemoryError> for RingError {
    fn from(_: MemoryError) -> Self {
        Self::Memory
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// Buffers that a driver has made available.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// What names it in the used ring.
    pub head: u16,
    /// What the device reads.
    pub readable: Vec<Segment>,
    /// What the device writes.
    pub writable: Vec<Segment>,
}

impl Chain {
    /// Takes the first `buf.len()` bytes that the device reads out of the chain. The memory is there: it was looked for
    /// when the chain was taken.
    ///
    /// # Errors
    /// [`RingError::Shape`] when there are fewer.
    pub fn take(&mut self, memory: &GuestMemory, buf: &mut [u8]) -> Result<(), RingError> {
        let front = cut(&mut self.readable, buf.len() as u64).ok_or(RingError::Shape)?;
        let mut rest = buf;
        for segment in front {
            let len = index(segment.len.into());
            let (now, later) = std::mem::take(&mut rest).split_at_mut_checked(len).unwrap_or_default();
            memory.read(segment.gpa, now)?;
            rest = later;
        }
        Ok(())
    }

    /// As [`Self::take`], as a value.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_obj<T: FromBytes + IntoBytes>(&mut self, memory: &GuestMemory) -> Result<T, RingError> {
        let mut value = T::new_zeroed();
        self.take(memory, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Fills the first bytes that the device writes, and takes them out of the chain. Returns how many there were room for.
    ///
    /// # Errors
    /// [`RingError::Memory`] when there is none.
    pub fn put(&mut self, memory: &GuestMemory, bytes: &[u8]) -> Result<usize, RingError> {
        let len = self.writable_len().min(bytes.len() as u64);
        let front = cut(&mut self.writable, len).unwrap_or_default();
        let mut rest = bytes;
        for segment in front {
            let (now, later) = rest.split_at_checked(index(segment.len.into())).unwrap_or_default();
            memory.write(segment.gpa, now)?;
            rest = later;
        }
        Ok(index(len))
    }

    /// Takes the first `len` bytes that the device writes out of the chain, as a chain of their own.
    ///
    /// # Errors
    /// [`RingError::Shape`], and nothing is taken, when there are fewer.
    pub fn split(&mut self, len: u64) -> Result<Self, RingError> {
        Ok(Self {
            head: self.head,
            readable: Vec::new(),
            writable: cut(&mut self.writable, len).ok_or(RingError::Shape)?,
        })
    }

    /// As [`Self::split`], for what the device reads.
    ///
    /// # Errors
    /// As [`Self::split`].
    pub fn split_readable(&mut self, len: u64) -> Result<Self, RingError> {
        Ok(Self {
            head: self.head,
            readable: cut(&mut self.readable, len).ok_or(RingError::Shape)?,
            writable: Vec::new(),
        })
    }

    /// Takes the last byte that the device writes out of the chain: where it is.
    pub fn take_last(&mut self) -> Option<u64> {
        let last = self.writable.last_mut()?;
        last.len = last.len.checked_sub(1)?;
        let at = last.gpa.checked_add(last.len.into())?;
        if last.len == 0 {
            self.writable.pop();
        }
        Some(at)
    }

    /// Bytes that the device reads.
    #[must_use]
    pub fn readable_len(&self) -> u64 {
        storage::guest_len(&self.readable)
    }

    /// Bytes that the device writes.
    #[must_use]
    pub fn writable_len(&self) -> u64 {
        storage::guest_len(&self.writable)
    }

    /// Whether a saved chain is one that a queue hands out.
    ///
    /// # Errors
    /// [`RestoreError::Invalid`] when it is not.
    pub fn check(&self) -> Result<(), RestoreError> {
        let fits = self.readable.len() + self.writable.len() <= CHAIN;
        let bytes = self.readable_len() + self.writable_len() <= u32::MAX.into();
        let full = self
            .readable
            .iter()
            .chain(&self.writable)
            .all(|segment| segment.len > 0);
        if fits && bytes && full {
            return Ok(());
        }
        Err(RestoreError::Invalid("a chain of buffers that cannot be".to_owned()))
    }
}

/// Takes the first `len` bytes out of `segments`. None, and nothing taken, when there are fewer.
fn cut(segments: &mut Vec<Segment>, len: u64) -> Option<Vec<Segment>> {
    if storage::guest_len(segments) < len {
        return None;
    }
    let (mut front, mut left) = (Vec::new(), len);
    let mut whole = 0;
    for segment in segments.iter_mut() {
        let now = u32::try_from(left.min(segment.len.into())).ok()?;
        if now > 0 {
            front.push(Segment {
                gpa: segment.gpa,
                len: now,
            });
        }
        left -= u64::from(now);
        if now < segment.len {
            segment.gpa = segment.gpa.wrapping_add(now.into());
            segment.len -= now;
            break;
        }
        whole += 1;
    }
    segments.drain(..whole);
    Some(front)
}

/// One queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queue {
    // Configuration
    max: u16,
    // State
    pub(crate) size: u16,
    pub(crate) ready: bool,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    /// The entry of the available ring that is looked at next, and that of the used ring that is filled next.
    next_available: u16,
    next_used: u16,
    /// Where the used ring stood when the driver was last interrupted, or could have been.
    told: u16,
}

impl Queue {
    pub(crate) fn new(max: u16) -> Self {
        Self {
            max,
            size: max,
            ready: false,
            descriptors: 0,
            available: 0,
            used: 0,
            next_available: 0,
            next_used: 0,
            told: 0,
        }
    }

    pub(crate) fn max(&self) -> u16 {
        self.max
    }

    /// The driver chooses how many entries there are: a power of two.
    pub(crate) fn set_size(&mut self, size: u32) {
        if let Ok(size) = u16::try_from(size)
            && size.is_power_of_two()
            && size <= self.max
            && !self.ready
        {
            self.size = size;
        }
    }

    /// The driver has said where everything is.
    pub(crate) fn enable(&mut self, memory: &GuestMemory) -> Result<(), RingError> {
        let entries = u64::from(self.size);
        // The rings end with the event indexes, whether they are used or not: legacy drivers leave room for them too.
        let areas = [
            (self.descriptors, 16, entries * DESCRIPTOR),
            (self.available, 2, ENTRIES + entries * 2 + 2),
            (self.used, 4, ENTRIES + entries * ELEMENT + 2),
        ];
        for (at, align, len) in areas {
            if at % align != 0 {
                return Err(RingError::Aligned);
            }
            if !memory.holds(at, len) {
                return Err(RingError::Memory);
            }
        }
        self.ready = true;
        Ok(())
    }

    /// Where everything is that begins at page `page` in the legacy interface.
    pub(crate) fn place_legacy(&mut self, page: u32) {
        let entries = u64::from(self.size);
        self.descriptors = u64::from(page) * LEGACY_ALIGN;
        self.available = self.descriptors + entries * DESCRIPTOR;
        self.used = (self.available + ENTRIES + entries * 2 + 2).next_multiple_of(LEGACY_ALIGN);
    }

    /// The next chain that the driver has made available. Where there is none, the driver is asked to tell of the next.
    pub(crate) fn pop(&mut self, memory: &GuestMemory, features: u64) -> Result<Option<Chain>, RingError> {
        if !self.ready {
            return Ok(None);
        }
        let mut ahead = self.ahead(memory)?;
        if ahead == 0 && features & feature::EVENT_IDX != 0 {
            let event = self.used + ENTRIES + u64::from(self.size) * ELEMENT;
            memory.store_u16(event, self.next_available)?;
            // The driver publishes first and looks at the event then; either it sees this one or it is seen here.
            fence(Ordering::SeqCst);
            ahead = self.ahead(memory)?;
        }
        if ahead == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_available % self.size);
        let head = memory.load_u16(self.available + ENTRIES + slot * 2)?;
        let chain = self.walk(memory, features, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Chains that wait.
    fn ahead(&self, memory: &GuestMemory) -> Result<u16, RingError> {
        let index = memory.load_u16(self.available + 2)?;
        let ahead = index.wrapping_sub(self.next_available);
        if ahead > self.size {
            return Err(RingError::Index);
        }
        Ok(ahead)
    }

    fn walk(&self, memory: &GuestMemory, features: u64, head: u16) -> Result<Chain, RingError> {
        let mut walk = Walk {
            memory,
            chain: Chain {
                head,
                readable: Vec::new(),
                writable: Vec::new(),
            },
            seen: 0,
            bytes: 0,
        };
        let mut number = head;
        loop {
            if number >= self.size {
                return Err(RingError::Descriptor);
            }
            let at = self.descriptors + u64::from(number) * DESCRIPTOR;
            let descriptor: Descriptor = memory.read_obj(at)?;
            if descriptor.flags & INDIRECT != 0 {
                // It is the last one: what follows is in the table (§2.7.5.3.1).
                if features & feature::INDIRECT_DESC == 0 || descriptor.flags & NEXT != 0 {
                    return Err(RingError::Indirect);
                }
                walk.table(&descriptor)?;
                return Ok(walk.chain);
            }
            walk.add(&descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(walk.chain);
            }
            number = descriptor.next;
        }
    }

    /// Gives chains back, each with the number of its bytes that were written. The driver sees all of them or none.
    pub(crate) fn push(&mut self, memory: &GuestMemory, chains: &[(u16, u32)]) -> Result<(), RingError> {
        if !self.ready || chains.is_empty() {
            return Ok(());
        }
        for (head, len) in chains {
            let slot = u64::from(self.next_used % self.size);
            let element = [u32::from(*head), *len];
            memory.write_obj(self.used + ENTRIES + slot * ELEMENT, &element)?;
            self.next_used = self.next_used.wrapping_add(1);
        }
        memory.store_u16(self.used + 2, self.next_used)?;
        Ok(())
    }

    /// Whether the driver is to be interrupted for what was given back since this was last asked (§2.7.7.2, §2.7.10).
    pub(crate) fn must_tell(&mut self, memory: &GuestMemory, features: u64) -> Result<bool, RingError> {
        let (old, new) = (self.told, self.next_used);
        if old == new || !self.ready {
            return Ok(false);
        }
        self.told = new;
        // The used index is published before the driver's wish is looked at.
        fence(Ordering::SeqCst);
        if features & feature::EVENT_IDX == 0 {
            return Ok(memory.load_u16(self.available)? & NO_INTERRUPT == 0);
        }
        let event = memory.load_u16(self.available + ENTRIES + u64::from(self.size) * 2)?;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// A saved queue takes the place of this one.
    pub(crate) fn restore(&mut self, saved: Self, memory: &GuestMemory) -> Result<(), RestoreError> {
        let invalid = || RestoreError::Invalid("a virtqueue that cannot be".to_owned());
        let sound = saved.max == self.max && saved.size.is_power_of_two() && saved.size <= saved.max;
        if !sound || saved.max > SIZE_MAX {
            return Err(invalid());
        }
        let ready = saved.ready;
        *self = Self { ready: false, ..saved };
        if ready {
            self.enable(memory).map_err(|_| invalid())?;
        }
        Ok(())
    }

    pub(crate) fn inspect(&self) -> device_model::Node {
        device_model::Node::tree()
            .with("ready", self.ready)
            .with("size", self.size)
            .with("descriptors", self.descriptors)
            .with("available", self.available)
            .with("used", self.used)
            .with("next_available", self.next_available)
            .with("next_used", self.next_used)
    }
}

/// A chain that is being followed.
struct Walk<'a> {
    memory: &'a GuestMemory,
    chain: Chain,
    seen: usize,
    bytes: u64,
}

impl Walk<'_> {
    fn add(&mut self, descriptor: &Descriptor) -> Result<(), RingError> {
        let Descriptor {
            address, len, flags, ..
        } = *descriptor;
        self.seen += 1;
        self.bytes += u64::from(len);
        // All of a chain is less than 2 to the power of 32 bytes (§2.7.5).
        if self.seen > CHAIN || self.bytes > u32::MAX.into() {
            return Err(RingError::Long);
        }
        if !self.memory.holds(address, len.into()) {
            return Err(RingError::Memory);
        }
        let writes = flags & WRITE != 0;
        if !writes && !self.chain.writable.is_empty() {
            return Err(RingError::Order);
        }
        let segments = if writes {
            &mut self.chain.writable
        } else {
            &mut self.chain.readable
        };
        if len > 0 {
            segments.push(Segment { gpa: address, len });
        }
        Ok(())
    }

    /// The descriptors of an indirect table.
    fn table(&mut self, table: &Descriptor) -> Result<(), RingError> {
        let len = u64::from(table.len);
        let entries = index(len / DESCRIPTOR);
        if len % DESCRIPTOR != 0 || entries == 0 {
            return Err(RingError::Indirect);
        }
        if entries > CHAIN {
            return Err(RingError::Long);
        }
        let mut bytes = vec![0; index(len)];
        self.memory.read(table.address, &mut bytes)?;
        let mut number = 0;
        loop {
            let at = number * index(DESCRIPTOR);
            let descriptor = bytes
                .get(at..)
                .and_then(|bytes| Descriptor::read_from_prefix(bytes).ok());
            let Some((descriptor, _)) = descriptor else {
                return Err(RingError::Descriptor);
            };
            if descriptor.flags & INDIRECT != 0 {
                return Err(RingError::Indirect);
            }
            self.add(&descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            number = usize::from(descriptor.next);
        }
    }
}

#[cfg(test)]
mod tests;
