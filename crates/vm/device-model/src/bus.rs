//! The bus: address ranges to device regions. Look-ups take no lock: the table is an immutable snapshot.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use arc_swap::ArcSwap;

use crate::At;
use crate::Region;
use crate::SharedDevice;
use crate::Width;

/// A region of a device at an address.
#[derive(Clone)]
pub struct Mapping {
    /// First address.
    pub base: u64,
    /// What the device says of the region.
    pub region: Region,
    /// Index of the region within the device.
    pub index: usize,
    /// The device.
    pub device: SharedDevice,
    /// The guest may move it: see [`Bus::set_moving`].
    pub moving: bool,
}

impl Mapping {
    fn last(&self) -> u64 {
        self.base.saturating_add(self.region.len - 1)
    }
}

/// Two regions want the same addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{new} at {base:#x}-{last:#x} overlaps {old}")]
pub struct BusConflict {
    /// Device and region that came later.
    pub new: String,
    /// First address it wants.
    pub base: u64,
    /// Last address it wants.
    pub last: u64,
    /// Device and region that were there.
    pub old: String,
}

/// One address space's dispatch table.
#[derive(Default)]
pub struct Bus {
    table: ArcSwap<Vec<Mapping>>,
    writer: Mutex<()>,
}

impl Bus {
    /// An empty space.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps a region.
    ///
    /// # Errors
    /// [`BusConflict`] where the range is taken; nothing is then changed.
    pub fn map(&self, mapping: Mapping) -> Result<(), BusConflict> {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = Vec::clone(&self.table.load());
        let at = table.partition_point(|m| m.base < mapping.base);
        let before = at
            .checked_sub(1)
            .and_then(|i| table.get(i))
            .filter(|m| m.last() >= mapping.base);
        let after = table.get(at).filter(|m| m.base <= mapping.last());
        if let Some(old) = before.or(after) {
            let name = |m: &Mapping| format!("{}/{}", m.device.name(), m.region.name);
            return Err(BusConflict {
                new: name(&mapping),
                base: mapping.base,
                last: mapping.last(),
                old: name(old),
            });
        }
        table.insert(at, mapping);
        self.table.store(Arc::new(table));
        Ok(())
    }

    /// Replaces all mappings that the guest may move, at once. One that overlaps a fixed mapping, or one before it in the
    /// list, is left out: which of them answers is not defined.
    pub fn set_moving(&self, mappings: &[Mapping]) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let fixed = self.table.load();
        let mut table: Vec<Mapping> = fixed.iter().filter(|m| !m.moving).cloned().collect();
        for mapping in mappings.iter().filter(|m| m.region.len > 0) {
            let free = |m: &Mapping| m.last() < mapping.base || mapping.last() < m.base;
            if table.iter().all(free) {
                table.push(Mapping {
                    moving: true,
                    ..mapping.clone()
                });
            }
        }
        table.sort_by_key(|m| m.base);
        self.table.store(Arc::new(table));
    }

    /// Takes away every region of the named device.
    pub fn unmap(&self, device: &str) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self
            .table
            .load()
            .iter()
            .filter(|m| m.device.name() != device)
            .cloned()
            .collect();
        self.table.store(Arc::new(table));
    }

    /// The mappings, by address.
    #[must_use]
    pub fn mappings(&self) -> Arc<Vec<Mapping>> {
        self.table.load_full()
    }

    /// Reads `width` at `addr`; addresses that nobody claims read as all ones. The region at the first address claims
    /// the whole access: a double word to the PCI address port CF8h is no byte to the reset register CF9h.
    #[must_use]
    pub fn read(&self, addr: u64, width: Width) -> u64 {
        let table = self.table.load();
        let Some(m) = find(&table, addr) else {
            return width.ones();
        };
        let offset = addr - m.base;
        if offset + width.bytes() > m.region.len || width > m.region.widths.max {
            return self.read_split(addr, width);
        }
        let min = m.region.widths.min;
        if width < min {
            let inside = offset % min.bytes();
            let at = At {
                region: m.index,
                offset: offset - inside,
            };
            return m.device.read(at, min) >> (inside * 8) & width.ones();
        }
        m.device.read(
            At {
                region: m.index,
                offset,
            },
            width,
        )
    }

    /// Writes `width` at `addr`; addresses that nobody claims swallow it.
    pub fn write(&self, addr: u64, width: Width, value: u64) {
        let table = self.table.load();
        let Some(m) = find(&table, addr) else {
            return;
        };
        let offset = addr - m.base;
        if offset + width.bytes() > m.region.len || width > m.region.widths.max {
            return self.write_split(addr, width, value);
        }
        let min = m.region.widths.min;
        if width < min {
            let inside = offset % min.bytes();
            let at = At {
                region: m.index,
                offset: offset - inside,
            };
            let mask = width.ones() << (inside * 8);
            let merged = m.device.read(at, min) & !mask | value << (inside * 8) & mask;
            return m.device.write(at, min, merged);
        }
        m.device.write(
            At {
                region: m.index,
                offset,
            },
            width,
            value,
        );
    }

    fn read_split(&self, addr: u64, width: Width) -> u64 {
        let Some(half) = Width::from_bytes(width.bytes() / 2) else {
            return width.ones();
        };
        let low = self.read(addr, half);
        let high = self.read(addr.wrapping_add(half.bytes()), half);
        low | high << half.bits()
    }

    fn write_split(&self, addr: u64, width: Width, value: u64) {
        let Some(half) = Width::from_bytes(width.bytes() / 2) else {
            return;
        };
        self.write(addr, half, value & half.ones());
        self.write(addr.wrapping_add(half.bytes()), half, value >> half.bits());
    }
}

fn find(table: &[Mapping], addr: u64) -> Option<&Mapping> {
    let at = table.partition_point(|m| m.base <= addr);
    table.get(at.checked_sub(1)?).filter(|m| addr <= m.last())
}
