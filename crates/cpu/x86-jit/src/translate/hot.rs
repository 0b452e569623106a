//! Hot loops: a block that jumps back to its own start, with all memory operands at addresses that advance by a constant
//! from one iteration to the next.
//!
//! Such a loop gets a second body without checks. In front of it each group of operands that go together is looked up
//! once, and the number of iterations is computed for which all of them stay on their pages; a counter in a register
//! leads back to the look-up when those are over. An iteration in which an operand crosses into another page, or misses
//! the TLB, takes the ordinary body, and so do the first few.

mod emit;

use iced_x86::Code;
use iced_x86::Instruction;
use iced_x86::InstructionInfoFactory;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::asm::RSP;
use crate::asm::Reg;
use crate::asm::STK;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::block::Base;
use crate::translate::Class;
use crate::translate::Item;
use crate::translate::encode::high_byte;
use crate::translate::encode::memory_operand;
use crate::translate::memory::in_memory;
use crate::translate::memory::writes;

/// Bytes that one look-up covers at most, within one iteration.
const SPAN: i64 = 2048;
/// Groups of operands at most: as many as there are places to keep what was looked up.
pub(crate) const GROUPS: usize = 8;

/// How the operands of a group are addressed once their page is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// The base does not change: a register holds its sum with the page's addend.
    Pointer,
    /// The base advances and there is no index: a register holds the addend, as index.
    Addend,
}

/// Operands that differ by constants.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    form: Form,
    base: Base,
    /// Index register and log2 of its scale.
    index: Option<(Reg, u8)>,
    /// Bytes covered, from the address that base and index give as the iteration begins.
    low: i64,
    high: i64,
    /// What the address advances by with each iteration.
    stride: i64,
    write: bool,
    /// The register that holds what was looked up.
    host: Reg,
}

/// A loop that can do without checks.
pub(crate) struct Loop {
    /// The jump back.
    pub(crate) last: usize,
    groups: Vec<Group>,
    /// By instruction: the group of its memory operand.
    sites: Vec<Option<usize>>,
    /// Guest registers whose home is in memory, where they are meanwhile, and whether they are written.
    spilled: Vec<(Reg, Reg, bool)>,
    /// Guest registers that the loop does not use, and whose host registers it does.
    borrowed: Vec<Reg>,
    counter: Reg,
}

/// What the loop does to a general-purpose register.
#[derive(Clone, Copy, Default)]
struct Use {
    used: bool,
    written: bool,
    /// Written by something else than additions of constants.
    irregular: bool,
    stride: i64,
}

/// The jump back of a block that is a loop.
fn jump_back(items: &[Item]) -> Option<usize> {
    let start = items[0].ins.ip();
    items
        .iter()
        .position(|i| i.class == Class::Jcc && i.ins.near_branch_target() == start)
}

/// What an instruction adds to the one register that it writes.
fn step(ins: &Instruction) -> Option<(Reg, i64)> {
    let by = match ins.code() {
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 => ins.immediate(1) as i64,
        Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 => (ins.immediate(1) as i64).wrapping_neg(),
        Code::Inc_rm64 => 1,
        Code::Dec_rm64 => -1,
        Code::Lea_r64_m
            if ins.memory_base() == ins.op0_register()
                && ins.memory_index() == Register::None
                && !ins.is_ip_rel_memory_operand() =>
        {
            ins.memory_displacement64() as i64
        }
        _ => return None,
    };
    (ins.op0_kind() == OpKind::Register).then(|| (ins.op0_register().number() as Reg, by))
}

fn survey(items: &[Item], info: &mut InstructionInfoFactory) -> [Use; 16] {
    let mut uses = [Use::default(); 16];
    for item in items {
        let step = step(&item.ins);
        for used in info.info(&item.ins).used_registers() {
            if !used.register().is_gpr() {
                continue;
            }
            let n = used.register().full_register().number();
            let place = &mut uses[n];
            place.used = true;
            if writes(used.access()) {
                place.written = true;
                match step {
                    Some((register, by)) if usize::from(register) == n => place.stride += by,
                    _ => place.irregular = true,
                }
            }
        }
    }
    uses
}

/// Whether an instruction can be in the body without checks.
fn fits(item: &Item) -> bool {
    let ins = &item.ins;
    match item.class {
        Class::Nothing | Class::Jcc => true,
        Class::Same => {
            let plain = |r: Register| r == Register::None || r.is_gpr64();
            let addressed = memory_operand(ins) || ins.mnemonic() == Mnemonic::Lea;
            let relative = ins.is_ip_rel_memory_operand();
            let operand = !addressed
                || !high_byte(ins)
                    && (relative || plain(ins.memory_base()))
                    && plain(ins.memory_index())
                    && !matches!(ins.memory_segment(), Register::FS | Register::GS);
            operand && !(relative && ins.mnemonic() == Mnemonic::Lea)
        }
        _ => false,
    }
}

/// Jumps inside the loop must not leave out a step of an address.
fn jumps_fit(items: &[Item]) -> bool {
    items.iter().enumerate().all(|(k, item)| {
        let inside = (item.class == Class::Jcc).then(|| inside(items, k)).flatten();
        inside.is_none_or(|m| items[k + 1..m].iter().all(|i| step(&i.ins).is_none()))
    })
}

/// The instruction of the loop that the jump at `k` leads forward to.
fn inside(items: &[Item], k: usize) -> Option<usize> {
    let target = items[k].ins.near_branch_target();
    (k + 1..items.len()).find(|&m| items[m].ins.ip() == target)
}

/// Looks whether the block is a loop that can do without checks.
pub(crate) fn plan(items: &[Item], info: &mut InstructionInfoFactory) -> Option<Loop> {
    let last = jump_back(items)?;
    let body = &items[..=last];
    if items[0].wanted != 0 || !body.iter().all(fits) || !jumps_fit(body) {
        return None;
    }
    let uses = survey(body, info);
    if uses[usize::from(RSP)].written {
        return None;
    }
    let mut groups: Vec<Group> = Vec::new();
    let mut sites = Vec::with_capacity(body.len());
    let mut moved = [0i64; 16];
    for item in body {
        let has = memory_operand(&item.ins) && item.ins.mnemonic() != Mnemonic::Lea;
        sites.push(match has {
            true => Some(place(&mut groups, &group_of(&item.ins, &uses, &moved, info)?)),
            false => None,
        });
        if let Some((n, by)) = step(&item.ins) {
            moved[usize::from(n)] += by;
        }
    }
    if groups.is_empty() || groups.len() > GROUPS {
        return None;
    }
    assign(last, groups, sites, &uses, body)
}

/// The group that a memory operand makes alone.
fn group_of(
    ins: &Instruction,
    uses: &[Use; 16],
    moved: &[i64; 16],
    info: &mut InstructionInfoFactory,
) -> Option<Group> {
    let number = |r: Register| (r != Register::None).then(|| r.number() as Reg);
    let of = |n: Option<Reg>| n.map_or(Use::default(), |n| uses[usize::from(n)]);
    let relative = ins.is_ip_rel_memory_operand();
    let (mut base, mut index) = (
        if relative { None } else { number(ins.memory_base()) },
        number(ins.memory_index()),
    );
    if of(base).irregular || of(index).irregular {
        return None;
    }
    let mut scale = ins.memory_index_scale().trailing_zeros() as u8;
    let form = match (of(base).stride, index) {
        (0, _) => Form::Pointer,
        (_, None) => Form::Addend,
        (_, Some(_)) if scale == 0 && of(index).stride == 0 => {
            std::mem::swap(&mut base, &mut index);
            Form::Pointer
        }
        _ => return None,
    };
    if index.is_none() {
        scale = 0;
    }
    let shift = |n: Option<Reg>| n.map_or(0, |n| moved[usize::from(n)]);
    let disp = if relative {
        ins.ip_rel_memory_address().wrapping_sub(ins.ip() & !0xfff) as i64
    } else {
        ins.memory_displacement64() as i64
    };
    let low = disp
        .checked_add(shift(base))?
        .checked_add(shift(index).checked_shl(scale.into())?)?;
    let operand = (0..ins.op_count()).find(|&i| ins.op_kind(i) == OpKind::Memory)?;
    Some(Group {
        form,
        base: match base {
            _ if relative => Base::Page,
            Some(n) => Base::Register(n),
            None => Base::None,
        },
        index: index.map(|n| (n, scale)),
        low,
        high: low + ins.memory_size().size() as i64,
        stride: of(base)
            .stride
            .checked_add(of(index).stride.checked_shl(scale.into())?)?,
        write: writes(info.info(ins).op_access(operand)),
        host: 0,
    })
}

/// Puts an operand into a group. The number of that.
fn place(groups: &mut Vec<Group>, new: &Group) -> usize {
    for (n, g) in groups.iter_mut().enumerate() {
        let (low, high) = (g.low.min(new.low), g.high.max(new.high));
        if (g.form, g.base, g.index) == (new.form, new.base, new.index) && high - low <= SPAN {
            (g.low, g.high, g.write) = (low, high, g.write | new.write);
            return n;
        }
    }
    groups.push(new.clone());
    groups.len() - 1
}

/// Finds registers for all that the loop keeps.
fn assign(
    last: usize,
    mut groups: Vec<Group>,
    sites: Vec<Option<usize>>,
    uses: &[Use; 16],
    body: &[Item],
) -> Option<Loop> {
    if groups
        .iter()
        .any(|g| i32::try_from(g.low).is_err() || i32::try_from(g.stride).is_err())
    {
        return None;
    }
    let unused = (0..16).filter(|&n| n != RSP && !in_memory(n) && !uses[usize::from(n)].used);
    let mut pool = [T2, T0, T1, STK].into_iter().chain(unused);
    let mut spilled = Vec::new();
    for n in (0..16).filter(|&n| in_memory(n) && uses[usize::from(n)].used) {
        spilled.push((n, pool.next()?, uses[usize::from(n)].written));
    }
    // The second-byte registers exist only where no register above the seventh is named.
    if !spilled.is_empty() && body.iter().any(|i| high_byte(&i.ins)) {
        return None;
    }
    for group in &mut groups {
        group.host = pool.next()?;
    }
    let counter = pool.next()?;
    let taken = spilled
        .iter()
        .map(|s| s.1)
        .chain(groups.iter().map(|g| g.host))
        .chain([counter]);
    Some(Loop {
        last,
        borrowed: taken.filter(|&r| !in_memory(r)).collect(),
        groups,
        sites,
        spilled,
        counter,
    })
}
