//! The root of the PCI buses: finds functions by address, carries configuration accesses to them, and keeps ports and
//! memory mapped to where they decode.
//!
//! Configuration mechanism #1 (ports CF8h and CFCh) and memory-mapped configuration space (ECAM) end here. This is no
//! device: an access locks the function it is for, and nothing else.
//!
//! Buses have two numbers. A *wire* is what the board has: wire 0 is the root's, the others are behind bridges, and
//! functions are kept by wire, device and function. The number that guests give to the bus of a wire is a register of the
//! bridge; configuration accesses are translated on their way, and a function decodes only what all bridges above it pass on.
//!
//! DEVIATION: bus mastering from behind a bridge is passed on whatever the bridge's command register says.
//!
//! Spec: PCI Local Bus 3.0 §3.2.2.3 (configuration mechanism); PCI Express Base 3.0 §7.2.2 (ECAM); PCI-to-PCI Bridge 1.2
//! §3.1 (configuration), §4 (addresses), §11.1 (secondary reset).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::RwLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use device_model::Bus;
use device_model::Device;
use device_model::Mapping;
use device_model::Reset;
use device_model::SharedDevice;
use device_model::Space;
use device_model::Width;
use device_model::pci::Forwarding;
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

/// Where memory-mapped configuration space is, which the host bridge says. Read at every access to memory-mapped registers,
/// hence no lock.
#[derive(Debug, Default)]
pub struct EcamWindow {
    /// The base; in the low bits, which it leaves free, the number of MiB. Zero while it is off.
    word: AtomicU64,
}

impl EcamWindow {
    const MIB: u64 = 1 << 20;
    const COUNT: u64 = 0xffff;

    /// Puts it at `base`, a multiple of 1 MiB, with `len` bytes, one MiB for each bus. Nowhere without bytes.
    pub fn set(&self, base: u64, len: u64) {
        let word = match len / Self::MIB {
            0 => 0,
            count => base & !Self::COUNT | count.min(Self::COUNT),
        };
        self.word.store(word, Ordering::Relaxed);
    }

    /// First address and bytes; none while it is off.
    #[must_use]
    pub fn get(&self) -> Option<(u64, u64)> {
        let word = self.word.load(Ordering::Relaxed);
        (word != 0).then_some((word & !Self::COUNT, (word & Self::COUNT) * Self::MIB))
    }

    /// Where in the window `gpa` is.
    #[must_use]
    pub fn offset(&self, gpa: u64) -> Option<u64> {
        let (base, len) = self.get()?;
        gpa.checked_sub(base).filter(|offset| *offset < len)
    }
}

/// What a function has asked for: where registers and memory appear.
#[derive(Default)]
struct Want {
    registers: Vec<(Space, Mapping)>,
    pieces: Vec<Piece>,
}

/// A bridge: where it is, and what it passes on.
struct Bridge {
    at: Bdf,
    forwarding: Forwarding,
}

#[derive(Default)]
struct Wanted {
    functions: BTreeMap<Bdf, Want>,
    /// By the wire behind it.
    bridges: BTreeMap<u8, Bridge>,
}

impl Wanted {
    /// The wire whose bus has the number `bus`.
    fn wire(&self, bus: u8) -> Option<u8> {
        let mut here = 0;
        // No path is longer than there are bridges.
        for _ in 0..self.bridges.len() {
            let leads = |(_, bridge): &(&u8, &Bridge)| bridge.at.bus() == here && bridge.forwarding.leads_to(bus);
            let (wire, bridge) = self.bridges.iter().find(leads)?;
            if bridge.forwarding.secondary == bus {
                return Some(*wire);
            }
            here = *wire;
        }
        None
    }

    /// Whether all bridges above the function at `bdf` pass `window` on.
    fn passes(&self, bdf: Bdf, window: &PciWindow) -> bool {
        let mut wire = bdf.bus();
        for _ in 0..=self.bridges.len() {
            if wire == 0 {
                return true;
            }
            match self.bridges.get(&wire) {
                Some(bridge) if bridge.forwarding.passes(window) => wire = bridge.at.bus(),
                _ => return false,
            }
        }
        false
    }

    /// The registers of one space that are reached.
    fn registers(&self, wanted: Space) -> Vec<Mapping> {
        let mut out = Vec::new();
        for (bdf, want) in &self.functions {
            for (space, mapping) in want.registers.iter().filter(|(space, _)| *space == wanted) {
                let window = PciWindow {
                    region: mapping.index,
                    space: *space,
                    base: mapping.base,
                    len: mapping.region.len,
                };
                if self.passes(*bdf, &window) {
                    out.push(mapping.clone());
                }
            }
        }
        out
    }

    /// The memory of the function at `bdf` that is reached.
    fn pieces(&self, bdf: Bdf) -> Vec<Piece> {
        let window = |piece: &Piece| PciWindow {
            region: 0,
            space: Space::Mmio,
            base: piece.gpa,
            len: piece.len,
        };
        let all = self.functions.get(&bdf).into_iter().flat_map(|want| &want.pieces);
        all.filter(|piece| self.passes(bdf, &window(piece))).cloned().collect()
    }
}

/// The root.
pub struct Root {
    pio: Arc<Bus>,
    mmio: Arc<Bus>,
    memory: Arc<GuestMemory>,
    latch: Arc<ConfigLatch>,
    ecam: Arc<EcamWindow>,
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
            ecam: Arc::default(),
            functions: RwLock::default(),
            wanted: Mutex::default(),
        })
    }

    /// CONFIG_ADDRESS.
    pub fn latch(&self) -> &Arc<ConfigLatch> {
        &self.latch
    }

    /// Where memory-mapped configuration space is.
    pub fn ecam(&self) -> &Arc<EcamWindow> {
        &self.ecam
    }

    /// Says that the function at `at` is the bridge above `wire`, before it is added. Wires are numbered from one.
    pub fn add_wire(&self, wire: u8, at: Bdf) {
        let forwarding = Forwarding::default();
        self.lock_wanted().bridges.insert(wire, Bridge { at, forwarding });
    }

    /// The address by wire of what the guest calls `bdf`.
    fn find(&self, bdf: Bdf) -> Option<SharedDevice> {
        self.function(self.translate(bdf)?)
    }

    fn translate(&self, bdf: Bdf) -> Option<Bdf> {
        match bdf.bus() {
            0 => Some(bdf),
            bus => {
                let wire = self.lock_wanted().wire(bus)?;
                Some(Bdf::new(wire, bdf.device(), bdf.function()))
            }
        }
    }

    /// Puts a device, which must be a PCI function, at `bdf`, whose bus is a wire; what was there goes.
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
        self.place(bdf, Want::default(), None);
        Some(gone)
    }

    /// The functions by wire, device and function.
    pub fn functions(&self) -> Vec<(Bdf, SharedDevice)> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().map(|(bdf, device)| (*bdf, device.clone())).collect()
    }

    /// The function at `bdf`, whose bus is a wire.
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

    /// Looks again where the function at `bdf` decodes and what it passes on: after a change that no guest made.
    pub fn look_again(&self, bdf: Bdf) {
        if let Some(function) = self.function(bdf) {
            let mut device = function.lock();
            self.follow(bdf, &function, &mut *device);
        }
    }

    /// Reads configuration space; all ones where there is no function. The bus has the number that the guest gave it.
    pub fn read(&self, bdf: Bdf, at: u16, width: Width) -> u32 {
        let ones = u32::try_from(width.ones()).unwrap_or(u32::MAX);
        let Some(function) = self.find(bdf) else {
            return ones;
        };
        let mut device = function.lock();
        device.as_pci().map_or(ones, |pci| pci.config_read(at, width) & ones)
    }

    /// Writes configuration space, and maps the function to where it decodes now.
    pub fn write(&self, bdf: Bdf, at: u16, width: Width, value: u32) {
        let Some(bdf) = self.translate(bdf) else {
            return;
        };
        let Some(function) = self.function(bdf) else {
            return;
        };
        let falls_into_reset = function.with(|device| {
            if let Some(pci) = device.as_pci() {
                pci.config_write(at, width, value);
            }
            self.follow(bdf, &function, device)
        });
        if falls_into_reset {
            self.reset_behind(bdf);
        }
    }

    /// Resets what is behind the bridge at `bdf`.
    fn reset_behind(&self, bdf: Bdf) {
        let wanted = self.lock_wanted();
        let wire = wanted.bridges.iter().find(|(_, bridge)| bridge.at == bdf);
        let wire = wire.map(|(wire, _)| *wire);
        drop(wanted);
        let behind = self.functions().into_iter().filter(|(at, _)| Some(at.bus()) == wire);
        for (at, function) in behind.collect::<Vec<_>>() {
            function.with(|device| {
                device.reset(Reset::Warm);
                self.follow(at, &function, device);
            });
            // The board lays wires from the root outwards, so this ends.
            self.reset_behind(at);
        }
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

    /// Maps a function, which is locked, to where it decodes. True for a bridge that has just put the bus behind it into reset.
    fn follow(&self, bdf: Bdf, function: &SharedDevice, device: &mut dyn Device) -> bool {
        let regions = device.regions().to_vec();
        let Some(pci) = device.as_pci() else {
            return false;
        };
        let mut want = Want::default();
        for window in pci.windows() {
            if let Some(region) = pci.memory(window.region) {
                want.pieces.extend(piece(&window, region));
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
                want.registers.push((window.space, mapping));
            }
        }
        self.place(bdf, want, pci.forwarding())
    }

    /// Takes note of what a function wants, and of what it passes on if it is a bridge, and shows what is reached now.
    fn place(&self, bdf: Bdf, want: Want, forwarding: Option<Forwarding>) -> bool {
        let mut wanted = self.lock_wanted();
        let key = |(space, m): &(Space, Mapping)| (*space, m.base, m.region, m.index);
        let same = |old: &Want| old.registers.iter().map(key).eq(want.registers.iter().map(key));
        let old = wanted.functions.get(&bdf);
        let moved = !old.map_or(want.registers.is_empty(), same);
        if moved {
            tracing::debug!(%bdf, windows = ?want.registers.iter().map(|(_, m)| m.base).collect::<Vec<_>>(), "mapped");
        }
        wanted.functions.insert(bdf, want);
        let new = forwarding.unwrap_or_default();
        let bridge = wanted.bridges.values_mut().find(|bridge| bridge.at == bdf);
        let old = bridge.map_or(new, |bridge| std::mem::replace(&mut bridge.forwarding, new));
        if old != new {
            tracing::debug!(%bdf, ?new, "passes on");
            let behind = wanted.functions.keys().filter(|at| at.bus() != 0);
            for at in behind {
                self.memory.remap(&at.to_string(), wanted.pieces(*at));
            }
        }
        if moved || old != new {
            self.pio.set_moving(&wanted.registers(Space::Pio));
            self.mmio.set_moving(&wanted.registers(Space::Mmio));
        }
        self.memory.remap(&bdf.to_string(), wanted.pieces(bdf));
        new.reset && !old.reset
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
