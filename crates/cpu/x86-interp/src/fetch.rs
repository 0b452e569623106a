//! Finding the block at RIP: look-up, code translation, decoding.

use std::ptr::null;
use std::sync::Arc;

use guest_memory::CodePage;
use iced_x86::Decoder;
use iced_x86::DecoderError;
use iced_x86::DecoderOptions;
use iced_x86::Instruction;
use x86_isa::Exception;

use crate::cache::Block;
use crate::cache::MAX_BLOCK;
use crate::cache::Run;
use crate::cache::key;
use crate::cpu::CS;
use crate::cpu::Cpu;
use crate::decode::decode;
use crate::decode::ends_block;
use crate::insn::DInsn;
use crate::insn::R;
use crate::mmu::Access;
use crate::mmu::ExecEntry;
use crate::mmu::Fill;
use crate::mmu::Privilege;
use crate::vcpu::InterpVcpu;
use crate::vcpu::serve;

/// Longest instruction.
const MAX_LEN: usize = 15;

/// Bytes looked at for one block.
const MAX_BYTES: usize = MAX_BLOCK * 8;

/// A code page with no memory behind it: blocks from device memory are never kept.
static NO_CODE: CodePage = CodePage::new();
const NO_CODE_HELD: (*const CodePage, u32) = (&raw const NO_CODE, 0);

impl InterpVcpu {
    /// The block at CS:RIP.
    ///
    /// # Errors
    /// The fetch faulted.
    #[inline(always)]
    pub(crate) fn find_block(&mut self) -> R<Run> {
        let cpu = &self.cpu;
        let rip = cpu.rip();
        if !cpu.is64() {
            return self.find_block_legacy();
        }
        let context = self.context(rip);
        if let Some(block) = self.cache.lookup(rip, context) {
            return Ok(block);
        }
        self.find_block_slow(rip, context)
    }

    /// Tells code translations apart: generation, privilege, code size.
    #[inline(always)]
    fn context(&self, lin: u64) -> u64 {
        let cpu = &self.cpu;
        let generation = cpu.tlb.code_gen[(lin >> 63) as usize];
        u64::from(generation) << 8 | u64::from(cpu.bits) | u64::from(cpu.cpl == 3)
    }

    /// The block at CS:RIP, for one execution.
    pub(crate) fn find_passing_block(&mut self) -> R<Run> {
        if !self.cpu.is64() {
            return self.find_block();
        }
        let rip = self.cpu.rip();
        if let Some(block) = self.cache.lookup(rip, self.context(rip)) {
            return Ok(block);
        }
        let block = self.decode_at(rip, None)?;
        Ok(self.cache.keep_scratch(block))
    }

    fn find_block_legacy(&mut self) -> R<Run> {
        let cpu = &mut self.cpu;
        let limit = u64::from(cpu.segs[CS].limit);
        if cpu.rip() > limit {
            return cpu.gp(0);
        }
        let lin = cpu.ea_base[CS].wrapping_add(cpu.rip()) & 0xffff_ffff;
        let context = self.context(lin);
        let run = match self.cache.lookup(lin, context) {
            Some(run) => run,
            None => self.find_block_slow(lin, context)?,
        };
        if self.cpu.rip() + u64::from(run.bytes) - 1 > limit {
            return self.block_at_limit(lin, limit - self.cpu.rip() + 1);
        }
        Ok(run)
    }

    /// A block that is cut before the code segment's limit; #GP when not even one instruction fits.
    #[cold]
    fn block_at_limit(&mut self, lin: u64, room: u64) -> R<Run> {
        let block = self.decode_at(lin, Some(room))?;
        if block.bytes() > room {
            return self.cpu.gp(0);
        }
        Ok(self.cache.keep_scratch(block))
    }

    #[cold]
    #[inline(never)]
    fn find_block_slow(&mut self, lin: u64, context: u64) -> R<Run> {
        let entry = self.cpu.exec_entry(lin)?;
        if entry.host.is_null() {
            let block = self.decode_at(lin, None)?;
            return Ok(self.cache.keep_scratch(block));
        }
        let key = key(entry.gpa | lin & 4095, self.cpu.bits);
        if let Some(block) = self.cache.find(key) {
            let (run, second) = (block.run(), block.crosses().then_some(block.gpa2));
            if second.is_none_or(|gpa| self.next_page_is(lin, gpa)) {
                self.cache.remember(lin, context, key);
                return Ok(run);
            }
        }
        let block = self.decode_at(lin, None)?;
        let run = block.run();
        self.cache.insert(key, block);
        self.cache.remember(lin, context, key);
        Ok(run)
    }

    /// A block that crosses into another page fits only where that page is the one it was decoded from.
    fn next_page_is(&mut self, lin: u64, gpa: u64) -> bool {
        let next = (lin & !4095).wrapping_add(4096) & self.cpu.lin_mask;
        self.cpu.exec_entry(next).is_ok_and(|e| e.gpa == gpa)
    }

    /// Decodes the block at `lin`, at most `room` bytes of it.
    fn decode_at(&mut self, lin: u64, room: Option<u64>) -> R<Block> {
        let entry = self.cpu.exec_entry(lin)?;
        let mut bytes = [0u8; MAX_BYTES + MAX_LEN];
        let n = ((4096 - (lin & 4095)) as usize).min(MAX_BYTES);
        if entry.host.is_null() {
            self.cpu.fetch_bytes(&entry, lin, &mut bytes[..n]);
            let insns = self.decode_run(&bytes[..n.min(MAX_LEN)], 1, None);
            return if insns.is_empty() {
                self.cpu.gp(0)
            } else {
                Ok(Block::new(insns, NO_CODE_HELD, None))
            };
        }
        // The bytes are read again once the code map watches them: another vCPU may write meanwhile.
        loop {
            self.cpu.fetch_bytes(&entry, lin, &mut bytes[..n]);
            let insns = self.decode_run(&bytes[..n], MAX_BLOCK, room);
            let len: usize = insns.iter().map(|d| usize::from(d.len)).sum();
            if len == 0 {
                return self.decode_crossing(lin, &entry, n);
            }
            let version = self.hold_code(&entry, lin & 4095, (lin & 4095) + len as u64 - 1);
            let mut again = [0u8; MAX_BYTES];
            self.cpu.fetch_bytes(&entry, lin, &mut again[..len]);
            if again[..len] == bytes[..len] {
                return Ok(Block::new(insns, (entry.code, version), None));
            }
        }
    }

    /// Decodes the one instruction that begins in the last `n` bytes of a page and goes on in the next.
    fn decode_crossing(&mut self, lin: u64, entry: &ExecEntry, n: usize) -> R<Block> {
        let mut bytes = [0u8; 2 * MAX_LEN];
        let next = (lin & !4095).wrapping_add(4096) & self.cpu.lin_mask;
        let entry2 = self.cpu.exec_entry(next)?;
        let first = (entry.code, self.hold_code(entry, lin & 4095, 4095));
        let second = if entry2.host.is_null() {
            (NO_CODE_HELD.0, NO_CODE_HELD.1, entry2.gpa)
        } else {
            (entry2.code, self.hold_code(&entry2, 0, MAX_LEN as u64 - 1), entry2.gpa)
        };
        self.cpu.fetch_bytes(entry, lin, &mut bytes[..n]);
        self.cpu.fetch_bytes(&entry2, next, &mut bytes[n..n + MAX_LEN]);
        let insns = self.decode_run(&bytes[..n + MAX_LEN], 1, None);
        if insns.is_empty() {
            self.cpu.gp(0)
        } else {
            Ok(Block::new(insns, first, Some(second)))
        }
    }

    /// Decodes instructions from `bytes` until a block ends. Empty when the bytes end inside the first one.
    fn decode_run(&mut self, bytes: &[u8], max: usize, room: Option<u64>) -> Vec<DInsn> {
        let cpu = &self.cpu;
        let mut decoder = Decoder::with_ip(cpu.bits.into(), bytes, cpu.rip(), DecoderOptions::NONE);
        let mut insns = Vec::with_capacity(8);
        let mut ins = Instruction::default();
        while insns.len() < max && decoder.can_decode() {
            let start = decoder.position();
            decoder.decode_out(&mut ins);
            if decoder.last_error() == DecoderError::NoMoreBytes {
                // Fifteen bytes without an end are no instruction at all; fewer go on beyond the buffer.
                if bytes.len() - start >= MAX_LEN {
                    insns.push(crate::decode::too_long(cpu.bits));
                }
                break;
            }
            let d = decode(&ins, cpu.bits, &cpu.policy);
            let end = decoder.position() as u64;
            if room.is_some_and(|room| end > room) && !insns.is_empty() {
                break;
            }
            insns.push(d);
            if ends_block(&ins) {
                break;
            }
        }
        insns
    }

    /// Tells the code map, and the other vCPUs, that code of this page is held. Returns the page's version.
    pub(crate) fn hold_code(&mut self, entry: &ExecEntry, first: u64, last: u64) -> u32 {
        // SAFETY: code pages belong to guest memory, which outlives the vCPU.
        let code = unsafe { &*entry.code };
        let version = code.version();
        if code.mark(first, last) {
            self.cpu.tlb.protect_code(entry.gpa);
            let (peer, tlb) = (&self.cpu.peer, &mut self.cpu.tlb);
            let shared = Arc::clone(&self.cpu.shared);
            shared.drop_writes_of_others(peer, || serve(peer, tlb));
        }
        version
    }
}

impl Cpu {
    /// The code translation of the page that holds `lin`.
    pub(crate) fn exec_entry(&mut self, lin: u64) -> R<ExecEntry> {
        let user = self.cpl == 3;
        self.tlb.note_code(lin);
        if let Some(entry) = self.tlb.exec(user, lin) {
            return Ok(*entry);
        }
        if self.is64() && !self.canonical(lin) {
            return self.gp(0);
        }
        let walk = match self.walk(lin, Access::Exec, Privilege { user, ac: false }) {
            Ok(walk) => walk,
            Err(code) => return self.raise(Exception::page_fault(lin, code)),
        };
        let mem = Arc::clone(&self.mem);
        let (host, code) = match mem.page(walk.gpa) {
            Some(page) => (page.host.as_ptr(), &raw const *page.code),
            None => (std::ptr::null_mut(), null()),
        };
        let fill = Fill {
            page: lin & !4095,
            gpa: walk.gpa,
            host,
            read: true,
            write: false,
            noted: false,
            global: walk.global,
            shift: walk.shift,
        };
        self.tlb.fill_exec(user, &fill, code);
        Ok(*self.tlb.exec(user, lin).expect("just filled"))
    }

    /// Reads code bytes of one page.
    pub(crate) fn fetch_bytes(&mut self, entry: &ExecEntry, lin: u64, buf: &mut [u8]) {
        let offset = lin & 4095;
        if entry.host.is_null() {
            // One instruction at a time is decoded from device memory: more than its bytes would be read in vain.
            let n = buf.len().min(MAX_LEN);
            for (i, byte) in buf[..n].iter_mut().enumerate() {
                let gpa = entry.gpa + offset + i as u64;
                *byte = self.board().mmio_read(self.id, gpa, device_model::Width::Byte) as u8;
            }
            return;
        }
        // SAFETY: the range lies inside the page.
        unsafe { crate::mmu::copy(entry.host.add(offset as usize), buf.as_mut_ptr(), buf.len()) };
    }
}
