//! The host's R8 to R11 inside a block: guest registers whose home is in memory, the addend of the stack's page, and
//! temporaries, whatever is wanted next.
//!
//! At the ends of a block R8 holds the addend, and all guest registers are at home. In between an instruction's record
//! tells what each register holds, so that execution can go on there after the interpreter has had its turn.

use iced_x86::Instruction;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::area;
use crate::asm::Reg;
use crate::asm::STK;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::block::GROUPS;
use crate::block::Held;
use crate::block::Holdings;
use crate::translate::Translator;
use crate::translate::memory::in_memory;

/// What the four registers hold at the present place of the translation.
#[derive(Clone, Copy)]
pub(crate) struct Cache {
    held: Holdings,
    /// Registers whose guest register's home is out of date.
    dirty: u8,
    /// Registers that the present instruction uses.
    busy: u8,
}

const ALL: [Reg; 4] = [STK, T2, T0, T1];

fn bit(reg: Reg) -> u8 {
    1 << (reg - STK)
}

impl Cache {
    /// As a block begins.
    pub(crate) fn new() -> Self {
        Self {
            held: Holdings::START,
            dirty: 0,
            busy: 0,
        }
    }

    fn find(&self, what: Held) -> Option<Reg> {
        ALL.into_iter().find(|&r| self.held.get(r) == what)
    }
}

/// Whether an instruction has an operand or an address in guest register `n`.
fn uses(ins: &Instruction, n: Reg) -> bool {
    let is = |r: Register| r.is_gpr() && r.full_register().number() as Reg == n;
    (0..ins.op_count()).any(|i| ins.op_kind(i) == OpKind::Register && is(ins.op_register(i)))
        || is(ins.memory_base())
        || is(ins.memory_index())
}

impl Translator {
    /// What the registers hold.
    pub(crate) fn holdings(&self) -> Holdings {
        self.cache.held
    }

    /// The guest registers among them that are newer than their homes.
    pub(crate) fn unsaved(&self) -> Holdings {
        let mut unsaved = Holdings::NONE;
        for r in ALL {
            if self.cache.dirty & bit(r) != 0 {
                unsaved.set(r, self.cache.held.get(r));
            }
        }
        unsaved
    }

    /// The next instruction may use all registers.
    pub(crate) fn release_all(&mut self) {
        self.cache.busy = 0;
    }

    /// The present instruction no longer needs `reg`.
    pub(crate) fn release(&mut self, reg: Reg) {
        if ALL.contains(&reg) {
            self.cache.busy &= !bit(reg);
        }
    }

    /// Takes registers for something else. Flags stay.
    pub(crate) fn claim(&mut self, regs: &[Reg]) {
        for &r in regs {
            self.evict(r);
            self.cache.busy |= bit(r);
        }
    }

    fn evict(&mut self, r: Reg) {
        self.save(r);
        if let Held::Group(g) = self.cache.held.get(r)
            && !self.stored[usize::from(g)]
            && self.at < self.groups[usize::from(g)].last.into()
        {
            self.asm.store(area::GROUPS + 8 * u32::from(g), r);
            self.stored[usize::from(g)] = true;
        }
        self.cache.held.set(r, Held::Nothing);
    }

    fn save(&mut self, r: Reg) {
        if self.cache.dirty & bit(r) != 0
            && let Held::Guest(n) = self.cache.held.get(r)
        {
            self.asm.store(area::gpr(n), r);
        }
        self.cache.dirty &= !bit(r);
    }

    /// The host register of guest register `n`, with its value unless it is about to be written. `None` when the
    /// instruction needs more registers than there are.
    pub(crate) fn fetch(&mut self, index: usize, n: Reg, value: bool) -> Option<Reg> {
        debug_assert!(in_memory(n));
        let what = Held::Guest(n);
        if let Some(r) = self.cache.find(what) {
            self.cache.busy |= bit(r);
            return Some(r);
        }
        let r = self.choose(index, what)?;
        self.evict(r);
        if value {
            self.asm.load(r, area::gpr(n));
        }
        self.cache.held.set(r, what);
        self.cache.busy |= bit(r);
        Some(r)
    }

    /// The host register of a guest register, wherever that is.
    pub(crate) fn host_of(&mut self, index: usize, n: Reg) -> Option<Reg> {
        if in_memory(n) {
            self.fetch(index, n, true)
        } else {
            Some(n)
        }
    }

    /// A register for a value of the present instruction.
    pub(crate) fn any_register(&mut self, index: usize) -> Option<Reg> {
        let r = self.choose(index, Held::Nothing)?;
        self.claim(&[r]);
        Some(r)
    }

    /// A register that [`Self::fetch`] has given is about to be written.
    pub(crate) fn written(&mut self, r: Reg) {
        if ALL.contains(&r) {
            self.cache.dirty |= bit(r);
        }
    }

    /// The register that holds the addend of the stack's page.
    pub(crate) fn stack_addend(&mut self, index: usize) -> Option<Reg> {
        let r = match self.cache.find(Held::Stack) {
            Some(r) => r,
            None => {
                let r = self.choose(index, Held::Stack)?;
                self.load_stack_addend(r);
                r
            }
        };
        self.cache.busy |= bit(r);
        Some(r)
    }

    /// The register that holds what was looked up for group `g`. `None` when there is none.
    pub(crate) fn group_register(&mut self, index: usize, g: u8) -> Option<Reg> {
        let what = Held::Group(g);
        let r = match self.cache.find(what) {
            Some(r) => r,
            None if self.stored[usize::from(g)] => {
                let r = self.choose(index, what)?;
                self.evict(r);
                self.asm.load(r, area::GROUPS + 8 * u32::from(g));
                self.cache.held.set(r, what);
                r
            }
            None => return None,
        };
        self.cache.busy |= bit(r);
        Some(r)
    }

    /// Keeps what was looked up for group `g`, which is in `from`, in the register that is best for it.
    pub(crate) fn keep_group(&mut self, index: usize, g: u8, from: Reg) -> Option<Reg> {
        let r = self.choose(index, Held::Group(g))?;
        if r != from {
            self.evict(r);
            self.asm.mov(r, from);
        }
        self.stored[usize::from(g)] = false;
        self.cache.held.set(r, Held::Group(g));
        self.cache.busy |= bit(r);
        Some(r)
    }

    fn load_stack_addend(&mut self, r: Reg) {
        self.evict(r);
        self.asm.load(r, area::stack(self.bank) + 8);
        self.cache.held.set(r, Held::Stack);
    }

    /// Brings all guest registers home; the copies stay.
    pub(crate) fn save_dirty(&mut self) {
        ALL.into_iter().for_each(|r| self.save(r));
    }

    /// The same, and the addend is in its place.
    pub(crate) fn bring_home(&mut self) {
        self.save_dirty();
        if self.cache.held.get(STK) != Held::Stack {
            self.load_stack_addend(STK);
        }
    }

    /// The state at the ends of a block.
    pub(crate) fn settle(&mut self) {
        self.bring_home();
        self.cache = Cache::new();
        self.stored = [false; GROUPS];
    }

    /// Brings all guest registers home on a way that does not come back.
    pub(crate) fn save_all(&mut self) {
        ALL.into_iter().for_each(|r| self.save(r));
        self.cache = Cache::new();
        self.stored = [false; GROUPS];
    }

    /// The register whose present contents will be missed least.
    fn choose(&self, index: usize, what: Held) -> Option<Reg> {
        let soon = self.next_use(index, what);
        let claimed = self.next_claim(index);
        let free = [T2, T1, T0, STK].into_iter().filter(|&r| self.cache.busy & bit(r) == 0);
        free.min_by_key(|&r| {
            let held = self.cache.held.get(r);
            let missed =
                match held {
                    Held::Nothing => 0,
                    Held::Group(g) if self.at < self.groups[usize::from(g)].last.into() => {
                        if self.stored[usize::from(g)] { 1 } else { 2 }
                    }
                    _ if self.next_use(index, held) == usize::MAX && held != Held::Stack => 0,
                    _ if self.cache.dirty & bit(r) != 0 => 2,
                    _ => 1,
                };
            let short = (r == T0 || r == T1) && claimed < soon && soon != usize::MAX;
            let next = if held == Held::Nothing {
                usize::MAX
            } else {
                self.next_use(index, held)
            };
            (missed + usize::from(short), usize::MAX - next)
        })
    }

    /// The next instruction after `index` that wants something in a register; `usize::MAX` when none does.
    fn next_use(&self, index: usize, what: Held) -> usize {
        let wants = |i: &usize| match what {
            Held::Nothing => false,
            Held::Stack => self.items[*i].on_stack,
            Held::Guest(n) => uses(&self.items[*i].ins, n),
            Held::Group(g) => self.items[*i].group == Some(g),
        };
        (index + 1..self.items.len()).find(wants).unwrap_or(usize::MAX)
    }

    /// The next instruction after `index` that looks an address up.
    fn next_claim(&self, index: usize) -> usize {
        let claims = |i: &usize| {
            let item = &self.items[*i];
            let memory = (0..item.ins.op_count()).any(|o| item.ins.op_kind(o) == OpKind::Memory);
            let known = item
                .group
                .is_some_and(|g| i != &usize::from(self.groups[usize::from(g)].first));
            memory && !item.on_stack && !known && item.ins.mnemonic() != iced_x86::Mnemonic::Lea
        };
        (index + 1..self.items.len()).find(claims).unwrap_or(usize::MAX)
    }
}
