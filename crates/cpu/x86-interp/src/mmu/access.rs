//! Reads and writes of guest memory: the inline fast path through the TLB, and the slow path for everything else: TLB
//! misses, page crossings, MMIO, pages that hold code, watchpoints.

use device_model::Width;
use guest_memory::CodePage;
use guest_memory::Kind;
use x86_isa::Exception;

use crate::cpu::Cpu;
use crate::insn::DInsn;
use crate::insn::R;
use crate::int::Int;
use crate::mmu::Access;
use crate::mmu::Tlb;
use crate::mmu::tlb::Fill;
use crate::mmu::tlb::info;
use crate::mmu::walk::Privilege;

/// Where an access that lies within one page goes.
enum Place {
    /// Host memory; writes must be noted when the page holds code.
    Memory {
        host: *mut u8,
        code: *const CodePage,
        rom: bool,
    },
    /// A device at a guest physical address.
    Mmio(u64),
}

impl Cpu {
    /// Reads the memory operand of an instruction.
    #[inline(always)]
    pub(crate) fn read_m<T: Int>(&mut self, d: &DInsn) -> R<T> {
        let lin = self.lin_read(d.seg, self.ea(d), T::BYTES)?;
        self.read_lin(d.seg, lin)
    }

    /// Writes the memory operand of an instruction.
    #[inline(always)]
    pub(crate) fn write_m<T: Int>(&mut self, d: &DInsn, value: T) -> R {
        let lin = self.lin_write(d.seg, self.ea(d), T::BYTES)?;
        self.write_lin(d.seg, lin, value)
    }

    /// Replaces the memory operand by what `f` makes of it; `f` runs once, after every fault is ruled out.
    #[inline(always)]
    pub(crate) fn modify_m<T: Int>(&mut self, d: &DInsn, f: impl FnMut(&mut Self, T) -> T) -> R {
        let lin = self.lin_write(d.seg, self.ea(d), T::BYTES)?;
        self.modify_lin(d.seg, lin, f)
    }

    /// As [`Self::modify_m`], atomically towards other vCPUs; `f` may run several times, the last run counts.
    #[inline(never)]
    pub(crate) fn modify_m_locked<T: Int>(&mut self, d: &DInsn, f: impl FnMut(&mut Self, T) -> T) -> R {
        let lin = self.lin_write(d.seg, self.ea(d), T::BYTES)?;
        self.modify_lin_locked(d.seg, lin, f)
    }

    /// Reads at offset `off` of segment `seg`.
    #[inline(always)]
    pub(crate) fn read_seg<T: Int>(&mut self, seg: usize, off: u64) -> R<T> {
        let lin = self.lin_read(seg as u8, off, T::BYTES)?;
        self.read_lin(seg as u8, lin)
    }

    /// Writes at offset `off` of segment `seg`.
    #[inline(always)]
    pub(crate) fn write_seg<T: Int>(&mut self, seg: usize, off: u64, value: T) -> R {
        let lin = self.lin_write(seg as u8, off, T::BYTES)?;
        self.write_lin(seg as u8, lin, value)
    }

    /// Reads at a linear address with the present privilege. `seg` only chooses between #GP and #SS.
    #[inline(always)]
    pub(crate) fn read_lin<T: Int>(&mut self, seg: u8, lin: u64) -> R<T> {
        let e = self.tlb.data(self.bank, lin);
        if lin.wrapping_sub(e.read) <= 4096 - T::BYTES {
            // SAFETY: the entry maps the whole page, and the access stays inside it.
            return Ok(unsafe { T::load_mem(lin.wrapping_add(e.addend) as *const u8) });
        }
        self.read_slow(seg, lin, T::BYTES, self.bank).map(T::from_u64)
    }

    /// Writes at a linear address with the present privilege.
    #[inline(always)]
    pub(crate) fn write_lin<T: Int>(&mut self, seg: u8, lin: u64, value: T) -> R {
        let e = self.tlb.data(self.bank, lin);
        if lin.wrapping_sub(e.write) <= 4096 - T::BYTES {
            // SAFETY: as for reading; the entry says that the page may be written without noting it.
            unsafe { T::store_mem(lin.wrapping_add(e.addend) as *mut u8, value) };
            return Ok(());
        }
        self.write_slow(seg, lin, value.u64(), T::BYTES, self.bank)
    }

    #[inline(always)]
    pub(crate) fn modify_lin<T: Int>(&mut self, seg: u8, lin: u64, mut f: impl FnMut(&mut Self, T) -> T) -> R {
        let e = self.tlb.data(self.bank, lin);
        if lin.wrapping_sub(e.write) <= 4096 - T::BYTES {
            let host = lin.wrapping_add(e.addend) as *mut u8;
            // SAFETY: as in `write_lin`.
            unsafe {
                let value = f(self, T::load_mem(host));
                T::store_mem(host, value);
            }
            return Ok(());
        }
        let old = self.read_for_write(seg, lin, T::BYTES)?;
        let new = f(self, T::from_u64(old));
        self.write_slow(seg, lin, new.u64(), T::BYTES, self.bank)
    }

    pub(crate) fn modify_lin_locked<T: Int>(&mut self, seg: u8, lin: u64, mut f: impl FnMut(&mut Self, T) -> T) -> R {
        if lin & 4095 <= 4096 - T::BYTES {
            let place = self.place(seg, lin, T::BYTES, Access::Write, self.bank)?;
            if let Place::Memory { host, code, rom: false } = place {
                loop {
                    // SAFETY: `place` found the bytes in guest memory, inside one page.
                    let old = unsafe { T::load_mem(host) };
                    let new = f(self, old);
                    // SAFETY: as above.
                    if unsafe { T::cas(host, old, new) } {
                        self.note_write(code, lin, T::BYTES);
                        return Ok(());
                    }
                }
            }
        }
        // Across pages, or on a device: one vCPU at a time; other vCPUs' plain accesses may slip between, as they may
        // between the bus cycles of a device.
        let shared = self.shared.clone();
        let _split = shared
            .split_lock
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = self.read_for_write(seg, lin, T::BYTES)?;
        let new = f(self, T::from_u64(old));
        self.write_slow(seg, lin, new.u64(), T::BYTES, self.bank)
    }

    /// Reads a system structure (descriptor, TSS, IDT): supervisor privilege whatever the CPL.
    pub(crate) fn read_sys<T: Int>(&mut self, lin: u64) -> R<T> {
        let lin = lin & self.system_mask();
        let e = self.tlb.data(Tlb::SUPERVISOR, lin);
        if lin.wrapping_sub(e.read) <= 4096 - T::BYTES {
            // SAFETY: as in `read_lin`.
            return Ok(unsafe { T::load_mem(lin.wrapping_add(e.addend) as *const u8) });
        }
        self.read_slow(0, lin, T::BYTES, Tlb::SUPERVISOR).map(T::from_u64)
    }

    /// Writes a system structure.
    pub(crate) fn write_sys<T: Int>(&mut self, lin: u64, value: T) -> R {
        let lin = lin & self.system_mask();
        self.write_slow(0, lin, value.u64(), T::BYTES, Tlb::SUPERVISOR)
    }

    /// Replaces a byte of a system structure atomically (accessed and busy bits).
    pub(crate) fn modify_sys_u8(&mut self, lin: u64, f: impl Fn(u8) -> u8) -> R {
        let lin = lin & self.system_mask();
        let bank = std::mem::replace(&mut self.bank, Tlb::SUPERVISOR);
        let result = self.modify_lin_locked::<u8>(0, lin, |_, old| f(old));
        self.bank = bank;
        result
    }

    fn system_mask(&self) -> u64 {
        if self.long_mode() { u64::MAX } else { 0xffff_ffff }
    }

    /// Checks that `len` bytes at `lin` can be written, page by page.
    pub(crate) fn probe_write(&mut self, seg: u8, lin: u64, len: u64) -> R {
        let mut at = lin;
        loop {
            self.place(seg, at, 1, Access::Write, self.bank)?;
            at = (at & !4095).wrapping_add(4096);
            if at.wrapping_sub(lin) >= len {
                return Ok(());
            }
        }
    }

    /// Reads `buf.len()` bytes at a linear address.
    pub(crate) fn read_block(&mut self, seg: u8, lin: u64, buf: &mut [u8]) -> R {
        let mut done = 0;
        while done < buf.len() {
            let at = lin.wrapping_add(done as u64) & self.lin_mask;
            let n = (buf.len() - done).min((4096 - (at & 4095)) as usize);
            match self.place(seg, at, n as u64, Access::Read, self.bank)? {
                Place::Memory { host, .. } => {
                    // SAFETY: `n` bytes at `host` are inside one page of guest memory.
                    unsafe { copy(host, buf[done..].as_mut_ptr(), n) };
                }
                Place::Mmio(gpa) => {
                    for (i, byte) in buf[done..done + n].iter_mut().enumerate() {
                        *byte = self.board().mmio_read(self.id, gpa + i as u64, Width::Byte) as u8;
                    }
                }
            }
            done += n;
        }
        Ok(())
    }

    /// Writes `data` at a linear address; nothing is written when any byte faults.
    pub(crate) fn write_block(&mut self, seg: u8, lin: u64, data: &[u8]) -> R {
        if data.is_empty() {
            return Ok(());
        }
        if lin & 4095 > 4096 - data.len().min(4096) as u64 {
            self.probe_write(seg, lin, data.len() as u64)?;
        }
        let mut done = 0;
        while done < data.len() {
            let at = lin.wrapping_add(done as u64) & self.lin_mask;
            let n = (data.len() - done).min((4096 - (at & 4095)) as usize);
            match self.place(seg, at, n as u64, Access::Write, self.bank)? {
                Place::Memory { rom: true, .. } => {}
                Place::Memory { host, code, rom: false } => {
                    // SAFETY: as in `read_block`.
                    unsafe { copy(data[done..].as_ptr(), host, n) };
                    self.note_write(code, at, n as u64);
                }
                Place::Mmio(gpa) => {
                    for (i, byte) in data[done..done + n].iter().enumerate() {
                        self.board()
                            .mmio_write(self.id, gpa + i as u64, Width::Byte, (*byte).into());
                    }
                }
            }
            done += n;
        }
        Ok(())
    }

    /// Host memory for a run of up to `len` bytes at `lin` within one page, for string instructions: `None` for devices
    /// and, when writing, pages that need care. The caller may use the returned number of bytes.
    pub(crate) fn host_run(&mut self, seg: u8, lin: u64, len: u64, access: Access) -> R<Option<(*mut u8, u64)>> {
        let n = len.min(4096 - (lin & 4095));
        Ok(match self.place(seg, lin, n, access, self.bank)? {
            Place::Memory { rom: true, .. } if access == Access::Write => None,
            Place::Memory { code, .. } if access == Access::Write && self.is_code(code) => None,
            Place::Memory { host, .. } => Some((host, n)),
            Place::Mmio(_) => None,
        })
    }

    #[cold]
    #[inline(never)]
    fn read_slow(&mut self, seg: u8, lin: u64, size: u64, bank: usize) -> R<u64> {
        self.read_parts(seg, lin, size, Access::Read, bank)
    }

    /// Reads with the checks of a write: the first half of read-modify-write.
    #[cold]
    #[inline(never)]
    fn read_for_write(&mut self, seg: u8, lin: u64, size: u64) -> R<u64> {
        self.read_parts(seg, lin, size, Access::Write, self.bank)
    }

    fn read_parts(&mut self, seg: u8, lin: u64, size: u64, access: Access, bank: usize) -> R<u64> {
        let first = size.min(4096 - (lin & 4095));
        let low = self.read_part(seg, lin, first, access, bank)?;
        if first == size {
            return Ok(low);
        }
        let next = lin.wrapping_add(first) & self.lin_mask;
        let high = self.read_part(seg, next, size - first, access, bank)?;
        Ok(low | high << (first * 8))
    }

    fn read_part(&mut self, seg: u8, lin: u64, n: u64, access: Access, bank: usize) -> R<u64> {
        Ok(match self.place(seg, lin, n, access, bank)? {
            // SAFETY: `n` bytes at `host` are inside one page of guest memory.
            Place::Memory { host, .. } => unsafe {
                match n {
                    1 => u8::load_mem(host).into(),
                    2 => u16::load_mem(host).into(),
                    4 => u32::load_mem(host).into(),
                    8 => u64::load_mem(host),
                    _ => (0..n as usize)
                        .map(|i| u64::from(u8::load_mem(host.add(i))) << (i * 8))
                        .sum(),
                }
            },
            Place::Mmio(gpa) => match Width::from_bytes(n) {
                Some(width) => self.board().mmio_read(self.id, gpa, width),
                None => (0..n)
                    .map(|i| self.board().mmio_read(self.id, gpa + i, Width::Byte) << (i * 8))
                    .sum(),
            },
        })
    }

    #[cold]
    #[inline(never)]
    fn write_slow(&mut self, seg: u8, lin: u64, value: u64, size: u64, bank: usize) -> R {
        let first = size.min(4096 - (lin & 4095));
        if first == size {
            return self.write_part(seg, lin, value, size, bank);
        }
        let next = lin.wrapping_add(first) & self.lin_mask;
        // Both pages must take the write before either gets it.
        self.place(seg, lin, first, Access::Write, bank)?;
        self.place(seg, next, size - first, Access::Write, bank)?;
        self.write_part(seg, lin, value, first, bank)?;
        self.write_part(seg, next, value >> (first * 8), size - first, bank)
    }

    fn write_part(&mut self, seg: u8, lin: u64, value: u64, n: u64, bank: usize) -> R {
        match self.place(seg, lin, n, Access::Write, bank)? {
            Place::Memory { rom: true, .. } => {}
            Place::Memory { host, code, rom: false } => {
                // SAFETY: `n` bytes at `host` are inside one page of guest memory.
                unsafe {
                    match n {
                        1 => u8::store_mem(host, value as u8),
                        2 => u16::store_mem(host, value as u16),
                        4 => u32::store_mem(host, value as u32),
                        8 => u64::store_mem(host, value),
                        _ => (0..n as usize).for_each(|i| u8::store_mem(host.add(i), (value >> (i * 8)) as u8)),
                    }
                }
                self.note_write(code, lin, n);
            }
            Place::Mmio(gpa) => {
                // The device may have raised an interrupt.
                self.end_block();
                match Width::from_bytes(n) {
                    Some(width) => self.board().mmio_write(self.id, gpa, width, value & width.ones()),
                    None => (0..n).for_each(|i| {
                        self.board()
                            .mmio_write(self.id, gpa + i, Width::Byte, value >> (i * 8) & 0xff);
                    }),
                }
            }
        }
        Ok(())
    }

    fn is_code(&self, code: *const CodePage) -> bool {
        // SAFETY: pointers to code pages come from guest memory, which outlives the vCPU.
        !code.is_null() && unsafe { &*code }.is_code()
    }

    /// Tells the code map of a write just made; ends the running block if held code was hit.
    fn note_write(&mut self, code: *const CodePage, lin: u64, len: u64) {
        if code.is_null() {
            return;
        }
        // SAFETY: as in `is_code`.
        let code = unsafe { &*code };
        if code.note_write(lin & 4095, (lin & 4095) + len - 1) {
            self.mem.code_overwritten(code);
            self.end_block();
        }
    }

    /// Finds where an access of `n` bytes inside one page goes, and fills the TLB on the way.
    fn place(&mut self, seg: u8, lin: u64, n: u64, access: Access, bank: usize) -> R<Place> {
        if self.is64_address() && !self.canonical(lin) {
            return self.segment_fault(seg as usize);
        }
        if self.dr[5] & 0xff != 0 {
            self.watch(lin, n, access);
        }
        let e = *self.tlb.data(bank, lin);
        let page = lin & !4095;
        let hit = match access {
            Access::Write => e.write == page,
            _ => e.read == page,
        };
        if hit {
            let host = lin.wrapping_add(e.addend) as *mut u8;
            // A page that may be written through the TLB holds no code and is not ROM.
            return Ok(Place::Memory {
                host,
                code: std::ptr::null(),
                rom: false,
            });
        }
        if access == Access::Write && e.read == page && e.info & info::NOTED_WRITE != 0 {
            let Some(found) = self.mem.page(e.info & !4095) else {
                return Ok(Place::Mmio(e.info & !4095 | lin & 4095));
            };
            if found.code.is_code() {
                let host = lin.wrapping_add(e.addend) as *mut u8;
                return Ok(Place::Memory {
                    host,
                    code: found.code,
                    rom: false,
                });
            }
        }
        self.place_by_walk(lin, access, bank)
    }

    fn place_by_walk(&mut self, lin: u64, access: Access, bank: usize) -> R<Place> {
        let walk = match self.walk(lin, access, Privilege::of_bank(bank)) {
            Ok(walk) => walk,
            Err(code) => return self.raise(Exception::page_fault(lin, code)),
        };
        let gpa = walk.gpa | lin & 4095;
        let mem = self.mem.clone();
        let Some(page) = mem.page(gpa) else {
            return Ok(Place::Mmio(gpa));
        };
        let rom = page.kind == Kind::Rom;
        let host = page.host.as_ptr();
        if !self.watched_page(lin) {
            let fill = Fill {
                page: lin & !4095,
                gpa: walk.gpa,
                host,
                read: walk.read,
                write: walk.write && !rom,
                noted: page.code.is_code(),
                global: walk.global,
                shift: walk.shift,
            };
            self.tlb.fill(bank, &fill);
        }
        // SAFETY: the offset stays inside the page.
        let host = unsafe { host.add((lin & 4095) as usize) };
        Ok(Place::Memory {
            host,
            code: page.code,
            rom,
        })
    }

    /// Looks the translation of an address up that may never be accessed. A processor may do so at any time, and set
    /// accessed bits, but no dirty ones (SDM vol. 3 §4.8, §4.10.2.3). False when there is none.
    pub(crate) fn fill_ahead(&mut self, lin: u64, bank: usize) -> bool {
        (!self.is64_address() || self.canonical(lin)) && self.place_by_walk(lin, Access::Read, bank).is_ok()
    }

    /// Linear addresses must be canonical (64-bit mode; system accesses in long mode).
    fn is64_address(&self) -> bool {
        self.is64() || self.long_mode()
    }

    /// Whether a data breakpoint lies in the page: then it stays out of the TLB.
    fn watched_page(&self, lin: u64) -> bool {
        self.dr[5] & 0xff != 0
            && (0..4).any(|i| self.watch_enabled(i) && (self.dr[i] ^ lin) & self.lin_mask & !4095 == 0)
    }

    /// Breakpoint `i` is enabled and watches data.
    fn watch_enabled(&self, i: usize) -> bool {
        self.dr[5] >> (i * 2) & 3 != 0 && self.dr[5] >> (16 + i * 4) & 1 != 0
    }

    /// Data breakpoints that an access hits are delivered as a trap after the instruction (SDM vol. 3 §17.2.4).
    fn watch(&mut self, lin: u64, n: u64, access: Access) {
        for i in 0..4 {
            if !self.watch_enabled(i) {
                continue;
            }
            let control = self.dr[5] >> (16 + i * 4) & 15;
            if control & 3 == 1 && access != Access::Write {
                continue;
            }
            let len = [1, 2, 8, 4][(control >> 2) as usize];
            let start = self.dr[i] & !(len - 1) & self.lin_mask;
            if lin < start.wrapping_add(len) && start < lin.wrapping_add(n) {
                self.boundary.event.debug_trap |= 1 << i;
                self.end_block();
            }
        }
    }
}

/// From so many bytes on the processor's own string instructions are the faster.
const BULK: usize = 128;

/// Copies guest memory, which may change under our hands.
///
/// # Safety
/// Both ranges must be valid for `len` bytes and must not overlap.
pub(crate) unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(not(miri))]
    if len >= BULK {
        // SAFETY: the caller vouches for both ranges; DF is clear in Rust code.
        unsafe {
            std::arch::asm!(
                "rep movsb",
                inout("rsi") from => _,
                inout("rdi") to => _,
                inout("rcx") len => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    let words = len / 8;
    // SAFETY: the indices stay below `len`.
    unsafe {
        for i in 0..words {
            u64::store_mem(to.add(i * 8), u64::load_mem(from.add(i * 8)));
        }
        for i in words * 8..len {
            u8::store_mem(to.add(i), u8::load_mem(from.add(i)));
        }
    }
}

/// Stores `len` bytes of a pattern of eight, of which `to` gets the first; `len` is a multiple of eight.
///
/// # Safety
/// The range must be valid.
pub(crate) unsafe fn fill(to: *mut u8, pattern: u64, len: usize) {
    #[cfg(not(miri))]
    if len >= BULK {
        // SAFETY: the caller vouches for the range; DF is clear in Rust code.
        unsafe {
            std::arch::asm!(
                "rep stosq",
                in("rax") pattern,
                inout("rdi") to => _,
                inout("rcx") len / 8 => _,
                options(nostack, preserves_flags)
            );
        }
        return;
    }
    // SAFETY: as above.
    unsafe {
        for i in (0..len).step_by(8) {
            u64::store_mem(to.add(i), pattern);
        }
    }
}

impl Cpu {
    /// Compares 16 aligned bytes with `expected` and writes `new` when they are equal; returns what was there.
    pub(crate) fn cmpxchg16_lin(&mut self, seg: u8, lin: u64, expected: u128, new: u128) -> R<u128> {
        match self.place(seg, lin, 16, Access::Write, self.bank)? {
            Place::Memory { host, code, rom: false } => {
                // SAFETY: 16 aligned bytes of guest memory inside one page.
                let found = unsafe { cmpxchg16(host, expected, new) };
                self.note_write(code, lin, 16);
                Ok(found)
            }
            _ => {
                let mut bytes = [0; 16];
                self.read_block(seg, lin, &mut bytes)?;
                let found = u128::from_le_bytes(bytes);
                let value = if found == expected { new } else { found };
                self.write_block(seg, lin, &value.to_le_bytes())?;
                Ok(found)
            }
        }
    }
}

/// Atomic compare and exchange of 16 bytes; returns what was there.
///
/// # Safety
/// `at` must be valid and aligned to 16 bytes.
unsafe fn cmpxchg16(at: *mut u8, expected: u128, new: u128) -> u128 {
    #[cfg(not(miri))]
    {
        let (low, high): (u64, u64);
        // SAFETY: the caller vouches for `at`; RBX is saved around its use, since the compiler keeps it to itself.
        unsafe {
            std::arch::asm!(
                "xchg {new_low}, rbx",
                "lock cmpxchg16b xmmword ptr [{at}]",
                "mov rbx, {new_low}",
                at = in(reg) at,
                new_low = inout(reg) new as u64 => _,
                in("rcx") (new >> 64) as u64,
                inout("rax") expected as u64 => low,
                inout("rdx") (expected >> 64) as u64 => high,
                options(nostack),
            );
        }
        u128::from(high) << 64 | u128::from(low)
    }
    #[cfg(miri)]
    // SAFETY: one thread under Miri.
    unsafe {
        let found = at.cast::<u128>().read();
        if found == expected {
            at.cast::<u128>().write(new);
        }
        found
    }
}
