//! From guest code to host code, a block at a time.
//!
//! ```text
//!  host register                     holds
//!  rax rcx rdx rbx rbp rsi rdi r12-r15   the guest's register of that name
//!  rsp                               the guest's stack pointer, as a number: nothing here pushes
//!  r8 (STK)                          host address minus guest address of the stack's page
//!  r9 r10 r11 (T2 T0 T1)             temporaries; the guest's r8 to r11 are in memory
//!  flags, vector and x87 registers   the guest's
//! ```
//!
//! A block is a run of instructions on one page that is entered at its start and left at its jumps. Conditional jumps
//! that are not taken go on inside it. All guest registers are in their homes at every instruction boundary, so that any
//! instruction can be given to the interpreter instead.

mod cache;
mod classify;
mod encode;
mod flags;
mod flow;
mod group;
mod hot;
mod memory;
mod segmented;
mod stack;
mod string;
mod system;

use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::Encoder;
use iced_x86::Instruction;
use iced_x86::InstructionInfoFactory;
use x86_interp::InterpVcpu;
use x86_interp::seam::Mode;
use x86_interp::seam::Reach;

use crate::asm::Asm;
use crate::asm::Fix;
use crate::block::Entries;
use crate::block::Exit;
use crate::block::GROUPS;
use crate::block::Group;
use crate::block::Holdings;
use crate::block::Hot;
use crate::block::Insn;
use crate::block::Span;
use crate::thunk::Why;
use cache::Cache;
use classify::Class;
pub(crate) use hot::GROUPS as HOT_GROUPS;
use hot::Loop;

/// Instructions of a block at most.
pub(crate) const MAX_INSNS: usize = 200;

/// Mode bits beside those of the processor.
pub(crate) const EXACT_STACK: u32 = 1 << 31;
/// The block is left at its end for good: it is neither linked nor goes on through the jump cache.
pub(crate) const SINGLE: u32 = 1 << 30;

/// The block holds at one virtual address only, which its code has in it: code of a kernel, which is where it is for good.
pub(crate) const FIXED: u32 = 1 << 29;

/// Of 16-bit code and code with segments that are not flat: the block is on a page that the code segment does not hold
/// whole, or jumps may go beyond its limit. The interpreter does its jumps.
pub(crate) const EDGE: u32 = 1 << 28;

/// Where the kinds of the segments are in the key: two bits for each.
const REACH: u32 = 14;
const CODE16: u32 = 1 << 26;
const STACK16: u32 = 1 << 27;

/// Whether blocks of `key` are of 16-bit code, or of code with segments that are not flat.
pub(crate) fn segmented(key: u32) -> bool {
    key >> REACH & 0xfff != 0
}

/// What tells translations of the same bytes apart. `None` when blocks cannot be translated in this mode.
pub(crate) fn mode_key(mode: &Mode) -> Option<u32> {
    if mode.align_checks {
        return None;
    }
    let bit = |on: bool, n: u32| u32::from(on) << n;
    let segments = if mode.bits == 64 || mode.bits == 32 && mode.flat && mode.stack32 {
        0
    } else {
        // Code without a stack that can be written is rare.
        if matches!(mode.reach[2], Reach::None | Reach::ReadOnly) {
            return None;
        }
        let reach = (0..6).fold(0, |all, n| all | (mode.reach[n] as u32) << (REACH + 2 * n as u32));
        let code16 = if mode.bits == 16 { CODE16 } else { 0 };
        reach | code16 | if mode.stack32 { 0 } else { STACK16 }
    };
    let flat32 = mode.bits == 32 && segments == 0;
    Some(
        segments
            | u32::from(mode.cpl)
            | u32::from(mode.bank) << 2
            | bit(mode.no_x87, 4)
            | bit(mode.no_mmx, 5)
            | bit(mode.no_sse, 6)
            | bit(mode.no_avx, 7)
            | bit(mode.bits == 32, 8)
            | bit(flat32 && !mode.fs_plain, 9)
            | bit(flat32 && !mode.gs_plain, 10)
            | bit(mode.fs_gs_base, 11)
            | bit(mode.no_tsc, 12)
            | bit(mode.pkru, 13),
    )
}

/// A guest instruction on its way.
pub(crate) struct Item {
    pub(crate) ins: Instruction,
    pub(crate) class: Class,
    pub(crate) offset: u16,
    /// Flags wanted before it.
    pub(crate) wanted: u32,
    /// Its stack accesses are covered by a check before it.
    pub(crate) on_stack: bool,
    /// It works on the vector registers or MXCSR.
    pub(crate) vector: bool,
    /// The check that begins here.
    pub(crate) check: Option<Span>,
    /// The group of its memory operand.
    pub(crate) group: Option<u8>,
}

/// Where RAX is while AX holds the flags.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parked {
    /// At home: the flags are nobody's.
    Not,
    In(crate::asm::Reg),
    InMemory,
}

/// Code that lies beside the way of normal execution.
enum Cold {
    /// Hands an instruction over.
    Slow {
        fixes: Vec<Fix>,
        why: Why,
        index: usize,
        parked: Parked,
        unsaved: Holdings,
        held: Holdings,
        group: Option<u8>,
        /// The place behind the check.
        behind: usize,
    },
    /// Leaves through an exit.
    Exit { exit: usize },
    /// Goes to another page.
    Far { fix: Fix, offset: i64 },
}

/// A block that is translated but has no place yet.
pub(crate) struct Draft {
    pub(crate) code: Vec<u8>,
    /// Where the part of it begins that lies apart, and the displacements before it that lead there.
    pub(crate) split: usize,
    pub(crate) across: Vec<usize>,
    /// Displacements in the part apart that lead back.
    pub(crate) back: Vec<usize>,
    pub(crate) entries: Entries,
    pub(crate) insns: Vec<Insn>,
    pub(crate) spans: Vec<(u8, Span)>,
    pub(crate) groups: Vec<Group>,
    pub(crate) exits: Vec<Exit>,
    pub(crate) hot: Option<Hot>,
    /// It was looked at whether it is a hot loop.
    pub(crate) tried: bool,
    /// The displacement in the page map of the second page, of an instruction that crosses pages.
    pub(crate) next_page: Option<usize>,
    /// Displacements that lead to thunks.
    pub(crate) thunks: Vec<(usize, Why)>,
    /// Places of records, and the number that each holds.
    pub(crate) records: Vec<(usize, u64)>,
}

/// Translates one block.
pub(crate) struct Translator {
    pub(crate) asm: Asm,
    encoder: Encoder,
    info: InstructionInfoFactory,
    cpl: u8,
    bank: u8,
    single: bool,
    /// 64-bit code.
    wide: bool,
    /// Code size.
    bits: u8,
    /// 16-bit code, or 32-bit code with segments that are not flat.
    segmented: bool,
    reach: [Reach; 6],
    /// Stack pointer of 16 bits.
    stack16: bool,
    /// The page does not lie wholly in the code segment.
    edge: bool,
    /// The virtual address of the page, if it is known for good.
    fixed: Option<u64>,
    items: Vec<Item>,
    cold: Vec<Cold>,
    exits: Vec<Exit>,
    /// By instruction: where its code is, what R8 to R11 hold before it, and what of that is nowhere else when it faults.
    hosts: Vec<(u32, Holdings, Holdings)>,
    cache: Cache,
    thunks: Vec<(Fix, Why)>,
    /// Displacements that lead to the record of an instruction or an exit.
    records: Vec<(Fix, u64)>,
    hot: Option<Hot>,
    tried: bool,
    /// The one instruction goes on in the next page.
    crossing: bool,
    next_page: Option<usize>,
    groups: Vec<Group>,
    /// By group: what was looked up is in the vCPU's memory.
    stored: [bool; GROUPS],
    /// The instruction being translated.
    at: usize,
    /// What the guest's RSP is ahead of the host's: a row of pushes or pops moves it once.
    moved: i32,
}

/// Decodes a block from `bytes`, which lie at `at` and end with the page.
pub(crate) fn scan(vcpu: &InterpVcpu, mode: &Mode, bytes: &[u8], at: u64, key: u32) -> Vec<Item> {
    scan_some(vcpu, mode, bytes, at, key, MAX_INSNS)
}

/// The one instruction at `at`.
pub(crate) fn scan_one(vcpu: &InterpVcpu, mode: &Mode, bytes: &[u8], at: u64, key: u32) -> Vec<Item> {
    scan_some(vcpu, mode, bytes, at, key, 1)
}

fn scan_some(vcpu: &InterpVcpu, mode: &Mode, bytes: &[u8], at: u64, key: u32, max: usize) -> Vec<Item> {
    let mut decoder = Decoder::with_ip(mode.bits.into(), bytes, at, DecoderOptions::NONE);
    let mut items = Vec::with_capacity(16);
    let mut ins = Instruction::default();
    while items.len() < max && decoder.can_decode() {
        let offset = (decoder.ip() & 0xfff) as u16;
        decoder.decode_out(&mut ins);
        if decoder.last_error() == iced_x86::DecoderError::NoMoreBytes {
            break;
        }
        let invalid = ins.is_invalid() || !classify::is_everywhere(&ins) && vcpu.decode(&ins).is_invalid();
        classify::generalize(&mut ins);
        let class = if invalid {
            Class::Last
        } else if renamed_by_model(vcpu, &ins) {
            Class::Interpret
        } else {
            classify::classify(&ins, mode, key)
        };
        items.push(Item {
            ins,
            class,
            offset,
            wanted: flags::ALL,
            on_stack: false,
            vector: class == Class::Same && classify::uses_vectors(&ins),
            check: None,
            group: None,
        });
        if class.ends_block() || class == Class::Jcc && key & SINGLE != 0 {
            break;
        }
    }
    if key & EXACT_STACK == 0 && !segmented(key) {
        stack::plan(&mut items, i32::from(mode.bits) / 8);
    }
    items
}

/// Whether the instructions are one that goes on in the next page.
fn cross(items: &[Item]) -> bool {
    items
        .first()
        .is_some_and(|i| usize::from(i.offset) + i.ins.len() > 4096)
}

/// Instructions that are others on processors without a feature.
fn renamed_by_model(vcpu: &InterpVcpu, ins: &Instruction) -> bool {
    use iced_x86::Mnemonic;
    match ins.mnemonic() {
        Mnemonic::Tzcnt => !vcpu.has(cpu_model::Feature::Bmi1),
        Mnemonic::Lzcnt => !vcpu.has(cpu_model::Feature::Abm),
        _ => false,
    }
}

/// The virtual address of the page that the block at `at` is on, if it holds there only.
pub(crate) fn fixed_page(key: u32, at: u64) -> Option<u64> {
    (key & FIXED != 0).then_some(at & !0xfff)
}

impl Translator {
    /// Translates `items`, decoded from `bytes` at `at`. `hot`: it may be a loop that is executed
    /// often.
    pub(crate) fn translate(mode: &Mode, key: u32, items: Vec<Item>, bytes: &[u8], at: u64, hot: bool) -> Draft {
        let mut t = Self {
            asm: Asm::new(),
            encoder: Encoder::new(64),
            info: InstructionInfoFactory::new(),
            cpl: mode.cpl,
            bank: mode.bank,
            single: key & SINGLE != 0,
            wide: mode.bits == 64,
            bits: mode.bits,
            segmented: segmented(key),
            reach: mode.reach,
            stack16: key & STACK16 != 0,
            edge: key & EDGE != 0,
            fixed: fixed_page(key, at),
            cold: Vec::new(),
            exits: Vec::new(),
            hosts: Vec::new(),
            cache: Cache::new(),
            thunks: Vec::new(),
            records: Vec::new(),
            hot: None,
            tried: hot,
            crossing: cross(&items),
            items,
            next_page: None,
            groups: Vec::new(),
            stored: [false; GROUPS],
            at: 0,
            moved: 0,
        };
        // A block that runs alone shows its flags to whoever looks at the processor's state behind it.
        if !t.single {
            t.liveness(bytes, at);
        }
        let plan = if hot && t.wide {
            hot::plan(&t.items, &mut t.info)
        } else {
            None
        };
        let slot = t.slot();
        if let Some(l) = &plan {
            // What comes behind the loop must not rely on a check that only its ordinary body makes.
            let (inside, behind) = t.items.split_at_mut(l.last + 1);
            for part in [inside, behind] {
                stack::plan(part, slot);
                stack::hoist(part, slot);
            }
        } else if !t.single {
            stack::hoist(&mut t.items, slot);
        }
        if plan.is_none() && t.wide && key & EXACT_STACK == 0 {
            t.groups = group::plan(&mut t.items, &mut t.info);
        }
        let entries = t.header();
        let fast = plan.as_ref().map(|l| t.hot_loop(l, at & !0xfff));
        let ends = t.body(at, plan.as_ref());
        let end = t.asm.len();
        if !ends {
            let last = t.items.last().expect("a block has an instruction");
            let next = u64::from(last.offset) + last.ins.len() as u64;
            t.fall_through(at & !0xfff, (at & !0xfff).wrapping_add(next));
        }
        t.hot = fast.map(|(hot, pending)| {
            for (fix, index) in pending.ordinary {
                let to = t.hosts.get(index).map_or(end as i64, |h| h.0.into());
                t.asm.lead(fix, to);
            }
            hot
        });
        t.asm.align(16);
        t.asm.split = t.asm.len();
        t.cold_code();
        t.finish(entries)
    }

    fn liveness(&mut self, bytes: &[u8], at: u64) {
        let bits = self.bits.into();
        let wanted_at = |target: u64| match target.wrapping_sub(at) {
            back if (back as usize) < bytes.len() => flags::wanted_at(bits, &bytes[back as usize..], target),
            _ => flags::ALL,
        };
        let last = self.items.last().expect("a block has an instruction");
        let mut after = match last.class {
            Class::Jmp | Class::Call => wanted_at(last.ins.near_branch_target()),
            class if class.ends_block() => flags::ALL,
            _ => wanted_at(last.ins.next_ip()),
        };
        for item in self.items.iter_mut().rev() {
            if item.class == Class::Jcc {
                after |= wanted_at(item.ins.near_branch_target());
            }
            item.wanted = match item.class {
                Class::Last | Class::FastCall => flags::ALL,
                Class::Nothing | Class::System => after,
                _ => flags::before(&item.ins, after),
            };
            after = item.wanted;
        }
    }

    /// Code of all instructions; true when the block ends with a transfer.
    fn body(&mut self, at: u64, hot: Option<&Loop>) -> bool {
        let page = at & !0xfff;
        let mut vectors = false;
        for index in 0..self.items.len() {
            self.release_all();
            if self.moved != 0 && !stack::rides(&self.items[index]) {
                self.catch_up();
            }
            self.at = index;
            if self.items[index].class.leaves() {
                self.settle();
            }
            self.hosts
                .push((self.asm.len() as u32, self.holdings(), Holdings::NONE));
            if let Some(span) = self.items[index].check {
                self.stack_check(index, span);
            }
            if self.items[index].vector && !std::mem::replace(&mut vectors, true) {
                self.ask_for_vectors(index);
            }
            match self.items[index].class {
                Class::Nothing => {}
                Class::Same => self.same(index),
                Class::Push if self.segmented => self.segmented_push(index),
                Class::Pop if self.segmented => self.segmented_pop(index),
                Class::Call if self.segmented => self.segmented_call(index, page),
                Class::CallIndirect | Class::JmpIndirect if self.segmented => self.segmented_indirect(index),
                Class::Ret if self.segmented => self.segmented_ret(index),
                Class::Push => self.push(index),
                Class::Pop => self.pop(index),
                Class::Leave => self.leave(index),
                Class::Jcc => self.conditional(index, page),
                Class::Jmp => {
                    let target = self.items[index].ins.near_branch_target();
                    self.transfer(page, target, target <= self.items[index].ins.ip());
                }
                Class::Call => self.call(index, page),
                Class::CallIndirect | Class::JmpIndirect => self.indirect(index),
                Class::Ret => self.ret(index),
                Class::System => self.system(index),
                Class::PushFlags => self.push_flags(index),
                Class::Selector => self.selector(index),
                Class::Base => self.base(index),
                Class::BitString => self.bit_string(index),
                Class::String => self.string(index),
                Class::FastCall => self.fast_call(index),
                Class::Interpret | Class::Last => self.hand_over(index),
            }
            if hot.is_some_and(|l| l.last == index) {
                // The other body comes here too.
                self.settle();
            }
        }
        let ends = self.items.last().is_some_and(|i| i.class.ends_block());
        if !ends {
            self.catch_up();
            self.settle();
        }
        ends
    }

    /// Leaves when the vector registers are not in the host's.
    fn ask_for_vectors(&mut self, index: usize) {
        self.check(index, Why::Vectors, Parked::In(crate::asm::T0), |asm| {
            asm.cmp_dword_gs(crate::area::VECTORS, 0);
            asm.jcc(crate::asm::E)
        });
    }

    /// Gives the instruction to the interpreter.
    fn hand_over(&mut self, index: usize) {
        self.save_all();
        let fix = self.asm.lea_rip(crate::asm::T0);
        self.records.push((fix, index as u64));
        let jump = self.asm.jmp();
        self.thunks.push((jump, Why::Slow));
    }

    fn cold_code(&mut self) {
        for cold in std::mem::take(&mut self.cold) {
            match cold {
                Cold::Slow {
                    fixes,
                    why,
                    index,
                    parked,
                    unsaved,
                    held,
                    group,
                    behind,
                } => {
                    fixes.into_iter().for_each(|fix| self.asm.here(fix));
                    for (reg, n) in unsaved.guests() {
                        self.asm.store(crate::area::gpr(n), reg);
                    }
                    if why == Why::Stack && !self.single {
                        self.stack_across_pages(index, parked, held);
                        // It is known to be one page only now.
                        self.find_stack(index, held, behind);
                    }
                    if let Some(g) = group.filter(|_| !self.single) {
                        self.group_across_pages(index, g, parked, held);
                    }
                    self.restore_flags(parked);
                    self.hand(why, index as u64);
                }
                Cold::Exit { exit } => self.exit_stub(exit),
                Cold::Far { fix, offset } => {
                    self.asm.here(fix);
                    self.far(offset);
                }
            }
        }
    }

    /// Where an exit leads while it is not linked.
    pub(crate) fn exit_stub(&mut self, exit: usize) {
        self.exits[exit].stub = self.asm.len() as u32;
        self.hand(Why::Exit, exit as u64);
        if self.exits[exit].leaves_page() {
            self.exits[exit].far = self.asm.len() as u32;
            self.far(self.exits[exit].target.into());
        }
    }

    pub(crate) fn hand(&mut self, why: Why, index: u64) {
        let fix = self.asm.lea_rip(crate::asm::T0);
        self.records.push((fix, index));
        let jump = self.asm.jmp();
        self.thunks.push((jump, why));
    }

    fn finish(mut self, entries: Entries) -> Draft {
        self.asm.align(8);
        let mut places: Vec<(u64, usize)> = Vec::new();
        for (fix, index) in std::mem::take(&mut self.records) {
            let place = match places.iter().find(|(i, _)| *i == index) {
                Some((_, place)) => *place,
                None => {
                    let place = self.asm.len();
                    self.asm.bytes(&[0; size_of::<crate::block::Record>()]);
                    places.push((index, place));
                    place
                }
            };
            self.asm.lead(fix, place as i64);
        }
        for exit in &self.exits {
            if (exit.place as usize) < self.asm.split {
                self.asm.across.push(exit.place as usize);
            }
            self.asm.buf[exit.place as usize..exit.place as usize + 4]
                .copy_from_slice(&(exit.stub.wrapping_sub(exit.place + 4)).to_le_bytes());
        }
        let spans = self
            .items
            .iter()
            .enumerate()
            .filter_map(|(i, item)| item.check.map(|span| (i as u8, span)))
            .collect();
        let insns = self
            .items
            .into_iter()
            .zip(&self.hosts)
            .map(|(item, (host, holdings, unsaved))| Insn {
                offset: item.offset,
                host: u16::try_from(*host).expect("a block is short"),
                holdings: *holdings,
                unsaved: *unsaved,
            })
            .collect();
        Draft {
            code: self.asm.buf,
            split: self.asm.split,
            across: self.asm.across,
            back: self.asm.back,
            entries,
            insns,
            spans,
            groups: self.groups,
            exits: self.exits,
            hot: self.hot,
            tried: self.tried,
            next_page: self.next_page,
            thunks: self.thunks.iter().map(|(fix, why)| (fix.place(), *why)).collect(),
            records: places.into_iter().map(|(index, place)| (place, index)).collect(),
        }
    }
}
