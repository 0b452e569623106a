//! Address line 20, as the keyboard controller and port 92h gate it.
//!
//! There is one gate, and who wrote last is right: on real boards the two sources are joined in more ways than software
//! counts on. After a reset the line is open, as firmware leaves it.
//!
//! Spec: IBM PC/AT Technical Reference 6183355, section 1 ("Keyboard Controller", output port bit 1); Intel 316972 (ICH9)
//! §13.7.3 (PORT92).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;

use guest_memory::GuestMemory;

/// The gate. Safe under any device's lock.
pub struct A20Gate {
    memory: Option<Arc<GuestMemory>>,
    /// Where there is no memory.
    open: AtomicBool,
}

impl fmt::Debug for A20Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("A20Gate").field("open", &self.is_open()).finish()
    }
}

impl A20Gate {
    /// The gate between processors and `memory`.
    pub fn new(memory: Arc<GuestMemory>) -> Arc<Self> {
        Arc::new(Self {
            memory: Some(memory),
            open: AtomicBool::new(true),
        })
    }

    /// A gate that gates nothing.
    pub fn detached() -> Arc<Self> {
        Arc::new(Self {
            memory: None,
            open: AtomicBool::new(true),
        })
    }

    /// Opens or closes the line.
    pub fn set(&self, open: bool) {
        match &self.memory {
            Some(memory) => memory.set_a20(open),
            None => self.open.store(open, Ordering::Relaxed),
        }
    }

    /// Whether the line is open.
    pub fn is_open(&self) -> bool {
        match &self.memory {
            Some(memory) => memory.a20(),
            None => self.open.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use guest_memory::Kind;
    use guest_memory::MemoryRegion;

    use super::*;

    #[test]
    fn gate_changes_what_memory_shows() {
        let mut memory = GuestMemory::new();
        let ram = MemoryRegion::new("ram", Kind::Ram, 2 << 20).unwrap();
        memory.add(0, Arc::new(ram)).unwrap();
        memory.write(0, b"low").unwrap();
        let memory = Arc::new(memory);
        let gate = A20Gate::new(Arc::clone(&memory));
        assert!(gate.is_open());
        gate.set(false);
        assert_eq!(memory.read_obj::<[u8; 3]>(1 << 20).unwrap(), *b"low");
        assert!(!gate.is_open() && A20Gate::detached().is_open());
    }
}
