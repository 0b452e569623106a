//! Memory operands that differ by a constant: one look-up for all of them.
//!
//! The first of a group is checked for the bytes of all. What it finds, the addend of the page or the address of the
//! group's first byte, stays in a register or in the vCPU's memory for the others, which need no check of their own. A
//! check that fails raises no fault, since it may cover accesses that are never reached: where the bytes lie on two pages,
//! the rest of the block goes on in a translation that checks each access for itself; else the interpreter does the one
//! instruction, and what the group holds is looked up again behind it.

use iced_x86::InstructionInfoFactory;
use iced_x86::InstructionInfoOptions;
use iced_x86::Mnemonic;
use iced_x86::OpKind;
use iced_x86::Register;

use crate::area;
use crate::asm::RSP;
use crate::asm::Reg;
use crate::asm::T0;
use crate::asm::T1;
use crate::asm::T2;
use crate::block::Base;
use crate::block::GROUPS;
use crate::block::Group;
use crate::block::Holdings;
use crate::translate::Class;
use crate::translate::Item;
use crate::translate::Parked;
use crate::translate::Translator;
use crate::translate::encode::memory_operand;
use crate::translate::memory::Look;
use crate::translate::memory::Place;
use crate::translate::memory::in_memory;
use crate::translate::memory::on_one_page;
use crate::translate::memory::writes;

/// Bytes that one check covers at most.
const REACH: i32 = 512;

/// A group whose end is not known yet.
struct Open {
    group: Group,
    members: Vec<usize>,
    /// Execution may have left the block since it began.
    conditional: bool,
}

/// The group that the memory operand of an instruction makes alone.
fn alone(index: usize, item: &Item) -> Option<Group> {
    let ins = &item.ins;
    let plain = |r: Register| r == Register::None || r.is_gpr64();
    let taken = matches!(
        item.class,
        Class::Same | Class::Push | Class::CallIndirect | Class::JmpIndirect
    );
    if !taken || !memory_operand(ins) || ins.mnemonic() == Mnemonic::Lea {
        return None;
    }
    let relative = ins.is_ip_rel_memory_operand();
    if !(relative || plain(ins.memory_base()) && plain(ins.memory_index())) || ins.memory_base() == Register::RSP {
        return None;
    }
    let number = |r: Register| (r != Register::None).then(|| r.number() as Reg);
    let base = match number(ins.memory_base()) {
        _ if relative => Base::Page,
        Some(n) => Base::Register(n),
        None => Base::None,
    };
    let segment = match ins.memory_segment() {
        Register::FS => Some(4),
        Register::GS => Some(5),
        _ => None,
    };
    let scaled = number(ins.memory_index()).map(|n| (n, ins.memory_index_scale().trailing_zeros() as u8));
    if base == Base::None && scaled.is_none() && ins.memory_displ_size() == 4 && segment.is_none() {
        return None;
    }
    let low = displacement(item)?;
    Some(Group {
        first: index as u8,
        last: index as u8,
        base,
        scaled,
        segment,
        low,
        high: low.checked_add(ins.memory_size().size() as i32)?,
        write: false,
    })
}

/// Distance of the operand from what its group begins with: registers, or the page of the code.
fn displacement(item: &Item) -> Option<i32> {
    let ins = &item.ins;
    let disp = if ins.is_ip_rel_memory_operand() {
        ins.ip_rel_memory_address().wrapping_sub(ins.ip() & !0xfff)
    } else {
        ins.memory_displacement64()
    };
    i32::try_from(disp as i64).ok()
}

fn same_place(a: &Group, b: &Group) -> bool {
    (a.base, a.scaled, a.segment) == (b.base, b.scaled, b.segment)
}

/// Decides which operands go together.
pub(crate) fn plan(items: &mut [Item], info: &mut InstructionInfoFactory) -> Vec<Group> {
    let candidates: Vec<Option<Group>> = items
        .iter()
        .enumerate()
        .map(|(i, item)| alone(i, item).filter(|_| !item.on_stack || super::stack::stack_operand(item).is_none()))
        .collect();
    let repeated = |i: usize| {
        let group = candidates[i].as_ref();
        group.is_some_and(|a| candidates[i + 1..].iter().flatten().any(|b| same_place(a, b)))
    };
    let mut groups = Vec::new();
    if !(0..items.len()).any(repeated) {
        return groups;
    }
    let mut open: Vec<Open> = Vec::new();
    let mut done: Vec<Open> = Vec::new();
    for (index, candidate) in candidates.iter().enumerate() {
        if let Some(new) = candidate {
            join(&mut open, &mut done, new, index, written(&items[index], info));
        }
        close(&mut open, &mut done, &items[index], info);
    }
    done.extend(open);
    done.retain(|o| o.members.len() > 1);
    done.sort_by_key(|o| o.group.first);
    for o in done.into_iter().take(GROUPS) {
        for &m in &o.members {
            items[m].group = Some(groups.len() as u8);
        }
        groups.push(o.group);
    }
    groups
}

/// The memory operand is written.
fn written(item: &Item, info: &mut InstructionInfoFactory) -> bool {
    let options = InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
    let info = info.info_options(&item.ins, options);
    (0..item.ins.op_count()).any(|i| item.ins.op_kind(i) == OpKind::Memory && writes(info.op_access(i)))
}

/// Puts an operand into an open group, or opens one.
fn join(open: &mut Vec<Open>, done: &mut Vec<Open>, new: &Group, index: usize, write: bool) {
    if let Some(at) = open.iter().position(|o| same_place(&o.group, new)) {
        let o = &mut open[at];
        let (low, high) = (o.group.low.min(new.low), o.group.high.max(new.high));
        // A page that is only read must not miss for the sake of a write that is not reached.
        let fits = i64::from(high) - i64::from(low) <= REACH.into() && (!write || o.group.write || !o.conditional);
        if fits {
            (o.group.low, o.group.high, o.group.last) = (low, high, index as u8);
            o.group.write |= write;
            o.members.push(index);
            return;
        }
        done.push(open.swap_remove(at));
    }
    open.push(Open {
        group: Group { write, ..*new },
        members: vec![index],
        conditional: false,
    });
}

/// Closes the groups that an instruction ends.
fn close(open: &mut Vec<Open>, done: &mut Vec<Open>, item: &Item, info: &mut InstructionInfoFactory) {
    if open.is_empty() {
        return;
    }
    match item.class {
        Class::Jcc => {
            open.iter_mut().for_each(|o| o.conditional = true);
            return;
        }
        class if class.leaves() => return done.append(open),
        Class::System | Class::Base => {
            let (ended, kept) = std::mem::take(open)
                .into_iter()
                .partition(|o| o.group.segment.is_some());
            *open = kept;
            done.extend::<Vec<Open>>(ended);
        }
        _ => {}
    }
    let used = info.info_options(&item.ins, InstructionInfoOptions::NO_MEMORY_USAGE);
    for register in used.used_registers() {
        if !writes(register.access()) || !register.register().is_gpr() {
            continue;
        }
        let n = register.register().full_register().number() as Reg;
        let (ended, kept) = std::mem::take(open)
            .into_iter()
            .partition(|o: &Open| o.group.depends_on(n));
        *open = kept;
        done.extend::<Vec<Open>>(ended);
    }
}

impl Translator {
    /// The memory operand of an instruction of group `g`, looked up unless that was done.
    pub(crate) fn group_operand(&mut self, index: usize, g: u8) -> Option<Place> {
        let group = self.groups[usize::from(g)];
        let reg = match self.group_register(index, g) {
            Some(reg) => reg,
            None => self.check_group(index, g)?,
        };
        let disp = displacement(&self.items[index])?;
        if group.pointer() {
            return Some(Place {
                base: reg,
                index: None,
                disp: disp - group.low,
            });
        }
        let Base::Register(base) = group.base else { return None };
        Some(Place {
            base,
            index: Some(reg),
            disp,
        })
    }

    /// Checks all of a group. The register with what was found.
    fn check_group(&mut self, index: usize, g: u8) -> Option<Reg> {
        let group = self.groups[usize::from(g)];
        let flags = self.items[index].wanted != 0;
        let size = (group.high - group.low) as u32;
        if let Some(address) = self.fixed_group(&group)
            && on_one_page(address, size)
        {
            self.claim(if flags { &[T1, T2] } else { &[T1] });
            self.with_flags(index, Parked::In(T2), |t, parked| {
                let look = Look {
                    offset: T1,
                    write: group.write,
                    size,
                    group: Some(g),
                };
                t.look_fixed_up(index, parked, address, &look);
            });
            self.asm.lea(T1, T1, address);
            self.release(T1);
            self.release(T2);
            return self.keep_group(index, g, T1);
        }
        let simple = match group.base {
            Base::Register(base) if group.scaled.is_none() && group.segment.is_none() => Some(base),
            _ => None,
        };
        self.claim(if flags && simple.is_some() {
            &[T0, T1, T2]
        } else {
            &[T0, T1]
        });
        let mut base = None;
        if let Some(n) = simple {
            let host = self.host_of(index, n)?;
            self.asm.lea(T0, host, group.low);
            base = Some(host);
        } else {
            self.group_address(index, &group)?;
            // No sooner: the address may need two registers that live in memory.
            self.claim(&[T2]);
            self.asm.mov(T2, T0);
        }
        let (offset, parked) = match base {
            Some(_) => (T0, Parked::In(T2)),
            None => (T2, Parked::InMemory),
        };
        self.with_flags(index, parked, |t, parked| {
            let look = Look {
                offset,
                write: group.write,
                size,
                group: Some(g),
            };
            t.look_up(index, parked, &look);
        });
        match base {
            Some(base) if group.pointer() => self.asm.lea_any(T1, Some(base), Some((T1, 0)), group.low, true),
            Some(_) => {}
            None => self.asm.lea_sum(T1, T0, T1),
        }
        if group.pointer()
            && let Some(base) = base
        {
            self.release(base);
        }
        for r in [T0, T1, T2] {
            self.release(r);
        }
        self.keep_group(index, g, T1)
    }

    /// The address of the group's first byte, if it is known.
    fn fixed_group(&self, group: &Group) -> Option<i32> {
        let plain = group.base == Base::Page && group.scaled.is_none() && group.segment.is_none();
        if plain {
            self.fixed_address(group.low.into())
        } else {
            None
        }
    }

    /// The linear address of the group's first byte into T0.
    fn group_address(&mut self, index: usize, group: &Group) -> Option<()> {
        let base = match group.base {
            Base::None => None,
            Base::Page => {
                self.asm.load(T0, area::PAGE);
                Some(T0)
            }
            Base::Register(n) => Some(self.host_of(index, n)?),
        };
        let scaled = match group.scaled {
            Some((n, scale)) => Some((self.host_of(index, n)?, scale)),
            None => None,
        };
        self.asm.lea_any(T0, base, scaled, group.low, true);
        for r in base.into_iter().chain(scaled.map(|s| s.0)).filter(|&r| r != T0) {
            self.release(r);
        }
        if let Some(n) = group.segment {
            self.asm.load(T1, area::segment_base(n));
            self.asm.lea_sum(T0, T0, T1);
        }
        Some(())
    }

    /// Where the check of a group has failed: if its bytes lie on two pages, goes on with the translation that checks each
    /// access for itself. All guest registers are at home.
    pub(crate) fn group_across_pages(&mut self, index: usize, g: u8, parked: Parked, held: Holdings) {
        let group = self.groups[usize::from(g)];
        let base = match group.base {
            Base::None => None,
            Base::Page => {
                self.asm.load(T0, area::PAGE);
                Some(T0)
            }
            Base::Register(n) => Some(self.home_value(n, T0, parked)),
        };
        let scaled = group.scaled.map(|(n, scale)| (self.home_value(n, T1, parked), scale));
        self.asm.lea_any(T0, base, scaled, group.low, true);
        if let Some(n) = group.segment {
            self.asm.add(T0, area::segment_base(n));
        }
        self.exit_across_pages(index, group.high - group.low, parked, held);
    }

    /// The value of a guest register while RAX may be put away, in `temporary` if need be.
    fn home_value(&mut self, n: Reg, temporary: Reg, parked: Parked) -> Reg {
        debug_assert_ne!(n, RSP);
        match parked {
            _ if in_memory(n) => self.asm.load(temporary, area::gpr(n)),
            Parked::In(register) if n == 0 => return register,
            Parked::InMemory if n == 0 => self.asm.load(temporary, area::SCRATCH),
            _ => return n,
        }
        temporary
    }
}
