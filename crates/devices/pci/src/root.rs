//! The root of the PCI buses: finds functions by address, carries configuration accesses to them, and keeps ports and
//! memory mapped to where they decode.
//!
//! Configuration mechanism #1 (ports CF8h and CFCh) and memory-mapped configuration space (ECAM) end here. This is no
//! device: an access locks the function it is for, and nothing else. Functions are on bus 0; there are no bridges yet.
//!
//! Spec: PCI Local Bus 3.0 §3.2.2.3 (configuration mechanism); PCI Express Base 3.0 §7.2.2 (ECAM).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use device_model::Bus;
use device_model::Device;
use device_model::Mapping;
use device_model::SharedDevice;
use device_model::Space;
use device_model::Width;
use device_model::pci::PciWindow;
use guest_memory::GuestMemory;
use guest_memory::MemoryRegion;
use guest_memory::PAGE_MASK;
use guest_memory::Piece;

use crate::Bdf;

/// Port of CONFIG_ADDRESS, reached by double words only.
pub const ADDRESS_PORT: u16 = 0xCF8;
/// First of the four ports of CONFIG_DATA.
pub const DATA_PORT: u16 = 0xCFC;
/// CONFIG_ADDRESS: configuration accesses, not I/O.
const ENABLE: u32 = 1 << 31;
/// Bits that are kept.
const ADDRESS_MASK: u32 = ENABLE | 0x00ff_fffc;

/// CONFIG_ADDRESS, which the host bridge saves.
#[derive(Debug, Default)]
pub struct ConfigLatch(AtomicU32);

impl ConfigLatch {
    /// The register's value.
    pub fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets the register.
    pub fn set(&self, value: u32) {
        self.0.store(value & ADDRESS_MASK, Ordering::Relaxed);
    }
}

/// What functions have asked for: where registers and memory appear.
#[derive(Default)]
struct Wanted {
    registers: BTreeMap<Bdf, Vec<(Space, Mapping)>>,
}

/// The root.
pub struct Root {
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    memory: Arc<GuestMemory>,
    latch: Arc<ConfigLatch>,
    functions: RwLock<BTreeMap<Bdf, SharedDevice>>,
    wanted: Mutex<Wanted>,
}

impl Root {
    /// A root without functions, that maps them to these spaces.
    pub fn new(pio: Arc<Bus>, mmio: Arc<Bus>, memory: Arc<GuestMemory>) -> Arc<Self> {
        Arc::new(Self {
            pio,
            mmio,
            memory,
            latch: Arc::default(),
            functions: RwLock::default(),
            wanted: Mutex::default(),
        })
    }

    /// CONFIG_ADDRESS.
    pub fn latch(&self) -> &Arc<ConfigLatch> {
        &self.latch
    }

    /// Puts a device, which must be a PCI function, at `bdf`; what was there goes.
    pub fn add(&self, bdf: Bdf, device: SharedDevice) {
        self.remove(bdf);
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.insert(bdf, device);
        drop(functions);
        self.look_again(bdf);
    }

    /// Takes the function at `bdf` away, and returns it.
    pub fn remove(&self, bdf: Bdf) -> Option<SharedDevice> {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        let gone = functions.remove(&bdf)?;
        drop(functions);
        self.place(bdf, Vec::new(), Vec::new());
        Some(gone)
    }

    /// The functions by address.
    pub fn functions(&self) -> Vec<(Bdf, SharedDevice)> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().map(|(bdf, device)| (*bdf, device.clone())).collect()
    }

    /// The function at `bdf`.
    pub fn function(&self, bdf: Bdf) -> Option<SharedDevice> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.get(&bdf).cloned()
    }

    /// Looks again where every function decodes: after resets and restores.
    pub fn look_everywhere(&self) {
        for (bdf, _) in self.functions() {
            self.look_again(bdf);
        }
    }

    fn look_again(&self, bdf: Bdf) {
        if let Some(function) = self.function(bdf) {
            let mut device = function.lock();
            self.follow(bdf, &function, &mut *device);
        }
    }

    /// Reads configuration space; all ones where there is no function.
    pub fn read(&self, bdf: Bdf, at: u16, width: Width) -> u32 {
        let ones = u32::try_from(width.ones()).unwrap_or(u32::MAX);
        let Some(function) = self.function(bdf) else {
            return ones;
        };
        let mut device = function.lock();
        device.as_pci().map_or(ones, |pci| pci.config_read(at, width) & ones)
    }

    /// Writes configuration space, and maps the function to where it decodes now.
    pub fn write(&self, bdf: Bdf, at: u16, width: Width, value: u32) {
        let Some(function) = self.function(bdf) else {
            return;
        };
        function.with(|device| {
            if let Some(pci) = device.as_pci() {
                pci.config_write(at, width, value);
            }
            self.follow(bdf, &function, device);
        });
    }

    /// Reads `width` at `port`, one of [`DATA_PORT`] and the three after it, or a double word at [`ADDRESS_PORT`]. `None`
    /// where the access is not for configuration space.
    pub fn read_port(&self, port: u16, width: Width) -> Option<u32> {
        if port == ADDRESS_PORT && width == Width::Dword {
            return Some(self.latch.get());
        }
        let (bdf, at) = self.selected(port, width)?;
        Some(match bdf {
            Some(bdf) => self.read(bdf, at, width),
            None => u32::try_from(width.ones()).unwrap_or(u32::MAX),
        })
    }

    /// Writes as [`Self::read_port`] reads. False where the access is not for configuration space.
    pub fn write_port(&self, port: u16, width: Width, value: u32) -> bool {
        if port == ADDRESS_PORT && width == Width::Dword {
            self.latch.set(value);
            return true;
        }
        match self.selected(port, width) {
            Some((Some(bdf), at)) => self.write(bdf, at, width, value),
            Some((None, _)) => {}
            None => return false,
        }
        true
    }

    /// What an access to CONFIG_DATA is for; no function while configuration accesses are off.
    fn selected(&self, port: u16, width: Width) -> Option<(Option<Bdf>, u16)> {
        let inside = port.checked_sub(DATA_PORT)?;
        if u64::from(inside) + width.bytes() > 4 {
            return None;
        }
        let [register, low, high, _] = self.latch.get().to_le_bytes();
        let bdf = Bdf::from_bits(u16::from_le_bytes([low, high]));
        let on = self.latch.get() & ENABLE != 0;
        Some((on.then_some(bdf), u16::from(register) + inside))
    }

    /// Reads memory-mapped configuration space at `offset` of its window.
    pub fn read_ecam(&self, offset: u64, width: Width) -> u64 {
        match ecam(offset) {
            Some((bdf, at)) if width < Width::Qword => u64::from(self.read(bdf, at, width)),
            Some((bdf, at)) => {
                let low = u64::from(self.read(bdf, at, Width::Dword));
                low | u64::from(self.read(bdf, at.saturating_add(4), Width::Dword)) << 32
            }
            None => width.ones(),
        }
    }

    /// Writes memory-mapped configuration space at `offset` of its window.
    pub fn write_ecam(&self, offset: u64, width: Width, value: u64) {
        let Some((bdf, at)) = ecam(offset) else {
            return;
        };
        let [a, b, c, d, high @ ..] = value.to_le_bytes();
        let low = u32::from_le_bytes([a, b, c, d]);
        self.write(bdf, at, width.min(Width::Dword), low);
        if width == Width::Qword {
            self.write(bdf, at.saturating_add(4), Width::Dword, u32::from_le_bytes(high));
        }
    }

    /// Maps a function, which is locked, to where it decodes.
    fn follow(&self, bdf: Bdf, function: &SharedDevice, device: &mut dyn Device) {
        let regions = device.regions().to_vec();
        let Some(pci) = device.as_pci() else {
            return;
        };
        let (mut registers, mut pieces) = (Vec::new(), Vec::new());
        for window in pci.windows() {
            if let Some(region) = pci.memory(window.region) {
                pieces.extend(piece(&window, region));
            } else if let Some(region) = regions.get(window.region) {
                let mut region = *region;
                region.len = region.len.min(window.len);
                let mapping = Mapping {
                    base: window.base,
                    region,
                    index: window.region,
                    device: Arc::clone(function),
                    moving: true,
                };
                registers.push((window.space, mapping));
            }
        }
        self.place(bdf, registers, pieces);
    }

    fn place(&self, bdf: Bdf, registers: Vec<(Space, Mapping)>, pieces: Vec<Piece>) {
        let mut wanted = self.lock_wanted();
        let same = |old: &Vec<(Space, Mapping)>| {
            let key = |(space, m): &(Space, Mapping)| (*space, m.base, m.region, m.index);
            old.iter().map(key).eq(registers.iter().map(key))
        };
        let old = wanted.registers.get(&bdf);
        if !old.map_or(registers.is_empty(), same) {
            tracing::debug!(%bdf, windows = ?registers.iter().map(|(_, m)| m.base).collect::<Vec<_>>(), "mapped");
            wanted.registers.insert(bdf, registers);
            let all = |space: Space| -> Vec<Mapping> {
                let of_space = wanted.registers.values().flatten().filter(|(s, _)| *s == space);
                of_space.map(|(_, mapping)| mapping.clone()).collect()
            };
            self.pio.set_moving(&all(Space::Pio));
            self.mmio.set_moving(&all(Space::Mmio));
        }
        self.memory.remap(&bdf.to_string(), pieces);
    }

    fn lock_wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A window onto memory; none where it is not made of whole pages.
fn piece(window: &PciWindow, region: Arc<MemoryRegion>) -> Option<Piece> {
    let len = window.len.min(region.len());
    let kind = region.kind();
    let sound = (window.base | len) & PAGE_MASK == 0 && window.space == Space::Mmio;
    sound.then_some(Piece {
        gpa: window.base,
        len,
        region,
        offset: 0,
        kind,
    })
}

/// The function and register at `offset` of memory-mapped configuration space.
fn ecam(offset: u64) -> Option<(Bdf, u16)> {
    let bdf = u16::try_from(offset >> 12).ok()?;
    let at = u16::try_from(offset & 0xfff).ok()?;
    Some((Bdf::from_bits(bdf), at))
}

#[cfg(test)]
mod tests;
