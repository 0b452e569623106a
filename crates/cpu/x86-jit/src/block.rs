//! A translated block, and what is known about it.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;

use guest_memory::CodePage;

/// What a block is found by: the address of its first byte in guest physical memory, and [`ModeKey`].
pub(crate) type Key = (u64, u32);

/// What one of the host's R8 to R11 holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    Nothing,
    /// The addend of the stack's page.
    Stack,
    /// The guest register of this number.
    Guest(u8),
    /// What was looked up for the group of this number.
    Group(u8),
}

/// What the host's R8 to R11 hold: four bits for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holdings(u16);

impl Holdings {
    pub(crate) const NONE: Self = Self(0);
    /// At the start of a block: the addend of the stack's page in R8.
    pub(crate) const START: Self = Self(1);

    /// What register number `reg` holds.
    pub(crate) fn get(self, reg: u8) -> Held {
        match self.0 >> ((reg - 8) * 4) & 15 {
            0 => Held::Nothing,
            1 => Held::Stack,
            n @ 8..12 => Held::Guest(n as u8),
            n @ ..8 => Held::Group(n as u8 - 2),
            n => Held::Group(n as u8 - 6),
        }
    }

    pub(crate) fn set(&mut self, reg: u8, held: Held) {
        let code = match held {
            Held::Nothing => 0,
            Held::Stack => 1,
            Held::Guest(n) => u16::from(n),
            Held::Group(n @ ..6) => u16::from(n) + 2,
            Held::Group(n) => u16::from(n) + 6,
        };
        let shift = (reg - 8) * 4;
        self.0 = self.0 & !(15 << shift) | code << shift;
    }

    /// The guest registers, and where they are.
    pub(crate) fn guests(self) -> impl Iterator<Item = (u8, u8)> {
        (8..12).filter_map(move |reg| match self.get(reg) {
            Held::Guest(n) => Some((reg, n)),
            _ => None,
        })
    }
}

/// An instruction of a block.
pub(crate) struct Insn {
    /// Offset of its first byte in the guest's page; beyond the page never.
    pub(crate) offset: u16,
    /// Its code, from the start of the block's.
    pub(crate) host: u16,
    /// What R8 to R11 hold before it.
    pub(crate) holdings: Holdings,
    /// Guest registers that are there only, when the host faults on it.
    pub(crate) unsaved: Holdings,
}

/// What the stack check of an instruction covers: the bytes `low..high` from a register.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    pub(crate) register: u8,
    pub(crate) low: i32,
    pub(crate) high: i32,
}

/// What an address begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    None,
    /// The page that the code is on.
    Page,
    Register(u8),
}

/// Groups of a block at most: as many as [`Holdings`] can tell apart.
pub(crate) const GROUPS: usize = 10;

/// Memory operands with one check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Group {
    /// Its first instruction, which makes the check, and its last.
    pub(crate) first: u8,
    pub(crate) last: u8,
    pub(crate) base: Base,
    /// Index register and log2 of its scale.
    pub(crate) scaled: Option<(u8, u8)>,
    /// FS or GS.
    pub(crate) segment: Option<u8>,
    /// Bytes covered, from the sum of these.
    pub(crate) low: i32,
    pub(crate) high: i32,
    pub(crate) write: bool,
}

impl Group {
    /// What is kept is the host's address of the first byte; else it is the addend of the page.
    pub(crate) fn pointer(&self) -> bool {
        let plain = matches!(self.base, Base::Register(n) if !(8..12).contains(&n));
        !plain || self.scaled.is_some() || self.segment.is_some()
    }

    /// Whether its address changes with a register.
    pub(crate) fn depends_on(&self, n: u8) -> bool {
        self.base == Base::Register(n) || self.scaled.is_some_and(|s| s.0 == n)
    }
}

/// A direct jump out of a block.
pub(crate) struct Exit {
    /// Offset of the target from the start of the block's page.
    pub(crate) target: i32,
    /// Where the displacement of the jump is, from the start of the code as if both parts were one.
    pub(crate) place: u32,
    /// Where the jump leads while it is not linked, from the start of the code as if both parts were one.
    pub(crate) stub: u32,
    /// Code that goes there through the jump cache, likewise, when it is in another page.
    pub(crate) far: u32,
    /// Jumps backwards: signals are looked at on the way.
    pub(crate) backward: bool,
    /// To the translation whose stack accesses are checked each for itself.
    pub(crate) exact: bool,
}

impl Exit {
    /// The target is in another page.
    pub(crate) fn leaves_page(&self) -> bool {
        !(0..4096).contains(&self.target)
    }
}

/// Times that a block jumps back to its own start before it counts as a hot loop.
pub(crate) const HOT: u32 = 16;

/// The body of a hot loop that has no checks.
pub(crate) struct Hot {
    /// Where the jump back leads, from the start of the block's code.
    pub(crate) again: u32,
    /// Where the instructions of the loop are in it, from the start of the block's code.
    pub(crate) hosts: Box<[u32]>,
    /// Guest registers whose home is in memory, and their host registers.
    pub(crate) spilled: Box<[(u8, u8)]>,
    /// Registers that are put aside.
    pub(crate) borrowed: Box<[u8]>,
}

/// Where a block's code may be entered beside its start, which is for the jump cache; from there.
#[derive(Clone, Copy)]
pub(crate) struct Entries {
    /// Looks at signals.
    pub(crate) poll: u32,
    /// Does not, but notes what page it is on, where that is part of the code.
    pub(crate) paged: Option<u32>,
    /// Does neither.
    pub(crate) body: u32,
}

pub(crate) struct Block {
    pub(crate) id: u32,
    /// Number of its page, which may be too high for the page maps.
    pub(crate) page: u32,
    /// The page.
    pub(crate) code: *const CodePage,
    pub(crate) key: Key,
    /// The virtual address of its page, if its code holds for that alone.
    pub(crate) fixed: Option<u64>,
    /// Address of the code.
    pub(crate) host: u64,
    /// Bytes of code there.
    pub(crate) len: u32,
    /// Address of the code that lies apart.
    pub(crate) cold: u64,
    pub(crate) entries: Entries,
    pub(crate) insns: Box<[Insn]>,
    pub(crate) spans: Box<[(u8, Span)]>,
    pub(crate) groups: Box<[Group]>,
    pub(crate) exits: Box<[Exit]>,
    /// The body without checks, if the block is a hot loop.
    pub(crate) hot: Option<Box<Hot>>,
    /// Times that it has jumped back to its own start before that jump was linked.
    pub(crate) spins: AtomicU32,
    /// Its code was overwritten: it is not to be entered any more.
    pub(crate) dead: AtomicBool,
    /// The page after, when the block's one instruction goes on there.
    pub(crate) second: Option<Second>,
    /// Number of that.
    pub(crate) second_page: Option<u32>,
}

/// The second page of an instruction that crosses pages.
#[derive(Clone, Copy)]
pub(crate) struct Second {
    pub(crate) gpa: u64,
    pub(crate) code: *const CodePage,
}

// SAFETY: the pointers lead to code pages, which have atomic fields and live as long as guest memory.
unsafe impl Send for Block {}
// SAFETY: as above; a block never changes.
unsafe impl Sync for Block {}

/// What a stub hands over: a block, and the number of an instruction or an exit of it.
#[repr(C)]
pub(crate) struct Record {
    pub(crate) block: *const Block,
    pub(crate) index: u64,
}

impl Block {
    /// The instruction whose code holds host address `at`.
    pub(crate) fn insn_at(&self, at: u64) -> usize {
        let offset = (at - self.host) as u32;
        match self.hot_at(at) {
            Some(hot) => hot.hosts.partition_point(|h| *h <= offset).saturating_sub(1),
            None => self
                .insns
                .partition_point(|i| u32::from(i.host) <= offset)
                .saturating_sub(1),
        }
    }

    /// The body without checks, if it holds host address `at`.
    pub(crate) fn hot_at(&self, at: u64) -> Option<&Hot> {
        let offset = (at - self.host) as u32;
        self.hot.as_deref().filter(|_| offset < self.insns[0].host.into())
    }

    /// Where the displacement of a jump is.
    pub(crate) fn place(&self, exit: &Exit) -> u64 {
        match exit.place.checked_sub(self.len) {
            Some(place) => self.cold + u64::from(place),
            None => self.host + u64::from(exit.place),
        }
    }

    /// Where a jump leads that is not linked.
    pub(crate) fn stub(&self, exit: &Exit) -> u64 {
        self.cold + u64::from(exit.stub - self.len)
    }

    /// The way through the jump cache of a jump to another page.
    pub(crate) fn far(&self, exit: &Exit) -> u64 {
        self.cold + u64::from(exit.far - self.len)
    }

    /// The stack check at instruction `index`.
    pub(crate) fn span(&self, index: usize) -> Option<Span> {
        self.spans
            .iter()
            .find(|(i, _)| usize::from(*i) == index)
            .map(|(_, s)| *s)
    }
}
