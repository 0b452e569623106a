//! The page walk: 32-bit, PAE, 4-level and 5-level paging, with permissions and accessed and dirty bits.
//!
//! Spec: SDM vol. 3 §4.

use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use cpu_model::Feature;
use x86_isa::cr0;
use x86_isa::cr4;
use x86_isa::efer;
use x86_isa::pte;

use crate::cpu::Cpu;
use crate::mmu::Tlb;

/// Kind of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Exec,
}

/// On whose behalf an access is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Privilege {
    pub(crate) user: bool,
    /// SMAP does not apply.
    pub(crate) ac: bool,
}

impl Privilege {
    /// Of an access through a data TLB bank.
    pub(crate) fn of_bank(bank: usize) -> Self {
        Self {
            user: bank == Tlb::USER,
            ac: bank == Tlb::SUPERVISOR_AC,
        }
    }
}

/// log2 of the bytes of a small page.
pub(crate) const SMALL: u8 = 12;

/// A translation of one small page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk {
    /// Guest physical page.
    pub(crate) gpa: u64,
    /// The same access privilege may read.
    pub(crate) read: bool,
    /// The same access privilege may write, and the dirty bit is set.
    pub(crate) write: bool,
    pub(crate) global: bool,
    /// log2 of the bytes of the page that it is from.
    pub(crate) shift: u8,
}

/// Error code of #PF.
mod pf {
    pub(super) const P: u32 = 1;
    pub(super) const W: u32 = 2;
    pub(super) const U: u32 = 4;
    pub(super) const RSVD: u32 = 8;
    pub(super) const I: u32 = 16;
    pub(super) const PK: u32 = 32;
}

/// Physical address width; CPUID leaf 80000008h says the same.
pub(crate) const PHYS_BITS: u32 = 40;
const PHYS_MASK: u64 = (1 << PHYS_BITS) - 1;
/// Address bits of an entry beyond the physical address width.
const PHYS_RESERVED: u64 = ((1 << 52) - 1) & !PHYS_MASK;

/// A page-table entry in use: where it is and what it held.
#[derive(Clone, Copy)]
struct Used {
    host: Option<NonNull<u8>>,
    value: u64,
    wide: bool,
}

impl Used {
    const NONE: Self = Self {
        host: None,
        value: 0,
        wide: true,
    };

    /// Sets `bits` if they are not set and the entry has not changed; false when it has.
    fn set(&self, bits: u64) -> bool {
        let Some(host) = self.host else { return true };
        if self.value & bits == bits {
            return true;
        }
        let new = self.value | bits;
        // SAFETY: the pointer was made by `read_entry` from a mapped page of guest memory, at an aligned offset.
        unsafe {
            if self.wide {
                let entry = AtomicU64::from_ptr(host.as_ptr().cast());
                entry
                    .compare_exchange(self.value, new, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            } else {
                let entry = AtomicU32::from_ptr(host.as_ptr().cast());
                entry
                    .compare_exchange(self.value as u32, new as u32, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            }
        }
    }
}

/// What the levels of a walk said together.
struct Leaf {
    value: u64,
    gpa: u64,
    user: bool,
    writable: bool,
    nx: bool,
    /// log2 of the bytes of the page.
    shift: u8,
}

impl Cpu {
    /// Translates the page of `lin`.
    ///
    /// # Errors
    /// The error code of the #PF.
    pub(crate) fn walk(&mut self, lin: u64, access: Access, who: Privilege) -> Result<Walk, u32> {
        if self.cr0 & cr0::PG == 0 {
            let gpa = lin & 0xffff_f000;
            return Ok(Walk {
                gpa,
                read: true,
                write: true,
                global: false,
                shift: SMALL,
            });
        }
        // Another vCPU may change an entry between our reading it and our setting its bits: then it counts anew.
        loop {
            let mut used = [Used::NONE; 5];
            let leaf = self
                .levels(lin, &mut used)
                .map_err(|code| code | self.access_code(access, who))?;
            self.check(&leaf, access, who)
                .map_err(|code| code | self.access_code(access, who))?;
            let dirty = if access == Access::Write {
                pte::A | pte::D
            } else {
                pte::A
            };
            let last = used.iter().rposition(|u| u.host.is_some()).unwrap_or(0);
            if used
                .iter()
                .enumerate()
                .all(|(i, u)| u.set(if i == last { dirty } else { pte::A }))
            {
                return Ok(self.finish(&leaf, access, who));
            }
        }
    }

    fn finish(&self, leaf: &Leaf, access: Access, who: Privilege) -> Walk {
        let allowed = |kind| self.check(leaf, kind, who).is_ok();
        Walk {
            gpa: leaf.gpa,
            read: allowed(Access::Read),
            write: (access == Access::Write || leaf.value & pte::D != 0) && allowed(Access::Write),
            global: leaf.value & pte::G != 0 && self.cr4 & cr4::PGE != 0,
            shift: leaf.shift,
        }
    }

    /// The parts of the error code that do not depend on the page tables.
    fn access_code(&self, access: Access, who: Privilege) -> u32 {
        let mut code = if who.user { pf::U } else { 0 };
        if access == Access::Write {
            code |= pf::W;
        }
        let nx = self.msrs.efer & efer::NXE != 0 && self.cr4 & cr4::PAE != 0;
        if access == Access::Exec && (nx || self.cr4 & cr4::SMEP != 0) {
            code |= pf::I;
        }
        code
    }

    fn levels(&self, lin: u64, used: &mut [Used; 5]) -> Result<Leaf, u32> {
        if self.cr4 & cr4::PAE == 0 {
            return self.levels_32bit(lin, used);
        }
        let nx_reserved = if self.msrs.efer & efer::NXE == 0 { pte::NX } else { 0 };
        let mut leaf = Leaf {
            value: 0,
            gpa: 0,
            user: true,
            writable: true,
            nx: false,
            shift: SMALL,
        };
        let (mut table, top, reserved) = if self.long_mode() {
            let top = if self.cr4 & cr4::LA57 != 0 { 4 } else { 3 };
            (self.cr3 & PHYS_MASK & !0xfff, top, PHYS_RESERVED | nx_reserved)
        } else {
            let pdpte = self.pdptr[(lin >> 30 & 3) as usize];
            if pdpte & pte::P == 0 {
                return Err(0);
            }
            (pdpte & PHYS_MASK & !0xfff, 1, PHYS_RESERVED | nx_reserved | 0x7ff << 52)
        };
        for level in (0..=top).rev() {
            let shift = 12 + 9 * level;
            let entry = self.read_entry(table + (lin >> shift & 511) * 8, true);
            used[top - level] = entry;
            let value = entry.value;
            if value & pte::P == 0 {
                return Err(0);
            }
            let large = level > 0 && value & pte::PS != 0;
            let page = if large { (1u64 << shift) - 1 } else { 0xfff };
            let no_large = level > 2 || level == 2 && !self.has(Feature::Pdpe1gb);
            // Address bits below a large page's size are reserved, but for the PAT bit.
            let low = if large { page & !0x1fff } else { 0 };
            if value & (reserved | low) != 0 || large && no_large {
                return Err(pf::P | pf::RSVD);
            }
            leaf.user &= value & pte::US != 0;
            leaf.writable &= value & pte::RW != 0;
            leaf.nx |= value & pte::NX != 0;
            if level == 0 || large {
                leaf.value = value;
                leaf.shift = shift as u8;
                leaf.gpa = (value & PHYS_MASK & !0xfff & !page | lin & page) & !0xfff;
                break;
            }
            table = value & PHYS_MASK & !0xfff;
        }
        Ok(leaf)
    }

    fn levels_32bit(&self, lin: u64, used: &mut [Used; 5]) -> Result<Leaf, u32> {
        let pde = self.read_entry((self.cr3 & 0xffff_f000) + (lin >> 22 & 1023) * 4, false);
        used[0] = pde;
        let value = pde.value;
        if value & pte::P == 0 {
            return Err(0);
        }
        let (mut user, mut writable) = (value & pte::US != 0, value & pte::RW != 0);
        if value & pte::PS != 0 && self.cr4 & cr4::PSE != 0 {
            if value & 1 << 21 != 0 {
                return Err(pf::P | pf::RSVD);
            }
            // PSE-36: bits 20-13 are address bits 39-32.
            let gpa = value & 0xffc0_0000 | (value >> 13 & 0xff) << 32 | lin & 0x3f_f000;
            return Ok(Leaf {
                value,
                gpa,
                user,
                writable,
                nx: false,
                shift: 22,
            });
        }
        let entry = self.read_entry((value & 0xffff_f000) + (lin >> 12 & 1023) * 4, false);
        used[1] = entry;
        let value = entry.value;
        if value & pte::P == 0 {
            return Err(0);
        }
        user &= value & pte::US != 0;
        writable &= value & pte::RW != 0;
        Ok(Leaf {
            value,
            gpa: value & 0xffff_f000,
            user,
            writable,
            nx: false,
            shift: SMALL,
        })
    }

    fn read_entry(&self, gpa: u64, wide: bool) -> Used {
        let Some(page) = self.mem.page(gpa) else {
            // Page tables outside memory read as an unclaimed bus does.
            return Used {
                host: None,
                value: if wide { u64::MAX } else { 0xffff_ffff },
                wide,
            };
        };
        // SAFETY: the offset stays inside the page, and the address is aligned to the entry's size.
        unsafe {
            let host = page.host.add((gpa & 0xfff) as usize);
            let value = if wide {
                AtomicU64::from_ptr(host.as_ptr().cast()).load(Ordering::Acquire)
            } else {
                AtomicU32::from_ptr(host.as_ptr().cast()).load(Ordering::Acquire).into()
            };
            let ram = page.kind == guest_memory::Kind::Ram;
            Used {
                host: ram.then_some(host),
                value,
                wide,
            }
        }
    }

    /// Whether a present translation allows an access; else the error code without the access bits.
    fn check(&self, leaf: &Leaf, access: Access, who: Privilege) -> Result<(), u32> {
        let denied = Err(pf::P);
        let write_protect = self.cr0 & cr0::WP != 0;
        if who.user && !leaf.user {
            return denied;
        }
        if access == Access::Exec {
            let smep = !who.user && leaf.user && self.cr4 & cr4::SMEP != 0;
            return if leaf.nx || smep { denied } else { Ok(()) };
        }
        if !who.user && leaf.user && self.cr4 & cr4::SMAP != 0 && !who.ac {
            return denied;
        }
        let write = access == Access::Write;
        if write && !leaf.writable && (who.user || write_protect) {
            return denied;
        }
        if self.key_denies(leaf, write, who.user || write_protect) {
            return Err(pf::P | pf::PK);
        }
        Ok(())
    }

    /// Protection keys (SDM vol. 3 §4.6.2): user pages by PKRU, supervisor pages by IA32_PKRS.
    fn key_denies(&self, leaf: &Leaf, write: bool, write_checked: bool) -> bool {
        let (enable, rights) = match leaf.user {
            true => (cr4::PKE, self.pkru),
            false => (cr4::PKS, self.msrs.pkrs as u32),
        };
        if self.cr4 & enable == 0 || !self.long_mode() {
            return false;
        }
        let bits = rights >> ((leaf.value >> pte::PKEY_SHIFT & 15) * 2);
        bits & 1 != 0 || write && write_checked && bits & 2 != 0
    }
}
